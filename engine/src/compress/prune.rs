//! Magnitude pruning (Han et al. 2015): the smallest weights of a layer, or of each group of N:M sparsity, become zero and stay masked; at once or
//! while the network trains.

use super::{
    Account, AccountEntry, CompressError, Gradual, MagnitudePrune, Model, Outcome, Pass,
    PassContext, Pattern, PruneTarget, Ratio,
    pattern::reduction_axis,
    wiring::{WeightForm, Wiring, float_weight, weight_form},
};
use crate::graph::{Layer, LayerId, TensorData};
use std::collections::BTreeMap;

impl Ratio {
    /// # Errors
    /// Anything but a finite share of 0 or more and less than 1.
    pub fn check(self) -> Result<(), String> {
        if (0.0..1.0).contains(&self.0) {
            Ok(())
        } else {
            Err(format!(
                "a pruning ratio must be at least 0 and less than 1, found {}",
                self.0
            ))
        }
    }

    /// Weights of `n` that this share takes away: the nearest whole number, always leaving one.
    pub fn count_of(self, n: usize) -> usize {
        ((f64::from(self.0) * n as f64).round() as usize).min(n.saturating_sub(1))
    }
}

/// Refuses names in a plan that are no layers of the graph.
pub(crate) fn check_known<'a>(
    layers: &[Layer],
    asked: impl Iterator<Item = &'a LayerId>,
) -> Result<(), CompressError> {
    let unknown: Vec<&str> = asked
        .filter(|id| !layers.iter().any(|l| l.id == **id))
        .map(|id| &*id.0)
        .collect();
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(CompressError::Invalid(format!(
            "the model has no layer named {}: names are those that `limbeck inspect` lists",
            unknown.join(", ")
        )))
    }
}

/// [`check_known`], and each layer's own setting by `check`; the error names the layer.
pub(crate) fn check_settings<T>(
    layers: &[Layer],
    asked: &BTreeMap<LayerId, Option<T>>,
    check: impl Fn(&T) -> Result<(), String>,
) -> Result<(), CompressError> {
    check_known(layers, asked.keys())?;
    let set = |(layer, setting)| Some((layer, Option::as_ref(setting)?));
    check_each(asked.iter().filter_map(set), check)
}

/// Each layer's setting by `check`; the error names the layer.
pub(crate) fn check_each<'a, T: 'a>(
    mut asked: impl Iterator<Item = (&'a LayerId, &'a T)>,
    check: impl Fn(&T) -> Result<(), String>,
) -> Result<(), CompressError> {
    asked.try_for_each(|(layer, setting)| {
        check(setting).map_err(|message| CompressError::Layer {
            message,
            layer: layer.0.to_string(),
        })
    })
}

/// Keeps all but the `count` weights of least magnitude (the lower index goes first on ties); weights that `old` has masked
/// go before all others and stay masked in any case. `true`: kept.
pub(crate) fn magnitude_mask(weights: &[f32], count: usize, old: Option<&[bool]>) -> Vec<bool> {
    let gone = |i: usize| old.is_some_and(|old| !old.get(i).copied().unwrap_or(true));
    let mut mask: Vec<bool> = (0..weights.len()).map(|i| !gone(i)).collect();
    let count = count.min(weights.len());
    if count == 0 {
        return mask;
    }
    // Bits of non-negative floats sort as the floats do; the index makes the order total.
    let mut keys: Vec<u128> = weights
        .iter()
        .enumerate()
        .map(|(i, w)| {
            let magnitude = if gone(i) {
                0
            } else {
                u128::from(w.abs().to_bits()) + 1
            };
            magnitude << 64 | i as u128
        })
        .collect();
    if count < keys.len() {
        keys.select_nth_unstable(count - 1);
    }
    for key in &keys[..count] {
        mask[*key as u64 as usize] = false;
    }
    mask
}

/// Zeros where the mask says so.
pub(crate) fn masked(weights: &[f32], mask: &[bool]) -> Vec<f32> {
    let one = |(&w, &kept): (&f32, &bool)| if kept { w } else { 0.0 };
    weights.iter().zip(mask).map(one).collect()
}

