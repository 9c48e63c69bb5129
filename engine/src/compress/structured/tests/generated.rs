//! Generated networks with everything that ties channels.

use super::*;
use crate::graph::{BinaryOp, Op, TensorData, UnaryOp};
use proptest::prelude::*;

/// A network under construction: what it has and how many channels that is.
struct Maker {
    net: Net,
    x: ValueId,
    channels: usize,
    n: usize,
}

impl Maker {
    fn name(&mut self, what: &str) -> String {
        self.n += 1;
        format!("{what}{}", self.n)
    }

    fn conv(&mut self, x: ValueId, from: usize, to: usize, kernel: usize, group: usize) -> ValueId {
        let name = self.name("conv");
        let shape = [to, from / group, kernel, kernel];
        self.net.conv(&name, x, shape, group, true)
    }

    fn norm(&mut self, x: ValueId, channels: usize) -> ValueId {
        let name = self.name("norm");
        self.net.norm(&name, x, channels)
    }

    fn op(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        let name = self.name("op");
        self.net.node(&name, op, inputs)
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        let name = self.name("ints");
        let data = TensorData::from_i64(&[values.len()], values);
        self.net.graph.add_constant(&name, data)
    }

    fn unary(&mut self, op: UnaryOp, x: ValueId) -> ValueId {
        self.op(Op::Unary(op), &[x])
    }

    fn plain(&mut self) {
        let (x, c) = (self.x, self.channels);
        let y = self.conv(x, c, 8, 3, 1);
        let y = self.norm(y, 8);
        self.x = self.unary(UnaryOp::HardSwish, y);
        self.channels = 8;
    }

    fn residual(&mut self) {
        let (x, c) = (self.x, self.channels);
        let y = self.conv(x, c, 6, 3, 1);
        let y = self.norm(y, 6);
        // A sigmoid of a channel that is gone would not be zero: the channel must go as a whole.
        let y = self.unary(UnaryOp::Sigmoid, y);
        let y = self.conv(y, 6, c, 3, 1);
        let y = self.op(Op::Binary(BinaryOp::Add), &[x, y]);
        self.x = self.unary(UnaryOp::Relu, y);
    }

    fn branches(&mut self) {
        let (x, c) = (self.x, self.channels);
        let a = self.conv(x, c, 4, 1, 1);
        let b = self.conv(x, c, 6, 3, 1);
        let b = self.norm(b, 6);
        self.x = self.op(Op::Concat { axis: 1 }, &[a, b, x]);
        self.channels = 10 + c;
    }

    fn depthwise(&mut self, times: usize) {
        let (x, c) = (self.x, self.channels);
        let y = self.conv(x, c, c * times, 3, c);
        let y = self.norm(y, c * times);
        self.x = self.unary(UnaryOp::Sigmoid, y);
        self.channels = c * times;
    }

    fn grouped(&mut self) {
        self.plain();
        let x = self.x;
        let y = self.conv(x, 8, 12, 3, 4);
        self.x = self.unary(UnaryOp::Relu, y);
        self.channels = 12;
    }

    fn gate(&mut self) {
        let (x, c) = (self.x, self.channels);
        let p = self.op(Op::GlobalAveragePool, &[x]);
        let p = self.conv(p, c, 3, 1, 1);
        let p = self.unary(UnaryOp::Relu, p);
        let p = self.conv(p, 3, c, 1, 1);
        let p = self.unary(UnaryOp::Sigmoid, p);
        self.x = self.op(Op::Binary(BinaryOp::Mul), &[x, p]);
    }

    /// ShuffleNet: two groups change places, index by index.
    fn shuffle(&mut self) {
        self.plain();
        let x = self.x;
        let apart = self.ints(&[0, 2, 4, 6, 6]);
        let x = self.op(Op::Reshape { allow_zero: false }, &[x, apart]);
        let perm = Some(vec![0, 2, 1, 3, 4]);
        let x = self.op(Op::Transpose { perm }, &[x]);
        let whole = self.ints(&[-1, 8, 6, 6]);
        self.x = self.op(Op::Reshape { allow_zero: false }, &[x, whole]);
    }

    fn split(&mut self) {
        self.plain();
        let x = self.x;
        let sizes = self.ints(&[3, 5]);
        let a = self.op(
            Op::Split {
                axis: 1,
                num_outputs: None,
            },
            &[x, sizes],
        );
        let name = self.name("half");
        let b = self.net.graph.add_value(&name, None, None);
        let node = self.net.graph.nodes.last_mut().expect("the split");
        node.outputs.push(Some(b));
        let a = self.conv(a, 3, 5, 3, 1);
        self.x = self.op(Op::Binary(BinaryOp::Mul), &[a, b]);
        self.channels = 5;
    }

