//! Strict RON: reading with file, line, column and a suggestion; writing pretty and stable; finding where in a text a rule stands.

use ron::{Options, error::SpannedError, extensions::Extensions, ser::PrettyConfig};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Why a recipe, lock file or project could not be used: `file:line:column: what, what was expected; did you mean …?`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct RecipeError {
    pub message: String,
    pub path: Option<PathBuf>,
    /// Line and column, from 1.
    pub position: Option<(usize, usize)>,
    pub suggestion: Option<String>,
    anchor: Option<Anchor>,
}

/// What to look for in the text to say where an error stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Anchor {
    /// The `nth` string literal that reads so.
    Literal(String, usize),
    /// The `nth` bare word that reads so.
    Word(&'static str, usize),
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}", path.display())?;
            if let Some((line, column)) = self.position {
                write!(f, ":{line}:{column}")?;
            }
            write!(f, ": ")?;
        } else if let Some((line, column)) = self.position {
            write!(f, "line {line}, column {column}: ")?;
        }
        write!(f, "{}", self.message)?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, "; did you mean `{suggestion}`?")?;
        }
        Ok(())
    }
}

impl RecipeError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            path: None,
            position: None,
            suggestion: None,
            anchor: None,
        }
    }

    pub(super) fn at(mut self, anchor: Anchor) -> Self {
        self.anchor = Some(anchor);
        self
    }

    pub(crate) fn suggest(mut self, suggestion: Option<String>) -> Self {
        self.suggestion = suggestion;
        self
    }

    pub(crate) fn file(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Fills in the file and, where the error knows what it is about, line and column in `text`.
    pub fn locate(mut self, path: &Path, text: &str) -> Self {
        self.path = Some(path.to_owned());
        if self.position.is_none() {
            self.position = self.anchor.as_ref().and_then(|a| find(text, a));
        }
        self
    }
}

/// The dialect of all our RON files: no `Some(…)`, no doubled parentheses.
fn options() -> Options {
    Options::default().with_default_extension(
        Extensions::IMPLICIT_SOME
            | Extensions::UNWRAP_NEWTYPES
            | Extensions::UNWRAP_VARIANT_NEWTYPES,
    )
}

/// Reads `text`; `path` is for the message only.
pub fn from_ron<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, RecipeError> {
    options()
        .from_str(text)
        .map_err(|error| spanned(error).file(path))
}

/// Pretty, with a newline at the end; the same value always gives the same bytes.
pub fn to_ron<T: Serialize>(value: &T) -> Result<String, RecipeError> {
    let pretty = PrettyConfig::new()
        .new_line("\n")
        .indentor("    ")
        .struct_names(false)
        .compact_arrays(false);
    let mut text = options()
        .to_string_pretty(value, pretty)
        .map_err(|e| RecipeError::new(format!("cannot be written as RON: {e}")))?;
    text.push('\n');
    Ok(text)
}

/// Reads a text file of at most 256 MB.
pub fn read_text(path: &Path) -> Result<String, RecipeError> {
    const LIMIT: u64 = 256 << 20;
    let fail = |why: String| RecipeError::new(why).file(path);
    let length = std::fs::metadata(path)
        .map_err(|e| fail(format!("cannot be read: {e}")))?
        .len();
    if length > LIMIT {
        return Err(fail(format!(
            "is {length} bytes long; a text file of at most {LIMIT} was expected"
        )));
    }
    let bytes = std::fs::read(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    String::from_utf8(bytes).map_err(|_| fail("is not UTF-8 text; RON was expected".into()))
}

fn spanned(error: SpannedError) -> RecipeError {
    let suggestion = match &error.code {
        ron::Error::NoSuchStructField {
            expected, found, ..
        }
        | ron::Error::NoSuchEnumVariant {
            expected, found, ..
        } => nearest(found, expected.iter().copied()),
        _ => None,
    };
    let message = match &error.code {
        ron::Error::NoSuchStructField {
            expected, found, ..
        } => format!("unknown key `{found}`; known are {}", expected.join(", ")),
        ron::Error::NoSuchEnumVariant {
            expected, found, ..
        } => format!("unknown value `{found}`; known are {}", expected.join(", ")),
        ron::Error::MissingStructField { field, .. } => format!("the key `{field}` is missing"),
        ron::Error::DuplicateStructField { field, .. } => {
            format!("the key `{field}` stands here twice")
        }
        other => {
            let text = other.to_string();
            let mut letters = text.chars();
            letters
                .next()
                .map(|c| c.to_lowercase().chain(letters).collect())
                .unwrap_or_default()
        }
    };
    let mut result = RecipeError::new(message).suggest(suggestion);
    result.position = Some((error.span.start.line, error.span.start.col));
    result
}

/// The known name most like `found`, if any is near enough to be meant.
pub(crate) fn nearest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let lower = found.to_lowercase();
    known
        .map(|name| {
            (
                strsim::normalized_damerau_levenshtein(&lower, &name.to_lowercase()),
                name,
            )
        })
        .filter(|(score, _)| *score >= 0.5)
        // The first of equals, so that the message is stable.
        .fold(None::<(f64, &str)>, |best, next| match best {
            Some(b) if b.0 >= next.0 => Some(b),
            _ => Some(next),
        })
        .map(|(_, name)| name.to_owned())
}

