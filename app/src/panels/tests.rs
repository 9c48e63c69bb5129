//! Every panel, driven by accessible names without a GPU: what is pressed sends its command, what is known is said.

mod advice;
mod layers;
mod others;

use super::{Commands, workbench};
use crate::{
    state::{State, fixture},
    theme,
};
use egui::{Vec2, vec2};
use egui_kittest::{Harness, kittest::Queryable as _};
use limbeck_engine::graph::LayerId;

struct Window {
    state: State,
    sent: Commands,
    ready: bool,
}

type Test<'a> = Harness<'a, Window>;

fn open_sized<'a>(state: State, size: Vec2) -> Test<'a> {
    let window = Window {
        state,
        sent: Vec::new(),
        ready: false,
    };
    let mut harness = Harness::builder()
        .with_size(size)
        .with_step_dt(0.1)
        .with_max_steps(20)
        .build_ui_state(
            |ui, window: &mut Window| {
                if !window.ready {
                    theme::install(ui.ctx());
                    window.ready = true;
                    return;
                }
                let Window { state, sent, .. } = window;
                workbench(ui, state, sent);
            },
            window,
        );
    harness.run_ok();
    harness
}

fn open<'a>(state: State) -> Test<'a> {
    open_sized(state, vec2(1600.0, 1000.0))
}

fn layer(name: &str) -> LayerId {
    LayerId(name.into())
}

/// Clicks what has this accessible name and returns all that was sent since the last call.
fn click(harness: &mut Test<'_>, name: &str) -> Commands {
    harness.get_by_label(name).click();
    harness.run_ok();
    sent(harness)
}

fn sent(harness: &mut Test<'_>) -> Commands {
    std::mem::take(&mut harness.state_mut().sent)
}

#[test]
fn every_state_draws_at_every_size_and_sends_nothing_by_itself() {
    for size in [
        vec2(1280.0, 800.0),
        vec2(1920.0, 1080.0),
        vec2(640.0, 420.0),
        vec2(200.0, 120.0),
    ] {
        for make in [fixture::demo, fixture::opened, State::default] {
            let mut harness = open_sized(make(), size);
            assert_eq!(sent(&mut harness), []);
        }
    }
}

#[test]
fn a_window_at_rest_asks_for_no_frame() {
    let mut harness = open(fixture::demo());
    assert!(harness.run_ok().is_some_and(|steps| steps <= 2));
}
