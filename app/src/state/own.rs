//! Which measured points stand for the present plan, and which for the original.

use super::{State, mirror::NamedPoint};
use limbeck_engine::{
    data::SplitName,
    recipe::{Step, steps_without_training},
};

const SPLITS: usize = SplitName::ALL.len();

/// What points alone tell, worked out when they change: what a plan's own are looked for in, the original and the samples of each split.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The points' version.
    version: Option<u64>,
    briefs: Vec<Brief>,
    pub baseline: [Option<usize>; SPLITS],
    pub judged: [Option<(u64, u64)>; SPLITS],
}

/// What tells most points from a plan's own without a look at their steps.
#[derive(Clone, Copy, Debug)]
struct Brief {
    split: SplitName,
    seed: u64,
    outline: Outline,
    /// How many of its steps are distillations.
    trainings: usize,
}

/// Number of steps, and of rules in them: equal of equal steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outline {
    steps: usize,
    rules: usize,
}

impl Outline {
    fn of(steps: &[Step]) -> Self {
        let rules = |step: &Step| match step {
            Step::Prune(prune) => prune.layers.len(),
            Step::PruneChannels(prune) => prune.layers.len(),
            Step::Quantize(quantize) => quantize.layers.len(),
            _ => 0,
        };
        Self {
            steps: steps.len(),
            rules: steps.iter().map(rules).sum(),
        }
    }

    /// With so many distillations, which have no rules.
    fn trained(self, trainings: usize) -> Self {
        Self {
            steps: self.steps + trainings,
            ..self
        }
    }
}

fn trains(step: &Step) -> bool {
    matches!(step, Step::Distil(_))
}

/// Whether steps are these untrained ones with distillations, wherever those stand.
pub(super) fn is_trained(steps: &[Step], untrained: &[Step]) -> bool {
    steps.iter().any(trains) && steps_without_training(steps) == untrained
}

impl Known {
    pub fn of(state: &State) -> Self {
        let brief = |named: &NamedPoint| {
            let recipe = &named.point.recipe;
            Brief {
                split: named.split(),
                seed: recipe.seed,
                outline: Outline::of(&recipe.steps),
                trainings: recipe.steps.iter().filter(|s| trains(s)).count(),
            }
        };
        let mut known = Self {
            version: Some(state.mirror.points_version),
            briefs: state.points().iter().map(brief).collect(),
            baseline: SplitName::ALL.map(|split| state.find_baseline(split)),
            judged: Default::default(),
        };
        for (index, point) in state.points().iter().enumerate() {
            let split = point.split() as usize;
            if !point.is_baseline() || known.baseline[split] == Some(index) {
                let n = point.samples();
                let (low, high) = known.judged[split].unwrap_or((n, n));
                known.judged[split] = Some((low.min(n), high.max(n)));
            }
        }
        known
    }

    /// Whether it still holds.
    pub fn holds(&self, state: &State) -> bool {
        self.version == Some(state.mirror.points_version)
    }
}

/// Indices of the points that stand for the present plan, newest of each split; see the methods of [`State`] that give them.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Own {
    /// What they follow from.
    key: Option<(u64, u64, u64, bool)>,
    pub plan: [Option<usize>; SPLITS],
    pub undistilled: [Option<usize>; SPLITS],
    pub otherwise: [Option<usize>; SPLITS],
}

impl Own {
    /// Looks through what is known of all points.
    pub fn of(state: &State) -> Self {
        let mut own = Self {
            key: Some(Self::key(state)),
            ..Self::default()
        };
        let distils = state.document.distil.is_some();
        let (plan, distilled) = (state.plan_steps(false), state.plan_steps(true));
        let (before, after) = (Outline::of(plan), Outline::of(distilled));
        for (index, brief) in state.derived.known.briefs.iter().enumerate() {
            let like = |outline| brief.outline == outline;
            let otherwise = distils && brief.trainings > 0 && like(before.trained(brief.trainings));
            let candidate = like(after) || (distils && like(before)) || otherwise;
            if brief.seed != state.document.seed || !candidate {
                continue;
            }
            let Some(point) = state.points().get(index) else {
                continue;
            };
            let split = brief.split as usize;
            let steps = point.point.recipe.steps.as_slice();
            if steps == distilled {
                own.plan[split] = Some(index);
            }
            if distils && steps == plan {
                own.undistilled[split] = Some(index);
            }
            if otherwise && is_trained(steps, plan) {
                own.otherwise[split] = Some(index);
            }
        }
        own
    }

    /// Whether they still hold.
    pub fn hold(&self, state: &State) -> bool {
        self.key == Some(Self::key(state))
    }

    fn key(state: &State) -> (u64, u64, u64, bool) {
        (
            state.mirror.points_version,
            state.derived.plan_generation(),
            state.document.seed,
            state.document.distil.is_some(),
        )
    }
}
