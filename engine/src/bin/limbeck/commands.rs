//! The six commands: arguments in, report out.

use crate::{
    BAD_INPUT, DONE, FAILED, GOAL_MISSED, Report, Stop, args, json, start,
    text::{self, table, thousands},
    watch::Watch,
};
use limbeck_engine::{
    compress::{ChannelGroup, ChannelGroups, Precision, QuantScheme},
    data::{Dataset, SplitName},
    eval::top1_name,
    exec::CancelToken,
    graph::LayerId,
    measure,
    recipe::{
        self, Checkpoints, Choice, LOCK_FILE, Lock, METRICS_FILE, MODEL_FILE, PREDICTIONS_FILE,
        PipelineError, QuantizeStep, RECIPE_FILE, Recipe, RecipeFile, Session, Step, Verdict,
        predictions_text, write_atomic,
    },
    sensitivity::{self, Candidate, Cell, Direction, MapObserver, MapOptions, Tier},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
};

/// A file that was named must be there before anything else is said about it.
fn existing(path: &Path, what: &str) -> Result<(), Stop> {
    let message = match std::fs::metadata(path) {
        Ok(m) if m.is_dir() => format!("{} is a folder; a {what} was expected", path.display()),
        Ok(_) => return Ok(()),
        Err(e) => format!("the {what} {} cannot be read: {e}", path.display()),
    };
    Err(Stop {
        message,
        code: BAD_INPUT,
    })
}

fn open(model: &Path, task: Option<&Path>) -> Result<Session, Stop> {
    existing(model, "model")?;
    let task: Option<PathBuf> = task
        .map(Path::to_owned)
        .or_else(|| recipe::task_beside(model));
    if let Some(task) = &task {
        existing(task, "task")?;
    }
    Ok(Session::open(model, task.as_deref())?)
}

fn model_json(session: &Session) -> Result<Value, Stop> {
    let sha256 = session.model_sha256(&CancelToken::default())?;
    Ok(json!({ "path": session.model_path, "sha256": sha256 }))
}

pub fn inspect(a: &args::Inspect) -> Result<Report, Stop> {
    let session = open(&a.model, a.task.as_deref())?;
    let info = limbeck_engine::jobs::info(&session, session.obstacles())?;
    let sha256 = session.model_sha256(&CancelToken::default())?;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} · ONNX opset {} · SHA-256 {}",
        info.path.display(),
        info.opset,
        sha256
    );
    for (label, ports) in [("input", &info.inputs), ("output", &info.outputs)] {
        for (name, shape) in ports {
            let _ = writeln!(out, "  {label:<14} {name}  {shape}");
        }
    }
    out.push_str(&text::sizes(&info.sizes));
    if let Some(data) = &info.data {
        let splits: Vec<String> = data
            .sizes
            .iter()
            .map(|(s, n)| {
                let labels = match data.unlabelled.contains(s) {
                    true => " without labels",
                    false => "",
                };
                format!("{s} {}{labels}", thousands(*n as u64))
            })
            .collect();
        let _ = writeln!(
            out,
            "  data           {}: {} classes; {}",
            data.name,
            data.classes.len(),
            splits.join(", ")
        );
    }
    for warning in &info.warnings {
        let _ = writeln!(out, "  warning        {warning}");
    }
    out.push('\n');
    let total: u64 = info.layers.iter().map(|l| l.params).sum();
    let rows: Vec<Vec<String>> = info
        .layers
        .iter()
        .map(|l| {
            vec![
                l.id.0.to_string(),
                l.op.clone(),
                l.weight_shape
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("×"),
                thousands(l.params),
                format!("{:.1}", l.params as f64 * 100.0 / total.max(1) as f64),
                l.macs.map_or("?".into(), thousands),
                group_number(&info.channels, &l.id).map_or("stay".into(), |n| format!("group {n}")),
            ]
        })
        .collect();
    out.push_str(&table(
        &[
            ("layer", false),
            ("operator", false),
            ("weight", false),
            ("parameters", true),
            ("share %", true),
            ("MACs a sample", true),
            ("channels", true),
        ],
        &rows,
    ));
    out.push_str(&channel_words(&info.channels));
    let ports = |ports: &[(String, String)]| -> Value {
        ports
            .iter()
            .map(|(name, shape)| json!({ "name": name, "shape": shape }))
            .collect()
    };
    Ok(Report {
        text: out,
        json: json!({
            "command": "inspect",
            "model": {
                "path": info.path,
                "name": info.name,
                "sha256": sha256,
                "opset": info.opset.parse::<u32>().ok(),
                "inputs": ports(&info.inputs),
                "outputs": ports(&info.outputs),
            },
            "sizes": json::sizes(&info.sizes),
            "layers": json::layers(&info.layers),
            "channel_groups": json::channels(&info.channels),
            "channels_stay": info.channels.fixed.iter().map(|(l, why)| (l.0.to_string(), json!(why)))
                .collect::<serde_json::Map<_, _>>(),
            "data": info.data.as_ref().map(json::data),
            "runnable": info.runnable,
            "warnings": info.warnings,
        }),
        code: DONE,
    })
}

