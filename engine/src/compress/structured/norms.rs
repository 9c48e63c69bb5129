//! Statistics of batch norms, taken again after channels are gone: their inputs have changed, and judging a pruned network
//! with the old ones says little (Li et al. 2020, EagleEye).

use super::measured::{BATCH, calibration};
use crate::{
    compress::{
        CompressError, PassContext,
        chunks::chunks,
        segments::{self, Walk},
    },
    exec::{ExecError, Mode, Program, Taps},
    graph::{Graph, Op, TensorData, ValueId},
};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

/// A batch norm and the sums over what it read.
struct Norm {
    parameters: [ValueId; 4],
    epsilon: f64,
    /// The batch that has come in and not yet gone out.
    current: Option<(Tensor, Vec<f64>, Vec<f64>)>,
    mean: Vec<f64>,
    square: Vec<f64>,
    weight: f64,
}

impl Norm {
    /// Counts a batch in.
    fn add(&mut self, (mean, square): (&[f64], &[f64]), weight: f64) {
        self.mean.resize(mean.len(), 0.0);
        self.square.resize(mean.len(), 0.0);
        for (sum, own) in self.mean.iter_mut().zip(mean) {
            *sum += own * weight;
        }
        for (sum, own) in self.square.iter_mut().zip(square) {
            *sum += own * weight;
        }
        self.weight += weight;
    }

    /// Sets the graph's mean and variance to what was counted.
    fn write(&self, graph: &mut Graph) {
        let mean: Vec<f64> = self.mean.iter().map(|m| m / self.weight).collect();
        let variance: Vec<f32> = self
            .square
            .iter()
            .zip(&mean)
            .map(|(s, m)| (s / self.weight - m * m).max(0.0) as f32)
            .collect();
        let mean: Vec<f32> = mean.into_iter().map(|m| m as f32).collect();
        for (id, values) in [(self.parameters[2], mean), (self.parameters[3], variance)] {
            graph.set_data(id, TensorData::from_f32(&[values.len()], &values));
        }
    }
}

struct Estimate<'a> {
    graph: &'a Graph,
    /// By what is computed.
    norms: BTreeMap<ValueId, Norm>,
    /// From what a norm reads to what it computes.
    reads: BTreeMap<ValueId, Vec<ValueId>>,
}

/// Sets mean and variance of every batch norm to those over `samples` of the calibration split, each mini-batch normalised
/// by its own statistics on the way, as in training. A model that takes only so many samples at a time may see too few for
/// statistics of their own: there one norm after the other, on what those before it give with theirs. How many norms; 0 samples: none.
pub(super) fn reestimate(
    graph: &mut Graph,
    samples: usize,
    context: &PassContext<'_>,
) -> Result<usize, CompressError> {
    let mut norms = BTreeMap::new();
    let mut reads: BTreeMap<ValueId, Vec<ValueId>> = BTreeMap::new();
    for node in &graph.nodes {
        let Op::BatchNormalization { epsilon } = node.op else {
            continue;
        };
        let (
            [
                Some(x),
                Some(scale),
                Some(shift),
                Some(mean),
                Some(variance),
                ..,
            ],
            Some(Some(y)),
        ) = (&node.inputs[..], node.outputs.first())
        else {
            continue;
        };
        let parameters = [*scale, *shift, *mean, *variance];
        if parameters.iter().any(|p| graph.value(*p).data.is_none()) {
            continue;
        }
        reads.entry(*x).or_default().push(*y);
        norms.insert(
            *y,
            Norm {
                parameters,
                epsilon: f64::from(epsilon),
                current: None,
                mean: Vec::new(),
                square: Vec::new(),
                weight: 0.0,
            },
        );
    }
    if norms.is_empty() {
        return Ok(0);
    }
    let purpose = "taking statistics of batch norms again";
    if graph.fixed_batch().is_some() {
        return one_by_one(graph, norms, samples, purpose, context);
    }
    let (data, samples) = calibration(context, samples, purpose)?;
    let program = Program::compile(graph, Mode::Inference)?;
    let mut taps = Estimate {
        graph,
        norms,
        reads,
    };
    for chunk in chunks(0..samples, BATCH, None) {
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let images = chunk.images(data)?;
        program.run(std::slice::from_ref(&images), &mut taps, context.cancel)?;
    }
    let norms = taps.norms;
    let mut done = 0;
    for norm in norms.into_values().filter(|n| n.weight > 0.0) {
        norm.write(graph);
        done += 1;
    }
    Ok(done)
}

