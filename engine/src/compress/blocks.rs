//! Whole residual blocks: found, judged by what the outputs miss without them, and taken out.

use super::{CompressError, PassContext, chunks::chunks, structured::settle};
use crate::{
    data::{Dataset, SplitName},
    eval::{EvalError, RowReader, batch_size, mean_kl},
    exec::{ExecError, Mode, NoTaps, Program},
    graph::{BinaryOp, Graph, LayerId, NodeId, Op, UnaryOp, ValueId},
};
use std::collections::BTreeSet;

/// A residual block: what it adds to a value of the same shape, and the sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Name of the value that goes past the block and stands for the sum where the block is gone.
    pub skip: String,
    /// Name of what is added to it.
    pub branch: String,
    /// Name of the sum.
    pub sum: String,
    /// Layers within, in the graph's order; at least one.
    pub layers: Vec<LayerId>,
}

impl Block {
    /// As people know it: by its first and last layer.
    pub fn words(&self) -> String {
        match &self.layers[..] {
            [] => self.sum.clone(),
            [only] => only.0.to_string(),
            [first, .., last] => format!("{} to {}", first.0, last.0),
        }
    }
}

/// Blocks that can be taken out, in the graph's order: sums of a value and of what is computed from that value, of the same shape, with
/// layers in between whose results nothing else reads.
pub fn blocks(graph: &Graph) -> Vec<Block> {
    let bound = graph.at_some_size();
    let layers = bound.layers();
    let consumers = bound.consumers();
    let producers = bound.producers();
    let mut kept: BTreeSet<ValueId> = bound.outputs.iter().copied().collect();
    kept.extend(bound.captured_values());
    let mut found = Vec::new();
    for (id, node) in bound.iter_nodes() {
        let (Op::Binary(BinaryOp::Add), [Some(a), Some(b)], Some(Some(sum))) =
            (&node.op, node.inputs.as_slice(), node.outputs.first())
        else {
            continue;
        };
        let shape = |v: ValueId| bound.value(v).known_shape();
        for (skip, branch) in [(*a, *b), (*b, *a)] {
            let fits = shape(skip).is_some() && shape(skip) == shape(*sum);
            if bound.value(skip).data.is_some() || !fits || kept.contains(sum) {
                continue;
            }
            let within = between(&bound, &producers, skip, branch);
            let own = |reader: &NodeId| *reader == id || within.contains(reader);
            let closed = within.iter().all(|n| {
                bound.node(*n).outputs.iter().flatten().all(|v| {
                    let readers = consumers.get(v);
                    !kept.contains(v) && readers.is_none_or(|r| r.iter().all(|(n, _)| own(n)))
                })
            });
            let inside = layers.iter().filter(|l| within.contains(&l.node));
            let inside: Vec<LayerId> = inside.map(|l| l.id.clone()).collect();
            if closed && !inside.is_empty() {
                let name = |v: ValueId| bound.value(v).name.clone();
                found.push(Block {
                    skip: name(skip),
                    branch: name(branch),
                    sum: name(*sum),
                    layers: inside,
                });
                break;
            }
        }
    }
    found
}

/// Nodes on the ways from `skip` to `branch`; none where it is not computed from it.
fn between(
    graph: &Graph,
    producers: &[Option<NodeId>],
    skip: ValueId,
    branch: ValueId,
) -> BTreeSet<NodeId> {
    let mut reached = BTreeSet::from([skip]);
    let mut behind = BTreeSet::new();
    for (id, node) in graph.iter_nodes() {
        if node.inputs.iter().flatten().any(|v| reached.contains(v)) {
            behind.insert(id);
            reached.extend(node.outputs.iter().flatten());
        }
    }
    let (mut nodes, mut open) = (BTreeSet::new(), vec![branch]);
    while let Some(value) = open.pop() {
        let producer = producers.get(value.0 as usize).copied().flatten();
        if value != skip
            && let Some(node) = producer
            && behind.contains(&node)
            && nodes.insert(node)
        {
            open.extend(graph.node(node).inputs.iter().flatten());
        }
    }
    nodes
}

/// `graph` without these blocks.
///
/// # Errors
/// A block that the graph does not have.
pub(super) fn without(graph: &Graph, gone: &[&Block]) -> Result<Graph, CompressError> {
    let mut graph = graph.clone();
    // The last one first: what a block before it added to is then known to all that read this one's sum.
    for block in gone.iter().rev() {
        let (Some(skip), Some(sum)) = (graph.find_value(&block.skip), graph.find_value(&block.sum))
        else {
            return Err(CompressError::Invalid(format!(
                "the network has no residual block {}",
                block.words()
            )));
        };
        graph.rewire(sum, skip);
    }
    rectify_once(&mut graph);
    graph.remove_dead_nodes();
    graph.infer_shapes();
    Ok(graph)
}

/// The activation behind a block that is gone reads what the one before it computed: twice is once.
fn rectify_once(graph: &mut Graph) {
    let mut rectified: BTreeSet<ValueId> = BTreeSet::new();
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let (Op::Unary(UnaryOp::Relu), [Some(x)], &[Some(y)]) =
            (&node.op, node.inputs.as_slice(), node.outputs.as_slice())
        else {
            continue;
        };
        let x = *x;
        if rectified.contains(&x) && !graph.outputs.contains(&y) {
            graph.rewire(y, x);
        } else {
            rectified.insert(y);
        }
    }
}

/// What the outputs miss without each block alone: the mean divergence KL(with ‖ without) in nats over the first `samples` of the calibration
/// split, statistics settled as they will be.
///
/// # Errors
/// A network that cannot run, data that cannot be read, cancellation.
pub(super) fn influences(
    graph: &Graph,
    blocks: &[Block],
    data: &Dataset,
    samples: usize,
    context: &PassContext<'_>,
) -> Result<Vec<f64>, CompressError> {
    let classes = data.info().classes.len();
    let rows = |graph: &Graph| -> Result<Vec<f32>, CompressError> {
        let program = Program::compile(graph, Mode::Inference)?;
        let size = batch_size(&data.info().sample_shape);
        let n = samples.min(data.len(SplitName::Calibration));
        let mut all = Vec::new();
        for chunk in chunks(0..n, size, program.fixed_batch()) {
            let outputs = program.run(&[chunk.images(data)?], &mut NoTaps, context.cancel)?;
            let first = outputs.first().ok_or_else(|| {
                CompressError::Invalid("the model has no output to judge blocks by".to_owned())
            })?;
            let own = chunk.own(first)?;
            let values = own.flatten_all().and_then(|t| t.to_vec1::<f32>());
            all.extend(values.map_err(ExecError::from)?);
        }
        Ok(all)
    };
    let wrong = |e: EvalError| CompressError::Invalid(e.to_string());
    let whole = rows(graph)?;
    let reader = RowReader::like(classes, &whole).map_err(wrong)?;
    let read = |rows: Vec<f32>| reader.clone().read(rows, 0).map_err(wrong);
    let (whole, _) = read(whole)?;
    blocks
        .iter()
        .map(|block| {
            let mut less = without(graph, &[block])?;
            settle(graph, &mut less, samples, context)?;
            let (less, _) = read(rows(&less)?)?;
            Ok(mean_kl(&whole, &less, classes).value)
        })
        .collect()
}
