use super::*;
use crate::exec::kernels::{add, add_relu, batch_norm, clip, relu, round_ties_even};

/// Long enough for several chunks, with an odd end.
fn long(seed: u64) -> Tensor {
    tensor(seed, (3, 7, 1999))
}

#[test]
fn batch_norm_follows_its_formula() {
    let x = tensor(1, (4, 3, 5, 7));
    let (scale, shift, mean) = (tensor(2, 3), tensor(3, 3), tensor(4, 3));
    let variance = (tensor(5, 3) * 0.4).unwrap().affine(1.0, 0.5).unwrap();
    let f = |t: &[Tensor]| batch_norm(&t[0], &t[1], &t[2], &mean, &variance, 1e-3);
    let inputs = [x.clone(), scale.clone(), shift.clone()];
    let got = with_threads(2, || forward_and_gradients(&inputs, f));
    let (x, m, v) = (values(&x), values(&mean), values(&variance));
    let (scale, shift) = (values(&scale), values(&shift));
    let expected: Vec<f64> = x
        .iter()
        .enumerate()
        .map(|(i, x)| {
            let c = i / 35 % 3;
            let normal = (f64::from(*x) - f64::from(m[c])) / (f64::from(v[c]) + 1e-3).sqrt();
            normal * f64::from(scale[c]) + f64::from(shift[c])
        })
        .collect();
    close(&got[0], &expected, 1e-5);
    with_threads(2, || check_gradients(&inputs, 0.1, 2e-3, f));
    check_threads(&inputs, f);
    // Also without spatial axes, and wrong numbers of channels are errors.
    let rows = tensor(1, (4, 3));
    with_threads(1, || {
        f(&[rows, inputs[1].clone(), inputs[2].clone()]).unwrap()
    });
    let wrong = f(&[tensor(1, (4, 5, 2)), inputs[1].clone(), inputs[2].clone()]);
    assert!(wrong.unwrap_err().to_string().contains("3 channels"));
}

#[test]
fn simple_operators_and_their_gates() {
    let at = |data: &[f32]| Tensor::new(data, &Device::Cpu).unwrap();
    let x = at(&[-1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 7.0]);
    let gradient = |f: &dyn Fn(&Tensor) -> Result<Tensor>| {
        let x = Var::from_tensor(&x).unwrap();
        let y = f(&x).unwrap();
        let store = y.sum_all().unwrap().backward().unwrap();
        (values(&y), values(store.get(&x).unwrap()))
    };
    with_threads(1, || {
        assert_eq!(
            gradient(&relu),
            (
                vec![0.0, 0.0, 0.0, 0.5, 1.5, 2.5, 7.0],
                vec![0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
            )
        );
        assert_eq!(
            gradient(&|x| clip(x, -0.5, 2.0)),
            (
                vec![-0.5, -0.5, 0.0, 0.5, 1.5, 2.0, 2.0],
                vec![0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
            )
        );
        assert_eq!(
            gradient(&round_ties_even),
            (vec![-2.0, 0.0, 0.0, 0.0, 2.0, 2.0, 7.0], vec![1.0; 7])
        );
        let nan = at(&[f32::NAN]);
        for y in [relu(&nan), clip(&nan, 0.0, 1.0), add_relu(&nan, &nan)] {
            assert!(values(&y.unwrap())[0].is_nan());
        }
        assert!(add(&at(&[1.0]), &at(&[1.0, 2.0])).is_err());
    });
}

#[test]
fn sums_agree_with_candle() {
    let (a, b) = (long(1), long(2));
    let sum = (&a + &b).unwrap();
    with_threads(2, || {
        assert_eq!(values(&add(&a, &b).unwrap()), values(&sum));
        let rectified = sum.relu().unwrap();
        assert_eq!(values(&add_relu(&a, &b).unwrap()), values(&rectified));
        let inputs = [a.clone(), b.clone()];
        let expected = forward_and_gradients(&inputs, |t| (&t[0] + &t[1])?.relu());
        let got = forward_and_gradients(&inputs, |t| add_relu(&t[0], &t[1]));
        assert_eq!(got, expected);
        // A tensor added to itself gets its gradient twice; layouts may differ.
        let twice = forward_and_gradients(&inputs[..1], |t| add(&t[0], &t[0]));
        assert_eq!(
            twice,
            forward_and_gradients(&inputs[..1], |t| &t[0] + &t[0])
        );
        let turned = a.transpose(0, 1).unwrap();
        let got = add(&turned, &b.transpose(0, 1).unwrap()).unwrap();
        assert_eq!(values(&got), values(&sum.transpose(0, 1).unwrap()));
    });
    check_threads(&[a, b], |t| add_relu(&t[0], &relu(&t[1])?));
}
