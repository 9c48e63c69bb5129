//! Choosing how weights are quantised by what their layer then gives: layer by layer, each reads its quantised input, with the layers before
//! already chosen, and is held against the float network's output behind the activation function that follows, or its residual sum.

mod problem;
mod product;
mod residual;
mod shrinkage;
mod soft;

use super::{
    Account, AccountEntry, ByLayer, CompressError, Model, OnLayers, Original, Outcome, PassContext,
    pack::quantized_layers,
    prune::check_known,
    segments::{Walk, batches, float_twin},
    wiring::{WeightForm, Wiring, weight_form},
};
use crate::{
    exec::{self, CancelToken, ExecError},
    graph::{Graph, Layer, LayerId, Op, TensorData, ValueId},
};
pub(super) use problem::{Places, Problem, activation, bias};
pub(super) use product::{Positions, product};
pub(super) use shrinkage::Shrinkage;
pub(super) use soft::{Penalty, Soft};
use std::collections::BTreeSet;

/// Both networks on their way through the samples.
pub(super) struct Walks {
    /// As changed so far.
    pub quantised: Walk,
    /// As it was before quantisation.
    pub float: Walk,
}

/// Takes the layers in the network's order: those that are planned go to `each`, with their number; of the others the account says the
/// reason. `progress` is told how many of how many are done.
///
/// # Errors
/// No data, a model with several inputs or one that cannot run, cancellation, what `each` fails with.
pub(super) fn layer_by_layer<P>(
    (pass, what): (&str, &str),
    model: &mut Model,
    plans: Vec<Result<P, String>>,
    samples: usize,
    context: &PassContext<'_>,
    progress: &mut dyn FnMut(usize, usize),
    mut each: impl FnMut(&mut Model, (usize, &Layer), P, &mut Walks) -> Result<Outcome, CompressError>,
) -> Result<Account, CompressError> {
    let layers = model.graph.layers();
    let total = plans.iter().flatten().count();
    let mut walks = None;
    if total > 0 {
        let images = batches(&model.graph, context.data, samples, what)?;
        walks = Some(Walks {
            float: Walk::new(float_twin(model), images.clone())?,
            quantised: Walk::new(model.graph.clone(), images)?,
        });
    }
    let mut done = 0;
    let mut entries = Vec::with_capacity(layers.len());
    for (number, (layer, plan)) in layers.iter().zip(plans).enumerate() {
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let outcome = match (plan, &mut walks) {
            (Ok(plan), Some(walks)) => {
                progress(done, total);
                done += 1;
                each(model, (number, layer), plan, walks)?
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
    Ok(Account {
        pass: pass.to_owned(),
        entries,
    })
}

/// A way of choosing one layer's codes or scales.
pub(super) trait Method: Sync {
    /// As accounts and errors call it.
    fn name(&self) -> (&'static str, &'static str);
    /// Refuses settings without a meaning.
    fn sound(&self) -> Result<(), CompressError>;
    /// Samples of the calibration split.
    fn samples(&self) -> usize;
    /// Output positions of a layer, drawn evenly from the samples; those of an eighth of the samples are kept aside to judge the choice on.
    fn positions(&self) -> usize;
    /// Whether the last layer of a residual block is held against the sum: only where the choice goes by the target, and what was added is not
    /// chosen anew behind it.
    fn minds_sums(&self) -> bool {
        false
    }
    /// Chooses; the inner error says why it cannot be done.
    fn choose(
        &self,
        problem: &Problem,
        seen: &Seen<'_>,
        cancel: &CancelToken,
    ) -> Result<Result<Choice, String>, CompressError>;
}

/// What a layer reads and what it should give, at the positions drawn: rows of positions, one for each element of a patch or output.
pub(super) struct Seen<'a> {
    pub patches: &'a [f32],
    pub target: &'a [f32],
    pub rows: usize,
    /// Which sample a position is of; `None`: each of its own.
    pub places: Option<&'a Places>,
}

impl Seen<'_> {
    /// Positions that the choice sees: the rest, about an eighth, judges it.
    pub fn fitted(&self) -> usize {
        match self.places {
            Some(places) => places.fitted(),
            None => (self.rows - self.rows / 8).max(1),
        }
    }

    /// Of each sample, those of its positions that the choice sees.
    pub fn fitted_samples(&self) -> Vec<Vec<usize>> {
        match self.places {
            Some(places) => places.fitted_samples(),
            None => (0..self.fitted()).map(|column| vec![column]).collect(),
        }
    }

    /// The patches of a group of `depth` elements.
    pub fn of_group(&self, group: usize, depth: usize) -> &[f32] {
        &self.patches[group * depth * self.rows..][..depth * self.rows]
    }
}

/// What was chosen for a layer.
pub(super) enum Choice {
    /// Codes counted from the zero points; `bound`: each is the floor or the ceiling of its weight.
    Codes { codes: Vec<i32>, bound: bool },
    /// Scales by their number in the scale tensor.
    Scales(Vec<f32>),
}

impl<S: Method> ByLayer for OnLayers<S> {
    fn called(&self) -> &'static str {
        self.settings.name().0
    }

    fn run(
        &self,
        model: Model,
        context: &PassContext<'_>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Model, Account), CompressError> {
        self.settings.sound()?;
        choose(&self.settings, &self.layers, model, context, progress)
    }
}

