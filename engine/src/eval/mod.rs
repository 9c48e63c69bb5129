//! Metrics with their uncertainty: top-1, top-5, cross-entropy, agreement, per class, and paired differences on the
//! same samples. Uses `exec` and `data`.

mod outputs;
mod run;
mod stats;

pub(crate) use crate::data::batch_size;
pub use outputs::{RowReader, mean_kl};
pub(crate) use run::rows;
pub use run::{Logits, evaluate, evaluate_tapped, evaluate_with_logits, rows_of};
pub use stats::{mean, paired_drop, proportion};

use crate::{data::SplitName, exec::ExecError};

/// A proportion or mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Estimate {
    pub value: f64,
    pub n: u64,
    /// 95 % interval (proportions: Wilson; means: normal; paired drops: see [`PairedDrop`]).
    pub ci: [f64; 2],
}

/// Per-sample results on one split, in the split's order. Small enough to keep for every run.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Evaluation {
    pub split: SplitName,
    pub n: u64,
    pub labels: Vec<u32>,
    /// Arg-max class of every sample (lowest index on ties).
    pub predictions: Vec<u32>,
    /// Whether the label is among the five best classes; of all classes where there are fewer.
    pub top5_correct: Vec<bool>,
    /// Cross-entropy of every sample, nats.
    pub losses: Vec<f32>,
    /// The target whose arithmetic was simulated; `None`: measured as computed here.
    pub simulated: Option<String>,
    /// The samples have no labels: `labels` are the original's classes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlabelled: bool,
}

/// Summary of an [`Evaluation`], fractions in 0..=1.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Metrics {
    pub split: SplitName,
    pub top1: Estimate,
    pub top5: Estimate,
    pub cross_entropy: Estimate,
    /// Share of samples with the baseline's label, where a baseline was given.
    pub agreement: Option<Estimate>,
    /// Top-1 of every class up to the highest that occurs as a label; `n` is 0 for a class without samples.
    pub per_class: Vec<Estimate>,
    /// Baseline top-1 minus this top-1 (fraction), paired on the same samples.
    pub drop: Option<PairedDrop>,
    /// The target whose arithmetic was simulated; `None`: measured as computed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulated: Option<String>,
    /// The samples have no labels, the original's classes stand for them: `top1` is agreement with the original, `drop` the share of samples
    /// whose class changed (no more than so much accuracy can be lost), `cross_entropy` that of the original's classes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlabelled: bool,
}

/// What a share of right classes is, in words, on samples with or without labels.
pub fn top1_name(unlabelled: bool) -> &'static str {
    if unlabelled {
        "agreement with the original"
    } else {
        "top-1"
    }
}

impl Metrics {
    /// What `top1` is, in words.
    pub fn top1_name(&self) -> &'static str {
        top1_name(self.unlabelled)
    }

    /// What `drop` is, in words: without labels nobody knows how much of it is accuracy.
    pub fn drop_name(&self) -> &'static str {
        if self.unlabelled {
            "classes changed"
        } else {
            "drop"
        }
    }

    /// Where the numbers come from: "measured", or "simulated at" a target.
    pub fn origin(&self) -> String {
        match &self.simulated {
            None => "measured".to_owned(),
            Some(target) => format!("simulated at {target}"),
        }
    }
}

/// Difference of two accuracies on the same n samples. `only_baseline`: right only in the baseline (b),
/// `only_candidate`: right only in the candidate (c); drop = (b − c)/n with a 95 % interval from b and c, see
/// [`paired_drop`].
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PairedDrop {
    pub drop: f64,
    pub ci: [f64; 2],
    pub n: u64,
    pub only_baseline: u64,
    pub only_candidate: u64,
}

/// Told after every mini-batch; may ask to stop by an error. `done` and `total` count samples.
pub trait Observer {
    fn batch(&mut self, done: u64, total: u64) -> Result<(), ExecError>;
}

