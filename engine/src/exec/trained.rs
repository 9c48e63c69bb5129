//! What of a program is trained: parameters with their masks, step sizes of quantised weights and activations, running statistics of batch
//! norms, and how they come back into the graph.

use super::{
    ExecError, Program,
    elementwise::{Bin, binary},
    fuse::Step,
    lowered::{BatchStatistics, weight_slots},
    ops,
    program::Scheduled,
    quick::{Quick, parts},
    value::Val,
};
use crate::graph::{Dim, ElementType, Graph, Node, Op, UnaryOp, ValueId};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::{BTreeMap, BTreeSet};

/// How many step sizes are learned: tensors of them, one that several values are quantised by counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepSizes {
    /// A step size that weights and activations have in common is one of weights.
    pub weights: usize,
    pub activations: usize,
}

/// A learned step size.
pub(super) struct Learned {
    /// As the graph has it.
    first: Tensor,
    /// Gradient of the step size by its factor, as it is taken.
    slope: Tensor,
    /// What it does not exceed, where that is given.
    most: Option<f32>,
}

impl Learned {
    /// Share of what a step size began as that it does not fall below: no step of an optimiser makes it vanish or negative.
    const LEAST: f64 = 0.01;

    /// The step size at this factor.
    fn now(&self, times: &Tensor) -> candle_core::Result<Tensor> {
        let value = times.detach().maximum(Self::LEAST)?;
        let mut value = (value.reshape(self.first.shape())? * &self.first)?;
        if let Some(most) = self.most {
            value = value.minimum(f64::from(most))?;
        }
        let nothing = (times - times.detach())?.reshape(self.first.shape())?;
        value + (nothing * &self.slope)?
    }
}

impl Program {
    /// A parameter as it takes effect: its mask laid over it, a learned step size in the weights' own unit.
    pub(super) fn masked(&self, name: &str) -> candle_core::Result<Tensor> {
        let t = self.parameters[name].as_tensor().clone();
        if let Some(learned) = self.learned.get(name) {
            return learned.now(&t);
        }
        match self.masks.get(name) {
            Some(mask) => binary(&t, mask, Bin::Mul),
            None => Ok(t),
        }
    }

    /// Trainable parameters by value name (empty in `Inference`).
    pub fn parameters(&self) -> &BTreeMap<String, Var> {
        &self.parameters
    }

    /// Makes the step sizes of fake-quantised weights and activations parameters: as many as are counted are learned from now on, by
    /// [`Program::gradients`] and [`Program::store`] (LSQ, Esser et al. 2020). Each is a vector of factors (1 at first) on the step sizes that
    /// the graph has, so that a step of an optimiser changes a step size in proportion, whatever its unit. Their gradients are scaled as in
    /// the paper, by 1/√(weights a step size × largest code), of activations by 1/√(features a sample × largest code), and such that a step of gradient
    /// descent on the factor is, in proportion, the paper's on the step size. Zero points stay.
    ///
    /// Features are counted along all axes but the first, `sample` being the extents of one sample of the input; what they leave open counts as 1.
    /// A constant that several pairs read is learned once, by the sum of their gradients, its weights and features counted together. Where the range
    /// implies the bounds of a Clip before it, the step size stays so small that it does: else no target would leave the Clip out.
    ///
    /// Left as they are: step sizes of activations along an axis or in blocks, those that quantise and dequantise by different constants of equal value,
    /// those that something else reads too, and those of weights that are not trained.
    pub fn learn_step_sizes(
        &mut self,
        graph: &Graph,
        sample: &[usize],
    ) -> Result<StepSizes, ExecError> {
        let mut count = StepSizes::default();
        for (scale, found) in self.step_sizes_of(graph, sample) {
            let (Some(value), Some(Val::Float(first, ElementType::F32))) =
                (graph.values.get(scale), self.constants.once(&scale))
            else {
                continue;
            };
            match found.weights {
                true => count.weights += 1,
                false => count.activations += 1,
            }
            let first = first.detach();
            let elements: usize = found.elements.values().sum();
            let share = elements.max(1) as f64 / first.elem_count().max(1) as f64;
            let learned = Learned {
                slope: (first.recip()? / (share * found.largest as f64).sqrt())?,
                first,
                most: found.most,
            };
            let times = Tensor::ones(learned.first.elem_count(), DType::F32, &Device::Cpu)?;
            let name = value.name.clone();
            self.parameters
                .insert(name.clone(), Var::from_tensor(&times)?);
            self.places.insert(name.clone(), scale);
            self.learned.insert(name, learned);
        }
        self.quick = Quick::default();
        Ok(count)
    }

