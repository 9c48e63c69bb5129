//! Equalisation on the bundled networks, with everything in them that hand-made ones forget.

use candle_core::{Device, Tensor};
use limbeck_engine::{
    compress::{Equalize, EqualizeSettings, FoldBatchNorm, Model, Outcome, Pass, PassContext},
    exec::{CancelToken, Mode, NoTaps, Program},
    formats::onnx,
    graph::Graph,
};
use std::path::Path;

fn outputs(graph: &Graph, x: &Tensor) -> Vec<f32> {
    let program = Program::compile(graph, Mode::Inference).expect("compiles");
    let out = program
        .run(
            std::slice::from_ref(x),
            &mut NoTaps,
            &CancelToken::default(),
        )
        .expect("runs");
    out[0]
        .flatten_all()
        .and_then(|t| t.to_vec1())
        .expect("float outputs")
}

#[test]
fn the_sample_models_stay_what_they_are() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models");
    let context = PassContext {
        data: None,
        cancel: &CancelToken::default(),
        seed: 0,
    };
    for (file, shape, pairs) in [
        ("fashion-resnet/fashion-resnet.onnx", [2, 1, 28, 28], 9),
        (
            "efficientnet-lite0/efficientnet-lite0.onnx",
            [2, 3, 224, 224],
            1,
        ),
    ] {
        let graph = onnx::read(&samples.join(file)).expect("a sample");
        let (model, _) = FoldBatchNorm
            .apply(Model::new(graph), &context)
            .expect("folds");
        let pass = Equalize {
            settings: EqualizeSettings::default(),
            layers: model.graph.layers().into_iter().map(|l| l.id).collect(),
        };
        let (after, account) = pass.apply(model.clone(), &context).expect("equalises");
        after.graph.validate().expect("stays valid");
        let scaled = account
            .entries
            .iter()
            .filter(|e| matches!(&e.outcome, Outcome::Done(w) if w.contains("outputs scaled")))
            .count();
        assert!(scaled >= pairs, "{file}: {scaled} pairs");
        let n: usize = shape.iter().product();
        let pixels: Vec<f32> = (0..n).map(|i| (i * 7919 % 1009) as f32 / 1009.0).collect();
        let x = Tensor::from_vec(pixels, &shape[..], &Device::Cpu).expect("a batch");
        let (wanted, seen) = (outputs(&model.graph, &x), outputs(&after.graph, &x));
        let largest = wanted.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
        for (a, b) in wanted.iter().zip(&seen) {
            assert!((a - b).abs() <= 1e-4 * largest, "{file}: {a} against {b}");
        }
    }
}
