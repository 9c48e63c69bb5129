//! Walking a network from layer to layer: the values of any place for all calibration samples, without running the network from the start
//! each time. What is kept between layers are values that all later ones hang on alone, where they are small.

use super::{
    CompressError, Model,
    chunks::{Chunk, chunks},
    wiring::Wiring,
};
use crate::{
    data::{Dataset, SplitName},
    exec::{CancelToken, ExecError, Mode, NoTaps, Program},
    graph::{Dim, ElementType, Graph, Node, Op, TensorData, ValueId},
};
use candle_core::Tensor;
use std::collections::BTreeSet;

/// Samples a batch.
pub(super) const BATCH: usize = 16;
/// A value is kept where a sample of it has at most so many times the elements of an input, or this many.
const KEPT: (usize, usize) = (2, 1 << 16);

/// The first `samples` of the calibration split, in batches that `graph` takes.
///
/// # Errors
/// No data, or an empty split.
pub(super) fn batches(
    graph: &Graph,
    data: Option<&Dataset>,
    samples: usize,
    what: &str,
) -> Result<Vec<(Chunk, Tensor)>, CompressError> {
    let data = data.ok_or_else(|| {
        CompressError::Invalid(format!(
            "{what} needs data to compare the network's values on: give a task"
        ))
    })?;
    let total = samples.min(data.len(SplitName::Calibration));
    if total == 0 {
        return Err(CompressError::Invalid(format!(
            "{what} needs at least one sample: the task's calibration split is empty or the step asks for 0 samples"
        )));
    }
    chunks(0..total, BATCH, graph.fixed_batch())
        .map(|chunk| Ok((chunk, chunk.images(data)?)))
        .collect()
}

/// The network as it was before quantisation: quantisers and casts bypassed, weights whose rounding was chosen as they were. Values
/// keep their numbers.
pub(super) fn float_twin(model: &Model) -> Graph {
    let mut graph = model.graph.clone();
    let wiring = Wiring::of(&graph);
    let before = |value: Option<ValueId>| -> Option<usize> { wiring.producer(value?) };
    let mut bypassed = Vec::new();
    for node in &graph.nodes {
        let first = node.inputs.first().copied().flatten();
        let Some(mut maker) = before(first) else {
            continue;
        };
        let source = |maker: usize| graph.nodes[maker].inputs.first().copied().flatten();
        match node.op {
            Op::DequantizeLinear { .. } => {
                if graph.nodes[maker].op == Op::Clip
                    && let Some(earlier) = before(source(maker))
                {
                    maker = earlier;
                }
                if !matches!(
                    graph.nodes[maker].op,
                    Op::QuantizeLinear { .. } | Op::DynamicQuantizeLinear
                ) {
                    continue;
                }
            }
            Op::Cast {
                to: ElementType::F32,
            } if matches!(
                graph.nodes[maker].op,
                Op::Cast {
                    to: ElementType::F16 | ElementType::BF16
                }
            ) => {}
            _ => continue,
        }
        if let (Some(float), Some(output)) =
            (source(maker), node.outputs.first().copied().flatten())
            && graph.value(float).element == Some(ElementType::F32)
        {
            bypassed.push((output, float));
        }
    }
    for (output, float) in bypassed {
        graph.rewire(output, float);
    }
    for (name, original) in &model.originals {
        if let Some(id) = graph.find_value(name)
            && let Some(data) = &graph.value(id).data
        {
            let data = TensorData::from_f32(&data.shape.clone(), &original.weights);
            graph.set_data(id, data);
        }
    }
    graph
}

/// Nodes whose results hang on the graph's input: on its numbers, not on its shape alone where `still` says so of them.
pub(super) fn moving(graph: &Graph, still: impl Fn(&Node) -> bool) -> Vec<bool> {
    let mut values: BTreeSet<ValueId> = graph.inputs.iter().copied().collect();
    let moves = |node: &Node| {
        let moves = !still(node) && node.inputs.iter().flatten().any(|v| values.contains(v));
        if moves {
            values.extend(node.outputs.iter().flatten());
        }
        moves
    };
    graph.nodes.iter().map(moves).collect()
}

