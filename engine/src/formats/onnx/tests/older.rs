//! Every older spelling becomes the one of the IR.

use super::*;
use crate::graph::{
    CoordinateMode, Dim, ElementType, NearestMode, PadMode, Padding, ReduceOp, ResizeMode,
};

#[test]
fn axes_as_attributes_become_inputs() {
    let axes = || vec![ints("axes", &[0, 2])];
    for (op, opset) in [
        ("Squeeze", 11),
        ("Unsqueeze", 11),
        ("ReduceSum", 11),
        ("ReduceMean", 17),
    ] {
        let graph = one(opset, node(op, &["x"], &["y"], axes()), vec![]);
        let n = only(&graph);
        assert_eq!(n.op.unsupported_reason(), None, "{op}");
        assert_eq!(input_ints(&graph, n, 1), [0, 2], "{op}");
    }
    let graph = one(
        17,
        node("ReduceMean", &["x"], &["y"], vec![ints("axes", &[-1, -2])]),
        vec![],
    );
    assert!(matches!(
        only(&graph).op,
        Op::Reduce {
            op: ReduceOp::Mean,
            keep_dims: true,
            ..
        }
    ));
    let y = graph.value(graph.outputs[0]);
    assert_eq!(y.shape, Some([2, 3, 1, 1].map(Dim::Known).to_vec()));
}

#[test]
fn clip_bounds_become_scalars_only_where_they_are_given() {
    let both = vec![float("min", 0.0), float("max", 6.0)];
    let graph = one(9, node("Clip", &["x"], &["y"], both), vec![]);
    assert_eq!(
        (
            input_ints(&graph, only(&graph), 1),
            input_ints(&graph, only(&graph), 2)
        ),
        (vec![0], vec![6])
    );
    let graph = one(
        9,
        node("Clip", &["x"], &["y"], vec![float("max", 6.0)]),
        vec![],
    );
    let n = only(&graph);
    assert_eq!((n.inputs[1], n.inputs.len()), (None, 3));
    let graph = one(9, node("Clip", &["x"], &["y"], vec![]), vec![]);
    assert_eq!(only(&graph).inputs.len(), 1);
}

#[test]
fn pads_slices_and_splits_of_old() {
    let pads = vec![
        ints("pads", &[0, 0, 1, 1, 0, 0, 2, 2]),
        float("value", 3.0),
        string("mode", "constant"),
    ];
    let graph = one(9, node("Pad", &["x"], &["y"], pads), vec![]);
    let n = only(&graph);
    assert_eq!(
        n.op,
        Op::Pad {
            mode: PadMode::Constant
        }
    );
    assert_eq!(input_ints(&graph, n, 1), [0, 0, 1, 1, 0, 0, 2, 2]);
    assert_eq!(input_ints(&graph, n, 2), [3]);
    assert_eq!(
        graph.value(graph.outputs[0]).known_shape(),
        Some(vec![2, 3, 7, 7])
    );

    let cut = vec![
        ints("starts", &[1]),
        ints("ends", &[-1]),
        ints("axes", &[3]),
    ];
    let graph = one(9, node("Slice", &["x"], &["y"], cut), vec![]);
    assert_eq!(
        graph.value(graph.outputs[0]).known_shape(),
        Some(vec![2, 3, 4, 2])
    );

    let parts = vec![int("axis", 1), ints("split", &[1, 2])];
    let graph = one(11, node("Split", &["x"], &["y", "z"], parts), vec![]);
    assert_eq!(input_ints(&graph, only(&graph), 1), [1, 2]);
    assert_eq!(
        graph.value(graph.outputs[0]).known_shape(),
        Some(vec![2, 1, 4, 4])
    );
    let graph = one(
        13,
        node("Split", &["x"], &["y", "z"], vec![int("axis", 3)]),
        vec![],
    );
    assert_eq!(
        only(&graph).op,
        Op::Split {
            axis: 3,
            num_outputs: Some(2)
        }
    );
}

