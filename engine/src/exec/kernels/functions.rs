//! Functions of one float over [`Lanes`]: exponentials and what is made of them as polynomials, the rest as it stands.
//!
//! Error bounds hold for all three instruction sets and are what `tests/functions.rs` measures against f64: exp 2·10⁻⁷ relative
//! (results below the normal floats: one step of theirs), sigmoid, tanh and erf 3·10⁻⁷ relative, GELU 3·10⁻⁷·max(|x|, 1).
//! The coefficients are minimax fits (Remez's exchange, mpmath); what is not a number stays so.

#![allow(unsafe_code)] // vectors by intrinsics: see the contract of `Lanes`

use super::{
    host::on_pool,
    lanes::{Isa, Lanes, for_each_isa, isa},
};
use crate::{exec::scalar::Fun, graph::UnaryOp};
use rayon::prelude::*;

/// Elements a task takes.
const TASK: usize = 1 << 14;

/// The polynomial with these coefficients, that of the highest power first.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn polynomial<L: Lanes, const N: usize>(x: L, coefficients: [f32; N]) -> L {
    unsafe {
        let mut sum = L::splat(coefficients[0]);
        for c in &coefficients[1..] {
            sum = sum.fma(x, L::splat(*c));
        }
        sum
    }
}

/// 1.5·2²³: added and taken off again it rounds |x| ≤ 2²² half to even.
const MAGIC: f32 = 12_582_912.0;

/// eˣ: x = n·ln 2 + r with |r| ≤ ½·ln 2 (Cody and Waite), eʳ by its Taylor polynomial of degree 7 (remainder 5·10⁻⁹).
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L) -> L {
    unsafe {
        // Beyond these the result is 0 or infinite.
        let x = L::splat(89.0).min(L::splat(-104.0).max(x));
        let magic = L::splat(MAGIC);
        let n = x
            .mul(L::splat(std::f32::consts::LOG2_E))
            .add(magic)
            .sub(magic);
        // ln 2 in two parts, of which n times the first is exact.
        let r = n.fma(L::splat(-355.0 / 512.0), x);
        let r = n.fma(L::splat(2.121_944_4e-4), r);
        let rest = polynomial(
            r,
            [
                1.0 / 5040.0,
                1.0 / 720.0,
                1.0 / 120.0,
                1.0 / 24.0,
                1.0 / 6.0,
                0.5,
            ],
        );
        let e = rest.fma(r.mul(r), r).add(L::splat(1.0));
        e.scaled(n)
    }
}

/// 1 − erf(z) for z ≥ 0, without cancellation: e^(−z²)·t·P(t) with t = 1/(1 + z/2). Relative error of the fit 2.1·10⁻⁸ up to
/// z = 10.2, where the result leaves the floats.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn erfc<L: Lanes>(z: L) -> L {
    unsafe {
        let one = L::splat(1.0);
        let z = L::splat(10.2).min(z);
        let t = one.div(z.fma(L::splat(0.5), one));
        let p = polynomial(
            t,
            [
                0.011_683_836,
                -0.120_068_27,
                0.421_629_08,
                -0.660_581_6,
                0.413_699,
                -0.094_419_3,
                0.224_259_27,
                0.238_904_2,
                0.282_827_86,
                0.282_065_9,
            ],
        );
        let square = L::splat(0.0).sub(z.mul(z));
        exp(square).mul(t).mul(p)
    }
}

/// erf: an odd polynomial of degree 13 up to 0.85, else by [`erfc`].
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn erf<L: Lanes>(x: L) -> L {
    unsafe {
        let size = x.abs();
        let near = size.mul(polynomial(
            size.mul(size),
            [
                8.836_257e-5,
                -8.244_291e-4,
                0.005_209_299,
                -0.026_862_482,
                0.112_837_47,
                -0.376_126_37,
                std::f32::consts::FRAC_2_SQRT_PI,
            ],
        ));
        let far = L::splat(1.0).sub(erfc(size));
        size.less(L::splat(0.85), near, far).signed(x)
    }
}

/// tanh: x + x³·P(x²) up to 0.625, else (1 − e^(−2x))/(1 + e^(−2x)).
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn tanh<L: Lanes>(x: L) -> L {
    unsafe {
        let one = L::splat(1.0);
        let size = x.abs();
        let square = size.mul(size);
        let p = polynomial(
            square,
            [
                -0.005_717_047,
                0.020_650_59,
                -0.053_743_5,
                0.133_314_91,
                -0.333_332_84,
            ],
        );
        let near = p.mul(square).fma(size, size);
        let e = exp(size.mul(L::splat(-2.0)));
        let far = one.sub(e).div(one.add(e));
        size.less(L::splat(0.625), near, far).signed(x)
    }
}

