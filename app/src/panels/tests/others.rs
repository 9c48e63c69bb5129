//! Top bar, trade-off, training, inspector, jobs strip, log, notices, welcome, dividers.

use super::{click, layer, open, open_sized, sent};
use crate::{
    commands::Command,
    state::{Dialog, Inspected, JobKind, NoticeKind, PlotAxis, State, Tab, fixture},
};
use egui::vec2;
use egui_kittest::kittest::{NodeT as _, Queryable as _};
use limbeck_engine::{
    compress::{
        Calibration, Granularity, InputCodes, InputInspection, LayerSetting, Precision, Ratio,
    },
    data::SplitName,
    jobs::{Event, JobId},
    recipe::{MethodKind, Step},
    train::DistilSettings,
};
use std::{path::PathBuf, sync::Arc};

#[test]
fn the_top_bar_measures_searches_exports_and_edits_goals() {
    let mut harness = open(fixture::demo());
    assert_eq!(
        click(&mut harness, "Measure"),
        [Command::MeasurePlan(SplitName::Holdout)]
    );
    assert_eq!(
        click(&mut harness, "Search commands"),
        [Command::OpenPalette]
    );
    assert_eq!(
        click(&mut harness, "Goal: drop ≤ 1.0 pt"),
        [Command::Show(Dialog::Goals)]
    );
    assert!(
        harness
            .query_by_label("Verdict: Pass · drop 0.62 ± 0.21 pt · holdout")
            .is_some()
    );
    click(&mut harness, "Export…");
    assert_eq!(
        click(&mut harness, "Export recipe…"),
        [Command::Show(Dialog::ExportRecipe)]
    );
    assert_eq!(click(&mut harness, "Open…"), [Command::Show(Dialog::Open)]);
    click(&mut harness, "Menu");
    assert_eq!(
        click(&mut harness, "Open data…"),
        [Command::Show(Dialog::OpenTask)]
    );
}

#[test]
fn what_cannot_be_done_is_disabled() {
    let mut harness = open(fixture::opened());
    for name in ["Undo", "Redo"] {
        assert!(
            harness.get_by_label(name).accesskit_node().is_disabled(),
            "{name}"
        );
        assert_eq!(click(&mut harness, name), []);
    }
    let harness = open(State::default());
    assert!(
        harness
            .get_by_label("Measure")
            .accesskit_node()
            .is_disabled()
    );
    assert!(
        harness
            .get_by_label("Export…")
            .accesskit_node()
            .is_disabled()
    );
}

#[test]
fn a_point_is_selected_by_a_click_and_its_plan_restored() {
    let mut harness = open(fixture::demo());
    let commands = click(&mut harness, "Point int8 on search");
    let [Command::SelectPoint(Some(id))] = commands.as_slice() else {
        panic!("{commands:?}");
    };
    let id = *id;
    harness.state_mut().state.view.selected_point = Some(id);
    harness.run_ok();
    assert!(
        harness
            .query_by_label_contains("int8: top-1 93.30 ± ")
            .is_some()
    );
    assert_eq!(
        click(&mut harness, "Restore this plan"),
        [Command::RestorePoint(id)]
    );
    // A click beside all points lets it go.
    let plot = harness.get_by_label_contains("Trade-off plot").rect();
    let beside = plot.center() + vec2(0.0, plot.height() * 0.3);
    harness.drag_at(beside);
    harness.run_ok();
    harness.drop_at(beside);
    harness.run_ok();
    assert_eq!(sent(&mut harness), [Command::SelectPoint(None)]);
}

#[test]
fn the_plot_switches_axis_and_split() {
    let mut harness = open(fixture::demo());
    assert_eq!(
        click(&mut harness, "Plot against: MACs"),
        [Command::SetPlotAxis(PlotAxis::Macs)]
    );
    assert_eq!(
        click(&mut harness, "Points on: holdout 10,000"),
        [Command::SetSplit(SplitName::Holdout)]
    );
    assert!(
        harness
            .query_by_label("Trade-off plot, 7 points on search")
            .is_some()
    );
    harness.state_mut().state.view.axis = PlotAxis::Macs;
    harness.state_mut().state.refresh();
    harness.run_ok();
}

