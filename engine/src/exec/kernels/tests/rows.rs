use super::*;
use crate::exec::kernels::{
    planes::Isa,
    rows::{layer_norm_by, layer_norm_in_place, softmax_by, softmax_in_place},
};
use proptest::prelude::*;

fn softmax_reference(x: &[f32], n: usize, log: bool) -> Vec<f64> {
    x.chunks(n)
        .flat_map(|row| {
            let top = row.iter().fold(f64::MIN, |a, x| a.max(f64::from(*x)));
            let sum: f64 = row.iter().map(|x| (f64::from(*x) - top).exp()).sum();
            row.iter()
                .map(|x| {
                    let y = f64::from(*x) - top - sum.ln();
                    if log { y } else { y.exp() }
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

fn norm_reference(x: &[f32], scale: &[f32], shift: &[f32], epsilon: f64) -> Vec<f64> {
    let n = scale.len();
    x.chunks(n)
        .flat_map(|row| {
            let wide: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let mean = wide.iter().sum::<f64>() / n as f64;
            let variance = wide.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            wide.iter()
                .zip(scale.iter().zip(shift))
                .map(|(x, (s, t))| {
                    (x - mean) / (variance + epsilon).sqrt() * f64::from(*s) + f64::from(*t)
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

fn own(t: &Tensor) -> Tensor {
    Tensor::from_vec(values(t), t.shape().clone(), &Device::Cpu).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn rows_of_any_width_follow_the_formulas(rows in 1..40usize, n in 1..150usize, seed in 0..1000u64) {
        let x = (tensor(seed, (rows, n)) * 8.0).unwrap();
        let (scale, shift) = (tensor(seed + 1, n), tensor(seed + 2, n));
        let plain = values(&x);
        for isa in Isa::all() {
            for log in [false, true] {
                let y = softmax_by(isa, &x, log).unwrap();
                close(&values(&y), &softmax_reference(&plain, n, log), 1e-6);
            }
            let y = layer_norm_by(isa, &x, &scale, &shift, 1e-5).unwrap();
            let expected = norm_reference(&plain, &values(&scale), &values(&shift), 1e-5);
            close(&values(&y), &expected, 1e-5);
        }
        // In place: the same bits.
        for log in [false, true] {
            let place = own(&x);
            softmax_in_place(&place, log).unwrap();
            prop_assert_eq!(values(&place), values(&softmax_by(Isa::all()[0], &x, log).unwrap()));
        }
        let place = own(&x);
        layer_norm_in_place(&place, &scale, &shift, 1e-5).unwrap();
        let apart = layer_norm_by(Isa::all()[0], &x, &scale, &shift, 1e-5).unwrap();
        prop_assert_eq!(values(&place), values(&apart));
    }
}

#[test]
fn long_rows_keep_their_precision() {
    // More than a block of sums, far from zero.
    let x = (tensor(4, (3, 30_011)) + 50.0).unwrap();
    let (scale, shift) = (tensor(5, 30_011), tensor(6, 30_011));
    let expected = norm_reference(&values(&x), &values(&scale), &values(&shift), 1e-5);
    for isa in Isa::all() {
        let y = layer_norm_by(isa, &x, &scale, &shift, 1e-5).unwrap();
        close(&values(&y), &expected, 2e-5);
        let y = softmax_by(isa, &x, false).unwrap();
        close(
            &values(&y),
            &softmax_reference(&values(&x), 30_011, false),
            1e-7,
        );
    }
}

#[test]
fn gradients_are_differences_on_all_instruction_sets_and_numbers_of_threads() {
    let x = (tensor(1, (9, 37)) * 3.0).unwrap();
    for isa in Isa::all() {
        for log in [false, true] {
            let f = |t: &[Tensor]| softmax_by(isa, &t[0], log);
            check_gradients(std::slice::from_ref(&x), 1e-2, 2e-3, f);
        }
        let inputs = [x.clone(), tensor(2, 37), tensor(3, 37)];
        let f = |t: &[Tensor]| layer_norm_by(isa, &t[0], &t[1], &t[2], 1e-3);
        check_gradients(&inputs, 1e-2, 2e-3, f);
    }
    let inputs = [tensor(1, (700, 130)), tensor(2, 130), tensor(3, 130)];
    check_threads(&inputs, |t| {
        layer_norm_by(Isa::all()[0], &t[0], &t[1], &t[2], 1e-3)
    });
    check_threads(&inputs[..1], |t| softmax_by(Isa::all()[0], &t[0], false));
}

#[test]
fn not_a_number_and_infinity_go_where_they_should() {
    let nan = f32::NAN;
    let x = Tensor::new(
        &[[1.0, nan, 2.0], [f32::NEG_INFINITY, 0.0, 0.0]],
        &Device::Cpu,
    )
    .unwrap();
    for isa in Isa::all() {
        let y = values(&softmax_by(isa, &x, false).unwrap());
        assert!(y[..3].iter().all(|v| v.is_nan()), "{y:?}");
        assert_eq!(y[3..], [0.0, 0.5, 0.5]);
    }
    let wrong = layer_norm_by(
        Isa::all()[0],
        &tensor(1, (2, 3)),
        &tensor(1, 4),
        &tensor(1, 3),
        1e-5,
    );
    assert!(wrong.unwrap_err().to_string().contains("rows of 3"));
}
