//! Arithmetic of weight quantisation: where scales lie on a weight, how they are chosen, and the codes they give.
//! The formulas are those of ONNX `QuantizeLinear`/`DequantizeLinear` (opset 21), so that what is predicted here is what a
//! runtime computes.

use super::{Granularity, Precision, Symmetry};
use crate::graph::ElementType;

/// Codes of a signed integer type: all that `QuantizeLinear` can give, and the code the largest weight is laid on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeRange {
    pub lo: i32,
    pub hi: i32,
}

impl CodeRange {
    /// Integer codes of a precision; `None` for the floating ones.
    pub fn of(precision: Precision) -> Option<Self> {
        let half = 1 << (precision.bits()? - 1);
        Some(Self {
            lo: -half,
            hi: half - 1,
        })
    }

    /// The same, counted from a zero point.
    pub fn counted_from(self, zero_point: i32) -> Self {
        Self {
            lo: self.lo - zero_point,
            hi: self.hi - zero_point,
        }
    }
}

/// Where the scales of a weight lie: `shape` is the scale tensor's (`[]`: one for the whole tensor), `axis` and `block` are the
/// attributes of `DequantizeLinear` (`block` 0: not blocked).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScaleLayout {
    pub shape: Vec<usize>,
    pub axis: usize,
    pub block: usize,
}

impl ScaleLayout {
    /// One scale for the whole tensor.
    pub fn per_tensor() -> Self {
        Self {
            shape: Vec::new(),
            axis: 0,
            block: 0,
        }
    }

    /// The layout a layer's weight gets. Groups lie along the input axis (Conv 1, ConvTranspose 0, MatMul last but one, Gemm
    /// by `transB`); a weight whose input axis is shorter than the group falls back to one scale per channel, because
    /// the scales would then cost more than the weights.
    pub fn of(
        op: &str,
        weight_shape: &[usize],
        channel_axis: usize,
        granularity: Granularity,
    ) -> Self {
        let rank = weight_shape.len();
        // A vector has one output only: its single axis is the reduction axis.
        if rank < 2 || channel_axis >= rank {
            return Self::per_tensor();
        }
        let per_channel = Self {
            shape: vec![weight_shape[channel_axis]],
            axis: channel_axis,
            block: 0,
        };
        match granularity {
            Granularity::PerTensor => Self::per_tensor(),
            Granularity::PerChannel => per_channel,
            Granularity::Group(block) => {
                let axis = match op {
                    "Conv" => 1,
                    "ConvTranspose" => 0,
                    _ if channel_axis + 1 == rank => rank - 2,
                    _ => channel_axis + 1,
                };
                let length = weight_shape[axis];
                if block == 0 || length < block {
                    return per_channel;
                }
                let mut shape = weight_shape.to_vec();
                shape[axis] = length.div_ceil(block);
                Self { shape, axis, block }
            }
        }
    }

    /// Number of scales.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no scales at all (a weight without elements).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// In words, for accounts: "per channel (16 scales)".
    pub fn describe(&self) -> String {
        if self.shape.is_empty() {
            "per tensor".to_owned()
        } else if self.block == 0 {
            format!("per channel ({} scales)", self.len())
        } else {
            format!("in groups of {} ({} scales)", self.block, self.len())
        }
    }

    /// (product of the axes before, length of the axis, product of the axes after).
    fn split(&self, shape: &[usize]) -> (usize, usize, usize) {
        let outer = shape[..self.axis].iter().product();
        let inner = shape[self.axis + 1..].iter().product();
        (outer, shape[self.axis], inner)
    }

    /// Calls `f(element, scale)` with the flat index of every element of a weight, in order, and of its scale.
    pub(crate) fn each(&self, shape: &[usize], mut f: impl FnMut(usize, usize)) {
        if self.shape.is_empty() {
            (0..shape.iter().product()).for_each(|i| f(i, 0));
            return;
        }
        let (outer, length, inner) = self.split(shape);
        let mut element = 0;
        for o in 0..outer {
            for a in 0..length {
                for i in 0..inner {
                    let scale = match self.block {
                        0 => a,
                        block => (o * length.div_ceil(block) + a / block) * inner + i,
                    };
                    f(element, scale);
                    element += 1;
                }
            }
        }
    }

    /// Collects the elements that share scale number `scale` into `out`.
    pub(crate) fn gather(
        &self,
        weights: &[f32],
        shape: &[usize],
        scale: usize,
        out: &mut Vec<f32>,
    ) {
        out.clear();
        if self.shape.is_empty() {
            out.extend_from_slice(weights);
            return;
        }
        let (outer, length, inner) = self.split(shape);
        if self.block == 0 {
            for o in 0..outer {
                let start = (o * length + scale) * inner;
                out.extend_from_slice(&weights[start..start + inner]);
            }
        } else {
            let blocks = length.div_ceil(self.block);
            let (i, block, o) = (
                scale % inner,
                scale / inner % blocks,
                scale / inner / blocks,
            );
            let ends = block * self.block..length.min((block + 1) * self.block);
            out.extend(ends.map(|a| weights[(o * length + a) * inner + i]));
        }
    }
}

/// The code of one value: `clamp(round_ties_even(value / scale), lo, hi)`, exactly as `QuantizeLinear` with zero
/// point 0 (a range [counted from](CodeRange::counted_from) another one stands for that).
#[inline]
pub(crate) fn code(value: f32, scale: f32, range: CodeRange) -> f32 {
    // Clamping to integers first gives the same result and keeps the value small enough for the rounding below: adding and
    // taking away 1.5·2^23 rounds half to even, and unlike `round_ties_even` it vectorises on any x86-64.
    const ROUND: f32 = 12_582_912.0;
    let scaled = (value / scale).clamp(range.lo as f32, range.hi as f32);
    (scaled + ROUND) - ROUND
}

