//! Distillations that keep checkpoints, and those that were interrupted.

use super::{Rig, model};
use crate::{
    app::Request,
    commands::{Command, Preset},
    state::{AfterSave, Dialog, JobKind},
};
use limbeck_engine::{
    compress::Precision,
    data::SplitName,
    jobs::{Command as Job, Event, JobId, Keep},
    recipe::{CheckpointEvery, Interrupted, Recipe},
    train::DistilSettings,
};
use std::path::{Path, PathBuf};

const NEVER: CheckpointEvery = CheckpointEvery {
    seconds: None,
    steps: None,
};

/// What the next distillation of the plan is told of checkpoints; it is cancelled again.
fn kept(rig: &mut Rig) -> Option<Keep> {
    rig.run(Command::StartDistil(DistilSettings::default()));
    let (job, keep) = started(rig);
    rig.tell(Event::Cancelled { job });
    keep
}

fn started(rig: &mut Rig) -> (JobId, Option<Keep>) {
    let run = rig.sent().into_iter().find_map(|job| match job {
        Job::Run { job, keep, .. } => Some((job, keep)),
        _ => None,
    });
    run.expect("a distillation was sent")
}

/// An interrupted run of the fixture's model with layers at int4.
fn interrupted(rig: &Rig, folder: &str) -> Interrupted {
    let mut document = rig.state().document.clone();
    for layer in rig.layers() {
        let mut setting = document.setting(&layer);
        setting.precision = Precision::Int4;
        document.set(&layer, setting);
    }
    document.distil = Some(DistilSettings {
        epochs: 10,
        ..DistilSettings::default()
    });
    let info = model();
    let task = info.task_path.clone().expect("the fixture has data");
    let recipe = document.recipe("", &info.path, &task, rig.state().layers(), true);
    let mut run = Interrupted::new(folder.into(), recipe, SplitName::Holdout);
    run.epoch = Some((3.5, 10));
    run
}

fn found(rig: &mut Rig, runs: Vec<Interrupted>) {
    rig.tell(Event::Interrupted {
        job: JobId(900),
        runs,
    });
}

/// The run that is gone on with: recipe and folder.
fn taken_up(rig: &mut Rig) -> Option<(JobId, Recipe, PathBuf)> {
    rig.sent().into_iter().find_map(|job| match job {
        Job::Run {
            job,
            recipe,
            keep: Some(Keep::TakeUp { folder, .. }),
            ..
        } => Some((job, (*recipe).clone(), folder)),
        _ => None,
    })
}

#[test]
fn checkpoints_lie_beside_the_project_else_with_the_windows_settings() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    rig.sent();
    assert_eq!(kept(&mut rig), None, "there is nowhere to keep them");
    rig.session.runs = Some("/data/runs".into());
    let every = CheckpointEvery::default();
    let under = |folder: &str| {
        Some(Keep::New {
            under: folder.into(),
            every,
        })
    };
    assert_eq!(kept(&mut rig), under("/data/runs"));
    rig.session.state.project_path = Some("/projects/small.limbeck.ron".into());
    assert_eq!(kept(&mut rig), under("/projects/small.limbeck.runs"));
    rig.run(Command::SetCheckpoints(NEVER));
    assert_eq!(kept(&mut rig), None);
}

#[test]
fn an_interrupted_run_of_the_open_model_goes_on_with_its_plan() {
    let mut rig = Rig::opened();
    let run = interrupted(&rig, "/data/runs/run-1-0");
    found(&mut rig, vec![run.clone()]);
    let take_up = Command::TakeUp(run.folder.clone());
    assert!(Command::palette(rig.state()).contains(&take_up));
    rig.run(take_up.clone());
    let (job, recipe, folder) = taken_up(&mut rig).expect("it goes on");
    assert_eq!((&recipe, &folder), (&run.recipe, &run.folder));
    assert_eq!(rig.state().plan_steps(true), run.recipe.steps);
    assert!(rig.state().mirror.interrupted.is_empty());
    // A search that was under way found it before the engine had begun.
    found(&mut rig, vec![run.clone()]);
    assert!(rig.state().mirror.interrupted.is_empty());
    // It fails: it is looked for again, and offered.
    rig.tell(Event::Failed {
        job,
        message: "other data".into(),
    });
    found(&mut rig, vec![run.clone()]);
    assert!(take_up.enabled(rig.state()).is_ok());
    // Cancelled while it waits its turn, the same.
    rig.session.runs = Some("/data/runs".into());
    rig.run(take_up.clone());
    let (job, ..) = taken_up(&mut rig).expect("it goes on");
    rig.tell(Event::Cancelled { job });
    let sent: Vec<Job> = rig.jobs.try_iter().collect();
    let looked = sent.iter().any(|sent| matches!(sent, Job::FindRuns { .. }));
    assert!(looked, "{sent:?}");
    found(&mut rig, vec![run.clone()]);
    assert!(take_up.enabled(rig.state()).is_ok());
    rig.run(Command::LeaveRun(run.folder.clone()));
    assert!(rig.state().mirror.interrupted.is_empty());
    // One that cannot be gone on with says why.
    let mut other = run;
    other.obstacle = Some("it was taken with another model".into());
    found(&mut rig, vec![other]);
    let why = take_up.enabled(rig.state()).expect_err("refused");
    assert!(why.contains("another model"), "{why}");
}

