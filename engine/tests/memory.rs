//! Working memory of an evaluation, counted at the allocator: no more than the two largest sets of values that live at one time, for the
//! images that are worked on together.

#![allow(unsafe_code)] // an allocator is an unsafe trait; this one counts and passes everything on

use candle_core::{Device, Tensor};
use limbeck_engine::{
    exec::{CancelToken, ExecError, Mode, NoTaps, Program, Taps},
    formats::onnx,
    graph::{BinaryOp, Dim, ElementType, Graph, Op, Padding, TensorData, ValueId, Window},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every request goes to the system's allocator as it came; the counters have no part in what is returned.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One measurement at a time: tests of one binary share the allocator.
static ALONE: Mutex<()> = Mutex::new(());

/// The most bytes allocated at any time during `work`, beyond those before it.
fn peak(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    work();
    PEAK.load(Ordering::SeqCst).saturating_sub(before)
}

/// Notes the size of every value.
struct Sizes(BTreeMap<ValueId, usize>);
impl Taps for Sizes {
    fn wants(&self, _: ValueId) -> bool {
        true
    }
    fn visit(&mut self, value: ValueId, t: &Tensor) -> Result<Option<Tensor>, ExecError> {
        let bytes = t.elem_count() * t.dtype().size_in_bytes();
        self.0.insert(value, bytes);
        Ok(None)
    }
}

/// Bytes of the two largest sets of values alive at one node, weights not counted.
fn two_largest(graph: &Graph, program: &Program, x: &Tensor) -> [usize; 2] {
    let mut sizes = Sizes(BTreeMap::new());
    let cancel = CancelToken::default();
    program
        .run(std::slice::from_ref(x), &mut sizes, &cancel)
        .unwrap();
    let mut last = BTreeMap::new();
    let mut first = BTreeMap::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        for value in node.inputs.iter().flatten() {
            last.insert(*value, at);
        }
        for value in node.outputs.iter().flatten() {
            first.insert(*value, at);
            last.entry(*value).or_insert(at);
        }
    }
    for value in &graph.outputs {
        last.insert(*value, graph.nodes.len());
    }
    let mut sets: Vec<usize> = (0..graph.nodes.len())
        .map(|at| {
            let lives = |v: &ValueId| first[v] <= at && at <= last[v];
            let alive = first.keys().filter(|v| lives(v));
            alive.filter_map(|v| sizes.0.get(v)).sum()
        })
        .collect();
    sets.sort_unstable_by(|a, b| b.cmp(a));
    [sets[0], sets[1]]
}

/// Room for lists, names and the threads' own bookkeeping.
const BOOKKEEPING: usize = 1 << 20;

fn run(program: &Program, x: &Tensor, taps: &mut dyn Taps) {
    let out = program.run(std::slice::from_ref(x), taps, &CancelToken::default());
    drop(out.unwrap());
}

fn images(n: usize) -> Tensor {
    let data: Vec<f32> = (0..n * 784)
        .map(|i| (i * 7919 % 1021) as f32 / 1021.0)
        .collect();
    Tensor::from_vec(data, (n, 1, 28, 28), &Device::Cpu).unwrap()
}

#[test]
fn a_convolutional_network_takes_memory_for_pieces_not_for_the_batch() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sample-models/fashion-resnet/fashion-resnet.onnx");
    let graph = onnx::read(&path).unwrap();
    let threads = limbeck_engine::exec::pool().current_num_threads();
    // A piece is 16 images of this size at most, and every thread has one.
    let together = 16 * threads;
    let measure = |n: usize| {
        let program = Program::compile(&graph, Mode::Inference).unwrap();
        // Weights are packed at the first run; a single image's workspace is kept.
        run(&program, &images(1), &mut NoTaps);
        let x = images(n);
        peak(|| run(&program, &x, &mut NoTaps))
    };
    let program = Program::compile(&graph, Mode::Inference).unwrap();
    let [a, b] = two_largest(&graph, &program, &images(together));
    let outputs = |n: usize| 2 * n * 10 * 4;
    for batch in [together, 4 * together] {
        let used = measure(batch);
        let allowed = a + b + outputs(batch) + BOOKKEEPING;
        assert!(
            used <= allowed,
            "{used} bytes for a batch of {batch}, {allowed} allowed (live sets of {a} and {b})"
        );
    }
}

/// A stack of convolutions over small planes and a product: 9 MB of weights, of which little else is worth a word.
fn heavy() -> (Graph, usize) {
    let mut graph = Graph::default();
    let shape = [Dim::Unknown, Dim::Known(256), Dim::Known(4), Dim::Known(4)];
    let x = graph.add_value("x", Some(ElementType::F32), Some(shape.into()));
    graph.inputs.push(x);
    let mut bytes = 0;
    let mut y = x;
    let mut node = |graph: &mut Graph, op: Op, y: ValueId, shape: &[usize]| {
        let count: usize = shape.iter().product();
        bytes += count * 4;
        let v: Vec<f32> = (0..count).map(|i| (i * 31 % 97) as f32 / 9700.0).collect();
        let w = graph.add_constant("w", TensorData::from_f32(shape, &v));
        let out = graph.add_value("y", None, None);
        graph.add_node("n", op, vec![Some(y), Some(w)], vec![Some(out)]);
        out
    };
    for _ in 0..3 {
        let window = Window {
            kernel: vec![3, 3],
            strides: vec![1, 1],
            dilations: vec![1, 1],
            padding: Padding::Explicit(vec![1; 4]),
        };
        y = node(
            &mut graph,
            Op::Conv { window, group: 1 },
            y,
            &[256, 256, 3, 3],
        );
    }
    let flat = graph.add_value("f", None, None);
    let op = Op::Flatten { axis: 1 };
    graph.add_node("flatten", op, vec![Some(y)], vec![Some(flat)]);
    y = node(&mut graph, Op::MatMul, flat, &[4096, 128]);
    graph.outputs = vec![y];
    (graph, bytes)
}

