//! A choice of one among a few, drawn as a row of segments. One tab stop; the arrow keys move the choice.

use crate::theme;
use egui::{
    Align2, CornerRadius, EventFilter, FontId, Id, Key, Rect, Role, Sense, Stroke, StrokeKind, Ui,
    WidgetInfo, pos2, vec2,
};

/// How a segmented choice looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentStyle {
    /// Chosen segment in copper, mono digits: part of the plan.
    Plan,
    /// Chosen segment on the selection's ground: part of the view.
    View,
}

fn font(style: SegmentStyle, chosen: bool) -> FontId {
    match (style, chosen) {
        (SegmentStyle::Plan, true) => theme::medium_mono(),
        (SegmentStyle::Plan, false) => theme::mono_small(),
        (SegmentStyle::View, true) => theme::strong(),
        (SegmentStyle::View, false) => theme::sans(),
    }
}

/// A segmented choice that takes its place in the layout. `name(i)`: the accessible name of segment i. Returns a newly chosen
/// segment. `disabled`: why nothing can be chosen.
pub fn segmented(
    ui: &mut Ui,
    salt: &str,
    texts: &[&str],
    chosen: Option<usize>,
    style: SegmentStyle,
    disabled: Option<&str>,
    name: impl Fn(usize) -> String,
) -> Option<usize> {
    let widths: Vec<f32> = texts
        .iter()
        .map(|text| {
            // As wide as in bold, so that choosing moves nothing.
            super::text_width(ui.painter(), text, font(style, true)).ceil() + 16.0
        })
        .collect();
    let height = match style {
        SegmentStyle::Plan => 20.0,
        SegmentStyle::View => 24.0,
    };
    let (rect, _) = ui.allocate_exact_size(vec2(widths.iter().sum(), height), Sense::hover());
    let id = ui.make_persistent_id(salt);
    draw(ui, rect, id, texts, &widths, chosen, style, disabled, name)
}

/// A segmented choice of equal segments inside `rect`.
#[allow(clippy::too_many_arguments)]
pub fn segmented_at(
    ui: &mut Ui,
    rect: Rect,
    id: Id,
    texts: &[&str],
    chosen: Option<usize>,
    style: SegmentStyle,
    disabled: Option<&str>,
    name: impl Fn(usize) -> String,
) -> Option<usize> {
    let widths = vec![rect.width() / texts.len().max(1) as f32; texts.len()];
    draw(ui, rect, id, texts, &widths, chosen, style, disabled, name)
}

#[allow(clippy::too_many_arguments)]
fn draw(
    ui: &mut Ui,
    rect: Rect,
    id: Id,
    texts: &[&str],
    widths: &[f32],
    chosen: Option<usize>,
    style: SegmentStyle,
    disabled: Option<&str>,
    name: impl Fn(usize) -> String,
) -> Option<usize> {
    let t = theme::of(ui);
    let radius = match style {
        SegmentStyle::Plan => theme::RADIUS_CELL + 1,
        SegmentStyle::View => theme::RADIUS,
    };
    let enabled = disabled.is_none() && ui.is_enabled();
    let painter = ui.painter().clone();
    let mut picked = None;
    let mut x = rect.left();
    let last = texts.len().saturating_sub(1);
    for (i, (text, width)) in texts.iter().zip(widths).enumerate() {
        let segment = Rect::from_min_size(pos2(x, rect.top()), vec2(*width, rect.height()));
        x += width;
        let is_chosen = chosen == Some(i);
        let stop = is_chosen || (chosen.is_none() && i == 0);
        let sense = match (enabled, stop) {
            (false, _) => Sense::hover(),
            (true, true) => Sense::click(),
            (true, false) => Sense::CLICK,
        };
        let response = ui.interact(segment, id.with(i), sense);
        response
            .widget_info(|| WidgetInfo::selected(Role::RadioButton, enabled, is_chosen, name(i)));
        let response = match disabled {
            Some(why) => response.on_hover_text(why),
            None => response,
        };
        if response.clicked() && !is_chosen {
            picked = Some(i);
        }
        if stop && response.has_focus() {
            ui.memory_mut(|m| {
                m.set_focus_lock_filter(
                    response.id,
                    EventFilter {
                        horizontal_arrows: true,
                        ..Default::default()
                    },
                );
            });
            let step = ui.input(|input| {
                i32::from(input.key_pressed(Key::ArrowRight))
                    - i32::from(input.key_pressed(Key::ArrowLeft))
            });
            let next = i as i32 + step;
            if step != 0 && next >= 0 && next as usize <= last {
                picked = Some(next as usize);
                ui.memory_mut(|m| m.request_focus(id.with(next as usize)));
            }
        }
        let hovered = enabled && response.hovered();
        let corner = CornerRadius {
            nw: if i == 0 { radius } else { 0 },
            sw: if i == 0 { radius } else { 0 },
            ne: if i == last { radius } else { 0 },
            se: if i == last { radius } else { 0 },
        };
        let colour = match (style, is_chosen, hovered) {
            (SegmentStyle::Plan, true, _) => {
                let ground = if enabled { t.accent } else { t.faint };
                painter.rect_filled(
                    segment.shrink(1.0),
                    CornerRadius::same(theme::RADIUS_CELL),
                    ground,
                );
                t.on_accent
            }
            (SegmentStyle::Plan, false, true) => t.text,
            (SegmentStyle::Plan, false, false) => theme::mix(t.faint, t.muted, 0.35),
            (SegmentStyle::View, true, _) => {
                painter.rect_filled(segment, corner, t.selected);
                t.text
            }
            (SegmentStyle::View, false, true) => t.text,
            (SegmentStyle::View, false, false) => t.muted,
        };
        if style == SegmentStyle::View && i > 0 {
            painter.vline(segment.left(), segment.y_range(), Stroke::new(1.0, t.line));
        }
        super::draw(
            &painter,
            segment.center(),
            Align2::CENTER_CENTER,
            *text,
            font(style, is_chosen),
            colour,
        );
        if response.has_focus() {
            painter.rect_stroke(
                segment.expand(1.0),
                CornerRadius::same(radius),
                Stroke::new(1.0, t.measured),
                StrokeKind::Outside,
            );
        }
    }
    painter.rect_stroke(
        rect,
        CornerRadius::same(radius),
        Stroke::new(1.0, t.line),
        StrokeKind::Inside,
    );
    picked
}
