//! The trade-off: accuracy against size or MACs. Measured points are blue with their intervals, the present plan is copper,
//! its prediction a diamond; the Pareto front, the goal region; hover for details, click to select, a button to restore.

mod epochs;
mod labels;
mod marks;
mod overlay;

pub(super) use marks::{even_label, even_marks};

use super::{Commands, command_button, switch, words};
use crate::{
    commands::{Command, split_label},
    state::{Dialog, JobKind, NamedPoint, PlotAxis, State},
    theme,
    widgets::{self, Button, number},
};
use egui::{Align, Align2, Layout, Rect, RichText, Role, Sense, Ui, Vec2, WidgetInfo, pos2, vec2};
use egui_plot::{AxisHints, Plot};
use limbeck_engine::data::SplitName;
use marks::{axis_number, decades};

/// The switches in the panel's head, laid from the right.
pub fn switches(ui: &mut Ui, state: &State, out: &mut Commands) {
    if state.measurable().is_err() {
        return;
    }
    let axes = [(PlotAxis::Size, "Size"), (PlotAxis::Macs, "MACs")];
    if let Some(axis) = switch(ui, "axis", &axes, state.view.axis, "Plot against") {
        out.push(Command::SetPlotAxis(axis));
    }
    let wide = ui.available_width() > 230.0;
    let texts = [SplitName::Search, SplitName::Holdout].map(|split| {
        let name = split_label(split);
        let text = match words::judged_samples(state, split) {
            Some(n) if wide => format!("{name} {n}"),
            _ => name.to_owned(),
        };
        (split, text)
    });
    let choices = [
        (texts[0].0, texts[0].1.as_str()),
        (texts[1].0, texts[1].1.as_str()),
    ];
    if let Some(split) = switch(ui, "split", &choices, state.view.split, "Points on") {
        out.push(Command::SetSplit(split));
    }
}

pub fn show(ui: &mut Ui, state: &State, out: &mut Commands) {
    let Some(model) = state.model() else { return };
    if model.data.is_none() || !model.runnable {
        missing(ui, state, out);
        return;
    }
    let all = ui.available_rect_before_wrap();
    let foot = theme::BAR;
    let area = Rect::from_min_max(
        pos2(all.left() + 8.0, all.top() + 8.0),
        pos2(all.right() - 14.0, all.bottom() - foot - 4.0),
    );
    ui.scope_builder(
        egui::UiBuilder::new().id_salt("plot").max_rect(area),
        |ui| plot(ui, area.size(), state, out),
    );
    let below = Rect::from_min_max(pos2(all.left(), all.bottom() - foot), all.max);
    ui.scope_builder(
        egui::UiBuilder::new().id_salt("point").max_rect(below),
        |ui| {
            widgets::head(ui, false, |ui| footer(ui, state, out));
        },
    );
}

/// Without data, or with operators that don't run: what is missing, and what to do.
fn missing(ui: &mut Ui, state: &State, out: &mut Commands) {
    let Some(model) = state.model() else { return };
    if model.data.is_none() {
        let mut body = "Layers are coloured by a proxy from the weights alone. Accuracy, the measured map and distillation need \
                        labelled data: a task.ron that names images and labels (one beside the model is found by itself)."
            .to_owned();
        for warning in &model.warnings {
            body += "\n";
            body += warning;
        }
        if widgets::empty_state(ui, "No data yet", &body, &[("Open data…", true)]).is_some() {
            out.push(Command::Show(Dialog::OpenTask));
        }
    } else {
        let body = if model.warnings.is_empty() {
            "Some operators can't run; the log names them.".to_owned()
        } else {
            model.warnings.join("\n")
        };
        if widgets::empty_state(ui, "This model can't be run", &body, &[("Show log", false)])
            .is_some()
        {
            out.push(Command::ShowLog(true));
        }
    }
}

