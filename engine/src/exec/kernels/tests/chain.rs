use super::*;
use crate::exec::{
    broadcast::{broadcast_shape, zip},
    elementwise::Bin,
    kernels::{
        chain::{From, Link, Side, chain},
        functions::apply_by,
        planes::Isa,
    },
    scalar::Fun,
};
use proptest::prelude::*;

/// A shape, and which axes an operand has (the others are 1).
fn shapes() -> impl Strategy<Value = (Vec<usize>, Vec<bool>, usize)> {
    prop::collection::vec(1..9usize, 1..5).prop_flat_map(|shape| {
        let rank = shape.len();
        (
            Just(shape),
            prop::collection::vec(any::<bool>(), rank),
            0..=rank,
        )
    })
}

const BINS: [Bin; 9] = [
    Bin::Add,
    Bin::Sub,
    Bin::Mul,
    Bin::Div,
    Bin::Min,
    Bin::Max,
    Bin::PRelu,
    Bin::Pow,
    Bin::Fmod,
];

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_chain_gives_the_operators_own_bits((shape, axes, drop) in shapes(), first in 0..9usize, second in 0..9usize, swapped in any::<bool>(), wide in any::<bool>()) {
        let mut shape = shape;
        if wide {
            // Beyond a block and a task.
            *shape.last_mut().unwrap() += 5000;
        }
        let count: usize = shape.iter().product();
        let side: Vec<usize> = shape.iter().zip(&axes).map(|(d, on)| if *on { *d } else { 1 }).collect();
        // Leading axes of 1 may be left out.
        let lead = side.iter().take(drop).take_while(|d| **d == 1).count();
        let side = side[lead..].to_vec();
        let (mut x, mut b) = (random(1, count), random(2, side.iter().product()));
        x[0] = f32::NAN;
        b[0] = 2.0;
        let links = [
            Link::With { bin: BINS[first], operand: 0, swapped },
            Link::Map(Fun::Sigmoid),
            Link::With { bin: BINS[second], operand: 0, swapped: !swapped },
        ];
        for isa in Isa::all() {
            let pair = |bin: Bin, swapped: bool, x: &[f32]| {
                let (p, q) = ((x, &shape[..]), (&b[..], &side[..]));
                let out = broadcast_shape(&[&shape, &side]).unwrap();
                if swapped {
                    zip(q, p, &out, |a: f32, b: f32| bin.apply(a, b))
                } else {
                    zip(p, q, &out, |a: f32, b: f32| bin.apply(a, b))
                }
            };
            let y = pair(BINS[first], swapped, &x);
            let y = apply_by(isa, Fun::Sigmoid, &y);
            let expected = pair(BINS[second], !swapped, &y);
            let sides = [Side::new(&b, &side, &shape).unwrap()];
            let mut got = vec![0.0; count];
            with_threads(2, || chain(isa, &links, From::Slice(&x), &sides, &mut got));
            prop_assert!(same(&got, &expected), "{:?} apart", isa);
            let mut place = x.clone();
            with_threads(1, || chain(isa, &links, From::Out, &sides, &mut place));
            prop_assert!(same(&place, &expected), "{:?} in place", isa);
        }
    }
}

#[test]
fn operands_that_do_not_broadcast_are_refused() {
    let b = random(1, 6);
    assert!(Side::new(&b, &[2, 3], &[4, 2, 3]).is_some());
    assert!(Side::new(&b, &[3, 2], &[4, 2, 3]).is_none());
    assert!(Side::new(&b, &[1, 2, 3], &[2, 3]).is_none());
    assert!(Side::new(&b, &[3], &[2, 3]).is_none());
}
