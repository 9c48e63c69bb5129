//! The training loop.

use super::{
    BatchNorm, DistilSettings, Distilled, TrainError, TrainObserver, TrainPoint,
    loss::DistilLoss,
    optimise::{Stepper, rate},
    teacher::{Teacher, logits},
};
use crate::{
    compress::Model,
    data::{Dataset, SplitName},
    eval::{self, Estimate},
    exec::{CancelToken, ExecError, Mode, Program, on_pool},
    graph::Graph,
};
use candle_core::{Device, Tensor};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::{ops::Range, sync::Mutex, time::Instant};

/// Trains `student` against `teacher` with masks and fake quantisation held in place; leaves the best checkpoint by top-1
/// on the search split (the start counts as one). The same seed gives the same bits whatever the number of threads.
///
/// Batch norms keep their stored statistics while their scale and shift train, or take those of each mini-batch for the first part of the
/// schedule ([`super::BatchNorm`]; a mini-batch of a single sample has none and is trained on the stored ones). The teacher runs in inference mode
/// and its outputs are computed once a sample. A model that ends in a softmax is trained on the logarithms of its
/// probabilities. The last, incomplete mini-batch of an epoch is used.
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
    let mut training = Training::new(student, teacher, data, settings, seed, cancel)?;
    match training.run(observer) {
        Ok(()) => Ok(training.done),
        Err(error) if error.is_cancelled() => {
            training.done.cancelled = true;
            Ok(training.done)
        }
        Err(error) => Err(error),
    }
}

struct Training<'a> {
    data: &'a Dataset,
    settings: &'a DistilSettings,
    cancel: &'a CancelToken,
    program: Program,
    /// Absent when the soft loss weighs nothing.
    teacher: Option<Teacher>,
    stepper: Stepper,
    order: Order,
    /// The student's graph, which the program's parameters are written into for every checkpoint.
    graph: Graph,
    probabilities: bool,
    classes: usize,
    /// Samples an epoch.
    samples: usize,
    /// Steps that are trained, and those of the whole schedule.
    steps: u64,
    scheduled: u64,
    /// Cross-entropy of the best checkpoint, which decides between equal accuracies.
    best_loss: f64,
    done: Distilled,
}

/// Sample indices in seeded order: one random permutation after the other.
pub(super) struct Order {
    rng: ChaCha8Rng,
    indices: Vec<usize>,
    next: usize,
}

