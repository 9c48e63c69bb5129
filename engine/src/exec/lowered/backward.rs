//! Gradients of a lowered network: pieces of the batch are shared out to threads, and each goes forward and backward group by group,
//! so that what backward needs is still in the cache; gradients are added up in the pieces' and groups' order, whatever the number
//! of threads.

use super::{
    Id, Kind, Lowered, Step, TwoWay,
    batch_norm::BatchStatistics,
    forward::{Spaces, Workspace, inside},
    weights::{Effective, Ready, Spec, Weights},
};
use crate::exec::{
    CancelToken, ExecError,
    kernels::planes::{self, Buffer, Hands, Plane, Tail, WeightGradient, isa},
};
use candle_core::{Device, Result as CandleResult, Tensor, Var, backprop::GradStore};
use rayon::prelude::*;
use std::ops::Range;

/// Pieces that a batch falls into at most: each has gradients of all weights of its own. Part of what a sum's bits are.
const PIECES: usize = 8;

/// Floats that the activations of a group may take: twice what a core's own cache holds on the machines at hand measured best.
const GROUP: usize = 1 << 20;

/// Floats that the gradients of all pieces together may take (512 MB).
const PIECE_FLOATS: usize = 1 << 27;

/// What is trained, as tensors that gradients flow through: weights as they take effect, learned step sizes of activations.
struct Trained {
    effective: Vec<Effective>,
    scales: Vec<Tensor>,
}

/// The loss of some samples of the batch, their share of the whole batch's, from their rows of the outputs.
pub type Loss<'a> = dyn Fn(Range<usize>, &[Tensor]) -> CandleResult<Tensor> + Sync + 'a;

/// What a step of training needs: the loss, and its gradients by parameter.
pub struct Gradients {
    pub loss: f64,
    pub store: GradStore,
    /// What the batch norms saw, where they take the mini-batch's statistics (`Program::set_batch_statistics`).
    pub statistics: Vec<BatchStatistics>,
}

/// Gradients of the effective weights and of learned step sizes of activations, of one piece.
pub(super) struct Sums {
    pub loss: f64,
    pub weights: Vec<Sum>,
    pub scales: Vec<f64>,
}

impl Sums {
    pub fn new(form: &Lowered) -> Self {
        Self {
            loss: 0.0,
            weights: form.specs.iter().map(Sum::new).collect(),
            scales: vec![0.0; form.learned.len()],
        }
    }

    /// All of them, added up in their order.
    pub fn total(all: Vec<Self>) -> Result<Self, ExecError> {
        let mut sums = all.into_iter();
        let Some(mut total) = sums.next() else {
            return Err(ExecError::Input("an empty batch has no gradients".into()));
        };
        for piece in sums {
            total.loss += piece.loss;
            for (own, other) in total.weights.iter_mut().zip(&piece.weights) {
                own.add(other);
            }
            for (own, other) in total.scales.iter_mut().zip(&piece.scales) {
                *own += other;
            }
        }
        Ok(total)
    }
}

pub(super) enum Sum {
    Dense(WeightGradient, Vec<f32>),
    Depthwise(Vec<f32>, Vec<f32>),
}

impl Sum {
    fn new(spec: &Spec) -> Self {
        let bias = vec![0.0; spec.outputs()];
        if spec.depthwise {
            Self::Depthwise(vec![0.0; spec.outputs() * spec.taps], bias)
        } else {
            Self::Dense(WeightGradient::new(isa(), spec.sizes()), bias)
        }
    }

    /// What it holds, lanes that fill up vectors included.
    fn floats(spec: &Spec) -> usize {
        let width = isa().width();
        spec.groups * spec.channels.div_ceil(width) * width * spec.depth * spec.taps
    }

