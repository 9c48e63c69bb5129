//! Element-wise operators over all element types: unary, binary, variadic, comparisons, Where, Clip, Cast.

use super::{R, float_out, need};
use crate::{
    exec::{
        Fail,
        broadcast::{broadcast_shape, zip},
        elementwise::{Bin, binary as binary_f32, round_to, unary as unary_f32},
        scalar::{Float, Fun},
        value::{Array, Data, Val, int_range, is_int, is_tensor, round_float, wrap},
    },
    graph::{BinaryOp, ElementType, UnaryOp, VariadicOp},
};
use candle_core::Tensor;

/// Any function of one float; integers only where the function is closed over them.
pub fn unary(x: &Val, f: Fun) -> R<Val> {
    let a = match x {
        Val::Float(t, e) => {
            if let Fun::Op(op @ (UnaryOp::IsNaN | UnaryOp::Not)) = f {
                if op == UnaryOp::Not {
                    return Err(Fail("Not needs booleans, got floats".into()));
                }
                let v = x.to_f32s()?;
                return Ok(Array::bools(
                    x.shape().to_vec(),
                    v.iter().map(|v| v.is_nan()),
                ));
            }
            return float_out(unary_f32(t, f)?, *e);
        }
        Val::Array(a) => a,
    };
    let shape = a.shape.clone();
    match &a.data {
        Data::F64(v) if f == Fun::Op(UnaryOp::IsNaN) => {
            Ok(Array::bools(shape, v.iter().map(|v| v.is_nan())))
        }
        Data::F64(v) => Ok(Array::f64s(
            shape,
            v.iter().map(|&v| f64::apply(f, v)).collect(),
        )),
        Data::Int(v) => {
            let unsigned64 = a.element == ElementType::U64;
            let g: fn(i64) -> i64 = match f {
                Fun::Neg => i64::wrapping_neg,
                Fun::Relu if unsigned64 => |v| v,
                Fun::Relu => |v| v.max(0),
                Fun::Op(UnaryOp::Abs) if unsigned64 => |v| v,
                Fun::Op(UnaryOp::Abs) => i64::wrapping_abs,
                Fun::Op(UnaryOp::Sign) if unsigned64 => |v| i64::from(v != 0),
                Fun::Op(UnaryOp::Sign) => i64::signum,
                Fun::Op(UnaryOp::Not) => |v| i64::from(v == 0),
                Fun::Op(UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Round) => |v| v,
                _ => {
                    return Err(Fail(format!(
                        "element type {} is not supported by this operator",
                        a.element
                    )));
                }
            };
            Ok(Array::ints(
                a.element,
                shape,
                v.iter().map(|&v| wrap(a.element, g(v))).collect(),
            ))
        }
    }
}

/// Min and max of integers of a type.
fn int_order(element: ElementType, a: i64, b: i64) -> std::cmp::Ordering {
    if element == ElementType::U64 {
        (a as u64).cmp(&(b as u64))
    } else {
        a.cmp(&b)
    }
}

/// Integer arithmetic; a division by zero gives 0 (ONNX leaves it undefined; it must not trap).
fn int_binary(op: Bin, element: ElementType, a: i64, b: i64) -> i64 {
    let u = element == ElementType::U64;
    let (ua, ub) = (a as u64, b as u64);
    let r = match op {
        Bin::Add => a.wrapping_add(b),
        Bin::Sub => a.wrapping_sub(b),
        Bin::Mul => a.wrapping_mul(b),
        Bin::Div | Bin::Fmod | Bin::Mod if b == 0 => 0,
        Bin::Div if u => (ua / ub) as i64,
        Bin::Div => a.wrapping_div(b),
        Bin::Fmod | Bin::Mod if u => (ua % ub) as i64,
        Bin::Fmod => a.wrapping_rem(b),
        Bin::Mod => {
            let r = a.wrapping_rem(b);
            if r != 0 && (r < 0) != (b < 0) {
                r + b
            } else {
                r
            }
        }
        Bin::Pow => match u32::try_from(b) {
            Ok(e) => a.wrapping_pow(e),
            Err(_) => (a as f64).powf(b as f64) as i64,
        },
        Bin::Min => {
            if int_order(element, a, b).is_lt() {
                a
            } else {
                b
            }
        }
        Bin::Max => {
            if int_order(element, a, b).is_gt() {
                a
            } else {
                b
            }
        }
        Bin::PRelu => {
            if a < 0 && !u {
                a.wrapping_mul(b)
            } else {
                a
            }
        }
    };
    wrap(element, r)
}

