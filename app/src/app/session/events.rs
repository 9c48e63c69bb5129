//! What follows from the engine's events.

use super::{Overlay, Request, Session, Then, Unhashed};
use crate::{
    app::{files, project},
    commands::{Command, split_label},
    state::{Dialog, Document, JobKind, NoticeKind, Sort},
    widgets::number,
};
use limbeck_engine::{
    data::SplitName,
    jobs::{Event, JobId, ModelInfo, Point},
    project::ProjectFile,
    recipe::Recipe,
    sensitivity::Direction,
};
use std::path::{Path, PathBuf};

impl Session {
    pub(super) fn take(&mut self, event: Event) {
        self.state.mirror.take(&event);
        match event {
            Event::Opened { job, info } => self.opened(job, *info),
            Event::Hashed { job, sha256 } => self.hashed(job, sha256),
            Event::Unsound { warning, .. } => {
                self.state.mirror.log(false, warning.clone());
                self.state.mirror.set_unsound(warning.clone());
                self.state.notify(NoticeKind::Warning, warning);
            }
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
                    // What was edited or came in while it was written would be lost.
                    if let Some(after) = after {
                        self.guarded(after);
                    }
                }
                then => {
                    let note = if note.is_empty() {
                        String::new()
                    } else {
                        format!(" · {note}")
                    };
                    self.state
                        .notify(NoticeKind::Info, format!("Wrote {}{note}", path.display()));
                    if let Some(Then::Exported(steps, seed)) = then {
                        self.confirm_exported(&steps, seed);
                    }
                }
            },
            Event::Failed { job, message } if self.target_failed(job, &message) => {}
            Event::Failed { job, .. } if self.not_confirmed(job) => {}
            Event::Confirmed {
                job,
                model_sha256,
                pair,
            } => self.confirmed(job, &model_sha256, &pair),
            // It is said where it would have stood.
            Event::Failed { job, .. }
                if self.state.job(job).map(|job| job.kind) == Some(JobKind::Input) =>
            {
                self.ended(job);
            }
            Event::Failed { job, message } => {
                // A measurement that fails once fails again.
                if self.state.job(job).map(|job| job.kind) == Some(JobKind::Measure) {
                    self.original_wanted = false;
                }
                let then = self.ended(job);
                self.state.notify(NoticeKind::Error, message);
                match then {
                    Some(Then::Opened(_) | Then::ReadProject) => self.taking_up = None,
                    // Its checkpoints may be there still.
                    Some(Then::Distilled(_)) => self.find_runs(),
                    _ => {}
                }
            }
            // The end cancels all there is, and keeps what there is to keep.
            Event::Cancelled { job } if self.ending => {
                self.ended(job);
            }
            Event::Cancelled { job } if self.target_failed(job, "It was not read: cancelled") => {}
            Event::Cancelled { job } => {
                let distilled = self.state.job(job).map(|job| job.kind) == Some(JobKind::Distil);
                let taken_up = self.taken_up.as_ref().is_some_and(|(id, _)| *id == job);
                match (distilled, self.ended(job)) {
                    (true, Some(Then::Distilled(_))) if taken_up => {
                        self.state.notify(
                            NoticeKind::Info,
                            "Cancelled before an epoch was better than the start. A distillation that had not been taken up yet is offered again.",
                        );
                        self.find_runs();
                    }
                    (true, Some(Then::Distilled(_))) => self.state.notify(
                        NoticeKind::Info,
                        "Training cancelled before an epoch was better than its start: only the point from before it is kept.",
                    ),
                    (_, Some(Then::Opened(_))) => self.taking_up = None,
                    _ => {}
                }
            }
            // One that is taken up may have been found before its job was begun.
            Event::Interrupted { job, .. } => self.runs_found(job),
            // It is told before the window goes.
            Event::NotKept { message, .. } if self.ending => {
                self.state.view.dialog = Some(Dialog::Closing(Some(message)));
            }
            Event::Ended if self.ending => {
                let told = matches!(self.state.view.dialog, Some(Dialog::Closing(Some(_))));
                if !told {
                    self.requests.push(Request::Quit);
                }
            }
            Event::Note { message, .. } => self.state.notify(NoticeKind::Warning, message),
            Event::Point(point) => self.tell_of(&point),
            Event::Stopped { job, recipe } => self.judge_stopped(job, recipe),
            Event::Finished { job } => {
                let then = self.ended(job);
                match then {
                    Some(Then::Opened(_) | Then::Data) => {
                        self.state.refresh();
                        self.find_runs();
                        self.model_is_open();
                        if Command::MeasurePlan(SplitName::Search)
                            .enabled(&self.state)
                            .is_ok()
                        {
                            self.measure_baseline(SplitName::Search);
                        }
                        if self.settings.map_at_once
                            && Command::StartMap.enabled(&self.state).is_ok()
                        {
                            self.map(Direction::Alone);
                        }
                    }
                    Some(Then::Measured(split)) => self.measure_baseline(split),
                    Some(Then::Distilled(split)) => {
                        // So that its point is seen.
                        self.state.view.split = split;
                        self.measure_baseline(split);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    pub(super) fn ended(&mut self, job: JobId) -> Option<Then> {
        if self.measuring.as_ref().is_some_and(|(id, ..)| *id == job) {
            self.measuring = None;
        }
        if self.taken_up.as_ref().is_some_and(|(id, _)| *id == job) {
            self.taken_up = None;
        }
        self.keeping.remove(&job);
        self.then.remove(&job)
    }

    /// The plot and relative goals want the original on the same split.
    pub(super) fn measure_baseline(&mut self, split: SplitName) {
        self.state.refresh();
        let limit = self.limit(split);
        let len = self.state.split_len(split);
        let n = limit.map_or(len, |limit| limit.min(len)) as u64;
        let known = self
            .state
            .points()
            .iter()
            .any(|p| p.split() == split && p.is_baseline() && p.samples() == n);
        if known || self.state.is_busy(JobKind::Measure) {
            return;
        }
        self.send_original(split, limit);
    }

    /// A line of the log for a measured point.
    fn tell_of(&mut self, point: &Point) {
        let found = self.state.points().iter().find(|old| *old.point == *point);
        let Some(named) = found else { return };
        let metrics = &point.metrics;
        let mut line = format!(
            "{} on {}: {} {} %",
            named.name,
            split_label(metrics.split),
            metrics.top1_name(),
            number::points_with_interval(metrics.top1.value, metrics.top1.ci),
        );
        if let Some(drop) = &metrics.drop {
            line += &format!(
                ", {} {} pt",
                metrics.drop_name(),
                number::points_with_interval(drop.drop, drop.ci)
            );
        }
        line += &format!(
            ", n {}, {} kB stored",
            number::grouped(metrics.top1.n),
            number::kilobytes(point.sizes.stored.0)
        );
        // What a cancelled training left is partial as well, and its name says so.
        if point.partial && !point.recipe.is_partial() {
            line += ", before distilling";
        }
        self.state.mirror.log(false, line);
    }

    pub(super) fn opened(&mut self, job: JobId, info: ModelInfo) {
        if matches!(self.then.get(&job), Some(Then::Opened(_))) {
            // What was said of another model.
            self.state.notices.clear();
        }
        for warning in &info.warnings {
            self.state.mirror.log(false, warning.clone());
            self.state.notify(NoticeKind::Warning, warning.clone());
        }
        let waits = info.sha256.is_none();
        let overlay = match self.then.get_mut(&job) {
            Some(Then::Data) => {
                self.unhashed.job = waits.then_some(job);
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
        self.unhashed = Unhashed {
            job: waits.then_some(job),
            ..Default::default()
        };
        self.state.document = Document::fresh();
        self.state.history.clear();
        self.state.project_path = None;
        self.measuring = None;
        let view = &mut self.state.view;
        view.selection.clear();
        view.selected_point = None;
        view.split = SplitName::Search;
        view.filter.clear();
        view.sort = Sort::default();
        view.focus = self.state.mirror.layer_ids().first().cloned();
        self.state.mark_saved();
        self.state.refresh();
        match overlay {
            Overlay::Nothing => self.remember(&path),
            Overlay::Project(path, project) => {
                let warnings = if waits {
                    let warnings = project::lay_plan(&mut self.state, &project);
                    self.state.refresh();
                    self.unhashed.numbers = Some(project);
                    warnings
                } else {
                    project::lay_over(&mut self.state, *project)
                };
                for warning in warnings {
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

    pub(super) fn text(&mut self, job: JobId, path: PathBuf, text: &str) {
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
                Ok(mut recipe) => {
                    recipe.rename_target_files(|target| files::absolute(target.to_owned()));
                    let here = |p: &Path| path.parent().map_or_else(|| p.into(), |dir| dir.join(p));
                    let (model, task) = (here(&recipe.model), here(&recipe.task));
                    self.open(model, Some(task), Overlay::Recipe(path, Box::new(recipe)));
                }
                Err(error) => self.fail(error.to_string()),
            },
            Some(Then::ReadTarget(name)) => self.target_read(name, text),
            _ => {}
        }
    }

    pub(super) fn remember(&mut self, path: &Path) {
        let recent = &mut self.state.view.recent;
        recent.retain(|old| old != path);
        recent.insert(0, path.to_owned());
        recent.truncate(10);
    }
}
