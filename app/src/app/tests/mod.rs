//! What commands do, with a made-up engine at the other end of the channels.

mod channels;
mod confirming;
mod distilling;
mod foresight;
mod interrupted;
mod methods;
mod saving;
mod shrinking;
mod targets;
mod undo;
mod window;

use super::Session;
use crate::{
    commands::{Command, Preset},
    state::{ColourBy, Inspected, NoticeKind, SelectMode, SortKey, State, UNTOUCHED, fixture},
};
use crossbeam_channel::{Receiver, Sender, unbounded};
use limbeck_engine::{
    compress::{Activations, Precision, QuantScheme, Ratio},
    data::SplitName,
    graph::LayerId,
    jobs::{Command as Job, Event, ExportFormat, JobId, ModelInfo},
    recipe::{Goal, Recipe},
    sensitivity::{Candidate, Direction},
};
use std::path::Path;

/// A session, and the engine's ends of its channels.
struct Rig {
    session: Session,
    jobs: Receiver<Job>,
    events: Sender<Event>,
}

impl Rig {
    fn new() -> Self {
        let (commands, jobs) = unbounded();
        let (events, receiver) = unbounded();
        Self {
            session: Session::connect(commands, receiver),
            jobs,
            events,
        }
    }

    /// With the fixture's model opened by way of the engine's events, nothing measured.
    fn opened() -> Self {
        let mut rig = Self::new();
        rig.run(Command::OpenModel {
            model: "m.onnx".into(),
            task: None,
        });
        let Some(Job::Open { job, .. }) = rig.sent().pop() else {
            panic!("nothing was opened");
        };
        rig.tell(Event::Opened {
            job,
            info: Box::new(model()),
        });
        rig.session.settings.map_at_once = false;
        rig.tell(Event::Finished { job });
        // The original on the edits' samples is not measured in this made-up session.
        for sent in rig.sent() {
            if let Job::Measure { job, .. } = sent {
                rig.tell(Event::Cancelled { job });
            }
        }
        rig
    }

    fn run(&mut self, command: Command) {
        self.session.run(command);
    }

    fn tell(&mut self, event: Event) {
        self.events.send(event).expect("the session listens");
        self.session.drain();
    }

    /// What was sent to the engine since the last call, inspections and looks ahead left out.
    fn sent(&mut self) -> Vec<Job> {
        self.jobs
            .try_iter()
            .filter(|job| {
                !matches!(
                    job,
                    Job::Inspect { .. } | Job::Foresee { .. } | Job::FindRuns { .. }
                )
            })
            .collect()
    }

    fn layers(&self) -> Vec<LayerId> {
        self.session.state.mirror.layer_ids().to_vec()
    }

    fn state(&self) -> &State {
        &self.session.state
    }
}

fn model() -> ModelInfo {
    let state = fixture::opened();
    let model = state.model().expect("the fixture has a model");
    (**model).clone()
}

/// Answers a measurement as the engine would.
fn answer(rig: &mut Rig, sent: &Job, top1: f64, stored: u64) {
    let (Job::Measure {
        job, recipe, split, ..
    }
    | Job::Run {
        job, recipe, split, ..
    }) = sent
    else {
        panic!("not a measurement: {sent:?}");
    };
    let point = fixture::point(job.0, (**recipe).clone(), *split, top1, stored);
    rig.tell(Event::Point(Box::new(point)));
    rig.tell(Event::Finished { job: *job });
}

#[test]
fn a_slider_changes_the_plan_live_and_measures_once_on_release() {
    let mut rig = Rig::opened();
    let layer = rig.layers()[3].clone();
    let before = rig.state().prediction().copied();
    for percent in [10, 20, 30] {
        rig.run(Command::SetRatio {
            layers: vec![layer.clone()],
            ratio: Ratio(percent as f32 / 100.0),
        });
        assert_eq!(
            rig.state().setting(&layer).sparsity,
            Ratio(percent as f32 / 100.0)
        );
        assert!(rig.sent().is_empty(), "nothing is measured while it moves");
    }
    assert!(before.is_some() && rig.state().prediction().is_some());
    rig.run(Command::CommitEdit);
    let sent = rig.sent();
    let [
        Job::Measure {
            recipe,
            split: SplitName::Search,
            limit: Some(1_000),
            ..
        },
    ] = sent.as_slice()
    else {
        panic!("{sent:?}");
    };
    assert_eq!(recipe.steps, rig.state().plan_steps(false));
    // One step back undoes the whole drag.
    rig.run(Command::Undo);
    assert_eq!(rig.state().setting(&layer), UNTOUCHED);
    rig.run(Command::Redo);
    assert_eq!(rig.state().setting(&layer).sparsity, Ratio(0.3));
}

