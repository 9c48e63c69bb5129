//! Exported files in the real ONNX Runtime: does it give what Limbeck predicts? Where none is found the tests that need it say so and
//! pass; with LIMBECK_RUNTIME_REQUIRED set (CI does) they fail instead.

use limbeck_engine::{
    confirm::{ConfirmOptions, Confirmation, confirm},
    data::{Dataset, SplitName},
    eval::NoObserver,
    exec::CancelToken,
    graph::{Dim, ElementType, Graph, Op, TensorData, UnaryOp, ValueId},
    jobs::{self, Engine, Event, JobId},
    measure::runtime::{Optimizations, Runtime, RuntimeError, RuntimeSearch},
    recipe::{self, Recipe, Session, Unwatched},
};
use serde_json::Value;
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

fn sample(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sample-models/fashion-resnet")
        .join(file)
}

/// The runtime, or `None` with the reason told.
fn runtime() -> Option<Runtime> {
    match Runtime::find(&RuntimeSearch::default()) {
        Ok(runtime) => Some(runtime),
        Err(e) if std::env::var_os("LIMBECK_RUNTIME_REQUIRED").is_some() => {
            panic!("LIMBECK_RUNTIME_REQUIRED is set: {e}")
        }
        Err(e) => {
            let said = format!("skipped, nothing was held against ONNX Runtime: {e}\n");
            std::io::stderr()
                .write_all(said.as_bytes())
                .expect("stderr");
            None
        }
    }
}

/// The bytes that a recipe with these steps exports.
fn export(session: &Session, steps: &str) -> Vec<u8> {
    let text = format!("(version: 1, model: \"m\", task: \"t\", seed: 3, steps: [{steps}])");
    let recipe = Recipe::parse(&text, Path::new("test.ron")).expect("a recipe");
    let cancel = CancelToken::default();
    let built = recipe::build(session, &recipe, &mut Unwatched, &cancel).expect("builds");
    built.bytes.to_vec()
}

fn ask(
    runtime: &Runtime,
    bytes: &[u8],
    data: &Dataset,
    limit: usize,
    optimizations: &[Optimizations],
) -> Confirmation {
    let options = ConfirmOptions {
        split: SplitName::Holdout,
        limit: Some(limit),
        optimizations: optimizations.to_vec(),
        tensor_samples: 48,
        threads: 2,
    };
    let cancel = CancelToken::default();
    confirm(
        bytes,
        data,
        &options,
        runtime,
        None,
        &mut NoObserver,
        &cancel,
    )
    .expect("confirms")
}

/// With optimisations off: labels, outputs and every tensor of codes.
fn assert_agrees(what: &str, c: &Confirmation, tensors: usize) {
    let off = &c.runs[0];
    assert_eq!(off.optimizations, Optimizations::Off);
    assert!(c.agrees(), "{what}: {off:?}");
    assert_eq!(off.drop.n, c.n);
    assert!(off.largest_difference < 2.0, "{what}: {off:?}");
    let found = c.tensors.as_ref().map_or(0, |t| t.tensors.len());
    assert_eq!(found, tensors, "{what}: {:?}", c.tensors);
    // Without any, the layers' results are held against each other instead.
    assert_eq!(c.layers.is_some(), tensors == 0, "{what}");
    if let Some(report) = &c.layers {
        assert!(!report.layers.is_empty(), "{what}");
        assert!(report.first_parting().is_none(), "{what}: {report:?}");
        let worst = report.worst().expect("layers");
        assert!(
            worst.largest > 0.0 && worst.relative() < 1e-4,
            "{what}: {worst:?}"
        );
    }
    for tensor in c.tensors.iter().flat_map(|t| &t.tensors) {
        // Pairs are still seen to be pairs in the file: each tensor is told by itself.
        let known = tensor.own.is_some() || what.contains("dynamic");
        assert!(known && tensor.best().elements > 0, "{what}: {tensor:?}");
        // At 16 bits a step is about what the order of a float sum moves: a few steps apart is the same.
        let same = match what.contains("int16") {
            true => tensor.best().largest <= 32,
            false => tensor.best().share_within_one() >= 0.9999,
        };
        assert!(same, "{what}: {tensor:?}");
    }
}

