//! Operators that move, select or count elements without computing on them.

use super::{R, axis_of, need, optional};
use crate::{
    exec::{
        Fail,
        index::{IndexMap, take, take_rows},
        kernels::permute,
        value::{Array, Data, Val, count, is_int},
    },
    graph::{ElementType, PadMode, TensorData},
};
use candle_core::Tensor;
use std::sync::Arc;

/// A shape given as an integer tensor; negative extents are refused.
fn dims_of(v: &Val) -> R<Vec<usize>> {
    v.to_ints()?
        .into_iter()
        .map(|d| usize::try_from(d).map_err(|_| Fail(format!("negative extent {d} in a shape"))))
        .collect()
}

fn same_axes(shape: &[usize]) -> Vec<Vec<Option<usize>>> {
    shape.iter().map(|&d| (0..d).map(Some).collect()).collect()
}

pub fn reshape(x: &Val, shape: &Val, allow_zero: bool) -> R<Val> {
    let want = shape.to_ints()?;
    let mut out = Vec::with_capacity(want.len());
    let mut hole = None;
    for (i, &d) in want.iter().enumerate() {
        out.push(match d {
            -1 if hole.is_none() => {
                hole = Some(i);
                1
            }
            0 if !allow_zero => *x.shape().get(i).ok_or_else(|| {
                Fail(format!(
                    "shape {want:?} copies axis {i} of a value of shape {:?}",
                    x.shape()
                ))
            })?,
            d => usize::try_from(d).map_err(|_| Fail(format!("invalid shape {want:?}")))?,
        });
    }
    if let Some(i) = hole {
        let known = count(&out)?;
        if known == 0 || !x.len().is_multiple_of(known) {
            return Err(Fail(format!(
                "cannot reshape {:?} to {want:?}: {} elements are not divisible by {known}",
                x.shape(),
                x.len()
            )));
        }
        out[i] = x.len() / known;
    }
    x.reshape(&out)
}

pub fn flatten(x: &Val, axis: i64) -> R<Val> {
    let rank = x.rank() as i64;
    let axis = if axis < 0 { axis + rank } else { axis };
    if !(0..=rank).contains(&axis) {
        return Err(Fail(format!(
            "axis {axis} is outside a value of rank {rank}"
        )));
    }
    let (a, b) = x.shape().split_at(axis as usize);
    let (a, b) = (count(a)?, count(b)?);
    x.reshape(&[a, b])
}

pub fn transpose(x: &Val, perm: Option<&[usize]>) -> R<Val> {
    let rank = x.rank();
    let perm: Vec<usize> = match perm {
        Some(p) => p.to_vec(),
        None => (0..rank).rev().collect(),
    };
    let mut seen = vec![false; rank];
    for &p in &perm {
        match seen.get_mut(p) {
            Some(s) if !*s => *s = true,
            _ => return Err(Fail(format!("invalid permutation {perm:?} of {rank} axes"))),
        }
    }
    if perm.len() != rank {
        return Err(Fail(format!("invalid permutation {perm:?} of {rank} axes")));
    }
    match x {
        // Contiguous at once: every consumer would otherwise copy again.
        Val::Float(t, e) => Ok(Val::Float(permute(t, &perm)?, *e)),
        Val::Array(a) => {
            let shape: Vec<usize> = perm.iter().map(|&p| a.shape[p]).collect();
            let mut strides = vec![1usize; rank];
            for i in (0..rank.saturating_sub(1)).rev() {
                strides[i] = strides[i + 1] * a.shape[i + 1];
            }
            let mut from = vec![0u32];
            for &p in &perm {
                from = from
                    .iter()
                    .flat_map(|&b| (0..a.shape[p]).map(move |i| (b, i)))
                    .map(|(b, i)| b + (i * strides[p]) as u32)
                    .collect();
            }
            take(x, IndexMap { shape, from }, 0.0)
        }
    }
}

/// Axes from an optional input, normalised against `rank`; duplicates refused.
pub fn axes_input(v: Option<&Val>, rank: usize) -> R<Option<Vec<usize>>> {
    let Some(v) = v else { return Ok(None) };
    let mut axes = vec![];
    for a in v.to_ints()? {
        let a = axis_of(a, rank)?;
        if axes.contains(&a) {
            return Err(Fail(format!("axis {a} is named twice")));
        }
        axes.push(a);
    }
    Ok(Some(axes))
}

pub fn squeeze(x: &Val, axes: Option<&Val>) -> R<Val> {
    let axes = axes_input(axes, x.rank())?;
    let mut shape = vec![];
    for (i, &d) in x.shape().iter().enumerate() {
        match &axes {
            Some(a) if a.contains(&i) => {
                if d != 1 {
                    return Err(Fail(format!("axis {i} of {:?} is not 1", x.shape())));
                }
            }
            None if d == 1 => {}
            _ => shape.push(d),
        }
    }
    x.reshape(&shape)
}

