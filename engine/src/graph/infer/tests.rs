use crate::graph::{
    BinaryOp, CoordinateMode, Dim, ElementType, Graph, NearestMode, Op, Padding, ReduceOp,
    ResizeMode, TensorData, UnaryOp, ValueId, Window,
};
use proptest::prelude::*;

fn known(dims: &[usize]) -> Option<Vec<Dim>> {
    Some(dims.iter().map(|&d| Dim::Known(d)).collect())
}

fn symbol(name: &str) -> Dim {
    Dim::Symbol(name.into())
}

/// A graph under construction, one node an expression.
struct Build(Graph);

impl Build {
    fn new() -> Self {
        Self(Graph::default())
    }

    fn input(&mut self, dims: Vec<Dim>) -> ValueId {
        let id = self.0.add_value("x", Some(ElementType::F32), Some(dims));
        self.0.inputs.push(id);
        id
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        self.0
            .add_constant("c", TensorData::from_i64(&[values.len()], values))
    }

    fn int(&mut self, value: i64) -> ValueId {
        self.0.add_constant("c", TensorData::scalar_i64(value))
    }

    fn node(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        let out = self.0.add_value("v", None, None);
        let name = op.name().to_string();
        self.0.add_node(
            &name,
            op,
            inputs.iter().map(|&i| Some(i)).collect(),
            vec![Some(out)],
        );
        out
    }

    fn shape(mut self, id: ValueId) -> Option<Vec<Dim>> {
        self.0.outputs.push(id);
        self.0.validate().unwrap();
        self.0.infer_shapes();
        let once = self.0.clone();
        self.0.infer_shapes();
        assert_eq!(once, self.0, "inference is idempotent");
        self.0.value(id).shape.clone()
    }
}

fn window(kernel: usize, stride: usize, dilation: usize, padding: Padding) -> Window {
    Window {
        kernel: vec![kernel; 2],
        strides: vec![stride; 2],
        dilations: vec![dilation; 2],
        padding,
    }
}

#[test]
fn the_view_of_pytorch_keeps_a_symbolic_batch() {
    // x.view(x.size(0), -1): Shape → Gather → Unsqueeze → Concat → Reshape.
    let mut b = Build::new();
    let x = b.input(vec![
        symbol("N"),
        Dim::Known(8),
        Dim::Known(2),
        Dim::Known(3),
    ]);
    let shape = b.node(
        Op::Shape {
            start: None,
            end: None,
        },
        &[x],
    );
    let zero = b.int(0);
    let batch = b.node(Op::Gather { axis: 0 }, &[shape, zero]);
    let axes = b.ints(&[0]);
    let batch = b.node(Op::Unsqueeze, &[batch, axes]);
    let rest = b.ints(&[-1]);
    let target = b.node(Op::Concat { axis: 0 }, &[batch, rest]);
    let y = b.node(Op::Reshape { allow_zero: false }, &[x, target]);
    assert_eq!(b.shape(y), Some(vec![symbol("N"), Dim::Known(48)]));
}

#[test]
fn arithmetic_on_extents_reaches_reshape_and_expand() {
    let mut b = Build::new();
    let x = b.input(vec![symbol("N"), Dim::Known(6), Dim::Known(4)]);
    let shape = b.node(
        Op::Shape {
            start: Some(1),
            end: None,
        },
        &[x],
    );
    let count = b.node(
        Op::Reduce {
            op: ReduceOp::Prod,
            keep_dims: true,
            noop_with_empty_axes: false,
        },
        &[shape],
    );
    let two = b.ints(&[2]);
    let half = b.node(Op::Binary(BinaryOp::Div), &[count, two]);
    let cast = b.node(
        Op::Cast {
            to: ElementType::I32,
        },
        &[half],
    );
    let zero = b.ints(&[0]);
    let zero = b.node(
        Op::Cast {
            to: ElementType::I32,
        },
        &[zero],
    );
    let target = b.node(Op::Concat { axis: 0 }, &[zero, two, cast]);
    let y = b.node(Op::Reshape { allow_zero: false }, &[x, target]);
    assert_eq!(
        b.shape(y),
        Some(vec![symbol("N"), Dim::Known(2), Dim::Known(12)])
    );
}

