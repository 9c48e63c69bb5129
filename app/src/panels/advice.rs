//! Advisor cards of the inspector: a symptom of the focused layer, a button that is the remedy (one click, one undo step), and why.

use super::{Commands, words};
use crate::{
    commands::{Command, precision_label},
    state::{AtTarget, Dialog, RunsIn, State},
    theme,
    widgets::{self, Button, number},
};
use egui::{RichText, Ui};
use limbeck_engine::{
    compress::{Granularity, LayerInspection, Precision},
    data::SplitName,
    recipe::MethodKind,
    search::LayerFacts,
    sensitivity::{Candidate, Cell},
    target::LayerSaturation,
};

/// A symptom, what can be done about it, and why that helps.
struct Advice<'a> {
    head: &'a str,
    symptom: &'a str,
    /// Buttons: the first is the remedy.
    remedies: &'a [(String, Command)],
    why: &'a str,
}

fn card(ui: &mut Ui, advice: &Advice<'_>, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    widgets::note_card(ui, t.warning, advice.head, advice.symptom, |ui| {
        ui.add_space(4.0);
        ui.horizontal_wrapped(|ui| {
            for (text, command) in advice.remedies {
                let why_not = command.enabled(state).err();
                let button = Button::new(text).low().disabled(why_not.as_deref());
                if button.show(ui) {
                    out.push(command.clone());
                }
            }
        });
        if !advice.why.is_empty() {
            ui.add_space(2.0);
            let why = RichText::new(advice.why).font(theme::small());
            ui.label(why.color(t.muted));
        }
    });
    ui.add_space(8.0);
}

/// What the plan's target refuses of this layer, or what its arithmetic does to it.
fn at_target(ui: &mut Ui, layer: &LayerFacts, state: &State, out: &mut Commands) {
    let target = state.document.scheme.target.as_deref();
    match (target, state.at_target(&layer.id)) {
        (Some(target), Some(AtTarget::Refused { what, why })) => {
            refused(ui, layer, target, (what, why), state, out);
        }
        (Some(target), Some(AtTarget::Saturates(found))) => {
            saturates(ui, layer, target, found, state, out);
        }
        (Some(target), None) => island(ui, layer, target, state),
        _ => {}
    }
}

/// A layer that is stored in integers and computed in float.
fn island(ui: &mut Ui, layer: &LayerFacts, target: &str, state: &State) {
    let Some(RunsIn::Known(node)) = state.runs_in(&layer.id) else {
        return;
    };
    if node.float.is_none() {
        return;
    }
    let label = precision_label(state.setting(&layer.id).precision);
    let t = theme::of(ui);
    let words = words::in_float(target, label, node);
    widgets::note_card(
        ui,
        t.muted,
        "Stored small, computed in float",
        &words,
        |_| {},
    );
    ui.add_space(8.0);
}

fn refused(
    ui: &mut Ui,
    layer: &LayerFacts,
    target: &str,
    (what, why): (&str, &str),
    state: &State,
    out: &mut Commands,
) {
    let float = Command::SetPrecision {
        layers: vec![layer.id.clone()],
        precision: Precision::Fp32,
    };
    card(
        ui,
        &Advice {
            head: &format!("{target} cannot run this layer as planned"),
            symptom: &format!("{what}: {why}."),
            remedies: &[
                ("Leave it at fp32".to_owned(), float),
                (
                    "Change the scheme…".to_owned(),
                    Command::Show(Dialog::Scheme),
                ),
            ],
            why: "Until then the plan is neither measured nor exported.",
        },
        state,
        out,
    );
}

fn saturates(
    ui: &mut Ui,
    layer: &LayerFacts,
    target: &str,
    found: &LayerSaturation,
    state: &State,
    out: &mut Commands,
) {
    let all = state.saturating_unpinned();
    // A pin holds off what is for many layers; what is asked of this one alone is meant.
    let layers = match all.contains(&layer.id) {
        true => all,
        false => vec![layer.id.clone()],
    };
    let text = match layers.as_slice() {
        [_] => "7-bit weights here".to_owned(),
        many => format!("7-bit weights in {} layers", many.len()),
    };
    let seven = Command::SetPrecision {
        layers,
        precision: Precision::Int7,
    };
    let remedies = [(text, seven)];
    card(
        ui,
        &Advice {
            head: &format!("Saturates at {target}"),
            symptom: &format!("{}.", words::saturation(state, found)),
            // Another width than 8 bits was not seen to saturate; then there is nothing to offer.
            remedies: match state.setting(&layer.id).precision {
                Precision::Int8 => &remedies,
                _ => &[],
            },
            why: "Why: sums of two 8-bit products, up to 255 · 127 · 2 = 64,770, are cut off at 16 bits (32,767) there. With 7-bit weights \
                  they reach 255 · 64 · 2 = 32,640: nothing can be cut off.",
        },
        state,
        out,
    );
}

/// What stands out of this layer's setting: at the target, then whatever that is.
pub fn show(ui: &mut Ui, layer: &LayerFacts, state: &State, out: &mut Commands) {
    at_target(ui, layer, state, out);
    outer(ui, layer, state, out);
    coarse(ui, layer, state, out);
    dominated(ui, layer, state, out);
}

/// The cells of a layer at int4 and int8, where 4 bits alone cost it more than chance does, and more than 8 bits.
fn minds_4_bits<'a>(layer: &LayerFacts, state: &'a State) -> Option<(&'a Cell, &'a Cell)> {
    let measured = |candidate| {
        let row = state.mirror.layer_index(&layer.id)?;
        state.mirror.slot(row, candidate)?.measured.as_ref()
    };
    let (four, eight) = (measured(Candidate::Int4)?, measured(Candidate::Int8)?);
    let minds = four.ci.is_some_and(|ci| ci[0] > 0.0) && four.value > eight.value;
    minds.then_some((four, eight))
}

