use super::*;
use crate::graph::UnaryOp;

/// x → a → b → y, with an unused constant.
fn chain() -> Graph {
    let mut g = Graph::default();
    let f = Some(ElementType::F32);
    g.add_constant("unused", TensorData::scalar(1.0));
    let x = g.add_value("x", f, None);
    let a = g.add_value("a", f, None);
    let y = g.add_value("y", f, None);
    g.inputs.push(x);
    g.outputs.push(y);
    g.add_node(
        "one",
        Op::Unary(UnaryOp::Relu),
        vec![Some(x)],
        vec![Some(a)],
    );
    g.add_node("two", Op::Unary(UnaryOp::Abs), vec![Some(a)], vec![Some(y)]);
    g
}

#[test]
fn compact_drops_what_nothing_uses_and_keeps_the_graph_valid() {
    let mut g = chain();
    g.validate().unwrap();
    let map = g.compact();
    assert_eq!(map[0], None);
    assert_eq!(
        g.values.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(),
        ["x", "a", "y"]
    );
    g.validate().unwrap();
    let again = g.clone();
    g.compact();
    assert_eq!(g, again, "compacting is idempotent");
}

#[test]
fn sort_orders_and_finds_cycles() {
    let mut g = chain();
    g.nodes.reverse();
    assert!(matches!(g.validate(), Err(GraphError::Undefined { .. })));
    g.sort().unwrap();
    g.validate().unwrap();
    let y = g.find_value("y");
    g.nodes[0].inputs = vec![y];
    assert!(matches!(g.sort(), Err(GraphError::Cycle(_))));
}

#[test]
fn a_long_chain_is_sorted_without_exhausting_the_stack() {
    let needs: Vec<Vec<usize>> = (0..200_000)
        .map(|i| if i + 1 < 200_000 { vec![i + 1] } else { vec![] })
        .collect();
    let order = topological(&needs).unwrap();
    assert_eq!((order[0], order[199_999]), (199_999, 0));
}

#[test]
fn rewiring_and_removing_keep_the_graph_valid() {
    let mut g = chain();
    let (x, a) = (g.find_value("x").unwrap(), g.find_value("a").unwrap());
    let one = g.producer(a).unwrap();
    g.rewire(a, x);
    g.remove_node(one);
    g.validate().unwrap();
    assert_eq!(g.nodes[0].inputs, [Some(x)]);
}

#[test]
fn dead_nodes_go() {
    let mut g = chain();
    let x = g.inputs[0];
    let z = g.add_value("z", None, None);
    g.add_node(
        "dead",
        Op::Unary(UnaryOp::Neg),
        vec![Some(x)],
        vec![Some(z)],
    );
    assert_eq!(g.remove_dead_nodes(), 1);
    assert_eq!(g.nodes.len(), 2);
}

#[test]
fn names_are_made_unique() {
    let mut g = chain();
    let id = g.add_value("x", None, None);
    assert_eq!(g.value(id).name, "x_1");
    let node = g.add_node("two", Op::MatMul, vec![], vec![]);
    assert_eq!(g.node(node).name, "two_1");
}

#[test]
fn validate_sees_bad_tensors_and_double_definitions() {
    let mut g = chain();
    let y = g.outputs[0];
    g.add_node("three", Op::Identity, vec![Some(y)], vec![Some(y)]);
    assert!(matches!(g.validate(), Err(GraphError::DefinedTwice { .. })));
    let mut g = chain();
    if let Some(d) = g.values[0].data.as_mut() {
        d.shape = vec![7];
    }
    assert!(matches!(g.validate(), Err(GraphError::Tensor { .. })));
}

#[test]
fn nan_weights_are_named() {
    let mut g = chain();
    g.add_constant(
        "mask",
        TensorData::from_f32(&[2], &[f32::NEG_INFINITY, 1.0]),
    );
    g.add_constant("nan", TensorData::from_f32(&[2], &[f32::NAN, 1.0]));
    let w = g.add_constant("w", TensorData::from_f32(&[2], &[f32::INFINITY, 1.0]));
    let z = g.add_value("z", None, None);
    g.add_node(
        "mm",
        Op::MatMul,
        vec![g.inputs.first().copied(), Some(w)],
        vec![Some(z)],
    );
    assert_eq!(
        g.non_finite_weights(),
        [("nan".to_string(), 1), ("w".to_string(), 1)]
    );
}
