mod cluster;
mod features;
mod foresight;
mod gradual;
mod label_free;
mod low_rank;
mod methods;
mod student;
mod student_file;
mod targets;

use super::*;
use crate::{
    compress::{Absorb, EqualizeSettings, LayerSetting, OnLayers},
    data::SplitName,
    eval::{Estimate, Metrics, PairedDrop},
    graph::LayerId,
    measure::{Bytes, Sizes},
    search::LayerFacts,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn facts(names: &[&str]) -> Vec<LayerFacts> {
    names
        .iter()
        .map(|name| LayerFacts {
            id: LayerId((*name).into()),
            op: "Conv".into(),
            weight_shape: vec![4, 4, 3, 3],
            channel_axis: 0,
            params: 144,
            macs: Some(1000),
        })
        .collect()
}

fn parse(text: &str) -> Result<Recipe, RecipeError> {
    Recipe::parse(text, Path::new("r.ron"))
}

fn message(text: &str) -> String {
    parse(text).expect_err("must be refused").to_string()
}

const GOOD: &str = r#"// a comment
(
    version: 1,
    model: "m.onnx",
    task: "task.ron",
    goals: [DropPoints(2.0), StoredKilobytes(90)],
    steps: [
        FoldBatchNorm,
        Prune(default: set(0.5), layers: [("conv1", keep), ("stage3*", set(0.7))]),
        Quantize(
            default: set(int8),
            layers: [("stage*", set(int4)), ("stage2*", set(fp16)), ("stage2.a", keep)],
            scheme: (calibration: percentile(99.9), int4_weights: group(32)),
        ),
        Distil(epochs: 1, samples: 2000),
    ],
)
"#;

#[test]
fn precedence_is_default_then_later_glob_then_name() {
    let recipe = parse(GOOD).expect("reads");
    let layers = facts(&[
        "conv1", "stage1.a", "stage2.a", "stage2.b", "stage3.a", "fc",
    ]);
    let resolved = resolve(&recipe, &layers).expect("resolves");
    let precision = |n: &str| resolved.layers[&LayerId(n.into())].precision;
    let ratio = |n: &str| resolved.layers[&LayerId(n.into())].sparsity.0;
    assert_eq!(precision("conv1"), Precision::Int8);
    assert_eq!(precision("stage1.a"), Precision::Int4);
    assert_eq!(precision("stage2.b"), Precision::Fp16);
    assert_eq!(precision("stage2.a"), Precision::Fp32);
    assert_eq!(ratio("conv1"), 0.0);
    assert_eq!(ratio("stage3.a"), 0.7);
    assert_eq!(ratio("fc"), 0.5);
    let ResolvedStep::Quantize { layers, .. } = &resolved.steps[2] else {
        panic!("third step");
    };
    assert!(!layers.contains_key(&LayerId("stage2.a".into())));
}

#[test]
fn writing_is_stable_and_reads_back() {
    let recipe = parse(GOOD).expect("reads");
    let text = recipe.to_ron().expect("writes");
    assert_eq!(parse(&text).expect("reads back"), recipe, "{text}");
    assert_eq!(parse(&text).expect("again").to_ron().expect("writes"), text);
}

#[test]
fn typing_errors_name_line_column_and_the_nearest_name() {
    let at = |wrong: &str, right: &str| message(&GOOD.replacen(right, wrong, 1));
    let e = at("defalt: set(int8)", "default: set(int8)");
    assert!(e.starts_with("r.ron:11:"), "{e}");
    assert!(e.contains("did you mean `default`?"), "{e}");
    let e = at("set(int9)", "set(int8)");
    assert!(
        e.contains("`int9`") && e.contains("did you mean `int8`?"),
        "{e}"
    );
    let e = at("Prun(", "Prune(");
    assert!(e.starts_with("r.ron:9:") && e.contains("`Prune`"), "{e}");
    let e = at("version: 2", "version: 1");
    assert!(e.starts_with("r.ron:3:") && e.contains("version 2"), "{e}");
    let e = at("epochs: \"x\"", "epochs: 1");
    assert!(e.starts_with("r.ron:15:"), "{e}");
    let e = at("", "model: \"m.onnx\",");
    assert!(e.contains("`model` is missing"), "{e}");
    for broken in ["", "(", "\u{0}", &GOOD[..GOOD.len() / 2]] {
        assert!(parse(broken).is_err());
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    let at = |wrong: &str, right: &str| message(&GOOD.replacen(right, wrong, 1));
    assert!(at("set(1.0)", "set(0.5)").contains("less than 1"));
    assert!(at("set(-0.1)", "set(0.7)").starts_with("r.ron:9:"));
    assert!(at("DropPoints(0)", "DropPoints(2.0)").starts_with("r.ron:6:"));
    assert!(
        at(
            "StoredKilobytes(9), StoredKilobytes(90)",
            "StoredKilobytes(90)"
        )
        .contains("twice")
    );
    assert!(at("percentile(20)", "percentile(99.9)").contains("50..=100"));
    assert!(at("group(0)", "group(32)").contains("at least one"));
    assert!(at("epochs: 0", "epochs: 1").contains("epochs"));
    let steps = |s: &str| {
        message(&format!(
            "(version: 1, model: \"m\", task: \"t\", steps: [{s}])"
        ))
    };
    let prune = "Prune(default: set(0.5))";
    let quantize = "Quantize(default: set(int8))";
    assert!(steps(&format!("{prune}, FoldBatchNorm")).contains("must come before Prune"));
    assert!(steps(&format!("{quantize}, {prune}")).contains("before Quantize"));
    assert!(steps(&format!("{quantize}, {quantize}")).contains("second Quantize"));
    assert!(steps("Distil()").contains("nothing to recover"));
    assert!(steps(&format!("{prune}, Distil(), Distil()")).contains("in a row"));
    let learned = "Distil(learned_step_sizes: true)";
    assert!(steps(&format!("{prune}, {learned}, {quantize}")).contains("behind Quantize"));
    let reads = |s: &str| {
        parse(&format!(
            "(version: 1, model: \"m\", task: \"t\", steps: [{s}])"
        ))
    };
    assert!(reads(&format!("{quantize}, {learned}")).is_ok());
}

#[test]
fn rules_that_match_nothing_are_errors_at_their_own_place() {
    let recipe = parse(GOOD).expect("reads");
    let without = |name: &str| {
        let names: Vec<_> = ["conv1", "stage1.a", "stage2.a", "stage2.b", "stage3.a"]
            .into_iter()
            .filter(|n| !n.starts_with(name))
            .collect();
        resolve(&recipe, &facts(&names))
            .expect_err("unmatched")
            .locate(Path::new("r.ron"), GOOD)
            .to_string()
    };
    let e = without("conv1");
    assert!(
        e.starts_with("r.ron:9:") && e.contains("no layer `conv1`"),
        "{e}"
    );
    let e = without("stage3");
    assert!(
        e.contains("glob `stage3*`") && e.contains("did you mean `stage"),
        "{e}"
    );
    let e = without("stage2.a");
    assert!(e.starts_with("r.ron:12:"), "{e}");
    let twice = GOOD.replace(
        "(\"conv1\", keep)",
        "(\"conv1\", keep), (\"conv1\", set(0.1))",
    );
    let e = resolve(
        &parse(&twice).expect("reads"),
        &facts(&["conv1", "stage3.a"]),
    )
    .expect_err("twice")
    .locate(Path::new("r.ron"), &twice)
    .to_string();
    assert!(e.contains("set twice") && e.starts_with("r.ron:9:"), "{e}");
    assert_eq!(e.split(':').nth(2), Some("61"), "{e}");
}

fn sizes(stored: u64) -> Sizes {
    Sizes {
        stored: Bytes(stored),
        theoretical: Bytes(stored),
        runtime: Bytes(stored),
        params: 1,
        nonzero_params: 1,
        macs: None,
    }
}

fn metrics(drop: Option<PairedDrop>) -> Metrics {
    let e = Estimate {
        value: 0.9,
        n: 1000,
        ci: [0.88, 0.92],
    };
    Metrics {
        split: SplitName::Holdout,
        top1: e,
        top5: e,
        cross_entropy: e,
        agreement: None,
        per_class: Vec::new(),
        drop,
        simulated: None,
        unlabelled: false,
    }
}

#[test]
fn a_verdict_needs_the_whole_interval() {
    let drop = |drop: f64, half: f64| {
        Some(PairedDrop {
            drop,
            ci: [drop - half, drop + half],
            n: 1000,
            only_baseline: 1,
            only_candidate: 1,
        })
    };
    let points =
        |d, limit| judge(&[Goal::DropPoints(limit)], &metrics(d), 0.9, &sizes(1)).remove(0);
    assert_eq!(points(drop(0.01, 0.005), 2.0).verdict, Verdict::Pass);
    assert_eq!(points(drop(0.03, 0.005), 2.0).verdict, Verdict::Fail);
    let open = points(drop(0.01, 0.02), 2.0);
    assert_eq!(open.verdict, Verdict::Inconclusive);
    // Half the interval is twice the distance to the limit: four times the samples, three times as many more.
    assert_eq!(open.samples_needed, Some(3000));
    assert!(open.words.contains("absolute") && open.words.contains("n = 1,000"));
    assert!(
        open.words.contains("about 3,000 more samples"),
        "{}",
        open.words
    );
    // A limit that nearly is the drop: no number that nobody can gather.
    let close = points(drop(0.0199, 0.02), 2.0);
    assert!(close.samples_needed > Some(100_000));
    assert!(
        close.words.contains("too close to the measured drop"),
        "{}",
        close.words
    );
    assert_eq!(points(drop(0.02, 0.01), 2.0).samples_needed, None);
    assert_eq!(points(None, 2.0).verdict, Verdict::Inconclusive);
    let relative = judge(
        &[Goal::DropRelativePercent(2.0)],
        &metrics(drop(0.019, 0.0005)),
        0.9,
        &sizes(1),
    )
    .remove(0);
    assert_eq!(
        relative.verdict,
        Verdict::Fail,
        "1.9 points of 90 are 2.1 percent"
    );
    let size = judge(
        &[Goal::StoredKilobytes(90.0)],
        &metrics(None),
        0.9,
        &sizes(90_001),
    );
    assert_eq!(size[0].verdict, Verdict::Fail);
    assert_eq!(overall(&size), Some(Verdict::Fail));
    assert_eq!(overall(&[]), None);
}

#[test]
fn without_labels_a_drop_can_be_passed_but_not_failed() {
    let unlabelled = |goal, drop: f64, half: f64| {
        let drop = PairedDrop {
            drop,
            ci: [drop - half, drop + half],
            n: 1000,
            only_baseline: 1,
            only_candidate: 0,
        };
        let metrics = Metrics {
            unlabelled: true,
            ..metrics(Some(drop))
        };
        judge(&[goal], &metrics, 1.0, &sizes(1)).remove(0)
    };
    // No more accuracy can be lost than classes changed.
    let few = unlabelled(Goal::DropPoints(2.0), 0.01, 0.005);
    assert_eq!(few.verdict, Verdict::Pass);
    assert!(
        few.words.contains("1.00 changed its class"),
        "{}",
        few.words
    );
    for drop in [0.018, 0.05] {
        let many = unlabelled(Goal::DropPoints(2.0), drop, 0.005);
        assert_eq!(
            (many.verdict, many.samples_needed),
            (Verdict::Inconclusive, None)
        );
        assert!(many.words.contains("without labels"), "{}", many.words);
    }
    // One in a hundred may be two in a hundred of those that were right.
    let relative = unlabelled(Goal::DropRelativePercent(2.0), 0.01, 0.005);
    assert_eq!(relative.verdict, Verdict::Inconclusive);
    assert!(
        relative.words.contains("not known without labels"),
        "{}",
        relative.words
    );
}

fn setting() -> impl Strategy<Value = LayerSetting> {
    (0..4usize, 0..4usize).prop_map(|(p, r)| LayerSetting {
        precision: [
            Precision::Fp32,
            Precision::Fp16,
            Precision::Int8,
            Precision::Int4,
        ][p],
        sparsity: Ratio([0.0, 0.25, 0.1, 0.7][r]),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_plan_becomes_a_recipe_that_gives_the_plan_back(
        plan in proptest::collection::btree_map("[ab][./_]?[ab*?{\\[]{0,3}[./]?[a-c]{0,2}", setting(), 0..12),
        channels: bool,
        blocks in proptest::option::of(1_usize..4),
        shares: bool,
        trains: bool,
        gradual: bool,
        kinds in proptest::sample::subsequence(MethodKind::ALL.to_vec(), 0..=MethodKind::ALL.len()),
    ) {
        let names: Vec<&str> = plan.keys().map(String::as_str).collect();
        let layers = facts(&names);
        let plan: BTreeMap<LayerId, LayerSetting> =
            plan.iter().map(|(n, s)| (LayerId(n.as_str().into()), *s)).collect();
        // Of those that choose codes a plan has one.
        let one = kinds.iter().find(|kind| kind.chooses_codes()).copied();
        let kinds = kinds.into_iter().filter(|kind| !kind.chooses_codes() || Some(*kind) == one);
        // Training would move weights off chosen codes; shared values take no step behind them.
        let kinds = kinds.filter(|kind| !(trains && kind.chooses_codes()));
        let methods: Vec<Step> = kinds.map(MethodKind::step).collect();
        let shrinking = crate::recipe::Shrinking {
            blocks: blocks.map(|n| crate::recipe::PruneBlocksStep { count: Some(n), ..Default::default() }),
            cluster: shares.then(|| crate::recipe::ClusterStep {
                default: Choice::Set(16), layers: Vec::new(), codebooks: Default::default(),
            }),
            schedule: gradual.then_some(crate::compress::PruneSchedule::Cubic { begin: 0.0, end: 1.5, updates: 4 }),
            ..Default::default()
        };
        let distil = trains.then(crate::train::DistilSettings::default);
        let context = PlanContext {
            trained: Vec::new(),
            name: "plan".into(), model: "m".into(), task: "t".into(), seed: 3,
            goals: vec![Goal::DropPoints(1.5)], scheme: QuantScheme::default(), channels, shrinking: shrinking.clone(), methods: methods.clone(), distil,
        };
        let recipe = Recipe::from_plan(&context, &layers, &plan);
        let own: Vec<&Step> = recipe.steps.iter().filter(|s| MethodKind::of(s).is_some()).collect();
        let integers = plan.values().any(|s| s.precision.is_integer());
        prop_assert_eq!(own, methods.iter().filter(|_| integers).collect::<Vec<_>>());
        let text = recipe.to_ron().expect("writes");
        let back = parse(&text).expect("reads");
        prop_assert_eq!(&back, &recipe);
        let resolved = resolve(&back, &layers).expect("resolves");
        // What the plan says beside its rules comes back where a step holds it.
        let held = crate::recipe::Shrinking::of(&back.steps).expect("all of it is a plan's");
        let some = !back.steps.is_empty();
        prop_assert_eq!(held.blocks, shrinking.blocks.filter(|_| some));
        let float = plan.values().any(|s| s.precision == Precision::Fp32);
        prop_assert_eq!(held.cluster.is_some(), shares && float);
        let masks = !channels && plan.values().any(|s| s.sparsity.0 > 0.0);
        prop_assert_eq!(held.schedule.is_some(), gradual && trains && masks);
        prop_assert_eq!(back.trains(), trains && some);
        prop_assert_eq!(resolved.layers, plan);
    }
}

#[test]
fn a_uniform_stage_becomes_one_glob() {
    let layers = facts(&["conv", "s1.a", "s1.b", "s2.a", "s2.b", "s2.c", "s2.d", "fc"]);
    let plan = layers
        .iter()
        .map(|l| {
            let precision = if l.id.0.starts_with("s1.") {
                Precision::Int4
            } else {
                Precision::Int8
            };
            (
                l.id.clone(),
                LayerSetting {
                    precision,
                    ..LayerSetting::KEEP
                },
            )
        })
        .collect();
    let context = PlanContext {
        trained: Vec::new(),
        name: String::new(),
        model: "m".into(),
        task: "t".into(),
        seed: 0,
        goals: Vec::new(),
        scheme: QuantScheme::default(),
        channels: false,
        shrinking: crate::recipe::Shrinking::default(),
        methods: Vec::new(),
        distil: None,
    };
    let recipe = Recipe::from_plan(&context, &layers, &plan);
    let Some(Step::Quantize(step)) = recipe.steps.get(1) else {
        panic!("fold, then quantise");
    };
    assert_eq!(step.layers.len(), 1);
    assert_eq!(step.layers[0].0, "s1.*");
}

#[test]
fn channels_go_before_folding_and_quantising() {
    let channels = "PruneChannels(amount: macs(0.5), criterion: taylor, layers: [(\"conv1\", keep), (\"s*\", set(0.5))])";
    let steps = |steps: &str| format!("(version: 1, model: \"m\", task: \"t\", steps: [{steps}])");
    let recipe = parse(&steps(&format!(
        "{channels}, Distil(), FoldBatchNorm, Quantize(default: set(int8)), Distil()"
    )))
    .expect("reads");
    assert_eq!(
        parse(&recipe.to_ron().expect("writes")).expect("reads"),
        recipe
    );
    let resolved = resolve(&recipe, &facts(&["conv1", "s1", "fc"])).expect("resolves");
    let Some(ResolvedStep::PruneChannels { settings, layers }) = resolved.steps.first() else {
        panic!("the channels first: {resolved:?}");
    };
    assert_eq!(settings.amount, crate::compress::Amount::Macs(0.5));
    let of = |name: &str| layers.get(&LayerId(name.into())).copied();
    assert_eq!(
        (of("conv1"), of("s1"), of("fc")),
        (Some(None), Some(Some(Ratio(0.5))), None)
    );
    // The share that goes is not known before the work is done: only ratios are a layer's setting.
    assert!(resolved.layers.values().all(|s| s.sparsity == Ratio(0.0)));
    for (wrong, said) in [
        (
            format!("Quantize(default: set(int8)), {channels}"),
            "must come before Quantize",
        ),
        ("PruneChannels()".to_owned(), "nothing would go"),
        (
            "PruneChannels(amount: macs(1.5))".to_owned(),
            "a share above 0",
        ),
        (
            "PruneChannels(amount: macs(0.5), round_to: 0)".to_owned(),
            "at least 1",
        ),
        ("PruneChannels(default: set(2.0))".to_owned(), "less than 1"),
        ("PruneChannels(amount: mac(0.5))".to_owned(), "macs"),
    ] {
        let error = message(&steps(&wrong));
        assert!(error.contains(said), "{wrong}: {error}");
    }
}
