//! Vectors of f32 by the processor's own width, chosen once at run time: AVX-512, AVX2 with FMA, or arrays that the compiler
//! turns into what the target always has (NEON on aarch64, SSE2 on x86-64).
//!
//! The kernels are written once over [`Lanes`] and compiled for each of the three. Each keeps the order of every sum, so one
//! processor always gives the same bits; between processors they differ by the rounding of fused multiply–adds only.

#![allow(unsafe_code)] // intrinsics and raw pointers: see the contract of `Lanes`

/// A vector of [`Lanes::WIDTH`] floats.
///
/// # Safety
/// Every function may be called only where the processor has the instructions of the implementation (the dispatch in
/// [`isa`] sees to that). Pointers given to `load` and `store` are valid for `WIDTH` floats, those given to the `_part`
/// functions for `count`; no alignment is asked for.
pub(super) unsafe trait Lanes: Copy {
    const WIDTH: usize;
    /// Pixels a tile of the convolution takes at most, and vectors of channels: what the registers hold.
    const ROWS: usize;
    const COLUMNS: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// The first `count` (0 ≤ count ≤ WIDTH) lanes; the others 0.
    unsafe fn load_part(from: *const f32, count: usize) -> Self;
    unsafe fn store_part(self, to: *mut f32, count: usize);
    /// Asks for a cache line that will be read soon. Any address will do: nothing is read from one that is not there.
    #[inline(always)]
    unsafe fn prefetch(_at: *const f32) {}
    /// `self·b + c`.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// The larger one; `b` where either is not a number.
    unsafe fn max(self, b: Self) -> Self;
    /// The smaller one; `b` where either is not a number.
    unsafe fn min(self, b: Self) -> Self;
    /// `self` where `low < gate && gate < high`, else 0.
    unsafe fn between(self, gate: Self, low: Self, high: Self) -> Self;
    /// `yes` where `self < b`, else (also where either is not a number) `no`.
    unsafe fn less(self, b: Self, yes: Self, no: Self) -> Self;
    unsafe fn sqrt(self) -> Self;
    /// Without its sign.
    unsafe fn abs(self) -> Self;
    /// With the sign of `sign`, for `self` without one.
    unsafe fn signed(self, sign: Self) -> Self;
    /// `self · 2ⁿ` rounded once, for a whole number −252 ≤ n ≤ 254; anything where n is not a number and `self` neither.
    unsafe fn scaled(self, n: Self) -> Self;
}

/// Without intrinsics: eight lanes in an array.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = [0.0; 8];
        for (o, (a, b)) in out.iter_mut().zip(self.0.iter().zip(&b.0)) {
            *o = f(*a, *b);
        }
        Self(out)
    }
}

