//! What kernels do that cut the sum of two neighbouring products off at 16 bits: computed in integers, code by code, beside the float
//! evaluation, and added to the outputs of the layers concerned.

use super::{Products, Target, integer_layers};
use crate::{
    compress::{Account, AccountEntry, Outcome, quantized_layers},
    exec::{self, ExecError, Taps},
    graph::{ElementType, Graph, Layer, LayerId, Op, Padding, ValueId, Window},
};
use candle_core::Tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// How the names of its accounts begin.
const ACCOUNT: &str = "arithmetic of";

/// Taps that let the layers of an exported graph saturate as they do at a target.
pub struct Saturation {
    target: String,
    layers: Vec<Saturating>,
    /// Layers whose inputs are quantised by the range of each inference: what they do there is not known.
    unknown: Vec<LayerId>,
    /// Codes of the inputs in this batch, and how many layers still read them.
    inputs: BTreeMap<ValueId, Codes>,
}

/// How much of a layer's output saturated, over all that was run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SaturationCount {
    pub outputs: u64,
    /// In whose sum any pair was cut off.
    pub saturated: u64,
    /// The most that was cut off one output, in its own unit.
    pub most: f32,
}

/// A layer whose sums of pairs can leave 16 bits at a target, and how many did in what was run.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSaturation {
    pub layer: LayerId,
    pub outputs: u64,
    /// In whose sum any pair was cut off.
    pub saturated: u64,
    /// The most that was cut off one output, in its own unit.
    pub most: f32,
}

impl LayerSaturation {
    /// Share of the outputs that saturated; 0 where there were none.
    pub fn share(&self) -> f64 {
        self.saturated as f64 / self.outputs.max(1) as f64
    }
}

struct Codes {
    shape: Vec<usize>,
    /// Unsigned, as the kernels take them: signed codes are moved up by 128.
    values: Vec<u8>,
    readers: usize,
}

/// A layer some of whose pairs can saturate.
struct Saturating {
    id: LayerId,
    input: ValueId,
    output: ValueId,
    scale: f32,
    /// Of the unsigned codes.
    zero_point: u8,
    form: Form,
    /// By output channel: scale of the weights, and the pairs whose sum can leave 16 bits.
    channels: Vec<Channel>,
    count: SaturationCount,
}

struct Channel {
    scale: f32,
    pairs: Vec<Pair>,
}

/// Two neighbouring weights, with where they read: input channel (of all) or index, kernel row and column.
#[derive(Clone, Copy)]
struct Pair {
    at: [[usize; 3]; 2],
    weight: [i32; 2],
}

enum Form {
    Conv(Window),
    /// Products of rows: sums over the last axis.
    Rows,
}

impl Saturation {
    /// `None` where the target adds up exactly or no layer of the exported graph is known to be able to saturate there, or unknown.
    pub fn of(graph: &Graph, target: &Target) -> Option<Self> {
        if target.products == Products::Exact {
            return None;
        }
        let kept: BTreeMap<LayerId, _> = quantized_layers(graph)
            .into_iter()
            .map(|q| (q.layer.clone(), q))
            .collect();
        let (mut layers, mut unknown) = (Vec::new(), Vec::new());
        for layer in integer_layers(graph, &target.fusion) {
            let Some(kept) = kept.get(&layer.id) else {
                continue;
            };
            let (Some(weight), Some(input)) = (&kept.weight, &kept.input) else {
                if kept.weight.is_some() {
                    unknown.push(layer.id.clone());
                }
                continue;
            };
            // Unsigned weights go another way, which is exact.
            if weight.element != ElementType::I8 || weight.block != 0 || input.scale.len() != 1 {
                continue;
            }
            let up = if input.element == ElementType::I8 {
                128
            } else {
                0
            };
            let zero_point = input.zero_point.first().map(|z| u8::try_from(z + up));
            let Some(Ok(zero_point)) = zero_point else {
                continue;
            };
            let Some((form, channels)) = pairs_of(graph, &layer, &weight.scale) else {
                continue;
            };
            if channels.iter().all(|c| c.pairs.is_empty()) {
                continue;
            }
            layers.push(Saturating {
                id: layer.id.clone(),
                input: layer.input,
                output: layer.output,
                scale: input.scale[0],
                zero_point,
                form,
                channels,
                count: SaturationCount::default(),
            });
        }
        (!layers.is_empty() || !unknown.is_empty()).then(|| Self {
            target: target.name.clone(),
            layers,
            unknown,
            inputs: BTreeMap::new(),
        })
    }

