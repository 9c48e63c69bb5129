//! What gets exported: float weights and the Quantize or Cast behind them become packed initialisers; and what a
//! graph's layers are really kept in.

use super::{
    CompressError, Model, Precision, Symmetry,
    prune::masked,
    wiring::{WeightForm, Wiring, weight_form},
};
use crate::graph::{ElementType, Graph, LayerId, Op, TensorData, ValueId};
use std::collections::{BTreeMap, HashSet};

/// Replaces float weights and the Quantize/Cast behind them by packed initialisers (4-bit codes two a byte): what gets
/// exported. Masked weights are exactly zero; zero points of 0 that mean the same when left out are. The result computes the same bits as the trainable form,
/// but for [`Model::integer_biases`], which move by at most half a step of their layer's sums.
///
/// # Errors
/// Weights that became NaN, infinite, or too large for half precision; scales that are no constants.
pub fn pack(model: &Model) -> Result<Graph, CompressError> {
    let mut graph = model.graph.clone();
    for (name, mask) in &model.masks {
        let Some(id) = graph.find_value(name) else {
            continue;
        };
        let value = graph.value_mut(id);
        let Some(data) = value
            .data
            .as_ref()
            .filter(|d| d.element == ElementType::F32)
        else {
            continue;
        };
        let weights = data.to_f32_vec();
        if weights.len() != mask.len() {
            return Err(CompressError::Invalid(format!(
                "the mask of {name} has {} elements but the weight has {}",
                mask.len(),
                weights.len()
            )));
        }
        let shape = data.shape.clone();
        value.data = Some(TensorData::from_f32(&shape, &masked(&weights, mask)));
    }

    let wiring = Wiring::of(&graph);
    let mut removed = HashSet::new();
    for index in 0..graph.nodes.len() {
        let packed = match graph.nodes[index].op {
            Op::QuantizeLinear { axis, block, .. } => {
                let limit = limit_behind(&graph, &wiring, index);
                let packed = quantised(model, &graph, index, (axis, block), limit.as_ref())?;
                match limit {
                    Some(limit) if packed.is_some() => {
                        removed.insert(limit.node);
                        packed.map(|(_, data)| (limit.output, data))
                    }
                    _ => packed,
                }
            }
            Op::Cast { to } if Precision::of_half(to).is_some() => {
                halved(&graph, &wiring, index, to)?
            }
            _ => None,
        };
        if let Some((output, data)) = packed {
            graph.set_data(output, data);
            removed.insert(index);
        }
    }
    super::wiring::rebuild(&mut graph, BTreeMap::new(), &removed);
    super::integer_bias::store(&mut graph, &model.integer_biases);
    super::zero_points::leave_out(&mut graph);
    graph.compact();
    Ok(graph)
}

/// Float constant in the first input of a node, and the node's output.
fn constant_in(graph: &Graph, index: usize) -> Option<(ValueId, &TensorData, ValueId)> {
    let node = &graph.nodes[index];
    let input = node.inputs.first().copied().flatten()?;
    let data = graph.value(input).data.as_ref()?;
    let output = node.outputs.first().copied().flatten()?;
    (data.element == ElementType::F32).then_some((input, data, output))
}

fn refuse_non_finite(graph: &Graph, value: ValueId, data: &[f32]) -> Result<(), CompressError> {
    let bad = data.iter().filter(|w| !w.is_finite()).count();
    if bad == 0 {
        return Ok(());
    }
    Err(CompressError::Invalid(format!(
        "{bad} elements of weight {} are NaN or infinite and cannot be packed",
        graph.value(value).name
    )))
}

/// A Clip that holds codes to fewer bits than their type has.
struct Limit {
    node: usize,
    output: ValueId,
    lo: i64,
    hi: i64,
}

/// The Clip behind a QuantizeLinear, with constant bounds.
fn limit_behind(graph: &Graph, wiring: &Wiring, index: usize) -> Option<Limit> {
    let codes = graph.nodes[index].outputs.first().copied().flatten()?;
    let &[node] = wiring.consumers(codes) else {
        return None;
    };
    limit_at(graph, node)
}

fn limit_at(graph: &Graph, node: usize) -> Option<Limit> {
    let clip = graph.nodes.get(node).filter(|n| n.op == Op::Clip)?;
    let bound = |slot: usize| {
        let value = clip.inputs.get(slot).copied().flatten()?;
        let data = graph.value(value).data.as_ref()?;
        let integer = data.element.is_integer();
        data.to_i64_vec().first().copied().filter(|_| integer)
    };
    Some(Limit {
        node,
        output: clip.outputs.first().copied().flatten()?,
        lo: bound(1)?,
        hi: bound(2)?,
    })
}

