//! The quantisation scheme: the target that the model is for, what that refuses of the plan, and the scheme itself.

use super::forms::{buttons, choice, note, number, path_row, title};
use crate::{
    commands::Command,
    state::{Refusal, State, is_target_file},
    theme,
    widgets::{self, Button},
};
use egui::{ComboBox, Grid, Ui, vec2};
use limbeck_engine::{
    compress::{Activations, Calibration, Granularity, QuantScheme, Symmetry},
    target::{self, Target},
};
use std::{path::PathBuf, sync::Arc};

/// Refusals that are told one by one.
const TOLD: usize = 3;

/// The scheme as it is being changed.
#[derive(Clone, Debug, Default)]
pub(super) struct SchemeForm {
    scheme: QuantScheme,
    /// A description of one's own is asked for; its path as typed.
    own: Option<String>,
    /// The description that is being read; its defaults are taken when it is there.
    waiting: Option<String>,
    /// What the target refuses of the plan, for the scheme and the descriptions that it was worked out for.
    refused: Option<((QuantScheme, u64), Vec<Refusal>)>,
}

impl SchemeForm {
    pub(super) fn of(state: &State) -> Self {
        let scheme = state.document.scheme.clone();
        let own = scheme.target.clone().filter(|name| is_target_file(name));
        Self {
            scheme,
            own,
            ..Self::default()
        }
    }

    /// A path that the system's picker brought.
    pub(super) fn picked(&mut self, path: String) {
        self.own = Some(path);
    }

    pub(super) fn show(&mut self, ui: &mut Ui, state: &State, out: &mut Vec<Command>) {
        title(ui, "Quantisation scheme");
        self.target(ui, state, out);
        ui.add_space(2.0);
        note(
            ui,
            "Of all integer layers; int7 to int5 go by int8, int3 and int2 by int4.",
        );
        rows(ui, &mut self.scheme);
        let taken = self
            .own
            .as_ref()
            .is_none_or(|typed| self.scheme.target.as_deref() == Some(&*own_name(typed)));
        let blocked = match (&self.waiting, &self.scheme.target) {
            (Some(_), _) => Some("The target's description is being read".to_owned()),
            _ if !taken => Some("Take the defaults of the target's description first".to_owned()),
            (None, Some(name)) => match state.target(name) {
                Some(Err(_)) => Some("The target's description cannot be used".to_owned()),
                _ => None,
            },
            (None, None) => None,
        };
        if buttons(ui, "Apply", blocked, false, out) {
            out.push(Command::SetScheme(self.scheme.clone()));
            out.push(Command::CloseDialog);
        }
    }

    fn target(&mut self, ui: &mut Ui, state: &State, out: &mut Vec<Command>) {
        self.take_read(state);
        ui.horizontal(|ui| {
            let label = ui.label("Target");
            ui.add_space(8.0);
            let shown = match (&self.own, &self.scheme.target) {
                (Some(_), _) => "Own file",
                (None, Some(name)) => name.as_str(),
                (None, None) => "None",
            }
            .to_owned();
            let list = ComboBox::from_id_salt("target")
                .selected_text(shown)
                .width(240.0)
                .show_ui(ui, |ui| self.targets(ui));
            list.response.labelled_by(label.id).on_hover_text(
                "Where the model is to run. Choosing one sets all that stands below to its defaults; what it cannot run is refused, and \
                 what its arithmetic does is predicted.",
            );
        });
        if self.own.is_some() {
            self.own_file(ui, out);
        }
        let description = match &self.scheme.target {
            Some(name) => match state.target(name) {
                Some(Ok(target)) => Some(describe(&target)),
                _ => None,
            },
            None if self.own.is_none() => Some(
                "None: pairs at the layers' inputs, and the file's own arithmetic, whatever runs it. For a target, pairs stand where it fuses them, \
                 what it cannot run is refused, and its arithmetic is predicted."
                    .to_owned(),
            ),
            None => None,
        };
        if let Some(words) = description {
            note(ui, &words);
        }
        let asked = self.waiting.as_ref().or(self.scheme.target.as_ref());
        if let Some(Err(why)) = asked.and_then(|name| state.target(name)) {
            let fail = theme::of(ui).fail;
            widgets::note_card(ui, fail, "This target cannot be used", &why, |_| {});
        }
        self.refusals(ui, state);
    }

    /// The list behind the choice.
    fn targets(&mut self, ui: &mut Ui) {
        let none = self.own.is_none() && self.scheme.target.is_none();
        if ui.selectable_label(none, "None").clicked() {
            (self.own, self.waiting) = (None, None);
            (self.scheme.target, self.scheme.outputs) = (None, None);
        }
        for target in target::built_in() {
            let here = self.own.is_none() && self.scheme.target.as_deref() == Some(&target.name);
            let entry = ui
                .selectable_label(here, &target.name)
                .on_hover_text(&target.title);
            if entry.clicked() {
                (self.own, self.waiting) = (None, None);
                self.take(&target.name, target);
            }
        }
        let entry = ui
            .selectable_label(self.own.is_some(), "Own file…")
            .on_hover_text(
                "A description of your own (RON); docs/targets.md says how to write one",
            );
        if entry.clicked() && self.own.is_none() {
            self.own = Some(String::new());
            (self.scheme.target, self.scheme.outputs) = (None, None);
        }
    }

