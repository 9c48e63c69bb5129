//! What the ONNX specification or a reader supplies by itself is not written: types and shapes that follow from the operators, names
//! of quantising nodes that are those of their outputs. In a small network they weigh more than a layer.

use crate::graph::{Graph, ValueId};
use std::collections::BTreeSet;

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
