//! Limbeck's window: the application state, the commands that change it, and the panels that draw it. No numerics here:
//! those are the engine's.

pub mod app;
pub mod commands;
pub mod panels;
pub mod state;
pub mod theme;
pub mod widgets;
