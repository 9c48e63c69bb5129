//! What every operator does to the labels of channels. Anything not known here fixes the channels that reach it.

use super::{
    labels::Axis,
    reshape,
    trace::{Rewrite, Trace},
};
use crate::graph::{BinaryOp, Node, Op, ReduceOp, ValueId};

/// Index of an axis that may be counted from the end.
pub(super) fn place(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|a| *a < rank)
}

fn input(node: &Node, slot: usize) -> Option<ValueId> {
    node.inputs.get(slot).copied().flatten()
}

fn output(node: &Node) -> Option<ValueId> {
    node.outputs.first().copied().flatten()
}

fn said(node: &Node, what: &str) -> String {
    format!("{} ({}) {what}", node.name, node.op.name())
}

pub(super) fn visit(t: &mut Trace, index: usize, node: &Node) {
    match &node.op {
        Op::Conv { group, .. } => conv(t, index, node, *group),
        Op::ConvTranspose { group, .. } => conv_transpose(t, index, node, *group),
        Op::Gemm {
            trans_a, trans_b, ..
        } => gemm(t, node, *trans_a, *trans_b),
        Op::MatMul => matmul(t, node),
        Op::BatchNormalization { .. } | Op::InstanceNormalization { .. } => norm(t, node),
        Op::LayerNormalization { axis, .. } => normalised(t, node, *axis, true),
        Op::Softmax { axis, flatten } | Op::LogSoftmax { axis, flatten } => {
            normalised(t, node, *axis, *flatten);
        }
        Op::Unary(_)
        | Op::LeakyRelu { .. }
        | Op::Elu { .. }
        | Op::Celu { .. }
        | Op::Selu { .. }
        | Op::ThresholdedRelu { .. }
        | Op::HardSigmoid { .. }
        | Op::Gelu { .. }
        | Op::Clip
        | Op::Cast { .. }
        | Op::Identity
        | Op::Dropout => same(t, node),
        Op::MaxPool { .. } | Op::AveragePool { .. } | Op::GlobalAveragePool | Op::GlobalMaxPool => {
            windowed(t, node)
        }
        Op::Binary(_) | Op::Variadic(_) | Op::Where => elementwise(t, node),
        Op::Concat { axis } => concat(t, node, *axis),
        Op::Split { axis, .. } => split(t, index, node, *axis),
        Op::Slice => slice(t, index, node),
        Op::Gather { axis } => gather(t, index, node, *axis),
        Op::Reshape { .. } | Op::Flatten { .. } => reshape::reshape(t, index, node),
        Op::Transpose { .. } | Op::Squeeze | Op::Unsqueeze => moved(t, node),
        Op::Pad { .. } => pad(t, node),
        Op::Resize { axes, .. } => resize(t, index, node, axes.as_deref()),
        Op::Reduce { op, keep_dims, .. } => reduce(t, node, *op, *keep_dims),
        Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. } => t.fix_inputs(
            node,
            &said(node, "quantises it: channels go before quantisation"),
        ),
        Op::Unsupported { .. } => t.fix_inputs(
            node,
            &said(node, "is an operator that Limbeck does not know"),
        ),
        _ => t.fix_inputs(node, &said(node, "does not say what it does to channels")),
    }
}

/// Labels of every axis but `channel` mean something else to this operator: they stay.
fn fix_others(t: &mut Trace, node: &Node, x: ValueId, channels: &[usize]) {
    for (axis, units) in t.labels.of(x) {
        if !channels.contains(&axis) {
            t.fix(&units, &said(node, &format!("works along its axis {axis}")));
        }
    }
}

/// The constant weight of a layer, or `None` with the reason put down.
fn weight(t: &mut Trace, node: &Node, slot: usize) -> Option<(ValueId, Vec<usize>)> {
    let w = input(node, slot)?;
    match &t.graph.value(w).data {
        Some(data) if data.element.is_float() => Some((w, data.shape.clone())),
        _ => {
            let quantised = t.graph.constant_behind(w).is_some();
            let why = if quantised {
                "its weight is quantised or cast: channels go before quantisation"
            } else {
                "its weight is computed from other values"
            };
            t.no_layer(node, why);
            t.fix_inputs(node, &said(node, &format!("reads it and {why}")));
            None
        }
    }
}

