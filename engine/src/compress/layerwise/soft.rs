//! The relaxation that roundings are chosen by (Nagel et al., "Up or Down?", 2020): each weight is ⌊w/s⌋ + h(v), where h is a rectified sigmoid
//! that a growing penalty drives to 0 or 1.

use super::Problem;
use crate::exec::kernels::rounding;

/// The penalty 1 − |2h − 1|^β is left out for this share of the steps; then β falls from the first to the last of these.
const WARM_UP: f32 = 0.2;
const BETA: (f32, f32) = (20.0, 2.0);

/// What drives roundings to a decision: `weight` · (1 − |2h − 1|^β) each; `None`: not yet.
#[derive(Clone, Copy)]
pub(in crate::compress) struct Penalty {
    weight: f32,
    beta: Option<u32>,
}

impl Penalty {
    /// That of one of `steps` in all.
    pub fn at(step: usize, steps: usize, weight: f32) -> Self {
        let progress = step as f32 / steps as f32;
        let beta = (progress >= WARM_UP).then(|| {
            let along = (progress - WARM_UP) / (1.0 - WARM_UP);
            (BETA.0 + (BETA.1 - BETA.0) * along).round() as u32
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
            // The relaxation begins at the float weight.
            soft.v.push(rounding::start(part));
        }
        soft.relax();
        soft
    }

    fn relax(&mut self) {
        rounding::relax(&self.v, &self.free, &mut self.h, &mut self.slope);
    }

    /// The weights as they are now, by their scales.
    pub fn weights(&self, scales: &[f32], out: &mut [f32]) {
        for (((out, floor), h), s) in out.iter_mut().zip(&self.floor).zip(&self.h).zip(scales) {
            *out = (floor + h) * s;
        }
    }

    /// One step of Adam of number `step`, with `rate`, down `gradient` (by h) and the penalty.
    pub fn step(&mut self, gradient: &[f32], step: usize, rate: f32, penalty: Penalty) {
        let moving = rounding::Moving {
            v: &mut self.v,
            mean: &mut self.mean,
            square: &mut self.square,
        };
        let step = rounding::Step {
            number: step,
            rate,
            weight: penalty.weight,
            beta: penalty.beta.unwrap_or(0),
        };
        rounding::descend(moving, &self.h, &self.slope, gradient, step);
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
