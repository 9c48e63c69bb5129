//! One node of the IR as `NodeProto`, in the form of opset 17 or the newer one that it needs.

use super::defaults;
use super::proto::{self, kind};
use super::tensor::{self, element_code};
use super::write::Names;
use crate::graph::{
    BinaryOp, CoordinateMode, ElementType, Graph, NearestMode, Node, Op, PadMode, Padding,
    RawAttribute, ReduceOp, ResizeMode, ValueId, Window,
};
use bytes::Bytes;
use prost::Message;

/// The oldest opset from 17 on that has the form in which this node is written.
pub(super) fn opset_of(graph: &Graph, node: &Node) -> i64 {
    let has = |at: usize| node.inputs.get(at).copied().flatten().is_some();
    let element = |at: usize| {
        node.inputs
            .get(at)
            .copied()
            .flatten()
            .and_then(|id: ValueId| graph.value(id).element)
    };
    let wide = |e: Option<ElementType>| {
        matches!(
            e,
            Some(ElementType::I4 | ElementType::U4 | ElementType::I16 | ElementType::U16)
        )
    };
    let half = |e| matches!(e, Some(ElementType::F16 | ElementType::BF16));
    match &node.op {
        Op::Unary(crate::graph::UnaryOp::Mish) => 18,
        Op::Gelu { .. } => 20,
        Op::Reduce {
            op: ReduceOp::Max | ReduceOp::Min,
            ..
        } if element(0) == Some(ElementType::Bool) => 20,
        Op::Reduce {
            op,
            noop_with_empty_axes,
            ..
        } if *op != ReduceOp::Sum && (has(1) || *noop_with_empty_axes) => 18,
        // Without num_outputs, opset 17 wants equal parts.
        Op::Split {
            axis,
            num_outputs: Some(n),
        } if !splits_evenly(graph, node, *axis, *n) => 18,
        Op::Pad {
            mode: PadMode::Wrap,
        } => 19,
        Op::Pad { .. } if has(3) => 18,
        Op::Resize {
            coordinates: CoordinateMode::HalfPixelSymmetric,
            ..
        } => 19,
        Op::Resize {
            antialias,
            axes,
            keep_aspect,
            ..
        } if *antialias || axes.is_some() || keep_aspect.is_some() => 18,
        Op::AveragePool { window, .. } if window.dilations.iter().any(|&d| d != 1) => 19,
        Op::QuantizeLinear { block, to, .. } => match () {
            () if *block > 0 || wide(Some(*to)) || (!has(2) && *to != ElementType::U8) => 21,
            () if half(element(0)) || half(element(1)) => 19,
            () => 17,
        },
        Op::DequantizeLinear { block, .. } => match () {
            () if *block > 0 || wide(element(0)) => 21,
            () if half(element(1)) => 19,
            () => 17,
        },
        Op::Cast { to } if to.bits() == 4 => 21,
        Op::ConstantOfShape { value } if value.element.bits() == 4 => 21,
        _ => 17,
    }
}

fn splits_evenly(graph: &Graph, node: &Node, axis: i64, parts: usize) -> bool {
    let shape = node
        .inputs
        .first()
        .copied()
        .flatten()
        .and_then(|id| graph.value(id).shape.as_ref());
    let extent = shape.and_then(|s| {
        let axis = if axis < 0 {
            axis + s.len() as i64
        } else {
            axis
        };
        s.get(usize::try_from(axis).ok()?)?.known()
    });
    parts > 0 && extent.is_some_and(|n| n.is_multiple_of(parts))
}

/// Attributes under construction.
#[derive(Default)]
struct Attributes(Vec<proto::Attribute>);