/// A bias along its last axis; one element for all channels needs nothing.
fn bias(t: &mut Trace, node: &Node, slot: usize, units: &Axis) {
    let Some(b) = input(node, slot) else { return };
    let last = match &t.graph.value(b).data {
        Some(data) => data
            .shape
            .last()
            .copied()
            .map(|n| (data.shape.len() - 1, n)),
        None => {
            t.fix(units, &said(node, "adds a bias that is computed"));
            t.fix_value(b, &said(node, "adds it as a bias"));
            return;
        }
    };
    if let Some((axis, n)) = last
        && n == units.len()
    {
        t.label_constant(b, axis, units.clone());
    }
    t.used(b);
}

fn conv(t: &mut Trace, index: usize, node: &Node, group: usize) {
    let (Some(x), Some(y)) = (input(node, 0), output(node)) else {
        return;
    };
    let Some((w, shape)) = weight(t, node, 1) else {
        return;
    };
    t.used(w);
    fix_others(t, node, x, &[1]);
    let (outs, per_group) = (shape[0], shape[1]);
    let channels = per_group * group;
    let incoming = t.axis(x, 1).filter(|l| l.len() == channels);
    let out = if group == 1 {
        if let Some(units) = incoming {
            t.label_constant(w, 1, units);
        }
        t.labels.fresh(outs)
    } else if per_group == 1 {
        // Depthwise: what goes in decides what comes out.
        let Some(units) = incoming else {
            t.no_layer(
                node,
                "a depthwise convolution has the channels of its input, which stay",
            );
            return;
        };
        t.rewrite(index, Rewrite::Groups);
        let each = outs / group;
        (0..outs).map(|o| units[o / each.max(1)]).collect()
    } else {
        // As many channels in every group: the same place of each goes together.
        if let Some(units) = incoming {
            for channel in per_group..channels {
                t.labels.unite(units[channel], units[channel % per_group]);
            }
            t.label_constant(w, 1, units[..per_group].into());
        }
        let each = outs / group;
        let places = t.labels.fresh(each);
        (0..outs).map(|o| places[o % each.max(1)]).collect()
    };
    t.label_constant(w, 0, out.clone());
    bias(t, node, 2, &out);
    t.label(Some(y), 1, out);
}

fn conv_transpose(t: &mut Trace, index: usize, node: &Node, group: usize) {
    let (Some(x), Some(y)) = (input(node, 0), output(node)) else {
        return;
    };
    let Some((w, shape)) = weight(t, node, 1) else {
        return;
    };
    t.used(w);
    fix_others(t, node, x, &[1]);
    let incoming = t.axis(x, 1).filter(|l| l.len() == shape[0]);
    let out = if group == 1 {
        if let Some(units) = incoming {
            t.label_constant(w, 0, units);
        }
        let out = t.labels.fresh(shape[1]);
        t.label_constant(w, 1, out.clone());
        out
    } else if group == shape[0] && shape[1] == 1 {
        let Some(units) = incoming else {
            t.no_layer(
                node,
                "a depthwise convolution has the channels of its input, which stay",
            );
            return;
        };
        t.rewrite(index, Rewrite::Groups);
        t.label_constant(w, 0, units.clone());
        units
    } else {
        let why = "is a grouped transposed convolution, whose channels stay";
        t.no_layer(node, "a grouped transposed convolution keeps its channels");
        if let Some(units) = incoming {
            t.fix(&units, &said(node, why));
        }
        return;
    };
    bias(t, node, 2, &out);
    t.label(Some(y), 1, out);
}

fn gemm(t: &mut Trace, node: &Node, trans_a: bool, trans_b: bool) {
    let (Some(a), Some(y)) = (input(node, 0), output(node)) else {
        return;
    };
    let Some((w, shape)) = weight(t, node, 1) else {
        return;
    };
    t.used(w);
    let (depth, width) = (usize::from(trans_b), usize::from(!trans_b));
    if trans_a {
        t.fix_value(a, &said(node, "reads it transposed"));
    } else {
        fix_others(t, node, a, &[1]);
        if let Some(units) = t.axis(a, 1) {
            t.label_constant(w, depth, units);
        }
    }
    let out = t.labels.fresh(shape[width]);
    t.label_constant(w, width, out.clone());
    bias(t, node, 2, &out);
    t.label(Some(y), 1, out);
}

