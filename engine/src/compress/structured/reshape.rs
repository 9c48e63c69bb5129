//! Reshape and Flatten: an axis of channels may be merged with others (Flatten) or come apart (channel shuffle, heads).

use super::{
    Attention,
    labels::{Axis, Unit},
    trace::{Rewrite, Trace},
};
use crate::graph::{Node, Op, ValueId};
use std::{collections::BTreeSet, ops::Range};

/// Elements of a block of axes that is followed index by index; larger ones stay.
const MOST: usize = 1 << 24;

pub(super) fn reshape(t: &mut Trace, index: usize, node: &Node) {
    let (Some(&Some(x)), Some(&Some(y))) = (node.inputs.first(), node.outputs.first()) else {
        return;
    };
    let labelled = t.labels.of(x);
    if labelled.is_empty() {
        return;
    }
    let said = |what: &str| format!("{} ({}) {what}", node.name, node.op.name());
    let (Some(from), Some(to)) = (
        t.shape(x).map(<[usize]>::to_vec),
        t.shape(y).map(<[usize]>::to_vec),
    ) else {
        return t.fix_value(x, &said("has a shape that is not known beforehand"));
    };
    let Some(blocks) = paired(t, x, y) else {
        return t.fix_value(x, &said("mixes axes"));
    };
    let is_reshape = matches!(node.op, Op::Reshape { .. });
    if is_reshape && !keeps_open(t, node, y) {
        return t.fix_value(
            x,
            &said("has several extents that are not known beforehand"),
        );
    }
    let heads = match t.attention {
        Attention::Heads => heads(t, y, to.len()),
        Attention::Widths => BTreeSet::new(),
    };
    for (axis, units) in labelled {
        let Some((before, after)) = blocks.iter().find(|(b, _)| b.contains(&axis)) else {
            t.fix(&units, &said("mixes axes"));
            continue;
        };
        let others = before.clone().filter(|a| *a != axis);
        let (staying, going): (Vec<Axis>, Vec<Axis>) = others
            .filter_map(|a| t.axis(x, a))
            .partition(|u| stays(t, u));
        // Channels that stay anyway need not be followed where they would stand in the way of others.
        if stays(t, &units) && !(staying.is_empty() && going.is_empty()) {
            continue;
        }
        let alone = going.is_empty();
        let size: usize = from[before.clone()].iter().product();
        if !alone || size > MOST || after.is_empty() {
            t.fix(&units, &said("mixes it with other channels"));
            continue;
        }
        // The unit of every element of the block, in row-major order.
        let inner: usize = from[axis + 1..before.end].iter().product();
        let flat: Vec<Unit> = (0..size)
            .map(|i| units[i / inner.max(1) % units.len()])
            .collect();
        let extents = &to[after.clone()];
        let head = (after.clone()).position(|a| to[a] > 1 && heads.contains(&a));
        let (place, new) = spread(t, &flat, extents, head);
        let (of, to) = ((x, axis, &units), (y, after.start + place, &new));
        if holds(t, of, before, to, after) {
            t.label(Some(y), after.start + place, new);
        } else {
            t.fix(&units, &said("puts it elsewhere in every sample"));
        }
    }
    if is_reshape {
        t.rewrite(index, Rewrite::Target);
    }
}

fn stays(t: &Trace, units: &Axis) -> bool {
    units.iter().all(|u| t.labels.why_fixed(*u).is_some())
}

/// Whether a target that is written anew can say what extents stay open: the only one is −1, and so is one that counts samples and channels in
/// each; the others keep their entries, of which then none may be −1.
fn keeps_open(t: &Trace, node: &Node, y: ValueId) -> bool {
    let rank = t.shape(y).map_or(0, <[usize]>::len);
    let open: Vec<usize> = (0..rank).filter(|a| !t.is_constant_extent(y, *a)).collect();
    let Some(target) = node.inputs.get(1).copied().flatten() else {
        return false;
    };
    let entry = |axis: &usize| t.followed(target).and_then(|all| all.get(*axis).copied());
    match open.iter().filter(|a| t.is_folded(y, **a)).count() {
        _ if open.len() < 2 => true,
        0 => true,
        1 => (open.iter().filter(|a| !t.is_folded(y, **a)))
            .all(|a| entry(a).is_some_and(|e| e != Some(-1))),
        _ => false,
    }
}

