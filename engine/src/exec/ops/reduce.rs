//! Reductions, arg-extremes, softmax and normalisations: the reduced axes are brought last, then everything is rows.

use super::{R, arith, axis_of, float_out, need, optional, shape::axes_input};
use crate::{
    exec::{
        Fail,
        elementwise::{Bin, binary},
        kernels::{layer_norm as layer_norm_rows, permute, softmax as softmax_rows},
        rows::{moments, normalise_rows, reduce_rows},
        value::{Array, Data, Val, count, tensor_f32, with_f32, wrap},
    },
    graph::{ElementType, ReduceOp},
};
use candle_core::Tensor;

/// Moves `axes` behind the others: (permuted value as rows×n, the kept axes' extents, keep-dims shape).
fn as_rows(x: &Val, axes: &[usize]) -> R<(Val, Vec<usize>, Vec<usize>)> {
    let kept: Vec<usize> = (0..x.rank()).filter(|a| !axes.contains(a)).collect();
    let mut sorted = axes.to_vec();
    sorted.sort_unstable();
    let perm: Vec<usize> = kept.iter().chain(&sorted).copied().collect();
    let outer: Vec<usize> = kept.iter().map(|&a| x.shape()[a]).collect();
    let n: usize = sorted.iter().map(|&a| x.shape()[a]).product();
    let ones = (0..x.rank())
        .map(|a| if axes.contains(&a) { 1 } else { x.shape()[a] })
        .collect();
    let moved = if perm.iter().enumerate().all(|(i, &p)| i == p) {
        x.clone()
    } else {
        super::shape::transpose(x, Some(&perm))?
    };
    let rows = count(&outer)?;
    Ok((moved.reshape(&[rows, n])?, outer, ones))
}

/// `Reduce(x, axes?)`.
pub fn reduce(inputs: &[Option<Val>], op: ReduceOp, keep: bool, noop: bool) -> R<Val> {
    let x = need(inputs, 0)?;
    let axes = match axes_input(optional(inputs, 1), x.rank())? {
        Some(a) if !a.is_empty() => a,
        // No axes: all of them, or none at all where the node says so.
        _ if noop => {
            return Ok(match op {
                ReduceOp::Sum | ReduceOp::Mean | ReduceOp::Max | ReduceOp::Min | ReduceOp::Prod => {
                    x.clone()
                }
                _ => return reduce_each(x, op),
            });
        }
        _ => (0..x.rank()).collect(),
    };
    let (rows, outer, ones) = as_rows(x, &axes)?;
    let shape = if keep { ones } else { outer };
    reduce_matrix(&rows, op)?.reshape(&shape)
}

/// The reduction over no axis at all: every element is a row of its own.
fn reduce_each(x: &Val, op: ReduceOp) -> R<Val> {
    let n = x.len();
    reduce_matrix(&x.reshape(&[n, 1])?, op)?.reshape(x.shape())
}

/// rows×n → rows.
fn reduce_matrix(m: &Val, op: ReduceOp) -> R<Val> {
    let (rows, n) = (m.shape()[0], m.shape()[1]);
    let a = match m {
        Val::Float(t, e) => {
            if n == 0 {
                let v = empty(op)?.unwrap_or(f64::NAN) as f32;
                return Ok(Val::Float(tensor_f32(vec![v; rows], &[rows])?, *e));
            }
            return float_out(reduce_rows(t, op)?, *e);
        }
        Val::Array(a) => a,
    };
    match &a.data {
        Data::F64(v) => {
            let out = (0..rows)
                .map(|r| reduce_f64(op, &v[r * n..(r + 1) * n]))
                .collect::<R<Vec<f64>>>()?;
            Ok(Array::f64s(vec![rows], out))
        }
        Data::Int(v) => {
            let out = (0..rows)
                .map(|r| reduce_int(op, a.element, &v[r * n..(r + 1) * n]))
                .collect::<R<Vec<i64>>>()?;
            Ok(Array::ints(a.element, vec![rows], out))
        }
    }
}

/// What a reduction gives over nothing; `None`: undefined (a mean).
fn empty(op: ReduceOp) -> R<Option<f64>> {
    Ok(match op {
        ReduceOp::Sum | ReduceOp::L1 | ReduceOp::L2 | ReduceOp::SumSquare => Some(0.0),
        ReduceOp::Prod => Some(1.0),
        ReduceOp::Max | ReduceOp::LogSum | ReduceOp::LogSumExp => Some(f64::NEG_INFINITY),
        ReduceOp::Min => Some(f64::INFINITY),
        ReduceOp::Mean => None,
    })
}

