//! The one pipeline that carries a recipe out, for desktop and command line alike: same bits in both, for any number of threads.

mod cost;
mod judging;
mod steps;
mod watch;
mod words;

use super::{
    Checkpoints, GoalVerdict, PipelineError, Recipe, RecipeError, Resolved, Session, Step,
    checkpoints::Stand, files::sha256, resolve, to_ron,
};
use crate::{
    compress::Account,
    data::SplitName,
    eval::{Evaluation, Metrics},
    exec::{CancelToken, ExecError},
    graph::Graph,
    measure::Sizes,
    search::LayerFacts,
    target::LayerSaturation,
    train::TrainPoint,
};
use judging::Judging;
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// Told how far a run is, after every mini-batch: the place where other work may be done in between.
pub trait RunObserver {
    /// `done` of `total` in units of one sample's inference; `detail` in words.
    fn progress(&mut self, done: u64, total: u64, detail: &str);
    /// So many of the units count as done, but were not worked on now: a checkpoint or an earlier run had them.
    fn skipped(&mut self, _units: u64) {}
    /// Something that is to be said at once, and stops nothing.
    fn note(&mut self, _words: &str) {}
    /// The checkpoint that the run was to end with could not be taken, with the reason.
    fn lost(&mut self, words: &str) {
        self.note(words);
    }
    /// Time that was given to other work or paused since the run began: none of the seconds it took.
    fn away(&self) -> Duration {
        Duration::ZERO
    }
    /// A point of the training curves.
    fn curve(&mut self, _point: &TrainPoint) {}
    /// The points of a training that is gone on with.
    fn curve_so_far(&mut self, points: &[TrainPoint]) {
        for point in points {
            self.curve(point);
        }
    }
    /// Whether the run is about to be paused: a checkpoint is taken before.
    fn is_to_pause(&self) -> bool {
        false
    }
    /// From now on only a checkpoint would keep what was trained; or there is nothing more to keep.
    fn keeps(&mut self, _keeps: bool) {}
    /// Whether the run is to take a checkpoint at its next mini-batch, and end.
    fn is_to_end(&self) -> bool {
        false
    }
    /// Whether states at the ends of the last training's epochs are wanted.
    fn wants_epochs(&self) -> bool {
        false
    }
    /// One of them.
    fn reached(&mut self, _state: Reached) {}
    /// A state that was told before, by [`Recipe::steps_sha256`] of the steps that lead there: they need not be carried out again.
    fn known(&self, _steps_sha256: &str) -> Option<Reached> {
        None
    }
    /// Whether the state before the last training is to be judged too (see [`RunObserver::before_training`]).
    fn wants_before_training(&self) -> bool {
        false
    }
    /// What the steps before the first training give: a whole result, with the shorter recipe that gives it.
    fn before_training(&mut self, _outcome: RunOutcome) {}
    /// Training was cancelled after an epoch that had won something: the recipe that stops at the best of them, and what it gives. `None`: steps
    /// stand behind the training; the state they go on from was [`RunObserver::reached`] right before.
    fn cancelled_training(&mut self, _recipe: Recipe, _built: Option<Built>) {}
}

/// A network at the end of an epoch, as the steps of a recipe that ends there ([`Recipe::cut_at`]) give it.
#[derive(Clone)]
pub struct Reached {
    pub steps_sha256: String,
    /// Epochs of its training. `None`: the best of a cancelled one, which is judged; a new run goes on from the end of an epoch.
    pub epoch: Option<usize>,
    stand: Stand,
}

impl Reached {
    #[cfg(test)]
    pub(crate) fn new(
        steps_sha256: String,
        epoch: Option<usize>,
        model: crate::compress::Model,
    ) -> Self {
        let stand = Stand {
            index: 0,
            model,
            accounts: Vec::new(),
            training: None,
        };
        Self {
            steps_sha256,
            epoch,
            stand,
        }
    }

    /// Bytes that it takes, at most: tensors that are shared with others count.
    pub fn bytes(&self) -> usize {
        let model = &self.stand.model;
        let data = model.graph.values.iter().filter_map(|v| v.data.as_ref());
        let floats = model.originals.values().map(|o| 4 * o.weights.len());
        data.map(|d| d.bytes.len()).chain(floats).sum()
    }
}

/// No one watches.
pub struct Unwatched;
impl RunObserver for Unwatched {
    fn progress(&mut self, _: u64, _: u64, _: &str) {}
}

/// What a recipe gave.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    /// As carried out.
    pub recipe: Recipe,
    pub resolved: Resolved,
    /// The compressed network as exported: weights packed, metadata set.
    pub graph: Graph,
    /// The exported file.
    pub bytes: Arc<Vec<u8>>,
    pub model_sha256: String,
    pub split: SplitName,
    pub limit: Option<usize>,
    pub evaluation: Arc<Evaluation>,
    pub metrics: Metrics,
    /// The original's result on the same samples.
    pub baseline: Arc<Evaluation>,
    pub baseline_metrics: Metrics,
    pub sizes: Sizes,
    pub accounts: Vec<Account>,
    /// Layers whose sums can saturate at the recipe's target, and how far they did in these samples.
    pub saturation: Vec<LayerSaturation>,
    pub verdicts: Vec<GoalVerdict>,
    /// That were worked on it (see [`RunObserver::away`]).
    pub seconds: f64,
}

