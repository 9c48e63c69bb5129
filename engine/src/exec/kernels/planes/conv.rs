//! Convolution as tiles of pixels × output channels kept in registers: the input is read where it lies, a float at a time for
//! all channels of the tile, and the weights from panels packed beforehand. No patches are unfolded.

#![allow(unsafe_code)] // raw pointers into buffers whose extent is asserted before the first of them is made
#![allow(clippy::needless_range_loop)] // tiles are indexed by row and column, as in the algebra

use super::{
    super::lanes::{Isa, Lanes, for_each_isa},
    Buffer,
    sweep::{Sweep, Tap},
    team::Hands,
};
use std::ops::Range;

/// Weights of a convolution (or of its input gradient, with the roles of the channels exchanged), laid out for [`conv`].
#[derive(Clone, Debug)]
pub struct Packed {
    isa: Isa,
    groups: usize,
    /// Input channels of a group; output channels of a group.
    depth: usize,
    channels: usize,
    taps: usize,
    /// Group by group, block of output channels by block: taps × depth × block.
    panels: Buffer,
    /// Group by group, each group's filled up with zeros to whole vectors.
    bias: Vec<f32>,
}

impl Packed {
    /// Packs `weight(group, output channel, input channel, tap)`, channels counted within their group. `bias` has
    /// groups × channels entries, or none.
    pub fn new(
        isa: Isa,
        (groups, channels, depth, taps): (usize, usize, usize, usize),
        weight: impl Fn(usize, usize, usize, usize) -> f32,
        bias: Option<&[f32]>,
    ) -> Self {
        let width = isa.width();
        let padded = channels.div_ceil(width) * width;
        let mut panels = Buffer::zeros(groups * padded * depth * taps);
        let mut rest = panels.iter_mut();
        let mut biases = vec![0.0; groups * padded];
        for group in 0..groups {
            for (first, count) in blocks(channels, isa) {
                for tap in 0..taps {
                    for input in 0..depth {
                        let outputs = first..first + count * width;
                        for (output, panel) in outputs.zip(rest.by_ref()) {
                            if output < channels {
                                *panel = weight(group, output, input, tap);
                            }
                        }
                    }
                }
            }
            if let Some(bias) = bias {
                biases[group * padded..group * padded + channels]
                    .copy_from_slice(&bias[group * channels..(group + 1) * channels]);
            }
        }
        Self {
            isa,
            groups,
            depth,
            channels,
            taps,
            panels,
            bias: biases,
        }
    }
}

/// Blocks of output channels: (first channel, vectors).
fn blocks(channels: usize, isa: Isa) -> impl Iterator<Item = (usize, usize)> {
    let width = isa.width();
    let vectors = channels.div_ceil(width);
    let most = isa.columns();
    (0..vectors)
        .step_by(most)
        .map(move |first| (first * width, most.min(vectors - first)))
}

/// A per-tensor fake quantisation: `clamp(round(x / scale), low, high)·scale`, the zero point already taken off `low` and `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quant {
    pub scale: f32,
    pub low: f32,
    pub high: f32,
}

/// What is done to a sum before it is stored: clipped to `low..=high`, then fake-quantised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tail {
    pub low: f32,
    pub high: f32,
    pub quant: Option<Quant>,
}

impl Tail {
    pub const NONE: Self = Self {
        low: f32::NEG_INFINITY,
        high: f32::INFINITY,
        quant: None,
    };
}

/// Floats of input that stay in the L2 cache while all output channels pass over them.
const PANEL: usize = 1 << 15;

/// How far ahead weights are asked for: the panels of a whole network fit no near cache, and the processor's own prefetching
/// ends with each page.
const AHEAD: usize = 1 << 10;

/// Pixels worked on between two visits to the weights, at most.
const MOST_PIXELS: usize = 512;

/// `output = tail(Σ taps input·weights + bias + added)` over the sweep's pixels. The added values come from a buffer of their
/// own, or from `output` itself where `added` is none but the sweep names a grid.
///
/// # Panics
/// Where a pixel of the sweep lies outside its buffer: the caller computed a wrong geometry.
pub fn conv(
    sweep: &Sweep,
    packed: &Packed,
    input: &[f32],
    added: Option<&[f32]>,
    output: &mut [f32],
    tail: Tail,
) {
    conv_by(Hands::Alone, sweep, packed, input, added, output, tail);
}

/// Pixels that a part wants at least: weights are read anew for each part, and few pixels make little of them.
const FEW_PIXELS: usize = 40;

