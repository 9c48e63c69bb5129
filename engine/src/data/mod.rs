//! Data, labelled or not: sources (IDX, NPZ/NPY, image folders), preprocessing, and the four disjoint splits a task
//! names: calibration, search, training, holdout. Described by a `task.ron`. Uses `exec` only.

mod arrays;
mod augment;
mod files;
mod folder;
mod open;
mod preprocess;
mod reference;
mod splits;
mod task;
#[cfg(test)]
mod tests;

pub use augment::{Augmentation, Augmented};
pub use task::{describe_ron_error, did_you_mean};

use crate::graph::Graph;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use reference::Reference;
use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

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

impl SplitName {
    pub const ALL: [SplitName; 4] = [
        Self::Calibration,
        Self::Search,
        Self::Training,
        Self::Holdout,
    ];

    /// As it is written in a `task.ron`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Calibration => "calibration",
            Self::Search => "search",
            Self::Training => "training",
            Self::Holdout => "holdout",
        }
    }
}

impl fmt::Display for SplitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
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
    inner: Arc<Inner>,
    /// The model whose classes stand for labels where there are none.
    reference: Option<Arc<Reference>>,
}

struct Inner {
    info: DatasetInfo,
    recipe: preprocess::Recipe,
    sources: BTreeMap<String, Source>,
    splits: BTreeMap<SplitName, splits::Rows>,
    augmentation: Option<Augmentation>,
}

struct Source {
    /// For errors: the file or folder.
    what: String,
    count: usize,
    /// `None`: nobody gave any.
    labels: Option<Vec<u32>>,
    samples: Samples,
}

enum Samples {
    /// Images held in memory.
    Pictures(arrays::Array, preprocess::Geometry),
    /// Samples that are no images.
    Plain(arrays::Array),
    /// Image files, decoded on demand.
    Files(Vec<std::path::PathBuf>),
}

/// What the window and reports say about a data set.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DatasetInfo {
    pub name: String,
    pub classes: Vec<String>,
    /// Samples in each split.
    pub sizes: Vec<(SplitName, usize)>,
    /// Splits whose samples have no labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlabelled: Vec<SplitName>,
    /// Shape of one sample after preprocessing, without the batch axis.
    pub sample_shape: Vec<usize>,
    /// SHA-256 over the task file and all source bytes, hex.
    pub sha256: String,
}

/// A batch: `images` f32, N×sample_shape; `labels` one class index per image, or none where they were not asked for.
pub struct Batch {
    pub images: Tensor,
    pub labels: Vec<u32>,
}

impl Dataset {
    /// Reads a `task.ron` (strict: an unknown key is an error with line, column and a suggestion).
    pub fn open(task: &Path) -> Result<Self, DataError> {
        Ok(Self {
            inner: Arc::new(open::open(task)?),
            reference: None,
        })
    }

    /// The same data, the class that `original` gives standing for the label of every sample that has none: what is then told as top-1 is
    /// agreement with it. It is run when such a label is first asked for, once a sample.
    #[must_use]
    pub fn labelled_by(self, original: &Graph) -> Self {
        if self.inner.info.unlabelled.is_empty() {
            return self;
        }
        let reference = Some(Arc::new(Reference::new(original)));
        Self { reference, ..self }
    }

    /// Whether the samples of a split came with labels.
    pub fn has_labels(&self, split: SplitName) -> bool {
        !self.inner.info.unlabelled.contains(&split)
    }

    pub fn info(&self) -> &DatasetInfo {
        &self.inner.info
    }

    /// Samples of a split; 0 where the task does not name it.
    pub fn len(&self, split: SplitName) -> usize {
        self.inner.splits.get(&split).map_or(0, |s| s.rows.len())
    }

    /// What may be done to training images, where the task names anything.
    pub fn augmentation(&self) -> Option<&Augmentation> {
        self.inner.augmentation.as_ref()
    }

    pub fn is_empty(&self, split: SplitName) -> bool {
        self.len(split) == 0
    }

    /// Labels of a split in its fixed order as they came, without touching an image; empty where there are none.
    pub fn labels(&self, split: SplitName) -> Vec<u32> {
        let Ok((
            rows,
            Source {
                labels: Some(labels),
                ..
            },
        )) = self.source(split)
        else {
            return Vec::new();
        };
        rows.rows.iter().map(|row| labels[*row as usize]).collect()
    }

    /// Samples `range` of a split in its fixed order. Decoding runs in parallel on the engine's pool.
    pub fn batch(
        &self,
        split: SplitName,
        range: std::ops::Range<usize>,
    ) -> Result<Batch, DataError> {
        if range.start > range.end {
            return Err(out_of_split(split, range.start, self.len(split)));
        }
        let indices: Vec<usize> = range.collect();
        self.gather(split, &indices)
    }

