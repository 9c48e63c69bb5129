//! Shapes of operators that select, count or reduce along axes.

use super::{Cx, Info, Int, MOST_ITEMS, axis_index};
use crate::graph::{Dim, ElementType, ReduceOp, TensorData};

pub(super) fn shape(cx: &Cx<'_>, start: Option<i64>, end: Option<i64>) -> Info {
    let items = cx.input(0).shape.as_ref().map(|s| {
        let rank = s.len() as i64;
        let clamp = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank);
        let (start, end) = (clamp(start.unwrap_or(0)), clamp(end.unwrap_or(rank)));
        s.iter()
            .skip(start as usize)
            .take((end - start).max(0) as usize)
            .map(Int::of)
            .collect::<Vec<_>>()
    });
    let length = items.as_ref().map_or(Dim::Unknown, |i| Dim::Known(i.len()));
    Info::new(Some(ElementType::I64), Some(vec![length])).with_items(items)
}

pub(super) fn gather(cx: &Cx<'_>, axis: i64) -> Info {
    let (data, indices) = (cx.input(0), cx.input(1));
    let shape = (|| {
        let (d, i) = (data.shape.as_ref()?, indices.shape.as_ref()?);
        let axis = axis_index(axis, d.len())?;
        let parts = d[..axis].iter().chain(i).chain(&d[axis + 1..]);
        Some(parts.cloned().collect())
    })();
    let items = (|| {
        let from = data.items.as_ref().filter(|_| data.rank() == Some(1))?;
        let pick = |i: i64| axis_index(i, from.len()).map(|i| from[i].clone());
        indices.known_items()?.into_iter().map(pick).collect()
    })();
    Info::new(data.element, shape).with_items(items)
}

/// Result of cutting one axis.
struct Cut {
    start: i64,
    step: i64,
    count: usize,
}

/// `start..end` by `step` over an extent, as ONNX clamps them.
fn cut(extent: usize, start: i64, end: i64, step: i64) -> Option<Cut> {
    let n = i64::try_from(extent).ok()?;
    let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
    let (start, end) = if step > 0 {
        (wrap(start).clamp(0, n), wrap(end).clamp(0, n))
    } else if step < 0 {
        (
            wrap(start).clamp(0, (n - 1).max(0)),
            wrap(end).clamp(-1, n - 1),
        )
    } else {
        return None;
    };
    let span = if step > 0 { end - start } else { start - end };
    let count = if span <= 0 || n == 0 {
        0
    } else {
        (span as u64).div_ceil(step.unsigned_abs()) as usize
    };
    Some(Cut { start, step, count })
}

pub(super) fn slice(cx: &Cx<'_>) -> Info {
    let x = cx.input(0);
    let Some(s) = &x.shape else {
        return Info::new(x.element, None);
    };
    let starts = &cx.input(1).items;
    let ends = &cx.input(2).items;
    let length = starts.as_ref().or(ends.as_ref()).map(Vec::len);
    let axes: Option<Vec<usize>> = if cx.has(3) {
        cx.input(3)
            .known_items()
            .and_then(|a| a.into_iter().map(|a| axis_index(a, s.len())).collect())
    } else {
        length.filter(|&n| n <= s.len()).map(|n| (0..n).collect())
    };
    let Some(axes) = axes else {
        return Info::new(x.element, Some(vec![Dim::Unknown; s.len()]));
    };
    let at = |items: &Option<Vec<Int>>, i: usize| {
        items.as_ref().and_then(|v| v.get(i)).and_then(Int::known)
    };
    let steps = &cx.input(4).items;
    let mut out = s.clone();
    let mut items = x.items.clone().filter(|_| axes.is_empty());
    for (i, &axis) in axes.iter().enumerate() {
        let step = if cx.has(4) { at(steps, i) } else { Some(1) };
        let (start, end) = (at(starts, i), at(ends, i));
        out[axis] = match (&s[axis], start, end, step) {
            (Dim::Known(n), Some(start), Some(end), Some(step)) => {
                match cut(*n, start, end, step) {
                    Some(cut) => {
                        if s.len() == 1 {
                            items = picked(x.items.as_ref(), &cut);
                        }
                        Dim::Known(cut.count)
                    }
                    None => Dim::Unknown,
                }
            }
            // The whole of an extent of unknown size.
            (d, Some(0), Some(end), Some(1)) if end >= i64::from(i32::MAX) => d.clone(),
            _ => Dim::Unknown,
        };
    }
    Info::new(x.element, Some(out)).with_items(items)
}

fn picked(items: Option<&Vec<Int>>, cut: &Cut) -> Option<Vec<Int>> {
    let items = items?;
    (0..cut.count)
        .map(|k| {
            let at = i64::try_from(k)
                .ok()?
                .checked_mul(cut.step)?
                .checked_add(cut.start)?;
            items.get(usize::try_from(at).ok()?).cloned()
        })
        .collect()
}

