//! Batch norms on the mini-batch's own statistics: both ways against each other, against finite differences and against sums by hand; the
//! running statistics; the same bits on any number of threads.

use super::{
    close,
    fused::{Apart, Net, pads, window},
    noise, tensor, values,
};
use crate::{
    exec::{BatchStatistics, CancelToken, Mode, NoTaps, Program},
    graph::{BinaryOp, Op, UnaryOp, ValueId},
};
use candle_core::{Result, Tensor};
use std::{collections::BTreeMap, ops::Range};

const SAMPLE: [usize; 3] = [5, 7, 6];

/// A norm on the input, norms behind dense, depthwise and strided convolutions, with ReLU, with a residual and alone. `smooth`: no ReLU, and a
/// sigmoid that only the general way has.
fn net(smooth: bool) -> Net {
    let (mut net, x) = Net::new(&SAMPLE);
    let relu = |net: &mut Net, y: ValueId| if smooth { y } else { net.relu(y) };
    let y = net.norm(x, 5);
    let y = net.conv(y, (18, 5), window(3, 1, pads(1)), 1);
    let y = net.norm(y, 18);
    let skip = relu(&mut net, y);
    let y = net.conv(skip, (18, 18), window(3, 1, pads(1)), 18);
    let y = net.norm(y, 18);
    let mut y = relu(&mut net, y);
    if smooth {
        y = net.op(Op::Unary(UnaryOp::Sigmoid), &[y]);
    }
    let y = net.conv(y, (18, 18), window(1, 1, pads(0)), 1);
    let y = net.norm(y, 18);
    let y = net.op(Op::Binary(BinaryOp::Add), &[y, skip]);
    let y = relu(&mut net, y);
    let y = net.conv(y, (7, 18), window(3, 2, pads(1)), 1);
    let y = net.norm(y, 7);
    let y = net.op(Op::GlobalAveragePool, &[y]);
    let y = net.op(Op::Flatten { axis: 1 }, &[y]);
    let w = net.weight(&[4, 7], 0.8, 0.0);
    let gemm = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let y = net.op(gemm, &[y, w]);
    net.graph.outputs = vec![y];
    net
}

fn program(smooth: bool) -> Program {
    let mut program = Program::compile(&net(smooth).graph, Mode::Training).unwrap();
    program.set_batch_statistics(true);
    assert_eq!(program.batch_norms(), 5);
    program
}

fn batch(n: usize) -> Tensor {
    let shape = [&[n][..], &SAMPLE].concat();
    // Channels with means well away from nothing.
    let values: Vec<f32> = noise(shape.iter().product(), 1.0)
        .iter()
        .enumerate()
        .map(|(i, v)| v * (1.0 + (i / 42 % 5) as f32) + (i / 42 % 5) as f32 * 3.0)
        .collect();
    tensor(&values, &shape)
}

/// Σ w·y·(1 + y) over outputs, w by sample: every sample's share depends on it alone.
fn loss(rows: Range<usize>, outputs: &[Tensor]) -> Result<Tensor> {
    let y = &outputs[0];
    let count = y.elem_count() / rows.len();
    let w: Vec<f32> = rows
        .flat_map(|n| (0..count).map(move |k| ((n * 7 + k * 3) % 11) as f32 * 0.1 - 0.4))
        .collect();
    let w = tensor(&w, y.dims());
    ((y * (y + 1.0)?)? * w)?.sum_all()
}

type Found = (f64, BTreeMap<String, Vec<f32>>, Vec<BatchStatistics>);

fn pieces(program: &Program, x: &Tensor) -> Found {
    let all = program
        .gradients(x, &loss, &CancelToken::default())
        .unwrap();
    let by_name = program.parameters().iter();
    let by_name = by_name.map(|(name, var)| (name.clone(), values(all.store.get(var).unwrap())));
    (all.loss, by_name.collect(), all.statistics)
}

/// Operator by operator, by candle's own chain rule.
fn apart(program: &Program, x: &Tensor) -> Found {
    let cancel = CancelToken::default();
    program.seen.lock().unwrap().clear();
    let out = program
        .run(std::slice::from_ref(x), &mut Apart, &cancel)
        .unwrap();
    let value = loss(0..x.dims()[0], &out).unwrap();
    let store = value.backward().unwrap();
    let by_name = program.parameters().iter();
    let by_name = by_name.map(|(name, var)| (name.clone(), values(store.get(var).unwrap())));
    let seen = program.seen.lock().unwrap().clone();
    (
        f64::from(value.to_scalar::<f32>().unwrap()),
        by_name.collect(),
        seen,
    )
}

#[test]
fn both_ways_give_the_same_loss_gradients_and_statistics() {
    let program = program(false);
    // A whole number of pieces, fewer images than pieces, and a last piece that is smaller.
    for n in [16, 3, 21] {
        let x = batch(n);
        let (a, b) = (pieces(&program, &x), apart(&program, &x));
        assert!(
            (a.0 - b.0).abs() < 1e-4 * (1.0 + b.0.abs()),
            "{} {}",
            a.0,
            b.0
        );
        assert!(a.1.len() == 19 && a.1.len() == b.1.len());
        for (name, gradient) in &a.1 {
            let size = b.1[name].iter().fold(0f32, |m, v| m.max(v.abs()));
            let scaled = |v: &[f32]| v.iter().map(|v| v / (size + 1e-3)).collect::<Vec<f32>>();
            close(&scaled(gradient), &scaled(&b.1[name]), 2e-3);
        }
        assert_eq!(a.2.len(), 5);
        for (a, b) in a.2.iter().zip(&b.2) {
            assert_eq!(a.slots, b.slots);
            close(&a.mean, &b.mean, 1e-4);
            close(&a.variance, &b.variance, 1e-4);
        }
    }
}