fn reduce_f64(op: ReduceOp, row: &[f64]) -> R<f64> {
    if row.is_empty() {
        return Ok(empty(op)?.unwrap_or(f64::NAN));
    }
    let it = row.iter().copied();
    let max = || {
        it.clone()
            .fold(f64::NEG_INFINITY, |a, b| Bin::Max.apply(a, b))
    };
    Ok(match op {
        ReduceOp::Sum => it.sum(),
        ReduceOp::Mean => it.sum::<f64>() / row.len() as f64,
        ReduceOp::Max => max(),
        ReduceOp::Min => it.fold(f64::INFINITY, |a, b| Bin::Min.apply(a, b)),
        ReduceOp::Prod => it.product(),
        ReduceOp::L1 => it.map(f64::abs).sum(),
        ReduceOp::L2 => it.map(|v| v * v).sum::<f64>().sqrt(),
        ReduceOp::SumSquare => it.map(|v| v * v).sum(),
        ReduceOp::LogSum => it.sum::<f64>().ln(),
        ReduceOp::LogSumExp => {
            let m = max();
            if m.is_finite() {
                m + it.map(|v| (v - m).exp()).sum::<f64>().ln()
            } else {
                m
            }
        }
    })
}

fn reduce_int(op: ReduceOp, element: ElementType, row: &[i64]) -> R<i64> {
    let it = row.iter().copied();
    let key = |v: &i64| {
        if element == ElementType::U64 {
            (*v as u64) as i128
        } else {
            i128::from(*v)
        }
    };
    let nothing = || {
        Fail(format!(
            "{op:?} of no elements at all has no value in {element}"
        ))
    };
    let sum = |f: fn(i64) -> i64| it.clone().fold(0i64, |a, v| a.wrapping_add(f(v)));
    let r = match op {
        ReduceOp::Sum => sum(|v| v),
        ReduceOp::Mean if row.is_empty() => return Err(nothing()),
        ReduceOp::Mean => sum(|v| v) / row.len() as i64,
        ReduceOp::Max => match it.clone().max_by_key(key) {
            Some(v) => v,
            None if element == ElementType::Bool => 0,
            None => crate::exec::value::int_range(element).0,
        },
        ReduceOp::Min => match it.clone().min_by_key(key) {
            Some(v) => v,
            None => crate::exec::value::int_range(element).1,
        },
        ReduceOp::Prod => it.fold(1, i64::wrapping_mul),
        ReduceOp::L1 => sum(i64::wrapping_abs),
        ReduceOp::SumSquare => sum(|v| v.wrapping_mul(v)),
        ReduceOp::L2 => (sum(|v| v.wrapping_mul(v)) as f64).sqrt() as i64,
        ReduceOp::LogSum => (sum(|v| v) as f64).ln() as i64,
        ReduceOp::LogSumExp => it.map(|v| (v as f64).exp()).sum::<f64>().ln() as i64,
    };
    Ok(wrap(element, r))
}

pub fn arg_extreme(x: &Val, axis: i64, keep: bool, last: bool, max: bool) -> R<Val> {
    let axis = axis_of(axis, x.rank())?;
    let (rows, outer, ones) = as_rows(x, &[axis])?;
    let n = rows.shape()[1];
    if n == 0 {
        return Err(Fail(format!("axis {axis} of {:?} is empty", x.shape())));
    }
    fn best<T: Copy + PartialOrd>(row: &[T], last: bool, max: bool) -> i64 {
        let mut at = 0;
        for (i, v) in row.iter().enumerate() {
            let (v, b) = (*v, row[at]);
            if (if max { v > b } else { v < b }) || (last && v == b) {
                at = i;
            }
        }
        at as i64
    }
    let v: Vec<i64> = match &rows {
        Val::Float(t, _) => with_f32(t, |v| v.chunks(n).map(|r| best(r, last, max)).collect())?,
        Val::Array(a) => match &a.data {
            Data::Int(v) if a.element == ElementType::U64 => {
                let v: Vec<u64> = v.iter().map(|&v| v as u64).collect();
                v.chunks(n).map(|r| best(r, last, max)).collect()
            }
            Data::Int(v) => v.chunks(n).map(|r| best(r, last, max)).collect(),
            Data::F64(v) => v.chunks(n).map(|r| best(r, last, max)).collect(),
        },
    };
    Ok(Array::ints(
        ElementType::I64,
        if keep { ones } else { outer },
        v,
    ))
}

pub fn softmax(x: &Val, axis: i64, flatten: bool, log: bool) -> R<Val> {
    let Val::Float(_, e) = x else {
        return softmax_f64(x, axis, flatten, log);
    };
    if x.len() == 0 {
        return Ok(x.clone());
    }
    let rank = x.rank();
    if flatten {
        let m = super::shape::flatten(x, axis)?;
        let y = softmax_rows(m.tensor()?, log)?;
        return float_out(y.reshape(x.shape())?, *e);
    }
    // A scalar is a row of one.
    if rank == 0 {
        let y = softmax_rows(&x.tensor()?.reshape((1, 1))?, log)?;
        return float_out(y.reshape(())?, *e);
    }
    let axis = axis_of(axis, rank)?;
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(axis, rank - 1);
    let moved = if axis == rank - 1 {
        x.tensor()?.clone()
    } else {
        permute(x.tensor()?, &perm)?
    };
    let n = x.shape()[axis];
    let shape = moved.dims().to_vec();
    let y = softmax_rows(&moved.reshape((x.len() / n, n))?, log)?.reshape(shape)?;
    // A swap is its own inverse.
    let y = if axis == rank - 1 {
        y
    } else {
        permute(&y, &perm)?
    };
    float_out(y, *e)
}

