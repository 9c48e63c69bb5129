//! Three kinds of state, never mixed: the **document** (undoable, saved), the **mirror** (what the engine reported), the **view**
//! (what is looked at). [`State`] holds all three and what follows from them, worked out once a change and not in a frame.

mod channels;
mod derived;
mod document;
pub mod fixture;
mod foresight;
mod heat;
mod job;
mod mirror;
mod own;
mod reading;
mod rows;
mod runs;
mod shrinking;
mod target;
#[cfg(test)]
mod tests;
mod verdict;
mod view;

pub use derived::{Mark, PredictedPoint};
pub use document::{Document, History, UNTOUCHED};
pub use foresight::{Asked, Foresight, Islands, RunsIn};
pub use heat::{Heat, HeatKind, Legend};
pub use job::{Job, JobKind, JobState};
pub use mirror::{CellSlot, LogLine, Mirror, NamedPoint, PointId};
pub use reading::{Reading, ReadingState};
pub use runs::{Curves, Runs};
pub use target::{AtTarget, Refusal};
pub use verdict::{GoalStatus, PlanVerdict, goal_label};
pub use view::{
    AfterSave, ColourBy, Dialog, Inspected, PlotAxis, SelectMode, Sort, SortKey, Tab, ThemeChoice,
    View,
};

pub(crate) use channels::harmonise;
use derived::Derived;
pub(crate) use limbeck_engine::target::is_file as is_target_file;
use limbeck_engine::{
    compress::LayerSetting,
    data::SplitName,
    eval::top1_name,
    graph::LayerId,
    jobs::{JobId, ModelInfo},
    recipe::{Interrupted, MethodKind, Recipe, Step},
    search::{LayerFacts, Prediction},
    sensitivity::{Candidate, Cell, Tier},
};
pub use shrinking::BlockState;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Runs that are drawn over each other.
const OVERLAID: usize = 6;

/// How bad a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    Info,
    Warning,
    Error,
}

/// A message that stays on the window, out of the way, until it is dismissed (information leaves by itself).
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    pub id: u64,
    pub kind: NoticeKind,
    pub text: String,
    pub since: std::time::Instant,
}

/// Everything the window knows.
#[derive(Debug, Default)]
pub struct State {
    pub document: Document,
    pub history: History,
    pub mirror: Mirror,
    pub view: View,
    pub notices: Vec<Notice>,
    /// Where the project is kept, once saved or opened.
    pub project_path: Option<PathBuf>,
    /// The document as last saved; unsaved changes are what differs.
    pub(crate) saved: Document,
    /// Points there were when last saved.
    pub(crate) saved_points: (usize, usize),
    pub(crate) derived: Derived,
    next_notice: u64,
}

impl State {
    /// Notices at once; older ones make room (the log keeps them).
    const NOTICES: usize = 3;

    // ---- model and layers ----

    pub fn model(&self) -> Option<&Arc<ModelInfo>> {
        self.mirror.model.as_ref()
    }

    /// All layers, in the graph's order.
    pub fn layers(&self) -> &[LayerFacts] {
        self.mirror.layers()
    }

    /// Indices into [`State::layers`] of the rows shown, filtered and sorted.
    pub fn visible(&self) -> &[usize] {
        &self.derived.visible
    }

    pub fn layer(&self, id: &LayerId) -> Option<&LayerFacts> {
        self.layers().get(self.mirror.layer_index(id)?)
    }

    /// Parameters of the layer with most, MACs of the layer with most: what shares are shown against.
    pub fn largest_layer(&self) -> (u64, u64) {
        self.derived.largest()
    }

    /// What the plan asks of a layer.
    pub fn setting(&self, layer: &LayerId) -> LayerSetting {
        self.document.setting(layer)
    }

    pub fn is_pinned(&self, layer: &LayerId) -> bool {
        self.document.pins.contains(layer)
    }

    pub fn is_selected(&self, layer: &LayerId) -> bool {
        self.view.selection.contains(layer)
    }

    /// The layer in the inspector.
    pub fn focus(&self) -> Option<&LayerFacts> {
        self.layer(self.view.focus.as_ref()?)
    }

