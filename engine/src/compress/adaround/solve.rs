//! The relaxation of AdaRound: each weight is ⌊w/s⌋ + h(v), where h is a rectified sigmoid that a growing penalty drives to 0 or 1. The
//! outputs of a layer do not depend on each other's weights, so they are solved in pieces of fixed size, each by one thread.

use super::AdaRoundSettings;
use crate::{
    compress::{
        CompressError,
        layerwise::{Problem, Seen, backward, dot, product},
    },
    exec::{CancelToken, ExecError},
};
use rayon::prelude::*;

/// Ends of the stretched sigmoid (Louizos et al. 2018).
const ZETA: f32 = 1.1;
const GAMMA: f32 = -0.1;
/// The penalty 1 − |2h − 1|^β is left out for this share of the steps; then β falls from the first to the last of these.
const WARM_UP: f32 = 0.2;
const BETA: (f32, f32) = (20.0, 2.0);
const ADAM: (f32, f32, f32) = (0.9, 0.999, 1e-8);

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
    let together = (problem.outputs / 4).clamp(4, 32);
    let mut pieces = Vec::new();
    for group in 0..problem.groups {
        for first in (0..problem.outputs).step_by(together) {
            let outputs = first..problem.outputs.min(first + together);
            pieces.push(Piece { group, outputs });
        }
    }
    let solved: Vec<Vec<i32>> = pieces
        .par_iter()
        .map(|piece| part(problem, settings, seen, piece, cancel))
        .collect::<Result<_, _>>()?;
    Ok(solved.concat())
}

fn part(
    problem: &Problem,
    settings: &AdaRoundSettings,
    seen: &Seen<'_>,
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

    let mut soft = Soft::new(problem, span);
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
            let x = &x[at..];
            product(&weights, (count, depth), x, (batch, rows), &mut outputs);
            for (o, out) in outputs.chunks_exact_mut(batch).enumerate() {
                let wanted = &wanted[o * rows + at..][..batch];
                let factor = 2.0 / batch as f32 * units[o];
                residual(out, wanted, bias[o], problem.limits, factor);
            }
            backward(&outputs, (count, batch), x, (depth, rows), &mut gradient);
            for (g, s) in gradient.iter_mut().zip(&scales) {
                *g *= s;
            }
            let progress = step as f32 / settings.iterations as f32;
            let penalty = (progress >= WARM_UP).then(|| {
                let along = (progress - WARM_UP) / (1.0 - WARM_UP);
                (BETA.0 + (BETA.1 - BETA.0) * along).round() as i32
            });
            soft.step(&gradient, step, settings, penalty);
        }
    }
    Ok(soft.codes())
}

