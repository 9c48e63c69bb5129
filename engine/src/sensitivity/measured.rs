//! Real evaluations: one layer changed at a time, judged on the search split against the unchanged model.

use super::{
    Candidate, Cell, Direction, MapObserver, MapOptions, SensitivityError, Tier, local,
    looks::{Looks, Seen},
    networks::{Networks, Runs},
};
use crate::{
    compress::{CompressError, Model, PassContext, QuantScheme},
    data::{DataError, Dataset, SplitName},
    eval::{
        self, EvalError, Evaluation, Logits, RowReader, evaluate_with_logits, mean_kl, rows_of,
    },
    exec::{CancelToken, ExecError, Family, Program},
    graph::LayerId,
};
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// Measures the cells not in `known`, most telling first, and returns what was finished, also when cancelled (by the token or by the
/// observer answering [`ExecError::Cancelled`]). The observer is told the cells of the tiers before this one first.
///
/// A cell is the plan that changes this layer alone, or all layers but this one: batch norms folded, then pruned or quantised by
/// `scheme`, exactly as [`crate::compress::compress_layers`] does it. `baseline` holds the unchanged model's predictions on the search split where they are known; cells compare on
/// the samples that both have. Without it they are taken from the evaluation that a map begins with anyway. Ranges are calibrated once for all
/// cells. Proxy cells in `known` are not computed again.
///
/// Unless [`MapOptions::exact`], a cell is shown the samples nearest to flipping first and is settled once what the others leave open is within half a
/// point of top-1 or what chance leaves open with all of them run, or its drop clearly lies beyond [`MapOptions::too_much`]. When cancelled, cells in
/// work are given as they are, and measured again the next time.
///
/// # Errors
/// A model or data that cannot be run, no samples, a baseline of another split. Candidates that a layer refuses (weights
/// stored as integers, too large for half precision) have no cell.
#[allow(clippy::too_many_arguments)]
pub fn measure(
    model: &Model,
    scheme: &QuantScheme,
    baseline: Option<&Evaluation>,
    data: &Dataset,
    options: &MapOptions,
    known: &[Cell],
    observer: &mut dyn MapObserver,
    cancel: &CancelToken,
) -> Result<Vec<Cell>, SensitivityError> {
    let mut finished = Vec::new();
    let context = PassContext {
        data: Some(data),
        cancel,
        seed: 0,
    };
    let asked = Asked {
        scheme,
        baseline,
        data,
        options,
        context: &context,
    };
    match walk(model, &asked, known, observer, &mut finished) {
        Ok(()) => Ok(finished),
        Err(error) if cancelled(&error) => Ok(finished),
        Err(error) => Err(error),
    }
}

fn cancelled(error: &SensitivityError) -> bool {
    matches!(
        error,
        SensitivityError::Exec(ExecError::Cancelled)
            | SensitivityError::Eval(EvalError::Exec(ExecError::Cancelled))
            | SensitivityError::Eval(EvalError::Data(DataError::Cancelled))
            | SensitivityError::Compress(CompressError::Exec(ExecError::Cancelled))
            | SensitivityError::Compress(CompressError::Data(DataError::Cancelled))
    )
}

/// What a map is asked for.
struct Asked<'a> {
    scheme: &'a QuantScheme,
    baseline: Option<&'a Evaluation>,
    data: &'a Dataset,
    options: &'a MapOptions,
    context: &'a PassContext<'a>,
}

fn walk(
    model: &Model,
    asked: &Asked<'_>,
    known: &[Cell],
    observer: &mut dyn MapObserver,
    finished: &mut Vec<Cell>,
) -> Result<(), SensitivityError> {
    let (baseline, data) = (asked.baseline, asked.data);
    if let Some(baseline) = baseline.filter(|b| b.split != SplitName::Search) {
        return Err(EvalError::Shape(format!(
            "the baseline of a sensitivity map is measured on the search split, this one on {:?}",
            baseline.split
        ))
        .into());
    }
    let count = data
        .len(SplitName::Search)
        .min(asked.options.limit.unwrap_or(usize::MAX))
        .min(baseline.map_or(usize::MAX, |b| b.predictions.len()));
    if count == 0 {
        return Err(EvalError::Shape(
            "measuring sensitivity needs samples: the task's search split is empty".to_owned(),
        )
        .into());
    }
    let done = final_cells(known, count, asked.options);
    let networks = Networks::new(model, asked.scheme, asked.options, asked.context)?;
    let todo = networks.order(known, &done, observer)?;
    if todo.is_empty() {
        return Ok(());
    }
    let networks = networks.calibrated(&todo)?;
    let map = Map {
        asked,
        networks: &networks,
        original: Original::new(networks.base(), asked, count, observer)?,
        total: done.len() + todo.len(),
    };
    let mut progress = Progress {
        done: done.len(),
        pictures: BTreeMap::new(),
        room: asked.options.memory / 2,
        observer,
        finished,
    };
    map.measure(&todo, &mut progress)
}

