//! Depthwise convolution: one weight a tap and channel, vectors along the channels.

#![allow(unsafe_code)] // raw pointers into buffers whose extent is asserted before the first of them is made

use super::{
    super::lanes::{Lanes, for_each_isa, isa},
    Buffer,
    conv::{Tail, quantise},
    sweep::{Sweep, Tap},
};

/// From ONNX's channels × taps to taps × channels.
pub fn pack_depthwise(weight: &[f32], channels: usize) -> Buffer {
    let taps = weight.len() / channels.max(1);
    let mut packed = Buffer::zeros(taps * channels);
    for (at, packed) in packed.iter_mut().enumerate() {
        *packed = weight[at % channels * taps + at / channels];
    }
    packed
}

/// `output = tail(Σ taps input·weights + bias + added)`, channel by channel. `weights` is taps × channels, `bias` has an entry a
/// channel or none. Where `sweep` names an added grid without `added`, `output` itself is added to.
///
/// # Panics
/// Where a pixel of the sweep lies outside its buffer: the caller computed a wrong geometry.
#[allow(clippy::too_many_arguments)]
pub fn depthwise(
    sweep: &Sweep,
    channels: usize,
    weights: &[f32],
    bias: Option<&[f32]>,
    input: &[f32],
    added: Option<&[f32]>,
    output: &mut [f32],
    tail: Tail,
) {
    if sweep.pixels() == 0 {
        return;
    }
    assert!(
        sweep.reads_within(input.len(), channels)
            && sweep.stays_within(&sweep.output, output.len(), channels)
            && sweep
                .taps
                .iter()
                .all(|t| (t.weight + 1) * channels <= weights.len())
            && bias.is_none_or(|b| b.len() == channels)
            && match (&sweep.added, added) {
                (None, None) => true,
                (Some(grid), Some(buffer)) => sweep.stays_within(grid, buffer.len(), channels),
                (Some(grid), None) => sweep.stays_within(grid, output.len(), channels),
                (None, Some(_)) => false,
            },
        "depthwise: a sweep lies within its buffers (a wrong geometry was computed)"
    );
    let output = output.as_mut_ptr();
    let job = Job {
        sweep,
        channels,
        weights: weights.as_ptr(),
        bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
        input: input.as_ptr(),
        added: match (&sweep.added, added) {
            (None, _) => std::ptr::null(),
            (Some(_), Some(buffer)) => buffer.as_ptr(),
            (Some(_), None) => output.cast_const(),
        },
        output,
        tail,
    };
    // SAFETY: the assertion shows that every float read and written lies in its buffer (see `conv`).
    unsafe { run(isa(), &job) }
}

struct Job<'a> {
    sweep: &'a Sweep,
    channels: usize,
    weights: *const f32,
    bias: *const f32,
    input: *const f32,
    added: *const f32,
    output: *mut f32,
    tail: Tail,
}

