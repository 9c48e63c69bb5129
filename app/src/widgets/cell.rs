//! A heat cell: solid where measured, hatched and paler where estimated, an empty outline where nothing is known.

use crate::theme::{self, Tokens};
use egui::{
    Color32, ColorImage, Context, CornerRadius, Id, Painter, Rect, Stroke, StrokeKind,
    TextureHandle, TextureId, TextureOptions, TextureWrapMode, epaint::RectShape, pos2,
};

/// What a cell shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CellLook {
    /// Measured.
    Solid(Color32),
    /// Estimated or proxy.
    Hatched(Color32),
    /// Not known.
    Outline,
}

/// Points one tile of the hatch covers.
const TILE: f32 = 5.0;

/// The hatch: white stripes at 45° on nothing, tinted when drawn. Made once a context.
pub fn hatch_texture(ctx: &Context) -> TextureId {
    let key = Id::unique("limbeck-hatch");
    if let Some(handle) = ctx.data(|d| d.get_temp::<TextureHandle>(key)) {
        return handle.id();
    }
    const SIZE: usize = 32;
    const SUB: usize = 4;
    let mut image = ColorImage::filled([SIZE, SIZE], Color32::TRANSPARENT);
    for y in 0..SIZE {
        for x in 0..SIZE {
            // Coverage of a stripe that fills 42 % of the period, by sub-samples.
            let hits = (0..SUB)
                .filter(|s| {
                    let at = (x + y) as f32 + (*s as f32 + 0.5) / SUB as f32;
                    (at / SIZE as f32).fract() < 0.42
                })
                .count();
            let alpha = (hits * 255 / SUB) as u8;
            image[(x, y)] = Color32::from_white_alpha(alpha);
        }
    }
    let options = TextureOptions {
        wrap_mode: TextureWrapMode::Repeat,
        ..TextureOptions::LINEAR
    };
    let handle = ctx.load_texture("hatch", image, options);
    let id = handle.id();
    ctx.data_mut(|d| d.insert_temp(key, handle));
    id
}

/// Draws a cell; `hatch` is [`hatch_texture`].
pub fn heat_cell(painter: &Painter, rect: Rect, look: CellLook, t: &Tokens, hatch: TextureId) {
    let radius = CornerRadius::same(theme::RADIUS_CELL);
    match look {
        CellLook::Solid(colour) => {
            painter.rect_filled(rect, radius, colour);
        }
        CellLook::Hatched(colour) => {
            painter.rect_filled(rect, radius, theme::mix(t.panel, colour, 0.22));
            // A stripe keeps a little of the text colour: the coolest heat is nearly the panel's own.
            let stripe = theme::mix(theme::mix(t.panel, t.text, 0.08), colour, 0.68);
            let uv = Rect::from_min_max(
                pos2(rect.left() / TILE, rect.top() / TILE),
                pos2(rect.right() / TILE, rect.bottom() / TILE),
            );
            // Whole tiles taken off keep the coordinates small without moving the stripes.
            let uv = uv.translate(-uv.min.to_vec2().floor());
            painter.add(RectShape::filled(rect, radius, stripe).with_texture(hatch, uv));
        }
        CellLook::Outline => {
            painter.rect_stroke(rect, radius, Stroke::new(1.0, t.line), StrokeKind::Inside);
        }
    }
}
