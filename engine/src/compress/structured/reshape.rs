//! Reshape and Flatten: an axis of channels may be merged with others (Flatten) or come apart (channel shuffle, heads).

use super::{
    labels::{Axis, Unit},
    trace::{Rewrite, Trace},
};
use crate::graph::{Dim, Node, Op};

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
    let Some(blocks) = blocks(&from, &to) else {
        return t.fix_value(x, &said("mixes axes"));
    };
    let is_reshape = matches!(node.op, Op::Reshape { .. });
    let open = t.graph.value(y).shape.as_ref().map_or(usize::MAX, |s| {
        s.iter().filter(|d| !matches!(d, Dim::Known(_))).count()
    });
    if is_reshape && open > 1 {
        return t.fix_value(
            x,
            &said("has several extents that are not known beforehand"),
        );
    }
    for (axis, units) in labelled {
        let Some((before, after)) = blocks.iter().find(|(b, _)| b.contains(&axis)) else {
            t.fix(&units, &said("mixes axes"));
            continue;
        };
        let alone = before.clone().filter(|a| t.axis(x, *a).is_some()).count() == 1;
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
        let (place, new) = spread(t, &flat, extents);
        t.label(Some(y), after.start + place, new);
    }
    if is_reshape {
        t.rewrite(index, Rewrite::Reshape);
    }
}

/// The axis of the block that alone decides the unit. Where none does, the longest is chosen, and what lies at the same
/// index of it goes together.
fn spread(t: &mut Trace, flat: &[Unit], extents: &[usize]) -> (usize, Axis) {
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
    let chosen = candidates
        .iter()
        .copied()
        .find(|a| decides(t, *a))
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

type Block = (std::ops::Range<usize>, std::ops::Range<usize>);

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
