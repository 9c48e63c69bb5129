//! Dialogs: open, save, export, distil, goals, scheme, pruning, methods, unsaved changes, about. What is typed lives here until it is sent as a
//! command. Every path has a text field; Browse… is a help on top.

mod distil;
mod forms;
mod goals;
mod methods;
mod runtime;
mod scheme;
mod shrink;
mod training;

use super::files;
use crate::{
    commands::Command,
    state::{AfterSave, Dialog, State},
    theme,
    widgets::{self, Button, SegmentStyle},
};
use egui::{Context, Id, Modal, Ui, vec2};
use forms::{buttons, missing, note, path_row, title};
use goals::GoalForm;
use limbeck_engine::{
    compress::{Activations, QuantScheme},
    jobs::ExportFormat,
    train::DistilSettings,
};
use methods::MethodsForm;
use scheme::SchemeForm;
use shrink::ShrinkForm;
use std::path::PathBuf;
use training::Gradual;

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
    gradual: Gradual,
    goals: GoalForm,
    scheme: SchemeForm,
    methods: MethodsForm,
    shrink: ShrinkForm,
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
            gradual: Gradual::default(),
            goals: GoalForm::default(),
            scheme: SchemeForm::default(),
            methods: MethodsForm::default(),
            shrink: ShrinkForm::default(),
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
                    Dialog::Shrink => self.shrink.show(ui, state, out),
                    Dialog::Methods => self.methods.show(ui, state, out),
                    Dialog::Runtime => self.runtime(ui, state, out),
                    Dialog::DiscardRun(folder) => distil::discard_run(ui, state, folder, out),
                    Dialog::Closing(lost) => closing(ui, lost.as_deref(), out),
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
                self.distil.keep_last = false;
                self.gradual = Gradual::of(state, self.distil.epochs);
            }
            Dialog::Scheme => self.scheme = SchemeForm::of(state),
            Dialog::Shrink => self.shrink = ShrinkForm::of(state),
            Dialog::Methods => self.methods = MethodsForm::of(state),
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

fn closing(ui: &mut Ui, lost: Option<&str>, out: &mut Vec<Command>) {
    title(ui, "Closing");
    if let Some(why) = lost {
        note(ui, &format!("Of the distillation at work {why}."));
        if Button::new("Close").show(ui) {
            out.push(Command::Quit);
        }
        return;
    }
    note(
        ui,
        "The distillation at work takes a checkpoint at the end of its mini-batch, so that it can be taken up where it stands. Limbeck closes then, after 20 seconds at the latest.",
    );
    if Button::new("Close now").show(ui) {
        out.push(Command::Quit);
    }
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
