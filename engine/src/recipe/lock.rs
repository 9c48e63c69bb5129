//! The lock file: exactly what was done and what came out, and the replay that checks it. Holds nothing of threads and time.

use super::{
    GoalVerdict, PipelineError, Recipe, RecipeError, RecipeFile, RunObserver, RunOutcome, Session,
    from_ron,
    low_rank::heirs,
    read_text, run, sha256, sha256_file,
    text::{Anchor, claimed_version},
    to_ron,
};
use crate::{
    compress::{
        Account, LayerSetting, Precision, QuantParameters, layer_channels, quantized_layers,
    },
    data::SplitName,
    eval::{Evaluation, Metrics},
    exec::CancelToken,
    graph::LayerId,
    measure::Sizes,
};
use std::{
    collections::BTreeSet,
    fmt::{Debug, Write as _},
    path::{Path, PathBuf},
};

/// The schema of lock files that this engine reads and writes.
pub const LOCK_VERSION: u32 = 1;

/// Names of the files that a run leaves in its folder.
pub const MODEL_FILE: &str = "model.onnx";
pub const RECIPE_FILE: &str = "recipe.ron";
pub const LOCK_FILE: &str = "recipe.lock.ron";
pub const METRICS_FILE: &str = "metrics.json";
pub const PREDICTIONS_FILE: &str = "predictions.txt";

/// What a run did and gave.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// [`LOCK_VERSION`].
    pub version: u32,
    /// Version of the engine.
    pub engine: String,
    /// Kind of machine, such as `x86_64-linux`: floating-point results are the same on the same kind.
    pub machine: String,
    /// SHA-256 of the recipe file that lies beside the lock, hex.
    pub recipe_sha256: String,
    /// SHA-256 of the original model's file, hex.
    pub model_sha256: String,
    /// SHA-256 of the student's file, where the recipe gives one, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_sha256: Option<String>,
    /// SHA-256 over the task file and all data, hex.
    pub data_sha256: String,
    pub seed: u64,
    pub split: SplitName,
    /// Only the first so many samples of the split were judged; absent: all.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Samples judged.
    pub n: u64,
    pub layers: Vec<LockedLayer>,
    pub accounts: Vec<Account>,
    pub sizes: Sizes,
    /// SHA-256 of the exported file, hex.
    pub exported_sha256: String,
    /// The original on the same samples.
    pub baseline: Metrics,
    pub metrics: Metrics,
    /// SHA-256 over one predicted class index a line, hex.
    pub baseline_predictions_sha256: String,
    pub predictions_sha256: String,
    pub verdicts: Vec<GoalVerdict>,
}

/// One layer, in the graph's order.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedLayer {
    pub name: LayerId,
    pub op: String,
    /// What the recipe asks for.
    pub setting: LayerSetting,
    /// What the exported file has.
    pub precision: Precision,
    /// Output and input channels in the original and in the exported file, where pruning took any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<LockedChannels>,
    /// The exported file has no such layer: a student was made without it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// Scales and zero points of the weight and of the input, where they are quantised.
    #[serde(default)]
    pub weight: Option<QuantParameters>,
    #[serde(default)]
    pub input: Option<QuantParameters>,
}

/// Channels of a layer before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedChannels {
    /// Computed: in the original, in the exported file.
    pub outputs: (usize, usize),
    /// Read: in the original, in the exported file.
    pub inputs: (usize, usize),
}

/// Kind of machine: floating-point results are the same on the same kind.
pub(super) fn machine() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

/// One predicted class index a line.
pub fn predictions_text(evaluation: &Evaluation) -> String {
    classes_text(&evaluation.predictions)
}

/// The same of bare classes.
pub(super) fn classes_text(predictions: &[u32]) -> String {
    let mut text = String::new();
    for class in predictions {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{class}");
    }
    text
}

