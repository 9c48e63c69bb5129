//! SmoothQuant (Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022): a few input
//! channels of a product far wider than the rest take all the steps of a scale that all channels share. Each channel is divided by
//! s = max|x|^α / max|w|^(1 − α), and the weights over it multiplied. The division goes into the layer norm before where nothing
//! else reads its result, and is a multiplication of its own otherwise. The float function stays the same.

use super::{
    Account, AccountEntry, CompressError, Model, OnLayers, Outcome, Pass, PassContext,
    equalise::{able, each, inputs_of},
    prune::check_known,
    segments::{Walk, batches},
    wiring::{Names, Wiring, add_constant, add_value, float_weight, rebuild},
};
use crate::{
    exec::{CancelToken, ExecError},
    graph::{BinaryOp, ElementType, Graph, Layer, Node, Op, TensorData, ValueId},
};
use std::collections::{BTreeMap, HashSet};

/// How far ranges move from inputs to weights.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmoothQuantSettings {
    /// Samples of the calibration split that the inputs' ranges are taken from.
    pub samples: usize,
    /// α, above 0 and below 1: the nearer to 1, the more goes to the weights.
    pub strength: f32,
}

impl Default for SmoothQuantSettings {
    fn default() -> Self {
        Self {
            samples: 64,
            strength: 0.5,
        }
    }
}

impl SmoothQuantSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// No samples; a strength outside 0 to 1.
    pub fn check(&self) -> Result<(), CompressError> {
        super::at_least_one(&[("samples", self.samples)])?;
        super::above_zero(&[("strength", self.strength)])?;
        if self.strength >= 1.0 {
            return Err(CompressError::Invalid(format!(
                "strength: a number below 1 was expected (0.5 is usual), found {}",
                self.strength
            )));
        }
        Ok(())
    }
}

/// Moves the ranges of products' inputs into their weights; see the file's first lines.
/// Convolutions are left alone, with the reason.
pub type SmoothQuant = OnLayers<SmoothQuantSettings>;

/// Factors stay inside this: a channel beyond it is next to dead.
const MOST: f64 = 1e5;

impl Pass for SmoothQuant {
    fn name(&self) -> &'static str {
        "smoothquant"
    }

    fn apply(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        self.settings.check()?;
        let layers = model.graph.layers();
        check_known(&layers, self.layers.iter())?;
        let wiring = Wiring::of(&model.graph);
        let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(layers.len());
        // Layers that read the same value are smoothed together.
        let mut sets: Vec<(ValueId, Vec<usize>)> = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            match self.input(&model.graph, &wiring, &layers, layer) {
                Err(reason) => outcomes.push(Some(Outcome::NotDone(reason))),
                Ok(value) => {
                    outcomes.push(None);
                    match sets.iter_mut().find(|(v, _)| *v == value) {
                        Some((_, members)) => members.push(index),
                        None => sets.push((value, vec![index])),
                    }
                }
            }
        }
        let mut edit = Edit {
            names: Names::of(&model.graph),
            new: BTreeMap::new(),
            wiring: &wiring,
        };
        if !sets.is_empty() {
            let samples = self.settings.samples;
            let images = batches(&model.graph, context.data, samples, "SmoothQuant")?;
            let mut walk = Walk::new(model.graph.clone(), images)?;
            for (value, members) in &sets {
                let layer = &layers[members[0]];
                let seen = maxima(&mut walk, *value, layer, context.cancel)?;
                let set: Vec<&Layer> = members.iter().map(|m| &layers[*m]).collect();
                let words = self.smooth(&mut model.graph, &mut edit, *value, &set, &seen)?;
                for member in members {
                    outcomes[*member] = Some(Outcome::Done(words.clone()));
                }
            }
        }
        let new = edit.new;
        rebuild(&mut model.graph, new, &HashSet::new());
        let nothing = || Outcome::NotDone("nothing to do".to_owned());
        let entries = layers
            .iter()
            .zip(outcomes)
            .map(|(layer, outcome)| AccountEntry {
                layer: layer.id.clone(),
                outcome: outcome.unwrap_or_else(nothing),
            })
            .collect();
        let account = Account {
            pass: self.name().to_owned(),
            entries,
        };
        Ok((model, account))
    }
}