/// Every way of quantising that is exported, on the bundled network.
#[test]
fn what_is_predicted_of_the_sample_is_what_the_runtime_gives() {
    let Some(runtime) = runtime() else { return };
    let task = sample("task.ron");
    let session = Session::open(&sample("fashion-resnet.onnx"), Some(&task)).expect("opens");
    let data = session.data.as_ref().expect("data");
    // 22 layers; three inputs of blocks are read by two layers each (the shortcut convolutions), so 20 tensors.
    let all = 20;
    for (scheme, precision, tensors) in [
        ("", "int8", all),
        ("symmetry: symmetric", "int8", all),
        (
            "int8_weights: per_tensor, weight_symmetry: asymmetric",
            "int8",
            all,
        ),
        ("activations: int16", "int8", all),
        ("", "int7", all),
        ("", "int4", all),
        ("activations: float, int4_weights: group(16)", "int4", 0),
        ("activations: dynamic", "int8", 1),
        ("", "fp16", 0),
    ] {
        let steps = format!(
            "FoldBatchNorm, Quantize(default: set({precision}), scheme: (samples: 32, {scheme}))"
        );
        let bytes = export(&session, &steps);
        let limit = if scheme.contains("dynamic") { 60 } else { 300 };
        let c = ask(&runtime, &bytes, data, limit, &[Optimizations::Off]);
        assert_eq!(c.n, limit as u64);
        assert_agrees(&format!("{precision} ({scheme})"), &c, tensors);
        assert!(c.layers.is_none_or(|report| report.layers.len() == 22));
    }
    // As deployed: whatever the processor's kernels do, it is measured on the same samples and told apart.
    let bytes = export(
        &session,
        "FoldBatchNorm, Quantize(default: set(int7), scheme: (samples: 32))",
    );
    let both = [Optimizations::Off, Optimizations::On];
    let c = ask(&runtime, &bytes, data, 300, &both);
    assert_eq!(
        (c.runs.len(), c.runs[1].optimizations),
        (2, Optimizations::On)
    );
    assert!(c.runs[1].top1.value > 0.85, "{:?}", c.runs[1]);
    assert_eq!(c.predictions.len(), 300);
}

/// Weights that share values, of 4 and of 8 bits, by layer and by channel: the runtime gathers the same weights, optimisations off and on.
#[test]
fn shared_values_are_gathered_by_the_runtime() {
    let Some(runtime) = runtime() else { return };
    let task = sample("task.ron");
    let session = Session::open(&sample("fashion-resnet.onnx"), Some(&task)).expect("opens");
    let data = session.data.as_ref().expect("data");
    for (values, codebooks) in [(16, "per_layer"), (60, "per_layer"), (8, "per_channel")] {
        let steps = format!(
            "FoldBatchNorm, Prune(default: set(0.3)), Cluster(default: set({values}), codebooks: {codebooks})"
        );
        let bytes = export(&session, &steps);
        let both = [Optimizations::Off, Optimizations::On];
        let c = ask(&runtime, &bytes, data, 300, &both);
        assert_agrees(&steps, &c, 0);
        for run in &c.runs {
            assert_eq!(run.same_labels, 300, "{steps}: {run:?}");
            assert!(run.largest_difference < 1e-3, "{steps}: {run:?}");
        }
    }
}

