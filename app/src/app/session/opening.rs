//! Opening, saving and exporting: what is asked of the engine, and what is asked of the user first.

use super::{Overlay, Request, Session, Then};
use crate::{
    app::{
        files::{self, FileKind},
        project,
    },
    state::{AfterSave, Dialog, JobKind, NoticeKind},
};
use limbeck_engine::jobs::{Command as Job, JobId};
use std::path::{Path, PathBuf};

impl Session {
    /// Goes on at once where nothing would be lost, else asks first.
    pub(super) fn guarded(&mut self, after: AfterSave) {
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

    pub(super) fn go_on(&mut self, after: AfterSave) {
        self.state.view.dialog = None;
        match after {
            AfterSave::OpenModel { model, task } => self.open(model, task, Overlay::Nothing),
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

    pub(super) fn open(&mut self, model: PathBuf, task: Option<PathBuf>, overlay: Overlay) {
        self.state.view.dialog = None;
        let jobs = self.state.mirror.jobs.iter().filter(|job| job.is_active());
        let jobs: Vec<(JobId, JobKind)> = jobs.map(|job| (job.id, job.kind)).collect();
        for (job, kind) in jobs {
            // What they would have led to was meant for the model that goes.
            if !matches!(self.then.get(&job), Some(Then::Saved { .. })) {
                self.then.remove(&job);
            }
            // The opening ends a distillation too, but leaves its checkpoints for the model's return.
            if kind != JobKind::Distil {
                self.send(Job::Cancel(job));
            }
        }
        self.measuring = None;
        self.original_wanted = false;
        let title = format!("Open {}", files::short(&model));
        let job = self.job(JobKind::Open, &title, Then::Opened(overlay));
        self.send(Job::Open {
            job,
            model: files::absolute(model),
            task: task.map(files::absolute),
        });
    }

    pub(super) fn open_task(&mut self, task: PathBuf) {
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

    pub(super) fn read(&mut self, path: PathBuf, then: Then) {
        self.state.view.dialog = None;
        let job = self.job(JobKind::File, "Read", then);
        self.send(Job::ReadText {
            job,
            path: files::absolute(path),
        });
    }

    pub(super) fn save(&mut self, path: PathBuf) {
        // The unsaved-changes dialog may have asked for this.
        let mut after = self.after_save.take();
        if let Some(Dialog::Unsaved(next)) = self.state.view.dialog.take() {
            after = Some(next);
        }
        self.state.history.commit(&self.state.document);
        let path = files::absolute(path);
        if self.state.model().is_some_and(|m| m.sha256.is_none()) {
            if let Some(reason) = &self.unhashed.failed {
                return self.fail(format!("{} is not saved: {reason}", path.display()));
            }
            self.state.notify(
                NoticeKind::Info,
                format!(
                    "{} is saved as soon as the model's files are read: a project names their hash",
                    files::short(&path)
                ),
            );
            self.unhashed.save = Some((path, after));
            return;
        }
        self.write_project(path, after);
    }

    /// The large model of `job` was read, or cannot be.
    pub(super) fn hashed(&mut self, job: JobId, sha256: Result<String, String>) {
        if self.unhashed.job != Some(job) {
            return;
        }
        let waiting = std::mem::take(&mut self.unhashed);
        match sha256 {
            Ok(sha256) => self.state.mirror.set_hash(sha256),
            Err(reason) => {
                let model = self.state.model();
                let model = model.map_or_else(String::new, |m| m.path.display().to_string());
                let reason = format!(
                    "the files of {model} cannot be read any more, so projects are neither saved nor compared with it: {reason}. \
                     Open the model again"
                );
                self.fail(match &waiting.save {
                    Some((path, _)) => format!("{} is not saved: {reason}", path.display()),
                    None => format!("No hash: {reason}"),
                });
                // The points of the project stay unread; what was to follow the save does not.
                self.unhashed.numbers = waiting.numbers;
                self.unhashed.failed = Some(reason);
                return;
            }
        }
        if let Some(project) = waiting.numbers {
            let dirty = self.state.is_dirty();
            for warning in project::lay_numbers(&mut self.state, *project) {
                self.state.notify(NoticeKind::Warning, warning);
            }
            if !dirty {
                self.state.mark_saved();
            }
        }
        if let Some((path, after)) = waiting.save {
            self.write_project(path, after);
        }
    }

    fn write_project(&mut self, path: PathBuf, after: Option<AfterSave>) {
        let Some(project) = project::to_file(&self.state, &path) else {
            return;
        };
        match project.to_ron() {
            Ok(text) => {
                let then = Then::Saved {
                    path: path.clone(),
                    document: Box::new(self.state.document.clone()),
                    points: self.state.point_results(),
                    after,
                };
                let job = self.job(JobKind::File, "Save", then);
                self.send(Job::WriteText { job, path, text });
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    pub(super) fn export_recipe(&mut self, path: PathBuf) {
        self.state.view.dialog = None;
        self.state.history.commit(&self.state.document);
        let path = files::absolute(path);
        let Some(mut recipe) = self.state.recipe(true) else {
            return;
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        recipe.model = files::relative(&recipe.model, folder);
        recipe.task = files::relative(&recipe.task, folder);
        recipe.rename_target_files(|target| files::relative(target, folder));
        match recipe.to_ron() {
            Ok(text) => {
                let job = self.job(JobKind::File, "Export recipe", Then::Nothing);
                self.send(Job::WriteText { job, path, text });
            }
            Err(error) => self.fail(error.to_string()),
        }
    }
}
