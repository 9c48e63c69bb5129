//! The plan's quantisation methods: what is done around Quantize so that it loses less, without training.

use super::forms::{buttons, choice, note, number, row, title};
use crate::{
    commands::{Command, TRAINED},
    state::State,
    theme, widgets,
};
use egui::{DragValue, Grid, Ui, vec2};
use limbeck_engine::{
    compress::{Absorb, EqualizeSettings},
    recipe::{MethodKind, Step},
};

/// The methods as they are being changed.
#[derive(Clone, Debug, Default)]
pub(super) struct MethodsForm {
    methods: Vec<Step>,
}

impl MethodsForm {
    pub(super) fn of(state: &State) -> Self {
        Self {
            methods: state.document.methods.clone(),
        }
    }

    pub(super) fn show(&mut self, ui: &mut Ui, state: &State, out: &mut Vec<Command>) {
        title(ui, "Quantisation methods");
        note(
            ui,
            "Around the quantisation of integer layers, without training. They are steps of the recipe: every measurement and every export of the plan \
             carries them out, the slower ones for seconds on a small network and a minute on a mobile one.",
        );
        Grid::new("methods")
            .num_columns(2)
            .spacing(vec2(16.0, 6.0))
            .show(ui, |ui| {
                for kinds in GROUPS {
                    self.group(ui, kinds);
                }
            });
        for step in &self.methods {
            if let Some(kind) = MethodKind::of(step) {
                note(ui, why(kind));
            }
        }
        let partly = self
            .methods
            .iter()
            .any(|step| step.toggles().is_some_and(|t| !t.1.is_empty()));
        if partly {
            note(
                ui,
                "Some are not used on all layers; the inspector says on which.",
            );
        }
        let blocked = self.blocked(state);
        if let Some(why) = &blocked {
            let warning = theme::of(ui).warning;
            widgets::note_card(
                ui,
                warning,
                "Not with this plan",
                &format!("{why}."),
                |_| {},
            );
        }
        if buttons(ui, "Apply", blocked, false, out) {
            out.push(Command::SetMethods(self.methods.clone()));
            out.push(Command::CloseDialog);
        }
    }

    /// A choice of methods of which a plan has one at most, and the settings of the one chosen.
    fn group(&mut self, ui: &mut Ui, (name, none, kinds): Group) {
        let mut options = vec![(None, none)];
        options.extend(kinds.iter().map(|(kind, label)| (Some(*kind), *label)));
        let here = |step: &Step| {
            let kind = MethodKind::of(step);
            kinds.iter().any(|(k, _)| Some(*k) == kind)
        };
        let before = self
            .methods
            .iter()
            .find(|s| here(s))
            .and_then(MethodKind::of);
        let mut chosen = before;
        choice(ui, name, &options, &mut chosen);
        if chosen != before {
            self.methods.retain(|step| !here(step));
            self.methods.extend(chosen.map(MethodKind::step));
            self.methods.sort_by_key(MethodKind::of);
        }
        for step in self.methods.iter_mut().filter(|step| here(step)) {
            settings(ui, step);
        }
    }

    /// Why these methods cannot be the plan's.
    fn blocked(&self, state: &State) -> Option<String> {
        let mut kinds = self.methods.iter().filter_map(MethodKind::of);
        let chooses = kinds.clone().any(MethodKind::chooses_codes);
        if chooses && state.document.distil.is_some() {
            return Some(TRAINED.to_owned());
        }
        kinds.find(|kind| kind.needs_data())?;
        state.measurable().err().map(str::to_owned)
    }
}

/// What is chosen between: a name, what it is without, and the methods.
type Group = (
    &'static str,
    &'static str,
    &'static [(MethodKind, &'static str)],
);