    fn add(&mut self, other: &Self) {
        let plus = |own: &mut [f32], other: &[f32]| {
            own.iter_mut().zip(other).for_each(|(a, b)| *a += b);
        };
        match (self, other) {
            (Self::Dense(a, p), Self::Dense(b, q)) => {
                a.add(b);
                plus(p, q);
            }
            (Self::Depthwise(a, p), Self::Depthwise(b, q)) => {
                plus(a, b);
                plus(p, q);
            }
            _ => unreachable!("pieces of one batch have the same weights"),
        }
    }

    /// Outputs × depth·taps, and outputs.
    fn tensors(&self, spec: &Spec) -> CandleResult<(Tensor, Tensor)> {
        let o = spec.outputs();
        let (weight, bias) = match self {
            Self::Dense(sums, bias) => (sums.to_weight(), bias),
            Self::Depthwise(sums, bias) => {
                let by_channel = (0..sums.len())
                    .map(|i| sums[i % spec.taps * o + i / spec.taps])
                    .collect();
                (by_channel, bias)
            }
        };
        let weight = Tensor::from_vec(weight, (o, spec.depth * spec.taps), &Device::Cpu)?;
        Ok((weight, Tensor::from_slice(bias, o, &Device::Cpu)?))
    }
}

impl Lowered {
    /// Why gradients are to be taken the general way, if they are.
    pub(in crate::exec) fn untrainable(&self) -> Option<&'static str> {
        self.untrainable
    }

    /// The weights as they take effect, and packed for both directions, with step sizes that are learned.
    fn effective_both_ways(
        &self,
        slot: &dyn Fn(usize) -> CandleResult<Tensor>,
    ) -> CandleResult<(Trained, Weights)> {
        let effective = self
            .specs
            .iter()
            .map(|spec| spec.effective(slot))
            .collect::<CandleResult<Vec<Effective>>>()?;
        let each = |at: usize| Ok(effective[at].clone());
        let mut weights = Weights::pack(&self.specs, &each, true, None)?;
        let scales = self.learned.iter().map(|at| slot(*at));
        let scales = scales.collect::<CandleResult<Vec<Tensor>>>()?;
        for scale in &scales {
            weights.scales.push(scale.reshape(())?.to_scalar::<f32>()?);
        }
        Ok((Trained { effective, scales }, weights))
    }

    /// The weights that `slot` gives, packed for both directions.
    pub(in crate::exec) fn two_way(
        &self,
        slot: &dyn Fn(usize) -> CandleResult<Tensor>,
    ) -> CandleResult<TwoWay> {
        let each = |at: usize| self.specs[at].effective(slot);
        Ok(TwoWay(Weights::pack(&self.specs, &each, true, None)?))
    }

    /// One forward and backward pass over a batch. `slot` gives the model's weights as tensors that gradients flow through.
    pub(in crate::exec) fn gradients(
        &self,
        input: &[f32],
        images: usize,
        slot: &dyn Fn(usize) -> CandleResult<Tensor>,
        loss: &Loss<'_>,
        spaces: &Spaces,
        cancel: &CancelToken,
    ) -> Result<Gradients, ExecError> {
        let (trained, weights) = self.effective_both_ways(slot)?;
        let sample = self.planes[self.input].elements();
        // By sizes only: the cut is part of what the sums' bits are.
        let floats: usize = self.specs.iter().map(Sum::floats).sum();
        let pieces = (PIECE_FLOATS / floats.max(1)).clamp(1, PIECES);
        let piece = images.div_ceil(pieces).max(1);
        let group = self.group(piece);
        let places = gradient_planes(&self.planes, &self.steps);
        if !self.norms.is_empty() {
            let pieces = (piece, places.as_slice());
            let (total, norms, statistics) =
                self.by_batch(&weights, pieces, input, slot, loss, spaces, cancel)?;
            return self.finish(&trained, total, norms, statistics);
        }
        let sums = input
            .par_chunks(piece * sample)
            .enumerate()
            .map(|(index, input)| {
                let n = input.len() / sample;
                let rows = index * piece..index * piece + n;
                spaces.with(|space| {
                    spaces.with(|gradients| {
                        let mut sums = Sums::new(self);
                        for (at, input) in input.chunks(group * sample).enumerate() {
                            let first = rows.start + at * group;
                            let rows = first..first + input.len() / sample;
                            self.group_gradients(
                                &weights, &places, input, rows, loss, space, gradients, &mut sums,
                                cancel,
                            )?;
                        }
                        Ok(sums)
                    })
                })
            })
            .collect::<Result<Vec<Sums>, ExecError>>()?;
        self.finish(&trained, Sums::total(sums)?, Vec::new(), Vec::new())
    }

    /// From the effective weights' gradients, and those of learned step sizes and of the `norms`' scales and shifts, to the parameters'.
    fn finish(
        &self,
        trained: &Trained,
        total: Sums,
        norms: Vec<(Tensor, Tensor)>,
        statistics: Vec<BatchStatistics>,
    ) -> Result<Gradients, ExecError> {
        // From the effective weights to the parameters: through folding, masks and fake quantisation, which candle knows.
        let mut surrogate: Option<Tensor> = None;
        let mut pairs = norms;
        let effective = self.specs.iter().zip(&trained.effective);
        for ((spec, effective), sum) in effective.zip(&total.weights) {
            let (weight, bias) = sum.tensors(spec)?;
            pairs.push((effective.weight.clone(), weight));
            pairs.push((effective.bias.clone(), bias));
        }
        // Step sizes that stand in one slot are one tensor's: their gradients add up.
        for (scale, sum) in trained.scales.iter().zip(&total.scales) {
            let sum = Tensor::new(*sum as f32, &Device::Cpu)?.reshape(scale.shape())?;
            pairs.push((scale.clone(), sum));
        }
        for (value, gradient) in pairs {
            if !value.track_op() {
                continue;
            }
            let term = (value * gradient)?.sum_all()?;
            surrogate = Some(match surrogate {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        let Some(surrogate) = surrogate else {
            return Err(ExecError::Input("nothing in the model is trained".into()));
        };
        Ok(Gradients {
            loss: total.loss,
            store: surrogate.backward()?,
            statistics,
        })
    }

    /// Images of a piece that go forward and back together: their activations are still in the core's cache on the way back. By
    /// sizes only, and such that a piece falls into groups of about the same size.
    fn group(&self, piece: usize) -> usize {
        let live: usize = self.planes.iter().map(Plane::size).sum();
        let most = (GROUP / live.max(1)).clamp(1, piece);
        piece.div_ceil(piece.div_ceil(most))
    }

    /// Adds one group's loss and gradients to its piece's.
    #[allow(clippy::too_many_arguments)]
    fn group_gradients(
        &self,
        weights: &Weights,
        places: &[Plane],
        input: &[f32],
        rows: Range<usize>,
        loss: &Loss<'_>,
        space: &mut Workspace,
        gradients: &mut Workspace,
        sums: &mut Sums,
        cancel: &CancelToken,
    ) -> Result<(), ExecError> {
        let n = rows.len();
        self.forward(weights, input, n, space, true, Hands::Alone, cancel)?;
        sums.loss += self.judge(places, rows, loss, space, gradients)?;
        if !sums.loss.is_finite() {
            return Ok(());
        }
        for step in self.steps.iter().rev() {
            self.step_back(weights, places, step, n, space, gradients, sums, cancel)?;
        }
        Ok(())
    }

    /// The loss of the samples `rows`; where it is finite, its gradient by the outputs stands in `gradients`.
    pub(super) fn judge(
        &self,
        places: &[Plane],
        rows: Range<usize>,
        loss: &Loss<'_>,
        space: &Workspace,
        gradients: &mut Workspace,
    ) -> Result<f64, ExecError> {
        let n = rows.len();
        let outputs = self
            .outputs
            .iter()
            .map(|output| {
                let plane = &self.planes[output.value];
                let values = self.export(&space.values[output.value], output.value, n);
                let shape = if output.flat {
                    vec![n, plane.c]
                } else {
                    vec![n, plane.c, plane.h, plane.w]
                };
                Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)
            })
            .collect::<CandleResult<Vec<Var>>>()?;
        let tensors: Vec<Tensor> = outputs.iter().map(|v| v.as_tensor().clone()).collect();
        let value = loss(rows, &tensors)?;
        let number = f64::from(value.to_scalar::<f32>()?);
        gradients.clear(self.planes.len());
        if !number.is_finite() {
            return Ok(number);
        }
        let store = value.backward()?;
        for (output, var) in self.outputs.iter().zip(&outputs) {
            let Some(gradient) = store.get(var) else {
                continue;
            };
            let flat = gradient.flatten_all()?.to_vec1::<f32>()?;
            let own = &self.planes[output.value];
            let plane = Plane::new(own.h, own.w, own.c);
            let mut buffer = vec![0.0; flat.len()];
            planes::from_nchw(n, &flat, (&mut buffer, &plane));
            self.pass(output.value, n, places, gradients, (&buffer, &plane));
        }
        Ok(number)
    }

    /// One step back, from the gradient of its output as it stands in `gradients`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn step_back(
        &self,
        weights: &Weights,
        places: &[Plane],
        step: &Step,
        n: usize,
        space: &Workspace,
        gradients: &mut Workspace,
        sums: &mut Sums,
        cancel: &CancelToken,
    ) -> Result<(), ExecError> {
        if cancel.is_cancelled() {
            return Err(ExecError::Cancelled);
        }
        let gradient = std::mem::take(&mut gradients.values[step.output]);
        if gradient.is_empty() {
            return Ok(());
        }
        let gradient = self.back(
            weights,
            places,
            &step.kind,
            step.output,
            n,
            space,
            gradients,
            gradient,
            Some(sums),
        );
        gradients.give(gradient);
        Ok(())
    }

    /// The gradient buffer of a value, and whether something stands in it already.
    pub(super) fn target(
        &self,
        value: Id,
        n: usize,
        places: &[Plane],
        gradients: &mut Workspace,
    ) -> (Buffer, bool) {
        let buffer = std::mem::take(&mut gradients.values[value]);
        if !buffer.is_empty() {
            return (buffer, true);
        }
        let plane = &places[value];
        let mut buffer = gradients.take(n * plane.size());
        plane.clear_margin(&mut buffer, n);
        (buffer, false)
    }

    /// Adds `gradient` to that of `value`.
    pub(super) fn pass(
        &self,
        value: Id,
        n: usize,
        places: &[Plane],
        gradients: &mut Workspace,
        gradient: (&[f32], &Plane),
    ) {
        if value == self.input {
            return;
        }
        let (mut buffer, more) = self.target(value, n, places, gradients);
        let plane = &places[value];
        if more {
            let open = (f32::NEG_INFINITY, f32::INFINITY);
            planes::add(n, gradient, None, (&mut buffer, plane), open);
        } else {
            planes::copy(n, gradient, (&mut buffer, plane));
        }
        gradients.values[value] = buffer;
    }

    /// From one step's output to its inputs and, where their `sums` are wanted, its weights. Gives the output's gradient back.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn back(
        &self,
        weights: &Weights,
        places: &[Plane],
        kind: &Kind,
        output: Id,
        n: usize,
        space: &Workspace,
        gradients: &mut Workspace,
        mut gradient: Buffer,
        sums: Option<&mut Sums>,
    ) -> Buffer {
        let place = &places[output];
        let result = (space.values[output].as_slice(), &self.planes[output]);
        let open = |low: f32, high: f32| low == f32::NEG_INFINITY && high == f32::INFINITY;
        match kind {
            Kind::Conv {
                input,
                window,
                weight,
                added,
                tail,
            }
            | Kind::Depthwise {
                input,
                window,
                weight,
                added,
                tail,
            } => {
                if !open(tail.low, tail.high) {
                    let limits = (tail.low, tail.high);
                    planes::gate(n, None, result, (&mut gradient, place), limits);
                }
                if let Some(other) = added {
                    self.pass(*other, n, places, gradients, (&gradient, place));
                }
                let from = &self.planes[*input];
                let x = space.values[*input].as_slice();
                let spec = &self.specs[*weight];
                let sweep = window.forward(n, from, place);
                match sums.map(|sums| &mut sums.weights[*weight]) {
                    Some(Sum::Dense(sum, bias)) => {
                        planes::weight_gradient(&sweep, x, &gradient, sum);
                        planes::bias_gradient(n, (&gradient, place), bias);
                    }
                    Some(Sum::Depthwise(sum, bias)) => {
                        planes::depthwise_weight_gradient(&sweep, spec.groups, x, &gradient, sum);
                        planes::bias_gradient(n, (&gradient, place), bias);
                    }
                    None => {}
                }
                if *input == self.input {
                    return gradient;
                }
                let (mut to, more) = self.target(*input, n, places, gradients);
                for mut sweep in window.backward(n, place, &places[*input]) {
                    sweep.added = more.then_some(sweep.output);
                    match (&*weights.ready[*weight], &weights.backward[*weight]) {
                        (Ready::Depthwise { weight, .. }, _) => planes::depthwise(
                            &sweep,
                            spec.groups,
                            weight,
                            None,
                            &gradient,
                            None,
                            &mut to,
                            Tail::NONE,
                        ),
                        (_, Some(packed)) => {
                            planes::conv(&sweep, packed, &gradient, None, &mut to, Tail::NONE);
                        }
                        _ => unreachable!("dense weights are packed for both ways"),
                    }
                }
                gradients.values[*input] = to;
            }
            Kind::Add { a, b, limits } => {
                if !open(limits.0, limits.1) {
                    planes::gate(n, None, result, (&mut gradient, place), *limits);
                }
                self.pass(*a, n, places, gradients, (&gradient, place));
                self.pass(*b, n, places, gradients, (&gradient, place));
            }
            Kind::Clip { input, limits } => {
                planes::gate(n, None, result, (&mut gradient, place), *limits);
                self.pass(*input, n, places, gradients, (&gradient, place));
            }
            Kind::Quant {
                input,
                quant,
                learned,
            } => {
                let quant = weights.quant(quant, *learned);
                let x = (space.values[*input].as_slice(), &self.planes[*input]);
                if let (Some(at), Some(sums)) = (learned, sums) {
                    sums.scales[*at] += planes::step_gradient(n, x, (&gradient, place), &quant);
                }
                if *input == self.input {
                    return gradient;
                }
                let (mut to, more) = self.target(*input, n, places, gradients);
                if !more {
                    to.fill(0.0);
                }
                let plane = &places[*input];
                planes::fake_quant_gradient(n, x, (&gradient, place), (&mut to, plane), &quant);
                gradients.values[*input] = to;
            }
            Kind::Mean { input } => {
                if *input == self.input {
                    return gradient;
                }
                let (mut to, more) = self.target(*input, n, places, gradients);
                let plane = &places[*input];
                let share = 1.0 / (plane.h * plane.w) as f32;
                for i in 0..n {
                    let g = &gradient[i * place.size() + place.origin()..][..plane.c];
                    for y in 0..plane.h {
                        let at = i * plane.size() + plane.origin() + y * plane.row();
                        for pixel in to[at..at + plane.w * plane.c].chunks_exact_mut(plane.c) {
                            for (to, g) in pixel.iter_mut().zip(g) {
                                *to = if more { *to + g * share } else { g * share };
                            }
                        }
                    }
                }
                gradients.values[*input] = to;
            }
            Kind::Average { input, window, .. } => {
                if *input == self.input {
                    return gradient;
                }
                let (mut to, more) = self.target(*input, n, places, gradients);
                let share = 1.0 / window.taps() as f32;
                for sweep in window.backward(n, place, &places[*input]) {
                    let c = places[*input].c;
                    planes::sum_windows(&sweep, c, &gradient, &mut to, |_, _| share, !more);
                }
                gradients.values[*input] = to;
            }
            Kind::Max { input, window } => {
                if *input == self.input {
                    return gradient;
                }
                let (mut to, more) = self.target(*input, n, places, gradients);
                if !more {
                    to.fill(0.0);
                }
                self.back_to_largest(
                    *input,
                    window,
                    n,
                    space,
                    result,
                    (&gradient, place),
                    (&mut to, &places[*input]),
                );
                gradients.values[*input] = to;
            }
            Kind::Flatten { input } => {
                let own = &self.planes[*input];
                let plane = Plane::new(own.h, own.w, own.c);
                let flat: Vec<f32> = (0..n)
                    .flat_map(|i| gradient[i * place.size() + place.origin()..][..place.c].to_vec())
                    .collect();
                let mut buffer = vec![0.0; flat.len()];
                planes::from_nchw(n, &flat, (&mut buffer, &plane));
                self.pass(*input, n, places, gradients, (&buffer, &plane));
            }
            Kind::Norm { .. } => {
                unreachable!("batch norms of a batch's statistics go back in `by_batch`")
            }
            Kind::Scale { .. } | Kind::Map { .. } | Kind::Concat { .. } | Kind::Softmax { .. } => {
                unreachable!("networks with these are trained the general way")
            }
        }
        gradient
    }

    /// Each output's gradient to the first of its window's elements that is the largest.
    #[allow(clippy::too_many_arguments)]
    fn back_to_largest(
        &self,
        input: Id,
        window: &planes::Window2d,
        n: usize,
        space: &Workspace,
        result: (&[f32], &Plane),
        gradient: (&[f32], &Plane),
        (to, plane): (&mut [f32], &Plane),
    ) {
        let from = &self.planes[input];
        let x = &space.values[input];
        let place = |p: &Plane, i: usize, y: usize, x: usize| {
            i * p.size() + p.origin() + y * p.row() + x * p.c
        };
        for i in 0..n {
            for y in 0..window.h {
                for xx in 0..window.w {
                    let r = place(result.1, i, y, xx);
                    let g = place(gradient.1, i, y, xx);
                    for c in 0..from.c {
                        let found = (0..window.taps()).find_map(|tap| {
                            if !inside(window, from, y, xx, tap) {
                                return None;
                            }
                            let (ky, kx) = (tap / window.kernel.1, tap % window.kernel.1);
                            let row =
                                y * window.stride.0 + ky * window.dilation.0 - window.before.0;
                            let column =
                                xx * window.stride.1 + kx * window.dilation.1 - window.before.1;
                            let same = x[place(from, i, row, column) + c] == result.0[r + c];
                            same.then_some((row, column))
                        });
                        if let Some((row, column)) = found {
                            to[place(plane, i, row, column) + c] += gradient.0[g + c];
                        }
                    }
                }
            }
        }
    }
}

/// Where the gradients of values lie: with the margin that the sweeps back over the window that made a value want.
pub(super) fn gradient_planes(values: &[Plane], steps: &[Step]) -> Vec<Plane> {
    let bare = |p: &Plane| Plane::new(p.h, p.w, p.c);
    let mut planes: Vec<Plane> = values.iter().map(bare).collect();
    for step in steps {
        let (Kind::Conv { input, window, .. }
        | Kind::Depthwise { input, window, .. }
        | Kind::Average { input, window, .. }) = &step.kind
        else {
            continue;
        };
        let from = &values[*input];
        planes[step.output].margin = window.gradient_margin(from.h, from.w);
    }
    planes
}
