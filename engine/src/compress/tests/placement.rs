use super::*;
use crate::graph::{ElementType, Node, Op, TensorData, UnaryOp, ValueId};
use std::{collections::BTreeMap, sync::Arc};

const FUSES: [IntegerOp; 6] = [
    IntegerOp::Conv,
    IntegerOp::Gemm,
    IntegerOp::Add,
    IntegerOp::Concat,
    IntegerOp::AveragePool,
    IntegerOp::GlobalAveragePool,
];

fn scheme(outputs: &[IntegerOp]) -> QuantScheme {
    QuantScheme {
        outputs: Some(outputs.to_vec()),
        ..QuantScheme::default()
    }
}

/// A residual block: stem → relu → (conv, itself) → add → relu → conv → relu → pool → flatten → fc.
fn residual() -> Model {
    let mut net = Net::new(5, &[3, 6, 6]);
    let x = net.conv("stem", ValueId(0), [4, 3, 3, 3], 1, true);
    let stem = net.relu("stem_relu", x);
    let x = net.conv("inner", stem, [4, 4, 3, 3], 1, true);
    let add = Op::Binary(crate::graph::BinaryOp::Add);
    let x = net.node("add", add, &[x, stem]);
    let x = net.relu("add_relu", x);
    let x = net.conv("last", x, [4, 4, 3, 3], 1, true);
    let x = net.relu("last_relu", x);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flat", Op::Flatten { axis: 1 }, &[x]);
    let x = net.linear("fc", x, [3, 4], 0.5);
    net.finish(&[x])
}

/// Each value its own range, from 0 where a Relu gives it.
fn ranges(graph: &Graph, scheme: &QuantScheme) -> Arc<Ranges> {
    let values = plan::values_to_calibrate(graph, scheme);
    let range = |(at, value): (usize, &ValueId)| {
        let producer = graph.producer(*value).map(|p| &graph.node(p).op);
        let from_relu = matches!(producer, Some(Op::Unary(UnaryOp::Relu)));
        let lo = if from_relu { 0.0 } else { -2.0 };
        (graph.value(*value).name.clone(), [lo, 3.0 + at as f32])
    };
    Arc::new(Ranges {
        values: values.iter().enumerate().map(range).collect(),
    })
}

fn quantised(model: Model, scheme: &QuantScheme, layers: &[&str]) -> Model {
    let pass = Quantize {
        scheme: scheme.clone(),
        layers: layers.iter().map(|l| (id(l), Precision::Int8)).collect(),
        ranges: Some(ranges(&model.graph, scheme)),
    };
    apply(&pass, model).0
}

fn all(model: &Model) -> Vec<String> {
    let layers = model.graph.layers().into_iter();
    layers.map(|l| l.id.0.to_string()).collect()
}

fn quantised_all(model: Model, scheme: &QuantScheme) -> Model {
    let names = all(&model);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    quantised(model, scheme, &names)
}

fn node<'g>(graph: &'g Graph, name: &str) -> &'g Node {
    let found = graph.nodes.iter().find(|n| n.name == name);
    found.unwrap_or_else(|| panic!("no node {name}"))
}

/// The node behind one of a node's inputs.
fn before<'g>(graph: &'g Graph, name: &str, slot: usize) -> &'g Node {
    let value = node(graph, name).inputs[slot].expect("an input");
    graph.node(graph.producer(value).expect("computed"))
}

/// Names of the values that have a pair, constants aside.
fn paired(graph: &Graph) -> Vec<String> {
    let mut names: Vec<String> = graph
        .nodes
        .iter()
        .filter(|n| matches!(n.op, Op::QuantizeLinear { .. }))
        .map(|n| graph.value(n.inputs[0].expect("an input")))
        .filter(|v| v.data.is_none())
        .map(|v| v.name.clone())
        .collect();
    names.sort_unstable();
    names
}