/// A network of two products and its data, in a folder.
fn products(dir: &Path) -> (PathBuf, PathBuf) {
    let mut graph = Graph {
        name: "products".into(),
        ..Graph::default()
    };
    let shape = vec![Dim::Symbol("N".into()), Dim::Known(12)];
    let x = graph.add_value("x", Some(ElementType::F32), Some(shape));
    graph.inputs.push(x);
    // Numbers without a pattern that quantisation could follow.
    let noise = |n: usize, seed: usize| -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0)
            .collect()
    };
    let layer = |graph: &mut Graph, name: &str, x: ValueId, [k, n]: [usize; 2]| {
        let weight = TensorData::from_f32(&[k, n], &noise(k * n, n));
        let weight = graph.add_constant(&format!("{name}.weight"), weight);
        let y = graph.add_value(&format!("{name}.out"), None, None);
        graph.add_node(name, Op::MatMul, vec![Some(x), Some(weight)], vec![Some(y)]);
        y
    };
    let y = layer(&mut graph, "first", x, [12, 16]);
    let z = graph.add_value("z", None, None);
    graph.add_node(
        "relu",
        Op::Unary(UnaryOp::Relu),
        vec![Some(y)],
        vec![Some(z)],
    );
    let out = layer(&mut graph, "second", z, [16, 4]);
    graph.outputs.push(out);
    let model = dir.join("products.onnx");
    limbeck_engine::formats::onnx::write(&graph, &model).expect("writes");
    npy(
        &dir.join("x.npy"),
        "<f4",
        "(90, 12)",
        noise(90 * 12, 5).iter().flat_map(|v| v.to_le_bytes()),
    );
    npy(
        &dir.join("y.npy"),
        "<i8",
        "(90,)",
        (0..90i64).flat_map(|i| (i % 4).to_le_bytes()),
    );
    let task = dir.join("task.ron");
    let text = r#"Task(version: 1, name: "made", sources: { "all": Npy(images: "x.npy", labels: "y.npy") },
        preprocess: (scale: 1.0), classes: Count(4), metric: top1, splits: (holdout: Rows(from: "all", start: 0, count: 60),
        calibration: Rows(from: "all", start: 60, count: 30)))"#;
    std::fs::write(&task, text).expect("writes");
    (model, task)
}

/// A NumPy file.
fn npy(path: &Path, kind: &str, shape: &str, bytes: impl Iterator<Item = u8>) {
    let mut head = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + head.len() + 1) % 64 != 0 {
        head.push(' ');
    }
    head.push('\n');
    let mut all = b"\x93NUMPY\x01\x00".to_vec();
    all.extend((head.len() as u16).to_le_bytes());
    all.extend(head.bytes());
    all.extend(bytes);
    std::fs::write(path, all).expect("writes");
}

#[test]
fn products_agree_static_and_dynamic() {
    let Some(runtime) = runtime() else { return };
    let dir = tempfile::tempdir().expect("dir");
    let (model, task) = products(dir.path());
    let session = Session::open(&model, Some(&task)).expect("opens");
    let data = session.data.as_ref().expect("data");
    for (scheme, tensors) in [
        ("", 2),
        ("activations: dynamic", 2),
        ("activations: int16, symmetry: symmetric", 2),
        ("activations: float", 0),
    ] {
        let steps = format!("Quantize(default: set(int8), scheme: (samples: 30, {scheme}))");
        let bytes = export(&session, &steps);
        let c = ask(&runtime, &bytes, data, 60, &[Optimizations::Off]);
        assert_agrees(scheme, &c, tensors);
    }
}

