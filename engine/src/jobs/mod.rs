//! The engine thread: commands in, events out, through channels; it knows nothing of any window and wakes its user through
//! a callback. Two lanes: the interactive one (latest wins) overtakes the batch one at its next mini-batch.

mod confirm;
mod emit;
mod keep;
mod map;
mod open;
mod queue;
mod watching;
mod worker;

pub use open::info;

#[cfg(test)]
mod tests;

use emit::Emitter;
use queue::Queue;
use worker::Worker;

use crate::{
    compress::{
        Block, ChannelGroups, InputInspection, LayerInspection, LayerSetting, Precision,
        QuantScheme,
    },
    confirm::RuntimePair,
    data::{DatasetInfo, SplitName},
    graph::LayerId,
    measure::{Bytes, Sizes},
    recipe::{CheckpointEvery, Interrupted, Recipe},
    search::LayerFacts,
    sensitivity::{Cell, Direction},
    target::{Execution, Target},
    train::TrainPoint,
};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, thread::JoinHandle, time::Duration};

pub use crate::project::{JobId, Point};

/// How an export is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// The plan as it is: QDQ, fp16 and float layers.
    Plan,
    /// The original in float, batch norms folded.
    Float,
    /// The original with all weights as fp16.
    Fp16,
}

/// Where a run keeps its checkpoints, and how often it takes one. The folder goes when the run is complete or cancelled by hand; what ends it
/// otherwise (the window is closed or killed, another model is opened) leaves it for [`Keep::TakeUp`].
#[derive(Clone, Debug, PartialEq)]
pub enum Keep {
    /// In a new folder under this one. Where that cannot be written to the run goes on without, and says so.
    New {
        under: PathBuf,
        every: CheckpointEvery,
    },
    /// In that of an interrupted run of the same recipe, which is gone on with.
    TakeUp {
        folder: PathBuf,
        every: CheckpointEvery,
    },
}

impl Keep {
    /// Whether checkpoints are to be taken.
    pub fn wants_any(&self) -> bool {
        match self {
            Self::New { every, .. } | Self::TakeUp { every, .. } => every.wants_any(),
        }
    }
}

