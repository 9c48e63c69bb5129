//! Distillation: losses, the optimiser loop, schedules. Uses `exec`, `data`, `eval`, `compress` (the model it trains).

mod average;
mod batch;
mod checkpoint;
mod gradual;
mod hint;
mod loss;
mod matching;
mod optimise;
mod order;
mod recover;
mod run;
mod stages;
mod stored;
mod teacher;
#[cfg(test)]
mod tests;

pub use checkpoint::{Checkpoint, CheckpointText};
pub use matching::matched_features;
pub use recover::Rollback;
pub use run::{distil, resume};
pub use stored::{Blobs, decode, decode_header, encode};

use crate::{compress::Model, eval::Estimate, exec::StepSizes};

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// With momentum 0.9.
    Sgd,
    AdamW,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    Constant,
    /// Rises in a straight line over the first twentieth of the steps (at most 100), then falls to 0 along half a cosine (Loshchilov & Hutter
    /// 2017).
    Cosine,
    /// Rises in a straight line from a twenty-fifth over the first three tenths of the steps, then falls to a ten-thousandth along half a
    /// cosine (Smith 2018).
    OneCycle,
}

/// What batch norms normalise by while the network trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BatchNorm {
    /// Their stored statistics, which stay as they are.
    #[default]
    Frozen,
    /// Mean and variance of each mini-batch (Ioffe & Szegedy 2015), the stored ones following by ONNX's rule; from `freeze_at` of the schedule
    /// on the stored ones, so that the end of training sees the network that is exported.
    Batch {
        /// Share of the schedule's steps, above 0 and up to 1; 1: to the end.
        #[serde(default = "BatchNorm::freeze_at")]
        freeze_at: f64,
        /// `stored = stored·momentum + seen·(1 − momentum)`.
        #[serde(default = "BatchNorm::momentum")]
        momentum: f64,
    },
}

impl BatchNorm {
    fn freeze_at() -> f64 {
        0.6
    }
    fn momentum() -> f64 {
        0.9
    }
    fn is_frozen(&self) -> bool {
        *self == Self::Frozen
    }

    /// Step (from 0) of `scheduled` from which stored statistics are used; 0: always.
    pub(crate) fn frozen_from(&self, scheduled: u64) -> u64 {
        match self {
            Self::Frozen => 0,
            Self::Batch { freeze_at, .. } => (freeze_at * scheduled as f64).ceil() as u64,
        }
    }
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
    /// Share of the steps that the rate rises over, instead of the schedule's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<f64>,
    /// Gradients are scaled down to this norm, taken over all of them, where they exceed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// The network that is judged and kept is the moving average of the weights (Polyak & Juditsky 1992), an old average counting this much;
    /// less in the first steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average: Option<f64>,
    /// Images are changed at random as the task's `augment` allows, before teacher and student see them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub augment: bool,
    pub temperature: f32,
    /// Weight of the soft loss (against the teacher) and of the hard loss (against the labels).
    pub soft_weight: f32,
    pub hard_weight: f32,
    /// Weight of the squared error between the student's and the teacher's features at the ends of their stages (FitNets, Romero et al. 2015),
    /// relative to the teacher's energy there; the mean over stages. Where widths differ a projection is trained along and thrown away.
    #[serde(skip_serializing_if = "is_zero")]
    pub feature_weight: f32,
    /// Weight of the squared difference of normalised attention maps there (Zagoruyko & Komodakis 2017).
    #[serde(skip_serializing_if = "is_zero")]
    pub attention_weight: f32,
    /// On weights of rank 2 and more; biases and normalisations don't decay.
    pub weight_decay: f64,
    /// Training samples used in an epoch, other ones each time until all were seen; `None`: all of the training split.
    pub samples: Option<usize>,
    #[serde(skip_serializing_if = "BatchNorm::is_frozen")]
    pub batch_norm: BatchNorm,
    /// Ends when so many epochs in a row gave no better state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// Of quantised weights and of activations with calibrated ranges: their step sizes are trained too (LSQ, Esser et al. 2020). Distillation
    /// behind Quantize only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub learned_step_sizes: bool,
    /// Ends after this many of the `epochs` (the schedule stays that of all): how a cancelled distillation is repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_after: Option<usize>,
    /// What is kept is the state at the end, whatever it was judged at, and not the best: what another training goes on from.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_last: bool,
}