/// 1/(1 + e^(−x)), from the exponential that does not overflow.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn sigmoid<L: Lanes>(x: L) -> L {
    unsafe {
        let (zero, one) = (L::splat(0.0), L::splat(1.0));
        let e = exp(zero.sub(x.abs()));
        let r = one.div(one.add(e));
        x.less(zero, e.mul(r), r)
    }
}

/// The normal distribution's function at x.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn normal<L: Lanes>(x: L) -> L {
    unsafe {
        let z = x.abs().mul(L::splat(std::f32::consts::FRAC_1_SQRT_2));
        let half = erfc(z).mul(L::splat(0.5));
        x.less(L::splat(0.0), half, L::splat(1.0).sub(half))
    }
}

/// A function and its slope where its value is `y`.
trait Function: Copy {
    /// # Safety
    /// As [`Lanes`].
    unsafe fn value<L: Lanes>(self, x: L) -> L;
    /// # Safety
    /// As [`Lanes`].
    unsafe fn slope<L: Lanes>(self, x: L, y: L) -> L;
}

macro_rules! function {
    ($name:ident, |$self:ident, $x:ident, $y:ident| $value:expr, $slope:expr) => {
        #[derive(Clone, Copy)]
        struct $name;
        function!(@impl $name, |$self, $x, $y| $value, $slope);
    };
    ($name:ident [$($field:ident),*], |$self:ident, $x:ident, $y:ident| $value:expr, $slope:expr) => {
        #[derive(Clone, Copy)]
        struct $name { $($field: f32),* }
        function!(@impl $name, |$self, $x, $y| $value, $slope);
    };
    (@impl $name:ident, |$self:ident, $x:ident, $y:ident| $value:expr, $slope:expr) => {
        // No function is unsafe for another reason than the instructions it is made of.
        impl Function for $name {
            #[inline(always)]
            unsafe fn value<L: Lanes>($self, $x: L) -> L {
                unsafe { $value }
            }
            #[inline(always)]
            unsafe fn slope<L: Lanes>($self, $x: L, $y: L) -> L {
                // Told by the argument or by the value, seldom by both.
                let _ = ($x, $y);
                unsafe { $slope }
            }
        }
    };
}

function!(
    Relu,
    |self, x, y| x.less(L::splat(0.0), L::splat(0.0), x),
    L::splat(0.0).less(x, L::splat(1.0), L::splat(0.0))
);
function!(Negative, |self, x, y| x.mul(L::splat(-1.0)), L::splat(-1.0));
function!(
    Absolute,
    |self, x, y| x.abs(),
    x.less(
        L::splat(0.0),
        L::splat(-1.0),
        L::splat(0.0).less(x, L::splat(1.0), x)
    )
);
function!(Root, |self, x, y| x.sqrt(), L::splat(0.5).div(y));
function!(
    Inverse,
    |self, x, y| L::splat(1.0).div(x),
    y.mul(y).mul(L::splat(-1.0))
);
function!(Exp, |self, x, y| exp(x), y.add(L::splat(0.0)));
function!(
    Erf,
    |self, x, y| erf(x),
    exp(x.mul(x).mul(L::splat(-1.0))).mul(L::splat(std::f32::consts::FRAC_2_SQRT_PI))
);
function!(Tanh, |self, x, y| tanh(x), L::splat(1.0).sub(y.mul(y)));
function!(
    Sigmoid,
    |self, x, y| sigmoid(x),
    y.mul(L::splat(1.0).sub(y))
);
function!(Gelu, |self, x, y| x.mul(normal(x)), {
    // Φ(x) + x·φ(x)
    let density = exp(x.mul(x).mul(L::splat(-0.5))).mul(L::splat(0.398_942_3));
    x.fma(density, normal(x))
});
function!(GeluTanh, |self, x, y| x.mul(sigmoid(twice_inner(x))), {
    let s = sigmoid(twice_inner(x));
    let inner = x.mul(x).fma(
        L::splat(2.0 * ROOT_2_OVER_PI * 3.0 * CUBIC),
        L::splat(2.0 * ROOT_2_OVER_PI),
    );
    x.mul(inner).fma(s.mul(L::splat(1.0).sub(s)), s)
});
function!(
    HardSwish,
    |self, x, y| {
        let gate = x.div(L::splat(6.0)).add(L::splat(0.5));
        x.mul(L::splat(1.0).min(L::splat(0.0).max(gate)))
    },
    {
        let inside = x.div(L::splat(3.0)).add(L::splat(0.5));
        let upper = x.less(L::splat(3.0), inside, L::splat(1.0));
        L::splat(-3.0).less(x, upper, L::splat(0.0))
    }
);
function!(
    Leaky[alpha],
    |self, x, y| x.less(L::splat(0.0), x.mul(L::splat(self.alpha)), x),
    x.less(L::splat(0.0), L::splat(self.alpha), L::splat(1.0))
);
function!(
    Clip[lo, hi],
    |self, x, y| {
        let x = x.less(L::splat(self.lo), L::splat(self.lo), x);
        L::splat(self.hi).less(x, L::splat(self.hi), x)
    },
    {
        let (zero, one) = (L::splat(0.0), L::splat(1.0));
        let above = L::splat(self.hi).less(x, zero, one);
        x.less(L::splat(self.lo), zero, above)
    }
);
function!(
    HardSigmoid[alpha, beta],
    |self, x, y| {
        let line = x.mul(L::splat(self.alpha)).add(L::splat(self.beta));
        L::splat(1.0).min(L::splat(0.0).max(line))
    },
    {
        let below = y.less(L::splat(1.0), L::splat(self.alpha), L::splat(0.0));
        L::splat(0.0).less(y, below, L::splat(0.0))
    }
);
function!(
    Affine[by, plus],
    |self, x, y| x.mul(L::splat(self.by)).add(L::splat(self.plus)),
    L::splat(self.by)
);

