//! Schedule, folding, feeds, taps, cancelling, training mode and masks.

use super::{Case, close, f, i, noise, tensor, values};
use crate::{
    exec::{CancelToken, ExecError, Mode, NoTaps, Program, Taps},
    graph::{BinaryOp, Dim, ElementType, Graph, Op, Padding, TensorData, UnaryOp, ValueId, Window},
};
use candle_core::Tensor;

/// conv 3×3 → relu → global average → flatten → gemm, batch left open.
fn network() -> Graph {
    let mut g = Graph::default();
    let dim = |n| Dim::Known(n);
    let x = g.add_value(
        "image",
        Some(ElementType::F32),
        Some(vec![Dim::Symbol("N".into()), dim(2), dim(5), dim(5)]),
    );
    g.inputs.push(x);
    let w = g.add_constant("conv.w", f(&[4, 2, 3, 3], &noise(72, 0.5)));
    let b = g.add_constant("conv.b", f(&[4], &[0.1, -0.2, 0.3, 0.0]));
    let mut last = x;
    let mut push = |g: &mut Graph, name: &str, op: Op, rest: &[ValueId]| {
        let y = g.add_value(&format!("{name}.y"), None, None);
        let mut inputs = vec![Some(last)];
        inputs.extend(rest.iter().map(|&v| Some(v)));
        g.add_node(name, op, inputs, vec![Some(y)]);
        last = y;
        y
    };
    let window = Window {
        kernel: vec![3, 3],
        strides: vec![1, 1],
        dilations: vec![1, 1],
        padding: Padding::SameUpper,
    };
    push(&mut g, "conv", Op::Conv { window, group: 1 }, &[w, b]);
    push(&mut g, "relu", Op::Unary(UnaryOp::Relu), &[]);
    push(&mut g, "pool", Op::GlobalAveragePool, &[]);
    push(&mut g, "flatten", Op::Flatten { axis: 1 }, &[]);
    let w2 = g.add_constant("fc.w", f(&[3, 4], &noise(12, 1.0)));
    let b2 = g.add_constant("fc.b", f(&[3], &[0.0, 1.0, -1.0]));
    let gemm = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let y = push(&mut g, "fc", gemm, &[w2, b2]);
    g.outputs.push(y);
    g
}

fn image(n: usize) -> Tensor {
    tensor(&noise(n * 50, 1.0), &[n, 2, 5, 5])
}

fn go(p: &Program, x: &Tensor) -> Result<Vec<Tensor>, ExecError> {
    p.run(
        std::slice::from_ref(x),
        &mut NoTaps,
        &CancelToken::default(),
    )
}

#[test]
fn a_batch_gives_what_its_samples_give_alone() {
    let p = Program::compile(&network(), Mode::Inference).unwrap();
    let x = image(3);
    let all = values(&go(&p, &x).unwrap()[0]);
    for k in 0..3 {
        let one = go(&p, &x.narrow(0, k, 1).unwrap()).unwrap();
        close(&values(&one[0]), &all[3 * k..3 * k + 3], 1e-5);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let p = Program::compile(&network(), Mode::Inference).unwrap();
    let x = image(7);
    let bits = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let y = pool.install(|| go(&p, &x).unwrap());
        values(&y[0])
            .iter()
            .map(|v| v.to_bits())
            .collect::<Vec<_>>()
    };
    let one = bits(1);
    assert_eq!(one, bits(2));
    assert_eq!(one, bits(5));
}

#[test]
fn feeds_are_checked_before_anything_runs() {
    let p = Program::compile(&network(), Mode::Inference).unwrap();
    let none = p
        .run(&[], &mut NoTaps, &CancelToken::default())
        .unwrap_err()
        .to_string();
    assert!(none.contains("1 inputs (image)"), "{none}");
    let rank = go(&p, &tensor(&[0.0; 50], &[2, 5, 5]))
        .unwrap_err()
        .to_string();
    assert!(
        rank.contains("image") && rank.contains("[N, 2, 5, 5]"),
        "{rank}"
    );
    let dim = go(&p, &tensor(&[0.0; 75], &[1, 3, 5, 5]))
        .unwrap_err()
        .to_string();
    assert!(dim.contains("[1, 3, 5, 5]"), "{dim}");
    let ints = Tensor::zeros(
        (1, 2, 5, 5),
        candle_core::DType::I64,
        &candle_core::Device::Cpu,
    )
    .unwrap();
    assert!(matches!(go(&p, &ints), Err(ExecError::Input(_))));
}

