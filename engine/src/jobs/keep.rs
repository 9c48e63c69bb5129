//! Runs that keep checkpoints, and those that were interrupted.

use super::{
    Event, Keep,
    emit::Ticker,
    watching::Watching,
    worker::{JobContext, Worker},
};
use crate::{
    data::SplitName,
    recipe::{self, Checkpoints, PipelineError, Recipe, RunStart, Session},
    train::TrainError,
};
use std::path::{Path, PathBuf};

impl Worker {
    /// Carries a recipe that trains out, with checkpoints on the way, and sends its point.
    pub(super) fn run_kept(
        &self,
        context: &JobContext,
        recipe: &Recipe,
        split: SplitName,
        keep: Keep,
    ) -> Result<(), PipelineError> {
        let session = self.session()?;
        let (folder, mut checkpoints) = match keep {
            // What is built already trains nothing.
            Keep::New { .. } if self.kept(&recipe.steps_sha256()?).is_some() => {
                return self.run(context, recipe, split, None);
            }
            Keep::New { under, every } => {
                let mut start = RunStart::new(Path::new(""), split, None, false);
                start.every = every;
                match recipe::begin_run(&under, &session, recipe, start) {
                    Ok(begun) => begun,
                    Err(error) => {
                        self.note(context, format!("This run keeps no checkpoints: {error}"));
                        return self.run(context, recipe, split, None);
                    }
                }
            }
            Keep::TakeUp { folder, every } => {
                let (mut checkpoints, _) = Checkpoints::open(&folder)?;
                checkpoints.set_every(every);
                (folder, checkpoints)
            }
        };
        for words in checkpoints.notes() {
            self.note(context, words);
        }
        let done = self.run_in(context, &session, recipe, split, &mut checkpoints);
        let over = match &done {
            Ok(()) => true,
            Err(_) if context.cancel.is_cancelled() => self.is_unwanted(context.job),
            // It would go the same way again.
            Err(PipelineError::Train(TrainError::Diverged(_))) => true,
            Err(_) => !checkpoints.any(),
        };
        drop(checkpoints);
        if over && let Err(error) = recipe::discard_run(&folder) {
            let words = format!(
                "The checkpoints in {} could not be removed: {error}",
                folder.display()
            );
            self.note(context, words);
        }
        done
    }

    fn run_in(
        &self,
        context: &JobContext,
        session: &Session,
        recipe: &Recipe,
        split: SplitName,
        checkpoints: &mut Checkpoints,
    ) -> Result<(), PipelineError> {
        let mut watch = Watching {
            worker: self,
            context,
            ticker: Ticker::new(context.job),
        };
        let cancel = &context.cancel;
        let outcome = recipe::run_kept(
            session,
            recipe,
            checkpoints,
            split,
            None,
            &mut watch,
            cancel,
        )?;
        self.point(context, outcome, recipe.is_partial());
        Ok(())
    }

    /// Something that stops nothing, and that the user is to know.
    pub(super) fn note(&self, context: &JobContext, message: String) {
        self.emitter().send(Event::Note {
            job: context.job,
            message,
        });
    }

    pub(super) fn find_runs(&self, context: &JobContext, under: &[PathBuf]) {
        let session = self.open_session();
        let mut runs: Vec<_> = under
            .iter()
            .flat_map(|under| recipe::interrupted_runs(under))
            .collect();
        for run in &mut runs {
            run.compare(session.as_deref());
        }
        self.emitter().send(Event::Interrupted {
            job: context.job,
            runs,
        });
    }
}
