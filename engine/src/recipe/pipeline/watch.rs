//! What one stage tells, passed on as progress of the whole.

use super::{RunObserver, Work, stop};
use crate::{
    compress::{Account, Model},
    eval::Observer,
    exec::{CancelToken, ExecError},
    recipe::{Checkpoints, Recipe, Session, verdict::grouped},
    train::{Checkpoint, TrainError, TrainObserver, TrainPoint},
};

/// Passes on what one stage tells as progress of the whole.
pub(super) struct Watch<'w> {
    pub(super) observer: &'w mut dyn RunObserver,
    pub(super) cancel: &'w CancelToken,
    pub(super) session: &'w Session,
    pub(super) recipe: &'w Recipe,
    pub(super) before: u64,
    pub(super) total: u64,
    pub(super) detail: String,
    pub(super) cost: u64,
    pub(super) epochs: usize,
    /// The part of `cost` that is done.
    pub(super) trained: u64,
    checkpoints: Option<&'w mut Checkpoints>,
    pub(super) saver: Option<Saver>,
}

/// What a checkpoint of a training holds besides the training.
pub(super) struct Saver {
    index: usize,
    model: Model,
    accounts: Vec<Account>,
}

impl Saver {
    pub(super) fn new(index: usize, model: &Model, accounts: &[Account]) -> Option<Self> {
        Some(Self {
            index,
            model: model.clone(),
            accounts: accounts.to_vec(),
        })
    }
}

impl<'w> Watch<'w> {
    pub(super) fn new(work: &'w mut Work<'_>, detail: String) -> Self {
        Self {
            observer: &mut *work.observer,
            cancel: work.cancel,
            session: work.session,
            recipe: work.recipe,
            before: work.done,
            total: work.total,
            detail,
            cost: 0,
            epochs: 0,
            trained: 0,
            checkpoints: work.checkpoints.as_deref_mut(),
            saver: None,
        }
    }
}

impl Observer for Watch<'_> {
    fn batch(&mut self, done: u64, total: u64) -> Result<(), ExecError> {
        let detail = format!("{}: {} of {}", self.detail, grouped(done), grouped(total));
        self.observer
            .progress(self.before + done, self.total, &detail);
        stop(self.cancel)
    }
}

impl TrainObserver for Watch<'_> {
    fn step(&mut self, point: &TrainPoint) -> Result<(), TrainError> {
        let detail = format!(
            "epoch {} of {} · {:.0} img/s",
            (point.epoch.floor() as usize + 1).min(self.epochs.max(1)),
            self.epochs,
            point.samples_per_second
        );
        self.trained = self.cost * point.step / point.steps.max(1);
        self.detail = detail;
        self.observer.curve(point);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), TrainError> {
        self.observer
            .progress(self.before + self.trained, self.total, &self.detail);
        if self.cancel.is_cancelled() {
            return Err(TrainError::Cancelled);
        }
        Ok(())
    }

    fn wants_checkpoint(&mut self) -> bool {
        let stops = self.observer.is_to_pause();
        let due = |kept: &mut &mut Checkpoints| kept.due(1) || stops && kept.wanted();
        self.checkpoints.as_mut().is_some_and(due)
    }

    fn checkpoint(&mut self, training: &Checkpoint) {
        let (Some(kept), Some(saver)) = (&mut self.checkpoints, &self.saver) else {
            return;
        };
        let failed = kept.save(saver.index, &saver.model, &saver.accounts, Some(training));
        if let Some(words) = failed {
            self.observer.note(&words);
        }
    }
}