/// Nobody watches.
pub struct NoObserver;
impl Observer for NoObserver {
    fn batch(&mut self, _done: u64, _total: u64) -> Result<(), ExecError> {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// The model's input or output does not fit the task, or its numbers are not finite.
    #[error("{0}")]
    Shape(String),
}

impl Evaluation {
    /// Summary; `agreement` and `drop` are present where a baseline of the same split is given, on the samples both have.
    pub fn metrics(&self, baseline: Option<&Evaluation>) -> Metrics {
        let correct: Vec<bool> = self.correct().collect();
        let count = |hits: &mut dyn Iterator<Item = bool>| hits.filter(|hit| *hit).count() as u64;
        let classes = self.labels.iter().max().map_or(0, |c| *c as usize + 1);
        let mut per_class = vec![(0u64, 0u64); classes];
        for (label, hit) in self.labels.iter().zip(&correct) {
            let slot = &mut per_class[*label as usize];
            slot.0 += u64::from(*hit);
            slot.1 += 1;
        }
        let baseline = baseline.filter(|b| b.split == self.split);
        Metrics {
            split: self.split,
            top1: proportion(count(&mut correct.iter().copied()), correct.len() as u64),
            top5: proportion(
                count(&mut self.top5_correct.iter().copied()),
                self.top5_correct.len() as u64,
            ),
            cross_entropy: mean(self.losses.iter().map(|l| f64::from(*l))),
            agreement: baseline.map(|b| {
                let pairs = self.predictions.iter().zip(&b.predictions);
                let n = pairs.len() as u64;
                proportion(count(&mut pairs.map(|(x, y)| x == y)), n)
            }),
            per_class: per_class
                .into_iter()
                .map(|(hits, n)| proportion(hits, n))
                .collect(),
            drop: baseline.map(|b| self.drop_from(b)),
            simulated: self.simulated.clone(),
            unlabelled: self.unlabelled,
        }
    }

    /// Accuracy lost against `baseline`, on the samples both have: an evaluation of the first k samples pairs with the
    /// first k of a longer one. Different splits have no sample in common (n 0).
    pub fn drop_from(&self, baseline: &Evaluation) -> PairedDrop {
        if self.split != baseline.split {
            return paired_drop(0, 0, 0);
        }
        baseline.drop_of(&self.predictions)
    }

    /// Accuracy that other predictions for the first of these samples lose against these.
    pub fn drop_of(&self, predictions: &[u32]) -> PairedDrop {
        let (mut b, mut c, mut n) = (0, 0, 0);
        for ((own, other), label) in self.predictions.iter().zip(predictions).zip(&self.labels) {
            n += 1;
            b += u64::from(own == label && other != label);
            c += u64::from(own != label && other == label);
        }
        paired_drop(b, c, n)
    }

    fn correct(&self) -> impl Iterator<Item = bool> {
        self.predictions
            .iter()
            .zip(&self.labels)
            .map(|(prediction, label)| prediction == label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(labels: &[u32], predictions: &[u32]) -> Evaluation {
        Evaluation {
            split: SplitName::Search,
            n: labels.len() as u64,
            labels: labels.to_vec(),
            predictions: predictions.to_vec(),
            top5_correct: vec![true; labels.len()],
            losses: vec![0.5; labels.len()],
            simulated: None,
            unlabelled: false,
        }
    }

    #[test]
    fn metrics_count_and_pair() {
        let base = evaluation(&[0, 1, 2, 2, 0], &[0, 1, 2, 1, 0]);
        let other = evaluation(&[0, 1, 2, 2, 0], &[1, 1, 1, 2, 0]);
        let m = other.metrics(Some(&base));
        assert_eq!((m.top1.value, m.top1.n), (0.6, 5));
        assert_eq!(m.top5.value, 1.0);
        assert_eq!(m.cross_entropy.value, 0.5);
        assert_eq!(m.agreement.unwrap().value, 0.4);
        let per_class: Vec<_> = m.per_class.iter().map(|e| (e.value, e.n)).collect();
        assert_eq!(per_class, [(0.5, 2), (1.0, 1), (0.5, 2)]);
        let d = m.drop.unwrap();
        assert_eq!((d.only_baseline, d.only_candidate, d.n), (2, 1, 5));
        assert!((d.drop - 0.2).abs() < 1e-12);
        assert!(base.metrics(None).drop.is_none());
        assert_eq!(m.origin(), "measured");
        let there = Evaluation {
            simulated: Some("onnxruntime-avx2".into()),
            ..other
        };
        assert_eq!(
            there.metrics(None).origin(),
            "simulated at onnxruntime-avx2"
        );
    }

    #[test]
    fn a_shorter_run_pairs_with_the_head_of_a_longer_one() {
        let base = evaluation(&[0, 1, 2, 2], &[0, 1, 2, 1]);
        let head = evaluation(&[0, 1], &[1, 1]);
        let d = head.drop_from(&base);
        assert_eq!((d.n, d.only_baseline, d.only_candidate), (2, 1, 0));
        assert_eq!(head.metrics(Some(&base)).agreement.unwrap().n, 2);
    }

    #[test]
    fn different_splits_are_never_paired() {
        let base = evaluation(&[0], &[0]);
        let mut other = evaluation(&[0], &[1]);
        other.split = SplitName::Holdout;
        assert_eq!(other.drop_from(&base).n, 0);
        assert!(other.metrics(Some(&base)).drop.is_none());
    }
}
