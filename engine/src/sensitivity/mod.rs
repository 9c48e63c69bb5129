//! How much each layer minds each candidate: a weight-only proxy at once, then real evaluations cell by cell.
//! Uses `compress`, `eval`.

mod measured;
mod proxy;

pub use measured::measure;
pub use proxy::proxy;

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

/// Where a cell's number comes from.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Weight-only noise: relative squared error of the weights, no data seen.
    Proxy,
    /// Top-1 lost on the search split, measured.
    Measured,
}

/// One cell of the map.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Cell {
    pub layer: LayerId,
    pub candidate: Candidate,
    pub tier: Tier,
    /// Proxy: noise-to-signal ratio of the weights, 0..; Measured: paired drop of top-1 (fraction; negative is a gain).
    pub value: f64,
    /// Measured: 95 % interval of the drop.
    pub ci: Option<[f64; 2]>,
    /// Samples behind it; 0 for the proxy.
    pub n: u64,
    /// Measured: mean KL divergence from the baseline's outputs, nats: ranks layers where the drop is noise.
    pub kl: Option<f64>,
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
    fn cell(&mut self, cell: Cell, done: usize, total: usize);
    fn batch(&mut self) -> Result<(), ExecError>;
}

#[cfg(test)]
mod tests;
