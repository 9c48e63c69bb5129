//! The plan at its deployment target: what the target refuses, with the reason, and where its arithmetic saturates.

use super::{NamedPoint, State};
use limbeck_engine::{
    compress::{LayerSetting, Precision, QuantScheme},
    data::SplitName,
    graph::LayerId,
    search::LayerFacts,
    target::{self, LayerSaturation, Products, Target},
};
use std::{collections::BTreeMap, sync::Arc};

/// Layers that a target would not compute as asked, all for one reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub layers: Vec<LayerId>,
    /// Operator and precision, such as "Gemm at int4".
    pub what: String,
    /// The engine's words.
    pub why: String,
}

impl Refusal {
    /// "fc and 2 more (Gemm at int4): it computes …".
    pub fn words(&self) -> String {
        let first = self.layers.first().map_or("", |layer| &layer.0);
        let more = match self.layers.len() {
            0 | 1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        format!("{first}{more} ({}): {}", self.what, self.why)
    }
}

/// What stands out of a layer at the target: a mark in the table, a card in the inspector.
#[derive(Clone, Debug, PartialEq)]
pub enum AtTarget {
    Refused { what: String, why: String },
    Saturates(LayerSaturation),
}

/// A plan's layers at its target; worked out once a change.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TargetView {
    pub refusals: Vec<Refusal>,
    pub layers: BTreeMap<LayerId, AtTarget>,
}

/// Refusals of `layers` (as `setting` has them) by a target, one for each reason.
fn refusals(
    target: &Target,
    scheme: &QuantScheme,
    layers: &[LayerFacts],
    setting: impl Fn(&LayerId) -> LayerSetting,
) -> Vec<Refusal> {
    let mut found: Vec<Refusal> = Vec::new();
    for layer in layers {
        let precision = setting(&layer.id).precision;
        if precision == Precision::Fp32 {
            continue;
        }
        let Err(why) = target.takes_layer(layer.weight(), precision, scheme) else {
            continue;
        };
        let what = format!("{} at {}", layer.op, precision.label());
        match found.iter_mut().find(|r| r.what == what && r.why == why) {
            Some(refusal) => refusal.layers.push(layer.id.clone()),
            None => found.push(Refusal {
                layers: vec![layer.id.clone()],
                what,
                why,
            }),
        }
    }
    found
}

impl State {
    /// A target's description: built in, or of one's own as it was read; `None` while that is under way.
    pub fn target(&self, name: &str) -> Option<Result<Arc<Target>, String>> {
        if target::is_file(name) {
            return self.mirror.targets.get(name).cloned();
        }
        Some(target::find(name).map_err(|e| e.to_string()))
    }

    /// Whether the map, which is measured with the engine's own scheme and one layer at a time, is of the plan's scheme too. Where a target places
    /// pairs, those behind other operators than layers come with a second quantised layer, and no cell knows their rounding.
    pub(super) fn map_holds(&self) -> bool {
        let scheme = &self.document.scheme;
        let exact = |name: &String| {
            let target = self.target(name).and_then(Result::ok);
            target.is_some_and(|target| target.products == Products::Exact)
        };
        let plain = QuantScheme {
            outputs: None,
            target: None,
            ..scheme.clone()
        };
        let quantised = self.document.plan.values();
        let quantised = quantised.filter(|s| s.precision.is_integer()).take(2);
        let placed = !scheme.quantised_outputs().is_empty() && quantised.count() > 1;
        scheme.target.as_ref().is_none_or(exact) && plain == QuantScheme::default() && !placed
    }

    /// What a scheme's target refuses of the plan as it stands; nothing where the target is not (yet) known.
    pub fn refused_by(&self, scheme: &QuantScheme) -> Vec<Refusal> {
        let target = scheme.target.as_deref().and_then(|name| self.target(name));
        match target {
            Some(Ok(target)) => refusals(&target, scheme, self.layers(), |id| {
                self.document.setting(id)
            }),
            _ => Vec::new(),
        }
    }

    /// What the plan's target refuses.
    pub fn refusals(&self) -> &[Refusal] {
        &self.derived.at_target.refusals
    }

    /// What stands out of a layer at the plan's target.
    pub fn at_target(&self, layer: &LayerId) -> Option<&AtTarget> {
        self.derived.at_target.layers.get(layer)
    }

    /// Why the plan's target cannot run it, or nothing if it can (or there is none).
    pub fn target_allows(&self) -> Result<(), String> {
        // Float layers ask nothing of a target.
        let name = self.document.scheme.target.as_deref();
        let Some(name) = name.filter(|_| self.quantises()) else {
            return Ok(());
        };
        match self.target(name) {
            None => return Err(format!("The target {name} is being read")),
            Some(Err(why)) => return Err(format!("The plan's target cannot be used: {why}")),
            Some(Ok(_)) => {}
        }
        match self.refusals() {
            [] => Ok(()),
            [only] => Err(format!("The target {name} refuses {}", only.words())),
            [first, rest @ ..] => Err(format!(
                "The target {name} refuses {}; and {} more (see the quantisation scheme)",
                first.words(),
                rest.len()
            )),
        }
    }

    /// Whether the plan has anything for a target to refuse.
    fn quantises(&self) -> bool {
        let mut settings = self.document.plan.values();
        settings.any(|s| s.precision != Precision::Fp32)
    }

    /// The point that tells how the plan saturates: on the shown split if there is one, before its distillation if there is no other.
    pub fn target_point(&self) -> Option<&NamedPoint> {
        let shown = self.view.split;
        let splits = [shown, SplitName::Search, SplitName::Holdout];
        let own = splits.iter().find_map(|split| self.plan_point(*split));
        own.or_else(|| {
            splits
                .iter()
                .find_map(|split| self.undistilled_point(*split))
        })
    }

    /// Layers of the plan that saturate at its target and could be given 7 bits: those at int8 that no pin holds.
    pub fn saturating_unpinned(&self) -> Vec<LayerId> {
        let saturates = |id: &LayerId| matches!(self.at_target(id), Some(AtTarget::Saturates(_)));
        let ids = self.mirror.layer_ids().iter();
        ids.filter(|id| {
            saturates(id) && !self.is_pinned(id) && self.setting(id).precision == Precision::Int8
        })
        .cloned()
        .collect()
    }

    /// Layers that stand out: those that are refused, and those that saturate.
    pub(super) fn mark_at_target(&self) -> BTreeMap<LayerId, AtTarget> {
        let saturation = self.target_point().map(|named| &named.point.saturation);
        let saturated = saturation.into_iter().flatten();
        let saturated = saturated
            .filter(|found| found.saturated > 0)
            .map(|found| (found.layer.clone(), AtTarget::Saturates(found.clone())));
        let mut marks: BTreeMap<LayerId, AtTarget> = saturated.collect();
        for refusal in self.refusals() {
            for layer in &refusal.layers {
                let refused = AtTarget::Refused {
                    what: refusal.what.clone(),
                    why: refusal.why.clone(),
                };
                marks.insert(layer.clone(), refused);
            }
        }
        marks
    }
}
