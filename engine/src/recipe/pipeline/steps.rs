//! One step after the other, from the original or from where a checkpoint stands.

use super::{
    Built, Reached, Work,
    judging::Judging,
    watch::{Saver, Watch},
    words::training_words,
};
use crate::{
    compress::{
        Absorb, Account, ByLayer, Cluster, CorrectBias, EnergyOf, FoldBatchNorm, FoldBatchNormOnly,
        LowRank, MagnitudePrune, Model, Pass, PassContext, Precision, PruneBlocks, PruneChannels,
        QuantScheme, Quantize, Student, calibrate_layers,
    },
    data::SplitName,
    graph::LayerId,
    recipe::{
        PipelineError, ResolvedStep, Step, checkpoints::Stand, files::sha256, low_rank::heirs,
        resolve, to_ron,
    },
    search::LayerFacts,
    train::{self, DistilSettings},
};
use std::collections::{BTreeMap, BTreeSet};

impl<'a> Work<'a> {
    /// Carries all steps out that are not behind a checkpoint; what stands before the first training is judged too where the observer
    /// wants it and there is something to judge on.
    pub(super) fn build(&mut self, judging: Option<&Judging>) -> Result<Built, PipelineError> {
        let mut steps = self.resolved.steps.clone();
        let stand = match &mut self.checkpoints {
            Some(kept) => kept.stand(self.session, self.recipe, self.cancel)?,
            None => None,
        };
        let stand = match stand {
            None => self.known_stand()?,
            found => found,
        };
        let mut stand = stand.unwrap_or_else(|| Stand {
            index: 0,
            model: self.session.model(),
            accounts: Vec::new(),
            training: None,
        });
        let first = stand.index;
        let behind = steps.get(..first).unwrap_or_default();
        let skipped = behind.iter().map(|s| self.cost(s)).sum::<u64>();
        self.done += skipped;
        self.observer.skipped(skipped);
        let is_training = |s: &ResolvedStep| matches!(s, ResolvedStep::Distil(_));
        let fewer = behind.iter().any(takes_layers_out);
        let ahead = steps.get_mut(first..).unwrap_or_default();
        inherit(ahead, &stand.model, self.layers, fewer);
        for index in first..steps.len() {
            stand.index = index;
            let (before, rest) = steps.split_at_mut(index);
            let Some((step, later)) = rest.split_first_mut() else {
                break;
            };
            // What took long before this step is not done again after a kill.
            self.keep(index, &stand, false);
            if is_training(step) && !before.iter().any(is_training) {
                self.judge_before_training(&stand, judging)?;
            }
            self.step(step, before, &mut stand)?;
            let fewer = takes_layers_out(step);
            if fewer || matches!(step, ResolvedStep::LowRank { .. }) {
                inherit(later, &stand.model, self.layers, fewer);
            }
        }
        let resolved = self.resolved.clone();
        self.finish(resolved, self.recipe, &stand.model, stand.accounts)
    }

    /// The furthest state that the observer has kept of an earlier run that began with the same steps.
    fn known_stand(&self) -> Result<Option<Stand>, PipelineError> {
        for (index, step) in self.recipe.steps.iter().enumerate().rev() {
            if matches!(step, Step::Distil(_)) {
                let mut recipe = self.recipe.clone();
                recipe.steps.truncate(index + 1);
                if let Some(known) = self.observer.known(&recipe.steps_sha256()?) {
                    return Ok(Some(known.stand));
                }
            }
        }
        Ok(None)
    }

