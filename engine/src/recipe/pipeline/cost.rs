//! What steps take, in units of one sample's inference: for progress and what is left of it.

use super::Work;
use crate::{
    compress::{Absorb, OnLayers, blocks},
    data::{Dataset, SplitName},
    graph::LayerId,
    recipe::ResolvedStep,
    train::DistilSettings,
};
use std::collections::BTreeSet;

/// Cost of a training sample in units of one inference: student forward and backward, teacher forward.
const TRAIN_COST: u64 = 4;

impl Work<'_> {
    pub(super) fn cost(&self, step: &ResolvedStep) -> u64 {
        match step {
            ResolvedStep::FoldBatchNorm
            | ResolvedStep::StudentFile
            | ResolvedStep::Prune { .. }
            | ResolvedStep::Cluster { .. } => 0,
            // Statistics, and the share that lies below.
            ResolvedStep::Equalize(method) => match method.settings.absorb {
                Absorb::Off => 0,
                _ => 2 * method.settings.samples as u64,
            },
            // Scored and taken statistics of, where either is asked for; a gradient costs about three inferences.
            ResolvedStep::PruneChannels { settings, .. } => {
                let measured = u64::from(settings.criterion.needs_data()) * (TRAIN_COST - 1);
                (measured + u64::from(settings.reestimate)) * settings.samples as u64
            }
            // Each block is judged by a network without it, whose statistics are settled; channels as above.
            ResolvedStep::Student(settings) => {
                let blocks = match settings.depth < 1.0 {
                    true => 2 * blocks(&self.session.graph).len() as u64 + 2,
                    false => 0,
                };
                let scored = settings.width < 1.0 && settings.criterion.needs_data();
                (blocks + u64::from(scored) * (TRAIN_COST - 1) + 1) * settings.samples as u64
            }
            ResolvedStep::PruneBlocks { settings, .. } => {
                let blocks = match settings.count {
                    Some(_) => 2 * blocks(&self.session.graph).len() as u64 + 2,
                    None => 0,
                };
                (blocks + 1) * settings.samples as u64
            }
            ResolvedStep::LowRank { settings, .. } => settings.samples as u64,
            ResolvedStep::SmoothQuant(method) => method.settings.samples as u64,
            ResolvedStep::SequentialMse(OnLayers { settings, layers }) => self.cost_by_layer(
                settings.samples,
                (settings.candidates + 1) as f64 * settings.positions as f64,
                layers,
            ),
            ResolvedStep::AdaRound(OnLayers { settings, layers }) => self.cost_by_layer(
                settings.samples,
                2.0 * settings.batch as f64 * settings.iterations as f64,
                layers,
            ),
            // Each block goes forward and back once a sample; a layer alone is taken for a part of one.
            ResolvedStep::Brecq(OnLayers { settings, layers }) => match layers.is_empty() {
                true => 0,
                false => {
                    let each = (settings.batch * settings.iterations) as u64;
                    4 * settings.samples as u64 + (TRAIN_COST - 1) * each
                }
            },
            // Two triangular products by the width of the input, which is not known here: a few hundred.
            ResolvedStep::Gptq(OnLayers { settings, layers }) => {
                self.cost_by_layer(settings.samples, settings.positions as f64 + 500.0, layers)
            }
            // Twice through the network, and parts of it again and again.
            ResolvedStep::CorrectBias { samples, .. } => 4 * *samples as u64,
            ResolvedStep::Quantize { scheme, .. } => scheme.samples as u64,
            ResolvedStep::Distil(s) => self.session.data.as_ref().map_or(0, |d| training(s, d)),
        }
    }

    /// Cost of a method that goes through the network layer by layer with `samples`, and does `each` multiplications for a weight.
    fn cost_by_layer(&self, samples: usize, each: f64, chosen: &BTreeSet<LayerId>) -> u64 {
        let layers = self.layers;
        let weights: f64 = layers
            .iter()
            .filter(|l| chosen.contains(&l.id))
            .map(|l| l.weight_shape.iter().map(|d| *d as f64).product::<f64>())
            .sum();
        let macs: f64 = layers.iter().filter_map(|l| l.macs).map(|m| m as f64).sum();
        4 * samples as u64 + (each * weights / macs.max(weights).max(1.0)) as u64
    }
}

fn training(s: &DistilSettings, data: &Dataset) -> u64 {
    let all = data.len(SplitName::Training);
    let epoch = s.samples.map_or(all, |n| n.min(all)) as u64;
    let check = data.len(SplitName::Search) as u64;
    s.trained_epochs() as u64 * (epoch * TRAIN_COST + check) + check
}
