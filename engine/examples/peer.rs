//! Limbeck's side of the comparisons in `benches/peers/`: commands on standard input, one line each, answers in JSON lines.
//!
//! `load NAME MODEL C H W`, `forward NAME BATCH` (seconds of one run), `output NAME BATCH` (the first outputs), `train NAME BATCH`
//! (seconds of one step: forward, backward, SGD with momentum; with a word behind it batch norms take the mini-batch's statistics), `gemm SIZE` (GFLOP/s of the best matrix product).
//! Inputs are a fixed pattern that the other side computes too.

use candle_core::{Device, Tensor};
use limbeck_engine::{
    exec::{CancelToken, Mode, NoTaps, Program, pool},
    formats::onnx,
};
use std::{
    collections::BTreeMap,
    error::Error,
    io::{BufRead, Write},
    path::Path,
    time::Instant,
};

struct Loaded {
    inference: Program,
    training: Option<Program>,
    sample: Vec<usize>,
    classes: usize,
}

/// The i-th float of an input: a fixed pattern in 0..1.
fn pattern(i: usize) -> f32 {
    ((i * 7919 + i / 13 * 104_729) % 1021) as f32 / 1021.0
}

fn input(batch: usize, sample: &[usize]) -> Result<Tensor, Box<dyn Error>> {
    let count = batch * sample.iter().product::<usize>();
    let shape = [&[batch], sample].concat();
    Ok(Tensor::from_vec(
        (0..count).map(pattern).collect::<Vec<_>>(),
        shape,
        &Device::Cpu,
    )?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut models: BTreeMap<String, Loaded> = BTreeMap::new();
    let mut velocity: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["load", name, path, sample @ ..] => {
                let graph = onnx::read(Path::new(path))?;
                let sample = sample
                    .iter()
                    .map(|s| s.parse())
                    .collect::<Result<Vec<usize>, _>>()?;
                let inference = Program::compile(&graph, Mode::Inference)?;
                let out =
                    inference.run(&[input(1, &sample)?], &mut NoTaps, &CancelToken::default())?;
                let classes = out[0].elem_count();
                models.insert(
                    (*name).to_owned(),
                    Loaded {
                        inference,
                        training: Program::compile(&graph, Mode::Training).ok(),
                        sample,
                        classes,
                    },
                );
                "{}".to_owned()
            }
            ["forward", name, batch] => {
                let m = &models[*name];
                let x = input(batch.parse()?, &m.sample)?;
                let began = Instant::now();
                m.inference
                    .run(&[x], &mut NoTaps, &CancelToken::default())?;
                format!("{{\"seconds\": {}}}", began.elapsed().as_secs_f64())
            }
            ["output", name, batch] => {
                let m = &models[*name];
                let x = input(batch.parse()?, &m.sample)?;
                let out = m
                    .inference
                    .run(&[x], &mut NoTaps, &CancelToken::default())?;
                format!(
                    "{{\"output\": {:?}}}",
                    out[0].flatten_all()?.to_vec1::<f32>()?
                )
            }
            ["train", name, batch, own @ ..] => {
                let m = models.get_mut(*name).ok_or("not loaded")?;
                let batch: usize = batch.parse()?;
                let x = input(batch, &m.sample)?;
                let classes = m.classes;
                let program = m.training.as_mut().ok_or("not trainable")?;
                program.set_batch_statistics(!own.is_empty());
                let began = Instant::now();
                let loss = |rows: std::ops::Range<usize>, out: &[Tensor]| {
                    let labels: Vec<u32> = rows.map(|i| (i % classes) as u32).collect();
                    let n = labels.len() as f64;
                    let labels = Tensor::from_vec(labels, n as usize, &Device::Cpu)?;
                    candle_nn::loss::cross_entropy(&out[0], &labels)? * (n / batch as f64)
                };
                let gradients = program.gradients(&x, &loss, &CancelToken::default())?;
                program.follow(&gradients.statistics, 0.9)?;
                let state = velocity.entry((*name).to_owned()).or_default();
                pool().install(|| -> candle_core::Result<()> {
                    for (i, var) in program.parameters().values().enumerate() {
                        let Some(g) = gradients.store.get(var) else {
                            continue;
                        };
                        let next = match state.get(i) {
                            Some(v) => ((v * 0.9)? + g)?,
                            None => g.clone(),
                        };
                        var.set(&(var.as_tensor() - (&next * 1e-4)?)?.detach())?;
                        match state.get_mut(i) {
                            Some(v) => *v = next,
                            None => state.push(next),
                        }
                    }
                    Ok(())
                })?;
                format!(
                    "{{\"seconds\": {}, \"loss\": {}}}",
                    began.elapsed().as_secs_f64(),
                    gradients.loss
                )
            }
            ["gemm", size] => {
                let n: usize = size.parse()?;
                let a = input(n, &[n])?;
                let b = input(n, &[n])?;
                let began = Instant::now();
                pool().install(|| a.matmul(&b))?;
                let flop = 2.0 * (n as f64).powi(3);
                format!(
                    "{{\"gflops\": {}}}",
                    flop / began.elapsed().as_secs_f64() / 1e9
                )
            }
            _ => format!("{{\"error\": {line:?}}}"),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
