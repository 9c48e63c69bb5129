//! What pruning gives is what the whole network gives with every removed channel zero, wherever it occurs.

mod exported;
mod folded;
mod generated;
mod passes;

use super::{groups::Structure, *};
use crate::{
    compress::{Model, Pass, PassContext, testkit::*},
    exec::{CancelToken, ExecError, Mode, Program, Taps},
    graph::{Graph, LayerId, ValueId},
};
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// Sets what the structure says to zero in every value that has it.
struct Zero(BTreeMap<ValueId, Vec<(usize, Vec<bool>)>>);

impl Taps for Zero {
    fn wants(&self, value: ValueId) -> bool {
        self.0.contains_key(&value)
    }
    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        let shape = tensor.dims().to_vec();
        let mut values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        for (axis, gone) in &self.0[&value] {
            let inner: usize = shape[axis + 1..].iter().product();
            for (i, v) in values.iter_mut().enumerate() {
                // Of an axis that counts samples too, those of one.
                if gone[i / inner % shape[*axis] % gone.len()] {
                    *v = 0.0;
                }
            }
        }
        Ok(Some(Tensor::from_vec(values, shape, tensor.device())?))
    }
}

fn outputs(graph: &Graph, x: &Tensor, taps: &mut dyn Taps) -> Vec<f32> {
    let program = Program::compile(graph, Mode::Inference).expect("compiles");
    let out = program
        .run(std::slice::from_ref(x), taps, &CancelToken::default())
        .expect("runs");
    out[0]
        .flatten_all()
        .and_then(|t| t.to_vec1())
        .expect("floats")
}

/// Any units of a graph, chosen by the bits of `seed`, at least one of every block staying.
fn some_units(structure: &Structure, seed: u64) -> BTreeSet<u32> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut removed = BTreeSet::new();
    for block in &structure.blocks {
        let stays = next() as usize % block.units.len();
        for (i, unit) in block.units.iter().enumerate() {
            if i != stays && next() % 5 < 2 {
                removed.insert(*unit);
            }
        }
    }
    removed
}

/// The invariant, for some choice of units. How many went.
pub(crate) fn equals_the_zeroed(model: &Model, x: &Tensor, seed: u64, tolerance: f32) -> usize {
    equals_the_zeroed_with(Attention::Widths, model, x, seed, tolerance)
}

/// The same, of heads as they are taken.
pub(crate) fn equals_the_zeroed_with(
    attention: Attention,
    model: &Model,
    x: &Tensor,
    seed: u64,
    tolerance: f32,
) -> usize {
    let structure = Structure::with(&model.graph, attention);
    let removed = some_units(&structure, seed);
    let pruned = structure
        .remove(&model.masks, &removed)
        .expect("can be taken out");
    pruned.graph.validate().expect("valid");
    let zeroed = outputs(&model.graph, x, &mut Zero(structure.zeroed(&removed)));
    let found = run_on(&pruned.graph, x);
    assert_eq!(zeroed.len(), found.len());
    let largest = zeroed.iter().fold(1e-3_f32, |m, v| m.max(v.abs()));
    for (a, b) in zeroed.iter().zip(&found) {
        assert!(
            (a - b).abs() <= tolerance * largest,
            "{a} with zeros against {b} without"
        );
    }
    removed.len()
}

fn id(name: &str) -> LayerId {
    LayerId(name.into())
}
