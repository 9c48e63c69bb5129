//! What one row of a model's output says: class, rank of the label, loss.

use super::{Estimate, EvalError, mean};

/// How the model's numbers are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Logits,
    /// The model ends in a softmax.
    Probabilities,
}

/// A batch of rows is taken for probabilities where every row is non-negative and sums to 1: rows of logits do so only
/// by intent. One class alone says nothing either way and is read as a logit.
pub(super) fn reading(rows: &[f32], classes: usize) -> Reading {
    let probable = |row: &[f32]| {
        row.iter().all(|v| (0.0..=1.0).contains(v))
            && (row.iter().map(|v| f64::from(*v)).sum::<f64>() - 1.0).abs() < 1e-3
    };
    if classes > 1 && !rows.is_empty() && rows.chunks_exact(classes).all(probable) {
        Reading::Probabilities
    } else {
        Reading::Logits
    }
}

pub(super) struct Row {
    pub prediction: u32,
    pub top5: bool,
    pub loss: f32,
}

/// Judges one sample's row. `sample` is only named in errors.
pub(super) fn judge(
    row: &[f32],
    label: u32,
    reading: Reading,
    sample: usize,
) -> Result<Row, EvalError> {
    if let Some(class) = row.iter().position(|v| !v.is_finite()) {
        return Err(EvalError::Shape(format!(
            "the model's output for sample {sample} is {} at class {class}: its weights or an operator produce values \
             that are not finite, so nothing measured on it would mean anything",
            row[class]
        )));
    }
    let Some(own) = row.get(label as usize).copied() else {
        return Err(EvalError::Shape(format!(
            "sample {sample} has label {label} but the model gives {} classes",
            row.len()
        )));
    };
    let mut prediction = 0;
    let mut before = 0;
    for (class, value) in row.iter().enumerate() {
        if *value > row[prediction] {
            prediction = class;
        }
        // Ties go to the lower index, as they do for the prediction.
        before += usize::from(*value > own || (*value == own && class < label as usize));
    }
    let loss = match reading {
        Reading::Logits => log_sum_exp(row) - f64::from(own),
        Reading::Probabilities => -f64::from(own.max(f32::MIN_POSITIVE)).ln(),
    };
    Ok(Row {
        prediction: prediction as u32,
        top5: before < 5,
        loss: loss as f32,
    })
}

/// ln Σ exp, with the maximum taken out so that nothing overflows.
fn log_sum_exp(row: &[f32]) -> f64 {
    let top = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    top + row
        .iter()
        .map(|v| (f64::from(*v) - top).exp())
        .sum::<f64>()
        .ln()
}

/// Reads the rows of several networks for one task alike: probabilities become their logarithms, classes are predicted.
#[derive(Clone)]
pub struct RowReader {
    classes: usize,
    reading: Option<Reading>,
}

impl RowReader {
    pub fn new(classes: usize) -> Self {
        Self {
            classes,
            reading: None,
        }
    }

    /// A reader that takes numbers for what they are in these rows, those of the network that others are compared with.
    ///
    /// # Errors
    /// Rows that are not finite, or of another number of classes.
    pub fn like(classes: usize, rows: &[f32]) -> Result<Self, EvalError> {
        let mut reader = Self::new(classes);
        reader.read(rows.to_vec(), 0)?;
        Ok(reader)
    }

    /// Logits and predicted classes of rows n×classes; the first ones read decide what the numbers are. `start` is the first
    /// sample's number, for errors.
    ///
    /// # Errors
    /// Rows that are not finite, or of another number of classes.
    pub fn read(
        &mut self,
        mut rows: Vec<f32>,
        start: usize,
    ) -> Result<(Vec<f32>, Vec<u32>), EvalError> {
        let classes = self.classes;
        if classes == 0 || !rows.len().is_multiple_of(classes) {
            return Err(EvalError::Shape(format!(
                "the model's output does not fit the task, which has {classes} classes: use the task that belongs to the model"
            )));
        }
        let reading = *self.reading.get_or_insert_with(|| reading(&rows, classes));
        let predictions = rows
            .chunks_exact(classes)
            .enumerate()
            .map(|(i, row)| Ok(judge(row, 0, reading, start + i)?.prediction))
            .collect::<Result<_, EvalError>>()?;
        if reading == Reading::Probabilities {
            rows.iter_mut()
                .for_each(|p| *p = p.max(f32::MIN_POSITIVE).ln());
        }
        Ok((rows, predictions))
    }
}

/// Mean Kullback–Leibler divergence KL(baseline ‖ candidate) in nats between the softmax of two sets of logits on the same
/// samples, each n×`classes` row-major; over the samples both have. Never negative.
pub fn mean_kl(baseline: &[f32], candidate: &[f32], classes: usize) -> Estimate {
    if classes == 0 {
        return mean(std::iter::empty());
    }
    let rows = baseline
        .chunks_exact(classes)
        .zip(candidate.chunks_exact(classes));
    let divergences: Vec<f64> = rows
        .map(|(p, q)| {
            let (lp, lq) = (log_sum_exp(p), log_sum_exp(q));
            let sum: f64 = p
                .iter()
                .zip(q)
                .map(|(p, q)| {
                    let p = f64::from(*p) - lp;
                    p.exp() * (p - (f64::from(*q) - lq))
                })
                .sum();
            sum.max(0.0)
        })
        .collect();
    mean(divergences.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_stable_and_right() {
        let row = judge(&[1000.0, 1001.0], 0, Reading::Logits, 0).unwrap();
        assert_eq!(row.prediction, 1);
        // ln(1 + e) of a difference of one
        assert!((row.loss - 1.313_261_7).abs() < 1e-6);
        let row = judge(&[0.25, 0.75], 1, Reading::Probabilities, 0).unwrap();
        assert!((row.loss - 0.287_682).abs() < 1e-6);
    }

    #[test]
    fn ties_go_to_the_lowest_class() {
        let row = judge(&[1.0; 8], 4, Reading::Logits, 0).unwrap();
        assert_eq!((row.prediction, row.top5), (0, true));
        assert!(!judge(&[1.0; 8], 5, Reading::Logits, 0).unwrap().top5);
        // fewer than five classes: always among the best
        assert!(judge(&[3.0, 2.0, 1.0], 2, Reading::Logits, 0).unwrap().top5);
    }

    #[test]
    fn nan_is_named() {
        let error = judge(&[0.0, f32::NAN], 0, Reading::Logits, 17)
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("sample 17 is NaN at class 1"),
            "{error}"
        );
    }

    #[test]
    fn softmax_outputs_are_recognised() {
        assert_eq!(reading(&[0.25, 0.75, 1.0, 0.0], 2), Reading::Probabilities);
        assert_eq!(reading(&[0.25, 0.75, 0.9, 0.0], 2), Reading::Logits);
        assert_eq!(reading(&[1.0, 1.0], 1), Reading::Logits);
    }

    #[test]
    fn kl_is_zero_for_equal_and_shifted_logits() {
        let a = [1.0, 2.0, -1.0, 0.5];
        let shifted: Vec<f32> = a.iter().map(|v| v + 3.0).collect();
        assert!(mean_kl(&a, &shifted, 2).value < 1e-12);
        // p = (½, ½), q = (¼, ¾): ½ ln 2 + ½ ln ⅔
        let kl = mean_kl(&[0.0, 0.0], &[0.0, 3f32.ln()], 2).value;
        assert!((kl - 0.143_841).abs() < 1e-6, "{kl}");
    }
}
