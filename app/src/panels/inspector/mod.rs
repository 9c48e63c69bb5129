//! The inspector: the focused layer's weights before and after its setting or what it reads, its channels, its error, and what is
//! known of every candidate, with provenance.

mod pictures;
mod shrinking;

use super::{Commands, advice, switch, words};
use crate::{
    commands::Command,
    state::{Dialog, Inspected, SelectMode, State},
    theme,
    widgets::{self, number},
};
use egui::{
    Align, Layout, Rect, RichText, Role, Sense, Stroke, Ui, UiBuilder, WidgetInfo, pos2, vec2,
};
use limbeck_engine::{data::SplitName, search::LayerFacts, sensitivity::Candidate};

pub fn show(ui: &mut Ui, state: &State, out: &mut Commands) {
    let Some(layer) = state.focus() else {
        widgets::empty_state(
            ui,
            "No layer selected",
            "Select a layer to see its weights, its channels and what every candidate costs.",
            &[],
        );
        return;
    };
    widgets::head(ui, true, |ui| head(ui, layer, state, out));
    let all = ui.available_rect_before_wrap();
    let table_width = if all.width() > 560.0 { 268.0 } else { 244.0 };
    let split = all.right() - table_width;
    let t = theme::of(ui);
    ui.painter()
        .vline(split, all.y_range(), Stroke::new(1.0, t.line));
    let left = Rect::from_min_max(
        all.min + vec2(12.0, 12.0),
        pos2(split - 12.0, all.bottom() - 8.0),
    );
    let right = Rect::from_min_max(
        pos2(split + 12.0, all.top() + 4.0),
        all.max - vec2(12.0, 4.0),
    );
    ui.scope_builder(UiBuilder::new().id_salt("weights").max_rect(left), |ui| {
        pictures::show(ui, left, layer, state);
    });
    ui.scope_builder(
        UiBuilder::new().id_salt("candidates").max_rect(right),
        |ui| {
            ui.set_clip_rect(ui.clip_rect().intersect(right.expand(4.0)));
            egui::ScrollArea::vertical()
                .id_salt("candidates-scroll")
                .auto_shrink(false)
                .show(ui, |ui| {
                    advice::show(ui, layer, state, out);
                    methods(ui, layer, state, out);
                    shrinking::values(ui, layer, state, out);
                    // What the plan is about comes first.
                    if state.document.channels {
                        ui.add_space(4.0);
                        channels(ui, layer, state, out);
                        candidates(ui, layer, state);
                        ui.add_space(8.0);
                    } else {
                        candidates(ui, layer, state);
                        ui.add_space(8.0);
                        channels(ui, layer, state, out);
                    }
                    shrinking::block(ui, layer, state, out);
                });
        },
    );
}

fn head(ui: &mut Ui, layer: &LayerFacts, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let setting = words::setting(state.setting(&layer.id), &state.document);
    ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
        // At the edge: it stays where it is, however long the setting's words are.
        if state.countable().is_ok() {
            let choices = [(Inspected::Weights, "Weights"), (Inspected::Input, "Input")];
            let now = state.view.inspected;
            if let Some(what) = switch(ui, "inspected", &choices, now, "Inspect") {
                out.push(Command::SetInspected(what));
            }
        }
        let runs = [(setting.as_str(), theme::small(), t.muted)];
        let chip = widgets::chip(ui, &runs, None, "Quantisation scheme");
        if chip
            .on_hover_text("What the plan asks of this layer; click for the quantisation scheme")
            .clicked()
        {
            out.push(Command::Show(Dialog::Scheme));
        }
        let room = ui.available_rect_before_wrap();
        let (rect, response) = ui.allocate_exact_size(vec2(room.width(), 24.0), Sense::hover());
        let name = layer.id.0.as_ref();
        response
            .widget_info(|| WidgetInfo::labeled(Role::Heading, true, format!("Inspecting {name}")));
        let width =
            widgets::text_width(ui.painter(), name, theme::strong()).min(rect.width() * 0.6);
        let name_rect = rect.with_max_x(rect.left() + width + 2.0);
        widgets::draw_name(
            ui.painter(),
            name_rect,
            name,
            &layer.op,
            theme::strong(),
            t.text,
        );
        let rest = format!(
            "{} · {} params",
            words::layer_kind(layer),
            number::grouped(layer.params)
        );
        let rest_rect = rect.with_min_x(name_rect.right() + 10.0);
        widgets::draw_elided(
            ui.painter(),
            rest_rect,
            Align::Min,
            &rest,
            theme::sans(),
            t.muted,
        );
        response.on_hover_text(format!(
            "{name}\n{rest}\nweight {}{}",
            number::shape(&layer.weight_shape),
            layer.macs.map_or_else(String::new, |m| format!(
                " · {} M MACs a sample",
                number::millions(m)
            ))
        ));
    });
}

/// The plan's methods, and whether this layer has them.
fn methods(ui: &mut Ui, layer: &LayerFacts, state: &State, out: &mut Commands) {
    if !state.setting(&layer.id).precision.is_integer() {
        return;
    }
    for (kind, on) in state.methods_on(&layer.id) {
        let word = words::method(kind);
        ui.horizontal(|ui| {
            let choices = [(true, "On"), (false, "Off")];
            if let Some(on) = switch(ui, word, &choices, on, word) {
                out.push(Command::SetMethodOn {
                    kind,
                    layers: vec![layer.id.clone()],
                    on,
                });
            }
            let t = theme::of(ui);
            ui.label(RichText::new(word).color(t.muted));
        });
    }
    if !state.document.methods.is_empty() {
        ui.add_space(4.0);
    }
}

