//! What follows from document, mirror and view: rows shown, prediction, front, verdict, colours. Worked out when something
//! changed, kept until the next change.

use super::{
    PlanVerdict, PlotAxis, PointId, State,
    foresight::ForesightView,
    own::{Known, Own},
    rows::{self, RowsKey},
    shrinking::Shrunk,
    target::TargetView,
    verdict,
};
use limbeck_engine::{
    compress::{LayerSetting, QuantScheme},
    data::SplitName,
    graph::LayerId,
    measure::Bytes,
    recipe::{self, LayerNames, MethodKind, Step, Toggle, ToggleRule, steps_without_training},
    search::{LayerFacts, Prediction, Predictor},
};
use std::collections::{BTreeSet, HashSet};

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

#[derive(Debug, Default)]
pub struct Derived {
    pub visible: Vec<usize>,
    pub prediction: Option<Prediction>,
    pub predicted: Option<PredictedPoint>,
    pub front: Vec<PointId>,
    pub verdict: Option<PlanVerdict>,
    /// The plan as steps, with its distillation.
    steps: Vec<Step>,
    /// Without it.
    undistilled: Vec<Step>,
    /// Layers as rules name them.
    names: LayerNames,
    pub(super) used: Used,
    pub(super) shrunk: Shrunk,
    pub(super) largest: Largest,
    /// Lower-case `name op shape` of every layer, for the filter.
    pub(super) haystack: Vec<String>,
    /// Place of every layer in the order of names.
    pub(super) by_name: Vec<usize>,
    predictor: Option<Predictor>,
    pub(super) shown: Shown,
    pub(super) known: Known,
    pub(super) own: Own,
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

    /// The plan as steps, with its distillation or without.
    pub(super) fn steps(&self, with_distil: bool) -> &[Step] {
        if with_distil {
            &self.steps
        } else {
            &self.undistilled
        }
    }

    /// Rules that switch a method on for these layers alone.
    pub(crate) fn toggles(&self, on: &BTreeSet<LayerId>) -> (Toggle, Vec<ToggleRule>) {
        self.names.toggles(|layer| on.contains(layer))
    }

    /// Grows with each change of the document.
    pub(super) fn plan_generation(&self) -> u64 {
        self.plan_key
            .as_ref()
            .map_or(0, |(generation, _)| *generation)
    }
}

/// A point as the plot draws it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// Index into [`State::points`].
    pub index: usize,
    pub id: PointId,
    /// Decades of kB or million MACs, and top-1 in percent.
    pub place: [f64; 2],
    pub front: bool,
    pub partial: bool,
    pub distilled: bool,
    /// A runtime gave something else than was predicted.
    pub disputed: bool,
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

/// Which layers the plan's methods are used on, worked out when they change.
#[derive(Debug, Default)]
pub(super) struct Used {
    methods: Vec<Step>,
    pub on: Vec<(MethodKind, BTreeSet<LayerId>)>,
}

