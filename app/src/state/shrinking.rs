//! What the plan takes out and shares beside its ratios, layer by layer, and what all of that leaves of sizes.

use super::{Document, State, channels::groups};
use limbeck_engine::{
    compress::{Attention, Block, ChannelGroup, Codebooks, LayerSetting, Precision},
    graph::LayerId,
    jobs::ModelInfo,
    recipe::{self, Shrinking},
    search::{LayerFacts, Prediction},
};
use std::collections::{BTreeMap, BTreeSet};

/// The layers that the plan's shrinking names, worked out when it changes.
#[derive(Clone, Debug, Default)]
pub struct Shrunk {
    pub(super) of: Shrinking,
    /// Those of residual blocks that go by name.
    pub(crate) gone: BTreeSet<LayerId>,
    /// Values that each one's weights are to share.
    pub(crate) shared: BTreeMap<LayerId, usize>,
}

impl Shrunk {
    pub(super) fn of(shrinking: &Shrinking, layers: &[LayerFacts]) -> Self {
        let (gone, shared) = recipe::shrunk_layers(shrinking, layers).unwrap_or_default();
        Self {
            of: shrinking.clone(),
            gone,
            shared,
        }
    }
}

/// Where a layer's residual block stands in the plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BlockState {
    Stays,
    /// It goes, by name.
    Goes,
    /// Those go that the outputs miss least; which ones is known once they are judged.
    ByNumber(usize),
}

impl State {
    /// Whether the plan sets weights to zero, as against taking channels out: only those can go while training.
    pub fn zeroes_weights(&self) -> bool {
        let pruned = |setting: &LayerSetting| setting.sparsity.0 > 0.0;
        !self.document.channels && self.document.plan.values().any(pruned)
    }

    /// Its residual block goes, by name.
    pub fn is_gone(&self, layer: &LayerId) -> bool {
        self.derived.shrunk.gone.contains(layer)
    }

    /// The smallest residual block that a layer is in and that can be taken out.
    pub fn block_of(&self, layer: &LayerId) -> Option<&Block> {
        let blocks = self.model()?.blocks.iter();
        blocks
            .filter(|block| block.layers.contains(layer))
            .min_by_key(|block| block.layers.len())
    }

    pub fn block_state(&self, block: &Block) -> BlockState {
        match self
            .document
            .shrinking
            .blocks
            .as_ref()
            .and_then(|b| b.count)
        {
            Some(count) => BlockState::ByNumber(count),
            None if block
                .layers
                .iter()
                .all(|layer| self.derived.shrunk.gone.contains(layer)) =>
            {
                BlockState::Goes
            }
            None => BlockState::Stays,
        }
    }

    /// How many residual blocks the plan takes out by name.
    pub fn blocks_gone(&self) -> usize {
        let blocks = self.model().map_or(&[][..], |model| &model.blocks);
        let goes = |block: &&Block| self.block_state(block) == BlockState::Goes;
        blocks.iter().filter(goes).count()
    }

    /// The names of all layers that go when this block goes as well, or stays after all.
    pub fn blocks_with(&self, layers: &[LayerId], out: bool) -> Vec<String> {
        let mut named = self.derived.shrunk.gone.clone();
        for layer in layers {
            match out {
                true => named.insert(layer.clone()),
                false => named.remove(layer),
            };
        }
        // Blocks around one that stays are no longer whole.
        let blocks = self.model().map_or(&[][..], |model| &model.blocks);
        let whole = blocks
            .iter()
            .filter(|b| b.layers.iter().all(|l| named.contains(l)));
        let all: BTreeSet<&LayerId> = whole.flat_map(|block| &block.layers).collect();
        let order = self.layers().iter().filter(|layer| all.contains(&layer.id));
        order.map(|layer| layer.id.0.to_string()).collect()
    }

    /// How many values the layer's weights are to share; `None`: the plan lets them be.
    pub fn shared_on(&self, layer: &LayerId) -> Option<usize> {
        self.derived.shrunk.shared.get(layer).copied()
    }

    /// How many values the first layer that shares them has.
    pub(crate) fn values_shared(&self) -> Option<usize> {
        self.derived.shrunk.shared.values().next().copied()
    }

