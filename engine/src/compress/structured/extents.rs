//! Extents of everything that a graph computes, tried out: for one sample, for two and for three, and with everything else that its inputs leave
//! open at another size each time. What is the same each time, and at the least sizes and far larger ones, depends on neither.

use crate::graph::{Graph, OpenSizes, ValueId};

type Shapes = Vec<Option<Vec<usize>>>;

pub(super) struct Extents {
    sizes: OpenSizes,
    shapes: [Shapes; 3],
    extremes: [Shapes; 2],
}

impl Extents {
    pub fn of(graph: &Graph) -> Self {
        let sizes = OpenSizes::of(graph);
        Self {
            sizes,
            shapes: [1, 2, 3].map(|samples| shapes(graph, sizes, samples)),
            extremes: sizes.extremes().map(|sizes| shapes(graph, sizes, 1)),
        }
    }

    /// For up to three samples.
    pub fn shape(&self, value: ValueId, samples: usize) -> Option<&[usize]> {
        self.shapes[samples - 1].get(value.0 as usize)?.as_deref()
    }

    /// One extent for one sample, for two and for three.
    pub fn along(&self, value: ValueId, axis: usize) -> Option<[usize; 3]> {
        let of = |samples| self.shape(value, samples)?.get(axis).copied();
        Some([of(1)?, of(2)?, of(3)?])
    }

    /// Whether an extent is the same whatever is fed; `None` where it does not follow.
    pub fn is_constant(&self, value: ValueId, axis: usize) -> Option<bool> {
        let [one, two, three] = self.along(value, axis)?;
        // Where nothing follows the sizes do not fit the network.
        let same = |shapes: &Shapes| {
            let shape = shapes.get(value.0 as usize).and_then(Option::as_ref);
            shape.is_none_or(|shape| shape.get(axis) == Some(&one))
        };
        Some(one == two && two == three && self.extremes.iter().all(same))
    }

    /// The graph with the sizes that were tried for so many samples.
    pub fn bound(&self, graph: &Graph, samples: usize) -> Graph {
        let mut graph = graph.clone();
        self.sizes.bind(&mut graph, samples);
        graph
    }
}

fn shapes(graph: &Graph, sizes: OpenSizes, samples: usize) -> Shapes {
    let mut bound = graph.clone();
    sizes.bind(&mut bound, samples);
    // What a file states of values in between may be of another batch: it counts only where nothing follows.
    let mut follows = bound.clone();
    for value in graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()) {
        follows.value_mut(*value).shape = None;
    }
    follows.infer_shapes();
    let each = follows.values.iter().zip(&bound.values);
    each.map(|(follows, stated)| follows.known_shape().or_else(|| stated.known_shape()))
        .collect()
}