/// The values of a graph with the one input `input` that all moving nodes behind hang on alone, in order, with the node that makes each.
/// What nodes read of which `still` is true does not count.
pub(super) fn cuts(
    graph: &Graph,
    input: ValueId,
    moving: &[bool],
    still: impl Fn(&Node) -> bool,
) -> Vec<(usize, ValueId)> {
    let mut last_use = vec![0; graph.values.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        for value in node.inputs.iter().flatten().filter(|_| !still(node)) {
            last_use[value.0 as usize] = index;
        }
    }
    for value in graph.outputs.iter().chain(&graph.captured_values()) {
        last_use[value.0 as usize] = usize::MAX;
    }
    let mut live = BTreeSet::from([input]);
    let mut cuts = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        if !moving[index] {
            continue;
        }
        live.extend(node.outputs.iter().flatten().copied());
        live.retain(|v| last_use[v.0 as usize] > index);
        if let Some(&only) = live.first()
            && live.len() == 1
            && node.outputs.contains(&Some(only))
        {
            cuts.push((index, only));
        }
    }
    cuts
}

pub(super) fn reads_shape(node: &Node) -> bool {
    matches!(node.op, Op::Shape { .. })
}

/// Values with their data.
type Shapes = Vec<(ValueId, TensorData)>;

/// What `Shape` nodes give for an input of the extents `dims`, where it follows from them alone: the value and its data.
fn shapes(graph: &Graph, input: ValueId, dims: &[usize]) -> Shapes {
    let mut bound = graph.clone();
    for node in &graph.nodes {
        // What a file states of values in between may be of another batch.
        for output in node.outputs.iter().flatten() {
            bound.value_mut(*output).shape = None;
        }
    }
    bound.value_mut(input).shape = Some(dims.iter().map(|d| Dim::Known(*d)).collect());
    bound.infer_shapes();
    let given = |node: &Node| {
        let Op::Shape { start, end } = node.op else {
            return None;
        };
        let of = bound.value(node.inputs.first().copied().flatten()?);
        let dims: Option<Vec<i64>> = of
            .shape
            .as_ref()?
            .iter()
            .map(|d| i64::try_from(d.known()?).ok())
            .collect();
        let dims = dims?;
        let rank = dims.len() as i64;
        let at = |end: i64| (if end < 0 { end + rank } else { end }).clamp(0, rank) as usize;
        let (start, end) = (at(start.unwrap_or(0)), at(end.unwrap_or(rank)));
        let asked = dims.get(start..end.max(start))?;
        let output = node.outputs.first().copied().flatten()?;
        Some((output, TensorData::from_i64(&[asked.len()], asked)))
    };
    graph.nodes.iter().filter_map(given).collect()
}

/// Gives the values of places in a network, which must be asked for in the network's order.
pub(super) struct Walk {
    pub graph: Graph,
    producer: Vec<Option<usize>>,
    /// Nodes that depend on the input's numbers.
    moving: Vec<bool>,
    /// Values that everything behind hangs on alone, with the node that makes each.
    cuts: Vec<(usize, ValueId)>,
    /// Extents of the input that occur, with what `Shape` nodes give there: constants, so that what they read need not be kept.
    sizes: Vec<(Vec<usize>, Shapes)>,
    /// Where the kept values stand; `None`: at the input.
    at: Option<(usize, ValueId)>,
    kept: Vec<Kept>,
}

/// Kept values of a batch.
struct Kept {
    chunk: Chunk,
    batch: Tensor,
    /// Which of the input's extents it began with.
    size: usize,
}

impl Walk {
    /// Starts at the graph's one input with its `batches`.
    ///
    /// # Errors
    /// A model with several inputs.
    pub fn new(graph: Graph, batches: Vec<(Chunk, Tensor)>) -> Result<Self, CompressError> {
        let &[input] = graph.inputs.as_slice() else {
            return Err(CompressError::Invalid(format!(
                "layers can be followed in models with one input only; this one has {}",
                graph.inputs.len()
            )));
        };
        let mut producer = vec![None; graph.values.len()];
        for (index, node) in graph.nodes.iter().enumerate() {
            for value in node.outputs.iter().flatten() {
                producer[value.0 as usize] = Some(index);
            }
        }
        let mut sizes: Vec<(Vec<usize>, Shapes)> = Vec::new();
        let mut kept = Vec::with_capacity(batches.len());
        for (chunk, batch) in batches {
            let dims = batch.dims();
            let known = sizes.iter().position(|(of, _)| of == dims);
            let size = known.unwrap_or_else(|| {
                sizes.push((dims.to_vec(), shapes(&graph, input, dims)));
                sizes.len() - 1
            });
            kept.push(Kept { chunk, batch, size });
        }
        let common: BTreeSet<ValueId> = sizes
            .iter()
            .map(|(_, given)| given.iter().map(|(output, _)| *output).collect())
            .reduce(|a: BTreeSet<ValueId>, b| &a & &b)
            .unwrap_or_default();
        for (_, given) in &mut sizes {
            given.retain(|(output, _)| common.contains(output));
        }
        let still = |node: &Node| {
            let output = node.outputs.first().copied().flatten();
            output.is_some_and(|output| common.contains(&output))
        };
        let moving = moving(&graph, still);
        let sample: usize = kept
            .first()
            .map_or(0, |k| k.batch.dims().iter().skip(1).product());
        let small = (KEPT.0 * sample).max(KEPT.1);
        let fits = |value: ValueId| {
            let shape = graph.value(value).shape.as_ref();
            let known = shape.map(|s| s.iter().skip(1).map(Dim::known));
            let elements = known.and_then(|mut dims| dims.try_fold(1_usize, |n, d| Some(n * d?)));
            elements.is_none_or(|n| n <= small)
        };
        let mut cuts = cuts(&graph, input, &moving, still);
        cuts.retain(|(_, v)| graph.value(*v).element == Some(ElementType::F32) && fits(*v));
        Ok(Self {
            graph,
            producer,
            moving,
            cuts,
            sizes,
            at: None,
            kept,
        })
    }

