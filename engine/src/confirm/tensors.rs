//! Every quantised tensor on both sides: codes that are the same, or a step apart, and where the two part first.

use super::{ConfirmError, run::Batch};
use crate::{
    exec::{CancelToken, ExecError, Program, Taps},
    formats::onnx,
    graph::{Graph, Op, ValueId},
    measure::runtime::{
        Optimizations, Runtime, RuntimeCodes, RuntimeData, RuntimeError, RuntimeSession,
    },
};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;

/// How many codes of a tensor are the same on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Codes {
    pub elements: u64,
    pub equal: u64,
    /// Equal, or one step apart.
    pub within_one: u64,
    /// In steps.
    pub largest: u32,
}

impl Codes {
    fn count(&mut self, ours: i32, theirs: i32) {
        let apart = ours.abs_diff(theirs);
        self.elements += 1;
        self.equal += u64::from(apart == 0);
        self.within_one += u64::from(apart <= 1);
        self.largest = self.largest.max(apart);
    }

    fn and(self, other: Self) -> Self {
        Self {
            elements: self.elements + other.elements,
            equal: self.equal + other.equal,
            within_one: self.within_one + other.within_one,
            largest: self.largest.max(other.largest),
        }
    }

    /// Share of the elements that are equal; 1 where there are none.
    pub fn share_equal(&self) -> f64 {
        share(self.equal, self.elements)
    }

    /// Share of the elements that are equal or a step apart; 1 where there are none.
    pub fn share_within_one(&self) -> f64 {
        share(self.within_one, self.elements)
    }
}

fn share(part: u64, all: u64) -> f64 {
    if all == 0 {
        return 1.0;
    }
    part as f64 / all as f64
}

/// One tensor of codes, over all samples compared.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TensorComparison {
    /// Of the value in the exported file that holds the codes.
    pub name: String,
    /// Computed from the runtime's codes in all tensors before: what this part of the network alone does otherwise. `None` from the first
    /// tensor on whose codes cannot be handed on: ranges of each inference (whose scales, too, may differ), or several dequantisations or
    /// none by the same constants.
    pub own: Option<Codes>,
    /// Computed from the model's input: what was rounded otherwise before is carried along.
    pub through: Codes,
}

impl TensorComparison {
    /// By itself where that is known, else with what is carried along.
    pub fn best(&self) -> Codes {
        self.own.unwrap_or(self.through)
    }
}

/// All quantised tensors, in the graph's order.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TensorReport {
    pub samples: u64,
    pub tensors: Vec<TensorComparison>,
}

impl TensorReport {
    /// The first tensor in which any code differs.
    pub fn first_parting(&self) -> Option<&TensorComparison> {
        self.tensors.iter().find(|t| {
            let codes = t.best();
            codes.equal < codes.elements
        })
    }

    /// The first that is more than a step away anywhere, by itself where that is known.
    pub fn first_beyond_one(&self) -> Option<&TensorComparison> {
        self.tensors.iter().find(|t| t.best().largest > 1)
    }

    /// The tensor that has the least share within one step, by itself where that is known.
    pub fn worst(&self) -> Option<&TensorComparison> {
        let share = |t: &TensorComparison| t.best().share_within_one();
        self.tensors
            .iter()
            .min_by(|a, b| share(a).total_cmp(&share(b)))
    }

    /// Over all tensors: each by itself (`None` where that is known of none), and carried along.
    pub fn totals(&self) -> (Option<Codes>, Codes) {
        let own = self.tensors.iter().filter_map(|t| t.own);
        let through = self.tensors.iter().map(|t| t.through);
        (
            own.reduce(Codes::and),
            through.fold(Codes::default(), Codes::and),
        )
    }
}

/// A tensor of codes, and the value that shows them on our side.
struct Watched {
    name: String,
    /// What is tapped: the dequantised value (quantising and dequantising is one step of ours), or the codes themselves.
    tapped: ValueId,
    steps: Option<Steps>,
    /// All that reads it goes on from the runtime's codes.
    handed_on: bool,
}

