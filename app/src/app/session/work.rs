//! Jobs sent to the engine: measuring, distilling, the map, inspections.

use super::{Session, Then};
use crate::{
    commands::split_label,
    state::{JobKind, NoticeKind, Tab},
};
use limbeck_engine::{
    data::SplitName,
    jobs::{Command as Job, JobId},
    recipe::Recipe,
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

    pub(super) fn send(&mut self, command: Job) {
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
        let title = format!("Measure on {}", split_label(split));
        self.send_measure(split, &title);
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

    pub(super) fn distil(&mut self, settings: limbeck_engine::train::DistilSettings) {
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

    /// A cancelled training left its best epoch: it becomes a point of its own.
    pub(super) fn judge_stopped(&mut self, job: JobId, recipe: Arc<Recipe>) {
        let Some(Then::Measured(split)) = self.then.get(&job) else {
            return;
        };
        let split = *split;
        let title = format!("Judge the best epoch on {}", split_label(split));
        let job = self.job(JobKind::Measure, &title, Then::Measured(split));
        self.send(Job::Run { job, recipe, split });
    }

    pub(super) fn map(&mut self) {
        let known = self.state.mirror.all_cells().cloned().collect();
        let job = self.job(JobKind::Map, "Map", Then::Nothing);
        self.send(Job::Map {
            job,
            known,
            limit: self.settings.map_limit,
        });
    }

    /// Asks for the histogram of the focused layer whenever it, its setting or the scheme changed (not while a slider moves).
    pub(super) fn inspect(&mut self) {
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
}
