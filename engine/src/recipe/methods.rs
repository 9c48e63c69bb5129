//! Steps that make quantisation lose less without training: what a recipe says of them, and where they may stand.

use super::{Choice, MethodKind, Recipe, RecipeError, Rule, Step, text::Anchor};
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

/// Refuses methods in an order that would undo or void them.
pub(super) fn validate(recipe: &Recipe) -> Result<(), RecipeError> {
    let steps = &recipe.steps;
    for kind in MethodKind::ALL {
        let word = kind.word();
        if steps.iter().filter(|s| kind.is(s)).count() > 1 {
            let why = format!("{word} stands here twice; put all its layers into one");
            return refuse(word, 1, &why);
        }
    }
    for kind in MethodKind::ALL {
        match kind.is_before() {
            true => before_quantize(steps, kind)?,
            false => behind_quantize(steps, kind)?,
        }
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

fn place(steps: &[Step], kind: MethodKind) -> Option<usize> {
    steps.iter().position(|step| kind.is(step))
}

fn quantizes(step: &Step) -> bool {
    matches!(step, Step::Quantize(_))
}

fn before_quantize(steps: &[Step], kind: MethodKind) -> Result<(), RecipeError> {
    let word = kind.word();
    let Some(here) = place(steps, kind) else {
        return Ok(());
    };
    let why = match steps.iter().position(quantizes) {
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

fn behind_quantize(steps: &[Step], kind: MethodKind) -> Result<(), RecipeError> {
    let word = kind.word();
    let Some(here) = place(steps, kind) else {
        return Ok(());
    };
    let quantize = steps.iter().position(quantizes).filter(|q| *q < here);
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
    if kind.chooses_codes() && steps[here..].iter().any(trains) {
        let why = format!(
            "Distil after {word} would move the weights off the codes chosen; leave one of the two out"
        );
        return refuse(word, 0, &why);
    }
    // Found behind this one, though what it does goes before.
    let late = |old: &MethodKind| place(steps, *old).is_some_and(|at| at > here);
    let mut before = MethodKind::ALL.into_iter().filter(|old| *old < kind);
    let why = match kind {
        MethodKind::CorrectBias => "it takes out the shift that is left then",
        _ => "codes are chosen on scales that then stay",
    };
    let first = before.find(|old| !(old.chooses_codes() && kind.chooses_codes()) && late(old));
    match first {
        None => Ok(()),
        Some(first) => {
            let why = format!("{word} must come after {}: {why}", first.word());
            refuse(word, 0, &why)
        }
    }
}