#[test]
fn a_rest_that_is_only_the_batch_stays_the_batch() {
    let mut b = Build::new();
    let x = b.input(vec![
        symbol("N"),
        Dim::Known(1280),
        Dim::Known(1),
        Dim::Known(1),
    ]);
    let target = b.ints(&[-1, 1280]);
    let y = b.node(Op::Reshape { allow_zero: false }, &[x, target]);
    assert_eq!(b.shape(y), Some(vec![symbol("N"), Dim::Known(1280)]));
}

#[test]
fn convolution_and_pooling_follow_their_formulas() {
    let explicit = |p: usize| Padding::Explicit(vec![p; 4]);
    // (window, ceil, extent in, extent out of convolution or pooling)
    let cases = [
        (window(3, 1, 1, explicit(1)), false, 7, 7),
        (window(3, 2, 1, explicit(1)), false, 8, 4),
        (window(3, 1, 2, explicit(0)), false, 9, 5),
        (window(3, 2, 1, Padding::SameUpper), false, 7, 4),
        (window(3, 2, 1, Padding::SameLower), false, 8, 4),
        (window(2, 2, 1, Padding::Valid), false, 7, 3),
        (window(2, 2, 1, explicit(0)), true, 7, 4),
        // The fourth window would begin in the padding: it doesn't count.
        (window(1, 2, 1, explicit(1)), true, 4, 3),
    ];
    for (window, ceil, from, to) in cases {
        let mut b = Build::new();
        let x = b.input(vec![
            symbol("N"),
            Dim::Known(3),
            Dim::Known(from),
            Dim::Known(from),
        ]);
        let op = Op::MaxPool {
            window: window.clone(),
            ceil,
        };
        let y = b.node(op, &[x]);
        let expected = vec![symbol("N"), Dim::Known(3), Dim::Known(to), Dim::Known(to)];
        assert_eq!(b.shape(y), Some(expected), "{window:?}");
    }
}

#[test]
fn an_unknown_extent_survives_a_convolution_that_keeps_sizes() {
    let mut b = Build::new();
    let x = b.input(vec![symbol("N"), Dim::Known(3), symbol("H"), symbol("W")]);
    let w =
        b.0.add_constant("w", TensorData::from_f32(&[5, 3, 3, 3], &[0.0; 135]));
    let op = |stride| Op::Conv {
        window: window(3, stride, 1, Padding::Explicit(vec![1; 4])),
        group: 1,
    };
    let y = b.node(op(1), &[x, w]);
    let w2 =
        b.0.add_constant("w", TensorData::from_f32(&[2, 5, 3, 3], &[0.0; 90]));
    let z = b.node(op(2), &[y, w2]);
    let expected = vec![symbol("N"), Dim::Known(2), Dim::Unknown, Dim::Unknown];
    assert_eq!(b.shape(z), Some(expected));
}

#[test]
fn a_transposed_convolution_counts_groups_and_output_padding() {
    let mut b = Build::new();
    let x = b.input(vec![
        Dim::Known(1),
        Dim::Known(4),
        Dim::Known(5),
        Dim::Known(5),
    ]);
    let w =
        b.0.add_constant("w", TensorData::from_f32(&[4, 3, 3, 3], &[0.0; 108]));
    let op = Op::ConvTranspose {
        window: window(3, 2, 1, Padding::Explicit(vec![1; 4])),
        group: 2,
        output_padding: vec![1, 1],
        output_shape: None,
    };
    let y = b.node(op, &[x, w]);
    assert_eq!(b.shape(y), known(&[1, 6, 10, 10]));
}

