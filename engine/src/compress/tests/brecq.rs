//! Roundings by block, on a small mobile network: a residual inverted block and one without a sum.

use super::{super::brecq::units, adaround::rounded, *};
use crate::{
    data::{Dataset, SplitName},
    exec::{CancelToken, ExecError},
    formats::onnx,
    graph::{BinaryOp, Op, ValueId},
};
use std::path::Path;

const FIRST: [&str; 3] = ["expand", "depthwise", "project"];
const ALL: [&str; 8] = [
    "stem",
    "expand",
    "depthwise",
    "project",
    "wide",
    "through",
    "narrow",
    "head",
];

/// stem → relu → (expand → relu → depthwise → relu → project, itself) → add → relu → expand → relu → depthwise → relu → project → pool → head.
fn mobile(seed: u64) -> Model {
    let mut net = Net::new(seed, &[1, 6, 6]);
    let x = net.conv("stem", ValueId(0), [6, 1, 3, 3], 1, true);
    let stem = net.relu("stem_relu", x);
    let x = net.conv("expand", stem, [12, 6, 1, 1], 1, true);
    let x = net.relu("expand_relu", x);
    let x = net.conv("depthwise", x, [12, 1, 3, 3], 12, true);
    let x = net.relu("depthwise_relu", x);
    let x = net.conv("project", x, [6, 12, 1, 1], 1, true);
    let x = net.node("add", Op::Binary(BinaryOp::Add), &[x, stem]);
    let x = net.relu("add_relu", x);
    let x = net.conv("wide", x, [12, 6, 1, 1], 1, true);
    let x = net.relu("wide_relu", x);
    let x = net.conv("through", x, [12, 1, 3, 3], 12, true);
    let x = net.relu("through_relu", x);
    let x = net.conv("narrow", x, [8, 12, 1, 1], 1, true);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let x = net.linear("head", x, [3, 8], 0.1);
    net.finish(&[x])
}

fn quick() -> BrecqSettings {
    BrecqSettings {
        samples: 40,
        iterations: 200,
        batch: 8,
        rate: 0.05,
        ..BrecqSettings::default()
    }
}

fn on(layers: &[&str]) -> Brecq {
    Brecq {
        settings: quick(),
        layers: layers.iter().copied().map(id).collect(),
    }
}

/// The network at `precision`, its float form, and its data.
fn start(
    seed: u64,
    precision: Precision,
    weight_symmetry: Symmetry,
) -> (tempfile::TempDir, Dataset, Model, Model) {
    let (folder, data) = task(seed);
    let cancel = CancelToken::default();
    let context = PassContext {
        data: Some(&data),
        cancel: &cancel,
        seed: 0,
    };
    let prune = MagnitudePrune {
        ratios: [(id("project"), Ratio(0.25))].into(),
        ..MagnitudePrune::default()
    };
    let (float, _) = prune.apply(mobile(seed), &context).unwrap();
    let quantise = Quantize {
        scheme: QuantScheme {
            weight_symmetry,
            ..QuantScheme::default()
        },
        layers: ALL.map(|l| (id(l), precision)).into(),
        ranges: None,
    };
    let (quantised, _) = quantise.apply(float.clone(), &context).unwrap();
    (folder, data, float, quantised)
}

/// Squared error of a value against the float network's, on images that no pass saw.
fn error(data: &Dataset, (float, model): (&Model, &Model), value: &str) -> f32 {
    let x = data.batch(SplitName::Search, 0..60).unwrap().images;
    let at = |model: &Model| {
        let mut graph = model.graph.clone();
        graph.outputs = vec![graph.find_value(value).expect("a value of both")];
        run_on(&graph, &x)
    };
    let (wanted, found) = (at(float), at(model));
    let squares = wanted.iter().zip(&found).map(|(a, b)| (a - b).powi(2));
    squares.sum()
}

/// Input, output and layers of each block.
fn named(graph: &Graph) -> Vec<(String, String, Vec<String>)> {
    let layers = graph.layers();
    let name = |value| graph.value(value).name.clone();
    units(graph, &layers)
        .iter()
        .map(|unit| {
            let within = unit.layers.iter().map(|l| layers[*l].id.0.to_string());
            (name(unit.input), name(unit.output), within.collect())
        })
        .collect()
}

