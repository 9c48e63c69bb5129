//! Steps of the optimisers, and the learning rate's way.

use super::{DistilSettings, Optimizer, Schedule};
use candle_core::{Result, Tensor, Var, backprop::GradStore};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Share of the last step's velocity that SGD keeps.
const MOMENTUM: f32 = 0.9;

/// Of AdamW (Loshchilov & Hutter 2019): shares of the old means of gradients and of their squares, and what keeps a division by zero away.
const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f32 = 1e-8;

/// Warm-up of the cosine schedule: a twentieth of the steps, and no more than this.
const WARM_UP: u64 = 100;

/// First and last rate of one cycle, as shares of the highest, and the share of steps it rises over.
const CYCLE_FIRST: f64 = 0.04;
const CYCLE_LAST: f64 = 1e-4;
const CYCLE_RISE: f64 = 0.3;

/// Rate of step `step` (from 0) of `steps`.
pub(super) fn rate(settings: &DistilSettings, step: u64, steps: u64) -> f64 {
    let share = |share: f64| ((share * steps as f64).round() as u64).min(steps.saturating_sub(1));
    let (warm, first, last) = match settings.schedule {
        Schedule::Constant => (0, 0.0, 1.0),
        Schedule::Cosine => ((steps / 20).min(WARM_UP), 0.0, 0.0),
        Schedule::OneCycle => (share(CYCLE_RISE), CYCLE_FIRST, CYCLE_LAST),
    };
    let warm = settings.warm_up.map_or(warm, share);
    if step < warm {
        let risen = (step + 1) as f64 / (warm + 1) as f64;
        return settings.rate * (first + (1.0 - first) * risen);
    }
    if settings.schedule == Schedule::Constant {
        return settings.rate;
    }
    let done = (step - warm) as f64 / (steps - warm).max(1) as f64;
    // libm: the same bits on every system.
    let half = 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done));
    settings.rate * (last + (1.0 - last) * half)
}

/// What an optimiser remembers of the steps it took.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Moments {
    pub steps: u64,
    /// By parameter: mean gradient (of SGD the velocity), and mean squared gradient (of SGD empty). Both empty until the first gradient.
    pub of: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
}

/// An optimiser over the parameters, in the order of their names.
pub(super) struct Stepper {
    optimizer: Optimizer,
    clip_norm: Option<f64>,
    steps: u64,
    slots: Vec<Slot>,
}

