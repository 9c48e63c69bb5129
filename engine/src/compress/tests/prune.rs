use super::*;
use crate::graph::{Op, ValueId};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn prune(ratios: &[(&str, f32)]) -> MagnitudePrune {
    MagnitudePrune {
        ratios: ratios.iter().map(|(l, r)| (id(l), Ratio(*r))).collect(),
        ..MagnitudePrune::default()
    }
}

fn zeros(weights: &[f32]) -> Vec<usize> {
    (0..weights.len()).filter(|i| weights[*i] == 0.0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn exact_counts_smallest_first_and_monotone(seed: u64, low in 0.05_f32..0.9, more in 0.0_f32..0.5) {
        let high = (low + more).min(0.95);
        let model = zoo(seed);
        let before = weight_of(&model.graph, "stem");
        let (a, _) = apply(&prune(&[("stem", low)]), model.clone());
        let (b, _) = apply(&prune(&[("stem", high)]), model);
        let (wa, wb) = (weight_of(&a.graph, "stem"), weight_of(&b.graph, "stem"));
        prop_assert_eq!(zeros(&wa).len(), Ratio(low).count_of(before.len()));
        prop_assert!(zeros(&wa).iter().all(|i| wb[*i] == 0.0));
        let largest_gone = zeros(&wa).iter().map(|i| before[*i].abs()).fold(0.0, f32::max);
        for (i, w) in wa.iter().enumerate() {
            prop_assert!(*w == 0.0 || (*w == before[i] && w.abs() >= largest_gone));
        }
        let mask = &a.masks["stem.weight"];
        prop_assert_eq!(mask.iter().filter(|kept| !**kept).count(), zeros(&wa).len());
        // Pruning what is pruned already to the same ratio changes nothing.
        let (again, _) = apply(&prune(&[("stem", low)]), a.clone());
        prop_assert_eq!(&again.masks, &a.masks);
    }
}

#[test]
fn ties_go_by_index_and_one_weight_always_stays() {
    assert_eq!(
        super::super::prune::magnitude_mask(&[1.0, -1.0, 1.0, 1.0], 2, None),
        [false, false, true, true]
    );
    assert_eq!(Ratio(0.99).count_of(3), 2);
    assert_eq!(Ratio(0.7).count_of(10), 7);
    // What is masked goes first, whatever its index, and stays masked.
    let old = [true, true, false, true];
    assert_eq!(
        super::super::prune::magnitude_mask(&[0.0, 0.0, 0.0, 2.0], 2, Some(&old)),
        [false, true, false, true]
    );
}

#[test]
fn bad_ratios_and_unknown_layers_are_errors() {
    for ratio in [-0.1, 1.0, f32::NAN, f32::INFINITY] {
        let pass = prune(&[("stem", ratio)]);
        let error = with_context(|c| pass.apply(zoo(1), c)).unwrap_err();
        assert!(error.to_string().contains("stem"), "{error}");
    }
    let error = with_context(|c| prune(&[("stam", 0.5)]).apply(zoo(1), c)).unwrap_err();
    assert!(error.to_string().contains("stam"), "{error}");
}

#[test]
fn layers_that_share_a_weight_agree_or_stay_dense() {
    let build = || {
        let mut net = Net::new(2, &[4, 6, 6]);
        let a = net.conv("a", crate::graph::ValueId(0), [4, 4, 3, 3], 1, false);
        let shared = net.graph.find_value("a.weight").unwrap();
        let op = net.graph.nodes[0].op.clone();
        let b = net.node("b", op, &[a, shared]);
        net.finish(&[b])
    };
    let (model, account) = apply(&prune(&[("a", 0.5)]), build());
    assert!(refused(&account, "a").contains("shares its weight with b"));
    assert!(model.masks.is_empty());
    let (model, account) = apply(&prune(&[("a", 0.5), ("b", 0.5)]), build());
    assert_eq!(zeros(&weight_of(&model.graph, "a")).len(), 72);
    assert!(matches!(outcome(&account, "b"), Outcome::Done(what) if what.contains("shares")));
}

#[test]
fn a_plan_keeps_its_zeros_through_quantising_and_packing() {
    let settings = BTreeMap::from([(
        id("stem"),
        LayerSetting {
            precision: Precision::Int4,
            sparsity: Ratio(0.5),
        },
    )]);
    let scheme = QuantScheme {
        activations: Activations::Float,
        ..QuantScheme::default()
    };
    let (model, accounts) =
        with_context(|c| compress_layers(zoo(5), &settings, &scheme, None, c)).unwrap();
    assert_eq!(accounts.len(), 3);
    accounts.iter().for_each(|a| covers(&model.graph, a));
    let packed = pack(&model).unwrap();
    let codes = weight_of(&packed, "stem");
    for (code, kept) in codes.iter().zip(&model.masks["stem.weight"]) {
        assert!(*kept || *code == 0.0);
    }
}

/// Layers of every kind, all with inputs that are multiples of 8 but for `stem` and `odd`.
fn wide(seed: u64) -> Model {
    let mut net = Net::new(seed, &[3, 6, 6]);
    let x = net.conv("stem", ValueId(0), [16, 3, 3, 3], 1, false);
    let x = net.conv("conv", x, [16, 16, 3, 3], 1, true);
    let x = net.conv("grouped", x, [16, 8, 1, 1], 2, false);
    let up = [x, net.weight("up.weight", &[16, 4, 3, 3], -1.0, 1.0)];
    let op = Op::ConvTranspose {
        window: window([3, 3]),
        group: 2,
        output_padding: vec![0, 0],
        output_shape: None,
    };
    let x = net.node("up", op, &up);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let x = net.linear("gemm", x, [16, 8], 0.1);
    let head = [x, net.weight("product.weight", &[16, 6], -1.0, 1.0)];
    let x = net.node("product", Op::MatMul, &head);
    let last = [x, net.weight("odd.weight", &[6, 8], -1.0, 1.0)];
    let x = net.node("odd", Op::MatMul, &last);
    net.finish(&[x])
}

/// Elements of the group that starts at `first` along the axis that the layer sums over, worked out anew for each layer.
fn group_of(layer: &str, start: [usize; 4], size: usize) -> Vec<usize> {
    let [a, b, y, x] = start;
    let at = |step: usize| match layer {
        // [16, 16, 3, 3]: inputs are axis 1.
        "conv" => ((a * 16 + b + step) * 3 + y) * 3 + x,
        // [16, 8, 1, 1].
        "grouped" => a * 8 + b + step,
        // [16, 4, 3, 3], inputs first: here `b` counts inputs.
        "up" => (((b + step) * 4 + a) * 3 + y) * 3 + x,
        // 16 × 8, transposed: inputs last.
        "gemm" => a * 8 + b + step,
        // 16 × 6: inputs first.
        "product" => (b + step) * 6 + a,
        other => panic!("{other}"),
    };
    (0..size).map(at).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// N:M: in every group along the reduction axis exactly as many go as are asked for, the smallest ones; what was masked stays so.
    #[test]
    fn groups_lose_their_smallest(seed: u64, size in prop::sample::select(vec![2_usize, 4, 8]), part in 0.0_f64..1.0) {
        let gone = 1 + (part * (size - 1) as f64) as usize;
        let model = wide(seed);
        let names = ["conv", "grouped", "up", "gemm", "product"];
        let pass = MagnitudePrune {
            ratios: names.iter().map(|l| (id(l), Ratio(gone as f32 / size as f32))).collect(),
            pattern: Pattern::Groups(size),
            schedule: None,
        };
        let (pruned, account) = apply(&pass, model.clone());
        // Outputs, inputs and the kernel's two axes of each.
        for (name, extents) in names.iter().zip([[16, 16, 3, 3], [16, 8, 1, 1], [4, 16, 3, 3], [16, 8, 1, 1], [6, 16, 1, 1]]) {
            let (before, after) = (weight_of(&model.graph, name), weight_of(&pruned.graph, name));
            for (a, b) in (0..extents[0]).flat_map(|a| (0..extents[1]).step_by(size).map(move |b| (a, b))) {
                for (y, x) in (0..extents[2]).flat_map(|y| (0..extents[3]).map(move |x| (y, x))) {
                    let members = group_of(name, [a, b, y, x], size);
                    let zeros = members.iter().filter(|i| after[**i] == 0.0);
                    prop_assert_eq!(zeros.clone().count(), gone, "{}", name);
                    let largest = zeros.map(|i| before[*i].abs()).fold(0.0, f32::max);
                    prop_assert!(members.iter().all(|i| after[*i] == 0.0 || before[*i].abs() >= largest));
                    prop_assert!(members.iter().all(|i| after[*i] == 0.0 || before[*i] == after[*i]));
                }
            }
            let said = format!("{}:{size} along its inputs", size - gone);
            prop_assert!(matches!(outcome(&account, name), Outcome::Done(w) if w.contains(&said)), "{:?}", account);
        }
        // Twice is once.
        let (again, _) = apply(&pass, pruned.clone());
        prop_assert_eq!(again.graph, pruned.graph);
        // Unstructured zeros stay, and groups that have too many keep them.
        let (sparse, _) = apply(&prune(&[("conv", 0.9)]), model);
        let (both, _) = apply(&pass, sparse.clone());
        let (sparse, both) = (weight_of(&sparse.graph, "conv"), weight_of(&both.graph, "conv"));
        prop_assert!(zeros(&sparse).iter().all(|i| both[*i] == 0.0));
        prop_assert!(zeros(&both).len() * size >= gone * both.len());
    }
}

#[test]
fn groups_that_do_not_fit_are_told() {
    let model = wide(1);
    let pass = |layer: &str, ratio: f32, group: usize| MagnitudePrune {
        ratios: BTreeMap::from([(id(layer), Ratio(ratio))]),
        pattern: Pattern::Groups(group),
        schedule: None,
    };
    for (layer, inputs) in [("stem", 3), ("odd", 6)] {
        let (same, account) = apply(&pass(layer, 0.5, 4), model.clone());
        let reason = refused(&account, layer);
        assert!(
            reason.contains(&format!("{inputs} inputs, which is no multiple of 4")),
            "{reason}"
        );
        assert_eq!(same.graph, model.graph);
    }
    // 16 inputs in 2 groups: 8 each.
    let (_, account) = apply(&pass("up", 0.5, 16), model.clone());
    assert!(refused(&account, "up").contains("8 inputs"), "{account:?}");
    for (ratio, group, said) in [
        (0.5, 1, "groups of 2 to 64"),
        (0.5, 65, "groups of 2 to 64"),
        (0.3, 4, "0.25 (3:4) or 0.5 (2:4)"),
        (1.0, 4, "less than 1"),
    ] {
        let error = with_context(|c| pass("conv", ratio, group).apply(model.clone(), c));
        let error = error.expect_err("no such pattern").to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// With a schedule nothing goes at once; what is to go stands in the model and in the account.
#[test]
fn what_training_is_to_prune_is_left_to_it() {
    let model = wide(2);
    let schedule = PruneSchedule::Cubic {
        begin: 0.0,
        end: 2.0,
        updates: 5,
    };
    let pass = MagnitudePrune {
        ratios: BTreeMap::from([(id("conv"), Ratio(0.5)), (id("stem"), Ratio(0.5))]),
        pattern: Pattern::Groups(4),
        schedule: Some(schedule),
    };
    let (later, account) = apply(&pass, model.clone());
    assert_eq!((&later.graph, later.masks.len()), (&model.graph, 0));
    assert!(
        refused(&account, "stem").contains("no multiple"),
        "{account:?}"
    );
    let Outcome::Done(words) = outcome(&account, "conv") else {
        panic!("{account:?}")
    };
    assert_eq!(
        words,
        "1152 of 2304 weights are to go while it trains, 2:4 along its inputs"
    );
    assert!(
        account.pass.contains("cubic, 5 updates over epochs 0 to 2"),
        "{}",
        account.pass
    );
    let gradual = later.gradual.expect("stands in the model");
    assert_eq!(gradual.weights.keys().collect::<Vec<_>>(), ["conv.weight"]);
    // Half-way two thirds of 2 of 4 are one; in the end it is what pruning at once would take.
    let weights = weight_of(&model.graph, "conv");
    let target = &gradual.weights["conv.weight"];
    let zeros = |share: f32| {
        target
            .mask(Ratio(share), &weights, None)
            .iter()
            .filter(|k| !**k)
            .count()
    };
    assert_eq!((zeros(0.2), zeros(0.33), zeros(0.5)), (0, 576, 1152));
    for (end, updates) in [(0.0, 5), (f64::NAN, 5), (2.0, 0), (2.0, 1_000_000)] {
        let schedule = PruneSchedule::Cubic {
            begin: 0.0,
            end,
            updates,
        };
        let pass = MagnitudePrune {
            schedule: Some(schedule),
            ..pass.clone()
        };
        let error = with_context(|c| pass.apply(model.clone(), c)).expect_err("no timeline");
        assert!(error.to_string().contains("schedule"), "{error}");
    }
}
