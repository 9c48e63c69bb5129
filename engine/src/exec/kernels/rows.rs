//! Softmax and layer norm over the rows of a matrix, with their gradients: a row is one task's work, so a sum's order never depends
//! on the number of threads, nor on the width of the vectors.

#![allow(unsafe_code)] // vectors by intrinsics over rows that are sliced, so checked, first

use super::{
    functions::exp,
    host::{elements, on_pool, output, read, read2, tensor_like},
    lanes::{Isa, Lanes, for_each_isa, isa},
};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, InplaceOp1, Layout, Result, Shape, Tensor, bail,
};
use rayon::prelude::*;

/// Sums kept side by side whatever the vector's width: part of what a sum's bits are.
const SUMS: usize = 32;

/// Elements summed in f32 before their sum joins the others in f64.
const BLOCK: usize = 4096;

/// Elements a task takes, about.
const TASK: usize = 1 << 14;

/// Parts of the sum over rows of a weight's gradient, at most.
const PARTS: usize = 64;

/// The sum of `f(at, count)` over whole vectors and a last part, where `f` gives the lanes of `count` elements from `at` on, those
/// beyond `count` zero.
///
/// # Safety
/// `f` may be called for every part of `0..count`.
#[inline(always)]
unsafe fn sum<L: Lanes>(count: usize, f: impl Fn(usize, usize) -> L) -> f64 {
    let mut total = 0f64;
    let mut from = 0;
    while from < count {
        let end = count.min(from + BLOCK);
        // SAFETY: the buffer holds `SUMS` floats, which is four vectors of 8 or two of 16.
        unsafe {
            let mut sums = [L::splat(0.0); 4];
            let vectors = SUMS / L::WIDTH;
            let mut at = from;
            while at + SUMS <= end {
                for (i, sum) in sums.iter_mut().enumerate().take(vectors) {
                    *sum = sum.add(f(at + i * L::WIDTH, L::WIDTH));
                }
                at += SUMS;
            }
            for (i, sum) in sums.iter_mut().enumerate().take(vectors) {
                let at = at + i * L::WIDTH;
                if at < end {
                    *sum = sum.add(f(at, L::WIDTH.min(end - at)));
                }
            }
            let mut lanes = [0f32; SUMS];
            for (i, sum) in sums.iter().enumerate().take(vectors) {
                sum.store(lanes.as_mut_ptr().add(i * L::WIDTH));
            }
            let mut width = SUMS / 2;
            while width > 0 {
                for lane in 0..width {
                    lanes[lane] += lanes[lane + width];
                }
                width /= 2;
            }
            total += f64::from(lanes[0]);
        }
        from = end;
    }
    total
}

/// Calls `f(at, count)` for whole vectors and a last part of a row.
#[inline(always)]
fn each<L: Lanes>(count: usize, mut f: impl FnMut(usize, usize)) {
    let mut at = 0;
    while at < count {
        let n = (count - at).min(L::WIDTH);
        f(at, n);
        at += n;
    }
}

for_each_isa!(
    /// # Safety
    /// Both rows hold `count` ≥ 1 floats; they may be the same.
    fn softmax_row => softmax_body(x: *const f32, out: *mut f32, count: usize, log: bool)
);

