//! What training takes: averages of weights, norms of gradients, changed images.

use super::net::AUGMENTED;
use super::*;

fn run(data: &Dataset, settings: &DistilSettings) -> Distilled {
    let teacher = teacher(data);
    let student = model(net(2, Variant::default()));
    train(student, &teacher, data, settings, &mut Watch::default()).unwrap()
}

#[test]
fn what_is_kept_is_the_average_of_the_weights() {
    let (_folder, data) = task(SPLITS);
    let settings = |average| DistilSettings {
        epochs: 8,
        average,
        ..settings()
    };
    let (plain, average) = (
        run(&data, &settings(None)),
        run(&data, &settings(Some(0.9))),
    );
    // Training itself is the same; what is judged and kept is not.
    let losses = |d: &Distilled| {
        d.points
            .iter()
            .map(|p| p.loss.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(losses(&plain), losses(&average));
    assert_ne!(weights(&plain.model.graph), weights(&average.model.graph));
    assert!(average.best.unwrap().value > 0.85, "{:?}", average.best);
    // One that is next to none is the weights themselves, but for a tenth.
    let faint = run(&data, &settings(Some(1e-6)));
    let kept = |d: &Distilled| weight(&d.model.graph, "head.weight");
    assert_eq!(faint.best_epoch, plain.best_epoch);
    for (a, b) in kept(&faint).iter().zip(kept(&plain)) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn a_clipped_norm_bounds_the_steps() {
    let (_folder, data) = task(SPLITS);
    let settings = |clip_norm| DistilSettings {
        epochs: 1,
        optimizer: Optimizer::Sgd,
        schedule: Schedule::Constant,
        weight_decay: 0.0,
        clip_norm,
        ..settings()
    };
    let moved = |clip_norm| {
        let done = run(&data, &settings(clip_norm));
        done.points.last().unwrap().loss
    };
    // Steps of next to no length change next to nothing; those of a norm that is never reached are as without.
    let still = run(&data, &settings(Some(1e-6)));
    let (first, last) = (still.points[0].loss, still.points[7].loss);
    assert!((first - last).abs() < 0.3 * first, "{first} {last}");
    assert_eq!(moved(Some(1e6)), moved(None));
    assert_ne!(moved(Some(0.5)), moved(None));
}

#[test]
fn students_learn_from_changed_images() {
    let (_folder, plain) = task(SPLITS);
    let (_other, data) = task(AUGMENTED);
    let on = DistilSettings {
        epochs: 10,
        augment: true,
        ..settings()
    };
    let off = DistilSettings {
        augment: false,
        ..on.clone()
    };
    let (changed, same) = (run(&data, &on), run(&data, &off));
    assert_ne!(changed.points[0].loss, same.points[0].loss);
    assert!(changed.best.unwrap().value > 0.8, "{:?}", changed.best);
    // It is asked for, but the task does not say what may be done.
    let teacher = net(1, Variant::default());
    let student = model(net(2, Variant::default()));
    let error = train(student, &teacher, &plain, &on, &mut Watch::default()).unwrap_err();
    assert!(
        error.to_string().contains("augment: (flip: true"),
        "{error}"
    );
}
