//! The fused way against the operators one by one, on small graphs with the forms that real models have: outputs, and gradients
//! of all parameters.

use super::{noise, tensor, values};
use crate::{
    exec::{CancelToken, ExecError, Mode, NoTaps, Program, Taps},
    graph::{
        BinaryOp, Dim, ElementType, Graph, Op, PadMode, Padding, ReduceOp, TensorData, UnaryOp,
        ValueId, Window,
    },
};
use candle_core::Tensor;

/// Taps that want nothing keep operators apart.
pub(super) struct Apart;
impl Taps for Apart {
    fn wants(&self, _: ValueId) -> bool {
        false
    }
    fn visit(&mut self, _: ValueId, _: &Tensor) -> Result<Option<Tensor>, ExecError> {
        Ok(None)
    }
}

/// A graph under construction; constants are noise.
pub(super) struct Net {
    pub graph: Graph,
    made: usize,
}

impl Net {
    pub fn new(sample: &[usize]) -> (Self, ValueId) {
        let mut graph = Graph::default();
        let shape = std::iter::once(Dim::Unknown)
            .chain(sample.iter().map(|d| Dim::Known(*d)))
            .collect();
        let x = graph.add_value("x", Some(ElementType::F32), Some(shape));
        graph.inputs.push(x);
        (Self { graph, made: 0 }, x)
    }
    pub fn weight(&mut self, shape: &[usize], scale: f32, add: f32) -> ValueId {
        self.made += 1;
        let count: usize = shape.iter().product();
        let values: Vec<f32> = noise(count + self.made, scale)[self.made..]
            .iter()
            .map(|v| v + add)
            .collect();
        let name = format!("w{}", self.made);
        self.graph
            .add_constant(&name, TensorData::from_f32(shape, &values))
    }
    pub fn ints(&mut self, v: &[i64]) -> ValueId {
        self.made += 1;
        let name = format!("i{}", self.made);
        self.graph
            .add_constant(&name, TensorData::from_i64(&[v.len()], v))
    }
    pub fn op(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.made += 1;
        let y = self.graph.add_value(&format!("v{}", self.made), None, None);
        let name = format!("n{}", self.made);
        let inputs = inputs.iter().map(|i| Some(*i)).collect();
        self.graph.add_node(&name, op, inputs, vec![Some(y)]);
        y
    }
    pub fn conv(
        &mut self,
        x: ValueId,
        (o, i): (usize, usize),
        window: Window,
        group: usize,
    ) -> ValueId {
        let kernel = window.kernel.clone();
        let w = self.weight(&[&[o, i / group][..], &kernel].concat(), 0.5, 0.0);
        let b = self.weight(&[o], 0.2, 0.0);
        self.op(Op::Conv { window, group }, &[x, w, b])
    }
    pub fn norm(&mut self, x: ValueId, c: usize) -> ValueId {
        let p: Vec<ValueId> = [(0.3, 1.0), (0.3, 0.0), (0.3, 0.0), (0.3, 1.0)]
            .iter()
            .map(|(scale, add)| self.weight(&[c], *scale, *add))
            .collect();
        self.op(
            Op::BatchNormalization { epsilon: 1e-3 },
            &[x, p[0], p[1], p[2], p[3]],
        )
    }
    pub fn relu(&mut self, x: ValueId) -> ValueId {
        self.op(Op::Unary(UnaryOp::Relu), &[x])
    }
    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::Binary(BinaryOp::Add), &[a, b])
    }
}

pub(super) fn window(kernel: usize, stride: usize, padding: Padding) -> Window {
    Window {
        kernel: vec![kernel; 2],
        strides: vec![stride; 2],
        dilations: vec![1; 2],
        padding,
    }
}

pub(super) fn pads(all: usize) -> Padding {
    Padding::Explicit(vec![all; 4])
}

fn close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let scale = b.iter().fold(1e-2f32, |m, v| m.max(v.abs()));
    for (k, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= 2e-4 * scale,
            "{what}, element {k}: {a}, expected {b}"
        );
    }
}