    /// Samples it walks with.
    pub fn samples(&self) -> usize {
        self.kept.iter().map(|kept| kept.chunk.rows).sum()
    }

    /// Samples of each batch in turn.
    pub fn batch_rows(&self) -> Vec<usize> {
        self.kept.iter().map(|kept| kept.chunk.rows).collect()
    }

    /// Calls `see` with `value` for each batch in turn, without the samples that fill a batch up. Nothing before an earlier asked place may have changed in the graph since;
    /// the node that makes `value` may.
    ///
    /// # Errors
    /// A graph that cannot run, or cancellation.
    pub fn visit(
        &mut self,
        value: ValueId,
        cancel: &CancelToken,
        mut see: impl FnMut(&Tensor) -> Result<(), CompressError>,
    ) -> Result<(), CompressError> {
        let made = self.producer[value.0 as usize];
        let after = |cut: &&(usize, ValueId)| {
            made.is_some_and(|m| cut.0 < m) && self.at.is_none_or(|(at, _)| cut.0 > at)
        };
        if let Some(&cut) = self.cuts.iter().rev().find(after) {
            let programs = self.segments(cut.1)?;
            for kept in &mut self.kept {
                kept.batch = run(&programs[kept.size], &kept.batch, cancel)?;
            }
            self.at = Some(cut);
        }
        let here = match self.at {
            Some((_, at)) => at == value,
            None => self.graph.inputs.first() == Some(&value),
        };
        if here {
            return self
                .kept
                .iter()
                .try_for_each(|kept| see(&kept.chunk.own(&kept.batch)?));
        }
        let programs = self.segments(value)?;
        for kept in &self.kept {
            let found = run(&programs[kept.size], &kept.batch, cancel)?;
            see(&kept.chunk.own(&found)?)?;
        }
        Ok(())
    }

    /// The part of the network from where the walk stands to `value`, for each size of the input.
    fn segments(&self, value: ValueId) -> Result<Vec<Program>, CompressError> {
        let segment = |(_, shapes): &(_, Shapes)| {
            let mut graph = self.graph.clone();
            let done = self.at.map(|(at, _)| at);
            let mut index = 0;
            graph.nodes.retain(|node| {
                index += 1;
                let before = self.moving[index - 1] && done.is_some_and(|done| index - 1 <= done);
                let output = node.outputs.first().copied().flatten();
                let known = shapes.iter().any(|(of, _)| Some(*of) == output);
                !before && !known
            });
            for (output, data) in shapes {
                graph.set_data(*output, data.clone());
            }
            if let Some((_, input)) = self.at {
                graph.inputs = vec![input];
                graph.value_mut(input).shape = None;
            }
            graph.outputs = vec![value];
            Ok(Program::compile(&graph, Mode::Inference)?)
        };
        self.sizes.iter().map(segment).collect()
    }
}

