//! Which rows of which source each split has: fixed, disjoint by construction.

use super::{
    DataError, SplitName,
    task::{Part, Splits, did_you_mean},
};
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Rows of one source, in the split's order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rows {
    pub source: String,
    pub rows: Vec<u32>,
}

fn bad<T>(message: String) -> Result<T, DataError> {
    Err(DataError::Task(format!("`splits`: {message}")))
}

/// Gives every named split its rows. `sizes`: samples of each source.
pub(super) fn assign(
    splits: &Splits,
    sizes: &BTreeMap<String, usize>,
) -> Result<BTreeMap<SplitName, Rows>, DataError> {
    let mut out = BTreeMap::new();
    // Ranges first: (split, start, end) by source.
    let mut taken: BTreeMap<&str, Vec<(SplitName, usize, usize)>> = BTreeMap::new();
    for (name, part) in splits.parts() {
        let (Part::Rows { from, .. } | Part::Share { from, .. }) = part;
        let Some(&size) = sizes.get(from) else {
            return bad(format!(
                "{name} is taken from {from:?}, which is not under `sources`{}",
                did_you_mean(from, sizes.keys().map(String::as_str))
            ));
        };
        let Part::Rows { start, count, .. } = part else {
            continue;
        };
        let end = match count {
            Some(count) => start.saturating_add(*count),
            None => size,
        };
        if end > size || *start > size {
            return bad(format!(
                "{name} asks for rows {start} to {end} of {from:?}, which has {size}"
            ));
        }
        if *start == end {
            return bad(format!(
                "{name} is empty (rows {start} to {end} of {from:?}); leave the split out, or give it rows"
            ));
        }
        let others = taken.entry(from).or_default();
        if let Some((other, s, e)) = others.iter().find(|(_, s, e)| *start < *e && *s < end) {
            return bad(format!(
                "{name} (rows {start} to {end}) and {other} (rows {s} to {e}) of {from:?} overlap in rows {} to {}; splits \
                 must not share samples",
                start.max(s),
                end.min(*e)
            ));
        }
        others.push((name, *start, end));
        out.insert(
            name,
            Rows {
                source: from.clone(),
                rows: (*start as u32..end as u32).collect(),
            },
        );
    }
    shares(splits, sizes, &taken, &mut out)?;
    if out.is_empty() {
        return bad(
            "none is named; at least one of calibration, search, training, holdout is needed"
                .into(),
        );
    }
    Ok(out)
}

/// Deals what the ranges left of each source, shuffled once, to its shares one after the other.
fn shares(
    splits: &Splits,
    sizes: &BTreeMap<String, usize>,
    taken: &BTreeMap<&str, Vec<(SplitName, usize, usize)>>,
    out: &mut BTreeMap<SplitName, Rows>,
) -> Result<(), DataError> {
    for (source, &size) in sizes {
        let drawn: Vec<(SplitName, f64)> = splits
            .parts()
            .filter_map(|(name, part)| match part {
                Part::Share { from, fraction } if from == source => Some((name, *fraction)),
                _ => None,
            })
            .collect();
        if drawn.is_empty() {
            continue;
        }
        let ranges = taken.get(source.as_str()).map_or(&[][..], Vec::as_slice);
        let mut rows: Vec<u32> = (0..size)
            .filter(|row| !ranges.iter().any(|(_, s, e)| (*s..*e).contains(row)))
            .map(|row| row as u32)
            .collect();
        shuffle(&mut rows, splits.seed);
        let mut sum = 0.0;
        let mut start = 0;
        for (name, fraction) in drawn {
            if !(fraction > 0.0 && fraction <= 1.0) {
                return bad(format!(
                    "the fraction of {name} is {fraction}; expected more than 0 and at most 1"
                ));
            }
            sum += fraction;
            // Boundaries are rounded, not the parts: fractions that add up to 1 use every row.
            let end = (sum * size as f64).round() as usize;
            if sum > 1.0 + 1e-9 || end > rows.len() {
                return bad(format!(
                    "the shares of {source:?} up to {name} add up to {:.1} % of its {size} samples, of which {} are not in \
                     a `Rows` split; splits must not share samples",
                    sum * 100.0,
                    rows.len()
                ));
            }
            if start == end {
                return bad(format!(
                    "{name} is empty: {fraction} of the {size} samples of {source:?} is less than one"
                ));
            }
            out.insert(
                name,
                Rows {
                    source: source.clone(),
                    rows: rows[start..end].to_vec(),
                },
            );
            start = end;
        }
    }
    Ok(())
}

