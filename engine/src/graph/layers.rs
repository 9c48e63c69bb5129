//! The layers a user sees: nodes with a weight of their own.

use super::{Graph, Layer, LayerId, Node, NodeId, Op, SharedValues, ValueId};

impl Graph {
    /// Conv, ConvTranspose, Gemm and MatMul nodes whose weight is a constant, in the graph's order. Shapes of
    /// unknown batch are taken for one sample; MACs are `None` where further extents stay unknown.
    pub fn layers(&self) -> Vec<Layer> {
        let mut sample = self.clone();
        sample.bind_batch(1);
        // A batch that the file fixes is divided out again.
        let batch = sample
            .inputs
            .first()
            .and_then(|&id| sample.value(id).shape.as_ref()?.first()?.known())
            .unwrap_or(1)
            .max(1) as u64;
        let producers = sample.producers();
        sample
            .iter_nodes()
            .filter_map(|(id, node)| layer(&sample, &producers, id, node, batch))
            .collect()
    }

    /// The layer of this name.
    pub fn layer(&self, id: &LayerId) -> Option<Layer> {
        self.layers().into_iter().find(|l| l.id == *id)
    }

    /// The constant that `value` comes from through QuantizeLinear, DequantizeLinear, Cast and Identity: itself
    /// where it is one. Of a weight that shares values, the codes.
    pub fn constant_behind(&self, value: ValueId) -> Option<ValueId> {
        constant_behind(self, &self.producers(), value)
    }
}

fn constant_behind(
    graph: &Graph,
    producers: &[Option<NodeId>],
    mut value: ValueId,
) -> Option<ValueId> {
    let mut dequantised = false;
    // A graph's order has no cycles, but this may be asked of one that isn't valid yet.
    for _ in 0..=graph.nodes.len() {
        if graph.value(value).data.is_some() {
            return Some(value);
        }
        let node = graph.node((*producers.get(value.0 as usize)?)?);
        match node.op {
            Op::QuantizeLinear { .. }
            | Op::DequantizeLinear { .. }
            | Op::Cast { .. }
            | Op::Identity => {}
            // Of codes, held to fewer bits than their type has.
            Op::Clip if dequantised => {}
            // Values that weights share: their codes stand for the weight.
            Op::Gather { axis: 0 } => {
                let made_by = |id: ValueId| {
                    let node = (*producers.get(id.0 as usize)?)?;
                    Some(graph.node(node))
                };
                return SharedValues::read_by(graph, node, made_by).map(|shared| shared.codes);
            }
            _ => return None,
        }
        dequantised |= matches!(node.op, Op::DequantizeLinear { .. });
        value = node.inputs.first().copied().flatten()?;
    }
    None
}

fn layer(
    graph: &Graph,
    producers: &[Option<NodeId>],
    id: NodeId,
    node: &Node,
    batch: u64,
) -> Option<Layer> {
    let input = |at: usize| node.inputs.get(at).copied().flatten();
    let (op, bias_at) = match node.op {
        Op::Conv { .. } => ("Conv", Some(2)),
        Op::ConvTranspose { .. } => ("ConvTranspose", Some(2)),
        Op::Gemm { .. } => ("Gemm", Some(2)),
        Op::MatMul => ("MatMul", None),
        _ => return None,
    };
    let weight = constant_behind(graph, producers, input(1)?)?;
    let weight_shape = graph.value(weight).data.as_ref()?.shape.clone();
    let least = if matches!(op, "Conv" | "ConvTranspose") {
        3
    } else {
        2
    };
    if weight_shape.len() < least {
        return None;
    }
    let bias = bias_at
        .and_then(input)
        .and_then(|b| constant_behind(graph, producers, b));
    let channel_axis = match node.op {
        Op::Conv { .. } => 0,
        Op::Gemm { trans_b, .. } => usize::from(!trans_b),
        Op::ConvTranspose { .. } => 1,
        _ => weight_shape.len() - 1,
    };
    let elements = |id: ValueId| graph.value(id).data.as_ref().map_or(0, |d| d.len() as u64);
    let (layer_input, output) = (input(0)?, node.outputs.first().copied().flatten()?);
    let macs = macs(graph, node, layer_input, output, &weight_shape).map(|m| m / batch);
    Some(Layer {
        id: LayerId(node.name.as_str().into()),
        node: id,
        op,
        weight,
        bias,
        input: layer_input,
        output,
        channel_axis,
        params: elements(weight) + bias.map_or(0, elements),
        weight_shape,
        macs,
    })
}

