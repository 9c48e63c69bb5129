//! Reading files into the graph and writing them out again: one folder a format. Uses `graph` only.

pub mod onnx;