    /// The target, where any of its arithmetic is simulated.
    pub fn target(&self) -> Option<&str> {
        (!self.layers.is_empty()).then_some(&self.target)
    }

    /// What saturated so far, by layer in the graph's order; layers that cannot saturate have no entry.
    pub fn counts(&self) -> impl Iterator<Item = (&LayerId, SaturationCount)> {
        self.layers.iter().map(|l| (&l.id, l.count))
    }

    /// The same, to keep.
    pub fn by_layer(&self) -> Vec<LayerSaturation> {
        let kept = |(layer, count): (&LayerId, SaturationCount)| LayerSaturation {
            layer: layer.clone(),
            outputs: count.outputs,
            saturated: count.saturated,
            most: count.most,
        };
        self.counts().map(kept).collect()
    }

    /// Whether an account is one of [`Saturation::account`].
    pub fn is_account(account: &Account) -> bool {
        account.pass.starts_with(ACCOUNT)
    }

    /// The same in words, with the remedy.
    pub fn account(&self) -> Account {
        let words = |count: SaturationCount| {
            if count.saturated == 0 {
                return "its sums of pairs could leave 16 bits, but none did".to_owned();
            }
            format!(
                "saturates: 16 bits were too few for a sum of two products in {:.3} % of its outputs, up to {:.3} was cut off; 7-bit \
                 weights (int7) cannot saturate",
                count.saturated as f64 * 100.0 / count.outputs.max(1) as f64,
                count.most
            )
        };
        Account {
            pass: format!("{ACCOUNT} {}", self.target),
            entries: self
                .counts()
                .map(|(layer, count)| AccountEntry {
                    layer: layer.clone(),
                    outcome: Outcome::Done(words(count)),
                })
                .chain(self.unknown.iter().map(|layer| AccountEntry {
                    layer: layer.clone(),
                    outcome: Outcome::NotDone(
                        "computed as if exact: what the target does with ranges of each inference is not simulated".into(),
                    ),
                }))
                .collect(),
        }
    }
}

impl Taps for Saturation {
    fn wants(&self, value: ValueId) -> bool {
        self.layers
            .iter()
            .any(|l| l.input == value || l.output == value)
    }

    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        let mut replaced = None;
        if let Some(at) = self.layers.iter().position(|l| l.output == value) {
            let (layers, inputs) = (&mut self.layers, &mut self.inputs);
            let layer = &mut layers[at];
            let codes = inputs.get_mut(&layer.input).ok_or_else(|| {
                ExecError::Input(format!(
                    "the input of layer {} was not computed",
                    layer.id.0
                ))
            })?;
            replaced = layer.saturate(codes, tensor)?;
            codes.readers -= 1;
            if codes.readers == 0 {
                inputs.remove(&layer.input);
            }
        }
        let readers = self.layers.iter().filter(|l| l.input == value).count();
        if let Some(layer) = self.layers.iter().find(|l| l.input == value) {
            let seen = replaced.as_ref().unwrap_or(tensor);
            let floats = seen.flatten_all()?.to_vec1::<f32>()?;
            let (scale, zero) = (layer.scale, f32::from(layer.zero_point));
            // `as` keeps to 0..=255.
            let values = floats.iter().map(|v| ((v / scale).round() + zero) as u8);
            let codes = Codes {
                shape: seen.dims().to_vec(),
                values: values.collect(),
                readers,
            };
            self.inputs.insert(value, codes);
        }
        Ok(replaced)
    }
}

impl Saturating {
    /// The layer's output less what was cut off; `None` where nothing was.
    fn saturate(&mut self, codes: &Codes, output: &Tensor) -> Result<Option<Tensor>, ExecError> {
        let shape = output.dims().to_vec();
        let mut values = output.flatten_all()?.to_vec1::<f32>()?;
        let found = exec::on_pool(|| match &self.form {
            Form::Conv(window) => self.conv(window, codes, &shape, &mut values),
            Form::Rows => self.rows(codes, &mut values),
        });
        let Some(found) = found else {
            return Err(ExecError::Input(format!(
                "layer {} gave {shape:?} for an input of {:?}: its saturation cannot be computed",
                self.id.0, codes.shape
            )));
        };
        self.count.outputs += found.outputs;
        self.count.saturated += found.saturated;
        self.count.most = self.count.most.max(found.most);
        if found.saturated == 0 {
            return Ok(None);
        }
        Ok(Some(Tensor::from_vec(values, shape, output.device())?))
    }

