//! Where pixels lie, and which of them a window joins.

use super::team::Hands;
use std::sync::Mutex;

/// The place of an image in a channels-last buffer: `h`×`w` pixels of `c` channels inside a margin of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    pub h: usize,
    pub w: usize,
    pub c: usize,
    /// Top, left, bottom, right.
    pub margin: [usize; 4],
}

impl Plane {
    pub fn new(h: usize, w: usize, c: usize) -> Self {
        Self {
            h,
            w,
            c,
            margin: [0; 4],
        }
    }

    /// Elements of an image without margin.
    pub fn elements(&self) -> usize {
        self.h * self.w * self.c
    }
    /// From one row to the next, in floats.
    pub fn row(&self) -> usize {
        (self.margin[1] + self.w + self.margin[3]) * self.c
    }
    /// From one image to the next.
    pub fn size(&self) -> usize {
        (self.margin[0] + self.h + self.margin[2]) * self.row()
    }
    /// [`Plane::size`], or `None` where it is beyond `limit`.
    pub fn checked_size(&self, limit: usize) -> Option<usize> {
        let [top, left, bottom, right] = self.margin;
        let rows = top.checked_add(self.h)?.checked_add(bottom)?;
        let columns = left.checked_add(self.w)?.checked_add(right)?;
        rows.checked_mul(columns)?
            .checked_mul(self.c)
            .filter(|size| *size <= limit)
    }
    /// Of the first pixel.
    pub fn origin(&self) -> usize {
        self.margin[0] * self.row() + self.margin[1] * self.c
    }
    /// Grows the margin where `other` is wider.
    pub fn widen(&mut self, other: [usize; 4]) {
        for (own, other) in self.margin.iter_mut().zip(other) {
            *own = (*own).max(other);
        }
    }
    /// Sets the margin of `images` images to zero.
    pub fn clear_margin(&self, buffer: &mut [f32], images: usize) {
        if self.margin == [0; 4] {
            return;
        }
        let (row, inner) = (self.row(), self.w * self.c);
        for image in buffer.chunks_exact_mut(self.size()).take(images) {
            let origin = self.origin();
            image[..origin].fill(0.0);
            for y in 1..self.h {
                let start = origin + y * row;
                image[start + inner - row..start].fill(0.0);
            }
            image[origin + (self.h - 1) * row + inner..].fill(0.0);
        }
    }
    /// All pixels, row by row.
    pub fn grid(&self) -> Grid {
        Grid {
            start: self.origin() as isize,
            down: self.row() as isize,
            right: self.c as isize,
            image: self.size(),
        }
    }
}

/// Where the pixels of a sweep lie in one buffer: pixel (y, x) of image n at `start + n·image + y·down + x·right`, in floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub start: isize,
    pub down: isize,
    pub right: isize,
    pub image: usize,
}

impl Grid {
    pub(super) fn at(&self, n: usize, y: usize, x: usize) -> isize {
        self.start + (n * self.image) as isize + y as isize * self.down + x as isize * self.right
    }
    fn rows(self, first: usize) -> Self {
        Self {
            start: self.start + first as isize * self.down,
            ..self
        }
    }
    /// First and last pixel, in floats. Steps are never negative.
    fn span(&self, images: usize, h: usize, w: usize) -> (isize, isize) {
        (self.at(0, 0, 0), self.at(images - 1, h - 1, w - 1))
    }
}

/// One position of a window: how far its input pixel lies from the sweep's, and which of the weights belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tap {
    pub offset: isize,
    pub weight: usize,
}

/// `h`×`w` pixels of `images` images: each output pixel is the sum over taps of the input pixel there times the tap's weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    pub images: usize,
    pub h: usize,
    pub w: usize,
    pub input: Grid,
    pub output: Grid,
    /// Where something is added from before the sum is stored.
    pub added: Option<Grid>,
    pub taps: Vec<Tap>,
}

/// A pixel of a sweep, and the way to the next one.
pub(super) struct Cursor<'a> {
    sweep: &'a Sweep,
    n: usize,
    y: usize,
    x: usize,
}

impl Cursor<'_> {
    pub fn at(&self, grid: &Grid) -> isize {
        grid.at(self.n, self.y, self.x)
    }
    /// Pixels from this one to the end of its row.
    pub fn left(&self) -> usize {
        self.sweep.w - self.x
    }
    pub fn step(&mut self) {
        self.skip(1);
    }
    /// Goes `count` pixels on, at most to the next row's first.
    pub fn skip(&mut self, count: usize) {
        self.x += count;
        if self.x == self.sweep.w {
            self.x = 0;
            self.y += 1;
            if self.y == self.sweep.h {
                self.y = 0;
                self.n += 1;
            }
        }
    }
}

