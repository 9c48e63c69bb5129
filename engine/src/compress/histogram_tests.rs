use super::*;
use proptest::prelude::*;

fn of(values: &[f32]) -> Histogram {
    let mut h = Histogram::default();
    h.add(values);
    h
}

#[test]
fn ranges_of_a_known_set() {
    let values: Vec<f32> = (0..10_000).map(|i| i as f32 / 10_000.0).collect();
    let h = of(&values);
    assert_eq!(
        h.range(Calibration::MinMax, Symmetry::Asymmetric),
        Some((0.0, 0.9999))
    );
    assert_eq!(
        h.range(Calibration::MinMax, Symmetry::Symmetric),
        Some((-0.9999, 0.9999))
    );
    // 98 % kept: one percent may go at each end, and below zero there is nothing.
    let (lo, hi) = h
        .range(Calibration::Percentile(98.0), Symmetry::Asymmetric)
        .unwrap();
    assert_eq!(lo, 0.0);
    assert!((hi - 0.99).abs() < 1.0 / 4096.0, "{hi}");
    let (lo, hi) = h
        .range(Calibration::Percentile(98.0), Symmetry::Symmetric)
        .unwrap();
    assert!((hi - 0.98).abs() < 1.0 / 4096.0 && lo == -hi, "{hi}");
    assert_eq!(of(&[]).range(Calibration::Mse, Symmetry::Symmetric), None);
}

#[test]
fn least_squares_cuts_a_lone_outlier_but_keeps_even_data() {
    let mut values: Vec<f32> = (0..100_000)
        .map(|i| (i % 1000) as f32 / 1000.0 - 0.5)
        .collect();
    let even = of(&values)
        .range(Calibration::Mse, Symmetry::Asymmetric)
        .unwrap();
    assert!(even.0 < -0.48 && even.1 > 0.48, "{even:?}");
    values.push(20.0);
    let (lo, hi) = of(&values)
        .range(Calibration::Mse, Symmetry::Asymmetric)
        .unwrap();
    assert!(hi < 19.0 && lo < -0.4, "{lo} {hi}");
}

#[test]
fn least_divergence_cuts_a_long_tail_but_keeps_the_bulk() {
    // Dense around zero, thinner towards ±1.
    let bulk: Vec<f32> = (0..100_000)
        .map(|i| ((i % 1000) as f32 / 500.0 - 1.0).powi(3))
        .collect();
    let entropy = |values: &[f32], symmetry| {
        let range = of(values).range(Calibration::Entropy, symmetry);
        range.expect("there are values")
    };
    let (lo, hi) = entropy(&bulk, Symmetry::Asymmetric);
    assert!(lo < -0.9 && hi > 0.9, "{lo} {hi}");
    // Nine in ten thousand lie thinly spread up to 40: the rest is told apart better without most of them.
    let mut tailed = bulk.clone();
    tailed.extend((0..90).map(|i| 1.0 + i as f32 * 0.44));
    let (lo, hi) = entropy(&tailed, Symmetry::Asymmetric);
    assert!(lo < -0.9 && 0.9 < hi && hi < 20.0, "{lo} {hi}");
    // Zeros cost nothing and decide nothing.
    let mut sparse = bulk;
    sparse.extend(std::iter::repeat_n(0.0, 1_000_000));
    let (lo, hi) = entropy(&sparse, Symmetry::Symmetric);
    assert!(lo == -hi && hi > 0.9, "{lo} {hi}");
}

#[test]
fn non_finite_values_are_counted_apart() {
    let h = of(&[f32::NAN, f32::INFINITY, 1.0, -2.0]);
    assert_eq!((h.non_finite(), h.count()), (2, 2));
    assert_eq!(h.extremes(), Some((-2.0, 1.0)));
}

#[test]
fn parameters_include_zero_and_survive_degenerate_ranges() {
    let q = ActivationQuant::of(1.0, 3.0, Symmetry::Asymmetric, 8);
    assert_eq!((q.scale, q.zero_point), (3.0 / 255.0, 0));
    let q = ActivationQuant::of(-1.0, 1.0, Symmetry::Asymmetric, 8);
    assert_eq!(q.zero_point, 128);
    for symmetry in [Symmetry::Asymmetric, Symmetry::Symmetric] {
        let q = ActivationQuant::of(0.0, 0.0, symmetry, 8);
        assert_eq!((q.scale, q.zero_point), (1.0, 0));
        assert!(
            ActivationQuant::of(f32::MIN, f32::MAX, symmetry, 8)
                .scale
                .is_finite()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn neither_batches_nor_order_nor_merging_matter(
        values in prop::collection::vec(prop_oneof![
            Just(0.0_f32), Just(1.0), Just(-4.0), -1.0_f32..1.0, -1e4_f32..1e4, -1e-4_f32..1e-4,
        ], 1..200),
        cut in 0_usize..200,
    ) {
        let whole = of(&values);
        let (a, b) = values.split_at(cut.min(values.len()));
        let mut stepwise = of(a);
        stepwise.add(b);
        prop_assert_eq!(&stepwise, &whole);
        let mut merged = of(b);
        merged.merge(of(a));
        prop_assert_eq!(&merged, &whole);
        let mut reversed = values.clone();
        reversed.reverse();
        prop_assert_eq!(&of(&reversed), &whole);
    }

    #[test]
    fn ranges_include_zero_and_lie_within_the_extremes(
        values in prop::collection::vec(-10.0_f32..10.0, 1..100),
        percent in 50.0_f32..100.0,
    ) {
        let h = of(&values);
        let (min, max) = h.extremes().unwrap();
        for method in [Calibration::MinMax, Calibration::Percentile(percent), Calibration::Mse, Calibration::Entropy] {
            let (lo, hi) = h.range(method, Symmetry::Asymmetric).unwrap();
            prop_assert!(lo <= 0.0 && hi >= 0.0);
            prop_assert!(lo >= min.min(0.0) && hi <= max.max(0.0));
            let kept = values.iter().filter(|v| (lo..=hi).contains(v)).count();
            if let Calibration::Percentile(percent) = method {
                prop_assert!(kept as f64 >= (values.len() as f64 * f64::from(percent) / 100.0).floor());
            }
        }
    }
}
