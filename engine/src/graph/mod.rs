//! The typed intermediate representation: values, nodes, operators and weights; shape inference; the
//! layers a user sees; edits that keep a graph valid. Uses no other room.

mod edit;
mod ends;
mod error;
mod infer;
mod layers;
mod mapped;
mod op;
mod op_info;
mod shared;
mod tensor;

pub(crate) use edit::topological;
pub(crate) use ends::fixed_batch;
pub use error::GraphError;
pub(crate) use infer::OpenSizes;
pub(crate) use mapped::map;
pub use op::*;
pub use op_info::CAPTURES;
pub use shared::SharedValues;
pub use tensor::{ElementType, TensorData, checked_len};

use itertools::{EitherOrBoth, Itertools};
use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

/// Index of a [`Value`] in [`Graph::values`]. Stable for the life of a graph (values are never renumbered
/// by edits, only by [`Graph::compact`]).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct ValueId(pub u32);

/// Index of a [`Node`] in [`Graph::nodes`]; valid until the next edit of the node list.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct NodeId(pub u32);

/// One extent of a shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Dim {
    Known(usize),
    /// A named symbol such as the batch `N`.
    Symbol(Arc<str>),
    Unknown,
}

/// An edge of the graph: an input, a weight (`data` present) or what a node computes.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Value {
    /// Unique within the graph.
    pub name: String,
    pub element: Option<ElementType>,
    pub shape: Option<Vec<Dim>>,
    /// Present for initialisers and constants.
    pub data: Option<TensorData>,
}

/// One operator application. An absent optional input is `None`; an unused optional output likewise.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Node {
    /// Unique within the graph; made up by the reader where the file has none.
    pub name: String,
    pub op: Op,
    pub inputs: Vec<Option<ValueId>>,
    pub outputs: Vec<Option<ValueId>>,
}

/// A network. `nodes` is kept in topological order.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Graph {
    pub name: String,
    pub values: Vec<Value>,
    pub nodes: Vec<Node>,
    /// Fed at run time, in the file's order (initialisers are not listed here).
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    /// Key–value notes of the file (ONNX `metadata_props`).
    pub metadata: BTreeMap<String, String>,
}

/// Name of a layer: that of its node. Ordered by name; display order is the graph's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct LayerId(pub Arc<str>);

impl Ord for LayerId {
    fn cmp(&self, other: &Self) -> Ordering {
        // Most names that are compared are clones of each other.
        if Arc::ptr_eq(&self.0, &other.0) {
            return Ordering::Equal;
        }
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for LayerId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What two tables say of the layers that both have, by name: one walk along both.
pub fn in_both<'t, A, B>(
    a: &'t BTreeMap<LayerId, A>,
    b: &'t BTreeMap<LayerId, B>,
) -> impl Iterator<Item = (&'t A, &'t B)> {
    let joined = a.iter().merge_join_by(b, |(a, _), (b, _)| a.cmp(b));
    joined.filter_map(|found| match found {
        EitherOrBoth::Both((_, a), (_, b)) => Some((a, b)),
        _ => None,
    })
}

/// A node with weights of its own, as the user sees it: Conv, ConvTranspose, Gemm, or MatMul by a constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub id: LayerId,
    pub node: NodeId,
    /// `Conv`, `ConvTranspose`, `Gemm` or `MatMul`.
    pub op: &'static str,
    /// The float weight, found through QuantizeLinear/DequantizeLinear/Cast where they stand before it; the codes of one that shares
    /// values ([`SharedValues`]).
    pub weight: ValueId,
    pub bias: Option<ValueId>,
    pub input: ValueId,
    pub output: ValueId,
    pub weight_shape: Vec<usize>,
    /// Axis of `weight_shape` that counts output channels (Conv 0, ConvTranspose 1, MatMul last, Gemm by `transB`).
    pub channel_axis: usize,
    /// Elements of weight and bias.
    pub params: u64,
    /// Multiply–accumulates for one sample; `None` where shapes stay unknown.
    pub macs: Option<u64>,
}
