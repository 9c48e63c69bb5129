//! One function a family of operators; `eval` picks it. Operators get values and give values: schedule, names and taps are
//! the program's business.

pub mod arith;
mod linear;
mod quant;
mod reduce;
mod resize;
mod shape;

pub use linear::{batch_norm_of_batch, matmul_plus, window_over};
pub use quant::largest_code;

use super::{
    Fail,
    elementwise::round_to,
    fuse::Step,
    scalar::Fun,
    value::{Array, Val},
};
use crate::graph::{ElementType, Op, ReduceOp};
use candle_core::Tensor;

pub type R<T> = Result<T, Fail>;

fn need(inputs: &[Option<Val>], i: usize) -> R<&Val> {
    inputs
        .get(i)
        .and_then(Option::as_ref)
        .ok_or_else(|| Fail(format!("input {i} is missing")))
}

fn optional(inputs: &[Option<Val>], i: usize) -> Option<&Val> {
    inputs.get(i).and_then(Option::as_ref)
}

/// An axis counted from the end when negative.
fn axis_of(axis: i64, rank: usize) -> R<usize> {
    let a = if axis < 0 { axis + rank as i64 } else { axis };
    match usize::try_from(a) {
        Ok(a) if a < rank => Ok(a),
        _ => Err(Fail(format!(
            "axis {axis} is outside a value of rank {rank}"
        ))),
    }
}

/// A computed tensor under its logical type: half types are rounded after every operator.
fn float_out(t: Tensor, element: ElementType) -> R<Val> {
    Ok(Val::Float(round_to(&t, element)?, element))
}

