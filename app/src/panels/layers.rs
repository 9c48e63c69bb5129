//! The layers panel: filter, colour switch and legend over a table of layers; bulk edits and the plan's totals below.

use super::{Commands, command_button, menu, rows, switch, words};
use crate::{
    commands::{Command, precision_label},
    state::{ColourBy, HeatKind, Legend, State},
    theme,
    widgets::{self, Button, number},
};
use egui::{Align, Id, Layout, Popup, PopupCloseBehavior, RichText, Stroke, TextEdit, Ui, vec2};
use limbeck_engine::compress::{Precision, Ratio};

pub fn show(ui: &mut Ui, state: &State, out: &mut Commands) {
    widgets::head(ui, true, |ui| head(ui, state, out));
    let islands = words::islands(state);
    let line = if islands.is_some() { 22.0 } else { 0.0 };
    let foot = theme::BAR + line;
    let table = egui::Rect::from_min_max(
        ui.cursor().min,
        egui::pos2(ui.max_rect().right(), ui.max_rect().bottom() - foot),
    );
    ui.scope_builder(
        egui::UiBuilder::new().id_salt("table").max_rect(table),
        |ui| {
            ui.set_clip_rect(ui.clip_rect().intersect(table));
            rows::table(ui, state, out);
        },
    );
    let below = egui::Rect::from_min_max(table.left_bottom(), ui.max_rect().max);
    let told = below.with_max_y(below.top() + line);
    let below = below.with_min_y(told.bottom());
    if let Some((line, hover)) = islands {
        at_target(ui, told, &line, &hover, state);
    }
    ui.scope_builder(
        egui::UiBuilder::new().id_salt("foot").max_rect(below),
        |ui| {
            widgets::head(ui, false, |ui| footer(ui, state, out));
        },
    );
}

fn head(ui: &mut Ui, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let width = ui.available_width();
    ui.label(RichText::new("Layers").font(theme::strong()).color(t.text));
    ui.add_space(4.0);
    let mut filter = state.view.filter.clone();
    let field = ui.add(
        TextEdit::singleline(&mut filter)
            .id(Id::unique("layers-filter"))
            .hint_text(if width < 760.0 {
                "Filter"
            } else {
                "Filter name, op…"
            })
            .font(theme::sans())
            .desired_width(if width < 760.0 { 84.0 } else { 130.0 })
            .margin(egui::Margin::symmetric(8, 3)),
    );
    let field = field.accessible_name("Filter layers");
    if field.changed() {
        out.push(Command::SetFilter(filter));
    }
    field.on_hover_text("Every word must occur in name, operator or shape");
    ui.add_space(4.0);
    if width > 680.0 {
        widgets::muted_label(ui, "Colour");
    }
    let choices = ColourBy::ALL.map(|by| (by, by.label()));
    if let Some(by) = switch(ui, "colour", &choices, state.view.colour_by, "Colour by") {
        out.push(Command::SetColourBy(by));
    }
    ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
        scales(ui, state);
    });
}

/// The scales that the cells' colours are on, as many as there is room for.
fn scales(ui: &mut Ui, state: &State) {
    let scales = state.heat_legend();
    let texts = |scale: &Legend| {
        let width = |text| widgets::text_width(ui.painter(), text, theme::mono_small());
        width(&scale.low) + width(&scale.high) + 20.0
    };
    let widths: Vec<f32> = scales.iter().map(texts).collect();
    let gap = 14.0;
    let room = ui.available_width() - 8.0;
    let mut fit = scales.len();
    let bars = |fit: usize| {
        let text: f32 = widths.iter().take(fit).sum();
        (room - text - gap * fit.saturating_sub(1) as f32) / fit.max(1) as f32
    };
    while fit > 0 && bars(fit) < 28.0 {
        fit -= 1;
    }
    ui.spacing_mut().item_spacing.x = gap;
    for scale in scales.iter().take(fit).rev() {
        let (name, hover) = match (scale.kind, state.view.colour_by) {
            (HeatKind::Estimated, _) => (
                format!("Hatched cells: estimated divergence, up to {}", scale.high),
                "Hatched: not measured yet. Divergence of the outputs (KL, nats, logarithmic scale) as the error of the layer's own output \
                 predicts it, from some images without their labels. It ranks layers well and knows nothing of accuracy.",
            ),
            (HeatKind::Proxy, _) => (
                format!("Hatched cells: weight {}, up to {}", scale.low, scale.high),
                "Hatched: not measured yet. Noise to signal of the weights alone, 0.01 % to 30 %, on a logarithmic scale. It is \
                 there at once and says little of accuracy.",
            ),
            (_, by) => (
                format!("Colour scale from {} to {}", scale.low, scale.high),
                match by {
                    ColourBy::Sensitivity => {
                        "Solid: measured. Top-1 (without labels: agreement with the original) lost when this layer alone is changed, in \
                         points.\nOutline: not known."
                    }
                    ColourBy::AllBut => {
                        "Solid: measured. Top-1 (without labels: agreement with the original) lost when every layer but this one is changed, in points (logarithmic scale): where it is least, \
                         this layer is what hurts.\nOutline: not measured."
                    }
                    ColourBy::Size => {
                        "Bytes of the layer's weights, against the largest layer at fp32"
                    }
                    ColourBy::Macs => "Multiply–accumulates, against the largest layer",
                    ColourBy::Error => {
                        "Squared error of the weights, relative to their energy (square-root scale)"
                    }
                },
            ),
        };
        let look = widgets::Scale {
            low: &scale.low,
            high: &scale.high,
            range: scale.range,
            hatched: scale.kind != HeatKind::Known,
        };
        widgets::legend(ui, &look, bars(fit).min(96.0), &name).on_hover_text(hover);
    }
}

