//! Choosing a deployment target: its defaults, what it refuses, where its arithmetic saturates, and the remedy.

use super::{Rig, answer, model, window::*};
use crate::{
    app::Window,
    commands::{Command, Preset},
    state::{AtTarget, Dialog, Document, fixture},
};
use egui_kittest::kittest::{NodeT as _, Queryable as _};
use limbeck_engine::{
    compress::{Activations, Granularity, Precision},
    data::SplitName,
    graph::LayerId,
    jobs::{Command as Job, Event},
    recipe::{Recipe, Step},
    target::{self, LayerSaturation},
};
use std::path::Path;

const AVX2: &str = "onnxruntime-avx2";

/// A plan at int8 for the target, answered as the engine would: two layers saturate.
fn saturating() -> Rig {
    let mut rig = Rig::opened();
    let mut scheme = target::find(AVX2).expect("built in").defaults();
    scheme.target = Some(AVX2.to_owned());
    rig.run(Command::SetScheme(scheme));
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    let sent = rig.sent();
    let layers = rig.layers();
    let saturates = |layer: &LayerId, saturated| LayerSaturation {
        layer: layer.clone(),
        outputs: 10_000,
        saturated,
        most: 1.25,
    };
    let found = vec![
        saturates(&layers[0], 1_390),
        saturates(&layers[3], 0),
        saturates(&layers[5], 20),
    ];
    tell_point(&mut rig, sent.last().expect("measured"), 0.874, found);
    rig
}

type InWindow = egui_kittest::Harness<'static, Option<Window>>;

/// Chooses an entry of the list of targets.
fn choose(harness: &mut InWindow, entry: &str) {
    harness
        .get_by_role_and_label(egui::Role::ComboBox, "Target")
        .click();
    harness.run();
    harness.get_by_label(entry).click();
    harness.run();
}

fn apply(harness: &mut InWindow) {
    harness
        .get_by_role_and_label(egui::Role::Button, "Apply")
        .click();
    harness.run();
}

fn can_apply(harness: &InWindow) -> bool {
    let button = harness.get_by_role_and_label(egui::Role::Button, "Apply");
    !button.accesskit_node().is_disabled()
}

fn tell_point(rig: &mut Rig, sent: &Job, top1: f64, saturation: Vec<LayerSaturation>) {
    let Job::Measure {
        job, recipe, split, ..
    } = sent
    else {
        panic!("{sent:?}");
    };
    let mut point = fixture::point(job.0, (**recipe).clone(), *split, top1, 300_000);
    point.metrics.simulated = Some(AVX2.to_owned());
    point.saturation = saturation;
    rig.tell(Event::Point(Box::new(point)));
    rig.tell(Event::Finished { job: *job });
}

#[test]
fn a_target_is_chosen_with_its_defaults_in_one_undo_step_and_is_in_the_recipe() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    rig.run(Command::Show(Dialog::Scheme));
    let (mut harness, _jobs) = window(rig);
    harness.run();
    choose(&mut harness, "weight-only-int4");
    assert!(
        harness
            .query_by_label_contains("arithmetic in float")
            .is_some()
    );
    // Nothing is decided before Apply.
    assert_eq!(state(&harness).document.scheme, Document::fresh().scheme);
    apply(&mut harness);
    let scheme = state(&harness).document.scheme.clone();
    assert_eq!(scheme.target.as_deref(), Some("weight-only-int4"));
    assert_eq!(
        (scheme.activations, scheme.int4_weights),
        (Activations::Float, Granularity::Group(32))
    );
    let text = state(&harness)
        .recipe(true)
        .and_then(|recipe| recipe.to_ron().ok())
        .expect("a recipe");
    assert!(text.contains("weight-only-int4"), "{text}");
    let recipe = Recipe::parse(&text, Path::new("r.ron")).expect("reads");
    let [_, Step::Quantize(step)] = recipe.steps.as_slice() else {
        panic!("{recipe:?}");
    };
    assert_eq!(step.scheme, scheme);
    press(&mut harness, egui::Modifiers::COMMAND, egui::Key::Z);
    assert_eq!(state(&harness).document.scheme, Document::fresh().scheme);
}

