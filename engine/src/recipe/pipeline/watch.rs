//! What one stage tells, passed on as progress of the whole.

use super::{Reached, RunObserver, Work, stop, words::training_words};
use crate::{
    compress::{Account, Model},
    data::SplitName,
    eval::Observer,
    exec::{CancelToken, ExecError},
    recipe::{Checkpoints, Recipe, Session, Step, checkpoints::Stand, verdict::grouped},
    train::{Checkpoint, Distilled, TrainError, TrainObserver, TrainPoint},
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
    /// It is the recipe's last training: the one whose curve is told, and whose epochs.
    pub(super) is_last: bool,
    /// The part of `cost` that is done.
    pub(super) trained: u64,
    checkpoints: Option<&'w mut Checkpoints>,
    /// A checkpoint was taken at this mini-batch.
    is_kept: bool,
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
            is_last: true,
            trained: 0,
            checkpoints: work.checkpoints.as_deref_mut(),
            is_kept: false,
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
        let which = if self.is_last {
            ""
        } else {
            "an earlier training, "
        };
        let detail = format!(
            "{which}epoch {} of {} · {:.0} img/s",
            (point.epoch.floor() as usize + 1).min(self.epochs.max(1)),
            self.epochs,
            point.samples_per_second
        );
        self.trained = self.cost * point.step / point.steps.max(1);
        self.is_kept = false;
        let wanted = |kept: &&mut Checkpoints| kept.wanted();
        if self.checkpoints.as_ref().is_some_and(wanted) {
            self.observer.keeps(true);
        }
        self.detail = detail;
        if self.is_last {
            self.observer.curve(point);
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), TrainError> {
        self.observer
            .progress(self.before + self.trained, self.total, &self.detail);
        if self.cancel.is_cancelled() || self.is_kept && self.observer.is_to_end() {
            return Err(TrainError::Cancelled);
        }
        Ok(())
    }

    fn wants_checkpoint(&mut self) -> bool {
        let stops = self.observer.is_to_pause() || self.observer.is_to_end();
        let due = |kept: &mut &mut Checkpoints| kept.due(1) || stops && kept.wanted();
        self.checkpoints.as_mut().is_some_and(due)
    }

    fn wants_epochs(&self) -> bool {
        self.is_last && self.observer.wants_epochs()
    }

    fn epoch(&mut self, cut: Distilled) {
        let Some(saver) = &self.saver else {
            return;
        };
        // Without a hash nobody would find it.
        let (index, epoch) = (saver.index, cut.epochs);
        let Some(recipe) = self.recipe.cut_at(index, epoch) else {
            return;
        };
        let (Ok(steps_sha256), Some(Step::Distil(settings))) =
            (recipe.steps_sha256(), recipe.steps.last())
        else {
            return;
        };
        let labelled = self.session.data.as_ref();
        let labelled = labelled.is_some_and(|data| data.has_labels(SplitName::Search));
        let mut accounts = saver.accounts.clone();
        accounts.push(Account {
            pass: training_words(settings, &cut, labelled),
            entries: Vec::new(),
        });
        self.observer.reached(Reached {
            steps_sha256,
            epoch: Some(epoch),
            stand: Stand {
                index: index + 1,
                model: cut.model,
                accounts,
                training: None,
            },
        });
    }

    fn checkpoint(&mut self, training: &Checkpoint) {
        let (Some(kept), Some(saver)) = (&mut self.checkpoints, &self.saver) else {
            return;
        };
        let failed = kept.save(saver.index, &saver.model, &saver.accounts, Some(training));
        self.is_kept = true;
        match kept.failure() {
            Some(why) if self.observer.is_to_end() => self.observer.lost(&format!(
                "no checkpoint could be taken: {why}; what was trained since the one before, or since the start where there is none, is lost"
            )),
            _ => {
                if let Some(words) = failed {
                    self.observer.note(&words);
                }
            }
        }
    }
}