pub(super) fn split(cx: &Cx<'_>, axis: i64, num_outputs: Option<usize>) -> Vec<Info> {
    let x = cx.input(0);
    let count = cx.node.outputs.len();
    let Some((s, axis)) = x
        .shape
        .as_ref()
        .and_then(|s| Some((s, axis_index(axis, s.len())?)))
    else {
        return vec![Info::new(x.element, None); count];
    };
    let sizes: Vec<Dim> = if cx.has(1) {
        let items = cx.input(1).items.as_ref().filter(|i| i.len() == count);
        items.map_or(vec![Dim::Unknown; count], |i| {
            i.iter().map(Int::to_dim).collect()
        })
    } else {
        let parts = num_outputs.unwrap_or(count).max(1);
        match s[axis].known() {
            // Equal parts, the last one smaller where it doesn't come out even.
            Some(n) => {
                let part = n.div_ceil(parts);
                (0..count)
                    .map(|i| Dim::Known(part.min(n.saturating_sub(part.saturating_mul(i)))))
                    .collect()
            }
            None => vec![Dim::Unknown; count],
        }
    };
    let mut from = 0usize;
    sizes
        .into_iter()
        .map(|size| {
            let mut shape = s.clone();
            let items = (|| {
                let all = x.items.as_ref().filter(|_| s.len() == 1)?;
                let end = from.checked_add(size.known()?)?;
                let part = all.get(from..end)?.to_vec();
                from = end;
                Some(part)
            })();
            shape[axis] = size;
            Info::new(x.element, Some(shape)).with_items(items)
        })
        .collect()
}

/// Shape after reducing `axes` (all where `None`).
pub(super) fn reduced(x: &Info, axes: Option<&[i64]>, keep_dims: bool) -> Option<Vec<Dim>> {
    let s = x.shape.as_ref()?;
    let axes: Vec<usize> = match axes {
        Some(axes) => axes
            .iter()
            .map(|&a| axis_index(a, s.len()))
            .collect::<Option<_>>()?,
        None => (0..s.len()).collect(),
    };
    let keep = |(i, d): (usize, &Dim)| match (axes.contains(&i), keep_dims) {
        (false, _) => Some(d.clone()),
        (true, true) => Some(Dim::Known(1)),
        (true, false) => None,
    };
    Some(s.iter().enumerate().filter_map(keep).collect())
}

pub(super) fn reduce(cx: &Cx<'_>, op: ReduceOp, keep_dims: bool, noop: bool) -> Info {
    let x = cx.input(0);
    let axes = match cx.has(1) {
        false => Some(vec![]),
        true => cx.input(1).known_items(),
    };
    let shape = match &axes {
        Some(axes) if axes.is_empty() && noop => return cx.same(),
        Some(axes) if axes.is_empty() => reduced(x, None, keep_dims),
        Some(axes) => reduced(x, Some(axes), keep_dims),
        // Which axes isn't known; how many remain is, if all are kept.
        None if keep_dims => x.rank().map(|r| vec![Dim::Unknown; r]),
        None => None,
    };
    let items = (|| {
        let all = x.known_items().filter(|_| x.rank() == Some(1))?;
        let result = match op {
            ReduceOp::Prod => all.into_iter().try_fold(1i64, i64::checked_mul)?,
            ReduceOp::Sum => all.into_iter().try_fold(0i64, i64::checked_add)?,
            ReduceOp::Max => all.into_iter().max()?,
            ReduceOp::Min => all.into_iter().min()?,
            _ => return None,
        };
        Some(vec![Int::Known(result)])
    })();
    Info::new(x.element, shape).with_items(items)
}

pub(super) fn constant_of_shape(cx: &Cx<'_>, value: &TensorData) -> Info {
    let target = cx.input(0);
    let shape: Option<Vec<Dim>> = match (&target.items, target.shape.as_deref()) {
        (Some(items), _) => Some(items.iter().map(Int::to_dim).collect()),
        (None, Some([Dim::Known(rank)])) if *rank <= super::MOST_AXES => {
            Some(vec![Dim::Unknown; *rank])
        }
        _ => None,
    };
    let items = (|| {
        let dims: Vec<usize> = shape
            .as_ref()?
            .iter()
            .map(Dim::known)
            .collect::<Option<_>>()?;
        let count = crate::graph::checked_len(&dims).filter(|&n| n <= MOST_ITEMS)?;
        if value.element.is_float() {
            return None;
        }
        let fill = *value.to_i64_vec().first()?;
        Some(vec![Int::Known(fill); count])
    })();
    Info::new(Some(value.element), shape).with_items(items)
}

pub(super) fn range(cx: &Cx<'_>) -> Info {
    let known = |i: usize| cx.input(i).known_items().and_then(|v| v.first().copied());
    let integer = cx.element().is_some_and(|e| !e.is_float());
    let symbolic = match (known(0), cx.input(1).items.as_deref(), known(2)) {
        // Range(0, n, 1) has n elements, known or not.
        (Some(0), Some([limit]), Some(1)) if integer => limit.to_dim(),
        _ => Dim::Unknown,
    };
    let parts = (|| {
        let (start, limit, step) = (known(0)?, known(1)?, known(2)?);
        let span = limit.checked_sub(start)?;
        if step == 0 {
            return None;
        }
        let count = if (span > 0) == (step > 0) && span != 0 {
            usize::try_from(span.unsigned_abs().div_ceil(step.unsigned_abs())).ok()?
        } else {
            0
        };
        Some((start, step, count))
    })()
    .filter(|_| integer);
    let length = parts.map_or(symbolic, |(_, _, n)| Dim::Known(n));
    let items = parts
        .filter(|p| p.2 <= MOST_ITEMS)
        .and_then(|(start, step, n)| {
            (0..n as i64)
                .map(|i| i.checked_mul(step)?.checked_add(start).map(Int::Known))
                .collect::<Option<Vec<_>>>()
        });
    Info::new(cx.element(), Some(vec![length])).with_items(items)
}
