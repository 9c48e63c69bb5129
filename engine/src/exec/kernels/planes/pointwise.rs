//! What is done to each pixel by itself. Rows of planes are contiguous, so these walk rows.

#![allow(unsafe_code)] // the vectorised rows take raw pointers into rows that are sliced, so checked, first

use super::{
    super::lanes::{Lanes, for_each_isa, isa},
    conv::{Quant, quantise, rounded},
    sweep::Plane,
};

/// Row `y` of image `n`.
pub(super) fn row<'a>(buffer: &'a [f32], plane: &Plane, n: usize, y: usize) -> &'a [f32] {
    let start = n * plane.size() + plane.origin() + y * plane.row();
    &buffer[start..start + plane.w * plane.c]
}
pub(super) fn row_mut<'a>(
    buffer: &'a mut [f32],
    plane: &Plane,
    n: usize,
    y: usize,
) -> &'a mut [f32] {
    let start = n * plane.size() + plane.origin() + y * plane.row();
    &mut buffer[start..start + plane.w * plane.c]
}

/// Calls `work` for all rows, given their numbers.
fn rows(images: usize, h: usize, mut work: impl FnMut(usize, usize)) {
    for n in 0..images {
        for y in 0..h {
            work(n, y);
        }
    }
}

/// Copies pixels between planes of the same size and different margins.
pub fn copy(images: usize, from: (&[f32], &Plane), to: (&mut [f32], &Plane)) {
    let (target, plane) = to;
    rows(images, plane.h, |n, y| {
        row_mut(target, plane, n, y).copy_from_slice(row(from.0, from.1, n, y));
    });
}

/// From N×C×H×W to pixels in a plane.
pub fn from_nchw(images: usize, from: &[f32], to: (&mut [f32], &Plane)) {
    let (target, plane) = to;
    let area = plane.h * plane.w;
    if area == 1 {
        // The same in either order.
        return copy(images, (from, &Plane::new(1, 1, plane.c)), (target, plane));
    }
    rows(images, plane.h, |n, y| {
        let row = row_mut(target, plane, n, y);
        for c in 0..plane.c {
            let start = n * plane.elements() + c * area + y * plane.w;
            let line = &from[start..start + plane.w];
            for (to, x) in row[c..].iter_mut().step_by(plane.c).zip(line) {
                *to = *x;
            }
        }
    });
}

/// From pixels in a plane to N×C×H×W.
pub fn to_nchw(images: usize, from: (&[f32], &Plane), to: &mut [f32]) {
    let plane = from.1;
    let area = plane.h * plane.w;
    if area == 1 {
        return copy(images, from, (to, &Plane::new(1, 1, plane.c)));
    }
    rows(images, plane.h, |n, y| {
        let row = row(from.0, plane, n, y);
        for c in 0..plane.c {
            let start = n * plane.elements() + c * area + y * plane.w;
            let line = &mut to[start..start + plane.w];
            for (to, x) in line.iter_mut().zip(row[c..].iter().step_by(plane.c)) {
                *to = *x;
            }
        }
    });
}

/// `out = clip(a + b, low, high)`; `b` is `out` itself where it is `None`.
pub fn add(
    images: usize,
    a: (&[f32], &Plane),
    b: Option<(&[f32], &Plane)>,
    out: (&mut [f32], &Plane),
    (low, high): (f32, f32),
) {
    let (target, plane) = out;
    rows(images, plane.h, |n, y| {
        let first = row(a.0, a.1, n, y);
        let second = b.map(|b| row(b.0, b.1, n, y));
        let row = row_mut(target, plane, n, y);
        assert!(
            first.len() == row.len() && second.is_none_or(|s| s.len() == row.len()),
            "planes of one size are added"
        );
        let (count, to) = (row.len(), row.as_mut_ptr());
        let second = second.map_or(to.cast_const(), <[f32]>::as_ptr);
        // SAFETY: all three rows hold `count` floats; `second` is a row of its own or `to` itself, each of whose
        // elements is read before it is written.
        unsafe { add_row(isa(), first.as_ptr(), second, to, count, low, high) };
    });
}

for_each_isa!(
    /// # Safety
    /// Rows of `count` floats.
    fn add_row => add_body(a: *const f32, b: *const f32, out: *mut f32, count: usize, low: f32, high: f32)
);

#[inline(always)]
unsafe fn add_body<L: Lanes>(
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    count: usize,
    low: f32,
    high: f32,
) {
    // SAFETY: `at + WIDTH ≤ count`, or a part of `count − at`.
    unsafe {
        let (low, high) = (L::splat(low), L::splat(high));
        let mut at = 0;
        while at < count {
            let n = (count - at).min(L::WIDTH);
            let sum = L::load_part(a.add(at), n).add(L::load_part(b.add(at), n));
            high.min(low.max(sum)).store_part(out.add(at), n);
            at += n;
        }
    }
}