/// The selected point and the button that brings its plan back.
fn footer(ui: &mut Ui, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let Some(point) = state.selected_point() else {
        let text = if state.shown_count() > 0 {
            "Click a point to see and restore its plan"
        } else if state.is_busy(JobKind::Open) || state.is_busy(JobKind::Measure) {
            "The first measurement is running"
        } else {
            "No measurement on this split yet"
        };
        widgets::muted_label(ui, text);
        return;
    };
    ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
        command_button(
            ui,
            Button::new("Restore this plan"),
            Command::RestorePoint(point.id),
            state,
            out,
        );
        runtime(ui, point, state, out);
        let summary = format!(
            "{} % · {} kB · n {}",
            words::top1(point),
            number::kilobytes(point.point.sizes.stored.0),
            number::grouped(point.point.metrics.top1.n),
        );
        let room = ui.available_rect_before_wrap();
        let (rect, response) = ui.allocate_exact_size(vec2(room.width(), 24.0), Sense::hover());
        let label = format!(
            "{}: {} {summary}, {}",
            point.name,
            point.point.metrics.top1_name(),
            point.point.metrics.origin()
        );
        response.widget_info(|| WidgetInfo::labeled(Role::Label, true, &label));
        let name_width = widgets::text_width(ui.painter(), &point.name, theme::strong());
        let name = rect.with_max_x((rect.left() + name_width + 2.0).min(rect.right()));
        widgets::draw_elided(
            ui.painter(),
            name,
            Align::Min,
            &point.name,
            theme::strong(),
            t.text,
        );
        let rest = rect.with_min_x(name.right() + 10.0);
        widgets::draw_elided(
            ui.painter(),
            rest,
            Align::Min,
            &summary,
            theme::mono(),
            t.muted,
        );
        response.on_hover_text(words::point_hover(point));
    });
}

/// What the runtime gave for a point, or the button that asks it.
fn runtime(ui: &mut Ui, point: &NamedPoint, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let ask = Command::Confirm(point.id);
    let Some(pair) = &point.point.confirmed else {
        let hint =
            "Runs the point's exported file in ONNX Runtime on the same samples, in the background";
        let button = Button::new("Confirm")
            .name("Confirm in ONNX Runtime")
            .hint(hint);
        command_button(ui, button, ask, state, out);
        return;
    };
    let (text, colour) = match pair.agrees() {
        true => ("Runtime agrees", t.pass),
        false => ("Runtime differs", t.fail),
    };
    let chip = widgets::chip(ui, &[(text, theme::small(), colour)], Some(colour), text);
    let chip = chip.on_hover_text(format!("{}\nClick to ask again", super::pair::words(pair)));
    if chip.clicked() && ask.enabled(state).is_ok() {
        out.push(ask);
    }
}

/// What the axes must show: the points with their intervals, the prediction, the goals. x in decades.
fn extent(state: &State) -> ([f64; 2], [f64; 2]) {
    let (mut x, mut y) = ([f64::MAX, f64::MIN], [f64::MAX, f64::MIN]);
    let grow = |range: &mut [f64; 2], v: f64| {
        if v.is_finite() {
            *range = [range[0].min(v), range[1].max(v)];
        }
    };
    if let Some(marks) = state.marks_extent() {
        [x, y] = marks;
    }
    if let Some(predicted) = state.predicted_point() {
        grow(&mut x, predicted.x.max(1e-6).log10());
        if let Some(top1) = predicted.top1 {
            // A prediction far below everything measured (drops add up without end) does not squeeze the rest.
            let floor = (y[0].min(100.0) - 15.0).max(0.0);
            grow(&mut y, top1.clamp(floor, 100.0));
        }
    }
    let floor = (y[0].min(100.0) - 15.0).max(0.0);
    for run in epochs::placed(state) {
        grow(&mut x, run.x.max(1e-6).log10());
        for (_, accuracy) in run.judged {
            // Nor does an epoch that had learned little yet.
            grow(&mut y, (accuracy.value * 100.0).clamp(floor, 100.0));
        }
    }
    let (size, floor) = state.goal_region();
    if let (Some(kb), PlotAxis::Size) = (size, state.view.axis) {
        grow(&mut x, kb.max(1e-6).log10());
    }
    if let Some(floor) = floor {
        grow(&mut y, floor);
    }
    if x[0] > x[1] {
        x = [1.0, 3.0];
    }
    if y[0] > y[1] {
        y = [0.0, 100.0];
    }
    // On a coarse grid, so that a point that moves a little moves no axis.
    let pad = ((x[1] - x[0]) * 0.06).max(0.08);
    let x = [
        ((x[0] - pad) * 10.0).floor() / 10.0,
        ((x[1] + pad) * 10.0).ceil() / 10.0,
    ];
    let step = if y[1] - y[0] > 10.0 { 2.0 } else { 0.5 };
    let y = [
        (y[0] / step - 0.2).floor() * step,
        (y[1] / step + 0.4).ceil() * step,
    ];
    (x, y)
}