    /// What can be learned, by the slot of the scale.
    fn step_sizes_of(&self, graph: &Graph, sample: &[usize]) -> BTreeMap<usize, Found> {
        let trained: BTreeSet<usize> = self.places.values().copied().collect();
        let known = trained
            .iter()
            .chain(self.constants.keys())
            .copied()
            .collect();
        // What depends on weights alone is no activation.
        let (fixed, _) = weight_slots(&parts(self), &known);
        let producers = graph.producers();
        let maker = |value: Option<ValueId>| {
            let node = producers.get(value?.0 as usize).copied().flatten()?;
            Some(node.0 as usize)
        };
        // Shapes are asked for where there are activations.
        let mut sized: Option<Graph> = None;
        let mut found: BTreeMap<usize, Found> = BTreeMap::new();
        let mut apart = BTreeSet::new();
        for step in &self.steps {
            let (
                Step::FakeQuant {
                    to, limits, block, ..
                },
                &[Some(x), Some(scale), ..],
                &[Some(output)],
            ) = (&step.step, step.inputs.as_slice(), step.outputs.as_slice())
            else {
                continue;
            };
            let pair = pair_of(graph, &maker, ValueId(output as u32));
            let scales = self.constants.shape(&scale);
            let one = scales.is_some_and(|shape| shape.iter().product::<usize>() == 1);
            let value = graph.values.get(x);
            let weight = value.and_then(|v| v.data.as_ref());
            let elements = match weight {
                Some(weight) if trained.contains(&x) => weight.shape.iter().product(),
                None if !fixed.contains(&x) && one && *block == 0 => {
                    let sized = sized.get_or_insert_with(|| at_size(graph, sample));
                    features(sized, x)
                }
                _ => 0,
            };
            let (Some([quantises, dequantises]), true) = (pair, elements > 0) else {
                apart.insert(scale);
                continue;
            };
            let reads = |node: usize| {
                graph.nodes[node].inputs.get(1).copied().flatten() == Some(ValueId(scale as u32))
            };
            if !reads(quantises) || !reads(dequantises) {
                apart.insert(scale);
                continue;
            }
            let largest = ops::largest_code(*to, *limits).max(1);
            let found = found.entry(scale).or_default();
            found.weights |= weight.is_some();
            found.largest = found.largest.max(largest);
            found.elements.insert(x, elements);
            found.readers.extend([quantises, dequantises]);
            if weight.is_none() {
                let most = most_for(graph, &maker, quantises, *to);
                found.most = [found.most, most].into_iter().flatten().reduce(f32::min);
            }
        }
        // Whatever else reads a scale would see it move, or was computed from it already.
        for (at, node) in graph.nodes.iter().enumerate() {
            for input in node.inputs.iter().flatten() {
                let scale = input.0 as usize;
                if found.get(&scale).is_some_and(|f| !f.readers.contains(&at)) {
                    apart.insert(scale);
                }
            }
        }
        found.retain(|scale, _| !apart.contains(scale));
        found
    }

    /// Multiplies parameter `name` by a 0/1 mask of its shape in every forward pass from now on.
    pub fn set_mask(&mut self, name: &str, mask: Tensor) -> Result<(), ExecError> {
        let Some(var) = self.parameters.get(name) else {
            return Err(ExecError::Input(format!(
                "{name} is not a trainable parameter"
            )));
        };
        if var.dims() != mask.dims() {
            return Err(ExecError::Input(format!(
                "a mask of shape {:?} for parameter {name} of shape {:?}",
                mask.dims(),
                var.dims()
            )));
        }
        let mask = mask.to_dtype(DType::F32)?.contiguous()?.detach();
        self.masks.insert(name.to_owned(), mask);
        Ok(())
    }

