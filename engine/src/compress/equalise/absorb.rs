//! Absorbing high biases (Nagel et al. 2019, §4.1.3): r(Wx + b − c) = r(Wx + b) − c for a ReLU r wherever Wx + b ≥ c ≥ 0, so the constant
//! c can go from a layer's bias over the ReLU into the next one's. The value between spans less, and its steps become finer. Exact
//! only where no value lies below c: how many do is counted where there are data.

use super::{
    Absorb, EqualizeSettings,
    factors::{each, set_bias},
    pairs::{Pair, bias_of},
};
use crate::{
    compress::{
        CompressError, Model, NOT_ABSORBED, PassContext,
        norms::NormStatistics,
        segments::{Walk, batches},
        wiring::{Names, Wiring, add_constant, float_weight},
    },
    exec::{CancelToken, ExecError},
    graph::{Graph, Layer, Op, Padding, TensorData, Window},
};

/// What is absorbed between a pair.
struct Constant {
    /// By channel of the first; 0 where nothing is.
    values: Vec<f64>,
    /// Share of the values of those channels, over the samples, that lie below; `None` without data.
    below: Option<f64>,
}

/// Absorbs what each pair allows; in words for each of them what was done, or why nothing was. Nothing at all where it is not asked for.
pub(super) fn absorb(
    model: &mut Model,
    layers: &[Layer],
    pairs: &[Pair],
    settings: &EqualizeSettings,
    norms: Option<&NormStatistics>,
    context: &PassContext<'_>,
) -> Result<Vec<String>, CompressError> {
    if settings.absorb == Absorb::Off {
        return Ok(Vec::new());
    }
    if settings.absorb == Absorb::Minimum && context.data.is_none() {
        return Err(CompressError::Invalid(
            "absorb: the least value of a channel is looked for on calibration samples: give a task, or use deviations(3.0), which takes the statistics of folded batch norms without one"
                .to_owned(),
        ));
    }
    let able: Vec<Result<(), String>> = pairs
        .iter()
        .map(|pair| able(&model.graph, layers, pair))
        .collect();
    let mut walk = None;
    if context.data.is_some() && able.iter().any(Result::is_ok) {
        let what = "absorbing high biases";
        let images = batches(&model.graph, context.data, settings.samples, what)?;
        walk = Some(Walk::new(model.graph.clone(), images)?);
    }
    // All are looked for in the network as it was: absorbing before a layer changes what the layer gives only where values lay below.
    let mut found: Vec<Result<Constant, String>> = Vec::with_capacity(pairs.len());
    for (pair, able) in pairs.iter().zip(able) {
        let layer = &layers[pair.first];
        let constant = match (able, &mut walk) {
            (Err(reason), _) => Err(reason),
            (Ok(()), Some(walk)) => seen(walk, layer, pair, settings.absorb, context.cancel)?,
            (Ok(()), None) => known(layer, pair, settings.absorb, norms),
        };
        found.push(constant);
    }
    let mut words = Vec::with_capacity(pairs.len());
    for (pair, constant) in pairs.iter().zip(found) {
        let taken = |c: &Constant| c.values.iter().any(|v| *v > 0.0);
        words.push(match constant {
            Err(reason) => format!("{NOT_ABSORBED}{reason}"),
            Ok(constant) if !taken(&constant) => {
                format!("{NOT_ABSORBED}{}", nothing(settings.absorb))
            }
            Ok(constant) => {
                move_over(model, layers, pair, &constant.values)?;
                said(
                    &model.graph,
                    pair,
                    &constant,
                    walk.as_ref().map(Walk::samples),
                )
            }
        });
    }
    Ok(words)
}

/// Why no channel has a constant.
fn nothing(absorb: Absorb) -> String {
    match absorb {
        Absorb::Deviations(n) => {
            format!("no channel's mean less {n} deviations is above zero")
        }
        _ => "no channel stays above zero".to_owned(),
    }
}

