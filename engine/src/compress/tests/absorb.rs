//! Absorbing high biases: the constants of [`Absorb`], where the float function stays and where it does not, and what is refused.

use super::*;
use crate::{
    data::{Dataset, SplitName},
    exec::CancelToken,
    graph::{Op, Padding, TensorData, ValueId},
};
use candle_core::Tensor;

fn absorbed(model: Model, absorb: Absorb, data: Option<&Dataset>) -> (Model, Account) {
    let pass = Equalize {
        settings: match absorb {
            Absorb::Off => EqualizeSettings::default(),
            absorb => EqualizeSettings {
                absorb,
                samples: 40,
            },
        },
        layers: model.graph.layers().into_iter().map(|l| l.id).collect(),
    };
    let context = PassContext {
        data,
        cancel: &CancelToken::default(),
        seed: 0,
    };
    let (after, account) = pass.apply(model, &context).expect("the pass applies");
    after.graph.validate().expect("a valid graph");
    covers(&after.graph, &account);
    (after, account)
}

fn images(data: &Dataset) -> Tensor {
    let indices: Vec<usize> = (0..40).collect();
    data.images(SplitName::Calibration, &indices).unwrap()
}

/// Adds so much to every element of a constant.
fn lift(model: &mut Model, name: &str, by: f32) {
    let id = model.graph.find_value(name).unwrap();
    let data = model.graph.value(id).data.clone().unwrap();
    let values: Vec<f32> = data.to_f32_vec().iter().map(|v| v + by).collect();
    let data = TensorData::from_f32(&data.shape, &values);
    model.graph.set_data(id, data);
}

/// first (1×1, biases lifted) → relu → second (1×1, no bias) → relu → depthwise 1×1 → relu → flatten → gemm with factors of its own.
fn chain(lifted: f32) -> Model {
    let mut net = Net::new(3, &[1, 6, 6]);
    let x = net.conv("first", ValueId(0), [4, 1, 1, 1], 1, true);
    let x = net.relu("first_relu", x);
    let x = net.conv("second", x, [6, 4, 1, 1], 1, false);
    let x = net.relu("second_relu", x);
    let x = net.conv("depthwise", x, [6, 1, 1, 1], 6, true);
    let x = net.relu("depthwise_relu", x);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let gemm = [
        x,
        net.weight("head.weight", &[216, 3], -1.0, 1.0),
        net.weight("head.bias", &[3], -0.5, 0.5),
    ];
    let op = Op::Gemm {
        alpha: 0.5,
        beta: 2.0,
        trans_a: false,
        trans_b: false,
    };
    let x = net.node("head", op, &gemm);
    let mut model = net.finish(&[x]);
    model.graph.infer_shapes();
    lift(&mut model, "first.bias", lifted);
    lift(&mut model, "depthwise.bias", lifted);
    model
}

fn said<'a>(account: &'a Account, layer: &str) -> &'a str {
    match outcome(account, layer) {
        Outcome::Done(words) | Outcome::NotDone(words) => words,
    }
}

#[test]
fn by_the_least_value_the_function_stays_and_the_range_shrinks() {
    let (_folder, data) = task(1);
    let model = chain(5.0);
    let x = images(&data);
    let (equalised, _) = absorbed(model.clone(), Absorb::Off, Some(&data));
    let (after, account) = absorbed(model.clone(), Absorb::Minimum, Some(&data));
    for layer in ["first", "depthwise"] {
        let words = said(&account, layer);
        let exact = "exact on 40 calibration samples, none of whose values lies below";
        assert!(words.contains(exact), "{layer}: {words}");
    }
    close(&run_on(&model.graph, &x), &run_on(&after.graph, &x), 1e-5);
    // What the second layer reads begins at zero now.
    let range = |model: &Model| {
        let mut graph = model.graph.clone();
        graph.outputs = vec![graph.find_value("first_relu_out").unwrap()];
        let values = run_on(&graph, &x);
        let plane = |c: usize| {
            let of = values.chunks(36).skip(c).step_by(4).flatten().copied();
            of.fold((f32::INFINITY, 0.0_f32), |(lo, hi), v| {
                (lo.min(v), hi.max(v))
            })
        };
        (0..4).map(plane).collect::<Vec<_>>()
    };
    for ((lo, hi), (low, high)) in range(&equalised).into_iter().zip(range(&after)) {
        assert!(lo > 1.0 && low.abs() < 1e-5, "{lo} {low}");
        assert!((high - (hi - lo)).abs() < 1e-4, "{high} of {lo} to {hi}");
    }
}

