//! The teacher's outputs: computed once a training sample where inputs are not augmented, and so never change.

use super::{
    TrainError,
    loss::log_softmax,
    matching::{Matching, Taught},
};
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

/// Most bytes of outputs that are kept; what goes beyond is computed again each time.
const KEPT: usize = 512 << 20;

/// What the teacher says of a mini-batch.
#[derive(Default)]
pub(super) struct Said {
    /// At the temperature.
    pub probabilities: Vec<f32>,
    /// By matched pair.
    pub features: Vec<Taught>,
}

/// Per-sample probabilities of the training split, filled in as batches ask for them.
pub(super) struct Teacher {
    program: Program,
    /// Its own outputs; those behind them are features.
    outputs: usize,
    probabilities: bool,
    classes: usize,
    temperature: f32,
    /// Per sample of the split, empty until known: probabilities at the temperature.
    rows: Vec<Box<[f32]>>,
    /// Rows that may still be kept.
    room: usize,
}

impl Teacher {
    pub fn new(
        graph: &Graph,
        samples: usize,
        classes: usize,
        temperature: f32,
        matching: Option<&Matching>,
    ) -> Result<Self, TrainError> {
        let program = match matching {
            None => Program::compile(graph, Mode::Inference)?,
            Some(matching) => Program::compile(&matching.teacher(graph)?, Mode::Inference)?,
        };
        Ok(Self {
            program,
            outputs: graph.outputs.len(),
            probabilities: graph.ends_in_softmax(),
            classes,
            temperature,
            rows: vec![Box::default(); samples],
            room: KEPT / (classes.max(1) * size_of::<f32>()),
        })
    }

    /// Probabilities of the samples `indices`, whose inputs are `images`.
    pub fn probabilities(
        &mut self,
        indices: &[usize],
        images: &Tensor,
        cancel: &CancelToken,
    ) -> Result<Vec<f32>, TrainError> {
        let known = |rows: &[Box<[f32]>]| -> Vec<f32> {
            let of = indices.iter().filter_map(|i| rows.get(*i));
            of.flat_map(|row| row.iter().copied()).collect()
        };
        let found = known(&self.rows);
        if found.len() == indices.len() * self.classes {
            return Ok(found);
        }
        let fresh = self.fresh(indices, images, None, cancel)?.probabilities;
        for (index, row) in indices.iter().zip(fresh.chunks_exact(self.classes)) {
            if self.room > 0 && self.rows[*index].is_empty() {
                self.rows[*index] = row.into();
                self.room -= 1;
            }
        }
        Ok(fresh)
    }

    /// As [`Teacher::probabilities`], computed now and not kept: for augmented images, and with features.
    pub fn fresh(
        &self,
        indices: &[usize],
        images: &Tensor,
        matching: Option<&Matching>,
        cancel: &CancelToken,
    ) -> Result<Said, TrainError> {
        let outputs = self
            .program
            .run(std::slice::from_ref(images), &mut NoTaps, cancel)?;
        let size = (indices.len(), self.classes);
        let logits = logits(&outputs, size, self.probabilities, "teacher")?;
        let mut scratch = Vec::with_capacity(self.classes);
        let mut all = Vec::with_capacity(indices.len() * self.classes);
        for (index, row) in indices.iter().zip(logits.to_vec2::<f32>()?) {
            if row.iter().any(|v| !v.is_finite()) {
                return Err(TrainError::Settings(format!(
                    "the teacher's output for training sample {index} is not finite: check the original model's weights"
                )));
            }
            log_softmax(&row, self.temperature, &mut scratch);
            all.extend(scratch.iter().map(|v| v.exp() as f32));
        }
        let features = match (matching, outputs.get(self.outputs..)) {
            (Some(matching), Some(features)) => matching.taught(features, indices.len())?,
            _ => Vec::new(),
        };
        Ok(Said {
            probabilities: all,
            features,
        })
    }
}
