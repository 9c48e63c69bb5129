//! A session: the state, the engine behind it, and what each command does. Knows nothing of a window, so tests drive the
//! real thing without one.

use super::files::{self, FileKind};
use crate::{
    commands::{Command, Preset, split_label},
    state::{
        AfterSave, Dialog, Document, JobKind, JobState, NoticeKind, SelectMode, Sort, SortKey,
        State, Tab, UNTOUCHED,
    },
};
use crossbeam_channel::{Receiver, Sender};
use limbeck_engine::{
    compress::{LayerSetting, Precision, QuantScheme},
    data::SplitName,
    graph::LayerId,
    jobs::{Command as Job, Engine, Event, JobId, Waker},
    project::ProjectFile,
    recipe::{self, Recipe, Step},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
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
    /// What is safe on disk once the project is written.
    Saved {
        path: PathBuf,
        document: Box<Document>,
        points: usize,
        after: Option<AfterSave>,
    },
    /// A plan was measured on a split; the original is to be measured there as well if it was not.
    Measured(SplitName),
    Nothing,
}

/// What is laid over a newly opened model.
#[derive(Debug)]
enum Overlay {
    Nothing,
    Project(PathBuf, Box<ProjectFile>),
    Recipe(PathBuf, Box<Recipe>),
}

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
    /// The plan whose measurement is under way.
    measuring: Option<(JobId, Vec<Step>, u64)>,
    inspected: Option<(LayerId, LayerSetting, QuantScheme, u64)>,
    requests: Vec<Request>,
    /// What to go on with when the project is saved.
    after_save: Option<AfterSave>,
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
            measuring: None,
            inspected: None,
            requests: Vec::new(),
            after_save: None,
        }
    }

    /// What only the window can do, since the last call.
    pub fn take_requests(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.requests)
    }

    /// Carries a command out. One that cannot be done now says why in a notice.
    pub fn run(&mut self, command: Command) {
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
        self.state.refresh();
        self.inspect();
    }

    fn execute(&mut self, command: Command) {
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
            Command::Open(path) => self.guarded(AfterSave::Open(path)),
            Command::OpenSample => self.guarded(AfterSave::OpenSample),
            Command::Quit => self.guarded(AfterSave::Quit),
            Command::DiscardAndGoOn => {
                if let Some(Dialog::Unsaved(after)) = self.state.view.dialog.take() {
                    self.go_on(after);
                }
            }
            Command::OpenModel { model, task } => self.open(model, task, Overlay::Nothing),
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
            Command::ExportModel { format, path } => {
                self.state.view.dialog = None;
                let path = files::with_suffix(path, ".onnx");
                if let Some(recipe) = self.state.recipe(true) {
                    let job = self.job(JobKind::Export, "Export", Then::Nothing);
                    self.send(Job::Export {
                        job,
                        recipe: Arc::new(recipe),
                        format,
                        path,
                    });
                }
            }
            Command::ExportRecipe(path) => self.export_recipe(files::with_suffix(path, ".ron")),
            Command::SetPrecision { layers, precision } => self.edit_layers(&layers, |setting| {
                setting.precision = precision;
            }),
            Command::SetRatio { layers, ratio } => {
                let ratio = limbeck_engine::compress::Ratio(ratio.0.clamp(0.0, 0.99));
                self.state.history.begin(&self.state.document);
                for layer in self.targets(&layers) {
                    let mut setting = self.state.document.setting(&layer);
                    setting.sparsity = ratio;
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
            Command::SetGoals(goals) => self.edit(|document| document.goals = goals),
            Command::SetDistil(distil) => self.edit(|document| document.distil = distil),
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
            Command::StartDistil(settings) => self.distil(settings),
            Command::StartMap => self.map(),
            Command::CancelJob(job) => self.send(Job::Cancel(job)),
            Command::CancelAll => {
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
            Command::SetSort(key) => {
                let old = view.sort;
                view.sort = if old.key != key {
                    Sort {
                        key,
                        // Numbers are looked at from the top, words from A.
                        descending: !matches!(key, SortKey::Graph | SortKey::Name | SortKey::Op),
                    }
                } else {
                    Sort {
                        key,
                        descending: !old.descending,
                    }
                };
            }
            Command::SetFilter(filter) => view.filter = filter,
            Command::SetColourBy(by) => view.colour_by = by,
            Command::SetTab(tab) => view.tab = tab,
            Command::SetPlotAxis(axis) => view.axis = axis,
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
            Command::DismissNotice(id) => self.state.notices.retain(|notice| notice.id != id),
            _ => {}
        }
    }

    // ---- files ----

    /// Goes on at once where nothing would be lost, else asks first.
    fn guarded(&mut self, after: AfterSave) {
        // Data for the open model replaces nothing.
        if let AfterSave::Open(path) = &after
            && files::kind(path) == FileKind::Task
        {
            let path = path.clone();
            return self.go_on(AfterSave::Open(path));
        }
        if self.state.is_dirty() {
            self.state.view.dialog = Some(Dialog::Unsaved(after));
        } else {
            self.go_on(after);
        }
    }

    fn go_on(&mut self, after: AfterSave) {
        self.state.view.dialog = None;
        match after {
            AfterSave::Quit => self.requests.push(Request::Quit),
            AfterSave::OpenSample => match files::sample() {
                Some((model, task)) => self.open(model, Some(task), Overlay::Nothing),
                None => self.state.notify(
                    NoticeKind::Warning,
                    "The sample model (sample-models/fashion-resnet) was not found beside the program; use Open… instead",
                ),
            },
            AfterSave::Open(path) => match files::kind(&path) {
                FileKind::Project => self.read(path, Then::ReadProject),
                FileKind::Recipe => self.read(path, Then::ReadRecipe),
                FileKind::Task => self.open_task(path),
                FileKind::Model => self.open(path, None, Overlay::Nothing),
            },
        }
    }

    fn open(&mut self, model: PathBuf, task: Option<PathBuf>, overlay: Overlay) {
        self.state.view.dialog = None;
        let jobs: Vec<JobId> = self
            .state
            .mirror
            .jobs
            .iter()
            .filter(|job| job.is_active())
            .map(|job| job.id)
            .collect();
        for job in jobs {
            self.send(Job::Cancel(job));
        }
        self.measuring = None;
        let title = format!("Open {}", files::short(&model));
        let job = self.job(JobKind::Open, &title, Then::Opened(overlay));
        self.send(Job::Open {
            job,
            model: files::absolute(model),
            task: task.map(files::absolute),
        });
    }

    fn open_task(&mut self, task: PathBuf) {
        self.state.view.dialog = None;
        if self.state.model().is_none() {
            self.state.notify(
                NoticeKind::Warning,
                format!("{} is data: open a model first", task.display()),
            );
            return;
        }
        self.measuring = None;
        let title = format!("Open {}", files::short(&task));
        let job = self.job(JobKind::Open, &title, Then::Data);
        self.send(Job::OpenTask {
            job,
            task: files::absolute(task),
        });
    }

    fn read(&mut self, path: PathBuf, then: Then) {
        self.state.view.dialog = None;
        let job = self.job(JobKind::File, "Read", then);
        self.send(Job::ReadText {
            job,
            path: files::absolute(path),
        });
    }

    fn save(&mut self, path: PathBuf) {
        // The unsaved-changes dialog may have asked for this.
        let mut after = self.after_save.take();
        if let Some(Dialog::Unsaved(next)) = self.state.view.dialog.take() {
            after = Some(next);
        }
        self.state.history.commit(&self.state.document);
        let path = files::absolute(path);
        let Some(project) = super::project::to_file(&self.state, &path) else {
            return;
        };
        match project.to_ron() {
            Ok(text) => {
                let then = Then::Saved {
                    path: path.clone(),
                    document: Box::new(self.state.document.clone()),
                    points: self.state.points().len(),
                    after,
                };
                let job = self.job(JobKind::File, "Save", then);
                self.send(Job::WriteText { job, path, text });
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn export_recipe(&mut self, path: PathBuf) {
        self.state.view.dialog = None;
        self.state.history.commit(&self.state.document);
        let path = files::absolute(path);
        let Some(mut recipe) = self.state.recipe(true) else {
            return;
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        recipe.model = files::relative(&recipe.model, folder);
        recipe.task = files::relative(&recipe.task, folder);
        match recipe.to_ron() {
            Ok(text) => {
                let job = self.job(JobKind::File, "Export recipe", Then::Nothing);
                self.send(Job::WriteText { job, path, text });
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    // ---- edits ----

    /// One edit, one undo step; measures the plan if it changed it.
    fn edit(&mut self, change: impl FnOnce(&mut Document)) {
        self.state.history.commit(&self.state.document);
        self.state.history.begin(&self.state.document);
        change(&mut self.state.document);
        self.state.history.commit(&self.state.document);
        self.measure_edit();
    }

    /// A single layer is meant as it is; of several the pinned ones are skipped.
    fn targets(&self, layers: &[LayerId]) -> Vec<LayerId> {
        layers
            .iter()
            .filter(|layer| layers.len() == 1 || !self.state.is_pinned(layer))
            .filter(|layer| self.state.mirror.layer_index(layer).is_some())
            .cloned()
            .collect()
    }

    fn edit_layers(&mut self, layers: &[LayerId], change: impl Fn(&mut LayerSetting)) {
        let targets = self.targets(layers);
        self.edit(|document| {
            for layer in &targets {
                let mut setting = document.setting(layer);
                change(&mut setting);
                document.set(layer, setting);
            }
        });
    }

    fn apply_preset(&mut self, preset: Preset) {
        let layers = self.state.mirror.layer_ids().to_vec();
        let last = layers.len().saturating_sub(1);
        self.edit(|document| {
            for (at, layer) in layers.iter().enumerate() {
                if document.pins.contains(layer) {
                    continue;
                }
                let outer = at == 0 || at == last;
                let mut setting = document.setting(layer);
                match preset {
                    Preset::All(precision) => {
                        setting.precision = precision;
                        if precision == Precision::Fp32 {
                            setting = UNTOUCHED;
                        }
                    }
                    Preset::Int4Inside if outer => setting.precision = Precision::Int8,
                    Preset::Int4Inside => setting.precision = Precision::Int4,
                    Preset::Pruned(precision, ratio) => {
                        setting.precision = precision;
                        // The first and the last layer are small and mind it most.
                        setting.sparsity = if outer { UNTOUCHED.sparsity } else { ratio };
                    }
                }
                document.set(layer, setting);
            }
        });
    }

    /// Makes a recipe's plan the present one (one undo step). `goals_too`: its goals and scheme's seed as well.
    fn take_plan(&mut self, recipe: &Recipe, goals_too: bool) {
        let resolved = match recipe::resolve(recipe, self.state.layers()) {
            Ok(resolved) => resolved,
            Err(error) => return self.fail(error.to_string()),
        };
        let scheme = recipe.steps.iter().rev().find_map(|step| match step {
            Step::Quantize(step) => Some(step.scheme.clone()),
            _ => None,
        });
        let distil = recipe.steps.iter().rev().find_map(|step| match step {
            Step::Distil(settings) => Some(settings.clone()),
            _ => None,
        });
        let (goals, seed) = (recipe.goals.clone(), recipe.seed);
        self.edit(|document| {
            document.plan.clear();
            for (layer, setting) in &resolved.layers {
                document.set(layer, *setting);
            }
            if let Some(scheme) = scheme {
                document.scheme = scheme;
            }
            document.distil = distil;
            document.seed = seed;
            if goals_too {
                document.goals = goals;
            }
        });
    }

    // ---- work ----

    fn job(&mut self, kind: JobKind, title: &str, then: Then) -> JobId {
        let job = JobId(self.next_job);
        self.next_job += 1;
        self.state.mirror.add_job(job, kind, title.to_owned());
        self.then.insert(job, then);
        job
    }

    fn send(&mut self, command: Job) {
        if self.commands.send(command).is_err() {
            self.fail(
                "The engine has stopped; save the project and start Limbeck again".to_owned(),
            );
        }
    }

    fn fail(&mut self, message: String) {
        self.state.mirror.log(true, message.clone());
        self.state.notify(NoticeKind::Error, message);
    }

    /// After an edit: measures the plan on the search split, unless it is known or under way.
    fn measure_edit(&mut self) {
        self.state.refresh();
        if self.state.measurable().is_err() || self.state.split_len(SplitName::Search) == 0 {
            return;
        }
        let steps = self.state.plan_steps(false).to_vec();
        let seed = self.state.document.seed;
        let known = self.state.points().iter().any(|point| {
            point.split() == SplitName::Search
                && point.point.recipe.steps == steps
                && (steps.is_empty() || point.point.recipe.seed == seed)
        });
        let under_way = self
            .measuring
            .as_ref()
            .is_some_and(|(_, old, old_seed)| *old == steps && *old_seed == seed);
        if known || under_way {
            return;
        }
        let limit = self.settings.edit_limit;
        self.send_measure(SplitName::Search, limit, "Measure");
    }

    /// Measures the plan on a split on demand, all samples of it.
    fn measure(&mut self, split: SplitName) {
        self.state.history.commit(&self.state.document);
        self.state.refresh();
        self.state.view.split = split;
        self.state.view.tab = Tab::TradeOff;
        let title = format!("Measure on {}", split_label(split));
        self.send_measure(split, None, &title);
    }

    fn send_measure(&mut self, split: SplitName, limit: Option<usize>, title: &str) {
        let Some(recipe) = self.state.recipe(false) else {
            return;
        };
        let job = self.job(JobKind::Measure, title, Then::Measured(split));
        self.measuring = Some((job, recipe.steps.clone(), recipe.seed));
        self.send(Job::Measure {
            job,
            recipe: Arc::new(recipe),
            split,
            limit,
        });
    }

    fn distil(&mut self, settings: limbeck_engine::train::DistilSettings) {
        self.state.view.dialog = None;
        self.state.history.commit(&self.state.document);
        self.state.history.begin(&self.state.document);
        self.state.document.distil = Some(settings);
        self.state.history.commit(&self.state.document);
        self.state.refresh();
        let split = if self.state.split_len(SplitName::Holdout) > 0 {
            SplitName::Holdout
        } else {
            SplitName::Search
        };
        let Some(recipe) = self.state.recipe(true) else {
            return;
        };
        let job = self.job(JobKind::Distil, "Distil", Then::Measured(split));
        self.state.view.tab = Tab::Training;
        self.send(Job::Run {
            job,
            recipe: Arc::new(recipe),
            split,
        });
    }

    fn map(&mut self) {
        let known = self.state.mirror.all_cells().cloned().collect();
        let job = self.job(JobKind::Map, "Map", Then::Nothing);
        self.send(Job::Map {
            job,
            known,
            limit: self.settings.map_limit,
        });
    }

    /// Asks for the histogram of the focused layer whenever it, its setting or the scheme changed (not while a slider moves).
    fn inspect(&mut self) {
        if self.state.history.is_open() {
            return;
        }
        let Some(layer) = self.state.focus().map(|layer| layer.id.clone()) else {
            return;
        };
        let setting = self.state.setting(&layer);
        let scheme = self.state.document.scheme.clone();
        let key = (layer, setting, scheme, self.state.mirror.model_version);
        if self.inspected.as_ref() == Some(&key) {
            return;
        }
        self.inspected = Some(key.clone());
        let job = self.job(JobKind::Inspect, "Inspect", Then::Nothing);
        self.send(Job::Inspect {
            job,
            layer: key.0,
            setting: key.1,
            scheme: key.2,
        });
    }

    // ---- events ----

    fn take(&mut self, event: Event) {
        self.state.mirror.take(&event);
        match event {
            Event::Opened { job, info } => self.opened(job, *info),
            Event::Text { job, path, text } => self.text(job, path, &text),
            Event::Written { job, path, note } => match self.then.remove(&job) {
                Some(Then::Saved {
                    path,
                    document,
                    points,
                    after,
                }) => {
                    self.state.saved = *document;
                    self.state.saved_points = points;
                    self.remember(&path);
                    self.state
                        .notify(NoticeKind::Info, format!("Saved {}", path.display()));
                    self.state.project_path = Some(path);
                    if let Some(after) = after {
                        self.go_on(after);
                    }
                }
                _ => {
                    let note = if note.is_empty() {
                        String::new()
                    } else {
                        format!(" · {note}")
                    };
                    self.state
                        .notify(NoticeKind::Info, format!("Wrote {}{note}", path.display()));
                }
            },
            Event::Failed { job, message } => {
                self.ended(job);
                self.state.notify(NoticeKind::Error, message);
            }
            Event::Cancelled { job } => {
                self.ended(job);
            }
            Event::Finished { job } => {
                let then = self.ended(job);
                match then {
                    Some(Then::Opened(_) | Then::Data) if self.settings.map_at_once => {
                        let command = Command::StartMap;
                        self.state.refresh();
                        if command.enabled(&self.state).is_ok() {
                            self.map();
                        }
                    }
                    Some(Then::Measured(split)) => self.measure_baseline(split),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn ended(&mut self, job: JobId) -> Option<Then> {
        if self.measuring.as_ref().is_some_and(|(id, ..)| *id == job) {
            self.measuring = None;
        }
        self.then.remove(&job)
    }

    /// The plot and relative goals want the original on the same split.
    fn measure_baseline(&mut self, split: SplitName) {
        self.state.refresh();
        if self.state.baseline(split).is_some() || self.state.is_busy(JobKind::Measure) {
            return;
        }
        let Some(mut recipe) = self.state.recipe(false) else {
            return;
        };
        recipe.steps.clear();
        let limit = match split {
            SplitName::Search => self.settings.edit_limit,
            _ => None,
        };
        let job = self.job(
            JobKind::Measure,
            &format!("Measure the original on {}", split_label(split)),
            Then::Nothing,
        );
        self.send(Job::Measure {
            job,
            recipe: Arc::new(recipe),
            split,
            limit,
        });
    }

    fn opened(&mut self, job: JobId, info: limbeck_engine::jobs::ModelInfo) {
        for warning in &info.warnings {
            self.state.mirror.log(false, warning.clone());
            self.state.notify(NoticeKind::Warning, warning.clone());
        }
        let overlay = match self.then.get_mut(&job) {
            Some(Then::Data) => {
                self.state.mirror.set_data(info);
                self.state.view.selected_point = None;
                return;
            }
            Some(Then::Opened(overlay)) => std::mem::replace(overlay, Overlay::Nothing),
            _ => Overlay::Nothing,
        };
        let path = info.path.clone();
        self.state.mirror.log(
            false,
            format!("Opened {} ({} layers)", path.display(), info.layers.len()),
        );
        self.state.mirror.set_model(info);
        self.state.document = Document::default();
        self.state.history.clear();
        self.state.project_path = None;
        self.measuring = None;
        let view = &mut self.state.view;
        view.selection.clear();
        view.selected_point = None;
        view.split = SplitName::Search;
        view.filter.clear();
        view.focus = self.state.mirror.layer_ids().first().cloned();
        self.state.mark_saved();
        self.state.refresh();
        match overlay {
            Overlay::Nothing => self.remember(&path),
            Overlay::Project(path, project) => {
                for warning in super::project::lay_over(&mut self.state, *project) {
                    self.state.notify(NoticeKind::Warning, warning);
                }
                self.state.project_path = Some(path.clone());
                self.state.mark_saved();
                self.remember(&path);
            }
            Overlay::Recipe(path, recipe) => {
                self.take_plan(&recipe, true);
                self.state.history.clear();
                self.state.mark_saved();
                self.remember(&path);
            }
        }
    }

    fn text(&mut self, job: JobId, path: PathBuf, text: &str) {
        match self.then.remove(&job) {
            Some(Then::ReadProject) => match ProjectFile::parse(text, &path) {
                Ok(project) => {
                    let here = |p: &Path| path.parent().map_or_else(|| p.into(), |dir| dir.join(p));
                    let model = here(&project.model);
                    let task = project.task.as_deref().map(here);
                    self.open(model, task, Overlay::Project(path, Box::new(project)));
                }
                Err(error) => self.fail(error.to_string()),
            },
            Some(Then::ReadRecipe) => match Recipe::parse(text, &path) {
                Ok(recipe) => {
                    let here = |p: &Path| path.parent().map_or_else(|| p.into(), |dir| dir.join(p));
                    let (model, task) = (here(&recipe.model), here(&recipe.task));
                    self.open(model, Some(task), Overlay::Recipe(path, Box::new(recipe)));
                }
                Err(error) => self.fail(error.to_string()),
            },
            _ => {}
        }
    }

    fn remember(&mut self, path: &Path) {
        let recent = &mut self.state.view.recent;
        recent.retain(|old| old != path);
        recent.insert(0, path.to_owned());
        recent.truncate(10);
    }

    // ---- selection ----

    fn select(&mut self, layer: LayerId, mode: SelectMode) {
        let rows = &self.state.derived.visible;
        let ids = self.state.mirror.layer_ids();
        let view = &mut self.state.view;
        match mode {
            SelectMode::Replace => {
                view.selection = BTreeSet::from([layer.clone()]);
                view.focus = Some(layer);
            }
            SelectMode::Toggle => {
                if !view.selection.remove(&layer) {
                    view.selection.insert(layer.clone());
                }
                view.focus = Some(layer);
            }
            SelectMode::Extend => {
                let place = |wanted: &LayerId| {
                    rows.iter()
                        .position(|row| ids.get(*row).is_some_and(|id| id == wanted))
                };
                let from = view.focus.as_ref().and_then(place);
                match (from, place(&layer)) {
                    (Some(a), Some(b)) => {
                        let (low, high) = (a.min(b), a.max(b));
                        view.selection = rows[low..=high]
                            .iter()
                            .filter_map(|row| ids.get(*row).cloned())
                            .collect();
                    }
                    _ => {
                        view.selection = BTreeSet::from([layer.clone()]);
                        view.focus = Some(layer);
                    }
                }
            }
        }
    }

    fn move_focus(&mut self, by: i32, extend: bool) {
        let rows = &self.state.derived.visible;
        let ids = self.state.mirror.layer_ids();
        if rows.is_empty() {
            return;
        }
        let here = self.state.view.focus.as_ref().and_then(|focus| {
            rows.iter()
                .position(|row| ids.get(*row).is_some_and(|id| id == focus))
        });
        let last = rows.len() as i64 - 1;
        let next = here.map_or(0, |at| (at as i64 + i64::from(by)).clamp(0, last)) as usize;
        let Some(layer) = rows.get(next).and_then(|row| ids.get(*row)).cloned() else {
            return;
        };
        let view = &mut self.state.view;
        if extend {
            view.selection.insert(layer.clone());
        } else {
            view.selection = BTreeSet::from([layer.clone()]);
        }
        view.focus = Some(layer);
    }

    /// Whether any job waits or runs (tests wait for that to end).
    pub fn is_idle(&self) -> bool {
        !self
            .state
            .mirror
            .jobs
            .iter()
            .any(|job| matches!(job.state, JobState::Queued | JobState::Running))
    }
}
