//! Samples in batches that a model takes: as many as suit the pass, or exactly as many as the model's input fixes.

use crate::{
    data::{Batch, DataError, Dataset, SplitName},
    exec::ExecError,
};
use candle_core::Tensor;
use std::ops::Range;

/// Samples of the calibration split that go through a network together, filled up with the last of them where the model takes more at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    first: usize,
    /// Samples of its own.
    pub rows: usize,
    /// Samples that are fed.
    size: usize,
}

/// Splits `samples` up, `usual` at a time or as many as the model's input fixes.
pub(super) fn chunks(
    samples: Range<usize>,
    usual: usize,
    fixed: Option<usize>,
) -> impl Iterator<Item = Chunk> {
    let step = fixed.unwrap_or(usual).max(1);
    let end = samples.end;
    samples.step_by(step).map(move |first| {
        let rows = step.min(end - first);
        Chunk {
            first,
            rows,
            size: if fixed.is_some() { step } else { rows },
        }
    })
}

impl Chunk {
    /// What is fed, with labels.
    pub fn read(self, data: &Dataset) -> Result<Batch, DataError> {
        data.gather(SplitName::Calibration, &self.indices())
    }

    /// What is fed.
    pub fn images(self, data: &Dataset) -> Result<Tensor, DataError> {
        data.images(SplitName::Calibration, &self.indices())
    }

    fn indices(self) -> Vec<usize> {
        let last = self.first + self.rows - 1;
        let all = self.first..self.first + self.size;
        all.map(|index| index.min(last)).collect()
    }

    /// A value without the samples that fill the batch up. Samples lie along the first axis, several rows each where it is a multiple of
    /// their number (as where positions are rows of a matrix); what has another first axis is given as it is.
    pub fn own(self, value: &Tensor) -> Result<Tensor, ExecError> {
        let first = value.dims().first().copied().unwrap_or(0);
        if self.rows == self.size || first == 0 || first % self.size != 0 {
            return Ok(value.clone());
        }
        Ok(value.narrow(0, 0, first / self.size * self.rows)?)
    }
}
