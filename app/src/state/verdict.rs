//! How the plan stands against the goals, from its newest measured point.

use super::{NamedPoint, PointId, State};
use crate::commands::split_label;
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
    /// Such as `0.62 ± 0.21 pt` or `118 KB`.
    pub text: String,
}

/// All goals together.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanVerdict {
    /// The worst of the goals; `None` while the plan has not been measured.
    pub verdict: Option<Verdict>,
    /// The point that was judged, and its split and samples.
    pub point: Option<(PointId, SplitName, u64)>,
    /// Such as `Pass · drop 0.62 ± 0.21 pt`; `Not measured yet`.
    pub text: String,
    /// For the hover: split, n, every goal.
    pub details: String,
    pub goals: Vec<GoalStatus>,
}

/// A goal as its chip says it: `drop ≤ 1.0 pt`.
pub fn goal_label(goal: &Goal) -> String {
    match goal {
        Goal::DropPoints(points) => format!("drop ≤ {points:.1} pt"),
        Goal::DropRelativePercent(percent) => format!("drop ≤ {percent:.1} % rel."),
        Goal::StoredKilobytes(kb) => format!("size ≤ {kb:.0} KB"),
        Goal::RuntimeKilobytes(kb) => format!("memory ≤ {kb:.0} KB"),
    }
}

/// The holdout decides where the plan was measured on it, else the search split.
fn judged(state: &State) -> Option<&NamedPoint> {
    state
        .plan_point(SplitName::Holdout)
        .or_else(|| state.plan_point(SplitName::Search))
}

pub fn judge(state: &State) -> Option<PlanVerdict> {
    let goals = &state.document.goals;
    if goals.is_empty() || state.model().is_none() {
        return None;
    }
    let Some(point) = judged(state) else {
        return Some(PlanVerdict {
            verdict: None,
            point: None,
            text: "Not measured yet".into(),
            details: "The verdict follows once this plan is measured".into(),
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
    let mut details = format!("{} on {split}, n {}", point.name, metrics.top1.n);
    if metrics.split != SplitName::Holdout {
        details.push_str(" (press Measure to judge on the holdout)");
    }
    for goal in &judged {
        let word = match goal.verdict {
            Verdict::Pass => "Pass",
            Verdict::Fail => "Fail",
            Verdict::Inconclusive => "Inconclusive",
        };
        details.push_str(&format!("\n{word}: {}", goal.words));
    }
    Some(PlanVerdict {
        verdict,
        point: Some((point.id, metrics.split, metrics.top1.n)),
        text: format!("{word} · {}", drop_text(point)),
        details,
        goals: judged.into_iter().map(status).collect(),
    })
}

fn drop_text(point: &NamedPoint) -> String {
    match &point.point.metrics.drop {
        Some(drop) => {
            let half = (drop.ci[1] - drop.ci[0]) / 2.0;
            format!("drop {:.2} ± {:.2} pt", drop.drop * 100.0, half * 100.0)
        }
        None => format!("top-1 {:.2} %", point.top1_percent()),
    }
}

fn status(judged: GoalVerdict) -> GoalStatus {
    let unit = match judged.goal {
        Goal::DropPoints(_) => "pt",
        Goal::DropRelativePercent(_) => "% rel.",
        Goal::StoredKilobytes(_) | Goal::RuntimeKilobytes(_) => "KB",
    };
    let text = match judged.ci {
        Some(ci) => format!(
            "{:.2} ± {:.2} {unit}",
            judged.measured,
            (ci[1] - ci[0]) / 2.0
        ),
        None if judged.measured.is_finite() => format!("{:.0} {unit}", judged.measured),
        None => "the original is not measured".into(),
    };
    GoalStatus {
        goal: judged.goal,
        verdict: Some(judged.verdict),
        text,
    }
}

/// The goal region of the plot on the shown split: (largest KB, smallest top-1 %).
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
            Goal::DropRelativePercent(percent) => {
                let floor = baseline.map(|b| b * (1.0 - percent / 100.0));
                top1 = floor.map(|f| top1.map_or(f, |old| old.max(f))).or(top1);
            }
            Goal::RuntimeKilobytes(_) => {}
        }
    }
    (size, top1)
}
