//! The mirror: what the engine reported (model, cells, points, jobs, curves, inspection, log). Nothing here is decided by
//! the user, and only engine events change it.

use super::{Asked, Foresight, Job, JobKind, JobState, Reading, Runs};
use limbeck_engine::{
    compress::LayerInspection,
    confirm::RuntimePair,
    data::SplitName,
    graph::LayerId,
    jobs::{Event, JobId, ModelInfo, Point, RuntimeFound},
    recipe::{Interrupted, Recipe, Step},
    search::LayerFacts,
    sensitivity::{Candidate, Cell, Direction, Tier},
    target::Target,
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

/// Number of a point within a session and its project.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct PointId(pub u64);

/// A measured point with the name the plot shows.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedPoint {
    pub id: PointId,
    /// `fp32` for the original, `int8` for all layers at int8, else `Plan 3`, `Distil 4` or `Distil 5 partial`.
    pub name: String,
    pub point: Arc<Point>,
}

impl NamedPoint {
    /// The original model: no steps.
    pub fn is_baseline(&self) -> bool {
        self.point.recipe.steps.is_empty()
    }
    pub fn is_distilled(&self) -> bool {
        is_distilled(&self.point.recipe.steps)
    }
    pub fn split(&self) -> SplitName {
        self.point.metrics.split
    }
    /// Samples it was judged on.
    pub fn samples(&self) -> u64 {
        self.point.metrics.top1.n
    }
    /// Top-1 in percent.
    pub fn top1_percent(&self) -> f64 {
        self.point.metrics.top1.value * 100.0
    }
}

pub(crate) fn is_distilled(steps: &[Step]) -> bool {
    steps.iter().any(|step| matches!(step, Step::Distil(_)))
}

/// Words that numbered points are called by.
const NUMBERED: [&str; 2] = ["Plan", "Distil"];

/// The number in a name such as `Distil 3 partial`.
fn number_after(name: &str, word: &str) -> Option<u64> {
    let rest = name.strip_prefix(word)?.trim_start();
    rest.split(' ').next()?.parse().ok()
}

/// Equal for points of equal steps and seed.
fn fingerprint(point: &Point) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{:?}", (point.recipe.seed, &point.recipe.steps)).hash(&mut hasher);
    hasher.finish()
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// Since the session started.
    pub at: Duration,
    pub error: bool,
    pub text: String,
}

/// The best that is known of one layer and candidate, and what was known before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellSlot {
    pub proxy: Option<Cell>,
    /// Error of the layer's own output.
    pub local: Option<Cell>,
    /// Divergence of the outputs as that error predicts it.
    pub fisher: Option<Cell>,
    pub measured: Option<Cell>,
    /// All layers changed but this one, measured.
    pub all_but: Option<Cell>,
}

impl CellSlot {
    /// The measured cell if there is one, else the predicted divergence, else the proxy.
    pub fn best(&self) -> Option<&Cell> {
        let early = self.fisher.as_ref().or(self.proxy.as_ref());
        self.measured.as_ref().or(early)
    }

    /// Its divergence is estimated, and it is not measured.
    fn is_estimated(&self) -> bool {
        self.measured.is_none() && self.fisher.is_some()
    }

    fn all(&self) -> impl Iterator<Item = &Cell> {
        let alone = [&self.proxy, &self.local, &self.fisher, &self.measured];
        alone.into_iter().chain([&self.all_but]).flatten()
    }
}

