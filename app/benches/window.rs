//! The window with a large session: 3,000 layers with a whole map, 10,000 measured points, six trainings of 5,000 points each, one of them under way. Times what a frame costs, without a
//! GPU, while one scrolls, hovers, sorts, drags a slider, selects, types a filter and watches a training:
//! `cargo bench -p limbeck_app --bench window`, or only scenes whose name has a word in it: `… --bench window -- slider`

#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use egui::{Event, MouseWheelUnit, Pos2, RawInput, Rect, TouchPhase, pos2, vec2};
use limbeck_app::{
    app::{Session, Window},
    commands::Command,
    state::{Document, JobKind, SelectMode, SortKey, Tab, fixture},
};
use limbeck_engine::{
    compress::{LayerSetting, Precision, Ratio},
    data::SplitName,
    eval::Estimate,
    graph::LayerId,
    jobs::{Event as Told, JobId},
    recipe::{Choice, PruneStep, Recipe, Rule, Step},
    search::LayerFacts,
    sensitivity::{Candidate, Cell, Direction, Tier},
    train::TrainPoint,
};

const LAYERS: usize = 3_000;
const POINTS: usize = 10_000;
const RUNS: u64 = 6;
/// Of a training's curves.
const STEPS: u64 = 5_000;
const FRAMES: usize = 400;
/// Times that a scene is played; of every frame the least counts. On a shared machine single frames take many times their own time, still ones as well.
const ROUNDS: usize = 3;
const SIZE: [f32; 2] = [1600.0, 1000.0];

/// Milliseconds of a frame: `logic` and `ui`; egui's own part with it; triangles.
#[derive(Clone, Copy)]
struct Frame {
    ours: f64,
    pass: f64,
    tessellation: f64,
}

impl Frame {
    /// The least of both.
    fn fold(&mut self, other: &Self) {
        self.ours = self.ours.min(other.ours);
        self.pass = self.pass.min(other.pass);
        self.tessellation = self.tessellation.min(other.tessellation);
    }
}

struct Bench {
    ctx: egui::Context,
    window: Window,
    frame: usize,
}

impl Bench {
    /// One frame: `commands` are carried out where `logic` would.
    fn frame(&mut self, events: Vec<Event>, commands: Vec<Command>) -> Frame {
        self.frame += 1;
        let input = RawInput {
            screen_rect: Some(Rect::from_min_size(Pos2::ZERO, SIZE.into())),
            time: Some(self.frame as f64 / 60.0),
            events,
            ..Default::default()
        };
        let mut commands = Some(commands);
        let mut ours = 0.0;
        let window = &mut self.window;
        let started = now();
        let output = self.ctx.run_ui(input, |ui| {
            let started = now();
            window.step(ui.ctx());
            for command in commands.take().unwrap_or_default() {
                window.session.run(command);
            }
            window.draw(ui);
            ours += milliseconds(started);
        });
        let pass = milliseconds(started);
        let started = now();
        let triangles = self.ctx.tessellate(output.shapes, output.pixels_per_point);
        std::hint::black_box(triangles);
        let mut textures = output.textures_delta;
        textures.clear();
        Frame {
            ours,
            pass,
            tessellation: milliseconds(started),
        }
    }
}

/// A moment in this thread's own time, in milliseconds: what other processes take meanwhile is not the window's.
#[cfg(unix)]
fn now() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    #[allow(unsafe_code)] // one call that fills the structure above
    // SAFETY: the pointer is to a live, writable `timespec`; the call keeps nothing of it. Failure leaves the zeros.
    unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
    }
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// A moment, in milliseconds.
#[cfg(not(unix))]
fn now() -> f64 {
    use std::{sync::OnceLock, time::Instant};
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64() * 1e3
}

fn milliseconds(since: f64) -> f64 {
    now() - since
}

fn layers() -> Vec<LayerFacts> {
    (0..LAYERS)
        .map(|i| {
            let wide = 16 << (i / 600);
            let shape = vec![wide, wide, 3, 3];
            let params: usize = shape.iter().product();
            LayerFacts {
                id: LayerId(format!("stage{}.block{}.conv{}", i / 600, i / 3, i % 3).into()),
                op: "Conv".into(),
                weight_shape: shape,
                channel_axis: 0,
                params: params as u64,
                macs: Some(params as u64 * 196),
            }
        })
        .collect()
}