fn matmul(t: &mut Trace, node: &Node) {
    let (Some(a), Some(b), Some(y)) = (input(node, 0), input(node, 1), output(node)) else {
        return;
    };
    let rank = |t: &Trace, v: ValueId| t.shape(v).map(<[usize]>::len);
    let (Some(ra), Some(rb), Some(ry)) = (rank(t, a), rank(t, b), rank(t, y)) else {
        return t.fix_inputs(node, &said(node, "has inputs of unknown shape"));
    };
    let (constant_a, constant_b) = (t.is_constant(a), t.is_constant(b));
    if ra < 2 || rb < 2 || (constant_a && ra > 2) || (constant_b && rb > 2) {
        t.no_layer(node, "its weight is no matrix");
        return t.fix_inputs(
            node,
            &said(node, "multiplies it by something that is no matrix"),
        );
    }
    if !constant_a && !constant_b && t.graph.constant_behind(b).is_some() {
        let why = "its weight is quantised or cast: channels go before quantisation";
        t.no_layer(node, why);
        return t.fix_inputs(node, &said(node, &format!("reads it and {why}")));
    }
    // The sum runs over the last axis of one and the last but one of the other.
    let (inner_a, inner_b) = (t.axis(a, ra - 1), t.axis(b, rb - 2));
    match (inner_a, inner_b) {
        (Some(u), _) if constant_b => t.label_constant(b, 0, u),
        (_, Some(u)) if constant_a => t.label_constant(a, 1, u),
        (Some(u), Some(v)) => t.labels.unite_axes(&u, &v),
        (Some(u), None) | (None, Some(u)) => {
            t.fix(&u, &said(node, "multiplies it by channels that stay"));
        }
        (None, None) => {}
    }
    for (value, constant) in [(a, constant_a), (b, constant_b)] {
        if constant {
            t.used(value);
        }
    }
    if constant_b {
        let n = t.shape(b).and_then(|s| s.last().copied()).unwrap_or(0);
        let out = t.labels.fresh(n);
        t.label_constant(b, 1, out.clone());
        t.label(Some(y), ry - 1, out);
    } else if let Some(units) = t.axis(b, rb - 1) {
        t.label(Some(y), ry - 1, units);
    }
    if constant_a {
        t.no_layer(node, "its weight stands on the left, where rows stay");
    } else if let Some(units) = t.axis(a, ra - 2) {
        t.label(Some(y), ry - 2, units);
    }
    for axis in 0..ry.saturating_sub(2) {
        along(t, node, &[(a, ra), (b, rb)], axis, ry, y);
    }
}

fn norm(t: &mut Trace, node: &Node) {
    let (Some(x), Some(y)) = (input(node, 0), output(node)) else {
        return;
    };
    let instance = matches!(node.op, Op::InstanceNormalization { .. });
    for (axis, units) in t.labels.of(x) {
        if axis == 1 {
            for slot in 1..if instance { 3 } else { 5 } {
                let Some(p) = input(node, slot) else { continue };
                if t.is_constant(p) {
                    t.label_constant(p, 0, units.clone());
                    t.used(p);
                } else {
                    t.fix(&units, &said(node, "has parameters that are computed"));
                }
            }
        } else if instance && axis >= 2 {
            t.fix(&units, &said(node, "normalises over it"));
        }
        t.label(Some(y), axis, units);
    }
}

/// Softmax and its kind: over one axis, or over all from there on.
fn normalised(t: &mut Trace, node: &Node, axis: i64, all_after: bool) {
    let Some(x) = input(node, 0) else { return };
    let Some(rank) = t.shape(x).map(<[usize]>::len) else {
        return t.fix_value(x, &said(node, "has an input of unknown shape"));
    };
    let first = place(axis, rank);
    for (axis, units) in t.labels.of(x) {
        let over = match first {
            Some(first) if all_after => axis >= first,
            Some(first) => axis == first,
            None => true,
        };
        if over {
            t.fix(&units, &said(node, "normalises over it"));
        }
        t.label(output(node), axis, units);
    }
}

fn same(t: &mut Trace, node: &Node) {
    let Some(x) = input(node, 0) else { return };
    for (axis, units) in t.labels.of(x) {
        for y in node.outputs.iter().flatten() {
            t.label(Some(*y), axis, units.clone());
        }
    }
}

fn windowed(t: &mut Trace, node: &Node) {
    let Some(x) = input(node, 0) else { return };
    fix_others(t, node, x, &[0, 1]);
    if let Some(units) = t.axis(x, 1) {
        t.label(output(node), 1, units.clone());
        if let Some(Some(indices)) = node.outputs.get(1) {
            t.fix(&units, &said(node, "counts places over all channels"));
            t.label(Some(*indices), 1, units);
        }
    }
}