    /// Takes what is cut off `sums` (in products of codes) off the outputs of one channel.
    fn settle(&self, channel: &Channel, cut: &[i32], outputs: &mut [f32]) -> SaturationCount {
        let unit = self.scale * channel.scale;
        let mut count = SaturationCount {
            outputs: cut.len() as u64,
            ..SaturationCount::default()
        };
        for (cut, output) in cut.iter().zip(outputs) {
            if *cut != 0 {
                let off = *cut as f32 * unit;
                *output -= off;
                count.saturated += 1;
                count.most = count.most.max(off.abs());
            }
        }
        count
    }

    fn conv(
        &self,
        window: &Window,
        codes: &Codes,
        out: &[usize],
        values: &mut [f32],
    ) -> Option<SaturationCount> {
        let &[n, c, h, w] = codes.shape.as_slice() else {
            return None;
        };
        let &[on, oc, oh, ow] = out else {
            return None;
        };
        if on != n || oc != self.channels.len() || values.is_empty() || h * w == 0 {
            return None;
        }
        let (top, left) = begin(window, [h, w], [oh, ow])?;
        let reach = |axis: usize, outputs: usize| {
            (outputs - 1) * window.strides[axis]
                + (window.kernel[axis] - 1) * window.dilations[axis]
                + 1
        };
        // Everything that any output reads, the padding filled with the code of zero.
        let (ph, pw) = (reach(0, oh).max(top + h), reach(1, ow).max(left + w));
        let mut padded = vec![self.zero_point; n * c * ph * pw];
        padded
            .par_chunks_mut(ph * pw)
            .zip(codes.values.par_chunks(h * w))
            .for_each(|(to, from)| {
                for (row, from) in from.chunks(w).enumerate() {
                    let at = (top + row) * pw + left;
                    to[at..at + w].copy_from_slice(from);
                }
            });
        let counts = values
            .par_chunks_mut(oh * ow)
            .enumerate()
            .map(|(plane, outputs)| {
                let (image, channel) = (plane / oc, &self.channels[plane % oc]);
                let image = &padded[image * c * ph * pw..][..c * ph * pw];
                let mut cut = vec![0_i32; oh * ow];
                for pair in &channel.pairs {
                    let row = |side: usize, oy: usize| {
                        let [c, ky, kx] = pair.at[side];
                        let y = oy * window.strides[0] + ky * window.dilations[0];
                        &image[(c * ph + y) * pw + kx * window.dilations[1]..]
                    };
                    for (oy, cut) in cut.chunks_mut(ow).enumerate() {
                        pair.cut(row(0, oy), row(1, oy), window.strides[1], cut);
                    }
                }
                self.settle(channel, &cut, outputs)
            })
            .collect::<Vec<_>>();
        Some(sum(counts))
    }

    fn rows(&self, codes: &Codes, values: &mut [f32]) -> Option<SaturationCount> {
        let inputs = *codes.shape.last()?;
        let outputs = self.channels.len();
        let fits = inputs > 0
            && codes.values.len() / inputs * outputs == values.len()
            && self
                .channels
                .iter()
                .flat_map(|c| &c.pairs)
                .all(|p| p.at[1][0] < inputs);
        if !fits {
            return None;
        }
        let counts = values
            .par_chunks_mut(outputs)
            .zip(codes.values.par_chunks(inputs))
            .map(|(row, codes)| {
                let each = row.iter_mut().zip(&self.channels).map(|(output, channel)| {
                    let mut cut = [0_i32];
                    for pair in &channel.pairs {
                        pair.cut(
                            &codes[pair.at[0][0]..],
                            &codes[pair.at[1][0]..],
                            1,
                            &mut cut,
                        );
                    }
                    self.settle(channel, &cut, std::slice::from_mut(output))
                });
                sum(each)
            })
            .collect::<Vec<_>>();
        Some(sum(counts))
    }
}

impl Pair {
    /// Adds to `cut` by how much the pair's sum leaves 16 bits at each position.
    fn cut(&self, first: &[u8], second: &[u8], stride: usize, cut: &mut [i32]) {
        let [a, b] = self.weight;
        let over = |x: u8, y: u8| {
            let sum = i32::from(x) * a + i32::from(y) * b;
            sum - sum.clamp(i32::from(i16::MIN), i32::from(i16::MAX))
        };
        if stride == 1 {
            for ((x, y), cut) in first.iter().zip(second).zip(cut) {
                *cut += over(*x, *y);
            }
        } else {
            let (first, second) = (first.iter().step_by(stride), second.iter().step_by(stride));
            for ((x, y), cut) in first.zip(second).zip(cut) {
                *cut += over(*x, *y);
            }
        }
    }
}

