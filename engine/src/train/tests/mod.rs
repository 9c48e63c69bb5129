//! Training small networks for real, and the arithmetic of losses and schedules.

mod features;
mod going_on;
mod gradual;
mod label_free;
mod net;
mod quantised;
mod taking;

use super::{
    BatchNorm, DistilSettings, Distilled, Optimizer, Schedule, TrainError, TrainObserver,
    TrainPoint, distil, loss::DistilLoss, optimise::rate,
};
use crate::{compress::Model, data::Dataset, exec::CancelToken, graph::Graph};
use candle_core::{Device, Tensor, Var};
use net::{SPLITS, Variant, net, task};

/// Stops, or nothing, after some steps.
#[derive(Default)]
struct Watch {
    points: Vec<TrainPoint>,
    pauses: usize,
    stop_after: Option<u64>,
    token: Option<(u64, CancelToken)>,
}

impl TrainObserver for Watch {
    fn step(&mut self, point: &TrainPoint) -> Result<(), TrainError> {
        self.points.push(*point);
        if let Some((at, token)) = &self.token
            && point.step == *at
        {
            token.cancel();
        }
        match self.stop_after {
            Some(stop) if point.step >= stop => Err(TrainError::Cancelled),
            _ => Ok(()),
        }
    }
    fn pause(&mut self) -> Result<(), TrainError> {
        self.pauses += 1;
        Ok(())
    }
}

fn model(graph: Graph) -> Model {
    Model::new(graph)
}

fn settings() -> DistilSettings {
    DistilSettings {
        epochs: 3,
        batch: 32,
        rate: 0.02,
        ..DistilSettings::default()
    }
}

fn train(
    student: Model,
    teacher: &Graph,
    data: &Dataset,
    settings: &DistilSettings,
    watch: &mut Watch,
) -> Result<Distilled, TrainError> {
    let token = watch
        .token
        .clone()
        .map_or_else(CancelToken::default, |t| t.1);
    distil(student, teacher, data, settings, 7, watch, &token)
}

/// A teacher that was itself trained here, by the labels.
fn teacher(data: &Dataset) -> Graph {
    let settings = DistilSettings {
        epochs: 8,
        soft_weight: 0.0,
        hard_weight: 1.0,
        ..settings()
    };
    let start = net(1, Variant::default());
    let done = train(
        model(start.clone()),
        &start,
        data,
        &settings,
        &mut Watch::default(),
    )
    .unwrap();
    let (before, after) = (done.start.unwrap().value, done.best.unwrap().value);
    assert!(after > 0.9 && after > before, "{before} → {after}");
    done.model.graph
}

fn weights(graph: &Graph) -> Vec<(String, Vec<u32>)> {
    graph
        .values
        .iter()
        .filter_map(|v| {
            let data = v.data.as_ref()?;
            let bits = data.to_f32_vec().iter().map(|v| v.to_bits()).collect();
            Some((v.name.clone(), bits))
        })
        .collect()
}

fn weight(graph: &Graph, name: &str) -> Vec<f32> {
    let id = graph.find_value(name).unwrap();
    graph.value(id).data.as_ref().unwrap().to_f32_vec()
}

#[test]
fn students_learn_from_the_teacher_alone_with_either_optimiser() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    for (optimizer, rate, seed) in [(Optimizer::AdamW, 0.02, 2), (Optimizer::Sgd, 0.02, 3)] {
        let settings = DistilSettings {
            optimizer,
            rate,
            epochs: 8,
            soft_weight: 1.0,
            hard_weight: 0.0,
            ..settings()
        };
        let mut watch = Watch::default();
        let student = model(net(seed, Variant::default()));
        let done = train(student, &teacher, &data, &settings, &mut watch).unwrap();
        assert!(
            done.best.unwrap().value > 0.85,
            "{optimizer:?}: {:?}",
            done.best
        );
        assert!(done.best_epoch > 0 && !done.cancelled);
        // Eight mini-batches an epoch, the last one of 16; accuracies at epoch ends only.
        assert_eq!(watch.points.len(), 8 * 8);
        assert_eq!(done.points, watch.points);
        for point in &watch.points {
            assert_eq!(point.accuracy.is_some(), point.step % 8 == 0);
            assert_eq!(point.steps, 64);
        }
        assert_eq!(watch.points[63].epoch, 8.0);
        assert!(watch.points[63].loss < watch.points[0].loss * 0.7);
        // Stored statistics stay.
        assert_eq!(weight(&done.model.graph, "first.norm.variance"), [0.5; 6]);
        assert_ne!(weight(&done.model.graph, "first.norm.scale"), [1.0; 6]);
        assert!(watch.pauses > 8);
    }
}

