//! Which samples a cell is shown, in which order, and what is known after some of them.
//!
//! A sample changes its class only where a candidate moves the logits further than the original's margin between the first class and the
//! next. So those of the smallest margin come first, which are the likeliest to change, together with some spread over the rest,
//! which stand for it. How likely each of the samples not run is to change is told from its margin and from how far the logits moved on
//! those that were (a model-assisted estimate: Särndal, Swensson and Wretman 1992, "Model Assisted Survey Sampling"): it is taken that both are
//! of one kind.

use super::Settled;
use crate::eval::paired_drop;

/// Samples of the first look at least, and at most.
const FIRST: [usize; 2] = [12, 64];

/// Looking again and again until an interval lies beyond a limit finds one too often: for this it is taken half as wide again.
const MANY_LOOKS: f64 = 1.5;

/// What the samples not run leave open of a drop may always be this much: half a point.
const NARROW: f64 = 0.005;

/// 0.975 quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The order of the samples, and where to stop and look.
pub(super) struct Looks {
    /// Place of each sample in the order of margins.
    rank: Vec<usize>,
    /// Margin of the sample at each place, ascending.
    margins: Vec<f64>,
    /// Whether the original is right about the sample at each place.
    right: Vec<bool>,
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
    /// Another class than the original's.
    pub changed: bool,
    /// Right before minus right now: 1 lost, −1 gained.
    pub lost: i8,
}

/// What is known of a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Known {
    /// Over all samples: counted on those seen, expected of the others.
    pub drop: f64,
    pub ci: [f64; 2],
    pub divergence: f64,
    /// Half of the 95 % interval about the drop that all samples would show: what those not run leave open.
    pub open: f64,
    /// Why no more need be seen; `None` where they do.
    pub settled: Option<Settled>,
}

