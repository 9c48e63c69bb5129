//! Advisor cards that go by what was measured of a layer.

use super::{click, layer, open, open_sized};
use crate::{
    commands::Command,
    state::{UNTOUCHED, fixture},
};
use egui::vec2;
use egui_kittest::kittest::Queryable as _;
use limbeck_engine::{
    compress::{LayerSetting, Precision, Ratio},
    recipe::MethodKind,
};

#[test]
fn an_outer_layer_that_minds_four_bits_is_kept_at_eight_by_one_click() {
    let mut state = fixture::demo();
    let int4 = LayerSetting {
        precision: Precision::Int4,
        sparsity: Ratio(0.0),
    };
    for name in ["conv1", "layer1.0.conv1"] {
        state.document.set(&layer(name), int4);
    }
    state.view.focus = Some(layer("conv1"));
    state.refresh();
    let mut harness = open(state);
    let head = "The first layer minds 4 bits";
    assert!(harness.query_by_label(head).is_some());
    let symptom = "Alone at int4 it costs 1.20 ± 0.10 pt of top-1, at int8 0.04 ± 0.10 pt (measured on search, n 1,000).";
    assert!(harness.query_by_label(symptom).is_some());
    assert_eq!(
        click(&mut harness, "Keep it at 8 bits"),
        [Command::SetPrecision {
            layers: vec![layer("conv1")],
            precision: Precision::Int8,
        }]
    );
    // One inside says nothing of the kind, nor one that is kept at 8 bits, nor one that was not measured.
    harness.state_mut().state.view.focus = Some(layer("layer1.0.conv1"));
    harness.run_ok();
    assert!(
        harness
            .query_by_label_contains("layer minds 4 bits")
            .is_none()
    );
    let state = &mut harness.state_mut().state;
    state.view.focus = Some(layer("conv1"));
    let eight = LayerSetting {
        precision: Precision::Int8,
        ..int4
    };
    state.document.set(&layer("conv1"), eight);
    state.refresh();
    harness.run_ok();
    assert!(harness.query_by_label(head).is_none());
    let mut state = fixture::opened();
    state.document.set(&layer("conv1"), int4);
    state.view.focus = Some(layer("conv1"));
    state.refresh();
    assert!(open(state).query_by_label(head).is_none());
}

#[test]
fn roundings_are_chosen_by_one_click_and_left_to_nearest_for_a_layer_by_another() {
    let mut state = fixture::demo();
    let int4 = LayerSetting {
        precision: Precision::Int4,
        sparsity: Ratio(0.0),
    };
    state.document.set(&layer("conv1"), int4);
    state.view.focus = Some(layer("conv1"));
    state.refresh();
    // Tall enough for all cards of the first layer.
    let mut harness = open_sized(state, vec2(1280.0, 1600.0));
    let head = "Weights are rounded to nearest";
    assert!(harness.query_by_label(head).is_some());
    assert_eq!(
        click(&mut harness, "Choose roundings (AdaRound)"),
        [Command::UseMethod(MethodKind::AdaRound)]
    );
    assert!(harness.query_by_label("AdaRound: Off").is_none());
    let state = &mut harness.state_mut().state;
    state.document.methods = state.document.methods_with(MethodKind::AdaRound);
    state.refresh();
    harness.run_ok();
    assert!(harness.query_by_label(head).is_none());
    assert_eq!(
        click(&mut harness, "AdaRound: Off"),
        [Command::SetMethodOn {
            kind: MethodKind::AdaRound,
            layers: vec![layer("conv1")],
            on: false,
        }]
    );
    // A float layer has no codes.
    let state = &mut harness.state_mut().state;
    state.document.set(&layer("conv1"), UNTOUCHED);
    state.refresh();
    harness.run_ok();
    assert!(harness.query_by_label("AdaRound: Off").is_none());
}
