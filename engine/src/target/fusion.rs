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
            let eight = |value: Option<ValueId>| {
                let codes = value.and_then(|v| codes_behind(graph, &wiring, v));
                codes.is_some_and(|c| {
                    matches!(
                        graph.value(c).element,
                        Some(ElementType::I8 | ElementType::U8)
                    )
                })
            };
            let input = |slot: usize| node.inputs.get(slot).copied().flatten();
            if !eight(input(0)) || !eight(input(1)) {
                return false;
            }
            let needed = Operator::of(layer.op).is_some_and(|operator| {
                fusion.output_needed.contains(&operator)
                    && (operator != Operator::Gemm || input(2).is_some())
            });
            !needed || quantised_behind(graph, &wiring, layer.output, fusion)
        })
        .collect()
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
fn quantised_behind(graph: &Graph, wiring: &Wiring, mut value: ValueId, fusion: &Fusion) -> bool {
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
        let passes = |passing: Passing| fusion.passed.contains(&passing);
        let goes_on = match node.op {
            Op::QuantizeLinear { block: 0, .. } => {
                let range = range_of(graph, node);
                let implied = |(lo, hi): &(f32, f32)| {
                    range.is_some_and(|(from, to)| from >= *lo && to <= *hi)
                };
                return bounds.iter().all(implied);
            }
            Op::Unary(UnaryOp::Relu) => {
                bounds.push((0.0, f32::INFINITY));
                fusion.absorbed.contains(&Activation::Relu)
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
                fusion.absorbed.contains(&Activation::Clip)
            }
            Op::MaxPool { .. } => passes(Passing::MaxPool),
            Op::Reshape { .. } => passes(Passing::Reshape),
            Op::Transpose { .. } => passes(Passing::Transpose),
            Op::Squeeze => passes(Passing::Squeeze),
            Op::Unsqueeze => passes(Passing::Unsqueeze),
            _ => false,
        };
        match node.outputs.first().copied().flatten() {
            Some(next) if goes_on => value = next,
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
