//! Operators with weights: which of their inputs and outputs carry channels, and along which axes their weights do.

use super::{
    super::{
        labels::Axis,
        trace::{Rewrite, Trace},
    },
    along, fix_others, input, output, place, said,
};
use crate::graph::{Node, Op, ValueId};

/// The constant weight of a layer, or `None` with the reason put down.
pub(super) fn weight(t: &mut Trace, node: &Node, slot: usize) -> Option<(ValueId, Vec<usize>)> {
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
pub(super) fn bias(t: &mut Trace, node: &Node, slot: usize, units: &Axis) {
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

pub(super) fn conv(t: &mut Trace, index: usize, node: &Node, group: usize) {
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

pub(super) fn conv_transpose(t: &mut Trace, index: usize, node: &Node, group: usize) {
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

pub(super) fn gemm(t: &mut Trace, node: &Node, trans_a: bool, trans_b: bool) {
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

pub(super) fn matmul(t: &mut Trace, node: &Node) {
    let (Some(a), Some(b), Some(y)) = (input(node, 0), input(node, 1), output(node)) else {
        return;
    };
    let rank = |t: &Trace, v: ValueId| t.shape(v).map(<[usize]>::len);
    let (Some(ra), Some(rb), Some(ry)) = (rank(t, a), rank(t, b), rank(t, y)) else {
        t.no_layer(node, "the shape of what it reads is not known beforehand");
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

pub(super) fn norm(t: &mut Trace, node: &Node) {
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
pub(super) fn normalised(t: &mut Trace, node: &Node, axis: i64, all_after: bool) {
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
