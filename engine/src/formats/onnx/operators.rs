//! The operators of the standard domain, each from whichever spelling the file's opset has.

use super::convert::Cx;
use super::tensor;
use super::windows;
use crate::graph::{BinaryOp, ElementType, Op, PadMode, ReduceOp, TensorData, UnaryOp, VariadicOp};

/// Inputs that must be there, most inputs, most outputs of an operator that is read.
fn arity(op_type: &str) -> Option<(usize, usize, usize)> {
    const MANY: usize = usize::MAX;
    Some(match op_type {
        "Conv" | "ConvTranspose" => (2, 3, 1),
        "BatchNormalization" => (5, 5, 5),
        "InstanceNormalization" => (3, 3, 1),
        "LayerNormalization" => (2, 3, 3),
        "Gemm" => (2, 3, 1),
        "CastLike" | "MatMul" | "PRelu" | "Expand" | "Tile" | "Reshape" | "Gather" => (2, 2, 1),
        "LeakyRelu" | "Elu" | "Celu" | "Selu" | "ThresholdedRelu" | "HardSigmoid" | "Gelu"
        | "Softmax" | "LogSoftmax" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool"
        | "Flatten" | "Transpose" | "ArgMax" | "ArgMin" | "Cast" | "Shape" | "Size"
        | "ConstantOfShape" | "Identity" => (1, 1, 1),
        "MaxPool" => (1, 1, 2),
        "Clip" => (1, 3, 1),
        "Sum" | "Mean" | "Min" | "Max" | "Concat" => (1, MANY, 1),
        "Split" => (1, 2, MANY),
        "Slice" => (1, 5, 1),
        "Squeeze" | "Unsqueeze" => (1, 2, 1),
        "Pad" => (1, 4, 1),
        "Resize" => (1, 4, 1),
        "Upsample" => (2, 2, 1),
        "Where" | "Range" => (3, 3, 1),
        "Dropout" => (1, 3, 2),
        "QuantizeLinear" | "DequantizeLinear" => (2, 3, 1),
        "DynamicQuantizeLinear" => (1, 1, 3),
        _ if reduce(op_type).is_some() => (1, 2, 1),
        _ if unary(op_type).is_some() => (1, 1, 1),
        _ if binary(op_type).is_some() => (2, 2, 1),
        _ => return None,
    })
}

fn unary(op_type: &str) -> Option<UnaryOp> {
    UnaryOp::ALL.into_iter().find(|u| u.name() == op_type)
}

fn binary(op_type: &str) -> Option<BinaryOp> {
    use BinaryOp::*;
    [
        Add,
        Sub,
        Mul,
        Div,
        Pow,
        Mod { fmod: false },
        And,
        Or,
        Xor,
        Equal,
        Less,
        LessOrEqual,
        Greater,
        GreaterOrEqual,
        PRelu,
    ]
    .into_iter()
    .find(|b| b.name() == op_type)
}

fn reduce(op_type: &str) -> Option<ReduceOp> {
    use ReduceOp::*;
    [
        Sum, Mean, Max, Min, Prod, L1, L2, LogSum, LogSumExp, SumSquare,
    ]
    .into_iter()
    .find(|r| r.name() == op_type)
}

/// Reads the node's operator. The error is why it can't be one of the IR's. An operator that is returned has
/// its required inputs, no more than its most, and its first output.
pub(super) fn operator(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    let name = cx.op_type;
    let (required, most, outputs) =
        arity(name).ok_or_else(|| format!("the operator {name} is not supported"))?;
    let given = cx.node.inputs.len();
    if given > most || (0..required).any(|i| cx.input(i).is_none()) {
        return Err(match required == most {
            true => format!("{name} needs {required} inputs, but {given} are given"),
            false => format!("{name} needs at least {required} inputs, but {given} are given"),
        });
    }
    if matches!(name, "Sum" | "Mean" | "Min" | "Max" | "Concat")
        && cx.node.inputs.iter().any(Option::is_none)
    {
        return Err(format!("one of the inputs of {name} is missing"));
    }
    let found = cx.node.outputs.len();
    if found == 0 || found > outputs || (name != "Split" && cx.node.outputs[0].is_none()) {
        return Err(format!("{name} can't have {found} outputs"));
    }
    let op = read(cx, name)?;
    match cx.attributes.left_over() {
        Some(attribute) => Err(format!(
            "the attribute {attribute} of {name} is not supported"
        )),
        None => Ok(op),
    }
}

