//! Products of a few outputs' weights with rows of positions, on the calling thread.

use crate::exec::kernels::{Matrix, matmul};

/// Fewer outputs than this are multiplied one by one: a packed product would spend its time packing.
const FEW: usize = 4;

/// `out = weights · x`; x has rows `stride` apart, of which `n` columns count.
pub fn product(
    weights: &[f32],
    (count, depth): (usize, usize),
    x: &[f32],
    (n, stride): (usize, usize),
    out: &mut [f32],
) {
    if count >= FEW {
        let weights = Matrix::new(weights, count, depth, depth);
        return matmul(weights, Matrix::new(x, depth, n, stride), out);
    }
    out.fill(0.0);
    for (out, weights) in out.chunks_exact_mut(n).zip(weights.chunks_exact(depth)) {
        for (k, w) in weights.iter().enumerate() {
            for (out, x) in out.iter_mut().zip(&x[k * stride..][..n]) {
                *out += w * x;
            }
        }
    }
}

/// `gradient = errors · xᵀ`.
pub fn backward(
    errors: &[f32],
    (count, n): (usize, usize),
    x: &[f32],
    (depth, stride): (usize, usize),
    gradient: &mut [f32],
) {
    if count >= FEW {
        let x = Matrix::new(x, depth, n, stride).transposed();
        return matmul(Matrix::new(errors, count, n, n), x, gradient);
    }
    for (gradient, errors) in gradient.chunks_exact_mut(depth).zip(errors.chunks_exact(n)) {
        for (k, g) in gradient.iter_mut().enumerate() {
            *g = dot(errors, &x[k * stride..][..n]);
        }
    }
}

/// Summed in lanes, so that it vectorises.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
