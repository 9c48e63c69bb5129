//! Sizes of models, kept apart by what they mean: stored (bytes in the file), theoretical (what an ideal coder of the
//! zeros and bit widths would need) and runtime (bytes of weights in memory while running). `runtime/`: what a deployment runtime
//! gives. Uses `graph` and `formats`.

mod coded;
pub mod runtime;
#[cfg(test)]
mod tests;

pub use coded::{coded_bytes, entropy_bits};

use crate::{
    formats::onnx::{self, FormatError},
    graph::{BinaryOp, ElementType, Graph, Op, TensorData, ValueId},
};
use std::collections::{BTreeMap, BTreeSet};

/// A size in bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Bytes(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sizes {
    /// Bytes of the exported ONNX file.
    pub stored: Bytes,
    /// Non-zero weights at their bit width plus a one-bit mask where a tensor is sparse, plus scales and the rest. Codes of weights that
    /// share values as [`coded_bytes`] counts them, where that is less.
    pub theoretical: Bytes,
    /// Bytes of weights a runtime holds that keeps them as stored; masked zeros save nothing here. Weights that share values count as the
    /// floats that a runtime gathers them into on loading, with their codebook.
    pub runtime: Bytes,
    /// Trainable parameters: weights and biases of layers, scales and shifts of norms, slopes, embeddings. Statistics of batch
    /// norms, quantisation scales and shape constants are none.
    pub params: u64,
    /// Parameters that are not zero.
    pub nonzero_params: u64,
    /// Multiply–accumulates for one sample; `None` where shapes are unknown.
    pub macs: Option<u64>,
}

/// Sizes of a graph as it would be written. Counts every weight once, however many nodes share it.
///
/// # Errors
/// Those of encoding the graph as ONNX.
pub fn sizes(graph: &Graph) -> Result<Sizes, FormatError> {
    count(graph, zeros, |data| {
        let codes: Vec<u8> = data.to_i64_vec().iter().map(|c| *c as u8).collect();
        coded_bytes(&codes)
    })
}

/// As [`sizes`] without looking at any weight: none of them counts as zero.
///
/// # Errors
/// Those of encoding the graph as ONNX.
pub fn dense_sizes(graph: &Graph) -> Result<Sizes, FormatError> {
    count(graph, |_, _| 0, |data| data.bytes.len() as u64)
}

/// Bytes of the file that the graph would be written to. Looks at no weight.
///
/// # Errors
/// Those of encoding the graph as ONNX.
pub fn stored(graph: &Graph) -> Result<Bytes, FormatError> {
    onnx::encoded_len(graph).map(Bytes)
}

fn count(
    graph: &Graph,
    zeros: impl Fn(&TensorData, Option<&ZeroPoints>) -> u64,
    coded: impl Fn(&TensorData) -> u64,
) -> Result<Sizes, FormatError> {
    let stored = onnx::encoded_len(graph)?;
    let codes = coded::codes(graph);
    let mut zero_points = zero_points(graph);
    for (id, zero) in &codes {
        zero_points.insert(*id, ZeroPoints::same(*zero));
    }
    let layers = graph.layers();
    let weights: BTreeSet<ValueId> = layers.iter().map(|layer| layer.weight).collect();
    let mut parameters = parameters(graph);
    for layer in &layers {
        parameters.insert(layer.weight);
        parameters.extend(layer.bias);
    }

    let mut theoretical = stored;
    let mut runtime = 0;
    let (mut params, mut nonzero_params) = (0, 0);
    for (index, value) in graph.values.iter().enumerate() {
        let Some(data) = &value.data else { continue };
        let id = ValueId(index as u32);
        // Weights that share values are gathered into floats when the model is loaded.
        runtime += match codes.contains_key(&id) {
            true => 4 * data.len() as u64,
            false => data.bytes.len() as u64,
        };
        if !parameters.contains(&id) {
            continue;
        }
        let elements = data.len() as u64;
        let nonzero = elements - zeros(data, zero_points.get(&id));
        data.let_go();
        params += elements;
        nonzero_params += nonzero;
        // Only layer weights are pruned: a sparse coder has no business with anything else.
        if weights.contains(&id) {
            let bits = data.element.bits() as u64;
            let sparse = (nonzero * bits).div_ceil(8) + elements.div_ceil(8);
            let ideal = match codes.contains_key(&id) {
                true => sparse.min(coded(data)),
                false => sparse,
            };
            theoretical -= (data.bytes.len() as u64).saturating_sub(ideal);
        }
    }
    Ok(Sizes {
        stored: Bytes(stored),
        theoretical: Bytes(theoretical),
        runtime: Bytes(runtime),
        params,
        nonzero_params,
        macs: layers
            .iter()
            .try_fold(0u64, |sum, layer| sum.checked_add(layer.macs?)),
    })
}