#[test]
fn a_known_plan_is_not_measured_again() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    let sent = rig.sent();
    answer(&mut rig, &sent[0], 0.93, 300_000);
    // The original on the same split follows by itself.
    let sent = rig.sent();
    let [Job::Measure { recipe, .. }] = sent.as_slice() else {
        panic!("{sent:?}");
    };
    assert!(recipe.steps.is_empty());
    answer(&mut rig, &sent[0], 0.934, 1_100_000);
    rig.run(Command::Undo);
    rig.run(Command::Redo);
    assert!(rig.sent().is_empty());
    let point = rig.state().plan_point(SplitName::Search).expect("known");
    assert_eq!(point.name, "int8");
}

#[test]
fn bulk_edits_skip_pinned_layers_and_single_ones_do_not() {
    let mut rig = Rig::opened();
    let layers = rig.layers();
    rig.run(Command::TogglePin(vec![layers[0].clone()]));
    rig.run(Command::SetPrecision {
        layers: layers.clone(),
        precision: Precision::Int4,
    });
    assert_eq!(rig.state().setting(&layers[0]), UNTOUCHED);
    assert_eq!(rig.state().setting(&layers[1]).precision, Precision::Int4);
    rig.run(Command::ApplyPreset(Preset::Pruned(
        Precision::Int8,
        Ratio(0.5),
    )));
    assert_eq!(rig.state().setting(&layers[0]), UNTOUCHED);
    rig.run(Command::SetPrecision {
        layers: vec![layers[0].clone()],
        precision: Precision::Int8,
    });
    assert_eq!(rig.state().setting(&layers[0]).precision, Precision::Int8);
}

#[test]
fn measure_judges_on_the_whole_holdout_and_the_verdict_follows() {
    let mut rig = Rig::opened();
    rig.run(Command::SetGoals(vec![
        Goal::DropPoints(1.0),
        Goal::StoredKilobytes(200.0),
    ]));
    rig.run(Command::ApplyPreset(Preset::Int4Inside));
    rig.sent();
    rig.run(Command::MeasurePlan(SplitName::Holdout));
    let sent = rig.sent();
    assert!(matches!(
        sent[0],
        Job::Measure {
            split: SplitName::Holdout,
            limit: None,
            ..
        }
    ));
    assert_eq!(rig.state().view.split, SplitName::Holdout);
    answer(&mut rig, &sent[0], 0.9278, 150_000);
    let verdict = rig.state().verdict().expect("goals are set");
    assert_eq!(verdict.text, "Pass · drop 0.62 ± 0.21 pt · holdout");
    assert_eq!(verdict.short, "Pass · drop 0.62 pt · holdout");
    assert!(verdict.details.contains("holdout, n 10,000"), "{verdict:?}");
    let log = rig.state().mirror.log.back().expect("logged");
    assert!(
        log.text.contains("on holdout: top-1 92.78 ± ") && log.text.contains("n 10,000"),
        "{}",
        log.text
    );
}

#[test]
fn a_point_restores_the_plan_that_gave_it() {
    let mut rig = Rig::opened();
    let layers = rig.layers();
    rig.run(Command::ApplyPreset(Preset::Pruned(
        Precision::Int8,
        Ratio(0.5),
    )));
    rig.run(Command::SetPrecision {
        layers: vec![layers[4].clone()],
        precision: Precision::Fp32,
    });
    let plan = rig.state().document.plan.clone();
    let sent = rig.sent();
    let last = sent.last().expect("measured");
    answer(&mut rig, &last.clone(), 0.92, 250_000);
    let id = rig
        .state()
        .plan_point(SplitName::Search)
        .expect("measured")
        .id;
    rig.run(Command::ApplyPreset(Preset::All(Precision::Fp32)));
    assert_ne!(rig.state().document.plan, plan);
    rig.run(Command::RestorePoint(id));
    assert_eq!(rig.state().document.plan, plan);
    rig.run(Command::Undo);
    assert_ne!(rig.state().document.plan, plan);
}