/// Chooses for those of `chosen` that are quantised, see the room's first lines. A choice that gains nothing on positions that it did
/// not see is dropped.
///
/// # Errors
/// As [`layer_by_layer`]; values that are not finite.
fn choose(
    method: &dyn Method,
    chosen: &BTreeSet<LayerId>,
    mut model: Model,
    context: &PassContext<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Model, Account), CompressError> {
    let plans = plans(&model, method.name().1, chosen)?;
    let account = layer_by_layer(
        method.name(),
        &mut model,
        plans,
        method.samples(),
        context,
        progress,
        |model, (number, layer), problem, walks| {
            let seed = context.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            one(method, model, layer, &problem, walks, seed, context.cancel)
        },
    )?;
    Ok((model, account))
}

/// The problem of each layer, or why there is none.
pub(super) fn plans(
    model: &Model,
    method: &str,
    chosen: &BTreeSet<LayerId>,
) -> Result<Vec<Result<Problem, String>>, CompressError> {
    let layers = model.graph.layers();
    check_known(&layers, chosen.iter())?;
    let wiring = Wiring::of(&model.graph);
    let kept = quantized_layers(&model.graph);
    let plan = |(layer, kept): (&Layer, &super::QuantizedLayer)| {
        if !chosen.contains(&layer.id) {
            return Err("not asked for".to_owned());
        }
        let (slot, form) = weight_form(&model.graph, &wiring, layer);
        let shared = wiring.consumers(layer.weight).len() != 1
            || layers.iter().filter(|l| l.weight == layer.weight).count() > 1
            || wiring.is_output(layer.weight);
        match (form, &kept.weight) {
            (WeightForm::Quantized { .. }, Some(_)) if shared => {
                Err("its weight is shared with another layer".to_owned())
            }
            (WeightForm::Quantized { .. }, Some(weight)) => Problem::of(
                (model, &wiring),
                method,
                (layer, slot),
                kept.precision,
                weight,
            ),
            (WeightForm::Half, _) => Err("half precision is not rounded by choice".into()),
            _ => Err("its weight is not quantised".to_owned()),
        }
    };
    Ok(layers.iter().zip(&kept).map(plan).collect())
}

