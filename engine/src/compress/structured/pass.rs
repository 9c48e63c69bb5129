//! The pass: limits from layers to blocks, scores, choice, removal, statistics; and the account by layer.

use super::{
    Amount, Attention, PruneChannels,
    choose::{Limit, choose, macs, macs_left},
    groups::Structure,
    labels::Unit,
    means::correct,
    norms::reestimate,
    score::scores,
};
use crate::{
    compress::{
        Account, AccountEntry, CompressError, Model, Outcome, Pass, PassContext,
        prune::check_settings,
    },
    exec::ExecError,
    graph::{Graph, LayerId, Op},
};
use std::collections::{BTreeMap, BTreeSet};

impl Pass for PruneChannels {
    fn name(&self) -> &'static str {
        "prune channels"
    }

    fn apply(
        &self,
        model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        self.settings.check()?;
        let before = model.graph.layers();
        check_settings(&before, &self.layers, |ratio| ratio.check())?;
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let structure = Structure::with(&model.graph, self.settings.attention);
        let limits: Vec<Limit> = (0..structure.blocks.len())
            .map(|block| self.limit(&structure, block))
            .collect();
        let settings = &self.settings;
        let anything = limits.iter().any(|l| !matches!(l, Limit::Keep(_)));
        if !anything && !matches!(settings.amount, Amount::Ratios) {
            return Err(CompressError::Invalid(
                "PruneChannels has no layer whose channels may go: every one is kept or cannot lose any (`limbeck inspect` says \
                 why)"
                    .to_owned(),
            ));
        }
        let scores = if anything {
            scores(&structure, settings.criterion, settings.samples, context)?
        } else {
            structure
                .blocks
                .iter()
                .map(|b| vec![0.0; b.units.len()])
                .collect()
        };
        let removed = choose(&structure, &model.masks, &scores, &limits, settings)?;
        let mut words = String::new();
        let pruned = if removed.is_empty() {
            model.clone()
        } else {
            let mut pruned = structure.remove(&model.masks, &removed)?;
            let (graph, n) = (&mut pruned.graph, settings.samples);
            if settings.reestimate {
                words = settle(&structure, &removed, graph, n, context)?;
            } else if has_norms(graph) {
                words = "; batch norms keep their old statistics".to_owned();
            }
            pruned
        };
        let entries = self.entries(&structure, &limits, &pruned.graph);
        let mac_words = macs_left(macs(&model.graph), macs(&pruned.graph));
        let account = Account {
            pass: format!(
                "{}{}, by {}{mac_words}{words}",
                self.name(),
                match settings.attention {
                    Attention::Widths => "",
                    Attention::Heads => " and whole attention heads",
                },
                settings.criterion.name()
            ),
            entries,
        };
        Ok((pruned, account))
    }
}

/// Statistics of `graph`, which is `structure`'s without `removed`, taken again or brought back, by the calibration split; in words.
pub(super) fn settle(
    structure: &Structure,
    removed: &BTreeSet<Unit>,
    graph: &mut Graph,
    samples: usize,
    context: &PassContext<'_>,
) -> Result<String, CompressError> {
    Ok(match (context.data.is_some(), has_norms(graph)) {
        (true, true) => format!(
            "; statistics of {} batch norms taken again",
            reestimate(graph, samples, context)?
        ),
        (true, false) => format!(
            "; {} layers scaled and shifted to the means and spreads they had",
            correct(structure, removed, graph, samples, context)?
        ),
        (false, true) => "; batch norms keep their old statistics".to_owned(),
        (false, false) => String::new(),
    })
}

fn has_norms(graph: &Graph) -> bool {
    graph
        .nodes
        .iter()
        .any(|n| matches!(n.op, Op::BatchNormalization { .. }))
}

impl PruneChannels {
    /// The smallest share that a layer of the block's group asks for; a kept layer keeps them all.
    fn limit(&self, structure: &Structure, block: usize) -> Limit {
        let ratios = matches!(self.settings.amount, Amount::Ratios);
        let mut share: f32 = 1.0;
        for member in structure.blocks[block].members.iter().filter(|m| m.output) {
            let id = &structure.layers[member.layer].id;
            match self.layers.get(id) {
                Some(Some(ratio)) => share = share.min(ratio.0),
                None if !ratios => {}
                Some(None) | None => return Limit::Keep(id.0.to_string()),
            }
        }
        Limit::Share(share)
    }

    fn entries(&self, structure: &Structure, limits: &[Limit], after: &Graph) -> Vec<AccountEntry> {
        let after: BTreeMap<LayerId, (usize, usize)> = layer_channels(after);
        let old = layer_channels(&structure.trace.graph);
        structure
            .layers
            .iter()
            .map(|layer| {
                let (Some(old), Some(new)) = (old.get(&layer.id), after.get(&layer.id)) else {
                    return AccountEntry {
                        layer: layer.id.clone(),
                        outcome: Outcome::NotDone("it is gone".to_owned()),
                    };
                };
                let mut parts = Vec::new();
                if new.0 < old.0 {
                    parts.push(format!("{} of {} output channels left", new.0, old.0));
                }
                if new.1 < old.1 {
                    parts.push(format!("{} of {} input channels left", new.1, old.1));
                }
                let group = structure.groups.group_of(&layer.id);
                let others: Vec<&str> = group
                    .iter()
                    .flat_map(|g| &g.layers)
                    .filter(|l| **l != layer.id)
                    .map(|l| &*l.0)
                    .collect();
                let outcome = if parts.is_empty() {
                    let own = structure.groups.fixed.get(&layer.id).cloned();
                    let kept = structure.blocks.iter().zip(limits).find_map(|(b, limit)| {
                        let has = |i: usize| structure.layers[i].id == layer.id;
                        let here = b.members.iter().any(|m| m.output && has(m.layer));
                        match limit {
                            Limit::Keep(by) if here && *by != *layer.id.0 => {
                                Some(format!("tied to {by}, which keeps its channels"))
                            }
                            Limit::Keep(_) if here => Some("it is to keep its channels".to_owned()),
                            _ => None,
                        }
                    });
                    Outcome::NotDone(
                        own.or(kept)
                            .unwrap_or_else(|| "none of its channels was to go".to_owned()),
                    )
                } else {
                    if new.0 < old.0 && !others.is_empty() {
                        parts.push(format!("together with {}", some(&others)));
                    }
                    Outcome::Done(parts.join(", "))
                };
                AccountEntry {
                    layer: layer.id.clone(),
                    outcome,
                }
            })
            .collect()
    }
}

/// Names, the first three of many.
fn some(names: &[&str]) -> String {
    match names.len() {
        0..=4 => names.join(", "),
        n => format!("{} and {} more", names[..3].join(", "), n - 3),
    }
}

/// Output and input channels of every layer, as its weight has them.
pub fn layer_channels(graph: &Graph) -> BTreeMap<LayerId, (usize, usize)> {
    graph
        .layers()
        .into_iter()
        .map(|layer| {
            let group = match graph.node(layer.node).op {
                Op::Conv { group, .. } | Op::ConvTranspose { group, .. } => group,
                _ => 1,
            };
            let shape = &layer.weight_shape;
            let at = |axis: usize| shape.get(axis).copied().unwrap_or(0);
            let pair = match layer.op {
                "Conv" => (at(0), at(1) * group),
                "ConvTranspose" => (at(1) * group, at(0)),
                "Gemm" => (at(layer.channel_axis), at(1 - layer.channel_axis)),
                _ => (at(shape.len() - 1), at(shape.len() - 2)),
            };
            (layer.id, pair)
        })
        .collect()
}
