//! Images in files: class sub-folders, or a CSV of path and label. Decoded on demand.

use super::{DataError, files, task::did_you_mean};
use image::DynamicImage;
use std::{
    io::BufReader,
    path::{Path, PathBuf},
};

/// One image and what the source calls its class.
pub(super) struct Item {
    pub path: PathBuf,
    pub label: String,
}

/// Every image of every class sub-folder, sorted by class and then by file name. Files of other kinds and hidden ones
/// are passed over.
pub(super) fn scan(root: &Path) -> Result<Vec<Item>, DataError> {
    let mut items = Vec::new();
    let mut classes = 0;
    for folder in sorted(root)? {
        if !folder.is_dir() || hidden(&folder) {
            continue;
        }
        classes += 1;
        let label = name(&folder)?;
        let before = items.len();
        for path in sorted(&folder)? {
            if is_image(&path) && !hidden(&path) && path.is_file() {
                items.push(Item {
                    path,
                    label: label.clone(),
                });
            }
        }
        if items.len() == before {
            return Err(DataError::Source(format!(
                "the class folder {} has no image (.jpg, .jpeg, .png, .bmp); fill it or remove it",
                folder.display()
            )));
        }
    }
    if classes == 0 {
        return Err(DataError::Source(format!(
            "{} has no sub-folders; expected one per class, named after it, with its images inside",
            root.display()
        )));
    }
    Ok(items)
}

/// Every image that lies in a folder, not in folders within it, sorted by name. Files of other kinds and hidden ones are passed over.
pub(super) fn images(root: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut found = sorted(root)?;
    found.retain(|path| is_image(path) && !hidden(path) && path.is_file());
    if found.is_empty() {
        return Err(DataError::Source(format!(
            "{} has no image (.jpg, .jpeg, .png, .bmp) right inside; images in a sub-folder per class are a `Folder`",
            root.display()
        )));
    }
    Ok(found)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    let mut paths = read().map_err(|e| files::unreadable(folder, &e))?;
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> Result<String, DataError> {
    path.file_name()
        .and_then(|n| n.to_str())
        .map(str::to_owned)
        .ok_or_else(|| {
            DataError::Source(format!(
                "the name of {} is not UTF-8; rename it",
                path.display()
            ))
        })
}

fn hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."))
}

fn is_image(path: &Path) -> bool {
    path.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| ["jpg", "jpeg", "png", "bmp"].contains(&e.to_lowercase().as_str()))
}

/// Rows `path,label[,name]`; a first row that begins with `path,label` is a heading. Paths are relative to the list and
/// stay inside its folder.
pub(super) fn list(csv: &Path) -> Result<Vec<Item>, DataError> {
    let text = files::text(csv)?;
    let base = csv.parent().unwrap_or(Path::new("."));
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut items = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let record = record
            .map_err(|e| DataError::Source(format!("{}: row {}: {e}", csv.display(), index + 1)))?;
        let line = record
            .position()
            .map_or(index as u64 + 1, csv::Position::line);
        let (Some(path), Some(label)) = (record.get(0), record.get(1)) else {
            return Err(DataError::Source(format!(
                "{}:{line}: expected path,label[,name], found {} column",
                csv.display(),
                record.len()
            )));
        };
        if index == 0 && path.eq_ignore_ascii_case("path") && label.eq_ignore_ascii_case("label") {
            continue;
        }
        let path = files::inside(base, path)
            .map_err(|e| DataError::Source(format!("{}:{line}: {e}", csv.display())))?;
        items.push(Item {
            path,
            label: label.to_owned(),
        });
    }
    if items.is_empty() {
        return Err(DataError::Source(format!(
            "{} lists no images; expected rows path,label[,name]",
            csv.display()
        )));
    }
    Ok(items)
}

/// Class index of a label: its place among the names, or the number it is.
pub(super) fn class_of(item: &Item, classes: &[String]) -> Result<u32, DataError> {
    if let Some(index) = classes.iter().position(|name| *name == item.label) {
        return Ok(index as u32);
    }
    if let Ok(index) = item.label.parse::<usize>() {
        if index < classes.len() {
            return Ok(index as u32);
        }
        return Err(DataError::Source(format!(
            "{} has label {index}, but the task has {} classes (0 to {})",
            item.path.display(),
            classes.len(),
            classes.len().saturating_sub(1)
        )));
    }
    Err(DataError::Source(format!(
        "{} has the class {:?}, which is not among the task's {} classes{}",
        item.path.display(),
        item.label,
        classes.len(),
        did_you_mean(&item.label, classes.iter().map(String::as_str))
    )))
}

/// Decodes a JPEG, PNG or BMP, recognised by its content; sizes that would take gigabytes are refused.
pub(super) fn decode(path: &Path) -> Result<DynamicImage, DataError> {
    let (file, _) = files::open(path)?;
    let mut reader = image::ImageReader::new(BufReader::new(file))
        .with_guessed_format()
        .map_err(|e| files::unreadable(path, &e))?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(1 << 15);
    limits.max_image_height = Some(1 << 15);
    limits.max_alloc = Some(512 << 20);
    reader.limits(limits);
    reader.decode().map_err(|e| {
        DataError::Source(format!(
            "{} cannot be decoded as JPEG, PNG or BMP: {e}",
            path.display()
        ))
    })
}
