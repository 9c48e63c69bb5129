//! Memory-mapped files, and the external tensor data that a model may keep beside itself.

use super::FormatError;
use super::proto::Entry;
use crate::graph;
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    fs::File,
    path::{Component, Path, PathBuf},
};

/// Maps a file into memory.
pub(super) fn map_file(path: &Path) -> Result<Bytes, FormatError> {
    let fail = |e: std::io::Error| FormatError::new(path, format!("cannot read the file: {e}"));
    let file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(FormatError::new(
            path,
            "cannot read the file: it is not a regular file",
        ));
    }
    if metadata.len() == 0 {
        // An empty map is an error on some systems.
        return Ok(Bytes::new());
    }
    graph::map(&file).map_err(fail)
}

/// The files that hold a model's external data, each mapped once.
pub(super) struct ExternalFiles {
    folder: Option<PathBuf>,
    maps: BTreeMap<PathBuf, Bytes>,
}

impl ExternalFiles {
    pub(super) fn new(folder: Option<&Path>) -> Self {
        Self {
            folder: folder.map(Path::to_path_buf),
            maps: BTreeMap::new(),
        }
    }

    /// Bytes of all files referred to so far.
    pub(super) fn total_bytes(&self) -> u64 {
        self.maps.values().map(|m| m.len() as u64).sum()
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.maps.keys().cloned().collect()
    }

    /// The bytes that `entries` point at: `expected` of them. The error is the reason alone.
    pub(super) fn bytes(&mut self, entries: &[Entry], expected: usize) -> Result<Bytes, String> {
        let get = |key: &str| {
            entries
                .iter()
                .find(|e| e.key.as_deref() == Some(key))
                .and_then(|e| e.value.as_deref())
        };
        let number = |key: &str| {
            get(key)
                .map(|v| {
                    v.trim().parse::<usize>().map_err(|_| {
                        format!("its external data has the {key} {v:?}, which is not a number")
                    })
                })
                .transpose()
        };
        let location =
            get("location").ok_or("its data lies in another file, but no location is given")?;
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?.unwrap_or(expected);
        if length != expected {
            return Err(format!(
                "its external data is {length} bytes long, but type and shape need {expected}"
            ));
        }
        let map = self.map(location)?;
        offset
            .checked_add(length)
            .filter(|&end| end <= map.len())
            .map(|end| map.slice(offset..end))
            .ok_or_else(|| {
                format!(
                    "its external data is bytes {offset} to {offset}+{length} of {location}, which has only {}",
                    map.len()
                )
            })
    }

    fn map(&mut self, location: &str) -> Result<Bytes, String> {
        let Some(folder) = &self.folder else {
            return Err(
                "its data lies in another file, which a model in memory can't refer to".into(),
            );
        };
        // Windows separators too: some exporters write them, and a name with one must not slip past.
        let relative = PathBuf::from(location.replace('\\', "/"));
        let inside = relative
            .components()
            .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !inside || relative.as_os_str().is_empty() || location.contains(':') {
            return Err(format!(
                "its data lies in {location:?}: only files inside the model's own folder are read"
            ));
        }
        let path = folder.join(&relative);
        if let Some(map) = self.maps.get(&path) {
            return Ok(map.clone());
        }
        let missing = |e: std::io::Error| {
            format!("its data file {location:?} can't be read beside the model: {e}")
        };
        let real = path.canonicalize().map_err(missing)?;
        let real_folder = folder.canonicalize().map_err(missing)?;
        if !real.starts_with(&real_folder) {
            return Err(format!(
                "its data file {location:?} is a link that leaves the model's folder: only files inside it are read"
            ));
        }
        let map =
            map_file(&real).map_err(|e| format!("its data file {location:?}: {}", e.message))?;
        self.maps.insert(path, map.clone());
        Ok(map)
    }
}
