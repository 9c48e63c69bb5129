//! Hashes, and files that are replaced only when the new one is complete.

use sha2::{Digest, Sha256};
use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// How files are called that are being written.
const PART_PREFIX: &str = ".limbeck-";
const PART_SUFFIX: &str = ".part";

/// SHA-256 of bytes, hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, hex, read piece by piece.
///
/// # Errors
/// The file cannot be read; the message names it.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    std::fs::File::open(path)
        .and_then(|file| hash_reader(file, &AtomicBool::new(false)))
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// SHA-256 of what a reader gives, hex, piece by piece; `Interrupted` once `stop` is set.
pub(super) fn hash_reader(mut from: impl Read, stop: &AtomicBool) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let read = from.read(&mut piece)?;
        let Some(filled) = piece.get(..read).filter(|p| !p.is_empty()) else {
            return Ok(hex(&hasher.finalize()));
        };
        hasher.update(filled);
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes `bytes` to `path` by way of a temporary file in the same folder, flushed to the disk and renamed when complete: an
/// existing file is replaced whole or not at all.
///
/// # Errors
/// The folder is missing or not writable, the disk is full: the message names the file and what to do.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomic_by(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], with the content written by `fill`.
fn write_atomic_by(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let explain = |e: io::Error| {
        let what = match e.kind() {
            io::ErrorKind::StorageFull => {
                "the disk is full; free some space and try again (an existing file was left as it was)"
                    .to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "no permission to write here; choose another folder".to_owned()
            }
            io::ErrorKind::NotFound => "the folder does not exist".to_owned(),
            io::ErrorKind::IsADirectory => "this is a folder; a file name was expected".to_owned(),
            _ => e.to_string(),
        };
        io::Error::new(e.kind(), format!("cannot write {}: {what}", path.display()))
    };
    if path.is_dir() {
        return Err(explain(io::ErrorKind::IsADirectory.into()));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(PART_PREFIX).suffix(PART_SUFFIX);
    // A file of the user's is readable as any other, not only by its owner as a temporary file would be; the process's umask
    // still takes its bits away.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder(path)).map_err(explain)?;
    fill(file.as_file_mut())
        .and_then(|()| file.as_file().sync_all())
        .map_err(explain)?;
    file.persist(path).map_err(|e| explain(e.error))?;
    Ok(())
}

/// Removes what [`write_atomic`] had half written in a folder when its process was killed.
pub fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PART_PREFIX) && name.ends_with(PART_SUFFIX) {
            // One that stays takes room and does no harm.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// `path` as seen from the folder `from`, where both are under a common root; else absolute.
pub fn relative_to(path: &Path, from: &Path) -> PathBuf {
    let absolute = |p: &Path| {
        p.canonicalize()
            .or_else(|_| std::path::absolute(p))
            .unwrap_or_else(|_| p.to_owned())
    };
    let (path, from) = (absolute(path), absolute(from));
    let (a, b): (Vec<_>, Vec<_>) = (path.components().collect(), from.components().collect());
    let common = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    if common <= 1 {
        return path;
    }
    std::iter::repeat_n(std::path::Component::ParentDir, b.len() - common)
        .chain(a.iter().skip(common).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("model.onnx");
        write_atomic(&path, b"old").expect("writes");
        let error = write_atomic_by(&path, |file| {
            file.write_all(b"half of the new")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .expect_err("full disk")
        .to_string();
        assert!(
            error.contains("disk is full") && error.contains("model.onnx"),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).expect("still there"), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1);
        write_atomic(&path, b"new").expect("replaces");
        assert_eq!(std::fs::read(&path).expect("reads"), b"new");
        let missing = write_atomic(&dir.path().join("no/such/x"), b"").expect_err("no folder");
        assert!(missing.to_string().contains("folder does not exist"));
        assert!(
            write_atomic(dir.path(), b"")
                .expect_err("a folder")
                .to_string()
                .contains("file name")
        );
    }

    #[test]
    fn hashes_are_those_of_the_standard() {
        // FIPS 180-4, the one-block example "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), abc);
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").expect("writes");
        assert_eq!(sha256_file(&path).expect("reads"), abc);
    }

    #[test]
    fn relative_paths_lead_back() {
        let dir = tempfile::tempdir().expect("dir");
        let (a, b) = (dir.path().join("a/x"), dir.path().join("b"));
        std::fs::create_dir_all(&a).expect("dirs");
        std::fs::create_dir_all(&b).expect("dirs");
        std::fs::write(a.join("m"), "").expect("file");
        let relative = relative_to(&a.join("m"), &b);
        assert_eq!(relative, Path::new("../a/x/m"));
    }
}
