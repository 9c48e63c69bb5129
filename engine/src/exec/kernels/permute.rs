//! Exchange of axes into a tensor of its own: runs where the last axis stays last, else square tiles that fit the first cache.

use super::host::{CHUNK, elements, on_pool, output};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Side of a tile.
const TILE: usize = 16;

/// Output axis i is input axis `perm[i]`.
struct Permute {
    perm: Vec<usize>,
}

impl Permute {
    const NAME: &'static str = "permute";
}

/// An axis of the output: its extent, and how far one step along it is in the input.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    step: usize,
}

/// The output's axes with neighbours merged where the input has them together too; never none.
fn merged(dims: &[usize], perm: &[usize]) -> Vec<Axis> {
    let mut steps = vec![1; dims.len()];
    for i in (0..dims.len().saturating_sub(1)).rev() {
        steps[i] = steps[i + 1] * dims[i + 1];
    }
    let mut axes: Vec<Axis> = Vec::new();
    for &p in perm {
        let (extent, step) = (dims[p], steps[p]);
        if extent == 1 {
            continue;
        }
        match axes.last_mut() {
            Some(last) if last.step == extent * step => {
                last.extent *= extent;
                last.step = step;
            }
            _ => axes.push(Axis { extent, step }),
        }
    }
    if axes.is_empty() {
        axes.push(Axis { extent: 1, step: 1 });
    }
    axes
}

/// Where index `index` of the axes begins in the input.
fn offset(axes: &[Axis], mut index: usize) -> usize {
    let mut at = 0;
    for axis in axes.iter().rev() {
        at += index % axis.extent * axis.step;
        index /= axis.extent;
    }
    at
}

fn permuted(x: &[f32], dims: &[usize], perm: &[usize]) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    if x.is_empty() {
        return out;
    }
    let axes = merged(dims, perm);
    let (outer, last) = axes.split_at(axes.len() - 1);
    let last = last[0];
    if last.step == 1 {
        // Runs of the last axis.
        let many = (CHUNK / last.extent).max(1);
        let task = |task: usize, out: &mut [f32]| {
            for (i, run) in out.chunks_mut(last.extent).enumerate() {
                let from = offset(outer, task * many + i);
                run.copy_from_slice(&x[from..from + last.extent]);
            }
        };
        on_pool(|| {
            out.par_chunks_mut(many * last.extent)
                .enumerate()
                .for_each(|(i, out)| task(i, out));
        });
        return out;
    }
    // The axis along which the input lies in one piece, and the output's last axis: tiles of both. What lies between them in the
    // output is walked as runs of whole planes.
    let Some(near) = outer.iter().position(|a| a.step == 1) else {
        // Only an extent of 1 can hide it, and those are gone.
        for (i, o) in out.iter_mut().enumerate() {
            *o = x[offset(&axes, i)];
        }
        return out;
    };
    let row = outer[near].extent;
    let between = &outer[near + 1..];
    let inner: usize = between.iter().map(|a| a.extent).product::<usize>() * last.extent;
    let before = &outer[..near];
    on_pool(|| {
        out.par_chunks_mut(row * inner)
            .enumerate()
            .for_each(|(block, out)| {
                let base = offset(before, block);
                for (middle, first) in (0..inner).step_by(last.extent).enumerate() {
                    let base = base + offset(between, middle);
                    for y in (0..row).step_by(TILE) {
                        for z in (0..last.extent).step_by(TILE) {
                            for y in y..row.min(y + TILE) {
                                let end = last.extent.min(z + TILE);
                                let to = &mut out[y * inner + first + z..y * inner + first + end];
                                for (i, to) in to.iter_mut().enumerate() {
                                    *to = x[base + y + (z + i) * last.step];
                                }
                            }
                        }
                    }
                }
            });
    });
    out
}

impl CustomOp1 for Permute {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = elements(s, l, Self::NAME)?;
        let dims = l.dims();
        let shape: Vec<usize> = self.perm.iter().map(|p| dims[*p]).collect();
        output(permuted(&x, dims, &self.perm), shape)
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let mut back = vec![0; self.perm.len()];
        for (i, p) in self.perm.iter().enumerate() {
            back[*p] = i;
        }
        Ok(Some(permute(gradient, &back)?))
    }
}

/// The axes of x in the order `perm`, laid out anew in row-major order; differentiable.
///
/// # Errors
/// A `perm` that is no permutation of x's axes.
pub fn permute(x: &Tensor, perm: &[usize]) -> Result<Tensor> {
    let mut seen = vec![false; x.rank()];
    for p in perm {
        match seen.get_mut(*p) {
            Some(seen) if !*seen => *seen = true,
            _ => bail!("permute: {perm:?} is no permutation of {} axes", x.rank()),
        }
    }
    if perm.len() != x.rank() {
        bail!("permute: {perm:?} is no permutation of {} axes", x.rank())
    }
    if perm.iter().enumerate().all(|(i, p)| i == *p) {
        return x.contiguous();
    }
    x.apply_op1(Permute {
        perm: perm.to_vec(),
    })
}
