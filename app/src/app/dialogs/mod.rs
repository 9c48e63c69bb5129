//! Dialogs: open, save, export, distil, goals, scheme, unsaved changes, about. What is typed lives here until it is sent as a
//! command. Every path has a text field; Browse… is a help on top.

mod forms;
mod goals;
mod runtime;
mod scheme;

use super::files;
use crate::{
    commands::Command,
    state::{AfterSave, Dialog, State},
    theme,
    widgets::{self, Button, SegmentStyle},
};
use egui::{Context, DragValue, Grid, Id, Modal, Ui, vec2};
use forms::{buttons, choice, missing, note, number, path_row, row, title};
use goals::GoalForm;
use limbeck_engine::{
    compress::{Activations, QuantScheme},
    jobs::ExportFormat,
    recipe::CheckpointEvery,
    train::{DistilSettings, Optimizer, Schedule},
};
use scheme::SchemeForm;
use std::path::{Path, PathBuf};

/// What is typed into the open dialog.
#[derive(Debug)]
pub struct Dialogs {
    shown: Option<Dialog>,
    /// Opened in this frame: its path field takes the keyboard.
    fresh: bool,
    path: String,
    task: String,
    format: ExportFormat,
    confirm: bool,
    distil: DistilSettings,
    goals: GoalForm,
    scheme: SchemeForm,
}

impl Default for Dialogs {
    fn default() -> Self {
        Self {
            shown: None,
            fresh: false,
            path: String::new(),
            task: String::new(),
            format: ExportFormat::Plan,
            confirm: true,
            distil: DistilSettings::default(),
            goals: GoalForm::default(),
            scheme: SchemeForm::default(),
        }
    }
}

/// What a dialog suggests as a file name.
pub fn suggested_name(dialog: &Dialog, state: &State) -> String {
    let name = state
        .model()
        .map_or("model", |model| model.name.as_str())
        .to_owned();
    match dialog {
        Dialog::SaveProject => format!("{name}.limbeck.ron"),
        Dialog::ExportModel => format!("{name}-small.onnx"),
        Dialog::ExportRecipe => format!("{name}-recipe.ron"),
        _ => String::new(),
    }
}

impl Dialogs {
    /// A path that the system's picker brought.
    pub fn picked(&mut self, dialog: &Dialog, path: PathBuf) {
        let path = path.display().to_string();
        match (&self.shown, dialog) {
            (Some(Dialog::Open), Dialog::OpenTask) => self.task = path,
            (Some(Dialog::Scheme), Dialog::Scheme) => self.scheme.picked(path),
            (Some(shown), _) if shown == dialog => self.path = path,
            _ => {}
        }
    }

    /// Draws the dialog that the view asks for.
    pub fn show(&mut self, ctx: &Context, state: &State, out: &mut Vec<Command>) {
        let Some(dialog) = state.view.dialog.clone() else {
            self.shown = None;
            return;
        };
        if self.shown.as_ref() != Some(&dialog) {
            self.fill(&dialog, state);
            self.fresh = true;
            self.shown = Some(dialog.clone());
        }
        let modal = Modal::new(Id::unique("dialog"))
            .frame(egui::Frame::window(&ctx.style_of(ctx.theme())).inner_margin(16))
            .show(ctx, |ui| {
                ui.set_width(460.0);
                ui.spacing_mut().item_spacing = vec2(8.0, 8.0);
                match &dialog {
                    Dialog::Open => self.open(ui, out),
                    Dialog::OpenTask => self.open_task(ui, out),
                    Dialog::SaveProject => self.save_project(ui, out),
                    Dialog::ExportModel => self.export_model(ui, state, out),
                    Dialog::ExportRecipe => self.export_recipe(ui, state, out),
                    Dialog::Distil => self.distil(ui, state, out),
                    Dialog::Goals => self.goals.show(ui, state, out),
                    Dialog::Scheme => self.scheme.show(ui, state, out),
                    Dialog::Runtime => self.runtime(ui, state, out),
                    Dialog::DiscardRun(folder) => discard_run(ui, state, folder, out),
                    Dialog::About => about(ui, out),
                    Dialog::Unsaved(after) => unsaved(ui, state, after, out),
                }
            });
        if modal.should_close() && out.is_empty() {
            out.push(Command::CloseDialog);
        }
    }

