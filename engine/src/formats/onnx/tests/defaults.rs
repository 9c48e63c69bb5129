//! What the specification supplies itself is not written, and nothing is lost by that.

use super::{info, model, node, read, tensor};
use crate::{
    formats::onnx::{proto, to_bytes},
    graph::{ElementType, Graph, TensorData},
};
use prost::Message;

fn written(graph: &Graph) -> proto::Graph {
    let bytes = to_bytes(graph).unwrap();
    proto::Model::decode(&*bytes).unwrap().graph.unwrap()
}

/// Zero points as they stand in the file, of QuantizeLinear and DequantizeLinear.
fn zero_points(zero: &TensorData) -> [bool; 2] {
    let nodes = vec![
        node("QuantizeLinear", &["x", "s", "z"], &["x_q"], vec![]),
        node("DequantizeLinear", &["x_q", "s", "z"], &["y"], vec![]),
    ];
    let scale = tensor("s", &TensorData::scalar(0.5));
    let graph = read(&model(17, nodes, vec![scale, tensor("z", zero)])).unwrap();
    let file = written(&graph);
    let kept = file.initializer.iter().any(|t| t.name() == "z");
    let has = |at: usize| file.node[at].input.len() == 3;
    assert_eq!(
        kept,
        has(0) || has(1),
        "constants that nothing reads are not written"
    );
    // Nodes that are called as what they make need no name, and have it again when read.
    assert!(file.node.iter().all(|n| n.name.is_none()));
    let again = crate::formats::onnx::read_bytes(to_bytes(&graph).unwrap().into()).unwrap();
    let names = |g: &Graph| g.nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&again), ["x_q", "y"]);
    assert_eq!(names(&graph), names(&again));
    assert_eq!(
        graph.value(graph.outputs[0]).element,
        Some(ElementType::F32)
    );
    assert_eq!(again.value(again.outputs[0]), graph.value(graph.outputs[0]));
    [has(0), has(1)]
}

#[test]
fn zero_points_of_zero_are_left_out_where_their_type_is_the_default() {
    let zero = |element, value| TensorData::from_i64_as(element, &[], &[value]);
    assert_eq!(zero_points(&zero(ElementType::U8, 0)), [false, false]);
    assert_eq!(zero_points(&zero(ElementType::U8, 3)), [true, true]);
    // QuantizeLinear would give unsigned codes without it.
    assert_eq!(zero_points(&zero(ElementType::I8, 0)), [true, false]);
    assert_eq!(zero_points(&zero(ElementType::I8, -1)), [true, true]);
}

#[test]
fn only_shapes_that_do_not_follow_from_the_nodes_are_stated() {
    let mut foreign = node("Fold", &["a"], &["b"], vec![]);
    foreign.domain = Some("some.vendor".into());
    let nodes = vec![
        node("Relu", &["x"], &["a"], vec![]),
        foreign,
        node("Relu", &["b"], &["y"], vec![]),
    ];
    let mut model = model(17, nodes, vec![]);
    model.opset_import.push(proto::OperatorSet {
        domain: Some("some.vendor".into()),
        version: Some(1),
    });
    if let Some(graph) = &mut model.graph {
        graph.value_info = vec![info("a", &[2, 3, 4, 4]), info("b", &[2, 48])];
    }
    let graph = read(&model).unwrap();
    let file = written(&graph);
    assert_eq!(file.value_info, [info("b", &[2, 48])]);
    let again = crate::formats::onnx::read_bytes(to_bytes(&graph).unwrap().into()).unwrap();
    assert_eq!(again, graph);
}