/// Everything the engine has told.
#[derive(Debug)]
pub struct Mirror {
    pub model: Option<Arc<ModelInfo>>,
    /// Names of the layers in the graph's order, for quick use.
    pub(crate) layer_ids: Vec<LayerId>,
    index: BTreeMap<LayerId, usize>,
    slots: Vec<[CellSlot; Candidate::ALL.len()]>,
    /// Slots with a measured cell of the layer alone, and of all but it.
    measured: usize,
    all_but: usize,
    /// Of the others, those with an estimated divergence.
    estimated: usize,
    /// Oldest first, so in the order of their ids.
    pub points: Vec<NamedPoint>,
    /// Ids of the points by what their steps and seed hash to.
    by_plan: HashMap<u64, Vec<PointId>>,
    /// The highest number behind each of [`NUMBERED`].
    numbers: BTreeMap<&'static str, u64>,
    /// Newest last; finished ones are dropped after a while.
    pub jobs: Vec<Job>,
    /// Distillations.
    pub runs: Runs,
    /// Distillations that were interrupted, by this session or an earlier one, newest first.
    pub interrupted: Vec<Interrupted>,
    /// What the layer in the inspector reads.
    pub reading: Option<Reading>,
    pub inspection: Option<Arc<LayerInspection>>,
    /// How the plan would run at its target, as it was last asked.
    pub foresight: Option<Foresight>,
    /// The deployment runtime that was found last, or where one was looked for; `None`: not yet.
    pub runtime: Option<Result<RuntimeFound, String>>,
    /// Descriptions of targets of one's own, by path, or why they could not be read.
    pub targets: BTreeMap<String, Result<Arc<Target>, String>>,
    pub log: VecDeque<LogLine>,
    /// Grows with each change of the model, of cells, of points; caches compare them.
    pub model_version: u64,
    pub cells_version: u64,
    pub points_version: u64,
    pub targets_version: u64,
    pub foresight_version: u64,
    started: Instant,
    next_point: u64,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            model: None,
            layer_ids: Vec::new(),
            index: BTreeMap::new(),
            slots: Vec::new(),
            measured: 0,
            all_but: 0,
            estimated: 0,
            points: Vec::new(),
            by_plan: HashMap::new(),
            numbers: BTreeMap::new(),
            jobs: Vec::new(),
            runs: Runs::default(),
            interrupted: Vec::new(),
            reading: None,
            inspection: None,
            foresight: None,
            runtime: None,
            targets: BTreeMap::new(),
            log: VecDeque::new(),
            model_version: 0,
            cells_version: 0,
            points_version: 0,
            targets_version: 0,
            foresight_version: 0,
            started: Instant::now(),
            next_point: 1,
        }
    }
}

impl Mirror {
    const LOG_LINES: usize = 2_000;
    const FINISHED_JOBS: usize = 50;

    pub fn layers(&self) -> &[LayerFacts] {
        self.model.as_ref().map_or(&[], |model| &model.layers)
    }

    pub fn layer_ids(&self) -> &[LayerId] {
        &self.layer_ids
    }

    /// Position of a layer in the graph's order.
    pub fn layer_index(&self, layer: &LayerId) -> Option<usize> {
        self.index.get(layer).copied()
    }

    pub fn slot(&self, layer: usize, candidate: Candidate) -> Option<&CellSlot> {
        self.slots.get(layer).map(|row| &row[candidate as usize])
    }

    /// All cells, the best tier of each, in the graph's order.
    pub fn best_cells(&self) -> impl Iterator<Item = &Cell> {
        self.slots.iter().flatten().filter_map(CellSlot::best)
    }

    /// Every cell of every tier (what a project keeps, what `Map` is told is known).
    pub fn all_cells(&self) -> impl Iterator<Item = &Cell> {
        self.slots.iter().flatten().flat_map(CellSlot::all)
    }

    /// Measured cells of a direction and all there are.
    pub fn measured_cells(&self, direction: Direction) -> (usize, usize) {
        let measured = match direction {
            Direction::Alone => self.measured,
            Direction::AllBut => self.all_but,
        };
        (measured, self.slots.len() * Candidate::ALL.len())
    }

    /// Cells with an estimated divergence that are not measured.
    pub fn estimated_cells(&self) -> usize {
        self.estimated
    }

    /// Takes a newly opened model; everything known of another one is dropped.
    pub fn set_model(&mut self, model: ModelInfo) {
        self.layer_ids = model.layers.iter().map(|layer| layer.id.clone()).collect();
        self.index = self.layer_ids.iter().cloned().zip(0..).collect();
        self.slots = (0..self.layer_ids.len())
            .map(|_| std::array::from_fn(|_| CellSlot::default()))
            .collect();
        self.forget_data();
        self.inspection = None;
        self.foresight = None;
        self.next_point = 1;
        self.model = Some(Arc::new(model));
        self.model_version += 1;
        self.cells_version += 1;
        self.points_version += 1;
    }