fn quantised(
    model: &Model,
    graph: &Graph,
    index: usize,
    (axis, block): (i64, usize),
    limit: Option<&Limit>,
) -> Result<Option<(ValueId, TensorData)>, CompressError> {
    let Some((input, data, output)) = constant_in(graph, index) else {
        return Ok(None);
    };
    let parameters = parameters(graph, index, axis, block);
    let Some(parameters) = parameters.filter(|p| p.matches(&data.shape)) else {
        return Err(CompressError::Invalid(format!(
            "scale and zero point of node {} are not constants that fit its weight {}",
            graph.nodes[index].name,
            graph.value(input).name
        )));
    };
    let Some((mut lo, mut hi)) = parameters.element.integer_range() else {
        return Ok(None);
    };
    if let Some(limit) = limit {
        (lo, hi) = (lo.max(limit.lo), hi.min(limit.hi));
    }
    let weights = data.to_f32_vec();
    refuse_non_finite(graph, input, &weights)?;
    let name = &graph.value(input).name;
    let original = model.originals.get(name);
    if let Some(original) = original.filter(|o| o.weights.len() != weights.len()) {
        return Err(CompressError::Invalid(format!(
            "{name} had {} elements when its rounding was chosen and has {} now",
            original.weights.len(),
            weights.len()
        )));
    }
    let mut moved = 0_usize;
    let mut codes = Vec::with_capacity(weights.len());
    parameters.layout().each(&data.shape, |element, scale| {
        let steps = (weights[element] / parameters.scale[scale]).round_ties_even();
        // `as` saturates; the sum cannot overflow because zero points are 32 bits at most.
        let code = (steps as i32 as i64) + i64::from(parameters.zero_point[scale]);
        let code = code.clamp(lo, hi);
        if let Some(original) = original.filter(|o| o.bound) {
            let zero = i64::from(parameters.zero_point[scale]);
            let steps = original.weights[element] / parameters.scale[scale];
            let (floor, ceiling) = (steps.floor() as i64 + zero, steps.ceil() as i64 + zero);
            moved += usize::from(code != floor.clamp(lo, hi) && code != ceiling.clamp(lo, hi));
        }
        codes.push(code);
    });
    if moved > 0 {
        return Err(CompressError::Invalid(format!(
            "{moved} codes of {name} are neither the floor nor the ceiling of the weights that their roundings were chosen from: \
             something changed them afterwards"
        )));
    }
    let packed = TensorData::from_i64_as(parameters.element, &data.shape, &codes);
    Ok(Some((output, packed)))
}

fn halved(
    graph: &Graph,
    wiring: &Wiring,
    index: usize,
    element: ElementType,
) -> Result<Option<(ValueId, TensorData)>, CompressError> {
    let Some((input, data, output)) = constant_in(graph, index) else {
        return Ok(None);
    };
    let back = |i: &usize| {
        matches!(
            graph.nodes[*i].op,
            Op::Cast {
                to: ElementType::F32
            }
        )
    };
    if !wiring.consumers(output).iter().all(back) {
        return Ok(None);
    }
    let packed = TensorData::from_f32_as(element, &data.shape, &data.to_f32_vec());
    refuse_non_finite(graph, input, &packed.to_f32_vec())?;
    Ok(Some((output, packed)))
}

/// Scales and zero points of one quantised tensor.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct QuantParameters {
    pub element: ElementType,
    pub scale: Vec<f32>,
    pub zero_point: Vec<i32>,
    /// Shape of the scale tensor; `[]` per tensor.
    pub shape: Vec<usize>,
    /// Axis of the scales (not negative); without meaning per tensor.
    pub axis: usize,
    /// Elements of `axis` that share a scale; 0: not blocked.
    pub block: usize,
}

impl QuantParameters {
    pub(super) fn layout(&self) -> super::ScaleLayout {
        super::ScaleLayout {
            shape: if self.scale.len() == 1 && self.block == 0 {
                Vec::new()
            } else {
                self.shape.clone()
            },
            axis: self.axis,
            block: self.block,
        }
    }

    fn matches(&self, weight: &[usize]) -> bool {
        let fits = if self.block > 0 {
            self.shape.len() == weight.len()
                && weight
                    .iter()
                    .zip(&self.shape)
                    .enumerate()
                    .all(|(a, (w, s))| {
                        *s == if a == self.axis {
                            w.div_ceil(self.block)
                        } else {
                            *w
                        }
                    })
        } else {
            self.scale.len() == 1 || weight.get(self.axis) == Some(&self.scale.len())
        };
        fits && self.zero_point.len() == self.scale.len()
    }
}

/// Constant parameters of a QuantizeLinear or DequantizeLinear node.
fn parameters(graph: &Graph, index: usize, axis: i64, block: usize) -> Option<QuantParameters> {
    let node = &graph.nodes[index];
    let input = |slot: usize| node.inputs.get(slot).copied().flatten();
    let scale = graph.value(input(1)?).data.as_ref()?;
    let (zero_point, element) = match input(2) {
        Some(zero) => {
            let zero = graph.value(zero).data.as_ref()?;
            let points = zero.to_i64_vec().into_iter().map(|z| z as i32).collect();
            (points, zero.element)
        }
        None => {
            let element = match node.op {
                Op::QuantizeLinear { to, .. } => to,
                _ => graph.value(input(0)?).element?,
            };
            (vec![0; scale.len()], element)
        }
    };
    let rank = graph.value(input(0)?).shape.as_ref().map_or(0, Vec::len) as i64;
    let axis = if axis < 0 { axis + rank } else { axis };
    Some(QuantParameters {
        element,
        scale: scale.to_f32_vec(),
        zero_point,
        shape: scale.shape.clone(),
        axis: usize::try_from(axis).ok()?,
        block,
    })
}