/// Runs one step of a program. `outputs`: how many outputs the node names.
pub fn eval(step: &Step, x: &[Option<Val>], outputs: usize) -> R<Vec<Val>> {
    let op = match step {
        Step::Op(op) => op,
        Step::FakeQuant {
            axis,
            block,
            to,
            limits,
        } => {
            return Ok(vec![quant::fake(
                need(x, 0)?,
                need(x, 1)?,
                optional(x, 2),
                (*axis, *block),
                *to,
                *limits,
            )?]);
        }
        Step::FakeCast { through } => {
            let x = need(x, 0)?;
            return Ok(vec![Val::Float(
                round_to(x.tensor()?, *through)?,
                x.element(),
            )]);
        }
    };
    let one = |f: Fun| arith::unary(need(x, 0)?, f);
    let f = |v: f32| f64::from(v);
    let y = match op {
        Op::Conv { window, group } => linear::conv(x, window, *group),
        Op::ConvTranspose {
            window,
            group,
            output_padding,
            output_shape,
        } => linear::conv_transpose(x, window, *group, output_padding, output_shape.as_deref()),
        Op::BatchNormalization { epsilon } => linear::batch_norm(x, *epsilon),
        Op::InstanceNormalization { epsilon } => reduce::instance_norm(x, *epsilon),
        Op::LayerNormalization { axis, epsilon } => {
            return reduce::layer_norm(x, *axis, *epsilon, outputs);
        }
        Op::Gemm {
            alpha,
            beta,
            trans_a,
            trans_b,
        } => linear::gemm(x, *alpha, *beta, *trans_a, *trans_b),
        Op::MatMul => linear::matmul(need(x, 0)?, need(x, 1)?),
        Op::Unary(u) => one(Fun::of(*u)),
        Op::LeakyRelu { alpha } => one(Fun::LeakyRelu(f(*alpha))),
        Op::Elu { alpha } => one(Fun::Elu(f(*alpha))),
        Op::Celu { alpha } => one(Fun::Celu(f(*alpha))),
        Op::Selu { alpha, gamma } => one(Fun::Selu {
            alpha: f(*alpha),
            gamma: f(*gamma),
        }),
        Op::ThresholdedRelu { alpha } => one(Fun::ThresholdedRelu(f(*alpha))),
        Op::HardSigmoid { alpha, beta } => one(Fun::HardSigmoid {
            alpha: f(*alpha),
            beta: f(*beta),
        }),
        Op::Gelu { tanh } => one(if *tanh { Fun::GeluTanh } else { Fun::GeluErf }),
        Op::Clip => arith::clip(need(x, 0)?, optional(x, 1), optional(x, 2)),
        Op::Softmax { axis, flatten } => reduce::softmax(need(x, 0)?, *axis, *flatten, false),
        Op::LogSoftmax { axis, flatten } => reduce::softmax(need(x, 0)?, *axis, *flatten, true),
        Op::MaxPool { window, ceil } => {
            linear::pooling(need(x, 0)?, window, *ceil, linear::Pooling::Max)
        }
        Op::AveragePool {
            window,
            ceil,
            count_include_pad,
        } => linear::pooling(
            need(x, 0)?,
            window,
            *ceil,
            linear::Pooling::Average {
                count_include_pad: *count_include_pad,
            },
        ),
        Op::GlobalAveragePool => reduce::global_pool(need(x, 0)?, ReduceOp::Mean),
        Op::GlobalMaxPool => reduce::global_pool(need(x, 0)?, ReduceOp::Max),
        Op::Binary(b) => arith::binary(*b, need(x, 0)?, need(x, 1)?),
        Op::Variadic(v) => arith::variadic(*v, x),
        Op::Concat { axis } => shape::concat(x, *axis),
        Op::Split { axis, num_outputs } => {
            return shape::split(need(x, 0)?, optional(x, 1), *axis, *num_outputs, outputs);
        }
        Op::Slice => shape::slice(x),
        Op::Gather { axis } => shape::gather(need(x, 0)?, need(x, 1)?, *axis),
        Op::Reshape { allow_zero } => shape::reshape(need(x, 0)?, need(x, 1)?, *allow_zero),
        Op::Flatten { axis } => shape::flatten(need(x, 0)?, *axis),
        Op::Transpose { perm } => shape::transpose(need(x, 0)?, perm.as_deref()),
        Op::Squeeze => shape::squeeze(need(x, 0)?, optional(x, 1)),
        Op::Unsqueeze => shape::unsqueeze(need(x, 0)?, need(x, 1)?),
        Op::Expand => shape::expand(need(x, 0)?, need(x, 1)?),
        Op::Tile => shape::tile(need(x, 0)?, need(x, 1)?),
        Op::Pad { mode } => shape::pad(x, *mode),
        Op::Resize { .. } => resize::resize(op, x),
        Op::Reduce {
            op,
            keep_dims,
            noop_with_empty_axes,
        } => reduce::reduce(x, *op, *keep_dims, *noop_with_empty_axes),
        Op::ArgMax {
            axis,
            keep_dims,
            last,
        } => reduce::arg_extreme(need(x, 0)?, *axis, *keep_dims, *last, true),
        Op::ArgMin {
            axis,
            keep_dims,
            last,
        } => reduce::arg_extreme(need(x, 0)?, *axis, *keep_dims, *last, false),
        Op::Cast { to } => arith::cast(need(x, 0)?, *to),
        Op::Shape { start, end } => Ok(shape::shape_of(need(x, 0)?, *start, *end)),
        Op::Size => {
            let n = need(x, 0)?.len() as i64;
            Ok(Array::ints(ElementType::I64, vec![], vec![n]))
        }
        Op::Where => arith::select(need(x, 0)?, need(x, 1)?, need(x, 2)?),
        Op::ConstantOfShape { value } => shape::constant_of_shape(need(x, 0)?, value),
        Op::Range => shape::range(need(x, 0)?, need(x, 1)?, need(x, 2)?),
        Op::Identity => need(x, 0).cloned(),
        Op::Dropout => {
            let v = need(x, 0)?.clone();
            let mask = || Array::bools(v.shape().to_vec(), vec![true; v.len()]);
            return Ok(if outputs > 1 {
                vec![v.clone(), mask()]
            } else {
                vec![v]
            });
        }
        Op::DynamicQuantizeLinear => return quant::quantize_dynamic(x),
        Op::QuantizeLinear { axis, block, to } => quant::quantize(x, *axis, *block, *to),
        Op::DequantizeLinear { axis, block } => quant::dequantize(x, *axis, *block),
        Op::Unsupported { reason, .. } => Err(Fail(reason.clone())),
    }?;
    Ok(vec![y])
}
