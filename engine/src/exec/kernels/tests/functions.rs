use super::*;
use crate::{
    exec::{
        kernels::{
            functions::{apply_by, gradient_by},
            planes::Isa,
        },
        scalar::{Float, Fun},
    },
    graph::UnaryOp,
};

/// Floats of every size and sign, dense where the functions change, and the special ones.
fn arguments() -> Vec<f32> {
    let mut all: Vec<f32> = (0..u32::MAX).step_by(40_009).map(f32::from_bits).collect();
    all.extend((-400_000..400_000).map(|i| i as f32 * 2.9e-5));
    all.extend((-20_000..20_000).map(|i| i as f32 * 6.1e-3));
    all.extend([
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN,
    ]);
    all
}

/// Every function that has vectors.
fn functions() -> Vec<Fun> {
    let op = Fun::Op;
    vec![
        Fun::Relu,
        Fun::Sigmoid,
        Fun::Neg,
        op(UnaryOp::Abs),
        op(UnaryOp::Sqrt),
        op(UnaryOp::Reciprocal),
        op(UnaryOp::Exp),
        op(UnaryOp::Erf),
        op(UnaryOp::Tanh),
        op(UnaryOp::HardSwish),
        Fun::GeluErf,
        Fun::GeluTanh,
        Fun::LeakyRelu(0.1),
        Fun::Clip { lo: -1.5, hi: 6.0 },
        Fun::HardSigmoid {
            alpha: 0.2,
            beta: 0.5,
        },
        Fun::Affine {
            mul: 0.3,
            add: -2.0,
        },
    ]
}

/// What the result may be off by where it is `y` at `x`: the bounds that the module states.
fn bound(fun: Fun, x: f64, y: f64) -> f64 {
    let denormal = 1.5e-45;
    match fun {
        Fun::Op(UnaryOp::Exp) => 2e-7 * y.abs() + denormal,
        Fun::Sigmoid | Fun::Op(UnaryOp::Tanh | UnaryOp::Erf) => 3e-7 * y.abs() + denormal,
        Fun::GeluErf | Fun::GeluTanh => 3e-7 * x.abs().max(1.0),
        _ => 1.3e-7 * y.abs().max(x.abs()).max(1.0),
    }
}

#[test]
fn functions_keep_their_error_bounds_on_all_instruction_sets() {
    let x = arguments();
    for fun in functions() {
        for isa in Isa::all() {
            let y = apply_by(isa, fun, &x);
            for (x, y) in x.iter().zip(y) {
                let wide = f64::from(*x);
                let expected = f64::apply(fun, wide);
                let narrow = expected as f32;
                if expected.is_nan() || narrow.is_infinite() {
                    // Infinities and not-a-numbers as they are; at the edge the largest float is as good.
                    assert!(
                        y.is_nan() == expected.is_nan()
                            && (y == narrow || y.is_nan() || y.abs() > 3.4e38),
                        "{fun:?}({x}) by {isa:?}: {y}, expected {expected}"
                    );
                    continue;
                }
                let error = (f64::from(y) - expected).abs();
                assert!(
                    error <= bound(fun, wide, expected)
                        || (y.is_infinite() && expected.abs() > 3.4e38),
                    "{fun:?}({x}) by {isa:?}: {y}, expected {expected}, off by {error:e}"
                );
            }
        }
    }
}

#[test]
fn slopes_are_those_of_the_functions() {
    // Away from the corners of the piecewise ones.
    let x: Vec<f32> = (-3000..3000).map(|i| i as f32 * 3.003e-3 + 7e-4).collect();
    let g = random(5, x.len());
    for fun in functions() {
        let y: Vec<f32> = x
            .iter()
            .map(|x| f64::apply(fun, f64::from(*x)) as f32)
            .collect();
        for isa in Isa::all() {
            let got = gradient_by(isa, fun, &x, &y, &g);
            for (at, got) in got.iter().enumerate() {
                let h = 1e-5;
                let x = f64::from(x[at]);
                let slope = (f64::apply(fun, x + h) - f64::apply(fun, x - h)) / (2.0 * h);
                let expected = slope * f64::from(g[at]);
                // Where it is steep, differences say little.
                if expected.is_nan() || slope.abs() > 4.0 {
                    continue;
                }
                assert!(
                    (f64::from(*got) - expected).abs() <= 2e-6 * (1.0 + slope.abs()),
                    "{fun:?} at {x} by {isa:?}: {got}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn lengths_that_fill_no_vector_and_many_threads_change_nothing() {
    let x = random(3, 70_003);
    for fun in functions() {
        let all = with_threads(3, || apply_by(Isa::all()[0], fun, &x));
        for n in [0, 1, 7, 15, 16, 17, 33, 70_003] {
            let part = with_threads(1, || apply_by(Isa::all()[0], fun, &x[..n]));
            let same = part
                .iter()
                .zip(&all)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && part.len() == n, "{fun:?} of {n}");
        }
    }
}