    /// Chosen samples of a split (training order is the trainer's, seeded).
    ///
    /// # Errors
    /// As [`Dataset::images`], and a split without labels where no model stands in for them ([`Dataset::labelled_by`]).
    pub fn gather(&self, split: SplitName, indices: &[usize]) -> Result<Batch, DataError> {
        let images = self.images(split, indices)?;
        let labels = match (self.source(split)?, &self.reference) {
            (
                (
                    rows,
                    Source {
                        labels: Some(labels),
                        ..
                    },
                ),
                _,
            ) => {
                let rows = indices.iter().map(|index| rows.rows[*index]);
                rows.map(|row| labels[row as usize]).collect()
            }
            (_, Some(reference)) => reference.labels(self, split, indices)?,
            _ => {
                return Err(DataError::Task(format!(
                    "the {split} split of task {:?} has no labels: name them in its source, or give the original model, whose classes then \
                     stand for them",
                    self.inner.info.name
                )));
            }
        };
        Ok(Batch { images, labels })
    }

    fn source(&self, split: SplitName) -> Result<(&splits::Rows, &Source), DataError> {
        let inner = &*self.inner;
        let found = inner
            .splits
            .get(&split)
            .and_then(|rows| Some((rows, inner.sources.get(&rows.source)?)));
        found.ok_or_else(|| {
            DataError::Task(format!(
                "task {:?} names no {split} split: add one under `splits` in its task.ron",
                inner.info.name
            ))
        })
    }

    /// The images of chosen samples, N×sample_shape, whether there are labels or not: none is looked at.
    ///
    /// # Errors
    /// A split that the task does not name, a sample that it does not have, files that cannot be read.
    pub fn images(&self, split: SplitName, indices: &[usize]) -> Result<Tensor, DataError> {
        let inner = &*self.inner;
        let (split_rows, source) = self.source(split)?;
        let rows: Vec<usize> = indices
            .iter()
            .map(|index| {
                split_rows
                    .rows
                    .get(*index)
                    .map(|row| *row as usize)
                    .ok_or_else(|| out_of_split(split, *index, split_rows.rows.len()))
            })
            .collect::<Result<_, _>>()?;
        let size = inner.info.sample_shape.iter().product::<usize>();
        let mut values = vec![0f32; size * rows.len()];
        let fill = |(out, row): (&mut [f32], &usize)| inner.sample(source, *row, out);
        let work = values.chunks_exact_mut(size.max(1));
        // Lookups cost less than waking the pool; decoding and resampling do not.
        if matches!(source.samples, Samples::Files(_)) || inner.recipe.resamples() {
            let results: Vec<Result<(), DataError>> = crate::exec::pool().install(|| {
                values
                    .par_chunks_exact_mut(size.max(1))
                    .zip(&rows)
                    .map(fill)
                    .collect()
            });
            // The first failure in the batch's order, whichever thread met one first.
            results.into_iter().collect::<Result<(), _>>()?;
        } else {
            work.zip(&rows).try_for_each(fill)?;
        }
        let mut shape = vec![rows.len()];
        shape.extend(&inner.info.sample_shape);
        Tensor::from_vec(values, shape, &Device::Cpu)
            .map_err(|e| DataError::Source(format!("a batch of {} samples: {e}", rows.len())))
    }
}

/// Samples a batch: enough to keep the kernels busy on small images, few enough that the activations of large ones stay
/// in tens of megabytes. Depends on the data alone, so that a run always has the same batches.
pub(crate) fn batch_size(sample_shape: &[usize]) -> usize {
    let elements: usize = sample_shape.iter().product::<usize>().max(1);
    (2_500_000 / elements).clamp(4, 64)
}

fn out_of_split(split: SplitName, index: usize, len: usize) -> DataError {
    DataError::Source(format!(
        "sample {index} of the {split} split was asked for, which has {len}"
    ))
}

impl Inner {
    fn sample(&self, source: &Source, row: usize, out: &mut [f32]) -> Result<(), DataError> {
        match &source.samples {
            Samples::Pictures(array, geometry) => {
                let what = || format!("item {row} of {}", source.what);
                self.recipe.array_sample(array, *geometry, row, out, &what)
            }
            Samples::Plain(array) => {
                self.recipe.plain(&array.values, row * out.len(), out);
                Ok(())
            }
            Samples::Files(paths) => {
                let path = &paths[row];
                let image = folder::decode(path)?;
                self.recipe
                    .image_sample(image, out, &|| path.display().to_string())
            }
        }
    }
}
