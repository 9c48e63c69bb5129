//! Opening a task: reads its sources, checks labels against classes, deals the splits, takes the hash.

use super::{
    DataError, DatasetInfo, Inner, Samples, Source,
    arrays::{self, Array},
    augment::Augmentation,
    files, folder,
    preprocess::{Geometry, Recipe},
    splits,
    task::{self, Classes, SourceSpec, Task},
};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// What a source holds before classes are known.
enum Raw {
    Array(Array, Option<Vec<i64>>),
    Items(Vec<folder::Item>),
    /// Without labels.
    Images(Vec<PathBuf>),
}

struct Read {
    what: String,
    raw: Raw,
    /// Every file read, in a fixed order: what the hash is taken over.
    files: Vec<PathBuf>,
}

pub(super) fn open(path: &Path) -> Result<Inner, DataError> {
    let text = files::text(path)?;
    let task = task::parse(&text, path)?;
    let base = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Everything below speaks of a part of the task; the file's own name goes in front.
    load(&task, &text, base).map_err(|error| match error {
        DataError::Task(message) => DataError::Task(format!("{}: {message}", path.display())),
        other => other,
    })
}

fn load(task: &Task, text: &str, base: &Path) -> Result<Inner, DataError> {
    let recipe = Recipe::new(&task.preprocess)?;
    if task.sources.is_empty() {
        return Err(DataError::Task(
            "`sources` is empty; name at least one".into(),
        ));
    }
    let mut reads = BTreeMap::new();
    for (name, spec) in &task.sources {
        let read = read(spec, base)?;
        reads.insert(name.clone(), read);
    }
    distinct_files(&reads)?;
    let (classes, classes_file) = class_names(task, base, &reads)?;
    let sha256 = hash(text, classes_file.as_deref(), &reads)?;

    let mut sources = BTreeMap::new();
    let mut sample_shape: Option<(Vec<usize>, String)> = None;
    for (name, read) in reads {
        let (source, shape) = prepare(read, &classes, &recipe)?;
        match &sample_shape {
            Some((other, what)) if *other != shape => {
                return Err(DataError::Task(format!(
                    "samples of {what} have shape {other:?} after preprocessing, those of {} {shape:?}; they must be alike",
                    source.what
                )));
            }
            Some(_) => {}
            None => sample_shape = Some((shape, source.what.clone())),
        }
        sources.insert(name, source);
    }
    let sizes = sources
        .iter()
        .map(|(name, source)| (name.clone(), source.count))
        .collect();
    let splits = splits::assign(&task.splits, &sizes)?;
    let unlabelled = splits.iter().filter(|(_, rows)| {
        let source = sources.get(&rows.source);
        source.is_some_and(|source| source.labels.is_none())
    });
    let unlabelled = unlabelled.map(|(name, _)| *name).collect();
    distinct_samples(&sources, &splits)?;
    let shape = sample_shape.map(|(shape, _)| shape).unwrap_or_default();
    Ok(Inner {
        augmentation: Augmentation::new(task.augment, &shape, &recipe)?,
        info: DatasetInfo {
            name: task.name.clone(),
            classes,
            sizes: splits
                .iter()
                .map(|(name, rows)| (*name, rows.rows.len()))
                .collect(),
            unlabelled,
            sample_shape: shape,
            sha256,
        },
        recipe,
        sources,
        splits,
    })
}

