use super::*;
use crate::{
    data::SplitName,
    exec::CancelToken,
    graph::{Op, TensorData, ValueId},
};

#[test]
fn ranges_are_those_of_the_values() {
    let (_folder, data) = task(1);
    let model = classifier(1);
    let cancel = CancelToken::default();
    let scheme = QuantScheme {
        calibration: Calibration::MinMax,
        samples: 23,
        ..QuantScheme::default()
    };
    let ranges = calibrate_layers(&model.graph, &data, &scheme, &cancel).unwrap();
    assert_eq!(ranges.values.len(), 3);
    let images = data.batch(SplitName::Calibration, 0..23).unwrap().images;
    let pixels: Vec<f32> = images.flatten_all().unwrap().to_vec1().unwrap();
    let largest = pixels.iter().copied().fold(0.0, f32::max);
    assert_eq!(ranges.values["x"], [0.0, largest]);
    // The same value as an output of the graph.
    let mut graph = model.graph.clone();
    graph.outputs = vec![graph.find_value("first_relu_out").unwrap()];
    let values = run_on(&graph, &images);
    let largest = values.iter().copied().fold(0.0, f32::max);
    let [low, high] = ranges.values["first_relu_out"];
    // Taps see operators one by one; without them convolution and activation are one, which rounds differently.
    assert!(
        low == 0.0 && (high / largest - 1.0).abs() < 1e-6,
        "{high} {largest}"
    );
}

#[test]
fn one_run_serves_all_methods_and_repeats_exactly() {
    let (_folder, data) = task(2);
    let model = classifier(2);
    let cancel = CancelToken::default();
    let inputs = layer_inputs(&model.graph);
    let stats = observe(&model.graph, &inputs, &data, 40, &cancel).unwrap();
    assert_eq!(
        stats,
        observe(&model.graph, &inputs, &data, 40, &cancel).unwrap()
    );
    for calibration in [
        Calibration::MinMax,
        Calibration::Percentile(99.0),
        Calibration::Mse,
        Calibration::Entropy,
        Calibration::MovingAverage,
    ] {
        for symmetry in [Symmetry::Asymmetric, Symmetry::Symmetric] {
            let scheme = QuantScheme {
                calibration,
                symmetry,
                samples: 40,
                ..QuantScheme::default()
            };
            assert_eq!(
                stats.ranges(calibration, symmetry),
                calibrate_layers(&model.graph, &data, &scheme, &cancel).unwrap()
            );
        }
    }
}

#[test]
fn calibration_can_be_cancelled_and_names_values_that_are_not_finite() {
    let (_folder, data) = task(3);
    let mut model = classifier(3);
    let cancel = CancelToken::default();
    cancel.cancel();
    let scheme = QuantScheme::default();
    let error = calibrate_layers(&model.graph, &data, &scheme, &cancel).unwrap_err();
    assert!(matches!(
        error,
        CompressError::Exec(crate::exec::ExecError::Cancelled)
    ));

    let scale = model.graph.find_value("first_norm.scale").unwrap();
    model
        .graph
        .set_data(scale, TensorData::from_f32(&[6], &[f32::MAX; 6]));
    let mean = model.graph.find_value("first_norm.variance").unwrap();
    model
        .graph
        .set_data(mean, TensorData::from_f32(&[6], &[1e-30; 6]));
    let error = calibrate(
        &model.graph,
        &[
            ValueId(0),
            model.graph.find_value("first_relu_out").unwrap(),
        ],
        &data,
        &scheme,
        &CancelToken::default(),
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("first_relu_out"), "{error}");
}

#[test]
fn quantising_with_data_equals_quantising_with_its_ranges() {
    let (_folder, data) = task(4);
    let model = classifier(4);
    let cancel = CancelToken::default();
    let context = PassContext {
        data: Some(&data),
        cancel: &cancel,
        seed: 0,
    };
    let (model, _) = FoldBatchNorm.apply(model, &context).unwrap();
    let scheme = QuantScheme::default();
    let ranges = calibrate_layers(&model.graph, &data, &scheme, &cancel).unwrap();
    let layers = [(id("second"), Precision::Int8)].into();
    let mut pass = Quantize {
        scheme,
        layers,
        ranges: None,
    };
    let (alone, _) = pass.apply(model.clone(), &context).unwrap();
    pass.ranges = Some(std::sync::Arc::new(ranges));
    let (given, _) = pass.apply(model.clone(), &context).unwrap();
    assert_eq!(alone.graph, given.graph);
    // Eight bits cost little: outputs stay near.
    let x = data.batch(SplitName::Search, 0..20).unwrap().images;
    close(&run_on(&model.graph, &x), &run_on(&alone.graph, &x), 0.03);
    pass.ranges = Some(std::sync::Arc::new(Ranges::default()));
    let error = pass.apply(model, &context).unwrap_err().to_string();
    assert!(
        error.contains("second") && error.contains("calibrate"),
        "{error}"
    );
}

