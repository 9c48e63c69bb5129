//! The session's distillations: what was asked for, and their curves as the engine tells them.

use super::Job;
use limbeck_engine::{
    eval::Estimate,
    jobs::{JobId, Point},
    measure::Bytes,
    recipe::{Recipe, Step},
    train::{DistilSettings, TrainPoint},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

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

    /// The same by number of the epoch, from 1.
    pub fn epochs(&self) -> impl DoubleEndedIterator<Item = (usize, Estimate)> {
        let number = |(epoch, judged): &(f64, Estimate)| (epoch.round() as usize, *judged);
        self.judged.iter().map(number)
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
    /// Ends of epochs that the engine has kept the network of.
    kept: BTreeSet<(JobId, usize)>,
}

impl Runs {
    pub fn ask(&mut self, job: JobId, title: String, recipe: Arc<Recipe>) {
        // One that goes on from another trains the same network: no point from before its training will tell its size.
        let goes_on = recipe.steps.iter().filter(|s| trains(s)).count() > 1;
        let alike = |asked: &&Asked| untrained(&asked.recipe) == untrained(&recipe);
        let sizes = match goes_on {
            true => self
                .asked
                .values()
                .rev()
                .filter(alike)
                .find_map(|asked| asked.sizes),
            false => None,
        };
        let asked = Asked {
            title,
            recipe,
            sizes,
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

    /// The recipe of a run that goes on from the end of an epoch of another, with the other's settings.
    pub fn from_epoch(&self, run: JobId, epoch: usize) -> Option<Recipe> {
        let whole = self.recipe(run)?;
        let index = whole.steps.iter().rposition(trains)?;
        let Some(Step::Distil(settings)) = whole.steps.get(index) else {
            return None;
        };
        let mut recipe = whole.cut_at(index, epoch)?;
        recipe.steps.push(Step::Distil(DistilSettings {
            stop_after: None,
            keep_last: false,
            ..settings.clone()
        }));
        // Where weights are pruned while training, the plan's other steps come behind it.
        let behind = whole.steps.iter().skip(index + 1);
        recipe.steps.extend(behind.cloned());
        // Masks that grow while training are not final at every epoch.
        recipe.validate().ok().map(|()| recipe)
    }

    /// Whether a new run begins at the end of this epoch at once; else it trains again up to there.
    pub fn is_kept(&self, run: JobId, epoch: usize) -> bool {
        self.kept.contains(&(run, epoch))
    }

    pub fn set_kept(&mut self, kept: &[(JobId, usize)]) {
        self.kept = kept.iter().copied().collect();
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

fn trains(step: &Step) -> bool {
    matches!(step, Step::Distil(_))
}

/// Seed and steps that decide what is trained.
fn untrained(recipe: &Recipe) -> (u64, Vec<&Step>) {
    let steps: Vec<&Step> = recipe.steps.iter().filter(|s| !trains(s)).collect();
    (recipe.seed, steps)
}

/// A recipe's steps, the last training carried out to its end.
fn whole(recipe: &Recipe) -> Vec<Step> {
    let mut steps = recipe.steps.clone();
    let last = steps.iter_mut().rev().find(|step| trains(step));
    if let Some(Step::Distil(settings)) = last {
        settings.stop_after = None;
    }
    steps
}
