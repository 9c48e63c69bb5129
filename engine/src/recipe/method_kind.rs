//! The methods that a plan may have beside its precisions: which steps they are, where they stand, which layers they are used on.

use super::{CorrectBiasStep, EqualizeStep, MethodStep, Step, Toggle, ToggleRule};

/// A method that makes quantisation lose less without training. Each is a step that stands in a recipe once at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MethodKind {
    Equalize,
    SmoothQuant,
    SequentialMse,
    AdaRound,
    Brecq,
    Gptq,
    CorrectBias,
}

impl MethodKind {
    /// In the order that a recipe may have them in; those that choose codes stand beside each other.
    pub const ALL: [Self; 7] = [
        Self::Equalize,
        Self::SmoothQuant,
        Self::SequentialMse,
        Self::AdaRound,
        Self::Brecq,
        Self::Gptq,
        Self::CorrectBias,
    ];

    /// The kind of a step; `None`: another step than a method's.
    pub fn of(step: &Step) -> Option<Self> {
        Some(match step {
            Step::Equalize(_) => Self::Equalize,
            Step::SmoothQuant(_) => Self::SmoothQuant,
            Step::SequentialMse(_) => Self::SequentialMse,
            Step::AdaRound(_) => Self::AdaRound,
            Step::Brecq(_) => Self::Brecq,
            Step::Gptq(_) => Self::Gptq,
            Step::CorrectBias(_) => Self::CorrectBias,
            _ => return None,
        })
    }

    /// Whether a step is of this kind.
    pub fn is(self, step: &Step) -> bool {
        Self::of(step) == Some(self)
    }

    /// As recipes write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Equalize => "Equalize",
            Self::SmoothQuant => "SmoothQuant",
            Self::SequentialMse => "SequentialMse",
            Self::AdaRound => "AdaRound",
            Self::Brecq => "Brecq",
            Self::Gptq => "Gptq",
            Self::CorrectBias => "CorrectBias",
        }
    }

    /// Its step with the usual settings, on all layers.
    pub fn step(self) -> Step {
        match self {
            Self::Equalize => Step::Equalize(EqualizeStep::default()),
            Self::SmoothQuant => Step::SmoothQuant(MethodStep::default()),
            Self::SequentialMse => Step::SequentialMse(MethodStep::default()),
            Self::AdaRound => Step::AdaRound(MethodStep::default()),
            Self::Brecq => Step::Brecq(MethodStep::default()),
            Self::Gptq => Step::Gptq(MethodStep::default()),
            Self::CorrectBias => Step::CorrectBias(CorrectBiasStep::default()),
        }
    }

    /// It changes weights that scales are then taken from; the others work on scales and codes that are there.
    pub fn is_before(self) -> bool {
        matches!(self, Self::Equalize | Self::SmoothQuant)
    }

    /// It chooses codes: no other such method has the same layer, and no training moves the weights afterwards.
    pub fn chooses_codes(self) -> bool {
        matches!(self, Self::AdaRound | Self::Brecq | Self::Gptq)
    }

    /// It looks at samples of the calibration split.
    pub fn needs_data(self) -> bool {
        self != Self::Equalize
    }
}

impl Step {
    /// Default and rules of a method's step: which layers it is used on.
    pub fn toggles(&self) -> Option<(Toggle, &[ToggleRule])> {
        Some(match self {
            Self::Equalize(s) => (s.default, &s.layers),
            Self::SmoothQuant(s) => (s.default, &s.layers),
            Self::SequentialMse(s) => (s.default, &s.layers),
            Self::AdaRound(s) => (s.default, &s.layers),
            Self::Brecq(s) => (s.default, &s.layers),
            Self::Gptq(s) => (s.default, &s.layers),
            Self::CorrectBias(s) => (s.default, &s.layers),
            _ => return None,
        })
    }

    /// Sets them; a step of another kind stays as it is.
    pub fn set_toggles(&mut self, (default, layers): (Toggle, Vec<ToggleRule>)) {
        let (its_default, its_layers) = match self {
            Self::Equalize(s) => (&mut s.default, &mut s.layers),
            Self::SmoothQuant(s) => (&mut s.default, &mut s.layers),
            Self::SequentialMse(s) => (&mut s.default, &mut s.layers),
            Self::AdaRound(s) => (&mut s.default, &mut s.layers),
            Self::Brecq(s) => (&mut s.default, &mut s.layers),
            Self::Gptq(s) => (&mut s.default, &mut s.layers),
            Self::CorrectBias(s) => (&mut s.default, &mut s.layers),
            _ => return,
        };
        (*its_default, *its_layers) = (default, layers);
    }
}
