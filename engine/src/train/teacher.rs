//! The teacher's outputs, computed once a training sample: inputs are not augmented, so they never change.

use super::{TrainError, loss::log_softmax};
use crate::{
    exec::{CancelToken, Mode, NoTaps, Program},
    graph::Graph,
};
use candle_core::{DType, Tensor};

/// A model's first output as logits N×classes: trailing axes of 1 dropped, probabilities turned into their logarithms.
pub(super) fn logits(
    outputs: &[Tensor],
    (samples, classes): (usize, usize),
    probabilities: bool,
    whose: &str,
) -> Result<Tensor, TrainError> {
    let Some(output) = outputs.first() else {
        return Err(TrainError::Settings(format!("the {whose} has no output")));
    };
    let dims = output.dims();
    if dims.len() < 2
        || dims[..2] != [samples, classes]
        || dims[2..].iter().any(|extent| *extent != 1)
    {
        return Err(TrainError::Settings(format!(
            "the {whose}'s output has shape {dims:?} for {samples} samples of a task with {classes} classes; expected \
             [{samples}, {classes}]. Use the task that belongs to the model"
        )));
    }
    let rows = output
        .to_dtype(DType::F32)?
        .reshape((samples, classes))?
        .contiguous()?;
    Ok(if probabilities {
        rows.maximum(f64::from(f32::MIN_POSITIVE))?.log()?
    } else {
        rows
    })
}

/// Per-sample logits of the training split, filled in as batches ask for them.
pub(super) struct Teacher {
    program: Program,
    probabilities: bool,
    classes: usize,
    temperature: f32,
    /// Per sample of the split, empty until known: probabilities at the temperature.
    rows: Vec<Box<[f32]>>,
}

impl Teacher {
    pub fn new(
        graph: &Graph,
        samples: usize,
        classes: usize,
        temperature: f32,
    ) -> Result<Self, TrainError> {
        Ok(Self {
            program: Program::compile(graph, Mode::Inference)?,
            probabilities: graph.ends_in_softmax(),
            classes,
            temperature,
            rows: vec![Box::default(); samples],
        })
    }

    /// Probabilities of the samples `indices`, whose inputs are `images`.
    pub fn probabilities(
        &mut self,
        indices: &[usize],
        images: &Tensor,
        cancel: &CancelToken,
    ) -> Result<Vec<f32>, TrainError> {
        if indices.iter().any(|i| self.rows[*i].is_empty()) {
            let outputs = self
                .program
                .run(std::slice::from_ref(images), &mut NoTaps, cancel)?;
            let size = (indices.len(), self.classes);
            let logits = logits(&outputs, size, self.probabilities, "teacher")?;
            let mut scratch = Vec::with_capacity(self.classes);
            for (index, row) in indices.iter().zip(logits.to_vec2::<f32>()?) {
                if !self.rows[*index].is_empty() {
                    continue;
                }
                if row.iter().any(|v| !v.is_finite()) {
                    return Err(TrainError::Settings(format!(
                        "the teacher's output for training sample {index} is not finite: check the original model's weights"
                    )));
                }
                log_softmax(&row, self.temperature, &mut scratch);
                self.rows[*index] = scratch.iter().map(|v| v.exp() as f32).collect();
            }
        }
        Ok(indices
            .iter()
            .flat_map(|i| self.rows[*i].iter().copied())
            .collect())
    }
}