#[inline(always)]
unsafe fn softmax_body<L: Lanes>(x: *const f32, out: *mut f32, count: usize, log: bool) {
    // SAFETY: parts lie within the rows.
    unsafe {
        let mut most = L::splat(f32::NEG_INFINITY);
        let mut at = 0;
        while at + L::WIDTH <= count {
            // The first argument gives way to the second where it is no number.
            most = L::load(x.add(at)).max(most);
            at += L::WIDTH;
        }
        let mut lanes = [0f32; 16];
        most.store(lanes.as_mut_ptr());
        let mut top = f32::NEG_INFINITY;
        for lane in &lanes[..L::WIDTH] {
            top = top.max(*lane);
        }
        while at < count {
            top = top.max(*x.add(at));
            at += 1;
        }
        let shift = L::splat(top);
        if log {
            let total = sum::<L>(count, |at, n| {
                let e = exp(L::load_part(x.add(at), n).sub(shift));
                // Lanes beyond the row must not count.
                if n < L::WIDTH { first(e, n) } else { e }
            });
            let log = L::splat(total.ln() as f32);
            each::<L>(count, |at, n| {
                L::load_part(x.add(at), n)
                    .sub(shift)
                    .sub(log)
                    .store_part(out.add(at), n);
            });
        } else {
            each::<L>(count, |at, n| {
                exp(L::load_part(x.add(at), n).sub(shift)).store_part(out.add(at), n);
            });
            let out_read = out.cast_const();
            let total = sum::<L>(count, |at, n| L::load_part(out_read.add(at), n));
            let scale = L::splat((1.0 / total) as f32);
            each::<L>(count, |at, n| {
                L::load_part(out_read.add(at), n)
                    .mul(scale)
                    .store_part(out.add(at), n);
            });
        }
    }
}

/// The first `count` lanes, the others 0.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn first<L: Lanes>(x: L, count: usize) -> L {
    // SAFETY: the buffer holds any vector.
    unsafe {
        let mut lanes = [0f32; 16];
        x.store(lanes.as_mut_ptr());
        L::load_part(lanes.as_ptr(), count)
    }
}

for_each_isa!(
    /// # Safety
    /// Three rows of `count` floats.
    fn softmax_slope_row => softmax_slope_body(y: *const f32, g: *const f32, out: *mut f32, count: usize, log: bool)
);

#[inline(always)]
unsafe fn softmax_slope_body<L: Lanes>(
    y: *const f32,
    g: *const f32,
    out: *mut f32,
    count: usize,
    log: bool,
) {
    // SAFETY: parts lie within the rows.
    unsafe {
        let (y_at, g_at) = (
            |at: usize, n: usize| L::load_part(y.add(at), n),
            |at: usize, n: usize| L::load_part(g.add(at), n),
        );
        if log {
            let total = L::splat(-(sum::<L>(count, g_at) as f32));
            each::<L>(count, |at, n| {
                exp(y_at(at, n))
                    .fma(total, g_at(at, n))
                    .store_part(out.add(at), n);
            });
        } else {
            let dot = L::splat(sum::<L>(count, |at, n| y_at(at, n).mul(g_at(at, n))) as f32);
            each::<L>(count, |at, n| {
                y_at(at, n)
                    .mul(g_at(at, n).sub(dot))
                    .store_part(out.add(at), n);
            });
        }
    }
}

/// Calls `f(row, row of out)` for rows of `width`, several rows a task.
fn each_row(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if out.is_empty() {
        return;
    }
    let many = (TASK / width).max(1);
    if out.len() <= width * many {
        for (r, out) in out.chunks_mut(width).enumerate() {
            f(r, out);
        }
        return;
    }
    on_pool(|| {
        out.par_chunks_mut(width * many)
            .enumerate()
            .for_each(|(task, out)| {
                for (r, out) in out.chunks_mut(width).enumerate() {
                    f(task * many + r, out);
                }
            });
    });
}

fn matrix(l: &Layout, name: &str) -> Result<(usize, usize)> {
    match l.dims() {
        [rows, n] => Ok((*rows, *n)),
        d => bail!("{name}: expected a matrix, got shape {d:?}"),
    }
}

/// Softmax, or its logarithm, along the rows of a matrix.
#[derive(Clone, Copy)]
struct Softmax {
    log: bool,
    isa: Isa,
}

