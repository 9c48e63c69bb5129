//! Jobs as the strip shows them.

use limbeck_engine::jobs::JobId;
use std::time::Duration;

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    Open,
    Measure,
    Distil,
    /// What a cancelled distillation left.
    Judge,
    Map,
    Inspect,
    /// Counts what a layer reads.
    Input,
    Export,
    /// An exported file held against a deployment runtime.
    Confirm,
    File,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    Queued,
    Running,
    /// It keeps its state until it is resumed.
    Paused,
    Finished,
    Cancelled,
    Failed(String),
}

/// A job as the strip shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub id: JobId,
    pub kind: JobKind,
    /// Such as `Distil 14` or `Map`.
    pub title: String,
    pub state: JobState,
    /// 0..=1
    pub fraction: f32,
    pub eta: Option<Duration>,
    /// Such as `epoch 2 of 6 · 3,120 img/s`.
    pub detail: String,
}

impl Job {
    pub fn is_active(&self) -> bool {
        matches!(
            self.state,
            JobState::Queued | JobState::Running | JobState::Paused
        )
    }
    /// Trains, and can be told to wait.
    pub fn can_pause(&self) -> bool {
        self.kind == JobKind::Distil && self.state == JobState::Running
    }
    /// Worth a place in the strip (quick, silent work such as inspecting and files is not; a count is, once it has begun).
    pub fn is_shown(&self) -> bool {
        match self.kind {
            JobKind::Inspect | JobKind::File => false,
            JobKind::Input => self.state == JobState::Running,
            _ => self.is_active(),
        }
    }
    /// Its end by cancelling deserves a line in the log (a measurement overtaken by a newer one does not).
    pub(super) fn is_noteworthy(&self) -> bool {
        matches!(
            self.kind,
            JobKind::Distil | JobKind::Judge | JobKind::Map | JobKind::Export | JobKind::Confirm
        )
    }
}
