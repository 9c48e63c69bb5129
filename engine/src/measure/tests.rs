use super::*;
use std::path::Path;

fn sample() -> Graph {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sample-models/fashion-resnet/fashion-resnet.onnx");
    onnx::read(&path).unwrap()
}

/// Replaces the weight of a layer, by a DequantizeLinear of `codes` where `zero_point` is given.
fn with_weight(graph: &mut Graph, layer: &str, data: TensorData, zero_point: Option<TensorData>) {
    let layer = graph
        .layers()
        .into_iter()
        .find(|l| &*l.id.0 == layer)
        .unwrap();
    let Some(zero) = zero_point else {
        graph.set_data(layer.weight, data);
        return;
    };
    let packed = graph.add_constant("packed", data);
    let scale = graph.add_constant(
        "scale",
        TensorData::from_f32(&zero.shape, &vec![0.1; zero.len()]),
    );
    let zero = graph.add_constant("zero", zero);
    let shape = graph.value(layer.weight).shape.clone();
    let float = graph.add_value("float", Some(ElementType::F32), shape);
    graph.rewire(layer.weight, float);
    graph.nodes.insert(
        0,
        crate::graph::Node {
            name: "dequantize".into(),
            op: Op::DequantizeLinear { axis: 0, block: 0 },
            inputs: vec![Some(packed), Some(scale), Some(zero)],
            outputs: vec![Some(float)],
        },
    );
    graph.compact();
}

#[test]
fn the_bundled_network_has_its_published_size() {
    let s = sizes(&sample()).unwrap();
    // What train.py prints.
    assert_eq!(s.params, 272_186);
    assert_eq!(s.nonzero_params, s.params);
    assert_eq!(s.stored, s.theoretical);
    // Trainable parameters and the running statistics of the batch norms (as many as their scales and shifts).
    let layers: u64 = sample().layers().iter().map(|l| l.params).sum();
    assert_eq!(s.runtime.0, 4 * (layers + 2 * (s.params - layers)));
    assert!(
        s.stored > s.runtime && s.stored.0 < s.runtime.0 + 40_000,
        "{s:?}"
    );
    // By hand: stem 112,896; stages 10,838,016 and twice 9,934,848; two 1×1 shortcuts of 100,352; Gemm 640.
    assert_eq!(
        s.macs,
        Some(112_896 + 10_838_016 + 2 * 9_934_848 + 2 * 100_352 + 640)
    );
}

#[test]
fn zeros_save_only_in_theory() {
    let dense = sizes(&sample()).unwrap();
    let mut graph = sample();
    let shape = [64, 64, 3, 3];
    let n = 64 * 64 * 9;
    let half: Vec<f32> = (0..n)
        .map(|i| if i % 2 == 0 { -0.0 } else { 1.0 })
        .collect();
    with_weight(
        &mut graph,
        "layer3.2.conv2",
        TensorData::from_f32(&shape, &half),
        None,
    );
    let s = sizes(&graph).unwrap();
    assert_eq!(
        (s.stored, s.runtime, s.params),
        (dense.stored, dense.runtime, dense.params)
    );
    let n = n as u64;
    assert_eq!(s.nonzero_params, dense.params - n / 2);
    assert_eq!(s.stored.0 - s.theoretical.0, 4 * n - (2 * n + n / 8));
}

#[test]
fn packed_weights_count_by_their_bits_and_zero_points() {
    let dense = sizes(&sample()).unwrap();
    let shape = [64, 64, 3, 3];
    let n = 64 * 64 * 9u64;
    for (element, points) in [
        (
            ElementType::I4,
            TensorData::from_i64_as(ElementType::I4, &[64], &[0; 64]),
        ),
        (
            ElementType::U8,
            TensorData::from_i64_as(ElementType::U8, &[64], &[3; 64]),
        ),
        (
            ElementType::U8,
            TensorData::from_i64_as(ElementType::U8, &[], &[3]),
        ),
    ] {
        let zero = points.to_i64_vec()[0];
        // Three of four codes stand for zero.
        let codes: Vec<i64> = (0..n).map(|i| if i % 4 == 0 { 5 } else { zero }).collect();
        let mut graph = sample();
        let data = TensorData::from_i64_as(element, &shape, &codes);
        let (bits, others) = (element.bits() as u64, points.bytes.len() + 4 * points.len());
        with_weight(&mut graph, "layer3.2.conv2", data, Some(points));
        let s = sizes(&graph).unwrap();
        assert_eq!(s.params, dense.params, "{element}");
        assert_eq!(s.nonzero_params, dense.params - n * 3 / 4, "{element}");
        assert_eq!(
            s.runtime.0,
            dense.runtime.0 - 4 * n + n * bits / 8 + others as u64
        );
        assert_eq!(
            s.stored.0 - s.theoretical.0,
            n * bits / 8 - (n / 4 * bits / 8 + n / 8)
        );
    }
}
