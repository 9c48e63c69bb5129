//! How the workbench looks: colour tokens read once from `assets/theme.ron`, the shipped fonts, and egui styles for
//! dark and light made from them. Panels ask [`of`] for the tokens of the theme in force.

mod fonts;
mod style;

pub use fonts::{medium_mono, mono, mono_small, sans, small, strong, tiny, title};

use egui::{Color32, Context, Ui};
use serde::{Deserialize, Deserializer, de::Error as _};
use std::sync::LazyLock;

/// Height of a table row, points.
pub const ROW: f32 = 25.0;
/// Height of a bar: top bar, panel heads and feet.
pub const BAR: f32 = 40.0;
/// Height of buttons, chips and fields inside a bar.
pub const CONTROL: f32 = 26.0;
/// Corner radius of panels.
pub const RADIUS_PANEL: u8 = 8;
/// Corner radius of controls.
pub const RADIUS: u8 = 6;
/// Corner radius of cells and segments.
pub const RADIUS_CELL: u8 = 3;
/// The grid all distances sit on.
pub const GRID: f32 = 4.0;

/// The colours of one theme.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    #[serde(deserialize_with = "colour")]
    pub background: Color32,
    #[serde(deserialize_with = "colour")]
    pub panel: Color32,
    #[serde(deserialize_with = "colour")]
    pub raised: Color32,
    #[serde(deserialize_with = "colour")]
    pub line: Color32,
    #[serde(deserialize_with = "colour")]
    pub text: Color32,
    #[serde(deserialize_with = "colour")]
    pub muted: Color32,
    #[serde(deserialize_with = "colour")]
    pub faint: Color32,
    /// Copper: the plan, and every primary action.
    #[serde(deserialize_with = "colour")]
    pub accent: Color32,
    #[serde(deserialize_with = "colour")]
    pub accent_text: Color32,
    /// Text on a copper ground.
    #[serde(deserialize_with = "colour")]
    pub on_accent: Color32,
    /// Blue: what was measured.
    #[serde(deserialize_with = "colour")]
    pub measured: Color32,
    #[serde(deserialize_with = "colour")]
    pub pass: Color32,
    #[serde(deserialize_with = "colour")]
    pub fail: Color32,
    #[serde(deserialize_with = "colour")]
    pub warning: Color32,
    /// Ground of a selected row or segment.
    #[serde(deserialize_with = "colour")]
    pub selected: Color32,
    /// Knob of a slider.
    #[serde(deserialize_with = "colour")]
    pub knob: Color32,
    /// Heat scale at 0, ¼, ½, ¾ and 1.
    #[serde(deserialize_with = "colours")]
    pub heat: [Color32; 5],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Themes {
    dark: Tokens,
    light: Tokens,
}

static THEMES: LazyLock<Themes> = LazyLock::new(|| {
    ron::from_str(include_str!("../../../assets/theme.ron"))
        .expect("assets/theme.ron is part of the binary and a test reads it")
});

fn parse<E: serde::de::Error>(text: &str) -> Result<Color32, E> {
    Color32::from_hex(text).map_err(|e| E::custom(format!("colour {text:?}: {e:?}")))
}

fn colour<'de, D: Deserializer<'de>>(d: D) -> Result<Color32, D::Error> {
    parse(&String::deserialize(d)?)
}

fn colours<'de, D: Deserializer<'de>>(d: D) -> Result<[Color32; 5], D::Error> {
    let list = Vec::<String>::deserialize(d)?;
    let mut out = [Color32::BLACK; 5];
    if list.len() != out.len() {
        return Err(D::Error::invalid_length(list.len(), &"five colours"));
    }
    for (slot, text) in out.iter_mut().zip(&list) {
        *slot = parse::<D::Error>(text)?;
    }
    Ok(out)
}

