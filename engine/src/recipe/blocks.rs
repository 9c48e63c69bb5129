//! The recipe step that takes whole residual blocks out: its keys.

use super::{Choice, Rule};
use crate::compress::BlockSettings;

/// Keys of `PruneBlocks`; see [`BlockSettings`] for those that are the same.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PruneBlocksStep {
    /// Names or globs of layers: a block may go if all its layers are among them. Left out: every one may.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    pub samples: usize,
}

impl Default for PruneBlocksStep {
    fn default() -> Self {
        let settings = BlockSettings::default();
        Self {
            layers: Vec::new(),
            count: settings.count,
            samples: settings.samples,
        }
    }
}

impl PruneBlocksStep {
    /// What does not depend on the model.
    pub fn settings(&self) -> BlockSettings {
        BlockSettings {
            count: self.count,
            samples: self.samples,
        }
    }

    /// `layers` as rules.
    pub(super) fn rules(&self) -> Vec<Rule<()>> {
        let rules = self.layers.iter();
        rules.map(|l| Rule(l.clone(), Choice::Set(()))).collect()
    }

    /// Refuses numbers out of range and a step that can do nothing.
    pub(super) fn check(&self) -> Result<(), String> {
        self.settings().check().map_err(|e| e.to_string())?;
        match self.layers.is_empty() && self.count.is_none() {
            true => Err(
                "nothing would go: name the layers of blocks in `layers`, or say by `count` how many go"
                    .to_owned(),
            ),
            false => Ok(()),
        }
    }
}
