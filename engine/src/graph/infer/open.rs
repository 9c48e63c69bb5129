//! Sizes for what a model's inputs leave open beside the batch: lengths of sequences, heights and widths of images.

use crate::graph::{Dim, Graph};
use std::collections::BTreeMap;

/// The i-th open extent is at s samples a multiple of the (2i + s − 2)-th of these: three in a row are neither as 1 to 2 to 3 nor as far apart,
/// so that only what counts samples grows like them, and no two extents are alike.
const PRIMES: [usize; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];

/// Multiples, the likeliest first: of sequences, of those with few positions, of images, of waveforms.
const SCALES: [usize; 4] = [8, 1, 128, 4096];

/// Sizes at which a graph can be looked at: another one at each number of samples, so that what is the same at all of them depends on
/// nothing that is fed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenSizes(usize);

impl OpenSizes {
    /// The first at which the most shapes follow: too short ones leave convolutions nothing, too long ones do not fit a table of positions.
    pub fn of(graph: &Graph) -> Self {
        Self::most(graph, |known, most| known > most)
    }

    fn most(graph: &Graph, better: impl Fn(usize, usize) -> bool) -> Self {
        let at = |scale| {
            let mut open = false;
            let known = [1, 2, 3].map(|samples| {
                let mut bound = graph.clone();
                open |= bind(&mut bound, samples, scale);
                let known = bound.values.iter().filter(|v| v.known_shape().is_some());
                known.count()
            });
            (open, known.iter().sum())
        };
        let (open, mut most) = at(SCALES[0]);
        let mut best = SCALES[0];
        for scale in SCALES.into_iter().skip(1).filter(|_| open) {
            let (_, known) = at(scale);
            if better(known, most) {
                (best, most) = (scale, known);
            }
        }
        Self(best)
    }

    /// The least there are, and far larger ones: what is cut off at a size, or has shrunk to one place, shows.
    pub fn extremes(self) -> [Self; 2] {
        [Self(0), Self(self.0 * 64)]
    }

    /// Gives the batch and every other open extent of the inputs a size, with the symbol it bears wherever that occurs, and infers shapes.
    pub fn bind(self, graph: &mut Graph, samples: usize) {
        bind(graph, samples, self.0);
    }
}

impl Graph {
    /// This graph for one sample and at some size of everything else that is open, a large one where there is a choice.
    pub(crate) fn at_some_size(&self) -> Self {
        let mut bound = self.clone();
        OpenSizes::most(self, |known, most| known >= most).bind(&mut bound, 1);
        bound
    }
}

/// Whether anything but the batch was open.
fn bind(graph: &mut Graph, samples: usize, scale: usize) -> bool {
    graph.bind_batch(samples);
    let mut found = 0;
    let mut size = || {
        let prime = PRIMES[(2 * found + samples - 1) % PRIMES.len()];
        found += 1;
        (prime * scale).max(1)
    };
    let mut sizes = BTreeMap::new();
    for id in graph.inputs.clone() {
        for dim in graph.value_mut(id).shape.iter_mut().flatten() {
            match dim {
                Dim::Symbol(name) => {
                    sizes.entry(name.to_string()).or_insert_with(&mut size);
                }
                Dim::Unknown => *dim = Dim::Known(size()),
                Dim::Known(_) => {}
            }
        }
    }
    if found > 0 {
        graph.bind_symbols(&sizes);
    }
    found > 0
}
