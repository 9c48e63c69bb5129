//! One layer as a matrix product: rows are the outputs of a group, columns the patches of the input at sampled output positions.

use super::{Seen, product, residual::sum_behind};
use crate::{
    compress::{
        CompressError, Model, Precision, QuantParameters,
        weights::CodeRange,
        wiring::{Wiring, float_weight},
    },
    exec::{
        self,
        kernels::{Matrix, matmul},
    },
    graph::{Graph, Layer, Op, Padding, UnaryOp, ValueId, Window},
};
use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::ops::Range;

/// Floats that the patches of a layer may take.
const MOST_FLOATS: usize = 1 << 25;

/// Which part of the input an output is computed from.
enum Shape {
    /// N×C×H×W, or N×C×L as one row.
    Plane {
        window: Window,
        kernel: (usize, usize),
    },
    /// Rows of the last axis.
    Rows,
}

/// A layer that something is to be chosen for. Weights lie group by group, output by output, in the order of a patch.
pub(in crate::compress) struct Problem {
    pub node: usize,
    shape: Shape,
    pub groups: usize,
    /// Outputs of a group.
    pub outputs: usize,
    /// Weights of an output.
    pub depth: usize,
    pub weights: Vec<f32>,
    /// Masked weights stay zero.
    pub fixed: Vec<bool>,
    pub scales: Vec<f32>,
    /// The scale of each weight.
    pub scale_of: Vec<usize>,
    /// Lowest and highest code of each weight, counted from its zero point.
    pub ranges: Vec<CodeRange>,
    /// Of all groups' outputs.
    pub bias: Vec<f32>,
    /// Bounds of the activation function that follows.
    pub limits: (f32, f32),
    /// The sum that the output is added into (see residual.rs).
    pub sum: Option<ValueId>,
    /// A factor on the product.
    alpha: f32,
    /// Weights lie input by output in the model.
    turned: bool,
}

impl Problem {
    /// The problem of a quantised layer, or why its rounding cannot be chosen.
    pub fn of(
        (model, wiring): (&Model, &Wiring),
        method: &str,
        (layer, slot): (&Layer, usize),
        precision: Precision,
        quant: &QuantParameters,
    ) -> Result<Self, String> {
        let graph = &model.graph;
        let node = layer.node.0 as usize;
        let op = &graph.nodes[node].op;
        if slot != 1 {
            return Err("its weight is the left factor of the product".to_owned());
        }
        let Some(range) = CodeRange::of(precision) else {
            return Err(format!(
                "its weight is kept in {}, whose codes are not chosen",
                quant.element
            ));
        };
        let stored = float_weight(graph, layer)?;
        // Chosen once before: from the weights as they were.
        let name = &graph.value(layer.weight).name;
        let stored = model
            .originals
            .get(name)
            .map_or(stored, |o| o.weights.clone());
        let dims = &layer.weight_shape;
        let (shape, groups, alpha, beta, turned) = match op {
            Op::Conv { window, group } => {
                let kernel = match dims[2..] {
                    [w] => (1, w),
                    [h, w] => (h, w),
                    _ => return Err("it is a convolution of more than two axes".to_owned()),
                };
                if *group == 0 || !dims[0].is_multiple_of(*group) {
                    return Err("its groups do not divide its outputs".to_owned());
                }
                let window = window.clone();
                (Shape::Plane { window, kernel }, *group, 1.0, 1.0, false)
            }
            Op::Gemm {
                alpha,
                beta,
                trans_a: false,
                trans_b,
            } => (Shape::Rows, 1, *alpha, *beta, !*trans_b),
            Op::MatMul if dims.len() == 2 => (Shape::Rows, 1, 1.0, 1.0, true),
            _ => return Err(format!("{method} does not know this form of {}", layer.op)),
        };
        let all = if turned { dims[1] } else { dims[0] };
        let (outputs, depth) = (all / groups, stored.len() / all.max(1));
        if outputs * groups * depth != stored.len() || stored.is_empty() {
            return Err("its weight has no elements".to_owned());
        }
        let bias = bias(graph, node, all, beta)?;
        let mut scale_of = vec![0; stored.len()];
        quant
            .layout()
            .each(dims, |element, scale| scale_of[element] = scale);
        let order: Vec<usize> = (0..stored.len())
            .map(|i| match turned {
                true => i % depth * all + i / depth,
                false => i,
            })
            .collect();
        let zero = |e: usize| quant.zero_point[scale_of[e]];
        Ok(Self {
            node,
            shape,
            groups,
            outputs,
            depth,
            weights: order.iter().map(|e| stored[*e]).collect(),
            fixed: match model.masks.get(name) {
                Some(mask) if mask.len() == stored.len() => {
                    order.iter().map(|e| !mask[*e]).collect()
                }
                _ => vec![false; stored.len()],
            },
            scales: quant.scale.clone(),
            scale_of: order.iter().map(|e| scale_of[*e]).collect(),
            ranges: order.iter().map(|e| range.counted_from(zero(*e))).collect(),
            bias,
            limits: activation(graph, wiring, layer.output),
            // Of a weight that was chosen before the sum has those codes, not the nearest.
            sum: match model.originals.contains_key(name) {
                true => None,
                false => sum_behind(graph, wiring, node, layer.output),
            },
            alpha,
            turned,
        })
    }

