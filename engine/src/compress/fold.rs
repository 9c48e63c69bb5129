//! Batch-norm folding: y = γ·(x − μ)/√(σ² + ε) + β after a linear layer is a linear layer again (Jacob et al. 2018, §3.2).

use super::{
    Account, AccountEntry, CompressError, FoldBatchNorm, FoldBatchNormOnly, Model, NormStatistics,
    Outcome, Pass, PassContext, norms,
    wiring::{
        Names, WeightForm, Wiring, add_constant, check_float_weight, float_weight, rebuild,
        weight_form,
    },
};
use crate::graph::{ElementType, Graph, Layer, LayerId, Op, TensorData, ValueId, checked_len};
use std::collections::{BTreeMap, HashSet};

impl Pass for FoldBatchNorm {
    fn name(&self) -> &'static str {
        "fold batch norm"
    }

    fn apply(
        &self,
        model: Model,
        _context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        let (mut model, known, account) = folded(model)?;
        if !known.is_empty() {
            model.norms = Some(NormStatistics::new(known, &model.graph));
        }
        Ok((model, account))
    }
}

impl Pass for FoldBatchNormOnly {
    fn name(&self) -> &'static str {
        FoldBatchNorm.name()
    }

    fn apply(
        &self,
        model: Model,
        _context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        let (model, _, account) = folded(model)?;
        Ok((model, account))
    }
}

/// The model folded, with what its layers' norms knew, and the account.
fn folded(mut model: Model) -> Result<(Model, Known, Account), CompressError> {
    let layers = model.graph.layers();
    let (entries, known) = fold(&mut model, &layers, Values::Computed)?;
    let account = Account {
        pass: FoldBatchNorm.name().to_owned(),
        entries,
    };
    Ok((model, known, account))
}

/// What folded norms knew of their layers' outputs, by channel.
type Known = BTreeMap<LayerId, Vec<(f64, f64)>>;

/// What becomes of the weights.
#[derive(Clone, Copy, PartialEq)]
enum Values {
    Computed,
    /// Zeros of the same extent, without looking at any weight: for who wants to know sizes only.
    Blank,
}

/// The graph with the batch norms after some of its layers folded; as it was where that fails (the pass reports why).
pub(crate) fn folded_at(graph: &Graph, layers: &[Layer]) -> Graph {
    let mut model = Model::new(graph.clone());
    match fold(&mut model, layers, Values::Computed) {
        Ok(_) => model.graph,
        Err(_) => graph.clone(),
    }
}

/// The graph with batch norms folded, in extents and names alone: its folded weights are zeros, and none was read.
pub(crate) fn folded_outline(graph: &Graph) -> Graph {
    let mut model = Model::new(graph.clone());
    let layers = graph.layers();
    match fold(&mut model, &layers, Values::Blank) {
        Ok(_) => model.graph,
        Err(_) => graph.clone(),
    }
}

/// Folds what follows `layers`, which are the graph's own.
fn fold(
    model: &mut Model,
    layers: &[Layer],
    values: Values,
) -> Result<(Vec<AccountEntry>, Known), CompressError> {
    let mut wiring = Wiring::of(&model.graph);
    let mut names = Names::of(&model.graph);
    let mut removed = HashSet::new();
    let mut entries = Vec::with_capacity(layers.len());
    let mut known = BTreeMap::new();
    for layer in layers {
        let mut folded: Vec<String> = Vec::new();
        let why_not = loop {
            match fold_one(model, layer, &mut wiring, &mut names, values)? {
                Ok((norm, statistics)) => {
                    if let Some(statistics) = statistics {
                        known.insert(layer.id.clone(), statistics);
                    }
                    removed.insert(norm);
                    folded.push(model.graph.nodes[norm].name.clone());
                }
                Err(reason) => break reason,
            }
        };
        entries.push(AccountEntry {
            layer: layer.id.clone(),
            outcome: if folded.is_empty() {
                Outcome::NotDone(why_not)
            } else {
                Outcome::Done(format!("folded {}", folded.join(", ")))
            },
        });
    }
    rebuild(&mut model.graph, BTreeMap::new(), &removed);
    Ok((entries, known))
}

/// A float tensor of zeros. Large ones take no memory until they are looked at.
fn blank(shape: &[usize]) -> TensorData {
    let bytes = vec![0; 4 * checked_len(shape).unwrap_or(0)];
    TensorData {
        element: ElementType::F32,
        shape: shape.to_vec(),
        bytes: bytes.into(),
    }
}

/// A folded norm's node index, and what it knew of its outputs.
type Folded = (usize, Option<Vec<(f64, f64)>>);

