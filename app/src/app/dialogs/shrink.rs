//! How the plan prunes, and what else makes the network smaller: residual blocks out, weights that share values.

use super::forms::{buttons, choice, note, number};
use super::forms::{row, title};
use crate::{commands::Command, state::State, theme, widgets};
use egui::{ComboBox, Grid, Ui, vec2};
use limbeck_engine::{
    compress::{Attention, Codebooks, Criterion, Pattern},
    recipe::{Choice, ClusterStep, PruneBlocksStep, Shrinking},
};

/// The plan's shrinking as it is being changed.
#[derive(Clone, Debug, Default)]
pub(super) struct ShrinkForm {
    channels: bool,
    shrinking: Shrinking,
    /// Blocks that the plan takes out by name, to go back to.
    named: Option<PruneBlocksStep>,
}

/// Which residual blocks go.
#[derive(Clone, Copy, PartialEq)]
enum Blocks {
    Stay,
    Least,
    Named,
}

impl ShrinkForm {
    pub(super) fn of(state: &State) -> Self {
        let shrinking = state.document.shrinking.clone();
        let by_name = |step: &PruneBlocksStep| step.count.is_none();
        Self {
            channels: state.document.channels,
            named: shrinking.blocks.clone().filter(by_name),
            shrinking,
        }
    }

    pub(super) fn show(&mut self, ui: &mut Ui, state: &State, out: &mut Vec<Command>) {
        title(ui, "Pruning and sharing");
        note(
            ui,
            "How the layers' ratios are carried out, and what else goes. How far each layer is pruned is set in the table.",
        );
        let blocked = self.blocked(state);
        // Heading, buttons and what stands in the way stay in sight in a low window.
        let others = if blocked.is_some() { 320.0 } else { 220.0 };
        let room = (ui.ctx().content_rect().height() - others).max(160.0);
        egui::ScrollArea::vertical()
            .max_height(room)
            .min_scrolled_height(room)
            .auto_shrink([false, true])
            .show(ui, |ui| self.rows(ui, state));
        if let Some(why) = &blocked {
            let warning = theme::of(ui).warning;
            let text = format!("{why}.");
            widgets::note_card(ui, warning, "Not with this model", &text, |_| {});
        }
        if buttons(ui, "Apply", blocked, false, out) {
            out.push(Command::SetShrinking {
                channels: self.channels,
                shrinking: Box::new(self.shrinking.clone()),
            });
            out.push(Command::CloseDialog);
        }
    }

    fn rows(&mut self, ui: &mut Ui, state: &State) {
        Grid::new("shrink")
            .num_columns(2)
            .spacing(vec2(16.0, 6.0))
            .show(ui, |ui| {
                choice(
                    ui,
                    "Prune",
                    &[(false, "Single weights"), (true, "Channels")],
                    &mut self.channels,
                );
                match self.channels {
                    true => self.channel_rows(ui, state),
                    false => self.weight_rows(ui),
                }
                self.block_rows(ui, state);
                self.value_rows(ui);
            });
        for words in self.notes(state) {
            note(ui, &words);
        }
    }

    fn weight_rows(&mut self, ui: &mut Ui) {
        let mut options = vec![
            (Pattern::Unstructured, "Anywhere".to_owned()),
            (Pattern::Groups(4), "Of every 4".to_owned()),
            (Pattern::Groups(8), "Of every 8".to_owned()),
            (Pattern::Groups(16), "Of every 16".to_owned()),
        ];
        // A recipe may have brought another.
        if let other @ Pattern::Groups(group) = self.shrinking.pattern
            && options.iter().all(|(known, _)| *known != other)
        {
            options.push((other, format!("Of every {group}")));
        }
        let options: Vec<_> = options.iter().map(|(p, name)| (*p, &**name)).collect();
        choice(ui, "Weights", &options, &mut self.shrinking.pattern);
    }

    fn channel_rows(&mut self, ui: &mut Ui, state: &State) {
        let s = &mut self.shrinking.channels;
        let heads = state.model().is_some_and(|model| model.heads.is_some());
        if heads || s.attention == Attention::Heads {
            choice(
                ui,
                "Attention",
                &[
                    (Attention::Widths, "Narrower heads"),
                    (Attention::Heads, "Whole heads"),
                ],
                &mut s.attention,
            );
        }
        row(ui, "Least important by", |ui| {
            let list = ComboBox::from_id_salt("criterion").selected_text(criterion(s.criterion));
            list.width(220.0)
                .show_ui(ui, |ui| {
                    for other in CRITERIA {
                        ui.selectable_value(&mut s.criterion, other, criterion(other));
                    }
                })
                .response
        });
        number(ui, "Left in multiples of", &mut s.round_to, 1..=256);
        number(ui, "Left at least", &mut s.least, 1..=4_096);
        number(ui, "Channel samples", &mut s.samples, 1..=100_000);
        choice(
            ui,
            "Statistics behind",
            &[(true, "Taken again"), (false, "As they are")],
            &mut s.reestimate,
        );
    }

