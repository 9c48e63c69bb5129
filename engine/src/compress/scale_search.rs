//! Sequential search of weight scales (the "sequential MSE" of Qualcomm's AIMET): layer by layer, each scale is the one of a few candidates with
//! which the layer's output, on its quantised input, comes nearest the float network's. Scales that one output has several of (groups) are
//! searched one after the other.

use super::{
    CompressError, OnLayers,
    layerwise::{Choice, Method, Problem, Seen, product},
};
use crate::exec::{CancelToken, ExecError};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Where scales are looked for.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScaleSearchSettings {
    /// Samples of the calibration split.
    pub samples: usize,
    /// Output positions of a layer that its scales are judged on, drawn evenly from the samples. Those of every eighth sample are kept aside to
    /// judge the choice on.
    pub positions: usize,
    /// Scales tried, evenly from `lowest` to 1 times the one that holds the largest weight; the present one besides.
    pub candidates: usize,
    pub lowest: f32,
}

impl Default for ScaleSearchSettings {
    fn default() -> Self {
        Self {
            samples: 64,
            positions: 1024,
            candidates: 20,
            lowest: 0.3,
        }
    }
}

impl ScaleSearchSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// No samples, positions or candidates; a lowest candidate outside 0 to 1.
    pub fn check(&self) -> Result<(), CompressError> {
        super::at_least_one(&[
            ("samples", self.samples),
            ("positions", self.positions),
            ("candidates", self.candidates),
        ])?;
        super::above_zero(&[("lowest", self.lowest)])?;
        if self.lowest > 1.0 {
            return Err(CompressError::Invalid(format!(
                "lowest: a share of at most 1 was expected, found {}",
                self.lowest
            )));
        }
        Ok(())
    }
}

/// Chooses the scales of quantised weights, layer by layer; see the file's first lines.
pub type SequentialMse = OnLayers<ScaleSearchSettings>;

impl Method for ScaleSearchSettings {
    fn name(&self) -> (&'static str, &'static str) {
        ("sequential mse", "sequential MSE")
    }
    fn sound(&self) -> Result<(), CompressError> {
        self.check()
    }
    fn samples(&self) -> usize {
        self.samples
    }
    fn positions(&self) -> usize {
        self.positions
    }
    fn choose(
        &self,
        problem: &Problem,
        seen: &Seen<'_>,
        cancel: &CancelToken,
    ) -> Result<Result<Choice, String>, CompressError> {
        if problem.scales.len() == 1 {
            return self.of_tensor(problem, seen, cancel).map(Ok);
        }
        let outputs = problem.groups * problem.outputs;
        let sets: Vec<Sets> = (0..outputs).map(|o| Sets::of(problem, o)).collect();
        let mut owned = vec![false; problem.scales.len()];
        for set in sets.iter().flat_map(|s| s.0.keys()) {
            if std::mem::replace(&mut owned[*set], true) {
                return Ok(Err(
                    "several outputs share scales, but not all of them".to_owned()
                ));
            }
        }
        let chosen: Vec<Vec<(usize, f32)>> = sets
            .par_iter()
            .enumerate()
            .map(|(output, sets)| {
                if cancel.is_cancelled() {
                    return Err(ExecError::Cancelled);
                }
                Ok(self.of_output(problem, seen, output, sets))
            })
            .collect::<Result<_, _>>()?;
        let mut scales = problem.scales.clone();
        for (scale, value) in chosen.into_iter().flatten() {
            scales[scale] = value;
        }
        Ok(Ok(Choice::Scales(scales)))
    }
}

/// The weights of an output by their scale, as elements of a patch.
struct Sets(BTreeMap<usize, Vec<usize>>);

impl Sets {
    fn of(problem: &Problem, output: usize) -> Self {
        let mut sets: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for k in 0..problem.depth {
            let scale = problem.scale_of[output * problem.depth + k];
            sets.entry(scale).or_default().push(k);
        }
        Self(sets)
    }
}

