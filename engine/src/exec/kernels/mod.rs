//! CPU kernels as candle custom operators with gradients, where candle is slow or wrong. All take f32, NCHW,
//! honour the layout of their inputs, run on the engine's pool and give the same bits for any number of threads.

use candle_core::{Result, Tensor};

/// A 2-D convolution's geometry: (vertical, horizontal) pairs; `pad` is (top, left, bottom, right).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dGeometry {
    pub stride: (usize, usize),
    pub dilation: (usize, usize),
    pub pad: (usize, usize, usize, usize),
    pub groups: usize,
}

/// `x` N×C×H×W, `weight` O×(C/groups)×kH×kW, `bias` O → N×O×H'×W'. Dense, grouped, depthwise; differentiable in all three.
pub fn conv2d(
    _x: &Tensor,
    _weight: &Tensor,
    _bias: Option<&Tensor>,
    _geometry: Conv2dGeometry,
) -> Result<Tensor> {
    unimplemented!()
}

/// `x` N×C×H×W, `weight` C×(O/groups)×kH×kW (ONNX order) → N×O×H'×W', H' = (H−1)·s + d·(k−1) + 1 + output_padding − pads.
pub fn conv_transpose2d(
    _x: &Tensor,
    _weight: &Tensor,
    _bias: Option<&Tensor>,
    _geometry: Conv2dGeometry,
    _output_padding: (usize, usize),
) -> Result<Tensor> {
    unimplemented!()
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

/// Max pooling with gradient, any stride.
pub fn max_pool2d(_x: &Tensor, _geometry: Pool2dGeometry) -> Result<Tensor> {
    unimplemented!()
}

/// Average pooling with gradient, any stride.
pub fn avg_pool2d(
    _x: &Tensor,
    _geometry: Pool2dGeometry,
    _count_include_pad: bool,
) -> Result<Tensor> {
    unimplemented!()
}

/// Inference-form batch norm `x·scale' + shift'` per channel, differentiable in x, scale and shift.
pub fn batch_norm(
    _x: &Tensor,
    _scale: &Tensor,
    _shift: &Tensor,
    _mean: &Tensor,
    _variance: &Tensor,
    _epsilon: f32,
) -> Result<Tensor> {
    unimplemented!()
}

/// Rounds half to even; gradient passes straight through.
pub fn round_ties_even(_x: &Tensor) -> Result<Tensor> {
    unimplemented!()
}

/// Quantise and dequantise in one step: `(clamp(round_ties_even(x/scale) + zero_point, lo, hi) − zero_point)·scale`, with
/// `scale`, `zero_point` either one element, one per index of `axis`, or blocked along `axis`. Straight-through gradient
/// to x inside the range, zero outside. `block` 0: not blocked.
#[derive(Clone, Debug)]
pub struct FakeQuant {
    pub scale: Vec<f32>,
    pub zero_point: Vec<i32>,
    pub lo: i32,
    pub hi: i32,
    pub axis: usize,
    pub block: usize,
}

pub fn fake_quant(_x: &Tensor, _quant: &FakeQuant) -> Result<Tensor> {
    unimplemented!()
}
