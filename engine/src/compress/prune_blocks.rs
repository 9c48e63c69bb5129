//! Whole residual blocks go: those that are named, or those that the outputs miss least.

use super::{
    Account, AccountEntry, CompressError, Model, Outcome, Pass, PassContext,
    blocks::{Block, blocks, influences, without},
    structured::{macs, macs_left, settle},
};
use crate::{
    data::{Dataset, SplitName},
    exec::ExecError,
    graph::LayerId,
};
use std::collections::{BTreeMap, BTreeSet};

/// What of taking blocks out does not depend on the model.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockSettings {
    /// So many go, those that the outputs miss least; `None`: all that are named.
    pub count: Option<usize>,
    /// Of the calibration split: what blocks are judged on, and statistics taken from.
    pub samples: usize,
}

impl Default for BlockSettings {
    fn default() -> Self {
        Self {
            count: None,
            samples: 256,
        }
    }
}

impl BlockSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// A count of 0, no samples.
    pub fn check(&self) -> Result<(), CompressError> {
        super::at_least_one(&[
            ("count", self.count.unwrap_or(1)),
            ("samples", self.samples),
        ])
    }
}

/// Takes whole residual blocks out, as [`blocks`] finds them.
#[derive(Clone, Debug)]
pub struct PruneBlocks {
    pub settings: BlockSettings,
    /// A block may go if all its layers are named; `None`: every one may.
    pub layers: Option<BTreeSet<LayerId>>,
}

/// What happened to each layer that there is something to say of.
pub(super) type Outcomes = BTreeMap<LayerId, Outcome>;

/// Numbers of the `count` blocks that the outputs miss least, and what they miss without each alone, in nats.
///
/// # Errors
/// Those of [`influences`].
pub(super) fn least_missed(
    model: &Model,
    found: &[Block],
    count: usize,
    data: &Dataset,
    samples: usize,
    context: &PassContext<'_>,
) -> Result<(Vec<usize>, Vec<f64>), CompressError> {
    let influence = influences(&model.graph, found, data, samples, context)?;
    let mut order: Vec<usize> = (0..found.len()).collect();
    // The later one of equal ones goes first.
    order.sort_by(|a, b| influence[*a].total_cmp(&influence[*b]).then(b.cmp(a)));
    order.truncate(count);
    order.sort_unstable();
    Ok((order, influence))
}

/// Takes blocks out by their numbers in `found`; what was done to the layers of all of them, and words on statistics. `influence` is empty
/// where blocks were not judged.
pub(super) fn take_out(
    model: &mut Model,
    found: &[Block],
    gone: &[usize],
    influence: &[f64],
    samples: usize,
    context: &PassContext<'_>,
) -> Result<(Outcomes, String), CompressError> {
    let judged = context
        .data
        .map_or(0, |d| samples.min(d.len(SplitName::Calibration)));
    let mut outcomes = Outcomes::new();
    for (index, block) in found.iter().enumerate() {
        let missed = influence.get(index).map_or(String::new(), |nats| {
            format!(
                ": without it alone the outputs diverge by {nats:.3e} nats (KL, measured, n {judged} calibration samples)"
            )
        });
        for layer in &block.layers {
            // A block within another one goes with it.
            if gone.contains(&index) {
                let words = format!("gone with its residual block{missed}");
                outcomes.insert(layer.clone(), Outcome::Done(words));
            } else {
                let words = format!("its residual block stays{missed}");
                let stays = Outcome::NotDone(words);
                outcomes.entry(layer.clone()).or_insert(stays);
            }
        }
    }
    let gone: Vec<&Block> = gone.iter().filter_map(|i| found.get(*i)).collect();
    let mut graph = without(&model.graph, &gone)?;
    let settled = settle(&model.graph, &mut graph, samples, context)?;
    model
        .masks
        .retain(|weight, _| graph.find_value(weight).is_some());
    model.graph = graph;
    Ok((outcomes, settled))
}

impl PruneBlocks {
    /// The blocks that may go.
    fn named(&self, found: Vec<Block>) -> Result<Vec<Block>, CompressError> {
        let Some(named) = &self.layers else {
            return Ok(found);
        };
        let (whole, others): (Vec<Block>, Vec<Block>) = found
            .into_iter()
            .partition(|b| b.layers.iter().all(|l| named.contains(l)));
        let apart = named
            .iter()
            .find(|l| !whole.iter().any(|b| b.layers.contains(l)));
        match apart {
            None => Ok(whole),
            Some(layer) => {
                let all: Vec<String> = whole.iter().chain(&others).map(Block::words).collect();
                Err(CompressError::Invalid(format!(
                    "PruneBlocks: `layers` names {} but not a whole residual block that it is in: name all layers of a block; those that can go \
                     are {}",
                    layer.0,
                    all.join(", ")
                )))
            }
        }
    }
}

impl Pass for PruneBlocks {
    fn name(&self) -> &'static str {
        "prune blocks"
    }

    fn apply(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        let settings = &self.settings;
        let invalid =
            |message: String| Err(CompressError::Invalid(format!("PruneBlocks: {message}")));
        settings.check()?;
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let (before, whole) = (model.graph.layers(), macs(&model.graph));
        let found = blocks(&model.graph);
        if found.is_empty() {
            return invalid(
                "the model has no residual block that can be taken out (a sum of a value and of what is computed from it, of the same shape)"
                    .to_owned(),
            );
        }
        let all = found.len();
        let found = self.named(found)?;
        let (gone, influence) = match settings.count {
            None => ((0..found.len()).collect(), Vec::new()),
            Some(count) if count > found.len() => {
                return invalid(format!(
                    "{count} residual blocks were to go, but {} can: ask for fewer, or name others",
                    found.len()
                ));
            }
            Some(count) => {
                let Some(data) = context.data else {
                    return invalid(
                        "blocks are judged by what the outputs miss without them, which needs data: name a task.ron, or the blocks, without a \
                         `count`"
                            .to_owned(),
                    );
                };
                least_missed(&model, &found, count, data, settings.samples, context)?
            }
        };
        let (mut outcomes, settled) = take_out(
            &mut model,
            &found,
            &gone,
            &influence,
            settings.samples,
            context,
        )?;
        let left = macs_left(whole, macs(&model.graph));
        let which = match settings.count {
            None => "those that were named",
            Some(_) => "those that the outputs miss least",
        };
        let outside = || Outcome::NotDone("in no residual block that was to go".to_owned());
        let entries = before.into_iter().map(|layer| AccountEntry {
            outcome: outcomes.remove(&layer.id).unwrap_or_else(outside),
            layer: layer.id,
        });
        let account = Account {
            entries: entries.collect(),
            pass: format!(
                "{}: of {all} residual blocks {} taken out, {which}{left}{settled}",
                self.name(),
                gone.len()
            ),
        };
        Ok((model, account))
    }
}
