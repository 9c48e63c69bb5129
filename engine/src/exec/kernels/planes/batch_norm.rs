//! Batch norm by the statistics of the mini-batch itself (Ioffe & Szegedy 2015), channel by channel over planes. Each channel's
//! sums run over the pixels of a row in f32 and over rows in f64, in their order: bits depend on sizes alone.

#![allow(unsafe_code)] // the vectorised rows take raw pointers into rows that are sliced, so checked, first

use super::{
    super::lanes::{Lanes, for_each_isa, isa},
    pointwise::{channel_sums, row, row_mut},
    sweep::Plane,
};

/// Count, mean and sum of squared distances from the mean, of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    pub count: f64,
    pub mean: Vec<f64>,
    pub squares: Vec<f64>,
}

impl Moments {
    /// Of `images` images, in two passes.
    pub fn of(images: usize, x: (&[f32], &Plane)) -> Self {
        let plane = x.1;
        let count = (images * plane.h * plane.w) as f64;
        let mean: Vec<f64> = channel_sums(images, x).iter().map(|s| s / count).collect();
        // Distances are taken from the mean as a float; what the rounding leaves out is put right below.
        let near: Vec<f32> = mean.iter().map(|m| *m as f32).collect();
        let mut squares = vec![0.0f64; plane.c];
        let mut sums = vec![0.0f32; plane.c];
        for n in 0..images {
            for y in 0..plane.h {
                let line = row(x.0, plane, n, y);
                // SAFETY: the row holds w × c floats, the two vectors c.
                unsafe {
                    squares_row(
                        isa(),
                        line.as_ptr(),
                        near.as_ptr(),
                        sums.as_mut_ptr(),
                        plane.w,
                        plane.c,
                    );
                }
                for (total, sum) in squares.iter_mut().zip(&sums) {
                    *total += f64::from(*sum);
                }
            }
        }
        for ((square, mean), near) in squares.iter_mut().zip(&mean).zip(&near) {
            let off = mean - f64::from(*near);
            *square = (*square - count * off * off).max(0.0);
        }
        Self {
            count,
            mean,
            squares,
        }
    }

    /// Those of both sets together (Chan, Golub & LeVeque 1979).
    pub fn join(&mut self, other: &Self) {
        let count = self.count + other.count;
        if other.count == 0.0 {
            return;
        }
        let own = self.mean.iter_mut().zip(&mut self.squares);
        for ((mean, squares), (m, s)) in own.zip(other.mean.iter().zip(&other.squares)) {
            let apart = m - *mean;
            *mean += apart * other.count / count;
            *squares += s + apart * apart * self.count * other.count / count;
        }
        self.count = count;
    }

    /// The population's, as ONNX takes it.
    pub fn variance(&self) -> impl Iterator<Item = f64> {
        let count = self.count.max(1.0);
        self.squares.iter().map(move |s| s / count)
    }
}

/// A channel's numbers for one pass: `(x − mean)·factor + shift`, forwards; backwards see [`norm_gradient`].
#[derive(Clone, Debug)]
pub struct PerChannel {
    pub mean: Vec<f32>,
    pub factor: Vec<f32>,
    pub shift: Vec<f32>,
}

/// `out = clip((x − mean)·factor + shift + added, low, high)`.
pub fn normalise(
    images: usize,
    x: (&[f32], &Plane),
    by: &PerChannel,
    added: Option<(&[f32], &Plane)>,
    out: (&mut [f32], &Plane),
    (low, high): (f32, f32),
) {
    let (target, plane) = out;
    check(by, plane.c);
    for n in 0..images {
        for y in 0..plane.h {
            let from = row(x.0, x.1, n, y);
            let more = added.map(|a| row(a.0, a.1, n, y));
            let to = row_mut(target, plane, n, y);
            assert!(
                from.len() == to.len() && more.is_none_or(|m| m.len() == to.len()),
                "planes of one size are normalised"
            );
            // SAFETY: all rows hold w × c floats, the vectors of `by` c (checked).
            unsafe {
                normalise_row(
                    isa(),
                    from.as_ptr(),
                    by,
                    more.map_or(std::ptr::null(), <[f32]>::as_ptr),
                    to.as_mut_ptr(),
                    plane.w,
                    plane.c,
                    low,
                    high,
                );
            }
        }
    }
}