const GROUPS: [Group; 5] = [
    (
        "Weights of neighbours",
        "As they are",
        &[(MethodKind::Equalize, "Equalised")],
    ),
    (
        "Wide input channels",
        "As they are",
        &[(MethodKind::SmoothQuant, "SmoothQuant")],
    ),
    (
        "Scales of weights",
        "By the weights",
        &[(MethodKind::SequentialMse, "By layers' outputs")],
    ),
    (
        "Roundings",
        "To nearest",
        &[
            (MethodKind::AdaRound, "AdaRound"),
            (MethodKind::Brecq, "By block"),
            (MethodKind::Gptq, "GPTQ"),
        ],
    ),
    (
        "Biases",
        "As they are",
        &[(MethodKind::CorrectBias, "Corrected")],
    ),
];

/// What it is for.
fn why(kind: MethodKind) -> &'static str {
    match kind {
        MethodKind::Equalize => {
            "Equalised: channels of neighbouring layers span like ranges, exactly. For per-tensor weights; ReLU6 and branches stay."
        }
        MethodKind::SmoothQuant => {
            "SmoothQuant: wide channels of a product's input become narrower, its weights wider. For encoders with int8 activations."
        }
        MethodKind::SequentialMse => {
            "By layers' outputs: the scale whose output comes nearest the float layer's. The cheapest method that looks at data."
        }
        MethodKind::AdaRound => {
            "AdaRound: floor or ceiling, chosen for all weights of a layer together. For 4 bits and below."
        }
        MethodKind::Brecq => {
            "By block (BRECQ): floor or ceiling, chosen for all weights of a residual block together. Slower. For 2 bits: at 3 and 4 it was no better than AdaRound on the networks measured."
        }
        MethodKind::Gptq => {
            "GPTQ: each input's rounding error is made good by the inputs after it. For large products and groups of weights."
        }
        MethodKind::CorrectBias => {
            "Corrected: the shift of every channel's mean is taken out of its bias. For 8 bits; behind AdaRound little is left to correct."
        }
    }
}

/// The settings that are worth changing.
fn settings(ui: &mut Ui, step: &mut Step) {
    const SAMPLES: std::ops::RangeInclusive<usize> = 1..=100_000;
    match step {
        Step::Equalize(step) => {
            let mut absorbed = step.settings.absorb;
            let options = [
                (Absorb::Off, "Stay"),
                (Absorb::Deviations(3.0), "Below 3 deviations"),
                (Absorb::Minimum, "Below the least"),
            ];
            choice(ui, "High biases", &options, &mut absorbed);
            step.settings.absorb = absorbed;
            if absorbed == Absorb::Off {
                // Nothing looks at samples then, and a number of them is refused; a recipe may have brought one.
                step.settings.samples = EqualizeSettings::default().samples;
            }
        }
        Step::SmoothQuant(step) => {
            row(ui, "Strength", |ui| {
                let strength = DragValue::new(&mut step.settings.strength);
                ui.add(strength.range(0.05..=0.95).speed(0.01).fixed_decimals(2))
            });
            number(
                ui,
                "SmoothQuant samples",
                &mut step.settings.samples,
                SAMPLES,
            );
        }
        Step::SequentialMse(step) => {
            number(
                ui,
                "Samples for scales",
                &mut step.settings.samples,
                SAMPLES,
            );
        }
        Step::AdaRound(step) => {
            number(ui, "AdaRound samples", &mut step.settings.samples, SAMPLES);
            let iterations = &mut step.settings.iterations;
            number(ui, "AdaRound iterations", iterations, 1..=1_000_000);
        }
        Step::Brecq(step) => {
            number(ui, "BRECQ samples", &mut step.settings.samples, SAMPLES);
            let iterations = &mut step.settings.iterations;
            number(ui, "BRECQ iterations", iterations, 1..=1_000_000);
        }
        Step::Gptq(step) => {
            number(ui, "GPTQ samples", &mut step.settings.samples, SAMPLES);
        }
        Step::CorrectBias(step) => number(ui, "Samples for biases", &mut step.samples, SAMPLES),
        _ => {}
    }
}
