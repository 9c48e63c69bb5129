//! Values shared in a sample network, through the whole pipeline.

use crate::{
    compress::Outcome,
    data::SplitName,
    exec::CancelToken,
    graph::Graph,
    measure::sizes,
    recipe::{Lock, Recipe, RecipeError, RunOutcome, Session, Unwatched, from_ron, run},
};
use std::{collections::BTreeSet, path::Path};

fn parse(steps: &str) -> Result<Recipe, RecipeError> {
    let text = format!("(version: 1, model: \"m\", task: \"t\", steps: [{steps}])");
    Recipe::parse(&text, Path::new("r.ron"))
}

fn outcome_of(steps: &str) -> (Session, RunOutcome) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    let model = folder.join("fashion-resnet.onnx");
    let session = Session::open(&model, Some(&folder.join("task.ron"))).expect("opens");
    let recipe = parse(steps).expect("reads");
    let outcome = run(
        &session,
        &recipe,
        SplitName::Search,
        Some(200),
        &mut Unwatched,
        &CancelToken::default(),
    )
    .expect("runs");
    (session, outcome)
}

/// The list of a layer's values, where each channel's begins, and the codes.
fn shared(graph: &Graph, layer: &str) -> (Vec<f32>, Vec<i64>, Vec<i64>) {
    let layers = graph.layers();
    let layer = layers.iter().find(|l| &*l.id.0 == layer).expect("a layer");
    let all = graph.shared_values();
    let shared = all
        .iter()
        .find(|s| s.codes == layer.weight)
        .expect("shares values");
    let data = |id| graph.value(id).data.as_ref().expect("a constant");
    (
        data(shared.codebook).to_f32_vec(),
        shared.offsets.map_or(vec![0], |id| data(id).to_i64_vec()),
        data(shared.codes).to_i64_vec(),
    )
}

/// Sixteen values a layer: the file is less than a sixth, most answers stay; training moves the values and nothing else of the weights, pruned ones
/// stay zero; the lock holds the account.
#[test]
fn values_are_shared_and_trained() {
    let prune = "FoldBatchNorm, Prune(default: set(0.5))";
    for (codebooks, smaller, values) in [("per_layer", 6, 16), ("per_channel", 3, 8)] {
        let steps = format!(
            "{prune}, Cluster(default: set({values}), layers: [(\"conv1\", keep)], codebooks: {codebooks})"
        );
        let (session, plain) = outcome_of(&steps);
        let whole = sizes(&session.graph).expect("sizes");
        let now = plain.sizes;
        assert!(
            now.stored.0 * smaller < whole.stored.0,
            "{now:?} against {whole:?}"
        );
        assert!(now.theoretical.0 * 10 < 9 * now.stored.0, "{now:?}");
        assert!(
            now.runtime.0 * 10 > 9 * whole.runtime.0,
            "{now:?} against {whole:?}"
        );
        assert_eq!(now.macs, whole.macs);
        let kept = plain.metrics.agreement.as_ref().expect("compared").value;
        assert!(kept > 0.85, "{kept}");
        let account = &plain.accounts[2];
        assert!(
            matches!(account.entries[0].outcome, Outcome::NotDone(_)),
            "{account:?}"
        );
        let lock = Lock::of(&session, &plain, "text").expect("locks");
        let read: Lock =
            from_ron(&lock.to_ron().expect("writes"), Path::new("lock")).expect("reads");
        assert_eq!((read.accounts, read.sizes), (lock.accounts, now));

        // The trained form is the same but for an Add: one of the two will do.
        if codebooks == "per_layer" {
            continue;
        }
        let (_, trained) = outcome_of(&format!("{steps}, Distil(epochs: 1, samples: 256)"));
        assert_eq!(trained.sizes.stored, now.stored);
        assert_eq!(trained.sizes.nonzero_params, now.nonzero_params);
        let mut moved = 0;
        for layer in session.layers.iter().filter(|l| &*l.id.0 != "conv1") {
            let (a, begins, codes) = shared(&plain.graph, &layer.id.0);
            let (b, same_begins, same) = shared(&trained.graph, &layer.id.0);
            assert_eq!((&codes, &begins), (&same, &same_begins));
            for begin in &begins {
                assert_eq!((a[*begin as usize], b[*begin as usize]), (0.0, 0.0));
            }
            assert!(codes.iter().collect::<BTreeSet<_>>().len() <= values);
            let zeros = codes.iter().filter(|c| **c == 0).count();
            assert_eq!(zeros, codes.len().div_ceil(2), "{:?}", layer.id);
            moved += usize::from(a != b);
        }
        assert!(moved > 15, "{moved} layers' values moved");
        if trained.metrics.top1.value < plain.metrics.top1.value - 0.03 {
            panic!("training made it worse: {:?}", trained.metrics.top1);
        }
    }
}

#[test]
fn orders_and_numbers_without_a_meaning_are_refused() {
    let fine = "LowRank(), Prune(default: set(0.5)), Cluster(default: keep, layers: [(\"a\", set(32))], codebooks: per_channel), Distil()";
    let recipe = parse(fine).expect("reads");
    let again = Recipe::parse(&recipe.to_ron().expect("writes"), Path::new("r.ron"));
    assert_eq!(again.expect("reads"), recipe);
    for (wrong, said) in [
        (
            "Cluster(default: set(16)), FoldBatchNorm",
            "only Distil may come after it",
        ),
        (
            "Cluster(default: set(16)), Quantize(default: set(int8))",
            "only Distil may come after it",
        ),
        (
            "Cluster(default: set(16)), Cluster(default: set(8))",
            "stands here twice",
        ),
        ("Cluster(default: set(1))", "2 to 256"),
        (
            "Cluster(default: keep, layers: [(\"a\", set(300))])",
            "2 to 256",
        ),
        ("Cluster(default: keep)", "nothing would share values"),
        ("Cluster(default: set(-1))", "out of bounds"),
        (
            "Cluster(default: set(16), codebook: per_layer)",
            "codebooks",
        ),
        (
            "Cluster(default: set(16)), Distil(learned_step_sizes: true)",
            "nothing is quantised yet",
        ),
    ] {
        let error = parse(wrong).expect_err(wrong).to_string();
        assert!(error.contains(said), "{wrong}: {error}");
    }
}
