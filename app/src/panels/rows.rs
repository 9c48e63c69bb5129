//! The table of layers: only the rows in sight are laid out and drawn, each painted by hand on a 25-point grid.

use super::{
    Commands,
    columns::{self, Columns, HEADER, header, span},
    words,
};
use crate::{
    commands::Command,
    state::{ColourBy, HeatKind, SelectMode, State},
    theme::{self, Tokens},
    widgets::{self, CellLook, SegmentStyle, SliderEvent, number},
};
use egui::{
    Align, EventFilter, Id, Key, Rect, Response, Role, ScrollArea, Sense, Stroke, TextureId, Ui,
    WidgetInfo, pos2, vec2,
};
use limbeck_engine::{
    compress::{Precision, Ratio},
    graph::LayerId,
    search::LayerFacts,
    sensitivity::Candidate,
};

/// Most that can be pruned away: a layer keeps something.
const MAX_RATIO: f32 = 0.95;
const PRECISIONS: [Precision; 4] = [
    Precision::Fp32,
    Precision::Fp16,
    Precision::Int8,
    Precision::Int4,
];

/// The largest layer, whose bar fills its column.
struct Largest {
    params: f32,
    macs: f32,
}

pub fn table(ui: &mut Ui, state: &State, out: &mut Commands) {
    let all = ui.max_rect();
    let long = |layer: &LayerFacts| layer.id.0.len() > columns::LONG_NAME;
    let columns = Columns::new(
        all.left(),
        all.width(),
        state.layers().iter().any(long),
        state.has_foresight(),
    );
    header(ui, all, &columns, state, out);

    let body = Rect::from_min_max(pos2(all.left(), all.top() + HEADER), all.max);
    let id = Id::unique("layers-table");
    // One tab stop for the whole table: arrows walk its rows.
    let keyboard = ui.interact(body, id, Sense::focusable_noninteractive());
    keyboard.widget_info(|| WidgetInfo::labeled(Role::Grid, true, "Layers table"));
    keys(ui, &keyboard, body, out);

    let rows = state.visible();
    if rows.is_empty() {
        nothing(ui, body, state, out);
        return;
    }
    let layers = state.layers();
    let (params, macs) = state.largest_layer();
    let largest = Largest {
        params: params as f32,
        macs: macs as f32,
    };
    let hatch = widgets::hatch_texture(ui.ctx());
    let moved = focus_moved(ui, id, state);
    ui.scope_builder(
        egui::UiBuilder::new().id_salt("rows").max_rect(body),
        |ui| {
            ScrollArea::vertical()
                .id_salt("layers-scroll")
                .auto_shrink(false)
                .show_viewport(ui, |ui, viewport| {
                    let height = rows.len() as f32 * theme::ROW;
                    ui.set_height(height);
                    let origin = ui.max_rect().min;
                    let first = (viewport.top() / theme::ROW).floor().max(0.0) as usize;
                    let last = ((viewport.bottom() / theme::ROW).ceil() as usize).min(rows.len());
                    for (at, index) in rows.iter().enumerate().take(last).skip(first) {
                        let Some(layer) = layers.get(*index) else {
                            continue;
                        };
                        let top = origin.y + at as f32 * theme::ROW;
                        let rect = Rect::from_min_size(
                            pos2(all.left(), top),
                            vec2(all.width(), theme::ROW),
                        );
                        row(
                            ui, rect, &columns, *index, layer, &largest, hatch, state, &keyboard,
                            out,
                        );
                    }
                    if let Some(at) = moved {
                        let top = origin.y + at as f32 * theme::ROW;
                        let rect =
                            Rect::from_min_size(pos2(all.left(), top), vec2(1.0, theme::ROW));
                        ui.scroll_to_rect(rect, None);
                    }
                });
        },
    );
    if keyboard.has_focus() {
        let t = theme::of(ui);
        ui.painter().vline(
            body.left() + 0.5,
            body.y_range(),
            Stroke::new(1.0, t.measured),
        );
    }
}

/// Place of the newly focused row among those shown, in the frame after the focus went there.
fn focus_moved(ui: &Ui, id: Id, state: &State) -> Option<usize> {
    let key = id.with("seen-focus");
    let now = state.view.focus.clone();
    let before = ui.data(|d| d.get_temp::<Option<LayerId>>(key)).flatten();
    if now == before {
        return None;
    }
    ui.data_mut(|d| d.insert_temp(key, now.clone()));
    let index = state.mirror.layer_index(&now?)?;
    state.visible().iter().position(|row| *row == index)
}

