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
    graph::{ElementType, Graph, Op, TensorData, ValueId},
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

/// Gives the values of places in a network, which must be asked for in the network's order.
pub(super) struct Walk {
    pub graph: Graph,
    producer: Vec<Option<usize>>,
    /// Nodes that depend on constants alone.
    fixed: BTreeSet<usize>,
    /// Values that everything behind hangs on alone, with the node that makes each.
    cuts: Vec<(usize, ValueId)>,
    /// Where the kept values stand; `None`: at the input.
    at: Option<(usize, ValueId)>,
    kept: Vec<(Chunk, Tensor)>,
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
        let mut fixed = BTreeSet::new();
        let mut moving = BTreeSet::from([input]);
        let mut last_use = vec![0; graph.values.len()];
        for (index, node) in graph.nodes.iter().enumerate() {
            let moves = node.inputs.iter().flatten().any(|v| moving.contains(v));
            if !moves {
                fixed.insert(index);
            }
            for value in node.outputs.iter().flatten() {
                producer[value.0 as usize] = Some(index);
                if moves {
                    moving.insert(*value);
                }
            }
            for value in node.inputs.iter().flatten() {
                last_use[value.0 as usize] = index;
            }
        }
        for value in &graph.outputs {
            last_use[value.0 as usize] = usize::MAX;
        }
        let sample: usize = batches
            .first()
            .map_or(0, |(_, b)| b.dims().iter().skip(1).product());
        let small = (KEPT.0 * sample).max(KEPT.1);
        let fits = |value: ValueId| {
            let shape = graph.value(value).shape.as_ref();
            let known = shape.map(|s| s.iter().skip(1).map(crate::graph::Dim::known));
            let elements = known.and_then(|mut dims| dims.try_fold(1_usize, |n, d| Some(n * d?)));
            elements.is_none_or(|n| n <= small)
        };
        let mut live = BTreeSet::from([input]);
        let mut cuts = Vec::new();
        for (index, node) in graph.nodes.iter().enumerate() {
            if fixed.contains(&index) {
                continue;
            }
            live.extend(node.outputs.iter().flatten().copied());
            live.retain(|v| last_use[v.0 as usize] > index);
            if let Some(&only) = live.first().filter(|_| live.len() == 1)
                && producer[only.0 as usize] == Some(index)
                && graph.value(only).element == Some(ElementType::F32)
                && fits(only)
            {
                cuts.push((index, only));
            }
        }
        Ok(Self {
            graph,
            producer,
            fixed,
            cuts,
            at: None,
            kept: batches,
        })
    }

    /// Samples it walks with.
    pub fn samples(&self) -> usize {
        self.kept.iter().map(|(chunk, _)| chunk.rows).sum()
    }

    /// Samples of each batch in turn.
    pub fn batch_rows(&self) -> Vec<usize> {
        self.kept.iter().map(|(chunk, _)| chunk.rows).collect()
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
            let program = self.segment(cut.1)?;
            for (_, batch) in &mut self.kept {
                *batch = run(&program, batch, cancel)?;
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
                .try_for_each(|(chunk, batch)| see(&chunk.own(batch)?));
        }
        let program = self.segment(value)?;
        for (chunk, batch) in &self.kept {
            see(&chunk.own(&run(&program, batch, cancel)?)?)?;
        }
        Ok(())
    }

    /// The part of the network from where the walk stands to `value`.
    fn segment(&self, value: ValueId) -> Result<Program, CompressError> {
        let mut graph = self.graph.clone();
        if let Some((at, input)) = self.at {
            let mut index = 0;
            graph.nodes.retain(|_| {
                index += 1;
                index - 1 > at || self.fixed.contains(&(index - 1))
            });
            graph.inputs = vec![input];
            graph.value_mut(input).shape = None;
        }
        graph.outputs = vec![value];
        Ok(Program::compile(&graph, Mode::Inference)?)
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
