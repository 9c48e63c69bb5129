//! The strip at the bottom: what runs, how far it is, how long it takes, cancel; the engine's state; the log.

use super::{Commands, words};
use crate::{
    commands::Command,
    state::{JobKind, JobState, State},
    theme,
    widgets::{self, Button, number::grouped},
};
use egui::{Align, Layout, Rect, Sense, Ui, UiBuilder, pos2, vec2};
use limbeck_engine::sensitivity::Direction;

pub fn show(ui: &mut Ui, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let bar = ui.max_rect().shrink2(vec2(12.0, 0.0));
    let mut edge = bar.right();
    let active = state.active_jobs().count();
    ui.scope_builder(
        UiBuilder::new()
            .id_salt("engine")
            .max_rect(bar)
            .layout(Layout::right_to_left(Align::Center)),
        |ui| {
            let open = state.view.log_open;
            let errors = state
                .mirror
                .log
                .iter()
                .rev()
                .take(50)
                .any(|line| line.error);
            let text = if open { "Hide log" } else { "Log" };
            if Button::new(text)
                .quiet()
                .hint("What the engine said (Ctrl+L)")
                .show(ui)
            {
                out.push(Command::ShowLog(!open));
            }
            if errors {
                widgets::status_dot(ui, t.fail, "The log has errors")
                    .on_hover_text("The log has errors");
            }
            let (measured, all) = state.map_progress();
            let paused = state
                .active_jobs()
                .filter(|job| job.state == JobState::Paused)
                .count();
            let busy = match active {
                n if n > 0 && n == paused => "Engine idle: paused".to_owned(),
                0 => "Engine idle".to_owned(),
                1 => "Engine: 1 job".to_owned(),
                n => format!("Engine: {n} jobs"),
            };
            widgets::muted_label(ui, busy)
                .on_hover_text(format!("{measured} of {all} cells of the map are measured"));
            widgets::status_dot(
                ui,
                if active > paused { t.measured } else { t.faint },
                if active > paused {
                    "Engine busy"
                } else {
                    "Engine ready"
                },
            );
            edge = ui.min_rect().left();
        },
    );
    let room = Rect::from_min_max(bar.min, pos2(edge - 16.0, bar.bottom()));
    ui.scope_builder(
        UiBuilder::new()
            .id_salt("jobs")
            .max_rect(room)
            .layout(Layout::left_to_right(Align::Center)),
        |ui| {
            ui.set_clip_rect(ui.clip_rect().intersect(room));
            jobs(ui, state, active, out);
        },
    );
}

fn jobs(ui: &mut Ui, state: &State, active: usize, out: &mut Commands) {
    let t = theme::of(ui);
    if active == 0 {
        let (measured, all) = state.map_progress();
        if state.model().is_some() {
            let (map, hint) = match state.view.colour_by.direction() {
                Direction::Alone => ("Map", "Measure the cells that are still proxies"),
                Direction::AllBut => (
                    "All but one",
                    "Measure what is lost with every layer changed but one, for each layer and candidate",
                ),
            };
            let text = if state.measurable().is_err() {
                "Map: weight noise only".to_owned()
            } else if all > 0 && measured == all {
                format!("{map} measured: {} cells", grouped(all as u64))
            } else {
                format!(
                    "{map}: {} of {} cells measured",
                    grouped(measured as u64),
                    grouped(all as u64)
                )
            };
            widgets::muted_label(ui, text);
            if measured < all
                && Command::StartMap.enabled(state).is_ok()
                && Button::new("Measure map").low().hint(hint).show(ui)
            {
                out.push(Command::StartMap);
            }
        }
        return;
    }
    // As many side by side as there is room for, each with its own share of it; the others are counted.
    let room = ui.available_width() - 60.0;
    let fit = ((room / 360.0).floor().max(1.0) as usize).min(active);
    let each = (room / fit as f32 - 24.0).max(120.0);
    for (at, job) in state.active_jobs().take(fit).enumerate() {
        if at > 0 {
            ui.add_space(24.0);
        }
        let (rect, label) = ui.allocate_exact_size(
            vec2(
                widgets::text_width(ui.painter(), &job.title, theme::sans()).min(each * 0.32) + 2.0,
                24.0,
            ),
            Sense::hover(),
        );
        label.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, &job.title));
        widgets::draw_elided(
            ui.painter(),
            rect,
            Align::Min,
            &job.title,
            theme::sans(),
            t.muted,
        );
        label.on_hover_text(&job.title);
        let colour = if job.kind == JobKind::Distil {
            t.accent
        } else {
            t.measured
        };
        let width = if each > 480.0 { 150.0 } else { 84.0 };
        widgets::progress(
            ui,
            job.fraction,
            width,
            colour,
            &format!("Progress of {}", job.title),
        );
        let detail = match job.state {
            JobState::Queued => "waiting".to_owned(),
            JobState::Paused if job.detail.is_empty() => "paused".to_owned(),
            JobState::Paused => format!("paused · {}", job.detail),
            _ => {
                let eta = words::eta(job.eta);
                match (job.detail.is_empty(), eta.is_empty()) {
                    (true, true) => format!("{:.0} %", job.fraction * 100.0),
                    (false, true) => job.detail.clone(),
                    (true, false) => eta,
                    (false, false) => format!("{} · {eta}", job.detail),
                }
            }
        };
        // What is said of it never pushes the button out of sight.
        let buttons = if job.kind == JobKind::Distil {
            142.0
        } else {
            66.0
        };
        let used = rect.width() + width + buttons + 4.0 * ui.spacing().item_spacing.x;
        let natural = widgets::text_width(ui.painter(), &detail, theme::mono()) + 2.0;
        let (line, said) = ui.allocate_exact_size(
            vec2(natural.min(each - used).max(0.0), 24.0),
            Sense::hover(),
        );
        said.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, &detail));
        if widgets::draw_elided(
            ui.painter(),
            line,
            Align::Min,
            &detail,
            theme::mono(),
            t.text,
        ) {
            said.on_hover_text(&detail);
        }
        let switch = match job.state {
            JobState::Paused => Some((
                "Resume",
                "Goes on from the very mini-batch at which it was paused",
                Command::ResumeJob(job.id),
            )),
            _ if job.can_pause() => Some((
                "Pause",
                "Stops at the next mini-batch and keeps its state; everything else goes on",
                Command::PauseJob(job.id),
            )),
            _ => None,
        };
        if let Some((text, hint, command)) = switch
            && Button::new(text)
                .low()
                .name(&format!("{text} {}", job.title))
                .hint(hint)
                .show(ui)
        {
            out.push(command);
        }
        if Button::new("Cancel")
            .low()
            .name(&format!("Cancel {}", job.title))
            .hint("What is finished is kept")
            .show(ui)
        {
            out.push(Command::CancelJob(job.id));
        }
    }
    if active > fit {
        ui.add_space(8.0);
        widgets::muted_label(ui, format!("+{} more", active - fit));
    }
}
