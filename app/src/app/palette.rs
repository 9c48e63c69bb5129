//! The command palette: type a few letters, press Enter.

use crate::{commands::Command, state::State, theme};
use egui::{
    Align, Button, Context, Event, Id, Key, Layout, Modal, Modifiers, RichText, ScrollArea,
    TextEdit, vec2,
};

/// What is typed and chosen.
#[derive(Debug, Default)]
pub struct Palette {
    query: String,
    chosen: usize,
    open: bool,
    early: Early,
}

/// What is typed behind the shortcut that opens the palette, before it is there.
#[derive(Debug, Default)]
struct Early {
    text: String,
    enter: bool,
}

impl Early {
    /// Keeps the frame's letters where the palette is about to open and no text field has them.
    fn take(&mut self, ctx: &Context, out: &[Command]) {
        *self = Self::default();
        if !out.contains(&Command::OpenPalette) || ctx.text_edit_focused() {
            return;
        }
        ctx.input(|input| {
            for event in &input.events {
                match event {
                    Event::Text(text) if !self.enter => self.text += text,
                    Event::Key {
                        key: Key::Enter,
                        pressed: true,
                        ..
                    } => self.enter = true,
                    _ => {}
                }
            }
        });
    }
}

impl Palette {
    /// Draws the palette while the view says it is open.
    pub fn show(&mut self, ctx: &Context, state: &State, out: &mut Vec<Command>) {
        if !state.view.palette_open {
            self.open = false;
            self.early.take(ctx, out);
            return;
        }
        let field_id = Id::unique("palette-field");
        let mut enter = false;
        if !std::mem::replace(&mut self.open, true) {
            // What was typed in the very frame that opened it counts.
            let early = std::mem::take(&mut self.early);
            self.query = early.text;
            enter = early.enter;
            self.chosen = 0;
            ctx.memory_mut(|memory| memory.request_focus(field_id));
        }
        let (up, down, pressed) = ctx.input_mut(|input| {
            (
                input.consume_key(Modifiers::NONE, Key::ArrowUp),
                input.consume_key(Modifiers::NONE, Key::ArrowDown),
                input.consume_key(Modifiers::NONE, Key::Enter),
            )
        });
        enter |= pressed;
        let mut run = None;
        let modal = Modal::new(Id::unique("palette"))
            .area(
                Modal::default_area(Id::unique("palette"))
                    .anchor(egui::Align2::CENTER_TOP, vec2(0.0, 90.0)),
            )
            .show(ctx, |ui| {
                ui.set_width(520.0);
                let field = ui.add(
                    TextEdit::singleline(&mut self.query)
                        .id(field_id)
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
                // Only now, with this frame's letters in: Enter acts on the list that belongs to them.
                let found = find(state, &self.query);
                let last = found.len().saturating_sub(1);
                if down {
                    self.chosen += 1;
                }
                if up {
                    self.chosen = self.chosen.saturating_sub(1);
                }
                self.chosen = self.chosen.min(last);
                if enter {
                    run = found
                        .get(self.chosen)
                        .filter(|command| command.enabled(state).is_ok())
                        .cloned();
                }
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