fn sum(counts: impl IntoIterator<Item = SaturationCount>) -> SaturationCount {
    counts
        .into_iter()
        .fold(SaturationCount::default(), |all, one| SaturationCount {
            outputs: all.outputs + one.outputs,
            saturated: all.saturated + one.saturated,
            most: all.most.max(one.most),
        })
}

/// Padding before the first row and column.
fn begin(window: &Window, input: [usize; 2], output: [usize; 2]) -> Option<(usize, usize)> {
    let same = |axis: usize, upper: bool| {
        let reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1;
        let needed = (output[axis] - 1) * window.strides[axis] + reach;
        let all = needed.saturating_sub(input[axis]);
        if upper { all / 2 } else { all.div_ceil(2) }
    };
    match &window.padding {
        Padding::Valid => Some((0, 0)),
        Padding::Explicit(pads) => Some((*pads.first()?, *pads.get(1)?)),
        Padding::SameUpper => Some((same(0, true), same(1, true))),
        Padding::SameLower => Some((same(0, false), same(1, false))),
    }
}

/// The pairs of each output channel that can leave 16 bits with some codes of 0 to 255: neighbours along kernel positions and, within
/// one, input channels (of the group). `None` for layers that the kernels compute otherwise or that are not simulated.
fn pairs_of(graph: &Graph, layer: &Layer, scales: &[f32]) -> Option<(Form, Vec<Channel>)> {
    let codes = graph.value(layer.weight).data.as_ref()?;
    let weights = codes.to_i64_vec();
    let shape = layer.weight_shape.as_slice();
    let outputs = *shape.get(layer.channel_axis)?;
    if outputs == 0 || !(scales.len() == 1 || scales.len() == outputs) {
        return None;
    }
    let scale = |o: usize| scales.get(o).or(scales.first()).copied().unwrap_or(1.0);
    let node = &graph.nodes[layer.node.0 as usize];
    let channel = |o: usize, length: usize, at: &dyn Fn(usize) -> ([usize; 3], usize)| Channel {
        scale: scale(o),
        pairs: (0..length.saturating_sub(1))
            .step_by(2)
            .filter_map(|k| {
                let (first, second) = (at(k), at(k + 1));
                let weight = [weights[first.1] as i32, weights[second.1] as i32];
                let most = 255 * weight.iter().map(|w| (*w).max(0)).sum::<i32>();
                let least = 255 * weight.iter().map(|w| (*w).min(0)).sum::<i32>();
                let leaves = most > i32::from(i16::MAX) || least < i32::from(i16::MIN);
                leaves.then_some(Pair {
                    at: [first.0, second.0],
                    weight,
                })
            })
            .collect(),
    };
    match (&node.op, shape) {
        (Op::Conv { window, group }, &[outputs, inputs, kh, kw]) => {
            let per_group = outputs / (*group).max(1);
            // One channel a group: kernels of their own, in 32 bits.
            if *group > 1 && inputs == 1 && per_group == 1 {
                return None;
            }
            let channels = (0..outputs)
                .map(|o| {
                    let first = o / per_group.max(1) * inputs;
                    channel(o, kh * kw * inputs, &|k| {
                        let (position, c) = (k / inputs, k % inputs);
                        let (ky, kx) = (position / kw, position % kw);
                        let weight = ((o * inputs + c) * kh + ky) * kw + kx;
                        ([first + c, ky, kx], weight)
                    })
                })
                .collect();
            Some((Form::Conv(window.clone()), channels))
        }
        (Op::Gemm { alpha, .. }, _) if *alpha != 1.0 => None,
        (Op::Gemm { trans_a: false, .. } | Op::MatMul, &[_, _]) => {
            let inputs = weights.len() / outputs;
            let channels = (0..outputs)
                .map(|o| {
                    channel(o, inputs, &|k| {
                        let weight = match layer.channel_axis {
                            0 => o * inputs + k,
                            _ => k * outputs + o,
                        };
                        ([k, 0, 0], weight)
                    })
                })
                .collect();
            Some((Form::Rows, channels))
        }
        _ => None,
    }
}
