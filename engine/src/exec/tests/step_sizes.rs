//! Learned step sizes of activations (LSQ): both ways against each other and against sums by hand, which of them are learned, and where they
//! stay.

use super::{
    close, f,
    fused::{Apart, Net, pads, window},
    noise, tensor, values,
};
use crate::{
    exec::{CancelToken, Mode, NoTaps, Program, StepSizes},
    graph::{Dim, ElementType, Graph, Op, TensorData, ValueId},
};
use candle_core::{Result, Tensor, Var};
use std::{collections::BTreeMap, ops::Range};

impl Net {
    /// Scale and zero point.
    fn steps(&mut self, name: &str, scale: f32, to: ElementType, zero: i64) -> [ValueId; 2] {
        let zero = TensorData::from_i64_as(to, &[], &[zero]);
        let scale = self
            .graph
            .add_constant(&format!("{name}.s"), TensorData::scalar(scale));
        [scale, self.graph.add_constant(&format!("{name}.z"), zero)]
    }
    fn pair(&mut self, x: ValueId, [scale, zero]: [ValueId; 2]) -> ValueId {
        let to = self.graph.value(zero).element.unwrap();
        let (axis, block) = (1, 0);
        let q = self.op(Op::QuantizeLinear { axis, block, to }, &[x, scale, zero]);
        self.op(Op::DequantizeLinear { axis, block }, &[q, scale, zero])
    }
    fn gemm(&mut self, x: ValueId, (o, i): (usize, usize)) -> ValueId {
        let w = self.weight(&[o, i], 0.8, 0.0);
        let gemm = Op::Gemm {
            alpha: 1.0,
            beta: 1.0,
            trans_a: false,
            trans_b: true,
        };
        self.op(gemm, &[x, w])
    }
}

fn scale(graph: &Graph, name: &str) -> f32 {
    let value = graph.value(graph.find_value(name).unwrap());
    value.data.as_ref().unwrap().to_f32_vec()[0]
}

fn of_activations(activations: usize) -> StepSizes {
    StepSizes {
        weights: 0,
        activations,
    }
}

/// The parameter's factors, all the same.
fn set(program: &Program, name: &str, times: f32) {
    let var = &program.parameters()[name];
    var.set(&tensor(&vec![times; var.elem_count()], var.dims()))
        .unwrap();
}

/// Σ w·y, w by sample: every sample's share depends on it alone.
fn loss(rows: Range<usize>, outputs: &[Tensor]) -> Result<Tensor> {
    let y = &outputs[0];
    let count = y.elem_count() / rows.len();
    let w: Vec<f32> = rows
        .flat_map(|n| (0..count).map(move |k| ((n * 7 + k * 3) % 11) as f32 * 0.1 - 0.4))
        .collect();
    (y * tensor(&w, y.dims()))?.sum_all()
}

type Found = BTreeMap<String, Vec<f32>>;

/// As training takes gradients.
fn pieces(program: &Program, x: &Tensor) -> Found {
    let all = program
        .gradients(x, &loss, &CancelToken::default())
        .unwrap();
    let by_name = program.parameters().iter();
    by_name
        .map(|(name, var)| (name.clone(), values(all.store.get(var).unwrap())))
        .collect()
}

/// Operator by operator, by candle's own chain rule.
fn apart(program: &Program, x: &Tensor) -> Found {
    let cancel = CancelToken::default();
    let out = program
        .run(std::slice::from_ref(x), &mut Apart, &cancel)
        .unwrap();
    let store = loss(0..x.dims()[0], &out).unwrap().backward().unwrap();
    let by_name = program.parameters().iter();
    by_name
        .map(|(name, var)| (name.clone(), values(store.get(var).unwrap())))
        .collect()
}

const SAMPLE: [usize; 3] = [3, 8, 6];

/// Pairs on the input, behind a ReLU, on both sides of a pool by one constant, before a sum, and of 16 bits on a vector. `norm`: a batch norm
/// in front.
fn net(norm: bool) -> Graph {
    let (mut net, x) = Net::new(&SAMPLE);
    let steps = net.steps("input", 0.012, ElementType::U8, 117);
    let y = net.pair(x, steps);
    let mut y = net.conv(y, (5, 3), window(3, 1, pads(1)), 1);
    if norm {
        y = net.norm(y, 5);
    }
    let y = net.relu(y);
    let shared = net.steps("shared", 0.011, ElementType::U8, 0);
    let y = net.pair(y, shared);
    let pool = Op::MaxPool {
        window: window(2, 2, pads(0)),
        ceil: false,
    };
    let y = net.op(pool, &[y]);
    let skip = net.pair(y, shared);
    let y = net.conv(skip, (5, 5), window(3, 1, pads(1)), 5);
    let steps = net.steps("signed", 0.02, ElementType::I8, 0);
    let y = net.pair(y, steps);
    let y = net.add(y, skip);
    let y = net.op(Op::GlobalAveragePool, &[y]);
    let y = net.op(Op::Flatten { axis: 1 }, &[y]);
    let steps = net.steps("wide", 0.000_04, ElementType::U16, 30_000);
    let y = net.pair(y, steps);
    let y = net.gemm(y, (4, 5));
    net.graph.outputs = vec![y];
    net.graph
}

