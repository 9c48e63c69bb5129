//! The top bar: what is open, the goals, the verdict; undo, command search, export, measure.

use super::{Commands, command_button, menu, words};
use crate::{
    commands::Command,
    state::{Dialog, State, goal_label},
    theme,
    widgets::{self, Button, icons::Icon},
};
use egui::{
    Align, Align2, Color32, CornerRadius, FontId, Layout, Rect, Role, Sense, Stroke, StrokeKind,
    Ui, UiBuilder, WidgetInfo, pos2, vec2,
};
use limbeck_engine::{
    data::SplitName,
    recipe::{Goal, Verdict},
};

pub fn show(ui: &mut Ui, state: &State, out: &mut Commands) {
    let bar = ui.max_rect().shrink2(vec2(12.0, 0.0));
    let narrow = bar.width() < 1400.0;
    let mut right_edge = bar.right();
    ui.scope_builder(
        UiBuilder::new()
            .id_salt("right")
            .max_rect(bar)
            .layout(Layout::right_to_left(Align::Center)),
        |ui| {
            command_button(
                ui,
                Button::new("Measure").primary(),
                Command::MeasurePlan(SplitName::Holdout),
                state,
                out,
            );
            export(ui, state, out);
            command_button(
                ui,
                Button::new("Distil…"),
                Command::Show(Dialog::Distil),
                state,
                out,
            );
            search(ui, if narrow { 132.0 } else { 196.0 }, out);
            ui.spacing_mut().item_spacing.x = 0.0;
            for (icon, command) in [(Icon::Redo, Command::Redo), (Icon::Undo, Command::Undo)] {
                let why = command.enabled(state).err();
                let hint = menu::hint(ui, &command);
                if widgets::icon_button(ui, icon, &command.label(), &hint, why.as_deref()) {
                    out.push(command);
                }
            }
            right_edge = ui.min_rect().left();
        },
    );
    let left = Rect::from_min_max(bar.min, pos2(right_edge - 12.0, bar.bottom()));
    ui.scope_builder(
        UiBuilder::new()
            .id_salt("left")
            .max_rect(left)
            .layout(Layout::left_to_right(Align::Center)),
        |ui| {
            ui.set_clip_rect(ui.clip_rect().intersect(left));
            mark(ui, state, out);
            if state.model().is_some() {
                command_button(
                    ui,
                    Button::new("Open…"),
                    Command::Show(Dialog::Open),
                    state,
                    out,
                );
                ui.spacing_mut().item_spacing.x = 12.0;
                identity(ui, state, narrow);
                ui.spacing_mut().item_spacing.x = 8.0;
                goals(ui, state, narrow, out);
            } else {
                ui.label(egui::RichText::new("Limbeck").font(theme::strong()));
            }
        },
    );
}

/// The flask, which opens the application's menu.
fn mark(ui: &mut Ui, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(28.0, 28.0), Sense::click());
    response.widget_info(|| WidgetInfo::labeled(Role::Button, true, "Menu"));
    if response.hovered() || response.has_focus() {
        ui.painter()
            .rect_filled(rect, CornerRadius::same(theme::RADIUS), t.raised);
    }
    widgets::icons::paint(ui.painter(), Icon::Flask, rect.center(), 20.0, t.accent);
    menu::application(&response, state, out);
    response.on_hover_text("Menu");
}

fn identity(ui: &mut Ui, state: &State, narrow: bool) {
    let t = theme::of(ui);
    let Some(model) = state.model() else { return };
    let dirty = if state.is_dirty() { " •" } else { "" };
    let name = ui.label(
        egui::RichText::new(format!("{}{dirty}", model.name))
            .font(theme::strong())
            .color(t.text),
    );
    let mut about = format!(
        "{}\nopset {} · {} layers · {} parameters\nSHA-256 {}",
        model.path.display(),
        model.opset,
        model.layers.len(),
        widgets::number::grouped(model.sizes.params),
        match &model.sha256 {
            Some(hash) => hash.get(..16).unwrap_or(hash),
            None => "being read…",
        },
    );
    if !dirty.is_empty() {
        about += "\n• changes not saved";
    }
    name.on_hover_text(about);
    match &model.data {
        Some(data) => {
            ui.spacing_mut().item_spacing.x = 5.0;
            let (split, n) = words::split_with_n(state, SplitName::Holdout);
            let text = if narrow {
                data.name.clone()
            } else {
                format!("{} · {split}", data.name)
            };
            let mut hover = format!("{}, {} classes", data.name, data.classes.len());
            for (split, len) in &data.sizes {
                hover += &format!(
                    "\n{} {}",
                    crate::commands::split_label(*split),
                    widgets::number::grouped(*len as u64)
                );
            }
            widgets::muted_label(ui, text).on_hover_text(&hover);
            if !narrow {
                ui.label(egui::RichText::new(n).font(theme::mono()).color(t.muted))
                    .on_hover_text(&hover);
            }
        }
        None => {
            widgets::muted_label(ui, "no data");
        }
    }
    ui.add_space(if narrow { 8.0 } else { 20.0 });
}

