//! Reading what was written gives the graph back.

use super::super::{read_bytes, read_model, to_bytes, write};
use super::*;
use crate::graph::{
    BinaryOp, CoordinateMode, Dim, ElementType, NearestMode, PadMode, Padding, ReduceOp,
    ResizeMode, UnaryOp, ValueId, VariadicOp, Window,
};
use proptest::prelude::*;

/// What stands at an input of a generated node.
#[derive(Clone, Debug)]
enum In {
    /// Any value there is.
    Value,
    Constant(TensorData),
    Absent,
}

/// An operator with its inputs and number of outputs.
type Case = (Op, Vec<In>, usize);

fn constant(element: ElementType, shape: &[usize]) -> In {
    let n: usize = shape.iter().product();
    let values: Vec<i64> = (0..n as i64).map(|i| i % 5).collect();
    In::Constant(TensorData::from_i64_as(element, shape, &values))
}

fn floats_in(shape: &[usize]) -> In {
    constant(ElementType::F32, shape)
}

fn ints_in(values: &[i64]) -> In {
    In::Constant(TensorData::from_i64(&[values.len()], values))
}

fn any_window() -> impl Strategy<Value = Window> + Clone {
    let padding = prop_oneof![
        prop::collection::vec(0usize..3, 4).prop_map(Padding::Explicit),
        Just(Padding::SameUpper),
        Just(Padding::SameLower),
        Just(Padding::Valid),
    ];
    let two = || prop::collection::vec(1usize..4, 2);
    (two(), two(), two(), padding).prop_map(|(kernel, strides, dilations, padding)| Window {
        kernel,
        strides,
        dilations,
        padding,
    })
}

fn windows() -> impl Strategy<Value = Case> {
    prop_oneof![
        any_window().prop_map(|window| {
            let w = floats_in(&[2, 1, window.kernel[0], window.kernel[1]]);
            (
                Op::Conv { window, group: 3 },
                vec![In::Value, w, floats_in(&[2])],
                1,
            )
        }),
        any_window().prop_map(|window| {
            let w = floats_in(&[3, 2, window.kernel[0], window.kernel[1]]);
            let op = Op::ConvTranspose {
                window,
                group: 1,
                output_padding: vec![1, 0],
                output_shape: None,
            };
            (op, vec![In::Value, w], 1)
        }),
        (any_window(), any::<bool>()).prop_map(|(window, ceil)| (
            Op::MaxPool { window, ceil },
            vec![In::Value],
            1
        )),
        (any_window(), any::<bool>(), any::<bool>()).prop_map(
            |(window, ceil, count_include_pad)| {
                let op = Op::AveragePool {
                    window,
                    ceil,
                    count_include_pad,
                };
                (op, vec![In::Value], 1)
            }
        ),
        (any::<bool>(), any::<bool>(), 0.0f32..1.0).prop_map(|(sized, antialias, f)| {
            let op = Op::Resize {
                mode: ResizeMode::Cubic,
                coordinates: CoordinateMode::AlignCorners,
                nearest: NearestMode::Ceil,
                cubic_coeff: f,
                exclude_outside: antialias,
                extrapolation: f,
                antialias,
                axes: antialias.then(|| vec![0, -1]),
                keep_aspect: antialias.then(|| "not_larger".to_string()),
            };
            let mut inputs = vec![In::Value, In::Absent];
            if sized {
                inputs.extend([In::Absent, ints_in(&[3, 4])]);
            } else {
                inputs.push(floats_in(&[2]));
            }
            (op, inputs, 1)
        }),
    ]
}

