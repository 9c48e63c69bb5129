//! Takes channels out: weights, biases and norms are cut, operators that name a number of channels are written anew, shapes
//! follow. The result computes what the graph computes with every removed channel zero, wherever it occurs.

use super::{groups::Structure, labels::Unit, trace::Rewrite};
use crate::{
    compress::{CompressError, Model},
    graph::{Dim, ElementType, Graph, Node, Op, TensorData, ValueId},
};
use std::collections::{BTreeMap, BTreeSet};

impl Structure {
    /// The model without the units in `removed` (roots). `masks` are those of the weights before.
    pub fn remove(
        &self,
        masks: &BTreeMap<String, Vec<bool>>,
        removed: &BTreeSet<Unit>,
    ) -> Result<Model, CompressError> {
        let mut graph = self.trace.graph.clone();
        let mut masks = masks.clone();
        for (value, axis, units) in self.trace.labels.all() {
            let Some(kept) = self.kept(value, axis, removed) else {
                continue;
            };
            let refuse = |what: &str| {
                CompressError::Invalid(format!(
                    "channels of {} cannot be taken out: {what}",
                    self.trace.graph.value(value).name
                ))
            };
            if kept.is_empty() {
                return Err(refuse("none would be left"));
            }
            let name = graph.value(value).name.clone();
            match graph.value(value).data.clone() {
                Some(data) => {
                    if let Some(mask) = masks.get(&name) {
                        let cut = take(mask, &data.shape, axis, &kept)
                            .ok_or_else(|| refuse("its mask has another shape"))?;
                        masks.insert(name, cut);
                    }
                    let cut = cut(&data, axis, &kept)
                        .ok_or_else(|| refuse("it is stored in less than a byte an element"))?;
                    graph.set_data(value, cut);
                }
                None => {
                    if let Some(dim) = graph
                        .value_mut(value)
                        .shape
                        .as_mut()
                        .and_then(|s| s.get_mut(axis))
                    {
                        *dim = match self.trace.is_folded(value, axis) {
                            true => Dim::Unknown,
                            false => Dim::Known(kept.len()),
                        };
                    }
                }
            }
            debug_assert!(kept.len() < units.len());
        }
        let rewrites = self.trace.rewrites.iter();
        let mut before: Vec<(usize, Node)> = rewrites
            .filter_map(|(index, rewrite)| {
                Some((*index, self.rewrite(&mut graph, *index, rewrite, removed)?))
            })
            .collect();
        // From the end on, so that the places of the others stay.
        before.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, node) in before {
            graph.nodes.insert(index, node);
        }
        self.check(&mut graph, removed)?;
        graph.compact();
        Ok(Model {
            masks,
            ..Model::new(graph)
        })
    }

    /// Writes a node anew; gives what has to stand before it.
    fn rewrite(
        &self,
        graph: &mut Graph,
        index: usize,
        rewrite: &Rewrite,
        removed: &BTreeSet<Unit>,
    ) -> Option<Node> {
        let node = graph.nodes[index].clone();
        let input = |slot: usize| node.inputs.get(slot).copied().flatten();
        let x = input(0)?;
        let constant = |graph: &mut Graph, slot: usize, items: &[i64], shape: &[usize]| {
            let data = TensorData::from_i64(shape, items);
            let name = format!(
                "{}_{}",
                node.name,
                ["data", "first", "second", "third"][slot]
            );
            let id = graph.add_constant(&name, data);
            let inputs = &mut graph.nodes[index].inputs;
            if inputs.len() <= slot {
                inputs.resize(slot + 1, None);
            }
            inputs[slot] = Some(id);
        };
        let integers = |slot: usize| self.trace.integers(input(slot)).unwrap_or_default();
        match rewrite {
            Rewrite::Groups => {
                let kept = self.kept(x, 1, removed)?;
                if let Op::Conv { group, .. } | Op::ConvTranspose { group, .. } =
                    &mut graph.nodes[index].op
                {
                    *group = kept.len();
                }
            }
            Rewrite::Split { axis } => {
                self.kept(x, *axis, removed)?;
                let sizes: Vec<i64> = node
                    .outputs
                    .iter()
                    .flatten()
                    .map(|y| self.extent(*y, *axis, removed) as i64)
                    .collect();
                if let Op::Split { num_outputs, .. } = &mut graph.nodes[index].op {
                    *num_outputs = None;
                }
                constant(graph, 1, &sizes, &[sizes.len()]);
            }
            Rewrite::Slice {
                axis,
                position,
                start,
                end,
            } => {
                let kept = self.kept(x, *axis, removed)?;
                let before = |at: usize| kept.iter().filter(|k| **k < at).count() as i64;
                for (slot, at) in [(1, *start), (2, *end)] {
                    // Several axes of one Slice are rewritten one after the other.
                    let mut items = graph.nodes[index].inputs[slot]
                        .and_then(|id| graph.value(id).data.as_ref())
                        .map_or_else(|| integers(slot), TensorData::to_i64_vec);
                    items[*position] = before(at);
                    constant(graph, slot, &items, &[items.len()]);
                }
            }
            Rewrite::Gather { axis } => {
                let kept = self.kept(x, *axis, removed)?;
                let n = self.trace.labels.axis(x, *axis).map_or(0, |u| u.len()) as i64;
                let items: Vec<i64> = integers(1)
                    .into_iter()
                    .filter_map(|i| {
                        let old = usize::try_from(if i < 0 { i + n } else { i }).ok()?;
                        kept.binary_search(&old).ok().map(|new| new as i64)
                    })
                    .collect();
                constant(graph, 1, &items, &[items.len()]);
            }
            Rewrite::Target => {
                let (Some(&Some(y)), Some(old)) = (node.outputs.first(), input(1)) else {
                    return None;
                };
                let touched = |value| {
                    let labelled = self.trace.labels.of(value);
                    labelled
                        .iter()
                        .any(|(axis, _)| self.kept(value, *axis, removed).is_some())
                };
                if !touched(x) && !touched(y) {
                    return None;
                }
                let items = self.target(&node.op, y, removed);
                let kept = self.trace.integers(Some(old));
                let whole: Option<Vec<i64>> = (items.iter().enumerate())
                    .map(|(at, item)| item.or_else(|| kept.as_ref()?.get(at).copied()))
                    .collect();
                match whole {
                    Some(items) => constant(graph, 1, &items, &[items.len()]),
                    None => return Some(pick(graph, index, old, &items)),
                }
            }
            Rewrite::Sizes { axis, position } => {
                self.kept(x, *axis, removed)?;
                let mut items = graph.nodes[index].inputs[3]
                    .and_then(|id| graph.value(id).data.as_ref())
                    .map_or_else(|| integers(3), TensorData::to_i64_vec);
                items[*position] = self.extent(x, *axis, removed) as i64;
                constant(graph, 3, &items, &[items.len()]);
            }
        }
        None
    }

    /// What a target shape says once `removed` are gone; `None` for what stays as it is.
    fn target(&self, op: &Op, y: ValueId, removed: &BTreeSet<Unit>) -> Vec<Option<i64>> {
        let rank = self.trace.shape(y).map_or(0, <[usize]>::len);
        let constant = |axis: &usize| self.trace.is_constant_extent(y, *axis);
        if let Op::Expand = op {
            // What counts samples too is computed, from the extent that shrinks.
            let gone = |axis| match self.trace.is_folded(y, axis) {
                true => None,
                false => Some(self.kept(y, axis, removed)?.len() as i64),
            };
            return (0..rank).map(gone).collect();
        }
        let single = (0..rank).filter(|a| !constant(a)).count() == 1;
        (0..rank)
            .map(|axis| match constant(&axis) {
                true => Some(self.extent(y, axis, removed) as i64),
                false if single || self.trace.is_folded(y, axis) => Some(-1),
                false => None,
            })
            .collect()
    }

    fn extent(&self, value: ValueId, axis: usize, removed: &BTreeSet<Unit>) -> usize {
        match self.kept(value, axis, removed) {
            Some(kept) => kept.len(),
            None => self
                .trace
                .shape(value)
                .and_then(|s| s.get(axis).copied())
                .unwrap_or(0),
        }
    }

    /// Shapes that follow from the cut graph must be those that were meant.
    fn check(&self, graph: &mut Graph, removed: &BTreeSet<Unit>) -> Result<(), CompressError> {
        let invalid = |message: String| CompressError::Invalid(message);
        graph
            .validate()
            .map_err(|e| invalid(format!("taking out channels broke the graph: {e}")))?;
        graph.infer_shapes();
        let (one, two) = (self.trace.bound(graph, 1), self.trace.bound(graph, 2));
        for (value, axis, _) in self.trace.labels.all() {
            let mut meant = self.extent(value, axis, removed);
            let cut: &Graph = if self.trace.is_folded(value, axis) {
                meant *= 2;
                &two
            } else if self.trace.known(value, axis) {
                graph
            } else {
                &one
            };
            let found = cut
                .value(value)
                .shape
                .as_ref()
                .and_then(|s| s.get(axis))
                .and_then(Dim::known);
            if found != Some(meant) {
                return Err(invalid(format!(
                    "taking out channels would give {} {} channels along axis {axis} where {meant} were meant: its graph does \
                     something with channels that Limbeck does not follow",
                    graph.value(value).name,
                    found.map_or("unknown".to_owned(), |n| n.to_string()),
                )));
            }
        }
        Ok(())
    }
}

