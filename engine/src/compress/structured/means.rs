//! Biases of a network whose batch norms are folded: corrected so that every layer's channels have on average what they had
//! before channels went (bias correction, Nagel et al. 2019, §4.2). What taking statistics again is to batch norms.

use super::{
    groups::Structure,
    labels::Unit,
    measured::{BATCH, calibration},
    norms::moments,
};
use crate::{
    compress::{
        CompressError, PassContext,
        chunks::chunks,
        segments::{self, Walk},
    },
    exec::{ExecError, Mode, Program, Taps},
    graph::{Graph, Op, TensorData, ValueId},
};
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// A layer of the pruned graph.
struct Layer {
    bias: ValueId,
    /// Of the original's output channels, those that are left; `None`: all.
    kept: Option<Vec<usize>>,
    /// What the original computes, as a value of it.
    original: ValueId,
    sums: Vec<f64>,
    weight: f64,
}

impl Layer {
    /// What its channels lack, by the original's means and its own.
    fn shifts(&self, wanted: &[f64], own: &[f64]) -> Vec<f64> {
        own.iter()
            .enumerate()
            .map(|(c, own)| {
                let from = self.kept.as_ref().map_or(c, |kept| kept[c]);
                wanted[from] - own
            })
            .collect()
    }

    /// The bias with the mean shift added.
    fn corrected(&self, graph: &Graph) -> Option<TensorData> {
        let data = graph.value(self.bias).data.as_ref()?;
        let values: Vec<f32> = data
            .to_f32_vec()
            .iter()
            .zip(&self.sums)
            .map(|(b, s)| (f64::from(*b) + s / self.weight) as f32)
            .collect();
        Some(TensorData::from_f32_as(data.element, &data.shape, &values))
    }
}

/// Corrects the biases of `pruned`, which is `structure`'s graph without `removed`, by the calibration split. How many.
pub(super) fn correct(
    structure: &Structure,
    removed: &BTreeSet<Unit>,
    pruned: &mut Graph,
    samples: usize,
    context: &PassContext<'_>,
) -> Result<usize, CompressError> {
    let mut layers: BTreeMap<ValueId, Layer> = BTreeMap::new();
    let found = pruned.layers();
    for old in &structure.layers {
        let Some(new) = found.iter().find(|l| l.id == old.id) else {
            continue;
        };
        let plain = match pruned.node(new.node).op {
            Op::Conv { .. } | Op::ConvTranspose { .. } => true,
            Op::Gemm { beta, .. } => beta == 1.0,
            _ => false,
        };
        let kept = structure.kept(old.output, 1, removed);
        // A bias of one value for all channels, or one that others read, cannot be corrected by channel.
        let Some(bias) = new.bias.filter(|b| {
            let shape = pruned.value(*b).data.as_ref().map(|d| &d.shape);
            let readers = pruned.nodes.iter().flat_map(|n| n.inputs.iter().flatten());
            let channels = pruned
                .value(new.output)
                .shape
                .as_ref()
                .and_then(|s| s.get(1)?.known());
            shape.is_some_and(|s| s.len() == 1 && Some(s[0]) == channels)
                && readers.filter(|v| *v == b).count() == 1
        }) else {
            continue;
        };
        if plain {
            let layer = Layer {
                bias,
                kept,
                original: old.output,
                sums: Vec::new(),
                weight: 0.0,
            };
            layers.insert(new.output, layer);
        }
    }
    if layers.is_empty() {
        return Ok(0);
    }
    let (data, samples) = calibration(context, samples, "correcting biases")?;
    if pruned.fixed_batch().is_some() {
        return one_by_one(structure, layers, pruned, samples, context);
    }
    let (before, after) = (
        Program::compile(&structure.trace.graph, Mode::Inference)?,
        Program::compile(pruned, Mode::Inference)?,
    );
    let mut means = Means {
        found: layers.values().map(|l| (l.original, Vec::new())).collect(),
    };
    let mut shift = Shift {
        layers,
        wanted: BTreeMap::new(),
    };
    for chunk in chunks(0..samples, BATCH, None) {
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let images = chunk.read(data)?.images;
        before.run(std::slice::from_ref(&images), &mut means, context.cancel)?;
        shift.wanted.clone_from(&means.found);
        after.run(std::slice::from_ref(&images), &mut shift, context.cancel)?;
    }
    let mut done = 0;
    for layer in shift.layers.into_values().filter(|l| l.weight > 0.0) {
        let Some(data) = layer.corrected(pruned) else {
            continue;
        };
        pruned.set_data(layer.bias, data);
        done += 1;
    }
    Ok(done)
}