/// The compressed network without a judgement.
#[derive(Clone, Debug)]
pub struct Built {
    pub resolved: Resolved,
    pub graph: Graph,
    pub bytes: Arc<Vec<u8>>,
    pub model_sha256: String,
    pub sizes: Sizes,
    pub accounts: Vec<Account>,
}

/// Carries the recipe out on the session's model and judges it on the first `limit` samples of `split`, against the original
/// on the same samples. `recipe.model` and `recipe.task` are not looked at.
///
/// # Errors
/// A recipe for another model, a step that cannot be carried out, a model that cannot run, cancellation.
pub fn run(
    session: &Session,
    recipe: &Recipe,
    split: SplitName,
    limit: Option<usize>,
    observer: &mut dyn RunObserver,
    cancel: &CancelToken,
) -> Result<RunOutcome, PipelineError> {
    Work::new(session, recipe, None, observer, cancel)?.judged(None, split, limit)
}

/// As [`run`], with checkpoints: goes on from the one that was found, and takes more on the way. The outcome is the same to the bit as
/// without an interruption.
///
/// # Errors
/// As [`run`], and a checkpoint that belongs to something else.
pub fn run_kept(
    session: &Session,
    recipe: &Recipe,
    checkpoints: &mut Checkpoints,
    split: SplitName,
    limit: Option<usize>,
    observer: &mut dyn RunObserver,
    cancel: &CancelToken,
) -> Result<RunOutcome, PipelineError> {
    Work::new(session, recipe, Some(checkpoints), observer, cancel)?.judged(None, split, limit)
}

/// Carries the recipe out without judging it. Steps that need no data run without.
///
/// # Errors
/// As [`run`].
pub fn build(
    session: &Session,
    recipe: &Recipe,
    observer: &mut dyn RunObserver,
    cancel: &CancelToken,
) -> Result<Built, PipelineError> {
    Work::new(session, recipe, None, observer, cancel)?.build(None)
}

/// Judges what [`build`] (or an earlier run) gave for this recipe on the same session.
///
/// # Errors
/// As [`run`].
pub fn judge_built(
    session: &Session,
    recipe: &Recipe,
    built: Built,
    split: SplitName,
    limit: Option<usize>,
    observer: &mut dyn RunObserver,
    cancel: &CancelToken,
) -> Result<RunOutcome, PipelineError> {
    Work::new(session, recipe, None, observer, cancel)?.judged(Some(built), split, limit)
}

impl Recipe {
    /// The same recipe without its training steps: what an interactive measurement carries out. What would be pruned while training is
    /// pruned at once.
    pub fn without_training(&self) -> Self {
        let mut recipe = self.clone();
        recipe.steps = steps_without_training(&self.steps);
        recipe
    }

    /// The steps before the first training, `None` where there is no training.
    fn up_to_training(&self) -> Option<Self> {
        let first = self
            .steps
            .iter()
            .position(|s| matches!(s, Step::Distil(_)))?;
        let mut recipe = self.clone();
        recipe.steps.truncate(first);
        // Nothing is pruned yet where the training is to do it.
        if matches!(recipe.steps.last(), Some(Step::Prune(prune)) if prune.schedule.is_some()) {
            recipe.steps.pop();
        }
        Some(recipe)
    }

    /// The recipe whose training step `index` ends after `epochs` epochs; what stands behind it stays, up to a later training, which was not begun.
    fn stopped_after(&self, index: usize, epochs: usize) -> Self {
        let mut recipe = self.clone();
        if let Some(Step::Distil(settings)) = recipe.steps.get_mut(index) {
            settings.stop_after = (epochs < settings.epochs).then_some(epochs);
        }
        let behind = recipe.steps.iter().skip(index + 1);
        if let Some(later) = behind
            .into_iter()
            .position(|s| matches!(s, Step::Distil(_)))
        {
            recipe.steps.truncate(index + 1 + later);
        }
        recipe
    }

    /// The recipe that ends in the state at the end of an epoch (from 1) of its training step `index`: what a new training can go on from.
    /// `None`: no training stands there, or it has not so many epochs.
    pub fn cut_at(&self, index: usize, epoch: usize) -> Option<Self> {
        let mut recipe = self.clone();
        recipe.steps.truncate(index + 1);
        match recipe.steps.get_mut(index)? {
            Step::Distil(settings) if (1..=settings.epochs).contains(&epoch) => {
                settings.stop_after = (epoch < settings.epochs).then_some(epoch);
                settings.keep_last = true;
                settings.patience = None;
                Some(recipe)
            }
            _ => None,
        }
    }

