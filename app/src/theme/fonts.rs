//! The shipped fonts. IBM Plex Sans Thai comes first in its family because egui takes the row height from a family's first
//! font: as a fallback its marks above and below would be cut off. Every number is set in IBM Plex Mono.

use egui::{FontData, FontDefinitions, FontFamily, FontId, FontTweak};
use std::sync::Arc;

const SANS: &[u8] = include_bytes!("../../../assets/fonts/IBMPlexSansThai_400Regular.ttf");
const SANS_SEMIBOLD: &[u8] =
    include_bytes!("../../../assets/fonts/IBMPlexSansThai_600SemiBold.ttf");
const MONO: &[u8] = include_bytes!("../../../assets/fonts/IBMPlexMono_400Regular.ttf");
const MONO_MEDIUM: &[u8] = include_bytes!("../../../assets/fonts/IBMPlexMono_500Medium.ttf");

const STRONG_FAMILY: &str = "plex-sans-semibold";
const MEDIUM_MONO_FAMILY: &str = "plex-mono-medium";

/// Body text, 13.
pub fn sans() -> FontId {
    FontId::new(13.0, FontFamily::Proportional)
}
/// Notes and captions, 11.5.
pub fn small() -> FontId {
    FontId::new(11.5, FontFamily::Proportional)
}
/// Heads of the narrowest columns, 10.5.
pub fn tiny() -> FontId {
    FontId::new(10.5, FontFamily::Proportional)
}
/// Names and active tabs, 13 semibold.
pub fn strong() -> FontId {
    FontId::new(13.0, FontFamily::Name(STRONG_FAMILY.into()))
}
/// Head of a dialog or an empty state, 16 semibold.
pub fn title() -> FontId {
    FontId::new(16.0, FontFamily::Name(STRONG_FAMILY.into()))
}
/// Numbers, 12.
pub fn mono() -> FontId {
    FontId::new(12.0, FontFamily::Monospace)
}
/// Numbers in captions and on axes, 11.
pub fn mono_small() -> FontId {
    FontId::new(11.0, FontFamily::Monospace)
}
/// Numbers that matter, 12 medium.
pub fn medium_mono() -> FontId {
    FontId::new(12.0, FontFamily::Name(MEDIUM_MONO_FAMILY.into()))
}

/// Plex first in every family, egui's own fonts behind them for what a file's names may contain.
pub(super) fn definitions() -> FontDefinitions {
    let mut fonts = FontDefinitions::default();
    // Plex Sans Thai carries room for Thai marks in its line; lowered a little its capitals sit on a row's middle, level with Mono.
    let lowered = FontTweak {
        y_offset_factor: 0.05,
        ..Default::default()
    };
    for (name, bytes, tweak) in [
        ("plex-sans", SANS, lowered.clone()),
        ("plex-sans-semibold", SANS_SEMIBOLD, lowered),
        ("plex-mono", MONO, FontTweak::default()),
        ("plex-mono-medium", MONO_MEDIUM, FontTweak::default()),
    ] {
        let data = FontData::from_static(bytes).tweak(tweak);
        fonts.font_data.insert(name.to_owned(), Arc::new(data));
    }
    let fallback = |family: &FontFamily, fonts: &FontDefinitions| {
        fonts.families.get(family).cloned().unwrap_or_default()
    };
    let proportional = fallback(&FontFamily::Proportional, &fonts);
    let monospace = fallback(&FontFamily::Monospace, &fonts);
    let chain = |first: &[&str], rest: &[String]| {
        first
            .iter()
            .map(|s| (*s).to_owned())
            .chain(rest.iter().cloned())
            .collect::<Vec<_>>()
    };
    fonts.families.insert(
        FontFamily::Proportional,
        chain(&["plex-sans"], &proportional),
    );
    fonts.families.insert(
        FontFamily::Monospace,
        chain(&["plex-mono", "plex-sans"], &monospace),
    );
    fonts.families.insert(
        FontFamily::Name(STRONG_FAMILY.into()),
        chain(&["plex-sans-semibold", "plex-sans"], &proportional),
    );
    fonts.families.insert(
        FontFamily::Name(MEDIUM_MONO_FAMILY.into()),
        chain(&["plex-mono-medium", "plex-mono", "plex-sans"], &monospace),
    );
    fonts
}
