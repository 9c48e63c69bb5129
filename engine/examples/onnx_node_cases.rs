//! Runs cases of the ONNX standard's node tests for `.ci/onnx_node_cases.py`: reads a directory's `cases.json`, runs every
//! case whose model Limbeck can run, leaves the outputs beside it, and prints one JSON object: a verdict for every case
//! and the counts. With `--claims`: the list of claimed operators. The comparison is the script's, in numpy.
#![allow(clippy::print_stdout)]

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use limbeck_engine::{
    exec::{CLAIMS, CancelToken, Mode, NoTaps, Program},
    formats::onnx,
    graph::{ElementType, Graph, TensorData},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

/// A tensor in its own file: ONNX `raw_data` beside element type and shape.
#[derive(serde::Deserialize, serde::Serialize)]
struct Stored {
    element: ElementType,
    shape: Vec<usize>,
    file: String,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    model: String,
    inputs: Vec<Stored>,
}

/// What became of a case.
enum Verdict {
    /// Ran; the outputs are to be compared.
    Ran(Vec<Stored>),
    /// Not run, and why: the model asks for something that is not claimed.
    Refused(Vec<String>),
    /// Should have run and did not.
    Failed(String),
}

fn run(dir: &Path, case: &Case) -> Result<Verdict> {
    let graph = match onnx::read(&dir.join(&case.model)) {
        Ok(g) => g,
        Err(e) => return Ok(Verdict::Refused(vec![e.message])),
    };
    let refused = Program::unsupported(&graph);
    if !refused.is_empty() {
        let reasons = refused
            .into_iter()
            .map(|(_, op, why)| format!("{op}: {why}"));
        return Ok(Verdict::Refused(reasons.collect()));
    }
    let feeds = case
        .inputs
        .iter()
        .map(|s| {
            Ok(TensorData {
                element: s.element,
                shape: s.shape.clone(),
                bytes: std::fs::read(dir.join(&s.file))?.into(),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let outputs =
        Program::compile(&graph, Mode::Inference)?.run_data(&feeds, &CancelToken::default())?;
    fused(graph, &feeds, &outputs)?;
    let mut stored = vec![];
    for (i, o) in outputs.into_iter().enumerate() {
        let file = format!("{}.out{i}", case.name);
        std::fs::write(dir.join(&file), &o.bytes)?;
        stored.push(Stored {
            element: o.element,
            shape: o.shape,
            file,
        });
    }
    Ok(Verdict::Ran(stored))
}

/// The same with all inputs but the first as constants, the way a network is run: operators may then be fused. Must agree with what
/// they gave one by one.
fn fused(mut graph: Graph, feeds: &[TensorData], expected: &[TensorData]) -> Result<()> {
    let floats = |d: &TensorData| d.element == ElementType::F32;
    let [first, rest @ ..] = feeds else {
        return Ok(());
    };
    if !floats(first) || first.shape.is_empty() || !expected.iter().all(floats) {
        return Ok(());
    }
    let inputs = graph.inputs.clone();
    for (id, data) in inputs.iter().skip(1).zip(rest) {
        graph.set_data(*id, data.clone());
    }
    graph.inputs.truncate(1);
    let x = Tensor::from_vec(first.to_f32_vec(), first.shape.as_slice(), &Device::Cpu)?;
    let program = Program::compile(&graph, Mode::Inference)?;
    let outputs = program.run(&[x], &mut NoTaps, &CancelToken::default())?;
    for (output, expected) in outputs.iter().zip(expected) {
        if output.dims() != expected.shape {
            bail!(
                "fused: shape {:?}, expected {:?}",
                output.dims(),
                expected.shape
            );
        }
        let got = output.flatten_all()?.to_vec1::<f32>()?;
        for (at, (a, b)) in got.iter().zip(expected.to_f32_vec()).enumerate() {
            let same = *a == b || (a.is_nan() && b.is_nan());
            if !same && (a - b).abs() > 1e-4 * (1.0 + b.abs()) {
                bail!("fused: element {at} is {a}, expected {b}");
            }
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let Some(arg) = std::env::args().nth(1) else {
        bail!("usage: onnx_node_cases DIR | --claims");
    };
    if arg == "--claims" {
        let list: Vec<Value> = CLAIMS
            .iter()
            .map(|c| {
                json!({"operator": c.operator, "restriction": c.restriction, "differentiable": c.differentiable})
            })
            .collect();
        println!("{}", Value::from(list));
        return Ok(());
    }
    let dir = PathBuf::from(arg);
    let text = std::fs::read_to_string(dir.join("cases.json")).context("cases.json")?;
    let cases: Vec<Case> = serde_json::from_str(&text)?;
    let mut verdicts = vec![];
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for case in &cases {
        // A panic is a failure of this case, not of those behind it.
        let verdict = match catch_unwind(|| run(&dir, case)) {
            Ok(Ok(v)) => v,
            Ok(Err(e)) => Verdict::Failed(format!("{e:#}")),
            Err(_) => Verdict::Failed("panicked".into()),
        };
        let (kind, detail) = match verdict {
            Verdict::Ran(outputs) => ("ran", json!({"outputs": outputs})),
            Verdict::Refused(reasons) => ("refused", json!({"reasons": reasons})),
            Verdict::Failed(error) => ("failed", json!({"error": error})),
        };
        *counts.entry(kind).or_default() += 1;
        let mut v = json!({"name": case.name, "verdict": kind});
        if let (Some(v), Value::Object(d)) = (v.as_object_mut(), detail) {
            v.extend(d);
        }
        verdicts.push(v);
    }
    println!("{}", json!({"counts": counts, "cases": verdicts}));
    Ok(())
}