/// Whether a constant can be moved from the first of a pair into the second.
fn able(graph: &Graph, layers: &[Layer], pair: &Pair) -> Result<(), String> {
    for (layer, takes) in [
        (&layers[pair.first], "lose"),
        (&layers[pair.second], "take"),
    ] {
        let name = &layer.id.0;
        match graph.node(layer.node).op {
            Op::Conv { .. } => {}
            Op::Gemm { beta, .. } if beta != 0.0 => {}
            Op::Gemm { .. } => return Err(format!("{name} multiplies its bias by 0")),
            _ => return Err(format!("a {} has no bias to {takes} it ({name})", layer.op)),
        }
        let channels = layer.weight_shape[layer.channel_axis];
        bias_of(graph, layer, channels).map_err(|reason| format!("{name}: {reason}"))?;
    }
    // What is padded with zeros would have to be padded with −c.
    if let Op::Conv { window, .. } = &graph.node(layers[pair.second].node).op
        && pads(window)
    {
        return Err(format!(
            "{} pads with zeros, which would have to be moved too",
            layers[pair.second].id.0
        ));
    }
    for &node in &pair.between {
        if let Op::AveragePool {
            window,
            ceil,
            count_include_pad: true,
        } = &graph.nodes[node].op
            && (*ceil || pads(window))
        {
            return Err(format!(
                "{} counts zeros that it pads with, which would have to be moved too",
                graph.nodes[node].name
            ));
        }
    }
    Ok(())
}

fn pads(window: &Window) -> bool {
    match &window.padding {
        Padding::Explicit(pads) => pads.iter().any(|p| *p > 0),
        // How much depends on the input's extent; a single place needs none.
        Padding::SameUpper | Padding::SameLower => window.kernel.iter().any(|k| *k > 1),
        Padding::Valid => false,
    }
}

/// The constant by what the layer gives on the samples.
fn seen(
    walk: &mut Walk,
    layer: &Layer,
    pair: &Pair,
    absorb: Absorb,
    cancel: &CancelToken,
) -> Result<Result<Constant, String>, CompressError> {
    let channels = pair.factors.len();
    let (mut sums, mut squares) = (vec![0.0_f64; channels], vec![0.0_f64; channels]);
    let mut least = vec![f64::INFINITY; channels];
    let mut count = 0_usize;
    by_channel(walk, layer, channels, cancel, |channel, run| {
        for value in run.iter().map(|v| f64::from(*v)) {
            sums[channel] += value;
            squares[channel] += value * value;
            least[channel] = least[channel].min(value);
        }
        count += run.len();
    })?;
    let each = (count / channels.max(1)).max(1) as f64;
    let values: Vec<f64> = (0..channels)
        .map(|c| {
            let mean = sums[c] / each;
            let deviation = (squares[c] / each - mean * mean).max(0.0).sqrt();
            match absorb {
                Absorb::Off => 0.0,
                Absorb::Minimum => least[c],
                Absorb::Deviations(n) => mean - f64::from(n) * deviation,
            }
        })
        .map(|c| if c > 0.0 { c } else { 0.0 })
        .collect();
    if !sums.iter().chain(&values).all(|v| v.is_finite()) {
        let reason = "it gives NaN or infinite values on the calibration samples";
        return Ok(Err(reason.to_owned()));
    }
    let (mut below, mut all) = (0_usize, 0_usize);
    if values.iter().any(|v| *v > 0.0) {
        by_channel(walk, layer, channels, cancel, |channel, run| {
            if values[channel] > 0.0 {
                all += run.len();
                let low = |v: &&f32| f64::from(**v) < values[channel];
                below += run.iter().filter(low).count();
            }
        })?;
    }
    Ok(Ok(Constant {
        values,
        below: Some(below as f64 / all.max(1) as f64),
    }))
}

/// Calls `see` with the values of each channel of each sample, in order.
fn by_channel(
    walk: &mut Walk,
    layer: &Layer,
    channels: usize,
    cancel: &CancelToken,
    mut see: impl FnMut(usize, &[f32]),
) -> Result<(), CompressError> {
    walk.visit(layer.output, cancel, |batch| {
        let dims = batch.dims();
        if dims.get(1) != Some(&channels) {
            return Err(CompressError::Layer {
                message: format!(
                    "its output has the shape {dims:?}, not one of {channels} channels"
                ),
                layer: layer.id.0.to_string(),
            });
        }
        let inner: usize = dims.iter().skip(2).product();
        let flat = batch.flatten_all().and_then(|t| t.to_vec1::<f32>());
        let values = flat.map_err(ExecError::from)?;
        for (at, run) in values.chunks_exact(inner.max(1)).enumerate() {
            see(at % channels, run);
        }
        Ok(())
    })
}

