//! Features of teacher and student held against each other while training: the pairs, the projections between them, and what they cost.

use super::{
    DistilSettings, MatchedPair, TrainError,
    hint::{Hint, Known, Projection, Widths, attention, matching},
    stages::{Pair, pairs},
};
use crate::graph::Graph;
use candle_core::{DType, Device, Result as CandleResult, Tensor, Var, backprop::GradStore};
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// Pairs of features with what is trained between them.
pub(super) struct Matching {
    links: Vec<Link>,
    /// Weights and biases of the projections, by names that no value of the student's has.
    projections: BTreeMap<String, Var>,
    features: f64,
    attention: f64,
}

struct Link {
    pair: Pair,
    widths: Widths,
    /// Names of weight and bias, where the widths differ.
    projection: Option<[String; 2]>,
}

/// The teacher's features of a mini-batch, of one pair: samples × channels × places, and Σ of their squares.
pub(super) struct Taught {
    pub values: Vec<f32>,
    energy: f64,
}

/// Gradients of the projections by the first of the samples that they are of: added up in that order, whatever thread came first.
#[derive(Default)]
pub(super) struct Slopes(Mutex<BTreeMap<usize, Vec<Slope>>>);

/// By the projection's name.
type Slope = (String, Vec<f32>);

impl Matching {
    /// `None` where the settings ask for neither loss.
    ///
    /// # Errors
    /// Networks without a common resolution.
    pub fn new(
        student: &Graph,
        teacher: &Graph,
        settings: &DistilSettings,
    ) -> Result<Option<Self>, TrainError> {
        let features = f64::from(settings.feature_weight);
        let attention = f64::from(settings.attention_weight);
        if features == 0.0 && attention == 0.0 {
            return Ok(None);
        }
        let pairs = pairs(student, teacher);
        if pairs.is_empty() {
            return Err(TrainError::Settings(
                "feature_weight or attention_weight is above 0, but no activation of the student has the resolution of one of the original's: \
                 set both to 0"
                    .into(),
            ));
        }
        let mut projections = BTreeMap::new();
        let links = pairs.into_iter().map(|pair| {
            let widths = Widths {
                student: pair.student.channels,
                teacher: pair.teacher.channels,
                places: pair.student.places.iter().product(),
            };
            let needed = features > 0.0 && widths.student != widths.teacher;
            let mut zeros = |what: &str, shape: &[usize]| -> Result<String, TrainError> {
                let name = format!("projection of {}: {what}", pair.student.name);
                let name = student.unique_value_name(&name);
                let zeros = Var::zeros(shape, DType::F32, &Device::Cpu)?;
                projections.insert(name.clone(), zeros);
                Ok(name)
            };
            let projection = match needed {
                true => Some([
                    zeros("weight", &[widths.teacher, widths.student])?,
                    zeros("bias", &[widths.teacher])?,
                ]),
                false => None,
            };
            Ok(Link {
                pair,
                widths,
                projection,
            })
        });
        Ok(Some(Self {
            links: links.collect::<Result<_, TrainError>>()?,
            projections,
            features,
            attention,
        }))
    }

    /// What is trained beside the student.
    pub fn projections(&self) -> &BTreeMap<String, Var> {
        &self.projections
    }

    pub fn told(&self) -> Vec<MatchedPair> {
        let told = |link: &Link| told(&link.pair, link.projection.is_some());
        self.links.iter().map(told).collect()
    }

    /// `graph` that gives the features too, behind its own outputs.
    pub fn student(&self, graph: &Graph) -> Result<Graph, TrainError> {
        giving(
            graph,
            self.links.iter().map(|l| l.pair.student.name.as_str()),
        )
    }

    pub fn teacher(&self, graph: &Graph) -> Result<Graph, TrainError> {
        giving(
            graph,
            self.links.iter().map(|l| l.pair.teacher.name.as_str()),
        )
    }

    /// What of the outputs of such a teacher is taught.
    pub fn taught(&self, outputs: &[Tensor], samples: usize) -> Result<Vec<Taught>, TrainError> {
        let each = |(tensor, link): (&Tensor, &Link)| {
            let w = link.widths;
            let last = link.pair.teacher.last;
            let values = flat(&channels_first(tensor, last)?)?;
            let energy: f64 = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            let whole = values.len() == samples * w.teacher * w.places;
            if !whole || !energy.is_finite() {
                return Err(TrainError::Settings(format!(
                    "the original's features {} are not finite, or not {}×{} numbers for each of {samples} samples",
                    link.pair.teacher.name, w.teacher, w.places
                )));
            }
            Ok(Taught { values, energy })
        };
        outputs.iter().zip(&self.links).map(each).collect()
    }

