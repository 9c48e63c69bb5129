//! The runtime without any model: what overtakes what, what is cancelled, what survives.

use super::{
    emit::Ticker,
    queue::{Lane, TestBody, Work},
    watching::Watching,
    worker::JobContext,
    *,
};
use crate::{
    compress::{Precision, Ratio},
    recipe::{
        self, Choice, PruneStep, QuantizeStep, RunObserver, RunOutcome, Session, Step, Unwatched,
    },
    train::DistilSettings,
};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

/// The two threads with a door for test bodies.
struct Rig {
    queue: Arc<Queue>,
    emitter: Emitter,
    events: Receiver<Event>,
    wakes: Arc<AtomicUsize>,
    commands: Option<Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
}

impl Rig {
    fn new() -> Self {
        let (outgoing, events) = unbounded();
        let (commands, incoming) = unbounded();
        let wakes = Arc::new(AtomicUsize::new(0));
        let count = wakes.clone();
        let waker: Waker = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let emitter = Emitter::new(outgoing, waker);
        let queue = Arc::new(Queue::default());
        let worker = Worker::new(queue.clone(), emitter.clone());
        let router = {
            let (queue, emitter) = (queue.clone(), emitter.clone());
            std::thread::spawn(move || queue.route(&incoming, &emitter))
        };
        Self {
            queue,
            emitter,
            events,
            wakes,
            commands: Some(commands),
            threads: vec![router, std::thread::spawn(move || worker.work())],
        }
    }

    fn push(&self, job: u64, lane: Lane, body: impl FnOnce(&Worker, &JobContext) + Send + 'static) {
        let body: TestBody = Box::new(body);
        self.queue.push(
            Work::Test {
                job: JobId(job),
                lane,
                body,
            },
            &self.emitter,
        );
    }

    fn send(&self, command: Command) {
        self.commands
            .as_ref()
            .expect("open")
            .send(command)
            .expect("router listens");
    }

    /// Events up to and including the first that `last` accepts.
    fn until(&self, last: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut seen = Vec::new();
        loop {
            let event = self
                .events
                .recv_timeout(Duration::from_secs(20))
                .unwrap_or_else(|_| panic!("no more events after {seen:?}"));
            let done = last(&event);
            seen.push(event);
            if done {
                return seen;
            }
        }
    }

    fn until_end(&self, job: u64) -> Vec<Event> {
        self.until(|e| ending(e) == Some(JobId(job)))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.commands = None;
        for thread in self.threads.drain(..) {
            thread.join().expect("the runtime survives its jobs");
        }
    }
}

fn ending(event: &Event) -> Option<JobId> {
    match event {
        Event::Finished { job } | Event::Cancelled { job } | Event::Failed { job, .. } => {
            Some(*job)
        }
        _ => None,
    }
}