fn simple() -> impl Strategy<Value = Case> {
    let float = -2.0f32..2.0;
    let axis = -2i64..2;
    let one = |op: Op| (op, vec![In::Value], 1);
    let two = |op: Op| (op, vec![In::Value, In::Value], 1);
    prop_oneof![
        prop::sample::select(UnaryOp::ALL.to_vec()).prop_map(move |u| one(Op::Unary(u))),
        prop::sample::select(vec![
            BinaryOp::Add,
            BinaryOp::Pow,
            BinaryOp::Mod { fmod: true },
            BinaryOp::LessOrEqual,
            BinaryOp::PRelu,
        ])
        .prop_map(move |b| two(Op::Binary(b))),
        prop::sample::select(vec![
            Op::MatMul,
            Op::Gemm {
                alpha: 0.5,
                beta: 2.0,
                trans_a: true,
                trans_b: false
            },
            Op::Concat { axis: 1 },
            Op::Gather { axis: -1 },
            Op::Variadic(VariadicOp::Mean),
            Op::Expand,
            Op::Tile,
            Op::Squeeze,
            Op::Unsqueeze,
        ])
        .prop_map(two),
        prop::sample::select(vec![
            Op::GlobalAveragePool,
            Op::GlobalMaxPool,
            Op::Size,
            Op::Identity,
            Op::Dropout,
            Op::DynamicQuantizeLinear,
            Op::Clip,
            Op::Transpose { perm: None },
            Op::Transpose {
                perm: Some(vec![1, 0])
            },
            Op::Gelu { tanh: true },
            Op::Reshape { allow_zero: true },
            Op::Cast {
                to: ElementType::F16
            },
            Op::Shape {
                start: Some(0),
                end: None
            },
            Op::ConstantOfShape {
                value: TensorData::from_i64(&[1], &[4])
            },
        ])
        .prop_map(move |op| match op {
            Op::Clip => (op, vec![In::Value, In::Absent, floats_in(&[])], 1),
            Op::Reshape { .. } => (op, vec![In::Value, ints_in(&[0, -1])], 1),
            op => one(op),
        }),
        (float.clone(), float, axis.clone()).prop_flat_map(move |(f, g, axis)| {
            prop::sample::select(vec![
                Op::LeakyRelu { alpha: f },
                Op::Elu { alpha: f },
                Op::Celu { alpha: f },
                Op::Selu { alpha: f, gamma: g },
                Op::ThresholdedRelu { alpha: f },
                Op::HardSigmoid { alpha: f, beta: g },
                Op::Flatten { axis },
                Op::Softmax {
                    axis,
                    flatten: false,
                },
                Op::LogSoftmax {
                    axis,
                    flatten: false,
                },
            ])
            .prop_map(one)
        }),
        (axis, any::<bool>(), any::<bool>()).prop_map(move |(axis, a, b)| {
            one(match b {
                true => Op::ArgMax {
                    axis,
                    keep_dims: a,
                    last: b,
                },
                false => Op::ArgMin {
                    axis,
                    keep_dims: a,
                    last: b,
                },
            })
        }),
    ]
}

fn wider() -> impl Strategy<Value = Case> {
    let quantised = [
        ElementType::I8,
        ElementType::U8,
        ElementType::I4,
        ElementType::U16,
    ];
    prop_oneof![
        (prop::sample::select(quantised.to_vec()), any::<bool>()).prop_map(|(to, zero)| {
            let mut inputs = vec![In::Value, floats_in(&[3])];
            if zero {
                inputs.push(constant(to, &[3]));
            }
            let block = if to == ElementType::I4 { 16 } else { 0 };
            (Op::QuantizeLinear { axis: 1, block, to }, inputs, 1)
        }),
        prop::sample::select(quantised.to_vec()).prop_map(|from| {
            let inputs = vec![constant(from, &[3, 3]), floats_in(&[3])];
            (Op::DequantizeLinear { axis: 0, block: 0 }, inputs, 1)
        }),
        (0usize..2, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(which, keep_dims, noop_with_empty_axes, axes)| {
                let op = Op::Reduce {
                    op: [ReduceOp::Sum, ReduceOp::LogSumExp][which],
                    keep_dims,
                    noop_with_empty_axes,
                };
                let mut inputs = vec![In::Value];
                inputs.extend(axes.then(|| ints_in(&[-1])));
                (op, inputs, 1)
            }
        ),
        (1usize..4, any::<bool>()).prop_map(|(n, sized)| {
            let mut inputs = vec![In::Value];
            inputs.extend(sized.then(|| ints_in(&vec![1; n])));
            let op = Op::Split {
                axis: 0,
                num_outputs: (!sized).then_some(n),
            };
            (op, inputs, n)
        }),
        prop::sample::select(vec![
            PadMode::Constant,
            PadMode::Reflect,
            PadMode::Edge,
            PadMode::Wrap
        ])
        .prop_map(|mode| {
            let inputs = vec![In::Value, ints_in(&[1, 1]), In::Absent, ints_in(&[0])];
            (Op::Pad { mode }, inputs, 1)
        }),
        any::<bool>().prop_map(|axes| {
            let mut inputs = vec![In::Value, ints_in(&[0]), ints_in(&[1])];
            inputs.extend(axes.then(|| ints_in(&[-1])));
            (Op::Slice, inputs, 1)
        }),
        prop::sample::select(vec![Op::Where, Op::Range]).prop_map(|op| (
            op,
            vec![In::Value, In::Value, In::Value],
            1
        )),
        (1e-6f32..1e-2).prop_map(|epsilon| {
            let mut inputs = vec![In::Value];
            inputs.resize(5, floats_in(&[3]));
            (Op::BatchNormalization { epsilon }, inputs, 1)
        }),
        (1e-6f32..1e-2, -2i64..2).prop_map(|(epsilon, axis)| {
            let inputs = vec![In::Value, floats_in(&[4]), floats_in(&[4])];
            (Op::LayerNormalization { axis, epsilon }, inputs, 1)
        }),
    ]
}

