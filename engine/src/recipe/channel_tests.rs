//! Channels taken out of the sample networks.

use crate::{
    compress::{
        Account, Amount, Attention, ChannelGroups, ChannelSettings, Model, Outcome, Pass,
        PruneChannels, Ranking, Ratio,
        structured::tests::{equals_the_zeroed, equals_the_zeroed_with},
        testkit::{batch, run_on, with_context},
    },
    formats::onnx,
    graph::{Dim, LayerId},
    measure,
};
use std::path::Path;

fn id(name: &str) -> LayerId {
    LayerId(name.into())
}

fn sample(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sample-models")
        .join(name);
    Model::new(onnx::read_model(&path).expect("the sample is there").graph)
}

fn apply(model: &Model, settings: ChannelSettings, kept: &[&str]) -> (Model, Account) {
    let pass = PruneChannels {
        settings,
        layers: kept.iter().map(|l| (id(l), None)).collect(),
    };
    let (pruned, account) = with_context(|c| pass.apply(model.clone(), c)).expect("applies");
    pruned.graph.validate().expect("valid");
    (pruned, account)
}

fn macs(model: &Model) -> u64 {
    measure::sizes(&model.graph)
        .expect("sizes")
        .macs
        .expect("known shapes")
}

#[test]
fn samples_equal_their_masks() {
    for (name, shape) in [
        ("fashion-resnet/fashion-resnet.onnx", vec![1, 28, 28]),
        (
            "efficientnet-lite0/efficientnet-lite0.onnx",
            vec![3, 64, 64],
        ),
    ] {
        let mut model = sample(name);
        // Convolutions do not mind a smaller image than the network was made for.
        let input = model.graph.inputs[0];
        if let Some(dims) = &mut model.graph.value_mut(input).shape {
            for (dim, n) in dims.iter_mut().skip(1).zip(&shape) {
                *dim = Dim::Known(*n);
            }
        }
        for seed in [1, 99] {
            let removed = equals_the_zeroed(&model, &batch(1, &shape), seed, 1e-3);
            assert!(removed > 100, "{name}: {removed}");
        }
    }
}

#[test]
fn budgets_are_met_and_not_overshot() {
    let model = sample("fashion-resnet/fashion-resnet.onnx");
    let before = macs(&model);
    for ranking in [Ranking::Local, Ranking::Global] {
        for share in [0.9_f32, 0.5, 0.25] {
            let settings = ChannelSettings {
                amount: Amount::Macs(share),
                ranking,
                ..ChannelSettings::default()
            };
            let (pruned, _) = apply(&model, settings, &[]);
            let left = macs(&pruned) as f64 / before as f64;
            assert!(left <= f64::from(share), "{ranking:?} {share}: {left}");
            assert!(
                left > f64::from(share) - 0.06,
                "{ranking:?} {share}: {left}"
            );
        }
    }
    let settings = ChannelSettings {
        amount: Amount::WeightKilobytes(600.0),
        round_to: 8,
        least: 8,
        ..ChannelSettings::default()
    };
    let (pruned, account) = apply(&model, settings, &["conv1"]);
    let bytes = measure::sizes(&pruned.graph).expect("sizes").runtime.0;
    assert!(bytes <= 600_000, "{bytes}");
    for layer in pruned.graph.layers() {
        assert!(
            layer.weight_shape[0] % 8 == 0 || &*layer.id.0 == "fc",
            "{layer:?}"
        );
    }
    assert!(
        matches!(account.entries[0].outcome, Outcome::NotDone(_)),
        "{account:?}"
    );
    let impossible = PruneChannels {
        settings: ChannelSettings {
            amount: Amount::Macs(0.01),
            ..ChannelSettings::default()
        },
        layers: model
            .graph
            .layers()
            .into_iter()
            .map(|l| (l.id, Some(Ratio(0.5))))
            .collect(),
    };
    let error = with_context(|c| impossible.apply(model.clone(), c))
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot reach macs(0.01)"), "{error}");
}

