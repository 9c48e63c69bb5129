//! Marks and numbers of the plots' axes.

use crate::widgets::number;
use egui_plot::{GridInput, GridMark};

/// About `count` marks at even distances of 1, 2 or 5 times a power of ten.
pub(in crate::panels) fn even_marks(input: &GridInput, count: f32) -> Vec<GridMark> {
    let (low, high) = input.bounds;
    let rough = (high - low) / f64::from(count.max(2.0));
    if !(rough.is_finite() && rough > 0.0) {
        return Vec::new();
    }
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last.min(first + 200))
        .map(|i| GridMark {
            value: i as f64 * step,
            step_size: step,
        })
        .collect()
}

/// A mark's number with as many decimals as its distance to the next needs.
pub(in crate::panels) fn even_label(mark: GridMark) -> String {
    let decimals = (-mark.step_size.log10()).ceil().clamp(0.0, 6.0) as usize;
    format!("{:.*}", decimals, mark.value)
}

/// Marks at 1, 2, 5 (or finer) in each decade, with the distance to the next as their weight.
pub(super) fn decades(input: &GridInput) -> Vec<GridMark> {
    let (low, high) = input.bounds;
    let span = high - low;
    let steps: &[f64] = if span < 0.6 {
        &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0]
    } else if span < 1.2 {
        &[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]
    } else if span < 3.0 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0]
    };
    let mut marks = Vec::new();
    for decade in (low.floor() as i32 - 1)..=(high.ceil() as i32) {
        for (i, step) in steps.iter().enumerate() {
            let value = f64::from(decade) + step.log10();
            let next = steps.get(i + 1).copied().unwrap_or(10.0);
            if (low..=high).contains(&value) {
                marks.push(GridMark {
                    value,
                    step_size: (next / step).log10(),
                });
            }
        }
    }
    marks
}

pub(super) fn axis_number(value: f64) -> String {
    if value >= 10.0 {
        number::grouped(value.round() as u64)
    } else {
        let text = format!("{value:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_marks_lie_in_bounds_and_grow() {
        for bounds in [(1.7, 3.1), (2.0, 2.3), (0.0, 6.0), (-1.0, 0.4)] {
            let marks = decades(&GridInput {
                bounds,
                base_step_size: 0.01,
            });
            assert!(marks.len() >= 2, "{bounds:?}: {}", marks.len());
            assert!(marks.windows(2).all(|m| m[0].value < m[1].value));
            assert!(
                marks
                    .iter()
                    .all(|m| m.value >= bounds.0 && m.value <= bounds.1)
            );
        }
    }

    #[test]
    fn even_marks_are_round_and_inside() {
        let input = GridInput {
            bounds: (89.9, 94.6),
            base_step_size: 0.1,
        };
        let marks = even_marks(&input, 8.0);
        let labels: Vec<String> = marks.iter().map(|m| even_label(*m)).collect();
        assert_eq!(labels, ["90", "91", "92", "93", "94"]);
        let fine = even_marks(
            &GridInput {
                bounds: (0.0, 0.61),
                base_step_size: 0.1,
            },
            4.0,
        );
        assert_eq!(even_label(fine[1]), "0.2");
    }

    #[test]
    fn axis_numbers_are_short() {
        assert_eq!(axis_number(1000.0), "1,000");
        assert_eq!(axis_number(0.5), "0.5");
        assert_eq!(axis_number(2.0), "2");
    }
}
