//! Exported files held against a deployment runtime, as a batch job.

use super::{
    Event, RuntimeFound,
    emit::Ticker,
    worker::{JobContext, Worker},
};
use crate::{
    confirm::ConfirmOptions,
    data::SplitName,
    eval::Observer,
    exec::{CancelToken, ExecError},
    measure::runtime::{Optimizations, Runtime, RuntimeError, RuntimeSearch},
    recipe::{self, PipelineError, Recipe, RecipeError},
};
use std::path::PathBuf;

/// Samples of which every quantised tensor is compared.
const TENSOR_SAMPLES: usize = 64;

impl Worker {
    /// Finds the runtime and says what came of it.
    pub(super) fn runtime(
        &self,
        context: &JobContext,
        library: Option<PathBuf>,
    ) -> Result<Runtime, RuntimeError> {
        let search = RuntimeSearch {
            given: None,
            setting: library,
        };
        let found = Runtime::find(&search);
        self.emitter().send(Event::Runtime {
            job: context.job,
            found: match &found {
                Ok(runtime) => Ok(RuntimeFound {
                    version: runtime.version().to_owned(),
                    library: runtime.library().to_owned(),
                    found_by: runtime.found_by().to_owned(),
                }),
                Err(why) => Err(why.to_string()),
            },
        });
        found
    }

    pub(super) fn confirm(
        &self,
        context: &JobContext,
        recipe: &Recipe,
        split: SplitName,
        limit: Option<usize>,
        library: Option<PathBuf>,
    ) -> Result<(), PipelineError> {
        self.start(context, "Confirm in ONNX Runtime");
        let session = self.session()?;
        let data = session.runnable()?;
        // Before anything is built: without a runtime there is nothing to do.
        let runtime = self.runtime(context, library)?;
        let bytes = self.bytes(context, &session, recipe)?;
        let target = recipe
            .target()
            .map_err(|e| RecipeError::new(e.to_string()))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let options = ConfirmOptions {
            split,
            limit,
            optimizations: vec![Optimizations::Off, Optimizations::On],
            tensor_samples: TENSOR_SAMPLES,
            // One core is the window's.
            threads: cores.saturating_sub(1).max(1),
        };
        let mut watch = Confirming {
            worker: self,
            context,
            ticker: Ticker::new(context.job),
        };
        let cancel: &CancelToken = &context.cancel;
        let target = target.as_deref();
        let confirmation =
            recipe::confirm_bytes(&bytes, target, data, &options, &runtime, &mut watch, cancel)?;
        self.emitter().send(Event::Confirmed {
            job: context.job,
            model_sha256: recipe::sha256(&bytes),
            pair: Box::new(confirmation.pair()),
        });
        Ok(())
    }
}

/// Passes progress on and lets interactive work in between.
struct Confirming<'a> {
    worker: &'a Worker,
    context: &'a JobContext,
    ticker: Ticker,
}

impl Observer for Confirming<'_> {
    fn batch(&mut self, done: u64, total: u64) -> Result<(), ExecError> {
        let emitter = self.worker.emitter();
        self.ticker
            .progress(emitter, done, total, &format!("{done} of {total} samples"));
        self.worker.poll(self.context, Some(&mut self.ticker));
        match self.context.cancel.is_cancelled() {
            true => Err(ExecError::Cancelled),
            false => Ok(()),
        }
    }
}
