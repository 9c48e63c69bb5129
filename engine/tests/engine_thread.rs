//! The engine thread on the real sample: order of events, overtaking, what is kept on cancel, and that it gives what the
//! command line's pipeline gives, to the bit.

use limbeck_engine::{
    compress::{LayerSetting, Precision, PruneSchedule, QuantScheme, Ratio},
    data::SplitName,
    exec::CancelToken,
    formats::onnx,
    graph::TensorData,
    jobs::{Command, Engine, Event, ExportFormat, JobId, ModelInfo, Point},
    recipe::{
        self, Choice, PruneStep, QuantizeStep, Recipe, RunObserver, Session, Step, Unwatched,
    },
    sensitivity::{Direction, Tier},
    train::DistilSettings,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A folder with the sample and a task of small splits.
struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new(layout: &str) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
        for file in [
            "fashion-resnet.onnx",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ] {
            std::fs::copy(sample.join(file), dir.path().join(file)).expect("copies");
        }
        let part = |name: &str, start: usize, count: usize| {
            format!("{name}: Rows(from: \"test\", start: {start}, count: {count}),")
        };
        let task = format!(
            "Task(version: 1, name: \"small\", sources: {{\"test\": Idx(images: \"t10k-images-idx3-ubyte.gz\", labels: \"t10k-labels-idx1-ubyte.gz\")}},
            preprocess: (channels: gray, scale: 0.00392156862745098, layout: {layout}),
            classes: Count(10), metric: top1, splits: ({} {} {} {}))",
            part("holdout", 0, 32),
            part("calibration", 32, 32),
            part("search", 64, 64),
            part("training", 128, 96),
        );
        std::fs::write(dir.path().join("task.ron"), task).expect("writes");
        Self { dir }
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("fashion-resnet.onnx")
    }

    fn task(&self) -> PathBuf {
        self.dir.path().join("task.ron")
    }
}

struct Client {
    engine: Engine,
}

impl Client {
    fn new() -> Self {
        Self {
            engine: Engine::start(Arc::new(|| {})),
        }
    }

    fn send(&self, command: Command) {
        self.engine
            .commands
            .send(command)
            .expect("the engine listens");
    }

