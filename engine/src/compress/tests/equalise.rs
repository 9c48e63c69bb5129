use super::*;
use crate::graph::{BinaryOp, Op, TensorData, UnaryOp, ValueId};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn all(model: &Model) -> Equalize {
    Equalize {
        settings: EqualizeSettings::default(),
        layers: model.graph.layers().into_iter().map(|l| l.id).collect(),
    }
}

/// Each output channel of a layer times a power of two of its own, up to 2^±5.
fn unbalance(model: &mut Model, layer: &str, seed: usize) {
    let value = model.graph.find_value(&format!("{layer}.weight")).unwrap();
    let shape = model
        .graph
        .value(value)
        .data
        .as_ref()
        .unwrap()
        .shape
        .clone();
    let inner = shape[1..].iter().product::<usize>();
    let weights: Vec<f32> = weight_of(&model.graph, layer)
        .iter()
        .enumerate()
        .map(|(i, w)| w * 2.0_f32.powi(((i / inner + seed) * 7 % 11) as i32 - 5))
        .collect();
    model
        .graph
        .set_data(value, TensorData::from_f32(&shape, &weights));
}

/// expand → relu → depthwise → leaky relu → project → relu → average → flatten → gemm.
fn block(seed: u64) -> Model {
    let mut net = Net::new(seed, &[3, 6, 6]);
    let x = net.conv("expand", ValueId(0), [8, 3, 1, 1], 1, true);
    let x = net.relu("expand_relu", x);
    let x = net.conv("depthwise", x, [8, 1, 3, 3], 8, true);
    let x = net.node("leaky", Op::LeakyRelu { alpha: 0.1 }, &[x]);
    let x = net.conv("project", x, [5, 8, 1, 1], 1, false);
    let x = net.relu("project_relu", x);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let x = net.linear("head", x, [4, 5], 0.5);
    let mut model = net.finish(&[x]);
    for (i, layer) in ["expand", "depthwise", "project"].into_iter().enumerate() {
        unbalance(&mut model, layer, seed as usize % 7 + i);
    }
    model.graph.infer_shapes();
    model
}

/// Largest magnitudes by output channel (rows of the weight).
fn rows(graph: &Graph, layer: &str, channels: usize) -> Vec<f32> {
    let weights = weight_of(graph, layer);
    let largest = |row: &[f32]| row.iter().fold(0.0_f32, |a, w| a.max(w.abs()));
    weights
        .chunks(weights.len() / channels)
        .map(largest)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_float_function_stays(seed: u64) {
        let model = block(seed);
        let before = run(&model.graph, 3);
        let (equalised, account) = apply(&all(&model), model);
        prop_assert!(account.entries.iter().all(|e| matches!(e.outcome, Outcome::Done(_))));
        let after = run(&equalised.graph, 3);
        let largest = before.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
        for (a, b) in before.iter().zip(&after) {
            prop_assert!((a - b).abs() <= 1e-5 * largest, "{} against {}", a, b);
        }
        // All three layers around the depthwise one have the same range in each channel: the closed form of the paper.
        let first = rows(&equalised.graph, "expand", 8);
        let middle = rows(&equalised.graph, "depthwise", 8);
        let project = weight_of(&equalised.graph, "project");
        for c in 0..8 {
            let last = (0..5).fold(0.0_f32, |a, o| a.max(project[o * 8 + c].abs()));
            for other in [middle[c], last] {
                prop_assert!((first[c] / other - 1.0).abs() < 0.01, "{} against {}", first[c], other);
            }
        }
    }
}

#[test]
fn ranges_come_nearer_and_per_tensor_quantisation_gains() {
    let model = block(3);
    let quantise = |model: Model| {
        let pass = Quantize {
            scheme: QuantScheme {
                int8_weights: Granularity::PerTensor,
                activations: Activations::Float,
                ..QuantScheme::default()
            },
            layers: model
                .graph
                .layers()
                .into_iter()
                .map(|l| (l.id, Precision::Int8))
                .collect(),
            ranges: None,
        };
        run(&apply(&pass, model).0.graph, 3)
    };
    let error = |outputs: &[f32]| -> f32 {
        let float = run(&model.graph, 3);
        float
            .iter()
            .zip(outputs)
            .map(|(a, b)| (a - b).powi(2))
            .sum()
    };
    let plain = error(&quantise(model.clone()));
    let (equalised, _) = apply(&all(&model), model.clone());
    let better = error(&quantise(equalised));
    assert!(better < 0.5 * plain, "{better} against {plain}");
}

