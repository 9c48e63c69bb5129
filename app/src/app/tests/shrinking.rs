//! How a plan shrinks beside its ratios: groups of weights, heads, residual blocks, shared values, pruning while training.

use super::{
    Rig, answer, taken,
    window::{state, window},
};
use crate::{
    commands::{Command, Preset},
    state::{BlockState, Dialog, UNTOUCHED, fixture},
};
use egui_kittest::kittest::{NodeT as _, Queryable as _};
use limbeck_engine::{
    compress::{Attention, ChannelGroup, ChannelGroups, Pattern, Precision, PruneSchedule, Ratio},
    data::SplitName,
    eval::Estimate,
    graph::LayerId,
    jobs::Event,
    recipe::{Choice, ClusterStep, Shrinking, Step},
    train::{DistilSettings, TrainPoint},
};
use std::path::Path;

fn id(name: &str) -> LayerId {
    LayerId(name.into())
}

fn shrink(rig: &mut Rig, change: impl FnOnce(&mut Shrinking)) {
    let mut shrinking = rig.state().document.shrinking.clone();
    change(&mut shrinking);
    rig.run(Command::SetShrinking {
        channels: rig.state().document.channels,
        shrinking: Box::new(shrinking),
    });
}

fn prune(rig: &mut Rig, layers: &[LayerId], ratio: f32) {
    rig.run(Command::SetRatio {
        layers: layers.to_vec(),
        ratio: Ratio(ratio),
    });
    rig.run(Command::CommitEdit);
}

fn words(rig: &Rig, with_distil: bool) -> Vec<String> {
    let word = |step: &Step| {
        format!("{step:?}")
            .split(['(', ' '])
            .next()
            .map(str::to_owned)
    };
    let steps = rig.state().plan_steps(with_distil);
    steps.iter().filter_map(word).collect()
}

fn shared() -> ClusterStep {
    ClusterStep {
        default: Choice::Set(16),
        layers: Vec::new(),
        codebooks: Default::default(),
    }
}

#[test]
fn groups_of_weights_take_whole_numbers_and_layers_that_have_none_say_so() {
    let mut rig = Rig::opened();
    let layers = rig.layers();
    prune(&mut rig, &layers, 0.45);
    shrink(&mut rig, |s| s.pattern = Pattern::Groups(4));
    let ratio = |rig: &Rig, name: &str| rig.state().setting(&id(name)).sparsity.0;
    assert_eq!(ratio(&rig, "fc"), 0.5);
    // One picture channel: no group of 4.
    assert_eq!(ratio(&rig, "conv1"), 0.0);
    let why = rig.state().channels_stay(&id("conv1")).expect("a reason");
    assert!(why.contains("no multiple of 4"), "{why}");
    prune(&mut rig, &layers, 0.7);
    assert_eq!((ratio(&rig, "fc"), ratio(&rig, "conv1")), (0.75, 0.0));
    let recipe = rig.state().recipe(true).expect("a recipe");
    recipe.validate().expect("sound");
    assert!(rig.state().prediction().expect("predicted").approximate >= 10);
    rig.run(Command::Undo);
    rig.run(Command::Undo);
    assert!(rig.state().document.shrinking.pattern.is_unstructured());
    assert_eq!(ratio(&rig, "conv1"), 0.45);
}

#[test]
fn a_block_goes_by_name_and_what_it_holds_is_predicted_away() {
    let mut rig = Rig::opened();
    let block = rig
        .state()
        .block_of(&id("layer2.1.conv1"))
        .expect("in one")
        .clone();
    assert!(rig.state().block_of(&id("fc")).is_none());
    let before = *rig.state().prediction().expect("predicted");
    let take = |out| Command::TakeBlock {
        layers: block.layers.clone(),
        out,
    };
    rig.run(take(true));
    assert_eq!(rig.state().block_state(&block), BlockState::Goes);
    assert_eq!(words(&rig, true), ["PruneBlocks", "FoldBatchNorm"]);
    let after = *rig.state().prediction().expect("predicted");
    let own = |f: fn(&limbeck_engine::search::LayerFacts) -> u64| -> u64 {
        let layers = rig.state().layers().iter();
        layers.filter(|l| block.layers.contains(&l.id)).map(f).sum()
    };
    let gone = before.stored.0 - after.stored.0;
    let params = own(|l| l.params) * 4;
    assert!(gone.abs_diff(params) < params / 50, "{gone} of {params}");
    let macs = own(|l| l.macs.unwrap_or(0));
    assert_eq!(
        before.macs.expect("known") - after.macs.expect("known"),
        macs
    );
    assert_eq!(after.drop, None, "nobody measured that");
    assert!(rig.state().channels_stay(&block.layers[0]).is_some());
    rig.run(take(false));
    assert_eq!(rig.state().document.shrinking, Shrinking::default());
    assert!(rig.state().plan_is_empty());
    // By number it is not known which ones: the size says that they are in it.
    shrink(&mut rig, |s| {
        s.blocks = Some(limbeck_engine::recipe::PruneBlocksStep {
            count: Some(1),
            ..Default::default()
        });
    });
    assert_eq!(rig.state().block_state(&block), BlockState::ByNumber(1));
    assert_eq!(
        rig.state().prediction().expect("predicted").stored,
        before.stored
    );
    assert!(rig.state().unpredicted().is_some());
}

