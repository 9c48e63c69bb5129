//! Geometry of a sliding window, and the one trick all convolutions here share.
//!
//! A zero-padded plane is split into *phases*: phase (a, b) holds the padded elements at rows ≡ a, columns ≡ b modulo
//! the stride. Within its phase, every kernel tap (ky, kx) then meets the output positions in order: output (y, x) reads
//! element (y + ky·d/s, x + kx·d/s). With output rows kept at the *pitch* of the phase, a tap is one shift of a flat array,
//! whatever the stride, the dilation and the padding: unfolding patches becomes long copies, and a depthwise
//! convolution a sum of shifted arrays. The few columns between the output's width and the pitch are computed and dropped.

use super::{
    Conv2dGeometry,
    host::{checked_count, sized},
};
use candle_core::{Result, bail};

/// Sizes of one convolution, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvShape {
    pub n: usize,
    /// Input and output channels, of all groups and of one.
    pub c: usize,
    pub o: usize,
    pub cg: usize,
    pub og: usize,
    pub h: usize,
    pub w: usize,
    pub kh: usize,
    pub kw: usize,
    pub ho: usize,
    pub wo: usize,
    pub groups: usize,
    stride: (usize, usize),
    dilation: (usize, usize),
    pad: (usize, usize),
}

/// Extent that `kernel` covers: d·(k−1)+1.
pub(super) fn reach(kernel: usize, dilation: usize) -> Option<usize> {
    kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)
}

/// (extent + pads − d·(k−1) − 1) / s + 1, rounded down; `None` when the window doesn't fit or a number is absurd.
pub(super) fn slid(
    extent: usize,
    pads: (usize, usize),
    kernel: usize,
    stride: usize,
    dilation: usize,
) -> Option<usize> {
    let padded = extent.checked_add(pads.0)?.checked_add(pads.1)?;
    Some(padded.checked_sub(reach(kernel, dilation)?)? / stride + 1)
}

impl ConvShape {
    /// Of `x` N×C×H×W with `weight` O×(C/groups)×kH×kW.
    pub fn forward(op: &str, x: &[usize], weight: &[usize], g: &Conv2dGeometry) -> Result<Self> {
        let (&[n, c, h, w], &[o, cg, kh, kw]) = (x, weight) else {
            bail!("{op} takes a rank-4 input and weight, not {x:?} and {weight:?}")
        };
        check_geometry(op, g)?;
        if c != cg.saturating_mul(g.groups) || o % g.groups != 0 {
            bail!(
                "{op}: input {x:?} and weight {weight:?} don't agree with {} groups",
                g.groups
            )
        }
        let (Some(ho), Some(wo)) = (
            slid(h, (g.pad.0, g.pad.2), kh, g.stride.0, g.dilation.0),
            slid(w, (g.pad.1, g.pad.3), kw, g.stride.1, g.dilation.1),
        ) else {
            bail!("{op}: kernel {kh}×{kw} with {g:?} doesn't fit an input of {h}×{w}")
        };
        Self {
            n,
            c,
            o,
            cg,
            og: o / g.groups,
            h,
            w,
            kh,
            kw,
            ho,
            wo,
            groups: g.groups,
            stride: g.stride,
            dilation: g.dilation,
            pad: (g.pad.0, g.pad.1),
        }
        .checked(op)
    }

    /// Of the convolution that a transposed one is the gradient of: its *input* is the transposed one's output and the
    /// reverse. `x` N×C×H×W, `weight` C×(O/groups)×kH×kW.
    pub fn transposed(
        op: &str,
        x: &[usize],
        weight: &[usize],
        g: &Conv2dGeometry,
        output_padding: (usize, usize),
    ) -> Result<Self> {
        let (&[n, c, h, w], &[wc, og, kh, kw]) = (x, weight) else {
            bail!("{op} takes a rank-4 input and weight, not {x:?} and {weight:?}")
        };
        check_geometry(op, g)?;
        if wc != c || c % g.groups != 0 {
            bail!(
                "{op}: input {x:?} and weight {weight:?} don't agree with {} groups",
                g.groups
            )
        }
        let extent = |extent: usize, k, s: usize, d, pads: (usize, usize), extra: usize| {
            let full = extent
                .checked_sub(1)?
                .checked_mul(s)?
                .checked_add(reach(k, d)?)?
                .checked_add(extra)?;
            full.checked_sub(pads.0.checked_add(pads.1)?)
                .filter(|left| *left > 0)
        };
        let (Some(oh), Some(ow)) = (
            extent(
                h,
                kh,
                g.stride.0,
                g.dilation.0,
                (g.pad.0, g.pad.2),
                output_padding.0,
            ),
            extent(
                w,
                kw,
                g.stride.1,
                g.dilation.1,
                (g.pad.1, g.pad.3),
                output_padding.1,
            ),
        ) else {
            bail!(
                "{op}: kernel {kh}×{kw} with {g:?} and output padding {output_padding:?} leaves nothing of an input of {h}×{w}"
            )
        };
        Self {
            n,
            c: og.saturating_mul(g.groups),
            o: c,
            cg: og,
            og: c / g.groups,
            h: oh,
            w: ow,
            kh,
            kw,
            ho: h,
            wo: w,
            groups: g.groups,
            stride: g.stride,
            dilation: g.dilation,
            pad: (g.pad.0, g.pad.1),
        }
        .checked(op)
    }

