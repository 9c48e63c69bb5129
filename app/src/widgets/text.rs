//! Text painted at a place: vertically centred in a row, cut with an ellipsis where it does not fit.

use crate::theme;
use egui::{
    Align, Align2, Color32, FontId, Galley, Painter, Pos2, Rect, Response, RichText, Ui, pos2,
    text::{LayoutJob, TextWrapping},
};
use std::sync::Arc;

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
    let cut = galley.elided;
    put(painter, rect, align, galley, colour);
    cut
}

fn put(painter: &Painter, rect: Rect, align: Align, galley: Arc<Galley>, colour: Color32) {
    let y = rect.center().y - galley.size().y / 2.0;
    let x = match align {
        Align::Min => rect.left(),
        Align::Center => rect.center().x - galley.size().x / 2.0,
        Align::Max => rect.right() - galley.size().x,
    };
    painter.galley(pos2(x, y), galley, colour);
}

/// One line of `text`, if it is no wider than `width`. What is far too wide is told from its letters, without laying it out.
fn fitting(
    painter: &Painter,
    width: f32,
    text: &str,
    font: &FontId,
    colour: Color32,
) -> Option<Arc<Galley>> {
    // Letters stand a little closer together than this, or a little further.
    const KERNING: f32 = 1.05;
    let letters: f32 = painter.fonts_mut(|fonts| {
        let each = text.chars().map(|c| fonts.glyph_width(font, c));
        each.sum()
    });
    if letters > width * KERNING {
        return None;
    }
    let galley = painter.layout_no_wrap(text.to_owned(), font.clone(), colour);
    (galley.size().x <= width).then_some(galley)
}

/// As [`draw_elided`] from the left edge, but cut in the middle: names often differ at their ends.
pub fn draw_elided_middle(
    painter: &Painter,
    rect: Rect,
    text: &str,
    font: FontId,
    colour: Color32,
) -> bool {
    let fits = |text: &str| fitting(painter, rect.width(), text, &font, colour);
    if let Some(whole) = fits(text) {
        put(painter, rect, Align::Min, whole, colour);
        return false;
    }
    let chars: Vec<char> = text.chars().collect();
    // Of `keep` letters a third stands before the gap.
    let cut = |keep: usize| -> String {
        let head = keep / 3;
        let tail = chars.len() - (keep - head);
        let (head, tail) = (chars.iter().take(head), chars.iter().skip(tail));
        head.chain(['…'].iter()).chain(tail).collect()
    };
    let (mut low, mut high) = (0, chars.len().saturating_sub(1));
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(&cut(middle)).is_some() {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    draw_elided(painter, rect, Align::Min, &cut(low), font, colour);
    true
}

/// Draws a name of parts that ends in `/kind` or not: where it does not fit, the kind goes, then words are shortened so that the
/// numbers that tell names apart stay; cut in the middle where that is not enough. True: it is not the whole name.
pub fn draw_name(
    painter: &Painter,
    rect: Rect,
    name: &str,
    kind: &str,
    font: FontId,
    colour: Color32,
) -> bool {
    let fits = |text: &str| fitting(painter, rect.width(), text, &font, colour);
    if let Some(whole) = fits(name) {
        put(painter, rect, Align::Min, whole, colour);
        return false;
    }
    let bare = without_kind(name, kind);
    let mut shorter = std::iter::once(bare.to_owned())
        .chain((1..=8).rev().map(|letters| short_words(bare, letters)));
    match shorter.find_map(|text| fits(&text)) {
        Some(short) => put(painter, rect, Align::Min, short, colour),
        None => {
            draw_elided_middle(painter, rect, &short_words(bare, 1), font, colour);
        }
    }
    true
}

/// `/block.3/conv/Conv` of kind `Conv` without what says nothing: `block.3/conv`.
fn without_kind<'a>(name: &'a str, kind: &str) -> &'a str {
    let bare = name
        .strip_suffix(kind)
        .and_then(|rest| rest.strip_suffix('/'));
    let bare = bare.unwrap_or(name).trim_start_matches('/');
    if bare.is_empty() { name } else { bare }
}

/// The first `letters` of every word; digits and signs stay.
fn short_words(name: &str, letters: usize) -> String {
    let mut run = 0;
    name.chars()
        .filter(|c| {
            run = if c.is_alphabetic() { run + 1 } else { 0 };
            run <= letters
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::{short_words, without_kind};

    #[test]
    fn short_names_keep_their_numbers() {
        let short = |block: u32| short_words(&format!("/_blocks.{block}/_depthwise_conv/Conv"), 2);
        assert_eq!(short(10), "/_bl.10/_de_co/Co");
        assert_ne!(short(10), short(11));
        assert_eq!(without_kind("/block.3/conv/Conv", "Conv"), "block.3/conv");
        assert_eq!(without_kind("Conv", "Conv"), "Conv");
        assert_eq!(without_kind("/Conv", "Conv"), "/Conv");
        assert_eq!(short_words("layer3.2.conv2", 8), "layer3.2.conv2");
    }
}
