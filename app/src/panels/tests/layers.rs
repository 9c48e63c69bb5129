//! The layers panel: edits, selection, sorting, filter, bulk edits, provenance, virtual rows.

use super::{Test, click, layer, open, sent};
use crate::{
    commands::{Command, Preset},
    state::{ColourBy, SelectMode, SortKey, State, fixture},
};
use egui::{Event, Key, Modifiers, PointerButton};
use egui_kittest::kittest::{NodeT as _, Queryable as _};
use limbeck_engine::{
    compress::{Pattern, Precision, Ratio},
    graph::LayerId,
    sensitivity::Candidate,
};

#[test]
fn a_segment_sets_the_precision_of_its_row() {
    let mut harness = open(fixture::demo());
    assert_eq!(
        click(&mut harness, "layer1.0.conv1 precision 16 bits"),
        [Command::SetPrecision {
            layers: vec![layer("layer1.0.conv1")],
            precision: Precision::Fp16,
        }]
    );
    // What is chosen already is not set again.
    assert_eq!(click(&mut harness, "conv1 precision 8 bits"), []);
}

#[test]
fn an_edit_in_a_selected_row_is_for_the_whole_selection() {
    let mut harness = open(fixture::demo());
    let commands = click(&mut harness, "layer2.1.conv1 precision 32 bits");
    let selected = harness.state().state.selected_layers();
    assert_eq!(selected.len(), 3);
    assert_eq!(
        commands,
        [Command::SetPrecision {
            layers: selected,
            precision: Precision::Fp32,
        }]
    );
}

#[test]
fn arrows_move_the_choice_of_the_focused_segment() {
    let mut harness = open(fixture::demo());
    harness.get_by_label("conv1 precision 8 bits").focus();
    harness.run_ok();
    harness.key_press(Key::ArrowRight);
    harness.run_ok();
    assert_eq!(
        sent(&mut harness),
        [Command::SetPrecision {
            layers: vec![layer("conv1")],
            precision: Precision::Int4,
        }]
    );
}

fn ratios(commands: &[Command]) -> Vec<f32> {
    commands
        .iter()
        .filter_map(|c| match c {
            Command::SetRatio { ratio, .. } => Some(ratio.0),
            _ => None,
        })
        .collect()
}

#[test]
fn dragging_a_slider_sets_ratios_and_letting_go_commits() {
    let mut harness = open(fixture::demo());
    let rect = harness.get_by_label("layer1.0.conv1 prune ratio").rect();
    let start = rect.left_center() + egui::vec2(10.0, 0.0);
    harness.drag_at(start);
    harness.run_ok();
    for x in [30.0, 45.0] {
        harness.hover_at(start + egui::vec2(x, 0.0));
        harness.run_ok();
    }
    let moving = sent(&mut harness);
    assert!(ratios(&moving).len() >= 2, "{moving:?}");
    assert!(!moving.contains(&Command::CommitEdit), "{moving:?}");
    harness.drop_at(start + egui::vec2(45.0, 0.0));
    harness.run_ok();
    let end = sent(&mut harness);
    assert_eq!(end.last(), Some(&Command::CommitEdit), "{end:?}");
    assert!(
        ratios(&end).iter().all(|r| *r > 0.3 && *r < 0.95),
        "{end:?}"
    );
}

#[test]
fn a_slider_obeys_keys_and_assistive_technology() {
    let mut harness = open(fixture::demo());
    harness
        .get_by_label("layer1.0.conv1 prune ratio")
        .increment_accesskit();
    harness.run_ok();
    let commands = sent(&mut harness);
    assert_eq!(ratios(&commands), [0.13]);
    assert_eq!(commands.last(), Some(&Command::CommitEdit));
    harness.get_by_label("layer1.0.conv1 prune ratio").focus();
    harness.run_ok();
    harness.key_press(Key::Home);
    harness.run_ok();
    assert_eq!(
        sent(&mut harness),
        [
            Command::SetRatio {
                layers: vec![layer("layer1.0.conv1")],
                ratio: Ratio(0.0),
            },
            Command::CommitEdit
        ]
    );
}

