//! Every run with its recipe, metrics and sizes, and the project file that keeps them. Uses `recipe`.

use crate::{
    compress::{Account, LayerSetting, QuantScheme},
    confirm::RuntimePair,
    eval::Metrics,
    graph::LayerId,
    measure::Sizes,
    recipe::{Goal, Recipe, RecipeError, Shrinking, Step, from_ron, read_text, to_ron},
    sensitivity::Cell,
    target::LayerSaturation,
    train::DistilSettings,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Number of a job, given by whoever sends the command; unique within a session.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct JobId(pub u64);

/// A measured result.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// The job that measured it.
    pub job: JobId,
    /// Exactly what gives this point again; empty steps: the original.
    pub recipe: Recipe,
    pub metrics: Metrics,
    pub sizes: Sizes,
    pub accounts: Vec<Account>,
    /// Layers whose sums can saturate at the recipe's target, and how far they did in the samples that were judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saturation: Vec<LayerSaturation>,
    /// What a deployment runtime gave for the exported file, on the samples that were judged; `None`: none was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<RuntimePair>,
    /// Hash of the exported bytes, hex.
    pub model_sha256: String,
    pub seconds: f64,
    /// Only the first so many samples of the split were judged; `None`: all.
    #[serde(default)]
    pub limit: Option<usize>,
    /// The run it belongs to was not (or not yet) carried to its end: this is what stood before its training, or the best
    /// epoch of one that was cancelled.
    #[serde(default)]
    pub partial: bool,
}

/// The schema of project files that this engine reads and writes.
pub const PROJECT_VERSION: u32 = 1;

/// A project as it lies on disk (RON): what the user decided and what was measured, nothing of the window's view.
/// Paths are relative to the project file's folder, or absolute.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectFile {
    /// [`PROJECT_VERSION`].
    pub version: u32,
    #[serde(default)]
    pub name: String,
    pub model: PathBuf,
    #[serde(default)]
    pub task: Option<PathBuf>,
    /// Hashes of what the points and cells were measured on, hex; empty where never opened.
    #[serde(default)]
    pub model_sha256: String,
    #[serde(default)]
    pub data_sha256: String,
    #[serde(default)]
    pub seed: u64,
    /// Settings of the layers that the user changed; absent: unchanged.
    #[serde(default)]
    pub plan: BTreeMap<LayerId, LayerSetting>,
    /// Layers whose setting bulk edits and solvers leave alone.
    #[serde(default)]
    pub pins: BTreeSet<LayerId>,
    #[serde(default)]
    pub goals: Vec<Goal>,
    #[serde(default)]
    pub scheme: QuantScheme,
    /// Pruning takes whole channels out, instead of setting single weights to zero.
    #[serde(default)]
    pub channels: bool,
    /// How pruning goes, and what else makes the network smaller.
    #[serde(default, skip_serializing_if = "Shrinking::is_default")]
    pub shrinking: Shrinking,
    #[serde(default)]
    pub distil: DistilSettings,
    /// The plan's methods around Quantize, as a recipe's steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Step>,
    /// Trainings that `distil` goes on from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trained: Vec<DistilSettings>,
    /// Whether the plan ends in distillation.
    #[serde(default)]
    pub distil_enabled: bool,
    #[serde(default)]
    pub points: Vec<Point>,
    #[serde(default)]
    pub cells: Vec<Cell>,
}

impl ProjectFile {
    /// An empty project of a model.
    pub fn new(model: PathBuf, task: Option<PathBuf>) -> Self {
        Self {
            version: PROJECT_VERSION,
            name: String::new(),
            model,
            task,
            model_sha256: String::new(),
            data_sha256: String::new(),
            seed: 0,
            plan: BTreeMap::new(),
            pins: BTreeSet::new(),
            goals: Vec::new(),
            scheme: QuantScheme::default(),
            channels: false,
            shrinking: Shrinking::default(),
            distil: DistilSettings::default(),
            methods: Vec::new(),
            trained: Vec::new(),
            distil_enabled: false,
            points: Vec::new(),
            cells: Vec::new(),
        }
    }

