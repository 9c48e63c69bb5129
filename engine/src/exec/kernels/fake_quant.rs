//! Quantisation and dequantisation in one step, with a straight-through gradient, and one by the step size where that is learned.

use super::host::{CHUNK, elements, on_pool, output, read2, tensor_like};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Quantise and dequantise in one step: `(clamp(round_ties_even(x/scale) + zero_point, lo, hi) − zero_point)·scale`, with
/// `scale`, `zero_point` either one element, one per index of `axis`, or blocked along `axis`. Straight-through gradient
/// to x inside the range, zero outside. `block` 0: not blocked.
///
/// Blocked as in ONNX opset 21: `scale` has the shape of x but for `axis`, which has ⌈extent/block⌉ entries.
#[derive(Clone, Debug)]
pub struct FakeQuant {
    pub scale: Vec<f32>,
    pub zero_point: Vec<i32>,
    pub lo: i32,
    pub hi: i32,
    pub axis: usize,
    pub block: usize,
}

/// Beyond this a float has no fraction to round, and below it `x + MAGIC − MAGIC` rounds half to even.
const WHOLE: f32 = 4_194_304.0; // 2²²
const MAGIC: f32 = 12_582_912.0; // 1.5·2²³

/// Rounds half to even for |x| ≤ 2²² by the addition's own rounding: vectorises where `round_ties_even` is a call.
#[inline(always)]
fn round(x: f32) -> f32 {
    (x.clamp(-WHOLE, WHOLE) + MAGIC) - MAGIC
}

/// A step and the whole numbers (before the zero point is added) that the range allows.
#[derive(Clone, Copy)]
struct Step {
    scale: f32,
    lo: f32,
    hi: f32,
}

impl Step {
    #[inline(always)]
    fn quantise(self, x: f32) -> f32 {
        round(x / self.scale).clamp(self.lo, self.hi) * self.scale
    }
    /// How the quantised value moves with the step size (Esser et al. 2020, eq. 3).
    #[inline(always)]
    fn slope(self, x: f32) -> f32 {
        let exact = x / self.scale;
        let whole = round(exact);
        if self.lo <= whole && whole <= self.hi {
            whole - exact
        } else {
            whole.clamp(self.lo, self.hi)
        }
    }
    #[inline(always)]
    fn passes(self, x: f32) -> bool {
        let whole = round(x / self.scale);
        self.lo <= whole && whole <= self.hi
    }
}

/// Which step every element has.
enum Steps {
    One,
    /// Along an axis with this many elements behind each of its indices.
    Axis {
        inner: usize,
    },
    Blocked {
        extent: usize,
        inner: usize,
        block: usize,
    },
}

impl FakeQuant {
    const NAME: &'static str = "fake_quant";

    fn steps(&self, dims: &[usize]) -> Result<(Steps, Vec<Step>)> {
        let name = Self::NAME;
        if self.zero_point.len() != self.scale.len() {
            bail!(
                "{name}: {} scales but {} zero points",
                self.scale.len(),
                self.zero_point.len()
            )
        }
        if let Some(bad) = self.scale.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            bail!("{name}: a scale must be positive and finite, not {bad}")
        }
        if self.lo > self.hi {
            bail!("{name}: the range {}..={} is empty", self.lo, self.hi)
        }
        let values: Vec<Step> = self
            .scale
            .iter()
            .zip(&self.zero_point)
            .map(|(&scale, &zero)| Step {
                scale,
                lo: (i64::from(self.lo) - i64::from(zero)) as f32,
                hi: (i64::from(self.hi) - i64::from(zero)) as f32,
            })
            .collect();
        if values.iter().any(|v| v.lo < -WHOLE || v.hi > WHOLE) {
            bail!(
                "{name}: the range {}..={} less its zero point is wider than ±2²²",
                self.lo,
                self.hi
            )
        }
        if self.scale.len() == 1 && self.block == 0 {
            return Ok((Steps::One, values));
        }
        let Some(&extent) = dims.get(self.axis) else {
            bail!("{name}: axis {} of a tensor of shape {dims:?}", self.axis)
        };
        let inner: usize = dims[self.axis + 1..].iter().product();
        let outer: usize = dims[..self.axis].iter().product();
        let (expected, steps) = if self.block == 0 {
            (extent, Steps::Axis { inner })
        } else {
            let block = self.block;
            let steps = Steps::Blocked {
                extent,
                inner,
                block,
            };
            (outer * extent.div_ceil(block) * inner, steps)
        };
        if self.scale.len() != expected {
            bail!(
                "{name}: {} scales where a tensor of shape {dims:?} along axis {} (block {}) needs {expected}",
                self.scale.len(),
                self.axis,
                self.block
            )
        }
        Ok((steps, values))
    }

    /// Calls `f(result, x, step)` for runs of elements: `extra` rides along with x (the gradient, going back).
    fn apply(
        &self,
        dims: &[usize],
        x: &[f32],
        extra: &[f32],
        f: impl Fn(f32, f32, Step) -> f32 + Sync,
    ) -> Result<Vec<f32>> {
        let (steps, values) = self.steps(dims)?;
        let mut result = vec![0.0; x.len()];
        if result.is_empty() {
            return Ok(result);
        }
        // Rows of elements behind one index of the axis share their step, or (blocked) have one each.
        let row = match steps {
            Steps::One => CHUNK,
            Steps::Axis { inner } | Steps::Blocked { inner, .. } => inner,
        };
        let rows_a_task = (CHUNK / row).max(1);
        on_pool(|| {
            result
                .par_chunks_mut(row * rows_a_task)
                .zip(x.par_chunks(row * rows_a_task))
                .zip(extra.par_chunks(row * rows_a_task))
                .enumerate()
                .for_each(|(task, ((result, x), extra))| {
                    let lines = result
                        .chunks_mut(row)
                        .zip(x.chunks(row))
                        .zip(extra.chunks(row));
                    for (line, ((result, x), extra)) in lines.enumerate() {
                        let index = task * rows_a_task + line;
                        match steps {
                            Steps::One => run(result, x, extra, values[0], &f),
                            Steps::Axis { .. } => {
                                run(result, x, extra, values[index % values.len()], &f);
                            }
                            Steps::Blocked {
                                extent,
                                inner,
                                block,
                            } => {
                                let (outer, at) = (index / extent, index % extent);
                                let first = (outer * extent.div_ceil(block) + at / block) * inner;
                                let steps = &values[first..first + inner];
                                for (i, step) in steps.iter().enumerate() {
                                    result[i] = f(x[i], extra[i], *step);
                                }
                            }
                        }
                    }
                });
        });
        Ok(result)
    }
}

