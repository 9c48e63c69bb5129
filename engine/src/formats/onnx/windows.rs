//! Convolution, pooling, resizing: operators with windows and geometry.

use super::convert::Cx;
use crate::graph::{CoordinateMode, Dim, NearestMode, Op, Padding, ResizeMode, Window};

fn window(cx: &Cx<'_, '_, '_>, kernel: Vec<usize>) -> Result<Window, String> {
    let rank = kernel.len();
    let per_axis = |name: &'static str| -> Result<Vec<usize>, String> {
        let values = cx
            .attributes
            .sizes(name, 1)?
            .unwrap_or_else(|| vec![1; rank]);
        if values.len() == rank {
            Ok(values)
        } else {
            Err(format!(
                "attribute {name} has {} entries for {rank} axes",
                values.len()
            ))
        }
    };
    let auto = cx.attributes.string("auto_pad", "NOTSET")?;
    // Pads next to another auto_pad than NOTSET are ignored, as the standard says.
    let explicit = cx.attributes.ints("pads")?;
    let padding = match auto.as_str() {
        "NOTSET" | "" => match explicit {
            None => Padding::Explicit(vec![0; 2 * rank]),
            Some(_) => {
                let pads = cx.attributes.sizes("pads", 0)?.unwrap_or_default();
                if pads.len() != 2 * rank {
                    return Err(format!(
                        "attribute pads has {} entries for {rank} axes",
                        pads.len()
                    ));
                }
                Padding::Explicit(pads)
            }
        },
        "SAME_UPPER" => Padding::SameUpper,
        "SAME_LOWER" => Padding::SameLower,
        "VALID" => Padding::Valid,
        other => return Err(format!("attribute auto_pad is {other:?}")),
    };
    Ok(Window {
        strides: per_axis("strides")?,
        dilations: per_axis("dilations")?,
        kernel,
        padding,
    })
}

fn conv_window(cx: &Cx<'_, '_, '_>) -> Result<(Window, usize), String> {
    let group = usize::try_from(cx.attributes.int("group", 1)?)
        .ok()
        .filter(|&g| g > 0)
        .ok_or("attribute group is not positive")?;
    let weight = cx
        .input(1)
        .and_then(|id| cx.reader.graph.value(id).known_shape());
    let from_weight = weight.and_then(|s| s.get(2..).map(<[usize]>::to_vec));
    let stated = cx.attributes.sizes("kernel_shape", 1)?;
    let kernel = match (stated, from_weight) {
        (Some(stated), Some(actual)) if stated != actual => {
            return Err(format!(
                "attribute kernel_shape is {stated:?}, but the weight's is {actual:?}"
            ));
        }
        (Some(kernel), _) | (None, Some(kernel)) => kernel,
        (None, None) => return Err("the size of its kernel is not known".into()),
    };
    Ok((window(cx, kernel)?, group))
}

pub(super) fn conv(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    let (window, group) = conv_window(cx)?;
    Ok(Op::Conv { window, group })
}

pub(super) fn conv_transpose(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    let (window, group) = conv_window(cx)?;
    let rank = window.kernel.len();
    let output_padding = cx
        .attributes
        .sizes("output_padding", 0)?
        .unwrap_or_else(|| vec![0; rank]);
    let output_shape = cx.attributes.sizes("output_shape", 0)?;
    if output_padding.len() != rank || output_shape.as_ref().is_some_and(|s| s.len() != rank) {
        return Err("output_padding or output_shape has not one entry per axis".into());
    }
    Ok(Op::ConvTranspose {
        window,
        group,
        output_padding,
        output_shape,
    })
}

fn pool_window(cx: &Cx<'_, '_, '_>) -> Result<Window, String> {
    let kernel = cx
        .attributes
        .sizes("kernel_shape", 1)?
        .ok_or("attribute kernel_shape is missing")?;
    window(cx, kernel)
}

pub(super) fn max_pool(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    cx.drop_outputs(1, "its second output (Indices) is not supported")?;
    // The order in which indices count: of no matter without them.
    cx.attributes.ignore("storage_order");
    Ok(Op::MaxPool {
        window: pool_window(cx)?,
        ceil: cx.attributes.flag("ceil_mode", false)?,
    })
}

