//! GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022): a layer's weights are
//! quantised one input after the other, and what each leaves wrong is made good, as far as the inputs go together, by those that follow.
//! Written as feedback of the errors through a triangular factor of the Hessian, which gives the same codes (Chee et al., "QuIP", 2023,
//! theorem 6) and needs no inverse. Scales stay as they are; inputs of most power go first.

use super::{
    CompressError, OnLayers,
    layerwise::{Choice, Method, Problem, Seen},
};
use crate::exec::{
    CancelToken, ExecError,
    kernels::{Matrix, dot, matmul},
};
use rayon::prelude::*;

/// How errors are made good.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GptqSettings {
    /// Samples of the calibration split.
    pub samples: usize,
    /// Output positions of a layer that its inputs' products are summed over, drawn evenly from the samples. Those of every
    /// eighth sample are kept aside to judge the codes on.
    pub positions: usize,
    /// Added to the Hessian's diagonal, as a share of its mean.
    pub damping: f32,
}

impl Default for GptqSettings {
    fn default() -> Self {
        Self {
            samples: 128,
            positions: 4096,
            damping: 0.01,
        }
    }
}

impl GptqSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// No samples or positions; a damping that is not a positive number.
    pub fn check(&self) -> Result<(), CompressError> {
        super::at_least_one(&[("samples", self.samples), ("positions", self.positions)])?;
        super::above_zero(&[("damping", self.damping)])
    }
}

/// Chooses the codes of quantised weights, layer by layer; see the file's first lines.
pub type Gptq = OnLayers<GptqSettings>;

impl Method for GptqSettings {
    fn name(&self) -> (&'static str, &'static str) {
        ("gptq", "GPTQ")
    }
    fn sound(&self) -> Result<(), CompressError> {
        self.check()
    }
    fn samples(&self) -> usize {
        self.samples
    }
    fn positions(&self) -> usize {
        self.positions
    }
    fn choose(
        &self,
        problem: &Problem,
        seen: &Seen<'_>,
        cancel: &CancelToken,
    ) -> Result<Result<Choice, String>, CompressError> {
        let groups: Vec<Option<Vec<i32>>> = (0..problem.groups)
            .into_par_iter()
            .map(|group| {
                let feedback = Feedback::of(problem, seen, group, self.damping, cancel)?;
                feedback
                    .map(|f| f.codes(problem, group, cancel))
                    .transpose()
            })
            .collect::<Result<_, ExecError>>()?;
        let mut codes = Vec::with_capacity(problem.weights.len());
        for (group, chosen) in groups.into_iter().enumerate() {
            let first = group * problem.outputs * problem.depth;
            match chosen {
                Some(chosen) => codes.extend(chosen),
                // Nothing comes in: any code will do.
                None => codes.extend(
                    (first..first + problem.outputs * problem.depth)
                        .map(|i| problem.nearest(i, problem.scale(i))),
                ),
            }
        }
        Ok(Ok(Choice::Codes {
            codes,
            bound: false,
        }))
    }
}

/// How the errors of the inputs done so far move the next one.
struct Feedback {
    depth: usize,
    /// Inputs in the order of the factor; they are done from the last to the first.
    order: Vec<usize>,
    /// Row `a` holds, for each `b` beyond `a`, the share of b's error that goes to a.
    shares: Vec<f32>,
}

/// Outputs done together by one thread.
const TOGETHER: usize = 8;
/// Rows of the Hessian computed together.
const STRIP: usize = 32;

impl Feedback {
    /// From the inputs of a group; `None` where all are zero.
    fn of(
        problem: &Problem,
        seen: &Seen<'_>,
        group: usize,
        damping: f32,
        cancel: &CancelToken,
    ) -> Result<Option<Self>, ExecError> {
        let (depth, rows, fitted) = (problem.depth, seen.rows, seen.fitted());
        let x = seen.of_group(group, depth);
        let mut hessian = vec![0.0_f32; depth * depth];
        hessian
            .par_chunks_mut(STRIP * depth)
            .enumerate()
            .for_each(|(strip, out)| {
                let count = out.len() / depth;
                let mine = Matrix::new(&x[strip * STRIP * rows..], count, fitted, rows);
                matmul(mine, Matrix::new(x, depth, fitted, rows).transposed(), out);
            });
        let diagonal: Vec<f32> = (0..depth).map(|k| hessian[k * depth + k]).collect();
        let mean = diagonal.iter().map(|d| f64::from(*d)).sum::<f64>() / depth as f64;
        if !(mean > 0.0 && mean.is_finite()) {
            return Ok(None);
        }
        let mut order: Vec<usize> = (0..depth).collect();
        order.sort_by(|a, b| diagonal[*a].total_cmp(&diagonal[*b]).then(b.cmp(a)));
        let damping = mean * f64::from(damping);
        let factor = cholesky(
            depth,
            |a, b| {
                let (i, j) = (order[a], order[b]);
                f64::from(hessian[i * depth + j]) + if a == b { damping } else { 0.0 }
            },
            cancel,
        )?;
        let mut shares = hessian;
        for a in 0..depth {
            let pivot = factor[a * depth + a];
            for b in a + 1..depth {
                shares[a * depth + b] = (factor[b * depth + a] / pivot) as f32;
            }
        }
        Ok(Some(Self {
            depth,
            order,
            shares,
        }))
    }

