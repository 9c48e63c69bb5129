//! Masks that grow while a network trains.

use super::*;
use crate::compress::{MagnitudePrune, Pass, PruneSchedule, Ratio, testkit::with_context};
use crate::graph::LayerId;
use crate::train::Checkpoint;
use std::collections::BTreeMap;

/// Zeros of a weight after every mini-batch, as a checkpoint would write them.
struct Zeros(Vec<Vec<usize>>);

impl TrainObserver for Zeros {
    fn step(&mut self, _: &TrainPoint) -> Result<(), TrainError> {
        Ok(())
    }
    fn wants_checkpoint(&mut self) -> bool {
        true
    }
    fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        let mask = checkpoint.at.masks.get("second.weight");
        let gone = |mask: &Vec<bool>| (0..mask.len()).filter(|i| !mask[*i]).collect();
        self.0.push(mask.map_or_else(Vec::new, gone));
    }
}

const ALL: usize = 6 * 6 * 9;

fn student(ratio: f32, schedule: PruneSchedule) -> Model {
    let pass = MagnitudePrune {
        ratios: BTreeMap::from([(LayerId("second".into()), Ratio(ratio))]),
        schedule: Some(schedule),
        ..MagnitudePrune::default()
    };
    let student = model(net(4, Variant::default()));
    with_context(|c| pass.apply(student, c)).unwrap().0
}

/// The masks follow the schedule step by step, never shrink, are laid over the weights at once and hold to the end; what is kept has all of them.
#[test]
fn masks_grow_by_the_schedule_and_stay() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    let settings = DistilSettings {
        samples: Some(160),
        epochs: 4,
        ..settings()
    };
    // 5 mini-batches an epoch: from 5 on, updates at 7 or 8, 10, 12 or 13, 15.
    let schedule = PruneSchedule::Cubic {
        begin: 1.0,
        end: 3.0,
        updates: 4,
    };
    let mut zeros = Zeros(Vec::new());
    let token = CancelToken::default();
    let student = student(0.8, schedule);
    let done = distil(student, &teacher, &data, &settings, 7, &mut zeros, &token).unwrap();
    assert_eq!(zeros.0.len(), 20);
    for (at, gone) in zeros.0.iter().enumerate() {
        let share = schedule.share(Ratio(0.8), schedule.due(at as u64 + 1, 5));
        assert_eq!(
            gone.len(),
            share.count_of(ALL),
            "after {} mini-batches",
            at + 1
        );
        if let Some(before) = at.checked_sub(1).map(|b| &zeros.0[b]) {
            assert!(before.iter().all(|i| gone.contains(i)), "{at}");
        }
    }
    let last = zeros.0.last().unwrap();
    assert_eq!(last.len(), Ratio(0.8).count_of(ALL));
    assert!(zeros.0[6].is_empty() && !zeros.0[8].is_empty() && zeros.0[8].len() < last.len());
    let weights = weight(&done.model.graph, "second.weight");
    let found: Vec<usize> = (0..ALL).filter(|i| weights[*i] == 0.0).collect();
    assert_eq!(&found, last);
    assert!((3..=4).contains(&done.best_epoch), "{}", done.best_epoch);
    assert_eq!(done.pruned, Some((last.len() as u64, ALL as u64)));
    // Four in five of those weights gone, and it still knows more than a guess, one in three.
    assert!(done.best.unwrap().value > 0.5, "{:?}", done.best);
}

#[test]
fn a_schedule_longer_than_the_training_is_refused() {
    let (_folder, data) = task(SPLITS);
    let schedule = PruneSchedule::Iterative {
        begin: 0.0,
        end: 3.5,
        rounds: 2,
    };
    let start = net(1, Variant::default());
    let error = train(
        student(0.5, schedule),
        &start,
        &data,
        &settings(),
        &mut Watch::default(),
    );
    let error = error.expect_err("3 epochs").to_string();
    assert!(
        error.contains("until epoch 3.5, but only 3 epochs"),
        "{error}"
    );
}

/// Stopped while masks still grow: nothing is won, and the model that is left has what it had.
#[test]
fn a_network_that_is_not_yet_pruned_is_no_result() {
    let (_folder, data) = task(SPLITS);
    let schedule = PruneSchedule::Cubic {
        begin: 0.0,
        end: 3.0,
        updates: 6,
    };
    let start = net(1, Variant::default());
    let mut watch = Watch {
        stop_after: Some(18),
        ..Watch::default()
    };
    let student = student(0.5, schedule);
    let before = weights(&student.graph);
    let done = train(student, &start, &data, &settings(), &mut watch).unwrap();
    assert!(done.cancelled && done.epochs >= 2);
    assert_eq!((done.best_epoch, done.best, done.pruned), (0, None, None));
    assert_eq!(weights(&done.model.graph), before);
    assert!(done.start.is_some() && done.model.masks.is_empty());
}