#[test]
fn a_seed_gives_the_same_bits_on_any_number_of_threads() {
    let (_folder, data) = task(SPLITS);
    let start = net(
        1,
        Variant {
            quantised: true,
            ..Variant::default()
        },
    );
    let run = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let settings = DistilSettings {
                epochs: 2,
                ..settings()
            };
            let mut watch = Watch::default();
            let token = CancelToken::default();
            let done = distil(
                model(start.clone()),
                &start,
                &data,
                &settings,
                seed,
                &mut watch,
                &token,
            )
            .unwrap();
            // The last checkpoint's losses tell of all steps, also where an early checkpoint was the best.
            let losses: Vec<u64> = watch.points.iter().map(|p| p.loss.to_bits()).collect();
            (weights(&done.model.graph), losses)
        })
    };
    let one = run(1, 11);
    assert_eq!(one, run(2, 11));
    assert_eq!(one, run(3, 11));
    assert_ne!(one.1, run(2, 12).1);
}

#[test]
fn the_start_counts_as_a_checkpoint() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    let settings = DistilSettings {
        rate: 3.0,
        epochs: 1,
        schedule: Schedule::Constant,
        ..settings()
    };
    let done = train(
        model(teacher.clone()),
        &teacher,
        &data,
        &settings,
        &mut Watch::default(),
    )
    .unwrap();
    assert_eq!(done.best_epoch, 0);
    assert_eq!(done.best, done.start);
    assert_eq!(weights(&done.model.graph), weights(&teacher));
}

#[test]
fn cancelling_keeps_the_best_so_far() {
    let (_folder, data) = task(SPLITS);
    let start = net(1, Variant::default());
    let settings = DistilSettings {
        epochs: 4,
        soft_weight: 0.0,
        hard_weight: 1.0,
        ..settings()
    };
    // By the observer in the third epoch: the second epoch's checkpoint was finished.
    let mut watch = Watch {
        stop_after: Some(19),
        ..Watch::default()
    };
    let done = train(model(start.clone()), &start, &data, &settings, &mut watch).unwrap();
    assert!(done.cancelled && done.best_epoch >= 1 && done.points.len() == 19);
    assert!(done.best.unwrap().value > done.start.unwrap().value);
    // By the token, within a mini-batch.
    let mut watch = Watch {
        token: Some((3, CancelToken::default())),
        ..Watch::default()
    };
    let done = train(model(start.clone()), &start, &data, &settings, &mut watch).unwrap();
    assert!(done.cancelled && done.points.len() == 3);
    assert_eq!(weights(&done.model.graph), weights(&start));
    // Before anything was judged.
    let mut watch = Watch {
        token: Some((0, CancelToken::default())),
        ..Watch::default()
    };
    watch.token.as_ref().unwrap().1.cancel();
    let done = train(model(start.clone()), &start, &data, &settings, &mut watch).unwrap();
    assert!(done.cancelled && done.start.is_none());
}

#[test]
fn divergence_is_an_error_that_names_the_step() {
    let (_folder, data) = task(SPLITS);
    let start = net(1, Variant::default());
    let settings = DistilSettings {
        rate: 1e30,
        optimizer: Optimizer::Sgd,
        schedule: Schedule::Constant,
        ..settings()
    };
    let error = train(
        model(start.clone()),
        &start,
        &data,
        &settings,
        &mut Watch::default(),
    )
    .unwrap_err();
    assert!(matches!(error, TrainError::Diverged(_)), "{error}");
    assert!(error.to_string().contains("at step 2 of 24"), "{error}");
}

#[test]
fn softmax_heads_are_trained_on_logarithms() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    assert!(!teacher.ends_in_softmax());
    let student = net(
        2,
        Variant {
            softmax: true,
            ..Variant::default()
        },
    );
    assert!(student.ends_in_softmax());
    let done = train(
        model(student),
        &teacher,
        &data,
        &DistilSettings {
            epochs: 8,
            ..settings()
        },
        &mut Watch::default(),
    )
    .unwrap();
    assert!(done.best.unwrap().value > 0.8, "{:?}", done.best);
}

