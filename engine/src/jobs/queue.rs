//! The two lanes and the router that fills them: cancels at once, keeps only the latest of what supersedes itself, and holds
//! the order of what must not overtake the opening of a model.

use super::{Command, Emitter, Event, ExportFormat, JobId};
use crate::exec::CancelToken;
use crossbeam_channel::Receiver;
use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// How long the engine's end waits for the last checkpoint of a training: for a mini-batch and a file, and most judgements in between.
const ENDING: Duration = Duration::from_secs(20);

/// How often it is looked in the meantime whether anybody still waits.
const GLANCE: Duration = Duration::from_millis(20);

/// What is to be done, with its place in the order of commands.
pub(super) struct Task {
    pub sequence: u64,
    pub work: Work,
}

pub(super) enum Work {
    Command(Command),
    /// Anything at all, for tests of the runtime.
    #[cfg(test)]
    Test {
        job: JobId,
        lane: Lane,
        body: TestBody,
    },
}

#[cfg(test)]
pub(super) type TestBody =
    Box<dyn FnOnce(&super::worker::Worker, &super::worker::JobContext) + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Interactive,
    Batch,
}

/// Who asks for work: what may be done in between depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// The engine thread has nothing to do.
    Idle,
    /// A batch job at the end of a mini-batch.
    Batch,
    /// A batch job that is paused: also other batch jobs, except those that train or open.
    Paused,
    /// An interactive job at the end of a mini-batch: only what is quick.
    Interactive,
}

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    next: u64,
    interactive: VecDeque<Task>,
    batch: VecDeque<Task>,
    running: Vec<Running>,
    /// Sequence of the opening that has not got as far as having a model.
    opening: Option<u64>,
    closed: bool,
}

struct Running {
    job: JobId,
    kind: Kind,
    cancel: CancelToken,
    paused: bool,
    /// It was told to stop by its own name, as against by an opening or the end.
    unwanted: bool,
    /// It would lose what it did since its last checkpoint: at the end it gets as long as one takes.
    keeps: bool,
    /// The end has come, and it is to take that checkpoint.
    ending: bool,
}

/// What a newer command does to an older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Belongs to the open model and goes with it.
    Measure,
    Inspect,
    Foresee,
    Input,
    Session,
    /// Opens a model or data.
    Open,
    /// Leads to a file that the user asked for: only an explicit cancel ends it.
    Export,
    File,
}

impl Work {
    pub fn job(&self) -> JobId {
        match self {
            Self::Command(c) => match c {
                Command::Open { job, .. }
                | Command::OpenTask { job, .. }
                | Command::Measure { job, .. }
                | Command::Run { job, .. }
                | Command::Map { job, .. }
                | Command::Inspect { job, .. }
                | Command::InspectInput { job, .. }
                | Command::Foresee { job, .. }
                | Command::Export { job, .. }
                | Command::Confirm { job, .. }
                | Command::FindRuntime { job, .. }
                | Command::WriteText { job, .. }
                | Command::ReadText { job, .. }
                | Command::FindRuns { job, .. }
                | Command::DiscardRun { job, .. }
                | Command::Pause(job)
                | Command::Resume(job)
                | Command::Cancel(job) => *job,
                Command::Shutdown => JobId(u64::MAX),
            },
            #[cfg(test)]
            Self::Test { job, .. } => *job,
        }
    }

    pub fn lane(&self) -> Lane {
        match self {
            Self::Command(c) => match c {
                Command::Measure { .. }
                | Command::Inspect { .. }
                | Command::InspectInput { .. }
                | Command::Foresee { .. }
                | Command::WriteText { .. }
                | Command::FindRuntime { .. }
                | Command::FindRuns { .. }
                | Command::DiscardRun { .. }
                | Command::ReadText { .. } => Lane::Interactive,
                Command::Export { recipe, format, .. }
                    if !recipe.trains() || *format != ExportFormat::Plan =>
                {
                    Lane::Interactive
                }
                _ => Lane::Batch,
            },
            #[cfg(test)]
            Self::Test { lane, .. } => *lane,
        }
    }

