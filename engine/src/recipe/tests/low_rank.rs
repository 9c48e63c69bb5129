//! Layers of the sample networks taken apart, through the whole pipeline.

use crate::{
    compress::{AccountEntry, LOW_RANK, Outcome, Precision, testkit::Net},
    data::SplitName,
    exec::CancelToken,
    graph::ValueId,
    recipe::{
        Lock, Recipe, RecipeError, RunOutcome, Session, Unwatched, build, from_ron,
        low_rank::heirs, run,
    },
    search::LayerFacts,
};
use std::path::Path;

fn parse(steps: &str) -> Result<Recipe, RecipeError> {
    let text = format!("(version: 1, model: \"m\", task: \"t\", steps: [{steps}])");
    Recipe::parse(&text, Path::new("r.ron"))
}

fn outcome_of(sample: &str, steps: &str) -> (Session, RunOutcome) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sample-models")
        .join(sample);
    let model = folder.join(format!("{sample}.onnx"));
    // Both classify the same images.
    let task = folder.join("../fashion-resnet/task.ron");
    let session = Session::open(&model, Some(&task)).expect("opens");
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

/// Both samples to a budget and to int8: the file has the factors, both quantised, and what the lock says of them.
#[test]
fn samples_are_taken_apart_and_quantised() {
    for (sample, share) in [("fashion-resnet", 0.8), ("fashion-encoder", 0.7)] {
        let steps = format!(
            "FoldBatchNorm, LowRank(rank: macs({share}), samples: 64), Quantize(default: set(int8), scheme: (samples: 32))"
        );
        let (session, outcome) = outcome_of(sample, &steps);
        let (before, after) = (session.layers.len(), outcome.graph.layers());
        assert!(after.len() > before, "{sample}");
        let macs: u64 = session.layers.iter().filter_map(|l| l.macs).sum();
        let left = outcome.sizes.macs.expect("known shapes");
        assert!(
            left as f64 <= share * macs as f64,
            "{sample}: {left} of {macs}"
        );
        assert!(
            left as f64 > (share - 0.03) * macs as f64,
            "{sample}: {left} of {macs}"
        );
        // So it stands in the file.
        let file = outcome.bytes.as_ref().clone();
        let file = crate::formats::onnx::read_bytes(file.into()).expect("reads back");
        let counted: u64 = file.layers().iter().filter_map(|l| l.macs).sum();
        assert_eq!(
            (file.layers().len(), counted),
            (after.len(), left),
            "{sample}"
        );
        // Four in five answers stay, without any training.
        let kept = outcome.metrics.agreement.as_ref().expect("compared").value;
        assert!(kept > 0.8, "{sample}: {kept}");
        let lock = Lock::of(&session, &outcome, "text").expect("locks");
        let text = lock.to_ron().expect("writes");
        let read: Lock = from_ron(&text, Path::new("lock")).expect("reads");
        assert_eq!(read.layers, lock.layers);
        assert_eq!(lock.layers.len(), after.len());
        for layer in &lock.layers {
            assert_eq!(
                layer.precision,
                Precision::Int8,
                "{sample}: {}",
                layer.name.0
            );
            assert!(layer.weight.is_some() && layer.input.is_some());
        }
        let done = |e: &&AccountEntry| matches!(e.outcome, Outcome::Done(_));
        let apart = outcome.accounts[1].entries.iter().filter(done).count();
        assert_eq!(after.len(), before + apart, "{sample}");
        assert!(
            outcome.accounts[1]
                .pass
                .contains(&format!("{left} of {macs} MACs"))
        );
    }
}

