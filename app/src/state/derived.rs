//! What follows from document, mirror and view: rows shown, prediction, front, verdict, colours. Worked out when something
//! changed, kept until the next change.

use super::{ColourBy, PlanVerdict, PlotAxis, PointId, Sort, SortKey, State, verdict};
use crate::widgets::number;
use limbeck_engine::{
    compress::{LayerSetting, QuantScheme},
    data::SplitName,
    graph::LayerId,
    measure::Bytes,
    recipe::Step,
    search::{self, LayerFacts, Prediction},
    sensitivity::{Candidate, Cell, Tier},
};
use std::path::Path;

/// Where a heat cell's colour comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeatKind {
    /// Solid: measured, or exactly known.
    Known,
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

/// The predicted place of the present plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PredictedPoint {
    /// kB or million MACs, by the chosen axis.
    pub x: f64,
    /// Top-1 in percent on the split shown; `None` while a layer's drop is not known.
    pub top1: Option<f64>,
    /// Layers whose drop is interpolated.
    pub approximate: usize,
}

/// Measured drop (fraction) at the hot end of the scale.
const HOT_DROP: f64 = 0.02;
/// Relative squared weight error at the hot end of the scale.
const HOT_ERROR: f64 = 0.3;
/// Weight noise (noise to signal) at the cold end of the proxies' own scale, which is logarithmic; its hot end is [`HOT_ERROR`].
const COLD_NOISE: f64 = 1e-4;
/// Proxies take the lower, paler part of the colours: noise in weights says little of accuracy.
const NOISE_SHARE: f64 = 0.5;

#[derive(Debug, Default)]
pub struct Derived {
    pub visible: Vec<usize>,
    pub prediction: Option<Prediction>,
    pub predicted: Option<PredictedPoint>,
    pub front: Vec<PointId>,
    pub verdict: Option<PlanVerdict>,
    pub steps: Vec<Step>,
    pub steps_distilled: Vec<Step>,
    largest: Largest,
    /// Lower-case `name op shape` of every layer, for the filter.
    haystack: Vec<String>,
    rows_key: Option<RowsKey>,
    plan_key: Option<(u64, super::Document)>,
    prediction_cells: u64,
    points_key: Option<(u64, PlotAxis, SplitName)>,
    model_version: u64,
}

