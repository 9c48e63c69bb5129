//! The recipe: what to do to a model, in RON; strict reading, resolution of globs to layers, the pipeline that carries it
//! out, and the lock file that says exactly what was done. Desktop and command line run the same pipeline.

use crate::{
    compress::{Precision, QuantScheme, Ratio},
    train::DistilSettings,
};
use std::path::PathBuf;

/// Per-layer value of a step. Precedence: `default` < glob < exact name; `Keep` leaves a layer alone.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice<T> {
    Keep,
    Set(T),
}

/// One line of a step's `layers`: a glob or a name, and its value.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Rule<T>(pub String, pub Choice<T>);

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Step {
    FoldBatchNorm,
    Prune(PruneStep),
    Quantize(QuantizeStep),
    Distil(DistilSettings),
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneStep {
    pub default: Choice<Ratio>,
    #[serde(default)]
    pub layers: Vec<Rule<Ratio>>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizeStep {
    pub default: Choice<Precision>,
    #[serde(default)]
    pub layers: Vec<Rule<Precision>>,
    #[serde(default)]
    pub scheme: QuantScheme,
}

/// A goal, with its type: absolute points of top-1 lost, or relative percent of the baseline's top-1; bytes of the stored file.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Goal {
    DropPoints(f64),
    DropRelativePercent(f64),
    StoredKilobytes(f64),
    RuntimeKilobytes(f64),
}

/// Pass, fail, or too few samples to tell, judged by the whole 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    Fail,
    Inconclusive,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of this schema: 1.
    pub version: u32,
    #[serde(default)]
    pub name: String,
    /// Relative to the recipe's own folder.
    pub model: PathBuf,
    pub task: PathBuf,
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub goals: Vec<Goal>,
    pub steps: Vec<Step>,
}
