//! Weights and constants as they lie in a file.

use bytes::Bytes;

/// Element types of ONNX that the IR carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ElementType {
    F32,
    F16,
    BF16,
    F64,
    I4,
    U4,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    Bool,
}

/// A dense tensor: little-endian elements in row-major order, 4-bit elements packed two a byte (low half
/// first), exactly as ONNX `raw_data`. The bytes may be a slice of a memory map and need not be aligned.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    pub element: ElementType,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}
