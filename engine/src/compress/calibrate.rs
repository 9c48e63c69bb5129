//! Calibration: runs samples of the calibration split through the float graph and keeps a histogram of every value that is
//! to be quantised, then takes ranges from the histograms. One run serves every layer and every method.

use super::{
    Calibration, CompressError, Histogram, QuantScheme, Symmetry,
    chunks::{Chunk, chunks},
};
use crate::{
    data::{Dataset, SplitName},
    exec::{self, CancelToken, ExecError, Mode, Program, Taps},
    graph::{Graph, ValueId},
};
use candle_core::{DType, Tensor};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Histograms of values, by value name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActivationStats {
    pub histograms: BTreeMap<String, Histogram>,
    /// Moving averages of each sample's extremes.
    pub averages: BTreeMap<String, SampleAverage>,
    /// Samples behind them.
    pub samples: usize,
}

/// A moving average of the smallest and largest value of a sample (Jacob et al. 2018, §3.1): each sample counts 1/0.99 times as much as the one
/// before it. One sample at a time, so the size of batches does not matter; the weights add up to 1 from the first sample on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SampleAverage {
    lo: f64,
    hi: f64,
    weight: f64,
}

impl SampleAverage {
    const DECAY: f64 = 0.99;

    /// The next sample's extremes.
    fn add(&mut self, (lo, hi): (f32, f32)) {
        for (sum, next) in [
            (&mut self.lo, f64::from(lo)),
            (&mut self.hi, f64::from(hi)),
            (&mut self.weight, 1.0),
        ] {
            *sum = *sum * Self::DECAY + next;
        }
    }

    /// Averaged extremes; `None` before the first sample.
    pub fn extremes(&self) -> Option<(f32, f32)> {
        let mean = |sum: f64| (sum / self.weight) as f32;
        (self.weight > 0.0).then(|| (mean(self.lo), mean(self.hi)))
    }
}

/// Ranges to be quantised, by value name; each includes 0.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Ranges {
    pub values: BTreeMap<String, [f32; 2]>,
}

impl ActivationStats {
    /// Ranges by one method, in parallel over the values.
    pub fn ranges(&self, method: Calibration, symmetry: Symmetry) -> Ranges {
        let values: Vec<&String> = self.histograms.keys().collect();
        let ranges = exec::pool().install(|| {
            values
                .into_par_iter()
                .filter_map(|name| Some((name.clone(), self.range_of(name, method, symmetry)?)))
                .collect()
        });
        Ranges { values: ranges }
    }

    /// The range of one value by one method; `None` where it was not seen.
    pub fn range_of(
        &self,
        value: &str,
        method: Calibration,
        symmetry: Symmetry,
    ) -> Option<[f32; 2]> {
        let histogram = self.histograms.get(value)?;
        let average = self.averages.get(value).and_then(SampleAverage::extremes);
        let (lo, hi) = match (method, average) {
            (Calibration::MovingAverage, Some(extremes)) => symmetry.widen(extremes),
            _ => histogram.range(method, symmetry)?,
        };
        Some([lo, hi])
    }
}

/// Ranges of `values` on `graph` by the scheme's method: [`observe`] and [`ActivationStats::ranges`] in one. Ranges belong to
/// the graph as it is before quantisation (folded and pruned); they don't depend on which layers will be quantised.
///
/// # Errors
/// No calibration data, a graph that cannot run, values that are NaN or infinite, or cancellation.
pub fn calibrate(
    graph: &Graph,
    values: &[ValueId],
    data: &Dataset,
    scheme: &QuantScheme,
    cancel: &CancelToken,
) -> Result<Ranges, CompressError> {
    scheme.check()?;
    let stats = observe(graph, values, data, scheme.samples, cancel)?;
    Ok(stats.ranges(scheme.range_method(), scheme.symmetry))
}

/// Runs the first `samples` of the calibration split through `graph` and counts what `values` take.
///
/// # Errors
/// No calibration data, a graph that cannot run, values that are NaN or infinite, or cancellation.
pub fn observe(
    graph: &Graph,
    values: &[ValueId],
    data: &Dataset,
    samples: usize,
    cancel: &CancelToken,
) -> Result<ActivationStats, CompressError> {
    let batch = batch_for(data.info().sample_shape.iter().product());
    observe_by(batch, graph, values, data, samples, cancel)
}

