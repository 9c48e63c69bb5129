//! Ranks: the smallest that keeps a share of energy, or for the whole model such that a budget is met. Under a budget the product over all
//! layers of the energy kept is made large (Zhang et al. 2015, §3.3): first by one price for every saved multiply–accumulate or parameter
//! (Lagrange), then what is left of the budget goes to the ranks that gain most for it.

use super::{
    factor::Spectrum,
    form::{Cost, Plan},
};

/// What a layer can become.
pub(super) struct Candidate {
    /// Ranks that save something, from the smallest on, with the energy each loses: −ln of the share kept.
    pub options: Vec<(usize, f64)>,
    pub dense: Cost,
    pub per_rank: Cost,
}

/// The ranks at which a layer costs less than whole, multiples of `round_to`.
pub(super) fn saving_ranks(plan: &Plan, round_to: usize) -> impl Iterator<Item = usize> {
    let (dense, per_rank, step) = (plan.dense, plan.per_rank, round_to.max(1));
    (1_usize..)
        .map(move |i| i * step)
        .take_while(move |rank| per_rank.times(*rank).saves(dense))
}

impl Candidate {
    pub fn new(plan: &Plan, spectrum: &Spectrum, round_to: usize, least: f64) -> Self {
        let options = saving_ranks(plan, round_to)
            .map(|rank| (rank, spectrum.kept(rank)))
            // What a layer must keep is met to the last digit of its share.
            .filter(|(_, kept)| *kept > 0.0 && *kept >= least - 1e-9)
            .map(|(rank, kept)| (rank, -kept.ln()))
            .collect();
        Self {
            options,
            dense: plan.dense,
            per_rank: plan.per_rank,
        }
    }

    /// Loss and cost of one of the options; `None`: the layer whole.
    fn at(&self, option: Option<usize>, price: fn(Cost) -> u64) -> (f64, u64) {
        match option.and_then(|i| self.options.get(i)) {
            Some((rank, loss)) => (*loss, price(self.per_rank.times(*rank))),
            None => (0.0, price(self.dense)),
        }
    }

    /// The option of least loss + λ·cost; the whole layer on ties.
    fn best(&self, lambda: f64, price: fn(Cost) -> u64) -> Option<usize> {
        let value = |option| {
            let (loss, cost) = self.at(option, price);
            loss + lambda * cost as f64
        };
        let mut best = (None, value(None));
        for i in (0..self.options.len()).rev() {
            let here = value(Some(i));
            if here < best.1 {
                best = (Some(i), here);
            }
        }
        best.0
    }

    /// The next larger one.
    fn larger(&self, option: usize) -> Option<usize> {
        Some(option + 1).filter(|i| *i < self.options.len())
    }
}

/// The rank of each candidate (`None`: whole) with which together they cost at most `budget`, or what is the least they can cost.
pub(super) fn within(
    candidates: &[Candidate],
    price: fn(Cost) -> u64,
    budget: u64,
) -> Result<Vec<Option<usize>>, u64> {
    let cost = |chosen: &[Option<usize>]| -> u64 {
        let each = candidates.iter().zip(chosen);
        each.map(|(c, option)| c.at(*option, price).1).sum()
    };
    let by_price = |lambda: f64| -> Vec<Option<usize>> {
        candidates.iter().map(|c| c.best(lambda, price)).collect()
    };
    let cheapest: Vec<Option<usize>> = candidates
        .iter()
        .map(|c| (!c.options.is_empty()).then_some(0))
        .collect();
    if cost(&cheapest) > budget {
        return Err(cost(&cheapest));
    }
    let ranks = |chosen: &[Option<usize>]| -> Vec<Option<usize>> {
        let each = candidates.iter().zip(chosen);
        each.map(|(c, option)| option.and_then(|i| c.options.get(i)).map(|o| o.0))
            .collect()
    };
    let whole = vec![None; candidates.len()];
    if cost(&whole) <= budget {
        return Ok(ranks(&whole));
    }
    // A higher price never costs more. Bisected on its exponent.
    let (mut low, mut high) = (-80.0_f64, 20.0_f64);
    let mut chosen = cheapest;
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        let found = by_price(middle.exp());
        if cost(&found) <= budget {
            high = middle;
            chosen = found;
        } else {
            low = middle;
        }
    }
    // What is left over.
    loop {
        let left = budget - cost(&chosen);
        let gain = |(i, option): (usize, &Option<usize>)| {
            let option = (*option)?;
            let next = candidates[i].larger(option);
            let (loss, now) = candidates[i].at(Some(option), price);
            let (less, then) = candidates[i].at(next, price);
            let more = then.checked_sub(now).filter(|m| *m > 0 && *m <= left)?;
            Some((i, next, (loss - less) / more as f64))
        };
        let found = chosen.iter().enumerate().filter_map(gain);
        match found.max_by(|a, b| a.2.total_cmp(&b.2).then(b.0.cmp(&a.0))) {
            Some((i, next, _)) => chosen[i] = next,
            None => return Ok(ranks(&chosen)),
        }
    }
}