    /// Whether it may be done while a batch job is paused. A second run may not, nor what trains if its outcome is not kept any more: the first
    /// could not go on before its end.
    pub(super) fn fits_a_pause(&self) -> bool {
        match self {
            Self::Command(c) => match c {
                Command::Map { .. } => true,
                Command::Confirm { recipe, .. } | Command::Export { recipe, .. } => {
                    !recipe.trains()
                }
                _ => false,
            },
            #[cfg(test)]
            Self::Test { .. } => true,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Command(c) => match c {
                Command::Measure { .. } => Kind::Measure,
                Command::Inspect { .. } => Kind::Inspect,
                Command::InspectInput { .. } => Kind::Input,
                Command::Foresee { .. } => Kind::Foresee,
                Command::Open { .. } | Command::OpenTask { .. } => Kind::Open,
                Command::Export { .. } => Kind::Export,
                Command::WriteText { .. }
                | Command::FindRuntime { .. }
                | Command::FindRuns { .. }
                | Command::DiscardRun { .. }
                | Command::ReadText { .. } => Kind::File,
                Command::Run { .. }
                | Command::Confirm { .. }
                | Command::Map { .. }
                | Command::Pause(_)
                | Command::Resume(_)
                | Command::Cancel(_)
                | Command::Shutdown => Kind::Session,
            },
            #[cfg(test)]
            Self::Test { .. } => Kind::Session,
        }
    }
}

impl Kind {
    /// Whether a newer job of kind `newer` makes this one pointless.
    fn superseded_by(self, newer: Kind) -> bool {
        match newer {
            Kind::Measure | Kind::Inspect | Kind::Foresee | Kind::Input => self == newer,
            Kind::Open => matches!(
                self,
                Kind::Measure
                    | Kind::Inspect
                    | Kind::Foresee
                    | Kind::Input
                    | Kind::Session
                    | Kind::Open
            ),
            Kind::Session | Kind::Export | Kind::File => false,
        }
    }

    /// Works on the model that is open.
    fn needs_session(self) -> bool {
        !matches!(self, Kind::Open | Kind::File)
    }

    fn is_quick(self) -> bool {
        matches!(self, Kind::Inspect | Kind::Foresee | Kind::File)
    }
}

impl Queue {
    /// The router's thread: takes commands until the channel closes or `Shutdown` comes.
    pub fn route(&self, commands: &Receiver<Command>, emitter: &Emitter) {
        for command in commands {
            match command {
                Command::Shutdown => break,
                Command::Cancel(job) => self.cancel(job, emitter),
                Command::Pause(job) => self.set_paused(job, true),
                Command::Resume(job) => self.set_paused(job, false),
                command => self.push(Work::Command(command), emitter),
            }
        }
        self.close(emitter);
        self.see_off(ENDING, || {
            let again = |command| matches!(command, Command::Shutdown);
            commands.try_iter().any(again)
        });
    }

    pub fn push(&self, work: Work, emitter: &Emitter) {
        let newer = work.kind();
        let mut state = self.lock();
        for running in &state.running {
            if running.kind.superseded_by(newer) {
                running.cancel.cancel();
            }
        }
        let gone = state.drop_queued(|task| task.work.kind().superseded_by(newer));
        let sequence = state.next;
        state.next += 1;
        let task = Task { sequence, work };
        match task.work.lane() {
            Lane::Interactive => state.interactive.push_back(task),
            Lane::Batch => state.batch.push_back(task),
        }
        drop(state);
        self.ready.notify_all();
        announce(gone, emitter);
    }

    fn cancel(&self, job: JobId, emitter: &Emitter) {
        let mut state = self.lock();
        for running in state.running.iter_mut().filter(|r| r.job == job) {
            running.unwanted = true;
            running.cancel.cancel();
        }
        let gone = state.drop_queued(|task| task.work.job() == job);
        drop(state);
        // It may be paused.
        self.ready.notify_all();
        announce(gone, emitter);
    }

    /// Cancels everything but files that wait to be written, and what takes a checkpoint first.
    fn close(&self, emitter: &Emitter) {
        let mut state = self.lock();
        state.closed = true;
        for running in state.running.iter_mut().filter(|r| r.kind != Kind::File) {
            running.ending = running.keeps;
            if !running.ending {
                running.cancel.cancel();
            }
        }
        let gone = state.drop_queued(|task| task.work.kind() != Kind::File);
        drop(state);
        self.ready.notify_all();
        announce(gone, emitter);
    }

