//! Steps that make quantisation lose less without training: what a recipe says of them, and where they may stand.

use super::{Choice, Recipe, RecipeError, Rule, Step, text::Anchor};
use crate::compress::AdaRoundSettings;

/// Whether a method is used on a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Toggle {
    #[default]
    On,
    Off,
}

/// One line of a method's `layers`: a glob or a name, and whether it is used there.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ToggleRule(pub String, pub Toggle);

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EqualizeStep {
    pub default: Toggle,
    pub layers: Vec<ToggleRule>,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaRoundStep {
    pub default: Toggle,
    pub layers: Vec<ToggleRule>,
    pub settings: AdaRoundSettings,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorrectBiasStep {
    pub default: Toggle,
    pub layers: Vec<ToggleRule>,
    /// Of the calibration split.
    pub samples: usize,
}

impl Default for CorrectBiasStep {
    fn default() -> Self {
        Self {
            default: Toggle::On,
            layers: Vec::new(),
            samples: 256,
        }
    }
}

impl Toggle {
    fn choice(self) -> Choice<()> {
        match self {
            Self::On => Choice::Set(()),
            Self::Off => Choice::Keep,
        }
    }
}

/// As the rules of other steps, for one way of resolving them.
pub(super) fn choices(default: Toggle, rules: &[ToggleRule]) -> (Choice<()>, Vec<Rule<()>>) {
    let rules = rules
        .iter()
        .map(|ToggleRule(layer, toggle)| Rule(layer.clone(), toggle.choice()))
        .collect();
    (default.choice(), rules)
}

/// Refuses methods in an order that would undo or void them.
pub(super) fn validate(recipe: &Recipe) -> Result<(), RecipeError> {
    let steps = &recipe.steps;
    let at = |is: fn(&Step) -> bool| steps.iter().position(is);
    let quantize = at(|s| matches!(s, Step::Quantize(_)));
    let prune = at(|s| matches!(s, Step::Prune(_)));
    let distils: Vec<usize> = (0..steps.len())
        .filter(|i| matches!(steps[*i], Step::Distil(_)))
        .collect();
    let refuse = |word: &'static str, nth: usize, why: &str| {
        Err(RecipeError::new(why.to_owned()).at(Anchor::Word(word, nth)))
    };
    for (word, is) in [
        (
            "Equalize",
            (|s| matches!(s, Step::Equalize(_))) as fn(&Step) -> bool,
        ),
        ("AdaRound", |s| matches!(s, Step::AdaRound(_))),
        ("CorrectBias", |s| matches!(s, Step::CorrectBias(_))),
    ] {
        if steps.iter().filter(|s| is(s)).count() > 1 {
            let why = format!("{word} stands here twice; put all its layers into one");
            return refuse(word, 1, &why);
        }
    }
    if let Some(here) = at(|s| matches!(s, Step::Equalize(_))) {
        match quantize {
            None => {
                return refuse(
                    "Equalize",
                    0,
                    "Equalize leaves the float network as it is and helps quantisation only; a Quantize step must follow it",
                );
            }
            Some(quantize) if quantize < here => {
                return refuse(
                    "Equalize",
                    0,
                    "Equalize must come before Quantize: scales and ranges are taken from the weights that it changes",
                );
            }
            _ => {}
        }
        if prune.is_some_and(|prune| prune > here) {
            return refuse(
                "Equalize",
                0,
                "Equalize must come after Prune: it changes the magnitudes that Prune compares",
            );
        }
        let behind = |is: fn(&Step) -> bool| steps[here..].iter().any(is);
        if behind(|s| matches!(s, Step::PruneChannels(_))) {
            return refuse(
                "Equalize",
                0,
                "Equalize must come after PruneChannels: it changes the magnitudes that channels are compared by",
            );
        }
        if behind(|s| matches!(s, Step::FoldBatchNorm)) {
            return refuse(
                "Equalize",
                0,
                "Equalize must come after FoldBatchNorm: it does nothing to a layer that a batch norm still follows",
            );
        }
    }
    let adaround = at(|s| matches!(s, Step::AdaRound(_)));
    for (word, here) in [
        ("AdaRound", adaround),
        ("CorrectBias", at(|s| matches!(s, Step::CorrectBias(_)))),
    ] {
        let Some(here) = here else { continue };
        let Some(quantize) = quantize.filter(|q| *q < here) else {
            let why =
                format!("{word} must come after Quantize: it works on the scales chosen there");
            return refuse(word, 0, &why);
        };
        if distils.iter().any(|d| quantize < *d && *d < here) {
            let why = format!(
                "{word} cannot come after training on quantised weights: what it would hold the network against is the float one \
                 they no longer belong to; put Distil before Quantize, or leave one of the two out"
            );
            return refuse(word, 0, &why);
        }
        if word == "AdaRound" && distils.iter().any(|d| *d > here) {
            return refuse(
                word,
                0,
                "Distil after AdaRound would move the weights off the floors and ceilings chosen; leave one of the two out",
            );
        }
        if word == "CorrectBias" && adaround.is_some_and(|a| a > here) {
            return refuse(
                word,
                0,
                "CorrectBias must come after AdaRound: it takes out the shift that the roundings chosen there leave",
            );
        }
    }
    for step in steps {
        match step {
            Step::AdaRound(step) => {
                if let Err(e) = step.settings.check() {
                    return refuse("AdaRound", 0, &format!("AdaRound: {e}"));
                }
            }
            Step::CorrectBias(step) if step.samples == 0 => {
                return refuse(
                    "CorrectBias",
                    0,
                    "CorrectBias: samples: at least 1 was expected, found 0",
                );
            }
            _ => {}
        }
    }
    Ok(())
}