struct Edit<'a> {
    names: Names,
    new: BTreeMap<usize, Vec<Node>>,
    wiring: &'a Wiring,
}

impl SmoothQuant {
    /// The value that a layer reads, or why it is not smoothed.
    fn input(
        &self,
        graph: &Graph,
        wiring: &Wiring,
        layers: &[Layer],
        layer: &Layer,
    ) -> Result<ValueId, String> {
        if !self.layers.contains(&layer.id) {
            return Err("not asked for".to_owned());
        }
        let node = graph.node(layer.node);
        if !matches!(node.op, Op::MatMul | Op::Gemm { .. }) {
            return Err(format!(
                "SmoothQuant is for products, not for a {} (see Equalize)",
                layer.op
            ));
        }
        able(graph, wiring, layers, layer)?;
        node.inputs
            .first()
            .copied()
            .flatten()
            .ok_or_else(|| "it has no input".to_owned())
    }

    fn smooth(
        &self,
        graph: &mut Graph,
        edit: &mut Edit<'_>,
        value: ValueId,
        set: &[&Layer],
        seen: &[f32],
    ) -> Result<String, CompressError> {
        let mut wide = vec![0.0_f32; seen.len()];
        let mut weights = Vec::with_capacity(set.len());
        for layer in set {
            let found = float_weight(graph, layer).map_err(|message| CompressError::Layer {
                message,
                layer: layer.id.0.to_string(),
            })?;
            each(graph, layer, |element, _, input| {
                wide[input] = wide[input].max(found[element].abs());
            });
            weights.push(found);
        }
        let alpha = f64::from(self.settings.strength);
        let factors: Vec<f32> = seen
            .iter()
            .zip(&wide)
            .map(|(x, w)| (f64::from(*x).powf(alpha), f64::from(*w).powf(1.0 - alpha)))
            .map(|(x, w)| {
                // A channel that is always zero, or that no weight reads, has nothing to give.
                let known = x > 0.0 && w > 0.0;
                (if known { x / w } else { 1.0 }).clamp(1.0 / MOST, MOST) as f32
            })
            .collect();
        for (layer, mut weights) in set.iter().zip(weights) {
            each(graph, layer, |element, _, input| {
                weights[element] *= factors[input];
            });
            if !weights.iter().all(|w| w.is_finite()) {
                return Err(CompressError::Layer {
                    message: "smoothing it gives weights that are NaN or infinite: leave it out"
                        .to_owned(),
                    layer: layer.id.0.to_string(),
                });
            }
            let data = TensorData::from_f32(&layer.weight_shape, &weights);
            graph.set_data(layer.weight, data);
        }
        let smoothed: Vec<f32> = seen.iter().zip(&factors).map(|(x, s)| x / s).collect();
        let place = match norm_before(graph, edit.wiring, value, set, seen.len()) {
            Some(norm) => {
                divide_in_norm(graph, edit, norm, &factors);
                format!("in {}", graph.nodes[norm].name)
            }
            None => {
                multiply(graph, edit, value, set, &factors);
                "by a multiplication of its own".to_owned()
            }
        };
        Ok(format!(
            "its {} inputs divided {place}: largest over median range {:.1} → {:.1} ({} samples)",
            seen.len(),
            over_median(seen),
            over_median(&smoothed),
            self.settings.samples,
        ))
    }
}

/// Largest magnitude of each input channel of a product.
fn maxima(
    walk: &mut Walk,
    value: ValueId,
    layer: &Layer,
    cancel: &CancelToken,
) -> Result<Vec<f32>, CompressError> {
    let refuse = |message: String| CompressError::Layer {
        message,
        layer: layer.id.0.to_string(),
    };
    let channels = inputs_of(&walk.graph, layer).unwrap_or(0);
    let mut seen = vec![0.0_f32; channels];
    let mut finite = true;
    walk.visit(value, cancel, |batch| {
        if channels == 0 || batch.dims().last() != Some(&channels) {
            return Err(refuse(format!(
                "its input has the shape {:?}, and its weight {channels} inputs",
                batch.dims()
            )));
        }
        let data = batch
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .map_err(ExecError::from)?;
        for row in data.chunks_exact(channels) {
            for (most, x) in seen.iter_mut().zip(row) {
                *most = most.max(x.abs());
                finite &= x.is_finite();
            }
        }
        Ok(())
    })?;
    if finite {
        return Ok(seen);
    }
    Err(refuse(
        "its input is NaN or infinite on the calibration data: keep it at fp32".to_owned(),
    ))
}