fn read(cx: &mut Cx<'_, '_, '_>, name: &str) -> Result<Op, String> {
    if let Some(op) = unary(name) {
        return Ok(Op::Unary(op));
    }
    if let Some(op) = reduce(name) {
        return reduction(cx, op);
    }
    Ok(match name {
        "Conv" => return windows::conv(cx),
        "ConvTranspose" => return windows::conv_transpose(cx),
        "MaxPool" => return windows::max_pool(cx),
        "AveragePool" => return windows::average_pool(cx),
        "Resize" => return windows::resize(cx),
        "Upsample" => return windows::upsample(cx),
        "GlobalAveragePool" => Op::GlobalAveragePool,
        "GlobalMaxPool" => Op::GlobalMaxPool,
        "BatchNormalization" => return batch_normalization(cx),
        "InstanceNormalization" => Op::InstanceNormalization {
            epsilon: cx.attributes.float("epsilon", 1e-5)?,
        },
        "LayerNormalization" => {
            if cx.attributes.int("stash_type", 1)? != 1 {
                return Err("stash_type other than float32 is not supported".into());
            }
            cx.drop_unread_outputs(1);
            Op::LayerNormalization {
                axis: cx.attributes.int("axis", -1)?,
                epsilon: cx.attributes.float("epsilon", 1e-5)?,
            }
        }
        "Gemm" => Op::Gemm {
            alpha: cx.attributes.float("alpha", 1.0)?,
            beta: cx.attributes.float("beta", 1.0)?,
            trans_a: cx.attributes.flag("transA", false)?,
            trans_b: cx.attributes.flag("transB", false)?,
        },
        "MatMul" => Op::MatMul,
        "LeakyRelu" => Op::LeakyRelu {
            alpha: cx.attributes.float("alpha", 0.01)?,
        },
        "Elu" => Op::Elu {
            alpha: cx.attributes.float("alpha", 1.0)?,
        },
        "Celu" => Op::Celu {
            alpha: cx.attributes.float("alpha", 1.0)?,
        },
        "Selu" => Op::Selu {
            alpha: cx.attributes.float("alpha", 1.673_263_2)?,
            gamma: cx.attributes.float("gamma", 1.050_701)?,
        },
        "ThresholdedRelu" => Op::ThresholdedRelu {
            alpha: cx.attributes.float("alpha", 1.0)?,
        },
        "HardSigmoid" => Op::HardSigmoid {
            alpha: cx.attributes.float("alpha", 0.2)?,
            beta: cx.attributes.float("beta", 0.5)?,
        },
        "Gelu" => match cx.attributes.string("approximate", "none")?.as_str() {
            "none" => Op::Gelu { tanh: false },
            "tanh" => Op::Gelu { tanh: true },
            other => return Err(format!("the approximation {other:?} is not supported")),
        },
        "Clip" => {
            if cx.opset < 11 {
                if let Some(v) = cx.attributes.optional_float("min")? {
                    cx.set_scalar_like(1, "min", v);
                }
                if let Some(v) = cx.attributes.optional_float("max")? {
                    cx.set_scalar_like(2, "max", v);
                }
            }
            Op::Clip
        }
        "Softmax" => softmax(cx, |axis, flatten| Op::Softmax { axis, flatten })?,
        "LogSoftmax" => softmax(cx, |axis, flatten| Op::LogSoftmax { axis, flatten })?,
        "Mod" => Op::Binary(BinaryOp::Mod {
            fmod: cx.attributes.flag("fmod", false)?,
        }),
        "Sum" => Op::Variadic(VariadicOp::Sum),
        "Mean" => Op::Variadic(VariadicOp::Mean),
        "Min" => Op::Variadic(VariadicOp::Min),
        "Max" => Op::Variadic(VariadicOp::Max),
        "Concat" => Op::Concat {
            axis: cx.attributes.required_int("axis")?,
        },
        "Split" => return split(cx),
        "Slice" => return slice(cx),
        "Gather" => Op::Gather {
            axis: cx.attributes.int("axis", 0)?,
        },
        "Reshape" => Op::Reshape {
            allow_zero: cx.attributes.flag("allowzero", false)?,
        },
        "Flatten" => Op::Flatten {
            axis: cx.attributes.int("axis", 1)?,
        },
        "Transpose" => Op::Transpose {
            perm: cx.attributes.sizes("perm", 0)?,
        },
        "Squeeze" => {
            axes_to_input(cx, 13)?;
            Op::Squeeze
        }
        "Unsqueeze" => {
            axes_to_input(cx, 13)?;
            if cx.input(1).is_none() {
                return Err("Unsqueeze has no axes".into());
            }
            Op::Unsqueeze
        }
        "Expand" => Op::Expand,
        "Tile" => Op::Tile,
        "Pad" => return pad(cx),
        "ArgMax" => {
            let (axis, keep_dims, last) = arg_reduction(cx)?;
            Op::ArgMax {
                axis,
                keep_dims,
                last,
            }
        }
        "ArgMin" => {
            let (axis, keep_dims, last) = arg_reduction(cx)?;
            Op::ArgMin {
                axis,
                keep_dims,
                last,
            }
        }
        "Cast" => {
            // Of 8-bit floats only, which are not carried.
            cx.attributes.ignore("saturate");
            cx.attributes.ignore("round_mode");
            Op::Cast {
                to: element(cx.attributes.required_int("to")?)?,
            }
        }
        "CastLike" => {
            cx.attributes.ignore("saturate");
            cx.attributes.ignore("round_mode");
            let to = cx.element(1).ok_or("the type it casts to is not known")?;
            cx.node.inputs.truncate(1);
            Op::Cast { to }
        }
        "Shape" => Op::Shape {
            start: cx.attributes.optional_int("start")?,
            end: cx.attributes.optional_int("end")?,
        },
        "Size" => Op::Size,
        "Where" => Op::Where,
        "ConstantOfShape" => Op::ConstantOfShape {
            value: match cx.attributes.tensor("value")? {
                None => TensorData::from_f32(&[1], &[0.0]),
                Some(t) => {
                    let value = tensor::read(t, &mut cx.reader.external)?;
                    if value.len() != 1 {
                        return Err("its value has not exactly one element".into());
                    }
                    value
                }
            },
        },
        "Range" => Op::Range,
        "Identity" => Op::Identity,
        "DynamicQuantizeLinear" => Op::DynamicQuantizeLinear,
        "Dropout" => return dropout(cx),
        "QuantizeLinear" => return quantize(cx),
        "DequantizeLinear" => {
            if cx.attributes.int("output_dtype", 0)? != 0 {
                return Err("attribute output_dtype is not supported".into());
            }
            let (axis, block) = quantization_axis(cx)?;
            Op::DequantizeLinear { axis, block }
        }
        _ => match binary(name) {
            Some(op) => Op::Binary(op),
            None => return Err(format!("the operator {name} is not supported")),
        },
    })
}

