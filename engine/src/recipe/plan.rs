//! From a per-layer plan (the window's document) to a compact recipe that resolves to exactly that plan.

use super::{
    Choice, Goal, PruneChannelsStep, PruneStep, QuantizeStep, RECIPE_VERSION, Recipe, Rule, Step,
};
use crate::{
    compress::{LayerSetting, Pattern, Precision, QuantScheme, Ratio},
    graph::LayerId,
    search::LayerFacts,
    train::DistilSettings,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
};

/// What a recipe says beside the per-layer plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanContext {
    pub name: String,
    /// As they are to stand in the recipe: relative to the folder it will lie in, or absolute.
    pub model: PathBuf,
    pub task: PathBuf,
    pub seed: u64,
    pub goals: Vec<Goal>,
    pub scheme: QuantScheme,
    /// Pruning takes whole channels out instead of setting weights to zero.
    pub channels: bool,
    /// A last step, where anything was compressed.
    pub distil: Option<DistilSettings>,
}

impl Recipe {
    /// The recipe of a plan: channels out, batch norms folded, one Prune and one Quantize step where the plan asks for them,
    /// distillation last.
    /// Layers absent from `plan` are left unchanged; a plan that changes nothing gives no steps. [`super::resolve`] on the same
    /// `layers` gives the plan back exactly.
    pub fn from_plan(
        context: &PlanContext,
        layers: &[LayerFacts],
        plan: &BTreeMap<LayerId, LayerSetting>,
    ) -> Self {
        let setting = |id: &LayerId| plan.get(id).copied().unwrap_or(LayerSetting::KEEP);
        let ratios: Vec<(&str, Ratio)> = layers
            .iter()
            .map(|l| (&*l.id.0, setting(&l.id).sparsity))
            .collect();
        let precisions: Vec<(&str, Precision)> = layers
            .iter()
            .map(|l| (&*l.id.0, setting(&l.id).precision))
            .collect();
        let mut steps = Vec::new();
        let mut channels = None;
        if ratios.iter().any(|(_, r)| r.0 != 0.0) {
            let (default, layers) = compact(&ratios, |r| r.0 == 0.0);
            if context.channels {
                channels = Some(Step::PruneChannels(PruneChannelsStep {
                    default: Some(default),
                    layers,
                    ..PruneChannelsStep::default()
                }));
            } else {
                steps.push(Step::Prune(PruneStep {
                    default,
                    layers,
                    pattern: Pattern::Unstructured,
                    schedule: None,
                }));
            }
        }
        if precisions.iter().any(|(_, p)| *p != Precision::Fp32) {
            let (default, layers) = compact(&precisions, |p| *p == Precision::Fp32);
            steps.push(Step::Quantize(QuantizeStep {
                default,
                layers,
                scheme: context.scheme.clone(),
            }));
        }
        if !steps.is_empty() || channels.is_some() {
            steps.insert(0, Step::FoldBatchNorm);
            // Before folding: statistics of batch norms can be taken again only while there are any.
            if let Some(channels) = channels {
                steps.insert(0, channels);
            }
            if let Some(distil) = &context.distil {
                steps.push(Step::Distil(distil.clone()));
            }
        }
        Self {
            version: RECIPE_VERSION,
            name: context.name.clone(),
            model: context.model.clone(),
            task: context.task.clone(),
            seed: context.seed,
            goals: context.goals.clone(),
            steps,
        }
    }
}

/// The commonest value as default; then globs over whole name prefixes that share one other value; then single names.
fn compact<'n, T: Copy + PartialEq>(
    values: &[(&'n str, T)],
    neutral: impl Fn(&T) -> bool,
) -> (Choice<T>, Vec<Rule<T>>) {
    let choice = |v: T| {
        if neutral(&v) {
            Choice::Keep
        } else {
            Choice::Set(v)
        }
    };
    // Of equally common values the first.
    let mut counts: Vec<(T, usize)> = Vec::new();
    for (_, value) in values {
        match counts.iter_mut().find(|(known, _)| known == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((*value, 1)),
        }
    }
    counts.reverse();
    let Some((default, _)) = counts.into_iter().max_by_key(|(_, count)| *count) else {
        return (Choice::Keep, Vec::new());
    };
    let prefixes = |name: &'n str| {
        name.char_indices()
            .filter(|(_, c)| matches!(c, '.' | '/' | '_' | ':'))
            .map(move |(at, c)| &name[..at + c.len_utf8()])
    };
    let mut families: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, (name, _)) in values.iter().enumerate() {
        for prefix in prefixes(name) {
            families.entry(prefix).or_default().push(index);
        }
    }
    let uniform: HashSet<&str> = families
        .iter()
        .filter(|(_, members)| {
            members.len() > 1 && members.iter().all(|i| values[*i].1 == values[members[0]].1)
        })
        .map(|(prefix, _)| *prefix)
        .collect();
    let names: HashSet<&str> = values.iter().map(|(name, _)| *name).collect();
    let mut covered = vec![false; values.len()];
    let mut rules = Vec::new();
    for (index, (name, value)) in values.iter().enumerate() {
        if *value == default || covered[index] {
            continue;
        }
        // The shortest prefix, ending in a separator, whose layers all want this value.
        let shared = prefixes(name)
            .filter(|prefix| uniform.contains(prefix))
            .map(|prefix| (format!("{}*", globset::escape(prefix)), &families[prefix]))
            // A layer that is named like the glob would take the rule for itself.
            .find(|(glob, _)| !names.contains(glob.as_str()));
        let rule = if let Some((glob, members)) = shared {
            for i in members {
                covered[*i] = true;
            }
            glob
        } else {
            covered[index] = true;
            (*name).to_owned()
        };
        rules.push(Rule(rule, choice(*value)));
    }
    (choice(default), rules)
}