#[test]
fn batches_change_nothing_and_averages_follow_the_samples() {
    let (_folder, data) = task(6);
    let model = classifier(6);
    let cancel = CancelToken::default();
    let inputs = layer_inputs(&model.graph);
    let by = |batch| {
        crate::compress::calibrate::observe_by(batch, &model.graph, &inputs, &data, 37, &cancel)
            .unwrap()
    };
    let whole = by(64);
    for batch in [1, 5, 16] {
        assert_eq!(by(batch), whole, "{batch} samples a batch");
    }
    // Of the input: the mean of each image's largest pixel, the later ones weighing more.
    let images = data.batch(SplitName::Calibration, 0..37).unwrap().images;
    let (mut sum, mut weight) = (0.0_f64, 0.0);
    for n in 0..37 {
        let pixels: Vec<f32> = images
            .get(n)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        sum = sum * 0.99 + f64::from(pixels.iter().copied().fold(0.0, f32::max));
        weight = weight * 0.99 + 1.0;
    }
    let ranges = whole.ranges(Calibration::MovingAverage, Symmetry::Asymmetric);
    let [low, high] = ranges.values["x"];
    assert!(low == 0.0 && (f64::from(high) - sum / weight).abs() < 1e-6);
    let widest = whole
        .ranges(Calibration::MinMax, Symmetry::Asymmetric)
        .values["x"];
    assert!(high < widest[1]);
    let symmetric = whole
        .ranges(Calibration::MovingAverage, Symmetry::Symmetric)
        .values["x"];
    assert_eq!(symmetric, [-high, high]);
}

#[test]
fn a_fixed_batch_changes_nothing() {
    let (_folder, data) = task(7);
    let model = classifier(7);
    let cancel = CancelToken::default();
    // One input of a layer has more rows than samples along the first axis.
    let mut net = Net::new(7, &[1, 6, 6]);
    let shape = net
        .graph
        .add_constant("rows", TensorData::from_i64(&[2], &[-1, 6]));
    let x = net.node(
        "rows",
        Op::Reshape { allow_zero: false },
        &[ValueId(0), shape],
    );
    let weight = net.weight("deep.weight", &[6, 3], -1.0, 1.0);
    let x = net.node("deep", Op::MatMul, &[x, weight]);
    let x = net.relu("relu", x);
    let rows = net.finish(&[x]);
    for (graph, values) in [
        (&model.graph, layer_inputs(&model.graph)),
        (
            &rows.graph,
            vec![ValueId(0), rows.graph.find_value("relu_out").unwrap()],
        ),
    ] {
        let free = observe(graph, &values, &data, 10, &cancel).unwrap();
        assert!(free.histograms.len() == values.len());
        for batch in [1, 4, 16] {
            let mut fixed = graph.clone();
            Net::fix(&mut fixed, batch);
            let seen = observe(&fixed, &values, &data, 10, &cancel).unwrap();
            assert_eq!(
                seen.histograms, free.histograms,
                "{batch} samples at a time"
            );
            assert_eq!(seen.samples, 10);
            if values == layer_inputs(graph) {
                assert_eq!(seen, free, "{batch} samples at a time");
            }
        }
    }
}

