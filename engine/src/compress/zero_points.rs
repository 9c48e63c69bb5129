//! Zero points that mean the same when left out: a packed model does not carry them. In a small network they weigh more than a layer.

use super::wiring::Wiring;
use crate::graph::{ElementType, Graph, Op, ValueId};
use std::collections::BTreeSet;

/// Takes away zero points of 0: DequantizeLinear takes 0 without one, and QuantizeLinear 0 of eight unsigned bits. Of a pair both go or
/// both stay, so that it is still seen to be one. All stay around a Gemm whose bias is stored as integers: ONNX Runtime 1.31.1 makes an integer
/// kernel of it only so.
pub(super) fn leave_out(graph: &mut Graph) {
    let around = around_integer_gemms(graph);
    // Codes whose QuantizeLinear keeps its zero point.
    let mut kept: BTreeSet<ValueId> = BTreeSet::new();
    for index in 0..graph.nodes.len() {
        if around.contains(&index) {
            continue;
        }
        let node = &graph.nodes[index];
        let source = node.inputs.first().copied().flatten();
        let from_kept = source.is_some_and(|v| kept.contains(&v));
        let zero = node.inputs.get(2).copied().flatten();
        let zero = zero.and_then(|zero| graph.value(zero).data.as_ref());
        let is = |element: Option<ElementType>| {
            zero.is_some_and(|z| {
                element.is_none_or(|e| z.element == e) && z.to_i64_vec().iter().all(|z| *z == 0)
            })
        };
        let (goes, codes) = match node.op {
            Op::QuantizeLinear { .. } => (is(Some(ElementType::U8)), true),
            Op::DequantizeLinear { .. } => (is(None) && !from_kept, false),
            // What only passes codes on.
            Op::Clip | Op::Identity if from_kept => (false, true),
            _ => continue,
        };
        if goes {
            graph.nodes[index].inputs.truncate(2);
        } else if codes {
            kept.extend(graph.nodes[index].outputs.iter().flatten());
        }
    }
}

/// The pairs that a Gemm with an integer bias reads from, also those before what only gives its input another shape.
fn around_integer_gemms(graph: &Graph) -> BTreeSet<usize> {
    let wiring = Wiring::of(graph);
    let producer = |value: Option<ValueId>| wiring.producer(value?);
    let dequantises = |index: &usize| matches!(graph.nodes[*index].op, Op::DequantizeLinear { .. });
    let mut around = BTreeSet::new();
    for node in &graph.nodes {
        let Op::Gemm { .. } = node.op else { continue };
        let bias = producer(node.inputs.get(2).copied().flatten()).filter(dequantises);
        if bias.is_none() {
            continue;
        }
        let mut before: Vec<usize> = node.inputs.iter().filter_map(|v| producer(*v)).collect();
        while let Some(index) = before.pop() {
            match graph.nodes[index].op {
                Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. } => {
                    around.insert(index);
                }
                Op::Flatten { .. } | Op::Reshape { .. } => {}
                _ => continue,
            }
            before.extend(producer(
                graph.nodes[index].inputs.first().copied().flatten(),
            ));
        }
    }
    around
}
