//! From a per-layer plan (the window's document) to a compact recipe that resolves to exactly that plan.

use super::{
    Choice, Goal, MethodKind, PruneChannelsStep, PruneStep, QuantizeStep, RECIPE_VERSION, Recipe,
    Rule, Shrinking, Step, Toggle, ToggleRule,
};
use crate::{
    compress::{LayerSetting, Precision, QuantScheme, Ratio},
    graph::{LayerId, in_both},
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
    pub shrinking: Shrinking,
    /// Steps of the kinds in [`MethodKind`], in their order; they stand around Quantize, where a layer is stored in integers.
    pub methods: Vec<Step>,
    /// Where anything was compressed: a last step or, where weights are pruned by a schedule, right behind Prune.
    pub distil: Option<DistilSettings>,
    /// Trainings right before it, each with `keep_last`: what it goes on from.
    pub trained: Vec<DistilSettings>,
}

impl Recipe {
    /// The recipe of a plan: residual blocks and channels out, batch norms folded, one Prune and one Quantize step where the plan asks
    /// for them, methods around the latter, shared values, distillation last or where a schedule of Prune needs it.
    /// Layers absent from `plan` are left unchanged; a plan that changes nothing gives no steps. [`super::resolve`] on the same
    /// `layers` gives the plan back exactly.
    pub fn from_plan(
        context: &PlanContext,
        layers: &[LayerFacts],
        plan: &BTreeMap<LayerId, LayerSetting>,
    ) -> Self {
        Self {
            version: RECIPE_VERSION,
            name: context.name.clone(),
            model: context.model.clone(),
            task: context.task.clone(),
            seed: context.seed,
            goals: context.goals.clone(),
            steps: LayerNames::of(layers).steps(context, plan),
        }
    }
}

/// A model's layers as rules name them: one by one, or by a prefix that several share. Worked out once a model, for plans that change all the time.
#[derive(Clone, Debug, Default)]
pub struct LayerNames {
    ids: Vec<LayerId>,
    /// Place of every name in `ids`.
    places: BTreeMap<LayerId, usize>,
    families: Vec<Family>,
    /// Families of every layer, the one of the shortest prefix first.
    of_layer: Vec<Vec<usize>>,
}

/// Layers whose names begin alike, up to a separator.
#[derive(Clone, Debug)]
struct Family {
    glob: String,
    /// Places of the layers, at least two.
    members: Vec<usize>,
}

