//! Every kernel at sizes that networks have: what `benches/kernels.rs` times and `examples/roofline.rs` sets against the machine's peak.

use candle_core::{DType, Device, Result, Tensor, Var};
use limbeck_engine::{
    exec::{
        CancelToken, Mode, NoTaps, Program,
        kernels::{
            Conv2dGeometry, FakeQuant, Pool2dGeometry, avg_pool2d, batch_norm, conv2d, fake_quant,
            layer_norm, max_pool2d, permute, product, softmax,
        },
    },
    graph::{BinaryOp, Dim, ElementType, Graph, Op, TensorData, UnaryOp},
};

/// What limits a kernel.
#[derive(Clone, Copy)]
pub enum Work {
    /// Multiplications and additions of the forward pass.
    Flop(f64),
    /// Bytes read and written at least, by the forward pass.
    Bytes(f64),
}

/// What a kernel computes from its inputs.
pub type Run = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

pub struct Case {
    pub name: String,
    /// All differentiable.
    pub inputs: Vec<Var>,
    pub work: Work,
    pub run: Run,
}

pub const BATCH: usize = 16;

pub fn random(shape: &[usize]) -> Var {
    let count = shape.iter().product::<usize>();
    let data: Vec<f32> = (0..count)
        .map(|i| ((i * 7919 % 1009) as f32) / 1009.0 - 0.5)
        .collect();
    let tensor = Tensor::from_vec(data, shape, &Device::Cpu).expect("sizes agree");
    Var::from_tensor(&tensor).expect("memory suffices")
}

