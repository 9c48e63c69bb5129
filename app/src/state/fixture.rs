//! A made-up session for tests and pictures: a 22-layer network with cells, points, curves and jobs, no engine behind it.
//! Its numbers follow from formulas and mean nothing.

use super::{JobKind, State};
use limbeck_engine::{
    compress::{
        Block, ChannelGroup, ChannelGroups, LayerInspection, LayerSetting, Precision, Ratio,
    },
    data::{DatasetInfo, SplitName},
    eval::{Estimate, Metrics, PairedDrop},
    graph::LayerId,
    jobs::{Event, JobId, ModelInfo, Point},
    measure::{Bytes, Sizes},
    recipe::{Goal, Recipe},
    search::LayerFacts,
    sensitivity::{Candidate, Cell, Direction, Tier},
    train::TrainPoint,
};
use std::{path::PathBuf, time::Duration};

/// A session in the middle of its work: everything there is to see is there.
pub fn demo() -> State {
    let mut state = opened();
    for (layer, name) in names().iter().enumerate() {
        let outer = layer == 0 || layer == 21;
        let precision = if outer || name.contains("down") || layer % 5 == 1 {
            Precision::Int8
        } else {
            Precision::Int4
        };
        let sparsity = match layer {
            0 | 21 => 0.0,
            1..=6 => 0.12,
            7..=13 => 0.38,
            _ => 0.5,
        };
        state.document.set(
            &LayerId(name.as_str().into()),
            LayerSetting {
                precision,
                sparsity: Ratio(sparsity),
            },
        );
    }
    for pinned in [0, 21] {
        let id = state.layers()[pinned].id.clone();
        state.document.pins.insert(id);
    }
    state.document.goals = vec![Goal::DropPoints(1.0), Goal::StoredKilobytes(200.0)];
    let ids: Vec<LayerId> = state.mirror.layer_ids()[10..13].to_vec();
    state.view.focus = Some(ids[1].clone());
    state.view.selection = ids.into_iter().collect();

    // Measured cells for two thirds of the map, the rest stays proxy.
    let mut cells = Vec::new();
    for (row, layer) in state.layers().iter().enumerate() {
        for candidate in Candidate::ALL {
            if row > 13 && candidate as usize > 2 {
                continue;
            }
            let weight = weight(candidate) / (1.0 + row as f64 / 4.0);
            cells.push(Cell {
                layer: layer.id.clone(),
                candidate,
                direction: Direction::Alone,
                tier: Tier::Measured,
                value: weight * 0.02,
                ci: Some([weight * 0.02 - 0.001, weight * 0.02 + 0.001]),
                n: 1_000,
                of: 1_000,
                settled: true,
                why: None,
                kl: Some(weight * 0.05),
            });
        }
    }
    state.mirror.add_cells(cells);

    // Points on both splits.
    let plans = [
        (Precision::Fp32, 0.0, 0.934),
        (Precision::Fp16, 0.0, 0.934),
        (Precision::Int8, 0.0, 0.933),
        (Precision::Int8, 0.25, 0.9305),
        (Precision::Int4, 0.0, 0.928),
        (Precision::Int4, 0.5, 0.907),
    ];
    let mut job = 10;
    let demo_plan = state.document.clone();
    for split in [SplitName::Search, SplitName::Holdout] {
        for (precision, ratio, top1) in plans {
            let mut document = demo_plan.clone();
            for layer in state.mirror.layer_ids() {
                document.set(
                    layer,
                    LayerSetting {
                        precision,
                        sparsity: Ratio(ratio),
                    },
                );
            }
            job += 1;
            let recipe = recipe(&state, &document);
            let bits = match precision {
                Precision::Fp32 => 32,
                Precision::Fp16 | Precision::Bf16 => 16,
                integer => u64::from(integer.bits().unwrap_or(32)),
            };
            let stored = 272_474 * bits / 8 + 14_000;
            state
                .mirror
                .add_point(point(job, recipe, split, top1, stored));
        }
        job += 1;
        let recipe = recipe(&state, &demo_plan);
        state
            .mirror
            .add_point(point(job, recipe, split, 0.9278, 158_000));
    }

    // Jobs and curves.
    state
        .mirror
        .add_job(JobId(1), JobKind::Distil, "Distil 14".into());
    state.mirror.add_job(JobId(2), JobKind::Map, "Map".into());
    for event in [
        Event::Progress {
            job: JobId(1),
            fraction: 0.58,
            eta: Some(Duration::from_secs(102)),
            detail: "epoch 4 of 6 · 3,120 img/s".into(),
        },
        Event::Progress {
            job: JobId(2),
            fraction: 0.65,
            eta: None,
            detail: "86 of 132 measured".into(),
        },
        Event::Log {
            message: "Opened fashion-resnet".into(),
        },
    ] {
        state.mirror.take(&event);
    }
    for step in 1..=40u64 {
        let t = step as f64 / 60.0;
        let accuracy = step
            .is_multiple_of(10)
            .then(|| estimate(0.92 + t / 100.0, 1_000));
        state.mirror.take(&Event::Curve {
            job: JobId(1),
            point: TrainPoint {
                step: step * 10,
                steps: 600,
                epoch: t * 6.0,
                loss: 0.6 * (-2.0 * t).exp() + 0.1,
                rate: 1e-3 * (1.0 - t),
                samples_per_second: 3_120.0,
                accuracy,
                rollbacks: 0,
            },
        });
    }
    let before: Vec<u64> = (0..64)
        .map(|bin| {
            let x = (f64::from(bin) - 31.5) / 12.0;
            (600.0 * (-x * x / 2.0).exp()) as u64
        })
        .collect();
    let after = before
        .iter()
        .enumerate()
        .map(|(bin, count)| if bin % 4 == 2 { count * 4 } else { 0 })
        .collect();
    state.mirror.take(&Event::Inspected {
        job: JobId(3),
        inspection: Box::new(LayerInspection {
            layer: state.layers()[11].id.clone(),
            setting: state.setting(&state.layers()[11].id),
            range: [-0.31, 0.31],
            before,
            after,
            channel_ranges: (0..32)
                .map(|channel| {
                    let width = if channel == 17 {
                        0.31
                    } else {
                        0.05 + 0.002 * channel as f32
                    };
                    [-width, width * 0.9]
                })
                .collect(),
            sqnr_db: Some(18.4),
            clipped: 0.004,
            zeros: 0.38,
            levels: 15,
        }),
    });
    state.refresh();
    state
}

