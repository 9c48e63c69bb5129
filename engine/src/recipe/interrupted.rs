//! Runs whose folder nobody has to choose: each lies in one of its own, and those that were interrupted are found again.

use super::{
    CHECKPOINT_FOLDER, Checkpoints, PipelineError, RECIPE_FILE, Recipe, RecipeFile, RunStart,
    Session, Step,
    checkpoints::{Header, Identity, START_FILE, alone_in, files, read_header, remove},
    files::{relative_to, sweep, write_atomic},
    from_ron, read_text,
};
use crate::{data::SplitName, exec::CancelToken, train::CheckpointText};
use std::{
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// A run that stands still: its process is gone, and it was not complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Interrupted {
    pub folder: PathBuf,
    /// Its model and task as absolute paths.
    pub recipe: Recipe,
    /// What it is judged on in the end.
    pub split: SplitName,
    /// Epochs of the training at hand that were trained, and those it has; `None`: the newest checkpoint is of no training, or there is none.
    pub epoch: Option<(f64, usize)>,
    /// When its newest checkpoint was taken; where there is none, when it was begun.
    pub since: SystemTime,
    /// Why it cannot be gone on with, in words.
    pub obstacle: Option<String>,
    identity: Option<Identity>,
}

impl Interrupted {
    /// One without a checkpoint that was begun now.
    pub fn new(folder: PathBuf, recipe: Recipe, split: SplitName) -> Self {
        Self {
            folder,
            recipe,
            split,
            epoch: None,
            since: SystemTime::now(),
            obstacle: None,
            identity: None,
        }
    }

    /// Whether its model and task are these files, links followed; then they are called as here.
    pub fn call_as(&mut self, model: &Path, task: &Path) -> bool {
        let same = |a: &Path, b: &Path| {
            a == b
                || a.canonicalize()
                    .is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
        };
        let is = same(model, &self.recipe.model) && same(task, &self.recipe.task);
        if is {
            self.recipe.model = model.to_owned();
            self.recipe.task = task.to_owned();
        }
        is
    }

    /// Looks for obstacles: what its checkpoint was taken with is to be what is here. `session`: the model that is open.
    pub fn compare(&mut self, session: Option<&Session>) {
        let open = session.filter(|session| {
            let task = session.task_path.as_deref();
            task.is_some_and(|task| self.call_as(&session.model_path, task))
        });
        let Some(taken) = &self.identity else {
            return;
        };
        let mut here = taken.here();
        // A large model that is still being read is compared when it is gone on with.
        if let Some(session) = open
            && session.known_sha256().is_some()
            && let Ok(own) = Identity::of(session, &self.recipe, &CancelToken::default())
        {
            here = own;
        }
        let differs = taken.difference(&here);
        self.obstacle = self.obstacle.take().or(differs);
    }
}

/// Begins a run in a folder of its own under `under`, which is made where it is missing: the recipe lies there, and its checkpoints will.
///
/// # Errors
/// A folder that cannot be made or written to.
pub fn begin_run(
    under: &Path,
    session: &Session,
    recipe: &Recipe,
    mut start: RunStart,
) -> Result<(PathBuf, Checkpoints), PipelineError> {
    let out = fresh_folder(under).map_err(|e| {
        let said = format!("cannot make a folder in {}: {e}", under.display());
        PipelineError::Io(io::Error::new(e.kind(), said))
    })?;
    let mut checkpoints = Checkpoints::claim(&out)?;
    let mut recipe = recipe.clone();
    recipe.model = relative_to(&session.model_path, &out);
    if let Some(task) = &session.task_path {
        recipe.task = relative_to(task, &out);
    }
    recipe.rename_target_files(|target| relative_to(target, &out));
    let text = recipe.to_ron()?;
    write_atomic(&out.join(RECIPE_FILE), text.as_bytes()).map_err(PipelineError::Io)?;
    start.recipe = out.join(RECIPE_FILE);
    start.model.clone_from(&session.model_path);
    checkpoints.begin(&start)?;
    Ok((out, checkpoints))
}