/// Arithmetic on two values of one type (Pow: the exponent may be of another).
pub fn arith(a: &Val, b: &Val, op: Bin) -> R<Val> {
    let element = a.element();
    if element != b.element() {
        if op != Bin::Pow {
            return Err(Fail(format!(
                "operands of different types {element} and {:?}",
                b.element()
            )));
        }
        // The result takes the base's type; computed in f64 as the exponent may be fractional.
        if is_tensor(element) {
            let b = cast(b, element)?;
            return arith(a, &b, op);
        }
        let (x, y) = (a.to_f64s()?, b.to_f64s()?);
        let out = broadcast_shape(&[a.shape(), b.shape()])?;
        let v = zip((&x, a.shape()), (&y, b.shape()), &out, |x: f64, y: f64| {
            x.powf(y)
        });
        return cast(&Array::f64s(out, v), element);
    }
    match (a, b) {
        (Val::Float(x, e), Val::Float(y, _)) => float_out(binary_f32(x, y, op)?, *e),
        (Val::Array(x), Val::Array(y)) => {
            let out = broadcast_shape(&[&x.shape, &y.shape])?;
            match (&x.data, &y.data) {
                (Data::Int(p), Data::Int(q)) => {
                    let v = zip((p, &x.shape), (q, &y.shape), &out, |p, q| {
                        int_binary(op, element, p, q)
                    });
                    Ok(Array::ints(element, out, v))
                }
                (Data::F64(p), Data::F64(q)) => {
                    let v = zip((p, &x.shape), (q, &y.shape), &out, |p: f64, q: f64| {
                        op.apply(p, q)
                    });
                    Ok(Array::f64s(out, v))
                }
                _ => Err(Fail("operands of different types".into())),
            }
        }
        _ => Err(Fail("operands of different types".into())),
    }
}

/// Comparisons and logic give booleans.
fn relation(a: &Val, b: &Val, op: BinaryOp) -> R<Val> {
    if a.element() != b.element() {
        return Err(Fail(format!(
            "operands of different types {:?} and {:?}",
            a.element(),
            b.element()
        )));
    }
    let out = broadcast_shape(&[a.shape(), b.shape()])?;
    let v = if is_int(a.element()) {
        let (x, y) = (a.to_ints()?, b.to_ints()?);
        let element = a.element();
        zip((&x, a.shape()), (&y, b.shape()), &out, |p: i64, q: i64| {
            let o = int_order(element, p, q);
            match op {
                BinaryOp::And => p != 0 && q != 0,
                BinaryOp::Or => p != 0 || q != 0,
                BinaryOp::Xor => (p != 0) != (q != 0),
                BinaryOp::Less => o.is_lt(),
                BinaryOp::LessOrEqual => o.is_le(),
                BinaryOp::Greater => o.is_gt(),
                BinaryOp::GreaterOrEqual => o.is_ge(),
                _ => o.is_eq(),
            }
        })
    } else {
        let (x, y) = (a.to_f64s()?, b.to_f64s()?);
        if matches!(op, BinaryOp::And | BinaryOp::Or | BinaryOp::Xor) {
            return Err(Fail("logic needs booleans, got floats".into()));
        }
        zip(
            (&x, a.shape()),
            (&y, b.shape()),
            &out,
            |p: f64, q: f64| match op {
                BinaryOp::Less => p < q,
                BinaryOp::LessOrEqual => p <= q,
                BinaryOp::Greater => p > q,
                BinaryOp::GreaterOrEqual => p >= q,
                _ => p == q,
            },
        )
    };
    Ok(Array::bools(out, v))
}

pub fn binary(op: BinaryOp, a: &Val, b: &Val) -> R<Val> {
    let f = match op {
        BinaryOp::Add => Bin::Add,
        BinaryOp::Sub => Bin::Sub,
        BinaryOp::Mul => Bin::Mul,
        BinaryOp::Div => Bin::Div,
        BinaryOp::Pow => Bin::Pow,
        BinaryOp::Mod { fmod: true } => Bin::Fmod,
        BinaryOp::Mod { fmod: false } => Bin::Mod,
        BinaryOp::PRelu => {
            broadcasts_to(b.shape(), a.shape())?;
            Bin::PRelu
        }
        _ => return relation(a, b, op),
    };
    arith(a, b, f)
}

fn broadcasts_to(shape: &[usize], to: &[usize]) -> R<()> {
    if broadcast_shape(&[shape, to])? == to {
        Ok(())
    } else {
        Err(Fail(format!(
            "shape {shape:?} cannot be broadcast to {to:?}"
        )))
    }
}

pub fn variadic(op: VariadicOp, inputs: &[Option<Val>]) -> R<Val> {
    let mut acc = need(inputs, 0)?.clone();
    let f = match op {
        VariadicOp::Sum | VariadicOp::Mean => Bin::Add,
        VariadicOp::Min => Bin::Min,
        VariadicOp::Max => Bin::Max,
    };
    for i in 1..inputs.len() {
        acc = arith(&acc, need(inputs, i)?, f)?;
    }
    if op == VariadicOp::Mean {
        let mul = 1.0 / inputs.len() as f64;
        acc = unary(&acc, Fun::Affine { mul, add: 0.0 })?;
    }
    Ok(acc)
}

/// `Clip(x, min?, max?)`; min above max gives max.
pub fn clip(x: &Val, min: Option<&Val>, max: Option<&Val>) -> R<Val> {
    if is_int(x.element()) {
        // An absent bound is the type's own limit, which leaves the value alone.
        let mut v = x.clone();
        if let Some(m) = min {
            v = arith(&v, m, Bin::Max)?;
        }
        if let Some(m) = max {
            v = arith(&v, m, Bin::Min)?;
        }
        return Ok(v);
    }
    let bound = |b: Option<&Val>, none: f64| b.map_or(Ok(none), Val::scalar);
    unary(
        x,
        Fun::Clip {
            lo: bound(min, f64::NEG_INFINITY)?,
            hi: bound(max, f64::INFINITY)?,
        },
    )
}