#[test]
fn upsample_and_the_first_resize_sample_at_the_floor() {
    let scales = || {
        vec![tensor(
            "s",
            &TensorData::from_f32(&[4], &[1.0, 1.0, 2.0, 2.0]),
        )]
    };
    for (op, opset) in [("Upsample", 9), ("Resize", 10)] {
        let graph = one(
            opset,
            node(op, &["x", "s"], &["y"], vec![string("mode", "linear")]),
            scales(),
        );
        let n = only(&graph);
        assert!(matches!(
            n.op,
            Op::Resize {
                mode: ResizeMode::Linear,
                coordinates: CoordinateMode::Asymmetric,
                nearest: NearestMode::Floor,
                ..
            }
        ));
        assert_eq!((n.inputs.len(), n.inputs[1]), (3, None));
        assert_eq!(
            graph.value(graph.outputs[0]).known_shape(),
            Some(vec![2, 3, 8, 8])
        );
    }
}

#[test]
fn empty_inputs_of_resize_11_are_absent() {
    let empty = |name: &str| tensor(name, &TensorData::from_f32(&[0], &[]));
    let sizes = tensor("sizes", &TensorData::from_i64(&[4], &[2, 3, 9, 5]));
    let built = node("Resize", &["x", "roi", "none", "sizes"], &["y"], vec![]);
    let graph = one(11, built, vec![empty("roi"), empty("none"), sizes]);
    let n = only(&graph);
    assert_eq!((n.inputs[1], n.inputs[2]), (None, None));
    assert_eq!(
        graph.value(graph.outputs[0]).known_shape(),
        Some(vec![2, 3, 9, 5])
    );
}

#[test]
fn softmax_before_13_flattens_unless_its_axis_is_the_last() {
    let read = |axis: Option<i64>, opset| {
        let attributes = axis.map(|a| int("axis", a)).into_iter().collect();
        only(&one(
            opset,
            node("Softmax", &["x"], &["y"], attributes),
            vec![],
        ))
        .op
        .clone()
    };
    let softmax = |axis, flatten| Op::Softmax { axis, flatten };
    assert_eq!(read(None, 12), softmax(1, true));
    assert_eq!(read(Some(3), 12), softmax(3, false));
    assert_eq!(read(Some(-1), 12), softmax(-1, false));
    assert_eq!(read(None, 13), softmax(-1, false));
}

#[test]
fn dropout_loses_what_only_training_needs() {
    let graph = one(
        9,
        node("Dropout", &["x"], &["y", "mask"], vec![float("ratio", 0.4)]),
        vec![],
    );
    let n = only(&graph);
    assert_eq!(
        (&n.op, n.inputs.len(), n.outputs.len()),
        (&Op::Dropout, 1, 1)
    );
    let flag = |v: i64| tensor("t", &TensorData::from_i64_as(ElementType::Bool, &[], &[v]));
    let built = || node("Dropout", &["x", "", "t"], &["y"], vec![]);
    assert_eq!(only(&one(13, built(), vec![flag(0)])).op, Op::Dropout);
    assert!(reason(&only(&one(13, built(), vec![flag(1)])).op).contains("training"));
}

#[test]
fn batch_norm_drops_unread_statistics_and_refuses_training() {
    let weights = || ["s", "b", "m", "v"].map(|n| floats(n, &[3])).to_vec();
    let inputs = ["x", "s", "b", "m", "v"];
    let built = node(
        "BatchNormalization",
        &inputs,
        &["y", "rm", "rv"],
        vec![float("momentum", 0.9)],
    );
    let graph = one(9, built, weights());
    assert_eq!(only(&graph).outputs.len(), 1);
    let built = node(
        "BatchNormalization",
        &inputs,
        &["y"],
        vec![int("training_mode", 1)],
    );
    assert!(reason(&only(&one(15, built, weights())).op).contains("training mode"));
    let built = node(
        "BatchNormalization",
        &inputs,
        &["y"],
        vec![int("spatial", 0)],
    );
    assert!(reason(&only(&one(9, built, weights())).op).contains("spatial"));
}

