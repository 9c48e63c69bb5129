//! Pruning by whole channels: which layers move together, which cannot, and what that leaves of sizes.

use super::{Document, State};
use limbeck_engine::{
    compress::{ChannelGroup, ChannelGroups, LayerSetting, Precision, Ratio},
    graph::LayerId,
    jobs::ModelInfo,
    search::Prediction,
};

impl State {
    /// Layers whose channels go together, and why others' stay; `None` without a model.
    pub fn channels(&self) -> Option<&ChannelGroups> {
        self.model().map(|model| &model.channels)
    }

    /// The layers that lose channels together with this one, itself included, in the graph's order.
    pub fn tied(&self, layer: &LayerId) -> Option<&ChannelGroup> {
        self.channels()?.group_of(layer)
    }

    /// What the inspector shows of a layer's weights: where whole channels go, those that are left keep their values.
    pub fn inspected_setting(&self, layer: &LayerId) -> LayerSetting {
        let mut setting = self.setting(layer);
        if self.document.channels {
            setting.sparsity = Ratio(0.0);
        }
        setting
    }

    /// Why a layer can lose no channels, where the plan prunes channels; nothing if it can.
    pub fn channels_stay(&self, layer: &LayerId) -> Option<String> {
        if !self.document.channels {
            return None;
        }
        let channels = self.channels()?;
        if let Some(why) = channels.fixed.get(layer) {
            return Some(format!("Its channels stay: {why}"));
        }
        let pinned = channels
            .group_of(layer)?
            .layers
            .iter()
            .find(|other| *other != layer && self.is_pinned(other))?;
        Some(format!(
            "Its channels go together with those of {}, which is pinned",
            pinned.0
        ))
    }
}

/// Brings ratios to what a pruning of channels will do: none where channels stay, the smallest of a group for all of it.
pub(crate) fn harmonise(document: &mut Document, channels: &ChannelGroups) {
    let set = |document: &mut Document, layer: &LayerId, ratio: Ratio| {
        let mut setting = document.setting(layer);
        setting.sparsity = ratio;
        document.set(layer, setting);
    };
    for layer in channels.fixed.keys() {
        set(document, layer, Ratio(0.0));
    }
    for group in &channels.groups {
        let ratios = group.layers.iter().map(|l| document.setting(l).sparsity.0);
        let least = ratios.fold(1.0_f32, f32::min);
        for layer in &group.layers {
            set(document, layer, Ratio(least));
        }
    }
}

/// A prediction of the plan that takes channels out: sizes and MACs shrink with what layers compute and read (rounded to no
/// whole channels); what it costs in accuracy has to be measured, the map knows masked weights only.
pub(super) fn predict(model: &ModelInfo, document: &Document, mut p: Prediction) -> Prediction {
    let asked = |layer: &LayerId| f64::from(document.setting(layer).sparsity.0);
    let (mut whole, mut left, mut macs) = (0.0, 0.0, Some(0.0));
    for layer in &model.layers {
        let own = model.channels.group_of(&layer.id);
        let outputs = own.map_or(1.0, |_| 1.0 - asked(&layer.id));
        let read = model
            .channels
            .groups
            .iter()
            .filter(|g| g.readers.contains(&layer.id));
        let (mut all, mut kept) = (0.0, 0.0);
        for group in read {
            let n = group.channels as f64;
            all += n;
            kept += n * (1.0 - group.layers.first().map_or(0.0, asked));
        }
        let share = outputs * if all > 0.0 { kept / all } else { 1.0 };
        let bits = match document.setting(&layer.id).precision {
            Precision::Fp32 => 32.0,
            Precision::Fp16 | Precision::Bf16 => 16.0,
            integer if integer.bits().is_some_and(|bits| bits > 4) => 8.0,
            _ => 4.0,
        };
        whole += layer.params as f64 * bits;
        left += layer.params as f64 * bits * share;
        macs = macs.zip(layer.macs).map(|(sum, m)| sum + m as f64 * share);
    }
    if whole > 0.0 && left < whole {
        let layers = p.stored.0.saturating_sub(model.overhead.0) as f64;
        p.stored.0 -= (layers * (1.0 - left / whole)) as u64;
        p.macs = macs.map(|m| m as u64);
        p.drop = None;
    }
    p
}
