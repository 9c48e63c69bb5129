use super::*;
use crate::exec::kernels::{Pool2dGeometry, avg_pool2d, max_pool2d};
use proptest::prelude::*;

fn cases() -> impl Strategy<Value = ((usize, usize, usize), Pool2dGeometry, bool)> {
    (
        (1usize..3, 2usize..12, 2usize..12),
        (1usize..5, 1usize..5),
        (1usize..5, 1usize..5),
        (1usize..3, 1usize..3),
        (0usize..3, 0usize..3, 0usize..3, 0usize..3),
        any::<(bool, bool)>(),
    )
        .prop_map(|(sizes, kernel, stride, dilation, pad, (ceil, count))| {
            let g = Pool2dGeometry {
                kernel,
                stride,
                dilation,
                pad,
                ceil,
            };
            (sizes, g, count)
        })
}

fn extent(
    e: usize,
    k: usize,
    s: usize,
    d: usize,
    pads: (usize, usize),
    ceil: bool,
) -> Option<usize> {
    let room = (e + pads.0 + pads.1).checked_sub(d * (k - 1) + 1)?;
    let mut out = if ceil { room.div_ceil(s) } else { room / s } + 1;
    if ceil && (out - 1) * s >= e + pads.0 {
        out -= 1;
    }
    Some(out)
}

/// One window: (offset in the plane of every element inside, elements inside or in padding).
fn window(
    g: &Pool2dGeometry,
    (h, w): (usize, usize),
    (oy, ox): (usize, usize),
) -> (Vec<usize>, usize) {
    let (mut inside, mut padded) = (Vec::new(), 0);
    for ky in 0..g.kernel.0 {
        for kx in 0..g.kernel.1 {
            let y = oy * g.stride.0 + ky * g.dilation.0;
            let x = ox * g.stride.1 + kx * g.dilation.1;
            if y < h + g.pad.0 + g.pad.2 && x < w + g.pad.1 + g.pad.3 {
                padded += 1;
            }
            if y >= g.pad.0 && x >= g.pad.1 && y < h + g.pad.0 && x < w + g.pad.1 {
                inside.push((y - g.pad.0) * w + x - g.pad.1);
            }
        }
    }
    (inside, padded)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn pools_are_what_the_definition_says(((planes, h, w), g, count) in cases()) {
        let x = tensor(1, (1, planes, h, w));
        let (Some(ho), Some(wo)) = (
            extent(h, g.kernel.0, g.stride.0, g.dilation.0, (g.pad.0, g.pad.2), g.ceil),
            extent(w, g.kernel.1, g.stride.1, g.dilation.1, (g.pad.1, g.pad.3), g.ceil),
        ) else {
            prop_assert!(max_pool2d(&x, g).is_err());
            return Ok(());
        };
        let data = values(&x);
        let r = random(99, planes * ho * wo);
        let (mut max, mut mean) = (vec![], vec![]);
        let (mut dmax, mut dmean) = (vec![0f64; data.len()], vec![0f64; data.len()]);
        for plane in 0..planes {
            for oy in 0..ho {
                for ox in 0..wo {
                    let (inside, padded) = window(&g, (h, w), (oy, ox));
                    let r = f64::from(r[max.len()]);
                    let at = |i: usize| plane * h * w + i;
                    let best = inside.iter().copied().map(at).reduce(|a, b| if data[b] > data[a] { b } else { a });
                    max.push(best.map_or(f32::NEG_INFINITY, |b| data[b]));
                    if let Some(best) = best {
                        dmax[best] += r;
                    }
                    let divisor = if count { padded } else { inside.len() }.max(1) as f64;
                    mean.push(inside.iter().map(|i| f64::from(data[at(*i)])).sum::<f64>() / divisor);
                    for i in inside {
                        dmean[at(i)] += r / divisor;
                    }
                }
            }
        }
        let got = with_threads(2, || forward_and_gradients(std::slice::from_ref(&x), |t| max_pool2d(&t[0], g)));
        prop_assert_eq!(&got[0], &max);
        close(&got[1], &dmax, 1e-5);
        let got = with_threads(2, || forward_and_gradients(&[x], |t| avg_pool2d(&t[0], g, count)));
        close(&got[0], &mean, 1e-5);
        close(&got[1], &dmean, 1e-5);
    }
}

#[test]
fn bits_and_layouts_and_differences() {
    let g = Pool2dGeometry {
        kernel: (3, 3),
        stride: (2, 2),
        dilation: (1, 1),
        pad: (1, 1, 1, 1),
        ceil: false,
    };
    let x = tensor(1, (3, 5, 9, 8));
    for f in [
        (|t: &[Tensor]| max_pool2d(&t[0], STEM)) as fn(&[Tensor]) -> Result<Tensor>,
        |t| avg_pool2d(&t[0], STEM, true),
    ] {
        check_threads(std::slice::from_ref(&x), f);
        with_threads(2, || {
            check_gradients(std::slice::from_ref(&x), 1e-4, 0.02, f)
        });
    }
    let turned = x.transpose(2, 3).unwrap();
    with_threads(2, || {
        let got = max_pool2d(&turned, g).unwrap();
        let expected = max_pool2d(&turned.contiguous().unwrap(), g).unwrap();
        assert_eq!(values(&got), values(&expected));
    });
}

/// The ResNet stem's pool, which candle has no gradient for.
const STEM: Pool2dGeometry = Pool2dGeometry {
    kernel: (3, 3),
    stride: (2, 2),
    dilation: (1, 1),
    pad: (1, 1, 1, 1),
    ceil: false,
};

#[test]
fn nan_wins_and_padding_never() {
    let x = Tensor::new(&[[[[-5f32, -7.0], [f32::NAN, -6.0]]]], &Device::Cpu).unwrap();
    let y = with_threads(1, || max_pool2d(&x, STEM).unwrap());
    assert!(values(&y)[0].is_nan());
    let x = Tensor::new(&[[[[-5f32, -7.0], [-8.0, -6.0]]]], &Device::Cpu).unwrap();
    let y = with_threads(1, || max_pool2d(&x, STEM).unwrap());
    assert_eq!(values(&y), [-5.0]);
}
