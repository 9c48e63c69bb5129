//! A student from a file in the original's place: trained against it, quantised by rules of its own, replayed from where the recipe lies.

use crate::{
    compress::{Precision, testkit::Net},
    data::SplitName,
    exec::CancelToken,
    formats::onnx,
    graph::{Graph, Op, ValueId},
    recipe::{
        Lock, PipelineError, Recipe, RecipeFile, RunOutcome, Session, Unwatched, open_recipe,
        resolve, run,
    },
};
use std::path::{Path, PathBuf};

fn sample(file: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    folder.join(file)
}

/// A small network for the sample's images: two convolutions and a head.
fn small(seed: u64, size: usize, classes: usize) -> Graph {
    let mut net = Net::new(seed, &[1, size, size]);
    let x = net.conv("edges", ValueId(0), [4, 1, 3, 3], 1, true);
    let x = net.relu("edges_relu", x);
    let x = net.conv("shapes", x, [6, 4, 3, 3], 1, false);
    let x = net.norm("shapes_norm", x, 6);
    let x = net.relu("shapes_relu", x);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let x = net.linear("head", x, [classes, 6], 0.1);
    let mut graph = net.finish(&[x]).graph;
    let (input, output) = (graph.inputs[0], graph.outputs[0]);
    graph.values[input.0 as usize].name = "image".to_owned();
    graph.values[output.0 as usize].name = "logits".to_owned();
    graph
}

/// A recipe in a folder of its own, with `student` in another one beside it.
fn laid_out(folder: &Path, student: &Graph, steps: &str) -> RecipeFile {
    let (recipes, networks) = (folder.join("recipes"), folder.join("networks"));
    for folder in [&recipes, &networks] {
        std::fs::create_dir_all(folder).expect("makes the folder");
    }
    let bytes = onnx::to_bytes(student).expect("encodes");
    std::fs::write(networks.join("small.onnx"), bytes).expect("writes");
    let text = format!(
        "(version: 1, model: {:?}, task: {:?}, seed: 5,\n steps: [{steps}])",
        sample("fashion-resnet.onnx"),
        sample("task.ron")
    );
    let path = recipes.join("r.ron");
    std::fs::write(&path, text).expect("writes");
    RecipeFile::read(&path).expect("reads")
}

fn carried_out(session: &Session, recipe: &Recipe) -> Result<RunOutcome, PipelineError> {
    let token = CancelToken::default();
    let split = SplitName::Search;
    run(session, recipe, split, Some(64), &mut Unwatched, &token)
}

const STEPS: &str = "Student(file: \"../networks/small.onnx\"), \
    Distil(epochs: 2, rate: 0.02, samples: 512, feature_weight: 0.1, batch_norm: batch(freeze_at: 0.5)), FoldBatchNorm, \
    Quantize(default: set(int8), layers: [(\"edges\", keep)], scheme: (samples: 32))";

#[test]
fn a_given_student_is_trained_quantised_and_locked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = laid_out(folder.path(), &small(1, 28, 10), STEPS);
    let (session, recipe) = open_recipe(&file, None, None).expect("opens");
    let outcome = carried_out(&session, &recipe).expect("runs");
    let names = |layers: &[crate::graph::Layer]| -> Vec<String> {
        layers.iter().map(|l| l.id.0.to_string()).collect()
    };
    assert_eq!(names(&outcome.graph.layers()), ["edges", "shapes", "head"]);
    // It learnt something from the original, which is the baseline.
    assert!(outcome.baseline_metrics.top1.value > 0.8);
    let told = &outcome.accounts[1].pass;
    let share = |word: &str| -> f64 {
        let before = told.split(word).next().expect("said");
        let number = before.rsplit(" %").nth(1).expect("a share");
        let number = number.rsplit(' ').next().expect("a number");
        number.parse().expect("a number")
    };
    assert!(share(") after") > share(") before") + 5.0, "{told}");
    assert!(
        outcome.accounts[0]
            .pass
            .contains("given network of 3 layers")
    );
    let lock = Lock::of(&session, &outcome, &file.text).expect("locks");
    let precisions: Vec<(&str, Precision)> = lock
        .layers
        .iter()
        .map(|l| (&*l.name.0, l.precision))
        .collect();
    assert_eq!(
        precisions,
        [
            ("edges", Precision::Fp32),
            ("shapes", Precision::Int8),
            ("head", Precision::Int8)
        ]
    );
    assert!(lock.layers.iter().all(|l| !l.gone && l.channels.is_none()));
    assert_eq!(lock.student_sha256.as_ref().map(String::len), Some(64));
    let text = lock.to_ron().expect("writes");
    let read: Lock = crate::recipe::from_ron(&text, Path::new("lock")).expect("reads");
    assert!(lock.differences(&read).is_empty());
    // The place of the file is no part of what the run is, its content is.
    let mut elsewhere = recipe.clone();
    *elsewhere.student_file_mut().expect("given") = PathBuf::from("elsewhere.onnx");
    let hash = |r: &Recipe| r.steps_sha256().expect("hashes");
    assert_eq!(hash(&recipe), hash(&elsewhere));
    let again = carried_out(&session, &elsewhere).expect("runs");
    assert_eq!(again.model_sha256, outcome.model_sha256);
    let other = laid_out(folder.path(), &small(2, 28, 10), STEPS);
    let (session, recipe) = open_recipe(&other, None, None).expect("opens");
    let outcome = carried_out(&session, &recipe).expect("runs");
    let other = Lock::of(&session, &outcome, &other.text).expect("locks");
    let differences = lock.differences(&other).join("\n");
    assert!(
        differences.contains("SHA-256 of the student"),
        "{differences}"
    );
}