/// The constants that a value's pair reads: scale and zero point.
fn steps(graph: &Graph, value: &str) -> Vec<ValueId> {
    let of = |n: &&Node| {
        matches!(n.op, Op::QuantizeLinear { .. })
            && graph.value(n.inputs[0].expect("an input")).name == value
    };
    let quantises = graph.nodes.iter().find(of).expect("a pair");
    let reads = |n: &&Node| n.inputs[0] == quantises.outputs[0];
    let dequantises = graph.nodes.iter().find(reads).expect("a pair");
    assert_eq!(quantises.inputs[1..], dequantises.inputs[1..], "{value}");
    quantises.inputs[1..].iter().flatten().copied().collect()
}

fn scale(graph: &Graph, value: &str) -> f32 {
    let scale = graph.value(steps(graph, value)[0]);
    scale.data.as_ref().expect("a constant").to_f32_vec()[0]
}

/// What no operator that becomes an integer kernel gives has a pair for those that asked; an addition asks too.
#[test]
fn an_addition_reads_codes_of_what_no_layer_made() {
    let mut net = Net::new(5, &[4, 6, 6]);
    let x = net.conv("inner", ValueId(0), [4, 4, 3, 3], 1, true);
    let add = Op::Binary(crate::graph::BinaryOp::Add);
    let x = net.node("add", add, &[x, ValueId(0)]);
    let x = net.conv("last", x, [4, 4, 3, 3], 1, true);
    let model = quantised_all(net.finish(&[x]), &scheme(&FUSES));
    let graph = &model.graph;
    for slot in [0, 1] {
        let op = &before(graph, "add", slot).op;
        assert!(matches!(op, Op::DequantizeLinear { .. }), "{slot}: {op:?}");
    }
    assert_eq!(before(graph, "add", 1).name, before(graph, "inner", 0).name);
}

#[test]
fn a_residual_addition_reads_and_gives_codes_where_the_target_fuses_it() {
    let model = quantised_all(residual(), &scheme(&FUSES));
    let graph = &model.graph;
    for slot in [0, 1] {
        let op = &before(graph, "add", slot).op;
        assert!(matches!(op, Op::DequantizeLinear { .. }), "{slot}: {op:?}");
    }
    // The skip and the convolution that reads the same value share one pair.
    assert_eq!(before(graph, "add", 1).name, before(graph, "inner", 0).name);
    // One pair a value, none of them between an operator and its activation function.
    let expected = [
        "add_relu_out",
        "flat_out",
        "inner_out",
        "last_relu_out",
        "pool_out",
        "stem_relu_out",
        "x",
    ];
    assert_eq!(paired(graph), expected);
    for (relu, producer) in [
        ("stem_relu", "stem"),
        ("add_relu", "add"),
        ("last_relu", "last"),
    ] {
        assert_eq!(before(graph, relu, 0).name, producer);
    }
    // Both sides of Flatten have one scale, by one constant: what is behind it is made of the same codes.
    assert_eq!(steps(graph, "pool_out"), steps(graph, "flat_out"));
    assert_ne!(scale(graph, "pool_out"), scale(graph, "last_relu_out"));
    let packed = pack(&model).expect("packs");
    packed.validate().expect("valid");
    // What is zero is left out of the file; what is left is one constant still.
    assert_eq!(steps(&packed, "pool_out"), steps(&packed, "flat_out"));
}

#[test]
fn a_target_that_fuses_no_additions_gets_no_pairs_for_them() {
    let inputs = ["add_relu_out", "flat_out", "stem_relu_out", "x"];
    for scheme in [QuantScheme::default(), scheme(&[])] {
        let model = quantised_all(residual(), &scheme);
        assert_eq!(paired(&model.graph), inputs);
        assert_eq!(before(&model.graph, "add", 0).name, "inner");
        assert_eq!(before(&model.graph, "add", 1).name, "stem_relu");
        assert!(model.integer_biases.is_empty());
    }
    // One that fuses convolutions only: their results, not those of what joins them.
    let model = quantised_all(residual(), &scheme(&[IntegerOp::Conv]));
    let fused = [
        "add_relu_out",
        "flat_out",
        "inner_out",
        "last_relu_out",
        "stem_relu_out",
        "x",
    ];
    assert_eq!(paired(&model.graph), fused);
    assert_eq!(
        before(&model.graph, "pool", 0).op,
        before(&model.graph, "inner", 0).op
    );
}