fn keys(ui: &Ui, table: &Response, body: Rect, out: &mut Commands) {
    if !table.has_focus() {
        return;
    }
    ui.memory_mut(|m| {
        m.set_focus_lock_filter(
            table.id,
            EventFilter {
                vertical_arrows: true,
                ..Default::default()
            },
        );
    });
    let page = (body.height() / theme::ROW).floor().max(1.0) as i32;
    let (rows, extend) = ui.input(|input| {
        let mut rows = 0;
        for (key, step) in [
            (Key::ArrowDown, 1),
            (Key::ArrowUp, -1),
            (Key::PageDown, page),
            (Key::PageUp, -page),
            (Key::Home, -1_000_000),
            (Key::End, 1_000_000),
        ] {
            rows += step * input.num_presses(key) as i32;
        }
        (rows, input.modifiers.shift)
    });
    if rows != 0 {
        out.push(Command::MoveFocus { rows, extend });
    }
}

fn nothing(ui: &mut Ui, body: Rect, state: &State, out: &mut Commands) {
    ui.scope_builder(
        egui::UiBuilder::new().id_salt("nothing").max_rect(body),
        |ui| {
            if state.layers().is_empty() {
                widgets::empty_state(
                    ui,
                    "No layers with weights",
                    "Nothing in this model can be compressed layer by layer.",
                    &[],
                );
            } else {
                let body = format!("No layer matches “{}”.", state.view.filter);
                if widgets::empty_state(ui, "Nothing found", &body, &[("Clear filter", false)])
                    .is_some()
                {
                    out.push(Command::SetFilter(String::new()));
                }
            }
        },
    );
}

/// The layers an edit in this row is for: the whole selection if the row belongs to it, else the row's own.
fn targets(state: &State, layer: &LayerId) -> Vec<LayerId> {
    if state.is_selected(layer) && state.view.selection.len() > 1 {
        state.selected_layers()
    } else {
        vec![layer.clone()]
    }
}

/// What the layer is computed in at the plan's target; hovering says why, and what is converted around it.
fn runs(ui: &mut Ui, rect: Rect, row: Id, layer: &LayerFacts, state: &State) {
    let t = theme::of(ui);
    let Some(said) = words::runs(state, &layer.id) else {
        return;
    };
    let response = ui.interact(rect, row.with("runs"), Sense::hover());
    let name = format!("{} runs in {}", layer.id.0, said.name);
    response.widget_info(|| WidgetInfo::labeled(Role::Cell, true, &name));
    let colour = match said.island {
        true => t.warning,
        false => t.muted,
    };
    let font = theme::mono_small();
    widgets::draw_elided(ui.painter(), rect, Align::Min, said.short, font, colour);
    response.on_hover_text(said.why);
}

