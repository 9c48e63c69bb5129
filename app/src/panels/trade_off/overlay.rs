//! What stands inside the plot's axes: goal region, front, points with intervals, prediction, names.

use super::{epochs, labels::Labels};
use crate::{
    commands::{Command, split_label},
    panels::{Commands, words},
    state::{NamedPoint, PlotAxis, State},
    theme,
    widgets::{self, number},
};
use egui::{
    Align2, Color32, Id, Painter, Pos2, Rect, Role, Sense, Shape, Stroke, Ui, Vec2, WidgetInfo,
    epaint::CircleShape, pos2, vec2,
};
use egui_plot::{PlotPoint, PlotTransform};

/// From here on points are thinned to about one in three pixels and are found by the pointer only.
const MANY: usize = 300;

/// Everything inside the axes, drawn by hand over the grid.
pub(super) fn overlay(ui: &mut Ui, transform: &PlotTransform, state: &State, out: &mut Commands) {
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

    goal(&painter, frame, state, &at, &mut labels);
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

    epochs::draw(ui, &painter, frame, state, &at, &mut labels, out);
    let plan = shown_plan(state).map(|(p, _)| p.id);
    let hollow_plan = state.plan_point(state.view.split).is_none();
    let count = state.shown_count();
    let mut taken = Taken::new(frame);
    let near = frame.expand(8.0);
    let points = state.points();
    // All at once: each shape alone would lock the context.
    let mut shapes = Vec::new();
    let mut disputed = Vec::new();
    for mark in state.marks() {
        let [x, y] = mark.place;
        let place = transform.position_from_point(&PlotPoint::new(x, y));
        if !near.contains(place) {
            continue;
        }
        let is_plan = plan == Some(mark.id);
        let best = mark.front;
        let selected = state.view.selected_point == Some(mark.id);
        let thinned = count > MANY && !is_plan && !best && !selected && !mark.disputed;
        if thinned && !taken.insert(place) {
            continue;
        }
        let colour = match (is_plan, best) {
            (true, _) => t.accent,
            (_, true) => t.measured,
            _ => theme::mix(t.panel, t.measured, 0.55),
        };
        let radius = if is_plan { 5.5 } else { 4.0 };
        let circle = |r: f32, width: f32, colour: Color32| {
            Shape::circle_stroke(place, r, Stroke::new(width, colour))
        };
        let alone = count <= MANY || is_plan || selected || mark.disputed;
        let point = points.get(mark.index).filter(|_| alone);
        if let Some(point) = point {
            let ci = point.point.metrics.top1.ci;
            let (low, high) = (at(1.0, ci[0] * 100.0).y, at(1.0, ci[1] * 100.0).y);
            shapes.push(Shape::vline(place.x, high..=low, Stroke::new(1.0, colour)));
            if count <= 60 {
                labels.block(Rect::from_min_max(
                    pos2(place.x - 1.0, high),
                    pos2(place.x + 1.0, low),
                ));
            }
        }
        if mark.partial || (is_plan && hollow_plan) {
            // Hollow: not, or not all, of what was asked for.
            shapes.push(Shape::from(CircleShape {
                center: place,
                radius: radius - 0.75,
                fill: t.panel,
                stroke: Stroke::new(1.5, colour),
            }));
        } else {
            shapes.push(Shape::circle_filled(place, radius, colour));
        }
        if mark.distilled && !mark.partial {
            shapes.push(circle(radius + 2.5, 1.0, colour));
        }
        if selected {
            shapes.push(circle(radius + 4.5, 1.5, t.text));
        }
        labels.block(Rect::from_center_size(
            place,
            Vec2::splat(2.0 * radius + 4.0),
        ));
        let Some(point) = point else {
            continue;
        };
        if mark.disputed {
            disputed.push((place, point));
        }
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
                shapes.push(circle(radius + 2.0, 1.0, t.text));
            }
            if response.clicked() {
                out.push(Command::SelectPoint(Some(point.id)));
            }
            response.on_hover_text(words::point_hover(point));
        }
    }
    painter.extend(shapes);
    for (place, point) in disputed {
        disagreement(&painter, place, point, &at, &mut labels);
    }
    let predicted = predicted(&painter, frame, state, &at, &mut labels);
    name_points(&painter, state, predicted, &position, &mut labels);
    key(&painter, frame, &labels, state);
    if count > MANY {
        nearest(ui, transform, state, out);
    }
}

