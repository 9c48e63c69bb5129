//! What passes need to know of a graph's wiring, and the edits they make.

use crate::graph::{Dim, ElementType, Graph, Layer, Node, Op, TensorData, Value, ValueId};
use std::collections::{BTreeMap, HashSet};

/// Producer and consumers of every value, valid until the node list changes.
pub(crate) struct Wiring {
    producer: Vec<Option<usize>>,
    consumers: Vec<Vec<usize>>,
    is_output: Vec<bool>,
}

impl Wiring {
    pub fn of(graph: &Graph) -> Self {
        let n = graph.values.len();
        let mut wiring = Self {
            producer: vec![None; n],
            consumers: vec![Vec::new(); n],
            is_output: vec![false; n],
        };
        for (index, node) in graph.nodes.iter().enumerate() {
            for value in node.outputs.iter().flatten() {
                wiring.producer[value.0 as usize] = Some(index);
            }
            for value in node.inputs.iter().flatten() {
                wiring.consumers[value.0 as usize].push(index);
            }
        }
        for value in &graph.outputs {
            wiring.is_output[value.0 as usize] = true;
        }
        wiring
    }

    /// Takes note that a node, as it is given here, is about to change or go.
    pub fn forget(&mut self, index: usize, node: &Node) {
        for value in node.outputs.iter().flatten() {
            self.producer[value.0 as usize] = None;
        }
        for value in node.inputs.iter().flatten() {
            self.consumers[value.0 as usize].retain(|i| *i != index);
        }
    }

    /// Takes note of a node that has changed, and of the values that were added for it.
    pub fn note(&mut self, graph: &Graph, index: usize) {
        let n = graph.values.len();
        self.producer.resize(n, None);
        self.consumers.resize(n, Vec::new());
        self.is_output.resize(n, false);
        let node = &graph.nodes[index];
        for value in node.outputs.iter().flatten() {
            self.producer[value.0 as usize] = Some(index);
        }
        for value in node.inputs.iter().flatten() {
            let consumers = &mut self.consumers[value.0 as usize];
            let at = consumers.partition_point(|i| *i <= index);
            consumers.insert(at, index);
        }
    }

    /// Node that computes a value.
    pub fn producer(&self, value: ValueId) -> Option<usize> {
        self.producer[value.0 as usize]
    }
    /// Nodes that read a value, in order; a node that reads it twice stands twice.
    pub fn consumers(&self, value: ValueId) -> &[usize] {
        &self.consumers[value.0 as usize]
    }
    pub fn is_output(&self, value: ValueId) -> bool {
        self.is_output[value.0 as usize]
    }
    /// Whether a layer's weight is read by this layer alone, of `layers`, all of the graph's, and by nothing else.
    pub fn has_own_weight(&self, layers: &[Layer], layer: &Layer) -> bool {
        self.consumers(layer.weight).len() == 1
            && layers.iter().filter(|l| l.weight == layer.weight).count() == 1
            && !self.is_output(layer.weight)
    }
}

/// How a layer's weight reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightForm {
    /// Float, straight from the initialiser.
    Float,
    /// Float or integer initialiser behind a DequantizeLinear (node index).
    Quantized { dequantize: usize },
    /// Behind a Cast: kept in half precision.
    Half,
    /// Behind other operators, or computed.
    Other,
}

/// Which input of its node a layer's weight comes in by, and through what.
pub(crate) fn weight_form(graph: &Graph, wiring: &Wiring, layer: &Layer) -> (usize, WeightForm) {
    let node = &graph.nodes[layer.node.0 as usize];
    for (slot, input) in node.inputs.iter().enumerate() {
        let Some(input) = *input else { continue };
        if input == layer.weight {
            return (slot, WeightForm::Float);
        }
        // At most Quantize → Clip → Dequantize, or Cast → Cast.
        let mut at = input;
        let mut form = WeightForm::Other;
        for _ in 0..3 {
            let Some(producer) = wiring.producer(at) else {
                break;
            };
            match graph.nodes[producer].op {
                Op::DequantizeLinear { .. } => {
                    form = WeightForm::Quantized {
                        dequantize: producer,
                    };
                }
                Op::Cast { .. } => form = WeightForm::Half,
                Op::QuantizeLinear { .. } | Op::Identity => {}
                // Holds codes to their width.
                Op::Clip if matches!(form, WeightForm::Quantized { .. }) => {}
                _ => break,
            }
            let Some(before) = graph.nodes[producer].inputs.first().copied().flatten() else {
                break;
            };
            at = before;
            if at == layer.weight {
                return (slot, form);
            }
        }
    }
    (1, WeightForm::Other)
}

/// Float weights of a layer, or why there are none.
pub(crate) fn float_weight(graph: &Graph, layer: &Layer) -> Result<Vec<f32>, String> {
    check_float_weight(graph, layer).map(TensorData::to_f32_vec)
}

/// As [`float_weight`], without reading them.
pub(crate) fn check_float_weight<'g>(
    graph: &'g Graph,
    layer: &Layer,
) -> Result<&'g TensorData, String> {
    match &graph.values[layer.weight.0 as usize].data {
        Some(data) if data.element == ElementType::F32 => {
            if data.is_empty() {
                return Err("its weight has no elements".to_owned());
            }
            Ok(data)
        }
        Some(data) => Err(format!(
            "its weight is stored as {}, not as float32",
            data.element
        )),
        None => Err("its weight is not a constant".to_owned()),
    }
}

/// Makes names nobody else has.
pub(crate) struct Names(HashSet<String>);

impl Names {
    pub fn of(graph: &Graph) -> Self {
        let values = graph.values.iter().map(|v| v.name.clone());
        Self(
            values
                .chain(graph.nodes.iter().map(|n| n.name.clone()))
                .collect(),
        )
    }
    pub fn unique(&mut self, wanted: String) -> String {
        let mut name = wanted.clone();
        let mut n = 2;
        while !self.0.insert(name.clone()) {
            name = format!("{wanted}_{n}");
            n += 1;
        }
        name
    }
}

/// Adds a constant.
pub(crate) fn add_constant(graph: &mut Graph, name: String, data: TensorData) -> ValueId {
    let id = ValueId(graph.values.len() as u32);
    graph.values.push(Value {
        name,
        element: Some(data.element),
        shape: Some(data.shape.iter().map(|&d| Dim::Known(d)).collect()),
        data: Some(data),
    });
    id
}

/// Adds a value that a node will compute, shaped as `like`.
pub(crate) fn add_value(
    graph: &mut Graph,
    name: String,
    element: ElementType,
    like: ValueId,
) -> ValueId {
    let id = ValueId(graph.values.len() as u32);
    let shape = graph.values[like.0 as usize].shape.clone();
    graph.values.push(Value {
        name,
        element: Some(element),
        shape,
        data: None,
    });
    id
}

/// Puts `new` nodes before the node of the given old index, and drops those in `removed`, keeping the order.
pub(crate) fn rebuild(
    graph: &mut Graph,
    mut new: BTreeMap<usize, Vec<Node>>,
    removed: &HashSet<usize>,
) {
    let old = std::mem::take(&mut graph.nodes);
    for (index, node) in old.into_iter().enumerate() {
        graph.nodes.extend(new.remove(&index).unwrap_or_default());
        if !removed.contains(&index) {
            graph.nodes.push(node);
        }
    }
}