    /// Codes of a group's outputs, counted from the zero points.
    fn codes(
        &self,
        problem: &Problem,
        group: usize,
        cancel: &CancelToken,
    ) -> Result<Vec<i32>, ExecError> {
        let depth = self.depth;
        let first = group * problem.outputs * depth;
        let mut codes = vec![0; problem.outputs * depth];
        codes
            .par_chunks_mut(TOGETHER * depth)
            .enumerate()
            .try_for_each(|(piece, codes)| {
                if cancel.is_cancelled() {
                    return Err(ExecError::Cancelled);
                }
                let first = first + piece * TOGETHER * depth;
                let mut errors = vec![0.0_f32; codes.len()];
                for a in (0..depth).rev() {
                    let shares = &self.shares[a * depth + a + 1..(a + 1) * depth];
                    let k = self.order[a];
                    for (o, (codes, errors)) in codes
                        .chunks_exact_mut(depth)
                        .zip(errors.chunks_exact_mut(depth))
                        .enumerate()
                    {
                        let i = first + o * depth + k;
                        if problem.fixed[i] {
                            continue;
                        }
                        let (weight, scale) = (problem.weights[i], problem.scale(i));
                        let moved = weight + dot(shares, &errors[a + 1..]);
                        codes[k] = problem.held(i, moved / scale);
                        errors[a] = weight - codes[k] as f32 * scale;
                    }
                }
                Ok(())
            })?;
        Ok(codes)
    }
}

/// The lower triangular factor L of a positive definite matrix LLᵀ. A pivot that rounding makes too small is held at 10⁻¹⁰ of its
/// diagonal element: what hangs on it alone then moves nothing.
fn cholesky(
    n: usize,
    matrix: impl Fn(usize, usize) -> f64,
    cancel: &CancelToken,
) -> Result<Vec<f64>, ExecError> {
    let mut factor = vec![0.0_f64; n * n];
    for i in 0..n {
        if i % 64 == 0 && cancel.is_cancelled() {
            return Err(ExecError::Cancelled);
        }
        let (above, rest) = factor.split_at_mut(i * n);
        let row = &mut rest[..n];
        for j in 0..i {
            let other = &above[j * n..][..=j];
            row[j] = (matrix(i, j) - product(&row[..j], &other[..j])) / other[j];
        }
        let diagonal = matrix(i, i);
        let left = diagonal - product(&row[..i], &row[..i]);
        row[i] = left.max(diagonal * 1e-10).sqrt();
    }
    Ok(factor)
}