fn cells(layers: &[LayerFacts]) -> impl Iterator<Item = Cell> + '_ {
    layers.iter().enumerate().flat_map(|(row, layer)| {
        Candidate::ALL.into_iter().flat_map(move |candidate| {
            [Tier::Proxy, Tier::Measured].map(|tier| Cell {
                layer: layer.id.clone(),
                candidate,
                direction: Direction::Alone,
                tier,
                value: (row * 7919 % 997) as f64 / 50_000.0 * (1 + candidate as usize) as f64,
                ci: (tier == Tier::Measured).then_some([0.0, 0.03]),
                n: if tier == Tier::Measured { 1_000 } else { 0 },
                of: if tier == Tier::Measured { 1_000 } else { 0 },
                settled: true,
                why: None,
                kl: None,
            })
        })
    })
}

/// What a training tells after a mini-batch of its ten epochs.
fn told(run: u64, step: u64) -> Told {
    let t = step as f64 / STEPS as f64;
    let noise = (step * 7_919 % 997) as f64 / 997.0;
    Told::Curve {
        job: JobId(run),
        point: TrainPoint {
            step,
            steps: STEPS,
            epoch: t * 10.0,
            loss: (0.5 + 0.05 * run as f64) * (-3.0 * t).exp() + 0.1 * noise,
            rate: 1e-3 * (1.0 - t),
            samples_per_second: 3_000.0,
            accuracy: step.is_multiple_of(STEPS / 10).then_some(Estimate {
                value: 0.92 + t / 50.0,
                n: 1_000,
                ci: [0.90 + t / 50.0, 0.935 + t / 50.0],
            }),
            rollbacks: 0,
        },
    }
}

fn session() -> Session {
    let (commands, _) = crossbeam_channel::unbounded();
    let (_, events) = crossbeam_channel::unbounded();
    let mut session = Session::connect(commands, events);
    let state = &mut session.state;
    let mut model = (**fixture::opened().model().expect("the fixture has one")).clone();
    model.layers = layers();
    let layers = model.layers.clone();
    state.mirror.set_model(model);
    state.mirror.add_cells(cells(&layers));
    let recipe = Recipe::baseline("m.onnx".into(), "task.ron".into());
    let original = fixture::point(1, recipe.clone(), SplitName::Search, 0.934, 9_000_000);
    state.mirror.add_point(original);
    for i in 1..POINTS {
        // Every plan another one: a few layers changed.
        let rules = |ratio: f32| -> Vec<Rule<Ratio>> {
            let layer = |k: usize| layers[(i * 31 + k * 977) % LAYERS].id.0.to_string();
            (0..3)
                .map(|k| Rule(layer(k), Choice::Set(Ratio(ratio + k as f32 / 1e3))))
                .collect()
        };
        let mut recipe = recipe.clone();
        recipe.steps = vec![
            Step::FoldBatchNorm,
            Step::Prune(PruneStep {
                default: Choice::Keep,
                layers: rules((i % 89) as f32 / 100.0),
                pattern: Default::default(),
                schedule: None,
            }),
        ];
        let top1 = 0.70 + (i * 104_729 % 20_011) as f64 / 20_011.0 * 0.23;
        let stored = 1_000_000 + (i * 7_919 % 10_007) as u64 * 800;
        let point = fixture::point(i as u64, recipe, SplitName::Search, top1, stored);
        state.mirror.add_point(point);
    }
    state.view.focus = Some(layers[0].id.clone());
    // The plan changes every layer.
    for (row, layer) in layers.iter().enumerate() {
        let setting = LayerSetting {
            precision: [Precision::Int8, Precision::Fp16, Precision::Int4][row % 3],
            sparsity: Ratio((row % 4) as f32 / 10.0),
        };
        state.document.set(&layer.id, setting);
    }
    // As a new project has it: what layers run in is asked anew with every change of a precision.
    state.document.scheme = Document::fresh().scheme;
    for run in 1..=RUNS {
        let title = format!("distil {run}");
        state.mirror.add_job(JobId(run), JobKind::Distil, title);
        // The last one goes on while it is watched.
        let until = if run < RUNS { STEPS } else { STEPS / 2 };
        for step in 1..=until {
            state.mirror.take(&told(run, step));
        }
    }
    state.refresh();
    session
}

fn report(what: &str, frames: &[Frame]) {
    let quantiles = |of: fn(&Frame) -> f64| {
        let mut times: Vec<f64> = frames.iter().map(of).collect();
        times.sort_by(f64::total_cmp);
        let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
        format!("{:7.2} {:7.2}", at(0.5), at(0.99))
    };
    println!(
        "{what:>16} {} {} {}",
        quantiles(|f| f.ours),
        quantiles(|f| f.pass),
        quantiles(|f| f.tessellation)
    );
}

