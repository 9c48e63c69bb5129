//! Zero points that mean the same when left out are, of both halves of a pair or of none.

use crate::{
    compress::{
        Model, pack,
        testkit::{batch, run_on},
    },
    graph::{Dim, ElementType, Graph, Op, TensorData},
};

/// Whether QuantizeLinear and DequantizeLinear of a packed pair have zero points.
fn left(zero: &TensorData) -> [bool; 2] {
    let mut g = Graph::default();
    let shape = vec![Dim::Symbol("N".into()), Dim::Known(40)];
    let x = g.add_value("x", Some(ElementType::F32), Some(shape));
    g.inputs.push(x);
    let scale = g.add_constant("scale", TensorData::scalar(0.05));
    let zero = g.add_constant("zero", zero.clone());
    let [q, y] = ["q", "y"].map(|name| g.add_value(name, None, None));
    let to = g.value(zero).element.unwrap();
    let parameters = [Some(scale), Some(zero)];
    let inputs = |of| [&[Some(of)][..], &parameters].concat();
    let quantize = Op::QuantizeLinear {
        axis: 1,
        block: 0,
        to,
    };
    g.add_node("quantize", quantize, inputs(x), vec![Some(q)]);
    let dequantize = Op::DequantizeLinear { axis: 1, block: 0 };
    g.add_node("dequantize", dequantize, inputs(q), vec![Some(y)]);
    g.outputs.push(y);
    g.infer_shapes();
    let packed = pack(&Model::new(g.clone())).unwrap();
    let x = batch(2, &[40]);
    assert_eq!(run_on(&packed, &x), run_on(&g, &x), "the same bits");
    [0, 1].map(|at| packed.nodes[at].inputs.len() == 3)
}

#[test]
fn both_halves_of_a_pair_lose_a_zero_point_of_zero_or_none() {
    let zero = |element, value| TensorData::from_i64_as(element, &[], &[value]);
    assert_eq!(left(&zero(ElementType::U8, 0)), [false, false]);
    assert_eq!(left(&zero(ElementType::U8, 3)), [true, true]);
    // QuantizeLinear would give unsigned codes of eight bits without it.
    assert_eq!(left(&zero(ElementType::I8, 0)), [true, true]);
    assert_eq!(left(&zero(ElementType::U16, 0)), [true, true]);
}
