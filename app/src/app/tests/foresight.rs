//! What layers run in at the target: asked whenever the plan changes, shown in the table, never of another plan.

use super::{Rig, window::*};
use crate::{
    commands::{Command, Preset},
    state::{Document, RunsIn, SortKey},
};
use egui_kittest::kittest::Queryable as _;
use limbeck_engine::{
    compress::{Precision, QuantScheme},
    graph::LayerId,
    jobs::{Command as Job, Event, JobId},
    target::{Executed, Execution},
};
use std::{collections::BTreeMap, sync::Arc};

/// The questions since the last call.
fn asked(rig: &Rig) -> Vec<(JobId, BTreeMap<LayerId, Precision>)> {
    let questions = rig.jobs.try_iter().filter_map(|job| match job {
        Job::Foresee { job, layers, .. } => Some((job, layers)),
        _ => None,
    });
    questions.collect()
}

/// All layers in integers but the third, and an addition that is float.
fn execution(layers: &[LayerId]) -> Execution {
    let node = |name: &LayerId, op: &str, float: Option<&str>| Executed {
        name: name.clone(),
        op: op.to_owned(),
        float: float.map(str::to_owned),
        before: float.is_some(),
        behind: false,
    };
    let layer = |(at, name): (usize, &LayerId)| match at {
        2 => node(name, "Conv", Some("its input is float")),
        _ => node(name, "Conv", None),
    };
    let mut nodes: Vec<Executed> = layers.iter().enumerate().map(layer).collect();
    let add = LayerId("layer1.0.add".into());
    nodes.push(node(&add, "Add", Some("its input x is float")));
    Execution {
        target: "onnxruntime-cpu".to_owned(),
        nodes,
        to_codes: 2,
        to_float: 1,
    }
}

fn tell(rig: &mut Rig, job: JobId, layers: &[LayerId]) {
    let execution = Some(Arc::new(execution(layers)));
    rig.tell(Event::Foreseen { job, execution });
    rig.tell(Event::Finished { job });
}

/// A new project at int8, foreseen.
fn foreseen() -> Rig {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    let questions = asked(&rig);
    let (job, layers) = questions.last().expect("asked").clone();
    let ids = rig.layers();
    assert_eq!(layers.len(), ids.len());
    assert_eq!(rig.state().runs_in(&ids[0]), Some(&RunsIn::Awaited));
    tell(&mut rig, job, &ids);
    rig
}

#[test]
fn a_new_project_is_placed_for_the_runtime_and_an_old_one_is_as_it_was() {
    let rig = Rig::opened();
    let scheme = &rig.state().document.scheme;
    assert_eq!(scheme.target.as_deref(), Some("onnxruntime-cpu"));
    assert!(scheme.outputs.as_ref().is_some_and(|all| all.len() > 4));
    // Nothing is quantised: nothing is asked.
    assert_eq!(asked(&rig), []);
    assert!(!rig.state().is_dirty());
    // What a document of a project does not name it does not have.
    let old: Document = ron::from_str("()").expect("reads");
    assert_eq!(old.scheme, QuantScheme::default());
    assert_eq!(old.scheme.target, None);
}

#[test]
fn what_layers_run_in_follows_the_plan() {
    let mut rig = foreseen();
    let ids = rig.layers();
    let in_float = |rig: &Rig, id: &LayerId| match rig.state().runs_in(id) {
        Some(RunsIn::Known(node)) => node.float.is_some(),
        other => panic!("{other:?}"),
    };
    assert!(!in_float(&rig, &ids[0]));
    assert!(in_float(&rig, &ids[2]));
    let islands = rig.state().islands().expect("known").clone();
    assert_eq!((islands.integers, islands.float.len()), (21, 2));
    assert!(!islands.old);
    // Pruning changes nothing of it, nor is anything worked out anew while a slider moves; a precision does.
    let key = rig.state().foresight_key();
    rig.run(Command::ApplyPreset(Preset::Pruned(
        Precision::Int8,
        limbeck_engine::compress::Ratio(0.5),
    )));
    assert_eq!(asked(&rig), []);
    assert_eq!(rig.state().foresight_key(), key);
    assert!(in_float(&rig, &ids[2]));
    rig.run(Command::SetPrecision {
        layers: vec![ids[2].clone()],
        precision: Precision::Fp32,
    });
    let questions = asked(&rig);
    let [(job, layers)] = questions.as_slice() else {
        panic!("{questions:?}");
    };
    assert!(!layers.contains_key(&ids[2]));
    assert_eq!(rig.state().runs_in(&ids[2]), None);
    assert_eq!(rig.state().runs_in(&ids[0]), Some(&RunsIn::Awaited));
    assert!(rig.state().islands().is_some_and(|all| all.old));
    // An answer to an older question is none.
    tell(&mut rig, JobId(job.0 - 1), &ids);
    assert_eq!(rig.state().runs_in(&ids[0]), Some(&RunsIn::Awaited));
    tell(&mut rig, *job, &ids);
    assert!(!in_float(&rig, &ids[0]));
    // Without a target there is nothing to say.
    rig.run(Command::SetScheme(QuantScheme::default()));
    assert_eq!(asked(&rig), []);
    assert!(!rig.state().has_foresight());
    assert_eq!(rig.state().islands(), None);
}

#[test]
fn the_table_says_what_layers_run_in_and_what_stays_float() {
    let mut rig = foreseen();
    rig.run(Command::SetSort(SortKey::Runs));
    let third = rig.layers()[2].clone();
    let first = rig.state().visible()[0];
    assert_eq!(rig.state().layers()[first].id, third, "islands come first");
    let (mut harness, _jobs) = window(rig);
    harness.run();
    assert!(harness.query_by_label("Sort by Runs").is_some());
    let said = format!("{} runs in float", third.0);
    assert!(harness.query_by_label(&said).is_some());
    let integers = harness.query_all_by_label_contains("runs in 8-bit integers");
    assert!(integers.count() > 5);
    let line = "21 operators in integers, 2 islands of float, 3 conversions at onnxruntime-cpu";
    assert!(harness.query_by_label(line).is_some());
}

#[test]
fn what_was_cancelled_is_not_awaited_and_the_next_change_asks_again() {
    let mut rig = Rig::opened();
    rig.run(Command::ApplyPreset(Preset::All(Precision::Int8)));
    let ids = rig.layers();
    let job = asked(&rig).last().expect("asked").0;
    rig.tell(Event::Cancelled { job });
    assert_eq!(rig.state().runs_in(&ids[0]), Some(&RunsIn::Failed));
    assert_eq!(asked(&rig), []);
    let change = |rig: &mut Rig, precision| {
        rig.run(Command::SetPrecision {
            layers: vec![rig.layers()[2].clone()],
            precision,
        });
    };
    change(&mut rig, Precision::Fp32);
    let job = asked(&rig).last().expect("asked").0;
    rig.tell(Event::Cancelled { job });
    // Back at the plan before: asked once more, as nothing came of it.
    change(&mut rig, Precision::Int8);
    assert_eq!(asked(&rig).len(), 1);
    assert_eq!(rig.state().runs_in(&ids[0]), Some(&RunsIn::Awaited));
}
