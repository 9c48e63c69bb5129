//! SmoothQuant on a product behind a layer norm, one whose input is read elsewhere, and one behind an activation function.

use super::*;
use crate::{
    data::{Dataset, SplitName},
    exec::CancelToken,
    graph::{BinaryOp, Op, UnaryOp, ValueId},
};

/// Rows of an image as tokens: norm → (query, key) → sum → norm → (widen → sigmoid → narrow, residual) → mean. Channel 2 of both norms is
/// far wider than the rest, channel 4 `narrow` times as wide.
fn encoder(seed: u64, narrow: f32) -> Model {
    let mut net = Net::new(seed, &[1, 6, 6]);
    let norm = |net: &mut Net, name: &str, x: ValueId| {
        let scale = net.weight(&format!("{name}.scale"), &[6], 0.5, 1.5);
        if let Some(data) = &mut net.graph.value_mut(scale).data {
            let mut values = data.to_f32_vec();
            values[2] *= 40.0;
            values[4] *= narrow;
            *data = crate::graph::TensorData::from_f32(&[6], &values);
        }
        let shift = net.weight(&format!("{name}.shift"), &[6], -0.2, 0.2);
        let op = Op::LayerNormalization {
            axis: -1,
            epsilon: 1e-5,
        };
        net.node(name, op, &[x, scale, shift])
    };
    let product = |net: &mut Net, name: &str, x: ValueId, shape: [usize; 2]| {
        let weight = net.weight(&format!("{name}.weight"), &shape, -1.0, 1.0);
        net.node(name, Op::MatMul, &[x, weight])
    };
    let x = norm(&mut net, "norm1", ValueId(0));
    let query = product(&mut net, "query", x, [6, 6]);
    let key = product(&mut net, "key", x, [6, 6]);
    let sum = net.node("sum", Op::Binary(BinaryOp::Add), &[query, key]);
    let x = norm(&mut net, "norm2", sum);
    let wide = product(&mut net, "widen", x, [6, 12]);
    let wide = net.node("gate", Op::Unary(UnaryOp::Sigmoid), &[wide]);
    let narrow = product(&mut net, "narrow", wide, [12, 6]);
    let out = net.node("residual", Op::Binary(BinaryOp::Add), &[narrow, x]);
    let out = net.node("flatten", Op::Flatten { axis: 1 }, &[out]);
    let gemm = [out, net.weight("head.weight", &[36, 3], -0.2, 0.2)];
    let out = net.node("head", Op::MatMul, &gemm);
    let mut model = net.finish(&[out]);
    model.graph.infer_shapes();
    model
}

const LAYERS: [&str; 5] = ["query", "key", "widen", "narrow", "head"];

fn smooth(data: &Dataset, model: Model, layers: &[&str]) -> (Model, Account) {
    let pass = SmoothQuant {
        settings: SmoothQuantSettings::default(),
        layers: layers.iter().copied().map(id).collect(),
    };
    let (model, account) = with_data(data, |c| pass.apply(model, c)).unwrap();
    model.graph.validate().unwrap();
    covers(&model.graph, &account);
    (model, account)
}

fn with_data<T>(data: &Dataset, f: impl FnOnce(&PassContext<'_>) -> T) -> T {
    f(&PassContext {
        data: Some(data),
        cancel: &CancelToken::default(),
        seed: 0,
    })
}

#[test]
fn the_float_function_stays_and_quantisation_loses_less() {
    let (_folder, data) = task(41);
    let x = data.batch(SplitName::Search, 0..60).unwrap().images;
    // Factors on both sides of 1: a narrow channel is multiplied.
    let narrow = encoder(41, 0.01);
    let (smoothed, _) = smooth(&data, narrow.clone(), &LAYERS);
    let changed =
        |a: &Model, b: &Model| weight_of(&a.graph, "query") != weight_of(&b.graph, "query");
    assert!(changed(&narrow, &smoothed));
    close(
        &run_on(&narrow.graph, &x),
        &run_on(&smoothed.graph, &x),
        1e-5,
    );
    let float = encoder(41, 1.0);
    let (smoothed, account) = smooth(&data, float.clone(), &LAYERS);
    let wanted = run_on(&float.graph, &x);
    close(&wanted, &run_on(&smoothed.graph, &x), 1e-5);
    let done = |layer: &str| match outcome(&account, layer) {
        Outcome::Done(words) => words.clone(),
        Outcome::NotDone(reason) => panic!("{layer}: {reason}"),
    };
    assert!(done("query").contains("in norm1"), "{}", done("query"));
    assert_eq!(done("query"), done("key"));
    // The residual reads what norm2 gives too.
    for layer in ["widen", "narrow"] {
        assert!(done(layer).contains("of its own"), "{}", done(layer));
    }
    let multiplications = |graph: &Graph| {
        let is = |n: &&crate::graph::Node| n.op == Op::Binary(BinaryOp::Mul);
        graph.nodes.iter().filter(is).count()
    };
    assert_eq!(
        multiplications(&smoothed.graph) - multiplications(&float.graph),
        3
    );
    let quantised = |model: &Model| -> f32 {
        let pass = Quantize {
            scheme: QuantScheme {
                calibration: Calibration::MinMax,
                samples: 40,
                ..QuantScheme::default()
            },
            layers: LAYERS.map(|l| (id(l), Precision::Int8)).into(),
            ranges: None,
        };
        let (model, _) = with_data(&data, |c| pass.apply(model.clone(), c)).unwrap();
        let found = run_on(&pack(&model).unwrap(), &x);
        let squares = wanted.iter().zip(&found).map(|(a, b)| (a - b).powi(2));
        squares.sum()
    };
    let (plain, better) = (quantised(&float), quantised(&smoothed));
    assert!(better < 0.7 * plain, "{plain} → {better}");
}

#[test]
fn what_cannot_be_smoothed_is_left_with_a_reason() {
    let (_folder, data) = task(42);
    let (_, account) = smooth(&data, classifier(42), &["first", "head"]);
    assert!(
        refused(&account, "first").contains("for products"),
        "{account:?}"
    );
    assert_eq!(refused(&account, "second"), "not asked for");
    assert!(matches!(outcome(&account, "head"), Outcome::Done(_)));
    let pass = SmoothQuant {
        settings: SmoothQuantSettings::default(),
        layers: [id("head")].into(),
    };
    let error = with_context(|c| pass.apply(classifier(42), c)).unwrap_err();
    assert!(error.to_string().contains("needs data"), "{error}");
}
