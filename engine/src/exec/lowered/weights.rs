//! From the model's weights to what the kernels read: batch norms folded in, laid out in panels.

use crate::exec::{
    kernels::planes::{Buffer, Packed, Quant, isa, pack_depthwise},
    value::with_f32,
};
use candle_core::{DType, Device, Result, Tensor};
use std::{
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

/// How a weight lies in the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// Output × input × …
    OutputFirst,
    /// Input × output.
    InputFirst,
    /// No weight: a batch norm that stands alone scales each channel.
    Ones,
}

/// The weight of one convolution, by slots of the program.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub form: Form,
    pub weight: usize,
    /// Summed.
    pub biases: Vec<usize>,
    /// Scale, shift, mean, variance of a batch norm behind it.
    pub norm: Option<([usize; 4], f32)>,
    pub groups: usize,
    /// Of a group.
    pub channels: usize,
    pub depth: usize,
    pub taps: usize,
    pub depthwise: bool,
}

/// A weight (outputs × depth·taps) and a bias (outputs) as they take effect, as tensors that gradients flow through.
#[derive(Clone)]
pub(super) struct Effective {
    pub weight: Tensor,
    pub bias: Tensor,
}

impl Spec {
    pub fn outputs(&self) -> usize {
        self.groups * self.channels
    }

    pub fn sizes(&self) -> (usize, usize, usize, usize) {
        (self.groups, self.channels, self.depth, self.taps)
    }

    pub fn effective(&self, slot: &dyn Fn(usize) -> Result<Tensor>) -> Result<Effective> {
        let (o, k) = (self.outputs(), self.depth * self.taps);
        let mut weight = match self.form {
            Form::OutputFirst => slot(self.weight)?.reshape((o, k))?,
            Form::InputFirst => slot(self.weight)?.reshape((k, o))?.t()?,
            Form::Ones => Tensor::ones((o, 1), DType::F32, &Device::Cpu)?,
        };
        let mut bias = Tensor::zeros(o, DType::F32, &Device::Cpu)?;
        for other in &self.biases {
            bias = (bias + slot(*other)?.reshape(o)?)?;
        }
        if let Some(([scale, shift, mean, variance], epsilon)) = self.norm {
            let factor = (slot(scale)? / (slot(variance)? + f64::from(epsilon))?.sqrt()?)?;
            weight = weight.broadcast_mul(&factor.unsqueeze(1)?)?;
            bias = (((bias - slot(mean)?)? * &factor)? + slot(shift)?)?;
        }
        Ok(Effective { weight, bias })
    }
}

/// One convolution's weights as the kernels read them.
pub(super) enum Ready {
    Dense(Packed),
    Depthwise { weight: Buffer, bias: Vec<f32> },
}

/// All weights of a network.
pub(super) struct Weights {
    /// Shared among networks that have the same.
    pub ready: Vec<Arc<Ready>>,
    /// Of each, what tells it from another.
    pub digests: Vec<u64>,
    /// For input gradients; empty where nothing trains. Depthwise ones need no other layout.
    pub backward: Vec<Option<Packed>>,
    /// Learned step sizes of activations as they are; empty where nothing trains.
    pub scales: Vec<f32>,
}

impl Weights {
    /// A quantisation of activations as it takes effect.
    pub fn quant(&self, quant: &Quant, learned: Option<usize>) -> Quant {
        match learned.and_then(|at| self.scales.get(at)) {
            Some(&scale) => Quant { scale, ..*quant },
            None => *quant,
        }
    }

    /// `effective` gives the weights of each spec in turn; `known` may have some of them packed already.
    pub fn pack(
        specs: &[Spec],
        effective: &dyn Fn(usize) -> Result<Effective>,
        backward: bool,
        known: Option<&Self>,
    ) -> Result<Self> {
        let known = known.filter(|_| !backward);
        let mut all = Self {
            ready: Vec::with_capacity(specs.len()),
            digests: Vec::with_capacity(specs.len()),
            backward: Vec::new(),
            scales: Vec::new(),
        };
        for (at, spec) in specs.iter().enumerate() {
            let effective = effective(at)?;
            let bias = effective.bias.to_vec1::<f32>()?;
            let digest = as_it_lies(&effective.weight, |weight, apart| {
                digest(spec, weight, apart, &bias)
            })?;
            all.digests.push(digest);
            let place = |known: &Self| known.digests.iter().position(|d| *d == digest);
            if let Some(ready) = known.and_then(|known| Some(known.ready[place(known)?].clone())) {
                all.ready.push(ready);
                continue;
            }
            if spec.depthwise {
                let pack = |weight: &[f32]| pack_depthwise(weight, spec.groups);
                all.ready.push(Arc::new(Ready::Depthwise {
                    weight: with_f32(&effective.weight, pack)?,
                    bias,
                }));
                if backward {
                    all.backward.push(None);
                }
                continue;
            }
            as_it_lies(&effective.weight, |weight, [output, input]| {
                let (groups, channels, depth, taps) = spec.sizes();
                let at = |g: usize, o: usize, i: usize, t: usize| {
                    weight[(g * channels + o) * output + (i * taps + t) * input]
                };
                let packed = Packed::new(isa(), spec.sizes(), at, Some(&bias));
                all.ready.push(Arc::new(Ready::Dense(packed)));
                if backward {
                    all.backward.push(Some(Packed::new(
                        isa(),
                        (groups, depth, channels, taps),
                        |g, o, i, t| at(g, i, o, t),
                        None,
                    )));
                }
            })?;
        }
        Ok(all)
    }
}

/// The elements of a weight (outputs × depth·taps) without a copy where they lie input by input as well as where they lie output by output;
/// how far apart two outputs are, and two elements of an output.
fn as_it_lies<R>(weight: &Tensor, f: impl FnOnce(&[f32], [usize; 2]) -> R) -> Result<R> {
    let (outputs, depth) = weight.dims2()?;
    if weight.is_contiguous() {
        return with_f32(weight, |all| f(all, [depth, 1]));
    }
    with_f32(&weight.t()?, |all| f(all, [1, outputs]))
}

/// A number that two different weights have in common by accident only. Good for this process.
fn digest(spec: &Spec, weight: &[f32], apart: [usize; 2], bias: &[f32]) -> u64 {
    let mut hasher = foldhash::quality::FixedState::default().build_hasher();
    (spec.sizes(), spec.depthwise, weight.len(), apart).hash(&mut hasher);
    hasher.write(bytemuck::cast_slice(weight));
    hasher.write(bytemuck::cast_slice(bias));
    hasher.finish()
}
