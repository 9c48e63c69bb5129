//! What follows from document, mirror and view: rows shown, prediction, front, verdict, colours. Worked out when something
//! changed, kept until the next change.

use super::{
    ColourBy, PlanVerdict, PlotAxis, PointId, RunsIn, Sort, SortKey, State,
    foresight::ForesightView, target::TargetView, verdict,
};
use crate::widgets::number;
use limbeck_engine::{
    compress::{LayerSetting, QuantScheme},
    data::SplitName,
    graph::LayerId,
    measure::Bytes,
    recipe::Step,
    search::{LayerFacts, Prediction, Predictor},
    sensitivity::{Candidate, Cell, Tier},
};
use std::{collections::HashSet, path::Path};

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
    /// Place of every layer in the order of names.
    by_name: Vec<usize>,
    predictor: Option<Predictor>,
    pub(super) shown: Shown,
    pub(super) ours: Ours,
    pub(super) at_target: TargetView,
    pub(super) foresight: ForesightView,
    targets_version: u64,
    foresight_version: u64,
    /// Grows with each change of what weights are stored in, or of the scheme: not while a pruning slider moves.
    pub(super) stored_generation: u64,
    rows_key: Option<RowsKey>,
    plan_key: Option<(u64, super::Document)>,
    prediction_cells: u64,
    plan_scheme: Option<QuantScheme>,
    points_key: Option<(u64, PlotAxis, SplitName)>,
    model_version: u64,
}

impl Derived {
    /// (parameters, MACs) of the largest layers.
    pub(super) fn largest(&self) -> (u64, u64) {
        (self.largest.params, self.largest.macs)
    }
}

/// A point as the plot draws it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// Index into [`State::points`].
    pub index: usize,
    /// Decades of kB or million MACs, and top-1 in percent.
    pub place: [f64; 2],
    pub front: bool,
    pub partial: bool,
    pub distilled: bool,
}

/// What the plot shows of all points, worked out when they, the axis or the split change.
#[derive(Debug, Default)]
pub(super) struct Shown {
    pub marks: Vec<Mark>,
    /// Points of the split, those included that have no place on the axis.
    pub count: usize,
    /// Lowest and highest: of places along x, of the intervals along y.
    pub extent: Option<[[f64; 2]; 2]>,
}

/// Indices of the points that stand for the present plan, newest of each split; see the methods of [`State`] that give them.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Ours {
    /// What they follow from.
    key: Option<(u64, u64, u64, bool)>,
    pub plan: [Option<usize>; SPLITS],
    pub undistilled: [Option<usize>; SPLITS],
    pub otherwise: [Option<usize>; SPLITS],
    pub baseline: [Option<usize>; SPLITS],
    pub judged: [Option<(u64, u64)>; SPLITS],
}

