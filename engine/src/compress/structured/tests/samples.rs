//! The pass as a whole, on the sample networks and on small ones.

use super::*;
use crate::{
    compress::{Account, Outcome},
    formats::onnx,
    graph::{Op, TensorData},
};
use std::path::Path;

fn sample(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sample-models")
        .join(name);
    Model {
        graph: onnx::read_model(&path).expect("the sample is there").graph,
        masks: BTreeMap::new(),
    }
}

fn apply(
    model: &Model,
    settings: ChannelSettings,
    layers: &[(&str, Option<f32>)],
) -> (Model, Account) {
    let pass = PruneChannels {
        settings,
        layers: layers.iter().map(|(l, r)| (id(l), r.map(Ratio))).collect(),
    };
    let (pruned, account) = with_context(|c| pass.apply(model.clone(), c)).expect("applies");
    pruned.graph.validate().expect("valid");
    let all: Vec<LayerId> = model.graph.layers().into_iter().map(|l| l.id).collect();
    assert_eq!(
        account
            .entries
            .iter()
            .map(|e| e.layer.clone())
            .collect::<Vec<_>>(),
        all
    );
    assert_eq!(pruned.graph.layers().len(), all.len());
    (pruned, account)
}

fn macs(model: &Model) -> u64 {
    super::super::choose::macs(&model.graph).expect("known shapes")
}

