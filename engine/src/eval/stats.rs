//! Interval estimates: a proportion (Wilson), a mean (normal) and the difference of two paired proportions.

use super::{Estimate, PairedDrop};

/// 0.975 quantile of the standard normal distribution: every interval here is a two-sided 95 % one.
const Z: f64 = 1.959_963_984_540_054;

/// Share `successes / n` with Wilson's score interval (Wilson 1927, JASA 22:209). With no samples the value is 0 and
/// the interval is all of 0..=1: nothing is known.
pub fn proportion(successes: u64, n: u64) -> Estimate {
    if n == 0 {
        return Estimate {
            value: 0.0,
            n: 0,
            ci: [0.0, 1.0],
        };
    }
    let total = n as f64;
    let p = successes as f64 / total;
    let z2 = Z * Z;
    let centre = p + z2 / (2.0 * total);
    let half = Z * (p * (1.0 - p) / total + z2 / (4.0 * total * total)).sqrt();
    let scale = 1.0 + z2 / total;
    // The ends are exactly 0 and 1 at the extremes; rounding must not move them off the value.
    Estimate {
        value: p,
        n,
        ci: [
            ((centre - half) / scale).clamp(0.0, p),
            ((centre + half) / scale).clamp(p, 1.0),
        ],
    }
}

/// Mean with the normal 95 % interval of its standard error; a single sample has no spread, so its interval is the point.
pub fn mean(values: impl Iterator<Item = f64> + Clone) -> Estimate {
    let n = values.clone().count();
    if n == 0 {
        return Estimate {
            value: 0.0,
            n: 0,
            ci: [0.0, 0.0],
        };
    }
    let value = values.clone().sum::<f64>() / n as f64;
    let half = if n > 1 {
        let variance = values.map(|v| (v - value).powi(2)).sum::<f64>() / (n - 1) as f64;
        Z * (variance / n as f64).sqrt()
    } else {
        0.0
    };
    Estimate {
        value,
        n: n as u64,
        ci: [value - half, value + half],
    }
}

/// Drop (b − c)/n of an accuracy, from the `only_baseline` = b and `only_candidate` = c samples of `n` that just one of
/// the two got right.
///
/// The interval is that of Agresti and Min ("Simple improved confidence intervals for comparing matched proportions",
/// Statistics in Medicine 24, 2005): the Wald interval after adding ½ to each cell of the 2×2 table, so it has width
/// even where no sample changed. With b = c = 0 it is widened to ±3/n, the rule of three (Hanley and Lippman-Hand,
/// JAMA 249, 1983): "nothing seen in n" is compatible with a true rate of up to 3/n.
pub fn paired_drop(only_baseline: u64, only_candidate: u64, n: u64) -> PairedDrop {
    let (b, c, total) = (only_baseline as f64, only_candidate as f64, n as f64);
    if n == 0 {
        return PairedDrop {
            drop: 0.0,
            ci: [-1.0, 1.0],
            n,
            only_baseline,
            only_candidate,
        };
    }
    let drop = (b - c) / total;
    let mut ci = if only_baseline + only_candidate == 0 {
        let half = 3.0 / total;
        [-half, half]
    } else {
        let (b, c, total) = (b + 0.5, c + 0.5, total + 2.0);
        let half = Z * ((b + c) - (b - c).powi(2) / total).max(0.0).sqrt() / total;
        let centre = (b - c) / total;
        [centre - half, centre + half]
    };
    ci = [ci[0].clamp(-1.0, drop), ci[1].clamp(drop, 1.0)];
    PairedDrop {
        drop,
        ci,
        n,
        only_baseline,
        only_candidate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 5e-5, "{a} is not {b}");
    }

    /// Values from Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    #[test]
    fn wilson_gives_the_published_intervals() {
        for (hits, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let e = proportion(hits, n);
            near(e.ci[0], low);
            near(e.ci[1], high);
        }
        assert_eq!(proportion(20, 20).ci[1], 1.0);
        assert_eq!(proportion(0, 0).ci, [0.0, 1.0]);
    }

    #[test]
    fn mean_uses_the_standard_error() {
        let e = mean([1.0, 2.0, 3.0, 4.0].into_iter());
        near(e.value, 2.5);
        // s = sqrt(5/3), half = 1.96 s / 2
        near(e.ci[1] - e.value, 1.265_151);
        assert_eq!(mean([7.0].into_iter()).ci, [7.0, 7.0]);
    }

    /// By hand: b 16, c 6, n 100 gives (10.0 ± 1.95996·sqrt(23 − 100/102))/102.
    #[test]
    fn paired_drop_follows_agresti_and_min() {
        let d = paired_drop(16, 6, 100);
        near(d.drop, 0.10);
        near(d.ci[0], 0.007_87);
        near(d.ci[1], 0.188_21);
    }

    #[test]
    fn no_change_still_has_a_width() {
        let d = paired_drop(0, 0, 1000);
        assert_eq!(d.drop, 0.0);
        assert_eq!(d.ci, [-0.003, 0.003]);
        assert_eq!(paired_drop(0, 0, 0).ci, [-1.0, 1.0]);
    }

    proptest! {
        #[test]
        fn intervals_hold_their_value_and_stay_in_range(n in 1u64..5000, x in 0.0f64..=1.0, y in 0.0f64..=1.0) {
            let b = (x * n as f64) as u64;
            let c = (y * (n - b) as f64) as u64;
            let e = proportion(b, n);
            prop_assert!(0.0 <= e.ci[0] && e.ci[0] <= e.value && e.value <= e.ci[1] && e.ci[1] <= 1.0);
            let d = paired_drop(b, c, n);
            prop_assert!(-1.0 <= d.ci[0] && d.ci[0] <= d.drop && d.drop <= d.ci[1] && d.ci[1] <= 1.0);
            prop_assert!(d.ci[0] < d.ci[1]);
            let mirrored = paired_drop(c, b, n);
            prop_assert!((mirrored.ci[0] + d.ci[1]).abs() < 1e-12);
        }
    }

    /// Draws tables of known rates and counts how often the interval holds the truth.
    #[test]
    fn paired_interval_covers_the_truth() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        for (n, p, q) in [
            (200, 0.05, 0.02),
            (500, 0.01, 0.01),
            (1000, 0.002, 0.0),
            (100, 0.3, 0.1),
        ] {
            let trials = 1500;
            let covered = (0..trials)
                .filter(|_| {
                    let (mut b, mut c) = (0, 0);
                    for _ in 0..n {
                        let u: f64 = rng.random();
                        if u < p {
                            b += 1;
                        } else if u < p + q {
                            c += 1;
                        }
                    }
                    let d = paired_drop(b, c, n);
                    d.ci[0] <= p - q && p - q <= d.ci[1]
                })
                .count();
            let coverage = covered as f64 / trials as f64;
            assert!(coverage > 0.93, "n {n}, b {p}, c {q}: covered {coverage}");
        }
    }
}
