//! Convolution on slices: forward, and the gradients of input, weight and bias. Unfolded patches and a matrix product a
//! group of an image; depthwise without either (see `depthwise`).

use super::{
    depthwise,
    host::{Scratch, on_pool, sized, with_scratch},
    matmul::{Matrix, matmul},
    simd,
    window::{ConvShape, Planes, widen},
};
use rayon::prelude::*;

/// Floats of unfolded patches worked on at a time: stays within a core's L2 cache.
const BLOCK: usize = 1 << 16;

/// Partial weight gradients summed at the end, at most; part of what a sum's bits are.
const PARTIALS: usize = 16;

/// Floats all partial weight gradients together may take (64 MB).
const PARTIAL_FLOATS: usize = 1 << 24;

/// How one group of one image is worked on.
struct Plan {
    shape: ConvShape,
    planes: Planes,
    /// Distance of output rows in the unfolded patches: the planes' pitch, or the output's width where that
    /// would waste more than half of the product on dropped columns.
    pitch: usize,
    /// Output rows a block.
    rows: usize,
}

impl Plan {
    fn new(shape: &ConvShape) -> Self {
        let planes = Planes::new(shape);
        let pitch = if planes.pitch * 2 > shape.wo * 3 {
            shape.wo
        } else {
            planes.pitch
        };
        let rows = if planes.offsets.len() == 1 {
            shape.ho
        } else {
            (BLOCK / (shape.depth() * pitch)).clamp(1, shape.ho)
        };
        Self {
            shape: *shape,
            planes,
            pitch,
            rows,
        }
    }

