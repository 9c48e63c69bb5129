use super::*;
use crate::{
    data::SplitName,
    exec::CancelToken,
    graph::{BinaryOp, Op, TensorData, ValueId},
};

fn quick() -> AdaRoundSettings {
    AdaRoundSettings {
        samples: 40,
        positions: 600,
        iterations: 300,
        batch: 64,
        rate: 0.03,
        ..AdaRoundSettings::default()
    }
}

fn on(layers: &[&str]) -> AdaRound {
    AdaRound {
        settings: quick(),
        layers: layers.iter().copied().map(id).collect(),
    }
}

/// The classifier folded and at `precision`, its float form, and its data.
pub(super) fn start(
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
    let (model, _) = FoldBatchNorm.apply(classifier(seed), &context).unwrap();
    let ratios = [(id("second"), Ratio(0.25))].into();
    let (model, _) = MagnitudePrune {
        ratios,
        ..MagnitudePrune::default()
    }
    .apply(model, &context)
    .unwrap();
    let quantise = Quantize {
        scheme: QuantScheme {
            weight_symmetry,
            ..QuantScheme::default()
        },
        layers: ["first", "second", "head"]
            .map(|l| (id(l), precision))
            .into(),
        ranges: None,
    };
    let (quantised, _) = quantise.apply(model.clone(), &context).unwrap();
    (folder, data, model, quantised)
}

pub(super) fn rounded(data: &Dataset, model: Model, pass: &dyn Pass) -> (Model, Account) {
    let cancel = CancelToken::default();
    let context = PassContext {
        data: Some(data),
        cancel: &cancel,
        seed: 5,
    };
    let (model, account) = pass.apply(model, &context).unwrap();
    model.graph.validate().unwrap();
    covers(&model.graph, &account);
    (model, account)
}

#[test]
fn only_floors_and_ceilings_are_chosen_and_the_outputs_come_nearer() {
    for (precision, symmetry) in [
        (Precision::Int4, Symmetry::Symmetric),
        (Precision::Int3, Symmetry::Asymmetric),
    ] {
        let (_folder, data, float, quantised) = start(11, precision, symmetry);
        let pass = on(&["first", "second", "head"]);
        let (chosen, account) = rounded(&data, quantised.clone(), &pass);
        assert!(
            matches!(outcome(&account, "second"), Outcome::Done(_)),
            "{account:?}"
        );
        let packed = (pack(&quantised).unwrap(), pack(&chosen).unwrap());
        // Scales are frozen.
        assert_eq!(quantized_layers(&packed.0), quantized_layers(&packed.1));
        let mut moved = 0;
        for layer in quantized_layers(&packed.1) {
            let name = &*layer.layer.0;
            let quant = layer.weight.unwrap();
            let codes = weight_of(&packed.1, name);
            let weights = weight_of(&float.graph, name);
            let per = codes.len() / quant.scale.len();
            let (lo, hi) = {
                let half = 1 << (precision.bits().unwrap() - 1);
                (-(half as f32), half as f32 - 1.0)
            };
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
                moved += usize::from(*code != nearest);
            }
        }
        assert!(moved > 0);
        // On images that it did not see.
        let x = data.batch(SplitName::Search, 0..60).unwrap().images;
        let wanted = run_on(&float.graph, &x);
        let error = |graph: &Graph| -> f32 {
            let outputs = run_on(graph, &x);
            wanted
                .iter()
                .zip(&outputs)
                .map(|(a, b)| (a - b).powi(2))
                .sum()
        };
        let (before, after) = (error(&packed.0), error(&packed.1));
        assert!(after < 0.8 * before, "{before} → {after}");
        assert_eq!(run_on(&chosen.graph, &x), run_on(&packed.1, &x));
    }
}

#[test]
fn the_choice_does_not_hang_on_threads() {
    let (_folder, data, _, quantised) = start(12, Precision::Int4, Symmetry::Symmetric);
    let pass = on(&["first", "second", "head"]);
    let with = |threads: usize| {
        on_threads(threads, || {
            pack(&rounded(&data, quantised.clone(), &pass).0).unwrap()
        })
    };
    let one = with(1);
    assert_eq!(one, with(3));
    assert_ne!(one, pack(&quantised).unwrap());
}

#[test]
fn what_is_changed_afterwards_is_not_exported() {
    let (_folder, data, _, quantised) = start(13, Precision::Int4, Symmetry::Symmetric);
    let (mut chosen, _) = rounded(&data, quantised, &on(&["second"]));
    assert!(pack(&chosen).is_ok());
    let value = chosen.graph.find_value("second.weight").unwrap();
    let weights: Vec<f32> = weight_of(&chosen.graph, "second")
        .iter()
        .map(|w| -w)
        .collect();
    chosen
        .graph
        .set_data(value, TensorData::from_f32(&[8, 6, 3, 3], &weights));
    let error = pack(&chosen).unwrap_err().to_string();
    assert!(
        error.contains("neither the floor nor the ceiling") && error.contains("second.weight"),
        "{error}"
    );
}

