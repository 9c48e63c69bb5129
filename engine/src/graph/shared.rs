//! Weights that share values: codes into a list, in the form in which they are written, read, trained and counted.

use super::{BinaryOp, ElementType, Graph, Node, Op, TensorData, ValueId};

/// A weight as codes into a list of values: codes (uint4 or uint8) → Cast → Gather from the list. Where every channel has a list of its own, they
/// lie one behind the other, and an Add of where each begins stands before the Gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedValues {
    /// As many as the weight has elements, in its shape.
    pub codes: ValueId,
    /// float32, one axis.
    pub codebook: ValueId,
    /// Where each channel's part of the codebook begins: int32 or int64, as many axes as the weight, long along one at most.
    pub offsets: Option<ValueId>,
}

impl SharedValues {
    /// What `gather` reads, if it is such a Gather; `made_by` gives the node that computes a value.
    pub fn read_by<'g>(
        graph: &'g Graph,
        gather: &Node,
        made_by: impl Fn(ValueId) -> Option<&'g Node>,
    ) -> Option<Self> {
        let data = |id: ValueId| graph.values.get(id.0 as usize)?.data.as_ref();
        let (Op::Gather { axis: 0 }, &[Some(codebook), Some(mut at)]) =
            (&gather.op, gather.inputs.as_slice())
        else {
            return None;
        };
        let is_list = |d: &TensorData| d.element == ElementType::F32 && d.shape.len() == 1;
        data(codebook).filter(|d| is_list(d))?;
        let mut offsets = None;
        let mut node = made_by(at)?;
        if let (Op::Binary(BinaryOp::Add), &[Some(a), Some(b)]) = (&node.op, node.inputs.as_slice())
        {
            let (begins, other) = if data(b).is_some() { (b, a) } else { (a, b) };
            data(begins).filter(|d| d.element.is_integer())?;
            offsets = Some(begins);
            at = other;
            node = made_by(at)?;
        }
        let (Op::Cast { to }, &[Some(codes)]) = (&node.op, node.inputs.as_slice()) else {
            return None;
        };
        let packed = data(codes)?.element;
        let fits = matches!(to, ElementType::I32 | ElementType::I64)
            && matches!(packed, ElementType::U4 | ElementType::U8);
        fits.then_some(Self {
            codes,
            codebook,
            offsets,
        })
    }
}

impl Graph {
    /// All weights of the graph that share values.
    pub fn shared_values(&self) -> Vec<SharedValues> {
        let producers = self.producers();
        let made_by = |id: ValueId| {
            let node = (*producers.get(id.0 as usize)?)?;
            self.nodes.get(node.0 as usize)
        };
        let read = |node| SharedValues::read_by(self, node, made_by);
        self.nodes.iter().filter_map(read).collect()
    }
}