    /// Blocks of output rows: (first row, flat length).
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.shape.ho).step_by(self.rows).map(|first| {
            let count = self.rows.min(self.shape.ho - first);
            (first, (count - 1) * self.pitch + self.shape.wo)
        })
    }

    /// Patches of a block as a matrix depth × length.
    fn unfold<'a>(
        &self,
        planes: &'a [f32],
        (first, length): (usize, usize),
        columns: &'a mut Vec<f32>,
    ) -> Matrix<'a> {
        let start = first * self.planes.pitch;
        if self.planes.offsets.len() == 1 {
            return Matrix::rows(&planes[start..], self.planes.plane);
        }
        let columns = sized(columns, self.shape.depth() * length);
        let mut lines = columns.chunks_exact_mut(length);
        for plane in planes.chunks_exact(self.planes.plane) {
            for (&offset, line) in self.planes.offsets.iter().zip(&mut lines) {
                let source = &plane[offset + start..];
                if self.pitch == self.planes.pitch {
                    line.copy_from_slice(&source[..length]);
                } else {
                    for (to, from) in line
                        .chunks_exact_mut(self.shape.wo)
                        .zip(source.chunks(self.planes.pitch))
                    {
                        to.copy_from_slice(&from[..self.shape.wo]);
                    }
                }
            }
        }
        Matrix::rows(columns, length)
    }

    /// Adds a block's patch gradients to the planes they were unfolded from.
    fn fold(&self, columns: &[f32], (first, length): (usize, usize), planes: &mut [f32]) {
        let start = first * self.planes.pitch;
        let mut lines = columns.chunks_exact(length);
        for plane in planes.chunks_exact_mut(self.planes.plane) {
            for (&offset, line) in self.planes.offsets.iter().zip(&mut lines) {
                let target = &mut plane[offset + start..];
                if self.pitch == self.planes.pitch {
                    simd::add_assign(&mut target[..length], line);
                } else {
                    for (to, from) in target
                        .chunks_mut(self.planes.pitch)
                        .zip(line.chunks_exact(self.shape.wo))
                    {
                        simd::add_assign(&mut to[..self.shape.wo], from);
                    }
                }
            }
        }
    }

    /// One group's (or some of its) output channels: `weight` and `output` hold just those.
    fn forward(
        &self,
        input: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        output: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let shape = &self.shape;
        let area = shape.ho * shape.wo;
        let channels = output.len() / area;
        let planes = self.planes.of(input, &mut scratch.planes);
        let weight = Matrix::rows(weight, shape.depth());
        for block in self.blocks() {
            let (first, length) = block;
            let columns = self.unfold(planes, block, &mut scratch.columns);
            let at = first * shape.wo;
            let sizes = (channels, length, shape.depth());
            if self.pitch == shape.wo {
                matmul(sizes, weight, columns, &mut output[at..], area, false);
            } else {
                let wide = sized(&mut scratch.wide, channels * length);
                matmul(sizes, weight, columns, wide, length, false);
                let rows = (length - shape.wo) / self.pitch + 1;
                for (channel, line) in wide.chunks_exact(length).enumerate() {
                    let start = channel * area + at;
                    simd::crop(
                        &mut output[start..start + rows * shape.wo],
                        shape.wo,
                        line,
                        self.pitch,
                        bias.map_or(0.0, |b| b[channel]),
                    );
                }
            }
        }
        if let (true, Some(bias)) = (self.pitch == shape.wo, bias) {
            for (plane, bias) in output.chunks_exact_mut(area).zip(bias) {
                simd::add_scalar(plane, *bias);
            }
        }
    }

    /// The output's gradient with rows at this plan's pitch.
    fn widened<'a>(&self, gradient: &'a [f32], wide: &'a mut Vec<f32>) -> &'a [f32] {
        if self.pitch == self.shape.wo {
            return gradient;
        }
        let wide = sized(wide, self.shape.og * self.shape.ho * self.pitch);
        widen(gradient, self.shape.wo, self.pitch, wide);
        wide
    }

    /// Gradient of one group's input, which comes zeroed.
    fn input_gradient(
        &self,
        gradient: &[f32],
        weight: &[f32],
        input: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let shape = &self.shape;
        let gradient = self.widened(gradient, &mut scratch.wide);
        let row = shape.ho * self.pitch;
        let transposed = Matrix::rows(weight, shape.depth()).transposed();
        let planes = if self.planes.identity {
            &mut *input
        } else {
            let planes = sized(&mut scratch.planes, shape.cg * self.planes.plane);
            planes.fill(0.0);
            planes
        };
        for block in self.blocks() {
            let (first, length) = block;
            let part = Matrix::rows(&gradient[first * self.pitch..], row);
            let sizes = (shape.depth(), length, shape.og);
            if self.planes.offsets.len() == 1 {
                matmul(sizes, transposed, part, planes, self.planes.plane, false);
            } else {
                let columns = sized(&mut scratch.columns, shape.depth() * length);
                matmul(sizes, transposed, part, columns, length, false);
                self.fold(columns, block, planes);
            }
        }
        if !self.planes.identity {
            let planes = sized(&mut scratch.planes, shape.cg * self.planes.plane);
            self.planes.empty(planes, input);
        }
    }

    /// Adds one image's share to the gradient of one group's weight.
    fn weight_gradient(
        &self,
        input: &[f32],
        gradient: &[f32],
        weight: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let shape = &self.shape;
        let planes = self.planes.of(input, &mut scratch.planes);
        let gradient = self.widened(gradient, &mut scratch.wide);
        let row = shape.ho * self.pitch;
        for block in self.blocks() {
            let (first, length) = block;
            let columns = self.unfold(planes, block, &mut scratch.columns);
            let part = Matrix::rows(&gradient[first * self.pitch..], row);
            let sizes = (shape.og, shape.depth(), length);
            matmul(
                sizes,
                part,
                columns.transposed(),
                weight,
                shape.depth(),
                true,
            );
        }
    }
}

/// N×O×H'×W' from N×C×H×W.
pub(super) fn forward(
    shape: &ConvShape,
    input: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let mut output = vec![0.0; shape.n * shape.groups * shape.group_out()];
    if output.is_empty() {
        return output;
    }
    if depthwise::fits(shape) {
        depthwise::forward(shape, input, weight, bias, &mut output);
        return output;
    }
    let plan = Plan::new(shape);
    // A few images alone would leave cores idle: share out their channels too. By the sizes only, so that bits don't
    // depend on the threads.
    let parts = if shape.groups == 1 && shape.n < 4 {
        (4 / shape.n).min(shape.og.div_ceil(16)).max(1)
    } else {
        1
    };
    let channels = shape.og.div_ceil(parts);
    let area = shape.ho * shape.wo;
    on_pool(|| {
        output
            .par_chunks_mut(shape.group_out())
            .zip(input.par_chunks(shape.group_in()))
            .enumerate()
            .for_each(|(index, (output, input))| {
                let group = index % shape.groups;
                output
                    .par_chunks_mut(channels * area)
                    .enumerate()
                    .for_each(|(part, output)| {
                        let first = group * shape.og + part * channels;
                        let last = first + output.len() / area;
                        let weight = &weight[first * shape.depth()..last * shape.depth()];
                        let bias = bias.map(|b| &b[first..last]);
                        with_scratch(|s| plan.forward(input, weight, bias, output, s));
                    });
            });
    });
    output
}

