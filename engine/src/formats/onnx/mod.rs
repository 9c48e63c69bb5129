//! ONNX, read through a memory map and written back; see <https://onnx.ai/onnx/repo-docs/IR.html>.

use crate::graph::Graph;
use std::path::{Path, PathBuf};

/// Why a file could not be read or written. Messages name the file and the node or tensor.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({path})")]
pub struct FormatError {
    pub message: String,
    pub path: PathBuf,
}

/// Reads an ONNX file, opset 9 to 21 (newer ones where their operators have not changed).
pub fn read(_path: &Path) -> Result<Graph, FormatError> {
    unimplemented!()
}

/// Reads a model from memory; external data is refused.
pub fn read_bytes(_bytes: bytes::Bytes) -> Result<Graph, FormatError> {
    unimplemented!()
}

/// Encodes the graph as ONNX; the opset is the lowest (from 17) that can say it. Deterministic bytes.
pub fn to_bytes(_graph: &Graph) -> Result<Vec<u8>, FormatError> {
    unimplemented!()
}

/// Writes to `path` by way of a temporary file beside it, renamed when complete.
pub fn write(_graph: &Graph, _path: &Path) -> Result<(), FormatError> {
    unimplemented!()
}
