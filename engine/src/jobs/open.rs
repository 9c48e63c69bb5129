//! Opening a model: the layers at once, then the weight-only map, then the original's accuracy.

use super::{
    Event, ModelInfo,
    worker::{JobContext, Worker},
};
use crate::{
    compress::{FoldBatchNorm, Model, Pass, PassContext, QuantScheme},
    data::SplitName,
    exec::CancelToken,
    graph::Graph,
    measure::{self, Bytes},
    recipe::{PipelineError, Recipe, Session, shape_words, task_beside},
    search, sensitivity,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

impl Worker {
    pub(super) fn open(
        &self,
        context: &JobContext,
        model: &Path,
        task: Option<PathBuf>,
    ) -> Result<(), PipelineError> {
        let file = model.file_name().unwrap_or(model.as_os_str());
        self.start(context, &format!("Open {}", file.display()));
        let mut warnings = Vec::new();
        let task = task.or_else(|| task_beside(model));
        let session = match Session::open(model, task.as_deref()) {
            Ok(session) => session,
            // The model is worth showing without its data.
            Err(PipelineError::Data(e)) => {
                warnings.push(format!(
                    "The data could not be opened, only weights are shown: {e}"
                ));
                Session::open(model, None)?
            }
            Err(e) => return Err(e),
        };
        self.present(context, session, warnings)
    }

    pub(super) fn open_task(&self, context: &JobContext, task: &Path) -> Result<(), PipelineError> {
        let file = task.file_name().unwrap_or(task.as_os_str());
        self.start(context, &format!("Open {}", file.display()));
        let session = self.session()?.with_task(task)?;
        self.present(context, session, Vec::new())
    }

    /// Shows a session: information, proxy cells, baseline point.
    fn present(
        &self,
        context: &JobContext,
        session: Session,
        mut warnings: Vec<String>,
    ) -> Result<(), PipelineError> {
        if context.cancel.is_cancelled() {
            return Err(PipelineError::Cancelled);
        }
        warnings.extend(session.obstacles.iter().cloned());
        let info = info(&session, warnings)?;
        let session = Arc::new(session);
        self.set_session(context, session.clone());
        self.emitter().send(Event::Opened {
            job: context.job,
            info: Box::new(info),
        });
        let cells = sensitivity::proxy(&session.graph, &QuantScheme::default());
        self.emitter().send(Event::Cells {
            job: context.job,
            cells,
        });
        if session.data.is_none() || session.runnable().is_err() {
            return Ok(());
        }
        // A task may leave its search split out; the window then has no baseline on it and says so.
        if let Err(e) = session.samples(SplitName::Search, None) {
            self.emitter().send(Event::Log {
                message: e.to_string(),
            });
            return Ok(());
        }
        let recipe = Recipe::baseline(
            session.model_path.clone(),
            session.task_path.clone().unwrap_or_default(),
        );
        self.run(context, &recipe, SplitName::Search, None)
    }
}

/// What a window or a command line says of an opened model.
pub fn info(session: &Session, warnings: Vec<String>) -> Result<ModelInfo, PipelineError> {
    let graph = &session.graph;
    let sizes = measure::sizes(graph)?;
    let name = session
        .model_path
        .file_stem()
        .map_or_else(|| graph.name.clone(), |s| s.to_string_lossy().into_owned());
    Ok(ModelInfo {
        name,
        path: session.model_path.clone(),
        task_path: session.task_path.clone(),
        sha256: session.model_sha256.clone(),
        layers: session.layers.clone(),
        overhead: search::overhead(&session.layers, folded_size(graph)?),
        sizes,
        inputs: ports(graph, &graph.inputs),
        outputs: ports(graph, &graph.outputs),
        opset: session.opset.to_string(),
        data: session.data.as_ref().map(|d| d.info().clone()),
        warnings,
        runnable: session.obstacles.is_empty(),
    })
}

/// Bytes of the file after batch norms are folded, as every plan does first.
fn folded_size(graph: &Graph) -> Result<Bytes, PipelineError> {
    let model = Model::new(graph.clone());
    let context = PassContext {
        data: None,
        cancel: &CancelToken::default(),
        seed: 0,
    };
    // A model with broken weights cannot be folded, and is shown all the same: its obstacles say what is wrong.
    match FoldBatchNorm.apply(model, &context) {
        Ok((folded, _)) => Ok(measure::sizes(&folded.graph)?.stored),
        Err(_) => Ok(measure::sizes(graph)?.stored),
    }
}

fn ports(graph: &Graph, values: &[crate::graph::ValueId]) -> Vec<(String, String)> {
    values
        .iter()
        .map(|id| {
            let value = graph.value(*id);
            let shape = value.shape.as_deref().map_or("?".into(), shape_words);
            let element = value.element.map_or("?", |e| e.name());
            (value.name.clone(), format!("{shape} {element}"))
        })
        .collect()
}
