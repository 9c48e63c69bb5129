//! Streaming histograms of activations and the ranges taken from them. Memory does not grow with the number of samples, and
//! the histogram is a pure function of the multiset of values: neither batch size nor order nor merging changes it.

use super::{Calibration, Symmetry};

/// Bins on each side of zero.
const BINS: usize = 4096;
/// Smallest exponent of the range: anything below 2^−100 counts as the bin next to zero.
const SMALLEST: i32 = -100;

/// Counts of magnitudes up to 2^`exponent`, by sign. When a larger value comes the range doubles and neighbouring bins merge,
/// which loses nothing: bin edges stay bin edges.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    exponent: i32,
    positive: Vec<u64>,
    negative: Vec<u64>,
    zeros: u64,
    count: u64,
    non_finite: u64,
    min: f32,
    max: f32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            exponent: SMALLEST,
            positive: vec![0; BINS],
            negative: vec![0; BINS],
            zeros: 0,
            count: 0,
            non_finite: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
        }
    }
}

/// Smallest exponent k with |value| < 2^k.
fn exponent_above(magnitude: f32) -> i32 {
    let biased = (magnitude.to_bits() >> 23 & 0xff) as i32;
    (biased - 126).max(SMALLEST)
}

fn power_of_two(exponent: i32) -> f32 {
    2.0_f64.powi(exponent) as f32
}

/// Values counted in 32 bits before they are added up.
const AT_A_TIME: usize = 1 << 24;
/// Fewer than this are counted where they belong: adding up would cost more.
const FEW: usize = 1 << 13;
/// Where a value is counted: the positive bins, then the negative ones, then these.
const ZERO: usize = 2 * BINS;
const NONE: usize = ZERO + 1;
/// Values side by side.
const LANES: usize = 16;

fn is_finite(v: f32) -> bool {
    v.to_bits() & 0x7fff_ffff < f32::INFINITY.to_bits()
}

/// How many are finite, and the smallest and the largest of these.
fn extremes(values: &[f32]) -> (usize, f32, f32) {
    let mut lo = [f32::INFINITY; LANES];
    let mut hi = [f32::NEG_INFINITY; LANES];
    let mut finite = [0_u32; LANES];
    let mut see = |lane: usize, v: f32| {
        let good = is_finite(v);
        let (a, b) = if good {
            (v, v)
        } else {
            (f32::INFINITY, f32::NEG_INFINITY)
        };
        lo[lane] = if a < lo[lane] { a } else { lo[lane] };
        hi[lane] = if b > hi[lane] { b } else { hi[lane] };
        finite[lane] += u32::from(good);
    };
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for (lane, v) in block.iter().enumerate() {
            see(lane, *v);
        }
    }
    rest.iter().enumerate().for_each(|(lane, v)| see(lane, *v));
    (
        finite.iter().sum::<u32>() as usize,
        lo.into_iter().fold(f32::INFINITY, f32::min),
        hi.into_iter().fold(f32::NEG_INFINITY, f32::max),
    )
}

/// Tells where each value is counted, in bins up to 2^`exponent`, and its number.
fn each_slot(values: &[f32], exponent: i32, mut tell: impl FnMut(usize, usize)) {
    // Exact: a multiplication by a power of two.
    let to_bin = power_of_two(12 - exponent);
    for block in values.chunks(16 * LANES) {
        let mut slots = [0_u32; 16 * LANES];
        for (slot, &v) in slots.iter_mut().zip(block) {
            let bin = ((v.abs() * to_bin) as i32 as u32).min(BINS as u32 - 1);
            let side = (v.to_bits() >> 31) * BINS as u32;
            let place = if v == 0.0 { ZERO as u32 } else { bin + side };
            *slot = if is_finite(v) { place } else { NONE as u32 };
        }
        for (turn, slot) in slots[..block.len()].iter().enumerate() {
            tell(*slot as usize, turn);
        }
    }
}

impl Histogram {
    /// Finite values seen.
    pub fn count(&self) -> u64 {
        self.count
    }
    /// Exact zeros seen.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }
    /// NaN and infinite values seen (in no bin).
    pub fn non_finite(&self) -> u64 {
        self.non_finite
    }
    /// Smallest and largest finite value; `None` before the first.
    pub fn extremes(&self) -> Option<(f32, f32)> {
        (self.count > 0).then_some((self.min, self.max))
    }