impl Sweep {
    /// At the pixel of this number, counted by images, rows, columns.
    pub(super) fn cursor(&self, pixel: usize) -> Cursor<'_> {
        Cursor {
            sweep: self,
            n: pixel / (self.h * self.w),
            y: pixel / self.w % self.h,
            x: pixel % self.w,
        }
    }

    pub fn pixels(&self) -> usize {
        self.images * self.h * self.w
    }

    /// The part of rows `first..first + count`.
    pub fn rows(&self, first: usize, count: usize) -> Self {
        Self {
            h: count,
            input: self.input.rows(first),
            output: self.output.rows(first),
            added: self.added.map(|g| g.rows(first)),
            ..self.clone()
        }
    }

    /// Splits into at most `parts` of whole rows.
    pub fn split(&self, parts: usize) -> Vec<Self> {
        let rows = self.h.div_ceil(parts.max(1)).max(1);
        (0..self.h)
            .step_by(rows)
            .map(|first| self.rows(first, rows.min(self.h - first)))
            .collect()
    }

    /// Whether every input float from the taps, `channels` from each, lies in a buffer of `len` floats.
    pub(super) fn reads_within(&self, len: usize, channels: usize) -> bool {
        let (first, last) = self.input.span(self.images, self.h, self.w);
        self.taps.iter().all(|tap| {
            first + tap.offset >= 0 && last + tap.offset + channels as isize <= len as isize
        }) && self.input.down >= 0
            && self.input.right >= 0
    }
    /// Whether no two pixels of a grid share a float.
    pub(super) fn keeps_apart(&self, grid: &Grid, channels: usize) -> bool {
        let reach = |count: usize, step: isize, inner: usize| (count - 1) * step as usize + inner;
        let row = reach(self.w, grid.right, channels);
        let image = reach(self.h, grid.down, row);
        (self.w < 2 || grid.right as usize >= channels)
            && (self.h < 2 || grid.down as usize >= row)
            && (self.images < 2 || grid.image >= image)
    }
    /// The same for a grid that is read or written without taps.
    pub(super) fn stays_within(&self, grid: &Grid, len: usize, channels: usize) -> bool {
        let (first, last) = grid.span(self.images, self.h, self.w);
        first >= 0 && last + channels as isize <= len as isize && grid.down >= 0 && grid.right >= 0
    }
}

/// A window sliding over a plane: what Conv and pooling share. Pairs are (vertical, horizontal).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window2d {
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    pub dilation: (usize, usize),
    /// Rows above and columns left of the image that the first window covers.
    pub before: (usize, usize),
    /// Of the output.
    pub h: usize,
    pub w: usize,
}

impl Window2d {
    pub fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// One pixel to one pixel.
    pub fn is_point(&self) -> bool {
        self.kernel == (1, 1) && self.stride == (1, 1) && self.before == (0, 0)
    }

    /// The margin that an `h`×`w` input needs so that no window leaves it.
    pub fn margin(&self, h: usize, w: usize) -> [usize; 4] {
        let after = |extent: usize,
                     out: usize,
                     kernel: usize,
                     stride: usize,
                     dilation: usize,
                     before: usize| {
            ((out - 1) * stride + (kernel - 1) * dilation + 1).saturating_sub(before + extent)
        };
        [
            self.before.0,
            self.before.1,
            after(
                h,
                self.h,
                self.kernel.0,
                self.stride.0,
                self.dilation.0,
                self.before.0,
            ),
            after(
                w,
                self.w,
                self.kernel.1,
                self.stride.1,
                self.dilation.1,
                self.before.1,
            ),
        ]
    }

    /// From every output pixel to the input pixels it sums.
    pub fn forward(&self, images: usize, input: &Plane, output: &Plane) -> Sweep {
        let mut taps = Vec::with_capacity(self.taps());
        for ky in 0..self.kernel.0 {
            for kx in 0..self.kernel.1 {
                let down = (ky * self.dilation.0) as isize - self.before.0 as isize;
                let right = (kx * self.dilation.1) as isize - self.before.1 as isize;
                taps.push(Tap {
                    offset: down * input.row() as isize + right * input.c as isize,
                    weight: ky * self.kernel.1 + kx,
                });
            }
        }
        let grid = input.grid();
        Sweep {
            images,
            h: self.h,
            w: self.w,
            input: Grid {
                down: grid.down * self.stride.0 as isize,
                right: grid.right * self.stride.1 as isize,
                ..grid
            },
            output: output.grid(),
            added: None,
            taps,
        }
    }

