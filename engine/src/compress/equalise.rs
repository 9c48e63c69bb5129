//! Cross-layer equalisation (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019): channel by
//! channel, what one layer's weights are divided by the next layer's are multiplied with, so that the ranges of both match. The float
//! function stays the same, because what lies between the two scales along: ReLU and other positively homogeneous functions, pooling.

use super::{
    Account, AccountEntry, CompressError, Model, Outcome, Pass, PassContext,
    prune::check_known,
    wiring::{Names, WeightForm, Wiring, add_constant, float_weight, weight_form},
};
use crate::{
    exec::ExecError,
    graph::{BinaryOp, Dim, ElementType, Graph, Layer, LayerId, Op, TensorData, UnaryOp, ValueId},
};
use std::collections::{BTreeMap, BTreeSet};

/// Equalises the ranges of layers that follow each other; see the file's first lines.
pub struct Equalize {
    /// Those that may take part: a pair is equalised where both do.
    pub layers: BTreeSet<LayerId>,
}

/// Rounds over all pairs at most, and the change of a factor below which they end. A chain such as convolution → depthwise → convolution
/// needs several, and comes to the closed form for three layers.
const ROUNDS: usize = 60;
const SETTLED: f64 = 1e-4;
/// Factors stay inside this: a channel beyond it is next to dead.
const MOST: f64 = 1e5;

/// The axis that a layer's channels lie along, in what is computed from its output.
#[derive(Clone, Copy)]
enum Along {
    Axis {
        axis: usize,
        rank: usize,
    },
    /// The last one of a shape that is not known.
    Last,
}

impl Along {
    /// In a layer's own output.
    fn of(graph: &Graph, layer: &Layer) -> Self {
        let rank = |value: ValueId| graph.value(value).shape.as_ref().map(Vec::len);
        match &graph.node(layer.node).op {
            Op::Conv { .. } => Self::Axis {
                axis: 1,
                rank: layer.weight_shape.len(),
            },
            Op::Gemm { .. } => Self::Axis { axis: 1, rank: 2 },
            _ => match rank(layer.output).or_else(|| rank(layer.input)) {
                Some(rank @ 1..) => Self::Axis {
                    axis: rank - 1,
                    rank,
                },
                _ => Self::Last,
            },
        }
    }

    /// Whether it is the axis that a layer sums over.
    fn summed_by(self, graph: &Graph, layer: &Layer) -> bool {
        match (&graph.node(layer.node).op, self) {
            (Op::MatMul, Self::Axis { axis, rank }) => axis + 1 == rank,
            // A Gemm takes matrices only.
            (Op::MatMul | Op::Gemm { .. }, Self::Last) => true,
            (_, Self::Axis { axis, .. }) => axis == 1,
            (_, Self::Last) => false,
        }
    }
}

impl std::fmt::Display for Along {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Axis { axis, .. } => write!(f, "axis {axis}"),
            Self::Last => f.write_str("the last axis"),
        }
    }
}

/// Two layers between which channels can be scaled.
struct Pair {
    /// By their places among the layers.
    first: usize,
    second: usize,
    /// Inputs of the second that one channel of the first is spread over.
    spread: usize,
    /// What each channel of the first is divided by.
    factors: Vec<f64>,
    /// Largest over smallest range of the first's channels, before.
    before: f64,
}

