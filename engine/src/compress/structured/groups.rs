//! Blocks of units that stand in the same places, and the groups of layers that they tie together.

use super::{
    Attention,
    labels::{Axis, Unit},
    trace::Trace,
};
use crate::graph::{Graph, Layer, LayerId, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// A layer's weight along one of its axes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    /// Index into [`Structure::layers`].
    pub layer: usize,
    pub weight: ValueId,
    pub axis: usize,
    /// Counts what the layer computes, as against what it reads. A depthwise convolution does both with one axis.
    pub output: bool,
}

/// Units that occur along exactly the same axes: any of them may go for any other, so counts can be rounded and limited here.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Block {
    pub units: Vec<Unit>,
    /// Weights that the units are channels of.
    pub members: Vec<Member>,
    /// Scales of batch norms that the units have.
    pub scales: Vec<ValueId>,
    /// Most channels that one unit has along any layer's outputs.
    pub width: usize,
    /// Index into [`ChannelGroups::groups`].
    pub group: usize,
}

/// Layers whose output channels go together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelGroup {
    /// Layers that lose output channels, in the graph's order.
    pub layers: Vec<LayerId>,
    /// Layers that read them and lose input channels.
    pub readers: Vec<LayerId>,
    /// What can go one by one: channels, or sets of channels that only go together.
    pub channels: usize,
}

/// Which layers' channels go together, and why the others' stay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelGroups {
    pub groups: Vec<ChannelGroup>,
    /// Layers that keep their output channels, with the reason.
    pub fixed: BTreeMap<LayerId, String>,
}

impl ChannelGroups {
    /// Follows channels through the graph (DepGraph, Fang et al. 2023). Sees no data.
    pub fn of(graph: &Graph) -> Self {
        Structure::of(graph).groups
    }

    /// The same where whole attention heads go ([`Attention::Heads`]); `None` where that makes no difference: there is no attention, or none
    /// whose heads can go.
    pub fn of_heads(graph: &Graph) -> Option<Self> {
        // Attention multiplies what is computed by what is computed.
        let computed = |v: &Option<ValueId>| v.is_some_and(|v| graph.value(v).data.is_none());
        let attends = graph
            .iter_nodes()
            .any(|(_, node)| matches!(node.op, Op::MatMul) && node.inputs.iter().all(computed));
        if !attends {
            return None;
        }
        let heads = Structure::with(graph, Attention::Heads).groups;
        (heads != Self::of(graph)).then_some(heads)
    }

    /// The group whose output channels include this layer's.
    pub fn group_of(&self, layer: &LayerId) -> Option<&ChannelGroup> {
        self.groups.iter().find(|g| g.layers.contains(layer))
    }
}

/// The channels of one graph and what ties them.
pub(crate) struct Structure {
    pub(super) trace: Trace,
    pub(super) layers: Vec<Layer>,
    pub(super) blocks: Vec<Block>,
    pub(super) groups: ChannelGroups,
}

impl Structure {
    pub fn of(graph: &Graph) -> Self {
        Self::with(graph, Attention::default())
    }

    /// What goes as one in attention is the caller's choice.
    pub fn with(graph: &Graph, attention: Attention) -> Self {
        let trace = Trace::of(graph, attention);
        let layers = trace.graph.layers();
        let mut structure = Self {
            trace,
            layers,
            blocks: Vec::new(),
            groups: ChannelGroups::default(),
        };
        structure.find_blocks();
        structure.find_groups();
        structure
    }

    /// Axis of a layer's weight that its output channels lie along.
    fn output_axis(&self, layer: &Layer) -> usize {
        match self.trace.graph.node(layer.node).op {
            // Depthwise: the axis of its inputs, which are its outputs.
            Op::ConvTranspose { group, .. } if group > 1 => 0,
            _ => layer.channel_axis,
        }
    }

