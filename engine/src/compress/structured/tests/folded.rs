//! Channels folded into the axis of samples, and what may and may not be done to them there.

use super::*;
use crate::graph::{Dim, Op, TensorData};

/// A network whose middle gets (4·N, 3), four units each of three channels of `first`, and gives what `last` reads by rows of `depth`.
fn network(depth: i64, middle: impl FnOnce(&mut Net, ValueId) -> ValueId) -> Model {
    let mut net = Net::new(7, &[6]);
    let x = net.linear("first", ValueId(0), [12, 6], 0.5);
    let x = to(&mut net, "fold", x, &[-1, 3]);
    let x = middle(&mut net, x);
    let x = to(&mut net, "unfold", x, &[-1, depth]);
    let x = net.linear("last", x, [5, depth as usize], 0.5);
    net.finish(&[x])
}

fn integers(net: &mut Net, items: &[i64]) -> ValueId {
    let data = TensorData::from_i64(&[items.len()], items);
    net.graph.add_constant("integers", data)
}

fn to(net: &mut Net, name: &str, x: ValueId, target: &[i64]) -> ValueId {
    let target = integers(net, target);
    net.node(name, Op::Reshape { allow_zero: false }, &[x, target])
}

/// What keeps the outputs of `first`; the invariant holds in any case.
fn why(model: &Model) -> Option<String> {
    let sample = match model.graph.value(ValueId(0)).shape.as_deref() {
        Some([_, _, _]) => batch(5, &[5, 6]),
        _ => batch(5, &[6]),
    };
    let removed: usize = (0..4)
        .map(|seed| equals_the_zeroed(model, &sample, 3 + seed, 1e-4))
        .sum();
    let why = Structure::of(&model.graph)
        .groups
        .fixed
        .remove(&id("first"));
    assert_eq!(why.is_none(), removed > 0, "{why:?}");
    why
}

#[test]
fn they_go_where_every_row_is_by_itself() {
    assert_eq!(why(&network(12, |net, x| net.relu("relu", x))), None);
    let pooled = network(12, |net, x| {
        let x = to(net, "planes", x, &[-1, 3, 1]);
        let x = net.node("pool", Op::GlobalAveragePool, &[x]);
        to(net, "rows", x, &[-1, 3])
    });
    assert_eq!(why(&pooled), None);
}

/// As files do that were exported with one sample and opened to more.
#[test]
fn what_a_file_states_of_another_batch_does_not_count() {
    let mut model = network(12, |net, x| net.relu("relu", x));
    for name in ["fold_out", "relu_out"] {
        let value = model.graph.find_value(name).expect("there");
        model.graph.value_mut(value).shape = Some(vec![Dim::Known(4), Dim::Known(3)]);
    }
    assert_eq!(why(&model), None);
}

#[test]
fn they_stay_where_rows_are_picked_or_put_together() {
    let axis = 0;
    let concat = network(24, |net, x| net.node("it", Op::Concat { axis }, &[x, x]));
    let slice = network(12, |net, x| {
        let cut = [&[0], &[i64::MAX], &[0]].map(|i| integers(net, i));
        net.node("it", Op::Slice, &[x, cut[0], cut[1], cut[2]])
    });
    let gather = network(12, |net, x| {
        let rows = integers(net, &[3, 2, 1, 0]);
        net.node("it", Op::Gather { axis }, &[x, rows])
    });
    let split = network(6, |net, x| {
        let num_outputs = Some(2);
        let first = net.node("it", Op::Split { axis, num_outputs }, &[x]);
        let second = net.graph.add_value("second", None, None);
        let node = net.graph.nodes.last_mut().expect("the split");
        node.outputs.push(Some(second));
        first
    });
    for (name, model) in [
        ("Concat", concat),
        ("Slice", slice),
        ("Gather", gather),
        ("Split", split),
    ] {
        let why = why(&model).expect("refused");
        let said = format!("it ({name}) works along it, which counts samples too");
        assert_eq!(why, said);
    }
}

/// Channels outside, samples inside: unit by unit, not one after the other.
#[test]
fn they_stay_where_samples_lie_within_them() {
    let mut net = Net::new(7, &[6]);
    let x = net.linear("first", ValueId(0), [12, 6], 0.5);
    let x = to(&mut net, "apart", x, &[-1, 4, 3]);
    let perm = Some(vec![1, 0, 2]);
    let x = net.node("turn", Op::Transpose { perm: perm.clone() }, &[x]);
    let x = to(&mut net, "fold", x, &[-1, 3]);
    let x = net.relu("relu", x);
    let x = to(&mut net, "unfold", x, &[4, -1, 3]);
    let x = net.node("back", Op::Transpose { perm }, &[x]);
    let x = to(&mut net, "rows", x, &[-1, 12]);
    let x = net.linear("last", x, [5, 12], 0.5);
    let found = why(&net.finish(&[x])).expect("refused");
    assert_eq!(found, "fold (Reshape) puts it elsewhere in every sample");
}

#[test]
fn a_number_of_channels_that_shapes_something_else_stays() {
    let mut net = Net::new(7, &[6]);
    let y = net.linear("first", ValueId(0), [6, 6], 0.5);
    let start = None;
    let shape = net.node("shape", Op::Shape { start, end: None }, &[y]);
    let apart = to(&mut net, "apart", ValueId(0), &[-1, 2, 3]);
    let like = net.node("like", Op::Reshape { allow_zero: false }, &[apart, shape]);
    let both = net.node("both", Op::Concat { axis: 1 }, &[y, like]);
    let x = net.linear("last", both, [5, 12], 0.5);
    let found = why(&net.finish(&[x])).expect("refused");
    assert_eq!(found, "like (Reshape) computes with its number");
}

