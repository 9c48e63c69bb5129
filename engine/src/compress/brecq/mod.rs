//! BRECQ (Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", 2021), with the plain squared error:
//! block by block, the roundings of all its weights are chosen together, such that the block's output stays nearest the float network's.
//! The block reads its quantised input, with the blocks before it already rounded; scales stay as they are. A layer outside of all blocks is
//! rounded by itself, by AdaRound.

mod part;
mod solve;
mod units;

use super::{
    Account, AccountEntry, AdaRoundSettings, ByLayer, CompressError, Model, OnLayers, Outcome,
    PassContext,
    layerwise::{Problem, Walks, one, plans, set_codes},
    segments::{Walk, batches, float_twin},
};
use crate::{
    exec::{CancelToken, ExecError, Mode},
    graph::Layer,
};
use part::{Part, Values, distance};
use solve::{Member, Seen, given, solve};
use std::collections::BTreeMap;
pub(super) use units::units;

/// How roundings are chosen.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BrecqSettings {
    /// Samples of the calibration split. An eighth of them is kept aside to judge the choice on.
    pub samples: usize,
    /// Steps of Adam for a block.
    pub iterations: usize,
    /// Samples a step.
    pub batch: usize,
    /// Learning rate.
    pub rate: f32,
    /// Weight of the term that drives each rounding to a decision, in units of what one weight's own rounding can cost.
    pub decision: f32,
}

impl Default for BrecqSettings {
    fn default() -> Self {
        Self {
            samples: 64,
            iterations: 500,
            batch: 8,
            rate: 0.1,
            decision: 1.0,
        }
    }
}

impl BrecqSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// No samples, iterations or batch; a rate or weight that is not a positive number.
    pub fn check(&self) -> Result<(), CompressError> {
        super::at_least_one(&[
            ("samples", self.samples),
            ("iterations", self.iterations),
            ("batch", self.batch),
        ])?;
        super::above_zero(&[("rate", self.rate), ("decision", self.decision)])
    }

    /// For a layer outside of all blocks.
    fn alone(&self) -> AdaRoundSettings {
        AdaRoundSettings {
            samples: self.samples,
            decision: self.decision,
            ..AdaRoundSettings::default()
        }
    }
}

/// Chooses the rounding of quantised weights, block by block; see the file's first lines.
pub type Brecq = OnLayers<BrecqSettings>;

impl ByLayer for Brecq {
    fn called(&self) -> &'static str {
        "brecq"
    }

    fn run(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Model, Account), CompressError> {
        self.settings.check()?;
        let plans = plans(&model, "BRECQ", &self.layers)?;
        let layers = model.graph.layers();
        let total = plans.iter().flatten().count();
        let mut outcomes: BTreeMap<usize, Outcome> = BTreeMap::new();
        let mut problems: BTreeMap<usize, Problem> = BTreeMap::new();
        for (number, plan) in plans.into_iter().enumerate() {
            match plan {
                Ok(problem) => drop(problems.insert(number, problem)),
                Err(reason) => drop(outcomes.insert(number, Outcome::NotDone(reason))),
            }
        }
        if total > 0 {
            let samples = self.settings.samples;
            let images = batches(&model.graph, context.data, samples, "BRECQ")?;
            let mut work = Work {
                settings: &self.settings,
                layers: &layers,
                walks: Walks {
                    float: Walk::new(float_twin(&model), images.clone())?,
                    quantised: Walk::new(model.graph.clone(), images)?,
                },
                seed: context.seed,
                cancel: context.cancel,
            };
            let mut done = 0;
            for group in groups(&model, &layers, &problems) {
                if context.cancel.is_cancelled() {
                    return Err(ExecError::Cancelled.into());
                }
                progress(done, total);
                done += group.chosen.len();
                outcomes.extend(work.group(&mut model, &group, &problems)?);
            }
        }
        progress(total, total);
        let entry = |(number, outcome): (usize, Outcome)| AccountEntry {
            layer: layers[number].id.clone(),
            outcome,
        };
        let account = Account {
            pass: self.called().to_owned(),
            entries: outcomes.into_iter().map(entry).collect(),
        };
        Ok((model, account))
    }
}

/// Layers whose roundings are chosen together: those of a block, or one alone.
struct Group {
    block: Option<units::Unit>,
    /// By number; at least one.
    chosen: Vec<usize>,
}

/// All layers that have a problem, in the order that they are taken in.
fn groups(model: &Model, layers: &[Layer], problems: &BTreeMap<usize, Problem>) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut rest: Vec<usize> = problems.keys().copied().collect();
    for block in units(&model.graph, layers) {
        let within = |number: &usize| block.layers.contains(number);
        let (chosen, others) = rest.into_iter().partition(within);
        rest = others;
        groups.push(Group {
            block: Some(block),
            chosen,
        });
    }
    groups.extend(rest.into_iter().map(|number| Group {
        block: None,
        chosen: vec![number],
    }));
    groups.retain(|group| !group.chosen.is_empty());
    groups.sort_by_key(|group| group.chosen[0]);
    groups
}

/// What goes on through the whole pass.
struct Work<'a> {
    settings: &'a BrecqSettings,
    layers: &'a [Layer],
    walks: Walks,
    seed: u64,
    cancel: &'a CancelToken,
}