/// One word an event.
fn story(events: &[Event]) -> String {
    events
        .iter()
        .filter_map(|e| match e {
            Event::Started { job, .. } => Some(format!("start{}", job.0)),
            Event::Finished { job } => Some(format!("done{}", job.0)),
            Event::Cancelled { job } => Some(format!("cancel{}", job.0)),
            Event::Failed { job, .. } => Some(format!("fail{}", job.0)),
            Event::Paused { job } => Some(format!("pause{}", job.0)),
            Event::Resumed { job } => Some(format!("resume{}", job.0)),
            Event::Text { job, .. } => Some(format!("text{}", job.0)),
            Event::Written { job, .. } => Some(format!("written{}", job.0)),
            Event::Log { message } => Some(message.clone()),
            _ => None,
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn log(worker: &Worker, message: &str) {
    worker.emitter().send(Event::Log {
        message: message.to_owned(),
    });
}

/// Mini-batches of a millisecond until it is cancelled.
fn endless(worker: &Worker, context: &JobContext) {
    while !context.cancel.is_cancelled() {
        std::thread::sleep(Duration::from_millis(1));
        worker.poll(context, None);
    }
}

#[test]
fn an_interactive_job_overtakes_a_batch_job_between_two_mini_batches() {
    let rig = Rig::new();
    rig.push(1, Lane::Batch, endless);
    rig.until(|e| matches!(e, Event::Started { .. }));
    rig.push(3, Lane::Batch, |_, _| {});
    rig.push(2, Lane::Interactive, |w, _| log(w, "quick"));
    assert_eq!(story(&rig.until_end(2)), "start2 quick done2");
    rig.send(Command::Cancel(JobId(1)));
    assert_eq!(story(&rig.until_end(3)), "cancel1 start3 done3");
}

#[test]
fn a_paused_job_stands_still_while_others_are_answered_and_goes_on_when_told() {
    let rig = Rig::new();
    let batches = Arc::new(AtomicUsize::new(0));
    let count = batches.clone();
    let away = Arc::new(std::sync::Mutex::new(Duration::ZERO));
    let told = away.clone();
    rig.push(1, Lane::Batch, move |worker, context| {
        let mut ticker = Ticker::new(context.job);
        while !context.cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(1));
            count.fetch_add(1, Ordering::SeqCst);
            worker.poll(context, Some(&mut ticker));
        }
        *told.lock().expect("whole") = ticker.away();
    });
    rig.until(|e| matches!(e, Event::Started { .. }));
    rig.send(Command::Pause(JobId(1)));
    rig.until(|e| matches!(e, Event::Paused { .. }));
    let stood = batches.load(Ordering::SeqCst);
    rig.send(Command::Run {
        job: JobId(2),
        recipe: Arc::new(Recipe::baseline("m.onnx".into(), "task.ron".into())),
        split: SplitName::Search,
        keep: None,
    });
    rig.push(3, Lane::Interactive, |w, _| log(w, "quick"));
    assert_eq!(story(&rig.until_end(3)), "start3 quick done3");
    // What sensitivity asks for is a batch job; a second run waits.
    rig.push(4, Lane::Batch, |w, _| log(w, "map"));
    assert_eq!(story(&rig.until_end(4)), "start4 map done4");
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(batches.load(Ordering::SeqCst), stood);
    rig.send(Command::Resume(JobId(1)));
    let resumed = rig.until(|e| matches!(e, Event::Resumed { .. }));
    assert_eq!(story(&resumed), "resume1");
    while batches.load(Ordering::SeqCst) < stood + 5 {
        std::thread::sleep(Duration::from_millis(1));
    }
    rig.send(Command::Cancel(JobId(1)));
    assert_eq!(story(&rig.until_end(2)), "cancel1 start2 fail2");
    // The pause is none of its time.
    assert!(*away.lock().expect("whole") >= Duration::from_millis(30));
}

#[test]
fn nothing_that_trains_begins_during_a_pause() {
    let plain = Recipe::baseline("m.onnx".into(), "task.ron".into());
    let mut trained = plain.clone();
    trained.steps.push(Step::Distil(DistilSettings::default()));
    for (recipe, fits) in [(plain, true), (trained, false)] {
        let recipe = Arc::new(recipe);
        let export = Command::Export {
            job: JobId(1),
            recipe: recipe.clone(),
            format: ExportFormat::Plan,
            path: "out.onnx".into(),
        };
        let confirm = Command::Confirm {
            job: JobId(2),
            recipe,
            split: SplitName::Search,
            limit: None,
            library: None,
        };
        for command in [export, confirm] {
            assert_eq!(Work::Command(command).fits_a_pause(), fits);
        }
    }
}

#[test]
fn a_paused_job_is_cancelled_at_once_by_hand_by_an_opening_and_by_the_end() {
    let rig = Rig::new();
    let pause = |job| {
        rig.push(job, Lane::Batch, endless);
        rig.until(|e| matches!(e, Event::Started { .. }));
        rig.send(Command::Pause(JobId(job)));
        rig.until(|e| matches!(e, Event::Paused { .. }));
    };
    pause(1);
    rig.send(Command::Cancel(JobId(1)));
    assert_eq!(story(&rig.until_end(1)), "cancel1");
    pause(2);
    rig.send(Command::Open {
        job: JobId(3),
        model: "nowhere/m.onnx".into(),
        task: None,
    });
    assert_eq!(story(&rig.until_end(2)), "cancel2");
    rig.until_end(3);
    pause(4);
    // Dropping the rig closes the channel and waits for the threads.
}

/// The dialog that waits for it would else say "being looked for" for as long as a training takes.
#[test]
fn looking_for_the_runtime_does_not_wait_for_a_batch_job() {
    let rig = Rig::new();
    rig.push(1, Lane::Batch, endless);
    rig.until(|e| matches!(e, Event::Started { .. }));
    rig.send(Command::FindRuntime {
        job: JobId(2),
        library: Some("/nowhere/libonnxruntime.so".into()),
    });
    assert_eq!(story(&rig.until_end(2)), "done2");
    rig.send(Command::Cancel(JobId(1)));
    assert_eq!(story(&rig.until_end(1)), "cancel1");
}

#[test]
fn cancelling_acts_at_once_and_keeps_what_is_finished() {
    let rig = Rig::new();
    rig.push(1, Lane::Batch, |worker, context| {
        log(worker, "cell");
        endless(worker, context);
    });
    rig.push(2, Lane::Batch, |_, _| {});
    rig.until(|e| matches!(e, Event::Log { .. }));
    // One that waits goes without ever having run.
    rig.send(Command::Cancel(JobId(2)));
    assert_eq!(story(&rig.until_end(2)), "cancel2");
    let asked = Instant::now();
    rig.send(Command::Cancel(JobId(1)));
    rig.until_end(1);
    // A generous bound: the figure is 100 ms, this box may be busy.
    assert!(asked.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_panic_becomes_an_event_and_the_next_job_runs() {
    let rig = Rig::new();
    rig.push(1, Lane::Batch, |worker, context| {
        // Nested: the interactive job's panic is not the batch job's.
        std::thread::sleep(Duration::from_millis(20));
        worker.poll(context, None);
        log(worker, "still here");
    });
    rig.push(2, Lane::Interactive, |_, _| {
        panic!("index {} out of range", 7)
    });
    rig.push(3, Lane::Batch, |_, _| panic!("again"));
    rig.push(4, Lane::Batch, |_, _| {});
    let events = rig.until_end(4);
    let told = story(&events);
    assert!(
        told.contains("fail2") && told.contains("still here done1"),
        "{told}"
    );
    assert!(told.ends_with("fail3 start4 done4"), "{told}");
    let message = events.iter().find_map(|e| match e {
        Event::Failed { job, message } if job.0 == 2 => Some(message.clone()),
        _ => None,
    });
    assert!(message.expect("failed").contains("index 7 out of range"));
}

fn measure(job: u64) -> Command {
    Command::Measure {
        job: JobId(job),
        recipe: Arc::new(Recipe::baseline("m".into(), "t".into())),
        split: SplitName::Search,
        limit: None,
    }
}

#[test]
fn of_many_measurements_only_the_latest_is_made() {
    let rig = Rig::new();
    rig.push(1, Lane::Interactive, |_, _| {
        std::thread::sleep(Duration::from_millis(150))
    });
    rig.until(|e| matches!(e, Event::Started { .. }));
    for job in 2..=4 {
        rig.send(measure(job));
    }
    let events = rig.until_end(4);
    let told = story(&events);
    assert!(
        told.contains("cancel2") && told.contains("cancel3"),
        "{told}"
    );
    // No model is open: the one that does run says so.
    assert!(told.ends_with("fail4"), "{told}");
    let Some(Event::Failed { message, .. }) = events.last() else {
        panic!("{told}");
    };
    assert!(message.contains("no model is open"), "{message}");
}

#[test]
fn opening_drops_work_on_the_old_model_but_not_files() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("note.txt");
    rig.push(1, Lane::Batch, endless);
    rig.until(|e| matches!(e, Event::Started { .. }));
    rig.push(2, Lane::Batch, |_, _| {});
    rig.send(Command::Open {
        job: JobId(3),
        model: dir.path().join("missing.onnx"),
        task: None,
    });
    rig.send(measure(4));
    rig.send(Command::WriteText {
        job: JobId(5),
        path: path.clone(),
        text: "kept".into(),
    });
    let told = story(&rig.until_end(4));
    let place = |word: &str| {
        told.find(word)
            .unwrap_or_else(|| panic!("{word} in {told}"))
    };
    assert!(place("cancel2") < place("fail3"), "{told}");
    assert!(place("cancel1") < place("fail3"), "{told}");
    // Meant for the new model: must not be tried on the old one.
    assert!(place("fail3") < place("fail4"), "{told}");
    if !told.contains("done5") {
        rig.until_end(5);
    }
    assert_eq!(std::fs::read_to_string(&path).expect("written"), "kept");
}

#[test]
fn files_are_written_and_read_and_errors_name_them() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("x.ron");
    rig.send(Command::WriteText {
        job: JobId(1),
        path: path.clone(),
        text: "hello".into(),
    });
    rig.send(Command::ReadText {
        job: JobId(2),
        path: path.clone(),
    });
    let events = rig.until_end(2);
    assert_eq!(story(&events), "written1 done1 text2 done2");
    rig.send(Command::ReadText {
        job: JobId(3),
        path: dir.path().join("no.ron"),
    });
    rig.send(Command::WriteText {
        job: JobId(4),
        path: dir.path().join("no/such/folder.ron"),
        text: String::new(),
    });
    let failed: Vec<String> = rig
        .until_end(4)
        .into_iter()
        .filter_map(|e| match e {
            Event::Failed { message, .. } => Some(message),
            _ => None,
        })
        .collect();
    assert!(failed[0].contains("no.ron"), "{failed:?}");
    assert!(failed[1].contains("folder does not exist"), "{failed:?}");
}

#[test]
fn wake_ups_are_not_repeated_while_events_wait() {
    let rig = Rig::new();
    rig.push(1, Lane::Batch, |worker, _| {
        for _ in 0..1000 {
            log(worker, "x");
        }
    });
    while rig.events.len() < 1002 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(rig.wakes.load(Ordering::SeqCst), 1);
    rig.until_end(1);
    rig.push(2, Lane::Batch, |_, _| {});
    rig.until_end(2);
    assert!(rig.wakes.load(Ordering::SeqCst) >= 2);
}

#[test]
fn a_second_shutdown_does_not_wait_for_a_checkpoint() {
    let rig = Rig::new();
    let (told, ending) = unbounded();
    rig.push(1, Lane::Batch, move |worker, context| {
        worker.set_keeping(context.job, true);
        log(worker, "keeps");
        while !worker.is_to_end(context.job) {
            std::thread::yield_now();
        }
        told.send(context.cancel.is_cancelled()).expect("heard");
        // A checkpoint that takes long, but less than the end would wait for it.
        let begun = Instant::now();
        while !context.cancel.is_cancelled() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        let words = ["finished", "cancelled"][usize::from(context.cancel.is_cancelled())];
        log(worker, words);
    });
    rig.until(|e| matches!(e, Event::Log { .. }));
    rig.send(Command::Shutdown);
    assert_eq!(ending.recv(), Ok(false), "the first lets it take one");
    rig.send(Command::Shutdown);
    let events = rig.until(|e| matches!(e, Event::Log { .. }));
    let last = events.last();
    assert!(
        matches!(last, Some(Event::Log { message }) if message == "cancelled"),
        "{last:?}"
    );
}

#[test]
fn shutting_down_cancels_work_and_still_writes_files() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("saved.ron");
    let engine = Engine::start(Arc::new(|| {}));
    for job in 0..20 {
        let command = Command::WriteText {
            job: JobId(job),
            path: path.clone(),
            text: job.to_string(),
        };
        engine.commands.send(command).expect("listens");
    }
    drop(engine);
    assert_eq!(std::fs::read_to_string(&path).expect("saved"), "19");
}

