//! How the plan stands against the goals, from its newest measured point.

use super::{NamedPoint, PointId, State};
use limbeck_engine::{
    data::SplitName,
    recipe::{Goal, Verdict},
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
    let point = judged(state);
    let statuses: Vec<GoalStatus> = goals
        .iter()
        .map(|goal| match point {
            Some(point) => status(goal, point, state),
            None => GoalStatus {
                goal: goal.clone(),
                verdict: None,
                text: "not measured".into(),
            },
        })
        .collect();
    let Some(point) = point else {
        return Some(PlanVerdict {
            verdict: None,
            point: None,
            text: "Not measured yet".into(),
            details: "The verdict follows once this plan is measured".into(),
            goals: statuses,
        });
    };
    let verdict = if statuses.iter().any(|s| s.verdict == Some(Verdict::Fail)) {
        Some(Verdict::Fail)
    } else if statuses.iter().any(|s| s.verdict != Some(Verdict::Pass)) {
        Some(Verdict::Inconclusive)
    } else {
        Some(Verdict::Pass)
    };
    let word = match verdict {
        Some(Verdict::Pass) => "Pass",
        Some(Verdict::Fail) => "Fail",
        _ => "Inconclusive",
    };
    let metrics = &point.point.metrics;
    let n = metrics.top1.n;
    let split = match metrics.split {
        SplitName::Holdout => "holdout",
        SplitName::Search => "search",
        SplitName::Calibration => "calibration",
        SplitName::Training => "training",
    };
    let text = format!("{word} · {}", drop_text(point));
    let mut details = format!("{} on {split}, n {n}", point.name);
    if metrics.split != SplitName::Holdout {
        details.push_str(" (press Measure to judge on the holdout)");
    }
    for status in &statuses {
        let word = match status.verdict {
            Some(Verdict::Pass) => "pass",
            Some(Verdict::Fail) => "fail",
            Some(Verdict::Inconclusive) => "too few samples to tell",
            None => "not known",
        };
        details.push_str(&format!(
            "\n{}: {} ({word})",
            goal_label(&status.goal),
            status.text
        ));
    }
    Some(PlanVerdict {
        verdict,
        point: Some((point.id, metrics.split, n)),
        text,
        details,
        goals: statuses,
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

fn status(goal: &Goal, point: &NamedPoint, state: &State) -> GoalStatus {
    let metrics = &point.point.metrics;
    let by = |value: f64, limit: f64| {
        if value <= limit {
            Verdict::Pass
        } else {
            Verdict::Fail
        }
    };
    let by_interval = |ci: [f64; 2], limit: f64| {
        if ci[1] <= limit {
            Verdict::Pass
        } else if ci[0] > limit {
            Verdict::Fail
        } else {
            Verdict::Inconclusive
        }
    };
    let (verdict, text) = match (goal, &metrics.drop) {
        (Goal::DropPoints(limit), Some(drop)) => {
            (Some(by_interval(drop.ci, limit / 100.0)), drop_text(point))
        }
        (Goal::DropRelativePercent(limit), Some(drop)) => {
            match state
                .baseline(metrics.split)
                .map(|b| b.point.metrics.top1.value)
            {
                Some(top1) if top1 > 0.0 => (
                    Some(by_interval(drop.ci, limit / 100.0 * top1)),
                    format!("drop {:.2} % of the original's", drop.drop / top1 * 100.0),
                ),
                _ => (None, "the original is not measured".into()),
            }
        }
        (Goal::DropPoints(_) | Goal::DropRelativePercent(_), None) if point.is_baseline() => {
            (Some(Verdict::Pass), "the original".into())
        }
        (Goal::DropPoints(_) | Goal::DropRelativePercent(_), None) => {
            (None, "the original is not measured".into())
        }
        (Goal::StoredKilobytes(limit), _) => {
            let kb = point.point.sizes.stored.0 as f64 / 1e3;
            (Some(by(kb, *limit)), format!("{kb:.0} KB"))
        }
        (Goal::RuntimeKilobytes(limit), _) => {
            let kb = point.point.sizes.runtime.0 as f64 / 1e3;
            (Some(by(kb, *limit)), format!("{kb:.0} KB"))
        }
    };
    GoalStatus {
        goal: goal.clone(),
        verdict,
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
