//! The recipe step that takes layers apart: its keys, its place among the steps, and what later steps ask of the layers it made.

use super::{Choice, RecipeError, ResolvedStep, Rule};
use crate::{
    compress::{Energy, EnergyOf, KernelSplit, LOW_RANK, LowRankSettings, RankBy},
    graph::{Layer, LayerId},
    search::LayerFacts,
};
use std::collections::{BTreeMap, BTreeSet};

/// Keys of `LowRank`; see [`LowRankSettings`] for those that are the same.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LowRankStep {
    pub rank: RankBy,
    pub kernels: KernelSplit,
    pub energy_of: EnergyOf,
    /// The share of energy that stays (by `energy`) or the least that must (under a budget). Left out: 0.95 by `energy`, none otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Choice<Energy>>,
    pub layers: Vec<Rule<Energy>>,
    pub round_to: usize,
    pub samples: usize,
}

/// What stays by `energy` where the step does not say.
const USUAL: Energy = Energy(0.95);

impl Default for LowRankStep {
    fn default() -> Self {
        let settings = LowRankSettings::default();
        Self {
            rank: settings.rank,
            kernels: settings.kernels,
            energy_of: settings.energy_of,
            default: None,
            layers: Vec::new(),
            round_to: settings.round_to,
            samples: settings.samples,
        }
    }
}

impl LowRankStep {
    /// What does not depend on the model.
    pub fn settings(&self) -> LowRankSettings {
        LowRankSettings {
            rank: self.rank,
            kernels: self.kernels,
            energy_of: self.energy_of,
            round_to: self.round_to,
            samples: self.samples,
        }
    }

    /// What holds for layers that no rule names.
    pub(super) fn usual(&self) -> Option<Choice<Energy>> {
        match (&self.default, self.rank) {
            (None, RankBy::Energy) => Some(Choice::Set(USUAL)),
            (default, _) => default.clone(),
        }
    }

    /// Refuses numbers out of range and a step that can do nothing.
    pub(super) fn check(&self) -> Result<(), String> {
        self.settings().check().map_err(|e| e.to_string())?;
        let usual = self.usual();
        let all = usual.iter().chain(self.layers.iter().map(|r| &r.1));
        let set = |choice: &Choice<Energy>| match choice {
            Choice::Set(energy) => Some(*energy),
            Choice::Keep => None,
        };
        for energy in all.clone().filter_map(set) {
            energy.check()?;
        }
        if self.rank == RankBy::Energy && all.filter_map(set).next().is_none() {
            return Err(
                "nothing would be taken apart: give `default` or `layers` a share of energy such as set(0.95), or a `rank` such \
                 as macs(0.7)"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// The step's error, before it is known where it stands.
pub(super) fn refuse(message: &str) -> RecipeError {
    RecipeError::new(format!("LowRank: {message}"))
}

/// Layers that the model has only since the step, each with the layer of the original that it is a factor of.
pub(super) fn heirs<'g>(now: &'g [Layer], known: &[LayerFacts]) -> Vec<(&'g Layer, LayerId)> {
    let known: BTreeSet<&LayerId> = known.iter().map(|l| &l.id).collect();
    let parent = |layer: &'g Layer| {
        let mut name: &str = &layer.id.0;
        while let Some(at) = name.rfind(LOW_RANK) {
            name = &name[..at];
            let id = LayerId(name.into());
            if known.contains(&id) {
                return Some((layer, id));
            }
        }
        None
    };
    let fresh = now.iter().filter(|l| !known.contains(&l.id));
    fresh.filter_map(parent).collect()
}

impl ResolvedStep {
    /// Asks of each new layer what is asked of the one it is a factor of.
    pub(super) fn inherit(&mut self, heirs: &[(&Layer, LayerId)]) {
        match self {
            Self::Prune { layers, .. } => values(layers, heirs),
            Self::Cluster { layers, .. } => values(layers, heirs),
            Self::Quantize { layers, .. } => values(layers, heirs),
            Self::PruneBlocks { layers, .. } => layers.iter_mut().for_each(|l| members(l, heirs)),
            Self::PruneChannels { layers, .. } => values(layers, heirs),
            Self::LowRank { layers, .. } => values(layers, heirs),
            Self::CorrectBias { layers, .. } => members(layers, heirs),
            Self::Equalize(method) => members(&mut method.layers, heirs),
            Self::SmoothQuant(method) => members(&mut method.layers, heirs),
            Self::SequentialMse(method) => members(&mut method.layers, heirs),
            Self::AdaRound(method) => members(&mut method.layers, heirs),
            Self::Brecq(method) => members(&mut method.layers, heirs),
            Self::Gptq(method) => members(&mut method.layers, heirs),
            Self::FoldBatchNorm | Self::Student(_) | Self::StudentFile | Self::Distil(_) => {}
        }
    }

    /// Asks nothing of layers that are gone.
    pub(super) fn forget(&mut self, gone: &BTreeSet<LayerId>) {
        let stays = |id: &LayerId| !gone.contains(id);
        match self {
            Self::Prune { layers, .. } => layers.retain(|id, _| stays(id)),
            Self::Cluster { layers, .. } => layers.retain(|id, _| stays(id)),
            Self::Quantize { layers, .. } => layers.retain(|id, _| stays(id)),
            Self::PruneBlocks { layers, .. } => layers.iter_mut().for_each(|l| l.retain(stays)),
            Self::PruneChannels { layers, .. } => layers.retain(|id, _| stays(id)),
            Self::LowRank { layers, .. } => layers.retain(|id, _| stays(id)),
            Self::CorrectBias { layers, .. } => layers.retain(stays),
            Self::Equalize(method) => method.layers.retain(stays),
            Self::SmoothQuant(method) => method.layers.retain(stays),
            Self::SequentialMse(method) => method.layers.retain(stays),
            Self::AdaRound(method) => method.layers.retain(stays),
            Self::Brecq(method) => method.layers.retain(stays),
            Self::Gptq(method) => method.layers.retain(stays),
            Self::FoldBatchNorm | Self::Student(_) | Self::StudentFile | Self::Distil(_) => {}
        }
    }
}

fn values<T: Copy>(layers: &mut BTreeMap<LayerId, T>, heirs: &[(&Layer, LayerId)]) {
    for (layer, parent) in heirs {
        if let Some(value) = layers.get(parent).copied() {
            layers.insert(layer.id.clone(), value);
        }
    }
}

fn members(layers: &mut BTreeSet<LayerId>, heirs: &[(&Layer, LayerId)]) {
    for (layer, parent) in heirs {
        if layers.contains(parent) {
            layers.insert(layer.id.clone());
        }
    }
}