impl Looks {
    /// For samples whose logit margins are `margins`, in their order; the original is right about some of them.
    pub fn new(margins: &[f32], right: &[bool]) -> Self {
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
            right: order.iter().map(|s| right[*s]).collect(),
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

    /// What is known of a cell after a look, from all samples `seen` by then. Exact after the last look. Settled
    /// where what the others leave open is no more than half a point or than what chance leaves open with all samples run, or where the drop lies
    /// beyond `too_much` (a fraction) even by the lower end of an interval half as wide again.
    pub fn judge(&self, look: usize, seen: &[Seen], too_much: f64) -> Known {
        let stage = &self.stages[look];
        let count = self.margins.len();
        let of = |what: i8| seen.iter().filter(|s| s.lost == what).count() as u64;
        let (lost, gained) = (of(1), of(-1));
        let (low, far): (Vec<&Seen>, Vec<&Seen>) =
            seen.iter().partition(|s| self.rank[s.sample] < stage.low);
        debug_assert_eq!((low.len(), far.len()), (stage.low, stage.spread));
        let divergence = |seen: &[&Seen]| seen.iter().map(|s| s.divergence).sum::<f64>();
        if seen.len() == count {
            let paired = paired_drop(lost, gained, count as u64);
            return Known {
                drop: paired.drop,
                ci: paired.ci,
                divergence: divergence(&low) / count as f64,
                open: 0.0,
                settled: Some(Settled::All),
            };
        }
        // Each of the spread ones stands for so many of the rest.
        let weight = (count - stage.low) as f64 / (far.len() as f64).max(1.0);
        let divergence = (divergence(&low) + weight * divergence(&far)) / count as f64;
        let rest = self.rest(seen, gained);
        let (lost, gained) = (lost as f64 + rest.lost, gained as f64 + rest.gained);
        let drop = (lost - gained) / count as f64;
        // What chance would leave open with all samples run.
        let whole = |expected: f64| expected.round() as u64;
        let paired = paired_drop(whole(lost), whole(gained), count as u64);
        let chance = (paired.ci[1] - paired.ci[0]) / 2.0;
        let open = Z * rest.variance.sqrt() / count as f64;
        let down = (paired.drop - paired.ci[0]).hypot(open);
        let up = (paired.ci[1] - paired.drop).hypot(open);
        let ci = [(drop - down).clamp(-1.0, drop), (drop + up).min(1.0)];
        let cautious = drop - MANY_LOOKS * down;
        let settled = if open <= NARROW.max(chance) {
            Some(Settled::Narrow)
        } else {
            (cautious > too_much).then_some(Settled::TooMuch)
        };
        Known {
            drop,
            ci,
            divergence,
            open,
            settled,
        }
    }

    /// What is expected of the samples not run. The shift of each is taken to lie about a line in its margin, fitted to those seen, with the tails
    /// of Laplace's distribution, heavier than a normal one's: it changes its class where the shift exceeds the margin. So many more or fewer
    /// change as did of those seen, beside what the same would have told of them.
    fn rest(&self, seen: &[Seen], gained: u64) -> Rest {
        let places: Vec<(usize, &Seen)> = seen.iter().map(|s| (self.rank[s.sample], s)).collect();
        let points: Vec<(f64, f64)> = places
            .iter()
            .map(|(place, s)| (self.margins[*place], s.shift.clamp(-FAR, FAR)))
            .collect();
        let line = Line::through(&points);
        let chance = |place: usize| line.beyond(self.margins[place]);
        let told: f64 = places.iter().map(|(place, _)| chance(*place)).sum();
        let changed = seen.iter().filter(|s| s.changed).count() as f64;
        let ratio = (changed + 1.0) / (told + 1.0);
        // Of the wrong ones that change, those that become right.
        let wrong = |(place, s): &&(usize, &Seen)| s.changed && !self.right[*place];
        let wrong = places.iter().filter(wrong).count() as f64;
        let become_right = (gained as f64 + 0.25) / (wrong + 1.0);
        let mut ran = vec![false; self.margins.len()];
        places.iter().for_each(|(place, _)| ran[*place] = true);
        let (mut of_right, mut of_wrong, mut single) = (0.0, 0.0, 0.0);
        for place in (0..ran.len()).filter(|place| !ran[*place]) {
            let change = (ratio * chance(place)).min(1.0);
            single += change * (1.0 - change);
            if self.right[place] {
                of_right += change;
            } else {
                of_wrong += change;
            }
        }
        // The ratio is told by counting changes: as uncertain as a count is.
        let total = of_right + of_wrong;
        Rest {
            lost: of_right,
            gained: become_right * of_wrong,
            variance: single + total * total / (changed + 1.0),
        }
    }
}

/// Shifts beyond this are all the same, so that sums stay finite.
const FAR: f64 = 1e6;

/// What is expected of samples not run: how many are lost and gained, and the variance of their difference.
struct Rest {
    lost: f64,
    gained: f64,
    variance: f64,
}

/// Shifts of the margin by margins: a line and the spread about it.
struct Line {
    margin: f64,
    shift: f64,
    slope: f64,
    spread: f64,
}

impl Line {
    /// Through (margin, shift) by least squares, its slope shrunk by as much as it is uncertain and the spread wider by the standard
    /// error of one told from so few.
    fn through(points: &[(f64, f64)]) -> Self {
        let n = points.len().max(1) as f64;
        let mean = |value: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / n;
        let (margin, shift) = (mean(&|p| p.0), mean(&|p| p.1));
        let squares: f64 = points.iter().map(|p| (p.0 - margin).powi(2)).sum();
        let product: f64 = points.iter().map(|p| (p.0 - margin) * (p.1 - shift)).sum();
        let about = |slope: f64| -> f64 {
            let off = |p: &(f64, f64)| (p.1 - shift - slope * (p.0 - margin)).powi(2);
            points.iter().map(off).sum::<f64>() / (n - 2.0).max(1.0)
        };
        let steep = product / squares;
        let uncertain = 2.0 * about(steep) / squares / (steep * steep);
        let slope = match steep * (1.0 - uncertain).max(0.0) {
            slope if slope.is_finite() => slope,
            _ => 0.0,
        };
        Self {
            margin,
            shift,
            slope,
            spread: about(slope).sqrt() * (1.0 + 1.0 / (2.0 * n).sqrt()),
        }
    }

