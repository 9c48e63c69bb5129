//! How a run begins: anew, or where a killed one stood.

use crate::{BAD_INPUT, DONE, GOAL_MISSED, Report, Stop, args, signals};
use limbeck_engine::{
    data::SplitName,
    recipe::{
        self, Checkpoints, LOCK_FILE, METRICS_FILE, MODEL_FILE, PipelineError, RECIPE_FILE, Recipe,
        RunStart, Session, write_atomic,
    },
};
use serde_json::{Value, json};
use std::{
    io,
    path::{Path, PathBuf},
};

/// What a run is about.
pub struct Work {
    /// Folder that is written into.
    pub out: PathBuf,
    /// The recipe to read, and as it was named when the run began.
    pub recipe: PathBuf,
    pub named: PathBuf,
    pub split: SplitName,
    pub limit: Option<usize>,
    pub strict: bool,
    start: RunStart,
    /// Of the run that is gone on with.
    resumed: Option<Checkpoints>,
}

impl Work {
    /// The model as it was named when the run began.
    pub fn model(&self) -> &Path {
        &self.start.model
    }
}

pub enum Begun {
    /// Nothing is left to do.
    Complete(Report),
    Work(Box<Work>),
}

/// Looks at what is asked for.
pub fn begun(a: &args::Run) -> Result<Begun, Stop> {
    let work = match (&a.resume, &a.recipe, &a.out) {
        (Some(out), ..) => {
            if out.join(LOCK_FILE).is_file() {
                return complete(out).map(Begun::Complete);
            }
            let (mut checkpoints, start) = Checkpoints::open(out)?;
            if let Some(every) = a.checkpoint_every {
                checkpoints.set_every(every);
            }
            Work {
                out: out.clone(),
                recipe: out.join(RECIPE_FILE),
                named: start.recipe.clone(),
                split: start.split,
                limit: start.limit,
                strict: start.strict,
                resumed: Some(checkpoints),
                start,
            }
        }
        (None, Some(recipe), Some(out)) => {
            let split = SplitName::from(a.split);
            let mut start = RunStart::new(recipe, split, a.limit, a.strict);
            start.every = a.checkpoint_every.unwrap_or_default();
            Work {
                out: out.clone(),
                recipe: recipe.clone(),
                named: recipe.clone(),
                split,
                limit: a.limit,
                strict: a.strict,
                start,
                resumed: None,
            }
        }
        // The parser asks for one or the other.
        _ => {
            return Err(Stop {
                message: "name a recipe and --out, or a folder to --resume".to_owned(),
                code: BAD_INPUT,
            });
        }
    };
    Ok(Begun::Work(Box::new(work)))
}

/// Why a run stopped: by a signal, with where it stands in its last checkpoint, or by an error.
pub fn ended(error: PipelineError, out: &Path) -> Stop {
    match signals::came() {
        Some(signal) if error.is_cancelled() => Stop {
            message: if Checkpoints::lie_in(out) {
                format!(
                    "ended by a signal: go on from the last checkpoint by `limbeck run --resume {}`",
                    out.display()
                )
            } else {
                "ended by a signal; no checkpoint was taken, so nothing is left to go on from"
                    .to_owned()
            },
            // As a shell says it of what a signal ended.
            code: 128 + u8::try_from(signal).unwrap_or(0),
        },
        _ => error.into(),
    }
}

/// Makes the folder ready before the work, not after it; the recipe's text as it lies there, and the checkpoints.
pub fn prepare(
    work: &mut Work,
    session: &Session,
    recipe: &mut Recipe,
) -> Result<(String, Checkpoints), Stop> {
    let out = &work.out;
    let bad = |message: String| Stop {
        message,
        code: BAD_INPUT,
    };
    std::fs::create_dir_all(out)
        .map_err(|e| bad(format!("cannot make the folder {}: {e}", out.display())))?;
    let student = session.student(recipe)?.map(|s| s.path.clone());
    for (what, read) in [
        ("the model", Some(&session.model_path)),
        ("the student", student.as_ref()),
    ] {
        let written = out.join(MODEL_FILE).canonicalize().ok();
        if read.is_some_and(|read| written.is_some() && read.canonicalize().ok() == written) {
            return Err(bad(format!(
                "{} is {what} that the recipe reads, and the run would write its result over it: name another folder by --out",
                out.join(MODEL_FILE).display()
            )));
        }
    }
    recipe.model = recipe::relative_to(&session.model_path, out);
    if let Some(task) = &session.task_path {
        recipe.task = recipe::relative_to(task, out);
    }
    // Paths in a recipe are relative to its own folder.
    if let (Some(file), Some(path)) = (recipe.student_file_mut(), student) {
        *file = recipe::relative_to(&path, out);
    }
    // The run itself finds its target from here.
    let mut lying = recipe.clone();
    lying.rename_target_files(|target| recipe::relative_to(target, out));
    let text = lying.to_ron()?;
    if work.resumed.is_none() {
        work.start.model.clone_from(&session.model_path);
    }
    let begins = work.resumed.is_none();
    let mut checkpoints = match work.resumed.take() {
        Some(checkpoints) => checkpoints,
        None => Checkpoints::claim(out)?,
    };
    recipe::sweep(out);
    recipe::sweep(&out.join(recipe::CHECKPOINT_FOLDER));
    // A lock stands only beside the files it speaks of: an earlier run's goes before the first of them is replaced.
    match std::fs::remove_file(out.join(LOCK_FILE)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(bad(format!("cannot write into {}: {e}", out.display())));
        }
        _ => {}
    }
    write_atomic(&out.join(RECIPE_FILE), text.as_bytes()).map_err(|e| bad(e.to_string()))?;
    // What the run was started with comes last: where it stands, the recipe beside it is the run's own.
    if begins {
        checkpoints.begin(&work.start)?;
    }
    Ok((text, checkpoints))
}

/// What a run that is complete has to say: its own report once more.
fn complete(out: &Path) -> Result<Report, Stop> {
    let path = out.join(METRICS_FILE);
    let bad = |why: String| Stop {
        message: format!("{}: {why}", path.display()),
        code: BAD_INPUT,
    };
    let text = std::fs::read_to_string(&path).map_err(|e| bad(format!("cannot be read: {e}")))?;
    let report: Value =
        serde_json::from_str(&text).map_err(|e| bad(format!("is no report of a run: {e}")))?;
    Checkpoints::done(out)?;
    let missed = report["verdict"] == json!("fail")
        || report["strict"] == json!(true) && report["verdict"] == json!("inconclusive");
    Ok(Report {
        text: format!(
            "The run in {} is complete: nothing is left to go on with. `limbeck verify {}` carries it out again.\n",
            out.display(),
            out.display()
        ),
        json: report,
        code: if missed { GOAL_MISSED } else { DONE },
    })
}