#[test]
fn what_is_pruned_can_be_written_and_read_again() {
    let model = sample("fashion-resnet/fashion-resnet.onnx");
    let settings = ChannelSettings {
        amount: Amount::Macs(0.5),
        ..ChannelSettings::default()
    };
    let (pruned, account) = apply(&model, settings, &[]);
    let (small, large) = (
        onnx::to_bytes(&pruned.graph).expect("writes"),
        onnx::to_bytes(&model.graph).expect("writes"),
    );
    assert!(
        small.len() < large.len() * 3 / 4,
        "{} of {}",
        small.len(),
        large.len()
    );
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p.onnx");
    std::fs::write(&path, small).expect("writes");
    let read = onnx::read_model(&path).expect("reads").graph;
    let x = batch(2, &[1, 28, 28]);
    assert_eq!(run_on(&read, &x), run_on(&pruned.graph, &x));
    assert!(
        account.pass.contains("MACs a sample left (4"),
        "{}",
        account.pass
    );
}

/// Two of four heads of every block: queries, keys and values lose outputs, what projects back loses inputs, and the number of heads that
/// the graph reshapes to follows.
#[test]
fn whole_heads_go_from_an_encoder() {
    let model = sample("fashion-encoder/fashion-encoder.onnx");
    for attention in [Attention::Heads, Attention::Widths] {
        for seed in [1, 99] {
            let x = batch(2, &[1, 28, 28]);
            let removed = equals_the_zeroed_with(attention, &model, &x, seed, 1e-3);
            assert!(removed > 8, "{attention:?}: {removed}");
        }
    }
    let projections = ["query", "key", "value"].map(|p| format!("/attention/{p}/"));
    let is = |name: &str| projections.iter().any(|p| name.contains(p.as_str()));
    let attention: Vec<LayerId> = model.graph.layers().into_iter().map(|l| l.id).collect();
    let attention: Vec<LayerId> = attention.into_iter().filter(|l| is(&l.0)).collect();
    assert!(attention.len() >= 6, "{attention:?}");
    let pass = PruneChannels {
        settings: ChannelSettings {
            attention: Attention::Heads,
            ..ChannelSettings::default()
        },
        layers: attention
            .iter()
            .map(|l| (l.clone(), Some(Ratio(0.5))))
            .collect(),
    };
    let (pruned, account) = with_context(|c| pass.apply(model.clone(), c)).expect("applies");
    pruned.graph.validate().expect("valid");
    let shapes = |m: &Model| -> Vec<(String, Vec<usize>)> {
        let layers = m.graph.layers().into_iter();
        layers
            .map(|l| (l.id.0.to_string(), l.weight_shape))
            .collect()
    };
    for ((name, before), (_, after)) in shapes(&model).iter().zip(&shapes(&pruned)) {
        let mut wanted = before.clone();
        if is(name) {
            wanted[1] /= 2;
        } else if name.contains("/attention/dense/") {
            wanted[0] /= 2;
        }
        assert_eq!(*after, wanted, "{name}");
    }
    // Heads are as wide as they were, and half as many.
    let heads = |m: &Model| -> Vec<(usize, usize)> {
        let mut bound = m.graph.clone();
        bound.bind_batch(1);
        let reshapes = bound.nodes.iter().filter(|n| n.op.name() == "Reshape");
        let shapes = reshapes.filter_map(|n| bound.value(n.outputs[0]?).known_shape());
        shapes
            .filter(|s| s.len() == 4 && s[1] == 50)
            .map(|s| (s[2], s[3]))
            .collect()
    };
    let (before, after) = (heads(&model), heads(&pruned));
    assert_eq!(before.len(), attention.len());
    for ((n, width), now) in before.into_iter().zip(after) {
        assert_eq!((n / 2, width), now);
    }
    assert!(
        account.pass.contains("whole attention heads"),
        "{}",
        account.pass
    );
    // Without heads the widths of queries and keys are tied to each other, as is shown.
    let groups = ChannelGroups::of(&model.graph);
    let group = groups.group_of(&attention[0]).expect("has a group");
    assert_eq!(group.layers, attention[..2]);
}