/// The constant by what the batch norm folded into the layer knew, in units of the layer as it is scaled now.
fn known(
    layer: &Layer,
    pair: &Pair,
    absorb: Absorb,
    norms: Option<&NormStatistics>,
) -> Result<Constant, String> {
    let Absorb::Deviations(count) = absorb else {
        return Err("there are no data to look at".to_owned());
    };
    let norm = norms.and_then(|n| n.of(&layer.id));
    let Some(norm) = norm.filter(|n| n.len() == pair.factors.len()) else {
        return Err(
            "there are no data to look at, and no batch norm was folded into it, or the network has changed since"
                .to_owned(),
        );
    };
    let low = |((mean, deviation), by): (&(f64, f64), &f64)| {
        let c = (mean - f64::from(count) * deviation) / by;
        if c.is_finite() && c > 0.0 { c } else { 0.0 }
    };
    Ok(Constant {
        values: norm.iter().zip(&pair.factors).map(low).collect(),
        below: None,
    })
}

/// Takes constants out of the first's bias and puts what the second makes of them into its own.
fn move_over(
    model: &mut Model,
    layers: &[Layer],
    pair: &Pair,
    values: &[f64],
) -> Result<(), CompressError> {
    let second = &layers[pair.second];
    let refuse = |layer: &Layer, message: String| CompressError::Layer {
        message,
        layer: layer.id.0.to_string(),
    };
    let weights = float_weight(&model.graph, second).map_err(|m| refuse(second, m))?;
    let mut passed = vec![0.0_f64; second.weight_shape[second.channel_axis]];
    each(&model.graph, second, |element, output, input| {
        passed[output] += f64::from(weights[element]) * values[input / pair.spread];
    });
    let taken: Vec<f64> = values.iter().map(|c| -c).collect();
    let mut names = Names::of(&model.graph);
    for (layer, added) in [(&layers[pair.first], taken), (second, passed)] {
        let graph = &mut model.graph;
        let wiring = Wiring::of(graph);
        let (alpha, beta) = match graph.node(layer.node).op {
            Op::Gemm { alpha, beta, .. } => (f64::from(alpha), f64::from(beta)),
            _ => (1.0, 1.0),
        };
        // What the first loses is lost behind its product.
        let product = if layer.node == second.node {
            alpha
        } else {
            1.0
        };
        let factor = product / beta;
        let old = bias_of(graph, layer, added.len()).map_err(|m| refuse(layer, m))?;
        let before = old.as_ref().map(|(_, values)| values.clone());
        let before = before.unwrap_or_else(|| vec![0.0; added.len()]);
        let fresh: Vec<f32> = before
            .iter()
            .zip(&added)
            .map(|(b, add)| (f64::from(*b) + add * factor) as f32)
            .collect();
        if fresh.iter().any(|v| !v.is_finite()) {
            let message = "absorbing its bias gives NaN or infinite values: leave it out";
            return Err(refuse(layer, message.to_owned()));
        }
        match old {
            Some((id, _)) => set_bias(graph, &wiring, &mut names, layer, id, &fresh),
            None => {
                let name = names.unique(format!("{}_bias", layer.id.0));
                let data = TensorData::from_f32(&[fresh.len()], &fresh);
                let id = add_constant(graph, name, data);
                let inputs = &mut graph.node_mut(layer.node).inputs;
                inputs.resize(3, None);
                inputs[2] = Some(id);
            }
        }
    }
    Ok(())
}

fn said(graph: &Graph, pair: &Pair, constant: &Constant, samples: Option<usize>) -> String {
    let taken = || constant.values.iter().filter(|v| **v > 0.0);
    let most = taken().fold(0.0_f64, |a, v| a.max(*v));
    let moved = format!(
        "up to {most:.3} of the bias of {} channels absorbed by the next layer",
        taken().count()
    );
    let linear = pair.between.iter().all(|n| !bends(&graph.nodes[*n].op));
    match (linear, constant.below, samples) {
        (true, _, _) => format!("{moved}: exact, as nothing between bends"),
        (_, Some(0.0), Some(samples)) => {
            format!(
                "{moved}: exact on {samples} calibration samples, none of whose values lies below"
            )
        }
        (_, Some(below), Some(samples)) => format!(
            "{moved}: exact but for the {:.3} % of their values on {samples} calibration samples that lie below",
            below * 100.0
        ),
        _ => format!(
            "{moved} by the statistics of the folded batch norm: how many values lie below was not counted, as there are no data"
        ),
    }
}

/// Whether an operator between a pair changes at zero.
fn bends(op: &Op) -> bool {
    !matches!(
        op,
        Op::Identity
            | Op::Dropout
            | Op::Flatten { .. }
            | Op::MaxPool { .. }
            | Op::AveragePool { .. }
            | Op::GlobalAveragePool
            | Op::GlobalMaxPool
    )
}
