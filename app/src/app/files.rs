//! Paths: what a file is by its name, where the sample lies, relative paths for recipes and projects.

use std::path::{Component, Path, PathBuf};

/// What a file is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Model,
    Task,
    Project,
    Recipe,
}

/// `.limbeck.ron` is a project, `task.ron` (or `…task.ron`) a task, any other `.ron` a recipe, the rest models.
pub fn kind(path: &Path) -> FileKind {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().to_lowercase())
        .unwrap_or_default();
    if name.ends_with(".limbeck.ron") || name.ends_with(".limbeck") {
        FileKind::Project
    } else if name.ends_with("task.ron") {
        FileKind::Task
    } else if name.ends_with(".ron") {
        FileKind::Recipe
    } else {
        FileKind::Model
    }
}

/// Model and task of the bundled sample: looked for from the current folder, from the executable's folder upwards, and
/// where this program was built.
pub fn sample() -> Option<(PathBuf, PathBuf)> {
    let mut roots = Vec::new();
    if let Ok(here) = std::env::current_dir() {
        roots.extend(here.ancestors().map(Path::to_owned).take(2));
    }
    if let Ok(executable) = std::env::current_exe() {
        roots.extend(executable.ancestors().skip(1).map(Path::to_owned));
    }
    roots.extend(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .map(Path::to_owned),
    );
    roots.into_iter().find_map(|root| {
        let folder = root.join("sample-models/fashion-resnet");
        let (model, task) = (folder.join("fashion-resnet.onnx"), folder.join("task.ron"));
        (model.is_file() && task.is_file()).then_some((model, task))
    })
}

/// The path with an ending, if it does not have it yet.
pub fn with_suffix(path: PathBuf, suffix: &str) -> PathBuf {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    if name.is_empty() || name.to_lowercase().ends_with(suffix) {
        return path;
    }
    let stem = match suffix {
        // `plan.ron` asked for as a project becomes `plan.limbeck.ron`.
        ".limbeck.ron" => name.strip_suffix(".ron").unwrap_or(&name),
        _ => &name,
    };
    path.with_file_name(format!("{stem}{suffix}"))
}

/// Absolute, without touching the disk; `~` is the home folder.
pub fn absolute(path: PathBuf) -> PathBuf {
    let path = match path.strip_prefix("~") {
        Ok(rest) => std::env::home_dir().map_or_else(|| path.clone(), |home| home.join(rest)),
        Err(_) => path,
    };
    let path = std::path::absolute(&path).unwrap_or(path);
    // `a/../b` is `b`, or relative paths made from it would be wrong.
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if clean.file_name().is_some() => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}

/// `path` seen from `folder`; stays absolute where they share nothing but the root.
pub fn relative(path: &Path, folder: &Path) -> PathBuf {
    let (path, folder) = (absolute(path.to_owned()), absolute(folder.to_owned()));
    let shared = path
        .components()
        .zip(folder.components())
        .take_while(|(a, b)| a == b)
        .count();
    if shared <= 1 {
        return path;
    }
    let mut relative = PathBuf::new();
    for _ in folder.components().skip(shared) {
        relative.push("..");
    }
    relative.extend(path.components().skip(shared));
    relative
}

/// The file's name alone, for titles.
pub fn short(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        for (name, expected) in [
            ("a/b.onnx", FileKind::Model),
            ("a/Task.ron", FileKind::Task),
            ("my.limbeck.ron", FileKind::Project),
            ("int8.ron", FileKind::Recipe),
            ("noending", FileKind::Model),
        ] {
            assert_eq!(kind(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn endings_are_added_once() {
        let ends = |path: &str, suffix| with_suffix(path.into(), suffix).display().to_string();
        assert_eq!(ends("a/p", ".limbeck.ron"), "a/p.limbeck.ron");
        assert_eq!(ends("a/p.ron", ".limbeck.ron"), "a/p.limbeck.ron");
        assert_eq!(ends("a/p.limbeck.ron", ".limbeck.ron"), "a/p.limbeck.ron");
        assert_eq!(ends("m.ONNX", ".onnx"), "m.ONNX");
    }

    #[test]
    fn relative_paths_lead_back() {
        let folder = Path::new("/data/work/recipes");
        for path in [
            "/data/work/model.onnx",
            "/data/work/recipes/m.onnx",
            "/data/x/y/m.onnx",
        ] {
            let seen = relative(Path::new(path), folder);
            assert!(seen.is_relative(), "{seen:?}");
            assert_eq!(absolute(folder.join(seen)), Path::new(path));
        }
        assert_eq!(
            relative(Path::new("/other/m.onnx"), folder),
            Path::new("/other/m.onnx")
        );
    }
}
