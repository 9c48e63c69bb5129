//! What a graph's two ends say: how many samples it takes at a time, and whether it gives probabilities.

use super::{Dim, Graph, Node, Op};

/// The number of samples that an input of this declared shape takes at a time, where its first axis fixes it.
pub(crate) fn fixed_batch(shape: Option<&[Dim]>) -> Option<usize> {
    shape?.first()?.known().filter(|size| *size > 0)
}

impl Graph {
    /// The number of samples the model takes at a time, where its first input fixes it; 1 where ranges are taken at each inference (with
    /// more, a sample's answer would hang on those that it shares a batch with).
    pub fn fixed_batch(&self) -> Option<usize> {
        if self.ranges_at_run() {
            return Some(1);
        }
        fixed_batch(self.value(*self.inputs.first()?).shape.as_deref())
    }

    /// Whether activations are quantised by the range they have at each inference.
    pub(crate) fn ranges_at_run(&self) -> bool {
        let dynamic = |node: &Node| node.op == Op::DynamicQuantizeLinear;
        self.nodes.iter().any(dynamic)
    }

    /// Whether the first output are probabilities: it ends in a softmax, through nothing but changes of shape and type.
    pub fn ends_in_softmax(&self) -> bool {
        let mut value = self.outputs.first().copied();
        for _ in 0..=self.nodes.len() {
            let Some(node) = self
                .nodes
                .iter()
                .find(|node| value.is_some() && node.outputs.contains(&value))
            else {
                return false;
            };
            match node.op {
                Op::Softmax { .. } => return true,
                Op::Identity
                | Op::Reshape { .. }
                | Op::Flatten { .. }
                | Op::Squeeze
                | Op::Unsqueeze
                | Op::Cast { .. }
                | Op::QuantizeLinear { .. }
                | Op::DynamicQuantizeLinear
                | Op::DequantizeLinear { .. } => value = node.inputs.first().copied().flatten(),
                _ => return false,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{BinaryOp, ElementType, Value, ValueId};

    /// The operators one behind another on an input of this first extent.
    fn chain(first: Dim, ops: &[Op]) -> Graph {
        let value = |name: String, shape| Value {
            name,
            element: Some(ElementType::F32),
            shape,
            data: None,
        };
        let mut graph = Graph {
            values: vec![value("x".into(), Some(vec![first, Dim::Known(3)]))],
            inputs: vec![ValueId(0)],
            ..Graph::default()
        };
        for (i, op) in ops.iter().enumerate() {
            graph.values.push(value(format!("v{i}"), None));
            graph.nodes.push(Node {
                name: format!("n{i}"),
                op: op.clone(),
                inputs: vec![Some(ValueId(i as u32))],
                outputs: vec![Some(ValueId(i as u32 + 1))],
            });
        }
        graph.outputs = vec![ValueId(ops.len() as u32)];
        graph
    }

    #[test]
    fn a_softmax_is_seen_through_changes_of_shape_and_type() {
        let softmax = Op::Softmax {
            axis: -1,
            flatten: false,
        };
        let cast = Op::Cast {
            to: ElementType::F32,
        };
        let flatten = Op::Flatten { axis: 1 };
        let ends = |ops: &[Op]| chain(Dim::Unknown, ops).ends_in_softmax();
        assert!(ends(std::slice::from_ref(&softmax)));
        assert!(ends(&[
            softmax.clone(),
            Op::Identity,
            flatten.clone(),
            Op::Squeeze,
            cast.clone()
        ]));
        assert!(!ends(&[]));
        assert!(!ends(&[flatten, cast]));
        assert!(!ends(&[softmax, Op::Binary(BinaryOp::Add)]));
    }

    #[test]
    fn a_batch_is_fixed_where_the_first_axis_is_known() {
        let fixed = |first| chain(first, &[]).fixed_batch();
        assert_eq!(fixed(Dim::Known(4)), Some(4));
        assert_eq!(fixed(Dim::Known(0)), None);
        assert_eq!(fixed(Dim::Symbol("N".into())), None);
        assert_eq!(fixed(Dim::Unknown), None);
        assert_eq!(Graph::default().fixed_batch(), None);
    }
}