/// As [`reestimate`], in the network's order.
fn one_by_one(
    graph: &mut Graph,
    mut norms: BTreeMap<ValueId, Norm>,
    samples: usize,
    purpose: &str,
    context: &PassContext<'_>,
) -> Result<usize, CompressError> {
    let (_, samples) = calibration(context, samples, purpose)?;
    let batches = segments::batches(graph, context.data, samples, purpose)?;
    let mut walk = Walk::new(graph.clone(), batches)?;
    let mut done = 0;
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let (Some(Some(x)), Some(Some(y))) = (node.inputs.first(), node.outputs.first()) else {
            continue;
        };
        let Some(mut norm) = norms.remove(y) else {
            continue;
        };
        walk.visit(*x, context.cancel, |x| {
            let (mean, square) = moments(x)?;
            norm.add((&mean, &square), x.dim(0).map_err(ExecError::from)? as f64);
            Ok(())
        })?;
        norm.write(graph);
        norm.write(&mut walk.graph);
        done += 1;
    }
    Ok(done)
}

/// Mean and mean square by channel (axis 1), in a fixed order.
pub(super) fn moments(tensor: &Tensor) -> Result<(Vec<f64>, Vec<f64>), ExecError> {
    let shape = tensor.dims().to_vec();
    let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let channels = shape.get(1).copied().unwrap_or(1);
    let n = (values.len() / channels.max(1)).max(1) as f64;
    let mut sums = super::score::along(&shape, 1, |i| f64::from(values[i]));
    let mut squares = super::score::along(&shape, 1, |i| f64::from(values[i]).powi(2));
    sums.iter_mut().chain(&mut squares).for_each(|s| *s /= n);
    Ok((sums, squares))
}

impl Taps for Estimate<'_> {
    fn wants(&self, value: ValueId) -> bool {
        self.reads.contains_key(&value) || self.norms.contains_key(&value)
    }

    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        let mut replaced = None;
        if let Some(norm) = self.norms.get_mut(&value)
            && let Some((x, mean, square)) = norm.current.take()
        {
            norm.add((&mean, &square), x.dim(0)? as f64);
            let read = |id: ValueId| {
                let data = self.graph.value(id).data.as_ref();
                data.map(TensorData::to_f32_vec).unwrap_or_default()
            };
            let (scale, shift) = (read(norm.parameters[0]), read(norm.parameters[1]));
            let mut factor = Vec::with_capacity(mean.len());
            let mut offset = Vec::with_capacity(mean.len());
            for (c, mean) in mean.iter().enumerate() {
                let variance = (square[c] - mean * mean).max(0.0);
                let f = f64::from(scale[c]) / (variance + norm.epsilon).sqrt();
                factor.push(f as f32);
                offset.push((f64::from(shift[c]) - mean * f) as f32);
            }
            let mut shape = vec![1; x.rank()];
            shape[1] = factor.len();
            let factor = Tensor::from_vec(factor, shape.clone(), &Device::Cpu)?;
            let offset = Tensor::from_vec(offset, shape, &Device::Cpu)?;
            replaced = Some(x.broadcast_mul(&factor)?.broadcast_add(&offset)?);
        }
        if let Some(outputs) = self.reads.get(&value) {
            // A norm may read what a norm computes.
            let x = replaced.as_ref().unwrap_or(tensor);
            let (mean, square) = moments(x)?;
            for y in outputs {
                if let Some(norm) = self.norms.get_mut(y) {
                    norm.current = Some((x.clone(), mean.clone(), square.clone()));
                }
            }
        }
        Ok(replaced)
    }
}