    fn slices(&mut self) {
        self.plain();
        let x = self.x;
        let mut cut = |start: i64, end: i64| {
            let starts = self.ints(&[start, 0]);
            let ends = self.ints(&[end, i64::MAX]);
            let axes = self.ints(&[1, 2]);
            self.op(Op::Slice, &[x, starts, ends, axes])
        };
        let (a, b) = (cut(0, 4), cut(-4, i64::MAX));
        self.x = self.op(Op::Binary(BinaryOp::Sub), &[a, b]);
        self.channels = 4;
    }

    fn last(&mut self) {
        // Channels last and back, with a scale by channel on the way.
        let (x, c) = (self.x, self.channels);
        let perm = Some(vec![0, 2, 3, 1]);
        let x = self.op(Op::Transpose { perm }, &[x]);
        let name = self.name("scale");
        let scale = self.net.weight(&name, &[c], 0.5, 1.5);
        let x = self.op(Op::Binary(BinaryOp::Mul), &[x, scale]);
        let name = self.name("slope");
        let slope = self.net.weight(&name, &[1, 1, c], 0.1, 0.5);
        let x = self.op(Op::Binary(BinaryOp::PRelu), &[x, slope]);
        let perm = Some(vec![0, 3, 1, 2]);
        self.x = self.op(Op::Transpose { perm }, &[x]);
    }

    /// One head of attention over pixels, as in a transformer: inner widths can go.
    fn attention(&mut self) {
        let (x, c) = (self.x, self.channels);
        let shape = self.ints(&[0, c as i64, 36]);
        let x = self.op(Op::Reshape { allow_zero: false }, &[x, shape]);
        let perm = Some(vec![0, 2, 1]);
        let x = self.op(Op::Transpose { perm }, &[x]);
        let mut projected = Vec::new();
        for what in ["q", "k", "v"] {
            let name = self.name(what);
            let w = self.net.weight(&name, &[c, 6], -0.5, 0.5);
            let y = self.op(Op::MatMul, &[x, w]);
            let heads = self.ints(&[0, 36, 2, 3]);
            let y = self.op(Op::Reshape { allow_zero: false }, &[y, heads]);
            let perm = Some(if what == "k" {
                vec![0, 2, 3, 1]
            } else {
                vec![0, 2, 1, 3]
            });
            projected.push(self.op(Op::Transpose { perm }, &[y]));
        }
        let scores = self.op(Op::MatMul, &[projected[0], projected[1]]);
        let softmax = Op::Softmax {
            axis: -1,
            flatten: false,
        };
        let shares = self.op(softmax, &[scores]);
        let y = self.op(Op::MatMul, &[shares, projected[2]]);
        let perm = Some(vec![0, 2, 1, 3]);
        let y = self.op(Op::Transpose { perm }, &[y]);
        let merged = self.ints(&[0, 36, 6]);
        let y = self.op(Op::Reshape { allow_zero: false }, &[y, merged]);
        let name = self.name("out");
        let w = self.net.weight(&name, &[6, 8], -0.5, 0.5);
        let y = self.op(Op::MatMul, &[y, w]);
        let perm = Some(vec![0, 2, 1]);
        let y = self.op(Op::Transpose { perm }, &[y]);
        let planes = self.ints(&[0, 8, 6, 6]);
        self.x = self.op(Op::Reshape { allow_zero: false }, &[y, planes]);
        self.channels = 8;
    }

    fn pads_and_pools(&mut self) {
        let x = self.x;
        let pads = self.ints(&[0, 0, 1, 1, 0, 0, 1, 1]);
        let value = self.net.weight("pad_value_", &[], 0.5, 0.6);
        let x = self.op(
            Op::Pad {
                mode: crate::graph::PadMode::Constant,
            },
            &[x, pads, value],
        );
        let mut window = window([3, 3]);
        window.padding = crate::graph::Padding::Explicit(vec![0; 4]);
        self.x = self.op(
            Op::MaxPool {
                window,
                ceil: false,
            },
            &[x],
        );
    }
}

const PARTS: usize = 12;