impl Softmax {
    const NAME: &'static str = "softmax";
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, n) = matrix(l, Self::NAME)?;
        let x = elements(s, l, Self::NAME)?;
        let mut y = vec![0.0; x.len()];
        each_row(&mut y, n, |r, out| {
            let x = &x[r * n..(r + 1) * n];
            // SAFETY: two rows of `n` floats, not empty.
            unsafe { softmax_row(self.isa, x.as_ptr(), out.as_mut_ptr(), n, self.log) }
        });
        output(y, l.shape().clone())
    }
    fn bwd(&self, x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (_, n) = matrix(x.layout(), Self::NAME)?;
        let data = read2(y, g, Self::NAME, |y, g| {
            let mut out = vec![0.0; y.len()];
            each_row(&mut out, n, |r, out| {
                let (y, g) = (&y[r * n..(r + 1) * n], &g[r * n..(r + 1) * n]);
                let (isa, to) = (self.isa, out.as_mut_ptr());
                // SAFETY: three rows of `n` floats.
                unsafe { softmax_slope_row(isa, y.as_ptr(), g.as_ptr(), to, n, self.log) }
            });
            Ok(out)
        })?;
        Ok(Some(tensor_like(data, x)?))
    }
}

impl InplaceOp1 for Softmax {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn cpu_fwd(&self, s: &mut CpuStorage, l: &Layout) -> Result<()> {
        let (_, n) = matrix(l, Self::NAME)?;
        each_row(contiguous(s, l, Self::NAME)?, n, |_, out| {
            let p = out.as_mut_ptr();
            // SAFETY: one row of `n` floats, read and written.
            unsafe { softmax_row(self.isa, p.cast_const(), p, n, self.log) }
        });
        Ok(())
    }
}

/// The elements of a tensor that lies in one piece, to be overwritten.
pub(super) fn contiguous<'a>(
    s: &'a mut CpuStorage,
    l: &Layout,
    name: &str,
) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(data) = s else {
        bail!("{name} computes in f32")
    };
    match l.contiguous_offsets().and_then(|(a, b)| data.get_mut(a..b)) {
        Some(part) => Ok(part),
        None => bail!("{name}: a value written in place lies in one piece"),
    }
}

/// Softmax of one row, on the calling thread.
///
/// # Panics
/// Where the two differ in length.
pub(in crate::exec) fn softmax_to(x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "rows of one length");
    if !x.is_empty() {
        // SAFETY: two rows of one length, not empty.
        unsafe { softmax_row(isa(), x.as_ptr(), out.as_mut_ptr(), x.len(), false) }
    }
}

/// Softmax (or its logarithm) along each row of a matrix; differentiable. Not-a-numbers stay.
///
/// # Errors
/// An input that is no f32 matrix.
pub fn softmax(x: &Tensor, log: bool) -> Result<Tensor> {
    softmax_by(isa(), x, log)
}

/// [`softmax`] by the given instructions.
pub(super) fn softmax_by(isa: Isa, x: &Tensor, log: bool) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Softmax { log, isa })
}

/// [`softmax`] over what x holds. Nothing else may read x.
pub(in crate::exec) fn softmax_in_place(x: &Tensor, log: bool) -> Result<()> {
    x.inplace_op1(&Softmax { log, isa: isa() })
}

/// Mean and 1/√(variance + ε) of a row, sums in lanes and f64.
///
/// # Safety
/// A row of `count` floats.
#[inline(always)]
unsafe fn moments<L: Lanes>(x: *const f32, count: usize, epsilon: f64) -> (f32, f32) {
    // SAFETY: parts lie within the row.
    unsafe {
        let n = count as f64;
        let mean = (sum::<L>(count, |at, n| L::load_part(x.add(at), n)) / n) as f32;
        let center = L::splat(mean);
        let squares = sum::<L>(count, |at, n| {
            let d = L::load_part(x.add(at), n).sub(center);
            let d = if n < L::WIDTH { first(d, n) } else { d };
            d.mul(d)
        });
        (mean, (1.0 / (squares / n + epsilon).sqrt()) as f32)
    }
}

for_each_isa!(
    /// # Safety
    /// Rows of `count` floats each; `out` may be `x`.
    fn norm_row => norm_body(x: *const f32, scale: *const f32, shift: *const f32, out: *mut f32, count: usize, epsilon: f64)
);

