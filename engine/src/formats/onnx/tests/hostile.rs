//! Broken and hostile files: an error in words, never a panic or an allocation by a size the file states.

use super::*;
use proptest::prelude::*;

/// A model with most kinds of fields in it.
fn sample() -> Vec<u8> {
    let window = vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])];
    let nodes = vec![
        node("Conv", &["x", "w", "b"], &["c"], window),
        node("Relu", &["c"], &["r"], vec![]),
        node("Shape", &["r"], &["s"], vec![]),
        node("Gather", &["s", "i"], &["n"], vec![int("axis", 0)]),
        node("Concat", &["n", "rest"], &["t"], vec![int("axis", 0)]),
        node("Reshape", &["r", "t"], &["y"], vec![]),
    ];
    let one = |name: &str, v: i64| tensor(name, &TensorData::from_i64(&[1], &[v]));
    let initializers = vec![
        floats("w", &[3, 3, 3, 3]),
        floats("b", &[3]),
        one("i", 0),
        one("rest", -1),
    ];
    model(13, nodes, initializers).encode_to_vec()
}

#[test]
fn every_truncation_is_an_error_or_a_smaller_model() {
    let bytes = sample();
    super::super::read_bytes(bytes.clone().into()).unwrap();
    let mut whole = 0;
    for length in 0..bytes.len() {
        whole += usize::from(super::super::read_bytes(bytes[..length].to_vec().into()).is_ok());
    }
    assert_eq!(whole, 0, "a truncated model is never taken for a whole one");
}

#[test]
fn files_that_are_no_models_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.onnx");
    for (bytes, expected) in [
        (&b""[..], "no graph"),
        (&b"PK\x03\x04 a zip file"[..], "not a complete ONNX model"),
        (&[0u8; 64][..], "not a complete ONNX model"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = super::super::read(&path).unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains("a.onnx"),
            "{error}"
        );
    }
    for path in [
        folder.path().to_path_buf(),
        folder.path().join("missing.onnx"),
    ] {
        let error = super::super::read(&path).unwrap_err().to_string();
        assert!(error.contains("cannot read the file"), "{error}");
    }
}

#[test]
fn stated_sizes_are_not_believed() {
    let huge = |dims: &[i64]| proto::Tensor {
        dims: dims.to_vec(),
        data_type: Some(1),
        name: Some("w".into()),
        raw_data: Some(Bytes::from_static(&[0; 8])),
        ..Default::default()
    };
    for (dims, expected) in [
        (&[1i64 << 40][..], "needs 4398046511104 bytes"),
        (&[i64::MAX, i64::MAX][..], "larger than memory"),
        (&[-1][..], "extent -1"),
    ] {
        let relu = node("Relu", &["w"], &["y"], vec![]);
        let error = read(&model(13, vec![relu], vec![huge(dims)])).unwrap_err();
        assert!(
            error.contains(expected) && error.contains("tensor w"),
            "{error}"
        );
    }
    // Shapes that a graph computes are only numbers, however large.
    let shape = tensor("s", &TensorData::from_i64(&[2], &[1 << 40, 1 << 40]));
    let nodes = vec![node("ConstantOfShape", &["s"], &["y"], vec![])];
    let graph = read(&model(13, nodes, vec![shape])).unwrap();
    assert_eq!(
        graph.value(graph.outputs[0]).known_shape(),
        Some(vec![1 << 40, 1 << 40])
    );
}

#[test]
fn many_equal_names_take_no_quadratic_time() {
    let nodes = (0..20_000)
        .map(|i| {
            let mut n = node(
                "Relu",
                &[if i == 0 { "x".into() } else { format!("v{i}") }.as_str()],
                &[format!("v{}", i + 1).as_str()],
                vec![],
            );
            n.name = Some("same".into());
            n
        })
        .chain([node("Relu", &["v20000"], &["y"], vec![])])
        .collect();
    assert_eq!(read(&model(13, nodes, vec![])).unwrap().nodes.len(), 20_001);
}

#[test]
fn deep_nesting_is_refused() {
    let mut inner = proto::Graph::default();
    for _ in 0..200 {
        let mut n = node("If", &[], &[], vec![]);
        n.attribute = vec![proto::Attribute {
            g: Some(inner),
            ..attribute("then_branch", kind::GRAPH)
        }];
        inner = proto::Graph {
            node: vec![n],
            ..Default::default()
        };
    }
    let m = proto::Model {
        graph: Some(inner),
        ..Default::default()
    };
    assert!(read(&m).unwrap_err().contains("recursion"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_do_no_harm(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = sample();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(graph) = super::super::read_bytes(bytes.into()) {
            graph.validate().unwrap();
            graph.layers();
            // What was read can be written, or says why not.
            let _ = super::super::to_bytes(&graph);
        }
    }
}