    /// A path, and what reads the description there.
    fn own_file(&mut self, ui: &mut Ui, out: &mut Vec<Command>) {
        let Some(path) = &mut self.own else { return };
        let enter = path_row(
            ui,
            "Target description",
            path,
            Command::BrowseTarget,
            false,
            out,
        );
        let typed = path.trim().to_owned();
        let reason = match typed.as_str() {
            "" => Some("Type a path, or choose one with Browse…"),
            other if !is_target_file(other) => Some("The name of a description ends in .ron"),
            _ => None,
        };
        let pressed = Button::new("Take its defaults")
            .hint("Reads the description and sets all that stands below to its defaults")
            .disabled(reason)
            .show(ui);
        if reason.is_none() && (pressed || enter) {
            let name = own_name(&typed);
            out.push(Command::ReadTarget(name.clone()));
            self.waiting = Some(name);
        }
    }

    /// Once the description that is waited for was read: its defaults, or why not.
    fn take_read(&mut self, state: &State) {
        let Some(name) = self.waiting.clone() else {
            return;
        };
        match state.target(&name) {
            Some(Ok(target)) => {
                self.take(&name, &target);
                self.waiting = None;
            }
            Some(Err(_)) => {
                // It stays to be told why.
                self.scheme.target = Some(name);
                self.waiting = None;
            }
            None => {}
        }
    }

    fn take(&mut self, name: &str, target: &Arc<Target>) {
        self.scheme = target.defaults();
        self.scheme.target = Some(name.to_owned());
    }

    fn refusals(&mut self, ui: &mut Ui, state: &State) {
        let key = (self.scheme.clone(), state.mirror.targets_version);
        if self.refused.as_ref().is_none_or(|(old, _)| *old != key) {
            let found = state.refused_by(&self.scheme);
            self.refused = Some((key, found));
        }
        let Some((_, refused)) = self.refused.as_ref().filter(|(_, all)| !all.is_empty()) else {
            return;
        };
        let layers: usize = refused.iter().map(|r| r.layers.len()).sum();
        let head = match layers {
            1 => "It refuses one layer of the plan".to_owned(),
            n => format!("It refuses {n} layers of the plan"),
        };
        let mut lines: Vec<String> = refused.iter().take(TOLD).map(Refusal::words).collect();
        if refused.len() > TOLD {
            lines.push(format!("… and {} more reasons", refused.len() - TOLD));
        }
        lines.push("Until that is changed the plan is neither measured nor exported.".to_owned());
        let warning = theme::of(ui).warning;
        widgets::note_card(ui, warning, &head, &lines.join("\n"), |_| {});
    }
}

/// Title and notes, in a line or two.
fn describe(target: &Target) -> String {
    let dot = |text: &str| match text.trim() {
        "" => String::new(),
        text if text.ends_with('.') => text.to_owned(),
        text => format!("{text}."),
    };
    format!("{} {}", dot(&target.title), dot(&target.notes))
        .trim()
        .to_owned()
}

fn rows(ui: &mut Ui, s: &mut QuantScheme) {
    Grid::new("scheme")
        .num_columns(2)
        .spacing(vec2(16.0, 6.0))
        .show(ui, |ui| {
            choice(
                ui,
                "int8 weights",
                &[
                    (Granularity::PerChannel, "Per channel"),
                    (Granularity::PerTensor, "Per tensor"),
                ],
                &mut s.int8_weights,
            );
            choice(
                ui,
                "int4 weights",
                &[
                    (Granularity::PerChannel, "Per channel"),
                    (Granularity::Group(32), "Groups of 32"),
                    (Granularity::PerTensor, "Per tensor"),
                ],
                &mut s.int4_weights,
            );
            choice(
                ui,
                "Weight range",
                &[
                    (Symmetry::Symmetric, "Symmetric"),
                    (Symmetry::Asymmetric, "Asymmetric"),
                ],
                &mut s.weight_symmetry,
            );
            choice(
                ui,
                "Activations",
                &[
                    (Activations::Int8, "int8"),
                    (Activations::Int16, "int16"),
                    (Activations::Dynamic, "Dynamic (products)"),
                    (Activations::Float, "Weight-only"),
                ],
                &mut s.activations,
            );
            choice(
                ui,
                "Activation range",
                &[
                    (Symmetry::Asymmetric, "Asymmetric"),
                    (Symmetry::Symmetric, "Symmetric"),
                ],
                &mut s.symmetry,
            );
            choice(
                ui,
                "Calibration",
                &[
                    (Calibration::Mse, "MSE"),
                    (Calibration::Percentile(99.99), "99.99 %"),
                    (Calibration::Entropy, "Entropy"),
                    (Calibration::MinMax, "Min–max"),
                    (Calibration::MovingAverage, "Average"),
                ],
                &mut s.calibration,
            );
            number(ui, "Calibration samples", &mut s.samples, 1..=100_000);
        });
}

/// A target's own file is known by its absolute path.
fn own_name(typed: &str) -> String {
    let path = crate::app::files::absolute(PathBuf::from(typed.trim()));
    path.display().to_string()
}
