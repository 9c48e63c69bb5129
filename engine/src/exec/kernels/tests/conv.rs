use super::*;
use crate::exec::kernels::{Conv2dGeometry, conv_transpose2d, conv2d};
use proptest::prelude::*;

/// Sizes of a case: n, channels in and out of one group, h, w, kh, kw.
#[derive(Clone, Debug)]
struct Case {
    n: usize,
    cg: usize,
    og: usize,
    h: usize,
    w: usize,
    kh: usize,
    kw: usize,
    g: Conv2dGeometry,
    bias: bool,
    output_padding: (usize, usize),
}

fn cases() -> impl Strategy<Value = Case> {
    (
        (1usize..4, 1usize..4, 1usize..4, 1usize..5, any::<bool>()),
        (1usize..12, 1usize..40, 1usize..5, 1usize..6),
        (1usize..4, 1usize..4, 1usize..3, 1usize..4),
        (0usize..4, 0usize..4, 0usize..4, 0usize..4),
        (0usize..3, 0usize..3),
    )
        .prop_map(
            |((n, cg, og, groups, bias), (h, w, kh, kw), (sy, sx, dy, dx), pad, extra)| Case {
                n,
                cg,
                og,
                h,
                w,
                kh,
                kw,
                g: Conv2dGeometry {
                    stride: (sy, sx),
                    dilation: (dy, dx),
                    pad,
                    groups,
                },
                bias,
                output_padding: (extra.0.min(sy.max(dy) - 1), extra.1.min(sx.max(dx) - 1)),
            },
        )
}

