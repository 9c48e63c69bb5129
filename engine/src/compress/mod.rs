//! Compression techniques, all behind [`Pass`]: model in, model and per-layer account out. Uses `graph`, `exec`, `eval`, `measure`.

mod adaround;
mod bias;
mod blocks;
mod brecq;
mod calibrate;
mod chunks;
mod cluster;
mod equalise;
mod fold;
mod gptq;
mod gradual;
mod histogram;
mod inspect;
mod inspect_input;
mod integer_bias;
mod layerwise;
mod low_rank;
mod norms;
mod pack;
mod pattern;
mod placement;
mod plan;
mod precision;
mod prune;
mod prune_blocks;
mod quantize;
mod scale_search;
mod segments;
mod smooth;
pub(crate) mod structured;
mod student;
#[cfg(test)]
pub(crate) mod testkit;
#[cfg(test)]
mod tests;
mod weights;
mod wiring;
mod zero_points;

pub use adaround::{AdaRound, AdaRoundSettings};
pub use bias::CorrectBias;
pub use blocks::{Block, blocks};
pub use brecq::{Brecq, BrecqSettings};
pub use calibrate::{ActivationStats, Ranges, calibrate, observe};
pub use cluster::{Cluster, Codebooks};
pub use equalise::{Absorb, Equalize, EqualizeSettings};
pub(crate) use fold::{folded_at, folded_outline};
pub use gptq::{Gptq, GptqSettings};
pub use gradual::{Gradual, PruneSchedule};
pub use histogram::{ActivationQuant, Histogram};
pub(crate) use inspect::plain_weights;
pub use inspect::{LayerInspection, inspect_layer};
pub use inspect_input::{InputCodes, InputInspection, inspect_input};
pub use low_rank::{Energy, EnergyOf, KernelSplit, LOW_RANK, LowRank, LowRankSettings, RankBy};
pub use norms::NormStatistics;
pub use pack::{QuantParameters, QuantizedLayer, pack, quantized_layers};
pub(crate) use pattern::axis_summed;
pub use pattern::{Pattern, PruneTarget};
pub use placement::IntegerOp;
#[cfg(test)]
pub(crate) use plan::values_to_calibrate;
pub use plan::{calibrate_layers, compress_layers, layer_inputs, pruner};
pub use prune_blocks::{BlockSettings, PruneBlocks};
pub use scale_search::{ScaleSearchSettings, SequentialMse};
pub use smooth::{SmoothQuant, SmoothQuantSettings};
pub(crate) use structured::macs;
pub use structured::{
    Amount, Attention, ChannelGroup, ChannelGroups, ChannelSettings, Criterion, PruneChannels,
    Ranking, layer_channels,
};
pub use student::{Student, StudentSettings};
pub use weights::ScaleLayout;
pub(crate) use weights::{CodeRange, choose_scales, through};
pub(crate) use wiring::Wiring;

use crate::{
    data::Dataset,
    exec::{CancelToken, ExecError},
    graph::{Graph, LayerId},
};
use std::collections::{BTreeMap, BTreeSet};

/// How a layer's numbers are kept.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp32,
    /// Weights stored as IEEE half, computed in f32.
    Fp16,
    /// Weights stored as bfloat16, computed in f32.
    Bf16,
    /// 8-bit weights and 8-bit input activations.
    Int8,
    /// 7-bit weights ("reduce range") kept in 8, and 8-bit input activations; likewise the widths below.
    Int7,
    Int6,
    Int5,
    /// 4-bit weights and 8-bit input activations.
    Int4,
    /// 3-bit weights kept in 4, and 8-bit input activations.
    Int3,
    Int2,
}

/// Share of a layer's weights set to zero, or of its channels taken out: 0..=1 (1 excluded).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Ratio(pub f32);

/// What a plan asks of one layer.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LayerSetting {
    pub precision: Precision,
    pub sparsity: Ratio,
}

impl LayerSetting {
    /// Float and unpruned.
    pub const UNCHANGED: Self = Self {
        precision: Precision::Fp32,
        sparsity: Ratio(0.0),
    };
}

