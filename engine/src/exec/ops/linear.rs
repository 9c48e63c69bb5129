//! Convolutions, pools, batch norm, Gemm and MatMul: geometry here, arithmetic in the kernels and candle's matmul.

use super::{R, arith, float_out, need, optional};
use crate::{
    exec::{
        Fail,
        broadcast::broadcast_shape,
        elementwise::{Bin, binary},
        kernels::{self, Conv2dGeometry, Pool2dGeometry, planes},
        pool::on_pool,
        scalar::Fun,
        value::{Val, count, with_f32},
    },
    graph::{ElementType, Padding, Window},
};
use candle_core::{DType, Tensor};

/// A window over one or two spatial axes, brought to two: a 1-D one becomes a row.
struct Window2d {
    one_d: bool,
    kernel: (usize, usize),
    stride: (usize, usize),
    dilation: (usize, usize),
}

/// No extent, stride, dilation or pad of a window is larger: their products then stay inside a `usize`.
const MAX_EXTENT: usize = 1 << 24;

fn pair(v: &[usize], one_d: bool, default: usize, what: &str) -> R<(usize, usize)> {
    limit(v, what)?;
    match (v, one_d) {
        ([], _) => Ok((default, default)),
        ([w], true) => Ok((1, *w)),
        ([h, w], false) => Ok((*h, *w)),
        _ => Err(Fail(format!(
            "{} {what} do not fit the spatial axes",
            v.len()
        ))),
    }
}

fn limit(v: &[usize], what: &str) -> R<()> {
    match v.iter().find(|&&v| v > MAX_EXTENT) {
        Some(v) => Err(Fail(format!(
            "{what} of {v} are beyond the limit of {MAX_EXTENT}"
        ))),
        None => Ok(()),
    }
}

impl Window2d {
    fn new(window: &Window, kernel: &[usize], one_d: bool) -> R<Self> {
        let s = Self {
            one_d,
            kernel: pair(kernel, one_d, 1, "kernel extents")?,
            stride: pair(&window.strides, one_d, 1, "strides")?,
            dilation: pair(&window.dilations, one_d, 1, "dilations")?,
        };
        // The second axis of a 1-D window is one row whatever the file says.
        let s = if one_d {
            Self {
                stride: (1, s.stride.1),
                dilation: (1, s.dilation.1),
                ..s
            }
        } else {
            s
        };
        let zero = |p: (usize, usize)| p.0 == 0 || p.1 == 0;
        if zero(s.kernel) || zero(s.stride) || zero(s.dilation) {
            return Err(Fail("kernel, strides and dilations must not be 0".into()));
        }
        Ok(s)
    }
    /// Extent of the dilated kernel.
    fn extent(&self) -> (usize, usize) {
        (
            (self.kernel.0 - 1) * self.dilation.0 + 1,
            (self.kernel.1 - 1) * self.dilation.1 + 1,
        )
    }
}

/// Explicit padding (top, left, bottom, right) of a window over an `h`×`w` plane.
fn padding(
    p: &Padding,
    w: &Window2d,
    (h, width): (usize, usize),
) -> R<(usize, usize, usize, usize)> {
    let same = |size: usize, stride: usize, extent: usize, upper: bool| {
        let out = size.div_ceil(stride);
        let total = (out.saturating_sub(1) * stride + extent).saturating_sub(size);
        let small = total / 2;
        if upper {
            (small, total - small)
        } else {
            (total - small, small)
        }
    };
    match p {
        Padding::Valid => Ok((0, 0, 0, 0)),
        Padding::Explicit(v) => match (v.as_slice(), w.one_d) {
            _ if limit(v, "pads").is_err() => Err(Fail(format!("pads {v:?} are absurd"))),
            ([], _) => Ok((0, 0, 0, 0)),
            ([l, r], true) => Ok((0, *l, 0, *r)),
            ([t, l, b, r], false) => Ok((*t, *l, *b, *r)),
            _ => Err(Fail(format!(
                "{} pads do not fit the spatial axes",
                v.len()
            ))),
        },
        Padding::SameUpper | Padding::SameLower => {
            let upper = *p == Padding::SameUpper;
            let extent = w.extent();
            let v = same(h, w.stride.0, extent.0, upper);
            let hz = same(width, w.stride.1, extent.1, upper);
            Ok((v.0, hz.0, v.1, hz.1))
        }
    }
}

