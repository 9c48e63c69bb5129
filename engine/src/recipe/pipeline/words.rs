//! What steps did, in words.

use crate::{
    eval::Estimate,
    exec::StepSizes,
    train::{BatchNorm, DistilSettings, Distilled},
};
use std::fmt::Write;

/// How many step sizes were learned, of what.
fn step_sizes_words(learned: StepSizes) -> String {
    let StepSizes {
        weights,
        activations,
    } = learned;
    if weights + activations == 0 {
        return "; learned_step_sizes asked for, but nothing that is trained has a step size that could be learned".to_owned();
    }
    format!("; step sizes of {weights} weights and {activations} activations learned")
}

/// What training did, in words: it has no account by layer.
pub(super) fn training_words(
    settings: &DistilSettings,
    distilled: &Distilled,
    labelled: bool,
) -> String {
    let judged = match labelled {
        true => "top-1",
        false => "agreement with the original (no labels)",
    };
    let top1 = |e: Option<Estimate>| {
        e.map_or("unknown".to_owned(), |e| {
            format!("{:.2} % (n = {})", e.value * 100.0, e.n)
        })
    };
    let norms = match (settings.batch_norm, distilled.batch_norms) {
        (BatchNorm::Frozen, _) => String::new(),
        (BatchNorm::Batch { .. }, 0) => {
            "; batch_norm asked for the mini-batch's statistics, but no batch norm is left (they were folded into the layers before them): trained as if frozen".to_owned()
        }
        (BatchNorm::Batch { freeze_at, .. }, n) => format!(
            "; {n} batch norms on the mini-batch's statistics for the first {:.0} % of the steps",
            freeze_at * 100.0
        ),
    };
    let steps = match settings.learned_step_sizes {
        false => String::new(),
        true => step_sizes_words(distilled.step_sizes),
    };
    let mut within = String::new();
    for (at, pair) in distilled.matched.iter().enumerate() {
        let begin = if at == 0 {
            "; features matched: "
        } else {
            ", "
        };
        let how = match pair.projected {
            true => ", projected",
            false => "",
        };
        let _ = write!(
            within,
            "{begin}{} with the original's {} ({} and {} channels{how})",
            pair.student, pair.teacher, pair.student_width, pair.teacher_width
        );
    }
    let mut words = format!(
        "distil: kept the state after epoch {} of {}; {judged} on the search split {} before, {} after{norms}{steps}{within}",
        distilled.best_epoch,
        settings.epochs,
        top1(distilled.start),
        top1(distilled.best)
    );
    // Writing to a string cannot fail.
    if let Some((gone, of)) = distilled.pruned {
        let _ = write!(words, "; {gone} of {of} weights pruned on the way");
    }
    if let Some(patience) = settings.patience
        && distilled.epochs < settings.trained_epochs()
        && !distilled.cancelled
    {
        let _ = write!(
            words,
            "; ended after epoch {}: {patience} in a row gave no better state",
            distilled.epochs
        );
    }
    for back in &distilled.rollbacks {
        let _ = write!(
            words,
            "; diverged at step {} ({}): went back to step {} and on with a rate of {:.1e}",
            back.step, back.what, back.back_to, back.rate
        );
    }
    words
}
