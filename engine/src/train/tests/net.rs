//! A residual network of 500 weights and a task of striped pictures it can learn in a second.

use crate::{
    data::Dataset,
    graph::{BinaryOp, Dim, ElementType, Graph, Op, Padding, TensorData, UnaryOp, ValueId, Window},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub const CLASSES: usize = 3;
const CHANNELS: usize = 6;
const SIDE: usize = 8;

/// What stands at the end, and before the second convolution's weight.
#[derive(Clone, Copy, Default)]
pub struct Variant {
    pub softmax: bool,
    /// int8 weights, fake-quantised, in the second convolution.
    pub quantised: bool,
}

struct Builder {
    graph: Graph,
    rng: ChaCha8Rng,
}

impl Builder {
    fn weight(&mut self, name: &str, shape: &[usize], scale: f32) -> Option<ValueId> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| (self.rng.random::<f32>() * 2.0 - 1.0) * scale)
            .collect();
        Some(
            self.graph
                .add_constant(name, TensorData::from_f32(shape, &values)),
        )
    }
    fn filled(&mut self, name: &str, value: f32) -> Option<ValueId> {
        let data = TensorData::from_f32(&[CHANNELS], &[value; CHANNELS]);
        Some(self.graph.add_constant(name, data))
    }
    fn node(&mut self, name: &str, op: Op, inputs: &[Option<ValueId>]) -> Option<ValueId> {
        let output = Some(self.graph.add_value(name, Some(ElementType::F32), None));
        self.graph.add_node(name, op, inputs.to_vec(), vec![output]);
        output
    }
    fn norm(&mut self, name: &str, x: Option<ValueId>) -> Option<ValueId> {
        let inputs = [
            x,
            self.filled(&format!("{name}.scale"), 1.0),
            self.filled(&format!("{name}.shift"), 0.1),
            self.filled(&format!("{name}.mean"), 0.0),
            self.filled(&format!("{name}.variance"), 0.5),
        ];
        self.node(name, Op::BatchNormalization { epsilon: 1e-5 }, &inputs)
    }
}

fn conv() -> Op {
    Op::Conv {
        window: Window {
            kernel: vec![3, 3],
            strides: vec![1, 1],
            dilations: vec![1, 1],
            padding: Padding::Explicit(vec![1; 4]),
        },
        group: 1,
    }
}

pub fn net(seed: u64, variant: Variant) -> Graph {
    let mut b = Builder {
        graph: Graph::default(),
        rng: ChaCha8Rng::seed_from_u64(seed),
    };
    let shape = [
        Dim::Symbol("N".into()),
        Dim::Known(1),
        Dim::Known(SIDE),
        Dim::Known(SIDE),
    ];
    let x = b
        .graph
        .add_value("x", Some(ElementType::F32), Some(shape.to_vec()));
    b.graph.inputs.push(x);
    let w = b.weight("first.weight", &[CHANNELS, 1, 3, 3], 0.6);
    let y = b.node("first", conv(), &[Some(x), w]);
    let y = b.norm("first.norm", y);
    let skip = b.node("first.relu", Op::Unary(UnaryOp::Relu), &[y]);
    let mut w = b.weight("second.weight", &[CHANNELS, CHANNELS, 3, 3], 0.25);
    if variant.quantised {
        let scale = Some(
            b.graph
                .add_constant("second.scale", TensorData::scalar(0.005)),
        );
        let zero = TensorData::from_i64_as(ElementType::I8, &[], &[0]);
        let zero = Some(b.graph.add_constant("second.zero", zero));
        let (axis, block, to) = (0, 0, ElementType::I8);
        let q = Op::QuantizeLinear { axis, block, to };
        let q = b.node("second.q", q, &[w, scale, zero]);
        w = b.node(
            "second.dq",
            Op::DequantizeLinear { axis, block },
            &[q, scale, zero],
        );
    }
    let y = b.node("second", conv(), &[skip, w]);
    let y = b.norm("second.norm", y);
    let y = b.node("add", Op::Binary(BinaryOp::Add), &[y, skip]);
    let y = b.node("relu", Op::Unary(UnaryOp::Relu), &[y]);
    let y = b.node("pool", Op::GlobalAveragePool, &[y]);
    let y = b.node("flatten", Op::Flatten { axis: 1 }, &[y]);
    let w = b.weight("head.weight", &[CLASSES, CHANNELS], 0.5);
    let bias = TensorData::from_f32(&[CLASSES], &[0.0; CLASSES]);
    let bias = Some(b.graph.add_constant("head.bias", bias));
    let gemm = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let mut y = b.node("head", gemm, &[y, w, bias]);
    if variant.softmax {
        y = b.node(
            "softmax",
            Op::Softmax {
                axis: 1,
                flatten: false,
            },
            &[y],
        );
    }
    b.graph.outputs.extend(y);
    b.graph
}

/// Pictures of horizontal stripes, vertical stripes and dots, in noise: 240 to train on, 90 to search on.
pub fn task(splits: &str) -> (tempfile::TempDir, Dataset) {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for sample in 0..330usize {
        let class = sample % CLASSES;
        labels.push(class as u8);
        for y in 0..SIDE {
            for x in 0..SIDE {
                let lit = [y % 2 == 0, x % 2 == 0, (x + y) % 2 == 0][class];
                let noise: f32 = rng.random();
                images.push((if lit { 90.0 } else { 0.0 } + noise * 140.0) as u8);
            }
        }
    }
    let idx = |dims: &[u32], body: &[u8]| {
        let mut out = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|dim| out.extend(dim.to_be_bytes()));
        out.extend(body);
        out
    };
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    let side = SIDE as u32;
    put("images", &idx(&[330, side, side], &images));
    put("labels", &idx(&[330], &labels));
    put(
        "task.ron",
        format!(
            r#"(version: 1, name: "stripes", sources: {{ "all": Idx(images: "images", labels: "labels") }},
                preprocess: (scale: 0.00392156862745098), classes: Count(3), splits: ({splits}))"#
        )
        .as_bytes(),
    );
    let data = Dataset::open(&folder.path().join("task.ron")).unwrap();
    (folder, data)
}

/// The same, and what may be done to the pictures.
pub const AUGMENTED: &str = r#"search: Rows(from: "all", count: 90), training: Rows(from: "all", start: 90, count: 240)),
    augment: (flip: true, shift: 1, mixup: 0.2"#;

pub const SPLITS: &str =
    r#"search: Rows(from: "all", count: 90), training: Rows(from: "all", start: 90, count: 240)"#;