/// N×C×L as N×C×1×L; N×C×H×W as it is. The flag says which.
fn as_2d(x: &Tensor) -> R<(Tensor, bool)> {
    match x.dims() {
        [n, c, l] => Ok((x.reshape(&[*n, *c, 1, *l][..])?, true)),
        [_, _, _, _] => Ok((x.clone(), false)),
        d => Err(Fail(format!(
            "input of shape {d:?}: only one or two spatial axes are supported"
        ))),
    }
}

/// Back to N×C×L.
fn from_2d(y: Tensor, one_d: bool) -> R<Tensor> {
    if !one_d {
        return Ok(y);
    }
    let (n, c, _, l) = y.dims4()?;
    Ok(y.reshape((n, c, l))?)
}

fn check_kernel(window: &Window, w: &[usize]) -> R<()> {
    if !window.kernel.is_empty() && window.kernel != w {
        return Err(Fail(format!(
            "kernel_shape {:?} disagrees with the weight's {w:?}",
            window.kernel
        )));
    }
    Ok(())
}

/// A window over an `h`×`w` image as the kernels on planes want it.
pub fn window_over(
    window: &Window,
    kernel: &[usize],
    (h, w): (usize, usize),
) -> R<planes::Window2d> {
    if !window.kernel.is_empty() && window.kernel != kernel {
        return Err(Fail("kernel_shape disagrees with the weight's".into()));
    }
    let win = Window2d::new(window, kernel, false)?;
    let pad = padding(&window.padding, &win, (h, w))?;
    let extent = win.extent();
    let out = |size: usize, pads: usize, extent: usize, stride: usize| {
        (size + pads)
            .checked_sub(extent)
            .map(|left| left / stride + 1)
            .ok_or_else(|| Fail("the kernel does not fit the padded input".into()))
    };
    Ok(planes::Window2d {
        kernel: win.kernel,
        stride: win.stride,
        dilation: win.dilation,
        before: (pad.0, pad.1),
        h: out(h, pad.0 + pad.2, extent.0, win.stride.0)?,
        w: out(w, pad.1 + pad.3, extent.1, win.stride.1)?,
    })
}

pub fn conv(inputs: &[Option<Val>], window: &Window, group: usize) -> R<Val> {
    let x = need(inputs, 0)?;
    let weight = need(inputs, 1)?.tensor()?;
    let bias = optional(inputs, 2).map(Val::tensor).transpose()?;
    let (x2, one_d) = as_2d(x.tensor()?)?;
    let (w2, w_one_d) = as_2d(weight)?;
    if one_d != w_one_d {
        return Err(Fail(format!(
            "input {:?} and weight {:?} differ in rank",
            x.shape(),
            weight.dims()
        )));
    }
    check_kernel(window, &weight.dims()[2..])?;
    let win = Window2d::new(window, &weight.dims()[2..], one_d)?;
    let (_, c, h, w) = x2.dims4()?;
    let (o, per_group, _, _) = w2.dims4()?;
    if group == 0 || per_group.checked_mul(group) != Some(c) || o % group != 0 {
        return Err(Fail(format!(
            "input {:?} has {c} channels, weight {:?} with {group} groups wants {}",
            x.shape(),
            weight.dims(),
            per_group.saturating_mul(group)
        )));
    }
    check_bias(bias, o)?;
    let pad = padding(&window.padding, &win, (h, w))?;
    let fits = |size: usize, a: usize, b: usize, e: usize| {
        a.checked_add(b)
            .and_then(|p| p.checked_add(size))
            .is_some_and(|s| s >= e && s < 1 << 30)
    };
    if !fits(h, pad.0, pad.2, win.extent().0) || !fits(w, pad.1, pad.3, win.extent().1) {
        return Err(Fail(format!(
            "the kernel (extent {:?}) does not fit the padded input {:?}",
            win.extent(),
            x.shape()
        )));
    }
    let y = kernels::conv2d(
        &x2,
        &w2,
        bias,
        Conv2dGeometry {
            stride: win.stride,
            dilation: win.dilation,
            pad,
            groups: group,
        },
    )?;
    float_out(from_2d(y, one_d)?, x.element())
}

fn check_bias(bias: Option<&Tensor>, channels: usize) -> R<()> {
    match bias {
        Some(b) if b.dims() != [channels] => Err(Fail(format!(
            "bias of shape {:?}, expected [{channels}]",
            b.dims()
        ))),
        _ => Ok(()),
    }
}