/// `out = gradient` where the activation let its input through: where `low < result < high`. In place where `gradient` is
/// `None`.
pub fn gate(
    images: usize,
    gradient: Option<(&[f32], &Plane)>,
    result: (&[f32], &Plane),
    out: (&mut [f32], &Plane),
    (low, high): (f32, f32),
) {
    let (target, plane) = out;
    rows(images, plane.h, |n, y| {
        let kept = row(result.0, result.1, n, y);
        let from = gradient.map(|g| row(g.0, g.1, n, y));
        let row = row_mut(target, plane, n, y);
        assert!(
            kept.len() == row.len() && from.is_none_or(|f| f.len() == row.len()),
            "planes of one size are gated"
        );
        let (count, to) = (row.len(), row.as_mut_ptr());
        let from = from.map_or(to.cast_const(), <[f32]>::as_ptr);
        // SAFETY: as in `add`.
        unsafe { gate_row(isa(), from, kept.as_ptr(), to, count, low, high) };
    });
}

for_each_isa!(
    /// # Safety
    /// Rows of `count` floats.
    fn gate_row => gate_body(g: *const f32, y: *const f32, out: *mut f32, count: usize, low: f32, high: f32)
);

#[inline(always)]
unsafe fn gate_body<L: Lanes>(
    g: *const f32,
    y: *const f32,
    out: *mut f32,
    count: usize,
    low: f32,
    high: f32,
) {
    // SAFETY: as `add_body`.
    unsafe {
        let (low, high) = (L::splat(low), L::splat(high));
        let mut at = 0;
        while at < count {
            let n = (count - at).min(L::WIDTH);
            let passed = L::load_part(g.add(at), n).between(L::load_part(y.add(at), n), low, high);
            passed.store_part(out.add(at), n);
            at += n;
        }
    }
}

/// `out = quant(x)`.
pub fn fake_quant(images: usize, x: (&[f32], &Plane), out: (&mut [f32], &Plane), quant: &Quant) {
    let (target, plane) = out;
    rows(images, plane.h, |n, y| {
        let from = row(x.0, x.1, n, y);
        let to = row_mut(target, plane, n, y);
        assert_eq!(from.len(), to.len(), "planes of one size");
        // SAFETY: both rows hold `to.len()` floats.
        unsafe { quant_row(isa(), from.as_ptr(), to.as_mut_ptr(), to.len(), quant) };
    });
}

for_each_isa!(
    /// # Safety
    /// Rows of `count` floats.
    fn quant_row => quant_body(x: *const f32, out: *mut f32, count: usize, quant: &Quant)
);

#[inline(always)]
unsafe fn quant_body<L: Lanes>(x: *const f32, out: *mut f32, count: usize, quant: &Quant) {
    // SAFETY: as `add_body`.
    unsafe {
        let mut at = 0;
        while at < count {
            let n = (count - at).min(L::WIDTH);
            quantise(L::load_part(x.add(at), n), quant).store_part(out.add(at), n);
            at += n;
        }
    }
}

/// The straight-through gradient: `out += gradient` where x is inside the range.
pub fn fake_quant_gradient(
    images: usize,
    x: (&[f32], &Plane),
    gradient: (&[f32], &Plane),
    out: (&mut [f32], &Plane),
    quant: &Quant,
) {
    let (target, plane) = out;
    rows(images, plane.h, |n, y| {
        let from = row(x.0, x.1, n, y);
        let g = row(gradient.0, gradient.1, n, y);
        let to = row_mut(target, plane, n, y);
        assert!(
            from.len() == to.len() && g.len() == to.len(),
            "planes of one size"
        );
        // SAFETY: the three rows hold `to.len()` floats.
        unsafe {
            through_row(
                isa(),
                from.as_ptr(),
                g.as_ptr(),
                to.as_mut_ptr(),
                to.len(),
                quant,
            );
        }
    });
}

for_each_isa!(
    /// # Safety
    /// Rows of `count` floats.
    fn through_row => through_body(x: *const f32, g: *const f32, out: *mut f32, count: usize, quant: &Quant)
);

