//! What a point keeps of a confirmation.

use super::{Confirmation, LayerComparison, RuntimeRun, TargetPrediction, TensorComparison};
use crate::{data::SplitName, eval::Estimate};

/// Prediction and runtime side by side, without what was found of each sample and of each tensor.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimePair {
    /// Version of ONNX Runtime.
    pub runtime: String,
    pub split: SplitName,
    pub n: u64,
    /// Top-1 by Limbeck's own evaluation of the exported file.
    pub predicted: Estimate,
    /// The prediction for the arithmetic of the recipe's target, where that differs.
    pub target: Option<TargetPrediction>,
    pub runs: Vec<RuntimeRun>,
    /// With optimisations off; `None` where no activation is quantised.
    pub tensors: Option<TensorSummary>,
    /// With optimisations off; `None` where activations are quantised, and in projects from before it was kept.
    #[serde(default)]
    pub layers: Option<LayerSummary>,
}

/// All layers' float results together.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSummary {
    pub samples: u64,
    pub layers: u64,
    /// The layer furthest apart for its size.
    pub worst: Option<LayerComparison>,
    pub first_parting: Option<LayerComparison>,
}

/// All quantised tensors together.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSummary {
    pub samples: u64,
    pub tensors: u64,
    /// Codes that were compared, and those at most a step apart: each tensor by itself where that is known.
    pub elements: u64,
    pub within_one: u64,
    /// The first tensor in which any code differs.
    pub first_parting: Option<TensorComparison>,
}

impl RuntimePair {
    /// Whether every run has at least 99.9 % of the labels.
    pub fn agrees(&self) -> bool {
        self.runs.iter().all(RuntimeRun::agrees)
    }
}

impl Confirmation {
    /// What a point keeps of it.
    pub fn pair(&self) -> RuntimePair {
        let forgotten = |target: &TargetPrediction| TargetPrediction {
            predictions: Vec::new(),
            ..target.clone()
        };
        RuntimePair {
            runtime: self.runtime.clone(),
            split: self.split,
            n: self.n,
            predicted: self.predicted,
            target: self.target.as_ref().map(forgotten),
            runs: self.runs.clone(),
            tensors: self.tensors.as_ref().map(|report| {
                let codes = report.tensors.iter().map(TensorComparison::best);
                let (elements, within_one) =
                    codes.fold((0, 0), |(a, b), c| (a + c.elements, b + c.within_one));
                TensorSummary {
                    samples: report.samples,
                    tensors: report.tensors.len() as u64,
                    elements,
                    within_one,
                    first_parting: report.first_parting().cloned(),
                }
            }),
            layers: self.layers.as_ref().map(|report| LayerSummary {
                samples: report.samples,
                layers: report.layers.len() as u64,
                worst: report.worst().cloned(),
                first_parting: report.first_parting().cloned(),
            }),
        }
    }
}