    /// Carries a step out; `before` are those before it.
    fn step(
        &mut self,
        step: &ResolvedStep,
        before: &[ResolvedStep],
        stand: &mut Stand,
    ) -> Result<(), PipelineError> {
        let session = self.session;
        let cost = self.cost(step);
        match step {
            ResolvedStep::FoldBatchNorm => {
                let words = ["folding batch norms", "batch norms folded"];
                let pass: &dyn Pass = match self.resolved.steps.iter().any(absorbs) {
                    true => &FoldBatchNorm,
                    false => &FoldBatchNormOnly,
                };
                self.pass(pass, words, cost, stand)
            }
            ResolvedStep::Student(settings) => {
                if settings.needs_data() {
                    session.runnable_to(
                        "judge blocks and channels on, or make the student by width alone and a criterion that looks at weights only",
                    )?;
                }
                let pass = Student(settings.clone());
                self.pass(&pass, ["making the student", "student made"], cost, stand)
            }
            ResolvedStep::StudentFile => {
                if let Some(student) = session.student(self.recipe)? {
                    let (model, account) = student.start(&session.graph);
                    stand.model = model;
                    stand.accounts.push(account);
                }
                self.advance(cost, "student in the original's place")
            }
            ResolvedStep::PruneBlocks { settings, layers } => {
                if settings.count.is_some() {
                    session.runnable_to(
                        "judge blocks on, or name them in `layers`, without a `count`",
                    )?;
                }
                let pass = PruneBlocks {
                    settings: settings.clone(),
                    layers: layers.clone(),
                };
                self.pass(&pass, ["judging blocks", "blocks taken out"], cost, stand)
            }
            ResolvedStep::PruneChannels { settings, layers } => {
                if settings.criterion.needs_data() {
                    session.runnable_to(
                        "score channels on, or choose a criterion that looks at weights only (l1, l2, norm_scale, \
                         geometric_median)",
                    )?;
                }
                let pass = PruneChannels {
                    settings: settings.clone(),
                    layers: layers.clone(),
                };
                self.pass(
                    &pass,
                    ["choosing channels", "channels taken out"],
                    cost,
                    stand,
                )
            }
            ResolvedStep::LowRank { settings, layers } => {
                if settings.energy_of == EnergyOf::Outputs && session.data.is_some() {
                    session.runnable_to("look at outputs on, or set `energy_of: weights`")?;
                }
                let pass = LowRank {
                    settings: settings.clone(),
                    layers: layers.clone(),
                };
                self.pass(&pass, ["choosing ranks", "layers taken apart"], cost, stand)
            }
            ResolvedStep::Prune {
                pattern,
                schedule,
                layers,
            } => {
                let pass = MagnitudePrune {
                    ratios: layers.clone(),
                    pattern: *pattern,
                    schedule: *schedule,
                };
                self.pass(&pass, ["pruning", "pruned"], cost, stand)
            }
            ResolvedStep::Cluster { codebooks, layers } => {
                let pass = Cluster {
                    codebooks: *codebooks,
                    layers: layers.clone(),
                };
                self.pass(&pass, ["clustering", "values shared"], cost, stand)
            }
            ResolvedStep::Quantize { scheme, layers } => {
                self.observer.progress(self.done, self.total, "calibrating");
                let pass = self.quantize(scheme, layers, before, &stand.model)?;
                self.pass(&pass, ["quantising", "quantised"], cost, stand)
            }
            ResolvedStep::Equalize(pass) => {
                if pass.settings.absorb == Absorb::Minimum
                    || pass.settings.absorb != Absorb::Off && session.data.is_some()
                {
                    session
                        .runnable_to("look at channels on, or leave `absorb` out of Equalize")?;
                }
                self.pass(pass, ["equalising", "equalised"], cost, stand)
            }
            ResolvedStep::SmoothQuant(pass) => {
                session.runnable_to("take the ranges of inputs from")?;
                self.pass(pass, ["smoothing", "smoothed"], cost, stand)
            }
            ResolvedStep::SequentialMse(pass) => {
                session.runnable_to("choose scales on")?;
                self.by_layer(pass, ["choosing scales", "scales chosen"], cost, stand)
            }
            ResolvedStep::AdaRound(pass) => {
                session.runnable_to("choose roundings on")?;
                self.by_layer(
                    pass,
                    ["choosing roundings", "roundings chosen"],
                    cost,
                    stand,
                )
            }
            ResolvedStep::Brecq(pass) => {
                session.runnable_to("choose roundings on")?;
                self.by_layer(
                    pass,
                    ["choosing roundings by block", "roundings chosen"],
                    cost,
                    stand,
                )
            }
            ResolvedStep::Gptq(pass) => {
                session.runnable_to("choose codes on")?;
                self.by_layer(pass, ["choosing codes", "codes chosen"], cost, stand)
            }
            ResolvedStep::CorrectBias { samples, layers } => {
                session.runnable_to("correct biases on")?;
                let pass = CorrectBias {
                    samples: *samples,
                    layers: layers.clone(),
                };
                self.by_layer(
                    &pass,
                    ["correcting biases", "biases corrected"],
                    cost,
                    stand,
                )
            }
            ResolvedStep::Distil(settings) => self.distil(settings, cost, stand),
        }
    }

