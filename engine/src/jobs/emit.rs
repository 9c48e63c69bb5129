//! Sends events and wakes whoever listens; thins out progress.

use super::{Event, JobId, Waker};
use crossbeam_channel::Sender;
use std::time::{Duration, Instant};

/// Between two progress events of one job.
const PROGRESS_EVERY: Duration = Duration::from_millis(66);

/// About how many points are sent of a curve that is known already.
const CURVE_POINTS: usize = 2_000;

#[derive(Clone)]
pub(super) struct Emitter {
    events: Sender<Event>,
    waker: Waker,
}

impl Emitter {
    pub fn new(events: Sender<Event>, waker: Waker) -> Self {
        Self { events, waker }
    }

    pub fn send(&self, event: Event) {
        // Nobody listens any more: the engine is about to be shut down.
        if self.events.send(event).is_err() {
            return;
        }
        // With an older event still waiting its wake-up is still on its way, and will find this one too.
        if self.events.len() <= 1 {
            (self.waker)();
        }
    }
}

/// Progress of one job.
pub(super) struct Ticker {
    job: JobId,
    started: Instant,
    /// Time given to jobs that overtook this one, and paused.
    away: Duration,
    /// Units of progress that took no time.
    skipped: u64,
    last: Option<Instant>,
    last_curve: Option<Instant>,
}

impl Ticker {
    pub fn new(job: JobId) -> Self {
        Self {
            job,
            started: Instant::now(),
            away: Duration::ZERO,
            skipped: 0,
            last: None,
            last_curve: None,
        }
    }

    pub fn skipped(&mut self, units: u64) {
        self.skipped += units;
    }

    pub fn was_away(&mut self, time: Duration) {
        self.away += time;
    }

    /// Time that this job did not work.
    pub fn away(&self) -> Duration {
        self.away
    }

    /// Sends progress unless it has just done so.
    pub fn progress(&mut self, emitter: &Emitter, done: u64, total: u64, detail: &str) {
        if !due(&mut self.last) {
            return;
        }
        let fraction = done as f64 / total.max(1) as f64;
        let worked = self.started.elapsed().saturating_sub(self.away);
        let own = done.saturating_sub(self.skipped) as f64 / total.max(1) as f64;
        let eta = (own > 0.01 && worked > Duration::from_millis(300))
            .then(|| worked.mul_f64((1.0 - fraction).max(0.0) / own));
        emitter.send(Event::Progress {
            job: self.job,
            fraction: fraction.min(1.0) as f32,
            eta,
            detail: detail.to_owned(),
        });
    }

    /// Sends the points of a training that is gone on with, of many only as many as a curve shows.
    pub fn curve_so_far(&self, emitter: &Emitter, points: &[crate::train::TrainPoint]) {
        let every = points.len().div_ceil(CURVE_POINTS).max(1);
        let last = points.len().saturating_sub(1);
        for (at, point) in points.iter().enumerate() {
            if at % every == 0 || at == last || point.accuracy.is_some() {
                emitter.send(Event::Curve {
                    job: self.job,
                    point: *point,
                });
            }
        }
    }

    /// Sends a point of a curve; those with an accuracy always.
    pub fn curve(&mut self, emitter: &Emitter, point: &crate::train::TrainPoint) {
        let last = point.step >= point.steps;
        if due(&mut self.last_curve) || point.accuracy.is_some() || last {
            emitter.send(Event::Curve {
                job: self.job,
                point: *point,
            });
        }
    }
}

fn due(last: &mut Option<Instant>) -> bool {
    if last.is_some_and(|l| l.elapsed() < PROGRESS_EVERY) {
        return false;
    }
    *last = Some(Instant::now());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn what_was_done_before_does_not_make_the_rest_look_quick() {
        let (events, told) = crossbeam_channel::unbounded();
        let emitter = Emitter::new(events, Arc::new(|| {}));
        let mut ticker = Ticker::new(JobId(1));
        ticker.started = Instant::now() - Duration::from_secs(10);
        ticker.skipped(60);
        ticker.progress(&emitter, 70, 100, "");
        let Ok(Event::Progress {
            fraction,
            eta: Some(eta),
            ..
        }) = told.try_recv()
        else {
            panic!("no time was told");
        };
        // Ten of a hundred took ten seconds: thirty are left.
        assert_eq!(fraction, 0.7);
        assert!((29.5..32.0).contains(&eta.as_secs_f64()), "{eta:?}");
    }
}
