//! Sizes of models, kept apart by what they mean: stored (bytes in the file), theoretical (what an ideal coder of the
//! zeros and bit widths would need) and runtime (bytes of weights in memory while running). Uses `graph` and `formats`.

use crate::graph::Graph;

/// A size in bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Bytes(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sizes {
    /// Bytes of the exported ONNX file.
    pub stored: Bytes,
    /// Non-zero weights at their bit width plus a one-bit mask where a tensor is sparse, plus scales and the rest.
    pub theoretical: Bytes,
    /// Bytes of weights a runtime holds that keeps them as stored; masked zeros save nothing here.
    pub runtime: Bytes,
    pub params: u64,
    pub nonzero_params: u64,
    /// Multiply–accumulates for one sample; `None` where shapes are unknown.
    pub macs: Option<u64>,
}

/// Sizes of a graph as it would be written.
pub fn sizes(_graph: &Graph) -> Result<Sizes, crate::formats::onnx::FormatError> {
    unimplemented!()
}
