//! Steps joined together, views and results written in place against the operators one by one.

use super::{
    close,
    fused::{Apart, Net},
    tensor, values,
};
use crate::{
    exec::{CancelToken, Mode, NoTaps, Program},
    graph::{BinaryOp, Op, ReduceOp, UnaryOp, ValueId},
};
use candle_core::Tensor;
use proptest::prelude::*;

fn binary(net: &mut Net, op: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
    net.op(Op::Binary(op), &[a, b])
}

fn scalar(net: &mut Net, v: f32) -> ValueId {
    net.weight(&[], 0.0, v)
}

/// Layer norm as exporters spelled it out; `twice` computes the difference again for the square.
fn layer_norm(net: &mut Net, x: ValueId, n: usize, twice: bool) -> ValueId {
    let axes = net.ints(&[-1]);
    let mean = |net: &mut Net, x| {
        net.op(
            Op::Reduce {
                op: ReduceOp::Mean,
                keep_dims: true,
                noop_with_empty_axes: false,
            },
            &[x, axes],
        )
    };
    let m = mean(net, x);
    let d = binary(net, BinaryOp::Sub, x, m);
    let again = if twice {
        let m = mean(net, x);
        binary(net, BinaryOp::Sub, x, m)
    } else {
        d
    };
    let two = scalar(net, 2.0);
    let square = binary(net, BinaryOp::Pow, again, two);
    let variance = mean(net, square);
    let epsilon = scalar(net, 1e-5);
    let sum = net.add(variance, epsilon);
    let root = net.op(Op::Unary(UnaryOp::Sqrt), &[sum]);
    let normal = binary(net, BinaryOp::Div, d, root);
    let (scale, shift) = (net.weight(&[n], 0.3, 1.0), net.weight(&[n], 0.3, 0.0));
    let scaled = binary(net, BinaryOp::Mul, normal, scale);
    net.add(scaled, shift)
}

/// GELU as exporters spelled it out; `form` changes the order of the factors.
fn gelu(net: &mut Net, x: ValueId, form: usize) -> ValueId {
    let root = scalar(net, std::f32::consts::SQRT_2);
    let z = binary(net, BinaryOp::Div, x, root);
    let erf = net.op(Op::Unary(UnaryOp::Erf), &[z]);
    let one = scalar(net, 1.0);
    let plus = net.add(erf, one);
    let half = scalar(net, 0.5);
    if form == 0 {
        let product = binary(net, BinaryOp::Mul, x, plus);
        return binary(net, BinaryOp::Mul, product, half);
    }
    let halved = binary(net, BinaryOp::Mul, x, half);
    binary(net, BinaryOp::Mul, halved, plus)
}

fn linear(net: &mut Net, x: ValueId, from: usize, to: usize) -> ValueId {
    let (w, b) = (
        net.weight(&[from, to], 0.4, 0.0),
        net.weight(&[to], 0.2, 0.0),
    );
    let y = net.op(Op::MatMul, &[x, w]);
    net.add(y, b)
}

/// A block of a transformer's encoder, `heads` heads of 4 over rows of 8·… floats.
fn encoder(net: &mut Net, x: ValueId, heads: usize, form: usize) -> ValueId {
    let (width, depth) = (heads * 4, 4i64);
    let split = net.ints(&[0, 0, heads as i64, depth]);
    let joined = net.ints(&[0, 0, width as i64]);
    let head = |net: &mut Net, perm: &[usize]| {
        let y = linear(net, x, width, width);
        let y = net.op(Op::Reshape { allow_zero: false }, &[y, split]);
        let perm = Some(perm.to_vec());
        net.op(Op::Transpose { perm }, &[y])
    };
    let q = head(net, &[0, 2, 1, 3]);
    let k = head(net, &[0, 2, 3, 1]);
    let v = head(net, &[0, 2, 1, 3]);
    let scores = net.op(Op::MatMul, &[q, k]);
    let root = scalar(net, 2.0);
    let scores = binary(net, BinaryOp::Div, scores, root);
    let weights = net.op(
        Op::Softmax {
            axis: -1,
            flatten: false,
        },
        &[scores],
    );
    let mixed = net.op(Op::MatMul, &[weights, v]);
    let perm = Some(vec![0, 2, 1, 3]);
    let mixed = net.op(Op::Transpose { perm }, &[mixed]);
    let mixed = net.op(Op::Reshape { allow_zero: false }, &[mixed, joined]);
    let mixed = linear(net, mixed, width, width);
    let sum = net.add(mixed, x);
    let a = layer_norm(net, sum, width, form == 1);
    let b = linear(net, a, width, 2 * width);
    let b = gelu(net, b, form);
    let b = linear(net, b, 2 * width, width);
    let sum = net.add(b, a);
    layer_norm(net, sum, width, form == 0)
}