    fn checked(self, op: &str) -> Result<Self> {
        if [self.c, self.o, self.h, self.w].contains(&0) {
            bail!("{op}: no channel count and no extent may be 0: {self:?}")
        }
        checked_count(op, &[self.n, self.c, self.h, self.w])?;
        checked_count(op, &[self.n, self.o, self.ho, self.wo])?;
        checked_count(op, &[self.o, self.cg, self.kh, self.kw])?;
        // The padded planes of one group hold at most this much.
        let rows = self
            .ho
            .saturating_mul(self.stride.0)
            .saturating_add(reach(self.kh, self.dilation.0).unwrap_or(usize::MAX));
        let columns = self
            .wo
            .saturating_mul(self.stride.1)
            .saturating_add(reach(self.kw, self.dilation.1).unwrap_or(usize::MAX));
        checked_count(op, &[self.cg, rows, columns])?;
        Ok(self)
    }

    /// Elements of one group of one image, in and out, and of one group's weight.
    pub fn group_in(&self) -> usize {
        self.cg * self.h * self.w
    }
    pub fn group_out(&self) -> usize {
        self.og * self.ho * self.wo
    }
    pub fn group_weight(&self) -> usize {
        self.og * self.depth()
    }
    /// Weights that one output element sums over.
    pub fn depth(&self) -> usize {
        self.cg * self.kh * self.kw
    }
}

fn check_geometry(op: &str, g: &Conv2dGeometry) -> Result<()> {
    if g.groups == 0 || g.stride.0 * g.stride.1 == 0 || g.dilation.0 * g.dilation.1 == 0 {
        bail!("{op}: groups, strides and dilations are at least 1, not {g:?}")
    }
    Ok(())
}

/// How one axis splits into phases.
struct Axis {
    /// Phases that a tap reads, ascending.
    phases: Vec<usize>,
    /// Of every tap: index into `phases`, and shift within the phase.
    taps: Vec<(usize, usize)>,
    /// Extent of a phase.
    extent: usize,
}

impl Axis {
    fn new(kernel: usize, stride: usize, dilation: usize, out: usize) -> Self {
        let mut phases: Vec<usize> = (0..kernel).map(|k| (k * dilation) % stride).collect();
        phases.sort_unstable();
        phases.dedup();
        let taps: Vec<(usize, usize)> = (0..kernel)
            .map(|k| {
                let at = k * dilation;
                let phase = phases.partition_point(|p| *p < at % stride);
                (phase, at / stride)
            })
            .collect();
        let extent = out + taps.iter().map(|t| t.1).max().unwrap_or(0);
        Self {
            phases,
            taps,
            extent,
        }
    }

    /// Which elements of phase `phase` come from the input (the rest is padding), and where the first one lies there.
    fn inside(
        &self,
        phase: usize,
        stride: usize,
        pad: usize,
        input: usize,
    ) -> (usize, usize, usize) {
        let first = pad.saturating_sub(phase).div_ceil(stride).min(self.extent);
        let end = (input + pad)
            .saturating_sub(phase)
            .div_ceil(stride)
            .min(self.extent);
        let end = end.max(first);
        // first·stride + phase ≥ pad whenever first < end
        let from = (first * stride + phase).saturating_sub(pad);
        (first, end, from)
    }
}

/// The phase-split planes of a convolution's input: where taps lie in them, filling, and summing back.
pub(super) struct Planes {
    rows: Axis,
    columns: Axis,
    shape: ConvShape,
    /// Elements of one channel, all phases.
    pub plane: usize,
    /// Distance of consecutive output rows in a plane.
    pub pitch: usize,
    /// Of each tap (ky, kx) in row-major order: its shift in the channel's plane.
    pub offsets: Vec<usize>,
    /// The plane is the input itself: nothing padded, one phase.
    pub identity: bool,
}

