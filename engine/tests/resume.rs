//! Killed at any moment and gone on with, a run ends with the same bits: the real binary, the real sample, the real signal.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

fn sample(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sample-models/fashion-resnet")
        .join(file)
}

/// A small task over the sample's data, and a recipe with two trainings in it; the recipe's path.
fn prepare(dir: &Path) -> PathBuf {
    for file in [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "fashion-resnet.onnx",
    ] {
        fs::copy(sample(file), dir.join(file)).expect("copies");
    }
    let task = r#"Task(
        version: 1,
        name: "some of Fashion-MNIST",
        sources: { "all": Idx(images: "t10k-images-idx3-ubyte.gz", labels: "t10k-labels-idx1-ubyte.gz") },
        preprocess: (channels: gray, scale: 0.00392156862745098),
        classes: Count(10),
        splits: (
            holdout: Rows(from: "all", start: 0, count: 64),
            calibration: Rows(from: "all", start: 100, count: 64),
            search: Rows(from: "all", start: 200, count: 48),
            training: Rows(from: "all", start: 300, count: 200),
        ),
    )"#;
    fs::write(dir.join("task.ron"), task).expect("writes");
    let recipe = r#"(version: 1, model: "fashion-resnet.onnx", task: "task.ron", seed: 3, steps: [
        Student(depth: 0.67, samples: 16),
        PruneChannels(amount: macs(0.4), criterion: l1, round_to: 8),
        FoldBatchNorm,
        Prune(default: set(0.5), pattern: groups(4), schedule: cubic(end: 2.5, updates: 6)),
        Distil(epochs: 3, batch: 16, rate: 0.002, samples: 112),
        Quantize(default: set(int8), scheme: (samples: 64)),
        Distil(epochs: 2, batch: 16, rate: 0.001, samples: 80, optimizer: sgd),
    ])"#;
    let path = dir.join("recipe.ron");
    fs::write(&path, recipe).expect("writes");
    path
}

fn start(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_limbeck"))
        .args(arguments)
        .args(["--quiet", "--threads", "2"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

/// Its exit code, and what it said on standard error.
fn finish(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code(), said)
}

fn run(recipe: &Path, out: &Path, every: &str) -> Child {
    let (recipe, out) = (recipe.to_str().unwrap(), out.to_str().unwrap());
    start(&["run", recipe, "--out", out, "--checkpoint-every", every])
}

fn resume(out: &Path) -> Child {
    start(&["run", "--resume", out.to_str().unwrap()])
}

/// Every file of a complete run.
fn files(out: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = fs::read_dir(out)
        .expect("the folder")
        .map(|entry| {
            let path = entry.expect("entry").path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(&path).expect("a file, no folder is left"))
        })
        .collect();
    found.sort();
    found
}

fn checkpoints(out: &Path) -> Vec<PathBuf> {
    let folder = fs::read_dir(out.join("checkpoints"));
    let entries = folder.into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "checkpoint"))
        .collect();
    found.sort();
    found
}

/// Kills the run once `enough` says so; false where it ended before.
fn kill_when(child: Child, enough: impl Fn() -> bool) -> bool {
    let mut child = child;
    loop {
        if child.try_wait().expect("its state").is_some() {
            let (code, said) = finish(child);
            assert_eq!(code, Some(0), "{said}");
            return false;
        }
        if enough() {
            // SIGKILL: nothing is tidied up.
            child.kill().expect("kills");
            child.wait().expect("is dead");
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn killed_at_random_and_gone_on_with_a_run_ends_with_the_same_bits() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = prepare(dir.path());
    let whole = dir.path().join("whole");
    let began = Instant::now();
    assert_eq!(finish(run(&recipe, &whole, "never")).0, Some(0));
    let length = began.elapsed();
    let expected = files(&whole);
    assert!(expected.iter().any(|(name, _)| name == "model.onnx"));

    let out = dir.path().join("killed");
    // Any moment will do: the clock chooses, and says what it chose.
    let mut random = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |d| d.as_nanos() as u64)
        | 1;
    let seed = random;
    let mut kills = 0;
    let mut begun = false;
    while kills < 8 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let wait = length.mul_f64((random % 1000) as f64 / 1000.0);
        let child = if begun {
            resume(&out)
        } else {
            run(&recipe, &out, "2steps")
        };
        let started = Instant::now();
        // The first one dies in any case: a run that was never killed shows nothing.
        let wait = if kills == 0 { wait.mul_f64(0.5) } else { wait };
        if !kill_when(child, || started.elapsed() >= wait) {
            break;
        }
        kills += 1;
        // Killed before the run had written down what it is, there is nothing to go on with.
        begun = begun || out.join("checkpoints/run.ron").is_file();
    }
    assert!(kills > 0, "seed {seed}: it ended before it could be killed");
    let child = if begun {
        resume(&out)
    } else {
        run(&recipe, &out, "2steps")
    };
    let (code, said) = finish(child);
    assert_eq!(code, Some(0), "seed {seed}, {kills} kills: {said}");
    assert!(
        files(&out) == expected,
        "seed {seed}, {kills} kills: other files"
    );
    // Gone on with once more, it only says so.
    assert_eq!(finish(resume(&out)).0, Some(0));
    assert!(files(&out) == expected);
}