/// Folds the batch norm that follows `layer`; gives it, or the reason why there is nothing to fold.
fn fold_one(
    model: &mut Model,
    layer: &Layer,
    wiring: &mut Wiring,
    names: &mut Names,
    values: Values,
) -> Result<Result<Folded, String>, CompressError> {
    let graph = &model.graph;
    let index = layer.node.0 as usize;
    let Some(output) = graph.nodes[index].outputs.first().copied().flatten() else {
        return Ok(Err("it computes nothing".to_owned()));
    };
    let is_norm = |i: &usize| matches!(graph.nodes[*i].op, Op::BatchNormalization { .. });
    let Some(norm) =
        wiring.consumers(output).iter().copied().find(|i| {
            is_norm(i) && graph.nodes[*i].inputs.first().copied().flatten() == Some(output)
        })
    else {
        return Ok(Err("no batch norm follows it".to_owned()));
    };
    let norm_name = &graph.nodes[norm].name;
    if wiring.is_output(output) {
        return Ok(Err(format!(
            "its result is an output of the model, so {norm_name} must stay"
        )));
    }
    if wiring.consumers(output).len() > 1 {
        return Ok(Err(format!(
            "its result is used by {} nodes, not by {norm_name} alone",
            wiring.consumers(output).len()
        )));
    }
    let (slot, form) = weight_form(graph, wiring, layer);
    if form != WeightForm::Float {
        return Ok(Err(format!(
            "its weight is already quantised: fold {norm_name} before quantising"
        )));
    }
    if let Err(reason) = check_float_weight(graph, layer) {
        return Ok(Err(reason));
    }
    let channels = match &graph.nodes[index].op {
        Op::Conv { .. } => layer.weight_shape[0],
        Op::ConvTranspose { group, .. } => layer.weight_shape[1] * group,
        Op::Gemm { .. } => layer.weight_shape[layer.channel_axis],
        _ => {
            return Ok(Err(format!(
                "a {} has no bias to take the shift of {norm_name}",
                layer.op
            )));
        }
    };
    let (factor, shift) = match norm_parameters(graph, norm, channels, layer, values)? {
        Ok(parameters) => parameters,
        Err(reason) => return Ok(Err(reason)),
    };
    let bias = graph.nodes[index].inputs.get(2).copied().flatten();
    let old_bias = match bias {
        None => None,
        Some(id) => match constant_f32(graph, id) {
            Some(data) if values == Values::Blank => Some((id, blank(&data.shape))),
            Some(data) => Some((id, data)),
            None => return Ok(Err("its bias is not a float constant".to_owned())),
        },
    };

    let new_weight = match values {
        Values::Blank => blank(&layer.weight_shape),
        Values::Computed => match float_weight(graph, layer) {
            Ok(weights) => TensorData::from_f32(
                &layer.weight_shape,
                &scaled(&graph.nodes[index].op, layer, &weights, &factor),
            ),
            Err(reason) => return Ok(Err(reason)),
        },
    };
    let mut op = graph.nodes[index].op.clone();
    let beta = match &mut op {
        Op::Gemm { beta, .. } => {
            if old_bias.is_none() || *beta == 0.0 {
                *beta = 1.0;
            }
            f64::from(*beta)
        }
        _ => 1.0,
    };
    // A Gemm that multiplied its bias by 0 had none.
    let ignored = matches!(graph.nodes[index].op, Op::Gemm { beta, .. } if beta == 0.0);
    let new_bias = match old_bias.as_ref().filter(|_| !ignored) {
        None => TensorData::from_f32(
            &[channels],
            &shift.iter().map(|s| (s / beta) as f32).collect::<Vec<_>>(),
        ),
        Some((_, data)) => match folded_bias(data, &factor, &shift, beta) {
            Some(bias) => bias,
            None => {
                return Ok(Err(format!(
                    "its bias of shape {:?} doesn't match its {channels} channels",
                    data.shape
                )));
            }
        },
    };
    if values == Values::Computed && new_weight.non_finite() + new_bias.non_finite() > 0 {
        return Err(CompressError::Layer {
            message: format!(
                "folding {norm_name} gives weights that are NaN or infinite: look at the layer's weights and the norm's \
                 parameters"
            ),
            layer: layer.id.0.to_string(),
        });
    }

    let statistics = norms::of_norm(graph, norm, channels);
    let norm_output = graph.nodes[norm].outputs.first().copied().flatten();
    let shared = |id: ValueId| wiring.consumers(id).len() > 1 || wiring.is_output(id);
    let weight_name = graph.values[layer.weight.0 as usize].name.clone();
    let graph = &mut model.graph;
    let (layer_before, norm_before) = (graph.nodes[index].clone(), graph.nodes[norm].clone());
    // Someone else's weight stays as it is: this layer gets its own.
    let present = graph.nodes[index].inputs[slot].unwrap_or(layer.weight);
    let weight_id = if shared(present) {
        let name = names.unique(format!("{weight_name}_folded"));
        if let Some(mask) = model.masks.get(&weight_name).cloned() {
            model.masks.insert(name.clone(), mask);
        }
        add_constant(graph, name, new_weight)
    } else {
        graph.values[present.0 as usize].data = Some(new_weight);
        present
    };
    let bias_id = match old_bias {
        Some((id, old)) if !shared(id) && old.shape == new_bias.shape => {
            graph.values[id.0 as usize].data = Some(new_bias);
            id
        }
        _ => {
            let name = names.unique(format!("{}_bias", layer.id.0));
            add_constant(graph, name, new_bias)
        }
    };
    let node = &mut graph.nodes[index];
    node.op = op;
    node.inputs[slot] = Some(weight_id);
    node.inputs.resize(3, None);
    node.inputs[2] = Some(bias_id);
    node.outputs[0] = norm_output;
    // The norm no longer computes the layer's output.
    graph.nodes[norm].inputs.clear();
    graph.nodes[norm].outputs.clear();
    wiring.forget(index, &layer_before);
    wiring.forget(norm, &norm_before);
    wiring.note(graph, index);
    Ok(Ok((norm, statistics)))
}