/// Compares outputs, and with `trains` the gradients; `fused`: whether there must be a fused form at all.
fn both(mut net: Net, outputs: &[ValueId], sample: &[usize], trains: bool, what: &str) {
    net.graph.outputs = outputs.to_vec();
    let cancel = CancelToken::default();
    let program = Program::compile(&net.graph, Mode::Inference).unwrap();
    for n in [1, 3, 6] {
        let shape = [&[n], sample].concat();
        let x = tensor(&noise(shape.iter().product(), 1.0), &shape);
        let feeds = std::slice::from_ref(&x);
        assert!(
            program.run_quick(feeds, &cancel).unwrap().is_some(),
            "{what} has a fused form"
        );
        let apart = program.run(feeds, &mut Apart, &cancel).unwrap();
        // Twice, so that buffers are recycled.
        for _ in 0..2 {
            let fused = program.run(feeds, &mut NoTaps, &cancel).unwrap();
            for (fused, apart) in fused.iter().zip(&apart) {
                assert_eq!(fused.dims(), apart.dims(), "{what}");
                close(&values(fused), &values(apart), what);
            }
        }
    }
    let program = Program::compile(&net.graph, Mode::Training).unwrap();
    let shape = [&[5], sample].concat();
    let x = tensor(&noise(shape.iter().product(), 1.0), &shape);
    // Weights that differ by output and place, not by sample: shares add up.
    let loss = |_: std::ops::Range<usize>, out: &[Tensor]| {
        let mut total = Tensor::new(0f32, &candle_core::Device::Cpu)?;
        for out in out {
            let row: usize = out.dims()[1..].iter().product();
            let by = tensor(&noise(row, 1.0), &[1, row]);
            let rows = out.reshape((out.dims()[0], row))?;
            total = (total + rows.broadcast_mul(&by)?.sum_all()?)?;
        }
        Ok(total)
    };
    let out = program
        .run(std::slice::from_ref(&x), &mut Apart, &cancel)
        .unwrap();
    let expected = loss(0..5, &out).unwrap().backward().unwrap();
    let got = program.gradients(&x, &loss, &cancel).unwrap();
    let form = program
        .lowered_like(sample, None)
        .unwrap()
        .expect("a fused form");
    assert_eq!(
        form.untrainable().is_none(),
        trains,
        "{what}: {:?}",
        form.untrainable()
    );
    for (name, var) in program.parameters() {
        let of = |store: &candle_core::backprop::GradStore| {
            store.get(var).map(values).unwrap_or_default()
        };
        let (got, expected) = (of(&got.store), of(&expected));
        if !expected.is_empty() {
            close(&got, &expected, &format!("{what}: gradient of {name}"));
        }
    }
}

#[test]
fn residual_blocks_with_norms_and_several_readers() {
    let (mut net, x) = Net::new(&[3, 9, 7]);
    let a = net.conv(x, (5, 3), window(3, 1, pads(1)), 1);
    let a = net.norm(a, 5);
    let a = net.relu(a);
    let b = net.conv(a, (5, 5), window(3, 1, pads(1)), 1);
    let b = net.norm(b, 5);
    let sum = net.add(b, a);
    let c = net.relu(sum);
    // Read three times: by two convolutions and as an output.
    let d = net.conv(c, (4, 5), window(3, 2, pads(1)), 1);
    let e = net.conv(c, (4, 5), window(1, 2, pads(0)), 1);
    let f = net.add(d, e);
    let g = net.add(f, f);
    let h = net.norm(g, 4);
    let pooled = net.op(Op::GlobalAveragePool, &[h]);
    let flat = net.op(Op::Flatten { axis: 1 }, &[pooled]);
    let w = net.weight(&[4, 6], 0.5, 0.0);
    let product = net.op(Op::MatMul, &[flat, w]);
    let bias = net.weight(&[6], 0.5, 0.0);
    let y = net.add(product, bias);
    let same = net.op(Op::Identity, &[y]);
    both(net, &[y, c, same], &[3, 9, 7], true, "a residual network");
}

#[test]
fn depthwise_grouped_padded_and_uneven_windows() {
    let (mut net, x) = Net::new(&[4, 8, 9]);
    let six = net.op(Op::Identity, &[x]);
    let zero = net.weight(&[1], 0.0, 0.0);
    let pad = net.ints(&[0, 0, 0, 1, 0, 0, 2, 0]);
    let padded = net.op(
        Op::Pad {
            mode: PadMode::Constant,
        },
        &[six, pad, zero],
    );
    let a = net.conv(padded, (4, 4), window(3, 2, Padding::Valid), 4);
    let low = net.weight(&[], 0.0, -0.3);
    let high = net.weight(&[], 0.0, 0.4);
    let a = net.op(Op::Clip, &[a, low, high]);
    let b = net.conv(a, (6, 4), window(2, 1, Padding::SameUpper), 2);
    let c = net.conv(b, (6, 6), window(5, 1, Padding::SameLower), 6);
    let d = net.add(c, b);
    let mut wide = window(2, 1, pads(2));
    wide.dilations = vec![2, 3];
    let e = net.conv(d, (3, 6), wide, 3);
    let axes = net.ints(&[2, 3]);
    let y = net.op(
        Op::Reduce {
            op: ReduceOp::Mean,
            keep_dims: false,
            noop_with_empty_axes: false,
        },
        &[e, axes],
    );
    both(net, &[y], &[4, 8, 9], true, "uneven windows");
}

