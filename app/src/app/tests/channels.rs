//! A plan that prunes whole channels: layers that are tied move together, those that cannot lose any stay.

use super::*;
use limbeck_engine::recipe::Step;

fn id(name: &str) -> LayerId {
    LayerId(name.into())
}

fn set(rig: &mut Rig, layers: &[&str], ratio: f32) {
    rig.run(Command::SetRatio {
        layers: layers.iter().map(|l| id(l)).collect(),
        ratio: Ratio(ratio),
    });
    rig.run(Command::CommitEdit);
}

fn ratio(rig: &Rig, layer: &str) -> f32 {
    rig.state().setting(&id(layer)).sparsity.0
}

#[test]
fn one_slider_moves_its_group_and_the_plan_takes_channels() {
    let mut rig = Rig::opened();
    rig.run(Command::SetPruning(true));
    set(&mut rig, &["layer2.0.conv2"], 0.5);
    for tied in ["layer2.0.conv2", "layer2.0.down", "layer2.1.conv2"] {
        assert_eq!(ratio(&rig, tied), 0.5, "{tied}");
    }
    assert_eq!(ratio(&rig, "layer2.1.conv1"), 0.0);
    set(&mut rig, &["fc"], 0.5);
    assert_eq!(ratio(&rig, "fc"), 0.0);
    let why = rig.state().channels_stay(&id("fc")).expect("a reason");
    assert!(why.contains("output"), "{why}");
    let steps = rig.state().plan_steps(false);
    assert!(
        matches!(steps, [Step::PruneChannels(_), Step::FoldBatchNorm]),
        "{steps:?}"
    );
    // Fewer bytes and MACs are predicted, and no accuracy that nobody has measured.
    let (model, p) = (
        rig.state().model().expect("open").clone(),
        *rig.state().prediction().expect("predicted"),
    );
    assert!(p.stored < model.sizes.stored && p.macs < model.sizes.macs);
    assert_eq!(p.drop, None);
    // A measured point takes the plan along, and restoring it gives the plan back.
    let sent = rig.sent();
    answer(&mut rig, sent.last().expect("measured"), 0.9, 700_000);
    let point = rig.state().points().last().expect("a point").id;
    rig.run(Command::SetPruning(false));
    set(&mut rig, &["layer2.0.conv2"], 0.0);
    rig.run(Command::RestorePoint(point));
    assert!(rig.state().document.channels);
    assert_eq!(ratio(&rig, "layer2.1.conv2"), 0.5);
    assert_eq!(rig.state().plan_steps(false).len(), 2);
}

#[test]
fn switching_brings_groups_to_their_smallest_ratio_and_can_be_undone() {
    let mut rig = Rig::opened();
    set(&mut rig, &["layer2.0.conv2", "fc"], 0.5);
    set(&mut rig, &["layer2.0.down"], 0.25);
    rig.run(Command::SetPruning(true));
    // Its group has layers that nothing was asked of.
    assert_eq!(ratio(&rig, "layer2.0.conv2"), 0.0);
    assert_eq!(ratio(&rig, "fc"), 0.0);
    rig.run(Command::Undo);
    assert!(!rig.state().document.channels);
    assert_eq!(ratio(&rig, "layer2.0.conv2"), 0.5);
}

#[test]
fn a_pinned_layer_holds_its_group() {
    let mut rig = Rig::opened();
    rig.run(Command::SetPruning(true));
    rig.run(Command::TogglePin(vec![id("layer2.0.down")]));
    set(&mut rig, &["layer2.0.conv2"], 0.5);
    assert_eq!(ratio(&rig, "layer2.0.conv2"), 0.0);
    let why = rig
        .state()
        .channels_stay(&id("layer2.0.conv2"))
        .expect("a reason");
    assert!(why.contains("layer2.0.down, which is pinned"), "{why}");
}
