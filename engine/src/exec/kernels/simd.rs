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
        pub(super) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the callee's only requirement is AVX2, which the processor has just been asked for.
                return unsafe { $wide($($arg),*) };
            }
            $body($($arg),*)
        }
    };
}

dispatched!(
    /// `dst[p] = Σ weights[t] · src[offsets[t] + p]`: a convolution whose taps are shifts of one flat plane.
    taps => taps_body, taps_wide, (dst: &mut [f32], src: &[f32], offsets: &[usize], weights: &[f32])
);

#[inline(always)]
fn taps_body(dst: &mut [f32], src: &[f32], offsets: &[usize], weights: &[f32]) {
    let (blocks, tail) = dst.as_chunks_mut::<LANES>();
    let done = blocks.len() * LANES;
    for (index, block) in blocks.iter_mut().enumerate() {
        let mut sums = [0f32; LANES];
        for (&offset, &weight) in offsets.iter().zip(weights) {
            let from = offset + index * LANES;
            for (sum, value) in sums.iter_mut().zip(&src[from..from + LANES]) {
                *sum += weight * value;
            }
        }
        *block = sums;
    }
    let (blocks, rest) = tail.as_chunks_mut::<8>();
    let finished = done + blocks.len() * 8;
    for (index, block) in blocks.iter_mut().enumerate() {
        let mut sums = [0f32; 8];
        for (&offset, &weight) in offsets.iter().zip(weights) {
            let from = offset + done + index * 8;
            for (sum, value) in sums.iter_mut().zip(&src[from..from + 8]) {
                *sum += weight * value;
            }
        }
        *block = sums;
    }
    for (index, value) in rest.iter_mut().enumerate() {
        *value = offsets
            .iter()
            .zip(weights)
            .fold(0.0, |sum, (&offset, &weight)| {
                sum + weight * src[offset + finished + index]
            });
    }
}

dispatched!(
    /// Scalar product, summed in lanes.
    dot => dot_body, dot_wide, (a: &[f32], b: &[f32]) -> f32
);

#[inline(always)]
fn dot_body(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    fold(sums) + rest
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
    /// Keeps the first `width` elements of every `pitch`, adding a constant.
    crop => crop_body, crop_wide, (dst: &mut [f32], width: usize, src: &[f32], pitch: usize, constant: f32)
);

#[inline(always)]
fn crop_body(dst: &mut [f32], width: usize, src: &[f32], pitch: usize, constant: f32) {
    for (row, wide) in dst.chunks_exact_mut(width).zip(src.chunks(pitch)) {
        for (d, s) in row.iter_mut().zip(wide) {
            *d = s + constant;
        }
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
    /// `dst += constant`.
    add_scalar => add_scalar_body, add_scalar_wide, (dst: &mut [f32], constant: f32)
);

#[inline(always)]
fn add_scalar_body(dst: &mut [f32], constant: f32) {
    for d in dst {
        *d += constant;
    }
}
