//! Distillations that keep checkpoints, and those that were interrupted: looked for, taken up, discarded.

use super::{Session, Then};
use crate::{
    app::files::{self, FileKind},
    state::{AfterSave, JobKind, NoticeKind},
};
use limbeck_engine::{
    jobs::{Command as Job, JobId, Keep},
    recipe::Interrupted,
};
use std::path::{Path, PathBuf};

/// The folder beside a project that holds its runs while they are at work.
fn beside(project: &Path) -> PathBuf {
    project.with_extension("runs")
}

impl Session {
    /// Where a new run keeps its checkpoints; `None`: it keeps none.
    pub(super) fn keep(&self) -> Option<Keep> {
        let every = self.state.view.checkpoint_every;
        if every.seconds.is_none() && every.steps.is_none() {
            return None;
        }
        let project = self.state.project_path.as_deref().map(beside);
        let under = project.or_else(|| self.runs.clone())?;
        Some(Keep::New { under, every })
    }

    /// Looks for interrupted runs: those of no project, and those beside the projects that are remembered.
    pub fn find_runs(&mut self) {
        let remembered = self.state.view.recent.iter().map(PathBuf::as_path);
        let projects = self.state.project_path.as_deref().into_iter();
        let projects = projects.chain(remembered.filter(|p| files::kind(p) == FileKind::Project));
        let mut under: Vec<PathBuf> = projects.map(beside).chain(self.runs.clone()).collect();
        under.sort();
        under.dedup();
        if under.is_empty() {
            return;
        }
        let job = self.job(JobKind::File, "Look for interrupted runs", Then::Nothing);
        self.send(Job::FindRuns { job, under });
    }

    /// Goes on with an interrupted run: at once, or when its project or its model is open.
    pub(super) fn take_up(&mut self, folder: &Path) {
        let Some(mut run) = self.state.interrupted(folder).cloned() else {
            return;
        };
        if self.is_of_open_model(&mut run) {
            return self.go_on_with(&run);
        }
        let own = |project: &&PathBuf| {
            files::kind(project) == FileKind::Project
                && Some(beside(project).as_path()) == run.folder.parent()
        };
        let after = match self.state.view.recent.iter().find(own) {
            Some(project) => AfterSave::Open(project.clone()),
            None => AfterSave::OpenModel {
                model: run.recipe.model.clone(),
                task: Some(run.recipe.task.clone()),
            },
        };
        self.taking_up = Some(run);
        self.guarded(after);
    }

    /// A model is open: perhaps the one that a run waited for.
    pub(super) fn model_is_open(&mut self) {
        let Some(mut run) = self.taking_up.take() else {
            return;
        };
        if self.is_of_open_model(&mut run) {
            self.go_on_with(&run);
        } else {
            self.state.notify(
                NoticeKind::Warning,
                format!(
                    "The interrupted distillation is of {}, which is not what was opened: it was not taken up",
                    run.recipe.model.display()
                ),
            );
        }
    }

    /// Whether the model and the data that a run is of are open, under whatever names: they are then called as those that are open.
    fn is_of_open_model(&self, run: &mut Interrupted) -> bool {
        self.state.model().is_some_and(|model| {
            let task = model.task_path.as_deref();
            task.is_some_and(|task| run.call_as(&model.path, task))
        })
    }

    fn go_on_with(&mut self, run: &Interrupted) {
        if !self.take_plan(&run.recipe, false) {
            return;
        }
        let runs = &mut self.state.mirror.interrupted;
        runs.retain(|other| other.folder != run.folder);
        self.state.refresh();
        let keep = Keep::TakeUp {
            folder: run.folder.clone(),
            every: self.state.view.checkpoint_every,
        };
        let job = self.train(run.recipe.clone(), run.split, Some(keep));
        self.taken_up = Some((job, run.folder.clone()));
    }

    pub(super) fn discard_run(&mut self, folder: PathBuf) {
        self.state.view.dialog = None;
        self.deal_with(folder.clone());
        let job = self.job(JobKind::File, "Discard an interrupted run", Then::Nothing);
        self.send(Job::DiscardRun { job, folder });
    }
    /// Offers a run no more, until runs are looked for again.
    pub(super) fn deal_with(&mut self, folder: PathBuf) {
        let runs = &mut self.state.mirror.interrupted;
        runs.retain(|run| run.folder != folder);
        self.dealt_with.retain(|(other, _)| *other != folder);
        self.dealt_with.push((folder, JobId(self.next_job)));
    }

    /// What a search found: but for those that were dealt with since it was asked for.
    pub(super) fn runs_found(&mut self, job: JobId) {
        let taken = self.taken_up.as_ref().map(|(_, folder)| folder);
        let dealt = |folder: &Path| {
            let mut with = self.dealt_with.iter();
            with.any(|(other, next)| other == folder && job < *next)
        };
        let runs = &mut self.state.mirror.interrupted;
        runs.retain(|run| Some(&run.folder) != taken && !dealt(&run.folder));
    }
}