fn program(norm: bool) -> Program {
    let graph = net(norm);
    let mut program = Program::compile(&graph, Mode::Training).unwrap();
    let learned = program.learn_step_sizes(&graph, &SAMPLE).unwrap();
    assert_eq!(learned, of_activations(4));
    for (name, times) in [("input.s", 0.7), ("shared.s", 1.4), ("signed.s", 1.2)] {
        set(&program, name, times);
    }
    program.set_batch_statistics(norm);
    program
}

fn batch(n: usize) -> Tensor {
    let shape = [&[n][..], &SAMPLE].concat();
    tensor(&noise(shape.iter().product(), 2.0), &shape)
}

#[test]
fn both_ways_give_the_same_gradients() {
    for norm in [false, true] {
        let program = program(norm);
        let form = program.lowered_like(&SAMPLE, None).unwrap().unwrap();
        assert_eq!(form.untrainable(), None);
        // A whole number of pieces, fewer images than pieces, and a last piece that is smaller.
        for n in [16, 3, 21] {
            let x = batch(n);
            let (a, b) = (pieces(&program, &x), apart(&program, &x));
            for name in ["input.s", "shared.s", "signed.s", "wide.s"] {
                assert!(b[name][0].abs() > 1e-3, "{name} {:?}", b[name]);
                close(&a[name], &b[name], 1e-3);
            }
        }
    }
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    let x = batch(23);
    for norm in [false, true] {
        let bits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .stack_size(16 << 20)
                .build()
                .unwrap();
            let all = pool.install(|| pieces(&program(norm), &x));
            let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            all.into_values().map(bits).collect::<Vec<_>>()
        };
        let one = bits(1);
        assert_eq!(one, bits(2));
        assert_eq!(one, bits(5));
    }
}

/// The pair's slope by hand: Σ gradient·slope / (step size · √(features · largest code)).
#[test]
fn gradients_are_scaled_by_the_features_of_a_sample_and_the_largest_code() {
    for (to, zero, largest) in [
        (ElementType::U8, 0, 255.0),
        (ElementType::U8, 100, 255.0),
        (ElementType::I8, 0, 127.0),
        (ElementType::I16, 0, 32_767.0),
    ] {
        let (mut net, x) = Net::new(&[3, 4, 4]);
        let first = 1.0 / largest;
        let steps = net.steps("a", first, to, zero);
        let y = net.pair(x, steps);
        let y = net.op(Op::Flatten { axis: 1 }, &[y]);
        let y = net.gemm(y, (1, 48));
        net.graph.outputs = vec![y];
        let mut p = Program::compile(&net.graph, Mode::Training).unwrap();
        let learned = p.learn_step_sizes(&net.graph, &[3, 4, 4]).unwrap();
        assert_eq!(learned, of_activations(1));
        let weights = |(name, var): (&String, &Var)| (name != "a.s").then(|| values(var));
        let w = p.parameters().iter().find_map(weights).unwrap();
        let x = noise(6 * 48, 1.5);
        let (lo, hi) = to.integer_range().unwrap();
        let (lo, hi) = ((lo - zero) as f32, (hi - zero) as f32);
        let slope = |x: f32| {
            let exact = x / first;
            let whole = exact.round_ties_even();
            if (lo..=hi).contains(&whole) {
                whole - exact
            } else {
                whole.clamp(lo, hi)
            }
        };
        let by = |n: usize| ((n * 7) % 11) as f32 * 0.1 - 0.4;
        let all = x.iter().enumerate();
        let sum: f64 = all
            .map(|(i, x)| f64::from(by(i / 48) * w[i % 48] * slope(*x)))
            .sum();
        let expected = sum / (f64::from(first) * (48.0 * f64::from(largest)).sqrt());
        let x = tensor(&x, &[6, 3, 4, 4]);
        for got in [pieces(&p, &x), apart(&p, &x)] {
            close(&got["a.s"], &[expected as f32], 1e-3);
        }
    }
}

