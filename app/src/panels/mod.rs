//! One file a panel: each reads the state and puts commands into a list; none changes anything or calls the engine.
//! [`workbench`] arranges them in the window.

mod advice;
mod columns;
mod inspector;
mod interrupted;
mod jobs;
mod layers;
mod log;
mod menu;
mod notices;
mod pair;
mod rows;
#[cfg(test)]
mod tests;
mod top_bar;
mod trade_off;
mod training;
mod welcome;
mod words;

use crate::{
    commands::Command,
    state::{State, Tab},
    theme,
    widgets::{self, SegmentStyle},
};
use egui::{
    Align, CursorIcon, Id, Layout, Rect, Role, Sense, Stroke, Ui, UiBuilder, WidgetInfo, pos2, vec2,
};

pub use pair::{in_short as pair_in_short, words as pair_words};

/// What panels answer with: commands in the order they were given.
pub type Commands = Vec<Command>;

const TOP: f32 = 46.0;
const STRIP: f32 = theme::BAR;
const LOG: f32 = 184.0;
const GAP: f32 = 8.0;

/// The whole window inside `ui`: top bar, layers, trade-off and training, inspector, log, jobs strip, notices. Without a model:
/// the welcome. Dialogs and the command palette are the shell's.
pub fn workbench(ui: &mut Ui, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let all = ui.max_rect();
    ui.painter().rect_filled(all, 0.0, t.background);
    let top = Rect::from_min_size(all.min, vec2(all.width(), TOP));
    let strip = Rect::from_min_max(pos2(all.left(), all.bottom() - STRIP), all.max);
    let log_height = if state.view.log_open {
        LOG.min((all.height() - TOP - STRIP) / 2.0)
    } else {
        0.0
    };
    let log = Rect::from_min_max(
        pos2(all.left(), strip.top() - log_height),
        strip.right_top(),
    );
    let body = Rect::from_min_max(top.left_bottom(), log.right_top()).shrink(GAP);

    for (rect, edge) in [(top, top.bottom()), (strip, strip.top())] {
        ui.painter().rect_filled(rect, 0.0, t.panel);
        ui.painter()
            .hline(rect.x_range(), edge, Stroke::new(1.0, t.line));
    }
    inside(ui, top, "top", |ui| top_bar::show(ui, state, out));
    if state.model().is_some() {
        panels(ui, body, state, out);
    } else {
        panel(ui, body, "welcome", |ui| welcome::show(ui, state, out));
    }
    if log_height > 0.0 {
        ui.painter().rect_filled(log, 0.0, t.panel);
        ui.painter()
            .hline(log.x_range(), log.top(), Stroke::new(1.0, t.line));
        inside(ui, log, "log", |ui| log::show(ui, state, out));
    }
    inside(ui, strip, "strip", |ui| jobs::show(ui, state, out));
    notices::show(ui, log.right_top(), state, out);
}

/// Layers to the left, the plot over the inspector to the right, with dividers that move.
fn panels(ui: &mut Ui, body: Rect, state: &State, out: &mut Commands) {
    let (mut layers_share, mut plot_share) = (state.view.layers_share, state.view.plot_share);
    let room = body.width() - GAP;
    // Below these widths text would be cut.
    let left = within(room * layers_share, 560.0_f32.min(room * 0.6), room - 440.0);
    let tall = body.height() - GAP;
    let plot = within(tall * plot_share, 200.0_f32.min(tall * 0.5), tall - 220.0);

    let layers_rect = Rect::from_min_size(body.min, vec2(left.round(), body.height()));
    let right = Rect::from_min_max(pos2(layers_rect.right() + GAP, body.top()), body.max);
    let plot_rect = Rect::from_min_size(right.min, vec2(right.width(), plot.round()));
    let below = Rect::from_min_max(pos2(right.left(), plot_rect.bottom() + GAP), right.max);

    panel(ui, layers_rect, "layers", |ui| layers::show(ui, state, out));
    panel(ui, plot_rect, "plot", |ui| right_top(ui, state, out));
    panel(ui, below, "inspector", |ui| inspector::show(ui, state, out));

    let upright = Rect::from_min_max(layers_rect.right_top(), pos2(right.left(), body.bottom()));
    let level = Rect::from_min_max(plot_rect.left_bottom(), pos2(right.right(), below.top()));
    if let Some(pointer) = divider(
        ui,
        upright,
        "Width of the layers panel",
        CursorIcon::ResizeHorizontal,
    ) {
        layers_share = ((pointer.x - body.left()) / room).clamp(0.2, 0.8);
    }
    if let Some(pointer) = divider(ui, level, "Height of the plot", CursorIcon::ResizeVertical) {
        plot_share = ((pointer.y - body.top()) / tall).clamp(0.2, 0.8);
    }
    if (layers_share, plot_share) != (state.view.layers_share, state.view.plot_share) {
        out.push(Command::SetShares {
            layers: layers_share,
            plot: plot_share,
        });
    }
}

