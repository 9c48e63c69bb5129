//! Layers of a network whose batch norms are folded: scaled and shifted so that every channel has the mean and the spread it
//! had before channels went. What taking statistics again is to batch norms; of biases alone it is bias correction (Nagel
//! et al. 2019, §4.2), with the spread it is what REPAIR does for merged networks (Jordan et al. 2023).

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

/// Means and mean squares by channel.
#[derive(Clone, Default)]
struct Moments {
    means: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    fn of(tensor: &Tensor) -> Result<Self, ExecError> {
        let (means, squares) = moments(tensor)?;
        Ok(Self { means, squares })
    }

    /// Adds those of so many samples more; all that was added has to be divided by the number of samples.
    fn add(&mut self, other: &Self, weight: f64) {
        for (sums, values) in [
            (&mut self.means, &other.means),
            (&mut self.squares, &other.squares),
        ] {
            sums.resize(values.len(), 0.0);
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value * weight;
            }
        }
    }

    fn divided(mut self, by: f64) -> Self {
        let all = self.means.iter_mut().chain(&mut self.squares);
        all.for_each(|sum| *sum /= by);
        self
    }

    fn of_channels(&self, kept: Option<&[usize]>) -> Self {
        let Some(kept) = kept else {
            return self.clone();
        };
        let pick = |values: &[f64]| kept.iter().map(|&c| values[c]).collect();
        Self {
            means: pick(&self.means),
            squares: pick(&self.squares),
        }
    }

    fn variances(&self) -> Vec<f64> {
        let pairs = self.means.iter().zip(&self.squares);
        pairs.map(|(m, s)| (s - m * m).max(0.0)).collect()
    }
}

/// What a layer's channels are multiplied by, and what is added then.
struct Affine {
    factors: Vec<f64>,
    shifts: Vec<f64>,
}

/// A channel that hardly varies is not blown up: this share of the mean variance is added to both.
const FLOOR: f64 = 1e-3;

impl Affine {
    /// From `own` to `wanted`; the means only where the layer cannot be scaled.
    fn between(wanted: &Moments, own: &Moments, scaled: bool) -> Self {
        let (to, from) = (wanted.variances(), own.variances());
        let floor = FLOOR * to.iter().sum::<f64>() / to.len().max(1) as f64;
        let factor = |(to, from): (&f64, &f64)| match scaled && from + floor > 0.0 {
            true => ((to + floor) / (from + floor)).sqrt(),
            false => 1.0,
        };
        let factors: Vec<f64> = to.iter().zip(&from).map(factor).collect();
        let means = wanted.means.iter().zip(&own.means);
        let shifts = means.zip(&factors).map(|((to, from), f)| to - f * from);
        Self {
            shifts: shifts.collect(),
            factors,
        }
    }
}

/// A layer of the pruned graph.
struct Layer {
    bias: ValueId,
    /// The weight and its axis of output channels, where it can be scaled by channel.
    weight: Option<(ValueId, usize)>,
    /// Of the original's output channels, those that are left; `None`: all.
    kept: Option<Vec<usize>>,
    /// What the original computes, as a value of it.
    original: ValueId,
    /// Over the samples so far: what the original's channels have, and what its own have.
    wanted: Moments,
    own: Moments,
    samples: f64,
}

impl Layer {
    fn affine(&self, wanted: &Moments, own: &Moments) -> Affine {
        Affine::between(wanted, own, self.weight.is_some())
    }

    /// Bias and weight with the whole of the samples' correction in them.
    fn corrected(self, graph: &Graph) -> Option<Vec<(ValueId, TensorData)>> {
        let (wanted, own) = (
            self.wanted.divided(self.samples),
            self.own.divided(self.samples),
        );
        let Affine { factors, shifts } = Affine::between(&wanted, &own, self.weight.is_some());
        let changed = |id: ValueId, change: &dyn Fn(usize, f64) -> f64| {
            let data = graph.value(id).data.as_ref()?;
            let values = data.to_f32_vec();
            let values: Vec<f32> = values
                .iter()
                .enumerate()
                .map(|(at, v)| change(at, f64::from(*v)) as f32)
                .collect();
            Some((
                id,
                TensorData::from_f32_as(data.element, &data.shape, &values),
            ))
        };
        let mut all = vec![changed(self.bias, &|c, b| factors[c] * b + shifts[c])?];
        if let Some((weight, axis)) = self.weight {
            let inner: usize = graph.value(weight).data.as_ref()?.shape[axis + 1..]
                .iter()
                .product();
            let channel = |at: usize| at / inner % factors.len();
            all.push(changed(weight, &|at, w| factors[channel(at)] * w)?);
        }
        Some(all)
    }
}