#[test]
fn what_cannot_be_trained_is_said() {
    let (_folder, data) = task(SPLITS);
    let start = net(1, Variant::default());
    let message = |change: &dyn Fn(&mut DistilSettings)| {
        let mut settings = settings();
        change(&mut settings);
        train(
            model(start.clone()),
            &start,
            &data,
            &settings,
            &mut Watch::default(),
        )
        .unwrap_err()
        .to_string()
    };
    assert!(message(&|s| s.epochs = 0).contains("epochs is 0"));
    assert!(message(&|s| s.batch = 0).contains("batch is 0"));
    assert!(message(&|s| s.rate = -1.0).contains("rate is -1"));
    assert!(message(&|s| s.rate = f64::NAN).contains("rate is NaN"));
    assert!(message(&|s| s.temperature = 0.0).contains("temperature is 0"));
    assert!(message(&|s| s.samples = Some(0)).contains("samples is 0"));
    assert!(message(&|s| s.weight_decay = -1.0).contains("weight_decay"));
    assert!(message(&|s| s.warm_up = Some(1.5)).contains("warm_up is 1.5"));
    assert!(message(&|s| s.clip_norm = Some(0.0)).contains("clip_norm is 0"));
    assert!(message(&|s| s.average = Some(1.0)).contains("average is 1"));
    assert!(message(&|s| (s.soft_weight, s.hard_weight) = (0.0, 0.0)).contains("nor both 0"));

    let (_folder, no_training) = task(r#"search: Rows(from: "all", count: 90)"#);
    let error = train(
        model(start.clone()),
        &start,
        &no_training,
        &settings(),
        &mut Watch::default(),
    );
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("training split is empty")
    );
}

#[test]
fn fewer_samples_an_epoch_still_see_the_whole_split() {
    let mut order = super::order::Order::new(3, 10);
    let mut seen: Vec<usize> = (0..2).flat_map(|_| order.take(5)).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
    assert_eq!(
        super::order::Order::new(3, 10).take(10),
        super::order::Order::new(3, 10).take(10)
    );
    assert_ne!(
        super::order::Order::new(3, 10).take(10),
        super::order::Order::new(4, 10).take(10)
    );

    let (_folder, data) = task(SPLITS);
    let start = net(1, Variant::default());
    let settings = DistilSettings {
        samples: Some(50),
        epochs: 1,
        ..settings()
    };
    let done = train(
        model(start.clone()),
        &start,
        &data,
        &settings,
        &mut Watch::default(),
    )
    .unwrap();
    assert_eq!(done.points.len(), 2);
}

#[test]
fn rates_follow_their_schedule() {
    let mut s = settings();
    s.schedule = Schedule::Cosine;
    let rates: Vec<f64> = (0..400).map(|step| rate(&s, step, 400)).collect();
    assert!(rates[..20].windows(2).all(|w| w[0] < w[1]));
    assert!(rates[20..].windows(2).all(|w| w[0] > w[1]));
    assert_eq!(rates[20], s.rate);
    assert!((rates[210] - s.rate / 2.0).abs() < 1e-12);
    assert!(rates[399] < s.rate / 1000.0 && rates[399] > 0.0);
    // No warm-up in a run too short for one.
    assert_eq!(rate(&s, 0, 10), s.rate);
    s.schedule = Schedule::Constant;
    assert_eq!(rate(&s, 399, 400), s.rate);
    s.schedule = Schedule::OneCycle;
    let rates: Vec<f64> = (0..400).map(|step| rate(&s, step, 400)).collect();
    assert!(rates[0] > s.rate / 25.0 && rates[0] < s.rate / 20.0);
    assert!(rates[..120].windows(2).all(|w| w[0] < w[1]));
    assert!(rates[120..].windows(2).all(|w| w[0] > w[1]));
    assert_eq!(rates[120], s.rate);
    assert!(rates[399] > s.rate * 1e-4 && rates[399] < s.rate * 3e-4);
    // A warm-up that is asked for takes the place of the schedule's own, whichever it is.
    for schedule in [Schedule::Constant, Schedule::Cosine, Schedule::OneCycle] {
        (s.schedule, s.warm_up) = (schedule, Some(0.1));
        assert!(rate(&s, 39, 400) < s.rate, "{schedule:?}");
        assert_eq!(rate(&s, 40, 400), s.rate, "{schedule:?}");
        s.warm_up = Some(0.0);
        assert_eq!(rate(&s, 0, 400), s.rate, "{schedule:?}");
        s.warm_up = Some(1.0);
        assert!(rate(&s, 399, 400) <= s.rate && rate(&s, 399, 400) > 0.99 * s.rate);
    }
}

