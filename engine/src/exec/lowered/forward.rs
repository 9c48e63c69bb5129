//! Running a lowered network.

use super::{
    Id, Kind, Limits, Lowered, Step,
    weights::{Ready, Weights},
};
use crate::exec::{
    CancelToken, ExecError,
    kernels::{
        functions,
        planes::{self, Buffer, Hands, Plane, Team, Window2d},
        rows,
    },
};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::sync::{Mutex, MutexGuard};

/// Buffers that a thread keeps from one piece of a batch to the next.
#[derive(Default)]
pub(super) struct Workspace {
    /// By value; empty where it holds nothing.
    pub values: Vec<Buffer>,
    /// Not in use.
    spare: Vec<Buffer>,
}

impl Workspace {
    /// A buffer of `len` floats that hold anything.
    pub fn take(&mut self, len: usize) -> Buffer {
        // The smallest that is large enough, else the largest, which then grows.
        let fits = |v: &Buffer| (v.capacity() < len, v.capacity().abs_diff(len));
        let best = (0..self.spare.len()).min_by_key(|i| fits(&self.spare[*i]));
        let mut buffer = best.map_or_else(Buffer::default, |i| self.spare.swap_remove(i));
        buffer.hold(len);
        buffer
    }
    pub fn give(&mut self, buffer: Buffer) {
        if buffer.capacity() > 0 {
            self.spare.push(buffer);
        }
    }
    pub fn clear(&mut self, values: usize) {
        for value in std::mem::take(&mut self.values) {
            self.give(value);
        }
        self.values.resize_with(values, Buffer::default);
    }
}

/// Workspaces not in use.
#[derive(Default)]
pub(in crate::exec) struct Spaces(Mutex<Vec<Workspace>>);

impl Spaces {
    pub(super) fn take(&self) -> Workspace {
        self.lock().pop().unwrap_or_default()
    }
    pub(super) fn give(&self, space: Workspace) {
        self.lock().push(space);
    }
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Workspace) -> R) -> R {
        let mut space = self.take();
        let result = work(&mut space);
        self.give(space);
        result
    }
    /// A panic elsewhere leaves whole workspaces behind.
    fn lock(&self) -> MutexGuard<'_, Vec<Workspace>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Fewest multiplications that are worth sharing out among threads.
const WORTH_SHARING: usize = 1 << 19;

