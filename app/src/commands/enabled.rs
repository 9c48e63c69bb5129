//! Whether a command can be done now, and if not, why.

use super::*;

impl Command {
    /// Whether it can be done now; if not, why, in words for the hover.
    pub fn enabled(&self, state: &State) -> Result<(), String> {
        let model = || {
            state
                .model()
                .map(|_| ())
                .ok_or_else(|| "Open a model first".to_owned())
        };
        match self {
            Self::Show(Dialog::OpenTask) | Self::OpenTask(_) => model(),
            Self::Show(
                Dialog::SaveProject
                | Dialog::Goals
                | Dialog::Scheme
                | Dialog::Methods
                | Dialog::Shrink,
            )
            | Self::SaveProject
            | Self::SaveProjectAs(_)
            | Self::SetGoals(_)
            | Self::SetScheme(_)
            | Self::SetMethods(_)
            | Self::SetShrinking { .. }
            | Self::TakeBlock { .. }
            | Self::ShareValues { .. }
            | Self::SetPruning(_)
            | Self::ApplyPreset(_)
            | Self::SelectAll => model(),
            Self::Show(Dialog::ExportModel) | Self::ExportModel { .. } => {
                model()?;
                match state.model() {
                    Some(model) if !model.runnable => {
                        Err("This model has operators that can't run; the log names them".into())
                    }
                    _ => match self {
                        Self::ExportModel {
                            format: ExportFormat::Plan,
                            ..
                        } => {
                            state.buildable()?;
                            state.target_allows()
                        }
                        _ => Ok(()),
                    },
                }
            }
            Self::Show(Dialog::ExportRecipe) | Self::ExportRecipe(_) => {
                model()?;
                if state.model().is_some_and(|m| m.task_path.is_none()) {
                    return Err("A recipe needs labelled data: open a task.ron first".into());
                }
                state.target_allows()
            }
            Self::MeasurePlan(split) => {
                state.measurable()?;
                if state.split_len(*split) == 0 {
                    return Err(format!("The data has no {} samples", split_label(*split)));
                }
                state.target_allows()
            }
            Self::StartMap => {
                state.measurable()?;
                if state.is_busy(JobKind::Map) {
                    return Err("The map is being measured".into());
                }
                let (measured, all) = state.map_progress();
                if measured == all {
                    return Err("Every cell is measured".into());
                }
                Ok(())
            }
            Self::Show(Dialog::Distil) | Self::StartDistil(_) | Self::StartDistilWith { .. } => {
                state.measurable()?;
                if state.split_len(SplitName::Training) == 0 {
                    return Err("The data has no training samples".into());
                }
                if state.plan_is_empty() {
                    return Err(
                        "The plan changes nothing yet: choose precisions or pruning first".into(),
                    );
                }
                if state.is_busy(JobKind::Distil) {
                    return Err("A distillation is running".into());
                }
                if let Some(kind) = state.chosen_codes() {
                    return Err(format!(
                        "{} chooses codes, and training would move the weights off them: take it out of the quantisation methods first",
                        kind.word()
                    ));
                }
                let (settings, schedule) = match self {
                    Self::StartDistil(settings) => (settings, &state.document.shrinking.schedule),
                    Self::StartDistilWith { settings, schedule } => (settings, schedule),
                    _ => return state.target_allows(),
                };
                if settings.learned_step_sizes && schedule.is_some() && state.zeroes_weights() {
                    return Err(BEFORE_QUANTISING.into());
                }
                state.target_allows()
            }
            Self::NewRun(run) => {
                if state.run(*run).is_none() || state.mirror.runs.recipe(*run).is_none() {
                    return Err("This run's settings are not known".into());
                }
                if state.is_busy(JobKind::Distil) {
                    return Err("A distillation is running".into());
                }
                Ok(())
            }
            Self::NewRunFrom { run, epoch } => {
                Self::NewRun(*run).enabled(state)?;
                let ended = |run: &Curves| run.epochs().any(|(n, _)| n == *epoch);
                if !state.run(*run).is_some_and(ended) {
                    return Err(format!("Epoch {epoch} has not ended yet"));
                }
                match state.mirror.runs.from_epoch(*run, *epoch) {
                    Some(_) => Ok(()),
                    None => Err("Weights are still being pruned at this epoch".into()),
                }
            }
            Self::TakeUp(folder) => {
                let run = state.interrupted(folder);
                let run = run.ok_or("There is no interrupted run in this folder any more")?;
                if state.is_busy(JobKind::Distil) {
                    return Err("A distillation is running".into());
                }
                match &run.obstacle {
                    Some(why) => Err(format!("It cannot be gone on with: {why}")),
                    None => Ok(()),
                }
            }
            Self::Confirm(id) => {
                state.measurable()?;
                if state.mirror.point(*id).is_none() {
                    return Err("This point is gone".into());
                }
                if state.is_busy(JobKind::Confirm) {
                    return Err("A file is being held against ONNX Runtime".into());
                }
                Ok(())
            }
            Self::ConfirmPlan => match state.selected_point().or(state.exported_point()) {
                Some(point) => Self::Confirm(point.id).enabled(state),
                None => {
                    Err("The plan is not measured yet: there is no prediction to confirm".into())
                }
            },
            Self::UseMethod(kind) => {
                model()?;
                if state.document.method(*kind).is_some() {
                    return Err("The plan has it already".into());
                }
                if kind.chooses_codes() && state.document.distil.is_some() {
                    return Err(TRAINED.into());
                }
                if kind.needs_data() {
                    state.measurable()?;
                }
                Ok(())
            }
            Self::SetDistil(None) if state.document.distil.is_none() => {
                Err("The plan has no distillation".into())
            }
            Self::Undo if !state.history.can_undo() => Err("Nothing to undo".into()),
            Self::Redo if !state.history.can_redo() => Err("Nothing to redo".into()),
            Self::ClearSelection if state.view.selection.is_empty() => {
                Err("No layer is selected".into())
            }
            Self::SetPrecision { layers, .. }
            | Self::SetRatio { layers, .. }
            | Self::ResetLayers(layers)
            | Self::TogglePin(layers)
                if layers.is_empty() =>
            {
                Err("Select layers first".into())
            }
            Self::SetPrecision { layers, .. }
            | Self::SetRatio { layers, .. }
            | Self::ResetLayers(layers)
                if layers.len() > 1 && layers.iter().all(|layer| state.is_pinned(layer)) =>
            {
                Err("All selected layers are pinned".into())
            }
            Self::RestorePoint(id) if state.mirror.point(*id).is_none() => {
                Err("This point is gone".into())
            }
            Self::SetTab(Tab::Training) if state.curves().is_none() => {
                Err("Nothing has been distilled yet".into())
            }
            Self::SetInspected(Inspected::Input) => state.countable(),
            Self::PauseJob(id) => match state.job(*id) {
                Some(job) if job.can_pause() => Ok(()),
                Some(job) if job.state == JobState::Paused => Err("It is paused already".into()),
                _ => Err("It does not run: there is nothing to pause".into()),
            },
            Self::ResumeJob(id)
                if state.job(*id).map(|job| &job.state) != Some(&JobState::Paused) =>
            {
                Err("It is not paused".into())
            }
            Self::CancelJob(id) if !state.job(*id).is_some_and(|job| job.is_active()) => {
                Err("This job has ended".into())
            }
            Self::CancelAll if state.active_jobs().next().is_none() => {
                Err("No job is running".into())
            }
            _ => Ok(()),
        }
    }
}
