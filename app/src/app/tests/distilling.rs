//! Distillation: what is asked of the engine, what its end and its cancelling leave, and what is said of the plan meanwhile.

use super::{Rig, answer};
use crate::{
    commands::{Command, Preset},
    state::{Dialog, JobKind, JobState},
};
use limbeck_engine::{
    compress::Precision,
    data::SplitName,
    jobs::{Command as Job, Event, JobId},
    recipe::{Goal, Recipe, Step},
    train::{DistilSettings, TrainPoint},
};
use std::sync::Arc;

/// Answers all measurements, until none is asked for.
fn finish(rig: &mut Rig) {
    for _ in 0..5 {
        for sent in rig.sent() {
            answer(rig, &sent, 0.92, 150_000);
        }
    }
}

/// The distillation that was just started.
fn started(rig: &mut Rig) -> (JobId, Arc<Recipe>) {
    let run = rig.sent().into_iter().find_map(|sent| match sent {
        Job::Run { job, recipe, .. } => Some((job, recipe)),
        _ => None,
    });
    run.expect("a distillation is sent")
}

#[test]
fn distillation_joins_the_plan_and_its_recipe() {
    let mut rig = Rig::opened();
    let settings = DistilSettings {
        epochs: 1,
        ..DistilSettings::default()
    };
    assert!(
        Command::StartDistil(settings.clone())
            .enabled(rig.state())
            .is_err(),
        "an untouched plan has nothing to distil"
    );
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    finish(&mut rig);
    rig.run(Command::StartDistil(settings.clone()));
    let sent = rig.sent();
    // The original on all that the epochs are judged on comes with it.
    let [
        Job::Run { recipe, split, .. },
        Job::Measure {
            recipe: original,
            split: SplitName::Search,
            limit: None,
            ..
        },
    ] = sent.as_slice()
    else {
        panic!("{sent:?}");
    };
    assert!(original.steps.is_empty());
    assert_eq!(*split, SplitName::Holdout);
    assert_eq!(recipe.steps.last(), Some(&Step::Distil(settings)));
    assert!(rig.state().is_busy(JobKind::Distil));
    answer(&mut rig, &sent[0], 0.931, 150_000);
    let point = rig
        .state()
        .plan_point(SplitName::Holdout)
        .expect("measured");
    assert!(point.is_distilled());
    assert_eq!(rig.state().view.split, SplitName::Holdout, "it is seen");
    // Restoring an undistilled point takes it out again, and undo brings it back.
    rig.run(Command::SetDistil(None));
    assert!(rig.state().document.distil.is_none());
    rig.run(Command::Undo);
    assert!(rig.state().document.distil.is_some());
}

#[test]
fn a_cancelled_distillation_has_its_best_epoch_judged() {
    let mut rig = Rig::opened();
    rig.run(Command::SetGoals(vec![Goal::DropPoints(1.0)]));
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    rig.sent();
    rig.run(Command::StartDistil(DistilSettings::default()));
    let (job, recipe) = started(&mut rig);
    let mut stopped = (*recipe).clone();
    if let Some(Step::Distil(settings)) = stopped.steps.last_mut() {
        settings.stop_after = Some(1);
    }
    rig.tell(Event::Stopped {
        job,
        recipe: stopped.clone().into(),
    });
    rig.tell(Event::Cancelled { job });
    let sent = rig.sent();
    let [Job::Run { recipe, split, .. }] = sent.as_slice() else {
        panic!("{sent:?}");
    };
    assert_eq!((&**recipe, *split), (&stopped, SplitName::Holdout));
    assert!(!rig.state().is_busy(JobKind::Distil));
    let notice = rig.state().notices.last().expect("told");
    assert!(
        notice
            .text
            .starts_with("Training cancelled. Its best epoch, 1 of "),
        "{}",
        notice.text
    );
    answer(&mut rig, &sent[0], 0.93, 150_000);
    let point = rig.state().points().last().expect("judged");
    assert!(point.is_distilled() && point.point.recipe.is_partial());
    assert_eq!(point.name, "Distil 1 partial");
    assert_eq!(rig.state().mirror.next_distil(), "Distil 2");
    let verdict = rig.state().verdict().expect("goals are set");
    assert!(verdict.text.ends_with("holdout, partial"), "{verdict:?}");
    // Training once more is meant to reach its end: the dialog starts from the plan, not from the stop.
    let id = point.id;
    rig.run(Command::RestorePoint(id));
    let distil = rig.state().document.distil.clone().expect("restored");
    assert_eq!(distil.stop_after, Some(1));
}