impl Tokens {
    /// Colour of a heat of 0..=1 (clamped).
    pub fn heat(&self, value: f32) -> Color32 {
        let at = if value.is_nan() {
            0.0
        } else {
            value.clamp(0.0, 1.0) * 4.0
        };
        let low = (at.floor() as usize).min(3);
        mix(self.heat[low], self.heat[low + 1], at - low as f32)
    }

    /// Text colour that can be read on `ground`.
    pub fn on(&self, ground: Color32) -> Color32 {
        if luminance(ground) > 0.35 {
            Color32::from_rgb(0x16, 0x12, 0x10)
        } else {
            Color32::from_rgb(0xf2, 0xf4, 0xf7)
        }
    }
}

/// `a` at 0, `b` at 1, per channel in sRGB.
pub fn mix(a: Color32, b: Color32, t: f32) -> Color32 {
    let lerp = |x: u8, y: u8| {
        (f32::from(x) + (f32::from(y) - f32::from(x)) * t)
            .round()
            .clamp(0.0, 255.0) as u8
    };
    Color32::from_rgb(lerp(a.r(), b.r()), lerp(a.g(), b.g()), lerp(a.b(), b.b()))
}

/// Relative luminance (WCAG), 0..=1.
pub fn luminance(c: Color32) -> f32 {
    let linear = |v: u8| {
        let v = f32::from(v) / 255.0;
        if v <= 0.040_45 {
            v / 12.92
        } else {
            ((v + 0.055) / 1.055).powf(2.4)
        }
    };
    0.2126 * linear(c.r()) + 0.7152 * linear(c.g()) + 0.0722 * linear(c.b())
}

/// The dark or the light tokens.
pub fn tokens(dark: bool) -> &'static Tokens {
    if dark { &THEMES.dark } else { &THEMES.light }
}

/// The tokens of the theme `ui` is drawn in.
pub fn of(ui: &Ui) -> &'static Tokens {
    tokens(ui.visuals().dark_mode)
}

/// Installs fonts and both styles; call once when the window is made. Which of the two is in force is egui's own
/// theme preference (`Context::set_theme`).
pub fn install(ctx: &Context) {
    ctx.set_fonts(fonts::definitions());
    ctx.set_style_of(egui::Theme::Dark, style::style(tokens(true), true));
    ctx.set_style_of(egui::Theme::Light, style::style(tokens(false), false));
}

/// The application's icon (the flask of the logo on its ground), for the window system.
pub fn icon() -> egui::IconData {
    crate::widgets::icons::app_icon(128)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contrast(a: Color32, b: Color32) -> f32 {
        let (x, y) = (luminance(a), luminance(b));
        (x.max(y) + 0.05) / (x.min(y) + 0.05)
    }

    #[test]
    fn text_is_readable_on_every_ground_it_stands_on() {
        for t in [tokens(true), tokens(false)] {
            for ground in [t.background, t.panel, t.raised, t.selected] {
                assert!(contrast(t.text, ground) > 7.0);
                assert!(
                    contrast(t.muted, ground) > 4.2,
                    "{:?}",
                    contrast(t.muted, ground)
                );
            }
            for colour in [t.accent_text, t.pass, t.fail, t.warning, t.measured] {
                assert!(contrast(colour, t.panel) > 4.2, "{colour:?}");
            }
            assert!(contrast(t.on_accent, t.accent) > 4.2);
        }
    }

    #[test]
    fn heat_is_exact_at_its_stops_and_steady_in_lightness() {
        for (t, rising) in [(tokens(true), true), (tokens(false), false)] {
            for (i, stop) in t.heat.iter().enumerate() {
                assert_eq!(t.heat(i as f32 / 4.0), *stop);
            }
            for i in 0..100 {
                let (a, b) = (
                    luminance(t.heat(i as f32 / 100.0)),
                    luminance(t.heat((i + 1) as f32 / 100.0)),
                );
                assert!(if rising { b >= a - 1e-3 } else { b <= a + 1e-3 });
            }
            assert_eq!(t.heat(f32::NAN), t.heat[0]);
            assert_eq!(t.heat(9.0), t.heat[4]);
        }
    }
}
