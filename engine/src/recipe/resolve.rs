//! From rules to layers: default < glob (a later one wins) < exact name.

use super::{
    Choice, MethodKind, MethodStep, Recipe, RecipeError, Rule, Shrinking, Step, Toggle, ToggleRule,
    methods, targets,
    text::{Anchor, nearest},
    validate::validate,
};
use crate::{
    compress::{
        AdaRoundSettings, Amount, BlockSettings, BrecqSettings, ChannelSettings, Codebooks, Energy,
        EqualizeSettings, GptqSettings, LayerSetting, LowRankSettings, OnLayers, Pattern,
        Precision, PruneSchedule, QuantScheme, Ratio, ScaleSearchSettings, SmoothQuantSettings,
        StudentSettings,
    },
    graph::LayerId,
    search::LayerFacts,
    train::DistilSettings,
};
use globset::{GlobBuilder, GlobMatcher};
use std::collections::{BTreeMap, BTreeSet};

/// A step with its rules resolved; a layer that is kept has no entry.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum ResolvedStep {
    FoldBatchNorm,
    Student(StudentSettings),
    /// A network from a file, in the original's place.
    StudentFile,
    /// A block goes whose layers are all named; `None`: any may.
    PruneBlocks {
        settings: BlockSettings,
        layers: Option<BTreeSet<LayerId>>,
    },
    /// Layers that neither rule nor default names have no entry; those to be kept have `None`.
    PruneChannels {
        settings: ChannelSettings,
        layers: BTreeMap<LayerId, Option<Ratio>>,
    },
    /// As `PruneChannels`.
    LowRank {
        settings: LowRankSettings,
        layers: BTreeMap<LayerId, Option<Energy>>,
    },
    Prune {
        pattern: Pattern,
        schedule: Option<PruneSchedule>,
        layers: BTreeMap<LayerId, Ratio>,
    },
    Cluster {
        codebooks: Codebooks,
        layers: BTreeMap<LayerId, usize>,
    },
    Quantize {
        scheme: QuantScheme,
        layers: BTreeMap<LayerId, Precision>,
    },
    Equalize(OnLayers<EqualizeSettings>),
    SmoothQuant(OnLayers<SmoothQuantSettings>),
    SequentialMse(OnLayers<ScaleSearchSettings>),
    AdaRound(OnLayers<AdaRoundSettings>),
    Brecq(OnLayers<BrecqSettings>),
    Gptq(OnLayers<GptqSettings>),
    CorrectBias {
        samples: usize,
        layers: BTreeSet<LayerId>,
    },
    Distil(DistilSettings),
}

/// A recipe laid over one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub steps: Vec<ResolvedStep>,
    /// What every layer of the model ends up with (kept layers: float, unpruned).
    pub layers: BTreeMap<LayerId, LayerSetting>,
}

