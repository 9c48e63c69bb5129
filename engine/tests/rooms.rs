//! The one-way street: no room of the engine imports a higher one. The table is that of docs/architecture.md.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Every room with what it may use directly; what those may use comes with them.
const ROOMS: &[(&str, &[&str])] = &[
    ("graph", &[]),
    ("formats", &["graph"]),
    ("exec", &["graph"]),
    ("data", &["exec"]),
    ("eval", &["exec", "data"]),
    ("measure", &["graph", "formats"]),
    ("confirm", &["exec", "data", "eval", "measure"]),
    ("compress", &["graph", "exec", "eval", "measure"]),
    ("target", &["compress", "eval"]),
    ("train", &["exec", "data", "eval", "compress"]),
    ("sensitivity", &["compress", "eval"]),
    ("search", &["sensitivity", "measure"]),
    (
        "recipe",
        &["search", "train", "formats", "confirm", "target"],
    ),
    ("project", &["recipe"]),
    ("jobs", &["project"]),
];

/// What a room may use, with everything those rooms may use; itself included.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    // Rooms stand in the order of the street: what one may use comes before it.
    for (room, direct) in ROOMS {
        let mut uses = vec![*room];
        for other in *direct {
            uses.push(other);
            uses.extend(all[other].iter().copied());
        }
        uses.sort_unstable();
        uses.dedup();
        all.insert(room, uses);
    }
    all
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("folder of the engine") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The code without comments, so that links in documentation may point up the street.
fn code(text: &str) -> String {
    let line = |l: &str| match l.find("//") {
        // A `//` inside a string is no comment; cutting it short there cannot hide an import.
        Some(at) => l[..at].to_owned(),
        None => l.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Names of rooms that follow `prefix`, also inside braces: `crate::{a::X, b::{Y, Z}}` names a and b.
fn rooms_after(code: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let (mut depth, mut fresh, mut word) = (0, true, String::new());
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 && (c.is_alphanumeric() || c == '_') && fresh {
                    word.push(c);
                } else if !word.is_empty() {
                    found.push(std::mem::take(&mut word));
                    fresh = false;
                }
                if depth == 0 && c == ',' {
                    fresh = true;
                }
            }
            found.extend((!word.is_empty()).then_some(word));
        } else {
            found.push(
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    found
}

/// Imports of `file` (seen from the engine's `src`) that go up the street.
fn offences(file: &Path, text: &str) -> Vec<String> {
    let parts: Vec<String> = file
        .components()
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .collect();
    let room = parts[0].trim_end_matches(".rs");
    let allowed = allowed();
    let Some(uses) = allowed.get(room) else {
        return vec![format!(
            "{}: {room} is no room of the table",
            file.display()
        )];
    };
    let code = code(text);
    let mut named = rooms_after(&code, "crate::");
    named.extend(rooms_after(&code, "limbeck_engine::"));
    // `super` as often as it takes to get out of the room: a file `room/x.rs` is two modules deep, `room/mod.rs` one.
    let last = parts.last().map(String::as_str);
    let depth = parts.len() - usize::from(last == Some("mod.rs"));
    // Inner modules (tests) are one deeper.
    for ups in depth..=depth + 2 {
        named.extend(rooms_after(&code, &"super::".repeat(ups)));
    }
    let rooms: Vec<&str> = ROOMS.iter().map(|r| r.0).collect();
    named.sort();
    named.dedup();
    named
        .iter()
        .filter(|n| rooms.contains(&n.as_str()) && !uses.contains(&n.as_str()))
        .map(|n| format!("{}: {room} may not use {n}", file.display()))
        .collect()
}

#[test]
fn no_room_imports_a_higher_one() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    let mut looked_at = 0;
    for path in sources(&src) {
        let inside = path.strip_prefix(&src).expect("inside");
        if inside == Path::new("lib.rs") || inside.starts_with("bin") {
            continue;
        }
        looked_at += 1;
        let text = std::fs::read_to_string(&path).expect("reads");
        all.extend(offences(inside, &text));
    }
    assert!(looked_at >= ROOMS.len(), "only {looked_at} files found");
    assert!(all.is_empty(), "up the one-way street:\n{}", all.join("\n"));
}

#[test]
fn imports_are_found_in_every_spelling() {
    let offends = |file: &str, text: &str| !offences(Path::new(file), text).is_empty();
    assert!(offends("graph/mod.rs", "use crate::exec::Program;"));
    assert!(offends(
        "graph/a.rs",
        "use crate::{graph::X, exec::{A, B}};"
    ));
    assert!(offends("graph/a.rs", "fn f() { crate::jobs::x() }"));
    assert!(offends(
        "exec/kernels/a.rs",
        "use super::super::super::data::Dataset;"
    ));
    assert!(offends("exec/mod.rs", "use super::data::Dataset;"));
    assert!(offends("measure/mod.rs", "use crate::exec::pool;"));
    assert!(offends("unknown/mod.rs", ""));
    assert!(!offends(
        "graph/a.rs",
        "// see crate::exec\n/// [`crate::jobs`]\nuse crate::graph::X;"
    ));
    assert!(!offends(
        "exec/a.rs",
        "use super::exec; use crate::{graph::{self, data}};"
    ));
    assert!(!offends(
        "jobs/a.rs",
        "use crate::{compress, recipe::Recipe, VERSION};"
    ));
}