/// A run that says each mini-batch of its training aloud, and at some of them has just been asked for a measurement.
struct Disturbed<'a> {
    inner: Watching<'a>,
    queue: Arc<Queue>,
    measure: Arc<Recipe>,
    asked_at: &'static [u64],
    paused_at: u64,
    batches: u64,
}

impl RunObserver for Disturbed<'_> {
    fn progress(&mut self, done: u64, total: u64, detail: &str) {
        if detail.starts_with("epoch") {
            self.batches += 1;
            let worker = self.inner.worker;
            log(worker, &format!("batch{}", self.batches));
            let paused = self.paused_at == self.batches;
            if paused || self.asked_at.contains(&self.batches) {
                let (recipe, queue) = (self.measure.clone(), self.queue.clone());
                let run = self.inner.context.job;
                self.queue.set_paused(run, paused);
                let body: TestBody = Box::new(move |worker, context| {
                    let done = worker.run(context, &recipe, SplitName::Holdout, Some(16));
                    log(worker, if done.is_ok() { "measured" } else { "lost" });
                    queue.set_paused(run, false);
                });
                let job = JobId(10 + self.batches);
                // A batch job comes between only where the run is paused.
                let lane = if paused {
                    Lane::Batch
                } else {
                    Lane::Interactive
                };
                let work = Work::Test { job, lane, body };
                self.queue.push(work, worker.emitter());
            }
        }
        self.inner.progress(done, total, detail);
    }

    fn wants_before_training(&self) -> bool {
        true
    }

    fn before_training(&mut self, outcome: RunOutcome) {
        self.inner.before_training(outcome);
    }
}