/// Training works on the factors, which then move; the rules of a layer hold for both of its factors.
#[test]
fn factors_are_trained_and_obey_their_layer() {
    let (session, outcome) = outcome_of(
        "fashion-resnet",
        "FoldBatchNorm, LowRank(default: keep, layers: [(\"layer3*\", set(0.5))], samples: 32), \
         Prune(default: keep, layers: [(\"layer3*\", set(0.25))]), Distil(epochs: 1, samples: 512)",
    );
    let layers = outcome.graph.layers();
    let factors: Vec<_> = layers
        .iter()
        .filter(|l| l.id.0.ends_with(LOW_RANK))
        .collect();
    assert!(!factors.is_empty());
    for factor in factors {
        assert!(factor.id.0.starts_with("layer3"), "{:?}", factor.id);
        let data = outcome
            .graph
            .value(factor.weight)
            .data
            .as_ref()
            .expect("a weight");
        let weights = data.to_f32_vec();
        let zeros = weights.iter().filter(|w| **w == 0.0).count();
        assert_eq!(
            zeros,
            (weights.len() as f64 * 0.25).round() as usize,
            "{:?}",
            factor.id
        );
    }
    let untrained = parse(
        "FoldBatchNorm, LowRank(default: keep, layers: [(\"layer3*\", set(0.5))], samples: 32), \
         Prune(default: keep, layers: [(\"layer3*\", set(0.25))])",
    )
    .expect("reads");
    let built = build(
        &session,
        &untrained,
        &mut Unwatched,
        &CancelToken::default(),
    )
    .expect("builds");
    assert_eq!(built.graph.layers().len(), layers.len());
    assert_ne!(built.model_sha256, outcome.model_sha256);
}

#[test]
fn orders_and_numbers_without_a_meaning_are_refused() {
    let fine = "PruneChannels(amount: macs(0.5)), LowRank(), FoldBatchNorm, LowRank(kernels: spatial), Distil()";
    let recipe = parse(fine).expect("reads");
    let again = Recipe::parse(&recipe.to_ron().expect("writes"), Path::new("r.ron"));
    assert_eq!(again.expect("reads"), recipe);
    for (wrong, said) in [
        (
            "Prune(default: set(0.5)), LowRank()",
            "must come before Prune and Quantize",
        ),
        (
            "LowRank(), PruneChannels(amount: macs(0.5))",
            "must come before LowRank",
        ),
        (
            "Equalize(), LowRank(), Quantize(default: set(int8))",
            "must come after LowRank",
        ),
        ("LowRank(default: keep)", "nothing would be taken apart"),
        (
            "LowRank(rank: macs(1.0))",
            "a share above 0 and less than 1",
        ),
        ("LowRank(default: set(1.5))", "a share of energy"),
        ("LowRank(round_to: 0)", "at least 1"),
        ("LowRank(kernel: spatial)", "kernels"),
    ] {
        let error = parse(wrong).expect_err(wrong).to_string();
        assert!(error.contains(said), "{wrong}: {error}");
    }
}

#[test]
fn names_of_factors_lead_to_their_layer() {
    let mut net = Net::new(1, &[4, 6, 6]);
    let mut x = ValueId(0);
    for name in [
        "a",
        "a.low_rank",
        "a.low_rank.low_rank_2",
        "b.low_rank",
        "b.low_rank.low_rank",
        "c.low_rank",
    ] {
        x = net.conv(name, x, [4, 4, 1, 1], 1, false);
    }
    let layers = net.finish(&[x]).graph.layers();
    let known: Vec<_> = layers
        .iter()
        .filter(|l| ["a", "b.low_rank"].contains(&&*l.id.0))
        .map(|l| LayerFacts {
            id: l.id.clone(),
            op: l.op.into(),
            weight_shape: l.weight_shape.clone(),
            channel_axis: 0,
            params: 16,
            macs: None,
        })
        .collect();
    let found = heirs(&layers, &known);
    let found: Vec<(&str, &str)> = found.iter().map(|(l, id)| (&*l.id.0, &*id.0)).collect();
    let wanted = [
        ("a.low_rank", "a"),
        ("a.low_rank.low_rank_2", "a"),
        ("b.low_rank.low_rank", "b.low_rank"),
    ];
    assert_eq!(found, wanted);
}