/// How a dequantised value gives its codes back.
struct Steps {
    scale: Vec<f32>,
    zero_point: Vec<i64>,
    axis: usize,
}

impl Steps {
    /// Which scale each element has.
    fn places(&self, dims: &[usize]) -> impl Fn(usize) -> usize + use<> {
        let inner = dims.iter().skip(self.axis + 1).product::<usize>().max(1);
        let extent = dims.get(self.axis).copied().unwrap_or(1).max(1);
        let one = self.scale.len() == 1;
        move |i| if one { 0 } else { i / inner % extent }
    }

    /// Codes of dequantised values: the multiples of the scale that they are.
    fn codes(&self, values: &[f32], dims: &[usize]) -> Vec<i32> {
        let at = self.places(dims);
        let code = |(i, v): (usize, &f32)| {
            let k = at(i);
            (v / self.scale[k]).round() as i32 + self.zero_point[k] as i32
        };
        values.iter().enumerate().map(code).collect()
    }

    /// What codes are dequantised to.
    fn values(&self, codes: &RuntimeCodes, dims: &[usize]) -> Vec<f32> {
        let at = self.places(dims);
        let value = |(i, code): (usize, i32)| {
            let k = at(i);
            (i64::from(code) - self.zero_point[k]) as f32 * self.scale[k]
        };
        codes.iter().enumerate().map(value).collect()
    }
}

/// The model with its codes as outputs, in the runtime, and what was found so far.
pub(super) struct Traced {
    session: RuntimeSession,
    watched: Vec<Watched>,
    found: Vec<TensorComparison>,
    samples: usize,
}

impl Traced {
    /// `None` where no activation is quantised.
    pub fn new(
        graph: &Graph,
        runtime: &Runtime,
        threads: usize,
        samples: usize,
    ) -> Result<Option<Self>, ConfirmError> {
        let mut copy = graph.clone();
        copy.remove_dead_nodes();
        let mut watched = Vec::new();
        let consumers = copy.consumers();
        let nodes = std::mem::take(&mut copy.nodes);
        for node in &nodes {
            let (Some(input), Some(codes)) = (
                node.inputs.first().copied().flatten(),
                node.outputs.first().copied().flatten(),
            ) else {
                continue;
            };
            let name = graph.value(codes).name.clone();
            let entry = match node.op {
                Op::DynamicQuantizeLinear => Watched {
                    name,
                    tapped: codes,
                    steps: None,
                    handed_on: false,
                },
                // Of weights both sides have the same codes in the file.
                Op::QuantizeLinear { .. } if graph.constant_behind(input).is_some() => continue,
                Op::QuantizeLinear { axis, block: 0, .. } => {
                    let back = consumers
                        .get(&codes)
                        .into_iter()
                        .flatten()
                        .find_map(|(id, _)| {
                            let reader = nodes.get(id.0 as usize)?;
                            let pair = matches!(reader.op, Op::DequantizeLinear { .. })
                                && same_steps(graph, &node.inputs, &reader.inputs);
                            pair.then(|| reader.outputs.first().copied().flatten())?
                        });
                    let steps = steps(graph, &node.inputs, axis);
                    match (back, steps) {
                        (Some(back), Some(steps)) => Watched {
                            name,
                            tapped: back,
                            steps: Some(steps),
                            handed_on: consumers.get(&codes).is_some_and(|all| all.len() == 1),
                        },
                        _ => Watched {
                            name,
                            tapped: codes,
                            steps: None,
                            handed_on: false,
                        },
                    }
                }
                _ => continue,
            };
            if !copy.outputs.contains(&codes) {
                copy.outputs.push(codes);
            }
            watched.push(entry);
        }
        if watched.is_empty() {
            return Ok(None);
        }
        copy.nodes = nodes;
        let bytes = onnx::to_bytes(&copy)?;
        Ok(Some(Self {
            session: runtime.session(&bytes, Optimizations::Off, threads)?,
            found: watched
                .iter()
                .scan(true, |alone, w| {
                    let own = alone.then(Codes::default);
                    *alone &= w.handed_on;
                    Some(TensorComparison {
                        name: w.name.clone(),
                        own,
                        through: Codes::default(),
                    })
                })
                .collect(),
            watched,
            samples,
        }))
    }

