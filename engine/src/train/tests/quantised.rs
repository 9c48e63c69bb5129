//! Training through rounding: masks, straight-through gradients, learned step sizes.

use super::*;

#[test]
fn masks_hold_and_quantised_weights_train() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    let mut student = model(net(
        4,
        Variant {
            quantised: true,
            ..Variant::default()
        },
    ));
    let mask: Vec<bool> = (0..6 * 6 * 9).map(|i| i % 2 == 0).collect();
    student.masks.insert("second.weight".into(), mask.clone());
    let before = weight(&student.graph, "second.weight");
    let done = train(
        student,
        &teacher,
        &data,
        &DistilSettings {
            epochs: 14,
            ..settings()
        },
        &mut Watch::default(),
    )
    .unwrap();
    let after = weight(&done.model.graph, "second.weight");
    for ((kept, before), after) in mask.iter().zip(&before).zip(&after) {
        assert_eq!(*kept, *after != 0.0, "{before} → {after}");
        assert!(!kept || before != after);
    }
    assert_eq!(done.model.masks["second.weight"], mask);
    assert!(done.best.unwrap().value > 0.8, "{:?}", done.best);
    let mut wrong = model(net(4, Variant::default()));
    wrong.masks.insert("second.weight".into(), vec![true; 3]);
    let error = train(wrong, &teacher, &data, &settings(), &mut Watch::default()).unwrap_err();
    assert!(error.to_string().contains("second.weight"), "{error}");
}

#[test]
fn step_sizes_are_learned_and_kept_with_the_weights() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    let mut student = model(net(
        4,
        Variant {
            quantised: true,
            ..Variant::default()
        },
    ));
    // Codes of ±127 reach a tenth of the weights only.
    let at = student.graph.find_value("second.scale").unwrap();
    student.graph.values[at.0 as usize].data = Some(crate::graph::TensorData::scalar(0.0002));
    let run = |learned_step_sizes: bool, threads: usize| {
        let settings = DistilSettings {
            epochs: 14,
            rate: 0.05,
            learned_step_sizes,
            ..settings()
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let watch = &mut Watch::default();
        pool.install(|| train(student.clone(), &teacher, &data, &settings, watch))
            .unwrap()
    };
    let scale = |done: &Distilled| weight(&done.model.graph, "second.scale")[0];
    let (fixed, learned) = (run(false, 2), run(true, 2));
    assert_eq!((fixed.step_sizes, learned.step_sizes), (0, 1));
    assert!(fixed.best_epoch > 0 && learned.best_epoch > 0);
    assert_eq!(scale(&fixed), 0.0002);
    assert!(scale(&learned) > 0.0003, "{}", scale(&learned));
    assert_eq!(
        weights(&run(true, 1).model.graph),
        weights(&learned.model.graph)
    );
}