#[inline(always)]
fn run(
    result: &mut [f32],
    x: &[f32],
    extra: &[f32],
    step: Step,
    f: &impl Fn(f32, f32, Step) -> f32,
) {
    for ((r, x), e) in result.iter_mut().zip(x).zip(extra) {
        *r = f(*x, *e, step);
    }
}

impl CustomOp1 for FakeQuant {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = elements(x, layout, Self::NAME)?;
        let result = self.apply(layout.dims(), &x, &x, |x, _, step| step.quantise(x))?;
        output(result, layout.shape().clone())
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let data = read2(x, gradient, Self::NAME, |data, g| {
            self.apply(
                x.dims(),
                data,
                g,
                |x, g, step| {
                    if step.passes(x) { g } else { 0.0 }
                },
            )
        })?;
        Ok(Some(tensor_like(data, x)?))
    }
}

/// Applies `quant` to x; see [`FakeQuant`]. NaN stays NaN.
pub fn fake_quant(x: &Tensor, quant: &FakeQuant) -> Result<Tensor> {
    x.contiguous()?.apply_op1(quant.clone())
}

/// As [`FakeQuant`], with a gradient by the scale too: learned step sizes (LSQ, Esser et al. 2020, "Learned Step Size Quantization").
struct LearnedStep(FakeQuant);

impl LearnedStep {
    /// Σ gradient·slope over the elements of each step, in f64 and in their order: the same bits for any number of threads.
    fn by_step(&self, dims: &[usize], x: &[f32], gradient: &[f32]) -> Result<Vec<f32>> {
        let slopes = self
            .0
            .apply(dims, x, gradient, |x, g, step| g * step.slope(x))?;
        let (steps, values) = self.0.steps(dims)?;
        let mut sums = vec![0.0_f64; values.len()];
        for (at, slope) in slopes.iter().enumerate() {
            let step = match steps {
                Steps::One => 0,
                Steps::Axis { inner } => at / inner % values.len(),
                Steps::Blocked {
                    extent,
                    inner,
                    block,
                } => {
                    let row = at / inner;
                    let (outer, place) = (row / extent, row % extent);
                    (outer * extent.div_ceil(block) + place / block) * inner + at % inner
                }
            };
            sums[step] += f64::from(*slope);
        }
        Ok(sums.into_iter().map(|sum| sum as f32).collect())
    }
}

impl CustomOp2 for LearnedStep {
    fn name(&self) -> &'static str {
        "learned_step"
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.cpu_fwd(x, layout)
    }
    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let by_step = read2(x, gradient, "learned_step", |data, g| {
            self.by_step(x.dims(), data, g)
        })?;
        let by_x = self.0.bwd(x, y, gradient)?;
        Ok((by_x, Some(tensor_like(by_step, scale)?)))
    }
}

/// As [`fake_quant`], with `scale` (of as many elements as `quant` has scales, and their values) as what gradients flow to.
pub fn fake_quant_learned(x: &Tensor, scale: &Tensor, quant: &FakeQuant) -> Result<Tensor> {
    if scale.elem_count() != quant.scale.len() {
        bail!(
            "learned_step: a scale of {} elements, {} were expected",
            scale.elem_count(),
            quant.scale.len()
        )
    }
    x.contiguous()?
        .apply_op2(&scale.contiguous()?, LearnedStep(quant.clone()))
}