fn elementwise(t: &mut Trace, node: &Node) {
    let Some(y) = output(node) else { return };
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for value in node.inputs.iter().flatten() {
        match t.shape(*value).map(<[usize]>::len) {
            Some(rank) => inputs.push((*value, rank)),
            None => {
                return t.fix_inputs(node, &said(node, "combines values of unknown shape"));
            }
        }
    }
    let rank = match node.op {
        // The slope is spread over the input, not the other way round.
        Op::Binary(BinaryOp::PRelu) => inputs.first().map_or(0, |i| i.1),
        _ => inputs.iter().map(|i| i.1).max().unwrap_or(0),
    };
    for axis in 0..rank {
        along(t, node, &inputs, axis, rank, y);
    }
    for (value, _) in inputs {
        if t.is_constant(value) {
            t.used(value);
        }
    }
}

/// One axis of an operator with broadcasting: what is as long goes together, what is spread over many stays.
fn along(
    t: &mut Trace,
    node: &Node,
    inputs: &[(ValueId, usize)],
    axis: usize,
    rank: usize,
    y: ValueId,
) {
    // (value, its own axis, extent)
    let parts: Vec<(ValueId, usize, usize)> = inputs
        .iter()
        .filter_map(|(v, r)| {
            let own = (axis + r).checked_sub(rank)?;
            Some((*v, own, *t.shape(*v)?.get(own)?))
        })
        .collect();
    let extent = parts.iter().map(|p| p.2).max().unwrap_or(1);
    let mut joined: Option<Axis> = None;
    for (value, own, n) in &parts {
        let Some(units) = t.axis(*value, *own) else {
            continue;
        };
        if *n != extent {
            t.fix(&units, &said(node, "spreads it over other channels"));
            continue;
        }
        match &joined {
            Some(first) => t.labels.unite_axes(&first.clone(), &units),
            None => joined = Some(units),
        }
    }
    let Some(joined) = joined else { return };
    for (value, own, n) in parts {
        if n != extent || extent == 1 || t.axis(value, own).is_some() {
            continue;
        }
        if t.is_constant(value) {
            t.label_constant(value, own, joined.clone());
        } else {
            let other = t.graph.value(value).name.clone();
            t.fix(
                &joined,
                &said(
                    node,
                    &format!("combines it with {other}, whose channels stay"),
                ),
            );
        }
    }
    t.label(Some(y), axis, joined);
}

fn concat(t: &mut Trace, node: &Node, axis: i64) {
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

fn split(t: &mut Trace, index: usize, node: &Node, axis: i64) {
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

fn slice(t: &mut Trace, index: usize, node: &Node) {
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

fn gather(t: &mut Trace, index: usize, node: &Node, axis: i64) {
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

/// Transpose, Squeeze, Unsqueeze: axes change places.
fn moved(t: &mut Trace, node: &Node) {
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

fn pad(t: &mut Trace, node: &Node) {
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

fn resize(t: &mut Trace, index: usize, node: &Node, axes: Option<&[i64]>) {
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

fn reduce(t: &mut Trace, node: &Node, op: ReduceOp, keep_dims: bool) {
    let (Some(x), Some(y)) = (input(node, 0), output(node)) else {
        return;
    };
    let labelled = t.labels.of(x);
    if labelled.is_empty() {
        return;
    }
    let Some(rank) = t.shape(x).map(<[usize]>::len) else {
        return t.fix_value(x, &said(node, "has an input of unknown shape"));
    };
    let over: Option<Vec<usize>> = match input(node, 1) {
        Some(axes) => t
            .integers(Some(axes))
            .and_then(|a| a.into_iter().map(|a| place(a, rank)).collect()),
        None => Some((0..rank).collect()),
    };
    let Some(over) = over else {
        return t.fix_value(x, &said(node, "works along axes that are computed"));
    };
    // Zeros change nothing in these sums, but everything in a mean or a maximum.
    let zeros_vanish = matches!(
        op,
        ReduceOp::Sum | ReduceOp::L1 | ReduceOp::L2 | ReduceOp::SumSquare
    );
    for (axis, units) in labelled {
        if over.contains(&axis) {
            if !zeros_vanish {
                t.fix(&units, &said(node, "works over all channels at once"));
            }
        } else {
            let gone = over.iter().filter(|o| **o < axis).count();
            t.label(Some(y), if keep_dims { axis } else { axis - gone }, units);
        }
    }
}
