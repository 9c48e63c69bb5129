//! The main job through the real application state and the real engine thread, without a window: open → edit → measure →
//! distil → export; then the exported recipe is run as the command line runs it, and must give the same numbers and bytes.
//! Splits are cut small so that it takes seconds.

use limbeck_app::{
    app::{Session, Settings},
    commands::{Command, Preset},
    state::{JobKind, JobState, NoticeKind},
};
use limbeck_engine::{
    compress::{Codebooks, Pattern, Precision, PruneSchedule, Ratio},
    data::SplitName,
    exec::CancelToken,
    jobs::ExportFormat,
    recipe::{self, Choice, ClusterStep, Goal, RecipeFile, Shrinking, Step, Unwatched},
    sensitivity::Tier,
    train::DistilSettings,
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const TASK: &str = r#"Task(
    version: 1,
    name: "Small Fashion-MNIST",
    sources: {
        "test": Idx(images: "t10k-images-idx3-ubyte.gz", labels: "t10k-labels-idx1-ubyte.gz"),
    },
    preprocess: (channels: gray, scale: 0.00392156862745098, layout: nchw),
    classes: Count(10),
    splits: (
        holdout: Rows(from: "test", start: 0, count: 200),
        calibration: Rows(from: "test", start: 1000, count: 64),
        search: Rows(from: "test", start: 2000, count: 128),
        training: Rows(from: "test", start: 3000, count: 96),
    ),
)"#;

/// The sample model and its test images beside a task with small splits.
fn work_folder() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    let folder = tempfile::tempdir().expect("a folder for the test");
    for name in [
        "fashion-resnet.onnx",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ] {
        fs::copy(sample.join(name), folder.path().join(name)).expect("the sample is there");
    }
    let task = folder.path().join("task.ron");
    fs::write(&task, TASK).expect("written");
    let model = folder.path().join("fashion-resnet.onnx");
    (folder, model, task)
}

