use super::*;
use proptest::prelude::*;

const INT4: CodeRange = CodeRange { lo: -8, hi: 7 };
const INT8: CodeRange = CodeRange { lo: -128, hi: 127 };

#[test]
fn layouts_follow_the_operators_axes() {
    let group = Granularity::Group(32);
    let conv = ScaleLayout::of("Conv", &[64, 48, 3, 3], 0, group);
    assert_eq!(
        (conv.shape, conv.axis, conv.block),
        (vec![64, 2, 3, 3], 1, 32)
    );
    let transpose = ScaleLayout::of("ConvTranspose", &[64, 8, 2, 2], 1, group);
    assert_eq!((transpose.shape, transpose.axis), (vec![2, 8, 2, 2], 0));
    let matmul = ScaleLayout::of("MatMul", &[70, 10], 1, group);
    assert_eq!((matmul.shape, matmul.axis), (vec![3, 10], 0));
    let gemm = ScaleLayout::of("Gemm", &[10, 64], 0, group);
    assert_eq!((gemm.shape, gemm.axis), (vec![10, 2], 1));
    let depthwise = ScaleLayout::of("Conv", &[64, 1, 3, 3], 0, group);
    assert_eq!((depthwise.shape, depthwise.block), (vec![64], 0));
    let per_channel = ScaleLayout::of("ConvTranspose", &[64, 8, 2, 2], 1, Granularity::PerChannel);
    assert_eq!((per_channel.shape, per_channel.axis), (vec![8], 1));
    assert_eq!(
        ScaleLayout::of("MatMul", &[70], 0, Granularity::PerChannel),
        ScaleLayout::per_tensor()
    );
}

#[test]
fn zeros_get_scale_one_and_outliers_are_clipped_at_four_bits() {
    assert_eq!(choose_scale(&[0.0; 9], INT4, Symmetry::Symmetric).0, 1.0);
    let mut weights: Vec<f32> = (0..2000)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
        .collect();
    weights.push(4.0);
    let (scale, _, error) = choose_scale(&weights, INT4, Symmetry::Symmetric);
    let full = 4.0 / 7.0;
    assert!(scale < 0.6 * full);
    assert!(error < 0.6 * squared_error(&weights, full, INT4));
}

#[test]
fn codes_round_half_to_even() {
    for (value, expected) in [
        (0.5, 0.0),
        (1.5, 2.0),
        (2.5, 2.0),
        (-0.5, 0.0),
        (-3.5, -4.0),
    ] {
        assert_eq!(code(value, 1.0, INT8), expected);
    }
    assert_eq!(code(1e30, 1.0, INT8), 127.0);
    assert_eq!(code(-1e30, 1.0, INT4), -8.0);
}

fn weight() -> impl Strategy<Value = (Vec<usize>, Vec<f32>)> {
    prop::collection::vec(1_usize..6, 2..5).prop_flat_map(|shape| {
        let n = shape.iter().product::<usize>();
        (
            Just(shape),
            prop::collection::vec(prop_oneof![Just(0.0_f32), -2.0_f32..2.0], n..=n),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rounding_trick_is_round_ties_even(value in -1e4_f32..1e4, scale in 1e-3_f32..10.0) {
        let expected = (value / scale).round_ties_even().clamp(-128.0, 127.0);
        prop_assert_eq!(code(value, scale, INT8), expected);
    }

    #[test]
    fn each_and_gather_agree((shape, weights) in weight(), axis in 0_usize..4, block in 0_usize..4) {
        let axis = axis % shape.len();
        let layout = if block == 0 {
            ScaleLayout { shape: vec![shape[axis]], axis, block }
        } else {
            let mut scales = shape.clone();
            scales[axis] = shape[axis].div_ceil(block);
            ScaleLayout { shape: scales, axis, block }
        };
        let mut groups = vec![Vec::new(); layout.len()];
        layout.each(&shape, |element, scale| groups[scale].push(weights[element]));
        let mut scratch = Vec::new();
        for (scale, group) in groups.iter().enumerate() {
            layout.gather(&weights, &shape, scale, &mut scratch);
            prop_assert_eq!(&scratch, group);
        }
    }

    #[test]
    fn error_is_at_most_half_a_step_inside_the_range(
        (shape, weights) in weight(),
        bits in 2_u32..=8,
        asymmetric: bool,
    ) {
        let precision = Precision::of_bits(bits).unwrap();
        let range = CodeRange::of(precision).unwrap();
        prop_assert_eq!((range.lo, range.hi), (-(1 << (bits - 1)), (1 << (bits - 1)) - 1));
        let (lo, hi) = precision.storage().unwrap().integer_range().unwrap();
        prop_assert!(lo <= i64::from(range.lo) && i64::from(range.hi) <= hi);
        let symmetry = if asymmetric { Symmetry::Asymmetric } else { Symmetry::Symmetric };
        let layout = ScaleLayout { shape: vec![shape[0]], axis: 0, block: 0 };
        let steps = choose_scales(&weights, &shape, &layout, range, symmetry);
        let after = fake(&weights, &shape, &layout, &steps, range);
        let mut codes = Vec::new();
        layout.each(&shape, |e, s| {
            codes.push((after[e] / steps.scale[s]).round() as i32 + steps.zero_point[s]);
        });
        let mut worst: Result<(), TestCaseError> = Ok(());
        layout.each(&shape, |e, s| {
            let whole = weights[e] / steps.scale[s] + steps.zero_point[s] as f32;
            let inside = whole >= range.lo as f32 && whole <= range.hi as f32;
            let step = (weights[e] - after[e]).abs() / steps.scale[s];
            let in_range = range.lo <= codes[e] && codes[e] <= range.hi;
            let zero_kept = weights[e] != 0.0 || after[e] == 0.0;
            if (inside && step > 0.500_01) || !in_range || !zero_kept {
                worst = Err(TestCaseError::fail(format!("{} -> {} at scale {}", weights[e], after[e], steps.scale[s])));
            }
        });
        worst?;
        let measured: f64 = weights.iter().zip(&after).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        prop_assert!((measured - steps.error).abs() <= 1e-5 * (1e-9 + measured));
        if bits > 4 && !asymmetric {
            // Min–max scales never reach the lone extra code, −128 of 8 bits.
            prop_assert!(codes.iter().all(|c| c.abs() <= range.hi));
        }
        prop_assert!(asymmetric || steps.zero_point.iter().all(|z| *z == 0));
    }

    #[test]
    fn a_zero_point_halves_the_step_of_one_sided_weights(weights in prop::collection::vec(0.1_f32..2.0, 2..40)) {
        let symmetric = choose_scale(&weights, INT8, Symmetry::Symmetric);
        let (scale, zero, _) = choose_scale(&weights, INT8, Symmetry::Asymmetric);
        prop_assert_eq!(zero, -128);
        prop_assert!((scale / symmetric.0 - 127.0 / 255.0).abs() < 1e-3);
    }

    #[test]
    fn searched_scales_are_never_worse_than_min_max((_, weights) in weight()) {
        let largest = weights.iter().fold(0.0_f32, |a, w| a.max(w.abs()));
        let (_, _, error) = choose_scale(&weights, INT4, Symmetry::Symmetric);
        if largest > 0.0 {
            prop_assert!(error <= squared_error(&weights, largest / 7.0, INT4));
        }
    }
}
