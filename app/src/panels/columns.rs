//! The columns of the layers table: where each stands at a given width, and their heads.

use super::{Commands, words};
use crate::{
    commands::Command,
    state::{Sort, SortKey, State},
    theme, widgets,
};
use egui::{Align, Id, Rect, Role, Sense, Stroke, Ui, WidgetInfo, pos2};
use limbeck_engine::sensitivity::Candidate;

pub(super) const HEADER: f32 = 29.0;
/// Letters of a name that a column with no room to spare holds.
pub(super) const LONG_NAME: usize = 20;

/// Left and right edge of every column, for one width of the table.
pub(super) struct Columns {
    pub(super) pin: (f32, f32),
    pub(super) name: (f32, f32),
    pub(super) op: Option<(f32, f32)>,
    pub(super) shape: Option<(f32, f32)>,
    pub(super) params: (f32, f32),
    pub(super) macs: (f32, f32),
    pub(super) cells: [(f32, f32); 6],
    pub(super) precision: (f32, f32),
    /// What layers really compute in at the plan's target.
    pub(super) runs: Option<(f32, f32)>,
    pub(super) prune: (f32, f32),
}

impl Columns {
    /// Where there is little room, shape and operator go first (both stand in the inspector), earlier for the sake of long
    /// names; then cells and sliders narrow.
    pub(super) fn new(left: f32, width: f32, long_names: bool, runs: bool) -> Self {
        let runs = if runs && width >= 620.0 { 42.0 } else { 0.0 };
        let width_for_shape = if long_names { 900.0 } else { 700.0 + runs };
        let op = if width >= 800.0 { 56.0 } else { 0.0 };
        let shape = if width >= width_for_shape { 88.0 } else { 0.0 };
        let fixed = runs + 26.0 + op + shape + 60.0 + 58.0 + 14.0 + 82.0 + 16.0 + 14.0 + 14.0;
        // Names, cells and sliders share what is left.
        let room = (width - fixed).max(0.0);
        let cell = ((room - 204.0) / 6.0).clamp(25.0, 37.0);
        let spare = (room - 6.0 * cell - 204.0).max(0.0);
        let prune = 104.0 + (spare * 0.3).min(48.0);
        let name = (room - 6.0 * cell - prune).max(60.0);
        let mut x = left;
        let mut take = |w: f32| {
            let from = x;
            x += w;
            (from, x)
        };
        let pin = take(26.0);
        let name = take(name);
        let op = (op > 0.0).then(|| take(op));
        let shape = (shape > 0.0).then(|| take(shape));
        let params = take(60.0);
        let macs = take(58.0);
        take(14.0);
        let cells = std::array::from_fn(|_| take(cell));
        take(16.0);
        let precision = take(82.0);
        let runs = (runs > 0.0).then(|| {
            let (from, to) = take(runs);
            (from + 8.0, to)
        });
        take(14.0);
        let prune = take(prune);
        Self {
            pin,
            name,
            op,
            shape,
            params,
            macs,
            cells,
            precision,
            runs,
            prune,
        }
    }
}

pub(super) fn span(column: (f32, f32), y: (f32, f32)) -> Rect {
    Rect::from_min_max(pos2(column.0, y.0), pos2(column.1, y.1))
}

/// One head: where it stands, its text, what it sorts by, and what hovering says.
struct Head {
    column: (f32, f32),
    text: &'static str,
    key: SortKey,
    align: Align,
    why: &'static str,
}

