//! Bytes a layer takes in the exported ONNX file at each precision: weights, scales and zero points exactly, and the
//! protobuf around the nodes that quantisation adds (exact but for the lengths of names and for zero points it cannot know).

use super::LayerFacts;
use crate::compress::{Activations, IntegerOp, Precision, QuantScheme, ScaleLayout, Symmetry};

#[derive(Clone, Copy, Debug)]
pub(super) struct LayerBytes {
    pub float: u64,
    fp16: u64,
    int8: u64,
    int4: u64,
}

impl LayerBytes {
    pub fn of(layer: &LayerFacts, scheme: &QuantScheme) -> Self {
        let weights: u64 = layer.weight_shape.iter().map(|d| *d as u64).product();
        let float = layer.params * 4;
        // Biases and the tensor's own header stay as they are.
        let rest = float.saturating_sub(weights * 4);
        let name = layer.id.0.len() as u64;
        let asymmetric = scheme.weight_symmetry == Symmetry::Asymmetric;
        let quantised = |bits: u64, granularity| {
            let layout = ScaleLayout::of(
                &layer.op,
                &layer.weight_shape,
                layer.channel_axis,
                granularity,
            );
            let scales: u64 = layout.shape.iter().map(|d| *d as u64).product();
            let axes = layout.shape.len() as u64;
            let zeros = if asymmetric {
                (scales * bits).div_ceil(8)
            } else {
                0
            };
            let attributes = if layout.axis == 1 {
                0
            } else {
                attribute("axis")
            } + if layout.block > 0 {
                attribute("block_size")
            } else {
                0
            };
            let input = match scheme.activations {
                Activations::Int8 if scheme.symmetry == Symmetry::Asymmetric => input_pair(name, 0),
                Activations::Int8 => input_pair(name, 1),
                Activations::Int16 => input_pair(name, 2),
                Activations::Dynamic if matches!(&*layer.op, "MatMul" | "Gemm") => {
                    dynamic_pair(name)
                }
                Activations::Dynamic | Activations::Float => 0,
            };
            let biased = float > weights * 4;
            let bias = match biased && bits == 8 && integer_bias(&layer.op, scheme) {
                true => bias_pair(name, axes) + scales * 4,
                false => 0,
            };
            rest + bias
                + (weights * bits).div_ceil(8)
                + scales * 4
                + zeros
                + weight_pair(name, axes, attributes, asymmetric)
                + input
        };
        Self {
            float,
            fp16: rest + weights * 2 + cast(name),
            int8: quantised(8, scheme.int8_weights),
            int4: quantised(4, scheme.int4_weights),
        }
    }

    pub fn at(&self, precision: Precision) -> u64 {
        match precision {
            Precision::Fp32 => self.float,
            Precision::Fp16 | Precision::Bf16 => self.fp16,
            Precision::Int8 | Precision::Int7 | Precision::Int6 | Precision::Int5 => self.int8,
            Precision::Int4 | Precision::Int3 | Precision::Int2 => self.int4,
        }
    }
}

/// Whether a layer's bias is stored in the unit of its sums.
fn integer_bias(op: &str, scheme: &QuantScheme) -> bool {
    let of = match op {
        "Conv" => IntegerOp::Conv,
        "Gemm" => IntegerOp::Gemm,
        _ => return false,
    };
    scheme.activations == Activations::Int8 && scheme.quantised_outputs().contains(&of)
}

/// DequantizeLinear behind a bias of integers, with what surrounds its scales.
fn bias_pair(layer: u64, axes: u64) -> u64 {
    let bias = layer + BIAS;
    let [scale, float] = ["_scale", "_dq"].map(|s| suffixed(bias, s));
    node(
        &[bias, scale],
        float,
        Some(float),
        "DequantizeLinear",
        attribute("axis"),
    ) + tensor(scale, axes)
        + "_dq".len() as u64
}

/// A length-delimited protobuf field with a one-byte key.
fn field(length: u64) -> u64 {
    let digits = match length {
        0..128 => 1,
        128..16_384 => 2,
        _ => 3,
    };
    1 + digits + length
}

