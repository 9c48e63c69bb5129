//! Runs a graph on candle tensors: a schedule with liveness, taps that observe or replace any value,
//! gradients through everything trainable. Kernels of our own live in `kernels/`. Uses `graph` only.

pub mod kernels;

use crate::graph::{Graph, ValueId};
use candle_core::{Tensor, Var};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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

/// Observes, or replaces, values as they are computed.
pub trait Taps {
    /// Whether [`Taps::visit`] is to be called for this value.
    fn wants(&self, value: ValueId) -> bool;
    /// Sees the value; `Some` replaces it for all consumers.
    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError>;
}

/// No taps.
pub struct NoTaps;
impl Taps for NoTaps {
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
    /// batch norms use their stored statistics.
    Training,
}

/// A graph made ready to run.
pub struct Program {
    // private: owned by exec
    _private: (),
}

impl Program {
    /// Checks that every node can run and prepares weights. Constant sub-graphs are folded once (not in `Training`
    /// where they depend on a parameter).
    pub fn compile(_graph: &Graph, _mode: Mode) -> Result<Self, ExecError> {
        unimplemented!()
    }
    /// Nodes of `graph` that cannot run, without compiling: (node, operator, reason).
    pub fn unsupported(_graph: &Graph) -> Vec<(String, String, String)> {
        unimplemented!()
    }
    /// Runs on one batch. `feeds` are in the order of [`Graph::inputs`]; results in the order of [`Graph::outputs`].
    pub fn run(
        &self,
        _feeds: &[Tensor],
        _taps: &mut dyn Taps,
        _cancel: &CancelToken,
    ) -> Result<Vec<Tensor>, ExecError> {
        unimplemented!()
    }
    /// Trainable parameters by value name (empty in `Inference`).
    pub fn parameters(&self) -> &BTreeMap<String, Var> {
        unimplemented!()
    }
    /// Multiplies parameter `name` by a 0/1 mask of its shape in every forward pass from now on.
    pub fn set_mask(&mut self, _name: &str, _mask: Tensor) -> Result<(), ExecError> {
        unimplemented!()
    }
    /// Writes the parameters' present values (masked where a mask is set) into the graph they came from.
    pub fn store(&self, _graph: &mut Graph) -> Result<(), ExecError> {
        unimplemented!()
    }
}

/// The engine's own rayon pool (nice 10 on Unix so that the window goes first). Results of every kernel are
/// bit-identical whatever its number of threads.
pub fn pool() -> &'static rayon::ThreadPool {
    unimplemented!()
}

/// Sets the number of threads; only before the first use of [`pool`]. 0: all cores.
pub fn set_threads(_threads: usize) {
    unimplemented!()
}
