//! Inner loops over contiguous f32, compiled twice: for the baseline and for AVX2, chosen at run time. Both do the
//! same additions in the same order (no fused multiply–add), so their results are the same bits.

/// Lanes that sums are kept in: part of what a sum's bits are.
const LANES: usize = 32;

macro_rules! dispatched {
    ($(#[$doc:meta])* $name:ident => $body:ident, $wide:ident, ($($arg:ident : $ty:ty),*) $(-> $ret:ty)?) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2")]
        fn $wide($($arg: $ty),*) $(-> $ret)? {
            $body($($arg),*)
        }

        $(#[$doc])*
        #[allow(unsafe_code)] // calls a function compiled for AVX2 after asking the processor for it
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the callee's only requirement is AVX2, which the processor has just been asked for.
                return unsafe { $wide($($arg),*) };
            }
            $body($($arg),*)
        }
    };
}

pub(super) use dispatched;

dispatched!(
    /// `Σ a·(b − centre)`, in lanes.
    centred_dot => centred_dot_body, centred_dot_wide, (a: &[f32], b: &[f32], centre: f32) -> f32
);

#[inline(always)]
fn centred_dot_body(a: &[f32], b: &[f32], centre: f32) -> f32 {
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * (b[lane] - centre);
        }
    }
    let rest: f32 = a_rest
        .iter()
        .zip(b_rest)
        .map(|(a, b)| a * (b - centre))
        .sum();
    fold(sums) + rest
}

dispatched!(
    /// `Σ (a − centre)²`, in lanes.
    centred_squares => centred_squares_body, centred_squares_wide, (a: &[f32], centre: f32) -> f32
);

#[inline(always)]
fn centred_squares_body(a: &[f32], centre: f32) -> f32 {
    let (blocks, rest) = a.as_chunks::<LANES>();
    let square = |a: f32| (a - centre) * (a - centre);
    let mut sums = [0f32; LANES];
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += square(block[lane]);
        }
    }
    fold(sums) + rest.iter().map(|a| square(*a)).sum::<f32>()
}

dispatched!(
    /// Sum of all elements, in lanes.
    sum => sum_body, sum_wide, (a: &[f32]) -> f32
);

#[inline(always)]
fn sum_body(a: &[f32]) -> f32 {
    let (blocks, rest) = a.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += block[lane];
        }
    }
    fold(sums) + rest.iter().sum::<f32>()
}

#[inline(always)]
fn fold(sums: [f32; LANES]) -> f32 {
    let mut sums = sums;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

dispatched!(
    /// `dst += src`.
    add_assign => add_assign_body, add_assign_wide, (dst: &mut [f32], src: &[f32])
);

#[inline(always)]
fn add_assign_body(dst: &mut [f32], src: &[f32]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d += s;
    }
}

dispatched!(
    /// `dst = src·factor + constant`.
    affine => affine_body, affine_wide, (dst: &mut [f32], src: &[f32], factor: f32, constant: f32)
);

#[inline(always)]
fn affine_body(dst: &mut [f32], src: &[f32], factor: f32, constant: f32) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = s * factor + constant;
    }
}

dispatched!(
    /// `dst += src·factor`.
    add_scaled => add_scaled_body, add_scaled_wide, (dst: &mut [f32], src: &[f32], factor: f32)
);

#[inline(always)]
fn add_scaled_body(dst: &mut [f32], src: &[f32], factor: f32) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d += s * factor;
    }
}

dispatched!(
    /// `Σ a·b`, in lanes.
    dot => dot_body, dot_wide, (a: &[f32], b: &[f32]) -> f32
);

#[inline(always)]
fn dot_body(a: &[f32], b: &[f32]) -> f32 {
    centred_dot_body(a, b, 0.0)
}

dispatched!(
    /// `dst += constant`.
    add_scalar => add_scalar_body, add_scalar_wide, (dst: &mut [f32], constant: f32)
);

#[inline(always)]
fn add_scalar_body(dst: &mut [f32], constant: f32) {
    for d in dst {
        *d += constant;
    }
}
