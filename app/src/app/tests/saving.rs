//! Projects, unsaved changes, opening.

use super::{Rig, model};
use crate::{
    app::{Request, files},
    commands::{Command, Preset},
    state::{AfterSave, Dialog, State, fixture},
};
use limbeck_engine::{
    compress::Precision,
    jobs::{Command as Job, Event},
    train::DistilSettings,
};
use std::path::PathBuf;

#[test]
fn unsaved_changes_are_asked_about_before_they_are_lost() {
    let mut rig = Rig::opened();
    rig.run(Command::Quit);
    assert_eq!(rig.session.take_requests(), [Request::Quit]);
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    rig.run(Command::Quit);
    assert_eq!(
        rig.state().view.dialog,
        Some(Dialog::Unsaved(AfterSave::Quit))
    );
    assert!(rig.session.take_requests().is_empty());
    // Save asks for a path, writes, and then quits.
    rig.run(Command::SaveProject);
    assert_eq!(rig.state().view.dialog, Some(Dialog::SaveProject));
    rig.sent();
    rig.run(Command::SaveProjectAs("p".into()));
    let sent = rig.sent();
    let [Job::WriteText { job, path, text }] = sent.as_slice() else {
        panic!("{sent:?}");
    };
    assert!(path.ends_with("p.limbeck.ron") && path.is_absolute());
    assert!(text.contains("fashion-resnet"));
    assert!(rig.state().is_dirty(), "not safe before it is written");
    let (job, path) = (*job, path.clone());
    rig.tell(Event::Written {
        job,
        path,
        note: String::new(),
    });
    assert!(!rig.state().is_dirty());
    assert_eq!(rig.session.take_requests(), [Request::Quit]);
}

#[test]
fn cancelling_the_unsaved_dialog_stays_and_discarding_goes_on() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    rig.sent();
    rig.run(Command::Open("other.onnx".into()));
    rig.run(Command::CloseDialog);
    assert!(rig.sent().is_empty());
    rig.run(Command::Open("other.onnx".into()));
    rig.run(Command::DiscardAndGoOn);
    assert!(
        rig.sent()
            .iter()
            .any(|job| matches!(job, Job::Open { model, .. } if model.ends_with("other.onnx")))
    );
}

#[test]
fn a_saved_project_opens_without_loss() {
    let mut rig = Rig::opened();
    let demo = fixture::demo();
    rig.session.state.document = demo.document.clone();
    rig.session.state.document.distil = Some(DistilSettings::default());
    rig.session
        .state
        .mirror
        .add_cells(demo.mirror.all_cells().cloned());
    for point in demo.points() {
        rig.session.state.mirror.add_point((*point.point).clone());
    }
    rig.run(Command::SaveProjectAs("/tmp/x/p".into()));
    let sent = rig.sent();
    let Some(Job::WriteText { text, path, .. }) = sent.last() else {
        panic!("{sent:?}");
    };
    let (text, path) = (text.clone(), path.clone());

    let mut other = Rig::new();
    other.run(Command::Open(path.clone()));
    let Some(Job::ReadText { job, .. }) = other.sent().pop() else {
        panic!("not read");
    };
    other.tell(Event::Text { job, path, text });
    let Some(Job::Open {
        job,
        model: file,
        task,
    }) = other.sent().pop()
    else {
        panic!("not opened");
    };
    assert_eq!(file, files::absolute(model().path));
    assert_eq!(task, model().task_path.map(files::absolute));
    other.tell(Event::Opened {
        job,
        info: Box::new(model()),
    });
    other.tell(Event::Finished { job });
    let (old, new) = (rig.state(), other.state());
    assert_eq!(new.document, old.document);
    let cells = |state: &State| state.mirror.all_cells().cloned().collect::<Vec<_>>();
    assert_eq!(cells(new), cells(old));
    let points = |state: &State| {
        state
            .points()
            .iter()
            .map(|point| (point.name.clone(), (*point.point).clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(points(new), points(old));
    assert!(!new.is_dirty());
}

#[test]
fn a_project_of_another_model_keeps_the_plan_but_not_the_numbers() {
    let demo = fixture::demo();
    let file = crate::app::project::to_file(&demo, &PathBuf::from("/x/p.ron")).expect("a model");
    let mut other = fixture::opened();
    let mut changed = model();
    changed.sha256 = Some("ff".repeat(32));
    other.mirror.set_model(changed);
    let warnings = crate::app::project::lay_over(&mut other, file);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(other.document.plan, demo.document.plan);
    assert!(other.points().is_empty());
}
