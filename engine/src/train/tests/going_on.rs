//! Checkpoints, going back and ending early.

use super::net::AUGMENTED;
use super::quantised::narrow;
use super::*;
use crate::compress::{MagnitudePrune, Pass, Pattern, PruneSchedule, Ratio, testkit::with_context};
use crate::graph::LayerId;
use crate::train::{Blobs, Checkpoint, CheckpointText, Rollback, decode, encode, resume};
use std::collections::BTreeMap;

/// Keeps what was to be kept, as it would be read from a file.
#[derive(Default)]
struct Keeper {
    every: u64,
    step: u64,
    kept: Vec<Checkpoint>,
}

impl TrainObserver for Keeper {
    fn step(&mut self, point: &TrainPoint) -> Result<(), TrainError> {
        self.step = point.step;
        Ok(())
    }
    fn wants_checkpoint(&mut self) -> bool {
        self.every > 0 && self.step.is_multiple_of(self.every)
    }
    fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        let mut blobs = Blobs::default();
        let text = checkpoint.write(&mut blobs);
        let file = encode(&text, &blobs).unwrap();
        let (text, blobs): (CheckpointText, Blobs) = decode(&file.into()).unwrap();
        let read = Checkpoint::read(&text, &blobs).unwrap();
        assert_eq!(read, *checkpoint);
        assert_eq!(read.step(), self.step);
        self.kept.push(read);
    }
}

/// All that must not depend on interruptions.
fn bits(done: &Distilled) -> impl PartialEq + std::fmt::Debug {
    let points: Vec<(u64, u64, u64, u32)> = done
        .points
        .iter()
        .map(|p| (p.step, p.loss.to_bits(), p.rate.to_bits(), p.rollbacks))
        .collect();
    (
        weights(&done.model.graph),
        points,
        (done.best_epoch, done.best, done.start, done.epochs),
        (done.model.masks.clone(), done.pruned),
        done.rollbacks.clone(),
    )
}

fn masked(quantised: bool) -> Model {
    let mut student = model(net(
        4,
        Variant {
            quantised,
            ..Variant::default()
        },
    ));
    let mask = (0..6 * 6 * 9).map(|i| i % 2 == 0).collect();
    student.masks.insert("second.weight".into(), mask);
    student
}

pub fn check_every_checkpoint(student: &Model, settings: &DistilSettings) -> Distilled {
    check_checkpoints(student, settings).0
}

/// What training leaves, the same from every checkpoint, and the checkpoints.
pub fn check_checkpoints(
    student: &Model,
    settings: &DistilSettings,
) -> (Distilled, Vec<Checkpoint>) {
    let (_folder, data) = task(if settings.augment { AUGMENTED } else { SPLITS });
    let teacher = net(1, Variant::default());
    let token = CancelToken::default();
    let mut keeper = Keeper {
        every: 3,
        ..Keeper::default()
    };
    let (whole, kept) = {
        let student = student.clone();
        let done = distil(student, &teacher, &data, settings, 7, &mut keeper, &token).unwrap();
        (done, keeper.kept)
    };
    assert!(kept.len() >= 5, "{}", kept.len());
    for checkpoint in &kept {
        let mut later = Keeper::default();
        let student = student.clone();
        let done = resume(
            student, &teacher, &data, settings, 7, checkpoint, &mut later, &token,
        )
        .unwrap();
        assert_eq!(bits(&done), bits(&whole), "from step {}", checkpoint.step());
    }
    (whole, kept)
}

#[test]
fn going_on_from_any_checkpoint_ends_with_the_same_bits() {
    let settings = DistilSettings {
        samples: Some(150),
        epochs: 4,
        ..settings()
    };
    let done = check_every_checkpoint(&masked(true), &settings);
    assert!(done.best_epoch > 0);
    let learned = DistilSettings {
        learned_step_sizes: true,
        ..settings
    };
    let done = check_every_checkpoint(&masked(true), &learned);
    assert!(done.best_epoch > 0 && done.step_sizes.weights == 1);
    // Those of activations too, one of them by two pairs.
    let done = check_every_checkpoint(&narrow(net(4, Variant::default()), 0.7), &learned);
    assert!(done.best_epoch > 0 && done.step_sizes.activations == 5);
}

#[test]
fn going_on_keeps_velocities_and_statistics_of_batch_norms() {
    let settings = DistilSettings {
        samples: Some(150),
        epochs: 4,
        optimizer: Optimizer::Sgd,
        batch_norm: BatchNorm::Batch {
            freeze_at: 0.6,
            momentum: 0.9,
        },
        ..settings()
    };
    let done = check_every_checkpoint(&masked(false), &settings);
    assert!(done.best_epoch > 0 && done.batch_norms == 2);
}