/// Calls `f(output index, input index, weight index)` for every product of a convolution.
fn products(
    case: &Case,
    (h, w): (usize, usize),
    (ho, wo): (usize, usize),
    mut f: impl FnMut(usize, usize, usize),
) {
    let Case {
        n,
        cg,
        og,
        kh,
        kw,
        g,
        ..
    } = *case;
    for image in 0..n {
        for o in 0..og * g.groups {
            for oy in 0..ho {
                for ox in 0..wo {
                    for c in 0..cg {
                        for ky in 0..kh {
                            for kx in 0..kw {
                                let y = (oy * g.stride.0 + ky * g.dilation.0) as isize
                                    - g.pad.0 as isize;
                                let x = (ox * g.stride.1 + kx * g.dilation.1) as isize
                                    - g.pad.1 as isize;
                                if y < 0 || x < 0 || y >= h as isize || x >= w as isize {
                                    continue;
                                }
                                let channel = image * cg * g.groups + o / og * cg + c;
                                f(
                                    ((image * og * g.groups + o) * ho + oy) * wo + ox,
                                    (channel * h + y as usize) * w + x as usize,
                                    ((o * cg + c) * kh + ky) * kw + kx,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// (y, dx, dw, db) of a convolution by the definition, for the loss Σ r·y.
fn reference(case: &Case, inputs: &[Tensor], ho: usize, wo: usize) -> Vec<Vec<f64>> {
    let (x, w) = (wide(&values(&inputs[0])), wide(&values(&inputs[1])));
    let o = case.og * case.g.groups;
    let mut y = vec![0.0; case.n * o * ho * wo];
    let r = wide(&random(99, y.len()));
    let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; o]);
    products(case, (case.h, case.w), (ho, wo), |at, from, by| {
        y[at] += x[from] * w[by];
        dx[from] += r[at] * w[by];
        dw[by] += r[at] * x[from];
    });
    for (plane, (y, r)) in y.chunks_mut(ho * wo).zip(r.chunks(ho * wo)).enumerate() {
        if let Some(bias) = inputs.get(2) {
            let bias = f64::from(values(bias)[plane % o]);
            y.iter_mut().for_each(|y| *y += bias);
        }
        db[plane % o] += r.iter().sum::<f64>();
    }
    let mut all = vec![y, dx, dw];
    if inputs.len() > 2 {
        all.push(db);
    }
    all
}

fn run(case: &Case, inputs: &[Tensor]) -> Vec<Vec<f32>> {
    with_threads(2, || {
        forward_and_gradients(inputs, |t| conv2d(&t[0], &t[1], t.get(2), case.g))
    })
}

fn inputs(case: &Case) -> Vec<Tensor> {
    let groups = case.g.groups;
    let mut inputs = vec![
        tensor(1, (case.n, case.cg * groups, case.h, case.w)),
        tensor(2, (case.og * groups, case.cg, case.kh, case.kw)),
    ];
    if case.bias {
        inputs.push(tensor(3, case.og * groups));
    }
    inputs
}

fn check(case: &Case) {
    let extent = |e: usize, p: usize, k: usize, s: usize, d: usize| {
        (e + p)
            .checked_sub(d * (k - 1) + 1)
            .map(|room| room / s + 1)
    };
    let (g, inputs) = (&case.g, inputs(case));
    let ho = extent(case.h, g.pad.0 + g.pad.2, case.kh, g.stride.0, g.dilation.0);
    let wo = extent(case.w, g.pad.1 + g.pad.3, case.kw, g.stride.1, g.dilation.1);
    let (Some(ho), Some(wo)) = (ho, wo) else {
        let message = conv2d(&inputs[0], &inputs[1], inputs.get(2), case.g)
            .unwrap_err()
            .to_string();
        assert!(message.contains("doesn't fit"), "{message}");
        return;
    };
    for (got, expected) in run(case, &inputs)
        .iter()
        .zip(reference(case, &inputs, ho, wo))
    {
        close(got, &expected, 2e-4);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn conv2d_is_what_the_definition_says(case in cases()) {
        check(&case);
    }

    #[test]
    fn transposed_is_the_gradient_of_the_convolution(case in cases()) {
        // A case read the other way: x has the groups' og channels, the result cg.
        let (g, groups) = (case.g, case.g.groups);
        let mut inputs = vec![
            tensor(1, (case.n, case.og * groups, case.h, case.w)),
            tensor(2, (case.og * groups, case.cg, case.kh, case.kw)),
        ];
        if case.bias {
            inputs.push(tensor(3, case.cg * groups));
        }
        let full = |e: usize, k: usize, s: usize, d: usize, extra: usize, pads: usize| {
            ((e - 1) * s + d * (k - 1) + 1 + extra).checked_sub(pads).filter(|e| *e > 0)
        };
        let (Some(h), Some(w)) = (
            full(case.h, case.kh, g.stride.0, g.dilation.0, case.output_padding.0, g.pad.0 + g.pad.2),
            full(case.w, case.kw, g.stride.1, g.dilation.1, case.output_padding.1, g.pad.1 + g.pad.3),
        ) else {
            prop_assert!(conv_transpose2d(&inputs[0], &inputs[1], None, g, case.output_padding).is_err());
            return Ok(());
        };
        let got = with_threads(2, || {
            forward_and_gradients(&inputs, |t| {
                conv_transpose2d(&t[0], &t[1], t.get(2), g, case.output_padding)
            })
        });
        let (x, weight) = (wide(&values(&inputs[0])), wide(&values(&inputs[1])));
        let mut y = vec![0.0; case.n * case.cg * groups * h * w];
        let r = wide(&random(99, y.len()));
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
        products(&case, (h, w), (case.h, case.w), |from, at, by| {
            y[at] += x[from] * weight[by];
            dx[from] += r[at] * weight[by];
            dw[by] += r[at] * x[from];
        });
        if case.bias {
            let bias = values(&inputs[2]);
            for (plane, y) in y.chunks_mut(h * w).enumerate() {
                y.iter_mut().for_each(|y| *y += f64::from(bias[plane % bias.len()]));
            }
        }
        close(&got[0], &y, 2e-4);
        close(&got[1], &dx, 2e-4);
        close(&got[2], &dw, 2e-4);
    }
}

fn geometry(stride: usize, pad: usize, groups: usize) -> Conv2dGeometry {
    Conv2dGeometry {
        stride: (stride, stride),
        dilation: (1, 1),
        pad: (pad, pad, pad, pad),
        groups,
    }
}

/// The shapes networks are made of, large enough for several blocks of rows.
#[test]
fn common_layers_agree_with_the_definition() {
    for (cg, og, h, k, stride, pad, groups) in [
        (16, 32, 28, 3, 1, 1, 1),
        (32, 16, 28, 1, 1, 0, 1),
        (16, 32, 28, 1, 2, 0, 1),
        (16, 32, 28, 3, 2, 1, 1),
        (1, 1, 28, 3, 1, 1, 12),
        (1, 1, 28, 5, 2, 2, 12),
        (1, 2, 15, 3, 2, 1, 12),
        (4, 3, 14, 3, 1, 1, 8),
        (48, 8, 60, 3, 1, 1, 1),
        (3, 8, 56, 7, 2, 3, 1),
    ] {
        check(&Case {
            n: 2,
            cg,
            og,
            h,
            w: h,
            kh: k,
            kw: k,
            g: geometry(stride, pad, groups),
            bias: true,
            output_padding: (0, 0),
        });
    }
}

#[test]
fn gradients_agree_with_differences() {
    for groups in [1, 2, 6] {
        let inputs = [
            tensor(1, (2, 6, 9, 7)),
            tensor(2, (12, 6 / groups, 3, 3)),
            tensor(3, 12),
        ];
        // The loss is linear in every element, so a large step costs nothing and beats f32's rounding.
        with_threads(1, || {
            check_gradients(&inputs, 1.0, 2e-3, |t| {
                conv2d(&t[0], &t[1], t.get(2), geometry(2, 1, groups))
            });
            let transposed = [
                inputs[0].clone(),
                tensor(4, (6, 2, 3, 2)),
                tensor(5, 2 * groups),
            ];
            check_gradients(&transposed, 1.0, 2e-3, |t| {
                conv_transpose2d(&t[0], &t[1], t.get(2), geometry(2, 1, groups), (1, 0))
            });
        });
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    for (n, groups, k) in [
        (19, 1, 3),
        (2, 1, 3),
        (5, 1, 1),
        (5, 4, 3),
        (7, 8, 3),
        (33, 2, 3),
    ] {
        let inputs = [
            tensor(1, (n, 8, 13, 11)),
            tensor(2, (40, 8 / groups, k, k)),
            tensor(3, 40),
        ];
        check_threads(&inputs, |t| {
            conv2d(&t[0], &t[1], t.get(2), geometry(1, 1, groups))
        });
        let transposed = [inputs[0].clone(), tensor(4, (8, 3, k, k))];
        check_threads(&transposed, |t| {
            conv_transpose2d(&t[0], &t[1], None, geometry(2, 0, groups), (0, 0))
        });
    }
}

#[test]
fn layouts_are_honoured() {
    let case = Case {
        n: 2,
        cg: 3,
        og: 4,
        h: 8,
        w: 6,
        kh: 3,
        kw: 2,
        g: geometry(1, 1, 1),
        bias: false,
        output_padding: (0, 0),
    };
    let plain = inputs(&case);
    let expected = run(&case, &plain);
    // Transposed in memory, and a slice that begins within its storage.
    let x = plain[0].transpose(1, 3).unwrap().contiguous().unwrap();
    let x = x.transpose(1, 3).unwrap();
    let w = Tensor::cat(&[&tensor(8, (1, 3, 3, 2)), &plain[1]], 0).unwrap();
    let w = w.narrow(0, 1, 4).unwrap();
    assert!(!x.is_contiguous());
    let got = with_threads(2, || conv2d(&x, &w, None, case.g).unwrap());
    assert_eq!(values(&got), expected[0]);
    // A gradient that arrives broadcast.
    let x = Var::from_tensor(&plain[0]).unwrap();
    let gradients = with_threads(2, || {
        let y = conv2d(&x, &w, None, case.g).unwrap();
        y.sum_all().unwrap().backward().unwrap()
    });
    let mut dx = vec![0.0; plain[0].elem_count()];
    let weight = wide(&values(&plain[1]));
    products(&case, (8, 6), (8, 7), |_, from, by| dx[from] += weight[by]);
    close(&values(gradients.get(&x).unwrap()), &dx, 1e-4);
}

#[test]
fn wrong_arguments_are_errors() {
    let x = tensor(1, (1, 4, 5, 5));
    let message = |w: &Tensor, b: Option<&Tensor>, g| conv2d(&x, w, b, g).unwrap_err().to_string();
    let w = tensor(2, (4, 3, 3, 3));
    assert!(message(&w, None, geometry(1, 0, 1)).contains("groups"));
    let w = tensor(2, (4, 4, 3, 3));
    assert!(message(&w, None, geometry(0, 0, 1)).contains("at least 1"));
    assert!(message(&w, None, geometry(1, usize::MAX / 2, 1)).contains("fit"));
    assert!(message(&w, None, geometry(1, 1 << 20, 1)).contains("more than"));
    assert!(message(&w, Some(&tensor(3, 5)), geometry(1, 0, 1)).contains("bias"));
    let double = w.to_dtype(candle_core::DType::F64).unwrap();
    assert!(message(&double, None, geometry(1, 0, 1)).contains("f32"));
    let flat = tensor(2, (4, 4));
    assert!(message(&flat, None, geometry(1, 0, 1)).contains("rank-4"));
}
