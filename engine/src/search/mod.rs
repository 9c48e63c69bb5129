//! Predicts what a plan will give from the cells at hand. Pure and quick: called in a frame. Uses `sensitivity`, `measure`.

use crate::{
    compress::{LayerSetting, QuantScheme},
    graph::LayerId,
    measure::Bytes,
    sensitivity::{Cell, Tier},
};
use std::collections::BTreeMap;

/// What a plan is thought to give.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Prediction {
    /// Top-1 drop (fraction), the sum of the layers' own drops; `None` while a layer that the plan changes has no measured cell.
    pub drop: Option<f64>,
    /// Layers whose drop is interpolated or taken from a neighbouring candidate.
    pub approximate: usize,
    pub stored: Bytes,
    pub macs: Option<u64>,
    pub tier: Tier,
}

/// What prediction needs to know of a layer.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LayerFacts {
    pub id: LayerId,
    pub op: String,
    pub weight_shape: Vec<usize>,
    pub channel_axis: usize,
    pub params: u64,
    pub macs: Option<u64>,
}

/// Adds up sizes exactly (bits of weights, scales, zero points) and drops from cells. `overhead`: bytes of the file that no
/// layer owns.
pub fn predict(
    _layers: &[LayerFacts],
    _plan: &BTreeMap<LayerId, LayerSetting>,
    _scheme: &QuantScheme,
    _cells: &[Cell],
    _overhead: Bytes,
) -> Prediction {
    unimplemented!()
}
