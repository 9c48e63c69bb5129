//! Steps that make quantisation lose less without training: what a recipe says of them, and where they may stand.

use super::{Choice, Recipe, RecipeError, Rule, Step, text::Anchor};
use crate::compress::{CompressError, EqualizeSettings};

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
    #[serde(skip_serializing_if = "EqualizeSettings::is_default")]
    pub settings: EqualizeSettings,
}

/// A method with settings of its own: where it is used, and how.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(bound(deserialize = "S: Default + serde::Deserialize<'de>"))]
pub struct MethodStep<S> {
    pub default: Toggle,
    pub layers: Vec<ToggleRule>,
    pub settings: S,
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

/// A kind of step that stands in a recipe once at most.
type Kind = (&'static str, fn(&Step) -> bool);

/// Before Quantize: they change weights that scales are then taken from.
const BEFORE: [Kind; 2] = [
    ("Equalize", |s| matches!(s, Step::Equalize(_))),
    ("SmoothQuant", |s| matches!(s, Step::SmoothQuant(_))),
];
/// Behind Quantize, in the order that they may stand in; those in the middle all choose codes.
const BEHIND: [Kind; 5] = [
    ("SequentialMse", |s| matches!(s, Step::SequentialMse(_))),
    ("AdaRound", |s| matches!(s, Step::AdaRound(_))),
    ("Brecq", |s| matches!(s, Step::Brecq(_))),
    ("Gptq", |s| matches!(s, Step::Gptq(_))),
    ("CorrectBias", |s| matches!(s, Step::CorrectBias(_))),
];

/// Refuses methods in an order that would undo or void them.
pub(super) fn validate(recipe: &Recipe) -> Result<(), RecipeError> {
    let steps = &recipe.steps;
    for (word, is) in BEFORE.iter().chain(&BEHIND) {
        if steps.iter().filter(|s| is(s)).count() > 1 {
            let why = format!("{word} stands here twice; put all its layers into one");
            return refuse(word, 1, &why);
        }
    }
    for kind in BEFORE {
        before_quantize(steps, kind)?;
    }
    for kind in BEHIND {
        behind_quantize(steps, kind)?;
    }
    for step in steps {
        let (word, checked) = match step {
            Step::Equalize(step) => ("Equalize", step.settings.check()),
            Step::AdaRound(step) => ("AdaRound", step.settings.check()),
            Step::Brecq(step) => ("Brecq", step.settings.check()),
            Step::Gptq(step) => ("Gptq", step.settings.check()),
            Step::SequentialMse(step) => ("SequentialMse", step.settings.check()),
            Step::SmoothQuant(step) => ("SmoothQuant", step.settings.check()),
            Step::CorrectBias(step) if step.samples == 0 => {
                let why = "samples: at least 1 was expected, found 0".to_owned();
                ("CorrectBias", Err(CompressError::Invalid(why)))
            }
            _ => continue,
        };
        if let Err(e) = checked {
            return refuse(word, 0, &format!("{word}: {e}"));
        }
    }
    Ok(())
}

fn refuse(word: &'static str, nth: usize, why: &str) -> Result<(), RecipeError> {
    Err(RecipeError::new(why.to_owned()).at(Anchor::Word(word, nth)))
}

fn place(steps: &[Step], is: fn(&Step) -> bool) -> Option<usize> {
    steps.iter().position(is)
}

fn before_quantize(steps: &[Step], (word, is): Kind) -> Result<(), RecipeError> {
    let Some(here) = place(steps, is) else {
        return Ok(());
    };
    let why = match place(steps, |s| matches!(s, Step::Quantize(_))) {
        None => {
            "leaves the float network as it is and helps quantisation only; a Quantize step must follow it"
        }
        Some(quantize) if quantize < here => {
            "must come before Quantize: scales and ranges are taken from the weights that it changes"
        }
        _ => match steps[here..].iter().find_map(|step| match step {
            Step::Prune(_) => Some("must come after Prune: it changes the magnitudes that Prune compares"),
            Step::PruneBlocks(_) => Some(
                "must come after PruneBlocks: it scales neighbours by each other, and blocks that go are some of them",
            ),
            Step::PruneChannels(_) => Some(
                "must come after PruneChannels: it changes the magnitudes that channels are compared by",
            ),
            Step::LowRank(_) => Some(
                "must come after LowRank: it scales the weights that are taken apart",
            ),
            Step::FoldBatchNorm => Some(
                "must come after FoldBatchNorm: it does nothing to a layer that a batch norm still follows",
            ),
            _ => None,
        }) {
            Some(why) => why,
            None => return Ok(()),
        },
    };
    refuse(word, 0, &format!("{word} {why}"))
}

fn behind_quantize(steps: &[Step], (word, is): Kind) -> Result<(), RecipeError> {
    let Some(here) = place(steps, is) else {
        return Ok(());
    };
    let quantize = place(steps, |s| matches!(s, Step::Quantize(_))).filter(|q| *q < here);
    let Some(quantize) = quantize else {
        let why = format!("{word} must come after Quantize: it works on the scales chosen there");
        return refuse(word, 0, &why);
    };
    let trains = |s: &Step| matches!(s, Step::Distil(_));
    if steps[quantize..here].iter().any(trains) {
        let why = format!(
            "{word} cannot come after training on quantised weights: what it would hold the network against is the float one \
             they no longer belong to; put Distil before Quantize, or leave one of the two out"
        );
        return refuse(word, 0, &why);
    }
    let chooses = matches!(word, "AdaRound" | "Brecq" | "Gptq");
    if chooses && steps[here..].iter().any(trains) {
        let why = format!(
            "Distil after {word} would move the weights off the codes chosen; leave one of the two out"
        );
        return refuse(word, 0, &why);
    }
    let late = |kind: &&Kind| place(steps, kind.1).is_some_and(|at| at > here);
    match word {
        "CorrectBias" => {
            if let Some((first, _)) = BEHIND[..4].iter().find(late) {
                let why = format!(
                    "CorrectBias must come after {first}: it takes out the shift that is left then"
                );
                return refuse(word, 0, &why);
            }
        }
        "AdaRound" | "Brecq" | "Gptq" => {
            if let Some((first, _)) = BEHIND[..1].iter().find(late) {
                let why = format!(
                    "{word} must come after {first}: codes are chosen on scales that then stay"
                );
                return refuse(word, 0, &why);
            }
        }
        _ => {}
    }
    Ok(())
}