#[test]
fn slices_splits_pads_and_resizes() {
    let mut b = Build::new();
    let x = b.input(vec![symbol("N"), Dim::Known(10), Dim::Known(7)]);
    let (starts, ends) = (b.ints(&[-3, 0]), b.ints(&[i64::MIN, i64::MAX]));
    let (axes, steps) = (b.ints(&[1, 0]), b.ints(&[-2, 1]));
    let y = b.node(Op::Slice, &[x, starts, ends, axes, steps]);
    let pads = b.ints(&[0, 1, 0, 0, 1, -2]);
    let y = b.node(
        Op::Pad {
            mode: crate::graph::PadMode::Constant,
        },
        &[y, pads],
    );
    let scales =
        b.0.add_constant("s", TensorData::from_f32(&[3], &[1.0, 2.5, 1.0]));
    let empty = b.0.add_constant("roi", TensorData::from_f32(&[0], &[]));
    let resize = Op::Resize {
        mode: ResizeMode::Nearest,
        coordinates: CoordinateMode::HalfPixel,
        nearest: NearestMode::Floor,
        cubic_coeff: -0.75,
        exclude_outside: false,
        extrapolation: 0.0,
        antialias: false,
        axes: None,
        keep_aspect: None,
    };
    let y = b.node(resize, &[y, empty, scales]);
    // 7, 5, 3, 1: four elements; padded to 6; times 2.5.
    assert_eq!(
        b.shape(y),
        Some(vec![symbol("N"), Dim::Known(15), Dim::Known(5)])
    );
}

#[test]
fn binding_the_batch_makes_everything_known() {
    let mut b = Build::new();
    let x = b.input(vec![symbol("N"), Dim::Known(4)]);
    let w =
        b.0.add_constant("w", TensorData::from_f32(&[4, 2], &[0.0; 8]));
    let y = b.node(Op::MatMul, &[x, w]);
    let y = b.node(Op::Unary(UnaryOp::Relu), &[y]);
    b.0.infer_shapes();
    assert_eq!(b.0.value(y).shape, Some(vec![symbol("N"), Dim::Known(2)]));
    b.0.bind_batch(3);
    assert_eq!(b.0.value(y).shape, known(&[3, 2]));
}

#[test]
fn what_was_stated_stays_where_nothing_follows() {
    let mut b = Build::new();
    let x = b.input(vec![Dim::Known(4)]);
    let op = Op::Unsupported {
        domain: "x".into(),
        op_type: "Y".into(),
        attributes: vec![],
        reason: String::new(),
    };
    let y = b.node(op, &[x]);
    b.0.value_mut(y).shape = known(&[2, 2]);
    assert_eq!(b.shape(y), known(&[2, 2]));
}

fn any_dim() -> impl Strategy<Value = Dim> {
    prop_oneof![
        (0usize..9).prop_map(Dim::Known),
        Just(Dim::Known(usize::MAX)),
        Just(Dim::Known(1)),
        Just(symbol("N")),
        Just(Dim::Unknown),
    ]
}

fn any_int() -> impl Strategy<Value = i64> + Clone {
    prop_oneof![-3i64..9, Just(i64::MAX), Just(i64::MIN), Just(1i64 << 40)]
}

