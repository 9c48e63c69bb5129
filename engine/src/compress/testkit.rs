//! Small generated networks for the tests of this room and of `sensitivity`.

use super::{Model, PassContext};
use crate::{
    exec::{CancelToken, Mode, NoTaps, Program},
    graph::{
        Dim, ElementType, Graph, Node, Op, Padding, TensorData, UnaryOp, Value, ValueId, Window,
    },
};
use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub struct Net {
    pub graph: Graph,
    rng: ChaCha8Rng,
}

impl Net {
    /// An input `x` of the given shape, the first axis a symbol.
    pub fn new(seed: u64, sample: &[usize]) -> Self {
        let mut shape = vec![Dim::Symbol("N".into())];
        shape.extend(sample.iter().map(|&d| Dim::Known(d)));
        let input = Value {
            name: "x".to_owned(),
            element: Some(ElementType::F32),
            shape: Some(shape),
            data: None,
        };
        Self {
            graph: Graph {
                name: "test".to_owned(),
                values: vec![input],
                inputs: vec![ValueId(0)],
                ..Graph::default()
            },
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    pub fn floats(&mut self, n: usize, lo: f32, hi: f32) -> Vec<f32> {
        (0..n)
            .map(|_| lo + (hi - lo) * self.rng.random::<f32>())
            .collect()
    }

    pub fn weight(&mut self, name: &str, shape: &[usize], lo: f32, hi: f32) -> ValueId {
        let values = self.floats(shape.iter().product(), lo, hi);
        self.graph
            .add_constant(name, TensorData::from_f32(shape, &values))
    }

    pub fn node(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> ValueId {
        let out = ValueId(self.graph.values.len() as u32);
        self.graph.values.push(Value {
            name: format!("{name}_out"),
            element: Some(ElementType::F32),
            shape: None,
            data: None,
        });
        self.graph.nodes.push(Node {
            name: name.to_owned(),
            op,
            inputs: inputs.iter().map(|i| Some(*i)).collect(),
            outputs: vec![Some(out)],
        });
        out
    }

    pub fn conv(
        &mut self,
        name: &str,
        x: ValueId,
        shape: [usize; 4],
        group: usize,
        bias: bool,
    ) -> ValueId {
        let mut inputs = vec![x, self.weight(&format!("{name}.weight"), &shape, -1.0, 1.0)];
        if bias {
            inputs.push(self.weight(&format!("{name}.bias"), &[shape[0]], -0.5, 0.5));
        }
        let window = window([shape[2], shape[3]]);
        self.node(name, Op::Conv { window, group }, &inputs)
    }

    pub fn norm(&mut self, name: &str, x: ValueId, channels: usize) -> ValueId {
        let inputs = [
            x,
            self.weight(&format!("{name}.scale"), &[channels], -1.5, 1.5),
            self.weight(&format!("{name}.shift"), &[channels], -0.5, 0.5),
            self.weight(&format!("{name}.mean"), &[channels], -0.5, 0.5),
            self.weight(&format!("{name}.variance"), &[channels], 0.1, 2.0),
        ];
        self.node(name, Op::BatchNormalization { epsilon: 1e-5 }, &inputs)
    }

    pub fn relu(&mut self, name: &str, x: ValueId) -> ValueId {
        self.node(name, Op::Unary(UnaryOp::Relu), &[x])
    }

    /// Gemm with a weight of outputs × inputs and a bias of up to `bias`.
    pub fn linear(&mut self, name: &str, x: ValueId, shape: [usize; 2], bias: f32) -> ValueId {
        let gemm = [
            x,
            self.weight(&format!("{name}.weight"), &shape, -1.0, 1.0),
            self.weight(&format!("{name}.bias"), &shape[..1], -bias, bias),
        ];
        let op = Op::Gemm {
            alpha: 1.0,
            beta: 1.0,
            trans_a: false,
            trans_b: true,
        };
        self.node(name, op, &gemm)
    }

    /// Fixes how many samples the input takes at a time.
    pub fn fix(graph: &mut Graph, batch: usize) {
        if let Some(shape) = &mut graph.value_mut(ValueId(0)).shape {
            shape[0] = Dim::Known(batch);
        }
    }

    pub fn finish(mut self, outputs: &[ValueId]) -> Model {
        self.graph.outputs = outputs.to_vec();
        self.graph.validate().expect("test graphs are valid");
        Model::new(self.graph)
    }
}

/// 'Same' padding for odd kernels at stride 1.
pub fn window(kernel: [usize; 2]) -> Window {
    let pads = [kernel[0] / 2, kernel[1] / 2];
    Window {
        kernel: kernel.to_vec(),
        strides: vec![1, 1],
        dilations: vec![1, 1],
        padding: Padding::Explicit(vec![pads[0], pads[1], pads[0], pads[1]]),
    }
}

/// conv → norm → relu → depthwise → norm → relu → grouped transposed conv → norm → pool → gemm → norm → matmul.
pub fn zoo(seed: u64) -> Model {
    let mut net = Net::new(seed, &[3, 6, 6]);
    let x = net.conv("stem", ValueId(0), [8, 3, 3, 3], 1, false);
    let x = net.norm("stem_norm", x, 8);
    let x = net.relu("stem_relu", x);
    let x = net.conv("depthwise", x, [8, 1, 3, 3], 8, true);
    let x = net.norm("depthwise_norm", x, 8);
    let x = net.relu("depthwise_relu", x);
    let up = [x, net.weight("up.weight", &[8, 3, 3, 3], -1.0, 1.0)];
    let op = Op::ConvTranspose {
        window: window([3, 3]),
        group: 2,
        output_padding: vec![0, 0],
        output_shape: None,
    };
    let x = net.node("up", op, &up);
    let x = net.norm("up_norm", x, 6);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let gemm = [
        x,
        net.weight("gemm.weight", &[5, 6], -1.0, 1.0),
        net.weight("gemm.bias", &[1], -0.5, 0.5),
    ];
    let op = Op::Gemm {
        alpha: 0.5,
        beta: 2.0,
        trans_a: false,
        trans_b: true,
    };
    let x = net.node("gemm", op, &gemm);
    let x = net.norm("gemm_norm", x, 5);
    let head = [x, net.weight("head.weight", &[5, 4], -1.0, 1.0)];
    let x = net.node("head", Op::MatMul, &head);
    net.finish(&[x])
}

/// Outputs on a fixed made-up batch of `n` samples.
pub fn run(graph: &Graph, n: usize) -> Vec<f32> {
    run_on(graph, &batch(n, &[3, 6, 6]))
}

pub fn batch(n: usize, sample: &[usize]) -> Tensor {
    let mut shape = vec![n];
    shape.extend(sample);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| rng.random::<f32>() * 2.0 - 1.0)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape holds")
}

pub fn run_on(graph: &Graph, x: &Tensor) -> Vec<f32> {
    let program = Program::compile(graph, Mode::Inference).expect("test graphs compile");
    let out = program
        .run(
            std::slice::from_ref(x),
            &mut NoTaps,
            &CancelToken::default(),
        )
        .expect("test graphs run");
    out[0]
        .flatten_all()
        .and_then(|t| t.to_vec1())
        .expect("float outputs")
}

/// Applies something to a pass context without data.
pub fn with_context<T>(f: impl FnOnce(&PassContext<'_>) -> T) -> T {
    f(&PassContext {
        data: None,
        cancel: &CancelToken::default(),
        seed: 0,
    })
}

/// What `work` gives on so many threads.
pub fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(16 << 20)
        .build()
        .expect("threads");
    pool.install(work)
}

/// A task of made-up 6×6 images with three classes: 40 for calibration, 60 to search. The folder holds its files.
pub fn task(seed: u64) -> (tempfile::TempDir, crate::data::Dataset) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let idx = |dims: &[u32], body: &[u8]| {
        let mut out = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|d| out.extend(d.to_be_bytes()));
        out.extend(body);
        out
    };
    let pixels: Vec<u8> = (0..100 * 36).map(|_| rng.random::<u8>()).collect();
    let labels: Vec<u8> = (0..100).map(|_| rng.random::<u8>() % 3).collect();
    let text = r#"(version: 1, name: "t", sources: { "all": Idx(images: "x", labels: "y") },
        preprocess: (scale: 0.01), classes: Count(3), splits: (
            calibration: Rows(from: "all", start: 0, count: 40),
            search: Rows(from: "all", start: 40, count: 60),
        ))"#;
    let files: [(&str, Vec<u8>); 3] = [
        ("x", idx(&[100, 6, 6], &pixels)),
        ("y", idx(&[100], &labels)),
        ("task.ron", text.as_bytes().to_vec()),
    ];
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("the temporary folder takes files");
    }
    let data = crate::data::Dataset::open(&folder.path().join("task.ron"));
    (folder, data.expect("the task is well formed"))
}

/// conv → norm → relu → conv → norm → relu → pool → gemm, for the images of [`task`].
pub fn classifier(seed: u64) -> Model {
    let mut net = Net::new(seed, &[1, 6, 6]);
    let x = net.conv("first", ValueId(0), [6, 1, 3, 3], 1, false);
    let x = net.norm("first_norm", x, 6);
    let x = net.relu("first_relu", x);
    let x = net.conv("second", x, [8, 6, 3, 3], 1, false);
    let x = net.norm("second_norm", x, 8);
    let x = net.relu("second_relu", x);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let x = net.linear("head", x, [3, 8], 0.1);
    net.finish(&[x])
}
