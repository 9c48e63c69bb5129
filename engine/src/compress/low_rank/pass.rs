//! The pass: plans, spectra, ranks, the edit, and the account by layer.

use super::{
    EnergyOf, LowRank, RankBy,
    choose::{Candidate, saving_ranks, within},
    factor::{Factors, Spectrum},
    form::{Cost, Form, Plan, plan},
    seen::{Watched, moments},
    write::{Taken, write},
};
use crate::{
    compress::{
        Account, AccountEntry, CompressError, Model, Outcome, Pass, PassContext,
        layerwise::bias,
        prune::check_settings,
        structured::{macs, macs_left},
        wiring::Wiring,
    },
    exec::{self, ExecError},
    graph::{Graph, Layer, Op},
};
use rayon::prelude::*;

/// A layer that is looked into.
struct Looked {
    plan: Plan,
    factors: Factors,
    /// The least share of energy that must stay.
    least: f64,
    spectrum: Option<Spectrum>,
    /// Whether the energy is that of outputs.
    of_outputs: bool,
}

impl Pass for LowRank {
    fn name(&self) -> &'static str {
        "low rank"
    }

    fn apply(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        self.settings.check()?;
        let layers = model.graph.layers();
        check_settings(&layers, &self.layers, |energy| energy.check())?;
        let wiring = Wiring::of(&model.graph);
        let mut looked: Vec<Result<Looked, String>> = exec::pool().install(|| {
            let look = |layer| self.look(&model, &wiring, &layers, layer);
            layers.par_iter().map(look).collect()
        });
        let samples = self.see(&model.graph, &layers, &mut looked, context)?;
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let ranks = self.ranks(&layers, &mut looked)?;
        let before = macs(&model.graph);
        let mut entries = Vec::with_capacity(layers.len());
        let mut taken = Vec::new();
        for ((layer, looked), rank) in layers.iter().zip(&looked).zip(ranks) {
            let outcome = match (looked, rank) {
                (Err(reason), _) => Outcome::NotDone(reason.clone()),
                (_, Err(reason)) => Outcome::NotDone(reason),
                (Ok(looked), Ok(rank)) => match &looked.spectrum {
                    None => Outcome::NotDone("nothing is known of it".to_owned()),
                    Some(spectrum) => {
                        let (left, right) = looked.factors.split(spectrum, rank);
                        taken.push(Taken {
                            layer,
                            form: &looked.plan.form,
                            rank,
                            left,
                            right,
                        });
                        Outcome::Done(words(layer, looked, spectrum, rank, samples))
                    }
                },
            };
            entries.push(AccountEntry {
                layer: layer.id.clone(),
                outcome,
            });
        }
        let count = taken.len();
        write(&mut model.graph, taken);
        let mac_words = macs_left(before, macs(&model.graph));
        let account = Account {
            pass: format!(
                "{}, by {}, {count} of {} layers taken apart{mac_words}",
                self.name(),
                self.settings.rank.words(),
                layers.len()
            ),
            entries,
        };
        Ok((model, account))
    }
}

impl LowRank {
    fn look(
        &self,
        model: &Model,
        wiring: &Wiring,
        layers: &[Layer],
        layer: &Layer,
    ) -> Result<Looked, String> {
        let least = match (self.layers.get(&layer.id), self.settings.rank) {
            (Some(Some(energy)), _) => f64::from(energy.0),
            (Some(None), _) => return Err("it is to stay whole".to_owned()),
            (None, RankBy::Energy) => return Err("not asked for".to_owned()),
            (None, _) => 0.0,
        };
        let plan = plan(model, wiring, layers, layer, self.settings.kernels)?;
        if plan.dense.macs.is_none() && matches!(self.settings.rank, RankBy::Macs(_)) {
            return Err("its multiply–accumulates are not known".to_owned());
        }
        if saving_ranks(&plan, self.settings.round_to).next().is_none() {
            return Err(format!(
                "no rank saves both parameters and multiply–accumulates: rank {} has {} weights and {} MACs against {} and {}",
                self.settings.round_to,
                plan.per_rank.times(self.settings.round_to).params,
                known(plan.per_rank.times(self.settings.round_to).macs),
                plan.dense.params,
                known(plan.dense.macs),
            ));
        }
        let (rows, columns) = plan.form.extents(&layer.weight_shape);
        let factors = Factors::new(
            plan.form.matrix(&layer.weight_shape, &plan.weight),
            rows,
            columns,
        );
        Ok(Looked {
            plan,
            factors,
            least,
            spectrum: None,
            of_outputs: false,
        })
    }