pub fn conv_transpose(
    inputs: &[Option<Val>],
    window: &Window,
    group: usize,
    output_padding: &[usize],
    output_shape: Option<&[usize]>,
) -> R<Val> {
    let x = need(inputs, 0)?;
    let weight = need(inputs, 1)?.tensor()?;
    let bias = optional(inputs, 2).map(Val::tensor).transpose()?;
    let (x2, one_d) = as_2d(x.tensor()?)?;
    let (w2, w_one_d) = as_2d(weight)?;
    if one_d != w_one_d {
        return Err(Fail("input and weight differ in rank".into()));
    }
    check_kernel(window, &weight.dims()[2..])?;
    let win = Window2d::new(window, &weight.dims()[2..], one_d)?;
    let (_, c, h, w) = x2.dims4()?;
    let (wc, per_group, _, _) = w2.dims4()?;
    if group == 0 || wc != c || c % group != 0 {
        return Err(Fail(format!(
            "input {:?} has {c} channels, weight {:?} has {wc} in {group} groups",
            x.shape(),
            weight.dims()
        )));
    }
    check_bias(bias, per_group * group)?;
    let mut extra = pair(output_padding, one_d, 0, "output paddings")?;
    if one_d {
        extra.0 = 0;
    }
    let e = win.extent();
    // Extent without padding, per axis.
    let full = |size: usize, s: usize, e: usize, extra: usize| -> R<usize> {
        size.checked_sub(1)
            .and_then(|n| n.checked_mul(s))
            .and_then(|n| n.checked_add(e + extra))
            .ok_or_else(|| Fail("empty input".into()))
    };
    let raw = (
        full(h, win.stride.0, e.0, extra.0)?,
        full(w, win.stride.1, e.1, extra.1)?,
    );
    // SAME makes the output stride times the input; a given output shape sets the total padding instead.
    let target = match (output_shape, &window.padding) {
        (Some(s), _) => Some(pair(s, one_d, 0, "output extents")?),
        (None, Padding::SameUpper | Padding::SameLower) => {
            Some((h * win.stride.0, w * win.stride.1))
        }
        _ => None,
    };
    let pad = match target {
        None => padding(&window.padding, &win, (h, w))?,
        Some(t) => {
            let split = |raw: usize, want: usize, extra: &mut usize| {
                if want > raw {
                    *extra += want - raw;
                    return (0, 0);
                }
                let total = raw - want;
                let half = total / 2;
                if window.padding == Padding::SameUpper {
                    (half, total - half)
                } else {
                    (total - half, half)
                }
            };
            let v = split(raw.0, t.0, &mut extra.0);
            let hz = split(raw.1, t.1, &mut extra.1);
            (v.0, hz.0, v.1, hz.1)
        }
    };
    if pad.0 + pad.2 >= raw.0 + extra.0 || pad.1 + pad.3 >= raw.1 + extra.1 {
        return Err(Fail(format!(
            "padding {pad:?} leaves nothing of the output"
        )));
    }
    count(&[raw.0, raw.1])?;
    let y = kernels::conv_transpose2d(
        &x2,
        &w2,
        bias,
        Conv2dGeometry {
            stride: win.stride,
            dilation: win.dilation,
            pad,
            groups: group,
        },
        extra,
    )?;
    float_out(from_2d(y, one_d)?, x.element())
}

pub enum Pooling {
    Max,
    Average { count_include_pad: bool },
}

pub fn pooling(x: &Val, window: &Window, ceil: bool, kind: Pooling) -> R<Val> {
    // Bytes are exact in f32, and so is their maximum.
    if let (ElementType::I8 | ElementType::U8, Pooling::Max) = (x.element(), &kind) {
        let y = pooling(&arith::cast(x, ElementType::F32)?, window, ceil, kind)?;
        return arith::cast(&y, x.element());
    }
    let (x2, one_d) = as_2d(x.tensor()?)?;
    let win = Window2d::new(window, &window.kernel, one_d)?;
    let (_, _, h, w) = x2.dims4()?;
    let pad = padding(&window.padding, &win, (h, w))?;
    let e = win.extent();
    if h + pad.0 + pad.2 < e.0 || w + pad.1 + pad.3 < e.1 {
        return Err(Fail(format!(
            "the window (extent {e:?}) does not fit the padded input {:?}",
            x.shape()
        )));
    }
    let g = Pool2dGeometry {
        kernel: win.kernel,
        stride: win.stride,
        dilation: win.dilation,
        pad,
        ceil: ceil && matches!(window.padding, Padding::Explicit(_)),
    };
    let y = match kind {
        Pooling::Max => kernels::max_pool2d(&x2, g)?,
        Pooling::Average { count_include_pad } => kernels::avg_pool2d(&x2, g, count_include_pad)?,
    };
    float_out(from_2d(y, one_d)?, x.element())
}