/// Number of the group that a layer's output channels go with, from 1.
fn group_number(channels: &ChannelGroups, layer: &LayerId) -> Option<usize> {
    let has = |g: &ChannelGroup| g.layers.contains(layer);
    channels.groups.iter().position(has).map(|i| i + 1)
}

/// Why channels stay, layer by layer.
fn channel_words(channels: &ChannelGroups) -> String {
    let mut out = format!(
        "\nChannels that can be taken out: {} groups (layers of one group lose theirs together).\n",
        channels.groups.len()
    );
    for (layer, why) in &channels.fixed {
        let _ = writeln!(out, "  stay in {}: {why}", layer.0);
    }
    out
}

pub fn eval(a: &args::Eval, mut watch: Watch) -> Result<Report, Stop> {
    let session = open(&a.model, a.task.as_deref())?;
    let split = SplitName::from(a.split);
    session.samples(split, a.limit)?;
    let cancel = CancelToken::default();
    let (result, account) = match &a.target {
        Some(name) => recipe::evaluate_at(&session, name, split, a.limit, &mut watch, &cancel)?,
        None => (session.baseline(split, a.limit, &mut watch, &cancel)?, None),
    };
    watch.finish();
    if let Some(path) = &a.predictions {
        write_atomic(path, predictions_text(&result).as_bytes())?;
    }
    let metrics = result.metrics(None);
    let info = session.runnable()?.info();
    Ok(Report {
        text: format!(
            "{}\n{}{}",
            text::metrics(&metrics, &session.model_path.display().to_string()),
            text::classes(&metrics, &info.classes),
            account.as_ref().map(done_lines).unwrap_or_default()
        ),
        json: json!({
            "command": "eval",
            "model": model_json(&session)?,
            "data": json::data(info),
            "metrics": json::metrics(&metrics, &info.classes),
            "predictions_sha256": recipe::sha256(predictions_text(&result).as_bytes()),
            "target": a.target.as_ref().map(|name| json!({ "name": name, "account": account })),
        }),
        code: DONE,
    })
}

/// What was done to each layer.
fn done_lines(account: &limbeck_engine::compress::Account) -> String {
    use limbeck_engine::compress::Outcome;
    let mut out = format!("\n{}:\n", account.pass);
    for entry in &account.entries {
        let (Outcome::Done(words) | Outcome::NotDone(words)) = &entry.outcome;
        let _ = writeln!(out, "  {}: {words}", entry.layer.0);
    }
    out
}

