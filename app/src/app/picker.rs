//! The system's file picker, on a thread of its own: the window never waits for it. Where no dialog service exists it gives
//! nothing back, which is why every dialog has a path field as well.

use crate::state::Dialog;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::path::PathBuf;

/// Pickers under way and what they bring.
pub struct Picker {
    sender: Sender<(Dialog, Option<PathBuf>)>,
    receiver: Receiver<(Dialog, Option<PathBuf>)>,
    open: bool,
}

impl Default for Picker {
    fn default() -> Self {
        let (sender, receiver) = unbounded();
        Self {
            sender,
            receiver,
            open: false,
        }
    }
}

impl Picker {
    /// Opens the picker for a dialog unless one is open. An error says why the thread could not be started.
    pub fn browse(
        &mut self,
        dialog: Dialog,
        suggested: String,
        ctx: &egui::Context,
    ) -> std::io::Result<()> {
        if self.open {
            return Ok(());
        }
        let (sender, ctx) = (self.sender.clone(), ctx.clone());
        std::thread::Builder::new()
            .name("file picker".into())
            .spawn(move || {
                let path = pick(&dialog, &suggested);
                // The window may be gone: then nobody wants the answer.
                let _ = sender.send((dialog, path));
                ctx.request_repaint();
            })?;
        self.open = true;
        Ok(())
    }

    /// What was picked, once; `Some(_, None)` where it was cancelled or could not be shown.
    pub fn picked(&mut self) -> Option<(Dialog, Option<PathBuf>)> {
        let picked = self.receiver.try_recv().ok()?;
        self.open = false;
        Some(picked)
    }
}

fn pick(dialog: &Dialog, suggested: &str) -> Option<PathBuf> {
    let chooser = rfd::FileDialog::new();
    match dialog {
        Dialog::Open => chooser
            .set_title("Open a model, project or recipe")
            .add_filter("Models, projects, recipes", &["onnx", "ron"])
            .add_filter("All files", &["*"])
            .pick_file(),
        Dialog::OpenTask => chooser
            .set_title("Open labelled data")
            .add_filter("Tasks", &["ron"])
            .pick_file(),
        Dialog::SaveProject => chooser
            .set_title("Save the project")
            .set_file_name(suggested)
            .save_file(),
        Dialog::ExportModel => chooser
            .set_title("Export the model")
            .set_file_name(suggested)
            .save_file(),
        Dialog::ExportRecipe => chooser
            .set_title("Export the recipe")
            .set_file_name(suggested)
            .save_file(),
        Dialog::Scheme => chooser
            .set_title("Choose the description of a target")
            .add_filter("Targets", &["ron"])
            .pick_file(),
        Dialog::Runtime => chooser
            .set_title("Choose ONNX Runtime's library")
            .pick_file(),
        Dialog::Distil
        | Dialog::Goals
        | Dialog::Methods
        | Dialog::Shrink
        | Dialog::About
        | Dialog::DiscardRun(_)
        | Dialog::Closing(_)
        | Dialog::Unsaved(_) => None,
    }
}
