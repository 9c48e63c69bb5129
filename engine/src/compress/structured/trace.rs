//! One walk over the graph that labels channels: layers make units, other operators hand them on, unite them or fix them.

use super::{
    Attention,
    extents::Extents,
    labels::{Axis, Labels},
    rules,
};
use crate::graph::{Dim, Graph, LayerId, Node, Op, ValueId};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What has to be written anew in a node once channels are gone.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rewrite {
    /// A depthwise convolution's groups: as many as channels of its input.
    Groups,
    /// Sizes of a Split along its axis.
    Split { axis: usize },
    /// The entry `position` of a Slice's starts and ends, which cut this axis of the input.
    Slice {
        axis: usize,
        position: usize,
        start: usize,
        end: usize,
    },
    /// The indices of a Gather along an axis of its input.
    Gather { axis: usize },
    /// The target shape of a Reshape or of an Expand.
    Target,
    /// The entry of a Resize's sizes that counts channels.
    Sizes { axis: usize, position: usize },
}

pub(super) struct Trace {
    /// Constants that several nodes read are taken apart, except layers' weights; types and shapes inferred.
    pub graph: Graph,
    /// What grows with the samples is counted by sample.
    sizes: Extents,
    pub labels: Labels,
    pub attention: Attention,
    pub rewrites: Vec<(usize, Rewrite)>,
    /// Why a layer makes no units of its own.
    pub why: BTreeMap<LayerId, Arc<str>>,
    /// Integers that are known beforehand, `None` for elements that are not.
    integers: BTreeMap<ValueId, Vec<Option<i64>>>,
    /// Labelled uses of constants.
    uses: BTreeMap<ValueId, usize>,
    /// Values computed from shapes: for each element the axis of the value whose extent it holds.
    extents: BTreeMap<ValueId, Vec<Option<(ValueId, usize)>>>,
}

impl Trace {
    pub fn of(graph: &Graph, attention: Attention) -> Self {
        let mut graph = graph.clone();
        // Exporters compute targets of Reshape from extents that are known: numbers, once channels are gone.
        graph.fold_known_integers();
        let mut graph = own_constants(&graph);
        graph.infer_shapes();
        let sizes = Extents::of(&graph);
        let integers = graph.followed_integers();
        let mut trace = Self {
            graph,
            sizes,
            integers,
            labels: Labels::default(),
            attention,
            rewrites: Vec::new(),
            why: BTreeMap::new(),
            uses: BTreeMap::new(),
            extents: BTreeMap::new(),
        };
        for index in 0..trace.graph.nodes.len() {
            let node = trace.graph.nodes[index].clone();
            if !trace.carry_extents(&node) {
                rules::visit(&mut trace, index, &node);
                trace.fix_targets(&node);
            }
        }
        trace.fix_outputs();
        trace.fix_foreign_constants();
        trace
    }

    fn fix_outputs(&mut self) {
        for output in self.graph.outputs.clone() {
            let why = format!(
                "its channels are the model's output {}",
                self.graph.value(output).name
            );
            self.fix_value(output, &why);
        }
        for value in self.graph.captured_values() {
            self.fix_value(value, "a sub-graph of an unknown operator reads its result");
        }
    }

    /// A constant that something reads without being asked about its channels.
    fn fix_foreign_constants(&mut self) {
        let consumers = self.graph.consumers();
        let labelled: BTreeSet<ValueId> = self
            .labels
            .all()
            .map(|(v, ..)| v)
            .filter(|v| self.is_constant(*v))
            .collect();
        for value in labelled {
            let readers = consumers.get(&value).map_or(0, Vec::len);
            if self.uses.get(&value).copied().unwrap_or(0) < readers {
                let why = format!(
                    "something else reads its weight {}",
                    self.graph.value(value).name
                );
                self.fix_value(value, &why);
            }
        }
    }

    pub fn is_constant(&self, value: ValueId) -> bool {
        self.graph.value(value).data.is_some()
    }

    /// Extents for one sample.
    pub fn shape(&self, value: ValueId) -> Option<&[usize]> {
        self.shape_of(value, 1)
    }

    /// Extents for up to three samples.
    pub fn shape_of(&self, value: ValueId, samples: usize) -> Option<&[usize]> {
        self.sizes.shape(value, samples)
    }

    /// The graph, cut or not, with the sizes that extents were tried with for so many samples.
    pub fn bound(&self, graph: &Graph, samples: usize) -> Graph {
        self.sizes.bound(graph, samples)
    }

    /// Whether the extent does not depend on the batch or on anything fed.
    pub fn known(&self, value: ValueId, axis: usize) -> bool {
        let shape = self.graph.value(value).shape.as_ref();
        shape.is_some_and(|s| matches!(s.get(axis), Some(Dim::Known(_))))
    }

