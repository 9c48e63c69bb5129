//! The JSON objects, with the field names that docs/cli.md promises.

use limbeck_engine::{
    compress::ChannelGroups,
    data::DatasetInfo,
    eval::{Estimate, Metrics},
    graph::LayerId,
    measure::Sizes,
    recipe::GoalVerdict,
    search::LayerFacts,
    sensitivity::Cell,
};
use serde_json::{Value, json};

pub fn layers(layers: &[LayerFacts]) -> Value {
    layers
        .iter()
        .map(|l| {
            json!({
                "name": l.id.0.as_ref(),
                "op": l.op,
                "params": l.params,
                "macs": l.macs,
                "weight_shape": l.weight_shape,
            })
        })
        .collect()
}

/// Layers that lose output channels together, and those that read them.
pub fn channels(channels: &ChannelGroups) -> Value {
    let names = |layers: &[LayerId]| layers.iter().map(|l| l.0.to_string()).collect::<Vec<_>>();
    channels
        .groups
        .iter()
        .map(|g| {
            json!({
                "layers": names(&g.layers),
                "readers": names(&g.readers),
                "channels": g.channels,
            })
        })
        .collect()
}

pub fn sizes(s: &Sizes) -> Value {
    json!({
        "stored_bytes": s.stored.0,
        "theoretical_bytes": s.theoretical.0,
        "runtime_bytes": s.runtime.0,
        "params": s.params,
        "nonzero_params": s.nonzero_params,
        "macs": s.macs,
    })
}

fn estimate(e: &Estimate) -> Value {
    json!({ "value": e.value, "n": e.n, "ci": e.ci })
}

/// Fractions in 0..=1; `provenance` is `measured`, or `simulated` with the target under `at`.
pub fn metrics(m: &Metrics, classes: &[String]) -> Value {
    json!({
        "split": m.split.name(),
        "provenance": if m.simulated.is_some() { "simulated" } else { "measured" },
        "at": m.simulated,
        "labels": labels(m.unlabelled),
        "top1": estimate(&m.top1),
        "top5": estimate(&m.top5),
        "cross_entropy": estimate(&m.cross_entropy),
        "agreement": m.agreement.as_ref().map(estimate),
        "drop": m.drop.map(|d| json!({
            "value": d.drop,
            "n": d.n,
            "ci": d.ci,
            "only_baseline": d.only_baseline,
            "only_candidate": d.only_candidate,
        })),
        "per_class": m.per_class.iter().enumerate().map(|(i, e)| json!({
            "class": classes.get(i),
            "value": e.value,
            "n": e.n,
            "ci": e.ci,
        })).collect::<Value>(),
    })
}

/// What classes are held against.
pub fn labels(unlabelled: bool) -> &'static str {
    if unlabelled { "original" } else { "data" }
}

pub fn data(info: &DatasetInfo) -> Value {
    json!({
        "name": info.name,
        "classes": info.classes.len(),
        "unlabelled": info.unlabelled.iter().map(|s| s.name()).collect::<Vec<_>>(),
        "splits": info.sizes.iter().map(|(s, n)| (s.name().to_owned(), json!(n))).collect::<Value>(),
        "sample_shape": info.sample_shape,
        "sha256": info.sha256,
    })
}

pub fn cells<'a>(cells: impl IntoIterator<Item = &'a Cell>) -> Value {
    cells
        .into_iter()
        .map(|c| {
            json!({
                "layer": c.layer.0.as_ref(),
                "candidate": c.candidate,
                "direction": c.direction,
                "tier": c.tier,
                "value": c.value,
                "n": c.n,
                "of": c.of,
                "settled": c.settled,
                "why": c.why,
                "ci": c.ci,
                "kl": c.kl,
            })
        })
        .collect()
}

pub fn verdicts(verdicts: &[GoalVerdict]) -> Value {
    verdicts
        .iter()
        .map(|v| {
            json!({
                "goal": v.goal,
                "verdict": v.verdict,
                "measured": v.measured,
                "ci": v.ci,
                "samples_needed": v.samples_needed,
                "words": v.words,
            })
        })
        .collect()
}