/// `student`, to lose half of its second convolution while it trains.
pub fn to_be_halved(student: Model, pattern: Pattern, schedule: PruneSchedule) -> Model {
    let pass = MagnitudePrune {
        ratios: BTreeMap::from([(LayerId("second".into()), Ratio(0.5))]),
        pattern,
        schedule: Some(schedule),
    };
    with_context(|c| pass.apply(student, c)).unwrap().0
}

/// Weights that a checkpoint's masks keep away.
pub fn gone(checkpoint: &Checkpoint) -> usize {
    let masks = checkpoint.at.masks.values().flatten();
    masks.filter(|kept| !**kept).count()
}

#[test]
fn going_on_keeps_masks_that_are_still_growing() {
    let settings = DistilSettings {
        samples: Some(150),
        epochs: 4,
        average: Some(0.9),
        ..settings()
    };
    // 5 mini-batches an epoch: updates at 4, 8, 11, 15 of 20. Groups of 2 lose their one at the last, the others lose more at each.
    let cubic = PruneSchedule::Cubic {
        begin: 0.0,
        end: 3.0,
        updates: 4,
    };
    let all = 6 * 6 * 9;
    let student = model(net(4, Variant::default()));
    let anywhere = to_be_halved(student.clone(), Pattern::Unstructured, cubic);
    let (done, kept) = check_checkpoints(&anywhere, &settings);
    assert_eq!(done.pruned, Some((all / 2, all)));
    let growing: Vec<usize> = kept.iter().map(gone).collect();
    let between = growing.iter().filter(|n| (1..162).contains(*n));
    assert!(between.count() >= 2, "{growing:?}");
    let pairs = to_be_halved(student, Pattern::Groups(2), cubic);
    let done = check_every_checkpoint(&pairs, &settings);
    assert_eq!(done.pruned, Some((all / 2, all)));
    assert!(done.best_epoch >= 3, "{}", done.best_epoch);
    let weights = weight(&done.model.graph, "second.weight");
    let mask = &done.model.masks["second.weight"];
    for (i, w) in weights.iter().enumerate() {
        assert_eq!(*w != 0.0, mask[i], "{i}");
        // Inputs are 9 elements apart: one of two neighbours stays.
        let other = if i / 9 % 2 == 0 { i + 9 } else { i - 9 };
        assert_ne!(mask[i], mask[other], "{i}");
    }
    assert_eq!(done.model.gradual, None);
}

#[test]
fn going_back_takes_grown_masks_back_too() {
    // An update after each of the first 24 mini-batches, so that one lies before whatever is gone back from.
    let iterative = PruneSchedule::Iterative {
        begin: 0.0,
        end: 3.0,
        rounds: 24,
    };
    let student = model(net(4, Variant::default()));
    let student = to_be_halved(student, Pattern::Unstructured, iterative);
    let (done, kept) = check_checkpoints(&student, &too_high());
    assert!(!done.rollbacks.is_empty(), "{:?}", done.rollbacks);
    // Masks had grown beyond those of the first checkpoint after the way back, which is 3 mini-batches behind it ...
    let grown = |back: &Rollback| back.back_to == 0 && back.step > 3;
    assert!(done.rollbacks.iter().any(grown), "{:?}", done.rollbacks);
    // ... and it has those of its own step again, as all have.
    for checkpoint in &kept {
        let due = iterative.due(checkpoint.step(), 8);
        let share = iterative.share(Ratio(0.5), due);
        let expected = share.count_of(6 * 6 * 9);
        assert_eq!(gone(checkpoint), expected, "{}", checkpoint.step());
    }
    let zeros = weight(&done.model.graph, "second.weight")
        .iter()
        .filter(|w| **w == 0.0)
        .count();
    assert_eq!(zeros, 6 * 6 * 9 / 2);
}

/// A rate that is far too high: the losses rise above all bounds, and a part of it is well borne.
fn too_high() -> DistilSettings {
    DistilSettings {
        epochs: 6,
        rate: 4.0,
        optimizer: Optimizer::Sgd,
        schedule: Schedule::Constant,
        soft_weight: 0.0,
        hard_weight: 1.0,
        ..settings()
    }
}

#[test]
fn divergence_is_gone_back_from_with_a_lower_rate_and_told() {
    let done = check_every_checkpoint(&masked(false), &too_high());
    assert!(
        (1..=4).contains(&done.rollbacks.len()),
        "{:?}",
        done.rollbacks
    );
    let mut rate = 4.0;
    for (n, back) in done.rollbacks.iter().enumerate() {
        rate /= 4.0;
        assert_eq!(back.rate, rate);
        assert!(back.back_to < back.step && back.back_to.is_multiple_of(8));
        // The curve goes back with it.
        let after = done
            .points
            .iter()
            .find(|p| p.rollbacks == n as u32 + 1)
            .unwrap();
        assert_eq!((after.step, after.rate), (back.back_to + 1, rate));
    }
    assert_eq!(done.epochs, 6);
    assert!(done.points.iter().all(|p| p.loss.is_finite()));
    assert!(done.best.unwrap().value >= done.start.unwrap().value);
}

