//! The recipe: what to do to a model, in RON; strict reading, resolution of globs to layers, the pipeline that carries it
//! out, and the lock file that says exactly what was done. Desktop and command line run the same pipeline.

mod blocks;
mod channels;
mod checkpoints;
mod cluster;
mod confirm;
mod errors;
mod files;
mod identity;
mod interrupted;
mod lock;
mod low_rank;
mod method_kind;
mod methods;
mod pipeline;
mod plan;
mod resolve;
mod session;
mod shrinking;
mod student;
mod targets;
mod text;
mod validate;
mod verdict;

#[cfg(test)]
mod channel_tests;
#[cfg(test)]
mod tests;

pub use blocks::PruneBlocksStep;
pub use channels::PruneChannelsStep;
pub use checkpoints::{CHECKPOINT_FOLDER, CheckpointEvery, Checkpoints, RunStart};
pub use cluster::ClusterStep;
pub use confirm::{Confirmed, RuntimeQuestion, confirm, confirm_bytes};
pub use errors::PipelineError;
pub use files::{relative_to, sha256, sha256_file, sweep, write_atomic};
pub use interrupted::{Interrupted, begin_run, discard_run, interrupted_runs};
use lock::machine;
pub use lock::{
    LOCK_FILE, LOCK_VERSION, Lock, LockedChannels, LockedLayer, METRICS_FILE, MODEL_FILE,
    PREDICTIONS_FILE, RECIPE_FILE, Verified, open_recipe, predictions_text, verify,
};
pub use low_rank::LowRankStep;
pub use method_kind::MethodKind;
pub use methods::{CorrectBiasStep, EqualizeStep, MethodStep, Toggle, ToggleRule};
pub use pipeline::{
    Built, Reached, RunObserver, RunOutcome, Unwatched, build, judge_built, run, run_kept,
    steps_without_training,
};
pub use plan::{LayerNames, PlanContext};
pub use resolve::{Resolved, ResolvedStep, method_layers, resolve, shrunk_layers};
pub use session::{Session, facts, shape_words, task_beside};
pub use shrinking::Shrinking;
pub use student::{StudentNetwork, StudentStep};
pub use targets::evaluate_at;
pub(crate) use text::claimed_version;
pub use text::{RecipeError, from_ron, read_text, to_ron};
pub use validate::RECIPE_VERSION;
pub use verdict::{GoalVerdict, judge, overall};

use crate::{
    compress::{
        AdaRoundSettings, BrecqSettings, GptqSettings, Pattern, Precision, PruneSchedule,
        QuantScheme, Ratio, ScaleSearchSettings, SmoothQuantSettings,
    },
    train::DistilSettings,
};
use std::path::{Path, PathBuf};

/// Per-layer value of a step. Precedence: `default` < glob < exact name; `Keep` leaves a layer alone.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice<T> {
    Keep,
    Set(T),
}

/// One line of a step's `layers`: a glob or a name, and its value.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Rule<T>(pub String, pub Choice<T>);

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Step {
    FoldBatchNorm,
    /// A narrower and shallower network made from the model, or a given one; the first step.
    Student(StudentStep),
    PruneBlocks(PruneBlocksStep),
    PruneChannels(PruneChannelsStep),
    LowRank(LowRankStep),
    Cluster(ClusterStep),
    Prune(PruneStep),
    Equalize(EqualizeStep),
    Quantize(QuantizeStep),
    SmoothQuant(MethodStep<SmoothQuantSettings>),
    SequentialMse(MethodStep<ScaleSearchSettings>),
    AdaRound(MethodStep<AdaRoundSettings>),
    Brecq(MethodStep<BrecqSettings>),
    Gptq(MethodStep<GptqSettings>),
    CorrectBias(CorrectBiasStep),
    Distil(DistilSettings),
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneStep {
    pub default: Choice<Ratio>,
    #[serde(default)]
    pub layers: Vec<Rule<Ratio>>,
    #[serde(default, skip_serializing_if = "Pattern::is_unstructured")]
    pub pattern: Pattern,
    /// Left out: at once. Otherwise by the `Distil` behind it, which holds the timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<PruneSchedule>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizeStep {
    pub default: Choice<Precision>,
    #[serde(default)]
    pub layers: Vec<Rule<Precision>>,
    /// What a recipe leaves out is the target's, where it names one.
    #[serde(default, deserialize_with = "targets::scheme")]
    pub scheme: QuantScheme,
}

/// A goal: at most so much. Drops are of top-1 against the original model on the same samples (a gain is negative).
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Goal {
    /// Absolute percentage points: 92.0 % → 90.0 % is 2 points.
    DropPoints(f64),
    /// Percent of the original's top-1: 92.0 % → 90.16 % is 2 percent.
    DropRelativePercent(f64),
    /// Size of the exported file, in units of 1,000 bytes.
    StoredKilobytes(f64),
    /// Weights in memory while running, in units of 1,000 bytes.
    RuntimeKilobytes(f64),
}

/// Pass, fail, or too few samples to tell, judged by the whole 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    Fail,
    Inconclusive,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of this schema: 1.
    pub version: u32,
    #[serde(default)]
    pub name: String,
    /// Relative to the recipe's own folder.
    pub model: PathBuf,
    pub task: PathBuf,
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub goals: Vec<Goal>,
    pub steps: Vec<Step>,
}