/// What the unchanged model gives on the samples of the map.
struct Original {
    logits: Logits,
    /// Predicted class of each.
    classes: Vec<usize>,
    labels: Vec<u32>,
    /// Whether the model as it was given is right about each.
    right: Vec<bool>,
    looks: Looks,
    /// Takes other networks' numbers for what the original's are.
    reader: RowReader,
}

impl Original {
    fn new(
        base: &Program,
        asked: &Asked<'_>,
        count: usize,
        observer: &mut dyn MapObserver,
    ) -> Result<Self, SensitivityError> {
        let (evaluation, logits) = evaluate_with_logits(
            base,
            asked.data,
            SplitName::Search,
            Some(count),
            &mut Batches(observer),
            asked.context.cancel,
        )?;
        let cancel = asked.context.cancel;
        let first = rows_of(base, asked.data, SplitName::Search, &[0], cancel)?;
        let reader = RowReader::like(logits.classes, &first)?;
        let classes: Vec<usize> = evaluation.predictions.iter().map(|c| *c as usize).collect();
        let margins: Vec<f32> = classes
            .iter()
            .zip(logits.values.chunks_exact(logits.classes))
            .map(|(class, row)| margin(row, *class))
            .collect();
        let baseline = asked.baseline.unwrap_or(&evaluation);
        let labels = baseline.labels[..count].to_vec();
        let right: Vec<bool> = labels
            .iter()
            .zip(&baseline.predictions)
            .map(|(label, predicted)| label == predicted)
            .collect();
        Ok(Self {
            logits,
            classes,
            labels,
            looks: Looks::new(&margins, &right),
            right,
            reader,
        })
    }

    fn row(&self, sample: usize) -> &[f32] {
        &self.logits.values[sample * self.logits.classes..][..self.logits.classes]
    }
}

/// By how much a class's logit lies above the next.
fn margin(row: &[f32], class: usize) -> f32 {
    let others = row.iter().enumerate().filter(|(c, _)| *c != class);
    row[class] - others.map(|(_, v)| *v).fold(f32::NEG_INFINITY, f32::max)
}

/// What all cells of one map share.
struct Map<'a> {
    asked: &'a Asked<'a>,
    networks: &'a Networks<'a>,
    original: Original,
    total: usize,
}

/// What has been told, and images decoded for it.
struct Progress<'a> {
    done: usize,
    /// Images of each look, as long as there is room.
    pictures: BTreeMap<usize, Tensor>,
    /// Bytes left for them.
    room: u64,
    observer: &'a mut dyn MapObserver,
    finished: &'a mut Vec<Cell>,
}

/// A cell that is being measured, with what was seen of it.
struct Open {
    layer: LayerId,
    candidate: Candidate,
    runs: Runs,
    seen: Vec<Seen>,
}