struct Slot {
    name: String,
    var: Var,
    decay: f64,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Stepper {
    pub fn new(settings: &DistilSettings, parameters: &BTreeMap<String, Var>) -> Self {
        let slots = parameters.iter().map(|(name, var)| Slot {
            name: name.clone(),
            var: var.clone(),
            // Biases and normalisations don't decay.
            decay: if var.rank() >= 2 {
                settings.weight_decay
            } else {
                0.0
            },
            first: Vec::new(),
            second: Vec::new(),
        });
        Self {
            optimizer: settings.optimizer,
            clip_norm: settings.clip_norm,
            steps: 0,
            slots: slots.collect(),
        }
    }

    pub fn moments(&self) -> Moments {
        let of = |s: &Slot| (s.name.clone(), (s.first.clone(), s.second.clone()));
        Moments {
            steps: self.steps,
            of: self.slots.iter().map(of).collect(),
        }
    }

    /// Goes on from where `moments` were taken; false where they do not fit the parameters.
    pub fn restore(&mut self, moments: &Moments) -> bool {
        self.steps = moments.steps;
        self.slots.iter_mut().all(|slot| {
            let Some((first, second)) = moments.of.get(&slot.name) else {
                return false;
            };
            let fits = |m: &[f32]| m.is_empty() || m.len() == slot.var.elem_count();
            slot.first = first.clone();
            slot.second = second.clone();
            fits(first) && fits(second)
        })
    }

    /// One step along the gradients, which are taken out of `gradients`; parameters without one stay.
    pub fn step(&mut self, rate: f64, gradients: &mut GradStore) -> Result<()> {
        self.steps += 1;
        let mut given: Vec<Option<Vec<f32>>> = self
            .slots
            .iter()
            .map(|slot| {
                let gradient = gradients.remove(&slot.var);
                gradient
                    .map(|g| g.flatten_all()?.to_vec1::<f32>())
                    .transpose()
            })
            .collect::<Result<_>>()?;
        if let Some(most) = self.clip_norm {
            clip(&mut given, most);
        }
        let (optimizer, steps) = (self.optimizer, self.steps);
        self.slots
            .par_iter_mut()
            .zip(given)
            .try_for_each(|(slot, gradient)| match gradient {
                Some(gradient) => slot.step(optimizer, steps, rate, &gradient),
                None => Ok(()),
            })
    }
}

/// Scales gradients down to the norm `most`, taken over all of them; summed in their order, so that the bits are the same everywhere.
fn clip(gradients: &mut [Option<Vec<f32>>], most: f64) {
    let square = |g: &f32| f64::from(*g) * f64::from(*g);
    let all = gradients.iter().flatten().flatten();
    let norm = all.map(square).sum::<f64>().sqrt();
    // One that is no number is left to be noticed.
    if norm > most {
        let scale = (most / norm) as f32;
        for g in gradients.iter_mut().flatten().flatten() {
            *g *= scale;
        }
    }
}

impl Slot {
    fn step(
        &mut self,
        optimizer: Optimizer,
        steps: u64,
        rate: f64,
        gradient: &[f32],
    ) -> Result<()> {
        let mut weights = self.var.flatten_all()?.to_vec1::<f32>()?;
        self.first.resize(weights.len(), 0.0);
        let lr = rate as f32;
        match optimizer {
            Optimizer::Sgd => {
                let decay = self.decay as f32;
                for ((w, g), v) in weights.iter_mut().zip(gradient).zip(&mut self.first) {
                    *v = MOMENTUM * *v + (g + decay * *w);
                    *w -= lr * *v;
                }
            }
            Optimizer::AdamW => {
                self.second.resize(weights.len(), 0.0);
                let unbiased = |beta: f64| (1.0 / (1.0 - libm::pow(beta, steps as f64))) as f32;
                let (scale_1, scale_2) = (unbiased(BETA_1), unbiased(BETA_2));
                let (beta_1, beta_2) = (BETA_1 as f32, BETA_2 as f32);
                let (new_1, new_2) = ((1.0 - BETA_1) as f32, (1.0 - BETA_2) as f32);
                let kept = (1.0 - rate * self.decay) as f32;
                let moments = self.first.iter_mut().zip(&mut self.second);
                for ((w, g), (m, v)) in weights.iter_mut().zip(gradient).zip(moments) {
                    *m = beta_1 * *m + new_1 * g;
                    *v = beta_2 * *v + new_2 * g * g;
                    *w = *w * kept - lr * (*m * scale_1) / ((*v * scale_2).sqrt() + EPSILON);
                }
            }
        }
        let next = Tensor::from_vec(weights, self.var.shape(), self.var.device())?;
        self.var.set(&next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_scaled_together_and_only_down() {
        let gradients = || vec![Some(vec![3.0f32, 0.0]), None, Some(vec![4.0])];
        let mut clipped = gradients();
        clip(&mut clipped, 2.5);
        assert_eq!(clipped, [Some(vec![1.5, 0.0]), None, Some(vec![2.0])]);
        let mut small = gradients();
        clip(&mut small, 5.0);
        assert_eq!(small, gradients());
        let mut broken = vec![Some(vec![f32::NAN, 1.0])];
        clip(&mut broken, 0.1);
        assert!(
            broken[0]
                .as_ref()
                .is_some_and(|g| g[0].is_nan() && g[1] == 1.0)
        );
    }
}