    /// From every input pixel to the output pixels that read it: the sweeps of the input's gradient, one for each remainder of
    /// the pixel's place by the stride. `gradient` needs [`Window2d::gradient_margin`]. Where the stride leaves input
    /// pixels that no window reads, a sweep has no taps and writes zeros.
    pub fn backward(&self, images: usize, gradient: &Plane, input: &Plane) -> Vec<Sweep> {
        let (gg, ig) = (gradient.grid(), input.grid());
        let mut sweeps = Vec::new();
        for a in 0..self.stride.0 {
            let Some((first_y, count_y)) = phase(a, self.stride.0, self.before.0, input.h) else {
                continue;
            };
            for b in 0..self.stride.1 {
                let Some((first_x, count_x)) = phase(b, self.stride.1, self.before.1, input.w)
                else {
                    continue;
                };
                let mut taps = Vec::new();
                for ky in 0..self.kernel.0 {
                    for kx in 0..self.kernel.1 {
                        let (dy, dx) = (ky * self.dilation.0, kx * self.dilation.1);
                        if dy % self.stride.0 != a || dx % self.stride.1 != b {
                            continue;
                        }
                        let down = -((dy / self.stride.0) as isize);
                        let right = -((dx / self.stride.1) as isize);
                        taps.push(Tap {
                            offset: down * gg.down + right * gg.right,
                            weight: ky * self.kernel.1 + kx,
                        });
                    }
                }
                // Input row first_y + s·m lies at padded row a + s·(m + q): output row m + q less the tap's.
                let (qy, qx) = (
                    (first_y + self.before.0) / self.stride.0,
                    (first_x + self.before.1) / self.stride.1,
                );
                sweeps.push(Sweep {
                    images,
                    h: count_y,
                    w: count_x,
                    input: Grid {
                        start: gg.start + qy as isize * gg.down + qx as isize * gg.right,
                        ..gg
                    },
                    output: Grid {
                        start: ig.start + first_y as isize * ig.down + first_x as isize * ig.right,
                        down: ig.down * self.stride.0 as isize,
                        right: ig.right * self.stride.1 as isize,
                        image: ig.image,
                    },
                    added: None,
                    taps,
                });
            }
        }
        sweeps
    }

    /// The margin that the output's gradient needs for [`Window2d::backward`] over an `h`×`w` input.
    pub fn gradient_margin(&self, h: usize, w: usize) -> [usize; 4] {
        let before = |kernel: usize, stride: usize, dilation: usize, pad: usize| -> usize {
            // The first padded row that holds input has quotient pad / s; the farthest tap reaches back d·(k−1) / s.
            ((kernel - 1) * dilation / stride).saturating_sub(pad / stride)
        };
        let after = |extent: usize, out: usize, stride: usize, pad: usize| {
            ((extent - 1 + pad) / stride + 1).saturating_sub(out)
        };
        [
            before(self.kernel.0, self.stride.0, self.dilation.0, self.before.0),
            before(self.kernel.1, self.stride.1, self.dilation.1, self.before.1),
            after(h, self.h, self.stride.0, self.before.0),
            after(w, self.w, self.stride.1, self.before.1),
        ]
    }
}

/// The first of `extent` places whose padded place has remainder `a`, and how many there are.
fn phase(a: usize, stride: usize, before: usize, extent: usize) -> Option<(usize, usize)> {
    let first = (a + stride - before % stride) % stride;
    (first < extent).then(|| (first, (extent - first).div_ceil(stride)))
}

/// Runs `work` on parts of a sweep, by whole rows of one image.
pub fn by_rows(
    hands: Hands<'_>,
    sweep: &Sweep,
    out: &mut [f32],
    work: impl Fn(&Sweep, &mut [f32]) + Sync,
) {
    let parts = hands.count();
    if parts < 2 || sweep.images != 1 || sweep.h < 2 {
        return work(sweep, out);
    }
    let mut rest = out;
    let mut gone = 0;
    let mut tasks = Vec::with_capacity(parts);
    let split = sweep.split(parts);
    for (i, part) in split.iter().enumerate() {
        // A part's floats end where the next one's begin.
        let end = match split.get(i + 1) {
            Some(next) => next.output.start as usize - gone,
            None => rest.len(),
        };
        let (own, later) = rest.split_at_mut(end);
        let part = Sweep {
            output: Grid {
                start: part.output.start - gone as isize,
                ..part.output
            },
            ..part.clone()
        };
        tasks.push(Mutex::new((part, own)));
        gone += end;
        rest = later;
    }
    hands.each(tasks.len(), &|at| {
        // Each is locked once.
        let mut task = tasks[at].lock().unwrap_or_else(|e| e.into_inner());
        let (part, own) = &mut *task;
        work(part, own);
    });
}
