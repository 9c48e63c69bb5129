//! Every differentiable family of operators against central differences.

use super::{super::value::Val, noise, tensor, values};
use crate::{
    exec::{fuse::Step, ops::eval},
    graph::{
        BinaryOp, CoordinateMode, ElementType, NearestMode, Op, PadMode, Padding, ReduceOp,
        ResizeMode, TensorData, UnaryOp, VariadicOp, Window,
    },
};
use candle_core::{Tensor, Var};

/// Checks the gradient of Σ w·op(inputs) in every float input. Integer inputs are constants.
fn check(op: Op, floats: &[(&[usize], Vec<f32>)], rest: &[TensorData]) {
    let step = Step::Op(op.clone());
    let run = |ts: &[Tensor]| -> Tensor {
        let mut inputs: Vec<Option<Val>> = ts.iter().map(|t| Some(Val::f32(t.clone()))).collect();
        inputs.extend(rest.iter().map(|d| Some(Val::from_data(d).unwrap())));
        let out = eval(&step, &inputs, 1).unwrap_or_else(|e| panic!("{op:?}: {}", e.0));
        out[0].tensor().unwrap().clone()
    };
    let vars: Vec<Var> = floats
        .iter()
        .map(|(s, v)| Var::from_tensor(&tensor(v, s)).unwrap())
        .collect();
    let ts: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = run(&ts);
    let w = noise(y.elem_count(), 1.0);
    let loss = (y.flatten_all().unwrap() * tensor(&w, &[w.len()]))
        .unwrap()
        .sum_all()
        .unwrap();
    let grads = loss.backward().unwrap();
    let value = |k: usize, at: usize, d: f32| -> f64 {
        let ts: Vec<Tensor> = floats
            .iter()
            .enumerate()
            .map(|(j, (s, v))| {
                let mut v = v.clone();
                if j == k {
                    v[at] += d;
                }
                tensor(&v, s)
            })
            .collect();
        values(&run(&ts))
            .iter()
            .zip(&w)
            .map(|(y, w)| f64::from(*y) * f64::from(*w))
            .sum()
    };
    let h = 4e-3f32;
    for (k, (_, v)) in floats.iter().enumerate() {
        let g = grads
            .get(vars[k].as_tensor())
            .map(values)
            .unwrap_or_else(|| vec![0.0; v.len()]);
        for (at, &analytic) in g.iter().enumerate() {
            let numeric = (value(k, at, h) - value(k, at, -h)) / (2.0 * f64::from(h));
            let analytic = f64::from(analytic);
            assert!(
                (numeric - analytic).abs() <= 6e-3 * (1.0 + numeric.abs().max(analytic.abs())),
                "{op:?}: input {k} element {at}: numeric {numeric}, analytic {analytic}"
            );
        }
    }
}

/// Away from kinks: no value within a difference step of one.
fn away(n: usize, scale: f32, kinks: &[f32]) -> Vec<f32> {
    noise(n, scale)
        .into_iter()
        .map(|mut v| {
            for k in kinks {
                if (v - k).abs() < 0.02 {
                    v += 0.05;
                }
            }
            v
        })
        .collect()
}

fn window(kernel: &[usize], strides: &[usize], pads: &[usize]) -> Window {
    Window {
        kernel: kernel.to_vec(),
        strides: strides.to_vec(),
        dilations: vec![1; kernel.len()],
        padding: Padding::Explicit(pads.to_vec()),
    }
}

#[test]
fn unary_functions() {
    use UnaryOp::*;
    let x = away(12, 2.0, &[0.0]);
    for u in [
        Abs, Neg, Exp, Erf, Sin, Cos, Atan, Sinh, Cosh, Asinh, Relu, Sigmoid, Tanh, Softplus,
        Softsign, Mish,
    ] {
        check(Op::Unary(u), &[(&[12], x.clone())], &[]);
    }
    let positive: Vec<f32> = x.iter().map(|v| v.abs() + 0.5).collect();
    for u in [Sqrt, Log, Reciprocal] {
        check(Op::Unary(u), &[(&[12], positive.clone())], &[]);
    }
    let small: Vec<f32> = x.iter().map(|v| v * 0.4).collect();
    for u in [Tan, Asin, Acos, Atanh] {
        check(Op::Unary(u), &[(&[12], small.clone())], &[]);
    }
    let above: Vec<f32> = x.iter().map(|v| v.abs() + 1.5).collect();
    check(Op::Unary(Acosh), &[(&[12], above)], &[]);
    let wide = away(12, 5.0, &[-3.0, 3.0]);
    check(Op::Unary(HardSwish), &[(&[12], wide)], &[]);
}

#[test]
fn parametric_activations() {
    let x = away(12, 3.0, &[0.0, -2.5, 2.5, 1.0]);
    let at = |op| check(op, &[(&[3, 4], x.clone())], &[]);
    at(Op::LeakyRelu { alpha: 0.1 });
    at(Op::Elu { alpha: 1.3 });
    at(Op::Celu { alpha: 0.7 });
    at(Op::Selu {
        alpha: 1.67,
        gamma: 1.05,
    });
    at(Op::ThresholdedRelu { alpha: 1.0 });
    at(Op::HardSigmoid {
        alpha: 0.2,
        beta: 0.5,
    });
    at(Op::Gelu { tanh: false });
    at(Op::Gelu { tanh: true });
    let bounds = [TensorData::scalar(-1.0), TensorData::scalar(1.5)];
    check(Op::Clip, &[(&[12], away(12, 3.0, &[-1.0, 1.5]))], &bounds);
}