#[test]
fn blocks_reach_from_cut_to_cut() {
    let (_folder, _, float, quantised) = start(41, Precision::Int4, Symmetry::Symmetric);
    let found = named(&float.graph);
    let [(input, output, first), (_, end, second)] = found.as_slice() else {
        panic!("two blocks: {found:?}");
    };
    assert_eq!((&**input, &**output), ("stem_relu_out", "add_relu_out"));
    assert_eq!(*first, FIRST);
    assert_eq!(*end, "narrow_out");
    assert_eq!(*second, ["wide", "through", "narrow"]);
    // Quantisers change nothing of that.
    let layers = |found: &[(String, String, Vec<String>)]| -> Vec<(String, Vec<String>)> {
        let parts = found
            .iter()
            .map(|(_, end, layers)| (end.clone(), layers.clone()));
        parts.collect()
    };
    assert_eq!(layers(&named(&quantised.graph)), layers(&found));
}

#[test]
fn blocks_of_real_networks() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models");
    let of = |name: &str| {
        let file = onnx::read_model(&folder.join(name)).expect("the sample is there");
        named(&file.graph)
    };
    let count = |found: &[(String, String, Vec<String>)]| -> Vec<usize> {
        found.iter().map(|(.., layers)| layers.len()).collect()
    };
    // Shortcuts that are convolutions belong to their block.
    let found = of("fashion-resnet/fashion-resnet.onnx");
    assert_eq!(count(&found), [2, 2, 2, 3, 2, 2, 3, 2, 2], "{found:?}");
    // Blocks with and without a sum; the first expands nothing.
    let found = of("efficientnet-lite0/efficientnet-lite0.onnx");
    let mut wanted = vec![3; 16];
    wanted[0] = 2;
    assert_eq!(count(&found), wanted, "{found:?}");
    // Attention, and the two products behind it.
    let found = of("fashion-encoder/fashion-encoder.onnx");
    assert!(
        count(&found).chunks(2).all(|pair| pair == [4, 2]),
        "{found:?}"
    );
}

#[test]
fn only_floors_and_ceilings_are_chosen_and_the_outputs_come_nearer() {
    for (precision, symmetry) in [
        (Precision::Int4, Symmetry::Symmetric),
        (Precision::Int3, Symmetry::Asymmetric),
    ] {
        let (_folder, data, float, quantised) = start(42, precision, symmetry);
        let (chosen, account) = rounded(&data, quantised.clone(), &on(&ALL));
        for layer in FIRST {
            let Outcome::Done(words) = outcome(&account, layer) else {
                panic!("{account:?}");
            };
            assert!(words.contains("the block expand to project"), "{words}");
            assert!(words.contains("5 of 40 samples"), "{words}");
        }
        let packed = (pack(&quantised).unwrap(), pack(&chosen).unwrap());
        // Scales are frozen.
        assert_eq!(quantized_layers(&packed.0), quantized_layers(&packed.1));
        let half = 1 << (precision.bits().unwrap() - 1);
        let (lo, hi) = (-(half as f32), half as f32 - 1.0);
        let mut moved = 0;
        for layer in quantized_layers(&packed.1) {
            let name = &*layer.layer.0;
            let quant = layer.weight.unwrap();
            let codes = weight_of(&packed.1, name);
            let weights = weight_of(&float.graph, name);
            let per = codes.len() / quant.scale.len();
            for (i, (code, w)) in codes.iter().zip(&weights).enumerate() {
                let zero = quant.zero_point[i / per] as f32;
                let steps = w / quant.scale[i / per];
                let floor = (steps.floor() + zero).clamp(lo, hi);
                let ceiling = (steps.ceil() + zero).clamp(lo, hi);
                assert!(
                    *code == floor || *code == ceiling,
                    "{name} {i}: {code} for {steps}"
                );
                if *w == 0.0 {
                    assert_eq!(*code, zero, "pruned weights stay zero");
                }
                let nearest = (steps.round_ties_even() + zero).clamp(lo, hi);
                moved += usize::from(*code != nearest && FIRST.contains(&name));
            }
            // What it is held against stays the float network.
            let kept = chosen.originals.get(&format!("{name}.weight"));
            if let Some(original) = kept {
                assert!(original.bound);
                assert_eq!(original.weights, weights, "{name}");
            }
        }
        assert!(moved > 0);
        for value in ["add_relu_out", "narrow_out", "head_out"] {
            let before = error(&data, (&float, &quantised), value);
            let after = error(&data, (&float, &chosen), value);
            assert!(after < 0.8 * before, "{value}: {before} → {after}");
        }
        let x = data.batch(SplitName::Search, 0..60).unwrap().images;
        assert_eq!(run_on(&chosen.graph, &x), run_on(&packed.1, &x));
    }
}