impl Attributes {
    fn push(&mut self, name: &str, kind: i32) -> &mut proto::Attribute {
        let at = self.0.len();
        self.0.push(proto::Attribute {
            name: Some(name.into()),
            kind: Some(kind),
            ..Default::default()
        });
        &mut self.0[at]
    }
    fn int(&mut self, name: &str, v: i64) -> &mut Self {
        self.push(name, kind::INT).i = Some(v);
        self
    }
    /// An integer that is `default` where it is not stated.
    fn unless_int(&mut self, name: &str, v: i64, default: i64) -> &mut Self {
        if v == default {
            return self;
        }
        self.int(name, v)
    }
    fn flag(&mut self, name: &str, v: bool) -> &mut Self {
        self.int(name, i64::from(v))
    }
    fn float(&mut self, name: &str, v: f32) -> &mut Self {
        self.push(name, kind::FLOAT).f = Some(v);
        self
    }
    fn string(&mut self, name: &str, v: &str) -> &mut Self {
        self.push(name, kind::STRING).s = Some(Bytes::copy_from_slice(v.as_bytes()));
        self
    }
    fn ints(&mut self, name: &str, v: &[i64]) -> &mut Self {
        self.push(name, kind::INTS).ints = v.to_vec();
        self
    }
    fn sizes(&mut self, name: &str, v: &[usize]) -> &mut Self {
        self.push(name, kind::INTS).ints = v.iter().map(|&v| v as i64).collect();
        self
    }

    fn window(&mut self, window: &Window) -> &mut Self {
        match &window.padding {
            Padding::Explicit(pads) if pads.iter().all(|&p| p == 0) => &mut *self,
            Padding::Explicit(pads) => self.sizes("pads", pads),
            Padding::SameUpper => self.string("auto_pad", "SAME_UPPER"),
            Padding::SameLower => self.string("auto_pad", "SAME_LOWER"),
            Padding::Valid => self.string("auto_pad", "VALID"),
        };
        self.sizes("kernel_shape", &window.kernel)
            .unless_ones("strides", &window.strides)
    }

    /// Sizes that are 1 where they are not stated.
    fn unless_ones(&mut self, name: &str, v: &[usize]) -> &mut Self {
        if v.iter().all(|&v| v == 1) {
            return self;
        }
        self.sizes(name, v)
    }
}

/// Appends what says this node: one node, except for the Softmax of before opset 13.
pub(super) fn node(
    graph: &Graph,
    node: &Node,
    opset: i64,
    names: &mut Names,
    out: &mut Vec<proto::Node>,
) -> Result<(), String> {
    let list = |ids: &[Option<ValueId>]| {
        ids.iter()
            .map(|id| id.map_or_else(String::new, |id| graph.value(id).name.clone()))
            .collect::<Vec<_>>()
    };
    let mut a = Attributes::default();
    attributes(node, opset, &mut a)?;
    let domain = match &node.op {
        Op::Unsupported { domain, .. } if !domain.is_empty() => Some(domain.clone()),
        _ => None,
    };
    let output = list(&node.outputs);
    let implied = defaults::implied_name(node.op.name(), output.first().map(String::as_str));
    let built = proto::Node {
        input: list(&node.inputs),
        name: (implied != Some(&*node.name)).then(|| node.name.clone()),
        output,
        op_type: Some(node.op.name().to_string()),
        attribute: a.0,
        domain,
    };
    match &node.op {
        Op::Softmax {
            axis,
            flatten: true,
        }
        | Op::LogSoftmax {
            axis,
            flatten: true,
        } => flattened(built, *axis, names, out),
        _ => out.push(built),
    }
    Ok(())
}

/// Softmax over all axes from `axis` on as one: Flatten, Softmax, and back to the shape it had.
fn flattened(softmax: proto::Node, axis: i64, names: &mut Names, out: &mut Vec<proto::Node>) {
    let base = softmax.name.clone().unwrap_or_default();
    let [flat, soft, shape] =
        ["flat", "soft", "shape"].map(|part| names.fresh(&format!("{base}_{part}")));
    let mut make = |op: &str, inputs: Vec<String>, output: String, axis: Option<i64>| {
        let mut a = Attributes::default();
        if let Some(axis) = axis {
            a.int("axis", axis);
        }
        proto::Node {
            input: inputs,
            output: vec![output],
            name: Some(names.fresh(&format!("{base}_{}", op.to_lowercase()))),
            op_type: Some(op.into()),
            attribute: a.0,
            domain: None,
        }
    };
    let input = softmax.input;
    let op = softmax.op_type.unwrap_or_default();
    let result = softmax.output.into_iter().next().unwrap_or_default();
    out.push(make("Flatten", input.clone(), flat.clone(), Some(axis)));
    let mut middle = make(&op, vec![flat], soft.clone(), Some(1));
    middle.name = softmax.name;
    out.push(middle);
    out.push(make("Shape", input, shape.clone(), None));
    out.push(make("Reshape", vec![soft, shape], result, None));
}

