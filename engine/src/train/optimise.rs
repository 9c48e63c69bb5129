//! Steps of the optimisers, and the learning rate's way.

use super::{DistilSettings, Optimizer, Schedule};
use candle_core::{Result, Tensor, Var, backprop::GradStore};
use candle_nn::optim::{AdamW, Optimizer as _, ParamsAdamW, SGD};

/// Share of the last step's velocity that SGD keeps.
const MOMENTUM: f64 = 0.9;

/// Warm-up of the cosine schedule: a twentieth of the steps, and no more than this.
const WARM_UP: u64 = 100;

/// Rate of step `step` (from 0) of `steps`.
pub(super) fn rate(settings: &DistilSettings, step: u64, steps: u64) -> f64 {
    match settings.schedule {
        Schedule::Constant => settings.rate,
        Schedule::Cosine => {
            let warm = (steps / 20).min(WARM_UP);
            if step < warm {
                return settings.rate * (step + 1) as f64 / (warm + 1) as f64;
            }
            let done = (step - warm) as f64 / (steps - warm).max(1) as f64;
            // libm: the same bits on every system.
            settings.rate * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done))
        }
    }
}

/// An optimiser over the parameters, in their given order.
pub(super) enum Stepper {
    Sgd {
        inner: SGD,
        /// (parameter, its velocity, its decay)
        state: Vec<(Var, Option<Tensor>, f64)>,
    },
    /// Decaying and other parameters apart.
    AdamW(Vec<AdamW>),
}

impl Stepper {
    pub fn new(settings: &DistilSettings, parameters: Vec<Var>) -> Result<Self> {
        let decay = |var: &Var| {
            if var.rank() >= 2 {
                settings.weight_decay
            } else {
                0.0
            }
        };
        Ok(match settings.optimizer {
            Optimizer::Sgd => Self::Sgd {
                inner: SGD::new(parameters.clone(), settings.rate)?,
                state: parameters
                    .into_iter()
                    .map(|var| {
                        let decay = decay(&var);
                        (var, None, decay)
                    })
                    .collect(),
            },
            Optimizer::AdamW => {
                let (decaying, others): (Vec<Var>, Vec<Var>) =
                    parameters.into_iter().partition(|var| var.rank() >= 2);
                let build = |vars, weight_decay| {
                    let settings = ParamsAdamW {
                        lr: settings.rate,
                        weight_decay,
                        ..ParamsAdamW::default()
                    };
                    AdamW::new(vars, settings)
                };
                Self::AdamW(vec![
                    build(decaying, settings.weight_decay)?,
                    build(others, 0.0)?,
                ])
            }
        })
    }

    pub fn step(&mut self, rate: f64, gradients: &mut GradStore) -> Result<()> {
        match self {
            Self::Sgd { inner, state } => {
                // candle's SGD has no momentum: it is given the velocity as the gradient.
                for (var, velocity, decay) in state {
                    let Some(mut gradient) = gradients.remove(var) else {
                        continue;
                    };
                    if *decay > 0.0 {
                        gradient = (gradient + (var.as_tensor().detach() * *decay)?)?;
                    }
                    let next = match velocity {
                        Some(velocity) => ((&*velocity * MOMENTUM)? + gradient)?,
                        None => gradient,
                    };
                    gradients.insert(var, next.clone());
                    *velocity = Some(next);
                }
                inner.set_learning_rate(rate);
                inner.step(gradients)
            }
            Self::AdamW(parts) => {
                for part in parts {
                    part.set_learning_rate(rate);
                    part.step(gradients)?;
                }
                Ok(())
            }
        }
    }
}