/// Corrects the layers of `pruned`, which is `structure`'s graph without `removed`, by the calibration split. How many.
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
        let channels = pruned
            .value(new.output)
            .shape
            .as_ref()
            .and_then(|s| s.get(1)?.known());
        let own = |id: ValueId| {
            let readers = pruned.nodes.iter().flat_map(|n| n.inputs.iter().flatten());
            readers.filter(|v| **v == id).count() == 1
        };
        let shape = |id: ValueId| pruned.value(id).data.as_ref().map(|d| &d.shape);
        // A bias of one value for all channels, or one that others read, cannot be corrected by channel.
        let Some(bias) = new.bias.filter(|&b| {
            shape(b).is_some_and(|s| s.len() == 1 && Some(s[0]) == channels) && own(b)
        }) else {
            continue;
        };
        let axis = new.channel_axis;
        let by_channel =
            |w: ValueId| shape(w).and_then(|s| s.get(axis).copied()) == channels && own(w);
        if plain {
            let layer = Layer {
                bias,
                weight: by_channel(new.weight).then_some((new.weight, axis)),
                kept,
                original: old.output,
                wanted: Moments::default(),
                own: Moments::default(),
                samples: 0.0,
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
        found: layers
            .values()
            .map(|l| (l.original, Moments::default()))
            .collect(),
    };
    let mut shift = Shift {
        layers,
        wanted: BTreeMap::new(),
    };
    for chunk in chunks(0..samples, BATCH, None) {
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let images = chunk.images(data)?;
        before.run(std::slice::from_ref(&images), &mut means, context.cancel)?;
        shift.wanted.clone_from(&means.found);
        after.run(std::slice::from_ref(&images), &mut shift, context.cancel)?;
    }
    let mut done = 0;
    for layer in shift.layers.into_values().filter(|l| l.samples > 0.0) {
        let Some(data) = layer.corrected(pruned) else {
            continue;
        };
        for (id, data) in data {
            pruned.set_data(id, data);
        }
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
        let wanted = moments_of(&mut before, layer.original, context)?;
        layer.wanted = wanted.of_channels(layer.kept.as_deref());
        layer.own = moments_of(&mut after, new.output, context)?;
        layer.samples = 1.0;
        let Some(data) = layer.corrected(pruned) else {
            continue;
        };
        for (id, data) in data {
            after.graph.set_data(id, data.clone());
            pruned.set_data(id, data);
        }
        done += 1;
    }
    Ok(done)
}

/// Moments of a value by channel over all samples.
fn moments_of(
    walk: &mut Walk,
    value: ValueId,
    context: &PassContext<'_>,
) -> Result<Moments, CompressError> {
    let mut sums = Moments::default();
    let mut total = 0.0;
    walk.visit(value, context.cancel, |x| {
        let weight = x.dim(0).map_err(ExecError::from)? as f64;
        sums.add(&Moments::of(x)?, weight);
        total += weight;
        Ok(())
    })?;
    Ok(sums.divided(total))
}

/// Moments of the original's layers by channel, over one mini-batch.
struct Means {
    found: BTreeMap<ValueId, Moments>,
}

impl Taps for Means {
    fn wants(&self, value: ValueId) -> bool {
        self.found.contains_key(&value)
    }
    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        self.found.insert(value, Moments::of(tensor)?);
        Ok(None)
    }
}

/// Brings every layer of the pruned network to the original's moments as it goes, and sums both up.
struct Shift {
    layers: BTreeMap<ValueId, Layer>,
    wanted: BTreeMap<ValueId, Moments>,
}

impl Taps for Shift {
    fn wants(&self, value: ValueId) -> bool {
        self.layers.contains_key(&value)
    }
    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        let (Some(layer), own) = (self.layers.get_mut(&value), Moments::of(tensor)?) else {
            return Ok(None);
        };
        let Some(wanted) = self.wanted.get(&layer.original) else {
            return Ok(None);
        };
        let wanted = wanted.of_channels(layer.kept.as_deref());
        let samples = tensor.dim(0)? as f64;
        layer.wanted.add(&wanted, samples);
        layer.own.add(&own, samples);
        layer.samples += samples;
        let affine = layer.affine(&wanted, &own);
        let by_channel = |values: Vec<f64>| {
            let mut shape = vec![1; tensor.rank()];
            shape[1] = values.len();
            let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)
        };
        let (factors, shifts) = (by_channel(affine.factors)?, by_channel(affine.shifts)?);
        Ok(Some(
            tensor.broadcast_mul(&factors)?.broadcast_add(&shifts)?,
        ))
    }
}
