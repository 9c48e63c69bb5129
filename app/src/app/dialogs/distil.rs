//! The dialog that starts a distillation, and the one that gives an interrupted one up.

use super::{
    Dialogs,
    forms::{buttons, choice, note, number, row, title},
    training::{self, Gradual},
};
use crate::{
    commands::Command,
    state::State,
    theme,
    widgets::{self, Button},
};
use egui::{DragValue, Grid, Ui, vec2};
use limbeck_engine::{
    recipe::CheckpointEvery,
    train::{DistilSettings, Optimizer, Schedule},
};
use std::path::Path;

const NEVER: CheckpointEvery = CheckpointEvery {
    seconds: None,
    steps: None,
};

impl Dialogs {
    pub(super) fn distil(&mut self, ui: &mut Ui, state: &State, out: &mut Vec<Command>) {
        title(ui, "Distil");
        if !goes_on(ui, state, out) {
            note(
                ui,
                "Trains the compressed network against the original; pruned weights stay zero, precisions stay in place. Runs in the background.",
            );
        }
        let mut every = NEVER;
        let s = &mut self.distil;
        let training = state.split_len(limbeck_engine::data::SplitName::Training);
        Grid::new("distil")
            .num_columns(2)
            .spacing(vec2(16.0, 6.0))
            .show(ui, |ui| {
                everyday(ui, s, training);
                every = checkpoints(ui, state, out);
            });
        // Masks grow over the first training; where this is the second, they are final.
        let first = state.document.trained.is_empty();
        let gradual = Some(&mut self.gradual).filter(|_| first && Gradual::fits(state));
        let wrong = training::advanced(ui, s, gradual, state);
        note(
            ui,
            match every == NEVER {
                true => "If the window closes or the power fails, this run is lost.",
                false => "If the window closes, the run is offered again from the last one.",
            },
        );
        let settings = self.distil.clone();
        let kept = state.document.shrinking.schedule;
        let schedule = match first && Gradual::fits(state) {
            true => self.gradual.schedule(),
            false => kept,
        };
        let start = match schedule == kept {
            true => Command::StartDistil(settings.clone()),
            false => Command::StartDistilWith {
                settings: settings.clone(),
                schedule,
            },
        };
        let none = settings.soft_weight + settings.hard_weight <= 0.0;
        let reason = if none && !settings.matches_features() {
            Some("One of the losses needs a weight above 0".to_owned())
        } else if settings.hard_weight > 0.0
            && !state.has_labels(limbeck_engine::data::SplitName::Training)
        {
            Some("The training samples have no labels: set the hard loss weight to 0".to_owned())
        } else if let Some(why) = wrong {
            Some(why)
        } else if let Err(why) = settings.check() {
            Some(why.to_string())
        } else {
            start.enabled(state).err()
        };
        if buttons(ui, "Start", reason, false, out) {
            out.push(start);
        }
    }
}

/// The rows that most trainings need.
fn everyday(ui: &mut Ui, s: &mut DistilSettings, training: usize) {
    number(ui, "Epochs", &mut s.epochs, 1..=1_000);
    number(ui, "Batch", &mut s.batch, 1..=4_096);
    let mut samples = s.samples.unwrap_or(training);
    number(
        ui,
        "Training samples an epoch",
        &mut samples,
        1..=training.max(1),
    );
    s.samples = (samples < training).then_some(samples);
    row(ui, "Rate", |ui| ui.add(small(&mut s.rate, 1e-6..=1.0)));
    choice(
        ui,
        "Schedule",
        &[
            (Schedule::Cosine, "Cosine"),
            (Schedule::OneCycle, "One cycle"),
            (Schedule::Constant, "Constant"),
        ],
        &mut s.schedule,
    );
    row(ui, "Weight decay", |ui| {
        ui.add(small(&mut s.weight_decay, 0.0..=1.0))
    });
    row(ui, "Temperature", |ui| {
        let value = DragValue::new(&mut s.temperature);
        ui.add(value.speed(0.1).range(0.5..=50.0))
    });
    row(ui, "Soft loss weight", |ui| {
        let value = DragValue::new(&mut s.soft_weight);
        ui.add(value.speed(0.01).range(0.0..=1.0))
    });
    row(ui, "Hard loss weight", |ui| {
        let value = DragValue::new(&mut s.hard_weight);
        ui.add(value.speed(0.01).range(0.0..=1.0))
    });
    choice(
        ui,
        "Optimiser",
        &[(Optimizer::AdamW, "AdamW"), (Optimizer::Sgd, "SGD")],
        &mut s.optimizer,
    );
}

/// A value that is often a ten-thousandth.
fn small(value: &mut f64, range: std::ops::RangeInclusive<f64>) -> DragValue<'_> {
    DragValue::new(value)
        .speed(1e-5)
        .range(range)
        .max_decimals(6)
}

/// What the plan's distillation goes on from; false: nothing, it trains the plan itself.
fn goes_on(ui: &mut Ui, state: &State, out: &mut Vec<Command>) -> bool {
    let Some(first) = state.document.trained.last() else {
        return false;
    };
    let text = format!(
        "Goes on from the end of epoch {} of {}, trained at a rate of {}. The recipe holds both trainings.",
        first.trained_epochs(),
        first.epochs,
        first.rate
    );
    let edge = theme::of(ui).measured;
    widgets::note_card(ui, edge, "Two trainings", &text, |ui| {
        ui.add_space(4.0);
        let command = Command::TrainFromPlan;
        let hint = command.label();
        if Button::new("Train from the plan instead")
            .low()
            .hint(&hint)
            .show(ui)
        {
            out.push(command);
        }
    });
    true
}

/// A row: how often a run keeps a checkpoint, a setting of the window and no part of the plan. What is chosen.
fn checkpoints(ui: &mut Ui, state: &State, out: &mut Vec<Command>) -> CheckpointEvery {
    let every = |seconds: f64| CheckpointEvery {
        seconds: Some(seconds),
        steps: None,
    };
    let mut chosen = state.view.checkpoint_every;
    choice(
        ui,
        "Checkpoint every",
        &[
            (every(15.0), "15 s"),
            (every(60.0), "1 min"),
            (every(300.0), "5 min"),
            (NEVER, "Never"),
        ],
        &mut chosen,
    );
    if chosen != state.view.checkpoint_every {
        out.push(Command::SetCheckpoints(chosen));
    }
    chosen
}

pub(super) fn discard_run(ui: &mut Ui, state: &State, folder: &Path, out: &mut Vec<Command>) {
    title(ui, "Discard the interrupted distillation?");
    let run = state.interrupted(folder);
    let trained = run.and_then(|run| run.epoch).map_or_else(
        || "Its checkpoints are".to_owned(),
        |(done, _)| format!("Its checkpoints, with {done:.1} epochs of training, are"),
    );
    note(ui, &format!("{trained} removed for good."));
    if buttons(ui, "Discard", None, false, out) {
        out.push(Command::DiscardRun(folder.to_owned()));
    }
}