/// Trainable constants that are not a layer's weight or bias.
fn parameters(graph: &Graph) -> BTreeSet<ValueId> {
    let float = |id: &ValueId, least_rank: usize| {
        graph
            .value(*id)
            .data
            .as_ref()
            .is_some_and(|d| d.element.is_float() && d.shape.len() >= least_rank && d.len() > 1)
    };
    let mut found = BTreeSet::new();
    for node in &graph.nodes {
        let (slots, least_rank): (&[usize], usize) = match node.op {
            Op::BatchNormalization { .. }
            | Op::InstanceNormalization { .. }
            | Op::LayerNormalization { .. } => (&[1, 2], 0),
            Op::Binary(BinaryOp::PRelu) => (&[1], 0),
            // Norms and biases taken apart by an exporter; scalars are constants of a formula.
            Op::Binary(BinaryOp::Add | BinaryOp::Mul) => (&[0, 1], 1),
            Op::Gather { .. } => (&[0], 2),
            _ => continue,
        };
        let inputs = slots.iter().filter_map(|slot| *node.inputs.get(*slot)?);
        found.extend(inputs.filter(|id| float(id, least_rank)));
    }
    found
}

/// What stands for zero in each packed integer tensor: the zero points of the DequantizeLinear that reads it, and how they lie.
struct ZeroPoints {
    points: Vec<i64>,
    /// Elements behind one step of the axis.
    inner: usize,
    /// Steps of the axis that share a point, and how many steps the axis has.
    block: usize,
    extent: usize,
}

impl ZeroPoints {
    /// One for all elements.
    fn same(point: i64) -> Self {
        Self {
            points: vec![point],
            inner: usize::MAX,
            block: 0,
            extent: 1,
        }
    }

    /// The code of zero for element `i`.
    fn of(&self, i: usize) -> i64 {
        let (outer, along) = (i / self.inner / self.extent, i / self.inner % self.extent);
        let at = match self.block {
            0 => along,
            block => {
                (outer * self.extent.div_ceil(block) + along / block) * self.inner + i % self.inner
            }
        };
        self.points[at]
    }
}

fn zero_points(graph: &Graph) -> BTreeMap<ValueId, ZeroPoints> {
    let mut found = BTreeMap::new();
    for node in &graph.nodes {
        let Op::DequantizeLinear { axis, block } = node.op else {
            continue;
        };
        let input = |slot: usize| node.inputs.get(slot).copied().flatten();
        let (Some(packed), Some(point)) = (input(0), input(2)) else {
            continue;
        };
        let (Some(data), Some(point)) = (&graph.value(packed).data, &graph.value(point).data)
        else {
            continue;
        };
        let points = point.to_i64_vec();
        if points.iter().all(|p| *p == 0) {
            continue;
        }
        let rank = data.shape.len() as i64;
        let axis = if axis < 0 { axis + rank } else { axis };
        let (inner, extent) = match usize::try_from(axis) {
            _ if points.len() == 1 && block == 0 => (data.len().max(1), 1),
            Ok(axis) if axis < data.shape.len() => {
                let inner: usize = data.shape[axis + 1..].iter().product();
                (inner.max(1), data.shape[axis])
            }
            _ => continue,
        };
        let outer = data.len() / inner / extent.max(1);
        let expected = match block {
            0 => extent,
            block => outer * extent.div_ceil(block) * inner,
        };
        if points.len() != expected || extent == 0 {
            continue;
        }
        let points = ZeroPoints {
            points,
            inner,
            block,
            extent,
        };
        found.insert(packed, points);
    }
    found
}

fn zeros(data: &TensorData, zero_points: Option<&ZeroPoints>) -> u64 {
    let count = match (data.element, zero_points) {
        (_, Some(zero)) => data
            .to_i64_vec()
            .iter()
            .enumerate()
            .filter(|(i, code)| **code == zero.of(*i))
            .count(),
        // Without unpacking: the sign bit does not count.
        (ElementType::F32, None) => data
            .bytes
            .chunks_exact(4)
            .filter(|b| matches!(b, [0, 0, 0, 0 | 0x80]))
            .count(),
        (element, None) if element.is_float() => {
            data.to_f32_vec().iter().filter(|v| **v == 0.0).count()
        }
        (_, None) => data.to_i64_vec().iter().filter(|v| **v == 0).count(),
    };
    count as u64
}