/// What the paper is about: layers that are chosen together bring the block's output nearer than each by itself.
#[test]
fn a_block_comes_nearer_than_its_layers_one_by_one() {
    let mut ratios = Vec::new();
    for seed in 50..54 {
        let (_folder, data, float, quantised) = start(seed, Precision::Int3, Symmetry::Symmetric);
        let alone = AdaRound {
            settings: AdaRoundSettings {
                samples: 40,
                ..AdaRoundSettings::default()
            },
            layers: FIRST.map(id).into(),
        };
        let mut together = on(&FIRST);
        together.settings.iterations = 400;
        together.settings.rate = BrecqSettings::default().rate;
        let (alone, _) = rounded(&data, quantised.clone(), &alone);
        let (together, _) = rounded(&data, quantised, &together);
        let error = |model: &Model| error(&data, (&float, model), "add_relu_out");
        ratios.push(error(&together) / error(&alone));
    }
    let mean = ratios.iter().map(|r| r.ln()).sum::<f32>() / ratios.len() as f32;
    assert!(mean.exp() < 0.9, "{ratios:?}");
}

#[test]
fn the_choice_does_not_hang_on_threads() {
    let (_folder, data, _, quantised) = start(43, Precision::Int4, Symmetry::Symmetric);
    let mut pass = on(&ALL);
    pass.settings.iterations = 60;
    let with = |threads: usize| {
        on_threads(threads, || {
            pack(&rounded(&data, quantised.clone(), &pass).0).unwrap()
        })
    };
    let one = with(1);
    assert_eq!(one, with(3));
    assert_ne!(one, pack(&quantised).unwrap());
}

/// Ranges of each inference are taken of one sample at a time, and gradients go the general way.
#[test]
fn fixed_batches_and_dynamic_ranges_are_rounded_too() {
    let (_folder, data, float, quantised) = start(44, Precision::Int3, Symmetry::Symmetric);
    let mut pass = on(&FIRST);
    pass.settings.iterations = 100;
    for batch in [1, 3] {
        let mut fixed = quantised.clone();
        Net::fix(&mut fixed.graph, batch);
        let (chosen, account) = rounded(&data, fixed, &pass);
        assert!(
            matches!(outcome(&account, "depthwise"), Outcome::Done(_)),
            "{account:?}"
        );
        assert!(pack(&chosen).is_ok());
    }
    let quantise = Quantize {
        scheme: QuantScheme {
            activations: Activations::Dynamic,
            ..QuantScheme::default()
        },
        layers: ALL.map(|l| (id(l), Precision::Int3)).into(),
        ranges: None,
    };
    let (dynamic, _) = with_context(|c| quantise.apply(float.clone(), c)).unwrap();
    let (_, account) = rounded(&data, dynamic, &pass);
    assert!(
        matches!(outcome(&account, "depthwise"), Outcome::Done(_)),
        "{account:?}"
    );
}

#[test]
fn what_gains_nothing_or_cannot_be_done_is_left_with_a_reason() {
    let (_folder, data, float, quantised) = start(45, Precision::Int4, Symmetry::Symmetric);
    let (_, account) = rounded(&data, float.clone(), &on(&FIRST));
    assert_eq!(refused(&account, "expand"), "its weight is not quantised");
    assert_eq!(refused(&account, "head"), "not asked for");
    // A step that moves nothing is no choice.
    let mut idle = on(&FIRST);
    (idle.settings.iterations, idle.settings.rate) = (1, 1e-6);
    let (same, account) = rounded(&data, quantised.clone(), &idle);
    let reason = refused(&account, "project");
    assert!(
        reason.contains("nothing gained") && reason.contains("the block expand to project"),
        "{reason}"
    );
    assert_eq!(pack(&same).unwrap(), pack(&quantised).unwrap());
    // Samples that cannot be parted into those to choose by and those to judge by.
    let mut single = on(&FIRST);
    single.settings.samples = 1;
    let (_, account) = rounded(&data, quantised.clone(), &single);
    let reason = refused(&account, "project");
    assert!(reason.contains("two samples at least"), "{reason}");
    let error = with_context(|c| on(&FIRST).apply(quantised.clone(), c)).unwrap_err();
    assert!(error.to_string().contains("needs data"), "{error}");
    let cancel = CancelToken::default();
    cancel.cancel();
    let context = PassContext {
        data: Some(&data),
        cancel: &cancel,
        seed: 0,
    };
    assert!(matches!(
        on(&FIRST).apply(quantised, &context),
        Err(CompressError::Exec(ExecError::Cancelled))
    ));
    type Wrong = fn(&mut BrecqSettings);
    let wrong: [Wrong; 5] = [
        |s| s.samples = 0,
        |s| s.iterations = 0,
        |s| s.batch = 0,
        |s| s.rate = f32::NAN,
        |s| s.decision = -1.0,
    ];
    for spoil in wrong {
        let mut settings = quick();
        spoil(&mut settings);
        assert!(settings.check().is_err(), "{settings:?}");
    }
}
