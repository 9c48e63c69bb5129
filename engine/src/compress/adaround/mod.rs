//! AdaRound (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020): layer by layer, each weight is
//! rounded to the floor or the ceiling, whichever together change the layer's output least. Scales stay as they are; the layer reads its
//! quantised input, with the layers before it already rounded, and is held against the float network's output behind the
//! activation function that follows.

mod problem;
mod solve;

use super::{
    Account, AccountEntry, CompressError, Model, Outcome, Pass, PassContext, Precision,
    pack::quantized_layers,
    prune::check_known,
    segments::{Walk, batches, float_twin},
    wiring::{WeightForm, Wiring, weight_form},
};
use crate::{
    exec::{self, ExecError},
    graph::{Graph, Layer, LayerId, TensorData},
};
use problem::{Places, Problem};
use std::collections::BTreeSet;

/// How roundings are chosen.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaRoundSettings {
    /// Samples of the calibration split.
    pub samples: usize,
    /// Output positions of a layer that its roundings are chosen on, drawn evenly from the samples. An eighth of them
    /// is kept aside to judge the choice on.
    pub positions: usize,
    /// Steps of Adam.
    pub iterations: usize,
    /// Positions a step.
    pub batch: usize,
    /// Learning rate.
    pub rate: f32,
    /// Weight of the term that drives each rounding to a decision, in units of what one weight's own rounding can cost.
    pub decision: f32,
}

impl Default for AdaRoundSettings {
    fn default() -> Self {
        Self {
            samples: 64,
            positions: 2048,
            iterations: 1000,
            batch: 256,
            rate: 0.01,
            decision: 1.0,
        }
    }
}

impl AdaRoundSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// No samples, positions, iterations or batch; a rate or weight that is not a positive number.
    pub fn check(&self) -> Result<(), CompressError> {
        let refuse = |message: String| Err(CompressError::Invalid(message));
        for (field, value) in [
            ("samples", self.samples),
            ("positions", self.positions),
            ("iterations", self.iterations),
            ("batch", self.batch),
        ] {
            if value == 0 {
                return refuse(format!("{field}: at least 1 was expected, found 0"));
            }
        }
        for (field, value) in [("rate", self.rate), ("decision", self.decision)] {
            if !(value.is_finite() && value > 0.0) {
                return refuse(format!(
                    "{field}: a number above 0 was expected, found {value}"
                ));
            }
        }
        Ok(())
    }
}

/// Chooses the rounding of quantised weights, layer by layer; see the file's first lines.
pub struct AdaRound {
    pub settings: AdaRoundSettings,
    /// Those it is to be done to; layers that are not quantised are left alone, with the reason.
    pub layers: BTreeSet<LayerId>,
}

impl Pass for AdaRound {
    fn name(&self) -> &'static str {
        "adaround"
    }

    fn apply(
        &self,
        model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        self.run(model, context, &mut |_, _| {})
    }
}

impl AdaRound {
    /// As [`Pass::apply`]; `progress` is told how many of how many layers are done.
    ///
    /// # Errors
    /// Settings without a meaning, no data, a model with several inputs or one that cannot run, cancellation.
    pub fn run(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Model, Account), CompressError> {
        self.settings.check()?;
        let layers = model.graph.layers();
        check_known(&layers, self.layers.iter())?;
        let wiring = Wiring::of(&model.graph);
        let kept = quantized_layers(&model.graph);
        let plans: Vec<Result<Problem, String>> = layers
            .iter()
            .zip(&kept)
            .map(|(layer, kept)| {
                if !self.layers.contains(&layer.id) {
                    return Err("not asked for".to_owned());
                }
                let (slot, form) = weight_form(&model.graph, &wiring, layer);
                let shared = wiring.consumers(layer.weight).len() != 1
                    || sharers(&layers, layer) > 1
                    || wiring.is_output(layer.weight);
                match (form, &kept.weight) {
                    (WeightForm::Quantized { .. }, Some(_)) if shared => {
                        Err("its weight is shared with another layer".to_owned())
                    }
                    (WeightForm::Quantized { .. }, Some(weight)) => {
                        Problem::of(&model, &wiring, layer, slot, kept.precision, weight)
                    }
                    (WeightForm::Half, _) => Err("half precision is not rounded by choice".into()),
                    _ => Err("its weight is not quantised".to_owned()),
                }
            })
            .collect();
        let total = plans.iter().flatten().count();
        let mut done = 0;
        let mut walks = match total {
            0 => None,
            _ => {
                let images = batches(
                    &model.graph,
                    context.data,
                    self.settings.samples,
                    "AdaRound",
                )?;
                let float = Walk::new(float_twin(&model), images.clone())?;
                Some((Walk::new(model.graph.clone(), images)?, float))
            }
        };
        let mut entries = Vec::with_capacity(layers.len());
        for (number, (layer, problem)) in layers.iter().zip(plans).enumerate() {
            if context.cancel.is_cancelled() {
                return Err(ExecError::Cancelled.into());
            }
            let outcome = match (problem, &mut walks) {
                (Ok(problem), Some((quantised, float))) => {
                    progress(done, total);
                    done += 1;
                    let seed =
                        context.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    self.layer(
                        &mut model,
                        layer,
                        &problem,
                        (quantised, float),
                        seed,
                        context,
                    )?
                }
                (Err(reason), _) => Outcome::NotDone(reason),
                (Ok(_), None) => Outcome::NotDone("nothing to compare with".to_owned()),
            };
            entries.push(AccountEntry {
                layer: layer.id.clone(),
                outcome,
            });
        }
        progress(done, total);
        let account = Account {
            pass: self.name().to_owned(),
            entries,
        };
        Ok((model, account))
    }