    /// Why a layer's weights cannot share values, where that is known.
    pub fn sharing_stays(&self, layer: &LayerId) -> Option<String> {
        if self.derived.shrunk.gone.contains(layer) {
            return Some("Its residual block is taken out".into());
        }
        match self.setting(layer).precision {
            Precision::Fp32 => None,
            Precision::Fp16 | Precision::Bf16 => {
                Some("Its weights are stored in 16 bits; fp32 ones can share values".into())
            }
            _ => Some("Its weight is quantised already; fp32 ones can share values".into()),
        }
    }

    /// What the predicted size leaves out, in words; `None`: nothing.
    pub fn unpredicted(&self) -> Option<&'static str> {
        let counted = self.document.shrinking.blocks.as_ref()?.count;
        counted.map(|_| "before blocks go")
    }
}

/// A prediction of the plan that shrinks more than ratios and precisions say: sizes and MACs go with channels (rounded to no whole ones, but to whole heads)
/// and with blocks named, sizes with shared values; what it costs in accuracy has to be measured, the map knows none of them. Blocks that go by
/// number are still in it.
pub(super) fn predict(
    model: &ModelInfo,
    document: &Document,
    shrunk: &Shrunk,
    mut p: Prediction,
) -> Prediction {
    let (mut whole, mut left, mut macs) = (0.0, 0.0, Some(0.0));
    let mut changed = document.shrinking.blocks.is_some();
    for layer in &model.layers {
        let precision = document.setting(&layer.id).precision;
        let bits = bits(precision);
        let share = match (shrunk.gone.contains(&layer.id), document.channels) {
            (true, _) => 0.0,
            (false, true) => channels_left(model, document, layer),
            (false, false) => 1.0,
        };
        let full = layer.params as f64 * bits;
        let mut now = full * share;
        if let (Some(values), Precision::Fp32) = (shrunk.shared.get(&layer.id), precision) {
            now = now.min(shared_bits(layer, document, *values, share));
        }
        changed |= now < full;
        whole += full;
        left += now;
        macs = macs.zip(layer.macs).map(|(sum, m)| sum + m as f64 * share);
    }
    if changed {
        if whole > 0.0 {
            let layers = p.stored.0.saturating_sub(model.overhead.0) as f64;
            p.stored.0 -= (layers * (1.0 - left / whole)) as u64;
        }
        p.macs = macs.map(|m| m as u64);
        p.drop = None;
    }
    p
}

fn bits(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 => 32.0,
        Precision::Fp16 | Precision::Bf16 => 16.0,
        integer if integer.bits().is_some_and(|bits| bits > 4) => 8.0,
        _ => 4.0,
    }
}

/// The share of a layer's weights that is left where channels go: of what it computes and of what it reads.
fn channels_left(model: &ModelInfo, document: &Document, layer: &LayerFacts) -> f64 {
    let channels = groups(model, document);
    let whole = document.shrinking.channels.attention == Attention::Heads;
    // Of a few heads a share is far from a whole number of them.
    let kept_of = |group: &ChannelGroup| {
        let first = group.layers.first();
        let asked = first.map_or(0.0, |l| f64::from(document.setting(l).sparsity.0));
        let n = group.channels as f64;
        match whole {
            true => (n - (n * asked).round()).max(1.0),
            false => n * (1.0 - asked),
        }
    };
    let own = channels.group_of(&layer.id);
    let outputs = own.map_or(1.0, |group| kept_of(group) / group.channels.max(1) as f64);
    let read = channels
        .groups
        .iter()
        .filter(|g| g.readers.contains(&layer.id));
    let (mut all, mut kept) = (0.0, 0.0);
    for group in read {
        all += group.channels as f64;
        kept += kept_of(group);
    }
    outputs * if all > 0.0 { kept / all } else { 1.0 }
}

/// A float layer's bits with shared values: codes of 4 bits or 8, and the values; its bias stays.
fn shared_bits(layer: &LayerFacts, document: &Document, values: usize, share: f64) -> f64 {
    let by_channel = (document.shrinking.cluster.as_ref())
        .is_some_and(|step| step.codebooks == Codebooks::PerChannel);
    let weights: usize = layer.weight_shape.iter().product();
    let books = match by_channel {
        true => layer.weight_shape.get(layer.channel_axis).map_or(1, |n| *n),
        false => 1,
    };
    let code = if values <= 16 { 4.0 } else { 8.0 };
    let rest = (layer.params as f64 - weights as f64).max(0.0) * 32.0;
    (weights as f64 * code + rest) * share + (books * values) as f64 * 32.0
}
