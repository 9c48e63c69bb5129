//! The layers table's rows: which are shown, and in which order.

use super::{ColourBy, Heat, HeatKind, RunsIn, Sort, SortKey, State, heat::heat};
use limbeck_engine::{
    compress::LayerSetting,
    graph::LayerId,
    search::LayerFacts,
    sensitivity::{Candidate, Tier},
};

/// What the rows follow from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RowsKey {
    filter: String,
    sort: Sort,
    /// Candidate columns sort by what colours them.
    colour_by: Option<ColourBy>,
    /// Only where the sort looks at them.
    cells: u64,
    plan: u64,
}

impl RowsKey {
    pub fn of(state: &State) -> Self {
        let (view, mirror) = (&state.view, &state.mirror);
        let by = view.sort.key;
        Self {
            filter: view.filter.clone(),
            sort: view.sort,
            colour_by: matches!(by, SortKey::Cell(_)).then_some(view.colour_by),
            cells: match by {
                SortKey::Cell(_) => mirror.cells_version,
                SortKey::Runs => mirror.foresight_version,
                _ => 0,
            },
            plan: match by {
                SortKey::Precision | SortKey::Runs | SortKey::Ratio => {
                    state.derived.plan_generation()
                }
                _ => 0,
            },
        }
    }
}

/// What the filter looks for its words in: name, operator and shape in small letters.
pub(super) fn haystack(layer: &LayerFacts) -> String {
    let shape: Vec<String> = layer.weight_shape.iter().map(usize::to_string).collect();
    format!("{} {} {}", layer.id.0, layer.op, shape.join("×")).to_lowercase()
}

/// Indices of the rows that the filter leaves, sorted.
pub(super) fn rows(state: &State, key: &RowsKey) -> Vec<usize> {
    let layers = state.layers();
    let filter = key.filter.to_lowercase();
    let words: Vec<&str> = filter.split_whitespace().collect();
    let mut rows: Vec<usize> = (0..layers.len())
        .filter(|row| {
            let text = &state.derived.haystack[*row];
            words.iter().all(|word| text.contains(word))
        })
        .collect();
    match key.sort.key {
        SortKey::Graph => {}
        SortKey::Name => rows.sort_by_key(|row| state.derived.by_name[*row]),
        SortKey::Op => rows.sort_by(|a, b| layers[*a].op.cmp(&layers[*b].op)),
        SortKey::Shape => {
            rows.sort_by(|a, b| layers[*a].weight_shape.cmp(&layers[*b].weight_shape));
        }
        SortKey::Params => rows.sort_by_key(|row| layers[*row].params),
        SortKey::Macs => rows.sort_by_key(|row| layers[*row].macs),
        SortKey::Cell(candidate) => {
            let key = |row| shown(state, row, candidate);
            let keys: Vec<(u8, f64)> = (0..layers.len()).map(key).collect();
            rows.sort_by(|a, b| {
                let (a, b) = (keys[*a], keys[*b]);
                a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
            });
        }
        SortKey::Precision => {
            let settings = settings(state);
            rows.sort_by_key(|row| settings[*row].precision);
        }
        SortKey::Runs => {
            let place = |row: &usize| match state.runs_in(&layers[*row].id) {
                Some(RunsIn::Known(node)) if node.float.is_none() => 3,
                Some(RunsIn::Known(_) | RunsIn::WeightsOnly) => 0,
                Some(_) => 1,
                None => 2,
            };
            rows.sort_by_cached_key(place);
        }
        SortKey::Ratio => {
            let ratios = settings(state).into_iter().map(|s| s.sparsity.0);
            let ratios: Vec<f32> = ratios.collect();
            rows.sort_by(|a, b| ratios[*a].total_cmp(&ratios[*b]));
        }
    }
    if key.sort.descending {
        rows.reverse();
    }
    rows
}

/// What the plan asks of every layer, in the graph's order.
fn settings(state: &State) -> Vec<LayerSetting> {
    let ids = state.mirror.layer_ids();
    ids.iter().map(|id| state.document.setting(id)).collect()
}

/// What a cell shows under the chosen quantity: how well it is known, and how much it is.
fn shown(state: &State, row: usize, candidate: Candidate) -> (u8, f64) {
    let heat = || heat(state, row, candidate);
    match state.view.colour_by {
        ColourBy::Sensitivity => match state.cell(row, candidate) {
            None => (0, 0.0),
            Some(cell) => match cell.tier {
                Tier::Proxy | Tier::Local => (1, cell.value),
                Tier::Fisher => (2, cell.value),
                Tier::Measured => (3, cell.value),
            },
        },
        ColourBy::AllBut => state
            .all_but(row, candidate)
            .map_or((0, 0.0), |cell| (3, cell.value)),
        ColourBy::Error => {
            let slot = state.mirror.slot(row, candidate);
            let proxy = slot.and_then(|slot| slot.proxy.as_ref());
            proxy.map_or((0, 0.0), |cell| (1, cell.value))
        }
        ColourBy::Size | ColourBy::Macs => match heat() {
            Heat {
                kind: HeatKind::Unknown,
                ..
            } => (0, 0.0),
            Heat { value, .. } => (1, f64::from(value)),
        },
    }
}

/// Place of every layer in the order of names as people sort them: `conv2` before `conv10`.
pub(super) fn by_name(layers: &[LayerFacts]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_cached_key(|row| (natural(&layers[*row].id), layers[*row].id.clone()));
    let mut places = vec![0; layers.len()];
    for (place, row) in order.into_iter().enumerate() {
        places[row] = place;
    }
    places
}

/// A name as what is compared: characters, and runs of digits as numbers.
fn natural(name: &LayerId) -> Vec<(Option<char>, u64)> {
    let mut parts: Vec<(Option<char>, u64)> = Vec::new();
    for c in name.0.chars() {
        match (c.to_digit(10), parts.last_mut()) {
            (Some(d), Some((None, n))) => {
                *n = n.saturating_mul(10).saturating_add(u64::from(d));
            }
            (Some(d), _) => parts.push((None, u64::from(d))),
            (None, _) => parts.push((Some(c), 0)),
        }
    }
    parts
}
