//! The verdict on each goal, by the whole 95 % interval, and how many samples would settle an open one.

use super::{Goal, Verdict};
use crate::{eval::Metrics, measure::Sizes};

/// One goal judged, with the words to say it in.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GoalVerdict {
    pub goal: Goal,
    pub verdict: Verdict,
    /// In the goal's own unit (points, percent of the baseline, kB).
    pub measured: f64,
    /// 95 % interval in the goal's unit; `None` for sizes, which are exact.
    pub ci: Option<[f64; 2]>,
    /// Inconclusive: how many more samples of the same kind would probably settle it.
    pub samples_needed: Option<u64>,
    /// Type, direction, baseline, n and split in one sentence.
    pub words: String,
}

/// Judges every goal. `metrics` must carry the paired drop from the original for goals about accuracy; without it they are
/// inconclusive. `baseline_top1` is the original's top-1 (fraction) on the same samples.
pub fn judge(
    goals: &[Goal],
    metrics: &Metrics,
    baseline_top1: f64,
    sizes: &Sizes,
) -> Vec<GoalVerdict> {
    goals
        .iter()
        .map(|goal| match *goal {
            Goal::DropPoints(limit) => {
                accuracy(*goal, limit, 100.0, "percentage points (absolute)", metrics)
            }
            Goal::DropRelativePercent(limit) => accuracy(
                *goal,
                limit,
                match metrics.unlabelled {
                    false => 100.0 / baseline_top1,
                    true => f64::NAN,
                },
                "percent of the original's top-1 (relative)",
                metrics,
            ),
            Goal::StoredKilobytes(limit) => size(*goal, limit, sizes.stored.0, "the exported file"),
            Goal::RuntimeKilobytes(limit) => {
                size(*goal, limit, sizes.runtime.0, "the weights in memory")
            }
        })
        .collect()
}

/// All goals together: fail if one fails, else inconclusive if one is open, else pass. `None` without goals.
pub fn overall(verdicts: &[GoalVerdict]) -> Option<Verdict> {
    verdicts.iter().map(|v| v.verdict).max_by_key(|v| match v {
        Verdict::Pass => 0,
        Verdict::Inconclusive => 1,
        Verdict::Fail => 2,
    })
}

/// More samples than this many times those there are will never be had.
const SETTLES_WITHIN: u64 = 100;

/// 1234567 → "1,234,567".
pub(super) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn accuracy(goal: Goal, limit: f64, factor: f64, unit: &str, metrics: &Metrics) -> GoalVerdict {
    let known = metrics.drop.filter(|_| factor.is_finite());
    let Some(drop) = known else {
        return GoalVerdict {
            goal,
            verdict: Verdict::Inconclusive,
            measured: f64::NAN,
            ci: None,
            samples_needed: None,
            words: format!(
                "top-1 drop at most {limit} {unit}: inconclusive, {}",
                match metrics.unlabelled {
                    true => "the original's top-1 is not known without labels",
                    false => "there is no measured original to compare with",
                }
            ),
        };
    };
    let (measured, ci) = (
        drop.drop * factor,
        [drop.ci[0] * factor, drop.ci[1] * factor],
    );
    let verdict = if ci[1] <= limit {
        Verdict::Pass
    } else if ci[0] > limit && !metrics.unlabelled {
        Verdict::Fail
    } else {
        Verdict::Inconclusive
    };
    // The interval narrows with the square root of n: it must fit between the drop and the limit.
    let samples_needed = (verdict == Verdict::Inconclusive && !metrics.unlabelled)
        .then(|| {
            let reach = if measured <= limit {
                ci[1] - measured
            } else {
                measured - ci[0]
            };
            let wanted = drop.n as f64 * (reach / (limit - measured)).powi(2);
            (wanted.is_finite() && wanted < 1e12)
                .then(|| (wanted.ceil() as u64).saturating_sub(drop.n).max(1))
        })
        .flatten();
    let tail = match (verdict, samples_needed) {
        (Verdict::Inconclusive, _) if metrics.unlabelled => {
            "; what is lost cannot be told without labels".into()
        }
        (Verdict::Inconclusive, Some(more)) if more > SETTLES_WITHIN.saturating_mul(drop.n) => {
            "; the limit is too close to the measured drop for any test set of this kind to tell"
                .into()
        }
        (Verdict::Inconclusive, Some(more)) => format!(
            "; the interval spans the limit, about {} more samples would probably tell",
            grouped(more)
        ),
        (Verdict::Inconclusive, None) => {
            "; the drop lies on the limit, no number of samples can be named that would tell".into()
        }
        _ => String::new(),
    };
    let what = match metrics.unlabelled {
        true => "changed its class, no more can be lost",
        false => "lost",
    };
    GoalVerdict {
        goal,
        verdict,
        measured,
        ci: Some(ci),
        samples_needed,
        words: format!(
            "top-1 drop against the original at most {limit} {unit}: {measured:.2} {what} (95 % interval {:.2} to {:.2}, n = {}, paired, {} split{}){tail}",
            ci[0],
            ci[1],
            grouped(drop.n),
            metrics.split,
            match &metrics.simulated {
                None => String::new(),
                Some(target) => format!(", simulated at {target}"),
            },
        ),
    }
}

fn size(goal: Goal, limit: f64, bytes: u64, what: &str) -> GoalVerdict {
    let measured = bytes as f64 / 1000.0;
    GoalVerdict {
        goal,
        verdict: if measured <= limit {
            Verdict::Pass
        } else {
            Verdict::Fail
        },
        measured,
        ci: None,
        samples_needed: None,
        words: format!("{what} at most {limit} kB: {measured:.1} kB (exact; 1 kB = 1,000 bytes)"),
    }
}
