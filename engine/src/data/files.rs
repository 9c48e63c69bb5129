//! Finding and reading files without leaving the allowed folder, without hanging and without trusting sizes.

use super::DataError;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Component, Path, PathBuf},
};

/// Most bytes an array may take in memory. Larger data belongs in a folder of images, which are decoded on demand.
pub(super) const MAX_ARRAY_BYTES: u64 = 4 << 30;

/// `relative` inside `base`, with links resolved. Refuses absolute paths and everything that leads out of `base`.
pub(super) fn inside(base: &Path, relative: &str) -> Result<PathBuf, DataError> {
    let refuse = || {
        DataError::Source(format!(
            "{relative:?} leads out of {}: paths are relative to that folder and must stay inside it",
            base.display()
        ))
    };
    let mut depth = 0usize;
    for component in Path::new(relative).components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth = depth.checked_sub(1).ok_or_else(refuse)?,
            Component::RootDir | Component::Prefix(_) => return Err(refuse()),
        }
    }
    let path = canonical(&base.join(relative))?;
    if path.starts_with(canonical(base)?) {
        Ok(path)
    } else {
        Err(refuse())
    }
}

/// The user's own folder or list: may be absolute, else [`inside`] `base`.
pub(super) fn anywhere(base: &Path, path: &str) -> Result<PathBuf, DataError> {
    if Path::new(path).is_absolute() {
        canonical(Path::new(path))
    } else {
        inside(base, path)
    }
}

fn canonical(path: &Path) -> Result<PathBuf, DataError> {
    path.canonicalize().map_err(|e| unreadable(path, &e))
}

pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> DataError {
    DataError::Source(format!(
        "cannot read {error_path}: {error}",
        error_path = path.display()
    ))
}

/// Opens a regular file: a pipe or device would hang.
pub(super) fn open(path: &Path) -> Result<(File, u64), DataError> {
    let meta = path.metadata().map_err(|e| unreadable(path, &e))?;
    if !meta.is_file() {
        return Err(DataError::Source(format!(
            "{} is not a file",
            path.display()
        )));
    }
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    Ok((file, meta.len()))
}

/// A text file of at most 64 MiB.
pub(super) fn text(path: &Path) -> Result<String, DataError> {
    const LIMIT: u64 = 64 << 20;
    let (file, size) = open(path)?;
    if size > LIMIT {
        return Err(DataError::Source(format!(
            "{} has {size} bytes, more than the {LIMIT} a text file may have",
            path.display()
        )));
    }
    let mut text = String::new();
    file.take(LIMIT)
        .read_to_string(&mut text)
        .map_err(|e| unreadable(path, &e))?;
    Ok(text)
}

/// SHA-256 of a file and its length.
pub(super) fn digest(path: &Path) -> Result<(u64, [u8; 32]), DataError> {
    let (mut file, _) = open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 16];
    let mut length = 0u64;
    loop {
        let got = file.read(&mut buffer).map_err(|e| unreadable(path, &e))?;
        if got == 0 {
            break;
        }
        hasher.update(&buffer[..got]);
        length += got as u64;
    }
    Ok((length, hasher.finalize().into()))
}

/// The bytes of a file, through gzip where its first bytes say so, as a stream.
pub(super) fn stream(path: &Path) -> Result<Box<dyn Read>, DataError> {
    let (mut file, _) = open(path)?;
    let mut magic = [0u8; 2];
    let gzip = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    let (file, _) = open(path)?;
    let reader = BufReader::with_capacity(1 << 16, file);
    Ok(if gzip {
        Box::new(flate2::read::MultiGzDecoder::new(reader))
    } else {
        Box::new(reader)
    })
}

/// Exactly `size` bytes and then the end. Memory grows with what is really there, not with what a header claims.
pub(super) fn exactly(reader: &mut dyn Read, size: u64, what: &str) -> Result<Vec<u8>, DataError> {
    if size > MAX_ARRAY_BYTES {
        return Err(DataError::Source(format!(
            "{what}: its header announces {size} bytes; at most {MAX_ARRAY_BYTES} are read. Use an image folder for more"
        )));
    }
    let mut bytes = Vec::new();
    reader
        .take(size + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| DataError::Source(format!("{what}: damaged or cut short ({e})")))?;
    if bytes.len() as u64 == size {
        Ok(bytes)
    } else {
        let found = if (bytes.len() as u64) < size {
            format!("only {}", bytes.len())
        } else {
            "more".to_owned()
        };
        Err(DataError::Source(format!(
            "{what}: its header announces {size} bytes of values, the file has {found}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_folder_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("task");
        std::fs::create_dir(&base).unwrap();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        std::fs::write(base.join("data"), "x").unwrap();
        assert!(inside(&base, "data").is_ok());
        assert!(inside(&base, "./sub/../data").is_err(), "sub is missing");
        for path in ["../secret", "a/../../secret", "/etc/hostname"] {
            let error = inside(&base, path).unwrap_err().to_string();
            assert!(error.contains("leads out of"), "{error}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(folder.path().join("secret"), base.join("link")).unwrap();
            assert!(inside(&base, "link").is_err());
        }
        assert!(open(&base).is_err(), "a folder is not a file");
    }

    #[test]
    fn announced_sizes_are_checked() {
        let read = |bytes: &[u8], size| exactly(&mut &*bytes, size, "x.idx");
        assert_eq!(read(&[1, 2, 3], 3).unwrap(), [1, 2, 3]);
        assert!(read(&[1, 2], 3).unwrap_err().to_string().contains("only 2"));
        assert!(
            read(&[1, 2, 3, 4], 3)
                .unwrap_err()
                .to_string()
                .contains("more")
        );
        assert!(read(&[1], u64::MAX).is_err());
    }
}
