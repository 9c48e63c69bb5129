//! The workbench's entry: reads the arguments, opens the window.

#![allow(clippy::print_stderr)] // a program without a window has only standard error to say so

use clap::Parser;
use limbeck_app::{
    app::{APP_ID, Start, Window},
    theme,
};
use std::{path::PathBuf, process::ExitCode};

/// Makes neural networks small: pruning, precision and distillation in one per-layer plan, measured while you watch.
#[derive(Debug, Parser)]
#[command(name = "limbeck-workbench", version)]
struct Arguments {
    /// Model (.onnx), project (.limbeck.ron) or recipe (.ron); without it the bundled sample opens
    path: Option<PathBuf>,
    /// Labelled data for the model: a task.ron
    #[arg(long, value_name = "TASK", requires = "path")]
    task: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let start = Start {
        path: arguments.path,
        task: arguments.task,
    };
    let options = eframe::NativeOptions {
        renderer: eframe::Renderer::Glow,
        run_and_return: true,
        viewport: egui::ViewportBuilder::default()
            .with_app_id(APP_ID)
            .with_title("Limbeck")
            .with_icon(theme::icon())
            .with_inner_size([1600.0, 1000.0])
            .with_min_inner_size([1024.0, 640.0])
            .with_clamp_size_to_monitor_size(true)
            .with_drag_and_drop(true),
        ..Default::default()
    };
    let outcome = eframe::run_native(
        APP_ID,
        options,
        Box::new(move |creation| Ok(Box::new(Window::new(creation, start)))),
    );
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("limbeck-workbench: the window could not be opened: {error}");
            eprintln!(
                "On a machine without a display use the headless command instead: `limbeck --help` (from the sources: cargo run --release -p limbeck_engine --bin limbeck -- --help)"
            );
            ExitCode::FAILURE
        }
    }
}
