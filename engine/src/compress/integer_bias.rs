//! Biases as 32-bit integers, in the unit that their layer's sums have: what an integer kernel adds to a sum. A runtime that is given floats
//! rounds them so by itself, unseen, and leaves a Gemm whose result stays float in float.

use super::{
    QuantParameters,
    pack::{QuantizedLayer, quantized_layers},
    wiring::{Names, Wiring, add_constant, add_value, rebuild},
};
use crate::graph::{ElementType, Graph, Layer, LayerId, Node, Op, TensorData, ValueId};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Stores the biases of `layers` so, in a packed graph. Left in float: where input or weight is not quantised to 8 bits, where alpha or beta of a Gemm
/// is not 1, where others read the bias, where one leaves 32 bits. Each bias moves by at most half a step of the sums.
pub(super) fn store(graph: &mut Graph, layers: &BTreeSet<LayerId>) {
    if layers.is_empty() {
        return;
    }
    let wiring = Wiring::of(graph);
    let kept = quantized_layers(graph);
    let mut names = Names::of(graph);
    let mut new: BTreeMap<usize, Vec<Node>> = BTreeMap::new();
    for (layer, kept) in graph.layers().iter().zip(&kept) {
        if !layers.contains(&layer.id) {
            continue;
        }
        let Some((bias, codes, scale)) = integers(graph, &wiring, layer, kept) else {
            continue;
        };
        let name = graph.value(bias).name.clone();
        let scale_name = names.unique(format!("{name}_scale"));
        let scale = add_constant(graph, scale_name, scale);
        let float_name = names.unique(format!("{name}_dq"));
        let float = add_value(graph, float_name.clone(), ElementType::F32, bias);
        graph.set_data(bias, codes);
        let at = layer.node.0 as usize;
        graph.nodes[at].inputs[2] = Some(float);
        new.entry(at).or_default().push(Node {
            name: float_name,
            op: Op::DequantizeLinear { axis: 0, block: 0 },
            inputs: vec![Some(bias), Some(scale)],
            outputs: vec![Some(float)],
        });
    }
    rebuild(graph, new, &HashSet::new());
}

/// A layer's bias, its codes and their scale.
fn integers(
    graph: &Graph,
    wiring: &Wiring,
    layer: &Layer,
    kept: &QuantizedLayer,
) -> Option<(ValueId, TensorData, TensorData)> {
    let (input, weight) = (kept.input.as_ref()?, kept.weight.as_ref()?);
    let at = layer.node.0 as usize;
    let node = &graph.nodes[at];
    let plain = match node.op {
        Op::Conv { .. } => true,
        Op::Gemm { alpha, beta, .. } => alpha == 1.0 && beta == 1.0,
        _ => false,
    };
    let eight = |p: &QuantParameters| matches!(p.element, ElementType::I8 | ElementType::U8);
    if !plain || !eight(input) || !eight(weight) || input.scale.len() != 1 || weight.block != 0 {
        return None;
    }
    let bias = node.inputs.get(2).copied().flatten()?;
    if wiring.consumers(bias) != [at] || wiring.is_output(bias) {
        return None;
    }
    let data = graph.value(bias).data.as_ref()?;
    let outputs = *layer.weight_shape.get(layer.channel_axis)?;
    if data.element != ElementType::F32 || data.shape != [outputs] {
        return None;
    }
    let scale: Vec<f32> = weight.scale.iter().map(|s| s * input.scale[0]).collect();
    let shape: &[usize] = match scale.len() {
        1 => &[],
        n if n == outputs => &[outputs],
        _ => return None,
    };
    let code = |(at, bias): (usize, f32)| {
        let step = f64::from(scale[at % scale.len()]);
        let code = (f64::from(bias) / step).round_ties_even();
        // Room for the sum itself.
        (code.abs() < f64::from(i32::MAX / 2)).then_some(code as i64)
    };
    let codes: Option<Vec<i64>> = data
        .to_f32_vec()
        .into_iter()
        .enumerate()
        .map(code)
        .collect();
    let codes = TensorData::from_i64_as(ElementType::I32, &[outputs], &codes?);
    Some((bias, codes, TensorData::from_f32(shape, &scale)))
}
