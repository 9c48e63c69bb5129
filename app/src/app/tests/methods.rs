//! Quantisation methods in the plan: measured, exported and read back with it, used by layer, and kept apart from training.

use super::{
    Rig, answer, taken,
    window::{state, window},
};
use crate::{
    app::Window,
    commands::{Command, Preset},
    state::{Dialog, JobKind},
};
use egui_kittest::{Harness, kittest::Queryable as _};
use limbeck_engine::{
    compress::{LayerSetting, Precision},
    jobs::Command as Job,
    recipe::{MethodKind, Step, Toggle, ToggleRule, method_layers},
    train::DistilSettings,
};
use std::path::Path;

/// The plan that was asked to be measured last; answers all that is asked.
fn measured(rig: &mut Rig) -> Vec<Step> {
    let mut last = None;
    for _ in 0..5 {
        for sent in rig.sent() {
            if let Job::Measure { recipe, .. } = &sent {
                last = Some(recipe.steps.clone())
                    .filter(|s| !s.is_empty())
                    .or(last);
            }
            answer(rig, &sent, 0.91, 120_000);
        }
    }
    last.expect("the plan is measured")
}

fn kinds(steps: &[Step]) -> Vec<MethodKind> {
    steps.iter().filter_map(MethodKind::of).collect()
}

#[test]
fn a_method_is_a_step_of_the_plan_and_the_plan_is_measured_anew() {
    let mut rig = Rig::opened();
    rig.run(Command::UseMethod(MethodKind::Equalize));
    let steps = rig.state().plan_steps(true);
    assert!(steps.is_empty(), "nothing is quantised yet: {steps:?}");
    rig.run(Command::ApplyPreset(Preset::Int4Inside));
    let steps = measured(&mut rig);
    let places: Vec<_> = steps.iter().map(|s| MethodKind::of(s).is_some()).collect();
    assert_eq!(places, [false, true, false], "before Quantize: {steps:?}");
    rig.run(Command::UseMethod(MethodKind::CorrectBias));
    measured(&mut rig);
    rig.run(Command::UseMethod(MethodKind::AdaRound));
    let steps = measured(&mut rig);
    let all = [
        MethodKind::Equalize,
        MethodKind::AdaRound,
        MethodKind::CorrectBias,
    ];
    assert_eq!(kinds(&steps), all);
    // The map is of codes to nearest.
    let quantised = rig.state().document.plan.len();
    let about = rig.state().prediction().map(|p| p.approximate);
    assert_eq!(about, Some(quantised));
    let recipe = rig.state().recipe(true).expect("a recipe");
    recipe.validate().expect("sound");
    // Another choice of codes takes its place, and undo brings it back.
    rig.run(Command::UseMethod(MethodKind::Gptq));
    assert!(kinds(&measured(&mut rig)).contains(&MethodKind::Gptq));
    assert!(rig.state().document.method(MethodKind::AdaRound).is_none());
    rig.run(Command::Undo);
    assert_eq!(kinds(&rig.state().document.methods), all);
}

#[test]
fn a_method_is_switched_off_for_a_layer_and_on_again() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::Int4Inside));
    measured(&mut rig);
    rig.run(Command::UseMethod(MethodKind::AdaRound));
    measured(&mut rig);
    let layer = rig.layers()[2].clone();
    let on = |rig: &Rig| rig.state().methods_on(&layer).collect::<Vec<_>>();
    assert_eq!(on(&rig), [(MethodKind::AdaRound, true)]);
    let set = |on| Command::SetMethodOn {
        kind: MethodKind::AdaRound,
        layers: vec![layer.clone()],
        on,
    };
    rig.run(set(false));
    let steps = measured(&mut rig);
    let rules = steps.iter().find_map(Step::toggles).expect("its rules");
    let off = [ToggleRule(layer.0.to_string(), Toggle::Off)];
    assert_eq!(rules, (Toggle::On, &off[..]));
    assert_eq!(on(&rig), [(MethodKind::AdaRound, false)]);
    rig.run(set(true));
    assert_eq!(on(&rig), [(MethodKind::AdaRound, true)]);
    let step = rig.state().document.method(MethodKind::AdaRound);
    assert_eq!(step, Some(&MethodKind::AdaRound.step()), "as it was");
}

#[test]
fn codes_are_not_chosen_in_a_plan_that_trains() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::Int4Inside));
    rig.run(Command::UseMethod(MethodKind::AdaRound));
    let start = Command::StartDistil(DistilSettings::default());
    let why = start.enabled(rig.state()).expect_err("refused");
    assert!(why.starts_with("AdaRound chooses codes"), "{why}");
    rig.run(Command::Undo);
    assert_eq!(start.enabled(rig.state()), Ok(()));
    rig.run(start);
    for kind in MethodKind::ALL {
        let can = Command::UseMethod(kind).enabled(rig.state());
        assert_eq!(can.is_err(), kind.chooses_codes(), "{kind:?}: {can:?}");
    }
}