#[test]
fn float_layers_share_values_others_say_why_not() {
    let mut rig = Rig::opened();
    shrink(&mut rig, |s| s.cluster = Some(shared()));
    let fc = id("fc");
    assert_eq!(rig.state().shared_on(&fc), Some(16));
    let all = *rig.state().prediction().expect("predicted");
    let model = rig.state().model().expect("open").clone();
    assert!(all.stored.0 < model.sizes.stored.0 / 4, "{all:?}");
    assert_eq!(all.drop, None);
    let layers = vec![fc.clone()];
    rig.run(Command::ShareValues {
        layers: layers.clone(),
        on: false,
    });
    assert_eq!(rig.state().shared_on(&fc), None);
    assert!(rig.state().prediction().expect("predicted").stored > all.stored);
    rig.run(Command::ShareValues { layers, on: true });
    assert_eq!(rig.state().document.shrinking.cluster, Some(shared()));
    rig.run(Command::SetPrecision {
        layers: vec![fc.clone()],
        precision: Precision::Int8,
    });
    assert!(
        rig.state()
            .sharing_stays(&fc)
            .is_some_and(|why| why.contains("quantised"))
    );
    let last = words(&rig, true).pop();
    assert_eq!(last.as_deref(), Some("Cluster"));
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    assert!(
        !words(&rig, true).contains(&"Cluster".to_owned()),
        "no layer is left"
    );
}

#[test]
fn ratios_of_heads_are_of_whole_heads() {
    let mut model = super::model();
    let (q, out) = (id("layer1.0.conv1"), id("layer1.0.conv2"));
    model.heads = Some(ChannelGroups {
        groups: vec![ChannelGroup {
            layers: vec![q.clone()],
            readers: vec![out],
            channels: 4,
        }],
        ..ChannelGroups::default()
    });
    let mut rig = Rig::opened();
    rig.session.state.mirror.model = Some(std::sync::Arc::new(model));
    rig.run(Command::SetPruning(true));
    shrink(&mut rig, |s| s.channels.attention = Attention::Heads);
    assert_eq!(rig.state().tied(&q).map(|g| g.channels), Some(4));
    let before = rig.state().prediction().expect("predicted").stored;
    prune(&mut rig, std::slice::from_ref(&q), 0.1);
    // A tenth of four heads is none.
    assert_eq!(rig.state().prediction().expect("predicted").stored, before);
    prune(&mut rig, &[q], 0.3);
    assert!(rig.state().prediction().expect("predicted").stored < before);
    let [Step::PruneChannels(step), ..] = rig.state().plan_steps(true) else {
        panic!("{:?}", rig.state().plan_steps(true));
    };
    assert_eq!(step.attention, Attention::Heads);
}

#[test]
fn pruning_while_training_puts_the_training_behind_prune() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::Pruned(
        Precision::Int8,
        Ratio(0.5),
    )));
    let schedule = PruneSchedule::Cubic {
        begin: 0.0,
        end: 1.0,
        updates: 5,
    };
    rig.run(Command::StartDistilWith {
        settings: DistilSettings::default(),
        schedule: Some(schedule),
    });
    let distilled = ["FoldBatchNorm", "Prune", "Distil", "Quantize"];
    assert_eq!(words(&rig, true), distilled);
    assert_eq!(words(&rig, false), ["FoldBatchNorm", "Prune", "Quantize"]);
    rig.state()
        .recipe(true)
        .expect("one")
        .validate()
        .expect("sound");
    rig.state()
        .recipe(false)
        .expect("one")
        .validate()
        .expect("sound");
    // One step back: neither training nor schedule.
    rig.run(Command::Undo);
    let document = &rig.state().document;
    assert_eq!(
        (document.distil.clone(), document.shrinking.schedule),
        (None, None)
    );
}