#[inline(always)]
unsafe fn through_body<L: Lanes>(
    x: *const f32,
    g: *const f32,
    out: *mut f32,
    count: usize,
    quant: &Quant,
) {
    // SAFETY: as `add_body`.
    unsafe {
        // Whole numbers: low − ½ and high + ½ bound the same ones as low ≤ and ≤ high.
        let (low, high) = (L::splat(quant.low - 0.5), L::splat(quant.high + 0.5));
        let mut at = 0;
        while at < count {
            let n = (count - at).min(L::WIDTH);
            let whole = rounded(L::load_part(x.add(at), n), quant.scale);
            let passed = L::load_part(g.add(at), n).between(whole, low, high);
            L::load_part(out.add(at), n)
                .add(passed)
                .store_part(out.add(at), n);
            at += n;
        }
    }
}

/// How the loss moves with the step size (Esser et al. 2020, eq. 3): Σ gradient·slope, the slope being `round(x/s) − x/s` inside the range and
/// the outermost code outside. A row at a time in f32, rows in f64.
pub fn step_gradient(
    images: usize,
    x: (&[f32], &Plane),
    gradient: (&[f32], &Plane),
    quant: &Quant,
) -> f64 {
    let mut total = 0.0;
    let mut sums = [0.0f32; LANES];
    rows(images, x.1.h, |n, y| {
        let from = row(x.0, x.1, n, y);
        let g = row(gradient.0, gradient.1, n, y);
        assert_eq!(from.len(), g.len(), "planes of one size");
        // SAFETY: both rows hold `g.len()` floats, `sums` as many as the widest vector.
        unsafe {
            slope_row(
                isa(),
                from.as_ptr(),
                g.as_ptr(),
                sums.as_mut_ptr(),
                g.len(),
                quant,
            );
        }
        total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
    });
    total
}

/// Lanes of the widest vector.
const LANES: usize = 16;

for_each_isa!(
    /// # Safety
    /// Rows of `count` floats; `sums` holds a vector.
    fn slope_row => slope_body(x: *const f32, g: *const f32, sums: *mut f32, count: usize, quant: &Quant)
);

#[inline(always)]
unsafe fn slope_body<L: Lanes>(
    x: *const f32,
    g: *const f32,
    sums: *mut f32,
    count: usize,
    quant: &Quant,
) {
    // SAFETY: as `add_body`; `sums` holds a vector.
    unsafe {
        let (low, high) = (L::splat(quant.low), L::splat(quant.high));
        // As in `through_body`.
        let (below, above) = (L::splat(quant.low - 0.5), L::splat(quant.high + 0.5));
        let mut sum = L::splat(0.0);
        let mut at = 0;
        while at < count {
            let n = (count - at).min(L::WIDTH);
            let x = L::load_part(x.add(at), n);
            let whole = rounded(x, quant.scale);
            let exact = x.div(L::splat(quant.scale));
            let slope = high
                .min(low.max(whole))
                .sub(exact.between(whole, below, above));
            sum = L::load_part(g.add(at), n).fma(slope, sum);
            at += n;
        }
        sum.store(sums);
    }
}

/// The sum over all pixels of each channel: a row at a time in f32, rows in f64.
pub fn channel_sums(images: usize, x: (&[f32], &Plane)) -> Vec<f64> {
    let plane = x.1;
    let mut totals = vec![0.0f64; plane.c];
    let mut sums = vec![0.0f32; plane.c];
    rows(images, plane.h, |n, y| {
        let line = row(x.0, plane, n, y);
        // SAFETY: the row holds w × c floats, `sums` c.
        unsafe { sums_row(isa(), line.as_ptr(), sums.as_mut_ptr(), plane.w, plane.c) };
        for (total, sum) in totals.iter_mut().zip(&sums) {
            *total += f64::from(*sum);
        }
    });
    totals
}

for_each_isa!(
    /// # Safety
    /// `x` holds pixels × channels floats, `out` channels.
    fn sums_row => sums_body(x: *const f32, out: *mut f32, pixels: usize, channels: usize)
);

#[inline(always)]
unsafe fn sums_body<L: Lanes>(x: *const f32, out: *mut f32, pixels: usize, channels: usize) {
    let mut c = 0;
    while c < channels {
        let n = (channels - c).min(L::WIDTH);
        // SAFETY: c + n ≤ channels.
        unsafe {
            let mut sum = L::splat(0.0);
            for p in 0..pixels {
                sum = sum.add(L::load_part(x.add(p * channels + c), n));
            }
            sum.store_part(out.add(c), n);
        }
        c += n;
    }
}

/// Adds the sum over all pixels of each channel to `sums`: the gradient of a bias.
pub fn bias_gradient(images: usize, gradient: (&[f32], &Plane), sums: &mut [f32]) {
    for (sum, total) in sums.iter_mut().zip(channel_sums(images, gradient)) {
        *sum += total as f32;
    }
}
