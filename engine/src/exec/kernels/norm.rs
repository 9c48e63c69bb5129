//! Inference-form batch norm: one multiply and one add per element.

use super::host::{elements, on_pool, output, read, read2, tensor_like};
use super::simd;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// The stored statistics: constants of the operator.
struct BatchNorm {
    mean: Vec<f32>,
    /// 1/√(variance + ε).
    inverse: Vec<f32>,
}

impl BatchNorm {
    const NAME: &'static str = "batch_norm";

    /// Channels, and elements of one channel of one sample.
    fn sizes(&self, x: &[usize]) -> Result<(usize, usize)> {
        match x {
            [_, channels, area @ ..] if *channels == self.mean.len() => {
                Ok((*channels, area.iter().product()))
            }
            _ => bail!(
                "{}: an input of shape {x:?} doesn't have {} channels on axis 1",
                Self::NAME,
                self.mean.len()
            ),
        }
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        scale: &CpuStorage,
        scale_l: &Layout,
        shift: &CpuStorage,
        shift_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (channels, area) = self.sizes(xl.dims())?;
        let x = elements(x, xl, Self::NAME)?;
        let scale = elements(scale, scale_l, Self::NAME)?;
        let shift = elements(shift, shift_l, Self::NAME)?;
        if scale.len() != channels || shift.len() != channels {
            bail!(
                "{}: scale and shift have {} and {} elements for {channels} channels",
                Self::NAME,
                scale.len(),
                shift.len()
            )
        }
        let mut result = vec![0.0; x.len()];
        if !result.is_empty() {
            on_pool(|| {
                result
                    .par_chunks_mut(area)
                    .zip(x.par_chunks(area))
                    .enumerate()
                    .with_min_len(4)
                    .for_each(|(index, (result, x))| {
                        let c = index % channels;
                        let factor = scale[c] * self.inverse[c];
                        simd::affine(result, x, factor, shift[c] - self.mean[c] * factor);
                    });
            });
        }
        output(result, xl.shape().clone())
    }
    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (channels, area) = self.sizes(x.dims())?;
        let of_x = if x.track_op() {
            let data = read2(gradient, scale, Self::NAME, |gradient, scale| {
                let mut result = vec![0.0; gradient.len()];
                if !result.is_empty() {
                    on_pool(|| {
                        result
                            .par_chunks_mut(area)
                            .zip(gradient.par_chunks(area))
                            .enumerate()
                            .with_min_len(4)
                            .for_each(|(index, (result, g))| {
                                let c = index % channels;
                                simd::affine(result, g, scale[c] * self.inverse[c], 0.0);
                            });
                    });
                }
                Ok(result)
            })?;
            Some(tensor_like(data, x)?)
        } else {
            None
        };
        if !scale.track_op() && !shift.track_op() {
            return Ok((of_x, None, None));
        }
        // Σ gradient·(x − mean)/σ = (Σ gradient·x − mean·Σ gradient)/σ, sums of planes kept in f64.
        let sums: Vec<(f32, f32)> = read2(x, gradient, Self::NAME, |x, gradient| {
            Ok(on_pool(|| {
                (0..channels)
                    .into_par_iter()
                    .map(|c| {
                        let (mut with_x, mut plain) = (0f64, 0f64);
                        let stride = (channels * area).max(1);
                        for at in (c * area..x.len()).step_by(stride) {
                            let g = &gradient[at..at + area];
                            with_x += f64::from(simd::dot(g, &x[at..at + area]));
                            plain += f64::from(simd::sum(g));
                        }
                        let mean = f64::from(self.mean[c]);
                        let of_scale = (with_x - mean * plain) * f64::from(self.inverse[c]);
                        (of_scale as f32, plain as f32)
                    })
                    .collect()
            }))
        })?;
        let (of_scale, of_shift): (Vec<f32>, Vec<f32>) = sums.into_iter().unzip();
        Ok((
            of_x,
            Some(tensor_like(of_scale, scale)?),
            Some(tensor_like(of_shift, shift)?),
        ))
    }
}

/// Inference-form batch norm per channel (axis 1) of an input of rank 2 or more:
/// `(x − mean)/√(variance + ε)·scale + shift`, differentiable in x, scale and shift; mean and variance are constants.
pub fn batch_norm(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    epsilon: f32,
) -> Result<Tensor> {
    let mean = read(mean, BatchNorm::NAME, |m| Ok(m.to_vec()))?;
    let inverse = read(variance, BatchNorm::NAME, |v| {
        Ok(v.iter()
            .map(|v| 1.0 / (v + epsilon).sqrt())
            .collect::<Vec<_>>())
    })?;
    if mean.len() != inverse.len() {
        bail!(
            "{}: mean has {} elements and variance {}",
            BatchNorm::NAME,
            mean.len(),
            inverse.len()
        )
    }
    x.contiguous()?.apply_op3(
        &scale.contiguous()?,
        &shift.contiguous()?,
        BatchNorm { mean, inverse },
    )
}