#[test]
fn what_a_target_refuses_is_said_where_it_is_chosen_and_is_not_measured() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    rig.sent();
    rig.run(Command::Show(Dialog::Scheme));
    let (mut harness, jobs) = window(rig);
    harness.run();
    choose(&mut harness, "tflite-int8");
    assert!(
        harness
            .query_by_label("It refuses 22 layers of the plan")
            .is_some()
    );
    let said = "conv1 and 20 more (Conv at int4): it computes Conv with weights of int8";
    assert!(harness.query_by_label_contains(said).is_some());
    jobs.try_iter().for_each(drop);
    apply(&mut harness);
    let measured = |jobs: &crossbeam_channel::Receiver<Job>| {
        jobs.try_iter()
            .any(|job| matches!(job, Job::Measure { .. }))
    };
    assert!(!measured(&jobs), "it would only fail");
    let why = Command::MeasurePlan(SplitName::Holdout)
        .enabled(state(&harness))
        .expect_err("refused");
    assert!(
        why.contains("tflite-int8 refuses conv1 and 20 more"),
        "{why}"
    );
    // The layers say it too, with a way out that is one step.
    let marks = harness.query_all_by_label_contains("cannot run it as planned");
    assert_eq!(marks.count(), 22);
    let session = &mut harness.state_mut().as_mut().expect("made").session;
    session.run(Command::Undo);
    assert!(session.state.refusals().is_empty());
    assert_eq!(
        Command::MeasurePlan(SplitName::Holdout).enabled(&session.state),
        Ok(())
    );
}

#[test]
fn a_target_of_ones_own_is_read_by_the_engine_and_its_errors_are_shown() {
    let mut rig = Rig::opened();
    rig.run(Command::Show(Dialog::Scheme));
    let events = rig.events.clone();
    let (mut harness, jobs) = window(rig);
    harness.run();
    choose(&mut harness, "Own file…");
    assert!(!can_apply(&harness), "nothing was chosen yet");
    type_into(&mut harness, "Target description", "/x/mine.ron");
    harness.get_by_label("Take its defaults").click();
    harness.run();
    let asked = || {
        jobs.try_iter().find_map(|job| match job {
            Job::ReadText { job, path } => Some((job, path)),
            _ => None,
        })
    };
    let (job, path) = asked().expect("read by the engine");
    assert_eq!(path, Path::new("/x/mine.ron"));
    assert!(!can_apply(&harness));
    events
        .send(Event::Text {
            job,
            path,
            text: "(version: 1, nam: \"mine\")".into(),
        })
        .expect("listens");
    harness.run();
    assert!(
        harness
            .query_by_label("This target cannot be used")
            .is_some()
    );
    assert!(
        harness
            .query_by_label_contains("unknown key `nam`")
            .is_some()
    );
    // Read again after it was mended.
    harness.get_by_label("Take its defaults").click();
    harness.run();
    let (job, path) = asked().expect("read again");
    let text = "(version: 1, name: \"mine\", title: \"My chip\", scheme: (activations: int16, symmetry: symmetric), \
                runs: [(operators: [Conv, Gemm], precisions: [int8], weights: [per_channel], weight_symmetry: [symmetric], \
                activations: [int16], symmetry: [symmetric])])";
    events
        .send(Event::Text {
            job,
            path,
            text: text.into(),
        })
        .expect("listens");
    harness.run();
    assert!(harness.query_by_label("My chip.").is_some());
    apply(&mut harness);
    let scheme = &state(&harness).document.scheme;
    assert_eq!(scheme.target.as_deref(), Some("/x/mine.ron"));
    assert_eq!(scheme.activations, Activations::Int16);
    assert_eq!(state(&harness).target_allows(), Ok(()));
}