    /// A product with one scale for all weights.
    #[cfg(test)]
    pub fn plain(
        weights: &[f32],
        scale: f32,
        (outputs, depth): (usize, usize),
        bias: f32,
        limits: (f32, f32),
    ) -> Self {
        Self {
            node: 0,
            shape: Shape::Rows,
            groups: 1,
            outputs,
            depth,
            weights: weights.to_vec(),
            fixed: vec![false; weights.len()],
            scales: vec![scale],
            scale_of: vec![0; weights.len()],
            ranges: vec![CodeRange { lo: -8, hi: 7 }; weights.len()],
            bias: vec![bias; outputs],
            limits,
            sum: None,
            alpha: 1.0,
            turned: false,
        }
    }

    /// Floats of all groups' patches at one position.
    pub fn patch(&self) -> usize {
        self.groups * self.depth
    }

    /// Draws output positions evenly from all samples, for inputs of the shape `dims`.
    pub fn places(
        &self,
        dims: &[usize],
        samples: usize,
        positions: usize,
        seed: u64,
    ) -> Result<Places, CompressError> {
        let each = match &self.shape {
            Shape::Plane { .. } => {
                let plane = self.plane(dims)?;
                plane.out.0 * plane.out.1
            }
            Shape::Rows => match dims {
                [_, between @ .., depth] if *depth == self.depth => between.iter().product(),
                _ => {
                    return Err(CompressError::Invalid(format!(
                        "an input of shape {dims:?} to a product over {} elements",
                        self.depth
                    )));
                }
            },
        };
        let wide = self.patch().max(self.groups * self.outputs).max(1);
        let most = (MOST_FLOATS / wide).max(256);
        let rows = positions.min(most).min(each.saturating_mul(samples));
        let count = |sample: usize| rows * (sample + 1) / samples - rows * sample / samples;
        // Of the samples that have any, every eighth judges; of fewer than eight samples, an eighth of the positions.
        let drawing = samples.min(rows);
        let mut drawn_from = 0;
        let judging: Vec<bool> = (0..samples)
            .map(|sample| {
                let any = count(sample) > 0;
                drawn_from += usize::from(any);
                any && drawing >= 8 && drawn_from.is_multiple_of(8)
            })
            .collect();
        let aside = match drawing {
            0..8 => rows / 8,
            _ => (0..samples).filter(|s| judging[*s]).map(count).sum(),
        };
        let fitted = rows - aside;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut order: Vec<u32> = (0..rows as u32).collect();
        let mixed = if drawing < 8 { rows } else { fitted };
        rand::seq::SliceRandom::shuffle(&mut order[..mixed], &mut rng);
        let (mut order, mut last) = (order[..mixed].iter(), order[mixed..].iter());
        let mut of_sample = Vec::with_capacity(samples);
        for (sample, judges) in judging.into_iter().enumerate() {
            let mut drawn =
                rand::seq::index::sample(&mut rng, each, count(sample).min(each)).into_vec();
            drawn.sort_unstable();
            let order = match judges {
                true => &mut last,
                false => &mut order,
            };
            let places = drawn.into_iter().zip(order).map(|(p, r)| (p, *r as usize));
            of_sample.push(places.collect());
        }
        Ok(Places {
            of_sample,
            rows,
            fitted,
            each,
        })
    }

