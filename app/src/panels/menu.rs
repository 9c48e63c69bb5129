//! Menus: lists of commands with their shortcuts, greyed with the reason where they can't be given.

use super::Commands;
use crate::{
    commands::{Command, Preset},
    state::{Dialog, State},
    theme,
};
use egui::{
    Align2, Popup, PopupCloseBehavior, Rect, Response, Role, Sense, Stroke, Ui, WidgetInfo, pos2,
    vec2,
};

/// What hovering a button that sends `command` says: its name and shortcut.
pub fn hint(ui: &Ui, command: &Command) -> String {
    match command.shortcut() {
        Some(keys) => format!("{} ({})", command.label(), ui.ctx().format_shortcut(&keys)),
        None => command.label(),
    }
}

/// A popup under `anchor` (a button) that lists commands; `None` is a hairline.
pub fn popup(anchor: &Response, commands: &[Option<Command>], state: &State, out: &mut Commands) {
    Popup::menu(anchor)
        .close_behavior(PopupCloseBehavior::CloseOnClick)
        .show(|ui| {
            let wide = commands
                .iter()
                .flatten()
                .map(|command| natural_width(ui, command))
                .fold(160.0, f32::max);
            ui.set_width(wide.min(MENU));
            ui.spacing_mut().item_spacing.y = 0.0;
            for entry in commands {
                match entry {
                    Some(command) => item(ui, command, state, out),
                    None => {
                        let t = theme::of(ui);
                        let (rect, _) =
                            ui.allocate_exact_size(vec2(ui.available_width(), 9.0), Sense::hover());
                        ui.painter().hline(
                            rect.x_range(),
                            rect.center().y,
                            Stroke::new(1.0, t.line),
                        );
                    }
                }
            }
        });
}

/// Widest a menu gets; longer entries (paths) are cut in the middle.
const MENU: f32 = 420.0;

fn natural_width(ui: &Ui, command: &Command) -> f32 {
    let keys = command
        .shortcut()
        .map(|keys| ui.ctx().format_shortcut(&keys))
        .unwrap_or_default();
    crate::widgets::text_width(ui.painter(), &command.label(), theme::sans())
        + crate::widgets::text_width(ui.painter(), &keys, theme::mono_small())
        + 44.0
}

fn item(ui: &mut Ui, command: &Command, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let why = command.enabled(state).err();
    let label = command.label();
    let keys = command
        .shortcut()
        .map(|keys| ui.ctx().format_shortcut(&keys))
        .unwrap_or_default();
    let painter = ui.painter().clone();
    let sense = if why.is_none() {
        Sense::click()
    } else {
        Sense::hover()
    };
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 26.0), sense);
    response.widget_info(|| WidgetInfo::labeled(Role::MenuItem, why.is_none(), &label));
    if why.is_none() && (response.hovered() || response.has_focus()) {
        painter.rect_filled(rect, 4.0, t.selected);
    }
    let colour = if why.is_none() { t.text } else { t.faint };
    let right = crate::widgets::draw(
        &painter,
        pos2(rect.right() - 10.0, rect.center().y),
        Align2::RIGHT_CENTER,
        keys,
        theme::mono_small(),
        t.muted,
    );
    let text = Rect::from_min_max(
        pos2(rect.left() + 10.0, rect.top()),
        pos2(right.left(), rect.bottom()),
    );
    crate::widgets::draw_elided_middle(&painter, text, &label, theme::sans(), colour);
    if response.clicked() {
        out.push(command.clone());
    }
    if let Some(why) = why {
        response.on_hover_text(why);
    }
}

/// The application's menu, behind the mark in the top bar.
pub fn application(anchor: &Response, state: &State, out: &mut Commands) {
    let mut commands = vec![
        Some(Command::Show(Dialog::Open)),
        Some(Command::Show(Dialog::OpenTask)),
        Some(Command::OpenSample),
    ];
    commands.extend(
        state
            .view
            .recent
            .iter()
            .take(5)
            .map(|path| Some(Command::Open(path.clone()))),
    );
    commands.extend([
        None,
        Some(Command::SaveProject),
        Some(Command::Show(Dialog::SaveProject)),
        Some(Command::Show(Dialog::ExportRecipe)),
        Some(Command::Show(Dialog::ExportModel)),
        None,
        Some(Command::StartMap),
        Some(Command::Show(Dialog::Distil)),
        Some(Command::ConfirmPlan),
        Some(Command::CancelAll),
        None,
        Some(Command::Show(Dialog::Goals)),
        Some(Command::Show(Dialog::Shrink)),
        Some(Command::Show(Dialog::Scheme)),
        Some(Command::Show(Dialog::Methods)),
        Some(Command::Show(Dialog::Runtime)),
        Some(Command::ToggleTheme),
        Some(Command::Show(Dialog::About)),
        Some(Command::Quit),
    ]);
    popup(anchor, &commands, state, out);
}

/// Whole plans at a stroke, under the footer's "Plan…".
pub fn plan(anchor: &Response, state: &State, out: &mut Commands) {
    let mut commands: Vec<Option<Command>> = Preset::ALL
        .map(|preset| Some(Command::ApplyPreset(preset)))
        .into();
    commands.extend([
        None,
        Some(Command::SetPruning(!state.document.channels)),
        Some(Command::Show(Dialog::Shrink)),
        Some(Command::Show(Dialog::Scheme)),
        Some(Command::Show(Dialog::Methods)),
        Some(Command::Show(Dialog::Distil)),
        Some(Command::SetDistil(None)),
    ]);
    popup(anchor, &commands, state, out);
}