#[test]
fn a_recipe_s_shrinking_is_the_plan_s() {
    for steps in [
        "PruneBlocks(count: Some(1), samples: 64), FoldBatchNorm",
        "PruneBlocks(layers: [\"layer2.1.conv1\", \"layer2.1.conv2\"]), FoldBatchNorm, Distil()",
        "FoldBatchNorm, Prune(default: keep, layers: [(\"fc\", set(0.5))], pattern: groups(4))",
        "FoldBatchNorm, Prune(default: set(0.5), schedule: Some(cubic(end: 1.0))), Distil(), Quantize(default: set(int8))",
        "FoldBatchNorm, Prune(default: set(0.5), schedule: cubic(end: 1.0)), Distil(epochs: 3, keep_last: true), Distil(epochs: 2), Quantize(default: set(int8)), CorrectBias(samples: 64)",
        "FoldBatchNorm, Cluster(default: set(16), layers: [(\"conv1\", keep)], codebooks: per_channel), Distil()",
    ] {
        let steps = steps
            .replace("Some(1)", "1")
            .replace("Some(cubic(end: 1.0))", "cubic(end: 1.0)");
        let (mut rig, recipe) = taken(&steps);
        assert!(
            rig.state().notices.is_empty(),
            "{steps}: {:?}",
            rig.state().notices
        );
        assert_eq!(
            rig.state().recipe(true).expect("one").steps,
            recipe.steps,
            "{steps}"
        );
        // And a project keeps it.
        let file = crate::app::project::to_file(rig.state(), Path::new("p.limbeck.ron"));
        let text = file.expect("a project").to_ron().expect("writes");
        let file =
            limbeck_engine::project::ProjectFile::parse(&text, Path::new("p")).expect("reads");
        let mut again = Rig::opened();
        crate::app::project::lay_plan(&mut again.session.state, &file);
        assert_eq!(
            again.state().document.shrinking,
            rig.state().document.shrinking
        );
        let layers = rig.layers();
        rig.run(Command::ResetLayers(layers));
        assert!(rig.state().document.plan.values().all(|s| *s == UNTOUCHED));
    }
    let (rig, _) = taken("PruneChannels(amount: macs(0.5)), FoldBatchNorm");
    let told = &rig.state().notices;
    assert!(
        told.iter().any(|n| n.text.contains("by a budget")),
        "{told:?}"
    );
}

#[test]
fn the_dialog_sets_what_is_chosen() {
    let (mut harness, _jobs) = window(Rig::opened());
    harness.run();
    let show = |harness: &mut egui_kittest::Harness<'static, _>, dialog| {
        let window: &mut Option<crate::app::Window> = harness.state_mut();
        let window = window.as_mut().expect("made");
        window.session.run(Command::Show(dialog));
        harness.run();
    };
    show(&mut harness, Dialog::Shrink);
    for label in [
        "Weights: Of every 4",
        "Residual blocks: Least missed go",
        "Values of weights: Shared",
        "Shared within: A channel",
    ] {
        harness.get_by_label(label).click();
        harness.run();
    }
    harness
        .get_by_role_and_label(egui::Role::Button, "Apply")
        .click();
    harness.run();
    let shrinking = state(&harness).document.shrinking.clone();
    assert_eq!(shrinking.pattern, Pattern::Groups(4));
    assert_eq!(shrinking.blocks.and_then(|b| b.count), Some(1));
    let cluster = shrinking.cluster.expect("shared");
    assert_eq!(cluster.default, Choice::Set(16));
    assert_eq!(format!("{:?}", cluster.codebooks), "PerChannel");
}