/// A sequence whose length the model leaves open has the features of the sample that is fed, as long as that says.
#[test]
fn open_extents_are_those_of_the_sample() {
    let slope = |sample: &[usize]| {
        let (mut net, x) = Net::new(&[6, 4]);
        let shape = [
            Dim::Symbol("N".into()),
            Dim::Symbol("T".into()),
            Dim::Known(4),
        ];
        net.graph.value_mut(x).shape = Some(shape.to_vec());
        let steps = net.steps("a", 0.01, ElementType::I8, 0);
        let y = net.pair(x, steps);
        let w = net.weight(&[4, 2], 0.8, 0.0);
        let y = net.op(Op::MatMul, &[y, w]);
        net.graph.outputs = vec![y];
        let mut p = Program::compile(&net.graph, Mode::Training).unwrap();
        p.learn_step_sizes(&net.graph, sample).unwrap();
        pieces(&p, &tensor(&noise(48, 1.5), &[2, 6, 4]))["a.s"][0]
    };
    let (known, open) = (slope(&[6, 4]), slope(&[]));
    assert!(known.abs() > 1e-3);
    // Four features where the length is not known, 24 where it is.
    close(&[open], &[known * 6f32.sqrt()], 1e-4);
}

/// x (64×24) times w (24×4), x fake-quantised by this scale.
fn badly_scaled(w: &[f32], first: f32, to: ElementType, zero: i64) -> Graph {
    let (mut net, x) = Net::new(&[24]);
    let steps = net.steps("a", first, to, zero);
    let y = net.pair(x, steps);
    let weight = net.graph.add_constant("w", f(&[24, 4], w));
    let y = net.op(Op::MatMul, &[y, weight]);
    net.graph.outputs = vec![y];
    net.graph
}

#[test]
fn step_sizes_of_activations_learn_their_way_out_of_a_bad_start() {
    let (w, x) = (noise(96, 1.0), noise(64 * 24, 1.0));
    let x = tensor(&x, &[64, 24]);
    let exact = x.matmul(&tensor(&w, &[24, 4])).unwrap();
    // Values of ±1 fill the codes at a scale of about 0.008 and 0.000 03.
    for (first, to, zero, right) in [
        (0.0005, ElementType::I8, 0, 0.008),
        (0.0005, ElementType::U8, 128, 0.008),
        (0.2, ElementType::U8, 131, 0.008),
        (0.000_002, ElementType::I16, 0, 0.000_03),
    ] {
        let mut g = badly_scaled(&w, first, to, zero);
        let mut p = Program::compile(&g, Mode::Training).unwrap();
        let learned = p.learn_step_sizes(&g, &[24]).unwrap();
        assert_eq!(learned, of_activations(1));
        let loss = |rows: Range<usize>, y: &[Tensor]| {
            let exact = exact.narrow(0, rows.start, rows.len())?;
            (&y[0] - &exact)?.sqr()?.sum_all()? / (64.0 * 4.0)
        };
        let cancel = CancelToken::default();
        let times = p.parameters()["a.s"].clone();
        // Adam's step without its moments: the factor by a hundredth of itself, against its gradient.
        let mut losses = Vec::new();
        for _ in 0..400 {
            let found = p.gradients(&x, &loss, &cancel).unwrap();
            losses.push(found.loss);
            let slope = found.store.get(&times).unwrap().sign().unwrap();
            let share = slope.affine(-0.01, 1.0).unwrap();
            times
                .set(&(times.as_tensor() * share).unwrap().detach())
                .unwrap();
        }
        let (start, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.05 * start, "{to} {first}: {start} {last}");
        p.store(&mut g).unwrap();
        let found = scale(&g, "a.s");
        assert!(
            (0.5 * right..1.5 * right).contains(&found),
            "{to} {first}: {found}"
        );
        // The weight and the zero point stayed.
        close(&values(p.parameters()["w"].as_tensor()), &w, 0.0);
        let z = g.value(g.find_value("a.z").unwrap()).data.as_ref();
        assert_eq!(z.unwrap().to_i64_vec(), [zero]);
        // What is stored runs as it was trained.
        let trained = p
            .run(std::slice::from_ref(&x), &mut NoTaps, &cancel)
            .unwrap();
        let stored = Program::compile(&g, Mode::Inference).unwrap();
        let stored = stored
            .run(std::slice::from_ref(&x), &mut NoTaps, &cancel)
            .unwrap();
        close(&values(&stored[0]), &values(&trained[0]), 1e-5);
    }
}

