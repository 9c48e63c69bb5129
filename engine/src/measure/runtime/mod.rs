//! A deployment runtime on this machine: ONNX Runtime, loaded while running (never needed to build) and asked for what an
//! exported file gives.

mod find;
mod session;

pub use find::{ENVIRONMENT_VARIABLE, RuntimeSearch};
pub use session::{RuntimeCodes, RuntimeData, RuntimeSession, RuntimeTensor};

use find::Candidate;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// The oldest ONNX Runtime that is spoken to: the first that reads opset 21 with its 4-bit weights.
pub const OLDEST_RUNTIME: &str = "1.20";

/// Whether the runtime may rewrite the graph before it runs it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Optimizations {
    /// Every operator as the file has it: QuantizeLinear and DequantizeLinear around float arithmetic.
    Off,
    /// As deployed: fused to integer kernels where the runtime has them.
    On,
}

impl Optimizations {
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
        }
    }
}

/// Whether this processor's fast way to add products of 8 bits cuts sums of two off at 16: x86-64 with AVX2, without VNNI.
pub fn adds_in_16_bits() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::is_x86_feature_detected as has;
        has!("avx2") && !has!("avxvnni") && !has!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Why a runtime could not be found, loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// None was found; says where one was looked for and what to do.
    #[error("{0}")]
    NotFound(String),
    /// A library that was found is none, or too old.
    #[error("{0}")]
    Unusable(String),
    /// The runtime refused a model, or failed while running it.
    #[error("{0}")]
    Failed(String),
}

/// ONNX Runtime as it was loaded into this process. There is one for the life of the process.
#[derive(Clone)]
pub struct Runtime {
    version: String,
    library: PathBuf,
    found_by: String,
    environment: ort::environment::Environment,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("version", &self.version)
            .field("library", &self.library)
            .finish_non_exhaustive()
    }
}

static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// Finds and loads ONNX Runtime, or gives the one that is loaded. A library that `search` or the environment names is taken or
    /// nothing is; those of installed Python packages and of the system are tried one after the other.
    ///
    /// # Errors
    /// Nothing found, a library that does not load or is older than [`OLDEST_RUNTIME`], another one loaded before.
    pub fn find(search: &RuntimeSearch) -> Result<Self, RuntimeError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*loaded {
            return runtime.serves(search);
        }
        let mut refused = Vec::new();
        let found = find::candidates(search)?;
        for candidate in &found.candidates {
            match load(candidate) {
                Ok(runtime) => {
                    *loaded = Some(runtime.clone());
                    return Ok(runtime);
                }
                Err(why) if candidate.named => {
                    return Err(RuntimeError::Unusable(format!(
                        "ONNX Runtime cannot be used: {why}. {}",
                        find::ADVICE
                    )));
                }
                Err(why) => refused.push(why),
            }
        }
        Err(found.nothing(&refused))
    }

    /// This one, where the search does not ask for another file.
    fn serves(&self, search: &RuntimeSearch) -> Result<Self, RuntimeError> {
        let named = search.named();
        let same = |wanted: &Path| {
            let real = |p: &Path| p.canonicalize().unwrap_or_else(|_| p.to_owned());
            real(wanted) == real(&self.library) || real(&self.library).starts_with(real(wanted))
        };
        match named {
            Some((wanted, _)) if !same(&wanted) => Err(RuntimeError::Unusable(format!(
                "ONNX Runtime {} is loaded already from {}, and a process can load only one: start again to use {}",
                self.version,
                self.library.display(),
                wanted.display()
            ))),
            _ => Ok(self.clone()),
        }
    }

    /// Such as `1.31.1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The library's file.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// How it was found, in words.
    pub fn found_by(&self) -> &str {
        &self.found_by
    }
}

fn load(candidate: &Candidate) -> Result<Runtime, String> {
    let library = candidate.path.clone();
    let builder = ort::init_from(&library).map_err(|e| match e {
        ort::LoadDynamicError::BadVersion { version_str, path } => format!(
            "{} ({}) is version {version_str}; {OLDEST_RUNTIME} or newer is needed",
            path.display(),
            candidate.origin
        ),
        ort::LoadDynamicError::MissingApi { path } => format!(
            "{} ({}) is a library, but not ONNX Runtime: it has no OrtGetApiBase",
            path.display(),
            candidate.origin
        ),
        other => format!("{other} ({})", candidate.origin),
    })?;
    let environment = builder
        .with_name("limbeck")
        .with_telemetry(false)
        .build()
        .map_err(|e| format!("{}: {e}", library.display()))?;
    Ok(Runtime {
        version: version(ort::info(), &library),
        library,
        found_by: candidate.origin.clone(),
        environment,
    })
}

/// The version that the build information tells (`git-branch=rel-1.31.1`), or else the file's name (`libonnxruntime.so.1.31.1`).
fn version(info: &str, library: &Path) -> String {
    let digits = |text: &str| {
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.'));
        let version = text[..end.unwrap_or(text.len())].trim_matches('.');
        (version.contains('.')).then(|| version.to_owned())
    };
    let branch = info.split("git-branch=rel-").nth(1).and_then(digits);
    let file = || {
        let name = library.canonicalize().unwrap_or_else(|_| library.into());
        let name = name.file_name()?.to_string_lossy().into_owned();
        name.split(".so.").nth(1).and_then(digits)
    };
    branch
        .or_else(file)
        .unwrap_or_else(|| format!("of unknown version ({info})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_build_or_the_file() {
        let nowhere = Path::new("/nowhere/libonnxruntime.so.1.22.0");
        let info = "ORT Build Info: git-branch=rel-1.31.1, git-commit-id=abc, build type=Release";
        assert_eq!(version(info, nowhere), "1.31.1");
        assert_eq!(version("git-branch=main", nowhere), "1.22.0");
        assert!(version("git-branch=main", Path::new("/x/lib.so")).contains("unknown"));
    }
}
