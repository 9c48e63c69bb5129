//! Which ONNX operators are claimed, and how far: the source of the table in `docs/operators.md`.

/// An operator of the standard domain that runs here.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// ONNX `op_type`.
    pub operator: &'static str,
    /// What of it does not run; empty: all of it, for the element types that Limbeck carries.
    pub restriction: &'static str,
    /// Whether gradients flow through it (to its float inputs).
    pub differentiable: bool,
}

const SPATIAL: &str = "one or two spatial axes; float32, float16, bfloat16";
const FLOATS: &str = "float32, float16, bfloat16";
const FLOATS64: &str = "float types";

/// Operators that run, in the order of the alphabet.
pub const CLAIMS: &[Claim] = &[
    yes("Abs", ""),
    yes("Acos", FLOATS64),
    yes("Acosh", FLOATS64),
    yes("Add", ""),
    no("And", ""),
    no("ArgMax", ""),
    no("ArgMin", ""),
    yes("Asin", FLOATS64),
    yes("Asinh", FLOATS64),
    yes("Atan", FLOATS64),
    yes("Atanh", FLOATS64),
    yes("AveragePool", SPATIAL),
    yes(
        "BatchNormalization",
        "inference form; float32, float16, bfloat16",
    ),
    yes("Cast", "no 8-bit or 4-bit floats, no strings"),
    no("Ceil", ""),
    yes("Celu", FLOATS64),
    yes("Clip", ""),
    yes("Concat", ""),
    no("Constant", "no strings, no sparse tensors"),
    no("ConstantOfShape", ""),
    yes("Conv", SPATIAL),
    yes("ConvTranspose", SPATIAL),
    yes("Cos", FLOATS64),
    yes("Cosh", FLOATS64),
    yes(
        "DequantizeLinear",
        "no 8-bit or 4-bit floats; gradient where it follows QuantizeLinear with the same constants",
    ),
    yes("Div", ""),
    yes("Dropout", "inference form"),
    no("DynamicQuantizeLinear", "float32"),
    yes("Elu", FLOATS64),
    no("Equal", "no strings"),
    yes("Erf", FLOATS64),
    yes("Exp", FLOATS64),
    yes("Expand", ""),
    yes("Flatten", ""),
    no("Floor", ""),
    yes("Gather", ""),
    yes("Gelu", FLOATS64),
    yes("Gemm", FLOATS),
    yes("GlobalAveragePool", FLOATS64),
    yes("GlobalMaxPool", FLOATS64),
    no("Greater", ""),
    no("GreaterOrEqual", ""),
    yes("HardSigmoid", FLOATS64),
    yes("HardSwish", FLOATS64),
    yes("Identity", "tensors only"),
    yes("InstanceNormalization", FLOATS),
    no("IsNaN", ""),
    yes(
        "LayerNormalization",
        "float32, float16, bfloat16; no gradient through Mean and InvStdDev",
    ),
    yes("LeakyRelu", FLOATS64),
    no("Less", ""),
    no("LessOrEqual", ""),
    yes("Log", FLOATS64),
    yes("LogSoftmax", FLOATS64),
    yes("MatMul", FLOATS64),
    yes("Max", ""),
    yes(
        "MaxPool",
        "one or two spatial axes; float32, float16, bfloat16, int8, uint8; no Indices output",
    ),
    yes("Mean", FLOATS64),
    yes("Min", ""),
    yes("Mish", FLOATS64),
    yes("Mod", ""),
    yes("Mul", ""),
    yes("Neg", ""),
    no("Not", ""),
    no("Or", ""),
    yes("PRelu", ""),
    yes("Pad", ""),
    yes("Pow", ""),
    yes(
        "QuantizeLinear",
        "no 8-bit or 4-bit floats; gradient where DequantizeLinear with the same constants follows",
    ),
    no("Range", ""),
    yes("Reciprocal", FLOATS64),
    yes("ReduceL1", ""),
    yes("ReduceL2", ""),
    yes("ReduceLogSum", ""),
    yes("ReduceLogSumExp", ""),
    yes("ReduceMax", ""),
    yes("ReduceMean", ""),
    yes("ReduceMin", ""),
    yes("ReduceProd", ""),
    yes("ReduceSum", ""),
    yes("ReduceSumSquare", ""),
    yes("Relu", ""),
    yes("Reshape", ""),
    yes("Resize", "linear and cubic: float32, float16, bfloat16"),
    no("Round", ""),
    yes("Selu", FLOATS64),
    no("Shape", ""),
    yes("Sigmoid", FLOATS64),
    no("Sign", ""),
    yes("Sin", FLOATS64),
    yes("Sinh", FLOATS64),
    no("Size", ""),
    yes("Slice", ""),
    yes("Softmax", FLOATS64),
    yes("Softplus", FLOATS64),
    yes("Softsign", FLOATS64),
    yes("Split", ""),
    yes("Sqrt", FLOATS64),
    yes("Squeeze", ""),
    yes("Sub", ""),
    yes("Sum", ""),
    yes("Tan", FLOATS64),
    yes("Tanh", FLOATS64),
    yes("ThresholdedRelu", FLOATS64),
    yes("Tile", ""),
    yes("Transpose", ""),
    yes("Unsqueeze", ""),
    yes("Upsample", "linear: float32, float16, bfloat16"),
    yes("Where", "no strings"),
    no("Xor", ""),
];

const fn yes(operator: &'static str, restriction: &'static str) -> Claim {
    Claim {
        operator,
        restriction,
        differentiable: true,
    }
}

const fn no(operator: &'static str, restriction: &'static str) -> Claim {
    Claim {
        operator,
        restriction,
        differentiable: false,
    }
}
