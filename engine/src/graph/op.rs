//! Operators with typed attributes, in the form of ONNX opset 21: readers translate older spellings
//! (attributes that became inputs and so on) into it.

use super::{ElementType, TensorData};

/// Element-wise functions of one value without attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum UnaryOp {
    Abs,
    Neg,
    Sign,
    Reciprocal,
    Sqrt,
    Exp,
    Log,
    Floor,
    Ceil,
    Round,
    Erf,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Asinh,
    Acosh,
    Atanh,
    Relu,
    Sigmoid,
    Tanh,
    Softplus,
    Softsign,
    HardSwish,
    Mish,
    Not,
    IsNaN,
}

/// Element-wise functions of two values, with broadcasting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Mod { fmod: bool },
    And,
    Or,
    Xor,
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    PRelu,
}

/// Element-wise functions of any number of values, with broadcasting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum VariadicOp {
    Sum,
    Mean,
    Min,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ReduceOp {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    L1,
    L2,
    LogSum,
    LogSumExp,
    SumSquare,
}

/// How a window operator pads its spatial axes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Padding {
    /// `begin` of every axis, then `end` of every axis.
    Explicit(Vec<usize>),
    SameUpper,
    SameLower,
    Valid,
}

/// Window of Conv, ConvTranspose and pooling. Vectors have one entry per spatial axis.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Window {
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    pub padding: Padding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum PadMode {
    Constant,
    Reflect,
    Edge,
    Wrap,
}

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum ResizeMode {
    Nearest,
    Linear,
    Cubic,
}

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum CoordinateMode {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    TfCropAndResize,
}

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum NearestMode {
    RoundPreferFloor,
    RoundPreferCeil,
    Floor,
    Ceil,
}

/// Attribute of an operator Limbeck does not know, kept so that the node survives a round trip.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum RawAttribute {
    Int(i64),
    Float(f32),
    String(Vec<u8>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strings(Vec<Vec<u8>>),
    Tensor(TensorData),
    /// Graphs and other kinds: the encoded `AttributeProto`.
    Encoded(Vec<u8>),
}

/// An operator. Inputs are positional as in ONNX opset 21, e.g. `Reshape(data, shape)`, `Clip(x, min?, max?)`,
/// `Slice(data, starts, ends, axes?, steps?)`, `Pad(data, pads, value?, axes?)`, `Split(x, split?)`,
/// `Reduce(x, axes?)`, `Squeeze(x, axes?)`, `Resize(x, roi?, scales?, sizes?)`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Op {
    Conv {
        window: Window,
        group: usize,
    },
    ConvTranspose {
        window: Window,
        group: usize,
        output_padding: Vec<usize>,
        output_shape: Option<Vec<usize>>,
    },
    /// Inference form: inputs x, scale, bias, mean, variance.
    BatchNormalization {
        epsilon: f32,
    },
    InstanceNormalization {
        epsilon: f32,
    },
    LayerNormalization {
        axis: i64,
        epsilon: f32,
    },
    Gemm {
        alpha: f32,
        beta: f32,
        trans_a: bool,
        trans_b: bool,
    },
    MatMul,
    Unary(UnaryOp),
    LeakyRelu {
        alpha: f32,
    },
    Elu {
        alpha: f32,
    },
    Celu {
        alpha: f32,
    },
    Selu {
        alpha: f32,
        gamma: f32,
    },
    ThresholdedRelu {
        alpha: f32,
    },
    HardSigmoid {
        alpha: f32,
        beta: f32,
    },
    Gelu {
        tanh: bool,
    },
    Clip,
    /// `flatten`: the form before opset 13, over all axes from `axis` on as one.
    Softmax {
        axis: i64,
        flatten: bool,
    },
    LogSoftmax {
        axis: i64,
        flatten: bool,
    },
    MaxPool {
        window: Window,
        ceil: bool,
    },
    AveragePool {
        window: Window,
        ceil: bool,
        count_include_pad: bool,
    },
    GlobalAveragePool,
    GlobalMaxPool,
    Binary(BinaryOp),
    Variadic(VariadicOp),
    Concat {
        axis: i64,
    },
    Split {
        axis: i64,
        num_outputs: Option<usize>,
    },
    Slice,
    Gather {
        axis: i64,
    },
    Reshape {
        allow_zero: bool,
    },
    Flatten {
        axis: i64,
    },
    Transpose {
        perm: Option<Vec<usize>>,
    },
    Squeeze,
    Unsqueeze,
    Expand,
    Tile,
    Pad {
        mode: PadMode,
    },
    Resize {
        mode: ResizeMode,
        coordinates: CoordinateMode,
        nearest: NearestMode,
        cubic_coeff: f32,
        exclude_outside: bool,
        extrapolation: f32,
        antialias: bool,
        axes: Option<Vec<i64>>,
        keep_aspect: Option<String>,
    },
    Reduce {
        op: ReduceOp,
        keep_dims: bool,
        noop_with_empty_axes: bool,
    },
    ArgMax {
        axis: i64,
        keep_dims: bool,
        last: bool,
    },
    ArgMin {
        axis: i64,
        keep_dims: bool,
        last: bool,
    },
    Cast {
        to: ElementType,
    },
    Shape {
        start: Option<i64>,
        end: Option<i64>,
    },
    Size,
    Where,
    ConstantOfShape {
        value: TensorData,
    },
    Range,
    Identity,
    /// Inference form: passes its input through (optional second output: an all-true mask).
    Dropout,
    /// Inputs x, scale, zero_point?. `axis` for per-channel and blocked scales; `block` 0 when not blocked.
    QuantizeLinear {
        axis: i64,
        block: usize,
        to: ElementType,
    },
    DequantizeLinear {
        axis: i64,
        block: usize,
    },
    /// Outputs codes (uint8), scale and zero point, both of one element, by the range of the whole tensor x.
    DynamicQuantizeLinear,
    /// Anything else: shown and kept, not run.
    Unsupported {
        domain: String,
        op_type: String,
        attributes: Vec<(String, RawAttribute)>,
        reason: String,
    },
}