    /// A distillation was asked for. Its number is taken, whatever becomes of it.
    pub fn asked(&mut self, job: JobId, recipe: Arc<Recipe>) {
        let title = self.job(job).map(|job| job.title.clone());
        let title = title.unwrap_or_default();
        self.take_numbers(&title);
        self.runs.ask(job, title, recipe);
    }

    /// What a layer reads is being counted.
    pub fn count(&mut self, job: JobId, layer: LayerId) {
        self.reading = Some(Reading::begin(job, layer, self.reading.take()));
    }

    /// It is being worked out how a plan would run at its target.
    pub fn foresee(&mut self, job: JobId, asked: Asked) {
        self.foresight = Some(Foresight::begin(job, asked, self.foresight.take()));
        self.foresight_version += 1;
    }

    /// What was learned of the data that goes.
    fn forget_data(&mut self) {
        (self.measured, self.all_but, self.estimated) = (0, 0, 0);
        self.clear_points();
        self.runs.clear();
        self.reading = None;
    }

    /// The model's hash, once it was read.
    pub fn set_hash(&mut self, sha256: String) {
        if let Some(model) = &mut self.model {
            Arc::make_mut(model).sha256 = Some(sha256);
        }
    }

    /// The model's weights turned out to be broken: it cannot be run.
    pub fn set_unsound(&mut self, warning: String) {
        if let Some(model) = &mut self.model {
            let model = Arc::make_mut(model);
            model.runnable = false;
            model.warnings.push(warning);
            self.model_version += 1;
        }
    }

    /// Other data for the same model: what was measured on the old data goes.
    pub fn set_data(&mut self, model: ModelInfo) {
        for slot in self.slots.iter_mut().flatten() {
            *slot = CellSlot {
                proxy: slot.proxy.take(),
                ..CellSlot::default()
            };
        }
        self.forget_data();
        self.model = Some(Arc::new(model));
        self.model_version += 1;
        self.cells_version += 1;
        self.points_version += 1;
    }

    /// Adds or replaces cells; those of unknown layers are ignored.
    pub fn add_cells(&mut self, cells: impl IntoIterator<Item = Cell>) {
        for cell in cells {
            let Some(row) = self.index.get(&cell.layer) else {
                continue;
            };
            let slot = &mut self.slots[*row][cell.candidate as usize];
            let (measured, estimated) = (slot.measured.is_some(), slot.is_estimated());
            let all_but = slot.all_but.is_some();
            let place = match (cell.tier, cell.direction) {
                (Tier::Proxy, _) => &mut slot.proxy,
                (Tier::Local, _) => &mut slot.local,
                (Tier::Fisher, _) => &mut slot.fisher,
                (Tier::Measured, Direction::Alone) => &mut slot.measured,
                (Tier::Measured, Direction::AllBut) => &mut slot.all_but,
            };
            *place = Some(cell);
            self.measured += usize::from(!measured && slot.measured.is_some());
            self.all_but += usize::from(!all_but && slot.all_but.is_some());
            self.estimated += usize::from(!estimated && slot.is_estimated());
            self.estimated -= usize::from(estimated && !slot.is_estimated());
        }
        self.cells_version += 1;
    }

    /// Adds a point; the same recipe measured again on the same split replaces the older one.
    pub fn add_point(&mut self, point: Point) -> PointId {
        self.points_version += 1;
        let print = fingerprint(&point);
        // Those of the same plan, oldest first: as a rule none, whatever the number of points.
        let alike: Vec<usize> = self.by_plan.get(&print).map_or_else(Vec::new, |ids| {
            let at = |id: &PointId| self.points.binary_search_by_key(id, |p| p.id).ok();
            let same = |at: &usize| {
                let old = &self.points[*at].point.recipe;
                old.steps == point.recipe.steps && old.seed == point.recipe.seed
            };
            ids.iter().filter_map(at).filter(same).collect()
        });
        let same = |at: &&usize| {
            let old = &self.points[**at].point.metrics;
            old.split == point.metrics.split && old.top1.n == point.metrics.top1.n
        };
        if let Some(at) = alike.iter().find(same) {
            let old = &mut self.points[*at];
            let mut point = point;
            // What the runtime gave for the same file still holds.
            if point.confirmed.is_none() && point.model_sha256 == old.point.model_sha256 {
                point.confirmed.clone_from(&old.point.confirmed);
            }
            old.point = Arc::new(point);
            return old.id;
        }
        let id = PointId(self.next_point);
        self.next_point += 1;
        // The same plan on another split keeps its name.
        let name = match alike.first() {
            Some(at) => self.points[*at].name.clone(),
            None => self.name_of(&point),
        };
        self.take_numbers(&name);
        self.by_plan.entry(print).or_default().push(id);
        self.points.push(NamedPoint {
            id,
            name,
            point: Arc::new(point),
        });
        id
    }