/// A model just opened: layers and proxy cells, nothing measured, an untouched plan.
pub fn opened() -> State {
    let mut state = State::default();
    state.mirror.set_model(model_info());
    let mut cells = Vec::new();
    for (row, layer) in state.layers().iter().enumerate() {
        for candidate in Candidate::ALL {
            cells.push(Cell {
                layer: layer.id.clone(),
                candidate,
                direction: Direction::Alone,
                tier: Tier::Proxy,
                value: weight(candidate).powi(2) * 0.2 / (1.0 + row as f64 / 10.0),
                ci: None,
                n: 0,
                of: 0,
                settled: true,
                why: None,
                kl: None,
            });
        }
    }
    state.mirror.add_cells(cells);
    state.mark_saved();
    state.refresh();
    state
}

/// How hard a candidate is on a layer, roughly.
fn weight(candidate: Candidate) -> f64 {
    match candidate {
        Candidate::Fp16 => 0.0,
        Candidate::Int8 => 0.02,
        Candidate::Int4 => 0.6,
        Candidate::P25 => 0.2,
        Candidate::P50 => 0.7,
        Candidate::P75 => 2.0,
    }
}

fn names() -> Vec<String> {
    let mut names = vec!["conv1".to_owned()];
    for stage in 1..=3 {
        for block in 0..3 {
            names.push(format!("layer{stage}.{block}.conv1"));
            names.push(format!("layer{stage}.{block}.conv2"));
            if block == 0 && stage > 1 {
                names.push(format!("layer{stage}.0.down"));
            }
        }
    }
    names.push("fc".into());
    names
}

/// Channels of a residual network: what is added up goes together, the inside of a block by itself.
fn channels(layers: &[LayerFacts]) -> ChannelGroups {
    let stage = |id: &LayerId| match id.0.strip_prefix("layer") {
        Some(rest) => rest[..1].parse().unwrap_or(1),
        None => 1_usize,
    };
    let residual = |id: &LayerId| !id.0.contains(".conv1") && &*id.0 != "fc";
    let mut channels = ChannelGroups::default();
    for wanted in 1..=3 {
        let own = layers
            .iter()
            .filter(|l| residual(&l.id) && stage(&l.id) == wanted);
        let inner = layers
            .iter()
            .filter(|l| l.id.0.contains(".conv1") && stage(&l.id) == wanted);
        channels.groups.push(ChannelGroup {
            layers: own.map(|l| l.id.clone()).collect(),
            readers: inner.clone().map(|l| l.id.clone()).collect(),
            channels: 8 << wanted,
        });
        for layer in inner {
            channels.groups.push(ChannelGroup {
                layers: vec![layer.id.clone()],
                readers: vec![LayerId(
                    layer.id.0.replace("conv1", "conv2").as_str().into(),
                )],
                channels: 8 << wanted,
            });
        }
    }
    let why = "its channels are the model's output logits".to_owned();
    channels.fixed.insert(LayerId("fc".into()), why);
    channels
}

/// The stages' later blocks, whose skips pass by unchanged.
fn blocks(layers: &[LayerFacts]) -> Vec<Block> {
    let named = |name: &str| layers.iter().find(|l| &*l.id.0 == name);
    let block = |(first, second): (&LayerFacts, &LayerFacts)| Block {
        skip: format!("{}.in", first.id.0),
        branch: format!("{}.out", second.id.0),
        sum: format!("{}.sum", second.id.0),
        layers: vec![first.id.clone(), second.id.clone()],
    };
    let firsts = layers.iter().filter(|l| l.id.0.ends_with(".1.conv1"));
    firsts
        .filter_map(|first| Some((first, named(&first.id.0.replace("conv1", "conv2"))?)))
        .map(block)
        .collect()
}