#[inline(always)]
unsafe fn norm_body<L: Lanes>(
    x: *const f32,
    scale: *const f32,
    shift: *const f32,
    out: *mut f32,
    count: usize,
    epsilon: f64,
) {
    // SAFETY: parts lie within the rows.
    unsafe {
        let (mean, inverse) = moments::<L>(x, count, epsilon);
        let (mean, inverse) = (L::splat(mean), L::splat(inverse));
        each::<L>(count, |at, n| {
            let normal = L::load_part(x.add(at), n).sub(mean).mul(inverse);
            normal
                .fma(
                    L::load_part(scale.add(at), n),
                    L::load_part(shift.add(at), n),
                )
                .store_part(out.add(at), n);
        });
    }
}

for_each_isa!(
    /// # Safety
    /// Rows of `count` floats each; `sums` holds those of the scale's gradient and then those of the shift's.
    fn norm_slope_row => norm_slope_body(x: *const f32, scale: *const f32, g: *const f32, out: *mut f32, sums: *mut f32, count: usize, epsilon: f64)
);

#[inline(always)]
unsafe fn norm_slope_body<L: Lanes>(
    x: *const f32,
    scale: *const f32,
    g: *const f32,
    out: *mut f32,
    sums: *mut f32,
    count: usize,
    epsilon: f64,
) {
    // SAFETY: parts lie within the rows.
    unsafe {
        let (mean, inverse) = moments::<L>(x, count, epsilon);
        let (mean, factor) = (L::splat(mean), L::splat(inverse));
        let normal = |at: usize, n: usize| L::load_part(x.add(at), n).sub(mean).mul(factor);
        let through =
            |at: usize, n: usize| L::load_part(g.add(at), n).mul(L::load_part(scale.add(at), n));
        let n = count as f64;
        let mean_g = L::splat((sum::<L>(count, through) / n) as f32);
        let mean_gx =
            L::splat((sum::<L>(count, |at, n| through(at, n).mul(normal(at, n))) / n) as f32);
        each::<L>(count, |at, n| {
            let normal = normal(at, n);
            let d = through(at, n)
                .sub(mean_g)
                .sub(normal.mul(mean_gx))
                .mul(factor);
            d.store_part(out.add(at), n);
            let g = L::load_part(g.add(at), n);
            let of_scale = L::load_part(sums.add(at), n);
            g.fma(normal, of_scale).store_part(sums.add(at), n);
            let of_shift = L::load_part(sums.add(count + at), n);
            of_shift.add(g).store_part(sums.add(count + at), n);
        });
    }
}

/// Layer norm of the rows of a matrix.
#[derive(Clone, Copy)]
struct LayerNorm {
    epsilon: f64,
    isa: Isa,
}

impl LayerNorm {
    const NAME: &'static str = "layer_norm";
}

