//! A session: the state, the engine behind it, and what each command does. Knows nothing of a window, so tests drive the
//! real thing without one.

mod confirm;
mod edits;
mod events;
mod interrupted;
mod opening;
mod targets;
mod work;

use super::files;
use crate::{
    commands::Command,
    state::{
        AfterSave, Dialog, Document, JobKind, JobState, NoticeKind, PointId, Sort, SortKey, State,
        Tab, UNTOUCHED,
    },
};
use crossbeam_channel::{Receiver, Sender};
use limbeck_engine::{
    compress::PruneSchedule,
    compress::{LayerSetting, QuantScheme},
    data::SplitName,
    graph::LayerId,
    jobs::{Command as Job, Engine, Event, ExportFormat, JobId, Waker},
    project::ProjectFile,
    recipe::{Interrupted, Recipe, Step},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

/// How much is measured where the user does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Samples of the search split behind an edit's point.
    pub edit_limit: Option<usize>,
    /// Samples of the search split behind a cell of the map.
    pub map_limit: Option<usize>,
    /// Starts measuring the map when a model with data is opened.
    pub map_at_once: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            edit_limit: Some(1_000),
            map_limit: Some(1_000),
            map_at_once: true,
        }
    }
}

/// What only a window can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The system's file picker for this dialog.
    Browse(Dialog),
    Quit,
}

/// What is to be done when a job has ended well.
#[derive(Debug)]
enum Then {
    /// A model was asked for; what to lay over it once it is open.
    Opened(Overlay),
    Data,
    ReadProject,
    ReadRecipe,
    /// The plan was exported, and its file is to be held against the runtime: its steps and seed.
    Exported(Vec<Step>, u64),
    /// A point's file was held against the runtime.
    Confirmed(PointId),
    /// The description of a target of one's own, by the name that the scheme has for it.
    ReadTarget(String),
    /// What is safe on disk once the project is written.
    Saved {
        path: PathBuf,
        document: Box<Document>,
        points: (usize, usize),
        after: Option<AfterSave>,
    },
    /// A plan was measured on a split; the original is to be measured there as well if it was not.
    Measured(SplitName),
    /// A plan was distilled and judged on a split.
    Distilled(SplitName),
    /// A distillation was cancelled, and its best epoch goes on being judged.
    Stopped,
    Nothing,
}

/// What is laid over a newly opened model.
#[derive(Debug)]
enum Overlay {
    Nothing,
    Project(PathBuf, Box<ProjectFile>),
    Recipe(PathBuf, Box<Recipe>),
}

/// A layer with what is asked of it: setting, scheme, version of the model.
type Looked = (LayerId, LayerSetting, QuantScheme, u64);

/// See the module's first lines.
pub struct Session {
    pub state: State,
    pub settings: Settings,
    commands: Sender<Job>,
    events: Receiver<Event>,
    /// The thread behind the channels, shut down with the session; none in tests that play the engine themselves.
    _engine: Option<Engine>,
    next_job: u64,
    then: BTreeMap<JobId, Then>,
    /// The original is wanted on the whole search split: what a distillation's epochs are compared with.
    original_wanted: bool,
    /// The plan whose measurement is under way.
    measuring: Option<(JobId, Vec<Step>, u64)>,
    /// What the engine was last asked to look at: layer, setting, scheme, version of the model; and whose input it was asked to count.
    inspected: Option<Looked>,
    counted: Option<Looked>,
    /// The plan that it was last looked at how it would run.
    foreseen: Option<(u64, u64, u64)>,
    requests: Vec<Request>,
    /// What to go on with when the project is saved.
    after_save: Option<AfterSave>,
    unhashed: Unhashed,
    /// Where distillations keep their checkpoints while there is no project to keep them beside; `None`: nowhere.
    pub runs: Option<PathBuf>,
    /// The interrupted run that goes on once its model is open.
    taking_up: Option<Interrupted>,
    /// The one that was taken up, and its job.
    taken_up: Option<(JobId, PathBuf)>,
    /// Interrupted runs that were discarded or put off, with the number of the first job after that: what was looked for before knows nothing
    /// of it.
    dealt_with: Vec<(PathBuf, JobId)>,
    /// Distillations that keep checkpoints: their end is to be waited for.
    keeping: BTreeSet<JobId>,
    /// The engine was told to end: it is sent nothing more, and no command is taken that would want something of it.
    ending: bool,
}

/// What waits for the hash of a large model, which is read after it was opened.
#[derive(Default)]
struct Unhashed {
    /// Job that opened the model.
    job: Option<JobId>,
    /// A project to save.
    save: Option<(PathBuf, Option<AfterSave>)>,
    /// A project's points and cells, and whether they hold of this model.
    numbers: Option<Box<ProjectFile>>,
    /// Why there will be no hash, and what to do.
    failed: Option<String>,
}

