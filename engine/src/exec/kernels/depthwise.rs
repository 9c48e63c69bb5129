//! Depthwise convolution (one input channel a group): sums of shifted planes, no unfolding.

use super::{
    host::{on_pool, sized, with_scratch},
    simd,
    window::{ConvShape, Planes, widen},
};
use rayon::prelude::*;

/// Fewest groups a task takes, so that tiny planes don't drown in scheduling.
const GROUPS_A_TASK: usize = 4;

/// Whether this is a depthwise convolution.
pub(super) fn fits(shape: &ConvShape) -> bool {
    shape.cg == 1 && shape.groups > 1
}

pub(super) fn forward(
    shape: &ConvShape,
    input: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    output: &mut [f32],
) {
    let planes = Planes::new(shape);
    let (area, depth, length) = (shape.ho * shape.wo, shape.depth(), planes.length());
    on_pool(|| {
        output
            .par_chunks_mut(shape.group_out())
            .zip(input.par_chunks(shape.group_in()))
            .enumerate()
            .with_min_len(GROUPS_A_TASK)
            .for_each(|(index, (output, input))| {
                with_scratch(|scratch| {
                    let plane = planes.of(input, &mut scratch.planes);
                    let first = index % shape.groups * shape.og;
                    for (o, output) in (first..).zip(output.chunks_exact_mut(area)) {
                        let weight = &weight[o * depth..(o + 1) * depth];
                        let bias = bias.map_or(0.0, |b| b[o]);
                        if planes.pitch == shape.wo {
                            simd::taps(output, plane, &planes.offsets, weight);
                            simd::add_scalar(output, bias);
                        } else {
                            let wide = sized(&mut scratch.wide, length);
                            simd::taps(wide, plane, &planes.offsets, weight);
                            simd::crop(output, shape.wo, wide, planes.pitch, bias);
                        }
                    }
                });
            });
    });
}

/// `input` comes zeroed.
pub(super) fn input_gradient(
    shape: &ConvShape,
    gradient: &[f32],
    weight: &[f32],
    input: &mut [f32],
) {
    let planes = Planes::new(shape);
    let phases = planes.by_phase();
    let (area, depth, phase) = (shape.ho * shape.wo, shape.depth(), planes.phase());
    // An input element gathers from the outputs that read it: the taps run backwards over the widened gradient, which
    // stands between zeros as wide as the farthest tap.
    let margin = phase - planes.length();
    on_pool(|| {
        input
            .par_chunks_mut(shape.group_in())
            .zip(gradient.par_chunks(shape.group_out()))
            .enumerate()
            .with_min_len(GROUPS_A_TASK)
            .for_each(|(index, (input, gradient))| {
                with_scratch(|scratch| {
                    let first = index % shape.groups * shape.og;
                    let plane = sized(&mut scratch.planes, planes.plane);
                    let wide = sized(&mut scratch.wide, margin + phase);
                    let part = sized(&mut scratch.columns, phase);
                    let mut offsets = Vec::with_capacity(depth);
                    let mut weights = Vec::with_capacity(depth);
                    for (o, gradient) in (first..).zip(gradient.chunks_exact(area)) {
                        wide.fill(0.0);
                        widen(
                            gradient,
                            shape.wo,
                            planes.pitch,
                            &mut wide[margin..margin + planes.length()],
                        );
                        for (start, taps) in &phases {
                            offsets.clear();
                            weights.clear();
                            for (tap, shift) in taps {
                                offsets.push(margin - shift);
                                weights.push(weight[o * depth + tap]);
                            }
                            let target = &mut plane[*start..start + phase];
                            if o == first {
                                simd::taps(target, wide, &offsets, &weights);
                            } else {
                                simd::taps(part, wide, &offsets, &weights);
                                simd::add_assign(target, part);
                            }
                        }
                    }
                    if planes.identity {
                        input.copy_from_slice(plane);
                    } else {
                        planes.empty(plane, input);
                    }
                });
            });
    });
}

/// `weight` comes zeroed. A task owns a group's weights and adds the images in order.
pub(super) fn weight_gradient(
    shape: &ConvShape,
    input: &[f32],
    gradient: &[f32],
    weight: &mut [f32],
) {
    let planes = Planes::new(shape);
    let (area, depth, length) = (shape.ho * shape.wo, shape.depth(), planes.length());
    on_pool(|| {
        weight
            .par_chunks_mut(shape.group_weight())
            .enumerate()
            .for_each(|(group, weight)| {
                with_scratch(|scratch| {
                    for n in 0..shape.n {
                        let at = n * shape.groups + group;
                        let input = &input[at * shape.group_in()..][..shape.group_in()];
                        let gradient = &gradient[at * shape.group_out()..][..shape.group_out()];
                        let plane = planes.of(input, &mut scratch.planes);
                        for (weight, gradient) in weight
                            .chunks_exact_mut(depth)
                            .zip(gradient.chunks_exact(area))
                        {
                            let wide = sized(&mut scratch.wide, length);
                            widen(gradient, shape.wo, planes.pitch, wide);
                            for (weight, &offset) in weight.iter_mut().zip(&planes.offsets) {
                                *weight += simd::dot(wide, &plane[offset..offset + length]);
                            }
                        }
                    }
                });
            });
    });
}
