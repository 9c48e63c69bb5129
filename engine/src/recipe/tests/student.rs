//! A student of the sample through the whole pipeline: layers that are gone are asked nothing of and are told in the lock.

use crate::{
    compress::Precision,
    data::SplitName,
    exec::CancelToken,
    recipe::{Lock, Recipe, Session, Unwatched, from_ron, run},
};
use std::path::Path;

fn parse(steps: &str) -> Result<Recipe, crate::recipe::RecipeError> {
    let text = format!("(version: 1, model: \"m\", task: \"t\", steps: [{steps}])");
    Recipe::parse(&text, Path::new("r.ron"))
}

#[test]
fn a_student_is_distilled_and_quantised() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    let model = folder.join("fashion-resnet.onnx");
    let session = Session::open(&model, Some(&folder.join("task.ron"))).expect("opens");
    let steps = "Student(width: 0.5, depth: 0.5, samples: 64), \
        Distil(epochs: 1, samples: 64, feature_weight: 1.0), FoldBatchNorm, \
        Quantize(default: set(int8), layers: [(\"layer3*\", set(int4))], scheme: (samples: 64))";
    let recipe = parse(steps).expect("reads");
    let token = CancelToken::default();
    let done = run(
        &session,
        &recipe,
        SplitName::Search,
        Some(64),
        &mut Unwatched,
        &token,
    );
    let outcome = done.expect("runs");
    // Half of the blocks that keep their resolution and width are gone, two layers each; half of the channels of what is left.
    let left = outcome.graph.layers();
    let gone: Vec<&str> = session
        .layers
        .iter()
        .map(|l| &*l.id.0)
        .filter(|id| !left.iter().any(|l| *l.id.0 == **id))
        .collect();
    let blocks = crate::compress::blocks(&session.graph).len();
    assert_eq!(gone.len(), 2 * (blocks - blocks.div_ceil(2)), "{gone:?}");
    let macs: u64 = session.layers.iter().filter_map(|l| l.macs).sum();
    let now = outcome.sizes.macs.expect("known shapes");
    assert!(now * 4 < macs, "{now} of {macs}");
    let lock = Lock::of(&session, &outcome, "text").expect("locks");
    assert_eq!(lock.layers.len(), session.layers.len());
    for layer in &lock.layers {
        assert_eq!(
            layer.gone,
            gone.contains(&&*layer.name.0),
            "{}",
            layer.name.0
        );
        let quantised = matches!(layer.precision, Precision::Int8 | Precision::Int4);
        assert_eq!(quantised, !layer.gone, "{}", layer.name.0);
    }
    let text = lock.to_ron().expect("writes");
    let read: Lock = from_ron(&text, Path::new("lock")).expect("reads");
    assert_eq!(read.layers, lock.layers);
    let told = &outcome.accounts[1].pass;
    assert!(told.contains("channels, projected)"), "{told}");
    // The same again, to the bit.
    let again = run(
        &session,
        &recipe,
        SplitName::Search,
        Some(64),
        &mut Unwatched,
        &token,
    );
    assert_eq!(again.expect("runs").model_sha256, outcome.model_sha256);
}

#[test]
fn a_student_comes_first_and_is_less_than_the_original() {
    let said = |steps: &str| parse(steps).expect_err("refused").to_string();
    let first = said("FoldBatchNorm, Student(width: 0.5)");
    assert!(
        first.contains("Student must be the first step") && first.contains("r.ron:1:"),
        "{first}"
    );
    assert!(said("Student(width: 0.5), Student(depth: 0.5)").contains("must be the first step"));
    assert!(said("Student()").contains("would be the original"));
    assert!(said("Student(width: 0.0)").contains("width: a share above 0"));
    assert!(said("Student(widht: 0.5)").contains("`width`?"));
    // There is something to recover.
    assert!(parse("Student(depth: 0.5), Distil()").is_ok());
}
