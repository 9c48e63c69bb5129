//! Where ONNX Runtime may lie: named by the caller, the environment or a setting, in an installed Python package, or on the
//! system's path of libraries.

use super::{OLDEST_RUNTIME, RuntimeError};
use std::{
    env::consts::{DLL_PREFIX, DLL_SUFFIX},
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Names the library, or the folder it lies in.
pub const ENVIRONMENT_VARIABLE: &str = "LIMBECK_ONNXRUNTIME";

/// What to do where no runtime can be used.
pub(super) const ADVICE: &str = "Install it (`pip install onnxruntime`), or name its library (libonnxruntime.so, onnxruntime.dll, \
     libonnxruntime.dylib) or the folder it lies in: by --runtime-library or in the environment variable \
     LIMBECK_ONNXRUNTIME";

/// How long a Python interpreter may take to say where its package is.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to look first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeSearch {
    /// Library or folder given for this time; goes before all else.
    pub given: Option<PathBuf>,
    /// Library or folder kept in a setting; goes behind the environment variable.
    pub setting: Option<PathBuf>,
}

impl RuntimeSearch {
    /// The path that somebody named, and who did.
    pub(super) fn named(&self) -> Option<(PathBuf, &'static str)> {
        let environment = std::env::var_os(ENVIRONMENT_VARIABLE)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from);
        let given = |path: &Option<PathBuf>| path.clone().filter(|p| !p.as_os_str().is_empty());
        given(&self.given)
            .map(|p| (p, "given"))
            .or_else(|| {
                environment.map(|p| (p, "from the environment variable LIMBECK_ONNXRUNTIME"))
            })
            .or_else(|| given(&self.setting).map(|p| (p, "from the settings")))
    }
}

/// A library that may be ONNX Runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub path: PathBuf,
    /// Who said so, in words.
    pub origin: String,
    /// Somebody asked for this one: nothing else will do.
    pub named: bool,
}

/// Libraries to try, in order, and the places where none was.
pub(super) struct Found {
    pub candidates: Vec<Candidate>,
    looked: Vec<String>,
}

impl Found {
    /// The error that says where was looked, and why what was found did not do.
    pub fn nothing(&self, refused: &[String]) -> RuntimeError {
        let mut looked = vec![format!(
            "the environment variable {ENVIRONMENT_VARIABLE} is not set"
        )];
        looked.extend(self.looked.iter().cloned());
        looked.extend(refused.iter().cloned());
        RuntimeError::NotFound(format!(
            "no ONNX Runtime ({OLDEST_RUNTIME} or newer) was found: {}. {ADVICE}",
            looked.join("; ")
        ))
    }
}

/// Everything to try. A named path stands alone.
pub(super) fn candidates(search: &RuntimeSearch) -> Result<Found, RuntimeError> {
    let mut found = Found {
        candidates: Vec::new(),
        looked: Vec::new(),
    };
    if let Some((path, origin)) = search.named() {
        let library = library_at(&path).map_err(|why| {
            RuntimeError::NotFound(format!(
                "no ONNX Runtime at the path {origin}: {why}. {ADVICE}"
            ))
        })?;
        found.candidates.push(Candidate {
            path: library,
            origin: origin.to_owned(),
            named: true,
        });
        return Ok(found);
    }
    for (place, origin) in python_packages(&mut found.looked) {
        match library_in(&place) {
            Some(path) => found.candidates.push(Candidate {
                path,
                origin,
                named: false,
            }),
            None => found.looked.push(format!(
                "{} holds no ONNX Runtime ({origin})",
                place.display()
            )),
        }
    }
    // By its bare name: the system's loader looks where it looks.
    found.candidates.push(Candidate {
        path: PathBuf::from(format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}")),
        origin: "on the system's path of libraries".to_owned(),
        named: false,
    });
    Ok(found)
}

/// The library that a path names: itself, or the one in a folder.
fn library_at(path: &Path) -> Result<PathBuf, String> {
    match std::fs::metadata(path) {
        Err(e) => Err(format!("{} cannot be read: {e}", path.display())),
        // Made absolute: what is relative would be looked for beside the program first.
        Ok(m) if !m.is_dir() => Ok(std::path::absolute(path).unwrap_or_else(|_| path.to_owned())),
        Ok(_) => ["", "lib", "capi", "onnxruntime/capi"]
            .iter()
            .find_map(|below| library_in(&path.join(below)))
            .ok_or_else(|| {
                format!(
                    "the folder {} holds no library of that name",
                    path.display()
                )
            }),
    }
}

/// The library in a folder: `libonnxruntime.so`, or the newest name with a version behind it.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let names = std::fs::read_dir(folder).ok()?;
    let mut fitting: Vec<PathBuf> = names
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(is_library) && path.is_file())
        .collect();
    fitting.sort_by_key(|path| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        let numbers: Vec<u32> = name
            .unwrap_or_default()
            .split('.')
            .filter_map(|part| part.parse().ok())
            .collect();
        numbers
    });
    let last = fitting.pop()?;
    Some(std::path::absolute(&last).unwrap_or(last))
}