/// Sequences, waveforms, images, and the positions of a short table.
#[test]
fn channels_go_whatever_else_than_the_batch_is_open() {
    let open = |net: &mut Net, axes: &[usize]| {
        let shape = net.graph.values[0].shape.as_mut().expect("stated");
        for axis in axes {
            shape[*axis] = Dim::Symbol(format!("L{axis}").into());
        }
    };
    let mut net = Net::new(7, &[5, 6]);
    open(&mut net, &[1]);
    let [first, last] = [[6, 8], [8, 3]].map(|shape| net.weight("weight", &shape, -1.0, 1.0));
    let x = net.node("first", Op::MatMul, &[ValueId(0), first]);
    let x = net.relu("relu", x);
    let x = net.node("last", Op::MatMul, &[x, last]);
    assert_eq!(why(&net.finish(&[x])), None);

    // No more than five positions: longer sequences do not fit.
    let mut net = Net::new(7, &[5, 6]);
    open(&mut net, &[1]);
    let [first, last] = [[6, 8], [8, 3]].map(|shape| net.weight("weight", &shape, -1.0, 1.0));
    let table = net.weight("table", &[5, 6], -1.0, 1.0);
    let (start, end) = (Some(1), Some(2));
    let length = net.node("length", Op::Shape { start, end }, &[ValueId(0)]);
    let zero = integers(&mut net, &[0]);
    let positions = net.node("positions", Op::Slice, &[table, zero, length, zero]);
    let x = net.node(
        "add",
        Op::Binary(crate::graph::BinaryOp::Add),
        &[ValueId(0), positions],
    );
    let x = net.node("first", Op::MatMul, &[x, first]);
    let x = net.relu("relu", x);
    let x = net.node("last", Op::MatMul, &[x, last]);
    assert_eq!(why(&net.finish(&[x])), None);
}

/// The first eight of a sequence are eight only of long ones: a target that counts them is not written as a number.
#[test]
fn what_is_cut_off_at_a_size_is_open_too() {
    let mut net = Net::new(7, &[5, 6]);
    let shape = net.graph.values[0].shape.as_mut().expect("stated");
    shape[1] = Dim::Symbol("L".into());
    let first = net.weight("weight", &[6, 12], -1.0, 1.0);
    let x = net.node("first", Op::MatMul, &[ValueId(0), first]);
    let [zero, eight, one] = [0, 8, 1].map(|i| integers(&mut net, &[i]));
    let x = net.node("slice", Op::Slice, &[x, zero, eight, one]);
    let length = |net: &mut Net, x| {
        let (start, end) = (Some(0), Some(2));
        net.node("shape", Op::Shape { start, end }, &[x])
    };
    let open = length(&mut net, x);
    let heads = integers(&mut net, &[3, 4]);
    let target = net.node("target", Op::Concat { axis: 0 }, &[open, heads]);
    let x = net.node("apart", Op::Reshape { allow_zero: false }, &[x, target]);
    let x = net.relu("relu", x);
    let twelve = integers(&mut net, &[12]);
    let target = net.node("whole", Op::Concat { axis: 0 }, &[open, twelve]);
    let x = net.node("together", Op::Reshape { allow_zero: false }, &[x, target]);
    let last = net.weight("weight", &[12, 3], -1.0, 1.0);
    let x = net.node("last", Op::MatMul, &[x, last]);
    let model = net.finish(&[x]);
    let structure = Structure::of(&model.graph);
    assert!(!structure.groups.fixed.contains_key(&id("first")));
    for (samples, length) in [(1, 5), (8, 5), (2, 20)] {
        let x = batch(samples, &[length, 6]);
        assert!(equals_the_zeroed(&model, &x, 5, 1e-4) > 0);
    }
}

/// Where a Reshape counts samples and channels in one, and another extent of it is the rest, that one cannot be told.
#[test]
fn channels_stay_where_two_extents_would_have_to_be_the_rest() {
    let mut net = Net::new(7, &[5, 6]);
    let shape = net.graph.values[0].shape.as_mut().expect("stated");
    shape[1] = Dim::Symbol("L".into());
    let first = net.weight("weight", &[6, 12], -1.0, 1.0);
    let x = net.node("first", Op::MatMul, &[ValueId(0), first]);
    let perm = Some(vec![0, 2, 1]);
    let x = net.node("turn", Op::Transpose { perm }, &[x]);
    // (N, 12, L) to (4·N, 3, L): how many there are is computed.
    let (start, end) = (Some(0), Some(1));
    let n = net.node("n", Op::Shape { start, end }, &[ValueId(0)]);
    let four = integers(&mut net, &[4]);
    let rows = net.node("rows", Op::Binary(crate::graph::BinaryOp::Mul), &[n, four]);
    let rest = integers(&mut net, &[3, -1]);
    let target = net.node("target", Op::Concat { axis: 0 }, &[rows, rest]);
    let x = net.node("fold", Op::Reshape { allow_zero: false }, &[x, target]);
    let x = net.relu("relu", x);
    let axes = integers(&mut net, &[2]);
    let mean = Op::Reduce {
        op: crate::graph::ReduceOp::Mean,
        keep_dims: false,
        noop_with_empty_axes: false,
    };
    let x = net.node("mean", mean, &[x, axes]);
    let x = to(&mut net, "rows_again", x, &[-1, 12]);
    let x = net.linear("last", x, [5, 12], 0.5);
    let found = why(&net.finish(&[x])).expect("refused");
    let open = "fold (Reshape) has several extents that are not known beforehand";
    assert_eq!(found, open);
}
