//! Layers whose output is added to a value that is there already, as the last of a residual block is: the sum is what the network goes on
//! with, so the layer is held against the float network's sum less what is added to it here. What went wrong on the other way is made good
//! as far as it can be.

use super::{
    Walks,
    problem::{Places, Problem},
};
use crate::{
    compress::{
        CompressError,
        segments::{Walk, moving, reads_shape},
        wiring::Wiring,
    },
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
    let moving = moving(graph, reads_shape);
    let moves = |value: ValueId| {
        graph.inputs.contains(&value) || wiring.producer(value).is_some_and(|made| moving[made])
    };
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
                if moves(*other) {
                    let made = source(graph, wiring, *other);
                    return made.is_none_or(|made| made < node).then_some(result);
                }
                // A constant, or what follows from the input's shape: then the layer's output alone goes on.
                graph.value(*other).data.as_ref()?;
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
    use candle_core::{Device, Tensor};

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

    /// Rows of positions, in two batches: of each place the row that its patch has.
    #[test]
    fn outputs_are_gathered_where_patches_are() {
        let (samples, positions, outputs) = (4, 5, 3);
        let problem = Problem::plain(&[1.0; 6], 1.0, (outputs, 2), 0.0, (0.0, 1.0));
        let places = (problem.places(&[2, positions, 2], samples, 12, 3)).expect("fits");
        let of = |first: usize, channels: usize| {
            let at = |i: usize| 10 * (first * positions + i / channels) + i % channels;
            let values: Vec<f32> = (0..2 * positions * channels)
                .map(|i| at(i) as f32)
                .collect();
            Tensor::from_vec(values, (2, positions, channels), &Device::Cpu).expect("fits")
        };
        let mut patches = vec![0.0; 2 * places.rows()];
        let mut gathered = vec![0.0; outputs * places.rows()];
        for first in [0, 2] {
            let x = of(first, 2);
            problem
                .gather(&x, &places, first, &mut patches)
                .expect("fits");
            let y = of(first, outputs);
            assert!(
                problem
                    .gather_outputs(&y, &places, first, &mut gathered)
                    .expect("fits")
            );
        }
        let rows = places.rows();
        for (output, row) in gathered.chunks_exact(rows).enumerate() {
            for (found, patch) in row.iter().zip(&patches[..rows]) {
                assert_eq!(*found, patch + output as f32);
            }
        }
        assert!(
            patches[..rows].iter().any(|v| *v >= 100.0),
            "of both batches"
        );
        let other = of(0, 1);
        assert!(
            !problem
                .gather_outputs(&other, &places, 0, &mut gathered)
                .expect("told")
        );
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

        // What is added follows from the shape alone.
        let (mut net, x) = linear("layer");
        let (start, end) = (None, None);
        let shape = net.node("shape", Op::Shape { start, end }, &[ValueId(0)]);
        let value = crate::graph::TensorData::scalar(0.5);
        let still = net.node("still", Op::ConstantOfShape { value }, &[shape]);
        add(&mut net, "sum", x, still);
        assert_eq!(found(net, "layer"), None);

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
