//! Reading and writing, with models made here: old spellings, hostile bytes, round trips.

mod defaults;
mod hostile;
mod older;
mod reading;
mod round_trip;

use super::proto::{self, Extent, kind};
use crate::graph::{Graph, Node, Op, TensorData};
use bytes::Bytes;
use prost::Message;

pub(super) fn attribute(name: &str, kind: i32) -> proto::Attribute {
    proto::Attribute {
        name: Some(name.into()),
        kind: Some(kind),
        ..Default::default()
    }
}

pub(super) fn int(name: &str, v: i64) -> proto::Attribute {
    proto::Attribute {
        i: Some(v),
        ..attribute(name, kind::INT)
    }
}

pub(super) fn float(name: &str, v: f32) -> proto::Attribute {
    proto::Attribute {
        f: Some(v),
        ..attribute(name, kind::FLOAT)
    }
}

pub(super) fn ints(name: &str, v: &[i64]) -> proto::Attribute {
    proto::Attribute {
        ints: v.to_vec(),
        ..attribute(name, kind::INTS)
    }
}

pub(super) fn string(name: &str, v: &str) -> proto::Attribute {
    proto::Attribute {
        s: Some(Bytes::copy_from_slice(v.as_bytes())),
        ..attribute(name, kind::STRING)
    }
}

pub(super) fn tensor(name: &str, data: &TensorData) -> proto::Tensor {
    super::tensor::write(Some(name), data)
}

pub(super) fn floats(name: &str, shape: &[usize]) -> proto::Tensor {
    let n = shape.iter().product();
    tensor(name, &TensorData::from_f32(shape, &vec![0.5; n]))
}

pub(super) fn node(
    op: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: Vec<proto::Attribute>,
) -> proto::Node {
    proto::Node {
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        name: None,
        op_type: Some(op.into()),
        attribute: attributes,
        domain: None,
    }
}

/// A float32 value of this shape; negative extents are written as the symbol `N`.
pub(super) fn info(name: &str, dims: &[i64]) -> proto::ValueInfo {
    let dim = |&d: &i64| proto::Dimension {
        value: Some(if d < 0 {
            Extent::Param("N".into())
        } else {
            Extent::Value(d)
        }),
    };
    proto::ValueInfo {
        name: Some(name.into()),
        r#type: Some(proto::Type {
            tensor_type: Some(proto::TensorType {
                elem_type: Some(1),
                shape: Some(proto::Shape {
                    dim: dims.iter().map(dim).collect(),
                }),
            }),
        }),
    }
}

/// Input `x` of 2×3×4×4, output `y`.
pub(super) fn model(
    opset: i64,
    nodes: Vec<proto::Node>,
    initializers: Vec<proto::Tensor>,
) -> proto::Model {
    proto::Model {
        ir_version: Some(8),
        opset_import: vec![proto::OperatorSet {
            domain: Some(String::new()),
            version: Some(opset),
        }],
        graph: Some(proto::Graph {
            name: Some("test".into()),
            node: nodes,
            initializer: initializers,
            input: vec![info("x", &[2, 3, 4, 4])],
            output: vec![proto::ValueInfo {
                name: Some("y".into()),
                r#type: None,
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn read(model: &proto::Model) -> Result<Graph, String> {
    super::read_bytes(model.encode_to_vec().into()).map_err(|e| e.to_string())
}

/// Reads a model of one node; panics where it can't be read.
pub(super) fn one(opset: i64, built: proto::Node, initializers: Vec<proto::Tensor>) -> Graph {
    read(&model(opset, vec![built], initializers)).unwrap()
}

/// The only node.
pub(super) fn only(graph: &Graph) -> &Node {
    assert_eq!(graph.nodes.len(), 1);
    &graph.nodes[0]
}

/// Data of an input of the node, as integers.
pub(super) fn input_ints(graph: &Graph, node: &Node, at: usize) -> Vec<i64> {
    graph
        .value(node.inputs[at].unwrap())
        .data
        .as_ref()
        .unwrap()
        .to_i64_vec()
}

/// Why a node isn't supported.
pub(super) fn reason(op: &Op) -> &str {
    op.unsupported_reason().unwrap_or("it is supported")
}