const SPLITS: usize = 4;

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
    let map_holds = state.map_holds();
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
        derived.by_name = by_name(layers);
    }

    // The plan, and what it is thought to give.
    let plan_changed = match &derived.plan_key {
        Some((_, document)) => *document != state.document,
        None => true,
    };
    let stored_changed = match &derived.plan_key {
        Some((_, old)) if plan_changed => {
            let new = &state.document;
            old.scheme != new.scheme || !old.precisions().eq(new.precisions())
        }
        Some(_) => false,
        None => true,
    };
    if stored_changed {
        derived.stored_generation += 1;
    }
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
        derived.steps_distilled = match state.document.distil {
            Some(_) => steps(true),
            None => derived.steps.clone(),
        };
        derived.plan_key = Some((generation, state.document.clone()));
    }
    let cells_changed = derived.prediction_cells != mirror.cells_version;
    let scheme_changed = derived.plan_scheme.as_ref() != Some(&state.document.scheme);
    if cells_changed || new_model || scheme_changed {
        derived.plan_scheme = Some(state.document.scheme.clone());
        derived.predictor = mirror.model.as_ref().map(|model| {
            let cells = mirror.best_cells();
            let scheme = &state.document.scheme;
            Predictor::new(&model.layers, cells, scheme, model.overhead)
        });
    }
    if plan_changed || cells_changed || new_model {
        derived.prediction_cells = mirror.cells_version;
        derived.prediction = derived.predictor.as_ref().map(|predictor| {
            let plan = &state.document.plan;
            let prediction = predictor.predict(plan);
            let mut prediction = match (state.document.channels, &mirror.model) {
                (true, Some(model)) => super::channels::predict(model, &state.document, prediction),
                _ => prediction,
            };
            // Under another scheme than the map's its quantised cells are neighbours only.
            if !map_holds {
                let quantised = |s: &LayerSetting| s.precision.is_integer();
                prediction.approximate = prediction
                    .approximate
                    .max(plan.values().filter(|s| quantised(s)).count());
            }
            prediction
        });
    }

    let targets_changed = state.derived.targets_version != state.mirror.targets_version;
    let foreseen_changed = state.derived.foresight_version != state.mirror.foresight_version;
    if stored_changed || targets_changed || foreseen_changed || new_model {
        state.derived.foresight_version = state.mirror.foresight_version;
        state.derived.foresight = state.look_ahead();
    }
    let mirror = &state.mirror;
    let derived = &mut state.derived;

    // Rows.
    let key = RowsKey {
        filter: state.view.filter.clone(),
        sort: state.view.sort,
        colour_by: matches!(state.view.sort.key, SortKey::Cell(_)).then_some(state.view.colour_by),
        cells: match state.view.sort.key {
            SortKey::Cell(_) => mirror.cells_version,
            SortKey::Runs => mirror.foresight_version,
            _ => 0,
        },
        plan: match state.view.sort.key {
            SortKey::Precision | SortKey::Runs | SortKey::Ratio => {
                derived.plan_key.as_ref().map_or(0, |(n, _)| *n)
            }
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
    if points_changed || plan_changed {
        state.derived.ours = Ours::default();
        state.derived.ours = ours(state);
    }
    if points_changed || plan_changed || targets_changed || new_model {
        state.derived.targets_version = state.mirror.targets_version;
        state.derived.at_target = state.look_at_target();
    }
    if points_changed {
        state.derived.front = front(state);
        state.derived.shown = shown_points(state);
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
        SortKey::Name => rows.sort_by_key(|row| state.derived.by_name[*row]),
        SortKey::Op => rows.sort_by(|a, b| layers[*a].op.cmp(&layers[*b].op)),
        SortKey::Shape => {
            rows.sort_by(|a, b| layers[*a].weight_shape.cmp(&layers[*b].weight_shape));
        }
        SortKey::Params => rows.sort_by_key(|row| layers[*row].params),
        SortKey::Macs => rows.sort_by_key(|row| layers[*row].macs),
        SortKey::Cell(candidate) => {
            let key = |row| shown(state, row, candidate);
            let keys: Vec<(u8, f64)> = (0..layers.len()).map(key).collect();
            rows.sort_by(|a, b| {
                let (a, b) = (keys[*a], keys[*b]);
                a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
            });
        }
        SortKey::Precision => rows.sort_by_key(|row| setting(*row).precision),
        SortKey::Runs => rows.sort_by_key(|row| match state.runs_in(&layers[*row].id) {
            Some(RunsIn::Known(node)) if node.float.is_none() => 3,
            Some(RunsIn::Known(_) | RunsIn::WeightsOnly) => 0,
            Some(_) => 1,
            None => 2,
        }),
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
            Some(cell) => match cell.tier {
                Tier::Proxy | Tier::Local => (1, cell.value),
                Tier::Fisher => (2, cell.value),
                Tier::Measured => (3, cell.value),
            },
        },
        ColourBy::AllBut => state
            .all_but(row, candidate)
            .map_or((0, 0.0), |cell| (3, cell.value)),
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

/// Place of every layer in the order of names as people sort them: `conv2` before `conv10`.
fn by_name(layers: &[LayerFacts]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_cached_key(|row| (natural(&layers[*row].id), layers[*row].id.clone()));
    let mut places = vec![0; layers.len()];
    for (place, row) in order.into_iter().enumerate() {
        places[row] = place;
    }
    places
}

/// A name as what is compared: characters, and runs of digits as numbers.
fn natural(name: &LayerId) -> Vec<(Option<char>, u64)> {
    let mut parts: Vec<(Option<char>, u64)> = Vec::new();
    for c in name.0.chars() {
        match (c.to_digit(10), parts.last_mut()) {
            (Some(d), Some((None, n))) => {
                *n = n.saturating_mul(10).saturating_add(u64::from(d));
            }
            (Some(d), _) => parts.push((None, u64::from(d))),
            (None, _) => parts.push((Some(c), 0)),
        }
    }
    parts
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

fn shown_points(state: &State) -> Shown {
    let on_front: HashSet<PointId> = state.derived.front.iter().copied().collect();
    let mut shown = Shown::default();
    let grow = |range: &mut [f64; 2], v: f64| {
        if v.is_finite() {
            *range = [range[0].min(v), range[1].max(v)];
        }
    };
    let nothing = [[f64::MAX, f64::MIN]; 2];
    for (index, point) in state.points().iter().enumerate() {
        if !state.is_shown(index) {
            continue;
        }
        shown.count += 1;
        let Some((x, y)) = state.plot_position(point) else {
            continue;
        };
        let mark = Mark {
            index,
            place: [x.max(1e-6).log10(), y],
            front: on_front.contains(&point.id),
            partial: point.point.recipe.is_partial(),
            distilled: point.is_distilled(),
        };
        shown.marks.push(mark);
        let [along_x, along_y] = shown.extent.get_or_insert(nothing);
        grow(along_x, mark.place[0]);
        for bound in point.point.metrics.top1.ci {
            grow(along_y, bound * 100.0);
        }
        // What a runtime gave instead is seen as well.
        let runs = point.point.confirmed.iter().flat_map(|pair| &pair.runs);
        for run in runs.filter(|run| !run.agrees()) {
            grow(along_y, run.top1.value * 100.0);
        }
    }
    shown
}

impl Ours {
    /// Whether they still hold.
    pub fn hold(&self, state: &State) -> bool {
        self.key == Some(Self::key(state))
    }

    fn key(state: &State) -> (u64, u64, u64, bool) {
        (
            state.mirror.points_version,
            state.derived.plan_key.as_ref().map_or(0, |(n, _)| *n),
            state.document.seed,
            state.document.distil.is_some(),
        )
    }
}

/// The newest points of each kind, in one look at all of them.
fn ours(state: &State) -> Ours {
    let mut ours = Ours::default();
    let (plan, distilled) = (&state.derived.steps, &state.derived.steps_distilled);
    let distils = state.document.distil.is_some();
    for (index, point) in state.points().iter().enumerate() {
        let split = point.split() as usize;
        if point.point.recipe.seed != state.document.seed {
            continue;
        }
        let steps = &point.point.recipe.steps;
        if steps == distilled {
            ours.plan[split] = Some(index);
        }
        if distils && steps == plan {
            ours.undistilled[split] = Some(index);
        }
        if distils
            && let [before @ .., Step::Distil(_)] = steps.as_slice()
            && before == plan.as_slice()
        {
            ours.otherwise[split] = Some(index);
        }
    }
    for split in SplitName::ALL {
        ours.baseline[split as usize] = state.find_baseline(split);
    }
    for (index, point) in state.points().iter().enumerate() {
        let split = point.split() as usize;
        if !point.is_baseline() || ours.baseline[split] == Some(index) {
            let n = point.samples();
            let (low, high) = ours.judged[split].unwrap_or((n, n));
            ours.judged[split] = Some((low.min(n), high.max(n)));
        }
    }
    ours.key = Some(Ours::key(state));
    ours
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
