//! Products of a few outputs' weights with rows of positions, on the calling thread.

use crate::exec::kernels::{Matrix, add_scaled, dot, matmul};
use rayon::prelude::*;

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
            add_scaled(out, &x[k * stride..][..n], *w);
        }
    }
}

/// Rows of positions, and where many outputs read them also columns: a product with rows of many positions is packed element by element
/// otherwise, each time.
pub struct Positions<'a> {
    x: &'a [f32],
    depth: usize,
    rows: usize,
    turned: Vec<f32>,
}

impl<'a> Positions<'a> {
    /// `x` has `depth` rows of `rows` positions, which `outputs` outputs read.
    pub fn new(x: &'a [f32], (depth, rows): (usize, usize), outputs: usize) -> Self {
        const TILE: usize = 32;
        let mut turned = Vec::new();
        if outputs >= FEW && depth > 0 {
            turned = vec![0.0; depth * rows];
            let tiles = turned.par_chunks_mut(TILE * depth).enumerate();
            tiles.for_each(|(tile, out)| {
                for first in (0..depth).step_by(TILE) {
                    for (at, out) in out.chunks_exact_mut(depth).enumerate() {
                        let span = first..depth.min(first + TILE);
                        for (k, out) in span.clone().zip(&mut out[span]) {
                            *out = x[k * rows + tile * TILE + at];
                        }
                    }
                }
            });
        }
        Self {
            x,
            depth,
            rows,
            turned,
        }
    }

    /// `out = weights · x` over `n` positions from `at` on.
    pub fn product(&self, weights: &[f32], at: usize, n: usize, out: &mut [f32]) {
        let shape = (weights.len() / self.depth.max(1), self.depth);
        product(weights, shape, &self.x[at..], (n, self.rows), out);
    }

    /// `gradient = errors · xᵀ` over `n` positions from `at` on.
    pub fn backward(&self, errors: &[f32], at: usize, n: usize, gradient: &mut [f32]) {
        let (depth, count) = (self.depth, errors.len() / n.max(1));
        if count >= FEW && !self.turned.is_empty() {
            let x = Matrix::new(&self.turned[at * depth..], n, depth, depth);
            return matmul(Matrix::new(errors, count, n, n), x, gradient);
        }
        let outputs = gradient.chunks_exact_mut(depth).zip(errors.chunks_exact(n));
        for (gradient, errors) in outputs {
            for (k, g) in gradient.iter_mut().enumerate() {
                *g = dot(errors, &self.x[k * self.rows + at..][..n]);
            }
        }
    }
}
