//! A compact slider for a share of 0..=max with its value written beside it.

use crate::theme;
use egui::{
    Align2, EventFilter, Id, Key, Rect, Role, Sense, Stroke, Ui, WidgetInfo, accesskit::Action,
    pos2,
};

/// What the slider's user did in this frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SliderEvent {
    /// The value while dragging; more will come.
    Changed(f32),
    /// The value is let go (or was set by a key): the edit is complete.
    Committed(f32),
}

/// `grain`: what values are multiples of; `text`: what stands right of the rail, `name`: its accessible name. `disabled`: why it can't be moved.
#[allow(clippy::too_many_arguments)]
pub fn ratio_slider(
    ui: &mut Ui,
    rect: Rect,
    id: Id,
    value: f32,
    max: f32,
    grain: f32,
    text: &str,
    disabled: Option<&str>,
    name: impl Fn() -> String,
) -> Option<SliderEvent> {
    let t = theme::of(ui);
    let enabled = disabled.is_none() && ui.is_enabled();
    let value_width = 38.0;
    let rail = Rect::from_min_max(
        pos2(rect.left() + 6.0, rect.center().y - 1.0),
        pos2(rect.right() - value_width - 6.0, rect.center().y + 1.0),
    );
    let touch = Rect::from_min_max(rect.min, pos2(rail.right() + 6.0, rect.bottom()));
    let sense = if enabled {
        Sense::click_and_drag()
    } else {
        Sense::hover()
    };
    let response = ui.interact(touch, id, sense);
    response.widget_info(|| WidgetInfo {
        enabled,
        label: Some(name()),
        value: Some(f64::from(value)),
        ..WidgetInfo::new(Role::Slider)
    });
    let mut event = None;
    if enabled {
        event = pointer(&response, rail, value, max, grain)
            .or_else(|| keys(ui, &response, value, max, grain));
        ui.ctx().accesskit_node_builder(response.id, |node| {
            node.set_min_numeric_value(0.0);
            node.set_max_numeric_value(f64::from(max));
            node.set_numeric_value_step(f64::from(grain));
            node.add_action(Action::SetValue);
            node.add_action(Action::Increment);
            node.add_action(Action::Decrement);
        });
    }
    let shown = match event {
        Some(SliderEvent::Changed(v) | SliderEvent::Committed(v)) => v,
        None => value,
    };
    let response = match disabled {
        Some(why) => response.on_hover_text(why),
        None => response,
    };

    let painter = ui.painter();
    let at = rail.left() + rail.width() * (shown / max).clamp(0.0, 1.0);
    painter.rect_filled(rail, 1.0, t.line);
    if shown > 0.0 {
        let done = Rect::from_min_max(rail.min, pos2(at, rail.bottom()));
        painter.rect_filled(done, 1.0, if enabled { t.accent } else { t.faint });
    }
    let radius = if response.hovered() || response.dragged() {
        5.5
    } else {
        4.5
    };
    let knob = if enabled { t.knob } else { t.faint };
    painter.circle_filled(pos2(at, rail.center().y), radius, knob);
    if response.has_focus() {
        painter.circle_stroke(
            pos2(at, rail.center().y),
            radius + 2.0,
            Stroke::new(1.0, t.measured),
        );
    }
    super::draw(
        painter,
        pos2(rect.right(), rect.center().y),
        Align2::RIGHT_CENTER,
        text,
        theme::mono(),
        if shown > 0.0 { t.text } else { t.muted },
    );
    event
}

/// The nearest multiple within 0..=max. Grains are unit fractions: by their number a multiple is as exact as it can be.
fn snap(value: f32, max: f32, grain: f32) -> f32 {
    let of = (1.0 / grain).round();
    let most = (max * of + 1e-3).floor();
    (value * of).round().clamp(0.0, most) / of
}

fn pointer(
    response: &egui::Response,
    rail: Rect,
    value: f32,
    max: f32,
    grain: f32,
) -> Option<SliderEvent> {
    let at = response.interact_pointer_pos().map(|p| {
        let share = (p.x - rail.left()) / rail.width().max(1.0);
        snap(share * max, max, grain)
    });
    if response.drag_stopped() || response.clicked() {
        return Some(SliderEvent::Committed(at.unwrap_or(value)));
    }
    if response.dragged() {
        return at.filter(|v| *v != value).map(SliderEvent::Changed);
    }
    None
}

fn keys(
    ui: &Ui,
    response: &egui::Response,
    value: f32,
    max: f32,
    grain: f32,
) -> Option<SliderEvent> {
    let mut next = value;
    if response.has_focus() {
        ui.memory_mut(|m| {
            m.set_focus_lock_filter(
                response.id,
                EventFilter {
                    horizontal_arrows: true,
                    ..Default::default()
                },
            );
        });
        ui.input(|input| {
            let step = match input.modifiers.shift {
                true => grain * (0.1 / grain).round().max(1.0),
                false => grain,
            };
            next += step * input.num_presses(Key::ArrowRight) as f32;
            next -= step * input.num_presses(Key::ArrowLeft) as f32;
            if input.key_pressed(Key::Home) {
                next = 0.0;
            }
            if input.key_pressed(Key::End) {
                next = max;
            }
        });
    }
    ui.input(|input| {
        next += grain * input.num_accesskit_action_requests(response.id, Action::Increment) as f32;
        next -= grain * input.num_accesskit_action_requests(response.id, Action::Decrement) as f32;
        for request in input.accesskit_action_requests(response.id, Action::SetValue) {
            if let Some(egui::accesskit::ActionData::NumericValue(v)) = request.data {
                next = v as f32;
            }
        }
    });
    // What was no multiple stays until it is moved.
    if next == value {
        return None;
    }
    let next = snap(next, max, grain);
    (next != value).then_some(SliderEvent::Committed(next))
}