/// Chooses for one layer, whose number `seed` has in it, and puts the choice into the model and the quantised network that is walked through.
///
/// # Errors
/// As [`layer_by_layer`]; values that are not finite.
pub(super) fn one(
    method: &dyn Method,
    model: &mut Model,
    layer: &Layer,
    problem: &Problem,
    walks: &mut Walks,
    seed: u64,
    cancel: &CancelToken,
) -> Result<Outcome, CompressError> {
    let input = |graph: &Graph| graph.nodes[problem.node].inputs[0];
    let (Some(read), Some(wanted)) = (input(&walks.quantised.graph), input(&walks.float.graph))
    else {
        return Ok(Outcome::NotDone("it has no input".to_owned()));
    };
    let samples = walks.quantised.samples();
    let mut places: Option<Places> = None;
    // The float network's first: what it gives is what the layer is held against.
    let mut patches = Vec::new();
    let mut first = 0;
    walks.float.visit(wanted, cancel, |batch| {
        if places.is_none() {
            let drawn = problem.places(batch.dims(), samples, method.positions(), seed)?;
            patches = vec![0.0; problem.patch() * drawn.rows()];
            places = Some(drawn);
        }
        if let Some(places) = &places {
            problem.gather(batch, places, first, &mut patches)?;
        }
        first += batch.dims().first().copied().unwrap_or(0);
        Ok(())
    })?;
    let Some(places) = places.filter(|places| places.rows() > 0) else {
        return Ok(Outcome::NotDone("there are no samples".to_owned()));
    };
    let mut target = exec::on_pool(|| problem.target(&patches, places.rows()));
    first = 0;
    walks.quantised.visit(read, cancel, |batch| {
        problem.gather(batch, &places, first, &mut patches)?;
        first += batch.dims().first().copied().unwrap_or(0);
        Ok(())
    })?;
    if let Some(sum) = problem.sum.filter(|_| method.minds_sums()) {
        let seen = (&places, &*patches);
        residual::into_target(problem, sum, walks, seen, &mut target, cancel)?;
    }
    if !target.iter().chain(&patches).all(|v| v.is_finite()) {
        return Err(CompressError::Layer {
            message:
                "its input or output is NaN or infinite on the calibration data: keep it at fp32"
                    .to_owned(),
            layer: layer.id.0.to_string(),
        });
    }
    let seen = Seen {
        patches: &patches,
        target: &target,
        rows: places.rows(),
        places: Some(&places),
    };
    let choice = match exec::on_pool(|| method.choose(problem, &seen, cancel))? {
        Ok(choice) => choice,
        Err(reason) => return Ok(Outcome::NotDone(reason)),
    };
    let judged = seen.fitted()..seen.rows;
    let error = |weights: &[f32]| problem.error(weights, &seen, judged.clone());
    let before = problem.nearest_values(&problem.scales);
    let after = match &choice {
        Choice::Codes { codes, .. } => problem.values(codes, &problem.scales),
        Choice::Scales(scales) => problem.nearest_values(scales),
    };
    let (worse, better) = exec::on_pool(|| (error(&before), error(&after)));
    let signal = problem.signal(&seen, judged.clone());
    let share = |error: f64| error / signal.max(f64::MIN_POSITIVE) * 100.0;
    let words = format!(
        "error of its output {:.3} % against {:.3} % before (of its power; {} positions of {}, that were not used)",
        share(better),
        share(worse),
        judged.len(),
        match places.judging() {
            1 => "1 sample".to_owned(),
            count => format!("{count} of {samples} samples"),
        },
    );
    if better >= worse {
        return Ok(Outcome::NotDone(format!(
            "nothing gained, left as it was: {words}"
        )));
    }
    let done = match choice {
        Choice::Codes { codes, bound } => {
            let moved = (0..codes.len())
                .filter(|i| codes[*i] != problem.nearest(*i, problem.scale(*i)))
                .count();
            set_codes(
                (model, &mut walks.quantised),
                layer,
                &problem.in_place(&after),
                bound,
            );
            format!(
                "{:.1} % of its weights on other codes than the nearest",
                moved as f64 / codes.len() as f64 * 100.0
            )
        }
        Choice::Scales(scales) => {
            let ratios = scales.iter().zip(&problem.scales).map(|(a, b)| a / b);
            let (low, high) = ratios.fold((f32::INFINITY, 0.0_f32), |(lo, hi), r| {
                (lo.min(r), hi.max(r))
            });
            if let Err(reason) = set_scales((model, &mut walks.quantised), layer, &scales) {
                return Ok(Outcome::NotDone(reason));
            }
            format!(
                "{} scales at {low:.2} to {high:.2} of what they were",
                scales.len()
            )
        }
    };
    Ok(Outcome::Done(format!("{done}; {words}")))
}

/// Puts weights that lie on codes in the place of the float ones, and keeps those.
pub(super) fn set_codes(
    (model, walk): (&mut Model, &mut Walk),
    layer: &Layer,
    weights: &[f32],
    bound: bool,
) {
    let value = model.graph.value(layer.weight);
    let Some(data) = &value.data else { return };
    let fresh = TensorData::from_f32(&data.shape, weights);
    let before = data.to_f32_vec();
    let original = model
        .originals
        .entry(value.name.clone())
        .or_insert(Original {
            weights: before,
            bound,
        });
    original.bound = bound;
    model.graph.set_data(layer.weight, fresh.clone());
    walk.graph.set_data(layer.weight, fresh);
}

/// Gives the quantiser and dequantiser of a weight other scales.
fn set_scales(
    (model, walk): (&mut Model, &mut Walk),
    layer: &Layer,
    scales: &[f32],
) -> Result<(), String> {
    let value = scale_value(&model.graph, layer).ok_or("its scales are used elsewhere too")?;
    let shape = model
        .graph
        .value(value)
        .data
        .as_ref()
        .map(|d| d.shape.clone());
    let fresh = TensorData::from_f32(&shape.unwrap_or_default(), scales);
    model.graph.set_data(value, fresh.clone());
    walk.graph.set_data(value, fresh);
    Ok(())
}

/// The constant that holds the scales of a layer's weight, where its quantiser and dequantiser alone read it.
fn scale_value(graph: &Graph, layer: &Layer) -> Option<ValueId> {
    let wiring = Wiring::of(graph);
    let (_, WeightForm::Quantized { dequantize }) = weight_form(graph, &wiring, layer) else {
        return None;
    };
    let value = graph.nodes[dequantize].inputs.get(1).copied().flatten()?;
    let &[first, second] = wiring.consumers(value) else {
        return None;
    };
    let quantizer = &graph.nodes[if first == dequantize { second } else { first }];
    let fits = matches!(quantizer.op, Op::QuantizeLinear { .. })
        && quantizer.inputs.first() == Some(&Some(layer.weight))
        && !wiring.is_output(value);
    fits.then_some(value)
}
