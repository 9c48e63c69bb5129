//! What one mini-batch teaches: images, labels, and what the teacher says of them.

use super::{
    DistilSettings, TrainError,
    loss::DistilLoss,
    matching::{Matching, Taught},
    teacher::{Said, Teacher},
};
use crate::{
    data::{Augmentation, Augmented, Batch, Dataset, SplitName},
    exec::CancelToken,
};
use candle_core::Tensor;
use std::ops::Range;

/// Where lessons come from.
pub(super) struct Lessons<'a> {
    data: &'a Dataset,
    /// Absent when nothing is learned from it.
    teacher: Option<Teacher>,
    augmentation: Option<&'a Augmentation>,
    seed: u64,
    /// Whether labels count; else none is looked at.
    labelled: bool,
}

/// One mini-batch.
pub(super) struct Lesson {
    pub images: Tensor,
    /// Or none, where they do not count.
    labels: Vec<u32>,
    others: Vec<u32>,
    share: f32,
    /// Probabilities at the temperature, or empty.
    teacher: Vec<f32>,
    /// The teacher's, by matched pair.
    pub features: Vec<Taught>,
}

impl<'a> Lessons<'a> {
    /// # Errors
    /// Augmentation is asked for, and the task allows none; labels are to be learned from, and there are none.
    pub fn new(
        data: &'a Dataset,
        settings: &DistilSettings,
        teacher: Option<Teacher>,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let augmentation = data.augmentation().filter(|_| settings.augment);
        if settings.augment && augmentation.is_none() {
            return Err(TrainError::Settings(format!(
                "augment is on, but the task.ron of {:?} names nothing that may be done to its images: add `augment: (flip: true, shift: 2)` \
                 or what else leaves them what they are",
                data.info().name
            )));
        }
        let labelled = settings.hard_weight > 0.0;
        if labelled && !data.has_labels(SplitName::Training) {
            return Err(TrainError::Settings(format!(
                "hard_weight is {}, but the training samples of {:?} have no labels: set `hard_weight: 0` to learn from the original's outputs alone",
                settings.hard_weight,
                data.info().name
            )));
        }
        Ok(Self {
            data,
            teacher,
            augmentation,
            seed,
            labelled,
        })
    }

    /// The samples `indices` of the training split, as they are learned from at `step`.
    pub fn take(
        &mut self,
        indices: &[usize],
        step: u64,
        matching: Option<&Matching>,
        cancel: &CancelToken,
    ) -> Result<Lesson, TrainError> {
        let batch = if self.labelled {
            self.data.gather(SplitName::Training, indices)?
        } else {
            Batch {
                images: self.data.images(SplitName::Training, indices)?,
                labels: Vec::new(),
            }
        };
        let classes = self.data.info().classes.len();
        if let Some(at) = batch.labels.iter().position(|l| *l as usize >= classes) {
            return Err(TrainError::Settings(format!(
                "training sample {} has label {}, but the task names {classes} classes",
                indices[at], batch.labels[at]
            )));
        }
        let Augmented {
            batch: Batch { images, labels },
            others,
            share,
        } = match self.augmentation {
            Some(augmentation) => augmentation.apply(batch, self.seed, step)?,
            None => Augmented {
                batch,
                others: Vec::new(),
                share: 1.0,
            },
        };
        let said = match &mut self.teacher {
            None => Said::default(),
            // The teacher sees what the student sees (Beyer et al. 2022). Features are too many to be kept.
            Some(teacher) if self.augmentation.is_some() || matching.is_some() => {
                teacher.fresh(indices, &images, matching, cancel)?
            }
            Some(teacher) => Said {
                probabilities: teacher.probabilities(indices, &images, cancel)?,
                features: Vec::new(),
            },
        };
        Ok(Lesson {
            images,
            labels,
            others,
            share,
            teacher: said.probabilities,
            features: said.features,
        })
    }
}

impl Lesson {
    /// The loss of these of its samples.
    pub fn loss(
        &self,
        rows: Range<usize>,
        classes: usize,
        settings: &DistilSettings,
    ) -> DistilLoss {
        let taught = rows.start * classes..rows.end * classes;
        DistilLoss {
            samples: rows.len(),
            classes,
            teacher: self.teacher.get(taught).unwrap_or_default().to_vec(),
            labels: self.labels.get(rows.clone()).unwrap_or_default().to_vec(),
            others: self.others.get(rows).unwrap_or_default().to_vec(),
            share: f64::from(self.share),
            temperature: settings.temperature,
            soft: settings.soft_weight,
            hard: settings.hard_weight,
        }
    }

    /// What guessing all classes alike loses on them.
    pub fn guess(&self, classes: usize, settings: &DistilSettings) -> f64 {
        let even = (classes.max(1) as f64).ln();
        let hard = f64::from(settings.hard_weight) * even;
        if self.teacher.is_empty() {
            return hard;
        }
        let t = f64::from(settings.temperature);
        let entropy = |p: &f32| f64::from(*p) * f64::from(*p).max(f64::MIN_POSITIVE).ln();
        let sure = self.teacher.iter().map(entropy).sum::<f64>();
        let samples = (self.teacher.len() / classes.max(1)).max(1);
        let divergence = even + sure / samples as f64;
        hard + f64::from(settings.soft_weight) * t * t * divergence
    }
}