    /// Spectra of all layers, and how many samples they are from.
    fn see(
        &self,
        graph: &Graph,
        layers: &[Layer],
        looked: &mut [Result<Looked, String>],
        context: &PassContext<'_>,
    ) -> Result<usize, CompressError> {
        let wanted = self.settings.energy_of == EnergyOf::Outputs && context.data.is_some();
        let mut watched = Vec::new();
        let mut places = Vec::new();
        for (place, (layer, looked)) in layers.iter().zip(looked.iter()).enumerate() {
            let Ok(looked) = looked else { continue };
            if !wanted || matches!(looked.plan.form, Form::Spatial { .. }) {
                continue;
            }
            let outputs = layer.weight_shape[layer.channel_axis];
            let beta = match graph.node(layer.node).op {
                Op::Gemm { beta, .. } => beta,
                _ => 1.0,
            };
            // With a bias that cannot be taken off, the weight has to do.
            let Ok(bias) = bias(graph, layer.node.0 as usize, outputs, beta) else {
                continue;
            };
            places.push(place);
            watched.push(Watched {
                output: layer.output,
                factors: &looked.factors,
                bias,
                planes: layer.op == "Conv",
            });
        }
        let (mut samples, mut found) = (0, Vec::new());
        if !watched.is_empty() {
            (samples, found) = moments(graph, &watched, self.settings.samples, context)?;
        }
        let mut of_layer = vec![None; looked.len()];
        for (place, moment) in places.into_iter().zip(found) {
            of_layer[place] = Some(moment);
        }
        exec::pool().install(|| {
            looked
                .par_iter_mut()
                .zip(of_layer)
                .for_each(|(slot, moment)| {
                    let Ok(looked) = slot else { return };
                    // One decomposition can take seconds; what is missing is noticed by the caller.
                    if context.cancel.is_cancelled() {
                        return;
                    }
                    looked.of_outputs = moment.is_some();
                    let spectrum = looked.factors.spectrum(moment.as_deref());
                    if spectrum.total() > 0.0 {
                        looked.spectrum = Some(spectrum);
                    } else {
                        *slot = Err("it computes nothing but its bias".to_owned());
                    }
                });
        });
        Ok(samples)
    }