fn element(code: i64) -> Result<ElementType, String> {
    tensor::element_type(code).ok_or_else(|| {
        format!(
            "elements of type {} are not supported",
            tensor::foreign_type(code)
        )
    })
}

fn batch_normalization(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    if cx.attributes.flag("training_mode", false)? {
        return Err("batch normalisation in training mode is not supported".into());
    }
    if cx.attributes.int("spatial", 1)? != 1 {
        return Err("batch normalisation per position (spatial = 0) is not supported".into());
    }
    cx.attributes.ignore("momentum");
    cx.drop_outputs(1, "the statistics outputs of training are not supported")?;
    Ok(Op::BatchNormalization {
        epsilon: cx.attributes.float("epsilon", 1e-5)?,
    })
}

fn softmax(cx: &mut Cx<'_, '_, '_>, make: impl Fn(i64, bool) -> Op) -> Result<Op, String> {
    let flatten = cx.opset < 13;
    let axis = cx.attributes.int("axis", if flatten { 1 } else { -1 })?;
    Ok(make(axis, flatten))
}

/// Axes as an attribute became an input with opset `since`.
fn axes_to_input(cx: &mut Cx<'_, '_, '_>, since: i64) -> Result<(), String> {
    if cx.opset >= since {
        return Ok(());
    }
    if cx.input(1).is_some() {
        return Err(format!(
            "axes are an attribute before opset {since}, not an input"
        ));
    }
    if let Some(axes) = cx.attributes.ints("axes")? {
        cx.set_ints(1, "axes", axes);
    }
    Ok(())
}

fn reduction(cx: &mut Cx<'_, '_, '_>, op: ReduceOp) -> Result<Op, String> {
    axes_to_input(cx, if op == ReduceOp::Sum { 13 } else { 18 })?;
    Ok(Op::Reduce {
        op,
        keep_dims: cx.attributes.flag("keepdims", true)?,
        noop_with_empty_axes: cx.attributes.flag("noop_with_empty_axes", false)?,
    })
}

