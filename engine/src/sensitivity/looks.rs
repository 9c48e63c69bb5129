//! Which samples a cell is shown, in which order, and what is known after some of them.
//!
//! A sample changes its class only where a candidate moves the logits further than the original's margin between the first class and the
//! next. So those of the smallest margin come first, which are the likeliest to change, together with some spread over the rest,
//! which stand for it. What the samples not run may still add is bounded by how far the logits moved on those that were: it is taken that
//! both are of one kind.

use crate::eval::{PairedDrop, paired_drop};

/// Samples of the first look at most, and at least.
const FIRST: [usize; 2] = [16, 64];

/// A drop whose whole interval lies beyond this is settled: no plan will want the cell.
const TOO_MUCH: f64 = 0.02;

/// Looking again and again until an interval lies beyond a limit finds one too often: for this it is taken half as wide again.
const MANY_LOOKS: f64 = 1.5;

/// Share of samples that those not run may change at most for a cell to be settled: half a point, or half of what chance leaves open
/// with all samples run.
const NARROW: f64 = 0.005;

/// 0.975 quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The order of the samples, and where to stop and look.
pub(super) struct Looks {
    /// Place of each sample in the order of margins.
    rank: Vec<usize>,
    /// Margin of the sample at each place, ascending.
    margins: Vec<f64>,
    stages: Vec<Stage>,
}

/// One look.
struct Stage {
    /// Samples run for it, by number.
    fresh: Vec<usize>,
    /// All places before this one have been seen.
    low: usize,
    /// Places seen beyond it.
    spread: usize,
}

/// One sample under a candidate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub sample: usize,
    /// KL(original ‖ candidate), nats.
    pub divergence: f64,
    /// By how much the logit margin of the original's class shrank.
    pub shift: f64,
    /// Right before minus right now: 1 lost, −1 gained.
    pub lost: i8,
}

/// What is known of a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Known {
    pub drop: f64,
    pub ci: [f64; 2],
    pub divergence: f64,
    /// Nothing that more samples could change matters.
    pub settled: bool,
}

