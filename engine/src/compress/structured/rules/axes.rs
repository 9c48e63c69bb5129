//! Operators that put channels elsewhere, beside each other or apart.

use super::{
    super::trace::{Rewrite, Trace},
    along, input, output, place, said,
};
use crate::graph::{Node, Op, ValueId};

/// Said of axes that [`Trace::is_folded`] holds for.
const FOLDED: &str = "works along it, which counts samples too";

pub(super) fn concat(t: &mut Trace, node: &Node, axis: i64) {
    let Some(y) = output(node) else { return };
    let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
    let Some(rank) = t.shape(y).map(<[usize]>::len) else {
        return t.fix_inputs(node, &said(node, "has inputs of unknown shape"));
    };
    let Some(along_axis) = place(axis, rank) else {
        return t.fix_inputs(node, &said(node, "has no such axis"));
    };
    for a in 0..rank {
        if a != along_axis {
            let parts: Vec<(ValueId, usize)> = inputs.iter().map(|v| (*v, rank)).collect();
            along(t, node, &parts, a, rank, y);
            continue;
        }
        if inputs.iter().all(|v| t.axis(*v, a).is_none()) {
            continue;
        }
        let why = said(node, FOLDED);
        let folded: Vec<bool> = (inputs.iter().map(|v| t.fix_folded(*v, a, &why))).collect();
        if folded.contains(&true) {
            t.fix_inputs(node, &why);
            continue;
        }
        let mut all = Vec::new();
        for value in &inputs {
            match t.axis(*value, a) {
                Some(units) => all.extend_from_slice(&units),
                None => {
                    let Some(n) = t.shape(*value).map(|s| s[a]) else {
                        return t.fix_inputs(node, &said(node, "has inputs of unknown shape"));
                    };
                    let units = t.labels.fresh(n);
                    let name = t.graph.value(*value).name.clone();
                    t.fix(&units, &format!("{name} has channels that stay"));
                    all.extend_from_slice(&units);
                }
            }
        }
        t.label(Some(y), a, all.into());
    }
    for value in inputs {
        if t.is_constant(value) {
            t.used(value);
        }
    }
}

pub(super) fn split(t: &mut Trace, index: usize, node: &Node, axis: i64) {
    let Some(x) = input(node, 0) else { return };
    let Some(rank) = t.shape(x).map(<[usize]>::len) else {
        return t.fix_value(x, &said(node, "has an input of unknown shape"));
    };
    let Some(along) = place(axis, rank) else {
        return t.fix_value(x, &said(node, "has no such axis"));
    };
    for (axis, units) in t.labels.of(x) {
        if axis != along {
            for y in node.outputs.iter().flatten() {
                t.label(Some(*y), axis, units.clone());
            }
            continue;
        }
        if t.fix_folded(x, axis, &said(node, FOLDED)) {
            continue;
        }
        let sizes: Option<Vec<usize>> = node
            .outputs
            .iter()
            .map(|y| t.shape((*y)?)?.get(axis).copied())
            .collect();
        let Some(sizes) = sizes.filter(|s| s.iter().sum::<usize>() == units.len()) else {
            t.fix(
                &units,
                &said(node, "cuts it at places not known beforehand"),
            );
            continue;
        };
        let mut start = 0;
        for (y, n) in node.outputs.iter().zip(sizes) {
            t.label(*y, axis, units[start..start + n].into());
            start += n;
        }
        t.rewrite(index, Rewrite::Split { axis });
    }
}

