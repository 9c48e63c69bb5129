//! The one enum that menus, shortcuts, the palette, panels and tests all send. A command says what is wanted; the session
//! (`app::session`) carries it out.

mod enabled;

use crate::state::{
    ColourBy, Curves, Dialog, Inspected, JobKind, JobState, PlotAxis, PointId, SelectMode, SortKey,
    State, Tab,
};
use egui::{Key, KeyboardShortcut, Modifiers};
use limbeck_engine::{
    compress::{Precision, PruneSchedule, QuantScheme, Ratio},
    data::SplitName,
    graph::LayerId,
    jobs::{ExportFormat, JobId},
    recipe::{CheckpointEvery, Goal, MethodKind, Shrinking, Step},
    train::DistilSettings,
};
use std::path::PathBuf;

/// Why codes cannot be chosen in a plan that trains.
pub const TRAINED: &str =
    "Training would move the weights off the codes chosen: take distillation out of the plan first";

/// Why the two do not go together.
pub const BEFORE_QUANTISING: &str = "Learned step sizes need quantised weights, and gradual pruning trains before they are quantised: switch one of the two off";

/// Whole plans at a stroke; pinned layers keep what they have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Preset {
    /// Every layer at one precision, pruning left as it is.
    All(Precision),
    /// Every layer at one precision, first and last layer excepted, pruned by one ratio.
    Pruned(Precision, Ratio),
    /// int4 everywhere, int8 for the first and the last layer.
    Int4Inside,
}

impl Preset {
    pub const ALL: [Self; 6] = [
        Self::All(Precision::Fp32),
        Self::All(Precision::Fp16),
        Self::All(Precision::Int8),
        Self::Int4Inside,
        Self::Pruned(Precision::Fp32, Ratio(0.5)),
        Self::Pruned(Precision::Int8, Ratio(0.5)),
    ];

    pub fn label(self) -> String {
        match self {
            Self::All(precision) => format!("All {}", precision_label(precision)),
            Self::Int4Inside => "int4, first and last int8".into(),
            Self::Pruned(precision, ratio) => format!(
                "{} + {:.0} % pruned",
                precision_label(precision),
                ratio.0 * 100.0
            ),
        }
    }
}

pub fn precision_label(precision: Precision) -> &'static str {
    precision.label()
}

