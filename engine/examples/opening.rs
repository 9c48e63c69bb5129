//! What opening a large model costs: a model with external data (1 GB, sparse) is made in a temporary folder, opened through the
//! engine thread, and deleted again. Prints times and memory as each event arrives:
//! `cargo run --release -p limbeck_engine --example opening [GB]`

#[path = "../tests/big/mod.rs"]
mod big;

use limbeck_engine::{
    jobs::{Command, Engine, Event, JobId},
    sensitivity::Candidate,
};
use std::{sync::Arc, time::Instant};

#[allow(clippy::print_stdout, clippy::print_stderr)] // a program
fn main() {
    let gigabytes: f64 = match std::env::args().nth(1).map(|a| a.parse()) {
        None => 1.0,
        Some(Ok(size)) => size,
        Some(Err(_)) => return eprintln!("usage: opening [GB]: a number such as 1 or 0.5"),
    };
    let layers = (gigabytes * 1e9 / big::LAYER_BYTES as f64).ceil().max(1.0) as usize;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [model, data] = big::write(folder.path(), layers, |_| None);
    let size = std::fs::metadata(&data).expect("just written").len();
    println!(
        "{layers} layers, {:.2} GB beside the model",
        size as f64 / 1e9
    );

    let engine = Engine::start(Arc::new(|| {}));
    let memory = |line| memory(line).unwrap_or(f64::NAN);
    let before = memory("VmRSS");
    println!("{:>24} {:>8} {:>8} {:>8}", "", "ms", "RSS +MB", "peak +MB");
    let started = Instant::now();
    let line = |what: &str| {
        println!(
            "{what:>24} {:8.0} {:8.0} {:8.0}",
            started.elapsed().as_secs_f64() * 1e3,
            memory("VmRSS") - before,
            memory("VmHWM") - before
        );
    };
    engine
        .commands
        .send(Command::Open {
            job: JobId(1),
            model,
            task: None,
        })
        .expect("the engine listens");
    let (mut hashed, mut finished) = (false, false);
    let (mut layers, mut told) = (0, 0);
    while !(hashed && finished) {
        match engine.events.recv().expect("the engine lives") {
            Event::Opened { info, .. } => {
                layers = info.layers.len();
                line(&format!("{layers} layers listed"));
            }
            Event::Cells { cells, .. } => {
                told += cells.len();
                if told == layers * Candidate::ALL.len() {
                    line(&format!("tier 0, {told} cells"));
                }
            }
            Event::Hashed { .. } => {
                hashed = true;
                line("hash known");
            }
            Event::Finished { .. } => {
                finished = true;
                line("weights checked");
            }
            Event::Failed { message, .. } => return eprintln!("{message}"),
            _ => {}
        }
    }
}

/// A line of /proc/self/status, in MB; `None` on other systems.
fn memory(line: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let found = status
        .lines()
        .find_map(|l| l.strip_prefix(line)?.strip_prefix(':'))?;
    let kilobytes: f64 = found.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024.0 / 1e6)
}
