//! Sizes of convolutions and windows, checked before anything is allocated by them.

use super::{Conv2dGeometry, host::checked_count, planes::Window2d};
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
        // A padded plane of one image holds at most this much.
        let rows = self
            .ho
            .saturating_mul(self.stride.0)
            .saturating_add(reach(self.kh, self.dilation.0).unwrap_or(usize::MAX));
        let columns = self
            .wo
            .saturating_mul(self.stride.1)
            .saturating_add(reach(self.kw, self.dilation.1).unwrap_or(usize::MAX));
        checked_count(op, &[self.c.max(self.o), rows, columns])?;
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
    pub fn window(&self) -> Window2d {
        Window2d {
            kernel: (self.kh, self.kw),
            stride: self.stride,
            dilation: self.dilation,
            before: self.pad,
            h: self.ho,
            w: self.wo,
        }
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