#[test]
fn a_fused_network_has_its_weights_once_beside_the_graph() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let (graph, weights) = heavy();
    let x = Tensor::ones((2, 256, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let program = Program::compile(&graph, Mode::Inference).unwrap();
    let [a, b] = two_largest(&graph, &program, &x);
    drop(program);
    let before = LIVE.load(Ordering::SeqCst);
    let mut kept = 0;
    let used = peak(|| {
        let program = Program::compile(&graph, Mode::Inference).unwrap();
        run(&program, &x, &mut NoTaps);
        kept = LIVE.load(Ordering::SeqCst) - before;
    });
    // Packed, and no tensors beside them.
    assert!(
        kept <= weights + a + b + BOOKKEEPING,
        "{kept} bytes stay, for weights of {weights}"
    );
    // While a layer is packed its own weights are there a second time.
    let layer = 256 * 256 * 9 * 4;
    assert!(
        used <= weights + layer + a + b + BOOKKEEPING,
        "{used} bytes at most, for weights of {weights}"
    );
    assert!(kept >= weights, "the count sees packed weights");
}

/// Products, norms, activations and a residual over rows of 256.
fn rows() -> (Graph, Tensor) {
    let mut graph = Graph::default();
    let dims = [Dim::Unknown, Dim::Known(64), Dim::Known(256)];
    let x = graph.add_value("x", Some(ElementType::F32), Some(dims.into()));
    graph.inputs.push(x);
    let node = |graph: &mut Graph, op: Op, inputs: &[ValueId]| {
        let y = graph.add_value("y", None, None);
        let inputs = inputs.iter().copied().map(Some).collect();
        graph.add_node("n", op, inputs, vec![Some(y)]);
        y
    };
    let constant = |graph: &mut Graph, shape: &[usize]| {
        let count = shape.iter().product();
        let v: Vec<f32> = (0..count).map(|i| (i * 31 % 97) as f32 / 970.0).collect();
        graph.add_constant("c", TensorData::from_f32(shape, &v))
    };
    let mut y = x;
    for _ in 0..3 {
        let w = constant(&mut graph, &[256, 256]);
        let b = constant(&mut graph, &[256]);
        let h = node(&mut graph, Op::MatMul, &[y, w]);
        let h = node(&mut graph, Op::Binary(BinaryOp::Add), &[h, b]);
        let h = node(&mut graph, Op::Gelu { tanh: false }, &[h]);
        let axis = -1;
        let h = node(
            &mut graph,
            Op::Softmax {
                axis,
                flatten: false,
            },
            &[h],
        );
        let h = node(&mut graph, Op::Binary(BinaryOp::Add), &[h, y]);
        let epsilon = 1e-5;
        y = node(
            &mut graph,
            Op::LayerNormalization { axis, epsilon },
            &[h, b, b],
        );
    }
    graph.outputs = vec![y];
    let count: usize = 64 * 64 * 256;
    let data: Vec<f32> = (0..count)
        .map(|i| (i * 7919 % 1021) as f32 / 1021.0)
        .collect();
    (
        graph,
        Tensor::from_vec(data, (64, 64, 256), &Device::Cpu).unwrap(),
    )
}

#[test]
fn operators_one_by_one_keep_to_their_live_sets_and_write_in_place() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let (graph, x) = rows();
    let compiled = peak(|| drop(Program::compile(&graph, Mode::Inference).unwrap()));
    assert!(
        compiled <= BOOKKEEPING / 4,
        "{compiled} bytes before a weight is wanted"
    );
    let program = Program::compile(&graph, Mode::Inference).unwrap();
    let [a, b] = two_largest(&graph, &program, &x);
    // The matrix product's own panels stay with their threads after the first run.
    run(&program, &x, &mut NoTaps);
    let value = 64 * 64 * 256 * 4;
    let used = peak(|| run(&program, &x, &mut NoTaps));
    assert!(
        used <= a + b + BOOKKEEPING,
        "{used} bytes, live sets of {a} and {b}"
    );
    // A residual and what is added to it, no third: everything else is written over what nobody reads again.
    assert!(
        used <= 2 * value + BOOKKEEPING,
        "{used} bytes where two values of {value} live"
    );
    struct Watching;
    impl Taps for Watching {
        fn wants(&self, _: ValueId) -> bool {
            false
        }
        fn visit(&mut self, _: ValueId, _: &Tensor) -> Result<Option<Tensor>, ExecError> {
            Ok(None)
        }
    }
    let apart = peak(|| run(&program, &x, &mut Watching));
    assert!(
        apart <= a + b + BOOKKEEPING,
        "{apart} bytes operator by operator, live sets of {a} and {b}"
    );
    assert!(apart > used, "in place takes less: {used} against {apart}");
}
