//! Exported files held against ONNX Runtime: asked after an export or by a button, shown at the point, disagreement never hidden.

use super::{Rig, answer, window::*};
use crate::{
    commands::{Command, Preset},
    state::{Dialog, JobKind, NoticeKind, PointId, fixture},
};
use egui_kittest::kittest::Queryable as _;
use limbeck_engine::{
    compress::Precision,
    confirm::{Codes, RuntimePair, RuntimeRun, TensorComparison, TensorSummary},
    data::SplitName,
    eval::{Estimate, PairedDrop},
    jobs::{Command as Job, Event, ExportFormat, JobId, RuntimeFound},
    measure::runtime::Optimizations,
};

/// An int8 plan measured on the search split.
fn measured() -> Rig {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    let sent = rig.sent();
    answer(&mut rig, &sent[0], 0.93, 300_000);
    rig.sent();
    rig
}

/// Asks about the measured plan, and tells the answer for the file of this hash: the point and the job, which is not finished yet.
fn answered(rig: &mut Rig, model_sha256: String, pair: RuntimePair) -> (PointId, JobId) {
    let id = rig
        .state()
        .plan_point(SplitName::Search)
        .expect("measured")
        .id;
    rig.run(Command::Confirm(id));
    let job = asked(&rig.sent());
    rig.tell(Event::Confirmed {
        job,
        model_sha256,
        pair: Box::new(pair),
    });
    (id, job)
}

fn export(confirm: bool) -> Command {
    Command::ExportModel {
        format: ExportFormat::Plan,
        path: "/x/small.onnx".into(),
        confirm,
    }
}

/// Exports and says that it was written; what is asked after that.
fn written(rig: &mut Rig, confirm: bool) -> Vec<Job> {
    rig.run(export(confirm));
    let Some(Job::Export { job, path, .. }) = rig.sent().pop() else {
        panic!("not exported");
    };
    rig.tell(Event::Written {
        job,
        path,
        note: String::new(),
    });
    rig.tell(Event::Finished { job });
    rig.sent()
}

fn estimate(value: f64, n: u64) -> Estimate {
    Estimate {
        value,
        n,
        ci: [value - 0.01, value + 0.01],
    }
}

/// What a runtime gave on 1,000 samples, `same` labels of them as predicted with optimisations on.
fn pair(same: u64) -> RuntimePair {
    let n = 1_000;
    let run = |optimizations, same_labels, top1| RuntimeRun {
        optimizations,
        at_target: false,
        top1: estimate(top1, n),
        agreement: estimate(same_labels as f64 / n as f64, n),
        same_labels,
        drop: PairedDrop {
            drop: 0.93 - top1,
            ci: [0.92 - top1, 0.94 - top1],
            n,
            only_baseline: 60,
            only_candidate: 4,
        },
        largest_difference: 0.5,
        largest_output: Some(9.5),
        clearest_lead: None,
    };
    RuntimePair {
        runtime: "1.31.1".into(),
        split: SplitName::Search,
        n,
        predicted: estimate(0.93, n),
        target: None,
        runs: vec![
            run(Optimizations::Off, n, 0.93),
            run(
                Optimizations::On,
                same,
                if same < 999 { 0.874 } else { 0.93 },
            ),
        ],
        tensors: Some(TensorSummary {
            samples: 64,
            tensors: 20,
            elements: 100_000,
            within_one: 100_000,
            first_parting: Some(TensorComparison {
                name: "relu_3".into(),
                own: None,
                through: Codes {
                    elements: 5_000,
                    equal: 4_988,
                    within_one: 5_000,
                    largest: 1,
                },
            }),
        }),
        layers: None,
    }
}

/// The hash that the fixture's points have.
fn hash() -> String {
    "22".repeat(32)
}

fn asked(sent: &[Job]) -> JobId {
    let [
        Job::Confirm {
            job,
            split: SplitName::Search,
            ..
        },
    ] = sent
    else {
        panic!("{sent:?}");
    };
    *job
}

