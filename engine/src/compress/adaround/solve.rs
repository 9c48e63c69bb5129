//! The roundings of one layer, by the relaxation of `layerwise/soft.rs`. The outputs of a layer do not depend on each other's weights, so
//! they are solved in pieces of fixed size, each by one thread.

use super::AdaRoundSettings;
use crate::{
    compress::{
        CompressError,
        layerwise::{Penalty, Positions, Problem, Seen, Shrinkage, Soft},
    },
    exec::{CancelToken, ExecError, kernels::dot},
};
use rayon::prelude::*;

/// Outputs of one group that are solved together.
struct Piece {
    group: usize,
    outputs: std::ops::Range<usize>,
}

/// Chooses all codes of a layer, counted from the zero points.
pub(super) fn solve(
    problem: &Problem,
    settings: &AdaRoundSettings,
    seen: &Seen<'_>,
    cancel: &CancelToken,
) -> Result<Vec<i32>, CompressError> {
    // The pieces hang on the layer alone, not on the number of threads.
    let together = (problem.outputs / 4).clamp(4, 128);
    let mut pieces = Vec::new();
    for group in 0..problem.groups {
        for first in (0..problem.outputs).step_by(together) {
            let outputs = first..problem.outputs.min(first + together);
            pieces.push(Piece { group, outputs });
        }
    }
    let shape = (problem.depth, seen.rows);
    let groups: Vec<Positions<'_>> = (0..problem.groups)
        .map(|group| seen.of_group(group, problem.depth))
        .map(|x| Positions::new(x, shape, problem.outputs))
        .collect();
    let samples = seen.fitted_samples();
    let shrinkages: Vec<Shrinkage> = (0..problem.groups)
        .into_par_iter()
        .map(|group| match settings.damping > 0.0 {
            true => Shrinkage::of(seen, &samples, (group, problem.depth), cancel),
            false => Ok(Shrinkage::default()),
        })
        .collect::<Result<_, _>>()?;
    let solved: Vec<Vec<i32>> = pieces
        .par_iter()
        .map(|piece| {
            part(
                problem,
                settings,
                (seen, &groups[piece.group]),
                shrinkages[piece.group],
                piece,
                cancel,
            )
        })
        .collect::<Result<_, _>>()?;
    Ok(solved.concat())
}

fn part(
    problem: &Problem,
    settings: &AdaRoundSettings,
    (seen, read): (&Seen<'_>, &Positions<'_>),
    shrinkage: Shrinkage,
    piece: &Piece,
    cancel: &CancelToken,
) -> Result<Vec<i32>, CompressError> {
    let rows = seen.rows;
    let depth = problem.depth;
    let first = piece.group * problem.outputs + piece.outputs.start;
    let count = piece.outputs.len();
    let span = first * depth..(first + count) * depth;
    let x = seen.of_group(piece.group, depth);
    let wanted = &seen.target[first * rows..(first + count) * rows];
    let bias = &problem.bias[first..first + count];
    let scales: Vec<f32> = span.clone().map(|i| problem.scale(i)).collect();
    let fitted = seen.fitted();
    let batch = settings.batch.min(fitted);
    let windows = fitted / batch;

    let mut soft = Soft::new(problem, span.clone());
    // What one weight's own rounding costs, on average over an output: errors are counted in units of it, so that the
    // penalty means the same for every layer.
    let power: Vec<f64> = (0..depth)
        .map(|k| {
            let row = &x[k * rows..k * rows + fitted];
            f64::from(dot(row, row)) / fitted as f64
        })
        .collect();
    let units: Vec<f32> = (0..count)
        .map(|o| {
            let cost: f64 = power
                .iter()
                .zip(&scales[o * depth..])
                .map(|(p, s)| p * f64::from(*s).powi(2))
                .sum();
            let unit = cost / depth as f64;
            if unit > 0.0 { (1.0 / unit) as f32 } else { 0.0 }
        })
        .collect();
    let (by_positions, by_itself) = shrinkage.shares(settings.damping);
    let floats = &problem.weights[span];
    if units.iter().any(|u| *u > 0.0) {
        let mut weights = vec![0.0; count * depth];
        let mut outputs = vec![0.0; count * batch];
        let mut gradient = vec![0.0; count * depth];
        for step in 0..settings.iterations {
            if step % 32 == 0 && cancel.is_cancelled() {
                return Err(ExecError::Cancelled.into());
            }
            let at = step % windows * batch;
            soft.weights(&scales, &mut weights);
            read.product(&weights, at, batch, &mut outputs);
            for (o, out) in outputs.chunks_exact_mut(batch).enumerate() {
                let wanted = &wanted[o * rows + at..][..batch];
                let factor = 2.0 / batch as f32 * units[o];
                residual(out, wanted, bias[o], problem.limits, factor);
                if by_itself > 0.0 {
                    around_mean(out, by_positions as f32);
                }
            }
            read.backward(&outputs, at, batch, &mut gradient);
            // By itself, as if inputs did not go together, each weight is best left where it was.
            let alone = weights.chunks_exact(depth).zip(floats.chunks_exact(depth));
            let damped = gradient.chunks_exact_mut(depth).zip(alone).zip(&units);
            for ((gradient, (now, float)), unit) in damped.filter(|_| by_itself > 0.0) {
                let factor = 2.0 * unit * (by_itself * shrinkage.variance) as f32;
                for (g, (now, float)) in gradient.iter_mut().zip(now.iter().zip(float)) {
                    *g += factor * (now - float);
                }
            }
            for (g, s) in gradient.iter_mut().zip(&scales) {
                *g *= s;
            }
            let penalty = Penalty::at(step, settings.iterations, settings.decision);
            soft.step(&gradient, step, settings.rate, penalty);
        }
    }
    Ok(soft.codes())
}