impl Lowered {
    /// The outputs for `images` images that lie one behind another in `input`, as the model has them.
    pub(in crate::exec) fn run(
        &self,
        input: &[f32],
        images: usize,
        spaces: &Spaces,
        cancel: &CancelToken,
    ) -> Result<Vec<Tensor>, ExecError> {
        let Some(weights) = &self.weights else {
            return Err(ExecError::Input(
                "a network in training has no fixed weights".into(),
            ));
        };
        let sample = self.planes[self.input].elements();
        let threads = rayon::current_num_threads().max(1);
        // Fewer images than threads: one after another, all threads on each.
        let alone = images >= threads;
        let piece = if alone {
            self.piece().min(images.div_ceil(threads))
        } else {
            1
        };
        let work = |input: &[f32], hands: Hands<'_>| -> Result<Vec<Vec<f32>>, ExecError> {
            let n = input.len() / sample;
            spaces.with(|space| {
                self.forward(weights, input, n, space, false, hands, cancel)?;
                Ok(self
                    .outputs
                    .iter()
                    .map(|o| self.export(&space.values[o.value], o.value, n))
                    .collect())
            })
        };
        let pieces: Vec<Vec<Vec<f32>>> = if alone {
            input
                .par_chunks(piece * sample)
                .map(|input| work(input, Hands::Alone))
                .collect::<Result<_, _>>()?
        } else {
            Team::lead(threads, |team| {
                input
                    .chunks(piece * sample)
                    .map(|input| work(input, Hands::Team(team)))
                    .collect::<Result<_, _>>()
            })?
        };
        self.outputs
            .iter()
            .enumerate()
            .map(|(at, output)| {
                let plane = &self.planes[output.value];
                let mut all = Vec::with_capacity(images * plane.elements());
                for piece in &pieces {
                    all.extend_from_slice(&piece[at]);
                }
                let shape = if output.flat {
                    vec![images, plane.c]
                } else {
                    vec![images, plane.c, plane.h, plane.w]
                };
                Ok(Tensor::from_vec(all, shape, &Device::Cpu)?)
            })
            .collect()
    }

    /// A value as N×C×H×W.
    pub(super) fn export(&self, buffer: &[f32], value: Id, images: usize) -> Vec<f32> {
        let plane = &self.planes[value];
        let mut out = vec![0.0; images * plane.elements()];
        planes::to_nchw(images, (buffer, plane), &mut out);
        out
    }

    fn import(&self, input: &[f32], images: usize, buffer: &mut [f32]) {
        let plane = &self.planes[self.input];
        if self.input_last {
            let bare = Plane::new(plane.h, plane.w, plane.c);
            planes::copy(images, (input, &bare), (buffer, plane));
        } else {
            planes::from_nchw(images, input, (buffer, plane));
        }
    }

    /// Lays the input down in an empty workspace.
    pub(super) fn begin(&self, input: &[f32], images: usize, space: &mut Workspace) {
        space.clear(self.planes.len());
        let mut buffer = self.fresh(space, self.input, images);
        self.import(input, images, &mut buffer);
        space.values[self.input] = buffer;
    }

    /// Takes one step.
    pub(super) fn take(
        &self,
        weights: &Weights,
        step: &Step,
        images: usize,
        space: &mut Workspace,
        hands: Hands<'_>,
    ) {
        let mut out = self.fresh(space, step.output, images);
        let values = &space.values;
        let value = |id: Id| (values[id].as_slice(), &self.planes[id]);
        self.compute(
            weights,
            &step.kind,
            step.output,
            images,
            &value,
            &mut out,
            hands,
        );
        space.values[step.output] = out;
    }

    /// Computes all values; with `keep` none is given up on the way.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward(
        &self,
        weights: &Weights,
        input: &[f32],
        images: usize,
        space: &mut Workspace,
        keep: bool,
        hands: Hands<'_>,
        cancel: &CancelToken,
    ) -> Result<(), ExecError> {
        self.begin(input, images, space);
        for (at, step) in self.steps.iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(ExecError::Cancelled);
            }
            self.take(weights, step, images, space, hands);
            if keep {
                continue;
            }
            for value in step.kind.inputs() {
                if self.last_use[value] == at {
                    let done = std::mem::take(&mut space.values[value]);
                    space.give(done);
                }
            }
        }
        Ok(())
    }

    /// A buffer for a value, its margin zero.
    pub(super) fn fresh(&self, space: &mut Workspace, value: Id, images: usize) -> Buffer {
        let plane = &self.planes[value];
        let mut buffer = space.take(images * plane.size());
        plane.clear_margin(&mut buffer, images);
        buffer
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn compute<'v>(
        &self,
        weights: &Weights,
        kind: &Kind,
        output: Id,
        images: usize,
        values: &dyn Fn(Id) -> (&'v [f32], &'v Plane),
        out: &mut [f32],
        hands: Hands<'_>,
    ) {
        let plane = &self.planes[output];
        let of = values;
        match kind {
            Kind::Conv {
                input,
                window,
                weight,
                added,
                tail,
            }
            | Kind::Depthwise {
                input,
                window,
                weight,
                added,
                tail,
            } => {
                let (x, from) = of(*input);
                let mut sweep = window.forward(images, from, plane);
                sweep.added = added.map(|id| of(id).1.grid());
                let added = added.map(|id| of(id).0);
                let spec = &self.specs[*weight];
                let work = sweep.pixels() * spec.outputs() * spec.depth * spec.taps;
                let hands = if work >= WORTH_SHARING {
                    hands
                } else {
                    Hands::Alone
                };
                match &*weights.ready[*weight] {
                    Ready::Dense(packed) => {
                        planes::conv_by(hands, &sweep, packed, x, added, out, *tail);
                    }
                    Ready::Depthwise { weight, bias } => {
                        planes::by_rows(hands, &sweep, out, |sweep, out| {
                            let (channels, bias) = (spec.groups, Some(bias.as_slice()));
                            planes::depthwise(sweep, channels, weight, bias, x, added, out, *tail);
                        });
                    }
                }
            }
            Kind::Add { a, b, limits } => {
                planes::add(images, of(*a), Some(of(*b)), (out, plane), *limits);
            }
            Kind::Clip { input, limits } => clip(images, of(*input), (out, plane), *limits),
            Kind::Quant {
                input,
                quant,
                learned,
            } => {
                let quant = weights.quant(quant, *learned);
                planes::fake_quant(images, of(*input), (out, plane), &quant);
            }
            Kind::Mean { input } => mean(images, of(*input), (out, plane)),
            Kind::Average {
                input,
                window,
                padded,
            } => {
                let (x, from) = of(*input);
                let sweep = window.forward(images, from, plane);
                let count = |y: usize, at: usize| 1.0 / covered(window, from, *padded, y, at);
                planes::sum_windows(&sweep, plane.c, x, out, count, true);
            }
            Kind::Max { input, window } => {
                let (x, from) = of(*input);
                let sweep = window.forward(images, from, plane);
                planes::max_pool(&sweep, plane.c, x, out, |y, at, tap| {
                    inside(window, from, y, at, tap)
                });
            }
            Kind::Scale { input, factors } => {
                let (x, from) = of(*input);
                let factors = of(*factors);
                for n in 0..images {
                    let start = n * factors.1.size() + factors.1.origin();
                    let by = &factors.0[start..start + plane.c];
                    each_row(n, plane, from, out, x, |to, x| {
                        for (to, x) in to.chunks_exact_mut(plane.c).zip(x.chunks_exact(plane.c)) {
                            for ((to, x), by) in to.iter_mut().zip(x).zip(by) {
                                *to = x * by;
                            }
                        }
                    });
                }
            }
            Kind::Map { input, fun } => {
                let (x, from) = of(*input);
                for n in 0..images {
                    each_row(n, plane, from, out, x, |to, x| {
                        functions::apply_row(*fun, x, to);
                    });
                }
            }
            Kind::Concat { inputs } => {
                let mut first = 0;
                for id in inputs {
                    let (x, from) = of(*id);
                    for n in 0..images {
                        each_row(n, plane, from, out, x, |to, x| {
                            for (to, x) in to.chunks_exact_mut(plane.c).zip(x.chunks_exact(from.c))
                            {
                                to[first..first + from.c].copy_from_slice(x);
                            }
                        });
                    }
                    first += from.c;
                }
            }
            Kind::Flatten { input } => {
                let (x, from) = of(*input);
                let mut flat = vec![0.0; images * from.elements()];
                planes::to_nchw(images, (x, from), &mut flat);
                let bare = Plane::new(1, 1, plane.c);
                planes::copy(images, (&flat, &bare), (out, plane));
            }
            Kind::Norm { .. } => unreachable!("a batch's statistics are taken by `gradients`"),
            Kind::Softmax { input } => {
                let (x, from) = of(*input);
                for n in 0..images {
                    each_row(n, plane, from, out, x, |to, x| rows::softmax_to(x, to));
                }
            }
        }
    }
}