impl CustomOp3 for LayerNorm {
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
        let (_, n) = matrix(xl, Self::NAME)?;
        let x = elements(x, xl, Self::NAME)?;
        let scale = elements(scale, scale_l, Self::NAME)?;
        let shift = elements(shift, shift_l, Self::NAME)?;
        if scale.len() != n || shift.len() != n {
            bail!(
                "{}: scale and shift have {} and {} elements for rows of {n}",
                Self::NAME,
                scale.len(),
                shift.len()
            )
        }
        let mut y = vec![0.0; x.len()];
        each_row(&mut y, n, |r, out| {
            let x = &x[r * n..(r + 1) * n];
            let (scale, shift, to) = (scale.as_ptr(), shift.as_ptr(), out.as_mut_ptr());
            // SAFETY: rows of `n` floats.
            unsafe { norm_row(self.isa, x.as_ptr(), scale, shift, to, n, self.epsilon) }
        });
        output(y, xl.shape().clone())
    }
    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (rows, n) = matrix(x.layout(), Self::NAME)?;
        let (of_x, sums) = read2(x, gradient, Self::NAME, |x, g| {
            read(scale, Self::NAME, |scale| {
                let mut of_x = vec![0.0; x.len()];
                let mut sums = vec![0f64; 2 * n];
                if of_x.is_empty() {
                    return Ok((of_x, sums));
                }
                // Parts by sizes alone, added up in their order.
                let each = (TASK / n).max(rows.div_ceil(PARTS)).max(1);
                let parts: Vec<Vec<f32>> = on_pool(|| {
                    of_x.par_chunks_mut(each * n)
                        .enumerate()
                        .map(|(part, out)| {
                            let mut sums = vec![0f32; 2 * n];
                            for (r, out) in out.chunks_mut(n).enumerate() {
                                let at = (part * each + r) * n;
                                let (x, g) = (&x[at..at + n], &g[at..at + n]);
                                // SAFETY: rows of `n` floats; the sums hold twice as many.
                                unsafe {
                                    norm_slope_row(
                                        self.isa,
                                        x.as_ptr(),
                                        scale.as_ptr(),
                                        g.as_ptr(),
                                        out.as_mut_ptr(),
                                        sums.as_mut_ptr(),
                                        n,
                                        self.epsilon,
                                    );
                                }
                            }
                            sums
                        })
                        .collect()
                });
                for part in parts {
                    for (sum, part) in sums.iter_mut().zip(part) {
                        *sum += f64::from(part);
                    }
                }
                Ok((of_x, sums))
            })
        })?;
        let half = |part: &[f64], like: &Tensor| -> Result<Option<Tensor>> {
            if !like.track_op() {
                return Ok(None);
            }
            let data = part.iter().map(|s| *s as f32).collect();
            Ok(Some(tensor_like(data, like)?))
        };
        Ok((
            Some(tensor_like(of_x, x)?),
            half(&sums[..n], scale)?,
            half(&sums[n..], shift)?,
        ))
    }
}

/// Layer norm written over its input.
struct LayerNormInPlace<'a> {
    op: LayerNorm,
    scale: &'a [f32],
    shift: &'a [f32],
}

impl InplaceOp1 for LayerNormInPlace<'_> {
    fn name(&self) -> &'static str {
        LayerNorm::NAME
    }
    fn cpu_fwd(&self, s: &mut CpuStorage, l: &Layout) -> Result<()> {
        let (_, n) = matrix(l, LayerNorm::NAME)?;
        if self.scale.len() != n || self.shift.len() != n {
            bail!("{}: scale and shift of another size", LayerNorm::NAME)
        }
        each_row(contiguous(s, l, LayerNorm::NAME)?, n, |_, out| {
            let (scale, shift, p) = (self.scale.as_ptr(), self.shift.as_ptr(), out.as_mut_ptr());
            let (isa, epsilon) = (self.op.isa, self.op.epsilon);
            // SAFETY: rows of `n` floats; a row is read as a whole before, and then part by part as, it is written.
            unsafe { norm_row(isa, p.cast_const(), scale, shift, p, n, epsilon) }
        });
        Ok(())
    }
}

/// Each row of a matrix brought to mean 0 and variance 1, times `scale`, plus `shift` (a float for each column); differentiable in
/// all three. The variance is that of the row's elements (divided by their number), `epsilon` is added to it.
///
/// # Errors
/// An input that is no f32 matrix, a scale or shift of another size.
pub fn layer_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, epsilon: f64) -> Result<Tensor> {
    layer_norm_by(isa(), x, scale, shift, epsilon)
}

/// [`layer_norm`] by the given instructions.
pub(super) fn layer_norm_by(
    isa: Isa,
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    epsilon: f64,
) -> Result<Tensor> {
    x.contiguous()?.apply_op3(
        &scale.contiguous()?,
        &shift.contiguous()?,
        LayerNorm { epsilon, isa },
    )
}

/// [`layer_norm`] over what x holds. Nothing else may read x.
pub(in crate::exec) fn layer_norm_in_place(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    epsilon: f64,
) -> Result<()> {
    let op = LayerNorm {
        epsilon,
        isa: isa(),
    };
    read2(scale, shift, LayerNorm::NAME, |scale, shift| {
        x.inplace_op1(&LayerNormInPlace { op, scale, shift })
    })
}