    fn fill(&mut self, dialog: &Dialog, state: &State) {
        self.task.clear();
        self.path.clear();
        let folder = state
            .project_path
            .as_deref()
            .and_then(|path| path.parent())
            .map(PathBuf::from)
            .or_else(|| std::env::current_dir().ok())
            .unwrap_or_default();
        match dialog {
            Dialog::SaveProject | Dialog::ExportModel | Dialog::ExportRecipe => {
                self.path = folder
                    .join(suggested_name(dialog, state))
                    .display()
                    .to_string();
                self.confirm = state.view.confirm_exports;
            }
            Dialog::Distil => {
                self.distil = state.document.distil.clone().unwrap_or_default();
                // A new training is meant to reach its end.
                self.distil.stop_after = None;
            }
            Dialog::Scheme => self.scheme = SchemeForm::of(state),
            Dialog::Goals => self.goals = GoalForm::of(state),
            Dialog::Runtime => {
                let known = state.view.runtime.as_ref();
                self.path = known.map_or_else(String::new, |path| path.display().to_string());
            }
            _ => {}
        }
    }

    /// The dialog's path field; true when Enter was pressed in it.
    fn file(&mut self, ui: &mut Ui, out: &mut Vec<Command>) -> bool {
        let fresh = self.fresh;
        // The pass that only measures the dialog takes no input.
        self.fresh &= ui.is_sizing_pass();
        path_row(ui, "File", &mut self.path, Command::Browse, fresh, out)
    }

    fn open(&mut self, ui: &mut Ui, out: &mut Vec<Command>) {
        title(ui, "Open");
        note(
            ui,
            "A model (ONNX), a project (.limbeck.ron) or a recipe (.ron).",
        );
        let mut enter = self.file(ui, out);
        let model = files::kind(&PathBuf::from(&self.path)) == files::FileKind::Model;
        if model {
            enter |= path_row(
                ui,
                "Data (task.ron)",
                &mut self.task,
                Command::BrowseData,
                false,
                out,
            );
            note(
                ui,
                "Without data: a task.ron beside the model is used; without one, only the weights are looked at.",
            );
        }
        let missing = missing(&self.path);
        if buttons(ui, "Open", missing, enter, out) {
            let path = PathBuf::from(self.path.trim());
            out.push(if model && !self.task.trim().is_empty() {
                Command::OpenModel {
                    model: path,
                    task: Some(PathBuf::from(self.task.trim())),
                }
            } else {
                Command::Open(path)
            });
        }
    }

    fn open_task(&mut self, ui: &mut Ui, out: &mut Vec<Command>) {
        title(ui, "Open data");
        note(
            ui,
            "A task.ron names labelled data, its preprocessing and its splits.",
        );
        let enter = self.file(ui, out);
        if buttons(ui, "Open", missing(&self.path), enter, out) {
            out.push(Command::OpenTask(PathBuf::from(self.path.trim())));
        }
    }

    fn save_project(&mut self, ui: &mut Ui, out: &mut Vec<Command>) {
        title(ui, "Save project");
        note(
            ui,
            "Plan, pins, goals, points and cells; the model and the data stay where they are.",
        );
        let enter = self.file(ui, out);
        if buttons(ui, "Save", missing(&self.path), enter, out) {
            out.push(Command::SaveProjectAs(PathBuf::from(self.path.trim())));
            out.push(Command::CloseDialog);
        }
    }

