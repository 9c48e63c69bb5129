//! Functions of one float and their slopes, once for f32 and f64.

use crate::graph::UnaryOp;
use std::ops::{Add, Div, Mul, Neg, Rem, Sub};

/// What the scalar functions need of a float type.
pub(super) trait Float:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + From<f32>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Rem<Output = Self>
    + Neg<Output = Self>
{
    fn apply(f: Fun, x: Self) -> Self;
    fn pow(self, e: Self) -> Self;
    fn is_nan(self) -> bool;
}

/// A function of one value, its attributes included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fun {
    Relu,
    Sigmoid,
    Neg,
    Op(UnaryOp),
    LeakyRelu(f64),
    Elu(f64),
    Celu(f64),
    Selu { alpha: f64, gamma: f64 },
    ThresholdedRelu(f64),
    HardSigmoid { alpha: f64, beta: f64 },
    GeluErf,
    GeluTanh,
    Clip { lo: f64, hi: f64 },
    Affine { mul: f64, add: f64 },
}

impl Fun {
    pub fn of(op: UnaryOp) -> Self {
        match op {
            UnaryOp::Relu => Self::Relu,
            UnaryOp::Sigmoid => Self::Sigmoid,
            UnaryOp::Neg => Self::Neg,
            op => Self::Op(op),
        }
    }
}

macro_rules! float {
    ($t:ident, $erf:path) => {
        impl Float for $t {
            fn pow(self, e: Self) -> Self {
                self.powf(e)
            }
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
            #[inline]
            fn apply(f: Fun, x: Self) -> Self {
                match f {
                    Fun::Relu | Fun::Op(UnaryOp::Relu) => {
                        if x < 0.0 {
                            0.0
                        } else {
                            x
                        }
                    }
                    // Both halves avoid an overflowing exponential.
                    Fun::Sigmoid | Fun::Op(UnaryOp::Sigmoid) => {
                        if x >= 0.0 {
                            1.0 / (1.0 + (-x).exp())
                        } else {
                            let e = x.exp();
                            e / (1.0 + e)
                        }
                    }
                    Fun::Neg | Fun::Op(UnaryOp::Neg) => -x,
                    Fun::LeakyRelu(a) => {
                        if x < 0.0 {
                            a as $t * x
                        } else {
                            x
                        }
                    }
                    Fun::Elu(a) => {
                        if x < 0.0 {
                            a as $t * x.exp_m1()
                        } else {
                            x
                        }
                    }
                    Fun::Celu(a) => {
                        let a = a as $t;
                        if x < 0.0 { a * (x / a).exp_m1() } else { x }
                    }
                    Fun::Selu { alpha, gamma } => {
                        gamma as $t
                            * if x <= 0.0 {
                                alpha as $t * x.exp_m1()
                            } else {
                                x
                            }
                    }
                    Fun::ThresholdedRelu(a) => {
                        if x > a as $t {
                            x
                        } else {
                            0.0
                        }
                    }
                    Fun::HardSigmoid { alpha, beta } => {
                        (alpha as $t * x + beta as $t).clamp(0.0, 1.0)
                    }
                    Fun::GeluErf => 0.5 * x * (1.0 + $erf(x * std::$t::consts::FRAC_1_SQRT_2)),
                    Fun::GeluTanh => 0.5 * x * (1.0 + gelu_inner(f64::from(x)).tanh() as $t),
                    Fun::Clip { lo, hi } => {
                        let (lo, hi) = (lo as $t, hi as $t);
                        let x = if x < lo { lo } else { x };
                        if x > hi { hi } else { x }
                    }
                    Fun::Affine { mul, add } => mul as $t * x + add as $t,
                    Fun::Op(op) => match op {
                        UnaryOp::Abs => x.abs(),
                        // Unlike `signum`: zero stays zero, NaN stays NaN.
                        UnaryOp::Sign => {
                            if x > 0.0 {
                                1.0
                            } else if x < 0.0 {
                                -1.0
                            } else {
                                x
                            }
                        }
                        UnaryOp::Reciprocal => 1.0 / x,
                        UnaryOp::Sqrt => x.sqrt(),
                        UnaryOp::Exp => x.exp(),
                        UnaryOp::Log => x.ln(),
                        UnaryOp::Floor => x.floor(),
                        UnaryOp::Ceil => x.ceil(),
                        UnaryOp::Round => x.round_ties_even(),
                        UnaryOp::Erf => $erf(x),
                        UnaryOp::Sin => x.sin(),
                        UnaryOp::Cos => x.cos(),
                        UnaryOp::Tan => x.tan(),
                        UnaryOp::Asin => x.asin(),
                        UnaryOp::Acos => x.acos(),
                        UnaryOp::Atan => x.atan(),
                        UnaryOp::Sinh => x.sinh(),
                        UnaryOp::Cosh => x.cosh(),
                        UnaryOp::Asinh => x.asinh(),
                        UnaryOp::Acosh => x.acosh(),
                        UnaryOp::Atanh => x.atanh(),
                        UnaryOp::Tanh => x.tanh(),
                        // max(x, 0) + log1p(e^-|x|) neither overflows nor loses small values.
                        UnaryOp::Softplus => {
                            (if x > 0.0 { x } else { 0.0 * x }) + (-x.abs()).exp().ln_1p()
                        }
                        UnaryOp::Softsign => x / (1.0 + x.abs()),
                        UnaryOp::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
                        UnaryOp::Mish => x * Self::apply(Fun::Op(UnaryOp::Softplus), x).tanh(),
                        // Answered as booleans before they could come here, or handled above.
                        UnaryOp::Not
                        | UnaryOp::IsNaN
                        | UnaryOp::Relu
                        | UnaryOp::Sigmoid
                        | UnaryOp::Neg => x,
                    },
                }
            }
        }
    };
}