/// What a layer is really kept in, for lock files and accounts.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct QuantizedLayer {
    pub layer: LayerId,
    pub precision: Precision,
    /// Parameters of the weight at an integer precision.
    pub weight: Option<QuantParameters>,
    /// Parameters of the input, where it is quantised.
    pub input: Option<QuantParameters>,
}

impl QuantizedLayer {
    /// Whether the input is quantised without a zero point of its own.
    pub fn input_symmetry(&self) -> Option<Symmetry> {
        self.input.as_ref().map(|p| {
            if p.element.is_signed() {
                Symmetry::Symmetric
            } else {
                Symmetry::Asymmetric
            }
        })
    }
}

/// The precision every layer really has, trainable or packed, in the graph's order: weights whose codes need fewer bits than their
/// type has count by the bits they need. Integer types wider than 8 bits count as fp32 with parameters.
pub fn quantized_layers(graph: &Graph) -> Vec<QuantizedLayer> {
    let wiring = Wiring::of(graph);
    let behind = |value: Option<ValueId>| {
        let index = wiring.producer(value?)?;
        match graph.nodes[index].op {
            Op::DequantizeLinear { axis, block } => parameters(graph, index, axis, block),
            _ => None,
        }
    };
    graph
        .layers()
        .into_iter()
        .map(|layer| {
            let (slot, form) = weight_form(graph, &wiring, &layer);
            let node = &graph.nodes[layer.node.0 as usize];
            let at = |slot: usize| node.inputs.get(slot).copied().flatten();
            let weight = match form {
                WeightForm::Quantized { dequantize } => match graph.nodes[dequantize].op {
                    Op::DequantizeLinear { axis, block } => {
                        parameters(graph, dequantize, axis, block)
                    }
                    _ => None,
                },
                _ => None,
            };
            let stored = graph.value(layer.weight).element;
            let codes = || -> Option<Precision> {
                let WeightForm::Quantized { dequantize } = form else {
                    return None;
                };
                width(graph, &wiring, dequantize, weight.as_ref()?)
            };
            let precision = match (form, &weight) {
                (WeightForm::Half, _) => half_behind(graph, &wiring, layer.weight),
                (WeightForm::Float, _) if let Some(half) = stored.and_then(Precision::of_half) => {
                    half
                }
                _ => codes().unwrap_or(Precision::Fp32),
            };
            QuantizedLayer {
                precision,
                weight,
                input: behind(at(usize::from(slot == 0))),
                layer: layer.id,
            }
        })
        .collect()
}

/// The 16-bit float that a weight is kept in: as it is stored, or as it is cast to.
fn half_behind(graph: &Graph, wiring: &Wiring, weight: ValueId) -> Precision {
    let cast = |reader: &usize| match graph.nodes[*reader].op {
        Op::Cast { to } => Precision::of_half(to),
        _ => None,
    };
    let stored = graph.value(weight).element.and_then(Precision::of_half);
    let found = stored.or_else(|| wiring.consumers(weight).iter().find_map(cast));
    found.unwrap_or(Precision::Fp16)
}

/// The width that a weight's codes have: the Clip's that holds them to it, or what the packed codes need, from 5 bits up where they are
/// stored in 8. `None` for types wider than 8 bits.
fn width(
    graph: &Graph,
    wiring: &Wiring,
    dequantize: usize,
    weight: &QuantParameters,
) -> Option<Precision> {
    let stored = weight.element.bits() as u32;
    let narrowest = match stored {
        8 => 5,
        4 => 2,
        _ => return None,
    };
    let bits_of = |lo: i64, hi: i64| {
        (narrowest..stored)
            .find(|bits| {
                let half = 1_i64 << (bits - 1);
                -half <= lo && hi < half
            })
            .unwrap_or(stored)
    };
    let codes = graph.nodes[dequantize].inputs.first().copied().flatten()?;
    let limit = wiring.producer(codes).and_then(|p| limit_at(graph, p));
    let bits = match (limit, &graph.value(codes).data) {
        (Some(limit), _) => bits_of(limit.lo, limit.hi),
        (None, Some(data)) if weight.element.is_signed() => {
            let packed = data.to_i64_vec();
            match (packed.iter().min(), packed.iter().max()) {
                // Nothing but one code says nothing of the width.
                (Some(&lo), Some(&hi)) if lo < hi => bits_of(lo, hi),
                _ => stored,
            }
        }
        _ => stored,
    };
    Precision::of_bits(bits)
}