    /// Whether it is what a cancelled training left: part of the epochs that its last schedule was made for.
    pub fn is_partial(&self) -> bool {
        let last = self.steps.iter().rev().find_map(|s| match s {
            Step::Distil(settings) => Some(settings),
            _ => None,
        });
        last.is_some_and(|d| d.trained_epochs() < d.epochs)
    }

    /// Hash of what decides the outcome on a given model, student and data: the steps and the seed; not names and paths.
    pub fn steps_sha256(&self) -> Result<String, RecipeError> {
        let mut recipe = self.clone();
        if let Some(file) = recipe.student_file_mut() {
            *file = PathBuf::from("student.onnx");
        }
        // Its rules are not hashed, as what they do to the steps stands in the scheme.
        recipe
            .rename_target_files(|path| path.file_name().map_or_else(PathBuf::new, PathBuf::from));
        Ok(sha256(to_ron(&(recipe.seed, &recipe.steps))?.as_bytes()))
    }
}

/// Steps as [`Recipe::without_training`] has them.
pub fn steps_without_training(steps: &[Step]) -> Vec<Step> {
    let kept = steps.iter().filter(|s| !matches!(s, Step::Distil(_)));
    let mut kept: Vec<Step> = kept.cloned().collect();
    for step in &mut kept {
        if let Step::Prune(prune) = step {
            prune.schedule = None;
        }
    }
    kept
}

struct Work<'a> {
    recipe: &'a Recipe,
    session: &'a Session,
    /// What rules speak of: the original's layers, or a given student's.
    layers: &'a [LayerFacts],
    resolved: Resolved,
    observer: &'a mut dyn RunObserver,
    cancel: &'a CancelToken,
    checkpoints: Option<&'a mut Checkpoints>,
    done: u64,
    total: u64,
}

impl<'a> Work<'a> {
    fn new(
        session: &'a Session,
        recipe: &'a Recipe,
        checkpoints: Option<&'a mut Checkpoints>,
        observer: &'a mut dyn RunObserver,
        cancel: &'a CancelToken,
    ) -> Result<Self, PipelineError> {
        let layers = session.layers_of(recipe)?;
        let mut work = Self {
            resolved: resolve(recipe, layers)?,
            layers,
            recipe,
            session,
            observer,
            cancel,
            checkpoints,
            done: 0,
            total: 0,
        };
        let steps: u64 = work.resolved.steps.iter().map(|s| work.cost(s)).sum();
        work.total = steps.max(1);
        Ok(work)
    }

    /// Judges what was `built`, or what the steps give.
    fn judged(
        mut self,
        built: Option<Built>,
        split: SplitName,
        limit: Option<usize>,
    ) -> Result<RunOutcome, PipelineError> {
        let samples = self.session.samples(split, limit)? as u64;
        let compressed = u64::from(!self.recipe.steps.is_empty());
        let before = u64::from(self.recipe.trains() && self.observer.wants_before_training());
        match built {
            Some(_) => self.total = 2 * samples,
            None => self.total += (1 + compressed + before) * samples,
        }
        let started = Instant::now();
        let judging = Judging {
            split,
            limit,
            baseline: self.evaluate_baseline(split, limit)?,
            started,
        };
        let built = match built {
            Some(built) => built,
            None => self.build(Some(&judging))?,
        };
        self.judge(self.recipe.clone(), built, &judging)
    }

    /// Says how far it is and stops if asked to.
    fn advance(&mut self, by: u64, detail: &str) -> Result<(), PipelineError> {
        self.done += by;
        self.observer.progress(self.done, self.total, detail);
        stop(self.cancel).map_err(Into::into)
    }
}

fn stop(cancel: &CancelToken) -> Result<(), ExecError> {
    if cancel.is_cancelled() {
        return Err(ExecError::Cancelled);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_stopped_training_keeps_the_steps_behind_it_but_no_later_training() {
        let recipe = |steps: &str| {
            let text = format!(
                "(version: 1, model: \"m\", task: \"t\", steps: [Prune(default: set(0.5)), {steps}])"
            );
            Recipe::parse(&text, Path::new("r.ron")).expect("a recipe")
        };
        let stopped = |steps: &str, index| {
            let steps = recipe(steps).stopped_after(index, 2).steps;
            let kinds: Vec<bool> = steps.iter().map(|s| matches!(s, Step::Distil(_))).collect();
            let Step::Distil(settings) = &steps[index] else {
                panic!("{steps:?}");
            };
            assert_eq!(settings.stop_after, Some(2));
            kinds
        };
        let (training, other) = (true, false);
        assert_eq!(
            stopped("Distil(epochs: 9), Quantize(default: set(int8))", 1),
            [other, training, other]
        );
        let twice = "Distil(epochs: 9), Quantize(default: set(int8)), Distil(epochs: 5)";
        assert_eq!(stopped(twice, 1), [other, training, other]);
        assert_eq!(stopped(twice, 3), [other, training, other, training]);
    }
}