#[test]
fn by_deviations_it_stays_where_no_value_lies_below_and_the_rest_is_counted() {
    let (_folder, data) = task(2);
    let mut net = Net::new(4, &[1, 6, 6]);
    let x = net.conv("first", ValueId(0), [3, 1, 1, 1], 1, true);
    let read = net.relu("relu", x);
    let y = net.conv("second", read, [2, 3, 1, 1], 1, true);
    let mut model = net.finish(&[y]);
    model.graph.infer_shapes();
    lift(&mut model, "first.bias", 2.0);
    let x = images(&data);
    let (equalised, _) = absorbed(model.clone(), Absorb::Off, Some(&data));
    let (after, account) = absorbed(model, Absorb::Deviations(1.0), Some(&data));
    let hidden = |model: &Model, name: &str| {
        let mut graph = model.graph.clone();
        graph.outputs = vec![graph.find_value(name).unwrap()];
        run_on(&graph, &x)
    };
    // The constants by hand, from the values as they are equalised.
    let before = hidden(&equalised, "first_out");
    let channel = |c: usize| {
        let of = before.chunks(36).skip(c).step_by(3).flatten();
        of.map(|v| f64::from(*v)).collect::<Vec<f64>>()
    };
    let constants: Vec<f64> = (0..3)
        .map(|c| {
            let values = channel(c);
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let square = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
            mean - (square / values.len() as f64).sqrt()
        })
        .collect();
    assert!(constants.iter().all(|c| *c > 0.1), "{constants:?}");
    let shifted = hidden(&after, "first_out");
    for (at, (a, b)) in before.iter().zip(&shifted).enumerate() {
        let c = constants[at / 36 % 3];
        assert!((f64::from(a - b) - c).abs() < 1e-5, "{a} {b} {c}");
    }
    let low = |at: usize| f64::from(before[at]) < constants[at / 36 % 3];
    let below = (0..before.len()).filter(|at| low(*at)).count();
    let share = below as f64 / before.len() as f64 * 100.0;
    assert!(share > 5.0 && share < 40.0);
    let words = said(&account, "first");
    let counted = format!("exact but for the {share:.3} % of their values on 40");
    assert!(words.contains(&counted), "{counted} in {words}");
    // Place by place: the same where no channel lies below, another where one does.
    let (wanted, seen) = (run_on(&equalised.graph, &x), run_on(&after.graph, &x));
    let mut other = 0;
    for (at, (a, b)) in wanted.iter().zip(&seen).enumerate() {
        let (sample, place) = (at / 72, at % 36);
        let touched = (0..3).any(|c| low(sample * 108 + c * 36 + place));
        if touched {
            other += usize::from((a - b).abs() > 1e-4);
        } else {
            assert!((a - b).abs() < 1e-4, "{a} against {b}");
        }
    }
    assert!(other > 100, "{other}");
}

#[test]
fn without_data_the_folded_norms_tell() {
    let model = || {
        let mut net = Net::new(5, &[3, 6, 6]);
        let x = net.conv("first", ValueId(0), [4, 3, 1, 1], 1, false);
        let x = net.norm("norm", x, 4);
        let x = net.relu("relu", x);
        let x = net.conv("second", x, [2, 4, 1, 1], 1, true);
        let mut model = net.finish(&[x]);
        lift(&mut model, "norm.shift", 6.0);
        model.graph.infer_shapes();
        model
    };
    let constant = |model: &Model, name: &str| {
        let id = model.graph.find_value(name).unwrap();
        model.graph.value(id).data.as_ref().unwrap().to_f32_vec()
    };
    let raw = model();
    let [scale, shift, variance] =
        ["norm.scale", "norm.shift", "norm.variance"].map(|name| constant(&raw, name));
    let (folded, _) = apply(&FoldBatchNorm, raw);
    let (equalised, _) = absorbed(folded.clone(), Absorb::Off, None);
    let (after, account) = absorbed(folded.clone(), Absorb::Deviations(3.0), None);
    let bias = |model: &Model| {
        let layers = model.graph.layers();
        let id = layers[0].bias.expect("folding gave it one");
        model.graph.value(id).data.as_ref().unwrap().to_f32_vec()
    };
    let (old, scaled, new) = (bias(&folded), bias(&equalised), bias(&after));
    let mut taken = 0;
    for c in 0..4 {
        let deviation = scale[c].abs() * (variance[c] / (variance[c] + 1e-5)).sqrt();
        let high = (shift[c] - 3.0 * deviation).max(0.0);
        taken += usize::from(high > 0.0);
        // Equalisation divided the channel, and its statistics with it.
        let expected = scaled[c] - high * scaled[c] / old[c];
        assert!((new[c] - expected).abs() < 1e-4, "{} {expected}", new[c]);
    }
    assert!(taken > 0);
    let words = said(&account, "first");
    assert!(
        words.contains("was not counted, as there are no data"),
        "{words}"
    );
    // The second layer gets what it makes of the constants.
    let of_second = |model: &Model| {
        let second = &model.graph.layers()[1];
        let values = |id| model.graph.value(id).data.as_ref().unwrap().to_f32_vec();
        (values(second.weight), values(second.bias.expect("has one")))
    };
    let ((weights, before), (_, given)) = (of_second(&equalised), of_second(&after));
    for output in 0..2 {
        let passed: f32 = (0..4)
            .map(|c| weights[output * 4 + c] * (scaled[c] - new[c]))
            .sum();
        let expected = before[output] + passed;
        assert!(
            (given[output] - expected).abs() < 1e-4,
            "{given:?} {expected}"
        );
    }
    // Statistics of weights that have changed since are not used.
    let mut changed = folded;
    lift(&mut changed, "second.bias", 0.1);
    let (same, account) = absorbed(changed, Absorb::Deviations(3.0), None);
    assert!(said(&account, "first").contains("or the network has changed since"));
    assert_eq!(bias(&same), scaled);
}

