//! Every kernel: forward, and forward with backward (all gradients; for convolutions those of the input and of the weight alone as well).
//! Convolutions stand beside candle's own.
//! `cargo bench -p limbeck_engine --bench kernels [-- WORD]`; compare ratios within one run, the machine's mood changes between runs.

mod cases;

use candle_core::{Result, Tensor};
use cases::{LAYERS, Work};
use criterion::{Criterion, criterion_group, criterion_main};
use std::{hint::black_box, time::Duration};

/// Times `f` on the inputs, the first ones with gradients.
fn measure(
    c: &mut Criterion,
    name: &str,
    inputs: &[Tensor],
    f: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) {
    let back = inputs.iter().any(Tensor::track_op);
    c.bench_function(name, |b| {
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
        let name = &case.name;
        let f = &case.run;
        measure(
            c,
            &format!("{name}/forward"),
            &tracked(&case.inputs, |_| false),
            f,
        );
        measure(
            c,
            &format!("{name}/both"),
            &tracked(&case.inputs, |_| true),
            f,
        );
        if matches!(case.work, Work::Flop(_)) {
            measure(
                c,
                &format!("{name}/forward and data gradient"),
                &tracked(&case.inputs, |i| i == 0),
                f,
            );
            measure(
                c,
                &format!("{name}/forward and weight gradient"),
                &tracked(&case.inputs, |i| i == 1),
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
        measure(
            c,
            &format!("{}/candle/forward", layer.0),
            &tracked(&inputs, |_| false),
            &f,
        );
        measure(
            c,
            &format!("{}/candle/both", layer.0),
            &tracked(&inputs, |_| true),
            &f,
        );
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