    /// Whether the extent is the same whatever is fed, even where it follows only once that is known: targets of Reshape may be
    /// computed.
    pub fn is_constant_extent(&self, value: ValueId, axis: usize) -> bool {
        let constant = self.sizes.is_constant(value, axis);
        constant.unwrap_or_else(|| self.known(value, axis))
    }

    /// Whether the axis counts samples and something else in each of them, such as heads that attention has folded into the
    /// batch. It is labelled by what it counts in one sample: index i belongs to unit i modulo their number.
    pub fn is_folded(&self, value: ValueId, axis: usize) -> bool {
        let grows = |[one, two, three]: [usize; 3]| one > 1 && two == 2 * one && three == 3 * one;
        self.sizes.along(value, axis).is_some_and(grows)
    }

    /// Fixes what is labelled along an axis that counts samples too, where an operator works index by index on it. Whether it does.
    pub fn fix_folded(&mut self, value: ValueId, axis: usize, why: &str) -> bool {
        let folded = self.is_folded(value, axis);
        if folded && let Some(units) = self.axis(value, axis) {
            self.fix(&units, why);
        }
        folded
    }

    pub fn axis(&self, value: ValueId, axis: usize) -> Option<Axis> {
        self.labels.axis(value, axis).cloned()
    }

    /// A constant's integers.
    pub fn integers(&self, value: Option<ValueId>) -> Option<Vec<i64>> {
        let data = self.graph.value(value?).data.as_ref()?;
        (!data.element.is_float() && data.len() <= 4096).then(|| data.to_i64_vec())
    }

    /// Integers that are constant or computed, `None` for elements that are not known beforehand.
    pub fn followed(&self, value: ValueId) -> Option<&[Option<i64>]> {
        self.integers.get(&value).map(Vec::as_slice)
    }

    /// Of an element of a value computed from shapes, the units that it counts.
    pub fn counted(&self, value: ValueId, element: usize) -> Option<Axis> {
        let (of, axis) = self.extents.get(&value)?.get(element).copied()??;
        self.axis(of, axis)
    }

    /// Labels a constant on behalf of one of its readers.
    pub fn label_constant(&mut self, value: ValueId, axis: usize, units: Axis) {
        self.labels.label(value, axis, units);
    }

    /// Counts a reader that has taken part in labelling the constant.
    pub fn used(&mut self, value: ValueId) {
        *self.uses.entry(value).or_default() += 1;
    }

    pub fn label(&mut self, value: Option<ValueId>, axis: usize, units: Axis) {
        let Some(value) = value else { return };
        if self.shape(value).and_then(|s| s.get(axis)) == Some(&units.len())
            && (self.is_constant_extent(value, axis) || self.is_folded(value, axis))
        {
            self.labels.label(value, axis, units);
        } else {
            let why = format!(
                "the shape of {} is not known beforehand",
                self.graph.value(value).name
            );
            self.labels.fix(&units, &why.into());
        }
    }

    pub fn fix(&mut self, units: &Axis, why: &str) {
        self.labels.fix(units, &why.into());
    }

    /// Nothing along any axis of the value can go.
    pub fn fix_value(&mut self, value: ValueId, why: &str) {
        let why: Arc<str> = why.into();
        for (_, units) in self.labels.of(value) {
            self.labels.fix(&units, &why);
        }
    }

    pub fn fix_inputs(&mut self, node: &Node, why: &str) {
        for value in node.inputs.iter().flatten() {
            self.fix_value(*value, why);
        }
    }

    pub fn no_layer(&mut self, node: &Node, why: &str) {
        self.why
            .insert(LayerId(node.name.as_str().into()), why.into());
    }

    pub fn rewrite(&mut self, index: usize, rewrite: Rewrite) {
        self.rewrites.push((index, rewrite));
    }

