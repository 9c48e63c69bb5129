//! Training: loss, accuracy and rate while a distillation runs, and after it, over those of the session's earlier runs.

mod plots;

use super::{Commands, command_button, words};
use crate::{
    commands::Command,
    state::{Curves, Dialog, JobKind, JobState, State},
    theme,
    widgets::{self, Button, number},
};
use egui::{Popup, Rect, RichText, ScrollArea, Ui, pos2, vec2};
use limbeck_engine::data::SplitName;
use plots::{Runs, epochs};

/// Right side of the panel's head, laid from the right.
pub fn head(ui: &mut Ui, state: &State, out: &mut Commands) {
    command_button(
        ui,
        Button::new("Distil…").low(),
        Command::Show(Dialog::Distil),
        state,
        out,
    );
    if let Some(run) = state.curves() {
        let command = Command::NewRun(run.job);
        let name = command.label();
        let button = Button::new("New run from this…").name(&name).low();
        command_button(ui, button, command, state, out);
        from_epoch(ui, state, run, out);
    }
}

/// The ends of a run's epochs, to begin a new run at: the picked one, else a list.
fn from_epoch(ui: &mut Ui, state: &State, run: &Curves, out: &mut Commands) {
    let picked = state.view.epoch.filter(|(job, _)| *job == run.job);
    if let Some((job, epoch)) = picked {
        let command = Command::NewRunFrom { run: job, epoch };
        let text = format!("From epoch {epoch}…");
        let name = command.label();
        let why = command.enabled(state).err();
        let hint = format!("{name}\n{}", beginning(state, run, epoch));
        let button = Button::new(&text).name(&name).low().hint(&hint);
        if button.disabled(why.as_deref()).show(ui) {
            out.push(command);
        }
        return;
    }
    let none = run.judged().is_empty().then_some("No epoch has ended yet");
    let anchor = Button::new("From an epoch…")
        .low()
        .disabled(none)
        .hint("A new run that goes on from the network at the end of an epoch")
        .response(ui);
    Popup::menu(&anchor).show(|ui| {
        ui.set_width(190.0);
        ui.spacing_mut().item_spacing.y = 2.0;
        ScrollArea::vertical().max_height(260.0).show(ui, |ui| {
            for (epoch, judged) in run.epochs().rev() {
                let command = Command::NewRunFrom {
                    run: run.job,
                    epoch,
                };
                let why = command.enabled(state).err();
                let text = format!("Epoch {epoch}: {:.2} %", judged.value * 100.0);
                let (name, hint) = (command.label(), beginning(state, run, epoch));
                let button = Button::new(&text).quiet().name(&name).hint(&hint);
                if button.disabled(why.as_deref()).show(ui) {
                    out.push(command);
                }
            }
        });
    });
}

/// How a new run from the end of an epoch begins.
fn beginning(state: &State, run: &Curves, epoch: usize) -> String {
    match state.mirror.runs.is_kept(run.job, epoch) {
        true => "Begins at once".to_owned(),
        false => format!(
            "Its network is not kept any more: epochs 1 to {epoch} are trained again first, to the same bits"
        ),
    }
}

