mod absorb;
mod adaround;
mod bias;
mod brecq;
mod calibrate;
mod chosen;
mod cluster;
mod equalise;
mod fold;
mod low_rank;
mod placement;
mod prune;
mod prune_blocks;
mod quantize;
mod smooth;
mod student;
mod zero_points;

use super::{testkit::*, *};
use crate::graph::{Graph, LayerId};

fn id(name: &str) -> LayerId {
    LayerId(name.into())
}

fn apply(pass: &dyn Pass, model: Model) -> (Model, Account) {
    let (model, account) = with_context(|c| pass.apply(model, c)).expect("the pass applies");
    model.graph.validate().expect("a pass leaves a valid graph");
    covers(&model.graph, &account);
    (model, account)
}

/// Every layer stands in the account exactly once, in the graph's order.
fn covers(graph: &Graph, account: &Account) {
    let layers: Vec<LayerId> = graph.layers().into_iter().map(|l| l.id).collect();
    let entries: Vec<LayerId> = account.entries.iter().map(|e| e.layer.clone()).collect();
    assert_eq!(layers, entries);
}

fn outcome<'a>(account: &'a Account, layer: &str) -> &'a Outcome {
    let entry = account.entries.iter().find(|e| &*e.layer.0 == layer);
    &entry.expect("the layer is in the account").outcome
}

/// The reason why a layer was left alone.
fn refused<'a>(account: &'a Account, layer: &str) -> &'a str {
    match outcome(account, layer) {
        Outcome::NotDone(reason) => reason,
        Outcome::Done(what) => panic!("{layer} should have been left alone: {what}"),
    }
}

fn weight_of(graph: &Graph, layer: &str) -> Vec<f32> {
    let layers = graph.layers();
    let layer = layers.iter().find(|l| &*l.id.0 == layer).expect("a layer");
    let data = graph.value(layer.weight).data.as_ref();
    data.expect("a constant").to_f32_vec()
}

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(1.0_f32, |m, v| m.max(v.abs()));
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() <= tolerance * largest, "{x} against {y}");
    }
}
