//! Where features of the samples' networks are matched, and a distillation by them through the whole pipeline.

use crate::{
    data::SplitName,
    exec::CancelToken,
    formats::onnx,
    graph::Graph,
    recipe::{Recipe, Session, Unwatched, run},
    train::matched_features,
};
use std::path::{Path, PathBuf};

fn sample(name: &str) -> PathBuf {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models");
    samples.join(name)
}

fn graph(name: &str) -> Graph {
    onnx::read_model(&sample(name)).expect("reads").graph
}

#[test]
fn stages_end_where_resolutions_do() {
    let own = |name: &str| -> Vec<(usize, Vec<usize>)> {
        let graph = graph(name);
        let found = matched_features(&graph, &graph);
        // Each is its own partner.
        assert!(found.iter().all(|p| p.student == p.teacher && !p.projected));
        found
            .into_iter()
            .map(|p| (p.teacher_width, p.places))
            .collect()
    };
    let square = |found: &[(usize, Vec<usize>)], sides: &[usize]| {
        let expected: Vec<Vec<usize>> = sides.iter().map(|side| vec![*side; 2]).collect();
        let places: Vec<Vec<usize>> = found.iter().map(|(_, places)| places.clone()).collect();
        assert_eq!(places, expected);
    };
    let found = own("fashion-resnet/fashion-resnet.onnx");
    square(&found, &[28, 14, 7]);
    let lite = own("efficientnet-lite0/efficientnet-lite0.onnx");
    square(&lite, &[112, 56, 28, 14, 7]);
    assert_eq!(lite[4].0, 1280);
    let encoder = own("fashion-encoder/fashion-encoder.onnx");
    assert!((2..=4).contains(&encoder.len()), "{encoder:?}");
    assert!(encoder.iter().all(|(_, places)| places.len() == 1));
    // Those of another network by resolution alone, with projections where widths differ.
    let (resnet, lite) = (
        graph("fashion-resnet/fashion-resnet.onnx"),
        graph("efficientnet-lite0/efficientnet-lite0.onnx"),
    );
    let across = matched_features(&resnet, &lite);
    assert_eq!(across.len(), 3);
    for pair in &across {
        assert!(pair.student != pair.teacher);
        assert_eq!(pair.projected, pair.student_width != pair.teacher_width);
    }
}

#[test]
fn a_pruned_and_quantised_sample_is_distilled_by_its_features() {
    let model = sample("fashion-resnet/fashion-resnet.onnx");
    let task = sample("fashion-resnet/task.ron");
    let session = Session::open(&model, Some(&task)).expect("opens");
    let text = r#"(version: 1, model: "m", task: "t", steps: [
        PruneChannels(amount: macs(0.6), criterion: l2, samples: 64),
        FoldBatchNorm,
        Quantize(default: set(int8), scheme: (samples: 64)),
        Distil(epochs: 1, samples: 128, rate: 0.001, feature_weight: 1.0, attention_weight: 1.0),
    ])"#;
    let recipe = Recipe::parse(text, Path::new("r.ron")).expect("reads");
    let token = CancelToken::default();
    let done = run(
        &session,
        &recipe,
        SplitName::Search,
        Some(64),
        &mut Unwatched,
        &token,
    );
    let done = done.expect("runs");
    let words: Vec<&str> = done.accounts.iter().map(|a| a.pass.as_str()).collect();
    let told = words.last().expect("accounts");
    assert_eq!(told.matches(" with the original's ").count(), 3, "{told}");
    assert!(told.contains("channels, projected)"), "{told}");
}