fn fresh_folder(under: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(under)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = now.unwrap_or_default().as_secs();
    let mut number = 0;
    loop {
        let folder = under.join(format!("run-{seconds}-{number}"));
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(e),
        }
    }
}

/// The interrupted runs whose folders lie in `under`, newest first; none where it cannot be read. Those at work in a living process are left out.
pub fn interrupted_runs(under: &Path) -> Vec<Interrupted> {
    let entries = std::fs::read_dir(under).into_iter().flatten().flatten();
    let mut found: Vec<Interrupted> = entries.filter_map(|e| look_at(&e.path())).collect();
    found.sort_by(|a, b| (b.since, &b.folder).cmp(&(a.since, &a.folder)));
    found
}

fn look_at(folder: &Path) -> Option<Interrupted> {
    let checkpoints = folder.join(CHECKPOINT_FOLDER);
    let start = checkpoints.join(START_FILE);
    if !start.is_file() {
        return None;
    }
    // Let go of again at the end: whoever goes on with it takes it.
    let _alone = alone_in(&checkpoints).ok()?;
    let file = RecipeFile::read(&folder.join(RECIPE_FILE)).ok()?;
    let begun: RunStart = from_ron(&read_text(&start).ok()?, &start).ok()?;
    let mut recipe = file.recipe.clone();
    let absolute = |there: &Path| {
        there
            .canonicalize()
            .or_else(|_| std::path::absolute(there))
            .unwrap_or_else(|_| there.to_owned())
    };
    for path in [&mut recipe.model, &mut recipe.task] {
        *path = absolute(&file.from_here(path));
    }
    recipe.rename_target_files(absolute);
    let mut since = modified(&start);
    let (mut newest, mut obstacle): (Option<Header>, _) = (None, None);
    for (_, path) in files(&checkpoints).into_iter().rev() {
        match read_header(&path) {
            Ok(header) => {
                since = modified(&path);
                newest = Some(header);
                obstacle = None;
                break;
            }
            Err(why) => {
                obstacle = Some(format!(
                    "its checkpoint {} is broken: {why}",
                    path.display()
                ))
            }
        }
    }
    for (what, path) in [("model", &recipe.model), ("task", &recipe.task)] {
        if !path.is_file() {
            obstacle.get_or_insert(format!(
                "its {what} is not there any more: {}",
                path.display()
            ));
        }
    }
    Some(Interrupted {
        epoch: newest.as_ref().and_then(|header| epochs(header, &recipe)),
        identity: newest.map(|header| header.identity),
        since,
        obstacle,
        ..Interrupted::new(folder.to_owned(), recipe, begun.split)
    })
}

fn epochs(header: &Header, recipe: &Recipe) -> Option<(f64, usize)> {
    let done = header.training.as_ref().map(CheckpointText::epochs)?;
    match recipe.steps.get(header.index)? {
        Step::Distil(settings) => Some((done, settings.trained_epochs())),
        _ => None,
    }
}

fn modified(path: &Path) -> SystemTime {
    let known = std::fs::metadata(path).and_then(|m| m.modified());
    known.unwrap_or(UNIX_EPOCH)
}

/// Removes a run's folder: what this engine put there, and the folders where nothing else is in them.
///
/// # Errors
/// Another process is at work there; files that cannot be removed.
pub fn discard_run(folder: &Path) -> Result<(), PipelineError> {
    let checkpoints = folder.join(CHECKPOINT_FOLDER);
    if !checkpoints.is_dir() {
        return Ok(());
    }
    drop(alone_in(&checkpoints)?);
    sweep(&checkpoints);
    sweep(folder);
    remove(&checkpoints).map_err(PipelineError::Io)?;
    match std::fs::remove_file(folder.join(RECIPE_FILE)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(PipelineError::Io(e)),
        _ => {}
    }
    // What holds more stays.
    if std::fs::remove_dir(folder).is_ok()
        && let Some(under) = folder.parent()
    {
        let _ = std::fs::remove_dir(under);
    }
    Ok(())
}
