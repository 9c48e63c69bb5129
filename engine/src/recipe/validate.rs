//! What a recipe may say, beyond its types: order of steps, ranges of numbers, goals.

use super::{
    Choice, Goal, PruneStep, Recipe, RecipeError, Step, channels::refuse, low_rank, text::Anchor,
};
use crate::compress::{PruneSchedule, Ratio};

/// The schema this engine reads and writes.
pub const RECIPE_VERSION: u32 = 1;

/// Refuses, with the reason, what cannot be carried out on any model.
pub(super) fn validate(recipe: &Recipe) -> Result<(), RecipeError> {
    if recipe.version != RECIPE_VERSION {
        return Err(version(recipe.version));
    }
    goals(&recipe.goals)?;
    let mut students = 0;
    let mut blocks = 0;
    let mut channels = 0;
    let mut low_ranks = 0;
    let mut clusters = 0;
    let mut prunes = 0;
    let mut patterns = 0;
    let mut quantizes = 0;
    let mut folds = 0;
    let mut distils = 0;
    for (index, step) in recipe.steps.iter().enumerate() {
        match step {
            Step::FoldBatchNorm => {
                let here = Anchor::Word("FoldBatchNorm", folds);
                folds += 1;
                if folds > 1 {
                    return Err(RecipeError::new(
                        "FoldBatchNorm stands here twice; once is enough",
                    )
                    .at(here));
                }
                if prunes + quantizes > 0 {
                    return Err(RecipeError::new(
                        "FoldBatchNorm must come before Prune and Quantize: it changes the weights that their masks and scales belong to",
                    )
                    .at(here));
                }
            }
            Step::Student(step) => {
                let here = Anchor::Word("Student", students);
                students += 1;
                if index > 0 {
                    return Err(RecipeError::new(
                        "Student must be the first step: it stands in the original's place, and all else is done to it",
                    )
                    .at(here));
                }
                step.check()
                    .map_err(|e| RecipeError::new(format!("Student: {e}")).at(here))?;
            }
            Step::PruneBlocks(step) => {
                let here = Anchor::Word("PruneBlocks", blocks);
                blocks += 1;
                if low_ranks + quantizes > 0 {
                    return Err(RecipeError::new(
                        "PruneBlocks must come before LowRank and Quantize: blocks are judged, and statistics settled, on layers that are whole",
                    )
                    .at(here));
                }
                step.check()
                    .map_err(|e| RecipeError::new(format!("PruneBlocks: {e}")).at(here))?;
            }
            Step::PruneChannels(step) => {
                let here = Anchor::Word("PruneChannels", channels);
                channels += 1;
                if low_ranks > 0 {
                    return Err(RecipeError::new(
                        "PruneChannels must come before LowRank: channels are compared by weights that are still whole",
                    )
                    .at(here));
                }
                if patterns > 0 {
                    return Err(RecipeError::new(
                        "PruneChannels must come before Prune with an N:M pattern: inputs that go would move the others to other groups",
                    )
                    .at(here));
                }
                if quantizes > 0 {
                    return Err(RecipeError::new(
                        "PruneChannels must come before Quantize: scales are taken from the weights that are left",
                    )
                    .at(here));
                }
                step.check().map_err(|e| refuse(&e).at(here))?;
            }
            Step::LowRank(step) => {
                let here = Anchor::Word("LowRank", low_ranks);
                low_ranks += 1;
                if prunes + quantizes > 0 {
                    return Err(RecipeError::new(
                        "LowRank must come before Prune and Quantize: masks and scales belong to the weights that it takes apart",
                    )
                    .at(here));
                }
                step.check().map_err(|e| low_rank::refuse(&e).at(here))?;
            }
            Step::Prune(prune) => {
                let here = Anchor::Word("Prune", prunes);
                prunes += 1;
                patterns += usize::from(!prune.pattern.is_unstructured());
                if prunes > 1 {
                    return Err(
                        RecipeError::new("a second Prune step; put all ratios into one").at(here),
                    );
                }
                if quantizes > 0 {
                    return Err(RecipeError::new(
                        "Prune must come before Quantize: scales are taken from the weights that are left",
                    )
                    .at(here));
                }
                if let Choice::Set(r) = &prune.default {
                    ratio(prune, *r, "default", here.clone())?;
                }
                for rule in &prune.layers {
                    if let Choice::Set(r) = &rule.1 {
                        ratio(prune, *r, &rule.0, Anchor::Literal(rule.0.clone(), 0))?;
                    }
                }
                if let Some(schedule) = &prune.schedule {
                    timeline(schedule, recipe.steps.get(index + 1)).map_err(|e| e.at(here))?;
                }
            }
            Step::Quantize(quantize) => {
                let here = Anchor::Word("Quantize", quantizes);
                quantizes += 1;
                if quantizes > 1 {
                    return Err(RecipeError::new(
                        "a second Quantize step; put all precisions into one",
                    )
                    .at(here));
                }
                quantize
                    .scheme
                    .check()
                    .map_err(|e| RecipeError::new(format!("Quantize: {e}")).at(here))?;
            }
            Step::Cluster(_) => clusters += 1,
            // Their order is looked at below, all steps in view.
            Step::Equalize(_)
            | Step::SmoothQuant(_)
            | Step::SequentialMse(_)
            | Step::AdaRound(_)
            | Step::Brecq(_)
            | Step::Gptq(_)
            | Step::CorrectBias(_) => {}
            Step::Distil(settings) => {
                let here = Anchor::Word("Distil", distils);
                distils += 1;
                if students + blocks + channels + low_ranks + prunes + quantizes + clusters == 0 {
                    return Err(RecipeError::new(
                        "Distil has nothing to recover here; put it after Student, PruneBlocks, PruneChannels, LowRank, Prune, Cluster or Quantize",
                    )
                    .at(here));
                }
                if settings.learned_step_sizes && quantizes == 0 {
                    return Err(RecipeError::new(
                        "learned_step_sizes is on, but nothing is quantised yet: put Distil behind Quantize",
                    )
                    .at(here));
                }
                let before = index.checked_sub(1).and_then(|at| recipe.steps.get(at));
                if matches!(before, Some(Step::Distil(first)) if !first.keep_last) {
                    return Err(RecipeError::new(
                        "two Distil steps in a row; give one of them more epochs instead, or `keep_last: true` to the first where the second is to go on from its last state",
                    )
                    .at(here));
                }
                settings
                    .check()
                    .map_err(|e| RecipeError::new(e.to_string()).at(here))?;
            }
        }
    }
    super::cluster::validate(recipe)?;
    super::methods::validate(recipe)
}