impl Work<'_> {
    /// Chooses for one group; outcomes by layer.
    fn group(
        &mut self,
        model: &mut Model,
        group: &Group,
        problems: &BTreeMap<usize, Problem>,
    ) -> Result<Vec<(usize, Outcome)>, CompressError> {
        let first = group.chosen[0];
        let seed = self.seed ^ (first as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let Some(block) = &group.block else {
            let (layer, problem) = (&self.layers[first], &problems[&first]);
            let alone = self.settings.alone();
            let walks = &mut self.walks;
            let outcome = one(&alone, model, layer, problem, walks, seed, self.cancel)?;
            return Ok(vec![(first, outcome)]);
        };
        let members: Vec<Member<'_>> = group
            .chosen
            .iter()
            .map(|number| Member {
                layer: &self.layers[*number],
                problem: &problems[number],
            })
            .collect();
        let outcomes = match self.block(model, block, &members, seed) {
            Ok(Ok(outcomes)) => outcomes,
            Ok(Err(reason)) => vec![Outcome::NotDone(reason); members.len()],
            Err(error) => return Err(error),
        };
        Ok(group.chosen.iter().copied().zip(outcomes).collect())
    }

    /// Chooses for the members of a block and judges the choice; the inner error says why it cannot be done.
    fn block(
        &mut self,
        model: &mut Model,
        block: &units::Unit,
        members: &[Member<'_>],
        seed: u64,
    ) -> Result<Result<Vec<Outcome>, String>, CompressError> {
        let cancel = self.cancel;
        let name = words(self.layers, block);
        let targets = Values::collect(&mut self.walks.float, block.output, cancel)?;
        let inputs = Values::collect(&mut self.walks.quantised, block.input, cancel)?;
        let (targets, inputs) = match (targets, inputs) {
            (Ok(targets), Ok(inputs)) => (targets, inputs),
            (Err(shape), _) | (_, Err(shape)) => {
                return Ok(Err(format!(
                    "{name} cannot be told apart by sample: {shape}"
                )));
            }
        };
        if !targets.is_finite() || !inputs.is_finite() {
            return Err(CompressError::Layer {
                message: format!(
                    "what {name} reads or gives is NaN or infinite on the calibration data: keep its layers at fp32"
                ),
                layer: members[0].layer.id.0.to_string(),
            });
        }
        let samples = targets.count().min(inputs.count());
        // Every eighth judges: splits that are sorted by class are judged on all of them.
        let (aside, fitted): (Vec<usize>, Vec<usize>) =
            (0..samples).partition(|n| n % 8 == 7 || n + 1 == samples && samples < 8);
        if fitted.is_empty() || aside.is_empty() {
            return Ok(Err(format!(
                "{name} needs two samples at least, one to choose by and one to judge the choice on; {samples} can be kept"
            )));
        }
        let chosen: Vec<&Layer> = members.iter().map(|m| m.layer).collect();
        let part = Part::of(&model.graph, block, &chosen);
        let seen = Seen {
            inputs: &inputs,
            targets: &targets,
            fitted: &fitted,
        };
        let codes = match solve(&part, members, &seen, self.settings, seed, cancel) {
            Ok(codes) => codes,
            Err(ExecError::Cancelled) => return Err(ExecError::Cancelled.into()),
            Err(error) => return Ok(Err(format!("{name} has no gradients: {error}"))),
        };
        let before: Vec<Vec<i32>> = members.iter().map(|m| m.now(model)).collect();
        let weights = |codes: &[Vec<i32>]| -> Vec<Vec<f32>> {
            let each = members.iter().zip(codes);
            each.map(|(m, codes)| m.weights(codes)).collect()
        };
        let wanted = targets.of(&aside);
        let error = |weights: &[Vec<f32>]| -> Result<f64, ExecError> {
            let program = part.program(Mode::Inference, given(members, weights))?;
            Ok(distance(
                &part.run(&program, &inputs, &aside, cancel)?,
                &wanted,
            ))
        };
        let after = weights(&codes);
        let (worse, better) = (error(&weights(&before))?, error(&after)?);
        let power = distance(&wanted, &vec![0.0; wanted.len()]).max(f64::MIN_POSITIVE);
        let judged = format!(
            "{name}: error of its output {:.3} % against {:.3} % before (of its power; {} of {samples} samples, that were not used)",
            better / power * 100.0,
            worse / power * 100.0,
            aside.len(),
        );
        if better >= worse {
            return Ok(Err(format!("nothing gained, left as it was: {judged}")));
        }
        let mut outcomes = Vec::with_capacity(members.len());
        for ((member, codes), (weights, before)) in
            members.iter().zip(&codes).zip(after.iter().zip(&before))
        {
            let walk = &mut self.walks.quantised;
            set_codes((model, walk), member.layer, weights, true);
            let moved = codes.iter().zip(before).filter(|(a, b)| a != b).count();
            outcomes.push(Outcome::Done(format!(
                "{:.1} % of its weights on other codes than before; {judged}",
                moved as f64 / codes.len() as f64 * 100.0
            )));
        }
        Ok(Ok(outcomes))
    }
}

impl Member<'_> {
    /// The codes that the model has now.
    fn now(&self, model: &Model) -> Vec<i32> {
        let data = model.graph.value(self.layer.weight).data.as_ref();
        self.nearest(&data.map(|d| d.to_f32_vec()).unwrap_or_default())
    }
}

/// A block as people know it: by its first and last layer.
fn words(layers: &[Layer], block: &units::Unit) -> String {
    match block.layers.as_slice() {
        [only] => format!("the block around {}", layers[*only].id.0),
        [first, .., last] => {
            format!(
                "the block {} to {}",
                layers[*first].id.0, layers[*last].id.0
            )
        }
        [] => "a block".to_owned(),
    }
}
