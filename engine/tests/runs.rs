//! Runs of the window: interrupted ones are found again, taken up with the same bits, removed when nobody wants them; new ones begin where another
//! was at the end of an epoch.

use limbeck_engine::{
    compress::Precision,
    data::SplitName,
    jobs::{Command, Engine, Event, JobId, Keep, Point},
    recipe::{CheckpointEvery, Choice, Interrupted, QuantizeStep, Recipe, Step, interrupted_runs},
    train::{DistilSettings, TrainPoint},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

const EVERY: CheckpointEvery = CheckpointEvery {
    seconds: None,
    steps: Some(3),
};

/// The sample with a task of small splits.
fn prepare(folder: &Path) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    for file in [
        "fashion-resnet.onnx",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ] {
        fs::copy(sample.join(file), folder.join(file)).expect("copies");
    }
    let task = r#"Task(version: 1, name: "small",
        sources: {"test": Idx(images: "t10k-images-idx3-ubyte.gz", labels: "t10k-labels-idx1-ubyte.gz")},
        preprocess: (channels: gray, scale: 0.00392156862745098), classes: Count(10), splits: (
            holdout: Rows(from: "test", start: 0, count: 32),
            calibration: Rows(from: "test", start: 32, count: 32),
            search: Rows(from: "test", start: 64, count: 48),
            training: Rows(from: "test", start: 128, count: 96),
        ))"#;
    fs::write(folder.join("task.ron"), task).expect("writes");
}

fn recipe(folder: &Path) -> Arc<Recipe> {
    let mut recipe = Recipe::baseline(folder.join("fashion-resnet.onnx"), folder.join("task.ron"));
    recipe.steps = vec![
        Step::FoldBatchNorm,
        Step::Quantize(QuantizeStep {
            default: Choice::Set(Precision::Int4),
            layers: Vec::new(),
            scheme: Default::default(),
        }),
        Step::Distil(DistilSettings {
            epochs: 4,
            batch: 16,
            ..DistilSettings::default()
        }),
    ];
    Arc::new(recipe)
}

/// An engine with the sample open.
struct Window {
    engine: Engine,
    folder: PathBuf,
}

impl Window {
    fn open(folder: &Path) -> Self {
        let window = Self {
            engine: Engine::start(Arc::new(|| {})),
            folder: folder.to_owned(),
        };
        window.send(Command::Open {
            job: JobId(1),
            model: folder.join("fashion-resnet.onnx"),
            task: Some(folder.join("task.ron")),
        });
        window.until_end(1);
        window
    }

    fn send(&self, command: Command) {
        self.engine.commands.send(command).expect("it listens");
    }

    fn until(&self, last: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut seen = Vec::new();
        loop {
            let event = self.engine.events.recv_timeout(Duration::from_secs(120));
            let event = event.expect("more events");
            let done = last(&event);
            seen.push(event);
            if done {
                return seen;
            }
        }
    }

    fn until_end(&self, job: u64) -> Vec<Event> {
        self.until(|e| {
            matches!(e, Event::Finished { job: j } | Event::Cancelled { job: j } | Event::Failed { job: j, .. } if j.0 == job)
        })
    }

    fn under(&self) -> PathBuf {
        self.folder.join("runs")
    }

    fn run(&self, job: u64, keep: Keep) {
        self.send(Command::Run {
            job: JobId(job),
            recipe: recipe(&self.folder),
            split: SplitName::Holdout,
            keep: Some(keep),
        });
    }

    /// Carries another recipe out, without checkpoints.
    fn carry_out(&self, job: u64, recipe: &Recipe) -> Vec<Event> {
        self.send(Command::Run {
            job: JobId(job),
            recipe: Arc::new(recipe.clone()),
            split: SplitName::Holdout,
            keep: None,
        });
        self.until_end(job)
    }

    fn begin(&self, job: u64) {
        self.run(
            job,
            Keep::New {
                under: self.under(),
                every: EVERY,
            },
        );
    }

    fn take_up(&self, job: u64, found: &Interrupted) -> Vec<Event> {
        self.run(
            job,
            Keep::TakeUp {
                folder: found.folder.clone(),
                every: EVERY,
            },
        );
        self.until_end(job)
    }

