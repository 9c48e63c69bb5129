//! The recipe step that shares values among weights: its keys and its place among the steps.

use super::{Choice, Recipe, RecipeError, Rule, Step, text::Anchor};
use crate::compress::{Cluster, Codebooks};

/// How many values the weights of a layer share.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterStep {
    pub default: Choice<usize>,
    #[serde(default)]
    pub layers: Vec<Rule<usize>>,
    #[serde(default)]
    pub codebooks: Codebooks,
}

/// Refuses numbers out of range, a second step, a step that does nothing, and what cannot come after it.
pub(super) fn validate(recipe: &Recipe) -> Result<(), RecipeError> {
    let is = |step: &Step| matches!(step, Step::Cluster(_));
    let Some(here) = recipe.steps.iter().position(is) else {
        return Ok(());
    };
    let refuse = |why: &str, nth: usize| {
        Err(RecipeError::new(format!("Cluster: {why}")).at(Anchor::Word("Cluster", nth)))
    };
    if recipe.steps.iter().filter(|s| is(s)).count() > 1 {
        return refuse("stands here twice; put all its layers into one", 1);
    }
    let behind = recipe.steps.get(here + 1..).unwrap_or_default();
    if behind.iter().any(|s| !matches!(s, Step::Distil(_))) {
        let why = "only Distil may come after it: weights are codes from there on, which no other step changes";
        return refuse(why, 0);
    }
    let Some(Step::Cluster(step)) = recipe.steps.get(here) else {
        return Ok(());
    };
    let choices = std::iter::once(&step.default).chain(step.layers.iter().map(|r| &r.1));
    let mut set = 0;
    for choice in choices {
        if let Choice::Set(values) = choice {
            set += 1;
            if let Err(why) = Cluster::check(*values) {
                return refuse(&why, 0);
            }
        }
    }
    match set {
        0 => refuse(
            "nothing would share values: give `default` or `layers` a number of them such as set(16)",
            0,
        ),
        _ => Ok(()),
    }
}