pub fn unsqueeze(x: &Val, axes: &Val) -> R<Val> {
    let rank = x.rank() + axes.len();
    let axes = axes_input(Some(axes), rank)?.unwrap_or_default();
    let mut rest = x.shape().iter();
    let shape: Vec<usize> = (0..rank)
        .map(|i| {
            if axes.contains(&i) {
                1
            } else {
                rest.next().copied().unwrap_or(1)
            }
        })
        .collect();
    x.reshape(&shape)
}

pub fn concat(inputs: &[Option<Val>], axis: i64) -> R<Val> {
    let first = need(inputs, 0)?;
    let axis = axis_of(axis, first.rank())?;
    let mut parts = vec![];
    for i in 0..inputs.len() {
        let v = need(inputs, i)?;
        let fits = v.rank() == first.rank()
            && v.element() == first.element()
            && v.shape()
                .iter()
                .zip(first.shape())
                .enumerate()
                .all(|(k, (a, b))| k == axis || a == b);
        if !fits {
            return Err(Fail(format!(
                "input {i} of shape {:?} ({:?}) cannot be joined to {:?} ({:?}) along axis {axis}",
                v.shape(),
                v.element(),
                first.shape(),
                first.element()
            )));
        }
        // Empty parts add nothing, and candle does not like them.
        if v.len() > 0 {
            parts.push(v);
        }
    }
    let mut shape = first.shape().to_vec();
    shape[axis] = inputs.iter().flatten().map(|v| v.shape()[axis]).sum();
    count(&shape)?;
    let Some(&head) = parts.first() else {
        return first.reshape(&shape);
    };
    if parts.len() == 1 {
        return Ok(head.clone());
    }
    match head {
        Val::Float(_, e) => {
            let ts = parts
                .iter()
                .map(|v| v.tensor()?.contiguous().map_err(Fail::from))
                .collect::<R<Vec<Tensor>>>()?;
            Ok(Val::Float(Tensor::cat(&ts, axis)?, *e))
        }
        Val::Array(a) => {
            let outer: usize = shape[..axis].iter().product();
            let arrays: Vec<&Array> = parts
                .iter()
                .filter_map(|v| match v {
                    Val::Array(a) => Some(&**a),
                    Val::Float(..) => None,
                })
                .collect();
            fn join<T: Copy>(outer: usize, parts: &[&[T]]) -> Vec<T> {
                let mut out = vec![];
                for o in 0..outer {
                    for p in parts {
                        let n = p.len() / outer;
                        out.extend_from_slice(&p[o * n..(o + 1) * n]);
                    }
                }
                out
            }
            let ints: Vec<&[i64]> = arrays
                .iter()
                .filter_map(|a| match &a.data {
                    Data::Int(v) => Some(v.as_slice()),
                    Data::F64(_) => None,
                })
                .collect();
            let floats: Vec<&[f64]> = arrays
                .iter()
                .filter_map(|a| match &a.data {
                    Data::F64(v) => Some(v.as_slice()),
                    Data::Int(_) => None,
                })
                .collect();
            let data = if is_int(a.element) {
                Data::Int(join(outer, &ints))
            } else {
                Data::F64(join(outer, &floats))
            };
            Ok(Val::Array(Arc::new(Array {
                element: a.element,
                shape,
                data,
            })))
        }
    }
}

/// `len` positions along `axis` from `start` on.
fn narrow(x: &Val, axis: usize, start: usize, len: usize) -> R<Val> {
    if start == 0 && len == x.shape()[axis] {
        return Ok(x.clone());
    }
    if let Val::Float(t, e) = x
        && len > 0
        && x.len() > 0
    {
        return Ok(Val::Float(t.narrow(axis, start, len)?, *e));
    }
    let mut axes = same_axes(x.shape());
    axes[axis] = (start..start + len).map(Some).collect();
    take(x, IndexMap::per_axis(x.shape(), &axes)?, 0.0)
}