#[test]
fn a_plan_whose_target_has_to_be_read_is_measured_when_it_is_there() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    rig.sent();
    let mut scheme = rig.state().document.scheme.clone();
    scheme.target = Some("/x/mine.ron".to_owned());
    rig.run(Command::SetScheme(scheme));
    let sent = rig.sent();
    let [Job::ReadText { job, .. }] = sent.as_slice() else {
        panic!("{sent:?}");
    };
    rig.tell(Event::Failed {
        job: *job,
        message: "there is no such file".into(),
    });
    let why = rig.state().target_allows().expect_err("not there");
    assert!(why.contains("there is no such file"), "{why}");
    assert!(rig.sent().is_empty());
    rig.run(Command::ReadTarget("/x/mine.ron".to_owned()));
    let Some(Job::ReadText { job, path }) = rig.sent().pop() else {
        panic!("not read");
    };
    let text = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/targets/onnxruntime-avx2.ron"),
    )
    .expect("there");
    rig.tell(Event::Text { job, path, text });
    let sent = rig.sent();
    assert!(matches!(sent.as_slice(), [Job::Measure { .. }]), "{sent:?}");
}

#[test]
fn layers_that_saturate_are_marked_and_seven_bits_are_one_click_and_one_step() {
    let rig = saturating();
    let layers = rig.layers();
    let int8 = rig.state().document.clone();
    assert!(matches!(
        rig.state().at_target(&layers[0]),
        Some(AtTarget::Saturates(found)) if found.share() == 0.139
    ));
    let (mut harness, jobs) = window(rig);
    harness.run();
    let marks = harness.query_all_by_label_contains("Saturates at onnxruntime-avx2: ");
    assert_eq!(
        marks.count(),
        2,
        "conv1 and layers[5], not the one that only could"
    );
    assert!(
        harness
            .query_by_label("Saturates at onnxruntime-avx2")
            .is_some()
    );
    let symptom = "13.9 % of its outputs lose part of their sum, up to 1.250 off one of them (simulated on search, n 1,000 samples).";
    assert!(harness.query_by_label(symptom).is_some());
    jobs.try_iter().for_each(drop);
    harness.get_by_label("7-bit weights in 2 layers").click();
    harness.run();
    for (at, layer) in layers.iter().enumerate() {
        let expected = match at {
            0 | 5 => Precision::Int7,
            _ => Precision::Int8,
        };
        assert_eq!(state(&harness).setting(layer).precision, expected, "{at}");
    }
    let sent = jobs
        .try_iter()
        .find(|job| matches!(job, Job::Measure { .. }))
        .expect("measured anew");
    // Until that is there nothing is claimed of the new plan.
    assert!(
        harness
            .query_by_label("Saturates at onnxruntime-avx2")
            .is_none()
    );
    press(&mut harness, egui::Modifiers::COMMAND, egui::Key::Z);
    assert_eq!(state(&harness).document, int8);
    assert!(
        harness
            .query_by_label("Saturates at onnxruntime-avx2")
            .is_some()
    );
    press(
        &mut harness,
        egui::Modifiers::COMMAND | egui::Modifiers::SHIFT,
        egui::Key::Z,
    );
    // What is left after the remedy is said, here of a layer whose pin held it off or that begins to saturate.
    let mut point = match &sent {
        Job::Measure {
            job, recipe, split, ..
        } => fixture::point(job.0, (**recipe).clone(), *split, 0.92, 280_000),
        _ => panic!("{sent:?}"),
    };
    point.saturation = vec![LayerSaturation {
        layer: layers[7].clone(),
        outputs: 1_000_000,
        saturated: 12,
        most: 0.01,
    }];
    let session = &mut harness.state_mut().as_mut().expect("made").session;
    session.state.mirror.add_point(point);
    session.run(Command::Select {
        layer: layers[7].clone(),
        mode: crate::state::SelectMode::Replace,
    });
    harness.run();
    let left = "0.0012 % of its outputs lose part of their sum, up to 0.010 off one of them (simulated on search, n 1,000 samples).";
    assert!(harness.query_by_label(left).is_some());
    assert!(harness.query_by_label("7-bit weights here").is_some());
    let marks = harness.query_all_by_label_contains("Saturates at onnxruntime-avx2: ");
    assert_eq!(marks.count(), 1);
}