#[test]
fn what_only_the_answer_is_made_of_stays_float() {
    let mut net = Net::new(6, &[3, 6, 6]);
    let x = net.conv("first", ValueId(0), [4, 3, 3, 3], 1, true);
    let x = net.relu("r", x);
    let x = net.conv("classes", x, [5, 4, 1, 1], 1, true);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let model = quantised_all(net.finish(&[x]), &scheme(&FUSES));
    assert_eq!(paired(&model.graph), ["r_out", "x"]);
}

#[test]
fn an_addition_of_floats_stays_float() {
    // As in an encoder: no target needs the results of products quantised, and layers read the sum.
    let mut net = Net::new(7, &[4, 6]);
    let product = |net: &mut Net, name: &str, x: ValueId| {
        let weight = net.weight(&format!("{name}.weight"), &[6, 6], -1.0, 1.0);
        net.node(name, Op::MatMul, &[x, weight])
    };
    let a = product(&mut net, "a", ValueId(0));
    let x = net.node(
        "add",
        Op::Binary(crate::graph::BinaryOp::Add),
        &[a, ValueId(0)],
    );
    let b = product(&mut net, "b", x);
    let model = quantised_all(net.finish(&[b]), &scheme(&FUSES));
    assert_eq!(paired(&model.graph), ["add_out", "x"]);
    assert_eq!(node(&model.graph, "add").inputs[1], Some(ValueId(0)));
}

/// stem → relu → (conv, max pool → conv) → concat → conv → relu → conv.
fn branches() -> Model {
    let mut net = Net::new(8, &[3, 6, 6]);
    let x = net.conv("stem", ValueId(0), [4, 3, 3, 3], 1, true);
    let stem = net.relu("stem_relu", x);
    let a = net.conv("a", stem, [4, 4, 3, 3], 1, true);
    let a = net.relu("a_relu", a);
    let window = window([3, 3]);
    let pooled = net.node(
        "max",
        Op::MaxPool {
            window,
            ceil: false,
        },
        &[stem],
    );
    let b = net.conv("b", pooled, [2, 4, 1, 1], 1, true);
    let x = net.node("concat", Op::Concat { axis: 1 }, &[a, b]);
    let x = net.conv("mix", x, [4, 6, 1, 1], 1, true);
    let x = net.relu("mix_relu", x);
    let x = net.conv("last", x, [2, 4, 1, 1], 1, false);
    net.finish(&[x])
}

#[test]
fn concatenated_and_carried_values_have_one_scale() {
    let model = quantised_all(branches(), &scheme(&FUSES));
    let graph = &model.graph;
    let expected = [
        "a_relu_out",
        "b_out",
        "concat_out",
        "max_out",
        "mix_relu_out",
        "stem_relu_out",
        "x",
    ];
    assert_eq!(paired(graph), expected);
    let joined = scale(graph, "concat_out");
    assert_eq!(
        (scale(graph, "a_relu_out"), scale(graph, "b_out")),
        (joined, joined)
    );
    // Wide enough for all three.
    let widest = ranges(&branches().graph, &scheme(&FUSES));
    let hi = ["a_relu_out", "b_out", "concat_out"].map(|v| widest.values[v][1]);
    let hi = hi.into_iter().fold(0.0, f32::max);
    assert!((joined - (hi + 2.0) / 255.0).abs() < 1e-6, "{joined} {hi}");
    // The pool reads the codes' values, and what it gives are the same.
    assert!(matches!(
        before(graph, "max", 0).op,
        Op::DequantizeLinear { .. }
    ));
    assert_eq!(scale(graph, "max_out"), scale(graph, "stem_relu_out"));
    assert_ne!(scale(graph, "mix_relu_out"), joined);
    // By one constant each, so that they stay the same whatever moves them.
    for value in ["a_relu_out", "b_out"] {
        assert_eq!(steps(graph, value), steps(graph, "concat_out"), "{value}");
    }
    assert_eq!(steps(graph, "max_out"), steps(graph, "stem_relu_out"));
    for value in ["mix_relu_out", "stem_relu_out", "x"] {
        assert!(!steps(graph, value).contains(&steps(graph, "concat_out")[0]));
    }
    let packed = pack(&model).expect("packs");
    assert_eq!(steps(&packed, "max_out"), steps(&packed, "stem_relu_out"));
    assert_eq!(steps(&packed, "a_relu_out"), steps(&packed, "concat_out"));
}

