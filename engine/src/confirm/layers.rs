//! Every layer's float result on both sides, where no activation is quantised: how far apart, and where the two part first.

use super::{ConfirmError, run::Batch};
use crate::{
    exec::{CancelToken, ExecError, Program, Taps},
    formats::onnx,
    graph::{ElementType, Graph, LayerId, ValueId},
    measure::runtime::{Optimizations, Runtime, RuntimeData, RuntimeSession},
};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;

/// Two results part where they differ by more than this share of the largest number in them: float sums in another order stay far below.
pub const APART: f32 = 1e-3;

/// A layer's result over all samples compared, computed from the model's input on both sides: what differed before is carried along.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LayerComparison {
    pub layer: LayerId,
    pub elements: u64,
    /// Between two numbers of the same place, in the result's own unit; infinite where one side only has a finite number. NaN on both sides is
    /// the same.
    pub largest_difference: f32,
    /// Largest finite magnitude on our side.
    pub largest: f32,
}

impl LayerComparison {
    fn count(&mut self, ours: f32, theirs: f32) {
        let difference = match (ours.is_nan(), theirs.is_nan()) {
            (true, true) => 0.0,
            (false, false) if ours == theirs => 0.0,
            (false, false) => (ours - theirs).abs(),
            _ => f32::INFINITY,
        };
        self.elements += 1;
        self.largest_difference = self.largest_difference.max(difference);
        if ours.is_finite() {
            self.largest = self.largest.max(ours.abs());
        }
    }

    /// The largest difference as a share of the largest number.
    pub fn relative(&self) -> f32 {
        match self.largest_difference {
            0.0 => 0.0,
            difference => difference / self.largest,
        }
    }

    /// How far apart, in words: "3.8e-6, 5.9e-7 of its largest number".
    pub fn words(&self) -> String {
        if self.largest_difference.is_finite() {
            format!(
                "{:.1e}, {:.1e} of its largest number",
                self.largest_difference,
                self.relative()
            )
        } else {
            "one side has no finite number where the other has one".to_owned()
        }
    }

    /// Whether they are further apart than rounding explains.
    pub fn parts(&self) -> bool {
        // What is no number parts.
        !matches!(
            self.relative().partial_cmp(&APART),
            Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)
        )
    }
}

/// All layers, in the graph's order.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LayerReport {
    pub samples: u64,
    pub layers: Vec<LayerComparison>,
}

impl LayerReport {
    /// The first layer whose results part.
    pub fn first_parting(&self) -> Option<&LayerComparison> {
        self.layers.iter().find(|layer| layer.parts())
    }

    /// The layer that is furthest apart for its size.
    pub fn worst(&self) -> Option<&LayerComparison> {
        let by = |a: &&LayerComparison, b: &&LayerComparison| a.relative().total_cmp(&b.relative());
        self.layers.iter().max_by(by)
    }
}

/// The model with its layers' results as outputs, in the runtime, and what was found so far.
pub(super) struct Traced {
    session: RuntimeSession,
    /// Each layer's value, and the name of it.
    watched: Vec<(ValueId, String)>,
    found: Vec<LayerComparison>,
    samples: usize,
}