/// [`conv`] with its pixels shared out, or its output channels where there are few pixels.
///
/// # Panics
/// As [`conv`].
pub fn conv_by(
    hands: Hands<'_>,
    sweep: &Sweep,
    packed: &Packed,
    input: &[f32],
    added: Option<&[f32]>,
    output: &mut [f32],
    tail: Tail,
) {
    let total = sweep.pixels();
    if total == 0 {
        return;
    }
    let hands_count = hands.count();
    let blocks = blocks(packed.channels, packed.isa).count();
    let by_channels = hands_count > 1
        && packed.groups == 1
        && total < FEW_PIXELS * hands_count
        && blocks >= hands_count;
    let parts = if by_channels {
        hands_count
    } else {
        hands_count.min(total)
    };
    let all = packed.groups * packed.channels;
    assert!(
        sweep.reads_within(input.len(), packed.groups * packed.depth)
            && sweep.stays_within(&sweep.output, output.len(), all)
            && sweep.taps.iter().all(|t| t.weight < packed.taps)
            && match (&sweep.added, added) {
                (None, None) => true,
                (Some(grid), Some(buffer)) => sweep.stays_within(grid, buffer.len(), all),
                (Some(grid), None) => sweep.stays_within(grid, output.len(), all),
                (None, Some(_)) => false,
            },
        "conv: a sweep lies within its buffers (a wrong geometry was computed)"
    );
    let own = added.is_none().then_some(sweep.added).flatten();
    assert!(
        parts < 2
            || sweep.keeps_apart(&sweep.output, all) && own.is_none_or(|grid| grid == sweep.output),
        "conv: pixels that are written side by side do not overlap (a wrong geometry was computed)"
    );
    let output = output.as_mut_ptr();
    let added = match (&sweep.added, added) {
        (None, _) => std::ptr::null(),
        (Some(_), Some(buffer)) => buffer.as_ptr(),
        (Some(_), None) => output.cast_const(),
    };
    // Why this is sound: the assertion shows that every float read and written lies in its buffer: a grid's steps are not negative, so
    // its first and last pixel bound all, and each access reaches `depth` or `channels` floats from a pixel. The packed panels
    // were laid out by `Packed::new` for just these counts. `output` is borrowed mutably; where the added values come from
    // it too, each is read by the tile that overwrites it, before it does. Parts write different pixels, which
    // do not overlap, or different channels of the same pixels, and `output` is not touched otherwise until all are done.
    let shared = Shared {
        input: input.as_ptr(),
        added,
        output,
    };
    let cut = |all: usize, at: usize| all * at / parts..all * (at + 1) / parts;
    hands.each(parts, &|at| {
        let shared = &shared;
        let (pixels, blocks) = if by_channels {
            (0..total, cut(blocks, at))
        } else {
            (cut(total, at), 0..blocks)
        };
        // SAFETY: see above.
        unsafe { run(packed.isa, sweep, packed, shared, tail, pixels, blocks) }
    });
}

/// The buffers of a convolution, for the tasks that share them.
struct Shared {
    input: *const f32,
    added: *const f32,
    output: *mut f32,
}

// SAFETY: only `conv_by` makes one, for tasks that end before it returns; it shows that they write different floats.
unsafe impl Sync for Shared {}

for_each_isa!(
    /// # Safety
    /// As shown in [`conv`].
    fn run => body(
        sweep: &Sweep,
        packed: &Packed,
        shared: &Shared,
        tail: Tail,
        pixels: Range<usize>,
        wanted: Range<usize>,
    )
);

/// What all tiles of a block of channels share.
struct Job<'a, L> {
    runs: &'a [Run],
    /// Of the layer's input, a tap.
    depth: usize,
    panel: *const f32,
    bias: *const f32,
    /// Output channels from this block's first on.
    channels: usize,
    low: L,
    high: L,
    quant: Option<Quant>,
}

/// Taps whose floats lie one behind another, in the input as in the panels: `floats` from `first` on.
struct Run {
    first: Tap,
    floats: usize,
}

/// Joins the taps of a window's row. Pixels of a plane without groups follow one another directly.
fn runs(taps: &[Tap], packed: &Packed) -> Vec<Run> {
    let depth = packed.depth;
    let mut runs: Vec<Run> = Vec::with_capacity(taps.len());
    for tap in taps {
        match runs.last_mut() {
            Some(Run { first, floats })
                if packed.groups == 1
                    && first.offset + *floats as isize == tap.offset
                    && first.weight * depth + *floats == tap.weight * depth =>
            {
                *floats += depth;
            }
            _ => runs.push(Run {
                first: *tap,
                floats: depth,
            }),
        }
    }
    runs
}

