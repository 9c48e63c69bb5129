//! Operators over the rows of a matrix, to which reductions, softmax and the normalisations come down: each row is one
//! task's work, so the order of a sum never depends on the number of threads.

use super::{
    broadcast::{CHUNK, sum},
    elementwise::slice,
    pool::on_pool,
    value::{tensor_f32, with_f32},
};
use crate::graph::ReduceOp;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Runs `f(row index, output row)` over rows of `width`, several rows a task.
fn each_row(
    rows: usize,
    width: usize,
    cost: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut v = vec![0f32; rows * width];
    if v.is_empty() {
        return v;
    }
    let many = (CHUNK / cost.max(1)).max(1);
    if rows <= many {
        for (r, o) in v.chunks_mut(width).enumerate() {
            f(r, o);
        }
    } else {
        on_pool(|| {
            v.par_chunks_mut(width * many)
                .enumerate()
                .for_each(|(c, o)| {
                    for (r, o) in o.chunks_mut(width).enumerate() {
                        f(c * many + r, o);
                    }
                });
        });
    }
    v
}

fn rows_of(l: &Layout) -> Result<(usize, usize)> {
    match l.dims() {
        [r, n] => Ok((*r, *n)),
        d => candle_core::bail!("expected a matrix, got shape {d:?}"),
    }
}

/// One row's reduction, in f64.
fn reduce_row(op: ReduceOp, row: &[f32]) -> f32 {
    let fold =
        |f: fn(f64, f64) -> f64, start: f64| row.iter().fold(start, |a, &x| f(a, f64::from(x)));
    // NaN wins over everything, as in numpy.
    let extreme = |max: bool| {
        let mut it = row.iter().copied();
        let start = if max {
            f32::NEG_INFINITY
        } else {
            f32::INFINITY
        };
        it.try_fold(start, |a, x| {
            if x.is_nan() {
                None
            } else if max {
                Some(if x > a { x } else { a })
            } else {
                Some(if x < a { x } else { a })
            }
        })
        .unwrap_or(f32::NAN)
    };
    match op {
        ReduceOp::Sum => sum(row) as f32,
        ReduceOp::Mean => (sum(row) / row.len() as f64) as f32,
        ReduceOp::Max => extreme(true),
        ReduceOp::Min => extreme(false),
        ReduceOp::Prod => fold(|a, x| a * x, 1.0) as f32,
        ReduceOp::L1 => fold(|a, x| a + x.abs(), 0.0) as f32,
        ReduceOp::L2 => fold(|a, x| a + x * x, 0.0).sqrt() as f32,
        ReduceOp::SumSquare => fold(|a, x| a + x * x, 0.0) as f32,
        ReduceOp::LogSum => sum(row).ln() as f32,
        ReduceOp::LogSumExp => {
            let m = f64::from(extreme(true));
            if m.is_infinite() || m.is_nan() {
                return m as f32;
            }
            let s: f64 = row.iter().map(|&x| (f64::from(x) - m).exp()).sum();
            (m + s.ln()) as f32
        }
    }
}

/// The gradient of one row's reduction `y`, incoming gradient `g`.
fn reduce_row_slope(op: ReduceOp, row: &[f32], y: f32, g: f32, out: &mut [f32]) {
    let n = row.len() as f32;
    match op {
        ReduceOp::Sum => out.fill(g),
        ReduceOp::Mean => out.fill(g / n),
        ReduceOp::Max | ReduceOp::Min => {
            // Equal extremes share the gradient.
            let ties = row.iter().filter(|&&x| x == y).count().max(1) as f32;
            for (o, &x) in out.iter_mut().zip(row) {
                *o = if x == y { g / ties } else { 0.0 };
            }
        }
        ReduceOp::Prod => {
            let zeros = row.iter().filter(|&&x| x == 0.0).count();
            let rest: f64 = row
                .iter()
                .filter(|&&x| x != 0.0)
                .map(|&x| f64::from(x))
                .product();
            for (o, &x) in out.iter_mut().zip(row) {
                *o = match (zeros, x == 0.0) {
                    (0, _) => g * (rest / f64::from(x)) as f32,
                    (1, true) => g * rest as f32,
                    _ => 0.0,
                };
            }
        }
        ReduceOp::LogSum => out.fill((f64::from(g) / sum(row)) as f32),
        _ => {
            for (o, &x) in out.iter_mut().zip(row) {
                *o = g * match op {
                    ReduceOp::L1 if x == 0.0 => 0.0,
                    ReduceOp::L1 => x.signum(),
                    ReduceOp::L2 if y == 0.0 => 0.0,
                    ReduceOp::L2 => x / y,
                    ReduceOp::SumSquare => 2.0 * x,
                    _ => (x - y).exp(),
                };
            }
        }
    }
}

