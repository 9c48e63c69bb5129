//! What the panels say of cells, points and jobs: numbers with unit, n and provenance.

use crate::{
    commands::{precision_label, split_label},
    state::{AtTarget, ColourBy, Document, NamedPoint, RunsIn, State},
    widgets::number,
};
use limbeck_engine::{
    compress::{Amount, Granularity, LayerSetting, Pattern, Precision, RankBy},
    data::SplitName,
    graph::LayerId,
    recipe::{Choice, MethodKind, Step},
    search::LayerFacts,
    sensitivity::{Candidate, Cell, Settled, Tier},
    target::{Executed, LayerSaturation},
};
use std::{path::Path, time::Duration};

pub fn candidate(c: Candidate) -> &'static str {
    match c {
        Candidate::Fp16 => "fp16",
        Candidate::Int8 => "int8",
        Candidate::Int4 => "int4",
        Candidate::P25 => "p25",
        Candidate::P50 => "p50",
        Candidate::P75 => "p75",
    }
}

/// In full: "25 % pruned".
pub fn candidate_long(c: Candidate) -> &'static str {
    match c {
        Candidate::P25 => "25 % pruned",
        Candidate::P50 => "50 % pruned",
        Candidate::P75 => "75 % pruned",
        other => candidate(other),
    }
}

/// Drop of a cell as the tables show it: "0.31 ± 0.12"; earlier tiers know of none.
pub fn cell_value(cell: &Cell) -> String {
    match (cell.tier, cell.ci) {
        (Tier::Proxy | Tier::Local | Tier::Fisher, _) => "–".into(),
        (Tier::Measured, Some(ci)) => number::points_with_interval(cell.value, ci),
        (Tier::Measured, None) => number::percent(cell.value, 2),
    }
}

fn percent_of_error(value: f64) -> String {
    let percent = value * 100.0;
    if percent > 0.0 && percent < 0.05 {
        "<0.1".into()
    } else {
        format!("{percent:.1}")
    }
}

/// Where a cell's number comes from: "n 1,000" or "n 64/1,000" where the rest could not matter, or what is known instead:
/// "noise 2.1 %" of the weights or of the layer's output, "≈2.1e-3 nat" of divergence.
pub fn cell_origin(cell: &Cell) -> String {
    match cell.tier {
        Tier::Proxy | Tier::Local => format!("noise {} %", percent_of_error(cell.value)),
        Tier::Fisher => format!("≈{} nat", nats(cell.value)),
        Tier::Measured if cell.n < cell.of => {
            format!("n {}/{}", number::grouped(cell.n), number::grouped(cell.of))
        }
        Tier::Measured => format!("n {}", number::grouped(cell.n)),
    }
}

/// Two significant digits of a divergence.
fn nats(value: f64) -> String {
    match value {
        v if v < 1e-9 => "0".into(),
        v if v < 0.01 => format!("{v:.1e}"),
        v if v < 1.0 => format!("{v:.2}"),
        v => format!("{v:.1}"),
    }
}

/// "drop 0.62 ± 0.21 pt, measured, n 64 of 1,000: …", with why no more were run, and the divergence.
fn measured_words(cell: &Cell) -> String {
    let mut text = format!(
        "drop {} pt, measured, n {}",
        cell_value(cell),
        number::grouped(cell.n)
    );
    if cell.n < cell.of {
        text += &format!(
            " of {}: those nearest to flipping and some of the rest; the interval takes the others to move as these did",
            number::grouped(cell.of)
        );
        text += match cell.why {
            Some(Settled::TooMuch) => {
                "\nSettled: it surely costs more than a plan would pay, how much more is open"
            }
            Some(Settled::Narrow) => "\nSettled: the others leave no more open than chance does",
            _ if !cell.settled => "\nNot settled: measuring was stopped",
            _ => "",
        };
    }
    if let Some(kl) = cell.kl {
        text += &format!("\nKL divergence of the outputs {} nats", nats(kl));
    }
    text
}

