//! Without labels: the teacher's outputs are all there is to learn from and to be judged by.

use super::net::AUGMENTED;
use super::*;
use crate::data::SplitName;

/// The data of [`task`] without the file of labels.
fn unlabelled(splits: &str, teacher: &Graph) -> (tempfile::TempDir, Dataset) {
    let (folder, _) = task(splits);
    let path = folder.path().join("task.ron");
    let text = std::fs::read_to_string(&path).unwrap();
    let without = text.replace(r#", labels: "labels""#, "");
    assert_ne!(text, without);
    std::fs::write(&path, without).unwrap();
    std::fs::remove_file(folder.path().join("labels")).unwrap();
    let data = Dataset::open(&path).unwrap().labelled_by(teacher);
    (folder, data)
}

fn soft_only() -> DistilSettings {
    DistilSettings {
        epochs: 8,
        soft_weight: 1.0,
        hard_weight: 0.0,
        ..settings()
    }
}

#[test]
fn students_learn_and_are_judged_by_agreement() {
    let (_folder, labelled) = task(SPLITS);
    let teacher = teacher(&labelled);
    let (_folder, data) = unlabelled(SPLITS, &teacher);
    assert!(!data.has_labels(SplitName::Training) && !data.has_labels(SplitName::Search));
    assert!(data.labels(SplitName::Search).is_empty());
    let student = || model(net(2, Variant::default()));
    let run = |data: &Dataset| {
        let mut watch = Watch::default();
        train(student(), &teacher, data, &soft_only(), &mut watch).unwrap()
    };
    let done = run(&data);
    assert!(done.best.unwrap().value > 0.85, "{:?}", done.best);
    assert!(done.best_epoch > 0);
    // Labels were not looked at where there are some, either: the same steps to the bit.
    let losses = |d: &Distilled| {
        d.points
            .iter()
            .map(|p| p.loss.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(losses(&done), losses(&run(&labelled)));
    // The teacher agrees with itself wholly, and its own labels are what agreement is.
    let evaluate = |graph: &Graph, data: &Dataset| {
        let program = crate::exec::Program::compile(graph, crate::exec::Mode::Inference).unwrap();
        let token = CancelToken::default();
        let nobody = &mut crate::eval::NoObserver;
        crate::eval::evaluate(&program, data, SplitName::Search, None, nobody, &token).unwrap()
    };
    let original = evaluate(&teacher, &data);
    let metrics = original.metrics(None);
    assert!(original.unlabelled && metrics.unlabelled);
    assert_eq!((metrics.top1.value, metrics.top1.n), (1.0, 90));
    let after = evaluate(&done.model.graph, &data).metrics(Some(&original));
    assert_eq!(after.agreement, Some(after.top1));
    assert_eq!(after.top1_name(), "agreement with the original");
    let drop = after.drop.unwrap();
    assert!((drop.drop - (1.0 - after.top1.value)).abs() < 1e-12);
    let by_labels = evaluate(&done.model.graph, &labelled);
    let same = by_labels.metrics(Some(&evaluate(&teacher, &labelled)));
    assert_eq!(same.agreement, after.agreement);
    assert!(!same.unlabelled && same.top1_name() == "top-1");
}

#[test]
fn mixed_images_need_no_labels_either_and_labels_that_are_wanted_are_missed() {
    let teacher = net(1, Variant::default());
    let (_folder, data) = unlabelled(AUGMENTED, &teacher);
    let run = |settings: &DistilSettings| {
        let student = model(net(2, Variant::default()));
        train(student, &teacher, &data, settings, &mut Watch::default())
    };
    let augmented = DistilSettings {
        epochs: 1,
        augment: true,
        ..soft_only()
    };
    assert_eq!(run(&augmented).unwrap().points.len(), 8);
    let hard = DistilSettings {
        hard_weight: 0.1,
        ..augmented
    };
    let said = run(&hard).unwrap_err().to_string();
    assert!(
        said.contains("have no labels") && said.contains("`hard_weight: 0`"),
        "{said}"
    );
}