/// A recipe with the text and folder it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeFile {
    pub recipe: Recipe,
    pub path: PathBuf,
    pub text: String,
}

impl Recipe {
    /// The recipe that leaves the model as it is: the baseline.
    pub fn baseline(model: PathBuf, task: PathBuf) -> Self {
        Self {
            version: RECIPE_VERSION,
            name: String::new(),
            model,
            task,
            seed: 0,
            goals: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Reads and validates a recipe. `path` is for messages, and for finding a target's description that is a file. Errors say line, column and the nearest known name.
    pub fn parse(text: &str, path: &Path) -> Result<Self, RecipeError> {
        // Before the keys: a newer file is refused for its version, not for a key this engine does not know.
        if let Some(claimed) = text::claimed_version(text)
            && claimed != RECIPE_VERSION
        {
            return Err(validate::version(claimed).locate(path, text));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let recipe: Self = targets::seen_from(folder, || from_ron(text, path))?;
        recipe.validate().map_err(|e| e.locate(path, text))?;
        Ok(recipe)
    }

    /// Refuses, with the reason, what cannot be carried out on any model: order of steps, numbers out of range, goals twice.
    pub fn validate(&self) -> Result<(), RecipeError> {
        validate::validate(self)
    }

    /// The recipe as a file: pretty, and the same bytes for the same recipe.
    pub fn to_ron(&self) -> Result<String, RecipeError> {
        to_ron(self)
    }

    /// Whether carrying it out includes training.
    pub fn trains(&self) -> bool {
        self.steps.iter().any(|s| matches!(s, Step::Distil(_)))
    }
}

impl RecipeFile {
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let text = read_text(path)?;
        Ok(Self {
            recipe: Recipe::parse(&text, path)?,
            path: path.to_owned(),
            text,
        })
    }

    /// A path of the recipe, seen from where the recipe lies.
    pub fn from_here(&self, path: &Path) -> PathBuf {
        self.path
            .parent()
            .map_or_else(|| path.to_owned(), |p| p.join(path))
    }

    /// The model's file; an error names the file that is missing.
    pub fn model_path(&self) -> Result<PathBuf, RecipeError> {
        self.existing("model", &self.recipe.model)
    }

    /// The task's file; an error names the file that is missing.
    pub fn task_path(&self) -> Result<PathBuf, RecipeError> {
        self.existing("task", &self.recipe.task)
    }

    /// The file of the student that the recipe gives, if it does; an error names the file that is missing.
    pub fn student_path(&self) -> Result<Option<PathBuf>, RecipeError> {
        let file = self.recipe.student_file();
        file.map(|path| self.existing("file", path)).transpose()
    }

    fn existing(&self, key: &'static str, path: &Path) -> Result<PathBuf, RecipeError> {
        let full = self.from_here(path);
        if full.is_file() {
            return Ok(full);
        }
        Err(RecipeError::new(format!(
            "{} is not there: {} (paths in a recipe are relative to the recipe's own folder)",
            match key {
                "file" => "the student's file".to_owned(),
                _ => format!("the {key}"),
            },
            full.display()
        ))
        .at(text::Anchor::Word(key, 0))
        .locate(&self.path, &self.text))
    }
}
