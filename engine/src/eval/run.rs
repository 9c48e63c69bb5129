//! The evaluator: batches through a program, rows into an [`Evaluation`].

use super::{EvalError, Evaluation, Observer, outputs};
use crate::{
    data::{Dataset, SplitName, batch_size},
    exec::{CancelToken, ExecError, NoTaps, Program, Taps},
};
use candle_core::{DType, Tensor};

/// Raw outputs of one run, n×classes row-major in the split's order; probabilities are turned into their logarithms.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    pub classes: usize,
    pub values: Vec<f32>,
}

/// Runs `program` over the first `limit` samples of a split (`None`: all).
pub fn evaluate(
    program: &Program,
    data: &Dataset,
    split: SplitName,
    limit: Option<usize>,
    observer: &mut dyn Observer,
    cancel: &CancelToken,
) -> Result<Evaluation, EvalError> {
    run(
        program,
        data,
        split,
        limit,
        &mut NoTaps,
        (observer, cancel),
        None,
    )
}

/// [`evaluate`], with values observed or replaced on the way.
pub fn evaluate_tapped(
    program: &Program,
    data: &Dataset,
    split: SplitName,
    limit: Option<usize>,
    taps: &mut dyn Taps,
    observer: &mut dyn Observer,
    cancel: &CancelToken,
) -> Result<Evaluation, EvalError> {
    run(program, data, split, limit, taps, (observer, cancel), None)
}

/// [`evaluate`], keeping the outputs too (4 bytes a class and sample).
pub fn evaluate_with_logits(
    program: &Program,
    data: &Dataset,
    split: SplitName,
    limit: Option<usize>,
    observer: &mut dyn Observer,
    cancel: &CancelToken,
) -> Result<(Evaluation, Logits), EvalError> {
    let mut logits = Logits {
        classes: data.info().classes.len(),
        values: Vec::new(),
    };
    let evaluation = run(
        program,
        data,
        split,
        limit,
        &mut NoTaps,
        (observer, cancel),
        Some(&mut logits.values),
    )?;
    Ok((evaluation, logits))
}

/// The first output for chosen samples of a split, as [`super::RowReader`] reads it: n×classes, row by row.
///
/// # Errors
/// Data that cannot be read, an output that does not fit the task, cancellation.
pub fn rows_of(
    program: &Program,
    data: &Dataset,
    split: SplitName,
    samples: &[usize],
    cancel: &CancelToken,
) -> Result<Vec<f32>, EvalError> {
    let info = data.info();
    let classes = info.classes.len();
    let fixed = program.fixed_batch();
    let step = fixed.unwrap_or_else(|| batch_size(&info.sample_shape));
    let mut all = Vec::with_capacity(samples.len() * classes);
    for chunk in samples.chunks(step) {
        let mut indices = chunk.to_vec();
        // A model that takes only so many at a time has the batch filled up with its last sample.
        if let (Some(size), Some(last)) = (fixed, chunk.last()) {
            indices.resize(size, *last);
        }
        let images = data.images(split, &indices)?;
        let outputs = program.run(&[images], &mut NoTaps, cancel)?;
        let rows = rows(&outputs, indices.len(), classes, &info.name)?;
        all.extend_from_slice(&rows[..chunk.len() * classes]);
    }
    Ok(all)
}

