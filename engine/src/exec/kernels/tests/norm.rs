use super::*;
use crate::exec::kernels::batch_norm;

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
