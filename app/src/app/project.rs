//! Between the state and the engine's project file: nothing is lost on the way there and back.

use super::files;
use crate::state::State;
use limbeck_engine::project::ProjectFile;
use std::path::Path;

/// The session as a project that will lie at `path`; `None` without a model.
pub fn to_file(state: &State, path: &Path) -> Option<ProjectFile> {
    let model = state.model()?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut file = ProjectFile::new(
        files::relative(&model.path, folder),
        model
            .task_path
            .as_ref()
            .map(|task| files::relative(task, folder)),
    );
    file.name.clone_from(&model.name);
    file.model_sha256.clone_from(&model.sha256);
    file.data_sha256 = model
        .data
        .as_ref()
        .map(|data| data.sha256.clone())
        .unwrap_or_default();
    let document = &state.document;
    file.seed = document.seed;
    file.plan = document.plan.clone();
    file.pins = document.pins.clone();
    file.goals = document.goals.clone();
    file.scheme = document.scheme.clone();
    file.channels = document.channels;
    file.distil_enabled = document.distil.is_some();
    file.distil = document.distil.clone().unwrap_or_default();
    file.points = state
        .points()
        .iter()
        .map(|point| (*point.point).clone())
        .collect();
    file.cells = state.mirror.all_cells().cloned().collect();
    Some(file)
}

/// Lays a project over the newly opened model it names. Returns what the user should know: numbers measured on another model
/// or on other data are left out.
pub fn lay_over(state: &mut State, file: ProjectFile) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(model) = state.model().cloned() else {
        return warnings;
    };
    let data = model.data.as_ref().map(|data| data.sha256.as_str());
    let known_layers = |layer: &limbeck_engine::graph::LayerId| {
        model.layers.iter().any(|known| known.id == *layer)
    };
    let other_layers = file
        .plan
        .keys()
        .filter(|layer| !known_layers(layer))
        .count();
    if other_layers > 0 {
        warnings.push(format!(
            "{other_layers} layers of the project are not in this model: their settings were left out"
        ));
    }
    let document = &mut state.document;
    for (layer, setting) in &file.plan {
        if known_layers(layer) {
            document.set(layer, *setting);
        }
    }
    document.pins = file.pins.into_iter().filter(known_layers).collect();
    document.goals = file.goals;
    document.scheme = file.scheme;
    document.channels = file.channels;
    document.distil = file.distil_enabled.then_some(file.distil);
    document.seed = file.seed;
    if !file.model_sha256.is_empty() && file.model_sha256 != model.sha256 {
        warnings.push(
            "The model has changed since the project was saved: its points and cells were left out"
                .into(),
        );
    } else if data.is_some_and(|data| !file.data_sha256.is_empty() && file.data_sha256 != data) {
        warnings.push(
            "The data has changed since the project was saved: its points and cells were left out"
                .into(),
        );
    } else {
        state.mirror.add_cells(file.cells);
        for point in file.points {
            state.mirror.add_point(point);
        }
    }
    state.refresh();
    warnings
}
