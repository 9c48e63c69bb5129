//! Where teacher and student are held against each other within: the ends of their stages.

use crate::graph::{BinaryOp, Dim, Graph, Node, Op, UnaryOp, ValueId, VariadicOp};
use std::collections::{BTreeMap, BTreeSet};

/// A value at the end of a stage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stage {
    pub name: String,
    pub channels: usize,
    /// Extents of the other axes, batch left out.
    pub places: Vec<usize>,
    /// Channels lie along the last axis; else along the second.
    pub last: bool,
}

/// A pair of values, the student's and the teacher's, that have the same places.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pair {
    pub student: Stage,
    pub teacher: Stage,
}

/// Stages of networks without resolutions at most.
const MOST: usize = 4;

/// The last activation or sum of every resolution that the network works at. Where nothing has a resolution (encoders), the sums of its residual
/// branches, evenly chosen.
pub(super) fn stages(graph: &Graph) -> Vec<Stage> {
    let bound = graph.at_some_size();
    let mut images: BTreeSet<ValueId> = BTreeSet::new();
    let mut by_resolution: BTreeMap<Vec<usize>, (usize, Stage)> = BTreeMap::new();
    let mut sums = Vec::new();
    for (at, node) in bound.nodes.iter().enumerate() {
        let Some(output) = node.outputs.first().copied().flatten() else {
            continue;
        };
        let image = match node.op {
            Op::Conv { .. } | Op::ConvTranspose { .. } => true,
            _ => keeps_layout(&node.op) && node.inputs.iter().flatten().any(|i| images.contains(i)),
        };
        if image {
            images.insert(output);
        }
        if !ends(node, &bound) {
            continue;
        }
        let value = bound.value(output);
        let extents = value.shape.as_ref().and_then(|dims| {
            let known = |d: &Dim| d.known();
            dims.get(1..)?.iter().map(known).collect::<Option<Vec<_>>>()
        });
        match extents.as_deref() {
            Some([channels, places @ ..])
                if image && places.iter().product::<usize>() > 1 && *channels > 0 =>
            {
                let stage = Stage {
                    name: value.name.clone(),
                    channels: *channels,
                    places: places.to_vec(),
                    last: false,
                };
                by_resolution.insert(places.to_vec(), (at, stage));
            }
            Some(&[places, channels]) if !image && sum(node) && places > 1 && channels > 0 => {
                sums.push(Stage {
                    name: value.name.clone(),
                    channels,
                    places: vec![places],
                    last: true,
                });
            }
            _ => {}
        }
    }
    if by_resolution.is_empty() {
        let chosen = sums.len().min(MOST);
        let even = |i: usize| sums[(i + 1) * sums.len() / chosen - 1].clone();
        return (0..chosen).map(even).collect();
    }
    let mut found: Vec<(usize, Stage)> = by_resolution.into_values().collect();
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, stage)| stage).collect()
}

/// Pairs the ends of stages: by name where the student has a value of that name and resolution still, else by resolution, the last with the last.
pub(super) fn pairs(student: &Graph, teacher: &Graph) -> Vec<Pair> {
    let own = stages(student);
    let bound = student.at_some_size();
    let named = |stage: &Stage| -> Option<Stage> {
        let id = bound.find_value(&stage.name)?;
        bound.producer(id)?;
        let dims = bound.value(id).shape.as_ref()?;
        let mut extents: Vec<usize> = dims
            .get(1..)?
            .iter()
            .map(Dim::known)
            .collect::<Option<_>>()?;
        let channels = match stage.last {
            true => extents.pop()?,
            false if extents.is_empty() => return None,
            false => extents.remove(0),
        };
        (extents == stage.places).then(|| Stage {
            channels,
            ..stage.clone()
        })
    };
    let mut taken = BTreeSet::new();
    let mut found: Vec<Pair> = Vec::new();
    // From the end: where a student has fewer sums, those nearest to the outputs have a partner.
    for teacher in stages(teacher).into_iter().rev() {
        let alike = |s: &&Stage| {
            s.places == teacher.places && s.last == teacher.last && !taken.contains(&s.name)
        };
        let partner = named(&teacher)
            .filter(|s| !taken.contains(&s.name))
            .or_else(|| own.iter().rev().find(alike).cloned());
        if let Some(student) = partner {
            taken.insert(student.name.clone());
            found.push(Pair { student, teacher });
        }
    }
    found.reverse();
    found
}

/// Whether a value's axes are those of what it is computed from.
fn keeps_layout(op: &Op) -> bool {
    activation(op)
        || matches!(
            op,
            Op::Binary(_)
                | Op::Variadic(_)
                | Op::BatchNormalization { .. }
                | Op::InstanceNormalization { .. }
                | Op::MaxPool { .. }
                | Op::AveragePool { .. }
                | Op::Concat { .. }
                | Op::Identity
                | Op::Dropout
                | Op::QuantizeLinear { .. }
                | Op::DequantizeLinear { .. }
        )
}

fn activation(op: &Op) -> bool {
    matches!(
        op,
        Op::Unary(UnaryOp::Relu | UnaryOp::HardSwish | UnaryOp::Mish | UnaryOp::Tanh)
            | Op::Clip
            | Op::LeakyRelu { .. }
            | Op::Elu { .. }
            | Op::Celu { .. }
            | Op::Selu { .. }
            | Op::Gelu { .. }
            | Op::Binary(BinaryOp::PRelu)
    )
}

fn sum(node: &Node) -> bool {
    matches!(
        node.op,
        Op::Binary(BinaryOp::Add) | Op::Variadic(VariadicOp::Sum)
    )
}

/// Activations, sums of branches, and products of them (swish, gates).
fn ends(node: &Node, graph: &Graph) -> bool {
    let joins = sum(node) || matches!(node.op, Op::Binary(BinaryOp::Mul));
    let computed = |id: &Option<ValueId>| id.is_some_and(|id| graph.value(id).data.is_none());
    activation(&node.op) || joins && node.inputs.iter().all(computed)
}