    /// Waits for those that take a checkpoint, and cancels them when it is not there in time, or nobody waits any more (is `hurried`).
    fn see_off(&self, most: Duration, hurried: impl Fn() -> bool) {
        let deadline = Instant::now() + most;
        let mut state = self.lock();
        while state.running.iter().any(|r| r.ending) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || hurried() {
                for running in state.running.iter().filter(|r| r.ending) {
                    running.cancel.cancel();
                }
                break;
            }
            let waited = self.ready.wait_timeout(state, left.min(GLANCE));
            state = waited.unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Whether a job that runs has work behind it that only a checkpoint would keep. One that has none any more when the end has come is cancelled.
    pub fn set_keeping(&self, job: JobId, keeps: bool) {
        let mut state = self.lock();
        for running in state.running.iter_mut().filter(|r| r.job == job) {
            running.keeps = keeps;
            if running.ending && !keeps {
                running.cancel.cancel();
            }
        }
    }

    /// Whether a job is to take a checkpoint and end.
    pub fn is_to_end(&self, job: JobId) -> bool {
        self.lock().is_to_end(job)
    }

    /// Waits for work; `None`: closed and nothing left.
    pub fn wait(&self) -> Option<(Task, CancelToken)> {
        let mut state = self.lock();
        loop {
            if let Some(taken) = state.take(Asking::Idle) {
                return Some(taken);
            }
            if state.closed {
                return None;
            }
            state = self.ready.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Work that may be done between two mini-batches of whoever asks.
    pub fn overtaking(&self, asking: Asking) -> Option<(Task, CancelToken)> {
        self.lock().take(asking)
    }

    /// A job that runs is to pause, or to go on.
    pub fn set_paused(&self, job: JobId, paused: bool) {
        let mut state = self.lock();
        for running in state.running.iter_mut().filter(|r| r.job == job) {
            running.paused = paused;
        }
        drop(state);
        self.ready.notify_all();
    }

    pub fn is_paused(&self, job: JobId) -> bool {
        self.lock().is_paused(job)
    }

    /// Waits, without working, for something that may be done while `job` is paused. `None`: it is to go on, or was cancelled.
    pub fn during_pause(&self, job: JobId, cancel: &CancelToken) -> Option<(Task, CancelToken)> {
        let mut state = self.lock();
        while state.is_paused(job) && !state.is_to_end(job) && !cancel.is_cancelled() {
            if let Some(taken) = state.take(Asking::Paused) {
                return Some(taken);
            }
            state = self.ready.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        None
    }

    /// Whether a job that runs was cancelled by itself.
    pub fn is_unwanted(&self, job: JobId) -> bool {
        let state = self.lock();
        state.running.iter().any(|r| r.job == job && r.unwanted)
    }

    /// A job has ended.
    pub fn ended(&self, job: JobId) {
        let mut state = self.lock();
        state.running.retain(|r| r.job != job);
        drop(state);
        // The end may wait for it.
        self.ready.notify_all();
    }

    /// The opening with this sequence has its model, or has failed.
    pub fn opened(&self, sequence: u64) {
        let mut state = self.lock();
        if state.opening == Some(sequence) {
            state.opening = None;
        }
        drop(state);
        self.ready.notify_all();
    }

    /// A panic cannot happen while the lock is held: the state is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn announce(gone: Vec<JobId>, emitter: &Emitter) {
    for job in gone {
        emitter.send(Event::Cancelled { job });
    }
}

impl State {
    fn is_paused(&self, job: JobId) -> bool {
        self.running.iter().any(|r| r.job == job && r.paused)
    }

    fn is_to_end(&self, job: JobId) -> bool {
        self.running.iter().any(|r| r.job == job && r.ending)
    }

    fn drop_queued(&mut self, which: impl Fn(&Task) -> bool) -> Vec<JobId> {
        let mut gone = Vec::new();
        for lane in [&mut self.interactive, &mut self.batch] {
            lane.retain(|task| {
                let drop = which(task);
                if drop {
                    gone.push(task.work.job());
                }
                !drop
            });
        }
        gone
    }

    fn take(&mut self, asking: Asking) -> Option<(Task, CancelToken)> {
        // The first opening that waits or has no model yet: what came after it is meant for its model.
        let barrier = self
            .batch
            .iter()
            .filter(|t| t.work.kind() == Kind::Open)
            .map(|t| t.sequence)
            .chain(self.opening)
            .min()
            .unwrap_or(u64::MAX);
        let at = self.interactive.iter().position(|task| {
            let kind = task.work.kind();
            (task.sequence < barrier || !kind.needs_session())
                && (asking != Asking::Interactive || kind.is_quick())
        });
        let task = match at {
            Some(at) => self.interactive.remove(at)?,
            None if asking == Asking::Idle => {
                let task = self.batch.pop_front()?;
                if task.work.kind() == Kind::Open {
                    self.opening = Some(task.sequence);
                }
                task
            }
            None if asking == Asking::Paused => {
                let fits = |t: &Task| t.sequence < barrier && t.work.fits_a_pause();
                let at = self.batch.iter().position(fits)?;
                self.batch.remove(at)?
            }
            None => return None,
        };
        let cancel = CancelToken::default();
        self.running.push(Running {
            job: task.work.job(),
            kind: task.work.kind(),
            cancel: cancel.clone(),
            paused: false,
            unwanted: false,
            keeps: false,
            ending: false,
        });
        Some((task, cancel))
    }
}