#[derive(Clone, Debug)]
pub enum Command {
    /// Opens a model, with the task if given (else a `task.ron` beside the model, else none): `Event::Opened`, proxy cells, then
    /// the baseline on search as `Event::Point` with an empty recipe.
    Open {
        job: JobId,
        model: PathBuf,
        task: Option<PathBuf>,
    },
    /// Opens other data for the open model.
    OpenTask {
        job: JobId,
        task: PathBuf,
    },
    /// Interactive lane: carries out the recipe's steps without distillation and judges on `split`. A newer one replaces one
    /// that waits, and one that runs is cancelled in its favour. Ends in `Event::Point`.
    Measure {
        job: JobId,
        recipe: Arc<Recipe>,
        split: SplitName,
        limit: Option<usize>,
    },
    /// Batch lane: carries out the whole recipe (distillation included), curve events on the way. Ends in `Event::Point`.
    /// Cancelled while it trains it may leave `Event::Stopped`. `keep`: where it keeps checkpoints while it is at work, if it trains;
    /// `None`: nowhere.
    Run {
        job: JobId,
        recipe: Arc<Recipe>,
        split: SplitName,
        keep: Option<Keep>,
    },
    /// Looks for interrupted runs whose folders lie in these: `Event::Interrupted`.
    FindRuns {
        job: JobId,
        under: Vec<PathBuf>,
    },
    /// Removes the folder of an interrupted run: what Limbeck put there.
    DiscardRun {
        job: JobId,
        folder: PathBuf,
    },
    /// Batch lane: measures the cells of one direction that are not known yet.
    Map {
        job: JobId,
        known: Vec<Cell>,
        limit: Option<usize>,
        direction: Direction,
    },
    /// Interactive lane: what a setting does to one layer's weights. Ends in `Event::Inspected`.
    Inspect {
        job: JobId,
        layer: LayerId,
        setting: LayerSetting,
        scheme: QuantScheme,
    },
    /// Interactive lane: what one layer reads over the calibration samples, and the codes it is given. Takes as long as running the
    /// original on them, once for layers near each other. A newer one replaces it. Ends in `Event::InputInspected`.
    InspectInput {
        job: JobId,
        layer: LayerId,
        setting: LayerSetting,
        scheme: QuantScheme,
    },
    /// Interactive lane: what a target would compute in integers of the plan's export, without carrying it out (see
    /// [`crate::target::foresee`]). `target`: as the window knows it. A newer one replaces it. Ends in `Event::Foreseen`.
    Foresee {
        job: JobId,
        layers: BTreeMap<LayerId, Precision>,
        scheme: QuantScheme,
        target: Arc<Target>,
    },
    /// Writes a model: the outcome of the recipe of a finished `Run`/`Measure` if kept, else carried out again.
    Export {
        job: JobId,
        recipe: Arc<Recipe>,
        format: ExportFormat,
        path: PathBuf,
    },
    /// Batch lane: holds the recipe's exported file (kept, or carried out again) against ONNX Runtime, on the first `limit` samples of
    /// `split`: `Event::Runtime`, then `Event::Confirmed`. `library`: where the settings say that the runtime lies.
    Confirm {
        job: JobId,
        recipe: Arc<Recipe>,
        split: SplitName,
        limit: Option<usize>,
        library: Option<PathBuf>,
    },
    /// Batch lane: looks for ONNX Runtime: `Event::Runtime`.
    FindRuntime {
        job: JobId,
        library: Option<PathBuf>,
    },
    /// Writes a file atomically off the window's thread (recipe, project).
    WriteText {
        job: JobId,
        path: PathBuf,
        text: String,
    },
    /// Reads a text file off the window's thread (project, recipe): `Event::Text`.
    ReadText {
        job: JobId,
        path: PathBuf,
    },
    /// A batch job that runs stops at its next mini-batch and keeps its state: `Event::Paused`. Interactive jobs, maps, and exports and confirmations
    /// of recipes that train nothing are done meanwhile; others, runs and openings are not (an opening cancels it).
    Pause(JobId),
    /// It goes on with the same bits, once what was begun meanwhile has ended: `Event::Resumed`.
    Resume(JobId),
    Cancel(JobId),
    /// Everything ends: a training that keeps checkpoints once it has taken one, for which it has 20 seconds. A second one cancels that as well.
    Shutdown,
}

/// What the window needs to know of an opened model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    pub name: String,
    pub path: PathBuf,
    pub task_path: Option<PathBuf>,
    /// SHA-256 of the model file (see [`crate::recipe::Session::model_sha256`]), hex; `None` while a large one is being read.
    pub sha256: Option<String>,
    pub layers: Vec<LayerFacts>,
    /// Layers whose channels go together, and why others' stay.
    pub channels: ChannelGroups,
    /// The same where whole attention heads go; `None`: there are none that could.
    pub heads: Option<ChannelGroups>,
    /// Residual blocks that can be taken out, in the graph's order.
    pub blocks: Vec<Block>,
    /// In an event on a large model no weight was looked at, and none counts as zero.
    pub sizes: Sizes,
    /// Bytes of the stored file that belong to no layer.
    pub overhead: Bytes,
    pub inputs: Vec<(String, String)>,
    pub outputs: Vec<(String, String)>,
    pub opset: String,
    pub data: Option<DatasetInfo>,
    /// What is missing or cannot run, and what to do, in words.
    pub warnings: Vec<String>,
    /// False: the model can be looked at but not run (see warnings).
    pub runnable: bool,
}

/// The deployment runtime that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeFound {
    pub version: String,
    pub library: PathBuf,
    /// How it was found, in words.
    pub found_by: String,
}

