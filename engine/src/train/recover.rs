//! When training goes wrong: how that is noticed, and how it is told.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The rate after going back, as a share of the rate before.
pub(super) const RATE_CUT: f64 = 0.25;
/// How often training goes back at most.
pub(super) const MOST_ROLLBACKS: usize = 4;
/// Mini-batches that are looked at together.
const WINDOW: usize = 20;
/// So many times what it was, and what guessing would lose, is no noise.
const FAR_WORSE: f64 = 4.0;

/// Training that diverged and went back to the last good state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollback {
    /// What was seen, in words, and the step it was seen at.
    pub what: String,
    pub step: u64,
    /// The step that training went back to: the last epoch's end, or the start.
    pub back_to: u64,
    /// The highest rate of the schedule from there on.
    pub rate: f64,
}

/// Losses of the first and of the last mini-batches, with what guessing all classes alike would have lost on them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Recent {
    first: Vec<f64>,
    last: VecDeque<(f64, f64)>,
}

impl Recent {
    /// Takes note of a mini-batch. In words, what is wrong: a loss that is no number, or losses that are far above those of the start and
    /// above what knowing nothing costs.
    pub fn add(&mut self, loss: f64, guess: f64) -> Option<String> {
        if !loss.is_finite() {
            return Some(format!("the loss is {loss}"));
        }
        if self.first.len() < WINDOW {
            self.first.push(loss);
        }
        self.last.push_back((loss, guess));
        if self.last.len() > WINDOW {
            self.last.pop_front();
        }
        if self.last.len() < WINDOW {
            return None;
        }
        let mean = |sum: f64, n: usize| sum / n as f64;
        let first = mean(self.first.iter().sum(), self.first.len());
        let last = mean(self.last.iter().map(|l| l.0).sum(), WINDOW);
        let guess = mean(self.last.iter().map(|l| l.1).sum(), WINDOW);
        (last > FAR_WORSE * first.max(guess)).then(|| {
            format!(
                "the mean loss of {WINDOW} mini-batches is {last:.3}, {first:.3} at the start and {guess:.3} for guessing"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_borne_and_divergence_noticed() {
        let mut recent = Recent::default();
        // A peak, and a level that is above the start's but not above a guess's.
        for i in 0..200 {
            let loss = if i == 50 {
                60.0
            } else {
                0.5 + i as f64 / 100.0
            };
            assert_eq!(recent.add(loss, 2.3), None, "{i}");
        }
        let said = (0..WINDOW).find_map(|_| recent.add(40.0, 2.3)).unwrap();
        assert!(said.contains("2.300 for guessing"), "{said}");
        assert!(
            Recent::default()
                .add(f64::NAN, 2.3)
                .unwrap()
                .contains("NaN")
        );
    }
}