impl Pass for MagnitudePrune {
    fn name(&self) -> &'static str {
        "magnitude prune"
    }

    fn apply(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        let layers = model.graph.layers();
        check_known(&layers, self.ratios.keys())?;
        if let Some(schedule) = &self.schedule {
            schedule.check().map_err(CompressError::Invalid)?;
        }
        check_each(self.ratios.iter(), |ratio| self.pattern.check(*ratio))?;
        let mut later = BTreeMap::new();
        let wiring = Wiring::of(&model.graph);
        let mut done: BTreeMap<u32, LayerId> = BTreeMap::new();
        let mut entries = Vec::with_capacity(layers.len());
        for layer in &layers {
            if context.cancel.is_cancelled() {
                return Err(crate::exec::ExecError::Cancelled.into());
            }
            let outcome = match self.why_not(&model, layer, &layers, &wiring) {
                Some(reason) => Outcome::NotDone(reason),
                None => match done.get(&layer.weight.0) {
                    Some(first) => {
                        Outcome::Done(format!("shares the weight that was pruned for {}", first.0))
                    }
                    None => match float_weight(&model.graph, layer) {
                        Err(reason) => Outcome::NotDone(reason),
                        Ok(weights) => {
                            done.insert(layer.weight.0, layer.id.clone());
                            match self.target(&model, layer) {
                                Err(reason) => Outcome::NotDone(reason),
                                Ok(target) => Outcome::Done(
                                    self.prune(&mut model, layer, &weights, target, &mut later)?,
                                ),
                            }
                        }
                    },
                },
            };
            entries.push(AccountEntry {
                layer: layer.id.clone(),
                outcome,
            });
        }
        if let Some(schedule) = self.schedule.filter(|_| !later.is_empty()) {
            model.gradual = Some(Gradual {
                schedule,
                weights: later,
            });
        }
        let pass = match &self.schedule {
            None => self.name().to_owned(),
            Some(schedule) => format!("{}, {}", self.name(), schedule.words()),
        };
        Ok((model, Account { pass, entries }))
    }
}

impl MagnitudePrune {
    fn why_not(
        &self,
        model: &Model,
        layer: &Layer,
        layers: &[Layer],
        wiring: &Wiring,
    ) -> Option<String> {
        let asked = |layer: &Layer| self.ratios.get(&layer.id).copied().unwrap_or_default();
        let ratio = asked(layer);
        if !self.ratios.contains_key(&layer.id) {
            return Some("not asked for".to_owned());
        }
        if ratio.0 == 0.0 {
            return Some("a ratio of 0 leaves it dense".to_owned());
        }
        let (_, form) = weight_form(&model.graph, wiring, layer);
        if form == WeightForm::Other {
            return Some("its weight is computed from other values".to_owned());
        }
        let mut sharing = layers.iter().filter(|l| l.weight == layer.weight);
        if let Some(other) = sharing.find(|other| asked(other) != ratio) {
            return Some(format!(
                "it shares its weight with {}, for which the plan asks {} instead of {}",
                other.id.0,
                asked(other).0,
                ratio.0
            ));
        }
        if let Some(other) = layers.iter().find(|other| {
            let apart = reduction_axis(other) != reduction_axis(layer);
            other.weight == layer.weight && apart && !self.pattern.is_unstructured()
        }) {
            return Some(format!(
                "it shares its weight with {}, which sums over another axis",
                other.id.0
            ));
        }
        // Only straight readers count: Quantize, Cast and the layers themselves.
        let foreign = wiring.consumers(layer.weight).iter().find(|&&index| {
            let reader = &model.graph.nodes[index];
            !layers.iter().any(|l| l.node.0 as usize == index)
                && !matches!(
                    reader.op,
                    crate::graph::Op::QuantizeLinear { .. } | crate::graph::Op::Cast { .. }
                )
        });
        foreign.map(|&index| {
            format!(
                "its weight is also read by {}, which is no layer",
                model.graph.nodes[index].name
            )
        })
    }
}

impl MagnitudePrune {
    /// What goes of a layer's weight, or why nothing does.
    fn target(&self, model: &Model, layer: &Layer) -> Result<PruneTarget, String> {
        Ok(PruneTarget {
            ratio: self.ratios.get(&layer.id).copied().unwrap_or_default(),
            lanes: self
                .pattern
                .lanes(layer, &model.graph.node(layer.node).op)?,
        })
    }

    /// Masks a weight, or puts it among those that are to be masked `later`.
    fn prune(
        &self,
        model: &mut Model,
        layer: &Layer,
        weights: &[f32],
        target: PruneTarget,
        later: &mut BTreeMap<String, PruneTarget>,
    ) -> Result<String, CompressError> {
        if weights.iter().any(|w| !w.is_finite()) {
            return Err(CompressError::Layer {
                message: "its weights hold NaN or infinite values: they have no order of magnitude"
                    .to_owned(),
                layer: layer.id.0.to_string(),
            });
        }
        let groups = match self.pattern {
            Pattern::Unstructured => String::new(),
            Pattern::Groups(group) => {
                let gone = f64::from(target.ratio.0) * group as f64;
                format!(", {:.0}:{group} along its inputs", group as f64 - gone)
            }
        };
        let value = &mut model.graph.values[layer.weight.0 as usize];
        let old = model.masks.get(&value.name).map(Vec::as_slice);
        let mask = target.mask(target.ratio, weights, old);
        let zeros = mask.iter().filter(|kept| !**kept).count();
        if self.schedule.is_some() {
            later.insert(value.name.clone(), target);
            return Ok(format!(
                "{zeros} of {} weights are to go while it trains{groups}",
                weights.len()
            ));
        }
        value.data = Some(TensorData::from_f32(
            &layer.weight_shape,
            &masked(weights, &mask),
        ));
        model.masks.insert(value.name.clone(), mask);
        Ok(format!(
            "{zeros} of {} weights set to 0{groups}",
            weights.len()
        ))
    }
}