/// Everything one can ask of the workbench.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    // ---- files ----
    /// Opens the dialog (file picker or path field).
    Show(Dialog),
    CloseDialog,
    /// The system's file picker for the open dialog; its answer comes back as a path in the dialog.
    Browse,
    /// The system's file picker for labelled data, where the open dialog has a second field for it.
    BrowseData,
    /// The system's file picker for the description of a target of one's own.
    BrowseTarget,
    /// Reads the description of a target of one's own (a path that ends in `.ron`).
    ReadTarget(String),
    /// Whatever it is by its name: model, `task.ron`, project (`.limbeck.ron`) or recipe.
    Open(PathBuf),
    OpenModel {
        model: PathBuf,
        task: Option<PathBuf>,
    },
    OpenTask(PathBuf),
    OpenProject(PathBuf),
    OpenRecipe(PathBuf),
    OpenSample,
    /// To the path it has, else the dialog asks for one.
    SaveProject,
    SaveProjectAs(PathBuf),
    ExportModel {
        format: ExportFormat,
        path: PathBuf,
        /// Hold the file against the deployment runtime afterwards (a plan's only).
        confirm: bool,
    },
    ExportRecipe(PathBuf),
    Quit,
    /// Quits or opens what was asked for, unsaved changes or not.
    DiscardAndGoOn,

    // ---- edits of the document ----
    /// At once, one undo step. Several layers: a bulk edit, pinned ones are skipped.
    SetPrecision {
        layers: Vec<LayerId>,
        precision: Precision,
    },
    /// Live, while a slider moves; [`Command::CommitEdit`] on release makes the undo step. Several layers: a bulk edit.
    SetRatio {
        layers: Vec<LayerId>,
        ratio: Ratio,
    },
    /// Ends a live edit and measures the plan.
    CommitEdit,
    /// Back to fp32, unpruned.
    ResetLayers(Vec<LayerId>),
    TogglePin(Vec<LayerId>),
    ApplyPreset(Preset),
    SetScheme(QuantScheme),
    /// The plan's methods, as steps in their order.
    SetMethods(Vec<Step>),
    /// Puts a method into the plan with its usual settings, where it is not there yet.
    UseMethod(MethodKind),
    /// Uses a method of the plan on layers, or not.
    SetMethodOn {
        kind: MethodKind,
        layers: Vec<LayerId>,
        on: bool,
    },
    /// Pruning takes whole channels out (true), or sets single weights to zero.
    SetPruning(bool),
    /// How pruning goes, and what else makes the network smaller.
    SetShrinking {
        channels: bool,
        shrinking: Box<Shrinking>,
    },
    /// Takes the residual block of exactly these layers out, or leaves it in.
    TakeBlock {
        layers: Vec<LayerId>,
        out: bool,
    },
    /// Lets the layers' weights share values as the plan's others do, or not.
    ShareValues {
        layers: Vec<LayerId>,
        on: bool,
    },
    SetGoals(Vec<Goal>),
    /// Distillation in the plan, or not.
    SetDistil(Option<DistilSettings>),
    SetSeed(u64),
    /// Makes the plan that gave a point the present plan.
    RestorePoint(PointId),
    Undo,
    Redo,

    // ---- selection and view ----
    Select {
        layer: LayerId,
        mode: SelectMode,
    },
    SelectAll,
    ClearSelection,
    /// Moves the focus by rows of the table: −1 up, 1 down; `extend`: the selection grows.
    MoveFocus {
        rows: i32,
        extend: bool,
    },
    SelectPoint(Option<PointId>),
    /// The distillation whose curves stand out.
    SelectRun(JobId),
    /// The end of an epoch (from 1) of a distillation, which stands out.
    SelectEpoch {
        run: JobId,
        epoch: usize,
    },
    /// The same key again turns the order round; the model's order after that.
    SetSort(SortKey),
    SetFilter(String),
    SetColourBy(ColourBy),
    SetTab(Tab),
    SetPlotAxis(PlotAxis),
    SetInspected(Inspected),
    /// Split whose points the plot shows.
    SetSplit(SplitName),
    ToggleTheme,
    OpenPalette,
    ClosePalette,
    ShowLog(bool),
    /// Shares of the window, from dragging a divider.
    SetShares {
        layers: f32,
        plot: f32,
    },
    DismissNotice(u64),

    // ---- work ----
    /// Judges the plan (without distillation) on a split, all of it for the holdout.
    MeasurePlan(SplitName),
    /// Puts distillation with these settings into the plan, runs it in the background and judges on the holdout.
    StartDistil(DistilSettings),
    /// The same, weights pruned by this schedule meanwhile; `None`: at once.
    StartDistilWith {
        settings: DistilSettings,
        schedule: Option<PruneSchedule>,
    },
    /// Brings a distillation's plan and settings back, to be changed in the dialog and run anew.
    NewRun(JobId),
    /// The same with the network at the end of an epoch (from 1) to begin with: the recipe has both trainings.
    NewRunFrom {
        run: JobId,
        epoch: usize,
    },
    /// The plan's distillation trains the plan itself, and goes on from no other.
    TrainFromPlan,
    /// Goes on with the interrupted run in this folder, its model opened first where another is open.
    TakeUp(PathBuf),
    /// Removes the checkpoints of the interrupted run in this folder.
    DiscardRun(PathBuf),
    /// Says no more of it until a model is opened again.
    LeaveRun(PathBuf),
    /// How often distillations keep a checkpoint.
    SetCheckpoints(CheckpointEvery),
    /// Measures the cells of the sensitivity map not known yet.
    StartMap,
    /// Holds a point's exported file against ONNX Runtime, on the samples that the point was judged on.
    Confirm(PointId),
    /// The same of the selected point, else of the present plan's.
    ConfirmPlan,
    /// Where ONNX Runtime lies (library or folder), and looks for it; `None`: in the usual places.
    SetRuntime(Option<PathBuf>),
    /// A training stops at its next mini-batch and keeps its state.
    PauseJob(JobId),
    ResumeJob(JobId),
    CancelJob(JobId),
    CancelAll,
}

