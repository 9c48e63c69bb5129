//! What tells a model from another: the hash of its files. Large ones are read in the background, from the files as they were
//! opened: the window does not wait for it, whoever writes the hash down does.

use super::files::{hash_reader, sha256};
use crate::exec::CancelToken;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Between two looks at whether the one who waits still wants to.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The hash, or the kind and words of what kept a file from being read.
type Outcome = Result<String, (io::ErrorKind, String)>;
type Told = Box<dyn FnOnce(Result<String, String>) + Send>;

/// A model's hash, known or on its way. Dropping it ends the reading.
pub(super) struct Identity(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    done: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    told: Vec<Told>,
}

impl Identity {
    /// Opens the files, and hashes them: at once, or on a thread of its own.
    ///
    /// # Errors
    /// A file that cannot be opened; read at once, also one that cannot be read.
    pub fn of(model: &Path, data: &[PathBuf], in_background: bool) -> io::Result<Self> {
        let files: Vec<(PathBuf, File)> = std::iter::once(model)
            .chain(data.iter().map(PathBuf::as_path))
            .map(|path| {
                let file = File::open(path).map_err(|e| named(path, &e))?;
                Ok((path.to_owned(), file))
            })
            .collect::<io::Result<_>>()?;
        let shared = Arc::new(Shared::default());
        if in_background {
            let mine = shared.clone();
            let work = move || {
                let read = hashed(files, &mine.stop);
                mine.finish(read.map_err(|e| (e.kind(), e.to_string())));
            };
            std::thread::Builder::new()
                .name("limbeck-hash".into())
                .spawn(work)?;
        } else {
            shared.finish(Ok(hashed(files, &shared.stop)?));
        }
        Ok(Self(shared))
    }

    /// The hash if it is known by now.
    pub fn known(&self) -> Option<String> {
        self.0.lock().outcome.as_ref()?.as_ref().ok().cloned()
    }

    /// Waits for the hash.
    ///
    /// # Errors
    /// A file that cannot be read, and `Interrupted` when cancelled.
    pub fn wait(&self, cancel: &CancelToken) -> io::Result<String> {
        let mut state = self.0.lock();
        loop {
            match &state.outcome {
                Some(Ok(hash)) => return Ok(hash.clone()),
                Some(Err((kind, words))) => return Err(io::Error::new(*kind, words.clone())),
                None if cancel.is_cancelled() => return Err(io::ErrorKind::Interrupted.into()),
                None => {}
            }
            let waited = self.0.done.wait_timeout(state, LOOK_EVERY);
            state = waited.unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Calls `told` once the hash is there: now, or from the thread that reads; never where the reading is given up.
    pub fn when_known(&self, told: Told) {
        let mut state = self.0.lock();
        match state.outcome.clone() {
            None => state.told.push(told),
            Some(outcome) => {
                drop(state);
                told(outcome.map_err(|(_, words)| words));
            }
        }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn finish(&self, outcome: Outcome) {
        let mut state = self.lock();
        state.outcome = Some(outcome.clone());
        let told = std::mem::take(&mut state.told);
        drop(state);
        self.done.notify_all();
        if !self.stop.load(Ordering::Relaxed) {
            for tell in told {
                tell(outcome.clone().map_err(|(_, words)| words));
            }
        }
    }

    /// A panic cannot happen while the lock is held: the state is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn named(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

/// SHA-256 of the first file, the model's; where weights lie in files beside it, that of all their hashes, a line each: a data
/// file that was trained anew counts as well.
fn hashed(files: Vec<(PathBuf, File)>, stop: &AtomicBool) -> io::Result<String> {
    let mut hashes = Vec::with_capacity(files.len());
    for (path, file) in files {
        hashes.push(hash_reader(file, stop).map_err(|e| named(&path, &e))?);
    }
    match &hashes[..] {
        [own] => Ok(own.clone()),
        all => Ok(sha256((all.join("\n") + "\n").as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn external_data_counts_for_what_a_model_is() {
        let dir = tempfile::tempdir().unwrap();
        let [model, data] = ["m.onnx", "m.data"].map(|name| dir.path().join(name));
        std::fs::write(&model, "model").unwrap();
        std::fs::write(&data, "weights").unwrap();
        let hash = |data: &[PathBuf], in_background| {
            let identity = Identity::of(&model, data, in_background).unwrap();
            identity.wait(&CancelToken::default()).unwrap()
        };
        let alone = hash(&[], false);
        assert_eq!(alone, sha256(b"model"));
        let both = std::slice::from_ref(&data);
        let first = hash(both, false);
        // As it has always been written to locks and projects.
        let lines = format!("{}\n{}\n", sha256(b"model"), sha256(b"weights"));
        assert_eq!(first, sha256(lines.as_bytes()));
        assert_eq!(hash(both, true), first, "the same in the background");
        std::fs::write(&data, "Weights").unwrap();
        assert_ne!(hash(both, false), first);
    }

    #[test]
    fn what_was_opened_is_hashed_and_everyone_who_asked_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("m.onnx");
        std::fs::write(&model, "old").unwrap();
        let identity = Identity::of(&model, &[], true).unwrap();
        let fresh = dir.path().join("fresh");
        std::fs::write(&fresh, "new").unwrap();
        std::fs::rename(&fresh, &model).unwrap();
        let (tell, told) = mpsc::channel();
        identity.when_known(Box::new(move |hash| tell.send(hash).unwrap()));
        assert_eq!(told.recv().unwrap().unwrap(), sha256(b"old"));
        assert_eq!(identity.known(), Some(sha256(b"old")));
        let (tell, told) = mpsc::channel();
        identity.when_known(Box::new(move |hash| tell.send(hash).unwrap()));
        assert_eq!(told.try_recv().unwrap().unwrap(), sha256(b"old"));
    }

    #[test]
    fn one_who_waits_can_give_up_and_a_missing_file_is_named() {
        let identity = Identity(Arc::default());
        let cancel = CancelToken::default();
        cancel.cancel();
        let error = identity.wait(&cancel).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        let missing = Path::new("no/such.onnx");
        let error = Identity::of(missing, &[], true).err().unwrap();
        assert!(error.to_string().contains("no/such.onnx"), "{error}");
    }
}
