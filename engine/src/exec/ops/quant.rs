//! QuantizeLinear and DequantizeLinear: per tensor, per axis and blocked.

use super::{R, axis_of, need, optional};
use crate::{
    exec::{
        Fail,
        kernels::{self, FakeQuant},
        value::{Array, Val, count, int_range, is_int, is_tensor, round_float, tensor_f32},
    },
    graph::ElementType,
};

/// How a scale tensor lies over the data.
struct Layout {
    axis: usize,
    /// Data elements along the axis that share a scale.
    block: usize,
    /// Extent of the axis in the scale tensor; 1 for a per-tensor scale.
    groups: usize,
    /// Elements behind the axis, and along it.
    inner: usize,
    extent: usize,
    blocked: bool,
}

impl Layout {
    fn new(shape: &[usize], scale: &[usize], axis: i64, block: usize) -> R<Self> {
        let bad = || {
            Fail(format!(
                "scale of shape {scale:?} does not fit data of shape {shape:?} (axis {axis}, block size {block})"
            ))
        };
        let n: usize = scale.iter().product();
        if block == 0 && n == 1 && scale.len() <= 1 {
            return Ok(Self {
                axis: 0,
                block: 1,
                groups: 1,
                inner: 1,
                extent: 1,
                blocked: false,
            });
        }
        let axis = axis_of(axis, shape.len())?;
        let (inner, extent) = (shape[axis + 1..].iter().product(), shape[axis]);
        if block == 0 {
            if scale != [extent] {
                return Err(bad());
            }
            return Ok(Self {
                axis,
                block: 1,
                groups: extent,
                inner,
                extent,
                blocked: false,
            });
        }
        let fits = scale.len() == shape.len()
            && scale.iter().zip(shape).enumerate().all(|(i, (&s, &d))| {
                if i == axis {
                    s == d.div_ceil(block)
                } else {
                    s == d
                }
            });
        if !fits {
            return Err(bad());
        }
        Ok(Self {
            axis,
            block,
            groups: scale[axis],
            inner,
            extent,
            blocked: true,
        })
    }

    /// Index of the scale of element `i`.
    fn at(&self, i: usize) -> usize {
        if self.groups == 1 && !self.blocked {
            return 0;
        }
        let (outer, along) = (i / self.inner / self.extent, i / self.inner % self.extent);
        let group = along / self.block;
        if self.blocked {
            (outer * self.groups + group) * self.inner + i % self.inner
        } else {
            group
        }
    }
}

fn zero_points(zp: Option<&Val>, scale: &Val) -> R<Vec<i64>> {
    match zp {
        Some(z) if z.shape() == scale.shape() || z.len() == 1 && scale.len() == 1 => z.to_ints(),
        Some(z) => Err(Fail(format!(
            "zero point of shape {:?} with a scale of shape {:?}",
            z.shape(),
            scale.shape()
        ))),
        None => Ok(vec![0; scale.len()]),
    }
}

pub fn quantize(inputs: &[Option<Val>], axis: i64, block: usize, to: ElementType) -> R<Val> {
    let (x, scale) = (need(inputs, 0)?, need(inputs, 1)?);
    let zp = optional(inputs, 2);
    let to = zp.map_or(to, Val::element);
    if !is_int(to) || !is_tensor(x.element()) && x.element() != ElementType::I32 {
        return Err(Fail(format!(
            "quantising {} to {to} is not supported",
            x.element()
        )));
    }
    let layout = Layout::new(x.shape(), scale.shape(), axis, block)?;
    let (s, z) = (scale.to_f32s()?, zero_points(zp, scale)?);
    let (lo, hi) = int_range(to);
    let v = x.to_f32s()?;
    let q = v
        .iter()
        .enumerate()
        .map(|(i, &v)| {
            let k = layout.at(i);
            // Divided as floats of the data's own precision, then everything else exactly.
            let r = (v / s[k]).round_ties_even();
            if r.is_nan() {
                z[k].clamp(lo, hi)
            } else {
                (f64::from(r) + z[k] as f64).clamp(lo as f64, hi as f64) as i64
            }
        })
        .collect();
    Ok(Array::ints(to, x.shape().to_vec(), q))
}

