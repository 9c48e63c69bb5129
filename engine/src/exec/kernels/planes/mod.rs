//! Kernels on channels-last planes: N×H×W×C in memory, each image's rows and columns inside a margin of zeros wide enough for
//! whatever window reads them, so that no kernel asks where an image ends.
//!
//! Every convolution, its input gradient and a matrix product are one thing here: a [`Sweep`] over pixels that sums taps. All
//! kernels work on the calling thread; who calls them shares out images or rows. A result's bits depend on nothing but sizes.

mod batch_norm;
#[cfg(test)]
mod batch_norm_tests;
mod buffer;
mod conv;
mod depthwise;
mod pointwise;
mod sweep;
mod team;
#[cfg(test)]
mod tests;
mod weight_gradient;
mod windows;

pub use super::lanes::{Isa, isa};
pub use batch_norm::{Moments, PerChannel, gradient_sums, norm_gradient, normalise};
pub use buffer::Buffer;
pub use conv::{Packed, Quant, Tail, conv, conv_by};
pub use depthwise::{depthwise, depthwise_weight_gradient, pack_depthwise};
pub use pointwise::{
    add, bias_gradient, channel_sums, copy, fake_quant, fake_quant_gradient, from_nchw, gate,
    step_gradient, to_nchw,
};
pub use sweep::{Grid, Plane, Sweep, Tap, Window2d, by_rows};
pub use team::{Hands, Team};
pub use weight_gradient::{WeightGradient, weight_gradient};
pub use windows::{max_pool, sum_windows};
