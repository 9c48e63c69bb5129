//! Which rank a layer gets: budgets, shares of energy, multiples.

use super::*;

#[test]
fn budgets_are_met_and_used() {
    let model = wide(5);
    let whole = macs(&model.graph).unwrap();
    let params = |graph: &Graph| graph.layers().iter().map(|l| l.params).sum::<u64>();
    let all = params(&model.graph);
    for share in [0.5_f32, 0.6, 0.75, 0.9] {
        for (rank, by_macs) in [
            (RankBy::Macs(share), true),
            (RankBy::Parameters(share), false),
        ] {
            let settings = LowRankSettings {
                rank,
                ..LowRankSettings::default()
            };
            let mut pass = pass(&model, settings, 0.1);
            pass.layers.insert(id("head"), None);
            let (after, account) = apply_new(&pass, model.clone());
            let (left, of) = if by_macs {
                (macs(&after.graph).unwrap(), whole)
            } else {
                (params(&after.graph), all)
            };
            let share = f64::from(share);
            assert!(
                left as f64 <= share * of as f64,
                "{left} of {of} for {share}"
            );
            // Not a rank more than needed: one of the largest layer's costs 4 %.
            assert!(
                left as f64 > (share - 0.06) * of as f64,
                "{left} of {of} for {share}"
            );
            assert_eq!(refused(&account, "head"), "it is to stay whole");
            assert!(refused(&account, "depthwise").contains("16 groups"));
        }
    }
    let settings = LowRankSettings {
        rank: RankBy::Macs(0.01),
        ..LowRankSettings::default()
    };
    let error = with_context(|c| pass(&model, settings, 0.5).apply(model.clone(), c));
    let said = error.expect_err("cannot be reached").to_string();
    assert!(
        said.contains("cannot reach macs(0.01)") && said.contains("energy"),
        "{said}"
    );
}

#[test]
fn what_saves_nothing_stays_whole_and_ranks_are_rounded() {
    let model = wide(1);
    let (after, account) = apply_new(
        &pass(&model, LowRankSettings::default(), 1.0),
        model.clone(),
    );
    assert!(
        refused(&account, "second").contains("saves nothing"),
        "{account:?}"
    );
    close(&outputs(&model.graph), &outputs(&after.graph), 0.0);
    let settings = LowRankSettings {
        round_to: 4,
        ..LowRankSettings::default()
    };
    let (after, _) = apply_new(&pass(&model, settings, 0.5), model);
    for layer in after.graph.layers() {
        if layer.id.0.ends_with(LOW_RANK) {
            assert_eq!(layer.weight_shape[0] % 4, 0, "{layer:?}");
        }
    }
}

/// A layer that could not be taken apart anyway is not said to have been spared by the budget.
#[test]
fn under_a_budget_the_reason_is_the_layers_own() {
    let model = wide(2);
    let settings = LowRankSettings {
        rank: RankBy::Macs(0.8),
        ..LowRankSettings::default()
    };
    let mut pass = pass(&model, settings, 0.1);
    pass.layers.insert(id("head"), Some(Energy(1.0)));
    let (_, account) = apply_new(&pass, model);
    let said = refused(&account, "head");
    assert!(said.contains("saves nothing"), "{said}");
}

#[test]
fn absurd_multiples_are_refused() {
    let model = wide(3);
    for round_to in [0, 4097, usize::MAX / 2 + 1] {
        let settings = LowRankSettings {
            round_to,
            ..LowRankSettings::default()
        };
        let error = with_context(|c| pass(&model, settings, 0.5).apply(model.clone(), c));
        let said = error.expect_err("refused").to_string();
        assert!(said.contains("round_to"), "{said}");
    }
}
