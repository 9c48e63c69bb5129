use super::*;
use crate::graph::{Op, TensorData};
use proptest::prelude::*;
use std::{collections::BTreeMap, sync::Arc};

fn all_layers(model: &Model, precision: Precision) -> BTreeMap<LayerId, Precision> {
    let layers = model.graph.layers().into_iter();
    layers.map(|l| (l.id, precision)).collect()
}

/// Ranges as wide as the zoo's activations, so that no data set is needed.
fn made_up_ranges(graph: &Graph) -> Arc<Ranges> {
    let names = layer_inputs(graph);
    let range = |v: &crate::graph::ValueId| (graph.value(*v).name.clone(), [-2.0, 3.0]);
    Arc::new(Ranges {
        values: names.iter().map(range).collect(),
    })
}

fn quantised(seed: u64, precision: Precision, scheme: &QuantScheme) -> (Model, Account) {
    let (model, _) = apply(&FoldBatchNorm, zoo(seed));
    let pass = Quantize {
        scheme: scheme.clone(),
        layers: all_layers(&model, precision),
        ranges: Some(made_up_ranges(&model.graph)),
    };
    apply(&pass, model)
}

fn scheme(granularity: Granularity, symmetry: Symmetry, activations: Activations) -> QuantScheme {
    QuantScheme {
        int8_weights: granularity,
        int4_weights: granularity,
        symmetry,
        activations,
        ..QuantScheme::default()
    }
}