// SAFETY: plain arithmetic; pointers are used within the bounds that the contract names.
unsafe impl Lanes for Portable {
    const WIDTH: usize = 8;
    const ROWS: usize = 4;
    const COLUMNS: usize = 1;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: valid for 8 floats by contract; arrays of f32 need no more alignment than f32, read unaligned all the same.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as `load`.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        let mut out = [0.0; 8];
        for (lane, o) in out.iter_mut().enumerate().take(count) {
            // SAFETY: lane < count, for which the pointer is valid by contract.
            *o = unsafe { *from.add(lane) };
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        for (lane, v) in self.0.iter().enumerate().take(count) {
            // SAFETY: as `load_part`.
            unsafe { *to.add(lane) = *v }
        }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        self.zip(b, |a, b| a * b).zip(c, |p, c| p + c)
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        self.zip(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn between(self, gate: Self, low: Self, high: Self) -> Self {
        let mut out = self;
        for lane in 0..8 {
            if !(low.0[lane] < gate.0[lane] && gate.0[lane] < high.0[lane]) {
                out.0[lane] = 0.0;
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn less(self, b: Self, yes: Self, no: Self) -> Self {
        let mut out = no;
        for lane in 0..8 {
            if self.0[lane] < b.0[lane] {
                out.0[lane] = yes.0[lane];
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        self.zip(self, |a, _| a.sqrt())
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        self.zip(self, |a, _| a.abs())
    }
    #[inline(always)]
    unsafe fn signed(self, sign: Self) -> Self {
        self.zip(sign, f32::copysign)
    }
    #[inline(always)]
    unsafe fn scaled(self, n: Self) -> Self {
        // In two steps, each a power of two that a float can be; only the second rounds, and only below the normal ones.
        let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
        self.zip(n, |a, n| {
            let n = (n as i32).clamp(-252, 254);
            let half = n >> 1;
            a * power(half) * power(n - half)
        })
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    #[inline(always)]
    fn first16(count: usize) -> __mmask16 {
        ((1u32 << count) - 1) as __mmask16
    }

    // SAFETY: each function is one or two instructions of AVX-512F, which the contract of the trait demands; masked loads
    // and stores touch the first `count` floats only.
    unsafe impl Lanes for Avx512 {
        const WIDTH: usize = 16;
        const ROWS: usize = 12;
        const COLUMNS: usize = 2;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn load_part(from: *const f32, count: usize) -> Self {
            unsafe { Self(_mm512_maskz_loadu_ps(first16(count), from)) }
        }
        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, count: usize) {
            unsafe { _mm512_mask_storeu_ps(to, first16(count), self.0) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(self.0, b.0, c.0)) }
        }
        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            unsafe { Self(_mm512_add_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            unsafe { Self(_mm512_sub_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            unsafe { Self(_mm512_mul_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn div(self, b: Self) -> Self {
            unsafe { Self(_mm512_div_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, b: Self) -> Self {
            unsafe { Self(_mm512_max_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn min(self, b: Self) -> Self {
            unsafe { Self(_mm512_min_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn between(self, gate: Self, low: Self, high: Self) -> Self {
            unsafe {
                let above = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(low.0, gate.0);
                let both = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(above, gate.0, high.0);
                Self(_mm512_maskz_mov_ps(both, self.0))
            }
        }
        #[inline(always)]
        unsafe fn less(self, b: Self, yes: Self, no: Self) -> Self {
            unsafe {
                let mask = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, b.0);
                Self(_mm512_mask_blend_ps(mask, no.0, yes.0))
            }
        }
        #[inline(always)]
        unsafe fn sqrt(self) -> Self {
            unsafe { Self(_mm512_sqrt_ps(self.0)) }
        }
        #[inline(always)]
        unsafe fn abs(self) -> Self {
            unsafe { Self(_mm512_abs_ps(self.0)) }
        }
        #[inline(always)]
        unsafe fn signed(self, sign: Self) -> Self {
            unsafe {
                let bit =
                    _mm512_and_si512(_mm512_castps_si512(sign.0), _mm512_set1_epi32(i32::MIN));
                Self(_mm512_castsi512_ps(_mm512_or_si512(
                    _mm512_castps_si512(self.0),
                    bit,
                )))
            }
        }
        #[inline(always)]
        unsafe fn scaled(self, n: Self) -> Self {
            unsafe { Self(_mm512_scalef_ps(self.0, n.0)) }
        }
    }

    #[derive(Clone, Copy)]
    pub struct Avx2(__m256);

    /// Eight set lanes, then eight clear ones: a window into it is a mask.
    static LANES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    #[inline(always)]
    unsafe fn first8(count: usize) -> __m256i {
        // SAFETY: 0 ≤ count ≤ 8, so the window lies within the table.
        unsafe { _mm256_loadu_si256(LANES.as_ptr().add(8 - count).cast()) }
    }

    // SAFETY: as for `Avx512`, with AVX2 and FMA.
    unsafe impl Lanes for Avx2 {
        const WIDTH: usize = 8;
        const ROWS: usize = 6;
        const COLUMNS: usize = 2;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn load_part(from: *const f32, count: usize) -> Self {
            unsafe { Self(_mm256_maskload_ps(from, first8(count))) }
        }
        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, count: usize) {
            unsafe { _mm256_maskstore_ps(to, first8(count), self.0) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(self.0, b.0, c.0)) }
        }
        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            unsafe { Self(_mm256_add_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            unsafe { Self(_mm256_sub_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            unsafe { Self(_mm256_mul_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn div(self, b: Self) -> Self {
            unsafe { Self(_mm256_div_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, b: Self) -> Self {
            unsafe { Self(_mm256_max_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn min(self, b: Self) -> Self {
            unsafe { Self(_mm256_min_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn between(self, gate: Self, low: Self, high: Self) -> Self {
            unsafe {
                let above = _mm256_cmp_ps::<_CMP_LT_OQ>(low.0, gate.0);
                let below = _mm256_cmp_ps::<_CMP_LT_OQ>(gate.0, high.0);
                Self(_mm256_and_ps(self.0, _mm256_and_ps(above, below)))
            }
        }
        #[inline(always)]
        unsafe fn less(self, b: Self, yes: Self, no: Self) -> Self {
            unsafe {
                let mask = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, b.0);
                Self(_mm256_blendv_ps(no.0, yes.0, mask))
            }
        }
        #[inline(always)]
        unsafe fn sqrt(self) -> Self {
            unsafe { Self(_mm256_sqrt_ps(self.0)) }
        }
        #[inline(always)]
        unsafe fn abs(self) -> Self {
            unsafe { Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)) }
        }
        #[inline(always)]
        unsafe fn signed(self, sign: Self) -> Self {
            unsafe {
                let bit = _mm256_and_ps(_mm256_set1_ps(-0.0), sign.0);
                Self(_mm256_or_ps(self.0, bit))
            }
        }
        #[inline(always)]
        unsafe fn scaled(self, n: Self) -> Self {
            // As the portable one.
            unsafe {
                let power = |n: __m256i| {
                    let exponent = _mm256_add_epi32(n, _mm256_set1_epi32(127));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
                };
                let n = _mm256_cvtps_epi32(n.0);
                let half = _mm256_srai_epi32::<1>(n);
                let rest = _mm256_sub_epi32(n, half);
                Self(_mm256_mul_ps(
                    _mm256_mul_ps(self.0, power(half)),
                    power(rest),
                ))
            }
        }
    }
}

/// Which of the three a kernel runs as. Only [`Isa::all`] makes one, after asking the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(super) Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Avx512,
    Avx2,
    Portable,
}

impl Isa {
    /// Floats in a vector.
    pub fn width(self) -> usize {
        match self.0 {
            Kind::Avx512 => 16,
            Kind::Avx2 | Kind::Portable => 8,
        }
    }
    /// Vectors of output channels a convolution's tile takes at most.
    pub(super) fn columns(self) -> usize {
        match self.0 {
            Kind::Avx512 | Kind::Avx2 => 2,
            Kind::Portable => 1,
        }
    }

    /// Those that this processor has, best first.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self(Kind::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.insert(0, Self(Kind::Avx2));
                if is_x86_feature_detected!("avx512f") {
                    all.insert(0, Self(Kind::Avx512));
                }
            }
        }
        all
    }
}

/// The best this processor has; asked once.
pub fn isa() -> Isa {
    static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
    *BEST.get_or_init(|| Isa::all()[0])
}

/// Defines `$name`, which runs the generic body `$body::<L>` as the given [`Isa`], compiled with its instructions.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* $vis:vis fn $name:ident => $body:ident($($arg:ident : $ty:ty),* $(,)?)) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::exec::kernels::lanes::Isa, $($arg: $ty),*) {
            use $crate::exec::kernels::lanes;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512($($arg: $ty),*) {
                unsafe { $body::<lanes::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2($($arg: $ty),*) {
                unsafe { $body::<lanes::Avx2>($($arg),*) }
            }
            // SAFETY: an `Isa` other than the portable one comes from `Isa::all`, which asked the processor for all the features
            // that the function is compiled with; the body's own contract is passed on to the caller.
            unsafe {
                match isa.0 {
                    #[cfg(target_arch = "x86_64")]
                    lanes::Kind::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    lanes::Kind::Avx2 => avx2($($arg),*),
                    _ => $body::<lanes::Portable>($($arg),*),
                }
            }
        }
    };
}
pub(super) use for_each_isa;
