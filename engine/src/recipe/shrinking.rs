//! How a plan shrinks the network beside its ratios and precisions: what its steps are told besides layers.

use super::{ClusterStep, PruneBlocksStep, Rule, Step};
use crate::{
    compress::{Amount, ChannelSettings, Pattern, PruneSchedule},
    graph::LayerId,
};

/// Settings of a plan's `PruneBlocks`, `PruneChannels`, `Prune` and `Cluster`. The default is a plan that prunes single weights at once.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shrinking {
    /// Residual blocks that go, before all else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<PruneBlocksStep>,
    /// Where ratios are of channels. The amount is always [`Amount::Ratios`].
    #[serde(skip_serializing_if = "is_usual")]
    pub channels: ChannelSettings,
    /// Where ratios are of weights.
    #[serde(skip_serializing_if = "Pattern::is_unstructured")]
    pub pattern: Pattern,
    /// Ratios of weights are reached while training: the plan's training then stands right behind Prune, before Quantize. Without a
    /// training they are reached at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<PruneSchedule>,
    /// Weights that share values, of the layers that stay float.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStep>,
}

fn is_usual(settings: &ChannelSettings) -> bool {
    *settings == ChannelSettings::default()
}

impl Shrinking {
    /// What steps say beside their rules; `None`: they ask for what a plan does not hold, such as a budget for channels.
    pub fn of(steps: &[Step]) -> Option<Self> {
        let mut found = Self::default();
        for step in steps {
            match step {
                Step::PruneBlocks(_) if found.blocks.is_some() => return None,
                Step::PruneBlocks(step) => found.blocks = Some(step.clone()),
                Step::PruneChannels(step) if step.amount != Amount::Ratios => return None,
                Step::PruneChannels(step) => found.channels = step.settings(),
                Step::Prune(step) => {
                    found.pattern = step.pattern;
                    found.schedule = step.schedule;
                }
                Step::Cluster(step) => found.cluster = Some(step.clone()),
                _ => {}
            }
        }
        Some(found)
    }

    /// Whether it is left out of project files.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl ClusterStep {
    /// Whether any rule lets weights share values.
    pub fn shares(&self) -> bool {
        let mut choices = std::iter::once(&self.default).chain(self.layers.iter().map(|r| &r.1));
        choices.any(|choice| matches!(choice, super::Choice::Set(_)))
    }

    /// Lets these layers share `values` or, with `None`, keep their own; rules of others stay.
    pub fn set(&mut self, layers: &[LayerId], values: Option<usize>) {
        let choice = values.map_or(super::Choice::Keep, super::Choice::Set);
        self.layers
            .retain(|rule| !layers.iter().any(|layer| *layer.0 == *rule.0));
        if choice != self.default || self.layers.iter().any(|rule| rule.0.contains(GLOB)) {
            let rule = |layer: &LayerId| Rule(layer.0.to_string(), choice.clone());
            self.layers.extend(layers.iter().map(rule));
        }
    }
}

/// What makes a rule's name more than a name.
const GLOB: [char; 4] = ['*', '?', '[', '{'];
