//! Methods of quantisation in a recipe: switched by layer, their orders, one choice of codes a layer.

use super::*;

const METHODS: &str = r#"(
    version: 1,
    model: "m.onnx",
    task: "task.ron",
    steps: [
        FoldBatchNorm,
        Prune(default: set(0.5)),
        Equalize(layers: [("fc", off)], settings: (absorb: deviations(2.5), samples: 10)),
        Quantize(
            default: set(int7),
            layers: [("stage*", set(int3))],
            scheme: (weight_symmetry: asymmetric, calibration: entropy),
        ),
        AdaRound(default: off, layers: [("stage*", on), ("stage1.b", off)], settings: (samples: 32, iterations: 500)),
        CorrectBias(samples: 100),
    ],
)"#;

#[test]
fn methods_are_switched_by_layer() {
    let recipe = parse(METHODS).expect("reads");
    let layers = facts(&["conv1", "stage1.a", "stage1.b", "fc"]);
    let resolved = resolve(&recipe, &layers).expect("resolves");
    let names = |layers: &std::collections::BTreeSet<LayerId>| -> Vec<String> {
        layers.iter().map(|l| l.0.to_string()).collect()
    };
    assert_eq!(
        resolved.layers[&LayerId("fc".into())].precision,
        Precision::Int7
    );
    assert_eq!(
        resolved.layers[&LayerId("stage1.b".into())].precision,
        Precision::Int3
    );
    let [
        _,
        _,
        ResolvedStep::Equalize(equal),
        _,
        ResolvedStep::AdaRound(OnLayers {
            settings,
            layers: rounded,
        }),
        ResolvedStep::CorrectBias {
            samples,
            layers: corrected,
        },
    ] = resolved.steps.as_slice()
    else {
        panic!("six steps: {:?}", resolved.steps);
    };
    let absorb = Absorb::Deviations(2.5);
    let equalised = EqualizeSettings {
        absorb,
        samples: 10,
    };
    assert_eq!(equal.settings, equalised);
    assert_eq!(names(&equal.layers), ["conv1", "stage1.a", "stage1.b"]);
    assert_eq!(names(rounded), ["stage1.a"]);
    assert_eq!(
        (settings.samples, settings.iterations, settings.batch),
        (32, 500, 128)
    );
    assert_eq!((*samples, corrected.len()), (100, 4));
    // Written and read again.
    assert_eq!(
        parse(&recipe.to_ron().expect("writes")).expect("reads"),
        recipe
    );
    let error = message(&METHODS.replace("(\"fc\", off)", "(\"fc\", of)"));
    assert!(error.contains("did you mean `off`"), "{error}");
    let wrong = parse(&METHODS.replace("\"stage1.b\", off", "\"stage1.c\", off")).expect("reads");
    let error = resolve(&wrong, &layers)
        .expect_err("no such layer")
        .to_string();
    assert!(
        error.contains("AdaRound") && error.contains("stage1.c"),
        "{error}"
    );
}