impl ScaleSearchSettings {
    /// The present scale and those tried besides, for weights of these numbers.
    fn scales(
        &self,
        problem: &Problem,
        weights: impl Iterator<Item = usize>,
        present: f32,
    ) -> Vec<f32> {
        let holds = weights
            .map(|i| {
                let (w, range) = (problem.weights[i], problem.ranges[i]);
                let end = if w > 0.0 { range.hi } else { range.lo };
                if end == 0 { 0.0 } else { w / end as f32 }
            })
            .fold(0.0_f32, f32::max);
        let mut scales = vec![present];
        let steps = self.candidates;
        for step in 0..steps {
            let along = (step + 1) as f32 / steps as f32;
            let scale = holds * (self.lowest + (1.0 - self.lowest) * along);
            if scale.is_normal() && scale != present {
                scales.push(scale);
            }
        }
        scales
    }

    /// The scales of one output.
    fn of_output(
        &self,
        problem: &Problem,
        seen: &Seen<'_>,
        output: usize,
        sets: &Sets,
    ) -> Vec<(usize, f32)> {
        let (depth, rows, n) = (problem.depth, seen.rows, seen.fitted());
        let x = seen.of_group(output / problem.outputs, depth);
        let wanted = &seen.target[output * rows..][..n];
        let at = |k: usize| output * depth + k;
        let value = |k: usize, scale: f32| problem.nearest(at(k), scale) as f32 * scale;
        // What the sets that are not looked at give.
        let mut others = vec![0.0; n];
        if sets.0.len() > 1 {
            let present: Vec<f32> = (0..depth).map(|k| value(k, problem.scale(at(k)))).collect();
            product(&present, (1, depth), x, (n, rows), &mut others);
        }
        let mut gathered = Vec::new();
        let mut out = Vec::new();
        let mut chosen = Vec::with_capacity(sets.0.len());
        for (&set, members) in &sets.0 {
            let present = problem.scales[set];
            let scales = self.scales(problem, members.iter().map(|k| at(*k)), present);
            let values: Vec<f32> = scales
                .iter()
                .flat_map(|scale| members.iter().map(|k| value(*k, *scale)))
                .collect();
            let (read, stride) = if members.len() == depth {
                (x, rows)
            } else {
                gathered.clear();
                for k in members {
                    gathered.extend_from_slice(&x[k * rows..][..n]);
                }
                (&gathered[..], n)
            };
            out.clear();
            out.resize(scales.len() * n, 0.0);
            let shape = (scales.len(), members.len());
            product(&values, shape, read, (n, stride), &mut out);
            if sets.0.len() > 1 {
                for (other, now) in others.iter_mut().zip(&out[..n]) {
                    *other -= now;
                }
                for row in out.chunks_exact_mut(n) {
                    for (y, other) in row.iter_mut().zip(&others) {
                        *y += other;
                    }
                }
            }
            let mut best = (0, f64::INFINITY);
            for (candidate, row) in out.chunks_exact(n).enumerate() {
                let error = problem.distance(output, row, wanted);
                if error < best.1 {
                    best = (candidate, error);
                }
            }
            others.copy_from_slice(&out[best.0 * n..][..n]);
            chosen.push((set, scales[best.0]));
        }
        chosen
    }

    /// The one scale of all weights.
    fn of_tensor(
        &self,
        problem: &Problem,
        seen: &Seen<'_>,
        cancel: &CancelToken,
    ) -> Result<Choice, CompressError> {
        let all = 0..problem.weights.len();
        let present = problem.scales[0];
        let mut best = (present, f64::INFINITY);
        for scale in self.scales(problem, all.clone(), present) {
            if cancel.is_cancelled() {
                return Err(ExecError::Cancelled.into());
            }
            let weights: Vec<f32> = all
                .clone()
                .map(|i| problem.nearest(i, scale) as f32 * scale)
                .collect();
            let error = problem.error(&weights, seen, 0..seen.fitted());
            if error < best.1 {
                best = (scale, error);
            }
        }
        Ok(Choice::Scales(vec![best.0]))
    }
}
