//! Bars and dots: shares, progress, the heat legend, the status dot.

use crate::theme;
use egui::{
    Align2, Color32, Mesh, Painter, Rect, Response, Role, Sense, Ui, WidgetInfo, epaint::Vertex,
    pos2, vec2,
};

/// A thin bar as wide as `share` (0..=1) of `rect`.
pub fn share_bar(painter: &Painter, rect: Rect, share: f32, colour: Color32) {
    let width = rect.width() * share.clamp(0.0, 1.0);
    if width >= 0.5 {
        painter.rect_filled(
            Rect::from_min_size(rect.min, vec2(width, rect.height())),
            1.0,
            colour,
        );
    }
}

/// A determinate progress bar of `width`.
pub fn progress(ui: &mut Ui, fraction: f32, width: f32, colour: Color32, name: &str) -> Response {
    let t = theme::of(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(width, 6.0), Sense::hover());
    let fraction = if fraction.is_nan() {
        0.0
    } else {
        fraction.clamp(0.0, 1.0)
    };
    response.widget_info(|| WidgetInfo {
        value: Some((f64::from(fraction) * 100.0).round()),
        ..WidgetInfo::labeled(Role::ProgressIndicator, true, name)
    });
    ui.painter()
        .rect_filled(rect, 3.0, theme::mix(t.raised, t.line, 0.5));
    share_bar(ui.painter(), rect, fraction, colour);
    response
}

/// A part of the heat scale, with what its ends mean and the look of the cells it is for.
pub struct Scale<'a> {
    pub low: &'a str,
    pub high: &'a str,
    /// 0..=1 along the heat scale.
    pub range: [f32; 2],
    pub hatched: bool,
}

/// A legend whose bar is `width` wide.
pub fn legend(ui: &mut Ui, scale: &Scale<'_>, width: f32, name: &str) -> Response {
    let Scale { low, high, .. } = *scale;
    let t = theme::of(ui);
    let painter = ui.painter().clone();
    let low_width = super::text_width(&painter, low, theme::mono_small()).ceil();
    let high_width = super::text_width(&painter, high, theme::mono_small()).ceil();
    let (rect, response) = ui.allocate_exact_size(
        vec2(low_width + high_width + width + 16.0, 20.0),
        Sense::hover(),
    );
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, name));
    let y = rect.center().y;
    super::draw(
        &painter,
        pos2(rect.left(), y),
        Align2::LEFT_CENTER,
        low,
        theme::mono_small(),
        t.muted,
    );
    super::draw(
        &painter,
        pos2(rect.right(), y),
        Align2::RIGHT_CENTER,
        high,
        theme::mono_small(),
        t.muted,
    );
    let bar = Rect::from_min_size(
        pos2(rect.left() + low_width + 8.0, y - 4.0),
        vec2(width, 8.0),
    );
    let at = |share: f32| scale.range[0] + (scale.range[1] - scale.range[0]) * share;
    if scale.hatched {
        let hatch = super::hatch_texture(ui.ctx());
        let step = bar.width() / 5.0;
        for i in 0..5 {
            let place = bar.min + vec2(step * i as f32, -1.0);
            let cell = Rect::from_min_size(place, vec2(step - 1.0, 10.0));
            let look = super::CellLook::Hatched(t.heat(at(i as f32 / 4.0)));
            super::heat_cell(&painter, cell, look, t, hatch);
        }
        return response;
    }
    let mut mesh = Mesh::default();
    for i in 0..=4_u32 {
        let share = i as f32 / 4.0;
        let x = bar.left() + bar.width() * share;
        for y in [bar.top(), bar.bottom()] {
            mesh.vertices
                .push(Vertex::untextured(pos2(x, y), t.heat(at(share))));
        }
        if i < 4 {
            mesh.add_triangle(2 * i, 2 * i + 1, 2 * i + 2);
            mesh.add_triangle(2 * i + 1, 2 * i + 3, 2 * i + 2);
        }
    }
    painter.add(mesh);
    response
}

/// A small dot in `colour`, for a state that the text beside it names.
pub fn status_dot(ui: &mut Ui, colour: Color32, name: &str) -> Response {
    let (rect, response) = ui.allocate_exact_size(vec2(8.0, 16.0), Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, name));
    ui.painter().circle_filled(rect.center(), 3.5, colour);
    response
}
