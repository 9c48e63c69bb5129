//! The log: what the engine said, newest last, errors in red.

use super::Commands;
use crate::{
    commands::Command,
    state::State,
    theme,
    widgets::{self, Button, number},
};
use egui::{Align, Layout, Rect, RichText, ScrollArea, Sense, Ui, pos2, vec2};

const LINE: f32 = 20.0;

pub fn show(ui: &mut Ui, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let log = &state.mirror.log;
    ui.allocate_ui_with_layout(
        vec2(ui.available_width(), 32.0),
        Layout::left_to_right(Align::Center),
        |ui| {
            ui.add_space(12.0);
            ui.label(RichText::new("Log").font(theme::strong()).color(t.text));
            widgets::muted_label(
                ui,
                match log.len() {
                    1 => "1 line".to_owned(),
                    n => format!("{} lines", number::grouped(n as u64)),
                },
            );
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                ui.add_space(12.0);
                if widgets::icon_button(
                    ui,
                    widgets::icons::Icon::Close,
                    "Close log",
                    "Close (Ctrl+L)",
                    None,
                ) {
                    out.push(Command::ShowLog(false));
                }
                if Button::new("Copy")
                    .low()
                    .hint("Copy the whole log")
                    .show(ui)
                {
                    let text: Vec<&str> = log.iter().map(|line| line.text.as_str()).collect();
                    ui.ctx().copy_text(text.join("\n"));
                }
            });
        },
    );
    if log.is_empty() {
        ui.horizontal(|ui| {
            ui.add_space(12.0);
            widgets::muted_label(ui, "Nothing yet");
        });
        return;
    }
    ScrollArea::vertical()
        .id_salt("log-scroll")
        .auto_shrink(false)
        .stick_to_bottom(true)
        .show_rows(ui, LINE, log.len(), |ui, range| {
            for line in log.range(range) {
                let (rect, response) =
                    ui.allocate_exact_size(vec2(ui.available_width(), LINE), Sense::hover());
                response
                    .widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, &line.text));
                let painter = ui.painter();
                widgets::draw(
                    painter,
                    pos2(rect.left() + 12.0, rect.center().y),
                    egui::Align2::LEFT_CENTER,
                    number::clock(line.at.as_secs()),
                    theme::mono_small(),
                    t.faint,
                );
                let body = Rect::from_min_max(
                    pos2(rect.left() + 64.0, rect.top()),
                    pos2(rect.right() - 12.0, rect.bottom()),
                );
                let colour = if line.error { t.fail } else { t.muted };
                // A line of the log stays a line here; hovering shows all of it.
                let one_line = line.text.replace('\n', " · ");
                if widgets::draw_elided(
                    painter,
                    body,
                    Align::Min,
                    &one_line,
                    theme::mono_small(),
                    colour,
                ) {
                    response.on_hover_text(&line.text);
                }
            }
        });
}
