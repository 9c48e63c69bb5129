//! What every operator does to the labels of channels. Anything not known here fixes the channels that reach it.

mod axes;
mod weights;

use super::{labels::Axis, reshape, trace::Trace};
use crate::graph::{BinaryOp, Node, Op, ReduceOp, ValueId};
use axes::{concat, expand, gather, moved, pad, resize, slice, split};
use weights::{conv, conv_transpose, gemm, matmul, norm, normalised};

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
        Op::Expand => expand(t, index, node),
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
    if let Some(units) = t.axis(x, 0) {
        if let Some(Some(_)) = node.outputs.get(1) {
            t.fix(&units, &said(node, "counts places over all samples"));
        }
        for y in node.outputs.iter().flatten() {
            t.label(Some(*y), 0, units.clone());
        }
    }
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
    let folded = t.is_folded(y, axis);
    let mut joined: Option<Axis> = None;
    for (value, own, n) in &parts {
        let Some(units) = t.axis(*value, *own) else {
            continue;
        };
        if *n != extent {
            t.fix(&units, &said(node, "spreads it over other channels"));
            continue;
        }
        if t.is_folded(*value, *own) != folded {
            t.fix(&units, &said(node, "combines samples with channels"));
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
