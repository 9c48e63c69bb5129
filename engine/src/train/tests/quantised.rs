//! Training through rounding: masks, straight-through gradients, learned step sizes.

use super::*;
use crate::{
    compress::{
        FoldBatchNorm, IntegerOp, Pass, Precision, QuantScheme, Quantize, Ranges, pack,
        quantized_layers, testkit::with_context,
    },
    exec::StepSizes,
    graph::{Node, Op},
};
use std::sync::Arc;

#[test]
fn masks_hold_and_quantised_weights_train() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    let mut student = model(net(
        4,
        Variant {
            quantised: true,
            ..Variant::default()
        },
    ));
    let mask: Vec<bool> = (0..6 * 6 * 9).map(|i| i % 2 == 0).collect();
    student.masks.insert("second.weight".into(), mask.clone());
    let before = weight(&student.graph, "second.weight");
    let done = train(
        student,
        &teacher,
        &data,
        &DistilSettings {
            epochs: 14,
            ..settings()
        },
        &mut Watch::default(),
    )
    .unwrap();
    let after = weight(&done.model.graph, "second.weight");
    for ((kept, before), after) in mask.iter().zip(&before).zip(&after) {
        assert_eq!(*kept, *after != 0.0, "{before} → {after}");
        assert!(!kept || before != after);
    }
    assert_eq!(done.model.masks["second.weight"], mask);
    assert!(done.best.unwrap().value > 0.8, "{:?}", done.best);
    let mut wrong = model(net(4, Variant::default()));
    wrong.masks.insert("second.weight".into(), vec![true; 3]);
    let error = train(wrong, &teacher, &data, &settings(), &mut Watch::default()).unwrap_err();
    assert!(error.to_string().contains("second.weight"), "{error}");
}

#[test]
fn step_sizes_are_learned_and_kept_with_the_weights() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    let mut student = model(net(
        4,
        Variant {
            quantised: true,
            ..Variant::default()
        },
    ));
    // Codes of ±127 reach a tenth of the weights only.
    let at = student.graph.find_value("second.scale").unwrap();
    student.graph.values[at.0 as usize].data = Some(crate::graph::TensorData::scalar(0.0002));
    let run = |learned_step_sizes: bool, threads: usize| {
        let settings = DistilSettings {
            epochs: 14,
            rate: 0.05,
            learned_step_sizes,
            ..settings()
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .stack_size(16 << 20)
            .build()
            .unwrap();
        let watch = &mut Watch::default();
        pool.install(|| train(student.clone(), &teacher, &data, &settings, watch))
            .unwrap()
    };
    let scale = |done: &Distilled| weight(&done.model.graph, "second.scale")[0];
    let (fixed, learned) = (run(false, 2), run(true, 2));
    assert_eq!(
        (fixed.step_sizes.weights, learned.step_sizes.weights),
        (0, 1)
    );
    assert!(fixed.best_epoch > 0 && learned.best_epoch > 0);
    assert_eq!(scale(&fixed), 0.0002);
    assert!(scale(&learned) > 0.0003, "{}", scale(&learned));
    assert_eq!(
        weights(&run(true, 1).model.graph),
        weights(&learned.model.graph)
    );
}

/// Quantised to 8 bits, all that the target computes in integers; `share`: of the values that there are, what the codes reach.
pub fn narrow(graph: Graph, share: f32) -> Model {
    let scheme = QuantScheme {
        outputs: Some(vec![
            IntegerOp::Conv,
            IntegerOp::Gemm,
            IntegerOp::Add,
            IntegerOp::GlobalAveragePool,
        ]),
        ..QuantScheme::default()
    };
    let ranges = [
        ("x", [0.0, 0.9]),
        ("first.relu", [0.0, 2.5]),
        ("second.norm", [-4.0, 4.0]),
        ("relu", [0.0, 6.0]),
        ("pool", [0.0, 2.0]),
        ("flatten", [0.0, 2.0]),
    ];
    let narrow = |(name, range): (&str, [f32; 2])| (name.to_owned(), range.map(|v| v * share));
    let layers = graph.layers().into_iter();
    let quantize = Quantize {
        scheme,
        layers: layers.map(|l| (l.id, Precision::Int8)).collect(),
        ranges: Some(Arc::new(Ranges {
            values: ranges.into_iter().map(narrow).collect(),
        })),
    };
    with_context(|context| {
        let (folded, _) = FoldBatchNorm.apply(model(graph), context).unwrap();
        quantize.apply(folded, context).unwrap().0
    })
}