#[test]
fn failures_are_told_and_logged_and_nothing_else_stops() {
    let mut rig = Rig::opened();
    rig.run(Command::StartMap);
    let Some(Job::Map { job, known, .. }) = rig.sent().pop() else {
        panic!("no map");
    };
    assert!(known.is_empty());
    rig.tell(Event::Failed {
        job,
        message: "search split is empty".into(),
    });
    assert_eq!(rig.state().notices.len(), 1);
    assert!(rig.state().mirror.log.iter().any(|line| line.error));
    assert!(!rig.state().is_busy(crate::state::JobKind::Map));
    assert!(Command::StartMap.enabled(rig.state()).is_ok());
}

#[test]
fn the_map_that_is_looked_at_is_the_one_that_is_measured() {
    let mut rig = Rig::opened();
    for (by, asked) in [
        (ColourBy::AllBut, Direction::AllBut),
        (ColourBy::Macs, Direction::Alone),
    ] {
        rig.run(Command::SetColourBy(by));
        rig.run(Command::StartMap);
        let Some(Job::Map { job, direction, .. }) = rig.sent().pop() else {
            panic!("no map");
        };
        assert_eq!(direction, asked);
        rig.tell(Event::Finished { job });
    }
}

#[test]
fn opening_starts_the_map_by_itself_and_a_broken_project_does_not_open() {
    let mut rig = Rig::new();
    rig.run(Command::Open("m.onnx".into()));
    let Some(Job::Open { job, .. }) = rig.sent().pop() else {
        panic!("not opened");
    };
    rig.tell(Event::Opened {
        job,
        info: Box::new(model()),
    });
    rig.tell(Event::Finished { job });
    let sent = rig.sent();
    assert!(
        matches!(
            sent.as_slice(),
            [
                Job::Measure {
                    limit: Some(1_000),
                    ..
                },
                Job::Map {
                    direction: Direction::Alone,
                    ..
                }
            ]
        ),
        "{sent:?}"
    );

    rig.run(Command::Open("p.limbeck.ron".into()));
    let Some(Job::ReadText { job, path }) = rig.sent().pop() else {
        panic!("not read");
    };
    rig.tell(Event::Text {
        job,
        path,
        text: "(version: 1, modle: 3)".into(),
    });
    assert!(rig.sent().is_empty());
    let notice = rig.state().notices.last().expect("told");
    assert!(notice.text.contains("p.limbeck.ron"), "{}", notice.text);
}

#[test]
fn selection_follows_rows_as_they_are_shown() {
    let mut rig = Rig::opened();
    rig.run(Command::SetSort(SortKey::Params));
    let shown: Vec<LayerId> = rig
        .state()
        .visible()
        .iter()
        .map(|row| rig.layers()[*row].clone())
        .collect();
    let select = |at: usize, mode| Command::Select {
        layer: shown[at].clone(),
        mode,
    };
    rig.run(select(2, SelectMode::Replace));
    rig.run(select(5, SelectMode::Extend));
    assert_eq!(rig.state().view.selection.len(), 4);
    assert!(
        shown[2..=5]
            .iter()
            .all(|layer| rig.state().is_selected(layer))
    );
    rig.run(select(3, SelectMode::Toggle));
    assert!(!rig.state().is_selected(&shown[3]));
    rig.run(Command::MoveFocus {
        rows: 1,
        extend: false,
    });
    assert_eq!(rig.state().view.focus, Some(shown[4].clone()));
    rig.run(Command::SetFilter("layer3".into()));
    rig.run(Command::SelectAll);
    assert_eq!(
        rig.state().view.selection.len(),
        rig.state().visible().len()
    );
}