#[test]
fn layers_are_left_with_a_reason_and_cancelling_stops() {
    let (_folder, data, float, quantised) = start(14, Precision::Int4, Symmetry::Symmetric);
    let (_, account) = rounded(&data, float, &on(&["first"]));
    assert_eq!(refused(&account, "first"), "its weight is not quantised");
    assert_eq!(refused(&account, "head"), "not asked for");
    let pass = on(&["first"]);
    let error = with_context(|c| pass.apply(quantised.clone(), c)).unwrap_err();
    assert!(error.to_string().contains("needs data"), "{error}");
    let cancel = CancelToken::default();
    cancel.cancel();
    let context = PassContext {
        data: Some(&data),
        cancel: &cancel,
        seed: 0,
    };
    assert!(matches!(
        pass.apply(quantised, &context),
        Err(CompressError::Exec(crate::exec::ExecError::Cancelled))
    ));
    for wrong in [
        AdaRoundSettings {
            samples: 0,
            ..quick()
        },
        AdaRoundSettings {
            iterations: 0,
            ..quick()
        },
        AdaRoundSettings {
            rate: f32::NAN,
            ..quick()
        },
        AdaRoundSettings {
            decision: -1.0,
            ..quick()
        },
        AdaRoundSettings {
            damping: -0.5,
            ..quick()
        },
        AdaRoundSettings {
            damping: f32::NAN,
            ..quick()
        },
        AdaRoundSettings {
            damping: f32::INFINITY,
            ..quick()
        },
    ] {
        assert!(wrong.check().is_err());
    }
}

#[test]
fn a_fixed_batch_is_rounded_as_a_free_one() {
    let (_folder, data, _, free) = start(14, Precision::Int3, Symmetry::Symmetric);
    let mut pass = on(&["first", "second", "head"]);
    pass.settings.samples = 10;
    let (wanted, _) = rounded(&data, free.clone(), &pass);
    for batch in [1, 4] {
        let mut fixed = free.clone();
        Net::fix(&mut fixed.graph, batch);
        let (chosen, account) = rounded(&data, fixed, &pass);
        assert!(
            matches!(outcome(&account, "second"), Outcome::Done(_)),
            "{account:?}"
        );
        for layer in ["first", "second", "head"] {
            let (a, b) = (
                weight_of(&wanted.graph, layer),
                weight_of(&chosen.graph, layer),
            );
            assert_eq!(a, b, "{layer}, {batch} samples at a time");
        }
    }
}

/// x → (second, first → relu) → add, of which `first` is at 2 bits: what is added is far off, what `second` reads is not.
fn residual(seed: u64) -> Model {
    let mut net = Net::new(seed, &[1, 6, 6]);
    let x = net.conv("first", ValueId(0), [6, 1, 3, 3], 1, true);
    let skip = net.relu("first_relu", x);
    let x = net.conv("second", ValueId(0), [6, 1, 3, 3], 1, true);
    let x = net.node("add", Op::Binary(BinaryOp::Add), &[x, skip]);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let x = net.linear("head", x, [3, 6], 0.1);
    net.finish(&[x])
}

/// The last layer of a residual block makes good what the way around it did: its roundings give a nearer sum than its float weights do, which
/// give what is wanted of the layer by itself exactly.
#[test]
fn the_last_layer_of_a_block_is_held_against_the_sum() {
    let (_folder, data) = task(23);
    let float = residual(23);
    let x = data.batch(SplitName::Search, 0..60).unwrap().images;
    let at_sum = |model: &Model| {
        let mut graph = model.graph.clone();
        graph.outputs = vec![graph.find_value("add_out").expect("the sum")];
        run_on(&graph, &x)
    };
    let wanted = at_sum(&float);
    let error = |model: &Model| -> f32 {
        let found = at_sum(model);
        wanted.iter().zip(found).map(|(a, b)| (a - b).powi(2)).sum()
    };
    let quantised = |layers: &[(&str, Precision)]| {
        let quantise = Quantize {
            scheme: QuantScheme {
                activations: Activations::Float,
                ..QuantScheme::default()
            },
            layers: layers.iter().map(|(l, p)| (id(l), *p)).collect(),
            ranges: None,
        };
        rounded(&data, float.clone(), &quantise).0
    };
    let before = ("first", Precision::Int2);
    let alone = error(&quantised(&[before]));
    let both = quantised(&[before, ("second", Precision::Int4)]);
    let (chosen, account) = rounded(&data, both, &on(&["second"]));
    assert!(
        matches!(outcome(&account, "second"), Outcome::Done(_)),
        "{account:?}"
    );
    let chosen = error(&chosen);
    assert!(
        chosen < 0.95 * alone,
        "{alone} with float weights, {chosen}"
    );
}