/// Fisher–Yates by our own bounded draw, so that no other crate's version can change a split.
fn shuffle(rows: &mut [u32], seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for i in (1..rows.len()).rev() {
        let j = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        rows.swap(i, j as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assigned(text: &str, sizes: &[(&str, usize)]) -> Result<BTreeMap<SplitName, Rows>, String> {
        let splits: Splits = ron::Options::default()
            .with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME)
            .from_str(text)
            .unwrap();
        let sizes = sizes.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect();
        assign(&splits, &sizes).map_err(|e| e.to_string())
    }

    #[test]
    fn ranges_and_shares() {
        let out = assigned(
            r#"(seed: 3, holdout: Rows(from: "b"), calibration: Rows(from: "a", count: 2),
                search: Share(from: "a", fraction: 0.3), training: Share(from: "a", fraction: 0.5))"#,
            &[("a", 10), ("b", 4)],
        )
        .unwrap();
        assert_eq!(out[&SplitName::Holdout].rows, [0, 1, 2, 3]);
        let mut all: Vec<u32> = [
            SplitName::Calibration,
            SplitName::Search,
            SplitName::Training,
        ]
        .iter()
        .flat_map(|s| out[s].rows.clone())
        .collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let error = |text| assigned(text, &[("all", 10)]).unwrap_err();
        let e =
            error(r#"(search: Rows(from: "all", count: 6), holdout: Rows(from: "all", start: 4))"#);
        assert!(e.contains("overlap in rows 4 to 6"), "{e}");
        assert!(error(r#"(search: Rows(from: "al"))"#).contains("did you mean `all`?"));
        assert!(error(r#"(search: Rows(from: "all", start: 3, count: 0))"#).contains("empty"));
        assert!(error(r#"(search: Rows(from: "all", start: 10))"#).contains("empty"));
        assert!(
            error(r#"(search: Rows(from: "all", start: 4, count: 7))"#).contains("which has 10")
        );
        assert!(
            error(r#"(search: Rows(from: "all", start: 18446744073709551615, count: 7))"#)
                .contains("which has 10")
        );
        assert!(error(r#"(search: Share(from: "all", fraction: 1.5))"#).contains("at most 1"));
        assert!(error(r#"(search: Share(from: "all", fraction: 0.001))"#).contains("empty"));
        let e = error(
            r#"(search: Share(from: "all", fraction: 0.6), holdout: Share(from: "all", fraction: 0.6))"#,
        );
        assert!(e.contains("120.0 %"), "{e}");
        let e = error(
            r#"(search: Rows(from: "all", count: 5), holdout: Share(from: "all", fraction: 0.6))"#,
        );
        assert!(e.contains("must not share"), "{e}");
        assert!(error("()").contains("none is named"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn shares_are_disjoint_and_fixed_by_the_seed(n in 20usize..400, seed in 0u64..9, a in 0.1f64..0.4, b in 0.1f64..0.4) {
            let text = format!(
                r#"(seed: {seed}, calibration: Share(from: "x", fraction: {a}), holdout: Share(from: "x", fraction: {b}))"#
            );
            let out = assigned(&text, &[("x", n)]).unwrap();
            let (c, h) = (&out[&SplitName::Calibration].rows, &out[&SplitName::Holdout].rows);
            prop_assert!(c.iter().all(|row| !h.contains(row)));
            prop_assert!((c.len() as f64 - a * n as f64).abs() <= 1.0);
            prop_assert_eq!(&out, &assigned(&text, &[("x", n)]).unwrap());
        }
    }

    /// The order is part of what a recipe replays: it must never change.
    #[test]
    fn the_shuffle_is_frozen() {
        let mut rows: Vec<u32> = (0..8).collect();
        shuffle(&mut rows, 1);
        assert_eq!(rows, [5, 6, 2, 4, 1, 7, 0, 3]);
    }
}
