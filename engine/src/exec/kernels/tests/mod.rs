//! Kernels against plain references, finite differences, and themselves on other numbers of threads.

mod chain;
mod conv;
mod functions;
mod norm;
mod permute;
mod pooling;
mod quant;
mod rows;

use candle_core::{Device, Result, Shape, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Values in −1..1.
pub(super) fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| rng.random::<f32>() * 2.0 - 1.0)
        .collect()
}

fn tensor(seed: u64, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(random(seed, shape.elem_count()), shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Runs on a rayon pool of its own, as kernels use the pool they find themselves in.
fn with_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
        .install(work)
}

pub(super) fn close(got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (index, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*g) - e).abs() <= tolerance * (1.0 + e.abs()),
            "element {index}: {g}, expected {e}"
        );
    }
}

/// Forward result and gradients of all inputs, for loss Σ r·f with fixed random r.
fn forward_and_gradients(
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Vec<Vec<f32>> {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|t| Var::from_tensor(t).unwrap())
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let r = tensor(99, y.shape().clone());
    let gradients = (&y * &r).unwrap().sum_all().unwrap().backward().unwrap();
    let mut all = vec![values(&y)];
    all.extend(tensors.iter().map(|t| values(gradients.get(t).unwrap())));
    all
}

/// Compares the gradients with central differences at some elements of every input.
fn check_gradients(
    inputs: &[Tensor],
    step: f64,
    tolerance: f64,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let gradients = forward_and_gradients(inputs, &f);
    let loss = |inputs: &[Tensor]| -> f64 {
        let y = f(inputs).unwrap();
        let r = random(99, y.elem_count());
        values(&y)
            .iter()
            .zip(r)
            .map(|(y, r)| f64::from(*y) * f64::from(r))
            .sum()
    };
    for (which, input) in inputs.iter().enumerate() {
        let data = values(input);
        let some = data.len().div_ceil(7);
        for at in (0..data.len()).step_by(some) {
            let moved = |by: f64| {
                let mut data = data.clone();
                data[at] = (f64::from(data[at]) + by) as f32;
                let mut inputs = inputs.to_vec();
                inputs[which] =
                    Tensor::from_vec(data, input.shape().clone(), &Device::Cpu).unwrap();
                loss(&inputs)
            };
            let expected = (moved(step) - moved(-step)) / (2.0 * step);
            let got = f64::from(gradients[which + 1][at]);
            assert!(
                (got - expected).abs() <= tolerance * (1.0 + expected.abs()),
                "input {which}, element {at}: gradient {got}, difference {expected}"
            );
        }
    }
}

/// The same bits on 1, 2 and 3 threads, forward and backward.
fn check_threads(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor> + Sync) {
    let bits = |threads| -> Vec<Vec<u32>> {
        with_threads(threads, || forward_and_gradients(inputs, &f))
            .into_iter()
            .map(|v| v.into_iter().map(f32::to_bits).collect())
            .collect()
    };
    let one = bits(1);
    assert_eq!(one, bits(2));
    assert_eq!(one, bits(3));
}