#[allow(clippy::too_many_arguments)]
fn row(
    ui: &mut Ui,
    rect: Rect,
    columns: &Columns,
    index: usize,
    layer: &LayerFacts,
    largest: &Largest,
    hatch: TextureId,
    state: &State,
    table: &Response,
    out: &mut Commands,
) {
    let t = theme::of(ui);
    let id = table.id.with(index);
    let name = layer.id.0.as_ref();
    let selected = state.is_selected(&layer.id);
    let response = ui.interact(rect, id, Sense::CLICK);
    response.widget_info(|| WidgetInfo::selected(Role::Row, true, selected, name));
    if response.clicked() {
        let mode = ui.input(|i| match (i.modifiers.shift, i.modifiers.command) {
            (true, _) => SelectMode::Extend,
            (_, true) => SelectMode::Toggle,
            _ => SelectMode::Replace,
        });
        table.request_focus();
        out.push(Command::Select {
            layer: layer.id.clone(),
            mode,
        });
    }
    ground(
        ui,
        rect,
        selected,
        response.hovered(),
        state.view.focus.as_ref() == Some(&layer.id),
        t,
    );
    let y = (rect.top(), rect.bottom());
    pin(ui, span(columns.pin, y), id, layer, state, out);

    let painter = ui.painter().clone();
    let mut name_rect = span(columns.name, y).with_max_x(columns.name.1 - 8.0);
    if let Some(words) = words::at_target(state, &layer.id) {
        let mark = name_rect.with_min_x(name_rect.right() - 14.0);
        name_rect.max.x = mark.left() - 4.0;
        warn(ui, mark, id, name, &words);
    }
    let cut = widgets::draw_name(&painter, name_rect, name, &layer.op, theme::sans(), t.text);
    if cut && response.hovered() {
        response.clone().on_hover_text(name);
    }
    if let Some(op) = columns.op {
        let rect = span(op, y).with_max_x(op.1 - 6.0);
        widgets::draw_elided(
            &painter,
            rect,
            Align::Min,
            &layer.op,
            theme::sans(),
            t.muted,
        );
    }
    if let Some(shape) = columns.shape {
        let rect = span(shape, y).with_max_x(shape.1 - 6.0);
        let text = number::shape(&layer.weight_shape);
        widgets::draw_elided(&painter, rect, Align::Min, &text, theme::mono(), t.muted);
    }
    let bar = theme::mix(t.panel, t.text, if selected { 0.16 } else { 0.09 });
    let figure = |column: (f32, f32), text: &str, share: f32, colour| {
        // The share stands behind the number, from its right edge.
        let all = Rect::from_min_max(
            pos2(column.0 + 6.0, rect.top() + 4.0),
            pos2(column.1, rect.bottom() - 4.0),
        );
        let bar_rect = all.with_min_x(all.right() - all.width() * share.clamp(0.0, 1.0));
        widgets::share_bar(&painter, bar_rect, 1.0, bar);
        let text_rect = all.with_max_x(column.1 - 3.0);
        widgets::draw_elided(&painter, text_rect, Align::Max, text, theme::mono(), colour);
    };
    let params = number::grouped(layer.params);
    figure(
        columns.params,
        &params,
        layer.params as f32 / largest.params.max(1.0),
        t.text,
    );
    match layer.macs {
        Some(macs) => {
            let text = format!("{:.2}", macs as f64 / 1e6);
            figure(
                columns.macs,
                &text,
                macs as f32 / largest.macs.max(1.0),
                t.text,
            );
        }
        None => figure(columns.macs, "–", 0.0, t.faint),
    }
    cells(ui, columns, y, id, index, hatch, state);
    plan(ui, columns, y, id, layer, state, out);
}

/// The mark of a layer that stands out at its target; hovering it says why.
fn warn(ui: &mut Ui, rect: Rect, row: Id, name: &str, words: &str) {
    let t = theme::of(ui);
    let response = ui.interact(rect, row.with("warning"), Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Image, true, format!("{name}: {words}")));
    widgets::icons::paint(
        ui.painter(),
        widgets::icons::Icon::Warning,
        rect.center(),
        12.0,
        t.warning,
    );
    response.on_hover_text(words);
}

fn ground(ui: &Ui, rect: Rect, selected: bool, hovered: bool, focused: bool, t: &Tokens) {
    let painter = ui.painter();
    if selected {
        painter.rect_filled(rect, 0.0, t.selected);
        let edge = if focused { 3.0 } else { 2.0 };
        painter.rect_filled(
            Rect::from_min_size(rect.min, vec2(edge, rect.height())),
            0.0,
            t.accent,
        );
    } else if hovered {
        painter.rect_filled(rect, 0.0, theme::mix(t.panel, t.raised, 0.7));
    }
    let line = theme::mix(t.panel, t.line, 0.6);
    painter.hline(rect.x_range(), rect.bottom() - 0.5, Stroke::new(1.0, line));
}

fn pin(ui: &mut Ui, rect: Rect, row: Id, layer: &LayerFacts, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let pinned = state.is_pinned(&layer.id);
    let response = ui.interact(rect, row.with("pin"), Sense::CLICK);
    let word = if pinned { "Unpin" } else { "Pin" };
    response.widget_info(|| {
        WidgetInfo::selected(
            Role::CheckBox,
            true,
            pinned,
            format!("{word} {}", layer.id.0),
        )
    });
    let centre = pos2(rect.left() + 11.0, rect.center().y);
    let hovered = response.hovered();
    if pinned {
        let colour = if hovered { t.text } else { t.muted };
        ui.painter().circle_filled(centre, 3.0, colour);
    } else {
        let colour = if hovered {
            t.text
        } else {
            theme::mix(t.panel, t.faint, 0.8)
        };
        ui.painter()
            .circle_stroke(centre, 2.5, Stroke::new(1.0, colour));
    }
    if response.clicked() {
        out.push(Command::TogglePin(vec![layer.id.clone()]));
    }
    response.on_hover_text(if pinned {
        "Pinned: bulk edits and presets leave this layer alone"
    } else {
        "Pin: bulk edits and presets will leave this layer alone"
    });
}

