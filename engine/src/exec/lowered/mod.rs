//! The fast way through a convolutional network: the schedule of a [`super::Program`] for one size of image, on channels-last
//! planes, with batch norms, additions, activations and fake quantisation done by the convolution before them. Images are
//! independent of each other, so a batch is worked through in pieces that stay in the cache, one piece a thread.
//!
//! What does not fit (other operators, values that taps want) runs the general way, operator by operator.

mod backward;
mod batch_norm;
mod build;
mod family;
mod forward;
mod joins;
mod local;
mod weights;

pub use backward::{Gradients, Loss};
pub use batch_norm::BatchStatistics;
pub(super) use build::{Planned, Source, weight_slots};
pub use family::Family;
pub(super) use forward::Spaces;
pub use local::{LocalError, Seed};

use super::kernels::planes::{Plane, Quant, Tail, Window2d};
use super::scalar::Fun;
use batch_norm::Norm;
use weights::{Spec, Weights};

/// Weights packed for both directions.
pub(super) struct TwoWay(Weights);

/// Number of a value: an image-shaped plane, a vector being one of 1×1 pixel.
type Id = usize;

/// A network for images of one size.
pub(super) struct Lowered {
    /// Of every value, its margin as wide as any of its readers wants.
    planes: Vec<Plane>,
    input: Id,
    /// Whether the input comes with its channels last already.
    input_last: bool,
    outputs: Vec<Output>,
    steps: Vec<Step>,
    specs: Vec<Spec>,
    /// Batch norms that take the statistics of the mini-batch: in training alone.
    norms: Vec<Norm>,
    /// Of activations that are quantised by a learned step size: the slot that it stands in. Several may stand in one.
    learned: Vec<usize>,
    /// Packed once where nothing trains.
    weights: Option<Weights>,
    /// The last step that reads each value; those of outputs are never given up.
    last_use: Vec<usize>,
    /// Why gradients cannot be taken this way, if they cannot.
    untrainable: Option<&'static str>,
}

struct Output {
    value: Id,
    /// N×C, else N×C×H×W.
    flat: bool,
}

struct Step {
    kind: Kind,
    output: Id,
}

/// Lowest and highest value let through.
type Limits = (f32, f32);

enum Kind {
    /// Dense or grouped; a matrix product is one of a 1×1 image.
    Conv {
        input: Id,
        window: Window2d,
        weight: usize,
        added: Option<Id>,
        tail: Tail,
    },
    Depthwise {
        input: Id,
        window: Window2d,
        weight: usize,
        added: Option<Id>,
        tail: Tail,
    },
    /// By the mini-batch's own statistics, which all of its pieces have a part in.
    Norm {
        input: Id,
        norm: usize,
        added: Option<Id>,
        limits: Limits,
    },
    Add {
        a: Id,
        b: Id,
        limits: Limits,
    },
    Clip {
        input: Id,
        limits: Limits,
    },
    Quant {
        input: Id,
        quant: Quant,
        /// Its place among the learned step sizes: `quant` has it as it was at first, [`Weights`] as it is.
        learned: Option<usize>,
    },
    /// Over the whole plane.
    Mean {
        input: Id,
    },
    Average {
        input: Id,
        window: Window2d,
        /// What lies beyond the image counts as zeros; else it does not count.
        padded: bool,
    },
    Max {
        input: Id,
        window: Window2d,
    },
    /// Every channel by a factor of its own, computed from the image.
    Scale {
        input: Id,
        factors: Id,
    },
    Map {
        input: Id,
        fun: Fun,
    },
    /// Along the channels.
    Concat {
        inputs: Vec<Id>,
    },
    /// To a vector in the order channels, rows, columns.
    Flatten {
        input: Id,
    },
    Softmax {
        input: Id,
    },
}

impl Kind {
    fn inputs(&self) -> Vec<Id> {
        match self {
            Self::Conv { input, added, .. }
            | Self::Depthwise { input, added, .. }
            | Self::Norm { input, added, .. } => {
                [Some(*input), *added].into_iter().flatten().collect()
            }
            Self::Add { a, b, .. } => vec![*a, *b],
            Self::Scale { input, factors } => vec![*input, *factors],
            Self::Concat { inputs } => inputs.clone(),
            Self::Clip { input, .. }
            | Self::Quant { input, .. }
            | Self::Mean { input }
            | Self::Average { input, .. }
            | Self::Max { input, .. }
            | Self::Map { input, .. }
            | Self::Flatten { input }
            | Self::Softmax { input } => vec![*input],
        }
    }
}

/// Floats of the largest value that a piece of the batch may have: what stays in a core's own cache.
const PIECE: usize = 1 << 18;

impl Lowered {
    /// Images worked on together on one thread: enough that small planes fill tiles, few enough for the cache. By sizes only.
    fn piece(&self) -> usize {
        let largest = self.planes.iter().map(Plane::size).max().unwrap_or(1);
        (PIECE / largest.max(1)).clamp(1, 16)
    }
}
