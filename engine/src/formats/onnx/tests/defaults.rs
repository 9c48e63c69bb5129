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

#[test]
fn quantising_nodes_called_as_what_they_make_have_their_names_again() {
    let nodes = vec![
        node("QuantizeLinear", &["x", "s", "z"], &["x_q"], vec![]),
        node("DequantizeLinear", &["x_q", "s", "z"], &["y"], vec![]),
    ];
    let scale = tensor("s", &TensorData::scalar(0.5));
    let zero = TensorData::from_i64_as(ElementType::U8, &[], &[0]);
    let graph = read(&model(17, nodes, vec![scale, tensor("z", &zero)])).unwrap();
    let file = written(&graph);
    assert!(file.node.iter().all(|n| n.name.is_none()));
    let again = crate::formats::onnx::read_bytes(to_bytes(&graph).unwrap().into()).unwrap();
    let names: Vec<&str> = again.nodes.iter().map(|n| &*n.name).collect();
    assert_eq!(names, ["x_q", "y"]);
    assert_eq!(again, graph, "what a file says itself is kept");
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
