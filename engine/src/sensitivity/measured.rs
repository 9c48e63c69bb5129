//! Real evaluations: one layer changed at a time, judged on the search split against the unchanged model.

use super::{Candidate, Cell, MapObserver, SensitivityError, Tier, proxy};
use crate::{
    compress::{
        Activations, CompressError, Model, PassContext, QuantScheme, Ranges, calibrate_layers,
        compress_layers,
    },
    data::{Dataset, SplitName},
    eval::{self, EvalError, Evaluation, Logits, RowReader, evaluate_with_logits, mean_kl},
    exec::{CancelToken, ExecError, Family, Mode, Program},
    graph::LayerId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Measures the cells not in `known`, most telling first, on the first `limit` samples of the search split. Returns what was
/// finished, also when cancelled (by the token or by the observer answering [`ExecError::Cancelled`]).
///
/// When cancelled, cells in work that have seen 128 samples are given as they are; they are measured again the next time.
///
/// Unless `exact`, a cell is settled early, on fewer samples, once its interval is narrow (±0.5 points) or lies beyond a drop of 2 points
/// whole; its `n` says so.
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
    exact: bool,
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
        exact,
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
    exact: bool,
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
    let known = final_cells(known, count, exact);
    let todo = order(&folded, scheme, &known);
    if todo.is_empty() {
        return Ok(());
    }
    let total = known.len() + todo.len();
    let done_before = total - todo.len();

    let integers = |c: &Candidate| matches!(c, Candidate::Int8 | Candidate::Int4);
    let ranges = if scheme.activations == Activations::Int8 && todo.iter().any(|(_, c)| integers(c))
    {
        calibrate_layers(&folded.graph, data, scheme, cancel)?
    } else {
        Ranges::default()
    };
    let cells = Cells {
        folded: &folded,
        scheme,
        ranges: Arc::new(ranges),
        context: &context,
        baseline,
        count,
        exact,
        total,
    };
    cells.measure(todo, done_before, observer, finished)
}

/// What all cells of one map share.
struct Cells<'a> {
    folded: &'a Model,
    scheme: &'a QuantScheme,
    ranges: Arc<Ranges>,
    context: &'a PassContext<'a>,
    baseline: &'a Evaluation,
    count: usize,
    exact: bool,
    total: usize,
}

/// A cell that is being measured, with what is known after the samples so far.
struct Open {
    layer: LayerId,
    candidate: Candidate,
    member: usize,
    predictions: Vec<u32>,
    divergence: f64,
}

/// Samples between two looks at a cell, and before the first.
const ROUND: usize = 64;
const FIRST_LOOK: usize = 128;

/// A drop whose whole interval lies beyond this is settled: no plan will want the cell.
const TOO_MUCH: f64 = 0.02;

/// Looking again and again until an interval lies beyond a limit finds one too often: for this it is taken half as wide again.
const MANY_LOOKS: f64 = 1.5;

/// Half the width of an interval that is narrow enough.
const NARROW: f64 = 0.005;

