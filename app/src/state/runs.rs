//! The session's distillations: what was asked for, and their curves as the engine tells them.

use super::Job;
use limbeck_engine::{
    eval::Estimate,
    jobs::{JobId, Point},
    measure::Bytes,
    recipe::{Recipe, Step},
    train::{DistilSettings, TrainPoint},
};
use std::{collections::BTreeMap, sync::Arc};

/// Training curves of one distillation.
#[derive(Clone, Debug, PartialEq)]
pub struct Curves {
    pub job: JobId,
    pub title: String,
    pub points: Vec<TrainPoint>,
    judged: Vec<(f64, Estimate)>,
}

impl Curves {
    pub fn new(job: JobId, title: String) -> Self {
        Self {
            job,
            title,
            points: Vec::new(),
            judged: Vec::new(),
        }
    }

    pub fn push(&mut self, point: TrainPoint) {
        self.judged.extend(point.accuracy.map(|a| (point.epoch, a)));
        self.points.push(point);
    }

    /// What it was judged at on the search split, by epoch.
    pub fn judged(&self) -> &[(f64, Estimate)] {
        &self.judged
    }
}

#[derive(Debug)]
struct Asked {
    title: String,
    recipe: Arc<Recipe>,
    /// Stored bytes and MACs that its first point had: that from before its training.
    sizes: Option<(Bytes, Option<u64>)>,
}

/// See the module's first line.
#[derive(Debug, Default)]
pub struct Runs {
    asked: BTreeMap<JobId, Asked>,
    /// Oldest first.
    curves: Vec<Curves>,
}

impl Runs {
    pub fn ask(&mut self, job: JobId, title: String, recipe: Arc<Recipe>) {
        let asked = Asked {
            title,
            recipe,
            sizes: None,
        };
        self.asked.insert(job, asked);
    }

    /// Those that have begun to train, oldest first.
    pub fn curves(&self) -> &[Curves] {
        &self.curves
    }

    pub fn recipe(&self, run: JobId) -> Option<&Arc<Recipe>> {
        self.asked.get(&run).map(|asked| &asked.recipe)
    }

    /// Stored bytes and MACs of a run's network before its training, once they are known.
    pub fn sizes(&self, run: JobId) -> Option<(Bytes, Option<u64>)> {
        self.asked.get(&run)?.sizes
    }

    pub fn take_curve(&mut self, job: &Job, point: TrainPoint) {
        let known = self.curves.iter().position(|run| run.job == job.id);
        let at = known.unwrap_or_else(|| {
            self.curves.push(Curves::new(job.id, job.title.clone()));
            self.curves.len() - 1
        });
        self.curves[at].push(point);
    }

    pub fn measured(&mut self, point: &Point) {
        if let Some(asked) = self.asked.get_mut(&point.job) {
            let sizes = (point.sizes.stored, point.sizes.macs);
            asked.sizes.get_or_insert(sizes);
        }
    }

    /// What the newest run is called that was asked for this recipe, or for one that this is a part of.
    pub fn title_of(&self, recipe: &Recipe) -> Option<&str> {
        let wanted = whole(recipe);
        let alike =
            |asked: &&Asked| asked.recipe.seed == recipe.seed && whole(&asked.recipe) == wanted;
        let asked = self.asked.values().rev().find(alike);
        asked.map(|asked| asked.title.as_str())
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A recipe's steps, carried out to their end.
fn whole(recipe: &Recipe) -> Vec<Step> {
    let to_the_end = |step: &Step| match step {
        Step::Distil(settings) => Step::Distil(DistilSettings {
            stop_after: None,
            ..settings.clone()
        }),
        other => other.clone(),
    };
    recipe.steps.iter().map(to_the_end).collect()
}