#[test]
fn where_zeros_are_padded_with_or_no_bias_takes_it_nothing_moves() {
    let (_folder, data) = task(3);
    let mut net = Net::new(6, &[1, 6, 6]);
    let x = net.conv("first", ValueId(0), [4, 1, 1, 1], 1, true);
    let x = net.relu("first_relu", x);
    let x = net.conv("padded", x, [4, 1, 3, 3], 4, true);
    let x = net.relu("padded_relu", x);
    let mut window = window([3, 3]);
    let op = |window| Op::AveragePool {
        window,
        ceil: false,
        count_include_pad: true,
    };
    let x = net.node("edge_pool", op(window.clone()), &[x]);
    let x = net.conv("pooled", x, [4, 4, 1, 1], 1, true);
    let x = net.relu("pooled_relu", x);
    window.padding = Padding::Valid;
    let x = net.node("inner_pool", op(window), &[x]);
    let x = net.conv("last", x, [3, 4, 1, 1], 1, true);
    let x = net.relu("last_relu", x);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let weight = net.weight("head.weight", &[48, 3], -1.0, 1.0);
    let x = net.node("head", Op::MatMul, &[x, weight]);
    let mut model = net.finish(&[x]);
    for layer in ["first", "padded", "pooled", "last"] {
        lift(&mut model, &format!("{layer}.bias"), 20.0);
    }
    model.graph.infer_shapes();
    let x = images(&data);
    let before = run_on(&model.graph, &x);
    let (after, account) = absorbed(model, Absorb::Minimum, Some(&data));
    for (layer, reason) in [
        ("first", "padded pads with zeros"),
        ("padded", "edge_pool counts zeros that it pads with"),
        ("pooled", "of the bias of"),
        ("last", "a MatMul has no bias to take it (head)"),
    ] {
        let words = said(&account, layer);
        assert!(words.contains(reason), "{layer}: {words}");
    }
    close(&before, &run_on(&after.graph, &x), 1e-5);
}

#[test]
fn settings_without_a_meaning_are_refused() {
    let model = chain(1.0);
    let pass = |absorb, samples| Equalize {
        settings: EqualizeSettings { absorb, samples },
        layers: [id("first")].into(),
    };
    for (pass, said) in [
        (pass(Absorb::Deviations(-1.0), 4), "deviations"),
        (pass(Absorb::Deviations(f32::NAN), 4), "deviations"),
        (pass(Absorb::Minimum, 0), "samples"),
        (pass(Absorb::Minimum, 4), "give a task"),
    ] {
        let error = with_context(|c| pass.apply(model.clone(), c)).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn samples_that_nothing_looks_at_are_refused() {
    let settings = |absorb, samples| EqualizeSettings { absorb, samples };
    let refused = settings(Absorb::Off, 10).check().expect_err("refused");
    let said = refused.to_string();
    assert!(
        said.contains("samples") && said.contains("absorb"),
        "{said}"
    );
    for sound in [
        EqualizeSettings::default(),
        settings(Absorb::Minimum, 10),
        settings(Absorb::Deviations(3.0), 10),
    ] {
        sound.check().expect("sound");
    }
}

#[test]
fn folding_for_nobody_who_absorbs_gives_the_same_network() {
    let fold = |pass: &dyn Pass| {
        let net = testkit::classifier(1);
        testkit::with_context(|context| pass.apply(net, context)).expect("folds")
    };
    let (with, account) = fold(&FoldBatchNorm);
    let (without, same) = fold(&crate::compress::FoldBatchNormOnly);
    assert!(with.norms.is_some() && without.norms.is_none());
    assert_eq!((with.graph, account), (without.graph, same));
}
