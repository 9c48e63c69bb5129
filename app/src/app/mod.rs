//! The application: the session (state, engine, what commands do) and the window that draws it.

pub mod dialogs;
pub mod files;
pub mod palette;
mod picker;
pub mod project;
pub mod session;
mod shortcuts;
#[cfg(test)]
mod tests;
mod window;

pub use session::{Request, Session, Settings};
pub use window::{APP_ID, Start, Window};