    fn plane(&self, dims: &[usize]) -> Result<Plane, CompressError> {
        let refuse = || {
            CompressError::Invalid(format!(
                "an input of shape {dims:?} to a convolution whose weights are {} groups of {}×{}",
                self.groups, self.outputs, self.depth
            ))
        };
        let Shape::Plane { window, kernel } = &self.shape else {
            return Err(refuse());
        };
        let (channels, h, w, flat) = match *dims {
            [_, c, l] => (c, 1, l, true),
            [_, c, h, w] => (c, h, w, false),
            _ => return Err(refuse()),
        };
        if channels * kernel.0 * kernel.1 != self.patch() {
            return Err(refuse());
        }
        let at = |values: &[usize], axis: usize, none: usize| match (flat, axis) {
            (true, 0) => none,
            (true, _) => values.first().copied().unwrap_or(none),
            (false, axis) => values.get(axis).copied().unwrap_or(none),
        };
        let stride = (at(&window.strides, 0, 1), at(&window.strides, 1, 1));
        let dilation = (at(&window.dilations, 0, 1), at(&window.dilations, 1, 1));
        if stride.0 == 0 || stride.1 == 0 {
            return Err(refuse());
        }
        let reach = |kernel: usize, dilation: usize| kernel.saturating_sub(1) * dilation + 1;
        let axis = |which: usize| -> Option<(usize, usize)> {
            let (extent, kernel, stride, dilation) = match which {
                0 => (h, kernel.0, stride.0, dilation.0),
                _ => (w, kernel.1, stride.1, dilation.1),
            };
            let reach = reach(kernel, dilation);
            Some(match &window.padding {
                Padding::SameUpper | Padding::SameLower => {
                    let out = extent.div_ceil(stride);
                    let total = ((out.max(1) - 1) * stride + reach).saturating_sub(extent);
                    let small = total / 2;
                    let upper = window.padding == Padding::SameUpper;
                    (out, if upper { small } else { total - small })
                }
                padding => {
                    let pads: &[usize] = match padding {
                        Padding::Explicit(pads) => pads,
                        _ => &[],
                    };
                    let (before, after) = match (pads, flat, which) {
                        ([], _, _) | (_, true, 0) => (0, 0),
                        ([before, after], true, _) => (*before, *after),
                        ([t, l, b, r], false, _) => [(*t, *b), (*l, *r)][which],
                        _ => return None,
                    };
                    let span = (extent + before + after).checked_sub(reach)?;
                    (span / stride + 1, before)
                }
            })
        };
        let (Some((oh, top)), Some((ow, left))) = (axis(0), axis(1)) else {
            return Err(refuse());
        };
        Ok(Plane {
            channels,
            size: (h, w),
            out: (oh, ow),
            stride,
            dilation,
            before: (top, left),
            kernel: *kernel,
        })
    }

