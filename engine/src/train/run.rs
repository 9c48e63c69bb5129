//! The training loop.

mod state;

use super::{
    BatchNorm, Checkpoint, DistilSettings, Distilled, TrainError, TrainObserver, TrainPoint,
    average::Average,
    batch::Lessons,
    checkpoint::Position,
    gradual::{Gradual, lay},
    matching::{Matching, Slopes},
    optimise::{Stepper, rate},
    order::Order,
    teacher::{Teacher, logits},
};
use crate::{
    compress::Model,
    data::{Dataset, SplitName},
    eval::{self, Estimate},
    exec::{CancelToken, ExecError, Mode, Program, StepSizes, on_pool},
    graph::Graph,
};
use candle_core::{Tensor, Var};
use std::{collections::BTreeMap, ops::Range, sync::Mutex, time::Instant};

/// Trains `student` against `teacher` with masks and fake quantisation held in place; leaves the best checkpoint by top-1
/// on the search split (the start counts as one). The same seed gives the same bits whatever the number of threads.
///
/// Batch norms keep their stored statistics while their scale and shift train, or take those of each mini-batch for the first part of the
/// schedule ([`super::BatchNorm`]; a mini-batch of a single sample has none and is trained on the stored ones). The teacher runs in inference mode
/// and its outputs are computed once a sample. A model that ends in a softmax is trained on the logarithms of its
/// probabilities. The last, incomplete mini-batch of an epoch is used.
///
/// Training that diverges (a loss or weights that are no numbers, losses far above the start's) goes back to the last epoch's end and
/// on with a quarter of the rate, a few times at most; then it is an error.
///
/// Cancelling, by the token or by an observer that returns [`TrainError::Cancelled`], ends training within a mini-batch and
/// is no error: what is returned then holds the best checkpoint so far and says that it is `cancelled`.
pub fn distil(
    student: Model,
    teacher: &Graph,
    data: &Dataset,
    settings: &DistilSettings,
    seed: u64,
    observer: &mut dyn TrainObserver,
    cancel: &CancelToken,
) -> Result<Distilled, TrainError> {
    Training::new(student, teacher, data, settings, seed, cancel)?.finish(observer)
}

/// Goes on from `checkpoint`, which a training with the same arguments gave to its observer; ends with the same bits as if it had not been
/// interrupted.
///
/// # Errors
/// As [`distil`], and a checkpoint that does not fit the model and the data.
#[allow(clippy::too_many_arguments)]
pub fn resume(
    student: Model,
    teacher: &Graph,
    data: &Dataset,
    settings: &DistilSettings,
    seed: u64,
    checkpoint: &Checkpoint,
    observer: &mut dyn TrainObserver,
    cancel: &CancelToken,
) -> Result<Distilled, TrainError> {
    let mut training = Training::new(student, teacher, data, settings, seed, cancel)?;
    training.go_on_from(checkpoint)?;
    training.finish(observer)
}

struct Training<'a> {
    data: &'a Dataset,
    settings: &'a DistilSettings,
    cancel: &'a CancelToken,
    program: Program,
    /// Features that are held against the teacher's, where any are.
    matching: Option<Matching>,
    lessons: Lessons<'a>,
    /// Of the weights, where one is asked for.
    average: Option<Average>,
    gradual: Option<Gradual>,
    stepper: Stepper,
    order: Order,
    /// The student as it came.
    base: Model,
    /// Its graph with the program's parameters, which are written into it for every checkpoint.
    graph: Graph,
    probabilities: bool,
    classes: usize,
    /// Samples an epoch.
    samples: usize,
    /// Steps that are trained, and those of the whole schedule.
    steps: u64,
    scheduled: u64,
    /// Where training stands; its weights, moments and order are those of the fields above.
    at: Position,
    /// Where to go back to.
    good: Position,
    /// Cross-entropy of the best checkpoint, which decides between equal accuracies.
    best_loss: f64,
    done: Distilled,
}

/// What one mini-batch gave.
struct Trained {
    loss: f64,
    /// What guessing all classes alike would have lost.
    guess: f64,
}

