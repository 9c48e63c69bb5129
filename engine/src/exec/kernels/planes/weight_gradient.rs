//! The gradient of a convolution's weights: for every tap, the sum over pixels of input channels × gradient channels.

#![allow(unsafe_code)] // raw pointers into buffers whose extent is asserted before the first of them is made
#![allow(clippy::needless_range_loop)] // tiles are indexed by row and column, as in the algebra

use super::{
    super::lanes::{Isa, Lanes, for_each_isa},
    Buffer,
    sweep::Sweep,
};

/// Gradients of the weights of one convolution, added up over calls.
#[derive(Clone, Debug)]
pub struct WeightGradient {
    isa: Isa,
    groups: usize,
    channels: usize,
    depth: usize,
    taps: usize,
    /// Group by group: taps × depth × channels, the channels filled up to whole vectors.
    sums: Buffer,
}

impl WeightGradient {
    pub fn new(isa: Isa, (groups, channels, depth, taps): (usize, usize, usize, usize)) -> Self {
        let mut new = Self {
            isa,
            groups,
            channels,
            depth,
            taps,
            sums: Buffer::default(),
        };
        new.sums = Buffer::zeros(groups * taps * depth * new.padded());
        new
    }

    fn padded(&self) -> usize {
        let width = self.isa.width();
        self.channels.div_ceil(width) * width
    }

    pub fn add(&mut self, other: &Self) {
        for (own, other) in self.sums.iter_mut().zip(other.sums.iter()) {
            *own += other;
        }
    }

    /// Output channels (of all groups) × input channels (of a group) × taps, row by row: ONNX's order of a weight.
    pub fn to_weight(&self) -> Vec<f32> {
        let padded = self.padded();
        let mut weight = Vec::with_capacity(self.groups * self.channels * self.depth * self.taps);
        for group in 0..self.groups {
            for output in 0..self.channels {
                for input in 0..self.depth {
                    for tap in 0..self.taps {
                        let row = (group * self.taps + tap) * self.depth + input;
                        weight.push(self.sums[row * padded + output]);
                    }
                }
            }
        }
        weight
    }
}

/// Pixels summed in registers before they are added to memory.
const PIXELS: usize = 256;

/// Adds the share of a forward sweep whose output's gradient lies in `gradient`, at `sweep.output`'s grid.
///
/// # Panics
/// Where a pixel of the sweep lies outside its buffer: the caller computed a wrong geometry.
pub fn weight_gradient(sweep: &Sweep, input: &[f32], gradient: &[f32], sums: &mut WeightGradient) {
    if sweep.pixels() == 0 {
        return;
    }
    assert!(
        sweep.reads_within(input.len(), sums.groups * sums.depth)
            && sweep.stays_within(&sweep.output, gradient.len(), sums.groups * sums.channels)
            && sweep.taps.iter().all(|t| t.weight < sums.taps),
        "weight_gradient: a sweep lies within its buffers (a wrong geometry was computed)"
    );
    // SAFETY: the assertion shows that every float read lies in its buffer (see `conv`); `sums` was made by `new` for these
    // counts and is borrowed mutably.
    unsafe { run(sums.isa, sweep, input.as_ptr(), gradient.as_ptr(), sums) }
}

for_each_isa!(
    /// # Safety
    /// As shown in [`weight_gradient`].
    fn run => body(
        sweep: &Sweep,
        input: *const f32,
        gradient: *const f32,
        sums: &mut WeightGradient,
    )
);

/// Where a pixel's channels lie: input, gradient.
type Place = (*const f32, *const f32);

