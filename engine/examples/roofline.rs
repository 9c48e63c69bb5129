//! The share of the machine's own peak that each kernel reaches: arithmetic against its best matrix product, traffic against a
//! parallel copy of as much memory, each measured beside the kernel in this run.
//!
//! `RAYON_NUM_THREADS=1 cargo run --release -p limbeck_engine --example roofline [-- WORD]` prints a table (Unix). Times are processor
//! time over threads: with one thread nothing is waited for, and the figures hold on a busy machine too.
#![allow(clippy::print_stdout)]
#![allow(unsafe_code)] // one call to the system's clock

#[path = "../benches/cases/mod.rs"]
mod cases;

use candle_core::{Result, Tensor};
use cases::Work;
use limbeck_engine::exec::{kernels::product, pool};
use rayon::prelude::*;
use std::hint::black_box;

/// Runs of which the fastest counts.
const RUNS: usize = 15;

/// Processor seconds that this process has used so far, all threads together.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one timespec, which is ours.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "the system counts processor time");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Seconds of the run that took the least: processor time over threads, so that what else the machine does hardly counts.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let threads = pool().current_num_threads() as f64;
    let time = |_| {
        let began = processor_seconds();
        run();
        (processor_seconds() - began) / threads
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
