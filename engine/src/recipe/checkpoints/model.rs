//! A model on its way through the passes, as a checkpoint holds it.

use crate::{
    compress::{Gradual, Model, NormStatistics, Original},
    graph::{ElementType, Graph, LayerId, TensorData},
    train::Blobs,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A [`Model`] whose tensors are blobs.
#[derive(Serialize, Deserialize)]
pub(super) struct ModelText {
    graph: Graph,
    /// By value: type, shape, blob.
    data: Vec<(usize, ElementType, Vec<usize>, usize)>,
    masks: Vec<(String, usize)>,
    /// Name, whether the codes are bound to them, blob.
    originals: Vec<(String, bool, usize)>,
    #[serde(default)]
    gradual: Option<Gradual>,
    #[serde(default)]
    integer_biases: BTreeSet<LayerId>,
    #[serde(default)]
    norms: Option<NormStatistics>,
}

impl ModelText {
    pub(super) fn of(model: &Model, blobs: &mut Blobs) -> Self {
        let mut graph = model.graph.clone();
        let mut data = Vec::new();
        for (index, value) in graph.values.iter_mut().enumerate() {
            if let Some(tensor) = value.data.take() {
                let blob = blobs.put(tensor.bytes);
                data.push((index, tensor.element, tensor.shape, blob));
            }
        }
        let bits = |mask: &Vec<bool>| mask.iter().map(|kept| u8::from(*kept)).collect::<Bytes>();
        let floats =
            |values: &Vec<f32>| -> Bytes { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        Self {
            graph,
            data,
            masks: model
                .masks
                .iter()
                .map(|(name, mask)| (name.clone(), blobs.put(bits(mask))))
                .collect(),
            originals: model
                .originals
                .iter()
                .map(|(name, o)| (name.clone(), o.bound, blobs.put(floats(&o.weights))))
                .collect(),
            gradual: model.gradual.clone(),
            integer_biases: model.integer_biases.clone(),
            norms: model.norms.clone(),
        }
    }

    /// `None` where the pieces do not fit.
    pub(super) fn read(self, blobs: &Blobs) -> Option<Model> {
        let mut model = Model::new(self.graph);
        model.gradual = self.gradual;
        model.integer_biases = self.integer_biases;
        model.norms = self.norms;
        for (index, element, shape, blob) in self.data {
            let tensor = TensorData::new(element, shape, blobs.get(blob)?.clone()).ok()?;
            model.graph.values.get_mut(index)?.data = Some(tensor);
        }
        model.graph.validate().ok()?;
        for (name, blob) in self.masks {
            let mask = blobs.get(blob)?.iter().map(|kept| *kept != 0).collect();
            model.masks.insert(name, mask);
        }
        for (name, bound, blob) in self.originals {
            let (numbers, []) = blobs.get(blob)?.as_chunks::<4>() else {
                return None;
            };
            let weights = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
            model.originals.insert(name, Original { weights, bound });
        }
        Some(model)
    }
}