fn schemes() -> impl Strategy<Value = QuantScheme> {
    let granularity = prop_oneof![
        Just(Granularity::PerTensor),
        Just(Granularity::PerChannel),
        (2_usize..5).prop_map(Granularity::Group),
    ];
    let symmetry = prop_oneof![Just(Symmetry::Asymmetric), Just(Symmetry::Symmetric)];
    let activations = prop::sample::select(vec![
        Activations::Int8,
        Activations::Int16,
        Activations::Dynamic,
        Activations::Float,
    ]);
    let weights = prop_oneof![Just(Symmetry::Asymmetric), Just(Symmetry::Symmetric)];
    (granularity, symmetry, activations, weights).prop_map(|(g, s, a, weight_symmetry)| {
        QuantScheme {
            weight_symmetry,
            ..scheme(g, s, a)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn packed_graphs_compute_the_same_bits(
        seed: u64,
        scheme in schemes(),
        precision in prop::sample::select(&Precision::ALL[1..]),
    ) {
        let (model, account) = quantised(seed, precision, &scheme);
        prop_assert!(account.entries.iter().all(|e| matches!(e.outcome, Outcome::Done(_))));
        let packed = pack(&model).unwrap();
        packed.validate().unwrap();
        prop_assert_eq!(run(&model.graph, 2), run(&packed, 2));
        // Nothing float is left of the weights, and both forms say what they are.
        let stored = precision.storage().or(precision.half()).unwrap();
        for layer in packed.layers() {
            prop_assert_eq!(packed.value(layer.weight).element, Some(stored));
        }
        for graph in [&model.graph, &packed] {
            for layer in quantized_layers(graph) {
                prop_assert_eq!(layer.precision, precision);
                let integers = precision.is_integer();
                prop_assert_eq!(layer.weight.is_some(), integers);
                let bits = scheme.activations.calibrated_bits().filter(|_| integers);
                let inputs = bits.is_some();
                prop_assert_eq!(layer.input.as_ref().map(|p| p.element.bits() as u32), bits);
                if inputs {
                    prop_assert_eq!(layer.input_symmetry(), Some(scheme.symmetry));
                }
            }
        }
    }
}

#[test]
fn a_width_is_held_whatever_training_does() {
    for precision in [Precision::Int7, Precision::Int3, Precision::Int2] {
        let float = QuantScheme {
            activations: Activations::Float,
            ..QuantScheme::default()
        };
        let (mut model, account) = quantised(4, precision, &float);
        let bits = precision.bits().unwrap();
        let said = format!("{bits}-bit weights");
        assert!(matches!(outcome(&account, "stem"), Outcome::Done(n) if n.starts_with(&said)));
        // The float weight is found and trained through the Clip, as through the pair alone.
        let program =
            crate::exec::Program::compile(&model.graph, crate::exec::Mode::Training).unwrap();
        let parameter = program.parameters()["stem.weight"].clone();
        let gradients = program
            .gradients(
                &batch(2, &[3, 6, 6]),
                &|_, outputs| outputs[0].sqr()?.sum_all(),
                &crate::exec::CancelToken::default(),
            )
            .unwrap();
        let gradient = gradients.store.get(&parameter).expect("a gradient");
        let size: f32 = gradient
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar()
            .unwrap();
        assert!(size > 0.0);
        // Weights far beyond the range: the codes stay inside their width.
        let id = model.graph.find_value("stem.weight").unwrap();
        let grown: Vec<f32> = weight_of(&model.graph, "stem")
            .iter()
            .map(|w| w * 3.0)
            .collect();
        model
            .graph
            .set_data(id, TensorData::from_f32(&[8, 3, 3, 3], &grown));
        let packed = pack(&model).unwrap();
        let half = 1 << (bits - 1);
        let codes = weight_of(&packed, "stem");
        let (lo, hi) = (-(half as f32), half as f32 - 1.0);
        assert!(codes.iter().all(|c| (lo..=hi).contains(c)));
        assert!(codes.contains(&lo) && codes.contains(&hi));
        assert_eq!(run(&model.graph, 2), run(&packed, 2));
    }
}

#[test]
fn group_scales_have_the_shape_of_blocked_dequantisation() {
    let scheme = scheme(
        Granularity::Group(2),
        Symmetry::Asymmetric,
        Activations::Float,
    );
    let (model, account) = quantised(1, Precision::Int4, &scheme);
    let shapes: BTreeMap<_, _> = quantized_layers(&model.graph)
        .into_iter()
        .map(|l| {
            (
                l.layer.0.to_string(),
                l.weight.expect("int4 layers have scales"),
            )
        })
        .map(|(name, w)| (name, (w.shape, w.axis, w.block)))
        .collect();
    assert_eq!(shapes["stem"], (vec![8, 2, 3, 3], 1, 2));
    // One input channel a group: a scale for every weight would be absurd.
    assert_eq!(shapes["depthwise"], (vec![8], 0, 0));
    assert!(matches!(outcome(&account, "depthwise"), Outcome::Done(n) if n.contains("shorter")));
    assert_eq!(shapes["up"], (vec![4, 3, 3, 3], 0, 2));
    assert_eq!(shapes["gemm"], (vec![5, 3], 1, 2));
    assert_eq!(shapes["head"], (vec![3, 4], 0, 2));
}

#[test]
fn inputs_are_shared_and_activation_functions_stay_attached() {
    let (model, _) = quantised(1, Precision::Int8, &QuantScheme::default());
    // Five layers with five distinct inputs: a pair on each input and one on each weight.
    let pairs = |op: fn(&Op) -> bool| model.graph.nodes.iter().filter(|n| op(&n.op)).count();
    assert_eq!(pairs(|op| matches!(op, Op::QuantizeLinear { .. })), 10);
    // The Relu still reads the convolution itself.
    let relu = model
        .graph
        .nodes
        .iter()
        .find(|n| n.name == "stem_relu")
        .unwrap();
    let producer = model.graph.producer(relu.inputs[0].unwrap()).unwrap();
    assert_eq!(model.graph.node(producer).name, "stem");

    let mut net = Net::new(4, &[3, 6, 6]);
    let x = crate::graph::ValueId(0);
    let a = net.conv("a", x, [4, 3, 3, 3], 1, false);
    let shared = net.graph.find_value("a.weight").unwrap();
    let op = net.graph.nodes[0].op.clone();
    let b = net.node("b", op, &[x, shared]);
    let sum = net.node("sum", Op::Binary(crate::graph::BinaryOp::Add), &[a, b]);
    let model = net.finish(&[sum]);
    let pass = Quantize {
        scheme: QuantScheme::default(),
        layers: all_layers(&model, Precision::Int8),
        ranges: Some(made_up_ranges(&model.graph)),
    };
    let (model, _) = apply(&pass, model);
    let quantizers = model
        .graph
        .nodes
        .iter()
        .filter(|n| matches!(n.op, Op::QuantizeLinear { .. }));
    assert_eq!(
        quantizers.count(),
        2,
        "one pair for the input, one for the weight"
    );
}

#[test]
fn layers_are_left_alone_with_a_reason() {
    let model = zoo(3);
    let pass = Quantize {
        scheme: QuantScheme {
            activations: Activations::Float,
            ..QuantScheme::default()
        },
        layers: BTreeMap::from([(id("stem"), Precision::Fp32), (id("up"), Precision::Int8)]),
        ranges: None,
    };
    let before = weight_of(&model.graph, "stem");
    let (model, account) = apply(&pass, model);
    assert_eq!(refused(&account, "stem"), "kept at fp32");
    assert_eq!(refused(&account, "gemm"), "not asked for");
    assert_eq!(weight_of(&model.graph, "stem"), before);
    let (_, account) = apply(&pass, model);
    assert_eq!(refused(&account, "up"), "its weight is quantised already");
}

#[test]
fn bad_weights_name_their_layer_and_missing_data_is_said() {
    let with = |value: f32| {
        let mut model = zoo(3);
        let id = model.graph.find_value("gemm.weight").unwrap();
        let mut weights = weight_of(&model.graph, "gemm");
        weights[3] = value;
        model
            .graph
            .set_data(id, TensorData::from_f32(&[5, 6], &weights));
        model
    };
    let try_on = |model: Model, precision, activations| {
        let pass = Quantize {
            scheme: QuantScheme {
                activations,
                ..QuantScheme::default()
            },
            layers: BTreeMap::from([(id("gemm"), precision)]),
            ranges: None,
        };
        with_context(|c| pass.apply(model, c))
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    let float = Activations::Float;
    let error = try_on(with(f32::NAN), Precision::Int8, float).unwrap_err();
    assert!(error.contains("NaN") && error.contains("gemm"), "{error}");
    let error = try_on(with(1e6), Precision::Fp16, float).unwrap_err();
    assert!(error.contains("65504") && error.contains("gemm"), "{error}");
    assert!(try_on(with(1e6), Precision::Int8, float).is_ok());
    let error = try_on(zoo(3), Precision::Int8, Activations::Int8).unwrap_err();
    assert!(error.contains("needs data"), "{error}");
    let mut bad = QuantScheme {
        int4_weights: Granularity::Group(0),
        ..QuantScheme::default()
    };
    assert!(bad.check().is_err());
    bad = QuantScheme {
        calibration: Calibration::Percentile(f32::NAN),
        ..QuantScheme::default()
    };
    assert!(bad.check().is_err());
}

#[test]
fn dead_channels_survive() {
    let mut model = zoo(3);
    let value = model.graph.find_value("stem.weight").unwrap();
    let mut weights = weight_of(&model.graph, "stem");
    weights[27..54].fill(0.0);
    model
        .graph
        .set_data(value, TensorData::from_f32(&[8, 3, 3, 3], &weights));
    let pass = Quantize {
        scheme: QuantScheme {
            activations: Activations::Float,
            ..QuantScheme::default()
        },
        layers: BTreeMap::from([(id("stem"), Precision::Int4)]),
        ranges: None,
    };
    let (model, _) = apply(&pass, model);
    let layers = quantized_layers(&model.graph);
    let stem = layers.iter().find(|l| &*l.layer.0 == "stem").unwrap();
    assert_eq!(stem.weight.as_ref().unwrap().scale[1], 1.0);
    assert!(run(&model.graph, 1).iter().all(|v| v.is_finite()));
}

#[test]
fn inspection_agrees_with_the_passes() {
    let model = zoo(9);
    let setting = LayerSetting {
        precision: Precision::Int4,
        sparsity: Ratio(0.25),
    };
    let scheme = QuantScheme {
        activations: Activations::Float,
        ..QuantScheme::default()
    };
    let seen = inspect_layer(&model.graph, &id("stem"), setting, &scheme).unwrap();
    let plan = BTreeMap::from([(id("stem"), setting)]);
    let (plain, _) = apply(&FoldBatchNorm, model.clone());
    let (done, _) = with_context(|c| compress_layers(model, &plan, &scheme, None, c)).unwrap();
    let packed = pack(&done).unwrap();
    let codes = weight_of(&packed, "stem");
    let layers = quantized_layers(&packed);
    let scales = &layers[0].weight.as_ref().unwrap().scale;
    let before = weight_of(&plain.graph, "stem");
    let after: Vec<f32> = codes
        .iter()
        .enumerate()
        .map(|(i, c)| c * scales[i / 27])
        .collect();
    let noise: f64 = before
        .iter()
        .zip(&after)
        .map(|(a, b)| f64::from(a - b).powi(2))
        .sum();
    let signal: f64 = before.iter().map(|a| f64::from(*a).powi(2)).sum();
    let sqnr = 10.0 * (signal / noise).log10();
    assert!(
        (seen.sqnr_db.unwrap() - sqnr).abs() < 1e-3,
        "{:?} {sqnr}",
        seen.sqnr_db
    );
    let zeros = codes.iter().filter(|c| **c == 0.0).count();
    assert_eq!(seen.zeros, zeros as f64 / codes.len() as f64);
    assert!(seen.zeros >= 0.25 && seen.levels <= 16 && seen.levels > 4);
    assert_eq!(seen.before.iter().sum::<u64>(), 216);
    assert_eq!(seen.after.iter().sum::<u64>(), 216);
    assert_eq!(seen.channel_ranges.len(), 8);
    let kept = inspect_layer(&plain.graph, &id("stem"), LayerSetting::KEEP, &scheme).unwrap();
    assert_eq!((kept.sqnr_db, kept.levels, kept.clipped), (None, 0, 0.0));
    assert_eq!(kept.before, kept.after);
}

#[test]
fn dynamic_ranges_are_for_products_and_for_one_sample_at_a_time() {
    let scheme = QuantScheme {
        activations: Activations::Dynamic,
        ..QuantScheme::default()
    };
    let (model, account) = quantised(5, Precision::Int8, &scheme);
    let said = |layer: &str| match outcome(&account, layer) {
        Outcome::Done(words) => words.clone(),
        Outcome::NotDone(reason) => panic!("{layer}: {reason}"),
    };
    for layer in ["gemm", "head"] {
        assert!(
            said(layer).contains("range of each inference"),
            "{}",
            said(layer)
        );
    }
    assert!(said("stem").contains("float input"), "{}", said("stem"));
    let packed = pack(&model).unwrap();
    let dynamic = |n: &&crate::graph::Node| n.op == Op::DynamicQuantizeLinear;
    assert_eq!(packed.nodes.iter().filter(dynamic).count(), 2);
    assert_eq!(
        (packed.fixed_batch(), zoo(5).graph.fixed_batch()),
        (Some(1), None)
    );
    assert_eq!(run(&model.graph, 1), run(&packed, 1));
}

#[test]
fn sixteen_bits_have_steps_257_times_as_fine() {
    let scales = |activations: Activations| -> Vec<f32> {
        let scheme = scheme(Granularity::PerChannel, Symmetry::Asymmetric, activations);
        let (model, _) = quantised(6, Precision::Int8, &scheme);
        quantized_layers(&model.graph)
            .into_iter()
            .map(|l| l.input.expect("inputs are quantised").scale[0])
            .collect()
    };
    let (narrow, wide) = (scales(Activations::Int8), scales(Activations::Int16));
    for (narrow, wide) in narrow.iter().zip(&wide) {
        assert!((narrow / wide - 257.0).abs() < 0.01, "{narrow} {wide}");
    }
}