impl Looks {
    /// For samples whose logit margins are `margins`, in their order.
    pub fn new(margins: &[f32]) -> Self {
        let count = margins.len();
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|a, b| margins[*a].total_cmp(&margins[*b]).then(a.cmp(b)));
        let mut rank = vec![0; count];
        for (place, sample) in order.iter().enumerate() {
            rank[*sample] = place;
        }
        Self {
            rank,
            margins: order.iter().map(|s| f64::from(margins[*s])).collect(),
            stages: stages(&order),
        }
    }

    pub fn len(&self) -> usize {
        self.stages.len()
    }

    /// Samples that a look adds, by number.
    pub fn fresh(&self, look: usize) -> &[usize] {
        &self.stages[look].fresh
    }

    /// What is known of a cell after a look, from all samples `seen` by then. Exact after the last look.
    pub fn judge(&self, look: usize, seen: &[Seen]) -> Known {
        let stage = &self.stages[look];
        let count = self.margins.len();
        let (low, far): (Vec<&Seen>, Vec<&Seen>) =
            seen.iter().partition(|s| self.rank[s.sample] < stage.low);
        debug_assert_eq!((low.len(), far.len()), (stage.low, stage.spread));
        let of = |seen: &[&Seen], what: i8| seen.iter().filter(|s| s.lost == what).count() as u64;
        let divergence = |seen: &[&Seen]| seen.iter().map(|s| s.divergence).sum::<f64>();
        let paired = paired_drop(of(&low, 1), of(&low, -1), count as u64);
        let rest = count - stage.low;
        if rest == 0 {
            return Known {
                drop: paired.drop,
                ci: paired.ci,
                divergence: divergence(&low) / count as f64,
                settled: true,
            };
        }
        // Each of the spread ones stands for so many of the rest.
        let weight = rest as f64 / (far.len() as f64).max(1.0);
        let divergence = (divergence(&low) + weight * divergence(&far)) / count as f64;
        let unseen = self.unseen(stage, seen);
        let changed = of(&far, 1) + of(&far, -1);
        let (drop, ci) = if changed == 0 {
            (paired.drop, [paired.ci[0] - unseen, paired.ci[1] + unseen])
        } else {
            extrapolated(&paired, of(&far, 1), of(&far, -1), far.len(), rest, count)
        };
        let ci = [ci[0].clamp(-1.0, drop), ci[1].clamp(drop, 1.0)];
        let narrow = NARROW.max((paired.ci[1] - paired.ci[0]) / 4.0);
        let cautious = drop - MANY_LOOKS * (drop - ci[0]);
        Known {
            drop,
            ci,
            divergence,
            settled: (changed == 0 && unseen <= narrow) || cautious > TOO_MUCH,
        }
    }

    /// A bound on the share of all samples that change their class among those not run, by the moments of the shifts seen:
    /// for each the smaller of Cantelli's inequality and that of the fourth moment.
    fn unseen(&self, stage: &Stage, seen: &[Seen]) -> f64 {
        let n = seen.len().max(1) as f64;
        let mean = seen.iter().map(|s| s.shift).sum::<f64>() / n;
        let moment = |power| {
            seen.iter()
                .map(|s| (s.shift - mean).powi(power))
                .sum::<f64>()
                / n
        };
        let (second, fourth) = (moment(2), moment(4));
        if !(second.is_finite() && fourth.is_finite()) {
            return 1.0;
        }
        let mut ran = vec![false; self.margins.len()];
        seen.iter().for_each(|s| ran[self.rank[s.sample]] = true);
        let beyond = |margin: f64| {
            let way = margin - mean;
            if way <= 0.0 {
                return 1.0;
            }
            let cantelli = second / (second + way * way);
            cantelli.min(fourth / way.powi(4))
        };
        let places = stage.low..self.margins.len();
        let sum: f64 = places
            .filter(|place| !ran[*place])
            .map(|place| beyond(self.margins[place]))
            .sum();
        sum / self.margins.len() as f64
    }
}

/// The drop over all samples, `low` of which are known one by one and the rest by a sample of `far`. Its interval adds up the variance of the
/// paired difference and that of the extrapolation (Cochran 1977, "Sampling Techniques", chapter 5), the latter with one change and
/// two samples added, so that few samples are not taken for certain.
fn extrapolated(
    low: &PairedDrop,
    lost: u64,
    gained: u64,
    far: usize,
    rest: usize,
    count: usize,
) -> (f64, [f64; 2]) {
    let (far, share) = (far as f64, rest as f64 / count as f64);
    let mean = (lost as f64 - gained as f64) / far;
    let drop = low.drop + share * mean;
    let half = (low.ci[1] - low.ci[0]) / 2.0;
    let changes = ((lost + gained) as f64 + 1.0) / (far + 2.0);
    let spread = (changes - mean * mean).max(changes / far) / far;
    let half = ((half / Z).powi(2) + share * share * spread).sqrt() * Z;
    (drop, [drop - half, drop + half])
}

/// Looks over samples in the order of their margins: half of the first look's samples are the lowest, half spread over all; then
/// three quarters of what is added are the next, and the looks grow by half of what is seen.
fn stages(order: &[usize]) -> Vec<Stage> {
    let count = order.len();
    let first = (count / 10).clamp(FIRST[0], FIRST[1]) / 2 * 2;
    let mut taken = vec![false; count];
    let mut far = spread_over(count).into_iter();
    let mut stages = Vec::new();
    let (mut low, mut near, mut others) = (0, first / 2, first / 2);
    while low < count {
        let mut fresh = Vec::with_capacity(near + others);
        while others > 0 {
            let Some(place) = far.next() else { break };
            if place >= low && !taken[place] {
                taken[place] = true;
                fresh.push(order[place]);
                others -= 1;
            }
        }
        while low < count && (near > 0 || taken[low]) {
            if !taken[low] {
                taken[low] = true;
                fresh.push(order[low]);
                near -= 1;
            }
            low += 1;
        }
        // No look for the sake of a few samples.
        if count - low <= first {
            for place in low..count {
                if !taken[place] {
                    fresh.push(order[place]);
                }
            }
            low = count;
        }
        let spread = taken[low..].iter().filter(|t| **t).count();
        stages.push(Stage { fresh, low, spread });
        let more = first.max(low / 2);
        (near, others) = (more - more / 4, more / 4);
    }
    stages
}

