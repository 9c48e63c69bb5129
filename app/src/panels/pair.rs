//! Words for what is predicted of an exported file and what a deployment runtime gave: side by side, disagreement never left out.

use crate::{commands::split_label, widgets::number};
use limbeck_engine::confirm::{APART, LayerComparison, RuntimePair, RuntimeRun, TensorComparison};

/// "ONNX Runtime 1.31.1 gives 10,000 of 10,000 labels as predicted (optimisations off), 9,996 of 10,000 (on); holdout".
pub fn in_short(pair: &RuntimePair) -> String {
    let runs: Vec<String> = pair
        .runs
        .iter()
        .map(|run| {
            format!(
                "{} of {} labels as predicted with optimisations {}",
                number::grouped(run.same_labels),
                number::grouped(run.agreement.n),
                run.optimizations.name()
            )
        })
        .collect();
    let verdict = match pair.agrees() {
        true => "agrees",
        false => "DISAGREES (fewer than 99.9 % of the labels)",
    };
    format!(
        "ONNX Runtime {} {verdict}: {} ({})",
        pair.runtime,
        runs.join(", "),
        split_label(pair.split)
    )
}

/// Everything that is kept of a pair, in lines.
pub fn words(pair: &RuntimePair) -> String {
    let mut lines = vec![format!(
        "predicted {} %, n {} of {}",
        number::points_with_interval(pair.predicted.value, pair.predicted.ci),
        number::grouped(pair.n),
        split_label(pair.split)
    )];
    if let Some(target) = &pair.target {
        lines.push(format!(
            "at {} {} %, simulated{}",
            target.name,
            number::points_with_interval(target.top1.value, target.top1.ci),
            match target.here {
                true => "",
                false => "; this processor adds up exactly, so that it cannot be confirmed here",
            }
        ));
    }
    lines.extend(pair.runs.iter().map(|run| run_words(pair, run)));
    if let Some(tensors) = &pair.tensors {
        let (all, samples) = (tensors.tensors, number::grouped(tensors.samples));
        lines.push(match &tensors.first_parting {
            None => format!("all {all} quantised tensors the same, n {samples}"),
            Some(first) => format!(
                "quantised tensors part first in {}; of all {all} tensors' codes {} % within one step, n {samples}",
                parting(first),
                number::percent(
                    tensors.within_one as f64 / tensors.elements.max(1) as f64,
                    4
                ),
            ),
        });
    }
    if let Some(layers) = &pair.layers {
        let (all, samples) = (layers.layers, number::grouped(layers.samples));
        let share = |layer: &LayerComparison| format!("{}: {}", layer.layer.0, layer.words());
        lines.push(match (&layers.first_parting, &layers.worst) {
            (Some(first), _) => format!(
                "of {all} layers in float the first that differs by more than {APART} of its largest number is {}, n {samples}",
                share(first)
            ),
            (None, Some(worst)) => format!(
                "none of {all} layers in float differs by more than {APART} of its largest number; furthest apart {}, n {samples}",
                share(worst)
            ),
            (None, None) => "no layer's result could be compared".to_owned(),
        });
    }
    lines.join("\n")
}

fn run_words(pair: &RuntimePair, run: &RuntimeRun) -> String {
    let mut text = format!(
        "ONNX Runtime {}, optimisations {}: {} %, measured; {} of {} labels as predicted",
        pair.runtime,
        run.optimizations.name(),
        number::points_with_interval(run.top1.value, run.top1.ci),
        number::grouped(run.same_labels),
        number::grouped(run.agreement.n),
    );
    if run.at_target
        && let Some(target) = &pair.target
    {
        text += &format!(" for {}", target.name);
    }
    if !run.agrees() {
        text += &format!(
            ": DISAGREES, lost {} pt against the prediction, paired",
            number::points_with_interval(run.drop.drop, run.drop.ci)
        );
    }
    text
}

/// "relu_3 (12 of 50,176 codes, at most 1 step)".
fn parting(first: &TensorComparison) -> String {
    let codes = first.best();
    format!(
        "{} ({} of {} codes, at most {} {})",
        first.name,
        number::grouped(codes.elements - codes.equal),
        number::grouped(codes.elements),
        codes.largest,
        if codes.largest == 1 { "step" } else { "steps" }
    )
}

#[cfg(test)]
mod tests {
    use super::words;
    use limbeck_engine::{
        confirm::{LayerComparison, LayerSummary, RuntimePair},
        data::SplitName,
        eval::Estimate,
        graph::LayerId,
    };

    /// Of a plan that quantises no activation; `apart`: of the first layer, in shares of its largest number.
    fn pair(apart: f32) -> RuntimePair {
        let first = LayerComparison {
            layer: LayerId("conv1".into()),
            elements: 5_000,
            largest_difference: 8.0 * apart,
            largest: 8.0,
        };
        RuntimePair {
            runtime: "1.31.1".into(),
            split: SplitName::Search,
            n: 64,
            predicted: Estimate {
                value: 0.9,
                n: 64,
                ci: [0.8, 1.0],
            },
            target: None,
            runs: Vec::new(),
            tensors: None,
            layers: Some(LayerSummary {
                samples: 64,
                layers: 22,
                first_parting: Some(first.clone()).filter(LayerComparison::parts),
                worst: Some(first),
            }),
        }
    }

    #[test]
    fn layers_in_float_part_or_do_not() {
        let same = "none of 22 layers in float differs by more than 0.001 of its largest number; furthest apart conv1: 1.6e-5, 2.0e-6 of its largest number, n 64";
        let parts = "is conv1: 1.6e-1, 2.0e-2 of its largest number, n 64";
        for (apart, end) in [(2e-6, same), (2e-2, parts)] {
            let words = words(&pair(apart));
            assert!(words.ends_with(end), "{words}");
        }
    }
}