/// How the plan would run at its target, in a line above the footer; hovering names what stays float.
fn at_target(ui: &Ui, rect: egui::Rect, line: &str, hover: &str, state: &State) {
    let t = theme::of(ui);
    ui.painter()
        .hline(rect.x_range(), rect.top() + 0.5, Stroke::new(1.0, t.line));
    let response = ui.interact(rect, Id::unique("layers-at-target"), egui::Sense::hover());
    response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, line));
    let whole = state.islands().is_some_and(|all| all.float.is_empty());
    let colour = if whole { t.muted } else { t.text };
    let inside = rect.shrink2(vec2(12.0, 0.0));
    widgets::draw_elided(
        ui.painter(),
        inside,
        Align::Min,
        line,
        theme::small(),
        colour,
    );
    response.on_hover_text(hover);
}

fn footer(ui: &mut Ui, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let width = ui.available_width();
    let selected = state.selected_layers();
    let (shown, all) = (state.visible().len(), state.layers().len());
    let mut count = if shown == all {
        format!("{} layers", number::grouped(all as u64))
    } else {
        format!(
            "{} of {}",
            number::grouped(shown as u64),
            number::grouped(all as u64)
        )
    };
    if !selected.is_empty() {
        count += &format!(" · {} selected", number::grouped(selected.len() as u64));
    }
    // A fixed room for the counts, so that selecting moves no button.
    let room = if width > 720.0 { 150.0 } else { 138.0 };
    let (rect, response) = ui.allocate_exact_size(vec2(room, 24.0), egui::Sense::hover());
    response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, &count));
    widgets::draw_elided(
        ui.painter(),
        rect,
        Align::Min,
        &count,
        theme::sans(),
        t.muted,
    );

    let none = selected.is_empty().then_some("Select layers first");
    precision_menu(ui, &selected, none, out);
    ratio_menu(ui, &selected, none, state, out);
    let all_pinned = !selected.is_empty() && selected.iter().all(|id| state.is_pinned(id));
    let pin = Button::new(if all_pinned { "Unpin" } else { "Pin" });
    command_button(ui, pin, Command::TogglePin(selected), state, out);
    let plan = Button::new("Plan…")
        .hint("Whole plans at a stroke; pinned layers keep what they have")
        .response(ui);
    menu::plan(&plan, state, out);

    ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
        ui.spacing_mut().item_spacing.x = 0.0;
        totals(ui, state, ui.available_width());
    });
}

fn precision_menu(
    ui: &mut Ui,
    selected: &[limbeck_engine::graph::LayerId],
    none: Option<&str>,
    out: &mut Commands,
) {
    let anchor = Button::new("Set precision…")
        .disabled(none)
        .hint("Of every selected layer; pinned ones are skipped")
        .response(ui);
    Popup::menu(&anchor).show(|ui| {
        ui.set_width(96.0);
        ui.spacing_mut().item_spacing.y = 2.0;
        for precision in [
            Precision::Fp32,
            Precision::Fp16,
            Precision::Int8,
            Precision::Int4,
        ] {
            let label = precision_label(precision);
            let name = format!("Set selected layers to {label}");
            if Button::new(label).quiet().name(&name).show(ui) {
                out.push(Command::SetPrecision {
                    layers: selected.to_vec(),
                    precision,
                });
            }
        }
    });
}

