//! What compilation makes of the nodes: quantise–dequantise pairs and cast pairs become one step with a straight-through
//! gradient.

use crate::graph::{ElementType, Graph, Op, ValueId};

/// What one step of a program does.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Op(Op),
    /// Inputs x, scale, zero point?; constants all but x.
    FakeQuant {
        axis: i64,
        block: usize,
        to: ElementType,
        /// Narrower than the type's own: of a Clip between the two.
        limits: Option<(i64, i64)>,
    },
    /// To a narrower float type and back.
    FakeCast {
        through: ElementType,
    },
}

/// A step and what it reads and writes, before scheduling.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    /// Index of the node in the graph, for names in errors.
    pub node: usize,
    pub step: Step,
    pub inputs: Vec<Option<ValueId>>,
    pub outputs: Vec<Option<ValueId>>,
}

/// The graph's nodes as steps, pairs fused. `constant` tells which values are known at compile time.
pub(super) fn drafts(graph: &Graph, constant: &dyn Fn(ValueId) -> bool) -> Vec<Draft> {
    let mut producer = vec![None; graph.values.len()];
    for (i, n) in graph.nodes.iter().enumerate() {
        for o in n.outputs.iter().flatten() {
            if let Some(p) = producer.get_mut(o.0 as usize) {
                *p = Some(i);
            }
        }
    }
    let element = |v: ValueId| {
        graph
            .values
            .get(v.0 as usize)
            .and_then(|v| v.data.as_ref().map(|d| d.element).or(v.element))
    };
    let before = |v: Option<ValueId>| -> Option<usize> {
        v.and_then(|v| producer.get(v.0 as usize).copied().flatten())
    };
    graph
        .nodes
        .iter()
        .enumerate()
        .map(|(i, n)| {
            let plain = Draft {
                node: i,
                step: Step::Op(n.op.clone()),
                inputs: n.inputs.clone(),
                outputs: n.outputs.clone(),
            };
            let input = n.inputs.first().copied().flatten();
            let Some(mut p) = before(input).map(|p| &graph.nodes[p]) else {
                return plain;
            };
            let mut limits = None;
            if matches!((&p.op, &n.op), (Op::Clip, Op::DequantizeLinear { .. }))
                && let Some(found) = integer_limits(graph, &p.inputs)
                && let Some(first) = before(p.inputs.first().copied().flatten())
            {
                limits = Some(found);
                p = &graph.nodes[first];
            }
            let source = p.inputs.first().copied().flatten();
            match (&p.op, &n.op) {
                (
                    Op::QuantizeLinear { axis, block, to },
                    Op::DequantizeLinear {
                        axis: axis2,
                        block: block2,
                    },
                ) => {
                    // The same constants on both sides, or it is not a round trip.
                    let same = p.inputs.get(1..) == n.inputs.get(1..)
                        || same_data(graph, &p.inputs, &n.inputs);
                    let known = n.inputs[1..].iter().flatten().all(|&v| constant(v));
                    let float = source
                        .and_then(element)
                        .is_none_or(|e| e == ElementType::F32);
                    let to = p
                        .inputs
                        .get(2)
                        .copied()
                        .flatten()
                        .and_then(element)
                        .unwrap_or(*to);
                    if !(same && known && float && axis == axis2 && block == block2) {
                        return plain;
                    }
                    Draft {
                        step: Step::FakeQuant {
                            axis: *axis,
                            block: *block,
                            to,
                            limits,
                        },
                        inputs: [&[source][..], &n.inputs[1..]].concat(),
                        ..plain
                    }
                }
                (
                    Op::Cast { to: through },
                    Op::Cast {
                        to: ElementType::F32,
                    },
                ) if matches!(through, ElementType::F16 | ElementType::BF16)
                    && source.and_then(element) == Some(ElementType::F32) =>
                {
                    Draft {
                        step: Step::FakeCast { through: *through },
                        inputs: vec![source],
                        ..plain
                    }
                }
                _ => plain,
            }
        })
        .collect()
}

/// Constant bounds of a Clip of integers.
fn integer_limits(graph: &Graph, inputs: &[Option<ValueId>]) -> Option<(i64, i64)> {
    let bound = |slot: usize| -> Option<i64> {
        let value = graph
            .values
            .get(inputs.get(slot).copied().flatten()?.0 as usize)?;
        let data = value.data.as_ref().filter(|d| d.element.is_integer())?;
        data.to_i64_vec().first().copied()
    };
    Some((bound(1)?, bound(2)?))
}

/// Whether scale and zero point are equal constants under different names.
fn same_data(graph: &Graph, a: &[Option<ValueId>], b: &[Option<ValueId>]) -> bool {
    let data = |v: Option<ValueId>| {
        v.and_then(|v| graph.values.get(v.0 as usize))
            .and_then(|v| v.data.as_ref())
    };
    (1..3).all(|i| {
        let (a, b) = (a.get(i).copied().flatten(), b.get(i).copied().flatten());
        match (a, b) {
            (None, None) => true,
            (Some(_), Some(_)) => a == b || data(a).is_some() && data(a) == data(b),
            _ => false,
        }
    })
}
