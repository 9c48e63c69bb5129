//! The trade-off: accuracy against size or MACs. Measured points are blue with their intervals, the present plan is copper,
//! its prediction a diamond; the Pareto front, the goal region; hover for details, click to select, a button to restore.

use super::{Commands, command_button, switch, words};
use crate::{
    commands::{Command, split_label},
    state::{Dialog, JobKind, NamedPoint, PlotAxis, State},
    theme,
    widgets::{self, Button, number},
};
use egui::{
    Align, Align2, FontId, Id, Layout, Painter, Pos2, Rect, RichText, Role, Sense, Shape, Stroke,
    Ui, Vec2, WidgetInfo, pos2, vec2,
};
use egui_plot::{AxisHints, GridInput, GridMark, Plot, PlotPoint, PlotTransform};
use limbeck_engine::data::SplitName;
use std::collections::BTreeSet;

/// From here on points are thinned to about one in three pixels and are found by the pointer only.
const MANY: usize = 300;

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
        let (name, n) = words::split_with_n(state, split);
        let text = if wide { format!("{name} {n}") } else { name };
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
                        labelled data: a task.ron that names images and labels."
            .to_owned();
        for warning in &model.warnings {
            body += "\n";
            body += warning;
        }
        if widgets::empty_state(ui, "Weights only", &body, &[("Open data…", true)]).is_some() {
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
        let text = if state.shown_points().next().is_some() {
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
        let summary = format!(
            "{} ± {:.2} % · {} KB · n {}",
            number::percent(point.point.metrics.top1.value, 2),
            half(point) * 100.0,
            number::kilobytes(point.point.sizes.stored.0),
            number::grouped(point.point.metrics.top1.n),
        );
        let room = ui.available_rect_before_wrap();
        let (rect, response) = ui.allocate_exact_size(vec2(room.width(), 24.0), Sense::hover());
        let label = format!("{}: top-1 {summary}, measured", point.name);
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

fn half(point: &NamedPoint) -> f64 {
    let ci = point.point.metrics.top1.ci;
    (ci[1] - ci[0]) / 2.0
}

/// What the axes must show: the points with their intervals, the prediction, the goals. x in decades.
fn extent(state: &State) -> ([f64; 2], [f64; 2]) {
    let (mut x, mut y) = ([f64::MAX, f64::MIN], [f64::MAX, f64::MIN]);
    let grow = |range: &mut [f64; 2], v: f64| {
        if v.is_finite() {
            *range = [range[0].min(v), range[1].max(v)];
        }
    };
    for point in state.shown_points() {
        if let Some((px, _)) = state.plot_position(point) {
            grow(&mut x, px.max(1e-6).log10());
            let ci = point.point.metrics.top1.ci;
            grow(&mut y, ci[0] * 100.0);
            grow(&mut y, ci[1] * 100.0);
        }
    }
    if let Some(predicted) = state.predicted_point() {
        grow(&mut x, predicted.x.max(1e-6).log10());
        if let Some(top1) = predicted.top1 {
            // A prediction far below everything measured (drops add up without end) does not squeeze the rest.
            let floor = (y[0].min(100.0) - 15.0).max(0.0);
            grow(&mut y, top1.clamp(floor, 100.0));
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

/// About `count` marks at even distances of 1, 2 or 5 times a power of ten.
pub(super) fn even_marks(input: &GridInput, count: f32) -> Vec<GridMark> {
    let (low, high) = input.bounds;
    let rough = (high - low) / f64::from(count.max(2.0));
    if !(rough.is_finite() && rough > 0.0) {
        return Vec::new();
    }
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last.min(first + 200))
        .map(|i| GridMark {
            value: i as f64 * step,
            step_size: step,
        })
        .collect()
}

/// A mark's number with as many decimals as its distance to the next needs.
pub(super) fn even_label(mark: GridMark) -> String {
    let decimals = (-mark.step_size.log10()).ceil().clamp(0.0, 6.0) as usize;
    format!("{:.*}", decimals, mark.value)
}

/// Marks at 1, 2, 5 (or finer) in each decade, with the distance to the next as their weight.
fn decades(input: &GridInput) -> Vec<GridMark> {
    let (low, high) = input.bounds;
    let span = high - low;
    let steps: &[f64] = if span < 0.6 {
        &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0]
    } else if span < 1.2 {
        &[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]
    } else if span < 3.0 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0]
    };
    let mut marks = Vec::new();
    for decade in (low.floor() as i32 - 1)..=(high.ceil() as i32) {
        for (i, step) in steps.iter().enumerate() {
            let value = f64::from(decade) + step.log10();
            let next = steps.get(i + 1).copied().unwrap_or(10.0);
            if (low..=high).contains(&value) {
                marks.push(GridMark {
                    value,
                    step_size: (next / step).log10(),
                });
            }
        }
    }
    marks
}

fn axis_number(value: f64) -> String {
    if value >= 10.0 {
        number::grouped(value.round() as u64)
    } else {
        let text = format!("{value:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

fn plot(ui: &mut Ui, size: Vec2, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let (x, y) = extent(state);
    let x_label = match state.view.axis {
        PlotAxis::Size => "stored size, KB (log)",
        PlotAxis::Macs => "MACs a sample, million (log)",
    };
    let y_label = format!("top-1 on {}, %", split_label(state.view.split));
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
    let name = format!(
        "Trade-off plot, {} points on {}",
        state.shown_points().count(),
        split_label(state.view.split)
    );
    response
        .response
        .widget_info(|| WidgetInfo::labeled(Role::Image, true, &name));
    if response.response.clicked() && state.view.selected_point.is_some() {
        out.push(Command::SelectPoint(None));
    }
    overlay(ui, &response.transform, state, out);
}

/// Everything inside the axes, drawn by hand over the grid.
fn overlay(ui: &mut Ui, transform: &PlotTransform, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let frame = *transform.frame();
    if frame.width() < 40.0 || frame.height() < 40.0 {
        return;
    }
    let painter = ui.painter_at(frame);
    let at =
        |x: f64, y: f64| transform.position_from_point(&PlotPoint::new(x.max(1e-6).log10(), y));
    let position = |point: &NamedPoint| state.plot_position(point).map(|(x, y)| at(x, y));
    let mut labels = Labels::new(frame);

    goal(&painter, frame, state, &at);
    let front: Vec<Pos2> = state
        .front()
        .iter()
        .filter_map(|id| position(state.mirror.point(*id)?))
        .collect();
    for leg in front.windows(2) {
        // Labels keep off the line as well.
        let steps = (leg[0].distance(leg[1]) / 10.0).ceil().max(1.0);
        for i in 0..steps as usize {
            let on_line = leg[0].lerp(leg[1], i as f32 / steps);
            labels.block(Rect::from_center_size(on_line, Vec2::splat(2.0)));
        }
    }
    painter.add(Shape::line(front, Stroke::new(1.0, t.muted)));

    let on_front: BTreeSet<_> = state.front().iter().collect();
    let plan = state.plan_point(state.view.split).map(|p| p.id);
    let count = state.shown_points().count();
    let mut taken = BTreeSet::new();
    for point in state.shown_points() {
        let Some(place) = position(point).filter(|p| frame.expand(8.0).contains(*p)) else {
            continue;
        };
        let is_plan = plan == Some(point.id);
        let best = on_front.contains(&point.id);
        let selected = state.view.selected_point == Some(point.id);
        let cell = ((place.x / 3.0) as i32, (place.y / 3.0) as i32);
        if count > MANY && !is_plan && !best && !selected && !taken.insert(cell) {
            continue;
        }
        let colour = match (is_plan, best) {
            (true, _) => t.accent,
            (_, true) => t.measured,
            _ => theme::mix(t.panel, t.measured, 0.55),
        };
        if count <= MANY || is_plan || selected {
            let ci = point.point.metrics.top1.ci;
            let (low, high) = (at(1.0, ci[0] * 100.0).y, at(1.0, ci[1] * 100.0).y);
            painter.vline(place.x, high..=low, Stroke::new(1.0, colour));
            if count <= 60 {
                labels.block(Rect::from_min_max(
                    pos2(place.x - 1.0, high),
                    pos2(place.x + 1.0, low),
                ));
            }
        }
        let radius = if is_plan { 5.5 } else { 4.0 };
        painter.circle_filled(place, radius, colour);
        if point.is_distilled() {
            painter.circle_stroke(place, radius + 2.5, Stroke::new(1.0, colour));
        }
        if selected {
            painter.circle_stroke(place, radius + 4.5, Stroke::new(1.5, t.text));
        }
        labels.block(Rect::from_center_size(
            place,
            Vec2::splat(2.0 * radius + 4.0),
        ));
        if count <= MANY {
            let touch = Rect::from_center_size(place, Vec2::splat(16.0)).intersect(frame);
            let response = ui.interact(touch, Id::unique(("point", point.id)), Sense::click());
            response.widget_info(|| {
                WidgetInfo::selected(
                    Role::Button,
                    true,
                    selected,
                    format!("Point {} on {}", point.name, split_label(point.split())),
                )
            });
            if response.hovered() || response.has_focus() {
                painter.circle_stroke(place, radius + 2.0, Stroke::new(1.0, t.text));
            }
            if response.clicked() {
                out.push(Command::SelectPoint(Some(point.id)));
            }
            response.on_hover_text(words::point_hover(point));
        }
    }
    predicted(&painter, frame, state, &at, &mut labels);
    name_points(&painter, state, plan, &position, &mut labels);
    key(&painter, frame, &labels, state);
    if count > MANY {
        nearest(ui, frame, state, &position, out);
    }
}

/// With many points the pointer finds the nearest one.
fn nearest(
    ui: &mut Ui,
    frame: Rect,
    state: &State,
    position: &dyn Fn(&NamedPoint) -> Option<Pos2>,
    out: &mut Commands,
) {
    let Some(pointer) = ui
        .input(|i| i.pointer.hover_pos())
        .filter(|p| frame.contains(*p))
    else {
        return;
    };
    let near = state
        .shown_points()
        .filter_map(|point| Some((position(point)?.distance(pointer), point)))
        .filter(|(distance, _)| *distance < 10.0)
        .min_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((_, point)) = near {
        let rect = Rect::from_center_size(pointer, Vec2::splat(8.0));
        let response = ui.interact(rect, Id::unique("nearest-point"), Sense::CLICK);
        response.widget_info(|| {
            WidgetInfo::labeled(Role::Button, true, format!("Point {}", point.name))
        });
        if response.clicked() {
            out.push(Command::SelectPoint(Some(point.id)));
        }
        response.on_hover_text(words::point_hover(point));
    }
}

fn goal(painter: &Painter, frame: Rect, state: &State, at: &dyn Fn(f64, f64) -> Pos2) {
    let t = theme::tokens(painter.ctx().theme() == egui::Theme::Dark);
    let (size, floor) = state.goal_region();
    let size = size.filter(|_| state.view.axis == PlotAxis::Size);
    if size.is_none() && floor.is_none() {
        return;
    }
    let right = size.map_or(frame.right() + 2.0, |kb| at(kb, 0.0).x);
    let bottom = floor.map_or(frame.bottom() + 2.0, |top1| at(1.0, top1).y);
    let region = Rect::from_min_max(frame.min - vec2(2.0, 2.0), pos2(right, bottom));
    if !region.is_positive() {
        return;
    }
    painter.rect_filled(region, 0.0, t.pass.gamma_multiply(0.10));
    let stroke = Stroke::new(1.0, t.pass);
    for line in [
        [region.right_top(), region.right_bottom()],
        [region.left_bottom(), region.right_bottom()],
    ] {
        painter.extend(Shape::dashed_line(&line, stroke, 3.0, 3.0));
    }
    widgets::draw(
        painter,
        frame.min + vec2(8.0, 6.0),
        Align2::LEFT_TOP,
        "goal",
        theme::mono_small(),
        t.pass,
    );
}

fn predicted(
    painter: &Painter,
    frame: Rect,
    state: &State,
    at: &dyn Fn(f64, f64) -> Pos2,
    labels: &mut Labels,
) {
    let t = theme::tokens(painter.ctx().theme() == egui::Theme::Dark);
    let Some(predicted) = state.predicted_point() else {
        return;
    };
    let stroke = Stroke::new(1.2, t.accent);
    match predicted.top1 {
        Some(top1) => {
            let place = at(predicted.x, top1);
            let inside = pos2(
                place.x.clamp(frame.left() + 6.0, frame.right() - 6.0),
                place.y.clamp(frame.top() + 6.0, frame.bottom() - 6.0),
            );
            widgets::icons::paint(
                painter,
                widgets::icons::Icon::Diamond,
                inside,
                11.0,
                t.accent,
            );
            labels.block(Rect::from_center_size(inside, Vec2::splat(14.0)));
            // Where the plan was measured too, the two belong together.
            if let Some((x, y)) = state
                .plan_point(state.view.split)
                .and_then(|p| state.plot_position(p))
            {
                painter.extend(Shape::dashed_line(
                    &[inside, at(x, y)],
                    Stroke::new(1.0, t.accent),
                    2.0,
                    3.0,
                ));
            }
            let about = if predicted.approximate > 0 { " ~" } else { " " };
            let text = format!("predicted{about}{top1:.2}");
            labels.put(painter, inside, &text, t.accent_text, true);
        }
        None => {
            let x = at(predicted.x, 0.0).x;
            let line = [pos2(x, frame.top() + 22.0), pos2(x, frame.bottom())];
            painter.extend(Shape::dashed_line(&line, stroke, 3.0, 4.0));
            labels.put(
                painter,
                pos2(x, frame.bottom() - 18.0),
                "predicted size",
                t.accent_text,
                true,
            );
        }
    }
}

/// Names where there is room: the plan first, then the selected point, the original, whole-model precisions, the front.
fn name_points(
    painter: &Painter,
    state: &State,
    plan: Option<crate::state::PointId>,
    position: &dyn Fn(&NamedPoint) -> Option<Pos2>,
    labels: &mut Labels,
) {
    let t = theme::tokens(painter.ctx().theme() == egui::Theme::Dark);
    let rank = |point: &NamedPoint| {
        if plan == Some(point.id) {
            0
        } else if state.view.selected_point == Some(point.id) {
            1
        } else if point.is_baseline() {
            2
        } else if !point.name.contains(' ') {
            3
        } else {
            4
        }
    };
    let mut points: Vec<&NamedPoint> = if state.shown_points().count() > MANY {
        state.shown_points().filter(|p| rank(p) < 3).collect()
    } else {
        state.shown_points().collect()
    };
    points.sort_by_key(|p| (rank(p), std::cmp::Reverse(p.id)));
    for point in points.into_iter().take(24) {
        let Some(place) = position(point) else {
            continue;
        };
        match rank(point) {
            0 => {
                let text = format!(
                    "this plan {} measured, n {}",
                    words::top1(point),
                    number::grouped(point.point.metrics.top1.n)
                );
                labels.put(painter, place, &text, t.accent_text, true);
            }
            2 => {
                let text = format!("{} {:.2}", point.name, point.top1_percent());
                labels.put(painter, place, &text, t.muted, true);
            }
            _ => labels.put(painter, place, &point.name, t.muted, false),
        }
    }
}

/// What the marks mean, in the corner that is nearly always empty: large and bad.
fn key(painter: &Painter, frame: Rect, labels: &Labels, state: &State) {
    let t = theme::tokens(painter.ctx().theme() == egui::Theme::Dark);
    if frame.width() < 320.0 || state.points().is_empty() {
        return;
    }
    let entries = [
        ("measured", t.measured),
        ("predicted", t.accent),
        ("this plan", t.accent),
    ];
    let rows = entries.len() as f32;
    let rect = Rect::from_min_max(
        frame.max - vec2(96.0, rows * 17.0 + 6.0),
        frame.max - vec2(4.0, 4.0),
    );
    if labels.taken.iter().any(|r| r.intersects(rect)) {
        return;
    }
    for (i, (text, colour)) in entries.iter().enumerate() {
        let y = rect.top() + 17.0 * i as f32 + 8.0;
        let mark = pos2(rect.left() + 8.0, y);
        if i == 1 {
            widgets::icons::paint(painter, widgets::icons::Icon::Diamond, mark, 9.0, *colour);
        } else {
            painter.circle_filled(mark, 3.5, *colour);
        }
        widgets::draw(
            painter,
            pos2(rect.left() + 20.0, y),
            Align2::LEFT_CENTER,
            *text,
            theme::mono_small(),
            t.muted,
        );
    }
}

/// Labels that do not cover points or each other.
struct Labels {
    frame: Rect,
    taken: Vec<Rect>,
}

impl Labels {
    fn new(frame: Rect) -> Self {
        Self {
            frame,
            taken: Vec::new(),
        }
    }

    fn block(&mut self, rect: Rect) {
        self.taken.push(rect);
    }

    /// Writes `text` beside `place` where it is free; `must`: above it even so.
    fn put(
        &mut self,
        painter: &Painter,
        place: Pos2,
        text: &str,
        colour: egui::Color32,
        must: bool,
    ) {
        if !self.frame.contains(place) {
            return;
        }
        let font: FontId = theme::mono_small();
        let galley = painter.layout_no_wrap(text.to_owned(), font, colour);
        let size = galley.size();
        let spots = [
            (Align2::LEFT_BOTTOM, vec2(8.0, -4.0)),
            (Align2::LEFT_TOP, vec2(8.0, 4.0)),
            (Align2::RIGHT_BOTTOM, vec2(-8.0, -4.0)),
            (Align2::RIGHT_TOP, vec2(-8.0, 4.0)),
            (Align2::LEFT_BOTTOM, vec2(8.0, -20.0)),
            (Align2::LEFT_TOP, vec2(8.0, 20.0)),
            (Align2::RIGHT_BOTTOM, vec2(-8.0, -20.0)),
            (Align2::RIGHT_TOP, vec2(-8.0, 20.0)),
            (Align2::LEFT_BOTTOM, vec2(8.0, -36.0)),
            (Align2::LEFT_TOP, vec2(8.0, 36.0)),
            (Align2::CENTER_BOTTOM, vec2(0.0, -9.0)),
            (Align2::CENTER_TOP, vec2(0.0, 9.0)),
        ];
        let inner = self.frame.shrink(2.0);
        let candidates = spots.map(|(anchor, offset)| anchor.anchor_size(place + offset, size));
        let free = candidates.iter().find(|r| {
            inner.contains_rect(**r) && !self.taken.iter().any(|other| other.intersects(**r))
        });
        let rect = match free {
            Some(rect) => *rect,
            None if must => {
                let covered = |r: &Rect| self.taken.iter().filter(|t| t.intersects(*r)).count();
                let best = candidates
                    .iter()
                    .filter(|r| inner.contains_rect(**r))
                    .min_by_key(|r| covered(r));
                match best {
                    Some(rect) => *rect,
                    None => return,
                }
            }
            None => return,
        };
        painter.galley(rect.min, galley, colour);
        self.taken.push(rect.expand2(vec2(8.0, 1.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_marks_lie_in_bounds_and_grow() {
        for bounds in [(1.7, 3.1), (2.0, 2.3), (0.0, 6.0), (-1.0, 0.4)] {
            let marks = decades(&GridInput {
                bounds,
                base_step_size: 0.01,
            });
            assert!(marks.len() >= 2, "{bounds:?}: {}", marks.len());
            assert!(marks.windows(2).all(|m| m[0].value < m[1].value));
            assert!(
                marks
                    .iter()
                    .all(|m| m.value >= bounds.0 && m.value <= bounds.1)
            );
        }
    }

    #[test]
    fn even_marks_are_round_and_inside() {
        let input = GridInput {
            bounds: (89.9, 94.6),
            base_step_size: 0.1,
        };
        let marks = even_marks(&input, 8.0);
        let labels: Vec<String> = marks.iter().map(|m| even_label(*m)).collect();
        assert_eq!(labels, ["90", "91", "92", "93", "94"]);
        let fine = even_marks(
            &GridInput {
                bounds: (0.0, 0.61),
                base_step_size: 0.1,
            },
            4.0,
        );
        assert_eq!(even_label(fine[1]), "0.2");
    }

    #[test]
    fn axis_numbers_are_short() {
        assert_eq!(axis_number(1000.0), "1,000");
        assert_eq!(axis_number(0.5), "0.5");
        assert_eq!(axis_number(2.0), "2");
    }
}