/// Where the runtime gave something else than was predicted: its accuracy as a cross, tied to the point.
fn disagreement(
    painter: &Painter,
    place: Pos2,
    point: &NamedPoint,
    at: &dyn Fn(f64, f64) -> Pos2,
    labels: &mut Labels,
) {
    let t = theme::tokens(painter.ctx().theme() == egui::Theme::Dark);
    let runs = point.point.confirmed.iter().flat_map(|pair| &pair.runs);
    for run in runs.filter(|run| !run.agrees()) {
        let cross = pos2(place.x, at(1.0, run.top1.value * 100.0).y);
        painter.extend(Shape::dashed_line(
            &[place, cross],
            Stroke::new(1.0, t.fail),
            2.0,
            3.0,
        ));
        widgets::icons::paint(painter, widgets::icons::Icon::Close, cross, 12.0, t.fail);
        let text = format!("runtime {:.2}", run.top1.value * 100.0);
        labels.block(Rect::from_center_size(cross, Vec2::splat(12.0)));
        labels.put(painter, cross, &text, t.fail, true);
    }
}

/// The point that stands for the plan on the shown split; true: as it was before its distillation.
fn shown_plan(state: &State) -> Option<(&NamedPoint, bool)> {
    let split = state.view.split;
    let own = state.plan_point(split).map(|p| (p, false));
    own.or_else(|| state.undistilled_point(split).map(|p| (p, true)))
}

/// Which squares of three pixels have a point already: of many in the same place one is drawn.
struct Taken {
    corner: Pos2,
    columns: usize,
    squares: Vec<bool>,
}

impl Taken {
    fn new(frame: Rect) -> Self {
        let room = frame.expand(9.0);
        let count = |length: f32| (length / 3.0).ceil().max(1.0) as usize;
        Self {
            corner: room.min,
            columns: count(room.width()),
            squares: vec![false; count(room.width()) * count(room.height())],
        }
    }

    /// False where there was one.
    fn insert(&mut self, place: Pos2) -> bool {
        let at = (place - self.corner) / 3.0;
        let square = at.y.max(0.0) as usize * self.columns + at.x.max(0.0) as usize;
        let free = self.squares.get_mut(square);
        free.is_some_and(|square| !std::mem::replace(square, true))
    }
}