/// Runs of axes with equal products, whatever the batch: a single sample does not tell how its elements lie among those of others.
fn paired(t: &Trace, x: ValueId, y: ValueId) -> Option<Vec<Block>> {
    let of = |samples: usize| {
        let (from, to) = (t.shape_of(x, samples)?, t.shape_of(y, samples)?);
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        (elements(from) == elements(to)).then(|| blocks(from, to))
    };
    match (of(2), of(3)) {
        (Some(two), Some(three)) => (two == three).then_some(two)?,
        // A network of one sample at a time, its target a number.
        _ => of(1)?,
    }
}

/// A value, an axis of it and its units.
type Labelled<'a> = (ValueId, usize, &'a Axis);

/// Whether units that were found by one sample are those of every element of a run of axes where there are several samples.
fn holds(
    t: &Trace,
    x: Labelled<'_>,
    before: &Range<usize>,
    y: Labelled<'_>,
    after: &Range<usize>,
) -> bool {
    let grows = |value, run: &Range<usize>| run.clone().any(|a| !t.is_constant_extent(value, a));
    if !grows(x.0, before) && !grows(y.0, after) {
        return true;
    }
    let unit =
        |(value, axis, units): Labelled<'_>, run: &Range<usize>, samples: usize, i: usize| {
            let shape = t.shape_of(value, samples)?;
            let inner: usize = shape[axis + 1..run.end].iter().product();
            let at = i / inner.max(1) % shape[axis].max(1);
            Some(t.labels.root(*units.get(at % units.len())?))
        };
    [2, 3].into_iter().all(|samples| {
        let size = t
            .shape_of(x.0, samples)
            .map_or(0, |s| s[before.clone()].iter().product());
        let same = |i| unit(x, before, samples, i) == unit(y, after, samples, i);
        (1..=MOST).contains(&size) && (0..size).all(same)
    })
}

/// Axes of `y` along which attention multiplies one matrix after the other: heads. Followed to products of two computed values, through
/// what moves axes and leaves their extents.
fn heads(t: &Trace, y: ValueId, rank: usize) -> BTreeSet<usize> {
    let graph = &t.graph;
    let consumers = graph.consumers();
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::from([y]);
    // A value, and which axes of `y` each of its own is or was made of.
    let mut open = vec![(y, (0..rank).map(|axis| vec![axis]).collect::<Vec<_>>())];
    while let Some((value, axes)) = open.pop() {
        for (reader, _) in consumers.get(&value).into_iter().flatten() {
            let node = graph.node(*reader);
            let constant = |slot: usize| {
                let input = node.inputs.get(slot).copied().flatten();
                input.and_then(|v| graph.value(v).data.as_ref())
            };
            let passed = match &node.op {
                Op::MatMul if constant(0).is_none() && constant(1).is_none() => {
                    found.extend(axes.iter().take(axes.len().saturating_sub(2)).flatten());
                    continue;
                }
                Op::Transpose { perm } => match perm {
                    Some(perm) => perm.iter().map(|p| axes.get(*p).cloned()).collect(),
                    None => Some(axes.iter().rev().cloned().collect()),
                },
                Op::Unary(_) | Op::Cast { .. } | Op::Identity | Op::Split { .. } => {
                    Some(axes.clone())
                }
                // Scaled by one number for all, which may be computed.
                Op::Binary(_) if (0..2).any(|slot| is_one_number(t, node, slot, axes.len())) => {
                    Some(axes.clone())
                }
                // One of several, such as the keys of queries, keys and values in one.
                Op::Gather { axis } if constant(1).is_some_and(|d| d.shape.is_empty()) => {
                    super::rules::place(*axis, axes.len()).map(|gone| {
                        let mut left = axes.clone();
                        left.remove(gone);
                        left
                    })
                }
                Op::Reshape { .. } => node.outputs.first().copied().flatten().and_then(|to| {
                    let parts = parts_of(t, value, to)?;
                    let made_of = |own: Range<usize>| axes.get(own).map(<[_]>::concat);
                    parts.into_iter().map(made_of).collect()
                }),
                _ => None,
            };
            let Some(passed) = passed else { continue };
            for output in node.outputs.iter().flatten() {
                if seen.insert(*output) {
                    open.push((*output, passed.clone()));
                }
            }
        }
    }
    found
}