fn input(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    tensor(&super::noise(count, 1.0), shape)
}

#[test]
fn an_encoder_spelled_out_is_joined_and_gives_the_same() {
    let cancel = CancelToken::default();
    for form in [0, 1] {
        let (mut net, x) = Net::new(&[5, 12]);
        let y = encoder(&mut net, x, 3, form);
        net.graph.outputs = vec![y];
        let program = Program::compile(&net.graph, Mode::Inference).unwrap();
        let joined = program.joined();
        assert_eq!(joined.norms, 2, "layer norms found in form {form}");
        assert_eq!(joined.gelus, 1, "GELU found in form {form}");
        assert_eq!(joined.products, 6, "products with their vectors");
        assert_eq!(joined.views, 3, "exchanges of axes left to the products");
        assert!(joined.in_place >= 4, "{} written in place", joined.in_place);
        let feed = input(&[2, 5, 12]);
        let before = values(&feed);
        let apart = program
            .run(std::slice::from_ref(&feed), &mut Apart, &cancel)
            .unwrap();
        for _ in 0..2 {
            let got = program
                .run(std::slice::from_ref(&feed), &mut NoTaps, &cancel)
                .unwrap();
            close(&values(&got[0]), &values(&apart[0]), 1e-5);
        }
        assert_eq!(values(&feed), before, "what is fed stays as it was");
        // Training joins the norms and the GELU, whose gradients are their own.
        let program = Program::compile(&net.graph, Mode::Training).unwrap();
        assert_eq!((program.joined().norms, program.joined().gelus), (2, 1));
        assert_eq!(program.joined().in_place, 0);
        let loss = |out: Vec<Tensor>| {
            let r = input(out[0].dims());
            (&out[0] * &r)
                .unwrap()
                .sum_all()
                .unwrap()
                .backward()
                .unwrap()
        };
        let feeds = std::slice::from_ref(&feed);
        let expected = loss(program.run(feeds, &mut Apart, &cancel).unwrap());
        let got = loss(program.run(feeds, &mut NoTaps, &cancel).unwrap());
        let mut moved = 0;
        for var in program.parameters().values() {
            let (got, expected) = (got.get(var).unwrap(), expected.get(var).unwrap());
            moved += usize::from(values(expected).iter().any(|v| v.abs() > 1e-6));
            close(&values(got), &values(expected), 1e-4);
        }
        // The softmax does not feel the vector added to all keys.
        assert!(moved >= 11, "{moved} parameters have gradients");
    }
}

#[test]
fn patterns_that_are_read_elsewhere_stay_apart() {
    // The inner value of a GELU is an output too.
    let (mut net, x) = Net::new(&[4, 8]);
    let y = gelu(&mut net, x, 0);
    let inner = net.graph.nodes[1].outputs[0].unwrap();
    net.graph.outputs = vec![y, inner];
    let program = Program::compile(&net.graph, Mode::Inference).unwrap();
    assert_eq!(program.joined().gelus, 0);
    // Another mean than that of x is no layer norm.
    let (mut net, x) = Net::new(&[4, 8]);
    let y = layer_norm(&mut net, x, 8, false);
    let other = net.op(Op::Unary(UnaryOp::Abs), &[x]);
    net.graph.nodes[0].inputs[0] = Some(other);
    net.graph.nodes.rotate_right(1);
    net.graph.outputs = vec![y];
    let program = Program::compile(&net.graph, Mode::Inference).unwrap();
    assert_eq!(program.joined().norms, 0);
}

