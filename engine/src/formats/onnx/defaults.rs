//! What the ONNX specification supplies by itself is not written: zero points of zero, types and shapes that follow from
//! the operators, names of quantising nodes that are those of their outputs. In a small network they weigh more
//! than a layer.

use crate::graph::{ElementType, Graph, Node, Op, ValueId};
use std::collections::BTreeSet;

/// Takes away the zero points that mean the same when left out: DequantizeLinear takes 0 then, and QuantizeLinear 0
/// of eight unsigned bits.
pub(super) fn leave_out_zero_points(graph: &mut Graph) {
    for index in 0..graph.nodes.len() {
        let Node { op, inputs, .. } = &graph.nodes[index];
        let implied = match op {
            Op::DequantizeLinear { .. } => None,
            Op::QuantizeLinear { .. } => Some(ElementType::U8),
            _ => continue,
        };
        let Some(zero) = inputs.get(2).copied().flatten() else {
            continue;
        };
        let zero = graph.value(zero).data.as_ref();
        let is_default = zero.is_some_and(|z| {
            implied.is_none_or(|element| z.element == element)
                && z.to_i64_vec().into_iter().all(|z| z == 0)
        });
        if is_default {
            graph.nodes[index].inputs.truncate(2);
        }
    }
}

/// The computed values whose type or shape a reader could not find out from the nodes before them.
pub(super) fn to_be_stated(graph: &Graph) -> BTreeSet<ValueId> {
    let computed = || {
        let of_nodes = graph.nodes.iter().flat_map(|n| &n.outputs);
        of_nodes.copied().flatten()
    };
    let mut bare = graph.clone();
    for id in computed() {
        let value = bare.value_mut(id);
        (value.element, value.shape) = (None, None);
    }
    bare.infer_shapes();
    computed()
        .filter(|&id| {
            let (known, found) = (graph.value(id), bare.value(id));
            known.element.is_some()
                && (known.element, &known.shape) != (found.element, &found.shape)
        })
        .collect()
}

/// The name that a node without one is given, where it is that of what it makes.
pub(super) fn implied_name<'a>(op_type: &str, output: Option<&'a str>) -> Option<&'a str> {
    let quantises = matches!(
        op_type,
        "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear"
    );
    output.filter(|o| quantises && !o.is_empty())
}
