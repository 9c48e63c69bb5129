//! Distillation: losses, the optimiser loop, schedules. Uses `exec`, `data`, `eval`, `compress` (the model it trains).

use crate::{compress::Model, data::Dataset, eval::Estimate, exec::CancelToken, graph::Graph};

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    Sgd,
    AdamW,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    Constant,
    Cosine,
}

/// Settings of one distillation (Hinton et al. 2015: soft loss × T²).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistilSettings {
    pub epochs: usize,
    pub batch: usize,
    pub rate: f64,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub temperature: f32,
    /// Weight of the soft loss (against the teacher) and of the hard loss (against the labels).
    pub soft_weight: f32,
    pub hard_weight: f32,
    pub weight_decay: f64,
    /// Training samples used in an epoch; `None`: all of the training split.
    pub samples: Option<usize>,
}

impl Default for DistilSettings {
    fn default() -> Self {
        Self {
            epochs: 2,
            batch: 64,
            rate: 1e-3,
            optimizer: Optimizer::AdamW,
            schedule: Schedule::Cosine,
            temperature: 4.0,
            soft_weight: 0.9,
            hard_weight: 0.1,
            weight_decay: 1e-4,
            samples: None,
        }
    }
}

/// One point of the training curves.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainPoint {
    pub step: u64,
    pub steps: u64,
    pub epoch: f64,
    /// Mean loss since the last point.
    pub loss: f64,
    pub rate: f64,
    pub samples_per_second: f64,
    /// Top-1 on the search split, at epoch ends.
    pub accuracy: Option<Estimate>,
}

/// Told of progress after every mini-batch (the place where an interactive job may overtake).
pub trait TrainObserver {
    fn step(&mut self, point: &TrainPoint) -> Result<(), TrainError>;
}

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Exec(#[from] crate::exec::ExecError),
    #[error(transparent)]
    Eval(#[from] crate::eval::EvalError),
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    #[error("{0}")]
    Diverged(String),
}

/// Trains `student` against `teacher` with masks and fake quantisation held in place; returns the best checkpoint by top-1
/// on the search split (the start counts as one). The same seed gives the same bits whatever the number of threads.
pub fn distil(
    _student: Model,
    _teacher: &Graph,
    _data: &Dataset,
    _settings: &DistilSettings,
    _seed: u64,
    _observer: &mut dyn TrainObserver,
    _cancel: &CancelToken,
) -> Result<Model, TrainError> {
    unimplemented!()
}
