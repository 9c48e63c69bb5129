use super::*;

mod ranks;

use crate::{
    compress::{
        low_rank::{Factors, Taken, plan, write},
        structured::macs,
    },
    graph::{Layer, Op, Padding, ValueId, Window},
};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn pass(model: &Model, settings: LowRankSettings, energy: f32) -> LowRank {
    let layers = model.graph.layers();
    LowRank {
        settings,
        layers: layers
            .into_iter()
            .map(|l| (l.id, Some(Energy(energy))))
            .collect(),
    }
}

/// Takes every layer that can be apart at the rank that `rank` says for its width.
fn apart(
    model: &mut Model,
    kernels: KernelSplit,
    rank: impl Fn(usize) -> usize,
) -> Vec<(f64, f64)> {
    let layers = model.graph.layers();
    let wiring = Wiring::of(&model.graph);
    let mut taken = Vec::new();
    let mut lost = Vec::new();
    let plans: Vec<_> = layers
        .iter()
        .map(|l| {
            plan(model, &wiring, &layers, l, kernels).expect("a layer that can be taken apart")
        })
        .collect();
    for (layer, plan) in layers.iter().zip(&plans) {
        let (rows, columns) = plan.form.extents(&layer.weight_shape);
        let matrix = plan.form.matrix(&layer.weight_shape, &plan.weight);
        let factors = Factors::new(matrix.clone(), rows, columns);
        let spectrum = factors.spectrum(None);
        let rank = rank(factors.width());
        let (left, right) = factors.split(&spectrum, rank);
        let mut error = 0.0;
        for (row, weights) in matrix.chunks(columns).enumerate() {
            for (column, w) in weights.iter().enumerate() {
                let product: f32 = (0..rank)
                    .map(|r| left[row * rank + r] * right[r * columns + column])
                    .sum();
                error += f64::from(w - product).powi(2);
            }
        }
        lost.push((error, spectrum.energies[rank..].iter().sum()));
        taken.push(Taken {
            layer,
            form: &plan.form,
            rank,
            left,
            right,
        });
    }
    write(&mut model.graph, taken);
    model.graph.validate().expect("a valid graph");
    lost
}

fn strided(model: &mut Model, name: &str, change: impl Fn(&mut Window)) {
    let node = model.graph.find_node(name).expect("a layer");
    let Op::Conv { window, .. } = &mut model.graph.node_mut(node).op else {
        panic!("{name} is no convolution");
    };
    change(window);
}

/// Convolutions of odd shapes with strides, dilations and uneven paddings, a Gemm either way round, and a product.
fn odd(seed: u64) -> Model {
    let mut rng = seed;
    let mut draw = |n: u64| {
        rng = rng
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((rng >> 33) % n) as usize
    };
    let (a, b, c) = (3 + draw(6), 3 + draw(6), 3 + draw(6));
    let (kh, kw) = (2 + draw(3), 2 + draw(3));
    let mut net = Net::new(seed, &[3, 11, 9]);
    let x = net.conv("first", ValueId(0), [a, 3, kh, kw], 1, true);
    let x = net.relu("relu", x);
    let x = net.conv("point", x, [b, a, 1, 1], 1, false);
    let x = net.conv("second", x, [c, b, 3, 2], 1, true);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let trans_b = draw(2) == 1;
    let shape = if trans_b { [5, c] } else { [c, 5] };
    let gemm = [
        x,
        net.weight("gemm.weight", &shape, -1.0, 1.0),
        net.weight("gemm.bias", &[5], -0.5, 0.5),
    ];
    let op = Op::Gemm {
        alpha: 0.5,
        beta: 2.0,
        trans_a: false,
        trans_b,
    };
    let x = net.node("gemm", op, &gemm);
    let weight = net.weight("product.weight", &[5, 7], -1.0, 1.0);
    let x = net.node("product", Op::MatMul, &[x, weight]);
    let mut model = net.finish(&[x]);
    let (sh, sw, dh, dw) = (1 + draw(2), 1 + draw(3), 1 + draw(2), 1 + draw(2));
    let pads = vec![draw(2), draw(3), draw(3), draw(2)];
    strided(&mut model, "first", |w| {
        w.strides = vec![sh, sw];
        w.dilations = vec![dh, dw];
        w.padding = Padding::Explicit(pads.clone());
    });
    let same = [
        Padding::SameUpper,
        Padding::SameLower,
        Padding::Explicit(vec![1, 0, 2, 1]),
    ];
    let same = same[draw(3)].clone();
    strided(&mut model, "second", |w| {
        w.strides = vec![2, 1];
        w.padding = same.clone();
    });
    model.graph.infer_shapes();
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn full_rank_computes_the_same(seed: u64) {
        for kernels in [KernelSplit::Channel, KernelSplit::Spatial] {
            let mut model = odd(seed);
            let x = batch(2, &[3, 11, 9]);
            let before = run_on(&model.graph, &x);
            let layers = model.graph.layers().len();
            apart(&mut model, kernels, |width| width);
            prop_assert_eq!(model.graph.layers().len(), 2 * layers);
            let after = run_on(&model.graph, &x);
            let largest = before.iter().fold(1e-3_f32, |m, v| m.max(v.abs()));
            for (a, b) in before.iter().zip(&after) {
                prop_assert!((a - b).abs() <= 2e-5 * largest, "{} against {}", a, b);
            }
        }
    }

    #[test]
    fn the_error_is_the_energy_discarded(seed: u64) {
        for kernels in [KernelSplit::Channel, KernelSplit::Spatial] {
            for (error, discarded) in apart(&mut odd(seed), kernels, |width| width.div_ceil(2)) {
                prop_assert!((error - discarded).abs() <= 1e-4 * discarded.max(1e-3), "{} against {}", error, discarded);
            }
        }
    }
}

