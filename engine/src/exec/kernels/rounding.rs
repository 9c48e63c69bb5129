//! The arithmetic of roundings under choice (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020): rectified
//! sigmoids and steps of Adam (Kingma and Ba 2015) on what stands in them.

use super::simd::dispatched;

/// Ends of the stretched sigmoid (Louizos et al. 2018).
const ZETA: f32 = 1.1;
const GAMMA: f32 = -0.1;
const ADAM: (f32, f32, f32) = (0.9, 0.999, 1e-8);

/// Where the rectified sigmoid is `part`, held inside the bends.
pub fn start(part: f32) -> f32 {
    let inner = ((part - GAMMA) / (ZETA - GAMMA)).clamp(0.01, 0.99);
    (inner / (1.0 - inner)).ln()
}

dispatched!(
    /// The rectified sigmoid `h` of each `v` and its `slope` ∂h/∂v; both 0 where `free` is 0 and not 1.
    relax => relax_body, relax_wide, (v: &[f32], free: &[f32], h: &mut [f32], slope: &mut [f32])
);

#[inline(always)]
fn relax_body(v: &[f32], free: &[f32], h: &mut [f32], slope: &mut [f32]) {
    for (((h, slope), v), free) in h.iter_mut().zip(slope).zip(v).zip(free) {
        let sigmoid = 1.0 / (1.0 + exp(-*v));
        let stretched = sigmoid * (ZETA - GAMMA) + GAMMA;
        let inside = f32::from(u8::from(stretched > 0.0 && stretched < 1.0));
        *h = stretched.clamp(0.0, 1.0) * free;
        *slope = (ZETA - GAMMA) * sigmoid * (1.0 - sigmoid) * inside * free;
    }
}

/// What moves with the steps of Adam: parameters, means of their gradients and of the gradients' squares.
pub struct Moving<'a> {
    pub v: &'a mut [f32],
    pub mean: &'a mut [f32],
    pub square: &'a mut [f32],
}

/// One step: of this number (from 0), with this rate, down the loss and `weight` · (1 − |2h − 1|^β).
#[derive(Clone, Copy)]
pub struct Step {
    pub number: usize,
    pub rate: f32,
    pub weight: f32,
    /// Below 32; 0: no such term.
    pub beta: u32,
}

dispatched!(
    /// A step of Adam down `gradient` (by `h`) and the step's penalty.
    descend => descend_body, descend_wide, (to: Moving<'_>, h: &[f32], slope: &[f32], gradient: &[f32], step: Step)
);

#[inline(always)]
fn descend_body(to: Moving<'_>, h: &[f32], slope: &[f32], gradient: &[f32], step: Step) {
    let (b1, b2, epsilon) = ADAM;
    let n = step.number as i32 + 1;
    let rate = step.rate * (1.0 - b2.powi(n)).sqrt() / (1.0 - b1.powi(n));
    let push = step.weight * 2.0 * step.beta as f32;
    let exponent = step.beta.saturating_sub(1);
    let state = to.v.iter_mut().zip(to.mean).zip(to.square);
    for ((((v, mean), square), (h, slope)), g) in state.zip(h.iter().zip(slope)).zip(gradient) {
        // d/dh of 1 − |2h − 1|^β.
        let away = 2.0 * h - 1.0;
        let g = (g - push * power(away.abs(), exponent).copysign(away)) * slope;
        *mean = b1 * *mean + (1.0 - b1) * g;
        *square = b2 * *square + (1.0 - b2) * g * g;
        *v -= rate * *mean / (square.sqrt() + epsilon);
    }
}

/// x to a whole power below 32, without branches on x.
#[inline(always)]
fn power(x: f32, exponent: u32) -> f32 {
    let mut result = 1.0;
    let mut square = x;
    for bit in 0..5 {
        result *= if exponent >> bit & 1 == 1 {
            square
        } else {
            1.0
        };
        square *= square;
    }
    result
}

/// e to the x, to 2·10⁻⁷·(2 + |x|) of it, for |x| ≤ 80 (held there beyond): vectorises where the library's is a call.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to a whole number in the low bits
    let scaled = x.clamp(-80.0, 80.0) * std::f32::consts::LOG2_E;
    let shifted = scaled + MAGIC;
    let part = (scaled - (shifted - MAGIC)) * std::f32::consts::LN_2;
    // Taylor's series on |part| ≤ 0.35.
    let mut sum = 1.0 / 720.0;
    for divisor in [120.0_f32, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = sum * part + 1.0 / divisor;
    }
    f32::from_bits(sum.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_functions_agree_with_the_library() {
        for i in -300..300 {
            let x = i as f32 * 0.1;
            assert!(
                (exp(x) / x.exp() - 1.0).abs() < 2e-7 * (2.0 + x.abs()),
                "{x}"
            );
            let p = (i + 300) as f32 / 600.0;
            for e in 0..20 {
                assert!((power(p, e) - p.powi(e as i32)).abs() < 1e-5);
            }
        }
        assert!(exp(f32::INFINITY).is_finite() && exp(-1e30) >= 0.0);
    }
}