    /// What passes are told.
    fn context(&self) -> PassContext<'a> {
        PassContext {
            data: self.session.data.as_ref(),
            cancel: self.cancel,
            seed: self.recipe.seed,
        }
    }

    /// Carries a pass out, and tells the observer what it is `doing` and when it is `done`.
    fn pass(
        &mut self,
        pass: &dyn Pass,
        [doing, done]: [&str; 2],
        cost: u64,
        stand: &mut Stand,
    ) -> Result<(), PipelineError> {
        self.advance(0, doing)?;
        let (model, account) = pass.apply(stand.model.clone(), &self.context())?;
        stand.model = model;
        stand.accounts.push(account);
        self.advance(cost, done)
    }

    /// As [`Work::pass`], of a pass that goes layer by layer.
    fn by_layer(
        &mut self,
        pass: &dyn ByLayer,
        [doing, done]: [&str; 2],
        cost: u64,
        stand: &mut Stand,
    ) -> Result<(), PipelineError> {
        let (before, all, context) = (self.done, self.total, self.context());
        let (model, account) = pass.run(stand.model.clone(), &context, &mut |done, total| {
            let detail = format!("{doing}: layer {} of {total}", (done + 1).min(total));
            let part = cost * done as u64 / total.max(1) as u64;
            self.observer.progress(before + part, all, &detail);
        })?;
        stand.model = model;
        stand.accounts.push(account);
        self.advance(cost, done)
    }

    /// Quantisation with the ranges that it needs: those the session has, if these very steps stood before them once.
    fn quantize(
        &self,
        scheme: &QuantScheme,
        layers: &BTreeMap<LayerId, Precision>,
        before: &[ResolvedStep],
        model: &Model,
    ) -> Result<Quantize, PipelineError> {
        let mut pass = Quantize {
            scheme: scheme.clone(),
            layers: layers.clone(),
            ranges: None,
        };
        if needs_ranges(scheme, layers) {
            let data = self.session.runnable_to(
                "calibrate activations on, or quantise weights only (`activations: float` in the scheme)",
            )?;
            let key = to_ron(&(
                self.recipe.seed,
                before,
                scheme.range_method(),
                scheme.symmetry,
                scheme.samples,
                &scheme.outputs,
            ))?;
            let calibrate = || Ok(calibrate_layers(&model.graph, data, scheme, self.cancel)?);
            pass.ranges = Some(self.session.ranges(&sha256(key.as_bytes()), calibrate)?);
        }
        Ok(pass)
    }

    /// Judges what stands before the first training, for an observer that wants it.
    fn judge_before_training(
        &mut self,
        stand: &Stand,
        judging: Option<&Judging>,
    ) -> Result<(), PipelineError> {
        self.session.runnable_to("distil on")?;
        if let Some(judging) = judging
            && self.observer.wants_before_training()
            && let Some(recipe) = self.recipe.up_to_training()
        {
            let resolved = resolve(&recipe, self.layers)?;
            let mut accounts = stand.accounts.clone();
            accounts.truncate(recipe.steps.len());
            let built = self.finish(resolved, &recipe, &stand.model, accounts)?;
            let outcome = self.judge(recipe, built, judging)?;
            self.observer.before_training(outcome);
        }
        Ok(())
    }

    fn distil(
        &mut self,
        settings: &DistilSettings,
        cost: u64,
        stand: &mut Stand,
    ) -> Result<(), PipelineError> {
        let session = self.session;
        let data = session.runnable_to("distil on")?;
        let later = self.recipe.steps.iter().skip(stand.index + 1);
        let last = !later.into_iter().any(|s| matches!(s, Step::Distil(_)));
        let mut watch = Watch::new(self, "distilling: judging the start".to_owned());
        watch.cost = cost;
        watch.epochs = settings.trained_epochs();
        watch.is_last = last;
        watch.saver = Saver::new(stand.index, &stand.model, &stand.accounts);
        let (cancel, seed) = (watch.cancel, watch.recipe.seed);
        let (model, teacher) = (stand.model.clone(), &session.graph);
        let distilled = match stand.training.take() {
            None => train::distil(model, teacher, data, settings, seed, &mut watch, cancel),
            Some(from) => {
                if let Some(point) = from.points().last() {
                    watch
                        .observer
                        .skipped(cost * point.step / point.steps.max(1));
                }
                if last {
                    watch.observer.curve_so_far(from.points());
                }
                let watch = &mut watch;
                train::resume(model, teacher, data, settings, seed, &from, watch, cancel)
            }
        };
        let ends = self.observer.is_to_end();
        let distilled = match distilled {
            Ok(distilled) if !distilled.cancelled => distilled,
            // What there is to keep is kept.
            Ok(distilled) if !ends => {
                self.observer.keeps(false);
                distilled
            }
            other => {
                self.observer.keeps(false);
                other?;
                return Err(PipelineError::Cancelled);
            }
        };
        stand.accounts.push(Account {
            pass: training_words(settings, &distilled, data.has_labels(SplitName::Search)),
            entries: Vec::new(),
        });
        stand.model = distilled.model;
        if distilled.cancelled {
            // Stopping after the best epoch gives the same state: what was won can be repeated. A training that another was to go on from has won nothing.
            if distilled.best_epoch > 0 && !settings.keep_last {
                self.tell_of_stop(stand, distilled.best_epoch)?;
            }
            return Err(PipelineError::Cancelled);
        }
        let advanced = self.advance(cost, "distilled");
        if advanced.is_ok() {
            self.keep(stand.index + 1, stand, true);
        }
        self.observer.keeps(false);
        advanced
    }

    /// Tells the observer of the recipe that a cancelled training leaves: built already or, where steps stand behind the training, known up to it.
    fn tell_of_stop(&mut self, stand: &Stand, epochs: usize) -> Result<(), PipelineError> {
        let recipe = self.recipe.stopped_after(stand.index, epochs);
        let trained = stand.index + 1;
        if recipe.steps.len() > trained {
            let mut reached = recipe.clone();
            reached.steps.truncate(trained);
            self.observer.reached(Reached {
                steps_sha256: reached.steps_sha256()?,
                epoch: None,
                stand: Stand {
                    index: trained,
                    model: stand.model.clone(),
                    accounts: stand.accounts.clone(),
                    training: None,
                },
            });
            self.observer.cancelled_training(recipe, None);
        } else {
            let resolved = resolve(&recipe, self.layers)?;
            let accounts = stand.accounts.clone();
            let built = self.finish(resolved, &recipe, &stand.model, accounts)?;
            self.observer.cancelled_training(recipe, Some(built));
        }
        Ok(())
    }

    /// Takes a checkpoint before step `index`, where one is due or it is `worth` it anyway.
    fn keep(&mut self, index: usize, stand: &Stand, worth: bool) {
        if let Some(kept) = &mut self.checkpoints
            && (kept.due(0) || worth && kept.wanted())
            && let Some(words) = kept.save(index, &stand.model, &stand.accounts, None)
        {
            self.observer.note(&words);
        }
    }
}