#[test]
fn in_groups_a_key_moves_one_weight_of_each() {
    for (group, ratio, key, expected) in [
        (4, 0.5, Key::ArrowRight, Some(0.75)),
        (4, 0.5, Key::ArrowLeft, Some(0.25)),
        (4, 0.75, Key::ArrowRight, None),
        (8, 0.125, Key::ArrowRight, Some(0.25)),
        (4, 0.5, Key::End, Some(0.75)),
    ] {
        let mut state = fixture::demo();
        state.document.shrinking.pattern = Pattern::Groups(group);
        let mut setting = state.document.setting(&layer("layer1.0.conv1"));
        setting.sparsity = Ratio(ratio);
        state.document.set(&layer("layer1.0.conv1"), setting);
        state.refresh();
        let mut harness = open(state);
        harness.get_by_label("layer1.0.conv1 prune ratio").focus();
        harness.run_ok();
        assert!(sent(&mut harness).is_empty(), "untouched it stays as it is");
        harness.key_press(key);
        harness.run_ok();
        let found = ratios(&sent(&mut harness));
        assert_eq!(found.first().copied(), expected, "{group} {ratio} {key:?}");
    }
}

#[test]
fn headers_sort() {
    let mut harness = open(fixture::demo());
    for (name, key) in [
        ("Sort by Params", SortKey::Params),
        ("Sort by Layer", SortKey::Graph),
        ("Sort by int4", SortKey::Cell(Candidate::Int4)),
        ("Sort by Prune", SortKey::Ratio),
    ] {
        assert_eq!(click(&mut harness, name), [Command::SetSort(key)]);
    }
}

#[test]
fn the_filter_sends_what_is_typed_and_shows_what_matches() {
    let mut harness = open(fixture::demo());
    harness.get_by_label("Filter layers").focus();
    harness.run_ok();
    harness.get_by_label("Filter layers").type_text("down");
    harness.run_ok();
    assert!(sent(&mut harness).contains(&Command::SetFilter("down".into())));
    let state = &mut harness.state_mut().state;
    state.view.filter = "down".into();
    state.refresh();
    harness.run_ok();
    assert!(harness.query_by_label("layer2.0.down").is_some());
    assert!(harness.query_by_label("conv1").is_none());
    let state = &mut harness.state_mut().state;
    state.view.filter = "nothing like this".into();
    state.refresh();
    harness.run_ok();
    sent(&mut harness);
    assert_eq!(
        click(&mut harness, "Clear filter"),
        [Command::SetFilter(String::new())]
    );
}

fn select(harness: &mut Test<'_>, name: &str, modifiers: Modifiers) -> Vec<Command> {
    harness.get_by_label(name).click_modifiers(modifiers);
    harness.run_ok();
    // The modifier is let go.
    harness.event(Event::PointerButton {
        pos: egui::Pos2::ZERO,
        button: PointerButton::Middle,
        pressed: false,
        modifiers: Modifiers::NONE,
    });
    harness.run_ok();
    sent(harness)
}

#[test]
fn rows_are_selected_by_click_shift_and_ctrl() {
    let mut harness = open(fixture::opened());
    for (modifiers, mode) in [
        (Modifiers::NONE, SelectMode::Replace),
        (Modifiers::SHIFT, SelectMode::Extend),
        (Modifiers::COMMAND, SelectMode::Toggle),
    ] {
        assert_eq!(
            select(&mut harness, "layer1.1.conv2", modifiers),
            [Command::Select {
                layer: layer("layer1.1.conv2"),
                mode,
            }]
        );
    }
}

#[test]
fn arrows_walk_the_rows_once_the_table_is_clicked() {
    let mut harness = open(fixture::opened());
    click(&mut harness, "layer1.1.conv2");
    harness.key_press(Key::ArrowDown);
    harness.run_ok();
    harness.key_press_modifiers(Modifiers::SHIFT, Key::ArrowUp);
    harness.run_ok();
    assert_eq!(
        sent(&mut harness),
        [
            Command::MoveFocus {
                rows: 1,
                extend: false
            },
            Command::MoveFocus {
                rows: -1,
                extend: true
            }
        ]
    );
}

#[test]
fn pins_and_bulk_edits() {
    let mut harness = open(fixture::demo());
    assert_eq!(
        click(&mut harness, "Unpin conv1"),
        [Command::TogglePin(vec![layer("conv1")])]
    );
    let selected = harness.state().state.selected_layers();
    assert_eq!(
        click(&mut harness, "Pin"),
        [Command::TogglePin(selected.clone())]
    );
    click(&mut harness, "Set precision…");
    assert_eq!(
        click(&mut harness, "Set selected layers to int8"),
        [Command::SetPrecision {
            layers: selected.clone(),
            precision: Precision::Int8,
        }]
    );
    click(&mut harness, "Set ratio…");
    assert_eq!(
        click(&mut harness, "Prune selected layers by 50 %"),
        [
            Command::SetRatio {
                layers: selected,
                ratio: Ratio(0.5),
            },
            Command::CommitEdit
        ]
    );
    click(&mut harness, "Plan…");
    assert_eq!(
        click(&mut harness, "Plan: All int8"),
        [Command::ApplyPreset(Preset::All(Precision::Int8))]
    );
}

