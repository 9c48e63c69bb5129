//! Convolutions of the sizes in the design's engine notes (batch 16), ours and candle's, forward and forward with backward.
//! `cargo bench -p limbeck_engine --bench kernels`; a name as argument picks some.

use candle_core::{Device, Result, Tensor, Var};
use criterion::{Criterion, criterion_group, criterion_main};
use limbeck_engine::exec::kernels::{Conv2dGeometry, batch_norm, conv2d};
use std::{hint::black_box, time::Duration};

const BATCH: usize = 16;

struct Layer {
    name: &'static str,
    channels: (usize, usize),
    extent: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
}

const LAYERS: [Layer; 8] = [
    layer("3x3_64_64_28", (64, 64), 28, 3, 1, 1),
    layer("3x3_stride2_3_32_112", (3, 32), 112, 3, 2, 1),
    layer("3x3_depthwise_96_28", (96, 96), 28, 3, 1, 96),
    layer("3x3_dense_96_96_28", (96, 96), 28, 3, 1, 1),
    layer("5x5_depthwise_stride2_96_28", (96, 96), 28, 5, 2, 96),
    layer("1x1_96_96_28", (96, 96), 28, 1, 1, 1),
    layer("3x3_16_16_28", (16, 16), 28, 3, 1, 1),
    layer("3x3_64_64_7", (64, 64), 7, 3, 1, 1),
];

const fn layer(
    name: &'static str,
    channels: (usize, usize),
    extent: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
) -> Layer {
    Layer {
        name,
        channels,
        extent,
        kernel,
        stride,
        groups,
    }
}

fn random(shape: &[usize]) -> Var {
    let count = shape.iter().product::<usize>();
    let data: Vec<f32> = (0..count)
        .map(|i| ((i * 7919 % 1009) as f32) / 1009.0 - 0.5)
        .collect();
    let tensor = Tensor::from_vec(data, shape, &Device::Cpu).expect("sizes agree");
    Var::from_tensor(&tensor).expect("memory suffices")
}

fn measure(
    c: &mut Criterion,
    name: &str,
    inputs: &[&Var],
    f: impl Fn(&[&Tensor]) -> Result<Tensor>,
) {
    let tensors: Vec<&Tensor> = inputs.iter().map(|v| v.as_tensor()).collect();
    let detached: Vec<Tensor> = tensors.iter().map(|t| t.detach()).collect();
    let detached: Vec<&Tensor> = detached.iter().collect();
    c.bench_function(&format!("{name}/forward"), |b| {
        b.iter(|| black_box(f(&detached).expect("the layer runs")));
    });
    c.bench_function(&format!("{name}/both"), |b| {
        b.iter(|| {
            let y = f(&tensors).expect("the layer runs");
            black_box(y.backward().expect("the layer has gradients"))
        });
    });
}

fn convolutions(c: &mut Criterion) {
    for layer in &LAYERS {
        let (from, to) = layer.channels;
        let x = random(&[BATCH, from, layer.extent, layer.extent]);
        let w = random(&[to, from / layer.groups, layer.kernel, layer.kernel]);
        let pad = layer.kernel / 2;
        let geometry = Conv2dGeometry {
            stride: (layer.stride, layer.stride),
            dilation: (1, 1),
            pad: (pad, pad, pad, pad),
            groups: layer.groups,
        };
        measure(c, &format!("{}/ours", layer.name), &[&x, &w], |t| {
            conv2d(t[0], t[1], None, geometry)
        });
        measure(c, &format!("{}/candle", layer.name), &[&x, &w], |t| {
            t[0].conv2d(t[1], pad, layer.stride, 1, layer.groups)
        });
    }
}

fn others(c: &mut Criterion) {
    let x = random(&[BATCH, 64, 28, 28]);
    let (scale, shift) = (random(&[64]), random(&[64]));
    let (mean, variance) = (
        random(&[64]),
        Tensor::ones(64, candle_core::DType::F32, &Device::Cpu),
    );
    let variance = variance.expect("memory suffices");
    measure(c, "batch_norm/ours", &[&x, &scale, &shift], |t| {
        batch_norm(t[0], t[1], t[2], &mean, &variance, 1e-5)
    });
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = convolutions, others
}
criterion_main!(kernels);