/// One convolution: channels in and out, extent, kernel, stride, groups.
pub struct Layer(pub &'static str, pub [usize; 6]);

pub const LAYERS: [Layer; 11] = [
    Layer("dense 1x1 64to128@28", [64, 128, 28, 1, 1, 1]),
    Layer("dense 1x1 192to32@28", [192, 32, 28, 1, 1, 1]),
    Layer("dense 3x3 64to64@28", [64, 64, 28, 3, 1, 1]),
    Layer("dense 3x3 64to128@28, stride 2", [64, 128, 28, 3, 2, 1]),
    Layer("stem 3x3 3to32@112, stride 2", [3, 32, 112, 3, 2, 1]),
    Layer("dense 5x5 32to32@28", [32, 32, 28, 5, 1, 1]),
    Layer("grouped 3x3 64to64@28, 4 groups", [64, 64, 28, 3, 1, 4]),
    Layer("depthwise 3x3 128@28", [128, 128, 28, 3, 1, 128]),
    Layer("depthwise 3x3 128@28, stride 2", [128, 128, 28, 3, 2, 128]),
    Layer("depthwise 5x5 128@28", [128, 128, 28, 5, 1, 128]),
    Layer("depthwise 5x5 128@28, stride 2", [128, 128, 28, 5, 2, 128]),
];

impl Layer {
    pub fn geometry(&self) -> Conv2dGeometry {
        let [_, _, _, kernel, stride, groups] = self.1;
        let pad = kernel / 2;
        Conv2dGeometry {
            stride: (stride, stride),
            dilation: (1, 1),
            pad: (pad, pad, pad, pad),
            groups,
        }
    }
    pub fn inputs(&self) -> [Var; 2] {
        let [from, to, extent, kernel, _, groups] = self.1;
        [
            random(&[BATCH, from, extent, extent]),
            random(&[to, from / groups, kernel, kernel]),
        ]
    }
    fn flop(&self) -> f64 {
        let [from, to, extent, kernel, stride, groups] = self.1;
        let pixels = extent.div_ceil(stride).pow(2) * BATCH;
        2.0 * (pixels * to * from / groups * kernel * kernel) as f64
    }
}

/// A graph of one input and one output, as a kernel.
fn network(shape: &[usize], build: impl FnOnce(&mut Graph, usize)) -> Run {
    let mut graph = Graph::default();
    let dims = shape.iter().map(|d| Dim::Known(*d)).collect();
    let x = graph.add_value("x", Some(ElementType::F32), Some(dims));
    graph.inputs.push(x);
    build(&mut graph, shape[shape.len() - 1]);
    let program = Program::compile(&graph, Mode::Training).expect("compiles");
    let plain = Program::compile(&graph, Mode::Inference).expect("compiles");
    Box::new(move |t| {
        let program = if t[0].track_op() { &program } else { &plain };
        let cancel = CancelToken::default();
        let out = program.run(&t[..1], &mut NoTaps, &cancel);
        Ok(out.map_err(candle_core::Error::wrap)?.remove(0))
    })
}

/// Adds a node and makes its result the output.
fn node(
    graph: &mut Graph,
    op: Op,
    inputs: &[limbeck_engine::graph::ValueId],
) -> limbeck_engine::graph::ValueId {
    let y = graph.add_value("y", None, None);
    let inputs = inputs.iter().copied().map(Some).collect();
    graph.add_node("node", op, inputs, vec![Some(y)]);
    graph.outputs = vec![y];
    y
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for layer in &LAYERS {
        let geometry = layer.geometry();
        cases.push(Case {
            name: layer.0.to_owned(),
            inputs: layer.inputs().into(),
            work: Work::Flop(layer.flop()),
            run: Box::new(move |t| conv2d(&t[0], &t[1], None, geometry)),
        });
    }
    for (name, m, k, n) in [
        ("product 2048x256x1024", 2048, 256, 1024),
        ("product 64x512x10", 64, 512, 10),
    ] {
        cases.push(Case {
            name: name.into(),
            inputs: vec![random(&[m, k]), random(&[k, n])],
            work: Work::Flop(2.0 * (m * k * n) as f64),
            run: Box::new(|t| product(&t[0], &t[1], None)),
        });
    }
    cases.push(Case {
        name: "attention scores 64 pairs of 128x32".into(),
        inputs: vec![random(&[64, 128, 32]), random(&[64, 128, 32])],
        work: Work::Flop(2.0 * 64.0 * 128.0 * 128.0 * 32.0),
        run: Box::new(|t| product(&t[0], &t[1].t()?, None)),
    });
    let plane = [BATCH, 64, 28, 28];
    let count = plane.iter().product::<usize>() as f64;
    let moved = |floats: f64| Work::Bytes(4.0 * floats);
    let pool = |kernel: usize, stride: usize| Pool2dGeometry {
        kernel: (kernel, kernel),
        stride: (stride, stride),
        dilation: (1, 1),
        pad: (kernel / 2, kernel / 2, kernel / 2, kernel / 2),
        ceil: false,
    };
    let mut push = |name: &str, inputs: Vec<Var>, work, run: Run| {
        cases.push(Case {
            name: name.into(),
            inputs,
            work,
            run,
        });
    };
    let geometry = pool(3, 2);
    push(
        "max pooling 3x3, stride 2",
        vec![random(&plane)],
        moved(1.25 * count),
        Box::new(move |t| max_pool2d(&t[0], geometry)),
    );
    push(
        "average pooling 3x3, stride 2",
        vec![random(&plane)],
        moved(1.25 * count),
        Box::new(move |t| avg_pool2d(&t[0], geometry, false)),
    );
    let ones = Tensor::ones(64, DType::F32, &Device::Cpu).expect("memory suffices");
    let mean = random(&[64]);
    push(
        "batch norm, stored statistics",
        vec![random(&plane), random(&[64]), random(&[64])],
        moved(2.0 * count),
        Box::new(move |t| batch_norm(&t[0], &t[1], &t[2], &mean, &ones, 1e-5)),
    );
    let rows = [2048, 384];
    let area = (rows[0] * rows[1]) as f64;
    push(
        "layer norm 2048x384",
        vec![random(&rows), random(&rows[1..]), random(&rows[1..])],
        moved(2.0 * area),
        Box::new(|t| layer_norm(&t[0], &t[1], &t[2], 1e-5)),
    );
    push(
        "softmax 2048x384",
        vec![random(&rows)],
        moved(2.0 * area),
        Box::new(|t| softmax(&t[0], false)),
    );
    for (name, op) in [
        ("GELU", Op::Gelu { tanh: false }),
        ("sigmoid", Op::Unary(UnaryOp::Sigmoid)),
        ("tanh", Op::Unary(UnaryOp::Tanh)),
        ("relu", Op::Unary(UnaryOp::Relu)),
    ] {
        push(
            &format!("{name} 2048x384"),
            vec![random(&rows)],
            moved(2.0 * area),
            network(&rows, |graph, _| {
                let x = graph.inputs[0];
                node(graph, op, &[x]);
            }),
        );
    }
    push(
        "chain of 4: times row, plus row, sigmoid, times scalar",
        vec![random(&rows)],
        moved(2.0 * area),
        network(&rows, |graph, width| {
            let v: Vec<f32> = (0..width).map(|i| i as f32 / width as f32).collect();
            let row = graph.add_constant("row", TensorData::from_f32(&[width], &v));
            let one = graph.add_constant("one", TensorData::from_f32(&[], &[0.5]));
            let mut y = graph.inputs[0];
            y = node(graph, Op::Binary(BinaryOp::Mul), &[y, row]);
            y = node(graph, Op::Binary(BinaryOp::Add), &[y, row]);
            y = node(graph, Op::Unary(UnaryOp::Sigmoid), &[y]);
            node(graph, Op::Binary(BinaryOp::Mul), &[y, one]);
        }),
    );
    push(
        "exchange of axes 16x128x8x32",
        vec![random(&[16, 128, 8, 32])],
        moved(2.0 * 16.0 * 128.0 * 256.0),
        Box::new(|t| permute(&t[0], &[0, 2, 1, 3])),
    );
    for (name, channels) in [("a tensor", 1), ("a channel", 64)] {
        let quant = FakeQuant {
            scale: vec![0.01; channels],
            zero_point: vec![3; channels],
            lo: -128,
            hi: 127,
            axis: 1,
            block: 0,
        };
        push(
            &format!("fake quantisation, one step {name}"),
            vec![random(&plane)],
            moved(2.0 * count),
            Box::new(move |t| fake_quant(&t[0], &quant)),
        );
    }
    cases
}
