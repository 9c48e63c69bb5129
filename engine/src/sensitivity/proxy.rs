//! The proxy: noise-to-signal ratio of the weights alone. Ranks layers badly against the true loss (engine notes: Spearman
//! about 0.2) but costs a fraction of a second and no data, so the map has colours at once.

use super::{Candidate, Cell, Tier};
use crate::{
    compress::{
        CodeRange, QuantScheme, Ratio, ScaleLayout, Wiring, choose_scales, folded, plain_weights,
        through_half,
    },
    exec,
    graph::{Graph, Layer},
};
use rayon::prelude::*;

/// All proxy cells of a graph, layer by layer, in parallel. Needs no data. Batch norms are folded first, as in a plan; the
/// value is Σ(w − ŵ)²/Σw². Layers whose weights are no finite float constants have no cells.
pub fn proxy(graph: &Graph, scheme: &QuantScheme) -> Vec<Cell> {
    let graph = folded(graph);
    let wiring = Wiring::of(&graph);
    let layers = graph.layers();
    exec::pool().install(|| {
        let cells: Vec<Vec<Cell>> = layers
            .par_iter()
            .map(|layer| match plain_weights(&graph, &wiring, layer) {
                Some(weights) => cells_of(layer, &weights, scheme),
                None => Vec::new(),
            })
            .collect();
        cells.into_iter().flatten().collect()
    })
}

fn cells_of(layer: &Layer, weights: &[f32], scheme: &QuantScheme) -> Vec<Cell> {
    let signal = energy(weights);
    let pruned = pruning_noise(weights);
    Candidate::ALL
        .into_iter()
        .map(|candidate| {
            let noise = match candidate {
                Candidate::Fp16 => {
                    let half = through_half(weights);
                    let error = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
                    weights.iter().zip(&half).map(error).sum()
                }
                Candidate::Int8 | Candidate::Int4 => {
                    let precision = candidate.precision();
                    match (CodeRange::of(precision), scheme.granularity(precision)) {
                        (Some(range), Some(granularity)) => {
                            let shape = &layer.weight_shape;
                            let layout =
                                ScaleLayout::of(layer.op, shape, layer.channel_axis, granularity);
                            choose_scales(weights, shape, &layout, range, scheme.weight_symmetry)
                                .error
                        }
                        _ => 0.0,
                    }
                }
                Candidate::P25 => pruned[0],
                Candidate::P50 => pruned[1],
                Candidate::P75 => pruned[2],
            };
            // Weights beyond half precision become infinite: as bad as losing the layer.
            let value = match noise / signal {
                ratio if ratio.is_finite() => ratio,
                _ if signal > 0.0 => 1.0,
                _ => 0.0,
            };
            Cell {
                layer: layer.id.clone(),
                candidate,
                tier: Tier::Proxy,
                value,
                ci: None,
                n: 0,
                kl: None,
            }
        })
        .collect()
}

fn energy(weights: &[f32]) -> f64 {
    weights.iter().map(|w| f64::from(*w).powi(2)).sum()
}

/// Energy of the smallest quarter, half and three quarters. Ties don't matter here, so magnitudes alone are partitioned.
fn pruning_noise(weights: &[f32]) -> [f64; 3] {
    let mut magnitudes: Vec<u32> = weights.iter().map(|w| w.abs().to_bits()).collect();
    let n = magnitudes.len();
    let mut noise = [0.0; 3];
    let mut sum = 0.0;
    let mut done = 0;
    for (slot, ratio) in noise.iter_mut().zip([0.25, 0.5, 0.75]) {
        let count = Ratio(ratio).count_of(n);
        if count > done {
            let rest = &mut magnitudes[done..];
            let (below, last, _) = rest.select_nth_unstable(count - done - 1);
            // Sorted before summing: the order that selection leaves is no contract.
            below.sort_unstable();
            let square = |bits: &u32| f64::from(f32::from_bits(*bits)).powi(2);
            sum += below.iter().map(square).sum::<f64>() + square(last);
            done = count;
        }
        *slot = sum;
    }
    noise
}