/// A pixel's places.
#[derive(Clone, Copy)]
struct Place {
    input: *const f32,
    added: *const f32,
    output: *mut f32,
}

#[inline(always)]
unsafe fn body<L: Lanes>(
    sweep: &Sweep,
    packed: &Packed,
    shared: &Shared,
    tail: Tail,
    pixels: Range<usize>,
    wanted: Range<usize>,
) {
    let &Shared {
        input,
        added,
        output,
    } = shared;
    let (depth, channels) = (packed.depth, packed.channels);
    let padded = channels.div_ceil(L::WIDTH) * L::WIDTH;
    let most = (PANEL / depth.max(1)).clamp(4 * L::ROWS, MOST_PIXELS);
    let total = pixels.len();
    let parts = total.div_ceil(most);
    let mut places: Vec<Place> = Vec::with_capacity(total.div_ceil(parts) + L::ROWS);
    // SAFETY: see `conv`.
    let (low, high) = unsafe { (L::splat(tail.low), L::splat(tail.high)) };
    let runs = runs(&sweep.taps, packed);
    let mut pixel = sweep.cursor(pixels.start);
    let mut done = 0;
    for part in 0..parts {
        let end = total * (part + 1) / parts;
        places.clear();
        while done < end {
            // Pixels of the sweep lie in their buffers; the place behind a row's last need not, and is not used.
            let mut place = Place {
                input: input.wrapping_offset(pixel.at(&sweep.input)),
                added: match &sweep.added {
                    Some(grid) => added.wrapping_offset(pixel.at(grid)),
                    None => std::ptr::null(),
                },
                output: output.wrapping_offset(pixel.at(&sweep.output)),
            };
            let count = pixel.left().min(end - done);
            for _ in 0..count {
                places.push(place);
                place.input = place.input.wrapping_offset(sweep.input.right);
                if let Some(grid) = &sweep.added {
                    place.added = place.added.wrapping_offset(grid.right);
                }
                place.output = place.output.wrapping_offset(sweep.output.right);
            }
            done += count;
            pixel.skip(count);
        }
        for group in 0..packed.groups {
            let mut panel = group * padded * depth * packed.taps;
            for (at, (first, vectors)) in blocks(channels, packed.isa).enumerate() {
                let own = panel;
                panel += vectors * L::WIDTH * depth * packed.taps;
                if !wanted.contains(&at) {
                    continue;
                }
                // SAFETY: within the panels and biases as `Packed::new` laid them out.
                let job = unsafe {
                    Job {
                        runs: &runs,
                        depth,
                        panel: packed.panels.as_ptr().add(own),
                        bias: packed.bias.as_ptr().add(group * padded + first),
                        channels: channels - first,
                        low,
                        high,
                        quant: tail.quant,
                    }
                };
                let shift = (group * depth, group * channels + first);
                // Tiles of about the same size: a last one of a single pixel would cost as much as four.
                let tiles = places.len().div_ceil(L::ROWS);
                let mut start = 0;
                for tile in 0..tiles {
                    let end = places.len() * (tile + 1) / tiles;
                    // SAFETY: as above.
                    unsafe { any_tile(&job, &places[start..end], shift, vectors) };
                    start = end;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn any_tile<L: Lanes>(
    job: &Job<'_, L>,
    places: &[Place],
    shift: (usize, usize),
    vectors: usize,
) {
    // Constant conditions, so that only tiles which fit the registers are compiled.
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            $(
                if const { $rows <= L::ROWS } {
                    if places.len() == $rows && vectors == 1 {
                        return unsafe { tile::<L, $rows, 1, 4>(job, places, shift) };
                    }
                }
                if const { $rows <= L::ROWS && L::COLUMNS > 1 && L::WIDTH > 8 } {
                    if places.len() == $rows && vectors == 2 {
                        return unsafe { tile::<L, $rows, 2, 2>(job, places, shift) };
                    }
                }
                if const { $rows <= L::ROWS && L::COLUMNS > 1 && L::WIDTH <= 8 } {
                    if places.len() == $rows && vectors == 2 {
                        return unsafe { tile::<L, $rows, 2, 1>(job, places, shift) };
                    }
                }
            )*
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
    unreachable!("a tile has 1 to ROWS rows and 1 to COLUMNS vectors");
}

/// The block for each index below `M`, `U` or `N`, spelled out before the compiler decides what stays in registers: it keeps an array there only where all
/// indices are known to it by then.
macro_rules! each {
    (M, $at:ident, $body:block) => { each!(M, $at, $body; 0 1 2 3 4 5 6 7 8 9 10 11) };
    (U, $at:ident, $body:block) => { each!(U, $at, $body; 0 1 2 3) };
    (N, $at:ident, $body:block) => { each!(N, $at, $body; 0 1) };
    ($count:ident, $at:ident, $body:block; $($index:literal)*) => {
        $(if $index < $count {
            let $at = $index;
            $body
        })*
    };
}

/// Adds the products of `U` of the input's floats, `at` from each pixel on, in their order. The pixels' addresses are read once for all of them: there
/// are more than the processor has registers for.
#[inline(always)]
unsafe fn add<L: Lanes, const M: usize, const N: usize, const U: usize>(
    sums: &mut [[L; N]; M],
    places: &[Place],
    at: isize,
    panel: *const f32,
) {
    // SAFETY: see `conv`; `places` has M entries.
    unsafe {
        let mut weights = [[L::splat(0.0); N]; U];
        each!(U, float, {
            each!(N, column, {
                let from = panel.add((float * N + column) * L::WIDTH);
                weights[float][column] = L::load(from);
                L::prefetch(from.wrapping_add(AHEAD));
            });
        });
        each!(M, row, {
            let from = places.get_unchecked(row).input.wrapping_offset(at);
            each!(U, float, {
                let x = L::splat(*from.add(float));
                each!(N, column, {
                    sums[row][column] = x.fma(weights[float][column], sums[row][column]);
                });
            });
        });
    }
}

#[inline(always)]
unsafe fn tile<L: Lanes, const M: usize, const N: usize, const U: usize>(
    job: &Job<'_, L>,
    places: &[Place],
    (input_shift, output_shift): (usize, usize),
) {
    // SAFETY: see `conv`.
    unsafe {
        let mut sums = [[L::splat(0.0); N]; M];
        each!(N, column, {
            let bias = L::load(job.bias.add(column * L::WIDTH));
            each!(M, row, {
                sums[row][column] = bias;
            });
        });
        let step = N * L::WIDTH;
        for Run { first, floats } in job.runs {
            let mut panel = job.panel.add(first.weight * job.depth * step);
            // A pixel alone may lie beyond its buffer; with its tap it does not.
            let mut at = first.offset + input_shift as isize;
            let end = at + *floats as isize;
            while at + U as isize <= end {
                add::<L, M, N, U>(&mut sums, places, at, panel);
                panel = panel.add(U * step);
                at += U as isize;
            }
            while at < end {
                add::<L, M, N, 1>(&mut sums, places, at, panel);
                panel = panel.add(step);
                at += 1;
            }
        }
        each!(M, row, {
            each!(N, column, {
                let at = column * L::WIDTH;
                let count = (job.channels - at).min(L::WIDTH);
                let mut value = sums[row][column];
                if !places[row].added.is_null() {
                    let added = places[row].added.add(output_shift + at);
                    let added = if count == L::WIDTH {
                        L::load(added)
                    } else {
                        L::load_part(added, count)
                    };
                    value = value.add(added);
                }
                // Limits first: what is not a number passes through and is found at the end.
                value = job.high.min(job.low.max(value));
                if let Some(quant) = &job.quant {
                    value = quantise(value, quant);
                }
                let to = places[row].output.add(output_shift + at);
                if count == L::WIDTH {
                    value.store(to);
                } else {
                    value.store_part(to, count);
                }
            });
        });
    }
}

/// Beyond this a float has no fraction to round, and below it `x + MAGIC − MAGIC` rounds half to even.
const WHOLE: f32 = 4_194_304.0; // 2²²
const MAGIC: f32 = 12_582_912.0; // 1.5·2²³

/// `round(x / scale)` half to even.
///
/// # Safety
/// The contract of [`Lanes`].
#[inline(always)]
pub(super) unsafe fn rounded<L: Lanes>(x: L, scale: f32) -> L {
    // SAFETY: arithmetic only.
    unsafe {
        let ratio = x.div(L::splat(scale));
        let ratio = L::splat(WHOLE).min(L::splat(-WHOLE).max(ratio));
        ratio.add(L::splat(MAGIC)).sub(L::splat(MAGIC))
    }
}

/// # Safety
/// The contract of [`Lanes`].
#[inline(always)]
pub(super) unsafe fn quantise<L: Lanes>(x: L, quant: &Quant) -> L {
    // SAFETY: arithmetic only.
    unsafe {
        let whole = rounded(x, quant.scale);
        let whole = L::splat(quant.high).min(L::splat(quant.low).max(whole));
        whole.mul(L::splat(quant.scale))
    }
}
