//! The fused way through a network gives what the operators give one by one: outputs, and gradients of every parameter.

use candle_core::{Device, Tensor};
use limbeck_engine::{
    compress::{
        Activations, Calibration, CompressError, LayerSetting, Model, PassContext, Precision,
        QuantScheme, Ratio, compress_layers,
    },
    data::Dataset,
    exec::{CancelToken, ExecError, Family, Mode, NoTaps, Program, Taps},
    formats::onnx,
    graph::{Graph, LayerId, ValueId},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Wants nothing, but is there: operators run one by one.
struct Watching;
impl Taps for Watching {
    fn wants(&self, _: ValueId) -> bool {
        false
    }
    fn visit(&mut self, _: ValueId, _: &Tensor) -> Result<Option<Tensor>, ExecError> {
        Ok(None)
    }
}

fn sample(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sample-models")
        .join(path)
}

fn images(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|i| ((i * 7919 + i / 13 * 104_729) % 1021) as f32 / 1021.0)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape says")
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor
        .flatten_all()
        .and_then(|t| t.to_vec1())
        .expect("f32 on the CPU")
}

fn close(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let scale = b.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * scale,
            "{what}: element {i}: {a}, expected {b}"
        );
    }
}

fn both_ways(graph: &Graph, shape: &[usize]) {
    let program = Program::compile(graph, Mode::Inference).expect("compiles");
    let x = images(shape);
    let cancel = CancelToken::default();
    let general = program
        .run(std::slice::from_ref(&x), &mut Watching, &cancel)
        .expect("runs");
    let fused = program.run(&[x], &mut NoTaps, &cancel).expect("runs");
    for (fused, general) in fused.iter().zip(&general) {
        assert_eq!(fused.dims(), general.dims());
        close(&flat(fused), &flat(general), 1e-4, &format!("{shape:?}"));
    }
}

#[test]
fn outputs_of_the_samples_are_the_same_both_ways() {
    let resnet = onnx::read(&sample("fashion-resnet/fashion-resnet.onnx")).expect("reads");
    for n in [1, 2, 37] {
        both_ways(&resnet, &[n, 1, 28, 28]);
    }
    let lite = onnx::read(&sample("efficientnet-lite0/efficientnet-lite0.onnx")).expect("reads");
    both_ways(&lite, &[2, 3, 224, 224]);
}

/// The sample, pruned and quantised with QDQ pairs in it.
fn compressed() -> Result<(Model, Graph), CompressError> {
    let graph = onnx::read(&sample("fashion-resnet/fashion-resnet.onnx")).expect("reads");
    let data = Dataset::open(&sample("fashion-resnet/task.ron")).expect("opens");
    let settings = graph
        .layers()
        .into_iter()
        .enumerate()
        .map(|(i, layer)| {
            let precision = [Precision::Int8, Precision::Int4, Precision::Fp16][i % 3];
            let sparsity = Ratio(0.3);
            (
                layer.id,
                LayerSetting {
                    precision,
                    sparsity,
                },
            )
        })
        .collect::<BTreeMap<_, _>>();
    let model = Model::new(graph.clone());
    let context = PassContext {
        data: Some(&data),
        cancel: &CancelToken::default(),
        seed: 0,
    };
    let scheme = QuantScheme {
        samples: 32,
        ..QuantScheme::default()
    };
    Ok((
        compress_layers(model, &settings, &scheme, None, &context)?.0,
        graph,
    ))
}

