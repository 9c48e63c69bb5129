//! Checkpoints of a run: what it takes to go on where a killed one stood, kept in the run's own folder while it is at work.

mod model;

use super::{
    PipelineError, Recipe, RecipeError, Session, from_ron, read_text, to_ron, write_atomic,
};
use crate::{
    compress::{Account, Model},
    data::SplitName,
    exec::CancelToken,
    train::{self, Blobs, CheckpointText},
};
use bytes::Bytes;
use model::ModelText;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

/// The folder in a run's folder that holds its checkpoints; gone once the run is complete.
pub const CHECKPOINT_FOLDER: &str = "checkpoints";
pub(super) const START_FILE: &str = "run.ron";
/// Locked by the process that works in the folder; the lock ends with the process, however it ends.
const ALONE_FILE: &str = "at-work";
const EXTENSION: &str = "checkpoint";
/// Of [`RunStart`].
const START_VERSION: u32 = 1;
/// Checkpoints that are kept: the newest, and the one before it in case the newest is broken.
const KEPT: usize = 2;

/// When a checkpoint is due: after so much time, after so many training steps, whichever comes first; neither: never.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointEvery {
    pub seconds: Option<f64>,
    pub steps: Option<u64>,
}

impl CheckpointEvery {
    /// Whether any are to be taken.
    pub fn wants_any(&self) -> bool {
        self.seconds.is_some() || self.steps.is_some()
    }
}

impl Default for CheckpointEvery {
    fn default() -> Self {
        Self {
            seconds: Some(60.0),
            steps: None,
        }
    }
}

/// As on a command line: `30s`, `5m`, `200steps`, `never`; two of them with a comma between.
impl FromStr for CheckpointEvery {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut every = Self {
            seconds: None,
            steps: None,
        };
        if text == "never" {
            return Ok(every);
        }
        for part in text.split(',') {
            let wrong = || {
                format!(
                    "{part:?}: expected seconds (30s), minutes (5m), training steps (200steps) or never"
                )
            };
            let positive = |v: f64| (v.is_finite() && v > 0.0).then_some(v).ok_or_else(wrong);
            if let Some(steps) = part.strip_suffix("steps") {
                let steps = steps.parse().ok().filter(|s| *s > 0).ok_or_else(wrong)?;
                every.steps = Some(steps);
            } else if let Some(minutes) = part.strip_suffix('m') {
                let minutes: f64 = minutes.parse().map_err(|_| wrong())?;
                every.seconds = Some(positive(minutes * 60.0)?);
            } else {
                let seconds = part.strip_suffix('s').ok_or_else(wrong)?;
                every.seconds = Some(positive(seconds.parse().map_err(|_| wrong())?)?);
            }
        }
        Ok(every)
    }
}

/// What a run was started with, besides the recipe that lies in its folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunStart {
    pub version: u32,
    /// The recipe and the model as they were named.
    pub recipe: PathBuf,
    pub model: PathBuf,
    pub split: SplitName,
    pub limit: Option<usize>,
    pub strict: bool,
    pub every: CheckpointEvery,
}

impl RunStart {
    pub fn new(recipe: &Path, split: SplitName, limit: Option<usize>, strict: bool) -> Self {
        Self {
            version: START_VERSION,
            recipe: recipe.to_owned(),
            model: PathBuf::new(),
            split,
            limit,
            strict,
            every: CheckpointEvery::default(),
        }
    }
}

/// What a checkpoint must belong to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    engine: String,
    machine: String,
    steps_sha256: String,
    model_sha256: String,
    /// Of the student that the recipe gives, if it does.
    #[serde(default)]
    student_sha256: String,
    data_sha256: String,
}

impl Identity {
    pub(super) fn of(
        session: &Session,
        recipe: &Recipe,
        cancel: &CancelToken,
    ) -> Result<Self, PipelineError> {
        Ok(Self {
            engine: crate::VERSION.to_owned(),
            machine: super::machine(),
            steps_sha256: recipe.steps_sha256()?,
            model_sha256: session.model_sha256(cancel)?,
            student_sha256: session.student_sha256(recipe)?.unwrap_or_default(),
            data_sha256: session.data_sha256().to_owned(),
        })
    }

    /// The same on this machine, by this engine.
    pub(super) fn here(&self) -> Self {
        Self {
            engine: crate::VERSION.to_owned(),
            machine: super::machine(),
            ..self.clone()
        }
    }

