//! A finished run held against the deployment runtime: the exported file in its folder, on the samples it was judged on.

use super::{
    LOCK_FILE, Lock, MODEL_FILE, PipelineError, RECIPE_FILE, RecipeError, RecipeFile, Session,
    files::sha256, lock::classes_text,
};
use crate::{
    confirm::{self, ConfirmOptions, Confirmation, Simulated},
    data::Dataset,
    eval::Observer,
    exec::CancelToken,
    formats::onnx,
    measure::runtime::{Optimizations, Runtime, RuntimeSearch, adds_in_16_bits},
    target::{Saturation, Target},
};
use std::path::Path;

/// What to ask the runtime about a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeQuestion {
    pub search: RuntimeSearch,
    pub optimizations: Vec<Optimizations>,
    /// Samples of which every quantised tensor is compared; 0: none.
    pub tensor_samples: usize,
    /// Of the runtime; 0: all cores.
    pub threads: usize,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Confirmed {
    pub lock: Lock,
    pub confirmation: Confirmation,
    /// Where the folder is not what the run left, or this machine predicts otherwise than the run did; each in words.
    pub differences: Vec<String>,
}

/// Holds the bytes of an exported file against the runtime; the prediction is that for the recipe's `target`, where its arithmetic is
/// not the file's own.
///
/// # Errors
/// A file that either cannot run, data that does not fit it, cancellation.
pub fn confirm_bytes(
    model: &[u8],
    target: Option<&Target>,
    data: &Dataset,
    options: &ConfirmOptions,
    runtime: &Runtime,
    observer: &mut dyn Observer,
    cancel: &CancelToken,
) -> Result<Confirmation, PipelineError> {
    let graph = onnx::read_bytes(model.to_vec().into())?;
    let mut saturation = target.and_then(|t| Saturation::of(&graph, t));
    let simulated = saturation
        .as_mut()
        .filter(|saturation| saturation.target().is_some())
        .zip(target)
        .map(|(taps, target)| Simulated {
            name: &target.name,
            taps,
            here: adds_in_16_bits(),
        });
    let confirmed = confirm::confirm(model, data, options, runtime, simulated, observer, cancel);
    confirmed.map_err(Into::into)
}

/// Runs the exported model in `folder` in the runtime, on the very samples of its lock, and compares. `task` stands in for the
/// recipe's own where given. The original model is needed only where the data have no labels.
///
/// # Errors
/// Files that are missing or broken, no runtime, a model that it refuses, cancellation.
pub fn confirm(
    folder: &Path,
    task: Option<&Path>,
    question: &RuntimeQuestion,
    observer: &mut dyn Observer,
    cancel: &CancelToken,
) -> Result<Confirmed, PipelineError> {
    let lock = Lock::read(&folder.join(LOCK_FILE))?;
    let file = RecipeFile::read(&folder.join(RECIPE_FILE))?;
    // Before the data is read: without a runtime there is nothing to do.
    let runtime = Runtime::find(&question.search)?;
    let task = match task {
        Some(task) => task.to_owned(),
        None => file.task_path()?,
    };
    let mut data = Dataset::open(&task)?;
    let mut differences = Vec::new();
    if !data.has_labels(lock.split) {
        // Its classes stand for the labels.
        let original = Session::open(&file.model_path()?, None)?;
        let found = original.model_sha256(cancel)?;
        if found != lock.model_sha256 {
            differences.push(format!(
                "the original, whose classes stand for the labels, is not that of the run: SHA-256 locked {}, found {found}",
                lock.model_sha256
            ));
        }
        data = data.labelled_by(&original.graph);
    }
    let path = folder.join(MODEL_FILE);
    let model = std::fs::read(&path).map_err(|e| {
        PipelineError::Io(std::io::Error::new(
            e.kind(),
            format!("{} cannot be read: {e}", path.display()),
        ))
    })?;
    let found = sha256(&model);
    if found != lock.exported_sha256 {
        differences.push(format!(
            "{} was changed after the run: locked {}, on disk {found}",
            path.display(),
            lock.exported_sha256
        ));
    }
    if data.info().sha256 != lock.data_sha256 {
        differences.push(format!(
            "the data are not those of the run: SHA-256 locked {}, found {}",
            lock.data_sha256,
            data.info().sha256
        ));
    }
    let options = ConfirmOptions {
        split: lock.split,
        limit: lock.limit,
        optimizations: question.optimizations.clone(),
        tensor_samples: question.tensor_samples,
        threads: question.threads,
    };
    let target = file
        .recipe
        .target()
        .map_err(|e| RecipeError::new(e.to_string()).file(&file.path))?;
    let target = target.as_deref();
    let confirmation = confirm_bytes(&model, target, &data, &options, &runtime, observer, cancel)?;
    let predicted = match &confirmation.target {
        Some(target) => &target.predictions,
        None => &confirmation.predictions,
    };
    let text = classes_text(predicted);
    if differences.is_empty() && sha256(text.as_bytes()) != lock.predictions_sha256 {
        differences.push(
            "this machine predicts other labels than the run did: carry it out again here (`limbeck verify` without --runtime says \
             what differs)"
                .to_owned(),
        );
    }
    Ok(Confirmed {
        lock,
        confirmation,
        differences,
    })
}
