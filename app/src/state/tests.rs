use super::*;
use limbeck_engine::compress::{Precision, Ratio};

#[test]
fn the_fixture_shows_all_there_is() {
    let state = fixture::demo();
    assert_eq!(state.layers().len(), 22);
    assert_eq!(state.visible().len(), 22);
    assert!(state.prediction().is_some());
    assert_eq!(state.shown_points().count(), 7);
    assert!(state.baseline(SplitName::Holdout).is_some());
    assert_eq!(
        state
            .plan_point(SplitName::Holdout)
            .map(|p| p.name.as_str()),
        Some("Plan 3")
    );
    assert!(state.front().len() >= 3);
    assert!(state.verdict().is_some_and(|v| v.verdict.is_some()));
    assert_eq!(state.active_jobs().count(), 2);
}

#[test]
fn filter_and_sort_choose_the_rows() {
    let mut state = fixture::demo();
    state.view.filter = "layer2 CONV".into();
    state.refresh();
    assert_eq!(state.visible().len(), 7);
    state.view.filter.clear();
    state.view.sort = Sort {
        key: SortKey::Params,
        descending: true,
    };
    state.refresh();
    let params: Vec<u64> = state
        .visible()
        .iter()
        .map(|row| state.layers()[*row].params)
        .collect();
    assert!(params.is_sorted_by(|a, b| a >= b));
    state.view.sort = Sort {
        key: SortKey::Cell(Candidate::P75),
        descending: true,
    };
    state.refresh();
    let measured: Vec<bool> = state
        .visible()
        .iter()
        .map(|row| state.tier(*row, Candidate::P75) == Some(Tier::Measured))
        .collect();
    assert!(measured.is_sorted_by(|a, b| a >= b), "measured cells first");
}

#[test]
fn an_untouched_plan_has_no_steps_and_a_uniform_one_no_rules() {
    let mut state = fixture::opened();
    assert!(state.plan_is_empty());
    for layer in state.mirror.layer_ids().to_vec() {
        state.document.set(
            &layer,
            LayerSetting {
                precision: Precision::Int8,
                sparsity: Ratio(0.5),
            },
        );
    }
    state.refresh();
    let [
        Step::FoldBatchNorm,
        Step::Prune(prune),
        Step::Quantize(quantize),
    ] = state.plan_steps(true)
    else {
        panic!("{:?}", state.plan_steps(true));
    };
    assert!(prune.layers.is_empty() && quantize.layers.is_empty());
    let layer = state.mirror.layer_ids()[3].clone();
    state.document.set(&layer, UNTOUCHED);
    state.refresh();
    let [_, Step::Prune(prune), Step::Quantize(quantize)] = state.plan_steps(true) else {
        panic!("{:?}", state.plan_steps(true));
    };
    assert_eq!(prune.layers.len(), 1);
    assert_eq!(quantize.layers.len(), 1);
    assert_eq!(quantize.layers[0].1, limbeck_engine::recipe::Choice::Keep);
}