/// As [`correct`], one layer after the other over all samples: a model that takes only so many samples at a time may see too few for
/// means of their own.
fn one_by_one(
    structure: &Structure,
    mut layers: BTreeMap<ValueId, Layer>,
    pruned: &mut Graph,
    samples: usize,
    context: &PassContext<'_>,
) -> Result<usize, CompressError> {
    let batches = segments::batches(pruned, context.data, samples, "correcting biases")?;
    let mut before = Walk::new(structure.trace.graph.clone(), batches.clone())?;
    let mut after = Walk::new(pruned.clone(), batches)?;
    let mut done = 0;
    for new in pruned.layers() {
        let Some(mut layer) = layers.remove(&new.output) else {
            continue;
        };
        let wanted = means_of(&mut before, layer.original, context)?;
        let own = means_of(&mut after, new.output, context)?;
        layer.sums = layer.shifts(&wanted, &own);
        layer.weight = 1.0;
        let Some(data) = layer.corrected(pruned) else {
            continue;
        };
        after.graph.set_data(layer.bias, data.clone());
        pruned.set_data(layer.bias, data);
        done += 1;
    }
    Ok(done)
}

/// Means of a value by channel over all samples.
fn means_of(
    walk: &mut Walk,
    value: ValueId,
    context: &PassContext<'_>,
) -> Result<Vec<f64>, CompressError> {
    let mut sums: Vec<f64> = Vec::new();
    let mut total = 0.0;
    walk.visit(value, context.cancel, |x| {
        let own = moments(x)?.0;
        let weight = x.dim(0).map_err(ExecError::from)? as f64;
        sums.resize(own.len(), 0.0);
        for (sum, own) in sums.iter_mut().zip(&own) {
            *sum += own * weight;
        }
        total += weight;
        Ok(())
    })?;
    Ok(sums.into_iter().map(|sum| sum / total).collect())
}

/// Means of the original's layers by channel, over one mini-batch.
struct Means {
    found: BTreeMap<ValueId, Vec<f64>>,
}

impl Taps for Means {
    fn wants(&self, value: ValueId) -> bool {
        self.found.contains_key(&value)
    }
    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        self.found.insert(value, moments(tensor)?.0);
        Ok(None)
    }
}

/// Shifts every layer of the pruned network to the original's means as it goes, and sums the shifts up.
struct Shift {
    layers: BTreeMap<ValueId, Layer>,
    wanted: BTreeMap<ValueId, Vec<f64>>,
}

impl Taps for Shift {
    fn wants(&self, value: ValueId) -> bool {
        self.layers.contains_key(&value)
    }
    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        let (Some(layer), own) = (self.layers.get_mut(&value), moments(tensor)?.0) else {
            return Ok(None);
        };
        let Some(wanted) = self.wanted.get(&layer.original) else {
            return Ok(None);
        };
        let shifts = layer.shifts(wanted, &own);
        let weight = tensor.dim(0)? as f64;
        layer.sums.resize(shifts.len(), 0.0);
        for (sum, shift) in layer.sums.iter_mut().zip(&shifts) {
            *sum += shift * weight;
        }
        layer.weight += weight;
        let mut shape = vec![1; tensor.rank()];
        shape[1] = shifts.len();
        let shifts: Vec<f32> = shifts.into_iter().map(|s| s as f32).collect();
        let shifts = Tensor::from_vec(shifts, shape, &Device::Cpu)?;
        Ok(Some(tensor.broadcast_add(&shifts)?))
    }
}
