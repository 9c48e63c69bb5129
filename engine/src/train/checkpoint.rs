//! Where training stands, whole enough to go on from with the same bits, and how that is written.

use super::{
    Rollback, TrainPoint, gradual::Masks, optimise::Moments, order::OrderState, recover::Recent,
    stored::Blobs,
};
use crate::{
    eval::Estimate,
    graph::{ElementType, Graph, TensorData},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Weights that differ from those of the model that training began with, by value name.
pub(super) type Weights = BTreeMap<String, TensorData>;

/// What decides everything that comes next.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Position {
    /// Mini-batches done, whole epochs among them, and mini-batches done of the epoch at hand.
    pub step: u64,
    pub epoch: usize,
    pub batch: usize,
    /// Samples of the epoch at hand; empty between epochs.
    pub samples: Vec<usize>,
    pub order: OrderState,
    /// As the program has them: masks not laid over them, step sizes as factors.
    pub parameters: BTreeMap<String, Vec<f32>>,
    /// Running means and variances that have moved.
    pub statistics: Weights,
    pub moments: Moments,
    /// Steps and values of the weights' moving average, where one is taken.
    pub average: Option<(u64, BTreeMap<String, Vec<f32>>)>,
    pub recent: Recent,
    /// Of weights that are pruned while training.
    pub masks: Masks,
}

/// A training that was interrupted: pass it to [`super::resume`] with the same model, teacher, data, settings and seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub(super) at: Position,
    /// Where to go back to when training diverges; `None`: to `at`.
    pub(super) good: Option<Position>,
    pub(super) best: Weights,
    pub(super) best_epoch: usize,
    pub(super) best_accuracy: Option<Estimate>,
    pub(super) best_loss: f64,
    pub(super) start: Option<Estimate>,
    pub(super) points: Vec<TrainPoint>,
    pub(super) rollbacks: Vec<Rollback>,
}

impl Checkpoint {
    /// Mini-batches that were trained.
    pub fn step(&self) -> u64 {
        self.at.step
    }

    /// The curve so far.
    pub fn points(&self) -> &[TrainPoint] {
        &self.points
    }

    /// As text with numbers, its tensors put into `blobs`.
    pub fn write(&self, blobs: &mut Blobs) -> CheckpointText {
        CheckpointText {
            at: PositionText::of(&self.at, blobs),
            good: self.good.as_ref().map(|p| PositionText::of(p, blobs)),
            best: weights_text(&self.best, blobs),
            best_epoch: self.best_epoch,
            best_accuracy: self.best_accuracy,
            best_loss: self.best_loss,
            start: self.start,
            points: self.points.clone(),
            rollbacks: self.rollbacks.clone(),
        }
    }

    /// The other way round; `None` where the blobs do not fit.
    pub fn read(text: &CheckpointText, blobs: &Blobs) -> Option<Self> {
        Some(Self {
            at: text.at.read(blobs)?,
            good: match &text.good {
                Some(position) => Some(position.read(blobs)?),
                None => None,
            },
            best: weights_read(&text.best, blobs)?,
            best_epoch: text.best_epoch,
            best_accuracy: text.best_accuracy,
            best_loss: text.best_loss,
            start: text.start,
            points: text.points.clone(),
            rollbacks: text.rollbacks.clone(),
        })
    }
}

/// A [`Checkpoint`] without its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointText {
    at: PositionText,
    good: Option<PositionText>,
    best: Vec<TensorText>,
    best_epoch: usize,
    best_accuracy: Option<Estimate>,
    best_loss: f64,
    start: Option<Estimate>,
    points: Vec<TrainPoint>,
    rollbacks: Vec<Rollback>,
}