    /// Chance that the shift exceeds a margin.
    fn beyond(&self, margin: f64) -> f64 {
        let way = margin - self.shift - self.slope * (margin - self.margin);
        let tail = 0.5 * (-std::f64::consts::SQRT_2 * way.abs() / self.spread.max(1e-12)).exp();
        if way > 0.0 { tail } else { 1.0 - tail }
    }
}

/// Looks over samples in the order of their margins: a third of the first look's samples are the lowest, the others spread over all (the
/// divergence is told from these); then three quarters of what is added are the next, and the looks grow by half of what is seen.
fn stages(order: &[usize]) -> Vec<Stage> {
    let count = order.len();
    let first = (count / 14).clamp(FIRST[0], FIRST[1]);
    let mut taken = vec![false; count];
    let mut far = spread_over(count).into_iter();
    let mut stages = Vec::new();
    let (mut low, mut near, mut others) = (0, first / 3, first - first / 3);
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
                changed: shift > f64::from(*margin),
                lost: i8::from(shift > f64::from(*margin)),
            }
        };
        margins.iter().enumerate().map(outcome).collect()
    }

    const TOO_MUCH: f64 = 0.05;

    /// The original is right about all of them.
    fn looks(margins: &[f32]) -> Looks {
        Looks::new(margins, &vec![true; margins.len()])
    }

    fn walk(looks: &Looks, all: &[Seen]) -> (usize, Known) {
        let mut seen = Vec::new();
        for look in 0..looks.len() {
            seen.extend(looks.fresh(look).iter().map(|s| all[*s]));
            let known = looks.judge(look, &seen, TOO_MUCH);
            if known.settled.is_some() {
                return (seen.len(), known);
            }
        }
        unreachable!("the last look settles")
    }

    proptest! {
        #[test]
        fn every_sample_is_run_once(count in 1usize..700) {
            let looks = looks(&margins(count));
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
        let looks = looks(&margins);
        let all = outcomes(&margins, |s| 0.02 * ((s % 5) as f64 - 2.0));
        let (n, known) = walk(&looks, &all);
        assert_eq!(n, 64);
        let lost = all.iter().filter(|s| s.lost == 1).count();
        assert!(lost > 0);
        assert!(
            (known.drop - lost as f64 / 1000.0).abs() < 1e-3,
            "{known:?}"
        );
        assert_eq!(known.settled, Some(Settled::Narrow));
        let exact = paired_drop(lost as u64, 0, 1000);
        assert!(known.ci[0] <= exact.drop && known.ci[1] >= exact.drop);
        let width = |ci: [f64; 2]| ci[1] - ci[0];
        assert!(width(known.ci) > 0.8 * width(exact.ci), "{known:?}");
    }

    #[test]
    fn a_ruinous_one_is_settled_by_its_interval() {
        let margins = margins(1000);
        let looks = looks(&margins);
        let all = outcomes(&margins, |s| 4.0 + (s % 3) as f64);
        let (n, known) = walk(&looks, &all);
        assert!(n <= 128, "{n}");
        // Five eighths of the samples have a margin below what they lose on average.
        assert!(
            known.ci[0] > TOO_MUCH && known.ci[0] < 0.62 && known.ci[1] > 0.62,
            "{known:?}"
        );
        assert!(
            known.settled == Some(Settled::TooMuch) || known.open <= 0.05,
            "{known:?}"
        );
        // More samples where even such a drop may be of use.
        let seen: Vec<Seen> = looks.fresh(0).iter().map(|s| all[*s]).collect();
        let settled = |too_much| looks.judge(0, &seen, too_much).settled;
        assert_eq!(
            (settled(0.05), settled(0.95)),
            (Some(Settled::TooMuch), None)
        );
    }

    #[test]
    fn one_in_between_is_looked_at_for_longer_and_the_last_look_is_exact() {
        let margins = margins(400);
        let looks = looks(&margins);
        // A few samples go far, of any margin, one of the first look's among them: their kind may be among those not run.
        let first = looks.fresh(0)[0];
        let far = |s| s == first || s % 67 == 3;
        let all = outcomes(&margins, |s| if far(s) { 9.0 } else { 0.0 });
        let (n, known) = walk(&looks, &all);
        assert!(n > looks.fresh(0).len(), "{n}");
        let lost = all.iter().filter(|s| s.lost == 1).count() as u64;
        let p = paired_drop(lost, 0, 400);
        assert!(known.ci[0] <= p.drop && p.drop <= known.ci[1], "{known:?}");
        let last = looks.judge(looks.len() - 1, &all, TOO_MUCH);
        assert_eq!((last.drop, last.ci, last.open), (p.drop, p.ci, 0.0));
        assert_eq!(last.settled, Some(Settled::All));
    }

    #[test]
    fn what_wrong_samples_change_is_not_lost() {
        let margins = margins(1000);
        // Right where the margin is large: most changes are of samples that were wrong and stay so.
        let right: Vec<bool> = margins.iter().map(|m| *m > 2.0).collect();
        let looks = Looks::new(&margins, &right);
        let all: Vec<Seen> = outcomes(&margins, |s| (s % 5) as f64 * 0.6)
            .into_iter()
            .map(|mut s| {
                s.lost = i8::from(s.changed && right[s.sample]);
                s
            })
            .collect();
        let exact = all.iter().filter(|s| s.lost == 1).count() as f64 / 1000.0;
        let (n, known) = walk(&looks, &all);
        assert!(n < 500, "{n}");
        assert!(
            (known.drop - exact).abs() <= known.open,
            "{known:?} {exact}"
        );
        // Taking all changes for lost would be far off.
        let changes = all.iter().filter(|s| s.changed).count() as f64 / 1000.0;
        assert!(changes > known.ci[1], "{changes} {known:?}");
    }

    #[test]
    fn the_divergence_of_all_is_told_from_the_spread_ones() {
        let margins = margins(1000);
        let looks = looks(&margins);
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
        let looks = looks(&margins);
        let met = |s: usize| looks.fresh(0).contains(&s);
        let all = outcomes(
            &margins,
            |s| if s % 100 == 7 && !met(s) { 9.0 } else { 0.0 },
        );
        let (n, known) = walk(&looks, &all);
        let lost = all.iter().filter(|s| s.lost == 1).count();
        assert!(lost > 5 && n < 1000 && known.drop == 0.0, "{n} {known:?}");
    }

    /// Candidates of all strengths whose shifts have heavy tails (Laplace, and Student's t of 3 degrees of freedom) and grow with the margin:
    /// what a settled cell leaves open holds the drop that all samples show as often as it says, early as it may stop.
    #[test]
    fn settled_cells_are_right() {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let margins: Vec<f32> = (0..500)
            .map(|_| (rng.random::<f32>() * 3.0).exp2() - 1.0)
            .collect();
        let right: Vec<bool> = (0..500).map(|_| rng.random::<f32>() < 0.75).collect();
        let looks = Looks::new(&margins, &right);
        let (mut short, mut held, mut open, mut run, mut bias) = (0, 0, 0, 0, 0.0);
        for trial in 0..600 {
            let scale = 10f64.powf(-2.5 + f64::from(trial) / 195.0);
            let mut uniform = || rng.random::<f64>().max(1e-12);
            let all = outcomes(&margins, |_| 0.0)
                .into_iter()
                .map(|mut s| {
                    let sign = if uniform() < 0.5 { -1.0 } else { 1.0 };
                    let normal =
                        |u: f64, v: f64| (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
                    let noise = if trial % 2 == 0 {
                        -uniform().ln() * sign
                    } else {
                        let mut square = || normal(uniform(), uniform()).powi(2);
                        let three = (square() + square() + square()) / 3.0;
                        normal(uniform(), uniform()) / three.sqrt()
                    };
                    let margin = f64::from(margins[s.sample]);
                    s.shift = scale * (noise + 0.2 * margin);
                    s.changed = s.shift > margin;
                    let stays_wrong = uniform() < 0.9;
                    s.lost = match (s.changed, right[s.sample]) {
                        (true, true) => 1,
                        (true, false) if !stays_wrong => -1,
                        _ => 0,
                    };
                    s
                })
                .collect::<Vec<_>>();
            let (n, known) = walk(&looks, &all);
            let exact = all.iter().map(|s| f64::from(s.lost)).sum::<f64>() / 500.0;
            run += n;
            if n == 500 {
                continue;
            }
            short += 1;
            held += usize::from(known.ci[0] <= exact && exact <= known.ci[1]);
            open += usize::from((known.drop - exact).abs() <= known.open);
            bias += known.drop - exact;
        }
        assert!(short > 550, "{short} of 600 cells were settled early");
        assert!(run < 600 * 500 / 3, "{run} of {}", 600 * 500);
        assert!(held * 100 >= short * 98, "{held} of {short}");
        assert!(open * 100 >= short * 95, "{open} of {short}");
        assert!((bias / short as f64).abs() < 0.003, "{bias} over {short}");
    }
}
