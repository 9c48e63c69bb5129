//! A scheme as it is written: what is left out comes from the target, or from the engine.

use crate::compress::{Activations, Calibration, Granularity, IntegerOp, QuantScheme, Symmetry};

/// The keys of a scheme, each of which may be left out.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchemeText {
    /// Name of a target whose defaults hold where nothing else is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub int8_weights: Option<Granularity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub int4_weights: Option<Granularity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_symmetry: Option<Symmetry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations: Option<Activations>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetry: Option<Symmetry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// Left out of a scheme with a target, it is the target's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Vec<IntegerOp>>,
}

impl SchemeText {
    /// Whether every key is there. Symmetric weights are not written out; `Symmetric` is what their absence means.
    pub fn is_complete(&self) -> bool {
        self.int8_weights.is_some()
            && self.int4_weights.is_some()
            && self.activations.is_some()
            && self.symmetry.is_some()
            && self.calibration.is_some()
            && self.samples.is_some()
    }

    /// What is written, laid over `base`.
    pub fn over(self, base: QuantScheme) -> QuantScheme {
        QuantScheme {
            target: self.target.or(base.target),
            int8_weights: self.int8_weights.unwrap_or(base.int8_weights),
            int4_weights: self.int4_weights.unwrap_or(base.int4_weights),
            weight_symmetry: self.weight_symmetry.unwrap_or(base.weight_symmetry),
            activations: self.activations.unwrap_or(base.activations),
            symmetry: self.symmetry.unwrap_or(base.symmetry),
            calibration: self.calibration.unwrap_or(base.calibration),
            samples: self.samples.unwrap_or(base.samples),
            outputs: self.outputs.or(base.outputs),
        }
    }
}