/// The places 0..count so that any first few of them lie evenly (van der Corput's sequence).
fn spread_over(count: usize) -> Vec<usize> {
    let bits = usize::BITS - count.leading_zeros();
    let mut seen = vec![false; count];
    (0..1usize << bits)
        .map(|i| {
            let turned = i.reverse_bits() >> (usize::BITS - bits);
            (turned * count) >> bits
        })
        .filter(|place| !std::mem::replace(&mut seen[*place], true))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn margins(count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| (i * 7919 % count) as f32 / count as f32 * 8.0)
            .collect()
    }

    /// Every sample's outcome under a shift that is the same for all.
    fn outcomes(margins: &[f32], shift: impl Fn(usize) -> f64) -> Vec<Seen> {
        let outcome = |(sample, margin): (usize, &f32)| {
            let shift = shift(sample);
            Seen {
                sample,
                divergence: shift * shift,
                shift,
                lost: i8::from(shift > f64::from(*margin)),
            }
        };
        margins.iter().enumerate().map(outcome).collect()
    }

    fn walk(looks: &Looks, all: &[Seen]) -> (usize, Known) {
        let mut seen = Vec::new();
        for look in 0..looks.len() {
            seen.extend(looks.fresh(look).iter().map(|s| all[*s]));
            let known = looks.judge(look, &seen);
            if known.settled {
                return (seen.len(), known);
            }
        }
        unreachable!("the last look settles")
    }

    proptest! {
        #[test]
        fn every_sample_is_run_once(count in 1usize..700) {
            let looks = Looks::new(&margins(count));
            let mut all: Vec<usize> = (0..looks.len()).flat_map(|l| looks.fresh(l).to_vec()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..count).collect::<Vec<_>>());
            prop_assert_eq!(looks.stages.last().map(|s| (s.low, s.spread)), Some((count, 0)));
        }

        #[test]
        fn places_are_spread(count in 1usize..700) {
            let mut places = spread_over(count);
            if count >= 64 {
                let mut few = places[..16].to_vec();
                few.sort_unstable();
                let gap = few.windows(2).map(|w| w[1] - w[0]).max();
                prop_assert!(gap <= Some(count / 16 + 1), "{:?}", few);
            }
            places.sort_unstable();
            prop_assert_eq!(places, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_harmless_candidate_is_settled_by_the_samples_nearest_to_flipping() {
        let margins = margins(1000);
        let looks = Looks::new(&margins);
        let all = outcomes(&margins, |s| 0.02 * ((s % 5) as f64 - 2.0));
        let (n, known) = walk(&looks, &all);
        assert_eq!(n, 64);
        let lost = all.iter().filter(|s| s.lost == 1).count();
        assert!(lost > 0);
        assert_eq!(known.drop, lost as f64 / 1000.0);
        let exact = paired_drop(lost as u64, 0, 1000);
        assert!(known.ci[0] <= exact.ci[0] && known.ci[1] >= exact.ci[1]);
    }

    #[test]
    fn a_ruinous_one_is_settled_by_its_interval() {
        let margins = margins(1000);
        let looks = Looks::new(&margins);
        let (n, known) = walk(&looks, &outcomes(&margins, |s| 4.0 + (s % 3) as f64));
        assert!(n <= 128, "{n}");
        // Five eighths of the samples have a margin below what they lose on average.
        assert!(
            known.ci[0] > TOO_MUCH && known.ci[0] < 0.62 && known.ci[1] > 0.62,
            "{known:?}"
        );
    }

    #[test]
    fn one_in_between_is_looked_at_to_the_end() {
        let margins = margins(400);
        let looks = Looks::new(&margins);
        // A few samples go far, of any margin, one of the first look's among them: their kind may be among those not run.
        let first = looks.fresh(0)[0];
        let far = |s| s == first || s % 67 == 3;
        let all = outcomes(&margins, |s| if far(s) { 9.0 } else { 0.0 });
        let (n, known) = walk(&looks, &all);
        assert_eq!(n, 400);
        let lost = all.iter().filter(|s| s.lost == 1).count() as u64;
        assert_eq!((known.drop, known.ci), {
            let p = paired_drop(lost, 0, 400);
            (p.drop, p.ci)
        });
    }

    #[test]
    fn the_divergence_of_all_is_told_from_the_spread_ones() {
        let margins = margins(1000);
        let looks = Looks::new(&margins);
        // Twice the divergence where the margin is small.
        let all: Vec<Seen> = outcomes(&margins, |_| 1e-3)
            .into_iter()
            .map(|mut s| {
                s.divergence = if margins[s.sample] < 1.0 { 2e-3 } else { 1e-3 };
                s
            })
            .collect();
        let (n, known) = walk(&looks, &all);
        let exact = all.iter().map(|s| s.divergence).sum::<f64>() / 1000.0;
        assert!(
            n < 100 && (known.divergence - exact).abs() < 0.05 * exact,
            "{known:?} {exact}"
        );
    }

    /// What no sample run shows is missed: the price of stopping early, which documents and screens state. A far shift of one
    /// sample in a hundred, whatever its margin, is found by some looks and not by others.
    #[test]
    fn what_no_sample_shows_is_not_bounded() {
        let margins = margins(1000);
        let looks = Looks::new(&margins);
        let met = |s: usize| looks.fresh(0).contains(&s);
        let all = outcomes(
            &margins,
            |s| if s % 100 == 7 && !met(s) { 9.0 } else { 0.0 },
        );
        let (n, known) = walk(&looks, &all);
        let lost = all.iter().filter(|s| s.lost == 1).count();
        assert!(lost > 5 && n < 1000 && known.drop == 0.0, "{n} {known:?}");
    }

    /// Candidates of all strengths with heavy tails: the interval of a settled cell holds the exact drop, and where it was settled for
    /// being harmless the exact drop is within half a point.
    #[test]
    fn settled_cells_are_right() {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let margins: Vec<f32> = (0..500)
            .map(|_| (rng.random::<f32>() * 3.0).exp2() - 1.0)
            .collect();
        let looks = Looks::new(&margins);
        let (mut short, mut held, mut near, mut harmless) = (0, 0, 0, 0);
        for trial in 0..400 {
            let scale = 10f64.powf(-2.5 + trial as f64 / 130.0);
            let all = outcomes(&margins, |_| 0.0)
                .into_iter()
                .map(|mut s| {
                    let u: f64 = rng.random::<f64>() * 2.0 - 1.0;
                    // Laplace: heavier than normal.
                    s.shift = -scale * u.signum() * (1.0 - u.abs()).max(1e-12).ln();
                    s.lost = i8::from(s.shift > f64::from(margins[s.sample]));
                    s
                })
                .collect::<Vec<_>>();
            let (n, known) = walk(&looks, &all);
            let exact = all.iter().filter(|s| s.lost == 1).count() as f64 / 500.0;
            if n == 500 {
                continue;
            }
            short += 1;
            held += usize::from(known.ci[0] <= exact && exact <= known.ci[1]);
            if known.ci[0] <= TOO_MUCH {
                harmless += 1;
                near += usize::from((known.drop - exact).abs() <= 0.005);
            }
        }
        assert!(short > 150, "{short} of 400 cells were settled early");
        assert!(held * 100 >= short * 95, "{held} of {short}");
        assert!(near * 100 >= harmless * 97, "{near} of {harmless}");
    }
}