/// Has the node at `index` read `items` for its target shape, and the old target where there are none: gives the node that picks.
fn pick(graph: &mut Graph, index: usize, old: ValueId, items: &[Option<i64>]) -> Node {
    let name = format!("{}_target", graph.nodes[index].name);
    let shape = [items.len()];
    let is_new: Vec<i64> = items.iter().map(|i| i64::from(i.is_some())).collect();
    let is_new = TensorData::from_i64_as(ElementType::Bool, &shape, &is_new);
    let new: Vec<i64> = items.iter().map(|i| i.unwrap_or(1)).collect();
    let is_new = graph.add_constant(&format!("{name}_is_new"), is_new);
    let new = graph.add_constant(&format!("{name}_new"), TensorData::from_i64(&shape, &new));
    let picked = graph.add_value(
        &name,
        Some(ElementType::I64),
        Some(vec![Dim::Known(items.len())]),
    );
    graph.nodes[index].inputs[1] = Some(picked);
    Node {
        name: graph.unique_node_name(&name),
        op: Op::Where,
        inputs: vec![Some(is_new), Some(new), Some(old)],
        outputs: vec![Some(picked)],
    }
}

/// What lies at `kept` along one axis; `None` where the shape does not fit.
fn take<T: Copy>(items: &[T], shape: &[usize], axis: usize, kept: &[usize]) -> Option<Vec<T>> {
    if items.len() != shape.iter().product::<usize>() {
        return None;
    }
    let inner: usize = shape[axis + 1..].iter().product();
    let length = shape[axis];
    let outer: usize = shape[..axis].iter().product();
    let mut out = Vec::with_capacity(outer * kept.len() * inner);
    for o in 0..outer {
        for k in kept {
            let start = (o * length + k) * inner;
            out.extend_from_slice(&items[start..start + inner]);
        }
    }
    Some(out)
}

fn cut(data: &TensorData, axis: usize, kept: &[usize]) -> Option<TensorData> {
    let bits = data.element.bits();
    if bits < 8 {
        return None;
    }
    // Bytes of an element as one more axis.
    let mut shape = data.shape.clone();
    shape.push(bits / 8);
    let bytes = take(&data.bytes, &shape, axis, kept)?;
    let mut shape = data.shape.clone();
    shape[axis] = kept.len();
    TensorData::new(data.element, shape, bytes.into()).ok()
}