/// Takes events in until no job waits or runs; a failure fails the test with the engine's words.
fn settle(session: &mut Session) {
    let give_up = Instant::now() + Duration::from_secs(1_200);
    while !session.is_idle() {
        assert!(
            Instant::now() < give_up,
            "jobs: {:?}",
            session.state.mirror.jobs
        );
        session.wait(Duration::from_millis(200));
    }
    for job in &session.state.mirror.jobs {
        assert!(!matches!(job.state, JobState::Failed(_)), "{job:?}");
    }
    let errors: Vec<_> = session
        .state
        .notices
        .iter()
        .filter(|notice| notice.kind == NoticeKind::Error)
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn what_the_window_measured_is_what_its_recipe_gives_headless() {
    let (folder, model, task) = work_folder();
    let mut session = Session::start(Arc::new(|| {}));
    session.settings = Settings {
        edit_limit: Some(100),
        map_limit: Some(32),
        map_at_once: false,
    };

    // Open: layers, proxy cells and the original's accuracy.
    session.run(Command::OpenModel {
        model: model.clone(),
        task: Some(task),
    });
    settle(&mut session);
    let layers = session.state.mirror.layer_ids().to_vec();
    assert_eq!(layers.len(), 22);
    assert_eq!(
        session
            .state
            .cell(0, limbeck_engine::sensitivity::Candidate::Int4)
            .map(|c| c.tier),
        Some(Tier::Proxy)
    );
    let original = session.state.baseline(SplitName::Search).expect("measured");
    assert!(original.point.metrics.top1.value > 0.85);

    // Edit: each edit is measured by itself, on the search split.
    session.run(Command::SetGoals(vec![
        Goal::DropPoints(5.0),
        Goal::StoredKilobytes(500.0),
    ]));
    session.run(Command::ApplyPreset(Preset::Int4Inside));
    settle(&mut session);
    for percent in [10, 25, 40] {
        session.run(Command::SetRatio {
            layers: layers[13..20].to_vec(),
            ratio: Ratio(percent as f32 / 100.0),
        });
    }
    session.run(Command::CommitEdit);
    session.run(Command::SetPrecision {
        layers: vec![layers[0].clone()],
        precision: Precision::Fp16,
    });
    settle(&mut session);
    let edited = session
        .state
        .plan_point(SplitName::Search)
        .expect("measured");
    assert_eq!(edited.samples(), 100);
    assert!(edited.point.sizes.stored < session.state.model().expect("open").sizes.stored);
    let prediction = session.state.prediction().expect("predicted");
    let (predicted, stored) = (
        prediction.stored.0 as f64,
        edited.point.sizes.stored.0 as f64,
    );
    assert!(
        (predicted / stored - 1.0).abs() < 0.15,
        "{predicted} against {stored}"
    );

    // Measure on the holdout: the verdict follows.
    session.run(Command::MeasurePlan(SplitName::Holdout));
    settle(&mut session);
    let measured = session
        .state
        .plan_point(SplitName::Holdout)
        .expect("measured");
    assert_eq!(measured.samples(), 200);
    let before_distilling = measured.point.clone();
    assert!(session.state.verdict().is_some_and(|v| v.verdict.is_some()));

    // Export without distillation: the bytes of the measured model.
    let plain = folder.path().join("plain.onnx");
    session.run(Command::ExportModel {
        format: ExportFormat::Plan,
        path: plain.clone(),
        confirm: false,
    });
    settle(&mut session);
    let bytes = fs::read(&plain).expect("exported");
    assert_eq!(recipe::sha256(&bytes), before_distilling.model_sha256);

    // Distil.
    session.run(Command::StartDistil(DistilSettings {
        epochs: 1,
        batch: 32,
        samples: Some(64),
        ..DistilSettings::default()
    }));
    assert!(session.state.is_busy(JobKind::Distil));
    settle(&mut session);
    assert!(session.state.curves().is_some_and(|c| !c.points.is_empty()));
    let distilled = session
        .state
        .plan_point(SplitName::Holdout)
        .expect("distilled");
    assert!(distilled.is_distilled());
    let distilled = distilled.point.clone();

    // Export the recipe and the model.
    let recipe_path = folder.path().join("recipes/plan.ron");
    fs::create_dir_all(recipe_path.parent().expect("has one")).expect("made");
    let exported = folder.path().join("distilled.onnx");
    session.run(Command::ExportRecipe(recipe_path.clone()));
    session.run(Command::ExportModel {
        format: ExportFormat::Plan,
        path: exported.clone(),
        confirm: false,
    });
    settle(&mut session);
    let exported = fs::read(&exported).expect("exported");
    assert_eq!(recipe::sha256(&exported), distilled.model_sha256);

    // The project, saved and opened again, has the same points.
    let project = folder.path().join("work.limbeck.ron");
    session.run(Command::SaveProjectAs(project.clone()));
    settle(&mut session);
    let mut again = Session::start(Arc::new(|| {}));
    again.settings = session.settings;
    again.run(Command::Open(project));
    settle(&mut again);
    assert_eq!(again.state.document, session.state.document);
    for point in session.state.points() {
        assert!(
            again
                .state
                .points()
                .iter()
                .any(|p| p.point.recipe.steps == point.point.recipe.steps
                    && p.point.metrics == point.point.metrics),
            "{} is lost",
            point.name
        );
    }
    drop(again);
    drop(session);

    // Headless: the same numbers and the same bytes.
    let file = RecipeFile::read(&recipe_path).expect("a good recipe");
    assert!(file.recipe.model.is_relative());
    let (headless, recipe) = recipe::open_recipe(&file, None, None).expect("opens");
    let outcome = replayed(&headless, &recipe);
    assert_eq!(outcome.metrics, distilled.metrics);
    assert_eq!(outcome.sizes, distilled.sizes);
    assert_eq!(outcome.accounts, distilled.accounts);
    assert_eq!(outcome.model_sha256, distilled.model_sha256);
    assert!(*outcome.bytes == exported, "the exported files differ");
    // And without the training step, those of the plan before it.
    let outcome = replayed(&headless, &recipe.without_training());
    assert_eq!(outcome.metrics, before_distilling.metrics);
    assert!(*outcome.bytes == bytes, "the exported files differ");
}

/// Residual blocks out, weights pruned in groups while training, values shared: all through the window's commands.
#[test]
fn a_plan_that_shrinks_in_every_way_is_what_its_recipe_gives_headless() {
    let (folder, model, task) = work_folder();
    let mut session = Session::start(Arc::new(|| {}));
    session.settings = Settings {
        edit_limit: Some(100),
        map_limit: Some(32),
        map_at_once: false,
    };
    session.run(Command::OpenModel {
        model,
        task: Some(task),
    });
    settle(&mut session);
    let blocks = session.state.model().expect("opened").blocks.clone();
    let block = blocks.last().expect("a residual network");
    session.run(Command::SetShrinking {
        channels: false,
        shrinking: Box::new(Shrinking {
            pattern: Pattern::Groups(4),
            cluster: Some(ClusterStep {
                default: Choice::Set(16),
                layers: Vec::new(),
                codebooks: Codebooks::PerLayer,
            }),
            ..Shrinking::default()
        }),
    });
    session.run(Command::TakeBlock {
        layers: block.layers.clone(),
        out: true,
    });
    session.run(Command::SetRatio {
        layers: session.state.mirror.layer_ids().to_vec(),
        ratio: Ratio(0.45),
    });
    session.run(Command::CommitEdit);
    settle(&mut session);
    let plan = session.state.document.plan.clone();
    let whole = plan.values().all(|s| (s.sparsity.0 * 4.0).fract() == 0.0);
    assert!(!plan.is_empty() && whole, "{plan:?}");
    // The size said beforehand is near the measured one.
    let predicted = *session.state.prediction().expect("predicted");
    let measured = session.state.plan_point(SplitName::Search);
    let sizes = measured.expect("measured").point.sizes;
    let off = predicted.stored.0 as f64 / sizes.stored.0 as f64 - 1.0;
    assert!(off.abs() < 0.05, "{predicted:?} against {sizes:?}");
    let macs = sizes.macs.expect("known") as f64;
    let said = predicted.macs.expect("known") as f64;
    assert!((said / macs - 1.0).abs() < 0.02, "{said} against {macs}");

    let schedule = PruneSchedule::Cubic {
        begin: 0.0,
        end: 1.0,
        updates: 3,
    };
    session.run(Command::StartDistilWith {
        settings: DistilSettings {
            epochs: 2,
            batch: 32,
            schedule: limbeck_engine::train::Schedule::OneCycle,
            feature_weight: 0.5,
            attention_weight: 0.5,
            ..DistilSettings::default()
        },
        schedule: Some(schedule),
    });
    settle(&mut session);
    let own = session.state.plan_point(SplitName::Holdout);
    let own = own.expect("distilled and judged").point.clone();
    let path = folder.path().join("plan.ron");
    session.run(Command::ExportRecipe(path.clone()));
    settle(&mut session);
    let file = RecipeFile::read(&path).expect("a sound recipe");
    let names: Vec<String> = file.recipe.steps.iter().map(word).collect();
    assert_eq!(
        names,
        ["PruneBlocks", "FoldBatchNorm", "Prune", "Distil", "Cluster"]
    );
    let (headless, recipe) = recipe::open_recipe(&file, None, None).expect("opens");
    let run = replayed(&headless, &recipe);
    assert_eq!(run.metrics, own.metrics);
    assert_eq!(run.accounts, own.accounts);
    assert_eq!(run.model_sha256, own.model_sha256);
}

/// What the command line would give, on the holdout split.
fn replayed(session: &recipe::Session, recipe: &recipe::Recipe) -> recipe::RunOutcome {
    let (split, cancel) = (SplitName::Holdout, CancelToken::default());
    recipe::run(session, recipe, split, None, &mut Unwatched, &cancel).expect("runs")
}

fn word(step: &Step) -> String {
    let text = format!("{step:?}");
    text.split(['(', ' ']).next().unwrap_or_default().to_owned()
}

#[test]
fn the_map_is_measured_cell_by_cell_and_cancelling_keeps_what_is_done() {
    let (_folder, model, task) = work_folder();
    let mut session = Session::start(Arc::new(|| {}));
    session.settings = Settings {
        edit_limit: Some(32),
        map_limit: Some(16),
        map_at_once: true,
    };
    session.run(Command::OpenModel {
        model,
        task: Some(task),
    });
    let give_up = Instant::now() + Duration::from_secs(600);
    while session.state.map_progress().0 < 3 {
        assert!(Instant::now() < give_up);
        session.wait(Duration::from_millis(200));
    }
    session.run(Command::CancelAll);
    settle(&mut session);
    let (measured, all) = session.state.map_progress();
    assert!(measured >= 3 && measured < all);
    // A model that does not exist: told, and everything else stays.
    session.run(Command::OpenModel {
        model: "no/such/model.onnx".into(),
        task: None,
    });
    while !session.is_idle() {
        session.wait(Duration::from_millis(200));
    }
    let notice = session.state.notices.last().expect("told");
    assert!(notice.text.contains("model.onnx"), "{}", notice.text);
    assert_eq!(session.state.map_progress().0, measured);
    assert_eq!(session.state.layers().len(), 22);
}
