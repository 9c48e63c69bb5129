//! How the plan stands against the goals, from its newest measured point.

use super::{NamedPoint, PointId, State};
use crate::{commands::split_label, widgets::number};
use limbeck_engine::{
    data::SplitName,
    recipe::{self, Goal, GoalVerdict, Verdict},
};

/// One goal and how the plan stands against it.
#[derive(Clone, Debug, PartialEq)]
pub struct GoalStatus {
    pub goal: Goal,
    /// `None`: nothing measured to judge by.
    pub verdict: Option<Verdict>,
    /// Such as `0.62 ± 0.21 pt` or `118 kB`.
    pub text: String,
}

/// All goals together.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanVerdict {
    /// The worst of the goals; `None` while the plan has not been measured.
    pub verdict: Option<Verdict>,
    /// The point that was judged, and its split and samples.
    pub point: Option<(PointId, SplitName, u64)>,
    /// Such as `Pass · drop 0.62 ± 0.21 pt · holdout`; `Not measured yet`.
    pub text: String,
    /// The same without the interval, where there is little room.
    pub short: String,
    /// For the hover: split, n, every goal.
    pub details: String,
    pub goals: Vec<GoalStatus>,
}

fn kilobytes(kb: f64) -> String {
    number::kilobytes((kb * 1000.0).round().max(0.0) as u64)
}

/// A goal as its chip says it: `drop ≤ 1.0 pt`.
pub fn goal_label(goal: &Goal) -> String {
    match goal {
        Goal::DropPoints(points) => format!("drop ≤ {points:.1} pt"),
        Goal::DropRelativePercent(percent) => format!("drop ≤ {percent:.1} % rel."),
        Goal::StoredKilobytes(kb) => format!("size ≤ {} kB", kilobytes(*kb)),
        Goal::RuntimeKilobytes(kb) => format!("memory ≤ {} kB", kilobytes(*kb)),
    }
}

/// The holdout decides where the plan was measured on it, else the search split. A plan with distillation is judged by a
/// distilled point: its own, else that of another distillation of the same plan (the second value is true).
fn judged(state: &State) -> Option<(&NamedPoint, bool)> {
    const SPLITS: [SplitName; 2] = [SplitName::Holdout, SplitName::Search];
    let own = SPLITS.iter().find_map(|split| state.plan_point(*split));
    own.map(|point| (point, false)).or_else(|| {
        let other = |split: &SplitName| state.otherwise_distilled_point(*split);
        SPLITS.iter().find_map(other).map(|point| (point, true))
    })
}

/// No point to judge by: what is said instead, and why.
fn open(state: &State) -> (String, String) {
    if state.document.distil.is_none() {
        return (
            "Not measured yet".into(),
            "The verdict follows once this plan is measured".into(),
        );
    }
    let mut details =
        "This plan has a distillation; the verdict follows once it is done".to_owned();
    let before = [SplitName::Holdout, SplitName::Search]
        .into_iter()
        .find_map(|split| state.undistilled_point(split));
    if let Some(point) = before {
        details += &format!(
            "\nBefore distilling ({} on {}, n {}): {}",
            point.name,
            split_label(point.split()),
            number::grouped(point.samples()),
            drop_text(point, true)
        );
    }
    ("Not distilled yet".into(), details)
}

