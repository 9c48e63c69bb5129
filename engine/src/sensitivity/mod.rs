//! How much each layer minds each candidate: a weight-only proxy at once, then real evaluations cell by cell.
//! Uses `compress`, `eval`.

use crate::{
    compress::{Model, QuantScheme},
    data::Dataset,
    eval::Evaluation,
    exec::{CancelToken, ExecError},
    graph::{Graph, LayerId},
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

/// All proxy cells of a graph, layer by layer, in parallel. Needs no data.
pub fn proxy(_graph: &Graph, _scheme: &QuantScheme) -> Vec<Cell> {
    unimplemented!()
}

/// Told of each finished cell and after each mini-batch.
pub trait MapObserver {
    fn cell(&mut self, cell: Cell, done: usize, total: usize);
    fn batch(&mut self) -> Result<(), ExecError>;
}

/// Measures the cells not in `known`, most telling first, on the first `limit` samples of the search split. Returns what was
/// finished, also when cancelled.
#[allow(clippy::too_many_arguments)]
pub fn measure(
    _model: &Model,
    _scheme: &QuantScheme,
    _baseline: &Evaluation,
    _data: &Dataset,
    _limit: Option<usize>,
    _known: &[Cell],
    _observer: &mut dyn MapObserver,
    _cancel: &CancelToken,
) -> Result<Vec<Cell>, SensitivityError> {
    unimplemented!()
}