fn read(spec: &SourceSpec, base: &Path) -> Result<Read, DataError> {
    let inside = |labels: &Option<String>| -> Result<Option<PathBuf>, DataError> {
        let path = labels.as_deref().map(|path| files::inside(base, path));
        path.transpose()
    };
    Ok(match spec {
        SourceSpec::Idx { images, labels } => {
            let (images, labels) = (files::inside(base, images)?, inside(labels)?);
            let classes = labels.as_deref().map(arrays::idx_labels).transpose()?;
            Read {
                what: images.display().to_string(),
                raw: Raw::Array(arrays::idx(&images)?, classes),
                files: std::iter::once(images).chain(labels).collect(),
            }
        }
        SourceSpec::Npy { images, labels } => {
            let (images, labels) = (files::inside(base, images)?, inside(labels)?);
            let (array, classes) = arrays::npy(&images, labels.as_deref())?;
            Read {
                what: images.display().to_string(),
                raw: Raw::Array(array, classes),
                files: std::iter::once(images).chain(labels).collect(),
            }
        }
        SourceSpec::Npz {
            file,
            images,
            labels,
        } => {
            let file = files::inside(base, file)?;
            let (array, classes) = arrays::npz(&file, images, labels.as_deref())?;
            Read {
                what: file.display().to_string(),
                raw: Raw::Array(array, classes),
                files: vec![file],
            }
        }
        SourceSpec::Folder { path } => {
            let root = files::anywhere(base, path)?;
            let items = folder::scan(&root)?;
            Read {
                what: root.display().to_string(),
                files: items.iter().map(|item| item.path.clone()).collect(),
                raw: Raw::Items(items),
            }
        }
        SourceSpec::Images { path } => {
            let root = files::anywhere(base, path)?;
            let images = folder::images(&root)?;
            Read {
                what: root.display().to_string(),
                files: images.clone(),
                raw: Raw::Images(images),
            }
        }
        SourceSpec::Csv { file } => {
            let file = files::anywhere(base, file)?;
            let items = folder::list(&file)?;
            Read {
                what: file.display().to_string(),
                files: std::iter::once(file)
                    .chain(items.iter().map(|item| item.path.clone()))
                    .collect(),
                raw: Raw::Items(items),
            }
        }
    })
}

/// Two sources over the same array file would let splits share samples unseen.
fn distinct_files(reads: &BTreeMap<String, Read>) -> Result<(), DataError> {
    let mut seen: BTreeMap<&Path, &str> = BTreeMap::new();
    for (name, read) in reads {
        let Raw::Array(..) = read.raw else { continue };
        if let Some(file) = read.files.first()
            && let Some(other) = seen.insert(file, name)
        {
            return Err(DataError::Task(format!(
                "the sources {other:?} and {name:?} read the same samples from {}; name them once and use ranges of rows",
                file.display()
            )));
        }
    }
    Ok(())
}

/// An image file may stand in one split only, whichever sources list it.
fn distinct_samples(
    sources: &BTreeMap<String, Source>,
    splits: &BTreeMap<super::SplitName, splits::Rows>,
) -> Result<(), DataError> {
    let mut seen: BTreeMap<&Path, super::SplitName> = BTreeMap::new();
    for (split, rows) in splits {
        let Some(Samples::Files(paths)) = sources.get(&rows.source).map(|s| &s.samples) else {
            continue;
        };
        for row in &rows.rows {
            let path = paths[*row as usize].as_path();
            if let Some(other) = seen.insert(path, *split)
                && other != *split
            {
                return Err(DataError::Task(format!(
                    "`splits`: {} is in both {other} and {split}; splits must not share samples",
                    path.display()
                )));
            }
        }
    }
    Ok(())
}

/// Names of the classes, and the file they came from.
fn class_names(
    task: &Task,
    base: &Path,
    reads: &BTreeMap<String, Read>,
) -> Result<(Vec<String>, Option<PathBuf>), DataError> {
    const MOST: usize = 1_000_000;
    let mut file = None;
    let names = match &task.classes {
        Some(Classes::Names(names)) => names.clone(),
        Some(Classes::Count(count)) if *count <= MOST => {
            (0..*count).map(|i| i.to_string()).collect()
        }
        Some(Classes::Count(count)) => {
            return Err(DataError::Task(format!(
                "`classes`: {count} classes; at most {MOST} are possible"
            )));
        }
        Some(Classes::File(name)) => {
            let path = files::inside(base, name)?;
            let names = files::text(&path)?
                .lines()
                .map(|line| line.trim().to_owned())
                .filter(|line| !line.is_empty())
                .collect();
            file = Some(path);
            names
        }
        None => {
            let mut names = Vec::new();
            for (name, read) in reads {
                let (Raw::Items(items), Some(SourceSpec::Folder { .. })) =
                    (&read.raw, task.sources.get(name))
                else {
                    return Err(DataError::Task(format!(
                        "`classes` is missing: only folders name their classes themselves, and the source {name:?} is none. \
                         Give Names([…]), Count(n) or File(\"…\")"
                    )));
                };
                names.extend(items.iter().map(|item| item.label.clone()));
            }
            names.sort();
            names.dedup();
            names
        }
    };
    if names.is_empty() {
        return Err(DataError::Task("`classes` names none".into()));
    }
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(DataError::Task(format!(
            "`classes` names {:?} twice",
            pair[0]
        )));
    }
    Ok((names, file))
}

