//! An opened model with its data, and what is worth keeping between runs: baselines and calibration ranges.

use super::{PipelineError, Recipe, RecipeError, StudentNetwork, identity::Identity};
use crate::{
    compress::{self, ActivationStats, Model, Ranges},
    data::{Dataset, SplitName},
    eval::{self, Evaluation, Observer},
    exec::{CancelToken, Mode, Program},
    formats::onnx,
    graph::{Dim, Graph, LayerId},
    search::LayerFacts,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

/// An opened model with its data. Shared by desktop and command line.
pub struct Session {
    pub model_path: PathBuf,
    pub task_path: Option<PathBuf>,
    /// Version of the standard operator set that the file imports.
    pub opset: u32,
    pub graph: Graph,
    /// In the graph's order.
    pub layers: Vec<LayerFacts>,
    pub data: Option<Dataset>,
    /// What recipes with a student from a file start from; see [`Session::with_student`].
    student: Option<Arc<StudentNetwork>>,
    identity: Arc<Identity>,
    /// Its weights are looked at only when they are needed.
    large: bool,
    /// What of the structure keeps the model from being run.
    structural: Vec<String>,
    /// What of the weights does, once they were looked at.
    broken: OnceLock<Option<String>>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// The original's result on whole splits, or on the first samples of one.
    baselines: BTreeMap<SplitName, Arc<Evaluation>>,
    /// By the hash of everything upstream; the last few.
    ranges: Vec<(String, Arc<Ranges>)>,
    /// What the original's layers read, by samples and block of layers; the last few.
    activations: Vec<((usize, usize), Arc<ActivationStats>)>,
}

/// Calibrations kept: a handful of schemes that one switches between.
const KEPT_RANGES: usize = 8;

/// Layers whose inputs are counted in one go, and blocks of them kept: 64 kB a layer.
const BLOCK: usize = 64;
const KEPT_BLOCKS: usize = 4;

/// Files of more bytes are not read when they are opened.
const LARGE: u64 = 64 << 20;

/// A `task.ron` beside the model, if there is one.
pub fn task_beside(model: &Path) -> Option<PathBuf> {
    let task = model.with_file_name("task.ron");
    task.is_file().then_some(task)
}

impl Session {
    /// Opens a model, and the data where a task is given. A model that cannot run still opens: see [`Session::obstacles`].
    ///
    /// # Errors
    /// A file that is missing, unreadable or broken.
    pub fn open(model: &Path, task: Option<&Path>) -> Result<Self, PipelineError> {
        let file = onnx::read_model(model)?;
        let large = file.size_bytes > LARGE;
        let identity = Identity::of(model, &file.data_files, large).map_err(PipelineError::Io)?;
        let data = task.map(Dataset::open).transpose()?;
        let data = data.map(|data| data.labelled_by(&file.graph));
        let session = Self {
            layers: facts(&file.graph),
            model_path: model.to_owned(),
            task_path: task.map(Path::to_owned),
            identity: Arc::new(identity),
            large,
            opset: file.opset,
            structural: structural_obstacles(&file.graph, data.as_ref()),
            broken: OnceLock::new(),
            graph: file.graph,
            data,
            student: None,
            cache: Mutex::default(),
        };
        if !large {
            session.broken_weights();
        }
        Ok(session)
    }

    /// The same model on other data; what is known of the old data goes.
    ///
    /// # Errors
    /// A task that is missing, unreadable or broken.
    pub fn with_task(&self, task: &Path) -> Result<Self, PipelineError> {
        let data = Dataset::open(task)?.labelled_by(&self.graph);
        Ok(Self {
            layers: self.layers.clone(),
            model_path: self.model_path.clone(),
            task_path: Some(task.to_owned()),
            identity: self.identity.clone(),
            large: self.large,
            opset: self.opset,
            structural: structural_obstacles(&self.graph, Some(&data)),
            broken: self.broken.clone(),
            graph: self.graph.clone(),
            data: Some(data),
            student: self.student.clone(),
            cache: Mutex::default(),
        })
    }

    /// Opens the network that a recipe gives as student, for the model's place.
    ///
    /// # Errors
    /// A file that is missing or broken, a network with other inputs or outputs than the model's, or one that cannot run.
    pub fn with_student(mut self, file: &Path) -> Result<Self, PipelineError> {
        self.student = Some(Arc::new(StudentNetwork::open(file, &self)?));
        // Those of another student would be told by the same steps.
        self.cache().ranges.clear();
        Ok(self)
    }

    /// The network that the recipe gives as student; `None` where it gives none.
    ///
    /// # Errors
    /// A recipe that gives one where none was opened.
    pub fn student(&self, recipe: &Recipe) -> Result<Option<&StudentNetwork>, PipelineError> {
        match (recipe.student_file(), &self.student) {
            (None, _) => Ok(None),
            (Some(_), Some(student)) => Ok(Some(student)),
            (Some(file), None) => Err(PipelineError::NotRunnable(format!(
                "Student: the recipe gives {} as student, which was not opened with the model: carry the recipe out by `limbeck run`",
                file.display()
            ))),
        }
    }

    /// The layers that the recipe's rules speak of: the student's where it gives one, else the model's.
    ///
    /// # Errors
    /// As [`Session::student`].
    pub fn layers_of(&self, recipe: &Recipe) -> Result<&[LayerFacts], PipelineError> {
        let student = self.student(recipe)?;
        Ok(student.map_or(&self.layers, |s| &s.layers))
    }

    /// The graph that those are of.
    ///
    /// # Errors
    /// As [`Session::student`].
    pub(super) fn graph_of(&self, recipe: &Recipe) -> Result<&Graph, PipelineError> {
        Ok(self.student(recipe)?.map_or(&self.graph, |s| &s.graph))
    }

    /// SHA-256 of the student's file, where the recipe gives one, hex.
    ///
    /// # Errors
    /// As [`Session::student`].
    pub fn student_sha256(&self, recipe: &Recipe) -> Result<Option<String>, PipelineError> {
        Ok(self.student(recipe)?.map(|s| s.sha256.clone()))
    }

    /// Whether the files are so large that opening them looks at no weight: the hash is taken in the background, and zeros and
    /// broken weights are looked for when they matter.
    pub fn is_large(&self) -> bool {
        self.large
    }

    /// SHA-256 of the model file, hex; where weights lie in files beside it, that of all their hashes, a line each. Waits
    /// for it where a large model is still being read.
    ///
    /// # Errors
    /// A file that cannot be read any more, cancellation.
    pub fn model_sha256(&self, cancel: &CancelToken) -> Result<String, PipelineError> {
        match self.identity.wait(cancel) {
            Ok(hash) => Ok(hash),
            Err(_) if cancel.is_cancelled() => Err(PipelineError::Cancelled),
            Err(e) => Err(PipelineError::Io(e)),
        }
    }

    /// The same if it is known by now.
    pub fn known_sha256(&self) -> Option<String> {
        self.identity.known()
    }

    /// Calls `told` with the hash, or with why there is none, once it is known: now, or from the thread that reads. Not called
    /// where the session goes first.
    pub fn when_hashed(&self, told: impl FnOnce(Result<String, String>) + Send + 'static) {
        self.identity.when_known(Box::new(told));
    }

    /// What keeps the model from being run on the data, and what to do, in words; empty: all is well. Looks at the weights.
    pub fn obstacles(&self) -> Vec<String> {
        self.broken_weights();
        self.known_obstacles()
    }

    /// As [`Session::obstacles`], as far as it is known without looking at the weights of a large model.
    pub fn known_obstacles(&self) -> Vec<String> {
        let broken = self.broken.get().cloned().flatten();
        self.structural.iter().cloned().chain(broken).collect()
    }

    /// What is wrong with the weights, looked for once.
    pub fn broken_weights(&self) -> Option<&str> {
        self.broken
            .get_or_init(|| broken_words(&self.graph.non_finite_weights()))
            .as_deref()
    }

    /// As [`Session::broken_weights`]; `between` is called after every constant, so that others need not wait.
    ///
    /// # Errors
    /// What `between` returns: nothing is known then, and it will be looked for again.
    pub fn broken_weights_while<E>(
        &self,
        between: impl FnMut() -> Result<(), E>,
    ) -> Result<Option<&str>, E> {
        if self.broken.get().is_none() {
            let found = broken_words(&self.graph.non_finite_weights_while(between)?);
            // Somebody else may have found the same meanwhile.
            let _ = self.broken.set(found);
        }
        Ok(self.broken_weights())
    }

    /// The data, or an error that says that there is none and what to do.
    ///
    /// # Errors
    /// No data, or a model that cannot run on it.
    pub fn runnable(&self) -> Result<&Dataset, PipelineError> {
        self.runnable_to("measure on")
    }

    /// As [`Session::runnable`]; the error says what data is wanted for, such as `measure on`.
    ///
    /// # Errors
    /// No data, or a model that cannot run on it.
    pub(super) fn runnable_to(&self, purpose: &str) -> Result<&Dataset, PipelineError> {
        let obstacles = self.obstacles();
        if !obstacles.is_empty() {
            return Err(PipelineError::NotRunnable(obstacles.join(" ")));
        }
        self.data.as_ref().ok_or_else(|| {
            PipelineError::NotRunnable(format!(
                "{} was opened without data: name a task.ron to {purpose}",
                self.model_path.display()
            ))
        })
    }

    /// SHA-256 of task and data, hex; empty without data.
    pub fn data_sha256(&self) -> &str {
        self.data.as_ref().map_or("", |d| &d.info().sha256)
    }

    /// The original's result on the first `limit` samples of a split; evaluated once.
    ///
    /// # Errors
    /// No data, an empty split, a model that cannot run, cancellation.
    pub fn baseline(
        &self,
        split: SplitName,
        limit: Option<usize>,
        observer: &mut dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Arc<Evaluation>, PipelineError> {
        let data = self.runnable()?;
        let wanted = self.samples(split, limit)?;
        let known = self.cache().baselines.get(&split).cloned();
        if let Some(known) = known
            && known.n as usize >= wanted
        {
            return Ok(first(&known, wanted));
        }
        let program = Program::compile(&self.graph, Mode::Inference)?;
        let result = Arc::new(eval::evaluate(
            &program, data, split, limit, observer, cancel,
        )?);
        // A job that overtook this one may have stored a longer one meanwhile.
        let mut cache = self.cache();
        match cache.baselines.get(&split) {
            Some(other) if other.n >= result.n => {}
            _ => {
                cache.baselines.insert(split, result.clone());
            }
        }
        Ok(result)
    }

    /// Samples that an evaluation will judge.
    ///
    /// # Errors
    /// No data, or an empty split.
    pub fn samples(&self, split: SplitName, limit: Option<usize>) -> Result<usize, PipelineError> {
        let all = self.runnable()?.len(split);
        let wanted = limit.map_or(all, |l| l.min(all));
        if wanted == 0 {
            return Err(PipelineError::NotRunnable(format!(
                "the {} split of {} is empty (or the limit is 0): there is nothing to measure on",
                split,
                self.task_path
                    .as_deref()
                    .unwrap_or(Path::new("the task"))
                    .display()
            )));
        }
        Ok(wanted)
    }

    /// Ranges under `key`, taken by `calibrate` where they are not known.
    pub(super) fn ranges(
        &self,
        key: &str,
        calibrate: impl FnOnce() -> Result<Ranges, PipelineError>,
    ) -> Result<Arc<Ranges>, PipelineError> {
        let known = self
            .cache()
            .ranges
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, r)| r.clone());
        if let Some(known) = known {
            return Ok(known);
        }
        let fresh = Arc::new(calibrate()?);
        let mut cache = self.cache();
        if cache.ranges.len() >= KEPT_RANGES {
            cache.ranges.remove(0);
        }
        cache.ranges.push((key.to_owned(), fresh.clone()));
        Ok(fresh)
    }

    /// What the original's `layer` reads over the first `samples` of the calibration split, with what the layers near it do: looking
    /// at the next one costs nothing. `begin` is called where they have to be counted first.
    ///
    /// # Errors
    /// No data, an unknown layer, and those of [`compress::observe`].
    pub fn activations(
        &self,
        layer: &LayerId,
        samples: usize,
        begin: impl FnOnce(),
        cancel: &CancelToken,
    ) -> Result<Arc<ActivationStats>, PipelineError> {
        let data = self.data.as_ref().ok_or_else(|| {
            PipelineError::NotRunnable("what a layer reads is counted on data: open a task".into())
        })?;
        let inputs = compress::layer_inputs(&self.graph);
        let found = self.graph.layer(layer);
        let at = found.and_then(|found| inputs.iter().position(|i| *i == found.input));
        let at = at.ok_or_else(|| {
            PipelineError::NotRunnable(format!(
                "the model has no layer {} that reads a value",
                layer.0
            ))
        })?;
        let key = (samples, at / BLOCK);
        let known = self
            .cache()
            .activations
            .iter()
            .find(|(k, _)| *k == key)
            .map(|(_, a)| a.clone());
        if let Some(known) = known {
            return Ok(known);
        }
        begin();
        let block = inputs.chunks(BLOCK).nth(key.1).unwrap_or_default();
        let fresh = compress::observe(&self.graph, block, data, samples, cancel)?;
        let fresh = Arc::new(fresh);
        let mut cache = self.cache();
        if cache.activations.len() >= KEPT_BLOCKS {
            cache.activations.remove(0);
        }
        cache.activations.push((key, fresh.clone()));
        Ok(fresh)
    }

    /// Calibrations taken and kept so far.
    pub fn kept_calibrations(&self) -> usize {
        self.cache().ranges.len()
    }

    /// The original as a model on its way through the passes.
    pub fn model(&self) -> Model {
        Model::new(self.graph.clone())
    }

    /// A panic elsewhere leaves whole entries behind: the cache stays usable.
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The first `n` samples of an evaluation.
fn first(all: &Arc<Evaluation>, n: usize) -> Arc<Evaluation> {
    if all.n as usize == n {
        return all.clone();
    }
    fn cut<T: Clone>(all: &[T], n: usize) -> Vec<T> {
        all.iter().take(n).cloned().collect()
    }
    Arc::new(Evaluation {
        split: all.split,
        n: n as u64,
        labels: cut(&all.labels, n),
        predictions: cut(&all.predictions, n),
        top5_correct: cut(&all.top5_correct, n),
        losses: cut(&all.losses, n),
        simulated: all.simulated.clone(),
        unlabelled: all.unlabelled,
    })
}

/// What prediction and resolution need to know of each layer, in the graph's order.
pub fn facts(graph: &Graph) -> Vec<LayerFacts> {
    LayerFacts::of(graph)
}

fn structural_obstacles(graph: &Graph, data: Option<&Dataset>) -> Vec<String> {
    let mut found = Vec::new();
    let unsupported = Program::unsupported(graph);
    if !unsupported.is_empty() {
        let some = unsupported
            .iter()
            .take(5)
            .map(|(node, op, why)| format!("{node} ({op}: {why})"))
            .collect::<Vec<_>>()
            .join(", ");
        let more = match unsupported.len().saturating_sub(5) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        found.push(format!(
            "{} of the model's {} nodes cannot run: {some}{more}. Weights can be looked at, pruned estimates and sizes shown; measuring, calibrating and distilling are blocked.",
            unsupported.len(),
            graph.nodes.len(),
        ));
    }
    if let Some(data) = data {
        found.extend(mismatch(graph, &data.info().sample_shape));
    }
    found
}

fn broken_words(broken: &[(String, usize)]) -> Option<String> {
    if broken.is_empty() {
        return None;
    }
    let some = broken
        .iter()
        .take(5)
        .map(|(name, count)| format!("{name} ({count})"))
        .collect::<Vec<_>>()
        .join(", ");
    Some(format!(
        "{} of the model's weight tensors hold values that are not finite (NaN or infinite): {some}. Export the model again from sound weights; measuring it would mean nothing.",
        broken.len()
    ))
}

/// The most samples a model may take at a time where its input fixes that: each batch is padded to it.
const LARGEST_FIXED_BATCH: usize = 4096;

/// Why samples of this shape do not fit the model's input.
fn mismatch(graph: &Graph, sample: &[usize]) -> Option<String> {
    if graph.inputs.len() != 1 {
        return Some(format!(
            "The model has {} inputs; labelled images fit models with one input.",
            graph.inputs.len()
        ));
    }
    let input = graph.value(*graph.inputs.first()?);
    let shape = input.shape.as_ref()?;
    if let Some(Dim::Known(batch)) = shape.first()
        && *batch > LARGEST_FIXED_BATCH
    {
        return Some(format!(
            "The model's input {} is fixed to batches of {batch} samples; at most {LARGEST_FIXED_BATCH} are taken. Export it with a free (symbolic) batch axis.",
            input.name,
        ));
    }
    let fits = shape.len() == sample.len() + 1
        && shape
            .iter()
            .skip(1)
            .zip(sample)
            .all(|(dim, extent)| !matches!(dim, Dim::Known(k) if k != extent));
    (!fits).then(|| {
        format!(
            "The model's input {} is {}, the data's samples are {} (without the batch axis): set size and layout in task.ron to fit.",
            input.name,
            shape_words(shape),
            sample.iter().map(ToString::to_string).collect::<Vec<_>>().join("×"),
        )
    })
}

/// A shape as people write it: `N×1×28×28`.
pub fn shape_words(shape: &[Dim]) -> String {
    shape
        .iter()
        .map(|dim| match dim {
            Dim::Known(k) => k.to_string(),
            Dim::Symbol(s) => s.to_string(),
            Dim::Unknown => "?".to_owned(),
        })
        .collect::<Vec<_>>()
        .join("×")
}

impl From<RecipeError> for PipelineError {
    fn from(e: RecipeError) -> Self {
        Self::Recipe(Box::new(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{ElementType, Value};

    #[test]
    fn an_absurd_fixed_batch_is_refused_before_anything_is_padded_to_it() {
        let mut graph = Graph::default();
        let mut fixed = |batch: usize| {
            graph.values = vec![Value {
                name: "image".into(),
                element: Some(ElementType::F32),
                shape: Some([batch, 1, 28, 28].map(Dim::Known).to_vec()),
                data: None,
            }];
            graph.inputs = vec![crate::graph::ValueId(0)];
            mismatch(&graph, &[1, 28, 28])
        };
        assert_eq!(fixed(16), None);
        assert!(fixed(1_000_000_000).is_some_and(|why| why.contains("batches of 1000000000")));
    }
}
