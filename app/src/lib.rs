//! The desktop workbench.
pub mod theme;
pub mod widgets;
