//! The share of the machine's own peak that each kernel reaches: arithmetic against its best matrix product, traffic against a
//! parallel copy of as much memory, each measured beside the kernel in this run.
//!
//! `cargo run --release -p limbeck_engine --example roofline [-- WORD]` prints a table.
#![allow(clippy::print_stdout)]

#[path = "../benches/cases/mod.rs"]
mod cases;

use candle_core::{Result, Tensor};
use cases::Work;
use limbeck_engine::exec::{kernels::product, pool};
use rayon::prelude::*;
use std::{hint::black_box, time::Instant};

/// Runs of which the fastest counts.
const RUNS: usize = 15;

/// Seconds of the fastest run.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let time = |_| {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64()
    };
    (0..RUNS).map(time).fold(f64::INFINITY, f64::min)
}

/// GFLOP/s of a 1024×1024 product.
fn gemm(a: &Tensor, b: &Tensor) -> f64 {
    let seconds = best(|| {
        black_box(product(a, b, None).expect("multiplies"));
    });
    2.0 * 1024f64.powi(3) / seconds / 1e9
}

/// GB/s, read and written, of a copy that moves `bytes` in all, into fresh memory as the kernels' results are.
fn copy(bytes: f64) -> f64 {
    let from = vec![1f32; (bytes / 8.0) as usize];
    let seconds = pool().install(|| {
        best(|| {
            let mut to = vec![0f32; from.len()];
            to.par_chunks_mut(1 << 14)
                .zip(from.par_chunks(1 << 14))
                .for_each(|(to, from)| to.copy_from_slice(from));
            black_box(to);
        })
    });
    8.0 * from.len() as f64 / seconds / 1e9
}

fn main() -> Result<()> {
    let word = std::env::args().nth(1).unwrap_or_default();
    let (a, b) = (cases::random(&[1024, 1024]), cases::random(&[1024, 1024]));
    let (a, b) = (a.as_tensor().detach(), b.as_tensor().detach());
    println!(
        "| kernel | forward | of | share | forward and backward |\n| --- | --- | --- | --- | --- |"
    );
    for case in cases::all() {
        if !case.name.contains(&word) {
            continue;
        }
        let plain: Vec<Tensor> = case.inputs.iter().map(|v| v.as_tensor().detach()).collect();
        let trained: Vec<Tensor> = case.inputs.iter().map(|v| v.as_tensor().clone()).collect();
        let forward = best(|| {
            black_box((case.run)(&plain).expect("runs"));
        });
        let both = best(|| {
            let y = (case.run)(&trained).expect("runs");
            black_box(y.backward().expect("has gradients"));
        });
        // The peak beside each kernel: a noisy neighbour then slows both.
        let (amount, unit, peak) = match case.work {
            Work::Flop(flop) => (flop, "GFLOP/s", gemm(&a, &b)),
            Work::Bytes(bytes) => (bytes, "GB/s", copy(bytes)),
        };
        let rate = amount / forward / 1e9;
        println!(
            "| {} | {:.3} ms, {rate:.1} {unit} | {peak:.0} | {:.0} % | {:.2} ms |",
            case.name,
            forward * 1e3,
            100.0 * rate / peak,
            both * 1e3
        );
    }
    Ok(())
}
