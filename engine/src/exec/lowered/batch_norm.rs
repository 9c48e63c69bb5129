//! Training with the mini-batch's own statistics: every batch norm looks at the whole batch, so its pieces go from one batch norm to
//! the next side by side, forwards and backwards, and what they sum is added up in their order.

use super::{
    Kind, Lowered, Step,
    backward::{Loss, Sums},
    forward::{Spaces, Workspace},
    weights::Weights,
};
use crate::exec::{
    CancelToken, ExecError,
    kernels::planes::{self, Hands, Moments, PerChannel, Plane},
};
use candle_core::{Device, Result as CandleResult, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// A batch norm by slots of the program: scale, shift, mean, variance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    pub slots: [usize; 4],
    pub epsilon: f32,
}

/// What one batch norm saw in a mini-batch: entries by channel, the variance that of the population.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchStatistics {
    /// Where the running mean and variance stand in the program.
    pub(in crate::exec) slots: [usize; 2],
    pub mean: Vec<f32>,
    pub variance: Vec<f32>,
}

/// Statistics and parameters of a norm for the batch in work.
struct Found {
    /// 1/√(variance + ε).
    inverse: Vec<f32>,
    forward: PerChannel,
    count: f64,
}

impl Found {
    fn new(
        seen: &BatchStatistics,
        count: f64,
        norm: &Norm,
        scale: &[f32],
        shift: Vec<f32>,
    ) -> Self {
        let inverse: Vec<f32> = seen
            .variance
            .iter()
            .map(|v| 1.0 / (v + norm.epsilon).sqrt())
            .collect();
        let factor = scale.iter().zip(&inverse).map(|(s, i)| s * i).collect();
        Self {
            inverse,
            forward: PerChannel {
                mean: seen.mean.clone(),
                factor,
                shift,
            },
            count,
        }
    }
}

/// A piece of the batch on its way.
struct Piece<'a> {
    input: &'a [f32],
    rows: Range<usize>,
    space: Workspace,
    gradients: Workspace,
    sums: Sums,
    /// Of the norm that stands next.
    moments: Option<Moments>,
    /// Σ gradient and Σ gradient·(x − mean), of the norm that stands next on the way back.
    slopes: Option<(Vec<f64>, Vec<f64>)>,
}

/// Gradients of the effective weights; scales and shifts with their gradients; statistics, by norm.
type ByBatch = (Sums, Vec<(Tensor, Tensor)>, Vec<BatchStatistics>);

