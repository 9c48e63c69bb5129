//! What of a program is trained: parameters with their masks, step sizes of quantised weights, running statistics of batch norms, and how
//! they come back into the graph.

use super::{
    ExecError, Program,
    elementwise::{Bin, binary},
    fuse::Step,
    lowered::BatchStatistics,
    ops,
    program::Scheduled,
    quick::Quick,
    value::Val,
};
use crate::graph::{ElementType, Graph, Op, ValueId};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::{BTreeMap, BTreeSet};

/// A learned step size.
pub(super) struct Learned {
    /// As the graph has it.
    first: Tensor,
    /// Gradient of the step size by its factor, as it is taken.
    slope: Tensor,
}

impl Learned {
    /// Share of what a step size began as that it does not fall below: no step of an optimiser makes it vanish or negative.
    const LEAST: f64 = 0.01;

    /// The step size at this factor.
    fn now(&self, times: &Tensor) -> candle_core::Result<Tensor> {
        let value = times.detach().maximum(Self::LEAST)?;
        let value = (value.reshape(self.first.shape())? * &self.first)?;
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

    /// Makes the step sizes of fake-quantised weights parameters: as many as are counted are learned from now on, by
    /// [`Program::gradients`] and [`Program::store`] (LSQ, Esser et al. 2020). Each is a vector of factors (1 at first) on the step sizes that
    /// the graph has, so that a step of an optimiser changes a step size in proportion, whatever its unit. Their gradients are scaled as in
    /// the paper, by 1/√(weights a step size × largest code), and such that a step of gradient descent on the factor is, in proportion, the paper's
    /// on the step size.
    ///
    /// Left as they are: step sizes of activations, those that quantise and dequantise by different constants of equal value, and those of weights
    /// that are not trained.
    pub fn learn_step_sizes(&mut self, graph: &Graph) -> Result<usize, ExecError> {
        let slot = |v: Option<ValueId>| v.map(|v| v.0 as usize);
        // Both halves of a pair read the scale, so that both find what was learned.
        let quantises = |scale: usize| {
            graph.nodes.iter().any(|n| {
                matches!(n.op, Op::QuantizeLinear { .. })
                    && slot(n.inputs.get(1).copied().flatten()) == Some(scale)
            })
        };
        let weights: BTreeSet<usize> = self.places.values().copied().collect();
        let mut found = BTreeMap::new();
        for step in &self.steps {
            let (Step::FakeQuant { to, limits, .. }, [Some(x), Some(scale), ..]) =
                (&step.step, step.inputs.as_slice())
            else {
                continue;
            };
            let (Some(weight), Some(value)) = (graph.values.get(*x), graph.values.get(*scale))
            else {
                continue;
            };
            if let Some(Val::Float(first, ElementType::F32)) = self.constants.once(scale)
                && let Some(weight) = &weight.data
                && weights.contains(x)
                && quantises(*scale)
            {
                let largest = ops::largest_code(*to, *limits).max(1) as f64;
                let weights: usize = weight.shape.iter().product();
                let share = weights as f64 / first.elem_count().max(1) as f64;
                let first = first.detach();
                let slope = (first.recip()? / (share * largest).sqrt())?;
                found.insert(*scale, (value.name.clone(), Learned { first, slope }));
            }
        }
        let count = found.len();
        for (scale, (name, learned)) in found {
            let times = Tensor::ones(learned.first.elem_count(), DType::F32, &Device::Cpu)?;
            self.parameters
                .insert(name.clone(), Var::from_tensor(&times)?);
            self.places.insert(name.clone(), scale);
            self.learned.insert(name, learned);
        }
        self.quick = Quick::default();
        Ok(count)
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