/// The scale that a value is quantised by.
fn scale(graph: &Graph, value: &str) -> f32 {
    let of = |n: &&Node| {
        let input = n.inputs[0].map(|v| &*graph.value(v).name);
        matches!(n.op, Op::QuantizeLinear { .. }) && input == Some(value)
    };
    let scale = graph.nodes.iter().find(of).unwrap().inputs[1].unwrap();
    graph.value(scale).data.as_ref().unwrap().to_f32_vec()[0]
}

#[test]
fn step_sizes_of_activations_win_back_what_a_bad_range_cuts_off() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    let student = narrow(teacher.clone(), 0.25);
    let run = |learned_step_sizes: bool, threads: usize| {
        let settings = DistilSettings {
            epochs: 10,
            learned_step_sizes,
            ..settings()
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .stack_size(16 << 20)
            .build()
            .unwrap();
        let watch = &mut Watch::default();
        pool.install(|| train(student.clone(), &teacher, &data, &settings, watch))
            .unwrap()
    };
    let (fixed, learned) = (run(false, 2), run(true, 2));
    // Pool and Flatten have one.
    let all = StepSizes {
        weights: 3,
        activations: 5,
    };
    assert_eq!(
        (fixed.step_sizes, learned.step_sizes),
        (StepSizes::default(), all)
    );
    let best = |done: &Distilled| done.best.unwrap().value;
    assert!(
        best(&fixed) < 0.93 && best(&learned) > 0.97,
        "{:?} {:?}",
        fixed.best,
        learned.best
    );
    let loss = |done: &Distilled| done.points.last().unwrap().loss;
    assert!(loss(&learned) < 0.7 * loss(&fixed));
    for value in ["x", "first.relu", "second.norm", "relu", "pool", "flatten"] {
        let before = scale(&student.graph, value);
        assert!(scale(&learned.model.graph, value) > 1.3 * before, "{value}");
        assert_eq!(scale(&fixed.model.graph, value), before);
    }
    assert_eq!(
        weights(&run(true, 1).model.graph),
        weights(&learned.model.graph)
    );
}

#[test]
fn what_shares_a_step_size_still_does_and_biases_are_packed_by_what_was_learned() {
    let (_folder, data) = task(SPLITS);
    let settings = DistilSettings {
        learned_step_sizes: true,
        keep_last: true,
        ..settings()
    };
    let student = narrow(net(4, Variant::default()), 0.5);
    let teacher = net(1, Variant::default());
    let watch = &mut Watch::default();
    let done = train(student.clone(), &teacher, &data, &settings, watch).unwrap();
    let graph = &done.model.graph;
    assert_ne!(scale(graph, "pool"), scale(&student.graph, "pool"));
    assert_eq!(scale(graph, "pool"), scale(graph, "flatten"));
    let packed = pack(&done.model).unwrap();
    packed.validate().unwrap();
    assert_eq!(scale(&packed, "pool"), scale(graph, "pool"));
    assert_eq!(scale(&packed, "flatten"), scale(graph, "pool"));
    let kept = quantized_layers(&packed);
    for (layer, kept) in packed.layers().iter().zip(&kept) {
        let (input, weight) = (kept.input.as_ref().unwrap(), kept.weight.as_ref().unwrap());
        let node = packed.node(layer.node);
        let back = packed.producer(node.inputs[2].unwrap()).unwrap();
        let unit = packed.value(packed.node(back).inputs[1].unwrap());
        let unit = unit.data.as_ref().unwrap().to_f32_vec();
        let expected: Vec<f32> = weight.scale.iter().map(|s| s * input.scale[0]).collect();
        assert_eq!(unit, expected, "{}", layer.id.0);
    }
    let input = |name: &str| {
        let at = kept.iter().find(|k| &*k.layer.0 == name).unwrap();
        at.input.as_ref().unwrap().scale[0]
    };
    assert_eq!(input("first"), scale(graph, "x"));
    assert_eq!(input("second"), scale(graph, "first.relu"));
    assert_eq!(input("head"), scale(graph, "pool"));
}