#[inline(always)]
unsafe fn body<L: Lanes>(
    sweep: &Sweep,
    input: *const f32,
    gradient: *const f32,
    sums: &mut WeightGradient,
) {
    let (depth, channels, padded) = (sums.depth, sums.channels, sums.padded());
    let total = sweep.pixels();
    let parts = total.div_ceil(PIXELS);
    let mut places: Vec<Place> = Vec::with_capacity(PIXELS + 1);
    let mut pixel = sweep.cursor(0);
    let mut done = 0;
    for part in 0..parts {
        let end = total * (part + 1) / parts;
        places.clear();
        while done < end {
            // SAFETY: pixels of the sweep lie in their buffers.
            places.push(unsafe {
                (
                    input.wrapping_offset(pixel.at(&sweep.input)),
                    gradient.offset(pixel.at(&sweep.output)),
                )
            });
            done += 1;
            pixel.step();
        }
        for group in 0..sums.groups {
            for tap in &sweep.taps {
                let first_row = (group * sums.taps + tap.weight) * depth;
                let mut first = 0;
                while first < channels {
                    let vectors = (channels - first)
                        .div_ceil(L::WIDTH)
                        .min(sums.isa.columns());
                    let most = if vectors == 1 {
                        most_rows::<L>()
                    } else {
                        L::ROWS
                    };
                    let tiles = depth.div_ceil(most);
                    for tile in 0..tiles {
                        let start = depth * tile / tiles;
                        let rows = depth * (tile + 1) / tiles - start;
                        // SAFETY: as shown in `weight_gradient`.
                        unsafe {
                            let job = Job {
                                places: &places,
                                input: tap.offset + (group * depth + start) as isize,
                                gradient: group * channels + first,
                                channels: channels - first,
                                sums: sums
                                    .sums
                                    .as_mut_ptr()
                                    .add((first_row + start) * padded + first),
                                padded,
                            };
                            any_tile::<L>(&job, rows, vectors);
                        }
                    }
                    first += vectors * L::WIDTH;
                }
            }
        }
    }
}

/// Rows of a tile of one column: more where that leaves registers free.
const fn most_rows<L: Lanes>() -> usize {
    if L::COLUMNS > 1 {
        L::ROWS * 4 / 3
    } else {
        L::ROWS
    }
}

struct Job<'a> {
    places: &'a [Place],
    /// From a pixel to the tile's first input channel, and to its first gradient channel.
    input: isize,
    gradient: usize,
    channels: usize,
    sums: *mut f32,
    padded: usize,
}

#[inline(always)]
unsafe fn any_tile<L: Lanes>(job: &Job<'_>, rows: usize, vectors: usize) {
    // Constant conditions, so that only tiles which fit the registers are compiled.
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            $(
                if const { $rows <= most_rows::<L>() } {
                    if rows == $rows && vectors == 1 {
                        return unsafe { tile::<L, $rows, 1>(job) };
                    }
                }
                if const { $rows <= L::ROWS && L::COLUMNS > 1 } {
                    if rows == $rows && vectors == 2 {
                        return unsafe { tile::<L, $rows, 2>(job) };
                    }
                }
            )*
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
    unreachable!("a tile has 1 to ROWS rows and 1 to COLUMNS vectors");
}

#[inline(always)]
unsafe fn tile<L: Lanes, const M: usize, const N: usize>(job: &Job<'_>) {
    // SAFETY: as shown in `weight_gradient`.
    unsafe {
        let mut sums = [[L::splat(0.0); N]; M];
        let whole = job.channels >= N * L::WIDTH;
        for (x, g) in job.places {
            // A pixel alone may lie beyond its buffer; with its tap it does not.
            let x = x.wrapping_offset(job.input);
            let g = g.add(job.gradient);
            let mut gradient = [L::splat(0.0); N];
            for (column, value) in gradient.iter_mut().enumerate() {
                let at = column * L::WIDTH;
                *value = if whole {
                    L::load(g.add(at))
                } else {
                    L::load_part(g.add(at), (job.channels - at).min(L::WIDTH))
                };
            }
            for row in 0..M {
                let x = L::splat(*x.add(row));
                for column in 0..N {
                    sums[row][column] = x.fma(gradient[column], sums[row][column]);
                }
            }
        }
        for row in 0..M {
            for column in 0..N {
                let to = job.sums.add(row * job.padded + column * L::WIDTH);
                L::load(to).add(sums[row][column]).store(to);
            }
        }
    }
}