#[test]
fn a_distillation_is_paused_and_goes_on() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    rig.run(Command::StartDistil(DistilSettings::default()));
    let (job, _) = started(&mut rig);
    let (pause, resume) = (Command::PauseJob(job), Command::ResumeJob(job));
    assert!(pause.enabled(rig.state()).is_err(), "it waits");
    rig.tell(Event::Started {
        job,
        title: String::new(),
    });
    assert!(Command::palette(rig.state()).contains(&pause));
    assert!(resume.enabled(rig.state()).is_err());
    rig.run(pause.clone());
    let sent = rig.sent();
    assert!(
        matches!(sent.as_slice(), [Job::Pause(id)] if *id == job),
        "{sent:?}"
    );
    rig.tell(Event::Paused { job });
    assert_eq!(rig.state().job(job).expect("known").state, JobState::Paused);
    assert!(rig.state().is_busy(JobKind::Distil), "no second one");
    assert!(!rig.session.is_idle());
    assert!(pause.enabled(rig.state()).is_err());
    assert!(Command::palette(rig.state()).contains(&resume));
    assert!(Command::CancelJob(job).enabled(rig.state()).is_ok());
    rig.run(resume.clone());
    let sent = rig.sent();
    assert!(
        matches!(sent.as_slice(), [Job::Resume(id)] if *id == job),
        "{sent:?}"
    );
    // What the engine does meanwhile may take a while.
    assert_eq!(rig.state().job(job).expect("known").state, JobState::Queued);
    rig.tell(Event::Resumed { job });
    assert_eq!(
        rig.state().job(job).expect("known").state,
        JobState::Running
    );
    assert!(pause.enabled(rig.state()).is_ok() && resume.enabled(rig.state()).is_err());
}

#[test]
fn a_distillation_cancelled_before_it_won_anything_says_so() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    rig.run(Command::StartDistil(DistilSettings::default()));
    let (job, _) = started(&mut rig);
    rig.tell(Event::Cancelled { job });
    let notice = rig.state().notices.last().expect("told");
    assert!(
        notice.text.contains("only the point from before"),
        "{}",
        notice.text
    );
    assert!(
        !rig.sent()
            .iter()
            .any(|sent| matches!(sent, Job::Run { .. }))
    );
    // Its number is taken; the next one's point is called as the run is.
    finish(&mut rig);
    rig.run(Command::StartDistil(DistilSettings {
        epochs: 3,
        ..DistilSettings::default()
    }));
    let (job, recipe) = started(&mut rig);
    let title = rig.state().job(job).expect("runs").title.clone();
    assert_eq!(title, "Distil 2");
    let run = Job::Run {
        job,
        recipe,
        split: SplitName::Holdout,
        keep: None,
    };
    answer(&mut rig, &run, 0.931, 150_000);
    let point = rig.state().plan_point(SplitName::Holdout);
    assert_eq!(point.map(|point| point.name.as_str()), Some("Distil 2"));
}

