//! Graphs built by hand, run through the public door; gradients against finite differences.

mod batch_norm;
mod fused;
mod gradients;
mod joined;
mod operators;
mod program;
mod quantisation;
mod step_sizes;

use super::*;
use crate::graph::{Dim, Graph, Op, TensorData, ValueId};
use candle_core::Device;

/// A graph of one node: fed values are inputs, the others constants.
pub(super) struct Case {
    pub graph: Graph,
    pub feeds: Vec<TensorData>,
    pub args: Vec<Option<ValueId>>,
}

impl Case {
    pub fn new() -> Self {
        Self {
            graph: Graph::default(),
            feeds: vec![],
            args: vec![],
        }
    }
    pub fn feed(mut self, data: TensorData) -> Self {
        let shape = data.shape.iter().map(|&d| Dim::Known(d)).collect();
        let id = self.graph.add_value("x", Some(data.element), Some(shape));
        self.graph.inputs.push(id);
        self.args.push(Some(id));
        self.feeds.push(data);
        self
    }
    pub fn constant(mut self, data: TensorData) -> Self {
        let id = self.graph.add_constant("c", data);
        self.args.push(Some(id));
        self
    }
    pub fn absent(mut self) -> Self {
        self.args.push(None);
        self
    }
    /// Adds the node with `n` outputs and runs it.
    pub fn run(mut self, op: Op, n: usize) -> Result<Vec<TensorData>, ExecError> {
        let outputs: Vec<ValueId> = (0..n)
            .map(|_| self.graph.add_value("y", None, None))
            .collect();
        self.graph.outputs = outputs.clone();
        self.graph.add_node(
            "node",
            op,
            self.args,
            outputs.into_iter().map(Some).collect(),
        );
        Program::compile(&self.graph, Mode::Inference)?
            .run_data(&self.feeds, &CancelToken::default())
    }
    pub fn f32(self, op: Op) -> (Vec<usize>, Vec<f32>) {
        let y = self.run(op, 1).unwrap().remove(0);
        (y.shape.clone(), y.to_f32_vec())
    }
    pub fn i64(self, op: Op) -> (Vec<usize>, Vec<i64>) {
        let y = self.run(op, 1).unwrap().remove(0);
        (y.shape.clone(), y.to_i64_vec())
    }
}

pub(super) fn f(shape: &[usize], v: &[f32]) -> TensorData {
    TensorData::from_f32(shape, v)
}

pub(super) fn i(shape: &[usize], v: &[i64]) -> TensorData {
    TensorData::from_i64(shape, v)
}

/// Deterministic values without ties or zeros, in about ±`scale`.
pub(super) fn noise(n: usize, scale: f32) -> Vec<f32> {
    let mut s = 0x2545_f491_4f6c_dd1d_u64;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            ((s >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0 * scale
        })
        .collect()
}

pub(super) fn tensor(v: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(v, shape, &Device::Cpu).unwrap()
}

pub(super) fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

pub(super) fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (k, (x, y)) in a.iter().zip(b).enumerate() {
        assert!(
            (x - y).abs() <= tolerance * (1.0 + y.abs()),
            "element {k}: {x} against {y}"
        );
    }
}
