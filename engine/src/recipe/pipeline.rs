//! The one pipeline that carries a recipe out, for desktop and command line alike: same bits in both, for any number of threads.

mod watch;
mod words;

use super::{
    Checkpoints, GoalVerdict, PipelineError, Recipe, RecipeError, Resolved, ResolvedStep, Session,
    Step, files::sha256, judge, resolve, to_ron,
};
use super::{checkpoints::Stand, low_rank::heirs};
use crate::{
    compress::{
        Account, ByLayer, CorrectBias, EnergyOf, Equalize, FoldBatchNorm, LowRank, MagnitudePrune,
        Model, OnLayers, Pass, PassContext, Precision, PruneChannels, QuantScheme, Quantize,
        calibrate_layers, pack,
    },
    data::{Dataset, SplitName},
    eval::{self, Evaluation, Metrics},
    exec::{CancelToken, ExecError, Mode, NoTaps, Program, Taps},
    formats::onnx,
    graph::{Graph, LayerId},
    measure::{self, Sizes},
    target::{LayerSaturation, Saturation},
    train::{self, DistilSettings, TrainPoint},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};
use watch::{Saver, Watch};
use words::training_words;

/// Told how far a run is, after every mini-batch: the place where other work may be done in between.
pub trait RunObserver {
    /// `done` of `total` in units of one sample's inference; `detail` in words.
    fn progress(&mut self, done: u64, total: u64, detail: &str);
    /// Something that is to be said at once, and stops nothing.
    fn note(&mut self, _words: &str) {}
    /// A point of the training curves.
    fn curve(&mut self, _point: &TrainPoint) {}
    /// Whether the state before the last training is to be judged too (see [`RunObserver::before_training`]).
    fn wants_before_training(&self) -> bool {
        false
    }
    /// What the steps before the first training give: a whole result, with the shorter recipe that gives it.
    fn before_training(&mut self, _outcome: RunOutcome) {}
    /// Training was cancelled after an epoch that had won something: the best of them, with the shorter recipe that gives it.
    fn cancelled_training(&mut self, _recipe: Recipe, _built: Built) {}
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
    judged(session, recipe, None, None, split, limit, observer, cancel)
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
    let kept = Some(checkpoints);
    judged(session, recipe, None, kept, split, limit, observer, cancel)
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
    Work::new(session, recipe, None, 0, observer, cancel)?.build(session, None)
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
    let built = Some(built);
    judged(session, recipe, built, None, split, limit, observer, cancel)
}

#[allow(clippy::too_many_arguments)]
fn judged(
    session: &Session,
    recipe: &Recipe,
    built: Option<Built>,
    checkpoints: Option<&mut Checkpoints>,
    split: SplitName,
    limit: Option<usize>,
    observer: &mut dyn RunObserver,
    cancel: &CancelToken,
) -> Result<RunOutcome, PipelineError> {
    let samples = session.samples(split, limit)? as u64;
    let mut work = Work::new(session, recipe, checkpoints, samples, observer, cancel)?;
    if built.is_some() {
        work.total = 2 * samples;
    }
    let started = Instant::now();
    let baseline = work.evaluate_baseline(split, limit, samples)?;
    let built = match built {
        Some(built) => built,
        None => work.build(session, Some((split, limit, &baseline, started)))?,
    };
    work.judge(
        session,
        recipe.clone(),
        built,
        split,
        limit,
        baseline,
        started,
    )
}

impl Recipe {
    /// The same recipe without its training steps: what an interactive measurement carries out.
    pub fn without_training(&self) -> Self {
        let mut recipe = self.clone();
        recipe.steps.retain(|s| !matches!(s, Step::Distil(_)));
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
        Some(recipe)
    }

    /// The recipe that ends with its training step `index` after `epochs` epochs.
    fn stopped_after(&self, index: usize, epochs: usize) -> Self {
        let mut recipe = self.clone();
        recipe.steps.truncate(index + 1);
        if let Some(Step::Distil(settings)) = recipe.steps.last_mut() {
            settings.stop_after = (epochs < settings.epochs).then_some(epochs);
        }
        recipe
    }

    /// Whether it is what a cancelled training left: part of the epochs that its schedule was made for.
    pub fn is_partial(&self) -> bool {
        self.steps
            .iter()
            .any(|s| matches!(s, Step::Distil(d) if d.trained_epochs() < d.epochs))
    }