#[test]
fn a_point_from_before_the_training_is_no_verdict_on_a_distilled_plan() {
    let mut rig = Rig::opened();
    rig.run(Command::SetGoals(vec![Goal::DropPoints(1.0)]));
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    finish(&mut rig);
    rig.run(Command::MeasurePlan(SplitName::Holdout));
    let sent = rig.sent();
    answer(&mut rig, &sent[0], 0.90, 150_000);
    finish(&mut rig);
    let text = |rig: &Rig| rig.state().verdict().expect("goals are set").text.clone();
    assert!(text(&rig).starts_with("Fail"), "{}", text(&rig));
    rig.run(Command::StartDistil(DistilSettings::default()));
    assert_eq!(text(&rig), "Not distilled yet");
    let details = &rig.state().verdict().expect("goals are set").details;
    assert!(details.contains("Before distilling"), "{details}");
    assert!(rig.state().plan_point(SplitName::Holdout).is_none());
    assert!(rig.state().undistilled_point(SplitName::Holdout).is_some());
    let (job, recipe) = started(&mut rig);
    let run = Job::Run {
        job,
        recipe,
        split: SplitName::Holdout,
        keep: None,
    };
    answer(&mut rig, &run, 0.932, 150_000);
    assert!(text(&rig).starts_with("Pass"), "{}", text(&rig));
    // A second one with other settings leaves the verdict until it is done, and says so.
    let before = text(&rig);
    rig.run(Command::StartDistil(DistilSettings {
        epochs: 9,
        ..DistilSettings::default()
    }));
    assert_eq!(text(&rig), format!("{before}, other settings"));
    let details = &rig.state().verdict().expect("goals are set").details;
    assert!(details.contains("other settings"), "{details}");
}

#[test]
fn the_original_waits_until_the_plan_is_measured() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    let sent = rig.sent();
    rig.run(Command::StartDistil(DistilSettings::default()));
    started(&mut rig);
    // A newer measurement would have thrown the plan's own out.
    assert!(rig.sent().is_empty());
    answer(&mut rig, &sent[0], 0.92, 150_000);
    let wanted: Vec<Option<usize>> = rig
        .sent()
        .iter()
        .filter_map(|sent| match sent {
            Job::Measure { recipe, limit, .. } if recipe.steps.is_empty() => Some(*limit),
            _ => None,
        })
        .collect();
    // On the edits' samples first; then on all that the epochs are judged on.
    assert_eq!(wanted, [Some(1_000)]);
}

#[test]
fn a_new_run_begins_with_an_earlier_ones_plan_and_settings() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    finish(&mut rig);
    let settings = DistilSettings {
        epochs: 3,
        ..DistilSettings::default()
    };
    rig.run(Command::StartDistil(settings.clone()));
    let (job, recipe) = started(&mut rig);
    let again = Command::NewRun(job);
    assert_eq!(
        again.enabled(rig.state()),
        Err("This run's settings are not known".into()),
        "no curve yet"
    );
    let point = |epoch: u64| TrainPoint {
        step: epoch * 10,
        steps: 30,
        epoch: epoch as f64,
        loss: 0.3,
        rate: 1e-3,
        samples_per_second: 900.0,
        accuracy: None,
        rollbacks: 0,
    };
    rig.tell(Event::Curve {
        job,
        point: point(1),
    });
    assert_eq!(
        again.enabled(rig.state()),
        Err("A distillation is running".into())
    );
    let run = Job::Run {
        job,
        recipe,
        split: SplitName::Holdout,
        keep: None,
    };
    answer(&mut rig, &run, 0.931, 150_000);
    // Another plan and another run of it: its curves stand out, until the earlier one's are chosen.
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    finish(&mut rig);
    rig.run(Command::StartDistil(DistilSettings::default()));
    let (second, recipe) = started(&mut rig);
    rig.tell(Event::Curve {
        job: second,
        point: point(1),
    });
    let shown = |rig: &Rig| rig.state().curves().map(|run| run.job);
    assert_eq!(shown(&rig), Some(second));
    rig.run(Command::SelectRun(job));
    assert_eq!(shown(&rig), Some(job));
    let run = Job::Run {
        job: second,
        recipe,
        split: SplitName::Holdout,
        keep: None,
    };
    answer(&mut rig, &run, 0.931, 200_000);
    rig.run(again);
    let state = rig.state();
    assert_eq!(state.document.distil, Some(settings));
    let conv = &state.layers()[0].id;
    assert_eq!(state.document.setting(conv).precision, Precision::Int4);
    assert_eq!(state.view.dialog, Some(Dialog::Distil));
    // One step of undo, like bringing a point's plan back.
    rig.run(Command::CloseDialog);
    rig.run(Command::Undo);
    let state = rig.state();
    assert_eq!(
        state.document.setting(&state.layers()[0].id).precision,
        Precision::Int8
    );
    // The next one takes over from what was chosen.
    rig.run(Command::StartDistil(DistilSettings::default()));
    let (third, _) = started(&mut rig);
    rig.tell(Event::Curve {
        job: third,
        point: point(1),
    });
    assert_eq!(shown(&rig), Some(third));
}

