use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn prune(ratios: &[(&str, f32)]) -> MagnitudePrune {
    MagnitudePrune {
        ratios: ratios.iter().map(|(l, r)| (id(l), Ratio(*r))).collect(),
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
