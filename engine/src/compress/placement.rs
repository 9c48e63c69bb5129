//! Where activations get their QuantizeLinear → DequantizeLinear pairs: at the inputs of quantised layers, and, for a target that computes
//! more than layers in integers, behind those operators too, so that nothing between them is left in float. Never between an operator and
//! the activation function behind it, which would keep runtimes from fusing the two; never two pairs on one value.

use super::{Symmetry, wiring::Wiring};
use crate::graph::{BinaryOp, Graph, LayerId, Node, Op, UnaryOp, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Operators that a target computes in integers where what they read and what they give is quantised.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum IntegerOp {
    Conv,
    ConvTranspose,
    Gemm,
    MatMul,
    Add,
    Concat,
    AveragePool,
    GlobalAveragePool,
}

impl IntegerOp {
    /// The operator of a node; `None` for those that no target is known to compute in integers by itself.
    pub fn of(op: &Op) -> Option<Self> {
        Some(match op {
            Op::Conv { .. } => Self::Conv,
            Op::ConvTranspose { .. } => Self::ConvTranspose,
            Op::Gemm { .. } => Self::Gemm,
            Op::MatMul => Self::MatMul,
            Op::Binary(BinaryOp::Add) => Self::Add,
            Op::Concat { .. } => Self::Concat,
            Op::AveragePool { .. } => Self::AveragePool,
            Op::GlobalAveragePool => Self::GlobalAveragePool,
            _ => return None,
        })
    }

    /// Whether it has weights of its own.
    pub fn is_layer(self) -> bool {
        matches!(
            self,
            Self::Conv | Self::ConvTranspose | Self::Gemm | Self::MatMul
        )
    }
}

/// A layer whose input is to be quantised.
pub(crate) struct QuantisedInput<'a> {
    pub layer: &'a LayerId,
    pub node: usize,
    pub slot: usize,
    pub value: ValueId,
    /// What the layer gives.
    pub output: ValueId,
}

/// Who reads a value behind its pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Everyone: the value's own operator is then fused with the pair.
    All,
    /// These nodes, at these inputs.
    Some(Vec<(usize, usize)>),
}

/// Pairs by the value that they stand behind.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    pub readers: BTreeMap<ValueId, Readers>,
    /// Values whose pairs have one scale with others, and all of those; a value that is alone has no entry.
    shared: BTreeMap<ValueId, BTreeSet<ValueId>>,
    /// Layers whose output got a pair of its own accord.
    pub outputs: BTreeMap<LayerId, ValueId>,
}

