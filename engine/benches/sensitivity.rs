//! The tiers of the sensitivity map on the sample: all candidates of all layers from the weights alone (fashion-resnet and EfficientNet-Lite0), from up to
//! 64 images, and measured on 1,000 images (the default map).
//! `cargo bench -p limbeck_engine --bench sensitivity`

use criterion::{Criterion, criterion_group, criterion_main};
use limbeck_engine::{
    compress::{Model, QuantScheme},
    data::Dataset,
    exec::{CancelToken, ExecError},
    formats::onnx,
    graph::Graph,
    sensitivity::{Cell, MapObserver, MapOptions, estimate, measure, proxy},
};
use std::{hint::black_box, path::Path};

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sample-models")
        .join(name)
}

fn graph(name: &str) -> Graph {
    onnx::read(&folder(name).join(format!("{name}.onnx"))).expect("the sample is there")
}

struct Quiet;

impl MapObserver for Quiet {
    fn early(&mut self, _: Vec<Cell>) {}
    fn cell(&mut self, _: Cell, _: usize, _: usize) {}
    fn batch(&mut self) -> Result<(), ExecError> {
        Ok(())
    }
}

fn tiers(c: &mut Criterion) {
    let scheme = QuantScheme::default();
    for name in ["fashion-resnet", "efficientnet-lite0"] {
        let graph = graph(name);
        c.bench_function(&format!("{name}/proxy"), |b| {
            b.iter(|| black_box(proxy(&graph, &scheme)));
        });
    }
    let model = Model::new(graph("fashion-resnet"));
    let data = Dataset::open(&folder("fashion-resnet").join("task.ron"));
    let data = data.expect("the sample's data is there");
    let cancel = CancelToken::default();
    let options = MapOptions {
        limit: Some(1_000),
        ..MapOptions::default()
    };
    let known = proxy(&model.graph, &scheme);
    c.bench_function("fashion-resnet/estimate", |b| {
        b.iter(|| {
            let cells = estimate(
                &model, &scheme, &data, &options, &known, &mut Quiet, &cancel,
            );
            black_box(cells.expect("runs"))
        });
    });
    c.bench_function("fashion-resnet/measured_1000", |b| {
        b.iter(|| {
            let cells = measure(
                &model, &scheme, None, &data, &options, &known, &mut Quiet, &cancel,
            );
            black_box(cells.expect("runs"))
        });
    });
}

fn configured() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .measurement_time(std::time::Duration::from_secs(3))
        .warm_up_time(std::time::Duration::from_millis(500))
}

criterion_group! { name = benches; config = configured(); targets = tiers }
criterion_main!(benches);