    fn find_blocks(&mut self) {
        let labels = &self.trace.labels;
        let mut places: BTreeMap<Unit, Vec<(ValueId, usize)>> = BTreeMap::new();
        for (value, axis, units) in labels.all() {
            for unit in units.iter() {
                let root = labels.root(*unit);
                if labels.why_fixed(root).is_some() {
                    continue;
                }
                let own = places.entry(root).or_default();
                if own.last() != Some(&(value, axis)) {
                    own.push((value, axis));
                }
            }
        }
        let mut by_places: BTreeMap<Vec<(ValueId, usize)>, Vec<Unit>> = BTreeMap::new();
        for (unit, own) in places {
            by_places.entry(own).or_default().push(unit);
        }
        let mut blocks: Vec<Block> = Vec::new();
        for (own, units) in by_places {
            let mut members = Vec::new();
            for (index, layer) in self.layers.iter().enumerate() {
                for (value, axis) in own.iter().filter(|(v, _)| *v == layer.weight) {
                    members.push(Member {
                        layer: index,
                        weight: *value,
                        axis: *axis,
                        output: *axis == self.output_axis(layer),
                    });
                }
            }
            if !members.iter().any(|m| m.output) {
                continue;
            }
            let scales = self
                .trace
                .graph
                .nodes
                .iter()
                .filter(|n| matches!(n.op, Op::BatchNormalization { .. }))
                .filter_map(|n| n.inputs.get(1).copied().flatten())
                .filter(|s| own.contains(&(*s, 0)))
                .collect();
            let width = members
                .iter()
                .filter(|m| m.output)
                .filter_map(|m| {
                    let axis = labels.axis(m.weight, m.axis)?;
                    let first = *units.first()?;
                    Some(axis.iter().filter(|u| labels.root(**u) == first).count())
                })
                .max()
                .unwrap_or(1);
            blocks.push(Block {
                units,
                members,
                scales,
                width,
                group: 0,
            });
        }
        blocks.sort_by_key(|b| b.units.first().copied());
        self.blocks = blocks;
    }

    /// Blocks that have a layer's outputs in common are one group.
    fn find_groups(&mut self) {
        let mut sets: Vec<BTreeSet<usize>> = Vec::new();
        for block in &self.blocks {
            let own = block.members.iter().filter(|m| m.output).map(|m| m.layer);
            let mut merged: BTreeSet<usize> = own.collect();
            sets.retain(|set| {
                let apart = set.is_disjoint(&merged);
                if !apart {
                    merged.extend(set);
                }
                apart
            });
            sets.push(merged);
        }
        sets.sort();
        let ids = |set: &BTreeSet<usize>| set.iter().map(|i| self.layers[*i].id.clone()).collect();
        let mut groups: Vec<ChannelGroup> = sets
            .iter()
            .map(|set| ChannelGroup {
                layers: ids(set),
                ..ChannelGroup::default()
            })
            .collect();
        let mut readers: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); sets.len()];
        for block in &mut self.blocks {
            let first = block.members.iter().find(|m| m.output).map(|m| m.layer);
            let Some(group) = sets
                .iter()
                .position(|s| first.is_some_and(|f| s.contains(&f)))
            else {
                continue;
            };
            block.group = group;
            groups[group].channels += block.units.len();
            let reading = block.members.iter().filter(|m| !m.output);
            readers[group].extend(reading.map(|m| m.layer));
        }
        for (group, readers) in groups.iter_mut().zip(&readers) {
            group.readers = ids(readers);
        }
        let grouped: BTreeSet<usize> = sets.into_iter().flatten().collect();
        let fixed = self
            .layers
            .iter()
            .enumerate()
            .filter(|(index, _)| !grouped.contains(index))
            .map(|(_, layer)| (layer.id.clone(), self.why_fixed(layer)))
            .collect();
        self.groups = ChannelGroups { groups, fixed };
    }

    fn why_fixed(&self, layer: &Layer) -> String {
        if let Some(why) = self.trace.why.get(&layer.id) {
            return why.to_string();
        }
        let axis: Option<&Axis> = self
            .trace
            .labels
            .axis(layer.weight, self.output_axis(layer));
        axis.and_then(|units| {
            units
                .iter()
                .find_map(|u| self.trace.labels.why_fixed(*u))
                .map(ToString::to_string)
        })
        .unwrap_or_else(|| "nothing is known of its output channels".to_owned())
    }

    /// Indices along an axis that stay when `removed` (roots) go; `None` where all stay.
    pub(super) fn kept(
        &self,
        value: ValueId,
        axis: usize,
        removed: &BTreeSet<Unit>,
    ) -> Option<Vec<usize>> {
        let labels = &self.trace.labels;
        let units = labels.axis(value, axis)?;
        let kept: Vec<usize> = (0..units.len())
            .filter(|i| !removed.contains(&labels.root(units[*i])))
            .collect();
        (kept.len() < units.len()).then_some(kept)
    }

    /// Axes of computed values with the indices that count as zero when `removed` go: what pruning is held against.
    #[cfg(test)]
    pub fn zeroed(&self, removed: &BTreeSet<Unit>) -> BTreeMap<ValueId, Vec<(usize, Vec<bool>)>> {
        let mut found: BTreeMap<ValueId, Vec<(usize, Vec<bool>)>> = BTreeMap::new();
        for (value, axis, units) in self.trace.labels.all() {
            if self.trace.is_constant(value) {
                continue;
            }
            let gone: Vec<bool> = units
                .iter()
                .map(|u| removed.contains(&self.trace.labels.root(*u)))
                .collect();
            if gone.contains(&true) {
                found.entry(value).or_default().push((axis, gone));
            }
        }
        found
    }
}
