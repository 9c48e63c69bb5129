//! Progress bars on a terminal, nothing elsewhere.

use crate::signals;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use limbeck_engine::{
    eval::Observer,
    exec::{CancelToken, ExecError},
    recipe::RunObserver,
    sensitivity::{Cell, MapObserver},
};
use std::io::IsTerminal;

pub struct Watch {
    bar: ProgressBar,
    started: bool,
    /// Signals are heeded, as there is something to keep.
    heeds: bool,
    /// Of what is at work, cancelled when it is to end and has kept its state.
    pub cancel: CancelToken,
    /// Cells of a map before the measured ones.
    pub early: Vec<Cell>,
}

impl Watch {
    pub fn new(quiet: bool) -> Self {
        let visible = !quiet && std::io::stderr().is_terminal();
        let target = if visible {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {percent:>3} %  {eta:>4} left  {msg}")
        {
            bar.set_style(style.progress_chars("━━ "));
        }
        Self {
            bar,
            started: false,
            heeds: false,
            cancel: CancelToken::default(),
            early: Vec::new(),
        }
    }

    fn set(&mut self, done: u64, total: u64, detail: &str) {
        if !self.started {
            self.bar.reset_eta();
            self.started = true;
        }
        self.bar.set_length(total);
        self.bar.set_position(done.min(total));
        self.bar.set_message(detail.to_owned());
    }

    /// A line on standard error, quiet or not: it is no progress.
    #[allow(clippy::print_stderr)] // a command line talks
    pub fn say(&self, words: &str) {
        self.bar.suspend(|| eprintln!("limbeck: {words}"));
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.finish();
    }
}

impl RunObserver for Watch {
    fn progress(&mut self, done: u64, total: u64, detail: &str) {
        self.set(done, total, detail);
    }
    fn note(&mut self, words: &str) {
        self.say(words);
    }
    fn keeps(&mut self, keeps: bool) {
        if self.heeds != keeps {
            self.heeds = keeps;
            signals::heed(keeps);
        }
        if !keeps && signals::came().is_some() {
            self.cancel.cancel();
        }
    }
    fn is_to_end(&self) -> bool {
        self.heeds && signals::came().is_some()
    }
}

impl Observer for Watch {
    fn batch(&mut self, done: u64, total: u64) -> Result<(), ExecError> {
        self.set(done, total, "samples");
        Ok(())
    }
}

impl MapObserver for Watch {
    fn early(&mut self, cells: Vec<Cell>) {
        self.early.extend(cells);
    }
    fn cell(&mut self, cell: Cell, done: usize, total: usize) {
        self.set(done as u64, total as u64, &cell.layer.0);
    }
    fn batch(&mut self) -> Result<(), ExecError> {
        self.bar.tick();
        Ok(())
    }
}
