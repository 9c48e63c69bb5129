//! Windows without weights: sums and maxima, all channels of a pixel at a time.

#![allow(unsafe_code)] // pixels are raw pointers into buffers whose extent is asserted first

use super::{
    super::lanes::{Lanes, for_each_isa, isa},
    sweep::Sweep,
};

/// `output += factor · Σ taps input`, each output pixel's factor by its row and column: average pooling (and its gradient,
/// with the sweeps of `Window2d::backward` and the factor on the side of the gradient). `output` is overwritten with `fresh`.
///
/// # Panics
/// Where a pixel of the sweep lies outside its buffer: the caller computed a wrong geometry.
pub fn sum_windows(
    sweep: &Sweep,
    channels: usize,
    input: &[f32],
    output: &mut [f32],
    factor: impl Fn(usize, usize) -> f32,
    fresh: bool,
) {
    let offsets: Vec<isize> = sweep.taps.iter().map(|tap| tap.offset).collect();
    assert!(
        sweep.pixels() == 0 || sweep.reads_within(input.len(), channels),
        "pooling: a sweep lies within its buffers (a wrong geometry was computed)"
    );
    pixels(sweep, channels, output, |y, x, from, to| {
        let from = input.as_ptr().wrapping_offset(from);
        // SAFETY: `channels` floats are there from every tap (asserted) and at the output (shown by `pixels`).
        unsafe { sum_pixel(isa(), from, &offsets, to, channels, factor(y, x), fresh) };
    });
}

/// `output = max taps input`, over the taps of each pixel that lie in the image: `inside(y, x, tap)` tells of a padded place.
///
/// # Panics
/// As [`sum_windows`].
pub fn max_pool(
    sweep: &Sweep,
    channels: usize,
    input: &[f32],
    output: &mut [f32],
    inside: impl Fn(usize, usize, usize) -> bool,
) {
    let mut offsets: Vec<isize> = Vec::with_capacity(sweep.taps.len());
    pixels(sweep, channels, output, |y, x, from, to| {
        offsets.clear();
        let taps = sweep.taps.iter().enumerate();
        let here = taps.filter(|(index, _)| inside(y, x, *index));
        offsets.extend(here.map(|(_, tap)| tap.offset));
        // Taps beside the image may have no memory at all, so each that is read is looked at.
        let there = |at: isize| usize::try_from(at).is_ok_and(|at| at + channels <= input.len());
        assert!(
            offsets.iter().all(|offset| there(from + offset)),
            "pooling: a window lies within its buffer (a wrong geometry was computed)"
        );
        let from = input.as_ptr().wrapping_offset(from);
        // SAFETY: `channels` floats are there from every tap (asserted) and at the output (shown by `pixels`).
        unsafe { max_pixel(isa(), from, &offsets, to, channels) };
    });
}

/// Calls `work(row, column, where the input's pixel lies, output's pixel)` for every pixel of a sweep whose output lies in its buffer.
fn pixels(
    sweep: &Sweep,
    channels: usize,
    output: &mut [f32],
    mut work: impl FnMut(usize, usize, isize, *mut f32),
) {
    if sweep.pixels() == 0 {
        return;
    }
    assert!(
        sweep.stays_within(&sweep.output, output.len(), channels),
        "pooling: a sweep lies within its buffers (a wrong geometry was computed)"
    );
    let output = output.as_mut_ptr();
    for n in 0..sweep.images {
        for y in 0..sweep.h {
            for x in 0..sweep.w {
                let to = output.wrapping_offset(sweep.output.at(n, y, x));
                work(y, x, sweep.input.at(n, y, x), to);
            }
        }
    }
}

/// Channels that are kept in registers while a window's taps go by: loops over arrays, which become vectors of any width.
const LANES: usize = 32;

for_each_isa!(
    /// # Safety
    /// `channels` floats at `from` with each offset, and at `to`.
    fn sum_pixel => sum_pixel_body(
        from: *const f32,
        offsets: &[isize],
        to: *mut f32,
        channels: usize,
        factor: f32,
        fresh: bool,
    )
);

#[inline(always)]
unsafe fn sum_pixel_body<L: Lanes>(
    from: *const f32,
    offsets: &[isize],
    to: *mut f32,
    channels: usize,
    factor: f32,
    fresh: bool,
) {
    let mut first = 0;
    while first < channels {
        let count = (channels - first).min(LANES);
        // SAFETY: first + count ≤ channels.
        unsafe {
            let mut sums = [0.0f32; LANES];
            if !fresh {
                read(to.add(first), count, &mut sums);
            }
            let mut x = [0.0f32; LANES];
            for offset in offsets {
                read(from.wrapping_offset(*offset).add(first), count, &mut x);
                for (sum, x) in sums.iter_mut().zip(&x) {
                    *sum += factor * x;
                }
            }
            write(&sums, count, to.add(first));
        }
        first += count;
    }
}