pub(super) fn slice(t: &mut Trace, index: usize, node: &Node) {
    let Some(x) = input(node, 0) else { return };
    let labelled = t.labels.of(x);
    if labelled.is_empty() {
        return;
    }
    let Some(shape) = t.shape(x).map(<[usize]>::to_vec) else {
        return t.fix_value(x, &said(node, "has an input of unknown shape"));
    };
    let starts = t.integers(input(node, 1));
    let ends = t.integers(input(node, 2));
    let axes: Option<Vec<usize>> = match input(node, 3) {
        Some(axes) => t
            .integers(Some(axes))
            .and_then(|a| a.into_iter().map(|a| place(a, shape.len())).collect()),
        None => starts.as_ref().map(|s| (0..s.len()).collect()),
    };
    let steps = match input(node, 4) {
        Some(steps) => t.integers(Some(steps)),
        None => axes.as_ref().map(|a| vec![1; a.len()]),
    };
    let Some(axes) = axes else {
        return t.fix_value(x, &said(node, "cuts along axes that are computed"));
    };
    for (axis, units) in labelled {
        let Some(position) = axes.iter().position(|a| *a == axis) else {
            t.label(output(node), axis, units);
            continue;
        };
        if t.fix_folded(x, axis, &said(node, FOLDED)) {
            continue;
        }
        let at = |list: &Option<Vec<i64>>| list.as_ref().and_then(|l| l.get(position)).copied();
        let (Some(start), Some(end), Some(1)) = (at(&starts), at(&ends), at(&steps)) else {
            t.fix(
                &units,
                &said(node, "cuts it at computed places or in steps"),
            );
            continue;
        };
        let n = shape[axis] as i64;
        let clamp = |v: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(0, n) as usize;
        let (start, end) = (clamp(start), clamp(end));
        t.label(output(node), axis, units[start..end.max(start)].into());
        t.rewrite(
            index,
            Rewrite::Slice {
                axis,
                position,
                start,
                end,
            },
        );
    }
}

pub(super) fn gather(t: &mut Trace, index: usize, node: &Node, axis: i64) {
    let (Some(x), Some(i), Some(y)) = (input(node, 0), input(node, 1), output(node)) else {
        return;
    };
    t.fix_value(i, &said(node, "takes it as indices"));
    let labelled = t.labels.of(x);
    let (Some(rank), Some(index_rank)) = (
        t.shape(x).map(<[usize]>::len),
        t.shape(i).map(<[usize]>::len),
    ) else {
        return t.fix_value(x, &said(node, "has inputs of unknown shape"));
    };
    let Some(along) = place(axis, rank) else {
        return t.fix_value(x, &said(node, "has no such axis"));
    };
    for (axis, units) in labelled {
        if axis != along {
            let to = if axis < along {
                axis
            } else {
                axis + index_rank - 1
            };
            t.label(Some(y), to, units);
            continue;
        }
        if t.fix_folded(x, axis, &said(node, FOLDED)) {
            continue;
        }
        let n = units.len() as i64;
        let picked: Option<Vec<u32>> =
            t.integers(Some(i))
                .filter(|_| index_rank == 1)
                .and_then(|all| {
                    all.into_iter()
                        .map(|i| units.get(usize::try_from(if i < 0 { i + n } else { i }).ok()?))
                        .map(|u| u.copied())
                        .collect()
                });
        match picked {
            Some(picked) => {
                t.label(Some(y), axis, picked.into());
                t.rewrite(index, Rewrite::Gather { axis });
            }
            None => t.fix(&units, &said(node, "picks channels by computed indices")),
        }
    }
}

/// Spread along an axis, everything is the same at each index: any may go with what it is combined with, such as the mask of every head.
pub(super) fn expand(t: &mut Trace, index: usize, node: &Node) {
    let (Some(x), Some(y)) = (input(node, 0), output(node)) else {
        return;
    };
    let (Some(from), Some(to)) = (
        t.shape(x).map(<[usize]>::to_vec),
        t.shape(y).map(<[usize]>::to_vec),
    ) else {
        return t.fix_value(x, &said(node, "has a shape that is not known beforehand"));
    };
    let Some(target) = input(node, 1).filter(|v| t.shape(*v) == Some(&[to.len()])) else {
        return t.fix_value(x, &said(node, "has a target of fewer axes"));
    };
    for (axis, extent) in to.iter().enumerate() {
        let own = (axis + from.len()).checked_sub(to.len());
        let units = own.and_then(|own| t.axis(x, own));
        let spread = own.is_none_or(|own| from[own] == 1 && t.is_constant_extent(x, own));
        match units {
            Some(units) if spread && *extent > 1 => {
                t.fix(&units, &said(node, "spreads it over other channels"));
            }
            Some(units) => t.label(Some(y), axis, units),
            None if spread && *extent > 1 && t.is_constant_extent(y, axis) => {
                let counted = t.counted(target, axis);
                let units = counted.unwrap_or_else(|| t.labels.fresh(*extent));
                t.label(Some(y), axis, units);
            }
            None => {}
        }
    }
    t.rewrite(index, Rewrite::Target);
}