fn model_info() -> ModelInfo {
    let mut stage = 1;
    let layers: Vec<LayerFacts> = names()
        .iter()
        .map(|name| {
            if let Some(rest) = name.strip_prefix("layer") {
                stage = rest[..1].parse().unwrap_or(1);
            }
            let wide = 16 << (stage - 1);
            let first = name.contains(".0.conv1") || name.contains("down");
            let narrow = if first && stage > 1 { wide / 2 } else { wide };
            let (op, weight_shape) = match name.as_str() {
                "conv1" => ("Conv", vec![16, 1, 3, 3]),
                "fc" => ("Gemm", vec![10, 64]),
                name if name.contains("down") => ("Conv", vec![wide, narrow, 1, 1]),
                _ => ("Conv", vec![wide, narrow, 3, 3]),
            };
            let params: usize = weight_shape.iter().product();
            let side = 28 >> (stage - 1);
            let macs = if op == "Gemm" {
                params
            } else {
                params * side * side
            };
            LayerFacts {
                id: LayerId(name.as_str().into()),
                op: op.into(),
                weight_shape,
                channel_axis: 0,
                params: params as u64,
                macs: Some(macs as u64),
            }
        })
        .collect();
    let params: u64 = layers.iter().map(|layer| layer.params).sum();
    let macs: u64 = layers.iter().filter_map(|layer| layer.macs).sum();
    ModelInfo {
        name: "fashion-resnet".into(),
        path: PathBuf::from("sample-models/fashion-resnet/fashion-resnet.onnx"),
        task_path: Some(PathBuf::from("sample-models/fashion-resnet/task.ron")),
        sha256: Some("00".repeat(32)),
        sizes: Sizes {
            stored: Bytes(params * 4 + 14_000),
            theoretical: Bytes(params * 4),
            runtime: Bytes(params * 4),
            params,
            nonzero_params: params,
            macs: Some(macs),
        },
        channels: channels(&layers),
        heads: None,
        blocks: blocks(&layers),
        layers,
        overhead: Bytes(14_000),
        inputs: vec![("input".into(), "N×1×28×28 f32".into())],
        outputs: vec![("logits".into(), "N×10 f32".into())],
        opset: "17".into(),
        data: Some(DatasetInfo {
            name: "Fashion-MNIST".into(),
            classes: (0..10).map(|class| format!("class {class}")).collect(),
            sizes: vec![
                (SplitName::Calibration, 512),
                (SplitName::Search, 2_000),
                (SplitName::Training, 12_488),
                (SplitName::Holdout, 10_000),
            ],
            unlabelled: Vec::new(),
            sample_shape: vec![1, 28, 28],
            sha256: "11".repeat(32),
        }),
        warnings: Vec::new(),
        runnable: true,
    }
}

fn recipe(state: &State, document: &super::Document) -> Recipe {
    document.recipe(
        "fashion-resnet",
        &PathBuf::from("fashion-resnet.onnx"),
        &PathBuf::from("task.ron"),
        state.layers(),
        false,
    )
}

fn estimate(value: f64, n: u64) -> Estimate {
    let half = 1.96 * (value * (1.0 - value) / n as f64).sqrt();
    Estimate {
        value,
        n,
        ci: [value - half, value + half],
    }
}

/// A measured point with plausible intervals.
pub fn point(job: u64, recipe: Recipe, split: SplitName, top1: f64, stored: u64) -> Point {
    let n = if split == SplitName::Holdout {
        10_000
    } else {
        1_000
    };
    let drop = 0.934 - top1;
    let half = 0.0021 * (10_000.0 / n as f64).sqrt();
    Point {
        job: JobId(job),
        metrics: Metrics {
            split,
            top1: estimate(top1, n),
            top5: estimate(0.998, n),
            cross_entropy: Estimate {
                value: 0.2,
                n,
                ci: [0.19, 0.21],
            },
            agreement: Some(estimate(0.98, n)),
            per_class: (0..10).map(|_| estimate(top1, n / 10)).collect(),
            drop: (!recipe.steps.is_empty()).then_some(PairedDrop {
                drop,
                ci: [drop - half, drop + half],
                n,
                only_baseline: 100,
                only_candidate: 40,
            }),
            simulated: None,
            unlabelled: false,
        },
        recipe,
        sizes: Sizes {
            stored: Bytes(stored),
            theoretical: Bytes(stored * 9 / 10),
            runtime: Bytes(stored),
            params: 272_474,
            nonzero_params: 272_474,
            macs: Some(31_000_000),
        },
        accounts: Vec::new(),
        saturation: Vec::new(),
        confirmed: None,
        model_sha256: "22".repeat(32),
        seconds: 0.9,
        limit: None,
        partial: false,
    }
}
