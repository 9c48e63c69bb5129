//! Features held against the teacher's while training: where they are taken, what is learned, and that it is gone on with to the bit.

use super::*;
use crate::{
    compress::{
        Activations, Amount, ChannelSettings, Pass, PassContext, Pattern, Precision, PruneChannels,
        PruneSchedule, QuantScheme, Quantize,
    },
    graph::LayerId,
    train::matching::Matching,
};
use std::collections::BTreeMap;

/// A network from which half of the channels were taken.
fn pruned(graph: &Graph) -> Model {
    let pass = PruneChannels {
        settings: ChannelSettings {
            amount: Amount::Channels(0.5),
            reestimate: false,
            ..ChannelSettings::default()
        },
        layers: BTreeMap::new(),
    };
    let context = PassContext {
        data: None,
        cancel: &CancelToken::default(),
        seed: 0,
    };
    pass.apply(model(graph.clone()), &context).unwrap().0
}

/// With the second convolution's weights in 8 bits.
fn quantised(model: Model) -> Model {
    let pass = Quantize {
        scheme: QuantScheme {
            activations: Activations::Float,
            ..QuantScheme::default()
        },
        layers: BTreeMap::from([(LayerId("second".into()), Precision::Int8)]),
        ranges: None,
    };
    let context = PassContext {
        data: None,
        cancel: &CancelToken::default(),
        seed: 0,
    };
    pass.apply(model, &context).unwrap().0
}

fn within(feature_weight: f32, attention_weight: f32) -> DistilSettings {
    DistilSettings {
        feature_weight,
        attention_weight,
        soft_weight: 0.0,
        hard_weight: 0.0,
        weight_decay: 0.0,
        ..settings()
    }
}

fn run(student: &Model, teacher: &Graph, settings: &DistilSettings) -> Distilled {
    let (_folder, data) = task(SPLITS);
    train(
        student.clone(),
        teacher,
        &data,
        settings,
        &mut Watch::default(),
    )
    .unwrap()
}

#[test]
fn who_is_the_teacher_has_nothing_to_learn() {
    let net = net(1, Variant::default());
    let done = run(&model(net.clone()), &net, &within(1.0, 1.0));
    assert!(
        done.points.iter().all(|p| p.loss == 0.0),
        "{:?}",
        done.points[0]
    );
    assert_eq!(weights(&done.model.graph), weights(&net));
    let pair = &done.matched[0];
    assert_eq!(
        (pair.student.as_str(), pair.teacher.as_str()),
        ("relu", "relu")
    );
    assert_eq!((done.matched.len(), pair.projected), (1, false));
}

#[test]
fn pruned_and_quantised_students_learn_from_features_alone() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    let (narrow, quantised) = (
        pruned(&teacher),
        model(net(
            2,
            Variant {
                quantised: true,
                ..Variant::default()
            },
        )),
    );
    for (student, projected, weights) in [
        (&narrow, true, (1.0, 0.0)),
        (&narrow, true, (1.0, 0.5)),
        (&narrow, false, (0.0, 1.0)),
        (&quantised, false, (1.0, 0.0)),
    ] {
        let settings = DistilSettings {
            epochs: 6,
            ..within(weights.0, weights.1)
        };
        let done = run(student, &teacher, &settings);
        assert_eq!(done.matched[0].projected, projected);
        let (first, last) = (done.points[0].loss, done.points[47].loss);
        assert!(last < 0.6 * first, "{weights:?}: {first} {last}");
        if weights == (1.0, 0.0) && projected {
            // A projection that begins at zero says nothing: half of the energy is the error.
            assert!((first - 0.5).abs() < 1e-6, "{first}");
        }
        // What was trained beside the student does not stay in it.
        assert_eq!(done.model.graph.values.len(), student.graph.values.len());
        assert_eq!(done.model.graph.outputs, student.graph.outputs);
        let names = |g: &Graph| g.values.iter().any(|v| v.name.contains("projection"));
        assert!(!names(&done.model.graph));
    }
    // Beside soft labels they add to the loss, and the student still learns what it is for.
    let both = DistilSettings {
        epochs: 8,
        feature_weight: 1.0,
        attention_weight: 1.0,
        ..settings()
    };
    let done = run(&narrow, &teacher, &both);
    let plain = DistilSettings {
        feature_weight: 0.0,
        attention_weight: 0.0,
        ..both
    };
    assert!(done.points[0].loss > run(&narrow, &teacher, &plain).points[0].loss + 0.5);
    assert!(done.best.unwrap().value > 0.85, "{:?}", done.best);
}

#[test]
fn projections_are_part_of_checkpoints() {
    let settings = DistilSettings {
        samples: Some(150),
        epochs: 4,
        feature_weight: 2.0,
        attention_weight: 1.0,
        average: Some(0.9),
        clip_norm: Some(1.0),
        ..settings()
    };
    let student = quantised(pruned(&net(1, Variant::default())));
    let done = going_on::check_every_checkpoint(&student, &settings);
    assert!(
        done.matched[0].projected && done.points.len() == 20,
        "{}",
        done.points.len()
    );
    // By the mini-batch's statistics as well, which all pieces of a batch have a part in.
    let by_batch = DistilSettings {
        batch_norm: BatchNorm::Batch {
            freeze_at: 0.6,
            momentum: 0.9,
        },
        augment: true,
        ..settings
    };
    let student = pruned(&net(1, Variant::default()));
    let done = going_on::check_every_checkpoint(&student, &by_batch);
    assert!(done.batch_norms == 2 && done.matched[0].projected);
}

#[test]
fn masks_grow_beside_projections_and_both_are_gone_on_with() {
    let cubic = PruneSchedule::Cubic {
        begin: 0.0,
        end: 2.0,
        updates: 8,
    };
    let student = pruned(&net(1, Variant::default()));
    let student = going_on::to_be_halved(student, Pattern::Unstructured, cubic);
    let settings = DistilSettings {
        samples: Some(150),
        feature_weight: 2.0,
        ..settings()
    };
    let (done, kept) = going_on::check_checkpoints(&student, &settings);
    assert!(done.matched[0].projected);
    let growing: Vec<usize> = kept.iter().map(going_on::gone).collect();
    // Half of 3 × 3 × 9.
    assert_eq!(done.pruned, Some((41, 81)));
    assert!(growing.iter().any(|n| (1..41).contains(n)), "{growing:?}");
    let weights = weight(&done.model.graph, "second.weight");
    assert_eq!(weights.iter().filter(|w| **w == 0.0).count(), 41);
}

#[test]
fn the_bits_do_not_depend_on_the_threads() {
    let teacher = net(1, Variant::default());
    let student = pruned(&teacher);
    let settings = DistilSettings {
        epochs: 2,
        ..within(1.0, 1.0)
    };
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let done = pool.unwrap().install(|| run(&student, &teacher, &settings));
        done.points
            .iter()
            .map(|p| p.loss.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn what_cannot_be_matched_is_said() {
    let net = net(1, Variant::default());
    let mut vectors = net.clone();
    // Nothing but vectors is left of it.
    vectors
        .nodes
        .retain(|n| matches!(&*n.name, "flatten" | "head"));
    let said = Matching::new(&vectors, &net, &within(1.0, 0.0));
    let said = said.err().unwrap().to_string();
    assert!(
        said.contains("has the resolution of one of the original's"),
        "{said}"
    );
    let wrong = DistilSettings {
        attention_weight: -1.0,
        ..settings()
    };
    assert!(
        wrong
            .check()
            .unwrap_err()
            .to_string()
            .contains("attention_weight is -1")
    );
}
