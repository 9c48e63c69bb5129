//! What trainings were judged at at their epochs' ends: small rings at the size of the plan that is trained.

use super::labels::Labels;
use crate::{
    commands::Command,
    panels::Commands,
    state::{Curves, State},
    theme,
    widgets::number,
};
use egui::{Id, Painter, Pos2, Rect, Role, Sense, Stroke, Ui, Vec2, WidgetInfo};
use limbeck_engine::{data::SplitName, eval::Estimate};

/// Of a run, the last so many epochs.
const MOST: usize = 40;

/// A run on the plot.
pub(super) struct Placed<'a> {
    run: &'a Curves,
    /// kB or million MACs.
    pub x: f64,
    /// By epoch.
    pub judged: &'a [(f64, Estimate)],
}

/// Where the runs stand that the plot shows: trainings are judged on the search split only.
pub(super) fn placed(state: &State) -> Vec<Placed<'_>> {
    if state.view.split != SplitName::Search {
        return Vec::new();
    }
    let placed = |run| {
        let (x, judged) = (state.run_place(run)?, run.judged());
        let judged = &judged[judged.len().saturating_sub(MOST)..];
        Some(Placed { run, x, judged })
    };
    state.overlaid().filter_map(placed).collect()
}

pub(super) fn ring(painter: &Painter, place: Pos2, t: &theme::Tokens) {
    let colour = theme::mix(t.panel, t.measured, 0.75);
    painter.circle(place, 2.5, t.panel, Stroke::new(1.0, colour));
}

pub(super) fn draw(
    ui: &Ui,
    painter: &Painter,
    frame: Rect,
    state: &State,
    at: &dyn Fn(f64, f64) -> Pos2,
    labels: &mut Labels,
    out: &mut Commands,
) {
    let t = theme::of(ui);
    for Placed { run, x, judged } in placed(state) {
        for (epoch, accuracy) in judged {
            let place = at(x, accuracy.value * 100.0);
            if !frame.contains(place) {
                continue;
            }
            ring(painter, place, t);
            labels.block(Rect::from_center_size(place, Vec2::splat(6.0)));
            let touch = Rect::from_center_size(place, Vec2::splat(8.0)).intersect(frame);
            let id = Id::unique(("epoch", run.job, epoch.to_bits()));
            let response = ui.interact(touch, id, Sense::click());
            let text = format!("{}, epoch {epoch:.1}", run.title);
            response.widget_info(|| WidgetInfo::labeled(Role::Label, true, &text));
            let number = epoch.round() as usize;
            let picked = state.view.epoch == Some((run.job, number));
            if response.clicked() {
                out.push(Command::SelectEpoch {
                    run: run.job,
                    epoch: number,
                });
            }
            if response.hovered() || picked {
                painter.circle_stroke(place, 4.5, Stroke::new(1.0, t.text));
            }
            response.on_hover_text(format!(
                "{text}\n{} {} % on search, n {}, while it trained\nat the size from before the training\nClick: pick it for a new run",
                state.judged_by(SplitName::Search),
                number::points_with_interval(accuracy.value, accuracy.ci),
                number::grouped(accuracy.n)
            ));
        }
    }
}
