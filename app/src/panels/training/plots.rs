//! The plots of training: a run's numbers over its epochs, over those of other runs.

use crate::{
    panels::trade_off::{even_label, even_marks},
    state::{Curves, NamedPoint, State},
    theme,
    widgets::{self, number},
};
use egui::{Align2, RichText, Shape, Stroke, Ui, Vec2, pos2, vec2};
use egui_plot::{AxisHints, Line, Plot, PlotPoint, PlotPoints};
use limbeck_engine::{data::SplitName, eval::Estimate, train::TrainPoint};

/// Room left of the plots, whatever their numbers, so that their frames stand under each other.
const EDGE: f32 = 60.0;

fn axes(ui: &Ui, x: &str, y: &str) -> (AxisHints<'static>, AxisHints<'static>) {
    let t = theme::of(ui);
    let caption = |text: &str| RichText::new(text).font(theme::mono_small()).color(t.muted);
    let dress = |hints: AxisHints<'static>| {
        hints
            .tick_label_color(t.muted)
            .tick_label_font(theme::mono_small())
            .formatter(|mark, _| match mark.step_size < 6e-3 {
                true => short(mark.value),
                false => even_label(mark),
            })
    };
    let hints_x = AxisHints::new_x();
    let hints_x = if x.is_empty() {
        hints_x
    } else {
        hints_x.label(caption(x))
    };
    (
        dress(hints_x),
        dress(AxisHints::new_y().label(caption(y)).min_thickness(EDGE)),
    )
}

/// A small number, such as a rate: `5e-4`.
fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    format!("{value:.1e}").replace(".0e", "e")
}

fn frame<'a>(ui: &Ui, id: &'static str, size: Vec2, x: &str, y: &str, epochs: f64) -> Plot<'a> {
    let t = theme::of(ui);
    let (hints_x, hints_y) = axes(ui, x, y);
    Plot::new(id)
        .width(size.x)
        .height(size.y)
        .show_background(false)
        .show_crosshair(false)
        .grid_color(theme::mix(t.panel, t.line, 0.9))
        .grid_fade(0.0)
        .custom_x_axes(vec![hints_x])
        .custom_y_axes(vec![hints_y])
        .include_x(0.0)
        .include_x(epochs * 1.01)
        .y_grid_spacer(move |input| even_marks(&input, (size.y / 30.0).max(3.0)))
        .x_grid_spacer(move |input| even_marks(&input, (size.x / 60.0).min(epochs.max(2.0) as f32)))
        .set_margin_fraction(vec2(0.0, 0.08))
        .allow_scroll(false)
        .allow_boxed_zoom(false)
}

/// Epochs the whole run has, so that the curve grows into a still frame.
pub(super) fn epochs(curves: &Curves) -> f64 {
    curves.points.last().map_or(1.0, |p| {
        // A whole number but for rounding.
        (p.epoch * p.steps as f64 / p.step.max(1) as f64)
            .round()
            .max(1.0)
    })
}

fn finite<T>(points: &[T], place: impl Fn(&T) -> [f64; 2]) -> impl Iterator<Item = [f64; 2]> {
    let places = points.iter().map(place);
    places.filter(|place| place[1].is_finite())
}

/// Places of finite values in order; of many, the smallest and largest of each of about `width` bins: what a line of that many points can show.
fn binned<T>(points: &[T], width: f32, place: impl Fn(&T) -> [f64; 2]) -> Vec<[f64; 2]> {
    let bins = width.max(1.0) as usize;
    if points.len() <= 2 * bins {
        return finite(points, &place).collect();
    }
    let mut line = Vec::with_capacity(2 * bins);
    for bin in points.chunks(points.len().div_ceil(bins)) {
        let Some(first) = finite(bin, &place).next() else {
            continue;
        };
        let [low, high] = finite(bin, &place).fold([first, first], |[low, high], p| {
            [
                if p[1] < low[1] { p } else { low },
                if p[1] >= high[1] { p } else { high },
            ]
        });
        line.extend(if low[0] < high[0] {
            [low, high]
        } else {
            [high, low]
        });
    }
    line
}

/// The points between one going back and the next.
fn attempts(points: &[TrainPoint]) -> impl Iterator<Item = &[TrainPoint]> {
    points.chunk_by(|a, b| a.rollbacks == b.rollbacks)
}

/// Runs in one plot.
pub(super) struct Runs<'a> {
    pub chosen: &'a Curves,
    /// Oldest first, the chosen one not among them.
    pub others: Vec<&'a Curves>,
    /// The one of them that is pointed at.
    pub lit: Option<&'a Curves>,
}

