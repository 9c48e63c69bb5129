//! The goals editor.

use super::forms::{buttons, note, title};
use crate::{
    commands::Command,
    state::State,
    theme,
    widgets::{self, SegmentStyle},
};
use egui::{DragValue, Ui, vec2};
use limbeck_engine::recipe::Goal;

/// Which goals are set, and their limits (kept while a goal is switched off).
#[derive(Clone, Debug, Default)]
pub(super) struct GoalForm {
    drop: bool,
    relative: bool,
    drop_limit: f64,
    stored: bool,
    stored_limit: f64,
    runtime: bool,
    runtime_limit: f64,
}

impl GoalForm {
    pub(super) fn of(state: &State) -> Self {
        let stored = state
            .model()
            .map_or(100.0, |model| (model.sizes.stored.0 as f64 / 4e3).ceil());
        let mut form = Self {
            drop_limit: 1.0,
            stored_limit: stored,
            runtime_limit: stored,
            ..Self::default()
        };
        for goal in &state.document.goals {
            match goal {
                Goal::DropPoints(limit) => {
                    (form.drop, form.relative, form.drop_limit) = (true, false, *limit);
                }
                Goal::DropRelativePercent(limit) => {
                    (form.drop, form.relative, form.drop_limit) = (true, true, *limit);
                }
                Goal::StoredKilobytes(limit) => (form.stored, form.stored_limit) = (true, *limit),
                Goal::RuntimeKilobytes(limit) => {
                    (form.runtime, form.runtime_limit) = (true, *limit);
                }
            }
        }
        form
    }

    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        if self.drop {
            goals.push(if self.relative {
                Goal::DropRelativePercent(self.drop_limit)
            } else {
                Goal::DropPoints(self.drop_limit)
            });
        }
        if self.stored {
            goals.push(Goal::StoredKilobytes(self.stored_limit));
        }
        if self.runtime {
            goals.push(Goal::RuntimeKilobytes(self.runtime_limit));
        }
        goals
    }

    pub(super) fn show(&mut self, ui: &mut Ui, state: &State, out: &mut Vec<Command>) {
        title(ui, "Goals");
        note(
            ui,
            "Limits that the compressed model must keep. Accuracy passes or fails only where the whole 95 % interval does.",
        );
        let goals = &mut *self;
        goal_row(ui, "Accuracy drop at most", &mut goals.drop, |ui, name| {
            ui.add(
                DragValue::new(&mut goals.drop_limit)
                    .speed(0.05)
                    .range(0.0..=100.0)
                    .max_decimals(2),
            )
            .labelled_by(name);
            let names = ["points", "% relative"];
            if let Some(at) = widgets::segmented(
                ui,
                "drop type",
                &names,
                Some(usize::from(goals.relative)),
                SegmentStyle::View,
                None,
                |at| format!("Drop in {}", names[at]),
            ) {
                goals.relative = at == 1;
            }
        });
        goal_row(ui, "Stored size at most", &mut goals.stored, |ui, name| {
            ui.add(
                DragValue::new(&mut goals.stored_limit)
                    .speed(1.0)
                    .range(1.0..=1e9)
                    .max_decimals(1)
                    .suffix(" kB"),
            )
            .labelled_by(name);
        });
        goal_row(
            ui,
            "Memory for weights at most",
            &mut goals.runtime,
            |ui, name| {
                ui.add(
                    DragValue::new(&mut goals.runtime_limit)
                        .speed(1.0)
                        .range(1.0..=1e9)
                        .max_decimals(1)
                        .suffix(" kB"),
                )
                .labelled_by(name);
            },
        );
        if let Some(verdict) = state.verdict() {
            note(ui, &verdict.details);
        }
        if buttons(ui, "Apply", None, false, out) {
            out.push(Command::SetGoals(self.goals()));
            out.push(Command::CloseDialog);
        }
    }
}

fn goal_row(ui: &mut Ui, name: &str, on: &mut bool, add: impl FnOnce(&mut Ui, egui::Id)) {
    ui.horizontal(|ui| {
        let (rect, _) = ui.allocate_exact_size(vec2(210.0, theme::CONTROL), egui::Sense::hover());
        let mut child = ui.new_child(egui::UiBuilder::new().max_rect(rect));
        let name = child.checkbox(on, name).id;
        ui.add_enabled_ui(*on, |ui| add(ui, name));
    });
}
