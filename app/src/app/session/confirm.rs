//! Points held against the deployment runtime: what is asked, and what is said of the answer.

use super::{Session, Then};
use crate::{
    panels::pair_in_short,
    state::{JobKind, NoticeKind, PointId},
};
use limbeck_engine::{
    confirm::RuntimePair,
    jobs::{Command as Job, JobId},
    recipe::Step,
};
use std::{path::PathBuf, sync::Arc};

impl Session {
    /// Holds a point's exported file against the runtime, on the samples that the point was judged on.
    pub(super) fn confirm(&mut self, id: PointId) {
        let Some(named) = self.state.mirror.point(id) else {
            return;
        };
        let point = named.point.clone();
        let title = format!("Confirm {}", named.name);
        let library = self.state.view.runtime.clone();
        let job = self.job(JobKind::Confirm, &title, Then::Confirmed(id));
        self.send(Job::Confirm {
            job,
            recipe: Arc::new(point.recipe.clone()),
            split: point.metrics.split,
            limit: point.limit,
            library,
        });
    }

    /// A plan was written: its newest point, on the holdout if there is one, is held against the runtime.
    pub(super) fn confirm_exported(&mut self, steps: &[Step], seed: u64) {
        use limbeck_engine::data::SplitName::{Holdout, Search};
        let of = |split| {
            self.state.points().iter().rev().find(|p| {
                p.split() == split
                    && p.point.recipe.steps == steps
                    && (steps.is_empty() || p.point.recipe.seed == seed)
            })
        };
        match of(Holdout).or_else(|| of(Search)).map(|p| p.id) {
            Some(id) => self.confirm(id),
            None => self.state.notify(
                NoticeKind::Info,
                "Not held against ONNX Runtime: this plan is not measured yet. Measure it, then Confirm in ONNX Runtime.",
            ),
        }
    }

    /// Says what came of it; a disagreement stays on the window until it is dismissed.
    pub(super) fn confirmed(&mut self, job: JobId, model_sha256: &str, pair: &RuntimePair) {
        let Some(Then::Confirmed(id)) = self.then.get(&job) else {
            return;
        };
        let name = self
            .state
            .mirror
            .point(*id)
            .map_or_else(String::new, |named| named.name.clone());
        let found = self.state.mirror.add_pair(model_sha256, pair);
        let words = format!("{name}: {}", pair_in_short(pair));
        self.state.mirror.log(!pair.agrees(), words.clone());
        if found == 0 {
            self.state.notify(
                NoticeKind::Warning,
                format!(
                    "{words}. It does not stand at the point, whose file has another hash than the one built now ({}): measure the plan again",
                    &model_sha256.get(..12).unwrap_or(model_sha256)
                ),
            );
        } else if pair.agrees() {
            self.state.notify(NoticeKind::Info, words);
        } else {
            self.state.notify(NoticeKind::Error, words);
        }
    }

    /// Where nothing could be confirmed: without a runtime the whole search stands in its dialog, a notice says where.
    pub(super) fn not_confirmed(&mut self, job: JobId) -> bool {
        let missing = matches!(&self.state.mirror.runtime, Some(Err(_)));
        if !matches!(self.then.get(&job), Some(Then::Confirmed(_))) || !missing {
            return false;
        }
        self.then.remove(&job);
        self.state.notify(
            NoticeKind::Warning,
            "Not confirmed: no ONNX Runtime could be used. Menu → ONNX Runtime… says what was looked for and takes its path.",
        );
        true
    }

    /// Keeps where the runtime lies, and looks whether it is there.
    pub(super) fn find_runtime(&mut self, library: Option<PathBuf>) {
        self.state.view.runtime.clone_from(&library);
        self.state.mirror.runtime = None;
        let job = self.job(JobKind::File, "Look for ONNX Runtime", Then::Nothing);
        self.send(Job::FindRuntime { job, library });
    }
}
