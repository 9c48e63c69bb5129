//! What a program's schedule becomes where nobody looks at values in between: layer norm and GELU spelled out in small operators
//! become one step, chains of element-wise operators one pass, and results are written over inputs that nobody reads again.

use super::{
    Fail, Mode,
    elementwise::Bin,
    fuse::Step,
    kernels::{
        chain::{From, Link, Side, chain, joins},
        planes::isa,
        rows::{layer_norm_in_place, softmax_in_place},
    },
    ops,
    program::Scheduled,
    scalar::Fun,
    value::{Val, tensor_f32, with_f32},
};
use crate::graph::{BinaryOp, ElementType, Op, ReduceOp, UnaryOp, VariadicOp};
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
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
    constants: &'a BTreeMap<usize, Val>,
    /// The step that makes a value.
    makers: BTreeMap<usize, usize>,
    /// How often a value is read, as an output too.
    reads: BTreeMap<usize, usize>,
    taken: Vec<bool>,
    items: Vec<Item>,
}

impl Plan {
    /// Joins a program's steps; `outputs`: the values that it gives.
    pub fn new(
        mode: Mode,
        steps: &[Scheduled],
        constants: &BTreeMap<usize, Val>,
        outputs: &[usize],
    ) -> Self {
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

/// A binary operator that a chain or a pattern may hold.
fn bin(op: &Op, inputs: usize) -> Option<Bin> {
    Some(match op {
        Op::Binary(BinaryOp::Add) => Bin::Add,
        Op::Binary(BinaryOp::Sub) => Bin::Sub,
        Op::Binary(BinaryOp::Mul) => Bin::Mul,
        Op::Binary(BinaryOp::Div) => Bin::Div,
        Op::Binary(BinaryOp::Pow) => Bin::Pow,
        Op::Binary(BinaryOp::PRelu) => Bin::PRelu,
        Op::Variadic(VariadicOp::Sum) if inputs == 2 => Bin::Add,
        Op::Variadic(VariadicOp::Min) if inputs == 2 => Bin::Min,
        Op::Variadic(VariadicOp::Max) if inputs == 2 => Bin::Max,
        _ => return None,
    })
}

impl Joiner<'_> {
    fn op(&self, at: usize) -> Option<&Op> {
        match &self.steps[at].step {
            Step::Op(op) if !self.taken[at] => Some(op),
            _ => None,
        }
    }

    /// The step that makes `slot`, where it is not part of another item.
    fn maker(&self, slot: Option<usize>) -> Option<usize> {
        let at = *self.makers.get(&slot?)?;
        (!self.taken[at]).then_some(at)
    }

    fn output(&self, at: usize) -> Option<usize> {
        match self.steps[at].outputs.as_slice() {
            [Some(slot)] => Some(*slot),
            _ => None,
        }
    }

    fn input(&self, at: usize, i: usize) -> Option<usize> {
        self.steps[at].inputs.get(i).copied().flatten()
    }

    fn scalar(&self, slot: Option<usize>) -> Option<f64> {
        match self.constants.get(&slot?)? {
            v @ Val::Float(_, ElementType::F32) if v.len() == 1 => v.scalar().ok(),
            _ => None,
        }
    }

    /// Whether values are read by these steps alone.
    fn only_read_within(&self, steps: &[usize]) -> bool {
        let Some((last, inner)) = steps.split_last() else {
            return false;
        };
        inner
            .iter()
            .chain([last])
            .all(|at| self.output(*at).is_some())
            && inner.iter().all(|at| {
                let slot = self.output(*at);
                let within: usize = steps
                    .iter()
                    .map(|s| self.steps[*s].inputs.iter().filter(|i| **i == slot).count())
                    .sum();
                slot.and_then(|slot| self.reads.get(&slot)) == Some(&within)
            })
    }

    fn take(&mut self, work: Work, mut steps: Vec<usize>, inputs: Vec<Option<usize>>) {
        steps.sort_unstable();
        let Some(&last) = steps.last() else {
            return;
        };
        for at in &steps {
            self.taken[*at] = true;
        }
        self.items.push(Item {
            work,
            inputs,
            outputs: self.steps[last].outputs.clone(),
            steps,
            drops: Vec::new(),
            in_place: false,
        });
    }

    /// The two operands of a binary step, in both orders.
    fn orders(&self, at: usize, op: Bin) -> Vec<(Option<usize>, Option<usize>)> {
        let inputs = self.steps[at].inputs.len();
        if self.op(at).and_then(|o| bin(o, inputs)) != Some(op) {
            return Vec::new();
        }
        let (a, b) = (self.input(at, 0), self.input(at, 1));
        match op {
            Bin::Add | Bin::Mul => vec![(a, b), (b, a)],
            _ => vec![(a, b)],
        }
    }

    /// The mean over the last axis: the step's input. `None` where it is something else.
    fn last_mean(&self, at: usize) -> Option<usize> {
        let Op::Reduce {
            op: ReduceOp::Mean,
            keep_dims: true,
            ..
        } = self.op(at)?
        else {
            return None;
        };
        let axes = self.constants.get(&self.input(at, 1)?)?.to_ints().ok()?;
        (axes == [-1]).then(|| self.input(at, 0)).flatten()
    }

    /// `(x − mean)/√(mean((x − mean)²) + ε)·scale + shift` over the last axis, as exporters write it before opset 17.
    fn layer_norm(&mut self, last: usize) -> Option<()> {
        for (scaled, shift) in self.orders(last, Bin::Add) {
            let Some(mul) = self.maker(scaled) else {
                continue;
            };
            for (normal, scale) in self.orders(mul, Bin::Mul) {
                let Some(div) = self.maker(normal) else {
                    continue;
                };
                for (centered, root) in self.orders(div, Bin::Div) {
                    if let Some((x, epsilon, mut steps)) = self.normalised(centered, root) {
                        steps.extend([div, mul, last]);
                        if !self.vectors(&[scale, shift]) || !self.only_read_within(&steps) {
                            continue;
                        }
                        let op = Op::LayerNormalization {
                            axis: -1,
                            epsilon: epsilon as f32,
                        };
                        self.take(Work::Step(Step::Op(op)), steps, vec![Some(x), scale, shift]);
                        return Some(());
                    }
                }
            }
        }
        None
    }

    /// Whether all are known vectors of one size, in memory or as parameters (which no step makes).
    fn vectors(&self, slots: &[Option<usize>]) -> bool {
        slots.iter().all(|slot| {
            slot.is_some_and(|slot| match self.constants.get(&slot) {
                Some(v) => v.rank() == 1,
                None => !self.makers.contains_key(&slot),
            })
        })
    }

    /// x, ε and the steps of x − mean and √(variance + ε).
    fn normalised(
        &self,
        centered: Option<usize>,
        root: Option<usize>,
    ) -> Option<(usize, f64, Vec<usize>)> {
        let sub = self.maker(centered)?;
        let [(x, mean)] = self.orders(sub, Bin::Sub)[..] else {
            return None;
        };
        let mean = self.maker(mean)?;
        if self.last_mean(mean) != x {
            return None;
        }
        let root = self.maker(root)?;
        if !matches!(self.op(root), Some(Op::Unary(UnaryOp::Sqrt))) {
            return None;
        }
        let add = self.maker(self.input(root, 0))?;
        let (variance, epsilon) = self
            .orders(add, Bin::Add)
            .into_iter()
            .find_map(|(v, e)| Some((v, self.scalar(e)?)))?;
        let variance = self.maker(variance)?;
        let square = self.maker(self.last_mean(variance))?;
        // The difference may be computed once, or once more for the square.
        let base = match self.orders(square, Bin::Pow)[..] {
            [(base, two)] if self.scalar(two) == Some(2.0) => base,
            _ => match self.orders(square, Bin::Mul)[..] {
                [(a, b), _] if a == b => a,
                _ => return None,
            },
        };
        let mut steps = vec![sub, mean, root, add, variance, square];
        if base != centered {
            let again = self.maker(base)?;
            let [(y, second)] = self.orders(again, Bin::Sub)[..] else {
                return None;
            };
            let second_mean = self.maker(second)?;
            if y != x || self.last_mean(second_mean) != x {
                return None;
            }
            steps.extend([again, second_mean]);
            steps.sort_unstable();
            steps.dedup();
        }
        Some((x?, epsilon, steps))
    }

    /// `x·(1 + erf(x/√2))·½` in any order of the factors.
    fn gelu(&mut self, last: usize) -> Option<()> {
        let factors = self.factors(last)?;
        let (mut x, mut half, mut inner) = (None, None, None);
        for slot in &factors.slots {
            if let Some(v) = self.scalar(Some(*slot)) {
                half = half.map_or(Some(v), |h: f64| Some(h * v));
            } else if let Some(found) = self.one_plus_erf(*slot) {
                inner = Some(found);
            } else if x.is_none() {
                x = Some(*slot);
            } else {
                return None;
            }
        }
        let (of, more) = inner?;
        if x != Some(of) || (half? - 0.5).abs() > 1e-6 {
            return None;
        }
        let steps = [factors.steps, more].concat();
        if !self.only_read_within(&sorted(&steps)) {
            return None;
        }
        let op = Op::Gelu { tanh: false };
        self.take(Work::Step(Step::Op(op)), steps, vec![x]);
        Some(())
    }

    /// The operands of a product of three, written as two multiplications.
    fn factors(&self, last: usize) -> Option<Factors> {
        for (inner, other) in self.orders(last, Bin::Mul) {
            if let Some(at) = self.maker(inner)
                && let [(a, b), _] = self.orders(at, Bin::Mul)[..]
            {
                return Some(Factors {
                    slots: vec![a?, b?, other?],
                    steps: vec![last, at],
                });
            }
        }
        None
    }

    /// For 1 + erf(x/√2): x and the steps.
    fn one_plus_erf(&self, slot: usize) -> Option<(usize, Vec<usize>)> {
        let add = self.maker(Some(slot))?;
        let erf = self
            .orders(add, Bin::Add)
            .into_iter()
            .find(|(_, one)| self.scalar(*one) == Some(1.0))
            .and_then(|(e, _)| self.maker(e))?;
        if !matches!(self.op(erf), Some(Op::Unary(UnaryOp::Erf))) {
            return None;
        }
        let scaled = self.maker(self.input(erf, 0))?;
        let close = |v: Option<f64>, to: f64| v.is_some_and(|v| (v - to).abs() < 1e-6);
        let root = std::f64::consts::SQRT_2;
        let x = match self.orders(scaled, Bin::Div)[..] {
            [(x, by)] if close(self.scalar(by), root) => x?,
            _ => {
                let orders = self.orders(scaled, Bin::Mul);
                let by = |(_, by): &(_, _)| close(self.scalar(*by), 1.0 / root);
                orders.into_iter().find(by)?.0?
            }
        };
        Some((x, vec![add, erf, scaled]))
    }

    /// A product whose only reader adds a vector to its rows.
    fn product(&mut self, at: usize) -> Option<()> {
        if !matches!(self.op(at)?, Op::MatMul) {
            return None;
        }
        let made = self.output(at)?;
        let weight = self.constants.get(&self.input(at, 1)?)?;
        let &[_, n] = weight.shape() else {
            return None;
        };
        let add = self.reader(made)?;
        let (_, vector) = self
            .orders(add, Bin::Add)
            .into_iter()
            .find(|(product, _)| *product == Some(made))?;
        let vector = vector?;
        if self.constants.get(&vector)?.shape() != [n] || !self.only_read_within(&[at, add]) {
            return None;
        }
        let inputs = vec![self.input(at, 0), self.input(at, 1), Some(vector)];
        self.take(Work::Product, vec![at, add], inputs);
        Some(())
    }

    /// The one step that reads a value once.
    fn reader(&self, slot: usize) -> Option<usize> {
        if self.reads.get(&slot) != Some(&1) {
            return None;
        }
        let at = self
            .steps
            .iter()
            .position(|s| s.inputs.contains(&Some(slot)))?;
        (!self.taken[at]).then_some(at)
    }

    /// An exchange of axes that only matrix products read: they walk any layout.
    fn view(&mut self, at: usize) -> Option<()> {
        let Op::Transpose { perm: Some(perm) } = self.op(at)? else {
            return None;
        };
        let (perm, made) = (perm.clone(), self.output(at)?);
        let readers: Vec<usize> = (0..self.steps.len())
            .filter(|s| self.steps[*s].inputs.contains(&Some(made)))
            .collect();
        // With a fixed matrix the rows of all pairs are one tall product, which wants them in one piece.
        let products = readers.iter().filter(|s| {
            let fixed = |slot: &usize| self.constants.contains_key(slot);
            matches!(&self.steps[**s].step, Step::Op(Op::MatMul))
                && !self.steps[**s].inputs.iter().flatten().any(fixed)
        });
        if products.count() != readers.len() || self.reads.get(&made) != Some(&readers.len()) {
            return None;
        }
        let inputs = vec![self.input(at, 0)];
        self.take(Work::View(perm), vec![at], inputs);
        Some(())
    }

    /// As many element-wise steps as read each other alone, from this one on.
    fn chain(&mut self, first: usize) -> Option<()> {
        let mut inputs: Vec<Option<usize>> = Vec::new();
        let (mut links, mut steps) = (Vec::new(), Vec::new());
        let mut at = first;
        // What the chain has made so far.
        let mut made: Option<usize> = None;
        loop {
            let op = self.op(at)?.clone();
            let (link, main) = match self.link(at, &op, made, &mut inputs) {
                Some(found) => found,
                None if steps.is_empty() => return None,
                None => break,
            };
            if inputs.is_empty() || made.is_none() {
                inputs[0] = Some(main);
            }
            links.push(link);
            steps.push(at);
            let Some(slot) = self.output(at) else {
                // Checked by `link`.
                return None;
            };
            made = Some(slot);
            match self.reader(slot) {
                Some(next) if self.op(next).is_some() => at = next,
                _ => break,
            }
        }
        self.take(Work::Chain(links), steps, inputs);
        Some(())
    }

    /// The step as a link and the value that goes through it; operands join `inputs`, whose first place is that value's.
    fn link(
        &self,
        at: usize,
        op: &Op,
        made: Option<usize>,
        inputs: &mut Vec<Option<usize>>,
    ) -> Option<(Link, usize)> {
        self.output(at)?;
        if let Some(bin) = bin(op, self.steps[at].inputs.len()) {
            let (a, b) = (self.input(at, 0)?, self.input(at, 1)?);
            let fixed = |slot: &usize| self.constants.contains_key(slot);
            let swapped = match made {
                Some(made) => made != a,
                None => fixed(&a) && !fixed(&b),
            };
            let (main, other) = if swapped { (b, a) } else { (a, b) };
            if Some(other) == made || (bin == Bin::PRelu && swapped) {
                return None;
            }
            if inputs.is_empty() {
                inputs.push(None);
            }
            inputs.push(Some(other));
            let operand = inputs.len() - 2;
            let link = Link::With {
                bin,
                operand,
                swapped,
            };
            return Some((link, main));
        }
        let f = |v: f32| f64::from(v);
        let fun = match op {
            Op::Unary(u) => Fun::of(*u),
            Op::Gelu { tanh: true } => Fun::GeluTanh,
            Op::Gelu { tanh: false } => Fun::GeluErf,
            Op::LeakyRelu { alpha } => Fun::LeakyRelu(f(*alpha)),
            Op::HardSigmoid { alpha, beta } => Fun::HardSigmoid {
                alpha: f(*alpha),
                beta: f(*beta),
            },
            Op::Elu { alpha } => Fun::Elu(f(*alpha)),
            Op::Clip => {
                let bound = |i: usize, none: f64| match self.input(at, i) {
                    None => Some(none),
                    slot => self.scalar(slot),
                };
                Fun::Clip {
                    lo: bound(1, f64::NEG_INFINITY)?,
                    hi: bound(2, f64::INFINITY)?,
                }
            }
            _ => return None,
        };
        let link = Link::Map(fun);
        if !joins(&link) {
            return None;
        }
        if inputs.is_empty() {
            inputs.push(None);
        }
        Some((link, self.input(at, 0)?))
    }
}

/// The operands of a product of several.
struct Factors {
    slots: Vec<usize>,
    steps: Vec<usize>,
}

fn sorted(steps: &[usize]) -> Vec<usize> {
    let mut steps = steps.to_vec();
    steps.sort_unstable();
    steps
}

/// A float32 tensor, or nothing: joined steps know no other type.
fn plain(v: Option<&Val>) -> Option<&Tensor> {
    match v {
        Some(Val::Float(t, ElementType::F32)) => Some(t),
        _ => None,
    }
}

impl Item {
    /// The item's result; `None` where its steps must be taken one by one (other types, an input that broadcasts).
    pub fn run(&self, inputs: &[Option<Val>]) -> Result<Option<Vec<Val>>, Fail> {
        let first = inputs.first().and_then(Option::as_ref);
        let one = |t: Tensor| Ok(Some(vec![Val::f32(t)]));
        match &self.work {
            Work::Step(step) => {
                // Several steps stand behind it: only for the type that they were joined for.
                if self.steps.len() > 1 {
                    let known = inputs.iter().all(|v| plain(v.as_ref()).is_some());
                    let same = known && inputs[1..].iter().all(|v| fits(first, v.as_ref()));
                    if !same {
                        return Ok(None);
                    }
                }
                if self.in_place
                    && let Some(done) = over(step, inputs)?
                {
                    return Ok(Some(vec![done]));
                }
                ops::eval(step, inputs, self.outputs.len()).map(Some)
            }
            Work::View(perm) => match plain(first) {
                Some(x) if x.rank() == perm.len() => one(x.permute(perm.clone())?),
                _ => Ok(None),
            },
            Work::Product => {
                let all: Option<Vec<&Tensor>> = inputs.iter().map(|v| plain(v.as_ref())).collect();
                match all.as_deref() {
                    Some([a, b, vector]) if a.rank() > 1 => one(ops::matmul_plus(a, b, vector)?),
                    _ => Ok(None),
                }
            }
            Work::Chain(links) => {
                let all: Option<Vec<&Tensor>> = inputs.iter().map(|v| plain(v.as_ref())).collect();
                let Some([x, others @ ..]) = all.as_deref() else {
                    return Ok(None);
                };
                let others = others
                    .iter()
                    .map(|t| t.contiguous())
                    .collect::<candle_core::Result<Vec<_>>>()?;
                with_all(&others, &mut Vec::new(), &mut |sides| {
                    let shapes = others.iter().map(|t| t.dims());
                    let sides: Option<Vec<Side<'_>>> = sides
                        .iter()
                        .zip(shapes)
                        .map(|(data, shape)| Side::new(data, shape, x.dims()))
                        .collect();
                    let Some(sides) = sides else { return Ok(None) };
                    if self.in_place && x.is_contiguous() {
                        x.inplace_op1(&Over {
                            links,
                            sides: &sides,
                        })?;
                        return Ok(Some(vec![Val::f32((*x).clone())]));
                    }
                    let out = with_f32(x, |x| {
                        let mut out = vec![0.0; x.len()];
                        chain(isa(), links, From::Slice(x), &sides, &mut out);
                        out
                    })?;
                    Ok(Some(vec![Val::f32(tensor_f32(out, x.dims())?)]))
                })
            }
        }
    }
}

/// Whether a vector is one of the last axis.
fn fits(x: Option<&Val>, v: Option<&Val>) -> bool {
    match (x, v) {
        (Some(x), Some(v)) => v.rank() == 1 && x.shape().last() == v.shape().last(),
        _ => false,
    }
}

/// Softmax or layer norm over the memory of their input; `None` where that cannot be.
fn over(step: &Step, inputs: &[Option<Val>]) -> Result<Option<Val>, Fail> {
    let Some(x) = plain(inputs.first().and_then(Option::as_ref)) else {
        return Ok(None);
    };
    let rank = x.rank();
    let last = |axis: i64| axis == -1 || (axis >= 0 && axis as usize + 1 == rank);
    let (Some(&n), true) = (x.dims().last(), x.is_contiguous() && x.elem_count() > 0) else {
        return Ok(None);
    };
    let rows = x.reshape((x.elem_count() / n, n))?;
    match step {
        Step::Op(Op::Softmax {
            axis,
            flatten: false,
        }) if last(*axis) => softmax_in_place(&rows, false)?,
        Step::Op(Op::LogSoftmax {
            axis,
            flatten: false,
        }) if last(*axis) => softmax_in_place(&rows, true)?,
        Step::Op(Op::LayerNormalization { axis, epsilon }) if last(*axis) => {
            let (scale, shift) = (inputs.get(1), inputs.get(2));
            let (Some(Some(scale)), Some(Some(shift))) = (scale, shift) else {
                return Ok(None);
            };
            let (Some(scale), Some(shift)) = (plain(Some(scale)), plain(Some(shift))) else {
                return Ok(None);
            };
            if scale.dims() != [n] || shift.dims() != [n] {
                return Ok(None);
            }
            layer_norm_in_place(&rows, scale, shift, f64::from(*epsilon))?;
        }
        _ => return Ok(None),
    }
    Ok(Some(Val::f32(x.clone())))
}

/// A chain written over its input.
struct Over<'a> {
    links: &'a [Link],
    sides: &'a [Side<'a>],
}

impl InplaceOp1 for Over<'_> {
    fn name(&self) -> &'static str {
        "chain"
    }
    fn cpu_fwd(&self, s: &mut CpuStorage, l: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(data) = s else {
            candle_core::bail!("a chain computes in f32")
        };
        match l.contiguous_offsets().and_then(|(a, b)| data.get_mut(a..b)) {
            Some(part) => chain(isa(), self.links, From::Out, self.sides, part),
            None => candle_core::bail!("a chain written in place lies in one piece"),
        }
        Ok(())
    }
}

/// Who works on several tensors' elements.
type Borrower<'w, R> = dyn FnMut(&[&[f32]]) -> Result<R, Fail> + 'w;

/// Lends the elements of several contiguous tensors at once.
fn with_all<R>(
    tensors: &[Tensor],
    lent: &mut Vec<&[f32]>,
    work: &mut Borrower<'_, R>,
) -> Result<R, Fail> {
    let Some((head, rest)) = tensors.split_first() else {
        return work(lent);
    };
    with_f32(head, |data| {
        let mut more: Vec<&[f32]> = lent.clone();
        more.push(data);
        with_all(rest, &mut more, work)
    })?
}