fn candidates(ui: &mut Ui, layer: &LayerFacts, state: &State) {
    let t = theme::of(ui);
    let Some(row) = state.mirror.layer_index(&layer.id) else {
        return;
    };
    // Room for the scroll bar, where one is needed.
    let width = ui.available_width() - 8.0;
    let line = |ui: &mut Ui, height: f32| {
        let (rect, response) = ui.allocate_exact_size(vec2(width, height), Sense::hover());
        let colour = theme::mix(t.panel, t.line, 0.6);
        ui.painter().hline(
            rect.x_range(),
            rect.bottom() - 0.5,
            Stroke::new(1.0, colour),
        );
        (rect, response)
    };
    let columns = |rect: Rect| {
        let from = rect.with_min_x(rect.right() - 84.0);
        let value = Rect::from_min_max(
            pos2(rect.left() + 40.0, rect.top()),
            pos2(from.left(), rect.bottom()),
        );
        (rect.with_max_x(value.left()), value, from)
    };
    let (rect, _) = line(ui, 26.0);
    let (a, b, c) = columns(rect);
    for (rect, align, text) in [
        (a, Align::Min, "Candidate"),
        (b, Align::Max, "Drop, pt"),
        (c, Align::Max, "From"),
    ] {
        let rect = if align == Align::Min {
            rect.with_max_x(rect.right() + 24.0)
        } else {
            rect
        };
        widgets::draw_elided(ui.painter(), rect, align, text, theme::sans(), t.muted);
    }
    for candidate in Candidate::ALL {
        let (rect, response) = line(ui, 23.0);
        let (name, value, from) = columns(rect);
        let slot = state.cell(row, candidate);
        let (figure, origin) = match slot {
            Some(cell) => (words::cell_value(cell), words::cell_origin(cell)),
            None => ("–".to_owned(), "not known".to_owned()),
        };
        let short = words::candidate(candidate);
        let label = format!("{short}: {figure}, {origin}");
        response.widget_info(|| WidgetInfo::labeled(Role::Row, true, &label));
        let known = slot.is_some_and(|cell| cell.n > 0);
        let painter = ui.painter();
        widgets::draw_elided(painter, name, Align::Min, short, theme::sans(), t.text);
        let colour = if known { t.text } else { t.muted };
        widgets::draw_elided(painter, value, Align::Max, &figure, theme::mono(), colour);
        widgets::draw_elided(
            painter,
            from,
            Align::Max,
            &origin,
            theme::mono_small(),
            t.muted,
        );
        let mut hover = words::candidate_long(candidate).to_owned();
        match slot {
            Some(cell) if known => {
                hover += &format!(
                    ": {} lost when only this layer is changed, paired on the same {} samples of the search split, 95 % interval",
                    state.judged_by(SplitName::Search),
                    number::grouped(cell.n)
                );
            }
            Some(_) => {
                hover += ": no drop is measured yet. Noise to signal of the weights alone; it says little of accuracy"
            }
            None => hover += ": not known yet",
        }
        response.on_hover_text(hover);
    }
}

/// Which layers lose channels together with this one, or why it loses none.
fn channels(ui: &mut Ui, layer: &LayerFacts, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let Some(channels) = state.channels() else {
        return;
    };
    let (head, body, group) = match (channels.group_of(&layer.id), channels.fixed.get(&layer.id)) {
        (Some(group), _) => {
            let others = group.layers.iter().filter(|l| **l != layer.id);
            let names: Vec<&str> = others.map(|l| &*l.0).collect();
            let readers = group.readers.len();
            let read = format!(
                "{readers} {} it and shrink{} with it",
                if readers == 1 {
                    "layer reads"
                } else {
                    "layers read"
                },
                if readers == 1 { "s" } else { "" },
            );
            if names.is_empty() {
                let head = "Its channels can go by themselves".to_owned();
                (head, format!("{read}."), None)
            } else {
                let head = format!("Tied to {} other layers", names.len());
                let head = if names.len() == 1 {
                    "Tied to one other layer".to_owned()
                } else {
                    head
                };
                let body = format!(
                    "Channels go together with those of {}; {read}.",
                    names.join(", ")
                );
                (head, body, Some(group))
            }
        }
        (None, Some(why)) => ("Its channels stay".to_owned(), format!("{why}."), None),
        (None, None) => return,
    };
    widgets::note_card(ui, t.muted, &head, &body, |ui| {
        let Some(group) = group else { return };
        ui.add_space(4.0);
        if widgets::Button::new("Select them all").low().show(ui) {
            let mut mode = SelectMode::Replace;
            // The layer itself last: it stays in the inspector.
            let others = group.layers.iter().filter(|l| **l != layer.id);
            for id in others.chain([&layer.id]) {
                out.push(Command::Select {
                    layer: id.clone(),
                    mode,
                });
                mode = SelectMode::Toggle;
            }
        }
    });
    ui.add_space(8.0);
}