#[test]
fn without_data_the_window_says_what_is_missing() {
    let mut state = fixture::opened();
    let mut model = (**state.model().expect("the fixture has a model")).clone();
    model.data = None;
    state.mirror.model = Some(Arc::new(model));
    state.refresh();
    let mut harness = open_sized(state, vec2(1280.0, 800.0));
    assert!(harness.query_by_label("No data yet").is_some());
    assert!(
        harness
            .query_by_label("Map: 0 of 132 cells measured")
            .is_none()
    );
    assert_eq!(
        click(&mut harness, "Open data…"),
        [Command::Show(Dialog::OpenTask)]
    );
    assert!(
        harness
            .get_by_label("Measure")
            .accesskit_node()
            .is_disabled()
    );
}

#[test]
fn the_split_switch_says_what_its_points_were_judged_on() {
    let harness = open(fixture::demo());
    // The search split has 2,000 samples; its points were judged on half of them.
    assert!(harness.query_by_label("Points on: search 1,000").is_some());
    let harness = open(fixture::opened());
    assert!(harness.query_by_label("Points on: search").is_some());
}

#[test]
fn a_training_that_has_no_curve_yet_says_that_it_runs() {
    let mut state = fixture::opened();
    state.view.tab = Tab::Training;
    state
        .mirror
        .add_job(JobId(7), JobKind::Distil, "Distil 1".into());
    let mut harness = open(state);
    assert!(harness.query_by_label("Distil 1 waits").is_some());
    harness.state_mut().state.mirror.take(&Event::Started {
        job: JobId(7),
        title: String::new(),
    });
    harness.run_ok();
    assert!(harness.query_by_label("Distil 1 is under way").is_some());
    harness
        .state_mut()
        .state
        .mirror
        .take(&Event::Paused { job: JobId(7) });
    harness.run_ok();
    assert!(harness.query_by_label("Distil 1 is paused").is_some());
    assert!(harness.query_by_label("Engine idle: paused").is_some());
    assert!(harness.query_by_label("Nothing distilled yet").is_none());
}

#[test]
fn training_shows_its_curves_or_how_to_get_some() {
    let mut state = fixture::demo();
    state.view.tab = Tab::Training;
    let mut harness = open(state);
    assert!(harness.query_by_label("Loss curve").is_some());
    assert!(harness.query_by_label("Accuracy curve").is_some());
    assert!(harness.query_by_label_contains("epoch 4.0 of 6").is_some());
    assert_eq!(
        click(&mut harness, "Trade-off"),
        [Command::SetTab(Tab::TradeOff)]
    );
    // An untouched plan has nothing to distil; one that changes something has.
    let mut state = fixture::opened();
    state.view.tab = Tab::Training;
    let mut harness = open(state);
    assert!(harness.query_by_label("Nothing distilled yet").is_some());
    let state = &mut harness.state_mut().state;
    let setting = LayerSetting {
        precision: Precision::Int4,
        sparsity: Ratio(0.0),
    };
    state.document.set(&layer("conv1"), setting);
    state.refresh();
    harness.run_ok();
    // One in the top bar, one in the panel's head, one in the empty panel.
    let buttons: Vec<_> = harness.query_all_by_label("Distil…").collect();
    assert_eq!(buttons.len(), 3, "{buttons:?}");
    buttons[2].click();
    harness.run_ok();
    assert_eq!(sent(&mut harness), [Command::Show(Dialog::Distil)]);
}

/// The demo with a second run, whose plan's point is there.
fn two_runs() -> State {
    let mut state = fixture::demo();
    let first = state.curves().expect("the demo has one").clone();
    let job = JobId(77);
    state
        .mirror
        .add_job(job, JobKind::Distil, "Distil 15".into());
    for point in &first.points {
        let point = *point;
        state.mirror.take(&Event::Curve { job, point });
    }
    let measured = state.points().last().expect("measured");
    let mut recipe = measured.point.recipe.clone();
    recipe.steps.push(Step::Distil(DistilSettings {
        epochs: 6,
        ..DistilSettings::default()
    }));
    state.mirror.asked(job, Arc::new(recipe));
    let mut point = (*state.points().last().expect("measured").point).clone();
    point.job = job;
    state.mirror.take(&Event::Point(Box::new(point)));
    state.refresh();
    state
}