impl Lock {
    /// The lock of an outcome; `recipe_text` is the recipe file's text as it will lie beside it.
    ///
    /// # Errors
    /// A model file that cannot be read any more: its hash stands in the lock.
    pub fn of(
        session: &Session,
        outcome: &RunOutcome,
        recipe_text: &str,
    ) -> Result<Self, PipelineError> {
        let mut exported = quantized_layers(&outcome.graph);
        let (before, after) = (
            layer_channels(session.graph_of(&outcome.recipe)?),
            layer_channels(&outcome.graph),
        );
        let made = outcome.graph.layers();
        let known = session.layers_of(&outcome.recipe)?;
        let heirs = heirs(&made, known);
        let apart: BTreeSet<&LayerId> = heirs.iter().map(|(_, parent)| parent).collect();
        let mut layers: Vec<LockedLayer> = known
            .iter()
            .map(|facts| {
                let found = exported
                    .iter()
                    .position(|q| q.layer == facts.id)
                    .map(|i| exported.swap_remove(i));
                let (precision, weight, input) = found.map_or((Precision::Fp32, None, None), |q| {
                    (q.precision, q.weight, q.input)
                });
                LockedLayer {
                    name: facts.id.clone(),
                    op: facts.op.clone(),
                    setting: outcome
                        .resolved
                        .layers
                        .get(&facts.id)
                        .copied()
                        .unwrap_or(LayerSetting::KEEP),
                    precision,
                    channels: match (before.get(&facts.id), after.get(&facts.id)) {
                        (Some(a), Some(b)) if a != b => Some(LockedChannels {
                            outputs: (a.0, b.0),
                            inputs: (a.1, b.1),
                        }),
                        _ => None,
                    },
                    gone: !after.contains_key(&facts.id) && !apart.contains(&facts.id),
                    weight,
                    input,
                }
            })
            .collect();
        // Factors that layers were taken apart into, behind them all.
        for (layer, parent) in &heirs {
            let found = exported.iter().position(|q| q.layer == layer.id);
            let found = found.map(|i| exported.swap_remove(i));
            let setting = outcome.resolved.layers.get(parent).copied();
            layers.push(LockedLayer {
                name: layer.id.clone(),
                op: layer.op.to_owned(),
                setting: setting.unwrap_or(LayerSetting::KEEP),
                precision: found.as_ref().map_or(Precision::Fp32, |q| q.precision),
                channels: None,
                gone: false,
                weight: found.as_ref().and_then(|q| q.weight.clone()),
                input: found.and_then(|q| q.input),
            });
        }
        Ok(Self {
            version: LOCK_VERSION,
            engine: crate::VERSION.to_owned(),
            machine: machine(),
            recipe_sha256: sha256(recipe_text.as_bytes()),
            model_sha256: session.model_sha256(&CancelToken::default())?,
            student_sha256: session.student_sha256(&outcome.recipe)?,
            data_sha256: session.data_sha256().to_owned(),
            seed: outcome.recipe.seed,
            split: outcome.split,
            limit: outcome.limit,
            n: outcome.evaluation.n,
            layers,
            accounts: outcome.accounts.clone(),
            sizes: outcome.sizes,
            exported_sha256: outcome.model_sha256.clone(),
            baseline: outcome.baseline_metrics.clone(),
            metrics: outcome.metrics.clone(),
            baseline_predictions_sha256: sha256(predictions_text(&outcome.baseline).as_bytes()),
            predictions_sha256: sha256(predictions_text(&outcome.evaluation).as_bytes()),
            verdicts: outcome.verdicts.clone(),
        })
    }

