//! The window's own parts (palette, dialogs, shortcuts), clicked and typed into by name, without a GPU.

use super::Rig;
use crate::{
    app::{Request, Window},
    commands::{Command, Preset},
    state::{Dialog, Document, ThemeChoice},
};
use crossbeam_channel::Receiver;
use egui::{Key, Modifiers};
use egui_kittest::{Harness, kittest::Queryable as _};
use limbeck_engine::{
    compress::Precision,
    jobs::{Command as Job, ExportFormat},
    recipe::{Goal, Step},
};

/// A window over a session with the fixture's model.
pub(super) fn window(rig: Rig) -> (Harness<'static, Option<Window>>, Receiver<Job>) {
    let Rig { session, jobs, .. } = rig;
    let mut session = Some(session);
    let harness = Harness::builder()
        .with_size([1280.0, 800.0])
        .build_ui_state(
            move |ui, window: &mut Option<Window>| {
                if let Some(session) = session.take() {
                    *window = Some(Window::with_session(ui.ctx(), session));
                    // Fonts are there from the next frame on.
                    ui.ctx().request_repaint();
                    return;
                }
                let window = window.as_mut().expect("made in the first frame");
                window.step(ui.ctx());
                window.draw(ui);
            },
            None,
        );
    (harness, jobs)
}

pub(super) fn state<'a>(harness: &'a Harness<'static, Option<Window>>) -> &'a crate::state::State {
    &harness.state().as_ref().expect("made").session.state
}

pub(super) fn press(
    harness: &mut Harness<'static, Option<Window>>,
    modifiers: Modifiers,
    key: Key,
) {
    harness.key_press_modifiers(modifiers, key);
    harness.run();
}

pub(super) fn type_into(harness: &mut Harness<'static, Option<Window>>, name: &str, text: &str) {
    let role = egui::Role::TextInput;
    harness.get_by_role_and_label(role, name).focus();
    harness.run();
    harness.get_by_role_and_label(role, name).type_text(text);
    harness.run();
}

#[test]
fn the_palette_finds_a_command_and_runs_it() {
    let (mut harness, _jobs) = window(Rig::opened());
    harness.run();
    press(&mut harness, Modifiers::COMMAND, Key::K);
    assert!(state(&harness).view.palette_open);
    harness
        .get_by_label("Search commands: type here")
        .type_text("all int8");
    harness.run();
    press(&mut harness, Modifiers::NONE, Key::Enter);
    assert!(!state(&harness).view.palette_open);
    assert!(
        state(&harness)
            .document
            .plan
            .values()
            .all(|setting| setting.precision == Precision::Int8)
    );
    assert_eq!(state(&harness).document.plan.len(), 22);
}

#[test]
fn enter_acts_on_all_that_was_typed_even_within_one_frame() {
    let (mut harness, _jobs) = window(Rig::opened());
    harness.run();
    // The shortcut and everything behind it arrive before the window draws again.
    harness.key_press_modifiers(Modifiers::COMMAND, Key::K);
    for letter in "all int8".chars() {
        harness.event(egui::Event::Text(letter.into()));
    }
    harness.key_press(Key::Enter);
    harness.run();
    let plan = |harness: &Harness<'static, Option<Window>>| {
        let document = &state(harness).document;
        document
            .plan
            .values()
            .next()
            .map(|setting| setting.precision)
    };
    assert_eq!(plan(&harness), Some(Precision::Int8));
    assert!(!state(&harness).view.palette_open);
    // The palette is there, the rest comes at once.
    press(&mut harness, Modifiers::COMMAND, Key::K);
    for letter in "all fp16".chars() {
        harness.event(egui::Event::Text(letter.into()));
    }
    harness.key_press(Key::Enter);
    harness.run();
    assert_eq!(plan(&harness), Some(Precision::Fp16));
}

#[test]
fn escape_closes_a_menu_before_it_clears_the_selection() {
    let mut rig = Rig::opened();
    rig.run(Command::SelectAll);
    let (mut harness, _jobs) = window(rig);
    harness.run();
    harness.get_by_label("Set ratio…").click();
    harness.run();
    let entry = "Prune selected layers by 50 %";
    assert!(harness.query_by_label(entry).is_some());
    press(&mut harness, Modifiers::NONE, Key::Escape);
    assert!(harness.query_by_label(entry).is_none());
    assert_eq!(state(&harness).view.selection.len(), 22);
    press(&mut harness, Modifiers::NONE, Key::Escape);
    assert!(state(&harness).view.selection.is_empty());
}