#[test]
fn a_new_run_from_an_epoch_keeps_what_stands_behind_the_training() {
    let steps = "FoldBatchNorm, Prune(default: set(0.5), schedule: cubic(end: 1.0)), Distil(epochs: 3), Quantize(default: set(int8), layers: [(\"fc\", keep)]), CorrectBias(), Cluster(default: set(16))";
    let (mut rig, recipe) = taken(steps);
    let before = rig.state().document.clone();
    rig.run(Command::StartDistil(before.distil.clone().expect("taken")));
    let run = rig.sent().into_iter().find_map(|sent| match sent {
        limbeck_engine::jobs::Command::Run { job, .. } => Some(job),
        _ => None,
    });
    let run = run.expect("it trains");
    for epoch in 1..=3 {
        let point = TrainPoint {
            step: epoch * 100,
            steps: 300,
            epoch: epoch as f64,
            loss: 0.3,
            rate: 1e-3,
            samples_per_second: 900.0,
            accuracy: Some(Estimate {
                value: 0.9,
                n: 100,
                ci: [0.85, 0.95],
            }),
            rollbacks: 0,
        };
        rig.tell(Event::Curve { job: run, point });
    }
    rig.tell(Event::Finished { job: run });
    rig.run(Command::NewRunFrom { run, epoch: 2 });
    let document = &rig.state().document;
    assert!(before.plan.values().any(|s| s.precision == Precision::Int8));
    assert_eq!(document.plan, before.plan);
    assert_eq!(document.methods, before.methods);
    assert_eq!(document.shrinking, before.shrinking);
    assert!(document.shrinking.cluster.is_some());
    assert_eq!(document.trained[0].stop_after, Some(2));
    assert!(rig.state().notices.is_empty(), "{:?}", rig.state().notices);
    let again = rig.state().recipe(true).expect("one");
    assert_eq!(again.steps.len(), recipe.steps.len() + 1);
    again.validate().expect("sound");
    // Before its masks are final no run goes on from it.
    let runs = &rig.state().mirror.runs;
    assert!(runs.from_epoch(run, 1).is_some() && runs.from_epoch(run, 0).is_none());
}

#[test]
fn a_cancelled_gradual_training_is_the_plan_s() {
    let steps = "FoldBatchNorm, Prune(default: set(0.5), schedule: cubic(end: 1.0)), Distil(epochs: 3), Quantize(default: set(int8))";
    let (mut rig, mut recipe) = taken(steps);
    let state = &mut rig.session.state;
    state.document.seed = recipe.seed;
    // Not the one that the plan was taken from.
    if let Some(settings) = &mut state.document.distil {
        settings.epochs = 4;
    }
    state.document.goals = vec![limbeck_engine::recipe::Goal::DropPoints(1.0)];
    state.refresh();
    if let Step::Distil(settings) = &mut recipe.steps[2] {
        settings.stop_after = Some(2);
    }
    let point = fixture::point(77, recipe, SplitName::Holdout, 0.93, 150_000);
    rig.tell(Event::Point(Box::new(point)));
    let found = rig.state().otherwise_distilled_point(SplitName::Holdout);
    assert!(found.is_some_and(|point| point.point.recipe.is_partial()));
    let verdict = rig.state().verdict().expect("goals are set");
    assert!(verdict.text.ends_with("holdout, partial"), "{verdict:?}");
}

#[test]
fn learned_step_sizes_are_refused_before_weights_are_quantised() {
    let steps = "FoldBatchNorm, Prune(default: set(0.5), schedule: cubic(end: 1.0)), Distil(epochs: 3, keep_last: true), Distil(epochs: 2), Quantize(default: set(int8))";
    let (mut rig, _) = taken(steps);
    assert_eq!(rig.state().document.trained.len(), 1);
    let settings = DistilSettings {
        learned_step_sizes: true,
        ..DistilSettings::default()
    };
    let before = rig.state().document.clone();
    for start in [
        Command::StartDistil(settings.clone()),
        Command::StartDistilWith {
            settings: settings.clone(),
            schedule: before.shrinking.schedule,
        },
    ] {
        let why = start.enabled(rig.state()).expect_err("it trains in float");
        assert!(why.starts_with("Learned step sizes"), "{why}");
        rig.run(start);
        assert_eq!(rig.state().document, before);
    }
    let at_once = Command::StartDistilWith {
        settings,
        schedule: None,
    };
    assert_eq!(at_once.enabled(rig.state()), Ok(()));
}

#[test]
fn a_schedule_longer_than_the_training_is_said_at_its_field() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::Pruned(
        Precision::Int8,
        Ratio(0.5),
    )));
    for sent in rig.sent() {
        if matches!(sent, limbeck_engine::jobs::Command::Measure { .. }) {
            answer(&mut rig, &sent, 0.91, 120_000);
        }
    }
    rig.session.state.document.distil = Some(DistilSettings::default());
    rig.session.state.document.shrinking.schedule = Some(PruneSchedule::Iterative {
        begin: 0.0,
        end: 9.0,
        rounds: 3,
    });
    rig.session.state.view.dialog = Some(Dialog::Distil);
    let (mut harness, _jobs) = window(rig);
    harness.run();
    harness.run();
    harness.get_by_label("The training has 2 epochs");
    let start = harness.get_by_role_and_label(egui::Role::Button, "Start");
    assert!(start.accesskit_node().is_disabled());
}
