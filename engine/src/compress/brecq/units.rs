//! Which layers' roundings are chosen together: a network is cut at the values that all later ones hang on alone; what lies between two such
//! cuts and is more than one operator is a block (a residual one, most often). Separable convolutions without a sum are blocks as well.

use crate::{
    compress::segments::{cuts, moving, reads_shape},
    graph::{BinaryOp, ElementType, Graph, Layer, NodeId, Op, UnaryOp, ValueId},
};
use std::collections::BTreeSet;

/// More layers than this are not chosen together: dense blocks, networks that are cut nowhere.
const MOST_LAYERS: usize = 16;

/// A block.
#[derive(Debug)]
pub(in crate::compress) struct Unit {
    pub input: ValueId,
    /// Behind the activation function that follows.
    pub output: ValueId,
    /// Nodes from the one to the other.
    pub nodes: Vec<usize>,
    /// Numbers of its layers, in the graph's order.
    pub layers: Vec<usize>,
}

/// What lies between two cuts that follow each other.
struct Link {
    input: ValueId,
    output: ValueId,
    nodes: Vec<usize>,
    layers: Vec<usize>,
}

/// The blocks of a network with one input, in its order; none has a layer in common with another. `layers` are all of the graph's.
pub(in crate::compress) fn units(graph: &Graph, layers: &[Layer]) -> Vec<Unit> {
    let links = links(graph, layers);
    let mut spans = separable(graph, layers, &links);
    let within = |at: usize| move |span: &(usize, usize)| span.0 <= at && at <= span.1;
    for (at, link) in links.iter().enumerate() {
        let known = 1..=MOST_LAYERS;
        if link.nodes.len() > 1
            && known.contains(&link.layers.len())
            && !spans.iter().any(within(at))
        {
            spans.push((at, at));
        }
    }
    spans.sort_unstable();
    let producers = graph.producers();
    let float = |value: ValueId| graph.value(value).element == Some(ElementType::F32);
    let mut found = Vec::new();
    for (first, mut last) in spans {
        if let Some(next) = links.get(last + 1)
            && is_activation(graph, next)
            && float(next.output)
        {
            last += 1;
        }
        let part = &links[first..=last];
        let (input, output) = (part[0].input, part[part.len() - 1].output);
        let unit = Unit {
            input,
            output,
            nodes: part.iter().flat_map(|l| l.nodes.clone()).collect(),
            layers: part.iter().flat_map(|l| l.layers.clone()).collect(),
        };
        if float(input) && float(output) && is_closed(graph, &producers, &unit) {
            found.push(unit);
        }
    }
    found
}

/// Whether a unit can be computed from its input: it asks for no shape of a value before it.
fn is_closed(graph: &Graph, producers: &[Option<NodeId>], unit: &Unit) -> bool {
    let reads = |node: usize| graph.nodes[node].inputs.iter().flatten().copied();
    let mut open: Vec<ValueId> = unit.nodes.iter().flat_map(|n| reads(*n)).collect();
    let mut seen: BTreeSet<ValueId> = BTreeSet::from([unit.input]);
    while let Some(value) = open.pop() {
        if graph.value(value).data.is_some() || !seen.insert(value) {
            continue;
        }
        match producers.get(value.0 as usize).copied().flatten() {
            Some(node) if unit.nodes.contains(&(node.0 as usize)) => {}
            Some(node) if !graph.inputs.contains(&value) => open.extend(reads(node.0 as usize)),
            _ => return false,
        }
    }
    true
}

fn links(graph: &Graph, layers: &[Layer]) -> Vec<Link> {
    let &[mut input] = graph.inputs.as_slice() else {
        return Vec::new();
    };
    let moving = moving(graph, reads_shape);
    let (mut first, mut found) = (0, Vec::new());
    for (last, output) in cuts(graph, input, &moving, reads_shape) {
        let nodes: Vec<usize> = (first..=last).filter(|n| moving[*n]).collect();
        let within = |number: &usize| nodes.contains(&(layers[*number].node.0 as usize));
        let layers = (0..layers.len()).filter(within).collect();
        found.push(Link {
            input,
            output,
            nodes,
            layers,
        });
        (first, input) = (last + 1, output);
    }
    found
}

/// Depthwise convolutions in a chain, from the expanding pointwise one before to the pointwise one behind; by links, first and last. A gate on the
/// channels in between (squeeze and excitation) belongs to them.
fn separable(graph: &Graph, layers: &[Layer], links: &[Link]) -> Vec<(usize, usize)> {
    let only = |at: usize| match (links[at].nodes.as_slice(), links[at].layers.as_slice()) {
        ([_], [layer]) => Some(&layers[*layer]),
        _ => None,
    };
    let layered = |at: &usize| !links[*at].layers.is_empty();
    let is_gate = |at: usize| {
        let last = links[at].nodes.last().map(|n| &graph.nodes[*n].op);
        links[at].layers.len() == 2 && matches!(last, Some(Op::Binary(BinaryOp::Mul)))
    };
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for at in 0..links.len() {
        if !only(at).is_some_and(|l| is_depthwise(graph, l)) {
            continue;
        }
        let taken = spans.last().map_or(0, |span| span.1 + 1);
        let before = (taken..at).rev().find(layered);
        let expands = |l: &Layer| is_pointwise(graph, l) && l.weight_shape[0] > l.weight_shape[1];
        let first = before.filter(|b| only(*b).is_some_and(expands));
        let mut next = (at + 1..links.len()).find(layered);
        if let Some(gate) = next.filter(|n| is_gate(*n)) {
            next = (gate + 1..links.len()).find(layered);
        }
        let last = next.filter(|n| only(*n).is_some_and(|l| is_pointwise(graph, l)));
        if at >= taken && (first.is_some() || last.is_some()) {
            spans.push((first.unwrap_or(at), last.unwrap_or(at)));
        }
    }
    spans
}

fn is_depthwise(graph: &Graph, layer: &Layer) -> bool {
    let op = &graph.nodes[layer.node.0 as usize].op;
    matches!(op, Op::Conv { group, .. } if *group > 1 && layer.weight_shape.get(1) == Some(&1))
}

fn is_pointwise(graph: &Graph, layer: &Layer) -> bool {
    let op = &graph.nodes[layer.node.0 as usize].op;
    matches!(op, Op::Conv { group: 1, .. })
        && layer.weight_shape.len() > 2
        && layer.weight_shape[2..].iter().all(|k| *k == 1)
}

fn is_activation(graph: &Graph, link: &Link) -> bool {
    match link.nodes.as_slice() {
        [node] => matches!(graph.nodes[*node].op, Op::Unary(UnaryOp::Relu) | Op::Clip),
        _ => false,
    }
}