    fn until(&self, last: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut seen = Vec::new();
        loop {
            let event = self
                .engine
                .events
                .recv_timeout(Duration::from_secs(120))
                .unwrap_or_else(|_| panic!("no more events after {}", words(&seen)));
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

    fn open(&self, job: u64, model: PathBuf, task: Option<PathBuf>) -> (ModelInfo, Vec<Event>) {
        self.send(Command::Open {
            job: JobId(job),
            model,
            task,
        });
        let events = self.until_end(job);
        let info = events.iter().find_map(|e| match e {
            Event::Opened { info, .. } => Some((**info).clone()),
            _ => None,
        });
        (
            info.unwrap_or_else(|| panic!("opened: {}", words(&events))),
            events,
        )
    }
}

/// The events without progress, curves and cells after the first, one word each.
fn words(events: &[Event]) -> String {
    let mut told: Vec<String> = Vec::new();
    for event in events {
        let word = match event {
            Event::Opened { .. } => "opened".to_owned(),
            Event::Started { job, .. } => format!("start{}", job.0),
            Event::Cells { .. } => "cells".to_owned(),
            Event::Curve { .. } => "curve".to_owned(),
            Event::Point(p) if p.partial => format!("partial{}", p.job.0),
            Event::Point(p) => format!("point{}", p.job.0),
            Event::Finished { job } => format!("done{}", job.0),
            Event::Cancelled { job } => format!("cancel{}", job.0),
            Event::Failed { job, message } => format!("fail{}({message})", job.0),
            Event::Written { job, .. } => format!("written{}", job.0),
            Event::Stopped { job, .. } => format!("stopped{}", job.0),
            _ => continue,
        };
        if told.last() != Some(&word) {
            told.push(word);
        }
    }
    told.join(" ")
}

fn points(events: &[Event]) -> Vec<&Point> {
    events
        .iter()
        .filter_map(|e| match e {
            Event::Point(p) => Some(&**p),
            _ => None,
        })
        .collect()
}

fn recipe(folder: &Folder, training: bool) -> Recipe {
    let mut recipe = Recipe::baseline(folder.model(), folder.task());
    recipe.seed = 5;
    recipe.steps = vec![
        Step::FoldBatchNorm,
        Step::Prune(PruneStep {
            default: Choice::Set(Ratio(0.5)),
            layers: Vec::new(),
            pattern: Default::default(),
            schedule: None,
        }),
        Step::Quantize(QuantizeStep {
            default: Choice::Set(Precision::Int8),
            layers: Vec::new(),
            scheme: Default::default(),
        }),
    ];
    if training {
        recipe.steps.push(Step::Distil(DistilSettings {
            epochs: 1,
            batch: 16,
            ..DistilSettings::default()
        }));
    }
    recipe
}

#[test]
fn opening_tells_layers_then_proxies_then_the_baseline() {
    let folder = Folder::new("nchw");
    let client = Client::new();
    // The task is found beside the model.
    let (info, events) = client.open(1, folder.model(), None);
    assert_eq!(words(&events), "start1 opened cells point1 done1");
    assert_eq!(info.layers.len(), 22);
    assert!(
        info.runnable && info.warnings.is_empty(),
        "{:?}",
        info.warnings
    );
    assert_eq!(info.task_path, Some(folder.task()));
    let proxies = events.iter().find_map(|e| match e {
        Event::Cells { cells, .. } => Some(cells.clone()),
        _ => None,
    });
    let proxies = proxies.expect("cells");
    assert_eq!(proxies.len(), 22 * 6);
    assert!(proxies.iter().all(|c| c.tier == Tier::Proxy));
    let baseline = points(&events)[0];
    assert!(baseline.recipe.steps.is_empty());
    assert_eq!(
        (baseline.metrics.split, baseline.metrics.top1.n),
        (SplitName::Search, 64)
    );
}

#[test]
fn a_measurement_overtakes_training_and_all_of_it_is_what_the_pipeline_gives() {
    let folder = Folder::new("nchw");
    let client = Client::new();
    client.open(1, folder.model(), None);
    let whole = Arc::new(recipe(&folder, true));
    client.send(Command::Run {
        job: JobId(2),
        recipe: whole.clone(),
        split: SplitName::Search,
        keep: None,
    });
    let mut events = client.until(|e| matches!(e, Event::Curve { .. }));
    client.send(Command::Measure {
        job: JobId(3),
        recipe: whole.clone(),
        split: SplitName::Holdout,
        limit: Some(16),
    });
    events.extend(client.until_end(2));
    let told = words(&events);
    let place = |word: &str| {
        told.find(word)
            .unwrap_or_else(|| panic!("{word} in {told}"))
    };
    assert!(place("partial2") < place("curve"), "{told}");
    assert!(place("done3") < place("point2"), "{told}");
    assert!(place("point2") < place("done2"), "{told}");

    // The same by another session, as the command line does it.
    let session = Session::open(&folder.model(), Some(&folder.task())).expect("opens");
    let cancel = CancelToken::default();
    let mut watch = Unwatched;
    let mut again = |r: &Recipe, split, limit| {
        recipe::run(
            &session,
            r,
            split,
            limit,
            &mut watch as &mut dyn RunObserver,
            &cancel,
        )
        .expect("runs")
    };
    let points = points(&events);
    let find = |job: u64, partial: bool| {
        points
            .iter()
            .find(|p| p.job.0 == job && p.partial == partial)
            .expect("a point")
    };
    let untrained = whole.without_training();
    for (point, outcome) in [
        (find(2, false), again(&whole, SplitName::Search, None)),
        (find(2, true), again(&untrained, SplitName::Search, None)),
        (
            find(3, false),
            again(&untrained, SplitName::Holdout, Some(16)),
        ),
    ] {
        assert_eq!(point.model_sha256, outcome.model_sha256);
        assert_eq!(point.metrics, outcome.metrics);
        assert_eq!(point.sizes, outcome.sizes);
        assert_eq!(point.recipe.steps, outcome.recipe.steps);
    }
    // Three runs on the same upstream steps: calibrated once.
    assert_eq!(session.kept_calibrations(), 1);

    // What was measured is exported as it was, not made again.
    let path = folder.dir.path().join("out.onnx");
    client.send(Command::Export {
        job: JobId(4),
        recipe: whole.clone(),
        format: ExportFormat::Plan,
        path: path.clone(),
    });
    assert_eq!(words(&client.until_end(4)), "start4 written4 done4");
    assert_eq!(
        recipe::sha256_file(&path).expect("written"),
        find(2, false).model_sha256
    );
}

#[test]
fn a_cancelled_map_and_a_cancelled_run_keep_what_was_finished() {
    let folder = Folder::new("nchw");
    let client = Client::new();
    client.open(1, folder.model(), None);
    client.send(Command::Map {
        job: JobId(2),
        known: Vec::new(),
        limit: Some(16),
        direction: Direction::Alone,
    });
    let measured =
        |e: &Event| matches!(e, Event::Cells { cells, .. } if cells[0].tier == Tier::Measured);
    let mut events = client.until(measured);
    client.send(Command::Cancel(JobId(2)));
    events.extend(client.until_end(2));
    assert_eq!(words(&events), "start2 cells cancel2");
    let known: Vec<_> = events
        .iter()
        .filter_map(|e| match e {
            Event::Cells { cells, .. } => Some(cells.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    // What needs no evaluation comes for all layers at once.
    let of = |tier: Tier| known.iter().filter(move |c| c.tier == tier);
    assert_eq!(
        (of(Tier::Local).count(), of(Tier::Fisher).count()),
        (132, 132)
    );
    let count = of(Tier::Measured).count();
    assert!(count > 0 && count < 132, "{count}");
    assert!(of(Tier::Measured).all(|c| c.n == 16 && c.of == 16));

    // The other direction's cells come one by one, and what is known of this one is not taken for them.
    client.send(Command::Map {
        job: JobId(4),
        known: known.clone(),
        limit: Some(8),
        direction: Direction::AllBut,
    });
    let events = client.until(measured);
    assert_eq!(words(&events), "start4 cells");
    let Some(Event::Cells { cells, .. }) = events.last() else {
        panic!("cells were expected");
    };
    assert!(cells.iter().all(|c| c.direction == Direction::AllBut));
    client.send(Command::Cancel(JobId(4)));
    client.until_end(4);

    let mut long = recipe(&folder, true);
    if let Some(Step::Distil(settings)) = long.steps.last_mut() {
        settings.epochs = 1000;
    }
    client.send(Command::Run {
        job: JobId(3),
        recipe: Arc::new(long),
        split: SplitName::Search,
        keep: None,
    });
    let mut events = client.until(|e| matches!(e, Event::Curve { .. }));
    client.send(Command::Cancel(JobId(3)));
    events.extend(client.until_end(3));
    assert_eq!(words(&events), "start3 partial3 curve cancel3");
}

#[test]
fn a_cancelled_training_leaves_its_best_epoch_which_a_recipe_gives_again() {
    let folder = Folder::new("nchw");
    let long = long(&folder);
    let stopped = stopped_and_judged(&folder, long);
    assert!(matches!(stopped.steps.last(), Some(Step::Distil(_))));
}

#[test]
fn a_cancelled_training_keeps_the_steps_behind_it() {
    let folder = Folder::new("nchw");
    let mut long = long(&folder);
    let at = |is: fn(&Step) -> bool, steps: &[Step]| steps.iter().position(is).expect("there");
    let distil = at(|s| matches!(s, Step::Distil(_)), &long.steps);
    let training = long.steps.remove(distil);
    let prune = at(|s| matches!(s, Step::Prune(_)), &long.steps);
    if let Step::Prune(step) = &mut long.steps[prune] {
        step.schedule = Some(PruneSchedule::Cubic {
            begin: 0.0,
            end: 1.0,
            updates: 3,
        });
    }
    long.steps.insert(prune + 1, training);
    let behind = long.steps[prune + 2..].to_vec();
    assert!(!behind.is_empty());
    let stopped = stopped_and_judged(&folder, long);
    assert_eq!(stopped.steps[prune + 2..], behind);
}

fn long(folder: &Folder) -> Recipe {
    let mut long = recipe(folder, true);
    for step in &mut long.steps {
        match step {
            // Enough to hurt, so that training has something to win.
            Step::Prune(prune) => prune.default = Choice::Set(Ratio(0.85)),
            Step::Distil(settings) => settings.epochs = 1000,
            _ => {}
        }
    }
    long
}

/// Trains until an epoch is better than the first, cancels, and has what is left judged; the recipe of that.
fn stopped_and_judged(folder: &Folder, long: Recipe) -> Recipe {
    let client = Client::new();
    client.open(1, folder.model(), None);
    client.send(Command::Run {
        job: JobId(2),
        recipe: Arc::new(long),
        split: SplitName::Holdout,
        keep: None,
    });
    // The untrained one is judged on the run's split; its top-1 on search is the first epochs' to beat.
    let mut best = None;
    let mut events = Vec::new();
    loop {
        events.extend(
            client.until(|e| matches!(e, Event::Curve { point, .. } if point.accuracy.is_some())),
        );
        let Some(Event::Curve { point, .. }) = events.last() else {
            unreachable!("the last event is the one that was waited for");
        };
        let accuracy = point.accuracy.map(|a| a.value);
        if best.is_some_and(|b| accuracy > Some(b)) {
            break;
        }
        best = best.or(accuracy);
    }
    client.send(Command::Cancel(JobId(2)));
    events.extend(client.until_end(2));
    assert_eq!(words(&events), "start2 partial2 curve stopped2 cancel2");
    let stopped = events.iter().find_map(|e| match e {
        Event::Stopped { recipe, .. } => Some(recipe.clone()),
        _ => None,
    });
    let stopped = stopped.expect("told above");
    assert!(stopped.is_partial());

    // Judged without training again…
    client.send(Command::Run {
        job: JobId(3),
        recipe: stopped.clone(),
        split: SplitName::Holdout,
        keep: None,
    });
    let events = client.until_end(3);
    assert_eq!(words(&events), "start3 partial3 done3");
    let point = points(&events)[0].clone();
    // …and the same to the bit when it is trained anew, elsewhere.
    let session = Session::open(&folder.model(), Some(&folder.task())).expect("opens");
    let again = recipe::run(
        &session,
        &stopped,
        SplitName::Holdout,
        None,
        &mut Unwatched,
        &CancelToken::default(),
    )
    .expect("runs");
    assert_eq!(point.model_sha256, again.model_sha256);
    assert_eq!(point.metrics, again.metrics);
    assert_eq!(point.accounts, again.accounts);
    Recipe::clone(&stopped)
}

#[test]
fn what_cannot_be_measured_is_shown_with_the_reason() {
    let folder = Folder::new("nhwc");
    let client = Client::new();
    let (info, events) = client.open(1, folder.model(), None);
    assert_eq!(words(&events), "start1 opened cells done1");
    assert!(!info.runnable);
    assert!(info.warnings[0].contains("28×28×1"), "{:?}", info.warnings);
    client.send(Command::Measure {
        job: JobId(2),
        recipe: Arc::new(recipe(&folder, false)),
        split: SplitName::Search,
        limit: None,
    });
    assert!(words(&client.until_end(2)).contains("fail2(The model's input"));

    // A weight that is no number.
    let mut graph = onnx::read(&folder.model()).expect("reads");
    let weight = graph.layers()[3].weight;
    let shape = graph
        .value(weight)
        .data
        .as_ref()
        .expect("data")
        .shape
        .clone();
    let name = graph.value(weight).name.clone();
    let values = vec![f32::NAN; shape.iter().product()];
    graph.set_data(weight, TensorData::from_f32(&shape, &values));
    let path = folder.dir.path().join("nan.onnx");
    onnx::write(&graph, &path).expect("writes");
    std::fs::remove_file(folder.task()).expect("removes");
    let (info, _) = client.open(3, path, None);
    assert!(!info.runnable);
    let told = info.warnings.join(" ");
    assert!(told.contains(&name) && info.data.is_none(), "{told}");

    // No model at all: the engine lives on.
    let garbage = folder.dir.path().join("garbage.onnx");
    std::fs::write(&garbage, [0xff; 100]).expect("writes");
    client.send(Command::Open {
        job: JobId(4),
        model: garbage,
        task: None,
    });
    assert!(words(&client.until_end(4)).contains("garbage.onnx"));
    let (info, _) = client.open(5, folder.model(), None);
    assert!(info.runnable && info.data.is_none());
}

#[test]
fn how_a_plan_would_run_is_foreseen_without_data() {
    let folder = Folder::new("nchw");
    std::fs::remove_file(folder.task()).expect("removes");
    let client = Client::new();
    let (info, _) = client.open(1, folder.model(), None);
    let target = limbeck_engine::target::find("onnxruntime-cpu").expect("known");
    let ask = |job: u64, precision| {
        client.send(Command::Foresee {
            job: JobId(job),
            layers: info
                .layers
                .iter()
                .map(|layer| (layer.id.clone(), precision))
                .collect(),
            scheme: target.defaults(),
            target: target.clone(),
        });
        let foreseen = client.until_end(job).into_iter().find_map(|e| match e {
            Event::Foreseen { execution, .. } => Some(execution),
            _ => None,
        });
        foreseen.expect("foreseen")
    };
    let execution = ask(2, Precision::Int8).expect("quantised");
    assert!(execution.in_integers() > 0, "{execution:?}");
    assert_eq!(execution.target, "onnxruntime-cpu");
    let layers = info.layers.iter();
    let named = |id| execution.nodes.iter().any(|node| node.name == id);
    assert!(layers.map(|layer| layer.id.clone()).all(named));
    assert_eq!(ask(3, Precision::Fp16), None, "no codes, nothing to say");
}

#[test]
fn what_a_layer_reads_is_counted_once_and_a_newer_question_replaces_an_older() {
    let folder = Folder::new("nchw");
    let client = Client::new();
    let (info, _) = client.open(1, folder.model(), Some(folder.task()));
    let ask = |job: u64| {
        client.send(Command::InspectInput {
            job: JobId(job),
            layer: info.layers[4].id.clone(),
            setting: LayerSetting {
                precision: Precision::Int8,
                sparsity: Ratio(0.0),
            },
            scheme: QuantScheme::default(),
        });
    };
    let told = |events: Vec<Event>| {
        events.into_iter().find_map(|e| match e {
            Event::InputInspected { inspection, .. } => Some(inspection),
            _ => None,
        })
    };
    // The first may have ended before the second came; of the second something is always told.
    ask(2);
    ask(3);
    let read = told(client.until_end(3)).expect("counted");
    // Of the calibration split, which holds fewer than the scheme's samples: 16 channels of 28×28.
    assert_eq!((read.samples, read.count), (32, 32 * 16 * 28 * 28));
    assert!(read.codes.is_some());
    ask(4);
    assert_eq!(told(client.until_end(4)), Some(read), "kept, so the same");
    // Without data it is refused, in words.
    std::fs::remove_file(folder.task()).expect("removes");
    client.open(5, folder.model(), None);
    ask(6);
    let told = words(&client.until_end(6));
    assert!(
        told.contains("fail6") && told.contains("open a task"),
        "{told}"
    );
}