/// With many points the pointer finds the nearest one.
fn nearest(ui: &mut Ui, transform: &PlotTransform, state: &State, out: &mut Commands) {
    let frame = *transform.frame();
    let Some(pointer) = ui
        .input(|i| i.pointer.hover_pos())
        .filter(|p| frame.contains(*p))
    else {
        return;
    };
    let near = state
        .marks()
        .iter()
        .map(|mark| {
            let [x, y] = mark.place;
            let place = transform.position_from_point(&PlotPoint::new(x, y));
            (place.distance_sq(pointer), mark.index)
        })
        .filter(|(distance, _)| *distance < 100.0)
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .and_then(|(_, index)| state.points().get(index));
    if let Some(point) = near {
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

fn goal(
    painter: &Painter,
    frame: Rect,
    state: &State,
    at: &dyn Fn(f64, f64) -> Pos2,
    labels: &mut Labels,
) {
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
        labels.line(Rect::from_two_pos(line[0], line[1]).expand(1.0));
    }
    let word = widgets::draw(
        painter,
        frame.min + vec2(8.0, 6.0),
        Align2::LEFT_TOP,
        "goal",
        theme::mono_small(),
        t.pass,
    );
    labels.block(word);
}

fn predicted(
    painter: &Painter,
    frame: Rect,
    state: &State,
    at: &dyn Fn(f64, f64) -> Pos2,
    labels: &mut Labels,
) -> Option<(Pos2, String)> {
    let t = theme::tokens(painter.ctx().theme() == egui::Theme::Dark);
    // An untouched plan predicts the original: nothing to say.
    let predicted = state.predicted_point().filter(|_| !state.plan_is_empty())?;
    let plan = shown_plan(state);
    let undistilled = if state.document.distil.is_some() {
        " before distilling"
    } else {
        ""
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
            if let Some((x, y)) = plan.and_then(|(p, _)| state.plot_position(p)) {
                painter.extend(Shape::dashed_line(
                    &[inside, at(x, y)],
                    Stroke::new(1.0, t.accent),
                    2.0,
                    3.0,
                ));
            }
            let about = if predicted.approximate > 0 { " ~" } else { " " };
            // The plan's own label says so already where it stands beside.
            let tail = if plan.is_some() { "" } else { undistilled };
            Some((inside, format!("predicted{about}{top1:.2}{tail}")))
        }
        // Its accuracy is not known; where the plan itself was measured, the line would say less than the point.
        None if plan.is_some() || state.shown_count() == 0 => None,
        None => {
            let x = at(predicted.x, 0.0).x;
            let line = [pos2(x, frame.top() + 22.0), pos2(x, frame.bottom())];
            painter.extend(Shape::dashed_line(&line, stroke, 3.0, 4.0));
            Some((
                pos2(x, frame.bottom() - 18.0),
                state.unpredicted().map_or_else(
                    || "predicted size".to_owned(),
                    |without| format!("predicted size {without}"),
                ),
            ))
        }
    }
}

/// Names where there is room: the plan first, then its prediction, the selected point, the original, whole-model precisions, the front.
fn name_points(
    painter: &Painter,
    state: &State,
    predicted: Option<(Pos2, String)>,
    position: &dyn Fn(&NamedPoint) -> Option<Pos2>,
    labels: &mut Labels,
) {
    let t = theme::tokens(painter.ctx().theme() == egui::Theme::Dark);
    let plan = shown_plan(state);
    let rank = |point: &NamedPoint| {
        if plan.is_some_and(|(p, _)| p.id == point.id) {
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
    let mut points: Vec<&NamedPoint> = if state.shown_count() > MANY {
        // Those of the lowest ranks, without asking every point.
        let mut few: Vec<&NamedPoint> = plan.map(|(p, _)| p).into_iter().collect();
        few.extend(state.selected_point());
        few.extend(state.baseline(state.view.split));
        few.sort_by_key(|p| p.id);
        few.dedup_by_key(|p| p.id);
        few.retain(|p| p.split() == state.view.split);
        few
    } else {
        state.shown_points().collect()
    };
    points.sort_by_key(|p| (rank(p), std::cmp::Reverse(p.id)));
    if let Some((point, before)) = plan
        && let Some(place) = position(point)
    {
        let what = if before {
            "before distilling"
        } else {
            "this plan"
        };
        let mut text = format!(
            "{what} {}, n {}",
            words::top1(point),
            number::grouped(point.samples())
        );
        if let Some(pair) = &point.point.confirmed
            && pair.agrees()
        {
            text += ", runtime agrees";
        }
        labels.put(painter, place, &text, t.accent_text, true);
    }
    if let Some((place, text)) = predicted {
        labels.put(painter, place, &text, t.accent_text, true);
    }
    for point in points.into_iter().take(24) {
        let Some(place) = position(point) else {
            continue;
        };
        match rank(point) {
            0 => {}
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
    let mut entries = vec![
        ("measured", t.measured),
        ("predicted", t.accent),
        ("this plan", t.accent),
    ];
    if !epochs::placed(state).is_empty() {
        entries.push(("an epoch", t.measured));
    }
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
        match i {
            1 => widgets::icons::paint(painter, widgets::icons::Icon::Diamond, mark, 9.0, *colour),
            3 => epochs::ring(painter, mark, t),
            _ => {
                painter.circle_filled(mark, 3.5, *colour);
            }
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
