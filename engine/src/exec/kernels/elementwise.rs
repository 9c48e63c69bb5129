//! Element-wise operators in parallel chunks, where candle's run on one thread.

use super::host::{CHUNK, elements, on_pool, output, read2, tensor_like};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// `f` of every element.
fn map(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let mut result = vec![0.0; x.len()];
    on_pool(|| {
        result
            .par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK))
            .for_each(|(result, x)| {
                for (r, x) in result.iter_mut().zip(x) {
                    *r = f(*x);
                }
            });
    });
    result
}

/// `f` of every pair of elements.
fn map2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let mut result = vec![0.0; a.len()];
    on_pool(|| {
        result
            .par_chunks_mut(CHUNK)
            .zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)))
            .for_each(|(result, (a, b))| {
                for (r, (a, b)) in result.iter_mut().zip(a.iter().zip(b)) {
                    *r = f(*a, *b);
                }
            });
    });
    result
}

/// An element-wise function whose gradient is that of the result where `passes(x, result)`, zero elsewhere.
struct Gated<F, G> {
    name: &'static str,
    forward: F,
    passes: G,
}

impl<F, G> CustomOp1 for Gated<F, G>
where
    F: Fn(f32) -> f32 + Sync,
    G: Fn(f32) -> bool + Sync,
{
    fn name(&self) -> &'static str {
        self.name
    }
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = elements(x, layout, self.name)?;
        output(map(&x, &self.forward), layout.shape().clone())
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let data = read2(x, gradient, self.name, |x, g| {
            Ok(map2(x, g, |x, g| if (self.passes)(x) { g } else { 0.0 }))
        })?;
        Ok(Some(tensor_like(data, x)?))
    }
}

/// max(x, 0); the gradient at 0 is 0. NaN stays NaN.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Gated {
        name: "relu",
        forward: |x: f32| if x < 0.0 { 0.0 } else { x },
        passes: |x| x > 0.0,
    })
}

/// min(max(x, lo), hi); the gradient passes where lo ≤ x ≤ hi. NaN stays NaN; with lo > hi everything becomes hi, as ONNX says.
pub fn clip(x: &Tensor, lo: f32, hi: f32) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Gated {
        name: "clip",
        forward: move |x: f32| {
            let x = if x < lo { lo } else { x };
            if x > hi { hi } else { x }
        },
        passes: move |x| lo <= x && x <= hi,
    })
}

/// Rounds half to even; the gradient passes straight through.
pub fn round_ties_even(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Gated {
        name: "round_ties_even",
        forward: f32::round_ties_even,
        passes: |_| true,
    })
}

/// The sum of two tensors of one shape, with a ReLU behind it or not.
struct Add {
    relu: bool,
}

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        if self.relu { "add_relu" } else { "add" }
    }
    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if al.dims() != bl.dims() {
            bail!(
                "{}: shapes {:?} and {:?} differ",
                self.name(),
                al.dims(),
                bl.dims()
            )
        }
        let a = elements(a, al, self.name())?;
        let b = elements(b, bl, self.name())?;
        let result = if self.relu {
            map2(&a, &b, |a, b| {
                let sum = a + b;
                if sum < 0.0 { 0.0 } else { sum }
            })
        } else {
            map2(&a, &b, |a, b| a + b)
        };
        output(result, al.shape().clone())
    }
    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if !self.relu {
            return Ok((Some(gradient.clone()), Some(gradient.clone())));
        }
        let data = read2(result, gradient, self.name(), |y, g| {
            Ok(map2(y, g, |y, g| if y > 0.0 { g } else { 0.0 }))
        })?;
        let passed = tensor_like(data, result)?;
        Ok((Some(passed.clone()), Some(passed)))
    }
}

/// a + b for equal shapes.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.contiguous()?
        .apply_op2(&b.contiguous()?, Add { relu: false })
}

/// max(a + b, 0) for equal shapes.
pub fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.contiguous()?
        .apply_op2(&b.contiguous()?, Add { relu: true })
}
