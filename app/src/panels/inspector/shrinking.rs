//! What the plan may do to a layer beside its ratio and precision: its residual block out, its weights sharing values.

use crate::{
    commands::Command,
    panels::{Commands, switch},
    state::{BlockState, State},
    theme,
    widgets::{self, Button},
};
use egui::{RichText, Ui};
use limbeck_engine::search::LayerFacts;

/// Whether its weights share values, where the plan lets any.
pub(super) fn values(ui: &mut Ui, layer: &LayerFacts, state: &State, out: &mut Commands) {
    if state.document.shrinking.cluster.is_none() {
        return;
    }
    let t = theme::of(ui);
    if let Some(why) = state.sharing_stays(&layer.id) {
        widgets::note_card(
            ui,
            t.muted,
            "It keeps its own values",
            &format!("{why}."),
            |_| {},
        );
        ui.add_space(8.0);
        return;
    }
    let shared = state.shared_on(&layer.id);
    ui.horizontal(|ui| {
        let choices = [(true, "On"), (false, "Off")];
        let name = "Shared values";
        if let Some(on) = switch(ui, name, &choices, shared.is_some(), name) {
            out.push(Command::ShareValues {
                layers: vec![layer.id.clone()],
                on,
            });
        }
        let words = match shared {
            Some(values) => format!("Shared: {values} values"),
            None => name.to_owned(),
        };
        ui.label(RichText::new(words).color(t.muted));
    });
    ui.add_space(4.0);
}

/// The residual block that it is in, and whether that goes.
pub(super) fn block(ui: &mut Ui, layer: &LayerFacts, state: &State, out: &mut Commands) {
    let Some(block) = state.block_of(&layer.id) else {
        return;
    };
    let t = theme::of(ui);
    let words = block.words();
    let (edge, body, action) = match state.block_state(block) {
        BlockState::Stays => (
            t.muted,
            format!("{words} can be taken out as a whole: what they add to is passed on as it is."),
            Some(("Take the block out", true)),
        ),
        BlockState::Goes => (
            t.accent,
            format!("{words} are taken out. What the layers are set to is of no account."),
            Some(("Leave the block in", false)),
        ),
        BlockState::ByNumber(count) => (
            t.muted,
            format!(
                "{words}. The plan takes out the {count} that the outputs miss least; whether this one is among them is known once it is measured."
            ),
            None,
        ),
    };
    widgets::note_card(ui, edge, "Residual block", &body, |ui| {
        let Some((name, take)) = action else { return };
        ui.add_space(4.0);
        if Button::new(name).low().show(ui) {
            out.push(Command::TakeBlock {
                layers: block.layers.clone(),
                out: take,
            });
        }
    });
    ui.add_space(8.0);
}
