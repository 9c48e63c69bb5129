//! Bytes a layer takes in the exported ONNX file at each precision: weights, scales and zero points exactly, and the
//! protobuf around the nodes that quantisation adds (exact but for the lengths of names it cannot know).

use super::LayerFacts;
use crate::compress::{Activations, Precision, QuantScheme, ScaleLayout};

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
        let rank = layer.weight_shape.len() as u64;
        let quantised = |bits: u64, granularity| {
            let layout = ScaleLayout::of(
                &layer.op,
                &layer.weight_shape,
                layer.channel_axis,
                granularity,
            );
            let scales: u64 = layout.shape.iter().map(|d| *d as u64).product();
            let axes = layout.shape.len() as u64;
            let input = match scheme.activations {
                Activations::Int8 => input_pair(name, rank),
                // A wider zero point.
                Activations::Int16 => input_pair(name, rank) + 1,
                Activations::Dynamic if matches!(&*layer.op, "MatMul" | "Gemm") => {
                    dynamic_pair(name, rank)
                }
                Activations::Dynamic | Activations::Float => 0,
            };
            rest + (weights * bits).div_ceil(8)
                + scales * 4
                + (scales * bits).div_ceil(8)
                + weight_pair(name, rank, axes, layout.block > 0)
                + input
        };
        Self {
            float,
            fp16: rest + weights * 2 + cast(name, rank),
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

/// A length-delimited protobuf field with a one-byte key.
fn field(length: u64) -> u64 {
    let digits = match length {
        0..128 => 1,
        128..16_384 => 2,
        _ => 3,
    };
    1 + digits + length
}

/// A node: its inputs, output and name, its operator's name, and the bytes of its attributes.
fn node(inputs: &[u64], output: u64, name: u64, op: &str, attributes: u64) -> u64 {
    let names: u64 = inputs.iter().map(|length| field(*length)).sum();
    field(names + field(output) + field(name) + field(op.len() as u64) + attributes)
}

/// What surrounds the values of a tensor: key, extents, element type, name, and the key of the values.
fn tensor(name: u64, axes: u64) -> u64 {
    field(field(name) + 3 * axes + 2 + 2)
}

/// An integer attribute.
fn attribute(name: &str) -> u64 {
    field(field(name.len() as u64) + 2 + 3)
}

/// What is stated of a computed value: name, element type and extents.
fn value_info(name: u64, rank: u64) -> u64 {
    field(field(name) + field(field(2 + field(5 * rank))))
}

/// Weights are mostly called after their layer, as PyTorch does.
const WEIGHT: u64 = ".weight".len() as u64;
/// And inputs after the node that made them.
const VALUE: u64 = ".out".len() as u64;

fn suffixed(name: u64, suffix: &str) -> u64 {
    name + suffix.len() as u64
}

/// DequantizeLinear behind a packed weight, with its scale and zero point.
fn weight_pair(layer: u64, rank: u64, axes: u64, blocked: bool) -> u64 {
    let w = layer + WEIGHT;
    let inputs = ["_quantized", "_scale", "_zero_point"].map(|s| suffixed(w, s));
    let attributes = attribute("axis") + if blocked { attribute("block_size") } else { 0 };
    node(
        &inputs,
        suffixed(w, "_dequantized"),
        suffixed(w, "_dequantize"),
        "DequantizeLinear",
        attributes,
    ) + "_quantized".len() as u64
        + "_dequantized".len() as u64
        + value_info(suffixed(w, "_dequantized"), rank)
        + tensor(inputs[1], axes)
        + tensor(inputs[2], axes)
}

/// QuantizeLinear and DequantizeLinear on the layer's input, with a scale and a zero point of one element.
fn input_pair(layer: u64, rank: u64) -> u64 {
    let v = layer + VALUE;
    let (scale, zero) = (suffixed(v, "_scale"), suffixed(v, "_zero_point"));
    let quantised = suffixed(v, "_quantized");
    node(
        &[v, scale, zero],
        quantised,
        suffixed(v, "_quantize"),
        "QuantizeLinear",
        attribute("axis"),
    ) + dequantised(v, rank)
        + tensor(scale, 0)
        + 4
        + tensor(zero, 0)
        + 1
}

/// DequantizeLinear behind the codes of an input, and what is stated of both.
fn dequantised(v: u64, rank: u64) -> u64 {
    let quantised = suffixed(v, "_quantized");
    let inputs = [quantised, suffixed(v, "_scale"), suffixed(v, "_zero_point")];
    node(
        &inputs,
        suffixed(v, "_dequantized"),
        suffixed(v, "_dequantize"),
        "DequantizeLinear",
        attribute("axis"),
    ) + "_dequantized".len() as u64
        + value_info(quantised, rank)
        + value_info(suffixed(v, "_dequantized"), rank)
}

/// DynamicQuantizeLinear and DequantizeLinear on the layer's input.
fn dynamic_pair(layer: u64, rank: u64) -> u64 {
    let v = layer + VALUE;
    let (scale, zero) = (suffixed(v, "_scale"), suffixed(v, "_zero_point"));
    let quantised = suffixed(v, "_quantized");
    node(
        &[v],
        quantised,
        suffixed(v, "_quantize"),
        "DynamicQuantizeLinear",
        field(scale) + field(zero),
    ) + dequantised(v, rank)
        + value_info(scale, 0)
        + value_info(zero, 0)
}

/// Cast from half behind a packed weight.
fn cast(layer: u64, rank: u64) -> u64 {
    let w = layer + WEIGHT;
    node(
        &[suffixed(w, "_half")],
        suffixed(w, "_float"),
        suffixed(w, "_to_float"),
        "Cast",
        attribute("to"),
    ) + "_half".len() as u64
        + "_float".len() as u64
        + value_info(suffixed(w, "_float"), rank)
}