    /// What differs, in words.
    pub(super) fn difference(&self, other: &Self) -> Option<String> {
        let pairs = [
            ("another version of the engine", &self.engine, &other.engine),
            ("another kind of machine", &self.machine, &other.machine),
            (
                "other steps or another seed of the recipe",
                &self.steps_sha256,
                &other.steps_sha256,
            ),
            ("another model", &self.model_sha256, &other.model_sha256),
            (
                "another student",
                &self.student_sha256,
                &other.student_sha256,
            ),
            (
                "another task or other data",
                &self.data_sha256,
                &other.data_sha256,
            ),
        ];
        let (what, theirs, ours) = pairs.into_iter().find(|(_, a, b)| a != b)?;
        Some(format!("it was taken with {what} ({theirs}, here {ours})"))
    }
}

/// Where a run stands between its steps, or within one that trains.
#[derive(Clone)]
pub(super) struct Stand {
    /// The step that is carried out next, or is being trained.
    pub index: usize,
    /// The model before that step.
    pub model: Model,
    pub accounts: Vec<Account>,
    pub training: Option<train::Checkpoint>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) identity: Identity,
    pub(super) index: usize,
    model: ModelText,
    accounts: Vec<Account>,
    pub(super) training: Option<CheckpointText>,
}

/// The checkpoints of one run.
pub struct Checkpoints {
    folder: PathBuf,
    /// Locked as long as the run is at work.
    _alone: File,
    every: CheckpointEvery,
    /// Known once the run is at work.
    identity: Option<Identity>,
    /// Number of the next file.
    next: u64,
    found: Option<(PathBuf, Header, Blobs)>,
    notes: Vec<String>,
    last: Instant,
    steps: u64,
    failed: Option<String>,
}

impl Checkpoints {
    /// Claims the folder `out`, which exists, for a run that is to begin there: no other process works in it, and nothing of an earlier run
    /// is left to go on with. [`Checkpoints::begin`] is called once the recipe lies there.
    ///
    /// # Errors
    /// Another process is at work there; checkpoints of an unfinished run lie there: they are not thrown away unasked. A folder that cannot be
    /// written to.
    pub fn claim(out: &Path) -> Result<Self, PipelineError> {
        let folder = out.join(CHECKPOINT_FOLDER);
        let complete = out.join(super::LOCK_FILE).exists();
        if !complete && !files(&folder).is_empty() {
            return Err(PipelineError::NotRunnable(format!(
                "{} holds an unfinished run: go on with it by `limbeck run --resume {}`, or remove {} to start anew",
                out.display(),
                out.display(),
                folder.display()
            )));
        }
        let cannot = |e: io::Error| {
            let said = format!("cannot write {}: {e}", folder.display());
            PipelineError::Io(io::Error::new(e.kind(), said))
        };
        std::fs::create_dir_all(&folder).map_err(cannot)?;
        let alone = alone_in(&folder)?;
        clear(&folder).map_err(cannot)?;
        Ok(Self::new(folder, CheckpointEvery::default(), alone))
    }

