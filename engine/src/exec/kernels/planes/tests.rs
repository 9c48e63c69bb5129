//! Against plain sums over odd shapes, strides, dilations, paddings and channel counts; all instruction sets agree.

use super::*;
use proptest::prelude::*;

pub(super) fn random(seed: u64, count: usize) -> Vec<f32> {
    super::super::tests::random(seed, count)
}

/// An image set in a plane with its margin, from plain N×H×W×C.
pub(super) fn placed(plain: &[f32], images: usize, plane: &Plane) -> Vec<f32> {
    let mut buffer = vec![f32::NAN; images * plane.size()];
    plane.clear_margin(&mut buffer, images);
    let bare = Plane::new(plane.h, plane.w, plane.c);
    copy(images, (plain, &bare), (&mut buffer, plane));
    buffer
}

pub(super) fn plain(buffer: &[f32], images: usize, plane: &Plane) -> Vec<f32> {
    let bare = Plane::new(plane.h, plane.w, plane.c);
    let mut out = vec![0.0; images * bare.size()];
    copy(images, (buffer, plane), (&mut out, &bare));
    out
}

#[derive(Clone, Debug)]
struct Case {
    images: usize,
    h: usize,
    w: usize,
    groups: usize,
    depth: usize,
    channels: usize,
    window: Window2d,
}

fn cases() -> impl Strategy<Value = Case> {
    (
        (1..4usize, 1..9usize, 1..14usize),
        (1..3usize, 1..20usize, 1..40usize),
        (
            (1..4usize, 1..6usize),
            (1..4usize, 1..3usize),
            (1..3usize, 1..3usize),
            (0..3usize, 0..3usize),
        ),
    )
        .prop_filter_map(
            "a window that fits",
            |((images, h, w), (groups, depth, channels), (kernel, stride, dilation, before))| {
                let out = |extent: usize,
                           kernel: usize,
                           stride: usize,
                           dilation: usize,
                           before: usize| {
                    let reach = (kernel - 1) * dilation + 1;
                    ((extent + 2 * before).checked_sub(reach)).map(|left| left / stride + 1)
                };
                let window = Window2d {
                    kernel,
                    stride,
                    dilation,
                    before,
                    h: out(h, kernel.0, stride.0, dilation.0, before.0)?,
                    w: out(w, kernel.1, stride.1, dilation.1, before.1)?,
                };
                Some(Case {
                    images,
                    h,
                    w,
                    groups,
                    depth,
                    channels,
                    window,
                })
            },
        )
}