impl Runs<'_> {
    /// Epochs of the longest.
    fn epochs(&self) -> f64 {
        let others = self.others.iter().map(|run| epochs(run));
        others.fold(epochs(self.chosen), f64::max)
    }

    /// Each with its colour and width, the chosen one last, so on top.
    fn drawn(&self, t: &theme::Tokens) -> impl Iterator<Item = (&Curves, egui::Color32, f32)> {
        let pale = theme::mix(t.panel, t.muted, 0.6);
        let lit = self.lit.map(|run| run.job);
        let others = self
            .others
            .iter()
            .map(move |run| match lit == Some(run.job) {
                true => (*run, t.text, 1.5),
                false => (*run, pale, 1.0),
            });
        others.chain(std::iter::once((self.chosen, t.measured, 1.5)))
    }
}

/// A number of each point over its epoch, what was gone back from paler than what counts.
fn lines(
    ui: &mut Ui,
    plot: Plot<'_>,
    width: f32,
    runs: &Runs<'_>,
    name: &str,
    value: impl Fn(&TrainPoint) -> f64,
) {
    let t = theme::of(ui);
    let response = plot.include_y(0.0).show(ui, |plot| {
        for (run, colour, line) in runs.drawn(t) {
            let attempts: Vec<&[TrainPoint]> = attempts(&run.points).collect();
            let last = attempts.len().saturating_sub(1);
            for (index, points) in attempts.into_iter().enumerate() {
                let points = binned(points, width, |p| [p.epoch, value(p)]);
                let colour = if index == last {
                    colour
                } else {
                    theme::mix(t.panel, colour, 0.5)
                };
                plot.line(
                    Line::new(name, PlotPoints::from(points))
                        .color(colour)
                        .width(line),
                );
            }
        }
    });
    let label = format!("{name} curve");
    response
        .response
        .widget_info(|| egui::WidgetInfo::labeled(egui::Role::Image, true, &label));
}

pub(super) fn loss(ui: &mut Ui, size: Vec2, runs: &Runs<'_>) {
    let plot = frame(ui, "loss", size, "", "loss", runs.epochs());
    lines(ui, plot, size.x, runs, "Loss", |p| p.loss);
}

pub(super) fn rate(ui: &mut Ui, size: Vec2, runs: &Runs<'_>) {
    let plot = frame(ui, "rate", size, "", "rate", runs.epochs());
    lines(ui, plot, size.x, runs, "Rate", |p| p.rate);
}

pub(super) fn accuracy(ui: &mut Ui, size: Vec2, state: &State, runs: &Runs<'_>) {
    let t = theme::of(ui);
    let measured = runs.chosen.judged();
    // The original on the very samples that the epochs are judged on, or none.
    let n = measured.last().map_or(0, |(_, e)| e.n);
    let original = state
        .original(SplitName::Search, n)
        .map(NamedPoint::top1_percent);
    let mut plot = frame(
        ui,
        "accuracy",
        size,
        "epoch",
        &format!("{} on search, %", state.judged_by(SplitName::Search)),
        runs.epochs(),
    );
    let others: Vec<&[(f64, Estimate)]> = runs.others.iter().map(|run| run.judged()).collect();
    for (_, e) in others.iter().copied().flatten() {
        plot = plot.include_y(e.value * 100.0);
    }
    for (_, e) in measured {
        plot = plot.include_y(e.ci[0] * 100.0).include_y(e.ci[1] * 100.0);
    }
    if let Some(original) = original {
        plot = plot.include_y(original);
    } else if measured.is_empty() {
        plot = plot.include_y(0.0).include_y(100.0);
    }
    let response = plot.label_formatter(|_| None).show(ui, |_| {});
    response
        .response
        .widget_info(|| egui::WidgetInfo::labeled(egui::Role::Image, true, "Accuracy curve"));
    let area = *response.transform.frame();
    let painter = ui.painter_at(area);
    let at = |x: f64, y: f64| {
        response
            .transform
            .position_from_point(&PlotPoint::new(x, y))
    };
    let mut original_label = None;
    if let Some(original) = original {
        let y = at(0.0, original).y;
        let line = [pos2(area.left(), y), pos2(area.right(), y)];
        painter.extend(Shape::dashed_line(
            &line,
            Stroke::new(1.0, t.faint),
            4.0,
            4.0,
        ));
        // Over the line, at the plot's upper edge under it.
        let (anchor, y) = if y - 18.0 > area.top() {
            (Align2::LEFT_BOTTOM, y - 2.0)
        } else {
            (Align2::LEFT_TOP, y + 2.0)
        };
        original_label = Some((
            anchor,
            pos2(area.left() + 6.0, y),
            format!("original {original:.2}, n {}", number::grouped(n)),
        ));
    }
    let on_plot = |judged: &[(f64, Estimate)]| -> Vec<egui::Pos2> {
        let each = judged.iter();
        each.map(|(x, e)| at(*x, e.value * 100.0)).collect()
    };
    for ((_, colour, width), judged) in runs.drawn(t).zip(&others) {
        let places = on_plot(judged);
        for place in &places {
            painter.circle_filled(*place, 2.0, colour);
        }
        painter.add(Shape::line(places, Stroke::new(width, colour)));
    }
    let places = on_plot(measured);
    painter.add(Shape::line(places.clone(), Stroke::new(1.5, t.measured)));
    for ((_, e), place) in measured.iter().zip(&places) {
        let (low, high) = (at(0.0, e.ci[0] * 100.0).y, at(0.0, e.ci[1] * 100.0).y);
        painter.vline(place.x, high..=low, Stroke::new(1.0, t.measured));
        painter.circle_filled(*place, 3.5, t.measured);
    }
    if let (Some((_, e)), Some(place)) = (measured.last(), places.last()) {
        let text = format!(
            "{}, n {}",
            number::points_with_interval(e.value, e.ci),
            number::grouped(e.n)
        );
        let width = widgets::text_width(&painter, &text, theme::mono_small());
        // Beside the newest point; at the end of the run to its left, clear of the line.
        let (anchor, at) = if place.x + 12.0 + width < area.right() {
            (Align2::LEFT_CENTER, *place + vec2(8.0, 0.0))
        } else {
            (Align2::RIGHT_TOP, *place + vec2(-8.0, 8.0))
        };
        on_ground(&painter, at, anchor, text, t.text, t);
    }
    if let Some((anchor, at, text)) = original_label {
        on_ground(&painter, at, anchor, text, t.muted, t);
    }
}