#[test]
fn a_path_field_has_the_keyboard_and_enter_exports() {
    let (mut harness, jobs) = window(Rig::opened());
    harness.run();
    press(&mut harness, Modifiers::COMMAND, Key::E);
    // The name is selected: what is typed replaces it, the folder and the ending stay.
    harness.event(egui::Event::Text("tiny".into()));
    harness.run();
    press(&mut harness, Modifiers::NONE, Key::Enter);
    assert!(jobs.try_iter().any(|job| matches!(
        job,
        Job::Export { path, .. } if path.is_absolute() && path.ends_with("tiny.onnx")
    )));
}

#[test]
fn an_export_that_wants_data_says_so_before() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    let mut bare = super::model();
    bare.data = None;
    rig.session.state.mirror.model = Some(bare.into());
    let (mut harness, jobs) = window(rig);
    harness.run();
    press(&mut harness, Modifiers::COMMAND, Key::E);
    assert!(harness.query_by_label("Data needed").is_some());
    press(&mut harness, Modifiers::NONE, Key::Enter);
    assert!(!jobs.try_iter().any(|job| matches!(job, Job::Export { .. })));
    harness.get_by_label("Use weight-only activations").click();
    harness.run();
    assert!(harness.query_by_label("Data needed").is_none());
    harness
        .get_by_role_and_label(egui::Role::Button, "Export")
        .click();
    harness.run();
    assert!(jobs.try_iter().any(|job| matches!(job, Job::Export { .. })));
}

#[test]
fn escape_closes_the_palette_and_dialogs() {
    let (mut harness, _jobs) = window(Rig::opened());
    harness.run();
    press(&mut harness, Modifiers::COMMAND, Key::K);
    press(&mut harness, Modifiers::NONE, Key::Escape);
    assert!(!state(&harness).view.palette_open);
    press(&mut harness, Modifiers::COMMAND, Key::O);
    assert_eq!(state(&harness).view.dialog, Some(Dialog::Open));
    press(&mut harness, Modifiers::NONE, Key::Escape);
    assert_eq!(state(&harness).view.dialog, None);
}

#[test]
fn shortcuts_undo_redo_and_switch_the_theme() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    let (mut harness, _jobs) = window(rig);
    harness.run();
    press(&mut harness, Modifiers::COMMAND, Key::Z);
    assert!(state(&harness).document.plan.is_empty());
    press(&mut harness, Modifiers::COMMAND | Modifiers::SHIFT, Key::Z);
    assert_eq!(state(&harness).document.plan.len(), 22);
    press(&mut harness, Modifiers::COMMAND, Key::T);
    assert_eq!(state(&harness).view.theme, ThemeChoice::Light);
}

#[test]
fn a_model_is_opened_by_typing_its_path() {
    let (mut harness, jobs) = window(Rig::opened());
    harness.run();
    press(&mut harness, Modifiers::COMMAND, Key::O);
    type_into(&mut harness, "File", "other.onnx");
    type_into(&mut harness, "Data (task.ron)", "task.ron");
    harness
        .get_by_role_and_label(egui::Role::Button, "Open")
        .click();
    harness.run();
    assert!(jobs.try_iter().any(|job| matches!(
        job,
        Job::Open { model, task: Some(task), .. } if model.ends_with("other.onnx") && task.ends_with("task.ron")
    )));
    assert_eq!(state(&harness).view.dialog, None);
}

#[test]
fn the_browse_button_asks_the_window_and_an_empty_path_cannot_be_opened() {
    let mut rig = Rig::opened();
    rig.run(Command::Show(Dialog::OpenTask));
    rig.run(Command::Browse);
    assert_eq!(
        rig.session.take_requests(),
        [Request::Browse(Dialog::OpenTask)]
    );
    let (mut harness, jobs) = window(rig);
    harness.run();
    harness
        .get_by_role_and_label(egui::Role::Button, "Open")
        .click();
    harness.run();
    assert_eq!(state(&harness).view.dialog, Some(Dialog::OpenTask));
    assert!(
        !jobs
            .try_iter()
            .any(|job| matches!(job, Job::OpenTask { .. }))
    );
}