fn limbeck(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_limbeck"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// A finished run in a folder.
fn finished(dir: &Path) -> String {
    let (model, task) = products(dir);
    run_in(dir, &model, &task)
}

/// A run to int8 in `dir`; the folder that it leaves.
fn run_in(dir: &Path, model: &Path, task: &Path) -> String {
    let recipe = dir.join("r.ron");
    let text = format!(
        "(version: 1, model: {model:?}, task: {task:?}, steps: [Quantize(default: set(int8), scheme: (samples: 30))])"
    );
    std::fs::write(&recipe, text).expect("writes");
    let out = dir.join("out").to_str().expect("UTF-8").to_owned();
    let run = limbeck(&["run", recipe.to_str().expect("UTF-8"), "--out", &out]);
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    out
}

#[test]
fn verify_asks_the_runtime_and_notices_a_file_that_is_not_the_run_s() {
    let dir = tempfile::tempdir().expect("dir");
    let out = finished(dir.path());
    if runtime().is_none() {
        return;
    }
    let ask = |rest: &[&str]| {
        let mut all = vec!["verify", &out, "--runtime", "onnxruntime", "--json"];
        all.extend(rest);
        limbeck(&all)
    };
    let output = ask(&["--optimizations", "off", "--tensors", "20"]);
    let value = json(&output);
    assert_eq!(output.status.code(), Some(0), "{value:#}");
    assert_eq!(value["agrees"], true);
    let told = &value["runtime"];
    assert_eq!(told["labels"], "data");
    assert_eq!(
        (&told["n"], &told["split"]),
        (&60.into(), &"holdout".into())
    );
    assert_eq!(told["runs"][0]["same_labels"], 60);
    assert_eq!(
        told["predicted"]["top1"]["value"],
        told["runs"][0]["top1"]["value"]
    );
    assert_eq!(told["tensors"]["samples"], 20);
    assert_eq!(told["tensors"]["each"].as_array().map(Vec::len), Some(2));
    assert!(
        told["version"]
            .as_str()
            .is_some_and(|v| v.starts_with("1.")),
        "{told}"
    );
    let people = limbeck(&["verify", &out, "--runtime", "onnxruntime"]);
    let people = String::from_utf8_lossy(&people.stdout).into_owned();
    for word in [
        "optimisations off",
        "optimisations on",
        "60 of 60 as predicted",
        "within one step",
    ] {
        assert!(people.contains(word), "{word}: {people}");
    }
    // The same network exported otherwise: not what the run predicted.
    let session = Session::open(
        &dir.path().join("products.onnx"),
        Some(&dir.path().join("task.ron")),
    );
    let other = export(
        &session.expect("opens"),
        "Quantize(default: set(int2), scheme: (samples: 30))",
    );
    std::fs::write(Path::new(&out).join("model.onnx"), other).expect("writes");
    let output = ask(&["--optimizations", "off"]);
    let value = json(&output);
    assert_eq!(output.status.code(), Some(1), "{value:#}");
    assert_eq!(value["agrees"], false);
    let said = value["differences"][0].as_str().expect("words");
    assert!(said.contains("changed after the run"), "{said}");
}

#[test]
fn a_runtime_that_is_none_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().expect("dir");
    let out = finished(dir.path());
    let refused = |library: &Path| {
        let library = library.to_str().expect("UTF-8");
        let output = limbeck(&[
            "verify",
            &out,
            "--runtime",
            "onnxruntime",
            "--runtime-library",
            library,
        ]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        assert!(
            said.contains("pip install onnxruntime") && said.contains(library),
            "{said}"
        );
        said
    };
    assert!(refused(&dir.path().join("none.so")).contains("cannot be read"));
    assert!(refused(dir.path()).contains("holds no library"));
    let broken = dir.path().join("libonnxruntime.so");
    std::fs::write(&broken, "no library").expect("writes");
    assert!(refused(&broken).contains("cannot be used"));
    // Looked for everywhere, in a world without any.
    let output = Command::new(env!("CARGO_BIN_EXE_limbeck"))
        .args(["verify", &out, "--runtime", "onnxruntime"])
        .env_clear()
        .env("PATH", dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(2) {
        for word in [
            "LIMBECK_ONNXRUNTIME is not set",
            "VIRTUAL_ENV is not set",
            "no python3 on the path",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
    } else {
        // One of the system's libraries.
        assert!(runtime().is_some(), "{said}");
    }
    // Asked for again by another name, the one that is loaded says so.
    if let Some(loaded) = runtime() {
        let given = Some(broken);
        let error = Runtime::find(&RuntimeSearch {
            given,
            setting: None,
        });
        let Err(RuntimeError::Unusable(said)) = error else {
            panic!("another library cannot be loaded: {loaded:?}");
        };
        assert!(said.contains("loaded already"), "{said}");
    }
}

/// Without labels the original's classes are what a run is judged by: it is said, and the original is held against the lock.
#[test]
fn what_has_no_labels_is_verified_by_agreement_with_the_original() {
    let dir = tempfile::tempdir().expect("dir");
    let (model, task) = products(dir.path());
    let text = std::fs::read_to_string(&task).expect("reads");
    std::fs::write(&task, text.replace(r#", labels: "y.npy""#, "")).expect("writes");
    let out = run_in(dir.path(), &model, &task);
    if runtime().is_none() {
        return;
    }
    let ask = |json: &[&str]| {
        let all = ["verify", &out, "--runtime", "onnxruntime"];
        limbeck(&[all.as_slice(), json].concat())
    };
    let value = json(&ask(&["--json"]));
    assert_eq!(value["runtime"]["labels"], "original", "{value:#}");
    assert_eq!(value["differences"], serde_json::json!([]));
    let people = String::from_utf8_lossy(&ask(&[]).stdout).into_owned();
    assert!(
        people.contains("predicted      agreement with the original") && !people.contains("top-1"),
        "{people}"
    );
    // Another network in the original's place: its classes are not those of the run.
    let mut graph = limbeck_engine::formats::onnx::read(&model).expect("reads");
    graph.name = "another".into();
    limbeck_engine::formats::onnx::write(&graph, &model).expect("writes");
    let output = ask(&["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let value = json(&output);
    let said = value["differences"][0].as_str().expect("words");
    assert!(said.contains("the original, whose classes"), "{said}");
}

/// The window's way: the engine thread holds a recipe's file against the runtime, with progress, and can be stopped.
#[test]
fn the_engine_thread_confirms_a_point_and_stops_when_asked() {
    let engine = Engine::start(Arc::new(|| {}));
    let send = |command| engine.commands.send(command).expect("listens");
    let until_end = |job: u64| {
        let mut seen = Vec::new();
        loop {
            let event = engine
                .events
                .recv_timeout(Duration::from_secs(300))
                .expect("the job ends");
            let end = matches!(
                event,
                Event::Finished { job: j } | Event::Cancelled { job: j } | Event::Failed { job: j, .. }
                    if j.0 == job
            );
            seen.push(event);
            if end {
                return seen;
            }
        }
    };
    send(jobs::Command::Open {
        job: JobId(1),
        model: sample("fashion-resnet.onnx"),
        task: Some(sample("task.ron")),
    });
    until_end(1);
    let text = "(version: 1, model: \"m\", task: \"t\", steps: [FoldBatchNorm, Quantize(default: set(int8), scheme: (samples: 64))])";
    let recipe = Arc::new(Recipe::parse(text, Path::new("test.ron")).expect("a recipe"));
    let ask = |job: u64, limit: usize| {
        send(jobs::Command::Confirm {
            job: JobId(job),
            recipe: recipe.clone(),
            split: SplitName::Search,
            limit: Some(limit),
            library: None,
        });
    };
    let Some(loaded) = runtime() else { return };
    ask(3, 200);
    let events = until_end(3);
    let found = events.iter().any(|e| {
        matches!(e, Event::Runtime { found: Ok(found), .. } if found.version == loaded.version())
    });
    assert!(found, "{events:?}");
    let confirmed = events.iter().find_map(|e| match e {
        Event::Confirmed {
            model_sha256, pair, ..
        } => Some((model_sha256.clone(), pair.clone())),
        _ => None,
    });
    let (sha256, pair) = confirmed.unwrap_or_else(|| panic!("{events:?}"));
    assert_eq!((pair.n, pair.split), (200, SplitName::Search));
    assert_eq!(pair.runs.len(), 2);
    assert!(pair.runs[0].agrees(), "{pair:?}");
    assert!(
        pair.tensors
            .as_ref()
            .is_some_and(|t| t.samples == 64 && t.tensors == 20)
    );
    // The very file that is measured and exported.
    send(jobs::Command::Measure {
        job: JobId(4),
        recipe: recipe.clone(),
        split: SplitName::Search,
        limit: Some(200),
    });
    let events = until_end(4);
    let point = events.iter().find_map(|e| match e {
        Event::Point(point) => Some(point.clone()),
        _ => None,
    });
    let point = point.expect("measured");
    assert_eq!(point.model_sha256, sha256);
    assert_eq!(point.metrics.top1, pair.predicted);
    // Asked to stop, it does.
    ask(5, 2_000);
    loop {
        let event = engine
            .events
            .recv_timeout(Duration::from_secs(300))
            .expect("progress");
        if matches!(event, Event::Progress { job: JobId(5), .. }) {
            break;
        }
    }
    send(jobs::Command::Cancel(JobId(5)));
    let events = until_end(5);
    assert!(
        matches!(events.last(), Some(Event::Cancelled { .. })),
        "{events:?}"
    );
    assert!(!events.iter().any(|e| matches!(e, Event::Confirmed { .. })));
}

/// How often each operator stands in what the runtime makes of a file.
fn optimised(runtime: &Runtime, bytes: &[u8]) -> std::collections::BTreeMap<String, usize> {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("optimised.onnx");
    runtime.write_optimized(bytes, &file).expect("optimises");
    let graph = limbeck_engine::formats::onnx::read(&file).expect("reads");
    let mut counts = std::collections::BTreeMap::new();
    for node in &graph.nodes {
        *counts.entry(node.op.name().to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn what_is_said_to_run_in_integers_does_in_the_runtime() {
    let Some(runtime) = runtime() else { return };
    let session =
        Session::open(&sample("fashion-resnet.onnx"), Some(&sample("task.ron"))).expect("opens");
    let data = session.data.as_ref().expect("data");
    let steps = |scheme: &str| {
        format!("FoldBatchNorm, Quantize(default: set(int8), scheme: (samples: 64{scheme}))")
    };
    let target = limbeck_engine::target::find("onnxruntime-cpu").expect("known");
    let count = |counts: &std::collections::BTreeMap<String, usize>, ops: &[&str]| -> usize {
        ops.iter().filter_map(|op| counts.get(*op)).sum()
    };
    for (scheme, integers) in [(", target: \"onnxruntime-cpu\"", 32), ("", 9)] {
        let bytes = export(&session, &steps(scheme));
        let graph = limbeck_engine::formats::onnx::read_bytes(bytes.clone().into()).expect("reads");
        let said = limbeck_engine::target::Execution::of(&graph, &target).expect("quantised");
        let inside = said.nodes.iter().filter(|n| n.float.is_none()).count();
        assert_eq!(inside, integers, "{said:?}");
        let counts = optimised(&runtime, &bytes);
        let kernels = [
            "QLinearConv",
            "QLinearAdd",
            "QLinearGlobalAveragePool",
            "QGemm",
        ];
        assert_eq!(count(&counts, &kernels), integers, "{counts:?}");
        let float = count(
            &counts,
            &["Conv", "FusedConv", "Add", "GlobalAveragePool", "Gemm"],
        );
        assert_eq!(float, if integers == 32 { 0 } else { 13 + 1 }, "{counts:?}");
        let codes = count(&counts, &["QuantizeLinear"]);
        assert_eq!(codes, said.to_codes, "{counts:?}");
        let floats = count(&counts, &["DequantizeLinear"]);
        if integers == 32 {
            assert_eq!(floats, said.to_float, "{counts:?}");
            let both = [Optimizations::Off, Optimizations::On];
            let c = ask(&runtime, &bytes, data, 200, &both);
            assert_agrees(scheme, &c, 33);
        }
    }
}