/// Whether any layer's input is to be quantised: only then is data needed.
fn needs_ranges(scheme: &QuantScheme, layers: &BTreeMap<LayerId, Precision>) -> bool {
    scheme.activations.calibrated_bits().is_some() && layers.values().any(|p| p.is_integer())
}

/// Whether the step may ask what folded batch norms knew.
fn absorbs(step: &ResolvedStep) -> bool {
    matches!(step, ResolvedStep::Equalize(pass) if pass.settings.absorb != Absorb::Off)
}

/// Whether the model has fewer layers after the step.
fn takes_layers_out(step: &ResolvedStep) -> bool {
    matches!(
        step,
        ResolvedStep::Student(_) | ResolvedStep::PruneBlocks { .. }
    )
}

/// Later steps ask of factors what they ask of the layer that was taken apart, and nothing of layers that are gone, where there are `fewer`.
fn inherit(later: &mut [ResolvedStep], model: &Model, known: &[LayerFacts], fewer: bool) {
    let layers = model.graph.layers();
    let heirs = heirs(&layers, known);
    let mut gone: BTreeSet<LayerId> = BTreeSet::new();
    if fewer {
        gone.extend(known.iter().map(|l| l.id.clone()));
        gone.retain(|id| layers.iter().all(|l| l.id != *id));
        gone.retain(|id| heirs.iter().all(|(_, parent)| parent != id));
    }
    for step in later {
        step.inherit(&heirs);
        step.forget(&gone);
    }
}