/// Sum of squared errors after quantising `weights` with one `scale`. Fixed order of summation.
pub(crate) fn squared_error(weights: &[f32], scale: f32, range: CodeRange) -> f64 {
    const LANES: usize = 8;
    let mut total = 0.0_f64;
    for block in weights.chunks(512) {
        let mut lanes = [0.0_f32; LANES];
        let mut chunks = block.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (lane, &w) in lanes.iter_mut().zip(chunk) {
                let error = w - code(w, scale, range) * scale;
                *lane += error * error;
            }
        }
        for (lane, &w) in lanes.iter_mut().zip(chunks.remainder()) {
            let error = w - code(w, scale, range) * scale;
            *lane += error * error;
        }
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
    }
    total
}

/// Scales and zero points of a weight, in the order of the layout's scale tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Steps {
    pub scale: Vec<f32>,
    pub zero_point: Vec<i32>,
    /// Summed squared error of the weight after quantisation.
    pub error: f64,
}

/// Scale, zero point and squared error of one group of weights. 5 to 8 bits: min–max (symmetric: the largest magnitude lies on the
/// largest code; asymmetric: both extremes on the outermost codes). 2 to 4 bits: the clipping with the least squared error among
/// fixed shares of that, because one outlier otherwise takes most of the few levels. A group of zeros gets scale 1.
pub(crate) fn choose_scale(
    weights: &[f32],
    range: CodeRange,
    symmetry: Symmetry,
) -> (f32, i32, f64) {
    let (full, zero_point) = match symmetry {
        Symmetry::Symmetric => {
            let largest = weights.iter().fold(0.0_f32, |a, w| a.max(w.abs()));
            (largest / range.hi as f32, 0)
        }
        Symmetry::Asymmetric => {
            let lo = weights.iter().fold(0.0_f32, |a, w| a.min(*w));
            let hi = weights.iter().fold(0.0_f32, |a, w| a.max(*w));
            let full = (f64::from(hi) - f64::from(lo)) / f64::from(range.hi - range.lo);
            let zero = (f64::from(range.lo) - f64::from(lo) / full).round_ties_even();
            // A zero point that is not a number (full is 0) becomes 0, and is not used.
            let zero = (zero as i32).clamp(range.lo, range.hi);
            (full as f32, zero)
        }
    };
    // Below the normal numbers a division by the scale loses its meaning; such weights count as zeros.
    if full < f32::MIN_POSITIVE || !full.is_finite() {
        let error = weights.iter().map(|w| f64::from(w * w)).sum();
        return (1.0, 0, error);
    }
    let codes = range.counted_from(zero_point);
    let mut best = (full, squared_error(weights, full, codes));
    if range.hi > 7 {
        return (best.0, zero_point, best.1);
    }
    let mut best_share = 100;
    let mut consider = |share: i32, best_share: &mut i32| {
        let scale = full * (share as f32 / 100.0);
        if scale < f32::MIN_POSITIVE {
            return;
        }
        let error = squared_error(weights, scale, codes);
        if error < best.1 {
            best = (scale, error);
            *best_share = share;
        }
    };
    // Down to a fifth in steps of 5 %, then around the best in steps of 1 %.
    for share in (20..100).rev().step_by(5) {
        consider(share, &mut best_share);
    }
    let centre = best_share;
    for share in [4, 3, 2, 1, -1, -2, -3, -4].map(|d| centre + d) {
        if share < 100 {
            consider(share, &mut best_share);
        }
    }
    (best.0, zero_point, best.1)
}

/// Scales and zero points of a whole weight.
pub(crate) fn choose_scales(
    weights: &[f32],
    shape: &[usize],
    layout: &ScaleLayout,
    range: CodeRange,
    symmetry: Symmetry,
) -> Steps {
    use rayon::prelude::*;
    let chosen: Vec<(f32, i32, f64)> = (0..layout.len())
        .into_par_iter()
        .map_init(Vec::new, |scratch, scale| {
            layout.gather(weights, shape, scale, scratch);
            choose_scale(scratch, range, symmetry)
        })
        .collect();
    Steps {
        // Summed in order, so that the result does not depend on how the work was split.
        error: chosen.iter().map(|c| c.2).sum(),
        scale: chosen.iter().map(|c| c.0).collect(),
        zero_point: chosen.iter().map(|c| c.1).collect(),
    }
}

/// The weight as it is after quantising and dequantising.
pub(crate) fn fake(
    weights: &[f32],
    shape: &[usize],
    layout: &ScaleLayout,
    steps: &Steps,
    range: CodeRange,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(weights.len());
    layout.each(shape, |element, at| {
        let (scale, zero) = (steps.scale[at], steps.zero_point[at]);
        out.push(code(weights[element], scale, range.counted_from(zero)) * scale);
    });
    out
}

/// The weight as it is after a round trip through a 16-bit float: bfloat16, or IEEE half for any other type.
pub(crate) fn through(element: ElementType, weights: &[f32]) -> Vec<f32> {
    let narrow = |w: &f32| match element {
        ElementType::BF16 => half::bf16::from_f32(*w).to_f32(),
        _ => half::f16::from_f32(*w).to_f32(),
    };
    weights.iter().map(narrow).collect()
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