/// Steps of weights along the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    PerTensor,
    PerChannel,
    /** groups of this many along the input axis */
    Group(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Calibration {
    MinMax,
    /** of each sample's extremes, later samples weighing more (Jacob et al. 2018) */
    MovingAverage,
    /** share of values kept, e.g. 99.99 */
    Percentile(f32),
    Mse,
    /** least Kullback–Leibler divergence (Migacz 2017) */
    Entropy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Symmetry {
    Asymmetric,
    Symmetric,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /** input activations quantised to 8 bits, by calibrated ranges */
    Int8,
    /** input activations quantised to 16 bits, by calibrated ranges */
    Int16,
    /** inputs of products quantised to 8 bits, by the range of each inference; those of convolutions left float */
    Dynamic,
    /** weight-only */
    Float,
}

impl Activations {
    /// Width of activations whose ranges are calibrated; `None` for the others.
    pub fn calibrated_bits(self) -> Option<u32> {
        match self {
            Self::Int8 => Some(8),
            Self::Int16 => Some(16),
            Self::Dynamic | Self::Float => None,
        }
    }
}

/// Settings of post-training quantisation shared by all layers of a step.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuantScheme {
    /// Of weights of 5 to 8 bits.
    pub int8_weights: Granularity,
    /// Of weights of 2 to 4 bits.
    pub int4_weights: Granularity,
    /// Of weights; `symmetry` is that of activations.
    #[serde(skip_serializing_if = "Symmetry::is_symmetric")]
    pub weight_symmetry: Symmetry,
    pub activations: Activations,
    pub symmetry: Symmetry,
    pub calibration: Calibration,
    /// Samples of the calibration split that ranges are taken from.
    pub samples: usize,
    /// Operators whose results are quantised too where activations are calibrated, so that a target computes them in integers; `None`: inputs of
    /// layers only. Where a target is named and this is not, it is the target's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Vec<IntegerOp>>,
    /// Deployment target that this is for (see [`crate::target`]): what it cannot run is refused, and its arithmetic is predicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl Default for QuantScheme {
    fn default() -> Self {
        Self {
            int8_weights: Granularity::PerChannel,
            int4_weights: Granularity::PerChannel,
            weight_symmetry: Symmetry::Symmetric,
            activations: Activations::Int8,
            symmetry: Symmetry::Asymmetric,
            calibration: Calibration::Mse,
            samples: 256,
            outputs: None,
            target: None,
        }
    }
}

impl QuantScheme {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// A group of 0, a percentile outside 50..=100, no samples.
    pub fn check(&self) -> Result<(), CompressError> {
        let refuse = |message: String| Err(CompressError::Invalid(message));
        for (field, granularity) in [
            ("int8_weights", self.int8_weights),
            ("int4_weights", self.int4_weights),
        ] {
            if granularity == Granularity::Group(0) {
                return refuse(format!(
                    "{field}: a group must hold at least one weight, found group(0)"
                ));
            }
        }
        if let Calibration::Percentile(kept) = self.calibration
            && !(50.0..=100.0).contains(&kept)
        {
            return refuse(format!(
                "calibration: the percentile must lie in 50..=100 (99.99 is usual), found {kept}"
            ));
        }
        if self.activations.calibrated_bits().is_some() && self.samples == 0 {
            return refuse("samples: calibration needs at least 1 sample, found 0".to_owned());
        }
        Ok(())
    }

    /// Operators whose results are quantised too; none where activations are not calibrated.
    pub fn quantised_outputs(&self) -> &[IntegerOp] {
        match (&self.outputs, self.activations.calibrated_bits()) {
            (Some(outputs), Some(_)) => outputs,
            _ => &[],
        }
    }

    /// How ranges are taken. At 16 bits a step is finer than the histogram's bins, and nothing is won by clipping: methods that weigh
    /// clipping against steps keep all that was seen.
    pub fn range_method(&self) -> Calibration {
        match (self.activations, self.calibration) {
            (Activations::Int16, Calibration::Mse | Calibration::Entropy) => Calibration::MinMax,
            (_, method) => method,
        }
    }

    /// Granularity of the weights at an integer precision; `None` for the floating ones.
    pub fn granularity(&self, precision: Precision) -> Option<Granularity> {
        Some(match precision.bits()? {
            ..=4 => self.int4_weights,
            _ => self.int8_weights,
        })
    }
}

/// A model on its way through the passes. While it can still be trained, quantised weights stay float with
/// QuantizeLinear → DequantizeLinear (or Cast → Cast for fp16 and bf16) behind them; [`pack`] turns those into packed initialisers.
#[derive(Clone, Debug)]
pub struct Model {
    pub graph: Graph,
    /// 0/1 per weight element (1: kept), by value name of the weight.
    pub masks: BTreeMap<String, Vec<bool>>,
    /// Float weights from before their codes were chosen ([`AdaRound`], [`Brecq`], [`Gptq`]), by value name.
    pub originals: BTreeMap<String, Original>,
    /// What the next training is to prune.
    pub gradual: Option<Gradual>,
    /// Layers whose biases [`pack`] stores as 32-bit integers in the unit of their sums.
    pub integer_biases: BTreeSet<LayerId>,
    /// What [`FoldBatchNorm`] knew of the outputs of layers.
    pub norms: Option<NormStatistics>,
}

/// A weight as it was before its codes were chosen.
#[derive(Clone, Debug)]
pub struct Original {
    pub weights: Vec<f32>,
    /// What is packed must be the floor or the ceiling of them, which [`pack`] checks.
    pub bound: bool,
}

impl Model {
    /// A graph that nothing has been done to.
    pub fn new(graph: Graph) -> Self {
        Self {
            graph,
            masks: BTreeMap::new(),
            originals: BTreeMap::new(),
            gradual: None,
            integer_biases: BTreeSet::new(),
            norms: None,
        }
    }
}

/// What a pass did to one layer.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    Done(String),
    NotDone(String),
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AccountEntry {
    pub layer: LayerId,
    pub outcome: Outcome,
}

/// How a part of what was done to a layer begins that says why nothing was absorbed.
pub(crate) const NOT_ABSORBED: &str = "no bias absorbed: ";

impl AccountEntry {
    /// What was not done, with the reason: all of it, or a part beside what was done.
    pub fn left_undone(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::NotDone(why) => Some(why),
            Outcome::Done(words) => words.find(NOT_ABSORBED).map(|at| &words[at..]),
        }
    }
}