/// Over the task's text, then of every source in the order of names: each file's name, length and digest.
fn hash(
    text: &str,
    classes: Option<&Path>,
    reads: &BTreeMap<String, Read>,
) -> Result<String, DataError> {
    let mut hasher = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(text.as_bytes());
    let mut all: Vec<(&str, &Path)> = classes.map(|path| ("classes", path)).into_iter().collect();
    for (name, read) in reads {
        all.extend(
            read.files
                .iter()
                .map(|file| (name.as_str(), file.as_path())),
        );
    }
    let digests: Vec<Result<(u64, [u8; 32]), DataError>> = if all.len() > 16 {
        crate::exec::pool().install(|| all.par_iter().map(|(_, p)| files::digest(p)).collect())
    } else {
        all.iter().map(|(_, p)| files::digest(p)).collect()
    };
    for ((name, path), digest) in all.iter().zip(digests) {
        let (length, digest) = digest?;
        field(name.as_bytes());
        // The folder that holds it and its name: enough to tell classes apart, the same wherever the data lies.
        let tail: PathBuf = path.components().rev().take(2).collect();
        field(tail.as_os_str().as_encoded_bytes());
        field(&length.to_le_bytes());
        field(&digest);
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn prepare(
    read: Read,
    classes: &[String],
    recipe: &Recipe,
) -> Result<(Source, Vec<usize>), DataError> {
    let what = read.what;
    match read.raw {
        Raw::Items(items) => {
            let count = items.len();
            let labels = items
                .iter()
                .map(|item| folder::class_of(item, classes))
                .collect::<Result<_, _>>()?;
            let shape = recipe.sample_shape(None, &what)?;
            let samples = Samples::Files(items.into_iter().map(|item| item.path).collect());
            Ok((
                Source {
                    what,
                    count,
                    labels: Some(labels),
                    samples,
                },
                shape,
            ))
        }
        Raw::Images(paths) => {
            let shape = recipe.sample_shape(None, &what)?;
            Ok((
                Source {
                    what,
                    count: paths.len(),
                    labels: None,
                    samples: Samples::Files(paths),
                },
                shape,
            ))
        }
        Raw::Array(array, labels) => {
            let count = array.shape.first().copied().unwrap_or(0);
            if let Some(labels) = &labels
                && count != labels.len()
            {
                return Err(DataError::Source(format!(
                    "{what} has {count} images but its labels are {}; there must be one label an image",
                    labels.len()
                )));
            }
            if array.shape[1..].contains(&0) || array.shape.len() < 2 {
                return Err(DataError::Source(format!(
                    "{what} has shape {:?}; expected samples × height × width, with or without channels",
                    array.shape
                )));
            }
            if u32::try_from(count).is_err() {
                return Err(DataError::Source(format!(
                    "{what} has {count} samples, more than can be counted"
                )));
            }
            let known = |(row, label): (usize, i64)| match u32::try_from(label) {
                Ok(label) if (label as usize) < classes.len() => Ok(label),
                _ => Err(DataError::Source(format!(
                    "item {row} of {what} has label {label}, but the task has {} classes (0 to {})",
                    classes.len(),
                    classes.len() - 1
                ))),
            };
            let labels = labels
                .map(|labels| labels.into_iter().enumerate().map(known).collect())
                .transpose()?;
            let (samples, shape) = match geometry(&array.shape[1..]) {
                Some(geometry) => {
                    let shape = recipe.sample_shape(Some(geometry), &what)?;
                    (Samples::Pictures(array, geometry), shape)
                }
                None => {
                    recipe.check_plain(&what)?;
                    let shape = array.shape[1..].to_vec();
                    (Samples::Plain(array), shape)
                }
            };
            Ok((
                Source {
                    what,
                    count,
                    labels,
                    samples,
                },
                shape,
            ))
        }
    }
}

/// Images are height × width, with 1 or 3 channels last, or else first; anything else is no image.
fn geometry(sample: &[usize]) -> Option<Geometry> {
    let (height, width, channels, channels_last) = match *sample {
        [height, width] => (height, width, 1, true),
        [height, width, channels @ (1 | 3)] => (height, width, channels, true),
        [channels @ (1 | 3), height, width] => (height, width, channels, false),
        _ => return None,
    };
    (height.max(width) <= 1 << 16).then_some(Geometry {
        height,
        width,
        channels,
        channels_last,
    })
}