    /// Selected layers, in the graph's order.
    pub fn selected_layers(&self) -> Vec<LayerId> {
        self.mirror
            .layer_ids()
            .iter()
            .filter(|id| self.is_selected(id))
            .cloned()
            .collect()
    }

    // ---- cells ----

    /// The best cell known of a layer (by index) and candidate.
    pub fn cell(&self, layer: usize, candidate: Candidate) -> Option<&Cell> {
        self.mirror.slot(layer, candidate)?.best()
    }

    /// What is lost with all layers at the candidate but this one, where it was measured.
    pub fn all_but(&self, layer: usize, candidate: Candidate) -> Option<&Cell> {
        self.mirror.slot(layer, candidate)?.all_but.as_ref()
    }

    /// What colour a heat cell has under the chosen quantity.
    pub fn heat(&self, layer: usize, candidate: Candidate) -> Heat {
        heat::heat(self, layer, candidate)
    }

    /// The scales that the cells have their colours from under the chosen quantity: measured cells first, proxies apart.
    pub fn heat_legend(&self) -> Vec<Legend> {
        heat::legend(self)
    }

    /// How much is measured of the map that is looked at: (measured, all).
    pub fn map_progress(&self) -> (usize, usize) {
        self.mirror.measured_cells(self.view.colour_by.direction())
    }

    // ---- the plan ----

    /// What the plan is thought to give; recomputed once a change.
    pub fn prediction(&self) -> Option<&Prediction> {
        self.derived.prediction.as_ref()
    }

    /// Where the prediction lies on the plot, where its accuracy is known.
    pub fn predicted_point(&self) -> Option<PredictedPoint> {
        self.derived.predicted
    }

    /// The plan as steps; `with_distil`: distillation as well, where the plan has it.
    pub fn plan_steps(&self, with_distil: bool) -> &[Step] {
        self.derived.steps(with_distil)
    }

    /// The plan as a recipe; `None` without a model. Without a task the path stays empty.
    pub fn recipe(&self, with_distil: bool) -> Option<Recipe> {
        let model = self.model()?;
        let task = model.task_path.clone().unwrap_or_default();
        Some(
            self.document
                .recipe(&model.name, &model.path, &task, self.layers(), with_distil),
        )
    }

    /// The plan's methods, in its order, and whether each is used on this layer.
    pub fn methods_on(&self, layer: &LayerId) -> impl Iterator<Item = (MethodKind, bool)> {
        let used = self.derived.used.on.iter();
        used.map(|(kind, on)| (*kind, on.contains(layer)))
    }

    /// The layers that a method of the plan is used on.
    pub fn used_on(&self, kind: MethodKind) -> Option<BTreeSet<LayerId>> {
        let mut used = self.derived.used.on.iter();
        used.find(|(old, _)| *old == kind).map(|(_, on)| on.clone())
    }

    /// A method of the plan that chooses codes: training would move the weights off them.
    pub fn chosen_codes(&self) -> Option<MethodKind> {
        let mut kinds = self.document.methods.iter().filter_map(MethodKind::of);
        kinds.find(|kind| kind.chooses_codes())
    }

    /// The plan changes nothing.
    pub fn plan_is_empty(&self) -> bool {
        self.plan_steps(true).is_empty()
    }

    // ---- points ----

    /// All measured points of all splits, oldest first.
    pub fn points(&self) -> &[NamedPoint] {
        &self.mirror.points
    }

    /// The points on the split that the plot shows; of the original only the one on the samples the others were judged on.
    pub fn shown_points(&self) -> impl Iterator<Item = &NamedPoint> {
        self.split_points(self.view.split)
    }

    /// How many they are, worked out once a change.
    pub fn shown_count(&self) -> usize {
        self.derived.shown.count
    }

    /// Those with a place on the plot, as it draws them; worked out once a change.
    pub fn marks(&self) -> &[Mark] {
        &self.derived.shown.marks
    }

    /// Lowest and highest place along x, and lowest and highest end of an interval along y; `None` without marks.
    pub fn marks_extent(&self) -> Option<[[f64; 2]; 2]> {
        self.derived.shown.extent
    }