fn over_median(ranges: &[f32]) -> f32 {
    let mut sorted = ranges.to_vec();
    sorted.sort_by(f32::total_cmp);
    let (median, most) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
    if median > 0.0 { most / median } else { 1.0 }
}

/// The layer norm over the last axis that makes `value`, where nobody but the set reads what is in it.
fn norm_before(
    graph: &Graph,
    wiring: &Wiring,
    value: ValueId,
    set: &[&Layer],
    channels: usize,
) -> Option<usize> {
    let norm = wiring.producer(value)?;
    let node = &graph.nodes[norm];
    let Op::LayerNormalization { axis, .. } = node.op else {
        return None;
    };
    let rank = graph.value(value).shape.as_ref().map(Vec::len);
    let last = axis == -1 || rank.is_some_and(|r| axis + 1 == r as i64);
    let constant = |slot: usize| match node.inputs.get(slot).copied().flatten() {
        None => slot == 2,
        Some(id) => graph
            .value(id)
            .data
            .as_ref()
            .is_some_and(|d| d.element == ElementType::F32 && d.len() == channels),
    };
    let ours = |reader: &usize| {
        matches!(graph.nodes[*reader].op, Op::Shape { .. })
            || set.iter().any(|l| l.node.0 as usize == *reader)
    };
    let alone = !wiring.is_output(value) && wiring.consumers(value).iter().all(ours);
    // The other results of a norm, its mean and deviation, are not divided.
    (last && constant(1) && constant(2) && alone).then_some(norm)
}

/// Gives a norm a scale and a shift divided by the factors.
fn divide_in_norm(graph: &mut Graph, edit: &mut Edit<'_>, norm: usize, factors: &[f32]) {
    for slot in [1, 2] {
        let Some(id) = graph.nodes[norm].inputs.get(slot).copied().flatten() else {
            continue;
        };
        let Some(data) = &graph.value(id).data else {
            continue;
        };
        let divided: Vec<f32> = data
            .to_f32_vec()
            .iter()
            .zip(factors)
            .map(|(v, s)| v / s)
            .collect();
        let data = TensorData::from_f32(&data.shape.clone(), &divided);
        let name = edit
            .names
            .unique(format!("{}_smoothed", graph.value(id).name));
        let fresh = add_constant(graph, name, data);
        graph.nodes[norm].inputs[slot] = Some(fresh);
    }
}

/// Puts a multiplication by 1/s between `value` and the layers of the set.
fn multiply(
    graph: &mut Graph,
    edit: &mut Edit<'_>,
    value: ValueId,
    set: &[&Layer],
    factors: &[f32],
) {
    let name = graph.value(value).name.clone();
    let inverse: Vec<f32> = factors.iter().map(|s| 1.0 / s).collect();
    let constant = edit.names.unique(format!("{name}_smoothing"));
    let constant = add_constant(
        graph,
        constant,
        TensorData::from_f32(&[inverse.len()], &inverse),
    );
    let output = edit.names.unique(format!("{name}_smoothed"));
    let output = add_value(graph, output, ElementType::F32, value);
    let node = Node {
        name: edit.names.unique(format!("{name}_smooth")),
        op: Op::Binary(BinaryOp::Mul),
        inputs: vec![Some(value), Some(constant)],
        outputs: vec![Some(output)],
    };
    let first = set.iter().map(|l| l.node.0 as usize).min().unwrap_or(0);
    edit.new.entry(first).or_default().push(node);
    for layer in set {
        graph.node_mut(layer.node).inputs[0] = Some(output);
    }
}