fn any_op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![0usize..5, Just(usize::MAX)];
    let axis = any_int();
    let win = (prop::collection::vec(size.clone(), 0..4), size.clone()).prop_map(|(k, n)| Window {
        strides: k.iter().map(|_| n).collect(),
        dilations: k.clone(),
        padding: Padding::Explicit(vec![n; 2 * k.len()]),
        kernel: k,
    });
    prop_oneof![
        (win.clone(), size.clone()).prop_map(|(window, group)| Op::Conv { window, group }),
        (win.clone(), size.clone()).prop_map(|(window, group)| Op::ConvTranspose {
            output_padding: vec![group; window.kernel.len()],
            output_shape: None,
            window,
            group,
        }),
        (win, any::<bool>()).prop_map(|(window, ceil)| Op::MaxPool { window, ceil }),
        axis.clone().prop_map(|axis| Op::Concat { axis }),
        axis.clone().prop_map(|axis| Op::Gather { axis }),
        axis.clone().prop_map(|axis| Op::Flatten { axis }),
        (axis.clone(), size).prop_map(|(axis, n)| Op::Split {
            axis,
            num_outputs: Some(n)
        }),
        (axis.clone(), axis).prop_map(|(a, b)| Op::Shape {
            start: Some(a),
            end: Some(b)
        }),
        any::<bool>().prop_map(|allow_zero| Op::Reshape { allow_zero }),
        prop::collection::vec(0usize..9, 0..4).prop_map(|p| Op::Transpose { perm: Some(p) }),
        Just(Op::Slice),
        Just(Op::Squeeze),
        Just(Op::Unsqueeze),
        Just(Op::Expand),
        Just(Op::Tile),
        Just(Op::MatMul),
        Just(Op::Size),
        Just(Op::Range),
        Just(Op::Where),
        Just(Op::Pad {
            mode: crate::graph::PadMode::Edge
        }),
        Just(Op::ConstantOfShape {
            value: TensorData::from_i64(&[1], &[7])
        }),
        Just(Op::Binary(BinaryOp::Mod { fmod: false })),
        Just(Op::Binary(BinaryOp::Mul)),
        Just(Op::Reduce {
            op: ReduceOp::Prod,
            keep_dims: false,
            noop_with_empty_axes: true,
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever extents and numbers a file holds: no panic, no loop, nothing allocated by their size.
    #[test]
    fn hostile_numbers_are_survived(
        dims in prop::collection::vec(prop::collection::vec(any_dim(), 0..5), 1..4),
        ints in prop::collection::vec(prop::collection::vec(any_int(), 0..5), 1..4),
        ops in prop::collection::vec((any_op(), prop::collection::vec(0usize..64, 1..6)), 1..10),
    ) {
        let mut b = Build::new();
        let mut values: Vec<ValueId> = Vec::new();
        for d in dims {
            values.push(b.input(d));
        }
        for i in ints {
            values.push(b.ints(&i));
            values.push(b.int(i.first().copied().unwrap_or(-1)));
        }
        for (op, inputs) in ops {
            let inputs: Vec<ValueId> = inputs.iter().map(|&i| values[i % values.len()]).collect();
            let out = b.node(op, &inputs);
            values.push(out);
        }
        b.0.infer_shapes();
        b.0.bind_batch(1);
        b.0.layers();
    }
}

#[test]
fn arithmetic_on_known_extents_becomes_numbers() {
    let mut b = Build::new();
    let x = b.input(vec![symbol("N"), Dim::Known(6)]);
    let of = |b: &mut Build, x, start| {
        let (start, end) = (Some(start), Some(start + 1));
        b.node(Op::Shape { start, end }, &[x])
    };
    let (batch, width) = (of(&mut b, x, 0), of(&mut b, x, 1));
    let two = b.ints(&[2]);
    let half = b.node(Op::Binary(BinaryOp::Div), &[width, two]);
    let target = b.node(Op::Concat { axis: 0 }, &[batch, two, half]);
    let y = b.node(Op::Reshape { allow_zero: false }, &[x, target]);
    // A file may say of a value in between what was so for the batch that was exported.
    let stale = b.node(
        Op::Unsupported {
            domain: String::new(),
            op_type: "Odd".into(),
            attributes: Vec::new(),
            reason: String::new(),
        },
        &[y],
    );
    b.0.value_mut(stale).shape = known(&[1, 6]);
    let other = of(&mut b, stale, 0);
    b.0.outputs = vec![y, other];
    let mut graph = b.0;
    graph.fold_known_integers();
    let number = |id| graph.value(id).data.as_ref().map(TensorData::to_i64_vec);
    assert_eq!(
        (number(width), number(half)),
        (Some(vec![6]), Some(vec![3]))
    );
    assert_eq!(
        (number(batch), number(target), number(other)),
        (None, None, None)
    );
    assert_eq!(graph.nodes.len(), 5, "{:?}", graph.nodes);
    graph.infer_shapes();
    assert_eq!(
        graph.value(y).shape,
        Some(vec![symbol("N"), Dim::Known(2), Dim::Known(3)])
    );
}