    /// Where a step is a batch norm that takes the mini-batch's statistics: the slots of its running mean and variance, and its epsilon.
    pub(super) fn norm_of_batch(&self, s: &Scheduled) -> Option<([usize; 2], f32)> {
        let Step::Op(Op::BatchNormalization { epsilon }) = &s.step else {
            return None;
        };
        let &[.., Some(mean), Some(variance)] = s.inputs.as_slice() else {
            return None;
        };
        (self.by_batch && self.statistics.contains_key(&mean))
            .then_some(([mean, variance], *epsilon))
    }

    /// Batch norms that can take the mini-batch's statistics: of a program in training, those whose running mean and variance are float32
    /// weights of the model. None is left where they were folded into the convolutions before them.
    pub fn batch_norms(&self) -> usize {
        let is = |s: &&Scheduled| match (&s.step, s.inputs.as_slice()) {
            (Step::Op(Op::BatchNormalization { .. }), &[.., Some(mean), _]) => {
                self.statistics.contains_key(&mean)
            }
            _ => false,
        };
        self.steps.iter().filter(is).count()
    }

    /// Lets the batch norms take the statistics of each mini-batch ([`Program::gradients`] reports them), or their stored ones again.
    pub fn set_batch_statistics(&mut self, on: bool) {
        if self.by_batch != on {
            self.by_batch = on;
            self.quick = Quick::default();
        }
    }

    /// Moves running means and variances towards what a mini-batch showed, by ONNX's rule:
    /// `running = running·momentum + seen·(1 − momentum)`, the variance that of the population.
    pub fn follow(&mut self, seen: &[BatchStatistics], momentum: f64) -> Result<(), ExecError> {
        for seen in seen {
            for (slot, values) in seen.slots.into_iter().zip([&seen.mean, &seen.variance]) {
                let Some(Val::Float(old, _)) = self.constants.get(&slot) else {
                    continue;
                };
                let next: Vec<f32> = old
                    .flatten_all()?
                    .to_vec1::<f32>()?
                    .iter()
                    .zip(values)
                    .map(|(old, new)| {
                        (f64::from(*old) * momentum + f64::from(*new) * (1.0 - momentum)) as f32
                    })
                    .collect();
                let next = Tensor::from_vec(next, old.shape(), old.device())?;
                self.constants.insert(slot, Val::f32(next));
                self.moved = true;
            }
        }
        Ok(())
    }