fn check(by: &PerChannel, channels: usize) {
    assert!(
        [&by.mean, &by.factor, &by.shift]
            .iter()
            .all(|v| v.len() == channels),
        "statistics have an entry a channel"
    );
}

/// Of each channel: Σ gradient and Σ gradient·(x − mean).
pub fn gradient_sums(
    images: usize,
    gradient: (&[f32], &Plane),
    x: (&[f32], &Plane),
    mean: &[f32],
) -> (Vec<f64>, Vec<f64>) {
    let plane = x.1;
    assert_eq!(mean.len(), plane.c, "a mean for each channel");
    let mut totals = (vec![0.0f64; plane.c], vec![0.0f64; plane.c]);
    let mut sums = vec![0.0f32; 2 * plane.c];
    for n in 0..images {
        for y in 0..plane.h {
            let g = row(gradient.0, gradient.1, n, y);
            let from = row(x.0, plane, n, y);
            assert_eq!(g.len(), from.len(), "planes of one size");
            // SAFETY: both rows hold w × c floats, `mean` c and `sums` 2·c.
            unsafe {
                products_row(
                    isa(),
                    g.as_ptr(),
                    from.as_ptr(),
                    mean.as_ptr(),
                    sums.as_mut_ptr(),
                    plane.w,
                    plane.c,
                );
            }
            let (plain, with_x) = sums.split_at(plane.c);
            for (total, sum) in totals.0.iter_mut().zip(plain) {
                *total += f64::from(*sum);
            }
            for (total, sum) in totals.1.iter_mut().zip(with_x) {
                *total += f64::from(*sum);
            }
        }
    }
    totals
}

/// `out (+)= slope·gradient + (x − mean)·factor + shift`, channel by channel: the input's gradient, `factor` and `shift` holding
/// what the statistics' own dependence on the input takes off. `out` is added to where there is `more` in it already.
pub fn norm_gradient(
    images: usize,
    gradient: (&[f32], &Plane),
    slope: &[f32],
    x: (&[f32], &Plane),
    by: &PerChannel,
    out: (&mut [f32], &Plane),
    more: bool,
) {
    let (target, plane) = out;
    check(by, plane.c);
    assert_eq!(slope.len(), plane.c, "a slope for each channel");
    for n in 0..images {
        for y in 0..plane.h {
            let g = row(gradient.0, gradient.1, n, y);
            let from = row(x.0, x.1, n, y);
            let to = row_mut(target, plane, n, y);
            assert!(
                g.len() == to.len() && from.len() == to.len(),
                "planes of one size"
            );
            // SAFETY: as in `normalise`.
            unsafe {
                gradient_row(
                    isa(),
                    g.as_ptr(),
                    slope.as_ptr(),
                    from.as_ptr(),
                    by,
                    to.as_mut_ptr(),
                    plane.w,
                    plane.c,
                    more,
                );
            }
        }
    }
}

for_each_isa!(
    /// # Safety
    /// `x` holds pixels × channels floats, `mean` and `out` channels.
    fn squares_row => squares_body(x: *const f32, mean: *const f32, out: *mut f32, pixels: usize, channels: usize)
);

#[inline(always)]
unsafe fn squares_body<L: Lanes>(
    x: *const f32,
    mean: *const f32,
    out: *mut f32,
    pixels: usize,
    channels: usize,
) {
    let mut c = 0;
    while c < channels {
        let n = (channels - c).min(L::WIDTH);
        // SAFETY: c + n ≤ channels.
        unsafe {
            let mean = L::load_part(mean.add(c), n);
            let mut sum = L::splat(0.0);
            for p in 0..pixels {
                let d = L::load_part(x.add(p * channels + c), n).sub(mean);
                sum = d.fma(d, sum);
            }
            sum.store_part(out.add(c), n);
        }
        c += n;
    }
}