fn attributes(node: &Node, opset: i64, a: &mut Attributes) -> Result<(), String> {
    match &node.op {
        Op::Conv { window, group } => {
            a.window(window)
                .unless_ones("dilations", &window.dilations)
                .unless_int("group", *group as i64, 1);
        }
        Op::ConvTranspose {
            window,
            group,
            output_padding,
            output_shape,
        } => {
            a.window(window)
                .unless_ones("dilations", &window.dilations)
                .unless_int("group", *group as i64, 1)
                .sizes("output_padding", output_padding);
            if let Some(shape) = output_shape {
                a.sizes("output_shape", shape);
            }
        }
        Op::MaxPool { window, ceil } => {
            a.window(window)
                .unless_ones("dilations", &window.dilations)
                .flag("ceil_mode", *ceil);
        }
        Op::AveragePool {
            window,
            ceil,
            count_include_pad,
        } => {
            a.window(window)
                .flag("ceil_mode", *ceil)
                .flag("count_include_pad", *count_include_pad);
            if opset >= 19 {
                a.unless_ones("dilations", &window.dilations);
            }
        }
        Op::BatchNormalization { epsilon } | Op::InstanceNormalization { epsilon } => {
            a.float("epsilon", *epsilon);
        }
        Op::LayerNormalization { axis, epsilon } => {
            a.int("axis", *axis).float("epsilon", *epsilon);
        }
        Op::Gemm {
            alpha,
            beta,
            trans_a,
            trans_b,
        } => {
            for (name, v) in [("alpha", *alpha), ("beta", *beta)] {
                if v != 1.0 {
                    a.float(name, v);
                }
            }
            a.unless_int("transA", i64::from(*trans_a), 0).unless_int(
                "transB",
                i64::from(*trans_b),
                0,
            );
        }
        Op::LeakyRelu { alpha }
        | Op::Elu { alpha }
        | Op::Celu { alpha }
        | Op::ThresholdedRelu { alpha } => {
            a.float("alpha", *alpha);
        }
        Op::Selu { alpha, gamma } => {
            a.float("alpha", *alpha).float("gamma", *gamma);
        }
        Op::HardSigmoid { alpha, beta } => {
            a.float("alpha", *alpha).float("beta", *beta);
        }
        Op::Gelu { tanh } => {
            a.string("approximate", if *tanh { "tanh" } else { "none" });
        }
        Op::Softmax { axis, .. }
        | Op::LogSoftmax { axis, .. }
        | Op::Concat { axis }
        | Op::Gather { axis }
        | Op::Flatten { axis } => {
            a.int("axis", *axis);
        }
        Op::Binary(BinaryOp::Mod { fmod }) => {
            a.flag("fmod", *fmod);
        }
        Op::Split { axis, num_outputs } => {
            a.int("axis", *axis);
            if let (Some(n), 18..) = (num_outputs, opset) {
                a.int("num_outputs", *n as i64);
            }
        }
        Op::Reshape { allow_zero } => {
            a.flag("allowzero", *allow_zero);
        }
        Op::Transpose { perm } => {
            if let Some(perm) = perm {
                a.sizes("perm", perm);
            }
        }
        Op::Pad { mode } => {
            a.string(
                "mode",
                match mode {
                    PadMode::Constant => "constant",
                    PadMode::Reflect => "reflect",
                    PadMode::Edge => "edge",
                    PadMode::Wrap => "wrap",
                },
            );
        }
        Op::Resize { .. } => resize(&node.op, opset, a),
        Op::Reduce {
            op,
            keep_dims,
            noop_with_empty_axes,
        } => {
            a.flag("keepdims", *keep_dims);
            if opset >= 18 || *op == ReduceOp::Sum {
                a.flag("noop_with_empty_axes", *noop_with_empty_axes);
            }
        }
        Op::ArgMax {
            axis,
            keep_dims,
            last,
        }
        | Op::ArgMin {
            axis,
            keep_dims,
            last,
        } => {
            a.int("axis", *axis)
                .flag("keepdims", *keep_dims)
                .flag("select_last_index", *last);
        }
        Op::Cast { to } => {
            a.int("to", element_code(*to).into());
        }
        Op::Shape { start, end } => {
            for (name, v) in [("start", start), ("end", end)] {
                if let Some(v) = v {
                    a.int(name, *v);
                }
            }
        }
        Op::ConstantOfShape { value } => {
            a.push("value", kind::TENSOR).t = Some(tensor::write(None, value));
        }
        Op::QuantizeLinear { axis, block, to } => {
            a.unless_int("axis", *axis, 1);
            if *block > 0 {
                a.int("block_size", *block as i64);
            }
            if node.inputs.get(2).copied().flatten().is_none() && *to != ElementType::U8 {
                a.int("output_dtype", element_code(*to).into());
            }
        }
        Op::DequantizeLinear { axis, block } => {
            a.unless_int("axis", *axis, 1);
            if *block > 0 {
                a.int("block_size", *block as i64);
            }
        }
        Op::Unsupported { attributes, .. } => kept(attributes, a)?,
        Op::MatMul
        | Op::Unary(_)
        | Op::Clip
        | Op::GlobalAveragePool
        | Op::GlobalMaxPool
        | Op::Binary(_)
        | Op::Variadic(_)
        | Op::Slice
        | Op::Squeeze
        | Op::Unsqueeze
        | Op::Expand
        | Op::Tile
        | Op::Size
        | Op::Where
        | Op::Range
        | Op::Identity
        | Op::Dropout
        | Op::DynamicQuantizeLinear => {}
    }
    Ok(())
}