/// Loss and gradients by parameter: fused, or by candle alone.
fn gradients(program: &Program, x: &Tensor, fused: bool) -> (f64, BTreeMap<String, Vec<f32>>) {
    let n = x.dims()[0];
    let loss = |rows: std::ops::Range<usize>, out: &[Tensor]| {
        let count = rows.len();
        let labels: Vec<u32> = rows.map(|i| (i % 10) as u32).collect();
        let labels = Tensor::from_vec(labels, count, &Device::Cpu)?;
        candle_nn::loss::cross_entropy(&out[0], &labels)? * (count as f64 / n as f64)
    };
    let cancel = CancelToken::default();
    let (value, store) = if fused {
        let all = program.gradients(x, &loss, &cancel).expect("trains");
        (all.loss, all.store)
    } else {
        let out = program
            .run(std::slice::from_ref(x), &mut Watching, &cancel)
            .expect("runs");
        let value = loss(0..n, &out).expect("a loss");
        let number = value.to_scalar::<f32>().expect("a scalar");
        (f64::from(number), value.backward().expect("gradients"))
    };
    let by_name = program
        .parameters()
        .iter()
        .map(|(name, var)| {
            let gradient = store.get(var).map(flat).unwrap_or_default();
            (name.clone(), gradient)
        })
        .collect();
    (value, by_name)
}

#[test]
fn gradients_are_the_same_both_ways() {
    let (compressed, original) = compressed().expect("compresses");
    // Pieces of 3 images in one group, and of 8 (the last of 5) in several.
    for (what, graph, n) in [
        ("original", &original, 19),
        ("original", &original, 61),
        ("compressed", &compressed.graph, 19),
    ] {
        let program = Program::compile(graph, Mode::Training).expect("compiles");
        let x = images(&[n, 1, 28, 28]);
        let (loss, fused) = gradients(&program, &x, true);
        let (expected, general) = gradients(&program, &x, false);
        // A value that rounds to the other side of a quantisation step gives a loss and gradients that differ a little.
        let (of_loss, tolerance) = match what {
            "original" => (1e-5, 1e-3),
            _ => (1e-3, 5e-2),
        };
        assert!(
            (loss - expected).abs() < of_loss * expected.abs(),
            "{what}: {loss} {expected}"
        );
        assert!(fused.len() > 40 && fused.len() == general.len());
        for (name, gradient) in &fused {
            close(
                gradient,
                &general[name],
                tolerance,
                &format!("{what} {name}"),
            );
        }
    }
}

#[test]
fn gradients_have_the_same_bits_on_any_number_of_threads() {
    let graph = onnx::read(&sample("fashion-resnet/fashion-resnet.onnx")).expect("reads");
    let program = Program::compile(&graph, Mode::Training).expect("compiles");
    // Pieces of 3 images in one group, and of 8 in several.
    for n in [21, 61] {
        let x = images(&[n, 1, 28, 28]);
        let on = |threads: usize| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .stack_size(16 << 20)
                .build()
                .expect("a pool")
                .install(|| gradients(&program, &x, true))
        };
        let one = on(1);
        for threads in [2, 3, 8] {
            assert!(on(threads) == one, "{n} images, {threads} threads");
        }
    }
    let x = images(&[21, 1, 28, 28]);
    // And outputs do not depend on how a batch is cut either.
    let inference = Program::compile(&graph, Mode::Inference).expect("compiles");
    let run = |x: &Tensor| {
        flat(
            &inference
                .run(
                    std::slice::from_ref(x),
                    &mut NoTaps,
                    &CancelToken::default(),
                )
                .expect("runs")[0],
        )
    };
    let all = run(&x);
    for i in 0..21 {
        let one = x
            .narrow(0, i, 1)
            .and_then(|t| t.contiguous())
            .expect("an image");
        assert_eq!(run(&one), all[i * 10..(i + 1) * 10]);
    }
}

#[test]
fn a_step_is_cancelled_in_the_middle() {
    let graph = onnx::read(&sample("fashion-resnet/fashion-resnet.onnx")).expect("reads");
    let program = Program::compile(&graph, Mode::Training).expect("compiles");
    let cancel = CancelToken::default();
    // Cancelled once the first loss is known: backward must not be finished.
    let loss = |_: std::ops::Range<usize>, out: &[Tensor]| {
        cancel.cancel();
        out[0].sum_all()
    };
    let result = program.gradients(&images(&[64, 1, 28, 28]), &loss, &cancel);
    assert!(matches!(result.err(), Some(ExecError::Cancelled)));
}