pub fn sensitivity(a: &args::Sensitivity, mut watch: Watch) -> Result<Report, Stop> {
    let session = open(&a.model, a.task.as_deref())?;
    let scheme = QuantScheme::default();
    let mut cells = Vec::new();
    sensitivity::proxy_by_parts(&session.graph, &scheme, &mut |some| {
        cells.extend(some);
        MapObserver::batch(&mut watch)
    })
    .map_err(PipelineError::from)?;
    if !a.proxy && session.data.is_some() {
        let cancel = CancelToken::default();
        let options = MapOptions {
            limit: a.limit,
            exact: a.exact,
            too_much: a.too_much / 100.0,
            direction: if a.all_but {
                Direction::AllBut
            } else {
                Direction::Alone
            },
            candidates: (!a.candidates.is_empty()).then(|| a.candidates.clone()),
            memory: a.memory.map_or_else(sensitivity::default_memory, |mb| {
                mb.saturating_mul(1_000_000)
            }),
        };
        let (model, data) = (session.model(), session.runnable()?);
        if a.estimate {
            sensitivity::estimate(&model, &scheme, data, &options, &cells, &mut watch, &cancel)
                .map_err(PipelineError::from)?;
            cells.append(&mut watch.early);
        } else {
            session.samples(SplitName::Search, a.limit)?;
            let measured = sensitivity::measure(
                &model, &scheme, None, data, &options, &cells, &mut watch, &cancel,
            )
            .map_err(PipelineError::from)?;
            cells.append(&mut watch.early);
            cells.extend(measured);
        }
    }
    watch.finish();
    Ok(Report {
        text: cell_tables(&session, &cells),
        json: json!({
            "command": "sensitivity",
            "model": model_json(&session)?,
            "split": cells.iter().any(|c| c.tier == Tier::Measured).then_some("search"),
            "cells": json::cells(&cells),
        }),
        code: DONE,
    })
}

fn cell_tables(session: &Session, cells: &[Cell]) -> String {
    let index: BTreeMap<_, _> = cells
        .iter()
        .map(|c| ((c.tier, &c.layer, c.candidate), c))
        .collect();
    let columns = [
        "fp16",
        "int8",
        "int4",
        "prune 25 %",
        "prune 50 %",
        "prune 75 %",
    ];
    let unlabelled = |data: &Dataset| data.info().unlabelled.contains(&SplitName::Search);
    let top1 = top1_name(session.data.as_ref().is_some_and(unlabelled));
    let mut out = String::new();
    for tier in [Tier::Proxy, Tier::Local, Tier::Fisher, Tier::Measured] {
        let of_tier: Vec<&Cell> = cells.iter().filter(|c| c.tier == tier).collect();
        let (Some(fewest), Some(most)) = (
            of_tier.iter().map(|c| c.n).min(),
            of_tier.iter().map(|c| c.n.max(c.of)).max(),
        ) else {
            continue;
        };
        let _ = match tier {
            Tier::Proxy => writeln!(
                out,
                "Proxy: relative squared error of the weights, ×10⁻³; no data seen"
            ),
            Tier::Local => writeln!(
                out,
                "\nLocal: relative squared error of the layer's output, ×10⁻³; {} images, no labels",
                thousands(most)
            ),
            Tier::Fisher => writeln!(
                out,
                "\nFisher: divergence of the outputs as the layer's error predicts it, nats ×10⁻³, estimated; {} images, no labels",
                thousands(most)
            ),
            Tier::Measured => {
                let what = match of_tier[0].direction {
                    Direction::Alone => "with this layer alone changed",
                    Direction::AllBut => "with all layers changed but this one",
                };
                let run = if fewest < most {
                    format!(
                        "; {} to {} of them run for a cell, those nearest to flipping first: the others are taken to move as these did (--exact runs all)",
                        thousands(fewest),
                        thousands(of_tier.iter().map(|c| c.n).max().unwrap_or(most))
                    )
                } else {
                    String::new()
                };
                writeln!(
                    out,
                    "\nMeasured: points of {top1} lost {what}, ± half the 95 % interval; {} samples of the search split, paired{run}",
                    thousands(most)
                )
            }
        };
        let rows: Vec<Vec<String>> = session
            .layers
            .iter()
            .map(|layer| {
                let cell = |candidate: Candidate| match index.get(&(tier, &layer.id, candidate)) {
                    None => "-".to_owned(),
                    Some(c) => match c.ci {
                        Some([lo, hi]) => {
                            format!("{:+.2} ±{:.2}", c.value * 100.0, (hi - lo) * 50.0)
                        }
                        None => format!("{:.3}", c.value * 1e3),
                    },
                };
                std::iter::once(layer.id.0.to_string())
                    .chain(Candidate::ALL.map(cell))
                    .collect()
            })
            .collect();
        let header: Vec<(&str, bool)> = std::iter::once(("layer", false))
            .chain(columns.map(|c| (c, true)))
            .collect();
        out.push_str(&table(&header, &rows));
    }
    out
}

