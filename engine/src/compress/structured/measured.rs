//! Criteria that look at data: first-order Taylor expansion of the loss, and activations.

use super::{
    groups::{Block, Structure},
    score::{Scores, along, mean_of, places, to_mean_one},
};
use crate::{
    compress::{
        CompressError, PassContext,
        chunks::{Chunk, chunks},
    },
    data::{Dataset, SplitName},
    exec::{ExecError, Mode, Program, Taps, on_pool},
    graph::ValueId,
};
use candle_core::{DType, Tensor};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Measured {
    /// Mean magnitude.
    Mean,
    /// Share of activations that are not zero: 1 − APoZ (Hu et al. 2016).
    Active,
}

/// Samples a mini-batch; part of what a sum's bits are.
pub(super) const BATCH: usize = 32;

/// The calibration split, and how many samples of it to take.
pub(super) fn calibration<'a>(
    context: &'a PassContext<'_>,
    samples: usize,
    purpose: &str,
) -> Result<(&'a Dataset, usize), CompressError> {
    let n = context
        .data
        .map_or(0, |d| d.len(SplitName::Calibration).min(samples));
    match context.data {
        Some(data) if n > 0 => Ok((data, n)),
        _ => Err(CompressError::Invalid(format!(
            "{purpose} needs samples of the calibration split: name a task.ron whose calibration split is not empty, and ask \
             for at least 1 sample"
        ))),
    }
}

/// (Σ g·w)² over the weights that read a unit, summed up over mini-batches: to first order the squared change of the loss
/// when the unit becomes zero (Molchanov et al. 2019). Not normalised: it is a loss everywhere.
pub(super) fn taylor(
    structure: &Structure,
    samples: usize,
    context: &PassContext<'_>,
) -> Result<Scores, CompressError> {
    let (data, samples) = calibration(context, samples, "criterion taylor")?;
    let graph = &structure.trace.graph;
    let program = Program::compile(graph, Mode::Training)?;
    let probabilities = graph.ends_in_softmax();
    let classes = data.info().classes.len();
    let mut scores: Scores = structure
        .blocks
        .iter()
        .map(|b| vec![0.0; b.units.len()])
        .collect();
    // Where nothing with weights reads a unit (attention), what computes it must do.
    let counted = |block: &Block| {
        let reads = block.members.iter().any(|m| !m.output);
        let members = block.members.iter().filter(move |m| m.output != reads);
        members.cloned().collect::<Vec<_>>()
    };
    let counted: Vec<_> = structure.blocks.iter().map(counted).collect();
    let weights: BTreeSet<ValueId> = counted.iter().flatten().map(|m| m.weight).collect();
    let mini_batches = samples.div_ceil(BATCH);
    for start in (0..samples).step_by(BATCH) {
        let range = start..samples.min(start + BATCH);
        let total = range.len();
        // Gradients add up over the parts that a model takes at a time.
        let mut products: BTreeMap<ValueId, Vec<f64>> = BTreeMap::new();
        for chunk in chunks(range, BATCH, program.fixed_batch()) {
            if context.cancel.is_cancelled() {
                return Err(ExecError::Cancelled.into());
            }
            let batch = chunk.read(data)?;
            let loss = |rows: Range<usize>, outputs: &[Tensor]| {
                share_of_loss(
                    outputs,
                    &batch.labels,
                    rows,
                    (chunk.rows, total),
                    classes,
                    probabilities,
                )
            };
            let gradients = on_pool(|| program.gradients(&batch.images, &loss, context.cancel))?;
            for &weight in &weights {
                let value = graph.value(weight);
                let (Some(own), Some(var)) = (&value.data, program.parameters().get(&value.name))
                else {
                    continue;
                };
                let gradient = match gradients.store.get(var) {
                    Some(g) => g.flatten_all().and_then(|g| g.to_vec1::<f32>()),
                    None => Ok(vec![0.0; own.len()]),
                }
                .map_err(ExecError::from)?;
                let sums = products
                    .entry(weight)
                    .or_insert_with(|| vec![0.0; own.len()]);
                for ((sum, w), g) in sums.iter_mut().zip(own.to_f32_vec()).zip(gradient) {
                    *sum += f64::from(w) * f64::from(g);
                }
            }
        }
        let blocks = structure.blocks.iter().zip(&counted);
        for ((block, members), scores) in blocks.zip(&mut scores) {
            let mut sums = vec![0.0; block.units.len()];
            for member in members {
                let (Some(weight), Some(product)) = (
                    &graph.value(member.weight).data,
                    products.get(&member.weight),
                ) else {
                    continue;
                };
                let by_index = along(&weight.shape, member.axis, |i| product[i]);
                let own = places(structure, block, member.weight, member.axis);
                for (sum, indices) in sums.iter_mut().zip(own) {
                    *sum += indices.iter().map(|i| by_index[*i]).sum::<f64>();
                }
            }
            for (score, sum) in scores.iter_mut().zip(sums) {
                *score += sum * sum / mini_batches as f64;
            }
        }
    }
    Ok(scores)
}