    /// Runs one batch through both. Samples that only fill it up don't count.
    pub fn batch(
        &mut self,
        program: &Program,
        batch: &Batch,
        cancel: &CancelToken,
    ) -> Result<(), ConfirmError> {
        let (shape, values) = batch.values()?;
        let mut theirs: BTreeMap<String, RuntimeCodes> = self
            .session
            .run(&shape, &values)?
            .into_iter()
            .filter_map(|tensor| match tensor.data {
                RuntimeData::Codes(codes) => Some((tensor.name, codes)),
                RuntimeData::F32(_) => None,
            })
            .collect();
        let mut expected = BTreeMap::new();
        for (index, watched) in self.watched.iter().enumerate() {
            let codes = theirs.remove(&watched.name).ok_or_else(|| {
                RuntimeError::Failed(format!("ONNX Runtime gave no codes for {}", watched.name))
            })?;
            expected.insert(watched.tapped, (index, codes));
        }
        for follow in [false, true] {
            let mut compare = Compare {
                watched: &self.watched,
                found: &mut self.found,
                expected: &expected,
                seen: 0,
                counted: (batch.labels.len(), batch.padded),
                follow,
            };
            program.run(std::slice::from_ref(&batch.images), &mut compare, cancel)?;
            if compare.seen != expected.len() {
                return Err(ExecError::Input(format!(
                    "only {} of {} quantised tensors were computed",
                    compare.seen,
                    expected.len()
                ))
                .into());
            }
        }
        Ok(())
    }

    pub fn report(self) -> TensorReport {
        TensorReport {
            samples: self.samples as u64,
            tensors: self.found,
        }
    }
}

/// Whether two nodes quantise and dequantise by the same constants.
fn same_steps(graph: &Graph, a: &[Option<ValueId>], b: &[Option<ValueId>]) -> bool {
    (1..3).all(|slot| {
        let at = |inputs: &[Option<ValueId>]| inputs.get(slot).copied().flatten();
        match (at(a), at(b)) {
            (Some(a), Some(b)) => a == b || graph.value(a).data == graph.value(b).data,
            (a, b) => a == b,
        }
    })
}

/// Constant scales and zero points of a QuantizeLinear, per tensor or along an axis.
fn steps(graph: &Graph, inputs: &[Option<ValueId>], axis: i64) -> Option<Steps> {
    let data = |slot: usize| {
        graph
            .value(inputs.get(slot).copied().flatten()?)
            .data
            .as_ref()
    };
    let scale = data(1)?.to_f32_vec();
    let zero_point = match inputs.get(2).copied().flatten() {
        Some(_) => data(2)?.to_i64_vec(),
        None => vec![0; scale.len()],
    };
    let axis = match axis {
        _ if scale.len() == 1 => 0,
        axis if axis < 0 => {
            let rank = graph
                .value(inputs.first().copied().flatten()?)
                .shape
                .as_ref()?
                .len();
            usize::try_from(axis + rank as i64).ok()?
        }
        axis => usize::try_from(axis).ok()?,
    };
    let fits = !scale.is_empty() && scale.len() == zero_point.len();
    fits.then_some(Steps {
        scale,
        zero_point,
        axis,
    })
}

/// Compares each value as it is computed, and lets it go.
struct Compare<'a> {
    watched: &'a [Watched],
    found: &'a mut [TensorComparison],
    expected: &'a BTreeMap<ValueId, (usize, RuntimeCodes)>,
    seen: usize,
    /// Samples that count, of those in the batch.
    counted: (usize, usize),
    /// Whether the network goes on from the runtime's codes.
    follow: bool,
}