pub fn judge(state: &State) -> Option<PlanVerdict> {
    let goals = &state.document.goals;
    if goals.is_empty() || state.model().is_none() {
        return None;
    }
    let Some((point, other)) = judged(state) else {
        let (text, details) = open(state);
        return Some(PlanVerdict {
            verdict: None,
            point: None,
            short: text.clone(),
            text,
            details,
            goals: goals
                .iter()
                .map(|goal| GoalStatus {
                    goal: *goal,
                    verdict: None,
                    text: "not measured".into(),
                })
                .collect(),
        });
    };
    let metrics = &point.point.metrics;
    let baseline = state
        .baseline(metrics.split)
        .map_or(f64::NAN, |baseline| baseline.point.metrics.top1.value);
    let judged = recipe::judge(goals, metrics, baseline, &point.point.sizes);
    let verdict = recipe::overall(&judged);
    let word = match verdict {
        Some(Verdict::Pass) => "Pass",
        Some(Verdict::Fail) => "Fail",
        Some(Verdict::Inconclusive) | None => "Inconclusive",
    };
    let split = split_label(metrics.split);
    let mut details = format!(
        "{} on {split}, n {}: {}",
        point.name,
        number::grouped(metrics.top1.n),
        drop_text(point, true)
    );
    if metrics.split != SplitName::Holdout {
        details.push_str("\nPress Measure to judge on the holdout");
    }
    let partial = point.point.recipe.is_partial();
    if partial {
        details.push_str("\nPartial: the best epoch of a training that was cancelled");
    }
    if other && !partial {
        details
            .push_str("\nDistilled with other settings than the plan's; its own is not done yet");
    }
    for goal in &judged {
        let word = match goal.verdict {
            Verdict::Pass => "Pass",
            Verdict::Fail => "Fail",
            Verdict::Inconclusive => "Inconclusive",
        };
        details.push_str(&format!("\n{word}: {}", goal.words));
    }
    let tail = match (partial, other) {
        (true, _) => ", partial",
        (false, true) => ", other settings",
        _ => "",
    };
    Some(PlanVerdict {
        verdict,
        point: Some((point.id, metrics.split, metrics.top1.n)),
        text: format!("{word} · {} · {split}{tail}", drop_text(point, true)),
        short: format!("{word} · {} · {split}{tail}", drop_text(point, false)),
        details,
        goals: judged.into_iter().map(status).collect(),
    })
}

fn drop_text(point: &NamedPoint, interval: bool) -> String {
    let what = point.point.metrics.drop_name();
    match &point.point.metrics.drop {
        Some(drop) if interval => {
            let figure = number::points_with_interval(drop.drop, drop.ci);
            format!("{what} {figure} pt")
        }
        Some(drop) => format!("{what} {} pt", number::percent(drop.drop, 2)),
        None => format!(
            "{} {:.2} %",
            point.point.metrics.top1_name(),
            point.top1_percent()
        ),
    }
}

fn status(judged: GoalVerdict) -> GoalStatus {
    let unit = match judged.goal {
        Goal::DropPoints(_) => "pt",
        Goal::DropRelativePercent(_) => "% rel.",
        Goal::StoredKilobytes(_) | Goal::RuntimeKilobytes(_) => "kB",
    };
    let text = match judged.ci {
        Some(ci) => format!(
            "{:.2} ± {:.2} {unit}",
            judged.measured,
            (ci[1] - ci[0]) / 2.0
        ),
        None if judged.measured.is_finite() => format!("{} {unit}", kilobytes(judged.measured)),
        None => "cannot be told: the original is not measured, or there are no labels".into(),
    };
    GoalStatus {
        goal: judged.goal,
        verdict: Some(judged.verdict),
        text,
    }
}

/// The goal region of the plot on the shown split: (largest kB, smallest top-1 %).
pub fn region(state: &State) -> (Option<f64>, Option<f64>) {
    let baseline = state
        .baseline(state.view.split)
        .map(NamedPoint::top1_percent);
    let mut size: Option<f64> = None;
    let mut top1: Option<f64> = None;
    for goal in &state.document.goals {
        match goal {
            Goal::StoredKilobytes(kb) => size = Some(size.map_or(*kb, |old| old.min(*kb))),
            Goal::DropPoints(points) => {
                let floor = baseline.map(|b| b - points);
                top1 = floor.map(|f| top1.map_or(f, |old| old.max(f))).or(top1);
            }
            // Relative to an accuracy, which nobody knows without labels.
            Goal::DropRelativePercent(_) if !state.has_labels(state.view.split) => {}
            Goal::DropRelativePercent(percent) => {
                let floor = baseline.map(|b| b * (1.0 - percent / 100.0));
                top1 = floor.map(|f| top1.map_or(f, |old| old.max(f))).or(top1);
            }
            Goal::RuntimeKilobytes(_) => {}
        }
    }
    (size, top1)
}