#[test]
fn training_ends_when_nothing_gets_better() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    let run = |patience| {
        let settings = DistilSettings {
            // Too low a rate to change a label.
            rate: 1e-9,
            epochs: 9,
            patience,
            ..settings()
        };
        let student = model(teacher.clone());
        train(student, &teacher, &data, &settings, &mut Watch::default()).unwrap()
    };
    let (early, whole) = (run(Some(2)), run(None));
    assert_eq!(whole.epochs, 9);
    assert!(early.epochs < 9 && early.epochs == early.best_epoch + 2);
    assert_eq!(early.points.len(), early.epochs * 8);
    let none = DistilSettings {
        patience: Some(0),
        ..settings()
    };
    assert!(none.check().unwrap_err().to_string().contains("patience"));
}

#[test]
fn a_checkpoint_of_another_training_is_refused() {
    let (_folder, data) = task(SPLITS);
    let teacher = net(1, Variant::default());
    let token = CancelToken::default();
    let mut keeper = Keeper {
        every: 5,
        ..Keeper::default()
    };
    let student = model(net(2, Variant::default()));
    distil(
        student.clone(),
        &teacher,
        &data,
        &settings(),
        7,
        &mut keeper,
        &token,
    )
    .unwrap();
    let refused = |checkpoint: &Checkpoint, settings: &DistilSettings| {
        let mut watch = Watch::default();
        let error = resume(
            student.clone(),
            &teacher,
            &data,
            settings,
            7,
            checkpoint,
            &mut watch,
            &token,
        );
        let said = error.unwrap_err().to_string();
        assert!(said.contains("of another training"), "{said}");
    };
    let kept = &keeper.kept[0];
    let other = DistilSettings {
        samples: Some(50),
        ..settings()
    };
    refused(kept, &other);
    let mut wrong = kept.clone();
    wrong.at.order.indices[0] = 1_000;
    refused(&wrong, &settings());
    let mut wrong = kept.clone();
    wrong.at.moments.of.clear();
    refused(&wrong, &settings());
    let mut wrong = kept.clone();
    let weight = wrong.at.parameters.remove("head.bias").unwrap();
    wrong.at.parameters.insert("of another".into(), weight);
    refused(&wrong, &settings());
}

#[test]
fn going_on_keeps_the_average_and_repeats_augmentation() {
    let settings = DistilSettings {
        samples: Some(150),
        epochs: 4,
        schedule: Schedule::OneCycle,
        average: Some(0.9),
        clip_norm: Some(1.0),
        augment: true,
        ..settings()
    };
    let done = check_every_checkpoint(&masked(true), &settings);
    assert!(done.best_epoch > 0);
}

/// What epochs leave that are wanted.
#[derive(Default)]
struct Epochs(Vec<Distilled>);

impl TrainObserver for Epochs {
    fn step(&mut self, _: &TrainPoint) -> Result<(), TrainError> {
        Ok(())
    }
    fn wants_epochs(&self) -> bool {
        true
    }
    fn epoch(&mut self, cut: Distilled) {
        self.0.push(cut);
    }
}

/// Also where a later epoch is worse than an earlier one, and with an average of the weights.
#[test]
fn every_epoch_is_what_a_training_leaves_that_ends_there_and_keeps_its_last_state() {
    let (_folder, data) = task(SPLITS);
    let teacher = net(1, Variant::default());
    let token = CancelToken::default();
    for average in [None, Some(0.9)] {
        let settings = DistilSettings {
            samples: Some(96),
            epochs: 4,
            rate: 0.05,
            average,
            ..settings()
        };
        let train = |settings: &DistilSettings, watch: &mut dyn TrainObserver| {
            let student = masked(true);
            distil(student, &teacher, &data, settings, 7, watch, &token).unwrap()
        };
        let mut epochs = Epochs::default();
        train(&settings, &mut epochs);
        assert_eq!(epochs.0.len(), 4);
        let mut differing = 0;
        for (at, cut) in epochs.0.iter().enumerate() {
            let until = |keep_last| DistilSettings {
                stop_after: Some(at + 1),
                keep_last,
                ..settings.clone()
            };
            let mut last = train(&until(true), &mut Epochs::default());
            last.points.clear();
            assert_eq!(bits(cut), bits(&last), "epoch {}", at + 1);
            assert_eq!(last.best_epoch, at + 1);
            let best = train(&until(false), &mut Epochs::default());
            differing += usize::from(weights(&best.model.graph) != weights(&last.model.graph));
        }
        if average.is_none() {
            assert!(differing > 0, "the last was the best each time: no test");
        }
    }
}