/// Transpose, Squeeze, Unsqueeze: axes change places.
pub(super) fn moved(t: &mut Trace, node: &Node) {
    let (Some(x), Some(y)) = (input(node, 0), output(node)) else {
        return;
    };
    let (Some(shape), Some(out_rank)) = (
        t.shape(x).map(<[usize]>::to_vec),
        t.shape(y).map(<[usize]>::len),
    ) else {
        return t.fix_value(x, &said(node, "has an input of unknown shape"));
    };
    let rank = shape.len();
    // For every axis of the output, the input's.
    let from: Vec<Option<usize>> = match &node.op {
        Op::Transpose { perm: Some(perm) } => perm.iter().map(|p| Some(*p)).collect(),
        Op::Transpose { perm: None } => (0..rank).rev().map(Some).collect(),
        op => {
            let squeeze = matches!(op, Op::Squeeze);
            let named: Option<Vec<usize>> = match input(node, 1) {
                Some(axes) => t.integers(Some(axes)).and_then(|a| {
                    a.into_iter()
                        .map(|a| place(a, if squeeze { rank } else { out_rank }))
                        .collect()
                }),
                None if squeeze => Some((0..rank).filter(|a| shape[*a] == 1).collect()),
                None => None,
            };
            let Some(named) = named else {
                return t.fix_value(x, &said(node, "changes axes that are computed"));
            };
            if squeeze {
                (0..rank).filter(|a| !named.contains(a)).map(Some).collect()
            } else {
                let mut next = 0..rank;
                (0..out_rank)
                    .map(|a| {
                        if named.contains(&a) {
                            None
                        } else {
                            next.next()
                        }
                    })
                    .collect()
            }
        }
    };
    for (axis, units) in t.labels.of(x) {
        match from.iter().position(|f| *f == Some(axis)) {
            Some(to) => t.label(Some(y), to, units),
            None => t.fix(&units, &said(node, "takes its axis away")),
        }
    }
}

pub(super) fn pad(t: &mut Trace, node: &Node) {
    let Some(x) = input(node, 0) else { return };
    let labelled = t.labels.of(x);
    let rank = t.shape(x).map_or(0, <[usize]>::len);
    let axes: Option<Vec<usize>> = match input(node, 3) {
        Some(axes) => t
            .integers(Some(axes))
            .and_then(|a| a.into_iter().map(|a| place(a, rank)).collect()),
        None => Some((0..rank).collect()),
    };
    let pads = t.integers(input(node, 1));
    for (axis, units) in labelled {
        let padded = match (&pads, &axes) {
            (Some(pads), Some(axes)) => axes.iter().position(|a| *a == axis).is_some_and(|i| {
                pads.get(i).copied().unwrap_or(1) != 0
                    || pads.get(i + axes.len()).copied().unwrap_or(1) != 0
            }),
            _ => true,
        };
        if padded {
            t.fix(&units, &said(node, "adds channels beside it"));
        } else {
            t.label(output(node), axis, units);
        }
    }
}

pub(super) fn resize(t: &mut Trace, index: usize, node: &Node, axes: Option<&[i64]>) {
    let (Some(x), Some(y)) = (input(node, 0), output(node)) else {
        return;
    };
    let rank = t.shape(x).map_or(0, <[usize]>::len);
    for (axis, units) in t.labels.of(x) {
        let same = t.shape(y).and_then(|s| s.get(axis)) == Some(&units.len());
        let position = match axes {
            Some(axes) => axes.iter().position(|a| place(*a, rank) == Some(axis)),
            None => Some(axis),
        };
        let fits = match (position, input(node, 3)) {
            _ if !same => false,
            (None, _) | (_, None) => true,
            (Some(position), Some(sizes)) => {
                let constant = t.integers(Some(sizes)).is_some();
                if constant {
                    t.rewrite(index, Rewrite::Sizes { axis, position });
                }
                constant
            }
        };
        if fits {
            t.label(Some(y), axis, units);
        } else {
            t.fix(&units, &said(node, "scales along it"));
        }
    }
}
