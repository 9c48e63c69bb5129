//! The inspector's pictures: a layer's weights before and after, or what it reads, with the figures under them.

use crate::{
    state::{ReadingState, State},
    theme,
    widgets::{self, Histogram, number},
};
use egui::{Align, Align2, Rect, Role, Sense, Ui, WidgetInfo, pos2, vec2};
use limbeck_engine::{
    compress::{InputCodes, LayerInspection},
    search::LayerFacts,
};

pub(super) fn show(ui: &mut Ui, rect: Rect, layer: &LayerFacts, state: &State) {
    if state.inspects_input() {
        return input(ui, rect, layer, state);
    }
    let inspection = state.mirror.inspection.as_ref();
    match inspection.filter(|i| i.layer == layer.id) {
        Some(inspection) => weights(ui, rect, layer, state, inspection),
        None => waiting(ui, rect, "Reading the weights…"),
    }
}

fn waiting(ui: &Ui, rect: Rect, text: &str) {
    let muted = theme::of(ui).muted;
    let centre = Align2::CENTER_CENTER;
    widgets::draw(
        ui.painter(),
        rect.center(),
        centre,
        text,
        theme::sans(),
        muted,
    );
}

/// Room that the figures take.
const FIGURES: f32 = 34.0;

fn weights(
    ui: &mut Ui,
    rect: Rect,
    layer: &LayerFacts,
    state: &State,
    inspection: &LayerInspection,
) {
    let t = theme::of(ui);
    let stale = inspection.setting != state.inspected_setting(&layer.id);
    ui.spacing_mut().item_spacing.y = 0.0;
    let strip = if rect.height() > 150.0 {
        (rect.height() * 0.16).clamp(24.0, 48.0)
    } else {
        0.0
    };
    let caption = if strip > 0.0 { 18.0 } else { 0.0 };
    let tall = (rect.height() - FIGURES - strip - caption - 6.0).max(60.0);
    let grid = grid(inspection);
    let levels = number::grouped(u64::from(inspection.levels));
    // What a method makes of the weights follows from the layers before: only a whole run knows it.
    let changed = state.methods_on(&layer.id).any(|(_, on)| on);
    let mut under = match inspection.levels {
        0 => "weights · float".to_owned(),
        _ if changed => format!("{levels} levels · without methods"),
        _ => format!("weights · {levels} levels"),
    };
    if stale {
        under = "updating…".into();
    }
    if stale {
        ui.multiply_opacity(0.6);
    }
    Histogram {
        range: inspection.range,
        before: &inspection.before,
        after: &inspection.after,
        grid: &grid,
        reach: None,
        caption: &under,
        name: &format!(
            "Histogram of the weights of {}, before and after",
            layer.id.0
        ),
    }
    .show(ui, tall);
    if strip > 0.0 {
        ui.add_space(6.0);
        widgets::channel_ranges(
            ui,
            &inspection.channel_ranges,
            strip,
            &format!("Ranges of {} channels", inspection.channel_ranges.len()),
        );
        let (line, _) = ui.allocate_exact_size(vec2(rect.width(), caption), Sense::hover());
        widgets::draw(
            ui.painter(),
            line.center(),
            Align2::CENTER_CENTER,
            format!(
                "range of each of {} output channels",
                inspection.channel_ranges.len()
            ),
            theme::mono_small(),
            t.muted,
        );
    }
    let sqnr = decibels(inspection.sqnr_db);
    let levels = match inspection.levels {
        0 => "float".into(),
        _ => levels,
    };
    figures(
        ui,
        rect,
        &[
            (
                "SQNR",
                sqnr,
                "Signal-to-quantisation-noise ratio of the weights; measured on all of them",
            ),
            (
                "Clipped",
                format!("{} %", number::percent(inspection.clipped, 2)),
                "Share of weights outside the quantised range",
            ),
            (
                "Zeros",
                format!("{} %", number::percent(inspection.zeros, 1)),
                "Share of weights that are zero afterwards",
            ),
            ("Levels", levels, "Distinct values in use afterwards"),
        ],
    );
}

fn decibels(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "exact".into(), |db| format!("{db:.1} dB"))
}