    /// Writes the patches of a batch, whose first sample has the number `first`, into `patches`: one row of all positions for each
    /// element of a patch.
    pub fn gather(
        &self,
        batch: &Tensor,
        places: &Places,
        first: usize,
        patches: &mut [f32],
    ) -> Result<(), CompressError> {
        let dims = batch.dims().to_vec();
        let data = batch
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .map_err(exec::ExecError::from)?;
        let samples = dims.first().copied().unwrap_or(0);
        let size = data.len() / samples.max(1);
        let rows = places.rows;
        let of_batch = |n: usize| {
            places
                .of_sample
                .get(first + n)
                .map_or(&[][..], Vec::as_slice)
        };
        let alpha = self.alpha;
        match &self.shape {
            Shape::Rows => {
                let depth = self.depth;
                exec::on_pool(|| {
                    patches
                        .par_chunks_mut(rows)
                        .enumerate()
                        .for_each(|(k, row)| {
                            for n in 0..samples {
                                for &(position, to) in of_batch(n) {
                                    row[to] = data[n * size + position * depth + k] * alpha;
                                }
                            }
                        });
                });
            }
            Shape::Plane { .. } => {
                let plane = self.plane(&dims)?;
                let taps = plane.kernel.0 * plane.kernel.1;
                let (h, w) = plane.size;
                exec::on_pool(|| {
                    patches
                        .par_chunks_mut(rows)
                        .enumerate()
                        .for_each(|(k, row)| {
                            let (channel, tap) = (k / taps, k % taps);
                            let (ky, kx) = (tap / plane.kernel.1, tap % plane.kernel.1);
                            for n in 0..samples {
                                let from = (n * plane.channels + channel) * h * w;
                                for &(position, to) in of_batch(n) {
                                    let (oy, ox) = (position / plane.out.1, position % plane.out.1);
                                    let y = (oy * plane.stride.0 + ky * plane.dilation.0)
                                        .wrapping_sub(plane.before.0);
                                    let x = (ox * plane.stride.1 + kx * plane.dilation.1)
                                        .wrapping_sub(plane.before.1);
                                    row[to] = if y < h && x < w {
                                        data[from + y * w + x]
                                    } else {
                                        0.0
                                    };
                                }
                            }
                        });
                });
            }
        }
        Ok(())
    }

    /// Writes a value of the shape of the layer's output, at the places drawn, into `outputs`: one row of all positions for each output. Whether
    /// it has that shape.
    pub fn gather_outputs(
        &self,
        batch: &Tensor,
        places: &Places,
        first: usize,
        outputs: &mut [f32],
    ) -> Result<bool, CompressError> {
        let data = batch
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .map_err(exec::ExecError::from)?;
        let all = self.groups * self.outputs;
        let channels = match self.shape {
            Shape::Plane { .. } => batch.dims().get(1),
            Shape::Rows => batch.dims().last(),
        };
        let samples = batch.dims().first().copied().unwrap_or(0);
        if channels != Some(&all) || data.len() != samples * all * places.each {
            return Ok(false);
        }
        let size = all * places.each;
        let of_sample = places.of_sample.get(first..first + samples).unwrap_or(&[]);
        for (sample, drawn) in data.chunks_exact(size.max(1)).zip(of_sample) {
            for &(position, to) in drawn {
                for output in 0..all {
                    let from = match self.shape {
                        Shape::Plane { .. } => output * places.each + position,
                        Shape::Rows => position * all + output,
                    };
                    outputs[output * places.rows + to] = sample[from];
                }
            }
        }
        Ok(true)
    }

    /// The float layer's outputs behind its activation function, one row of all positions for each output.
    pub fn target(&self, patches: &[f32], rows: usize) -> Vec<f32> {
        self.outputs_of(&self.weights, patches, rows)
    }

    /// The same with other weights, in the problem's order.
    pub fn outputs_of(&self, weights: &[f32], patches: &[f32], rows: usize) -> Vec<f32> {
        let mut target = vec![0.0; self.groups * self.outputs * rows];
        let chunk = self.outputs.clamp(1, 32);
        // A piece never reaches into the next group.
        let of_group = self.outputs * rows;
        target
            .par_chunks_mut(of_group)
            .enumerate()
            .for_each(|(group, out)| {
                let x = &patches[group * self.depth * rows..][..self.depth * rows];
                out.par_chunks_mut(chunk * rows)
                    .enumerate()
                    .for_each(|(piece, out)| {
                        let count = out.len() / rows;
                        let first = group * self.outputs + piece * chunk;
                        let weights = &weights[first * self.depth..][..count * self.depth];
                        matmul(
                            Matrix::new(weights, count, self.depth, self.depth),
                            Matrix::new(x, self.depth, rows, rows),
                            out,
                        );
                        for (out, bias) in out.chunks_exact_mut(rows).zip(&self.bias[first..]) {
                            for v in out {
                                *v = (*v + bias).clamp(self.limits.0, self.limits.1);
                            }
                        }
                    });
            });
        target
    }

    /// The scale of one weight.
    pub fn scale(&self, i: usize) -> f32 {
        self.scales[self.scale_of[i]]
    }

