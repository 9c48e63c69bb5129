//! The roundings of one block's layers together: the relaxation of `layerwise/soft.rs`, down the gradient of the block's squared error.

use super::{
    BrecqSettings,
    part::{Part, Values, distance},
};
use crate::{
    compress::layerwise::{Penalty, Problem, Soft},
    exec::{CancelToken, ExecError, Mode, Program, on_pool},
    graph::{Layer, ValueId},
};
use candle_core::{Device, Tensor, Var};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// Samples that the layers' shares of the error are taken from.
const PROBED: usize = 16;

/// A layer of the block whose roundings are chosen.
pub(super) struct Member<'a> {
    pub layer: &'a Layer,
    pub problem: &'a Problem,
}

impl Member<'_> {
    /// What codes (counted from the zero points) stand for, as the model has its weights.
    pub fn weights(&self, codes: &[i32]) -> Vec<f32> {
        let values = self.problem.values(codes, &self.problem.scales);
        self.problem.in_place(&values)
    }

    fn float(&self) -> Vec<f32> {
        self.problem.in_place(&self.problem.weights)
    }

    /// The codes nearest to weights as the model has them.
    pub fn nearest(&self, weights: &[f32]) -> Vec<i32> {
        let problem = self.problem;
        let weights = problem.in_order(weights).into_iter().enumerate();
        weights
            .map(|(i, w)| problem.held(i, w / problem.scale(i)))
            .collect()
    }
}

/// What the block reads in the quantised network and should give, and the samples that the choice sees.
pub(super) struct Seen<'a> {
    pub inputs: &'a Values,
    pub targets: &'a Values,
    pub fitted: &'a [usize],
}

/// Weights for the members, in their order.
pub(super) fn given<'w>(
    members: &[Member<'_>],
    weights: &'w [Vec<f32>],
) -> impl Iterator<Item = (ValueId, &'w [f32])> {
    let ids: Vec<ValueId> = members.iter().map(|m| m.layer.weight).collect();
    ids.into_iter().zip(weights.iter().map(Vec::as_slice))
}