    fn grow(&mut self, exponent: i32) {
        while self.exponent < exponent {
            for side in [&mut self.positive, &mut self.negative] {
                for i in 0..BINS / 2 {
                    side[i] = side[2 * i] + side[2 * i + 1];
                }
                side[BINS / 2..].fill(0);
            }
            self.exponent += 1;
            // No bin holds anything yet: nothing to merge on the way up.
            if self.zeros == self.count {
                self.exponent = exponent;
            }
        }
    }

    /// Counts `values` and returns their extremes; `None` where none is finite.
    pub fn add(&mut self, values: &[f32]) -> Option<(f32, f32)> {
        let mut all: Option<(f32, f32)> = None;
        for values in values.chunks(AT_A_TIME) {
            let (finite, min, max) = extremes(values);
            self.non_finite += (values.len() - finite) as u64;
            if finite == 0 {
                continue;
            }
            self.grow(exponent_above(max.abs().max(min.abs())));
            self.count += finite as u64;
            self.min = self.min.min(min);
            self.max = self.max.max(max);
            let (lo, hi) = all.unwrap_or((min, max));
            all = Some((lo.min(min), hi.max(max)));
            if values.len() < FEW {
                each_slot(values, self.exponent, |slot, _| match slot {
                    ZERO => self.zeros += 1,
                    NONE => {}
                    slot if slot < BINS => self.positive[slot] += 1,
                    slot => self.negative[slot - BINS] += 1,
                });
            } else {
                // Neighbours often fall into the same bin: by turns, so that one count need not wait for the other.
                let mut counts = [[0_u32; NONE + 1]; 2];
                each_slot(values, self.exponent, |slot, turn| {
                    counts[turn % 2][slot] += 1;
                });
                let sum = |slot: usize| u64::from(counts[0][slot]) + u64::from(counts[1][slot]);
                for bin in 0..BINS {
                    self.positive[bin] += sum(bin);
                    self.negative[bin] += sum(BINS + bin);
                }
                self.zeros += sum(ZERO);
            }
        }
        all
    }

    /// Adds another histogram's counts: as if its values had been added here.
    pub fn merge(&mut self, mut other: Self) {
        self.grow(other.exponent);
        other.grow(self.exponent);
        for (a, b) in self.positive.iter_mut().zip(&other.positive) {
            *a += b;
        }
        for (a, b) in self.negative.iter_mut().zip(&other.negative) {
            *a += b;
        }
        self.zeros += other.zeros;
        self.count += other.count;
        self.non_finite += other.non_finite;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// The range to be quantised, by `method`; `None` before the first finite value. Always includes 0; symmetric
    /// ranges are (−a, a).
    pub fn range(&self, method: Calibration, symmetry: Symmetry) -> Option<(f32, f32)> {
        let (min, max) = self.extremes()?;
        let (lo, hi) = match method {
            // The average is over samples, which a histogram does not tell apart: `calibrate` takes it.
            Calibration::MinMax | Calibration::MovingAverage => (min, max),
            Calibration::Percentile(kept) => self.percentile(kept, symmetry),
            Calibration::Mse => self.least_squares(symmetry),
            Calibration::Entropy => self.least_divergence(symmetry),
        };
        Some(symmetry.widen((lo, hi)))
    }

    /// Smallest range of bins that keeps at least `kept` percent of the values: asymmetric ranges may lose half of the rest at
    /// each end, symmetric ones all of it beyond ±a.
    fn percentile(&self, kept: f32, symmetry: Symmetry) -> (f32, f32) {
        let lost = self.count as f64 * (1.0 - f64::from(kept) / 100.0).clamp(0.0, 1.0);
        let edge = |bins: &mut dyn Iterator<Item = (usize, u64)>, lost: u64| {
            let mut beyond = 0;
            for (bin, n) in bins {
                beyond += n;
                if beyond > lost {
                    return (bin + 1) as f32 * power_of_two(self.exponent - 12);
                }
            }
            0.0
        };
        match symmetry {
            Symmetry::Asymmetric => {
                let lost = (lost / 2.0) as u64;
                let end = |side: &[u64]| edge(&mut side.iter().copied().enumerate().rev(), lost);
                (
                    (-end(&self.negative)).max(self.min),
                    end(&self.positive).min(self.max),
                )
            }
            Symmetry::Symmetric => {
                let both = self.positive.iter().zip(&self.negative).map(|(a, b)| a + b);
                let both: Vec<u64> = both.collect();
                let a = edge(&mut both.iter().copied().enumerate().rev(), lost as u64);
                let a = a.min(self.max.max(-self.min).max(0.0));
                (-a, a)
            }
        }
    }

    /// The middles of the bins that hold anything and how much, exact zeros not among them.
    pub(super) fn centres(&self) -> impl Iterator<Item = (f32, u64)> {
        let width = power_of_two(self.exponent - 12);
        let bins = move |side: &'_ [u64], sign: f32| -> Vec<(f32, u64)> {
            let held = side.iter().copied().enumerate().filter(|(_, n)| *n > 0);
            held.map(|(bin, n)| (sign * (bin as f32 + 0.5) * width, n))
                .collect()
        };
        let negative = bins(&self.negative, -1.0);
        negative.into_iter().chain(bins(&self.positive, 1.0))
    }

