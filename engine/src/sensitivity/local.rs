//! The tiers between the proxy and the measured map: the error of a layer's output where its input is the original's, and how
//! much of that the outputs notice. One forward and one backward pass over some images serves all layers; each candidate adds the work of
//! its layers alone, one forward pass in all.

use super::{
    Candidate, Cell, MapObserver, MapOptions, SensitivityError, Tier,
    networks::{Networks, Relatives, Runs},
};
use crate::{
    compress::{Model, PassContext, QuantScheme},
    data::{Dataset, SplitName},
    eval::{EvalError, rows_of},
    exec::{CancelToken, LocalError},
    graph::LayerId,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

/// Images that the tiers are taken from at most.
const SAMPLES: usize = 64;

/// Images at a time.
const BATCH: usize = 16;

/// Local and Fisher cells of all layers and candidates, without measuring any. Labels are not looked at. Proxy cells in `known` are
/// not computed again.
///
/// # Errors
/// A model or data that cannot be run, cancellation.
pub fn estimate(
    model: &Model,
    scheme: &QuantScheme,
    data: &Dataset,
    options: &MapOptions,
    known: &[Cell],
    observer: &mut dyn MapObserver,
    cancel: &CancelToken,
) -> Result<Vec<Cell>, SensitivityError> {
    let context = PassContext {
        data: Some(data),
        cancel,
        seed: 0,
    };
    let networks = Networks::new(model, scheme, options, &context)?;
    let todo = networks.order(known, &BTreeSet::new(), observer)?;
    let networks = networks.calibrated(&todo)?;
    // The check that an evaluation begins with: nothing is evaluated here.
    rows_of(networks.base(), data, images_of(data), &[0], cancel)?;
    let mut cells = Vec::new();
    for group in networks.groups(&todo) {
        let relatives = networks.relatives(group, observer)?;
        let more = of(&relatives, data, observer, cancel)?;
        observer.early(more.clone());
        cells.extend(more);
    }
    Ok(cells)
}

/// Local and Fisher cells of a family's members, from the first images of the calibration split (of the search split where there is
/// none). Members that change more than one layer have no cells, networks without a fused form none at all; networks whose gradients cannot be taken
/// have no Fisher ones.
pub(super) fn of(
    relatives: &Relatives,
    data: &Dataset,
    observer: &mut dyn MapObserver,
    cancel: &CancelToken,
) -> Result<Vec<Cell>, SensitivityError> {
    let Some(family) = &relatives.family else {
        return Ok(Vec::new());
    };
    let members: Vec<(&LayerId, Candidate, usize)> = relatives
        .cells
        .iter()
        .filter_map(|(layer, candidate, runs)| match runs {
            Runs::Member(member) => Some((layer, *candidate, *member)),
            Runs::Alone(_) => None,
        })
        .collect();
    let base = &relatives.base;
    let classes = data.info().classes.len();
    let split = images_of(data);
    let count = data.len(split).min(SAMPLES);
    let wanted: Vec<usize> = members.iter().map(|(.., member)| *member).collect();
    let mut sums: Vec<Option<LocalError>> = vec![None; members.len()];
    for start in (0..count).step_by(BATCH) {
        let samples: Vec<usize> = (start..(start + BATCH).min(count)).collect();
        let images = data.images(split, &samples).map_err(EvalError::from)?;
        let seed = |first: usize, rows: &[f32], softmaxed: bool| {
            directions(rows, classes, start + first, softmaxed)
        };
        let mut between = || observer.batch();
        let found = family.local(base, &images, &wanted, &seed, &mut between, cancel)?;
        for (sum, found) in sums.iter_mut().zip(found) {
            match (sum, found) {
                (Some(sum), Some(found)) => sum.add(&found),
                (sum, found) => *sum = found,
            }
        }
    }
    let mut cells = Vec::new();
    for (&(layer, candidate, _), sum) in members.iter().zip(sums) {
        let Some(sum) = sum else { continue };
        let mut tell = |tier, value: f64| {
            if value.is_finite() {
                let n = count as u64;
                cells.push(Cell::early(layer.clone(), candidate, tier, value, n));
            }
        };
        let ratio = if sum.error == 0.0 {
            0.0
        } else {
            sum.error / sum.signal
        };
        tell(Tier::Local, ratio);
        if let Some(noticed) = sum.noticed {
            tell(Tier::Fisher, 0.5 * noticed / count as f64);
        }
    }
    Ok(cells)
}

fn images_of(data: &Dataset) -> SplitName {
    if data.is_empty(SplitName::Calibration) {
        SplitName::Search
    } else {
        SplitName::Calibration
    }
}

/// For each row of logits a direction u with E[u·uᵀ] = diag(p) − p·pᵀ, the Fisher information of the softmax: with random signs ξ,
/// u_c = √p_c·ξ_c − p_c·Σ_k √p_k·ξ_k. The signs hang on the sample's number alone.
fn directions(rows: &[f32], classes: usize, first: usize, softmaxed: bool) -> Vec<f32> {
    let mut all = Vec::with_capacity(rows.len());
    for (index, row) in rows.chunks(classes.max(1)).enumerate() {
        let mut rng = ChaCha8Rng::seed_from_u64((first + index) as u64);
        let probabilities: Vec<f32> = if softmaxed {
            row.to_vec()
        } else {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = row.iter().map(|v| (v - top).exp()).collect();
            let sum: f32 = powers.iter().sum();
            powers.into_iter().map(|v| v / sum).collect()
        };
        let signed: Vec<f32> = probabilities
            .iter()
            .map(|p| {
                if rng.random::<bool>() {
                    p.sqrt()
                } else {
                    -p.sqrt()
                }
            })
            .collect();
        let sum: f32 = signed.iter().sum();
        all.extend(signed.iter().zip(&probabilities).map(|(s, p)| s - p * sum));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_have_the_fisher_information_of_the_softmax() {
        let row = [0.3f32, -1.0, 2.0, 0.0];
        let top: f32 = row.iter().map(|v| v.exp()).sum();
        let p: Vec<f64> = row.iter().map(|v| f64::from(v.exp() / top)).collect();
        let trials = 20_000;
        let mut sums = [[0.0f64; 4]; 4];
        for trial in 0..trials {
            let u = directions(&row, 4, trial, false);
            for (a, sums) in sums.iter_mut().enumerate() {
                for (b, sum) in sums.iter_mut().enumerate() {
                    *sum += f64::from(u[a]) * f64::from(u[b]) / trials as f64;
                }
            }
        }
        for (a, sums) in sums.iter().enumerate() {
            for (b, found) in sums.iter().enumerate() {
                let expected = if a == b { p[a] } else { 0.0 } - p[a] * p[b];
                assert!(
                    (found - expected).abs() < 0.01,
                    "{a} {b}: {found} {expected}"
                );
            }
        }
        // The softmax itself gives the same, and a sample's direction does not depend on its batch.
        let soft: Vec<f32> = p.iter().map(|v| *v as f32).collect();
        let (a, b) = (directions(&row, 4, 7, false), directions(&soft, 4, 7, true));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6));
        let two = directions(&[row, row].concat(), 4, 6, false);
        assert_eq!(two[4..], a);
    }
}