    /// Reads a lock file strictly.
    ///
    /// # Errors
    /// A file that is missing, of another version, or no lock file.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let text = read_text(path)?;
        if let Some(claimed) = claimed_version(&text)
            && claimed != LOCK_VERSION
        {
            return Err(RecipeError::new(format!(
                "is version {claimed} of the lock schema; this engine ({}) reads version {LOCK_VERSION}",
                crate::VERSION
            ))
            .file(path));
        }
        from_ron(&text, path)
    }

    pub fn to_ron(&self) -> Result<String, RecipeError> {
        to_ron(self)
    }

    /// What `replayed` has otherwise, each in words; empty: the same in every bit.
    pub fn differences(&self, replayed: &Self) -> Vec<String> {
        let mut found = Differences(Vec::new());
        let (a, b) = (self, replayed);
        found.compare("engine version", &a.engine, &b.engine);
        found.compare("kind of machine", &a.machine, &b.machine);
        found.compare("SHA-256 of the recipe", &a.recipe_sha256, &b.recipe_sha256);
        found.compare(
            "SHA-256 of the original model",
            &a.model_sha256,
            &b.model_sha256,
        );
        found.compare(
            "SHA-256 of the student",
            &a.student_sha256,
            &b.student_sha256,
        );
        found.compare("SHA-256 of the data", &a.data_sha256, &b.data_sha256);
        found.compare("seed", &a.seed, &b.seed);
        found.compare("split", &a.split, &b.split);
        found.compare("limit", &a.limit, &b.limit);
        found.compare("samples judged", &a.n, &b.n);
        found.compare("number of layers", &a.layers.len(), &b.layers.len());
        for (x, y) in a.layers.iter().zip(&b.layers) {
            let name = &x.name.0;
            found.compare("layer", &x.name, &y.name);
            found.compare(&format!("operator of {name}"), &x.op, &y.op);
            found.compare(&format!("setting of {name}"), &x.setting, &y.setting);
            found.compare(&format!("precision of {name}"), &x.precision, &y.precision);
            found.compare(&format!("channels of {name}"), &x.channels, &y.channels);
            found.compare(&format!("whether {name} is gone"), &x.gone, &y.gone);
            found.parameters(&format!("weight of {name}"), &x.weight, &y.weight);
            found.parameters(&format!("input of {name}"), &x.input, &y.input);
        }
        if a.accounts != b.accounts {
            found.0.push("the passes' accounts differ".to_owned());
        }
        found.compare("sizes", &a.sizes, &b.sizes);
        found.compare(
            "SHA-256 of the exported model",
            &a.exported_sha256,
            &b.exported_sha256,
        );
        found.metrics("original", &a.baseline, &b.baseline);
        found.metrics("compressed", &a.metrics, &b.metrics);
        found.compare(
            "SHA-256 of the original's predictions",
            &a.baseline_predictions_sha256,
            &b.baseline_predictions_sha256,
        );
        found.compare(
            "SHA-256 of the predictions",
            &a.predictions_sha256,
            &b.predictions_sha256,
        );
        for (x, y) in a.verdicts.iter().zip(&b.verdicts) {
            found.compare(&format!("verdict on {:?}", x.goal), &x.verdict, &y.verdict);
        }
        found.0
    }
}

struct Differences(Vec<String>);

impl Differences {
    fn compare<T: PartialEq + Debug>(&mut self, what: &str, locked: &T, replayed: &T) {
        if locked != replayed {
            self.0
                .push(format!("{what}: locked {locked:?}, replayed {replayed:?}"));
        }
    }

    fn parameters(
        &mut self,
        what: &str,
        locked: &Option<QuantParameters>,
        replayed: &Option<QuantParameters>,
    ) {
        match (locked, replayed) {
            (Some(a), Some(b)) if a != b => {
                let scales = a.scale.iter().zip(&b.scale).filter(|(x, y)| x != y).count();
                let zeros = a
                    .zero_point
                    .iter()
                    .zip(&b.zero_point)
                    .filter(|(x, y)| x != y)
                    .count();
                self.0.push(format!(
                    "{what}: {scales} of {} scales and {zeros} zero points differ",
                    a.scale.len()
                ));
            }
            (Some(_), None) => self
                .0
                .push(format!("{what}: locked as quantised, replayed as not")),
            (None, Some(_)) => self.0.push(format!(
                "{what}: locked as not quantised, replayed as quantised"
            )),
            _ => {}
        }
    }

