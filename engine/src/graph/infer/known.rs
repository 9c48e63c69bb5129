//! Integers that follow from a graph's inputs and constants, whatever is fed.

use super::{Info, Int, outputs_into};
use crate::graph::{Dim, ElementType, Graph, TensorData, ValueId};
use std::collections::BTreeMap;

impl Graph {
    /// Makes constants of the integers that nodes compute from known extents and other constants, as exporters' arithmetic on
    /// shapes does, and drops those nodes. What a file states of values in between does not count: it may be of another
    /// batch than the one fed. What the graph computes stays the same.
    pub(crate) fn fold_known_integers(&mut self) {
        let known: Vec<Option<TensorData>> = self.followed().iter().map(constant).collect();
        let data = |id: &Option<ValueId>| known.get(id.as_ref()?.0 as usize)?.clone();
        let mut nodes = std::mem::take(&mut self.nodes);
        nodes.retain(|node| {
            let all: Option<Vec<TensorData>> = node.outputs.iter().map(data).collect();
            let asked = |v| self.outputs.contains(v);
            let Some(all) = all.filter(|_| !node.outputs.iter().flatten().any(asked)) else {
                return true;
            };
            for (id, data) in node.outputs.iter().flatten().zip(all) {
                self.set_data(*id, data);
            }
            node.outputs.is_empty()
        });
        self.nodes = nodes;
    }

    /// Of every small tensor of integers the elements that follow from known extents and constants; `None` for those that do not.
    pub(crate) fn followed_integers(&self) -> BTreeMap<ValueId, Vec<Option<i64>>> {
        let infos = self.followed().into_iter().enumerate();
        let known = |items: Vec<Int>| items.iter().map(Int::known).collect();
        let integers =
            infos.filter_map(|(id, info)| Some((ValueId(id as u32), known(info.items?))));
        integers.collect()
    }

    /// What follows from inputs and constants alone.
    fn followed(&self) -> Vec<Info> {
        let mut infos: Vec<Info> = self.values.iter().map(Info::of).collect();
        for id in self.nodes.iter().flat_map(|n| n.outputs.iter().flatten()) {
            if let Some(info) = infos.get_mut(id.0 as usize) {
                *info = Info::default();
            }
        }
        outputs_into(&self.nodes, &mut infos);
        infos
    }
}

/// The tensor, where every one of its elements is known.
fn constant(info: &Info) -> Option<TensorData> {
    let items = info.known_items()?;
    let shape: Vec<usize> = info
        .shape
        .as_ref()?
        .iter()
        .map(Dim::known)
        .collect::<Option<_>>()?;
    let fits =
        info.element == Some(ElementType::I64) && shape.iter().product::<usize>() == items.len();
    fits.then(|| TensorData::from_i64(&shape, &items))
}