    /// Hash of what decides the outcome on a given model and data: the steps and the seed; not names and paths.
    pub fn steps_sha256(&self) -> Result<String, RecipeError> {
        Ok(sha256(to_ron(&(self.seed, &self.steps))?.as_bytes()))
    }
}

/// Cost of a training sample in units of one inference: student forward and backward, teacher forward.
const TRAIN_COST: u64 = 4;

struct Work<'a> {
    recipe: &'a Recipe,
    session: &'a Session,
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
        samples: u64,
        observer: &'a mut dyn RunObserver,
        cancel: &'a CancelToken,
    ) -> Result<Self, PipelineError> {
        let resolved = resolve(recipe, &session.layers)?;
        let mut work = Self {
            recipe,
            session,
            resolved,
            observer,
            cancel,
            checkpoints,
            done: 0,
            total: 0,
        };
        let steps: u64 = work.resolved.steps.iter().map(|s| work.cost(s)).sum();
        let judged = 1
            + u64::from(!recipe.steps.is_empty())
            + u64::from(recipe.trains() && work.observer.wants_before_training());
        work.total = (steps + judged * samples).max(1);
        Ok(work)
    }

    fn cost(&self, step: &ResolvedStep) -> u64 {
        match step {
            ResolvedStep::FoldBatchNorm | ResolvedStep::Prune(_) | ResolvedStep::Equalize(_) => 0,
            // Scored and taken statistics of, where either is asked for; a gradient costs about three inferences.
            ResolvedStep::PruneChannels { settings, .. } => {
                let measured = u64::from(settings.criterion.needs_data()) * (TRAIN_COST - 1);
                (measured + u64::from(settings.reestimate)) * settings.samples as u64
            }
            ResolvedStep::LowRank { settings, .. } => settings.samples as u64,
            ResolvedStep::SmoothQuant(method) => method.settings.samples as u64,
            ResolvedStep::SequentialMse(OnLayers { settings, layers }) => self.cost_by_layer(
                settings.samples,
                (settings.candidates + 1) as f64 * settings.positions as f64,
                layers,
            ),
            ResolvedStep::AdaRound(OnLayers { settings, layers }) => self.cost_by_layer(
                settings.samples,
                2.0 * settings.batch as f64 * settings.iterations as f64,
                layers,
            ),
            // Two triangular products by the width of the input, which is not known here: a few hundred.
            ResolvedStep::Gptq(OnLayers { settings, layers }) => {
                self.cost_by_layer(settings.samples, settings.positions as f64 + 500.0, layers)
            }
            // Twice through the network, and parts of it again and again.
            ResolvedStep::CorrectBias { samples, .. } => 4 * *samples as u64,
            ResolvedStep::Quantize { scheme, .. } => scheme.samples as u64,
            ResolvedStep::Distil(s) => self.session.data.as_ref().map_or(0, |d| training(s, d)),
        }
    }

    /// Cost of a method that goes through the network layer by layer with `samples`, and does `each` multiplications for a weight.
    fn cost_by_layer(&self, samples: usize, each: f64, chosen: &BTreeSet<LayerId>) -> u64 {
        let layers = &self.session.layers;
        let weights: f64 = layers
            .iter()
            .filter(|l| chosen.contains(&l.id))
            .map(|l| l.weight_shape.iter().map(|d| *d as f64).product::<f64>())
            .sum();
        let macs: f64 = layers.iter().filter_map(|l| l.macs).map(|m| m as f64).sum();
        4 * samples as u64 + (each * weights / macs.max(weights).max(1.0)) as u64
    }

    /// Says how far it is and stops if asked to.
    fn advance(&mut self, by: u64, detail: &str) -> Result<(), PipelineError> {
        self.done += by;
        self.observer.progress(self.done, self.total, detail);
        stop(self.cancel).map_err(Into::into)
    }

    /// Carries a pass out that goes layer by layer, and tells the observer what it is `doing` and when it is `done`.
    fn by_layer(
        &mut self,
        pass: &dyn ByLayer,
        [doing, done]: [&str; 2],
        cost: u64,
        model: Model,
        accounts: &mut Vec<Account>,
        context: &PassContext<'_>,
    ) -> Result<Model, PipelineError> {
        let (before, all) = (self.done, self.total);
        let (model, account) = pass.run(model, context, &mut |done, total| {
            let detail = format!("{doing}: layer {} of {total}", (done + 1).min(total));
            let part = cost * done as u64 / total.max(1) as u64;
            self.observer.progress(before + part, all, &detail);
        })?;
        accounts.push(account);
        self.advance(cost, done)?;
        Ok(model)
    }

    fn evaluate_baseline(
        &mut self,
        split: SplitName,
        limit: Option<usize>,
        samples: u64,
    ) -> Result<Arc<Evaluation>, PipelineError> {
        let mut watch = Watch::new(self, format!("original on the {} split", split));
        let cancel = watch.cancel;
        let session = watch.session;
        let baseline = session.baseline(split, limit, &mut watch, cancel)?;
        self.advance(samples, "original evaluated")?;
        Ok(baseline)
    }

    fn build(
        &mut self,
        session: &Session,
        judged: Option<(SplitName, Option<usize>, &Arc<Evaluation>, Instant)>,
    ) -> Result<Built, PipelineError> {
        let mut steps = self.resolved.steps.clone();
        let stand = match &mut self.checkpoints {
            Some(kept) => kept.stand(session, self.recipe, self.cancel)?,
            None => None,
        };
        let Stand {
            index: first,
            mut model,
            mut accounts,
            mut training,
        } = stand.unwrap_or_else(|| Stand {
            index: 0,
            model: session.model(),
            accounts: Vec::new(),
            training: None,
        });
        let behind = steps.get(..first).unwrap_or_default();
        self.done += behind.iter().map(|s| self.cost(s)).sum::<u64>();
        let mut trained = behind.iter().any(|s| matches!(s, ResolvedStep::Distil(_)));
        inherit(steps.get_mut(first..).unwrap_or_default(), &model, session);
        for index in first..steps.len() {
            let (before, rest) = steps.split_at_mut(index);
            let Some((step, later)) = rest.split_first_mut() else {
                break;
            };
            // What took long before this step is not done again after a kill.
            self.keep(index, &model, &accounts, false);
            let cost = self.cost(step);
            let context = PassContext {
                data: session.data.as_ref(),
                cancel: self.cancel,
                seed: self.recipe.seed,
            };
            match step {
                ResolvedStep::FoldBatchNorm => {
                    apply(&FoldBatchNorm, &mut model, &mut accounts, &context)?;
                    self.advance(cost, "batch norms folded")?;
                }
                ResolvedStep::PruneChannels { settings, layers } => {
                    if settings.criterion.needs_data() {
                        session.runnable_to(
                            "score channels on, or choose a criterion that looks at weights only (l1, l2, norm_scale, \
                             geometric_median)",
                        )?;
                    }
                    self.observer
                        .progress(self.done, self.total, "choosing channels");
                    let pass = PruneChannels {
                        settings: settings.clone(),
                        layers: layers.clone(),
                    };
                    apply(&pass, &mut model, &mut accounts, &context)?;
                    self.advance(cost, "channels taken out")?;
                }
                ResolvedStep::LowRank { settings, layers } => {
                    let looks = settings.energy_of == EnergyOf::Outputs && session.data.is_some();
                    if looks {
                        session.runnable_to("look at outputs on, or set `energy_of: weights`")?;
                    }
                    self.observer
                        .progress(self.done, self.total, "choosing ranks");
                    let pass = LowRank {
                        settings: settings.clone(),
                        layers: layers.clone(),
                    };
                    apply(&pass, &mut model, &mut accounts, &context)?;
                    inherit(later, &model, session);
                    self.advance(cost, "layers taken apart")?;
                }
                ResolvedStep::Prune(ratios) => {
                    let pass = MagnitudePrune {
                        ratios: ratios.clone(),
                    };
                    apply(&pass, &mut model, &mut accounts, &context)?;
                    self.advance(cost, "pruned")?;
                }
                ResolvedStep::Quantize { scheme, layers } => {
                    self.observer.progress(self.done, self.total, "calibrating");
                    let mut pass = Quantize {
                        scheme: scheme.clone(),
                        layers: layers.clone(),
                        ranges: None,
                    };
                    if needs_ranges(scheme, layers) {
                        let data = session.runnable_to(
                            "calibrate activations on, or quantise weights only (`activations: float` in the scheme)",
                        )?;
                        let before: &[ResolvedStep] = before;
                        let key = sha256(
                            to_ron(&(
                                self.recipe.seed,
                                before,
                                scheme.range_method(),
                                scheme.symmetry,
                                scheme.samples,
                            ))?
                            .as_bytes(),
                        );
                        let cancel = self.cancel;
                        pass.ranges = Some(session.ranges(&key, || {
                            Ok(calibrate_layers(&model.graph, data, scheme, cancel)?)
                        })?);
                    }
                    apply(&pass, &mut model, &mut accounts, &context)?;
                    self.advance(cost, "quantised")?;
                }
                ResolvedStep::Equalize(layers) => {
                    let pass = Equalize {
                        layers: layers.clone(),
                    };
                    apply(&pass, &mut model, &mut accounts, &context)?;
                    self.advance(cost, "equalised")?;
                }
                ResolvedStep::SmoothQuant(pass) => {
                    session.runnable_to("take the ranges of inputs from")?;
                    self.observer.progress(self.done, self.total, "smoothing");
                    apply(pass, &mut model, &mut accounts, &context)?;
                    self.advance(cost, "smoothed")?;
                }
                ResolvedStep::SequentialMse(pass) => {
                    session.runnable_to("choose scales on")?;
                    let words = ["choosing scales", "scales chosen"];
                    model = self.by_layer(pass, words, cost, model, &mut accounts, &context)?;
                }
                ResolvedStep::AdaRound(pass) => {
                    session.runnable_to("choose roundings on")?;
                    let words = ["choosing roundings", "roundings chosen"];
                    model = self.by_layer(pass, words, cost, model, &mut accounts, &context)?;
                }
                ResolvedStep::Gptq(pass) => {
                    session.runnable_to("choose codes on")?;
                    let words = ["choosing codes", "codes chosen"];
                    model = self.by_layer(pass, words, cost, model, &mut accounts, &context)?;
                }
                ResolvedStep::CorrectBias { samples, layers } => {
                    session.runnable_to("correct biases on")?;
                    let pass = CorrectBias {
                        samples: *samples,
                        layers: layers.clone(),
                    };
                    let words = ["correcting biases", "biases corrected"];
                    model = self.by_layer(&pass, words, cost, model, &mut accounts, &context)?;
                }
                ResolvedStep::Distil(settings) => {
                    let data = session.runnable_to("distil on")?;
                    if let Some((split, limit, baseline, started)) = judged
                        && !trained
                        && self.observer.wants_before_training()
                        && let Some(recipe) = self.recipe.up_to_training()
                    {
                        let resolved = resolve(&recipe, &session.layers)?;
                        let built = self.finish(resolved, &recipe, &model, accounts.clone())?;
                        let outcome = self.judge(
                            session,
                            recipe,
                            built,
                            split,
                            limit,
                            baseline.clone(),
                            started,
                        )?;
                        self.observer.before_training(outcome);
                    }
                    trained = true;
                    let mut watch = Watch::new(self, "distilling: judging the start".to_owned());
                    watch.cost = cost;
                    watch.epochs = settings.trained_epochs();
                    watch.saver = Saver::new(index, &model, &accounts);
                    let cancel = watch.cancel;
                    let seed = watch.recipe.seed;
                    let teacher = &session.graph;
                    let distilled = match training.take() {
                        None => {
                            train::distil(model, teacher, data, settings, seed, &mut watch, cancel)
                        }
                        Some(from) => {
                            for point in from.points() {
                                watch.observer.curve(point);
                            }
                            let watch = &mut watch;
                            train::resume(
                                model, teacher, data, settings, seed, &from, watch, cancel,
                            )
                        }
                    }?;
                    accounts.push(Account {
                        pass: training_words(settings, &distilled),
                        entries: Vec::new(),
                    });
                    model = distilled.model;
                    if distilled.cancelled {
                        // Stopping after the best epoch gives the same state: what was won can be repeated.
                        if distilled.best_epoch > 0 {
                            let recipe = self.recipe.stopped_after(index, distilled.best_epoch);
                            let resolved = resolve(&recipe, &session.layers)?;
                            let built = self.finish(resolved, &recipe, &model, accounts)?;
                            self.observer.cancelled_training(recipe, built);
                        }
                        return Err(PipelineError::Cancelled);
                    }
                    self.advance(cost, "distilled")?;
                    self.keep(index + 1, &model, &accounts, true);
                }
            }
        }
        let resolved = self.resolved.clone();
        self.finish(resolved, self.recipe, &model, accounts)
    }

    /// Takes a checkpoint before step `index`, where one is due or it is `worth` it anyway.
    fn keep(&mut self, index: usize, model: &Model, accounts: &[Account], worth: bool) {
        if let Some(kept) = &mut self.checkpoints
            && (kept.due(0) || worth && kept.wanted())
            && let Some(words) = kept.save(index, model, accounts, None)
        {
            self.observer.note(&words);
        }
    }

    /// Packs and encodes.
    fn finish(
        &self,
        resolved: Resolved,
        recipe: &Recipe,
        model: &Model,
        accounts: Vec<Account>,
    ) -> Result<Built, PipelineError> {
        let mut graph = pack(model)?;
        // Nothing of names, paths or time: the same work gives the same bytes everywhere.
        let mut note = |key: &str, value: String| graph.metadata.insert(key.to_owned(), value);
        note("limbeck.version", crate::VERSION.to_owned());
        note(
            "limbeck.source_sha256",
            self.session.model_sha256(self.cancel)?,
        );
        note("limbeck.steps_sha256", recipe.steps_sha256()?);
        let bytes = Arc::new(onnx::to_bytes(&graph)?);
        Ok(Built {
            model_sha256: sha256(&bytes),
            sizes: measure::sizes(&graph)?,
            resolved,
            graph,
            bytes,
            accounts,
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn judge(
        &mut self,
        session: &Session,
        recipe: Recipe,
        mut built: Built,
        split: SplitName,
        limit: Option<usize>,
        baseline: Arc<Evaluation>,
        started: Instant,
    ) -> Result<RunOutcome, PipelineError> {
        let mut saturates = Vec::new();
        let evaluation = if recipe.steps.is_empty() {
            baseline.clone()
        } else {
            let data = session.runnable()?;
            let program = Program::compile(&built.graph, Mode::Inference)?;
            // What a target's kernels cut off belongs to the prediction.
            let target = recipe
                .target()
                .map_err(|e| RecipeError::new(e.to_string()))?;
            let mut saturation = target.and_then(|t| Saturation::of(&built.graph, &t));
            let mut none = NoTaps;
            let taps: &mut dyn Taps = match &mut saturation {
                Some(saturation) => saturation,
                None => &mut none,
            };
            let mut watch = Watch::new(self, format!("judging on the {} split", split));
            let cancel = watch.cancel;
            let mut result =
                eval::evaluate_tapped(&program, data, split, limit, taps, &mut watch, cancel)?;
            if let Some(saturation) = saturation {
                result.simulated = saturation.target().map(str::to_owned);
                saturates = saturation.by_layer();
                let account = saturation.account();
                built.accounts.retain(|a| a.pass != account.pass);
                built.accounts.push(account);
            }
            self.advance(result.n, "judged")?;
            Arc::new(result)
        };
        let metrics = evaluation.metrics(Some(&baseline));
        let baseline_metrics = baseline.metrics(None);
        Ok(RunOutcome {
            verdicts: judge(
                &recipe.goals,
                &metrics,
                baseline_metrics.top1.value,
                &built.sizes,
            ),
            recipe,
            resolved: built.resolved,
            graph: built.graph,
            bytes: built.bytes,
            model_sha256: built.model_sha256,
            split,
            limit,
            evaluation,
            metrics,
            baseline,
            baseline_metrics,
            sizes: built.sizes,
            accounts: built.accounts,
            saturation: saturates,
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

/// Whether any layer's input is to be quantised: only then is data needed.
fn needs_ranges(scheme: &QuantScheme, layers: &BTreeMap<LayerId, Precision>) -> bool {
    scheme.activations.calibrated_bits().is_some() && layers.values().any(|p| p.is_integer())
}

/// Later steps ask of factors what they ask of the layer that was taken apart.
fn inherit(later: &mut [ResolvedStep], model: &Model, session: &Session) {
    let layers = model.graph.layers();
    let heirs = heirs(&layers, &session.layers);
    later.iter_mut().for_each(|step| step.inherit(&heirs));
}

fn training(s: &DistilSettings, data: &Dataset) -> u64 {
    let all = data.len(SplitName::Training);
    let epoch = s.samples.map_or(all, |n| n.min(all)) as u64;
    let check = data.len(SplitName::Search) as u64;
    s.trained_epochs() as u64 * (epoch * TRAIN_COST + check) + check
}

fn apply(
    pass: &dyn Pass,
    model: &mut Model,
    accounts: &mut Vec<Account>,
    context: &PassContext<'_>,
) -> Result<(), PipelineError> {
    stop(context.cancel)?;
    let (next, account) = pass.apply(model.clone(), context)?;
    *model = next;
    accounts.push(account);
    Ok(())
}

fn stop(cancel: &CancelToken) -> Result<(), ExecError> {
    if cancel.is_cancelled() {
        return Err(ExecError::Cancelled);
    }
    Ok(())
}
