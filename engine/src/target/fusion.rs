//! Which layers of an exported graph a target computes in integers, by its fusion rules.

use super::{Activation, Fusion, Operator, Passing};
use crate::{
    compress::Wiring,
    graph::{ElementType, Graph, Layer, Node, Op, TensorData, UnaryOp, ValueId},
};

/// Layers of an exported graph whose input and weight are quantised to 8 bits and whose surroundings let the target compute them in
/// integers, in the graph's order.
pub fn integer_layers(graph: &Graph, fusion: &Fusion) -> Vec<Layer> {
    let wiring = Wiring::of(graph);
    graph
        .layers()
        .into_iter()
        .filter(|layer| {
            let node = &graph.nodes[layer.node.0 as usize];
            let eight =
                |value: Option<ValueId>| value.is_some_and(|v| eight_bit_codes(graph, &wiring, v));
            let input = |slot: usize| node.inputs.get(slot).copied().flatten();
            if !eight(input(0)) || !eight(input(1)) {
                return false;
            }
            let needed = Operator::of(layer.op).is_some_and(|operator| {
                fusion.output_needed.contains(&operator)
                    && (operator != Operator::Gemm
                        || input(2).is_some_and(|b| !in_sums(graph, &wiring, b)))
            });
            !needed || quantised_behind(graph, &wiring, layer.output, fusion)
        })
        .collect()
}

/// Whether a value is dequantised from codes of 8 bits.
pub(super) fn eight_bit_codes(graph: &Graph, wiring: &Wiring, value: ValueId) -> bool {
    let element = codes_behind(graph, wiring, value).and_then(|c| graph.value(c).element);
    matches!(element, Some(ElementType::I8 | ElementType::U8))
}

/// Whether a bias is stored as the sums are, in 32-bit integers: then it is added before anything is float.
fn in_sums(graph: &Graph, wiring: &Wiring, bias: ValueId) -> bool {
    let codes = codes_behind(graph, wiring, bias);
    codes.is_some_and(|c| graph.value(c).element == Some(ElementType::I32))
}

/// Operators between a kernel and the quantisation that is fused with it.
pub(super) fn goes_on(op: &Op, fusion: &Fusion) -> bool {
    let passes = |passing: Passing| fusion.passed.contains(&passing);
    match op {
        Op::Unary(UnaryOp::Relu) => fusion.absorbed.contains(&Activation::Relu),
        Op::Clip => fusion.absorbed.contains(&Activation::Clip),
        Op::MaxPool { .. } => passes(Passing::MaxPool),
        Op::Reshape { .. } => passes(Passing::Reshape),
        Op::Transpose { .. } => passes(Passing::Transpose),
        Op::Squeeze => passes(Passing::Squeeze),
        Op::Unsqueeze => passes(Passing::Unsqueeze),
        _ => false,
    }
}

/// The codes that a value is dequantised from.
fn codes_behind(graph: &Graph, wiring: &Wiring, value: ValueId) -> Option<ValueId> {
    let node = &graph.nodes[wiring.producer(value)?];
    match node.op {
        Op::DequantizeLinear { block: 0, .. } => node.inputs.first().copied().flatten(),
        _ => None,
    }
}

/// Whether a value goes nowhere but into a quantisation, through what that absorbs or moves across.
pub(super) fn quantised_behind(
    graph: &Graph,
    wiring: &Wiring,
    mut value: ValueId,
    fusion: &Fusion,
) -> bool {
    // What has to be implied by the range of the quantisation, once that is found.
    let mut bounds = Vec::new();
    for _ in 0..=graph.nodes.len() {
        let &[reader] = wiring.consumers(value) else {
            return false;
        };
        if wiring.is_output(value) {
            return false;
        }
        let node = &graph.nodes[reader];
        match node.op {
            Op::QuantizeLinear { block: 0, .. } => {
                let range = range_of(graph, node);
                let implied = |(lo, hi): &(f32, f32)| {
                    range.is_some_and(|(from, to)| from >= *lo && to <= *hi)
                };
                return bounds.iter().all(implied);
            }
            Op::Unary(UnaryOp::Relu) => {
                bounds.push((0.0, f32::INFINITY));
            }
            Op::Clip => {
                let bound = |slot: usize, none: f32| match node.inputs.get(slot).copied().flatten()
                {
                    None => Some(none),
                    Some(v) => scalar(graph.value(v).data.as_ref()?),
                };
                match (bound(1, f32::NEG_INFINITY), bound(2, f32::INFINITY)) {
                    (Some(lo), Some(hi)) => bounds.push((lo, hi)),
                    _ => return false,
                }
            }
            _ => {}
        }
        match node.outputs.first().copied().flatten() {
            Some(next) if goes_on(&node.op, fusion) => value = next,
            _ => return false,
        }
    }
    false
}

fn scalar(data: &TensorData) -> Option<f32> {
    data.to_f32_vec().first().copied()
}

/// Smallest and largest value that a quantisation per tensor can give.
fn range_of(graph: &Graph, node: &Node) -> Option<(f32, f32)> {
    let data = |slot: usize| {
        graph
            .value(node.inputs.get(slot).copied().flatten()?)
            .data
            .as_ref()
    };
    let scale = data(1)?;
    if scale.len() != 1 {
        return None;
    }
    let (zero, element) = match data(2) {
        Some(zero) => (zero.to_i64_vec().first().copied()?, zero.element),
        None => match node.op {
            Op::QuantizeLinear { to, .. } => (0, to),
            _ => return None,
        },
    };
    let (lo, hi) = element.integer_range()?;
    // What is quantised to 16 bits no kernel of 8 takes.
    if !matches!(element, ElementType::I8 | ElementType::U8) {
        return None;
    }
    let scale = scalar(scale)?;
    Some(((lo - zero) as f32 * scale, (hi - zero) as f32 * scale))
}
