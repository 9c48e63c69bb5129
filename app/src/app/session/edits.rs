//! Edits of the document and of the selection.

use super::Session;
use crate::{
    commands::Preset,
    state::{Document, NoticeKind, SelectMode, UNTOUCHED, harmonise},
};
use limbeck_engine::{
    compress::{LayerSetting, Precision},
    graph::LayerId,
    recipe::{self, Choice, ClusterStep, MethodKind, PruneBlocksStep, Recipe, Shrinking, Step},
    train::DistilSettings,
};
use std::{collections::BTreeSet, path::Path};

/// The last training with those right before it, first to last: wherever they stand, as weights that are pruned by a schedule are
/// trained before they are quantised.
fn trainings(steps: &[Step]) -> Vec<DistilSettings> {
    let settings = |step: &Step| match step {
        Step::Distil(settings) => Some(settings.clone()),
        _ => None,
    };
    let from_last = steps.iter().rev().skip_while(|s| settings(s).is_none());
    let mut found: Vec<_> = from_last.map_while(settings).collect();
    found.reverse();
    found
}

impl Session {
    /// One edit, one undo step; measures the plan if it changed it.
    pub(super) fn edit(&mut self, change: impl FnOnce(&mut Document)) {
        self.state.history.commit(&self.state.document);
        self.state.history.begin(&self.state.document);
        change(&mut self.state.document);
        self.tie_channels();
        self.state.history.commit(&self.state.document);
        self.measure_edit();
    }

    /// Where the plan prunes channels, layers that are tied get one ratio; where it prunes groups of weights, one that fits them.
    fn tie_channels(&mut self) {
        if let Some(model) = self.state.model().cloned() {
            harmonise(&mut self.state.document, &model);
        }
    }

    /// The layers that a ratio is for: where the plan prunes channels, whole groups, without those that cannot lose any.
    pub(super) fn ratio_targets(&self, layers: &[LayerId]) -> Vec<LayerId> {
        let targets = self.targets(layers);
        let can = |layer: &&LayerId| self.state.channels_stay(layer).is_none();
        if !self.state.document.channels {
            return targets.iter().filter(can).cloned().collect();
        }
        targets
            .iter()
            .filter(can)
            .filter_map(|layer| self.state.tied(layer))
            .flat_map(|group| group.layers.iter().cloned())
            .collect()
    }

    /// A single layer is meant as it is; of several the pinned ones are skipped.
    pub(super) fn targets(&self, layers: &[LayerId]) -> Vec<LayerId> {
        layers
            .iter()
            .filter(|layer| layers.len() == 1 || !self.state.is_pinned(layer))
            .filter(|layer| self.state.mirror.layer_index(layer).is_some())
            .cloned()
            .collect()
    }

    pub(super) fn edit_layers(&mut self, layers: &[LayerId], change: impl Fn(&mut LayerSetting)) {
        let targets = self.targets(layers);
        self.edit(|document| {
            for layer in &targets {
                let mut setting = document.setting(layer);
                change(&mut setting);
                document.set(layer, setting);
            }
        });
    }

    pub(super) fn apply_preset(&mut self, preset: Preset) {
        let layers = self.state.mirror.layer_ids().to_vec();
        let last = layers.len().saturating_sub(1);
        self.edit(|document| {
            for (at, layer) in layers.iter().enumerate() {
                if document.pins.contains(layer) {
                    continue;
                }
                let outer = at == 0 || at == last;
                let mut setting = document.setting(layer);
                match preset {
                    Preset::All(precision) => {
                        setting.precision = precision;
                        if precision == Precision::Fp32 {
                            setting = UNTOUCHED;
                        }
                    }
                    Preset::Int4Inside if outer => setting.precision = Precision::Int8,
                    Preset::Int4Inside => setting.precision = Precision::Int4,
                    Preset::Pruned(precision, ratio) => {
                        setting.precision = precision;
                        // The first and the last layer are small and mind it most.
                        setting.sparsity = if outer { UNTOUCHED.sparsity } else { ratio };
                    }
                }
                document.set(layer, setting);
            }
        });
    }