#[test]
fn a_pinned_layer_keeps_its_bits_unless_it_is_asked_by_itself() {
    let mut rig = saturating();
    let layers = rig.layers();
    rig.run(Command::TogglePin(vec![layers[0].clone()]));
    assert_eq!(rig.state().saturating_unpinned(), [layers[5].clone()]);
    let (mut harness, _jobs) = window(rig);
    harness.run();
    // The pinned one is in the inspector: its button is for it alone.
    harness.get_by_label("7-bit weights here").click();
    harness.run();
    assert_eq!(
        state(&harness).setting(&layers[0]).precision,
        Precision::Int7
    );
    assert_eq!(
        state(&harness).setting(&layers[5]).precision,
        Precision::Int8
    );
}

#[test]
fn a_plan_without_a_target_has_nothing_to_say_of_one() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    let sent = rig.sent();
    answer(&mut rig, &sent[0], 0.93, 300_000);
    let layers = rig.layers();
    assert!(
        layers
            .iter()
            .all(|layer| rig.state().at_target(layer).is_none())
    );
    assert_eq!(rig.state().target_allows(), Ok(()));
}

#[test]
fn a_target_of_ones_own_lies_relative_to_the_exported_recipe() {
    let place = tempfile::tempdir().expect("a folder");
    let own = place.path().join("targets/own.ron");
    std::fs::create_dir(place.path().join("targets")).expect("made");
    let text = include_str!("../../../../assets/targets/weight-only-int4.ron");
    std::fs::write(&own, text).expect("written");
    let name = own.display().to_string();
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    let mut scheme = target::find(&name).expect("reads").defaults();
    scheme.target = Some(name.clone());
    rig.run(Command::SetScheme(scheme));
    let read = rig.sent().into_iter().find_map(|sent| match sent {
        Job::ReadText { job, path } => Some((job, path)),
        _ => None,
    });
    let (job, path) = read.expect("its description is read");
    rig.tell(Event::Text {
        job,
        path,
        text: text.to_owned(),
    });
    rig.sent();
    let path = place.path().join("recipes/r.ron");
    rig.run(Command::ExportRecipe(path.clone()));
    let sent = rig.sent().into_iter().find_map(|sent| match sent {
        Job::WriteText { text, .. } => Some(text),
        _ => None,
    });
    let text = sent.expect("written");
    assert!(text.contains("target: \"../targets/own.ron\""), "{text}");
    std::fs::create_dir(place.path().join("recipes")).expect("made");
    std::fs::write(&path, &text).expect("written");
    let read = Recipe::parse(&text, &path).expect("reads");
    let target = read.target().expect("found").expect("named");
    assert_eq!(target.name, "weight-only-int4");
    // Opened in the window, it is called as before.
    rig.run(Command::OpenRecipe(path.clone()));
    let job = rig.sent().into_iter().find_map(|sent| match sent {
        Job::ReadText { job, .. } => Some(job),
        _ => None,
    });
    rig.tell(Event::Text {
        job: job.expect("read"),
        path,
        text,
    });
    let opened = rig.sent().into_iter().find_map(|sent| match sent {
        Job::Open { job, .. } => Some(job),
        _ => None,
    });
    rig.tell(Event::Opened {
        job: opened.expect("its model is opened"),
        info: Box::new(model()),
    });
    assert_eq!(rig.state().document.scheme.target, Some(name));
}