pub fn run(a: &args::Run, mut watch: Watch) -> Result<Report, Stop> {
    let mut begun = match start::begun(a)? {
        start::Begun::Complete(report) => return Ok(report),
        start::Begun::Work(begun) => begun,
    };
    existing(&begun.recipe, "recipe")?;
    let file = RecipeFile::read(&begun.recipe)?;
    for (path, what) in [(&a.model, "model"), (&a.task, "task")] {
        if let Some(path) = path {
            existing(path, what)?;
        }
    }
    let (session, recipe) = recipe::open_recipe(&file, a.model.as_deref(), a.task.as_deref())?;
    session.samples(begun.split, begun.limit)?;
    let mut recipe = recipe;
    let (recipe_text, mut checkpoints) = start::prepare(&mut begun, &session, &mut recipe)?;
    for note in checkpoints.notes() {
        watch.say(&note);
    }
    let cancel = watch.cancel.clone();
    let (split, limit) = (begun.split, begun.limit);
    let outcome = recipe::run_kept(
        &session,
        &recipe,
        &mut checkpoints,
        split,
        limit,
        &mut watch,
        &cancel,
    );
    let outcome = outcome.map_err(|error| start::ended(error, &begun.out))?;
    watch.finish();
    let lock = Lock::of(&session, &outcome, &recipe_text)?;
    let info = session.runnable()?.info();
    let code = match recipe::overall(&outcome.verdicts) {
        Some(Verdict::Fail) => GOAL_MISSED,
        Some(Verdict::Inconclusive) if begun.strict => GOAL_MISSED,
        _ => DONE,
    };
    let mut model = model_json(&session)?;
    model["path"] = json!(begun.model());
    let report = json!({
        "command": "run",
        "recipe": { "path": begun.named, "name": recipe.name, "sha256": lock.recipe_sha256, "seed": recipe.seed },
        "model": model,
        "data": json::data(info),
        "baseline": json::metrics(&outcome.baseline_metrics, &info.classes),
        "metrics": json::metrics(&outcome.metrics, &info.classes),
        "sizes": json::sizes(&outcome.sizes),
        "verdict": recipe::overall(&outcome.verdicts),
        "strict": begun.strict,
        "goals": json::verdicts(&outcome.verdicts),
        "accounts": outcome.accounts,
        "exported": { "file": MODEL_FILE, "bytes": outcome.bytes.len(), "sha256": outcome.model_sha256 },
        "predictions_sha256": lock.predictions_sha256,
        "engine": limbeck_engine::VERSION,
    });
    let predictions = predictions_text(&outcome.evaluation);
    let lock_text = lock.to_ron()?;
    let metrics_text = format!("{report:#}\n");
    // The lock last: where it stands, everything it speaks of is complete.
    for (name, content) in [
        (MODEL_FILE, outcome.bytes.as_slice()),
        (PREDICTIONS_FILE, predictions.as_bytes()),
        (METRICS_FILE, metrics_text.as_bytes()),
        (LOCK_FILE, lock_text.as_bytes()),
    ] {
        write_atomic(&begun.out.join(name), content)?;
    }
    Checkpoints::done(&begun.out)?;

    let mut out = String::new();
    out.push_str(&text::metrics(&outcome.baseline_metrics, "Original"));
    out.push_str(&text::metrics(&outcome.metrics, "Compressed"));
    out.push_str(&text::sizes(&outcome.sizes));
    out.push_str(&text::shrunk(
        &measure::sizes(&session.graph).map_err(PipelineError::from)?,
        &outcome.sizes,
    ));
    for account in &outcome.accounts {
        out.push_str(&text::account_lines(account));
    }
    for verdict in &outcome.verdicts {
        let word = match verdict.verdict {
            Verdict::Pass => "PASS",
            Verdict::Fail => "FAIL",
            Verdict::Inconclusive => "INCONCLUSIVE",
        };
        let _ = writeln!(out, "{word:<13} {}", verdict.words);
    }
    let _ = writeln!(
        out,
        "Written to {}: {MODEL_FILE} (SHA-256 {}), {RECIPE_FILE}, {LOCK_FILE}, {METRICS_FILE}, {PREDICTIONS_FILE}",
        begun.out.display(),
        outcome.model_sha256
    );
    Ok(Report {
        text: out,
        json: report,
        code,
    })
}