/// What hovering a heat cell says; its first line is the cell's accessible name.
pub fn cell_hover(state: &State, row: usize, c: Candidate) -> String {
    let Some(layer) = state.layers().get(row) else {
        return String::new();
    };
    let mut text = format!("{} at {}: ", layer.id.0, candidate_long(c));
    match state.view.colour_by {
        ColourBy::Size => {
            let (bits, note) = match c {
                Candidate::Fp16 => (16, ""),
                Candidate::Int8 => (8, ""),
                Candidate::Int4 => (4, ""),
                _ => (32, " (masked zeros save no bytes)"),
            };
            let bytes = layer.params * bits / 8;
            text += &format!("{} kB of weights{note}, exact", number::kilobytes(bytes));
        }
        ColourBy::Macs => match layer.macs {
            Some(macs) => {
                text += &format!(
                    "{} M MACs, exact (neither precision nor masks change their number)",
                    number::millions(macs)
                );
            }
            None => text += "MACs not known, the shapes are open",
        },
        ColourBy::Error => match state
            .mirror
            .slot(row, c)
            .and_then(|slot| slot.proxy.as_ref())
        {
            Some(cell) => {
                text += &format!(
                    "weight error {} % of the weights' energy, exact",
                    percent_of_error(cell.value)
                );
            }
            None => text += "not measured",
        },
        ColourBy::AllBut => match state.all_but(row, c) {
            None => text += "not measured with all layers but this one changed",
            Some(cell) => {
                text += "all layers but this one changed, ";
                text += &measured_words(cell);
            }
        },
        ColourBy::Sensitivity => match state.cell(row, c) {
            None => text += "not measured",
            Some(cell) => match cell.tier {
                Tier::Proxy => {
                    text += &format!(
                        "proxy, weight noise {} % of the signal (weights only, n 0)",
                        percent_of_error(cell.value)
                    );
                }
                Tier::Local | Tier::Fisher => {
                    text += &format!(
                        "divergence of the outputs {}, estimated from the layer's own error (n {}, no labels)",
                        cell_origin(cell),
                        number::grouped(cell.n)
                    );
                }
                Tier::Measured => text += &measured_words(cell),
            },
        },
    }
    let local = state
        .mirror
        .slot(row, c)
        .and_then(|slot| slot.local.as_ref());
    if let (ColourBy::Sensitivity, Some(local)) = (state.view.colour_by, local) {
        text += &format!(
            "\nThe layer's own output: {} % of error, n {}",
            percent_of_error(local.value),
            number::grouped(local.n)
        );
    }
    text
}

/// "Conv 3×3 · 32→32".
pub fn layer_kind(layer: &LayerFacts) -> String {
    let shape = &layer.weight_shape;
    let out = shape.get(layer.channel_axis).copied().unwrap_or(0);
    let op = &layer.op;
    match (op.as_str(), shape.as_slice()) {
        ("Conv", [_, input, kernel @ ..]) if !kernel.is_empty() => {
            format!("{op} {} · {input}→{out}", number::shape(kernel))
        }
        ("ConvTranspose", [input, _, kernel @ ..]) if !kernel.is_empty() => {
            format!("{op} {} · {input}→{out}", number::shape(kernel))
        }
        (_, [a, b]) => {
            let input = if layer.channel_axis == 0 { b } else { a };
            format!("{op} · {input}→{out}")
        }
        _ => format!("{op} · {}", number::shape(shape)),
    }
}

/// "int4 · per channel · 38 % pruned".
pub fn setting(s: LayerSetting, document: &Document) -> String {
    let scheme = &document.scheme;
    let mut text = precision_label(s.precision).to_owned();
    match scheme.granularity(s.precision) {
        Some(Granularity::PerChannel) => text += " · per channel",
        Some(Granularity::PerTensor) => text += " · per tensor",
        Some(Granularity::Group(n)) => text += &format!(" · groups of {n}"),
        None => {}
    }
    if s.sparsity.0 > 0.0 {
        let percent = s.sparsity.0 * 100.0;
        text += &match (document.channels, document.shrinking.pattern) {
            (true, _) => format!(" · {percent:.0} % of channels out"),
            (false, Pattern::Groups(group)) => {
                let left = group as f32 * (1.0 - s.sparsity.0);
                format!(" · pruned to {left:.0}:{group}")
            }
            (false, Pattern::Unstructured) => format!(" · {percent:.0} % pruned"),
        };
    }
    if let Some(target) = scheme
        .target
        .as_deref()
        .filter(|_| s.precision.is_integer())
    {
        let name = Path::new(target).file_name();
        let name = name.map_or(target.into(), |name| name.to_string_lossy());
        text += &format!(" · {name}");
    }
    text
}