    /// Writes the parameters' present values (masked where a mask is set) into the graph they came from, and running means and variances
    /// that have moved.
    pub fn store(&self, graph: &mut Graph) -> Result<(), ExecError> {
        let mut values = Vec::with_capacity(self.places.len());
        for (name, &slot) in &self.places {
            values.push((name, slot, Val::f32(self.masked(name)?.detach())));
        }
        if self.moved {
            for (&slot, name) in &self.statistics {
                values.extend(self.constants.get(&slot).map(|v| (name, slot, v.clone())));
            }
        }
        for (name, slot, value) in values {
            let data = value.to_data().map_err(|e| ExecError::Input(e.0))?;
            // Edits may have moved values since: the name is what counts.
            let value = match graph.values.get_mut(slot) {
                Some(v) if v.name == *name => Some(v),
                _ => graph.values.iter_mut().find(|v| v.name == *name),
            };
            match value {
                Some(v) if v.data.as_ref().is_some_and(|d| d.shape == data.shape) => {
                    v.data = Some(data);
                }
                _ => {
                    return Err(ExecError::Input(format!(
                        "the graph has no weight {name} of shape {:?}",
                        data.shape
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Pairs that one scale quantises by.
#[derive(Default)]
struct Found {
    /// Whether there are weights among what is quantised.
    weights: bool,
    largest: i64,
    /// What is quantised, with the number of its elements, of activations those of one sample.
    elements: BTreeMap<usize, usize>,
    /// Nodes of the pairs.
    readers: BTreeSet<usize>,
    most: Option<f32>,
}

/// Which node makes a value.
type Maker<'a> = dyn Fn(Option<ValueId>) -> Option<usize> + 'a;

/// The nodes that quantise and dequantise where the latter gives `output`: with nothing but a Clip of the codes in between.
fn pair_of(graph: &Graph, maker: &Maker<'_>, output: ValueId) -> Option<[usize; 2]> {
    let before = |node: usize| maker(graph.nodes[node].inputs.first().copied().flatten());
    let dequantises = maker(Some(output))?;
    let mut quantises = before(dequantises)?;
    if graph.nodes[quantises].op == Op::Clip {
        quantises = before(quantises)?;
    }
    matches!(graph.nodes[quantises].op, Op::QuantizeLinear { .. })
        .then_some([quantises, dequantises])
}

/// `graph` for samples of this size.
fn at_size(graph: &Graph, sample: &[usize]) -> Graph {
    let mut sized = graph.clone();
    let mut sizes = BTreeMap::new();
    if let &[input] = graph.inputs.as_slice() {
        let open = || vec![Dim::Unknown; sample.len() + 1];
        let shape = sized.value_mut(input).shape.get_or_insert_with(open);
        if shape.len() == sample.len() + 1 {
            for (dim, extent) in shape[1..].iter_mut().zip(sample) {
                match dim {
                    Dim::Symbol(name) => {
                        sizes.insert(name.to_string(), *extent);
                    }
                    _ => *dim = Dim::Known(*extent),
                }
            }
        }
    }
    sized.bind_symbols(&sizes);
    sized
}

/// Elements of a value in one sample: along all axes but the first, those of unknown extent left out.
fn features(graph: &Graph, value: usize) -> usize {
    let shape = graph.values.get(value).and_then(|v| v.shape.as_ref());
    let behind = shape.and_then(|s| s.get(1..)).unwrap_or_default();
    let known = behind.iter().filter_map(|d| d.known());
    known.fold(1_usize, usize::saturating_mul).max(1)
}

/// The largest scale at which the range of a quantisation implies the bounds of all Clips before it that it implies now.
fn most_for(graph: &Graph, maker: &Maker<'_>, quantises: usize, to: ElementType) -> Option<f32> {
    let data = |node: &Node, slot: usize| {
        let value = node.inputs.get(slot).copied().flatten()?;
        graph.value(value).data.as_ref()
    };
    let node = &graph.nodes[quantises];
    let scale = *data(node, 1)?.to_f32_vec().first()?;
    let zero = data(node, 2).and_then(|z| z.to_i64_vec().first().copied());
    let (lo, hi) = to.integer_range()?;
    // Outermost codes, counted from the zero point.
    let codes = [lo, hi].map(|code| (code - zero.unwrap_or(0)) as f32);
    let mut most: Option<f32> = None;
    let mut at = maker(node.inputs.first().copied().flatten());
    // As many steps as there are nodes at most: a broken graph may have a cycle.
    for _ in 0..=graph.nodes.len() {
        let Some(node) = at.map(|at| &graph.nodes[at]) else {
            break;
        };
        let carries = match node.op {
            Op::Clip => {
                for (slot, code, sign) in [(1, codes[0], -1.0), (2, codes[1], 1.0)] {
                    let bound = data(node, slot).and_then(|b| b.to_f32_vec().first().copied());
                    if let Some(bound) = bound
                        && code * sign > 0.0
                        && code * scale * sign <= bound * sign
                    {
                        let largest = largest_within(code.abs(), bound * sign).max(scale);
                        most = Some(most.map_or(largest, |most| most.min(largest)));
                    }
                }
                true
            }
            _ => carries(&node.op),
        };
        at = maker(node.inputs.first().copied().flatten()).filter(|_| carries);
    }
    most
}

/// The largest scale whose product with `code`, as a float, is no more than `bound`; both are positive.
fn largest_within(code: f32, bound: f32) -> f32 {
    let mut scale = bound / code;
    while scale > 0.0 && code * scale > bound {
        scale = scale.next_down();
    }
    scale
}

/// Operators that give some of their values on, as they are or cut off below.
fn carries(op: &Op) -> bool {
    matches!(
        op,
        Op::Unary(UnaryOp::Relu)
            | Op::MaxPool { .. }
            | Op::Reshape { .. }
            | Op::Flatten { .. }
            | Op::Transpose { .. }
            | Op::Squeeze
            | Op::Unsqueeze
            | Op::Identity
    )
}