impl Case {
    fn input(&self) -> Plane {
        let mut plane = Plane::new(self.h, self.w, self.groups * self.depth);
        plane.margin = self.window.margin(self.h, self.w);
        plane
    }
    fn output(&self, margin: [usize; 4]) -> Plane {
        let mut plane = Plane::new(self.window.h, self.window.w, self.groups * self.channels);
        plane.margin = margin;
        plane
    }
    fn taps(&self) -> usize {
        self.window.taps()
    }
    /// Calls `f(image, output pixel, output channel, input element, weight element)` for every product of the convolution;
    /// weights are output × input × taps.
    fn products(&self, mut f: impl FnMut(usize, usize, usize)) {
        let w = &self.window;
        for n in 0..self.images {
            for oy in 0..w.h {
                for ox in 0..w.w {
                    for o in 0..self.groups * self.channels {
                        for i in 0..self.depth {
                            for ky in 0..w.kernel.0 {
                                for kx in 0..w.kernel.1 {
                                    let y = (oy * w.stride.0 + ky * w.dilation.0)
                                        .wrapping_sub(w.before.0);
                                    let x = (ox * w.stride.1 + kx * w.dilation.1)
                                        .wrapping_sub(w.before.1);
                                    if y >= self.h || x >= self.w {
                                        continue;
                                    }
                                    let c = o / self.channels * self.depth + i;
                                    let input =
                                        ((n * self.h + y) * self.w + x) * self.groups * self.depth
                                            + c;
                                    let output =
                                        ((n * w.h + oy) * w.w + ox) * self.groups * self.channels
                                            + o;
                                    let weight =
                                        (o * self.depth + i) * self.taps() + ky * w.kernel.1 + kx;
                                    f(output, input, weight);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn close(got: &[f32], expected: &[f64]) {
    super::super::tests::close(got, expected, 1e-4);
}

fn convolution(case: &Case, isa: Isa) {
    let (images, groups) = (case.images, case.groups);
    let outputs = groups * case.channels;
    let (ip, op) = (case.input(), case.output([1, 0, 2, 1]));
    let x = random(1, images * case.h * case.w * groups * case.depth);
    let weight = random(2, outputs * case.depth * case.taps());
    let bias = random(3, outputs);
    let added = random(4, images * case.window.h * case.window.w * outputs);
    let at = |g: usize, o: usize, i: usize, t: usize| {
        weight[((g * case.channels + o) * case.depth + i) * case.taps() + t]
    };

    let mut expected: Vec<f64> = added
        .iter()
        .enumerate()
        .map(|(i, a)| f64::from(*a) + f64::from(bias[i % outputs]))
        .collect();
    case.products(|o, i, w| expected[o] += f64::from(x[i]) * f64::from(weight[w]));
    let packed = Packed::new(
        isa,
        (groups, case.channels, case.depth, case.taps()),
        at,
        Some(&bias),
    );
    let input = placed(&x, images, &ip);
    let mut output = placed(&added, images, &op);
    let mut sweep = case.window.forward(images, &ip, &op);
    sweep.added = Some(op.grid());
    for part in sweep.split(3) {
        conv(&part, &packed, &input, None, &mut output, Tail::NONE);
    }
    close(&plain(&output, images, &op), &expected);

    // Its weights' gradient, with `added` as the output's.
    let mut expected = vec![0.0; weight.len()];
    case.products(|o, i, w| expected[w] += f64::from(x[i]) * f64::from(added[o]));
    let gradient = placed(&added, images, &op);
    let mut sums = WeightGradient::new(isa, (groups, case.channels, case.depth, case.taps()));
    weight_gradient(
        &case.window.forward(images, &ip, &op),
        &input,
        &gradient,
        &mut sums,
    );
    close(&sums.to_weight(), &expected);

    // Its input's gradient.
    let mut expected = vec![0.0; x.len()];
    case.products(|o, i, w| expected[i] += f64::from(weight[w]) * f64::from(added[o]));
    let gp = case.output(case.window.gradient_margin(case.h, case.w));
    let gradient = placed(&added, images, &gp);
    let back = Packed::new(
        isa,
        (groups, case.depth, case.channels, case.taps()),
        |g, o, i, t| at(g, i, o, t),
        None,
    );
    let mut output = vec![f32::NAN; images * ip.size()];
    for sweep in case.window.backward(images, &gp, &ip) {
        conv(&sweep, &back, &gradient, None, &mut output, Tail::NONE);
    }
    close(&plain(&output, images, &ip), &expected);
}

fn depthwise_convolution(case: &Case) {
    let case = &Case {
        groups: case.channels,
        depth: 1,
        channels: 1,
        ..case.clone()
    };
    let (images, c) = (case.images, case.groups);
    let (ip, op) = (case.input(), case.output([0, 1, 0, 0]));
    let x = random(5, images * case.h * case.w * c);
    let weight = random(6, c * case.taps());
    let bias = random(7, c);
    let g = random(8, images * case.window.h * case.window.w * c);
    let mut expected: Vec<f64> = (0..g.len()).map(|i| f64::from(bias[i % c])).collect();
    case.products(|o, i, w| expected[o] += f64::from(x[i]) * f64::from(weight[w]));
    let input = placed(&x, images, &ip);
    let packed = pack_depthwise(&weight, c);
    let mut output = vec![f32::NAN; images * op.size()];
    let sweep = case.window.forward(images, &ip, &op);
    depthwise(
        &sweep,
        c,
        &packed,
        Some(&bias),
        &input,
        None,
        &mut output,
        Tail::NONE,
    );
    close(&plain(&output, images, &op), &expected);

    let mut expected = vec![0.0; weight.len()];
    case.products(|o, i, w| expected[w] += f64::from(x[i]) * f64::from(g[o]));
    let gradient = placed(&g, images, &op);
    let mut sums = vec![0.0; weight.len()];
    depthwise_weight_gradient(&sweep, c, &input, &gradient, &mut sums);
    let by_channel: Vec<f32> = (0..weight.len())
        .map(|i| sums[i % case.taps() * c + i / case.taps()])
        .collect();
    close(&by_channel, &expected);

    let mut expected = vec![0.0; x.len()];
    case.products(|o, i, w| expected[i] += f64::from(weight[w]) * f64::from(g[o]));
    let gp = case.output(case.window.gradient_margin(case.h, case.w));
    let gradient = placed(&g, images, &gp);
    let mut output = vec![f32::NAN; images * ip.size()];
    for sweep in case.window.backward(images, &gp, &ip) {
        depthwise(
            &sweep,
            c,
            &packed,
            None,
            &gradient,
            None,
            &mut output,
            Tail::NONE,
        );
    }
    close(&plain(&output, images, &ip), &expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn convolutions_and_their_gradients_are_plain_sums(case in cases()) {
        for isa in Isa::all() {
            convolution(&case, isa);
        }
    }

    #[test]
    fn depthwise_convolutions_and_their_gradients_are_plain_sums(case in cases()) {
        depthwise_convolution(&case);
    }
}

#[test]
fn the_tail_clips_then_quantises_half_to_even() {
    let quant = Quant {
        scale: 0.5,
        low: -2.0,
        high: 3.0,
    };
    let plane = Plane::new(1, 7, 1);
    let x = [-9.0, -0.25, 0.25, 0.75, 1.25, 1.9, f32::NAN];
    let window = Window2d {
        kernel: (1, 1),
        stride: (1, 1),
        dilation: (1, 1),
        before: (0, 0),
        h: 1,
        w: 7,
    };
    for isa in Isa::all() {
        let packed = Packed::new(isa, (1, 1, 1, 1), |_, _, _, _| 1.0, None);
        let mut y = [0.0; 7];
        let tail = Tail {
            low: -1.0,
            high: 1.5,
            quant: Some(quant),
        };
        conv(
            &window.forward(1, &plane, &plane),
            &packed,
            &x,
            None,
            &mut y,
            tail,
        );
        assert_eq!(y[..6], [-1.0, 0.0, 0.0, 1.0, 1.0, 1.5]);
        assert!(y[6].is_nan());
    }
    let mut y = [0.0; 7];
    fake_quant(1, (&x, &plane), (&mut y, &plane), &quant);
    assert_eq!(y[..6], [-1.0, 0.0, 0.0, 1.0, 1.0, 1.5]);
    let mut g = [1.0; 7];
    fake_quant_gradient(
        1,
        (&x, &plane),
        (&[1.0; 7], &plane),
        (&mut g, &plane),
        &quant,
    );
    assert_eq!(
        g[..6],
        [
            1.0,
            2.0,
            2.0,
            2.0,
            2.0,
            1.0 + f32::from(u8::from(1.9f32 / 0.5 < 3.5))
        ]
    );
    let mut g = [1.0; 7];
    gate(1, None, (&x, &plane), (&mut g, &plane), (-1.0, 1.5));
    assert_eq!(g, [0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
}

#[test]
fn sums_and_maxima_of_windows() {
    let plane = Plane::new(3, 3, 2);
    let x = random(9, 18);
    let window = Window2d {
        kernel: (2, 2),
        stride: (1, 1),
        dilation: (1, 1),
        before: (0, 0),
        h: 2,
        w: 2,
    };
    let out = Plane::new(2, 2, 2);
    let mut sums = [1.0; 8];
    let sweep = window.forward(1, &plane, &out);
    sum_windows(&sweep, 2, &x, &mut sums, |_, _| 0.25, true);
    let mut most = [0.0; 8];
    max_pool(&sweep, 2, &x, &mut most, |_, _, _| true);
    for y in 0..2 {
        for xx in 0..2 {
            for c in 0..2 {
                let at = |dy: usize, dx: usize| x[((y + dy) * 3 + xx + dx) * 2 + c];
                let four = [at(0, 0), at(0, 1), at(1, 0), at(1, 1)];
                let o = (y * 2 + xx) * 2 + c;
                assert!((sums[o] - four.iter().sum::<f32>() / 4.0).abs() < 1e-6);
                assert_eq!(
                    most[o],
                    four.iter().copied().fold(f32::NEG_INFINITY, f32::max)
                );
            }
        }
    }
    let mut bias = [0.0; 2];
    bias_gradient(1, (&x, &plane), &mut bias);
    assert!((bias[1] - x.iter().skip(1).step_by(2).sum::<f32>()).abs() < 1e-5);
    let mut total = x.clone();
    add(1, (&x, &plane), None, (&mut total, &plane), (0.0, 1.0));
    assert!(
        total
            .iter()
            .zip(&x)
            .all(|(t, x)| *t == (2.0 * x).clamp(0.0, 1.0))
    );
}

#[test]
fn a_team_does_every_part_once_whoever_is_there() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        // More helpers asked for than there are threads.
        let total = pool.install(|| {
            Team::lead(3, |team| {
                let mut total = 0;
                for job in 0..2_000usize {
                    let counts: Vec<AtomicUsize> =
                        (0..job % 7).map(|_| AtomicUsize::new(0)).collect();
                    Hands::Team(team).each(counts.len(), &|part| {
                        counts[part].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                    total += counts.len();
                }
                total
            })
        });
        assert_eq!(total, (0..2_000).map(|job| job % 7).sum::<usize>());
        // A part that panics takes the leader with it, and nobody hangs.
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.install(|| {
                Team::lead(2, |team| {
                    Hands::Team(team).each(4, &|part| assert!(part != 2, "on purpose"));
                });
            });
        }));
        assert!(panicked.is_err());
    }
}

#[test]
fn work_shared_out_by_pixels_or_by_channels_gives_the_same_bits() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    // Many pixels, few of many channels, a matrix product of one row, channels that fill no vector, groups.
    for (side, groups, channels, depth) in [
        (14, 1, 70, 9),
        (3, 1, 200, 21),
        (1, 1, 331, 50),
        (2, 1, 193, 8),
        (3, 4, 40, 5),
    ] {
        let window = Window2d {
            kernel: (1, 1),
            stride: (1, 1),
            dilation: (1, 1),
            before: (0, 0),
            h: side,
            w: side,
        };
        let (ip, op) = (
            Plane::new(side, side, groups * depth),
            Plane::new(side, side, groups * channels),
        );
        let x = random(1, ip.elements());
        let weight = random(2, groups * channels * depth);
        let bias = random(3, groups * channels);
        let more = random(4, op.elements());
        for isa in Isa::all() {
            let packed = Packed::new(
                isa,
                (groups, channels, depth, 1),
                |g, o, i, _| weight[(g * channels + o) * depth + i],
                Some(&bias),
            );
            let mut sweep = window.forward(1, &ip, &op);
            sweep.added = Some(op.grid());
            let run = |hands: Hands<'_>| {
                // Added to what stands there: a part that did another's work would add it twice.
                let mut out = more.clone();
                conv_by(hands, &sweep, &packed, &x, None, &mut out, Tail::NONE);
                out
            };
            let alone = run(Hands::Alone);
            assert!(
                alone == pool.install(|| run(Hands::Pool)),
                "{side} {channels}"
            );
            let team = pool.install(|| Team::lead(3, |team| run(Hands::Team(team))));
            assert!(alone == team, "{side} {channels}");
        }
    }
}

#[test]
fn a_step_size_has_the_gradient_of_the_paper() {
    // Rows that fill no vector, one and several; margins that do not count.
    for (h, w, c) in [(1, 1, 3), (2, 4, 4), (3, 7, 5), (2, 9, 19)] {
        let (bare, mut wide) = (Plane::new(h, w, c), Plane::new(h, w, c));
        wide.widen([1, 2, 1, 0]);
        let n = 3 * h * w * c;
        let x: Vec<f32> = random(1, n).iter().map(|v| v * 3.0).collect();
        let g = random(2, n);
        let (scale, low, high) = (0.25, -3.0, 6.0);
        let expected: f64 = x
            .iter()
            .zip(&g)
            .map(|(x, g)| {
                let exact = x / scale;
                let whole = exact.round_ties_even();
                let slope = match (low..=high).contains(&whole) {
                    true => whole - exact,
                    false => whole.clamp(low, high),
                };
                f64::from(g * slope)
            })
            .sum();
        let (x, g) = (placed(&x, 3, &wide), placed(&g, 3, &bare));
        let quant = Quant { scale, low, high };
        let found = step_gradient(3, (&x, &wide), (&g, &bare), &quant);
        assert!(
            (found - expected).abs() < 1e-4 * n as f64,
            "{h}×{w}×{c}: {found} {expected}"
        );
    }
}