fn arg_reduction(cx: &Cx<'_, '_, '_>) -> Result<(i64, bool, bool), String> {
    Ok((
        cx.attributes.int("axis", 0)?,
        cx.attributes.flag("keepdims", true)?,
        cx.attributes.flag("select_last_index", false)?,
    ))
}

fn split(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    let axis = cx.attributes.int("axis", 0)?;
    if cx.opset < 13
        && let Some(sizes) = cx.attributes.ints("split")?
    {
        cx.set_ints(1, "split", sizes);
    }
    let outputs = cx.node.outputs.len();
    let stated = cx.attributes.optional_int("num_outputs")?;
    let num_outputs = match (cx.input(1), stated) {
        (Some(_), None) => None,
        (Some(_), Some(_)) => return Err("both split and num_outputs are given".into()),
        (None, Some(n)) if usize::try_from(n) != Ok(outputs) => {
            return Err(format!(
                "num_outputs is {n}, but there are {outputs} outputs"
            ));
        }
        (None, _) => Some(outputs),
    };
    Ok(Op::Split { axis, num_outputs })
}

fn slice(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    if cx.opset < 10 {
        let starts = cx
            .attributes
            .ints("starts")?
            .ok_or("attribute starts is missing")?;
        let ends = cx
            .attributes
            .ints("ends")?
            .ok_or("attribute ends is missing")?;
        cx.set_ints(1, "starts", starts);
        cx.set_ints(2, "ends", ends);
        if let Some(axes) = cx.attributes.ints("axes")? {
            cx.set_ints(3, "axes", axes);
        }
    }
    if cx.input(1).is_none() || cx.input(2).is_none() {
        return Err("Slice needs starts and ends".into());
    }
    Ok(Op::Slice)
}

fn pad(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    let mode = match cx.attributes.string("mode", "constant")?.as_str() {
        "constant" => PadMode::Constant,
        "reflect" => PadMode::Reflect,
        "edge" => PadMode::Edge,
        "wrap" => PadMode::Wrap,
        other => return Err(format!("the padding mode {other:?} is not supported")),
    };
    if cx.opset < 11 {
        let pads = cx
            .attributes
            .ints("pads")?
            .ok_or("attribute pads is missing")?;
        cx.set_ints(1, "pads", pads);
        let value = cx.attributes.float("value", 0.0)?;
        if value != 0.0 {
            cx.set_scalar_like(2, "value", value);
        }
    }
    if cx.input(1).is_none() {
        return Err("Pad has no pads".into());
    }
    Ok(Op::Pad { mode })
}

fn dropout(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    if cx.input(2).is_some() {
        let training = cx
            .data(2)
            .map(|d| d.to_i64_vec().first().copied().unwrap_or(0));
        match training {
            Some(0) => {}
            Some(_) => return Err("dropout in training mode is not supported".into()),
            None => return Err("whether dropout trains is decided at run time".into()),
        }
    }
    cx.attributes.ignore("ratio");
    cx.attributes.ignore("seed");
    cx.node.inputs.truncate(1);
    cx.drop_unread_outputs(1);
    Ok(Op::Dropout)
}

fn quantization_axis(cx: &Cx<'_, '_, '_>) -> Result<(i64, usize), String> {
    let axis = cx.attributes.int("axis", 1)?;
    let block = usize::try_from(cx.attributes.int("block_size", 0)?)
        .map_err(|_| "attribute block_size is negative")?;
    // Of 8-bit floats only, which are not carried.
    cx.attributes.ignore("saturate");
    Ok((axis, block))
}

fn quantize(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    let (axis, block) = quantization_axis(cx)?;
    if cx.attributes.int("precision", 0)? != 0 {
        return Err("attribute precision is not supported".into());
    }
    let stated = match cx.attributes.int("output_dtype", 0)? {
        0 => None,
        code => Some(element(code)?),
    };
    let to = match (stated, cx.input(2)) {
        (Some(to), _) => to,
        (None, None) => ElementType::U8,
        (None, Some(_)) => cx
            .element(2)
            .ok_or("the type of its zero point is not known")?,
    };
    if !to.is_integer() {
        return Err(format!("quantising to {to} is not supported"));
    }
    Ok(Op::QuantizeLinear { axis, block, to })
}
