//! The deployment runtime: what was found or looked for, and where it lies.

use super::{
    Dialogs,
    forms::{note, path_row, title},
};
use crate::{
    commands::Command,
    panels::pair_words,
    state::{JobKind, State},
    theme,
    widgets::{self, Button},
};
use egui::Ui;
use std::path::PathBuf;

impl Dialogs {
    pub(super) fn runtime(&mut self, ui: &mut Ui, state: &State, out: &mut Vec<Command>) {
        title(ui, "ONNX Runtime");
        note(
            ui,
            "Exported files are run in it, and its labels held against the predicted ones. It is loaded while Limbeck runs: from the path \
             below, the environment variable LIMBECK_ONNXRUNTIME (which goes before), or an installed Python package (pip install onnxruntime).",
        );
        let t = theme::of(ui);
        match &state.mirror.runtime {
            None if state.is_busy(JobKind::Confirm) || state.is_busy(JobKind::File) => {
                note(ui, "It is being looked for.");
            }
            None => note(ui, "It was not looked for yet."),
            Some(Ok(found)) => {
                let head = format!("ONNX Runtime {} is loaded", found.version);
                let body = format!("{} ({})", found.library.display(), found.found_by);
                widgets::note_card(ui, t.pass, &head, &body, |_| {});
            }
            Some(Err(why)) => {
                widgets::note_card(ui, t.warning, "None could be used", why, |_| {});
            }
        }
        let enter = path_row(
            ui,
            "Library or folder (empty: look for it)",
            &mut self.path,
            Command::Browse,
            false,
            out,
        );
        ui.add_space(4.0);
        ui.horizontal(|ui| {
            if Button::new("Look for it").primary().show(ui) || enter {
                let path = self.path.trim();
                let path = (!path.is_empty()).then(|| PathBuf::from(path));
                out.push(Command::SetRuntime(path));
            }
            if Button::new("Close").show(ui) {
                out.push(Command::CloseDialog);
            }
        });
    }
}

/// In the export dialog: whether the file is to be confirmed, and what is known of this plan's.
pub(super) fn after_export(ui: &mut Ui, state: &State, confirm: &mut bool) {
    ui.checkbox(confirm, "Confirm in ONNX Runtime afterwards");
    note(
        ui,
        "In the background, on the samples that the plan was judged on: predicted and runtime stand side by side then.",
    );
    match state
        .exported_point()
        .and_then(|p| p.point.confirmed.as_ref())
    {
        Some(pair) => note(ui, &pair_words(pair)),
        None if matches!(state.mirror.runtime, Some(Err(_))) => note(
            ui,
            "No ONNX Runtime could be used so far: Menu → ONNX Runtime… says what was looked for and takes its path.",
        ),
        None => note(ui, "Not held against a runtime yet."),
    }
}