/// The account's parameters and MACs are those of the graph that it leaves.
#[test]
fn costs_are_those_of_the_new_graph() {
    for kernels in [KernelSplit::Channel, KernelSplit::Spatial] {
        let mut model = wide(3);
        strided(&mut model, "second", |w| w.strides = vec![2, 1]);
        model.graph.infer_shapes();
        let settings = LowRankSettings {
            kernels,
            ..LowRankSettings::default()
        };
        let (after, account) = apply_new(&pass(&model, settings, 0.6), model);
        let read = after.graph.layers();
        let of = |name: &str| -> &Layer { read.iter().find(|l| &*l.id.0 == name).expect(name) };
        let mut done = 0;
        for entry in &account.entries {
            let Outcome::Done(words) = &entry.outcome else {
                continue;
            };
            done += 1;
            let name = &*entry.layer.0;
            let (first, second) = (of(&format!("{name}.low_rank")), of(name));
            let weights = |l: &Layer| l.weight_shape.iter().product::<usize>();
            let said = format!(" → {} weights, ", weights(first) + weights(second));
            assert!(words.contains(&said), "{words}: {said}");
            let said = format!(" → {} MACs", first.macs.unwrap() + second.macs.unwrap());
            assert!(words.ends_with(&said), "{words}: {said}");
            assert!(first.bias.is_none());
        }
        assert!(done >= 3, "{account:?}");
        let total = macs(&after.graph).unwrap();
        assert!(
            account.pass.contains(&format!("; {total} of ")),
            "{}",
            account.pass
        );
    }
}

/// conv 3×3 → relu → conv 3×3 → relu → depthwise → pool → gemm, wide enough to gain.
fn wide(seed: u64) -> Model {
    let mut net = Net::new(seed, &[1, 6, 6]);
    let x = net.conv("first", ValueId(0), [12, 1, 3, 3], 1, true);
    let x = net.relu("first_relu", x);
    let x = net.conv("second", x, [16, 12, 3, 3], 1, true);
    let x = net.relu("second_relu", x);
    let x = net.conv("depthwise", x, [16, 1, 3, 3], 16, false);
    let x = net.conv("point", x, [24, 16, 1, 1], 1, false);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let x = net.linear("head", x, [20, 24], 0.1);
    let mut model = net.finish(&[x]);
    model.graph.infer_shapes();
    model
}

/// Of [`wide`].
fn outputs(graph: &Graph) -> Vec<f32> {
    run_on(graph, &batch(2, &[1, 6, 6]))
}

/// As `apply`; the account is of the layers before.
fn apply_new(pass: &dyn Pass, model: Model) -> (Model, Account) {
    apply_on(pass, model, None)
}

fn apply_on(
    pass: &dyn Pass,
    model: Model,
    data: Option<&crate::data::Dataset>,
) -> (Model, Account) {
    let graph = model.graph.clone();
    let context = PassContext {
        data,
        cancel: &crate::exec::CancelToken::default(),
        seed: 0,
    };
    let (model, account) = pass.apply(model, &context).expect("the pass applies");
    model.graph.validate().expect("a pass leaves a valid graph");
    covers(&graph, &account);
    (model, account)
}

