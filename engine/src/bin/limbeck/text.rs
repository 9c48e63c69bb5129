//! Numbers and tables for people.

use limbeck_engine::{
    eval::{Estimate, Metrics},
    measure::Sizes,
};
use std::fmt::Write;

/// 1234567 → `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with the nearest unit (1 kB = 1,000 bytes).
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        _ => format!("{:.2} MB", n as f64 / 1e6),
    }
}

/// A table with a header; columns marked `true` are aligned right.
pub fn table(header: &[(&str, bool)], rows: &[Vec<String>]) -> String {
    let width = |s: &str| s.chars().count();
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(i, (title, _))| {
            rows.iter()
                .filter_map(|r| r.get(i))
                .map(|cell| width(cell))
                .chain(std::iter::once(width(title)))
                .max()
                .unwrap_or(0)
        })
        .collect();
    let titles: Vec<String> = header.iter().map(|(t, _)| (*t).to_owned()).collect();
    let mut out = String::new();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for ((cell, (_, right)), &w) in row.iter().zip(header).zip(&widths) {
            let pad = " ".repeat(w.saturating_sub(width(cell)));
            if *right {
                line.push_str(&pad);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&pad);
            }
            line.push_str("  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

pub fn percent(e: &Estimate) -> String {
    format!(
        "{:.2} % (95 % interval {:.2} to {:.2})",
        e.value * 100.0,
        e.ci[0] * 100.0,
        e.ci[1] * 100.0
    )
}

/// A result with where it comes from, split and n.
pub fn metrics(m: &Metrics, whose: &str) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail; the results are dropped for that reason throughout.
    let _ = writeln!(
        out,
        "{whose}: {} on {} samples of the {} split",
        m.origin(),
        thousands(m.top1.n),
        m.split.name()
    );
    let ce = &m.cross_entropy;
    if m.unlabelled {
        return out + &unlabelled(m);
    }
    let _ = writeln!(out, "  top-1          {}", percent(&m.top1));
    let _ = writeln!(out, "  top-5          {}", percent(&m.top5));
    let _ = writeln!(
        out,
        "  cross-entropy  {:.4} nats (95 % interval {:.4} to {:.4})",
        ce.value, ce.ci[0], ce.ci[1]
    );
    if let Some(drop) = &m.drop {
        let _ = writeln!(
            out,
            "  lost           {:+.2} points of top-1 against the original (95 % interval {:+.2} to {:+.2}, paired: {} samples only the original has right, {} only this)",
            drop.drop * 100.0,
            drop.ci[0] * 100.0,
            drop.ci[1] * 100.0,
            thousands(drop.only_baseline),
            thousands(drop.only_candidate),
        );
    }
    if let Some(agreement) = &m.agreement {
        let _ = writeln!(
            out,
            "  agreement      {} of the labels are the original's",
            percent(agreement)
        );
    }
    out
}

/// What can be said without labels.
fn unlabelled(m: &Metrics) -> String {
    let mut out = String::from(
        "  no labels      the original's classes stand for them; accuracy is not known\n",
    );
    let _ = writeln!(
        out,
        "  agreement      {} of the classes are the original's",
        percent(&m.top1)
    );
    let _ = writeln!(
        out,
        "  among five     {}: the original's class is among the five best",
        percent(&m.top5)
    );
    let ce = &m.cross_entropy;
    let _ = writeln!(
        out,
        "  cross-entropy  {:.4} nats of the original's classes (95 % interval {:.4} to {:.4})",
        ce.value, ce.ci[0], ce.ci[1]
    );
    if let Some(drop) = &m.drop {
        let _ = writeln!(
            out,
            "  changed        {:.2} % of the classes (95 % interval {:.2} to {:.2}): no more accuracy than that can be lost",
            drop.drop * 100.0,
            drop.ci[0] * 100.0,
            drop.ci[1] * 100.0
        );
    }
    out
}

