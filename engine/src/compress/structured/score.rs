//! How much a unit matters. Scores of a group's weights are brought to mean 1 before they are averaged, so that large layers
//! do not drown small ones (DepGraph, Fang et al. 2023, §3.3).

use super::{
    Criterion,
    groups::{Block, Member, Structure},
    labels::Unit,
    measured::{self, Measured},
};
use crate::{
    compress::{CompressError, PassContext},
    graph::ValueId,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// A score a unit, by block; higher: stays longer.
pub(super) type Scores = Vec<Vec<f64>>;

pub(super) fn scores(
    structure: &Structure,
    criterion: Criterion,
    samples: usize,
    context: &PassContext<'_>,
) -> Result<Scores, CompressError> {
    let blocks = &structure.blocks;
    let weights = |power: i32| -> Scores {
        blocks
            .iter()
            .map(|b| by_weights(structure, b, power))
            .collect()
    };
    let found = match criterion {
        Criterion::L1 => weights(1),
        Criterion::L2 => weights(2),
        Criterion::NormScale => {
            let mut all = Vec::with_capacity(blocks.len());
            for block in blocks {
                all.push(by_scales(structure, block)?);
            }
            all
        }
        Criterion::GeometricMedian => {
            let mut all = Vec::with_capacity(blocks.len());
            for block in blocks {
                if context.cancel.is_cancelled() {
                    return Err(crate::exec::ExecError::Cancelled.into());
                }
                all.push(by_median(structure, block));
            }
            all
        }
        Criterion::Random => {
            let mut rng = ChaCha8Rng::seed_from_u64(context.seed);
            blocks
                .iter()
                .map(|b| b.units.iter().map(|_| rng.random::<f64>()).collect())
                .collect()
        }
        Criterion::Taylor => measured::taylor(structure, samples, context)?,
        Criterion::Activation => {
            measured::activations(structure, Measured::Mean, samples, context)?
        }
        Criterion::Apoz => measured::activations(structure, Measured::Active, samples, context)?,
    };
    if let Some(block) = found.iter().position(|s| s.iter().any(|v| !v.is_finite())) {
        let layer = blocks[block].members.first().map(|m| m.layer);
        return Err(CompressError::Layer {
            message: format!(
                "{} gives scores that are not finite: look at the layer's weights for NaN or infinite values",
                criterion.name()
            ),
            layer: layer.map_or_else(String::new, |l| structure.layers[l].id.0.to_string()),
        });
    }
    Ok(found)
}

/// Where each of a block's units lies along an axis.
pub(super) fn places(
    structure: &Structure,
    block: &Block,
    value: ValueId,
    axis: usize,
) -> Vec<Vec<usize>> {
    let number: BTreeMap<Unit, usize> = block
        .units
        .iter()
        .enumerate()
        .map(|(i, u)| (*u, i))
        .collect();
    let mut found = vec![Vec::new(); block.units.len()];
    if let Some(units) = structure.trace.labels.axis(value, axis) {
        for (index, unit) in units.iter().enumerate() {
            if let Some(n) = number.get(&structure.trace.labels.root(*unit)) {
                found[*n].push(index);
            }
        }
    }
    found
}

/// Sums of `f` over everything at each index along an axis.
pub(super) fn along(shape: &[usize], axis: usize, f: impl Fn(usize) -> f64) -> Vec<f64> {
    let inner: usize = shape[axis + 1..].iter().product();
    let length = shape[axis];
    let outer: usize = shape[..axis].iter().product();
    let mut sums = vec![0.0; length];
    for o in 0..outer {
        for (k, sum) in sums.iter_mut().enumerate() {
            let start = (o * length + k) * inner;
            *sum += (start..start + inner).map(&f).sum::<f64>();
        }
    }
    sums
}

fn weight(structure: &Structure, value: ValueId) -> (Vec<f32>, Vec<usize>) {
    match &structure.trace.graph.value(value).data {
        Some(data) => (data.to_f32_vec(), data.shape.clone()),
        None => (Vec::new(), vec![0]),
    }
}

/// To mean 1; what is all zero stays.
pub(super) fn to_mean_one(mut scores: Vec<f64>) -> Vec<f64> {
    let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
    if mean > 0.0 {
        scores.iter_mut().for_each(|s| *s /= mean);
    }
    scores
}

pub(super) fn mean_of(parts: Vec<Vec<f64>>, units: usize) -> Vec<f64> {
    let n = parts.len().max(1) as f64;
    let mut mean = vec![0.0; units];
    for part in parts {
        for (sum, own) in mean.iter_mut().zip(part) {
            *sum += own / n;
        }
    }
    mean
}

/// Norms of what computes a unit and of what reads it (Li et al. 2017 look at the first alone).
fn by_weights(structure: &Structure, block: &Block, power: i32) -> Vec<f64> {
    let parts = block
        .members
        .iter()
        .map(|member| {
            let (values, shape) = weight(structure, member.weight);
            let sums = along(&shape, member.axis, |i| {
                f64::from(values[i].abs()).powi(power)
            });
            let norms = places(structure, block, member.weight, member.axis)
                .iter()
                .map(|own| {
                    let sum: f64 = own.iter().map(|i| sums[*i]).sum();
                    if power == 2 { sum.sqrt() } else { sum }
                })
                .collect();
            to_mean_one(norms)
        })
        .collect();
    mean_of(parts, block.units.len())
}

/// Magnitudes of batch norms' scales (network slimming, Liu et al. 2017), not normalised: norms have made them comparable.
fn by_scales(structure: &Structure, block: &Block) -> Result<Vec<f64>, CompressError> {
    if block.scales.is_empty() {
        let layer = block.members.iter().find(|m| m.output).map(|m| m.layer);
        return Err(CompressError::Layer {
            message: "criterion norm_scale needs a batch norm on every channel, and none follows here: put PruneChannels before \
                      FoldBatchNorm, keep this layer, or choose another criterion"
                .to_owned(),
            layer: layer.map_or_else(String::new, |l| structure.layers[l].id.0.to_string()),
        });
    }
    let parts = block
        .scales
        .iter()
        .map(|scale| {
            let (values, _) = weight(structure, *scale);
            places(structure, block, *scale, 0)
                .iter()
                .map(|own| own.iter().map(|i| f64::from(values[*i].abs())).sum())
                .collect()
        })
        .collect();
    Ok(mean_of(parts, block.units.len()))
}

/// Sum of distances to the block's other units: the one nearest to all others can best be done without (He et al. 2019).
fn by_median(structure: &Structure, block: &Block) -> Vec<f64> {
    let outputs: Vec<&Member> = block.members.iter().filter(|m| m.output).collect();
    let parts = outputs
        .iter()
        .map(|member| {
            let (values, shape) = weight(structure, member.weight);
            let inner: usize = shape[member.axis + 1..].iter().product();
            let length = shape[member.axis];
            let outer: usize = shape[..member.axis].iter().product();
            let filters: Vec<Vec<f32>> = places(structure, block, member.weight, member.axis)
                .iter()
                .map(|own| {
                    let mut filter = Vec::new();
                    for k in own {
                        for o in 0..outer {
                            let start = (o * length + k) * inner;
                            filter.extend_from_slice(&values[start..start + inner]);
                        }
                    }
                    filter
                })
                .collect();
            let mut sums = vec![0.0; filters.len()];
            for a in 0..filters.len() {
                for b in 0..a {
                    let squares = filters[a].iter().zip(&filters[b]);
                    let distance: f64 = squares
                        .map(|(x, y)| f64::from(x - y).powi(2))
                        .sum::<f64>()
                        .sqrt();
                    sums[a] += distance;
                    sums[b] += distance;
                }
            }
            to_mean_one(sums)
        })
        .collect();
    mean_of(parts, block.units.len())
}