    /// The code that `QuantizeLinear` gives on `scale`, counted from the zero point.
    pub fn nearest(&self, i: usize, scale: f32) -> i32 {
        self.held(i, self.weights[i] / scale)
    }

    /// The code nearest to so many steps.
    pub fn held(&self, i: usize, steps: f32) -> i32 {
        let range = self.ranges[i];
        (steps.round_ties_even() as i32).clamp(range.lo, range.hi)
    }

    /// What the codes stand for that `QuantizeLinear` gives on these scales.
    pub fn nearest_values(&self, scales: &[f32]) -> Vec<f32> {
        let nearest = |i| self.nearest(i, scales[self.scale_of[i]]);
        let codes: Vec<i32> = (0..self.weights.len()).map(nearest).collect();
        self.values(&codes, scales)
    }

    /// What codes (counted from the zero points) stand for, in the problem's order.
    pub fn values(&self, codes: &[i32], scales: &[f32]) -> Vec<f32> {
        codes
            .iter()
            .zip(&self.scale_of)
            .map(|(code, scale)| *code as f32 * scales[*scale])
            .collect()
    }

    /// From the problem's order to the model's.
    pub fn in_place(&self, weights: &[f32]) -> Vec<f32> {
        if !self.turned {
            return weights.to_vec();
        }
        let all = self.groups * self.outputs;
        let mut out = vec![0.0; weights.len()];
        for (i, w) in weights.iter().enumerate() {
            out[i % self.depth * all + i / self.depth] = *w;
        }
        out
    }

    /// From the model's order to the problem's.
    pub fn in_order(&self, weights: &[f32]) -> Vec<f32> {
        if !self.turned {
            return weights.to_vec();
        }
        let all = self.groups * self.outputs;
        (0..weights.len())
            .map(|i| weights[i % self.depth * all + i / self.depth])
            .collect()
    }

    /// Squared error of the outputs behind the activation function with these weights (in the problem's order), over some of the positions.
    pub fn error(&self, weights: &[f32], seen: &Seen<'_>, positions: Range<usize>) -> f64 {
        let n = positions.len();
        if n == 0 {
            return 0.0;
        }
        let together = self.outputs.clamp(1, 32);
        let pieces: Vec<(usize, usize)> = (0..self.groups)
            .flat_map(|group| {
                (0..self.outputs)
                    .step_by(together)
                    .map(move |first| (group, first))
            })
            .collect();
        let errors: Vec<f64> = pieces
            .par_iter()
            .map(|&(group, first)| {
                let count = together.min(self.outputs - first);
                let first = group * self.outputs + first;
                let weights = &weights[first * self.depth..][..count * self.depth];
                let x = &seen.of_group(group, self.depth)[positions.start..];
                let mut outputs = vec![0.0; count * n];
                product(
                    weights,
                    (count, self.depth),
                    x,
                    (n, seen.rows),
                    &mut outputs,
                );
                let mut sum = 0.0;
                for (o, out) in outputs.chunks_exact(n).enumerate() {
                    let wanted = &seen.target[(first + o) * seen.rows + positions.start..][..n];
                    sum += self.distance(first + o, out, wanted);
                }
                sum
            })
            .collect();
        // Added up in order.
        errors.iter().sum()
    }

    /// Squared error of one output before its bias against what is wanted.
    pub fn distance(&self, output: usize, out: &[f32], wanted: &[f32]) -> f64 {
        let (bias, (lo, hi)) = (self.bias[output], self.limits);
        out.iter()
            .zip(wanted)
            .map(|(y, t)| f64::from(((y + bias).clamp(lo, hi) - t).powi(2)))
            .sum()
    }

    /// Squared wanted outputs over some of the positions.
    pub fn signal(&self, seen: &Seen<'_>, positions: Range<usize>) -> f64 {
        seen.target
            .chunks_exact(seen.rows)
            .flat_map(|row| &row[positions.clone()])
            .map(|t| f64::from(t * t))
            .sum()
    }
}

