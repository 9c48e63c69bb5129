//! Shapes of operators that rearrange: reshapes, transposes, concatenation, matrix products.

use super::{Cx, Info, Int, axis_index, broadcast, merge, product};
use crate::graph::Dim;

pub(super) fn gemm(cx: &Cx<'_>, trans_a: bool, trans_b: bool) -> Info {
    let side = |info: &Info, at: usize| match info.shape.as_deref() {
        Some([_, _]) => info.shape.as_ref().and_then(|s| s.get(at).cloned()),
        _ => None,
    };
    let m = side(cx.input(0), usize::from(trans_a));
    let n = side(cx.input(1), usize::from(!trans_b));
    let shape = vec![m.unwrap_or(Dim::Unknown), n.unwrap_or(Dim::Unknown)];
    Info::new(cx.element(), Some(shape))
}

pub(super) fn matmul(cx: &Cx<'_>) -> Info {
    let shape = (|| {
        let (a, b) = (cx.input(0).shape.as_ref()?, cx.input(1).shape.as_ref()?);
        let (batch_a, row) = match a.len() {
            0 => return None,
            1 => (vec![], None),
            n => (a[..n - 2].to_vec(), Some(a[n - 2].clone())),
        };
        let (batch_b, column) = match b.len() {
            0 => return None,
            1 => (vec![], None),
            n => (b[..n - 2].to_vec(), Some(b[n - 1].clone())),
        };
        let mut out = broadcast(&[Some(&batch_a), Some(&batch_b)])?;
        out.extend(row);
        out.extend(column);
        Some(out)
    })();
    Info::new(cx.element().or(cx.input(1).element), shape)
}

pub(super) fn concat(cx: &Cx<'_>, axis: i64) -> Info {
    let shape = (|| {
        let mut shapes = cx.inputs().map(|i| i.shape.as_ref());
        let mut out = shapes.next()??.clone();
        let axis = axis_index(axis, out.len())?;
        for shape in shapes {
            let shape = shape.filter(|s| s.len() == out.len())?;
            for (i, (slot, dim)) in out.iter_mut().zip(shape).enumerate() {
                *slot = if i == axis {
                    match (slot.known(), dim.known()) {
                        (Some(a), Some(b)) => a.checked_add(b).map_or(Dim::Unknown, Dim::Known),
                        (Some(0), _) => dim.clone(),
                        (_, Some(0)) => slot.clone(),
                        _ => Dim::Unknown,
                    }
                } else {
                    merge(slot, dim)
                };
            }
        }
        Some(out)
    })();
    let items = (|| {
        let mut out = Vec::new();
        for info in cx.inputs() {
            // A vector whose elements nobody knows still has a length.
            match (&info.items, info.shape.as_deref()) {
                (Some(items), Some([_])) => out.extend(items.iter().cloned()),
                (None, Some([Dim::Known(n)])) if *n <= super::MOST_ITEMS => {
                    out.resize(out.len() + n, Int::Unknown);
                }
                _ => return None,
            }
            if out.len() > super::MOST_ITEMS {
                return None;
            }
        }
        Some(out)
    })();
    Info::new(cx.element(), shape).with_items(items)
}

pub(super) fn reshape(cx: &Cx<'_>, allow_zero: bool) -> Info {
    let (x, target) = (cx.input(0), cx.input(1));
    let shape = match &target.items {
        Some(items) => Some(reshaped(x.shape.as_deref(), items, allow_zero)),
        // Without the numbers the rank may still be known.
        None => match target.shape.as_deref() {
            Some([Dim::Known(rank)]) if *rank <= super::MOST_AXES => {
                Some(vec![Dim::Unknown; *rank])
            }
            _ => None,
        },
    };
    Info::new(x.element, shape).with_items(x.items.clone())
}

fn reshaped(from: Option<&[Dim]>, target: &[Int], allow_zero: bool) -> Vec<Dim> {
    let mut out: Vec<Dim> = target
        .iter()
        .enumerate()
        .map(|(i, item)| match item {
            Int::Known(0) if !allow_zero => {
                from.and_then(|s| s.get(i)).cloned().unwrap_or(Dim::Unknown)
            }
            other => other.to_dim(),
        })
        .collect();
    let mut rests = target
        .iter()
        .enumerate()
        .filter(|(_, t)| **t == Int::Known(-1))
        .map(|(i, _)| i);
    let unknown = target.iter().filter(|t| **t == Int::Unknown).count();
    // One open extent, whether written as −1 or merely not known, is what remains of the elements.
    let open = match (rests.next(), rests.next(), unknown) {
        (Some(i), None, 0) => Some(i),
        (None, None, 1) => target.iter().position(|t| *t == Int::Unknown),
        _ => None,
    };
    if let (Some(open), Some(from)) = (open, from) {
        let mut left: Vec<Dim> = from.to_vec();
        let mut divisor = 1usize;
        for (i, dim) in out.iter().enumerate().filter(|(i, _)| *i != open) {
            match dim {
                Dim::Known(n) => match divisor.checked_mul(*n) {
                    Some(n) => divisor = n,
                    None => return out,
                },
                Dim::Symbol(_) => match left.iter().position(|d| d == dim) {
                    Some(at) => {
                        left.remove(at);
                    }
                    None => return out,
                },
                // A zero that copies an unknown extent cancels it.
                Dim::Unknown if target[i] == Int::Known(0) && from.get(i) == Some(dim) => {
                    match left.iter().position(|d| *d == Dim::Unknown) {
                        Some(at) => {
                            left.remove(at);
                        }
                        None => return out,
                    }
                }
                Dim::Unknown => return out,
            }
        }
        out[open] = quotient(&left, divisor);
    }
    out
}