#[test]
fn broadcast_arithmetic() {
    let a = away(24, 2.0, &[0.0]);
    let b: Vec<f32> = noise(3, 1.0).iter().map(|v| v + 1.7).collect();
    for op in [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div] {
        check(
            Op::Binary(op),
            &[(&[2, 3, 4], a.clone()), (&[3, 1], b.clone())],
            &[],
        );
        check(
            Op::Binary(op),
            &[(&[3, 1], b.clone()), (&[2, 1, 4], b_like(8))],
            &[],
        );
    }
    let base: Vec<f32> = a.iter().map(|v| v.abs() + 0.4).collect();
    check(
        Op::Binary(BinaryOp::Pow),
        &[(&[2, 3, 4], base), (&[1], vec![1.7])],
        &[],
    );
    check(
        Op::Binary(BinaryOp::PRelu),
        &[(&[2, 3, 4], a.clone()), (&[3, 1], b)],
        &[],
    );
    for op in [
        VariadicOp::Sum,
        VariadicOp::Mean,
        VariadicOp::Max,
        VariadicOp::Min,
    ] {
        let c: Vec<f32> = a.iter().rev().copied().collect();
        check(
            Op::Variadic(op),
            &[(&[24], a.clone()), (&[24], c), (&[1], vec![0.3])],
            &[],
        );
    }
}

fn b_like(n: usize) -> Vec<f32> {
    noise(n, 1.0).iter().map(|v| v * 0.5 + 1.3).collect()
}

#[test]
fn linear_layers() {
    check(
        Op::Conv {
            window: window(&[3, 3], &[2, 1], &[1, 0, 1, 1]),
            group: 2,
        },
        &[
            (&[2, 4, 5, 4], noise(160, 1.0)),
            (&[6, 2, 3, 3], noise(108, 0.5)),
            (&[6], noise(6, 1.0)),
        ],
        &[],
    );
    check(
        Op::Conv {
            window: window(&[3], &[1], &[1, 1]),
            group: 1,
        },
        &[(&[1, 2, 6], noise(12, 1.0)), (&[3, 2, 3], noise(18, 0.5))],
        &[],
    );
    check(
        Op::ConvTranspose {
            window: window(&[3], &[2], &[1, 0]),
            group: 1,
            output_padding: vec![1],
            output_shape: None,
        },
        &[(&[1, 2, 4], noise(8, 1.0)), (&[2, 3, 3], noise(18, 0.5))],
        &[],
    );
    check(
        Op::Gemm {
            alpha: 0.5,
            beta: 2.0,
            trans_a: true,
            trans_b: true,
        },
        &[
            (&[4, 3], noise(12, 1.0)),
            (&[5, 4], noise(20, 1.0)),
            (&[5], noise(5, 1.0)),
        ],
        &[],
    );
    check(
        Op::MatMul,
        &[(&[2, 3, 4], noise(24, 1.0)), (&[4, 2], noise(8, 1.0))],
        &[],
    );
    check(
        Op::MatMul,
        &[
            (&[2, 1, 3, 4], noise(24, 1.0)),
            (&[3, 4, 2], noise(24, 1.0)),
        ],
        &[],
    );
    check(
        Op::MatMul,
        &[(&[4], noise(4, 1.0)), (&[2, 4, 3], noise(24, 1.0))],
        &[],
    );
}

#[test]
fn normalisations_and_softmax() {
    let x = noise(24, 2.0);
    for axis in [0, 1, -1] {
        check(
            Op::Softmax {
                axis,
                flatten: false,
            },
            &[(&[2, 3, 4], x.clone())],
            &[],
        );
        check(
            Op::LogSoftmax {
                axis,
                flatten: false,
            },
            &[(&[2, 3, 4], x.clone())],
            &[],
        );
    }
    check(
        Op::Softmax {
            axis: 1,
            flatten: true,
        },
        &[(&[2, 3, 4], x.clone())],
        &[],
    );
    check(
        Op::LayerNormalization {
            axis: -1,
            epsilon: 1e-5,
        },
        &[
            (&[2, 3, 4], x.clone()),
            (&[4], b_like(4)),
            (&[4], noise(4, 1.0)),
        ],
        &[],
    );
    check(
        Op::InstanceNormalization { epsilon: 1e-5 },
        &[
            (&[2, 3, 4], x.clone()),
            (&[3], b_like(3)),
            (&[3], noise(3, 1.0)),
        ],
        &[],
    );
    let step = Op::BatchNormalization { epsilon: 1e-5 };
    let stats = [
        TensorData::from_f32(&[3], &[0.1, -0.2, 0.3]),
        TensorData::from_f32(&[3], &[1.0, 0.5, 2.0]),
    ];
    check(
        step,
        &[(&[2, 3, 4], x), (&[3], b_like(3)), (&[3], noise(3, 1.0))],
        &stats,
    );
}