struct Reduce(ReduceOp);

impl CustomOp1 for Reduce {
    fn name(&self) -> &'static str {
        "reduce-rows"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, n) = rows_of(l)?;
        let x = slice(s, l)?;
        let y = each_row(rows, 1, n, |r, o| {
            o[0] = reduce_row(self.0, &x[r * n..(r + 1) * n]);
        });
        Ok((CpuStorage::F32(y), rows.into()))
    }
    fn bwd(&self, x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (rows, n) = rows_of(x.layout())?;
        let v = with_f32(x, |x| {
            with_f32(y, |y| {
                with_f32(g, |g| {
                    each_row(rows, n, n, |r, o| {
                        reduce_row_slope(self.0, &x[r * n..(r + 1) * n], y[r], g[r], o);
                    })
                })
            })
        })???;
        Ok(Some(tensor_f32(v, x.dims())?))
    }
}

/// Reduces each row of a matrix: rows×n → rows.
pub(super) fn reduce_rows(x: &Tensor, op: ReduceOp) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Reduce(op))
}

struct Normalise {
    epsilon: f64,
}

/// Mean and 1/√(variance + ε) of a row.
pub(super) fn moments(row: &[f32], epsilon: f64) -> (f64, f64) {
    let n = row.len() as f64;
    let mean = sum(row) / n;
    let variance = row
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>()
        / n;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

impl CustomOp1 for Normalise {
    fn name(&self) -> &'static str {
        "normalise-rows"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, n) = rows_of(l)?;
        let x = slice(s, l)?;
        let y = each_row(rows, n, 2 * n, |r, o| {
            let x = &x[r * n..(r + 1) * n];
            let (mean, inverse) = moments(x, self.epsilon);
            for (o, &x) in o.iter_mut().zip(x) {
                *o = ((f64::from(x) - mean) * inverse) as f32;
            }
        });
        Ok((CpuStorage::F32(y), l.shape().clone()))
    }
    fn bwd(&self, x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (rows, n) = rows_of(x.layout())?;
        let v = with_f32(x, |x| {
            with_f32(y, |y| {
                with_f32(g, |g| {
                    each_row(rows, n, 4 * n, |r, o| {
                        let at = r * n..(r + 1) * n;
                        let (x, y, g) = (&x[at.clone()], &y[at.clone()], &g[at]);
                        let (_, inverse) = moments(x, self.epsilon);
                        let mean_g = sum(g) / n as f64;
                        let mean_gy = y
                            .iter()
                            .zip(g)
                            .map(|(&y, &g)| f64::from(y) * f64::from(g))
                            .sum::<f64>()
                            / n as f64;
                        for ((o, &y), &g) in o.iter_mut().zip(y).zip(g) {
                            *o =
                                (inverse * (f64::from(g) - mean_g - f64::from(y) * mean_gy)) as f32;
                        }
                    })
                })
            })
        })???;
        Ok(Some(tensor_f32(v, x.dims())?))
    }
}

/// Each row of a matrix shifted and scaled to mean 0 and variance 1.
pub(super) fn normalise_rows(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Normalise { epsilon })
}