/// A run of a student from a file goes on with that very file, wherever the run's own recipe finds it.
#[test]
fn a_run_goes_on_with_the_student_that_it_began_with() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = prepare(dir.path());
    let student = dir.path().join("student.onnx");
    fs::copy(sample("fashion-resnet.onnx"), &student).expect("copies");
    let text = fs::read_to_string(&recipe).expect("reads");
    let made = "Student(depth: 0.67, samples: 16)";
    assert!(text.contains(made));
    fs::write(
        &recipe,
        text.replace(made, "Student(file: \"student.onnx\")"),
    )
    .expect("writes");
    let out = dir.path().join("out");
    let begun = || checkpoints(&out).len() == 2;
    assert!(kill_when(run(&recipe, &out, "1steps"), begun));

    // One byte of its weights is another.
    let sound = fs::read(&student).expect("the student");
    let mut other = sound.clone();
    let last = other.len() - 20_000;
    other[last] ^= 1;
    fs::write(&student, other).expect("writes");
    let (code, said) = finish(resume(&out));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("another student"), "{said}");
    fs::remove_file(&student).expect("goes");
    let (code, said) = finish(resume(&out));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("student.onnx"), "{said}");
    fs::write(&student, sound).expect("writes");
    let (code, said) = finish(resume(&out));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn what_cannot_be_gone_on_with_is_said_and_what_can_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = prepare(dir.path());
    let out = dir.path().join("out");
    let (code, said) = finish(resume(&out));
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("holds no run that could be gone on with"),
        "{said}"
    );

    assert!(kill_when(run(&recipe, &out, "1steps"), || checkpoints(
        &out
    )
    .len()
        == 2));
    // Not thrown away unasked.
    let (code, said) = finish(run(&recipe, &out, "1steps"));
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("unfinished run") && said.contains("--resume"),
        "{said}"
    );

    // Another recipe than the checkpoint's.
    let own = fs::read_to_string(out.join("recipe.ron")).expect("its recipe");
    fs::write(out.join("recipe.ron"), own.replace("seed: 3", "seed: 4")).expect("writes");
    let (code, said) = finish(resume(&out));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("other steps or another seed"), "{said}");
    fs::write(out.join("recipe.ron"), own).expect("writes");

    // Another model: the same network with one byte of its weights changed.
    let model = dir.path().join("fashion-resnet.onnx");
    let sound = fs::read(&model).expect("the model");
    let mut other = sound.clone();
    let last = other.len() - 20_000;
    other[last] ^= 1;
    fs::write(&model, other).expect("writes");
    let (code, said) = finish(resume(&out));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("another model"), "{said}");
    fs::write(&model, sound).expect("writes");

    // The newest is broken: the one before it is taken, and that is said.
    let kept = checkpoints(&out);
    let newest = kept.last().expect("two");
    let bytes = fs::read(newest).expect("reads");
    fs::write(newest, &bytes[..bytes.len() / 2]).expect("cuts");
    let child = resume(&out);
    let before = kept.len();
    assert_eq!(before, 2);
    let (code, said) = finish(child);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("checksum") && said.contains("the one before it"),
        "{said}"
    );
    let whole = dir.path().join("whole");
    assert_eq!(finish(run(&recipe, &whole, "never")).0, Some(0));
    assert!(files(&out) == files(&whole));

    // All are broken.
    let out = dir.path().join("broken");
    assert!(kill_when(run(&recipe, &out, "1steps"), || !checkpoints(
        &out
    )
    .is_empty()));
    for path in checkpoints(&out) {
        fs::write(path, "no checkpoint").expect("writes");
    }
    let (code, said) = finish(resume(&out));
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("no checkpoint of Limbeck's") && said.contains("start the run anew"),
        "{said}"
    );
}

#[cfg(unix)]
#[test]
fn a_signal_takes_a_checkpoint_first_where_there_is_something_to_keep() {
    let dir = tempfile::tempdir().expect("folder");
    let recipe = prepare(dir.path());
    let text = r#"(version: 1, model: "fashion-resnet.onnx", task: "task.ron", seed: 3, steps: [
        Prune(default: set(0.5)),
        Distil(epochs: 30, batch: 16, rate: 0.002, samples: 112),
    ])"#;
    fs::write(&recipe, text).expect("writes");
    let whole = dir.path().join("whole");
    assert_eq!(finish(run(&recipe, &whole, "never")).0, Some(0));
    // No checkpoint is due for an hour. A signal before the first mini-batch ends the run at once.
    let out = dir.path().join("out");
    let mut wait = Duration::from_millis(300);
    let said = loop {
        let child = run(&recipe, &out, "60m");
        std::thread::sleep(wait);
        let sent = Command::new("kill").arg(child.id().to_string()).status();
        assert!(sent.expect("kill is there").success());
        match finish(child) {
            (Some(143), said) => break said,
            (None, _) => wait += Duration::from_millis(200),
            (code, said) => panic!("{code:?} after {wait:?}: {said}"),
        }
        assert!(checkpoints(&out).is_empty());
        match fs::remove_dir_all(&out) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => panic!("{why}"),
            _ => {} // a slow machine had not begun to write
        }
    };
    assert!(said.contains("--resume"), "{said}");
    assert_eq!(checkpoints(&out).len(), 1);
    let (code, said) = finish(resume(&out));
    assert_eq!(code, Some(0), "{said}");
    let model = |out: &Path| fs::read(out.join("model.onnx")).expect("reads");
    assert!(model(&out) == model(&whole), "other bits");
}