/// What stands out of a layer at its target, in a line: the mark's hover in the table.
pub fn at_target(state: &State, layer: &LayerId) -> Option<String> {
    let target = state.document.scheme.target.as_deref()?;
    Some(match state.at_target(layer)? {
        AtTarget::Refused { what, why } => {
            format!("{target} cannot run it as planned ({what}): {why}")
        }
        AtTarget::Saturates(found) => {
            format!("Saturates at {target}: {}", saturation(state, found))
        }
    })
}

/// What a layer is computed in at the plan's target.
pub struct Runs {
    /// "int8", "float", "…".
    pub short: &'static str,
    /// The same for who cannot see it.
    pub name: &'static str,
    pub why: String,
    /// Float although its weights are integers.
    pub island: bool,
}

/// Of a layer of the plan; `None` without a target, or where the plan quantises nothing.
pub fn runs(state: &State, layer: &LayerId) -> Option<Runs> {
    let target = state.document.scheme.target.as_deref()?;
    if !state.has_foresight() {
        return None;
    }
    let precision = state.setting(layer).precision;
    let label = precision_label(precision);
    let float = |island, why| Runs {
        short: "float",
        name: "float",
        why,
        island,
    };
    let unknown = |short, name, why| Runs {
        short,
        name,
        why,
        island: false,
    };
    Some(match state.runs_in(layer) {
        None if precision == Precision::Fp32 => float(
            false,
            "Computed in float: the plan leaves it at fp32".into(),
        ),
        None => float(
            false,
            format!("Computed in float: {label} is what its weights are stored in"),
        ),
        Some(RunsIn::Known(node)) if node.float.is_none() => Runs {
            short: "int8",
            name: "8-bit integers",
            why: format!(
                "Computed in 8-bit integers at {target}, by how its export will look\n{}",
                around(node)
            ),
            island: false,
        },
        Some(RunsIn::Known(node)) => float(true, in_float(target, label, node)),
        Some(RunsIn::WeightsOnly) => float(
            true,
            format!("Computed in float at {target}: of this plan only weights are quantised"),
        ),
        Some(RunsIn::Unsaid) => unknown(
            "?",
            "what is not known",
            format!("The description of {target} does not say what becomes of this layer"),
        ),
        Some(RunsIn::ByInference) => unknown(
            "?",
            "what is not foreseen",
            format!(
                "Its input is quantised by the range of each inference: what becomes of it at {target} is not foreseen"
            ),
        ),
        Some(RunsIn::Failed) => unknown(
            "?",
            "what was not worked out",
            format!(
                "How it runs at {target} was not worked out: it was cancelled or failed. The next change of the plan asks again"
            ),
        ),
        Some(RunsIn::Awaited) => unknown(
            "…",
            "what is being worked out",
            format!("How it runs at {target} is being worked out"),
        ),
    })
}

/// "Computed in float at onnxruntime-cpu although its weights are int8: …"
pub fn in_float(target: &str, label: &str, node: &Executed) -> String {
    let why = node.float.as_deref().unwrap_or_default();
    format!(
        "Computed in float at {target} although its weights are {label}: {why}\n{}",
        around(node)
    )
}

/// What is converted right around an operator.
fn around(node: &Executed) -> &'static str {
    match (node.float.is_none(), node.before, node.behind) {
        (true, false, false) => "It reads codes and gives codes: nothing is converted around it",
        (true, true, false) => "What it reads is turned into codes first; it gives codes",
        (true, false, true) => "It reads codes; what it gives becomes float",
        (true, true, true) => {
            "What it reads is turned into codes first; what it gives becomes float"
        }
        (false, false, false) => "It reads float and gives float: nothing is converted around it",
        (false, true, false) => {
            "The codes that it reads are turned into float first; it gives float"
        }
        (false, false, true) => "It reads float; what it gives is turned into codes",
        (false, true, true) => {
            "The codes that it reads are turned into float first; what it gives is turned into codes"
        }
    }
}