/// Codes, scale and zero point by the range of the whole tensor, zero in it.
pub fn quantize_dynamic(inputs: &[Option<Val>]) -> R<Vec<Val>> {
    let x = need(inputs, 0)?;
    if x.element() != ElementType::F32 {
        return Err(Fail(format!(
            "quantising {} by its range is not supported",
            x.element()
        )));
    }
    let v = x.to_f32s()?;
    let (lo, hi) = v
        .iter()
        .fold((0.0_f32, 0.0_f32), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
    let scale = if lo == hi { 1.0 } else { (hi - lo) / 255.0 };
    let zero = (-lo / scale).round_ties_even().clamp(0.0, 255.0);
    let codes = v
        .iter()
        .map(|v| ((v / scale).round_ties_even() + zero).clamp(0.0, 255.0) as i64)
        .collect();
    Ok(vec![
        Array::ints(ElementType::U8, x.shape().to_vec(), codes),
        Val::Float(tensor_f32(vec![scale], &[])?, ElementType::F32),
        Array::ints(ElementType::U8, Vec::new(), vec![zero as i64]),
    ])
}

pub fn dequantize(inputs: &[Option<Val>], axis: i64, block: usize) -> R<Val> {
    let (x, scale) = (need(inputs, 0)?, need(inputs, 1)?);
    let to = scale.element();
    if !is_tensor(to) {
        return Err(Fail(format!("a scale of type {to} is not supported")));
    }
    let layout = Layout::new(x.shape(), scale.shape(), axis, block)?;
    let s = scale.to_f32s()?;
    let z = zero_points(optional(inputs, 2), scale)?;
    let v = x
        .to_ints()?
        .into_iter()
        .enumerate()
        .map(|(i, q)| {
            let k = layout.at(i);
            round_float(to, (q - z[k]) as f32 * s[k])
        })
        .collect();
    Ok(Val::Float(tensor_f32(v, x.shape())?, to))
}

/// The largest code that [`fake`] gives.
pub fn largest_code(to: ElementType, limits: Option<(i64, i64)>) -> i64 {
    let high = int_range(to).1;
    limits.map_or(high, |limits| high.min(limits.1))
}

/// Quantise and dequantise in one step, with constant scale and zero point (fused at compile). `limits` of the codes: narrower than
/// those of their type.
pub fn fake(
    x: &Val,
    scale: &Val,
    zp: Option<&Val>,
    (axis, block): (i64, usize),
    to: ElementType,
    limits: Option<(i64, i64)>,
) -> R<Val> {
    let t = x.tensor()?;
    count(t.dims())?;
    let layout = Layout::new(x.shape(), scale.shape(), axis, block)?;
    let (mut lo, mut hi) = int_range(to);
    if let Some(limits) = limits {
        (lo, hi) = (lo.max(limits.0), hi.min(limits.1));
    }
    let narrow = |v: i64| {
        i32::try_from(v).map_err(|_| Fail(format!("zero points of type {to} are not supported")))
    };
    let quant = FakeQuant {
        scale: scale.to_f32s()?,
        zero_point: zero_points(zp, scale)?
            .into_iter()
            .map(narrow)
            .collect::<R<_>>()?,
        lo: narrow(lo)?,
        hi: narrow(hi)?,
        axis: layout.axis,
        block: if layout.blocked { layout.block } else { 0 },
    };
    Ok(Val::f32(match scale {
        Val::Float(scale, _) if scale.track_op() => kernels::fake_quant_learned(t, scale, &quant)?,
        _ => kernels::fake_quant(t, &quant)?,
    }))
}
