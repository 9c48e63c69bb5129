//! `limbeck verify --runtime`: what a deployment runtime makes of a run's exported file.

use crate::{
    DONE, FAILED, Report, Stop, args, commands,
    json::labels,
    text::{percent, table, thousands},
    watch::Watch,
};
use limbeck_engine::{
    confirm::{APART, Codes, Confirmation, LayerReport, RuntimeRun, TensorReport},
    eval::top1_name,
    exec::CancelToken,
    measure::runtime::RuntimeSearch,
    recipe::{self, RuntimeQuestion},
};
use serde_json::{Value, json};
use std::fmt::Write;

pub fn confirm(a: &args::Verify, threads: usize, mut watch: Watch) -> Result<Report, Stop> {
    commands::run_folder(&a.folder)?;
    let question = RuntimeQuestion {
        search: RuntimeSearch {
            given: a.runtime_library.clone(),
            setting: None,
        },
        optimizations: a.optimizations.list(),
        tensor_samples: a.tensors,
        threads,
    };
    let confirmed = recipe::confirm(
        &a.folder,
        a.task.as_deref(),
        &question,
        &mut watch,
        &CancelToken::default(),
    )?;
    watch.finish();
    let agrees = confirmed.confirmation.agrees() && confirmed.differences.is_empty();
    let out = words(&confirmed.confirmation, &confirmed.differences);
    Ok(Report {
        text: out,
        json: json!({
            "command": "verify",
            "agrees": agrees,
            "differences": confirmed.differences,
            "exported_sha256": confirmed.lock.exported_sha256,
            "runtime": runtime(&confirmed.confirmation),
        }),
        code: if agrees { DONE } else { FAILED },
    })
}

fn words(c: &Confirmation, differences: &[String]) -> String {
    let mut out = format!(
        "ONNX Runtime {} ({}), measured on {} samples of the {} split\n",
        c.runtime,
        c.library.display(),
        thousands(c.n),
        c.split
    );
    let top1 = top1_name(c.unlabelled);
    let _ = writeln!(out, "  predicted      {top1} {}", percent(&c.predicted));
    if let Some(target) = &c.target {
        let _ = writeln!(
            out,
            "  at {}  {top1} {}, by simulating its arithmetic{}",
            target.name,
            percent(&target.top1),
            if target.here {
                "; the run with optimisations on is held against this"
            } else {
                "; this machine's processor adds up exactly, so that the runtime cannot confirm it here"
            }
        );
    }
    for run in &c.runs {
        out.push_str(&run_words(run, top1));
    }
    match (&c.tensors, &c.layers) {
        (Some(tensors), _) => out.push_str(&tensor_words(tensors)),
        (None, Some(layers)) => out.push_str(&layer_words(layers)),
        (None, None) if c.runs.iter().any(|r| r.optimizations.name() == "off") => {
            out.push_str("  tensors        none compared\n");
        }
        (None, None) => {}
    }
    for run in c.runs.iter().filter(|run| !run.agrees()) {
        let _ = writeln!(
            out,
            "DISAGREES: with optimisations {} the runtime gives another label on {} of {} samples (at most 0.1 % may differ)",
            run.optimizations.name(),
            thousands(run.agreement.n - run.same_labels),
            thousands(run.agreement.n)
        );
    }
    if !differences.is_empty() {
        out.push_str("DIFFERS: the folder does not hold what its lock speaks of\n");
        for difference in differences {
            let _ = writeln!(out, "  {difference}");
        }
    } else if c.agrees() {
        out.push_str("Agrees: at least 99.9 % of the labels are those predicted.\n");
    }
    out
}

fn run_words(run: &RuntimeRun, top1: &str) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "  optimisations {}\n    {top1:<12} {}\n    labels       {} of {} as predicted ({:.2} %)\n    lost         {:+.2} points against the prediction (95 % interval {:+.2} to {:+.2}, paired)\n    outputs      differ by at most {:.3e}{}",
        run.optimizations.name(),
        percent(&run.top1),
        thousands(run.same_labels),
        thousands(run.agreement.n),
        run.agreement.value * 100.0,
        run.drop.drop * 100.0,
        run.drop.ci[0] * 100.0,
        run.drop.ci[1] * 100.0,
        run.largest_difference,
        match run.largest_output {
            Some(largest) => format!("; the largest output is {largest:.3e} in magnitude"),
            None => String::new(),
        }
    );
    if let Some(lead) = run.clearest_lead {
        let _ = writeln!(
            out,
            "    other labels the clearest prediction among them led by {lead:.3e}{}",
            if lead <= 2.0 * run.largest_difference {
                ": near ties all of them"
            } else {
                ""
            }
        );
    }
    out
}