impl Command {
    /// What menus and the palette call it. Sentence case; `…` on what opens a dialog.
    pub fn label(&self) -> String {
        match self {
            Self::Show(Dialog::Open) => "Open…".into(),
            Self::Show(Dialog::OpenTask) => "Open data…".into(),
            Self::Show(Dialog::SaveProject) => "Save project as…".into(),
            Self::Show(Dialog::ExportModel) => "Export model…".into(),
            Self::Show(Dialog::ExportRecipe) => "Export recipe…".into(),
            Self::Show(Dialog::Distil) => "Distil…".into(),
            Self::Show(Dialog::Goals) => "Goals…".into(),
            Self::Show(Dialog::Scheme) => "Quantisation scheme…".into(),
            Self::Show(Dialog::Shrink) => "Pruning and sharing…".into(),
            Self::Show(Dialog::Methods) => "Quantisation methods…".into(),
            Self::Show(Dialog::Runtime) => "ONNX Runtime…".into(),
            Self::Show(Dialog::About) => "About Limbeck…".into(),
            Self::Show(Dialog::Unsaved(_)) => "Unsaved changes…".into(),
            Self::CloseDialog => "Close dialog".into(),
            Self::Browse | Self::BrowseData | Self::BrowseTarget => "Browse…".into(),
            Self::ReadTarget(path) => format!("Read the target {path}"),
            Self::Open(path)
            | Self::OpenModel { model: path, .. }
            | Self::OpenTask(path)
            | Self::OpenProject(path)
            | Self::OpenRecipe(path) => format!("Open {}", path.display()),
            Self::OpenSample => "Open the sample model".into(),
            Self::SaveProject => "Save project".into(),
            Self::SaveProjectAs(_) => "Save project as…".into(),
            Self::ExportModel { .. } => "Export model".into(),
            Self::ExportRecipe(_) => "Export recipe".into(),
            Self::Quit => "Quit".into(),
            Self::DiscardAndGoOn => "Discard changes".into(),
            Self::SetPrecision { precision, .. } => {
                format!("Set precision to {}", precision_label(*precision))
            }
            Self::SetRatio { ratio, .. } => format!("Prune {:.0} %", ratio.0 * 100.0),
            Self::CommitEdit => "Apply".into(),
            Self::ResetLayers(_) => "Leave as they are (fp32, unpruned)".into(),
            Self::TogglePin(_) => "Pin or unpin".into(),
            Self::ApplyPreset(preset) => format!("Plan: {}", preset.label()),
            Self::SetScheme(_) => "Set quantisation scheme".into(),
            Self::SetMethods(_) => "Set quantisation methods".into(),
            Self::SetShrinking { .. } => "Set pruning and sharing".into(),
            Self::TakeBlock { out: true, .. } => "Take the residual block out".into(),
            Self::TakeBlock { out: false, .. } => "Leave the residual block in".into(),
            Self::ShareValues { on: true, .. } => "Let weights share values".into(),
            Self::ShareValues { on: false, .. } => "Let weights keep their own values".into(),
            Self::UseMethod(kind) => format!("Use {}", kind.word()),
            Self::SetMethodOn { kind, on, .. } => {
                let word = if *on { "Use" } else { "Don't use" };
                format!("{word} {} on these layers", kind.word())
            }
            Self::SetPruning(true) => "Prune whole channels: smaller and faster".into(),
            Self::SetPruning(false) => "Prune single weights: masked zeros".into(),
            Self::SetGoals(_) => "Set goals".into(),
            Self::SetDistil(None) => "Take distillation out of the plan".into(),
            Self::SetDistil(Some(_)) => "Put distillation into the plan".into(),
            Self::SetSeed(seed) => format!("Set seed {seed}"),
            Self::RestorePoint(_) => "Restore this plan".into(),
            Self::Undo => "Undo".into(),
            Self::Redo => "Redo".into(),
            Self::Select { .. } => "Select".into(),
            Self::SelectAll => "Select all layers".into(),
            Self::ClearSelection => "Clear selection".into(),
            Self::MoveFocus { rows, .. } if *rows < 0 => "Previous layer".into(),
            Self::MoveFocus { .. } => "Next layer".into(),
            Self::SelectPoint(_) => "Select point".into(),
            Self::SelectRun(_) => "Show run".into(),
            Self::SelectEpoch { epoch, .. } => format!("Pick epoch {epoch}"),
            Self::SetSort(key) => format!("Sort layers by {}", sort_label(*key)),
            Self::SetFilter(_) => "Filter layers".into(),
            Self::SetColourBy(by) => format!("Colour by {}", by.label()),
            Self::SetTab(Tab::TradeOff) => "Show trade-off".into(),
            Self::SetTab(Tab::Training) => "Show training".into(),
            Self::SetPlotAxis(PlotAxis::Size) => "Plot against size".into(),
            Self::SetPlotAxis(PlotAxis::Macs) => "Plot against MACs".into(),
            Self::SetInspected(Inspected::Weights) => "Inspect weights".into(),
            Self::SetInspected(Inspected::Input) => "Inspect what a layer reads".into(),
            Self::SetSplit(split) => format!("Show points on {}", split_label(*split)),
            Self::ToggleTheme => "Switch theme: dark, light".into(),
            Self::OpenPalette => "Search commands".into(),
            Self::ClosePalette => "Close search".into(),
            Self::ShowLog(true) => "Show log".into(),
            Self::ShowLog(false) => "Hide log".into(),
            Self::SetShares { .. } => "Resize panels".into(),
            Self::DismissNotice(_) => "Dismiss".into(),
            Self::MeasurePlan(split) => format!("Measure on {}", split_label(*split)),
            Self::StartDistil(_) | Self::StartDistilWith { .. } => "Start distillation".into(),
            Self::NewRun(_) => "New run from this one's plan and settings…".into(),
            Self::NewRunFrom { epoch, .. } => format!("New run from epoch {epoch}…"),
            Self::TrainFromPlan => "Train from the plan itself".into(),
            Self::TakeUp(_) => "Take up the interrupted distillation".into(),
            Self::Show(Dialog::DiscardRun(_)) => "Discard…".into(),
            Self::Show(Dialog::Closing(_)) => "Closing…".into(),
            Self::DiscardRun(_) => "Discard the interrupted distillation".into(),
            Self::LeaveRun(_) => "Later".into(),
            Self::SetCheckpoints(_) => "Set how often checkpoints are kept".into(),
            Self::StartMap => "Measure the sensitivity map".into(),
            Self::Confirm(_) | Self::ConfirmPlan => "Confirm in ONNX Runtime".into(),
            Self::SetRuntime(_) => "Look for ONNX Runtime".into(),
            Self::PauseJob(_) => "Pause training".into(),
            Self::ResumeJob(_) => "Resume training".into(),
            Self::CancelJob(_) => "Cancel".into(),
            Self::CancelAll => "Cancel all jobs".into(),
        }
    }

