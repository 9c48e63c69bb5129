//! Names, constants, order, sub-graphs, external data.

use super::*;
use crate::graph::{CAPTURES, Dim, ElementType, GraphError, RawAttribute, UnaryOp};

#[test]
fn typed_data_of_every_type_reads_as_raw_data_does() {
    for element in ElementType::ALL {
        let raw = TensorData::from_i64_as(element, &[3], &[1, 0, 1]);
        let bits: Vec<i32> = match element.bits() {
            16 => raw
                .bytes
                .chunks(2)
                .map(|c| i32::from(u16::from_le_bytes([c[0], c[1]])))
                .collect(),
            32 => vec![1, 0, 1],
            _ => raw.bytes.iter().map(|&b| b.into()).collect(),
        };
        let mut typed = tensor("y", &raw);
        typed.raw_data = None;
        match element {
            ElementType::F32 => typed.float_data = vec![1.0, 0.0, 1.0],
            ElementType::F64 => typed.double_data = vec![1.0, 0.0, 1.0],
            ElementType::I64 => typed.int64_data = vec![1, 0, 1],
            ElementType::U32 | ElementType::U64 => typed.uint64_data = vec![1, 0, 1],
            _ => typed.int32_data = bits,
        }
        let graph = read(&model(21, vec![], vec![typed])).unwrap();
        let value = graph.value(graph.outputs[0]);
        assert_eq!(value.data.as_ref(), Some(&raw), "{element}");
    }
}

#[test]
fn constant_nodes_of_every_kind_are_constants() {
    let value = proto::Attribute {
        t: Some(tensor("", &TensorData::from_f32(&[1, 2], &[1.0, 2.0]))),
        ..attribute("value", kind::TENSOR)
    };
    let list = proto::Attribute {
        floats: vec![1.5, 2.5],
        ..attribute("value_floats", kind::FLOATS)
    };
    let cases = [
        (value, vec![1, 2], vec![1.0, 2.0]),
        (float("value_float", 0.5), vec![], vec![0.5]),
        (int("value_int", 7), vec![], vec![7.0]),
        (ints("value_ints", &[3, 4]), vec![2], vec![3.0, 4.0]),
        (list, vec![2], vec![1.5, 2.5]),
    ];
    for (a, shape, expected) in cases {
        let graph = one_constant(a);
        let data = graph.value(graph.outputs[0]).data.clone().unwrap();
        assert_eq!((data.to_f32_vec(), data.shape), (expected, shape));
        assert!(graph.nodes.is_empty());
    }
    // Strings aren't carried: the node stays.
    let graph = one_constant(string("value_string", "hello"));
    assert_eq!(only(&graph).op.name(), "Constant");
}

fn one_constant(a: proto::Attribute) -> Graph {
    read(&model(
        13,
        vec![node("Constant", &[], &["y"], vec![a])],
        vec![],
    ))
    .unwrap()
}

#[test]
fn string_initialisers_become_nodes_that_cannot_run() {
    let t = proto::Tensor {
        dims: vec![1],
        data_type: Some(8),
        string_data: vec![Bytes::from_static(b"a")],
        name: Some("s".into()),
        ..Default::default()
    };
    let mut m = model(13, vec![node("Identity", &["s"], &["y"], vec![])], vec![t]);
    // Text can't be an output of a file that is written.
    let error = super::super::to_bytes(&read(&m).unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("output y"), "{error}");
    m.graph.as_mut().unwrap().output[0] = info("y", &[1]);
    let graph = read(&m).unwrap();
    assert!(reason(&graph.nodes[0].op).contains("string"));
    let again = super::super::read_bytes(super::super::to_bytes(&graph).unwrap().into()).unwrap();
    assert_eq!(again.nodes.len(), 2);
}

#[test]
fn an_initialiser_listed_as_input_is_a_constant() {
    let mut m = model(
        9,
        vec![node("Add", &["x", "w"], &["y"], vec![])],
        vec![floats("w", &[4])],
    );
    m.graph.as_mut().unwrap().input.push(info("w", &[4]));
    let graph = read(&m).unwrap();
    assert_eq!(graph.inputs.len(), 1);
    assert!(
        graph
            .find_value("w")
            .is_some_and(|w| graph.value(w).data.is_some())
    );
}

#[test]
fn nodes_get_names_and_an_order() {
    let mut second = node("Neg", &["h"], &["y"], vec![]);
    second.name = Some("same".into());
    let mut first = node("Abs", &["g"], &["h"], vec![]);
    first.name = Some("same".into());
    let unnamed = node("Relu", &["x"], &["g"], vec![]);
    let graph = read(&model(13, vec![second, first, unnamed], vec![])).unwrap();
    let names: Vec<&str> = graph.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["Relu_2", "same", "same_1"]);
    assert_eq!(graph.nodes[2].op, Op::Unary(UnaryOp::Neg));
    graph.validate().unwrap();
}

