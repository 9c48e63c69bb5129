//! Distillations that were interrupted: a card each, over the notices, until they are taken up, discarded or left for later.

use super::{Commands, command_button};
use crate::{
    app::files,
    commands::Command,
    state::{Dialog, State},
    theme,
    widgets::{self, Button, icons::Icon},
};
use egui::{Align, CornerRadius, Frame, Layout, Margin, RichText, Stroke, Ui};
use limbeck_engine::recipe::Interrupted;
use std::time::Duration;

/// Cards at once; the others come when these are dealt with.
const MOST: usize = 2;

pub fn show(ui: &mut Ui, state: &State, out: &mut Commands) {
    for run in state.mirror.interrupted.iter().take(MOST) {
        card(ui, state, run, out);
    }
}

fn card(ui: &mut Ui, state: &State, run: &Interrupted, out: &mut Commands) {
    let t = theme::of(ui);
    Frame::new()
        .fill(t.raised)
        .stroke(Stroke::new(1.0, theme::mix(t.line, t.accent, 0.5)))
        .corner_radius(CornerRadius::same(theme::RADIUS))
        .shadow(ui.visuals().popup_shadow)
        .inner_margin(Margin::symmetric(12, 8))
        .show(ui, |ui| {
            ui.with_layout(Layout::right_to_left(Align::Min), |ui| {
                let hint = "Later: it is offered again when a model is opened";
                if widgets::icon_button(ui, Icon::Close, "Later", hint, None) {
                    out.push(Command::LeaveRun(run.folder.clone()));
                }
                ui.with_layout(Layout::top_down(Align::Min), |ui| {
                    ui.label(
                        RichText::new("Interrupted distillation")
                            .font(theme::strong())
                            .color(t.accent),
                    );
                    let text = RichText::new(words(state, run)).font(theme::sans());
                    ui.add(egui::Label::new(text.color(t.text)).wrap());
                    ui.add_space(6.0);
                    ui.horizontal(|ui| {
                        let take_up = Command::TakeUp(run.folder.clone());
                        let button = Button::new("Take up").primary().low();
                        command_button(ui, button, take_up, state, out);
                        let discard = Command::Show(Dialog::DiscardRun(run.folder.clone()));
                        command_button(ui, Button::new("Discard…").low(), discard, state, out);
                    });
                });
            });
        });
}

/// Whose it is, how far it was, how long ago, and what hinders it.
fn words(state: &State, run: &Interrupted) -> String {
    let model = files::short(&run.recipe.model);
    let place = match run.epoch {
        Some((done, of)) => format!("at epoch {done:.1} of {of}"),
        None => "before its training".to_owned(),
    };
    let ago = run.since.elapsed().unwrap_or_default();
    let mut text = format!(
        "A distillation of {model} was interrupted {place}, {}.",
        ago_words(ago)
    );
    if let Some(why) = &run.obstacle {
        text += &format!(" It cannot be gone on with: {why}.");
    } else if !state.is_of_open_model(run) {
        text += " Taking it up opens its model first.";
    }
    text
}

fn ago_words(ago: Duration) -> String {
    let seconds = ago.as_secs();
    let (count, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_ago_is_said_in_the_largest_unit() {
        for (seconds, words) in [
            (0, "just now"),
            (59, "just now"),
            (60, "1 minute ago"),
            (7_199, "1 hour ago"),
            (86_400 * 3, "3 days ago"),
        ] {
            assert_eq!(ago_words(Duration::from_secs(seconds)), words);
        }
    }
}
