//! `limbeck`: the engine without a display. Arguments and printing only; everything else is the library's.

#![allow(clippy::print_stderr)] // a command line talks

mod args;
mod commands;
mod confirm;
mod json;
mod signals;
mod start;
mod text;
mod watch;

use args::{Arguments, Verb};
use clap::Parser;
use limbeck_engine::exec;
use std::{
    io::{self, Write},
    process::ExitCode,
};

/// What a command has to say.
pub struct Report {
    pub text: String,
    pub json: serde_json::Value,
    pub code: u8,
}

/// Done.
pub const DONE: u8 = 0;
/// The work failed, or a replay differs.
pub const FAILED: u8 = 1;
/// Bad usage or input (clap's own code for usage).
pub const BAD_INPUT: u8 = 2;
/// A goal was missed.
pub const GOAL_MISSED: u8 = 3;

/// Why a command stopped.
pub struct Stop {
    pub message: String,
    pub code: u8,
}

impl From<limbeck_engine::recipe::PipelineError> for Stop {
    fn from(e: limbeck_engine::recipe::PipelineError) -> Self {
        Self {
            code: if e.is_input() { BAD_INPUT } else { FAILED },
            message: e.to_string(),
        }
    }
}

impl From<limbeck_engine::recipe::RecipeError> for Stop {
    fn from(e: limbeck_engine::recipe::RecipeError) -> Self {
        Self {
            code: BAD_INPUT,
            message: e.to_string(),
        }
    }
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        Self {
            code: FAILED,
            message: e.to_string(),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(threads) = arguments.threads {
        exec::set_threads(threads);
    }
    let watch = watch::Watch::new(arguments.quiet);
    let result = match &arguments.verb {
        Verb::Inspect(a) => commands::inspect(a),
        Verb::Eval(a) => commands::eval(a, watch),
        Verb::Sensitivity(a) => commands::sensitivity(a, watch),
        Verb::Run(a) => commands::run(a, watch),
        Verb::Export(a) => commands::export(a, watch),
        Verb::Verify(a) if a.runtime.is_some() => {
            confirm::confirm(a, arguments.threads.unwrap_or(0), watch)
        }
        Verb::Verify(a) => commands::verify(a, watch),
    };
    let (out, code) = match result {
        Ok(report) if arguments.json => (json_text(&report.json), report.code),
        Ok(report) => (report.text, report.code),
        Err(stop) => {
            eprintln!("limbeck: {}", stop.message);
            let out = if arguments.json {
                json_text(&serde_json::json!({ "error": stop.message, "exit_code": stop.code }))
            } else {
                String::new()
            };
            (out, stop.code)
        }
    };
    // A reader that has gone away (`| head`) is not an error of ours.
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(out.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("limbeck: cannot write to standard output: {e}");
            ExitCode::from(FAILED)
        }
        _ => ExitCode::from(code),
    }
}

fn json_text(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}
