//! What a program's schedule becomes where nobody looks at values in between: layer norm and GELU spelled out in small operators
//! become one step, chains of element-wise operators one pass, and results are written over inputs that nobody reads again.

mod join;
mod run;

use super::{Mode, constants::Constants, fuse::Step, kernels::chain::Link, program::Scheduled};
use crate::graph::Op;
use std::collections::{BTreeMap, BTreeSet};

/// A program's steps joined together.
#[derive(Default)]
pub(super) struct Plan {
    pub items: Vec<Item>,
}

/// One or several of a program's steps.
pub(super) struct Item {
    pub work: Work,
    /// The steps it stands for, in order; the last one names it in errors.
    pub steps: Vec<usize>,
    pub inputs: Vec<Option<usize>>,
    pub outputs: Vec<Option<usize>>,
    /// Values nobody reads afterwards.
    pub drops: Vec<usize>,
    /// Nobody else holds the first input's memory, nor reads it afterwards.
    pub in_place: bool,
}

pub(super) enum Work {
    /// An operator: the program's own, or one that several stand for.
    Step(Step),
    /// Input 0 through the links; the other inputs are their operands.
    Chain(Vec<Link>),
    /// A matrix product with a vector added to its rows: inputs a, b, vector.
    Product,
    /// Input 0 with its axes exchanged, left where it lies: only products read it.
    View(Vec<usize>),
}

/// The steps under construction.
struct Joiner<'a> {
    steps: &'a [Scheduled],
    constants: &'a Constants,
    /// The step that makes a value.
    makers: BTreeMap<usize, usize>,
    /// How often a value is read, as an output too.
    reads: BTreeMap<usize, usize>,
    taken: Vec<bool>,
    items: Vec<Item>,
}

impl Plan {
    /// Joins a program's steps; `outputs`: the values that it gives.
    pub fn new(mode: Mode, steps: &[Scheduled], constants: &Constants, outputs: &[usize]) -> Self {
        let (mut makers, mut reads) = (BTreeMap::new(), BTreeMap::new());
        for (i, step) in steps.iter().enumerate() {
            for slot in step.outputs.iter().flatten() {
                makers.insert(*slot, i);
            }
            for slot in step.inputs.iter().flatten() {
                *reads.entry(*slot).or_insert(0) += 1;
            }
        }
        for slot in outputs {
            *reads.entry(*slot).or_insert(0) += 1;
        }
        let mut joiner = Joiner {
            steps,
            constants,
            makers,
            reads,
            taken: vec![false; steps.len()],
            items: Vec::new(),
        };
        for last in 0..steps.len() {
            joiner.layer_norm(last);
        }
        for last in 0..steps.len() {
            joiner.gelu(last);
        }
        if mode == Mode::Inference {
            for at in 0..steps.len() {
                joiner.product(at);
                joiner.view(at);
            }
            for first in 0..steps.len() {
                joiner.chain(first);
            }
        }
        for (i, step) in steps.iter().enumerate() {
            if !joiner.taken[i] {
                joiner.items.push(Item {
                    work: Work::Step(step.step.clone()),
                    steps: vec![i],
                    inputs: step.inputs.clone(),
                    outputs: step.outputs.clone(),
                    drops: Vec::new(),
                    in_place: false,
                });
            }
        }
        let mut items = joiner.items;
        // Where its last step stood: all it reads is there by then.
        items.sort_by_key(|item| item.steps.last().copied());
        liveness(&mut items, outputs);
        if mode == Mode::Inference {
            in_place(&mut items, outputs);
        }
        Self { items }
    }
}

/// How much was joined: for tests.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Joined {
    pub norms: usize,
    pub gelus: usize,
    pub products: usize,
    pub views: usize,
    pub in_place: usize,
}