#[test]
fn a_recipe_s_methods_are_the_plan_s_with_their_settings_and_rules() {
    let (mut rig, recipe) = taken(
        "FoldBatchNorm, SmoothQuant(settings: (strength: 0.7)), Quantize(default: set(int4)), SequentialMse(), \
         AdaRound(default: off, layers: [(\"layer1*\", on)], settings: (iterations: 77)), CorrectBias(samples: 9)",
    );
    assert_eq!(rig.state().notices.len(), 0, "{:?}", rig.state().notices);
    assert_eq!(rig.state().recipe(true).expect("one").steps, recipe.steps);
    assert!(!rig.state().is_busy(JobKind::Measure), "it is known");
    // Rules by glob are kept, and one layer can still be switched.
    let layer = rig.layers()[0].clone();
    rig.run(Command::SetMethodOn {
        kind: MethodKind::AdaRound,
        layers: vec![layer.clone()],
        on: true,
    });
    let step = rig.state().document.method(MethodKind::AdaRound).cloned();
    let used = method_layers(&step.expect("there"), rig.state().layers());
    let used = used.expect("a method").expect("resolves");
    assert!(used.contains(&layer));
    let stage = |l: &&limbeck_engine::graph::LayerId| l.0.starts_with("layer1");
    let all = rig.layers();
    assert_eq!(used.len(), 1 + all.iter().filter(stage).count());
    let settings = rig.state().setting(&layer);
    assert_ne!(settings, LayerSetting::KEEP);
}

type Opened = Harness<'static, Option<Window>>;

#[test]
fn the_dialog_is_one_edit() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::Int4Inside));
    let (mut harness, _jobs) = window(rig);
    harness.run();
    let session = |harness: &mut Opened, command| {
        harness
            .state_mut()
            .as_mut()
            .expect("made")
            .session
            .run(command);
    };
    session(&mut harness, Command::Show(Dialog::Methods));
    harness.run();
    for label in [
        "Roundings: AdaRound",
        "Biases: Corrected",
        "Roundings: GPTQ",
    ] {
        harness.get_by_label(label).click();
        harness.run();
    }
    let apply = |harness: &mut Opened| {
        let apply = harness.get_by_role_and_label(egui::Role::Button, "Apply");
        apply.click();
        harness.run();
    };
    apply(&mut harness);
    let chosen = |harness: &Opened| kinds(&state(harness).document.methods);
    assert_eq!(
        chosen(&harness),
        [MethodKind::Gptq, MethodKind::CorrectBias]
    );
    session(&mut harness, Command::Show(Dialog::Methods));
    harness.run();
    harness.get_by_label("Roundings: To nearest").click();
    harness.run();
    apply(&mut harness);
    assert_eq!(chosen(&harness), [MethodKind::CorrectBias]);
    session(&mut harness, Command::Undo);
    assert_eq!(
        chosen(&harness),
        [MethodKind::Gptq, MethodKind::CorrectBias]
    );
}

#[test]
fn samples_that_nothing_looks_at_go_when_the_dialog_is_applied() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    rig.run(Command::UseMethod(MethodKind::Equalize));
    let mut methods = rig.state().document.methods.clone();
    let Some(Step::Equalize(step)) = methods.first_mut() else {
        panic!("{methods:?}");
    };
    step.settings.samples = 16;
    rig.session.state.document.methods = methods;
    rig.session.state.refresh();
    let refused = rig.state().recipe(true).expect("a plan").validate();
    assert!(refused.is_err(), "what it leads out of");
    rig.run(Command::Show(Dialog::Methods));
    let (mut harness, _jobs) = window(rig);
    harness.run();
    harness
        .get_by_role_and_label(egui::Role::Button, "Apply")
        .click();
    harness.run();
    let recipe = state(&harness).recipe(true).expect("a plan");
    recipe.validate().expect("sound");
}

#[test]
fn a_recipe_that_trains_before_codes_are_chosen_gives_a_plan_that_is_sound() {
    let (rig, _) = taken(
        "FoldBatchNorm, Prune(default: set(0.5)), Distil(epochs: 2), Quantize(default: set(int4)), AdaRound()",
    );
    let recipe = rig.state().recipe(true).expect("a recipe");
    recipe.validate().expect("sound");
    assert!(!recipe.trains());
    let told = &rig.state().notices;
    assert!(
        told.iter().any(|n| n.text.contains("other steps")),
        "{told:?}"
    );
}

#[test]
fn a_layer_has_one_choice_of_codes() {
    let (mut rig, _) = taken(
        "FoldBatchNorm, Quantize(default: set(int4)), AdaRound(layers: [(\"fc\", off)]), Gptq(default: off, layers: [(\"fc\", on)])",
    );
    let layer = rig.layers().last().cloned().expect("layers");
    assert_eq!(&*layer.0, "fc");
    rig.run(Command::SetMethodOn {
        kind: MethodKind::AdaRound,
        layers: vec![layer.clone()],
        on: true,
    });
    let on: Vec<_> = rig.state().methods_on(&layer).collect();
    assert_eq!(
        on,
        [(MethodKind::AdaRound, true), (MethodKind::Gptq, false)]
    );
    let recipe = rig.state().recipe(true).expect("a recipe");
    limbeck_engine::recipe::resolve(&recipe, rig.state().layers()).expect("resolves");
}

#[test]
fn a_project_keeps_the_methods() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::Int4Inside));
    rig.run(Command::UseMethod(MethodKind::AdaRound));
    rig.run(Command::UseMethod(MethodKind::CorrectBias));
    let file = crate::app::project::to_file(rig.state(), Path::new("p.limbeck.ron"));
    let file = file.expect("a project");
    let mut again = Rig::opened();
    crate::app::project::lay_plan(&mut again.session.state, &file);
    assert_eq!(again.state().document.methods, rig.state().document.methods);
    assert_eq!(again.state().document.methods.len(), 2);
}