impl<'a> Training<'a> {
    fn new(
        student: Model,
        teacher: &Graph,
        data: &'a Dataset,
        settings: &'a DistilSettings,
        seed: u64,
        cancel: &'a CancelToken,
    ) -> Result<Self, TrainError> {
        settings.check()?;
        let classes = data.info().classes.len();
        let available = data.len(SplitName::Training);
        for split in [SplitName::Training, SplitName::Search] {
            if data.len(split) == 0 {
                return Err(TrainError::Settings(format!(
                    "the {} split is empty; name its samples under `splits` in the task.ron of {:?}",
                    if split == SplitName::Training {
                        "training"
                    } else {
                        "search"
                    },
                    data.info().name
                )));
            }
        }
        let matching = Matching::new(&student.graph, teacher, settings)?;
        let sample = &data.info().sample_shape;
        let (program, step_sizes) = compile(
            &student.graph,
            &student,
            settings,
            matching.as_ref(),
            sample,
        )?;
        if program.parameters().is_empty() {
            return Err(TrainError::Settings(
                "the model has no float weights left to train (they are packed): distil before exporting".into(),
            ));
        }
        let teacher = if settings.soft_weight > 0.0 || matching.is_some() {
            let temperature = settings.temperature;
            let table = Teacher::new(teacher, available, classes, temperature, matching.as_ref())?;
            Some(table)
        } else {
            None
        };
        let batch_norms = match settings.batch_norm {
            BatchNorm::Frozen => 0,
            BatchNorm::Batch { .. } => program.batch_norms(),
        };
        let matched = matching.as_ref().map(Matching::told).unwrap_or_default();
        let samples = settings.samples.unwrap_or(available).min(available);
        let gradual = match &student.gradual {
            None => None,
            Some(plan) if plan.schedule.end() > settings.trained_epochs() as f64 => {
                return Err(TrainError::Settings(format!(
                    "weights are to be pruned until epoch {}, but only {} epochs are trained",
                    plan.schedule.end(),
                    settings.trained_epochs()
                )));
            }
            Some(plan) => {
                let batches = samples.div_ceil(settings.batch);
                Some(Gradual::new(plan, &student.masks, &program, batches)?)
            }
        };
        let steps = |epochs: usize| (samples.div_ceil(settings.batch) * epochs) as u64;
        Ok(Self {
            data,
            settings,
            cancel,
            stepper: Stepper::new(settings, &trained(&program, matching.as_ref())),
            lessons: Lessons::new(data, settings, teacher, seed)?,
            average: average(&program, settings)?,
            gradual,
            program,
            matching,
            order: Order::new(seed, available),
            graph: student.graph.clone(),
            base: student.clone(),
            probabilities: student.graph.ends_in_softmax(),
            classes,
            samples,
            steps: steps(settings.trained_epochs()),
            scheduled: steps(settings.epochs),
            at: Position::default(),
            good: Position::default(),
            best_loss: f64::INFINITY,
            done: Distilled {
                model: student,
                best_epoch: 0,
                start: None,
                best: None,
                points: Vec::new(),
                epochs: 0,
                rollbacks: Vec::new(),
                batch_norms,
                step_sizes,
                matched,
                pruned: None,
                cancelled: false,
            },
        })
    }

    fn finish(mut self, observer: &mut dyn TrainObserver) -> Result<Distilled, TrainError> {
        let ran = self.run(observer);
        self.done.epochs = self.at.epoch;
        if self.done.best_epoch > 0 {
            with_final_masks(&mut self.done, self.gradual.as_ref());
        }
        match ran {
            Ok(()) => Ok(self.done),
            Err(error) if error.is_cancelled() => {
                self.done.cancelled = true;
                Ok(self.done)
            }
            Err(error) => Err(error),
        }
    }

    /// What a training leaves that ends here and keeps its last state, which was just judged.
    fn cut_here(&self, judged: Estimate) -> Distilled {
        let model = Model {
            graph: self.graph.clone(),
            ..self.base.clone()
        };
        let mut cut = Distilled {
            model,
            best_epoch: self.at.epoch,
            best: Some(judged),
            points: Vec::new(),
            epochs: self.at.epoch,
            start: self.done.start,
            rollbacks: self.done.rollbacks.clone(),
            matched: self.done.matched.clone(),
            ..self.done
        };
        with_final_masks(&mut cut, self.gradual.as_ref());
        cut
    }