/// Chooses all codes of the members, counted from the zero points.
pub(super) fn solve(
    part: &Part,
    members: &[Member<'_>],
    seen: &Seen<'_>,
    settings: &BrecqSettings,
    seed: u64,
    cancel: &CancelToken,
) -> Result<Vec<Vec<i32>>, ExecError> {
    let noise = noise(part, members, seen, cancel)?;
    let total: f64 = noise.iter().sum();
    let mut descent = Descent::new(part, members, settings)?;
    if total > 0.0 {
        let count = |m: &Member<'_>| m.problem.weights.len() as f64;
        let all: f64 = members.iter().map(count).sum();
        // Errors are counted in units of what a weight's own rounding costs, as a whole step: twelve times what it costs on average.
        let unit = 12.0 * total / all;
        for (own, (noise, member)) in descent.own.iter_mut().zip(noise.iter().zip(members)) {
            own.decision = settings.decision * (12.0 * noise / count(member) / unit) as f32;
        }
        let mut draw = Draw::new(seen.fitted, seed);
        for step in 0..settings.iterations {
            descent.step(part, seen, &mut draw, unit, step, cancel)?;
        }
    }
    Ok(descent.own.iter().map(|own| own.soft.codes()).collect())
}

/// What the rounding to nearest of each layer alone does to the block's output, per sample: its share of the block's error.
fn noise(
    part: &Part,
    members: &[Member<'_>],
    seen: &Seen<'_>,
    cancel: &CancelToken,
) -> Result<Vec<f64>, ExecError> {
    let probed = &seen.fitted[..seen.fitted.len().min(PROBED)];
    let mut weights: Vec<Vec<f32>> = members.iter().map(Member::float).collect();
    let run = |weights: &[Vec<f32>]| {
        let program = part.program(Mode::Inference, given(members, weights))?;
        part.run(&program, seen.inputs, probed, cancel)
    };
    let whole = run(&weights)?;
    let mut all = Vec::with_capacity(members.len());
    for (at, member) in members.iter().enumerate() {
        let rounded = member.weights(&member.nearest(&weights[at]));
        let float = std::mem::replace(&mut weights[at], rounded);
        all.push(distance(&run(&weights)?, &whole) / probed.len() as f64);
        weights[at] = float;
    }
    Ok(all)
}

/// Samples in an order drawn anew for each round through them.
struct Draw {
    order: Vec<usize>,
    at: usize,
    rng: ChaCha8Rng,
}

impl Draw {
    fn new(samples: &[usize], seed: u64) -> Self {
        Self {
            order: samples.to_vec(),
            at: samples.len(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    fn next(&mut self, count: usize) -> Vec<usize> {
        let one = |_| {
            if self.at == self.order.len() {
                self.order.shuffle(&mut self.rng);
                self.at = 0;
            }
            self.at += 1;
            self.order[self.at - 1]
        };
        (0..count).map(one).collect()
    }
}

/// One layer on its way down.
struct Own<'a> {
    problem: &'a Problem,
    shape: &'a [usize],
    var: Var,
    soft: Soft,
    scales: Vec<f32>,
    /// Weight of the penalty.
    decision: f32,
}

struct Descent<'a> {
    settings: &'a BrecqSettings,
    program: Program,
    own: Vec<Own<'a>>,
}

impl<'a> Descent<'a> {
    fn new(
        part: &Part,
        members: &'a [Member<'a>],
        settings: &'a BrecqSettings,
    ) -> Result<Self, ExecError> {
        let (program, vars) = part.trained(members)?;
        let own = members.iter().zip(vars).map(|(member, var)| {
            let problem = member.problem;
            let count = problem.weights.len();
            Own {
                problem,
                shape: &member.layer.weight_shape,
                var,
                soft: Soft::new(problem, 0..count),
                scales: (0..count).map(|i| problem.scale(i)).collect(),
                decision: settings.decision,
            }
        });
        let own = own.collect();
        Ok(Self {
            settings,
            program,
            own,
        })
    }

    /// One step of Adam on the squared error of a mini-batch, counted in `unit`s, and the penalty.
    fn step(
        &mut self,
        part: &Part,
        seen: &Seen<'_>,
        draw: &mut Draw,
        unit: f64,
        step: usize,
        cancel: &CancelToken,
    ) -> Result<(), ExecError> {
        for own in &self.own {
            let mut weights = vec![0.0; own.scales.len()];
            own.soft.weights(&own.scales, &mut weights);
            let weights = own.problem.in_place(&weights);
            own.var
                .set(&Tensor::from_vec(weights, own.shape, &Device::Cpu)?)?;
        }
        // A network that takes so many samples at a time takes a mini-batch in several goes.
        let batch = self.settings.batch.min(seen.fitted.len());
        let fed = part.fixed.unwrap_or(batch);
        let goes = batch.div_ceil(fed);
        let factor = 1.0 / (unit * (goes * fed) as f64);
        let mut sums: Vec<Vec<f32>> = self.own.iter().map(|o| vec![0.0; o.scales.len()]).collect();
        for _ in 0..goes {
            let which = draw.next(fed);
            let wanted = seen.targets.batch(&which)?;
            let rows = wanted.dims()[0] / fed;
            let loss = |of: std::ops::Range<usize>, outputs: &[Tensor]| {
                let wanted = wanted.narrow(0, of.start * rows, of.len() * rows)?;
                (&outputs[0] - wanted)?.sqr()?.sum_all()? * factor
            };
            let found = self
                .program
                .gradients(&seen.inputs.batch(&which)?, &loss, cancel)?;
            for (own, sum) in self.own.iter().zip(&mut sums) {
                let Some(gradient) = found.store.get(&own.var) else {
                    continue;
                };
                let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
                let gradient = own.problem.in_order(&gradient);
                for (sum, (g, s)) in sum.iter_mut().zip(gradient.iter().zip(&own.scales)) {
                    *sum += g * s;
                }
            }
        }
        let (iterations, rate) = (self.settings.iterations, self.settings.rate);
        on_pool(|| {
            use rayon::prelude::*;
            self.own.par_iter_mut().zip(&sums).for_each(|(own, sum)| {
                let penalty = Penalty::at(step, iterations, own.decision);
                own.soft.step(sum, step, rate, penalty);
            });
        });
        Ok(())
    }
}

impl Part {
    /// The block made ready for gradients, with each member's weight as a parameter.
    fn trained(&self, members: &[Member<'_>]) -> Result<(Program, Vec<Var>), ExecError> {
        let floats: Vec<Vec<f32>> = members.iter().map(Member::float).collect();
        let program = self.program(Mode::Training, given(members, &floats))?;
        let var = |member: &Member<'_>| {
            let name = self.name(member.layer.weight);
            let found = program.parameters().get(name).cloned();
            found.ok_or_else(|| ExecError::Input(format!("no gradient reaches {name}")))
        };
        let vars = members.iter().map(var).collect::<Result<_, _>>()?;
        Ok((program, vars))
    }
}