/// Summed in lanes, so that it vectorises.
fn product(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0_f64; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    const NONE: (f32, f32) = (f32::NEG_INFINITY, f32::INFINITY);

    /// Weights, and inputs that go together.
    fn case(depth: usize, outputs: usize, rows: usize) -> (Problem, Vec<f32>) {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let mut number = || rng.random::<f32>() * 2.0 - 1.0;
        let weights: Vec<f32> = (0..depth * outputs).map(|_| number()).collect();
        let common: Vec<f32> = (0..rows).map(|_| number()).collect();
        let x = (0..depth * rows)
            .map(|i| common[i % rows] + 0.4 * number())
            .collect();
        (
            Problem::plain(&weights, 0.2, (outputs, depth), 0.1, NONE),
            x,
        )
    }

    /// The algorithm as its paper states it: inverse Hessian, its upper factor, column after column.
    fn by_the_paper(problem: &Problem, seen: &Seen<'_>, damping: f64) -> Vec<i32> {
        let (n, rows, fitted) = (problem.depth, seen.rows, seen.fitted());
        let at = |k: usize, p: usize| f64::from(seen.patches[k * rows + p]);
        let mut h: Vec<Vec<f64>> = (0..n)
            .map(|i| {
                (0..n)
                    .map(|j| (0..fitted).map(|p| at(i, p) * at(j, p)).sum())
                    .collect()
            })
            .collect();
        let mean = (0..n).map(|i| h[i][i]).sum::<f64>() / n as f64;
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| h[*b][*b].total_cmp(&h[*a][*a]));
        for (i, row) in h.iter_mut().enumerate() {
            row[i] += damping * mean;
        }
        // Gauss-Jordan, in the order that columns are done in.
        let mut left: Vec<Vec<f64>> = order
            .iter()
            .map(|i| order.iter().map(|j| h[*i][*j]).collect())
            .collect();
        let mut inverse: Vec<Vec<f64>> = (0..n)
            .map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect())
            .collect();
        for i in 0..n {
            let pivot = left[i][i];
            for j in 0..n {
                left[i][j] /= pivot;
                inverse[i][j] /= pivot;
            }
            for r in (0..n).filter(|r| *r != i) {
                let factor = left[r][i];
                for j in 0..n {
                    left[r][j] -= factor * left[i][j];
                    inverse[r][j] -= factor * inverse[i][j];
                }
            }
        }
        let lower = cholesky(n, |i, j| inverse[i][j], &CancelToken::default()).unwrap();
        let mut codes = vec![0; problem.weights.len()];
        for o in 0..problem.outputs {
            let mut w: Vec<f64> = order
                .iter()
                .map(|k| f64::from(problem.weights[o * n + k]))
                .collect();
            for i in 0..n {
                let index = o * n + order[i];
                let scale = problem.scale(index);
                codes[index] = problem.held(index, w[i] as f32 / scale);
                let error = (w[i] - f64::from(codes[index] as f32 * scale)) / lower[i * n + i];
                for j in i + 1..n {
                    w[j] -= error * lower[j * n + i];
                }
            }
        }
        codes
    }

    #[test]
    fn gives_the_codes_of_the_paper_and_less_error_than_the_nearest() {
        let (depth, outputs, rows) = (37, 11, 640);
        let (mut problem, x) = case(depth, outputs, rows);
        let target = problem.target(&x, rows);
        let seen = Seen {
            patches: &x,
            target: &target,
            rows,
            places: None,
        };
        let settings = GptqSettings::default();
        let chosen = |problem: &Problem| -> Vec<i32> {
            match settings.choose(problem, &seen, &CancelToken::default()) {
                Ok(Ok(Choice::Codes {
                    codes,
                    bound: false,
                })) => codes,
                _ => panic!("codes are chosen"),
            }
        };
        let codes = chosen(&problem);
        let wanted = by_the_paper(&problem, &seen, 0.01);
        let other = codes.iter().zip(&wanted).filter(|(a, b)| a != b).count();
        // Rounding of f32 sums may turn a tie.
        assert!(other * 100 <= codes.len(), "{other} of {}", codes.len());
        let error = |codes: &[i32]| {
            let weights = problem.values(codes, &problem.scales);
            problem.error(&weights, &seen, seen.fitted()..rows)
        };
        let nearest: Vec<i32> = (0..codes.len()).map(|i| problem.nearest(i, 0.2)).collect();
        let (better, worse) = (error(&codes), error(&nearest));
        assert!(better < 0.6 * worse, "{better} against {worse}");
        // Pruned weights stay so.
        for i in (0..problem.weights.len()).step_by(3) {
            problem.fixed[i] = true;
            problem.weights[i] = 0.0;
        }
        let codes = chosen(&problem);
        assert!(codes.iter().step_by(3).all(|c| *c == 0) && codes.iter().any(|c| *c != 0));
    }

    #[test]
    fn inputs_that_are_zero_or_equal_do_no_harm() {
        let (depth, outputs, rows) = (12, 3, 64);
        let (problem, mut x) = case(depth, outputs, rows);
        x[..2 * rows].fill(0.0);
        let copy = x[3 * rows..4 * rows].to_vec();
        x[5 * rows..6 * rows].copy_from_slice(&copy);
        for x in [x, vec![0.0; depth * rows]] {
            let target = problem.target(&x, rows);
            let seen = Seen {
                patches: &x,
                target: &target,
                rows,
                places: None,
            };
            let chosen = GptqSettings::default().choose(&problem, &seen, &CancelToken::default());
            let Ok(Ok(Choice::Codes { codes, .. })) = chosen else {
                panic!("codes are chosen");
            };
            for (k, code) in codes.iter().enumerate().take(2) {
                assert_eq!(*code, problem.nearest(k, 0.2));
            }
            assert!(codes.iter().all(|c| (-8..=7).contains(c)));
        }
    }
}