/// Multiply–accumulates of one run with the shapes as they are.
fn macs(
    graph: &Graph,
    node: &Node,
    input: ValueId,
    output: ValueId,
    weight: &[usize],
) -> Option<u64> {
    let count = |dims: &[usize]| dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let elements = |id: ValueId| count(&graph.value(id).known_shape()?);
    match node.op {
        // Every output element sums over the input channels of its group and the kernel.
        Op::Conv { .. } => elements(output)?.checked_mul(count(weight.get(1..)?)?),
        // Every input element is spread over the output channels of its group and the kernel.
        Op::ConvTranspose { .. } => elements(input)?.checked_mul(count(weight.get(1..)?)?),
        Op::Gemm { trans_b, .. } => {
            elements(output)?.checked_mul(*weight.get(usize::from(trans_b))? as u64)
        }
        _ => elements(output)?.checked_mul(*weight.get(weight.len().checked_sub(2)?)? as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, ElementType, Padding, TensorData, Window};

    fn weight(g: &mut Graph, name: &str, shape: &[usize]) -> Option<ValueId> {
        let n = shape.iter().product();
        Some(g.add_constant(name, TensorData::from_f32(shape, &vec![0.5; n])))
    }

    /// N×3×8×8 → Conv 3→4 of 3×3 stride 2 with an int8 weight → Reshape → Gemm to 10.
    fn network(batch: Dim) -> Graph {
        let mut g = Graph::default();
        let shape = vec![batch, Dim::Known(3), Dim::Known(8), Dim::Known(8)];
        let x = g.add_value("x", Some(ElementType::F32), Some(shape));
        g.inputs.push(x);
        let codes = TensorData::from_i64_as(ElementType::I8, &[4, 3, 3, 3], &[1; 108]);
        let codes = g.add_constant("codes", codes);
        let scale = g.add_constant("scale", TensorData::scalar(0.1));
        let w = g.add_value("w", None, None);
        let dequantize = Op::DequantizeLinear { axis: 0, block: 0 };
        g.add_node(
            "dq",
            dequantize,
            vec![Some(codes), Some(scale)],
            vec![Some(w)],
        );
        let b = weight(&mut g, "b", &[4]);
        let y = g.add_value("y", None, None);
        let conv = Op::Conv {
            window: Window {
                kernel: vec![3, 3],
                strides: vec![2, 2],
                dilations: vec![1, 1],
                padding: Padding::Explicit(vec![1; 4]),
            },
            group: 1,
        };
        g.add_node("conv", conv, vec![Some(x), Some(w), b], vec![Some(y)]);
        let target = g.add_constant("target", TensorData::from_i64(&[2], &[0, -1]));
        let flat = g.add_value("flat", None, None);
        let reshape = Op::Reshape { allow_zero: false };
        g.add_node(
            "flatten",
            reshape,
            vec![Some(y), Some(target)],
            vec![Some(flat)],
        );
        let v = weight(&mut g, "v", &[10, 64]);
        let z = g.add_value("z", None, None);
        let gemm = Op::Gemm {
            alpha: 1.0,
            beta: 1.0,
            trans_a: false,
            trans_b: true,
        };
        g.add_node("head", gemm, vec![Some(flat), v], vec![Some(z)]);
        g.outputs.push(z);
        g.validate().unwrap();
        g
    }

    #[test]
    fn layers_are_counted_for_one_sample() {
        for batch in [
            Dim::Symbol("N".into()),
            Dim::Unknown,
            Dim::Known(1),
            Dim::Known(6),
        ] {
            let g = network(batch);
            let layers = g.layers();
            assert_eq!(layers.len(), 2);
            let (conv, head) = (&layers[0], &layers[1]);
            assert_eq!(
                (&*conv.id.0, conv.op, conv.channel_axis),
                ("conv", "Conv", 0)
            );
            assert_eq!(
                g.value(conv.weight).name,
                "codes",
                "found through DequantizeLinear"
            );
            assert_eq!((conv.params, conv.macs), (108 + 4, Some(4 * 4 * 4 * 27)));
            assert_eq!((head.op, head.channel_axis, head.bias), ("Gemm", 0, None));
            assert_eq!((head.params, head.macs), (640, Some(640)));
        }
    }

    #[test]
    fn a_product_of_two_computed_values_is_no_layer() {
        let mut g = network(Dim::Known(1));
        let z = g.outputs[0];
        let p = g.add_value("p", None, None);
        g.add_node(
            "attention",
            Op::MatMul,
            vec![Some(z), Some(z)],
            vec![Some(p)],
        );
        assert_eq!(g.layers().len(), 2);
    }
}