pub(super) fn version(found: u32) -> RecipeError {
    RecipeError::new(format!(
        "is version {found} of the recipe schema; this engine ({}) reads version {RECIPE_VERSION}",
        crate::VERSION
    ))
    .at(Anchor::Word("version", 0))
}

/// A schedule needs the training that it is laid over, right behind it and long enough.
fn timeline(schedule: &PruneSchedule, next: Option<&Step>) -> Result<(), RecipeError> {
    schedule
        .check()
        .map_err(|e| RecipeError::new(format!("Prune: {e}")))?;
    let Some(Step::Distil(training)) = next else {
        return Err(RecipeError::new(
            "Prune: its schedule counts the epochs of the training behind it: put Distil right behind it, or leave `schedule` out",
        ));
    };
    if schedule.end() > training.trained_epochs() as f64 {
        return Err(RecipeError::new(format!(
            "Prune: its schedule ends at epoch {}, but the Distil behind it trains {} epochs",
            schedule.end(),
            training.trained_epochs()
        )));
    }
    Ok(())
}

fn ratio(prune: &PruneStep, value: Ratio, whose: &str, anchor: Anchor) -> Result<(), RecipeError> {
    prune
        .pattern
        .check(value)
        .map_err(|e| RecipeError::new(format!("Prune: `{whose}`: {e}")).at(anchor))
}

fn goals(goals: &[Goal]) -> Result<(), RecipeError> {
    let mut seen: Vec<&'static str> = Vec::new();
    for goal in goals {
        let (kind, value) = match goal {
            Goal::DropPoints(v) => ("DropPoints", *v),
            Goal::DropRelativePercent(v) => ("DropRelativePercent", *v),
            Goal::StoredKilobytes(v) => ("StoredKilobytes", *v),
            Goal::RuntimeKilobytes(v) => ("RuntimeKilobytes", *v),
        };
        if seen.contains(&kind) {
            return Err(
                RecipeError::new(format!("the goal {kind} stands here twice"))
                    .at(Anchor::Word(kind, 1)),
            );
        }
        seen.push(kind);
        let percent = matches!(goal, Goal::DropPoints(_) | Goal::DropRelativePercent(_));
        if !(value.is_finite() && value > 0.0 && (!percent || value <= 100.0)) {
            return Err(RecipeError::new(format!(
                "the goal {kind} is {value}; a number above 0{} was expected",
                if percent { " and at most 100" } else { "" }
            ))
            .at(Anchor::Word(kind, 0)));
        }
    }
    Ok(())
}
