//! What can be told to be impossible before running: operators that are not claimed, element types and forms that are not.

use super::value::is_tensor;
use crate::graph::{ElementType, Graph, Node, Op, UnaryOp, Value, ValueId};

/// Nodes that cannot run: (index, operator, reason).
pub(super) fn unsupported(graph: &Graph) -> Vec<(usize, String, String)> {
    graph
        .nodes
        .iter()
        .enumerate()
        .filter_map(|(i, n)| Some((i, n.op.name().to_owned(), reason(graph, n)?)))
        .collect()
}

/// Why the node cannot run, if that is known.
fn reason(graph: &Graph, node: &Node) -> Option<String> {
    let value = |i: usize| -> Option<&Value> {
        let id: ValueId = node.inputs.get(i).copied().flatten()?;
        graph.values.get(id.0 as usize)
    };
    let element = |i: usize| {
        let v = value(i)?;
        v.data.as_ref().map(|d| d.element).or(v.element)
    };
    let rank = |i: usize| {
        let v = value(i)?;
        match (&v.data, &v.shape) {
            (Some(d), _) => Some(d.shape.len()),
            (None, s) => s.as_ref().map(Vec::len),
        }
    };
    let more_outputs = node.outputs.iter().skip(1).flatten().next().is_some();
    let halves_and_f32 = |op: &str| {
        let e = element(0)?;
        (!is_tensor(e))
            .then(|| format!("{op} on {e} is not supported (float32, float16, bfloat16 are)"))
    };
    match &node.op {
        Op::Unsupported { reason, .. } => Some(reason.clone()),
        Op::Conv { .. }
        | Op::ConvTranspose { .. }
        | Op::MaxPool { .. }
        | Op::AveragePool { .. } => {
            if let Some(r) = rank(0).or_else(|| rank(1))
                && r != 3
                && r != 4
            {
                return Some(format!(
                    "{} spatial axes: only 1 or 2 are supported",
                    r.saturating_sub(2)
                ));
            }
            if more_outputs {
                return Some("the Indices output is not supported".into());
            }
            match (&node.op, element(0)) {
                (Op::MaxPool { .. }, Some(ElementType::I8 | ElementType::U8)) => None,
                _ => halves_and_f32("this operator"),
            }
        }
        Op::MatMul if element(0) == Some(ElementType::F64) => None,
        Op::BatchNormalization { .. } if more_outputs => {
            Some("batch normalisation in training form is not supported".into())
        }
        Op::BatchNormalization { .. }
        | Op::InstanceNormalization { .. }
        | Op::LayerNormalization { .. }
        | Op::Gemm { .. }
        | Op::MatMul => halves_and_f32("this operator"),
        Op::DynamicQuantizeLinear => match element(0) {
            Some(e) if e != ElementType::F32 => {
                Some(format!("quantising {e} by its range is not supported"))
            }
            _ => None,
        },
        Op::QuantizeLinear { .. } => match element(0) {
            Some(e) if !is_tensor(e) && e != ElementType::I32 => {
                Some(format!("quantising {e} is not supported"))
            }
            _ => None,
        },
        Op::Unary(u) => {
            let e = element(0)?;
            let integral = matches!(
                u,
                UnaryOp::Abs
                    | UnaryOp::Neg
                    | UnaryOp::Sign
                    | UnaryOp::Relu
                    | UnaryOp::Not
                    | UnaryOp::Floor
                    | UnaryOp::Ceil
                    | UnaryOp::Round
            );
            (!is_tensor(e) && e != ElementType::F64 && !integral)
                .then(|| format!("element type {e} is not supported"))
        }
        Op::Resize { mode, .. } if *mode != crate::graph::ResizeMode::Nearest => {
            halves_and_f32("linear and cubic Resize")
        }
        _ => None,
    }
}