fn main() {
    // `cargo test` runs benches too, without wanting figures.
    let frames = if std::env::args().any(|a| a == "--bench") {
        FRAMES
    } else {
        10
    };
    let ctx = egui::Context::default();
    let window = Window::with_session(&ctx, session());
    let mut bench = Bench {
        ctx,
        window,
        frame: 0,
    };
    for _ in 0..5 {
        bench.frame(Vec::new(), Vec::new());
    }
    let ids: Vec<LayerId> = bench
        .window
        .session
        .state
        .mirror
        .layers()
        .iter()
        .map(|l| l.id.clone())
        .collect();
    println!(
        "{LAYERS} layers, {POINTS} points, {frames} frames each, the least of {ROUNDS} rounds; CPU ms, median and 99th percentile"
    );
    println!(
        "{:>16} {:>15} {:>15} {:>15}",
        "", "logic + ui", "egui with it", "tessellation"
    );
    let table = |i: usize| pos2(300.0 + (i * 7 % 500) as f32, 150.0 + (i * 13 % 700) as f32);
    let plot = |i: usize| pos2(1050.0 + (i * 7 % 480) as f32, 120.0 + (i * 5 % 360) as f32);
    type Scene<'a> = (
        &'a str,
        Box<dyn Fn(usize) -> (Vec<Event>, Vec<Command>) + 'a>,
    );
    let scenes: Vec<Scene<'_>> = vec![
        ("still", Box::new(|_| (Vec::new(), Vec::new()))),
        (
            "scroll",
            Box::new(|i| {
                let down = if i / 150 % 2 == 0 { -90.0 } else { 90.0 };
                let wheel = Event::MouseWheel {
                    unit: MouseWheelUnit::Point,
                    delta: vec2(0.0, down),
                    phase: TouchPhase::Move,
                    source: egui::MouseWheelSource::Unknown,
                    modifiers: Default::default(),
                };
                (vec![Event::PointerMoved(table(0)), wheel], Vec::new())
            }),
        ),
        (
            "hover table",
            Box::new(|i| (vec![Event::PointerMoved(table(i))], Vec::new())),
        ),
        (
            "hover plot",
            Box::new(|i| (vec![Event::PointerMoved(plot(i))], Vec::new())),
        ),
        (
            "sort",
            Box::new(|i| {
                let keys = [
                    SortKey::Name,
                    SortKey::Params,
                    SortKey::Cell(Candidate::Int4),
                    SortKey::Precision,
                    SortKey::Ratio,
                    SortKey::Shape,
                ];
                (Vec::new(), vec![Command::SetSort(keys[i % keys.len()])])
            }),
        ),
        (
            "drag a slider",
            Box::new(|i| {
                let layers = vec![ids[5].clone()];
                let ratio = Ratio((i % 90) as f32 / 100.0);
                (Vec::new(), vec![Command::SetRatio { layers, ratio }])
            }),
        ),
        (
            "select",
            Box::new(|i| {
                let layer = ids[(i * 37) % ids.len()].clone();
                let mode = [SelectMode::Replace, SelectMode::Extend, SelectMode::Toggle][i % 3];
                (Vec::new(), vec![Command::Select { layer, mode }])
            }),
        ),
        (
            "all selected",
            Box::new(|_| (Vec::new(), vec![Command::SelectAll])),
        ),
        (
            "type a filter",
            Box::new(|i| {
                let word = "block12 conv";
                (
                    Vec::new(),
                    vec![Command::SetFilter(word[..i % (word.len() + 1)].into())],
                )
            }),
        ),
        (
            "watch a training",
            Box::new(|i| {
                let pointer = Event::PointerMoved(plot(i));
                (vec![pointer], vec![Command::SetTab(Tab::Training)])
            }),
        ),
    ];
    let word = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let wanted = |name: &str| word.as_ref().is_none_or(|word| name.contains(word));
    let (mut all, mut raw) = (Vec::new(), Vec::new());
    for (name, scene) in scenes.iter().filter(|(name, _)| wanted(name)) {
        let mut least: Vec<Frame> = Vec::new();
        for round in 0..ROUNDS {
            for i in 0..frames {
                let (events, commands) = scene(i);
                if commands.contains(&Command::SetTab(Tab::Training)) {
                    let step = STEPS / 2 + (round * frames + i) as u64 + 1;
                    let next = told(RUNS, step);
                    bench.window.session.state.mirror.take(&next);
                }
                let frame = bench.frame(events, commands);
                raw.push(frame);
                match least.get_mut(i) {
                    Some(least) => least.fold(&frame),
                    None => least.push(frame),
                }
            }
        }
        report(name, &least);
        all.extend(least);
    }
    report("all", &all);
    report("all, every round", &raw);
}