const ROOT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// 2·√(2/π)·(x + 0.044715·x³): ½·(1 + tanh(u)) is the sigmoid of 2u.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn twice_inner<L: Lanes>(x: L) -> L {
    unsafe {
        let cube = x.mul(x).mul(x);
        cube.fma(L::splat(CUBIC), x)
            .mul(L::splat(2.0 * ROOT_2_OVER_PI))
    }
}

/// Runs `$body` with the [`Function`] that `$fun` is; `$other` where it is none of them.
macro_rules! as_function {
    ($fun:expr, |$f:ident| $body:expr, $other:expr) => {
        match $fun {
            Fun::Relu | Fun::Op(UnaryOp::Relu) => {
                let $f = Relu;
                $body
            }
            Fun::Neg | Fun::Op(UnaryOp::Neg) => {
                let $f = Negative;
                $body
            }
            Fun::Sigmoid | Fun::Op(UnaryOp::Sigmoid) => {
                let $f = Sigmoid;
                $body
            }
            Fun::Op(UnaryOp::Abs) => {
                let $f = Absolute;
                $body
            }
            Fun::Op(UnaryOp::Sqrt) => {
                let $f = Root;
                $body
            }
            Fun::Op(UnaryOp::Reciprocal) => {
                let $f = Inverse;
                $body
            }
            Fun::Op(UnaryOp::Exp) => {
                let $f = Exp;
                $body
            }
            Fun::Op(UnaryOp::Erf) => {
                let $f = Erf;
                $body
            }
            Fun::Op(UnaryOp::Tanh) => {
                let $f = Tanh;
                $body
            }
            Fun::Op(UnaryOp::HardSwish) => {
                let $f = HardSwish;
                $body
            }
            Fun::GeluErf => {
                let $f = Gelu;
                $body
            }
            Fun::GeluTanh => {
                let $f = GeluTanh;
                $body
            }
            Fun::LeakyRelu(alpha) => {
                let $f = Leaky {
                    alpha: alpha as f32,
                };
                $body
            }
            Fun::Clip { lo, hi } => {
                let $f = Clip {
                    lo: lo as f32,
                    hi: hi as f32,
                };
                $body
            }
            Fun::HardSigmoid { alpha, beta } => {
                let $f = HardSigmoid {
                    alpha: alpha as f32,
                    beta: beta as f32,
                };
                $body
            }
            Fun::Affine { mul, add } => {
                let $f = Affine {
                    by: mul as f32,
                    plus: add as f32,
                };
                $body
            }
            _ => $other,
        }
    };
}

/// Whether [`apply`] knows the function.
pub(in crate::exec) fn has_vectors(fun: Fun) -> bool {
    as_function!(
        fun,
        |f| {
            let _ = f;
            true
        },
        false
    )
}

/// Applies `fun` to `x`, on the calling thread; `out` may be what `x` points to. Functions without vectors go one by one.
///
/// # Safety
/// `x` and `out` are valid for `count` floats; they are the same or do not overlap.
pub(super) unsafe fn apply_raw(isa: Isa, fun: Fun, x: *const f32, out: *mut f32, count: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        if has_vectors(fun) {
            value_row(isa, fun, x, out, count);
        } else {
            for at in 0..count {
                *out.add(at) = <f32 as crate::exec::scalar::Float>::apply(fun, *x.add(at));
            }
        }
    }
}

for_each_isa!(
    /// # Safety
    /// As [`apply_raw`].
    fn value_row => value_body(fun: Fun, x: *const f32, out: *mut f32, count: usize)
);

#[inline(always)]
unsafe fn value_body<L: Lanes>(fun: Fun, x: *const f32, out: *mut f32, count: usize) {
    // SAFETY: as the caller.
    unsafe { as_function!(fun, |f| values::<L, _>(f, x, out, count), ()) }
}

