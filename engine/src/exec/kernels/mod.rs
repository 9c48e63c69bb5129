//! CPU kernels as candle custom operators with gradients, where candle is slow or wrong. All take f32, NCHW,
//! honour the layout of their inputs, run on the engine's pool and give the same bits for any number of threads.

pub(super) mod chain;
mod conv;
mod conv_ops;
mod fake_quant;
pub(super) mod functions;
mod host;
mod lanes;
mod matmul;
mod norm;
mod permute;
pub mod planes;
mod pool;
mod product;
pub mod rounding;
pub(super) mod rows;
mod simd;
mod window;

#[cfg(test)]
mod tests;

pub use conv_ops::{conv_transpose2d, conv2d};
pub use fake_quant::{FakeQuant, fake_quant, fake_quant_learned};
pub use matmul::{Matrix, matmul};
pub use norm::{batch_norm, batch_norm_of_batch};
pub use permute::permute;
pub use pool::{avg_pool2d, max_pool2d};
pub use product::product;
pub use rows::{layer_norm, softmax};
pub use simd::{add_scaled, dot};

/// A 2-D convolution's geometry: (vertical, horizontal) pairs; `pad` is (top, left, bottom, right).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dGeometry {
    pub stride: (usize, usize),
    pub dilation: (usize, usize),
    pub pad: (usize, usize, usize, usize),
    pub groups: usize,
}

/// Pooling window. `ceil` as in ONNX `ceil_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2dGeometry {
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    pub dilation: (usize, usize),
    pub pad: (usize, usize, usize, usize),
    pub ceil: bool,
}