#[test]
fn broken_structure_is_an_error_that_names_the_node() {
    let relu = |input: &str, output: &str| node("Relu", &[input], &[output], vec![]);
    let cases = [
        (vec![relu("nowhere", "y")], "nowhere"),
        (vec![relu("x", "y"), relu("x", "y")], "defined twice"),
        (vec![relu("x", "x")], "defined twice"),
        (vec![relu("b", "y"), relu("y", "b")], "cycle"),
        (vec![relu("y", "y")], "cycle"),
        (vec![relu("x", "z")], "output \"y\""),
    ];
    for (nodes, expected) in cases {
        let error = read(&model(13, nodes, vec![])).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let twice = vec![floats("w", &[1]), floats("w", &[1])];
    assert!(
        read(&model(13, vec![relu("x", "y")], twice))
            .unwrap_err()
            .contains("w is defined twice")
    );
    let error = read(&model(8, vec![relu("x", "y")], vec![])).unwrap_err();
    assert!(error.contains("operator set 8"), "{error}");
}

/// `If` whose branches read `x` of the outer graph.
fn conditional() -> proto::Model {
    let branch = || proto::Graph {
        name: Some("branch".into()),
        node: vec![node("Relu", &["outer"], &["inner"], vec![])],
        output: vec![info("inner", &[2, 3, 4, 4])],
        ..Default::default()
    };
    let graph = |name: &str| proto::Attribute {
        g: Some(branch()),
        ..attribute(name, kind::GRAPH)
    };
    let condition = tensor("c", &TensorData::from_i64_as(ElementType::Bool, &[], &[1]));
    let nodes = vec![
        node(
            "If",
            &["c"],
            &["y"],
            vec![graph("then_branch"), graph("else_branch")],
        ),
        node("Neg", &["x"], &["outer"], vec![]),
    ];
    let mut m = model(17, nodes, vec![condition]);
    m.graph.as_mut().unwrap().output[0] = info("y", &[2, 3, 4, 4]);
    m
}

#[test]
fn sub_graphs_are_kept_with_what_they_read() {
    let mut graph = read(&conditional()).unwrap();
    let names: Vec<&str> = graph.nodes.iter().map(|n| n.op.name()).collect();
    assert_eq!(
        names,
        ["Neg", "If"],
        "what a sub-graph reads is computed before it"
    );
    let Op::Unsupported { attributes, .. } = &graph.nodes[1].op else {
        panic!()
    };
    assert!(attributes.contains(&(
        CAPTURES.into(),
        RawAttribute::Strings(vec![b"outer".to_vec()])
    )));
    assert_eq!(graph.remove_dead_nodes(), 0, "a captured value is used");
    graph.compact();
    let again = super::super::read_bytes(super::super::to_bytes(&graph).unwrap().into()).unwrap();
    assert_eq!(again, graph);
}

#[test]
fn a_sub_graph_of_an_older_opset_is_not_written_as_a_newer_one() {
    let mut m = conditional();
    m.opset_import[0].version = Some(12);
    let error = super::super::to_bytes(&read(&m).unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("sub-graph") && error.contains("If_0"),
        "{error}"
    );
}

#[test]
fn other_domains_and_local_functions_are_kept() {
    let mut m = model(
        17,
        vec![node("Swirl", &["x"], &["y"], vec![int("k", 3)])],
        vec![],
    );
    m.graph.as_mut().unwrap().node[0].domain = Some("org.example".into());
    m.graph.as_mut().unwrap().output[0] = info("y", &[7]);
    m.opset_import.push(proto::OperatorSet {
        domain: Some("org.example".into()),
        version: Some(4),
    });
    let graph = read(&m).unwrap();
    assert!(reason(&only(&graph).op).contains("org.example"));
    let bytes = super::super::to_bytes(&graph).unwrap();
    let written = proto::Model::decode(&bytes[..]).unwrap();
    assert!(written.opset_import.contains(&m.opset_import[1]));
    assert_eq!(super::super::read_bytes(bytes.into()).unwrap(), graph);

    m.functions.push(proto::Function {
        name: Some("Swirl".into()),
        domain: Some("org.example".into()),
    });
    let graph = read(&m).unwrap();
    assert!(reason(&only(&graph).op).contains("function"));
    assert!(super::super::to_bytes(&graph).is_err());
}

#[test]
fn symbols_negative_and_absent_extents() {
    let mut m = model(13, vec![node("Relu", &["x"], &["y"], vec![])], vec![]);
    let graph = m.graph.as_mut().unwrap();
    graph.input = vec![info("x", &[-1, 3])];
    let shape = graph.input[0]
        .r#type
        .as_mut()
        .unwrap()
        .tensor_type
        .as_mut()
        .unwrap();
    let dims = &mut shape.shape.as_mut().unwrap().dim;
    dims.push(proto::Dimension { value: None });
    dims.push(proto::Dimension {
        value: Some(Extent::Value(-5)),
    });
    let graph = read(&m).unwrap();
    let expected = vec![
        Dim::Symbol("N".into()),
        Dim::Known(3),
        Dim::Unknown,
        Dim::Unknown,
    ];
    assert_eq!(graph.value(graph.outputs[0]).shape, Some(expected));
}

fn external(location: &str, offset: &str, length: &str) -> proto::Tensor {
    let entry = |key: &str, value: &str| proto::Entry {
        key: Some(key.into()),
        value: Some(value.into()),
    };
    proto::Tensor {
        dims: vec![2],
        data_type: Some(1),
        name: Some("w".into()),
        data_location: Some(1),
        external_data: vec![
            entry("location", location),
            entry("offset", offset),
            entry("length", length),
        ],
        ..Default::default()
    }
}

#[test]
fn external_data_is_read_from_the_models_folder_only() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("model");
    std::fs::create_dir_all(inside.join("sub")).unwrap();
    let mut bytes = vec![0u8; 4];
    bytes.extend([1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()));
    std::fs::write(inside.join("sub/weights.bin"), &bytes).unwrap();
    std::fs::write(folder.path().join("outside.bin"), &bytes).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("../outside.bin", inside.join("link.bin")).unwrap();
    let path = inside.join("model.onnx");
    let read = |t: proto::Tensor| {
        let m = model(13, vec![node("Add", &["x", "w"], &["y"], vec![])], vec![t]);
        std::fs::write(&path, m.encode_to_vec()).unwrap();
        super::super::read_model(&path)
    };
    let file = read(external("sub/weights.bin", "4", "8")).unwrap();
    assert!(file.data_files.len() == 1 && file.data_files[0].ends_with("sub/weights.bin"));
    let w = file.graph.find_value("w").unwrap();
    assert_eq!(
        file.graph.value(w).data.as_ref().unwrap().to_f32_vec(),
        [1.5, -2.0]
    );
    assert_eq!(
        file.size_bytes,
        std::fs::metadata(&path).unwrap().len() + 12
    );

    let absolute = folder.path().join("outside.bin");
    let cases = [
        (
            external("../outside.bin", "0", "8"),
            "inside the model's own folder",
        ),
        (
            external("sub/../../outside.bin", "0", "8"),
            "inside the model's own folder",
        ),
        (
            external("..\\outside.bin", "0", "8"),
            "inside the model's own folder",
        ),
        (
            external(absolute.to_str().unwrap(), "0", "8"),
            "inside the model's own folder",
        ),
        (external("", "0", "8"), "inside the model's own folder"),
        (external("link.bin", "0", "8"), "leaves the model's folder"),
        (external("missing.bin", "0", "8"), "missing.bin"),
        (external("sub", "0", "8"), "regular file"),
        (external("sub/weights.bin", "8", "8"), "has only 12"),
        (
            external("sub/weights.bin", "18446744073709551615", "8"),
            "has only 12",
        ),
        (external("sub/weights.bin", "0", "7"), "need 8"),
        (external("sub/weights.bin", "x", "8"), "not a number"),
    ];
    for (t, expected) in cases {
        let location = t.external_data[0].value.clone();
        let error = read(t).unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains("tensor w"),
            "{location:?}: {error}"
        );
        assert!(error.contains("model.onnx"), "{error}");
    }
    let m = model(13, vec![], vec![external("sub/weights.bin", "4", "8")]);
    assert!(super::read(&m).unwrap_err().contains("in memory"));
}

#[test]
fn nan_weights_read_and_are_named() {
    let mut t = floats("w", &[4]);
    t.raw_data = Some(
        [f32::NAN, 1.0, 2.0, 3.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
    );
    let graph = read(&model(
        13,
        vec![node("Mul", &["x", "w"], &["y"], vec![])],
        vec![t],
    ))
    .unwrap();
    assert_eq!(graph.non_finite_weights(), [("w".to_string(), 1)]);
    assert!(!matches!(graph.validate(), Err(GraphError::Tensor { .. })));
}