    /// Writes down what the run was started with: from now on it can be gone on with.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn begin(&mut self, start: &RunStart) -> Result<(), PipelineError> {
        let text = to_ron(start)?;
        write_atomic(&self.folder.join(START_FILE), text.as_bytes()).map_err(PipelineError::Io)?;
        self.every = start.every;
        Ok(())
    }

    /// Those of the unfinished run in the folder `out`, with what it was started with. The newest checkpoint that is whole is gone on
    /// from; where there is none yet, the run starts over.
    ///
    /// # Errors
    /// No run was begun there; another process is at work there; checkpoints lie there, but none can be read: the message says why of each.
    pub fn open(out: &Path) -> Result<(Self, RunStart), PipelineError> {
        let folder = out.join(CHECKPOINT_FOLDER);
        let path = folder.join(START_FILE);
        if !path.is_file() {
            return Err(PipelineError::NotRunnable(format!(
                "{} holds no run that could be gone on with ({} is not there): start one by `limbeck run RECIPE --out {}`",
                out.display(),
                path.display(),
                out.display()
            )));
        }
        let alone = alone_in(&folder)?;
        let text = read_text(&path)?;
        if let Some(version) = super::claimed_version(&text)
            && version != START_VERSION
        {
            return Err(RecipeError::new(format!(
                "is version {version} of this file; this engine ({}) reads version {START_VERSION}",
                crate::VERSION
            ))
            .file(&path)
            .into());
        }
        let start: RunStart = from_ron(&text, &path)?;
        let mut kept = Self::new(folder, start.every, alone);
        let files = files(&kept.folder);
        kept.next = files.last().map_or(1, |(number, _)| number + 1);
        let mut broken = Vec::new();
        for (_, path) in files.into_iter().rev() {
            match read(&path) {
                Ok((header, blobs)) => {
                    kept.notes.extend(
                        broken
                            .iter()
                            .map(|why: &String| format!("{why}; going on from the one before it")),
                    );
                    kept.found = Some((path, header, blobs));
                    return Ok((kept, start));
                }
                Err(why) => broken.push(format!(
                    "the checkpoint {} cannot be used: {why}",
                    path.display()
                )),
            }
        }
        if broken.is_empty() {
            kept.notes
                .push("no checkpoint had been taken yet: starting over".to_owned());
            return Ok((kept, start));
        }
        Err(PipelineError::NotRunnable(format!(
            "{}; remove {} and start the run anew",
            broken.join("; "),
            kept.folder.display()
        )))
    }

    fn new(folder: PathBuf, every: CheckpointEvery, alone: File) -> Self {
        Self {
            folder,
            _alone: alone,
            every,
            identity: None,
            next: 1,
            found: None,
            notes: Vec::new(),
            last: Instant::now(),
            steps: 0,
            failed: None,
        }
    }

    /// Takes another interval than the run was started with.
    pub fn set_every(&mut self, every: CheckpointEvery) {
        self.every = every;
    }

    /// What is to be said about what was found, once.
    pub fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Whether any was taken, or found.
    pub fn any(&self) -> bool {
        self.next > 1
    }

    /// Removes them: the run is complete.
    ///
    /// # Errors
    /// Files that cannot be removed.
    pub fn done(out: &Path) -> io::Result<()> {
        remove(&out.join(CHECKPOINT_FOLDER))
    }

    /// Says whose checkpoints these are, and gives the stand to go on from, where there is one.
    ///
    /// # Errors
    /// The checkpoint belongs to another recipe, model, data or engine.
    pub(super) fn stand(
        &mut self,
        session: &Session,
        recipe: &Recipe,
        cancel: &CancelToken,
    ) -> Result<Option<Stand>, PipelineError> {
        let identity = Identity::of(session, recipe, cancel)?;
        self.last = Instant::now();
        let found = self.found.take();
        let mut stand = None;
        if let Some((path, header, blobs)) = found {
            let refuse = |why: String| {
                PipelineError::NotRunnable(format!(
                    "the checkpoint {} cannot be gone on from: {why}",
                    path.display()
                ))
            };
            if let Some(why) = header.identity.difference(&identity) {
                return Err(refuse(why));
            }
            let read = || {
                let training = match &header.training {
                    Some(text) => Some(train::Checkpoint::read(text, &blobs)?),
                    None => None,
                };
                Some(Stand {
                    index: header.index,
                    accounts: header.accounts,
                    training,
                    model: header.model.read(&blobs)?,
                })
            };
            stand = Some(read().ok_or_else(|| refuse("its pieces do not fit together".into()))?);
        }
        self.identity = Some(identity);
        Ok(stand)
    }

    /// Whether a checkpoint is due; `steps` were trained since the last time this was asked.
    pub(super) fn due(&mut self, steps: u64) -> bool {
        self.steps += steps;
        let waited =
            |s: f64| self.last.elapsed() >= Duration::try_from_secs_f64(s).unwrap_or_default();
        self.every.seconds.is_some_and(waited) || self.every.steps.is_some_and(|s| self.steps >= s)
    }

    /// Whether checkpoints are wanted at all.
    pub(super) fn wanted(&self) -> bool {
        self.every.wants_any()
    }

    /// Whether a run's folder has checkpoints to go on from.
    pub fn lie_in(out: &Path) -> bool {
        !files(&out.join(CHECKPOINT_FOLDER)).is_empty()
    }

    /// Why the last one could not be written.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Writes one. A failure stops nothing: it is told once, in words.
    pub(super) fn save(
        &mut self,
        index: usize,
        model: &Model,
        accounts: &[Account],
        training: Option<&train::Checkpoint>,
    ) -> Option<String> {
        let saved = self.write(index, model, accounts, training);
        self.last = Instant::now();
        self.steps = 0;
        match saved {
            Ok(()) => {
                self.failed = None;
                None
            }
            Err(why) => {
                let told = self.failed.replace(why.clone()).is_some();
                (!told).then(|| {
                    format!("no checkpoint could be taken: {why}; the run goes on without")
                })
            }
        }
    }

    fn write(
        &mut self,
        index: usize,
        model: &Model,
        accounts: &[Account],
        training: Option<&train::Checkpoint>,
    ) -> Result<(), String> {
        let identity = self.identity.clone().ok_or("it is not known whose it is")?;
        let mut blobs = Blobs::default();
        let header = Header {
            identity,
            index,
            model: ModelText::of(model, &mut blobs),
            accounts: accounts.to_vec(),
            training: training.map(|t| t.write(&mut blobs)),
        };
        let bytes = train::encode(&header, &blobs)?;
        let path = self.folder.join(format!("{:06}.{EXTENSION}", self.next));
        write_atomic(&path, &bytes).map_err(|e| e.to_string())?;
        self.next += 1;
        let files = files(&self.folder);
        for (_, old) in files.iter().rev().skip(KEPT) {
            // One that stays takes room and does no harm.
            let _ = std::fs::remove_file(old);
        }
        Ok(())
    }
}

