//! Numbers as text: digits grouped, a fixed number of decimals so that nothing jumps, units left to the caller.

/// 1234567 → "1,234,567".
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Bytes in kilobytes of 1,000: "118", below 10 with one decimal: "9.4". Without the unit.
pub fn kilobytes(bytes: u64) -> String {
    if bytes < 10_000 {
        format!("{:.1}", bytes as f64 / 1e3)
    } else {
        grouped((bytes + 500) / 1000)
    }
}

/// Multiply–accumulates in millions: "31.0", from 1,000 on without decimals. Without the unit.
pub fn millions(count: u64) -> String {
    let m = count as f64 / 1e6;
    if m >= 1000.0 {
        grouped(m.round() as u64)
    } else if m >= 100.0 {
        format!("{m:.1}")
    } else {
        format!("{m:.2}")
    }
}

/// A fraction as percent with `decimals`: 0.9278 → "92.78". Without the unit. A value that rounds to zero has no sign.
pub fn percent(fraction: f64, decimals: usize) -> String {
    signless_zero(format!("{:.*}", decimals, fraction * 100.0))
}

/// A fraction and its 95 % interval, both in points: "0.31 ± 0.12" (half the interval's width).
pub fn points_with_interval(fraction: f64, ci: [f64; 2]) -> String {
    format!(
        "{} ± {:.2}",
        percent(fraction, 2),
        (ci[1] - ci[0]).abs() / 2.0 * 100.0
    )
}

fn signless_zero(text: String) -> String {
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| c == '0' || c == '.') => rest.to_owned(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

/// "1:42", "1:02:07".
pub fn clock(seconds: u64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if h > 0 {
        format!("{h}:{m:02}:{s:02}")
    } else {
        format!("{m}:{s:02}")
    }
}

/// A value with three significant digits and a true minus sign: "−0.31", "1.2e-5".
pub fn short(value: f32) -> String {
    let size = value.abs();
    let text = if size == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e5).contains(&size) {
        format!("{value:.1e}")
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.1 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    };
    signless_zero(text)
}

/// "16×16×3×3".
pub fn shape(extents: &[usize]) -> String {
    let parts: Vec<String> = extents.iter().map(usize::to_string).collect();
    parts.join("×")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_they_should() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_089_896), "1,089,896");
        assert_eq!(kilobytes(1_089_400), "1,089");
        assert_eq!(kilobytes(9_440), "9.4");
        assert_eq!(millions(30_980_000), "30.98");
        assert_eq!(millions(3_860_400_000), "3,860");
        assert_eq!(percent(0.927_849, 2), "92.78");
        assert_eq!(percent(-0.000_01, 2), "0.00");
        assert_eq!(percent(-0.004_2, 2), "−0.42");
        assert_eq!(
            points_with_interval(0.0031, [0.0019, 0.0043]),
            "0.31 ± 0.12"
        );
        assert_eq!(clock(102), "1:42");
        assert_eq!(clock(3727), "1:02:07");
        assert_eq!(shape(&[16, 1, 3, 3]), "16×1×3×3");
    }
}
