//! The relaxation that roundings are chosen by (Nagel et al., "Up or Down?", 2020): each weight is ⌊w/s⌋ + h(v), where h is a rectified sigmoid
//! that a growing penalty drives to 0 or 1.

use super::Problem;

/// Ends of the stretched sigmoid (Louizos et al. 2018).
const ZETA: f32 = 1.1;
const GAMMA: f32 = -0.1;
/// The penalty 1 − |2h − 1|^β is left out for this share of the steps; then β falls from the first to the last of these.
const WARM_UP: f32 = 0.2;
const BETA: (f32, f32) = (20.0, 2.0);
const ADAM: (f32, f32, f32) = (0.9, 0.999, 1e-8);

/// What drives roundings to a decision: `weight` · (1 − |2h − 1|^β) each; `None`: not yet.
#[derive(Clone, Copy)]
pub(in crate::compress) struct Penalty {
    weight: f32,
    beta: Option<i32>,
}

impl Penalty {
    /// That of one of `steps` in all.
    pub fn at(step: usize, steps: usize, weight: f32) -> Self {
        let progress = step as f32 / steps as f32;
        let beta = (progress >= WARM_UP).then(|| {
            let along = (progress - WARM_UP) / (1.0 - WARM_UP);
            (BETA.0 + (BETA.1 - BETA.0) * along).round() as i32
        });
        Self { weight, beta }
    }
}

/// Roundings under choice.
pub(in crate::compress) struct Soft {
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
    /// Of the weights `span` of a problem, from the float weights on.
    pub fn new(problem: &Problem, span: std::ops::Range<usize>) -> Self {
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

    /// The weights as they are now, by their scales.
    pub fn weights(&self, scales: &[f32], out: &mut [f32]) {
        for (((out, floor), h), s) in out.iter_mut().zip(&self.floor).zip(&self.h).zip(scales) {
            *out = (floor + h) * s;
        }
    }

    /// One step of Adam (Kingma and Ba 2015) of number `step`, with `rate`, down `gradient` (by h) and the penalty.
    pub fn step(&mut self, gradient: &[f32], step: usize, rate: f32, penalty: Penalty) {
        let (b1, b2, epsilon) = ADAM;
        let n = step as i32 + 1;
        let rate = rate * (1.0 - b2.powi(n)).sqrt() / (1.0 - b1.powi(n));
        let state = self
            .v
            .iter_mut()
            .zip(&mut self.mean)
            .zip(&mut self.square)
            .zip(self.h.iter().zip(&self.slope));
        let push = penalty.weight * 2.0 * penalty.beta.unwrap_or(0) as f32;
        let exponent = penalty.beta.map_or(0, |b| (b - 1).max(0)) as u32;
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
    pub fn codes(&self) -> Vec<i32> {
        let up = |h: &f32| f32::from(u8::from(*h >= 0.5));
        self.floor
            .iter()
            .zip(&self.h)
            .map(|(floor, h)| (floor + up(h)) as i32)
            .collect()
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
}