#[test]
fn reductions() {
    use ReduceOp::*;
    let x: Vec<f32> = noise(24, 1.0).iter().map(|v| v.abs() + 0.3).collect();
    for op in [
        Sum, Mean, Max, Min, Prod, L1, L2, LogSum, LogSumExp, SumSquare,
    ] {
        let op = Op::Reduce {
            op,
            keep_dims: false,
            noop_with_empty_axes: false,
        };
        check(
            op,
            &[(&[2, 3, 4], x.clone())],
            &[TensorData::from_i64(&[2], &[0, -1])],
        );
    }
    check(Op::GlobalAveragePool, &[(&[1, 2, 3, 4], x.clone())], &[]);
    check(Op::GlobalMaxPool, &[(&[1, 2, 3, 4], x)], &[]);
}

#[test]
fn moving_elements() {
    let x = noise(24, 1.0);
    let at: &[(&[usize], Vec<f32>)] = &[(&[2, 3, 4], x.clone())];
    let ints = |v: &[i64]| TensorData::from_i64(&[v.len()], v);
    check(
        Op::Transpose {
            perm: Some(vec![2, 0, 1]),
        },
        at,
        &[],
    );
    check(Op::Reshape { allow_zero: false }, at, &[ints(&[4, -1])]);
    check(Op::Flatten { axis: 2 }, at, &[]);
    check(
        Op::Slice,
        at,
        &[ints(&[3, 0]), ints(&[-9, 2]), ints(&[2, 0]), ints(&[-2, 1])],
    );
    check(
        Op::Gather { axis: 1 },
        at,
        &[TensorData::from_i64(&[2, 2], &[0, -1, 0, 1])],
    );
    check(Op::Expand, &[(&[3, 1], noise(3, 1.0))], &[ints(&[2, 3, 4])]);
    check(Op::Tile, at, &[ints(&[1, 2, 1])]);
    check(
        Op::Concat { axis: 1 },
        &[(&[2, 3, 4], x.clone()), (&[2, 1, 4], noise(8, 1.0))],
        &[],
    );
    for mode in [
        PadMode::Constant,
        PadMode::Reflect,
        PadMode::Edge,
        PadMode::Wrap,
    ] {
        check(Op::Pad { mode }, at, &[ints(&[0, 1, 2, 0, 1, -1])]);
    }
    check(
        Op::Split {
            axis: 2,
            num_outputs: Some(1),
        },
        at,
        &[],
    );
    check(
        Op::Cast {
            to: ElementType::F32,
        },
        at,
        &[],
    );
}

#[test]
fn pooling_with_overlap() {
    let x: Vec<f32> = (0..48).map(|k| ((k * 29) % 48) as f32 * 0.1).collect();
    let at: &[(&[usize], Vec<f32>)] = &[(&[1, 2, 4, 6], x)];
    check(
        Op::MaxPool {
            window: window(&[3, 3], &[2, 2], &[1, 1, 1, 1]),
            ceil: false,
        },
        at,
        &[],
    );
    check(
        Op::AveragePool {
            window: window(&[3, 2], &[1, 2], &[1, 0, 1, 1]),
            ceil: true,
            count_include_pad: false,
        },
        at,
        &[],
    );
}

#[test]
fn resizing() {
    let x = noise(24, 1.0);
    for (mode, coordinates) in [
        (ResizeMode::Nearest, CoordinateMode::Asymmetric),
        (ResizeMode::Linear, CoordinateMode::HalfPixel),
        (ResizeMode::Linear, CoordinateMode::AlignCorners),
        (ResizeMode::Cubic, CoordinateMode::PytorchHalfPixel),
    ] {
        let op = Op::Resize {
            mode,
            coordinates,
            nearest: NearestMode::Floor,
            cubic_coeff: -0.75,
            exclude_outside: false,
            extrapolation: 0.0,
            antialias: false,
            axes: None,
            keep_aspect: None,
        };
        let empty = TensorData::from_f32(&[0], &[]);
        let sizes = TensorData::from_i64(&[4], &[1, 2, 7, 2]);
        check(
            op,
            &[(&[1, 2, 3, 4], x.clone())],
            &[empty.clone(), empty, sizes],
        );
    }
}

#[test]
fn matmul_gives_the_same_bits_for_any_number_of_threads() {
    let (a, b) = (noise(257 * 300, 1.0), noise(300 * 129, 1.0));
    let bits = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let a = Var::from_tensor(&tensor(&a, &[257, 300])).unwrap();
            let inputs = [
                Some(Val::f32(a.as_tensor().clone())),
                Some(Val::f32(tensor(&b, &[300, 129]))),
            ];
            let y = eval(&Step::Op(Op::MatMul), &inputs, 1).unwrap().remove(0);
            let y = y.tensor().unwrap().clone();
            let g = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let all = [values(&y), values(g.get(&a).unwrap())].concat();
            all.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        })
    };
    let one = bits(1);
    assert_eq!(one, bits(2));
    assert_eq!(one, bits(5));
}
