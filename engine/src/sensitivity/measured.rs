//! Real evaluations: one layer changed at a time, judged on the search split against the unchanged model.

use super::{Candidate, Cell, MapObserver, SensitivityError, Tier, proxy};
use crate::{
    compress::{
        Activations, CompressError, Model, PassContext, QuantScheme, Ranges, calibrate_layers,
        compress_layers,
    },
    data::{Dataset, SplitName},
    eval::{self, EvalError, Evaluation, Logits, evaluate_with_logits, mean_kl},
    exec::{CancelToken, ExecError, Mode, Program},
    graph::LayerId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Measures the cells not in `known`, most telling first, on the first `limit` samples of the search split. Returns what was
/// finished, also when cancelled (by the token or by the observer answering [`ExecError::Cancelled`]).
///
/// A cell is the plan that changes this layer alone: batch norms folded, then pruned or quantised by `scheme`, exactly as
/// [`compress_layers`] does it. `baseline` holds the unchanged model's predictions on the search split; cells compare on the
/// samples that both have. Ranges are calibrated once for all cells.
///
/// # Errors
/// A model or data that cannot be run, no samples, a baseline of another split. Candidates that a layer refuses (weights
/// stored as integers, too large for half precision) have no cell.
#[allow(clippy::too_many_arguments)]
pub fn measure(
    model: &Model,
    scheme: &QuantScheme,
    baseline: &Evaluation,
    data: &Dataset,
    limit: Option<usize>,
    known: &[Cell],
    observer: &mut dyn MapObserver,
    cancel: &CancelToken,
) -> Result<Vec<Cell>, SensitivityError> {
    let mut finished = Vec::new();
    match walk(
        model,
        scheme,
        baseline,
        data,
        limit,
        known,
        observer,
        cancel,
        &mut finished,
    ) {
        Ok(()) => Ok(finished),
        Err(error) if cancelled(&error) => Ok(finished),
        Err(error) => Err(error),
    }
}

fn cancelled(error: &SensitivityError) -> bool {
    use crate::data::DataError;
    matches!(
        error,
        SensitivityError::Exec(ExecError::Cancelled)
            | SensitivityError::Eval(EvalError::Exec(ExecError::Cancelled))
            | SensitivityError::Eval(EvalError::Data(DataError::Cancelled))
            | SensitivityError::Compress(CompressError::Exec(ExecError::Cancelled))
            | SensitivityError::Compress(CompressError::Data(DataError::Cancelled))
    )
}

#[allow(clippy::too_many_arguments)]
fn walk(
    model: &Model,
    scheme: &QuantScheme,
    baseline: &Evaluation,
    data: &Dataset,
    limit: Option<usize>,
    known: &[Cell],
    observer: &mut dyn MapObserver,
    cancel: &CancelToken,
    finished: &mut Vec<Cell>,
) -> Result<(), SensitivityError> {
    if baseline.split != SplitName::Search {
        return Err(EvalError::Shape(format!(
            "the baseline of a sensitivity map is measured on the search split, this one on {:?}",
            baseline.split
        ))
        .into());
    }
    let context = PassContext {
        data: Some(data),
        cancel,
        seed: 0,
    };
    let (folded, _) = compress_layers(model.clone(), &BTreeMap::new(), scheme, None, &context)?;
    let todo = order(&folded, scheme, known);
    if todo.is_empty() {
        return Ok(());
    }
    let total = known_measured(known).len() + todo.len();
    let done_before = total - todo.len();

    let count = data
        .len(SplitName::Search)
        .min(limit.unwrap_or(usize::MAX))
        .min(baseline.predictions.len());
    if count == 0 {
        return Err(EvalError::Shape(
            "measuring sensitivity needs samples: the task's search split is empty".to_owned(),
        )
        .into());
    }
    let integers = |c: &Candidate| matches!(c, Candidate::Int8 | Candidate::Int4);
    let ranges = if scheme.activations == Activations::Int8 && todo.iter().any(|(_, c)| integers(c))
    {
        calibrate_layers(&folded.graph, data, scheme, cancel)?
    } else {
        Ranges::default()
    };
    let ranges = Arc::new(ranges);
    let (_, unchanged) = judge(&folded, data, count, observer, cancel)?;

    let mut done = done_before;
    for (layer, candidate) in todo {
        let settings = BTreeMap::from([(layer.clone(), candidate.setting())]);
        let changed = match compress_layers(
            folded.clone(),
            &settings,
            scheme,
            Some(ranges.clone()),
            &context,
        ) {
            Ok((changed, _)) => changed,
            // This candidate is not for this layer (weights too large for half precision, say): no cell.
            Err(CompressError::Layer { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let (evaluation, logits) = judge(&changed, data, count, observer, cancel)?;
        let drop = evaluation.drop_from(baseline);
        let kl = mean_kl(&unchanged.values, &logits.values, logits.classes);
        let cell = Cell {
            layer,
            candidate,
            tier: Tier::Measured,
            value: drop.drop,
            ci: Some(drop.ci),
            n: drop.n,
            kl: Some(kl.value),
        };
        finished.push(cell.clone());
        done += 1;
        observer.cell(cell, done, total);
    }
    Ok(())
}

fn known_measured(known: &[Cell]) -> BTreeSet<(LayerId, Candidate)> {
    known
        .iter()
        .filter(|cell| cell.tier == Tier::Measured)
        .map(|cell| (cell.layer.clone(), cell.candidate))
        .collect()
}

/// Cells to measure. The candidates that tell layers apart come first for all layers, the harmless ones last; within a
/// candidate the layers with most noise times size come first, because there is most to win and to lose.
fn order(model: &Model, scheme: &QuantScheme, known: &[Cell]) -> Vec<(LayerId, Candidate)> {
    const TELLING: [Candidate; 6] = [
        Candidate::Int4,
        Candidate::P50,
        Candidate::P75,
        Candidate::Int8,
        Candidate::P25,
        Candidate::Fp16,
    ];
    let sizes: BTreeMap<LayerId, u64> = model
        .graph
        .layers()
        .into_iter()
        .map(|layer| (layer.id, layer.params))
        .collect();
    let known = known_measured(known);
    let mut cells: Vec<(usize, f64, usize, LayerId, Candidate)> = proxy(&model.graph, scheme)
        .into_iter()
        .enumerate()
        .filter(|(_, cell)| !known.contains(&(cell.layer.clone(), cell.candidate)))
        .map(|(place, cell)| {
            let rank = TELLING.iter().position(|c| *c == cell.candidate);
            let size = sizes.get(&cell.layer).copied().unwrap_or(0) as f64;
            (
                rank.unwrap_or(TELLING.len()),
                cell.value * size,
                place,
                cell.layer,
                cell.candidate,
            )
        })
        .collect();
    cells.sort_by(|a, b| {
        let by_noise = b.1.total_cmp(&a.1);
        a.0.cmp(&b.0).then(by_noise).then(a.2.cmp(&b.2))
    });
    cells.into_iter().map(|c| (c.3, c.4)).collect()
}

/// Passes an evaluation's mini-batches on to the map's observer.
struct Batches<'a>(&'a mut dyn MapObserver);

impl eval::Observer for Batches<'_> {
    fn batch(&mut self, _done: u64, _total: u64) -> Result<(), ExecError> {
        self.0.batch()
    }
}

/// Evaluates a model on the first `count` samples, with its logits.
fn judge(
    model: &Model,
    data: &Dataset,
    count: usize,
    observer: &mut dyn MapObserver,
    cancel: &CancelToken,
) -> Result<(Evaluation, Logits), SensitivityError> {
    let program = Program::compile(&model.graph, Mode::Inference)?;
    Ok(evaluate_with_logits(
        &program,
        data,
        SplitName::Search,
        Some(count),
        &mut Batches(observer),
        cancel,
    )?)
}