fn said<'a>(account: &'a Account, layer: &str) -> &'a Outcome {
    let entry = account.entries.iter().find(|e| &*e.layer.0 == layer);
    &entry.expect("the layer is in the account").outcome
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
                *dim = crate::graph::Dim::Known(*n);
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
    let (pruned, account) = apply(&model, settings, &[("conv1", None)]);
    let bytes = super::super::choose::weight_bytes(&pruned.graph);
    assert!(bytes <= 600_000, "{bytes}");
    for layer in pruned.graph.layers() {
        assert!(
            layer.weight_shape[0] % 8 == 0 || &*layer.id.0 == "fc",
            "{layer:?}"
        );
    }
    assert!(
        matches!(said(&account, "conv1"), Outcome::NotDone(_)),
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

#[test]
fn ratios_hold_for_groups_and_masks_go_along() {
    let mut model = classifier(5);
    let mask: Vec<bool> = (0..8 * 6 * 9).map(|i| i % 3 != 0).collect();
    model.masks.insert("second.weight".to_owned(), mask.clone());
    let (pruned, account) = apply(
        &model,
        ChannelSettings::default(),
        &[("first", Some(0.5)), ("second", Some(0.0))],
    );
    assert_eq!(
        said(&account, "first"),
        &Outcome::Done("3 of 6 output channels left".to_owned())
    );
    assert_eq!(
        said(&account, "second"),
        &Outcome::Done("3 of 6 input channels left".to_owned())
    );
    let structure = Structure::of(&model.graph);
    let weight = pruned
        .graph
        .find_value("second.weight")
        .expect("still there");
    assert_eq!(
        pruned
            .graph
            .value(weight)
            .data
            .as_ref()
            .expect("data")
            .shape,
        [8, 3, 3, 3]
    );
    let cut = &pruned.masks["second.weight"];
    assert_eq!(cut.len(), 8 * 3 * 9);
    assert!(mask.len() > cut.len() && structure.blocks.len() == 2);
    // The least channels by their norm are those that went: the criterion is held to.
    assert!(matches!(said(&account, "head"), Outcome::NotDone(why) if why.contains("output")));
}

#[test]
fn a_criterion_takes_what_it_calls_least() {
    // Channel 2 of 6 is nearly nothing by weights, norm and what reads it.
    let mut model = classifier(9);
    for (name, per) in [("first.weight", 9), ("first_norm.scale", 1)] {
        let value = model.graph.find_value(name).expect("a weight");
        let data = model.graph.value(value).data.clone().expect("data");
        let mut values = data.to_f32_vec();
        values[2 * per..3 * per].iter_mut().for_each(|v| *v *= 1e-4);
        model
            .graph
            .set_data(value, TensorData::from_f32(&data.shape, &values));
    }
    let shift = model.graph.find_value("first_norm.shift").expect("a shift");
    let mut values = model
        .graph
        .value(shift)
        .data
        .as_ref()
        .expect("data")
        .to_f32_vec();
    values[2] = 0.0;
    model
        .graph
        .set_data(shift, TensorData::from_f32(&[6], &values));
    let (_folder, data) = task(1);
    for criterion in [
        Criterion::L1,
        Criterion::L2,
        Criterion::NormScale,
        Criterion::Taylor,
        Criterion::Activation,
    ] {
        let pass = PruneChannels {
            settings: ChannelSettings {
                criterion,
                samples: 40,
                reestimate: false,
                ..ChannelSettings::default()
            },
            layers: BTreeMap::from([(id("first"), Some(Ratio(0.17)))]),
        };
        let context = PassContext {
            data: Some(&data),
            cancel: &CancelToken::default(),
            seed: 0,
        };
        let (pruned, _) = pass.apply(model.clone(), &context).expect("applies");
        let scale = pruned
            .graph
            .find_value("first_norm.scale")
            .expect("a scale");
        let left = pruned
            .graph
            .value(scale)
            .data
            .as_ref()
            .expect("data")
            .to_f32_vec();
        assert_eq!(left.len(), 5, "{criterion:?}");
        assert!(
            left.iter().all(|v| v.abs() > 1e-3),
            "{criterion:?}: {left:?}"
        );
    }
    // The others run and take as many.
    for criterion in [
        Criterion::Apoz,
        Criterion::GeometricMedian,
        Criterion::Random,
    ] {
        let context = PassContext {
            data: Some(&data),
            cancel: &CancelToken::default(),
            seed: 3,
        };
        let pass = PruneChannels {
            settings: ChannelSettings {
                criterion,
                amount: Amount::Channels(0.3),
                ..ChannelSettings::default()
            },
            layers: BTreeMap::new(),
        };
        let (once, account) = pass.apply(model.clone(), &context).expect("applies");
        let (again, _) = pass.apply(model.clone(), &context).expect("applies");
        assert_eq!(once.graph, again.graph, "{criterion:?}");
        assert!(
            account
                .pass
                .contains("statistics of 2 batch norms taken again"),
            "{}",
            account.pass
        );
        let left: usize = once
            .graph
            .layers()
            .iter()
            .take(2)
            .map(|l| l.weight_shape[0])
            .sum();
        assert_eq!(left, 10, "{criterion:?}");
    }
}

#[test]
fn statistics_are_those_of_the_data() {
    let mut model = classifier(4);
    let (_folder, data) = task(2);
    let context = PassContext {
        data: Some(&data),
        cancel: &CancelToken::default(),
        seed: 0,
    };
    let norms = super::super::norms::reestimate(&mut model.graph, 40, &context).expect("runs");
    assert_eq!(norms, 2);
    // With them, the first norm's outputs have their scale as deviation and their shift as mean (up to batches of 32 and 8).
    let first = model
        .graph
        .nodes
        .iter()
        .find(|n| matches!(n.op, Op::BatchNormalization { .. }));
    let y = first.and_then(|n| n.outputs[0]).expect("a norm");
    model.graph.outputs = vec![y];
    let images = data
        .batch(crate::data::SplitName::Calibration, 0..40)
        .expect("images")
        .images;
    let out = run_on(&model.graph, &images);
    let read = |name: &str| {
        let id = model.graph.find_value(name).expect("a value");
        model
            .graph
            .value(id)
            .data
            .as_ref()
            .expect("data")
            .to_f32_vec()
    };
    let (scale, shift) = (read("first_norm.scale"), read("first_norm.shift"));
    for c in 0..6 {
        let own: Vec<f64> = (0..40 * 36)
            .map(|i| f64::from(out[(i / 36 * 6 + c) * 36 + i % 36]))
            .collect();
        let mean = own.iter().sum::<f64>() / own.len() as f64;
        let variance = own.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / own.len() as f64;
        assert!(
            (mean - f64::from(shift[c])).abs() < 1e-3,
            "{mean} {}",
            shift[c]
        );
        assert!(
            (variance.sqrt() - f64::from(scale[c].abs())).abs() < 1e-2,
            "{variance} {}",
            scale[c]
        );
    }
}

#[test]
fn what_cannot_go_says_why() {
    let mut net = Net::new(2, &[4, 6, 6]);
    let a = net.conv("a", ValueId(0), [4, 4, 3, 3], 1, false);
    let b = net.node(
        "add",
        Op::Binary(crate::graph::BinaryOp::Add),
        &[a, ValueId(0)],
    );
    let c = net.conv("c", b, [6, 4, 3, 3], 1, false);
    let op = Op::Unsupported {
        domain: "x".into(),
        op_type: "Mystery".into(),
        attributes: Vec::new(),
        reason: "not known".into(),
    };
    let d = net.node("what", op, &[c]);
    let e = net.conv("e", a, [2, 4, 1, 1], 1, false);
    let model = net.finish(&[d, e]);
    let groups = ChannelGroups::of(&model.graph);
    assert!(groups.groups.is_empty(), "{groups:?}");
    assert!(
        groups.fixed[&id("a")].contains("add (Add) combines it with x"),
        "{groups:?}"
    );
    assert!(groups.fixed[&id("c")].contains("Mystery"), "{groups:?}");
    assert!(groups.fixed[&id("e")].contains("output"), "{groups:?}");
    let pass = PruneChannels {
        settings: ChannelSettings {
            amount: Amount::Channels(0.5),
            ..ChannelSettings::default()
        },
        layers: BTreeMap::new(),
    };
    let error = with_context(|c| pass.apply(model, c))
        .unwrap_err()
        .to_string();
    assert!(error.contains("no layer whose channels may go"), "{error}");
}

#[test]
fn shared_weights_lose_the_same_channels() {
    let mut net = Net::new(2, &[3, 6, 6]);
    let x = net.conv("stem", ValueId(0), [4, 3, 3, 3], 1, true);
    let a = net.conv("a", x, [4, 4, 3, 3], 1, false);
    let shared = net.graph.find_value("a.weight").expect("a weight");
    let op = net.graph.nodes[1].op.clone();
    let b = net.node("b", op, &[a, shared]);
    let head = net.conv("head", b, [2, 4, 1, 1], 1, true);
    let model = net.finish(&[head]);
    let structure = Structure::of(&model.graph);
    let group = structure.groups.group_of(&id("a")).expect("a group");
    assert!(group.layers.contains(&id("b")) && group.layers.contains(&id("stem")));
    for seed in 1..6 {
        equals_the_zeroed(&model, &batch(2, &[3, 6, 6]), seed * 31, 1e-4);
    }
}