    fn export_model(&mut self, ui: &mut Ui, state: &State, out: &mut Vec<Command>) {
        title(ui, "Export model");
        let formats = [ExportFormat::Plan, ExportFormat::Float, ExportFormat::Fp16];
        let names = ["This plan", "Float", "fp16"];
        let chosen = formats.iter().position(|format| *format == self.format);
        if let Some(at) = widgets::segmented(
            ui,
            "format",
            &names,
            chosen,
            SegmentStyle::View,
            None,
            |at| format!("Export {}", names[at]),
        ) {
            self.format = formats[at];
        }
        let text = match self.format {
            ExportFormat::Plan if state.plan_is_empty() => {
                "ONNX. The plan changes nothing yet: this is the original."
            }
            ExportFormat::Plan if state.document.distil.is_some() => {
                "ONNX with QDQ int8 and int4, fp16 and float layers as planned, distilled. If this plan has not been distilled yet in this session, that is done first."
            }
            ExportFormat::Plan => "ONNX with QDQ int8 and int4, fp16 and float layers as planned.",
            ExportFormat::Float => "ONNX: the original in float, batch norms folded.",
            ExportFormat::Fp16 => "ONNX: the original with all weights as fp16.",
        };
        note(ui, text);
        let blocked = match self.format {
            ExportFormat::Plan => state.buildable().err(),
            _ => None,
        };
        if let Some(why) = blocked {
            without_data(ui, state, why, out);
        }
        if let (ExportFormat::Plan, Err(why)) = (self.format, state.target_allows()) {
            let warning = theme::of(ui).warning;
            widgets::note_card(
                ui,
                warning,
                "Refused by the target",
                &format!("{why}."),
                |ui| {
                    ui.add_space(4.0);
                    if Button::new("Quantisation scheme…").low().show(ui) {
                        out.push(Command::Show(Dialog::Scheme));
                    }
                },
            );
        }
        if self.format == ExportFormat::Plan && state.measurable().is_ok() {
            runtime::after_export(ui, state, &mut self.confirm);
        }
        let enter = self.file(ui, out);
        let refused = match self.format {
            ExportFormat::Plan => state.target_allows().err(),
            _ => None,
        };
        let blocked = blocked
            .map(str::to_owned)
            .or(refused)
            .or_else(|| missing(&self.path));
        if buttons(ui, "Export", blocked, enter, out) {
            out.push(Command::ExportModel {
                format: self.format,
                path: PathBuf::from(self.path.trim()),
                confirm: self.confirm,
            });
        }
    }

    fn export_recipe(&mut self, ui: &mut Ui, state: &State, out: &mut Vec<Command>) {
        title(ui, "Export recipe");
        note(
            ui,
            "What the command limbeck run needs to give the same numbers and the same file without a window.",
        );
        if state.document.distil.is_some() {
            note(ui, "Distillation is part of this plan.");
        }
        let enter = self.file(ui, out);
        if buttons(ui, "Export", missing(&self.path), enter, out) {
            out.push(Command::ExportRecipe(PathBuf::from(self.path.trim())));
        }
    }

    fn distil(&mut self, ui: &mut Ui, state: &State, out: &mut Vec<Command>) {
        title(ui, "Distil");
        note(
            ui,
            "Trains the compressed network against the original; pruned weights stay zero, precisions stay in place. Runs in the background.",
        );
        let s = &mut self.distil;
        let training = state.split_len(limbeck_engine::data::SplitName::Training);
        Grid::new("distil")
            .num_columns(2)
            .spacing(vec2(16.0, 6.0))
            .show(ui, |ui| {
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
                row(ui, "Rate", |ui| {
                    ui.add(
                        DragValue::new(&mut s.rate)
                            .speed(1e-5)
                            .range(1e-6..=1.0)
                            .max_decimals(6),
                    )
                });
                row(ui, "Weight decay", |ui| {
                    ui.add(
                        DragValue::new(&mut s.weight_decay)
                            .speed(1e-5)
                            .range(0.0..=1.0)
                            .max_decimals(6),
                    )
                });
                row(ui, "Temperature", |ui| {
                    ui.add(
                        DragValue::new(&mut s.temperature)
                            .speed(0.1)
                            .range(0.5..=50.0),
                    )
                });
                row(ui, "Soft loss weight", |ui| {
                    ui.add(
                        DragValue::new(&mut s.soft_weight)
                            .speed(0.01)
                            .range(0.0..=1.0),
                    )
                });
                row(ui, "Hard loss weight", |ui| {
                    ui.add(
                        DragValue::new(&mut s.hard_weight)
                            .speed(0.01)
                            .range(0.0..=1.0),
                    )
                });
                choice(
                    ui,
                    "Optimiser",
                    &[(Optimizer::AdamW, "AdamW"), (Optimizer::Sgd, "SGD")],
                    &mut s.optimizer,
                );
                choice(
                    ui,
                    "Schedule",
                    &[
                        (Schedule::Cosine, "Cosine"),
                        (Schedule::Constant, "Constant"),
                    ],
                    &mut s.schedule,
                );
            });
        checkpoints(ui, state, out);
        let settings = self.distil.clone();
        let none = settings.soft_weight + settings.hard_weight <= 0.0;
        let reason = if none && !settings.matches_features() {
            Some("One of the two losses needs a weight above 0".to_owned())
        } else if settings.hard_weight > 0.0
            && !state.has_labels(limbeck_engine::data::SplitName::Training)
        {
            Some("The training samples have no labels: set the hard loss weight to 0".to_owned())
        } else {
            Command::StartDistil(settings.clone()).enabled(state).err()
        };
        if buttons(ui, "Start", reason, false, out) {
            out.push(Command::StartDistil(settings));
        }
    }
}

