//! Arguments as they stand on the command line; their help is the manual.

use clap::{Args, Parser, Subcommand, ValueEnum};
use limbeck_engine::{
    data::SplitName, measure::runtime, recipe::CheckpointEvery, sensitivity::Candidate,
};
use std::path::PathBuf;

/// Makes neural networks small, measures what that costs, and repeats it to the bit.
///
/// Models are ONNX files (opset 9 to 21). A task (task.ron) names labelled data, its preprocessing and its splits: calibration
/// (ranges are taken from it), search (plans are compared on it), training (distillation) and holdout (what reports quote).
/// Where --task is left out, a task.ron beside the model is used.
///
/// Every figure is printed with its number of samples, its 95 % interval, its split and where it comes from.
#[derive(Parser)]
#[command(
    name = "limbeck",
    version,
    after_long_help = "\
Exit codes:
  0  done
  1  failed; for `verify`: the replay differs, or the runtime gives other labels
  2  bad usage or input: a file that is missing or broken, a recipe for another model
  3  a goal of the recipe was missed (with --strict also: could not be shown to be met)

Results go to standard output, progress and errors to standard error. With --json, standard output is one JSON
object; its fields are described in docs/cli.md and do not change their names. Ctrl-C stops at once,
a training after it has taken a checkpoint (twice: at once); files appear only when they are complete.

Examples:
  limbeck inspect sample-models/fashion-resnet/fashion-resnet.onnx
  limbeck eval sample-models/fashion-resnet/fashion-resnet.onnx --limit 1000
  limbeck run sample-models/fashion-resnet/recipes/int8.ron --out out
  limbeck run --resume out
  limbeck verify out
  limbeck verify out --runtime onnxruntime
  limbeck export model.onnx --format int8 --task task.ron --out model-int8.onnx"
)]
pub struct Arguments {
    /// Print one JSON object on standard output instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress on standard error.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Threads to work with; all cores if left out. Results are the same to the bit whatever their number.
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Show a model: inputs, outputs, layers with parameters and MACs, sizes, what cannot run.
    Inspect(Inspect),
    /// Measure a model on labelled data: top-1, top-5, cross-entropy, each class.
    Eval(Eval),
    /// How much each layer minds fp16, int8, int4 and pruning: from its weights alone, then measured.
    Sensitivity(Sensitivity),
    /// Carry out a recipe and write model, recipe, lock, metrics and predictions into a folder.
    Run(Run),
    /// Write a model in one precision throughout.
    Export(Export),
    /// Carry out a run again from its folder and compare everything with its lock, to the bit; or ask a deployment runtime about it.
    Verify(Verify),
}

#[derive(Args)]
pub struct Inspect {
    /// The ONNX file.
    pub model: PathBuf,
    /// Labelled data to check against the model's input; not read for anything else.
    #[arg(long)]
    pub task: Option<PathBuf>,
}

#[derive(Args)]
pub struct Eval {
    /// The ONNX file; quantised ones too.
    pub model: PathBuf,
    /// The task.ron that describes the labelled data [default: task.ron beside the model].
    #[arg(long)]
    pub task: Option<PathBuf>,
    /// Part of the data to measure on.
    #[arg(long, value_enum, default_value_t = Split::Holdout)]
    pub split: Split,
    /// Only the first N samples of the split.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Write the predicted class index of every sample, one a line.
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,
    /// Of a quantised model: what it gives at this deployment target, its saturation simulated (docs/targets.md).
    #[arg(long, value_name = "TARGET")]
    pub target: Option<String>,
}

#[derive(Args)]
pub struct Sensitivity {
    /// The ONNX file.
    pub model: PathBuf,
    /// The task.ron that describes the labelled data [default: task.ron beside the model]. Without any, only what the weights alone
    /// tell is shown.
    #[arg(long)]
    pub task: Option<PathBuf>,
    /// Only the first N samples of the search split.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Only what the weights alone tell: at once, no data.
    #[arg(long)]
    pub proxy: bool,
    /// Only the tiers before the measured one: from the weights, and from up to 64 images of the calibration split.
    #[arg(long, conflicts_with = "proxy")]
    pub estimate: bool,
    /// Every cell on all samples. Without it a cell is shown the samples nearest to flipping first and is settled once the others leave
    /// no more open than chance does with all of them run, or once its drop clearly lies beyond --too-much; it says on how many samples.
    #[arg(long, conflicts_with_all = ["proxy", "estimate"])]
    pub exact: bool,
    /// A cell is settled once it surely loses more than so many points of top-1.
    #[arg(long, value_name = "POINTS", default_value_t = 5.0, value_parser = points, conflicts_with_all = ["proxy", "estimate", "exact"])]
    pub too_much: f64,
    /// Measure what is lost with all layers changed but the one, instead of the one alone.
    #[arg(long, conflicts_with_all = ["proxy", "estimate"])]
    pub all_but: bool,
    /// Only this candidate; may be given several times.
    #[arg(long = "candidate", value_name = "CANDIDATE", value_parser = candidate)]
    pub candidates: Vec<Candidate>,
    /// Megabytes for decoded images and changed weights [default: a quarter of the machine's memory].
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub memory: Option<u64>,
}