impl CheckpointText {
    /// Epochs that were trained, the one at hand in part.
    pub fn epochs(&self) -> f64 {
        self.points.last().map_or(0.0, |point| point.epoch)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PositionText {
    step: u64,
    epoch: usize,
    batch: usize,
    samples: usize,
    /// The two halves of a 128-bit number.
    drawn: (u64, u64),
    indices: usize,
    next: usize,
    parameters: Vec<(String, usize)>,
    average: Option<(u64, Vec<(String, usize)>)>,
    statistics: Vec<TensorText>,
    moment_steps: u64,
    moments: Vec<(String, usize, usize)>,
    recent: Recent,
    #[serde(default)]
    masks: Vec<(String, usize)>,
}

/// A tensor by its name, the number of the blob that holds it last.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct TensorText(String, ElementType, Vec<usize>, usize);

fn weights_text(weights: &Weights, blobs: &mut Blobs) -> Vec<TensorText> {
    let text = |(name, data): (&String, &TensorData)| {
        let blob = blobs.put(data.bytes.clone());
        TensorText(name.clone(), data.element, data.shape.clone(), blob)
    };
    weights.iter().map(text).collect()
}

fn weights_read(text: &[TensorText], blobs: &Blobs) -> Option<Weights> {
    let read = |TensorText(name, element, shape, blob): &TensorText| {
        let data = TensorData::new(*element, shape.clone(), blobs.get(*blob)?.clone()).ok()?;
        Some((name.clone(), data))
    };
    text.iter().map(read).collect()
}

fn floats(values: &[f32]) -> Bytes {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn floats_read(bytes: &Bytes) -> Option<Vec<f32>> {
    let (numbers, []) = bytes.as_chunks::<4>() else {
        return None;
    };
    Some(numbers.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn named_text(of: &BTreeMap<String, Vec<f32>>, blobs: &mut Blobs) -> Vec<(String, usize)> {
    let text = |(name, values): (&String, &Vec<f32>)| (name.clone(), blobs.put(floats(values)));
    of.iter().map(text).collect()
}

fn named_read(text: &[(String, usize)], blobs: &Blobs) -> Option<BTreeMap<String, Vec<f32>>> {
    let read =
        |(name, blob): &(String, usize)| Some((name.clone(), floats_read(blobs.get(*blob)?)?));
    text.iter().map(read).collect()
}

fn masks_text(masks: &Masks, blobs: &mut Blobs) -> Vec<(String, usize)> {
    let bytes = |mask: &[bool]| mask.iter().map(|kept| u8::from(*kept)).collect();
    let text = |(name, mask): (&String, &Vec<bool>)| (name.clone(), blobs.put(bytes(mask)));
    masks.iter().map(text).collect()
}

fn masks_read(text: &[(String, usize)], blobs: &Blobs) -> Option<Masks> {
    let read = |(name, blob): &(String, usize)| {
        let mask = blobs.get(*blob)?.iter().map(|kept| *kept != 0);
        Some((name.clone(), mask.collect()))
    };
    text.iter().map(read).collect()
}

fn numbers(values: impl Iterator<Item = u32>) -> Bytes {
    values.flat_map(u32::to_le_bytes).collect()
}

fn numbers_read(bytes: &Bytes) -> Option<Vec<u32>> {
    let (numbers, []) = bytes.as_chunks::<4>() else {
        return None;
    };
    Some(numbers.iter().map(|b| u32::from_le_bytes(*b)).collect())
}

impl PositionText {
    fn of(position: &Position, blobs: &mut Blobs) -> Self {
        let samples = position.samples.iter().map(|i| *i as u32);
        let drawn = position.order.drawn;
        Self {
            step: position.step,
            epoch: position.epoch,
            batch: position.batch,
            samples: blobs.put(numbers(samples)),
            drawn: ((drawn >> 64) as u64, drawn as u64),
            indices: blobs.put(numbers(position.order.indices.iter().copied())),
            next: position.order.next,
            parameters: named_text(&position.parameters, blobs),
            average: position
                .average
                .as_ref()
                .map(|(steps, of)| (*steps, named_text(of, blobs))),
            statistics: weights_text(&position.statistics, blobs),
            moment_steps: position.moments.steps,
            moments: position
                .moments
                .of
                .iter()
                .map(|(name, (first, second))| {
                    let first = blobs.put(floats(first));
                    (name.clone(), first, blobs.put(floats(second)))
                })
                .collect(),
            recent: position.recent.clone(),
            masks: masks_text(&position.masks, blobs),
        }
    }

    fn read(&self, blobs: &Blobs) -> Option<Position> {
        let moment = |(name, first, second): &(String, usize, usize)| {
            let first = floats_read(blobs.get(*first)?)?;
            Some((name.clone(), (first, floats_read(blobs.get(*second)?)?)))
        };
        let samples = numbers_read(blobs.get(self.samples)?)?;
        Some(Position {
            step: self.step,
            epoch: self.epoch,
            batch: self.batch,
            samples: samples.into_iter().map(|i| i as usize).collect(),
            order: OrderState {
                drawn: u128::from(self.drawn.0) << 64 | u128::from(self.drawn.1),
                indices: numbers_read(blobs.get(self.indices)?)?,
                next: self.next,
            },
            parameters: named_read(&self.parameters, blobs)?,
            average: match &self.average {
                Some((steps, of)) => Some((*steps, named_read(of, blobs)?)),
                None => None,
            },
            statistics: weights_read(&self.statistics, blobs)?,
            moments: Moments {
                steps: self.moment_steps,
                of: self.moments.iter().map(moment).collect::<Option<_>>()?,
            },
            recent: self.recent.clone(),
            masks: masks_read(&self.masks, blobs)?,
        })
    }
}

/// What of `graph` differs from `base`, the graph it came from.
pub(super) fn changed(graph: &Graph, base: &Graph) -> Weights {
    let pairs = graph.values.iter().zip(&base.values);
    let changed = pairs.filter_map(|(now, then)| {
        let data = now.data.as_ref()?;
        let same = then.data.as_ref().is_some_and(|old| {
            // Untouched data is shared: no need to look at every byte of it.
            let shared = old.bytes.as_ptr() == data.bytes.as_ptr();
            old.element == data.element && (shared || old.bytes == data.bytes)
        });
        (!same).then(|| (now.name.clone(), data.clone()))
    });
    changed.collect()
}

/// `base` with `weights` in it; `None` where they do not fit.
pub(super) fn with_weights(base: &Graph, weights: &Weights) -> Option<Graph> {
    let mut graph = base.clone();
    let mut left = weights.len();
    for value in &mut graph.values {
        if let Some(data) = weights.get(&value.name) {
            let old = value.data.as_ref()?;
            if old.shape != data.shape {
                return None;
            }
            value.data = Some(data.clone());
            left -= 1;
        }
    }
    (left == 0).then_some(graph)
}