fn resize(op: &Op, opset: i64, a: &mut Attributes) {
    let Op::Resize {
        mode,
        coordinates,
        nearest,
        cubic_coeff,
        exclude_outside,
        extrapolation,
        antialias,
        axes,
        keep_aspect,
    } = op
    else {
        return;
    };
    a.string(
        "mode",
        match mode {
            ResizeMode::Nearest => "nearest",
            ResizeMode::Linear => "linear",
            ResizeMode::Cubic => "cubic",
        },
    )
    .string(
        "coordinate_transformation_mode",
        match coordinates {
            CoordinateMode::HalfPixel => "half_pixel",
            CoordinateMode::HalfPixelSymmetric => "half_pixel_symmetric",
            CoordinateMode::PytorchHalfPixel => "pytorch_half_pixel",
            CoordinateMode::AlignCorners => "align_corners",
            CoordinateMode::Asymmetric => "asymmetric",
            CoordinateMode::TfCropAndResize => "tf_crop_and_resize",
        },
    )
    .string(
        "nearest_mode",
        match nearest {
            NearestMode::RoundPreferFloor => "round_prefer_floor",
            NearestMode::RoundPreferCeil => "round_prefer_ceil",
            NearestMode::Floor => "floor",
            NearestMode::Ceil => "ceil",
        },
    )
    .float("cubic_coeff_a", *cubic_coeff)
    .flag("exclude_outside", *exclude_outside)
    .float("extrapolation_value", *extrapolation);
    if opset >= 18 {
        a.flag("antialias", *antialias);
        if let Some(axes) = axes {
            a.ints("axes", axes);
        }
        if let Some(policy) = keep_aspect {
            a.string("keep_aspect_ratio_policy", policy);
        }
    }
}

/// Attributes of an unsupported node as they were read.
fn kept(attributes: &[(String, RawAttribute)], a: &mut Attributes) -> Result<(), String> {
    for (name, value) in attributes
        .iter()
        .filter(|(n, _)| !n.starts_with("limbeck."))
    {
        match value {
            RawAttribute::Int(v) => {
                a.int(name, *v);
            }
            RawAttribute::Float(v) => {
                a.float(name, *v);
            }
            RawAttribute::String(v) => {
                a.push(name, kind::STRING).s = Some(Bytes::copy_from_slice(v));
            }
            RawAttribute::Ints(v) => {
                a.ints(name, v);
            }
            RawAttribute::Floats(v) => a.push(name, kind::FLOATS).floats = v.clone(),
            RawAttribute::Strings(v) => {
                a.push(name, kind::STRINGS).strings =
                    v.iter().map(|s| Bytes::copy_from_slice(s)).collect();
            }
            RawAttribute::Tensor(t) => {
                a.push(name, kind::TENSOR).t = Some(tensor::write(None, t));
            }
            RawAttribute::Encoded(bytes) => a.0.push(
                proto::Attribute::decode(&bytes[..])
                    .map_err(|e| format!("its attribute {name} can't be written back: {e}"))?,
            ),
        }
    }
    Ok(())
}
