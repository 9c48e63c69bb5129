//! How the plan would run at its target: asked of the engine whenever the plan's precisions, the scheme or the target change.

use super::State;
use limbeck_engine::{
    compress::{Activations, Precision, QuantScheme},
    graph::LayerId,
    jobs::JobId,
    target::{Executed, Execution, Target},
};
use std::{collections::BTreeMap, sync::Arc};

/// What was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Layers that are not at fp32.
    pub layers: BTreeMap<LayerId, Precision>,
    pub scheme: QuantScheme,
    pub target: Arc<Target>,
}

/// The question and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Foresight {
    job: JobId,
    asked: Asked,
    /// Of this question, or while that is worked out of the last one.
    known: Option<Arc<Execution>>,
    state: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Awaited,
    There,
    Failed,
}

impl Foresight {
    pub(super) fn begin(job: JobId, asked: Asked, before: Option<Self>) -> Self {
        Self {
            job,
            asked,
            known: before.and_then(|before| before.known),
            state: Answer::Awaited,
        }
    }

    pub(super) fn answered(&mut self, job: JobId, execution: Option<Arc<Execution>>) {
        if self.job == job {
            self.known = execution;
            self.state = Answer::There;
        }
    }

    /// Nothing came of it; whether it was this question.
    pub(super) fn failed(&mut self, job: JobId) -> bool {
        let ours = self.job == job && self.state == Answer::Awaited;
        if ours {
            self.known = None;
            self.state = Answer::Failed;
        }
        ours
    }
}

/// What a layer really computes in at the target.
#[derive(Clone, Debug, PartialEq)]
pub enum RunsIn {
    /// Integers or float, with what is converted around it.
    Known(Executed),
    /// Float: nothing but its weights is quantised.
    WeightsOnly,
    /// The target's description does not say.
    Unsaid,
    /// Its input is quantised by the range of each inference, which is not foreseen.
    ByInference,
    /// The engine has not answered yet.
    Awaited,
    /// The question was cancelled, or could not be answered.
    Failed,
}

/// The operators of the plan at its target.
#[derive(Clone, Debug, PartialEq)]
pub struct Islands {
    pub integers: usize,
    /// Left in float: layers with integer weights, and operators between them that the target could compute in integers.
    pub float: Vec<Executed>,
    /// Activations turned into codes, and back.
    pub to_codes: usize,
    pub to_float: usize,
    /// Of the plan before the last edit: the engine is at work.
    pub old: bool,
}

/// What follows from a foresight; worked out once a change.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ForesightView {
    layers: BTreeMap<LayerId, RunsIn>,
    islands: Option<Islands>,
}

impl State {
    /// What is to be asked of the plan as it stands; `None` without a target, or with nothing quantised.
    pub(crate) fn to_foresee(&self) -> Option<Asked> {
        let scheme = &self.document.scheme;
        let target = self.target(scheme.target.as_deref()?)?.ok()?;
        let layers = self.document.precisions();
        let layers: BTreeMap<LayerId, Precision> = layers.map(|(l, p)| (l.clone(), p)).collect();
        let some = layers.values().any(|precision| precision.is_integer());
        some.then(|| Asked {
            layers,
            scheme: scheme.clone(),
            target,
        })
    }

    /// What the question follows from: generation of the plan's precisions and scheme, versions of the model and of targets' descriptions.
    pub(crate) fn foresight_key(&self) -> (u64, u64, u64) {
        let mirror = &self.mirror;
        let stored = self.derived.stored_generation;
        (stored, mirror.model_version, mirror.targets_version)
    }

    /// The question that was last put, unless nothing came of it.
    pub(crate) fn foreseen(&self) -> Option<&Asked> {
        let last = self.mirror.foresight.as_ref();
        let stands = last.filter(|known| known.state != Answer::Failed);
        stands.map(|known| &known.asked)
    }

    /// What a layer with integer weights computes in at the plan's target; `None` for others, and without a target.
    pub fn runs_in(&self, layer: &LayerId) -> Option<&RunsIn> {
        self.derived.foresight.layers.get(layer)
    }

    /// The plan at its target as a whole, once that is known.
    pub fn islands(&self) -> Option<&Islands> {
        self.derived.foresight.islands.as_ref()
    }

    /// Whether there is anything to say of what layers compute in.
    pub fn has_foresight(&self) -> bool {
        !self.derived.foresight.layers.is_empty()
    }

    pub(super) fn look_ahead(&self) -> ForesightView {
        let Some(asked) = self.to_foresee() else {
            return ForesightView::default();
        };
        let foresight = self.mirror.foresight.as_ref();
        let current = foresight.filter(|known| known.asked == asked);
        let answered = current.filter(|known| known.state == Answer::There);
        let failed = current.is_some_and(|known| known.state == Answer::Failed);
        let execution = foresight.and_then(|known| known.known.as_deref());
        let nodes: BTreeMap<&LayerId, &Executed> = execution
            .into_iter()
            .flat_map(|execution| &execution.nodes)
            .map(|node| (&node.name, node))
            .collect();
        let integer = asked.layers.iter().filter(|(_, p)| p.is_integer());
        let layers = integer.map(|(layer, _)| {
            let runs = match (answered, nodes.get(layer)) {
                (None, _) if failed => RunsIn::Failed,
                (None, _) => RunsIn::Awaited,
                (Some(_), Some(node)) => RunsIn::Known((*node).clone()),
                (Some(_), None) if asked.scheme.activations == Activations::Float => {
                    RunsIn::WeightsOnly
                }
                (Some(_), None) if asked.scheme.activations == Activations::Dynamic => {
                    RunsIn::ByInference
                }
                (Some(_), None) => RunsIn::Unsaid,
            };
            (layer.clone(), runs)
        });
        let islands = execution.map(|execution| Islands {
            integers: execution.in_integers(),
            float: execution
                .nodes
                .iter()
                .filter(|node| node.float.is_some())
                .cloned()
                .collect(),
            to_codes: execution.to_codes,
            to_float: execution.to_float,
            old: answered.is_none(),
        });
        ForesightView {
            layers: layers.collect(),
            islands,
        }
    }
}