/// Gradient N×C×H×W of the input from that of the output.
pub(super) fn input_gradient(shape: &ConvShape, gradient: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut input = vec![0.0; shape.n * shape.groups * shape.group_in()];
    if input.is_empty() {
        return input;
    }
    if depthwise::fits(shape) {
        depthwise::input_gradient(shape, gradient, weight, &mut input);
        return input;
    }
    let plan = Plan::new(shape);
    on_pool(|| {
        input
            .par_chunks_mut(shape.group_in())
            .zip(gradient.par_chunks(shape.group_out()))
            .enumerate()
            .for_each(|(index, (input, gradient))| {
                let size = shape.group_weight();
                let at = index % shape.groups * size;
                with_scratch(|s| plan.input_gradient(gradient, &weight[at..at + size], input, s));
            });
    });
    input
}

/// Gradient of the weight, summed over the batch in a fixed order.
pub(super) fn weight_gradient(shape: &ConvShape, input: &[f32], gradient: &[f32]) -> Vec<f32> {
    let size = shape.group_weight();
    let mut weight = vec![0.0; shape.groups * size];
    if shape.n == 0 {
        return weight;
    }
    if depthwise::fits(shape) {
        depthwise::weight_gradient(shape, input, gradient, &mut weight);
        return weight;
    }
    let plan = Plan::new(shape);
    let add = |group: usize, image: usize, weight: &mut [f32]| {
        let at = image * shape.groups + group;
        let input = &input[at * shape.group_in()..][..shape.group_in()];
        let gradient = &gradient[at * shape.group_out()..][..shape.group_out()];
        with_scratch(|s| plan.weight_gradient(input, gradient, weight, s));
    };
    if shape.groups >= 8 {
        on_pool(|| {
            weight
                .par_chunks_mut(size)
                .enumerate()
                .for_each(|(group, weight)| (0..shape.n).for_each(|n| add(group, n, weight)));
        });
        return weight;
    }
    let most = (PARTIAL_FLOATS / weight.len()).clamp(1, PARTIALS);
    let images = shape.n.div_ceil(most);
    let mut partials = vec![0.0; shape.n.div_ceil(images) * weight.len()];
    on_pool(|| {
        partials
            .par_chunks_mut(weight.len())
            .enumerate()
            .for_each(|(part, partial)| {
                for n in part * images..shape.n.min((part + 1) * images) {
                    for (group, partial) in partial.chunks_exact_mut(size).enumerate() {
                        add(group, n, partial);
                    }
                }
            });
    });
    for partial in partials.chunks_exact(weight.len()) {
        simd::add_assign(&mut weight, partial);
    }
    weight
}

/// Sum over batch and area of every channel of an N×C×… gradient.
pub(super) fn channel_sums(gradient: &[f32], channels: usize, area: usize) -> Vec<f32> {
    let mut sums = vec![0.0; channels];
    if area == 0 {
        return sums;
    }
    on_pool(|| {
        sums.par_iter_mut()
            .enumerate()
            .for_each(|(channel, total)| {
                *total = gradient
                    .chunks_exact(area)
                    .skip(channel)
                    .step_by(channels)
                    .map(|plane| f64::from(simd::sum(plane)))
                    .sum::<f64>() as f32;
            });
    });
    sums
}

/// Adds `bias` to every plane of its channel.
pub(super) fn add_bias(output: &mut [f32], bias: &[f32], area: usize) {
    if output.is_empty() {
        return;
    }
    on_pool(|| {
        output
            .par_chunks_mut(area)
            .enumerate()
            .for_each(|(index, plane)| simd::add_scalar(plane, bias[index % bias.len()]));
    });
}