#[test]
fn an_interrupted_run_of_another_model_opens_it_first() {
    let mut rig = Rig::opened();
    let mut run = interrupted(&rig, "/data/runs/run-1-0");
    run.recipe.model = "/models/other.onnx".into();
    run.recipe.task = "/models/task.ron".into();
    found(&mut rig, vec![run.clone()]);
    // Unsaved changes are asked about; staying forgets it.
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    rig.sent();
    let take_up = Command::TakeUp(run.folder.clone());
    rig.run(take_up.clone());
    assert!(matches!(
        rig.state().view.dialog,
        Some(Dialog::Unsaved(AfterSave::OpenModel { .. }))
    ));
    rig.run(Command::CloseDialog);
    assert!(rig.sent().is_empty());
    rig.run(take_up);
    rig.run(Command::DiscardAndGoOn);
    let sent = rig.sent();
    let opened = sent.iter().find_map(|sent| match sent {
        Job::Open { job, model, task } => Some((*job, model.clone(), task.clone())),
        _ => None,
    });
    let (job, path, task) = opened.expect("its model is opened");
    assert_eq!(path, Path::new("/models/other.onnx"));
    assert_eq!(task.as_deref(), Some(Path::new("/models/task.ron")));
    let mut info = model();
    (info.path, info.task_path) = (path, task);
    rig.tell(Event::Opened {
        job,
        info: Box::new(info),
    });
    assert!(taken_up(&mut rig).is_none(), "not before it is open");
    rig.tell(Event::Finished { job });
    let (_, recipe, folder) = taken_up(&mut rig).expect("it goes on");
    assert_eq!((recipe, folder), (run.recipe, run.folder));
    assert!(rig.state().is_busy(JobKind::Distil));
}

#[test]
fn discarding_is_asked_about_and_removes_the_folder() {
    let mut rig = Rig::opened();
    let run = interrupted(&rig, "/data/runs/run-1-0");
    found(&mut rig, vec![run.clone()]);
    rig.run(Command::Show(Dialog::DiscardRun(run.folder.clone())));
    rig.sent();
    rig.run(Command::DiscardRun(run.folder.clone()));
    let sent = rig.sent();
    assert!(
        matches!(sent.as_slice(), [Job::DiscardRun { folder, .. }] if *folder == run.folder),
        "{sent:?}"
    );
    let state = rig.state();
    assert!(state.view.dialog.is_none() && state.mirror.interrupted.is_empty());
}

#[test]
fn a_search_that_was_under_way_brings_back_nothing_that_was_dealt_with() {
    let mut rig = Rig::opened();
    rig.session.runs = Some("/data/runs".into());
    let search = |rig: &mut Rig| {
        rig.session.find_runs();
        let sent = rig.jobs.try_iter().find_map(|sent| match sent {
            Job::FindRuns { job, .. } => Some(job),
            _ => None,
        });
        sent.expect("looked for")
    };
    let left = interrupted(&rig, "/data/runs/run-1-0");
    let gone = interrupted(&rig, "/data/runs/run-2-0");
    let both = vec![gone.clone(), left.clone()];
    found(&mut rig, both.clone());
    let early = search(&mut rig);
    rig.run(Command::LeaveRun(left.folder.clone()));
    rig.run(Command::Show(Dialog::DiscardRun(gone.folder.clone())));
    rig.run(Command::DiscardRun(gone.folder.clone()));
    rig.tell(Event::Interrupted {
        job: early,
        runs: both,
    });
    assert!(rig.state().mirror.interrupted.is_empty());
    // "Later" is until they are looked for again.
    let late = search(&mut rig);
    rig.tell(Event::Interrupted {
        job: late,
        runs: vec![left.clone()],
    });
    assert_eq!(rig.state().mirror.interrupted, [left]);
}

