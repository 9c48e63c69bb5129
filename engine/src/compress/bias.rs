//! Empirical bias correction (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, §4.2, with
//! data): quantisation shifts the mean of a layer's outputs; layer by layer, with the layers before already quantised and
//! corrected, the shift of each channel is measured against the float network and taken out of the bias. Where a ReLU or a Clip follows, the
//! means behind it count, unlike in the paper: what it cuts off reaches no layer, is off most where roundings were chosen by what is
//! left, and would move the bias for nothing.

use super::{
    Account, ByLayer, CompressError, Model, Outcome, PassContext,
    equalise::set_bias,
    layerwise::{Walks, activation, layer_by_layer},
    pack::quantized_layers,
    prune::check_known,
    segments::Walk,
    wiring::{Names, Wiring, add_constant},
};
use crate::{
    exec::{CancelToken, ExecError},
    graph::{ElementType, Graph, Layer, LayerId, Op, TensorData, ValueId},
};
use std::collections::BTreeSet;

/// Takes the mean shift of quantisation out of biases; see the file's first lines.
pub struct CorrectBias {
    /// Those it is to be done to; layers that are not quantised are left alone, with the reason.
    pub layers: BTreeSet<LayerId>,
    /// Samples of the calibration split.
    pub samples: usize,
}

impl ByLayer for CorrectBias {
    fn called(&self) -> &'static str {
        "correct bias"
    }

    fn run(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Model, Account), CompressError> {
        let layers = model.graph.layers();
        check_known(&layers, self.layers.iter())?;
        let kept = quantized_layers(&model.graph);
        let wiring = Wiring::of(&model.graph);
        let mut names = Names::of(&model.graph);
        let plans: Vec<Result<(), String>> = layers
            .iter()
            .zip(&kept)
            .map(|(layer, kept)| {
                if !self.layers.contains(&layer.id) {
                    return Err("not asked for".to_owned());
                }
                if kept.weight.is_none() && kept.input.is_none() {
                    return Err("it is not quantised".to_owned());
                }
                correctable(&model.graph, layer)
            })
            .collect();
        let samples = self.samples;
        let account = layer_by_layer(
            (self.called(), "bias correction"),
            &mut model,
            plans,
            samples,
            context,
            progress,
            |model, (_, layer), (), walks| {
                let Walks { quantised, float } = walks;
                let limits = activation(&model.graph, &wiring, layer.output);
                let channels = channels(&model.graph, layer);
                let measure = |walk: &mut Walk, shift: &[f64]| {
                    means(walk, layer, limits, shift, context.cancel)
                };
                let none = vec![0.0; channels];
                let wanted = measure(float, &none)?.of;
                let found = shift(&wanted, limits, |shift| measure(quantised, shift))?;
                let shift = &found.shift;
                if !found.after.is_finite() {
                    return Err(CompressError::Layer {
                        message:
                            "its output is NaN or infinite on the calibration data: keep it at fp32"
                                .to_owned(),
                        layer: layer.id.0.to_string(),
                    });
                }
                let graph = &mut model.graph;
                correct(graph, &wiring, &mut names, layer, shift);
                // The walk goes on with the same values under the same numbers.
                let at = quantised.graph.values.len();
                let fresh = graph.values.iter().skip(at).cloned();
                quantised.graph.values.extend(fresh);
                let node = layer.node.0 as usize;
                quantised.graph.nodes[node] = graph.nodes[node].clone();
                if let Some(id) = graph.nodes[node].inputs.get(2).copied().flatten() {
                    *quantised.graph.value_mut(id) = graph.value(id).clone();
                }
                let power = wanted.iter().map(|m| m * m).sum::<f64>();
                let size = (power / wanted.len().max(1) as f64).sqrt();
                let behind = match limits {
                    (f32::NEG_INFINITY, f32::INFINITY) => "",
                    _ => " behind the activation function",
                };
                Ok(Outcome::Done(format!(
                    "means of {} channels{behind} off by at most {:.3e} before, {:.3e} after (their root mean square is {size:.3e}), {} samples",
                    shift.len(),
                    found.before,
                    found.after,
                    quantised.samples()
                )))
            },
        )?;
        Ok((model, account))
    }
}

/// Whether a layer has, or can be given, a bias by channel.
fn correctable(graph: &Graph, layer: &Layer) -> Result<(), String> {
    let node = graph.node(layer.node);
    match node.op {
        Op::Conv { .. } | Op::ConvTranspose { .. } | Op::Gemm { .. } => {}
        _ => return Err(format!("a {} has no bias to correct", layer.op)),
    }
    let Some(id) = node.inputs.get(2).copied().flatten() else {
        return Ok(());
    };
    let data = graph.value(id).data.as_ref();
    let Some(data) = data.filter(|d| d.element == ElementType::F32) else {
        return Err("its bias is not a float constant".to_owned());
    };
    let channels = channels(graph, layer);
    if data.len() == 1 || data.len() == channels {
        Ok(())
    } else {
        Err(format!(
            "its bias has {} elements for {channels} channels",
            data.len()
        ))
    }
}

fn channels(graph: &Graph, layer: &Layer) -> usize {
    let of_group = layer.weight_shape[layer.channel_axis];
    match graph.node(layer.node).op {
        Op::ConvTranspose { group, .. } => of_group * group,
        _ => of_group,
    }
}