pub fn split(
    x: &Val,
    sizes: Option<&Val>,
    axis: i64,
    num_outputs: Option<usize>,
    outputs: usize,
) -> R<Vec<Val>> {
    let axis = axis_of(axis, x.rank())?;
    let total = x.shape()[axis];
    let sizes = match sizes {
        Some(s) => dims_of(s)?,
        None => {
            // The last piece is the smaller one when the axis does not divide.
            let n = num_outputs.unwrap_or(outputs).max(1);
            let each = total.div_ceil(n);
            (0..n)
                .map(|i| each.min(total.saturating_sub(i * each)))
                .collect()
        }
    };
    let sum = sizes.iter().try_fold(0usize, |n, &s| n.checked_add(s));
    if sizes.len() != outputs || sum != Some(total) {
        return Err(Fail(format!(
            "sizes {sizes:?} do not split an axis of {total} into {outputs} outputs"
        )));
    }
    let mut start = 0;
    sizes
        .into_iter()
        .map(|n| {
            start += n;
            narrow(x, axis, start - n, n)
        })
        .collect()
}

/// `Slice(data, starts, ends, axes?, steps?)`.
pub fn slice(inputs: &[Option<Val>]) -> R<Val> {
    let x = need(inputs, 0)?;
    let starts = need(inputs, 1)?.to_ints()?;
    let ends = need(inputs, 2)?.to_ints()?;
    let axes = match optional(inputs, 3) {
        Some(a) => a.to_ints()?,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = match optional(inputs, 4) {
        Some(s) => s.to_ints()?,
        None => vec![1; starts.len()],
    };
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err(Fail("starts, ends, axes and steps differ in length".into()));
    }
    let mut out = x.clone();
    for i in 0..starts.len() {
        let axis = axis_of(axes[i], x.rank())?;
        let (d, step) = (out.shape()[axis] as i64, steps[i]);
        if step == 0 {
            return Err(Fail("a step of 0".into()));
        }
        // Negative positions count from the end; then clamped to the axis (one before it when going backwards).
        let at = |v: i64| if v < 0 { v.saturating_add(d) } else { v };
        let (start, end) = if step > 0 {
            (at(starts[i]).clamp(0, d), at(ends[i]).clamp(0, d))
        } else {
            (at(starts[i]).clamp(-1, d - 1), at(ends[i]).clamp(-1, d - 1))
        };
        if step == 1 {
            let len = (end - start).max(0) as usize;
            out = narrow(&out, axis, start as usize, len)?;
            continue;
        }
        let mut positions = vec![];
        let mut p = start;
        while (step > 0 && p < end) || (step < 0 && p > end) {
            positions.push(Some(p as usize));
            p = match p.checked_add(step) {
                Some(p) => p,
                None => break,
            };
        }
        let mut all = same_axes(out.shape());
        all[axis] = positions;
        out = take(&out, IndexMap::per_axis(out.shape(), &all)?, 0.0)?;
    }
    Ok(out)
}

pub fn gather(x: &Val, indices: &Val, axis: i64) -> R<Val> {
    let axis = axis_of(axis, x.rank())?;
    let d = x.shape()[axis];
    let positions = indices
        .to_ints()?
        .into_iter()
        .map(|i| {
            let p = if i < 0 { i.saturating_add(d as i64) } else { i };
            match usize::try_from(p) {
                Ok(p) if p < d => Ok(Some(p)),
                _ => Err(Fail(format!("index {i} is outside axis {axis} of {d}"))),
            }
        })
        .collect::<R<Vec<_>>>()?;
    let mut shape = x.shape()[..axis].to_vec();
    shape.extend_from_slice(indices.shape());
    shape.extend_from_slice(&x.shape()[axis + 1..]);
    count(&shape)?;
    if let Val::Float(t, e) = x
        && axis == 0
        && x.len() > 0
    {
        // An embedding's rows: whole runs, whose places need no map.
        let rows = positions.into_iter().flatten().collect();
        return Val::Float(take_rows(t, rows)?, *e).reshape(&shape);
    }
    let mut axes = same_axes(x.shape());
    axes[axis] = positions;
    let map = IndexMap::per_axis(x.shape(), &axes)?;
    take(x, map, 0.0)?.reshape(&shape)
}

pub fn expand(x: &Val, shape: &Val) -> R<Val> {
    let shape = dims_of(shape)?;
    let out = crate::exec::broadcast::broadcast_shape(&[x.shape(), &shape])?;
    if out == x.shape() {
        return Ok(x.clone());
    }
    let lead = out.len() - x.rank();
    let padded = x.reshape(&[&vec![1; lead][..], x.shape()].concat())?;
    let axes: Vec<Vec<Option<usize>>> = out
        .iter()
        .zip(padded.shape())
        .map(|(&o, &d)| (0..o).map(|i| Some(if d == 1 { 0 } else { i })).collect())
        .collect();
    take(&padded, IndexMap::per_axis(padded.shape(), &axes)?, 0.0)
}