#[test]
fn a_step_size_keeps_a_hundredth_of_what_it_was() {
    let g = badly_scaled(&noise(96, 1.0), 0.008, ElementType::I8, 0);
    let mut p = Program::compile(&g, Mode::Training).unwrap();
    p.learn_step_sizes(&g, &[24]).unwrap();
    for times in [0.0, -3.0] {
        set(&p, "a.s", times);
        let mut stored = g.clone();
        p.store(&mut stored).unwrap();
        close(&[scale(&stored, "a.s")], &[0.000_08], 1e-6);
        let x = tensor(&noise(24, 1.0), &[1, 24]);
        assert!(pieces(&p, &x)["a.s"][0].is_finite());
    }
}

/// Targets leave a Clip out whose bounds the codes cannot leave: that must stay so.
#[test]
fn a_range_that_implies_a_clip_goes_on_implying_it() {
    let clipped = |first: f32| {
        let (mut net, x) = Net::new(&[3, 4, 4]);
        let y = net.conv(x, (4, 3), window(1, 1, pads(0)), 1);
        let (low, high) = (net.weight(&[], 0.0, 0.0), net.weight(&[], 0.0, 6.0));
        let y = net.op(Op::Clip, &[y, low, high]);
        let pool = Op::MaxPool {
            window: window(2, 2, pads(0)),
            ceil: false,
        };
        let y = net.op(pool, &[y]);
        let steps = net.steps("a", first, ElementType::U8, 0);
        let y = net.pair(y, steps);
        let y = net.conv(y, (2, 4), window(1, 1, pads(0)), 1);
        net.graph.outputs = vec![y];
        let mut p = Program::compile(&net.graph, Mode::Training).unwrap();
        p.learn_step_sizes(&net.graph, &[3, 4, 4]).unwrap();
        set(&p, "a.s", 3.0);
        p.store(&mut net.graph).unwrap();
        scale(&net.graph, "a.s")
    };
    let most = clipped(0.02);
    assert!(
        255.0 * most <= 6.0 && 255.0 * most.next_up() > 6.0,
        "{most}"
    );
    // At its bound already.
    assert_eq!(clipped(most), most);
    // Beyond it from the start: there is nothing to keep.
    close(&[clipped(0.03)], &[0.09], 1e-6);
    assert!((clipped(0.004) - 0.012).abs() < 1e-6);
}

#[test]
fn what_something_else_hangs_on_is_not_learned() {
    let count = |graph: &Graph| {
        let mut p = Program::compile(graph, Mode::Training).unwrap();
        p.learn_step_sizes(graph, &[24]).unwrap()
    };
    let plain = || badly_scaled(&noise(96, 1.0), 0.008, ElementType::I8, 0);
    assert_eq!(count(&plain()), of_activations(1));
    // Quantised and dequantised by two constants of one value.
    let mut g = plain();
    let again = g.add_constant("again", TensorData::scalar(0.008));
    g.nodes[1].inputs[1] = Some(again);
    assert_eq!(count(&g), of_activations(0));
    // A second pair shares the scale of one half only.
    let mut g = plain();
    let (s, z) = (g.nodes[0].inputs[1], g.nodes[0].inputs[2]);
    let [q, d, sum] = ["q", "d", "sum"].map(|name| g.add_value(name, None, None));
    let quantise = g.nodes[0].op.clone();
    let y = g.outputs[0];
    let again = g.add_constant("again", TensorData::scalar(0.008));
    g.add_node("q2", quantise, vec![Some(y), s, z], vec![Some(q)]);
    let back = Op::DequantizeLinear { axis: 1, block: 0 };
    g.add_node("d2", back, vec![Some(q), Some(again), z], vec![Some(d)]);
    g.outputs = vec![d];
    assert_eq!(count(&g), of_activations(0));
    // The scale is read as a number too.
    g.nodes.truncate(3);
    let add = Op::Binary(crate::graph::BinaryOp::Add);
    g.add_node("sum", add, vec![Some(y), s], vec![Some(sum)]);
    g.outputs = vec![sum];
    assert_eq!(count(&g), of_activations(0));
    // A scale for every feature.
    let mut g = plain();
    let (s, z) = (g.nodes[0].inputs[1].unwrap(), g.nodes[0].inputs[2].unwrap());
    g.set_data(s, f(&[24], &[0.008; 24]));
    g.set_data(z, TensorData::from_i64_as(ElementType::I8, &[24], &[0; 24]));
    assert_eq!(count(&g), of_activations(0));
}