impl Map<'_> {
    fn measure(
        &self,
        todo: &[(LayerId, Candidate)],
        progress: &mut Progress<'_>,
    ) -> Result<(), SensitivityError> {
        for group in self.networks.groups(todo) {
            let relatives = self.networks.relatives(group, progress.observer)?;
            if self.asked.options.direction == Direction::Alone {
                let (data, cancel) = (self.asked.data, self.asked.context.cancel);
                let cells = local::of(&relatives, data, progress.observer, cancel)?;
                progress.observer.early(cells);
            }
            let family = relatives.family;
            let mut open: Vec<Open> = relatives
                .cells
                .into_iter()
                .map(|(layer, candidate, runs)| Open {
                    layer,
                    candidate,
                    runs,
                    seen: Vec::new(),
                })
                .collect();
            // One candidate after the other, the most telling first. What has no fused form is run cell by cell.
            while !open.is_empty() {
                let candidate = open[0].candidate;
                let member = |c: &Open| matches!(c.runs, Runs::Member(_));
                let same = |c: &Open| c.candidate == candidate && member(c);
                let several = open.iter().position(|c| !same(c)).unwrap_or(open.len());
                let rest = open.split_off(several.max(1));
                self.together(family.as_ref(), open, progress)?;
                open = rest;
            }
        }
        Ok(())
    }

    /// Measures cells side by side, and lets go of each once it is settled.
    fn together(
        &self,
        family: Option<&Family>,
        mut open: Vec<Open>,
        progress: &mut Progress<'_>,
    ) -> Result<(), SensitivityError> {
        let original = &self.original;
        let mut reader = original.reader.clone();
        for look in 0..original.looks.len() {
            if open.is_empty() {
                break;
            }
            let samples = original.looks.fresh(look);
            let rows = match self.rows(family, &open, look, progress) {
                Ok(rows) => rows,
                Err(error) => {
                    if look > 0 && cancelled(&error) {
                        // What is known by now is worth keeping: each cell says on how many samples.
                        for cell in &open {
                            progress.tell(self.cell(cell, look - 1), self.total);
                        }
                    }
                    return Err(error);
                }
            };
            let mut still = Vec::with_capacity(open.len());
            for (mut cell, rows) in open.into_iter().zip(rows) {
                // A candidate that gives no numbers has no cell; the others go on.
                let Ok((rows, predictions)) = reader.read(rows, samples[0]) else {
                    continue;
                };
                let rows = rows.chunks_exact(original.logits.classes);
                for ((sample, row), prediction) in samples.iter().zip(rows).zip(predictions) {
                    cell.seen.push(self.seen(*sample, row, prediction));
                }
                let told = self.cell(&cell, look);
                if look + 1 == original.looks.len() || (!self.asked.options.exact && told.settled) {
                    progress.tell(told, self.total);
                } else {
                    still.push(cell);
                }
            }
            open = still;
        }
        Ok(())
    }

    /// Rows of the open cells for the samples of a look.
    fn rows(
        &self,
        family: Option<&Family>,
        open: &[Open],
        look: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Vec<f32>>, SensitivityError> {
        let samples = self.original.looks.fresh(look);
        let cancel = self.asked.context.cancel;
        let member = |cell: &Open| match cell.runs {
            Runs::Member(member) => Some(member),
            Runs::Alone(_) => None,
        };
        let wanted: Option<Vec<usize>> = open.iter().map(member).collect();
        if let (Some(family), Some(wanted)) = (family, wanted) {
            let images = progress.images(self.asked.data, look, samples)?;
            let mut between = || progress.observer.batch();
            return Ok(family.run(&images, &wanted, &mut between, cancel)?.1);
        }
        let mut all = Vec::with_capacity(open.len());
        for cell in open {
            let Runs::Alone(program) = &cell.runs else {
                continue;
            };
            progress.observer.batch()?;
            all.push(rows_of(
                program,
                self.asked.data,
                SplitName::Search,
                samples,
                cancel,
            )?);
        }
        Ok(all)
    }

    fn seen(&self, sample: usize, row: &[f32], prediction: u32) -> Seen {
        let (original, class) = (self.original.row(sample), self.original.classes[sample]);
        let right = prediction == self.original.labels[sample];
        Seen {
            sample,
            divergence: mean_kl(original, row, row.len()).value,
            shift: f64::from(margin(original, class) - margin(row, class)),
            changed: prediction as usize != class,
            lost: i8::from(self.original.right[sample]) - i8::from(right),
        }
    }

    fn cell(&self, cell: &Open, look: usize) -> Cell {
        let options = self.asked.options;
        let looks = &self.original.looks;
        let known = looks.judge(look, &cell.seen, options.too_much);
        Cell {
            layer: cell.layer.clone(),
            candidate: cell.candidate,
            direction: options.direction,
            tier: Tier::Measured,
            value: known.drop,
            ci: Some(known.ci),
            n: cell.seen.len() as u64,
            of: self.original.classes.len() as u64,
            settled: known.settled.is_some(),
            why: known.settled,
            kl: Some(known.divergence),
        }
    }
}

impl Progress<'_> {
    fn tell(&mut self, cell: Cell, total: usize) {
        self.finished.push(cell.clone());
        self.done += 1;
        self.observer.cell(cell, self.done, total);
    }

    /// The images of a look, decoded once where there is room to keep them.
    fn images(
        &mut self,
        data: &Dataset,
        look: usize,
        samples: &[usize],
    ) -> Result<Tensor, SensitivityError> {
        if let Some(images) = self.pictures.get(&look) {
            return Ok(images.clone());
        }
        let images = data
            .images(SplitName::Search, samples)
            .map_err(EvalError::from)?;
        let bytes = 4 * images.elem_count() as u64;
        if bytes <= self.room {
            self.room -= bytes;
            self.pictures.insert(look, images.clone());
        }
        Ok(images)
    }
}

/// Measured cells that another visit would not change: those of a map that was stopped may have seen fewer samples.
fn final_cells(
    known: &[Cell],
    count: usize,
    options: &MapOptions,
) -> BTreeSet<(LayerId, Candidate)> {
    let all = |cell: &Cell| cell.n >= count as u64;
    let settled = |cell: &Cell| cell.settled && cell.of >= count as u64;
    known
        .iter()
        .filter(|cell| cell.tier == Tier::Measured && cell.direction == options.direction)
        .filter(|cell| all(cell) || (!options.exact && settled(cell)))
        .map(|cell| (cell.layer.clone(), cell.candidate))
        .collect()
}

/// Passes an evaluation's mini-batches on to the map's observer.
struct Batches<'a>(&'a mut dyn MapObserver);

impl eval::Observer for Batches<'_> {
    fn batch(&mut self, _done: u64, _total: u64) -> Result<(), ExecError> {
        self.0.batch()
    }
}