/// Looking at outputs loses less of them than looking at weights, at the same rank; and the energy it says it keeps is the outputs'.
#[test]
fn outputs_are_kept_better_by_their_own_energy() {
    let (_folder, data) = task(4);
    let mut model = wide(9);
    // Inputs of very different power: what the weight alone cannot know.
    let value = model.graph.find_value("first.weight").expect("a weight");
    let scaled: Vec<f32> = weight_of(&model.graph, "first")
        .iter()
        .enumerate()
        .map(|(i, w)| w * 2.0_f32.powi(-(i as i32 / 9)))
        .collect();
    model.graph.set_data(
        value,
        crate::graph::TensorData::from_f32(&[12, 1, 3, 3], &scaled),
    );
    let rank = |energy_of| {
        let settings = LowRankSettings {
            rank: RankBy::Parameters(0.75),
            energy_of,
            ..LowRankSettings::default()
        };
        LowRank {
            settings,
            layers: model
                .graph
                .layers()
                .into_iter()
                .map(|l| {
                    let only = &*l.id.0 == "second";
                    (l.id, only.then_some(Energy(0.01)))
                })
                .collect(),
        }
    };
    let images = crate::data::Dataset::gather(
        &data,
        crate::data::SplitName::Calibration,
        &(0..40).collect::<Vec<_>>(),
    )
    .expect("images")
    .images;
    let second = |graph: &Graph| {
        let mut graph = graph.clone();
        let node = graph.find_node("second").expect("a node");
        graph.outputs = vec![graph.node(node).outputs[0].expect("an output")];
        run_on(&graph, &images)
    };
    let float = second(&model.graph);
    let error = |graph: &Graph| -> f64 {
        let found = second(graph);
        float
            .iter()
            .zip(&found)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum()
    };
    let (by_weights, _) = apply_on(&rank(EnergyOf::Weights), model.clone(), Some(&data));
    let (by_outputs, account) = apply_on(&rank(EnergyOf::Outputs), model.clone(), Some(&data));
    let (worse, better) = (error(&by_weights.graph), error(&by_outputs.graph));
    assert!(better < 0.7 * worse, "{better} against {worse}");
    // What it says is kept: of the outputs before their bias, over all 40 samples.
    let bias = model.graph.find_value("second.bias").expect("a bias");
    let bias = model
        .graph
        .value(bias)
        .data
        .as_ref()
        .expect("a constant")
        .to_f32_vec();
    let plane = float.len() / 40 / 16;
    let power: f64 = float
        .iter()
        .enumerate()
        .map(|(i, v)| f64::from(v - bias[i / plane % 16]).powi(2))
        .sum();
    let kept = 100.0 * (1.0 - better / power);
    let Outcome::Done(words) = outcome(&account, "second") else {
        panic!("{account:?}")
    };
    let said: f64 = words
        .split(": ")
        .nth(1)
        .and_then(|w| w.split(' ').next())
        .expect("a share")
        .parse()
        .expect("a number");
    assert!((said - kept).abs() < 0.02, "{words}: {kept}");
    assert!(words.contains("(40 samples)"), "{words}");
}

#[test]
fn factors_can_be_quantised_and_pruned_ones_stay() {
    let model = wide(2);
    let (after, _) = apply_new(
        &pass(&model, LowRankSettings::default(), 0.6),
        model.clone(),
    );
    let layers: BTreeMap<LayerId, Precision> = after
        .graph
        .layers()
        .into_iter()
        .map(|l| (l.id, Precision::Int8))
        .collect();
    let quantise = Quantize {
        scheme: QuantScheme {
            activations: Activations::Float,
            ..QuantScheme::default()
        },
        layers,
        ranges: None,
    };
    let float = outputs(&after.graph);
    let (quantised, account) = apply(&quantise, after);
    assert!(
        account
            .entries
            .iter()
            .all(|e| matches!(e.outcome, Outcome::Done(_)))
    );
    let packed = pack(&quantised).expect("packs");
    close(&float, &outputs(&packed), 0.05);
    let prune = MagnitudePrune {
        ratios: BTreeMap::from([(id("second"), Ratio(0.5))]),
        ..MagnitudePrune::default()
    };
    let (pruned, _) = apply(&prune, model);
    let (_, account) = apply_new(
        &pass(&pruned, LowRankSettings::default(), 0.6),
        pruned.clone(),
    );
    assert!(refused(&account, "second").contains("pruned"));
}