    /// The range with the least squared error at 8 bits.
    fn least_squares(&self, symmetry: Symmetry) -> (f32, f32) {
        let centres: Vec<(f32, f32)> = self.centres().map(|(v, n)| (v, n as f32)).collect();
        self.search(symmetry, |lo, hi| {
            ActivationQuant::of(lo, hi, symmetry, 8).error(&centres)
        })
    }

    /// The range whose 8-bit form tells least apart from the values: least Kullback–Leibler divergence (Migacz, "8-bit Inference with
    /// TensorRT", 2017). What lies beyond the range counts in the outermost bins of the reference; exact zeros, which every range
    /// keeps, are left out.
    fn least_divergence(&self, symmetry: Symmetry) -> (f32, f32) {
        let width = power_of_two(self.exponent - 12);
        // All bins from the smallest value to the largest, the empty ones too.
        let last = |side: &[u64]| side.iter().rposition(|n| *n > 0).map_or(0, |b| b + 1);
        let (below, above) = (last(&self.negative), last(&self.positive));
        let below = self.negative[..below].iter().enumerate().rev();
        let above = self.positive[..above].iter().enumerate();
        let bins: Vec<(f32, f64)> = below
            .map(|(bin, n)| (-(bin as f32 + 0.5) * width, *n as f64))
            .chain(above.map(|(bin, n)| ((bin as f32 + 0.5) * width, *n as f64)))
            .collect();
        let total: f64 = bins.iter().map(|b| b.1).sum();
        if total == 0.0 {
            return (self.min, self.max);
        }
        self.search(symmetry, |lo, hi| {
            let (lo, hi) = symmetry.widen((lo, hi));
            let inside = |value: f32| value >= lo - 0.5 * width && value <= hi + 0.5 * width;
            let first = bins.partition_point(|b| b.0 < lo && !inside(b.0));
            let end = bins.partition_point(|b| b.0 <= hi || inside(b.0));
            if first >= end {
                return f64::INFINITY;
            }
            let mass = |part: &[(f32, f64)]| part.iter().map(|b| b.1).sum::<f64>();
            let (under, over) = (mass(&bins[..first]), mass(&bins[end..]));
            let quant = ActivationQuant::of(lo, hi, symmetry, 8);
            let code = |value: f32| quant.code(value) as i32;
            let kept = total - under - over;
            if kept <= 0.0 {
                return f64::INFINITY;
            }
            let mut divergence = 0.0;
            let mut at = first;
            while at < end {
                // The bins that one code stands for share its mass evenly, as far as they held any.
                let this = code(bins[at].0);
                let mut next = at + 1;
                while next < end && code(bins[next].0) == this {
                    next += 1;
                }
                let held = bins[at..next].iter().filter(|b| b.1 > 0.0).count();
                let share = mass(&bins[at..next]) / held.max(1) as f64 / kept;
                for (index, bin) in bins.iter().enumerate().take(next).skip(at) {
                    let mut p = bin.1;
                    if index == first {
                        p += under;
                    }
                    if index + 1 == end {
                        p += over;
                    }
                    if p > 0.0 {
                        let p = p / total;
                        let q = if bin.1 > 0.0 { share } else { 0.0 };
                        divergence += p * (p / q.max(1e-12)).ln();
                    }
                }
                at = next;
            }
            divergence
        })
    }

