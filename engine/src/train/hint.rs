//! Losses on features within the networks, with their exact gradients.

use crate::exec::kernels::{Matrix, matmul};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// Channels of the student's and of the teacher's features, and places (pixels, positions) of either.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Widths {
    pub student: usize,
    pub teacher: usize,
    pub places: usize,
}

/// A projection of the student's channels onto the teacher's: weight teacher×student, bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Projection<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
}

/// A loss, and its gradients by the student's features (samples × channels × places) and by the projection's weight and bias (empty without one).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hint {
    pub loss: f64,
    pub features: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

/// `½·Σ(P·s + b − t)²·scale` over samples, channels and places (FitNets, Romero et al. 2015); without a projection `½·Σ(s − t)²·scale`, of equal widths.
pub(super) fn matching(
    student: &[f32],
    teacher: &[f32],
    w: Widths,
    projection: Option<Projection<'_>>,
    scale: f64,
) -> Hint {
    let Widths {
        student: own,
        teacher: other,
        places,
    } = w;
    let mut hint = Hint {
        loss: 0.0,
        features: vec![0.0; student.len()],
        weight: vec![0.0; projection.map_or(0, |p| p.weight.len())],
        bias: vec![0.0; projection.map_or(0, |p| p.bias.len())],
    };
    let mut error = vec![0.0; other * places];
    let mut product = vec![0.0; hint.weight.len()];
    let samples = student
        .chunks_exact((own * places).max(1))
        .zip(teacher.chunks_exact((other * places).max(1)))
        .zip(hint.features.chunks_exact_mut((own * places).max(1)));
    for ((s, t), gradient) in samples {
        match projection {
            None => error.copy_from_slice(s),
            Some(p) => {
                let weight = Matrix::new(p.weight, other, own, own);
                matmul(weight, Matrix::new(s, own, places, places), &mut error);
                for (row, bias) in error.chunks_exact_mut(places).zip(p.bias) {
                    row.iter_mut().for_each(|e| *e += bias);
                }
            }
        }
        for (e, t) in error.iter_mut().zip(t) {
            *e -= t;
            hint.loss += f64::from(*e) * f64::from(*e);
            *e = (f64::from(*e) * scale) as f32;
        }
        match projection {
            None => gradient.copy_from_slice(&error),
            Some(p) => {
                let errors = Matrix::new(&error, other, places, places);
                let weight = Matrix::new(p.weight, other, own, own);
                matmul(weight.transposed(), errors, gradient);
                let features = Matrix::new(s, own, places, places);
                matmul(errors, features.transposed(), &mut product);
                for (sum, v) in hint.weight.iter_mut().zip(&product) {
                    *sum += v;
                }
                for (sum, row) in hint.bias.iter_mut().zip(error.chunks_exact(places)) {
                    *sum += row.iter().sum::<f32>();
                }
            }
        }
    }
    hint.loss *= 0.5 * scale;
    hint
}

/// `½·Σ‖a(s) − a(t)‖²·scale` over samples, where `a` is the mean over channels of the squared features at every place, divided by its norm over
/// the places: attention transfer (Zagoruyko & Komodakis 2017).
pub(super) fn attention(student: &[f32], teacher: &[f32], w: Widths, scale: f64) -> Hint {
    let places = w.places;
    let mut hint = Hint {
        loss: 0.0,
        features: vec![0.0; student.len()],
        weight: Vec::new(),
        bias: Vec::new(),
    };
    let (mut own, mut other) = (vec![0.0; places], vec![0.0; places]);
    let samples = student
        .chunks_exact((w.student * places).max(1))
        .zip(teacher.chunks_exact((w.teacher * places).max(1)))
        .zip(hint.features.chunks_exact_mut((w.student * places).max(1)));
    for ((s, t), gradient) in samples {
        let norm = map(s, &mut own);
        map(t, &mut other);
        hint.loss += own
            .iter()
            .zip(&other)
            .map(|(a, b)| (a - b) * (a - b))
            .sum::<f64>();
        if norm == 0.0 {
            // Nothing is seen anywhere: no direction leads out.
            continue;
        }
        // Through the norm: what lies along the map itself has no effect.
        let along: f64 = own.iter().zip(&other).map(|(a, b)| a * (a - b)).sum();
        for (a, b) in own.iter().zip(&mut other) {
            *b = (a - *b - a * along) * scale * 2.0 / (norm * w.student as f64);
        }
        for (row, gradient) in s
            .chunks_exact(places)
            .zip(gradient.chunks_exact_mut(places))
        {
            for ((g, v), slope) in gradient.iter_mut().zip(row).zip(&other) {
                *g = (slope * f64::from(*v)) as f32;
            }
        }
    }
    hint.loss *= 0.5 * scale;
    hint
}

/// The normalised map of one sample's features; the norm that it was divided by.
fn map(features: &[f32], out: &mut [f64]) -> f64 {
    out.fill(0.0);
    let channels = features.len() / out.len().max(1);
    for row in features.chunks_exact(out.len().max(1)) {
        for (sum, v) in out.iter_mut().zip(row) {
            *sum += f64::from(*v) * f64::from(*v) / channels as f64;
        }
    }
    let norm = out.iter().map(|v| v * v).sum::<f64>().sqrt();
    if norm > 0.0 {
        out.iter_mut().for_each(|v| *v /= norm);
    }
    norm
}