    /// Opens something else, or takes an intention to do so back.
    pub(crate) fn leaves_for_another(&self) -> bool {
        matches!(
            self,
            Self::CloseDialog
                | Self::Quit
                | Self::Open(_)
                | Self::OpenModel { .. }
                | Self::OpenTask(_)
                | Self::OpenProject(_)
                | Self::OpenRecipe(_)
                | Self::OpenSample
        )
    }

    /// The keys that send it.
    pub fn shortcut(&self) -> Option<KeyboardShortcut> {
        let ctrl = |key| Some(KeyboardShortcut::new(Modifiers::COMMAND, key));
        let ctrl_shift = |key| {
            Some(KeyboardShortcut::new(
                Modifiers::COMMAND.plus(Modifiers::SHIFT),
                key,
            ))
        };
        match self {
            Self::Show(Dialog::Open) => ctrl(Key::O),
            Self::Show(Dialog::SaveProject) => ctrl_shift(Key::S),
            Self::Show(Dialog::ExportModel) => ctrl(Key::E),
            Self::Show(Dialog::ExportRecipe) => ctrl_shift(Key::E),
            Self::Show(Dialog::Distil) => ctrl(Key::D),
            Self::Show(Dialog::Goals) => ctrl(Key::G),
            Self::SaveProject => ctrl(Key::S),
            Self::Quit => ctrl(Key::Q),
            Self::Undo => ctrl(Key::Z),
            Self::Redo => ctrl_shift(Key::Z),
            Self::SelectAll => ctrl(Key::A),
            Self::OpenPalette => ctrl(Key::K),
            Self::MeasurePlan(SplitName::Holdout) => ctrl(Key::M),
            Self::ToggleTheme => ctrl(Key::T),
            Self::ShowLog(true) => ctrl(Key::L),
            _ => None,
        }
    }