fn build(cases: Vec<(Case, usize)>) -> Graph {
    let mut g = Graph {
        name: "generated".into(),
        ..Default::default()
    };
    g.metadata.insert("author".into(), "a property test".into());
    let shape = vec![
        Dim::Symbol("N".into()),
        Dim::Known(3),
        Dim::Known(8),
        Dim::Unknown,
    ];
    let x = g.add_value("x", Some(ElementType::F32), Some(shape));
    g.inputs.push(x);
    let mut values: Vec<ValueId> = vec![x];
    for ((op, inputs, outputs), pick) in cases {
        let inputs = inputs
            .into_iter()
            .map(|i| match i {
                In::Value => Some(values[pick % values.len()]),
                In::Constant(data) => Some(g.add_constant("c", data)),
                In::Absent => None,
            })
            .collect();
        let outputs: Vec<_> = (0..outputs)
            .map(|_| Some(g.add_value("v", None, None)))
            .collect();
        values.extend(outputs.iter().flatten());
        let name = format!("the {}", op.name());
        g.add_node(&name, op, inputs, outputs);
    }
    g.outputs.extend(values.last());
    g.infer_shapes();
    g.compact();
    g.validate().unwrap();
    g
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read_back(
        cases in prop::collection::vec((prop_oneof![windows(), simple(), wider()], 0usize..64), 1..8),
    ) {
        let graph = build(cases);
        let bytes = to_bytes(&graph).unwrap();
        prop_assert_eq!(&bytes, &to_bytes(&graph).unwrap(), "the same bytes every time");
        let again = read_bytes(bytes.into()).unwrap();
        for (a, b) in again.nodes.iter().zip(&graph.nodes) {
            prop_assert_eq!(a, b);
        }
        prop_assert_eq!(again, graph);
    }
}

/// Opset in which a graph of one node is written.
fn opset(op: Op, inputs: Vec<In>) -> i64 {
    let g = build(vec![((op, inputs, 1), 0)]);
    let written = proto::Model::decode(&to_bytes(&g).unwrap()[..]).unwrap();
    assert!(written.ir_version.is_some_and(|v| v >= 8));
    written.opset_import[0].version.unwrap()
}

#[test]
fn the_opset_is_the_lowest_that_says_it() {
    let reduce = |op| Op::Reduce {
        op,
        keep_dims: true,
        noop_with_empty_axes: false,
    };
    let x = || In::Value;
    assert_eq!(opset(Op::Unary(UnaryOp::Relu), vec![x()]), 17);
    assert_eq!(opset(reduce(ReduceOp::Sum), vec![x(), ints_in(&[1])]), 17);
    assert_eq!(opset(reduce(ReduceOp::Mean), vec![x(), ints_in(&[1])]), 18);
    assert_eq!(opset(Op::Gelu { tanh: false }, vec![x()]), 20);
    let dequantize = |block| Op::DequantizeLinear { axis: 0, block };
    let weight = |element| vec![constant(element, &[4, 4]), floats_in(&[4])];
    assert_eq!(opset(dequantize(0), weight(ElementType::I8)), 17);
    assert_eq!(opset(dequantize(0), weight(ElementType::I4)), 21);
    let half = vec![
        constant(ElementType::I8, &[4]),
        constant(ElementType::F16, &[]),
    ];
    assert_eq!(opset(dequantize(0), half), 19);
}

#[test]
fn the_old_softmax_is_written_as_what_it_does() {
    let soft = node("Softmax", &["x"], &["y"], vec![int("axis", 2)]);
    let graph = read(&model(11, vec![soft], vec![])).unwrap();
    let again = read_bytes(to_bytes(&graph).unwrap().into()).unwrap();
    let ops: Vec<&str> = again.nodes.iter().map(|n| n.op.name()).collect();
    assert_eq!(ops, ["Flatten", "Softmax", "Shape", "Reshape"]);
    assert_eq!(
        again.value(again.outputs[0]).known_shape(),
        Some(vec![2, 3, 4, 4])
    );
    let flat = again.nodes[0].outputs[0].unwrap();
    assert_eq!(again.value(flat).known_shape(), Some(vec![6, 16]));
}

#[test]
fn files_are_replaced_only_when_complete() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let mut graph = read(&model(
        13,
        vec![node("Relu", &["x"], &["y"], vec![])],
        vec![],
    ))
    .unwrap();
    write(&graph, &path).unwrap();
    let file = read_model(&path).unwrap();
    assert_eq!(file.graph, graph);
    assert_eq!((file.opset, file.ir_version), (17, 8));
    assert_eq!(
        file.producer,
        format!("limbeck {}", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(file.size_bytes, std::fs::metadata(&path).unwrap().len());
    // A graph that can't be written leaves the old file, and no rubbish beside it. The map still open is
    // untouched by a later replacement.
    graph.nodes[0].inputs[0] = Some(ValueId(99));
    assert!(
        write(&graph, &path)
            .unwrap_err()
            .to_string()
            .contains("m.onnx")
    );
    assert_eq!(read_model(&path).unwrap(), file);
    write(&file.graph, &path).unwrap();
    assert_eq!(read_model(&path).unwrap(), file);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let nowhere = folder.path().join("missing/m.onnx");
    let error = write(&file.graph, &nowhere).unwrap_err().to_string();
    assert!(error.contains("create the folder first"), "{error}");
}
