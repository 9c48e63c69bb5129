//! What a layer reads, for the inspector: the histogram of its input over calibration samples, and the codes that a scheme gives it.

use super::{
    ActivationQuant, ActivationStats, Calibration, CompressError, LayerSetting, QuantScheme,
};
use crate::graph::{Graph, LayerId};

/// Bins of the histogram.
const BINS: usize = 64;

/// A layer's input over calibration samples of the original, in the model's own units.
#[derive(Clone, Debug, PartialEq)]
pub struct InputInspection {
    pub layer: LayerId,
    /// Name of the value that the layer reads.
    pub value: String,
    /// Samples of the calibration split.
    pub samples: usize,
    /// Elements of them.
    pub count: u64,
    /// Ends of the histogram: what there is, and what the codes reach.
    pub range: [f32; 2],
    /// Elements that are not exactly zero, by 64 bins of equal width over `range`; an element counts at the middle of one of 4,096
    /// finer bins a side.
    pub counts: Vec<u64>,
    /// Share of exact zeros.
    pub zeros: f64,
    /// `None`: the setting and scheme leave it float, or give it a range at each inference.
    pub codes: Option<InputCodes>,
    /// Quantised by the range of each inference.
    pub dynamic: bool,
}

/// The codes that a layer's input has.
#[derive(Clone, Debug, PartialEq)]
pub struct InputCodes {
    pub bits: u32,
    /// One step, and the code that stands for zero.
    pub scale: f32,
    pub zero_point: i32,
    /// Values of the outermost codes.
    pub range: [f32; 2],
    /// How the range was chosen.
    pub method: Calibration,
    /// Share of elements beyond the outermost codes by more than half a step.
    pub clipped: f64,
    /// Signal-to-noise ratio of the codes, dB, from the finer bins' middles; `None` where nothing is lost, and for codes of 16 bits,
    /// which are finer than the bins.
    pub sqnr_db: Option<f64>,
}

/// What `setting` under `scheme` does to a layer's input, whose histogram is among `stats`: of the original, so what layers before it
/// lose under a plan is not in it.
///
/// # Errors
/// An unknown layer, or one whose input was not counted.
pub fn inspect_input(
    graph: &Graph,
    layer: &LayerId,
    setting: LayerSetting,
    scheme: &QuantScheme,
    stats: &ActivationStats,
) -> Result<InputInspection, CompressError> {
    let refuse = |message: &str| CompressError::Layer {
        message: message.to_owned(),
        layer: layer.0.to_string(),
    };
    let found = graph
        .layer(layer)
        .ok_or_else(|| refuse("the model has no such layer"))?;
    let value = graph.values[found.input.0 as usize].name.clone();
    let uncounted = || refuse("its input was not seen in the calibration samples");
    let histogram = stats.histograms.get(&value).ok_or_else(uncounted)?;
    let (min, max) = histogram.extremes().ok_or_else(uncounted)?;

    let quantised = setting.precision.is_integer();
    let bits = scheme.activations.calibrated_bits().filter(|_| quantised);
    let method = scheme.range_method();
    let chosen = bits.and_then(|bits| {
        let [lo, hi] = stats.range_of(&value, method, scheme.symmetry)?;
        Some(ActivationQuant::of(lo, hi, scheme.symmetry, bits))
    });
    // The outermost bins reach beyond what there is.
    let inside = |(value, n): (f32, u64)| (value.clamp(min, max), n);
    let centres: Vec<(f32, u64)> = histogram.centres().map(inside).collect();
    let count = histogram.count() as f64;
    let codes = chosen.map(|quant| {
        let range = quant.reach();
        let half = quant.scale / 2.0;
        let beyond = |value: f32| value < range[0] - half || value > range[1] + half;
        let outside = centres.iter().filter(|(value, _)| beyond(*value));
        let weighed: Vec<(f32, f32)> = centres.iter().map(|(v, n)| (*v, *n as f32)).collect();
        let power = weighed
            .iter()
            .map(|(v, n)| f64::from(v * v) * f64::from(*n));
        let (signal, noise) = (power.sum::<f64>(), quant.error(&weighed));
        InputCodes {
            bits: quant.bits,
            scale: quant.scale,
            zero_point: quant.zero_point,
            range,
            method,
            clipped: outside.map(|(_, n)| *n).sum::<u64>() as f64 / count,
            sqnr_db: (quant.bits <= 8 && noise > 0.0).then(|| 10.0 * (signal / noise).log10()),
        }
    });
    let reach = codes.as_ref().map_or([min, max], |codes| codes.range);
    let range = super::inspect::widened([min.min(reach[0]), max.max(reach[1])]);
    let mut counts = vec![0_u64; BINS];
    let bin = |value: f32| {
        let width = f64::from(range[1]) - f64::from(range[0]);
        let place = (f64::from(value) - f64::from(range[0])) / width * BINS as f64;
        (place as usize).min(BINS - 1)
    };
    for (value, n) in &centres {
        counts[bin(*value)] += n;
    }
    Ok(InputInspection {
        layer: layer.clone(),
        value,
        samples: stats.samples,
        count: histogram.count(),
        range,
        counts,
        zeros: histogram.zeros() as f64 / count,
        codes,
        dynamic: quantised
            && scheme.activations == super::Activations::Dynamic
            && matches!(found.op, "MatMul" | "Gemm"),
    })
}