impl fmt::Debug for Checkpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoints({})", self.folder.display())
    }
}

/// Checkpoints in a folder by number, in order.
pub(super) fn files(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.path();
            let ours = path.extension()? == EXTENSION;
            let number = path.file_stem()?.to_str()?.parse().ok()?;
            ours.then_some((number, path))
        })
        .collect();
    found.sort();
    found
}

pub(super) fn read(path: &Path) -> Result<(Header, Blobs), String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    train::decode(&Bytes::from(bytes))
}

/// The header alone: a look that costs no reading of tensors, and tells no change in them. [`Checkpoints::open`] does.
pub(super) fn read_header(path: &Path) -> Result<Header, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    train::decode_header(file, length)
}

/// Locks the folder against other processes.
pub(super) fn alone_in(folder: &Path) -> Result<File, PipelineError> {
    let path = folder.join(ALONE_FILE);
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let file = File::create(&path).map_err(|e| PipelineError::Io(named(e)))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(PipelineError::NotRunnable(format!(
            "another limbeck is at work on the run in {}: wait for it, stop it, or name another folder",
            folder.parent().unwrap_or(folder).display()
        ))),
        // Some network file systems know no locks: the run goes on without.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(e)) => Err(PipelineError::Io(named(e))),
    }
}

/// Removes what an earlier run can be gone on with by.
fn clear(folder: &Path) -> io::Result<()> {
    let start = folder.join(START_FILE);
    let ours = files(folder).into_iter().map(|(_, path)| path);
    for path in ours.chain([start]) {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Removes what this engine put there, and the folder where nothing else is in it: others keep files in folders of this name.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    clear(folder)?;
    // What cannot go, because it is open or the folder holds more, stays and does no harm.
    let _ = std::fs::remove_file(folder.join(ALONE_FILE));
    let _ = std::fs::remove_dir(folder);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_folded_norms_knew_is_kept() {
        use crate::compress::{FoldBatchNorm, Pass, testkit};
        let net = testkit::classifier(1);
        let (model, _) = testkit::with_context(|c| FoldBatchNorm.apply(net, c)).unwrap();
        assert!(model.norms.is_some());
        let mut blobs = Blobs::default();
        let text = ron::to_string(&ModelText::of(&model, &mut blobs)).unwrap();
        let read: ModelText = ron::from_str(&text).unwrap();
        assert_eq!(read.read(&blobs).unwrap().norms, model.norms);
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join(CHECKPOINT_FOLDER);
        std::fs::create_dir(&folder).unwrap();
        for name in ["mine.pt", "000001.checkpoint", START_FILE, ALONE_FILE] {
            std::fs::write(folder.join(name), name).unwrap();
        }
        Checkpoints::done(out.path()).unwrap();
        let left: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "mine.pt");
        std::fs::remove_file(folder.join("mine.pt")).unwrap();
        Checkpoints::done(out.path()).unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn a_folder_that_is_worked_in_is_not_taken() {
        let out = tempfile::tempdir().unwrap();
        let start = RunStart::new(Path::new("r.ron"), SplitName::Holdout, None, false);
        let mut first = Checkpoints::claim(out.path()).unwrap();
        let busy = |error: PipelineError| error.to_string().contains("at work");
        assert!(Checkpoints::claim(out.path()).is_err_and(busy));
        first.begin(&start).unwrap();
        assert!(Checkpoints::open(out.path()).is_err_and(busy));
        drop(first);
        // Nothing was trained yet: it starts over, and may be begun anew.
        assert_eq!(Checkpoints::open(out.path()).unwrap().1, start);
        Checkpoints::claim(out.path()).unwrap();
        let nothing = |error: PipelineError| error.to_string().contains("no run");
        assert!(Checkpoints::open(out.path()).is_err_and(nothing));
    }
}