impl Cells<'_> {
    /// The model with this layer alone changed; `None` where the layer refuses.
    fn changed(
        &self,
        layer: &LayerId,
        candidate: Candidate,
    ) -> Result<Option<Program>, SensitivityError> {
        let settings = BTreeMap::from([(layer.clone(), candidate.setting())]);
        let ranges = Some(self.ranges.clone());
        match compress_layers(
            self.folded.clone(),
            &settings,
            self.scheme,
            ranges,
            self.context,
        ) {
            Ok((changed, _)) => Ok(Some(Program::compile(&changed.graph, Mode::Inference)?)),
            // This candidate is not for this layer (weights too large for half precision, say): no cell.
            Err(CompressError::Layer { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn measure(
        &self,
        todo: Vec<(LayerId, Candidate)>,
        mut done: usize,
        observer: &mut dyn MapObserver,
        finished: &mut Vec<Cell>,
    ) -> Result<(), SensitivityError> {
        let base = Program::compile(&self.folded.graph, Mode::Inference)?;
        let sample = self.data()?.info().sample_shape.clone();
        let first = Family::new(&base, &sample)?;
        let mut slow = Vec::new();
        // One candidate after the other: all its layers share what lies before them.
        for cells in todo.chunk_by(|a, b| a.1 == b.1) {
            let Some(mut family) = first.as_ref().map(Family::without_members) else {
                slow.extend_from_slice(cells);
                continue;
            };
            let mut open = Vec::with_capacity(cells.len());
            for (layer, candidate) in cells {
                observer.batch()?;
                let Some(program) = self.changed(layer, *candidate)? else {
                    continue;
                };
                match family.add(&program)? {
                    Some(member) => open.push(Open {
                        layer: layer.clone(),
                        candidate: *candidate,
                        member,
                        predictions: Vec::with_capacity(self.count),
                        divergence: 0.0,
                    }),
                    None => slow.push((layer.clone(), *candidate)),
                }
            }
            self.together(&family, open, &mut done, observer, finished)?;
        }
        if slow.is_empty() {
            return Ok(());
        }
        // Networks without a fused form, one cell at a time.
        let (_, unchanged) = self.judge(&base, observer)?;
        for (layer, candidate) in slow {
            let Some(program) = self.changed(&layer, candidate)? else {
                continue;
            };
            let (evaluation, logits) = self.judge(&program, observer)?;
            let kl = mean_kl(&unchanged.values, &logits.values, logits.classes).value;
            let cell = self.cell(layer, candidate, &evaluation.predictions, kl);
            self.tell(cell, &mut done, observer, finished);
        }
        Ok(())
    }

    fn data(&self) -> Result<&Dataset, SensitivityError> {
        self.context
            .data
            .ok_or_else(|| EvalError::Shape("measuring sensitivity needs data".to_owned()).into())
    }

    /// Measures cells of one family side by side, and lets go of each once it is settled.
    fn together(
        &self,
        family: &Family,
        mut open: Vec<Open>,
        done: &mut usize,
        observer: &mut dyn MapObserver,
        finished: &mut Vec<Cell>,
    ) -> Result<(), SensitivityError> {
        let data = self.data()?;
        let mut reader = RowReader::new(data.info().classes.len());
        let mut start = 0;
        while start < self.count && !open.is_empty() {
            let end = (start + ROUND).min(self.count);
            let batch = data
                .batch(SplitName::Search, start..end)
                .map_err(EvalError::from)?;
            let wanted: Vec<usize> = open.iter().map(|cell| cell.member).collect();
            let mut between = || observer.batch();
            let cancel = self.context.cancel;
            let ran = family.run(&batch.images, &wanted, &mut between, cancel);
            if matches!(ran, Err(ExecError::Cancelled)) && start >= FIRST_LOOK {
                // What is known by now is worth keeping: each cell says on how many samples.
                for cell in &open {
                    let told = self.so_far(cell, start);
                    self.tell(told, done, observer, finished);
                }
            }
            let (base, rows) = ran?;
            let (base, _) = reader.read(base, start)?;
            let mut finite = Vec::with_capacity(open.len());
            for (mut cell, rows) in std::mem::take(&mut open).into_iter().zip(rows) {
                // A candidate that gives no numbers has no cell; the others go on.
                let Ok((rows, predictions)) = reader.read(rows, start) else {
                    continue;
                };
                cell.predictions.extend(predictions);
                cell.divergence +=
                    mean_kl(&base, &rows, data.info().classes.len()).value * (end - start) as f64;
                finite.push(cell);
            }
            open = finite;
            start = end;
            let mut still = Vec::with_capacity(open.len());
            for cell in open {
                let told = self.so_far(&cell, start);
                if start == self.count || (!self.exact && settled(&told)) {
                    self.tell(told, done, observer, finished);
                } else {
                    still.push(cell);
                }
            }
            open = still;
        }
        Ok(())
    }

    fn so_far(&self, cell: &Open, samples: usize) -> Cell {
        let kl = cell.divergence / samples as f64;
        self.cell(cell.layer.clone(), cell.candidate, &cell.predictions, kl)
    }

    fn tell(
        &self,
        cell: Cell,
        done: &mut usize,
        observer: &mut dyn MapObserver,
        finished: &mut Vec<Cell>,
    ) {
        finished.push(cell.clone());
        *done += 1;
        observer.cell(cell, *done, self.total);
    }

    fn cell(&self, layer: LayerId, candidate: Candidate, predictions: &[u32], kl: f64) -> Cell {
        let drop = self.baseline.drop_of(predictions);
        Cell {
            layer,
            candidate,
            tier: Tier::Measured,
            value: drop.drop,
            ci: Some(drop.ci),
            n: drop.n,
            kl: Some(kl),
        }
    }

    /// Evaluates a model on the first samples, with its logits.
    fn judge(
        &self,
        program: &Program,
        observer: &mut dyn MapObserver,
    ) -> Result<(Evaluation, Logits), SensitivityError> {
        Ok(evaluate_with_logits(
            program,
            self.data()?,
            SplitName::Search,
            Some(self.count),
            &mut Batches(observer),
            self.context.cancel,
        )?)
    }
}

/// Whether more samples would change nothing that anyone decides by.
fn settled(cell: &Cell) -> bool {
    cell.n >= FIRST_LOOK as u64
        && cell.ci.is_some_and(|[low, high]| {
            let cautious = cell.value - MANY_LOOKS * (cell.value - low);
            cautious > TOO_MUCH || (high - low) / 2.0 <= NARROW
        })
}

/// Measured cells that another visit would not change: those of a map that was stopped may have seen fewer samples.
fn final_cells(known: &[Cell], count: usize, exact: bool) -> BTreeSet<(LayerId, Candidate)> {
    known
        .iter()
        .filter(|cell| cell.tier == Tier::Measured)
        .filter(|cell| cell.n >= count as u64 || (!exact && settled(cell)))
        .map(|cell| (cell.layer.clone(), cell.candidate))
        .collect()
}

/// Cells to measure. The candidates that tell layers apart come first for all layers, the harmless ones last; within a
/// candidate the layers with most noise times size come first, because there is most to win and to lose.
fn order(
    model: &Model,
    scheme: &QuantScheme,
    known: &BTreeSet<(LayerId, Candidate)>,
) -> Vec<(LayerId, Candidate)> {
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