fn ratio_menu(
    ui: &mut Ui,
    selected: &[limbeck_engine::graph::LayerId],
    none: Option<&str>,
    state: &State,
    out: &mut Commands,
) {
    let hint = if state.document.channels {
        "Share of channels to take out of every selected layer and of those tied to it; groups with a pinned layer are skipped"
    } else {
        "Share of weights to prune in every selected layer; pinned ones are skipped"
    };
    let anchor = Button::new("Set ratio…")
        .disabled(none)
        .hint(hint)
        .response(ui);
    Popup::menu(&anchor)
        .close_behavior(PopupCloseBehavior::CloseOnClick)
        .show(|ui| {
            ui.set_width(96.0);
            ui.spacing_mut().item_spacing.y = 2.0;
            for percent in [0_u8, 10, 25, 38, 50, 60, 75, 90] {
                let label = if percent == 0 {
                    "keep all".to_owned()
                } else {
                    format!("{percent} %")
                };
                let name = format!("Prune selected layers by {percent} %");
                if Button::new(&label).quiet().name(&name).show(ui) {
                    out.push(Command::SetRatio {
                        layers: selected.to_vec(),
                        ratio: Ratio(f32::from(percent) / 100.0),
                    });
                    out.push(Command::CommitEdit);
                }
            }
        });
}

/// "1,089 → 118 kB predicted   31.0 M MACs", at the right edge, in one line of several colours; less where there is less room.
fn totals(ui: &mut Ui, state: &State, room: f32) {
    let t = theme::of(ui);
    let (Some(model), Some(prediction)) = (state.model(), state.prediction()) else {
        return;
    };
    // A distillation changes values, not sizes.
    let split = state.view.split;
    let known = state
        .plan_point(split)
        .or_else(|| state.undistilled_point(split));
    let (stored, origin) = match known {
        _ if state.plan_is_empty() => (model.sizes.stored, "as opened"),
        Some(point) => (point.point.sizes.stored, "measured"),
        None => (
            prediction.stored,
            state.unpredicted().unwrap_or("predicted"),
        ),
    };
    let before = number::kilobytes(model.sizes.stored.0);
    let after = number::kilobytes(stored.0);
    let mut runs = Vec::new();
    if state.plan_is_empty() {
        runs.push((format!("{after} kB"), theme::medium_mono(), t.text));
    } else {
        runs.push((format!("{before} → "), theme::mono(), t.text));
        runs.push((format!("{after} kB"), theme::medium_mono(), t.accent_text));
    }
    if room > 330.0 {
        runs.push((origin.to_owned(), theme::small(), t.muted));
    }
    let size_alone = runs.len();
    runs.push(("   ".into(), theme::mono(), t.text));
    let macs = match known {
        _ if state.plan_is_empty() => model.sizes.macs,
        Some(point) => point.point.sizes.macs,
        None => prediction.macs,
    };
    match (macs.or(model.sizes.macs), model.sizes.macs) {
        (Some(now), Some(was)) if now != was => {
            let was = number::millions(was);
            runs.push((format!("{was} → "), theme::mono(), t.text));
            let now = number::millions(now);
            runs.push((now, theme::medium_mono(), t.accent_text));
            runs.push((" M MACs".into(), theme::mono(), t.muted));
        }
        (Some(now), _) => {
            runs.push((number::millions(now), theme::mono(), t.text));
            runs.push((" M MACs".into(), theme::mono(), t.muted));
        }
        (None, _) => runs.push(("MACs unknown".into(), theme::mono(), t.muted)),
    }
    let wide: f32 = runs
        .iter()
        .map(|(text, font, _)| widgets::text_width(ui.painter(), text, font.clone()))
        .sum();
    // Size comes first: where there is no room the MACs go.
    if wide + 12.0 > room {
        runs.truncate(size_alone);
    }
    let mut job = egui::text::LayoutJob::default();
    for (text, font, colour) in runs {
        let format = egui::TextFormat {
            valign: Align::Center,
            ..egui::TextFormat::simple(font, colour)
        };
        // A space at the start of another font's run would have no width.
        let gap = if text == origin { 7.0 } else { 0.0 };
        job.append(&text, gap, format);
    }
    job.wrap = egui::text::TextWrapping::no_max_width();
    let galley = ui.painter().layout_job(job);
    let (rect, response) = ui.allocate_exact_size(galley.size(), egui::Sense::hover());
    let name = format!("Plan: {after} kB stored, {origin}");
    response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, &name));
    ui.painter().galley(rect.min, galley, t.text);
    response.on_hover_text(format!(
            "Stored size of the exported file: {before} kB as opened, {after} kB with this plan ({origin}).\n\
             Masked zeros save no stored bytes, and neither precision nor masks change the number of MACs; channels taken out \
             save both."
        ));
}
