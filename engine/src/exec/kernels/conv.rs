//! Convolution on N×C×H×W slices: forward, and the gradients of input, weight and bias. Each image is set into a
//! channels-last plane, where the kernels of [`super::planes`] do the work.

use super::{
    host::{on_pool, sized, with_scratch},
    planes::{
        self, Buffer, Hands, Packed, Plane, Sweep, Tail, WeightGradient, Window2d, by_rows,
        from_nchw, isa, pack_depthwise, to_nchw,
    },
    simd,
    window::ConvShape,
};
use rayon::prelude::*;

/// Partial weight gradients summed at the end, at most; part of what a sum's bits are.
const PARTIALS: usize = 16;

/// Floats all partial weight gradients together may take (64 MB).
const PARTIAL_FLOATS: usize = 1 << 24;

/// Weights as the kernels read them.
enum Weights {
    Dense(Packed),
    Depthwise(Buffer),
}

/// Whether every channel is convolved by itself.
fn is_depthwise(shape: &ConvShape) -> bool {
    shape.cg == 1 && shape.og == 1 && shape.groups > 1
}

fn sizes(shape: &ConvShape) -> (usize, usize, usize, usize) {
    (shape.groups, shape.og, shape.cg, shape.kh * shape.kw)
}

impl Weights {
    /// For the convolution, or with `back` for its input's gradient.
    fn new(shape: &ConvShape, weight: &[f32], bias: Option<&[f32]>, back: bool) -> Self {
        if is_depthwise(shape) {
            return Self::Depthwise(pack_depthwise(weight, shape.groups));
        }
        let (groups, og, cg, taps) = sizes(shape);
        let at =
            |g: usize, o: usize, i: usize, t: usize| weight[((g * og + o) * cg + i) * taps + t];
        Self::Dense(if back {
            Packed::new(
                isa(),
                (groups, cg, og, taps),
                |g, o, i, t| at(g, i, o, t),
                None,
            )
        } else {
            Packed::new(isa(), sizes(shape), at, bias)
        })
    }

    fn run(&self, sweep: &Sweep, channels: usize, bias: Option<&[f32]>, x: &[f32], y: &mut [f32]) {
        match self {
            Self::Dense(packed) => planes::conv(sweep, packed, x, None, y, Tail::NONE),
            Self::Depthwise(weight) => {
                planes::depthwise(sweep, channels, weight, bias, x, None, y, Tail::NONE);
            }
        }
    }
}

/// The planes of one image: in and out.
struct Places {
    window: Window2d,
    input: Plane,
    output: Plane,
}

impl Places {
    fn new(shape: &ConvShape) -> Self {
        Self {
            window: shape.window(),
            input: Plane::new(shape.h, shape.w, shape.c),
            output: Plane::new(shape.ho, shape.wo, shape.o),
        }
    }
}

/// Calls `work(image, its part of out, scratch for two planes)` for all images, in parallel.
fn each_image(
    out: &mut [f32],
    size: usize,
    planes: (usize, usize),
    work: impl Fn(usize, &mut [f32], &mut [f32], &mut [f32]) + Sync,
) {
    on_pool(|| {
        out.par_chunks_mut(size).enumerate().for_each(|(n, out)| {
            with_scratch(|scratch| {
                let first = sized(&mut scratch.planes, planes.0);
                work(n, out, first, sized(&mut scratch.wide, planes.1));
            });
        });
    });
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
    let mut p = Places::new(shape);
    p.input.margin = p.window.margin(shape.h, shape.w);
    let weights = Weights::new(shape, weight, bias, false);
    let sweep = p.window.forward(1, &p.input, &p.output);
    let hands = if shape.n == 1 {
        Hands::Pool
    } else {
        Hands::Alone
    };
    let size = p.output.elements();
    each_image(&mut output, size, (p.input.size(), size), |n, out, x, y| {
        p.input.clear_margin(x, 1);
        from_nchw(1, &input[n * p.input.elements()..], (x, &p.input));
        let x = &*x;
        by_rows(hands, &sweep, y, |sweep, y| {
            weights.run(sweep, shape.c, bias, x, y)
        });
        to_nchw(1, (y, &p.output), out);
    });
    output
}

/// Gradient N×C×H×W of the input from that of the output.
pub(super) fn input_gradient(shape: &ConvShape, gradient: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut input = vec![0.0; shape.n * shape.groups * shape.group_in()];
    if input.is_empty() {
        return input;
    }
    let mut p = Places::new(shape);
    p.output.margin = p.window.gradient_margin(shape.h, shape.w);
    let weights = Weights::new(shape, weight, None, true);
    let sweeps = p.window.backward(1, &p.output, &p.input);
    let size = p.input.elements();
    each_image(&mut input, size, (p.output.size(), size), |n, out, g, x| {
        p.output.clear_margin(g, 1);
        from_nchw(1, &gradient[n * p.output.elements()..], (g, &p.output));
        for sweep in &sweeps {
            weights.run(sweep, shape.c, None, g, x);
        }
        to_nchw(1, (x, &p.input), out);
    });
    input
}

/// Gradient of the weight, summed over the batch in a fixed order.
pub(super) fn weight_gradient(shape: &ConvShape, input: &[f32], gradient: &[f32]) -> Vec<f32> {
    let size = shape.groups * shape.group_weight();
    if shape.n == 0 {
        return vec![0.0; size];
    }
    let mut p = Places::new(shape);
    p.input.margin = p.window.margin(shape.h, shape.w);
    let sweep = p.window.forward(1, &p.input, &p.output);
    let depthwise = is_depthwise(shape);
    let taps = shape.kh * shape.kw;
    let most = (PARTIAL_FLOATS / size.max(1)).clamp(1, PARTIALS);
    let images = shape.n.div_ceil(most);
    let starts: Vec<usize> = (0..shape.n).step_by(images).collect();
    let partials: Vec<Vec<f32>> = on_pool(|| {
        starts
            .into_par_iter()
            .map(|start| {
                let mut dense = (!depthwise).then(|| WeightGradient::new(isa(), sizes(shape)));
                let mut by_tap = vec![0.0; if depthwise { size } else { 0 }];
                for n in start..shape.n.min(start + images) {
                    with_scratch(|scratch| {
                        let x = sized(&mut scratch.planes, p.input.size());
                        p.input.clear_margin(x, 1);
                        from_nchw(1, &input[n * p.input.elements()..], (x, &p.input));
                        let g = sized(&mut scratch.wide, p.output.size());
                        from_nchw(1, &gradient[n * p.output.elements()..], (g, &p.output));
                        match &mut dense {
                            Some(sums) => planes::weight_gradient(&sweep, x, g, sums),
                            None => planes::depthwise_weight_gradient(
                                &sweep,
                                shape.c,
                                x,
                                g,
                                &mut by_tap,
                            ),
                        }
                    });
                }
                match dense {
                    Some(sums) => sums.to_weight(),
                    None => (0..size)
                        .map(|i| by_tap[i % taps * shape.c + i / taps])
                        .collect(),
                }
            })
            .collect()
    });
    let mut weight = vec![0.0; size];
    for partial in &partials {
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