#[test]
fn the_inspector_shows_what_a_layer_reads() {
    let mut harness = open(fixture::demo());
    assert_eq!(
        click(&mut harness, "Inspect: Input"),
        [Command::SetInspected(Inspected::Input)]
    );
    let state = &mut harness.state_mut().state;
    state.view.inspected = Inspected::Input;
    harness.run_ok();
    // Not counted yet: no weights are shown for it.
    assert!(harness.query_by_label("Levels: 15").is_none());
    let read = InputInspection {
        layer: layer("layer2.1.conv2"),
        value: "relu_out".into(),
        samples: 256,
        count: 3_211_264,
        range: [0.0, 6.3],
        counts: (1..=64).rev().collect(),
        zeros: 0.41,
        codes: Some(InputCodes {
            bits: 8,
            scale: 0.0198,
            zero_point: 0,
            range: [0.0, 5.05],
            method: Calibration::Mse,
            clipped: 0.00213,
            sqnr_db: Some(38.2),
        }),
        dynamic: false,
    };
    let job = JobId(3);
    let mirror = &mut harness.state_mut().state.mirror;
    mirror.count(job, read.layer.clone());
    let inspection = Box::new(read);
    // An answer to an older question is none.
    mirror.take(&Event::InputInspected {
        job: JobId(2),
        inspection: inspection.clone(),
    });
    assert_eq!(mirror.reading.as_ref().and_then(|r| r.known.clone()), None);
    mirror.take(&Event::InputInspected { job, inspection });
    harness.run_ok();
    for name in [
        "Histogram of what layer2.1.conv2 reads".into(),
        "SQNR: 38.2 dB".into(),
        "Clipped: 0.213 %".into(),
        "Zeros: 41.0 %".into(),
        "Step: 0.020".into(),
    ] {
        let name: String = name;
        assert!(harness.query_by_label(&name).is_some(), "{name}");
    }
    // Nothing came of it: why stands where it would have stood.
    let mirror = &mut harness.state_mut().state.mirror;
    mirror.count(job, layer("layer2.1.conv2"));
    let message = "image 3 cannot be read".to_owned();
    mirror.take(&Event::Failed { job, message });
    harness.run_ok();
    assert!(harness.query_by_label("image 3 cannot be read").is_some());
}

#[test]
fn runs_are_overlaid_and_one_stands_out() {
    let mut state = two_runs();
    state.view.tab = Tab::Training;
    let mut harness = open(state);
    assert!(harness.query_by_label("Rate curve").is_some());
    let first = JobId(1);
    assert_eq!(
        click(&mut harness, "Run Distil 14"),
        [Command::SelectRun(first)]
    );
    assert_eq!(
        click(&mut harness, "Run Distil 15"),
        [],
        "it stands out already"
    );
    harness.state_mut().state.view.run = Some(first);
    harness.run_ok();
    assert_eq!(
        click(&mut harness, "Run Distil 15"),
        [Command::SelectRun(JobId(77))]
    );
    // Alone, a run needs no chip.
    let mut state = fixture::demo();
    state.view.tab = Tab::Training;
    let harness = open(state);
    assert!(harness.query_by_label("Run Distil 14").is_none());
}

#[test]
fn the_epochs_of_a_run_stand_on_the_plot_of_the_split_they_were_judged_on() {
    let mut state = two_runs();
    state.view.tab = Tab::TradeOff;
    state.view.split = SplitName::Search;
    state.refresh();
    let mut harness = open(state);
    for epoch in ["1.0", "2.0", "3.0", "4.0"] {
        let name = format!("Distil 15, epoch {epoch}");
        assert!(harness.query_by_label(&name).is_some(), "{name}");
    }
    let state = &mut harness.state_mut().state;
    state.view.split = SplitName::Holdout;
    state.refresh();
    harness.run_ok();
    assert!(harness.query_by_label("Distil 15, epoch 1.0").is_none());
}