    fn interrupted(&self, job: u64) -> Vec<Interrupted> {
        self.send(Command::FindRuns {
            job: JobId(job),
            under: vec![self.under(), self.folder.join("nowhere")],
        });
        let found = self.until_end(job).into_iter().find_map(|e| match e {
            Event::Interrupted { runs, .. } => Some(runs),
            _ => None,
        });
        found.expect("answered")
    }

    /// The curve until a step is trained, checkpoints behind it.
    fn until_step(&self, step: u64) -> Vec<TrainPoint> {
        let there = |e: &Event| matches!(e, Event::Curve { point, .. } if point.step >= step);
        curve(&self.until(there))
    }
}

fn curve(events: &[Event]) -> Vec<TrainPoint> {
    let point = |e: &Event| match e {
        Event::Curve { point, .. } => Some(*point),
        _ => None,
    };
    events.iter().filter_map(point).collect()
}

fn last_point(events: &[Event]) -> &Point {
    let point = events.iter().rev().find_map(|e| match e {
        Event::Point(point) if !point.partial => Some(&**point),
        _ => None,
    });
    point.unwrap_or_else(|| panic!("no point: {:?}", events.last()))
}

/// The process that is killed by the test below.
#[test]
#[ignore = "not a test by itself: the next test starts it as a process of its own and kills that"]
fn a_window_that_trains_until_it_is_killed() {
    let Some(folder) = std::env::var_os("LIMBECK_TEST_FOLDER") else {
        return;
    };
    let window = Window::open(Path::new(&folder));
    window.begin(2);
    window.until_step(8);
    window.until_end(2);
}