#[test]
fn an_exported_plan_is_held_against_the_runtime_and_the_pair_stands_at_its_point() {
    let mut rig = measured();
    let sent = written(&mut rig, true);
    let job = asked(&sent);
    let Job::Confirm { recipe, limit, .. } = &sent[0] else {
        panic!("{sent:?}");
    };
    let point = rig.state().plan_point(SplitName::Search).expect("measured");
    assert_eq!(recipe.steps, point.point.recipe.steps);
    assert_eq!(*limit, point.point.limit);
    let id = point.id;
    let seen = |rig: &Rig| rig.state().active_jobs().any(|j| j.id == job);
    assert!(seen(&rig), "it can be cancelled");
    rig.tell(Event::Progress {
        job,
        fraction: 0.4,
        eta: None,
        detail: "400 of 1,000 samples".into(),
    });
    rig.tell(Event::Confirmed {
        job,
        model_sha256: hash(),
        pair: Box::new(pair(1_000)),
    });
    rig.tell(Event::Finished { job });
    assert!(!rig.state().is_busy(JobKind::Confirm));
    let notice = rig.state().notices.last().expect("told");
    assert_eq!(notice.kind, NoticeKind::Info);
    assert!(
        notice.text.contains("1,000 of 1,000 labels as predicted"),
        "{}",
        notice.text
    );
    // Measured again it is the same file: the pair stays. Another split is not what was confirmed.
    let again = (*rig.state().mirror.point(id).expect("there").point).clone();
    let mut fresh = again.clone();
    fresh.confirmed = None;
    rig.tell(Event::Point(Box::new(fresh.clone())));
    assert_eq!(
        rig.state().mirror.point(id).map(|p| (*p.point).clone()),
        Some(again)
    );
    fresh.metrics.split = SplitName::Holdout;
    rig.tell(Event::Point(Box::new(fresh)));
    let other = rig.state().plan_point(SplitName::Holdout).expect("there");
    assert_eq!(other.point.confirmed, None);
    rig.run(Command::SelectPoint(Some(id)));
    let (mut harness, jobs) = window(rig);
    harness.run();
    jobs.try_iter().for_each(drop);
    harness.get_by_label("Runtime agrees").click();
    harness.run();
    assert!(
        jobs.try_iter()
            .any(|job| matches!(job, Job::Confirm { .. })),
        "asked again"
    );
}

#[test]
fn an_export_without_the_tick_or_without_a_point_asks_nothing() {
    let mut rig = measured();
    assert!(written(&mut rig, false).is_empty());
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    rig.sent();
    let sent = written(&mut rig, true);
    assert!(sent.is_empty(), "{sent:?}");
    let told = rig
        .state()
        .notices
        .iter()
        .any(|n| n.text.contains("not measured yet"));
    assert!(told, "{:?}", rig.state().notices);
}

#[test]
fn the_dialog_says_whether_the_plan_is_confirmed_and_takes_the_tick() {
    let mut rig = measured();
    rig.run(Command::Show(Dialog::ExportModel));
    let (mut harness, jobs) = window(rig);
    harness.run();
    assert!(
        harness
            .query_by_label("Not held against a runtime yet.")
            .is_some()
    );
    let session = &mut harness.state_mut().as_mut().expect("made").session;
    session.state.mirror.add_pair(&hash(), &pair(1_000));
    harness.run();
    // The dialog has grown: it finds its middle in the next frame.
    harness.run_steps(2);
    let said = "relu_3 (12 of 5,000 codes, at most 1 step)";
    assert!(harness.query_by_label_contains(said).is_some());
    jobs.try_iter().for_each(drop);
    harness
        .get_by_role_and_label(egui::Role::CheckBox, "Confirm in ONNX Runtime afterwards")
        .click();
    harness.run();
    harness
        .get_by_role_and_label(egui::Role::Button, "Export")
        .click();
    harness.run();
    assert!(jobs.try_iter().any(|job| matches!(job, Job::Export { .. })));
    assert!(!state(&harness).view.confirm_exports, "remembered");
}

