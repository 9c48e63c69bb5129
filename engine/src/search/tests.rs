use super::*;
use crate::{
    compress::{Activations, Granularity, Precision, Ratio},
    sensitivity::{Candidate, Direction},
};

fn layer(name: &str, out: usize, inp: usize) -> LayerFacts {
    LayerFacts {
        id: LayerId(name.into()),
        op: "Conv".to_owned(),
        weight_shape: vec![out, inp, 3, 3],
        channel_axis: 0,
        params: (out * inp * 9 + out) as u64,
        macs: Some(1000),
    }
}

fn plan(items: &[(&str, Precision, f32)]) -> BTreeMap<LayerId, LayerSetting> {
    items
        .iter()
        .map(|(name, precision, ratio)| {
            (
                LayerId((*name).into()),
                LayerSetting {
                    precision: *precision,
                    sparsity: Ratio(*ratio),
                },
            )
        })
        .collect()
}

fn cell(name: &str, candidate: Candidate, value: f64) -> Cell {
    Cell {
        layer: LayerId(name.into()),
        candidate,
        direction: Direction::Alone,
        tier: Tier::Measured,
        value,
        ci: Some([value - 0.01, value + 0.01]),
        n: 2000,
        of: 2000,
        settled: true,
        why: None,
        kl: None,
    }
}

#[test]
fn drops_are_summed_and_holes_are_admitted() {
    let layers = [layer("a", 64, 64), layer("b", 64, 64)];
    let cells = [
        cell("a", Candidate::Int8, 0.002),
        cell("b", Candidate::Int4, 0.03),
        cell("b", Candidate::P50, 0.01),
    ];
    let p = Predictor::new(&layers, &cells, &QuantScheme::default(), Bytes(1000));
    let got = p.predict(&plan(&[
        ("a", Precision::Int8, 0.0),
        ("b", Precision::Int4, 0.25),
        ("no such layer", Precision::Int4, 0.9),
    ]));
    assert!((got.drop.unwrap() - 0.037).abs() < 1e-12);
    assert_eq!(
        (got.approximate, got.tier, got.macs),
        (1, Tier::Measured, Some(2000))
    );
    // A layer that measured better than the original pays for no other layer's loss.
    let gain = [cells[0].clone(), cell("b", Candidate::Int4, -0.01)];
    let q = Predictor::new(&layers, &gain, &QuantScheme::default(), Bytes(1000));
    let both = plan(&[("a", Precision::Int8, 0.0), ("b", Precision::Int4, 0.0)]);
    assert_eq!(q.predict(&both).drop, Some(0.002));
    let got = p.predict(&plan(&[("a", Precision::Int4, 0.0)]));
    assert_eq!((got.drop, got.tier), (None, Tier::Proxy));
    let got = p.predict(&plan(&[]));
    assert_eq!(got.drop, Some(0.0));
    assert_eq!(got.stored, Bytes(1000 + 2 * 4 * (64 * 64 * 9 + 64)));
}

#[test]
fn sizes_follow_the_bits_and_zeros_save_nothing() {
    let layers = [layer("a", 64, 64)];
    let size = |scheme: &QuantScheme, precision, ratio| {
        predict(
            &layers,
            &plan(&[("a", precision, ratio)]),
            scheme,
            &[],
            Bytes(0),
        )
        .stored
        .0
    };
    let weights = 64 * 64 * 9;
    let bias = 64 * 4;
    let float = QuantScheme {
        activations: Activations::Float,
        ..QuantScheme::default()
    };
    let near = |got: u64, exact: u64| {
        assert!(got > exact && got < exact + 700, "{got} for {exact}");
    };
    assert_eq!(size(&float, Precision::Fp32, 0.9), 4 * weights + bias);
    near(size(&float, Precision::Fp16, 0.0), 2 * weights + bias);
    near(size(&float, Precision::Int8, 0.5), weights + bias + 64 * 4);
    near(
        size(&float, Precision::Int4, 0.0),
        weights / 2 + bias + 64 * 4,
    );
    let groups = QuantScheme {
        int4_weights: Granularity::Group(32),
        ..float.clone()
    };
    let scales = 64 * 2 * 9;
    near(
        size(&groups, Precision::Int4, 0.0),
        weights / 2 + bias + scales * 4,
    );
    assert!(
        size(&QuantScheme::default(), Precision::Int8, 0.0) > size(&float, Precision::Int8, 0.0)
    );
    assert_eq!(overhead(&layers, Bytes(4 * weights + bias + 77)), Bytes(77));
}

/// Predicted against really exported, for whole networks at every precision.
#[test]
fn stored_sizes_are_those_of_the_exported_files() {
    use crate::{
        compress::{self, FoldBatchNorm, Model, Pass, PassContext, Ranges},
        exec::CancelToken,
        formats::onnx,
        measure,
    };
    let samples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models");
    let cancel = CancelToken::default();
    let context = PassContext {
        data: None,
        cancel: &cancel,
        seed: 0,
    };
    let grouped = QuantScheme {
        activations: Activations::Float,
        int4_weights: Granularity::Group(32),
        ..QuantScheme::default()
    };
    for (file, schemes) in [
        (
            "fashion-resnet/fashion-resnet.onnx",
            vec![QuantScheme::default(), grouped],
        ),
        (
            "efficientnet-lite0/efficientnet-lite0.onnx",
            vec![QuantScheme::default()],
        ),
    ] {
        let graph = onnx::read(&samples.join(file)).unwrap();
        let layers = LayerFacts::of(&graph);
        let model = Model::new(graph);
        let (model, _) = FoldBatchNorm.apply(model, &context).unwrap();
        let overhead = overhead(&layers, measure::sizes(&model.graph).unwrap().stored);
        let ranges = Ranges {
            values: compress::layer_inputs(&model.graph)
                .into_iter()
                .map(|id| (model.graph.value(id).name.clone(), [0.0, 1.0]))
                .collect(),
        };
        for scheme in &schemes {
            let predictor = Predictor::new(&layers, &[], scheme, overhead);
            for precision in [
                Precision::Fp32,
                Precision::Fp16,
                Precision::Int8,
                Precision::Int4,
            ] {
                let settings: BTreeMap<LayerId, LayerSetting> = layers
                    .iter()
                    .map(|layer| {
                        let sparsity = Ratio(0.0);
                        (
                            layer.id.clone(),
                            LayerSetting {
                                precision,
                                sparsity,
                            },
                        )
                    })
                    .collect();
                let ranges = Some(std::sync::Arc::new(ranges.clone()));
                let (done, _) =
                    compress::compress_layers(model.clone(), &settings, scheme, ranges, &context)
                        .unwrap();
                let packed = compress::pack(&done).unwrap();
                let real = onnx::to_bytes(&packed).unwrap().len() as f64;
                let predicted = predictor.predict(&settings).stored.0 as f64;
                assert!(
                    (predicted - real).abs() <= (0.01 * real).max(300.0),
                    "{file} at {precision:?}: {predicted} predicted, {real} exported"
                );
            }
        }
    }
}
