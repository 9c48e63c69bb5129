//! Buttons of the workbench: plain, primary, quiet; chips; icon buttons; tabs. A disabled one says why on hover.

use super::icons::{self, Icon};
use crate::theme;
use egui::{
    Align2, Color32, CornerRadius, FontId, Rect, Response, Role, Sense, Stroke, StrokeKind, Ui,
    WidgetInfo, pos2, vec2,
};

/// How much a button calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Raised, with a hairline.
    Plain,
    /// Copper ground: the one action a place is for.
    Primary,
    /// No ground until hovered.
    Quiet,
}

/// A button with a text.
pub struct Button<'a> {
    text: &'a str,
    kind: Kind,
    disabled: Option<&'a str>,
    name: Option<&'a str>,
    hint: Option<&'a str>,
    height: f32,
}

impl<'a> Button<'a> {
    /// A plain button; `text` is also its accessible name.
    pub fn new(text: &'a str) -> Self {
        Self {
            text,
            kind: Kind::Plain,
            disabled: None,
            name: None,
            hint: None,
            height: theme::CONTROL,
        }
    }
    /// The primary action.
    pub fn primary(mut self) -> Self {
        self.kind = Kind::Primary;
        self
    }
    /// Without a ground.
    pub fn quiet(mut self) -> Self {
        self.kind = Kind::Quiet;
        self
    }
    /// Not to be pressed, and why.
    pub fn disabled(mut self, why: Option<&'a str>) -> Self {
        self.disabled = why;
        self
    }
    /// Accessible name, where the text alone says too little.
    pub fn name(mut self, name: &'a str) -> Self {
        self.name = Some(name);
        self
    }
    /// What hovering says.
    pub fn hint(mut self, hint: &'a str) -> Self {
        self.hint = Some(hint);
        self
    }
    /// Lower, for bars inside panels.
    pub fn low(mut self) -> Self {
        self.height = 22.0;
        self
    }
    /// Draws it; true when pressed.
    pub fn show(self, ui: &mut Ui) -> bool {
        self.response(ui).clicked()
    }
    /// Draws it.
    pub fn response(self, ui: &mut Ui) -> Response {
        let t = theme::of(ui);
        let enabled = self.disabled.is_none() && ui.is_enabled();
        let font = if self.kind == Kind::Primary {
            theme::strong()
        } else {
            theme::sans()
        };
        let width = super::text_width(ui.painter(), self.text, font.clone()).ceil();
        let pad = if self.kind == Kind::Quiet { 8.0 } else { 12.0 };
        let sense = if enabled {
            Sense::click()
        } else {
            Sense::hover()
        };
        let (rect, response) = ui.allocate_exact_size(vec2(width + 2.0 * pad, self.height), sense);
        let name = self.name.unwrap_or(self.text);
        response.widget_info(|| WidgetInfo::labeled(Role::Button, enabled, name));
        let colour = ground(ui, rect, &response, self.kind, enabled);
        super::draw(
            ui.painter(),
            rect.center(),
            Align2::CENTER_CENTER,
            self.text,
            font,
            if enabled { colour } else { t.faint },
        );
        match (self.disabled, self.hint) {
            (Some(why), _) => response.on_hover_text(why),
            (None, Some(hint)) => response.on_hover_text(hint),
            _ => response,
        }
    }
}

/// Paints a button's ground and says the colour of what stands on it.
fn ground(ui: &Ui, rect: Rect, response: &Response, kind: Kind, enabled: bool) -> Color32 {
    let t = theme::of(ui);
    let radius = CornerRadius::same(theme::RADIUS);
    let painter = ui.painter();
    let hovered = enabled && response.hovered();
    let down = enabled && response.is_pointer_button_down_on();
    let lift = if down {
        0.14
    } else if hovered {
        0.07
    } else {
        0.0
    };
    let (fill, edge, text) = match kind {
        Kind::Primary if enabled => (theme::mix(t.accent, t.text, lift), None, t.on_accent),
        Kind::Primary | Kind::Plain => (
            theme::mix(t.raised, t.text, lift),
            Some(theme::mix(t.line, t.text, lift * 2.0)),
            t.text,
        ),
        Kind::Quiet if hovered || down => (theme::mix(t.raised, t.text, lift / 2.0), None, t.text),
        Kind::Quiet => (Color32::TRANSPARENT, None, t.muted),
    };
    painter.rect_filled(rect, radius, fill);
    if let Some(edge) = edge {
        painter.rect_stroke(rect, radius, Stroke::new(1.0, edge), StrokeKind::Inside);
    }
    if response.has_focus() {
        painter.rect_stroke(
            rect.expand(1.0),
            radius,
            Stroke::new(1.0, t.measured),
            StrokeKind::Outside,
        );
    }
    text
}