    fn layer(
        &self,
        model: &mut Model,
        layer: &Layer,
        problem: &Problem,
        (quantised, float): (&mut Walk, &mut Walk),
        seed: u64,
        context: &PassContext<'_>,
    ) -> Result<Outcome, CompressError> {
        let cancel = context.cancel;
        let input = |graph: &Graph| graph.nodes[problem.node].inputs[0];
        let (Some(seen), Some(wanted)) = (input(&quantised.graph), input(&float.graph)) else {
            return Ok(Outcome::NotDone("it has no input".to_owned()));
        };
        let samples = quantised.samples();
        let mut places: Option<Places> = None;
        // The float network's first: what it gives is what the layer is held against.
        let mut patches = Vec::new();
        let mut first = 0;
        float.visit(wanted, cancel, |batch| {
            if places.is_none() {
                let drawn = problem.places(batch.dims(), samples, &self.settings, seed)?;
                patches = vec![0.0; problem.patch() * drawn.rows()];
                places = Some(drawn);
            }
            if let Some(places) = &places {
                problem.gather(batch, places, first, &mut patches)?;
            }
            first += batch.dims().first().copied().unwrap_or(0);
            Ok(())
        })?;
        let Some(places) = places else {
            return Ok(Outcome::NotDone("there are no samples".to_owned()));
        };
        let target = exec::on_pool(|| problem.target(&patches, places.rows()));
        first = 0;
        quantised.visit(seen, cancel, |batch| {
            problem.gather(batch, &places, first, &mut patches)?;
            first += batch.dims().first().copied().unwrap_or(0);
            Ok(())
        })?;
        if !target.iter().chain(&patches).all(|v| v.is_finite()) {
            return Err(CompressError::Layer {
                message: "its input or output is NaN or infinite on the calibration data: keep it at fp32"
                    .to_owned(),
                layer: layer.id.0.to_string(),
            });
        }
        let solved = exec::on_pool(|| {
            solve::solve(
                problem,
                &self.settings,
                &patches,
                &target,
                places.rows(),
                cancel,
            )
        })?;
        let share = |error: f64| error / solved.signal.max(f64::MIN_POSITIVE) * 100.0;
        let words = format!(
            "error of its output {:.3} % against {:.3} % by rounding to nearest (of its power; {} positions of {samples} samples that were \
             not used)",
            share(solved.chosen),
            share(solved.nearest),
            solved.unseen,
        );
        if solved.chosen >= solved.nearest {
            return Ok(Outcome::NotDone(format!(
                "rounding to nearest is as good: {words}"
            )));
        }
        let name = model.graph.value(layer.weight).name.clone();
        let Some(data) = model.graph.value(layer.weight).data.clone() else {
            return Ok(Outcome::NotDone("its weight is not a constant".to_owned()));
        };
        let (rounded, moved) = problem.weights(&solved.codes);
        let fresh = TensorData::from_f32(&data.shape, &rounded);
        model
            .originals
            .entry(name)
            .or_insert_with(|| data.to_f32_vec());
        model.graph.set_data(layer.weight, fresh.clone());
        quantised.graph.set_data(layer.weight, fresh);
        Ok(Outcome::Done(format!(
            "{:.1} % of its weights rounded otherwise than to nearest; {words}",
            moved * 100.0
        )))
    }
}

/// Layers with the same weight.
fn sharers(layers: &[Layer], layer: &Layer) -> usize {
    layers.iter().filter(|l| l.weight == layer.weight).count()
}

/// Whether codes of this precision can be chosen.
fn choosable(precision: Precision) -> bool {
    precision.is_integer()
}