/// What recipes said before stays what they say, to the byte: exported files carry its hash.
#[test]
fn methods_in_a_senseless_order_are_refused_with_the_reason() {
    let with = |steps: &str| {
        message(&format!(
            "(version: 1, model: \"m\", task: \"t\",\nsteps: [{steps}])"
        ))
    };
    let quantize = "Quantize(default: set(int4))";
    let distil = "Distil(epochs: 1)";
    for (steps, reason) in [
        ("Equalize()".to_owned(), "a Quantize step must follow"),
        (
            format!("Equalize(settings: (absorb: deviations(0.0))), {quantize}"),
            "absorb: deviations: a number above 0",
        ),
        (
            format!("{quantize}, Equalize()"),
            "Equalize must come before Quantize",
        ),
        (
            format!("Equalize(), Prune(default: set(0.5)), {quantize}"),
            "Equalize must come after Prune:",
        ),
        (
            format!("Equalize(), PruneChannels(default: set(0.5)), {quantize}"),
            "Equalize must come after PruneChannels",
        ),
        (
            "Prune(default: set(0.5), pattern: groups(4)), PruneChannels(default: set(0.5))"
                .to_owned(),
            "PruneChannels must come before Prune with an N:M pattern",
        ),
        (
            format!("Equalize(), FoldBatchNorm, {quantize}"),
            "Equalize must come after FoldBatchNorm",
        ),
        (
            format!("Equalize(), Equalize(), {quantize}"),
            "stands here twice",
        ),
        ("AdaRound()".to_owned(), "AdaRound must come after Quantize"),
        (
            format!("AdaRound(), {quantize}"),
            "AdaRound must come after Quantize",
        ),
        (
            format!("{quantize}, AdaRound(), {distil}"),
            "off the codes chosen",
        ),
        (
            format!("{quantize}, {distil}, AdaRound()"),
            "AdaRound cannot come after training on quantised weights",
        ),
        (
            format!("{quantize}, AdaRound(), AdaRound()"),
            "stands here twice",
        ),
        (
            format!("{quantize}, CorrectBias(), AdaRound()"),
            "CorrectBias must come after AdaRound",
        ),
        (
            format!("Brecq(), {quantize}"),
            "Brecq must come after Quantize",
        ),
        (
            format!("{quantize}, {distil}, Brecq()"),
            "Brecq cannot come after training on quantised weights",
        ),
        (
            format!("{quantize}, Brecq(), {distil}"),
            "off the codes chosen",
        ),
        (
            format!("{quantize}, CorrectBias(), Brecq()"),
            "CorrectBias must come after Brecq",
        ),
        (
            format!("{quantize}, Brecq(), SequentialMse()"),
            "Brecq must come after SequentialMse",
        ),
        (format!("{quantize}, Brecq(), Brecq()"), "stands here twice"),
        (
            format!("{quantize}, Brecq(settings: (iterations: 0))"),
            "iterations: at least 1",
        ),
        (
            "CorrectBias()".to_owned(),
            "CorrectBias must come after Quantize",
        ),
        (
            format!("{quantize}, {distil}, CorrectBias()"),
            "CorrectBias cannot come after training",
        ),
        (
            format!("{quantize}, AdaRound(settings: (batch: 0))"),
            "batch: at least 1",
        ),
        ("SmoothQuant()".to_owned(), "a Quantize step must follow"),
        (
            format!("{quantize}, SmoothQuant()"),
            "SmoothQuant must come before Quantize",
        ),
        (
            format!("SmoothQuant(settings: (strength: 1.0)), {quantize}"),
            "strength: a number below 1",
        ),
        (
            format!("{quantize}, Gptq(), SequentialMse()"),
            "Gptq must come after SequentialMse",
        ),
        (
            format!("{quantize}, AdaRound(), SequentialMse()"),
            "AdaRound must come after SequentialMse",
        ),
        (
            format!("{quantize}, CorrectBias(), SequentialMse()"),
            "CorrectBias must come after SequentialMse",
        ),
        (
            format!("{quantize}, Gptq(), {distil}"),
            "off the codes chosen",
        ),
        (
            format!("{quantize}, SequentialMse(settings: (lowest: 1.5))"),
            "lowest: a share of at most 1",
        ),
        (
            format!("{quantize}, Gptq(settings: (damping: 0))"),
            "damping: a number above 0",
        ),
        (
            format!("{quantize}, CorrectBias(samples: 0)"),
            "samples: at least 1",
        ),
    ] {
        let error = with(&steps);
        assert!(error.contains(reason), "{steps}: {error}");
        // Line and column of the step that is wrong.
        assert!(error.starts_with("r.ron:2:"), "{error}");
    }
    // Training on float weights first, and biases trained on after their correction, are sound.
    for steps in [
        format!("Prune(default: set(0.5)), {distil}, {quantize}, AdaRound(), CorrectBias()"),
        format!("FoldBatchNorm, Equalize(), {quantize}, CorrectBias(), {distil}"),
        format!("FoldBatchNorm, SmoothQuant(), {quantize}, SequentialMse(), {distil}"),
        format!("Equalize(), SmoothQuant(), {quantize}, SequentialMse(), Gptq(), CorrectBias()"),
        format!("FoldBatchNorm, {quantize}, SequentialMse(), Brecq(), CorrectBias()"),
    ] {
        let text = format!("(version: 1, model: \"m\", task: \"t\", steps: [{steps}])");
        parse(&text).expect("a sensible order");
    }
}

#[test]
fn a_layers_codes_are_chosen_by_one_method() {
    let text = |gptq: &str| {
        format!(
            "(version: 1, model: \"m\", task: \"t\", steps: [Quantize(default: set(int4)), AdaRound(layers: [(\"fc\", off)]), {gptq}])"
        )
    };
    let layers = facts(&["conv1", "fc"]);
    let resolved = |gptq: &str| resolve(&parse(&text(gptq)).expect("reads"), &layers);
    let error = resolved("Gptq()").expect_err("conv1 twice").to_string();
    assert!(
        error.contains("`conv1`") && error.contains("AdaRound"),
        "{error}"
    );
    let error = resolved("Brecq(layers: [(\"fc\", off)])");
    let error = error.expect_err("conv1 twice").to_string();
    assert!(
        error.contains("Brecq: AdaRound chooses the codes of `conv1`"),
        "{error}"
    );
    let resolved = resolved("Gptq(default: off, layers: [(\"fc\", on)])").expect("one each");
    let [_, ResolvedStep::AdaRound(a), ResolvedStep::Gptq(b)] = resolved.steps.as_slice() else {
        panic!("three steps: {:?}", resolved.steps);
    };
    assert_eq!((a.layers.len(), b.layers.len()), (1, 1));
    assert_eq!((a.settings.iterations, b.settings.positions), (1000, 4096));
}

#[test]
fn new_settings_are_written_only_where_they_differ() {
    let text = parse(GOOD).expect("reads").to_ron().expect("writes");
    assert!(!text.contains("weight_symmetry"), "{text}");
    let text = parse(METHODS).expect("reads").to_ron().expect("writes");
    assert!(text.contains("weight_symmetry: asymmetric"), "{text}");
    assert!(text.contains("absorb: deviations(2.5)"), "{text}");
    let usual = METHODS.replace(", settings: (absorb: deviations(2.5), samples: 10)", "");
    let text = parse(&usual).expect("reads").to_ron().expect("writes");
    assert!(!text.contains("absorb"), "{text}");
}
