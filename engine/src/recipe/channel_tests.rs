//! Channels taken out of the sample networks.

use crate::{
    compress::{
        Account, Amount, ChannelSettings, Model, Outcome, Pass, PruneChannels, Ranking, Ratio,
        structured::tests::equals_the_zeroed,
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