/// Layers' float results: how far apart, and where the two part.
fn layer_words(report: &LayerReport) -> String {
    let mut out = format!(
        "  layers         {} compared in float, optimisations off, {} samples, from the model's input on\n",
        report.layers.len(),
        thousands(report.samples)
    );
    if let Some(worst) = report.worst() {
        let _ = writeln!(
            out,
            "    furthest apart {}: {}",
            worst.layer.0,
            worst.words()
        );
    }
    let _ = match report.first_parting() {
        None => writeln!(
            out,
            "    none parts (differs by more than {APART} of its largest number)"
        ),
        Some(first) => writeln!(
            out,
            "    they part first in {}: {}",
            first.layer.0,
            first.words()
        ),
    };
    let rows: Vec<Vec<String>> = report
        .layers
        .iter()
        .map(|layer| {
            vec![
                format!("    {}", layer.layer.0),
                thousands(layer.elements),
                format!("{:.3e}", layer.largest),
                format!("{:.1e}", layer.largest_difference),
                format!("{:.1e}", layer.relative()),
            ]
        })
        .collect();
    out.push_str(&table(
        &[
            ("    layer", false),
            ("numbers", true),
            ("largest", true),
            ("apart", true),
            ("of largest", true),
        ],
        &rows,
    ));
    out
}

/// Shares of elements, and where the two part.
fn tensor_words(report: &TensorReport) -> String {
    let (own, through) = report.totals();
    let shares = |c: &Codes| {
        format!(
            "{:.4} % equal, {:.4} % within one step, at most {} steps apart",
            c.share_equal() * 100.0,
            c.share_within_one() * 100.0,
            c.largest
        )
    };
    let mut out = format!(
        "  tensors        {} quantised, optimisations off, {} samples, {} codes\n    from the model's input on, differences carried along: {}\n",
        report.tensors.len(),
        thousands(report.samples),
        thousands(through.elements),
        shares(&through)
    );
    if let Some(own) = &own {
        let _ = writeln!(
            out,
            "    each from the runtime's codes before it ({} codes): {}",
            thousands(own.elements),
            shares(own)
        );
    }
    if report.tensors.iter().any(|t| t.own.is_none()) {
        out.push_str(
            "    behind ranges of each inference, or codes that are read in several ways, a tensor is known with differences carried along only; \
             scales of such ranges are not compared\n",
        );
    }
    let Some(first) = report.first_parting() else {
        out.push_str("    all codes are the same\n");
        return out;
    };
    let _ = writeln!(
        out,
        "    they part first in {}: {} of {} codes differ, by at most {} steps",
        first.name,
        thousands(first.best().elements - first.best().equal),
        thousands(first.best().elements),
        first.best().largest
    );
    if let Some(first) = report.first_beyond_one() {
        let _ = writeln!(
            out,
            "    by more than one step first in {}: {} codes, at most {} steps",
            first.name,
            thousands(first.best().elements - first.best().within_one),
            first.best().largest
        );
    }
    let rows: Vec<Vec<String>> = report
        .tensors
        .iter()
        .map(|t| {
            let mut row = vec![format!("    {}", t.name), thousands(t.through.elements)];
            for codes in [t.own.as_ref(), Some(&t.through)] {
                match codes {
                    Some(codes) => row.extend([
                        format!("{:.4}", codes.share_equal() * 100.0),
                        format!("{:.4}", codes.share_within_one() * 100.0),
                        codes.largest.to_string(),
                    ]),
                    None => row.extend(["-"; 3].map(str::to_owned)),
                }
            }
            row
        })
        .collect();
    out.push_str(&table(
        &[
            ("    tensor", false),
            ("codes", true),
            ("equal %", true),
            ("within one %", true),
            ("steps", true),
            ("carried: equal %", true),
            ("within one %", true),
            ("steps", true),
        ],
        &rows,
    ));
    out
}

fn runtime(c: &Confirmation) -> Value {
    let estimate =
        |e: &limbeck_engine::eval::Estimate| json!({ "value": e.value, "n": e.n, "ci": e.ci });
    json!({
        "name": "onnxruntime",
        "version": c.runtime,
        "library": c.library,
        "split": c.split.name(),
        "n": c.n,
        "labels": labels(c.unlabelled),
        "predicted": { "provenance": "measured", "top1": estimate(&c.predicted) },
        "target": c.target.as_ref().map(|t| json!({
            "name": t.name, "provenance": "simulated", "top1": estimate(&t.top1), "here": t.here,
        })),
        "runs": c.runs.iter().map(|r| json!({
            "optimizations": r.optimizations,
            "provenance": "measured",
            "agrees": r.agrees(),
            "at_target": r.at_target,
            "top1": estimate(&r.top1),
            "agreement": estimate(&r.agreement),
            "same_labels": r.same_labels,
            "drop": {
                "value": r.drop.drop, "n": r.drop.n, "ci": r.drop.ci,
                "only_baseline": r.drop.only_baseline, "only_candidate": r.drop.only_candidate,
            },
            "largest_difference": r.largest_difference,
            "largest_output": r.largest_output,
            "clearest_lead": r.clearest_lead,
        })).collect::<Value>(),
        "tensors": c.tensors.as_ref().map(|t| {
            let (own, through) = t.totals();
            json!({
                "samples": t.samples,
                "own": own,
                "through": through,
                "first_parting": t.first_parting().map(|t| &t.name),
                "first_beyond_one": t.first_beyond_one().map(|t| &t.name),
                "worst": t.worst().map(|t| json!({ "name": t.name, "within_one_share": t.best().share_within_one() })),
                "each": t.tensors,
            })
        }),
        "layers": c.layers.as_ref().map(|l| json!({
            "samples": l.samples,
            "parts_beyond": APART,
            "first_parting": l.first_parting().map(|l| &l.layer),
            "worst": l.worst().map(|l| json!({ "layer": l.layer, "relative": l.relative() })),
            "each": l.layers,
        })),
    })
}