pub fn tile(x: &Val, repeats: &Val) -> R<Val> {
    let repeats = dims_of(repeats)?;
    if repeats.len() != x.rank() {
        return Err(Fail(format!(
            "{} repeats for a value of rank {}",
            repeats.len(),
            x.rank()
        )));
    }
    let shape = x
        .shape()
        .iter()
        .zip(&repeats)
        .map(|(&d, &r)| {
            d.checked_mul(r)
                .ok_or_else(|| Fail("too many repeats".into()))
        })
        .collect::<R<Vec<usize>>>()?;
    count(&shape)?;
    let axes: Vec<Vec<Option<usize>>> = shape
        .iter()
        .zip(x.shape())
        .map(|(&n, &d)| (0..n).map(|i| Some(i % d)).collect())
        .collect();
    take(x, IndexMap::per_axis(x.shape(), &axes)?, 0.0)
}

/// `Pad(data, pads, value?, axes?)`; negative pads cut off.
pub fn pad(inputs: &[Option<Val>], mode: PadMode) -> R<Val> {
    let x = need(inputs, 0)?;
    let pads = need(inputs, 1)?.to_ints()?;
    let value = match optional(inputs, 2) {
        Some(v) if v.len() > 0 => v.scalar()?,
        _ => 0.0,
    };
    let axes = match axes_input(optional(inputs, 3), x.rank())? {
        Some(a) => a,
        None => (0..x.rank()).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(Fail(format!("{} pads for {} axes", pads.len(), axes.len())));
    }
    let mut map = same_axes(x.shape());
    for (i, &axis) in axes.iter().enumerate() {
        let d = x.shape()[axis] as i64;
        let (begin, end) = (pads[i], pads[i + axes.len()]);
        let n = begin
            .checked_add(d)
            .and_then(|n| n.checked_add(end))
            .filter(|&n| (0..=crate::exec::value::MAX_ELEMENTS as i64).contains(&n))
            .ok_or_else(|| Fail(format!("pads {begin} and {end} on an axis of {d}")))?;
        if d == 0 && n > 0 && mode != PadMode::Constant {
            return Err(Fail("an empty axis has nothing to repeat".into()));
        }
        map[axis] = (0..n)
            .map(|o| {
                let p = o - begin;
                let inside = match mode {
                    PadMode::Constant => p,
                    PadMode::Edge => p.clamp(0, d - 1),
                    PadMode::Wrap => p.rem_euclid(d),
                    // A reflection has period 2(d−1).
                    PadMode::Reflect if d == 1 => 0,
                    PadMode::Reflect => {
                        let q = p.rem_euclid(2 * (d - 1));
                        if q < d { q } else { 2 * (d - 1) - q }
                    }
                };
                (0..d).contains(&inside).then_some(inside as usize)
            })
            .collect();
    }
    take(x, IndexMap::per_axis(x.shape(), &map)?, value)
}

pub fn shape_of(x: &Val, start: Option<i64>, end: Option<i64>) -> Val {
    let rank = x.rank() as i64;
    let at = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
    let (start, end) = (at(start.unwrap_or(0)), at(end.unwrap_or(rank)));
    let v: Vec<i64> = x.shape()[start..end.max(start)]
        .iter()
        .map(|&d| d as i64)
        .collect();
    Array::ints(ElementType::I64, vec![v.len()], v)
}

pub fn constant_of_shape(shape: &Val, value: &TensorData) -> R<Val> {
    let shape = dims_of(shape)?;
    let one = Val::from_data(value)?;
    if one.len() != 1 {
        return Err(Fail("the fill value must be one element".into()));
    }
    let axes: Vec<Vec<Option<usize>>> = vec![vec![Some(0); count(&shape)?]];
    take(&one.reshape(&[1])?, IndexMap::per_axis(&[1], &axes)?, 0.0)?.reshape(&shape)
}

/// `Range(start, limit, delta)`.
pub fn range(start: &Val, limit: &Val, delta: &Val) -> R<Val> {
    let element = start.element();
    let (s, l, d) = (start.scalar()?, limit.scalar()?, delta.scalar()?);
    if d == 0.0 || !s.is_finite() || !l.is_finite() || d.is_nan() {
        return Err(Fail(format!("range from {s} to {l} by {d}")));
    }
    let n = ((l - s) / d).ceil().max(0.0);
    if n > crate::exec::value::MAX_ELEMENTS as f64 {
        return Err(Fail(format!("a range of {n} elements")));
    }
    let n = n as usize;
    if is_int(element) {
        let (s, d) = (s as i64, d as i64);
        let v = (0..n as i64)
            .map(|i| s.wrapping_add(i.wrapping_mul(d)))
            .collect();
        return Ok(Array::ints(element, vec![n], v));
    }
    let v = Array::f64s(vec![n], (0..n).map(|i| s + i as f64 * d).collect());
    super::arith::cast(&v, element)
}