    /// The share of the loss that the samples `rows` of a mini-batch of `samples` have: a scalar that gradients flow through to the student's
    /// features; the projections' gradients go into `slopes`.
    pub fn loss(
        &self,
        outputs: &[Tensor],
        taught: &[Taught],
        rows: Range<usize>,
        samples: usize,
        slopes: &Slopes,
    ) -> CandleResult<Tensor> {
        let mut total = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        let mut own_slopes = Vec::new();
        let pairs = self.links.len() as f64;
        for ((output, taught), link) in outputs.iter().zip(taught).zip(&self.links) {
            let w = link.widths;
            let features = channels_first(output, link.pair.student.last)?;
            let student = flat(&features)?;
            let one = w.teacher * w.places;
            let teacher = taught.values.get(rows.start * one..rows.end * one);
            let teacher = teacher.unwrap_or_default();
            if student.len() != rows.len() * w.student * w.places {
                candle_core::bail!("the student's features have another shape than its graph says")
            }
            let mut sum = Hint {
                loss: 0.0,
                features: vec![0.0; student.len()],
                weight: Vec::new(),
                bias: Vec::new(),
            };
            let mut add = |hint: &Hint| {
                sum.loss += hint.loss;
                let pairs = sum.features.iter_mut().zip(&hint.features);
                pairs.for_each(|(a, b)| *a += b);
            };
            if self.features > 0.0 {
                // Relative to what there is to match: pairs of features of any size count alike.
                let scale = self.features / (pairs * taught.energy.max(f64::MIN_POSITIVE));
                let hint = match &link.projection {
                    None => matching(&student, teacher, w, None, scale),
                    Some([weight, bias]) => {
                        let values = |name: &String| match self.projections.get(name) {
                            Some(var) => flat(var.as_tensor()),
                            None => candle_core::bail!("a projection is missing"),
                        };
                        let (weight, bias) = (values(weight)?, values(bias)?);
                        let (weight, bias) = (weight.as_slice(), bias.as_slice());
                        matching(
                            &student,
                            teacher,
                            w,
                            Some(Projection { weight, bias }),
                            scale,
                        )
                    }
                };
                add(&hint);
                if let Some([weight, bias]) = &link.projection {
                    own_slopes.push((weight.clone(), hint.weight));
                    own_slopes.push((bias.clone(), hint.bias));
                }
            }
            if self.attention > 0.0 {
                let scale = self.attention / (pairs * samples as f64);
                add(&attention(&student, teacher, w, scale));
            }
            let known = Known {
                loss: sum.loss,
                gradient: sum.features,
            };
            total = (total + features.apply_op1(known)?)?;
        }
        let mut all = slopes.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(rows.start, own_slopes);
        Ok(total)
    }

    /// What features that say nothing lose: zeros for the one, an even map for the other at worst.
    pub fn guess(&self) -> f64 {
        0.5 * self.features + self.attention
    }

    /// Puts the projections' gradients beside those of the student.
    pub fn give(&self, slopes: Slopes, store: &mut GradStore) -> CandleResult<()> {
        let all = slopes
            .0
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (name, slope) in all.into_values().flatten() {
            match sums.get_mut(&name) {
                Some(sum) => sum.iter_mut().zip(&slope).for_each(|(a, b)| *a += b),
                None => {
                    sums.insert(name, slope);
                }
            }
        }
        for (name, sum) in sums {
            if let Some(var) = self.projections.get(&name) {
                let gradient = Tensor::from_vec(sum, var.shape(), &Device::Cpu)?;
                store.insert(var.as_tensor(), gradient);
            }
        }
        Ok(())
    }
}

fn told(pair: &Pair, projected: bool) -> MatchedPair {
    MatchedPair {
        student: pair.student.name.clone(),
        teacher: pair.teacher.name.clone(),
        student_width: pair.student.channels,
        teacher_width: pair.teacher.channels,
        places: pair.student.places.clone(),
        projected,
    }
}

/// The features that [`super::distil`] would match: by name where the student has kept the teacher's value, else by resolution.
pub fn matched_features(student: &Graph, teacher: &Graph) -> Vec<MatchedPair> {
    let pairs = pairs(student, teacher);
    let each = |pair: &Pair| told(pair, pair.student.channels != pair.teacher.channels);
    pairs.iter().map(each).collect()
}

/// `graph` with the values of these names as further outputs.
fn giving<'a>(graph: &Graph, names: impl Iterator<Item = &'a str>) -> Result<Graph, TrainError> {
    let mut graph = graph.clone();
    for name in names {
        let Some(id) = graph.find_value(name) else {
            return Err(TrainError::Settings(format!(
                "the features {name} are gone from the network"
            )));
        };
        graph.outputs.push(id);
    }
    Ok(graph)
}

fn channels_first(features: &Tensor, last: bool) -> CandleResult<Tensor> {
    match last {
        true => features.transpose(1, 2)?.contiguous(),
        false => features.contiguous(),
    }
}

fn flat(tensor: &Tensor) -> CandleResult<Vec<f32>> {
    tensor.flatten_all()?.to_vec1::<f32>()
}