    /// What the palette lists, in this order, for the present state.
    pub fn palette(state: &State) -> Vec<Self> {
        let selected = state.selected_layers();
        let mut commands = vec![
            Self::Show(Dialog::Open),
            Self::Show(Dialog::OpenTask),
            Self::OpenSample,
            Self::SaveProject,
            Self::Show(Dialog::SaveProject),
            Self::Show(Dialog::ExportModel),
            Self::Show(Dialog::ExportRecipe),
            Self::MeasurePlan(SplitName::Holdout),
            Self::MeasurePlan(SplitName::Search),
            Self::Show(Dialog::Distil),
            Self::SetDistil(None),
            Self::StartMap,
            Self::ConfirmPlan,
            Self::Show(Dialog::Runtime),
            Self::CancelAll,
            Self::Undo,
            Self::Redo,
        ];
        let training = state.active_jobs().find(|job| job.kind == JobKind::Distil);
        commands.extend(training.map(|job| match job.state {
            JobState::Paused => Self::ResumeJob(job.id),
            _ => Self::PauseJob(job.id),
        }));
        let interrupted = state.mirror.interrupted.first();
        commands.extend(interrupted.map(|run| Self::TakeUp(run.folder.clone())));
        commands.extend(Preset::ALL.map(Self::ApplyPreset));
        for precision in [
            Precision::Fp32,
            Precision::Fp16,
            Precision::Int8,
            Precision::Int4,
        ] {
            commands.push(Self::SetPrecision {
                layers: selected.clone(),
                precision,
            });
        }
        commands.extend([
            Self::ResetLayers(selected.clone()),
            Self::TogglePin(selected),
            Self::SetPruning(!state.document.channels),
            Self::Show(Dialog::Goals),
            Self::Show(Dialog::Shrink),
            Self::Show(Dialog::Scheme),
            Self::Show(Dialog::Methods),
            Self::SelectAll,
            Self::ClearSelection,
        ]);
        commands.extend(ColourBy::ALL.map(Self::SetColourBy));
        commands.extend([
            Self::SetTab(Tab::TradeOff),
            Self::SetTab(Tab::Training),
            Self::SetPlotAxis(PlotAxis::Size),
            Self::SetPlotAxis(PlotAxis::Macs),
            Self::SetSplit(SplitName::Search),
            Self::SetSplit(SplitName::Holdout),
            Self::SetSort(SortKey::Graph),
            Self::SetSort(SortKey::Name),
            Self::SetSort(SortKey::Params),
            Self::SetSort(SortKey::Macs),
            Self::ToggleTheme,
            Self::ShowLog(!state.view.log_open),
            Self::Show(Dialog::About),
            Self::Quit,
        ]);
        commands
    }
}

pub fn split_label(split: SplitName) -> &'static str {
    match split {
        SplitName::Calibration => "calibration",
        SplitName::Search => "search",
        SplitName::Training => "training",
        SplitName::Holdout => "holdout",
    }
}

fn sort_label(key: SortKey) -> String {
    use limbeck_engine::sensitivity::Candidate;
    match key {
        SortKey::Graph => "the model's order".into(),
        SortKey::Name => "name".into(),
        SortKey::Op => "operator".into(),
        SortKey::Shape => "shape".into(),
        SortKey::Params => "parameters".into(),
        SortKey::Macs => "MACs".into(),
        SortKey::Precision => "precision".into(),
        SortKey::Runs => "what layers run in".into(),
        SortKey::Ratio => "pruning".into(),
        SortKey::Cell(candidate) => match candidate {
            Candidate::Fp16 => "fp16".into(),
            Candidate::Int8 => "int8".into(),
            Candidate::Int4 => "int4".into(),
            Candidate::P25 => "25 % pruned".into(),
            Candidate::P50 => "50 % pruned".into(),
            Candidate::P75 => "75 % pruned".into(),
        },
    }
}