#[test]
fn members_of_a_family_give_what_they_give_alone() {
    let (compressed, original) = compressed().expect("compresses");
    let data = Dataset::open(&sample("fashion-resnet/task.ron")).expect("opens");
    let cancel = CancelToken::default();
    let context = PassContext {
        data: Some(&data),
        cancel: &cancel,
        seed: 0,
    };
    let scheme = QuantScheme {
        samples: 32,
        ..QuantScheme::default()
    };
    let only = |plan: BTreeMap<_, LayerSetting>| {
        let model = Model::new(original.clone());
        let (model, _) =
            compress_layers(model, &plan, &scheme, None, &context).expect("compresses");
        Program::compile(&model.graph, Mode::Inference).expect("compiles")
    };
    let base = only(BTreeMap::new());
    let mut family = Family::new(&base, &[1, 28, 28])
        .expect("lowers")
        .expect("has a fused form");
    let mut alone = Vec::new();
    for layer in original.layers() {
        for precision in [Precision::Fp16, Precision::Int8, Precision::Int4] {
            let sparsity = Ratio(0.0);
            alone.push(only(BTreeMap::from([(
                layer.id.clone(),
                LayerSetting {
                    precision,
                    sparsity,
                },
            )])));
        }
    }
    // One that differs everywhere.
    alone.push(Program::compile(&compressed.graph, Mode::Inference).expect("compiles"));
    let members: Vec<usize> = alone
        .iter()
        .map(|program| {
            family
                .add(program)
                .expect("lowers")
                .expect("has a fused form")
        })
        .collect();
    let x = images(&[23, 1, 28, 28]);
    let mut visits = 0;
    let mut between = || {
        visits += 1;
        Ok(())
    };
    let (first, others) = family
        .run(&x, &members, &mut between, &cancel)
        .expect("runs");
    let run = |program: &Program| {
        flat(
            &program
                .run(std::slice::from_ref(&x), &mut NoTaps, &cancel)
                .expect("runs")[0],
        )
    };
    assert_eq!(first, run(&base));
    for (program, outputs) in alone.iter().zip(&others) {
        assert_eq!(*outputs, run(program));
    }
    assert!(visits > 1);
    // The last layer alone runs again where only it differs, all but the input where the first one does.
    let (own, all) = family.own_steps(members[members.len() - 2]);
    assert!(own <= 2 && all > 20, "{own} of {all}");
    let (own, all) = family.own_steps(members[1]);
    assert!(own >= all - 2, "{own} of {all}");
    // A first network that is quantised itself, and one whose scales alone differ.
    let with = |calibration| {
        let scheme = QuantScheme {
            calibration,
            ..scheme.clone()
        };
        let plan = original
            .layers()
            .into_iter()
            .map(|layer| {
                let (precision, sparsity) = (Precision::Int8, Ratio(0.0));
                (
                    layer.id,
                    LayerSetting {
                        precision,
                        sparsity,
                    },
                )
            })
            .collect();
        let model = Model::new(original.clone());
        let (model, _) =
            compress_layers(model, &plan, &scheme, None, &context).expect("compresses");
        Program::compile(&model.graph, Mode::Inference).expect("compiles")
    };
    let (tight, wide) = (
        with(Calibration::Percentile(99.0)),
        with(Calibration::MinMax),
    );
    let mut quantised = Family::new(&tight, &[1, 28, 28])
        .expect("lowers")
        .expect("has a fused form");
    let member = quantised
        .add(&wide)
        .expect("lowers")
        .expect("has a fused form");
    let (first, others) = quantised
        .run(&x, &[member], &mut || Ok(()), &cancel)
        .expect("runs");
    assert!(first == run(&tight) && others[0] == run(&wide) && first != others[0]);

    let mut stop = || Err(ExecError::Cancelled);
    let stopped = family.run(&x, &members, &mut stop, &cancel);
    assert!(matches!(stopped, Err(ExecError::Cancelled)));
}