/// A node: its inputs, output and name (where it is written), its operator's name, and the bytes of its attributes.
fn node(inputs: &[u64], output: u64, name: Option<u64>, op: &str, attributes: u64) -> u64 {
    let names: u64 = inputs
        .iter()
        .chain(&name)
        .map(|length| field(*length))
        .sum();
    field(names + field(output) + field(op.len() as u64) + attributes)
}

/// What surrounds the values of a tensor: key, extents, element type, name, and the key of the values.
fn tensor(name: u64, axes: u64) -> u64 {
    field(field(name) + 3 * axes + 2 + 2)
}

/// An integer attribute.
fn attribute(name: &str) -> u64 {
    field(field(name.len() as u64) + 2 + 3)
}

/// Weights are mostly called after their layer, as PyTorch does.
const WEIGHT: u64 = ".weight".len() as u64;
const BIAS: u64 = ".bias".len() as u64;
/// And inputs after the node that made them.
const VALUE: u64 = ".out".len() as u64;

fn suffixed(name: u64, suffix: &str) -> u64 {
    name + suffix.len() as u64
}

/// DequantizeLinear behind a packed weight, with its scale and, where weights are asymmetric, its zero point.
fn weight_pair(layer: u64, axes: u64, attributes: u64, zero: bool) -> u64 {
    let w = layer + WEIGHT;
    let inputs = ["_q", "_scale", "_zp"].map(|s| suffixed(w, s));
    let inputs = if zero { &inputs[..] } else { &inputs[..2] };
    let dequantised = suffixed(w, "_dq");
    let node = node(inputs, dequantised, None, "DequantizeLinear", attributes);
    let parameters: u64 = inputs[1..].iter().map(|name| tensor(*name, axes)).sum();
    node + ("_q".len() + "_dq".len()) as u64 + parameters
}

/// QuantizeLinear and DequantizeLinear on the layer's input, with a scale of one element and a zero point of so many bytes. Of unsigned
/// eight bits it is not written where it is 0, as behind a Relu; for what can be negative this is too little by some 60 bytes.
fn input_pair(layer: u64, zero_bytes: u64) -> u64 {
    let v = layer + VALUE;
    let [quantised, scale, zero] = ["_q", "_scale", "_zp"].map(|s| suffixed(v, s));
    let written = if zero_bytes > 0 { 3 } else { 2 };
    let zero_point = if zero_bytes > 0 {
        tensor(zero, 0) + zero_bytes
    } else {
        0
    };
    node(
        &[v, scale, zero][..written],
        quantised,
        None,
        "QuantizeLinear",
        0,
    ) + dequantised(v, &[quantised, scale, zero][..written])
        + tensor(scale, 0)
        + 4
        + zero_point
}

/// DequantizeLinear behind the codes of an input.
fn dequantised(v: u64, inputs: &[u64]) -> u64 {
    let dequantised = suffixed(v, "_dq");
    node(inputs, dequantised, None, "DequantizeLinear", 0) + "_dq".len() as u64
}

/// DynamicQuantizeLinear and DequantizeLinear on the layer's input.
fn dynamic_pair(layer: u64) -> u64 {
    let v = layer + VALUE;
    let [quantised, scale, zero] = ["_q", "_scale", "_zp"].map(|s| suffixed(v, s));
    let outputs = field(scale) + field(zero);
    node(&[v], quantised, None, "DynamicQuantizeLinear", outputs)
        + dequantised(v, &[quantised, scale, zero])
}

/// Cast from half behind a packed weight.
fn cast(layer: u64) -> u64 {
    let w = layer + WEIGHT;
    let name = Some(suffixed(w, "_to_float"));
    let inputs = [suffixed(w, "_half")];
    node(
        &inputs,
        suffixed(w, "_float"),
        name,
        "Cast",
        attribute("to"),
    ) + ("_half".len() + "_float".len()) as u64
}