    fn take_numbers(&mut self, name: &str) {
        for word in NUMBERED {
            if let Some(number) = number_after(name, word) {
                let highest = self.numbers.entry(word).or_default();
                *highest = number.max(*highest);
            }
        }
    }

    fn name_of(&self, point: &Point) -> String {
        use limbeck_engine::{compress::Precision, recipe::Choice};
        let steps = &point.recipe.steps;
        if steps.is_empty() {
            return "fp32".into();
        }
        if let [Step::FoldBatchNorm, Step::Quantize(quantize)] = steps.as_slice()
            && quantize.layers.is_empty()
            && let Choice::Set(precision) = quantize.default
            && precision != Precision::Fp32
        {
            return precision.label().into();
        }
        if !is_distilled(steps) {
            return format!("Plan {}", self.free_number("Plan"));
        }
        let partial = if point.recipe.is_partial() {
            " partial"
        } else {
            ""
        };
        let run = self.runs.title_of(&point.recipe).map(str::to_owned);
        let run = run.unwrap_or_else(|| self.next_distil());
        format!("{run}{partial}")
    }

    /// The name that the next distillation's point will have.
    pub fn next_distil(&self) -> String {
        format!("Distil {}", self.free_number("Distil"))
    }

    fn free_number(&self, word: &str) -> u64 {
        self.numbers.get(word).copied().unwrap_or(0) + 1
    }

    fn clear_points(&mut self) {
        self.points.clear();
        self.by_plan.clear();
        self.numbers.clear();
    }