/// What `rows` of a batch add to the mean loss of `total` samples; from row `own` on they only fill the batch up.
fn share_of_loss(
    outputs: &[Tensor],
    labels: &[u32],
    rows: Range<usize>,
    (own, total): (usize, usize),
    classes: usize,
    probabilities: bool,
) -> candle_core::Result<Tensor> {
    let Some(output) = outputs.first() else {
        candle_core::bail!("the model has no output");
    };
    let logits = output.reshape((rows.len(), ()))?;
    if logits.dim(1)? != classes {
        candle_core::bail!(
            "the model has {} outputs a sample, the task names {classes} classes",
            logits.dim(1)?
        );
    }
    let rows = rows.start..rows.end.min(own);
    if rows.is_empty() {
        return logits.zeros_like()?.mul(&logits)?.sum_all();
    }
    let logits = logits.narrow(0, 0, rows.len())?;
    let logs = if probabilities {
        logits.clamp(1e-12, 1.0)?.log()?
    } else {
        candle_nn::ops::log_softmax(&logits, 1)?
    };
    let share = rows.len() as f64 / total as f64;
    let labels = Tensor::new(&labels[rows], logs.device())?;
    candle_nn::loss::nll(&logs, &labels)? * share
}

/// What the readers of a unit see of it, averaged over samples and places.
pub(super) fn activations(
    structure: &Structure,
    what: Measured,
    samples: usize,
    context: &PassContext<'_>,
) -> Result<Scores, CompressError> {
    let (data, samples) = calibration(context, samples, "a criterion by activations")?;
    let graph = &structure.trace.graph;
    // By block: the values that its readers read; where there are none, what its layers compute.
    let read: Vec<Vec<(ValueId, usize)>> = structure
        .blocks
        .iter()
        .map(|block| {
            let of = |input: bool| -> Vec<(ValueId, usize)> {
                let layers = block.members.iter().filter(|m| m.output != input);
                let mut values: Vec<(ValueId, usize)> = layers
                    .flat_map(|m| {
                        let layer = &structure.layers[m.layer];
                        let value = if input { layer.input } else { layer.output };
                        let axes = structure.trace.labels.of(value);
                        axes.into_iter().map(move |(axis, _)| (value, axis))
                    })
                    .collect();
                values.sort_unstable();
                values.dedup();
                values
            };
            let readers = of(true);
            if readers.is_empty() {
                of(false)
            } else {
                readers
            }
        })
        .collect();
    let mut taps = Watch {
        what,
        sums: read
            .iter()
            .flatten()
            .map(|key| {
                let units = structure.trace.labels.axis(key.0, key.1);
                (*key, (vec![0.0; units.map_or(0, |u| u.len())], 0.0))
            })
            .collect(),
        chunk: None,
    };
    let program = Program::compile(graph, Mode::Inference)?;
    for chunk in chunks(0..samples, BATCH, program.fixed_batch()) {
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let images = chunk.images(data)?;
        taps.chunk = Some(chunk);
        program.run(std::slice::from_ref(&images), &mut taps, context.cancel)?;
    }
    Ok(structure
        .blocks
        .iter()
        .zip(read)
        .map(|(block, values)| {
            let parts = values
                .into_iter()
                .map(|(value, axis)| {
                    let (sums, n) = &taps.sums[&(value, axis)];
                    let own = places(structure, block, value, axis);
                    let means = own
                        .iter()
                        .map(|indices| {
                            let sum: f64 = indices.iter().filter_map(|i| sums.get(*i)).sum();
                            sum / (n * indices.len().max(1) as f64).max(1.0)
                        })
                        .collect();
                    match what {
                        Measured::Mean => to_mean_one(means),
                        Measured::Active => means,
                    }
                })
                .collect();
            mean_of(parts, block.units.len())
        })
        .collect())
}

struct Watch {
    what: Measured,
    /// Sums by unit along the axis, which may count samples too, and how many elements each had.
    sums: BTreeMap<(ValueId, usize), (Vec<f64>, f64)>,
    /// The batch at hand.
    chunk: Option<Chunk>,
}

impl Taps for Watch {
    fn wants(&self, value: ValueId) -> bool {
        self.sums
            .range((value, 0)..=(value, usize::MAX))
            .next()
            .is_some()
    }

    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        // Channels along the first axis: no samples to leave out there.
        let tensor = match self.chunk {
            Some(chunk) if !self.sums.contains_key(&(value, 0)) => chunk.own(tensor)?,
            _ => tensor.clone(),
        };
        let shape = tensor.dims().to_vec();
        let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let what = self.what;
        for ((_, axis), (sums, n)) in self.sums.range_mut((value, 0)..=(value, usize::MAX)) {
            let seen = along(&shape, *axis, |i| match what {
                Measured::Mean => f64::from(values[i].abs()),
                Measured::Active => f64::from(u8::from(values[i] != 0.0)),
            });
            let units = sums.len().max(1);
            for own in seen.chunks(units) {
                for (sum, own) in sums.iter_mut().zip(own) {
                    *sum += own;
                }
            }
            *n += values.len() as f64 / units as f64;
        }
        Ok(None)
    }
}