#[test]
fn a_failing_node_is_named() {
    let e = Case::new()
        .feed(f(&[2, 3], &[0.0; 6]))
        .constant(f(&[4, 2], &[0.0; 8]))
        .run(Op::MatMul, 1)
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("node node") && e.contains("MatMul") && e.contains("[2, 3]"),
        "{e}"
    );
}

#[test]
fn operators_that_are_not_claimed_are_all_named() {
    let mut g = network();
    let last = g.outputs[0];
    let y = g.add_value("z", None, None);
    let op = Op::Unsupported {
        domain: String::new(),
        op_type: "Loop".into(),
        attributes: vec![],
        reason: "no loops".into(),
    };
    g.add_node("loop", op, vec![Some(last)], vec![Some(y)]);
    // Not needed by any output: runs.
    assert!(Program::compile(&g, Mode::Inference).is_ok());
    assert_eq!(
        Program::unsupported(&g),
        [("loop".into(), "Loop".into(), "no loops".into())]
    );
    g.outputs = vec![y];
    match Program::compile(&g, Mode::Inference) {
        Err(ExecError::Unsupported(v)) => assert_eq!(v.len(), 1),
        _ => panic!("compiled"),
    }
}

#[test]
fn cancelling_stops_before_the_next_node() {
    let p = Program::compile(&network(), Mode::Inference).unwrap();
    let cancel = CancelToken::default();
    cancel.cancel();
    let r = p.run(&[image(1)], &mut NoTaps, &cancel);
    assert!(matches!(r, Err(ExecError::Cancelled)));
}

struct Replace {
    at: ValueId,
    with: Tensor,
    seen: Vec<Vec<usize>>,
}
impl Taps for Replace {
    fn wants(&self, v: ValueId) -> bool {
        v == self.at
    }
    fn visit(&mut self, _: ValueId, t: &Tensor) -> Result<Option<Tensor>, ExecError> {
        self.seen.push(t.dims().to_vec());
        Ok(Some(self.with.clone()))
    }
}

#[test]
fn taps_see_and_replace_activations_and_weights() {
    let g = network();
    let p = Program::compile(&g, Mode::Inference).unwrap();
    let bias = g.find_value("fc.b").unwrap();
    for (name, with, shape) in [
        (
            "relu.y",
            tensor(&[0.0; 100], &[1, 4, 5, 5]),
            vec![1, 4, 5, 5],
        ),
        ("fc.w", tensor(&[0.0; 12], &[3, 4]), vec![3, 4]),
        ("image", tensor(&[0.0; 50], &[1, 2, 5, 5]), vec![1, 2, 5, 5]),
    ] {
        let at = g.find_value(name).unwrap();
        let mut taps = Replace {
            at,
            with,
            seen: vec![],
        };
        let y = p
            .run(&[image(1)], &mut taps, &CancelToken::default())
            .unwrap();
        assert_eq!(taps.seen, [shape]);
        if name != "image" {
            // Nothing but the last bias is left.
            let b = g.value(bias).data.as_ref().unwrap().to_f32_vec();
            close(&values(&y[0]), &b, 1e-6);
        }
    }
}

#[test]
fn training_gives_inference_values_and_gradients_to_every_parameter() {
    let g = network();
    let x = image(2);
    let quiet = go(&Program::compile(&g, Mode::Inference).unwrap(), &x).unwrap();
    let p = Program::compile(&g, Mode::Training).unwrap();
    let names: Vec<_> = p.parameters().keys().cloned().collect();
    assert_eq!(names, ["conv.b", "conv.w", "fc.b", "fc.w"]);
    let y = go(&p, &x).unwrap();
    close(&values(&y[0]), &values(&quiet[0]), 1e-6);
    let grads = y[0].sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for (name, var) in p.parameters() {
        let g = values(
            grads
                .get(var)
                .unwrap_or_else(|| panic!("{name} has no gradient")),
        );
        assert!(g.iter().any(|v| *v != 0.0), "{name}");
    }
    assert!(!quiet[0].track_op());
}