#[test]
fn what_a_layer_reads_is_shown_with_the_codes_that_a_plan_gives_it() {
    let (_folder, data) = task(1);
    let model = classifier(1);
    let cancel = CancelToken::default();
    let inputs = layer_inputs(&model.graph);
    let stats = observe(&model.graph, &inputs, &data, 23, &cancel).unwrap();
    let layer = model.graph.layers()[1].clone();
    let look = |precision: Precision, scheme: &QuantScheme| {
        let setting = LayerSetting {
            precision,
            sparsity: Ratio(0.0),
        };
        inspect_input(&model.graph, &layer.id, setting, scheme, &stats).unwrap()
    };
    for (calibration, symmetry, activations, bits) in [
        (
            Calibration::MinMax,
            Symmetry::Asymmetric,
            Activations::Int8,
            8,
        ),
        (
            Calibration::Percentile(90.0),
            Symmetry::Asymmetric,
            Activations::Int8,
            8,
        ),
        (
            Calibration::Percentile(90.0),
            Symmetry::Symmetric,
            Activations::Int8,
            8,
        ),
        (
            Calibration::MinMax,
            Symmetry::Symmetric,
            Activations::Int16,
            16,
        ),
    ] {
        let scheme = QuantScheme {
            calibration,
            symmetry,
            activations,
            samples: 23,
            ..QuantScheme::default()
        };
        let read = look(Precision::Int8, &scheme);
        assert_eq!(read.value, model.graph.value(layer.input).name);
        assert_eq!((read.samples, read.counts.len()), (23, 64));
        let zeros = (read.zeros * read.count as f64).round() as u64;
        assert_eq!(read.counts.iter().sum::<u64>() + zeros, read.count);
        let codes = read.codes.expect("quantised");
        // The very scale and zero point of the pass.
        let pass = Quantize {
            layers: [(layer.id.clone(), Precision::Int8)].into(),
            ranges: Some(stats.ranges(scheme.range_method(), symmetry).into()),
            scheme,
        };
        let (_, account) = apply(&pass, model.clone());
        let words = format!("scale {}, zero point {}", codes.scale, codes.zero_point);
        let done = account.entries.iter().any(|entry| match &entry.outcome {
            Outcome::Done(note) => note.contains(&words),
            Outcome::NotDone(_) => false,
        });
        assert!(done, "{words}: {account:?}");
        assert_eq!(codes.bits, bits);
        // Counted anew from the values themselves, as near as the bins are fine.
        let mut graph = model.graph.clone();
        graph.outputs = vec![layer.input];
        let images = data.batch(SplitName::Calibration, 0..23).unwrap().images;
        let values = run_on(&graph, &images);
        let half = codes.scale / 2.0;
        let beyond = |v: &&f32| **v < codes.range[0] - half || **v > codes.range[1] + half;
        let clipped = values.iter().filter(beyond).count() as f64 / values.len() as f64;
        assert!(
            (clipped - codes.clipped).abs() < 2e-3,
            "{clipped} {}",
            codes.clipped
        );
        match calibration {
            Calibration::MinMax => assert_eq!(codes.clipped, 0.0),
            _ => assert!(codes.clipped > 0.005, "{}", codes.clipped),
        }
        let zeros = values.iter().filter(|v| **v == 0.0).count() as f64 / values.len() as f64;
        assert!((zeros - read.zeros).abs() < 1e-3 && zeros > 0.1, "{zeros}");
        let error = |v: &f32| {
            let code = (v / codes.scale).round_ties_even() * codes.scale;
            f64::from(v - code.clamp(codes.range[0], codes.range[1])).powi(2)
        };
        let signal: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
        let sqnr = 10.0 * (signal / values.iter().map(error).sum::<f64>()).log10();
        match codes.sqnr_db {
            // Finer than the bins.
            None => assert_eq!(bits, 16),
            Some(shown) => assert!((sqnr - shown).abs() < 0.5, "{sqnr} {shown}"),
        }
    }
    let scheme = QuantScheme::default();
    assert_eq!(look(Precision::Fp16, &scheme).codes, None);
    let dynamic = QuantScheme {
        activations: Activations::Dynamic,
        ..QuantScheme::default()
    };
    let read = look(Precision::Int8, &dynamic);
    let product = matches!(layer.op, "MatMul" | "Gemm");
    assert_eq!((read.codes, read.dynamic), (None, product));
    // A layer that was not counted is no layer of zeros.
    let setting = LayerSetting {
        precision: Precision::Int8,
        sparsity: Ratio(0.0),
    };
    let none = ActivationStats::default();
    let refused = inspect_input(&model.graph, &layer.id, setting, &scheme, &none);
    assert!(refused.unwrap_err().to_string().contains("was not seen"));
}
