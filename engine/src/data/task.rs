//! The schema of `task.ron`, read strictly, and the errors it gives. Reference: `docs/task.md`.

use super::{DataError, SplitName};
use serde::{Deserialize, Deserializer, de};
use std::{collections::BTreeMap, fmt, path::Path};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Task {
    pub version: u32,
    pub name: String,
    #[serde(deserialize_with = "unique_keys")]
    pub sources: BTreeMap<String, SourceSpec>,
    pub preprocess: Preprocess,
    #[serde(default)]
    pub classes: Option<Classes>,
    /// Only checked: there is no other metric than top-1.
    #[serde(default, rename = "metric")]
    pub _metric: Metric,
    pub splits: Splits,
    #[serde(default)]
    pub augment: super::augment::Augment,
}

/// Where samples come from. Paths are relative to the task file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum SourceSpec {
    Idx {
        images: String,
        #[serde(default)]
        labels: Option<String>,
    },
    Npy {
        images: String,
        #[serde(default)]
        labels: Option<String>,
    },
    Npz {
        file: String,
        images: String,
        #[serde(default)]
        labels: Option<String>,
    },
    /// Image files without labels.
    Images {
        path: String,
    },
    Folder {
        path: String,
    },
    Csv {
        file: String,
    },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Classes {
    Names(Vec<String>),
    /// Classes without names of their own.
    Count(usize),
    /// One name a line.
    File(String),
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    #[default]
    Top1,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum Resize {
    /// Width, height; the aspect ratio is not kept.
    Exact(u32, u32),
    /// The shorter side becomes this long; the aspect ratio is kept.
    Shorter(u32),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Filter {
    Nearest,
    #[default]
    Bilinear,
    Bicubic,
    Lanczos,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Channels {
    Gray,
    Rgb,
    Bgr,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Layout {
    #[default]
    Nchw,
    Nhwc,
    /// One channel, without an axis for it: sequences, a row for each step.
    Nhw,
}

/// Steps in the order they are done: resize, crop, channels, (pixel · scale − mean) / std, layout.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Preprocess {
    #[serde(default)]
    pub resize: Option<Resize>,
    #[serde(default)]
    pub filter: Filter,
    /// Width, height of the centre that is kept.
    #[serde(default)]
    pub crop: Option<(u32, u32)>,
    #[serde(default)]
    pub channels: Option<Channels>,
    pub scale: f64,
    #[serde(default)]
    pub mean: Vec<f64>,
    #[serde(default)]
    pub std: Vec<f64>,
    #[serde(default)]
    pub layout: Layout,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Splits {
    /// Shuffles what `Share` draws from.
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub calibration: Option<Part>,
    #[serde(default)]
    pub search: Option<Part>,
    #[serde(default)]
    pub training: Option<Part>,
    #[serde(default)]
    pub holdout: Option<Part>,
}

impl Splits {
    /// The parts that are named, in the fixed order in which shares are drawn.
    pub fn parts(&self) -> impl Iterator<Item = (SplitName, &Part)> {
        [
            (SplitName::Calibration, &self.calibration),
            (SplitName::Search, &self.search),
            (SplitName::Training, &self.training),
            (SplitName::Holdout, &self.holdout),
        ]
        .into_iter()
        .filter_map(|(name, part)| part.as_ref().map(|part| (name, part)))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Part {
    /// Rows `start..start + count` of a source; to its end without `count`.
    Rows {
        from: String,
        #[serde(default)]
        start: usize,
        #[serde(default)]
        count: Option<usize>,
    },
    /// A seeded random share of a source; shares of one source never overlap.
    Share { from: String, fraction: f64 },
}

/// A map in which a key given twice is an error (serde would keep the last and lose the first silently).
fn unique_keys<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, SourceSpec>, D::Error> {
    struct Visitor;
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = BTreeMap<String, SourceSpec>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of source names, like { \"train\": Idx(…) }")
        }
        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut out = BTreeMap::new();
            while let Some(name) = map.next_key::<String>()? {
                if out.contains_key(&name) {
                    return Err(de::Error::custom(format!("source {name:?} is named twice")));
                }
                out.insert(name, map.next_value()?);
            }
            Ok(out)
        }
    }
    deserializer.deserialize_map(Visitor)
}

/// Parses the text of a task file; `path` is named in errors.
pub(super) fn parse(text: &str, path: &Path) -> Result<Task, DataError> {
    let options =
        ron::Options::default().with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME);
    let task: Task = options
        .from_str(text)
        .map_err(|error| DataError::Task(describe_ron_error(path, &error)))?;
    if task.version != 1 {
        return Err(DataError::Task(format!(
            "{}: version {} of the task format is not known; this Limbeck reads version 1",
            path.display(),
            task.version
        )));
    }
    Ok(task)
}

/// `file:line:column: what is wrong`, with what was expected and the nearest known name where one was misspelt.
pub fn describe_ron_error(path: &Path, error: &ron::error::SpannedError) -> String {
    use ron::error::Error as Code;
    let list = |expected: &[&str]| {
        expected
            .iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let what = match &error.code {
        Code::NoSuchStructField {
            expected,
            found,
            outer,
        } => format!(
            "unknown key `{found}`{}{}; expected one of {}",
            outer.as_ref().map_or(String::new(), |o| format!(" in {o}")),
            did_you_mean(found, expected.iter().copied()),
            list(expected)
        ),
        Code::NoSuchEnumVariant {
            expected,
            found,
            outer,
        } => format!(
            "unknown value `{found}`{}{}; expected one of {}",
            outer
                .as_ref()
                .map_or(String::new(), |o| format!(" for {o}")),
            did_you_mean(found, expected.iter().copied()),
            list(expected)
        ),
        Code::MissingStructField { field, outer } => format!(
            "the key `{field}` is missing{}",
            outer.as_ref().map_or(String::new(), |o| format!(" in {o}"))
        ),
        Code::DuplicateStructField { field, .. } => format!("the key `{field}` is given twice"),
        other => other.to_string(),
    };
    // The start of the span lies before the offending word, the end behind it: the start is where one looks.
    let at = error.span.start;
    format!("{}:{}:{}: {what}", path.display(), at.line, at.col)
}

/// `; did you mean `x`?` for the nearest of `known`, or nothing where none is near.
pub fn did_you_mean<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> String {
    let lower = found.to_lowercase();
    known
        .map(|name| {
            (
                strsim::damerau_levenshtein(&lower, &name.to_lowercase()),
                name,
            )
        })
        .filter(|(distance, name)| *distance <= 1.max(name.chars().count() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map_or(String::new(), |(_, name)| {
            format!("; did you mean `{name}`?")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"Task(
    version: 1,
    name: "t",
    sources: { "all": Idx(images: "x", labels: "y") },
    preprocess: (scale: 1.0, crop: (8, 8), channels: rgb),
    classes: Count(3),
    splits: (holdout: Rows(from: "all", count: 5)),
)"#;

    fn error(text: &str) -> String {
        parse(text, Path::new("task.ron")).unwrap_err().to_string()
    }

    #[test]
    fn a_task_is_read() {
        let task = parse(GOOD, Path::new("task.ron")).unwrap();
        assert_eq!(task.preprocess.crop, Some((8, 8)));
        assert_eq!(task.splits.parts().count(), 1);
    }

    #[test]
    fn unknown_keys_are_placed_and_a_name_is_suggested() {
        let e = error(&GOOD.replace("sources", "sorces"));
        assert!(e.starts_with("task.ron:4:5: unknown key `sorces`"), "{e}");
        assert!(e.contains("did you mean `sources`?"), "{e}");
        let e = error(&GOOD.replace("rgb", "rbg"));
        assert!(e.starts_with("task.ron:5:"), "{e}");
        assert!(e.contains("did you mean `rgb`?"), "{e}");
        let e = error(&GOOD.replace("Idx(", "Idz("));
        assert!(e.contains("did you mean `Idx`?"), "{e}");
        let e = error(&GOOD.replace("count: 5", "cuont: 5"));
        assert!(
            e.starts_with("task.ron:7:") && e.contains("`count`?"),
            "{e}"
        );
    }

    #[test]
    fn what_is_missing_doubled_or_mistyped_is_said() {
        assert!(error(&GOOD.replace("scale: 1.0, ", "")).contains("`scale` is missing"));
        assert!(error(&GOOD.replace("name: \"t\"", "name: 5")).contains("task.ron:3:"));
        assert!(error(&GOOD.replace("version: 1", "version: 2")).contains("version 2"));
        let doubled = GOOD.replace("{ \"all\"", "{ \"all\": Folder(path: \".\"), \"all\"");
        assert!(
            error(&doubled).contains("named twice"),
            "{}",
            error(&doubled)
        );
        assert!(error("").contains("task.ron:1:1"));
    }
}
