//! Max and average pooling with gradients, any stride, dilation and padding, floor and ceil.

use super::{
    Pool2dGeometry,
    host::{checked_count, elements, on_pool, output, read, read2, tensor_like},
    window::reach,
};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Sizes of one pooling, checked.
struct PoolShape {
    n: usize,
    c: usize,
    h: usize,
    w: usize,
    ho: usize,
    wo: usize,
    geometry: Pool2dGeometry,
}

impl PoolShape {
    fn new(op: &str, x: &[usize], geometry: &Pool2dGeometry) -> Result<Self> {
        let &[n, c, h, w] = x else {
            bail!("{op} takes a rank-4 input, not {x:?}")
        };
        let g = geometry;
        if [
            g.kernel.0,
            g.kernel.1,
            g.stride.0,
            g.stride.1,
            g.dilation.0,
            g.dilation.1,
            h,
            w,
        ]
        .contains(&0)
        {
            bail!("{op}: {g:?} on an input {h}×{w}: no extent may be 0")
        }
        let (Some(ho), Some(wo)) = (
            pooled(
                h,
                (g.pad.0, g.pad.2),
                g.kernel.0,
                g.stride.0,
                g.dilation.0,
                g.ceil,
            ),
            pooled(
                w,
                (g.pad.1, g.pad.3),
                g.kernel.1,
                g.stride.1,
                g.dilation.1,
                g.ceil,
            ),
        ) else {
            bail!("{op}: {g:?} doesn't fit an input of {h}×{w}")
        };
        checked_count(op, &[n, c, ho, wo])?;
        Ok(Self {
            n,
            c,
            h,
            w,
            ho,
            wo,
            geometry: *g,
        })
    }

    /// For every output row: the input rows its window meets, and how many of its taps lie in input or padding.
    fn rows(&self) -> Vec<Taps> {
        let g = &self.geometry;
        (0..self.ho)
            .map(|o| {
                Taps::new(
                    o * g.stride.0,
                    g.kernel.0,
                    g.dilation.0,
                    (g.pad.0, g.pad.2),
                    self.h,
                )
            })
            .collect()
    }
    fn columns(&self) -> Vec<Taps> {
        let g = &self.geometry;
        (0..self.wo)
            .map(|o| {
                Taps::new(
                    o * g.stride.1,
                    g.kernel.1,
                    g.dilation.1,
                    (g.pad.1, g.pad.3),
                    self.w,
                )
            })
            .collect()
    }
}

/// Output extent. With `ceil`, a last window that would begin in the far padding is left out, as ONNX says.
fn pooled(
    extent: usize,
    pads: (usize, usize),
    kernel: usize,
    stride: usize,
    dilation: usize,
    ceil: bool,
) -> Option<usize> {
    let near = extent.checked_add(pads.0)?;
    let room = near
        .checked_add(pads.1)?
        .checked_sub(reach(kernel, dilation)?)?;
    if !ceil {
        return Some(room / stride + 1);
    }
    let out = room.div_ceil(stride) + 1;
    Some(if (out - 1).checked_mul(stride)? >= near {
        out - 1
    } else {
        out
    })
}

/// One axis of one window.
struct Taps {
    /// Input positions, `dilation` apart.
    inside: Range<usize>,
    /// Taps within input or padding (a ceil window may reach beyond both).
    padded: usize,
}

impl Taps {
    /// `start` is the window's first position in padded coordinates.
    fn new(
        start: usize,
        kernel: usize,
        dilation: usize,
        pads: (usize, usize),
        extent: usize,
    ) -> Self {
        let count = |end: usize| end.saturating_sub(start).div_ceil(dilation).min(kernel);
        let before = count(pads.0);
        let until = count(pads.0 + extent);
        let first = (start + before * dilation).saturating_sub(pads.0);
        Self {
            inside: first..first + (until - before) * dilation,
            padded: count(pads.0 + extent + pads.1),
        }
    }
    fn positions(&self, dilation: usize) -> std::iter::StepBy<Range<usize>> {
        self.inside.clone().step_by(dilation)
    }
    fn count(&self, dilation: usize) -> usize {
        self.inside.len() / dilation
    }
}

/// Fills an N×C×H'×W' result plane by plane: `work(input plane, rows, columns, output plane)`.
fn planes(
    shape: &PoolShape,
    input: &[f32],
    work: impl Fn(&[f32], &[Taps], &[Taps], &mut [f32]) + Sync,
) -> Vec<f32> {
    let (rows, columns) = (shape.rows(), shape.columns());
    let mut result = vec![0.0; shape.n * shape.c * shape.ho * shape.wo];
    if !result.is_empty() {
        on_pool(|| {
            result
                .par_chunks_mut(shape.ho * shape.wo)
                .zip(input.par_chunks(shape.h * shape.w))
                .for_each(|(result, plane)| work(plane, &rows, &columns, result));
        });
    }
    result
}