/// The per-layer account of one pass.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Account {
    pub pass: String,
    pub entries: Vec<AccountEntry>,
}

/// What passes may use.
pub struct PassContext<'a> {
    pub data: Option<&'a Dataset>,
    pub cancel: &'a CancelToken,
    pub seed: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    #[error("{message} (layer {layer})")]
    Layer { message: String, layer: String },
    #[error("{0}")]
    Invalid(String),
}

/// Refuses settings that count nothing.
fn at_least_one(fields: &[(&str, usize)]) -> Result<(), CompressError> {
    match fields.iter().find(|(_, value)| *value == 0) {
        Some((field, _)) => Err(CompressError::Invalid(format!(
            "{field}: at least 1 was expected, found 0"
        ))),
        None => Ok(()),
    }
}

/// Refuses settings that are no positive numbers.
fn above_zero(fields: &[(&str, f32)]) -> Result<(), CompressError> {
    let bad = |value: f32| !(value.is_finite() && value > 0.0);
    match fields.iter().find(|(_, value)| bad(*value)) {
        Some((field, value)) => Err(CompressError::Invalid(format!(
            "{field}: a number above 0 was expected, found {value}"
        ))),
        None => Ok(()),
    }
}

pub trait Pass {
    fn name(&self) -> &'static str;
    fn apply(
        &self,
        model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError>;
}

/// A pass that goes layer by layer and says how far it is.
pub trait ByLayer {
    /// As accounts call it.
    fn called(&self) -> &'static str;
    /// As [`Pass::apply`]; `progress` is told how many of how many layers are done.
    ///
    /// # Errors
    /// Settings without a meaning, no data, a model with several inputs or one that cannot run, cancellation.
    fn run(
        &self,
        model: Model,
        context: &PassContext<'_>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Model, Account), CompressError>;
}

impl<T: ByLayer> Pass for T {
    fn name(&self) -> &'static str {
        self.called()
    }

    fn apply(
        &self,
        model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        self.run(model, context, &mut |_, _| {})
    }
}

/// A method by its settings, and the layers it is to be done to; those it cannot be done to are left alone, with the reason.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct OnLayers<S> {
    pub settings: S,
    pub layers: BTreeSet<LayerId>,
}

/// Folds inference batch norms into the convolution or Gemm before them, and keeps what they knew of their layers' outputs.
pub struct FoldBatchNorm;
/// The same, where nobody will ask what the norms knew: no weight is hashed.
pub(crate) struct FoldBatchNormOnly;
/// Sets the smallest weights of each layer, or of each group of them, to zero and masks them: at once, or leaves that to the next training.
#[derive(Clone, Debug, Default)]
pub struct MagnitudePrune {
    pub ratios: BTreeMap<LayerId, Ratio>,
    pub pattern: Pattern,
    /// `None`: at once.
    pub schedule: Option<PruneSchedule>,
}
/// Post-training quantisation of chosen layers.
pub struct Quantize {
    pub scheme: QuantScheme,
    pub layers: BTreeMap<LayerId, Precision>,
    /// Ranges of the layers' inputs taken before (see [`calibrate`]); `None`: calibrate now, on the context's data.
    pub ranges: Option<std::sync::Arc<Ranges>>,
}
