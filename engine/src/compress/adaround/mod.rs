//! AdaRound (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020): layer by layer, each weight is
//! rounded to the floor or the ceiling, whichever together change the layer's output least. Scales stay as they are; the layer reads its
//! quantised input, with the layers before it already rounded, and is held against the float network's output behind the
//! activation function that follows, or, as the last of a residual block, against its sum.

mod solve;

use super::{
    CompressError, OnLayers,
    layerwise::{Choice, Method, Problem, Seen},
};
use crate::exec::CancelToken;

/// How roundings are chosen.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaRoundSettings {
    /// Samples of the calibration split.
    pub samples: usize,
    /// Output positions of a layer that its roundings are chosen on, drawn evenly from the samples. Those of every
    /// eighth sample are kept aside to judge the choice on.
    pub positions: usize,
    /// Steps of Adam.
    pub iterations: usize,
    /// Positions a step.
    pub batch: usize,
    /// Learning rate.
    pub rate: f32,
    /// Weight of the term that drives each rounding to a decision, in units of what one weight's own rounding can cost.
    pub decision: f32,
    /// How much of what is chance in the covariance of a layer's inputs is held against it: 1 for what Ledoit and Wolf estimate from the samples,
    /// 0 to choose by the samples alone.
    pub damping: f32,
}

impl Default for AdaRoundSettings {
    fn default() -> Self {
        Self {
            samples: 256,
            positions: 65_536,
            iterations: 1000,
            batch: 128,
            rate: 0.2,
            decision: 1.0,
            damping: 1.0,
        }
    }
}

impl AdaRoundSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// No samples, positions, iterations or batch; a rate or weight that is not a positive number; a damping below 0 or not a number.
    pub fn check(&self) -> Result<(), CompressError> {
        super::at_least_one(&[
            ("samples", self.samples),
            ("positions", self.positions),
            ("iterations", self.iterations),
            ("batch", self.batch),
        ])?;
        super::above_zero(&[("rate", self.rate), ("decision", self.decision)])?;
        match self.damping {
            0.0..f32::INFINITY => Ok(()),
            damping => Err(CompressError::Invalid(format!(
                "damping: a number of 0 and above was expected, found {damping}"
            ))),
        }
    }
}

/// Chooses the rounding of quantised weights, layer by layer; see the file's first lines.
pub type AdaRound = OnLayers<AdaRoundSettings>;

impl Method for AdaRoundSettings {
    fn name(&self) -> (&'static str, &'static str) {
        ("adaround", "AdaRound")
    }
    fn sound(&self) -> Result<(), CompressError> {
        self.check()
    }
    fn samples(&self) -> usize {
        self.samples
    }
    fn positions(&self) -> usize {
        self.positions
    }
    fn minds_sums(&self) -> bool {
        true
    }
    fn choose(
        &self,
        problem: &Problem,
        seen: &Seen<'_>,
        cancel: &CancelToken,
    ) -> Result<Result<Choice, String>, CompressError> {
        let codes = solve::solve(problem, self, seen, cancel)?;
        Ok(Ok(Choice::Codes { codes, bound: true }))
    }
}
