//! The document: what the user decides (plan, pins, goals, scheme, distillation). Every change of it can be undone, and it
//! is what a project and a recipe keep.

use limbeck_engine::{
    compress::{LayerSetting, Pattern, Precision, QuantScheme, Ratio},
    graph::LayerId,
    recipe::{Goal, LayerNames, MethodKind, PlanContext, Recipe, Shrinking, Step},
    search::LayerFacts,
    target,
    train::DistilSettings,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// What a layer has when the plan says nothing of it: fp32, nothing pruned.
pub const UNTOUCHED: LayerSetting = LayerSetting {
    precision: Precision::Fp32,
    sparsity: Ratio(0.0),
};

/// The user's decisions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Document {
    /// Layers that the plan changes. A layer at [`UNTOUCHED`] is never listed, so that equal plans compare equal.
    pub plan: BTreeMap<LayerId, LayerSetting>,
    /// Layers that bulk edits and presets leave alone.
    pub pins: BTreeSet<LayerId>,
    pub goals: Vec<Goal>,
    pub scheme: QuantScheme,
    /// Methods that make quantisation lose less without training, as a recipe's steps in its order ([`MethodKind`]).
    pub methods: Vec<Step>,
    /// Pruning takes whole channels out, instead of setting single weights to zero.
    pub channels: bool,
    /// How that pruning goes, and what else makes the network smaller: residual blocks out, shared values.
    pub shrinking: Shrinking,
    /// Distillation as a part of the plan; `None`: without.
    pub distil: Option<DistilSettings>,
    /// Trainings that it goes on from, each cut at the end of an epoch; none where it trains the plan itself.
    pub trained: Vec<DistilSettings>,
    pub seed: u64,
}

/// The target of new projects: what the exported file is held against.
const TARGET: &str = "onnxruntime-cpu";

impl Document {
    /// That of a model that is opened for the first time: nothing decided, pairs where ONNX Runtime computes in integers. What is read from a
    /// project or a recipe says all this itself.
    pub fn fresh() -> Self {
        let placed = target::find(TARGET).ok();
        Self {
            scheme: QuantScheme {
                outputs: placed.as_ref().and_then(|target| target.defaults().outputs),
                target: placed.map(|target| target.name.clone()),
                ..QuantScheme::default()
            },
            ..Self::default()
        }
    }

    /// What the plan asks of a layer.
    pub fn setting(&self, layer: &LayerId) -> LayerSetting {
        self.plan.get(layer).copied().unwrap_or(UNTOUCHED)
    }

    /// What ratios are multiples of: a hundredth, or where weights are pruned in groups one weight of each.
    pub fn ratio_grain(&self) -> f32 {
        match self.shrinking.pattern {
            Pattern::Groups(group) if !self.channels => 1.0 / group.max(1) as f32,
            _ => 0.01,
        }
    }

    /// The step of a method, where the plan has it.
    pub fn method(&self, kind: MethodKind) -> Option<&Step> {
        let mut methods = self.methods.iter();
        methods.find(|step| kind.is(step))
    }

    /// The plan's methods with this one as well, in the usual order; of those that choose codes the last one asked for.
    pub fn methods_with(&self, kind: MethodKind) -> Vec<Step> {
        let other = |step: &&Step| {
            let old = MethodKind::of(step);
            old != Some(kind)
                && !(kind.chooses_codes() && old.is_some_and(MethodKind::chooses_codes))
        };
        let mut methods: Vec<Step> = self.methods.iter().filter(other).cloned().collect();
        methods.push(self.method(kind).cloned().unwrap_or_else(|| kind.step()));
        methods.sort_by_key(MethodKind::of);
        methods
    }

    /// Layers that are not at fp32.
    pub(super) fn precisions(&self) -> impl Iterator<Item = (&LayerId, Precision)> {
        let all = self.plan.iter().map(|(layer, s)| (layer, s.precision));
        all.filter(|(_, precision)| *precision != Precision::Fp32)
    }

    /// Sets what the plan asks of a layer; keeps the map free of entries that ask nothing.
    pub fn set(&mut self, layer: &LayerId, setting: LayerSetting) {
        if setting == UNTOUCHED {
            self.plan.remove(layer);
        } else {
            self.plan.insert(layer.clone(), setting);
        }
    }

    /// The whole plan as a recipe for a model and a task (paths are taken over as given): no steps for an untouched plan.
    pub fn recipe(
        &self,
        name: &str,
        model: &Path,
        task: &Path,
        layers: &[LayerFacts],
        with_distil: bool,
    ) -> Recipe {
        let context = PlanContext {
            name: name.to_owned(),
            model: model.to_owned(),
            task: task.to_owned(),
            goals: self.goals.clone(),
            distil: self.distil.clone().filter(|_| with_distil),
            ..self.context()
        };
        Recipe::from_plan(&context, layers, &self.plan)
    }

    /// The steps of that recipe.
    pub(super) fn steps(&self, names: &LayerNames, with_distil: bool) -> Vec<Step> {
        let context = PlanContext {
            distil: self.distil.clone().filter(|_| with_distil),
            ..self.context()
        };
        names.steps(&context, &self.plan)
    }

    /// What steps follow from beside the plan.
    fn context(&self) -> PlanContext {
        PlanContext {
            name: String::new(),
            model: PathBuf::new(),
            task: PathBuf::new(),
            seed: self.seed,
            goals: Vec::new(),
            scheme: self.scheme.clone(),
            channels: self.channels,
            shrinking: self.shrinking.clone(),
            methods: self.methods.clone(),
            distil: self.distil.clone(),
            trained: self.trained.clone(),
        }
    }
}

/// Undo and redo over whole documents (they are small), bounded, with one edit in the making.
#[derive(Clone, Debug, Default)]
pub struct History {
    undo: Vec<Document>,
    redo: Vec<Document>,
    /// The document before an edit that still goes on (a slider held down).
    open: Option<Document>,
}

impl History {
    /// Steps kept; older ones are forgotten.
    pub const LIMIT: usize = 500;

    /// Notes the document before a change that goes on; further changes join it until [`History::commit`].
    pub fn begin(&mut self, document: &Document) {
        if self.open.is_none() {
            self.open = Some(document.clone());
        }
    }

    /// Ends the edit in the making; true if it changed anything.
    pub fn commit(&mut self, document: &Document) -> bool {
        match self.open.take() {
            Some(before) if before != *document => {
                self.undo.push(before);
                if self.undo.len() > Self::LIMIT {
                    self.undo.remove(0);
                }
                self.redo.clear();
                true
            }
            _ => false,
        }
    }

    /// Goes one edit back; an edit in the making counts as one. True if there was one.
    pub fn undo(&mut self, document: &mut Document) -> bool {
        self.commit(document);
        let Some(before) = self.undo.pop() else {
            return false;
        };
        self.redo.push(std::mem::replace(document, before));
        true
    }

    /// Takes the last undo back. True if there was one.
    pub fn redo(&mut self, document: &mut Document) -> bool {
        self.commit(document);
        let Some(after) = self.redo.pop() else {
            return false;
        };
        self.undo.push(std::mem::replace(document, after));
        true
    }

    /// An edit is in the making.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub fn can_undo(&self) -> bool {
        !self.undo.is_empty() || self.open.is_some()
    }

    pub fn can_redo(&self) -> bool {
        !self.redo.is_empty()
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