#[derive(Clone, Debug)]
pub enum Event {
    Opened {
        job: JobId,
        info: Box<ModelInfo>,
    },
    /// After `Opened` without a hash, and perhaps after `Finished`: the large model of this job was read, or why it could not be.
    Hashed {
        job: JobId,
        sha256: Result<String, String>,
    },
    /// After `Opened`: the weights of a large model were looked at, and cannot be run.
    Unsound {
        job: JobId,
        warning: String,
    },
    Started {
        job: JobId,
        title: String,
    },
    /// `fraction` 0..=1; `eta` once it can be told; `detail` such as "epoch 2 of 6 · 3,120 img/s".
    Progress {
        job: JobId,
        fraction: f32,
        eta: Option<Duration>,
        detail: String,
    },
    Cells {
        job: JobId,
        cells: Vec<Cell>,
    },
    Curve {
        job: JobId,
        point: TrainPoint,
    },
    /// Newest first, folder by folder; those at work in a living process are left out.
    Interrupted {
        job: JobId,
        runs: Vec<Interrupted>,
    },
    /// The ends of epochs, by run, that a new run goes on from at once; after others it trains again up to there.
    Epochs {
        job: JobId,
        kept: Vec<(JobId, usize)>,
    },
    /// Something that stops nothing, and that the user is to know.
    Note {
        job: JobId,
        message: String,
    },
    Point(Box<Point>),
    Inspected {
        job: JobId,
        inspection: Box<LayerInspection>,
    },
    InputInspected {
        job: JobId,
        inspection: Box<InputInspection>,
    },
    /// `None`: nothing that a target could compute in integers, or its description does not say what it fuses.
    Foreseen {
        job: JobId,
        execution: Option<Arc<Execution>>,
    },
    /// The runtime that is used, or where one was looked for and what to do.
    Runtime {
        job: JobId,
        found: Result<RuntimeFound, String>,
    },
    /// What the runtime gave for the exported file with this hash.
    Confirmed {
        job: JobId,
        model_sha256: String,
        pair: Box<RuntimePair>,
    },
    Text {
        job: JobId,
        path: PathBuf,
        text: String,
    },
    Written {
        job: JobId,
        path: PathBuf,
        note: String,
    },
    /// No more is worked on it until `Command::Resume`.
    Paused {
        job: JobId,
    },
    Resumed {
        job: JobId,
    },
    Finished {
        job: JobId,
    },
    /// What was finished before is kept.
    Cancelled {
        job: JobId,
    },
    /// Before `Cancelled`: training had won something by its last finished epoch. A `Run` of this recipe judges that state,
    /// which is kept, without training again (until another model is opened).
    Stopped {
        job: JobId,
        recipe: Arc<Recipe>,
    },
    /// Amid [`Command::Shutdown`]: the checkpoint that training was to end with could not be taken.
    NotKept {
        job: JobId,
        message: String,
    },
    /// What failed, on what, and what to do. The engine lives on, also after a panic in a job.
    Failed {
        job: JobId,
        message: String,
    },
    Log {
        message: String,
    },
    /// After [`Command::Shutdown`]: nothing runs any more, and no event follows.
    Ended,
}

/// Called after an event was put in the channel; must not block. Not called while an earlier event still waits to be taken:
/// whoever is woken takes all there are.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// A handle to the engine's threads; dropping it sends [`Command::Shutdown`] and waits for the end. Whoever must not wait sends it before, and drops
/// the handle at [`Event::Ended`]; dropped earlier, nothing is waited for but the mini-batch at work.
pub struct Engine {
    pub commands: crossbeam_channel::Sender<Command>,
    pub events: crossbeam_channel::Receiver<Event>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts two threads: the router takes commands, cancels at once and queues the rest; the engine thread works.
    pub fn start(waker: Waker) -> Self {
        crate::exec::stay_behind_window();
        let (commands, incoming) = crossbeam_channel::unbounded();
        let (outgoing, events) = crossbeam_channel::unbounded();
        let queue = Arc::new(Queue::default());
        let emitter = Emitter::new(outgoing, waker);
        let router = {
            let (queue, emitter) = (queue.clone(), emitter.clone());
            move || queue.route(&incoming, &emitter)
        };
        let worker = Worker::new(queue, emitter);
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .stack_size(8 << 20)
                .spawn(body)
                .expect("the system refuses a thread to a process that has just started")
        };
        let threads = vec![
            spawn("limbeck-router", Box::new(router)),
            spawn("limbeck-engine", Box::new(move || worker.work())),
        ];
        Self {
            commands,
            events,
            threads,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A closed channel means that the router has ended already.
        let _ = self.commands.send(Command::Shutdown);
        for thread in self.threads.drain(..) {
            // Panics of jobs are caught; one of the runtime itself has been printed by the panic hook.
            let _ = thread.join();
        }
    }
}
