//! Classes that a model gives, where samples have no labels of their own.

use super::{DataError, Dataset, SplitName, batch_size};
use crate::{
    exec::{CancelToken, Mode, NoTaps, Program},
    graph::Graph,
};
use candle_core::{DType, Tensor};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
};

type Classes = Arc<[u32]>;

/// The model, and its classes as far as they were asked for.
pub(super) struct Reference {
    graph: Graph,
    program: OnceLock<Result<Program, String>>,
    /// By the batch of a split that an evaluation has too: the same class as there, to the last bit of a near tie.
    known: Mutex<BTreeMap<(SplitName, usize), Classes>>,
}

fn failed(why: impl std::fmt::Display) -> DataError {
    DataError::Source(format!(
        "the data have no labels, and the original model, whose classes stand for them, cannot be run: {why}"
    ))
}

impl Reference {
    pub fn new(graph: &Graph) -> Self {
        Self {
            graph: graph.clone(),
            program: OnceLock::new(),
            known: Mutex::default(),
        }
    }

    /// The model's classes of samples that the split has.
    pub fn labels(
        &self,
        data: &Dataset,
        split: SplitName,
        indices: &[usize],
    ) -> Result<Vec<u32>, DataError> {
        let compile = || Program::compile(&self.graph, Mode::Inference).map_err(|e| e.to_string());
        let program = self.program.get_or_init(compile).as_ref().map_err(failed)?;
        let fixed = program.fixed_batch();
        let step = fixed.unwrap_or_else(|| batch_size(&data.info().sample_shape));
        indices
            .iter()
            .map(|index| {
                let batch = index / step;
                let known = || self.known.lock().unwrap_or_else(|e| e.into_inner());
                let found = known().get(&(split, batch)).cloned();
                let classes = match found {
                    Some(classes) => classes,
                    None => {
                        let fresh = classes(program, data, split, batch * step, step)?;
                        known().insert((split, batch), fresh.clone());
                        fresh
                    }
                };
                Ok(classes[index - batch * step])
            })
            .collect()
    }
}

/// Classes of `step` samples from `start`, as many as there are.
fn classes(
    program: &Program,
    data: &Dataset,
    split: SplitName,
    start: usize,
    step: usize,
) -> Result<Classes, DataError> {
    let end = (start + step).min(data.len(split));
    let mut indices: Vec<usize> = (start..end).collect();
    if let Some(size) = program.fixed_batch() {
        indices.resize(size, end - 1);
    }
    let images = data.images(split, &indices)?;
    let outputs = program.run(&[images], &mut NoTaps, &CancelToken::default());
    let outputs = outputs.map_err(failed)?;
    let (n, wanted) = (indices.len(), data.info().classes.len());
    let rows = outputs.first().filter(|t| {
        let dims = t.dims();
        dims.len() >= 2 && dims[..2] == [n, wanted] && dims[2..].iter().all(|extent| *extent == 1)
    });
    let Some(rows) = rows else {
        let shape = outputs.first().map(|t| t.dims().to_vec());
        return Err(failed(format!(
            "its output has shape {:?} for {n} samples of a task with {wanted} classes; use the task that belongs to the model",
            shape.unwrap_or_default()
        )));
    };
    let flat = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let rows = flat(rows).map_err(failed)?;
    let largest = |(at, row): (usize, &[f32])| {
        if row.iter().any(|v| !v.is_finite()) {
            let sample = start + at;
            return Err(failed(format!(
                "its output for sample {sample} of the {split} split is not finite"
            )));
        }
        // The lower one of equal ones, as everywhere.
        let better = |best: usize, class: usize| if row[class] > row[best] { class } else { best };
        Ok((0..row.len()).fold(0, better) as u32)
    };
    rows.chunks_exact(wanted.max(1))
        .take(end - start)
        .enumerate()
        .map(largest)
        .collect()
}
