//! The engine thread: does one task after another, and interactive ones between the mini-batches of batch jobs.

use super::{
    Command, Emitter, Event, ExportFormat, JobId, Point,
    emit::Ticker,
    queue::{Asking, Lane, Queue, Task, Work},
    watching::{Epochs, Watching},
};
use crate::{
    compress::{LayerSetting, Precision, QuantScheme, inspect_input, inspect_layer},
    data::SplitName,
    exec::CancelToken,
    graph::LayerId,
    recipe::{
        self, Built, Choice, PipelineError, QuantizeStep, Recipe, RunOutcome, Session, Step,
        write_atomic,
    },
    target::foresee,
};
use std::{
    any::Any,
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    time::Instant,
};

/// Bytes of exported models kept for a later `Export` or `Run`.
const KEPT_BYTES: usize = 256 << 20;

pub(super) struct Worker {
    queue: Arc<Queue>,
    emitter: Emitter,
    session: RefCell<Option<Arc<Session>>>,
    kept: RefCell<Vec<Kept>>,
    pub(super) epochs: RefCell<Epochs>,
}

/// A model that was built, for a later export or judgement.
pub(super) struct Kept {
    pub steps_sha256: String,
    pub built: Built,
}

/// What a job knows of itself.
pub(super) struct JobContext {
    pub job: JobId,
    pub sequence: u64,
    pub lane: Lane,
    pub cancel: CancelToken,
}

impl Worker {
    pub fn new(queue: Arc<Queue>, emitter: Emitter) -> Self {
        Self {
            queue,
            emitter,
            session: RefCell::default(),
            kept: RefCell::default(),
            epochs: RefCell::default(),
        }
    }

    /// The thread's body.
    pub fn work(&self) {
        while let Some((task, cancel)) = self.queue.wait() {
            self.perform(task, cancel);
        }
        self.emitter.send(Event::Ended);
    }

    /// Called by jobs after every mini-batch: does what may overtake them.
    pub fn poll(&self, context: &JobContext, ticker: Option<&mut Ticker>) {
        let asking = match context.lane {
            Lane::Batch => Asking::Batch,
            Lane::Interactive => Asking::Interactive,
        };
        let left = Instant::now();
        let mut away = false;
        // A job that is asked to stop does so first.
        while !context.cancel.is_cancelled()
            && let Some((task, cancel)) = self.queue.overtaking(asking)
        {
            away = true;
            self.perform(task, cancel);
        }
        if context.lane == Lane::Batch && self.queue.is_paused(context.job) {
            away = true;
            self.pause(context);
        }
        if let Some(ticker) = ticker.filter(|_| away) {
            ticker.was_away(left.elapsed());
        }
    }

    /// Until the job is to go on: all its state stays where it is, and the thread sleeps unless there is other work.
    fn pause(&self, context: &JobContext) {
        let job = context.job;
        self.emitter.send(Event::Paused { job });
        while let Some((task, cancel)) = self.queue.during_pause(job, &context.cancel) {
            self.perform(task, cancel);
        }
        if !context.cancel.is_cancelled() && !self.queue.is_to_end(job) {
            self.emitter.send(Event::Resumed { job });
        }
    }

    fn perform(&self, task: Task, cancel: CancelToken) {
        let job = task.work.job();
        let context = JobContext {
            job,
            sequence: task.sequence,
            lane: task.work.lane(),
            cancel,
        };
        let result = catch_unwind(AssertUnwindSafe(|| self.carry_out(task.work, &context)));
        self.queue.opened(context.sequence);
        self.queue.ended(job);
        self.emitter.send(match result {
            Ok(Ok(())) => Event::Finished { job },
            Ok(Err(e)) if e.is_cancelled() => Event::Cancelled { job },
            // Whatever a job says when it is asked to stop, it was asked to.
            Ok(Err(_)) if context.cancel.is_cancelled() => Event::Cancelled { job },
            Ok(Err(e)) => Event::Failed {
                job,
                message: e.to_string(),
            },
            Err(panic) => Event::Failed {
                job,
                message: format!(
                    "the engine met a bug of its own ({}); the job is lost, everything else goes on. Please report it.",
                    panic_words(panic.as_ref())
                ),
            },
        });
    }

