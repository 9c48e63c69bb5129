//! AdaRound (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020): layer by layer, each weight is
//! rounded to the floor or the ceiling, whichever together change the layer's output least. Scales stay as they are; the layer reads its
//! quantised input, with the layers before it already rounded, and is held against the float network's output behind the
//! activation function that follows.

mod solve;

use super::{
    Account, CompressError, Model, Pass, PassContext,
    layerwise::{Choice, Method, Problem, Seen, choose},
};
use crate::{exec::CancelToken, graph::LayerId};
use std::collections::BTreeSet;

/// How roundings are chosen.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaRoundSettings {
    /// Samples of the calibration split.
    pub samples: usize,
    /// Output positions of a layer that its roundings are chosen on, drawn evenly from the samples. An eighth of them
    /// is kept aside to judge the choice on.
    pub positions: usize,
    /// Steps of Adam.
    pub iterations: usize,
    /// Positions a step.
    pub batch: usize,
    /// Learning rate.
    pub rate: f32,
    /// Weight of the term that drives each rounding to a decision, in units of what one weight's own rounding can cost.
    pub decision: f32,
}

impl Default for AdaRoundSettings {
    fn default() -> Self {
        Self {
            samples: 64,
            positions: 2048,
            iterations: 1000,
            batch: 256,
            rate: 0.01,
            decision: 1.0,
        }
    }
}

impl AdaRoundSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// No samples, positions, iterations or batch; a rate or weight that is not a positive number.
    pub fn check(&self) -> Result<(), CompressError> {
        super::at_least_one(&[
            ("samples", self.samples),
            ("positions", self.positions),
            ("iterations", self.iterations),
            ("batch", self.batch),
        ])?;
        super::above_zero(&[("rate", self.rate), ("decision", self.decision)])
    }
}

/// Chooses the rounding of quantised weights, layer by layer; see the file's first lines.
pub struct AdaRound {
    pub settings: AdaRoundSettings,
    /// Those it is to be done to; layers that are not quantised are left alone, with the reason.
    pub layers: BTreeSet<LayerId>,
}

impl Pass for AdaRound {
    fn name(&self) -> &'static str {
        "adaround"
    }

    fn apply(
        &self,
        model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        self.run(model, context, &mut |_, _| {})
    }
}

impl AdaRound {
    /// As [`Pass::apply`]; `progress` is told how many of how many layers are done.
    ///
    /// # Errors
    /// Settings without a meaning, no data, a model with several inputs or one that cannot run, cancellation.
    pub fn run(
        &self,
        model: Model,
        context: &PassContext<'_>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Model, Account), CompressError> {
        self.settings.check()?;
        choose(&self.settings, &self.layers, model, context, progress)
    }
}

impl Method for AdaRoundSettings {
    fn name(&self) -> (&'static str, &'static str) {
        ("adaround", "AdaRound")
    }
    fn samples(&self) -> usize {
        self.samples
    }
    fn positions(&self) -> usize {
        self.positions
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
