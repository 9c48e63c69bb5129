//! Limbeck's engine: everything but the window. It reads a trained network into a typed graph, runs it,
//! measures it, compresses it, and writes it out again. See `docs/architecture.md` for the rooms and the
//! one-way street between them (a lower room never imports a higher one; `tests/rooms.rs` holds it).

pub mod graph;

pub mod formats;

pub mod exec;

pub mod data;

pub mod eval;

pub mod measure;

pub mod confirm;

pub mod compress;

pub mod target;

pub mod train;

pub mod sensitivity;

pub mod search;

pub mod recipe;

pub mod project;

pub mod jobs;

/// Version of the engine, written into lock files and exported models.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
