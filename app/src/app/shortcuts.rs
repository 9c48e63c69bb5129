//! Keys to commands.

use crate::{
    commands::Command,
    state::{Dialog, State},
};
use egui::{Context, Key, KeyboardShortcut, Modifiers, Popup};
use limbeck_engine::data::SplitName;

/// All commands with a shortcut, those with more modifiers first (Ctrl+Shift+Z must not be taken for Ctrl+Z).
fn bound(state: &State) -> [Command; 15] {
    [
        Command::Redo,
        Command::Show(Dialog::SaveProject),
        Command::Show(Dialog::ExportRecipe),
        Command::Undo,
        Command::SaveProject,
        Command::Show(Dialog::ExportModel),
        Command::Show(Dialog::Open),
        Command::Show(Dialog::Distil),
        Command::Show(Dialog::Goals),
        Command::Quit,
        Command::SelectAll,
        Command::OpenPalette,
        Command::MeasurePlan(SplitName::Holdout),
        Command::ToggleTheme,
        Command::ShowLog(!state.view.log_open),
    ]
}

/// Turns the frame's key presses into commands.
pub fn read(ctx: &Context, state: &State, out: &mut Vec<Command>) {
    // While one types, the text field's own undo and select-all go first.
    let typing = ctx.text_edit_focused();
    let modal = state.view.dialog.is_some();
    for command in bound(state) {
        if typing && matches!(command, Command::Undo | Command::Redo | Command::SelectAll) {
            continue;
        }
        if modal && !matches!(command, Command::Quit | Command::ToggleTheme) {
            continue;
        }
        let shortcut = match &command {
            Command::ShowLog(_) => Command::ShowLog(true).shortcut(),
            command => command.shortcut(),
        };
        let Some(shortcut) = shortcut else { continue };
        if ctx.input_mut(|input| input.consume_shortcut(&shortcut)) {
            out.push(command);
        }
    }
    if typing || modal {
        return;
    }
    let redo = KeyboardShortcut::new(Modifiers::COMMAND, Key::Y);
    if ctx.input_mut(|input| input.consume_shortcut(&redo)) {
        out.push(Command::Redo);
    }
    // Rows of the table, unless a widget has the keyboard.
    if ctx.memory(|memory| memory.focused().is_some()) || state.view.palette_open {
        return;
    }
    for (key, rows) in [(Key::ArrowUp, -1), (Key::ArrowDown, 1)] {
        for (modifiers, extend) in [(Modifiers::SHIFT, true), (Modifiers::NONE, false)] {
            if ctx.input_mut(|input| input.consume_key(modifiers, key)) {
                out.push(Command::MoveFocus { rows, extend });
            }
        }
    }
    // An open menu has Escape for itself.
    if !state.view.selection.is_empty()
        && !Popup::is_any_open(ctx)
        && ctx.input_mut(|input| input.consume_key(Modifiers::NONE, Key::Escape))
    {
        out.push(Command::ClearSelection);
    }
}
