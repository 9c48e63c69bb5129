use super::*;
use crate::exec::kernels::{FakeQuant, fake_quant, fake_quant_learned};
use proptest::prelude::*;

/// One element by the formula.
fn reference(x: f32, scale: f32, zero: i32, lo: i32, hi: i32) -> (f32, bool) {
    let whole = (x / scale).round_ties_even() as i64 + i64::from(zero);
    let inside = whole >= i64::from(lo) && whole <= i64::from(hi);
    let kept = whole.clamp(i64::from(lo), i64::from(hi));
    ((kept - i64::from(zero)) as f32 * scale, inside)
}

fn check(quant: &FakeQuant, dims: &[usize], which: impl Fn(&[usize]) -> usize) {
    let x = (tensor(1, dims) * 3.0).unwrap();
    let got = with_threads(2, || {
        forward_and_gradients(std::slice::from_ref(&x), |t| fake_quant(&t[0], quant))
    });
    let r = random(99, x.elem_count());
    for (flat, x) in values(&x).into_iter().enumerate() {
        let mut rest = flat;
        let mut index = vec![0; dims.len()];
        for axis in (0..dims.len()).rev() {
            index[axis] = rest % dims[axis];
            rest /= dims[axis];
        }
        let step = which(&index);
        let (scale, zero) = (quant.scale[step], quant.zero_point[step]);
        let (y, inside) = reference(x, scale, zero, quant.lo, quant.hi);
        assert_eq!(got[0][flat], y, "element {index:?} = {x}");
        assert_eq!(got[1][flat], if inside { r[flat] } else { 0.0 });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_form_follows_the_formula(
        dims in proptest::collection::vec(1usize..7, 1..5),
        axis in 0usize..4,
        block in 1usize..5,
        seed in any::<u64>(),
        range in prop_oneof![Just((-128, 127)), Just((0, 255)), Just((-7, 7)), Just((-8, 7))],
    ) {
        let axis = axis % dims.len();
        let quant = |count: usize, block| FakeQuant {
            scale: random(seed, count).iter().map(|v| 0.01 + v.abs() * 0.1).collect(),
            zero_point: random(seed ^ 1, count).iter().map(|v| (v * 5.0) as i32).collect(),
            lo: range.0,
            hi: range.1,
            axis,
            block,
        };
        check(&quant(1, 0), &dims, |_| 0);
        check(&quant(dims[axis], 0), &dims, |i| i[axis]);
        let mut blocks = dims.clone();
        blocks[axis] = dims[axis].div_ceil(block);
        check(&quant(blocks.iter().product(), block), &dims, |i| {
            blocks.iter().enumerate().fold(0, |flat, (a, extent)| {
                flat * extent + if a == axis { i[a] / block } else { i[a] }
            })
        });
    }
}

#[test]
fn ties_go_to_even_and_extremes_stay_in_range() {
    let quant = FakeQuant {
        scale: vec![1.0],
        zero_point: vec![0],
        lo: -128,
        hi: 127,
        axis: 0,
        block: 0,
    };
    let x = [
        0.5f32,
        1.5,
        2.5,
        -0.5,
        -1.5,
        127.5,
        1e30,
        -1e30,
        f32::INFINITY,
    ];
    let y = with_threads(1, || {
        fake_quant(&Tensor::new(&x, &Device::Cpu).unwrap(), &quant).unwrap()
    });
    assert_eq!(
        values(&y),
        [0.0, 2.0, 2.0, 0.0, -2.0, 127.0, 127.0, -128.0, 127.0]
    );
    let nan = Tensor::new(&[f32::NAN], &Device::Cpu).unwrap();
    assert!(values(&with_threads(1, || fake_quant(&nan, &quant).unwrap()))[0].is_nan());
    check_threads(&[tensor(1, (3, 20_011))], |t| fake_quant(&t[0], &quant));
}

#[test]
fn wrong_settings_are_errors() {
    let good = FakeQuant {
        scale: vec![0.1; 3],
        zero_point: vec![0; 3],
        lo: -128,
        hi: 127,
        axis: 1,
        block: 0,
    };
    let message = |quant: FakeQuant| {
        fake_quant(&tensor(1, (2, 4)), &quant)
            .unwrap_err()
            .to_string()
    };
    assert!(message(good.clone()).contains("needs 4"));
    let changed = |f: &dyn Fn(&mut FakeQuant)| {
        let mut quant = good.clone();
        f(&mut quant);
        message(quant)
    };
    assert!(changed(&|q| q.scale[1] = 0.0).contains("positive"));
    assert!(changed(&|q| q.scale[1] = f32::NAN).contains("positive"));
    assert!(changed(&|q| q.axis = 2).contains("axis 2"));
    assert!(changed(&|q| q.hi = -129).contains("empty"));
    assert!(changed(&|q| q.hi = i32::MAX).contains("wider"));
    assert!(changed(&|q| q.zero_point = vec![0]).contains("zero points"));
}

/// Esser et al. 2020, eq. 3, element by element.
fn slope(x: f32, scale: f32, zero: i32, lo: i32, hi: i32) -> f32 {
    let (low, high) = ((lo - zero) as f32, (hi - zero) as f32);
    let exact = x / scale;
    match exact.round_ties_even() {
        whole if whole < low => low,
        whole if whole > high => high,
        whole => whole - exact,
    }
}

#[test]
fn a_learned_step_size_has_the_gradient_of_the_paper() {
    let dims = [3, 5, 4];
    let x = (tensor(7, &dims) * 3.0).unwrap();
    // The same for all, one a channel, one a group of two along the middle axis.
    for (count, block) in [(1, 0), (5, 0), (3 * 3 * 4, 2)] {
        let quant = FakeQuant {
            scale: random(3, count)
                .iter()
                .map(|v| 0.05 + v.abs() * 0.3)
                .collect(),
            zero_point: (0..count as i32).map(|i| i % 3 - 1).collect(),
            lo: -8,
            hi: 7,
            axis: 1,
            block,
        };
        let which = |at: usize| match (count, block) {
            (1, _) => 0,
            (_, 0) => at / 4 % 5,
            _ => (at / 20 * 3 + at / 4 % 5 / 2) * 4 + at % 4,
        };
        let scale = Tensor::new(quant.scale.clone(), &Device::Cpu).unwrap();
        let got = with_threads(2, || {
            forward_and_gradients(&[x.clone(), scale.clone()], |t| {
                fake_quant_learned(&t[0], &t[1], &quant)
            })
        });
        let plain = forward_and_gradients(std::slice::from_ref(&x), |t| fake_quant(&t[0], &quant));
        assert_eq!(got[..2], plain[..2], "value and straight-through gradient");
        let r = random(99, x.elem_count());
        let mut expected = vec![0.0_f64; count];
        for (at, x) in values(&x).into_iter().enumerate() {
            let (scale, zero) = (quant.scale[which(at)], quant.zero_point[which(at)]);
            expected[which(at)] += f64::from(r[at] * slope(x, scale, zero, -8, 7));
        }
        for (got, expected) in got[2].iter().zip(&expected) {
            assert!(
                (f64::from(*got) - expected).abs() < 1e-4,
                "{got}, {expected}"
            );
        }
    }
}