    fn run(&mut self, observer: &mut dyn TrainObserver) -> Result<(), TrainError> {
        if self.done.start.is_none() {
            let start = self.judge(0, observer)?;
            self.done.start = Some(start);
            self.good = self.position()?;
        }
        let batches = self.samples.div_ceil(self.settings.batch);
        while self.at.epoch < self.settings.trained_epochs() && !self.out_of_patience() {
            if self.cancel.is_cancelled() {
                return Err(TrainError::Cancelled);
            }
            if self.at.batch == 0 {
                self.at.samples = self.order.take(self.samples);
            }
            let first = self.at.batch * self.settings.batch;
            let last = self.samples.min(first + self.settings.batch);
            let batch = self
                .at
                .samples
                .get(first..last)
                .unwrap_or_default()
                .to_vec();
            let began = Instant::now();
            let step = self.at.step;
            let rate = rate(self.settings, step, self.scheduled) * self.cut();
            let own = step < self.settings.batch_norm.frozen_from(self.scheduled);
            self.program.set_batch_statistics(own && batch.len() > 1);
            // One visit to the pool a mini-batch: waking it for every operator costs more than small ones take.
            let trained = on_pool(|| self.train(&batch, rate))?;
            let seconds = began.elapsed().as_secs_f64();
            self.at.step += 1;
            self.at.batch += 1;
            if let Some(gradual) = &mut self.gradual {
                gradual.follow(&mut self.program, self.at.step)?;
            }
            let ended = self.at.batch == batches;
            let mut wrong = self.at.recent.add(trained.loss, trained.guess);
            if wrong.is_none() && ended {
                wrong = self.broken_parameter()?;
            }
            if let Some(wrong) = wrong {
                self.roll_back(wrong, rate)?;
                continue;
            }
            let epoch = self.at.epoch as f64 + self.at.batch as f64 / batches as f64;
            let mut accuracy = None;
            if ended {
                let judged = self.judge(self.at.epoch + 1, observer)?;
                accuracy = Some(judged);
                self.at.epoch += 1;
                if observer.wants_epochs() && self.counts() {
                    observer.epoch(self.cut_here(judged));
                }
                self.at.batch = 0;
                self.at.samples.clear();
                self.good = self.position()?;
            }
            let point = TrainPoint {
                step: self.at.step,
                steps: self.steps,
                epoch,
                loss: trained.loss,
                rate,
                samples_per_second: batch.len() as f64 / seconds.max(1e-9),
                accuracy,
                rollbacks: self.done.rollbacks.len() as u32,
            };
            self.done.points.push(point);
            observer.step(&point)?;
            if observer.wants_checkpoint() {
                observer.checkpoint(&self.checkpoint()?);
            }
            observer.pause()?;
        }
        Ok(())
    }

    /// No better state came for as many epochs as are borne with.
    fn out_of_patience(&self) -> bool {
        let waited = self.at.epoch - self.done.best_epoch;
        self.at.batch == 0
            && self.counts()
            && self.settings.patience.is_some_and(|most| waited >= most)
    }

    /// Whether states of the network are candidates: not those that are still to be pruned.
    fn counts(&self) -> bool {
        self.gradual.as_ref().is_none_or(Gradual::is_done)
    }

