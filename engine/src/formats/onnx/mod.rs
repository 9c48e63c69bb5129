//! ONNX, read through a memory map and written back; see <https://onnx.ai/onnx/repo-docs/IR.html>.
//!
//! Reading translates every older spelling of an operator into the one form of [`crate::graph::Op`], so that
//! writing may give a newer opset than was read, never another function.

mod attributes;
mod convert;
mod defaults;
mod encode;
mod external;
mod operators;
mod proto;
mod read;
mod tensor;
#[cfg(test)]
mod tests;
mod windows;
mod write;

use crate::graph::Graph;
use bytes::Bytes;
use std::path::{Path, PathBuf};

/// Oldest opset that is read.
pub const OLDEST_OPSET: i64 = 9;

/// Attribute of an unsupported node: version of its domain's operator set in the file it came from.
pub(crate) const SOURCE_OPSET: &str = "limbeck.opset";
/// Attribute of an unsupported node: it calls a function that the file defines.
pub(crate) const LOCAL_FUNCTION: &str = "limbeck.function";

/// Stands for the path of a model that has none.
const IN_MEMORY: &str = "model in memory";

/// Why a file could not be read or written. Messages name the file and the node or tensor.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({path})", path = .path.display())]
pub struct FormatError {
    pub message: String,
    pub path: PathBuf,
}

impl FormatError {
    fn new(path: &Path, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            path: path.to_path_buf(),
        }
    }
}

/// A model with what its file says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFile {
    pub graph: Graph,
    /// Version of the standard operator set that the file imports.
    pub opset: u32,
    pub ir_version: i64,
    /// Name and version of the program that wrote the file; empty where it doesn't say.
    pub producer: String,
    /// Bytes of the file and of the external data files it refers to.
    pub size_bytes: u64,
    /// Those external data files, sorted.
    pub data_files: Vec<PathBuf>,
}

/// Reads an ONNX file, opset 9 to 21 (newer ones where their operators have not changed).
pub fn read(path: &Path) -> Result<Graph, FormatError> {
    read_model(path).map(|m| m.graph)
}

/// Reads an ONNX file with its opset, producer and size.
///
/// The file is memory-mapped and weights stay in the map: don't change a file in place while its graph is
/// alive (replacing it by renaming, as [`write()`] does, is safe).
pub fn read_model(path: &Path) -> Result<ModelFile, FormatError> {
    let bytes = external::map_file(path)?;
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    read::model(path, Some(folder), bytes)
}

/// Reads a model from memory; external data is refused.
pub fn read_bytes(bytes: Bytes) -> Result<Graph, FormatError> {
    read::model(Path::new(IN_MEMORY), None, bytes).map(|m| m.graph)
}

/// Encodes the graph as ONNX; the opset is the lowest (from 17) that can say it. Deterministic bytes.
///
/// Reading them gives the graph back, compacted ([`Graph::compact`]) and with its shapes inferred. What is
/// written differently from how it stands in the graph: a nameless graph is called `main`; the Softmax of
/// before opset 13 over several axes becomes Flatten, Softmax, Reshape.
pub fn to_bytes(graph: &Graph) -> Result<Vec<u8>, FormatError> {
    write::to_bytes(graph, Path::new(IN_MEMORY))
}

/// Bytes that [`to_bytes`] gives, without making them: no weight is looked at.
pub fn encoded_len(graph: &Graph) -> Result<u64, FormatError> {
    write::encoded_len(graph, Path::new(IN_MEMORY))
}

/// Writes to `path` by way of a temporary file beside it, renamed when complete: a file that was there stays
/// whole until then, and for good if writing fails.
pub fn write(graph: &Graph, path: &Path) -> Result<(), FormatError> {
    write::replace(path, &write::to_bytes(graph, path)?)
}