#[test]
fn what_cannot_stand_in_for_the_original_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refused = |student: &Graph, words: &str| {
        let file = laid_out(
            folder.path(),
            student,
            "Student(file: \"../networks/small.onnx\")",
        );
        let error = open_recipe(&file, None, None).err().expect("refused");
        let said = error.to_string();
        assert!(said.contains(words), "{said}");
        assert!(error.is_input() && said.contains("r.ron:2:"), "{said}");
        assert!(said.contains("small.onnx"), "{said}");
    };
    refused(
        &small(1, 32, 10),
        "its input image is N×1×32×32, the original's N×1×28×28",
    );
    refused(
        &small(1, 28, 7),
        "its output logits is N×7, the original's N×10",
    );
    let mut renamed = small(1, 28, 10);
    renamed.values[0].name = "pixels".to_owned();
    refused(&renamed, "its input is called pixels, the original's image");
    let mut two = small(1, 28, 10);
    let inner = two.find_value("shapes_relu_out").expect("there");
    two.outputs.push(inner);
    refused(&two, "it has 2 outputs, the original has 1");
    let mut fixed = small(1, 28, 10);
    Net::fix(&mut fixed, 4);
    refused(&fixed, "its input image is 4×1×28×28");
    let mut broken = small(1, 28, 10);
    let bias = broken.find_value("edges.bias").expect("there");
    let data = crate::graph::TensorData::from_f32(&[4], &[f32::NAN; 4]);
    broken.set_data(bias, data);
    refused(&broken, "not finite, such as edges.bias (4)");
    let mut unknown = small(1, 28, 10);
    let relu = unknown.nodes.iter_mut().find(|n| n.name == "edges_relu");
    relu.expect("there").op = Op::Identity;
    let bytes = onnx::to_bytes(&unknown).expect("encodes");
    // Another operator of as many letters.
    let at = bytes
        .windows(8)
        .position(|w| w == b"Identity")
        .expect("named");
    let mut strange = bytes.clone();
    strange[at..at + 8].copy_from_slice(b"Whatever");
    let file = laid_out(
        folder.path(),
        &unknown,
        "Student(file: \"../networks/small.onnx\")",
    );
    std::fs::write(folder.path().join("networks/small.onnx"), strange).expect("writes");
    let said = open_recipe(&file, None, None)
        .err()
        .expect("refused")
        .to_string();
    assert!(said.contains("cannot run: edges_relu (Whatever"), "{said}");
}

#[test]
fn a_students_file_is_looked_for_beside_the_recipe_and_its_rules_speak_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let student = small(1, 28, 10);
    let said = |steps: &str| {
        let file = laid_out(folder.path(), &student, steps);
        let error = open_recipe(&file, None, None).err().expect("refused");
        error.to_string()
    };
    let missing = said("Student(file: \"small.onnx\")");
    assert!(
        missing.contains("the student's file is not there") && missing.contains("r.ron:2:"),
        "{missing}"
    );
    let named = said(
        "Student(file: \"../networks/small.onnx\"), Quantize(default: set(int8), layers: [(\"conv1\", keep)])",
    );
    assert!(named.contains("no layer `conv1` among its 3"), "{named}");
    let parse = |steps: &str| {
        let text = format!("(version: 1, model: \"m\", task: \"t\", steps: [{steps}])");
        Recipe::parse(&text, Path::new("r.ron"))
    };
    let both = parse("Student(file: \"a.onnx\", width: 0.5)").expect_err("refused");
    assert!(both.to_string().contains("taken as it is"), "{both}");
    // Without the file there is no network to carry it out on.
    let recipe = parse("Student(file: \"a.onnx\")").expect("reads");
    let session = Session::open(&sample("fashion-resnet.onnx"), Some(&sample("task.ron")));
    let session = session.expect("opens");
    let error = carried_out(&session, &recipe).expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("a.onnx as student, which was not opened"),
        "{error}"
    );
    assert!(resolve(&recipe, &session.layers).is_ok());
}