/// To first order a layer's error times the gradient at its output is what the outputs change by along the direction sent back.
#[test]
fn what_is_noticed_of_a_layers_error_is_what_the_outputs_do() {
    let original = onnx::read(&sample("fashion-resnet/fashion-resnet.onnx")).expect("reads");
    let cancel = CancelToken::default();
    let context = PassContext {
        data: None,
        cancel: &cancel,
        seed: 0,
    };
    let scheme = QuantScheme {
        activations: Activations::Float,
        ..QuantScheme::default()
    };
    let plan = |layers: &[LayerId], precision: Precision| {
        let setting = LayerSetting {
            precision,
            sparsity: Ratio(0.0),
        };
        let plan = layers.iter().map(|l| (l.clone(), setting)).collect();
        let model = Model::new(original.clone());
        let (model, _) =
            compress_layers(model, &plan, &scheme, None, &context).expect("compresses");
        Program::compile(&model.graph, Mode::Inference).expect("compiles")
    };
    let base = plan(&[], Precision::Fp32);
    let mut family = Family::new(&base, &[1, 28, 28])
        .expect("lowers")
        .expect("has a fused form");
    let layers: Vec<LayerId> = original.layers().into_iter().map(|l| l.id).collect();
    let programs: Vec<Program> = layers
        .iter()
        .map(|layer| plan(std::slice::from_ref(layer), Precision::Int8))
        .collect();
    let mut add = |program: &Program| family.add(program).expect("lowers").expect("fused");
    let mut members: Vec<usize> = programs.iter().map(&mut add).collect();
    // Nothing changed, and everything.
    members.push(add(&base));
    members.push(add(&plan(&layers, Precision::Int4)));

    let count = 21;
    let x = images(&[count, 1, 28, 28]);
    let direction = |image: usize, class: usize| ((image * 31 + class * 17) % 13) as f32 - 6.0;
    let seed = |first: usize, rows: &[f32], softmaxed: bool| -> Vec<f32> {
        assert!(!softmaxed);
        (0..rows.len())
            .map(|i| direction(first + i / 10, i % 10))
            .collect()
    };
    let mut visits = 0;
    let mut between = || {
        visits += 1;
        Ok(())
    };
    let errors = family
        .local(&base, &x, &members, &seed, &mut between, &cancel)
        .expect("runs");
    assert!(visits > 0);
    let (outputs, changed) = family
        .run(&x, &members, &mut || Ok(()), &cancel)
        .expect("runs");
    for (place, layer) in layers.iter().enumerate() {
        let found = errors[place].expect("one layer differs");
        assert!(
            found.error > 0.0 && found.error < 0.01 * found.signal,
            "{layer:?} {found:?}"
        );
        let expected: f64 = (0..count)
            .map(|image| {
                let along = |class: usize| {
                    let at = image * 10 + class;
                    f64::from(direction(image, class) * (changed[place][at] - outputs[at]))
                };
                (0..10).map(along).sum::<f64>().powi(2)
            })
            .sum();
        let noticed = found.noticed.expect("gradients can be taken");
        // ReLUs that open and close are no part of first order.
        assert!(
            (0.7..1.4).contains(&(noticed / expected)),
            "{layer:?} {noticed} {expected}"
        );
    }
    // The last layer's output is the network's: exact.
    let last = errors[layers.len() - 1].expect("one layer differs");
    let squares: f64 = outputs
        .iter()
        .zip(&changed[layers.len() - 1])
        .map(|(a, b)| f64::from(a - b).powi(2))
        .sum();
    assert!(
        (last.error / squares - 1.0).abs() < 1e-3,
        "{last:?} {squares}"
    );
    let nothing = errors[layers.len()].expect("nothing differs");
    assert_eq!(nothing.error, 0.0);
    let mut stop = || Err(ExecError::Cancelled);
    let stopped = family.local(&base, &x, &members, &seed, &mut stop, &cancel);
    assert!(matches!(stopped, Err(ExecError::Cancelled)));
}