impl Order {
    pub fn new(seed: u64, samples: usize) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            indices: (0..samples).collect(),
            next: samples,
        }
    }
    pub fn take(&mut self, count: usize) -> Vec<usize> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            if self.next == self.indices.len() {
                self.indices.shuffle(&mut self.rng);
                self.next = 0;
            }
            let end = self.indices.len().min(self.next + count - taken.len());
            taken.extend_from_slice(&self.indices[self.next..end]);
            self.next = end;
        }
        taken
    }
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
        let mut program = Program::compile(&student.graph, Mode::Training)?;
        if program.parameters().is_empty() {
            return Err(TrainError::Settings(
                "the model has no float weights left to train (they are packed): distil before exporting".into(),
            ));
        }
        for (name, mask) in &student.masks {
            // A weight that is not trained keeps its zeros by itself.
            let Some(var) = program.parameters().get(name) else {
                continue;
            };
            if mask.len() != var.elem_count() {
                return Err(TrainError::Settings(format!(
                    "the mask of {name} has {} elements, its weight {}",
                    mask.len(),
                    var.elem_count()
                )));
            }
            let values: Vec<f32> = mask.iter().map(|kept| f32::from(u8::from(*kept))).collect();
            let mask = Tensor::from_vec(values, var.shape(), &Device::Cpu)?;
            program.set_mask(name, mask)?;
        }
        let teacher = if settings.soft_weight > 0.0 {
            let table = Teacher::new(teacher, available, classes, settings.temperature)?;
            Some(table)
        } else {
            None
        };
        let step_sizes = if settings.learned_step_sizes {
            program.learn_step_sizes(&student.graph)?
        } else {
            0
        };
        let batch_norms = match settings.batch_norm {
            BatchNorm::Frozen => 0,
            BatchNorm::Batch { .. } => program.batch_norms(),
        };
        let stepper = Stepper::new(settings, program.parameters().values().cloned().collect())?;
        let samples = settings.samples.unwrap_or(available).min(available);
        let steps = |epochs: usize| (samples.div_ceil(settings.batch) * epochs) as u64;
        Ok(Self {
            data,
            settings,
            cancel,
            program,
            teacher,
            stepper,
            order: Order::new(seed, available),
            graph: student.graph.clone(),
            probabilities: student.graph.ends_in_softmax(),
            classes,
            samples,
            steps: steps(settings.trained_epochs()),
            scheduled: steps(settings.epochs),
            best_loss: f64::INFINITY,
            done: Distilled {
                model: student,
                best_epoch: 0,
                start: None,
                best: None,
                points: Vec::new(),
                batch_norms,
                step_sizes,
                cancelled: false,
            },
        })
    }

    fn run(&mut self, observer: &mut dyn TrainObserver) -> Result<(), TrainError> {
        let start = self.judge(0, observer)?;
        self.done.start = Some(start);
        let batches = self.samples.div_ceil(self.settings.batch);
        let mut step = 0;
        for epoch in 0..self.settings.trained_epochs() {
            let order = self.order.take(self.samples);
            for (index, batch) in order.chunks(self.settings.batch).enumerate() {
                if self.cancel.is_cancelled() {
                    return Err(TrainError::Cancelled);
                }
                let began = Instant::now();
                let rate = rate(self.settings, step, self.scheduled);
                let own = step < self.settings.batch_norm.frozen_from(self.scheduled);
                self.program.set_batch_statistics(own && batch.len() > 1);
                // One visit to the pool a mini-batch: waking it for every operator costs more than small ones take.
                let loss = on_pool(|| self.train(batch, rate))?;
                let seconds = began.elapsed().as_secs_f64();
                step += 1;
                if !loss.is_finite() {
                    return Err(self.diverged(&format!("the loss is {loss}"), step, rate));
                }
                let last = index + 1 == batches;
                let accuracy = if last {
                    self.check_parameters(step, rate)?;
                    Some(self.judge(epoch + 1, observer)?)
                } else {
                    None
                };
                let point = TrainPoint {
                    step,
                    steps: self.steps,
                    epoch: epoch as f64 + (index + 1) as f64 / batches as f64,
                    loss,
                    rate,
                    samples_per_second: batch.len() as f64 / seconds.max(1e-9),
                    accuracy,
                };
                self.done.points.push(point);
                observer.step(&point)?;
            }
        }
        Ok(())
    }

    /// One mini-batch; its loss.
    fn train(&mut self, indices: &[usize], rate: f64) -> Result<f64, TrainError> {
        let batch = self.data.gather(SplitName::Training, indices)?;
        if let Some(at) = batch
            .labels
            .iter()
            .position(|l| *l as usize >= self.classes)
        {
            return Err(TrainError::Settings(format!(
                "training sample {} has label {}, but the task names {} classes",
                indices[at], batch.labels[at], self.classes
            )));
        }
        let teacher = match &mut self.teacher {
            Some(teacher) => teacher.probabilities(indices, &batch.images, self.cancel)?,
            None => Vec::new(),
        };
        let (settings, classes) = (self.settings, self.classes);
        let shape = Mutex::new(None);
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
            let taught = rows.start * classes..rows.end * classes;
            let mean = logits.apply_op1(DistilLoss {
                classes,
                teacher: teacher.get(taught).unwrap_or_default().to_vec(),
                labels: batch.labels[rows].to_vec(),
                temperature: settings.temperature,
                soft: settings.soft_weight,
                hard: settings.hard_weight,
            })?;
            mean * share
        };
        let gradients = self.program.gradients(&batch.images, &loss, self.cancel);
        if let Some(error) = shape.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(error);
        }
        let mut gradients = gradients?;
        if gradients.loss.is_finite() {
            if let BatchNorm::Batch { momentum, .. } = settings.batch_norm {
                self.program.follow(&gradients.statistics, momentum)?;
            }
            self.stepper.step(rate, &mut gradients.store)?;
        }
        Ok(gradients.loss)
    }

    /// Judges the parameters as they are, and keeps them when they are the best so far.
    fn judge(
        &mut self,
        epoch: usize,
        observer: &mut dyn TrainObserver,
    ) -> Result<Estimate, TrainError> {
        if epoch > 0 {
            self.program.store(&mut self.graph)?;
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
        let better = self.done.best.is_none_or(|best| {
            top1.value > best.value || (top1.value == best.value && loss < self.best_loss)
        });
        if better {
            self.best_loss = loss;
            self.done.best = Some(top1);
            self.done.best_epoch = epoch;
            self.done.model.graph = self.graph.clone();
        }
        Ok(top1)
    }

    fn check_parameters(&self, step: u64, rate: f64) -> Result<(), TrainError> {
        for (name, var) in self.program.parameters() {
            let values = var.flatten_all()?.to_vec1::<f32>()?;
            if values.iter().any(|v| !v.is_finite()) {
                return Err(self.diverged(&format!("{name} is not finite"), step, rate));
            }
        }
        Ok(())
    }

    fn diverged(&self, what: &str, step: u64, rate: f64) -> TrainError {
        TrainError::Diverged(format!(
            "training diverged: {what} at step {step} of {}, learning rate {rate:.3e}; lower `rate` (now {:.3e})",
            self.steps, self.settings.rate
        ))
    }
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