/// Roundings under choice.
struct Soft {
    floor: Vec<f32>,
    /// 1 where there is a choice, 0 where the value lies on a code or beyond the outermost.
    free: Vec<f32>,
    v: Vec<f32>,
    h: Vec<f32>,
    /// ∂h/∂v.
    slope: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Soft {
    fn new(problem: &Problem, span: std::ops::Range<usize>) -> Self {
        let n = span.len();
        let mut soft = Self {
            floor: Vec::with_capacity(n),
            free: Vec::with_capacity(n),
            v: Vec::with_capacity(n),
            h: vec![0.0; n],
            slope: vec![0.0; n],
            mean: vec![0.0; n],
            square: vec![0.0; n],
        };
        for i in span {
            let steps = problem.weights[i] / problem.scale(i);
            let range = problem.ranges[i];
            let (lo, hi) = (range.lo as f32, range.hi as f32);
            let floor = steps.floor();
            let part = steps - floor;
            let free = part > 0.0 && floor >= lo && floor < hi;
            soft.floor
                .push(if free { floor } else { floor.clamp(lo, hi) });
            if !free && part > 0.0 && floor < lo {
                // Below the lowest code: the ceiling, held inside.
                if let Some(last) = soft.floor.last_mut() {
                    *last = (floor + 1.0).clamp(lo, hi);
                }
            }
            soft.free.push(f32::from(u8::from(free)));
            // Starts where h is the fraction: the relaxation begins at the float weight.
            let inner = ((part - GAMMA) / (ZETA - GAMMA)).clamp(0.01, 0.99);
            soft.v.push((inner / (1.0 - inner)).ln());
        }
        soft.relax();
        soft
    }

    fn relax(&mut self) {
        for (((h, slope), v), free) in self
            .h
            .iter_mut()
            .zip(&mut self.slope)
            .zip(&self.v)
            .zip(&self.free)
        {
            let sigmoid = 1.0 / (1.0 + exp(-*v));
            let stretched = sigmoid * (ZETA - GAMMA) + GAMMA;
            let inside = f32::from(u8::from(stretched > 0.0 && stretched < 1.0));
            *h = stretched.clamp(0.0, 1.0) * free;
            *slope = (ZETA - GAMMA) * sigmoid * (1.0 - sigmoid) * inside * free;
        }
    }

    fn weights(&self, scales: &[f32], out: &mut [f32]) {
        for (((out, floor), h), s) in out.iter_mut().zip(&self.floor).zip(&self.h).zip(scales) {
            *out = (floor + h) * s;
        }
    }

    /// One step of Adam (Kingma and Ba 2015) down `gradient` (by h) and the penalty of exponent β.
    fn step(
        &mut self,
        gradient: &[f32],
        step: usize,
        settings: &AdaRoundSettings,
        beta: Option<i32>,
    ) {
        let (b1, b2, epsilon) = ADAM;
        let n = step as i32 + 1;
        let rate = settings.rate * (1.0 - b2.powi(n)).sqrt() / (1.0 - b1.powi(n));
        let state = self
            .v
            .iter_mut()
            .zip(&mut self.mean)
            .zip(&mut self.square)
            .zip(self.h.iter().zip(&self.slope));
        let push = settings.decision * 2.0 * beta.unwrap_or(0) as f32;
        let exponent = beta.map_or(0, |b| (b - 1).max(0)) as u32;
        for ((((v, mean), square), (h, slope)), g) in state.zip(gradient) {
            // d/dh of 1 − |2h − 1|^β.
            let away = 2.0 * h - 1.0;
            let g = (g - push * power(away.abs(), exponent).copysign(away)) * slope;
            *mean = b1 * *mean + (1.0 - b1) * g;
            *square = b2 * *square + (1.0 - b2) * g * g;
            *v -= rate * *mean / (square.sqrt() + epsilon);
        }
        self.relax();
    }

    /// Floor or ceiling, whichever the relaxation leans to.
    fn codes(&self) -> Vec<i32> {
        let up = |h: &f32| f32::from(u8::from(*h >= 0.5));
        self.floor
            .iter()
            .zip(&self.h)
            .map(|(floor, h)| (floor + up(h)) as i32)
            .collect()
    }
}

/// From outputs before the bias to the gradient of the squared error by them, times `factor` / 2.
fn residual(out: &mut [f32], wanted: &[f32], bias: f32, (lo, hi): (f32, f32), factor: f32) {
    for (out, wanted) in out.iter_mut().zip(wanted) {
        let y = *out + bias;
        let inside = f32::from(u8::from(y > lo && y < hi));
        *out = (y.clamp(lo, hi) - wanted) * factor * inside;
    }
}

/// x to a whole power below 32, without branches on x.
#[inline(always)]
fn power(x: f32, exponent: u32) -> f32 {
    let mut result = 1.0;
    let mut square = x;
    for bit in 0..5 {
        result *= if exponent >> bit & 1 == 1 {
            square
        } else {
            1.0
        };
        square *= square;
    }
    result
}

/// e to the x, to 2·10⁻⁷·(2 + |x|) of it, for |x| ≤ 80 (held there beyond): vectorises where the library's is a call.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to a whole number in the low bits
    let scaled = x.clamp(-80.0, 80.0) * std::f32::consts::LOG2_E;
    let shifted = scaled + MAGIC;
    let part = (scaled - (shifted - MAGIC)) * std::f32::consts::LN_2;
    // Taylor's series on |part| ≤ 0.35.
    let mut sum = 1.0 / 720.0;
    for divisor in [120.0_f32, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = sum * part + 1.0 / divisor;
    }
    f32::from_bits(sum.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_functions_agree_with_the_library() {
        for i in -300..300 {
            let x = i as f32 * 0.1;
            assert!(
                (exp(x) / x.exp() - 1.0).abs() < 2e-7 * (2.0 + x.abs()),
                "{x}"
            );
            let p = (i + 300) as f32 / 600.0;
            for e in 0..20 {
                assert!((power(p, e) - p.powi(e as i32)).abs() < 1e-5);
            }
        }
        assert!(exp(f32::INFINITY).is_finite() && exp(-1e30) >= 0.0);
    }

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
}