/// From outputs before the bias to the gradient of the squared error by them, times `factor` / 2.
fn residual(out: &mut [f32], wanted: &[f32], bias: f32, (lo, hi): (f32, f32), factor: f32) {
    for (out, wanted) in out.iter_mut().zip(wanted) {
        let y = *out + bias;
        let inside = f32::from(u8::from(y > lo && y < hi));
        *out = (y.clamp(lo, hi) - wanted) * factor * inside;
    }
}

/// Leaves `share` of what errors are beside their mean: means are not chance.
fn around_mean(errors: &mut [f32], share: f32) {
    let mean = errors.iter().sum::<f32>() / errors.len() as f32;
    // Where the activation function lets nothing through there is no gradient.
    for error in errors.iter_mut().filter(|e| **e != 0.0) {
        *error = mean + share * (*error - mean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against all 2¹⁰ choices, one output at a time, with the activation function in the loss.
    #[test]
    fn the_choice_is_near_the_best_of_all() {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let (depth, outputs, rows) = (10, 3, 512);
        let mut number = || rng.random::<f32>() * 2.0 - 1.0;
        let weights: Vec<f32> = (0..depth * outputs).map(|_| number()).collect();
        // Inputs that go together: what makes rounding each by itself a bad choice.
        let common: Vec<f32> = (0..rows).map(|_| number()).collect();
        let x: Vec<f32> = (0..depth * rows)
            .map(|i| common[i % rows] + 0.3 * number())
            .collect();
        let (scale, relu) = (0.4, (0.0, f32::INFINITY));
        let problem = Problem::plain(&weights, scale, (outputs, depth), 0.1, relu);
        let target = problem.target(&x, rows);
        let settings = AdaRoundSettings {
            iterations: 1500,
            batch: 128,
            ..AdaRoundSettings::default()
        };
        let seen = Seen {
            patches: &x,
            target: &target,
            rows,
            places: None,
        };
        let codes = solve(&problem, &settings, &seen, &CancelToken::default())
            .expect("nothing is cancelled");
        let fitted = seen.fitted();
        let error = |output: usize, codes: &dyn Fn(usize) -> f32| -> f64 {
            (0..fitted)
                .map(|p| {
                    let sum: f32 = (0..depth).map(|k| codes(k) * scale * x[k * rows + p]).sum();
                    f64::from(((sum + 0.1).max(0.0) - target[output * rows + p]).powi(2))
                })
                .sum()
        };
        for output in 0..outputs {
            let floor = |k: usize| (weights[output * depth + k] / scale).floor();
            let best = (0..1_u32 << depth)
                .map(|up| error(output, &|k| floor(k) + (up >> k & 1) as f32))
                .fold(f64::INFINITY, f64::min);
            let codes = &codes[output * depth..][..depth];
            let chosen = error(output, &|k| codes[k] as f32);
            let nearest = error(output, &|k| {
                problem.nearest(output * depth + k, scale) as f32
            });
            assert!(
                chosen <= 1.5 * best && best < 0.5 * nearest,
                "output {output}: {chosen} chosen, {best} at best, {nearest} to nearest"
            );
        }
        let error = |codes: &[i32]| {
            let weights = problem.values(codes, &problem.scales);
            problem.error(&weights, &seen, fitted..rows)
        };
        let nearest: Vec<i32> = (0..codes.len())
            .map(|i| problem.nearest(i, scale))
            .collect();
        assert!(error(&codes) < error(&nearest) && rows - fitted == rows / 8);
    }

    /// Few samples of many inputs: what their covariance shows is chance for the most part, and roundings that follow it do harm elsewhere.
    #[test]
    fn what_is_chance_is_not_followed() {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let (depth, outputs, rows, fresh) = (96, 8, 80, 4096);
        let mut number = || rng.random::<f32>() * 2.0 - 1.0;
        let weights: Vec<f32> = (0..depth * outputs).map(|_| number()).collect();
        let mut inputs = |rows: usize| -> Vec<f32> {
            let common: Vec<f32> = (0..rows).map(|_| number()).collect();
            (0..depth * rows)
                .map(|i| 0.3 * common[i % rows] + number())
                .collect()
        };
        let (x, other) = (inputs(rows), inputs(fresh));
        let none = (f32::NEG_INFINITY, f32::INFINITY);
        let problem = Problem::plain(&weights, 0.4, (outputs, depth), 0.0, none);
        let (target, wanted) = (problem.target(&x, rows), problem.target(&other, fresh));
        let seen = |patches, target, rows| Seen {
            patches,
            target,
            rows,
            places: None,
        };
        let judge = seen(&other, &wanted, fresh);
        let error = |damping: f32| {
            let settings = AdaRoundSettings {
                damping,
                ..AdaRoundSettings::default()
            };
            let seen = seen(&x, &target, rows);
            let codes = solve(&problem, &settings, &seen, &CancelToken::default());
            let codes = codes.expect("nothing is cancelled");
            let weights = problem.values(&codes, &problem.scales);
            problem.error(&weights, &judge, 0..fresh)
        };
        let (damped, undamped) = (error(1.0), error(0.0));
        let nearest = problem.error(&problem.nearest_values(&problem.scales), &judge, 0..fresh);
        assert!(
            damped < 0.8 * undamped && damped < nearest,
            "{damped} damped, {undamped} not, {nearest} to nearest"
        );
    }
}
