//! A histogram before and after, over the lines of a quantisation grid; and the strip of per-channel ranges.

use crate::theme;
use egui::{
    Align2, Color32, Mesh, Rect, Response, Role, Sense, Stroke, Ui, WidgetInfo, pos2, vec2,
};

/// Counts over a common range.
pub struct Histogram<'a> {
    pub range: [f32; 2],
    pub before: &'a [u64],
    /// Drawn as copper bars over the blue ones; empty where nothing changed.
    pub after: &'a [u64],
    /// Values that quantisation can give; drawn as vertical lines where they stand at least three points apart.
    pub grid: &'a [f32],
    /// What the codes reach; what lies beyond is clipped.
    pub reach: Option<[f32; 2]>,
    /// What stands under the middle: "weights · 15 levels · clipped 0.4 %".
    pub caption: &'a str,
    pub name: &'a str,
}

fn bars(mesh: &mut Mesh, rect: Rect, counts: &[u64], tallest: f64, colour: Color32, narrow: f32) {
    let width = rect.width() / counts.len().max(1) as f32;
    for (i, count) in counts.iter().enumerate().filter(|(_, c)| **c > 0) {
        let share = (*count as f64 / tallest).min(1.0) as f32;
        let left = rect.left() + width * i as f32;
        let gap = if width > 3.0 { 1.0 } else { 0.0 };
        let inset = (width - gap) * (1.0 - narrow) / 2.0;
        mesh.add_colored_rect(
            Rect::from_min_max(
                // A bin that isn't empty is never invisible.
                pos2(
                    left + inset,
                    rect.bottom() - (rect.height() * share).max(1.0),
                ),
                pos2(left + width - gap - inset, rect.bottom()),
            ),
            colour,
        );
    }
}

impl Histogram<'_> {
    pub fn show(&self, ui: &mut Ui, height: f32) -> Response {
        let t = theme::of(ui);
        let (rect, response) =
            ui.allocate_exact_size(vec2(ui.available_width(), height), Sense::hover());
        response.widget_info(|| WidgetInfo::labeled(Role::Image, true, self.name));
        let painter = ui.painter_at(rect);
        let body = Rect::from_min_max(rect.min, pos2(rect.right(), rect.bottom() - 18.0));
        let span = f64::from(self.range[1] - self.range[0]);
        let x_of =
            |v: f32| body.left() + body.width() * ((f64::from(v - self.range[0]) / span) as f32);
        if span > 0.0 {
            let spacing = body.width() / self.grid.len().max(1) as f32;
            if spacing >= 3.0 {
                let colour = theme::mix(t.panel, t.accent, 0.38);
                for v in self.grid {
                    painter.vline(x_of(*v), body.y_range(), Stroke::new(1.0, colour));
                }
            }
        }
        // The float bars set the height; quantised bars gather many bins in one and are allowed to reach the top.
        let tallest = self.before.iter().copied().max().unwrap_or(0).max(1) as f64;
        let mut mesh = Mesh::default();
        bars(
            &mut mesh,
            body,
            self.before,
            tallest * 1.04,
            theme::mix(t.panel, t.measured, 0.62),
            1.0,
        );
        if !self.after.is_empty() && self.after != self.before {
            let tallest_after = self.after.iter().copied().max().unwrap_or(0).max(1) as f64;
            bars(
                &mut mesh,
                body,
                self.after,
                tallest_after * 1.04,
                t.accent.gamma_multiply(0.8),
                0.5,
            );
        }
        painter.add(mesh);
        if let Some([low, high]) = self.reach.filter(|_| span > 0.0) {
            for (end, beyond) in [
                (low, Rect::everything_left_of(x_of(low))),
                (high, Rect::everything_right_of(x_of(high))),
            ] {
                let beyond = beyond.intersect(body);
                painter.rect_filled(beyond, 0.0, t.fail.gamma_multiply(0.18));
                painter.vline(x_of(end), body.y_range(), Stroke::new(1.5, t.accent));
            }
        }
        painter.hline(body.x_range(), body.bottom(), Stroke::new(1.0, t.line));
        let y = rect.bottom() - 8.0;
        let font = theme::mono_small();
        let ends = [
            (
                rect.left(),
                Align2::LEFT_CENTER,
                super::number::short(self.range[0]),
            ),
            (
                rect.right(),
                Align2::RIGHT_CENTER,
                super::number::short(self.range[1]),
            ),
        ];
        for (x, anchor, text) in ends {
            super::draw(&painter, pos2(x, y), anchor, text, font.clone(), t.muted);
        }
        super::draw(
            &painter,
            pos2(rect.center().x, y),
            Align2::CENTER_CENTER,
            self.caption,
            font,
            t.muted,
        );
        if span > 0.0 && !self.before.is_empty() {
            let info = response.hover_pos().filter(|p| body.contains(*p)).map(|p| {
                let share = (p.x - body.left()) / body.width();
                let bin = ((share * self.before.len() as f32) as usize).min(self.before.len() - 1);
                let step = (span / self.before.len() as f64) as f32;
                let from = self.range[0] + step * bin as f32;
                let mut text = format!(
                    "{} … {}\n{}{}",
                    super::number::short(from),
                    super::number::short(from + step),
                    if self.after.is_empty() {
                        ""
                    } else {
                        "before: "
                    },
                    super::number::grouped(self.before[bin])
                );
                if let Some(after) = self.after.get(bin) {
                    text.push_str(&format!("\nafter: {}", super::number::grouped(*after)));
                }
                text
            });
            if let Some(info) = info {
                return response.on_hover_text_at_pointer(info);
            }
        }
        response
    }
}