impl Session {
    /// Starts the engine; `waker` is called (from its thread) whenever there are events to [`Session::drain`].
    pub fn start(waker: Waker) -> Self {
        let engine = Engine::start(waker);
        let mut session = Self::connect(engine.commands.clone(), engine.events.clone());
        session._engine = Some(engine);
        session
    }

    /// A session with whatever answers at the other end of the channels.
    pub fn connect(commands: Sender<Job>, events: Receiver<Event>) -> Self {
        Self {
            state: State::default(),
            settings: Settings::default(),
            commands,
            events,
            _engine: None,
            next_job: 1,
            then: BTreeMap::new(),
            original_wanted: false,
            measuring: None,
            inspected: None,
            counted: None,
            foreseen: None,
            requests: Vec::new(),
            after_save: None,
            unhashed: Unhashed::default(),
            runs: None,
            taking_up: None,
            taken_up: None,
            dealt_with: Vec::new(),
            keeping: BTreeSet::new(),
            ending: false,
        }
    }

    /// What only the window can do, since the last call.
    pub fn take_requests(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.requests)
    }

    /// Carries a command out. One that cannot be done now says why in a notice. While the engine ends only [`Command::Quit`] is: the
    /// window shows that it closes, and what was changed now would be lost.
    pub fn run(&mut self, command: Command) {
        if self.ending && !matches!(command, Command::Quit | Command::DismissNotice(_)) {
            return;
        }
        if let Err(reason) = command.enabled(&self.state) {
            self.state.notify(NoticeKind::Warning, reason);
            return;
        }
        self.execute(command);
        self.settle();
    }

    /// Takes in all events that wait. True if there were any.
    pub fn drain(&mut self) -> bool {
        let mut any = false;
        while let Ok(event) = self.events.try_recv() {
            any = true;
            self.take(event);
        }
        if any {
            self.settle();
        }
        any
    }

    /// Waits for the next event and takes it in; false when none came in time. For use without a window.
    pub fn wait(&mut self, timeout: std::time::Duration) -> bool {
        match self.events.recv_timeout(timeout) {
            Ok(event) => {
                self.take(event);
                self.settle();
                true
            }
            Err(_) => false,
        }
    }

    fn settle(&mut self) {
        if self.ending {
            self.state.refresh();
            return;
        }
        self.read_own_target();
        self.state.refresh();
        self.inspect();
        self.foresee();
        self.measure_original();
    }

    fn execute(&mut self, command: Command) {
        if command.leaves_for_another() {
            self.taking_up = None;
        }
        match command {
            Command::Show(dialog) => {
                self.state.view.palette_open = false;
                self.state.view.dialog = Some(dialog);
            }
            Command::CloseDialog => {
                self.state.view.dialog = None;
                self.after_save = None;
            }
            Command::Browse => {
                if let Some(dialog) = self.state.view.dialog.clone() {
                    self.requests.push(Request::Browse(dialog));
                }
            }
            Command::BrowseTarget => self.requests.push(Request::Browse(Dialog::Scheme)),
            Command::ReadTarget(name) => self.read_target(name),
            Command::BrowseData => self.requests.push(Request::Browse(Dialog::OpenTask)),
            Command::Open(path) => self.guarded(AfterSave::Open(path)),
            Command::OpenSample => self.guarded(AfterSave::OpenSample),
            // Asked for again while a checkpoint is being taken.
            Command::Quit if self.ending => self.requests.push(Request::Quit),
            Command::Quit => self.guarded(AfterSave::Quit),
            Command::DiscardAndGoOn => {
                if let Some(Dialog::Unsaved(after)) = self.state.view.dialog.take() {
                    self.go_on(after);
                }
            }
            Command::OpenModel { model, task } => {
                self.guarded(AfterSave::OpenModel { model, task });
            }
            Command::OpenTask(task) => self.open_task(task),
            Command::OpenProject(path) => self.read(path, Then::ReadProject),
            Command::OpenRecipe(path) => self.read(path, Then::ReadRecipe),
            Command::SaveProject => match self.state.project_path.clone() {
                Some(path) => self.save(path),
                None => {
                    // Where an unsaved-changes dialog asked for it, go on after saving.
                    if let Some(Dialog::Unsaved(after)) = self.state.view.dialog.take() {
                        self.after_save = Some(after);
                    }
                    self.state.view.dialog = Some(Dialog::SaveProject);
                }
            },
            Command::SaveProjectAs(path) => self.save(files::with_suffix(path, ".limbeck.ron")),
            Command::ExportModel {
                format,
                path,
                confirm,
            } => {
                self.state.view.dialog = None;
                if format == ExportFormat::Plan {
                    self.state.view.confirm_exports = confirm;
                }
                let path = files::with_suffix(path, ".onnx");
                if let Some(recipe) = self.state.recipe(true) {
                    let asked =
                        confirm && format == ExportFormat::Plan && self.state.measurable().is_ok();
                    let then = match asked {
                        true => Then::Exported(recipe.steps.clone(), recipe.seed),
                        false => Then::Nothing,
                    };
                    let job = self.job(JobKind::Export, "Export", then);
                    self.send(Job::Export {
                        job,
                        recipe: Arc::new(recipe),
                        format,
                        path,
                    });
                }
            }
            Command::ExportRecipe(path) => self.export_recipe(files::with_suffix(path, ".ron")),
            Command::SetPrecision { layers, precision } => {
                self.look_at(&layers);
                self.edit_layers(&layers, |setting| setting.precision = precision);
            }
            Command::SetRatio { layers, ratio } => {
                self.look_at(&layers);
                let ratio = limbeck_engine::compress::Ratio(ratio.0.clamp(0.0, 0.99));
                self.state.history.begin(&self.state.document);
                for layer in self.ratio_targets(&layers) {
                    let mut setting = self.state.document.setting(&layer);
                    setting.sparsity = match self.state.document.channels {
                        true => ratio,
                        false => self.state.document.shrinking.pattern.nearest(ratio),
                    };
                    self.state.document.set(&layer, setting);
                }
            }
            Command::CommitEdit => {
                self.state.history.commit(&self.state.document);
                self.measure_edit();
            }
            Command::ResetLayers(layers) => self.edit_layers(&layers, |s| *s = UNTOUCHED),
            Command::ApplyPreset(preset) => self.apply_preset(preset),
            Command::TogglePin(layers) => {
                let all = layers.iter().all(|layer| self.state.is_pinned(layer));
                self.edit(|document| {
                    for layer in layers {
                        if all {
                            document.pins.remove(&layer);
                        } else {
                            document.pins.insert(layer);
                        }
                    }
                });
            }
            Command::SetScheme(scheme) => self.edit(|document| document.scheme = scheme),
            Command::SetMethods(methods) => self.edit(|document| document.methods = methods),
            Command::UseMethod(kind) => {
                self.edit(|document| document.methods = document.methods_with(kind));
            }
            Command::SetMethodOn { kind, layers, on } => self.use_on(kind, &layers, on),
            Command::SetShrinking {
                channels,
                shrinking,
            } => self.edit(|document| {
                document.channels = channels;
                document.shrinking = *shrinking;
            }),
            Command::TakeBlock { layers, out } => self.take_block(&layers, out),
            Command::ShareValues { layers, on } => self.share_on(&layers, on),
            Command::SetPruning(channels) => self.edit(|document| document.channels = channels),
            Command::SetGoals(goals) => self.edit(|document| document.goals = goals),
            Command::SetDistil(distil) => self.edit(|document| {
                if distil.is_none() {
                    document.trained.clear();
                }
                document.distil = distil;
            }),
            Command::TrainFromPlan => self.edit(|document| {
                document.trained.clear();
                // The first training, which is gone, was as long as its schedule needs; this one may not be.
                let epochs = document.distil.as_ref().map_or(0, |s| s.trained_epochs());
                let fits = |schedule: &PruneSchedule| schedule.end() <= epochs as f64;
                document.shrinking.schedule = document.shrinking.schedule.filter(fits);
            }),
            Command::SetSeed(seed) => self.edit(|document| document.seed = seed),
            Command::RestorePoint(id) => {
                let recipe = self.state.mirror.point(id).map(|p| p.point.recipe.clone());
                if let Some(recipe) = recipe {
                    self.take_plan(&recipe, false);
                }
            }
            Command::Undo => {
                self.state.history.undo(&mut self.state.document);
                self.measure_edit();
            }
            Command::Redo => {
                self.state.history.redo(&mut self.state.document);
                self.measure_edit();
            }
            Command::MeasurePlan(split) => self.measure(split),
            Command::StartDistil(settings) => {
                let schedule = self.state.document.shrinking.schedule;
                self.distil(settings, schedule);
            }
            Command::StartDistilWith { settings, schedule } => self.distil(settings, schedule),
            Command::NewRun(run) => {
                let recipe = self.state.mirror.runs.recipe(run).cloned();
                if recipe.is_some_and(|recipe| self.take_plan(&recipe, false)) {
                    self.state.view.dialog = Some(Dialog::Distil);
                }
            }
            Command::NewRunFrom { run, epoch } => {
                let recipe = self.state.mirror.runs.from_epoch(run, epoch);
                if recipe.is_some_and(|recipe| self.take_plan(&recipe, false)) {
                    self.state.view.dialog = Some(Dialog::Distil);
                }
            }
            Command::TakeUp(folder) => self.take_up(&folder),
            Command::DiscardRun(folder) => self.discard_run(folder),
            Command::Confirm(point) => self.confirm(point),
            Command::ConfirmPlan => {
                let point = self.state.selected_point();
                if let Some(id) = point.or(self.state.exported_point()).map(|p| p.id) {
                    self.confirm(id);
                }
            }
            Command::SetRuntime(library) => self.find_runtime(library),
            Command::StartMap => self.map(self.state.view.colour_by.direction()),
            Command::PauseJob(job) => self.send(Job::Pause(job)),
            Command::ResumeJob(job) => {
                self.send(Job::Resume(job));
                // Until the engine has ended what it does meanwhile.
                if let Some(job) = self.state.mirror.jobs.iter_mut().find(|j| j.id == job) {
                    job.state = JobState::Queued;
                }
            }
            Command::CancelJob(job) => {
                if self.state.job(job).map(|job| job.kind) == Some(JobKind::Measure) {
                    self.original_wanted = false;
                }
                self.send(Job::Cancel(job));
            }
            Command::CancelAll => {
                self.original_wanted = false;
                let active: Vec<JobId> = self.state.active_jobs().map(|job| job.id).collect();
                for job in active {
                    self.send(Job::Cancel(job));
                }
            }
            view => self.look(view),
        }
    }

    /// Commands that change only what is looked at.
    fn look(&mut self, command: Command) {
        let view = &mut self.state.view;
        match command {
            Command::Select { layer, mode } => self.select(layer, mode),
            Command::SelectAll => {
                view.selection = self
                    .state
                    .derived
                    .visible
                    .iter()
                    .filter_map(|row| self.state.mirror.layer_ids().get(*row).cloned())
                    .collect();
            }
            Command::ClearSelection => view.selection.clear(),
            Command::MoveFocus { rows, extend } => self.move_focus(rows, extend),
            Command::SelectPoint(point) => view.selected_point = point,
            Command::SelectRun(run) => {
                view.run = Some(run);
                view.epoch = None;
            }
            Command::SelectEpoch { run, epoch } => {
                view.run = Some(run);
                view.epoch = Some((run, epoch));
                view.tab = Tab::Training;
            }
            Command::SetSort(key) => {
                let old = view.sort;
                // Numbers are looked at from the top, words from A.
                let first = Sort {
                    key,
                    descending: !matches!(
                        key,
                        SortKey::Graph | SortKey::Name | SortKey::Op | SortKey::Runs
                    ),
                };
                view.sort = if old.key != key {
                    first
                } else if old == first {
                    Sort {
                        key,
                        descending: !first.descending,
                    }
                } else {
                    Sort::default()
                };
            }
            Command::SetFilter(filter) => view.filter = filter,
            Command::SetColourBy(by) => view.colour_by = by,
            Command::SetTab(tab) => {
                view.tab = tab;
                view.epoch = None;
            }
            Command::SetPlotAxis(axis) => view.axis = axis,
            Command::SetInspected(what) => {
                view.inspected = what;
                // What came to nothing is tried again; what is known costs nothing.
                self.counted = None;
            }
            Command::SetSplit(split) => view.split = split,
            Command::ToggleTheme => {
                use crate::state::ThemeChoice::{Dark, Light};
                view.theme = match view.theme {
                    Dark => Light,
                    Light => Dark,
                };
            }
            Command::OpenPalette => view.palette_open = true,
            Command::ClosePalette => view.palette_open = false,
            Command::ShowLog(open) => view.log_open = open,
            Command::SetShares { layers, plot } => {
                view.layers_share = layers.clamp(0.2, 0.8);
                view.plot_share = plot.clamp(0.2, 0.8);
            }
            Command::SetCheckpoints(every) => view.checkpoint_every = every,
            Command::LeaveRun(folder) => self.deal_with(folder),
            Command::DismissNotice(id) => self.state.notices.retain(|notice| notice.id != id),
            _ => {}
        }
    }

    /// Whether any job waits or runs (tests wait for that to end).
    pub fn is_idle(&self) -> bool {
        !self.state.mirror.jobs.iter().any(|job| job.is_active())
    }
}