    /// The rank of every layer, or why it stays whole.
    fn ranks(
        &self,
        layers: &[Layer],
        looked: &mut [Result<Looked, String>],
    ) -> Result<Vec<Result<usize, String>>, CompressError> {
        let round_to = self.settings.round_to;
        let (price, share, total): (fn(Cost) -> u64, f32, u64) = match self.settings.rank {
            RankBy::Energy => return Ok(looked.iter().map(|l| by_energy(l, round_to)).collect()),
            RankBy::Macs(share) => {
                let total = layers
                    .iter()
                    .try_fold(0_u64, |sum, l| sum.checked_add(l.macs?));
                let total = total.ok_or_else(|| {
                    CompressError::Invalid(
                        "LowRank: the MACs of some layers are not known (their shapes are not): give the rank by `energy` or \
                         `parameters`"
                            .to_owned(),
                    )
                })?;
                (|cost| cost.macs.unwrap_or(0), share, total)
            }
            RankBy::Parameters(share) => (
                |cost| cost.params,
                share,
                layers.iter().map(|l| l.params).sum(),
            ),
        };
        let candidates: Vec<Candidate> = looked
            .iter()
            .flatten()
            .filter_map(|l| {
                Some(Candidate::new(
                    &l.plan,
                    l.spectrum.as_ref()?,
                    round_to,
                    l.least,
                ))
            })
            .collect();
        let own: u64 = candidates.iter().map(|c| price(c.dense)).sum();
        let goal = (f64::from(share) * total as f64).floor() as u64;
        let rest = total - own;
        let refuse = |least: u64| {
            CompressError::Invalid(format!(
                "LowRank cannot reach {}: with every layer at the smallest rank that it may have, {} of {total} are left \
                 ({:.1} %). Ask for less, or lower the least energy that layers must keep (`default`, `layers`)",
                self.settings.rank.words(),
                rest + least,
                (rest + least) as f64 * 100.0 / total.max(1) as f64,
            ))
        };
        let chosen = goal
            .checked_sub(rest)
            .ok_or(())
            .and_then(|budget| within(&candidates, price, budget).map_err(|_| ()))
            .map_err(|()| refuse(within(&candidates, price, 0).err().unwrap_or(0)))?;
        let mut chosen = chosen.into_iter();
        Ok(looked
            .iter()
            .map(|looked| match looked {
                Err(reason) => Err(reason.clone()),
                Ok(_) => chosen.next().flatten().ok_or_else(|| {
                    let none_saves = by_energy(looked, round_to).err();
                    none_saves.unwrap_or_else(|| "the budget is met with it whole".to_owned())
                }),
            })
            .collect())
    }
}

/// The smallest rank that keeps the energy, where it saves anything.
fn by_energy(looked: &Result<Looked, String>, round_to: usize) -> Result<usize, String> {
    let looked = looked.as_ref().map_err(Clone::clone)?;
    let Some(spectrum) = &looked.spectrum else {
        return Err("nothing is known of it".to_owned());
    };
    let width = looked.factors.width();
    let enough = |rank: &usize| spectrum.kept(*rank) >= looked.least - 1e-9;
    let needed = (1..=width).find(enough).unwrap_or(width);
    let rank = needed.next_multiple_of(round_to);
    if looked.plan.per_rank.times(rank).saves(looked.plan.dense) {
        return Ok(rank);
    }
    let most = saving_ranks(&looked.plan, round_to).last().unwrap_or(0);
    Err(format!(
        "{:.2} % of its energy take rank {rank} of {width}, which saves nothing: rank {most} is the largest that does, with {:.2} %",
        looked.least * 100.0,
        spectrum.kept(most) * 100.0
    ))
}

fn known(macs: Option<u64>) -> String {
    macs.map_or("unknown".to_owned(), |m| m.to_string())
}

fn words(
    layer: &Layer,
    looked: &Looked,
    spectrum: &Spectrum,
    rank: usize,
    samples: usize,
) -> String {
    let Looked { plan, factors, .. } = looked;
    let kernel: Vec<String> = layer
        .weight_shape
        .iter()
        .skip(2)
        .map(usize::to_string)
        .collect();
    let kernel = kernel.join("×");
    let how = match &plan.form {
        Form::Product { .. } => String::new(),
        Form::Channel { .. }
            if plan.weight.len() == layer.weight_shape[..2].iter().product::<usize>() =>
        {
            String::new()
        }
        Form::Channel { .. } => format!(", {kernel} then 1×1"),
        Form::Spatial { .. } => format!(
            ", {}×1 then 1×{}",
            layer.weight_shape[2], layer.weight_shape[3]
        ),
    };
    let of = match looked.of_outputs {
        true => format!("of its outputs' energy kept ({samples} samples)"),
        false => "of its weights' energy kept".to_owned(),
    };
    let cost = plan.per_rank.times(rank);
    let macs = match (plan.dense.macs, cost.macs) {
        (Some(a), Some(b)) => format!(", {a} → {b} MACs"),
        _ => String::new(),
    };
    format!(
        "rank {rank} of {}{how}: {:.2} % {of}; {} → {} weights{macs}",
        factors.width(),
        spectrum.kept(rank) * 100.0,
        plan.dense.params,
        cost.params,
    )
}
