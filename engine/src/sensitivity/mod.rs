//! How much each layer minds each candidate, in tiers: a weight-only proxy at once, local output errors and what the outputs
//! notice of them from one pass over some images, then real evaluations cell by cell. Uses `compress`, `eval`.

mod local;
mod looks;
mod measured;
mod networks;
mod proxy;

pub use local::estimate;
pub use measured::measure;
pub use proxy::{proxy, proxy_by_parts};

use crate::{
    compress::{LayerSetting, Precision, Ratio},
    exec::ExecError,
    graph::LayerId,
};

/// What is tried on a layer alone, all others left as they are.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Candidate {
    Fp16,
    Int8,
    Int4,
    P25,
    P50,
    P75,
}

impl Candidate {
    pub const ALL: [Candidate; 6] = [
        Self::Fp16,
        Self::Int8,
        Self::Int4,
        Self::P25,
        Self::P50,
        Self::P75,
    ];

    /// As it is written in JSON and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::P25 => "p25",
            Self::P50 => "p50",
            Self::P75 => "p75",
        }
    }

    /// Precision of the weights it stands for; fp32 for the pruning candidates.
    pub fn precision(self) -> Precision {
        match self {
            Self::Fp16 => Precision::Fp16,
            Self::Int8 => Precision::Int8,
            Self::Int4 => Precision::Int4,
            Self::P25 | Self::P50 | Self::P75 => Precision::Fp32,
        }
    }

    /// What a plan that tries it asks of the layer.
    pub fn setting(self) -> LayerSetting {
        let sparsity = match self {
            Self::P25 => 0.25,
            Self::P50 => 0.5,
            Self::P75 => 0.75,
            _ => 0.0,
        };
        LayerSetting {
            precision: self.precision(),
            sparsity: Ratio(sparsity),
        }
    }
}

/// Where a cell's number comes from, the least telling first.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Weight-only noise: relative squared error of the weights, no data seen.
    Proxy,
    /// Relative squared error of the layer's output, its input being as it is in the original: Σ(ŷ − y)²/Σy².
    Local,
    /// The layer's output error weighted with what the outputs notice of it: an estimate of the divergence, nats. The quadratic form of the
    /// Fisher information (Amari 1998, "Natural Gradient Works Efficiently in Learning") in that error,
    /// ½ E[(g·(ŷ − y))²], which is KL to second order.
    Fisher,
    /// Top-1 lost on the search split, measured.
    Measured,
}

/// What a cell changes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// This layer alone.
    #[default]
    Alone,
    /// All layers but this one.
    AllBut,
}

/// Why a measured cell needs no more samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settled {
    /// All of them were run.
    All,
    /// Those not run leave no more open than half a point, or than chance with all of them run.
    Narrow,
    /// The drop clearly exceeds what any plan would pay ([`MapOptions::too_much`]).
    TooMuch,
}

/// One cell of the map.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Cell {
    pub layer: LayerId,
    pub candidate: Candidate,
    #[serde(default)]
    pub direction: Direction,
    pub tier: Tier,
    /// Proxy and Local: noise-to-signal ratio, 0..; Fisher: nats, 0..; Measured: paired drop of top-1 (fraction; negative is a gain).
    pub value: f64,
    /// Measured: 95 % interval of the drop. Where fewer were run than it speaks for, that of all, widened by what the samples not run may
    /// add if their logits move as those of the samples run.
    pub ci: Option<[f64; 2]>,
    /// Samples run for it; 0 for the proxy.
    pub n: u64,
    /// Measured: samples that the drop speaks for. Where they are more than `n`, those were run that lie nearest to another class,
    /// and some of the others; what the rest may add is in the interval. 0 in cells of older versions: the same as `n`.
    #[serde(default)]
    pub of: u64,
    /// Measured: more samples would change nothing that a plan is decided by. False where measuring was stopped.
    #[serde(default)]
    pub settled: bool,
    /// Measured: why it is settled; `None` in cells of older versions and where it is not.
    #[serde(default)]
    pub why: Option<Settled>,
    /// Measured: mean KL divergence from the original's outputs, nats: ranks layers where the drop is noise.
    pub kl: Option<f64>,
}

impl Cell {
    /// A cell of one layer alone that was not measured.
    fn early(layer: LayerId, candidate: Candidate, tier: Tier, value: f64, n: u64) -> Self {
        Self {
            layer,
            candidate,
            direction: Direction::Alone,
            tier,
            value,
            ci: None,
            n,
            of: n,
            settled: true,
            why: None,
            kl: None,
        }
    }
}

/// How a map is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct MapOptions {
    /// First samples of the search split that cells speak for; `None`: all.
    pub limit: Option<usize>,
    /// Every cell on every sample.
    pub exact: bool,
    /// A cell is settled once its drop clearly exceeds this (fraction of top-1), unless `exact`.
    pub too_much: f64,
    pub direction: Direction,
    /// Only these; `None`: all.
    pub candidates: Option<Vec<Candidate>>,
    /// Bytes for decoded images and for the changed weights of layers measured side by side.
    pub memory: u64,
}

impl Default for MapOptions {
    fn default() -> Self {
        Self {
            limit: None,
            exact: false,
            too_much: 0.05,
            direction: Direction::Alone,
            candidates: None,
            memory: default_memory(),
        }
    }
}

/// A quarter of the machine's memory, or 1 GB where that cannot be told.
pub fn default_memory() -> u64 {
    let kilobytes = || -> Option<u64> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    kilobytes().map_or(1_000_000_000, |total| total * 1024 / 4)
}

#[derive(Debug, thiserror::Error)]
pub enum SensitivityError {
    #[error(transparent)]
    Compress(#[from] crate::compress::CompressError),
    #[error(transparent)]
    Eval(#[from] crate::eval::EvalError),
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// Told of each finished cell and after each mini-batch.
pub trait MapObserver {
    /// Cells of the tiers before the measured one.
    fn early(&mut self, cells: Vec<Cell>);
    fn cell(&mut self, cell: Cell, done: usize, total: usize);
    fn batch(&mut self) -> Result<(), ExecError>;
}

#[cfg(test)]
mod tests;
