//! Every kernel: forward, and forward with backward (all gradients; for convolutions those of the input and of the weight alone as well).
//! Convolutions stand beside candle's own.
//! `cargo bench -p limbeck_engine --bench kernels [-- WORD]`; compare ratios within one run, the machine's mood changes between runs.

mod cases;

use candle_core::{Result, Tensor};
use cases::{LAYERS, Work};
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use std::{hint::black_box, time::Duration};

type Group<'c> = BenchmarkGroup<'c, WallTime>;

/// Times `f` on the inputs, backwards too where they have gradients.
fn measure(
    group: &mut Group<'_>,
    name: &str,
    inputs: &[Tensor],
    f: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) {
    let back = inputs.iter().any(Tensor::track_op);
    group.bench_function(name, |b| {
        b.iter(|| {
            let y = f(inputs).expect("the kernel runs");
            if back {
                black_box(y.backward().expect("the kernel has gradients"));
            }
            black_box(y)
        });
    });
}

/// The inputs, gradients only of those for which `with` says so.
fn tracked(inputs: &[candle_core::Var], with: impl Fn(usize) -> bool) -> Vec<Tensor> {
    let one = |(i, v): (usize, &candle_core::Var)| {
        let t = v.as_tensor();
        if with(i) { t.clone() } else { t.detach() }
    };
    inputs.iter().enumerate().map(one).collect()
}

fn kernels(c: &mut Criterion) {
    for case in cases::all() {
        let f = &case.run;
        let mut group = c.benchmark_group(&case.name);
        // Of the forward pass.
        group.throughput(match case.work {
            Work::Flop(flop) => Throughput::Elements(flop as u64),
            Work::Bytes(bytes) => Throughput::Bytes(bytes as u64),
        });
        let some = |with: fn(usize) -> bool| tracked(&case.inputs, with);
        measure(&mut group, "forward", &some(|_| false), f);
        measure(&mut group, "both", &some(|_| true), f);
        if matches!(case.work, Work::Flop(_)) {
            measure(
                &mut group,
                "forward and data gradient",
                &some(|i| i == 0),
                f,
            );
            measure(
                &mut group,
                "forward and weight gradient",
                &some(|i| i == 1),
                f,
            );
        }
    }
}

fn candle(c: &mut Criterion) {
    for layer in &LAYERS {
        let [_, _, _, kernel, stride, groups] = layer.1;
        let f = move |t: &[Tensor]| t[0].conv2d(&t[1], kernel / 2, stride, 1, groups);
        let inputs = layer.inputs();
        let mut group = c.benchmark_group(format!("{}/candle", layer.0));
        measure(&mut group, "forward", &tracked(&inputs, |_| false), &f);
        measure(&mut group, "both", &tracked(&inputs, |_| true), &f);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = kernels, candle
}
criterion_main!(benches);