/// Index and value of a window's largest element (the first of equals; a NaN wins), or nothing inside.
fn largest(
    plane: &[f32],
    width: usize,
    row: &Taps,
    column: &Taps,
    dilation: (usize, usize),
) -> (Option<usize>, f32) {
    let (mut at, mut best) = (None, f32::NEG_INFINITY);
    for y in row.positions(dilation.0) {
        for x in column.positions(dilation.1) {
            let value = plane[y * width + x];
            if value > best || at.is_none() || (value.is_nan() && !best.is_nan()) {
                (at, best) = (Some(y * width + x), value);
            }
        }
    }
    (at, best)
}

struct MaxPool(Pool2dGeometry);

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = PoolShape::new(self.name(), layout.dims(), &self.0)?;
        let input = elements(x, layout, self.name())?;
        let result = planes(&shape, &input, |plane, rows, columns, result| {
            for (row, line) in rows.iter().zip(result.chunks_exact_mut(shape.wo)) {
                for (column, value) in columns.iter().zip(line) {
                    *value = largest(plane, shape.w, row, column, self.0.dilation).1;
                }
            }
        });
        output(result, (shape.n, shape.c, shape.ho, shape.wo))
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let shape = PoolShape::new(self.name(), x.dims(), &self.0)?;
        let (rows, columns) = (shape.rows(), shape.columns());
        let data = read2(x, gradient, self.name(), |x, gradient| {
            let mut result = vec![0.0; x.len()];
            on_pool(|| {
                let area = shape.h * shape.w;
                result
                    .par_chunks_mut(area)
                    .zip(x.par_chunks(area))
                    .zip(gradient.par_chunks(shape.ho * shape.wo))
                    .for_each(|((result, plane), gradient)| {
                        for (row, line) in rows.iter().zip(gradient.chunks_exact(shape.wo)) {
                            for (column, g) in columns.iter().zip(line) {
                                let window = largest(plane, shape.w, row, column, self.0.dilation);
                                if let (Some(at), _) = window {
                                    result[at] += g;
                                }
                            }
                        }
                    });
            });
            Ok(result)
        })?;
        Ok(Some(tensor_like(data, x)?))
    }
}

/// Max pooling with gradient, any stride. Padding never wins; a window that lies in padding alone gives −∞.
pub fn max_pool2d(x: &Tensor, geometry: Pool2dGeometry) -> Result<Tensor> {
    x.contiguous()?.apply_op1(MaxPool(geometry))
}

struct AveragePool {
    geometry: Pool2dGeometry,
    count_include_pad: bool,
}

impl AveragePool {
    /// One over the number of elements a window is divided by.
    fn share(&self, row: &Taps, column: &Taps) -> f32 {
        let d = self.geometry.dilation;
        let count = if self.count_include_pad {
            row.padded * column.padded
        } else {
            row.count(d.0) * column.count(d.1)
        };
        1.0 / count.max(1) as f32
    }
}

impl CustomOp1 for AveragePool {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = PoolShape::new(self.name(), layout.dims(), &self.geometry)?;
        let input = elements(x, layout, self.name())?;
        let d = self.geometry.dilation;
        let result = planes(&shape, &input, |plane, rows, columns, result| {
            for (row, line) in rows.iter().zip(result.chunks_exact_mut(shape.wo)) {
                for (column, value) in columns.iter().zip(line) {
                    let mut sum = 0.0;
                    for y in row.positions(d.0) {
                        for x in column.positions(d.1) {
                            sum += plane[y * shape.w + x];
                        }
                    }
                    *value = sum * self.share(row, column);
                }
            }
        });
        output(result, (shape.n, shape.c, shape.ho, shape.wo))
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let shape = PoolShape::new(self.name(), x.dims(), &self.geometry)?;
        let (rows, columns) = (shape.rows(), shape.columns());
        let d = self.geometry.dilation;
        let data = read(gradient, self.name(), |gradient| {
            let mut result = vec![0.0; x.elem_count()];
            on_pool(|| {
                result
                    .par_chunks_mut(shape.h * shape.w)
                    .zip(gradient.par_chunks(shape.ho * shape.wo))
                    .for_each(|(result, gradient)| {
                        for (row, line) in rows.iter().zip(gradient.chunks_exact(shape.wo)) {
                            for (column, g) in columns.iter().zip(line) {
                                let part = g * self.share(row, column);
                                for y in row.positions(d.0) {
                                    for x in column.positions(d.1) {
                                        result[y * shape.w + x] += part;
                                    }
                                }
                            }
                        }
                    });
            });
            Ok(result)
        })?;
        Ok(Some(tensor_like(data, x)?))
    }
}

/// Average pooling with gradient, any stride. With `count_include_pad` a window is divided by its elements in input and
/// padding (not by those a ceil window has beyond both), else by those in the input.
pub fn avg_pool2d(x: &Tensor, geometry: Pool2dGeometry, count_include_pad: bool) -> Result<Tensor> {
    x.contiguous()?.apply_op1(AveragePool {
        geometry,
        count_include_pad,
    })
}
