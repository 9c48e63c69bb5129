//! Rows that dialogs are made of.

use crate::{
    commands::Command,
    theme,
    widgets::{self, Button, SegmentStyle},
};
use egui::{
    DragValue, Key, Modifiers, RichText, TextEdit, Ui,
    text::{CCursor, CCursorRange},
    text_edit::TextEditState,
    vec2,
};

pub(super) fn title(ui: &mut Ui, text: &str) {
    ui.label(RichText::new(text).font(theme::title()));
}

pub(super) fn note(ui: &mut Ui, text: &str) {
    let muted = theme::of(ui).muted;
    ui.label(RichText::new(text).color(muted));
}

pub(super) fn missing(path: &str) -> Option<String> {
    path.trim()
        .is_empty()
        .then(|| "Type a path, or choose one with Browse…".to_owned())
}

/// A labelled path field with Browse… beside it. `focus`: it takes the keyboard, with the file's name selected. True when Enter
/// was pressed in it.
pub(super) fn path_row(
    ui: &mut Ui,
    name: &str,
    text: &mut String,
    browse: Command,
    focus: bool,
    out: &mut Vec<Command>,
) -> bool {
    ui.label(name);
    ui.horizontal(|ui| {
        let width = ui.available_width() - 96.0;
        let id = ui.make_persistent_id(("path", name));
        if focus {
            ui.memory_mut(|memory| memory.request_focus(id));
            let mut state = TextEditState::load(ui.ctx(), id).unwrap_or_default();
            let (from, to) = file_name(text);
            let range = CCursorRange::two(CCursor::new(from), CCursor::new(to));
            state.cursor.set_char_range(Some(range));
            state.store(ui.ctx(), id);
        }
        let field = ui.add(
            TextEdit::singleline(text)
                .id(id)
                .desired_width(width)
                .margin(vec2(8.0, 5.0)),
        );
        field.widget_info(|| egui::WidgetInfo::labeled(egui::Role::TextInput, true, name));
        let hint = format!("Browse for {name}");
        if Button::new("Browse…").name(&hint).show(ui) {
            out.push(browse);
        }
        field.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter))
    })
    .inner
}

/// Where the file's name without its ending stands in a path, in letters.
fn file_name(path: &str) -> (usize, usize) {
    let letters: Vec<char> = path.chars().collect();
    let from = letters
        .iter()
        .rposition(|c| matches!(c, '/' | '\\'))
        .map_or(0, |at| at + 1);
    let name: String = letters.iter().skip(from).collect();
    let ending = [".limbeck.ron", ".onnx", ".ron"]
        .into_iter()
        .find(|ending| name.ends_with(ending))
        .map_or(0, str::len);
    (from, letters.len().saturating_sub(ending).max(from))
}

/// The row at a dialog's foot; true when its action was pressed (or Enter was, and it can be done).
pub(super) fn buttons(
    ui: &mut Ui,
    action: &str,
    disabled: Option<String>,
    enter: bool,
    out: &mut Vec<Command>,
) -> bool {
    ui.add_space(4.0);
    ui.horizontal(|ui| {
        let pressed = Button::new(action)
            .primary()
            .disabled(disabled.as_deref())
            .show(ui);
        if Button::new("Cancel").show(ui) {
            out.push(Command::CloseDialog);
        }
        let ctrl_enter = ui.input_mut(|input| input.consume_key(Modifiers::COMMAND, Key::Enter));
        disabled.is_none() && (pressed || enter || ctrl_enter)
    })
    .inner
}

pub(super) fn row(ui: &mut Ui, name: &str, add: impl FnOnce(&mut Ui) -> egui::Response) {
    let label = ui.label(name);
    add(ui).labelled_by(label.id);
    ui.end_row();
}

/// A row with a text on what it does; `add` is told the label, for parts besides the one it returns; `wrong`: what cannot stand there, said below it.
pub(super) fn hinted(
    ui: &mut Ui,
    name: &str,
    hint: &str,
    wrong: Option<&str>,
    add: impl FnOnce(&mut Ui, egui::Id) -> egui::Response,
) {
    let label = ui.label(name).on_hover_text(hint);
    ui.vertical(|ui| {
        add(ui, label.id).labelled_by(label.id).on_hover_text(hint);
        if let Some(why) = wrong {
            let fail = theme::of(ui).fail;
            ui.label(RichText::new(why).font(theme::small()).color(fail));
        }
    });
    ui.end_row();
}

pub(super) fn number(
    ui: &mut Ui,
    name: &str,
    value: &mut usize,
    range: std::ops::RangeInclusive<usize>,
) {
    row(ui, name, |ui| ui.add(DragValue::new(value).range(range)));
}

/// A row with a choice of few.
pub(super) fn choice<T: PartialEq + Copy>(
    ui: &mut Ui,
    name: &str,
    options: &[(T, &str)],
    value: &mut T,
) {
    ui.label(name);
    let names: Vec<&str> = options.iter().map(|(_, name)| *name).collect();
    let chosen = options.iter().position(|(option, _)| option == value);
    if let Some(at) = widgets::segmented(ui, name, &names, chosen, SegmentStyle::View, None, |at| {
        format!("{name}: {}", names[at])
    }) {
        *value = options[at].0;
    }
    ui.end_row();
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn the_name_between_folder_and_ending_is_found() {
        assert_eq!(file_name("/a/bé/net-small.onnx"), (6, 15));
        assert_eq!(file_name("net.limbeck.ron"), (0, 3));
        assert_eq!(file_name("a/v1.2"), (2, 6));
        assert_eq!(file_name(""), (0, 0));
    }
}