    /// Uses a method of the plan on layers, or not.
    pub(super) fn use_on(&mut self, kind: MethodKind, layers: &[LayerId], on: bool) {
        let targets = self.targets(layers);
        let Some(mut used) = self.state.used_on(kind) else {
            return;
        };
        for layer in &targets {
            match on {
                true => used.insert(layer.clone()),
                false => used.remove(layer),
            };
        }
        let mut toggles = vec![(kind, self.state.derived.toggles(&used))];
        // A layer's codes are chosen once: another method that chooses them leaves it.
        let others = MethodKind::ALL.into_iter();
        let others = others.filter(|other| *other != kind && other.chooses_codes());
        for other in others.filter(|_| on && kind.chooses_codes()) {
            if let Some(mut used) = self.state.used_on(other) {
                used.retain(|layer| !targets.contains(layer));
                toggles.push((other, self.state.derived.toggles(&used)));
            }
        }
        self.edit(|document| {
            for step in &mut document.methods {
                if let Some((_, rules)) = toggles.iter().find(|(kind, _)| kind.is(step)) {
                    step.set_toggles(rules.clone());
                }
            }
        });
    }

    /// Takes the residual block of these layers out, or leaves it in.
    pub(super) fn take_block(&mut self, layers: &[LayerId], out: bool) {
        let named = self.state.blocks_with(layers, out);
        self.edit(|document| {
            let samples = document.shrinking.blocks.take().map(|step| step.samples);
            if !named.is_empty() {
                document.shrinking.blocks = Some(PruneBlocksStep {
                    layers: named,
                    count: None,
                    samples: samples.unwrap_or(PruneBlocksStep::default().samples),
                });
            }
        });
    }

    /// Lets the weights of layers share values as the plan's others do, or not.
    pub(super) fn share_on(&mut self, layers: &[LayerId], on: bool) {
        let targets = self.targets(layers);
        let usual = match self.state.document.shrinking.cluster.as_ref() {
            Some(ClusterStep {
                default: Choice::Set(values),
                ..
            }) => *values,
            Some(_) => self.state.values_shared().unwrap_or(16),
            None => return,
        };
        self.edit(|document| {
            if let Some(step) = &mut document.shrinking.cluster {
                step.set(&targets, on.then_some(usual));
                if !step.shares() {
                    document.shrinking.cluster = None;
                }
            }
        });
    }