#[test]
fn masks_hold_weights_at_zero_and_reach_the_stored_graph() {
    let mut g = network();
    let mut p = Program::compile(&g, Mode::Training).unwrap();
    let mask: Vec<f32> = (0..12).map(|k| f32::from(u8::from(k % 2 == 0))).collect();
    p.set_mask("fc.w", tensor(&mask, &[3, 4])).unwrap();
    assert!(p.set_mask("fc.w", tensor(&[1.0; 3], &[3])).is_err());
    assert!(p.set_mask("nobody", tensor(&[1.0; 3], &[3])).is_err());
    let y = go(&p, &image(2)).unwrap();
    let grads = y[0].sum_all().unwrap().backward().unwrap();
    let g_w = values(grads.get(&p.parameters()["fc.w"]).unwrap());
    assert!(g_w.iter().zip(&mask).all(|(g, m)| *m == 1.0 || *g == 0.0));
    p.store(&mut g).unwrap();
    let id = g.find_value("fc.w").unwrap();
    let stored = g.value(id).data.as_ref().unwrap().to_f32_vec();
    let whole = noise(12, 1.0);
    for k in 0..12 {
        assert_eq!(stored[k], whole[k] * mask[k]);
    }
    let again = go(&Program::compile(&g, Mode::Inference).unwrap(), &image(2)).unwrap();
    close(&values(&again[0]), &values(&y[0]), 1e-6);
}

/// The flattening that PyTorch exports: Shape → Gather → Unsqueeze → Concat → Reshape.
#[test]
fn shape_arithmetic_follows_the_batch() {
    let mut g = Graph::default();
    let x = g.add_value("x", Some(ElementType::F32), None);
    g.inputs.push(x);
    let node = |g: &mut Graph, op: Op, inputs: &[ValueId]| {
        let y = g.add_value("v", None, None);
        g.add_node(
            "n",
            op,
            inputs.iter().map(|&v| Some(v)).collect(),
            vec![Some(y)],
        );
        y
    };
    let shape = node(
        &mut g,
        Op::Shape {
            start: None,
            end: None,
        },
        &[x],
    );
    let zero = g.add_constant("zero", TensorData::scalar_i64(0));
    let batch = node(&mut g, Op::Gather { axis: 0 }, &[shape, zero]);
    let axes = g.add_constant("axes", i(&[1], &[0]));
    let batch = node(&mut g, Op::Unsqueeze, &[batch, axes]);
    let rest = g.add_constant("rest", i(&[1], &[-1]));
    let want = node(&mut g, Op::Concat { axis: 0 }, &[batch, rest]);
    let flat = node(&mut g, Op::Reshape { allow_zero: false }, &[x, want]);
    // A constant branch of its own, folded away: 2 + 3.
    let two = g.add_constant("two", TensorData::scalar(2.0));
    let three = g.add_constant("three", TensorData::scalar(3.0));
    let five = node(&mut g, Op::Binary(BinaryOp::Add), &[two, three]);
    let y = node(&mut g, Op::Binary(BinaryOp::Mul), &[flat, five]);
    g.outputs.push(y);
    let p = Program::compile(&g, Mode::Inference).unwrap();
    for n in [1, 4] {
        let y = go(&p, &tensor(&vec![1.0; n * 6], &[n, 2, 3])).unwrap();
        assert_eq!(y[0].dims(), [n, 6]);
        assert!(values(&y[0]).iter().all(|v| *v == 5.0));
    }
}

#[test]
fn broken_graphs_are_errors_not_panics() {
    let mut g = network();
    g.values[2].data.as_mut().unwrap().bytes = bytes::Bytes::from_static(&[1, 2, 3]);
    assert!(Program::compile(&g, Mode::Inference).is_err());
    let mut g = network();
    g.nodes[1].inputs[0] = Some(ValueId(9999));
    assert!(
        Program::compile(&g, Mode::Inference)
            .and_then(|p| go(&p, &image(1)))
            .is_err()
    );
    // A node that reads its own output.
    let mut g = network();
    g.nodes[1].inputs[0] = g.nodes[1].outputs[0];
    assert!(
        Program::compile(&g, Mode::Training)
            .and_then(|p| go(&p, &image(1)))
            .is_err()
    );
    // A shape that would need terabytes.
    let huge = i(&[3], &[1 << 20, 1 << 20, 1 << 20]);
    let value = TensorData::scalar(0.0);
    assert!(
        Case::new()
            .constant(huge)
            .run(Op::ConstantOfShape { value }, 1)
            .is_err()
    );
}
