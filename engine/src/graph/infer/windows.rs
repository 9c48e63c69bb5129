//! Shapes of convolution, pooling and resizing.

use super::{Cx, Info, Int, axis_index};
use crate::graph::{Dim, Op, Padding, Window};

pub(super) fn windowed(cx: &Cx<'_>) -> Info {
    let x = cx.input(0);
    let shape = x.shape.as_ref().filter(|s| s.len() >= 2).and_then(|s| {
        let weight = |at: usize| {
            cx.input(1)
                .shape
                .as_ref()
                .and_then(|w| w.get(at))
                .cloned()
                .unwrap_or(Dim::Unknown)
        };
        let mut out = vec![s[0].clone()];
        let spatial = &s[2..];
        match &cx.node.op {
            Op::Conv { window, .. } => {
                out.push(weight(0));
                out.extend(each_axis(spatial, window, |d, at| {
                    slid(d, window, at, false)
                })?);
            }
            Op::MaxPool { window, ceil } | Op::AveragePool { window, ceil, .. } => {
                out.push(s[1].clone());
                out.extend(each_axis(spatial, window, |d, at| {
                    slid(d, window, at, *ceil)
                })?);
            }
            Op::ConvTranspose {
                window,
                group,
                output_padding,
                output_shape,
            } => {
                out.push(match weight(1) {
                    Dim::Known(n) => n.checked_mul(*group).map_or(Dim::Unknown, Dim::Known),
                    d if *group == 1 => d,
                    _ => Dim::Unknown,
                });
                match output_shape {
                    Some(stated) if stated.len() == spatial.len() => {
                        out.extend(stated.iter().map(|&n| Dim::Known(n)));
                    }
                    _ => out.extend(each_axis(spatial, window, |d, at| {
                        spread(d, window, output_padding.get(at).copied().unwrap_or(0), at)
                    })?),
                }
            }
            _ => {
                out.push(s[1].clone());
                out.extend(spatial.iter().map(|_| Dim::Known(1)));
            }
        }
        Some(out)
    });
    Info::new(x.element, shape)
}

/// `f` for every spatial axis, where the window has as many.
fn each_axis(spatial: &[Dim], window: &Window, f: impl Fn(&Dim, usize) -> Dim) -> Option<Vec<Dim>> {
    let rank = spatial.len();
    let fits = window.kernel.len() == rank
        && window.strides.len() == rank
        && window.dilations.len() == rank
        && match &window.padding {
            Padding::Explicit(p) => p.len() == 2 * rank,
            _ => true,
        };
    fits.then(|| spatial.iter().enumerate().map(|(at, d)| f(d, at)).collect())
}

/// Extent of the dilated kernel.
fn reach(window: &Window, at: usize) -> Option<usize> {
    window.kernel[at]
        .checked_sub(1)?
        .checked_mul(window.dilations[at])?
        .checked_add(1)
}

/// Positions of a window sliding over an extent (convolution and pooling).
fn slid(dim: &Dim, window: &Window, at: usize, ceil: bool) -> Dim {
    let stride = window.strides[at];
    let Some(reach) = reach(window, at).filter(|_| stride > 0) else {
        return Dim::Unknown;
    };
    let (begin, end) = match &window.padding {
        Padding::SameUpper | Padding::SameLower => {
            return match dim {
                Dim::Known(n) => Dim::Known(n.div_ceil(stride)),
                d if stride == 1 => d.clone(),
                _ => Dim::Unknown,
            };
        }
        Padding::Valid => (0, 0),
        Padding::Explicit(pads) => (pads[at], pads[pads.len() / 2 + at]),
    };
    let Some(n) = dim.known() else {
        // Padding that makes up for the kernel leaves even an unknown extent as it is.
        let keeps = stride == 1 && begin.checked_add(end) == Some(reach - 1);
        return if keeps { dim.clone() } else { Dim::Unknown };
    };
    let count = (|| {
        let span = n.checked_add(begin)?.checked_add(end)?.checked_sub(reach)?;
        let mut count = span / stride + 1;
        // A last, partial window counts unless it starts in the padding at the end.
        if ceil && span % stride != 0 && count.checked_mul(stride)? < n.checked_add(begin)? {
            count += 1;
        }
        Some(count)
    })();
    count.map_or(Dim::Unknown, Dim::Known)
}

/// Extent that a transposed convolution gives.
fn spread(dim: &Dim, window: &Window, extra: usize, at: usize) -> Dim {
    let stride = window.strides[at];
    let extent = (|| {
        let n = dim.known()?;
        match &window.padding {
            Padding::SameUpper | Padding::SameLower => n.checked_mul(stride),
            padding => {
                let pads = match padding {
                    Padding::Explicit(p) => p[at].checked_add(p[p.len() / 2 + at])?,
                    _ => 0,
                };
                n.checked_sub(1)?
                    .checked_mul(stride)?
                    .checked_add(extra)?
                    .checked_add(reach(window, at)?)?
                    .checked_sub(pads)
            }
        }
    })();
    extent.map_or(Dim::Unknown, Dim::Known)
}

pub(super) fn resize(cx: &Cx<'_>, axes: Option<&[i64]>) -> Info {
    let x = cx.input(0);
    let Some(s) = &x.shape else {
        return Info::new(x.element, None);
    };
    let axes: Option<Vec<usize>> = match axes {
        Some(axes) => axes.iter().map(|&a| axis_index(a, s.len())).collect(),
        None => Some((0..s.len()).collect()),
    };
    let stretched = matches!(&cx.node.op, Op::Resize { keep_aspect, .. } if keep_aspect.is_none());
    let mut out = vec![Dim::Unknown; s.len()];
    if let Some(axes) = axes {
        for (i, dim) in s.iter().enumerate() {
            if !axes.contains(&i) {
                out[i] = dim.clone();
            }
        }
        if let Some(sizes) = cx.input(3).items.as_ref().filter(|v| v.len() == axes.len()) {
            if stretched {
                for (&axis, size) in axes.iter().zip(sizes) {
                    out[axis] = Int::to_dim(size);
                }
            }
        } else if let Some(scales) = cx
            .input(2)
            .floats
            .as_ref()
            .filter(|v| v.len() == axes.len())
        {
            for (&axis, &scale) in axes.iter().zip(scales) {
                out[axis] = match &s[axis] {
                    d if scale == 1.0 => d.clone(),
                    Dim::Known(n) if scale > 0.0 => {
                        let size = (*n as f64 * f64::from(scale)).floor();
                        if size < 1e15 {
                            Dim::Known(size as usize)
                        } else {
                            Dim::Unknown
                        }
                    }
                    _ => Dim::Unknown,
                };
            }
        }
    }
    Info::new(x.element, Some(out))
}
