//! The edit: one layer becomes two.

use super::{LOW_RANK, form::Form};
use crate::{
    compress::wiring::{Names, add_constant, add_value, rebuild},
    graph::{ElementType, Graph, Layer, Node, TensorData},
};
use std::collections::{BTreeMap, HashSet};

/// A layer with its two factors: rows×rank and rank×columns of its form's matrix.
pub(crate) struct Taken<'a> {
    pub layer: &'a Layer,
    pub form: &'a Form,
    pub rank: usize,
    pub left: Vec<f32>,
    pub right: Vec<f32>,
}

/// Takes layers apart. The second factor keeps name, output and bias of its layer, and the weight's name; the first has no bias.
pub(crate) fn write(graph: &mut Graph, taken: Vec<Taken<'_>>) {
    let mut names = Names::of(graph);
    let mut new = BTreeMap::new();
    for Taken {
        layer,
        form,
        rank,
        left,
        right,
    } in taken
    {
        let index = layer.node.0 as usize;
        let (first_op, second_op) = form.operators(&graph.nodes[index].op);
        let shape = &layer.weight_shape;
        let (first_shape, first) = form.first(shape, rank, right);
        let (second_shape, second) = form.second(shape, rank, left);
        let weight = graph.value(layer.weight).name.clone();
        let first = add_constant(
            graph,
            names.unique(format!("{weight}{LOW_RANK}")),
            TensorData::from_f32(&first_shape, &first),
        );
        graph.set_data(layer.weight, TensorData::from_f32(&second_shape, &second));
        let output = format!("{}{LOW_RANK}_out", layer.id.0);
        let between = add_value(graph, names.unique(output), ElementType::F32, layer.output);
        // Another shape than the layer's output: found anew below.
        graph.value_mut(between).shape = None;
        let node = &mut graph.nodes[index];
        let read = node.inputs.first().copied().flatten();
        node.op = second_op;
        if let Some(input) = node.inputs.first_mut() {
            *input = Some(between);
        }
        let first = Node {
            name: names.unique(format!("{}{LOW_RANK}", layer.id.0)),
            op: first_op,
            inputs: vec![read, Some(first)],
            outputs: vec![Some(between)],
        };
        new.insert(index, vec![first]);
    }
    rebuild(graph, new, &HashSet::new());
    graph.infer_shapes();
}
