//! Jobs sent to the engine: measuring, distilling, the map, inspections.

use super::{Session, Then};
use crate::{
    commands::split_label,
    state::{Dialog, JobKind, NoticeKind, Tab},
};
use limbeck_engine::{
    compress::PruneSchedule,
    data::SplitName,
    jobs::{Command as Job, JobId, Keep},
    recipe::{Recipe, Step},
    sensitivity::Direction,
    train::DistilSettings,
};
use std::sync::Arc;

impl Session {
    pub(super) fn job(&mut self, kind: JobKind, title: &str, then: Then) -> JobId {
        let job = JobId(self.next_job);
        self.next_job += 1;
        self.state.mirror.add_job(job, kind, title.to_owned());
        self.then.insert(job, then);
        job
    }

    /// Ends the engine where a distillation at work is to keep its state first; whether that is to be waited for: until [`Request::Quit`].
    ///
    /// [`Request::Quit`]: super::Request::Quit
    pub fn end(&mut self) -> bool {
        // As it was begun, not as the next one would be.
        let keeping = |job: &crate::state::Job| self.keeping.contains(&job.id);
        let keeps = self.state.active_jobs().any(keeping);
        if self.ending || !keeps {
            return false;
        }
        self.send(Job::Shutdown);
        self.ending = true;
        // Nothing of the window can be used any more.
        self.state.view.palette_open = false;
        self.state.view.dialog = Some(Dialog::Closing(None));
        true
    }

    pub(super) fn send(&mut self, command: Job) {
        if self.ending {
            return;
        }
        if self.commands.send(command).is_err() {
            self.fail(
                "The engine has stopped; save the project and start Limbeck again".to_owned(),
            );
        }
    }

    pub(super) fn fail(&mut self, message: String) {
        self.state.mirror.log(true, message.clone());
        self.state.notify(NoticeKind::Error, message);
    }