for_each_isa!(
    /// # Safety
    /// `channels` floats at `from` with each offset, and at `to`.
    fn max_pixel => max_pixel_body(from: *const f32, offsets: &[isize], to: *mut f32, channels: usize)
);

#[inline(always)]
unsafe fn max_pixel_body<L: Lanes>(
    from: *const f32,
    offsets: &[isize],
    to: *mut f32,
    channels: usize,
) {
    let mut first = 0;
    while first < channels {
        let count = (channels - first).min(LANES);
        // SAFETY: first + count ≤ channels.
        unsafe {
            let mut most = [f32::NEG_INFINITY; LANES];
            let mut x = [0.0f32; LANES];
            for offset in offsets {
                read(from.wrapping_offset(*offset).add(first), count, &mut x);
                for (most, x) in most.iter_mut().zip(&x) {
                    // What is not a number stays.
                    *most = if *x > *most || x.is_nan() { *x } else { *most };
                }
            }
            write(&most, count, to.add(first));
        }
        first += count;
    }
}

/// # Safety
/// `count` ≤ LANES floats at `from`.
#[inline(always)]
unsafe fn read(from: *const f32, count: usize, lanes: &mut [f32; LANES]) {
    // SAFETY: by contract; an array of floats asks for no more alignment than `read_unaligned` gives.
    unsafe {
        if count == LANES {
            *lanes = from.cast::<[f32; LANES]>().read_unaligned();
        } else {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
        }
    }
}

/// # Safety
/// Room for `count` ≤ LANES floats at `to`.
#[inline(always)]
unsafe fn write(lanes: &[f32; LANES], count: usize, to: *mut f32) {
    // SAFETY: as `read`.
    unsafe {
        if count == LANES {
            to.cast::<[f32; LANES]>().write_unaligned(*lanes);
        } else {
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Plane, Window2d, tests::random},
        *,
    };

    #[test]
    fn windows_over_many_channels_and_beside_the_image() {
        for c in [1, 31, 32, 33, 70] {
            let plane = Plane::new(5, 4, c);
            let mut x = random(c as u64, plane.elements());
            x[7 * c] = f32::NAN;
            // Reaches one row and column out on every side, without memory there.
            let window = Window2d {
                kernel: (3, 3),
                stride: (2, 2),
                dilation: (1, 1),
                before: (1, 1),
                h: 3,
                w: 2,
            };
            let out = Plane::new(3, 2, c);
            let sweep = window.forward(1, &plane, &out);
            let place = |y: usize, at: usize, tap: usize| {
                let (row, column) = (
                    (2 * y + tap / 3).wrapping_sub(1),
                    (2 * at + tap % 3).wrapping_sub(1),
                );
                (row < 5 && column < 4).then(|| (row * 4 + column) * c)
            };
            let mut most = vec![0.0; 6 * c];
            max_pool(&sweep, c, &x, &mut most, |y, at, tap| {
                place(y, at, tap).is_some()
            });
            for (i, most) in most.iter().enumerate() {
                let (y, at, k) = (i / c / 2, i / c % 2, i % c);
                let found: Vec<f32> = (0..9)
                    .filter_map(|tap| Some(x[place(y, at, tap)? + k]))
                    .collect();
                if found.iter().any(|v| v.is_nan()) {
                    assert!(most.is_nan());
                } else {
                    assert_eq!(
                        *most,
                        found.iter().copied().fold(f32::NEG_INFINITY, f32::max)
                    );
                }
            }
            // A window inside, added to what stands there.
            let window = Window2d {
                kernel: (2, 3),
                stride: (1, 1),
                before: (0, 0),
                h: 4,
                w: 2,
                ..window
            };
            let out = Plane::new(4, 2, c);
            let sweep = window.forward(1, &plane, &out);
            let mut sums = vec![0.5; 8 * c];
            sum_windows(&sweep, c, &x, &mut sums, |y, _| y as f32, false);
            for (i, sum) in sums.iter().enumerate() {
                let (y, at, k) = (i / c / 2, i / c % 2, i % c);
                let expected = (0..6).fold(0.5f32, |sum, tap| {
                    sum + y as f32 * x[((y + tap / 3) * 4 + at + tap % 3) * c + k]
                });
                assert!(*sum == expected || sum.is_nan() && expected.is_nan());
            }
        }
    }
}