/// `value` kept at most `high` and, before that, at least `low`.
fn within(value: f32, low: f32, high: f32) -> f32 {
    value.min(high).max(low).max(0.0)
}

/// Where the divider is dragged to, while it is.
fn divider(ui: &mut Ui, rect: Rect, name: &str, cursor: CursorIcon) -> Option<egui::Pos2> {
    let response = ui
        .interact(rect, Id::unique(name), Sense::DRAG)
        .on_hover_and_drag_cursor(cursor);
    response.widget_info(|| WidgetInfo::labeled(Role::Splitter, true, name));
    if response.hovered() || response.dragged() {
        let t = theme::of(ui);
        let line = if rect.width() > rect.height() {
            Rect::from_center_size(rect.center(), vec2(32.0, 3.0))
        } else {
            Rect::from_center_size(rect.center(), vec2(3.0, 32.0))
        };
        ui.painter().rect_filled(line, 1.5, t.faint);
    }
    response
        .dragged()
        .then(|| response.interact_pointer_pos())
        .flatten()
}

/// Tabs over the upper right panel.
fn right_top(ui: &mut Ui, state: &State, out: &mut Commands) {
    widgets::head(ui, true, |ui| {
        ui.spacing_mut().item_spacing.x = 20.0;
        for (tab, text) in [(Tab::TradeOff, "Trade-off"), (Tab::Training, "Training")] {
            if widgets::tab(ui, text, state.view.tab == tab) && state.view.tab != tab {
                out.push(Command::SetTab(tab));
            }
        }
        ui.spacing_mut().item_spacing.x = 8.0;
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            match state.view.tab {
                Tab::TradeOff => trade_off::switches(ui, state, out),
                Tab::Training => training::head(ui, state, out),
            }
        });
    });
    match state.view.tab {
        Tab::TradeOff => trade_off::show(ui, state, out),
        Tab::Training => training::show(ui, state, out),
    }
}

/// One framed panel at `rect`.
fn panel(ui: &mut Ui, rect: Rect, salt: &str, add: impl FnOnce(&mut Ui)) {
    let frame = widgets::panel_frame(ui);
    ui.painter().add(frame.paint(rect.shrink(1.0)));
    inside(ui, rect.shrink(1.0), salt, add);
}

/// A child that fills `rect` and draws nothing outside it.
fn inside(ui: &mut Ui, rect: Rect, salt: &str, add: impl FnOnce(&mut Ui)) {
    ui.scope_builder(
        UiBuilder::new()
            .id_salt(salt)
            .max_rect(rect)
            .layout(Layout::top_down(Align::Min)),
        |ui| {
            ui.set_clip_rect(ui.clip_rect().intersect(rect));
            ui.spacing_mut().item_spacing.y = 0.0;
            add(ui);
        },
    );
}

/// A segmented switch of the view that sends a command when another segment is chosen.
fn switch<T: Copy + PartialEq>(
    ui: &mut Ui,
    salt: &str,
    choices: &[(T, &str)],
    now: T,
    what: &str,
) -> Option<T> {
    let texts: Vec<&str> = choices.iter().map(|(_, text)| *text).collect();
    let chosen = choices.iter().position(|(value, _)| *value == now);
    widgets::segmented(ui, salt, &texts, chosen, SegmentStyle::View, None, |i| {
        format!("{what}: {}", texts[i])
    })
    .map(|i| choices[i].0)
}

/// A button that sends `command`, greyed with its reason where the command can't be given now.
fn command_button<'a>(
    ui: &mut Ui,
    button: widgets::Button<'a>,
    command: Command,
    state: &State,
    out: &mut Commands,
) {
    let why = command.enabled(state).err();
    let hint = menu::hint(ui, &command);
    // The reason outlives the button: it is drawn before this returns.
    if button.disabled(why.as_deref()).hint(&hint).show(ui) {
        out.push(command);
    }
}