/// A label that can be read over curves and whiskers.
fn on_ground(
    painter: &egui::Painter,
    at: egui::Pos2,
    anchor: Align2,
    text: String,
    colour: egui::Color32,
    t: &theme::Tokens,
) {
    let galley = painter.layout_no_wrap(text, theme::mono_small(), colour);
    let rect = anchor.anchor_size(at, galley.size());
    painter.rect_filled(
        rect.expand2(vec2(3.0, 0.0)),
        3.0,
        t.panel.gamma_multiply(0.9),
    );
    painter.galley(rect.min, galley, colour);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epochs_of_a_run_are_a_whole_number_from_its_first_point_on() {
        let point = |step: u64, steps: u64, epochs: f64| TrainPoint {
            step,
            steps,
            epoch: step as f64 / (steps as f64 / epochs),
            loss: 0.1,
            rate: 1e-3,
            samples_per_second: 80.0,
            accuracy: None,
            rollbacks: 0,
        };
        for step in 1..=188 {
            let mut curves = Curves::new(limbeck_engine::jobs::JobId(1), String::new());
            curves.push(point(step, 188, 4.0));
            assert_eq!(epochs(&curves), 4.0, "{step}");
        }
    }

    #[test]
    fn a_training_that_went_back_is_drawn_in_pieces() {
        let point = |step: u64, rollbacks: u32| TrainPoint {
            step,
            steps: 10,
            epoch: step as f64,
            loss: 0.1,
            rate: 1e-3,
            samples_per_second: 80.0,
            accuracy: None,
            rollbacks,
        };
        let points = [
            point(1, 0),
            point(2, 0),
            point(1, 1),
            point(2, 1),
            point(3, 1),
        ];
        let lengths: Vec<usize> = attempts(&points).map(<[_]>::len).collect();
        assert_eq!(lengths, [2, 3]);
        assert_eq!(attempts(&[]).count(), 0);
    }

    #[test]
    fn small_numbers_are_short() {
        assert_eq!(short(0.0), "0");
        assert_eq!(short(5e-4), "5e-4");
        assert_eq!(short(0.000_300_000_000_000_000_03), "3e-4");
        assert_eq!(short(1.5e-3), "1.5e-3");
    }

    #[test]
    fn binning_keeps_peaks_and_order() {
        let mut points: Vec<[f64; 2]> = (0..10_000)
            .map(|i| [f64::from(i), (f64::from(i) / 50.0).sin()])
            .collect();
        points[5_003][1] = 40.0;
        let thin = binned(&points, 300.0, |p| *p);
        assert!(thin.len() <= 600, "{}", thin.len());
        assert!(thin.iter().any(|p| p[1] == 40.0));
        assert!(thin.windows(2).all(|w| w[0][0] <= w[1][0]));
        assert_eq!(binned(&points[..20], 300.0, |p| *p), points[..20]);
    }
}