#[cfg(test)]
impl Plan {
    pub fn joined(&self) -> Joined {
        let mut all = Joined::default();
        for item in &self.items {
            all.in_place += usize::from(item.in_place);
            match &item.work {
                Work::Step(Step::Op(Op::LayerNormalization { .. })) => all.norms += 1,
                Work::Step(Step::Op(Op::Gelu { .. })) => all.gelus += 1,
                Work::Product => all.products += 1,
                Work::View(_) => all.views += 1,
                Work::Step(_) | Work::Chain(_) => {}
            }
        }
        all
    }
}

/// What each item may give up.
fn liveness(items: &mut [Item], outputs: &[usize]) {
    let mut live: BTreeSet<usize> = outputs.iter().copied().collect();
    for item in items.iter_mut().rev() {
        let touched = item.inputs.iter().chain(&item.outputs).flatten();
        let mut drops: Vec<usize> = touched.copied().filter(|v| !live.contains(v)).collect();
        drops.sort_unstable();
        drops.dedup();
        live.extend(item.inputs.iter().flatten());
        item.drops = drops;
    }
}

/// Whether the result is always memory of its own. What is not named here may be a view of its inputs.
fn is_fresh(work: &Work) -> bool {
    match work {
        Work::Chain(_) | Work::Product => true,
        Work::View(_) => false,
        Work::Step(Step::Op(op)) => matches!(
            op,
            Op::MatMul
                | Op::Gemm { .. }
                | Op::Conv { .. }
                | Op::ConvTranspose { .. }
                | Op::BatchNormalization { .. }
                | Op::LayerNormalization { .. }
                | Op::InstanceNormalization { .. }
                | Op::Unary(_)
                | Op::Gelu { .. }
                | Op::Softmax { .. }
                | Op::LogSoftmax { .. }
                | Op::Binary(_)
        ),
        Work::Step(_) => false,
    }
}

/// Finds the items that may write over their first input: memory made in this run, all of whose names are read for the last time.
fn in_place(items: &mut [Item], outputs: &[usize]) {
    // Values that may share memory have a common root; `None`: memory from outside the run.
    let mut roots: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let mut last_read: BTreeMap<usize, usize> = BTreeMap::new();
    let mut made = BTreeSet::new();
    for (at, item) in items.iter().enumerate() {
        let mut of: BTreeSet<usize> = BTreeSet::new();
        for slot in item.inputs.iter().flatten() {
            // A value that no item makes comes from outside: a root that is never in `made`.
            let inherited = roots
                .entry(*slot)
                .or_insert_with(|| BTreeSet::from([*slot]));
            for root in inherited.iter() {
                last_read.insert(*root, at);
            }
            of.extend(inherited.iter().copied());
        }
        for slot in item.outputs.iter().flatten() {
            if is_fresh(&item.work) {
                made.insert(*slot);
                roots.insert(*slot, BTreeSet::from([*slot]));
            } else {
                roots.insert(*slot, of.clone());
            }
        }
    }
    for slot in outputs {
        for root in roots.get(slot).into_iter().flatten() {
            last_read.insert(*root, usize::MAX);
        }
    }
    for (at, item) in items.iter_mut().enumerate() {
        let may = match &item.work {
            Work::Chain(_) => true,
            Work::Step(Step::Op(op)) => matches!(
                op,
                Op::Softmax { .. } | Op::LogSoftmax { .. } | Op::LayerNormalization { .. }
            ),
            _ => false,
        };
        let Some(Some(first)) = item.inputs.first().copied() else {
            continue;
        };
        let Some(root) = roots.get(&first) else {
            continue;
        };
        // No other input may share it: it would be read while it is written.
        let apart = item.inputs[1..]
            .iter()
            .flatten()
            .all(|other| roots.get(other).is_none_or(|r| r.is_disjoint(root)));
        item.in_place = may
            && apart
            && item.outputs.len() == 1
            && root
                .iter()
                .all(|r| made.contains(r) && last_read.get(r) == Some(&at));
    }
}
