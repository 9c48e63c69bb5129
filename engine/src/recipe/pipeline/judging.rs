//! What comes behind the steps: the exported file, and the judgement on labelled samples beside the original.

use super::{Built, RunOutcome, Work, watch::Watch};
use crate::{
    compress::{Account, Model, pack},
    data::SplitName,
    eval::{self, Evaluation},
    exec::{Mode, NoTaps, Program, Taps},
    formats::onnx,
    measure,
    recipe::{PipelineError, Recipe, RecipeError, Resolved, files::sha256, judge},
    target::{Execution, Saturation, Target},
};
use std::{sync::Arc, time::Instant};

/// On what, and beside what, a result is judged.
pub(super) struct Judging {
    pub split: SplitName,
    pub limit: Option<usize>,
    /// The original's result on these samples.
    pub baseline: Arc<Evaluation>,
    pub started: Instant,
}

impl Work<'_> {
    /// Judges the original.
    pub(super) fn evaluate_baseline(
        &mut self,
        split: SplitName,
        limit: Option<usize>,
    ) -> Result<Arc<Evaluation>, PipelineError> {
        let mut watch = Watch::new(self, format!("original on the {} split", split));
        let cancel = watch.cancel;
        let session = watch.session;
        let baseline = session.baseline(split, limit, &mut watch, cancel)?;
        self.advance(baseline.n, "original evaluated")?;
        Ok(baseline)
    }

    /// Packs and encodes.
    pub(super) fn finish(
        &self,
        resolved: Resolved,
        recipe: &Recipe,
        model: &Model,
        accounts: Vec<Account>,
    ) -> Result<Built, PipelineError> {
        let mut graph = pack(model)?;
        // Nothing of names, paths or time: the same work gives the same bytes everywhere.
        let mut note = |key: &str, value: String| graph.metadata.insert(key.to_owned(), value);
        note("limbeck.version", crate::VERSION.to_owned());
        note(
            "limbeck.source_sha256",
            self.session.model_sha256(self.cancel)?,
        );
        note("limbeck.steps_sha256", recipe.steps_sha256()?);
        if let Some(student) = self.session.student_sha256(recipe)? {
            note("limbeck.student_sha256", student);
        }
        let bytes = Arc::new(onnx::to_bytes(&graph)?);
        let mut built = Built {
            model_sha256: sha256(&bytes),
            sizes: measure::sizes(&graph)?,
            resolved,
            graph,
            bytes,
            accounts,
        };
        built.say_where_it_runs(target_of(recipe)?.as_deref());
        Ok(built)
    }

    /// Judges what `recipe` gave.
    pub(super) fn judge(
        &mut self,
        recipe: Recipe,
        mut built: Built,
        judging: &Judging,
    ) -> Result<RunOutcome, PipelineError> {
        let Judging {
            split,
            limit,
            baseline,
            started,
        } = judging;
        let (split, limit) = (*split, *limit);
        let mut saturates = Vec::new();
        let evaluation = if recipe.steps.is_empty() {
            baseline.clone()
        } else {
            let data = self.session.runnable()?;
            let program = Program::compile(&built.graph, Mode::Inference)?;
            // What a target's kernels cut off belongs to the prediction.
            let target = target_of(&recipe)?;
            // What was built before may have been told by another description of the same name.
            built.say_where_it_runs(target.as_deref());
            let mut saturation = target.and_then(|t| Saturation::of(&built.graph, &t));
            let mut none = NoTaps;
            let taps: &mut dyn Taps = match &mut saturation {
                Some(saturation) => saturation,
                None => &mut none,
            };
            let mut watch = Watch::new(self, format!("judging on the {} split", split));
            let cancel = watch.cancel;
            let mut result =
                eval::evaluate_tapped(&program, data, split, limit, taps, &mut watch, cancel)?;
            if let Some(saturation) = saturation {
                result.simulated = saturation.target().map(str::to_owned);
                saturates = saturation.by_layer();
                built.accounts.push(saturation.account());
            }
            self.advance(result.n, "judged")?;
            Arc::new(result)
        };
        let metrics = evaluation.metrics(Some(baseline));
        let baseline_metrics = baseline.metrics(None);
        Ok(RunOutcome {
            verdicts: judge(
                &recipe.goals,
                &metrics,
                baseline_metrics.top1.value,
                &built.sizes,
            ),
            recipe,
            resolved: built.resolved,
            graph: built.graph,
            bytes: built.bytes,
            model_sha256: built.model_sha256,
            split,
            limit,
            evaluation,
            metrics,
            baseline: baseline.clone(),
            baseline_metrics,
            sizes: built.sizes,
            accounts: built.accounts,
            saturation: saturates,
            seconds: started
                .elapsed()
                .saturating_sub(self.observer.away())
                .as_secs_f64(),
        })
    }
}

fn target_of(recipe: &Recipe) -> Result<Option<Arc<Target>>, PipelineError> {
    let target = recipe.target();
    Ok(target.map_err(|e| RecipeError::new(e.to_string()))?)
}

impl Built {
    /// Says anew in its accounts what a target computes in integers; what its arithmetic does there is said by a judgement.
    fn say_where_it_runs(&mut self, target: Option<&Target>) {
        self.accounts
            .retain(|a| !Execution::is_account(a) && !Saturation::is_account(a));
        let execution = target.and_then(|target| Execution::of(&self.graph, target));
        self.accounts.extend(execution.map(|e| e.account()));
    }
}