impl Default for DistilSettings {
    fn default() -> Self {
        Self {
            epochs: 2,
            batch: 64,
            rate: 1e-3,
            optimizer: Optimizer::AdamW,
            schedule: Schedule::Cosine,
            warm_up: None,
            clip_norm: None,
            average: None,
            augment: false,
            temperature: 4.0,
            soft_weight: 0.9,
            hard_weight: 0.1,
            feature_weight: 0.0,
            attention_weight: 0.0,
            weight_decay: 1e-4,
            samples: None,
            batch_norm: BatchNorm::Frozen,
            patience: None,
            learned_step_sizes: false,
            stop_after: None,
            keep_last: false,
        }
    }
}

fn is_zero(weight: &f32) -> bool {
    *weight == 0.0
}

impl DistilSettings {
    /// Whether features within the networks count.
    pub fn matches_features(&self) -> bool {
        self.feature_weight > 0.0 || self.attention_weight > 0.0
    }

    /// Epochs that are really trained.
    pub fn trained_epochs(&self) -> usize {
        self.stop_after.map_or(self.epochs, |n| n.min(self.epochs))
    }

    /// What cannot be trained with, in words.
    pub fn check(&self) -> Result<(), TrainError> {
        let positive = |v: f64| v.is_finite() && v > 0.0;
        let not_negative = |v: f64| v.is_finite() && v >= 0.0;
        let (soft, hard) = (f64::from(self.soft_weight), f64::from(self.hard_weight));
        let within = [
            ("feature_weight", f64::from(self.feature_weight)),
            ("attention_weight", f64::from(self.attention_weight)),
        ];
        let statistics = match self.batch_norm {
            BatchNorm::Batch { freeze_at, .. } if !(positive(freeze_at) && freeze_at <= 1.0) => {
                Some(format!(
                    "freeze_at is {freeze_at}: it is the share of the steps that batch norms take the mini-batch's statistics in, above 0 and at most 1"
                ))
            }
            BatchNorm::Batch { momentum, .. } if !(0.0..1.0).contains(&momentum) => Some(format!(
                "momentum of the batch norms is {momentum}: it is at least 0 and below 1"
            )),
            BatchNorm::Batch { .. } if self.batch < 2 => Some(
                "batch is 1: the statistics of a mini-batch need at least 2 samples, or use `batch_norm: frozen`".to_owned(),
            ),
            _ => None,
        };
        let wrong = if let Some(wrong) = statistics {
            wrong
        } else if self.epochs == 0 {
            "epochs is 0: train for at least 1".to_owned()
        } else if self.batch == 0 {
            "batch is 0: a mini-batch has at least 1 sample".to_owned()
        } else if self.samples == Some(0) {
            "samples is 0: use at least 1 an epoch, or leave it out for all".to_owned()
        } else if self.patience == Some(0) {
            "patience is 0: wait at least 1 epoch for a better state, or leave it out".to_owned()
        } else if self.keep_last && self.patience.is_some() {
            "keep_last and patience are both set: patience waits for a better state, and keep_last takes the last one; leave one of them out".to_owned()
        } else if let Some(stop) = self.stop_after
            && !(1..=self.epochs).contains(&stop)
        {
            format!(
                "stop_after is {stop}: it is at least 1 and at most epochs, which is {}",
                self.epochs
            )
        } else if !positive(self.rate) {
            format!("rate is {}: a learning rate is above 0", self.rate)
        } else if let Some(share) = self.warm_up
            && !(0.0..=1.0).contains(&share)
        {
            format!(
                "warm_up is {share}: it is the share of the steps that the rate rises over, 0 to 1"
            )
        } else if let Some(norm) = self.clip_norm
            && !positive(norm)
        {
            format!("clip_norm is {norm}: a norm to scale gradients down to is above 0")
        } else if let Some(kept) = self.average
            && !(positive(kept) && kept < 1.0)
        {
            format!("average is {kept}: what an old average counts is above 0 and below 1")
        } else if !positive(f64::from(self.temperature)) {
            format!("temperature is {}: it must be above 0", self.temperature)
        } else if let Some((name, value)) = within.iter().find(|(_, v)| !not_negative(*v)) {
            format!("{name} is {value}: a weight must not be negative")
        } else if !not_negative(soft)
            || !not_negative(hard)
            || soft + hard == 0.0 && !self.matches_features()
        {
            format!(
                "soft_weight {soft} and hard_weight {hard} must not be negative, nor both 0 where no features are matched"
            )
        } else if !not_negative(self.weight_decay) {
            format!(
                "weight_decay is {}: it must not be negative",
                self.weight_decay
            )
        } else {
            return Ok(());
        };
        Err(TrainError::Settings(wrong))
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
    /// How often training had gone back to an earlier state by then: steps that were taken again come again.
    #[serde(default)]
    pub rollbacks: u32,
}

/// Told of progress after every mini-batch. Time spent here is not counted as training.
pub trait TrainObserver {
    fn step(&mut self, point: &TrainPoint) -> Result<(), TrainError>;
    /// The place where an interactive job may overtake: called after every mini-batch, once its checkpoint is taken where one is wanted, and between
    /// those of the evaluations before the first step and at epoch ends.
    fn pause(&mut self) -> Result<(), TrainError> {
        Ok(())
    }
    /// Whether a checkpoint is to be taken now, after the mini-batch that was told last.
    fn wants_checkpoint(&mut self) -> bool {
        false
    }
    /// What was wanted.
    fn checkpoint(&mut self, _checkpoint: &Checkpoint) {}
    /// Whether states at epochs' ends are wanted.
    fn wants_epochs(&self) -> bool {
        false
    }
    /// What a training with `keep_last` that ends here leaves, without its points.
    fn epoch(&mut self, _cut: Distilled) {}
}

/// Features that were matched.
#[derive(Clone, Debug, PartialEq)]
pub struct MatchedPair {
    /// Values of the student and of the teacher.
    pub student: String,
    pub teacher: String,
    /// Their channels.
    pub student_width: usize,
    pub teacher_width: usize,
    /// Height and width, or positions.
    pub places: Vec<usize>,
    /// Whether a projection was trained between them.
    pub projected: bool,
}

/// What a distillation leaves.
#[derive(Clone, Debug)]
pub struct Distilled {
    /// The best checkpoint by top-1 on the search split (equal ones: by cross-entropy), or the last; the start counts as one. Where weights are pruned while
    /// training, those count whose masks are final.
    pub model: Model,
    /// Epochs that had been trained when the best checkpoint was taken; 0: the start.
    pub best_epoch: usize,
    /// Top-1 on the search split of the start and of `model`; `None` when cancelled before the start was judged. `best` also when cancelled before
    /// masks that grow were final.
    pub start: Option<Estimate>,
    pub best: Option<Estimate>,
    /// One point a mini-batch.
    pub points: Vec<TrainPoint>,
    /// Epochs that were trained.
    pub epochs: usize,
    /// Where training diverged and went back.
    pub rollbacks: Vec<Rollback>,
    /// Batch norms that took the mini-batch's statistics: none where they were to stay frozen, or had been folded before.
    pub batch_norms: usize,
    /// Step sizes that were trained.
    pub step_sizes: StepSizes,
    /// Features that were held against each other.
    pub matched: Vec<MatchedPair>,
    /// How many weights were pruned while training, of how many; `None` where that was not asked for.
    pub pruned: Option<(u64, u64)>,
    /// Training was cancelled: `model` is the best of the epochs that were finished, a partial result.
    pub cancelled: bool,
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
    /// A setting, or a pair of models and data, that cannot be trained with.
    #[error("distillation cannot start: {0}")]
    Settings(String),
    #[error("{0}")]
    Diverged(String),
}

impl From<candle_core::Error> for TrainError {
    fn from(error: candle_core::Error) -> Self {
        Self::Exec(error.into())
    }
}

impl TrainError {
    /// Whether this is a wish to stop rather than a failure.
    pub fn is_cancelled(&self) -> bool {
        use crate::{data::DataError, eval::EvalError, exec::ExecError};
        matches!(
            self,
            Self::Cancelled
                | Self::Exec(ExecError::Cancelled)
                | Self::Data(DataError::Cancelled)
                | Self::Eval(
                    EvalError::Exec(ExecError::Cancelled) | EvalError::Data(DataError::Cancelled)
                )
        )
    }
}