fn cells(
    ui: &mut Ui,
    columns: &Columns,
    y: (f32, f32),
    row: Id,
    index: usize,
    hatch: TextureId,
    state: &State,
) {
    let t = theme::of(ui);
    for (candidate, column) in Candidate::ALL.into_iter().zip(columns.cells) {
        let rect = Rect::from_min_max(pos2(column.0, y.0 + 4.0), pos2(column.1 - 3.0, y.1 - 4.0));
        let heat = state.heat(index, candidate);
        let colour = t.heat(heat.value);
        let look = match heat.kind {
            HeatKind::Known => CellLook::Solid(colour),
            HeatKind::Estimated | HeatKind::Proxy => CellLook::Hatched(colour),
            HeatKind::Unknown => CellLook::Outline,
        };
        widgets::heat_cell(ui.painter(), rect, look, t, hatch);
        let response = ui.interact(rect, row.with(("cell", candidate as usize)), Sense::hover());
        response.widget_info(|| {
            WidgetInfo::labeled(Role::Cell, true, words::cell_hover(state, index, candidate))
        });
        if response.hovered() {
            let mut text = words::cell_hover(state, index, candidate);
            let hatched = matches!(heat.kind, HeatKind::Estimated | HeatKind::Proxy);
            if state.view.colour_by == ColourBy::Sensitivity && hatched {
                text += "\nMeasured cells replace hatched ones while the map runs";
            }
            response.on_hover_text(text);
        }
    }
}

fn plan(
    ui: &mut Ui,
    columns: &Columns,
    y: (f32, f32),
    row: Id,
    layer: &LayerFacts,
    state: &State,
    out: &mut Commands,
) {
    let name = layer.id.0.as_ref();
    let setting = state.setting(&layer.id);
    // A width that has no segment of its own stands in that of its storage, until another is chosen.
    let mut offered = PRECISIONS;
    let mut texts = ["32", "16", "8", "4"].map(str::to_owned);
    if let Some(bits) = setting.precision.bits()
        && !offered.contains(&setting.precision)
    {
        let slot = if bits > 4 { 2 } else { 3 };
        offered[slot] = setting.precision;
        texts[slot] = bits.to_string();
    }
    let chosen = offered.iter().position(|p| *p == setting.precision);
    let rect = Rect::from_min_max(
        pos2(columns.precision.0, y.0 + 3.0),
        pos2(columns.precision.1, y.1 - 3.0),
    );
    let texts = texts.each_ref().map(String::as_str);
    let picked = widgets::segmented_at(
        ui,
        rect,
        row.with("precision"),
        &texts,
        chosen,
        SegmentStyle::Plan,
        None,
        |i| format!("{name} precision {} bits", texts[i]),
    );
    if let Some(precision) = picked.and_then(|i| offered.get(i)) {
        out.push(Command::SetPrecision {
            layers: targets(state, &layer.id),
            precision: *precision,
        });
    }
    if let Some(column) = columns.runs {
        runs(ui, span(column, y), row, layer, state);
    }
    let ratio = setting.sparsity.0;
    let stays = state.channels_stay(&layer.id);
    let text = match ratio > 0.0 {
        _ if state.is_gone(&layer.id) => "gone".to_owned(),
        true => format!("{:.0} %", ratio * 100.0),
        false if stays.is_some() => "stays".to_owned(),
        false => "keep".to_owned(),
    };
    let event = widgets::ratio_slider(
        ui,
        span(columns.prune, y),
        row.with("ratio"),
        ratio,
        MAX_RATIO,
        state.document.ratio_grain(),
        &text,
        stays.as_deref(),
        || format!("{name} prune ratio"),
    );
    let (value, done) = match event {
        Some(SliderEvent::Changed(value)) => (value, false),
        Some(SliderEvent::Committed(value)) => (value, true),
        None => return,
    };
    if value != ratio {
        out.push(Command::SetRatio {
            layers: targets(state, &layer.id),
            ratio: Ratio(value),
        });
    }
    if done {
        out.push(Command::CommitEdit);
    }
}