/// Product of `dims` divided by `divisor`, where it comes out even.
fn quotient(dims: &[Dim], divisor: usize) -> Dim {
    let (known, open): (Vec<Dim>, Vec<Dim>) =
        dims.iter().cloned().partition(|d| d.known().is_some());
    let Dim::Known(known) = product(&known) else {
        return Dim::Unknown;
    };
    if divisor == 0 || known % divisor != 0 {
        return Dim::Unknown;
    }
    let mut all = open;
    all.push(Dim::Known(known / divisor));
    product(&all)
}

pub(super) fn flatten(cx: &Cx<'_>, axis: i64) -> Info {
    let shape = cx.input(0).shape.as_ref().and_then(|s| {
        let rank = i64::try_from(s.len()).ok()?;
        let axis = if axis < 0 {
            axis.checked_add(rank)?
        } else {
            axis
        };
        let at = usize::try_from(axis).ok().filter(|&a| a <= s.len())?;
        Some(vec![product(&s[..at]), product(&s[at..])])
    });
    Info::new(
        cx.element(),
        Some(shape.unwrap_or_else(|| vec![Dim::Unknown; 2])),
    )
}

pub(super) fn transpose(cx: &Cx<'_>, perm: Option<&[usize]>) -> Info {
    let x = cx.input(0);
    let shape = x.shape.as_ref().and_then(|s| match perm {
        None => Some(s.iter().rev().cloned().collect()),
        Some(p) if p.len() != s.len() => None,
        Some(p) => p.iter().map(|&i| s.get(i).cloned()).collect(),
    });
    let items = x.items.clone().filter(|_| x.rank().is_some_and(|r| r <= 1));
    Info::new(x.element, shape).with_items(items)
}

pub(super) fn squeeze(cx: &Cx<'_>) -> Info {
    let x = cx.input(0);
    let shape = x.shape.as_ref().and_then(|s| {
        let drop: Vec<usize> = if cx.has(1) {
            let axes = cx.input(1).known_items()?;
            axes.into_iter()
                .map(|a| axis_index(a, s.len()))
                .collect::<Option<_>>()?
        } else {
            if s.iter().any(|d| d.known().is_none()) {
                return None;
            }
            (0..s.len()).filter(|&i| s[i] == Dim::Known(1)).collect()
        };
        let keep = s.iter().enumerate().filter(|(i, _)| !drop.contains(i));
        Some(keep.map(|(_, d)| d.clone()).collect())
    });
    Info::new(x.element, shape).with_items(x.items.clone())
}

pub(super) fn unsqueeze(cx: &Cx<'_>) -> Info {
    let x = cx.input(0);
    let shape = x.shape.as_ref().and_then(|s| {
        let axes = cx.input(1).known_items()?;
        let rank = s.len() + axes.len();
        let mut new = axes
            .into_iter()
            .map(|a| axis_index(a, rank))
            .collect::<Option<Vec<_>>>()?;
        new.sort_unstable();
        let mut out = s.clone();
        for axis in new {
            if axis > out.len() {
                return None;
            }
            out.insert(axis, Dim::Known(1));
        }
        Some(out)
    });
    Info::new(x.element, shape).with_items(x.items.clone())
}

pub(super) fn expand(cx: &Cx<'_>) -> Info {
    let target: Option<Vec<Dim>> = cx
        .input(1)
        .items
        .as_ref()
        .map(|t| t.iter().map(Int::to_dim).collect());
    let shape = broadcast(&[cx.input(0).shape.as_ref(), target.as_ref()]);
    let items = cx.input(0).items.clone();
    Info::new(cx.element(), shape).with_items(items)
}

pub(super) fn tile(cx: &Cx<'_>) -> Info {
    let shape = cx.input(0).shape.as_ref().map(|s| {
        let repeats = cx.input(1).items.as_ref().filter(|r| r.len() == s.len());
        let times = |(i, d): (usize, &Dim)| match (d, repeats.map(|r| &r[i])) {
            (d, Some(Int::Known(1))) => d.clone(),
            (Dim::Known(1), Some(r)) => r.to_dim(),
            (Dim::Known(n), Some(Int::Known(r))) => usize::try_from(*r)
                .ok()
                .and_then(|r| n.checked_mul(r))
                .map_or(Dim::Unknown, Dim::Known),
            _ => Dim::Unknown,
        };
        s.iter().enumerate().map(times).collect()
    });
    Info::new(cx.element(), shape)
}

pub(super) fn pad(cx: &Cx<'_>) -> Info {
    let shape = cx.input(0).shape.as_ref().map(|s| {
        let axes: Option<Vec<usize>> = if cx.has(3) {
            cx.input(3)
                .known_items()
                .and_then(|a| a.into_iter().map(|a| axis_index(a, s.len())).collect())
        } else {
            Some((0..s.len()).collect())
        };
        let pads = cx.input(1).items.as_ref();
        let (Some(axes), Some(pads)) = (axes, pads) else {
            return vec![Dim::Unknown; s.len()];
        };
        if pads.len() != 2 * axes.len() {
            return vec![Dim::Unknown; s.len()];
        }
        let mut out = s.clone();
        for (i, &axis) in axes.iter().enumerate() {
            out[axis] = match (&s[axis], pads[i].known(), pads[axes.len() + i].known()) {
                (d, Some(0), Some(0)) => d.clone(),
                (Dim::Known(n), Some(begin), Some(end)) => i64::try_from(*n)
                    .ok()
                    .and_then(|n| n.checked_add(begin)?.checked_add(end))
                    .and_then(|n| usize::try_from(n).ok())
                    .map_or(Dim::Unknown, Dim::Known),
                _ => Dim::Unknown,
            };
        }
        out
    });
    Info::new(cx.element(), shape)
}