/// A loss that is known already, with its gradient by the operator's argument.
pub(super) struct Known {
    pub loss: f64,
    pub gradient: Vec<f32>,
}

impl CustomOp1 for Known {
    fn name(&self) -> &'static str {
        "feature loss"
    }
    fn cpu_fwd(&self, _: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        if layout.shape().elem_count() != self.gradient.len() {
            bail!("the feature loss was computed of other features")
        }
        Ok((CpuStorage::F32(vec![self.loss as f32]), Shape::from(())))
    }
    fn bwd(&self, features: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let gradient = Tensor::from_slice(&self.gradient, features.shape(), features.device())?;
        Ok(Some((gradient * f64::from(upstream.to_scalar::<f32>()?))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const W: Widths = Widths {
        student: 3,
        teacher: 4,
        places: 5,
    };

    fn numbers(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random::<f32>() * 2.0 - 0.7).collect()
    }

    /// Holds `gradient` against central differences of `loss` at `at`.
    fn check(gradient: &[f32], at: &[f32], loss: impl Fn(&[f32]) -> f64) {
        assert_eq!(gradient.len(), at.len());
        assert!(gradient.iter().any(|g| g.abs() > 1e-3));
        for i in 0..at.len() {
            let moved = |by: f32| {
                let mut at = at.to_vec();
                at[i] += by;
                loss(&at)
            };
            let slope = (moved(0.01) - moved(-0.01)) / 0.02;
            let found = f64::from(gradient[i]);
            assert!(
                (found - slope).abs() < 2e-3 * (1.0 + slope.abs()),
                "{i}: {found} {slope}"
            );
        }
    }

    #[test]
    fn matching_is_the_squared_error_and_its_gradients_are_its_slopes() {
        let (s, t) = (numbers(1, 2 * 3 * 5), numbers(2, 2 * 4 * 5));
        let (weight, bias) = (numbers(3, 4 * 3), numbers(4, 4));
        let of = |s: &[f32], weight: &[f32], bias: &[f32]| {
            matching(s, &t, W, Some(Projection { weight, bias }), 0.3)
        };
        let found = of(&s, &weight, &bias);
        let mut expected = 0.0f64;
        for n in 0..2 {
            for c in 0..4 {
                for p in 0..5 {
                    let own: f32 = (0..3)
                        .map(|k| weight[c * 3 + k] * s[(n * 3 + k) * 5 + p])
                        .sum();
                    let error = f64::from(own + bias[c] - t[(n * 4 + c) * 5 + p]);
                    expected += 0.5 * 0.3 * error * error;
                }
            }
        }
        assert!(
            (found.loss - expected).abs() < 1e-5,
            "{} {expected}",
            found.loss
        );
        check(&found.features, &s, |s| of(s, &weight, &bias).loss);
        check(&found.weight, &weight, |weight| of(&s, weight, &bias).loss);
        check(&found.bias, &bias, |bias| of(&s, &weight, bias).loss);
        // Of equal widths without one; nothing to learn from oneself.
        let even = Widths { student: 4, ..W };
        let other = numbers(5, 2 * 4 * 5);
        let of = |s: &[f32]| matching(s, &t, even, None, 2.0);
        check(&of(&other).features, &other, |s| of(s).loss);
        let same = of(&t);
        assert_eq!(same.loss, 0.0);
        assert!(same.features.iter().all(|g| *g == 0.0) && same.weight.is_empty());
    }

    #[test]
    fn attention_is_that_of_normalised_maps_and_its_gradient_is_its_slope() {
        let (s, t) = (numbers(6, 2 * 3 * 5), numbers(7, 2 * 4 * 5));
        let of = |s: &[f32]| attention(s, &t, W, 1.7);
        let found = of(&s);
        let maps = |all: &[f32], channels: usize| -> Vec<Vec<f64>> {
            let sample = |n: usize| {
                let at = |p: usize| -> f64 {
                    let squares =
                        (0..channels).map(|c| f64::from(all[(n * channels + c) * 5 + p]).powi(2));
                    squares.sum::<f64>() / channels as f64
                };
                let map: Vec<f64> = (0..5).map(at).collect();
                let norm = map.iter().map(|v| v * v).sum::<f64>().sqrt();
                map.into_iter().map(|v| v / norm).collect()
            };
            (0..2).map(sample).collect()
        };
        let pairs = maps(&s, 3)
            .into_iter()
            .flatten()
            .zip(maps(&t, 4).into_iter().flatten());
        let expected = pairs
            .map(|(a, b)| 0.5 * 1.7 * (a - b) * (a - b))
            .sum::<f64>();
        assert!((found.loss - expected).abs() < 1e-9);
        check(&found.features, &s, |s| of(s).loss);
        // The size of the features does not matter, nor how many channels have them.
        let larger: Vec<f32> = s.iter().map(|v| v * 3.0).collect();
        assert!((of(&larger).loss - found.loss).abs() < 1e-6);
        let doubled: Vec<f32> = t.chunks(20).flat_map(|n| [n, n].concat()).collect();
        let twice = Widths { student: 8, ..W };
        assert!(attention(&doubled, &t, twice, 1.0).loss < 1e-12);
        // Dead features are no division by zero.
        let dead = of(&[0.0; 30]);
        assert!(dead.loss.is_finite() && dead.features.iter().all(|g| *g == 0.0));
    }
}
