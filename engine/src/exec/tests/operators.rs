//! Operators against plain definitions; the standard's own node cases cover the many forms (`.ci/onnx_node_cases.py`).

use super::{Case, close, f, i, noise};
use crate::graph::{
    BinaryOp, ElementType, Op, PadMode, Padding, ReduceOp, TensorData, UnaryOp, VariadicOp, Window,
};
use proptest::prelude::*;

/// Row-major index of `at` in `shape`, axes of extent 1 broadcast.
fn flat(at: &[usize], shape: &[usize]) -> usize {
    let lead = at.len() - shape.len();
    shape
        .iter()
        .zip(&at[lead..])
        .fold(0, |n, (&d, &p)| n * d + if d == 1 { 0 } else { p })
}

fn positions(shape: &[usize]) -> Vec<Vec<usize>> {
    shape.iter().fold(vec![vec![]], |all, &d| {
        all.iter()
            .flat_map(|p| (0..d).map(move |k| [&p[..], &[k]].concat()))
            .collect()
    })
}

/// Two shapes that broadcast together, and their common shape; extents may be 0.
fn shapes() -> impl Strategy<Value = (Vec<usize>, Vec<usize>, Vec<usize>)> {
    let axis = (0usize..4, any::<bool>(), any::<bool>());
    (prop::collection::vec(axis, 0..4), 0usize..4, 0usize..4).prop_map(|(axes, ca, cb)| {
        let mut a: Vec<usize> = axes.iter().map(|x| if x.1 { 1 } else { x.0 }).collect();
        let mut b: Vec<usize> = axes.iter().map(|x| if x.2 { 1 } else { x.0 }).collect();
        // Leading axes of one operand may be missing altogether, not of both.
        if ca > cb {
            a.drain(..ca.min(a.len()));
        } else {
            b.drain(..cb.min(b.len()));
        }
        let rank = a.len().max(b.len());
        let get = |v: &[usize], k: usize| (k + v.len()).checked_sub(rank).map_or(1, |k| v[k]);
        let out = (0..rank)
            .map(|k| {
                let (p, q) = (get(&a, k), get(&b, k));
                if p == 1 { q } else { p }
            })
            .collect();
        (a, b, out)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arithmetic_broadcasts_as_numpy_does((a, b, out) in shapes()) {
        let len = |s: &[usize]| s.iter().product::<usize>();
        let (x, y) = (noise(len(&a), 2.0), noise(len(&b), 3.0));
        let xi: Vec<i64> = x.iter().map(|v| (v * 10.0) as i64).collect();
        let yi: Vec<i64> = y.iter().map(|v| (v * 10.0) as i64).collect();
        let (shape, v) = Case::new().feed(f(&a, &x)).feed(f(&b, &y)).f32(Op::Binary(BinaryOp::Sub));
        let (_, vi) = Case::new().feed(i(&a, &xi)).feed(i(&b, &yi)).i64(Op::Binary(BinaryOp::Sub));
        let (_, less) = Case::new().feed(f(&a, &x)).feed(f(&b, &y)).i64(Op::Binary(BinaryOp::Less));
        prop_assert_eq!(&shape, &out);
        for (k, at) in positions(&out).iter().enumerate() {
            let (p, q) = (flat(at, &a), flat(at, &b));
            prop_assert_eq!(v[k], x[p] - y[q]);
            prop_assert_eq!(vi[k], xi[p] - yi[q]);
            prop_assert_eq!(less[k] != 0, x[p] < y[q]);
        }
    }

    #[test]
    fn slices_pick_what_python_picks(n in 0usize..7, start in -9i64..9, end in -9i64..9, step in -3i64..4) {
        prop_assume!(step != 0);
        let x: Vec<i64> = (0..n as i64).collect();
        let (_, v) = Case::new()
            .feed(i(&[n], &x))
            .constant(i(&[1], &[start]))
            .constant(i(&[1], &[end]))
            .constant(i(&[1], &[0]))
            .constant(i(&[1], &[step]))
            .i64(Op::Slice);
        // Python's own words: positions start, start+step, … short of end, both first brought into the axis.
        let d = n as i64;
        let norm = |p: i64| {
            let p = if p < 0 { p + d } else { p };
            if step > 0 { p.clamp(0, d) } else { p.clamp(-1, d - 1) }
        };
        let mut want = vec![];
        let mut p = norm(start);
        while (step > 0 && p < norm(end)) || (step < 0 && p > norm(end)) {
            want.push(p);
            p += step;
        }
        prop_assert_eq!(v, want);
    }

    #[test]
    fn transposes_move_every_element(perm in Just(vec![0usize, 1, 2]).prop_shuffle(), ints in any::<bool>()) {
        let shape = [2usize, 3, 4];
        let x: Vec<i64> = (0..24).collect();
        let op = Op::Transpose { perm: Some(perm.clone()) };
        let v = if ints {
            Case::new().feed(i(&shape, &x)).i64(op).1
        } else {
            let x: Vec<f32> = x.iter().map(|&v| v as f32).collect();
            Case::new().feed(f(&shape, &x)).f32(op).1.iter().map(|&v| v as i64).collect()
        };
        let out: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
        for (k, at) in positions(&out).iter().enumerate() {
            let mut from = [0; 3];
            for (a, &p) in at.iter().zip(&perm) {
                from[p] = *a;
            }
            prop_assert_eq!(v[k], x[flat(&from, &shape)]);
        }
    }

    #[test]
    fn reductions_agree_with_their_definition(axes in prop::collection::btree_set(0i64..3, 1..3), keep in any::<bool>()) {
        let shape = [2usize, 3, 4];
        let x = noise(24, 1.0);
        let axes: Vec<i64> = axes.into_iter().collect();
        for (op, start, step) in [
            (ReduceOp::Sum, 0.0, (|a, v| a + v) as fn(f32, f32) -> f32),
            (ReduceOp::Max, f32::NEG_INFINITY, f32::max),
            (ReduceOp::SumSquare, 0.0, |a, v| a + v * v),
        ] {
            let node = Op::Reduce { op, keep_dims: keep, noop_with_empty_axes: false };
            let (out, v) = Case::new().feed(f(&shape, &x)).constant(i(&[axes.len()], &axes)).f32(node);
            let kept: Vec<usize> = (0..3).map(|a| if axes.contains(&(a as i64)) { 1 } else { shape[a] }).collect();
            let squeezed: Vec<usize> = (0..3).filter(|a| !axes.contains(&(*a as i64))).map(|a| shape[a]).collect();
            prop_assert_eq!(&out, if keep { &kept } else { &squeezed });
            let mut want = vec![start; v.len()];
            for (k, at) in positions(&shape).iter().enumerate() {
                let o = flat(at, &kept);
                want[o] = step(want[o], x[k]);
            }
            close(&v, &want, 1e-5);
        }
    }
}

#[test]
fn integers_wrap_and_never_trap() {
    let i8s = |v: &[i64]| TensorData::from_i64_as(ElementType::I8, &[v.len()], v);
    let op = |op| {
        move |a: &[i64], b: &[i64]| Case::new().feed(i8s(a)).feed(i8s(b)).i64(Op::Binary(op)).1
    };
    assert_eq!(op(BinaryOp::Add)(&[127, -128], &[1, -1]), [-128, 127]);
    assert_eq!(
        op(BinaryOp::Div)(&[-7, 5, -128], &[2, 0, -1]),
        [-3, 0, -128]
    );
    assert_eq!(
        op(BinaryOp::Mod { fmod: false })(&[-7, 7, 5], &[3, -3, 0]),
        [2, -2, 0]
    );
    assert_eq!(
        op(BinaryOp::Mod { fmod: true })(&[-7, 7], &[3, -3]),
        [-1, 1]
    );
}

#[test]
fn casts_truncate_round_and_wrap() {
    let cast = |x: TensorData, to| {
        Case::new()
            .feed(x)
            .run(Op::Cast { to }, 1)
            .unwrap()
            .remove(0)
    };
    let x = f(&[4], &[-1.7, 1.7, 300.5, 0.0]);
    assert_eq!(
        cast(x.clone(), ElementType::I32).to_i64_vec(),
        [-1, 1, 300, 0]
    );
    assert_eq!(cast(x, ElementType::Bool).to_i64_vec(), [1, 1, 1, 0]);
    assert_eq!(
        cast(i(&[2], &[257, -1]), ElementType::U8).to_i64_vec(),
        [1, 255]
    );
    // 2049 lies between two halves: to the even one.
    let half = cast(f(&[2], &[2049.0, 1e6]), ElementType::F16).to_f32_vec();
    assert_eq!(half, [2048.0, f32::INFINITY]);
}

#[test]
fn nan_survives_relu_clip_max_and_reductions() {
    let nan = f(&[2], &[f32::NAN, -1.0]);
    let (_, v) = Case::new().feed(nan.clone()).f32(Op::Unary(UnaryOp::Relu));
    assert!(v[0].is_nan() && v[1] == 0.0);
    let (_, v) = Case::new()
        .feed(nan.clone())
        .absent()
        .constant(TensorData::scalar(3.0))
        .f32(Op::Clip);
    assert!(v[0].is_nan() && v[1] == -1.0);
    let (_, v) = Case::new()
        .feed(nan.clone())
        .feed(f(&[1], &[0.0]))
        .f32(Op::Variadic(VariadicOp::Max));
    assert!(v[0].is_nan() && v[1] == 0.0);
    let op = Op::Reduce {
        op: ReduceOp::Max,
        keep_dims: false,
        noop_with_empty_axes: false,
    };
    assert!(Case::new().feed(nan).f32(op).1[0].is_nan());
}

#[test]
fn padding_is_where_auto_pad_says() {
    // A kernel that picks its first tap shows where the window starts.
    let window = |padding| Window {
        kernel: vec![2],
        strides: vec![1],
        dilations: vec![1],
        padding,
    };
    let conv = |p| {
        Case::new()
            .feed(f(&[1, 1, 3], &[1.0, 2.0, 3.0]))
            .constant(f(&[1, 1, 2], &[1.0, 0.0]))
            .f32(Op::Conv {
                window: window(p),
                group: 1,
            })
            .1
    };
    assert_eq!(conv(Padding::SameUpper), [1.0, 2.0, 3.0]);
    assert_eq!(conv(Padding::SameLower), [0.0, 1.0, 2.0]);
    assert_eq!(conv(Padding::Valid), [1.0, 2.0]);
    assert_eq!(conv(Padding::Explicit(vec![1, 1])), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn reflection_bounces_more_than_once() {
    let (_, v) = Case::new()
        .feed(f(&[3], &[1.0, 2.0, 3.0]))
        .constant(i(&[2], &[5, 0]))
        .f32(Op::Pad {
            mode: PadMode::Reflect,
        });
    assert_eq!(v, [2.0, 1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0]);
}

#[test]
fn softmax_of_huge_logits_is_finite() {
    let (_, v) = Case::new()
        .feed(f(&[1, 3], &[1e4, 1e4 - 1.0, -1e4]))
        .f32(Op::Softmax {
            axis: -1,
            flatten: false,
        });
    close(&v, &[0.731_058_6, 0.268_941_4, 0.0], 1e-6);
}

#[test]
fn empty_values_pass_through() {
    let (s, _) = Case::new()
        .feed(f(&[0, 3], &[]))
        .constant(f(&[3, 2], &[0.0; 6]))
        .f32(Op::MatMul);
    assert_eq!(s, [0, 2]);
    let (s, v) = Case::new()
        .feed(f(&[2, 0], &[]))
        .feed(f(&[2, 1], &[1.0, 2.0]))
        .f32(Op::Concat { axis: 1 });
    assert_eq!((s, v), (vec![2, 1], vec![1.0, 2.0]));
    let op = Op::Reduce {
        op: ReduceOp::Sum,
        keep_dims: true,
        noop_with_empty_axes: false,
    };
    let (s, v) = Case::new()
        .feed(f(&[2, 0], &[]))
        .constant(i(&[1], &[1]))
        .f32(op);
    assert_eq!((s, v), (vec![2, 1], vec![0.0, 0.0]));
}