fn run(program: &Program, batch: &Tensor, cancel: &CancelToken) -> Result<Tensor, CompressError> {
    if cancel.is_cancelled() {
        return Err(ExecError::Cancelled.into());
    }
    let mut outputs = program.run(std::slice::from_ref(batch), &mut NoTaps, cancel)?;
    outputs.pop().ok_or_else(|| {
        CompressError::Invalid("a part of the network that was followed has no output".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::testkit::Net;
    use candle_core::{DType, Device};

    /// stem → relu → widen → relu → pool → reshape to (extent 0 of `x`, −1) → head; the extent by `Shape`, as exporters write it.
    fn network() -> (Graph, [ValueId; 4]) {
        let mut net = Net::new(5, &[2, 7, 7]);
        let shape = Op::Shape {
            start: Some(0),
            end: Some(1),
        };
        let batch = net.node("shape", shape, &[ValueId(0)]);
        let stem = net.conv("stem", ValueId(0), [4, 2, 3, 3], 1, true);
        let stem = net.relu("stem_relu", stem);
        let wide = net.conv("widen", stem, [6, 4, 3, 3], 1, true);
        let wide = net.relu("widen_relu", wide);
        let pooled = net.node("pool", Op::GlobalAveragePool, &[wide]);
        let rest = net
            .graph
            .add_constant("rest", TensorData::from_i64(&[1], &[-1]));
        let to = net.node("to", Op::Concat { axis: 0 }, &[batch, rest]);
        let rows = net.node("reshape", Op::Reshape { allow_zero: false }, &[pooled, to]);
        let out = net.linear("head", rows, [3, 6], 0.1);
        let mut graph = net.finish(&[out]).graph;
        graph.infer_shapes();
        (graph, [stem, wide, rows, out])
    }

    fn input(samples: usize) -> Vec<(Chunk, Tensor)> {
        let values: Vec<f32> = (0..samples * 98).map(|i| (i as f32 * 0.37).sin()).collect();
        let all = Tensor::from_vec(values, (samples, 2, 7, 7), &Device::Cpu).expect("98 a sample");
        chunks(0..samples, BATCH, None)
            .scan(0, |first, chunk| {
                let part = all.narrow(0, *first, chunk.rows);
                *first += chunk.rows;
                Some((chunk, part.expect("within")))
            })
            .collect()
    }

    fn whole(graph: &Graph, value: ValueId, batch: &Tensor) -> Tensor {
        let mut graph = graph.clone();
        graph.outputs = vec![value];
        let program = Program::compile(&graph, Mode::Inference).expect("it compiles");
        run(&program, batch, &CancelToken::default()).expect("it runs")
    }

    /// Two sizes of batch: what `Shape` gives differs between them.
    #[test]
    fn a_walk_gives_every_place_and_goes_on_from_kept_values_past_a_shape_of_the_input() {
        let (graph, places) = network();
        let batches = input(BATCH + 3);
        let mut walk = Walk::new(graph.clone(), batches.clone()).expect("one input");
        for (number, value) in places.into_iter().enumerate() {
            let mut seen = Vec::new();
            walk.visit(value, &CancelToken::default(), |found| {
                seen.push(found.clone());
                Ok(())
            })
            .expect("the place is there");
            assert_eq!(seen.len(), 2);
            for ((_, batch), found) in batches.iter().zip(seen) {
                let expected = whole(&graph, value, batch);
                assert_eq!(found.dims(), expected.dims());
                let difference = (found - expected)
                    .and_then(|d| d.abs()?.max_all()?.to_dtype(DType::F32)?.to_scalar::<f32>())
                    .expect("floats");
                assert!(difference < 1e-5, "place {number}: {difference}");
            }
            assert!(
                walk.at.is_some(),
                "place {number} is computed from the input on"
            );
        }
        assert_eq!(walk.at.map(|(_, value)| value), Some(places[2]));
    }

    /// An extent that does not follow from the input's: its `Shape` hangs on the numbers, and what it reads is needed until then.
    #[test]
    fn a_shape_that_does_not_follow_from_the_inputs_is_computed() {
        let (mut graph, [stem, wide, ..]) = network();
        let shape = graph.nodes.iter().position(reads_shape).expect("there");
        let kept = |graph: &Graph| {
            let walk = Walk::new(graph.clone(), input(2)).expect("one input");
            walk.cuts.iter().any(|(_, value)| *value == wide)
        };
        graph.nodes[shape].inputs[0] = Some(stem);
        graph.sort().expect("no circle");
        assert!(kept(&graph), "the stem's extents follow from the input's");
        let stem_relu = graph.nodes.iter_mut().find(|n| n.name == "stem_relu");
        let stem_relu = stem_relu.expect("there");
        stem_relu.op = Op::Unsupported {
            domain: "test".to_owned(),
            op_type: "Pick".to_owned(),
            attributes: Vec::new(),
            reason: "made up".to_owned(),
        };
        assert!(!kept(&graph), "nobody knows what it gives");
    }
}
