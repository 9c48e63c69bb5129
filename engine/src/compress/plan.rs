//! A whole plan at once, in the one order that everything in Limbeck means by a plan: fold, prune, quantise.

use super::{
    Account, CompressError, FoldBatchNorm, LayerSetting, MagnitudePrune, Model, Pass, PassContext,
    Precision, QuantScheme, Quantize, Ranges, Ratio, calibrate,
    placement::{Placement, QuantisedInput},
    wiring::Wiring,
};
use crate::{
    data::Dataset,
    exec::CancelToken,
    graph::{Graph, Layer, LayerId, ValueId},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

impl LayerSetting {
    /// Untouched.
    pub const KEEP: Self = Self {
        precision: Precision::Fp32,
        sparsity: Ratio(0.0),
    };
}

/// Applies a plan: folds batch norms, prunes, quantises. Layers that are not named stay as they are. `ranges`: those of the
/// folded and pruned graph (see [`calibrate_layers`]); `None` calibrates now.
///
/// # Errors
/// Those of the passes.
pub fn compress_layers(
    model: Model,
    settings: &BTreeMap<LayerId, LayerSetting>,
    scheme: &QuantScheme,
    ranges: Option<Arc<Ranges>>,
    context: &PassContext<'_>,
) -> Result<(Model, Vec<Account>), CompressError> {
    let (model, folding) = FoldBatchNorm.apply(model, context)?;
    let (model, pruning) = pruner(settings).apply(model, context)?;
    let quantize = Quantize {
        scheme: scheme.clone(),
        layers: settings
            .iter()
            .map(|(l, s)| (l.clone(), s.precision))
            .collect(),
        ranges,
    };
    let (model, quantising) = quantize.apply(model, context)?;
    Ok((model, vec![folding, pruning, quantising]))
}

/// The pruning part of a plan.
pub fn pruner(settings: &BTreeMap<LayerId, LayerSetting>) -> MagnitudePrune {
    MagnitudePrune {
        ratios: settings
            .iter()
            .filter(|(_, s)| s.sparsity.0 != 0.0)
            .map(|(l, s)| (l.clone(), s.sparsity))
            .collect(),
        ..MagnitudePrune::default()
    }
}

/// What all layers that read a value read, and where.
fn inputs<'a>(graph: &Graph, wiring: &Wiring, layers: &'a [Layer]) -> Vec<QuantisedInput<'a>> {
    let input = |layer: &'a Layer| {
        let node = layer.node.0 as usize;
        let slot = usize::from(super::wiring::weight_form(graph, wiring, layer).0 == 0);
        Some(QuantisedInput {
            layer: &layer.id,
            node,
            slot,
            value: graph.nodes[node].inputs.get(slot).copied().flatten()?,
            output: layer.output,
        })
    };
    layers.iter().filter_map(input).collect()
}

/// Values that quantisation of any layer needs a range of: the layers' inputs, in the order of their ids.
pub fn layer_inputs(graph: &Graph) -> Vec<ValueId> {
    let layers = graph.layers();
    let inputs = inputs(graph, &Wiring::of(graph), &layers);
    let values: BTreeSet<ValueId> = inputs.iter().map(|input| input.value).collect();
    values.into_iter().collect()
}

/// Values that any plan of a scheme may need a range of: the inputs of all layers, and what else gets pairs for the scheme's `outputs` where all
/// layers are quantised (where fewer are, those are among them).
pub(crate) fn values_to_calibrate(graph: &Graph, scheme: &QuantScheme) -> Vec<ValueId> {
    let (wiring, layers) = (Wiring::of(graph), graph.layers());
    let inputs = inputs(graph, &wiring, &layers);
    let outputs = scheme.quantised_outputs();
    let placement = Placement::of(graph, &wiring, &inputs, outputs, scheme.symmetry);
    placement.values().collect()
}

/// Ranges of all layer inputs of a folded and pruned graph, and of what else the scheme gives pairs: serve every choice of precisions on it, so that a plan can be
/// measured again without calibrating again as long as its pruning stays.
///
/// # Errors
/// Those of [`calibrate`].
pub fn calibrate_layers(
    graph: &Graph,
    data: &Dataset,
    scheme: &QuantScheme,
    cancel: &CancelToken,
) -> Result<Ranges, CompressError> {
    calibrate(
        graph,
        &values_to_calibrate(graph, scheme),
        data,
        scheme,
        cancel,
    )
}