impl Planes {
    pub fn new(shape: &ConvShape) -> Self {
        let rows = Axis::new(shape.kh, shape.stride.0, shape.dilation.0, shape.ho);
        let columns = Axis::new(shape.kw, shape.stride.1, shape.dilation.1, shape.wo);
        let phase = rows.extent * columns.extent;
        let mut offsets = Vec::with_capacity(shape.kh * shape.kw);
        for (row_phase, row) in &rows.taps {
            for (column_phase, column) in &columns.taps {
                offsets.push(
                    (row_phase * columns.phases.len() + column_phase) * phase
                        + row * columns.extent
                        + column,
                );
            }
        }
        Self {
            plane: phase * rows.phases.len() * columns.phases.len(),
            pitch: columns.extent,
            identity: shape.stride == (1, 1)
                && shape.pad == (0, 0)
                && (rows.extent, columns.extent) == (shape.h, shape.w),
            offsets,
            rows,
            columns,
            shape: *shape,
        }
    }

    /// Flat length that covers all output rows at this pitch.
    pub fn length(&self) -> usize {
        match self.shape.ho {
            0 => 0,
            rows => (rows - 1) * self.pitch + self.shape.wo,
        }
    }

    /// Splits the channels of one group into `planes`, padding with zeros.
    pub fn fill(&self, input: &[f32], planes: &mut [f32]) {
        let shape = &self.shape;
        let (sy, sx) = shape.stride;
        for (image, plane) in input
            .chunks_exact(shape.h * shape.w)
            .zip(planes.chunks_exact_mut(self.plane))
        {
            let mut phase_rows = plane.chunks_exact_mut(self.columns.extent);
            for &py in &self.rows.phases {
                let (row0, row1, from_row) = self.rows.inside(py, sy, shape.pad.0, shape.h);
                for &px in &self.columns.phases {
                    let (q0, q1, from) = self.columns.inside(px, sx, shape.pad.1, shape.w);
                    for (r, line) in phase_rows.by_ref().take(self.rows.extent).enumerate() {
                        if r < row0 || r >= row1 || q0 == q1 {
                            line.fill(0.0);
                            continue;
                        }
                        let start = (from_row + (r - row0) * sy) * shape.w;
                        let source = &image[start + from..start + shape.w];
                        line[..q0].fill(0.0);
                        line[q1..].fill(0.0);
                        if sx == 1 {
                            line[q0..q1].copy_from_slice(&source[..q1 - q0]);
                        } else {
                            for (d, s) in line[q0..q1].iter_mut().zip(source.iter().step_by(sx)) {
                                *d = *s;
                            }
                        }
                    }
                }
            }
        }
    }

    /// The way back: puts the planes' inner elements where they came from. `input` was zero; what no tap reads stays so.
    pub fn empty(&self, planes: &[f32], input: &mut [f32]) {
        let shape = &self.shape;
        let (sy, sx) = shape.stride;
        for (image, plane) in input
            .chunks_exact_mut(shape.h * shape.w)
            .zip(planes.chunks_exact(self.plane))
        {
            let mut phase_rows = plane.chunks_exact(self.columns.extent);
            for &py in &self.rows.phases {
                let (row0, row1, from_row) = self.rows.inside(py, sy, shape.pad.0, shape.h);
                for &px in &self.columns.phases {
                    let (q0, q1, from) = self.columns.inside(px, sx, shape.pad.1, shape.w);
                    for (r, line) in phase_rows.by_ref().take(self.rows.extent).enumerate() {
                        if r < row0 || r >= row1 || q0 == q1 {
                            continue;
                        }
                        let start = (from_row + (r - row0) * sy) * shape.w;
                        let target = &mut image[start + from..start + shape.w];
                        if sx == 1 {
                            target[..q1 - q0].copy_from_slice(&line[q0..q1]);
                        } else {
                            for (d, s) in target.iter_mut().step_by(sx).zip(&line[q0..q1]) {
                                *d = *s;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Taps by the phase they read: (start of the phase in a plane, its taps as (tap, shift within the phase)).
    pub fn by_phase(&self) -> Vec<(usize, Vec<(usize, usize)>)> {
        let phase = self.phase();
        let mut phases = vec![Vec::new(); self.plane / phase];
        for (tap, offset) in self.offsets.iter().enumerate() {
            phases[offset / phase].push((tap, offset % phase));
        }
        (0..).step_by(phase).zip(phases).collect()
    }

    /// Elements of one phase of one channel.
    pub fn phase(&self) -> usize {
        self.rows.extent * self.columns.extent
    }

    /// The planes of one group of an image: the image itself where nothing needs padding.
    pub fn of<'a>(&self, input: &'a [f32], buffer: &'a mut Vec<f32>) -> &'a [f32] {
        if self.identity {
            return input;
        }
        let planes = sized(buffer, self.shape.cg * self.plane);
        self.fill(input, planes);
        planes
    }
}

/// Spreads rows of `wo` elements to rows at `pitch`, zeros between: what an output's gradient looks like beside the planes.
pub(super) fn widen(rows: &[f32], wo: usize, pitch: usize, wide: &mut [f32]) {
    for (line, row) in wide.chunks_mut(pitch).zip(rows.chunks_exact(wo)) {
        line[..wo].copy_from_slice(row);
        line[wo..].fill(0.0);
    }
}
