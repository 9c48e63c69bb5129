//! Labelled data: sources (IDX, NPZ/NPY, image folders), preprocessing, and the four disjoint splits a task
//! names: calibration, search, training, holdout. Described by a `task.ron`. Uses `exec` only.

use candle_core::Tensor;
use std::path::Path;

/// Which part of the data a number was measured on.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum SplitName {
    Calibration,
    Search,
    Training,
    Holdout,
}

/// Why data could not be read: names the file, and the line or item.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{0}")]
    Task(String),
    #[error("{0}")]
    Source(String),
    #[error("cancelled")]
    Cancelled,
}

/// A task opened: the labelled data behind a `task.ron`. Cheap to clone; images are decoded on demand (folders) or
/// held as bytes (IDX, NPZ).
#[derive(Clone)]
pub struct Dataset {
    _private: (),
}

/// What the window and reports say about a data set.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DatasetInfo {
    pub name: String,
    pub classes: Vec<String>,
    /// Samples in each split.
    pub sizes: Vec<(SplitName, usize)>,
    /// Shape of one sample after preprocessing, without the batch axis.
    pub sample_shape: Vec<usize>,
    /// SHA-256 over the task file and all source bytes, hex.
    pub sha256: String,
}

/// A batch: `images` f32, N×sample_shape; `labels` one class index per image.
pub struct Batch {
    pub images: Tensor,
    pub labels: Vec<u32>,
}

impl Dataset {
    /// Reads a `task.ron` (strict: an unknown key is an error with line, column and a suggestion).
    pub fn open(_task: &Path) -> Result<Self, DataError> {
        unimplemented!()
    }
    pub fn info(&self) -> &DatasetInfo {
        unimplemented!()
    }
    pub fn len(&self, _split: SplitName) -> usize {
        unimplemented!()
    }
    /// Samples `range` of a split in its fixed order. Decoding runs in parallel on the engine's pool.
    pub fn batch(
        &self,
        _split: SplitName,
        _range: std::ops::Range<usize>,
    ) -> Result<Batch, DataError> {
        unimplemented!()
    }
    /// Chosen samples of a split (training order is the trainer's, seeded).
    pub fn gather(&self, _split: SplitName, _indices: &[usize]) -> Result<Batch, DataError> {
        unimplemented!()
    }
}