#[test]
fn the_inspector_tells_of_its_layer() {
    let mut harness = open(fixture::demo());
    for name in [
        "Inspecting layer2.1.conv2",
        "SQNR: 18.4 dB",
        "Clipped: 0.40 %",
        "Zeros: 38.0 %",
        "Levels: 15",
        "Ranges of 32 channels",
        "int4: 0.32 ± 0.10, n 1,000",
    ] {
        assert!(harness.query_by_label(name).is_some(), "{name}");
    }
    assert_eq!(
        click(&mut harness, "Quantisation scheme"),
        [Command::Show(Dialog::Scheme)]
    );
    // One scale for all channels, and one channel that is far wider: said, with a way out.
    let state = &mut harness.state_mut().state;
    state.document.scheme.int8_weights = Granularity::PerTensor;
    state.document.scheme.int4_weights = Granularity::PerTensor;
    state.refresh();
    harness.run_ok();
    assert!(
        harness
            .query_by_label("Channel 17 sets the scale")
            .is_some()
    );
    let mut scheme = harness.state().state.document.scheme.clone();
    scheme.int8_weights = Granularity::PerChannel;
    assert_eq!(
        click(&mut harness, "Use a scale per channel"),
        [Command::SetScheme(scheme.clone())],
        "of the int8 weights that this layer has; int4 ones stay"
    );
    assert_eq!(
        click(&mut harness, "Equalise"),
        [Command::UseMethod(MethodKind::Equalize)]
    );
    let state = &mut harness.state_mut().state;
    state.document.scheme = scheme;
    state.refresh();
    harness.run_ok();
    assert!(
        harness
            .query_by_label("Channel 17 sets the scale")
            .is_none()
    );
    let state = &mut harness.state_mut().state;
    state.view.focus = None;
    harness.run_ok();
    assert!(harness.query_by_label("No layer selected").is_some());
}

#[test]
fn jobs_show_progress_and_can_be_cancelled() {
    let mut harness = open(fixture::demo());
    assert!(harness.query_by_label("Progress of Map").is_some());
    assert!(
        harness
            .query_by_label_contains("epoch 4 of 6 · 3,120 img/s · 1:42 left")
            .is_some()
    );
    assert_eq!(
        click(&mut harness, "Cancel Distil 14"),
        [Command::CancelJob(JobId(1))]
    );
    assert!(harness.query_by_label("Pause Map").is_none());
    assert_eq!(
        click(&mut harness, "Pause Distil 14"),
        [Command::PauseJob(JobId(1))]
    );
    let mirror = &mut harness.state_mut().state.mirror;
    mirror.take(&Event::Paused { job: JobId(1) });
    harness.run_ok();
    assert!(
        harness
            .query_by_label_contains("paused · epoch 4 of 6")
            .is_some()
    );
    assert_eq!(
        click(&mut harness, "Resume Distil 14"),
        [Command::ResumeJob(JobId(1))]
    );
    let mut harness = open(fixture::opened());
    assert!(harness.query_by_label("Engine idle").is_some());
    assert_eq!(click(&mut harness, "Measure map"), [Command::StartMap]);
}

#[test]
fn the_log_opens_and_closes() {
    let mut harness = open(fixture::demo());
    assert_eq!(click(&mut harness, "Log"), [Command::ShowLog(true)]);
    harness.state_mut().state.view.log_open = true;
    harness.run_ok();
    assert!(harness.query_by_label("Opened fashion-resnet").is_some());
    assert_eq!(click(&mut harness, "Close log"), [Command::ShowLog(false)]);
}

#[test]
fn notices_are_dismissed() {
    let mut state = fixture::demo();
    state.notify(NoticeKind::Error, "Could not write plan.onnx: disk full");
    let id = state.notices[0].id;
    let mut harness = open(state);
    assert_eq!(
        click(
            &mut harness,
            "Dismiss: Could not write plan.onnx: disk full"
        ),
        [Command::DismissNotice(id)]
    );
}

#[test]
fn the_welcome_opens_files() {
    let mut state = State::default();
    state.view.recent = vec![PathBuf::from("models/net.onnx")];
    let mut harness = open(state);
    assert_eq!(click(&mut harness, "Open…"), [Command::Show(Dialog::Open)]);
    assert_eq!(
        click(&mut harness, "Open the sample model"),
        [Command::OpenSample]
    );
    assert_eq!(
        click(&mut harness, "net.onnx"),
        [Command::Open(PathBuf::from("models/net.onnx"))]
    );
}