/// Lays `recipe` over a model's layers. A glob that matches nothing and a name that is no layer's are errors: a recipe for
/// another model must not pass in silence.
pub fn resolve(recipe: &Recipe, layers: &[LayerFacts]) -> Result<Resolved, RecipeError> {
    validate(recipe)?;
    let mut settings: BTreeMap<LayerId, LayerSetting> = layers
        .iter()
        .map(|l| (l.id.clone(), LayerSetting::KEEP))
        .collect();
    let mut steps = Vec::with_capacity(recipe.steps.len());
    // How often a rule's text stood in earlier steps: tells which of equal literals an error is about.
    let mut earlier: Vec<&str> = Vec::new();
    for step in &recipe.steps {
        steps.push(match step {
            Step::FoldBatchNorm => ResolvedStep::FoldBatchNorm,
            Step::Student(s) => match s.file {
                Some(_) => ResolvedStep::StudentFile,
                None => ResolvedStep::Student(s.settings()),
            },
            Step::Distil(s) => ResolvedStep::Distil(s.clone()),
            Step::PruneBlocks(step) => {
                let rules = step.rules();
                let chosen = apply("PruneBlocks", &Choice::Keep, &rules, layers, &earlier)?;
                earlier.extend(step.layers.iter().map(String::as_str));
                let named = (!rules.is_empty()).then(|| chosen.into_keys().collect());
                ResolvedStep::PruneBlocks {
                    settings: step.settings(),
                    layers: named,
                }
            }
            Step::PruneChannels(step) => {
                let (default, rules) = (step.default.as_ref(), &step.layers);
                let chosen = choose("PruneChannels", default, rules, layers, &earlier)?;
                earlier.extend(rules.iter().map(|r| r.0.as_str()));
                let ratio = |choice: Choice<Ratio>| match choice {
                    Choice::Set(ratio) => Some(ratio),
                    Choice::Keep => None,
                };
                for (id, choice) in &chosen {
                    if let (Amount::Ratios, Choice::Set(ratio), Some(setting)) =
                        (step.amount, choice, settings.get_mut(id))
                    {
                        setting.sparsity = *ratio;
                    }
                }
                ResolvedStep::PruneChannels {
                    settings: step.settings(),
                    layers: chosen.into_iter().map(|(id, c)| (id, ratio(c))).collect(),
                }
            }
            Step::LowRank(step) => {
                let usual = step.usual();
                let chosen = choose("LowRank", usual.as_ref(), &step.layers, layers, &earlier)?;
                earlier.extend(step.layers.iter().map(|r| r.0.as_str()));
                let energy = |choice: Choice<Energy>| match choice {
                    Choice::Set(energy) => Some(energy),
                    Choice::Keep => None,
                };
                let layers = chosen.into_iter().map(|(id, c)| (id, energy(c)));
                ResolvedStep::LowRank {
                    settings: step.settings(),
                    layers: layers.collect(),
                }
            }
            Step::Cluster(step) => {
                let chosen = apply("Cluster", &step.default, &step.layers, layers, &earlier)?;
                earlier.extend(step.layers.iter().map(|r| r.0.as_str()));
                ResolvedStep::Cluster {
                    codebooks: step.codebooks,
                    layers: chosen,
                }
            }
            Step::Equalize(s) => {
                let chosen = toggled("Equalize", s.default, &s.layers, layers, &earlier)?;
                earlier.extend(s.layers.iter().map(|r| r.0.as_str()));
                ResolvedStep::Equalize(OnLayers {
                    settings: s.settings.clone(),
                    layers: chosen,
                })
            }
            Step::SmoothQuant(s) => {
                let method = used("SmoothQuant", s, layers, &earlier)?;
                earlier.extend(s.layers.iter().map(|r| r.0.as_str()));
                ResolvedStep::SmoothQuant(method)
            }
            Step::SequentialMse(s) => {
                let method = used("SequentialMse", s, layers, &earlier)?;
                earlier.extend(s.layers.iter().map(|r| r.0.as_str()));
                ResolvedStep::SequentialMse(method)
            }
            Step::AdaRound(s) => {
                let method = used("AdaRound", s, layers, &earlier)?;
                earlier.extend(s.layers.iter().map(|r| r.0.as_str()));
                ResolvedStep::AdaRound(method)
            }
            Step::Brecq(s) => {
                let method = used("Brecq", s, layers, &earlier)?;
                earlier.extend(s.layers.iter().map(|r| r.0.as_str()));
                ResolvedStep::Brecq(method)
            }
            Step::Gptq(s) => {
                let method = used("Gptq", s, layers, &earlier)?;
                earlier.extend(s.layers.iter().map(|r| r.0.as_str()));
                ResolvedStep::Gptq(method)
            }
            Step::CorrectBias(s) => {
                let chosen = toggled("CorrectBias", s.default, &s.layers, layers, &earlier)?;
                earlier.extend(s.layers.iter().map(|r| r.0.as_str()));
                ResolvedStep::CorrectBias {
                    samples: s.samples,
                    layers: chosen,
                }
            }
            Step::Prune(prune) => {
                let chosen = apply("Prune", &prune.default, &prune.layers, layers, &earlier)?;
                earlier.extend(prune.layers.iter().map(|r| r.0.as_str()));
                for (id, ratio) in &chosen {
                    if let Some(setting) = settings.get_mut(id) {
                        setting.sparsity = *ratio;
                    }
                }
                ResolvedStep::Prune {
                    pattern: prune.pattern,
                    schedule: prune.schedule,
                    layers: chosen,
                }
            }
            Step::Quantize(quantize) => {
                let chosen = apply(
                    "Quantize",
                    &quantize.default,
                    &quantize.layers,
                    layers,
                    &earlier,
                )?;
                earlier.extend(quantize.layers.iter().map(|r| r.0.as_str()));
                targets::allowed(&quantize.scheme, &chosen, layers)?;
                for (id, precision) in &chosen {
                    if let Some(setting) = settings.get_mut(id) {
                        setting.precision = *precision;
                    }
                }
                ResolvedStep::Quantize {
                    scheme: quantize.scheme.clone(),
                    layers: chosen,
                }
            }
        });
    }
    one_choice(&steps)?;
    Ok(Resolved {
        steps,
        layers: settings,
    })
}