#[test]
fn statistics_are_those_of_the_batch_and_running_ones_follow_by_onnxs_rule() {
    let mut net = net(false);
    let mut program = program(false);
    let x = batch(9);
    let all = values(&x);
    let seen = pieces(&program, &x).2;
    // The first norm is on the input: its mean and variance by hand.
    for c in 0..5 {
        let own: Vec<f64> = (0..9)
            .flat_map(|n| &all[(n * 5 + c) * 42..][..42])
            .map(|v| f64::from(*v))
            .collect();
        let mean = own.iter().sum::<f64>() / own.len() as f64;
        let variance = own.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / own.len() as f64;
        assert!((f64::from(seen[0].mean[c]) - mean).abs() < 1e-6 * (1.0 + mean.abs()));
        assert!((f64::from(seen[0].variance[c]) - variance).abs() < 1e-5 * variance);
    }
    let name = |graph: &crate::graph::Graph, slot: usize| graph.values[slot].name.clone();
    let stored = |graph: &crate::graph::Graph, slot: usize| {
        graph.values[slot].data.as_ref().unwrap().to_f32_vec()
    };
    let before: Vec<[Vec<f32>; 2]> = seen
        .iter()
        .map(|s| s.slots.map(|slot| stored(&net.graph, slot)))
        .collect();
    program.store(&mut net.graph).unwrap();
    for (s, before) in seen.iter().zip(&before) {
        assert_eq!(
            &s.slots.map(|slot| stored(&net.graph, slot)),
            before,
            "nothing moved yet"
        );
    }
    program.follow(&seen, 0.75).unwrap();
    program.store(&mut net.graph).unwrap();
    for (s, before) in seen.iter().zip(&before) {
        for (slot, (old, new)) in s
            .slots
            .into_iter()
            .zip(before.iter().zip([&s.mean, &s.variance]))
        {
            let expected: Vec<f32> = old
                .iter()
                .zip(new)
                .map(|(old, new)| 0.75 * old + 0.25 * new)
                .collect();
            close(&stored(&net.graph, slot), &expected, 1e-6);
            assert!(
                stored(&net.graph, slot) != *old,
                "{}",
                name(&net.graph, slot)
            );
        }
    }
    // What is exported normalises by them: followed to the end, on the same images, inference gives what training gave.
    program.follow(&seen, 0.0).unwrap();
    program.store(&mut net.graph).unwrap();
    let cancel = CancelToken::default();
    let inference = Program::compile(&net.graph, Mode::Inference).unwrap();
    let exported = inference
        .run(std::slice::from_ref(&x), &mut NoTaps, &cancel)
        .unwrap();
    let trained = program
        .run(std::slice::from_ref(&x), &mut Apart, &cancel)
        .unwrap();
    close(&values(&exported[0]), &values(&trained[0]), 1e-4);
    // Frozen again, training is on the stored ones.
    program.set_batch_statistics(false);
    let frozen = pieces(&program, &batch(4));
    assert!(frozen.2.is_empty());
    let fresh = Program::compile(&net.graph, Mode::Training).unwrap();
    assert_eq!(frozen.0, pieces(&fresh, &batch(4)).0);
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    // With a sigmoid there is only the general way; the fused one agrees with it (above).
    for (smooth, tolerance) in [(true, 2e-2), (false, 6e-2)] {
        let program = program(smooth);
        let x = batch(6);
        let (_, gradients, seen) = pieces(&program, &x);
        assert_eq!(seen.len(), 5);
        let value = || pieces(&program, &x).0;
        for (name, var) in program.parameters() {
            let start = var.as_tensor().copy().unwrap();
            let gradient = &gradients[name];
            // The direction of the gradient itself: a slope that finite differences of floats can see.
            let norm = gradient
                .iter()
                .map(|g| f64::from(*g).powi(2))
                .sum::<f64>()
                .sqrt();
            if norm < 1e-3 {
                // A bias before a norm has no slope at all.
                continue;
            }
            let step = 2e-3;
            let shifted = |sign: f64| {
                let values: Vec<f32> = values(&start)
                    .iter()
                    .zip(gradient)
                    .map(|(v, g)| v + (sign * step * f64::from(*g) / norm) as f32)
                    .collect();
                var.set(&tensor(&values, start.dims())).unwrap();
                value()
            };
            let slope = (shifted(1.0) - shifted(-1.0)) / (2.0 * step);
            var.set(&start).unwrap();
            assert!(
                (slope - norm).abs() < tolerance * norm + 2e-2,
                "{name}: slope {slope}, gradient's length {norm}"
            );
        }
    }
}

#[test]
fn a_bias_before_a_norm_has_no_slope() {
    let program = program(false);
    let x = batch(8);
    let (_, gradients, _) = pieces(&program, &x);
    // The first convolution's weight and bias: w5 is the weight, after the four of the first norm.
    let (weight, bias) = (&gradients["w6"], &gradients["w7"]);
    assert_eq!((weight.len(), bias.len()), (18 * 45, 18));
    let largest = |v: &[f32]| v.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(largest(weight) > 0.1 && largest(bias) < 1e-3 * largest(weight));
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    let x = batch(21);
    for smooth in [false, true] {
        let program = program(smooth);
        let on = |threads: usize| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .stack_size(16 << 20)
                .build()
                .unwrap()
                .install(|| pieces(&program, &x))
        };
        let one = on(1);
        for threads in [2, 3, 8] {
            assert!(on(threads) == one, "{threads} threads");
        }
    }
}