/// By the formulas, and by differences.
#[test]
fn the_loss_and_its_gradient() {
    let logits = [[1.0f32, -0.5, 0.3], [0.2, 2.0, -1.0]];
    let teacher = vec![0.7f32, 0.2, 0.1, 0.0, 0.9, 0.1];
    let loss = |soft: f32, hard: f32, t: f32| DistilLoss {
        samples: 2,
        classes: 3,
        teacher: teacher.clone(),
        labels: vec![2, 1],
        others: Vec::new(),
        share: 1.0,
        temperature: t,
        soft,
        hard,
    };
    let value = |logits: &[[f32; 3]; 2], soft, hard, t| {
        let x = Tensor::new(logits, &Device::Cpu).unwrap();
        f64::from(
            x.apply_op1(loss(soft, hard, t))
                .unwrap()
                .to_scalar::<f32>()
                .unwrap(),
        )
    };
    let softmax = |row: &[f32; 3], t: f64| {
        let e: Vec<f64> = row.iter().map(|z| (f64::from(*z) / t).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|e| e / sum).collect::<Vec<_>>()
    };
    let mut expected = 0.0;
    for (i, row) in logits.iter().enumerate() {
        let q = softmax(row, 3.0);
        for c in 0..3 {
            let p = f64::from(teacher[i * 3 + c]);
            if p > 0.0 {
                expected += 0.9 * 9.0 * p * (p / q[c]).ln() / 2.0;
            }
        }
        expected -= 0.1 * softmax(row, 1.0)[[2, 1][i]].ln() / 2.0;
    }
    assert!((value(&logits, 0.9, 0.1, 3.0) - expected).abs() < 1e-5);

    // Of a mixture each label counts its share.
    let mixed = |share: f64| DistilLoss {
        others: vec![0, 0],
        share,
        ..loss(0.0, 1.0, 1.0)
    };
    let x = Var::new(&logits, &Device::Cpu).unwrap();
    let of = |loss: DistilLoss| {
        let y = x.apply_op1(loss).unwrap();
        let gradient = y.backward().unwrap().get(&x).unwrap().clone();
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (f64::from(y.to_scalar::<f32>().unwrap()), gradient)
    };
    let (own, other, both) = (of(mixed(1.0)), of(mixed(0.0)), of(mixed(0.7)));
    assert_eq!(own, of(loss(0.0, 1.0, 1.0)));
    assert!((both.0 - (0.7 * own.0 + 0.3 * other.0)).abs() < 1e-6);
    for ((both, own), other) in both.1.iter().zip(&own.1).zip(&other.1) {
        assert!((both - (0.7 * own + 0.3 * other)).abs() < 1e-6);
    }

    for (soft, hard, t) in [(0.9, 0.1, 3.0), (1.0, 0.0, 1.0), (0.0, 1.0, 2.0)] {
        let x = Var::new(&logits, &Device::Cpu).unwrap();
        let y = x.apply_op1(loss(soft, hard, t)).unwrap();
        let gradients = y.backward().unwrap();
        let gradient = gradients.get(&x).unwrap().to_vec2::<f32>().unwrap();
        for i in 0..2 {
            for c in 0..3 {
                let moved = |by: f32| {
                    let mut logits = logits;
                    logits[i][c] += by;
                    value(&logits, soft, hard, t)
                };
                let slope = (moved(0.01) - moved(-0.01)) / 0.02;
                assert!(
                    (f64::from(gradient[i][c]) - slope).abs() < 1e-3,
                    "{i} {c}: {} {slope}",
                    gradient[i][c]
                );
            }
        }
    }
}