#[test]
fn a_third_click_on_a_header_gives_the_models_order_back() {
    let mut rig = Rig::opened();
    let natural: Vec<usize> = rig.state().visible().to_vec();
    rig.run(Command::SetSort(SortKey::Params));
    let down = rig.state().visible().to_vec();
    rig.run(Command::SetSort(SortKey::Params));
    assert_ne!(rig.state().visible(), down);
    assert_ne!(rig.state().visible(), natural);
    rig.run(Command::SetSort(SortKey::Params));
    assert_eq!(rig.state().visible(), natural);
    // The layers' own order is turned round and back.
    rig.run(Command::SetSort(SortKey::Graph));
    assert!(rig.state().visible().iter().rev().eq(&natural));
    rig.run(Command::SetSort(SortKey::Graph));
    assert_eq!(rig.state().visible(), natural);
    // Another model starts in its own order.
    rig.run(Command::SetSort(SortKey::Macs));
    rig.run(Command::OpenModel {
        model: "other.onnx".into(),
        task: None,
    });
    let Some(Job::Open { job, .. }) = rig.sent().pop() else {
        panic!("nothing was opened");
    };
    rig.tell(Event::Opened {
        job,
        info: Box::new(model()),
    });
    assert_eq!(rig.state().visible(), natural);
}

#[test]
fn a_candidate_column_sorts_by_what_it_shows() {
    let mut rig = Rig::new();
    rig.session.state = fixture::demo();
    rig.run(Command::SetColourBy(ColourBy::Size));
    rig.run(Command::SetSort(SortKey::Cell(Candidate::Int4)));
    let state = rig.state();
    let heat: Vec<f32> = state
        .visible()
        .iter()
        .map(|row| state.heat(*row, Candidate::Int4).value)
        .collect();
    assert!(heat.is_sorted_by(|a, b| a >= b), "{heat:?}");
    rig.run(Command::SetColourBy(ColourBy::Error));
    let state = rig.state();
    let error: Vec<f64> = state
        .visible()
        .iter()
        .filter_map(|row| state.mirror.slot(*row, Candidate::Int4)?.proxy.as_ref())
        .map(|cell| cell.value)
        .collect();
    assert!(error.is_sorted_by(|a, b| a >= b), "{error:?}");
}

#[test]
fn what_is_edited_comes_into_the_inspector() {
    let mut rig = Rig::opened();
    let layers = rig.layers();
    rig.run(Command::SetPrecision {
        layers: vec![layers[6].clone()],
        precision: Precision::Int8,
    });
    assert_eq!(rig.state().view.focus, Some(layers[6].clone()));
    rig.run(Command::SetRatio {
        layers: layers[2..9].to_vec(),
        ratio: Ratio(0.2),
    });
    assert_eq!(
        rig.state().view.focus,
        Some(layers[6].clone()),
        "among them"
    );
    rig.run(Command::SetRatio {
        layers: vec![layers[3].clone()],
        ratio: Ratio(0.2),
    });
    assert_eq!(rig.state().view.focus, Some(layers[3].clone()));
}

#[test]
fn notices_are_few_and_go_with_their_model() {
    let mut rig = Rig::opened();
    for i in 0..5 {
        rig.session
            .state
            .notify(NoticeKind::Error, format!("failure {i}"));
    }
    assert_eq!(rig.state().notices.len(), 3);
    rig.run(Command::OpenModel {
        model: "other.onnx".into(),
        task: None,
    });
    let Some(Job::Open { job, .. }) = rig.sent().pop() else {
        panic!("nothing was opened");
    };
    rig.tell(Event::Opened {
        job,
        info: Box::new(model()),
    });
    assert!(rig.state().notices.is_empty());
}

#[test]
fn a_plan_that_wants_calibration_is_not_exported_without_data() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    let mut bare = model();
    bare.data = None;
    rig.session.state.mirror.model = Some(bare.into());
    let export = Command::ExportModel {
        format: ExportFormat::Plan,
        path: "out.onnx".into(),
        confirm: false,
    };
    let why = export.enabled(rig.state()).expect_err("data is missing");
    assert!(why.contains("calibration needs data"), "{why}");
    rig.run(Command::SetScheme(QuantScheme {
        activations: Activations::Float,
        ..QuantScheme::default()
    }));
    assert_eq!(export.enabled(rig.state()), Ok(()));
}