/// "drop ≤ " and "1.0 pt" apart, so that the limit stands out.
fn halves(label: &str) -> (&str, &str) {
    match label.find('≤') {
        Some(at) => label.split_at(at + '≤'.len_utf8()),
        None => (label, ""),
    }
}

fn goals(ui: &mut Ui, state: &State, narrow: bool, out: &mut Commands) {
    let t = theme::of(ui);
    if !narrow {
        widgets::muted_label(ui, "Goals");
    }
    let mut open = false;
    let statuses = state.verdict().map_or(&[][..], |v| &v.goals);
    for (i, goal) in state.document.goals.iter().enumerate() {
        let label = goal_label(goal);
        let (key, limit) = halves(&label);
        let hover = match statuses.get(i) {
            Some(status) => format!(
                "{}\nnow: {}\nClick to edit the goals",
                describe(goal),
                status.text
            ),
            None => format!("{}\nClick to edit the goals", describe(goal)),
        };
        let runs: [(&str, FontId, Color32); 2] = [
            (key, theme::sans(), t.text),
            (limit, theme::medium_mono(), t.text),
        ];
        let chip = widgets::chip(ui, &runs, None, &format!("Goal: {label}"));
        open |= chip.on_hover_text(hover).clicked();
    }
    if state.document.goals.is_empty() {
        open |= widgets::chip(
            ui,
            &[("Set goals…", theme::sans(), t.muted)],
            None,
            "Set goals",
        )
        .on_hover_text("Agree on what counts as a success; the verdict follows")
        .clicked();
    }
    if let Some(verdict) = state.verdict() {
        let colour = match verdict.verdict {
            Some(Verdict::Pass) => t.pass,
            Some(Verdict::Fail) => t.fail,
            Some(Verdict::Inconclusive) => t.warning,
            None => t.muted,
        };
        let text = if narrow {
            verdict.short.as_str()
        } else {
            verdict.text.as_str()
        };
        let runs: Vec<(&str, FontId, Color32)> = match text.find("drop ") {
            Some(at) => {
                // The space leads: one at a run's end has no width.
                let (word, rest) = text.split_at(at + "drop".len());
                let unit = rest.find(" pt").unwrap_or(rest.len());
                let (figure, rest) = rest.split_at(unit);
                vec![
                    (word, theme::sans(), colour),
                    (figure, theme::medium_mono(), colour),
                    (rest, theme::sans(), colour),
                ]
            }
            None => vec![(text, theme::sans(), colour)],
        };
        let edge = verdict.verdict.is_some().then_some(colour);
        let chip = widgets::chip(ui, &runs, edge, &format!("Verdict: {}", verdict.text));
        open |= chip.on_hover_text(&verdict.details).clicked();
    }
    if open {
        out.push(Command::Show(Dialog::Goals));
    }
}

fn describe(goal: &Goal) -> &'static str {
    match goal {
        Goal::DropPoints(_) => "Top-1 lost against the original, absolute points",
        Goal::DropRelativePercent(_) => "Top-1 lost, in percent of the original's top-1",
        Goal::StoredKilobytes(_) => "Bytes of the exported file, kB of 1,000 bytes",
        Goal::RuntimeKilobytes(_) => "Bytes of weights in memory while running, kB of 1,000 bytes",
    }
}

fn search(ui: &mut Ui, width: f32, out: &mut Commands) {
    let t = theme::of(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(width, theme::CONTROL), Sense::click());
    response.widget_info(|| WidgetInfo::labeled(Role::Button, true, "Search commands"));
    let edge = if response.hovered() || response.has_focus() {
        theme::mix(t.line, t.text, 0.25)
    } else {
        t.line
    };
    ui.painter().rect(
        rect,
        CornerRadius::same(theme::RADIUS),
        t.raised,
        Stroke::new(1.0, edge),
        StrokeKind::Inside,
    );
    let text = if width < 150.0 {
        "Search"
    } else {
        "Search commands"
    };
    let y = rect.center().y;
    widgets::draw(
        ui.painter(),
        pos2(rect.left() + 10.0, y),
        Align2::LEFT_CENTER,
        text,
        theme::sans(),
        t.muted,
    );
    let keys = Command::OpenPalette
        .shortcut()
        .map(|keys| ui.ctx().format_shortcut(&keys))
        .unwrap_or_default();
    widgets::draw(
        ui.painter(),
        pos2(rect.right() - 10.0, y),
        Align2::RIGHT_CENTER,
        keys,
        theme::mono_small(),
        t.muted,
    );
    if response.clicked() {
        out.push(Command::OpenPalette);
    }
    response.on_hover_text("Every command by name");
}

fn export(ui: &mut Ui, state: &State, out: &mut Commands) {
    let commands = [
        Command::Show(Dialog::ExportModel),
        Command::Show(Dialog::ExportRecipe),
    ];
    let why = commands[0]
        .enabled(state)
        .err()
        .filter(|_| commands[1].enabled(state).is_err());
    let anchor = Button::new("Export…").disabled(why.as_deref()).response(ui);
    menu::popup(&anchor, &commands.map(Some), state, out);
}
