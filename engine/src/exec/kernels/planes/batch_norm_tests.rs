//! Against sums in f64, over odd sizes and margins.

use super::{
    tests::{placed, plain, random},
    *,
};

fn with_margin(h: usize, w: usize, c: usize, margin: [usize; 4]) -> Plane {
    let mut plane = Plane::new(h, w, c);
    plane.widen(margin);
    plane
}

#[test]
fn statistics_and_both_directions_are_those_of_plain_sums() {
    for (case, (images, h, w, c)) in [(1, 1, 2, 1), (3, 5, 4, 17), (2, 7, 7, 40), (5, 3, 9, 16)]
        .into_iter()
        .enumerate()
    {
        let seed = case as u64 * 10;
        let count = images * h * w;
        // A mean far from zero: what a sum of squares alone would lose.
        let x: Vec<f32> = random(seed, count * c).iter().map(|v| v + 50.0).collect();
        let g = random(seed + 1, count * c);
        let of = |v: &[f32], k: usize| {
            v.iter()
                .skip(k)
                .step_by(c)
                .map(|v| f64::from(*v))
                .collect::<Vec<f64>>()
        };
        let x_plane = with_margin(h, w, c, [1, 0, 2, 1]);
        let g_plane = with_margin(h, w, c, [0, 2, 0, 0]);
        let (px, pg) = (placed(&x, images, &x_plane), placed(&g, images, &g_plane));
        // In two parts, joined.
        let half = images / 2;
        let mut moments = Moments::of(half, (&px[..half * x_plane.size()], &x_plane));
        if half == 0 {
            moments = Moments {
                count: 0.0,
                mean: vec![0.0; c],
                squares: vec![0.0; c],
            };
        }
        moments.join(&Moments::of(
            images - half,
            (&px[half * x_plane.size()..], &x_plane),
        ));
        assert_eq!(moments.count, count as f64);
        let variance: Vec<f64> = moments.variance().collect();
        for (k, variance) in variance.iter().enumerate().take(c) {
            let own = of(&x, k);
            let mean = own.iter().sum::<f64>() / count as f64;
            let v = own.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
            assert!(
                (moments.mean[k] - mean).abs() < 1e-5,
                "{} {mean}",
                moments.mean[k]
            );
            assert!((variance - v).abs() < 1e-4 * v + 1e-7, "{variance} {v}");
        }
        let by = PerChannel {
            mean: moments.mean.iter().map(|m| *m as f32).collect(),
            factor: random(seed + 2, c),
            shift: random(seed + 3, c),
        };
        let added = random(seed + 4, count * c);
        let bare = Plane::new(h, w, c);
        for (more, limits) in [
            (false, (f32::NEG_INFINITY, f32::INFINITY)),
            (true, (-0.1, 0.2)),
        ] {
            let mut out = placed(&vec![0.0; count * c], images, &g_plane);
            let added = more.then_some((added.as_slice(), &bare));
            normalise(
                images,
                (&px, &x_plane),
                &by,
                added,
                (&mut out, &g_plane),
                limits,
            );
            for (i, v) in plain(&out, images, &g_plane).iter().enumerate() {
                let k = i % c;
                let mut e = (f64::from(x[i]) - f64::from(by.mean[k])) * f64::from(by.factor[k])
                    + f64::from(by.shift[k]);
                if let Some((added, _)) = added {
                    e += f64::from(added[i]);
                }
                let e = e.clamp(f64::from(limits.0), f64::from(limits.1));
                assert!((f64::from(*v) - e).abs() < 1e-5, "{v} {e}");
            }
        }
        let (sums, with_x) = gradient_sums(images, (&pg, &g_plane), (&px, &x_plane), &by.mean);
        for k in 0..c {
            let (own, slopes) = (of(&x, k), of(&g, k));
            let s: f64 = slopes.iter().sum();
            let d: f64 = slopes
                .iter()
                .zip(&own)
                .map(|(g, x)| g * (x - f64::from(by.mean[k])))
                .sum();
            assert!((sums[k] - s).abs() < 1e-4 && (with_x[k] - d).abs() < 1e-4);
        }
        let slope = random(seed + 5, c);
        for more in [false, true] {
            let start = random(seed + 6, count * c);
            let mut out = placed(&start, images, &x_plane);
            norm_gradient(
                images,
                (&pg, &g_plane),
                &slope,
                (&px, &x_plane),
                &by,
                (&mut out, &x_plane),
                more,
            );
            for (i, v) in plain(&out, images, &x_plane).iter().enumerate() {
                let k = i % c;
                let mut e = f64::from(g[i]) * f64::from(slope[k])
                    + (f64::from(x[i]) - f64::from(by.mean[k])) * f64::from(by.factor[k])
                    + f64::from(by.shift[k]);
                if more {
                    e += f64::from(start[i]);
                }
                assert!((f64::from(*v) - e).abs() < 1e-5, "{v} {e}");
            }
        }
    }
}