struct Plane {
    channels: usize,
    size: (usize, usize),
    out: (usize, usize),
    stride: (usize, usize),
    dilation: (usize, usize),
    before: (usize, usize),
    kernel: (usize, usize),
}

/// Output positions drawn: of each sample, the position and the column of the patches that it goes to.
pub(in crate::compress) struct Places {
    of_sample: Vec<Vec<(usize, usize)>>,
    rows: usize,
    /// The first so many columns are chosen by, the others judge.
    fitted: usize,
    /// Positions of a sample.
    each: usize,
}

impl Places {
    /// Positions drawn in all.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns that a choice is made by, the first ones; the others judge it.
    pub fn fitted(&self) -> usize {
        self.fitted
    }

    /// The sample of each column.
    #[cfg(test)]
    pub fn sample_of(&self) -> Vec<usize> {
        let mut of = vec![0; self.rows];
        for (sample, drawn) in self.of_sample.iter().enumerate() {
            drawn.iter().for_each(|(_, column)| of[*column] = sample);
        }
        of
    }

    /// Of each sample, its positions and their columns.
    #[cfg(test)]
    pub fn of_sample(&self) -> &[Vec<(usize, usize)>] {
        &self.of_sample
    }

    /// Samples that judge.
    pub fn judging(&self) -> usize {
        let judges = |(_, column): &(usize, usize)| *column >= self.fitted;
        let samples = self.of_sample.iter();
        samples.filter(|drawn| drawn.iter().any(judges)).count()
    }

    /// Those columns by sample, of samples that have any, in no order: the first ones are a draw.
    pub fn fitted_samples(&self) -> Vec<Vec<usize>> {
        let columns = |drawn: &Vec<(usize, usize)>| -> Vec<usize> {
            let columns = drawn.iter().map(|(_, column)| *column);
            let mut columns: Vec<usize> = columns.filter(|column| *column < self.fitted).collect();
            columns.sort_unstable();
            columns
        };
        let mut samples: Vec<Vec<usize>> = self.of_sample.iter().map(columns).collect();
        samples.retain(|columns| !columns.is_empty());
        samples
    }
}

/// A layer's bias as it takes effect on `outputs` outputs.
pub(in crate::compress) fn bias(
    graph: &Graph,
    node: usize,
    outputs: usize,
    beta: f32,
) -> Result<Vec<f32>, String> {
    let Some(id) = graph.nodes[node].inputs.get(2).copied().flatten() else {
        return Ok(vec![0.0; outputs]);
    };
    if !matches!(graph.nodes[node].op, Op::Conv { .. } | Op::Gemm { .. }) {
        return Ok(vec![0.0; outputs]);
    }
    let Some(data) = &graph.value(id).data else {
        return Err("its bias is not a constant".to_owned());
    };
    let values = data.to_f32_vec();
    match values.len() {
        1 => Ok(vec![values[0] * beta; outputs]),
        n if n == outputs => Ok(values.iter().map(|b| b * beta).collect()),
        n => Err(format!(
            "its bias has {n} elements but it has {outputs} outputs"
        )),
    }
}

/// Bounds that the function behind a layer keeps its output in: (0, ∞) for ReLU, those of a Clip; none where anything else follows.
pub(in crate::compress) fn activation(
    graph: &Graph,
    wiring: &Wiring,
    output: ValueId,
) -> (f32, f32) {
    const NONE: (f32, f32) = (f32::NEG_INFINITY, f32::INFINITY);
    let &[next] = wiring.consumers(output) else {
        return NONE;
    };
    if wiring.is_output(output) {
        return NONE;
    }
    let node = &graph.nodes[next];
    match node.op {
        Op::Unary(UnaryOp::Relu) => (0.0, f32::INFINITY),
        Op::Clip => {
            let bound = |slot: usize, none: f32| match node.inputs.get(slot).copied().flatten() {
                None => Some(none),
                Some(id) => {
                    let data = graph.value(id).data.as_ref()?;
                    data.to_f32_vec().first().copied()
                }
            };
            match (bound(1, NONE.0), bound(2, NONE.1)) {
                (Some(lo), Some(hi)) if lo <= hi => (lo, hi),
                _ => NONE,
            }
        }
        _ => NONE,
    }
}
