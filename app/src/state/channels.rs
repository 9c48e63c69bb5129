//! What ratios are for: which layers' channels move together, which cannot go, which weights are no groups.

use super::{Document, State};
use limbeck_engine::{
    compress::{Attention, ChannelGroup, ChannelGroups, LayerSetting, Ratio},
    graph::LayerId,
    jobs::ModelInfo,
};

impl State {
    /// Layers whose channels go together, and why others' stay; `None` without a model.
    pub fn channels(&self) -> Option<&ChannelGroups> {
        Some(groups(self.model()?, &self.document))
    }

    /// The layers that lose channels together with this one, itself included, in the graph's order.
    pub fn tied(&self, layer: &LayerId) -> Option<&ChannelGroup> {
        self.channels()?.group_of(layer)
    }

    /// What the inspector shows of a layer's weights: where whole channels go or weights of groups, those that are left keep their values.
    pub fn inspected_setting(&self, layer: &LayerId) -> LayerSetting {
        let mut setting = self.setting(layer);
        if self.document.channels || !self.document.shrinking.pattern.is_unstructured() {
            setting.sparsity = Ratio(0.0);
        }
        setting
    }

    /// Why a layer can lose no channels where the plan prunes channels, or no weights where it prunes them in groups; nothing if it can.
    pub fn channels_stay(&self, layer: &LayerId) -> Option<String> {
        if self.derived.shrunk.gone.contains(layer) {
            return Some("Its residual block is taken out".into());
        }
        if !self.document.channels {
            let facts = self.layers().get(self.mirror.layer_index(layer)?)?;
            let why = facts.pattern_stays(self.document.shrinking.pattern)?;
            return Some(format!("Its weights stay: {why}"));
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

/// The groups that the plan's ratios are for: of channels, or of whole attention heads where those go.
pub(super) fn groups<'a>(model: &'a ModelInfo, document: &Document) -> &'a ChannelGroups {
    match document.shrinking.channels.attention {
        Attention::Heads => model.heads.as_ref().unwrap_or(&model.channels),
        Attention::Widths => &model.channels,
    }
}

/// Brings ratios to what pruning will do. Of channels: none where they stay, the smallest of a group for all of it. Of weights in groups:
/// none where groups do not fit, else one that takes a whole number of each group.
pub(crate) fn harmonise(document: &mut Document, model: &ModelInfo) {
    let set = |document: &mut Document, layer: &LayerId, ratio: Ratio| {
        let mut setting = document.setting(layer);
        setting.sparsity = ratio;
        document.set(layer, setting);
    };
    if !document.channels {
        let pattern = document.shrinking.pattern;
        if pattern.is_unstructured() {
            return;
        }
        for layer in &model.layers {
            let ratio = match layer.pattern_stays(pattern) {
                Some(_) => Ratio(0.0),
                None => pattern.nearest(document.setting(&layer.id).sparsity),
            };
            set(document, &layer.id, ratio);
        }
        return;
    }
    let channels = groups(model, document);
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
