//! A block by itself: the part of the network that computes it, and what it reads and should give for each sample.

use super::units::Unit;
use crate::{
    compress::{
        CompressError,
        segments::{Walk, moving, reads_shape},
        wiring::{WeightForm, Wiring, weight_form},
    },
    exec::{CancelToken, ExecError, Mode, NoTaps, Program},
    graph::{Graph, Layer, TensorData, ValueId},
};
use candle_core::{Device, Tensor};

/// Floats of the inputs, or of the outputs, of all samples that are kept at a time (256 MB).
const MOST_FLOATS: usize = 1 << 26;

/// A block with its chosen layers' weights without quantisers: what stands there is what takes effect.
pub(super) struct Part {
    graph: Graph,
    /// Samples that it takes at a time, where that is fixed.
    pub fixed: Option<usize>,
}

impl Part {
    /// The block of a network; `chosen` are the layers whose weights are going to be set.
    pub fn of(graph: &Graph, unit: &Unit, chosen: &[&Layer]) -> Self {
        let wiring = Wiring::of(graph);
        let moving = moving(graph, reads_shape);
        let mut part = graph.clone();
        for layer in chosen {
            if let (_, WeightForm::Quantized { dequantize }) = weight_form(graph, &wiring, layer)
                && let Some(output) = graph.nodes[dequantize].outputs.first().copied().flatten()
            {
                part.rewire(output, layer.weight);
            }
        }
        let mut index = 0;
        part.nodes.retain(|_| {
            index += 1;
            !moving[index - 1] || unit.nodes.contains(&(index - 1))
        });
        part.inputs = vec![unit.input];
        part.value_mut(unit.input).shape = None;
        part.outputs = vec![unit.output];
        part.remove_dead_nodes();
        Self {
            graph: part,
            fixed: graph.fixed_batch(),
        }
    }

    /// The name of one of its values.
    pub fn name(&self, value: ValueId) -> &str {
        &self.graph.value(value).name
    }

    /// Made ready to run with these weights.
    pub fn program<'w>(
        &self,
        mode: Mode,
        weights: impl Iterator<Item = (ValueId, &'w [f32])>,
    ) -> Result<Program, ExecError> {
        let mut graph = self.graph.clone();
        for (id, weights) in weights {
            if let Some(data) = &graph.value(id).data {
                let data = TensorData::from_f32(&data.shape.clone(), weights);
                graph.set_data(id, data);
            }
        }
        Program::compile(&graph, mode)
    }

    /// What the block gives for some of the samples, one after the other.
    pub fn run(
        &self,
        program: &Program,
        inputs: &Values,
        which: &[usize],
        cancel: &CancelToken,
    ) -> Result<Vec<f32>, ExecError> {
        let mut all = Vec::new();
        for own in which.chunks(self.fixed.unwrap_or(crate::compress::segments::BATCH)) {
            let mut fed = own.to_vec();
            fed.resize(self.fixed.unwrap_or(own.len()), own[own.len() - 1]);
            let outputs = program.run(&[inputs.batch(&fed)?], &mut NoTaps, cancel)?;
            let Some(output) = outputs.first() else {
                return Err(ExecError::Input("a block without an output".to_owned()));
            };
            let values = output.flatten_all()?.to_vec1::<f32>()?;
            all.extend_from_slice(&values[..values.len() / fed.len() * own.len()]);
        }
        Ok(all)
    }
}

/// One value for a number of samples.
pub(super) struct Values {
    /// Of one sample: how many rows of the first axis, and the axes behind.
    dims: Vec<usize>,
    each: usize,
    data: Vec<f32>,
}

impl Values {
    /// Those of as many samples as may be kept. The inner error: why there are none.
    pub fn collect(
        walk: &mut Walk,
        value: ValueId,
        cancel: &CancelToken,
    ) -> Result<Result<Self, String>, CompressError> {
        let mut rows = walk.batch_rows().into_iter();
        let mut kept = Ok(Self {
            dims: Vec::new(),
            each: 0,
            data: Vec::new(),
        });
        walk.visit(value, cancel, |batch| {
            let samples = rows.next().unwrap_or(0).max(1);
            let dims = batch.dims();
            let Ok(all) = &mut kept else { return Ok(()) };
            let first = dims.first().copied().unwrap_or(0);
            if first == 0 || first % samples != 0 {
                kept = Err(format!("values of shape {dims:?} for {samples} samples"));
                return Ok(());
            }
            all.dims = dims.to_vec();
            all.dims[0] = first / samples;
            all.each = all.dims.iter().product();
            let room = MOST_FLOATS.saturating_sub(all.data.len()) / all.each.max(1);
            if room == 0 {
                return Ok(());
            }
            let values = batch
                .narrow(0, 0, room.min(samples) * all.dims[0])
                .and_then(|t| t.flatten_all()?.to_vec1::<f32>())
                .map_err(ExecError::from)?;
            all.data.extend(values);
            Ok(())
        })?;
        Ok(kept)
    }

    /// Samples.
    pub fn count(&self) -> usize {
        self.data.len() / self.each.max(1)
    }

    pub fn is_finite(&self) -> bool {
        self.data.iter().all(|v| v.is_finite())
    }

    /// Some of the samples, one after the other.
    pub fn of(&self, which: &[usize]) -> Vec<f32> {
        let sample = |n: &usize| &self.data[n * self.each..][..self.each];
        which.iter().flat_map(sample).copied().collect()
    }

    /// Some of the samples as the network takes and gives them.
    pub fn batch(&self, which: &[usize]) -> Result<Tensor, ExecError> {
        let mut dims = self.dims.clone();
        dims[0] *= which.len();
        Ok(Tensor::from_vec(self.of(which), dims, &Device::Cpu)?)
    }
}

/// Σ (a − b)².
pub(super) fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    squares.sum()
}
