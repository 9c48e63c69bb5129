//! The view: what is looked at and how (selection, tabs, sort, filter, theme). Kept by the shell between sessions where it
//! makes sense, never part of a project, never undone.

use super::PointId;
use limbeck_engine::{
    data::SplitName,
    graph::LayerId,
    jobs::JobId,
    recipe::CheckpointEvery,
    sensitivity::{Candidate, Direction},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, path::PathBuf};

/// Tabs over the right half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tab {
    #[default]
    TradeOff,
    Training,
}

/// Horizontal axis of the trade-off plot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlotAxis {
    #[default]
    Size,
    Macs,
}

/// What the inspector shows of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inspected {
    #[default]
    Weights,
    /// What it reads.
    Input,
}

/// What colours the heat cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ColourBy {
    #[default]
    Sensitivity,
    /// What is lost when every layer is changed but this one.
    AllBut,
    Size,
    Macs,
    Error,
}

impl ColourBy {
    pub const ALL: [Self; 5] = [
        Self::Sensitivity,
        Self::AllBut,
        Self::Size,
        Self::Macs,
        Self::Error,
    ];

    /// Which map the colours are of, and which one is measured next.
    pub fn direction(self) -> Direction {
        match self {
            Self::AllBut => Direction::AllBut,
            _ => Direction::Alone,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Sensitivity => "Sensitivity",
            Self::AllBut => "All but",
            Self::Size => "Size",
            Self::Macs => "MACs",
            Self::Error => "Error",
        }
    }
}

/// Column that rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SortKey {
    /// The order of the graph.
    #[default]
    Graph,
    Name,
    Op,
    Shape,
    Params,
    Macs,
    /// The best known cell of a candidate: measured drops first, proxies after them.
    Cell(Candidate),
    Precision,
    /// What a layer is computed in at the target.
    Runs,
    Ratio,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sort {
    pub key: SortKey,
    pub descending: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThemeChoice {
    #[default]
    Dark,
    Light,
}

/// How a click changes the selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectMode {
    /// Plain click: only this.
    Replace,
    /// Ctrl: this one in or out.
    Toggle,
    /// Shift: all visible rows from the last clicked one to this.
    Extend,
}

/// A modal or popup that the shell draws.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dialog {
    /// Model (with its task), recipe or project.
    Open,
    OpenTask,
    SaveProject,
    ExportModel,
    ExportRecipe,
    /// Settings of a distillation, with a start button.
    Distil,
    Goals,
    /// Quantisation scheme.
    Scheme,
    /// How pruning goes, residual blocks out, shared values.
    Shrink,
    /// Methods that make quantisation lose less without training.
    Methods,
    /// Where the deployment runtime lies.
    Runtime,
    /// The interrupted run in this folder is to be given up.
    DiscardRun(PathBuf),
    /// The window closes as soon as a distillation has kept its state, or once it is read why it could not.
    Closing(Option<String>),
    About,
    /// Changes are unsaved: save, discard or stay; then go on.
    Unsaved(AfterSave),
}

/// What to go on with once unsaved changes are dealt with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterSave {
    Quit,
    Open(PathBuf),
    OpenModel {
        model: PathBuf,
        task: Option<PathBuf>,
    },
    OpenSample,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct View {
    pub tab: Tab,
    pub axis: PlotAxis,
    /// Not kept: counting takes time, and nobody asked for it yet.
    #[serde(skip)]
    pub inspected: Inspected,
    pub colour_by: ColourBy,
    /// Of the open model only.
    #[serde(skip)]
    pub sort: Sort,
    pub theme: ThemeChoice,
    /// Split whose points the plot shows.
    pub split: SplitName,
    pub log_open: bool,
    /// Newest first.
    pub recent: Vec<PathBuf>,
    /// Library or folder of ONNX Runtime; `None`: it is looked for.
    pub runtime: Option<PathBuf>,
    /// How often distillations keep a checkpoint.
    pub checkpoint_every: CheckpointEvery,
    /// Exported plans are held against it.
    pub confirm_exports: bool,
    /// Share of the window's width that the layers take, and of the right half that the plot takes.
    pub layers_share: f32,
    pub plot_share: f32,
    #[serde(skip)]
    pub filter: String,
    #[serde(skip)]
    pub selection: BTreeSet<LayerId>,
    /// The layer in the inspector, and where a shift-click starts.
    #[serde(skip)]
    pub focus: Option<LayerId>,
    #[serde(skip)]
    pub selected_point: Option<PointId>,
    /// The distillation whose curves stand out; `None`: the newest.
    #[serde(skip)]
    pub run: Option<JobId>,
    /// The end of an epoch of a distillation that was picked for a new run.
    #[serde(skip)]
    pub epoch: Option<(JobId, usize)>,
    #[serde(skip)]
    pub palette_open: bool,
    #[serde(skip)]
    pub dialog: Option<Dialog>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            tab: Tab::default(),
            axis: PlotAxis::default(),
            inspected: Inspected::default(),
            colour_by: ColourBy::default(),
            sort: Sort::default(),
            theme: ThemeChoice::default(),
            split: SplitName::Search,
            log_open: false,
            recent: Vec::new(),
            runtime: None,
            checkpoint_every: CheckpointEvery::default(),
            confirm_exports: true,
            layers_share: 0.585,
            plot_share: 0.62,
            filter: String::new(),
            selection: BTreeSet::new(),
            focus: None,
            selected_point: None,
            run: None,
            epoch: None,
            palette_open: false,
            dialog: None,
        }
    }
}
