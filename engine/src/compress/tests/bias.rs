use super::*;
use crate::{data::SplitName, exec::CancelToken};

/// Means of the model's outputs on the calibration split.
fn means(graph: &Graph, data: &Dataset) -> Vec<f64> {
    let images = data.batch(SplitName::Calibration, 0..40).unwrap().images;
    let outputs = run_on(graph, &images);
    let classes = outputs.len() / 40;
    (0..classes)
        .map(|c| {
            let of_class = outputs.iter().skip(c).step_by(classes);
            of_class.map(|v| f64::from(*v)).sum::<f64>() / 40.0
        })
        .collect()
}

#[test]
fn means_of_every_layer_come_back() {
    let (_folder, data) = task(8);
    let cancel = CancelToken::default();
    let context = PassContext {
        data: Some(&data),
        cancel: &cancel,
        seed: 0,
    };
    let (model, _) = FoldBatchNorm.apply(classifier(8), &context).unwrap();
    let quantise = Quantize {
        scheme: QuantScheme::default(),
        layers: model
            .graph
            .layers()
            .into_iter()
            .map(|l| (l.id, Precision::Int3))
            .collect(),
        ranges: None,
    };
    let (quantised, _) = quantise.apply(model.clone(), &context).unwrap();
    let pass = CorrectBias {
        layers: ["first", "second", "head"].map(id).into(),
        samples: 40,
    };
    let (corrected, account) = pass.apply(quantised.clone(), &context).unwrap();
    corrected.graph.validate().unwrap();
    covers(&corrected.graph, &account);
    let error = |graph: &Graph| -> f64 {
        let wanted = means(&model.graph, &data);
        let seen = means(graph, &data);
        wanted
            .iter()
            .zip(&seen)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max)
    };
    // The last layer is corrected after all others: its means are the float network's.
    let (before, after) = (error(&quantised.graph), error(&corrected.graph));
    assert!(before > 1e-3 && after < 1e-5, "{before} → {after}");
    // And so are those of the layers before, behind their own correction and the function that follows: as the next layer reads them.
    for layer in ["first", "second"] {
        let at = |graph: &Graph| {
            let mut graph = graph.clone();
            graph.outputs = vec![graph.find_value(&format!("{layer}_relu_out")).unwrap()];
            let images = data.batch(SplitName::Calibration, 0..40).unwrap().images;
            let all = run_on(&graph, &images);
            let channels = if layer == "first" { 6 } else { 8 };
            let plane = all.len() / 40 / channels;
            let mut sums = vec![0.0; channels];
            for (i, v) in all.iter().enumerate() {
                sums[i / plane % channels] += f64::from(*v) / (40 * plane) as f64;
            }
            sums
        };
        let (wanted, before, after) =
            (at(&model.graph), at(&quantised.graph), at(&corrected.graph));
        let off = |means: &[f64]| {
            let each = means.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
            each.fold(0.0, f64::max)
        };
        assert!(
            off(&before) > 1e-3 && off(&after) < 2e-3 * off(&before),
            "{layer}: {} → {}",
            off(&before),
            off(&after)
        );
    }
    // Codes and scales stay as they were.
    let packed = (pack(&quantised).unwrap(), pack(&corrected).unwrap());
    assert_eq!(quantized_layers(&packed.0), quantized_layers(&packed.1));
}

#[test]
fn layers_without_a_bias_get_one_and_others_are_left_with_the_reason() {
    let (_folder, data) = task(9);
    let cancel = CancelToken::default();
    let context = PassContext {
        data: Some(&data),
        cancel: &cancel,
        seed: 0,
    };
    // Not folded: the convolutions have no biases of their own.
    let model = classifier(9);
    let quantise = Quantize {
        scheme: QuantScheme::default(),
        layers: [(id("first"), Precision::Int4)].into(),
        ranges: None,
    };
    let (model, _) = quantise.apply(model, &context).unwrap();
    let pass = CorrectBias {
        layers: ["first", "second"].map(id).into(),
        samples: 40,
    };
    let (after, account) = pass.apply(model.clone(), &context).unwrap();
    after.graph.validate().unwrap();
    let first = after.graph.layers()[0].clone();
    assert!(first.bias.is_some() && model.graph.layers()[0].bias.is_none());
    assert_eq!(refused(&account, "second"), "it is not quantised");
    assert_eq!(refused(&account, "head"), "not asked for");
    let error = with_context(|c| pass.apply(model, c))
        .unwrap_err()
        .to_string();
    assert!(error.contains("needs data"), "{error}");
}

#[test]
fn a_fixed_batch_is_corrected_as_a_free_one() {
    let (_folder, data) = task(12);
    let cancel = CancelToken::default();
    let context = PassContext {
        data: Some(&data),
        cancel: &cancel,
        seed: 0,
    };
    let quantised = |batch: Option<usize>| {
        let mut model = classifier(12);
        if let Some(batch) = batch {
            Net::fix(&mut model.graph, batch);
        }
        let (model, _) = FoldBatchNorm.apply(model, &context).unwrap();
        let quantise = Quantize {
            scheme: QuantScheme::default(),
            layers: ["first", "second", "head"]
                .map(|l| (id(l), Precision::Int3))
                .into(),
            ranges: None,
        };
        quantise.apply(model, &context).unwrap().0
    };
    let pass = CorrectBias {
        layers: ["first", "second", "head"].map(id).into(),
        samples: 10,
    };
    let biases = |batch| {
        let (after, account) = pass.apply(quantised(batch), &context).unwrap();
        let Outcome::Done(words) = outcome(&account, "head") else {
            panic!("head is corrected");
        };
        assert!(words.contains("10 samples"), "{words}");
        let mut all = Vec::new();
        for layer in after.graph.layers() {
            let bias = after.graph.value(layer.bias.unwrap()).data.as_ref();
            all.extend(bias.unwrap().to_f32_vec());
        }
        all
    };
    let free = biases(None);
    for batch in [1, 4] {
        close(&free, &biases(Some(batch)), 1e-5);
    }
}

/// What the function behind a layer cuts off moves nothing: here one channel gives numbers far below zero but for a few.
#[test]
fn what_is_cut_off_does_not_lead_the_bias() {
    let wanted = [0.5, 0.0];
    // A quarter of the positions is left; those have the wanted mean with a shift of 0.4. The second channel is all cut off.
    let positions: [&[f64]; 2] = [&[-9.0, -8.0, -7.0, 1.6], &[-9.0, -8.0, -7.0, -6.0]];
    let mut asked = 0;
    let found = super::super::bias::shift(&wanted, (0.0, f32::INFINITY), |shift| {
        asked += 1;
        let of = |f: &dyn Fn(f64) -> f64| -> Vec<f64> {
            let channels = positions.iter().zip(shift);
            channels
                .map(|(all, shift)| all.iter().map(|v| f(v + shift)).sum::<f64>() / 4.0)
                .collect()
        };
        Ok(super::super::bias::Means {
            of: of(&|v| v.max(0.0)),
            inside: of(&|v| f64::from(u8::from(v > 0.0))),
        })
    })
    .unwrap();
    assert!((found.shift[0] - 0.4).abs() < 1e-9 && found.shift[1] == 0.0);
    assert!((found.before - 0.1).abs() < 1e-9 && found.after < 1e-9);
    assert_eq!(asked, 2, "it stops where nothing is left");
}