/// `Where(condition, x, y)`.
pub fn select(c: &Val, x: &Val, y: &Val) -> R<Val> {
    if x.element() != y.element() {
        return Err(Fail("branches of different types".into()));
    }
    let out = broadcast_shape(&[c.shape(), x.shape(), y.shape()])?;
    let mask = c.to_ints()?;
    if let (Val::Float(a, e), Val::Float(b, _)) = (x, y) {
        let m = zip((&mask, c.shape()), (&[0i64], &[]), &out, |m, _| {
            u8::from(m != 0)
        });
        let m = Tensor::from_vec(m, out.as_slice(), &candle_core::Device::Cpu)?;
        let a = a.broadcast_as(out.as_slice())?.contiguous()?;
        let b = b.broadcast_as(out.as_slice())?.contiguous()?;
        return Ok(Val::Float(m.where_cond(&a, &b)?, *e));
    }
    // Twice two operands: x where set, then y elsewhere.
    let on = |c: i64| c != 0;
    match (x, y) {
        (Val::Array(a), Val::Array(b)) => match (&a.data, &b.data) {
            (Data::Int(p), Data::Int(q)) => {
                let q = zip((q, &b.shape), (&[0u8], &[]), &out, |q, _| q);
                let p = zip((p, &a.shape), (&[0u8], &[]), &out, |p, _| p);
                let v = zip((&mask, c.shape()), (&[0u8], &[]), &out, |m, _| on(m));
                let v = v
                    .iter()
                    .zip(p.iter().zip(&q))
                    .map(|(&m, (&p, &q))| if m { p } else { q });
                Ok(Array::ints(a.element, out, v.collect()))
            }
            (Data::F64(p), Data::F64(q)) => {
                let q = zip((q, &b.shape), (&[0u8], &[]), &out, |q, _| q);
                let p = zip((p, &a.shape), (&[0u8], &[]), &out, |p, _| p);
                let v = zip((&mask, c.shape()), (&[0u8], &[]), &out, |m, _| on(m));
                let v = v
                    .iter()
                    .zip(p.iter().zip(&q))
                    .map(|(&m, (&p, &q))| if m { p } else { q });
                Ok(Array::f64s(out, v.collect()))
            }
            _ => Err(Fail("branches of different types".into())),
        },
        _ => Err(Fail("branches of different types".into())),
    }
}

/// ONNX `Cast`: floats to integers truncate towards zero and saturate where the standard leaves it open; integers wrap.
pub fn cast(x: &Val, to: ElementType) -> R<Val> {
    if x.element() == to {
        return Ok(x.clone());
    }
    let shape = x.shape().to_vec();
    match x {
        Val::Float(t, from) if is_tensor(to) => {
            // Widening is exact; narrowing rounds.
            let t =
                if matches!(from, ElementType::F16 | ElementType::BF16) && to == ElementType::F32 {
                    t.clone()
                } else {
                    round_to(t, to)?
                };
            Ok(Val::Float(t, to))
        }
        _ if is_tensor(to) => {
            let v = match x {
                Val::Array(a) => match (&a.data, to) {
                    // Rounding twice (to f32, then to half) could differ from rounding once.
                    (Data::F64(v), ElementType::F16) => {
                        v.iter().map(|&v| half::f16::from_f64(v).to_f32()).collect()
                    }
                    (Data::F64(v), ElementType::BF16) => v
                        .iter()
                        .map(|&v| half::bf16::from_f64(v).to_f32())
                        .collect(),
                    (Data::Int(v), ElementType::F32) if a.element != ElementType::U64 => {
                        v.iter().map(|&v| v as f32).collect()
                    }
                    _ => x
                        .to_f64s()?
                        .into_iter()
                        .map(|v| round_float(to, v as f32))
                        .collect::<Vec<_>>(),
                },
                Val::Float(..) => x.to_f32s()?,
            };
            Ok(Val::Float(crate::exec::value::tensor_f32(v, &shape)?, to))
        }
        _ if to == ElementType::F64 => Ok(Array::f64s(shape, x.to_f64s()?)),
        Val::Array(a) if is_int(a.element) => {
            let v = x.to_ints()?;
            Ok(Array::ints(
                to,
                shape,
                v.into_iter().map(|v| wrap(to, v)).collect(),
            ))
        }
        _ => {
            let v = x.to_f64s()?;
            let (lo, hi) = int_range(to);
            let convert = |v: f64| match to {
                ElementType::Bool => i64::from(v != 0.0),
                ElementType::U64 => v as u64 as i64,
                // The standard's own cases keep the low bits of four-bit types; wider types saturate.
                ElementType::I4 | ElementType::U4 => wrap(to, v as i64),
                _ => (v as i64).clamp(lo, hi),
            };
            Ok(Array::ints(to, shape, v.into_iter().map(convert).collect()))
        }
    }
}