    /// Reads a project's text strictly; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, RecipeError> {
        if let Some(claimed) = crate::recipe::claimed_version(text)
            && claimed != PROJECT_VERSION
        {
            return Err(RecipeError::new(format!(
                "is version {claimed} of the project schema; this engine ({}) reads version {PROJECT_VERSION}",
                crate::VERSION
            ))
            .file(path));
        }
        from_ron(text, path)
    }

    /// Reads a project file.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        Self::parse(&read_text(path)?, path)
    }

    /// The project as text: the same project always gives the same bytes, and reading it back gives the same project.
    pub fn to_ron(&self) -> Result<String, RecipeError> {
        to_ron(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compress::{AccountEntry, Outcome, Precision, Ratio},
        confirm::{
            Codes, LayerComparison, LayerSummary, RuntimeRun, TargetPrediction, TensorComparison,
            TensorSummary,
        },
        data::SplitName,
        eval::{Estimate, PairedDrop},
        measure::{Bytes, runtime::Optimizations},
        recipe::MethodKind,
        sensitivity::{Candidate, Direction, Tier},
    };

    fn full() -> ProjectFile {
        let estimate = Estimate {
            value: 0.931_234_567_890_123,
            n: 10_000,
            ci: [0.92, 0.94],
        };
        let mut project = ProjectFile::new("a/model.onnx".into(), Some("../task.ron".into()));
        project.name = "ไทย \"quoted\" \\ name".into();
        project.plan.insert(
            LayerId("/layer1/conv[0].x".into()),
            LayerSetting {
                precision: Precision::Int4,
                sparsity: Ratio(0.1),
            },
        );
        project.pins.insert(LayerId("fc".into()));
        project.methods = MethodKind::ALL.map(MethodKind::step).to_vec();
        project.trained = vec![DistilSettings {
            stop_after: Some(1),
            keep_last: true,
            ..DistilSettings::default()
        }];
        project.goals = vec![Goal::DropPoints(2.0), Goal::StoredKilobytes(99.5)];
        project.cells = vec![
            Cell {
                layer: LayerId("fc".into()),
                candidate: Candidate::P50,
                direction: Direction::Alone,
                tier: Tier::Measured,
                value: -0.001,
                ci: Some([-0.01, 1.0 / 3.0]),
                n: 512,
                of: 512,
                settled: true,
                why: None,
                kl: Some(1e-300),
            },
            Cell {
                layer: LayerId("fc".into()),
                candidate: Candidate::Int4,
                direction: Direction::Alone,
                tier: Tier::Proxy,
                value: f64::INFINITY,
                ci: None,
                n: 0,
                of: 0,
                settled: true,
                why: None,
                kl: None,
            },
        ];
        let parted = LayerComparison {
            layer: LayerId("fc".into()),
            elements: 100,
            largest_difference: f32::INFINITY,
            largest: 9.5,
        };
        project.points = vec![Point {
            job: JobId(7),
            recipe: Recipe::baseline("m.onnx".into(), "t.ron".into()),
            metrics: Metrics {
                split: SplitName::Search,
                top1: estimate,
                top5: estimate,
                cross_entropy: estimate,
                agreement: Some(estimate),
                per_class: vec![estimate; 3],
                drop: Some(PairedDrop {
                    drop: 0.01,
                    ci: [0.0, 0.02],
                    n: 10,
                    only_baseline: 3,
                    only_candidate: 2,
                }),
                simulated: None,
                unlabelled: false,
            },
            sizes: Sizes {
                stored: Bytes(1),
                theoretical: Bytes(2),
                runtime: Bytes(3),
                params: 4,
                nonzero_params: 5,
                macs: Some(6),
            },
            accounts: vec![Account {
                pass: "prune".into(),
                entries: vec![AccountEntry {
                    layer: LayerId("fc".into()),
                    outcome: Outcome::NotDone("kept".into()),
                }],
            }],
            saturation: vec![LayerSaturation {
                layer: LayerId("fc".into()),
                outputs: 100,
                saturated: 3,
                most: 0.25,
            }],
            confirmed: Some(RuntimePair {
                runtime: "1.31.1".into(),
                split: SplitName::Search,
                n: 10,
                predicted: estimate,
                target: Some(TargetPrediction {
                    name: "onnxruntime-avx2".into(),
                    top1: estimate,
                    here: true,
                    predictions: Vec::new(),
                }),
                runs: vec![RuntimeRun {
                    optimizations: Optimizations::On,
                    at_target: true,
                    top1: estimate,
                    agreement: estimate,
                    same_labels: 9,
                    drop: PairedDrop {
                        drop: 0.1,
                        ci: [0.0, 0.2],
                        n: 10,
                        only_baseline: 1,
                        only_candidate: 0,
                    },
                    largest_difference: 0.5,
                    largest_output: Some(9.5),
                    clearest_lead: Some(0.25),
                }],
                tensors: Some(TensorSummary {
                    samples: 10,
                    tensors: 3,
                    elements: 300,
                    within_one: 299,
                    first_parting: Some(TensorComparison {
                        name: "a/b".into(),
                        own: None,
                        through: Codes {
                            elements: 100,
                            equal: 98,
                            within_one: 99,
                            largest: 2,
                        },
                    }),
                }),
                layers: Some(LayerSummary {
                    samples: 10,
                    layers: 2,
                    worst: Some(parted.clone()),
                    first_parting: Some(parted),
                }),
            }),
            model_sha256: "ab".into(),
            seconds: 0.1,
            limit: Some(64),
            partial: true,
        }];
        project
    }

    #[test]
    fn a_project_survives_the_round_trip_without_loss() {
        let project = full();
        let text = project.to_ron().expect("writes");
        let back = ProjectFile::parse(&text, Path::new("p.ron")).expect("reads");
        assert_eq!(back, project, "{text}");
        assert_eq!(back.to_ron().expect("writes"), text);
    }

    #[test]
    fn unknown_keys_and_newer_versions_are_refused_with_a_place() {
        let error = ProjectFile::parse(
            "(version: 1, model: \"m\",\n gaols: [])",
            Path::new("p.limbeck"),
        )
        .expect_err("typo")
        .to_string();
        assert!(error.starts_with("p.limbeck:2:"), "{error}");
        assert!(error.contains("did you mean `goals`"), "{error}");
        let error = ProjectFile::parse("(version: 9, x: 1)", Path::new("p")).expect_err("version");
        assert!(error.to_string().contains("version 9"), "{error}");
    }
}