#[test]
fn goals_are_set_in_their_editor() {
    let (mut harness, _jobs) = window(Rig::opened());
    harness.run();
    press(&mut harness, Modifiers::COMMAND, Key::G);
    harness
        .get_by_role_and_label(egui::Role::CheckBox, "Accuracy drop at most")
        .click();
    harness.run();
    harness.get_by_label("Drop in % relative").click();
    harness.run();
    harness
        .get_by_role_and_label(egui::Role::Button, "Apply")
        .click();
    harness.run();
    assert_eq!(
        state(&harness).document.goals,
        [Goal::DropRelativePercent(1.0)]
    );
    assert_eq!(state(&harness).view.dialog, None);
}

#[test]
fn a_distillation_is_started_from_its_dialog() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    let (mut harness, jobs) = window(rig);
    harness.run();
    press(&mut harness, Modifiers::COMMAND, Key::D);
    harness.get_by_label("Optimiser: SGD").click();
    harness.run();
    harness
        .get_by_role_and_label(egui::Role::Button, "Start")
        .click();
    harness.run();
    let run = jobs.try_iter().find_map(|job| match job {
        Job::Run { recipe, .. } => Some(recipe),
        _ => None,
    });
    let recipe = run.expect("started");
    assert!(matches!(
        recipe.steps.last(),
        Some(Step::Distil(settings)) if settings.optimizer == limbeck_engine::train::Optimizer::Sgd
    ));
}

#[test]
fn a_model_is_exported_in_the_chosen_format() {
    let (mut harness, jobs) = window(Rig::opened());
    harness.run();
    press(&mut harness, Modifiers::COMMAND, Key::E);
    harness.get_by_label("Export fp16").click();
    harness.run();
    harness
        .get_by_role_and_label(egui::Role::Button, "Export")
        .click();
    harness.run();
    assert!(jobs.try_iter().any(|job| matches!(
        job,
        Job::Export { format: ExportFormat::Fp16, path, .. }
            if path.ends_with("fashion-resnet-small.onnx")
    )));
}

#[test]
fn the_scheme_is_one_edit() {
    let (mut harness, _jobs) = window(Rig::opened());
    harness.run();
    harness
        .state_mut()
        .as_mut()
        .expect("made")
        .session
        .run(Command::Show(Dialog::Scheme));
    harness.run();
    harness.get_by_label("int4 weights: Groups of 32").click();
    harness.run();
    harness.get_by_label("Calibration: Min–max").click();
    harness.run();
    harness
        .get_by_role_and_label(egui::Role::Button, "Apply")
        .click();
    harness.run();
    let scheme = &state(&harness).document.scheme;
    assert_eq!(
        (scheme.int4_weights, scheme.calibration),
        (
            limbeck_engine::compress::Granularity::Group(32),
            limbeck_engine::compress::Calibration::MinMax
        )
    );
    press(&mut harness, Modifiers::COMMAND, Key::Z);
    assert_eq!(state(&harness).document.scheme, Document::fresh().scheme);
}

#[test]
fn closing_with_changes_asks_first() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    rig.run(Command::Quit);
    let (mut harness, _jobs) = window(rig);
    harness.run();
    harness
        .get_by_role_and_label(egui::Role::Button, "Cancel")
        .click();
    harness.run();
    assert_eq!(state(&harness).view.dialog, None);
    press(&mut harness, Modifiers::COMMAND, Key::Q);
    harness
        .get_by_role_and_label(egui::Role::Button, "Save")
        .click();
    harness.run();
    assert_eq!(state(&harness).view.dialog, Some(Dialog::SaveProject));
}

#[test]
fn an_idle_window_asks_for_no_frames() {
    let (mut harness, _jobs) = window(Rig::opened());
    // `run` itself fails when the window never comes to rest.
    harness.run();
    harness.step();
    let delay = harness
        .output()
        .viewport_output
        .values()
        .map(|viewport| viewport.repaint_delay)
        .min();
    assert!(
        delay.is_some_and(|delay| delay > std::time::Duration::from_secs(60)),
        "{delay:?}"
    );
}