impl Pass for Equalize {
    fn name(&self) -> &'static str {
        "equalise"
    }

    fn apply(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        let layers = model.graph.layers();
        check_known(&layers, self.layers.iter())?;
        let wiring = Wiring::of(&model.graph);
        let mut pairs: Vec<Pair> = Vec::new();
        let mut reasons: Vec<String> = Vec::with_capacity(layers.len());
        for first in 0..layers.len() {
            reasons.push(match self.pair(&model.graph, &wiring, &layers, first) {
                Ok(pair) => {
                    pairs.push(pair);
                    String::new()
                }
                Err(reason) => reason,
            });
        }
        let weights: Vec<Vec<f32>> = layers
            .iter()
            .map(|layer| float_weight(&model.graph, layer).unwrap_or_default())
            .collect();
        settle(&model.graph, &layers, &weights, &mut pairs, context)?;
        write(&mut model, &layers, &weights, &pairs)?;

        let entries = layers
            .iter()
            .enumerate()
            .map(|(index, layer)| {
                let mut words = Vec::new();
                if let Some(pair) = pairs.iter().find(|p| p.second == index) {
                    words.push(format!(
                        "inputs take the scaling of {}",
                        layers[pair.first].id.0
                    ));
                }
                if let Some(pair) = pairs.iter().find(|p| p.first == index) {
                    words.push(format!(
                        "{} outputs scaled against {}: largest over smallest channel range {:.1} → {:.1}",
                        pair.factors.len(),
                        layers[pair.second].id.0,
                        pair.before,
                        spread_of(&ranges(
                            &model.graph,
                            layer,
                            &float_weight(&model.graph, layer).unwrap_or_default(),
                            &|_| 1.0,
                            true,
                            1,
                        )),
                    ));
                }
                AccountEntry {
                    layer: layer.id.clone(),
                    outcome: if words.is_empty() {
                        Outcome::NotDone(reasons[index].clone())
                    } else {
                        Outcome::Done(words.join("; "))
                    },
                }
            })
            .collect();
        let account = Account {
            pass: self.name().to_owned(),
            entries,
        };
        Ok((model, account))
    }
}

impl Equalize {
    /// The layer that a layer can be equalised with, or why there is none.
    fn pair(
        &self,
        graph: &Graph,
        wiring: &Wiring,
        layers: &[Layer],
        first: usize,
    ) -> Result<Pair, String> {
        let layer = &layers[first];
        if !self.layers.contains(&layer.id) {
            return Err("not asked for".to_owned());
        }
        able(graph, wiring, layers, layer)?;
        let channels = layer.weight_shape[layer.channel_axis];
        bias_of(graph, layer, channels)?;
        let mut spread = 1;
        let mut along = Along::of(graph, layer);
        let mut value = layer.output;
        loop {
            if wiring.is_output(value) {
                return Err("its result is an output of the model".to_owned());
            }
            let &[next] = wiring.consumers(value) else {
                return Err(format!(
                    "its result is used in {} places",
                    wiring.consumers(value).len()
                ));
            };
            let node = &graph.nodes[next];
            if node.inputs.first().copied().flatten() != Some(value) {
                return Err(format!("{} takes its result in another place", node.name));
            }
            if let Some(second) = layers.iter().position(|l| l.node.0 as usize == next) {
                let behind = &layers[second];
                if !self.layers.contains(&behind.id) {
                    return Err(format!("{} behind it is not asked for", behind.id.0));
                }
                able(graph, wiring, layers, behind)
                    .map_err(|reason| format!("{} behind it: {reason}", behind.id.0))?;
                if !along.summed_by(graph, behind) {
                    return Err(format!(
                        "{} behind it does not sum over its channels, which lie along {along} there",
                        behind.id.0
                    ));
                }
                let inputs = inputs_of(graph, behind);
                if inputs != Some(channels * spread) {
                    return Err(format!(
                        "its {channels} channels do not match the inputs of {}",
                        behind.id.0
                    ));
                }
                return Ok(Pair {
                    first,
                    second,
                    spread,
                    factors: vec![1.0; channels],
                    before: 1.0,
                });
            }
            match &node.op {
                Op::Unary(UnaryOp::Relu)
                | Op::LeakyRelu { .. }
                | Op::Identity
                | Op::Dropout
                | Op::Binary(BinaryOp::PRelu) => {}
                Op::MaxPool { .. }
                | Op::AveragePool { .. }
                | Op::GlobalAveragePool
                | Op::GlobalMaxPool
                    if matches!(along, Along::Axis { axis: 1, .. }) => {}
                Op::MaxPool { .. }
                | Op::AveragePool { .. }
                | Op::GlobalAveragePool
                | Op::GlobalMaxPool => {
                    return Err(format!(
                        "{} behind it takes channels together: they lie along {along} there",
                        node.name
                    ));
                }
                Op::Clip if is_relu(graph, node.inputs.get(1..).unwrap_or_default()) => {}
                Op::Clip => {
                    return Err(format!(
                        "{} behind it clips at a fixed value, which would no longer be the same for every channel",
                        node.name
                    ));
                }
                Op::Flatten { axis: 1 } => {
                    if !matches!(along, Along::Axis { axis: 1, .. }) {
                        return Err(format!(
                            "{} behind it does not keep its channels together: they lie along {along} there",
                            node.name
                        ));
                    }
                    let shape = graph.value(value).shape.as_deref().unwrap_or_default();
                    let known: Option<usize> = shape
                        .get(2..)
                        .and_then(|dims| dims.iter().map(Dim::known).product());
                    let Some(known) = known.filter(|_| spread == 1) else {
                        return Err(format!("{} flattens a shape that is not known", node.name));
                    };
                    spread = known;
                    along = Along::Axis { axis: 1, rank: 2 };
                }
                op => {
                    return Err(format!(
                        "{} ({}) behind it does not scale with its input",
                        node.name,
                        op.name()
                    ));
                }
            }
            value = match node.outputs.first().copied().flatten() {
                Some(output) => output,
                None => return Err(format!("{} has no output", node.name)),
            };
        }
    }
}

