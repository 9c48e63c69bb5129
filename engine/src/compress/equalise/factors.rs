//! The factors of pairs, and weights and biases scaled by them.

use super::pairs::{Pair, bias_of};
use crate::{
    compress::{
        CompressError, Model, PassContext,
        wiring::{Names, Wiring, add_constant},
    },
    exec::ExecError,
    graph::{Graph, Layer, Op, TensorData, ValueId},
};
use std::collections::BTreeMap;

/// Rounds over all pairs at most, and the change of a factor below which they end. A chain such as convolution → depthwise → convolution
/// needs several, and comes to the closed form for three layers.
const ROUNDS: usize = 60;
const SETTLED: f64 = 1e-4;
/// Factors stay inside this: a channel beyond it is next to dead.
const MOST: f64 = 1e5;
/// Calls `f(element, output, input)` for every element of a layer's weight, in order.
pub(in crate::compress) fn each(
    graph: &Graph,
    layer: &Layer,
    mut f: impl FnMut(usize, usize, usize),
) {
    let shape = &layer.weight_shape;
    let n: usize = shape.iter().product();
    match &graph.node(layer.node).op {
        Op::Conv { group, .. } => {
            let (depth, taps) = (shape[1], shape[2..].iter().product::<usize>());
            let outputs = (shape[0] / (*group).max(1)).max(1);
            for i in 0..n {
                let output = i / taps / depth;
                f(i, output, output / outputs * depth + i / taps % depth);
            }
        }
        _ => {
            let columns = shape[1];
            for i in 0..n {
                let (row, column) = (i / columns, i % columns);
                match layer.channel_axis {
                    0 => f(i, row, column),
                    _ => f(i, column, row),
                }
            }
        }
    }
}

/// Largest magnitudes of a layer's weights by output channel, or by input channel (`spread` inputs each), each element times `factor` of
/// the channel on its other side.
pub(super) fn ranges(
    graph: &Graph,
    layer: &Layer,
    weights: &[f32],
    factor: &dyn Fn(usize) -> f64,
    outputs: bool,
    spread: usize,
) -> Vec<f64> {
    let mut ranges: Vec<f64> = Vec::new();
    each(graph, layer, |element, output, input| {
        let (channel, other) = match outputs {
            true => (output, input),
            false => (input / spread, output),
        };
        if ranges.len() <= channel {
            ranges.resize(channel + 1, 0.0);
        }
        let size = f64::from(weights[element].abs()) * factor(other);
        ranges[channel] = ranges[channel].max(size);
    });
    ranges
}

/// Largest over smallest of the ranges above 0; 1 where there is none.
pub(super) fn spread_of(ranges: &[f64]) -> f64 {
    let alive = || ranges.iter().copied().filter(|r| *r > 0.0);
    let (lo, hi) = (
        alive().fold(f64::INFINITY, f64::min),
        alive().fold(0.0, f64::max),
    );
    if hi > 0.0 { hi / lo } else { 1.0 }
}

/// Finds the factors of all pairs: s = √(r₁/r₂) again and again, as the ranges of each pair hang on its neighbours' factors.
pub(super) fn settle(
    graph: &Graph,
    layers: &[Layer],
    weights: &[Vec<f32>],
    pairs: &mut [Pair],
    context: &PassContext<'_>,
) -> Result<(), CompressError> {
    for pair in pairs.iter_mut() {
        let layer = &layers[pair.first];
        let plain = ranges(graph, layer, &weights[pair.first], &|_| 1.0, true, 1);
        pair.before = spread_of(&plain);
    }
    for _ in 0..ROUNDS {
        let mut change = 0.0_f64;
        for at in 0..pairs.len() {
            if context.cancel.is_cancelled() {
                return Err(ExecError::Cancelled.into());
            }
            let (first, second) = (pairs[at].first, pairs[at].second);
            let before = pairs.iter().find(|p| p.second == first);
            let behind = pairs.iter().find(|p| p.first == second);
            let by_input = |i: usize| before.map_or(1.0, |p| p.factors[i / p.spread]);
            let by_output = |o: usize| behind.map_or(1.0, |p| 1.0 / p.factors[o]);
            let spread = pairs[at].spread;
            let (a, b) = (&layers[first], &layers[second]);
            let r1 = ranges(graph, a, &weights[first], &by_input, true, 1);
            let r2 = ranges(graph, b, &weights[second], &by_output, false, spread);
            let fresh: Vec<f64> = r1
                .iter()
                .zip(&r2)
                .map(|(r1, r2)| match (r1 / r2).sqrt() {
                    s if s.is_finite() && s > 0.0 => s.clamp(1.0 / MOST, MOST),
                    // A channel without weights on either side has nothing to match.
                    _ => 1.0,
                })
                .collect();
            for (old, new) in pairs[at].factors.iter().zip(&fresh) {
                change = change.max((new / old).ln().abs());
            }
            if fresh.len() == pairs[at].factors.len() {
                pairs[at].factors = fresh;
            }
        }
        if change < SETTLED {
            break;
        }
    }
    Ok(())
}

