//! Labels beside the plot's points that do not cover points, lines or each other.

use crate::theme;
use egui::{Align2, FontId, Painter, Pos2, Rect, vec2};

/// How far to move `rect` so that it lies inside `room`, where it can.
fn into(rect: Rect, room: Rect) -> egui::Vec2 {
    let shift = |low: f32, high: f32, a: f32, b: f32| (low - a).max(0.0) + (high - b).min(0.0);
    vec2(
        shift(room.left(), room.right(), rect.left(), rect.right()),
        shift(room.top(), room.bottom(), rect.top(), rect.bottom()),
    )
}

/// Labels that do not cover points or each other.
pub(super) struct Labels {
    frame: Rect,
    pub(super) taken: Vec<Rect>,
    /// Lines right across the plot: labels keep off them, the key of the marks does not.
    lines: Vec<Rect>,
}

/// Anchors of a label around its point, by preference.
const SIDES: [(Align2, [f32; 2]); 4] = [
    (Align2::LEFT_BOTTOM, [8.0, -1.0]),
    (Align2::LEFT_TOP, [8.0, 1.0]),
    (Align2::RIGHT_BOTTOM, [-8.0, -1.0]),
    (Align2::RIGHT_TOP, [-8.0, 1.0]),
];
/// Distances above or below it.
const STEPS: [f32; 4] = [4.0, 20.0, 36.0, 52.0];
/// Covered square points that a point of distance is worth: a label far from its mark is taken for another's.
const FAR: f32 = 0.6;

impl Labels {
    pub(super) fn new(frame: Rect) -> Self {
        Self {
            frame,
            taken: Vec::new(),
            lines: Vec::new(),
        }
    }

    pub(super) fn line(&mut self, rect: Rect) {
        self.lines.push(rect);
    }

    pub(super) fn block(&mut self, rect: Rect) {
        self.taken.push(rect);
    }

    /// Writes `text` beside `place` where it is free; `must`: above it even so.
    pub(super) fn put(
        &mut self,
        painter: &Painter,
        place: Pos2,
        text: &str,
        colour: egui::Color32,
        must: bool,
    ) {
        if !self.frame.contains(place) {
            return;
        }
        let font: FontId = theme::mono_small();
        let galley = painter.layout_no_wrap(text.to_owned(), font, colour);
        let size = galley.size();
        let around = STEPS.iter().flat_map(|step| {
            SIDES.map(|(anchor, [x, side])| anchor.anchor_size(place + vec2(x, side * step), size))
        });
        let inner = self.frame.shrink(2.0);
        let mut candidates: Vec<Rect> = around.filter(|r| inner.contains_rect(*r)).collect();
        if must && candidates.is_empty() {
            // Wider than the room on either side: somewhere above or below.
            candidates.extend(STEPS.iter().flat_map(|step| {
                [(Align2::CENTER_BOTTOM, -1.0), (Align2::CENTER_TOP, 1.0)].map(|(anchor, side)| {
                    let rect = anchor.anchor_size(place + vec2(0.0, side * (step + 5.0)), size);
                    rect.translate(into(rect, inner))
                })
            }));
        }
        // Of thousands of points only those near by can be covered.
        let near = candidates
            .iter()
            .fold(Rect::NOTHING, |all, r| all.union(*r));
        let taken: Vec<Rect> = self
            .taken
            .iter()
            .filter(|r| r.intersects(near))
            .copied()
            .collect();
        let covered = |r: &Rect| -> f32 {
            let all = taken.iter().chain(&self.lines);
            all.map(|other| other.intersect(*r))
                .filter(Rect::is_positive)
                .map(|both| both.area())
                .sum()
        };
        let cost = |rect: &Rect, cover: f32| cover + FAR * rect.distance_to_pos(place);
        let best = candidates
            .iter()
            .map(|rect| (covered(rect), rect))
            .filter(|(cover, _)| must || *cover == 0.0)
            .min_by(|a, b| cost(a.1, a.0).total_cmp(&cost(b.1, b.0)));
        let Some((cover, rect)) = best.map(|(cover, rect)| (cover, *rect)) else {
            return;
        };
        if cover > 0.0 {
            let dark = painter.ctx().theme() == egui::Theme::Dark;
            let ground = theme::tokens(dark).panel.gamma_multiply(0.8);
            painter.rect_filled(rect.expand2(vec2(2.0, 0.0)), 2.0, ground);
        }
        painter.galley(rect.min, galley, colour);
        self.taken.push(rect.expand2(vec2(8.0, 1.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egui::{Color32, Context, RawInput, pos2};

    #[test]
    fn labels_cover_neither_each_other_nor_lines_where_there_is_room() {
        let ctx = Context::default();
        theme::install(&ctx);
        let frame = Rect::from_min_size(pos2(0.0, 0.0), vec2(500.0, 400.0));
        // Fonts are there from the second pass on.
        for _ in 0..2 {
            let mut output = ctx.run_ui(RawInput::default(), |ui| {
                let mut labels = Labels::new(frame);
                let line = Rect::from_min_max(pos2(0.0, 188.0), pos2(500.0, 190.0));
                labels.line(line);
                for place in [pos2(250.0, 200.0), pos2(252.0, 196.0), pos2(248.0, 203.0)] {
                    let text = "this plan 92.78 ± 0.21 measured";
                    labels.put(ui.painter(), place, text, Color32::WHITE, true);
                }
                let taken = &labels.taken;
                assert_eq!(taken.len(), 3);
                for (i, a) in taken.iter().enumerate() {
                    assert!(!a.intersects(line.shrink(1.0)), "{a:?}");
                    let text = a.shrink2(vec2(8.0, 1.0));
                    assert!(taken[..i].iter().all(|b| !text.intersect(*b).is_positive()));
                }
            });
            output.textures_delta.clear();
        }
    }
}
