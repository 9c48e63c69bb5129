//! Pruning while a network trains: how much is gone when. Carried out by `train`.

use super::{PruneTarget, Ratio};
use std::collections::BTreeMap;

/// How sparsity grows over the epochs of the training behind the step. The i-th of n updates of the masks comes at `begin + (end − begin)·i/n`,
/// in epochs; between updates masks stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PruneSchedule {
    /// Fast at first, when there is much to take: s·(1 − (1 − i/n)³) (Zhu and Gupta, "To Prune, or Not to Prune", 2017).
    Cubic {
        #[serde(default)]
        begin: f64,
        end: f64,
        #[serde(default = "PruneSchedule::updates")]
        updates: usize,
    },
    /// The same share of what is left in every round: 1 − (1 − s)^(i/n) (Han et al. 2015; Renda et al. 2020).
    Iterative {
        #[serde(default)]
        begin: f64,
        end: f64,
        rounds: usize,
    },
}

/// Updates at most.
const MOST: usize = 10_000;

impl PruneSchedule {
    fn updates() -> usize {
        20
    }

    /// Begin and end in epochs, and how many updates.
    fn timeline(&self) -> (f64, f64, usize) {
        match *self {
            Self::Cubic {
                begin,
                end,
                updates,
            } => (begin, end, updates),
            Self::Iterative { begin, end, rounds } => (begin, end, rounds),
        }
    }

    /// The epoch by which the masks are final.
    pub fn end(&self) -> f64 {
        self.timeline().1
    }

    /// # Errors
    /// No updates or too many, an end that does not lie behind the beginning.
    pub fn check(&self) -> Result<(), String> {
        let (begin, end, updates) = self.timeline();
        if !(1..=MOST).contains(&updates) {
            return Err(format!(
                "schedule: 1 to {MOST} updates of the masks were expected, found {updates}"
            ));
        }
        if !(begin.is_finite() && end.is_finite() && begin >= 0.0 && end > begin) {
            return Err(format!(
                "schedule: an end behind the beginning was expected, both in epochs from 0 on, found begin {begin} and end {end}"
            ));
        }
        Ok(())
    }

    pub(crate) fn words(&self) -> String {
        let (begin, end, updates) = self.timeline();
        let kind = match self {
            Self::Cubic { .. } => "cubic",
            Self::Iterative { .. } => "iterative",
        };
        format!("{kind}, {updates} updates over epochs {begin} to {end} of the training behind")
    }

    /// Updates that have come after `step` mini-batches, `batches` an epoch.
    pub fn due(&self, step: u64, batches: usize) -> usize {
        let (begin, end, updates) = self.timeline();
        let at = |i: usize| {
            let epoch = begin + (end - begin) * (i as f64 / updates as f64);
            // Before the first mini-batch nothing is pruned.
            ((epoch * batches as f64).round() as u64).max(1)
        };
        // Steps of updates rise with their number.
        let all: Vec<u64> = (1..=updates).map(at).collect();
        all.partition_point(|at| *at <= step)
    }

    /// Updates in all.
    pub fn count(&self) -> usize {
        self.timeline().2
    }

    /// The share that is gone after `done` updates, where `whole` is gone after the last.
    pub fn share(&self, whole: Ratio, done: usize) -> Ratio {
        let updates = self.count();
        if done >= updates {
            return whole;
        }
        let part = done as f64 / updates as f64;
        let last = f64::from(whole.0);
        Ratio(match self {
            Self::Cubic { .. } => last * (1.0 - (1.0 - part).powi(3)),
            // libm: the same bits on every system.
            Self::Iterative { .. } => 1.0 - libm::pow(1.0 - last, part),
        } as f32)
    }
}

/// Pruning that the next training is to carry out.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Gradual {
    pub schedule: PruneSchedule,
    /// By value name of the weight.
    pub weights: BTreeMap<String, PruneTarget>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparsity_grows_as_the_papers_have_it() {
        let cubic = PruneSchedule::Cubic {
            begin: 1.0,
            end: 3.0,
            updates: 4,
        };
        let shares: Vec<f32> = (0..=4).map(|i| cubic.share(Ratio(0.8), i).0).collect();
        // s_f + (s_i − s_f)(1 − t)³ by hand, s_i = 0.
        for (share, expected) in shares.iter().zip([0.0, 0.4625, 0.7, 0.7875, 0.8]) {
            assert!((share - expected).abs() < 1e-6, "{shares:?}");
        }
        // 10 mini-batches an epoch: updates after 15, 20, 25, 30.
        for (step, due) in [
            (0, 0),
            (14, 0),
            (15, 1),
            (19, 1),
            (20, 2),
            (29, 3),
            (30, 4),
            (99, 4),
        ] {
            assert_eq!(cubic.due(step, 10), due, "{step}");
        }
        let iterative = PruneSchedule::Iterative {
            begin: 0.0,
            end: 2.0,
            rounds: 2,
        };
        // Half of what is left, twice.
        assert!((iterative.share(Ratio(0.75), 1).0 - 0.5).abs() < 1e-6);
        assert_eq!(iterative.share(Ratio(0.75), 2), Ratio(0.75));
        assert_eq!((iterative.due(9, 10), iterative.due(10, 10)), (0, 1));
        // Updates closer than mini-batches come together, and not before the first of them.
        let sudden = PruneSchedule::Cubic {
            begin: 0.0,
            end: 0.02,
            updates: 4,
        };
        assert_eq!((sudden.due(0, 10), sudden.due(1, 10)), (0, 4));
    }
}
