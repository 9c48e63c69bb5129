//! QuantizeLinear and DequantizeLinear apart, fused, and in training.

use super::{Case, close, f, noise, tensor, values};
use crate::{
    exec::{CancelToken, Mode, NoTaps, Program, StepSizes},
    graph::{ElementType, Graph, Op, TensorData, ValueId},
};
use candle_core::Tensor;

const Q: Op = Op::QuantizeLinear {
    axis: 1,
    block: 0,
    to: ElementType::U8,
};

fn as_type(e: ElementType, shape: &[usize], v: &[i64]) -> TensorData {
    TensorData::from_i64_as(e, shape, v)
}

#[test]
fn rounds_half_to_even_and_saturates() {
    let x = f(&[8], &[0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0, f32::NAN]);
    let (_, v) = Case::new()
        .feed(x)
        .constant(TensorData::scalar(1.0))
        .constant(as_type(ElementType::I8, &[], &[0]))
        .i64(Q);
    assert_eq!(v, [0, 2, 2, 0, -2, 127, -128, 0]);
}

#[test]
fn every_integer_type_round_trips_its_range() {
    for e in [
        ElementType::I4,
        ElementType::U4,
        ElementType::I8,
        ElementType::U8,
        ElementType::I16,
        ElementType::U16,
    ] {
        let (lo, hi) = e.integer_range().unwrap();
        let all: Vec<i64> = (lo..=hi)
            .step_by(((hi - lo) / 255).max(1) as usize)
            .collect();
        let zp = as_type(e, &[], &[(lo + hi) / 2]);
        let (_, x) = Case::new()
            .feed(as_type(e, &[all.len()], &all))
            .constant(TensorData::scalar(0.03))
            .constant(zp.clone())
            .f32(Op::DequantizeLinear { axis: 1, block: 0 });
        let (_, q) = Case::new()
            .feed(f(&[x.len()], &x))
            .constant(TensorData::scalar(0.03))
            .constant(zp)
            .i64(Q);
        assert_eq!(q, all, "{e}");
    }
}

/// x → Q → DQ → y, the scale per tensor, per axis or blocked.
fn pair(
    x: &TensorData,
    scale: TensorData,
    zp: TensorData,
    axis: i64,
    block: usize,
    names: bool,
) -> Graph {
    let mut g = Graph::default();
    let e = zp.element;
    let input = g.add_value("x", Some(ElementType::F32), None);
    g.inputs.push(input);
    let _ = x;
    let s = g.add_constant("scale", scale.clone());
    let z = g.add_constant("zp", zp.clone());
    let (s2, z2) = if names {
        (g.add_constant("scale2", scale), g.add_constant("zp2", zp))
    } else {
        (s, z)
    };
    let q = g.add_value("q", Some(e), None);
    let y = g.add_value("y", None, None);
    let some = |v: &[ValueId]| v.iter().map(|&v| Some(v)).collect::<Vec<_>>();
    g.add_node(
        "q",
        Op::QuantizeLinear { axis, block, to: e },
        some(&[input, s, z]),
        some(&[q]),
    );
    g.add_node(
        "dq",
        Op::DequantizeLinear { axis, block },
        some(&[q, s2, z2]),
        some(&[y]),
    );
    g.outputs.push(y);
    g
}

fn run(g: &Graph, x: &Tensor, mode: Mode) -> Vec<f32> {
    let p = Program::compile(g, mode).unwrap();
    values(
        &p.run(
            std::slice::from_ref(x),
            &mut NoTaps,
            &CancelToken::default(),
        )
        .unwrap()[0],
    )
}

#[test]
fn the_fused_pair_gives_the_bits_of_the_two_steps() {
    let x = f(&[3, 8], &noise(24, 3.0));
    let i8s = |n: &[usize], v: &[i64]| as_type(ElementType::I8, n, v);
    for (scale, zp, axis, block) in [
        (f(&[], &[0.017]), i8s(&[], &[3]), 1, 0),
        (f(&[3], &[0.01, 0.02, 0.05]), i8s(&[3], &[0, -7, 9]), 0, 0),
        (
            f(
                &[8],
                &noise(8, 0.1)
                    .iter()
                    .map(|v| v.abs() + 0.01)
                    .collect::<Vec<_>>(),
            ),
            i8s(&[8], &[0; 8]),
            -1,
            0,
        ),
        (
            f(&[3, 2], &[0.01, 0.02, 0.03, 0.04, 0.05, 0.06]),
            i8s(&[3, 2], &[0, 1, 2, 3, 4, 5]),
            1,
            4,
        ),
        (f(&[2, 8], &[0.03; 16]), i8s(&[2, 8], &[1; 16]), 0, 2),
    ] {
        let (_, q) = {
            let c = Case::new()
                .feed(x.clone())
                .constant(scale.clone())
                .constant(zp.clone());
            c.i64(Op::QuantizeLinear {
                axis,
                block,
                to: ElementType::I8,
            })
        };
        let (_, y) = Case::new()
            .feed(as_type(ElementType::I8, &[3, 8], &q))
            .constant(scale.clone())
            .constant(zp.clone())
            .f32(Op::DequantizeLinear { axis, block });
        let t = tensor(&x.to_f32_vec(), &[3, 8]);
        for names in [false, true] {
            let g = pair(&x, scale.clone(), zp.clone(), axis, block, names);
            let fused = run(&g, &t, Mode::Inference);
            assert_eq!(fused, y, "axis {axis} block {block}");
            assert_eq!(run(&g, &t, Mode::Training), y);
        }
    }
}

