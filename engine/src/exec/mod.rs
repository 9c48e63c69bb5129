//! Runs a graph on candle tensors: a schedule with liveness, taps that observe or replace any value,
//! gradients through everything trainable. Kernels of our own live in `kernels/`. Uses `graph` only.

mod broadcast;
mod claims;
mod constants;
mod elementwise;
mod fuse;
mod index;
pub mod kernels;
mod lowered;
mod ops;
mod params;
mod plan;
mod pool;
mod program;
mod quick;
mod rows;
mod scalar;
mod support;
#[cfg(test)]
mod tests;
mod trained;
mod value;

pub use claims::{CLAIMS, Claim};
pub use lowered::{BatchStatistics, Family, Gradients, LocalError, Loss, Seed};
pub use pool::{on_pool, pool, set_threads, stay_behind_window};
pub use program::Program;
pub use trained::StepSizes;

use crate::graph::ValueId;
use candle_core::Tensor;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Asks long work to stop; checked at every node and mini-batch.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a graph could not be compiled or run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("cancelled")]
    Cancelled,
    #[error("{message} (node {node}, {op})")]
    Node {
        message: String,
        node: String,
        op: String,
    },
    /// Every node that cannot run, as (node name, operator, reason).
    #[error("{} of the model's nodes cannot run: {}", .0.len(), list(.0))]
    Unsupported(Vec<(String, String, String)>),
    #[error("{0}")]
    Input(String),
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

fn list(nodes: &[(String, String, String)]) -> String {
    nodes
        .iter()
        .take(5)
        .map(|(n, o, r)| format!("{n} ({o}: {r})"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Why one operator could not run; the program adds the node's name.
#[derive(Debug)]
struct Fail(String);

impl From<candle_core::Error> for Fail {
    fn from(e: candle_core::Error) -> Self {
        Self(e.to_string())
    }
}

/// Observes, or replaces, values as they are computed; called on a thread of the engine's pool.
pub trait Taps: Send {
    /// Whether any value is wanted at all; without taps operators may be fused.
    fn any(&self) -> bool {
        true
    }
    /// Whether [`Taps::visit`] is to be called for this value.
    fn wants(&self, value: ValueId) -> bool;
    /// Sees the value; `Some` replaces it for all consumers.
    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError>;
}

/// No taps.
pub struct NoTaps;
impl Taps for NoTaps {
    fn any(&self) -> bool {
        false
    }
    fn wants(&self, _: ValueId) -> bool {
        false
    }
    fn visit(&mut self, _: ValueId, _: &Tensor) -> Result<Option<Tensor>, ExecError> {
        Ok(None)
    }
}

/// Whether a program keeps what gradients need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Detached, values dropped as soon as their last consumer has run.
    Inference,
    /// Float weights (Conv/Gemm/MatMul weights and biases, batch-norm and layer-norm scale and shift, PRelu slopes)
    /// become candle `Var`s; QuantizeLinear and DequantizeLinear pass gradients straight through inside their range;
    /// batch norms use their stored statistics, or each mini-batch's ([`Program::set_batch_statistics`]).
    Training,
}
