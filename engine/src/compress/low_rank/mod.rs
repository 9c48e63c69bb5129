//! Low rank: a layer's weight as the product of two smaller ones, the layer as two layers one after the other. Products and 1×1 convolutions by
//! singular values (Denton et al., "Exploiting Linear Structure Within Convolutional Networks", 2014), k×k convolutions into k×k → 1×1
//! (Zhang et al., "Accelerating Very Deep Convolutional Networks", 2015) or k×1 → 1×k (Jaderberg et al. 2014).

mod choose;
mod factor;
mod form;
mod pass;
mod seen;
mod write;

#[cfg(test)]
pub(super) use {
    factor::Factors,
    form::plan,
    write::{Taken, write},
};

use super::CompressError;
use crate::graph::LayerId;
use std::collections::BTreeMap;

/// What the name of a layer's first factor ends with; the second keeps the layer's name.
pub const LOW_RANK: &str = ".low_rank";

/// Share of energy: above 0, at most 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Energy(pub f32);

impl Energy {
    /// # Errors
    /// Anything but a share above 0 and at most 1.
    pub fn check(self) -> Result<(), String> {
        if self.0 > 0.0 && self.0 <= 1.0 {
            Ok(())
        } else {
            Err(format!(
                "a share of energy above 0 and at most 1 was expected, found {}",
                self.0
            ))
        }
    }
}

/// By what ranks are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankBy {
    /** the smallest that keeps the layer's share of energy */
    #[default]
    Energy,
    /** such that at most this share of the model's multiply–accumulates is left */
    Macs(f32),
    /** such that at most this share of the layers' parameters is left */
    Parameters(f32),
}

impl RankBy {
    pub(crate) fn words(self) -> String {
        match self {
            Self::Energy => "energy".to_owned(),
            Self::Macs(share) => format!("macs({share}): at most that share of the MACs left"),
            Self::Parameters(share) => {
                format!("parameters({share}): at most that share of the layers' parameters left")
            }
        }
    }
}

/// How convolutions with a kernel larger than 1 are taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelSplit {
    /// k×k to `rank` channels, then 1×1.
    #[default]
    Channel,
    /// k×1 to `rank` channels, then 1×k; those of one axis by channels.
    Spatial,
}

/// Whose energy counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnergyOf {
    /// Of the layer's outputs on the calibration split; of its weights where there is no data, and for `spatial`.
    #[default]
    Outputs,
    /// Squared singular values of the weight.
    Weights,
}

/// What of a factorisation does not depend on the model.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LowRankSettings {
    pub rank: RankBy,
    pub kernels: KernelSplit,
    pub energy_of: EnergyOf,
    /// Ranks are multiples of it (runtimes like 4, 8 or 16).
    pub round_to: usize,
    /// Of the calibration split.
    pub samples: usize,
}

impl Default for LowRankSettings {
    fn default() -> Self {
        Self {
            rank: RankBy::Energy,
            kernels: KernelSplit::Channel,
            energy_of: EnergyOf::Outputs,
            round_to: 1,
            samples: 256,
        }
    }
}

impl LowRankSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// Shares outside 0..1, a multiple of 0, no samples.
    pub fn check(&self) -> Result<(), CompressError> {
        let (name, share) = match self.rank {
            RankBy::Energy => ("energy", 0.5),
            RankBy::Macs(share) => ("macs", share),
            RankBy::Parameters(share) => ("parameters", share),
        };
        if !(share > 0.0 && share < 1.0) {
            return Err(CompressError::Invalid(format!(
                "{name}: a share above 0 and less than 1 was expected, found {share}"
            )));
        }
        if self.round_to > MOST_ROUNDED {
            return Err(CompressError::Invalid(format!(
                "round_to: at most {MOST_ROUNDED} was expected, found {}",
                self.round_to
            )));
        }
        super::at_least_one(&[("round_to", self.round_to), ("samples", self.samples)])
    }
}

/// No runtime computes in larger blocks.
const MOST_ROUNDED: usize = 4096;

/// Takes layers apart where that saves parameters and multiply–accumulates.
#[derive(Clone, Debug)]
pub struct LowRank {
    pub settings: LowRankSettings,
    /// The share of energy that stays (for [`RankBy::Energy`]) or the least that must (for budgets); `None`: the layer stays whole.
    /// Layers that are not named stay whole for `Energy`, and may be taken apart to any rank otherwise.
    pub layers: BTreeMap<LayerId, Option<Energy>>,
}