#[test]
fn closing_waits_for_the_state_of_a_distillation_and_for_nothing_else() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    rig.sent();
    assert!(!rig.session.end(), "nothing is at work");
    rig.session.runs = Some("/data/runs".into());
    rig.run(Command::SetCheckpoints(NEVER));
    rig.run(Command::StartDistil(DistilSettings::default()));
    let (first, _) = started(&mut rig);
    rig.run(Command::SetCheckpoints(CheckpointEvery::default()));
    assert!(
        !rig.session.end(),
        "it keeps nothing, whatever the next one would"
    );
    rig.tell(Event::Finished { job: first });
    rig.run(Command::StartDistil(DistilSettings::default()));
    let (job, _) = started(&mut rig);
    rig.run(Command::SetCheckpoints(NEVER));
    assert!(rig.session.end(), "it keeps, whatever the next one would");
    assert!(matches!(rig.sent().as_slice(), [Job::Shutdown]));
    // Neither is the engine sent more, nor an edit taken that would be lost, nor the dialog closed.
    rig.session.find_runs();
    let before = rig.state().document.clone();
    for command in [
        Command::ApplyPreset(Preset::All(Precision::Int8)),
        Command::SaveProjectAs("/w/a.limbeck.ron".into()),
        Command::CloseDialog,
        Command::OpenPalette,
    ] {
        rig.run(command);
    }
    let told = rig.state().notices.len();
    rig.tell(Event::Cancelled { job });
    assert_eq!(rig.state().notices.len(), told, "its checkpoint was kept");
    assert!(rig.jobs.try_iter().next().is_none());
    assert_eq!(rig.state().document, before);
    assert_eq!(rig.state().view.dialog, Some(Dialog::Closing(None)));
    assert!(!rig.state().view.palette_open);
    rig.tell(Event::Ended);
    assert_eq!(rig.session.take_requests(), [Request::Quit]);
    assert!(!rig.session.end());
    // Whoever asks again does not wait.
    rig.run(Command::Quit);
    assert_eq!(rig.session.take_requests(), [Request::Quit]);
}

#[test]
fn a_checkpoint_that_fails_at_closing_is_read_before_the_window_goes() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    rig.session.runs = Some("/data/runs".into());
    rig.run(Command::StartDistil(DistilSettings::default()));
    let (job, _) = started(&mut rig);
    assert!(rig.session.end());
    let message = "no checkpoint could be taken: the disk is full".to_owned();
    rig.tell(Event::NotKept {
        job,
        message: message.clone(),
    });
    rig.tell(Event::Cancelled { job });
    rig.tell(Event::Ended);
    assert!(rig.session.take_requests().is_empty());
    let said = Some(Dialog::Closing(Some(message)));
    assert_eq!(rig.state().view.dialog, said);
    rig.run(Command::Quit);
    assert_eq!(rig.session.take_requests(), [Request::Quit]);
}

#[test]
fn runs_are_looked_for_where_they_may_lie_whenever_a_model_is_opened() {
    let mut rig = Rig::new();
    rig.session.runs = Some("/data/runs".into());
    rig.session.state.view.recent = vec!["/w/a.limbeck.ron".into(), "/w/m.onnx".into()];
    rig.run(Command::OpenModel {
        model: "m.onnx".into(),
        task: None,
    });
    rig.session.settings.map_at_once = false;
    let Some(Job::Open { job, .. }) = rig.sent().pop() else {
        panic!("nothing was opened");
    };
    rig.tell(Event::Opened {
        job,
        info: Box::new(model()),
    });
    rig.tell(Event::Finished { job });
    let under = rig.jobs.try_iter().find_map(|sent| match sent {
        Job::FindRuns { under, .. } => Some(under),
        _ => None,
    });
    let expected = [Path::new("/data/runs"), Path::new("/w/a.limbeck.runs")];
    assert_eq!(under.expect("looked for"), expected);
}

#[test]
fn opening_another_model_leaves_a_distillations_checkpoints_to_its_return() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    rig.run(Command::StartDistil(DistilSettings::default()));
    let (run, _) = started(&mut rig);
    rig.run(Command::OpenModel {
        model: "other.onnx".into(),
        task: None,
    });
    rig.run(Command::DiscardAndGoOn);
    // The opening itself ends it; a cancel would have thrown it away.
    let cancelled = rig
        .sent()
        .iter()
        .any(|sent| matches!(sent, Job::Cancel(job) if *job == run));
    assert!(!cancelled);
}

#[cfg(unix)]
#[test]
fn a_run_under_another_name_of_the_folder_is_the_open_models() {
    let place = tempfile::tempdir().expect("a folder");
    let (real, link) = (place.path().join("real"), place.path().join("link"));
    std::fs::create_dir(&real).expect("made");
    std::os::unix::fs::symlink(&real, &link).expect("linked");
    for name in ["m.onnx", "task.ron"] {
        std::fs::write(real.join(name), "").expect("written");
    }
    let mut rig = Rig::opened();
    let mut run = interrupted(&rig, "/data/runs/run-1-0");
    run.recipe.model = real.join("m.onnx");
    run.recipe.task = real.join("task.ron");
    let mut info = model();
    info.path = link.join("m.onnx");
    info.task_path = Some(link.join("task.ron"));
    rig.session.state.mirror.model = Some(std::sync::Arc::new(info));
    found(&mut rig, vec![run.clone()]);
    rig.run(Command::TakeUp(run.folder.clone()));
    let (_, recipe, _) = taken_up(&mut rig).expect("it goes on at once");
    assert_eq!(recipe.model, link.join("m.onnx"), "as the session calls it");
    std::fs::remove_file(real.join("m.onnx")).expect("removed");
    assert!(!run.call_as(&link.join("m.onnx"), &link.join("task.ron")));
}
