//! The recipe step that takes channels out: its keys, the rules of its place among the steps, and its account in short.

use super::{Choice, RecipeError, Rule};
use crate::compress::{Amount, Attention, ChannelSettings, Criterion, Ranking, Ratio};

/// Keys of `PruneChannels`; see [`ChannelSettings`] for those that are the same.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PruneChannelsStep {
    pub amount: Amount,
    pub criterion: Criterion,
    pub ranking: Ranking,
    #[serde(skip_serializing_if = "is_widths")]
    pub attention: Attention,
    /// For `ratios`: the share of a layer's channels that goes; for the other amounts the most that may. Left out: nothing goes by
    /// `ratios`, anything may go otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Choice<Ratio>>,
    pub layers: Vec<Rule<Ratio>>,
    pub round_to: usize,
    pub least: usize,
    pub samples: usize,
    pub reestimate: bool,
}

impl Default for PruneChannelsStep {
    fn default() -> Self {
        Self::of(ChannelSettings::default())
    }
}

impl PruneChannelsStep {
    /// A step without rules.
    pub fn of(settings: ChannelSettings) -> Self {
        Self {
            amount: settings.amount,
            criterion: settings.criterion,
            ranking: settings.ranking,
            attention: settings.attention,
            default: None,
            layers: Vec::new(),
            round_to: settings.round_to,
            least: settings.least,
            samples: settings.samples,
            reestimate: settings.reestimate,
        }
    }

    /// What does not depend on the model.
    pub fn settings(&self) -> ChannelSettings {
        ChannelSettings {
            amount: self.amount,
            criterion: self.criterion,
            ranking: self.ranking,
            attention: self.attention,
            round_to: self.round_to,
            least: self.least,
            samples: self.samples,
            reestimate: self.reestimate,
        }
    }

    /// Refuses numbers out of range and a step that can do nothing.
    pub(super) fn check(&self) -> Result<(), String> {
        self.settings().check().map_err(|e| e.to_string())?;
        let set = |choice: &Choice<Ratio>| match choice {
            Choice::Set(ratio) => Some(*ratio),
            Choice::Keep => None,
        };
        let all = self.default.iter().chain(self.layers.iter().map(|r| &r.1));
        for ratio in all.clone().filter_map(set) {
            ratio.check()?;
        }
        if self.amount == Amount::Ratios && all.filter_map(set).all(|r| r.0 == 0.0) {
            return Err(
                "nothing would go: give `default` or `layers` a ratio above 0, or an `amount` such as macs(0.5)"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// Left out where nothing is asked for: what recipes are called by stays what it was.
fn is_widths(attention: &Attention) -> bool {
    *attention == Attention::Widths
}

/// The step's error, before it is known where it stands.
pub(super) fn refuse(message: &str) -> RecipeError {
    RecipeError::new(format!("PruneChannels: {message}"))
}