    /// Extents in a target of Reshape or Expand that are not those of the channels it puts there would change where its output does not.
    fn fix_targets(&mut self, node: &Node) {
        let value = |slot: &[Option<ValueId>], at: usize| slot.get(at).copied().flatten();
        let (Op::Reshape { .. } | Op::Expand, Some(target), Some(y)) =
            (&node.op, value(&node.inputs, 1), value(&node.outputs, 0))
        else {
            return;
        };
        for (place, extent) in self
            .extents
            .get(&target)
            .cloned()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let Some(units) = extent.and_then(|(of, axis)| self.axis(of, axis)) else {
                continue;
            };
            let own = self.axis(y, place);
            let roots = |t: &Self, units: &Axis| -> Vec<_> {
                units.iter().map(|u| t.labels.root(*u)).collect()
            };
            if own.is_none_or(|own| roots(self, &own) != roots(self, &units)) {
                let why = format!(
                    "{} ({}) computes with its number",
                    node.name,
                    node.op.name()
                );
                self.fix(&units, &why);
            }
        }
    }

    /// Follows extents that the graph computes with (Shape → Gather → Concat). A target of Reshape or Expand is written anew anyway; any
    /// other use would change with the number of channels, which the zeroed network does not: it fixes them. Whether the
    /// node is done with.
    fn carry_extents(&mut self, node: &Node) -> bool {
        let input = |at: usize| node.inputs.get(at).copied().flatten();
        let Some(&Some(output)) = node.outputs.first() else {
            return false;
        };
        if let (Op::Shape { .. }, Some(x)) = (&node.op, input(0)) {
            let rank = self.graph.value(x).shape.as_ref().map_or(0, Vec::len);
            if rank == 0 {
                self.fix_value(x, "its shape is computed with and not known beforehand");
            }
            let Op::Shape { start, end } = node.op else {
                return true;
            };
            let place = |at: i64| {
                let at = if at < 0 { at + rank as i64 } else { at };
                at.clamp(0, rank as i64) as usize
            };
            let (start, end) = (place(start.unwrap_or(0)), end.map_or(rank, place));
            let all = (start..end.max(start)).map(|a| Some((x, a))).collect();
            self.extents.insert(output, all);
            return true;
        }
        if let (Op::Size, Some(x)) = (&node.op, input(0)) {
            self.fix_value(x, &format!("{} counts its elements", node.name));
            return true;
        }
        let carried: Vec<ValueId> = node
            .inputs
            .iter()
            .flatten()
            .copied()
            .filter(|v| self.extents.contains_key(v))
            .collect();
        if carried.is_empty() {
            return false;
        }
        let first = input(0).and_then(|v| self.extents.get(&v)).cloned();
        let passed = match (&node.op, first) {
            (Op::Cast { to }, Some(all)) if to.is_integer() => Some(all),
            (Op::Identity | Op::Squeeze | Op::Unsqueeze, Some(all)) => Some(all),
            (Op::Gather { axis: 0 }, Some(all)) => self.integers(input(1)).map(|indices| {
                let pick = |i: i64| {
                    let i = if i < 0 { i + all.len() as i64 } else { i };
                    all.get(usize::try_from(i).ok()?).copied().flatten()
                };
                indices.into_iter().map(pick).collect()
            }),
            (Op::Slice, Some(all)) => match (
                self.integers(input(1)).as_deref(),
                self.integers(input(2)).as_deref(),
                self.integers(input(4)).as_deref(),
            ) {
                (Some([start]), Some([end]), None | Some([1])) => {
                    let n = all.len() as i64;
                    let place = |at: i64| (if at < 0 { at + n } else { at }).clamp(0, n) as usize;
                    let (start, end) = (place(*start), place(*end));
                    Some(all[start..end.max(start)].to_vec())
                }
                _ => None,
            },
            (Op::Concat { .. }, _) => {
                let mut all = Vec::new();
                for value in node.inputs.iter().flatten() {
                    match self.extents.get(value) {
                        Some(own) => all.extend(own),
                        None => {
                            let n = self.shape(*value).map_or(0, |s| s.iter().product());
                            all.extend(std::iter::repeat_n(None, n));
                        }
                    }
                }
                Some(all)
            }
            _ => None,
        };
        if let Some(all) = passed {
            self.extents.insert(output, all);
            return true;
        }
        let targeted = matches!(node.op, Op::Reshape { .. } | Op::Expand);
        for value in carried {
            if targeted && input(1) == Some(value) {
                continue;
            }
            for (of, axis) in self.extents[&value].clone().into_iter().flatten() {
                if let Some(units) = self.axis(of, axis) {
                    let why = format!(
                        "{} ({}) computes with its number",
                        node.name,
                        node.op.name()
                    );
                    self.fix(&units, &why);
                }
            }
        }
        // Data may still come in by other inputs.
        false
    }
}

/// Exporters share equal constants between nodes that have nothing to do with each other: each reader gets its own, so that
/// they tie no channels. Layers' weights are shared on purpose and stay so.
fn own_constants(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    let weights: BTreeSet<ValueId> = graph
        .nodes
        .iter()
        .filter(|n| {
            matches!(
                n.op,
                Op::Conv { .. } | Op::ConvTranspose { .. } | Op::Gemm { .. } | Op::MatMul
            )
        })
        .flat_map(|n| n.inputs.iter().take(2).flatten().copied())
        .collect();
    let mut readers: BTreeMap<ValueId, usize> = BTreeMap::new();
    for index in 0..graph.nodes.len() {
        for slot in 0..graph.nodes[index].inputs.len() {
            let Some(id) = graph.nodes[index].inputs[slot] else {
                continue;
            };
            let value = graph.value(id);
            let Some(data) = value.data.clone() else {
                continue;
            };
            if weights.contains(&id) || data.len() <= 1 {
                continue;
            }
            let seen = readers.entry(id).or_default();
            *seen += 1;
            if *seen > 1 {
                let name = value.name.clone();
                let copy = graph.add_constant(&name, data);
                graph.nodes[index].inputs[slot] = Some(copy);
            }
        }
    }
    graph
}
