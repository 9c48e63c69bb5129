//! A task without labels through the whole pipeline: pruned, distilled, quantised and judged by agreement.

use crate::{
    data::SplitName,
    exec::CancelToken,
    recipe::{Recipe, Session, Unwatched, Verdict, judge, run},
};
use std::path::Path;

const TASK: &str = r#"(
    version: 1, name: "no labels",
    sources: { "all": Idx(images: "images.gz") },
    preprocess: (scale: 0.00392156862745098), classes: Count(10),
    splits: (
        calibration: Rows(from: "all", count: 64),
        search: Rows(from: "all", start: 64, count: 200),
        training: Rows(from: "all", start: 264, count: 64),
        holdout: Rows(from: "all", start: 400, count: 300),
    ),
)"#;

#[test]
fn a_task_without_labels_is_pruned_distilled_quantised_and_judged() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    let folder = tempfile::tempdir().expect("a folder");
    let images = samples.join("t10k-images-idx3-ubyte.gz");
    std::fs::copy(images, folder.path().join("images.gz")).expect("copies");
    let task = folder.path().join("task.ron");
    std::fs::write(&task, TASK).expect("writes");
    let session = Session::open(&samples.join("fashion-resnet.onnx"), Some(&task)).expect("opens");
    let text = r#"(version: 1, model: "m", task: "t", goals: [DropPoints(60)], steps: [
        PruneChannels(amount: macs(0.8), criterion: taylor, samples: 64),
        Distil(epochs: 1, rate: 0.0001, hard_weight: 0),
        FoldBatchNorm,
        Quantize(default: set(int8), scheme: (samples: 64)),
    ])"#;
    let outcome = |text: &str| {
        let recipe = Recipe::parse(text, Path::new("r.ron")).expect("reads");
        let token = CancelToken::default();
        run(
            &session,
            &recipe,
            SplitName::Holdout,
            None,
            &mut Unwatched,
            &token,
        )
    };
    let done = outcome(text).expect("runs");
    let original = &done.baseline_metrics;
    assert!(original.unlabelled && original.top1.value == 1.0);
    let metrics = &done.metrics;
    assert!(metrics.unlabelled);
    assert_eq!(metrics.agreement, Some(metrics.top1));
    // The test pictures have labels after all: this network changes some classes, and not most.
    assert!(
        (0.5..0.999).contains(&metrics.top1.value),
        "{}",
        metrics.top1.value
    );
    let words: Vec<&str> = done.accounts.iter().map(|a| a.pass.as_str()).collect();
    assert!(
        words
            .iter()
            .any(|w| w.contains("agreement with the original (no labels)")),
        "{words:?}"
    );
    let goal = judge(
        &session_goals(text),
        metrics,
        original.top1.value,
        &done.sizes,
    )
    .remove(0);
    assert_eq!(goal.verdict, Verdict::Pass);
    let said = outcome(&text.replace("hard_weight: 0", "hard_weight: 0.1")).expect_err("no labels");
    assert!(said.to_string().contains("have no labels"), "{said}");
}

fn session_goals(text: &str) -> Vec<crate::recipe::Goal> {
    Recipe::parse(text, Path::new("r.ron"))
        .expect("reads")
        .goals
}