#[test]
fn without_a_selection_bulk_edits_are_off() {
    let mut harness = open(fixture::opened());
    for name in ["Set precision…", "Set ratio…", "Pin"] {
        assert!(
            harness.get_by_label(name).accesskit_node().is_disabled(),
            "{name}"
        );
        assert_eq!(click(&mut harness, name), []);
    }
}

#[test]
fn the_colour_switch_changes_cells_legend_and_words() {
    let mut harness = open(fixture::demo());
    assert!(
        harness
            .query_by_label("Colour scale from 0 to ≥ 2 pt")
            .is_some()
    );
    // Hatched cells have a scale of their own, and without measured ones it is the only one.
    let noise = "Hatched cells: weight noise, up to ≥ 30 %";
    assert!(harness.query_by_label(noise).is_some());
    let untouched = open(fixture::opened());
    assert!(untouched.query_by_label(noise).is_some());
    assert!(untouched.query_by_label_contains("Colour scale").is_none());
    assert_eq!(
        click(&mut harness, "Colour by: Size"),
        [Command::SetColourBy(ColourBy::Size)]
    );
    harness.state_mut().state.view.colour_by = ColourBy::Size;
    harness.run_ok();
    assert!(
        harness
            .query_by_label("Colour scale from 0 to 147 kB")
            .is_some()
    );
    assert!(
        harness
            .query_by_label_contains("conv1 at int8: 0.1 kB of weights, exact")
            .is_some()
    );
}

#[test]
fn every_cell_says_its_number_and_where_it_comes_from() {
    let harness = open(fixture::demo());
    assert!(
        harness
            .query_by_label_contains(
                "layer1.0.conv1 at int4: drop 0.96 ± 0.10 pt, measured, n 1,000"
            )
            .is_some()
    );
    assert!(
        harness
            .query_by_label_contains("layer3.2.conv2 at 75 % pruned: proxy, weight noise")
            .is_some()
    );
    assert!(
        harness
            .query_by_label("Plan: 158 kB stored, measured")
            .is_some()
    );
    assert!(harness.query_by_label("22 layers · 3 selected").is_some());
}

#[test]
fn proxies_stay_in_the_pale_part_of_the_scale() {
    let state = fixture::opened();
    let heat = |candidate| state.heat(3, candidate).value;
    assert_eq!(heat(Candidate::Fp16), 0.0);
    assert!(heat(Candidate::P25) < heat(Candidate::P75));
    for row in 0..state.layers().len() {
        for candidate in Candidate::ALL {
            assert!(state.heat(row, candidate).value <= 0.5);
        }
    }
}

#[test]
fn menus_are_as_wide_as_their_entries() {
    let mut harness = open(fixture::demo());
    for (menu, entry) in [
        ("Plan…", "Plan: All int8"),
        ("Set ratio…", "Prune selected layers by 50 %"),
    ] {
        click(&mut harness, menu);
        let rect = harness.get_by_label(entry).rect();
        assert!(rect.width() < 320.0, "{menu}: {rect:?}");
        click(&mut harness, entry);
    }
}

fn many(count: usize) -> State {
    let mut state = fixture::opened();
    let mut model = (**state.model().expect("the fixture has a model")).clone();
    let template = model.layers[1].clone();
    model.layers = (0..count)
        .map(|i| {
            let mut facts = template.clone();
            facts.id = LayerId(format!("block{i}.conv").into());
            facts
        })
        .collect();
    state.mirror.set_model(model);
    state.refresh();
    state
}

#[test]
fn of_thousands_of_layers_only_those_in_sight_are_drawn() {
    let mut harness = open(many(5_000));
    let drawn = harness.query_all_by_label_contains("prune ratio").count();
    assert!((20..60).contains(&drawn), "{drawn}");
    assert!(harness.query_by_label("block0.conv").is_some());
    assert!(harness.query_by_label("block4000.conv").is_none());
    // The focus pulls the table along.
    harness.state_mut().state.view.focus = Some(layer("block4000.conv"));
    harness.run_ok();
    harness.run_ok();
    assert!(harness.query_by_label("block4000.conv").is_some());
}