/// A chip of several runs of text (text, font, colour), pressed like a button. `edge`: colour of its line and its faint ground.
pub fn chip(
    ui: &mut Ui,
    runs: &[(&str, FontId, Color32)],
    edge: Option<Color32>,
    name: &str,
) -> Response {
    let t = theme::of(ui);
    let painter = ui.painter().clone();
    let galleys: Vec<_> = runs
        .iter()
        .map(|(text, font, colour)| {
            (
                painter.layout_no_wrap((*text).to_owned(), font.clone(), *colour),
                *colour,
            )
        })
        .collect();
    let width: f32 = galleys.iter().map(|(g, _)| g.size().x).sum();
    let (rect, response) =
        ui.allocate_exact_size(vec2(width.ceil() + 20.0, theme::CONTROL), Sense::click());
    response.widget_info(|| WidgetInfo::labeled(Role::Button, ui.is_enabled(), name));
    let lift = if response.hovered() { 0.07 } else { 0.0 };
    let (fill, line) = match edge {
        Some(c) => (
            theme::mix(t.panel, c, 0.10 + lift),
            theme::mix(t.panel, c, 0.65),
        ),
        None => (
            theme::mix(t.raised, t.text, lift),
            theme::mix(t.line, t.text, lift * 2.0),
        ),
    };
    let radius = CornerRadius::same(theme::RADIUS);
    painter.rect(
        rect,
        radius,
        fill,
        Stroke::new(1.0, line),
        StrokeKind::Inside,
    );
    if response.has_focus() {
        painter.rect_stroke(
            rect.expand(1.0),
            radius,
            Stroke::new(1.0, t.measured),
            StrokeKind::Outside,
        );
    }
    let mut x = rect.left() + 10.0;
    for (galley, colour) in galleys {
        let y = rect.center().y - galley.size().y / 2.0;
        let width = galley.size().x;
        painter.galley(pos2(x, y), galley, colour);
        x += width;
    }
    response
}

/// A square button with a drawn icon; true when pressed. `hint` says what it does and its shortcut.
pub fn icon_button(
    ui: &mut Ui,
    icon: Icon,
    name: &str,
    hint: &str,
    disabled: Option<&str>,
) -> bool {
    let t = theme::of(ui);
    let enabled = disabled.is_none() && ui.is_enabled();
    let sense = if enabled {
        Sense::click()
    } else {
        Sense::hover()
    };
    let (rect, response) = ui.allocate_exact_size(vec2(24.0, theme::CONTROL), sense);
    response.widget_info(|| WidgetInfo::labeled(Role::Button, enabled, name));
    let colour = ground(ui, rect, &response, Kind::Quiet, enabled);
    let colour = if enabled { colour } else { t.faint };
    icons::paint(ui.painter(), icon, rect.center(), 14.0, colour);
    let clicked = response.clicked();
    response.on_hover_text(disabled.unwrap_or(hint));
    clicked
}

/// A tab in a panel's head; true when pressed.
pub fn tab(ui: &mut Ui, text: &str, chosen: bool) -> bool {
    let t = theme::of(ui);
    let width = super::text_width(ui.painter(), text, theme::strong()).ceil();
    let (rect, response) = ui.allocate_exact_size(vec2(width, theme::BAR), Sense::click());
    response.widget_info(|| WidgetInfo::selected(Role::Tab, true, chosen, text));
    let (font, colour) = match (chosen, response.hovered()) {
        (true, _) => (theme::strong(), t.text),
        (false, true) => (theme::sans(), t.text),
        (false, false) => (theme::sans(), t.muted),
    };
    super::draw(
        ui.painter(),
        pos2(rect.left(), rect.center().y),
        Align2::LEFT_CENTER,
        text,
        font,
        colour,
    );
    if chosen || response.has_focus() {
        let colour = if chosen { t.accent } else { t.measured };
        ui.painter().hline(
            rect.x_range(),
            rect.bottom() - 1.0,
            Stroke::new(2.0, colour),
        );
    }
    response.clicked()
}
