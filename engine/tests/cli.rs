//! The command line as a user meets it: the real binary, the real sample, good and bad input.

use serde_json::Value;
use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn sample(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sample-models/fashion-resnet")
        .join(file)
}

fn model() -> String {
    text(&sample("fashion-resnet.onnx"))
}

fn task() -> String {
    text(&sample("task.ron"))
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8 path").to_owned()
}

fn limbeck(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_limbeck"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs with `--json`; the exit code and the one object on standard output.
fn json(arguments: &[&str]) -> (i32, Value) {
    let mut all = vec!["--json"];
    all.extend(arguments);
    let output = limbeck(&all);
    let value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {arguments:?} {}", stderr(&output)));
    (output.status.code().expect("a code"), value)
}

fn good(arguments: &[&str]) -> Value {
    let (code, value) = json(arguments);
    assert_eq!(code, 0, "{arguments:?}: {value:#}");
    value
}

/// The message and that it ends in code 2, without a panic.
fn refused(arguments: &[&str]) -> String {
    let output = limbeck(arguments);
    let said = stderr(&output);
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty());
    said
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// A recipe file on the sample.
fn recipe(dir: &Path, steps: &str, goals: &str) -> String {
    let path = dir.join("my.ron");
    let content = format!(
        "(version: 1, model: {:?}, task: {:?}, goals: [{goals}],\n steps: [{steps}])",
        model(),
        task()
    );
    std::fs::write(&path, content).expect("writes");
    text(&path)
}

const INT8: &str = "FoldBatchNorm,\nQuantize(default: set(int8), layers: [(\"conv1\", keep)], scheme: (samples: 64))";

#[test]
fn inspect_tells_layers_and_sizes() {
    let value = good(&["inspect", &model()]);
    let layers = value["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 22);
    assert_eq!(layers[0]["name"], "conv1");
    assert_eq!(layers[0]["op"], "Conv");
    assert_eq!(layers[0]["params"], 144);
    // 16 channels of 28×28, each from 3×3 pixels.
    assert_eq!(layers[0]["macs"], 28 * 28 * 16 * 9);
    assert_eq!(value["runnable"], true);
    assert!(value["sizes"]["stored_bytes"].as_u64().expect("bytes") > 1_000_000);
    let people = limbeck(&["inspect", &model()]);
    let people = String::from_utf8_lossy(&people.stdout).into_owned();
    assert!(
        people.contains("layer3.2.conv2") && people.contains("36,864"),
        "{people}"
    );
}

#[test]
fn eval_counts_samples_and_writes_predictions() {
    let dir = folder();
    let file = dir.path().join("p.txt");
    let value = good(&[
        "eval",
        &model(),
        "--limit",
        "128",
        "--predictions",
        &text(&file),
    ]);
    let metrics = &value["metrics"];
    assert_eq!(metrics["split"], "holdout");
    assert_eq!(metrics["top1"]["n"], 128);
    let top1 = metrics["top1"]["value"].as_f64().expect("a number");
    let low = metrics["top1"]["ci"][0].as_f64().expect("a number");
    assert!(top1 > 0.85 && low < top1 && low > 0.75, "{metrics}");
    let lines = std::fs::read_to_string(&file).expect("predictions");
    assert_eq!(lines.lines().count(), 128);
    assert!(
        lines
            .lines()
            .all(|l| l.parse::<u32>().is_ok_and(|c| c < 10))
    );
    let other = good(&[
        "eval",
        &model(),
        "--limit",
        "32",
        "--split",
        "search",
        "--task",
        &task(),
    ]);
    assert_eq!(other["metrics"]["split"], "search");
}

#[test]
fn sensitivity_without_data_gives_every_proxy_cell() {
    let value = good(&["sensitivity", &model(), "--proxy"]);
    let cells = value["cells"].as_array().expect("cells");
    assert_eq!(cells.len(), 22 * 6);
    for key in ["layer", "candidate", "tier", "value", "n"] {
        assert!(cells.iter().all(|c| !c[key].is_null()), "{key}");
    }
    assert!(cells.iter().all(|c| c["tier"] == "proxy" && c["n"] == 0));
}

#[test]
fn a_run_can_be_verified_with_another_number_of_threads_and_tampering_shows() {
    let dir = folder();
    let out = dir.path().join("out");
    let out_text = text(&out);
    let recipe = recipe(dir.path(), INT8, "DropPoints(60), StoredKilobytes(500)");
    let ran = good(&[
        "run",
        &recipe,
        "--out",
        &out_text,
        "--limit",
        "64",
        "--threads",
        "1",
    ]);
    assert_eq!(ran["verdict"], "pass", "{:#}", ran["goals"]);
    assert_eq!(ran["metrics"]["drop"]["n"], 64);
    for file in [
        "model.onnx",
        "recipe.ron",
        "recipe.lock.ron",
        "metrics.json",
        "predictions.txt",
    ] {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert_eq!(
        std::fs::read_dir(&out).expect("lists").count(),
        5,
        "nothing else is left"
    );
    let lock = std::fs::read_to_string(out.join("recipe.lock.ron")).expect("lock");
    assert!(lock.contains("zero_point") && lock.contains("layer3.2.conv2"));

    let verified = good(&["verify", &out_text, "--threads", "2"]);
    assert_eq!(verified["same"], true);
    assert_eq!(verified["exported_sha256"], ran["exported"]["sha256"]);

    // The compressed model is a model: it is read back and evaluated with the same predictions.
    let again = good(&[
        "eval",
        &text(&out.join("model.onnx")),
        "--task",
        &task(),
        "--limit",
        "64",
    ]);
    assert_eq!(again["predictions_sha256"], ran["predictions_sha256"]);

    std::fs::write(out.join("predictions.txt"), "0\n").expect("tampers");
    let (code, value) = json(&["verify", &out_text]);
    assert_eq!(code, 1);
    assert!(
        value["differences"][0]
            .as_str()
            .expect("words")
            .contains("predictions.txt")
    );
    let changed = lock.replacen("seed: 0", "seed: 1", 1);
    std::fs::write(out.join("recipe.lock.ron"), changed).expect("tampers");
    let (code, value) = json(&["verify", &out_text]);
    assert_eq!(code, 1);
    assert_eq!(value["differences"][0], "seed: locked 1, replayed 0");
}

#[test]
fn a_missed_goal_is_code_3_and_an_open_one_only_when_strict() {
    let dir = folder();
    let out = text(&dir.path().join("out"));
    let missed = recipe(dir.path(), "FoldBatchNorm", "StoredKilobytes(1)");
    let (code, value) = json(&["run", &missed, "--out", &out, "--limit", "16"]);
    assert_eq!(code, 3, "{value:#}");
    assert_eq!(value["verdict"], "fail");
    let open = recipe(
        dir.path(),
        "FoldBatchNorm, Prune(default: set(0.6))",
        "DropPoints(0.5)",
    );
    let arguments = ["run", &open, "--out", &out, "--limit", "24"];
    let (code, value) = json(&arguments);
    assert_eq!(value["verdict"], "inconclusive", "{:#}", value["goals"]);
    assert_eq!(code, 0);
    let strict = [&arguments[..], &["--strict"]].concat();
    assert_eq!(json(&strict).0, 3);
}

#[test]
fn exports_need_data_only_where_activations_are_quantised() {
    let dir = folder();
    // Away from its task.ron.
    let alone = dir.path().join("alone.onnx");
    std::fs::copy(sample("fashion-resnet.onnx"), &alone).expect("copies");
    let alone = text(&alone);
    let out = text(&dir.path().join("out.onnx"));
    let float = good(&["export", &alone, "--format", "float", "--out", &out]);
    let fp16 = good(&["export", &alone, "--format", "fp16", "--out", &out]);
    let bytes = |v: &Value| v["exported"]["bytes"].as_u64().expect("bytes");
    assert!(bytes(&fp16) < bytes(&float) * 6 / 10);
    let said = refused(&["export", &alone, "--format", "int8", "--out", &out]);
    assert!(
        said.contains("task.ron to calibrate activations on"),
        "{said}"
    );
    let int8 = good(&[
        "export",
        &alone,
        "--format",
        "int8",
        "--out",
        &out,
        "--task",
        &task(),
    ]);
    assert!(bytes(&int8) < bytes(&fp16) * 7 / 10);
    assert_eq!(
        good(&["inspect", &out])["layers"]
            .as_array()
            .expect("layers")
            .len(),
        22
    );
}

#[test]
fn bad_models_are_refused_by_name() {
    let dir = folder();
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("writes");
        text(&path)
    };
    let whole = std::fs::read(sample("fashion-resnet.onnx")).expect("reads");
    let cases = [
        text(&dir.path().join("missing.onnx")),
        put("empty.onnx", b""),
        put("garbage.onnx", &[0xff; 4096]),
        put("truncated.onnx", &whole[..whole.len() / 2]),
        text(dir.path()),
    ];
    for path in &cases {
        let said = refused(&["inspect", path]);
        assert!(said.contains(path.as_str()), "{said}");
    }
    let (code, value) = json(&["inspect", &cases[0]]);
    assert_eq!((code, &value["exit_code"]), (2, &Value::from(2)));
    assert!(
        value["error"]
            .as_str()
            .expect("words")
            .contains("missing.onnx")
    );
}

#[test]
fn bad_tasks_are_refused_by_name() {
    let dir = folder();
    let path = dir.path().join("task.ron");
    let path_text = text(&path);
    let said = refused(&["eval", &model(), "--task", &path_text]);
    assert!(said.contains("task.ron"), "{said}");
    std::fs::write(&path, "Task(version: 1, nam: \"x\")").expect("writes");
    let said = refused(&["eval", &model(), "--task", &path_text]);
    assert!(said.contains("task.ron") && said.contains("nam"), "{said}");
    // Data that is not there: the paths are relative to the task's own folder.
    std::fs::copy(sample("task.ron"), &path).expect("copies");
    let said = refused(&["eval", &model(), "--task", &path_text]);
    assert!(said.contains("t10k-") || said.contains("train-"), "{said}");
    let said = refused(&["eval", &model(), "--limit", "0"]);
    assert!(said.contains("limit is 0"), "{said}");
}

#[test]
fn bad_recipes_are_refused_with_their_place() {
    let dir = folder();
    let out = text(&dir.path().join("out"));
    let try_out = |steps: &str, goals: &str| {
        let path = recipe(dir.path(), steps, goals);
        refused(&["run", &path, "--out", &out, "--limit", "16"])
    };
    let said = try_out("Quantize(defalt: set(int8))", "");
    assert!(
        said.contains("my.ron:2:") && said.contains("did you mean `default`?"),
        "{said}"
    );
    let said = try_out(
        "Quantize(default: keep, layers: [(\"layer9*\", set(int8))])",
        "",
    );
    assert!(
        said.contains("my.ron:2:") && said.contains("`layer9*` matches none"),
        "{said}"
    );
    let said = try_out(
        "Quantize(default: keep, layers: [(\"conv_1\", set(int8))])",
        "",
    );
    assert!(
        said.contains("no layer `conv_1`") && said.contains("did you mean `conv1`?"),
        "{said}"
    );
    let said = try_out("Prune(default: set(1.5))", "");
    assert!(said.contains("less than 1"), "{said}");
    let said = refused(&["run", &text(&dir.path().join("none.ron")), "--out", &out]);
    assert!(said.contains("none.ron"), "{said}");
    let lost = dir.path().join("lost.ron");
    std::fs::write(
        &lost,
        "(version: 1, model: \"gone.onnx\", task: \"t\", steps: [])",
    )
    .expect("writes");
    let said = refused(&["run", &text(&lost), "--out", &out]);
    assert!(
        said.contains("gone.onnx") && said.contains("lost.ron:1:"),
        "{said}"
    );
    assert!(!Path::new(&out).exists(), "nothing was begun");
}

#[test]
fn an_output_that_cannot_be_written_is_told_before_the_work() {
    let dir = folder();
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").expect("writes");
    let recipe = recipe(dir.path(), "FoldBatchNorm", "");
    for out in [file.clone(), file.join("below")] {
        let said = refused(&["run", &recipe, "--out", &text(&out), "--limit", "16"]);
        assert!(said.contains(&text(&out)), "{said}");
    }
    assert_eq!(
        std::fs::read_to_string(&file).expect("still there"),
        "in the way"
    );
    let output = limbeck(&[
        "export",
        &model(),
        "--format",
        "fp16",
        "--out",
        "/no/such/folder/x.onnx",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("folder does not exist"));
}

#[test]
fn usage_help_and_closed_pipes() {
    refused(&["frobnicate"]);
    refused(&["run", "x.ron"]);
    for verb in ["inspect", "eval", "sensitivity", "run", "export", "verify"] {
        let help = limbeck(&[verb, "--help"]);
        assert_eq!(help.status.code(), Some(0));
        assert!(help.stdout.len() > 200);
    }
    let help = limbeck(&["--help"]);
    assert!(String::from_utf8_lossy(&help.stdout).contains("Exit codes"));
    // The reader goes away before a word was said.
    let mut child = Command::new(env!("CARGO_BIN_EXE_limbeck"))
        .args(["inspect", &model()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let mut said = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut said)
        .expect("reads");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(said, "");
}

#[test]
fn channels_are_taken_out_and_the_run_can_be_repeated() {
    let dir = folder();
    let steps = "PruneChannels(amount: macs(0.5), layers: [(\"conv1\", keep)], round_to: 4, samples: 64),\n FoldBatchNorm,\n Quantize(default: set(int8))";
    let recipe = recipe(dir.path(), steps, "");
    let out = text(&dir.path().join("out"));
    let run = good(&[
        "run", &recipe, "--split", "search", "--limit", "200", "--out", &out,
    ]);
    let inspected = good(&["inspect", &model()]);
    let macs = |v: &Value| v["sizes"]["macs"].as_u64().expect("known MACs");
    assert!(
        macs(&run) * 2 <= macs(&inspected),
        "{} of {}",
        macs(&run),
        macs(&inspected)
    );
    // The window's groups: twelve in a ResNet-20, and the classifier stays.
    assert_eq!(
        inspected["channel_groups"].as_array().map(Vec::len),
        Some(12)
    );
    assert!(
        inspected["channels_stay"]["fc"]
            .as_str()
            .is_some_and(|w| w.contains("output"))
    );
    // The exported file is what was counted, and the lock says each layer's channels.
    let exported = good(&["inspect", &text(&dir.path().join("out/model.onnx"))]);
    assert_eq!(macs(&exported), macs(&run));
    let lock = std::fs::read_to_string(dir.path().join("out/recipe.lock.ron")).expect("a lock");
    assert!(lock.contains("outputs: (32, "), "{lock}");
    let verified = good(&["verify", &out]);
    assert_eq!(verified["same"], Value::Bool(true));
    let refused = refused(&[
        "run",
        &self::recipe(
            dir.path(),
            "Quantize(default: set(int8)), PruneChannels(amount: macs(0.5))",
            "",
        ),
        "--out",
        &out,
    ]);
    assert!(refused.contains("must come before Quantize"), "{refused}");
}

/// Heads, feed-forward widths and a whole block of an encoder: gone from the file, told, locked and repeated.
#[test]
fn heads_and_blocks_are_taken_out_of_an_encoder() {
    let dir = folder();
    let encoder = text(&sample("../fashion-encoder/fashion-encoder.onnx"));
    let content = format!(
        "(version: 1, model: {encoder:?}, task: {:?}, steps: [
            PruneBlocks(layers: [\"/layers.1/attention/*\"], samples: 16),
            PruneChannels(attention: heads, layers: [(\"/layers.*/attention/*\", set(0.5))], samples: 16),
            PruneChannels(layers: [(\"/layers.*/intermediate/*\", set(0.25))], samples: 16),
            Quantize(default: set(int8), scheme: (activations: dynamic)),
        ])",
        task()
    );
    let path = dir.path().join("my.ron");
    std::fs::write(&path, content).expect("writes");
    let out = text(&dir.path().join("out"));
    let run = good(&[
        "run",
        &text(&path),
        "--out",
        &out,
        "--split",
        "search",
        "--limit",
        "60",
    ]);
    let account = |at: usize| {
        run["accounts"][at]["pass"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    assert!(
        account(0).contains("1 taken out, those that were named"),
        "{}",
        account(0)
    );
    assert!(
        account(1).contains("whole attention heads"),
        "{}",
        account(1)
    );
    let before = good(&["inspect", &encoder]);
    let after = good(&["inspect", &text(&dir.path().join("out/model.onnx"))]);
    let layers = |v: &Value| v["layers"].as_array().map_or(0, Vec::len);
    assert_eq!(layers(&after) + 4, layers(&before));
    let macs = |v: &Value| v["sizes"]["macs"].as_u64().expect("MACs");
    assert!(macs(&after) < macs(&before) * 3 / 4);
    let lock = std::fs::read_to_string(dir.path().join("out/recipe.lock.ron")).expect("a lock");
    assert_eq!(lock.matches("gone: true").count(), 4, "{lock}");
    assert_eq!(good(&["verify", &out])["same"], Value::Bool(true));
    let half = "PruneBlocks(layers: [\"layer1.0.conv1\"])";
    let said = refused(&["run", &recipe(dir.path(), half, ""), "--out", &out]);
    assert!(said.contains("not a whole residual block"), "{said}");
    let none = refused(&[
        "run",
        &recipe(dir.path(), "PruneBlocks()", ""),
        "--out",
        &out,
    ]);
    assert!(none.contains("nothing would go"), "{none}");
}

/// A student made from the original, then the same network given as a file: found from the recipe's folder, and from the run's.
#[test]
fn students_are_made_and_given() {
    let dir = folder();
    let made = text(&dir.path().join("made"));
    let narrow = recipe(
        dir.path(),
        "Student(width: 0.25, depth: 0.5, samples: 16)",
        "",
    );
    let limits = ["--split", "search", "--limit", "100"];
    let run = |recipe: &str, out: &str| {
        let mut all = vec!["run", recipe, "--out", out];
        all.extend(limits);
        good(&all)
    };
    let first = run(&narrow, &made);
    let account = first["accounts"][0]["pass"].as_str().expect("words");
    assert!(
        account.contains("of 7 residual blocks 3 taken out"),
        "{account}"
    );
    let lock = std::fs::read_to_string(dir.path().join("made/recipe.lock.ron")).expect("a lock");
    assert_eq!(lock.matches("gone: true").count(), 6, "{lock}");
    let steps = "Student(file: \"made/model.onnx\"), Distil(epochs: 1, samples: 128), Quantize(default: set(int8), scheme: (samples: 16))";
    let given = recipe(dir.path(), steps, "");
    let out = text(&dir.path().join("out"));
    let second = run(&given, &out);
    assert_eq!(second["sizes"]["macs"], first["sizes"]["macs"]);
    let kept = std::fs::read_to_string(dir.path().join("out/recipe.ron")).expect("a recipe");
    assert!(kept.contains("../made/model.onnx"), "{kept}");
    assert_eq!(good(&["verify", &out])["same"], Value::Bool(true));
    // Another network under the same name shows.
    let wider = recipe(dir.path(), "Student(width: 0.5)", "");
    run(&wider, &made);
    let (code, verified) = json(&["verify", &out]);
    assert_eq!(code, 1, "{verified:#}");
    let said = verified["differences"].to_string();
    assert!(said.contains("SHA-256 of the student"), "{said}");
}

/// Every method in one recipe, on the real sample: run, told, and repeated to the bit with another number of threads.
#[test]
fn methods_of_quantisation_run_and_repeat() {
    let dir = folder();
    let steps = "FoldBatchNorm, Equalize(),
        Quantize(default: set(int4), layers: [(\"conv1\", set(int7)), (\"fc\", set(int8))], scheme: (samples: 32, calibration: entropy)),
        AdaRound(layers: [(\"layer1*\", off), (\"layer2*\", off)], settings: (samples: 16, positions: 256, iterations: 60, rate: 0.05)),
        Brecq(default: off, layers: [(\"layer2*\", on)], settings: (samples: 16, iterations: 10, batch: 4, rate: 0.1)),
        CorrectBias(samples: 32)";
    let path = recipe(dir.path(), steps, "");
    let out = text(&dir.path().join("out"));
    let value = good(&[
        "run",
        &path,
        "--out",
        &out,
        "--limit",
        "300",
        "--threads",
        "1",
    ]);
    let accounts = value["accounts"].as_array().expect("accounts");
    let passes: Vec<&str> = accounts.iter().filter_map(|a| a["pass"].as_str()).collect();
    assert_eq!(
        passes,
        [
            "fold batch norm",
            "equalise",
            "quantise",
            "adaround",
            "brecq",
            "correct bias"
        ]
    );
    let entry = |pass: usize, layer: &str| {
        let entries = accounts[pass]["entries"].as_array().expect("entries");
        let found = entries
            .iter()
            .find(|e| e["layer"] == layer)
            .expect("an entry");
        found["outcome"].to_string()
    };
    assert!(entry(1, "layer1.0.conv1").contains("scaled against layer1.0.conv2"));
    assert!(entry(2, "conv1").contains("7-bit weights"));
    assert!(entry(3, "layer1.0.conv1").contains("not asked for"));
    assert!(entry(3, "layer3.0.conv1").contains("positions"));
    assert!(entry(4, "layer2.0.conv2").contains("the block layer2.0.conv1 to layer2.0."));
    assert!(entry(4, "layer3.0.conv1").contains("not asked for"));
    assert!(entry(5, "fc").contains("means of 10 channels"));
    let lock = std::fs::read_to_string(Path::new(&out).join("recipe.lock.ron")).expect("a lock");
    assert!(
        lock.contains("precision: int7"),
        "the file says what it holds"
    );
    let again = good(&["verify", &out, "--threads", "2"]);
    assert_eq!(again["same"], true, "{again:#}");
}

/// A run's result never replaces the network that it is made of.
#[test]
fn a_run_does_not_write_over_what_it_reads() {
    let dir = folder();
    let own = dir.path().join("model.onnx");
    std::fs::copy(sample("fashion-resnet.onnx"), &own).expect("copies");
    let before = std::fs::read(&own).expect("reads");
    let out = text(dir.path());
    for (model, steps) in [
        (text(&own), "FoldBatchNorm"),
        (
            text(&sample("fashion-resnet.onnx")),
            "Student(file: \"model.onnx\"), FoldBatchNorm",
        ),
    ] {
        let path = dir.path().join("over.ron");
        let content = format!(
            "(version: 1, model: {model:?}, task: {:?}, steps: [{steps}])",
            task()
        );
        std::fs::write(&path, content).expect("writes");
        let said = refused(&["run", &text(&path), "--out", &out]);
        assert!(said.contains("another folder"), "{said}");
        assert_eq!(std::fs::read(&own).expect("reads"), before);
    }
}