impl Lowered {
    /// One forward and backward pass of a network whose batch norms look at the whole batch, in pieces of `piece` images.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn by_batch(
        &self,
        weights: &Weights,
        (piece, places): (usize, &[Plane]),
        input: &[f32],
        slot: &dyn Fn(usize) -> CandleResult<Tensor>,
        loss: &Loss<'_>,
        spaces: &Spaces,
        cancel: &CancelToken,
    ) -> Result<ByBatch, ExecError> {
        let sample = self.planes[self.input].elements();
        let mut pieces: Vec<Piece<'_>> = input
            .chunks(piece * sample)
            .enumerate()
            .map(|(index, input)| Piece {
                input,
                rows: index * piece..index * piece + input.len() / sample,
                space: spaces.take(),
                gradients: spaces.take(),
                sums: Sums::new(self),
                moments: None,
                slopes: None,
            })
            .collect();
        let result = self.walk(weights, places, &mut pieces, slot, loss, cancel);
        let mut sums = Vec::with_capacity(pieces.len());
        for piece in pieces {
            spaces.give(piece.space);
            spaces.give(piece.gradients);
            sums.push(piece.sums);
        }
        let (norms, statistics) = result?;
        Ok((Sums::total(sums)?, norms, statistics))
    }

    #[allow(clippy::type_complexity)]
    fn walk(
        &self,
        weights: &Weights,
        places: &[Plane],
        pieces: &mut [Piece<'_>],
        slot: &dyn Fn(usize) -> CandleResult<Tensor>,
        loss: &Loss<'_>,
        cancel: &CancelToken,
    ) -> Result<(Vec<(Tensor, Tensor)>, Vec<BatchStatistics>), ExecError> {
        let stops: Vec<usize> = (0..self.steps.len())
            .filter(|at| matches!(self.steps[*at].kind, Kind::Norm { .. }))
            .collect();
        // Forwards, from one norm to the next. Norms are numbered in the order of their steps.
        let mut found: Vec<Found> = Vec::with_capacity(stops.len());
        let mut statistics = Vec::with_capacity(stops.len());
        let mut start = 0;
        for end in stops.iter().copied().map(Some).chain([None]) {
            let steps = start..end.unwrap_or(self.steps.len());
            pieces.par_iter_mut().try_for_each(|piece| {
                if steps.start == 0 {
                    self.begin(piece.input, piece.rows.len(), &mut piece.space);
                }
                for at in steps.clone() {
                    if cancel.is_cancelled() {
                        return Err(ExecError::Cancelled);
                    }
                    self.advance(weights, &found, &self.steps[at], piece);
                }
                match end.map(|end| &self.steps[end].kind) {
                    Some(Kind::Norm { input, .. }) => {
                        let x = (piece.space.values[*input].as_slice(), &self.planes[*input]);
                        piece.moments = Some(Moments::of(piece.rows.len(), x));
                    }
                    _ => {
                        let rows = piece.rows.clone();
                        let (space, gradients) = (&piece.space, &mut piece.gradients);
                        piece.sums.loss = self.judge(places, rows, loss, space, gradients)?;
                    }
                }
                Ok(())
            })?;
            let Some(end) = end else { break };
            start = end;
            let norm = &self.norms[found.len()];
            let mut all: Option<Moments> = None;
            for piece in &mut *pieces {
                if let Some(own) = piece.moments.take() {
                    match &mut all {
                        Some(all) => all.join(&own),
                        None => all = Some(own),
                    }
                }
            }
            let all =
                all.ok_or_else(|| ExecError::Input("an empty batch has no gradients".into()))?;
            let [scale, shift, mean, variance] = norm.slots;
            let seen = BatchStatistics {
                slots: [mean, variance],
                mean: all.mean.iter().map(|m| *m as f32).collect(),
                variance: all.variance().map(|v| v as f32).collect(),
            };
            let values = |at: usize| slot(at)?.detach().flatten_all()?.to_vec1::<f32>();
            found.push(Found::new(
                &seen,
                all.count,
                norm,
                &values(scale)?,
                values(shift)?,
            ));
            statistics.push(seen);
        }
        // Backwards likewise. A norm's input has its gradient once all pieces' sums are known.
        let mut parameters = Vec::with_capacity(stops.len());
        if pieces.iter().any(|piece| !piece.sums.loss.is_finite()) {
            return Ok((parameters, statistics));
        }
        let mut end = self.steps.len();
        let mut waiting: Option<(usize, Vec<f32>, PerChannel)> = None;
        for start in stops.iter().rev().copied().map(Some).chain([None]) {
            let steps = start.map_or(0, |at| at + 1)..end;
            pieces.par_iter_mut().try_for_each(|piece| {
                if let Some((at, slope, by)) = &waiting {
                    self.norm_back(&self.steps[*at], places, piece, slope, by);
                }
                let n = piece.rows.len();
                for step in self.steps[steps.clone()].iter().rev() {
                    self.step_back(
                        weights,
                        places,
                        step,
                        n,
                        &piece.space,
                        &mut piece.gradients,
                        &mut piece.sums,
                        cancel,
                    )?;
                }
                if let Some(at) = start {
                    self.norm_sums(&self.steps[at], &found, places, piece);
                }
                Ok::<_, ExecError>(())
            })?;
            let Some(at) = start else { break };
            end = at;
            waiting = None;
            let Kind::Norm { norm, .. } = self.steps[at].kind else {
                unreachable!("stops are norms")
            };
            let channels = found[norm].inverse.len();
            let mut total = (vec![0.0f64; channels], vec![0.0f64; channels]);
            let mut any = false;
            for slopes in pieces.iter_mut().filter_map(|piece| piece.slopes.take()) {
                any = true;
                for (total, own) in [(&mut total.0, slopes.0), (&mut total.1, slopes.1)] {
                    total.iter_mut().zip(own).for_each(|(t, o)| *t += o);
                }
            }
            if !any {
                continue;
            }
            let (slope, by, gradients) = found[norm].backward(&total);
            for (slot_of, gradient) in self.norms[norm].slots.into_iter().zip(gradients) {
                let gradient = Tensor::from_vec(gradient, channels, &Device::Cpu)?;
                parameters.push((slot(slot_of)?, gradient));
            }
            waiting = Some((at, slope, by));
        }
        Ok((parameters, statistics))
    }

    fn advance(&self, weights: &Weights, found: &[Found], step: &Step, piece: &mut Piece<'_>) {
        let n = piece.rows.len();
        let Kind::Norm {
            input,
            norm,
            added,
            limits,
        } = &step.kind
        else {
            return self.take(weights, step, n, &mut piece.space, Hands::Alone);
        };
        let mut out = self.fresh(&mut piece.space, step.output, n);
        let value = |id: usize| (piece.space.values[id].as_slice(), &self.planes[id]);
        let to = (out.as_mut_slice(), &self.planes[step.output]);
        let by = &found[*norm].forward;
        planes::normalise(n, value(*input), by, added.map(value), to, *limits);
        piece.space.values[step.output] = out;
    }

    /// Takes the output's gradient through the limits and on to what was added, and sums it by channel. What is left stays where it was.
    fn norm_sums(&self, step: &Step, found: &[Found], places: &[Plane], piece: &mut Piece<'_>) {
        let Kind::Norm {
            input,
            norm,
            added,
            limits,
        } = &step.kind
        else {
            unreachable!("stops are norms")
        };
        let n = piece.rows.len();
        let mut gradient = std::mem::take(&mut piece.gradients.values[step.output]);
        if gradient.is_empty() {
            return;
        }
        let place = &places[step.output];
        let value = |id: usize| (piece.space.values[id].as_slice(), &self.planes[id]);
        if *limits != (f32::NEG_INFINITY, f32::INFINITY) {
            let result = value(step.output);
            planes::gate(n, None, result, (&mut gradient, place), *limits);
        }
        if let Some(other) = added {
            self.pass(*other, n, places, &mut piece.gradients, (&gradient, place));
        }
        let mean = &found[*norm].forward.mean;
        piece.slopes = Some(planes::gradient_sums(
            n,
            (&gradient, place),
            value(*input),
            mean,
        ));
        piece.gradients.values[step.output] = gradient;
    }

    /// From the output's gradient to the input's.
    fn norm_back(
        &self,
        step: &Step,
        places: &[Plane],
        piece: &mut Piece<'_>,
        slope: &[f32],
        by: &PerChannel,
    ) {
        let Kind::Norm { input, .. } = &step.kind else {
            unreachable!("stops are norms")
        };
        let gradient = std::mem::take(&mut piece.gradients.values[step.output]);
        if *input != self.input {
            let n = piece.rows.len();
            let (mut to, more) = self.target(*input, n, places, &mut piece.gradients);
            let x = (piece.space.values[*input].as_slice(), &self.planes[*input]);
            let out = (to.as_mut_slice(), &places[*input]);
            planes::norm_gradient(
                n,
                (&gradient, &places[step.output]),
                slope,
                x,
                by,
                out,
                more,
            );
            piece.gradients.values[*input] = to;
        }
        piece.gradients.give(gradient);
    }
}

impl Found {
    /// From Σ g and Σ g·(x − mean) to what makes `slope·g + (x − mean)·factor + shift` the input's gradient, and to those of scale and shift:
    /// `γ/σ·(g − mean(g) − x̂·mean(g·x̂))` with `x̂ = (x − mean)/σ`.
    fn backward(
        &self,
        (plain, with_x): &(Vec<f64>, Vec<f64>),
    ) -> (Vec<f32>, PerChannel, [Vec<f32>; 2]) {
        let slope = self.forward.factor.clone();
        let each =
            |f: &dyn Fn(usize) -> f64| (0..slope.len()).map(|c| f(c) as f32).collect::<Vec<f32>>();
        let inverse = |c: usize| f64::from(self.inverse[c]);
        let of_scale = each(&|c| with_x[c] * inverse(c));
        let of_shift = each(&|c| plain[c]);
        let by = PerChannel {
            mean: self.forward.mean.clone(),
            factor: each(&|c| {
                -f64::from(slope[c]) * inverse(c) * inverse(c) * with_x[c] / self.count
            }),
            shift: each(&|c| -f64::from(slope[c]) * plain[c] / self.count),
        };
        (slope, by, [of_scale, of_shift])
    }
}
