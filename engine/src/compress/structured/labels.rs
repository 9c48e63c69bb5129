//! Labels of channels: every index along a labelled axis of a value belongs to a unit. Units that can only go together are
//! united (a disjoint-set forest); units that cannot go at all are fixed, with the reason in words.

use crate::graph::ValueId;
use std::{collections::BTreeMap, sync::Arc};

/// Number of a unit: what is removed as a whole.
pub(crate) type Unit = u32;

/// The unit of every index along one axis.
pub(super) type Axis = Arc<[Unit]>;

#[derive(Clone, Debug, Default)]
pub(super) struct Labels {
    parent: Vec<Unit>,
    /// Why the unit stays; looked up at the root.
    fixed: Vec<Option<Arc<str>>>,
    axes: BTreeMap<(ValueId, usize), Axis>,
}

impl Labels {
    /// `n` units that nothing is known of yet.
    pub fn fresh(&mut self, n: usize) -> Axis {
        let first = self.parent.len() as Unit;
        let units: Vec<Unit> = (first..first + n as Unit).collect();
        self.parent.extend(&units);
        self.fixed.resize(self.parent.len(), None);
        units.into()
    }

    pub fn root(&self, mut unit: Unit) -> Unit {
        while self.parent[unit as usize] != unit {
            unit = self.parent[unit as usize];
        }
        unit
    }

    /// Makes two units one; the lower root stays the root, so that the order of unions does not show.
    pub fn unite(&mut self, a: Unit, b: Unit) {
        let (a, b) = (self.root(a), self.root(b));
        if a == b {
            return;
        }
        let (low, high) = (a.min(b), a.max(b));
        self.parent[high as usize] = low;
        if self.fixed[low as usize].is_none() {
            self.fixed[low as usize] = self.fixed[high as usize].clone();
        }
    }

    /// Index by index; axes of different lengths (which no valid graph has) are fixed.
    pub fn unite_axes(&mut self, a: &Axis, b: &Axis) {
        if a.len() != b.len() {
            let why: Arc<str> = "shapes along it do not agree".into();
            self.fix(a, &why);
            self.fix(b, &why);
            return;
        }
        for (a, b) in a.iter().zip(b.iter()) {
            self.unite(*a, *b);
        }
    }

    /// The first reason stands.
    pub fn fix(&mut self, axis: &[Unit], why: &Arc<str>) {
        for unit in axis {
            let root = self.root(*unit) as usize;
            self.fixed[root].get_or_insert_with(|| why.clone());
        }
    }

    pub fn why_fixed(&self, unit: Unit) -> Option<&Arc<str>> {
        self.fixed[self.root(unit) as usize].as_ref()
    }

    pub fn axis(&self, value: ValueId, axis: usize) -> Option<&Axis> {
        self.axes.get(&(value, axis))
    }

    /// Labels an axis; one that has labels already is united with the new ones.
    pub fn label(&mut self, value: ValueId, axis: usize, units: Axis) {
        match self.axes.get(&(value, axis)).cloned() {
            Some(old) => self.unite_axes(&old, &units),
            None => {
                self.axes.insert((value, axis), units);
            }
        }
    }

    /// Labelled axes of one value.
    pub fn of(&self, value: ValueId) -> Vec<(usize, Axis)> {
        self.axes
            .range((value, 0)..=(value, usize::MAX))
            .map(|((_, axis), units)| (*axis, units.clone()))
            .collect()
    }

    pub fn all(&self) -> impl Iterator<Item = (ValueId, usize, &Axis)> {
        self.axes.iter().map(|((v, a), units)| (*v, *a, units))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn united_units_share_their_fate() {
        let mut labels = Labels::default();
        let (a, b) = (labels.fresh(3), labels.fresh(3));
        labels.unite_axes(&a, &b);
        labels.fix(&b[1..2], &"an output".into());
        assert_eq!(labels.root(b[2]), a[2]);
        assert!(labels.why_fixed(a[1]).is_some());
        assert!(labels.why_fixed(a[0]).is_none());
        // Fixed before the union counts as well, and the first reason stands.
        let c = labels.fresh(3);
        labels.fix(&c, &"another".into());
        labels.unite_axes(&a, &c);
        assert_eq!(labels.why_fixed(b[0]).map(|w| &**w), Some("another"));
        assert_eq!(labels.why_fixed(b[1]).map(|w| &**w), Some("an output"));
    }
}