/// Calls `f(row of out, row of x)` for all rows of image `n`.
fn each_row(
    n: usize,
    plane: &Plane,
    from: &Plane,
    out: &mut [f32],
    x: &[f32],
    mut f: impl FnMut(&mut [f32], &[f32]),
) {
    for y in 0..plane.h {
        let to = n * plane.size() + plane.origin() + y * plane.row();
        let at = n * from.size() + from.origin() + y * from.row();
        f(
            &mut out[to..to + plane.w * plane.c],
            &x[at..at + from.w * from.c],
        );
    }
}

fn clip(images: usize, x: (&[f32], &Plane), out: (&mut [f32], &Plane), (low, high): Limits) {
    let (target, plane) = out;
    for n in 0..images {
        each_row(n, plane, x.1, target, x.0, |to, x| {
            for (to, x) in to.iter_mut().zip(x) {
                // What is not a number stays.
                *to = if *x < low {
                    low
                } else if *x > high {
                    high
                } else {
                    *x
                };
            }
        });
    }
}

fn mean(images: usize, x: (&[f32], &Plane), out: (&mut [f32], &Plane)) {
    let (plane, to) = (x.1, out.1);
    let share = 1.0 / (plane.h * plane.w) as f64;
    for n in 0..images {
        let one = &x.0[n * plane.size()..(n + 1) * plane.size()];
        let start = n * to.size() + to.origin();
        let sums = planes::channel_sums(1, (one, plane));
        for (to, sum) in out.0[start..start + to.c].iter_mut().zip(sums) {
            *to = (sum * share) as f32;
        }
    }
}

/// Whether a tap of the window at output pixel (y, x) lies in the image.
pub(super) fn inside(window: &Window2d, from: &Plane, y: usize, x: usize, tap: usize) -> bool {
    let (ky, kx) = (tap / window.kernel.1, tap % window.kernel.1);
    let row = (y * window.stride.0 + ky * window.dilation.0).wrapping_sub(window.before.0);
    let column = (x * window.stride.1 + kx * window.dilation.1).wrapping_sub(window.before.1);
    row < from.h && column < from.w
}

/// Elements that an average at output pixel (y, x) is over.
fn covered(window: &Window2d, from: &Plane, padded: bool, y: usize, x: usize) -> f32 {
    if padded {
        return window.taps() as f32;
    }
    let count = (0..window.taps())
        .filter(|tap| inside(window, from, y, x, *tap))
        .count();
    count.max(1) as f32
}
