//! Masks that grow while the network trains.

use super::TrainError;
use crate::{compress, exec::Program};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// Kept (true) or not, by name of the weight.
pub(super) type Masks = BTreeMap<String, Vec<bool>>;

/// Pruning on its way.
pub(super) struct Gradual {
    plan: compress::Gradual,
    /// Mini-batches an epoch.
    batches: usize,
    /// Updates that have been made.
    done: usize,
    /// As they are laid over the weights now.
    pub masks: Masks,
}

impl Gradual {
    /// Of a student that is to be pruned while it trains; `masks` are those it has.
    ///
    /// # Errors
    /// A weight that is not trained: its mask could not be laid over it.
    pub fn new(
        plan: &compress::Gradual,
        masks: &Masks,
        program: &Program,
        batches: usize,
    ) -> Result<Self, TrainError> {
        let untrained = plan
            .weights
            .keys()
            .find(|name| !program.parameters().contains_key(*name));
        if let Some(name) = untrained {
            return Err(TrainError::Settings(format!(
                "{name} is to be pruned while it trains, but it is no weight that trains"
            )));
        }
        let own = |(name, mask): (&String, &Vec<bool>)| {
            let planned = plan.weights.contains_key(name);
            planned.then(|| (name.clone(), mask.clone()))
        };
        Ok(Self {
            masks: masks.iter().filter_map(own).collect(),
            plan: plan.clone(),
            batches,
            done: 0,
        })
    }

    /// Whether the masks are final.
    pub fn is_done(&self) -> bool {
        self.done >= self.plan.schedule.count()
    }

    /// Makes the updates that are due after `step` mini-batches, by the magnitudes that the weights have now.
    pub fn follow(&mut self, program: &mut Program, step: u64) -> Result<(), TrainError> {
        let due = self.plan.schedule.due(step, self.batches);
        if due <= self.done {
            return Ok(());
        }
        self.done = due;
        for (name, target) in &self.plan.weights {
            let Some(var) = program.parameters().get(name) else {
                continue;
            };
            let weights = var.flatten_all()?.to_vec1::<f32>()?;
            let share = self.plan.schedule.share(target.ratio(), due);
            let old = self.masks.get(name).map(Vec::as_slice);
            let mask = target.mask(share, &weights, old);
            lay(program, name, &mask)?;
            self.masks.insert(name.clone(), mask);
        }
        Ok(())
    }

    /// Goes to where the masks were after `step` mini-batches; false where they do not fit the program, which has the student's own.
    pub fn restore(
        &mut self,
        program: &mut Program,
        masks: &Masks,
        step: u64,
    ) -> Result<bool, TrainError> {
        for (name, mask) in masks {
            let fits = |len: usize| self.plan.weights.contains_key(name) && len == mask.len();
            let var = program.parameters().get(name);
            if !var.is_some_and(|var| fits(var.elem_count())) {
                return Ok(false);
            }
            lay(program, name, mask)?;
        }
        self.done = self.plan.schedule.due(step, self.batches);
        self.masks.clone_from(masks);
        Ok(true)
    }
}

/// Lays a mask over a parameter.
pub(super) fn lay(program: &mut Program, name: &str, mask: &[bool]) -> Result<(), TrainError> {
    let Some(var) = program.parameters().get(name) else {
        return Ok(());
    };
    if mask.len() != var.elem_count() {
        return Err(TrainError::Settings(format!(
            "the mask of {name} has {} elements, its weight {}",
            mask.len(),
            var.elem_count()
        )));
    }
    let values: Vec<f32> = mask.iter().map(|kept| f32::from(u8::from(*kept))).collect();
    let mask = Tensor::from_vec(values, var.shape(), &Device::Cpu)?;
    program.set_mask(name, mask)?;
    Ok(())
}