#[test]
fn a_killed_windows_run_is_found_at_the_next_start_and_taken_up_with_the_same_bits() {
    let dir = tempfile::tempdir().expect("folder");
    prepare(dir.path());
    let whole = Window::open(dir.path());
    whole.begin(2);
    let events = whole.until_end(2);
    let (whole_point, whole_curve) = (last_point(&events).clone(), curve(&events));
    assert!(!whole.under().exists(), "a complete run leaves nothing");
    drop(whole);

    let mut child = Process::new(std::env::current_exe().expect("known"))
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("a_window_that_trains_until_it_is_killed")
        .env("LIMBECK_TEST_FOLDER", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    let runs = dir.path().join("runs");
    let begun = Instant::now();
    let trained = |n: usize| {
        let folders = fs::read_dir(&runs).into_iter().flatten().flatten();
        let files = folders.flat_map(|f| fs::read_dir(f.path().join("checkpoints")));
        let names = files.flatten().flatten().map(|f| f.file_name());
        names
            .filter_map(|name| {
                name.to_string_lossy()
                    .strip_suffix(".checkpoint")?
                    .parse::<usize>()
                    .ok()
            })
            .any(|number| number >= n)
    };
    while !trained(3) {
        assert!(begun.elapsed() < Duration::from_secs(120), "no checkpoint");
        assert_eq!(child.try_wait().expect("known"), None, "it lives");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Its process lives: nobody else is offered the run.
    assert_eq!(interrupted_runs(&runs), []);
    child.kill().expect("killed");
    child.wait().expect("gone");

    let window = Window::open(dir.path());
    let found = window.interrupted(3);
    let [run] = found.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!(run.obstacle, None);
    assert_eq!(run.recipe.steps, recipe(dir.path()).steps);
    assert_eq!(run.recipe.model, recipe(dir.path()).model);
    assert_eq!(run.split, SplitName::Holdout);
    let (epoch, of) = run.epoch.expect("it had trained");
    assert!(epoch > 0.4 && epoch < 4.0 && of == 4, "{epoch} of {of}");
    let events = window.take_up(4, run);
    let point = last_point(&events);
    assert_eq!(point.model_sha256, whole_point.model_sha256);
    assert_eq!(point.metrics, whole_point.metrics);
    assert_eq!(point.accounts, whole_point.accounts);
    // The curve begins where the run did.
    let ends = |curve: &[TrainPoint]| -> Vec<_> {
        let judged = curve.iter().filter(|p| p.accuracy.is_some());
        judged
            .map(|p| (p.step, p.loss.to_bits(), p.accuracy))
            .collect()
    };
    let curve = curve(&events);
    assert_eq!(curve.first().map(|p| p.step), Some(1));
    assert_eq!(ends(&curve), ends(&whole_curve));
    assert!(!window.under().exists(), "complete: nothing is left");
}

#[test]
fn closing_and_opening_leave_a_run_cancelling_and_discarding_remove_it() {
    let dir = tempfile::tempdir().expect("folder");
    prepare(dir.path());
    let window = Window::open(dir.path());
    // Closed while it trains.
    window.begin(2);
    let before = window.until_step(7);
    assert_eq!(window.interrupted(3), [], "it is at work");
    drop(window);
    let window = Window::open(dir.path());
    let found = window.interrupted(2);
    assert_eq!(found.len(), 1, "{found:?}");
    // Another model is opened while it trains: it waits for its own to come back.
    window.run(
        3,
        Keep::TakeUp {
            folder: found[0].folder.clone(),
            every: EVERY,
        },
    );
    let after = window.until_step(12);
    // With the very speed that was measured then: it did not start over.
    assert_eq!(after[0], before[0]);
    window.send(Command::Open {
        job: JobId(4),
        model: dir.path().join("fashion-resnet.onnx"),
        task: None,
    });
    window.until_end(4);
    let found = window.interrupted(5);
    assert_eq!(found.len(), 1, "{found:?}");
    // A stranger's file stays where it is, whatever becomes of the run.
    let strange = found[0].folder.join("notes.txt");
    fs::write(&strange, "mine").expect("writes");
    window.send(Command::DiscardRun {
        job: JobId(6),
        folder: found[0].folder.clone(),
    });
    window.until_end(6);
    assert_eq!(window.interrupted(7), []);
    let left: Vec<_> = fs::read_dir(&found[0].folder)
        .expect("stays")
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    fs::remove_dir_all(window.under()).expect("removes");
    // Cancelled by hand: nothing is offered.
    window.begin(8);
    window.until_step(7);
    window.send(Command::Cancel(JobId(8)));
    window.until_end(8);
    assert!(!window.under().exists());
}

#[test]
fn a_paused_run_is_safe_and_other_data_are_refused_with_what_differs() {
    let dir = tempfile::tempdir().expect("folder");
    prepare(dir.path());
    let window = Window::open(dir.path());
    // No checkpoint would be due in an hour: the pause takes one.
    window.run(
        2,
        Keep::New {
            under: window.under(),
            every: CheckpointEvery {
                seconds: Some(3_600.0),
                steps: None,
            },
        },
    );
    window.until_step(2);
    window.send(Command::Pause(JobId(2)));
    window.until(|e| matches!(e, Event::Paused { .. }));
    drop(window);
    let found = interrupted_runs(&dir.path().join("runs"));
    assert!(found[0].epoch.is_some_and(|(epoch, _)| epoch > 0.0));
    // Other data under the same name.
    let task = dir.path().join("task.ron");
    let text = fs::read_to_string(&task).expect("reads");
    fs::write(&task, text.replace("start: 128", "start: 129")).expect("writes");
    let window = Window::open(dir.path());
    let found = window.interrupted(3);
    let why = found[0].obstacle.as_deref().unwrap_or_default();
    assert!(why.contains("other data"), "{why}");
    let events = window.take_up(4, &found[0]);
    let Some(Event::Failed { message, .. }) = events.last() else {
        panic!("{:?}", events.last());
    };
    assert!(message.contains("other data"), "{message}");
    assert_eq!(window.interrupted(5).len(), 1, "it is not thrown away");
    fs::write(&task, text).expect("writes");
    drop(window);
    let window = Window::open(dir.path());
    let found = window.interrupted(3);
    assert_eq!(found[0].obstacle, None);
    assert!(last_point(&window.take_up(4, &found[0])).metrics.top1.n == 32);
}

#[test]
fn closing_keeps_what_was_trained_to_the_last_mini_batch() {
    let dir = tempfile::tempdir().expect("folder");
    prepare(dir.path());
    let hourly = CheckpointEvery {
        seconds: Some(3_600.0),
        steps: None,
    };
    let window = Window::open(dir.path());
    let under = window.under();
    window.begin(2);
    let events = window.until_end(2);
    let (whole_point, whole_curve) = (last_point(&events).clone(), curve(&events));
    drop(window);

    let window = Window::open(dir.path());
    let keep = Keep::New {
        under: under.clone(),
        every: hourly,
    };
    window.run(2, keep);
    window.until_step(6);
    window.send(Command::Shutdown);
    let events = window.until(|e| matches!(e, Event::Ended));
    let cancelled = |e: &Event| matches!(e, Event::Cancelled { job } if job.0 == 2);
    assert!(events.iter().any(cancelled), "{events:?}");
    let last = curve(&events).last().map_or(6, |point| point.step);
    drop(window);

    let found = interrupted_runs(&under);
    let (epoch, _) = found[0].epoch.expect("it had trained");
    let steps = whole_curve[0].steps;
    let kept = (epoch * steps as f64 / 4.0).round() as u64;
    assert!(kept >= last && kept < steps, "{kept} kept, {last} trained");
    let window = Window::open(dir.path());
    let keep = Keep::TakeUp {
        folder: found[0].folder.clone(),
        every: hourly,
    };
    window.run(3, keep);
    let events = window.until_end(3);
    assert_eq!(last_point(&events).model_sha256, whole_point.model_sha256);
    assert_eq!(last_point(&events).metrics, whole_point.metrics);
    // Every step once.
    let steps: Vec<u64> = curve(&events).iter().map(|point| point.step).collect();
    assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
}

/// As on a full disk.
#[test]
fn a_checkpoint_that_fails_at_closing_is_told_of() {
    let dir = tempfile::tempdir().expect("folder");
    prepare(dir.path());
    let window = Window::open(dir.path());
    window.begin(2);
    window.until_step(6);
    // In one go: checkpoints are being written there.
    fs::rename(window.under(), dir.path().join("away")).expect("renames");
    fs::write(window.under(), "a file").expect("writes");
    window.send(Command::Shutdown);
    let events = window.until(|e| matches!(e, Event::Ended));
    let said = events.iter().find_map(|e| match e {
        Event::NotKept { message, .. } => Some(message.as_str()),
        _ => None,
    });
    assert!(said.is_some_and(|s| s.contains("is lost")), "{events:?}");
}

#[test]
fn a_folder_that_cannot_be_written_to_costs_the_checkpoints_and_not_the_run() {
    let dir = tempfile::tempdir().expect("folder");
    prepare(dir.path());
    fs::write(dir.path().join("runs"), "a file").expect("writes");
    let window = Window::open(dir.path());
    window.begin(2);
    let events = window.until_end(2);
    let said = events.iter().find_map(|e| match e {
        Event::Note { message, .. } => Some(message.as_str()),
        _ => None,
    });
    assert!(
        said.is_some_and(|s| s.contains("no checkpoints")),
        "{said:?}"
    );
    last_point(&events);
}

#[test]
fn a_new_run_begins_at_once_at_the_end_of_an_epoch_and_its_recipe_gives_the_same_bits() {
    let dir = tempfile::tempdir().expect("folder");
    prepare(dir.path());
    let whole = recipe(dir.path());
    let window = Window::open(dir.path());
    let events = window.carry_out(2, &whole);
    let kept = events.iter().rev().find_map(|e| match e {
        Event::Epochs { kept, .. } => Some(kept.clone()),
        _ => None,
    });
    let all = [1, 2, 3, 4].map(|epoch| (JobId(2), epoch));
    assert_eq!(kept.expect("told"), all);
    let mut further = whole.cut_at(2, 2).expect("it has two epochs");
    further.steps.push(Step::Distil(DistilSettings {
        epochs: 1,
        batch: 32,
        rate: 5e-4,
        temperature: 2.0,
        ..DistilSettings::default()
    }));
    further.validate().expect("a recipe like any other");
    let earlier = |events: &[Event]| {
        let said = |e: &Event| matches!(e, Event::Progress { detail, .. } if detail.contains("earlier training"));
        events.iter().any(said)
    };
    let events = window.carry_out(3, &further);
    assert!(!earlier(&events), "nothing is trained again");
    let point = last_point(&events).clone();
    assert_eq!(curve(&events).len(), 3, "96 samples by 32");
    drop(window);
    // Headless, or in a window that knows nothing of the first run.
    let window = Window::open(dir.path());
    let events = window.carry_out(2, &further);
    assert!(earlier(&events), "it has to train up to there");
    assert_eq!(curve(&events).len(), 3, "the last training's alone");
    let again = last_point(&events);
    assert_eq!(again.model_sha256, point.model_sha256);
    assert_eq!(again.metrics, point.metrics);
    assert_eq!(again.accounts, point.accounts);
    assert!(!again.partial && !again.recipe.is_partial());
}