#[test]
fn ranges_of_all_layers_serve_every_choice_of_them() {
    let scheme = scheme(&FUSES);
    for build in [residual, branches] {
        let names = all(&build());
        for chosen in 0..1_u32 << names.len() {
            let layers: Vec<&str> = (0..names.len())
                .filter(|i| chosen & 1 << i != 0)
                .map(|i| names[i].as_str())
                .collect();
            let model = quantised(build(), &scheme, &layers);
            let mut pairs = paired(&model.graph);
            pairs.dedup();
            assert_eq!(pairs, paired(&model.graph), "two pairs on one value");
            run(&pack(&model).expect("packs"), 1);
        }
    }
}

#[test]
fn ranges_without_zero_points_fuse_no_activation_functions() {
    let scheme = QuantScheme {
        symmetry: Symmetry::Symmetric,
        ..scheme(&FUSES)
    };
    let model = quantised_all(residual(), &scheme);
    // A pair behind those Relu would keep nothing from being float; inside of them it would do harm.
    let expected = [
        "add_relu_out",
        "flat_out",
        "inner_out",
        "stem_relu_out",
        "x",
    ];
    assert_eq!(paired(&model.graph), expected);
}

#[test]
fn biases_of_integer_kernels_are_stored_in_the_unit_of_their_sums() {
    let model = quantised_all(residual(), &scheme(&FUSES));
    let packed = pack(&model).expect("packs");
    let kept: BTreeMap<_, _> = quantized_layers(&packed)
        .into_iter()
        .map(|q| (q.layer.clone(), q))
        .collect();
    for layer in packed.layers() {
        let bias = packed.value(layer.bias.expect("found through its scale"));
        assert_eq!(bias.element, Some(ElementType::I32), "{}", layer.id.0);
        let float = model
            .graph
            .value(model.graph.find_value(&bias.name).expect("there"));
        let float = float.data.as_ref().expect("a constant").to_f32_vec();
        let codes = bias.data.as_ref().expect("a constant").to_i64_vec();
        let kept = &kept[&layer.id];
        let (input, weight) = (
            kept.input.as_ref().expect("8 bits"),
            kept.weight.as_ref().expect("8 bits"),
        );
        for (at, (code, bias)) in codes.iter().zip(&float).enumerate() {
            let unit = f64::from(input.scale[0]) * f64::from(weight.scale[at]);
            let off = (*code as f64 * unit - f64::from(*bias)).abs();
            assert!(
                off <= unit * 0.5001 + 1e-7,
                "{}: {off} of {unit}",
                layer.id.0
            );
        }
    }
    close(&run(&model.graph, 2), &run(&packed, 2), 0.02);
}

#[test]
fn a_bias_that_leaves_32_bits_or_that_others_read_stays_float() {
    let mut model = quantised_all(residual(), &scheme(&FUSES));
    let bias = model.graph.find_value("fc.bias").expect("there");
    model
        .graph
        .set_data(bias, TensorData::from_f32(&[3], &[1e9, 0.0, 0.0]));
    let inner = model.graph.find_value("inner.bias").expect("there");
    let last = model
        .graph
        .nodes
        .iter_mut()
        .find(|n| n.name == "last")
        .expect("there");
    last.inputs[2] = Some(inner);
    let packed = pack(&model).expect("packs");
    let element = |name: &str| {
        let value = packed.find_value(name).map(|v| packed.value(v).element);
        value.flatten()
    };
    assert_eq!(element("fc.bias"), Some(ElementType::F32));
    assert_eq!(element("inner.bias"), Some(ElementType::F32));
    assert_eq!(element("stem.bias"), Some(ElementType::I32));
}