pub fn show(ui: &mut Ui, state: &State, out: &mut Commands) {
    let running = state.active_jobs().find(|job| job.kind == JobKind::Distil);
    let curves = state.curves().filter(|c| !c.points.is_empty());
    let has_curves = |job| state.runs().iter().any(|run| run.job == job);
    let waits = running.filter(|job| state.view.run.is_none() && !has_curves(job.id));
    if let Some(job) = waits {
        let (title, body) = if job.state == JobState::Queued {
            (format!("{} waits", job.title), "Other work goes first.")
        } else if job.state == JobState::Paused {
            (
                format!("{} is paused", job.title),
                "The compressed network is made once it is resumed.",
            )
        } else {
            (
                format!("{} is under way", job.title),
                "The compressed network is being made.",
            )
        };
        let body = format!("{body} Loss and accuracy are drawn here as soon as training starts.");
        widgets::empty_state(ui, &title, &body, &[]);
        return;
    }
    let Some(curves) = curves else {
        let body = "Distillation trains the compressed network against the original as its teacher. Its loss and accuracy are drawn \
                    here while it runs; the window stays free.";
        let blocked = Command::Show(Dialog::Distil).enabled(state).err();
        let pressed = match blocked {
            None => widgets::empty_state(ui, "Nothing distilled yet", body, &[("Distil…", true)]),
            Some(why) => {
                widgets::empty_state(ui, "Nothing distilled yet", &format!("{body}\n{why}."), &[])
            }
        };
        if pressed.is_some() {
            out.push(Command::Show(Dialog::Distil));
        }
        return;
    };
    let all = ui.available_rect_before_wrap();
    let facts = Rect::from_min_size(all.min + vec2(12.0, 6.0), vec2(all.width() - 24.0, 24.0));
    ui.scope_builder(
        egui::UiBuilder::new().id_salt("facts").max_rect(facts),
        |ui| {
            ui.horizontal_centered(|ui| summary(ui, state, curves));
        },
    );
    let mut upper_edge = facts.bottom() + 6.0;
    let mut lit = None;
    if state.runs().len() > 1 {
        let line = Rect::from_min_size(
            pos2(facts.left(), facts.bottom() + 2.0),
            vec2(facts.width(), 24.0),
        );
        ui.scope_builder(
            egui::UiBuilder::new().id_salt("runs").max_rect(line),
            |ui| {
                ui.horizontal_centered(|ui| lit = chips(ui, state, curves, out));
            },
        );
        upper_edge = line.bottom() + 6.0;
    }
    let runs = Runs {
        chosen: curves,
        others: state
            .overlaid()
            .filter(|run| run.job != curves.job)
            .collect(),
        lit,
    };
    let plots = Rect::from_min_max(
        pos2(all.left() + 8.0, upper_edge),
        pos2(all.right() - 14.0, all.bottom() - 6.0),
    );
    let room = plots.height() - 12.0;
    let mut top = plots.top();
    let mut place = |ui: &mut Ui, salt, share: f32, draw: &dyn Fn(&mut Ui, egui::Vec2)| {
        let rect = Rect::from_min_size(pos2(plots.left(), top), vec2(plots.width(), room * share));
        top = rect.bottom() + 6.0;
        let builder = egui::UiBuilder::new().id_salt(salt).max_rect(rect);
        ui.scope_builder(builder, |ui| draw(ui, rect.size()));
    };
    place(ui, "loss", 0.36, &|ui, size| plots::loss(ui, size, &runs));
    place(ui, "rate", 0.18, &|ui, size| plots::rate(ui, size, &runs));
    place(ui, "accuracy", 0.46, &|ui, size| {
        plots::accuracy(ui, size, state, &runs);
    });
}

/// A chip a run, newest first; the one under the pointer is given back.
fn chips<'a>(
    ui: &mut Ui,
    state: &'a State,
    chosen: &Curves,
    out: &mut Commands,
) -> Option<&'a Curves> {
    let t = theme::of(ui);
    ui.spacing_mut().item_spacing.x = 6.0;
    let mut lit = None;
    let runs: Vec<&Curves> = state.overlaid().collect();
    for run in runs.into_iter().rev() {
        let own = run.job == chosen.job;
        let colour = if own { t.measured } else { t.muted };
        let text = [(run.title.as_str(), theme::small(), colour)];
        let name = format!("Run {}", run.title);
        let chip = widgets::chip(ui, &text, own.then_some(t.measured), &name);
        let chip = chip.on_hover_text(facts_of(state, run));
        if chip.hovered() && !own {
            lit = Some(run);
        }
        if chip.clicked() && !own {
            out.push(Command::SelectRun(run.job));
        }
    }
    lit
}

/// A run in a few words.
fn facts_of(state: &State, run: &Curves) -> String {
    let mut text = run.title.clone();
    if let Some(last) = run.points.last() {
        text += &format!(
            "\nepoch {:.1} of {:.0} · loss {:.3}",
            last.epoch,
            epochs(run),
            last.loss
        );
    }
    if let Some((_, last)) = run.judged().last() {
        text += &format!(
            "\n{} {} % at its last epoch's end, in training, on search, n {}",
            state.judged_by(SplitName::Search),
            number::points_with_interval(last.value, last.ci),
            number::grouped(last.n)
        );
    }
    text
}

fn summary(ui: &mut Ui, state: &State, curves: &Curves) {
    let t = theme::of(ui);
    let Some(last) = curves.points.last() else {
        return;
    };
    ui.label(
        RichText::new(&curves.title)
            .font(theme::strong())
            .color(t.text),
    );
    let mut text = format!(
        "epoch {:.1} of {:.0} · loss {:.3} · rate {:.1e} · {} img/s",
        last.epoch,
        epochs(curves),
        last.loss,
        last.rate,
        number::grouped(last.samples_per_second.max(0.0).round() as u64),
    );
    match last.rollbacks {
        0 => {}
        1 => text += " · diverged once, went back and on with a lower rate",
        n => text += &format!(" · diverged {n} times, went back and on with a lower rate"),
    }
    if let Some(eta) = state.job(curves.job).and_then(|job| job.eta) {
        text += &format!(" · {}", words::eta(Some(eta)));
    }
    let room = ui.available_rect_before_wrap();
    let (rect, response) = ui.allocate_exact_size(vec2(room.width(), 20.0), egui::Sense::hover());
    response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, &text));
    if widgets::draw_elided(
        ui.painter(),
        rect,
        egui::Align::Min,
        &text,
        theme::mono_small(),
        t.muted,
    ) {
        response.on_hover_text(text);
    }
}
