use super::*;
use crate::exec::kernels::permute;
use proptest::prelude::*;

fn reference(x: &[f32], dims: &[usize], perm: &[usize]) -> Vec<f32> {
    let shape: Vec<usize> = perm.iter().map(|p| dims[*p]).collect();
    let strides: Vec<usize> = (0..dims.len())
        .map(|i| dims[i + 1..].iter().product())
        .collect();
    let count: usize = shape.iter().product();
    (0..count)
        .map(|mut index| {
            let mut at = 0;
            for axis in (0..shape.len()).rev() {
                at += index % shape[axis] * strides[perm[axis]];
                index /= shape[axis];
            }
            x[at]
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn axes_are_exchanged(
        (dims, perm) in (prop::collection::vec(1..23usize, 1..6)
            .prop_filter("not too many", |d| d.iter().product::<usize>() < 200_000))
            .prop_flat_map(|d| {
                let axes: Vec<usize> = (0..d.len()).collect();
                (Just(d), Just(axes).prop_shuffle())
            }),
        threads in 1..4usize,
    ) {
        let x = tensor(7, dims.clone());
        let y = with_threads(threads, || permute(&x, &perm).unwrap());
        prop_assert_eq!(values(&y), reference(&values(&x), &dims, &perm));
        let shape: Vec<usize> = perm.iter().map(|p| dims[*p]).collect();
        prop_assert_eq!(y.dims(), shape.as_slice());
    }
}

#[test]
fn the_gradient_goes_back_the_way_the_values_came() {
    let x = tensor(3, (3, 4, 5));
    check_gradients(std::slice::from_ref(&x), 1e-2, 1e-3, |t| {
        permute(&t[0], &[2, 0, 1])
    });
    // Views too, and what is no permutation is an error.
    let view = x.narrow(1, 1, 2).unwrap();
    let got = permute(&view, &[1, 0, 2]).unwrap();
    assert_eq!(
        values(&got),
        values(&view.permute((1, 0, 2)).unwrap().contiguous().unwrap())
    );
    assert!(permute(&x, &[0, 0, 1]).is_err());
    assert!(permute(&x, &[0, 1]).is_err());
}