impl Derived {
    /// (parameters, MACs) of the largest layers.
    pub(super) fn largest(&self) -> (u64, u64) {
        (self.largest.params, self.largest.macs)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Largest {
    params: u64,
    macs: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct RowsKey {
    filter: String,
    sort: Sort,
    /// Candidate columns sort by what colours them.
    colour_by: Option<ColourBy>,
    /// Only where the sort looks at them.
    cells: u64,
    plan: u64,
}

pub fn refresh(state: &mut State) {
    let mirror = &state.mirror;
    let derived = &mut state.derived;
    let new_model = derived.model_version != mirror.model_version;
    if new_model {
        derived.model_version = mirror.model_version;
        derived.rows_key = None;
        derived.plan_key = None;
        derived.points_key = None;
        let layers = mirror.layers();
        derived.largest = Largest {
            params: layers.iter().map(|layer| layer.params).max().unwrap_or(0),
            macs: layers
                .iter()
                .filter_map(|layer| layer.macs)
                .max()
                .unwrap_or(0),
        };
        derived.haystack = layers.iter().map(haystack).collect();
    }

    // The plan, and what it is thought to give.
    let plan_changed = match &derived.plan_key {
        Some((_, document)) => *document != state.document,
        None => true,
    };
    if plan_changed {
        let generation = derived.plan_key.as_ref().map_or(0, |(n, _)| *n) + 1;
        let steps = |with_distil| {
            let nowhere = Path::new("");
            state
                .document
                .recipe("", nowhere, nowhere, mirror.layers(), with_distil)
                .steps
        };
        derived.steps = steps(false);
        derived.steps_distilled = steps(true);
        derived.plan_key = Some((generation, state.document.clone()));
    }
    let cells_changed = derived.prediction_cells != mirror.cells_version;
    if plan_changed || cells_changed || new_model {
        derived.prediction_cells = mirror.cells_version;
        derived.prediction = mirror.model.as_ref().map(|model| {
            let cells: Vec<Cell> = mirror.best_cells().cloned().collect();
            let plan = &state.document.plan;
            let mut prediction = search::predict(
                &model.layers,
                plan,
                &state.document.scheme,
                &cells,
                model.overhead,
            );
            // The map is measured with the default scheme: under another one its quantised cells are neighbours only.
            if state.document.scheme != QuantScheme::default() {
                let quantised = |s: &LayerSetting| s.precision.is_integer();
                prediction.approximate = prediction
                    .approximate
                    .max(plan.values().filter(|s| quantised(s)).count());
            }
            prediction
        });
    }

    // Rows.
    let key = RowsKey {
        filter: state.view.filter.clone(),
        sort: state.view.sort,
        colour_by: matches!(state.view.sort.key, SortKey::Cell(_)).then_some(state.view.colour_by),
        cells: match state.view.sort.key {
            SortKey::Cell(_) => mirror.cells_version,
            _ => 0,
        },
        plan: match state.view.sort.key {
            SortKey::Precision | SortKey::Ratio => derived.plan_key.as_ref().map_or(0, |(n, _)| *n),
            _ => 0,
        },
    };
    if derived.rows_key.as_ref() != Some(&key) {
        let rows = rows(state, &key);
        state.derived.visible = rows;
        state.derived.rows_key = Some(key);
    }

    // Points.
    let key = (
        state.mirror.points_version,
        state.view.axis,
        state.view.split,
    );
    let points_changed = state.derived.points_key != Some(key);
    if points_changed {
        state.derived.front = front(state);
        state.derived.points_key = Some(key);
    }
    if points_changed || plan_changed || cells_changed || new_model {
        let predicted = predicted_point(state);
        state.derived.predicted = predicted;
        let verdict = verdict::judge(state);
        state.derived.verdict = verdict;
    }
}

fn haystack(layer: &LayerFacts) -> String {
    let shape: Vec<String> = layer.weight_shape.iter().map(usize::to_string).collect();
    format!("{} {} {}", layer.id.0, layer.op, shape.join("×")).to_lowercase()
}

fn rows(state: &State, key: &RowsKey) -> Vec<usize> {
    let layers = state.layers();
    let words: Vec<String> = key
        .filter
        .to_lowercase()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let mut rows: Vec<usize> = (0..layers.len())
        .filter(|row| {
            words
                .iter()
                .all(|word| state.derived.haystack[*row].contains(word.as_str()))
        })
        .collect();
    let setting = |row: usize| state.document.setting(&layers[row].id);
    match key.sort.key {
        SortKey::Graph => {}
        SortKey::Name => rows.sort_by(|a, b| natural(&layers[*a].id, &layers[*b].id)),
        SortKey::Op => rows.sort_by(|a, b| layers[*a].op.cmp(&layers[*b].op)),
        SortKey::Shape => {
            rows.sort_by(|a, b| layers[*a].weight_shape.cmp(&layers[*b].weight_shape));
        }
        SortKey::Params => rows.sort_by_key(|row| layers[*row].params),
        SortKey::Macs => rows.sort_by_key(|row| layers[*row].macs),
        SortKey::Cell(candidate) => rows.sort_by(|a, b| {
            let (a, b) = (shown(state, *a, candidate), shown(state, *b, candidate));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        }),
        SortKey::Precision => rows.sort_by_key(|row| setting(*row).precision),
        SortKey::Ratio => {
            rows.sort_by(|a, b| setting(*a).sparsity.0.total_cmp(&setting(*b).sparsity.0));
        }
    }
    if key.sort.descending {
        rows.reverse();
    }
    rows
}

/// What a cell shows under the chosen quantity: how well it is known, and how much it is.
fn shown(state: &State, row: usize, candidate: Candidate) -> (u8, f64) {
    let heat = || heat(state, row, candidate);
    match state.view.colour_by {
        ColourBy::Sensitivity => match state.cell(row, candidate) {
            None => (0, 0.0),
            Some(cell) if cell.tier == Tier::Proxy => (1, cell.value),
            Some(cell) => (2, cell.value),
        },
        ColourBy::Error => {
            let slot = state.mirror.slot(row, candidate);
            let proxy = slot.and_then(|slot| slot.proxy.as_ref());
            proxy.map_or((0, 0.0), |cell| (1, cell.value))
        }
        ColourBy::Size | ColourBy::Macs => match heat() {
            Heat {
                kind: HeatKind::Unknown,
                ..
            } => (0, 0.0),
            Heat { value, .. } => (1, f64::from(value)),
        },
    }
}

/// Compares names as people do: `conv2` before `conv10`.
fn natural(a: &LayerId, b: &LayerId) -> std::cmp::Ordering {
    let parts = |name: &str| {
        let mut parts: Vec<(String, u64)> = Vec::new();
        let mut digits = false;
        for c in name.chars() {
            match (c.to_digit(10), digits) {
                (Some(d), true) => {
                    if let Some((_, n)) = parts.last_mut() {
                        *n = n.saturating_mul(10).saturating_add(u64::from(d));
                    }
                }
                (Some(d), false) => {
                    match parts.last_mut() {
                        Some((_, n)) => *n = u64::from(d),
                        None => parts.push((String::new(), u64::from(d))),
                    }
                    digits = true;
                }
                (None, true) => {
                    parts.push((c.to_string(), 0));
                    digits = false;
                }
                (None, false) => match parts.last_mut() {
                    Some((text, _)) => text.push(c),
                    None => parts.push((c.to_string(), 0)),
                },
            }
        }
        parts
    };
    parts(&a.0).cmp(&parts(&b.0)).then_with(|| a.cmp(b))
}

/// A size or MACs in the plot's unit (kB of 1,000 bytes; millions).
pub fn axis_value(axis: PlotAxis, stored: Bytes, macs: Option<u64>) -> Option<f64> {
    match axis {
        PlotAxis::Size => Some(stored.0 as f64 / 1e3),
        PlotAxis::Macs => macs.map(|macs| macs as f64 / 1e6),
    }
}

fn front(state: &State) -> Vec<PointId> {
    let mut points: Vec<(f64, f64, PointId)> = state
        .shown_points()
        .filter_map(|point| {
            let (x, y) = state.plot_position(point)?;
            Some((x, y, point.id))
        })
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut best = f64::NEG_INFINITY;
    points.retain(|(_, y, _)| {
        let better = *y > best;
        best = best.max(*y);
        better
    });
    points.into_iter().map(|(_, _, id)| id).collect()
}

fn predicted_point(state: &State) -> Option<PredictedPoint> {
    let prediction = state.prediction()?;
    let x = axis_value(state.view.axis, prediction.stored, prediction.macs)?;
    let top1 = state
        .baseline(state.view.split)
        .zip(prediction.drop)
        .map(|(baseline, drop)| baseline.top1_percent() - drop * 100.0);
    Some(PredictedPoint {
        x,
        top1,
        approximate: prediction.approximate,
    })
}

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
            Some(cell) if cell.tier == Tier::Measured => known(cell.value / HOT_DROP),
            Some(cell) => Heat {
                value: noise(cell.value) as f32,
                kind: HeatKind::Proxy,
            },
        },
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
    let decades = (HOT_ERROR / COLD_NOISE).log10();
    let place = (value.max(COLD_NOISE) / COLD_NOISE).log10() / decades;
    NOISE_SHARE * if place.is_nan() { 1.0 } else { place.min(1.0) }
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
            let mut scales = Vec::new();
            if measured > 0 {
                scales.push(solid("≥ 2 pt".into()));
            }
            if measured < all {
                scales.push(Legend {
                    low: "noise".into(),
                    high: format!("≥ {:.0} %", HOT_ERROR * 100.0),
                    range: [0.0, NOISE_SHARE as f32],
                    kind: HeatKind::Proxy,
                });
            }
            scales
        }
        ColourBy::Error => vec![solid(format!("≥ {:.0} %", HOT_ERROR * 100.0))],
        ColourBy::Size => vec![solid(format!(
            "{} kB",
            number::kilobytes(largest.params * 4)
        ))],
        ColourBy::Macs => vec![solid(format!("{:.2} M", largest.macs as f64 / 1e6))],
    }
}