for_each_isa!(
    /// # Safety
    /// `g` and `x` hold pixels × channels floats, `mean` channels, `out` twice as many.
    fn products_row => products_body(
        g: *const f32,
        x: *const f32,
        mean: *const f32,
        out: *mut f32,
        pixels: usize,
        channels: usize,
    )
);

#[inline(always)]
unsafe fn products_body<L: Lanes>(
    g: *const f32,
    x: *const f32,
    mean: *const f32,
    out: *mut f32,
    pixels: usize,
    channels: usize,
) {
    let mut c = 0;
    while c < channels {
        let n = (channels - c).min(L::WIDTH);
        // SAFETY: c + n ≤ channels.
        unsafe {
            let mean = L::load_part(mean.add(c), n);
            let (mut plain, mut with_x) = (L::splat(0.0), L::splat(0.0));
            for p in 0..pixels {
                let at = p * channels + c;
                let g = L::load_part(g.add(at), n);
                plain = plain.add(g);
                with_x = L::load_part(x.add(at), n).sub(mean).fma(g, with_x);
            }
            plain.store_part(out.add(c), n);
            with_x.store_part(out.add(channels + c), n);
        }
        c += n;
    }
}

for_each_isa!(
    /// # Safety
    /// `x`, `out` and `added` (or null) hold pixels × channels floats, the vectors of `by` channels.
    fn normalise_row => normalise_body(
        x: *const f32,
        by: &PerChannel,
        added: *const f32,
        out: *mut f32,
        pixels: usize,
        channels: usize,
        low: f32,
        high: f32,
    )
);

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn normalise_body<L: Lanes>(
    x: *const f32,
    by: &PerChannel,
    added: *const f32,
    out: *mut f32,
    pixels: usize,
    channels: usize,
    low: f32,
    high: f32,
) {
    let mut c = 0;
    while c < channels {
        let n = (channels - c).min(L::WIDTH);
        // SAFETY: c + n ≤ channels.
        unsafe {
            let mean = L::load_part(by.mean.as_ptr().add(c), n);
            let factor = L::load_part(by.factor.as_ptr().add(c), n);
            let shift = L::load_part(by.shift.as_ptr().add(c), n);
            let (low, high) = (L::splat(low), L::splat(high));
            for p in 0..pixels {
                let at = p * channels + c;
                let mut value = L::load_part(x.add(at), n).sub(mean).fma(factor, shift);
                if !added.is_null() {
                    value = value.add(L::load_part(added.add(at), n));
                }
                high.min(low.max(value)).store_part(out.add(at), n);
            }
        }
        c += n;
    }
}

for_each_isa!(
    /// # Safety
    /// `g`, `x` and `out` hold pixels × channels floats, `slope` and the vectors of `by` channels.
    fn gradient_row => gradient_body(
        g: *const f32,
        slope: *const f32,
        x: *const f32,
        by: &PerChannel,
        out: *mut f32,
        pixels: usize,
        channels: usize,
        more: bool,
    )
);

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn gradient_body<L: Lanes>(
    g: *const f32,
    slope: *const f32,
    x: *const f32,
    by: &PerChannel,
    out: *mut f32,
    pixels: usize,
    channels: usize,
    more: bool,
) {
    let mut c = 0;
    while c < channels {
        let n = (channels - c).min(L::WIDTH);
        // SAFETY: c + n ≤ channels.
        unsafe {
            let slope = L::load_part(slope.add(c), n);
            let mean = L::load_part(by.mean.as_ptr().add(c), n);
            let factor = L::load_part(by.factor.as_ptr().add(c), n);
            let shift = L::load_part(by.shift.as_ptr().add(c), n);
            for p in 0..pixels {
                let at = p * channels + c;
                let mut value = L::load_part(x.add(at), n).sub(mean).fma(factor, shift);
                value = L::load_part(g.add(at), n).fma(slope, value);
                if more {
                    value = value.add(L::load_part(out.add(at), n));
                }
                value.store_part(out.add(at), n);
            }
        }
        c += n;
    }
}
