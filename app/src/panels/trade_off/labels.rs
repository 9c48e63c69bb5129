//! Labels beside the plot's points that do not cover points, lines or each other.

use crate::theme;
use egui::{Align2, FontId, Painter, Pos2, Rect, vec2};

/// Labels that do not cover points or each other.
pub(super) struct Labels {
    frame: Rect,
    pub(super) taken: Vec<Rect>,
}

impl Labels {
    pub(super) fn new(frame: Rect) -> Self {
        Self {
            frame,
            taken: Vec::new(),
        }
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
        let spots = [
            (Align2::LEFT_BOTTOM, vec2(8.0, -4.0)),
            (Align2::LEFT_TOP, vec2(8.0, 4.0)),
            (Align2::RIGHT_BOTTOM, vec2(-8.0, -4.0)),
            (Align2::RIGHT_TOP, vec2(-8.0, 4.0)),
            (Align2::LEFT_BOTTOM, vec2(8.0, -20.0)),
            (Align2::LEFT_TOP, vec2(8.0, 20.0)),
            (Align2::RIGHT_BOTTOM, vec2(-8.0, -20.0)),
            (Align2::RIGHT_TOP, vec2(-8.0, 20.0)),
            (Align2::LEFT_BOTTOM, vec2(8.0, -36.0)),
            (Align2::LEFT_TOP, vec2(8.0, 36.0)),
            (Align2::CENTER_BOTTOM, vec2(0.0, -9.0)),
            (Align2::CENTER_TOP, vec2(0.0, 9.0)),
        ];
        let inner = self.frame.shrink(2.0);
        let candidates = spots.map(|(anchor, offset)| anchor.anchor_size(place + offset, size));
        let free = candidates.iter().find(|r| {
            inner.contains_rect(**r) && !self.taken.iter().any(|other| other.intersects(**r))
        });
        let rect = match free {
            Some(rect) => *rect,
            None if must => {
                let covered = |r: &Rect| self.taken.iter().filter(|t| t.intersects(*r)).count();
                let best = candidates
                    .iter()
                    .filter(|r| inner.contains_rect(**r))
                    .min_by_key(|r| covered(r));
                match best {
                    Some(rect) => *rect,
                    None => return,
                }
            }
            None => return,
        };
        painter.galley(rect.min, galley, colour);
        self.taken.push(rect.expand2(vec2(8.0, 1.0)));
    }
}