    /// Makes a recipe's plan the present one (one undo step); false, and said, where it does not fit the model. `goals_too`: its goals
    /// as well.
    pub(super) fn take_plan(&mut self, recipe: &Recipe, goals_too: bool) -> bool {
        if let Some(student) = recipe.student_file() {
            self.fail(format!(
                "The recipe trains {} in the model's place; the window's plans are of the model's own layers: carry the recipe out by limbeck run.",
                student.display()
            ));
            return false;
        }
        let resolved = match recipe::resolve(recipe, self.state.layers()) {
            Ok(resolved) => resolved,
            Err(error) => {
                self.fail(error.to_string());
                return false;
            }
        };
        let scheme = recipe.steps.iter().rev().find_map(|step| match step {
            Step::Quantize(step) => Some(step.scheme.clone()),
            _ => None,
        });
        let mut trained = trainings(&recipe.steps);
        let mut distil = trained.pop();
        let channels = recipe
            .steps
            .iter()
            .any(|s| matches!(s, Step::PruneChannels(_)));
        let held = Shrinking::of(&recipe.steps);
        let other = held.is_none();
        let shrinking = held.unwrap_or_default();
        let methods = recipe.steps.iter().filter(|s| MethodKind::of(s).is_some());
        let methods: Vec<Step> = methods.cloned().collect();
        let mut kinds = methods.iter().filter_map(MethodKind::of);
        // Trained in float first: the window's plans train last, which would move the weights off the codes. The warning below says
        // that the recipe has other steps.
        if kinds.any(MethodKind::chooses_codes) {
            distil = None;
            trained.clear();
        }
        let (goals, seed) = (recipe.goals.clone(), recipe.seed);
        self.edit(|document| {
            document.plan.clear();
            for (layer, setting) in &resolved.layers {
                document.set(layer, *setting);
            }
            if let Some(scheme) = scheme {
                document.scheme = scheme;
            }
            document.methods = methods;
            document.channels = channels;
            document.shrinking = shrinking;
            document.distil = distil;
            document.trained = trained;
            document.seed = seed;
            if goals_too {
                document.goals = goals;
            }
        });
        // The window knows one order of steps; a recipe written by hand may have another.
        let nowhere = Path::new("");
        let shown = self
            .state
            .document
            .recipe("", nowhere, nowhere, self.state.layers(), true);
        let kinds = |steps: &[Step]| steps.iter().map(std::mem::discriminant).collect::<Vec<_>>();
        if other || kinds(&shown.steps) != kinds(&recipe.steps) {
            self.state.notify(
                NoticeKind::Warning,
                "The window carries plans out as blocks, channels, fold, prune, quantise with its methods, shared values, distil; this recipe has other \
                 steps, another order, or takes channels out by a budget. \
                 What is shown and exported here is the window's plan; limbeck run carries the recipe out unchanged.",
            );
        }
        true
    }

    /// Brings what is edited into the inspector, unless it is there already.
    pub(super) fn look_at(&mut self, layers: &[LayerId]) {
        let view = &mut self.state.view;
        let there = view
            .focus
            .as_ref()
            .is_some_and(|focus| layers.contains(focus));
        if let Some(first) = layers.first().filter(|_| !there) {
            view.focus = Some(first.clone());
        }
    }

    pub(super) fn select(&mut self, layer: LayerId, mode: SelectMode) {
        let rows = &self.state.derived.visible;
        let ids = self.state.mirror.layer_ids();
        let view = &mut self.state.view;
        match mode {
            SelectMode::Replace => {
                view.selection = BTreeSet::from([layer.clone()]);
                view.focus = Some(layer);
            }
            SelectMode::Toggle => {
                if !view.selection.remove(&layer) {
                    view.selection.insert(layer.clone());
                }
                view.focus = Some(layer);
            }
            SelectMode::Extend => {
                let place = |wanted: &LayerId| {
                    rows.iter()
                        .position(|row| ids.get(*row).is_some_and(|id| id == wanted))
                };
                let from = view.focus.as_ref().and_then(place);
                match (from, place(&layer)) {
                    (Some(a), Some(b)) => {
                        let (low, high) = (a.min(b), a.max(b));
                        view.selection = rows[low..=high]
                            .iter()
                            .filter_map(|row| ids.get(*row).cloned())
                            .collect();
                    }
                    _ => {
                        view.selection = BTreeSet::from([layer.clone()]);
                        view.focus = Some(layer);
                    }
                }
            }
        }
    }

    pub(super) fn move_focus(&mut self, by: i32, extend: bool) {
        let rows = &self.state.derived.visible;
        let ids = self.state.mirror.layer_ids();
        if rows.is_empty() {
            return;
        }
        let here = self.state.view.focus.as_ref().and_then(|focus| {
            rows.iter()
                .position(|row| ids.get(*row).is_some_and(|id| id == focus))
        });
        let last = rows.len() as i64 - 1;
        let next = here.map_or(0, |at| (at as i64 + i64::from(by)).clamp(0, last)) as usize;
        let Some(layer) = rows.get(next).and_then(|row| ids.get(*row)).cloned() else {
            return;
        };
        let view = &mut self.state.view;
        if extend {
            view.selection.insert(layer.clone());
        } else {
            view.selection = BTreeSet::from([layer.clone()]);
        }
        view.focus = Some(layer);
    }
}