impl Taps for Compare<'_> {
    fn wants(&self, value: ValueId) -> bool {
        self.expected.contains_key(&value)
    }

    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        let Some((index, theirs)) = self.expected.get(&value) else {
            return Ok(None);
        };
        self.seen += 1;
        let watched = &self.watched[*index];
        let dims = tensor.dims();
        let values = tensor
            .flatten_all()?
            .to_dtype(DType::F32)?
            .to_vec1::<f32>()?;
        let ours: Vec<i32> = match &watched.steps {
            Some(steps) => steps.codes(&values, dims),
            None => values.iter().map(|v| *v as i32).collect(),
        };
        if ours.len() != theirs.len() {
            return Err(ExecError::Input(format!(
                "the quantised tensor {} has {} elements here and {} in ONNX Runtime",
                watched.name,
                ours.len(),
                theirs.len()
            )));
        }
        let take = super::counted(dims, ours.len(), self.counted);
        let found = &mut self.found[*index];
        let codes = if self.follow {
            found.own.as_mut()
        } else {
            Some(&mut found.through)
        };
        if let Some(codes) = codes {
            for (a, b) in ours.iter().zip(theirs.iter()).take(take) {
                codes.count(*a, b);
            }
        }
        match &watched.steps {
            Some(steps) if self.follow => {
                let values = steps.values(theirs, dims);
                Ok(Some(Tensor::from_vec(values, dims, tensor.device())?))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_back_from_what_they_were_dequantised_to() {
        let scale = 0.037_123_f32;
        let per_tensor = Steps {
            scale: vec![scale],
            zero_point: vec![117],
            axis: 0,
        };
        let codes: Vec<i32> = (0..256).collect();
        let values: Vec<f32> = codes.iter().map(|c| (c - 117) as f32 * scale).collect();
        assert_eq!(per_tensor.codes(&values, &[256]), codes);
        let per_channel = Steps {
            scale: vec![0.5, 0.01],
            zero_point: vec![0, 3],
            axis: 1,
        };
        // 1×2×2: two of each channel.
        assert_eq!(
            per_channel.codes(&[1.0, -0.5, 0.02, -0.03], &[1, 2, 2]),
            [2, -1, 5, 0]
        );
    }

    #[test]
    fn codes_go_there_and_back() {
        let steps = Steps {
            scale: vec![0.25, 0.003],
            zero_point: vec![7, 250],
            axis: 1,
        };
        let codes = RuntimeCodes::U8(vec![0, 255, 17, 250]);
        let values = steps.values(&codes, &[2, 2]);
        assert_eq!(values, [-1.75, 5.0 * 0.003, 2.5, 0.0]);
        assert_eq!(steps.codes(&values, &[2, 2]), [0, 255, 17, 250]);
    }

    #[test]
    fn the_first_that_parts_is_told_from_the_first_that_is_far_off() {
        let tensor = |name: &str, apart: &[i32]| {
            let mut own = Codes::default();
            apart.iter().for_each(|a| own.count(*a, 0));
            TensorComparison {
                name: name.to_owned(),
                own: Some(own),
                through: own,
            }
        };
        let report = TensorReport {
            samples: 1,
            tensors: vec![
                tensor("a", &[0, 0, 0]),
                tensor("b", &[0, -1, 0]),
                tensor("c", &[3, 1, 0]),
            ],
        };
        assert_eq!(report.first_parting().map(|t| &*t.name), Some("b"));
        assert_eq!(report.first_beyond_one().map(|t| &*t.name), Some("c"));
        assert_eq!(report.worst().map(|t| &*t.name), Some("c"));
        let all = report.totals().0.expect("known of all");
        assert_eq!(
            (all.elements, all.equal, all.within_one, all.largest),
            (9, 6, 8, 3)
        );
    }
}