    fn split_points(&self, split: SplitName) -> impl Iterator<Item = &NamedPoint> {
        let baseline = self.baseline(split).map(|point| point.id);
        self.points().iter().filter(move |point| {
            point.split() == split && (!point.is_baseline() || Some(point.id) == baseline)
        })
    }

    /// Whether the point of this index is one of [`State::shown_points`].
    fn is_shown(&self, index: usize) -> bool {
        let split = self.view.split;
        self.points().get(index).is_some_and(|point| {
            point.split() == split
                && (!point.is_baseline() || self.baseline(split).is_some_and(|b| b.id == point.id))
        })
    }

    /// What was found of the plan's points, if it still holds.
    fn own(&self) -> Option<&own::Own> {
        Some(&self.derived.own).filter(|own| own.hold(self))
    }

    /// What was found of all points, if it still holds.
    fn known(&self) -> Option<&own::Known> {
        Some(&self.derived.known).filter(|known| known.holds(self))
    }

    /// The original, measured on a split: on as many samples as the newest other point there, if it was, else the newest.
    pub fn baseline(&self, split: SplitName) -> Option<&NamedPoint> {
        let at = match self.known() {
            Some(known) => known.baseline[split as usize],
            None => self.find_baseline(split),
        };
        self.points().get(at?)
    }

    fn find_baseline(&self, split: SplitName) -> Option<usize> {
        let here = || {
            let points = self.points().iter().enumerate().rev();
            points.filter(move |(_, p)| p.split() == split)
        };
        let n = here()
            .find(|(_, p)| !p.is_baseline())
            .map(|(_, p)| p.samples());
        let originals = || here().filter(|(_, p)| p.is_baseline());
        originals()
            .find(|(_, p)| n.is_none_or(|n| p.samples() == n))
            .or_else(|| originals().next())
            .map(|(at, _)| at)
    }

    /// The original, measured on exactly `n` samples of a split: what accuracies on those samples are compared with.
    pub fn original(&self, split: SplitName, n: u64) -> Option<&NamedPoint> {
        self.points()
            .iter()
            .rev()
            .find(|p| p.is_baseline() && p.split() == split && p.samples() == n)
    }

    /// Fewest and most samples that the points shown of a split were judged on; `None` while there are none.
    pub fn judged_samples(&self, split: SplitName) -> Option<(u64, u64)> {
        if let Some(known) = self.known() {
            return known.judged[split as usize];
        }
        let all = self.split_points(split).map(NamedPoint::samples);
        let (low, high) = all.fold((u64::MAX, 0), |(a, b), n| (a.min(n), b.max(n)));
        (high > 0).then_some((low, high))
    }

    /// The newest point of exactly the present plan on a split, its distillation included.
    pub fn plan_point(&self, split: SplitName) -> Option<&NamedPoint> {
        if let Some(own) = self.own() {
            return self.points().get(own.plan[split as usize]?);
        }
        self.newest(split, |steps| steps == self.plan_steps(true))
    }

    /// The newest point on a split of the present plan and a distillation, but not the plan's own: one with other settings, or
    /// one that was cancelled. `None` where the plan has no distillation.
    pub fn otherwise_distilled_point(&self, split: SplitName) -> Option<&NamedPoint> {
        if let Some(own) = self.own() {
            return self.points().get(own.otherwise[split as usize]?);
        }
        let plan = self.plan_steps(false);
        self.document.distil.as_ref()?;
        self.newest(split, |steps| own::is_trained(steps, plan))
    }

    /// The newest point on a split of the present plan before its distillation. `None` where the plan has none.
    pub fn undistilled_point(&self, split: SplitName) -> Option<&NamedPoint> {
        if let Some(own) = self.own() {
            return self.points().get(own.undistilled[split as usize]?);
        }
        self.document.distil.as_ref()?;
        self.newest(split, |steps| steps == self.plan_steps(false))
    }

    fn newest(&self, split: SplitName, is: impl Fn(&[Step]) -> bool) -> Option<&NamedPoint> {
        self.points().iter().rev().find(|point| {
            point.split() == split
                && point.point.recipe.seed == self.document.seed
                && is(&point.point.recipe.steps)
        })
    }

    /// Ids of the points on the Pareto front of the shown split and axis, from small to large.
    pub fn front(&self) -> &[PointId] {
        &self.derived.front
    }

