//! What the window shows before a model is open.

use super::Commands;
use crate::{
    commands::Command,
    state::{Dialog, JobKind, State},
    theme,
    widgets::{self, Button},
};
use egui::{RichText, Ui, vec2};

pub fn show(ui: &mut Ui, state: &State, out: &mut Commands) {
    if state.is_busy(JobKind::Open) {
        let title = state
            .active_jobs()
            .find(|job| job.kind == JobKind::Open)
            .map_or("Opening…", |job| job.title.as_str());
        widgets::empty_state(ui, title, "Layers appear as soon as the file is read.", &[]);
        return;
    }
    let pressed = widgets::empty_state(
        ui,
        "Open a trained network",
        "An ONNX file, a project or a recipe: drop it here or choose it. A task.ron beside the model names its labelled data.",
        &[("Open…", true), ("Open the sample model", false)],
    );
    match pressed {
        Some(0) => out.push(Command::Show(Dialog::Open)),
        Some(_) => out.push(Command::OpenSample),
        None => {}
    }
    if state.view.recent.is_empty() {
        return;
    }
    let t = theme::of(ui);
    ui.add_space(24.0);
    ui.vertical_centered(|ui| {
        ui.label(RichText::new("Recent").font(theme::strong()).color(t.muted));
        for path in state.view.recent.iter().take(6) {
            let name = path.file_name().map_or_else(
                || path.display().to_string(),
                |n| n.to_string_lossy().into_owned(),
            );
            let hint = path.display().to_string();
            if Button::new(&name).quiet().hint(&hint).show(ui) {
                out.push(Command::Open(path.clone()));
            }
        }
        ui.allocate_space(vec2(1.0, 1.0));
    });
}
