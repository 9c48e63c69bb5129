//! Element-wise functions as candle custom operators: parallel, exact gradients, numpy's treatment of NaN.

use super::{
    broadcast::{broadcast_shape, map, sum_to, zip},
    kernels::{
        chain::{From, Link, Side, chain},
        functions,
        planes::isa,
    },
    scalar::{Float, Fun},
    value::{round_float, tensor_f32, with_f32},
};
use crate::graph::ElementType;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

/// A contiguous custom-operator argument.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(all) = storage else {
        candle_core::bail!("expected f32");
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => candle_core::bail!("expected a contiguous argument"),
    }
}

struct Unary(Fun);

impl CustomOp1 for Unary {
    fn name(&self) -> &'static str {
        "unary"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(s, l)?;
        let y = functions::apply(self.0, x);
        Ok((CpuStorage::F32(y), l.shape().clone()))
    }
    fn bwd(&self, x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let v = with_f32(x, |xs| {
            with_f32(y, |ys| {
                with_f32(g, |gs| functions::gradient(self.0, xs, ys, gs))
            })
        })???;
        Ok(Some(tensor_f32(v, x.dims())?))
    }
}

/// Applies a function to every element.
pub(super) fn unary(x: &Tensor, f: Fun) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Unary(f))
}

/// Rounds to a logical float type; the gradient passes straight through.
struct RoundTo(ElementType);

impl CustomOp1 for RoundTo {
    fn name(&self) -> &'static str {
        "round-to-float-type"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = match self.0 {
            ElementType::F16 => map(slice(s, l)?, |v| round_float(ElementType::F16, v)),
            e => map(slice(s, l)?, |v| round_float(e, v)),
        };
        Ok((CpuStorage::F32(y), l.shape().clone()))
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(g.clone()))
    }
}

/// Rounds every element to `element` (nothing to do for f32).
pub(super) fn round_to(x: &Tensor, element: ElementType) -> Result<Tensor> {
    match element {
        ElementType::F16 | ElementType::BF16 => x.contiguous()?.apply_op1(RoundTo(element)),
        _ => Ok(x.clone()),
    }
}

/// Functions of two floats with gradients in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bin {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Min,
    Max,
    /// Sign of the dividend.
    Fmod,
    /// Sign of the divisor.
    Mod,
    /// `x < 0 ? x·slope : x`.
    PRelu,
}

impl Bin {
    pub fn apply<T: Float>(self, a: T, b: T) -> T {
        let zero = T::from(0f32);
        match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a * b,
            Self::Div => a / b,
            // A square is one multiplication, here as in the kernels.
            Self::Pow if b == T::from(2f32) => a * a,
            Self::Pow => a.pow(b),
            Self::Min => {
                if a.is_nan() || a < b {
                    a
                } else {
                    b
                }
            }
            Self::Max => {
                if a.is_nan() || a > b {
                    a
                } else {
                    b
                }
            }
            Self::Fmod => a % b,
            Self::Mod => {
                let r = a % b;
                if r != zero && (r < zero) != (b < zero) {
                    r + b
                } else {
                    r
                }
            }
            Self::PRelu => {
                if a < zero {
                    a * b
                } else {
                    a
                }
            }
        }
    }

    /// Slopes in `a` and in `b`.
    fn slopes(self, a: f32, b: f32) -> (f32, f32) {
        match self {
            Self::Add => (1.0, 1.0),
            Self::Sub => (1.0, -1.0),
            Self::Mul => (b, a),
            Self::Div => (1.0 / b, -a / (b * b)),
            Self::Pow => (
                if b == 0.0 { 0.0 } else { b * a.powf(b - 1.0) },
                if a > 0.0 { a.powf(b) * a.ln() } else { 0.0 },
            ),
            // A tie shares the gradient.
            Self::Min | Self::Max if a == b => (0.5, 0.5),
            Self::Min => (f32::from(a < b), f32::from(b < a)),
            Self::Max => (f32::from(a > b), f32::from(b > a)),
            Self::Fmod => (1.0, -(a / b).trunc()),
            Self::Mod => (1.0, -(a / b).floor()),
            Self::PRelu => {
                if a < 0.0 {
                    (b, a)
                } else {
                    (1.0, 0.0)
                }
            }
        }
    }
}

struct Binary(Bin);

impl CustomOp2 for Binary {
    fn name(&self) -> &'static str {
        "binary"
    }
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let a = (slice(s1, l1)?, l1.dims());
        let b = (slice(s2, l2)?, l2.dims());
        let out = broadcast_shape(&[a.1, b.1]).map_err(|e| candle_core::Error::Msg(e.0))?;
        // One operand has the result's shape more often than not: the other is walked beside it.
        let one = |x: &[f32], side: Option<Side<'_>>, swapped: bool| {
            let side = side?;
            let mut y = vec![0.0; x.len()];
            let link = Link::With {
                bin: self.0,
                operand: 0,
                swapped,
            };
            chain(isa(), &[link], From::Slice(x), &[side], &mut y);
            Some(y)
        };
        let y = if a.1 == out {
            one(a.0, Side::new(b.0, b.1, &out), false)
        } else if b.1 == out {
            one(b.0, Side::new(a.0, a.1, &out), true)
        } else {
            None
        };
        let y = y.unwrap_or_else(|| zip(a, b, &out, |a: f32, b: f32| self.0.apply(a, b)));
        Ok((CpuStorage::F32(y), out.into()))
    }
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let out = g.dims();
        let f = self.0;
        // One operand's gradient: slope times g, then summed over the axes it was broadcast along.
        let one = |second: bool| -> Result<Tensor> {
            let to = if second { b.dims() } else { a.dims() };
            let full = match (f, second) {
                (Bin::Add, _) | (Bin::Sub, false) => g.clone(),
                (Bin::Sub, true) => unary(g, Fun::Neg)?,
                (Bin::Mul, false) => binary(g, &b.detach(), Bin::Mul)?,
                (Bin::Mul, true) => binary(g, &a.detach(), Bin::Mul)?,
                (Bin::Div, false) => binary(g, &b.detach(), Bin::Div)?,
                _ => {
                    let slope = with_f32(a, |av| {
                        with_f32(b, |bv| {
                            zip((av, a.dims()), (bv, b.dims()), out, |x, y| {
                                let (p, q) = f.slopes(x, y);
                                if second { q } else { p }
                            })
                        })
                    })??;
                    binary(g, &tensor_f32(slope, out)?, Bin::Mul)?
                }
            };
            if to == out {
                return Ok(full);
            }
            let v = with_f32(&full, |v| sum_to(v, out, to))?;
            tensor_f32(v, to)
        };
        // Constants need none; leaving theirs out halves the work.
        let ga = a.track_op().then(|| one(false)).transpose()?;
        let gb = b.track_op().then(|| one(true)).transpose()?;
        Ok((ga, gb))
    }
}

/// Applies a function to two broadcast operands.
pub(super) fn binary(a: &Tensor, b: &Tensor, f: Bin) -> Result<Tensor> {
    a.contiguous()?.apply_op2(&b.contiguous()?, Binary(f))
}
