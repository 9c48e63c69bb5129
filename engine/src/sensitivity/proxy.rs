//! The proxy: noise-to-signal ratio of the weights alone. Ranks layers badly against the true loss (engine notes: Spearman
//! about 0.2) but costs a fraction of a second and no data, so the map has colours at once.

use super::{Candidate, Cell, Tier};
use crate::{
    compress::{
        CodeRange, QuantScheme, Ratio, ScaleLayout, Wiring, choose_scales, folded_at,
        plain_weights, through,
    },
    exec::{self, ExecError},
    graph::{Graph, Layer, LayerId},
};
use rayon::prelude::*;
use std::collections::HashSet;

/// Weights looked at side by side, in elements (32 MB as float32): what bounds the memory, a few times this much, whatever the
/// size of the model. A layer that is larger goes alone.
const AT_A_TIME: usize = 8 << 20;

/// All proxy cells of a graph, layer by layer, in parallel. Needs no data. Batch norms are folded first, as in a plan; the
/// value is Σ(w − ŵ)²/Σw². Layers whose weights are no finite float constants have no cells. Goes through the file once, and lets go
/// of what it has read.
pub fn proxy(graph: &Graph, scheme: &QuantScheme) -> Vec<Cell> {
    let mut cells = Vec::new();
    // Never told to stop.
    let _ = proxy_by_parts(graph, scheme, &mut |some| {
        cells.extend(some);
        Ok(())
    });
    cells
}

/// As [`proxy`], part by part (of 32 MB, or one layer that is larger): `part` gets each part's cells, and does between parts what
/// may not wait.
///
/// # Errors
/// What `part` returns, which ends it there.
pub fn proxy_by_parts(
    graph: &Graph,
    scheme: &QuantScheme,
    part: &mut dyn FnMut(Vec<Cell>) -> Result<(), ExecError>,
) -> Result<(), ExecError> {
    let layers = graph.layers();
    let mut rest = &layers[..];
    while !rest.is_empty() {
        let mut elements = 0usize;
        let fitting = rest.iter().take_while(|layer| {
            elements = elements.saturating_add(layer.weight_shape.iter().product());
            elements <= AT_A_TIME
        });
        let (some, later) = rest.split_at(fitting.count().max(1));
        rest = later;
        part(proxy_of(graph, some, scheme))?;
    }
    Ok(())
}

/// The cells of some of a graph's layers.
fn proxy_of(graph: &Graph, part: &[Layer], scheme: &QuantScheme) -> Vec<Cell> {
    let folded = folded_at(graph, part);
    let wiring = Wiring::of(&folded);
    let names: HashSet<&LayerId> = part.iter().map(|layer| &layer.id).collect();
    let mut layers = folded.layers();
    layers.retain(|layer| names.contains(&layer.id));
    let cells: Vec<Vec<Cell>> = exec::pool().install(|| {
        layers
            .par_iter()
            .map(|layer| match plain_weights(&folded, &wiring, layer) {
                Some(weights) => cells_of(layer, &weights, scheme),
                None => Vec::new(),
            })
            .collect()
    });
    for layer in part {
        if let Some(data) = &graph.value(layer.weight).data {
            data.let_go();
        }
    }
    cells.into_iter().flatten().collect()
}

fn cells_of(layer: &Layer, weights: &[f32], scheme: &QuantScheme) -> Vec<Cell> {
    let signal = energy(weights);
    let pruned = pruning_noise(weights);
    Candidate::ALL
        .into_iter()
        .map(|candidate| {
            let noise = match candidate {
                Candidate::Fp16 => {
                    let half = through(crate::graph::ElementType::F16, weights);
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
            Cell::early(layer.id.clone(), candidate, Tier::Proxy, value, 0)
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