#[test]
fn what_cannot_be_scaled_is_left_alone_with_the_reason() {
    let mut net = Net::new(5, &[3, 6, 6]);
    let a = net.conv("a", ValueId(0), [4, 3, 3, 3], 1, true);
    let low = net.weight("low", &[], 0.0, 0.0);
    let high = net.graph.add_constant("six", TensorData::scalar(6.0));
    let clipped = net.node("relu6", Op::Clip, &[a, low, high]);
    let b = net.conv("b", clipped, [4, 4, 3, 3], 1, true);
    let b = net.relu("b_relu", b);
    let c = net.conv("c", b, [4, 4, 3, 3], 1, true);
    let sum = net.node("sum", Op::Binary(BinaryOp::Add), &[b, c]);
    let d = net.conv("d", sum, [4, 4, 3, 3], 1, true);
    let d = net.node("sigmoid", Op::Unary(UnaryOp::Sigmoid), &[d]);
    let e = net.conv("e", d, [4, 4, 3, 3], 1, false);
    let model = net.finish(&[e]);
    let before: Vec<Vec<f32>> = ["a", "b", "c", "d", "e"]
        .map(|l| weight_of(&model.graph, l))
        .into();
    let (after, account) = apply(&all(&model), model);
    let refusals = [
        ("a", "relu6 behind it clips"),
        ("b", "used in 2 places"),
        ("c", "sum takes its result in another place"),
        ("d", "sigmoid (Sigmoid) behind it does not scale"),
        ("e", "output of the model"),
    ];
    for ((layer, reason), before) in refusals.into_iter().zip(before) {
        let said = refused(&account, layer);
        assert!(said.contains(reason), "{layer}: {said}");
        assert_eq!(weight_of(&after.graph, layer), before);
    }
}

#[test]
fn layers_can_be_left_out_and_quantised_ones_are() {
    let model = block(1);
    let mut pass = all(&model);
    pass.layers.remove(&id("depthwise"));
    let (_, account) = apply(&pass, model.clone());
    assert!(refused(&account, "expand").contains("depthwise behind it is not asked for"));
    assert_eq!(refused(&account, "depthwise"), "not asked for");
    assert!(matches!(outcome(&account, "project"), Outcome::Done(_)));
    let quantise = Quantize {
        scheme: QuantScheme {
            activations: Activations::Float,
            ..QuantScheme::default()
        },
        layers: [(id("project"), Precision::Int8)].into(),
        ranges: None,
    };
    let (quantised, _) = apply(&quantise, model);
    let (_, account) = apply(&all(&quantised), quantised.clone());
    assert!(refused(&account, "project").contains("quantised already"));
    let unknown = Equalize {
        settings: EqualizeSettings::default(),
        layers: BTreeSet::from([id("nowhere")]),
    };
    assert!(with_context(|c| unknown.apply(quantised, c)).is_err());
}

/// Nothing of a model may be scaled; `first` with the reason.
fn left_alone(net: Net, output: ValueId, reason: &str) {
    let mut model = net.finish(&[output]);
    model.graph.infer_shapes();
    let (after, account) = apply(&all(&model), model.clone());
    let said = refused(&account, "first");
    assert!(said.contains(reason), "{said}");
    assert_eq!(
        weight_of(&after.graph, "first"),
        weight_of(&model.graph, "first")
    );
}

#[test]
fn channels_along_another_axis_than_is_summed_over_are_left_alone() {
    // Six channels of six columns: a product over the columns.
    let mut net = Net::new(6, &[3, 6, 6]);
    let x = net.conv("first", ValueId(0), [6, 3, 3, 3], 1, true);
    let x = net.relu("relu", x);
    let weight = net.weight("columns.weight", &[6, 4], -1.0, 1.0);
    let x = net.node("columns", Op::MatMul, &[x, weight]);
    left_alone(
        net,
        x,
        "columns behind it does not sum over its channels, which lie along axis 1",
    );

    // Six positions of six channels, flattened.
    let mut net = Net::new(7, &[6, 6]);
    let weight = net.weight("first.weight", &[6, 6], -1.0, 1.0);
    let x = net.node("first", Op::MatMul, &[ValueId(0), weight]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let gemm = [x, net.weight("head.weight", &[4, 36], -1.0, 1.0)];
    let op = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let x = net.node("head", op, &gemm);
    left_alone(
        net,
        x,
        "flatten behind it does not keep its channels together: they lie along axis 2",
    );

    // Pooled over the channels of a product.
    let mut net = Net::new(8, &[3, 6, 6]);
    let weight = net.weight("first.weight", &[6, 6], -1.0, 1.0);
    let x = net.node("first", Op::MatMul, &[ValueId(0), weight]);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.conv("head", x, [4, 3, 1, 1], 1, true);
    left_alone(
        net,
        x,
        "pool behind it takes channels together: they lie along axis 3",
    );

    // Products one after another are scaled, whatever their rank.
    let mut net = Net::new(9, &[5, 6]);
    let weight = net.weight("first.weight", &[6, 8], -1.0, 1.0);
    let x = net.node("first", Op::MatMul, &[ValueId(0), weight]);
    let x = net.relu("relu", x);
    let weight = net.weight("head.weight", &[8, 3], -1.0, 1.0);
    let x = net.node("head", Op::MatMul, &[x, weight]);
    let model = net.finish(&[x]);
    let images = batch(3, &[5, 6]);
    let before = run_on(&model.graph, &images);
    let (after, account) = apply(&all(&model), model);
    assert!(matches!(outcome(&account, "first"), Outcome::Done(_)));
    close(&before, &run_on(&after.graph, &images), 1e-5);
}