/// By its definition, for f64.
fn softmax_f64(x: &Val, axis: i64, flatten: bool, log: bool) -> R<Val> {
    if x.element() != ElementType::F64 {
        return Err(Fail(format!(
            "element type {} is not supported",
            x.element()
        )));
    }
    let m = if flatten {
        super::shape::flatten(x, axis)?
    } else {
        x.clone()
    };
    let axis = if flatten { 1 } else { axis_of(axis, x.rank())? };
    let part = |op| {
        let axes = Array::ints(ElementType::I64, vec![1], vec![axis as i64]);
        move |v: &Val| reduce(&[Some(v.clone()), Some(axes.clone())], op, true, false)
    };
    let shifted = arith::arith(&m, &part(ReduceOp::Max)(&m)?, Bin::Sub)?;
    let exp = |v: &Val| arith::unary(v, crate::exec::scalar::Fun::Op(crate::graph::UnaryOp::Exp));
    let y = if log {
        arith::arith(&shifted, &part(ReduceOp::LogSumExp)(&shifted)?, Bin::Sub)?
    } else {
        let e = exp(&shifted)?;
        arith::arith(&e, &part(ReduceOp::Sum)(&e)?, Bin::Div)?
    };
    y.reshape(x.shape())
}

/// Outputs y, and mean and 1/σ where asked for.
pub fn layer_norm(inputs: &[Option<Val>], axis: i64, epsilon: f32, outputs: usize) -> R<Vec<Val>> {
    let x = need(inputs, 0)?;
    let scale = need(inputs, 1)?.tensor()?;
    let axis = axis_of(axis, x.rank())?;
    let (outer, inner) = x.shape().split_at(axis);
    let (rows, n) = (count(outer)?, count(inner)?);
    let m = x.tensor()?.reshape((rows, n))?;
    let shift = optional(inputs, 2).map(Val::tensor).transpose()?;
    let whole = |t: &Tensor| t.dims() == inner;
    let y = if n > 0 && whole(scale) && shift.is_none_or(whole) {
        let shift = match shift {
            Some(shift) => shift.reshape(n)?,
            None => Tensor::zeros(n, m.dtype(), m.device())?,
        };
        layer_norm_rows(&m, &scale.reshape(n)?, &shift, f64::from(epsilon))?.reshape(x.shape())?
    } else {
        // Scale and shift that broadcast.
        let y = normalise_rows(&m, f64::from(epsilon))?.reshape(x.shape())?;
        let y = binary(&y, scale, Bin::Mul)?;
        match shift {
            Some(shift) => binary(&y, shift, Bin::Add)?,
            None => y,
        }
    };
    if y.dims() != x.shape() {
        return Err(Fail(format!(
            "scale of shape {:?} cannot be broadcast to {:?}",
            scale.dims(),
            x.shape()
        )));
    }
    let mut out = vec![float_out(y, x.element())?];
    if outputs > 1 {
        let mut shape = outer.to_vec();
        shape.resize(x.rank(), 1);
        let (mean, inverse): (Vec<f32>, Vec<f32>) = with_f32(&m, |v| {
            v.chunks(n.max(1))
                .map(|r| moments(r, f64::from(epsilon)))
                .map(|(a, b)| (a as f32, b as f32))
                .unzip()
        })?;
        out.push(Val::f32(tensor_f32(mean, &shape)?));
        out.push(Val::f32(tensor_f32(inverse, &shape)?));
    }
    Ok(out)
}

pub fn instance_norm(inputs: &[Option<Val>], epsilon: f32) -> R<Val> {
    let x = need(inputs, 0)?;
    let (scale, bias) = (need(inputs, 1)?.tensor()?, need(inputs, 2)?.tensor()?);
    let d = x.shape();
    if d.len() < 2 || scale.dims() != [d[1]] || bias.dims() != [d[1]] {
        return Err(Fail(format!(
            "input {d:?} with scale {:?} and bias {:?}",
            scale.dims(),
            bias.dims()
        )));
    }
    let rest: usize = d[2..].iter().product();
    let y = normalise_rows(
        &x.tensor()?.reshape((d[0] * d[1], rest))?,
        f64::from(epsilon),
    )?;
    let y = y.reshape((d[0], d[1], rest))?;
    let y = binary(&y, &scale.reshape((d[1], 1))?, Bin::Mul)?;
    let y = binary(&y, &bias.reshape((d[1], 1))?, Bin::Add)?;
    float_out(y.reshape(d)?, x.element())
}

/// Global pooling: over all axes behind the channels, kept as ones.
pub fn global_pool(x: &Val, op: ReduceOp) -> R<Val> {
    let d = x.shape();
    if d.len() < 3 {
        return Err(Fail(format!("input of shape {d:?} has no spatial axes")));
    }
    let axes = (2..d.len() as i64).collect::<Vec<_>>();
    let axes = Array::ints(ElementType::I64, vec![axes.len()], axes);
    reduce(&[Some(x.clone()), Some(axes)], op, true, false)
}
