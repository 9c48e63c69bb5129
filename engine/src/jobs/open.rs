//! Opening a model: the layers at once, then the weight-only map, then the original's accuracy.

use super::{
    Event, ModelInfo,
    worker::{JobContext, Worker},
};
use crate::{
    compress::{self, ChannelGroups, QuantScheme, folded_outline},
    data::SplitName,
    exec::ExecError,
    graph::Graph,
    measure::{self, Sizes},
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
        warnings.extend(session.known_obstacles());
        let sizes = match session.is_large() {
            true => measure::dense_sizes(&session.graph)?,
            false => measure::sizes(&session.graph)?,
        };
        let info = describe(&session, warnings, sizes)?;
        let unhashed = info.sha256.is_none();
        let session = Arc::new(session);
        self.set_session(context, session.clone());
        self.emitter().send(Event::Opened {
            job: context.job,
            info: Box::new(info),
        });
        if unhashed {
            let (emitter, job) = (self.emitter().clone(), context.job);
            session.when_hashed(move |sha256| emitter.send(Event::Hashed { job, sha256 }));
        }
        sensitivity::proxy_by_parts(&session.graph, &QuantScheme::default(), &mut |cells| {
            self.emitter().send(Event::Cells {
                job: context.job,
                cells,
            });
            self.between(context)
        })?;
        if session.is_large()
            && let Some(warning) = session.broken_weights_while(|| self.between(context))?
        {
            self.emitter().send(Event::Unsound {
                job: context.job,
                warning: warning.to_owned(),
            });
        }
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

    /// Between parts of a model's weights: what may overtake does, and the job ends where it is cancelled.
    fn between(&self, context: &JobContext) -> Result<(), ExecError> {
        self.poll(context, None);
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled);
        }
        Ok(())
    }
}

/// What a command line says of an opened model.
///
/// # Errors
/// A graph that cannot be written.
pub fn info(session: &Session, warnings: Vec<String>) -> Result<ModelInfo, PipelineError> {
    describe(session, warnings, measure::sizes(&session.graph)?)
}

fn describe(
    session: &Session,
    warnings: Vec<String>,
    sizes: Sizes,
) -> Result<ModelInfo, PipelineError> {
    let graph = &session.graph;
    let name = session
        .model_path
        .file_stem()
        .map_or_else(|| graph.name.clone(), |s| s.to_string_lossy().into_owned());
    // Plans fold batch norms first.
    let folded = measure::stored(&folded_outline(graph))?;
    Ok(ModelInfo {
        name,
        path: session.model_path.clone(),
        task_path: session.task_path.clone(),
        sha256: session.known_sha256(),
        layers: session.layers.clone(),
        channels: ChannelGroups::of(graph),
        heads: ChannelGroups::of_heads(graph),
        blocks: compress::blocks(graph),
        overhead: search::overhead(&session.layers, folded),
        sizes,
        inputs: ports(graph, &graph.inputs),
        outputs: ports(graph, &graph.outputs),
        opset: session.opset.to_string(),
        data: session.data.as_ref().map(|d| d.info().clone()),
        warnings,
        runnable: session.known_obstacles().is_empty(),
    })
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