/// Accuracy by class.
pub fn classes(m: &Metrics, names: &[String]) -> String {
    let rows: Vec<Vec<String>> = m
        .per_class
        .iter()
        .enumerate()
        .map(|(i, e)| {
            vec![
                format!(
                    "  {}",
                    names.get(i).cloned().unwrap_or_else(|| i.to_string())
                ),
                format!("{:.2}", e.value * 100.0),
                format!("{:.2}", e.ci[0] * 100.0),
                format!("{:.2}", e.ci[1] * 100.0),
                thousands(e.n),
            ]
        })
        .collect();
    table(
        &[
            ("  class", false),
            (
                if m.unlabelled {
                    "agreement %"
                } else {
                    "top-1 %"
                },
                true,
            ),
            ("from", true),
            ("to", true),
            ("n", true),
        ],
        &rows,
    )
}

/// The three sizes, kept apart.
pub fn sizes(s: &Sizes) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "  stored         {} in the ONNX file",
        bytes(s.stored.0)
    );
    let _ = writeln!(
        out,
        "  theoretical    {} for an ideal coder of zeros and bit widths (shared values: Huffman)",
        bytes(s.theoretical.0)
    );
    let _ = writeln!(
        out,
        "  runtime        {} of weights in memory (masked zeros save nothing)",
        bytes(s.runtime.0)
    );
    let _ = writeln!(
        out,
        "  parameters     {} ({} not zero)",
        thousands(s.params),
        thousands(s.nonzero_params)
    );
    let macs = s.macs.map_or("unknown".to_owned(), thousands);
    let _ = writeln!(out, "  MACs           {macs} a sample");
    out
}

/// How much smaller the compressed file and its work are.
pub fn shrunk(before: &Sizes, after: &Sizes) -> String {
    let times = |a: u64, b: u64| format!("{:.2}×", a as f64 / b.max(1) as f64);
    let macs = match (before.macs, after.macs) {
        (Some(a), Some(b)) if a != b => format!(
            "; MACs {} → {} ({:.1} % left)",
            thousands(a),
            thousands(b),
            b as f64 * 100.0 / a.max(1) as f64
        ),
        _ => String::new(),
    };
    format!(
        "  smaller        {} stored: {} → {}{macs}\n",
        times(before.stored.0, after.stored.0),
        bytes(before.stored.0),
        bytes(after.stored.0),
    )
}

/// How many layers a pass did something to, and what was left undone, with the reason.
pub fn account_lines(account: &limbeck_engine::compress::Account) -> String {
    use limbeck_engine::compress::Outcome;
    let done = account
        .entries
        .iter()
        .filter(|e| matches!(e.outcome, Outcome::Done(_)))
        .count();
    let mut out = String::new();
    let _ = match account.entries.len() {
        0 => writeln!(out, "{}", account.pass),
        all => writeln!(out, "{}: {done} of {all} layers done", account.pass),
    };
    for entry in &account.entries {
        let Some(why) = entry.left_undone() else {
            continue;
        };
        let _ = match &entry.outcome {
            Outcome::NotDone(_) => writeln!(out, "  not {}: {why}", entry.layer.0),
            Outcome::Done(_) => writeln!(out, "  {}: {why}", entry.layer.0),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_engine::{
        compress::{Account, AccountEntry, Outcome},
        graph::LayerId,
    };

    #[test]
    fn what_was_left_undone_is_said_even_beside_what_was_done() {
        let entry = |layer: &str, outcome| AccountEntry {
            layer: LayerId(layer.into()),
            outcome,
        };
        let account = Account {
            pass: "equalise".to_owned(),
            entries: vec![
                entry(
                    "a",
                    Outcome::Done(
                        "8 outputs scaled; no bias absorbed: b pads with zeros".to_owned(),
                    ),
                ),
                entry("b", Outcome::NotDone("nothing follows it".to_owned())),
                entry("c", Outcome::Done("inputs scaled".to_owned())),
            ],
        };
        assert_eq!(
            account_lines(&account),
            "equalise: 2 of 3 layers done\n  a: no bias absorbed: b pads with zeros\n  not b: nothing follows it\n"
        );
    }

    #[test]
    fn numbers_and_tables() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(bytes(90_001), "90.0 kB");
        let t = table(
            &[("a", false), ("n", true)],
            &[
                vec!["xyz".into(), "1".into()],
                vec!["ü".into(), "100".into()],
            ],
        );
        assert_eq!(t, "a      n\nxyz    1\nü    100\n");
    }
}
