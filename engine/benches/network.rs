//! Whole networks: a forward plain and with every layer fake-quantised, a training step, a row of the sensitivity map.
//! `cargo bench -p limbeck_engine --bench network`; compare ratios within one run, the machine's mood changes between runs.

use candle_core::{Device, Result, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use limbeck_engine::{
    compress::{LayerSetting, Model, PassContext, Precision, QuantScheme, Ratio, compress_layers},
    data::Dataset,
    exec::{CancelToken, Family, Mode, NoTaps, Program},
    formats::onnx,
    graph::Graph,
};
use std::{collections::BTreeMap, hint::black_box, ops::Range, path::Path};

const BATCH: usize = 64;

fn images() -> Tensor {
    let values: Vec<f32> = (0..BATCH * 784)
        .map(|i| (i * 7919 % 1021) as f32 / 1021.0)
        .collect();
    Tensor::from_vec(values, (BATCH, 1, 28, 28), &Device::Cpu).expect("sizes agree")
}

fn sample() -> (Graph, Dataset) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    let graph = onnx::read(&folder.join("fashion-resnet.onnx")).expect("the sample is there");
    let data = Dataset::open(&folder.join("task.ron")).expect("the sample's data is there");
    (graph, data)
}

/// The sample with the `wanted` layers at int8, as a graph with QDQ pairs.
fn quantised(graph: &Graph, data: &Dataset, wanted: impl Fn(usize) -> bool) -> Graph {
    let settings: BTreeMap<_, _> = graph
        .layers()
        .into_iter()
        .enumerate()
        .filter(|(i, _)| wanted(*i))
        .map(|(_, layer)| {
            let precision = Precision::Int8;
            (
                layer.id,
                LayerSetting {
                    precision,
                    sparsity: Ratio(0.0),
                },
            )
        })
        .collect();
    let model = Model::new(graph.clone());
    let context = PassContext {
        data: Some(data),
        cancel: &CancelToken::default(),
        seed: 0,
    };
    let scheme = QuantScheme::default();
    let (model, _) = compress_layers(model, &settings, &scheme, None, &context).expect("quantises");
    model.graph
}

fn networks(c: &mut Criterion) {
    let (graph, data) = sample();
    let x = images();
    let cancel = CancelToken::default();
    let plain = quantised(&graph, &data, |_| false);
    let all = quantised(&graph, &data, |_| true);
    for (name, graph) in [("plain", &plain), ("all_int8", &all)] {
        let program = Program::compile(graph, Mode::Inference).expect("compiles");
        c.bench_function(&format!("fashion_resnet_64/forward/{name}"), |b| {
            b.iter(|| {
                black_box(
                    program
                        .run(std::slice::from_ref(&x), &mut NoTaps, &cancel)
                        .expect("runs"),
                )
            });
        });
    }
    for (name, graph) in [("plain", &graph), ("all_int8", &all)] {
        let program = Program::compile(graph, Mode::Training).expect("compiles");
        let loss = |rows: Range<usize>, out: &[Tensor]| -> Result<Tensor> {
            let n = rows.len();
            let labels: Vec<u32> = rows.map(|i| (i % 10) as u32).collect();
            candle_nn::loss::cross_entropy(&out[0], &Tensor::from_vec(labels, n, &Device::Cpu)?)?
                * (n as f64 / BATCH as f64)
        };
        c.bench_function(&format!("fashion_resnet_64/gradients/{name}"), |b| {
            b.iter(|| black_box(program.gradients(&x, &loss, &cancel).expect("trains").loss));
        });
    }
    // All layers at int8, each alone: 22 networks that share what comes before their layer, and the same one by one.
    let base = Program::compile(&plain, Mode::Inference).expect("compiles");
    let members: Vec<Program> = (0..graph.layers().len())
        .map(|i| quantised(&graph, &data, |at| at == i))
        .map(|graph| Program::compile(&graph, Mode::Inference).expect("compiles"))
        .collect();
    let mut family = Family::new(&base, &[1, 28, 28])
        .expect("lowers")
        .expect("has a fused form");
    let numbers: Vec<usize> = members
        .iter()
        .map(|m| family.add(m).expect("lowers").expect("has a fused form"))
        .collect();
    c.bench_function("fashion_resnet_64/map_row/shared", |b| {
        b.iter(|| {
            black_box(
                family
                    .run(&x, &numbers, &mut || Ok(()), &cancel)
                    .expect("runs"),
            )
        });
    });
    c.bench_function("fashion_resnet_64/map_row/one_by_one", |b| {
        b.iter(|| {
            for member in std::iter::once(&base).chain(&members) {
                black_box(
                    member
                        .run(std::slice::from_ref(&x), &mut NoTaps, &cancel)
                        .expect("runs"),
                );
            }
        });
    });
}

fn configured() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .measurement_time(std::time::Duration::from_secs(3))
        .warm_up_time(std::time::Duration::from_millis(500))
}

criterion_group! { name = benches; config = configured(); targets = networks }
criterion_main!(benches);