/// What a layer's channels give behind the activation function.
pub(super) struct Means {
    pub of: Vec<f64>,
    /// Shares of the positions that it does not cut off.
    pub inside: Vec<f64>,
}

/// Where less than this share of the positions is not cut off, a bias is not led by them.
const LEAST_INSIDE: f64 = 0.01;
/// Newton's steps towards the wanted means behind a function that cuts off.
const STEPS: usize = 4;
/// Of the largest shift, what may be left.
const LEFT: f64 = 1e-3;

/// What brings means nearest to what is wanted, by channel, and how far off the worst of them was and is.
pub(super) struct Found {
    pub shift: Vec<f64>,
    pub before: f64,
    pub after: f64,
}

/// The shift of each channel with which the means come to what is wanted; where `limits` cut off, as near as a few steps lead.
pub(super) fn shift(
    wanted: &[f64],
    limits: (f32, f32),
    mut means: impl FnMut(&[f64]) -> Result<Means, CompressError>,
) -> Result<Found, CompressError> {
    let cuts_off = limits.0.is_finite() || limits.1.is_finite();
    let mut shift = vec![0.0; wanted.len()];
    // Of each channel: what leaves least, and how much that is.
    let mut best = vec![(0.0, f64::INFINITY); wanted.len()];
    let (mut before, mut after) = (0.0, 0.0);
    for step in 0..=STEPS {
        let seen = means(&shift)?;
        after = 0.0;
        for (c, shift) in shift.iter_mut().enumerate() {
            let missing = wanted[c] - seen.of[c];
            if missing.abs() < best[c].1 {
                best[c] = (*shift, missing.abs());
            }
            after = f64::max(after, best[c].1);
            if seen.inside[c] >= LEAST_INSIDE {
                *shift += missing / seen.inside[c];
            }
        }
        if step == 0 {
            before = after;
        }
        // With nothing cut off the first step is exact.
        if !cuts_off && step == 1 || after <= before * LEFT {
            break;
        }
    }
    Ok(Found {
        shift: best.into_iter().map(|(shift, _)| shift).collect(),
        before,
        after,
    })
}

/// Means over all samples and positions of a layer's output with a shift by channel, behind a function that holds it in `limits`; summed
/// in order.
fn means(
    walk: &mut Walk,
    layer: &Layer,
    (lo, hi): (f32, f32),
    shift: &[f64],
    cancel: &CancelToken,
) -> Result<Means, CompressError> {
    let channels = shift.len();
    let mut sums = vec![(0.0_f64, 0_usize); channels];
    let mut count = 0_usize;
    walk.visit(layer.output, cancel, |batch| {
        let dims = batch.dims();
        let data = batch
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .map_err(ExecError::from)?;
        // Gemm: the last axis; convolutions: the one behind the samples.
        let inner: usize = dims.iter().skip(2).product();
        if dims.get(1) != Some(&channels) {
            return Err(CompressError::Layer {
                message: format!(
                    "its output has the shape {dims:?}, not one of {channels} channels"
                ),
                layer: layer.id.0.to_string(),
            });
        }
        for (at, run) in data.chunks_exact(inner.max(1)).enumerate() {
            let (sum, inside) = &mut sums[at % channels];
            let shift = shift[at % channels] as f32;
            for v in run {
                let v = v + shift;
                *sum += f64::from(v.clamp(lo, hi));
                *inside += usize::from(v > lo && v < hi);
            }
        }
        count += data.len() / channels;
        Ok(())
    })?;
    let count = count.max(1) as f64;
    Ok(Means {
        of: sums.iter().map(|(sum, _)| sum / count).collect(),
        inside: sums.iter().map(|(_, n)| *n as f64 / count).collect(),
    })
}

fn correct(graph: &mut Graph, wiring: &Wiring, names: &mut Names, layer: &Layer, shift: &[f64]) {
    let node = graph.node_mut(layer.node);
    let mut factor = 1.0;
    let mut ignored = false;
    let old: Option<ValueId> = node.inputs.get(2).copied().flatten();
    if let Op::Gemm { beta, .. } = &mut node.op {
        // A Gemm that multiplies its bias by 0 has none.
        ignored = *beta == 0.0;
        if ignored || old.is_none() {
            *beta = 1.0;
        }
        factor = f64::from(*beta);
    }
    node.inputs.resize(3, None);
    let values = old.and_then(|id| Some(graph.value(id).data.as_ref()?.to_f32_vec()));
    let values: Vec<f32> = shift
        .iter()
        .enumerate()
        .map(|(c, shift)| {
            let before = values
                .as_ref()
                .filter(|_| !ignored)
                .map_or(0.0, |b| f64::from(b[if b.len() == 1 { 0 } else { c }]));
            (before + shift / factor) as f32
        })
        .collect();
    match old {
        Some(old) => set_bias(graph, wiring, names, layer, old, &values),
        None => {
            let name = names.unique(format!("{}_bias", layer.id.0));
            let data = TensorData::from_f32(&[values.len()], &values);
            let id = add_constant(graph, name, data);
            graph.node_mut(layer.node).inputs[2] = Some(id);
        }
    }
}