    /// The range of least `cost` among shares of the extremes: both ends shrunk together, then each by itself.
    fn search(&self, symmetry: Symmetry, cost: impl Fn(f32, f32) -> f64) -> (f32, f32) {
        let (min, max) = (self.min.min(0.0), self.max.max(0.0));
        let cost = |shares: (i32, i32)| {
            cost(
                min * (shares.0 as f32 / 100.0),
                max * (shares.1 as f32 / 100.0),
            )
        };
        let mut best = ((100, 100), cost((100, 100)));
        let mut consider = |shares: (i32, i32)| {
            let error = cost(shares);
            if error < best.1 {
                best = (shares, error);
            }
            best.0
        };
        let steps = || (10..100).rev().step_by(3);
        let mut at = (100, 100);
        for share in steps() {
            at = consider((share, share));
        }
        if symmetry == Symmetry::Asymmetric && min < 0.0 && max > 0.0 {
            for share in steps() {
                at = consider((at.0, share));
            }
            for share in steps() {
                at = consider((share, at.1));
            }
        }
        for d in [2, 1, -1, -2] {
            at = consider((at.0, (at.1 + d).clamp(5, 100)));
            at = consider(((at.0 + d).clamp(5, 100), at.1));
        }
        (min * (at.0 as f32 / 100.0), max * (at.1 as f32 / 100.0))
    }
}

/// Affine parameters of a value: `q = clamp(round(x / scale) + zero_point)` with unsigned (asymmetric) or signed
/// (symmetric, zero point 0) 8-bit codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationQuant {
    pub scale: f32,
    pub zero_point: i32,
    pub symmetry: Symmetry,
    /// 8 or 16.
    pub bits: u32,
}

impl ActivationQuant {
    /// Parameters for the range `lo..=hi` at 8 or 16 bits. A range too narrow for a scale gives scale 1 and zero point 0.
    pub fn of(lo: f32, hi: f32, symmetry: Symmetry, bits: u32) -> Self {
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        // In f64: hi − lo may overflow, and the zero point of an even range must not hang on a rounding.
        let (low, high) = (f64::from(lo), f64::from(hi));
        let (scale, zero_point) = match symmetry {
            Symmetry::Asymmetric => {
                let codes = f64::from((1_u32 << bits) - 1);
                let scale = (high - low) / codes;
                (scale, (-low / scale).round_ties_even().clamp(0.0, codes))
            }
            Symmetry::Symmetric => {
                let most = f64::from((1_u32 << (bits - 1)) - 1);
                (high.max(-low) / most, 0.0)
            }
        };
        let scale = scale as f32;
        if scale < f32::MIN_POSITIVE || !scale.is_finite() {
            return Self {
                scale: 1.0,
                zero_point: 0,
                symmetry,
                bits,
            };
        }
        Self {
            scale,
            zero_point: zero_point as i32,
            symmetry,
            bits,
        }
    }

    /// Codes counted from the zero point.
    fn range(self) -> super::weights::CodeRange {
        let (lo, hi) = match self.symmetry {
            Symmetry::Asymmetric => (-self.zero_point, (1 << self.bits) - 1 - self.zero_point),
            Symmetry::Symmetric => (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1),
        };
        super::weights::CodeRange { lo, hi }
    }

    /// Code of a value, counted from the zero point.
    fn code(self, value: f32) -> f32 {
        super::weights::code(value, self.scale, self.range())
    }

    /// Values of the outermost codes.
    pub fn reach(self) -> [f32; 2] {
        let range = self.range();
        [range.lo as f32 * self.scale, range.hi as f32 * self.scale]
    }

    /// Squared error over (value, count) pairs.
    pub(super) fn error(self, centres: &[(f32, f32)]) -> f64 {
        let range = self.range();
        centres
            .iter()
            .map(|&(value, count)| {
                let error = value - super::weights::code(value, self.scale, range) * self.scale;
                f64::from(error * error) * f64::from(count)
            })
            .sum()
    }
}

#[cfg(test)]
#[path = "histogram_tests.rs"]
mod tests;
