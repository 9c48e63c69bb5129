//! Batch by batch through both: memory does not grow with the number of samples.

use super::{
    ConfirmError, ConfirmOptions, Confirmation, RuntimeRun, TargetPrediction, layers, tensors,
};
use crate::{
    data::{Dataset, SplitName},
    eval::{self, EvalError, Observer, RowReader, paired_drop, proportion},
    exec::{CancelToken, ExecError, Mode, NoTaps, Program, Taps},
    formats::onnx,
    measure::runtime::{
        Optimizations, Runtime, RuntimeData, RuntimeError, RuntimeSession, RuntimeTensor,
    },
};
use bytes::Bytes;
use candle_core::Tensor;

/// Numbers of the images that the runtime is given at a time: few enough that it is done soon when somebody wants to stop.
const PIECE_ELEMENTS: usize = 600_000;

/// The arithmetic of a target, where it is not that of the file as it stands.
pub struct Simulated<'a> {
    pub name: &'a str,
    /// Of the graph that reading the file's bytes gives.
    pub taps: &'a mut dyn Taps,
    /// Whether this machine's processor computes so.
    pub here: bool,
}

/// Holds Limbeck's evaluation of an exported ONNX file against the runtime's, on the same samples. Both get the very bytes; `observer`
/// is told of samples, those of the tensors' comparison included.
///
/// # Errors
/// A file that either cannot run, data that does not fit it, cancellation.
#[allow(clippy::too_many_arguments)]
pub fn confirm(
    model: &[u8],
    data: &Dataset,
    options: &ConfirmOptions,
    runtime: &Runtime,
    mut simulated: Option<Simulated<'_>>,
    observer: &mut dyn Observer,
    cancel: &CancelToken,
) -> Result<Confirmation, ConfirmError> {
    let graph = onnx::read_bytes(Bytes::copy_from_slice(model))?;
    let program = Program::compile(&graph, Mode::Inference)?;
    let split = options.split;
    let n = data.len(split).min(options.limit.unwrap_or(usize::MAX));
    if n == 0 {
        return Err(EvalError::Shape(format!(
            "the {split} split of task {:?} has no samples: there is nothing to hold the runtime against",
            data.info().name
        ))
        .into());
    }
    let mut runs = Vec::with_capacity(options.optimizations.len());
    for optimizations in &options.optimizations {
        let session = runtime.session(model, *optimizations, options.threads)?;
        let here = simulated.as_ref().is_some_and(|s| s.here);
        let at_target = here && *optimizations == Optimizations::On;
        runs.push(Running::new(*optimizations, at_target, session));
    }
    let watched = options.optimizations.contains(&Optimizations::Off);
    let samples = options.tensor_samples.min(n);
    let trace = watched && samples > 0;
    let mut traced = match trace {
        true => tensors::Traced::new(&graph, runtime, options.threads, samples)?,
        false => None,
    };
    let mut in_float = match traced {
        None if trace => layers::Traced::new(&graph, runtime, options.threads, samples)?,
        _ => None,
    };
    let compared = match (&traced, &in_float) {
        (None, None) => 0,
        _ => samples,
    };
    let total = n + compared;

    let classes = data.info().classes.len();
    let fixed = program.fixed_batch();
    // The batches that the evaluator has, so that the predictions are its own to the bit.
    let own = eval::batch_size(&data.info().sample_shape);
    let piece = piece(&data.info().sample_shape);
    let mut batches = Batches::new(data, split, n, own, fixed);
    let mut reader = RowReader::new(classes);
    let (mut labels, mut predictions) = (Vec::with_capacity(n), Vec::with_capacity(n));
    let mut at_target: Vec<u32> = Vec::new();
    while let Some(batch) = batches.next(cancel)? {
        let outputs = program.run(std::slice::from_ref(&batch.images), &mut NoTaps, cancel)?;
        let mut ours = eval::rows(&outputs, batch.padded, classes, &data.info().name)?;
        ours.truncate(batch.labels.len() * classes);
        // How the numbers are to be read is Limbeck's own outputs' to say, for both.
        let (_, predicted) = reader.read(ours.clone(), labels.len())?;
        let target = match &mut simulated {
            None => None,
            Some(simulated) => {
                let images = std::slice::from_ref(&batch.images);
                let outputs = program.run(images, &mut *simulated.taps, cancel)?;
                let mut rows = eval::rows(&outputs, batch.padded, classes, &data.info().name)?;
                rows.truncate(ours.len());
                let (_, predicted) = reader.read(rows.clone(), labels.len())?;
                at_target.extend(&predicted);
                Some((rows, predicted))
            }
        };
        let piece = fixed.unwrap_or(piece);
        for run in &mut runs {
            let against = match &target {
                Some((rows, predicted)) if run.at_target => (rows, predicted),
                _ => (&ours, &predicted),
            };
            let against = (against.0.as_slice(), against.1.as_slice());
            run.batch(&batch, piece, against, reader.clone(), cancel)?;
        }
        predictions.extend(predicted);
        labels.extend(batch.labels);
        observer.batch(labels.len() as u64, total as u64)?;
    }
    let mut batches = Batches::new(data, split, compared, piece, fixed);
    let mut done = n;
    while let Some(batch) = batches.next(cancel)? {
        if let Some(traced) = &mut traced {
            traced.batch(&program, &batch, cancel)?;
        }
        if let Some(in_float) = &mut in_float {
            in_float.batch(&program, &batch, cancel)?;
        }
        done += batch.labels.len();
        observer.batch(done as u64, total as u64)?;
    }
    let right = |own: &[u32]| {
        let hits = own.iter().zip(&labels).filter(|(p, l)| p == l).count();
        proportion(hits as u64, n as u64)
    };
    Ok(Confirmation {
        runtime: runtime.version().to_owned(),
        library: runtime.library().to_owned(),
        split,
        n: n as u64,
        unlabelled: data.info().unlabelled.contains(&split),
        predicted: right(&predictions),
        runs: runs
            .into_iter()
            .map(|run| match run.at_target {
                true => run.result(&at_target, &labels),
                false => run.result(&predictions, &labels),
            })
            .collect(),
        target: simulated.map(|s| TargetPrediction {
            name: s.name.to_owned(),
            top1: right(&at_target),
            here: s.here,
            predictions: at_target.clone(),
        }),
        tensors: traced.map(tensors::Traced::report),
        layers: in_float.map(layers::Traced::report),
        predictions,
    })
}

