//! k-means on a line.

use crate::exec::CancelToken;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Rounds at most.
const ROUNDS: usize = 200;

/// Place of the nearest of ascending values, the lower on ties.
pub(super) fn nearest(values: &[f32], w: f32) -> usize {
    let above = values.partition_point(|v| *v < w);
    let far = |i: usize| (f64::from(values[i]) - f64::from(w)).abs();
    match above {
        0 => 0,
        n if n == values.len() => n - 1,
        n if far(n) < far(n - 1) => n,
        n => n - 1,
    }
}

/// At most `k` values for those weights that are not zero, ascending, none of them zero: k-means++ (Arthur and Vassilvitskii 2007), then Lloyd's
/// rounds. On a line a cluster is a run of the sorted weights, so that a round takes k searches and no pass over the weights. Once cancelled,
/// fewer.
pub(super) fn k_means(
    weights: impl Iterator<Item = f32>,
    k: usize,
    seed: u64,
    cancel: &CancelToken,
) -> Vec<f32> {
    let mut sorted: Vec<f32> = weights.filter(|w| *w != 0.0).collect();
    sorted.sort_by(f32::total_cmp);
    let mut distinct = sorted.clone();
    distinct.dedup();
    if distinct.len() <= k {
        return distinct;
    }
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(sorted.iter().scan(0.0, |sum, v| {
            *sum += f64::from(*v);
            Some(*sum)
        }))
        .collect();
    let mut values = first_values(&sorted, k, seed, cancel);
    for _ in 0..ROUNDS {
        let ends = values.windows(2).map(|pair| {
            let middle = (pair[0] + pair[1]) / 2.0;
            sorted.partition_point(|v| f64::from(*v) <= middle)
        });
        let mut first = 0;
        let mut moved = Vec::with_capacity(values.len());
        for end in ends.chain([sorted.len()]) {
            if end > first {
                moved.push((sums[end] - sums[first]) / (end - first) as f64);
                first = end;
            }
        }
        if moved == values {
            break;
        }
        values = moved;
    }
    // A mean of zero would be taken for the zeros' own value.
    let apart = |v: f64| match v as f32 {
        0.0 => f32::MIN_POSITIVE,
        v => v,
    };
    let mut values: Vec<f32> = values.into_iter().map(apart).collect();
    values.dedup();
    values
}

/// Each drawn from the weights, with a chance in proportion to its squared distance from the nearest before; ascending.
fn first_values(sorted: &[f32], k: usize, seed: u64, cancel: &CancelToken) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut far = vec![f64::INFINITY; sorted.len()];
    let mut at = (rng.random::<f64>() * sorted.len() as f64) as usize;
    let mut values: Vec<f64> = Vec::with_capacity(k);
    while values.len() < k {
        let value = f64::from(sorted[at.min(sorted.len() - 1)]);
        values.push(value);
        // Each takes passes over all weights.
        if cancel.is_cancelled() {
            break;
        }
        let mut total = 0.0;
        for (far, v) in far.iter_mut().zip(sorted) {
            *far = far.min((f64::from(*v) - value).powi(2));
            total += *far;
        }
        let mut left = rng.random::<f64>() * total;
        // Where rounding leads behind the end: the last that is no value yet.
        at = far.iter().rposition(|far| *far > 0.0).unwrap_or(0);
        for (i, far) in far.iter().enumerate() {
            left -= far;
            if left < 0.0 && *far > 0.0 {
                at = i;
                break;
            }
        }
    }
    values.sort_by(f64::total_cmp);
    values
}