#[test]
fn a_new_run_goes_on_from_the_end_of_an_epoch_and_its_recipe_has_both_trainings() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int4)));
    finish(&mut rig);
    let settings = DistilSettings {
        epochs: 3,
        patience: Some(2),
        ..DistilSettings::default()
    };
    rig.run(Command::StartDistil(settings.clone()));
    let (job, recipe) = started(&mut rig);
    let end = |epoch: u64| TrainPoint {
        step: epoch * 10,
        steps: 30,
        epoch: epoch as f64,
        loss: 0.3,
        rate: 1e-3,
        samples_per_second: 900.0,
        accuracy: Some(limbeck_engine::eval::Estimate {
            value: 0.9,
            n: 100,
            ci: [0.85, 0.95],
        }),
        rollbacks: 0,
    };
    for epoch in [1, 2] {
        rig.tell(Event::Curve {
            job,
            point: end(epoch),
        });
    }
    let from = |epoch| Command::NewRunFrom { run: job, epoch };
    assert_eq!(
        from(1).enabled(rig.state()),
        Err("A distillation is running".into())
    );
    // The engine keeps the second only.
    rig.tell(Event::Epochs {
        job,
        kept: vec![(job, 2)],
    });
    let kept = |epoch| rig.state().mirror.runs.is_kept(job, epoch);
    assert_eq!([kept(1), kept(2)], [false, true]);
    let run = Job::Run {
        job,
        recipe: recipe.clone(),
        split: SplitName::Holdout,
        keep: None,
    };
    answer(&mut rig, &run, 0.931, 150_000);
    assert_eq!(
        from(3).enabled(rig.state()),
        Err("Epoch 3 has not ended yet".into())
    );
    rig.run(from(1));
    assert_eq!(rig.state().view.dialog, Some(Dialog::Distil));
    let document = &rig.state().document;
    let first = DistilSettings {
        stop_after: Some(1),
        keep_last: true,
        patience: None,
        ..settings.clone()
    };
    assert_eq!(document.trained, std::slice::from_ref(&first));
    assert_eq!(document.distil, Some(settings.clone()));
    // Changed, and started: the recipe replays both.
    let second = DistilSettings {
        epochs: 2,
        rate: 1e-4,
        ..settings
    };
    rig.run(Command::StartDistil(second.clone()));
    let (next, further) = started(&mut rig);
    let [before @ .., Step::Distil(a), Step::Distil(b)] = further.steps.as_slice() else {
        panic!("{:?}", further.steps);
    };
    assert_eq!((a, b), (&first, &second));
    assert_eq!(before, &recipe.steps[..recipe.steps.len() - 1]);
    further.validate().expect("a recipe like any other");
    // Its epochs have a place on the plot at once, and its point a name of its own.
    assert!(rig.state().mirror.runs.sizes(next).is_some());
    let run = Job::Run {
        job: next,
        recipe: further,
        split: SplitName::Holdout,
        keep: None,
    };
    answer(&mut rig, &run, 0.94, 150_000);
    let point = rig
        .state()
        .plan_point(SplitName::Holdout)
        .expect("it is the plan's");
    assert_eq!(point.name, "Distil 2");
    assert!(!point.point.recipe.is_partial());
    // Back to training the plan itself; without a distillation nothing is left of the first either.
    rig.run(Command::TrainFromPlan);
    assert!(rig.state().document.trained.is_empty());
    rig.run(Command::Undo);
    assert_eq!(rig.state().document.trained, [first]);
    rig.run(Command::SetDistil(None));
    assert!(rig.state().document.trained.is_empty());
}