    pub fn point(&self, id: PointId) -> Option<&NamedPoint> {
        let at = self.points.binary_search_by_key(&id, |point| point.id);
        self.points.get(at.ok()?)
    }

    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }

    pub fn add_job(&mut self, id: JobId, kind: JobKind, title: String) {
        self.jobs.push(Job {
            id,
            kind,
            title,
            state: JobState::Queued,
            fraction: 0.0,
            eta: None,
            detail: String::new(),
        });
        let done = self.jobs.iter().filter(|job| !job.is_active()).count();
        let mut drop = done.saturating_sub(Self::FINISHED_JOBS);
        self.jobs.retain(|job| {
            let gone = !job.is_active() && drop > 0;
            drop -= usize::from(gone);
            !gone
        });
    }

    pub fn log(&mut self, error: bool, text: impl Into<String>) {
        if self.log.len() >= Self::LOG_LINES {
            self.log.pop_front();
        }
        self.log.push_back(LogLine {
            at: self.started.elapsed(),
            error,
            text: text.into(),
        });
    }

    /// Takes in what an event says of jobs, cells, curves and points. (What follows from an event is the session's to decide.)
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Ended
            | Event::Opened { .. }
            | Event::Hashed { .. }
            | Event::Unsound { .. }
            | Event::Text { .. }
            | Event::Confirmed { .. }
            | Event::Stopped { .. } => {}
            Event::NotKept { message, .. } => self.log(true, message.clone()),
            Event::Runtime { found, .. } => {
                match found {
                    Ok(runtime) => self.log(
                        false,
                        format!(
                            "ONNX Runtime {}: {} ({})",
                            runtime.version,
                            runtime.library.display(),
                            runtime.found_by
                        ),
                    ),
                    Err(why) => self.log(true, why.clone()),
                }
                self.runtime = Some(found.clone());
            }
            Event::Started { job, title } => {
                if let Some(job) = self.job_mut(*job) {
                    job.state = JobState::Running;
                    // The session's own title says more (which split, which plan).
                    if job.title.is_empty() {
                        job.title.clone_from(title);
                    }
                }
            }
            Event::Progress {
                job,
                fraction,
                eta,
                detail,
            } => {
                if let Some(job) = self.job_mut(*job) {
                    job.state = JobState::Running;
                    job.fraction = fraction.clamp(0.0, 1.0);
                    job.eta = *eta;
                    job.detail.clone_from(detail);
                }
            }
            Event::Cells { cells, .. } => self.add_cells(cells.iter().cloned()),
            Event::Interrupted { runs, .. } => self.interrupted.clone_from(runs),
            Event::Epochs { kept, .. } => self.runs.set_kept(kept),
            Event::Note { message, .. } => self.log(false, message.clone()),
            Event::Curve { job, point } => {
                // Exports and judgements that have to train again draw nothing.
                let job = self.jobs.iter().find(|known| known.id == *job);
                if let Some(job) = job.filter(|job| job.kind == JobKind::Distil) {
                    self.runs.take_curve(job, *point);
                }
            }
            Event::Point(point) => {
                self.runs.measured(point);
                self.add_point((**point).clone());
            }
            Event::Inspected { inspection, .. } => {
                self.inspection = Some(Arc::new((**inspection).clone()));
            }
            Event::InputInspected { job, inspection } => {
                if let Some(reading) = &mut self.reading {
                    reading.counted(*job, inspection);
                }
            }
            Event::Foreseen { job, execution } => {
                if let Some(foresight) = &mut self.foresight {
                    foresight.answered(*job, execution.clone());
                    self.foresight_version += 1;
                }
            }
            Event::Written { path, note, .. } => {
                let note = if note.is_empty() {
                    String::new()
                } else {
                    format!(" · {note}")
                };
                self.log(false, format!("Wrote {}{note}", path.display()));
            }
            Event::Paused { job } => self.set_paused(*job, true),
            Event::Resumed { job } => self.set_paused(*job, false),
            Event::Finished { job } => self.end(*job, JobState::Finished),
            Event::Cancelled { job } => {
                self.not_counted(*job, "Not counted: cancelled.");
                self.end(*job, JobState::Cancelled);
                let line = self
                    .job(*job)
                    .filter(|job| job.is_noteworthy())
                    .map(|job| format!("{} cancelled; what was finished is kept", job.title));
                if let Some(line) = line {
                    self.log(false, line);
                }
            }
            Event::Failed { job, message } => {
                self.not_counted(*job, message);
                self.end(*job, JobState::Failed(message.clone()));
                self.log(true, message.clone());
            }
            Event::Log { message } => self.log(false, message.clone()),
        }
    }

    fn set_paused(&mut self, job: JobId, paused: bool) {
        let Some(job) = self.job_mut(job) else { return };
        let (state, line) = match paused {
            true => (JobState::Paused, format!("{} paused", job.title)),
            false => (JobState::Running, format!("{} goes on", job.title)),
        };
        job.state = state;
        job.eta = None;
        self.log(false, line);
    }

    /// The runtime's answer for an exported file, at the points that it is of: those judged on the same samples. How many they are.
    pub fn add_pair(&mut self, model_sha256: &str, pair: &RuntimePair) -> usize {
        let mut found = 0;
        for named in &mut self.points {
            let metrics = &named.point.metrics;
            if named.point.model_sha256 == model_sha256
                && metrics.split == pair.split
                && metrics.top1.n == pair.n
            {
                Arc::make_mut(&mut named.point).confirmed = Some(pair.clone());
                found += 1;
            }
        }
        self.points_version += u64::from(found > 0);
        found
    }

    /// A description of a target of one's own is read (again).
    pub fn forget_target(&mut self, name: &str) {
        self.targets.remove(name);
        self.targets_version += 1;
    }

    /// A description of a target of one's own was read, or could not be.
    pub fn set_target(&mut self, name: String, target: Result<Target, String>) {
        self.targets.insert(name, target.map(Arc::new));
        self.targets_version += 1;
    }

    fn not_counted(&mut self, job: JobId, why: &str) {
        if let Some(reading) = &mut self.reading {
            reading.failed(job, why);
        }
        if let Some(foresight) = &mut self.foresight {
            self.foresight_version += u64::from(foresight.failed(job));
        }
    }

    fn job_mut(&mut self, id: JobId) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.id == id)
    }

    fn end(&mut self, id: JobId, state: JobState) {
        if let Some(job) = self.job_mut(id) {
            job.state = state;
            job.eta = None;
        }
    }
}