#[test]
fn float_weights_behind_a_pair_train_straight_through() {
    let w = noise(12, 1.0);
    let x = noise(6, 1.0);
    for cast in [false, true] {
        let mut g = Graph::default();
        let input = g.add_value("x", Some(ElementType::F32), None);
        g.inputs.push(input);
        let weight = g.add_constant("w", f(&[3, 4], &w));
        let some = |v: &[ValueId]| v.iter().map(|&v| Some(v)).collect::<Vec<_>>();
        let (q, d, y) = (
            g.add_value("q", None, None),
            g.add_value("d", None, None),
            g.add_value("y", None, None),
        );
        if cast {
            g.add_node(
                "to16",
                Op::Cast {
                    to: ElementType::F16,
                },
                some(&[weight]),
                some(&[q]),
            );
            g.add_node(
                "to32",
                Op::Cast {
                    to: ElementType::F32,
                },
                some(&[q]),
                some(&[d]),
            );
        } else {
            let s = g.add_constant("s", f(&[4], &[0.01, 0.02, 0.03, 0.002]));
            let z = g.add_constant("z", as_type(ElementType::I8, &[4], &[0; 4]));
            g.add_node("q", Q, some(&[weight, s, z]), some(&[q]));
            g.add_node(
                "dq",
                Op::DequantizeLinear { axis: 1, block: 0 },
                some(&[q, s, z]),
                some(&[d]),
            );
        }
        g.add_node("mm", Op::MatMul, some(&[input, d]), some(&[y]));
        g.outputs.push(y);
        let t = tensor(&x, &[2, 3]);
        let p = Program::compile(&g, Mode::Training).unwrap();
        assert_eq!(p.parameters().keys().collect::<Vec<_>>(), ["w"]);
        let out = p
            .run(
                std::slice::from_ref(&t),
                &mut NoTaps,
                &CancelToken::default(),
            )
            .unwrap();
        close(&values(&out[0]), &run(&g, &t, Mode::Inference), 1e-6);
        let grads = out[0].sum_all().unwrap().backward().unwrap();
        let got = values(grads.get(&p.parameters()["w"]).unwrap());
        for r in 0..3 {
            let slope = x[r] + x[3 + r];
            for c in 0..4 {
                // Column 3's scale is so small that everything beyond ±0.254 is clipped.
                let inside = cast || c != 3 || w[r * 4 + c].abs() < 0.25;
                let want = if inside { slope } else { 0.0 };
                assert!(
                    (got[r * 4 + c] - want).abs() < 1e-5,
                    "cast {cast} row {r} column {c}"
                );
            }
        }
    }
}

#[test]
fn packed_weights_fold_to_floats_once() {
    let mut g = Graph::default();
    let input = g.add_value("x", Some(ElementType::F32), None);
    g.inputs.push(input);
    let w = g.add_constant("w", as_type(ElementType::I4, &[2, 2], &[-8, 7, 3, -1]));
    let s = g.add_constant("s", TensorData::scalar(0.5));
    let some = |v: &[ValueId]| v.iter().map(|&v| Some(v)).collect::<Vec<_>>();
    let (d, y) = (g.add_value("d", None, None), g.add_value("y", None, None));
    g.add_node(
        "dq",
        Op::DequantizeLinear { axis: 1, block: 0 },
        some(&[w, s]),
        some(&[d]),
    );
    g.add_node("mm", Op::MatMul, some(&[input, d]), some(&[y]));
    g.outputs.push(y);
    let x = tensor(&[1.0, 10.0], &[1, 2]);
    assert_eq!(run(&g, &x, Mode::Inference), [-4.0 + 15.0, 3.5 - 5.0]);
    // Integers are not trained.
    assert!(
        Program::compile(&g, Mode::Training)
            .unwrap()
            .parameters()
            .is_empty()
    );
}