/// N×C×1×(rest), the element type, and scale, shift, mean, variance, each of C.
type NormInputs<'a> = (Tensor, ElementType, Vec<&'a Tensor>);

fn norm_inputs(inputs: &[Option<Val>]) -> R<NormInputs<'_>> {
    let x = need(inputs, 0)?;
    let t = x.tensor()?;
    let Some(&c) = t.dims().get(1) else {
        return Err(Fail(format!(
            "input of shape {:?} has no channel axis",
            t.dims()
        )));
    };
    let mut p = Vec::with_capacity(4);
    for (i, what) in ["scale", "bias", "mean", "variance"].iter().enumerate() {
        let v = need(inputs, i + 1)?.tensor()?;
        if v.dims() != [c] {
            return Err(Fail(format!(
                "{what} of shape {:?}, expected [{c}]",
                v.dims()
            )));
        }
        p.push(v);
    }
    // Any rank is N×C×(rest) to the kernel.
    let n = t.dims()[0];
    let rest: usize = t.dims()[2..].iter().product();
    Ok((t.reshape((n, c, 1, rest))?, x.element(), p))
}

pub fn batch_norm(inputs: &[Option<Val>], epsilon: f32) -> R<Val> {
    let (x4, element, p) = norm_inputs(inputs)?;
    let y = kernels::batch_norm(&x4, p[0], p[1], p[2], p[3], epsilon)?;
    float_out(y.reshape(need(inputs, 0)?.shape())?, element)
}

/// A batch norm by the statistics of the batch itself, and those.
pub struct OfBatch {
    pub y: Val,
    pub mean: Vec<f32>,
    pub variance: Vec<f32>,
}

pub fn batch_norm_of_batch(inputs: &[Option<Val>], epsilon: f32) -> R<OfBatch> {
    let (x4, element, p) = norm_inputs(inputs)?;
    let (y, mean, variance) = kernels::batch_norm_of_batch(&x4, p[0], p[1], epsilon)?;
    Ok(OfBatch {
        y: float_out(y.reshape(need(inputs, 0)?.shape())?, element)?,
        mean,
        variance,
    })
}

/// The product of two matrices, or of as many pairs of them; empty operands answered here.
fn matmul_tensors(a: &Tensor, b: &Tensor) -> R<Tensor> {
    let rank = a.rank();
    let mut out = a.dims().to_vec();
    out[rank - 1] = b.dims()[rank - 1];
    if count(&out)? == 0 || a.elem_count() == 0 {
        return Ok(Tensor::zeros(out, a.dtype(), a.device())?);
    }
    if a.dtype() == DType::F64 {
        return Ok(on_pool(|| a.contiguous()?.matmul(&b.contiguous()?))?);
    }
    Ok(kernels::product(a, b, None)?)
}

/// `a·b` of a matrix or a batch of rows with a matrix, plus a float for each column.
pub fn matmul_plus(a: &Tensor, b: &Tensor, vector: &Tensor) -> R<Tensor> {
    let (rank, k) = (a.rank(), a.dim(candle_core::D::Minus1)?);
    let (inner, n) = b.dims2()?;
    if k != inner || vector.dims() != [n] {
        return Err(Fail(format!(
            "shapes {:?}, {:?} and {:?} do not fit",
            a.dims(),
            b.dims(),
            vector.dims()
        )));
    }
    let mut shape = a.dims().to_vec();
    shape[rank - 1] = n;
    let rows: usize = a.dims()[..rank - 1].iter().product();
    let added = with_f32(vector, <[f32]>::to_vec)?;
    Ok(kernels::product(&a.reshape((rows, k))?, b, Some(added))?.reshape(shape)?)
}

