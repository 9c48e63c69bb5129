use super::*;
use limbeck_engine::{
    compress::{Precision, Ratio},
    sensitivity::Direction,
};

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

#[test]
fn what_is_kept_of_the_points_is_what_looking_at_all_of_them_gives() {
    use limbeck_engine::train::DistilSettings;
    let mut state = fixture::demo();
    for distil in [None, Some(DistilSettings::default())] {
        for split in SplitName::ALL {
            state.document.distil.clone_from(&distil);
            state.view.split = split;
            state.refresh();
            let found = |state: &State| {
                let ids = |split| {
                    [
                        state.plan_point(split),
                        state.undistilled_point(split),
                        state.otherwise_distilled_point(split),
                        state.baseline(split),
                    ]
                    .map(|point| point.map(|p| p.id))
                };
                SplitName::ALL.map(|split| (ids(split), state.judged_samples(split)))
            };
            let kept = found(&state);
            let marks: Vec<PointId> = state
                .marks()
                .iter()
                .map(|mark| state.points()[mark.index].id)
                .collect();
            assert!(state.shown_points().map(|p| p.id).eq(marks));
            assert_eq!(state.shown_count(), state.shown_points().count());
            let front = state.marks().iter().filter(|m| m.front).count();
            assert_eq!(front, state.front().len(), "all of it is drawn");
            // Asked without what was kept.
            state.derived.own = Default::default();
            state.derived.known = Default::default();
            assert_eq!(found(&state), kept, "{split}, {distil:?}");
        }
    }
    // A change that nothing was worked out for yet is not answered from the old state.
    state.refresh();
    let newest = state.mirror.points.pop().expect("some");
    state.mirror.add_point((*newest.point).clone());
    let split = newest.split();
    assert!(state.judged_samples(split).is_some());
}

#[test]
fn measured_cells_are_counted_as_they_come() {
    let mut state = fixture::demo();
    let count = |state: &State| {
        let cells = state.mirror.all_cells();
        cells.filter(|cell| cell.tier == Tier::Measured).count()
    };
    assert!(count(&state) > 0);
    assert_eq!(state.map_progress().0, count(&state));
    let again: Vec<_> = state.mirror.all_cells().cloned().collect();
    state.mirror.add_cells(again);
    assert_eq!(state.map_progress().0, count(&state));
    let model = (**state.model().expect("open")).clone();
    state.mirror.set_data(model);
    assert_eq!((state.map_progress().0, count(&state)), (0, 0));
}

#[test]
fn what_all_but_one_costs_is_kept_apart_from_what_one_alone_costs() {
    let mut state = fixture::demo();
    let (alone, all) = state.map_progress();
    let prediction = state.prediction().cloned();
    let cell = state.cell(3, Candidate::Int4).expect("measured").clone();
    state.mirror.add_cells([Cell {
        direction: Direction::AllBut,
        value: 0.4,
        ..cell.clone()
    }]);
    state.refresh();
    assert_eq!(state.cell(3, Candidate::Int4), Some(&cell));
    assert_eq!(state.map_progress(), (alone, all));
    assert_eq!(state.prediction().cloned(), prediction);
    state.view.colour_by = ColourBy::AllBut;
    assert_eq!(state.map_progress(), (1, all));
    let heat = |row, candidate| state.heat(row, candidate);
    assert_eq!(heat(3, Candidate::Int4).kind, HeatKind::Known);
    // 0.1 points are cold, all hundred hot, on a logarithmic scale.
    let place = (0.4_f64 / 0.001).log10() / 3.0;
    assert!((f64::from(heat(3, Candidate::Int4).value) - place).abs() < 1e-6);
    assert_eq!(heat(3, Candidate::Int8).kind, HeatKind::Unknown);
    // A project keeps both.
    let kept: Vec<_> = state.mirror.all_cells().cloned().collect();
    assert!(kept.contains(&cell) && kept.iter().any(|c| c.direction == Direction::AllBut));
}