impl Traced {
    /// `None` of a model without layers whose results are float32.
    pub fn new(
        graph: &Graph,
        runtime: &Runtime,
        threads: usize,
        samples: usize,
    ) -> Result<Option<Self>, ConfirmError> {
        let mut copy = graph.clone();
        copy.remove_dead_nodes();
        let (mut watched, mut found) = (Vec::new(), Vec::new());
        for layer in copy.layers() {
            let id = layer.output;
            let value = copy.value(id);
            if value.element.is_some_and(|kind| kind != ElementType::F32) {
                continue;
            }
            watched.push((id, value.name.clone()));
            found.push(LayerComparison {
                layer: layer.id,
                elements: 0,
                largest_difference: 0.0,
                largest: 0.0,
            });
            if !copy.outputs.contains(&id) {
                copy.outputs.push(id);
            }
        }
        if watched.is_empty() {
            return Ok(None);
        }
        let bytes = onnx::to_bytes(&copy)?;
        Ok(Some(Self {
            session: runtime.session(&bytes, Optimizations::Off, threads)?,
            watched,
            found,
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
        let outputs = self.session.run(&shape, &values)?.into_iter();
        let theirs: BTreeMap<String, Vec<f32>> = outputs
            .filter_map(|tensor| match tensor.data {
                RuntimeData::F32(values) => Some((tensor.name, values)),
                RuntimeData::Codes(_) => None,
            })
            .collect();
        let each = self.watched.iter().enumerate();
        let expected = each.filter_map(|(at, (value, name))| {
            let values = theirs.get(name)?;
            Some((*value, (at, values.as_slice())))
        });
        let mut compare = Compare {
            expected: expected.collect(),
            found: &mut self.found,
            counted: (batch.labels.len(), batch.padded),
        };
        program.run(std::slice::from_ref(&batch.images), &mut compare, cancel)?;
        Ok(())
    }

    /// Of the layers whose results could be compared.
    pub fn report(self) -> LayerReport {
        let compared = self.found.into_iter().filter(|layer| layer.elements > 0);
        LayerReport {
            samples: self.samples as u64,
            layers: compared.collect(),
        }
    }
}

/// Compares each value as it is computed, and lets it go.
struct Compare<'a> {
    expected: BTreeMap<ValueId, (usize, &'a [f32])>,
    found: &'a mut [LayerComparison],
    /// Samples that count, of those in the batch.
    counted: (usize, usize),
}

impl Taps for Compare<'_> {
    fn wants(&self, value: ValueId) -> bool {
        self.expected.contains_key(&value)
    }

    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        let Some((at, theirs)) = self.expected.get(&value) else {
            return Ok(None);
        };
        let values = tensor.flatten_all()?.to_dtype(DType::F32)?;
        let ours = values.to_vec1::<f32>()?;
        let found = &mut self.found[*at];
        if ours.len() != theirs.len() {
            return Err(ExecError::Input(format!(
                "the result of layer {} has {} elements here and {} in ONNX Runtime",
                found.layer.0,
                ours.len(),
                theirs.len()
            )));
        }
        let take = super::counted(tensor.dims(), ours.len(), self.counted);
        for (a, b) in ours.iter().zip(*theirs).take(take) {
            found.count(*a, *b);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(name: &str, pairs: &[[f32; 2]]) -> LayerComparison {
        let mut layer = LayerComparison {
            layer: LayerId(name.into()),
            elements: 0,
            largest_difference: 0.0,
            largest: 0.0,
        };
        pairs.iter().for_each(|[a, b]| layer.count(*a, *b));
        layer
    }

    #[test]
    fn what_parts_is_told_from_rounding() {
        let report = LayerReport {
            samples: 1,
            layers: vec![
                compared("a", &[[1.0, 1.0], [-200.0, -200.001]]),
                compared("b", &[[0.5, 0.502], [-1.0, -1.0]]),
                compared("c", &[[f32::NAN, f32::NAN], [3.0, f32::NAN]]),
            ],
        };
        assert!((report.layers[0].relative() - 5e-6).abs() < 1e-6);
        assert!((report.layers[1].relative() - 2e-3).abs() < 1e-6);
        assert_eq!(report.first_parting().map(|l| &*l.layer.0), Some("b"));
        assert_eq!(report.worst().map(|l| &*l.layer.0), Some("c"));
        assert!(
            compared("d", &[[0.0, 1e-9]]).parts(),
            "nothing but zeros here"
        );
        let infinite = [f32::INFINITY, f32::INFINITY];
        assert!(!compared("e", &[[0.0, 0.0], infinite]).parts());
        // What is infinite on both sides hides nothing.
        assert!(compared("f", &[[1.0, 51.0], infinite]).parts());
        assert!(report.layers[0].words().ends_with("of its largest number"));
        assert!(report.layers[2].words().contains("no finite number"));
    }
}