float!(f32, libm::erff);
float!(f64, libm::erf);

fn gelu_inner(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)
}

impl Fun {
    /// Slope at `x`, where the function is `y`. In f64: this is not the hot path of any but the simplest.
    pub fn slope(self, x: f32, y: f32) -> f32 {
        let (x, y) = (f64::from(x), f64::from(y));
        let step = |on: bool| if on { 1.0 } else { 0.0 };
        let sigmoid = |x: f64| f64::apply(Fun::Sigmoid, x);
        (match self {
            Self::Relu => step(x > 0.0),
            Self::Sigmoid => y * (1.0 - y),
            Self::Neg => -1.0,
            Self::LeakyRelu(a) => {
                if x < 0.0 {
                    a
                } else {
                    1.0
                }
            }
            Self::Elu(a) => {
                if x < 0.0 {
                    y + a
                } else {
                    1.0
                }
            }
            Self::Celu(a) => {
                if x < 0.0 {
                    (x / a).exp()
                } else {
                    1.0
                }
            }
            Self::Selu { alpha, gamma } => {
                if x <= 0.0 {
                    y + gamma * alpha
                } else {
                    gamma
                }
            }
            Self::ThresholdedRelu(a) => step(x > a),
            Self::HardSigmoid { alpha, .. } => {
                if y > 0.0 && y < 1.0 {
                    alpha
                } else {
                    0.0
                }
            }
            Self::GeluErf => {
                let phi = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)) + x * phi
            }
            Self::GeluTanh => {
                let t = gelu_inner(x).tanh();
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
            }
            Self::Clip { lo, hi } => step(x >= f64::from(lo as f32) && x <= f64::from(hi as f32)),
            Self::Affine { mul, .. } => mul,
            Self::Op(op) => match op {
                UnaryOp::Abs => f64::apply(Fun::Op(UnaryOp::Sign), x),
                UnaryOp::Reciprocal => -y * y,
                UnaryOp::Sqrt => 0.5 / y,
                UnaryOp::Exp => y,
                UnaryOp::Log => 1.0 / x,
                UnaryOp::Erf => std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp(),
                UnaryOp::Sin => x.cos(),
                UnaryOp::Cos => -x.sin(),
                UnaryOp::Tan => 1.0 + y * y,
                UnaryOp::Asin => 1.0 / (1.0 - x * x).sqrt(),
                UnaryOp::Acos => -1.0 / (1.0 - x * x).sqrt(),
                UnaryOp::Atan => 1.0 / (1.0 + x * x),
                UnaryOp::Sinh => x.cosh(),
                UnaryOp::Cosh => x.sinh(),
                UnaryOp::Asinh => 1.0 / (x * x + 1.0).sqrt(),
                UnaryOp::Acosh => 1.0 / (x * x - 1.0).sqrt(),
                UnaryOp::Atanh => 1.0 / (1.0 - x * x),
                UnaryOp::Tanh => 1.0 - y * y,
                UnaryOp::Softplus => sigmoid(x),
                UnaryOp::Softsign => 1.0 / (1.0 + x.abs()).powi(2),
                UnaryOp::HardSwish => {
                    if x <= -3.0 {
                        0.0
                    } else if x >= 3.0 {
                        1.0
                    } else {
                        x / 3.0 + 0.5
                    }
                }
                UnaryOp::Mish => {
                    let t = f64::apply(Fun::Op(UnaryOp::Softplus), x).tanh();
                    t + x * (1.0 - t * t) * sigmoid(x)
                }
                UnaryOp::Relu => step(x > 0.0),
                UnaryOp::Sigmoid => y * (1.0 - y),
                UnaryOp::Neg => -1.0,
                // Flat almost everywhere.
                UnaryOp::Sign
                | UnaryOp::Floor
                | UnaryOp::Ceil
                | UnaryOp::Round
                | UnaryOp::Not
                | UnaryOp::IsNaN => 0.0,
            },
        }) as f32
    }
}