    fn metrics(&mut self, whose: &str, locked: &Metrics, replayed: &Metrics) {
        if locked == replayed {
            return;
        }
        self.compare(&format!("{whose} top-1"), &locked.top1, &replayed.top1);
        self.compare(&format!("{whose} top-5"), &locked.top5, &replayed.top5);
        self.compare(
            &format!("{whose} cross-entropy"),
            &locked.cross_entropy,
            &replayed.cross_entropy,
        );
        self.compare(
            &format!("{whose} agreement"),
            &locked.agreement,
            &replayed.agreement,
        );
        self.compare(&format!("{whose} drop"), &locked.drop, &replayed.drop);
        self.compare(
            &format!("{whose} accuracy by class"),
            &locked.per_class,
            &replayed.per_class,
        );
    }
}

/// The outcome of a replay.
pub struct Verified {
    pub lock: Lock,
    pub replayed: Lock,
    pub differences: Vec<String>,
}

/// Replays the run in `folder` and compares everything exactly. `model` and `task` stand in for the recipe's own where given.
///
/// # Errors
/// Files that are missing or broken, a recipe that cannot be carried out, cancellation.
pub fn verify(
    folder: &Path,
    model: Option<&Path>,
    task: Option<&Path>,
    observer: &mut dyn RunObserver,
    cancel: &CancelToken,
) -> Result<Verified, PipelineError> {
    let lock = Lock::read(&folder.join(LOCK_FILE))?;
    let file = RecipeFile::read(&folder.join(RECIPE_FILE))?;
    let (session, recipe) = open_recipe(&file, model, task)?;
    let outcome = run(&session, &recipe, lock.split, lock.limit, observer, cancel)?;
    let replayed = Lock::of(&session, &outcome, &file.text)?;
    let mut differences = lock.differences(&replayed);
    for (name, hash) in [
        (MODEL_FILE, &lock.exported_sha256),
        (PREDICTIONS_FILE, &lock.predictions_sha256),
    ] {
        let path = folder.join(name);
        match sha256_file(&path) {
            Ok(found) if found == *hash => {}
            Ok(found) => differences.push(format!(
                "{} was changed after the run: locked {hash}, on disk {found}",
                path.display()
            )),
            Err(e) => differences.push(format!("{name} cannot be read: {e}")),
        }
    }
    Ok(Verified {
        lock,
        replayed,
        differences,
    })
}

/// Opens the model and data of a recipe, or those given in their stead, and checks that the recipe fits them: errors point
/// into the recipe's text.
///
/// # Errors
/// Files that are missing or broken, a recipe for another model.
pub fn open_recipe(
    file: &RecipeFile,
    model: Option<&Path>,
    task: Option<&Path>,
) -> Result<(Session, Recipe), PipelineError> {
    let own = |given: Option<&Path>, theirs: fn(&RecipeFile) -> Result<PathBuf, RecipeError>| {
        given.map_or_else(|| theirs(file), |p| Ok(p.to_owned()))
    };
    let model = own(model, RecipeFile::model_path)?;
    let task = own(task, RecipeFile::task_path)?;
    let mut session = Session::open(&model, Some(&task))?;
    if let Some(student) = file.student_path()? {
        session = session.with_student(&student).map_err(|e| match e {
            PipelineError::Recipe(e) => {
                let e = e.at(Anchor::Word("file", 0));
                e.locate(&file.path, &file.text).into()
            }
            other => other,
        })?;
    }
    super::resolve(&file.recipe, session.layers_of(&file.recipe)?)
        .map_err(|e| e.locate(&file.path, &file.text))?;
    Ok((session, file.recipe.clone()))
}
