//! Frames of panels and popups, heads, notes, key–value rows, and what stands where nothing is yet.

use super::{Button, icons};
use crate::theme;
use egui::{
    Align, Align2, Color32, CornerRadius, Frame, Layout, Margin, Rect, Response, RichText, Sense,
    Stroke, Ui, pos2, vec2,
};

/// The frame of one of the window's panels: panel ground, hairline, rounded.
pub fn panel_frame(ui: &Ui) -> Frame {
    let t = theme::of(ui);
    Frame::new()
        .fill(t.panel)
        .stroke(Stroke::new(1.0, t.line))
        .corner_radius(CornerRadius::same(theme::RADIUS_PANEL))
}

/// The frame of a popup's or a dialog's content.
pub fn popup_frame(ui: &Ui) -> Frame {
    Frame::window(ui.style()).inner_margin(Margin::same(16))
}

/// A bar at the top (or bottom) of a panel: `BAR` high, padded, items centred; a hairline towards the content.
pub fn head<R>(ui: &mut Ui, hairline_below: bool, add: impl FnOnce(&mut Ui) -> R) -> R {
    let t = theme::of(ui);
    let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), theme::BAR), Sense::hover());
    let y = if hairline_below {
        rect.bottom() - 0.5
    } else {
        rect.top() + 0.5
    };
    ui.painter()
        .hline(rect.x_range(), y, Stroke::new(1.0, t.line));
    let inner = rect.shrink2(vec2(12.0, 0.0));
    ui.scope_builder(
        egui::UiBuilder::new()
            .max_rect(inner)
            .layout(Layout::left_to_right(Align::Center)),
        |ui| {
            ui.set_clip_rect(ui.clip_rect().intersect(rect));
            add(ui)
        },
    )
    .inner
}

/// One row "key … value", the value right-aligned in mono.
pub fn key_value(ui: &mut Ui, key: &str, value: &str, hint: Option<&str>) -> Response {
    let t = theme::of(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 22.0), Sense::hover());
    let name = format!("{key}: {value}");
    response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, &name));
    let value_rect = super::draw(
        ui.painter(),
        pos2(rect.right(), rect.center().y),
        Align2::RIGHT_CENTER,
        value,
        theme::mono(),
        t.text,
    );
    let key_rect = Rect::from_min_max(rect.min, pos2(value_rect.left() - 8.0, rect.bottom()));
    super::draw_elided(
        ui.painter(),
        key_rect,
        Align::Min,
        key,
        theme::sans(),
        t.muted,
    );
    match hint {
        Some(hint) => response.on_hover_text(hint),
        None => response,
    }
}

/// A note with a coloured edge: a head, a sentence, and what can be done about it.
pub fn note_card(ui: &mut Ui, edge: Color32, head: &str, body: &str, add: impl FnOnce(&mut Ui)) {
    let t = theme::of(ui);
    Frame::new()
        .fill(theme::mix(t.panel, edge, 0.05))
        .stroke(Stroke::new(1.0, theme::mix(t.panel, edge, 0.7)))
        .corner_radius(CornerRadius::same(theme::RADIUS))
        .inner_margin(Margin::symmetric(10, 8))
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            ui.label(RichText::new(head).font(theme::strong()).color(edge));
            ui.label(RichText::new(body).font(theme::sans()).color(t.muted));
            add(ui);
        });
}

/// What an empty place says: a title, a sentence, and the buttons that fill it. Returns the pressed button's index.
pub fn empty_state(
    ui: &mut Ui,
    title: &str,
    body: &str,
    buttons: &[(&str, bool)],
) -> Option<usize> {
    let t = theme::of(ui);
    let mut pressed = None;
    let height = 150.0;
    ui.add_space(((ui.available_height() - height) * 0.42).max(8.0));
    ui.vertical_centered(|ui| {
        ui.set_max_width(ui.available_width().min(420.0));
        let (rect, _) = ui.allocate_exact_size(vec2(36.0, 36.0), Sense::hover());
        icons::paint(
            ui.painter(),
            icons::Icon::Flask,
            rect.center(),
            32.0,
            t.faint,
        );
        ui.add_space(4.0);
        ui.label(RichText::new(title).font(theme::title()).color(t.text));
        ui.label(RichText::new(body).font(theme::sans()).color(t.muted));
        ui.add_space(8.0);
        // Laid out by hand: a horizontal row inside a centred column would start at the left edge.
        let font = theme::sans();
        let widths: f32 = buttons
            .iter()
            .map(|(text, _)| super::text_width(ui.painter(), text, font.clone()) + 34.0)
            .sum();
        ui.horizontal(|ui| {
            ui.add_space(((ui.available_width() - widths) / 2.0).max(0.0));
            for (i, (text, primary)) in buttons.iter().enumerate() {
                let button = Button::new(text);
                let button = if *primary { button.primary() } else { button };
                if button.show(ui) {
                    pressed = Some(i);
                }
            }
        });
    });
    pressed
}
