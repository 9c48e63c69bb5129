//! Second moments of layers' outputs before their bias, on the calibration split.

use super::factor::Factors;
use crate::{
    compress::{
        CompressError, PassContext,
        chunks::{Chunk, chunks},
        segments::BATCH,
    },
    data::SplitName,
    exec::{
        self, ExecError, Mode, Program, Taps,
        kernels::{Matrix, matmul},
    },
    graph::{Graph, ValueId},
};
use candle_core::Tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// A layer that is looked at.
pub(super) struct Watched<'a> {
    pub output: ValueId,
    pub factors: &'a Factors,
    /// By output.
    pub bias: Vec<f32>,
    /// Outputs lie along axis 1 (a convolution's), not the last.
    pub planes: bool,
}

/// One layer's second moment, width×width row after row, in the basis of its [`Factors::projection`]; in the order of `watched`.
///
/// # Errors
/// No samples, a graph that cannot run, cancellation; values that are not finite.
pub(super) fn moments(
    graph: &Graph,
    watched: &[Watched<'_>],
    samples: usize,
    context: &PassContext<'_>,
) -> Result<(usize, Vec<Vec<f64>>), CompressError> {
    let Some(data) = context.data else {
        return Ok((0, Vec::new()));
    };
    let total = samples.min(data.len(SplitName::Calibration));
    if total == 0 {
        return Err(CompressError::Invalid(
            "LowRank looks at outputs on the task's calibration split, which is empty; set `energy_of: weights`".to_owned(),
        ));
    }
    let program = Program::compile(graph, Mode::Inference)?;
    let mut taps = Moments {
        layers: watched
            .iter()
            .enumerate()
            .map(|(at, w)| {
                let sum = vec![0.0; w.factors.width().pow(2)];
                (w.output, (at, w, w.factors.projection(), sum))
            })
            .collect(),
        chunk: None,
    };
    for chunk in chunks(0..total, BATCH, program.fixed_batch()) {
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        taps.chunk = Some(chunk);
        let images = chunk.images(data)?;
        program.run(std::slice::from_ref(&images), &mut taps, context.cancel)?;
    }
    let mut found = vec![Vec::new(); watched.len()];
    for (output, (at, _, _, sum)) in taps.layers {
        if sum.iter().any(|v| !v.is_finite()) {
            return Err(CompressError::Invalid(format!(
                "the outputs of {} are NaN or infinite on the calibration data: set `energy_of: weights`, or keep the layer",
                graph.value(output).name
            )));
        }
        found[at] = sum;
    }
    Ok((total, found))
}

type Watching<'a> = (usize, &'a Watched<'a>, Option<Vec<f32>>, Vec<f64>);

struct Moments<'a> {
    layers: BTreeMap<ValueId, Watching<'a>>,
    chunk: Option<Chunk>,
}

impl Taps for Moments<'_> {
    fn wants(&self, value: ValueId) -> bool {
        self.layers.contains_key(&value)
    }

    fn visit(&mut self, value: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        let (Some(chunk), Some((_, watched, projection, sum))) =
            (self.chunk, self.layers.get_mut(&value))
        else {
            return Ok(None);
        };
        let tensor = chunk.own(tensor)?;
        let outputs = watched.bias.len();
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        // Samples one by one: a convolution's planes, or rows of outputs.
        let size = match watched.planes {
            true => values.len() / tensor.dims().first().copied().unwrap_or(1).max(1),
            false => values.len() / chunk.rows.max(1) / outputs.max(1) * outputs,
        };
        let width = watched.factors.width();
        if size == 0 || !size.is_multiple_of(outputs) {
            return Err(ExecError::Input(format!(
                "an output of shape {:?} of a layer with {outputs} outputs",
                tensor.dims()
            )));
        }
        let projection = projection.as_deref();
        let one = |values: &[f32]| {
            let positions = values.len() / outputs;
            let bias = |i: usize| {
                watched.bias[if watched.planes {
                    i / positions
                } else {
                    i % outputs
                }]
            };
            let bare: Vec<f32> = values
                .iter()
                .enumerate()
                .map(|(i, v)| v - bias(i))
                .collect();
            // outputs×positions.
            let all = match watched.planes {
                true => Matrix::new(&bare, outputs, positions, positions),
                false => Matrix::new(&bare, positions, outputs, outputs).transposed(),
            };
            let mut moment = vec![0.0; width * width];
            match projection {
                None => matmul(all, all.transposed(), &mut moment),
                Some(projection) => {
                    let mut inside = vec![0.0; width * positions];
                    matmul(
                        Matrix::new(projection, width, outputs, outputs),
                        all,
                        &mut inside,
                    );
                    let inside = Matrix::new(&inside, width, positions, positions);
                    matmul(inside, inside.transposed(), &mut moment);
                }
            }
            moment
        };
        // Added up in order, whatever the number of threads.
        let each: Vec<Vec<f32>> =
            exec::pool().install(|| values.par_chunks(size).map(one).collect());
        for moment in each {
            for (sum, v) in sum.iter_mut().zip(moment) {
                *sum += f64::from(v);
            }
        }
        Ok(None)
    }
}