/// `numpy.matmul`.
pub fn matmul(a: &Val, b: &Val) -> R<Val> {
    if a.element() == ElementType::F64 && b.element() == ElementType::F64 {
        let y = matmul_of(&a.to_tensor()?, &b.to_tensor()?)?;
        return Val::from_tensor(&y, Some(ElementType::F64));
    }
    float_out(matmul_of(a.tensor()?, b.tensor()?)?, a.element())
}

fn matmul_of(x: &Tensor, y: &Tensor) -> R<Tensor> {
    let bad = || {
        Fail(format!(
            "shapes {:?} and {:?} cannot be multiplied",
            x.dims(),
            y.dims()
        ))
    };
    if x.rank() == 0 || y.rank() == 0 {
        return Err(bad());
    }
    // Vectors become matrices for the multiplication and lose the axis again after it.
    let x2 = if x.rank() == 1 {
        x.unsqueeze(0)?
    } else {
        x.clone()
    };
    let y2 = if y.rank() == 1 {
        y.unsqueeze(1)?
    } else {
        y.clone()
    };
    let (xr, yr) = (x2.rank(), y2.rank());
    let (m, k) = (x2.dims()[xr - 2], x2.dims()[xr - 1]);
    let (k2, n) = (y2.dims()[yr - 2], y2.dims()[yr - 1]);
    if k != k2 {
        return Err(bad());
    }
    let batch = broadcast_shape(&[&x2.dims()[..xr - 2], &y2.dims()[..yr - 2]])?;
    let product = if yr == 2 {
        // One matrix for the whole batch: a single tall multiplication.
        let rows: usize = x2.dims()[..xr - 1].iter().product();
        matmul_tensors(&x2.reshape((rows, k))?, &y2)?
    } else {
        // The kernel reads any layout: nothing is copied.
        let lhs = x2.broadcast_as([&batch[..], &[m, k]].concat())?;
        let rhs = y2.broadcast_as([&batch[..], &[k, n]].concat())?;
        matmul_tensors(&lhs, &rhs)?
    };
    let mut shape = batch;
    if x.rank() > 1 {
        shape.push(m);
    }
    if y.rank() > 1 {
        shape.push(n);
    }
    Ok(product.reshape(shape)?)
}

pub fn gemm(inputs: &[Option<Val>], alpha: f32, beta: f32, trans_a: bool, trans_b: bool) -> R<Val> {
    let (a, b) = (need(inputs, 0)?, need(inputs, 1)?);
    let (mut x, mut y) = (a.tensor()?.clone(), b.tensor()?.clone());
    if x.rank() != 2 || y.rank() != 2 {
        return Err(Fail(format!(
            "needs matrices, got shapes {:?} and {:?}",
            a.shape(),
            b.shape()
        )));
    }
    if trans_a {
        x = x.t()?;
    }
    if trans_b {
        y = y.t()?;
    }
    if x.dims()[1] != y.dims()[0] {
        return Err(Fail(format!(
            "shapes {:?} and {:?} cannot be multiplied (transA {trans_a}, transB {trans_b})",
            a.shape(),
            b.shape()
        )));
    }
    let scale = |v: Val, by: f32| {
        if by == 1.0 {
            Ok(v)
        } else {
            let mul = f64::from(by);
            arith::unary(&v, Fun::Affine { mul, add: 0.0 })
        }
    };
    // A vector of the columns' own is where the sums begin; gradients of it want an operator of their own.
    if let Some(c) = optional(inputs, 2)
        && (alpha, beta) == (1.0, 1.0)
        && c.element() == ElementType::F32
        && c.shape() == [y.dims()[1]]
        && !c.tensor()?.track_op()
        && x.elem_count() * y.elem_count() > 0
    {
        let rows = with_f32(c.tensor()?, <[f32]>::to_vec)?;
        return float_out(kernels::product(&x, &y, Some(rows))?, a.element());
    }
    let product = scale(Val::f32(matmul_tensors(&x, &y)?), alpha)?;
    let out = match optional(inputs, 2) {
        Some(c) if beta != 0.0 => {
            let c = scale(c.clone(), beta)?;
            let p = product.tensor()?;
            if broadcast_shape(&[c.shape(), p.dims()])? != p.dims() {
                return Err(Fail(format!(
                    "C of shape {:?} cannot be broadcast to {:?}",
                    c.shape(),
                    p.dims()
                )));
            }
            Val::f32(binary(p, c.tensor()?, Bin::Add)?)
        }
        _ => product,
    };
    float_out(out.tensor()?.clone(), a.element())
}