/// What a random graph's next node is.
#[derive(Clone, Debug)]
enum Node {
    Unary(u8, usize),
    Binary(u8, usize, usize),
    Constant(u8, usize, bool),
    Softmax(usize),
    Same(usize),
    Turn(usize),
    Product(usize),
    Cut(usize),
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    let node = prop_oneof![
        3 => (0..5u8, 0..9usize).prop_map(|(f, a)| Node::Unary(f, a)),
        3 => (0..4u8, 0..9usize, 0..9usize).prop_map(|(f, a, b)| Node::Binary(f, a, b)),
        2 => (0..4u8, 0..9usize, any::<bool>()).prop_map(|(f, a, s)| Node::Constant(f, a, s)),
        1 => (0..9usize).prop_map(Node::Softmax),
        1 => (0..9usize).prop_map(Node::Same),
        1 => (0..9usize).prop_map(Node::Turn),
        1 => (0..9usize).prop_map(Node::Product),
        1 => (0..9usize).prop_map(Node::Cut),
    ];
    prop::collection::vec(node, 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Values with several names and several readers, in any order: nothing is overwritten that is still read.
    #[test]
    fn any_graph_gives_what_its_operators_give(nodes in nodes(), also in 0..9usize) {
        let (mut net, x) = Net::new(&[6, 6]);
        let mut made = vec![x];
        let bins = [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::PRelu];
        let unaries = [UnaryOp::Tanh, UnaryOp::Abs, UnaryOp::Sigmoid, UnaryOp::Relu, UnaryOp::Erf];
        for node in nodes {
            let at = |i: usize| made[made.len() - 1 - i % made.len()];
            let y = match node {
                Node::Unary(f, a) => net.op(Op::Unary(unaries[usize::from(f)]), &[at(a)]),
                Node::Binary(f, a, b) => binary(&mut net, bins[usize::from(f)], at(a), at(b)),
                Node::Constant(f, a, swapped) => {
                    let c = net.weight(&[6], 0.5, 0.7);
                    let swapped = swapped && f < 3;
                    let (p, q) = if swapped { (c, at(a)) } else { (at(a), c) };
                    binary(&mut net, bins[usize::from(f)], p, q)
                }
                Node::Softmax(a) => net.op(Op::Softmax { axis: -1, flatten: false }, &[at(a)]),
                Node::Same(a) => net.op(Op::Identity, &[at(a)]),
                Node::Turn(a) => net.op(Op::Transpose { perm: Some(vec![0, 2, 1]) }, &[at(a)]),
                Node::Product(a) => {
                    let w = net.weight(&[6, 6], 0.3, 0.0);
                    net.op(Op::MatMul, &[at(a), w])
                }
                Node::Cut(a) => {
                    // A view of a part, brought back to size by broadcasting.
                    let (from, to, axis) = (net.ints(&[2]), net.ints(&[3]), net.ints(&[1]));
                    let row = net.op(Op::Slice, &[at(a), from, to, axis]);
                    net.add(at(a), row)
                }
            };
            made.push(y);
        }
        let last = made[made.len() - 1];
        net.graph.outputs = vec![last, made[made.len() - 1 - also % made.len()]];
        let program = Program::compile(&net.graph, Mode::Inference).unwrap();
        let cancel = CancelToken::default();
        let feed = input(&[2, 6, 6]);
        let before = values(&feed);
        let feeds = std::slice::from_ref(&feed);
        let apart = program.run(feeds, &mut Apart, &cancel).unwrap();
        for _ in 0..2 {
            let got = program.run(feeds, &mut NoTaps, &cancel).unwrap();
            for (got, apart) in got.iter().zip(&apart) {
                prop_assert_eq!(got.dims(), apart.dims());
                close(&values(got), &values(apart), 1e-5);
            }
        }
        prop_assert_eq!(values(&feed), before);
    }
}