pub(super) fn average_pool(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    Ok(Op::AveragePool {
        window: pool_window(cx)?,
        ceil: cx.attributes.flag("ceil_mode", false)?,
        count_include_pad: cx.attributes.flag("count_include_pad", false)?,
    })
}

fn resize_mode(cx: &Cx<'_, '_, '_>) -> Result<ResizeMode, String> {
    match cx.attributes.string("mode", "nearest")?.as_str() {
        "nearest" => Ok(ResizeMode::Nearest),
        "linear" | "bilinear" => Ok(ResizeMode::Linear),
        "cubic" => Ok(ResizeMode::Cubic),
        other => Err(format!("attribute mode is {other:?}")),
    }
}

/// Upsample, and Resize as it was in opset 10: `x, scales`, sampled at `floor(i / scale)`.
pub(super) fn upsample(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    let mode = resize_mode(cx)?;
    if mode == ResizeMode::Cubic {
        return Err("cubic mode needs Resize of opset 11 or newer".into());
    }
    cx.node.inputs = vec![cx.input(0), None, cx.input(1)];
    Ok(Op::Resize {
        mode,
        coordinates: CoordinateMode::Asymmetric,
        nearest: NearestMode::Floor,
        cubic_coeff: -0.75,
        exclude_outside: false,
        extrapolation: 0.0,
        antialias: false,
        axes: None,
        keep_aspect: None,
    })
}

pub(super) fn resize(cx: &mut Cx<'_, '_, '_>) -> Result<Op, String> {
    if cx.opset < 11 {
        return upsample(cx);
    }
    let mode = resize_mode(cx)?;
    let coordinates = match cx
        .attributes
        .string("coordinate_transformation_mode", "half_pixel")?
        .as_str()
    {
        "half_pixel" => CoordinateMode::HalfPixel,
        "half_pixel_symmetric" => CoordinateMode::HalfPixelSymmetric,
        "pytorch_half_pixel" => CoordinateMode::PytorchHalfPixel,
        "align_corners" => CoordinateMode::AlignCorners,
        "asymmetric" => CoordinateMode::Asymmetric,
        "tf_crop_and_resize" => CoordinateMode::TfCropAndResize,
        other => return Err(format!("coordinate_transformation_mode {other:?}")),
    };
    let nearest = match cx
        .attributes
        .string("nearest_mode", "round_prefer_floor")?
        .as_str()
    {
        "round_prefer_floor" => NearestMode::RoundPreferFloor,
        "round_prefer_ceil" => NearestMode::RoundPreferCeil,
        "floor" => NearestMode::Floor,
        "ceil" => NearestMode::Ceil,
        other => return Err(format!("nearest_mode {other:?}")),
    };
    let keep_aspect = match cx
        .attributes
        .string("keep_aspect_ratio_policy", "stretch")?
        .as_str()
    {
        "stretch" => None,
        other => Some(other.to_string()),
    };
    // In opset 11 and 12 an absent input is written as an empty tensor. The region of interest matters to
    // one mode only.
    for position in 1..cx.node.inputs.len() {
        let empty = cx
            .input(position)
            .is_some_and(|id| cx.reader.graph.value(id).shape.as_deref() == Some(&[Dim::Known(0)]));
        if empty || (position == 1 && coordinates != CoordinateMode::TfCropAndResize) {
            cx.node.inputs[position] = None;
        }
    }
    while cx.node.inputs.last() == Some(&None) {
        cx.node.inputs.pop();
    }
    Ok(Op::Resize {
        mode,
        coordinates,
        nearest,
        cubic_coeff: cx.attributes.float("cubic_coeff_a", -0.75)?,
        exclude_outside: cx.attributes.flag("exclude_outside", false)?,
        extrapolation: cx.attributes.float("extrapolation_value", 0.0)?,
        antialias: cx.attributes.flag("antialias", false)?,
        axes: cx.attributes.ints("axes")?.map(<[i64]>::to_vec),
        keep_aspect,
    })
}