#[test]
fn pools_and_what_reads_a_single_pixel() {
    for (padding, count_include_pad, trains) in [
        (pads(0), false, true),
        (pads(1), true, true),
        (pads(1), false, false),
        (Padding::Explicit(vec![0, 0, 1, 1]), false, false),
    ] {
        let (mut net, x) = Net::new(&[2, 7, 7]);
        let a = net.conv(x, (3, 2), window(1, 1, pads(1)), 1);
        let a = net.op(
            Op::AveragePool {
                window: window(2, 2, padding),
                ceil: false,
                count_include_pad,
            },
            &[a],
        );
        let b = net.op(
            Op::MaxPool {
                window: window(3, 1, pads(1)),
                ceil: false,
            },
            &[a],
        );
        let mean = net.op(Op::GlobalAveragePool, &[b]);
        // A padded window over the mean's one pixel.
        let c = net.conv(mean, (4, 3), window(3, 1, pads(1)), 1);
        let d = net.op(Op::Flatten { axis: 1 }, &[c]);
        let flat = net.op(Op::Flatten { axis: 1 }, &[b]);
        both(net, &[d, flat], &[2, 7, 7], trains, "pools");
    }
}

#[test]
fn gates_joins_functions_and_softmax() {
    let (mut net, x) = Net::new(&[6, 5, 4]);
    // Channels last from outside.
    let x = net.op(
        Op::Transpose {
            perm: Some(vec![0, 3, 1, 2]),
        },
        &[x],
    );
    let a = net.conv(x, (5, 4), window(3, 1, pads(1)), 1);
    let a = net.op(Op::Unary(UnaryOp::HardSwish), &[a]);
    let gate = net.op(Op::GlobalAveragePool, &[a]);
    let gate = net.conv(gate, (5, 5), window(1, 1, pads(0)), 1);
    let gate = net.op(Op::Unary(UnaryOp::Sigmoid), &[gate]);
    let b = net.op(Op::Binary(BinaryOp::Mul), &[a, gate]);
    let c = net.conv(b, (3, 5), window(1, 1, pads(0)), 1);
    let d = net.op(Op::Concat { axis: 1 }, &[b, c, a]);
    let e = net.conv(d, (2, 13), window(3, 2, pads(0)), 1);
    let pooled = net.op(Op::GlobalAveragePool, &[e]);
    // Reshape to a shape computed from the batch.
    let shape = net.op(
        Op::Shape {
            start: None,
            end: None,
        },
        &[pooled],
    );
    let zero = net.ints(&[0]);
    let n = net.op(Op::Gather { axis: 0 }, &[shape, zero]);
    let rest = net.ints(&[-1]);
    let to = net.op(Op::Concat { axis: 0 }, &[n, rest]);
    let flat = net.op(Op::Reshape { allow_zero: false }, &[pooled, to]);
    let y = net.op(
        Op::Softmax {
            axis: -1,
            flatten: false,
        },
        &[flat],
    );
    both(net, &[y], &[6, 5, 4], false, "gates and joins");
}

#[test]
fn absurd_windows_are_left_to_the_general_way() {
    for (kernel, dilation, pad) in [(3, 1 << 24, 1 << 24), (1, 1, 1 << 24)] {
        let (mut net, x) = Net::new(&[1, 32, 32]);
        let mut w = window(kernel, 1, pads(pad));
        w.dilations = vec![dilation; 2];
        let y = net.conv(x, (1, 1), w, 1);
        net.graph.outputs = vec![y];
        for mode in [Mode::Inference, Mode::Training] {
            let program = Program::compile(&net.graph, mode).unwrap();
            assert!(program.lowered_like(&[1, 32, 32], None).unwrap().is_none());
        }
    }
}

#[test]
fn a_bias_of_another_shape_is_left_to_the_general_way() {
    let (mut net, x) = Net::new(&[3]);
    let w = net.weight(&[4, 3], 0.5, 0.0);
    let b = net.weight(&[4, 1], 0.5, 0.0);
    let gemm = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let y = net.op(gemm, &[x, w, b]);
    net.graph.outputs = vec![y];
    let program = Program::compile(&net.graph, Mode::Inference).unwrap();
    assert!(program.lowered_like(&[3], None).unwrap().is_none());
}