#[test]
fn disagreement_stays_on_the_window_and_at_the_point() {
    let mut rig = measured();
    let (id, job) = answered(&mut rig, hash(), pair(940));
    rig.tell(Event::Finished { job });
    let notice = rig.state().notices.last().expect("told");
    assert_eq!(
        notice.kind,
        NoticeKind::Error,
        "it does not leave by itself"
    );
    assert!(notice.text.contains("DISAGREES"), "{}", notice.text);
    let hover = crate::panels::pair_words(&pair(940));
    assert!(
        hover.contains("940 of 1,000 labels as predicted: DISAGREES, lost 5.60"),
        "{hover}"
    );
    assert!(
        hover.contains("predicted 93.00 ± 1.00 %, n 1,000 of search"),
        "{hover}"
    );
    // The plot has room for what the runtime gave.
    let [_, y] = rig.state().marks_extent().expect("marks");
    assert!(y[0] <= 87.4, "{y:?}");
    rig.run(Command::SelectPoint(Some(id)));
    let (mut harness, _jobs) = window(rig);
    harness.run();
    assert!(harness.query_by_label("Runtime differs").is_some());
}

#[test]
fn a_file_that_is_not_the_points_is_told_and_not_attached() {
    let mut rig = measured();
    let (id, _) = answered(&mut rig, "ff".repeat(32), pair(1_000));
    let point = rig.state().mirror.point(id).expect("there");
    assert_eq!(point.point.confirmed, None);
    let notice = rig.state().notices.last().expect("told");
    assert!(notice.text.contains("another hash"), "{}", notice.text);
}

#[test]
fn without_a_runtime_the_window_says_what_was_looked_for_and_takes_a_path() {
    let mut rig = measured();
    rig.run(Command::ConfirmPlan);
    let job = asked(&rig.sent());
    let why = "no ONNX Runtime (1.20 or newer) was found: VIRTUAL_ENV is not set";
    rig.tell(Event::Runtime {
        job,
        found: Err(why.into()),
    });
    rig.tell(Event::Failed {
        job,
        message: why.into(),
    });
    let notice = rig.state().notices.last().expect("told");
    assert_eq!(notice.kind, NoticeKind::Warning);
    assert!(
        notice.text.contains("Menu → ONNX Runtime…"),
        "{}",
        notice.text
    );
    rig.run(Command::Show(Dialog::Runtime));
    let events = rig.events.clone();
    let (mut harness, jobs) = window(rig);
    harness.run();
    assert!(harness.query_by_label(why).is_some());
    jobs.try_iter().for_each(drop);
    type_into(
        &mut harness,
        "Library or folder (empty: look for it)",
        "/opt/ort",
    );
    harness.get_by_label("Look for it").click();
    harness.run();
    let found = jobs.try_iter().find_map(|job| match job {
        Job::FindRuntime { job, library } => Some((job, library)),
        _ => None,
    });
    let (job, library) = found.expect("looked for");
    assert_eq!(library.as_deref(), Some(std::path::Path::new("/opt/ort")));
    events
        .send(Event::Runtime {
            job,
            found: Ok(RuntimeFound {
                version: "1.31.1".into(),
                library: "/opt/ort/libonnxruntime.so".into(),
                found_by: "from the settings".into(),
            }),
        })
        .expect("listens");
    harness.run();
    assert!(
        harness
            .query_by_label("ONNX Runtime 1.31.1 is loaded")
            .is_some()
    );
    assert_eq!(state(&harness).view.runtime, library);
}

#[test]
fn what_the_runtime_gave_is_in_the_project() {
    let mut state = fixture::demo();
    state.mirror.add_pair(&hash(), &pair(940));
    let path = std::path::Path::new("/x/p.limbeck.ron");
    let file = crate::app::project::to_file(&state, path).expect("a model");
    let text = file.to_ron().expect("writes");
    let file = limbeck_engine::project::ProjectFile::parse(&text, path).expect("reads");
    let mut other = fixture::opened();
    crate::app::project::lay_over(&mut other, file);
    let kept = |state: &crate::state::State| {
        let points = state.points().iter();
        points.filter(|p| p.point.confirmed.is_some()).count()
    };
    assert_eq!(kept(&other), 7, "of the search split");
    assert_eq!(kept(&state), 7);
}

#[test]
fn a_confirmation_that_is_not_saved_is_asked_about() {
    let mut rig = measured();
    rig.session.state.project_path = Some("/x/p.limbeck".into());
    rig.session.state.mark_saved();
    assert!(!rig.state().is_dirty());
    answered(&mut rig, hash(), pair(1_000));
    assert!(rig.state().is_dirty());
    rig.session.state.mark_saved();
    assert!(!rig.state().is_dirty());
}