fn is_one_number(t: &Trace, node: &Node, slot: usize, rank: usize) -> bool {
    let value = node.inputs.get(slot).copied().flatten();
    let shape = value.and_then(|v| t.shape(v));
    shape.is_some_and(|s| s.len() <= rank && s.iter().all(|n| *n == 1))
}

/// Of a Reshape, for every axis of the output the input's that it is or comes of, such as heads that are folded into the batch or were.
fn parts_of(t: &Trace, x: ValueId, y: ValueId) -> Option<Vec<Range<usize>>> {
    let mut found = vec![0..0; t.shape(y)?.len()];
    for (before, after) in paired(t, x, y)? {
        found[after].fill(before);
    }
    Some(found)
}

/// The axis of the block that units go by: the one that alone decides the unit or, where none does, `head` or else the longest.
/// What lies at the same index of it goes together.
fn spread(t: &mut Trace, flat: &[Unit], extents: &[usize], head: Option<usize>) -> (usize, Axis) {
    let stride = |axis: usize| extents[axis + 1..].iter().product::<usize>().max(1);
    let index = |axis: usize, i: usize| i / stride(axis) % extents[axis];
    let decides = |t: &Trace, axis: usize| -> bool {
        let mut first = vec![None; extents[axis]];
        flat.iter().enumerate().all(|(i, unit)| {
            let root = t.labels.root(*unit);
            *first[index(axis, i)].get_or_insert(root) == root
        })
    };
    let candidates: Vec<usize> = (0..extents.len()).filter(|a| extents[*a] > 1).collect();
    let chosen = (candidates.iter().copied().find(|a| decides(t, *a)))
        .or(head)
        .or_else(|| {
            let longest = candidates.iter().map(|a| extents[*a]).max()?;
            candidates
                .iter()
                .rev()
                .copied()
                .find(|a| extents[*a] == longest)
        })
        .unwrap_or(0);
    let mut units = vec![None; extents[chosen]];
    for (i, unit) in flat.iter().enumerate() {
        let first = *units[index(chosen, i)].get_or_insert(*unit);
        t.labels.unite(first, *unit);
    }
    (chosen, units.into_iter().flatten().collect())
}

type Block = (Range<usize>, Range<usize>);

/// Pairs the shortest runs of axes with equal products. Ones at the end of both go with the last run.
fn blocks(from: &[usize], to: &[usize]) -> Option<Vec<Block>> {
    let mut found: Vec<Block> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() && j < to.len() {
        let (start_i, start_j) = (i, j);
        let (mut a, mut b) = (from[i], to[j]);
        (i, j) = (i + 1, j + 1);
        while a != b {
            if a < b {
                a *= from.get(i)?;
                i += 1;
            } else {
                b *= to.get(j)?;
                j += 1;
            }
        }
        found.push((start_i..i, start_j..j));
    }
    let rest = from[i..].iter().chain(&to[j..]).product::<usize>();
    match found.last_mut() {
        _ if rest != 1 => return None,
        Some((a, b)) => (a.end, b.end) = (from.len(), to.len()),
        None => {}
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_paired_by_their_products() {
        assert_eq!(
            blocks(&[1, 8, 3, 3], &[1, 72]),
            Some(vec![(0..1, 0..1), (1..4, 1..2)])
        );
        assert_eq!(
            blocks(&[1, 8, 3, 3], &[1, 2, 4, 3, 3]),
            Some(vec![(0..1, 0..1), (1..2, 1..3), (2..3, 3..4), (3..4, 4..5)])
        );
        assert_eq!(
            blocks(&[1, 8, 1, 1], &[1, 8]),
            Some(vec![(0..1, 0..1), (1..4, 1..2)])
        );
        assert_eq!(
            blocks(&[1, 8], &[1, 8, 1, 1]),
            Some(vec![(0..1, 0..1), (1..2, 1..4)])
        );
        assert_eq!(blocks(&[4, 3], &[2, 5]), None);
    }
}