#[test]
fn a_kernel_that_is_not_stated_is_that_of_the_weight() {
    let graph = one(
        9,
        node("Conv", &["x", "w"], &["y"], vec![]),
        vec![floats("w", &[5, 3, 3, 2])],
    );
    let Op::Conv { window, group } = &only(&graph).op else {
        panic!()
    };
    assert_eq!(
        (&window.kernel[..], &window.strides[..], *group),
        (&[3, 2][..], &[1, 1][..], 1)
    );
    assert_eq!(window.padding, Padding::Explicit(vec![0; 4]));
    assert_eq!(
        graph.value(graph.outputs[0]).known_shape(),
        Some(vec![2, 5, 2, 3])
    );
    // Also behind a DequantizeLinear.
    let codes = tensor(
        "q",
        &TensorData::from_i64_as(ElementType::I8, &[1, 3, 2, 2], &[1; 12]),
    );
    let scale = tensor("s", &TensorData::scalar(0.5));
    let nodes = vec![
        node(
            "Conv",
            &["x", "w"],
            &["y"],
            vec![string("auto_pad", "SAME_UPPER")],
        ),
        node("DequantizeLinear", &["q", "s"], &["w"], vec![]),
    ];
    let graph = read(&model(13, nodes, vec![codes, scale])).unwrap();
    let Op::Conv { window, .. } = &graph.nodes[1].op else {
        panic!("nodes are sorted")
    };
    assert_eq!(
        (&window.kernel[..], &window.padding),
        (&[2, 2][..], &Padding::SameUpper)
    );
}

#[test]
fn a_cast_to_the_type_of_another_value_is_a_cast() {
    let like = tensor("t", &TensorData::from_i64(&[], &[0]));
    let graph = one(
        15,
        node("CastLike", &["x", "t"], &["y"], vec![]),
        vec![like],
    );
    let n = only(&graph);
    assert_eq!(
        (&n.op, n.inputs.len()),
        (
            &Op::Cast {
                to: ElementType::I64
            },
            1
        )
    );
}

#[test]
fn the_type_of_quantised_values_is_that_of_the_zero_point() {
    let scale = || tensor("s", &TensorData::scalar(0.5));
    let zero = tensor("z", &TensorData::from_i64_as(ElementType::I8, &[], &[0]));
    let graph = one(
        10,
        node("QuantizeLinear", &["x", "s", "z"], &["y"], vec![]),
        vec![scale(), zero],
    );
    assert_eq!(graph.value(graph.outputs[0]).element, Some(ElementType::I8));
    let graph = one(
        10,
        node("QuantizeLinear", &["x", "s"], &["y"], vec![]),
        vec![scale()],
    );
    assert_eq!(graph.value(graph.outputs[0]).element, Some(ElementType::U8));
}

#[test]
fn forms_that_are_not_supported_say_why() {
    let window = |more: proto::Attribute| vec![ints("kernel_shape", &[2, 2]), more];
    let cases = [
        (
            node("MaxPool", &["x"], &["y"], window(ints("strides", &[0, 1]))),
            "strides",
        ),
        (
            node("MaxPool", &["x"], &["y"], window(ints("pads", &[1]))),
            "pads",
        ),
        (node("MaxPool", &["x"], &["y"], vec![]), "kernel_shape"),
        (
            node("MaxPool", &["x"], &["y"], window(int("mystery", 1))),
            "mystery",
        ),
        (node("Conv", &["x"], &["y"], vec![]), "inputs"),
        (node("Cast", &["x"], &["y"], vec![int("to", 17)]), "float8"),
        (node("Concat", &["x"], &["y"], vec![]), "axis"),
        (
            node("Concat", &["x"], &["y"], vec![float("axis", 1.0)]),
            "kind",
        ),
        (node("Attention", &["x"], &["y"], vec![]), "Attention"),
    ];
    for (built, expected) in cases {
        let graph = one(21, built, vec![]);
        let reason = reason(&only(&graph).op);
        assert!(
            reason.contains(expected),
            "{reason:?} should speak of {expected}"
        );
    }
}