/// As [`observe`], so many samples at a time where the model takes any number: it does not change what is counted.
pub(super) fn observe_by(
    batch: usize,
    graph: &Graph,
    values: &[ValueId],
    data: &Dataset,
    samples: usize,
    cancel: &CancelToken,
) -> Result<ActivationStats, CompressError> {
    let total = samples.min(data.len(SplitName::Calibration));
    if total == 0 {
        return Err(CompressError::Invalid(
            "calibration needs at least one sample: the task's calibration split is empty or the scheme asks for 0 samples"
                .to_owned(),
        ));
    }
    let program = Program::compile(graph, Mode::Inference)?;
    // The model's inputs are counted as they are fed, everything else by the taps.
    let mut wanted: BTreeSet<ValueId> = values.iter().copied().collect();
    let fed = graph.inputs.first().copied().filter(|i| wanted.remove(i));
    let mut taps = Observe {
        wanted,
        histograms: BTreeMap::new(),
        averages: BTreeMap::new(),
        chunk: None,
    };
    for chunk in chunks(0..total, batch, program.fixed_batch()) {
        if cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let images = chunk.images(data)?;
        taps.chunk = Some(chunk);
        if let Some(input) = fed {
            taps.count(input, &images)?;
        }
        program.run(std::slice::from_ref(&images), &mut taps, cancel)?;
    }
    let mut histograms = BTreeMap::new();
    let averages = taps
        .averages
        .into_iter()
        .map(|(value, average)| (graph.values[value.0 as usize].name.clone(), average))
        .collect();
    for (value, histogram) in taps.histograms {
        let name = graph.values[value.0 as usize].name.clone();
        if histogram.non_finite() > 0 {
            return Err(CompressError::Invalid(format!(
                "{} of the activations of value {name} are NaN or infinite on the calibration data: it cannot be quantised; \
                 keep the layers that read it at fp32 or fp16",
                histogram.non_finite()
            )));
        }
        histograms.insert(name, histogram);
    }
    Ok(ActivationStats {
        histograms,
        averages,
        samples: total,
    })
}

/// Samples a batch: enough to keep the cores busy, few enough that a large image doesn't fill memory.
fn batch_for(elements_of_a_sample: usize) -> usize {
    if elements_of_a_sample <= 16_384 {
        64
    } else {
        16
    }
}

/// Elements that are counted together.
const AT_A_TIME: usize = 1 << 17;

struct Observe {
    wanted: BTreeSet<ValueId>,
    histograms: BTreeMap<ValueId, Histogram>,
    averages: BTreeMap<ValueId, SampleAverage>,
    /// The batch at hand.
    chunk: Option<Chunk>,
}

impl Observe {
    fn count(&mut self, value: ValueId, tensor: &Tensor) -> Result<(), ExecError> {
        let (tensor, images) = match self.chunk {
            Some(chunk) => (chunk.own(tensor)?, chunk.rows.max(1)),
            None => (tensor.clone(), 1),
        };
        let tensor = tensor.to_dtype(DType::F32)?.flatten_all()?.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            return Err(ExecError::Input(
                "calibration runs on the CPU only".to_owned(),
            ));
        };
        let all: &[f32] = storage.as_slice()?;
        let (start, end) = layout.contiguous_offsets().unwrap_or((0, all.len()));
        // Samples lie one behind another; a value that has no batch axis is the same for all of them.
        let counted = &all[start..end];
        let sample = match counted.len() / images {
            0 => counted.len().max(1),
            sample if sample * images == counted.len() => sample,
            _ => counted.len(),
        };
        // Whole samples together where they are small, parts of one where they are large.
        let pieces: Vec<(usize, &[f32])> = if sample < AT_A_TIME {
            let together = AT_A_TIME / sample;
            let pieces = counted.chunks(together * sample).enumerate();
            pieces.map(|(at, some)| (at * together, some)).collect()
        } else {
            let samples = counted.chunks(sample).enumerate();
            samples
                .flat_map(|(at, one)| one.chunks(AT_A_TIME).map(move |part| (at, part)))
                .collect()
        };
        let found: Vec<(Histogram, Vec<Extremes>)> = exec::pool().install(|| {
            let count = |(_, some): &(usize, &[f32])| {
                let mut histogram = Histogram::default();
                let extremes = some.chunks(sample).map(|one| histogram.add(one)).collect();
                (histogram, extremes)
            };
            pieces.par_iter().map(count).collect()
        });
        let mut extremes = vec![(0.0_f32, 0.0_f32); counted.len().div_ceil(sample)];
        let histogram = self.histograms.entry(value).or_default();
        for ((first, _), (counted, found)) in pieces.iter().zip(found) {
            for (slot, found) in extremes[*first..].iter_mut().zip(found) {
                let (lo, hi) = found.unwrap_or((0.0, 0.0));
                *slot = (slot.0.min(lo), slot.1.max(hi));
            }
            histogram.merge(counted);
        }
        let average = self.averages.entry(value).or_default();
        extremes.into_iter().for_each(|e| average.add(e));
        Ok(())
    }
}

/// Smallest and largest value of a sample; `None` of nothing.
type Extremes = Option<(f32, f32)>;

impl Taps for Observe {
    fn wants(&self, value: ValueId) -> bool {
        self.wanted.contains(&value)
    }
    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        self.count(value, tensor)?;
        Ok(None)
    }
}
