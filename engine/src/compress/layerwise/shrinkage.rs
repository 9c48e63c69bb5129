//! How far a few samples tell how a layer's inputs go together (Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
//! matrices", 2004): what roundings are chosen by is the covariance of the inputs, and of many inputs and few samples most of it is chance.
//! Positions of one sample are alike, so it is samples that count here, not positions.

use super::Seen;
use crate::exec::{
    CancelToken, ExecError,
    kernels::{Matrix, dot, matmul},
};
use rayon::prelude::*;

/// Positions that are looked at, about.
const LOOKED_AT: usize = 4096;
/// Rows of the covariance computed together.
const STRIP: usize = 32;

/// The covariance Σ of a group's inputs is best taken for (1 − `intensity`)·Σ + `intensity`·`variance`·I. Their means are as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::compress) struct Shrinkage {
    /// 0 (trusted as it is) to 1 (nothing but chance).
    pub intensity: f64,
    /// Variance of an input, on average.
    pub variance: f64,
}

impl Shrinkage {
    /// Of the `depth` inputs of a group at the positions that a choice is made on, by `samples` ([`Seen::fitted_samples`]). The covariance is trusted where
    /// nothing can be told: of less than two samples or inputs, or where inputs do not move.
    ///
    /// # Errors
    /// Cancellation.
    pub fn of(
        seen: &Seen<'_>,
        samples: &[Vec<usize>],
        (group, depth): (usize, usize),
        cancel: &CancelToken,
    ) -> Result<Self, ExecError> {
        let each = (LOOKED_AT / samples.len().max(1)).max(1);
        let columns = samples.iter().map(|c| &c[..c.len().min(each)]);
        let picked: Vec<&[usize]> = columns.collect();
        let n = picked.len();
        if n < 2 || depth < 2 {
            return Ok(Self::default());
        }
        // Deviations from the mean, one row of positions for each input, those of a sample beside each other. Every sample counts alike.
        let columns = picked.iter().map(|c| c.len()).sum::<usize>();
        let x = seen.of_group(group, depth);
        let mut deviations = vec![0.0_f32; depth * columns];
        let rows = deviations
            .par_chunks_mut(columns)
            .zip(x.par_chunks(seen.rows));
        rows.for_each(|(out, row)| {
            let mut at = 0;
            let mut mean = 0.0_f64;
            for picked in &picked {
                let sum: f64 = picked.iter().map(|c| f64::from(row[*c])).sum();
                mean += sum / picked.len() as f64 / n as f64;
            }
            for picked in &picked {
                let weight = (1.0 / picked.len() as f64).sqrt() as f32;
                for column in *picked {
                    out[at] = (row[*column] - mean as f32) * weight;
                    at += 1;
                }
            }
        });
        let mut ends = Vec::with_capacity(n);
        picked.iter().fold(0, |at, c| {
            ends.push(at + c.len());
            at + c.len()
        });
        // ‖Cᵢ‖² of each sample's covariance, by the products of its positions, which are fewer than inputs as a rule.
        let own: Vec<f64> = (0..n)
            .into_par_iter()
            .map(|i| {
                let first = if i == 0 { 0 } else { ends[i - 1] };
                let count = ends[i] - first;
                let z = Matrix::new(&deviations[first..], depth, count, columns);
                let turned = Matrix::new(&deviations[first..], depth, count, columns).transposed();
                let mut gram = vec![0.0; count * count];
                matmul(turned, z, &mut gram);
                square(&gram)
            })
            .collect();
        // ‖C‖² of their mean.
        let strips: Vec<f64> = (0..depth.div_ceil(STRIP))
            .into_par_iter()
            .map(|strip| {
                if cancel.is_cancelled() {
                    return Err(ExecError::Cancelled);
                }
                let first = strip * STRIP;
                let count = STRIP.min(depth - first);
                let mine = Matrix::new(&deviations[first * columns..], count, columns, columns);
                let all = Matrix::new(&deviations, depth, columns, columns).transposed();
                let mut out = vec![0.0; count * depth];
                matmul(mine, all, &mut out);
                Ok(square(&out))
            })
            .collect::<Result<_, _>>()?;
        let count = n as f64;
        let whole = strips.iter().sum::<f64>() / (count * count);
        let variance = square(&deviations) / count / depth as f64;
        let spread = (own.iter().sum::<f64>() / count - whole) / (count - 1.0);
        let apart = whole - depth as f64 * variance * variance;
        if !(variance > 0.0 && apart > 0.0 && spread.is_finite()) {
            return Ok(Self::default());
        }
        Ok(Self {
            intensity: (spread / apart).clamp(0.0, 1.0),
            variance,
        })
    }