fn constant_f32(graph: &Graph, id: ValueId) -> Option<TensorData> {
    let data = graph.values.get(id.0 as usize)?.data.as_ref()?;
    (data.element == ElementType::F32).then(|| data.clone())
}

type Parameters = (Vec<f64>, Vec<f64>);

/// Factor and shift of a batch norm per channel, in f64.
fn norm_parameters(
    graph: &Graph,
    norm: usize,
    channels: usize,
    layer: &Layer,
    values: Values,
) -> Result<Result<Parameters, String>, CompressError> {
    let node = &graph.nodes[norm];
    let Op::BatchNormalization { epsilon } = node.op else {
        return Ok(Err("no batch norm follows it".to_owned()));
    };
    let mut read = Vec::with_capacity(4);
    for slot in 1..5 {
        let data = node
            .inputs
            .get(slot)
            .copied()
            .flatten()
            .and_then(|id| constant_f32(graph, id))
            .filter(|data| data.len() == channels);
        let Some(data) = data else {
            return Ok(Err(format!(
                "the parameters of {} are not float constants of {channels} elements",
                node.name
            )));
        };
        read.push(data);
    }
    if values == Values::Blank {
        return Ok(Ok((vec![1.0; channels], vec![0.0; channels])));
    }
    let read: Vec<Vec<f32>> = read.iter().map(TensorData::to_f32_vec).collect();
    let [scale, bias, mean, variance] = &read[..] else {
        return Ok(Err("no batch norm follows it".to_owned()));
    };
    let mut factor = Vec::with_capacity(channels);
    let mut shift = Vec::with_capacity(channels);
    let columns = scale.iter().zip(bias).zip(mean.iter().zip(variance));
    for (c, ((scale, bias), (mean, variance))) in columns.enumerate() {
        let spread = f64::from(*variance) + f64::from(epsilon);
        if spread.is_nan() || spread <= 0.0 {
            return Err(CompressError::Layer {
                message: format!(
                    "channel {c} of batch norm {} has variance {variance} and epsilon {epsilon}: their sum must be above 0",
                    node.name
                ),
                layer: layer.id.0.to_string(),
            });
        }
        let f = f64::from(*scale) / spread.sqrt();
        factor.push(f);
        shift.push(f64::from(*bias) - f64::from(*mean) * f);
    }
    Ok(Ok((factor, shift)))
}

/// Weights with each output channel multiplied by its factor.
fn scaled(op: &Op, layer: &Layer, weights: &[f32], factor: &[f64]) -> Vec<f32> {
    let shape = &layer.weight_shape;
    let axis = layer.channel_axis;
    let inner: usize = shape[axis + 1..].iter().product();
    let length = shape[axis];
    // A grouped ConvTranspose counts its channels anew in every group of input channels.
    let per_group = match op {
        Op::ConvTranspose { group, .. } => (shape[0] / (*group).max(1)).max(1),
        _ => usize::MAX,
    };
    weights
        .iter()
        .enumerate()
        .map(|(i, &w)| {
            let a = i / inner % length;
            let outer = i / inner / length;
            let channel = match per_group {
                usize::MAX => a,
                per_group => outer / per_group * length + a,
            };
            (f64::from(w) * factor[channel]) as f32
        })
        .collect()
}

/// `bias·factor + shift/beta` along the last axis; a single element is spread over the channels. `None` where shapes disagree.
fn folded_bias(bias: &TensorData, factor: &[f64], shift: &[f64], beta: f64) -> Option<TensorData> {
    let channels = factor.len();
    let values = bias.to_f32_vec();
    let mut shape = bias.shape.clone();
    let last = shape.last().copied().unwrap_or(1);
    if last != channels && last != 1 {
        return None;
    }
    match shape.last_mut() {
        Some(last) => *last = channels,
        None => shape.push(channels),
    }
    let rows = values.len() / last.max(1);
    let mut out = Vec::with_capacity(rows * channels);
    for row in 0..rows {
        for c in 0..channels {
            let old = values[row * last + if last == 1 { 0 } else { c }];
            out.push((f64::from(old) * factor[c] + shift[c] / beta) as f32);
        }
    }
    Some(TensorData::from_f32(&shape, &out))
}