/// "32 operators in integers, 2 islands of float, 3 conversions at onnxruntime-cpu", and what hovering that says.
pub fn islands(state: &State) -> Option<(String, String)> {
    let target = state.document.scheme.target.as_deref()?;
    let islands = state.islands()?;
    let conversions = islands.to_codes + islands.to_float;
    let count = |n: usize, one: &str, many: &str| match n {
        1 => format!("1 {one}"),
        n => format!("{} {many}", number::grouped(n as u64)),
    };
    let line = format!(
        "{} in integers, {} of float, {} at {target}{}",
        count(islands.integers, "operator", "operators"),
        count(islands.float.len(), "island", "islands"),
        count(conversions, "conversion", "conversions"),
        if islands.old {
            " (before the last edit)"
        } else {
            ""
        },
    );
    let mut hover = format!(
        "Foreseen from the graph and the plan: layers with integer weights, and the operators between them that the target could compute in \
         integers. A sample's activations are turned into codes {} and back into float {}.",
        times(islands.to_codes),
        times(islands.to_float),
    );
    for node in islands.float.iter().take(ISLANDS_TOLD) {
        let why = node.float.as_deref().unwrap_or_default();
        hover += &format!("\n{} ({}) stays float: {why}", node.name.0, node.op);
    }
    if islands.float.len() > ISLANDS_TOLD {
        hover += &format!("\n… and {} more", islands.float.len() - ISLANDS_TOLD);
    }
    Some((line, hover))
}

/// Islands that are told one by one.
const ISLANDS_TOLD: usize = 12;

fn times(n: usize) -> String {
    match n {
        1 => "once".into(),
        n => format!("{n} times"),
    }
}

/// "13.9 % of its outputs lose part of their sum, up to 1.31 off one of them (simulated on search, n 1,000 samples)".
pub fn saturation(state: &State, found: &LayerSaturation) -> String {
    let on = state.target_point().map_or_else(String::new, |named| {
        format!(
            "{}, n {} samples{}",
            split_label(named.split()),
            number::grouped(named.samples()),
            match state.plan_point(named.split()) {
                Some(_) => "",
                None => ", before its distillation",
            }
        )
    });
    format!(
        "{} % of its outputs lose part of their sum, up to {:.3} off one of them (simulated on {on})",
        share(found.share()),
        found.most
    )
}

/// A share in percent that is never rounded to nothing: "13.9", "0.0012".
fn share(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        p if p >= 10.0 => format!("{p:.1}"),
        p if p >= 0.1 => format!("{p:.2}"),
        p if p >= 1e-4 => format!("{p:.4}"),
        _ => "<0.0001".into(),
    }
}

/// "92.78 ± 0.21" in percent: half the 95 % interval's width.
pub fn top1(point: &NamedPoint) -> String {
    let top1 = point.point.metrics.top1;
    number::points_with_interval(top1.value, top1.ci)
}

/// What hovering a point of the plot says.
pub fn point_hover(point: &NamedPoint) -> String {
    let p = &point.point;
    let m = &p.metrics;
    let mut text = format!(
        "{}\n{} {} %, {} on {}, n {}",
        point.name,
        m.top1_name(),
        top1(point),
        m.origin(),
        split_label(m.split),
        number::grouped(m.top1.n)
    );
    if let Some(drop) = &m.drop {
        text += &format!(
            "\n{} {} pt against the original, paired, n {}",
            m.drop_name(),
            number::points_with_interval(drop.drop, drop.ci),
            number::grouped(drop.n)
        );
    }
    if let Some(agreement) = &m.agreement
        && !m.unlabelled
    {
        text += &format!(
            "\nsame label as the original {} %",
            number::percent(agreement.value, 2)
        );
    }
    text += &format!(
        "\nstored {} kB · theoretical {} kB · runtime {} kB",
        number::kilobytes(p.sizes.stored.0),
        number::kilobytes(p.sizes.theoretical.0),
        number::kilobytes(p.sizes.runtime.0)
    );
    if let Some(macs) = p.sizes.macs {
        text += &format!("\n{} M MACs", number::millions(macs));
    }
    if let Some(pair) = &p.confirmed {
        text += &format!("\n{}", super::pair::words(pair));
    }
    text += &format!("\n{}", steps(&p.recipe.steps));
    if p.recipe.is_partial() {
        text += "\npartial: its training was cancelled, this is the best epoch until then";
    } else if p.partial {
        text += "\nbefore the training of a run";
    }
    text
}