    /// After an edit: measures the plan on the search split, unless it is known or under way.
    pub(super) fn measure_edit(&mut self) {
        self.state.refresh();
        if self.state.measurable().is_err() || self.state.split_len(SplitName::Search) == 0 {
            return;
        }
        if let Err(why) = self.state.target_allows() {
            // What is being read is measured when it is there.
            let target = self.state.document.scheme.target.as_deref();
            let is_read = target.is_some_and(|name| self.state.target(name).is_some());
            if is_read {
                self.state
                    .notify(NoticeKind::Warning, format!("Not measured. {why}"));
            }
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
        self.send_measure(SplitName::Search, "Measure");
    }

    /// How many samples of a split are judged: on the search split always as many as for an edit, so that its points can be
    /// compared; all of any other.
    pub(super) fn limit(&self, split: SplitName) -> Option<usize> {
        match split {
            SplitName::Search => self
                .settings
                .edit_limit
                .filter(|limit| *limit < self.state.split_len(split)),
            _ => None,
        }
    }

    /// Measures the plan on a split on demand.
    pub(super) fn measure(&mut self, split: SplitName) {
        self.state.history.commit(&self.state.document);
        self.state.refresh();
        self.state.view.split = split;
        self.state.view.tab = Tab::TradeOff;
        let before = if self.state.document.distil.is_some() {
            " before distilling"
        } else {
            ""
        };
        let title = format!("Measure on {}{before}", split_label(split));
        self.send_measure(split, &title);
    }

    /// Asks for the original on the whole search split once it is wanted and the lane is free: a newer measurement would
    /// replace one that waits or runs.
    pub(super) fn measure_original(&mut self) {
        let split = SplitName::Search;
        let len = self.state.split_len(split);
        if !self.original_wanted || len == 0 || self.state.original(split, len as u64).is_some() {
            self.original_wanted = false;
            return;
        }
        if !self.state.is_busy(JobKind::Measure) {
            self.send_original(split, None);
        }
    }

    pub(super) fn send_original(&mut self, split: SplitName, limit: Option<usize>) {
        let Some(mut recipe) = self.state.recipe(false) else {
            return;
        };
        recipe.steps.clear();
        let title = format!("Measure the original on {}", split_label(split));
        let job = self.job(JobKind::Measure, &title, Then::Nothing);
        self.send(Job::Measure {
            job,
            recipe: Arc::new(recipe),
            split,
            limit,
        });
    }

    pub(super) fn send_measure(&mut self, split: SplitName, title: &str) {
        let limit = self.limit(split);
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

    /// Trains the plan; its weights are pruned by `schedule` meanwhile, or at once.
    pub(super) fn distil(&mut self, settings: DistilSettings, schedule: Option<PruneSchedule>) {
        self.state.view.dialog = None;
        self.state.history.commit(&self.state.document);
        self.state.history.begin(&self.state.document);
        self.state.document.distil = Some(settings);
        self.state.document.shrinking.schedule = schedule;
        self.state.history.commit(&self.state.document);
        self.state.refresh();
        let split = if self.state.split_len(SplitName::Holdout) > 0 {
            SplitName::Holdout
        } else {
            SplitName::Search
        };
        let keep = self.keep();
        if let Some(recipe) = self.state.recipe(true) {
            self.train(recipe, split, keep);
        }
    }

    /// Sends a distillation to the engine and shows it.
    pub(super) fn train(&mut self, recipe: Recipe, split: SplitName, keep: Option<Keep>) -> JobId {
        let title = self.state.mirror.next_distil();
        let job = self.job(JobKind::Distil, &title, Then::Distilled(split));
        let recipe = Arc::new(recipe);
        self.state.mirror.asked(job, recipe.clone());
        self.state.view.tab = Tab::Training;
        self.state.view.run = None;
        self.state.view.epoch = None;
        self.original_wanted = true;
        if keep.as_ref().is_some_and(Keep::wants_any) {
            self.keeping.insert(job);
        }
        self.send(Job::Run {
            job,
            recipe,
            split,
            keep,
        });
        job
    }

    /// A cancelled training left its best epoch: it becomes a point of its own.
    pub(super) fn judge_stopped(&mut self, job: JobId, recipe: Arc<Recipe>) {
        let Some(Then::Distilled(split)) = self.then.get(&job) else {
            return;
        };
        let split = *split;
        self.then.insert(job, Then::Stopped);
        let epochs = recipe.steps.iter().rev().find_map(|step| match step {
            Step::Distil(settings) => Some((settings.trained_epochs(), settings.epochs)),
            _ => None,
        });
        let (best, all) = epochs.unwrap_or_default();
        self.state.notify(
            NoticeKind::Info,
            format!(
                "Training cancelled. Its best epoch, {best} of {all}, is kept and is being judged on {} as a point marked partial.",
                split_label(split)
            ),
        );
        let title = format!("Judge the best epoch on {}", split_label(split));
        let job = self.job(JobKind::Judge, &title, Then::Distilled(split));
        self.send(Job::Run {
            job,
            recipe,
            split,
            keep: None,
        });
    }

    pub(super) fn map(&mut self, direction: Direction) {
        let known = self.state.mirror.all_cells().cloned().collect();
        let title = match direction {
            Direction::Alone => "Map",
            Direction::AllBut => "Map, all but one",
        };
        let job = self.job(JobKind::Map, title, Then::Nothing);
        self.send(Job::Map {
            job,
            known,
            limit: self.settings.map_limit,
            direction,
        });
    }

    /// Asks how the plan would run at its target whenever its precisions, the scheme or the target's description changed.
    pub(super) fn foresee(&mut self) {
        // A document's generation stands for all of them but descriptions.
        let key = self.state.foresight_key();
        if self.foreseen == Some(key) {
            return;
        }
        self.foreseen = Some(key);
        let Some(asked) = self.state.to_foresee() else {
            return;
        };
        if self.state.foreseen() == Some(&asked) {
            return;
        }
        let job = self.job(JobKind::Inspect, "Foresee", Then::Nothing);
        self.send(Job::Foresee {
            job,
            layers: asked.layers.clone(),
            scheme: asked.scheme.clone(),
            target: asked.target.clone(),
        });
        self.state.mirror.foresee(job, asked);
        self.state.refresh();
    }

    /// Asks for the histogram of the focused layer whenever it, its setting or the scheme changed (not while a slider moves).
    pub(super) fn inspect(&mut self) {
        let Some(layer) = self.state.focus().map(|layer| layer.id.clone()) else {
            return;
        };
        // While a slider moves only a layer that has just come into the inspector is looked at.
        let seen = self.inspected.as_ref().is_some_and(|old| old.0 == layer);
        if self.state.history.is_open() && seen {
            return;
        }
        let setting = self.state.inspected_setting(&layer);
        let scheme = self.state.document.scheme.clone();
        let key = (layer, setting, scheme, self.state.mirror.model_version);
        if self.inspected.as_ref() != Some(&key) {
            self.inspected = Some(key.clone());
            let job = self.job(JobKind::Inspect, "Inspect", Then::Nothing);
            let (layer, setting, scheme, _) = key.clone();
            self.send(Job::Inspect {
                job,
                layer,
                setting,
                scheme,
            });
        }
        if self.state.inspects_input() && self.counted.as_ref() != Some(&key) {
            let title = format!("Count what {} reads", key.0.0);
            let job = self.job(JobKind::Input, &title, Then::Nothing);
            self.state.mirror.count(job, key.0.clone());
            self.counted = Some(key.clone());
            let (layer, setting, scheme, _) = key;
            self.send(Job::InspectInput {
                job,
                layer,
                setting,
                scheme,
            });
        }
    }
}