    /// One mini-batch.
    fn train(&mut self, indices: &[usize], rate: f64) -> Result<Trained, TrainError> {
        let matching = self.matching.as_ref();
        let lesson = (self.lessons).take(indices, self.at.step, matching, self.cancel)?;
        let slopes = Slopes::default();
        let (settings, classes) = (self.settings, self.classes);
        let (shape, own_outputs) = (Mutex::new(None), self.base.graph.outputs.len());
        let loss = |rows: Range<usize>, outputs: &[Tensor]| {
            let size = (rows.len(), classes);
            let logits = match logits(outputs, size, self.probabilities, "student") {
                Ok(logits) => logits,
                Err(error) => {
                    let mut first = shape.lock().unwrap_or_else(|e| e.into_inner());
                    first.get_or_insert(error);
                    candle_core::bail!("the student's output does not fit the task");
                }
            };
            let share = rows.len() as f64 / indices.len() as f64;
            let loss = lesson.loss(rows.clone(), classes, settings);
            let loss = (logits.apply_op1(loss)? * share)?;
            match matching {
                None => Ok(loss),
                Some(matching) => {
                    let features = outputs.get(own_outputs..).unwrap_or_default();
                    let (taught, all) = (&lesson.features, indices.len());
                    loss + matching.loss(features, taught, rows, all, &slopes)?
                }
            }
        };
        let gradients = self.program.gradients(&lesson.images, &loss, self.cancel);
        if let Some(error) = shape.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(error);
        }
        let mut gradients = gradients?;
        if gradients.loss.is_finite() {
            if let BatchNorm::Batch { momentum, .. } = settings.batch_norm {
                self.program.follow(&gradients.statistics, momentum)?;
            }
            if let Some(matching) = matching {
                matching.give(slopes, &mut gradients.store)?;
            }
            self.stepper.step(rate, &mut gradients.store)?;
            if let Some(average) = &mut self.average {
                average.follow(self.program.parameters())?;
            }
        }
        Ok(Trained {
            loss: gradients.loss,
            guess: lesson.guess(classes, settings) + matching.map_or(0.0, Matching::guess),
        })
    }

    /// Judges the parameters as they are, and keeps them when they are the best so far.
    fn judge(
        &mut self,
        epoch: usize,
        observer: &mut dyn TrainObserver,
    ) -> Result<Estimate, TrainError> {
        match &self.average {
            _ if epoch == 0 => {}
            None => self.program.store(&mut self.graph)?,
            Some(average) => {
                let (program, graph) = (&self.program, &mut self.graph);
                average.in_place(program.parameters(), || program.store(graph))??;
            }
        }
        let program = Program::compile(&self.graph, Mode::Inference)?;
        let mut between = Between {
            observer,
            failed: None,
        };
        let evaluation = eval::evaluate(
            &program,
            self.data,
            SplitName::Search,
            None,
            &mut between,
            self.cancel,
        );
        if let Some(error) = between.failed {
            return Err(error);
        }
        let metrics = evaluation?.metrics(None);
        let (top1, loss) = (metrics.top1, metrics.cross_entropy.value);
        let better = self.counts()
            && (self.settings.keep_last
                || self.done.best.is_none_or(|best| {
                    top1.value > best.value || (top1.value == best.value && loss < self.best_loss)
                }));
        if better {
            self.best_loss = loss;
            self.done.best = Some(top1);
            self.done.best_epoch = epoch;
            self.done.model.graph = self.graph.clone();
        }
        Ok(top1)
    }

    /// In words, a parameter that is no number any more.
    fn broken_parameter(&self) -> Result<Option<String>, TrainError> {
        for (name, var) in &trained(&self.program, self.matching.as_ref()) {
            let values = var.flatten_all()?.to_vec1::<f32>()?;
            if values.iter().any(|v| !v.is_finite()) {
                return Ok(Some(format!("{name} is not finite")));
            }
        }
        Ok(None)
    }
}

/// What was pruned while it was trained: the state that is kept is one of those with the final masks.
fn with_final_masks(done: &mut Distilled, gradual: Option<&Gradual>) {
    let Some(gradual) = gradual else {
        return;
    };
    let all = || gradual.masks.values().flatten();
    done.pruned = Some((
        all().filter(|kept| !**kept).count() as u64,
        all().count() as u64,
    ));
    done.model.masks.extend(gradual.masks.clone());
    done.model.gradual = None;
}

/// All that is trained: the student's parameters and, beside it, the projections of matched features.
fn trained(program: &Program, matching: Option<&Matching>) -> BTreeMap<String, Var> {
    let mut all = program.parameters().clone();
    if let Some(matching) = matching {
        all.extend(matching.projections().clone());
    }
    all
}

/// The average that is asked for, at its start.
fn average(program: &Program, settings: &DistilSettings) -> Result<Option<Average>, TrainError> {
    let new = |kept: f64| Average::new(kept, program.parameters());
    Ok(settings.average.map(new).transpose()?)
}

/// The program that trains `graph`, the student's with running statistics that may have moved: masks are laid over its weights. Also how
/// many step sizes are learned.
fn compile(
    graph: &Graph,
    student: &Model,
    settings: &DistilSettings,
    matching: Option<&Matching>,
    sample: &[usize],
) -> Result<(Program, StepSizes), TrainError> {
    let mut program = match matching {
        None => Program::compile(graph, Mode::Training)?,
        Some(matching) => Program::compile(&matching.student(graph)?, Mode::Training)?,
    };
    for (name, mask) in &student.masks {
        // A weight that is not trained keeps its zeros by itself.
        lay(&mut program, name, mask)?;
    }
    let step_sizes = if settings.learned_step_sizes {
        program.learn_step_sizes(graph, sample)?
    } else {
        StepSizes::default()
    };
    Ok((program, step_sizes))
}

/// Lets the trainer's observer in between an evaluation's mini-batches.
struct Between<'a> {
    observer: &'a mut dyn TrainObserver,
    failed: Option<TrainError>,
}

impl eval::Observer for Between<'_> {
    fn batch(&mut self, _: u64, _: u64) -> Result<(), ExecError> {
        self.observer.pause().map_err(|error| {
            self.failed = Some(error);
            ExecError::Cancelled
        })
    }
}