/// Scales weights and biases.
pub(super) fn write(
    model: &mut Model,
    layers: &[Layer],
    weights: &[Vec<f32>],
    pairs: &[Pair],
) -> Result<(), CompressError> {
    let wiring = Wiring::of(&model.graph);
    let mut names = Names::of(&model.graph);
    let mut biases: BTreeMap<usize, (ValueId, Vec<f32>)> = BTreeMap::new();
    for (index, layer) in layers.iter().enumerate() {
        let before = pairs.iter().find(|p| p.second == index);
        let behind = pairs.iter().find(|p| p.first == index);
        if before.is_none() && behind.is_none() {
            continue;
        }
        let mut scaled = weights[index].clone();
        each(&model.graph, layer, |element, output, input| {
            let by = before.map_or(1.0, |p| p.factors[input / p.spread])
                / behind.map_or(1.0, |p| p.factors[output]);
            scaled[element] = (f64::from(scaled[element]) * by) as f32;
        });
        if let Some(pair) = behind {
            let refuse = |message: String| CompressError::Layer {
                message,
                layer: layer.id.0.to_string(),
            };
            let found = bias_of(&model.graph, layer, pair.factors.len()).map_err(refuse)?;
            if let Some((id, values)) = found {
                let values = values
                    .iter()
                    .zip(&pair.factors)
                    .map(|(b, s)| (f64::from(*b) / s) as f32)
                    .collect();
                biases.insert(index, (id, values));
            }
        }
        let bias = biases.get(&index).map_or(&[][..], |(_, values)| values);
        if !scaled.iter().chain(bias).all(|v| v.is_finite()) {
            return Err(CompressError::Layer {
                message: "equalising it gives weights that are NaN or infinite: leave it out"
                    .to_owned(),
                layer: layer.id.0.to_string(),
            });
        }
        let data = TensorData::from_f32(&layer.weight_shape, &scaled);
        model.graph.set_data(layer.weight, data);
    }
    for (index, (id, values)) in biases {
        set_bias(
            &mut model.graph,
            &wiring,
            &mut names,
            &layers[index],
            id,
            &values,
        );
    }
    Ok(())
}

/// Gives a layer a bias: in place where the old one is its alone and of that size.
pub(in crate::compress) fn set_bias(
    graph: &mut Graph,
    wiring: &Wiring,
    names: &mut Names,
    layer: &Layer,
    old: ValueId,
    values: &[f32],
) {
    let shape = graph.value(old).data.as_ref().map(|d| d.shape.clone());
    let alone = wiring.consumers(old).len() == 1 && !wiring.is_output(old);
    match shape {
        Some(shape) if alone && shape.iter().product::<usize>() == values.len() => {
            graph.set_data(old, TensorData::from_f32(&shape, values));
        }
        _ => {
            let name = names.unique(format!("{}_bias", layer.id.0));
            let data = TensorData::from_f32(&[values.len()], values);
            let id = add_constant(graph, name, data);
            graph.node_mut(layer.node).inputs[2] = Some(id);
        }
    }
}