/// Weights of few bits rounded to nearest, where the layer's own measurement says that it minds.
fn coarse(ui: &mut Ui, layer: &LayerFacts, state: &State, out: &mut Commands) {
    let bits = state.setting(&layer.id).precision.bits();
    if bits.is_none_or(|bits| bits > 4) || state.chosen_codes().is_some() {
        return;
    }
    let Some((four, _)) = minds_4_bits(layer, state) else {
        return;
    };
    card(
        ui,
        &Advice {
            head: "Weights are rounded to nearest",
            symptom: &format!(
                "Alone at int4 that costs {} pt of {} (measured on search, {}).",
                words::cell_value(four),
                state.judged_by(SplitName::Search),
                words::cell_origin(four)
            ),
            remedies: &[
                (
                    "Choose roundings (AdaRound)".to_owned(),
                    Command::UseMethod(MethodKind::AdaRound),
                ),
                ("Methods…".to_owned(), Command::Show(Dialog::Methods)),
            ],
            why: "Why: nearest is best for each weight and poor for their sum, where errors of inputs that go together add up. AdaRound chooses floor or \
                  ceiling for all weights of a layer together, by its output; measuring the plan then takes longer. It goes for all integer layers.",
        },
        state,
        out,
    );
}

/// The first or the last layer below 8 bits, where its own measurement says that it minds.
fn outer(ui: &mut Ui, layer: &LayerFacts, state: &State, out: &mut Commands) {
    let ids = state.mirror.layer_ids();
    let place = match (ids.first(), ids.last()) {
        _ if ids.len() < 3 => return,
        (Some(first), _) if *first == layer.id => "first",
        (_, Some(last)) if *last == layer.id => "last",
        _ => return,
    };
    let precision = state.setting(&layer.id).precision;
    if precision.bits().is_none_or(|bits| bits > 4) {
        return;
    }
    let Some((four, eight)) = minds_4_bits(layer, state) else {
        return;
    };
    let bytes = |bits: u64| number::kilobytes(layer.params * bits / 8);
    let keep = Command::SetPrecision {
        layers: vec![layer.id.clone()],
        precision: Precision::Int8,
    };
    card(
        ui,
        &Advice {
            head: &format!("The {place} layer minds 4 bits"),
            symptom: &format!(
                "Alone at int4 it costs {} pt of {}, at int8 {} pt (measured on search, {}).",
                words::cell_value(four),
                state.judged_by(SplitName::Search),
                words::cell_value(eight),
                words::cell_origin(four)
            ),
            remedies: &[("Keep it at 8 bits".to_owned(), keep)],
            why: &format!(
                "Why: nothing before or behind it evens its error out, and it is small: {} kB of weights at int8, {} kB at int4.",
                bytes(8),
                bytes(4)
            ),
        },
        state,
        out,
    );
}

/// One channel far wider than the others, where all share a scale.
fn dominated(ui: &mut Ui, layer: &LayerFacts, state: &State, out: &mut Commands) {
    let precision = state.setting(&layer.id).precision;
    let scheme = &state.document.scheme;
    let whole = scheme.granularity(precision) == Some(Granularity::PerTensor);
    let inspection = state
        .mirror
        .inspection
        .as_ref()
        .filter(|i| i.layer == layer.id);
    let Some((channel, times)) = inspection.filter(|_| whole).and_then(|i| widest(i)) else {
        return;
    };
    let mut per_channel = scheme.clone();
    let which = match precision.bits() {
        Some(..=4) => {
            per_channel.int4_weights = Granularity::PerChannel;
            "int4 and below"
        }
        _ => {
            per_channel.int8_weights = Granularity::PerChannel;
            "int8 to int5"
        }
    };
    card(
        ui,
        &Advice {
            head: &format!("Channel {channel} sets the scale"),
            symptom: &format!(
                "Its weights reach {times:.0}× as far as the typical channel's, and all share one scale (exact, of {} channels).",
                number::grouped(inspection.map_or(0, |i| i.channel_ranges.len()) as u64)
            ),
            remedies: &[
                (
                    "Use a scale per channel".to_owned(),
                    Command::SetScheme(per_channel),
                ),
                (
                    "Equalise".to_owned(),
                    Command::UseMethod(MethodKind::Equalize),
                ),
                ("Scheme…".to_owned(), Command::Show(Dialog::Scheme)),
            ],
            why: &format!(
                "Why: with a scale of its own every channel has all the levels; it costs 4 bytes a channel (its scale; one more for a zero point where weights are asymmetric). It goes for all layers at {which}. \
                 Equalising costs nothing: the channel is divided and what the next layer makes of it multiplied, where only ReLU or pooling lies between (the plan's account says where)."
            ),
        },
        state,
        out,
    );
}

/// The channel whose range is more than three times the median one, and how many times.
fn widest(inspection: &LayerInspection) -> Option<(usize, f32)> {
    let mut widths: Vec<f32> = inspection
        .channel_ranges
        .iter()
        .map(|r| r[0].abs().max(r[1].abs()))
        .filter(|w| w.is_finite())
        .collect();
    let (channel, widest) = widths
        .iter()
        .copied()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    widths.sort_by(f32::total_cmp);
    let median = *widths.get(widths.len() / 2)?;
    (median > 0.0 && widest > 3.0 * median).then(|| (channel, widest / median))
}