    fn block_rows(&mut self, ui: &mut Ui, state: &State) {
        let all = state.model().map_or(0, |model| model.blocks.len());
        let before = match &self.shrinking.blocks {
            None => Blocks::Stay,
            Some(step) if step.count.is_some() => Blocks::Least,
            Some(_) => Blocks::Named,
        };
        if all == 0 && before == Blocks::Stay {
            return;
        }
        let mut options = vec![
            (Blocks::Stay, "All stay"),
            (Blocks::Least, "Least missed go"),
        ];
        if self.named.is_some() {
            options.push((Blocks::Named, "Chosen go"));
        }
        let mut chosen = before;
        choice(ui, "Residual blocks", &options, &mut chosen);
        if chosen != before {
            self.shrinking.blocks = match chosen {
                Blocks::Stay => None,
                Blocks::Named => self.named.clone(),
                Blocks::Least => Some(PruneBlocksStep {
                    count: Some(1),
                    ..PruneBlocksStep::default()
                }),
            };
        }
        if let Some(step) = &mut self.shrinking.blocks {
            if let Some(count) = &mut step.count {
                number(ui, "Blocks that go", count, 1..=all.max(1));
            }
            number(ui, "Block samples", &mut step.samples, 1..=100_000);
        }
    }

    fn value_rows(&mut self, ui: &mut Ui) {
        let mut shares = self.shrinking.cluster.is_some();
        choice(
            ui,
            "Values of weights",
            &[(false, "Their own"), (true, "Shared")],
            &mut shares,
        );
        if !shares {
            self.shrinking.cluster = None;
            return;
        }
        let step = self.shrinking.cluster.get_or_insert_with(|| ClusterStep {
            default: Choice::Set(16),
            layers: Vec::new(),
            codebooks: Codebooks::PerLayer,
        });
        if let Choice::Set(values) = &mut step.default {
            number(ui, "Values at most", values, 2..=256);
        }
        choice(
            ui,
            "Shared within",
            &[
                (Codebooks::PerLayer, "A layer"),
                (Codebooks::PerChannel, "A channel"),
            ],
            &mut step.codebooks,
        );
    }

    /// What the choices are for.
    fn notes(&self, state: &State) -> Vec<String> {
        let mut notes = Vec::new();
        match (self.channels, self.shrinking.pattern) {
            (false, Pattern::Groups(group)) => notes.push(format!(
                "Of every {group} inputs of an output the same number goes ({}:{group} at half): what sparse kernels run faster. Ratios are rounded to \
                 it, and layers whose inputs are no multiple of {group} stay.",
                group / 2
            )),
            (true, _) if self.shrinking.channels.attention == Attention::Heads => notes.push(
                "Whole heads: a ratio takes that share of the heads, rounded; other channels go one by one."
                    .to_owned(),
            ),
            _ => {}
        }
        if let Some(step) = &self.shrinking.blocks {
            let all = state.model().map_or(0, |model| model.blocks.len());
            notes.push(match step.count {
                Some(_) => format!(
                    "Of {all} residual blocks those go that the outputs miss least on calibration samples. Which ones is known once the plan is measured; \
                     until then its predicted size still has them."
                ),
                None => format!(
                    "{} of {all} residual blocks go: they are chosen in the inspector, on a layer of theirs.",
                    state.blocks_gone()
                ),
            });
        }
        if self.shrinking.cluster.is_some() {
            notes.push(
                "Shared: the weights of layers that stay fp32 become codes into a short list of values, 4 bits up to 16 values and 8 above. The inspector \
                 takes layers out of it."
                    .to_owned(),
            );
        }
        notes
    }

    /// Why this cannot be the plan's.
    fn blocked(&self, state: &State) -> Option<String> {
        let all = state.model().map_or(0, |model| model.blocks.len());
        let count = self.shrinking.blocks.as_ref().and_then(|step| step.count);
        if count.is_some_and(|count| count > all) {
            return Some(format!(
                "{all} residual blocks can go: one whose skip and branch have the same shape, with nothing else reading what is within"
            ));
        }
        let heads = state.model().is_some_and(|model| model.heads.is_some());
        if self.channels && self.shrinking.channels.attention == Attention::Heads && !heads {
            return Some("It has no attention heads that could go".to_owned());
        }
        if let Err(why) = self.shrinking.channels.check() {
            return Some(why.to_string());
        }
        if count.is_some() || self.channels && self.shrinking.channels.criterion.needs_data() {
            return state.measurable().err().map(str::to_owned);
        }
        None
    }
}

const CRITERIA: [Criterion; 8] = [
    Criterion::L2,
    Criterion::L1,
    Criterion::NormScale,
    Criterion::GeometricMedian,
    Criterion::Taylor,
    Criterion::Activation,
    Criterion::Apoz,
    Criterion::Random,
];

fn criterion(criterion: Criterion) -> &'static str {
    match criterion {
        Criterion::L1 => "Sum of magnitudes (L1)",
        Criterion::L2 => "Norm of the weights (L2)",
        Criterion::NormScale => "Batch norm's scale",
        Criterion::Taylor => "Change of the loss (Taylor)",
        Criterion::GeometricMedian => "Distance to other filters",
        Criterion::Activation => "Mean activation",
        Criterion::Apoz => "Activations not zero (APoZ)",
        Criterion::Random => "At random, as a control",
    }
}