#[test]
fn a_measurement_comes_between_two_mini_batches_and_the_training_loses_nothing() {
    let dir = tempfile::tempdir().expect("folder");
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    let [model, images, labels] = [
        "fashion-resnet.onnx",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ];
    for file in [model, images, labels] {
        std::fs::copy(sample.join(file), dir.path().join(file)).expect("copies");
    }
    let rows = |name: &str, start: usize, count: usize| {
        format!("{name}: Rows(from: \"test\", start: {start}, count: {count}),")
    };
    let task = format!(
        "Task(version: 1, name: \"small\", sources: {{\"test\": Idx(images: \"{images}\", labels: \"{labels}\")}},
        preprocess: (channels: gray, scale: 0.00392156862745098, layout: nchw),
        classes: Count(10), metric: top1, splits: ({} {} {} {}))",
        rows("holdout", 0, 16),
        rows("calibration", 16, 16),
        rows("search", 32, 32),
        rows("training", 64, 96),
    );
    let (model, path) = (dir.path().join(model), dir.path().join("task.ron"));
    std::fs::write(&path, task).expect("writes");
    let open = || Arc::new(Session::open(&model, Some(&path)).expect("opens"));

    let steps = |precision, training| {
        let mut recipe = Recipe::baseline(model.clone(), path.clone());
        recipe.steps = vec![
            Step::FoldBatchNorm,
            Step::Prune(PruneStep {
                default: Choice::Set(Ratio(0.25)),
                layers: Vec::new(),
                pattern: Default::default(),
                schedule: None,
            }),
            Step::Quantize(QuantizeStep {
                default: Choice::Set(precision),
                layers: Vec::new(),
                scheme: Default::default(),
            }),
        ];
        if training {
            recipe.steps.push(Step::Distil(DistilSettings {
                epochs: 2,
                batch: 16,
                ..DistilSettings::default()
            }));
        }
        Arc::new(recipe)
    };
    let whole = steps(Precision::Int8, true);
    let split = SplitName::Search;
    let cancel = crate::exec::CancelToken::default();
    let alone = recipe::run(&open(), &whole, split, None, &mut Unwatched, &cancel).expect("runs");

    let rig = Rig::new();
    let (queue, session, measure) = (rig.queue.clone(), open(), steps(Precision::Int4, false));
    rig.push(1, Lane::Batch, move |worker, context| {
        worker.set_session(context, session.clone());
        let mut watch = Disturbed {
            inner: Watching {
                worker,
                context,
                ticker: Ticker::new(context.job),
            },
            queue,
            measure,
            asked_at: &[2, 7],
            paused_at: 5,
            batches: 0,
        };
        let cancel = &context.cancel;
        let outcome = recipe::run(&session, &whole, split, None, &mut watch, cancel).expect("runs");
        log(worker, &outcome.model_sha256);
        log(worker, &format!("{:?}", outcome.metrics));
    });
    let events = rig.until_end(1);
    let told = story(&events);
    // At the very mini-batch at which it was asked for, and done before the next.
    for words in [
        "batch1 batch2 start12 measured done12 batch3",
        "batch4 batch5 pause1 start15 measured done15 resume1 batch6",
        "batch6 batch7 start17 measured done17 batch8",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let measured = events
        .iter()
        .filter(|e| matches!(e, Event::Point(p) if p.job.0 > 10))
        .count();
    assert_eq!(measured, 3);
    // To the bit what an undisturbed training gives.
    assert!(told.contains(&alone.model_sha256), "{told}");
    assert!(told.contains(&format!("{:?}", alone.metrics)));
}