/// Layers that a step's rules switch its method on for; `None`: no step of a method.
///
/// # Errors
/// A rule that names no layer of the model.
pub fn method_layers(
    step: &Step,
    layers: &[LayerFacts],
) -> Option<Result<BTreeSet<LayerId>, RecipeError>> {
    let word = MethodKind::of(step)?.word();
    let (default, rules) = step.toggles()?;
    Some(toggled(word, default, rules, layers, &[]))
}

/// Layers that steps take out by name and that they let share values, with how many values.
///
/// # Errors
/// A rule that names no layer of the model.
pub fn shrunk_layers(
    shrinking: &Shrinking,
    layers: &[LayerFacts],
) -> Result<(BTreeSet<LayerId>, BTreeMap<LayerId, usize>), RecipeError> {
    let gone = match shrinking.blocks.as_ref().filter(|b| b.count.is_none()) {
        Some(step) => apply("PruneBlocks", &Choice::Keep, &step.rules(), layers, &[])?,
        None => BTreeMap::new(),
    };
    let shared = match &shrinking.cluster {
        Some(step) => apply("Cluster", &step.default, &step.layers, layers, &[])?,
        None => BTreeMap::new(),
    };
    Ok((gone.into_keys().collect(), shared))
}

/// Layers that a method is used on.
fn toggled(
    step: &str,
    default: Toggle,
    rules: &[ToggleRule],
    layers: &[LayerFacts],
    earlier: &[&str],
) -> Result<BTreeSet<LayerId>, RecipeError> {
    let (default, rules) = methods::choices(default, rules);
    Ok(apply(step, &default, &rules, layers, earlier)?
        .into_keys()
        .collect())
}

fn used<S: Clone>(
    step: &str,
    method: &MethodStep<S>,
    layers: &[LayerFacts],
    earlier: &[&str],
) -> Result<OnLayers<S>, RecipeError> {
    Ok(OnLayers {
        settings: method.settings.clone(),
        layers: toggled(step, method.default, &method.layers, layers, earlier)?,
    })
}

/// Refuses layers whose codes would be chosen twice.
fn one_choice(steps: &[ResolvedStep]) -> Result<(), RecipeError> {
    let choosers = steps.iter().filter_map(|step| match step {
        ResolvedStep::AdaRound(m) => Some(("AdaRound", &m.layers)),
        ResolvedStep::Brecq(m) => Some(("Brecq", &m.layers)),
        ResolvedStep::Gptq(m) => Some(("Gptq", &m.layers)),
        _ => None,
    });
    let mut chosen: BTreeMap<&LayerId, &str> = BTreeMap::new();
    for (word, layers) in choosers {
        for layer in layers {
            if let Some(earlier) = chosen.insert(layer, word) {
                return Err(RecipeError::new(format!(
                    "{word}: {earlier} chooses the codes of `{}` too; switch one of the two off there",
                    layer.0
                ))
                .at(Anchor::Word(word, 0)));
            }
        }
    }
    Ok(())
}