/// A recipe's steps in a line: "fold batch norms → prune → quantise → distil 2 epochs".
pub fn steps(steps: &[Step]) -> String {
    if steps.is_empty() {
        return "the original model".into();
    }
    let words: Vec<String> = steps
        .iter()
        .map(|step| match step {
            Step::FoldBatchNorm => "fold batch norms".into(),
            Step::Student(student) if student.file.is_some() => "a given student".into(),
            Step::Student(student) => format!(
                "student of {:.0} % width, {:.0} % depth",
                student.width * 100.0,
                student.depth * 100.0
            ),
            Step::PruneBlocks(step) => match step.count {
                Some(count) => format!("take out {count} residual blocks"),
                None => "take out residual blocks by name".into(),
            },
            Step::PruneChannels(step) => match (step.amount, &step.default) {
                (Amount::Macs(share), _) => {
                    format!("channels to {:.0} % of the MACs", share * 100.0)
                }
                (Amount::WeightKilobytes(kb), _) => format!("channels to {kb} kB"),
                (Amount::Channels(share), _) => {
                    format!("take out {:.0} % of channels", share * 100.0)
                }
                (Amount::Ratios, Some(Choice::Set(ratio))) if step.layers.is_empty() => {
                    format!("take out {:.0} % of channels", ratio.0 * 100.0)
                }
                (Amount::Ratios, _) => "take out channels by layer".into(),
            },
            Step::LowRank(step) => match (step.rank, &step.default) {
                (RankBy::Macs(share), _) => {
                    format!("low rank to {:.0} % of the MACs", share * 100.0)
                }
                (RankBy::Parameters(share), _) => {
                    format!("low rank to {:.0} % of the parameters", share * 100.0)
                }
                (RankBy::Energy, Some(Choice::Set(energy))) if step.layers.is_empty() => {
                    format!("low rank, {:.0} % of the energy", energy.0 * 100.0)
                }
                (RankBy::Energy, _) => "low rank".into(),
            },
            Step::Prune(step) => {
                let mut words = match (&step.default, step.pattern) {
                    (Choice::Set(ratio), Pattern::Groups(group)) if step.layers.is_empty() => {
                        let left = group as f32 * (1.0 - ratio.0);
                        format!("prune to {left:.0}:{group}")
                    }
                    (Choice::Set(ratio), Pattern::Unstructured) if step.layers.is_empty() => {
                        format!("prune {:.0} %", ratio.0 * 100.0)
                    }
                    _ => "prune by layer".to_owned(),
                };
                if step.schedule.is_some() {
                    words.push_str(" while training");
                }
                words
            }
            Step::Cluster(step) => match step.default {
                Choice::Set(values) if step.layers.is_empty() => {
                    format!("share {values} values")
                }
                _ => "share values by layer".into(),
            },
            Step::Quantize(step) => match step.default {
                Choice::Set(precision) if step.layers.is_empty() => {
                    format!("quantise to {}", precision_label(precision))
                }
                _ => "quantise by layer".into(),
            },
            Step::Equalize(_) => "equalise".into(),
            Step::SmoothQuant(_) => "smooth".into(),
            Step::SequentialMse(_) => "search scales".into(),
            Step::Gptq(_) => "gptq".into(),
            Step::AdaRound(step) => format!("adaround {} steps", step.settings.iterations),
            Step::Brecq(step) => format!("brecq {} steps", step.settings.iterations),
            Step::CorrectBias(_) => "correct biases".into(),
            Step::Distil(settings) => match settings.stop_after {
                Some(stop) => format!("distil {stop} of {} epochs", settings.epochs),
                None => format!("distil {} epochs", settings.epochs),
            },
        })
        .collect();
    words.join(" → ")
}

/// A method as people call it.
pub fn method(kind: MethodKind) -> &'static str {
    match kind {
        MethodKind::Equalize => "Equalising",
        MethodKind::SequentialMse => "Sequential MSE",
        MethodKind::Brecq => "By block (BRECQ)",
        MethodKind::Gptq => "GPTQ",
        MethodKind::CorrectBias => "Bias correction",
        _ => kind.word(),
    }
}

/// "1:42 left".
pub fn eta(left: Option<Duration>) -> String {
    left.map_or_else(String::new, |left| {
        format!("{} left", number::clock(left.as_secs()))
    })
}

/// How many samples the points of a split were judged on: "1,000", "1,000–2,000" where they differ.
pub fn judged_samples(state: &State, split: SplitName) -> Option<String> {
    let (low, high) = state.judged_samples(split)?;
    let (few, many) = (number::grouped(low), number::grouped(high));
    Some(if low == high {
        many
    } else {
        format!("{few}–{many}")
    })
}

/// "holdout 10,000".
pub fn split_with_n(state: &State, split: SplitName) -> (String, String) {
    (
        split_label(split).to_owned(),
        number::grouped(state.split_len(split) as u64),
    )
}
