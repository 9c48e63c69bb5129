//! Structured pruning: channels that go are really taken out, with everything that is tied to them (DepGraph, Fang et al. 2023).

mod choose;
mod extents;
mod groups;
mod labels;
mod means;
mod measured;
mod norms;
mod pass;
mod remove;
mod reshape;
mod rules;
mod score;
#[cfg(test)]
pub(crate) mod tests;
mod trace;

pub(crate) use choose::macs;
pub(super) use choose::macs_left;
pub use groups::{ChannelGroup, ChannelGroups};
pub use pass::layer_channels;

use super::{CompressError, PassContext, Ratio};
use crate::graph::{Graph, LayerId};
use groups::Structure;
use std::collections::{BTreeMap, BTreeSet};

/// By what a channel's importance is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// Sum of magnitudes of the weights (Li et al. 2017), over all layers of the group (Fang et al. 2023).
    L1,
    /// Euclidean norm of the weights.
    #[default]
    L2,
    /// Magnitude of the batch norm's scale (Liu et al. 2017).
    NormScale,
    /// First-order estimate of the squared change of the loss, from gradients on the calibration split (Molchanov et al. 2019).
    Taylor,
    /// Distance to the other filters of the layer (He et al. 2019).
    GeometricMedian,
    /// Mean magnitude of activations on the calibration split.
    Activation,
    /// Share of activations that are not zero on the calibration split (Hu et al. 2016).
    Apoz,
    /// A control: any criterion worth its name beats it.
    Random,
}

impl Criterion {
    /// As it is written in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::NormScale => "norm_scale",
            Self::Taylor => "taylor",
            Self::GeometricMedian => "geometric_median",
            Self::Activation => "activation",
            Self::Apoz => "apoz",
            Self::Random => "random",
        }
    }

    /// Whether it looks at samples of the calibration split.
    pub fn needs_data(self) -> bool {
        matches!(self, Self::Taylor | Self::Activation | Self::Apoz)
    }
}

/// Whether channels compete with those of their own group, or with all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranking {
    /// The same share of every group.
    Local,
    /// The least important channels, wherever they are.
    #[default]
    Global,
}

/// What goes as one where attention takes channels apart into heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// The same place within every head: all heads get narrower.
    #[default]
    Widths,
    /// Whole heads (Michel et al., "Are Sixteen Heads Really Better than One?", 2019).
    Heads,
}

/// How much goes.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Amount {
    /** of every group the share that its layers' ratios say */
    Ratios,
    /** this share of all channels that can go */
    Channels(f32),
    /** as many as leave at most this share of the multiply–accumulates */
    Macs(f32),
    /** as many as leave at most so many kB (1,000 bytes) of weights, as they are stored at this step */
    WeightKilobytes(f64),
}

impl Amount {
    pub(crate) fn words(self) -> String {
        match self {
            Self::Ratios => "the layers' ratios".to_owned(),
            Self::Channels(share) => format!("channels({share}): that share of all channels gone"),
            Self::Macs(share) => format!("macs({share}): at most that share of the MACs left"),
            Self::WeightKilobytes(kb) => format!("weight_kilobytes({kb})"),
        }
    }
}

/// What of a pruning of channels does not depend on the model.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelSettings {
    pub amount: Amount,
    pub criterion: Criterion,
    /// Of no account for `ratios`.
    pub ranking: Ranking,
    pub attention: Attention,
    /// What is left of every layer is a multiple of so many channels, where anything is taken (runtimes like 4, 8 or 16).
    pub round_to: usize,
    /// Channels that every layer keeps at least.
    pub least: usize,
    /// Samples of the calibration split that criteria look at and statistics are taken from.
    pub samples: usize,
    /// Take the statistics of batch norms again afterwards; where there are none, scale and shift layers so that their channels keep
    /// mean and spread. Needs data; without any, what is left computes exactly what it computed before, the removed channels being zero.
    pub reestimate: bool,
}

impl Default for ChannelSettings {
    fn default() -> Self {
        Self {
            amount: Amount::Ratios,
            criterion: Criterion::L2,
            ranking: Ranking::Global,
            attention: Attention::Widths,
            round_to: 1,
            least: 1,
            samples: 256,
            reestimate: true,
        }
    }
}

impl ChannelSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// Shares outside 0..1, kilobytes that are not above 0, a multiple or a least number of 0, no samples.
    pub fn check(&self) -> Result<(), CompressError> {
        let share = |name: &str, value: f32| {
            (!(value > 0.0 && value < 1.0)).then(|| {
                format!("{name}: a share above 0 and less than 1 was expected, found {value}")
            })
        };
        let amount = match self.amount {
            Amount::Channels(value) => share("channels", value),
            Amount::Macs(value) => share("macs", value),
            Amount::WeightKilobytes(kb) if !(kb.is_finite() && kb > 0.0) => Some(format!(
                "weight_kilobytes: a number above 0 was expected, found {kb}"
            )),
            Amount::Ratios | Amount::WeightKilobytes(_) => None,
        };
        let numbers = [
            ("round_to", self.round_to),
            ("least", self.least),
            ("samples", self.samples),
        ];
        let zero = numbers.iter().find(|(_, n)| *n == 0);
        let wrong =
            amount.or(zero.map(|(key, _)| format!("{key}: at least 1 was expected, found 0")));
        wrong.map_or(Ok(()), |w| Err(CompressError::Invalid(w)))
    }
}

/// Takes the least important channels out.
#[derive(Clone, Debug)]
pub struct PruneChannels {
    pub settings: ChannelSettings,
    /// By layer: the share that goes (for [`Amount::Ratios`]) or the most that may; `None`: the layer keeps its channels.
    /// Layers that are not named: nothing goes for `Ratios`, anything may otherwise. Of a group's layers the smallest counts.
    pub layers: BTreeMap<LayerId, Option<Ratio>>,
}

/// After something but channels was taken out of `original`, which gave `graph`: statistics of batch norms are taken again on the first
/// `samples` of the calibration split; where there are no norms, layers get back the means and spreads that they had. In words.
pub(super) fn settle(
    original: &Graph,
    graph: &mut Graph,
    samples: usize,
    context: &PassContext<'_>,
) -> Result<String, CompressError> {
    pass::settle(
        &Structure::of(original),
        &BTreeSet::new(),
        graph,
        samples,
        context,
    )
}