/// Samples that the runtime is given at a time.
fn piece(sample_shape: &[usize]) -> usize {
    let elements = sample_shape.iter().product::<usize>().max(1);
    (PIECE_ELEMENTS / elements).clamp(1, 64)
}

/// Samples of a split, a few at a time.
struct Batches<'a> {
    data: &'a Dataset,
    split: SplitName,
    n: usize,
    at: usize,
    step: usize,
    fixed: Option<usize>,
}

/// Some samples; those behind the last label only fill up a batch of fixed size.
pub(super) struct Batch {
    pub images: Tensor,
    pub labels: Vec<u32>,
    /// Samples in `images`.
    pub padded: usize,
}

impl Batch {
    /// The images' shape and numbers.
    pub fn values(&self) -> Result<(Vec<usize>, Vec<f32>), ExecError> {
        let values = self.images.flatten_all()?.to_vec1::<f32>()?;
        Ok((self.images.dims().to_vec(), values))
    }
}

impl<'a> Batches<'a> {
    fn new(
        data: &'a Dataset,
        split: SplitName,
        n: usize,
        step: usize,
        fixed: Option<usize>,
    ) -> Self {
        Self {
            data,
            split,
            n,
            at: 0,
            step: fixed.unwrap_or(step),
            fixed,
        }
    }

    fn next(&mut self, cancel: &CancelToken) -> Result<Option<Batch>, ConfirmError> {
        if cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        if self.at >= self.n {
            return Ok(None);
        }
        let end = (self.at + self.step).min(self.n);
        let mut indices: Vec<usize> = (self.at..end).collect();
        if let Some(size) = self.fixed {
            indices.resize(size, end - 1);
        }
        let batch = self.data.gather(self.split, &indices)?;
        let mut labels = batch.labels;
        labels.truncate(end - self.at);
        self.at = end;
        Ok(Some(Batch {
            images: batch.images,
            labels,
            padded: indices.len(),
        }))
    }
}