    pub fn selected_point(&self) -> Option<&NamedPoint> {
        self.mirror.point(self.view.selected_point?)
    }

    /// The point that stands for the present plan: on the holdout if it was measured there.
    pub fn exported_point(&self) -> Option<&NamedPoint> {
        let splits = [SplitName::Holdout, SplitName::Search];
        splits.iter().find_map(|split| self.plan_point(*split))
    }

    /// A point's place on the plot: (kB or million MACs, top-1 %).
    pub fn plot_position(&self, point: &NamedPoint) -> Option<(f64, f64)> {
        let x = derived::axis_value(
            self.view.axis,
            point.point.sizes.stored,
            point.point.sizes.macs,
        )?;
        Some((x, point.top1_percent()))
    }

    /// Whether the samples of a split came with labels.
    pub fn has_labels(&self, split: SplitName) -> bool {
        let data = self.model().and_then(|model| model.data.as_ref());
        data.is_none_or(|data| !data.unlabelled.contains(&split))
    }

    /// What points on a split are judged by.
    pub fn judged_by(&self, split: SplitName) -> &'static str {
        top1_name(!self.has_labels(split))
    }

    /// The goal region on the plot: (largest kB, smallest top-1 %), each where a goal sets it.
    pub fn goal_region(&self) -> (Option<f64>, Option<f64>) {
        verdict::region(self)
    }

    /// How the plan stands against the goals; `None` without goals.
    pub fn verdict(&self) -> Option<&PlanVerdict> {
        self.derived.verdict.as_ref()
    }

    // ---- jobs ----

    /// Jobs that the strip shows: those that wait or run.
    pub fn active_jobs(&self) -> impl Iterator<Item = &Job> {
        self.mirror.jobs.iter().filter(|job| job.is_shown())
    }

    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.mirror.job(id)
    }

    /// The distillations of this session that have curves, oldest first.
    pub fn runs(&self) -> &[Curves] {
        self.mirror.runs.curves()
    }

    /// The interrupted run in a folder, if it is still one.
    pub fn interrupted(&self, folder: &Path) -> Option<&Interrupted> {
        let mut runs = self.mirror.interrupted.iter();
        runs.find(|run| run.folder == folder)
    }

    /// Whether the model and the data that a run is of are open.
    pub fn is_of_open_model(&self, run: &Interrupted) -> bool {
        self.model().is_some_and(|model| {
            model.path == run.recipe.model && model.task_path.as_ref() == Some(&run.recipe.task)
        })
    }

    /// The curves of the chosen distillation, else of the newest.
    pub fn curves(&self) -> Option<&Curves> {
        let chosen = self.view.run.and_then(|run| self.run(run));
        chosen.or(self.runs().last())
    }

    pub fn run(&self, job: JobId) -> Option<&Curves> {
        self.runs().iter().find(|run| run.job == job)
    }

    /// The runs that are drawn over each other: the newest, and the chosen one; oldest first.
    pub fn overlaid(&self) -> impl Iterator<Item = &Curves> {
        let runs = self.runs();
        let chosen = self.curves().map(|run| run.job);
        let first = runs.len().saturating_sub(OVERLAID);
        let shown = move |(at, run): &(usize, &Curves)| *at >= first || Some(run.job) == chosen;
        runs.iter().enumerate().filter(shown).map(|(_, run)| run)
    }

    /// Where the plot shows what a run was judged at while it trained: at the size (or MACs) from before its training.
    pub fn run_place(&self, run: &Curves) -> Option<f64> {
        let (stored, macs) = self.mirror.runs.sizes(run.job)?;
        derived::axis_value(self.view.axis, stored, macs)
    }

    /// Whether what layers read can be counted, or why not.
    pub fn countable(&self) -> Result<(), String> {
        self.measurable()?;
        if self.split_len(SplitName::Calibration) == 0 {
            return Err("The data has no calibration samples".into());
        }
        Ok(())
    }

    /// The inspector is to show what the layer reads, and that can be counted.
    pub fn inspects_input(&self) -> bool {
        self.view.inspected == Inspected::Input && self.countable().is_ok()
    }

    /// A job of this kind waits or runs.
    pub fn is_busy(&self, kind: JobKind) -> bool {
        self.mirror
            .jobs
            .iter()
            .any(|job| job.kind == kind && job.is_active())
    }

    // ---- data ----

    /// Samples in a split; 0 without data.
    pub fn split_len(&self, split: SplitName) -> usize {
        self.model()
            .and_then(|model| model.data.as_ref())
            .and_then(|data| data.sizes.iter().find(|(name, _)| *name == split))
            .map_or(0, |(_, len)| *len)
    }

    /// Why the plan can't be built without data, or nothing if it can.
    pub fn buildable(&self) -> Result<(), &'static str> {
        let data = self.model().is_none_or(|model| model.data.is_some());
        if data {
            return Ok(());
        }
        let quantised = |s: &LayerSetting| s.precision.is_integer();
        let activations = self.document.scheme.activations;
        if activations.calibrated_bits().is_some() && self.document.plan.values().any(quantised) {
            return Err(
                "This plan also quantises activations, and calibration needs data to take their ranges from: open a task.ron, or \
                 choose weight-only activations in the quantisation scheme",
            );
        }
        if self
            .document
            .methods
            .iter()
            .filter_map(MethodKind::of)
            .any(MethodKind::needs_data)
            && self.document.plan.values().any(quantised)
        {
            return Err(
                "A method of this plan looks at samples of the data: open a task.ron, or take it out of the quantisation methods",
            );
        }
        let shrinking = &self.document.shrinking;
        if shrinking
            .blocks
            .as_ref()
            .is_some_and(|step| step.count.is_some())
        {
            return Err(
                "This plan takes out the residual blocks that outputs miss least, which needs data to judge them on: open a task.ron, or choose the \
                 blocks in the inspector",
            );
        }
        if self.document.channels
            && shrinking.channels.criterion.needs_data()
            && self.document.plan.values().any(|s| s.sparsity.0 > 0.0)
        {
            return Err(
                "This plan judges channels on data: open a task.ron, or choose another criterion under Pruning and sharing",
            );
        }
        if self.document.distil.is_some() {
            return Err("This plan is distilled, which needs labelled data: open a task.ron");
        }
        Ok(())
    }

    /// Why nothing can be measured, or nothing if it can.
    pub fn measurable(&self) -> Result<(), &'static str> {
        let Some(model) = self.model() else {
            return Err("Open a model first");
        };
        if !model.runnable {
            return Err("This model has operators that can't run; the log names them");
        }
        if model.data.is_none() {
            return Err(
                "Open labelled data (a task.ron) first: without it only weights can be looked at",
            );
        }
        Ok(())
    }

    // ---- saving ----

    /// Something would be lost if the window closed now.
    pub fn is_dirty(&self) -> bool {
        self.model().is_some()
            && (self.document != self.saved
                || self.history.is_open()
                || (self.project_path.is_some() && self.point_results() != self.saved_points))
    }

    /// How many points there are, and how many of them the runtime was asked about.
    pub(crate) fn point_results(&self) -> (usize, usize) {
        let confirmed = |named: &&NamedPoint| named.point.confirmed.is_some();
        (
            self.points().len(),
            self.points().iter().filter(confirmed).count(),
        )
    }

    pub(crate) fn mark_saved(&mut self) {
        self.saved = self.document.clone();
        self.saved_points = self.point_results();
    }

    // ---- notices ----

    pub fn notify(&mut self, kind: NoticeKind, text: impl Into<String>) {
        let text = text.into();
        self.notices.retain(|old| old.text != text);
        self.next_notice += 1;
        self.notices.push(Notice {
            id: self.next_notice,
            kind,
            text,
            since: std::time::Instant::now(),
        });
        let over = self.notices.len().saturating_sub(Self::NOTICES);
        self.notices.drain(..over);
    }

    /// Brings what follows from the state up to date; called after every change, cheap when nothing changed.
    pub fn refresh(&mut self) {
        derived::refresh(self);
    }

    /// Tier of the best cell, for labels: `None` where nothing is known.
    pub fn tier(&self, layer: usize, candidate: Candidate) -> Option<Tier> {
        self.cell(layer, candidate).map(|cell| cell.tier)
    }
}