pub fn export(a: &args::Export, mut watch: Watch) -> Result<Report, Stop> {
    let precision = match a.format {
        args::Format::Float => None,
        args::Format::Fp16 => Some(Precision::Fp16),
        args::Format::Int8 => Some(Precision::Int8),
        args::Format::Int4 => Some(Precision::Int4),
    };
    let needs_data = precision.is_some_and(Precision::is_integer);
    // Formats that need no data must not stumble over a broken task beside the model.
    let session = if needs_data || a.task.is_some() {
        open(&a.model, a.task.as_deref())?
    } else {
        existing(&a.model, "model")?;
        Session::open(&a.model, None)?
    };
    let mut recipe = Recipe::baseline(a.model.clone(), PathBuf::new());
    recipe.steps.push(Step::FoldBatchNorm);
    if let Some(precision) = precision {
        recipe.steps.push(Step::Quantize(QuantizeStep {
            default: Choice::Set(precision),
            layers: Vec::new(),
            scheme: QuantScheme::default(),
        }));
    }
    let built = recipe::build(&session, &recipe, &mut watch, &CancelToken::default())?;
    watch.finish();
    write_atomic(&a.out, &built.bytes)?;
    let mut out = format!(
        "Written {}: {} bytes, SHA-256 {}\n",
        a.out.display(),
        thousands(built.bytes.len() as u64),
        built.model_sha256
    );
    out.push_str(&text::sizes(&built.sizes));
    for account in &built.accounts {
        out.push_str(&text::account_lines(account));
    }
    Ok(Report {
        text: out,
        json: json!({
            "command": "export",
            "model": model_json(&session)?,
            "exported": { "file": a.out, "bytes": built.bytes.len(), "sha256": built.model_sha256 },
            "sizes": json::sizes(&built.sizes),
            "accounts": built.accounts,
        }),
        code: DONE,
    })
}

/// The folder of a run must be one.
pub fn run_folder(folder: &Path) -> Result<(), Stop> {
    if folder.is_dir() {
        return Ok(());
    }
    Err(Stop {
        message: format!(
            "{} is not a folder; one that `limbeck run` wrote was expected",
            folder.display()
        ),
        code: BAD_INPUT,
    })
}

pub fn verify(a: &args::Verify, mut watch: Watch) -> Result<Report, Stop> {
    run_folder(&a.folder)?;
    let verified = recipe::verify(
        &a.folder,
        a.model.as_deref(),
        a.task.as_deref(),
        &mut watch,
        &CancelToken::default(),
    )?;
    watch.finish();
    let same = verified.differences.is_empty();
    let mut out = String::new();
    if same {
        let _ = writeln!(
            out,
            "The same in every bit: {} layers' settings, scales and zero points, metrics and predictions of {} samples of the {} split, and the exported model (SHA-256 {}).",
            verified.lock.layers.len(),
            thousands(verified.lock.n),
            verified.lock.split,
            verified.lock.exported_sha256
        );
    } else {
        let _ = writeln!(out, "{} differences:", verified.differences.len());
        for difference in &verified.differences {
            let _ = writeln!(out, "  {difference}");
        }
    }
    Ok(Report {
        text: out,
        json: json!({
            "command": "verify",
            "same": same,
            "differences": verified.differences,
            "exported_sha256": verified.replayed.exported_sha256,
            "predictions_sha256": verified.replayed.predictions_sha256,
        }),
        code: if same { DONE } else { FAILED },
    })
}
