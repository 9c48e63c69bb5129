//! Which units go: so much of every group, or the least important of all until a budget is met.

use super::{Amount, ChannelSettings, Ranking, groups::Structure, labels::Unit, score::Scores};
use crate::{
    compress::{CompressError, Model},
    graph::Graph,
};
use std::collections::{BTreeMap, BTreeSet};

/// What one block may lose.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Limit {
    /// A layer of its group is kept.
    Keep(String),
    /// The share that goes, or the most that may.
    Share(f32),
}

/// Multiply–accumulates of one sample, or `None` where a layer's are not known.
pub(crate) fn macs(graph: &Graph) -> Option<u64> {
    graph
        .layers()
        .iter()
        .try_fold(0u64, |sum, layer| sum.checked_add(layer.macs?))
}

/// What is left of the MACs, for an account's line; nothing where they are not known.
pub(in crate::compress) fn macs_left(before: Option<u64>, left: Option<u64>) -> String {
    match (before, left) {
        (Some(before), Some(left)) if before > 0 => format!(
            "; {left} of {before} MACs a sample left ({:.1} %)",
            left as f64 * 100.0 / before as f64
        ),
        _ => String::new(),
    }
}

/// Bytes of all constants.
pub(super) fn weight_bytes(graph: &Graph) -> u64 {
    let data = graph.values.iter().filter_map(|v| v.data.as_ref());
    data.map(|d| d.bytes.len() as u64).sum()
}

/// Most units that may go from a block: some always stay, and what stays is a multiple.
fn most(units: usize, width: usize, share: f32, settings: &ChannelSettings) -> usize {
    let wanted = (f64::from(share) * units as f64).round() as usize;
    let least = settings.least.div_ceil(width).max(1);
    rounded(
        units,
        width,
        wanted.min(units.saturating_sub(least)),
        settings,
    )
}

/// The largest number up to `wanted` that leaves a multiple of channels.
fn rounded(units: usize, width: usize, wanted: usize, settings: &ChannelSettings) -> usize {
    // Units of `width` channels: a multiple of channels is a multiple of so many units.
    let step = settings.round_to.max(1);
    let step = step / gcd(step, width.max(1));
    let kept = (units - wanted).next_multiple_of(step);
    units.saturating_sub(kept)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The units that go, as roots.
pub(super) fn choose(
    structure: &Structure,
    masks: &BTreeMap<String, Vec<bool>>,
    scores: &Scores,
    limits: &[Limit],
    settings: &ChannelSettings,
) -> Result<BTreeSet<Unit>, CompressError> {
    // Units of each block from the least important on; the lower unit first on ties.
    let order: Vec<Vec<usize>> = scores
        .iter()
        .map(|own| {
            let mut order: Vec<usize> = (0..own.len()).collect();
            order.sort_by(|a, b| own[*a].total_cmp(&own[*b]).then(a.cmp(b)));
            order
        })
        .collect();
    let caps: Vec<usize> = structure
        .blocks
        .iter()
        .zip(limits)
        .map(|(block, limit)| match limit {
            Limit::Keep(_) => 0,
            Limit::Share(share) => most(block.units.len(), block.width, *share, settings),
        })
        .collect();
    let removed = |counts: &[usize]| -> BTreeSet<Unit> {
        let blocks = structure.blocks.iter().zip(&order).zip(counts);
        blocks
            .flat_map(|((block, order), count)| order[..*count].iter().map(|i| block.units[*i]))
            .collect()
    };
    // From a number of steps to how many each block loses.
    let global: Vec<(usize, usize)> = {
        let mut all: Vec<(usize, usize)> = Vec::new();
        for (block, order) in order.iter().enumerate() {
            all.extend((0..caps[block]).map(|rank| (block, order[rank])));
        }
        all.sort_by(|a, b| scores[a.0][a.1].total_cmp(&scores[b.0][b.1]).then(a.cmp(b)));
        all
    };
    const LOCAL_STEPS: usize = 1000;
    let steps = match settings.ranking {
        Ranking::Global => global.len(),
        Ranking::Local => LOCAL_STEPS,
    };
    let counts = |step: usize| -> Vec<usize> {
        let mut counts: Vec<usize> = match settings.ranking {
            Ranking::Global => {
                let mut counts = vec![0; caps.len()];
                for (block, _) in &global[..step] {
                    counts[*block] += 1;
                }
                counts
            }
            Ranking::Local => structure
                .blocks
                .iter()
                .zip(&caps)
                .map(|(block, cap)| {
                    let share = step as f64 / LOCAL_STEPS as f64;
                    ((share * block.units.len() as f64).round() as usize).min(*cap)
                })
                .collect(),
        };
        for (count, block) in counts.iter_mut().zip(&structure.blocks) {
            *count = rounded(block.units.len(), block.width, *count, settings);
        }
        counts
    };
    let cut = |step: usize| -> Result<Model, CompressError> {
        structure.remove(masks, &removed(&counts(step)))
    };
    let channels: usize = structure.blocks.iter().map(|b| b.units.len()).sum();
    let budget: Box<dyn Fn(usize) -> Result<bool, CompressError>> = match settings.amount {
        Amount::Ratios => return Ok(removed(&caps)),
        Amount::Channels(share) => {
            let goal = f64::from(share) * channels as f64;
            Box::new(move |step| Ok(counts(step).iter().sum::<usize>() as f64 >= goal.round()))
        }
        Amount::Macs(share) => {
            let before = macs(&structure.trace.graph).ok_or_else(|| {
                CompressError::Invalid(
                    "the MACs of some layers are not known (their shapes are not): give the amount as `channels` or `ratios`"
                        .to_owned(),
                )
            })?;
            let goal = f64::from(share) * before as f64;
            Box::new(move |step| Ok(macs(&cut(step)?.graph).is_some_and(|m| m as f64 <= goal)))
        }
        Amount::WeightKilobytes(limit) => {
            Box::new(move |step| Ok(weight_bytes(&cut(step)?.graph) as f64 <= limit * 1000.0))
        }
    };
    // More steps take away at least as much: the first that meets the budget.
    if !budget(steps)? {
        let left = structure.remove(masks, &removed(&caps))?;
        return Err(CompressError::Invalid(format!(
            "PruneChannels cannot reach {}: with everything gone that may go, {} of {} MACs and {:.1} kB of weights are left. \
             Ask for less, raise the most that layers may lose (`default`), or lower `least`",
            settings.amount.words(),
            macs(&left.graph).map_or("?".to_owned(), |m| m.to_string()),
            macs(&structure.trace.graph).map_or("?".to_owned(), |m| m.to_string()),
            weight_bytes(&left.graph) as f64 / 1000.0,
        )));
    }
    let (mut low, mut high) = (0, steps);
    while low < high {
        let middle = low + (high - low) / 2;
        if budget(middle)? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(removed(&counts(high)))
}
