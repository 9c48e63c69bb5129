//! Codes by GPTQ and scales by search, on the network of the AdaRound tests.

use super::{
    adaround::{rounded, start},
    *,
};
use crate::data::{Dataset, SplitName};

fn gptq(layers: &[&str]) -> Gptq {
    Gptq {
        settings: GptqSettings {
            samples: 40,
            positions: 1000,
            ..GptqSettings::default()
        },
        layers: layers.iter().copied().map(id).collect(),
    }
}

fn search(layers: &[&str]) -> SequentialMse {
    SequentialMse {
        settings: ScaleSearchSettings {
            samples: 40,
            positions: 1000,
            ..ScaleSearchSettings::default()
        },
        layers: layers.iter().copied().map(id).collect(),
    }
}

const ALL: [&str; 3] = ["first", "second", "head"];

/// Squared error of the network's answers against the float one's, on images that no pass saw.
fn error(data: &Dataset, float: &Model, graph: &Graph) -> f32 {
    let x = data.batch(SplitName::Search, 0..60).unwrap().images;
    let wanted = run_on(&float.graph, &x);
    let found = run_on(graph, &x);
    let squares = wanted.iter().zip(&found).map(|(a, b)| (a - b).powi(2));
    squares.sum()
}

#[test]
fn gptq_keeps_scales_and_pruned_weights_and_brings_the_outputs_nearer() {
    for (precision, symmetry) in [
        (Precision::Int4, Symmetry::Symmetric),
        (Precision::Int3, Symmetry::Asymmetric),
    ] {
        let (_folder, data, float, quantised) = start(31, precision, symmetry);
        let (chosen, account) = rounded(&data, quantised.clone(), &gptq(&ALL));
        assert!(
            matches!(outcome(&account, "second"), Outcome::Done(_)),
            "{account:?}"
        );
        let packed = (pack(&quantised).unwrap(), pack(&chosen).unwrap());
        assert_eq!(quantized_layers(&packed.0), quantized_layers(&packed.1));
        let layer = &quantized_layers(&packed.1)[1];
        let quant = layer.weight.as_ref().unwrap();
        let codes = weight_of(&packed.1, "second");
        let weights = weight_of(&float.graph, "second");
        let per = codes.len() / quant.scale.len();
        let (mut pruned, mut beyond) = (0, 0);
        for (i, (code, w)) in codes.iter().zip(&weights).enumerate() {
            let zero = quant.zero_point[i / per] as f32;
            let steps = w / quant.scale[i / per];
            if *w == 0.0 {
                assert_eq!(*code, zero, "pruned weights stay zero");
                pruned += 1;
            }
            beyond += usize::from((code - zero - steps).abs() > 1.0);
        }
        assert!(pruned > 0, "the fixture prunes");
        // What AdaRound may not do: errors add up to more than a step.
        assert!(beyond > 0, "no weight moved by more than a step");
        let (before, after) = (
            error(&data, &float, &packed.0),
            error(&data, &float, &packed.1),
        );
        assert!(after < 0.8 * before, "{before} → {after}");
        let x = data.batch(SplitName::Search, 0..60).unwrap().images;
        assert_eq!(run_on(&chosen.graph, &x), run_on(&packed.1, &x));
    }
}

#[test]
fn scales_are_searched_for_every_layout() {
    for (granularity, symmetry) in [
        (Granularity::PerTensor, Symmetry::Symmetric),
        (Granularity::PerChannel, Symmetry::Symmetric),
        (Granularity::PerChannel, Symmetry::Asymmetric),
        (Granularity::Group(2), Symmetry::Symmetric),
    ] {
        let (_folder, data, float, _) = start(32, Precision::Int3, symmetry);
        let cancel = crate::exec::CancelToken::default();
        let context = PassContext {
            data: Some(&data),
            cancel: &cancel,
            seed: 0,
        };
        let quantise = Quantize {
            scheme: QuantScheme {
                weight_symmetry: symmetry,
                int4_weights: granularity,
                ..QuantScheme::default()
            },
            layers: ALL.map(|l| (id(l), Precision::Int3)).into(),
            ranges: None,
        };
        let (quantised, _) = quantise.apply(float.clone(), &context).unwrap();
        let (chosen, account) = rounded(&data, quantised.clone(), &search(&ALL));
        let name = format!("{granularity:?} {symmetry:?}: {account:?}");
        assert!(
            matches!(outcome(&account, "second"), Outcome::Done(_)),
            "{name}"
        );
        assert_eq!(
            weight_of(&chosen.graph, "second"),
            weight_of(&quantised.graph, "second"),
            "weights are left to later steps"
        );
        let packed = (pack(&quantised).unwrap(), pack(&chosen).unwrap());
        assert_ne!(quantized_layers(&packed.0), quantized_layers(&packed.1));
        let (before, after) = (
            error(&data, &float, &packed.0),
            error(&data, &float, &packed.1),
        );
        assert!(after < 0.95 * before, "{before} → {after}; {name}");
        // Roundings can be chosen on the scales found.
        let (both, _) = rounded(&data, chosen, &gptq(&["second"]));
        assert_eq!(
            quantized_layers(&pack(&both).unwrap()),
            quantized_layers(&packed.1)
        );
    }
}

#[test]
fn neither_hangs_on_threads() {
    let (_folder, data, _, quantised) = start(33, Precision::Int4, Symmetry::Symmetric);
    let with = |threads: usize| {
        on_threads(threads, || {
            let (scaled, _) = rounded(&data, quantised.clone(), &search(&ALL));
            pack(&rounded(&data, scaled, &gptq(&ALL)).0).unwrap()
        })
    };
    let one = with(1);
    assert_eq!(one, with(3));
    assert_ne!(one, pack(&quantised).unwrap());
}

#[test]
fn layers_are_left_with_a_reason() {
    let (_folder, data, float, quantised) = start(34, Precision::Int4, Symmetry::Symmetric);
    for pass in [&gptq(&["first"]) as &dyn Pass, &search(&["first"])] {
        let (_, account) = rounded(&data, float.clone(), pass);
        assert_eq!(refused(&account, "first"), "its weight is not quantised");
        assert_eq!(refused(&account, "head"), "not asked for");
        let error = with_context(|c| pass.apply(quantised.clone(), c)).unwrap_err();
        assert!(error.to_string().contains("needs data"), "{error}");
    }
}
