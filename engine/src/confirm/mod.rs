//! Whether what Limbeck predicts of an exported file is what the deployment runtime gives: labels, outputs, and every quantised
//! tensor. Uses `graph`, `formats`, `exec`, `data`, `eval`, `measure`.

mod layers;
mod pair;
mod run;
mod tensors;
#[cfg(test)]
mod tests;

pub use layers::{APART, LayerComparison, LayerReport};
pub use pair::{LayerSummary, RuntimePair, TensorSummary};
pub use run::{Simulated, confirm};
pub use tensors::{Codes, TensorComparison, TensorReport};

use crate::{
    data::{DataError, SplitName},
    eval::{Estimate, EvalError, PairedDrop},
    exec::ExecError,
    formats::onnx::FormatError,
    measure::runtime::{Optimizations, RuntimeError},
};
use std::path::PathBuf;

/// Least share of samples that must have the same label, in thousandths: below it prediction and runtime disagree.
pub const LEAST_AGREEMENT: u64 = 999;

/// What to ask the runtime.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfirmOptions {
    pub split: SplitName,
    /// Only the first so many samples of the split.
    pub limit: Option<usize>,
    /// Each once, in this order.
    pub optimizations: Vec<Optimizations>,
    /// Samples of which every quantised tensor is compared too, or every layer's result where no activation is quantised, with optimisations
    /// off; 0: none.
    pub tensor_samples: usize,
    /// Of the runtime; 0: all cores.
    pub threads: usize,
}

impl Default for ConfirmOptions {
    fn default() -> Self {
        Self {
            split: SplitName::Holdout,
            limit: None,
            optimizations: vec![Optimizations::Off, Optimizations::On],
            tensor_samples: 256,
            threads: 0,
        }
    }
}

/// What the runtime gave with one setting, against what Limbeck predicts on the same samples.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RuntimeRun {
    pub optimizations: Optimizations,
    /// Whether it is held against the prediction for the run's target, and not against the file's plain arithmetic.
    pub at_target: bool,
    /// Top-1 in the runtime, measured.
    pub top1: Estimate,
    /// Share of samples with the label that Limbeck predicts.
    pub agreement: Estimate,
    /// Samples with that label.
    pub same_labels: u64,
    /// Predicted top-1 minus the runtime's, paired on the same samples.
    pub drop: PairedDrop,
    /// Largest difference between two numbers of the first output, in its own unit (logits or probabilities).
    pub largest_difference: f32,
    /// Largest magnitude among those numbers on Limbeck's side: what the difference is to be held against. `None` in projects from before it was kept.
    #[serde(default)]
    pub largest_output: Option<f32>,
    /// Of the samples with another label, the clearest prediction: how far the best class led the next, in the same unit. A lead no
    /// larger than the differences of outputs is a near tie. `None` where no label differs.
    pub clearest_lead: Option<f32>,
}

impl RuntimeRun {
    /// Whether at least 99.9 % of the labels are the same.
    pub fn agrees(&self) -> bool {
        self.same_labels * 1000 >= self.agreement.n * LEAST_AGREEMENT
    }
}

/// Prediction and runtime side by side.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Confirmation {
    /// Version of ONNX Runtime.
    pub runtime: String,
    pub library: PathBuf,
    pub split: SplitName,
    pub n: u64,
    /// The samples have no labels: every `top1` and `predicted` is agreement with the original.
    pub unlabelled: bool,
    /// Top-1 by Limbeck's own evaluation of the exported file.
    pub predicted: Estimate,
    /// The prediction for the arithmetic of the run's target, where that differs.
    pub target: Option<TargetPrediction>,
    pub runs: Vec<RuntimeRun>,
    /// With optimisations off, where that was asked for and the model quantises activations.
    pub tensors: Option<TensorReport>,
    /// With optimisations off, where that was asked for and no activation is quantised.
    pub layers: Option<LayerReport>,
    /// Classes that Limbeck predicts, in the split's order.
    #[serde(skip)]
    pub predictions: Vec<u32>,
}

/// What a target's own arithmetic is predicted to give.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TargetPrediction {
    pub name: String,
    pub top1: Estimate,
    /// Whether this machine's processor computes so: only then can the runtime confirm it here.
    pub here: bool,
    #[serde(skip)]
    pub predictions: Vec<u32>,
}

impl Confirmation {
    /// Whether every run has at least 99.9 % of the labels.
    pub fn agrees(&self) -> bool {
        self.runs.iter().all(RuntimeRun::agrees)
    }
}

/// Why nothing could be confirmed or denied.
#[derive(Debug, thiserror::Error)]
pub enum ConfirmError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// Elements that count of a tensor of `len` elements and shape `dims`, in a batch of (samples that count, samples): all of what has no batch
/// axis in front.
fn counted(dims: &[usize], len: usize, (count, padded): (usize, usize)) -> usize {
    match dims.first() {
        Some(first) if *first == padded => len / padded.max(1) * count,
        _ => len,
    }
}