fn find(text: &str, anchor: &Anchor) -> Option<(usize, usize)> {
    let mut seen = 0;
    for token in tokens(text) {
        let hit = match (&token.kind, anchor) {
            (Kind::Literal(s), Anchor::Literal(wanted, _)) => s == wanted,
            (Kind::Word(s), Anchor::Word(wanted, _)) => s == wanted,
            _ => false,
        };
        if hit {
            let nth = match anchor {
                Anchor::Literal(_, n) | Anchor::Word(_, n) => *n,
            };
            if seen == nth {
                let before = text.get(..token.offset)?;
                let line = before.matches('\n').count() + 1;
                let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
                return Some((line, column));
            }
            seen += 1;
        }
    }
    None
}

/// The version a text claims, found without reading the rest: a newer file must not be refused for its newer keys.
pub(crate) fn claimed_version(text: &str) -> Option<u32> {
    let all = tokens(text);
    let at = all
        .iter()
        .position(|t| matches!(&t.kind, Kind::Word(w) if w == "version"))?;
    match &all.get(at + 1)?.kind {
        Kind::Word(number) => number.parse().ok(),
        Kind::Literal(_) => None,
    }
}

enum Kind {
    Word(String),
    Literal(String),
}

struct Token {
    kind: Kind,
    offset: usize,
}

/// Words (identifiers and numbers) and string literals of a RON text, comments left out.
fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = text.char_indices().peekable();
    while let Some((offset, c)) = rest.next() {
        match c {
            '/' => match rest.peek() {
                Some((_, '/')) => while rest.next_if(|(_, c)| *c != '\n').is_some() {},
                Some((_, '*')) => {
                    rest.next();
                    let (mut depth, mut last) = (1, ' ');
                    for (_, c) in rest.by_ref() {
                        match (last, c) {
                            ('/', '*') => {
                                depth += 1;
                                last = ' ';
                            }
                            ('*', '/') => {
                                depth -= 1;
                                last = ' ';
                            }
                            _ => last = c,
                        }
                        if depth == 0 {
                            break;
                        }
                    }
                }
                _ => {}
            },
            '"' => {
                let mut content = String::new();
                while let Some((_, c)) = rest.next() {
                    match c {
                        '"' => break,
                        '\\' => match rest.next() {
                            Some((_, 'n')) => content.push('\n'),
                            Some((_, 't')) => content.push('\t'),
                            Some((_, c)) => content.push(c),
                            None => break,
                        },
                        c => content.push(c),
                    }
                }
                found.push(Token {
                    kind: Kind::Literal(content),
                    offset,
                });
            }
            c if c.is_alphanumeric() || c == '_' => {
                let mut word = String::from(c);
                while let Some((_, c)) = rest.next_if(|(_, c)| c.is_alphanumeric() || *c == '_') {
                    word.push(c);
                }
                found.push(Token {
                    kind: Kind::Word(word),
                    offset,
                });
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_skip_comments_and_find_the_nth() {
        let text =
            "( // \"no\" Prune\n /* Prune /* x */ */ a: \"yes\", Prune, \"y\\\"z\",\n  Prune)";
        assert_eq!(find(text, &Anchor::Word("Prune", 1)), Some((3, 3)));
        assert_eq!(find(text, &Anchor::Literal("no".into(), 0)), None);
        assert_eq!(
            find(text, &Anchor::Literal("y\"z".into(), 0)),
            Some((2, 39))
        );
    }

    #[test]
    fn nearest_needs_some_likeness() {
        let known = ["layers", "default", "scheme"];
        assert_eq!(
            nearest("layer", known.into_iter()).as_deref(),
            Some("layers")
        );
        assert_eq!(nearest("qqqqqqq", known.into_iter()), None);
    }
}
