//! Between the state and the engine's project file: nothing is lost on the way there and back.

use super::files;
use crate::state::State;
use limbeck_engine::{graph::LayerId, project::ProjectFile};
use std::{collections::HashSet, path::Path};

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
    file.model_sha256 = model.sha256.clone().unwrap_or_default();
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
    file.shrinking.clone_from(&document.shrinking);
    file.methods.clone_from(&document.methods);
    file.trained.clone_from(&document.trained);
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

/// Lays a project over the newly opened model it names. Returns what the user should know.
pub fn lay_over(state: &mut State, file: ProjectFile) -> Vec<String> {
    let mut warnings = lay_plan(state, &file);
    warnings.extend(lay_numbers(state, file));
    state.refresh();
    warnings
}

/// What a project says of the model's layers: nothing that depends on its weights.
pub fn lay_plan(state: &mut State, file: &ProjectFile) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(model) = state.model().cloned() else {
        return warnings;
    };
    let layers: HashSet<&LayerId> = model.layers.iter().map(|layer| &layer.id).collect();
    let others = file.plan.keys().filter(|l| !layers.contains(l)).count();
    if others > 0 {
        warnings.push(format!(
            "{others} layers of the project are not in this model: their settings were left out"
        ));
    }
    let document = &mut state.document;
    for (layer, setting) in &file.plan {
        if layers.contains(layer) {
            document.set(layer, *setting);
        }
    }
    let pins = file.pins.iter().filter(|l| layers.contains(l));
    document.pins = pins.cloned().collect();
    document.goals.clone_from(&file.goals);
    document.scheme = file.scheme.clone();
    document.channels = file.channels;
    document.shrinking.clone_from(&file.shrinking);
    document.distil = file.distil_enabled.then(|| file.distil.clone());
    document.methods.clone_from(&file.methods);
    document.trained.clone_from(&file.trained);
    document.seed = file.seed;
    warnings
}

/// A project's points and cells. Those measured on another model or on other data are left out; the model's hash must be known.
pub fn lay_numbers(state: &mut State, file: ProjectFile) -> Vec<String> {
    let Some(model) = state.model() else {
        return Vec::new();
    };
    let data = model.data.as_ref().map(|data| data.sha256.as_str());
    if !file.model_sha256.is_empty() && Some(&file.model_sha256) != model.sha256.as_ref() {
        return vec![
            "The model has changed since the project was saved: its points and cells were left out"
                .into(),
        ];
    }
    if data.is_some_and(|data| !file.data_sha256.is_empty() && file.data_sha256 != data) {
        return vec![
            "The data has changed since the project was saved: its points and cells were left out"
                .into(),
        ];
    }
    state.mirror.add_cells(file.cells);
    for point in file.points {
        state.mirror.add_point(point);
    }
    Vec::new()
}