#[test]
fn batch_norms_take_the_mini_batches_statistics_and_freeze_late() {
    let (_folder, data) = task(SPLITS);
    let teacher = teacher(&data);
    let run = |batch_norm: BatchNorm, student: Graph| {
        let settings = DistilSettings {
            epochs: 6,
            batch_norm,
            ..settings()
        };
        let mut watch = Watch::default();
        train(model(student), &teacher, &data, &settings, &mut watch).unwrap()
    };
    let batch = |freeze_at: f64| BatchNorm::Batch {
        freeze_at,
        momentum: 0.9,
    };
    let start = net(2, Variant::default());
    let own = run(batch(0.5), start.clone());
    assert_eq!(own.batch_norms, 2);
    assert!(own.best.unwrap().value > 0.85, "{:?}", own.best);
    // What is kept holds the running statistics, and they are the network's own: its last activations are near unit variance by them.
    let moved = weight(&own.model.graph, "first.norm.variance");
    assert_ne!(moved, [0.5; 6]);
    assert_ne!(weight(&own.model.graph, "first.norm.mean"), [0.0; 6]);
    // Again the same bits; frozen from another step on, others.
    assert_eq!(
        weights(&own.model.graph),
        weights(&run(batch(0.5), start.clone()).model.graph)
    );
    let (late, frozen) = (
        run(batch(1.0), start.clone()),
        run(BatchNorm::Frozen, start),
    );
    assert_ne!(own.points[30].loss, late.points[30].loss);
    assert_eq!(own.points[23].loss, late.points[23].loss);
    assert_ne!(own.points[0].loss, frozen.points[0].loss);
    assert_eq!(frozen.batch_norms, 0);
    // Frozen half way: running statistics no longer move, so those after four epochs are those of the end.
    let stopped = |epochs: usize| {
        let settings = DistilSettings {
            epochs: 6,
            stop_after: Some(epochs),
            batch_norm: batch(0.5),
            ..settings()
        };
        let student = model(net(2, Variant::default()));
        let done = train(student, &teacher, &data, &settings, &mut Watch::default()).unwrap();
        (
            done.best_epoch,
            weight(&done.model.graph, "second.norm.mean"),
        )
    };
    let (a, b) = (stopped(3), stopped(6));
    if a.0 == 3 && b.0 > 3 {
        assert_eq!(a.1, b.1);
    }
}

#[test]
fn folded_batch_norms_are_told_rather_than_failing_and_settings_are_read_strictly() {
    let (_folder, data) = task(SPLITS);
    let mut student = net(2, Variant::default());
    // As after folding: no batch norm is left.
    for node in &mut student.nodes {
        if matches!(node.op, crate::graph::Op::BatchNormalization { .. }) {
            node.op = crate::graph::Op::Identity;
            node.inputs.truncate(1);
        }
    }
    let settings = DistilSettings {
        epochs: 1,
        soft_weight: 0.0,
        hard_weight: 1.0,
        batch_norm: BatchNorm::Batch {
            freeze_at: 0.6,
            momentum: 0.9,
        },
        ..settings()
    };
    let teacher = net(1, Variant::default());
    let done = train(
        model(student),
        &teacher,
        &data,
        &settings,
        &mut Watch::default(),
    )
    .unwrap();
    assert_eq!((done.batch_norms, done.points.len()), (0, 8));
    let read = |text: &str| ron::from_str::<DistilSettings>(text);
    let read_batch = |text: &str| read(&format!("(batch_norm: {text})")).unwrap().batch_norm;
    assert_eq!(read_batch("frozen"), BatchNorm::Frozen);
    assert_eq!(read_batch("batch()"), settings.batch_norm);
    assert_eq!(
        read_batch("batch(freeze_at: 0.5, momentum: 0.8)"),
        BatchNorm::Batch {
            freeze_at: 0.5,
            momentum: 0.8
        }
    );
    assert!(read("(batch_norm: batch(freeze_ta: 0.5))").is_err());
    assert!(read("(batch_norm: own)").is_err());
    // What is as it always was is not written.
    let text = |s: &DistilSettings| ron::to_string(s).unwrap();
    assert!(!text(&DistilSettings::default()).contains("batch_norm"));
    assert!(text(&settings).contains("batch_norm"));
    for (freeze_at, momentum, batch, word) in [
        (0.0, 0.9, 32, "freeze_at"),
        (1.5, 0.9, 32, "freeze_at"),
        (f64::NAN, 0.9, 32, "freeze_at"),
        (0.6, 1.0, 32, "momentum"),
        (0.6, 0.9, 1, "at least 2 samples"),
    ] {
        let wrong = DistilSettings {
            batch,
            batch_norm: BatchNorm::Batch {
                freeze_at,
                momentum,
            },
            ..settings.clone()
        };
        let told = wrong.check().unwrap_err().to_string();
        assert!(told.contains(word), "{told}");
    }
}