impl Used {
    fn of(methods: &[Step], layers: &[LayerFacts]) -> Self {
        let on = methods.iter().filter_map(|step| {
            let chosen = recipe::method_layers(step, layers)?;
            Some((MethodKind::of(step)?, chosen.ok()?))
        });
        Self {
            methods: methods.to_vec(),
            on: on.collect(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Largest {
    pub params: u64,
    pub macs: u64,
}

pub fn refresh(state: &mut State) {
    let map_holds = state.map_holds();
    let targets_changed = state.derived.targets_version != state.mirror.targets_version;
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
        derived.haystack = layers.iter().map(rows::haystack).collect();
        derived.by_name = rows::by_name(layers);
        derived.names = LayerNames::of(layers);
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
        let generation = derived.plan_generation() + 1;
        derived.steps = state.document.steps(&derived.names, true);
        derived.undistilled = steps_without_training(&derived.steps);
        derived.plan_key = Some((generation, state.document.clone()));
    }
    if new_model || derived.shrunk.of != state.document.shrinking {
        derived.shrunk = Shrunk::of(&state.document.shrinking, mirror.layers());
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
    if plan_changed || cells_changed || targets_changed || new_model {
        derived.prediction_cells = mirror.cells_version;
        derived.prediction = derived.predictor.as_ref().map(|predictor| {
            let plan = &state.document.plan;
            let prediction = predictor.predict(plan);
            let mut prediction = match &mirror.model {
                Some(model) => {
                    super::shrinking::predict(model, &state.document, &derived.shrunk, prediction)
                }
                None => prediction,
            };
            // Under another scheme than the map's its quantised cells are neighbours only; with methods as well: it is of codes to nearest.
            if !state.document.shrinking.pattern.is_unstructured() {
                // The map's masks are unstructured ones.
                let pruned = |s: &LayerSetting| s.sparsity.0 > 0.0;
                prediction.approximate = prediction
                    .approximate
                    .max(plan.values().filter(|s| pruned(s)).count());
            }
            if !map_holds || !state.document.methods.is_empty() {
                let quantised = |s: &LayerSetting| s.precision.is_integer();
                prediction.approximate = prediction
                    .approximate
                    .max(plan.values().filter(|s| quantised(s)).count());
            }
            prediction
        });
    }

    if new_model || derived.used.methods != state.document.methods {
        derived.used = Used::of(&state.document.methods, mirror.layers());
    }

    let foreseen_changed = state.derived.foresight_version != state.mirror.foresight_version;
    if stored_changed || targets_changed || foreseen_changed || new_model {
        state.derived.foresight_version = state.mirror.foresight_version;
        state.derived.foresight = state.look_ahead();
    }

    let key = RowsKey::of(state);
    if state.derived.rows_key.as_ref() != Some(&key) {
        state.derived.visible = rows::rows(state, &key);
        state.derived.rows_key = Some(key);
    }

    // Points.
    let key = (
        state.mirror.points_version,
        state.view.axis,
        state.view.split,
    );
    let points_changed = state.derived.points_key != Some(key);
    if !state.derived.known.holds(state) {
        state.derived.known = Known::of(state);
    }
    if points_changed || plan_changed {
        state.derived.own = Own::of(state);
    }
    if stored_changed || targets_changed || new_model {
        state.derived.targets_version = state.mirror.targets_version;
        state.derived.at_target.refusals = state.refused_by(&state.document.scheme);
    }
    if points_changed || plan_changed || targets_changed || new_model {
        state.derived.at_target.layers = state.mark_at_target();
    }
    if points_changed {
        state.derived.front = front(state);
        state.derived.shown = shown_points(state);
        state.derived.points_key = Some(key);
    }
    if points_changed || plan_changed || cells_changed || targets_changed || new_model {
        let predicted = predicted_point(state);
        state.derived.predicted = predicted;
        let verdict = verdict::judge(state);
        state.derived.verdict = verdict;
    }
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
        let runs = point.point.confirmed.iter().flat_map(|pair| &pair.runs);
        let disputed: Vec<f64> = runs
            .filter(|run| !run.agrees())
            .map(|run| run.top1.value * 100.0)
            .collect();
        let mark = Mark {
            index,
            id: point.id,
            place: [x.max(1e-6).log10(), y],
            front: on_front.contains(&point.id),
            partial: point.point.recipe.is_partial(),
            distilled: point.is_distilled(),
            disputed: !disputed.is_empty(),
        };
        shown.marks.push(mark);
        let [along_x, along_y] = shown.extent.get_or_insert(nothing);
        grow(along_x, mark.place[0]);
        for bound in point.point.metrics.top1.ci {
            grow(along_y, bound * 100.0);
        }
        // What a runtime gave instead is seen as well.
        for top1 in disputed {
            grow(along_y, top1);
        }
    }
    shown
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
