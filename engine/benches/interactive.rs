//! From a changed layer to a measured point: the time between `Command::Measure` and `Event::Point` on 1,000 images of the sample, alone
//! and while a distillation runs that it has to overtake.
//! `cargo bench -p limbeck_engine --bench interactive`

use limbeck_engine::{
    compress::Precision,
    data::SplitName,
    graph::LayerId,
    jobs::{Command, Engine, Event, JobId},
    recipe::{Choice, QuantizeStep, Recipe, Rule, Step},
    train::DistilSettings,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const IMAGES: usize = 1_000;
const ROUNDS: usize = 15;

fn files() -> [PathBuf; 2] {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    ["fashion-resnet.onnx", "task.ron"].map(|name| folder.join(name))
}

/// Everything at int8 but `changed` layers, which are at fp16.
fn recipe(changed: &[LayerId], distil: bool) -> Arc<Recipe> {
    let [model, task] = files();
    let mut recipe = Recipe::baseline(model, task);
    recipe.steps = vec![
        Step::FoldBatchNorm,
        Step::Quantize(QuantizeStep {
            default: Choice::Set(Precision::Int8),
            layers: changed
                .iter()
                .map(|layer| Rule(layer.0.to_string(), Choice::Set(Precision::Fp16)))
                .collect(),
            scheme: Default::default(),
        }),
    ];
    if distil {
        recipe.steps.push(Step::Distil(DistilSettings {
            epochs: 50,
            ..DistilSettings::default()
        }));
    }
    Arc::new(recipe)
}

fn until<T>(engine: &Engine, mut found: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        let event = engine.events.recv_timeout(Duration::from_secs(300));
        let event = event.expect("the engine answers");
        if let Event::Failed { message, .. } = &event {
            panic!("{message}");
        }
        if let Some(found) = found(event) {
            return found;
        }
    }
}

/// Milliseconds from the command to the point, another layer changed each time; `beside`: one more, so that no plan of another
/// series is met again.
fn rounds(engine: &Engine, layers: &[LayerId], first: u64, beside: Option<usize>) -> Vec<f64> {
    (0..ROUNDS)
        .map(|round| {
            let job = JobId(first + round as u64);
            let mut changed = vec![layers[round].clone()];
            changed.extend(beside.map(|by| layers[(round + by) % layers.len()].clone()));
            let recipe = recipe(&changed, false);
            let asked = Instant::now();
            engine
                .commands
                .send(Command::Measure {
                    job,
                    recipe,
                    split: SplitName::Search,
                    limit: Some(IMAGES),
                })
                .expect("the engine listens");
            until(engine, |event| match event {
                Event::Point(point) if point.job == job => {
                    assert_eq!(point.metrics.top1.n, IMAGES as u64);
                    Some(asked.elapsed().as_secs_f64() * 1e3)
                }
                _ => None,
            })
        })
        .collect()
}

/// Seconds of processor time that this process has used, on all threads; NaN where /proc does not tell.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |at: usize| after_name.split_whitespace().nth(at)?.parse::<f64>().ok();
    // User and system time, in hundredths of a second.
    ticks(11)
        .zip(ticks(12))
        .map_or(f64::NAN, |(user, system)| (user + system) / 100.0)
}

#[allow(clippy::print_stdout)] // a program
fn main() {
    let engine = Engine::start(Arc::new(|| {}));
    let [model, task] = files();
    let open = Command::Open {
        job: JobId(1),
        model,
        task: Some(task),
    };
    engine.commands.send(open).expect("the engine listens");
    let layers = until(&engine, |event| match event {
        Event::Opened { info, .. } => Some(info.layers),
        _ => None,
    });
    let layers: Vec<LayerId> = layers.into_iter().map(|layer| layer.id).collect();
    until(&engine, |event| {
        matches!(event, Event::Finished { .. }).then_some(())
    });
    println!("{IMAGES} images, {ROUNDS} plans, each one layer off; ms from command to point");
    let report = |what: &str, cpu: f64, mut times: Vec<f64>| {
        let count = times.len() as f64;
        let first = times.remove(0);
        times.sort_by(f64::total_cmp);
        println!(
            "{what:>28}: first {first:.0} (calibrates), then median {:.0}, worst {:.0}; {:.0} ms of CPU each",
            times[times.len() / 2],
            times.last().expect("some"),
            cpu * 1e3 / count
        );
    };
    let before = cpu_seconds();
    let times = rounds(&engine, &layers, 100, None);
    report("engine idle", cpu_seconds() - before, times);
    let run = Command::Run {
        job: JobId(2),
        recipe: recipe(&[], true),
        split: SplitName::Search,
        keep: None,
    };
    engine.commands.send(run).expect("the engine listens");
    until(&engine, |event| {
        matches!(event, Event::Curve { .. }).then_some(())
    });
    let before = cpu_seconds();
    let times = rounds(&engine, &layers, 200, Some(3));
    // With the mini-batches that were trained in between.
    report("while a distillation runs", cpu_seconds() - before, times);
}
