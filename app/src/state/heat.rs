//! Colours of heat cells and the scales they are on, under the quantity that is looked at.

use super::{ColourBy, State};
use crate::widgets::number;
use limbeck_engine::sensitivity::{Candidate, Cell, Tier};

/// Where a heat cell's colour comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeatKind {
    /// Solid: measured, or exactly known.
    Known,
    /// Hatched: estimated from a layer's own error.
    Estimated,
    /// Hatched and paler: a proxy.
    Proxy,
    /// Empty outline.
    Unknown,
}

/// Colour of one heat cell: `value` 0..=1 along the heat scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heat {
    pub value: f32,
    pub kind: HeatKind,
}

/// A scale that cells are coloured on.
#[derive(Clone, Debug, PartialEq)]
pub struct Legend {
    pub low: String,
    pub high: String,
    /// The part of the heat scale in use.
    pub range: [f32; 2],
    /// The look of the cells it is for.
    pub kind: HeatKind,
}

/// Measured drop (fraction) at the hot end of the scale.
const HOT_DROP: f64 = 0.02;
/// Drop (fraction) with all layers changed but one, at the cold end of its logarithmic scale; its hot end is all of top-1.
const COLD_ALL_BUT: f64 = 0.001;
/// Estimated divergence (nats) at the ends of the scale: what loses some points, and what no one notices.
const HOT_NATS: f64 = 0.1;
const COLD_NATS: f64 = 1e-5;
/// Relative squared weight error at the hot end of the scale.
const HOT_ERROR: f64 = 0.3;
/// Weight noise (noise to signal) at the cold end of the proxies' own scale, which is logarithmic; its hot end is [`HOT_ERROR`].
const COLD_NOISE: f64 = 1e-4;
/// Proxies take the lower, paler part of the colours: noise in weights says little of accuracy.
const NOISE_SHARE: f64 = 0.5;

pub fn heat(state: &State, row: usize, candidate: Candidate) -> Heat {
    const UNKNOWN: Heat = Heat {
        value: 0.0,
        kind: HeatKind::Unknown,
    };
    let known = |value: f64| Heat {
        value: value.clamp(0.0, 1.0) as f32,
        kind: HeatKind::Known,
    };
    let Some(layer) = state.layers().get(row) else {
        return UNKNOWN;
    };
    let largest = state.derived.largest;
    let error = |cell: &Cell| (cell.value.max(0.0) / HOT_ERROR).sqrt().min(1.0);
    match state.view.colour_by {
        ColourBy::Sensitivity => match state.cell(row, candidate) {
            None => UNKNOWN,
            Some(cell) => match cell.tier {
                Tier::Measured => known(cell.value / HOT_DROP),
                Tier::Fisher => Heat {
                    value: divergence(cell.value) as f32,
                    kind: HeatKind::Estimated,
                },
                Tier::Local | Tier::Proxy => Heat {
                    value: noise(cell.value) as f32,
                    kind: HeatKind::Proxy,
                },
            },
        },
        ColourBy::AllBut => state.all_but(row, candidate).map_or(UNKNOWN, |cell| {
            known(log_place(cell.value, COLD_ALL_BUT, 1.0))
        }),
        ColourBy::Error => state
            .mirror
            .slot(row, candidate)
            .and_then(|slot| slot.proxy.as_ref())
            .map_or(UNKNOWN, |cell| known(error(cell))),
        // The layer's weights as the candidate would keep them, against the largest layer's at fp32. Pruned weights stay
        // where they are: masked zeros save nothing.
        ColourBy::Size if largest.params > 0 => {
            known(layer.params as f64 / largest.params as f64 * f64::from(bits(candidate)) / 32.0)
        }
        ColourBy::Macs if largest.macs > 0 => layer
            .macs
            .map_or(UNKNOWN, |macs| known(macs as f64 / largest.macs as f64)),
        ColourBy::Size | ColourBy::Macs => UNKNOWN,
    }
}

/// Place of a proxy on the heat scale.
fn noise(value: f64) -> f64 {
    NOISE_SHARE * log_place(value, COLD_NOISE, HOT_ERROR)
}

/// Place of an estimated divergence on the heat scale.
fn divergence(value: f64) -> f64 {
    log_place(value, COLD_NATS, HOT_NATS)
}

/// Place between the ends of a logarithmic scale, 0 to 1; what is no number is hot.
fn log_place(value: f64, cold: f64, hot: f64) -> f64 {
    let place = (value.max(cold) / cold).log10() / (hot / cold).log10();
    if value.is_nan() { 1.0 } else { place.min(1.0) }
}

fn bits(candidate: Candidate) -> u8 {
    match candidate {
        Candidate::Fp16 => 16,
        Candidate::Int8 => 8,
        Candidate::Int4 => 4,
        Candidate::P25 | Candidate::P50 | Candidate::P75 => 32,
    }
}

pub fn legend(state: &State) -> Vec<Legend> {
    let largest = state.derived.largest;
    let solid = |high: String| Legend {
        low: "0".into(),
        high,
        range: [0.0, 1.0],
        kind: HeatKind::Known,
    };
    match state.view.colour_by {
        ColourBy::Sensitivity => {
            let (measured, all) = state.map_progress();
            let estimated = state.mirror.estimated_cells();
            let mut scales = Vec::new();
            if measured > 0 {
                scales.push(solid("≥ 2 pt".into()));
            }
            if estimated > 0 {
                scales.push(Legend {
                    low: format!("{COLD_NATS:.0e}"),
                    high: format!("≥ {HOT_NATS} nats"),
                    range: [0.0, 1.0],
                    kind: HeatKind::Estimated,
                });
            }
            if measured + estimated < all {
                scales.push(Legend {
                    low: "noise".into(),
                    high: format!("≥ {:.0} %", HOT_ERROR * 100.0),
                    range: [0.0, NOISE_SHARE as f32],
                    kind: HeatKind::Proxy,
                });
            }
            scales
        }
        ColourBy::AllBut => vec![Legend {
            low: format!("≤ {} pt", COLD_ALL_BUT * 100.0),
            ..solid("100 pt".into())
        }],
        ColourBy::Error => vec![solid(format!("≥ {:.0} %", HOT_ERROR * 100.0))],
        ColourBy::Size => vec![solid(format!(
            "{} kB",
            number::kilobytes(largest.params * 4)
        ))],
        ColourBy::Macs => vec![solid(format!("{:.2} M", largest.macs as f64 / 1e6))],
    }
}
