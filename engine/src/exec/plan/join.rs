//! Finding what can be joined: patterns of small operators, products with what belongs to them, chains.

use super::{Item, Joiner, Work};
use crate::{
    exec::{
        elementwise::Bin,
        fuse::Step,
        kernels::chain::{Link, joins},
        scalar::Fun,
        value::Val,
    },
    graph::{BinaryOp, ElementType, Op, ReduceOp, UnaryOp, VariadicOp},
};

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
        let slot = slot?;
        if self.constants.shape(&slot)?.iter().any(|d| *d != 1) {
            return None;
        }
        match self.constants.get(&slot)? {
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
    pub(super) fn layer_norm(&mut self, last: usize) -> Option<()> {
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
            slot.is_some_and(|slot| match self.constants.shape(&slot) {
                Some(shape) => shape.len() == 1,
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
    pub(super) fn gelu(&mut self, last: usize) -> Option<()> {
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
    pub(super) fn product(&mut self, at: usize) -> Option<()> {
        if !matches!(self.op(at)?, Op::MatMul) {
            return None;
        }
        let made = self.output(at)?;
        let &[_, n] = self.constants.shape(&self.input(at, 1)?)? else {
            return None;
        };
        let add = self.reader(made)?;
        let (_, vector) = self
            .orders(add, Bin::Add)
            .into_iter()
            .find(|(product, _)| *product == Some(made))?;
        let vector = vector?;
        if self.constants.shape(&vector)? != [n] || !self.only_read_within(&[at, add]) {
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
    pub(super) fn view(&mut self, at: usize) -> Option<()> {
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
    pub(super) fn chain(&mut self, first: usize) -> Option<()> {
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