/// What a layer reads, and the codes it is given.
fn input(ui: &mut Ui, rect: Rect, layer: &LayerFacts, state: &State) {
    let reading = state.mirror.reading.as_ref();
    let reading = reading.filter(|reading| reading.layer == layer.id);
    let Some(read) = reading.and_then(|reading| reading.known.as_ref()) else {
        if let Some(ReadingState::Failed(why)) = reading.map(|reading| &reading.state) {
            let muted = theme::of(ui).muted;
            ui.label(egui::RichText::new(why).color(muted));
        } else {
            waiting(ui, rect, "Counting what it reads…");
        }
        return;
    };
    // By the last setting or scheme, while that of the present one is worked out.
    if reading.is_some_and(|reading| reading.state == ReadingState::Counting) {
        ui.multiply_opacity(0.6);
    }
    let n = format!("n {}", number::grouped(read.samples as u64));
    let caption = match &read.codes {
        Some(codes) => format!("original's input · int{} · {n}", codes.bits),
        None if read.dynamic => format!("a range each inference · {n}"),
        None => format!("original's input · float · {n}"),
    };
    let codes = read.codes.as_ref();
    let histogram = Histogram {
        range: read.range,
        before: &read.counts,
        after: &[],
        grid: &codes
            .map(|codes| steps(codes, read.range))
            .unwrap_or_default(),
        reach: codes.map(|codes| codes.range),
        caption: &caption,
        name: &format!("Histogram of what {} reads", read.layer.0),
    };
    let shown = histogram
        .show(ui, (rect.height() - FIGURES - 6.0).max(60.0))
        .rect;
    let line = shown.with_min_y(shown.bottom() - 18.0);
    let line = ui.interact(line, ui.scope_id().with("read"), Sense::hover());
    line.on_hover_text(format!(
        "{}: {} values over {} calibration samples of the original; exact zeros are not drawn. A plan that prunes, equalises or smooths what comes before, or shares scales where branches join, takes its range from there.",
        read.value,
        number::grouped(read.count),
        number::grouped(read.samples as u64),
    ));
    let none = || if read.dynamic { "–" } else { "float" }.to_owned();
    figures(
        ui,
        rect,
        &[
            (
                "SQNR",
                codes.map_or_else(none, |codes| match codes.bits {
                    ..=8 => decibels(codes.sqnr_db),
                    _ => "–".to_owned(),
                }),
                "Signal-to-quantisation-noise ratio of the input, from its histogram, which is too coarse for 16 bits",
            ),
            (
                "Clipped",
                codes.map_or_else(none, |codes| {
                    format!("{} %", number::percent(codes.clipped, 3))
                }),
                "Share of values beyond the outermost codes, from the histogram",
            ),
            (
                "Zeros",
                format!("{} %", number::percent(read.zeros, 1)),
                "Share of values that are exactly zero",
            ),
            (
                "Step",
                codes.map_or_else(none, |codes| number::short(codes.scale)),
                "From one code to the next, in the value's own unit",
            ),
        ],
    );
}

/// Values of the codes; few enough to be drawn, or none.
fn steps(codes: &InputCodes, [low, high]: [f32; 2]) -> Vec<f32> {
    if codes.bits > 8 {
        return Vec::new();
    }
    let [first, last] = codes.range;
    let count = ((last - first) / codes.scale).round() as u32;
    (0..=count)
        .map(|code| first + code as f32 * codes.scale)
        .filter(|value| (low..=high).contains(value))
        .collect()
}

/// The figures under the pictures (name, value, what it is), in equal columns.
fn figures(ui: &mut Ui, rect: Rect, entries: &[(&str, String, &str)]) {
    let t = theme::of(ui);
    let width = rect.width() / entries.len() as f32;
    let top = rect.bottom() - 32.0;
    for (i, (key, value, why)) in entries.iter().enumerate() {
        let cell =
            Rect::from_min_size(pos2(rect.left() + width * i as f32, top), vec2(width, 32.0));
        let response = ui.interact(cell, ui.scope_id().with(("figure", i)), Sense::hover());
        response.widget_info(|| WidgetInfo::labeled(Role::Label, true, format!("{key}: {value}")));
        let upper = cell.with_max_y(cell.top() + 15.0);
        let lower = cell.with_min_y(cell.top() + 15.0);
        widgets::draw_elided(
            ui.painter(),
            upper,
            Align::Min,
            key,
            theme::small(),
            t.muted,
        );
        widgets::draw_elided(
            ui.painter(),
            lower,
            Align::Min,
            value,
            theme::mono(),
            t.text,
        );
        response.on_hover_text(*why);
    }
}

/// The places of the quantised values, where they are few enough to be seen apart.
fn grid(inspection: &LayerInspection) -> Vec<f32> {
    let filled = inspection.after.iter().filter(|c| **c > 0).count();
    if inspection.levels == 0 || filled > 40 || inspection.after.is_empty() {
        return Vec::new();
    }
    let step = (inspection.range[1] - inspection.range[0]) / inspection.after.len() as f32;
    inspection
        .after
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(bin, _)| inspection.range[0] + step * (bin as f32 + 0.5))
        .collect()
}
