//! Which layers can be equalised with which: what lies between them, and why it cannot be passed.

use crate::{
    compress::wiring::{WeightForm, Wiring, float_weight, weight_form},
    graph::{BinaryOp, Dim, ElementType, Graph, Layer, Op, UnaryOp, ValueId},
};

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
pub(super) struct Pair {
    /// By their places among the layers.
    pub first: usize,
    pub second: usize,
    /// Nodes that lie between them.
    pub between: Vec<usize>,
    /// Inputs of the second that one channel of the first is spread over.
    pub spread: usize,
    /// What each channel of the first is divided by.
    pub factors: Vec<f64>,
    /// Largest over smallest range of the first's channels, before.
    pub before: f64,
}
impl super::Equalize {
    /// The layer that a layer can be equalised with, or why there is none.
    pub(super) fn pair(
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
        let mut between = Vec::new();
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
                    between,
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
            between.push(next);
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
pub(in crate::compress) fn able(
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
pub(super) fn bias_of(
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
pub(in crate::compress) fn inputs_of(graph: &Graph, layer: &Layer) -> Option<usize> {
    let shape = &layer.weight_shape;
    Some(match &graph.node(layer.node).op {
        Op::Conv { group, .. } => shape.get(1)?.checked_mul(*group)?,
        _ => *shape.get(1 - layer.channel_axis.min(1))?,
    })
}
