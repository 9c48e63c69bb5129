//! What folded batch norms knew of their layers' outputs: kept for passes that ask for it without data at hand.

use crate::graph::{Graph, LayerId, Op, TensorData};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Mean and standard deviation of layers' outputs by channel, over what the network was trained on.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct NormStatistics {
    by_layer: BTreeMap<LayerId, Vec<(f64, f64)>>,
    /// Of the network right after folding: they say nothing of another.
    fingerprint: String,
}

impl NormStatistics {
    /// Those of the layers of `graph`, which is folded.
    pub(super) fn new(by_layer: BTreeMap<LayerId, Vec<(f64, f64)>>, graph: &Graph) -> Self {
        Self {
            by_layer,
            fingerprint: fingerprint(graph),
        }
    }

    /// Whether nothing has changed since.
    pub(super) fn belong_to(&self, graph: &Graph) -> bool {
        self.fingerprint == fingerprint(graph)
    }

    pub(super) fn of(&self, layer: &LayerId) -> Option<&[(f64, f64)]> {
        self.by_layer.get(layer).map(Vec::as_slice)
    }
}

/// Over operators and the constants they read.
fn fingerprint(graph: &Graph) -> String {
    let mut hash = Sha256::new();
    for node in &graph.nodes {
        hash.update(format!("{:?}", node.op));
        for input in &node.inputs {
            let data = input.and_then(|id| graph.value(id).data.as_ref());
            match data {
                Some(data) => hash.update(&data.bytes),
                None => hash.update(format!("{input:?}")),
            }
        }
    }
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Mean and deviation of a batch norm's outputs by channel; `None` where its parameters are not constants of that many elements.
pub(super) fn of_norm(graph: &Graph, norm: usize, channels: usize) -> Option<Vec<(f64, f64)>> {
    let node = &graph.nodes[norm];
    let Op::BatchNormalization { epsilon } = node.op else {
        return None;
    };
    let read = |slot: usize| {
        let id = node.inputs.get(slot).copied().flatten()?;
        let data = graph.value(id).data.as_ref().map(TensorData::to_f32_vec);
        data.filter(|values| values.len() == channels)
    };
    let (scale, shift, variance) = (read(1)?, read(2)?, read(4)?);
    let columns = scale.iter().zip(&shift).zip(&variance);
    let each = columns.map(|((scale, shift), variance)| {
        let (variance, epsilon) = (f64::from(*variance).max(0.0), f64::from(epsilon));
        let deviation = f64::from(scale.abs()) * (variance / (variance + epsilon)).sqrt();
        (f64::from(*shift), deviation)
    });
    Some(each.collect())
}