/// Carry out a recipe and write model.onnx, recipe.ron, recipe.lock.ron, metrics.json and predictions.txt into a folder.
///
/// The recipe's steps are carried out in order on its model; the result is judged against the original on the same samples
/// and against the recipe's goals: pass, fail, or inconclusive where the 95 % interval spans the limit (then it says about how
/// many more samples would tell). The lock holds every layer's settings, scales and zero points, and hashes of model, data,
/// recipe and result: `limbeck verify` repeats the run from it.
///
/// While it works, checkpoints are kept in DIR/checkpoints. A run that was killed is gone on with by `limbeck run --resume DIR`, and ends
/// with the same bits as one that was not.
#[derive(Args)]
pub struct Run {
    /// The recipe; paths in it are relative to its own folder. See docs/recipe.md.
    #[arg(required_unless_present = "resume")]
    pub recipe: Option<PathBuf>,
    /// Folder to write into; made if it is not there. Files of an earlier, complete run are replaced.
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    pub out: Option<PathBuf>,
    /// Go on with the unfinished run in this folder, from its newest checkpoint. Nothing is done where the run is complete.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "out", "split", "limit", "strict"])]
    pub resume: Option<PathBuf>,
    /// When checkpoints are taken: `30s`, `5m`, `200steps` (of training), `5m,200steps` for whichever comes first, or `never`; and after
    /// every training [default: 60s].
    #[arg(long, value_name = "INTERVAL")]
    pub checkpoint_every: Option<CheckpointEvery>,
    /// Another model than the recipe's, such as a newly trained one.
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Another task than the recipe's.
    #[arg(long)]
    pub task: Option<PathBuf>,
    /// Part of the data to judge on.
    #[arg(long, value_enum, default_value_t = Split::Holdout)]
    pub split: Split,
    /// Judge on the first N samples of the split only.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// An inconclusive goal counts as missed (exit code 3).
    #[arg(long)]
    pub strict: bool,
}

#[derive(Args)]
pub struct Export {
    /// The ONNX file.
    pub model: PathBuf,
    /// Precision of all layers. Batch norms are folded in every one of them.
    #[arg(long, value_enum)]
    pub format: Format,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Calibration data for int8 and int4 [default: task.ron beside the model].
    #[arg(long)]
    pub task: Option<PathBuf>,
}

#[derive(Args)]
pub struct Verify {
    /// The folder that `limbeck run` wrote.
    pub folder: PathBuf,
    /// Where the original model is now, if it has moved.
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Where the task is now, if it has moved.
    #[arg(long)]
    pub task: Option<PathBuf>,
    /// Instead of repeating the run: run its exported model in this deployment runtime, on the same samples, and compare with what
    /// Limbeck predicts.
    #[arg(long, value_enum)]
    pub runtime: Option<RuntimeName>,
    /// The runtime's own optimisations: off runs every operator as the file has it, on is how it is deployed.
    #[arg(long, value_enum, default_value_t = Optimizations::Both, requires = "runtime")]
    pub optimizations: Optimizations,
    /// The runtime's library, or the folder it lies in [default: LIMBECK_ONNXRUNTIME, else an installed Python package, else the
    /// system's].
    #[arg(long, value_name = "PATH", requires = "runtime")]
    pub runtime_library: Option<PathBuf>,
    /// Samples of which every quantised tensor is compared too (optimisations off); 0: none.
    #[arg(long, value_name = "N", default_value_t = 256, requires = "runtime")]
    pub tensors: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuntimeName {
    Onnxruntime,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Optimizations {
    Off,
    On,
    Both,
}

impl Optimizations {
    pub fn list(self) -> Vec<runtime::Optimizations> {
        match self {
            Self::Off => vec![runtime::Optimizations::Off],
            Self::On => vec![runtime::Optimizations::On],
            Self::Both => vec![runtime::Optimizations::Off, runtime::Optimizations::On],
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Format {
    Float,
    Fp16,
    Int8,
    Int4,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Split {
    Calibration,
    Search,
    Training,
    Holdout,
}

impl From<Split> for SplitName {
    fn from(split: Split) -> Self {
        match split {
            Split::Calibration => Self::Calibration,
            Split::Search => Self::Search,
            Split::Training => Self::Training,
            Split::Holdout => Self::Holdout,
        }
    }
}

fn points(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|points| (0.0..=100.0).contains(points))
        .ok_or_else(|| "expected points of top-1, 0 to 100".to_owned())
}

fn candidate(text: &str) -> Result<Candidate, String> {
    let names = || Candidate::ALL.map(Candidate::name).join(", ");
    Candidate::ALL
        .into_iter()
        .find(|candidate| candidate.name() == text)
        .ok_or_else(|| format!("expected one of {}", names()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        super::Arguments::command().debug_assert();
    }
}
