//! What can be asked of an operator without knowing its inputs.

use super::{BinaryOp, Op, RawAttribute, ReduceOp, UnaryOp, VariadicOp};

/// Attribute of an unsupported node listing the outer values that its sub-graphs read by name (not written
/// to files).
pub const CAPTURES: &str = "limbeck.captures";

impl UnaryOp {
    /// All of them, for tables and tests.
    pub const ALL: [Self; 31] = [
        Self::Abs,
        Self::Neg,
        Self::Sign,
        Self::Reciprocal,
        Self::Sqrt,
        Self::Exp,
        Self::Log,
        Self::Floor,
        Self::Ceil,
        Self::Round,
        Self::Erf,
        Self::Sin,
        Self::Cos,
        Self::Tan,
        Self::Asin,
        Self::Acos,
        Self::Atan,
        Self::Sinh,
        Self::Cosh,
        Self::Asinh,
        Self::Acosh,
        Self::Atanh,
        Self::Relu,
        Self::Sigmoid,
        Self::Tanh,
        Self::Softplus,
        Self::Softsign,
        Self::HardSwish,
        Self::Mish,
        Self::Not,
        Self::IsNaN,
    ];

    /// ONNX `op_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Abs => "Abs",
            Self::Neg => "Neg",
            Self::Sign => "Sign",
            Self::Reciprocal => "Reciprocal",
            Self::Sqrt => "Sqrt",
            Self::Exp => "Exp",
            Self::Log => "Log",
            Self::Floor => "Floor",
            Self::Ceil => "Ceil",
            Self::Round => "Round",
            Self::Erf => "Erf",
            Self::Sin => "Sin",
            Self::Cos => "Cos",
            Self::Tan => "Tan",
            Self::Asin => "Asin",
            Self::Acos => "Acos",
            Self::Atan => "Atan",
            Self::Sinh => "Sinh",
            Self::Cosh => "Cosh",
            Self::Asinh => "Asinh",
            Self::Acosh => "Acosh",
            Self::Atanh => "Atanh",
            Self::Relu => "Relu",
            Self::Sigmoid => "Sigmoid",
            Self::Tanh => "Tanh",
            Self::Softplus => "Softplus",
            Self::Softsign => "Softsign",
            Self::HardSwish => "HardSwish",
            Self::Mish => "Mish",
            Self::Not => "Not",
            Self::IsNaN => "IsNaN",
        }
    }
}

impl BinaryOp {
    /// ONNX `op_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "Add",
            Self::Sub => "Sub",
            Self::Mul => "Mul",
            Self::Div => "Div",
            Self::Pow => "Pow",
            Self::Mod { .. } => "Mod",
            Self::And => "And",
            Self::Or => "Or",
            Self::Xor => "Xor",
            Self::Equal => "Equal",
            Self::Less => "Less",
            Self::LessOrEqual => "LessOrEqual",
            Self::Greater => "Greater",
            Self::GreaterOrEqual => "GreaterOrEqual",
            Self::PRelu => "PRelu",
        }
    }

    /// Whether the result is bool.
    pub fn is_logical(self) -> bool {
        matches!(
            self,
            Self::And
                | Self::Or
                | Self::Xor
                | Self::Equal
                | Self::Less
                | Self::LessOrEqual
                | Self::Greater
                | Self::GreaterOrEqual
        )
    }
}

impl VariadicOp {
    /// ONNX `op_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "Sum",
            Self::Mean => "Mean",
            Self::Min => "Min",
            Self::Max => "Max",
        }
    }
}

impl ReduceOp {
    /// ONNX `op_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "ReduceSum",
            Self::Mean => "ReduceMean",
            Self::Max => "ReduceMax",
            Self::Min => "ReduceMin",
            Self::Prod => "ReduceProd",
            Self::L1 => "ReduceL1",
            Self::L2 => "ReduceL2",
            Self::LogSum => "ReduceLogSum",
            Self::LogSumExp => "ReduceLogSumExp",
            Self::SumSquare => "ReduceSumSquare",
        }
    }
}

impl Op {
    /// ONNX `op_type`.
    pub fn name(&self) -> &str {
        match self {
            Self::Conv { .. } => "Conv",
            Self::ConvTranspose { .. } => "ConvTranspose",
            Self::BatchNormalization { .. } => "BatchNormalization",
            Self::InstanceNormalization { .. } => "InstanceNormalization",
            Self::LayerNormalization { .. } => "LayerNormalization",
            Self::Gemm { .. } => "Gemm",
            Self::MatMul => "MatMul",
            Self::Unary(op) => op.name(),
            Self::LeakyRelu { .. } => "LeakyRelu",
            Self::Elu { .. } => "Elu",
            Self::Celu { .. } => "Celu",
            Self::Selu { .. } => "Selu",
            Self::ThresholdedRelu { .. } => "ThresholdedRelu",
            Self::HardSigmoid { .. } => "HardSigmoid",
            Self::Gelu { .. } => "Gelu",
            Self::Clip => "Clip",
            Self::Softmax { .. } => "Softmax",
            Self::LogSoftmax { .. } => "LogSoftmax",
            Self::MaxPool { .. } => "MaxPool",
            Self::AveragePool { .. } => "AveragePool",
            Self::GlobalAveragePool => "GlobalAveragePool",
            Self::GlobalMaxPool => "GlobalMaxPool",
            Self::Binary(op) => op.name(),
            Self::Variadic(op) => op.name(),
            Self::Concat { .. } => "Concat",
            Self::Split { .. } => "Split",
            Self::Slice => "Slice",
            Self::Gather { .. } => "Gather",
            Self::Reshape { .. } => "Reshape",
            Self::Flatten { .. } => "Flatten",
            Self::Transpose { .. } => "Transpose",
            Self::Squeeze => "Squeeze",
            Self::Unsqueeze => "Unsqueeze",
            Self::Expand => "Expand",
            Self::Tile => "Tile",
            Self::Pad { .. } => "Pad",
            Self::Resize { .. } => "Resize",
            Self::Reduce { op, .. } => op.name(),
            Self::ArgMax { .. } => "ArgMax",
            Self::ArgMin { .. } => "ArgMin",
            Self::Cast { .. } => "Cast",
            Self::Shape { .. } => "Shape",
            Self::Size => "Size",
            Self::Where => "Where",
            Self::ConstantOfShape { .. } => "ConstantOfShape",
            Self::Range => "Range",
            Self::Identity => "Identity",
            Self::Dropout => "Dropout",
            Self::QuantizeLinear { .. } => "QuantizeLinear",
            Self::DynamicQuantizeLinear => "DynamicQuantizeLinear",
            Self::DequantizeLinear { .. } => "DequantizeLinear",
            Self::Unsupported { op_type, .. } => op_type,
        }
    }

    /// Why the operator can't run, `None` for operators of the IR.
    pub fn unsupported_reason(&self) -> Option<&str> {
        match self {
            Self::Unsupported { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Whether sub-graphs of this operator read outer values by name.
    pub fn captures(&self) -> bool {
        !self.captured_names().is_empty()
    }

    /// Names of the outer values that sub-graphs of this operator read.
    pub fn captured_names(&self) -> Vec<&str> {
        let Self::Unsupported { attributes, .. } = self else {
            return Vec::new();
        };
        attributes
            .iter()
            .filter(|(name, _)| name == CAPTURES)
            .filter_map(|(_, a)| match a {
                RawAttribute::Strings(names) => Some(names),
                _ => None,
            })
            .flatten()
            .filter_map(|n| std::str::from_utf8(n).ok())
            .collect()
    }
}
