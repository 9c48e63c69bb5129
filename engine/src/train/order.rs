//! The order in which training samples come.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// Sample indices in seeded order: one random permutation after the other.
pub(super) struct Order {
    rng: ChaCha8Rng,
    indices: Vec<u32>,
    next: usize,
}

/// An [`Order`] without its seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct OrderState {
    /// Words that were drawn of the seed's random sequence.
    pub drawn: u128,
    pub indices: Vec<u32>,
    pub next: usize,
}

impl Order {
    pub fn new(seed: u64, samples: usize) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            indices: (0..samples as u32).collect(),
            next: samples,
        }
    }

    pub fn take(&mut self, count: usize) -> Vec<usize> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            if self.next == self.indices.len() {
                self.indices.shuffle(&mut self.rng);
                self.next = 0;
            }
            let end = self.indices.len().min(self.next + count - taken.len());
            taken.extend(self.indices[self.next..end].iter().map(|i| *i as usize));
            self.next = end;
        }
        taken
    }

    pub fn state(&self) -> OrderState {
        OrderState {
            drawn: self.rng.get_word_pos(),
            indices: self.indices.clone(),
            next: self.next,
        }
    }

    /// Goes on from `state`, which an order of the same seed and number of samples was in; false where it does not fit.
    pub fn restore(&mut self, state: &OrderState) -> bool {
        let mut sorted = state.indices.clone();
        sorted.sort_unstable();
        let fits = sorted.iter().copied().eq(0..self.indices.len() as u32)
            && state.next <= state.indices.len();
        if fits {
            self.rng.set_word_pos(state.drawn);
            self.indices.clone_from(&state.indices);
            self.next = state.next;
        }
        fits
    }
}