    /// The shares that the positions and the variance alone have in a choice, their ratio times `damping`.
    pub fn shares(self, damping: f32) -> (f64, f64) {
        let damped = f64::from(damping) * self.intensity;
        let all = 1.0 - self.intensity + damped;
        match all > 0.0 {
            true => ((1.0 - self.intensity) / all, damped / all),
            false => (1.0, 0.0),
        }
    }
}

fn square(values: &[f32]) -> f64 {
    let pieces = values.chunks(4096);
    pieces.map(|piece| f64::from(dot(piece, piece))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::layerwise::{Places, Problem};
    use rand::{RngExt, SeedableRng};

    /// Sums of uniform numbers, near enough to a normal distribution of variance 1.
    fn normal(rng: &mut rand_chacha::ChaCha8Rng) -> f32 {
        (0..12).map(|_| rng.random::<f32>() - 0.5).sum()
    }

    fn found(x: &[f32], depth: usize, places: Option<&Places>) -> Shrinkage {
        let seen = Seen {
            patches: x,
            target: &[],
            rows: x.len() / depth,
            places,
        };
        let samples = seen.fitted_samples();
        Shrinkage::of(&seen, &samples, (0, depth), &CancelToken::default())
            .expect("nothing is cancelled")
    }

    /// Positions of products over `depth` elements, so many a sample.
    fn places(depth: usize, samples: usize, each: usize, rows: usize) -> Places {
        let problem = Problem::plain(&vec![1.0; depth], 1.0, (1, depth), 0.0, (0.0, 1.0));
        let dims = [2, each, depth];
        problem.places(&dims, samples, rows, 1).expect("fits")
    }

    #[test]
    fn follows_the_definition() {
        // Samples of three and of two positions.
        let (depth, places) = (5, places(5, 9, 3, 24));
        let rows = places.rows();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let x: Vec<f32> = (0..depth * rows)
            .map(|i| normal(&mut rng) * (1 + i / rows) as f32 + 2.0)
            .collect();
        let samples = places.fitted_samples();
        assert!(samples.len() == 8 && samples.iter().any(|s| s.len() == 2));
        let n = samples.len() as f64;
        let at = |k: usize, column: usize| f64::from(x[k * rows + column]);
        let over = |of: &[usize], f: &dyn Fn(usize) -> f64| -> f64 {
            of.iter().map(|c| f(*c)).sum::<f64>() / of.len() as f64
        };
        let mean: Vec<f64> = (0..depth)
            .map(|k| samples.iter().map(|s| over(s, &|c| at(k, c))).sum::<f64>() / n)
            .collect();
        let pairs = || (0..depth).flat_map(|i| (0..depth).map(move |j| (i, j)));
        let own = |s: &[usize], i, j| over(s, &|c| (at(i, c) - mean[i]) * (at(j, c) - mean[j]));
        let all = |i, j| samples.iter().map(|s| own(s, i, j)).sum::<f64>() / n;
        let variance = (0..depth).map(|k| all(k, k)).sum::<f64>() / depth as f64;
        let apart: f64 = pairs()
            .map(|(i, j)| (all(i, j) - if i == j { variance } else { 0.0 }).powi(2))
            .sum();
        let spread: f64 = samples
            .iter()
            .flat_map(|s| pairs().map(|(i, j)| (own(s, i, j) - all(i, j)).powi(2)))
            .sum::<f64>()
            / (n * (n - 1.0));
        let found = found(&x, depth, Some(&places));
        assert!((found.variance / variance - 1.0).abs() < 1e-5, "{found:?}");
        assert!(
            (found.intensity - spread / apart).abs() < 1e-5 && spread < apart,
            "{found:?}, {spread} of {apart}"
        );
        let shares = found.shares(2.0);
        assert!((shares.0 + shares.1 - 1.0).abs() < 1e-12);
        let ratio = 2.0 * found.intensity / (1.0 - found.intensity);
        assert!((shares.1 / shares.0 - ratio).abs() < 1e-9);
    }

    #[test]
    fn few_samples_of_many_inputs_are_chance_and_positions_of_one_sample_no_more() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let mut independent = |depth: usize, rows: usize| -> Vec<f32> {
            (0..depth * rows).map(|_| normal(&mut rng)).collect()
        };
        // All directions alike: whatever the covariance shows is chance.
        assert!(found(&independent(64, 48), 64, None).intensity > 0.9);
        // One direction of its own, seen by many.
        let (depth, rows) = (8, 2048);
        let x = independent(depth, rows);
        let common: Vec<f32> = (0..depth * rows)
            .map(|i| 0.3 * x[i] + x[i % rows])
            .collect();
        let seen = found(&common, depth, None);
        assert!(seen.intensity < 0.01, "{seen:?}");
        assert!((seen.variance - 1.09).abs() < 0.1, "{seen:?}");
        // The same number of positions, of 16 samples whose positions are all the same.
        let places = places(depth, 16, 128, rows);
        let of_sample = places.sample_of();
        let alike: Vec<f32> = (0..depth * rows)
            .map(|i| common[i / rows * rows + of_sample[i % rows]])
            .collect();
        let few = found(&alike, depth, Some(&places));
        assert!(few.intensity > 10.0 * seen.intensity, "{few:?}");
    }

    #[test]
    fn a_sample_is_chosen_by_or_judges_as_a_whole() {
        for (samples, rows, judging) in [(64, 640, 8), (9, 20, 1), (200, 2000, 25)] {
            let places = places(2, samples, 10, rows);
            let of = places.sample_of();
            let (seen, aside) = of.split_at(places.fitted());
            let judges = |sample: &usize| sample % 8 == 7;
            assert!(aside.iter().all(judges) && !seen.iter().any(judges));
            assert_eq!(places.fitted_samples().len(), samples - judging);
            // In no order, so that a mini-batch has positions of many samples.
            assert!(!seen.is_sorted());
        }
        // Of fewer than eight samples an eighth of the positions.
        let few = places(2, 4, 10, 40);
        assert_eq!((few.fitted(), few.fitted_samples().len()), (35, 4));
        // Fewer positions than samples: each is of a sample of its own, and none is lost.
        for (samples, rows) in [(256, 32), (1000, 125), (64, 7)] {
            let places = places(2, samples, 10, rows);
            let mut of = places.sample_of();
            of.sort_unstable();
            of.dedup();
            assert_eq!((places.rows(), of.len()), (rows, rows));
            assert_eq!(places.fitted(), rows - rows / 8);
        }
    }

    /// More positions than are looked at, of inputs that grow along them: those that are looked at are of all of a sample.
    #[test]
    fn positions_are_looked_at_all_over_a_sample() {
        let (depth, samples, each) = (4, 64, 512);
        let places = places(depth, samples, each, samples * each);
        let rows = places.rows();
        let mut x = vec![0.0; depth * rows];
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        for drawn in places.of_sample() {
            for &(position, column) in drawn {
                for k in 0..depth {
                    x[k * rows + column] = position as f32 / each as f32 * normal(&mut rng);
                }
            }
        }
        let variance = found(&x, depth, Some(&places)).variance;
        assert!((variance - 1.0 / 3.0).abs() < 0.03, "{variance}");
    }

    #[test]
    fn nothing_to_tell_is_trusted() {
        assert_eq!(found(&[1.0, 2.0], 2, None), Shrinkage::default());
        // Inputs that do not move, and a single one.
        assert_eq!(found(&[0.5; 40], 4, None), Shrinkage::default());
        let one: Vec<f32> = (0..40).map(|i| (i % 7) as f32).collect();
        assert_eq!(found(&one, 1, None), Shrinkage::default());
        assert_eq!(Shrinkage::default().shares(1.0), (1.0, 0.0));
        let chance = Shrinkage {
            intensity: 1.0,
            variance: 1.0,
        };
        assert_eq!(chance.shares(0.0), (1.0, 0.0));
        assert_eq!(chance.shares(1.0), (0.0, 1.0));
    }
}