#[inline(always)]
unsafe fn values<L: Lanes, F: Function>(f: F, x: *const f32, out: *mut f32, count: usize) {
    // SAFETY: whole vectors while `at + WIDTH ≤ count`, then a part of `count − at`.
    unsafe {
        let mut at = 0;
        while at + L::WIDTH <= count {
            f.value(L::load(x.add(at))).store(out.add(at));
            at += L::WIDTH;
        }
        if at < count {
            let n = count - at;
            f.value(L::load_part(x.add(at), n))
                .store_part(out.add(at), n);
        }
    }
}

for_each_isa!(
    /// # Safety
    /// Rows of `count` floats; `fun` has vectors.
    fn slope_row => slope_body(fun: Fun, x: *const f32, y: *const f32, g: *const f32, out: *mut f32, count: usize)
);

#[inline(always)]
unsafe fn slope_body<L: Lanes>(
    fun: Fun,
    x: *const f32,
    y: *const f32,
    g: *const f32,
    out: *mut f32,
    count: usize,
) {
    // SAFETY: as the caller.
    unsafe { as_function!(fun, |f| slopes::<L, _>(f, x, y, g, out, count), ()) }
}

#[inline(always)]
unsafe fn slopes<L: Lanes, F: Function>(
    f: F,
    x: *const f32,
    y: *const f32,
    g: *const f32,
    out: *mut f32,
    count: usize,
) {
    // SAFETY: parts of `count − at` at most.
    unsafe {
        let mut at = 0;
        while at < count {
            let n = (count - at).min(L::WIDTH);
            let slope = f.slope(L::load_part(x.add(at), n), L::load_part(y.add(at), n));
            L::load_part(g.add(at), n)
                .mul(slope)
                .store_part(out.add(at), n);
            at += n;
        }
    }
}

/// `out = fun(x)` on the calling thread.
///
/// # Panics
/// Where the two differ in length.
pub(in crate::exec) fn apply_row(fun: Fun, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "rows of one length");
    // SAFETY: two slices of one length.
    unsafe { apply_raw(isa(), fun, x.as_ptr(), out.as_mut_ptr(), out.len()) }
}

/// `fun` of every element, by the given instructions.
pub(in crate::exec) fn apply_by(isa: Isa, fun: Fun, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    let part = |x: &[f32], out: &mut [f32]| {
        // SAFETY: two slices of one length.
        unsafe { apply_raw(isa, fun, x.as_ptr(), out.as_mut_ptr(), out.len()) }
    };
    if x.len() < 2 * TASK {
        part(x, &mut out);
    } else {
        on_pool(|| {
            out.par_chunks_mut(TASK)
                .zip(x.par_chunks(TASK))
                .for_each(|(out, x)| part(x, out));
        });
    }
    out
}

/// `fun` of every element.
pub(in crate::exec) fn apply(fun: Fun, x: &[f32]) -> Vec<f32> {
    apply_by(isa(), fun, x)
}

/// `g` times the slope of `fun` at every element of `x`, where it is `y`: its gradient.
///
/// # Panics
/// Where the three differ in length.
pub(in crate::exec) fn gradient_by(
    isa: Isa,
    fun: Fun,
    x: &[f32],
    y: &[f32],
    g: &[f32],
) -> Vec<f32> {
    assert!(
        x.len() == y.len() && y.len() == g.len(),
        "a gradient is of its function's size"
    );
    let mut out = vec![0.0; x.len()];
    let vectors = has_vectors(fun);
    let part = |at: usize, out: &mut [f32]| {
        let all = at..at + out.len();
        let (x, y, g) = (&x[all.clone()], &y[all.clone()], &g[all]);
        if vectors {
            let count = out.len();
            // SAFETY: four slices of `count` floats.
            unsafe {
                slope_row(
                    isa,
                    fun,
                    x.as_ptr(),
                    y.as_ptr(),
                    g.as_ptr(),
                    out.as_mut_ptr(),
                    count,
                );
            }
        } else {
            for (((o, x), y), g) in out.iter_mut().zip(x).zip(y).zip(g) {
                *o = g * fun.slope(*x, *y);
            }
        }
    };
    if x.len() < 2 * TASK {
        part(0, &mut out);
    } else {
        on_pool(|| {
            out.par_chunks_mut(TASK)
                .enumerate()
                .for_each(|(i, out)| part(i * TASK, out));
        });
    }
    out
}

/// [`gradient_by`] the best instructions.
pub(in crate::exec) fn gradient(fun: Fun, x: &[f32], y: &[f32], g: &[f32]) -> Vec<f32> {
    gradient_by(isa(), fun, x, y, g)
}