enum Matcher<'a> {
    Name(&'a str),
    Glob(GlobMatcher),
}

/// The values set; a layer that is kept has no entry.
fn apply<T: Copy>(
    step: &str,
    default: &Choice<T>,
    rules: &[Rule<T>],
    layers: &[LayerFacts],
    earlier: &[&str],
) -> Result<BTreeMap<LayerId, T>, RecipeError> {
    let chosen = choose(step, Some(default), rules, layers, earlier)?;
    let set = |(id, choice)| match choice {
        Choice::Set(value) => Some((id, value)),
        Choice::Keep => None,
    };
    Ok(chosen.into_iter().filter_map(set).collect())
}

/// What default and rules say of each layer; one that nothing is said of has no entry.
fn choose<T: Copy>(
    step: &str,
    default: Option<&Choice<T>>,
    rules: &[Rule<T>],
    layers: &[LayerFacts],
    earlier: &[&str],
) -> Result<BTreeMap<LayerId, Choice<T>>, RecipeError> {
    let mut matchers: Vec<(Matcher<'_>, &Choice<T>)> = Vec::with_capacity(rules.len());
    for (index, Rule(pattern, choice)) in rules.iter().enumerate() {
        let nth = earlier.iter().filter(|p| *p == pattern).count()
            + rules.iter().take(index).filter(|r| r.0 == *pattern).count();
        let anchor = Anchor::Literal(pattern.clone(), nth);
        let matcher = if layers.iter().any(|l| *l.id.0 == **pattern) {
            if rules.iter().take(index).any(|r| r.0 == *pattern) {
                return Err(RecipeError::new(format!(
                    "{step}: the layer `{pattern}` is set twice"
                ))
                .at(anchor));
            }
            Matcher::Name(pattern)
        } else {
            let glob = glob(pattern).map_err(|e| {
                RecipeError::new(format!("{step}: `{pattern}` is not a glob: {e}"))
                    .at(anchor.clone())
            })?;
            if !layers.iter().any(|l| glob.is_match(&*l.id.0)) {
                let is_glob = pattern.contains(['*', '?', '[', '{']);
                let nearest = nearest(
                    &pattern.replace(['*', '?'], ""),
                    layers.iter().map(|l| &*l.id.0),
                )
                .or_else(|| (layers.len() == 1).then(|| layers[0].id.0.to_string()));
                return Err(RecipeError::new(if is_glob {
                    format!(
                        "{step}: the glob `{pattern}` matches none of the model's {} layers",
                        layers.len()
                    )
                } else {
                    format!(
                        "{step}: the model has no layer `{pattern}` among its {}",
                        layers.len()
                    )
                })
                .suggest(nearest)
                .at(anchor));
            }
            Matcher::Glob(glob)
        };
        matchers.push((matcher, choice));
    }
    let mut chosen = BTreeMap::new();
    for layer in layers {
        let name: &str = &layer.id.0;
        let exact = matchers
            .iter()
            .find(|(m, _)| matches!(m, Matcher::Name(n) if *n == name));
        let by_glob = || {
            matchers
                .iter()
                .rev()
                .find(|(m, _)| matches!(m, Matcher::Glob(g) if g.is_match(name)))
        };
        let rule = exact.or_else(by_glob).map(|(_, c)| *c);
        if let Some(choice) = rule.or(default) {
            chosen.insert(layer.id.clone(), choice.clone());
        }
    }
    Ok(chosen)
}

/// `*` and `?` cross every separator: `stage2*` means all of stage 2, whether names use `.` or `/`.
fn glob(pattern: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(pattern)
        .literal_separator(false)
        .backslash_escape(true)
        .build()?
        .compile_matcher())
}