/// How often a run keeps a checkpoint: a setting of the window, no part of the plan.
fn checkpoints(ui: &mut Ui, state: &State, out: &mut Vec<Command>) {
    let every = |seconds: f64| CheckpointEvery {
        seconds: Some(seconds),
        steps: None,
    };
    let never = CheckpointEvery {
        seconds: None,
        steps: None,
    };
    let mut chosen = state.view.checkpoint_every;
    ui.separator();
    Grid::new("checkpoints")
        .num_columns(2)
        .spacing(vec2(16.0, 6.0))
        .show(ui, |ui| {
            choice(
                ui,
                "Checkpoint every",
                &[
                    (every(15.0), "15 s"),
                    (every(60.0), "1 min"),
                    (every(300.0), "5 min"),
                    (never, "Never"),
                ],
                &mut chosen,
            );
        });
    note(
        ui,
        match chosen == never {
            true => "If the window is closed or the power fails, this run is lost.",
            false => {
                "If the window is closed or the power fails, this run is offered again from its last checkpoint."
            }
        },
    );
    if chosen != state.view.checkpoint_every {
        out.push(Command::SetCheckpoints(chosen));
    }
}

fn discard_run(ui: &mut Ui, state: &State, folder: &Path, out: &mut Vec<Command>) {
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

/// Why the plan can't be exported yet, and the two ways out.
fn without_data(ui: &mut Ui, state: &State, why: &str, out: &mut Vec<Command>) {
    let warning = theme::of(ui).warning;
    widgets::note_card(ui, warning, "Data needed", &format!("{why}."), |ui| {
        ui.add_space(4.0);
        ui.horizontal(|ui| {
            if Button::new("Open data…").low().show(ui) {
                out.push(Command::Show(Dialog::OpenTask));
            }
            let scheme = &state.document.scheme;
            if scheme.activations.calibrated_bits().is_some()
                && Button::new("Use weight-only activations").low().show(ui)
            {
                // Without a target: those that compute in integers take no float activations.
                out.push(Command::SetScheme(QuantScheme {
                    activations: Activations::Float,
                    target: None,
                    outputs: None,
                    ..scheme.clone()
                }));
            }
        });
    });
}

fn unsaved(ui: &mut Ui, state: &State, after: &AfterSave, out: &mut Vec<Command>) {
    title(ui, "Save changes first?");
    let what = state
        .model()
        .map_or_else(String::new, |model| model.name.clone());
    let next = match after {
        AfterSave::Quit => "Limbeck closes".to_owned(),
        AfterSave::Open(path) | AfterSave::OpenModel { model: path, .. } => {
            format!("{} opens", files::short(path))
        }
        AfterSave::OpenSample => "the sample opens".to_owned(),
    };
    note(
        ui,
        &format!("The plan of {what} has changes that are lost when {next}."),
    );
    ui.add_space(4.0);
    ui.horizontal(|ui| {
        if Button::new("Save").primary().show(ui) {
            out.push(Command::SaveProject);
        }
        if Button::new("Discard").show(ui) {
            out.push(Command::DiscardAndGoOn);
        }
        if Button::new("Cancel").show(ui) {
            out.push(Command::CloseDialog);
        }
    });
}

fn about(ui: &mut Ui, out: &mut Vec<Command>) {
    title(ui, "Limbeck");
    note(
        ui,
        &format!(
            "Version {}. A workbench that makes neural networks small: pruning, precision and distillation in one per-layer plan.",
            env!("CARGO_PKG_VERSION")
        ),
    );
    note(
        ui,
        "Everything runs on this machine; nothing is sent anywhere.",
    );
    note(ui, "MIT or Apache-2.0. Fonts: IBM Plex (OFL).");
    if Button::new("Close").show(ui) {
        out.push(Command::CloseDialog);
    }
}
