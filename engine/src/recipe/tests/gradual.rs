//! N:M patterns and pruning while training, in recipes and through the whole pipeline.

use crate::{
    compress::{Outcome, Pattern, Ratio},
    data::SplitName,
    exec::CancelToken,
    graph::{Graph, LayerId},
    recipe::{Recipe, RecipeError, RunObserver, RunOutcome, Session, Step, run},
};
use std::path::Path;

fn parse(steps: &str) -> Result<Recipe, RecipeError> {
    let text = format!("(version: 1, model: \"m\", task: \"t\", steps: [{steps}])");
    Recipe::parse(&text, Path::new("r.ron"))
}

/// Keeps what stands before the training.
#[derive(Default)]
struct Before(Option<RunOutcome>);

impl RunObserver for Before {
    fn progress(&mut self, _: u64, _: u64, _: &str) {}
    fn wants_before_training(&self) -> bool {
        true
    }
    fn before_training(&mut self, outcome: RunOutcome) {
        self.0 = Some(outcome);
    }
}

/// Zeros of a layer's weight, by output channel of a convolution and group of 4 inputs.
fn groups(graph: &Graph, layer: &str) -> Vec<usize> {
    let layer = graph.layer(&LayerId(layer.into())).expect("a layer");
    let weights = graph
        .value(layer.weight)
        .data
        .as_ref()
        .expect("a constant")
        .to_f32_vec();
    let taps: usize = layer.weight_shape[2..].iter().product();
    let group = |o: usize, first: usize, tap: usize| {
        let at = |i: usize| weights[(o * layer.weight_shape[1] + first + i) * taps + tap];
        (0..4).filter(|i| at(*i) == 0.0).count()
    };
    let mut found = Vec::new();
    for o in 0..layer.weight_shape[0] {
        for first in (0..layer.weight_shape[1]).step_by(4) {
            found.extend((0..taps).map(|tap| group(o, first, tap)));
        }
    }
    found
}

/// The sample to 2:4 while it trains, then to int8: every group has its two zeros in the exported file.
#[test]
fn the_sample_is_pruned_to_a_pattern_while_it_trains() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    let model = folder.join("fashion-resnet.onnx");
    let session = Session::open(&model, Some(&folder.join("task.ron"))).expect("opens");
    let recipe = parse(
        "FoldBatchNorm, Prune(default: keep, layers: [(\"layer3*\", set(0.5)), (\"conv1\", set(0.5))], pattern: groups(4), \
         schedule: cubic(end: 1.0, updates: 4)), Distil(epochs: 1, samples: 256), \
         Quantize(default: set(int8), scheme: (activations: float))",
    )
    .expect("reads");
    let mut before = Before::default();
    let cancel = CancelToken::default();
    let split = SplitName::Search;
    let outcome = run(&session, &recipe, split, Some(200), &mut before, &cancel).expect("runs");
    let account = |at: usize, layer: &str| {
        let entries = &outcome.accounts[at].entries;
        entries
            .iter()
            .find(|e| &*e.layer.0 == layer)
            .map(|e| e.outcome.clone())
    };
    // One input channel has no groups of four.
    assert!(matches!(account(1, "conv1"), Some(Outcome::NotDone(why)) if why.contains("1 inputs")));
    assert!(matches!(account(1, "layer3.0.conv1"), Some(Outcome::Done(w)) if w.contains("2:4")));
    let trained = &outcome.accounts[2].pass;
    let layers = session
        .layers
        .iter()
        .filter(|l| l.id.0.starts_with("layer3"));
    let mut weights = 0_usize;
    for layer in layers {
        let found = groups(&outcome.graph, &layer.id.0);
        // A weight that stays may be rounded to zero by int8; none of those that go comes back.
        assert!(found.iter().all(|zeros| *zeros >= 2), "{:?}", layer.id);
        weights += layer.weight_shape.iter().product::<usize>();
    }
    let said = format!("{} of {weights} weights pruned on the way", weights / 2);
    assert!(trained.contains(&said), "{said}: {trained}");
    // What stood before the training was not pruned at all, and its recipe says so.
    let before = before.0.expect("told");
    assert_eq!(before.recipe.steps, [Step::FoldBatchNorm]);
    assert_eq!(before.accounts.len(), 1);
    assert!(
        groups(&before.graph, "layer3.0.conv2")
            .iter()
            .all(|zeros| *zeros == 0)
    );
    // Without training all of it goes at once.
    let Some(Step::Prune(prune)) = recipe.without_training().steps.get(1).cloned() else {
        panic!("a Prune step");
    };
    assert_eq!((prune.schedule, prune.pattern), (None, Pattern::Groups(4)));
    assert_eq!(
        outcome.resolved.layers[&LayerId("layer3.0.conv1".into())].sparsity,
        Ratio(0.5)
    );
}

#[test]
fn patterns_and_timelines_without_a_meaning_are_refused() {
    let fine = "Prune(default: set(0.75), pattern: groups(4), schedule: cubic(end: 1.5)), Distil(epochs: 2), \
                Quantize(default: set(int8)), Distil(epochs: 1)";
    let recipe = parse(fine).expect("reads");
    let again = Recipe::parse(&recipe.to_ron().expect("writes"), Path::new("r.ron"));
    assert_eq!(again.expect("reads"), recipe);
    // What is left out is not written: recipes of before stay as they were.
    let plain = parse("Prune(default: set(0.5))")
        .expect("reads")
        .to_ron()
        .expect("writes");
    assert!(
        !plain.contains("pattern") && !plain.contains("schedule"),
        "{plain}"
    );
    for (wrong, said) in [
        (
            "Prune(default: set(0.3), pattern: groups(4))",
            "0.25 (3:4) or 0.5 (2:4)",
        ),
        (
            "Prune(default: keep, layers: [(\"a\", set(0.4))], pattern: groups(4))",
            "`a`: a ratio of 0.4",
        ),
        (
            "Prune(default: set(0.5), pattern: groups(1))",
            "groups of 2 to 64",
        ),
        ("Prune(default: set(0.5), pattern: group(4))", "groups"),
        (
            "Prune(default: set(0.5), schedule: cubic(end: 1.0))",
            "put Distil right behind it",
        ),
        (
            "Prune(default: set(0.5), schedule: cubic(end: 1.0)), Quantize(default: set(int8)), Distil()",
            "put Distil right behind it",
        ),
        (
            "Prune(default: set(0.5), schedule: iterative(end: 3.0, rounds: 3)), Distil(epochs: 2)",
            "ends at epoch 3, but the Distil behind it trains 2 epochs",
        ),
        (
            "Prune(default: set(0.5), schedule: cubic(end: 2.0)), Distil(epochs: 2, stop_after: 1)",
            "trains 1 epochs",
        ),
        (
            "Prune(default: set(0.5), schedule: cubic(begin: 2.0, end: 1.0)), Distil(epochs: 2)",
            "an end behind the beginning",
        ),
        (
            "Prune(default: set(0.5), schedule: cubic(end: 1.0, updates: 0)), Distil(epochs: 2)",
            "updates of the masks",
        ),
        (
            "Prune(default: set(0.5), schedule: cubic(end: 1.0, steps: 4)), Distil(epochs: 2)",
            "updates",
        ),
    ] {
        let error = parse(wrong).expect_err(wrong).to_string();
        assert!(error.contains(said), "{wrong}: {error}");
    }
}
