//! Predicts what a plan will give from the cells at hand. Pure and quick: called in a frame. Uses `sensitivity`, `measure`.

mod drops;
mod storage;
#[cfg(test)]
mod tests;

use crate::{
    compress::{LayerSetting, Pattern, QuantScheme, axis_summed},
    graph::{Graph, LayerId, in_both},
    measure::Bytes,
    sensitivity::{Cell, Tier},
};
use drops::LayerDrops;
use std::collections::BTreeMap;
use storage::LayerBytes;

/// What a plan is thought to give. An estimate, whatever its tier: drops of single layers do not simply add up, so a plan
/// that matters is always evaluated as a whole.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Prediction {
    /// Top-1 drop (fraction), the sum of the layers' own drops, a measured gain counted as no drop (single gains are
    /// noise at these n, and added up over layers they would promise accuracy that is not there); `None` while a layer that the plan changes has no measured cell.
    pub drop: Option<f64>,
    /// Layers whose drop is interpolated or taken from a neighbouring candidate.
    pub approximate: usize,
    pub stored: Bytes,
    pub macs: Option<u64>,
    /// [`Tier::Measured`] where every number behind `drop` was measured.
    pub tier: Tier,
}

/// What prediction needs to know of a layer.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LayerFacts {
    pub id: LayerId,
    pub op: String,
    pub weight_shape: Vec<usize>,
    pub channel_axis: usize,
    /// Elements of weight and bias.
    pub params: u64,
    pub macs: Option<u64>,
}

impl LayerFacts {
    /// Its operator, the shape of its weight and the axis of output channels.
    pub fn weight(&self) -> (&str, &[usize], usize) {
        (&self.op, &self.weight_shape, self.channel_axis)
    }

    /// Why its weights cannot be pruned in groups of this pattern, in words; `None`: they can, or that is known once they are.
    pub fn pattern_stays(&self, pattern: Pattern) -> Option<String> {
        // How the inputs of a transposed convolution are shared out is not among the facts.
        if self.op == "ConvTranspose" || self.weight_shape.len() < 2 {
            return None;
        }
        let axis = axis_summed(&self.op, self.weight_shape.len(), self.channel_axis.min(1));
        pattern.takes(*self.weight_shape.get(axis)?).err()
    }

    /// The layers of a graph, in its order.
    pub fn of(graph: &Graph) -> Vec<Self> {
        graph
            .layers()
            .into_iter()
            .map(|layer| Self {
                op: layer.op.to_owned(),
                weight_shape: layer.weight_shape,
                channel_axis: layer.channel_axis,
                params: layer.params,
                macs: layer.macs,
                id: layer.id,
            })
            .collect()
    }
}

/// Bytes of a float file of `stored` bytes that none of its layers owns: what [`Predictor::new`] takes as `overhead`. Plans fold
/// batch norms first, so take it from the folded graph.
pub fn overhead(layers: &[LayerFacts], stored: Bytes) -> Bytes {
    let owned: u64 = layers.iter().map(|layer| layer.params * 4).sum();
    Bytes(stored.0.saturating_sub(owned))
}

/// Everything a prediction looks up, worked out once: one plan then costs a look-up per layer that it names.
#[derive(Clone, Debug)]
pub struct Predictor {
    layers: BTreeMap<LayerId, (LayerBytes, LayerDrops)>,
    /// Bytes of the file with every layer at fp32.
    float_bytes: u64,
    macs: Option<u64>,
}

impl Predictor {
    /// `overhead`: see [`overhead`]. Of several cells for the same layer and candidate, the one measured on most samples counts.
    pub fn new<'c>(
        layers: &[LayerFacts],
        cells: impl IntoIterator<Item = &'c Cell>,
        scheme: &QuantScheme,
        overhead: Bytes,
    ) -> Self {
        let mut drops: BTreeMap<&LayerId, LayerDrops> = BTreeMap::new();
        for cell in cells {
            drops.entry(&cell.layer).or_default().add(cell);
        }
        let table: BTreeMap<LayerId, (LayerBytes, LayerDrops)> = layers
            .iter()
            .map(|layer| {
                let drops = drops.get(&layer.id).cloned().unwrap_or_default();
                (layer.id.clone(), (LayerBytes::of(layer, scheme), drops))
            })
            .collect();
        Self {
            float_bytes: overhead.0 + table.values().map(|(bytes, _)| bytes.float).sum::<u64>(),
            macs: layers
                .iter()
                .try_fold(0u64, |sum, layer| sum.checked_add(layer.macs?)),
            layers: table,
        }
    }

    /// Adds up sizes (bits of weights, scales, zero points and the nodes that go with them) and drops from cells. Layers the
    /// plan does not name, and names that are no layer, count as untouched. Unstructured zeros are stored like other weights and
    /// computed like them: they change neither `stored` nor `macs`.
    pub fn predict(&self, plan: &BTreeMap<LayerId, LayerSetting>) -> Prediction {
        let mut stored = self.float_bytes;
        let mut drop = Some(0.0);
        let mut approximate = 0;
        for ((bytes, drops), setting) in in_both(&self.layers, plan) {
            stored = stored - bytes.float + bytes.at(setting.precision);
            match (drop, drops.of(setting)) {
                (Some(sum), Some(own)) => {
                    drop = Some(sum + own.value.max(0.0));
                    approximate += usize::from(own.approximate);
                }
                _ => drop = None,
            }
        }
        Prediction {
            drop: drop.map(|sum| sum.min(1.0)),
            approximate,
            stored: Bytes(stored),
            macs: self.macs,
            tier: if drop.is_some() {
                Tier::Measured
            } else {
                Tier::Proxy
            },
        }
    }
}

/// One prediction without keeping the tables; see [`Predictor`].
pub fn predict(
    layers: &[LayerFacts],
    plan: &BTreeMap<LayerId, LayerSetting>,
    scheme: &QuantScheme,
    cells: &[Cell],
    overhead: Bytes,
) -> Prediction {
    Predictor::new(layers, cells, scheme, overhead).predict(plan)
}