fn plot(ui: &mut Ui, size: Vec2, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let (x, y) = extent(state);
    let x_label = match state.view.axis {
        PlotAxis::Size => "stored size, kB (log)",
        PlotAxis::Macs => "MACs a sample, million (log)",
    };
    let what = state.judged_by(state.view.split);
    let y_label = format!("{what} on {}, %", split_label(state.view.split));
    let caption = |text: String| RichText::new(text).font(theme::mono_small()).color(t.muted);
    let hints_x = AxisHints::new_x()
        .label(caption(x_label.to_owned()))
        .formatter(|mark, _| axis_number(10_f64.powf(mark.value)))
        .tick_label_color(t.muted)
        .tick_label_font(theme::mono_small());
    let hints_y = AxisHints::new_y()
        .label(caption(y_label))
        .formatter(|mark, _| even_label(mark))
        .tick_label_color(t.muted)
        .tick_label_font(theme::mono_small())
        .min_thickness(30.0);
    // Another split or axis is another plot: its zoom is its own.
    let id = ui
        .scope_id()
        .with(("trade-off", state.view.split, state.view.axis as u8));
    let response = Plot::new("trade-off")
        .id(id)
        .width(size.x)
        .height(size.y)
        .show_background(false)
        .show_crosshair(false)
        .grid_color(theme::mix(t.panel, t.line, 0.9))
        .grid_fade(0.0)
        .custom_x_axes(vec![hints_x])
        .custom_y_axes(vec![hints_y])
        .x_grid_spacer(|input| decades(&input))
        .y_grid_spacer(move |input| even_marks(&input, size.y / 44.0))
        .set_margin_fraction(Vec2::ZERO)
        .include_x(x[0])
        .include_x(x[1])
        // A little more than the outermost marks, so that their numbers clear the corners.
        .include_y(y[0] - (y[1] - y[0]) * 0.03)
        .include_y(y[1] + (y[1] - y[0]) * 0.02)
        .allow_scroll(false)
        .allow_boxed_zoom(false)
        .label_formatter(|_| None)
        .show(ui, |_| {});
    if state.shown_count() == 0 {
        let text = if state.is_busy(JobKind::Open) || state.is_busy(JobKind::Measure) {
            "The original is being measured"
        } else {
            "Nothing measured on this split yet: press Measure"
        };
        widgets::draw(
            ui.painter(),
            response.transform.frame().center(),
            Align2::CENTER_CENTER,
            text,
            theme::sans(),
            t.muted,
        );
    }
    let name = format!(
        "Trade-off plot, {} points on {}",
        state.shown_count(),
        split_label(state.view.split)
    );
    response
        .response
        .widget_info(|| WidgetInfo::labeled(Role::Image, true, &name));
    if response.response.clicked() && state.view.selected_point.is_some() {
        out.push(Command::SelectPoint(None));
    }
    overlay::overlay(ui, &response.transform, state, out);
}