/// `libonnxruntime.so`, `libonnxruntime.so.1.31.1`, `libonnxruntime.1.31.1.dylib`, `onnxruntime.dll`; not the providers beside them.
fn is_library(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let Some(rest) = name.strip_prefix(DLL_PREFIX) else {
        return false;
    };
    let Some(rest) = rest.strip_prefix("onnxruntime") else {
        return false;
    };
    let version = |text: &str| text.chars().all(|c| c.is_ascii_digit() || c == '.');
    rest == DLL_SUFFIX
        || rest
            .strip_prefix(DLL_SUFFIX)
            .is_some_and(|v| v.starts_with('.') && version(v))
        || rest
            .strip_suffix(DLL_SUFFIX)
            .is_some_and(|v| v.starts_with('.') && version(v))
}

/// Folders `onnxruntime/capi` of Python packages: of the virtual environment in use, then of `python3` on the path.
fn python_packages(looked: &mut Vec<String>) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    match std::env::var_os("VIRTUAL_ENV").filter(|v| !v.is_empty()) {
        Some(environment) => {
            let environment = PathBuf::from(environment);
            let origin = format!("of the virtual environment {}", environment.display());
            let before = found.len();
            found.extend(
                site_packages(&environment)
                    .into_iter()
                    .map(|site| site.join("onnxruntime").join("capi"))
                    .filter(|capi| capi.is_dir())
                    .map(|capi| (capi, origin.clone())),
            );
            if found.len() == before {
                looked.push(format!("no Python package onnxruntime {origin}"));
            }
        }
        None => looked.push("VIRTUAL_ENV is not set".to_owned()),
    }
    match package_of("python3") {
        Ok(Some(package)) => found.push((
            package.join("capi"),
            "of the Python package that python3 on the path has".to_owned(),
        )),
        Ok(None) => looked.push("python3 on the path has no package onnxruntime".to_owned()),
        Err(why) => looked.push(why),
    }
    found
}

/// Folders of packages in a virtual environment.
fn site_packages(environment: &Path) -> Vec<PathBuf> {
    let mut found = vec![environment.join("Lib").join("site-packages")];
    for lib in ["lib", "lib64"] {
        let Ok(entries) = std::fs::read_dir(environment.join(lib)) else {
            continue;
        };
        let mut versions: Vec<PathBuf> = entries
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| {
                p.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with("python"))
            })
            .collect();
        versions.sort();
        found.extend(versions.into_iter().map(|v| v.join("site-packages")));
    }
    found
}

/// Folder of the package as an interpreter would find it, without importing it.
fn package_of(python: &str) -> Result<Option<PathBuf>, String> {
    // Not from the current folder, which `-c` puts first: a library found there would be run.
    const ASK: &str = "import sys; sys.path[:] = [p for p in sys.path if p]; import importlib.util as u; s = u.find_spec('onnxruntime'); \
                       print(next(iter(s.submodule_search_locations or []), '') if s else '')";
    let silent = |why: String| Err(format!("{python} could not be asked: {why}"));
    let child = Command::new(python)
        .args(["-c", ASK])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("there is no {python} on the path"));
        }
        Err(e) => return silent(e.to_string()),
    };
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if started.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => {
                // Reaped, so that nothing is left behind; the answer no longer matters.
                let _ = child.kill();
                let _ = child.wait();
                return silent(match other {
                    Err(e) => e.to_string(),
                    _ => format!("no answer in {} s", PATIENCE.as_secs()),
                });
            }
        }
    }
    let output = child
        .wait_with_output()
        .map_err(|e| format!("{python}: {e}"))?;
    if !output.status.success() {
        return silent(format!("it ended with {}", output.status));
    }
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((!folder.is_empty()).then(|| PathBuf::from(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn libraries_are_told_from_what_lies_beside_them() {
        let is = |name: &str| is_library(OsStr::new(name));
        assert!(is("libonnxruntime.so") && is("libonnxruntime.so.1.31.1"));
        for other in [
            "libonnxruntime_providers_shared.so",
            "onnxruntime_pybind11_state.so",
            "libonnxruntime.so.1.31.1.bak",
            "libonnxruntime.a",
        ] {
            assert!(!is(other), "{other}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_newest_in_a_folder_is_taken_and_a_folder_without_one_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let refused = library_at(dir.path()).expect_err("an empty folder");
        assert!(refused.contains("no library"), "{refused}");
        let capi = dir.path().join("onnxruntime/capi");
        std::fs::create_dir_all(&capi).expect("dirs");
        for name in [
            "libonnxruntime.so.1.9.0",
            "libonnxruntime.so.1.31.1",
            "other.so",
        ] {
            std::fs::write(capi.join(name), "").expect("file");
        }
        let found = library_at(dir.path()).expect("found");
        assert_eq!(found, capi.join("libonnxruntime.so.1.31.1"));
        let missing = library_at(&dir.path().join("none")).expect_err("no such path");
        assert!(missing.contains("cannot be read"), "{missing}");
    }

    #[test]
    fn packages_of_a_virtual_environment_are_found() {
        let dir = tempfile::tempdir().expect("dir");
        let site = dir.path().join("lib/python3.11/site-packages");
        std::fs::create_dir_all(&site).expect("dirs");
        assert!(site_packages(dir.path()).contains(&site));
    }

    #[test]
    fn an_interpreter_that_is_not_there_is_said() {
        let said = package_of("limbeck-no-such-python").expect_err("none");
        assert!(
            said.contains("no limbeck-no-such-python on the path"),
            "{said}"
        );
    }
}