/// One bar a channel from its smallest to its largest value, on a common scale. More channels than points: neighbours share a bar.
pub fn channel_ranges(ui: &mut Ui, ranges: &[[f32; 2]], height: f32, name: &str) -> Response {
    let t = theme::of(ui);
    let (rect, response) =
        ui.allocate_exact_size(vec2(ui.available_width(), height), Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Image, true, name));
    let extent = ranges
        .iter()
        .flatten()
        .filter(|v| v.is_finite())
        .fold(0.0_f32, |a, v| a.max(v.abs()));
    if ranges.is_empty() || extent <= 0.0 {
        return response;
    }
    let painter = ui.painter_at(rect);
    let per_bar = (ranges.len() as f32 / (rect.width() / 2.0)).ceil().max(1.0) as usize;
    let bars = ranges.len().div_ceil(per_bar);
    let width = rect.width() / bars as f32;
    let y_of = |v: f32| rect.center().y - v / extent * (rect.height() / 2.0 - 1.0);
    let widest = ranges.iter().map(|r| r[1] - r[0]).fold(0.0, f32::max);
    let mut mesh = Mesh::default();
    for (i, group) in ranges.chunks(per_bar).enumerate() {
        let low = group.iter().map(|r| r[0]).fold(f32::INFINITY, f32::min);
        let high = group.iter().map(|r| r[1]).fold(f32::NEG_INFINITY, f32::max);
        let left = rect.left() + width * i as f32;
        let gap = if width >= 3.0 { 1.0 } else { 0.0 };
        let colour = if high - low >= widest {
            t.accent
        } else {
            theme::mix(t.panel, t.measured, 0.62)
        };
        mesh.add_colored_rect(
            Rect::from_min_max(
                pos2(left, y_of(high)),
                pos2(left + width - gap, y_of(low).max(y_of(high) + 1.0)),
            ),
            colour,
        );
    }
    painter.add(mesh);
    painter.hline(rect.x_range(), rect.center().y, Stroke::new(1.0, t.line));
    let hovered = response.hover_pos().and_then(|p| {
        let bar = ((p.x - rect.left()) / width) as usize;
        let first = bar * per_bar;
        ranges.get(first).map(|_| {
            let last = (first + per_bar).min(ranges.len());
            ranges[first..last]
                .iter()
                .enumerate()
                .take(6)
                .map(|(k, r)| {
                    format!(
                        "channel {}: {} … {}",
                        first + k,
                        super::number::short(r[0]),
                        super::number::short(r[1])
                    )
                })
                .collect::<Vec<_>>()
                .join("\n")
        })
    });
    match hovered {
        Some(text) => response.on_hover_text_at_pointer(text),
        None => response,
    }
}
