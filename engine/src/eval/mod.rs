//! Metrics with their uncertainty: top-1, top-5, cross-entropy, agreement, per class, and paired differences on the
//! same samples. Uses `exec` and `data`.

use crate::{
    data::{Dataset, SplitName},
    exec::{CancelToken, ExecError, Program},
};

/// A proportion or mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Estimate {
    pub value: f64,
    pub n: u64,
    /// 95 % interval (proportions: Wilson; means: normal; paired drops: see [`PairedDrop`]).
    pub ci: [f64; 2],
}

/// Per-sample results on one split, in the split's order. Small enough to keep for every run.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Evaluation {
    pub split: SplitName,
    pub n: u64,
    pub labels: Vec<u32>,
    /// Arg-max class of every sample (lowest index on ties).
    pub predictions: Vec<u32>,
    pub top5_correct: Vec<bool>,
    /// Cross-entropy of every sample, nats.
    pub losses: Vec<f32>,
}

/// Summary of an [`Evaluation`], fractions in 0..=1.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Metrics {
    pub split: SplitName,
    pub top1: Estimate,
    pub top5: Estimate,
    pub cross_entropy: Estimate,
    /// Share of samples with the baseline's label, where a baseline was given.
    pub agreement: Option<Estimate>,
    /// Top-1 of every class.
    pub per_class: Vec<Estimate>,
    /// Baseline top-1 minus this top-1 (fraction), paired on the same samples.
    pub drop: Option<PairedDrop>,
}

/// Difference of two accuracies on the same n samples. `only_baseline`: right only in the baseline (b),
/// `only_candidate`: right only in the candidate (c); drop = (b − c)/n with a 95 % interval from b and c.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PairedDrop {
    pub drop: f64,
    pub ci: [f64; 2],
    pub n: u64,
    pub only_baseline: u64,
    pub only_candidate: u64,
}

/// Told after every mini-batch; may ask to stop by an error. `done` and `total` count samples.
pub trait Observer {
    fn batch(&mut self, done: u64, total: u64) -> Result<(), ExecError>;
}

#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    #[error("{0}")]
    Shape(String),
}

/// Runs `program` over the first `limit` samples of a split (`None`: all).
pub fn evaluate(
    _program: &Program,
    _data: &Dataset,
    _split: SplitName,
    _limit: Option<usize>,
    _observer: &mut dyn Observer,
    _cancel: &CancelToken,
) -> Result<Evaluation, EvalError> {
    unimplemented!()
}

impl Evaluation {
    pub fn metrics(&self, _baseline: Option<&Evaluation>) -> Metrics {
        unimplemented!()
    }
    pub fn drop_from(&self, _baseline: &Evaluation) -> PairedDrop {
        unimplemented!()
    }
}
