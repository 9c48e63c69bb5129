//! Which values of a graph are trained.

use super::{constants::Constants, fuse::Step, program::Scheduled};
use crate::graph::{BinaryOp, ElementType, Graph, Op, SharedValues, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Float weights of the graph: Conv, ConvTranspose, Gemm and MatMul weights and biases, scale and shift of the
/// normalisations, PRelu slopes; found through quantise–dequantise pairs, casts and re-arrangements, and lists of values that weights share.
pub(super) fn trainable(graph: &Graph) -> BTreeSet<ValueId> {
    let mut producer = vec![None; graph.values.len()];
    for (i, n) in graph.nodes.iter().enumerate() {
        for o in n.outputs.iter().flatten() {
            if let Some(p) = producer.get_mut(o.0 as usize) {
                *p = Some(i);
            }
        }
    }
    let made_by = |v: ValueId| {
        let i: usize = producer.get(v.0 as usize).copied().flatten()?;
        graph.nodes.get(i)
    };
    let root = |v: Option<ValueId>| -> Option<ValueId> {
        let mut v = v?;
        let mut dequantised = false;
        // As many steps as there are nodes at most: a broken graph may have a cycle.
        for _ in 0..=graph.nodes.len() {
            let value = graph.values.get(v.0 as usize)?;
            if let Some(d) = &value.data {
                return (d.element == ElementType::F32).then_some(v);
            }
            let n = made_by(v)?;
            // Values that weights share: the list is trained, by the sums of their gradients.
            if let Some(shared) = SharedValues::read_by(graph, n, made_by) {
                return Some(shared.codebook);
            }
            let through = matches!(
                n.op,
                Op::QuantizeLinear { .. }
                    | Op::DequantizeLinear { .. }
                    | Op::Cast { .. }
                    | Op::Identity
                    | Op::Transpose { .. }
                    | Op::Reshape { .. }
                    | Op::Squeeze
                    | Op::Unsqueeze
            );
            // A Clip of codes holds them to fewer bits than their type has.
            if !(through || dequantised && matches!(n.op, Op::Clip)) {
                return None;
            }
            dequantised |= matches!(n.op, Op::DequantizeLinear { .. });
            v = n.inputs.first().copied().flatten()?;
        }
        None
    };
    let mut found = BTreeSet::new();
    for n in &graph.nodes {
        let input = |i: usize| n.inputs.get(i).copied().flatten();
        let slots: &[usize] = match n.op {
            Op::Conv { .. }
            | Op::ConvTranspose { .. }
            | Op::BatchNormalization { .. }
            | Op::InstanceNormalization { .. }
            | Op::LayerNormalization { .. }
            | Op::Gemm { .. } => &[1, 2],
            Op::MatMul => &[0, 1],
            Op::Binary(BinaryOp::PRelu) => &[1],
            // The bias of a MatMul is an Add of a vector behind it.
            Op::Binary(BinaryOp::Add) => {
                let after_matmul = |v: Option<ValueId>| {
                    v.and_then(&made_by)
                        .is_some_and(|n| matches!(n.op, Op::MatMul))
                };
                match (after_matmul(input(0)), after_matmul(input(1))) {
                    (true, false) => &[1],
                    (false, true) => &[0],
                    _ => &[],
                }
            }
            _ => &[],
        };
        found.extend(slots.iter().filter_map(|&i| root(input(i))));
    }
    found
}

/// Means and variances of batch norms, by value with their names: where both are float32 weights of the graph that are not themselves trained.
pub(super) fn statistics(
    graph: &Graph,
    steps: &[Scheduled],
    constants: &Constants,
) -> BTreeMap<usize, String> {
    let weight = |slot: usize| -> Option<String> {
        let value = graph.values.get(slot)?;
        let stored = value
            .data
            .as_ref()
            .is_some_and(|d| d.element == ElementType::F32);
        (stored && constants.contains_key(&slot)).then(|| value.name.clone())
    };
    let mut found = BTreeMap::new();
    for step in steps {
        if let (Step::Op(Op::BatchNormalization { .. }), &[.., Some(mean), Some(variance)]) =
            (&step.step, step.inputs.as_slice())
            && let (Some(a), Some(b)) = (weight(mean), weight(variance))
        {
            found.extend([(mean, a), (variance, b)]);
        }
    }
    found
}