for_each_isa!(
    /// # Safety
    /// As shown in [`depthwise`].
    fn run => body(job: &Job<'_>)
);

/// Pixels of a row taken together, at most: a weight is loaded once for all of them.
const TILE: usize = 8;

#[inline(always)]
unsafe fn body<L: Lanes>(job: &Job<'_>) {
    let sweep = job.sweep;
    // Tiles of about the same size: a pixel alone waits for each of its sums and costs as much as eight.
    let tiles = sweep.w.div_ceil(TILE);
    for n in 0..sweep.images {
        for y in 0..sweep.h {
            let mut x = 0;
            for at in 0..tiles {
                let end = sweep.w * (at + 1) / tiles;
                // SAFETY: as shown in `depthwise`.
                unsafe { any_tile::<L>(job, (n, y, x), end - x) };
                x = end;
            }
        }
    }
}

#[inline(always)]
unsafe fn any_tile<L: Lanes>(job: &Job<'_>, place: (usize, usize, usize), pixels: usize) {
    macro_rules! by_pixels {
        ($($count:literal)*) => {
            match pixels {
                // SAFETY: as shown in `depthwise`.
                $($count => unsafe { tile::<L, $count>(job, place) },)*
                _ => unreachable!("a tile has 1 to TILE pixels"),
            }
        };
    }
    by_pixels!(1 2 3 4 5 6 7 8);
}

#[inline(always)]
unsafe fn tile<L: Lanes, const M: usize>(job: &Job<'_>, (n, y, x): (usize, usize, usize)) {
    let sweep = job.sweep;
    // SAFETY: as shown in `depthwise`.
    unsafe {
        // A pixel alone may lie beyond its buffer; with its tap it does not.
        let input = job.input.wrapping_offset(sweep.input.at(n, y, x));
        let output = job.output.offset(sweep.output.at(n, y, x));
        let added = match &sweep.added {
            Some(grid) => (job.added.offset(grid.at(n, y, x)), grid.right),
            None => (std::ptr::null(), 0),
        };
        let mut channel = 0;
        while channel + L::WIDTH <= job.channels {
            vector::<L, M, true>(job, channel, L::WIDTH, input, output, added);
            channel += L::WIDTH;
        }
        if channel < job.channels {
            let count = job.channels - channel;
            vector::<L, M, false>(job, channel, count, input, output, added);
        }
    }
}

#[inline(always)]
unsafe fn part<L: Lanes, const WHOLE: bool>(from: *const f32, count: usize) -> L {
    // SAFETY: `count` floats are there; all of a vector's where it is whole.
    unsafe {
        if WHOLE {
            L::load(from)
        } else {
            L::load_part(from, count)
        }
    }
}

#[inline(always)]
unsafe fn vector<L: Lanes, const M: usize, const WHOLE: bool>(
    job: &Job<'_>,
    channel: usize,
    count: usize,
    input: *const f32,
    output: *mut f32,
    (added, added_right): (*const f32, isize),
) {
    // SAFETY: as shown in `depthwise`.
    unsafe {
        let bias = if job.bias.is_null() {
            L::splat(0.0)
        } else {
            part::<L, WHOLE>(job.bias.add(channel), count)
        };
        let mut sums = [bias; M];
        let right = job.sweep.input.right;
        // The window's last tap meets each row first: what the next pixels read there is asked for.
        if let Some(last) = job.sweep.taps.last() {
            let next = input
                .wrapping_offset(last.offset + M as isize * right)
                .wrapping_add(channel);
            for pixel in 0..M {
                L::prefetch(next.wrapping_offset(pixel as isize * right));
            }
        }
        for tap in &job.sweep.taps {
            let weight =
                part::<L, WHOLE>(job.weights.add(tap.weight * job.channels + channel), count);
            let from = input.wrapping_offset(tap.offset).wrapping_add(channel);
            for (pixel, sum) in sums.iter_mut().enumerate() {
                let x = part::<L, WHOLE>(from.wrapping_offset(pixel as isize * right), count);
                *sum = x.fma(weight, *sum);
            }
        }
        let (low, high) = (L::splat(job.tail.low), L::splat(job.tail.high));
        for (pixel, sum) in sums.iter().enumerate() {
            let mut value = *sum;
            if !added.is_null() {
                let from = added.offset(pixel as isize * added_right).add(channel);
                value = value.add(part::<L, WHOLE>(from, count));
            }
            value = high.min(low.max(value));
            if let Some(quant) = &job.tail.quant {
                value = quantise(value, quant);
            }
            let to = output
                .offset(pixel as isize * job.sweep.output.right)
                .add(channel);
            if WHOLE {
                value.store(to);
            } else {
                value.store_part(to, count);
            }
        }
    }
}

/// Adds a forward sweep's share of the weights' gradient (taps × channels) to `sums`.
///
/// # Panics
/// Where a pixel of the sweep lies outside its buffer: the caller computed a wrong geometry.
pub fn depthwise_weight_gradient(
    sweep: &Sweep,
    channels: usize,
    input: &[f32],
    gradient: &[f32],
    sums: &mut [f32],
) {
    if sweep.pixels() == 0 {
        return;
    }
    assert!(
        sweep.reads_within(input.len(), channels)
            && sweep.stays_within(&sweep.output, gradient.len(), channels)
            && sweep
                .taps
                .iter()
                .all(|t| (t.weight + 1) * channels <= sums.len()),
        "depthwise_weight_gradient: a sweep lies within its buffers (a wrong geometry was computed)"
    );
    // SAFETY: the assertion shows that every float read and written lies in its buffer (see `conv`).
    unsafe {
        run_weights(
            isa(),
            sweep,
            channels,
            input.as_ptr(),
            gradient.as_ptr(),
            sums.as_mut_ptr(),
        );
    }
}

for_each_isa!(
    /// # Safety
    /// As shown in [`depthwise_weight_gradient`].
    fn run_weights => weights_body(
        sweep: &Sweep,
        channels: usize,
        input: *const f32,
        gradient: *const f32,
        sums: *mut f32,
    )
);

#[inline(always)]
unsafe fn weights_body<L: Lanes>(
    sweep: &Sweep,
    channels: usize,
    input: *const f32,
    gradient: *const f32,
    sums: *mut f32,
) {
    let mut channel = 0;
    while channel < channels {
        let count = (channels - channel).min(L::WIDTH);
        // As many taps at a time as registers hold sums; 3×3 and 5×5 windows fall into whole sets.
        let mut taps = sweep.taps.as_slice();
        while !taps.is_empty() {
            // SAFETY: as shown in `depthwise_weight_gradient`.
            let used = unsafe {
                let (i, g, s) = (input.add(channel), gradient.add(channel), sums.add(channel));
                if taps.len() >= 9 {
                    some_taps::<L, 9>(sweep, &taps[..9], channels, count, i, g, s)
                } else if taps.len() >= 5 {
                    some_taps::<L, 5>(sweep, &taps[..5], channels, count, i, g, s)
                } else {
                    some_taps::<L, 1>(sweep, &taps[..1], channels, count, i, g, s)
                }
            };
            taps = &taps[used..];
        }
        channel += count;
    }
}

#[inline(always)]
unsafe fn some_taps<L: Lanes, const T: usize>(
    sweep: &Sweep,
    taps: &[Tap],
    channels: usize,
    count: usize,
    input: *const f32,
    gradient: *const f32,
    to: *mut f32,
) -> usize {
    // SAFETY: as shown in `depthwise_weight_gradient`.
    unsafe {
        let mut sums = [L::splat(0.0); T];
        for n in 0..sweep.images {
            for y in 0..sweep.h {
                let mut from = input.wrapping_offset(sweep.input.at(n, y, 0));
                let mut g = gradient.offset(sweep.output.at(n, y, 0));
                if count == L::WIDTH {
                    for _ in 0..sweep.w {
                        let value = L::load(g);
                        for (sum, tap) in sums.iter_mut().zip(taps) {
                            *sum = L::load(from.wrapping_offset(tap.offset)).fma(value, *sum);
                        }
                        from = from.wrapping_offset(sweep.input.right);
                        g = g.wrapping_offset(sweep.output.right);
                    }
                } else {
                    for _ in 0..sweep.w {
                        let value = L::load_part(g, count);
                        for (sum, tap) in sums.iter_mut().zip(taps) {
                            let x = L::load_part(from.wrapping_offset(tap.offset), count);
                            *sum = x.fma(value, *sum);
                        }
                        from = from.wrapping_offset(sweep.input.right);
                        g = g.wrapping_offset(sweep.output.right);
                    }
                }
            }
        }
        for (sum, tap) in sums.iter().zip(taps) {
            let to = to.add(tap.weight * channels);
            L::load_part(to, count).add(*sum).store_part(to, count);
        }
    }
    T
}