/// A Clip from 0 to nothing.
fn is_relu(graph: &Graph, bounds: &[Option<ValueId>]) -> bool {
    let bound = |slot: usize| match bounds.get(slot).copied().flatten() {
        None => Some(None),
        Some(id) => {
            let data = graph.value(id).data.as_ref()?;
            data.to_f32_vec().first().copied().map(Some)
        }
    };
    bound(0) == Some(Some(0.0)) && matches!(bound(1), Some(None | Some(f32::INFINITY)))
}

/// Whether a layer's weight can be scaled channel by channel.
pub(super) fn able(
    graph: &Graph,
    wiring: &Wiring,
    layers: &[Layer],
    layer: &Layer,
) -> Result<(), String> {
    match &graph.node(layer.node).op {
        Op::Conv { .. } | Op::Gemm { trans_a: false, .. } => {}
        Op::MatMul if layer.weight_shape.len() == 2 => {}
        _ => {
            return Err(format!(
                "its channels cannot be scaled: this form of {} is not known",
                layer.op
            ));
        }
    }
    match weight_form(graph, wiring, layer) {
        (1, WeightForm::Float) => {}
        (1, WeightForm::Quantized { .. } | WeightForm::Half) => {
            return Err("its weight is quantised already".to_owned());
        }
        _ => return Err("its weight is computed, or the left factor of a product".to_owned()),
    }
    let weights = float_weight(graph, layer)?;
    if weights.iter().any(|w| !w.is_finite()) {
        return Err("its weights hold NaN or infinite values".to_owned());
    }
    if wiring.has_own_weight(layers, layer) {
        Ok(())
    } else {
        Err("its weight is used in several places".to_owned())
    }
}

/// A layer's bias by channel; `None` where it has none.
fn bias_of(
    graph: &Graph,
    layer: &Layer,
    channels: usize,
) -> Result<Option<(ValueId, Vec<f32>)>, String> {
    let node = graph.node(layer.node);
    let Some(id) = node.inputs.get(2).copied().flatten() else {
        return Ok(None);
    };
    let data = graph.value(id).data.as_ref();
    let Some(data) = data.filter(|d| d.element == ElementType::F32) else {
        return Err("its bias is not a float constant".to_owned());
    };
    let values = data.to_f32_vec();
    match values.len() {
        1 => Ok(Some((id, vec![values[0]; channels]))),
        n if n == channels => Ok(Some((id, values))),
        n => Err(format!("its bias has {n} elements for {channels} channels")),
    }
}

/// Inputs that a layer's weight is over.
pub(super) fn inputs_of(graph: &Graph, layer: &Layer) -> Option<usize> {
    let shape = &layer.weight_shape;
    Some(match &graph.node(layer.node).op {
        Op::Conv { group, .. } => shape.get(1)?.checked_mul(*group)?,
        _ => *shape.get(1 - layer.channel_axis.min(1))?,
    })
}

/// Calls `f(element, output, input)` for every element of a layer's weight, in order.
pub(super) fn each(graph: &Graph, layer: &Layer, mut f: impl FnMut(usize, usize, usize)) {
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
fn ranges(
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
fn spread_of(ranges: &[f64]) -> f64 {
    let alive = || ranges.iter().copied().filter(|r| *r > 0.0);
    let (lo, hi) = (
        alive().fold(f64::INFINITY, f64::min),
        alive().fold(0.0, f64::max),
    );
    if hi > 0.0 { hi / lo } else { 1.0 }
}

/// Finds the factors of all pairs: s = √(r₁/r₂) again and again, as the ranges of each pair hang on its neighbours' factors.
fn settle(
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
fn write(
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
pub(super) fn set_bias(
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