/// One setting of the runtime on its way through the samples.
struct Running {
    optimizations: Optimizations,
    at_target: bool,
    session: RuntimeSession,
    predictions: Vec<u32>,
    /// Difference, and number on our side.
    largest: [f32; 2],
    lead: Option<f32>,
}

impl Running {
    fn new(optimizations: Optimizations, at_target: bool, session: RuntimeSession) -> Self {
        Self {
            optimizations,
            at_target,
            session,
            predictions: Vec::new(),
            largest: [0.0; 2],
            lead: None,
        }
    }

    /// Gives the runtime a batch, `piece` samples at a time, and compares with our own rows and the classes predicted by them.
    fn batch(
        &mut self,
        batch: &Batch,
        piece: usize,
        (ours, labels): (&[f32], &[u32]),
        mut reader: RowReader,
        cancel: &CancelToken,
    ) -> Result<(), ConfirmError> {
        let (mut shape, values) = batch.values()?;
        let classes = ours.len() / batch.labels.len().max(1);
        let sample = values.len() / batch.padded.max(1);
        let mut theirs = Vec::with_capacity(batch.padded * classes);
        for part in values.chunks(piece * sample.max(1)) {
            if cancel.is_cancelled() {
                return Err(ExecError::Cancelled.into());
            }
            let count = part.len() / sample.max(1);
            if let Some(first) = shape.first_mut() {
                *first = count;
            }
            let outputs = self.session.run(&shape, part)?;
            theirs.extend(float_rows(outputs, count, classes)?);
        }
        theirs.truncate(ours.len());
        for (a, b) in ours.iter().zip(&theirs) {
            let [difference, output] = self.largest;
            self.largest = [difference.max((a - b).abs()), output.max(a.abs())];
        }
        let (_, predicted) = reader.read(theirs, self.predictions.len())?;
        let rows = ours.chunks_exact(classes.max(1));
        for ((row, ours), theirs) in rows.zip(labels).zip(&predicted) {
            if ours != theirs {
                let lead = lead(row, *ours as usize);
                self.lead = Some(self.lead.map_or(lead, |l| l.max(lead)));
            }
        }
        self.predictions.extend(predicted);
        Ok(())
    }

    fn result(self, predicted: &[u32], labels: &[u32]) -> RuntimeRun {
        let n = labels.len() as u64;
        let (mut same, mut hits, mut only_ours, mut only_theirs) = (0, 0, 0, 0);
        for ((ours, theirs), label) in predicted.iter().zip(&self.predictions).zip(labels) {
            same += u64::from(ours == theirs);
            hits += u64::from(theirs == label);
            only_ours += u64::from(ours == label && theirs != label);
            only_theirs += u64::from(ours != label && theirs == label);
        }
        RuntimeRun {
            optimizations: self.optimizations,
            at_target: self.at_target,
            top1: proportion(hits, n),
            agreement: proportion(same, n),
            same_labels: same,
            drop: paired_drop(only_ours, only_theirs, n),
            largest_difference: self.largest[0],
            largest_output: Some(self.largest[1]),
            clearest_lead: self.lead,
        }
    }
}

/// How far the best class leads the next.
fn lead(row: &[f32], best: usize) -> f32 {
    let others = row.iter().enumerate().filter(|(class, _)| *class != best);
    let next = others.map(|(_, v)| *v).fold(f32::NEG_INFINITY, f32::max);
    row.get(best).map_or(0.0, |v| v - next)
}

/// The first output as rows of `classes` numbers.
fn float_rows(
    outputs: Vec<RuntimeTensor>,
    n: usize,
    classes: usize,
) -> Result<Vec<f32>, RuntimeError> {
    match outputs.into_iter().next() {
        Some(RuntimeTensor {
            data: RuntimeData::F32(values),
            ..
        }) if values.len() == n * classes => Ok(values),
        Some(other) => Err(RuntimeError::Failed(format!(
            "ONNX Runtime's output {} of shape {:?} is not the float32 [{n}, {classes}] that was expected",
            other.name, other.shape
        ))),
        None => Err(RuntimeError::Failed("the model has no output".into())),
    }
}