#[test]
fn dividers_resize_the_panels() {
    let mut harness = open(fixture::demo());
    let at = harness
        .get_by_label("Width of the layers panel")
        .rect()
        .center();
    harness.drag_at(at);
    harness.run_ok();
    harness.hover_at(at - vec2(100.0, 0.0));
    harness.run_ok();
    harness.drop_at(at - vec2(100.0, 0.0));
    harness.run_ok();
    let shares: Vec<f32> = sent(&mut harness)
        .iter()
        .filter_map(|c| match c {
            Command::SetShares { layers, .. } => Some(*layers),
            _ => None,
        })
        .collect();
    assert!(
        shares.last().is_some_and(|s| *s < 0.55 && *s > 0.45),
        "{shares:?}"
    );
}

#[test]
fn in_a_narrow_window_every_job_keeps_its_cancel_button() {
    let harness = open_sized(fixture::demo(), vec2(1280.0, 800.0));
    let log = harness.get_by_label("Log").rect();
    for name in ["Pause Distil 14", "Cancel Distil 14", "Cancel Map"] {
        let rect = harness.get_by_label(name).rect();
        assert!(rect.right() < log.left() - 60.0, "{name}: {rect:?}");
    }
}

#[test]
fn an_interrupted_distillation_is_offered_over_the_notices() {
    use limbeck_engine::recipe::Interrupted;
    use std::time::{Duration, SystemTime};
    let mut state = fixture::opened();
    let mut recipe = state.recipe(true).expect("the fixture has a model");
    recipe.task = "/w/task.ron".into();
    let mut run = Interrupted::new("/runs/run-1-0".into(), recipe, SplitName::Holdout);
    run.epoch = Some((3.25, 10));
    run.since = SystemTime::now() - Duration::from_secs(12 * 60 + 5);
    state.mirror.interrupted = vec![run.clone()];
    let mut harness = open(state);
    let said = "A distillation of fashion-resnet.onnx was interrupted at epoch 3.2 of 10, 12 minutes ago. Taking it up opens its model first.";
    assert!(harness.query_by_label(said).is_some());
    assert_eq!(
        click(&mut harness, "Take up"),
        [Command::TakeUp(run.folder.clone())]
    );
    assert_eq!(
        click(&mut harness, "Discard…"),
        [Command::Show(Dialog::DiscardRun(run.folder.clone()))]
    );
    assert_eq!(
        click(&mut harness, "Later"),
        [Command::LeaveRun(run.folder.clone())]
    );
    // What cannot be gone on with says why, and can still be discarded.
    run.obstacle = Some("it was taken with another model".into());
    harness.state_mut().state.mirror.interrupted = vec![run];
    harness.run_ok();
    assert_eq!(click(&mut harness, "Take up"), []);
    let why = harness.query_by_label_contains("It cannot be gone on with: it was taken");
    assert!(why.is_some());
}

#[test]
fn the_end_of_an_epoch_is_picked_on_the_plot_or_from_a_list() {
    let run = JobId(77);
    let mut state = two_runs();
    state.view.split = SplitName::Search;
    state.refresh();
    let mut harness = open(state);
    assert_eq!(
        click(&mut harness, "Distil 15, epoch 2.0"),
        [Command::SelectEpoch { run, epoch: 2 }]
    );
    // While one trains it is listed, and cannot be begun.
    harness.state_mut().state.view.tab = Tab::Training;
    harness.run_ok();
    click(&mut harness, "From an epoch…");
    let from = Command::NewRunFrom { run, epoch: 2 };
    assert_eq!(click(&mut harness, &from.label()), []);
    let mirror = &mut harness.state_mut().state.mirror;
    for job in [JobId(1), run] {
        mirror.take(&Event::Finished { job });
    }
    mirror.take(&Event::Epochs {
        job: run,
        kept: vec![(run, 2)],
    });
    harness.run_ok();
    click(&mut harness, "From an epoch…");
    assert_eq!(
        click(&mut harness, &from.label()),
        std::slice::from_ref(&from)
    );
    // Picked on the plot it needs no list.
    harness.state_mut().state.view.epoch = Some((run, 2));
    harness.run_ok();
    assert!(harness.query_by_label("From an epoch…").is_none());
    assert_eq!(click(&mut harness, &from.label()), [from]);
}
