//! Layers whose output is added to a value that is there already, as the last of a residual block is: the sum is what the network goes on
//! with, so the layer is held against the float network's sum less what is added to it here. What went wrong on the other way is made good
//! as far as it can be.

use super::{
    Walks,
    problem::{Places, Problem},
};
use crate::{
    compress::{CompressError, segments::Walk, wiring::Wiring},
    exec::{self, CancelToken},
    graph::{BinaryOp, Graph, Op, ValueId},
};

/// The sum behind a layer's output, where nothing else reads the output and what is added is computed before the layer: its quantisation is
/// chosen already. Quantisers in between and constants that are added (biases of products) change nothing.
pub(super) fn sum_behind(
    graph: &Graph,
    wiring: &Wiring,
    node: usize,
    output: ValueId,
) -> Option<ValueId> {
    let mut value = output;
    loop {
        let &[next] = wiring.consumers(value) else {
            return None;
        };
        let reader = &graph.nodes[next];
        let result = reader.outputs.first().copied().flatten()?;
        match reader.op {
            _ if wiring.is_output(value) => return None,
            Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. } => value = result,
            Op::Binary(BinaryOp::Add) => {
                let other = reader.inputs.iter().flatten().find(|v| **v != value)?;
                if graph.value(*other).data.is_none() {
                    let made = source(graph, wiring, *other);
                    return made.is_none_or(|made| made < node).then_some(result);
                }
                value = result;
            }
            _ => return None,
        }
    }
}

/// The node that makes a value, before it is quantised.
fn source(graph: &Graph, wiring: &Wiring, mut value: ValueId) -> Option<usize> {
    loop {
        let made = wiring.producer(value)?;
        let node = &graph.nodes[made];
        let pair = matches!(
            node.op,
            Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. }
        );
        match node.inputs.first().copied().flatten() {
            Some(before) if pair => value = before,
            _ => return Some(made),
        }
    }
}

/// Puts into `target` what the layer should give so that `sum` is the float network's; `patches` are what it reads.
pub(super) fn into_target(
    problem: &Problem,
    sum: ValueId,
    walks: &mut Walks,
    (places, patches): (&Places, &[f32]),
    target: &mut [f32],
    cancel: &CancelToken,
) -> Result<(), CompressError> {
    let sums = |walk: &mut Walk| -> Result<Option<Vec<f32>>, CompressError> {
        let mut found = Some(vec![0.0; target.len()]);
        let mut first = 0;
        walk.visit(sum, cancel, |batch| {
            if let Some(sums) = &mut found
                && !problem.gather_outputs(batch, places, first, sums)?
            {
                found = None;
            }
            first += batch.dims().first().copied().unwrap_or(0);
            Ok(())
        })?;
        Ok(found)
    };
    let (Some(wanted), Some(found)) = (sums(&mut walks.float)?, sums(&mut walks.quantised)?) else {
        return Ok(());
    };
    let nearest = problem.nearest_values(&problem.scales);
    let own = exec::on_pool(|| problem.outputs_of(&nearest, patches, places.rows()));
    for (((target, wanted), found), own) in target.iter_mut().zip(wanted).zip(found).zip(own) {
        *target = wanted - (found - own);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::testkit::Net;

    /// The sum behind `layer`, by name.
    fn found(net: Net, layer: &str) -> Option<String> {
        let graph = net.graph;
        let wiring = Wiring::of(&graph);
        let node = graph.find_node(layer)?.0 as usize;
        let output = graph.nodes[node].outputs[0]?;
        let sum = sum_behind(&graph, &wiring, node, output)?;
        Some(graph.value(sum).name.clone())
    }

    fn add(net: &mut Net, name: &str, a: ValueId, b: ValueId) -> ValueId {
        net.node(name, Op::Binary(BinaryOp::Add), &[a, b])
    }

    #[test]
    fn sums_are_found_where_what_is_added_is_there_already() {
        let linear = |name: &str| {
            let mut net = Net::new(1, &[4]);
            let x = net.linear(name, ValueId(0), [4, 4], 0.1);
            (net, x)
        };
        let (mut net, x) = linear("layer");
        add(&mut net, "sum", x, ValueId(0));
        assert_eq!(found(net, "layer").as_deref(), Some("sum_out"));

        // Behind a constant and a pair of quantisers.
        let (mut net, x) = linear("layer");
        let [bias, scale] = [("bias", &[4][..]), ("scale", &[])]
            .map(|(name, shape)| net.weight(name, shape, 0.1, 0.2));
        let x = add(&mut net, "biased", bias, x);
        let to = crate::graph::ElementType::I8;
        let (axis, block) = (1, 0);
        let x = net.node("q", Op::QuantizeLinear { axis, block, to }, &[x, scale]);
        let x = net.node("dq", Op::DequantizeLinear { axis, block }, &[x, scale]);
        add(&mut net, "sum", ValueId(0), x);
        assert_eq!(found(net, "layer").as_deref(), Some("sum_out"));

        // What is added is computed later: it is still to be chosen, and takes the rest.
        let (mut net, x) = linear("layer");
        let other = net.linear("later", ValueId(0), [4, 4], 0.1);
        add(&mut net, "sum", x, other);
        assert_eq!(found(net, "layer"), None);
        let (mut net, x) = linear("layer");
        let other = net.linear("later", ValueId(0), [4, 4], 0.1);
        add(&mut net, "sum", x, other);
        assert_eq!(found(net, "later").as_deref(), Some("sum_out"));

        // Something else reads it, or a function comes first.
        let (mut net, x) = linear("layer");
        add(&mut net, "sum", x, ValueId(0));
        net.relu("else", x);
        assert_eq!(found(net, "layer"), None);
        let (mut net, x) = linear("layer");
        let x = net.relu("relu", x);
        add(&mut net, "sum", x, ValueId(0));
        assert_eq!(found(net, "layer"), None);
    }
}