fn run(
    program: &Program,
    data: &Dataset,
    split: SplitName,
    limit: Option<usize>,
    taps: &mut dyn Taps,
    (observer, cancel): (&mut dyn Observer, &CancelToken),
    mut keep: Option<&mut Vec<f32>>,
) -> Result<Evaluation, EvalError> {
    let info = data.info();
    let classes = info.classes.len();
    let total = data.len(split).min(limit.unwrap_or(usize::MAX));
    if total == 0 {
        return Err(EvalError::Shape(format!(
            "the {split} split of task {:?} has no samples: name one under `splits` in its task.ron",
            info.name
        )));
    }
    let fixed = program.fixed_batch();
    let step = fixed.unwrap_or_else(|| batch_size(&info.sample_shape));
    let mut evaluation = Evaluation {
        split,
        n: total as u64,
        labels: Vec::with_capacity(total),
        predictions: Vec::with_capacity(total),
        top5_correct: Vec::with_capacity(total),
        losses: Vec::with_capacity(total),
        simulated: None,
        unlabelled: !data.has_labels(split),
    };
    let mut reading = None;
    let mut start = 0;
    while start < total {
        if cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let end = (start + step).min(total);
        let batch = match fixed {
            // The last batch of a model that takes only so many at a time is filled up with its last sample.
            Some(size) if end - start < size => {
                let indices: Vec<usize> = (start..start + size).map(|i| i.min(end - 1)).collect();
                data.gather(split, &indices)?
            }
            _ => data.batch(split, start..end)?,
        };
        let outputs = program.run(&[batch.images], taps, cancel)?;
        let mut rows = rows(&outputs, batch.labels.len(), classes, &info.name)?;
        let labels = &batch.labels[..end - start];
        rows.truncate(labels.len() * classes);
        let reading = *reading.get_or_insert_with(|| outputs::reading(&rows, classes));
        for (i, (row, label)) in rows.chunks_exact(classes).zip(labels).enumerate() {
            let judged = outputs::judge(row, *label, reading, start + i)?;
            evaluation.predictions.push(judged.prediction);
            evaluation.top5_correct.push(judged.top5);
            evaluation.losses.push(judged.loss);
        }
        if let Some(keep) = keep.as_deref_mut() {
            match reading {
                outputs::Reading::Logits => keep.extend_from_slice(&rows),
                outputs::Reading::Probabilities => {
                    keep.extend(rows.iter().map(|p| p.max(f32::MIN_POSITIVE).ln()));
                }
            }
        }
        evaluation.labels.extend_from_slice(labels);
        start = end;
        observer.batch(start as u64, total as u64)?;
    }
    Ok(evaluation)
}

/// The first output as `n` rows of `classes` numbers; [n, classes] and the same with trailing axes of 1 are accepted.
pub(crate) fn rows(
    outputs: &[Tensor],
    n: usize,
    classes: usize,
    task: &str,
) -> Result<Vec<f32>, EvalError> {
    let Some(output) = outputs.first() else {
        return Err(EvalError::Shape("the model has no output".into()));
    };
    let dims = output.dims();
    let fits = dims.len() >= 2
        && dims[0] == n
        && dims[1] == classes
        && dims[2..].iter().all(|extent| *extent == 1);
    if !fits {
        return Err(EvalError::Shape(format!(
            "the model's output has shape {dims:?} for a batch of {n} images, but task {task:?} has {classes} classes and \
             needs [{n}, {classes}]: use the task that belongs to the model, or correct its `classes`"
        )));
    }
    let flat = output
        .to_dtype(DType::F32)
        .and_then(|t| t.flatten_all())
        .and_then(|t| t.to_vec1::<f32>())
        .map_err(ExecError::from)?;
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn batches_are_bounded() {
        assert_eq!(batch_size(&[1, 28, 28]), 64);
        assert_eq!(batch_size(&[3, 224, 224]), 16);
        assert_eq!(batch_size(&[3, 4000, 4000]), 4);
    }

    #[test]
    fn outputs_of_another_task_are_refused() {
        let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(rows(&[tensor(&[2, 3, 1, 1])], 2, 3, "t").unwrap().len(), 6);
        for shape in [&[2, 4][..], &[2], &[1, 3], &[2, 3, 2]] {
            let error = rows(&[tensor(shape)], 2, 3, "t").unwrap_err().to_string();
            assert!(error.contains("needs [2, 3]"), "{error}");
        }
        assert!(rows(&[], 2, 3, "t").is_err());
    }
}
