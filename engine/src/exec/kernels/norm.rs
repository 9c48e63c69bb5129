//! Batch norm: one multiply and one add per element, by stored statistics or by those of the batch itself.

use super::host::{elements, on_pool, output, read, read2, tensor_like};
use super::simd;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// The statistics, constants of the operator where they are not the input's own.
struct BatchNorm {
    mean: Vec<f32>,
    /// 1/√(variance + ε).
    inverse: Vec<f32>,
    /// Whether they are the input's own, and so have a part in its gradient.
    own: bool,
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
        // Σ gradient·(x − mean) and Σ gradient by channel, sums of planes kept in f64.
        let sums: Vec<(f64, f64)> = if self.own || scale.track_op() || shift.track_op() {
            read2(x, gradient, Self::NAME, |x, gradient| {
                Ok(on_pool(|| {
                    (0..channels)
                        .into_par_iter()
                        .map(|c| {
                            let (mut with_x, mut plain) = (0f64, 0f64);
                            let stride = (channels * area).max(1);
                            for at in (c * area..x.len()).step_by(stride) {
                                let g = &gradient[at..at + area];
                                let x = &x[at..at + area];
                                with_x += f64::from(simd::centred_dot(g, x, self.mean[c]));
                                plain += f64::from(simd::sum(g));
                            }
                            (with_x, plain)
                        })
                        .collect()
                }))
            })?
        } else {
            Vec::new()
        };
        let of_x = if !x.track_op() {
            None
        } else if self.own {
            // γ/σ·(g − mean(g) − x̂·mean(g·x̂)), x̂ = (x − mean)/σ (Ioffe & Szegedy 2015).
            let count = (x.elem_count() / channels.max(1)).max(1) as f64;
            let scale = read(scale, Self::NAME, |s| Ok(s.to_vec()))?;
            let data = read2(gradient, x, Self::NAME, |gradient, x| {
                let mut result = vec![0.0; gradient.len()];
                if !result.is_empty() {
                    on_pool(|| {
                        result
                            .par_chunks_mut(area)
                            .zip(gradient.par_chunks(area).zip(x.par_chunks(area)))
                            .enumerate()
                            .with_min_len(4)
                            .for_each(|(index, (result, (g, x)))| {
                                let c = index % channels;
                                let inverse = f64::from(self.inverse[c]);
                                let slope = f64::from(scale[c]) * inverse;
                                let factor = -slope * inverse * inverse * sums[c].0 / count;
                                let constant = (-slope * sums[c].1 / count) as f32;
                                let (slope, factor) = (slope as f32, factor as f32);
                                let mean = self.mean[c];
                                for (r, (g, x)) in result.iter_mut().zip(g.iter().zip(x)) {
                                    *r = g * slope + ((x - mean) * factor + constant);
                                }
                            });
                    });
                }
                Ok(result)
            })?;
            Some(tensor_like(data, x)?)
        } else {
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
        };
        if !scale.track_op() && !shift.track_op() {
            return Ok((of_x, None, None));
        }
        let (of_scale, of_shift): (Vec<f32>, Vec<f32>) = sums
            .iter()
            .zip(&self.inverse)
            .map(|((with_x, plain), inverse)| {
                ((with_x * f64::from(*inverse)) as f32, *plain as f32)
            })
            .unzip();
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
        BatchNorm {
            mean,
            inverse,
            own: false,
        },
    )
}

/// Batch norm per channel (axis 1) of an input of rank 2 or more by the mean and the population's variance of the input itself (Ioffe &
/// Szegedy 2015), differentiable in x, scale and shift. With the result come the statistics, an entry a channel.
pub fn batch_norm_of_batch(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    epsilon: f32,
) -> Result<(Tensor, Vec<f32>, Vec<f32>)> {
    let x = x.contiguous()?;
    let [_, channels, area @ ..] = x.dims() else {
        bail!(
            "{}: an input of shape {:?} has no channels",
            BatchNorm::NAME,
            x.dims()
        )
    };
    let (channels, area): (usize, usize) = (*channels, area.iter().product());
    let count = (x.elem_count() / channels.max(1)).max(1) as f64;
    let moments: Vec<(f32, f32)> = read(&x, BatchNorm::NAME, |x| {
        let planes = |c: usize| {
            (c * area..x.len())
                .step_by((channels * area).max(1))
                .map(move |at| &x[at..at + area])
        };
        Ok(on_pool(|| {
            (0..channels)
                .into_par_iter()
                .map(|c| {
                    let sum: f64 = planes(c).map(|x| f64::from(simd::sum(x))).sum();
                    let mean = sum / count;
                    let near = mean as f32;
                    let squares: f64 = planes(c)
                        .map(|x| f64::from(simd::centred_squares(x, near)))
                        .sum();
                    // Distances were taken from the mean as a float.
                    let off = mean - f64::from(near);
                    (near, (squares / count - off * off).max(0.0) as f32)
                })
                .collect()
        }))
    })?;
    let (mean, variance): (Vec<f32>, Vec<f32>) = moments.into_iter().unzip();
    let inverse = variance
        .iter()
        .map(|v| 1.0 / (v + epsilon).sqrt())
        .collect();
    let y = x.apply_op3(
        &scale.contiguous()?,
        &shift.contiguous()?,
        BatchNorm {
            mean: mean.clone(),
            inverse,
            own: true,
        },
    )?;
    Ok((y, mean, variance))
}
