use super::*;
use crate::{
    compress::{folded_at, folded_outline},
    graph::{Graph, Op, TensorData, ValueId},
};
use proptest::prelude::*;

/// Largest difference of outputs after folding, relative to the largest output.
const TOLERANCE: f32 = 1e-5;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn outputs_stay_and_norms_go(seed: u64) {
        let model = zoo(seed);
        let before = run(&model.graph, 3);
        let mut outline = folded_outline(&model.graph);
        let some = model.graph.layers().remove(0);
        let at_one = folded_at(&model.graph, std::slice::from_ref(&some));
        let (folded, account) = apply(&FoldBatchNorm, model);

        // The outline is the same network but for what stands in the folded constants.
        for (value, real) in outline.values.iter_mut().zip(&folded.graph.values) {
            if let (Some(blank), Some(data)) = (&mut value.data, &real.data) {
                prop_assert_eq!(blank.bytes.len(), data.bytes.len());
                blank.bytes = data.bytes.clone();
            }
        }
        prop_assert_eq!(&outline, &folded.graph);
        // A layer folded by itself has the weights that it has in the whole.
        let weights = |graph: &Graph| {
            let weight = graph.layer(&some.id).expect("stays").weight;
            graph.value(weight).data.clone()
        };
        prop_assert_eq!(weights(&at_one), weights(&folded.graph));
        close(&before, &run(&folded.graph, 3), TOLERANCE);
        let norms = folded.graph.nodes.iter().filter(|n| matches!(n.op, Op::BatchNormalization { .. }));
        prop_assert_eq!(norms.count(), 0);
        for layer in ["stem", "depthwise", "up", "gemm"] {
            prop_assert!(matches!(outcome(&account, layer), Outcome::Done(_)));
        }
        prop_assert_eq!(refused(&account, "head"), "no batch norm follows it");
    }
}

#[test]
fn a_result_that_others_read_is_left_alone() {
    let mut net = Net::new(1, &[3, 6, 6]);
    let conv = net.conv("conv", ValueId(0), [4, 3, 3, 3], 1, true);
    let norm = net.norm("norm", conv, 4);
    let sum = net.node(
        "sum",
        Op::Binary(crate::graph::BinaryOp::Add),
        &[conv, norm],
    );
    let model = net.finish(&[sum]);
    let before = model.graph.clone();
    let (after, account) = apply(&FoldBatchNorm, model);
    assert_eq!(after.graph, before);
    assert!(refused(&account, "conv").contains("used by 2 nodes"));

    let mut net = Net::new(1, &[3, 6, 6]);
    let conv = net.conv("conv", ValueId(0), [4, 3, 3, 3], 1, true);
    let norm = net.norm("norm", conv, 4);
    let (_, account) = apply(&FoldBatchNorm, net.finish(&[conv, norm]));
    assert!(refused(&account, "conv").contains("output of the model"));
}

#[test]
fn a_shared_weight_is_copied() {
    let mut net = Net::new(2, &[4, 6, 6]);
    let a = net.conv("a", ValueId(0), [4, 4, 3, 3], 1, true);
    let a = net.norm("norm", a, 4);
    let shared = net.graph.find_value("a.weight").unwrap();
    let op = net.graph.nodes[0].op.clone();
    let b = net.node("b", op, &[a, shared]);
    let model = net.finish(&[b]);
    let x = batch(2, &[4, 6, 6]);
    let before = run_on(&model.graph, &x);
    let (after, _) = apply(&FoldBatchNorm, model);
    close(&before, &run_on(&after.graph, &x), TOLERANCE);
    assert_ne!(weight_of(&after.graph, "a"), weight_of(&after.graph, "b"));
}

#[test]
fn two_norms_in_a_row_fold_both_and_a_bad_variance_names_the_layer() {
    let mut net = Net::new(3, &[3, 6, 6]);
    let x = net.conv("conv", ValueId(0), [4, 3, 1, 1], 1, false);
    let x = net.norm("n1", x, 4);
    let x = net.norm("n2", x, 4);
    let model = net.finish(&[x]);
    let before = run(&model.graph, 2);
    let (after, account) = apply(&FoldBatchNorm, model.clone());
    close(&before, &run(&after.graph, 2), TOLERANCE);
    assert_eq!(
        *outcome(&account, "conv"),
        Outcome::Done("folded n1, n2".to_owned())
    );

    let mut broken = model;
    let variance = broken.graph.find_value("n1.variance").unwrap();
    broken.graph.set_data(
        variance,
        TensorData::from_f32(&[4], &[1.0, f32::NAN, 1.0, 1.0]),
    );
    let error = with_context(|c| FoldBatchNorm.apply(broken, c))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("variance") && error.contains("conv"),
        "{error}"
    );
}
