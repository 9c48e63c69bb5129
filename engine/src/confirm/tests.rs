//! A network that computes something else than the one in the runtime is found out, at the tensor where it begins. Without a runtime
//! this says so and passes, as `tests/runtime.rs` does.

use super::{run::Batch, tensors::Traced};
use crate::{
    exec::{CancelToken, Mode, Program},
    graph::{Dim, ElementType, Graph, Op, TensorData, ValueId},
    measure::runtime::{Runtime, RuntimeSearch},
};
use candle_core::{Device, Tensor};
use std::io::Write;

fn runtime() -> Option<Runtime> {
    match Runtime::find(&RuntimeSearch::default()) {
        Ok(runtime) => Some(runtime),
        Err(e) if std::env::var_os("LIMBECK_RUNTIME_REQUIRED").is_some() => panic!("{e}"),
        Err(e) => {
            let said = format!("skipped, nothing was held against ONNX Runtime: {e}\n");
            std::io::stderr()
                .write_all(said.as_bytes())
                .expect("stderr");
            None
        }
    }
}

/// Three products with quantised inputs q0, q1, q2; every weight of the second is multiplied by `factor`.
fn network(factor: f32) -> Graph {
    let mut graph = Graph::default();
    let shape = vec![Dim::Symbol("N".into()), Dim::Known(6)];
    let mut x = graph.add_value("x", Some(ElementType::F32), Some(shape));
    graph.inputs.push(x);
    for layer in 0..3_usize {
        let quantised = pair(&mut graph, x, layer);
        let by = if layer == 1 { factor } else { 1.0 };
        let weights: Vec<f32> = (0..36)
            .map(|i| by * (((i * 31 + layer * 17) % 13) as f32 / 13.0 - 0.4))
            .collect();
        let weight = TensorData::from_f32(&[6, 6], &weights);
        let weight = graph.add_constant(&format!("w{layer}"), weight);
        x = graph.add_value(&format!("y{layer}"), None, None);
        let inputs = vec![Some(quantised), Some(weight)];
        graph.add_node(&format!("m{layer}"), Op::MatMul, inputs, vec![Some(x)]);
    }
    graph.outputs.push(x);
    graph
}

/// QuantizeLinear → DequantizeLinear behind a value.
fn pair(graph: &mut Graph, x: ValueId, layer: usize) -> ValueId {
    let scale = graph.add_constant(&format!("s{layer}"), TensorData::scalar(0.013));
    let zero = TensorData::from_i64_as(ElementType::U8, &[], &[120]);
    let zero = graph.add_constant(&format!("z{layer}"), zero);
    let codes = graph.add_value(&format!("q{layer}"), Some(ElementType::U8), None);
    let back = graph.add_value(&format!("d{layer}"), None, None);
    let (axis, block, to) = (1, 0, ElementType::U8);
    let constants = [Some(scale), Some(zero)];
    graph.add_node(
        &format!("quantise{layer}"),
        Op::QuantizeLinear { axis, block, to },
        [&[Some(x)], &constants[..]].concat(),
        vec![Some(codes)],
    );
    graph.add_node(
        &format!("dequantise{layer}"),
        Op::DequantizeLinear { axis, block },
        [&[Some(codes)], &constants[..]].concat(),
        vec![Some(back)],
    );
    back
}

#[test]
fn another_network_is_found_out_where_it_begins() {
    let Some(runtime) = runtime() else { return };
    let values: Vec<f32> = (0..48).map(|i| ((i * 7) % 19) as f32 / 9.5 - 1.0).collect();
    let report = |factor: f32| {
        let mut traced = Traced::new(&network(1.0), &runtime, 1, 7)
            .expect("the runtime takes it")
            .expect("it is quantised");
        let program = Program::compile(&network(factor), Mode::Inference).expect("compiles");
        // The last of eight only fills the batch up.
        let batch = Batch {
            images: Tensor::from_slice(&values, (8, 6), &Device::Cpu).expect("a tensor"),
            labels: vec![0; 7],
            padded: 8,
        };
        let cancel = CancelToken::default();
        traced.batch(&program, &batch, &cancel).expect("runs");
        traced.report()
    };
    let same = report(1.0);
    assert_eq!(same.tensors.len(), 3);
    assert_eq!(same.first_beyond_one(), None);
    assert_eq!(same.totals().1.elements, 3 * 7 * 6);
    let other = report(1.1);
    let first = other.first_parting().expect("they part");
    assert_eq!((&*first.name, first.best().largest > 1), ("q2", true));
    assert_eq!(other.tensors[1].best().equal, 42, "{other:?}");
}