fn heads(columns: &Columns, channels: bool) -> Vec<Head> {
    let head = |column, text, key, align, why| Head {
        column,
        text,
        key,
        align,
        why,
    };
    let (left, right) = (Align::Min, Align::Max);
    let mut heads = vec![
        head(
            columns.name,
            "Layer",
            SortKey::Graph,
            left,
            "Name of the layer; its own order is the model's",
        ),
        head(
            columns.params,
            "Params",
            SortKey::Params,
            right,
            "Elements of weight and bias; the bar is the share of the largest layer",
        ),
        head(
            columns.macs,
            "MACs, M",
            SortKey::Macs,
            right,
            "Million multiply–accumulates a sample; the bar is the share of the largest layer",
        ),
    ];
    if let Some(op) = columns.op {
        heads.push(head(op, "Op", SortKey::Op, left, "Operator"));
    }
    if let Some(shape) = columns.shape {
        heads.push(head(
            shape,
            "Shape",
            SortKey::Shape,
            left,
            "Shape of the weight",
        ));
    }
    for (candidate, column) in Candidate::ALL.into_iter().zip(columns.cells) {
        let why = match candidate {
            Candidate::Fp16 => "Weights as 16-bit floats",
            Candidate::Int8 => "8-bit weights and activations",
            Candidate::Int4 => "4-bit weights, 8-bit activations",
            Candidate::P25 => "25 % of the weights pruned",
            Candidate::P50 => "50 % of the weights pruned",
            Candidate::P75 => "75 % of the weights pruned",
        };
        let text = words::candidate(candidate);
        heads.push(head(column, text, SortKey::Cell(candidate), left, why));
    }
    heads.push(head(
        columns.precision,
        "Precision",
        SortKey::Precision,
        left,
        "Bits of the weights in the plan",
    ));
    if let Some(runs) = columns.runs {
        heads.push(head(
            runs,
            "Runs",
            SortKey::Runs,
            left,
            "What the layer is computed in at the plan's target, foreseen from the graph: what stays float although its weights are integers \
             comes first",
        ));
    }
    heads.push(head(
        columns.prune,
        if channels { "Channels" } else { "Prune" },
        SortKey::Ratio,
        left,
        if channels {
            "Share of output channels that are taken out; layers that are tied move together"
        } else {
            "Share of weights set to zero, smallest first; Plan… has whole channels instead"
        },
    ));
    heads
}

/// The row of heads; a click sorts.
pub(super) fn header(ui: &mut Ui, all: Rect, columns: &Columns, state: &State, out: &mut Commands) {
    let t = theme::of(ui);
    let y = (all.top(), all.top() + HEADER);
    for head in heads(columns, state.document.channels) {
        let Head {
            column,
            text,
            key,
            align,
            why,
        } = head;
        let rect = span(column, y);
        // The model's own order is no sorting.
        let sorted = state.view.sort.key == key && state.view.sort != Sort::default();
        let response = ui.interact(rect, Id::unique(("layers-header", text)), Sense::click());
        response.widget_info(|| {
            WidgetInfo::labeled(Role::ColumnHeader, true, format!("Sort by {text}"))
        });
        let colour = if sorted || response.hovered() {
            t.text
        } else {
            t.muted
        };
        let font = match key {
            // Narrow cells leave room for four small letters and a gap.
            SortKey::Cell(_) if column.1 - column.0 < 30.0 => theme::tiny(),
            SortKey::Cell(_) => theme::small(),
            _ => theme::sans(),
        };
        let inner = rect.with_max_x(rect.right() - if align == Align::Max { 2.0 } else { 0.0 });
        widgets::draw_elided(ui.painter(), inner, align, text, font.clone(), colour);
        if sorted {
            let width = widgets::text_width(ui.painter(), text, font);
            let x = match align {
                Align::Max => rect.right() - width - 10.0,
                _ => rect.left() + width + 7.0,
            };
            let icon = if state.view.sort.descending {
                widgets::icons::Icon::Down
            } else {
                widgets::icons::Icon::Up
            };
            widgets::icons::paint(
                ui.painter(),
                icon,
                pos2(x.min(rect.right() - 4.0), rect.center().y),
                8.0,
                t.accent,
            );
        }
        if response.clicked() {
            out.push(Command::SetSort(key));
        }
        response.on_hover_text(why);
    }
    ui.painter()
        .hline(all.x_range(), y.1 - 0.5, Stroke::new(1.0, t.line));
}
