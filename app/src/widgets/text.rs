//! Text painted at a place: vertically centred in a row, cut with an ellipsis where it does not fit.

use crate::theme;
use egui::{
    Align, Align2, Color32, FontId, Painter, Pos2, Rect, Response, RichText, Ui, pos2,
    text::{LayoutJob, TextWrapping},
};

/// Draws `text` at `pos` and returns where it stands.
pub fn draw(
    painter: &Painter,
    pos: Pos2,
    anchor: Align2,
    text: impl Into<String>,
    font: FontId,
    colour: Color32,
) -> Rect {
    let galley = painter.layout_no_wrap(text.into(), font, colour);
    let rect = anchor.anchor_size(pos, galley.size());
    painter.galley(rect.min, galley, colour);
    rect
}

/// Draws one line of `text` inside `rect`, vertically centred, cut with … where it is too long. True: it was cut.
pub fn draw_elided(
    painter: &Painter,
    rect: Rect,
    align: Align,
    text: &str,
    font: FontId,
    colour: Color32,
) -> bool {
    let mut job = LayoutJob::simple_singleline(text.to_owned(), font, colour);
    job.wrap = TextWrapping::truncate_at_width(rect.width().max(0.0));
    let galley = painter.layout_job(job);
    let y = rect.center().y - galley.size().y / 2.0;
    let x = match align {
        Align::Min => rect.left(),
        Align::Center => rect.center().x - galley.size().x / 2.0,
        Align::Max => rect.right() - galley.size().x,
    };
    let cut = galley.elided;
    painter.galley(pos2(x, y), galley, colour);
    cut
}

/// Width of one line of `text`.
pub fn text_width(painter: &Painter, text: &str, font: FontId) -> f32 {
    painter
        .layout_no_wrap(text.to_owned(), font, Color32::WHITE)
        .size()
        .x
}

/// A label in the quiet colour.
pub fn muted_label(ui: &mut Ui, text: impl Into<String>) -> Response {
    let colour = theme::of(ui).muted;
    ui.label(RichText::new(text).font(theme::sans()).color(colour))
}

/// A label for numbers.
pub fn mono_label(ui: &mut Ui, text: impl Into<String>, colour: Color32) -> Response {
    ui.label(RichText::new(text).font(theme::mono()).color(colour))
}
