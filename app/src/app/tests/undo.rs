//! Whatever is edited can be undone, and every plan is a recipe.

use super::Rig;
use crate::{
    commands::{Command, Preset},
    state::{Document, UNTOUCHED, fixture},
};
use limbeck_engine::{
    compress::{Granularity, Precision, QuantScheme, Ratio},
    recipe::Goal,
    train::DistilSettings,
};
use proptest::prelude::*;

/// Any edit of the document.
fn edit() -> impl Strategy<Value = Command> {
    let layers = || {
        prop::collection::vec(0..22usize, 0..6).prop_map(|rows| {
            let ids = fixture::opened().mirror.layer_ids().to_vec();
            rows.into_iter()
                .map(|row| ids[row].clone())
                .collect::<Vec<_>>()
        })
    };
    let precision = prop::sample::select(vec![
        Precision::Fp32,
        Precision::Fp16,
        Precision::Int8,
        Precision::Int4,
    ]);
    prop_oneof![
        (layers(), precision)
            .prop_map(|(layers, precision)| Command::SetPrecision { layers, precision }),
        (layers(), 0.0f32..1.0).prop_map(|(layers, ratio)| Command::SetRatio {
            layers,
            ratio: Ratio(ratio)
        }),
        Just(Command::CommitEdit),
        layers().prop_map(Command::ResetLayers),
        layers().prop_map(Command::TogglePin),
        prop::sample::select(Preset::ALL.to_vec()).prop_map(Command::ApplyPreset),
        (0.0..5.0).prop_map(|limit| Command::SetGoals(vec![Goal::DropPoints(limit)])),
        any::<bool>().prop_map(|tensor| Command::SetScheme(QuantScheme {
            int8_weights: if tensor {
                Granularity::PerTensor
            } else {
                Granularity::PerChannel
            },
            ..QuantScheme::default()
        })),
        any::<bool>().prop_map(|on| Command::SetDistil(on.then(DistilSettings::default))),
        (0..9u64).prop_map(Command::SetSeed),
        Just(Command::Undo),
        Just(Command::Redo),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn undoing_everything_gives_the_start_and_redoing_everything_the_end(
        edits in prop::collection::vec(edit(), 1..30)
    ) {
        let mut rig = Rig::opened();
        let start = rig.state().document.clone();
        for command in edits {
            rig.session.run(command);
        }
        rig.run(Command::CommitEdit);
        // Redo what the sequence itself undid, so that the end is the end.
        while rig.state().history.can_redo() {
            rig.run(Command::Redo);
        }
        let end: Document = rig.state().document.clone();
        let mut steps = 0;
        while rig.state().history.can_undo() {
            rig.run(Command::Undo);
            steps += 1;
        }
        prop_assert_eq!(&rig.state().document, &start);
        for _ in 0..steps {
            rig.run(Command::Redo);
        }
        prop_assert_eq!(&rig.state().document, &end);
        prop_assert!(end.plan.values().all(|setting| *setting != UNTOUCHED));
    }

    #[test]
    fn a_plan_becomes_a_recipe_and_a_plan_again(
        edits in prop::collection::vec(edit(), 1..12)
    ) {
        let mut rig = Rig::opened();
        for command in edits {
            rig.session.run(command);
        }
        rig.run(Command::CommitEdit);
        let recipe = rig.state().recipe(true).expect("a model is open");
        let resolved = limbeck_engine::recipe::resolve(&recipe, rig.state().layers())
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        for layer in rig.layers() {
            let setting = resolved.layers.get(&layer).copied().unwrap_or(UNTOUCHED);
            prop_assert_eq!(setting, rig.state().setting(&layer));
        }
    }
}

#[test]
fn history_is_bounded() {
    let mut rig = Rig::opened();
    for seed in 0..(crate::state::History::LIMIT as u64 + 20) {
        rig.session.state.history.begin(&rig.session.state.document);
        rig.session.state.document.seed = seed + 1;
        let document = rig.session.state.document.clone();
        rig.session.state.history.commit(&document);
    }
    let mut steps = 0;
    while rig.session.state.history.can_undo() {
        rig.run(Command::Undo);
        steps += 1;
    }
    assert_eq!(steps, crate::state::History::LIMIT);
    assert_eq!(rig.state().document.seed, 20);
}