    fn carry_out(&self, work: Work, context: &JobContext) -> Result<(), PipelineError> {
        #[cfg_attr(
            not(test),
            expect(
                clippy::infallible_destructuring_match,
                reason = "tests have a second kind of work"
            )
        )]
        let command = match work {
            Work::Command(command) => command,
            #[cfg(test)]
            Work::Test { body, .. } => {
                self.start(context, "test");
                body(self, context);
                return if context.cancel.is_cancelled() {
                    Err(PipelineError::Cancelled)
                } else {
                    Ok(())
                };
            }
        };
        match command {
            Command::Open { model, task, .. } => self.open(context, &model, task),
            Command::OpenTask { task, .. } => self.open_task(context, &task),
            Command::Measure {
                recipe,
                split,
                limit,
                ..
            } => {
                self.start(context, &named("Measure", &recipe));
                self.run(context, &recipe.without_training(), split, limit)
            }
            Command::Run {
                recipe,
                split,
                keep,
                ..
            } => {
                self.start(
                    context,
                    &named(if recipe.trains() { "Distil" } else { "Run" }, &recipe),
                );
                match keep.filter(|_| recipe.trains()) {
                    Some(keep) => self.run_kept(context, &recipe, split, keep),
                    None => self.run(context, &recipe, split, None),
                }
            }
            Command::FindRuns { under, .. } => {
                self.find_runs(context, &under);
                Ok(())
            }
            Command::DiscardRun { folder, .. } => recipe::discard_run(&folder),
            Command::Map {
                known,
                limit,
                direction,
                ..
            } => self.map(context, &known, limit, direction),
            Command::Inspect {
                layer,
                setting,
                scheme,
                ..
            } => {
                let graph = &self.session()?.graph;
                self.emitter.send(Event::Inspected {
                    job: context.job,
                    inspection: Box::new(inspect_layer(graph, &layer, setting, &scheme)?),
                });
                Ok(())
            }
            Command::InspectInput {
                layer,
                setting,
                scheme,
                ..
            } => self.inspect_input(context, &layer, setting, &scheme),
            Command::Foresee {
                layers,
                scheme,
                target,
                ..
            } => {
                let graph = &self.session()?.graph;
                let execution = foresee(graph, &layers, &scheme, &target, &context.cancel)?;
                self.emitter.send(Event::Foreseen {
                    job: context.job,
                    execution: execution.map(Arc::new),
                });
                Ok(())
            }
            Command::Export {
                recipe,
                format,
                path,
                ..
            } => self.export(context, &recipe, format, &path),
            Command::Confirm {
                recipe,
                split,
                limit,
                library,
                ..
            } => self.confirm(context, &recipe, split, limit, library),
            Command::FindRuntime { library, .. } => {
                // Whatever came of it is said by its event.
                let _ = self.runtime(context, library);
                Ok(())
            }
            Command::WriteText { path, text, .. } => {
                write_atomic(&path, text.as_bytes()).map_err(PipelineError::Io)?;
                self.written(context, &path, format!("{} bytes", text.len()));
                Ok(())
            }
            Command::ReadText { path, .. } => {
                let text = recipe::read_text(&path)?;
                self.emitter.send(Event::Text {
                    job: context.job,
                    path,
                    text,
                });
                Ok(())
            }
            // The router keeps these to itself.
            Command::Pause(_) | Command::Resume(_) | Command::Cancel(_) | Command::Shutdown => {
                Ok(())
            }
        }
    }

    /// Whether the user told the job to stop, as against an opening or the window's end.
    pub(super) fn is_unwanted(&self, job: JobId) -> bool {
        self.queue.is_unwanted(job)
    }

    /// Whether the job is to stop at its next mini-batch until it is resumed.
    pub(super) fn is_paused(&self, job: JobId) -> bool {
        self.queue.is_paused(job)
    }

    /// Whether the job would lose what it did since its last checkpoint.
    pub(super) fn set_keeping(&self, job: JobId, keeps: bool) {
        self.queue.set_keeping(job, keeps);
    }

    /// Whether the job is to take a checkpoint and end.
    pub(super) fn is_to_end(&self, job: JobId) -> bool {
        self.queue.is_to_end(job)
    }

    /// The session if a model is open.
    pub(super) fn open_session(&self) -> Option<Arc<Session>> {
        self.session.borrow().clone()
    }

    pub(super) fn emitter(&self) -> &Emitter {
        &self.emitter
    }

    pub(super) fn start(&self, context: &JobContext, title: &str) {
        self.emitter.send(Event::Started {
            job: context.job,
            title: title.to_owned(),
        });
    }

    pub(super) fn session(&self) -> Result<Arc<Session>, PipelineError> {
        self.session
            .borrow()
            .clone()
            .ok_or_else(|| PipelineError::NotRunnable("no model is open: open one first".into()))
    }

    /// Takes a newly opened session; work that waited for it may begin.
    pub(super) fn set_session(&self, context: &JobContext, session: Arc<Session>) {
        *self.session.borrow_mut() = Some(session);
        self.kept.borrow_mut().clear();
        *self.epochs.borrow_mut() = Epochs::default();
        self.queue.opened(context.sequence);
    }

    fn inspect_input(
        &self,
        context: &JobContext,
        layer: &LayerId,
        setting: LayerSetting,
        scheme: &QuantScheme,
    ) -> Result<(), PipelineError> {
        let session = self.session()?;
        let title = format!("Count what {} reads", layer.0);
        let begin = || self.start(context, &title);
        let stats = session.activations(layer, scheme.samples, begin, &context.cancel)?;
        let read = inspect_input(&session.graph, layer, setting, scheme, &stats)?;
        self.emitter.send(Event::InputInspected {
            job: context.job,
            inspection: Box::new(read),
        });
        Ok(())
    }

    /// Carries a recipe out and sends its point.
    pub(super) fn run(
        &self,
        context: &JobContext,
        recipe: &Recipe,
        split: SplitName,
        limit: Option<usize>,
    ) -> Result<(), PipelineError> {
        let session = self.session()?;
        let mut watch = Watching {
            worker: self,
            context,
            ticker: Ticker::new(context.job),
        };
        // The original is evaluated once for all: nothing of it needs building.
        let kept = match recipe.steps.is_empty() {
            true => None,
            false => self.kept(&recipe.steps_sha256()?),
        };
        let cancel = &context.cancel;
        let outcome = match kept {
            Some(built) => {
                recipe::judge_built(&session, recipe, built, split, limit, &mut watch, cancel)?
            }
            None => recipe::run(&session, recipe, split, limit, &mut watch, cancel)?,
        };
        self.point(context, outcome, recipe.is_partial());
        Ok(())
    }

    pub(super) fn point(&self, context: &JobContext, outcome: RunOutcome, partial: bool) {
        if let Ok(steps_sha256) = outcome.recipe.steps_sha256() {
            self.keep(Kept {
                steps_sha256,
                built: Built {
                    resolved: outcome.resolved,
                    graph: outcome.graph,
                    bytes: outcome.bytes,
                    model_sha256: outcome.model_sha256.clone(),
                    sizes: outcome.sizes,
                    accounts: outcome.accounts.clone(),
                },
            });
        }
        self.emitter.send(Event::Point(Box::new(Point {
            job: context.job,
            recipe: outcome.recipe,
            metrics: outcome.metrics,
            sizes: outcome.sizes,
            accounts: outcome.accounts,
            saturation: outcome.saturation,
            confirmed: None,
            model_sha256: outcome.model_sha256,
            seconds: outcome.seconds,
            limit: outcome.limit,
            partial,
        })));
    }

    pub(super) fn keep(&self, fresh: Kept) {
        let mut kept = self.kept.borrow_mut();
        kept.retain(|k| k.steps_sha256 != fresh.steps_sha256);
        kept.push(fresh);
        // The file's bytes, and about as much for its graph.
        let size = |kept: &[Kept]| kept.iter().map(|k| 2 * k.built.bytes.len()).sum::<usize>();
        while kept.len() > 1 && size(&kept) > KEPT_BYTES {
            kept.remove(0);
        }
    }

    /// What was built by steps with this hash, if it is still there.
    pub(super) fn kept(&self, steps_sha256: &str) -> Option<Built> {
        let kept = self.kept.borrow();
        let found = kept.iter().find(|k| k.steps_sha256 == steps_sha256)?;
        Some(found.built.clone())
    }

    fn export(
        &self,
        context: &JobContext,
        recipe: &Recipe,
        format: ExportFormat,
        path: &Path,
    ) -> Result<(), PipelineError> {
        let file = path.file_name().unwrap_or(path.as_os_str());
        self.start(context, &format!("Export {}", file.display()));
        let session = self.session()?;
        let recipe = export_recipe(recipe, format);
        let bytes = self.bytes(context, &session, &recipe)?;
        write_atomic(path, &bytes).map_err(PipelineError::Io)?;
        let note = format!("{} bytes, SHA-256 {}", bytes.len(), recipe::sha256(&bytes));
        self.written(context, path, note);
        Ok(())
    }

    /// The file that a recipe exports: as it is kept, else carried out again.
    pub(super) fn bytes(
        &self,
        context: &JobContext,
        session: &Session,
        recipe: &Recipe,
    ) -> Result<Arc<Vec<u8>>, PipelineError> {
        if let Some(built) = self.kept(&recipe.steps_sha256()?) {
            return Ok(built.bytes);
        }
        let mut watch = Watching {
            worker: self,
            context,
            ticker: Ticker::new(context.job),
        };
        Ok(recipe::build(session, recipe, &mut watch, &context.cancel)?.bytes)
    }

    fn written(&self, context: &JobContext, path: &Path, note: String) {
        self.emitter.send(Event::Written {
            job: context.job,
            path: path.to_owned(),
            note,
        });
    }
}

/// The recipe that an export carries out.
pub(crate) fn export_recipe(recipe: &Recipe, format: ExportFormat) -> Recipe {
    let mut recipe = recipe.clone();
    match format {
        ExportFormat::Plan => {}
        ExportFormat::Float => recipe.steps = vec![Step::FoldBatchNorm],
        ExportFormat::Fp16 => {
            recipe.steps = vec![
                Step::FoldBatchNorm,
                Step::Quantize(QuantizeStep {
                    default: Choice::Set(Precision::Fp16),
                    layers: Vec::new(),
                    scheme: crate::compress::QuantScheme::default(),
                }),
            ];
        }
    }
    recipe
}

fn named(verb: &str, recipe: &Recipe) -> String {
    match recipe.name.trim() {
        "" => verb.to_owned(),
        name => format!("{verb} {name}"),
    }
}

fn panic_words(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