#[test]
fn an_untouched_session_asks_for_an_inspection_once_a_change() {
    let mut rig = Rig::opened();
    let count = |rig: &Rig| {
        rig.jobs
            .try_iter()
            .filter(|job| matches!(job, Job::Inspect { .. }))
            .count()
    };
    let layer = rig.layers()[2].clone();
    rig.run(Command::Select {
        layer: layer.clone(),
        mode: SelectMode::Replace,
    });
    assert_eq!(count(&rig), 1);
    rig.run(Command::ToggleTheme);
    assert_eq!(count(&rig), 0);
    for ratio in [0.1, 0.2] {
        rig.run(Command::SetRatio {
            layers: vec![layer.clone()],
            ratio: Ratio(ratio),
        });
    }
    assert_eq!(count(&rig), 0, "not while it moves");
    rig.run(Command::CommitEdit);
    assert_eq!(count(&rig), 1);
    // What it reads is counted when it is looked at.
    rig.run(Command::SetInspected(Inspected::Input));
    let asked = |rig: &Rig| {
        let inputs = rig.jobs.try_iter();
        inputs
            .filter(|job| matches!(job, Job::InspectInput { .. }))
            .count()
    };
    assert_eq!(asked(&rig), 1);
    rig.run(Command::ToggleTheme);
    assert_eq!(asked(&rig), 0);
}

#[test]
fn a_dropped_model_and_task_open_together() {
    let commands = super::window::opening(vec!["task.ron".into(), "m.onnx".into()]);
    assert_eq!(
        commands,
        [Command::OpenModel {
            model: "m.onnx".into(),
            task: Some("task.ron".into())
        }]
    );
    assert!(super::window::opening(Vec::new()).is_empty());
}

#[test]
fn every_command_of_the_palette_has_a_name_and_a_reason_or_runs() {
    for state in [State::default(), fixture::opened(), fixture::demo()] {
        for command in Command::palette(&state) {
            assert!(!command.label().is_empty());
            if let Err(reason) = command.enabled(&state) {
                assert!(reason.len() > 5, "{command:?}");
            }
        }
    }
}

#[test]
fn cells_that_arrive_move_the_prediction() {
    let mut rig = Rig::opened();
    let layer = rig.layers()[1].clone();
    rig.run(Command::SetPrecision {
        layers: vec![layer.clone()],
        precision: Precision::Int4,
    });
    let demo = fixture::demo();
    let cell = demo
        .mirror
        .slot(1, Candidate::Int4)
        .and_then(|slot| slot.measured.clone())
        .expect("the demo has it");
    rig.tell(Event::Cells {
        job: JobId(99),
        cells: vec![cell.clone()],
    });
    assert_eq!(
        rig.state().prediction().and_then(|p| p.drop),
        Some(cell.value)
    );
}

#[test]
fn a_recipe_that_prunes_by_a_budget_is_said_to_be_more_than_the_plan() {
    let mut rig = Rig::opened();
    for (prune, warned) in [
        ("Prune(default: set(0.5))", false),
        ("Prune(default: set(0.5), pattern: groups(4))", false),
        ("PruneChannels(amount: macs(0.5))", true),
        (
            "Prune(default: set(0.5), schedule: cubic(end: 1.0)), Distil(epochs: 2)",
            false,
        ),
    ] {
        let text =
            format!("(version: 1, model: \"m\", task: \"t\", steps: [FoldBatchNorm, {prune}])");
        let recipe = Recipe::parse(&text, Path::new("r.ron")).expect("a recipe");
        let job = 900 + u64::from(warned);
        let point = fixture::point(job, recipe, SplitName::Search, 0.9, 700_000);
        rig.tell(Event::Point(Box::new(point)));
        let id = rig.state().points().last().expect("a point").id;
        rig.session.state.notices.clear();
        rig.run(Command::RestorePoint(id));
        let told = &rig.state().notices;
        let more = told.iter().any(|n| n.text.contains("by a budget"));
        assert_eq!(more, warned, "{prune}: {told:?}");
    }
}

/// What a recipe's steps make of the plan.
fn taken(steps: &str) -> (Rig, Recipe) {
    let mut rig = Rig::opened();
    let text = format!("(version: 1, model: \"m\", task: \"t\", steps: [{steps}])");
    let recipe = Recipe::parse(&text, Path::new("r.ron")).expect("a recipe");
    let point = fixture::point(900, recipe.clone(), SplitName::Search, 0.9, 700_000);
    rig.tell(Event::Point(Box::new(point)));
    let id = rig.state().points().last().expect("a point").id;
    rig.run(Command::RestorePoint(id));
    (rig, recipe)
}
