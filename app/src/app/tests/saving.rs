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
fn an_edit_made_while_the_project_is_written_is_asked_about() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    rig.run(Command::Quit);
    rig.run(Command::SaveProject);
    rig.run(Command::SaveProjectAs("p".into()));
    let Some(Job::WriteText { job, path, .. }) = rig.sent().pop() else {
        panic!("nothing was written");
    };
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    rig.tell(Event::Written {
        job,
        path,
        note: String::new(),
    });
    assert!(rig.session.take_requests().is_empty());
    let asked = Some(Dialog::Unsaved(AfterSave::Quit));
    assert_eq!(rig.state().view.dialog, asked);
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

/// The fixture's model as a large one: shown before its files are read.
fn unread() -> Box<limbeck_engine::jobs::ModelInfo> {
    let mut info = model();
    info.sha256 = None;
    Box::new(info)
}

fn open_job(rig: &mut Rig) -> limbeck_engine::jobs::JobId {
    rig.sent()
        .into_iter()
        .rev()
        .find_map(|sent| match sent {
            Job::Open { job, .. } => Some(job),
            _ => None,
        })
        .expect("something is opened")
}

#[test]
fn saving_a_large_model_waits_for_its_hash() {
    let mut rig = Rig::new();
    rig.run(Command::OpenModel {
        model: "m.onnx".into(),
        task: None,
    });
    let job = open_job(&mut rig);
    rig.tell(Event::Opened {
        job,
        info: unread(),
    });
    rig.tell(Event::Finished { job });
    rig.sent();
    let writes = |rig: &mut Rig| -> Vec<String> {
        let texts = rig.sent().into_iter().filter_map(|sent| match sent {
            Job::WriteText { text, .. } => Some(text),
            _ => None,
        });
        texts.collect()
    };
    rig.run(Command::SaveProjectAs("p".into()));
    assert!(writes(&mut rig).is_empty(), "its hash is not known");
    let said = |rig: &Rig, words: &str| rig.state().notices.iter().any(|n| n.text.contains(words));
    assert!(said(&rig, "as soon as the model's files are read"));
    // Of a model that was open before.
    let older = limbeck_engine::jobs::JobId(job.0 + 1_000);
    let sha256 = Ok("cd".repeat(32));
    rig.tell(Event::Hashed { job: older, sha256 });
    assert!(writes(&mut rig).is_empty());
    let sha256 = Ok("ab".repeat(32));
    rig.tell(Event::Hashed { job, sha256 });
    let texts = writes(&mut rig);
    assert!(
        texts.len() == 1 && texts[0].contains(&"ab".repeat(32)),
        "{texts:?}"
    );
}

#[test]
fn the_numbers_of_a_large_models_project_wait_for_its_hash() {
    let demo = fixture::demo();
    let path = PathBuf::from("/x/p.limbeck.ron");
    let file = crate::app::project::to_file(&demo, &path).expect("a model");
    let text = file.to_ron().expect("writes");
    for (hash, kept) in [("00", true), ("ff", false)] {
        let mut rig = Rig::new();
        rig.run(Command::Open(path.clone()));
        let Some(Job::ReadText { job, path, .. }) = rig.sent().pop() else {
            panic!("not read");
        };
        let text = text.clone();
        rig.tell(Event::Text { job, path, text });
        let job = open_job(&mut rig);
        rig.tell(Event::Opened {
            job,
            info: unread(),
        });
        assert_eq!(rig.state().document.plan, demo.document.plan, "at once");
        assert!(
            rig.state().points().is_empty(),
            "of which model is not known"
        );
        let sha256 = Ok(hash.repeat(32));
        rig.tell(Event::Hashed { job, sha256 });
        assert_eq!(!rig.state().points().is_empty(), kept);
        assert!(!rig.state().is_dirty());
    }
}

#[test]
fn where_a_large_model_cannot_be_hashed_saving_fails_and_says_so() {
    let mut rig = Rig::new();
    rig.run(Command::OpenModel {
        model: "m.onnx".into(),
        task: None,
    });
    let job = open_job(&mut rig);
    rig.tell(Event::Opened {
        job,
        info: unread(),
    });
    rig.tell(Event::Finished { job });
    // One save waits for the hash, and is answered.
    rig.run(Command::SaveProjectAs("p".into()));
    let sha256 = Err("weights.bin: gone".to_owned());
    rig.tell(Event::Hashed { job, sha256 });
    let failures = |rig: &Rig| -> Vec<String> {
        let notices = rig.state().notices.iter();
        let all = notices.filter(|n| n.text.contains("p.limbeck.ron is not saved"));
        all.map(|n| n.text.clone()).collect()
    };
    let first = failures(&rig);
    assert_eq!(first.len(), 1, "{:?}", rig.state().notices);
    for part in ["weights.bin: gone", "Open the model again"] {
        assert!(first[0].contains(part), "{first:?}");
    }
    // The next does not wait for what never comes.
    rig.session.state.notices.clear();
    rig.run(Command::SaveProjectAs("p".into()));
    assert_eq!(failures(&rig), first);
    assert_eq!(rig.state().notices.len(), 1, "no promise beside it");
    let written = |sent: &Job| matches!(sent, Job::WriteText { .. });
    assert!(!rig.sent().iter().any(written));
}
