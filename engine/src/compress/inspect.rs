//! What a setting does to one layer's weights, for the inspector: histograms, channel ranges, error. Sees no data.

use super::{
    CompressError, LayerSetting, QuantScheme, ScaleLayout, folded_at,
    prune::{check_known, magnitude_mask, masked},
    weights::{CodeRange, choose_scales, fake, through},
    wiring::{WeightForm, Wiring, float_weight, weight_form},
};
use crate::{
    exec,
    graph::{Graph, Layer, LayerId},
};
use std::collections::BTreeSet;

/// Bins of both histograms.
const BINS: usize = 64;

/// A layer's weights before and after a setting. Both histograms have 64 bins over `range`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerInspection {
    pub layer: LayerId,
    pub setting: LayerSetting,
    /// Smallest and largest weight before (widened where they are equal).
    pub range: [f32; 2],
    pub before: Vec<u64>,
    pub after: Vec<u64>,
    /// (min, max) of every output channel before.
    pub channel_ranges: Vec<[f32; 2]>,
    /// Signal-to-noise ratio of the weights, dB; `None` when unchanged.
    pub sqnr_db: Option<f64>,
    /// Share of weights beyond the outermost code by more than half a step.
    pub clipped: f64,
    /// Share of zeros after.
    pub zeros: f64,
    /// Distinct codes in use after; 0: float.
    pub levels: u32,
}

/// Float weights of a layer that can be changed; `None` where they are stored otherwise or not finite.
pub(crate) fn plain_weights(graph: &Graph, wiring: &Wiring, layer: &Layer) -> Option<Vec<f32>> {
    let (_, form) = weight_form(graph, wiring, layer);
    if form == WeightForm::Other {
        return None;
    }
    let weights = float_weight(graph, layer).ok()?;
    weights.iter().all(|w| w.is_finite()).then_some(weights)
}

/// What `setting` does to a layer's weights, batch norm folded first as in a plan.
///
/// # Errors
/// An unknown layer, a ratio outside 0..1, weights that are not finite float constants.
pub fn inspect_layer(
    graph: &Graph,
    layer: &LayerId,
    setting: LayerSetting,
    scheme: &QuantScheme,
) -> Result<LayerInspection, CompressError> {
    let refuse = |message: String| CompressError::Layer {
        message,
        layer: layer.0.to_string(),
    };
    scheme.check()?;
    setting.sparsity.check().map_err(refuse)?;
    let layers = graph.layers();
    check_known(&layers, std::iter::once(layer))?;
    let missing = || refuse("the model has no such layer".to_owned());
    let plain = layers.iter().find(|l| l.id == *layer).ok_or_else(missing)?;
    let graph = folded_at(graph, std::slice::from_ref(plain));
    let found = &graph.layer(layer).ok_or_else(missing)?;
    let weights = float_weight(&graph, found).map_err(refuse)?;
    if weights.iter().any(|w| !w.is_finite()) {
        return Err(refuse("its weights hold NaN or infinite values".to_owned()));
    }
    let count = setting.sparsity.count_of(weights.len());
    let pruned = masked(&weights, &magnitude_mask(&weights, count, None));
    let mut clipped = 0_usize;
    let mut levels = BTreeSet::new();
    let after = match (
        CodeRange::of(setting.precision),
        scheme.granularity(setting.precision),
    ) {
        (Some(range), Some(granularity)) => {
            let shape = &found.weight_shape;
            let layout = ScaleLayout::of(found.op, shape, found.channel_axis, granularity);
            let symmetry = scheme.weight_symmetry;
            let chosen =
                exec::pool().install(|| choose_scales(&pruned, shape, &layout, range, symmetry));
            let after = fake(&pruned, shape, &layout, &chosen, range);
            layout.each(shape, |element, at| {
                let (scale, zero) = (chosen.scale[at], chosen.zero_point[at]);
                let range = range.counted_from(zero);
                let (lo, hi) = (range.lo as f32 - 0.5, range.hi as f32 + 0.5);
                clipped += usize::from(!(lo..=hi).contains(&(pruned[element] / scale)));
                levels.insert((after[element] / scale).round() as i32 + zero);
            });
            after
        }
        _ => match setting.precision.half() {
            Some(element) => through(element, &pruned),
            None => pruned,
        },
    };

    let range = extremes(&weights);
    let n = weights.len() as f64;
    Ok(LayerInspection {
        layer: layer.clone(),
        setting,
        range,
        before: histogram(&weights, range),
        after: histogram(&after, range),
        channel_ranges: channel_ranges(&weights, found),
        sqnr_db: sqnr_db(&weights, &after),
        clipped: clipped as f64 / n,
        zeros: after.iter().filter(|w| **w == 0.0).count() as f64 / n,
        levels: levels.len() as u32,
    })
}

fn extremes(weights: &[f32]) -> [f32; 2] {
    let lo = weights.iter().copied().fold(f32::INFINITY, f32::min);
    let hi = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    widened([lo, hi])
}

/// A range that has a width.
pub(super) fn widened([lo, hi]: [f32; 2]) -> [f32; 2] {
    if lo < hi {
        [lo, hi]
    } else {
        let around = lo.abs().max(1e-6) * 0.5;
        [lo - around, hi + around]
    }
}

fn histogram(values: &[f32], [lo, hi]: [f32; 2]) -> Vec<u64> {
    let mut bins = vec![0; BINS];
    let width = f64::from(hi) - f64::from(lo);
    for &v in values {
        let place = (f64::from(v) - f64::from(lo)) / width * BINS as f64;
        // `as` sends what lies below to 0; a dequantised value may lie half a step outside.
        bins[(place as usize).min(BINS - 1)] += 1;
    }
    bins
}

fn channel_ranges(weights: &[f32], layer: &Layer) -> Vec<[f32; 2]> {
    let layout = ScaleLayout::of(
        layer.op,
        &layer.weight_shape,
        layer.channel_axis,
        super::Granularity::PerChannel,
    );
    let mut ranges = vec![[f32::INFINITY, f32::NEG_INFINITY]; layout.len()];
    layout.each(&layer.weight_shape, |element, channel| {
        let w = weights[element];
        let range = &mut ranges[channel];
        *range = [range[0].min(w), range[1].max(w)];
    });
    ranges
}

/// 10·log₁₀ of signal over noise power; `None` when nothing changed. All signal lost: 0 dB or less.
fn sqnr_db(before: &[f32], after: &[f32]) -> Option<f64> {
    let signal: f64 = before.iter().map(|w| f64::from(*w).powi(2)).sum();
    let noise: f64 = before
        .iter()
        .zip(after)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum();
    (noise > 0.0).then(|| 10.0 * (signal / noise).log10())
}
