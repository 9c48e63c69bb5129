//! What a run tells while it is at work, and what of it is kept for later runs.

use super::{
    Event, JobId,
    emit::Ticker,
    worker::{JobContext, Kept, Worker},
};
use crate::{
    recipe::{Built, Reached, Recipe, RunObserver, RunOutcome},
    train::TrainPoint,
};
use std::{sync::Arc, time::Duration};

/// Bytes of networks at the ends of epochs that are kept for new runs to begin with.
const EPOCH_BYTES: usize = 256 << 20;

/// Networks at the ends of epochs, by the runs that reached them, oldest first.
#[derive(Default)]
pub(super) struct Epochs(Vec<(Vec<JobId>, Reached)>);

impl Epochs {
    /// The latest of all runs stay, as many as there is room for.
    fn keep(&mut self, job: JobId, fresh: Reached) {
        let same = |(_, old): &(Vec<JobId>, Reached)| old.steps_sha256 == fresh.steps_sha256;
        // Two runs that begin alike reach the same network: it is kept once, and is both's.
        let mut jobs = match self.0.iter().position(same) {
            Some(at) => self.0.remove(at).0,
            None => Vec::new(),
        };
        if !jobs.contains(&job) {
            jobs.push(job);
        }
        self.0.push((jobs, fresh));
        let mut size: usize = self.0.iter().map(|(_, state)| state.bytes()).sum();
        while self.0.len() > 1 && size > EPOCH_BYTES {
            size -= self.0.remove(0).1.bytes();
        }
    }

    fn find(&self, steps_sha256: &str) -> Option<&Reached> {
        let mut states = self.0.iter().map(|(_, state)| state);
        states.find(|state| state.steps_sha256 == steps_sha256)
    }

    fn list(&self) -> Vec<(JobId, usize)> {
        let mut list = Vec::new();
        for (jobs, state) in &self.0 {
            let Some(epoch) = state.epoch else { continue };
            list.extend(jobs.iter().map(|job| (*job, epoch)));
        }
        list
    }
}

/// Passes a run's progress on and lets other work in between.
pub(super) struct Watching<'a> {
    pub worker: &'a Worker,
    pub context: &'a JobContext,
    pub ticker: Ticker,
}

impl RunObserver for Watching<'_> {
    fn progress(&mut self, done: u64, total: u64, detail: &str) {
        self.ticker
            .progress(self.worker.emitter(), done, total, detail);
        self.worker.poll(self.context, Some(&mut self.ticker));
    }

    fn skipped(&mut self, units: u64) {
        self.ticker.skipped(units);
    }

    fn away(&self) -> Duration {
        self.ticker.away()
    }

    fn curve(&mut self, point: &TrainPoint) {
        self.ticker.curve(self.worker.emitter(), point);
    }

    fn curve_so_far(&mut self, points: &[TrainPoint]) {
        self.ticker.curve_so_far(self.worker.emitter(), points);
    }

    fn is_to_pause(&self) -> bool {
        self.worker.is_paused(self.context.job)
    }

    fn keeps(&mut self, keeps: bool) {
        self.worker.set_keeping(self.context.job, keeps);
    }

    fn is_to_end(&self) -> bool {
        self.worker.is_to_end(self.context.job)
    }

    fn lost(&mut self, words: &str) {
        self.worker.emitter().send(Event::NotKept {
            job: self.context.job,
            message: words.to_owned(),
        });
    }

    fn note(&mut self, words: &str) {
        self.worker.note(self.context, words.to_owned());
    }

    fn wants_epochs(&self) -> bool {
        true
    }

    fn reached(&mut self, state: Reached) {
        let mut epochs = self.worker.epochs.borrow_mut();
        epochs.keep(self.context.job, state);
        self.worker.emitter().send(Event::Epochs {
            job: self.context.job,
            kept: epochs.list(),
        });
    }

    fn known(&self, steps_sha256: &str) -> Option<Reached> {
        self.worker.epochs.borrow().find(steps_sha256).cloned()
    }

    fn wants_before_training(&self) -> bool {
        true
    }

    fn before_training(&mut self, outcome: RunOutcome) {
        self.worker.point(self.context, outcome, true);
    }

    fn cancelled_training(&mut self, recipe: Recipe, built: Option<Built>) {
        if let (Some(built), Ok(steps_sha256)) = (built, recipe.steps_sha256()) {
            self.worker.keep(Kept {
                steps_sha256,
                built,
            });
        }
        self.worker.emitter().send(Event::Stopped {
            job: self.context.job,
            recipe: Arc::new(recipe),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::testkit;

    fn reached(steps: &str, epoch: usize) -> Reached {
        Reached::new(steps.to_owned(), Some(epoch), testkit::classifier(1))
    }

    #[test]
    fn an_epoch_that_two_runs_share_is_kept_once_and_is_both_runs() {
        let mut epochs = Epochs::default();
        epochs.keep(JobId(1), reached("a", 1));
        epochs.keep(JobId(1), reached("b", 2));
        epochs.keep(JobId(2), reached("a", 1));
        epochs.keep(JobId(2), reached("a", 1));
        assert_eq!(epochs.0.len(), 2);
        let mut list = epochs.list();
        list.sort();
        assert_eq!(list, [(JobId(1), 1), (JobId(1), 2), (JobId(2), 1)]);
        assert_eq!(epochs.find("a").and_then(|state| state.epoch), Some(1));
    }
}
