//! How a plan would run at its target, before it is carried out: pairs are placed as they would be, on a graph of blank weights with one
//! channel each and with ranges that follow from the operators alone, and the result is looked at as an exported one is. Nothing is
//! calibrated, no weight is read.

use super::{Execution, Target};
use crate::{
    compress::{
        CompressError, Model, Pass, PassContext, Precision, QuantScheme, Quantize, Ranges,
        folded_outline, pack,
    },
    exec::CancelToken,
    graph::{BinaryOp, ElementType, Graph, LayerId, Node, Op, TensorData, UnaryOp, ValueId},
};
use std::{collections::BTreeMap, sync::Arc};

/// What the export of a plan will be at a target; see [`Execution::of`] for when there is nothing to say. It holds of the export but where values
/// decide: biases that leave 32 bits, ranges that a Clip does not fill.
///
/// # Errors
/// A layer that the graph does not have, a scheme without a meaning, cancellation.
pub fn foresee(
    graph: &Graph,
    layers: &BTreeMap<LayerId, Precision>,
    scheme: &QuantScheme,
    target: &Target,
    cancel: &CancelToken,
) -> Result<Option<Execution>, CompressError> {
    let mut graph = folded_outline(graph);
    narrow(&mut graph);
    let ranges = ranges(&graph);
    let pass = Quantize {
        scheme: scheme.clone(),
        layers: layers.clone(),
        ranges: Some(Arc::new(ranges)),
    };
    let context = PassContext {
        data: None,
        cancel,
        seed: 0,
    };
    let (model, _) = pass.apply(Model::new(graph), &context)?;
    Ok(Execution::of(&pack(&model)?, target))
}

/// Leaves every layer's weight one output channel of 1 and −1 in turn: where pairs go depends on no more, groups lie along its inputs, and codes that
/// reach from end to end tell their width.
fn narrow(graph: &mut Graph) {
    for layer in graph.layers() {
        let blank = |shape: &[usize]| {
            let ends = [1.0, -1.0].into_iter().cycle();
            let values: Vec<f32> = ends.take(shape.iter().product()).collect();
            TensorData::from_f32(shape, &values)
        };
        let float = |graph: &Graph, value: ValueId| {
            let data = graph.value(value).data.as_ref()?;
            (data.element == ElementType::F32).then(|| data.shape.clone())
        };
        let Some(mut shape) = float(graph, layer.weight) else {
            continue;
        };
        let Some(&channels) = layer.weight_shape.get(layer.channel_axis) else {
            continue;
        };
        if shape.len() < 2 || shape.len() != layer.weight_shape.len() {
            continue;
        }
        shape[layer.channel_axis] = channels.min(1);
        graph.set_data(layer.weight, blank(&shape));
        let bias = graph.nodes[layer.node.0 as usize].inputs.get(2).copied();
        if let Some(bias) = bias.flatten()
            && float(graph, bias).is_some_and(|shape| shape == [channels])
        {
            graph.set_data(bias, blank(&[channels.min(1)]));
        }
    }
}

/// Ranges of all values, as far as operators bound them.
fn ranges(graph: &Graph) -> Ranges {
    let mut known: BTreeMap<ValueId, [f32; 2]> = BTreeMap::new();
    for node in &graph.nodes {
        let range = range(graph, node, &known);
        for output in node.outputs.iter().flatten() {
            known.insert(*output, range);
        }
    }
    let values = graph.values.iter().enumerate().map(|(at, value)| {
        let range = known.get(&ValueId(at as u32)).copied();
        (value.name.clone(), range.unwrap_or(ANY))
    });
    Ranges {
        values: values.collect(),
    }
}

/// Of values that could be anything.
const ANY: [f32; 2] = [-1.0, 1.0];

fn range(graph: &Graph, node: &Node, known: &BTreeMap<ValueId, [f32; 2]>) -> [f32; 2] {
    let inputs = node.inputs.iter().flatten();
    let mut read = inputs.map(|v| known.get(v).copied().unwrap_or(ANY));
    let first = read.next().unwrap_or(ANY);
    let bound = |slot: usize| {
        let value = node.inputs.get(slot).copied().flatten()?;
        graph
            .value(value)
            .data
            .as_ref()?
            .to_f32_vec()
            .first()
            .copied()
    };
    match &node.op {
        Op::Unary(UnaryOp::Relu) => first.map(|v| v.max(0.0)),
        Op::Clip => {
            let (lo, hi) = (bound(1), bound(2));
            let inside = |v: f32| v.max(lo.unwrap_or(v)).min(hi.unwrap_or(v));
            first.map(inside)
        }
        Op::MaxPool { .. }
        | Op::AveragePool { .. }
        | Op::GlobalAveragePool
        | Op::Reshape { .. }
        | Op::Flatten { .. }
        | Op::Transpose { .. }
        | Op::Squeeze
        | Op::Unsqueeze
        | Op::Identity => first,
        Op::Binary(BinaryOp::Add) => read.fold(first, |a, b| [a[0] + b[0], a[1] + b[1]]),
        Op::Concat { .. } => read.fold(first, |a, b| [a[0].min(b[0]), a[1].max(b[1])]),
        _ => ANY,
    }
}
