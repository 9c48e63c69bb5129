//! The command palette: type a few letters, press Enter.

use crate::{commands::Command, state::State, theme};
use egui::{
    Align, Button, Context, Id, Key, Layout, Modal, Modifiers, RichText, ScrollArea, TextEdit, vec2,
};

/// What is typed and chosen.
#[derive(Debug, Default)]
pub struct Palette {
    query: String,
    chosen: usize,
    open: bool,
}

impl Palette {
    /// Draws the palette while the view says it is open.
    pub fn show(&mut self, ctx: &Context, state: &State, out: &mut Vec<Command>) {
        if !state.view.palette_open {
            self.open = false;
            return;
        }
        if !std::mem::replace(&mut self.open, true) {
            self.query.clear();
            self.chosen = 0;
        }
        let found = find(state, &self.query);
        self.chosen = self.chosen.min(found.len().saturating_sub(1));
        let (up, down, enter) = ctx.input_mut(|input| {
            (
                input.consume_key(Modifiers::NONE, Key::ArrowUp),
                input.consume_key(Modifiers::NONE, Key::ArrowDown),
                input.consume_key(Modifiers::NONE, Key::Enter),
            )
        });
        let last = found.len().saturating_sub(1);
        if down {
            self.chosen = (self.chosen + 1).min(last);
        }
        if up {
            self.chosen = self.chosen.saturating_sub(1);
        }
        let mut run = enter
            .then(|| found.get(self.chosen).cloned())
            .flatten()
            .filter(|command| command.enabled(state).is_ok());
        let modal = Modal::new(Id::unique("palette"))
            .area(
                Modal::default_area(Id::unique("palette"))
                    .anchor(egui::Align2::CENTER_TOP, vec2(0.0, 90.0)),
            )
            .show(ctx, |ui| {
                ui.set_width(520.0);
                let field = ui.add(
                    TextEdit::singleline(&mut self.query)
                        .hint_text("Search commands")
                        .desired_width(f32::INFINITY)
                        .margin(vec2(10.0, 7.0)),
                );
                field.widget_info(|| {
                    egui::WidgetInfo::labeled(
                        egui::Role::TextInput,
                        true,
                        "Search commands: type here",
                    )
                });
                if field.changed() {
                    self.chosen = 0;
                }
                field.request_focus();
                ui.add_space(6.0);
                ScrollArea::vertical().max_height(380.0).show(ui, |ui| {
                    ui.with_layout(Layout::top_down_justified(Align::LEFT), |ui| {
                        if found.is_empty() {
                            ui.label(
                                RichText::new("No command of that name").color(theme::of(ui).muted),
                            );
                        }
                        for (at, command) in found.iter().enumerate() {
                            let enabled = command.enabled(state);
                            let chosen = at == self.chosen;
                            let mut button = Button::selectable(chosen, command.label());
                            if let Some(shortcut) = command.shortcut() {
                                button = button.shortcut_text(ui.ctx().format_shortcut(&shortcut));
                            }
                            let response = ui.add_enabled(enabled.is_ok(), button);
                            let response = match enabled {
                                Ok(()) => response,
                                Err(reason) => response.on_disabled_hover_text(reason),
                            };
                            if response.clicked() {
                                run = Some(command.clone());
                            }
                            if chosen && (up || down) {
                                response.scroll_to_me(None);
                            }
                        }
                    });
                });
            });
        if let Some(command) = run {
            out.push(Command::ClosePalette);
            out.push(command);
        } else if modal.should_close() {
            out.push(Command::ClosePalette);
        }
    }
}

/// Commands whose label holds all typed words, those that start with the first word first; what can be done now before what
/// can't.
pub fn find(state: &State, query: &str) -> Vec<Command> {
    let query = query.to_lowercase();
    let words: Vec<&str> = query.split_whitespace().collect();
    let mut found: Vec<(bool, bool, Command)> = Command::palette(state)
        .into_iter()
        .filter_map(|command| {
            let label = command.label().to_lowercase();
            words.iter().all(|word| label.contains(word)).then(|| {
                let starts = words.first().is_none_or(|word| label.starts_with(word));
                (command.enabled(state).is_err(), !starts, command)
            })
        })
        .collect();
    found.sort_by_key(|(disabled, later, _)| (*disabled, *later));
    found.into_iter().map(|(.., command)| command).collect()
}