fn build(seed: u64, parts: &[usize], flat: bool) -> Model {
    let mut m = Maker {
        net: Net::new(seed, &[3, 6, 6]),
        x: ValueId(0),
        channels: 3,
        n: 0,
    };
    m.plain();
    for part in parts {
        match part {
            0 => m.plain(),
            1 => m.residual(),
            2 => m.branches(),
            3 => m.depthwise(1),
            4 => m.depthwise(2),
            5 => m.grouped(),
            6 => m.gate(),
            7 => m.shuffle(),
            8 => m.split(),
            9 => m.slices(),
            10 => m.last(),
            _ => m.attention(),
        }
    }
    m.pads_and_pools();
    let (x, c) = (m.x, m.channels);
    let (x, depth) = if flat {
        (m.op(Op::Flatten { axis: 1 }, &[x]), c * 36)
    } else {
        let x = m.op(Op::GlobalAveragePool, &[x]);
        let shape = m.ints(&[0, c as i64]);
        (m.op(Op::Reshape { allow_zero: false }, &[x, shape]), c)
    };
    let w = m.net.weight("head.weight", &[5, depth], -0.3, 0.3);
    let b = m.net.weight("head.bias", &[5], -0.3, 0.3);
    let op = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let x = m.net.node("head", op, &[x, w, b]);
    m.net.finish(&[x])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn pruned_equals_zeroed(
        seed: u64,
        parts in proptest::collection::vec(0..PARTS, 0..5),
        flat: bool,
    ) {
        let model = build(seed, &parts, flat);
        // Whether anything goes is up to chance here, and up to the next test there.
        for attention in [Attention::Widths, Attention::Heads] {
            equals_the_zeroed_with(attention, &model, &batch(2, &[3, 6, 6]), seed, 2e-4);
        }
    }
}

/// Two heads of width 3, tied in queries, keys and values; or three places in both, tied in queries and keys, which are summed over.
#[test]
fn attention_goes_by_heads_or_by_places_within_them() {
    let model = build(3, &[11], true);
    let projected = |structure: &Structure| -> Vec<(usize, usize, Vec<String>)> {
        let blocks = structure.blocks.iter();
        let own = blocks.map(|b| {
            let outputs = b.members.iter().filter(|m| m.output);
            let names = outputs.map(|m| structure.layers[m.layer].id.0.to_string());
            (b.units.len(), b.width, names.collect::<Vec<String>>())
        });
        own.filter(|(.., names)| names.len() > 1).collect()
    };
    for (attention, units, width, tied) in
        [(Attention::Heads, 2, 3, 3), (Attention::Widths, 3, 2, 2)]
    {
        let structure = Structure::with(&model.graph, attention);
        let found = projected(&structure);
        assert_eq!(found.len(), 1, "{attention:?}: {found:?}");
        assert_eq!((found[0].0, found[0].1), (units, width), "{attention:?}");
        assert_eq!(found[0].2.len(), tied, "{attention:?}: {found:?}");
        let removed: usize = (0..8)
            .map(|seed| {
                equals_the_zeroed_with(attention, &model, &batch(2, &[3, 6, 6]), 5 + seed, 2e-4)
            })
            .sum();
        assert!(removed > 8, "{attention:?}");
    }
}

#[test]
fn every_part_can_lose_channels_by_itself() {
    for part in 0..PARTS {
        let model = build(3, &[part], true);
        let structure = Structure::of(&model.graph);
        let fixed = &structure.groups.fixed;
        assert_eq!(
            fixed.keys().collect::<Vec<_>>(),
            [&id("head")],
            "part {part}: {fixed:?}"
        );
        assert!(fixed[&id("head")].contains("output"), "{fixed:?}");
        let removed: usize = (0..8)
            .map(|seed| equals_the_zeroed(&model, &batch(2, &[3, 6, 6]), 77 + seed, 2e-4))
            .sum();
        assert!(removed > 8, "part {part}");
    }
}

#[test]
fn groups_are_what_adds_up() {
    let model = build(1, &[1], true);
    let groups = ChannelGroups::of(&model.graph);
    let names: Vec<Vec<&str>> = groups
        .groups
        .iter()
        .map(|g| g.layers.iter().map(|l| &*l.0).collect())
        .collect();
    // The stem and the end of the residual branch are one group, the inside of the branch another.
    assert_eq!(names, [vec!["conv1", "conv7"], vec!["conv4"]]);
    let stem = groups.group_of(&id("conv7")).expect("has a group");
    assert_eq!(stem.channels, 8);
    assert_eq!(stem.readers, [id("conv4"), id("head")]);
}