/// The example of the operator's specification, and tensors of one value.
#[test]
fn dynamic_quantisation_takes_the_range_of_the_tensor() {
    let of = |x: &[f32]| {
        let program = {
            let mut graph = Graph {
                values: vec![],
                ..Graph::default()
            };
            let value = |name: &str| crate::graph::Value {
                name: name.into(),
                element: None,
                shape: None,
                data: None,
            };
            graph.values = ["x", "codes", "scale", "zero"].map(value).into();
            graph.values[0].element = Some(ElementType::F32);
            graph.inputs = vec![ValueId(0)];
            graph.outputs = vec![ValueId(1), ValueId(2), ValueId(3)];
            graph.nodes = vec![crate::graph::Node {
                name: "q".into(),
                op: Op::DynamicQuantizeLinear,
                inputs: vec![Some(ValueId(0))],
                outputs: graph.outputs.iter().map(|v| Some(*v)).collect(),
            }];
            Program::compile(&graph, Mode::Inference).unwrap()
        };
        let x = Tensor::new(x, &candle_core::Device::Cpu).unwrap();
        let out = program
            .run(&[x], &mut NoTaps, &CancelToken::default())
            .unwrap();
        let float = |t: &Tensor| -> Vec<f32> {
            let t = t.to_dtype(candle_core::DType::F32).unwrap();
            t.flatten_all().unwrap().to_vec1().unwrap()
        };
        (float(&out[0]), float(&out[1])[0], float(&out[2])[0])
    };
    let (codes, scale, zero) = of(&[0.0, 2.0, -3.0, -2.5, 1.34, 0.5]);
    assert_eq!(codes, [153.0, 255.0, 0.0, 26.0, 221.0, 179.0]);
    assert!((scale - 5.0 / 255.0).abs() < 1e-8 && zero == 153.0);
    assert_eq!(of(&[0.0, 0.0]), (vec![0.0, 0.0], 1.0, 0.0));
    // Zero is always in the range.
    assert_eq!(of(&[2.0, 1.5]).0, [255.0, 191.0]);
}

/// x (64×24) times w (24×4), fake-quantised to 4 bits by a scale a column that is far too small, far too large, or about right.
fn badly_scaled(w: &[f32]) -> Graph {
    let mut g = Graph::default();
    let some = |v: &[ValueId]| v.iter().map(|&v| Some(v)).collect::<Vec<_>>();
    let input = g.add_value("x", Some(ElementType::F32), None);
    g.inputs.push(input);
    let weight = g.add_constant("w", f(&[24, 4], w));
    let s = g.add_constant("s", f(&[4], &[0.02, 0.9, 0.14, 0.02]));
    let z = g.add_constant("z", as_type(ElementType::I4, &[4], &[0; 4]));
    let [q, d, y] = ["q", "d", "y"].map(|name| g.add_value(name, None, None));
    g.add_node("q", Q, some(&[weight, s, z]), some(&[q]));
    let back = Op::DequantizeLinear { axis: 1, block: 0 };
    g.add_node("dq", back, some(&[q, s, z]), some(&[d]));
    g.add_node("mm", Op::MatMul, some(&[input, d]), some(&[y]));
    g.outputs.push(y);
    g
}

#[test]
fn step_sizes_alone_learn_their_way_out_of_a_bad_start() {
    let (w, x) = (noise(96, 1.0), noise(64 * 24, 1.0));
    let mut g = badly_scaled(&w);
    let x = tensor(&x, &[64, 24]);
    let exact = x.matmul(&tensor(&w, &[24, 4])).unwrap();
    let mut p = Program::compile(&g, Mode::Training).unwrap();
    assert_eq!(
        p.learn_step_sizes(&g, &[24]).unwrap(),
        StepSizes {
            weights: 1,
            activations: 0
        }
    );
    assert_eq!(p.parameters().keys().collect::<Vec<_>>(), ["s", "w"]);
    let loss = |rows: std::ops::Range<usize>, y: &[Tensor]| {
        let exact = exact.narrow(0, rows.start, rows.len())?;
        (&y[0] - &exact)?.sqr()?.sum_all()? / (64.0 * 4.0)
    };
    let cancel = CancelToken::default();
    let times = p.parameters()["s"].clone();
    // Adam's step without its moments: each factor by a hundredth of itself, against its gradient.
    let mut losses = Vec::new();
    for _ in 0..400 {
        let found = p.gradients(&x, &loss, &cancel).unwrap();
        losses.push(found.loss);
        let slope = found.store.get(&times).unwrap().sign().unwrap();
        let share = slope.affine(-0.01, 1.0).unwrap();
        let next = (times.as_tensor() * share).unwrap();
        times.set(&next.detach()).unwrap();
    }
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.1 * first, "{first} {last}");
    // What was learned goes into the graph, where both halves of the pair find it.
    p.store(&mut g).unwrap();
    let scales = g
        .value(g.find_value("s").unwrap())
        .data
        .as_ref()
        .unwrap()
        .to_f32_vec();
    assert!(
        scales[0] > 0.1 && scales[1] < 0.2 && scales[3] > 0.1,
        "{scales:?}"
    );
    let left = tensor(&run(&g, &x, Mode::Inference), &[64, 4]);
    let left = (left - &exact).unwrap().sqr().unwrap().mean_all().unwrap();
    assert!(f64::from(left.to_scalar::<f32>().unwrap()) < 0.1 * first);
    close(&values(p.parameters()["w"].as_tensor()), &w, 0.0);
}