impl LayerNames {
    pub fn of(layers: &[LayerFacts]) -> Self {
        let mut by_prefix: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, layer) in layers.iter().enumerate() {
            for prefix in prefixes(&layer.id.0) {
                by_prefix.entry(prefix).or_default().push(at);
            }
        }
        let names: HashSet<&str> = layers.iter().map(|layer| &*layer.id.0).collect();
        let mut families = Vec::new();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for (prefix, members) in by_prefix {
            let glob = format!("{}*", globset::escape(prefix));
            // A layer that is named like the glob would take the rule for itself.
            if members.len() > 1 && !names.contains(glob.as_str()) {
                numbers.insert(prefix, families.len());
                families.push(Family { glob, members });
            }
        }
        let of_layer = layers.iter().map(|layer| {
            let own = prefixes(&layer.id.0).filter_map(|prefix| numbers.get(prefix));
            own.copied().collect()
        });
        let ids = || layers.iter().map(|layer| layer.id.clone());
        Self {
            of_layer: of_layer.collect(),
            places: ids().enumerate().map(|(at, id)| (id, at)).collect(),
            ids: ids().collect(),
            families,
        }
    }

    /// The steps of [`Recipe::from_plan`].
    pub fn steps(
        &self,
        context: &PlanContext,
        plan: &BTreeMap<LayerId, LayerSetting>,
    ) -> Vec<Step> {
        let mut settings = vec![LayerSetting::KEEP; self.ids.len()];
        for (at, setting) in in_both(&self.places, plan) {
            settings[*at] = *setting;
        }
        let blocks = context.shrinking.blocks.clone().map(Step::PruneBlocks);
        let (channels, prune) = self.pruning(context, &settings);
        let gradual = prune.as_ref().is_some_and(is_gradual);
        let quantize = self.quantization(context, &settings);
        let shared = self.sharing(context, &settings);
        let anything = [&blocks, &channels, &prune, &shared]
            .iter()
            .any(|s| s.is_some());
        if !anything && quantize.is_empty() {
            return Vec::new();
        }
        let trained = context.trained.iter().chain(&context.distil).cloned();
        let trainings = match context.distil {
            Some(_) => trained.map(Step::Distil).collect(),
            None => Vec::new(),
        };
        let (within, last) = match gradual {
            true => (trainings, Vec::new()),
            false => (Vec::new(), trainings),
        };
        // Before folding: statistics of batch norms can be taken again only while there are any.
        let mut steps: Vec<Step> = blocks.into_iter().chain(channels).collect();
        steps.push(Step::FoldBatchNorm);
        steps.extend(prune);
        steps.extend(within);
        steps.extend(quantize);
        steps.extend(shared);
        steps.extend(last);
        steps
    }

    /// The step that takes channels out, or the one that sets weights to zero.
    fn pruning(
        &self,
        context: &PlanContext,
        settings: &[LayerSetting],
    ) -> (Option<Step>, Option<Step>) {
        if settings.iter().all(|s| s.sparsity.0 == 0.0) {
            return (None, None);
        }
        let ratios: Vec<Ratio> = settings.iter().map(|s| s.sparsity).collect();
        let (default, layers) = self.compact(&ratios, |r| r.0 == 0.0);
        let shrinking = &context.shrinking;
        if context.channels {
            let step = PruneChannelsStep {
                default: Some(default),
                layers,
                ..PruneChannelsStep::of(shrinking.channels.clone())
            };
            return (Some(Step::PruneChannels(step)), None);
        }
        let step = PruneStep {
            default,
            layers,
            pattern: shrinking.pattern,
            // It counts epochs: without a training there are none.
            schedule: shrinking.schedule.filter(|_| context.distil.is_some()),
        };
        (None, Some(Step::Prune(step)))
    }

    /// Quantize with the methods around it; nothing where all layers stay float.
    fn quantization(&self, context: &PlanContext, settings: &[LayerSetting]) -> Vec<Step> {
        if settings.iter().all(|s| s.precision == Precision::Fp32) {
            return Vec::new();
        }
        let precisions: Vec<Precision> = settings.iter().map(|s| s.precision).collect();
        let (default, layers) = self.compact(&precisions, |p| *p == Precision::Fp32);
        let quantize = Step::Quantize(QuantizeStep {
            default,
            layers,
            scheme: context.scheme.clone(),
        });
        let methods = match precisions.iter().any(|p| p.is_integer()) {
            true => &context.methods[..],
            false => &[],
        };
        let early = |step: &&Step| MethodKind::of(step).is_some_and(MethodKind::is_before);
        let mut steps: Vec<Step> = methods.iter().filter(early).cloned().collect();
        steps.push(quantize);
        steps.extend(methods.iter().filter(|step| !early(step)).cloned());
        steps
    }

    /// The step that lets weights share values, where a layer is left that can.
    fn sharing(&self, context: &PlanContext, settings: &[LayerSetting]) -> Option<Step> {
        let float = settings.iter().any(|s| s.precision == Precision::Fp32);
        let step = context.shrinking.cluster.clone()?;
        float.then_some(Step::Cluster(step))
    }

    /// A method's rules that switch it on for the layers in `on`, and off for all others.
    pub fn toggles(&self, on: impl Fn(&LayerId) -> bool) -> (Toggle, Vec<ToggleRule>) {
        let used: Vec<bool> = self.ids.iter().map(on).collect();
        let (default, rules) = self.compact(&used, |used| !used);
        let toggle = |choice| match choice {
            Choice::Set(_) => Toggle::On,
            Choice::Keep => Toggle::Off,
        };
        let rules = rules
            .into_iter()
            .map(|Rule(layer, choice)| ToggleRule(layer, toggle(choice)));
        (toggle(default), rules.collect())
    }

    /// The commonest value as default; then globs over whole name prefixes that share one other value; then single names.
    fn compact<T: Copy + PartialEq>(
        &self,
        values: &[T],
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
        for value in values {
            match counts.iter_mut().find(|(known, _)| known == value) {
                Some((_, count)) => *count += 1,
                None => counts.push((*value, 1)),
            }
        }
        counts.reverse();
        let Some((default, _)) = counts.into_iter().max_by_key(|(_, count)| *count) else {
            return (Choice::Keep, Vec::new());
        };
        let agrees = |family: &Family| {
            let first = values[family.members[0]];
            family.members.iter().all(|at| values[*at] == first)
        };
        let uniform: Vec<bool> = self.families.iter().map(agrees).collect();
        let mut covered = vec![false; values.len()];
        let mut rules = Vec::new();
        for (at, value) in values.iter().enumerate() {
            if *value == default || covered[at] {
                continue;
            }
            // The shortest prefix, ending in a separator, whose layers all want this value.
            let shared = self.of_layer[at].iter().find(|family| uniform[**family]);
            let name = match shared.map(|family| &self.families[*family]) {
                Some(family) => {
                    for member in &family.members {
                        covered[*member] = true;
                    }
                    family.glob.clone()
                }
                None => self.ids[at].0.to_string(),
            };
            rules.push(Rule(name, choice(*value)));
        }
        (choice(default), rules)
    }
}

fn is_gradual(step: &Step) -> bool {
    matches!(
        step,
        Step::Prune(PruneStep {
            schedule: Some(_),
            ..
        })
    )
}

/// What a name begins with, up to and with each of its separators.
fn prefixes(name: &str) -> impl Iterator<Item = &str> {
    name.char_indices()
        .filter(|(_, c)| matches!(c, '.' | '/' | '_' | ':'))
        .map(|(at, c)| &name[..at + c.len_utf8()])
}