impl Placement {
    /// Pairs for `layers`, and behind the operators named in `outputs` as far as a quantised layer hangs on them: what the model itself
    /// gives stays float, and so does what only its answer is made from.
    pub fn of(
        graph: &Graph,
        wiring: &Wiring,
        layers: &[QuantisedInput<'_>],
        outputs: &[IntegerOp],
        symmetry: Symmetry,
    ) -> Self {
        let mut placement = Self::default();
        for layer in layers {
            placement.read(layer.value, (layer.node, layer.slot));
        }
        if outputs.is_empty() {
            return placement;
        }
        let walk = Walk {
            graph,
            wiring,
            leads: leading_to(graph, layers),
            absorbs: symmetry == Symmetry::Asymmetric,
        };
        for layer in layers {
            let op = IntegerOp::of(&graph.nodes[layer.node].op);
            if !op.is_some_and(|op| outputs.contains(&op)) {
                continue;
            }
            if let Some(end) = walk.end(layer.output) {
                placement.readers.insert(end, Readers::All);
                placement.outputs.insert(layer.layer.clone(), end);
            }
        }
        // In the graph's order: what a join reads is decided before it.
        for (index, node) in graph.nodes.iter().enumerate() {
            let join = IntegerOp::of(&node.op).filter(|op| !op.is_layer() && outputs.contains(op));
            if let Some(join) = join {
                placement.join(&walk, index, join);
            }
        }
        placement.share_across(graph, wiring);
        placement
    }

    /// Values with a pair, in the order of their ids.
    pub fn values(&self) -> impl Iterator<Item = ValueId> {
        self.readers.keys().copied()
    }

    /// The values whose ranges the pair behind `value` has to hold.
    pub fn covered(&self, value: ValueId) -> BTreeSet<ValueId> {
        let alone = || BTreeSet::from([value]);
        self.shared.get(&value).cloned().unwrap_or_else(alone)
    }

    /// The first of those: values with the same have one scale.
    pub fn first_covered(&self, value: ValueId) -> ValueId {
        self.covered(value).first().copied().unwrap_or(value)
    }

    fn read(&mut self, value: ValueId, at: (usize, usize)) {
        let readers = self.readers.entry(value);
        if let Readers::Some(list) = readers.or_insert_with(|| Readers::Some(Vec::new()))
            && !list.contains(&at)
        {
            list.push(at);
        }
    }

    /// An operator without weights, where all that it reads can be quantised and what it gives is of use so.
    fn join(&mut self, walk: &Walk<'_>, index: usize, join: IntegerOp) {
        let (graph, wiring) = (walk.graph, walk.wiring);
        let node = &graph.nodes[index];
        let inputs: Vec<ValueId> = node.inputs.iter().copied().flatten().collect();
        let quantised = |v: &ValueId| self.is_quantised(graph, wiring, *v);
        if inputs.is_empty() || !inputs.iter().all(quantised) {
            return;
        }
        let Some(output) = node.outputs.first().copied().flatten() else {
            return;
        };
        let Some(end) = walk.end(output) else {
            return;
        };
        for (slot, value) in inputs.iter().enumerate() {
            self.read(*value, (index, slot));
        }
        self.readers.insert(end, Readers::All);
        // Nothing is computed by a Concat whose inputs and result have one scale. Behind a Relu the ranges differ in any case.
        if join == IntegerOp::Concat && unchanged(graph, wiring, end, output) {
            self.share(inputs.into_iter().chain([end]));
        }
    }

    /// Whether a value has a pair, or is what has one, in another order or shape.
    fn is_quantised(&self, graph: &Graph, wiring: &Wiring, mut value: ValueId) -> bool {
        for _ in 0..=graph.nodes.len() {
            if self.readers.contains_key(&value) {
                return true;
            }
            match carried_from(graph, wiring, value) {
                Some(before) => value = before,
                None => return false,
            }
        }
        false
    }

    /// Pairs before and behind an operator that only carries values on have one scale: the second rounds nothing.
    fn share_across(&mut self, graph: &Graph, wiring: &Wiring) {
        let values: Vec<ValueId> = self.values().collect();
        for value in values {
            let mut at = value;
            while let Some(before) = carried_from(graph, wiring, at) {
                // Only where everything behind reads that pair is this value made of its codes.
                if self.readers.get(&before) == Some(&Readers::All) {
                    self.share([before, value]);
                    break;
                }
                at = before;
            }
        }
    }

    fn share(&mut self, values: impl IntoIterator<Item = ValueId>) {
        let mut group = BTreeSet::new();
        for value in values {
            group.extend(self.covered(value));
        }
        for value in &group {
            self.shared.insert(*value, group.clone());
        }
    }
}

/// Values that the input of any of the layers is computed from, those inputs included.
fn leading_to(graph: &Graph, layers: &[QuantisedInput<'_>]) -> BTreeSet<ValueId> {
    let mut leads: BTreeSet<ValueId> = layers.iter().map(|l| l.value).collect();
    for node in graph.nodes.iter().rev() {
        if node.outputs.iter().flatten().any(|v| leads.contains(v)) {
            leads.extend(node.inputs.iter().flatten());
        }
    }
    leads
}

/// What is asked of the graph while pairs are placed.
struct Walk<'a> {
    graph: &'a Graph,
    wiring: &'a Wiring,
    leads: BTreeSet<ValueId>,
    /// Whether ranges can imply an activation function: those without a zero point reach as far below 0 as above.
    absorbs: bool,
}

impl Walk<'_> {
    /// Where the pair of what gives `value` belongs: behind activation functions and operators that only carry values on, as far as there
    /// is one reader. `None` where no quantised layer hangs on it, the model gives it, or nothing could be fused with it there.
    fn end(&self, mut value: ValueId) -> Option<ValueId> {
        while let &[reader] = self.wiring.consumers(value)
            && !self.wiring.is_output(value)
        {
            let node = &self.graph.nodes[reader];
            let activation = is_activation(self.graph, node);
            // Bounds and shapes are read too, but only the first input is carried on.
            if !(moves_across(&node.op) || activation) || node.inputs.first() != Some(&Some(value))
            {
                break;
            }
            if activation && !self.absorbs {
                return None;
            }
            value = node.outputs.first().copied().flatten()?;
        }
        let of_use = self.leads.contains(&value) && !self.wiring.is_output(value);
        of_use.then_some(value)
    }
}

/// Activation functions that the range of a quantisation can imply.
fn is_activation(graph: &Graph, node: &Node) -> bool {
    let constant = |slot: usize| match node.inputs.get(slot).copied().flatten() {
        Some(bound) => graph.value(bound).data.is_some(),
        None => true,
    };
    match node.op {
        Op::Unary(UnaryOp::Relu) => true,
        Op::Clip => constant(1) && constant(2),
        _ => false,
    }
}

/// Operators that give some of their values on as they are, and that runtimes move a quantisation across towards what is before.
fn moves_across(op: &Op) -> bool {
    matches!(
        op,
        Op::MaxPool { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Squeeze
            | Op::Unsqueeze
    )
}

/// The value whose elements `value` holds, where an operator only carries them on.
fn carried_from(graph: &Graph, wiring: &Wiring, value: ValueId) -> Option<ValueId> {
    let node = &graph.nodes[wiring.producer(value)?];
    let carries = moves_across(&node.op) || matches!(node.op, Op::Flatten { .. } | Op::Identity);
    let first = node.outputs.first() == Some(&Some(value));
    node.inputs
        .first()
        .copied()
        .flatten()
        .filter(|_| carries && first)
}

/// Whether `end` holds the elements of `start` with nothing but carrying in between.
fn unchanged(graph: &Graph, wiring: &Wiring, mut end: ValueId, start: ValueId) -> bool {
    while end != start {
        match carried_from(graph, wiring, end) {
            Some(before) => end = before,
            None => return false,
        }
    }
    true
}
