//! Which weights of a layer are compared when the smallest go: all of them, or those of short groups along the reduction axis (N:M sparsity; 2:4 in
//! Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021).

use super::{Ratio, prune::magnitude_mask};
use crate::graph::{Layer, Op};

/// Where the weights that go may lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /** anywhere in the layer */
    #[default]
    Unstructured,
    /** as many in every group of this many along the reduction axis: N:M sparsity with M this number */
    Groups(usize),
}

/// No hardware takes longer groups.
const LONGEST: usize = 64;

impl Pattern {
    pub fn is_unstructured(&self) -> bool {
        *self == Self::Unstructured
    }

    /// Refuses groups of a size without a meaning, and a ratio that is no whole number of weights in each group.
    ///
    /// # Errors
    /// In words, with the ratios that there are.
    pub fn check(self, ratio: Ratio) -> Result<(), String> {
        ratio.check()?;
        let Self::Groups(group) = self else {
            return Ok(());
        };
        if !(2..=LONGEST).contains(&group) {
            return Err(format!(
                "groups of 2 to {LONGEST} weights were expected, found groups({group})"
            ));
        }
        let gone = f64::from(ratio.0) * group as f64;
        if (gone - gone.round()).abs() < 1e-3 {
            return Ok(());
        }
        let (below, above) = (gone.floor(), gone.ceil());
        Err(format!(
            "a ratio of {} takes {gone:.2} of every {group} weights; {} ({}:{group}) or {} ({}:{group}) takes a whole number of them",
            ratio.0,
            below / group as f64,
            group as f64 - below,
            above / group as f64,
            group as f64 - above,
        ))
    }

    /// The ratio that takes a whole number of weights of every group, nearest to this one, and leaves some.
    pub fn nearest(self, ratio: Ratio) -> Ratio {
        match self {
            Self::Unstructured => ratio,
            Self::Groups(group) => {
                let of = group.max(1) as f32;
                Ratio((ratio.0 * of).round().clamp(0.0, of - 1.0) / of)
            }
        }
    }

    /// Refuses a layer whose outputs sum over so many inputs, in words.
    ///
    /// # Errors
    /// Inputs that groups do not divide.
    pub fn takes(self, inputs: usize) -> Result<(), String> {
        match self {
            Self::Groups(group) if !inputs.is_multiple_of(group) => Err(format!(
                "every output sums over {inputs} inputs, which is no multiple of {group}"
            )),
            _ => Ok(()),
        }
    }

    /// How the groups lie in a layer's weight (`None`: unstructured), or why there are none.
    pub(super) fn lanes(self, layer: &Layer, op: &Op) -> Result<Option<Lanes>, String> {
        let Self::Groups(group) = self else {
            return Ok(None);
        };
        let shape = &layer.weight_shape;
        let axis = reduction_axis(layer);
        let extent = shape[axis];
        // A transposed convolution's inputs are those of all its groups.
        let parts = match op {
            Op::ConvTranspose { group, .. } => *group,
            _ => 1,
        };
        let inputs = extent / parts.max(1);
        self.takes(inputs)?;
        Ok(Some(Lanes {
            extent,
            inner: shape[axis + 1..].iter().product(),
            group,
        }))
    }
}

/// Axis of a layer's weight that its products sum over: input channels of convolutions (each tap of a kernel has groups of its own), inputs of
/// Gemm and MatMul.
pub(super) fn reduction_axis(layer: &Layer) -> usize {
    axis_summed(layer.op, layer.weight_shape.len(), layer.channel_axis)
}

/// The same by what else is known of a layer: its ONNX operator, its weight's rank and the axis of its output channels.
pub(crate) fn axis_summed(op: &str, rank: usize, channel_axis: usize) -> usize {
    match op {
        "Conv" => 1,
        "ConvTranspose" => 0,
        "Gemm" => 1 - channel_axis,
        _ => rank - 2,
    }
}

/// How groups lie in a weight's memory: runs of `group` steps along an axis of `extent` steps, with `inner` elements behind each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Lanes {
    extent: usize,
    inner: usize,
    group: usize,
}

/// What is to be pruned of one weight in the end.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PruneTarget {
    pub(super) ratio: Ratio,
    pub(super) lanes: Option<Lanes>,
}

impl PruneTarget {
    /// The share that goes in the end.
    pub fn ratio(&self) -> Ratio {
        self.ratio
    }

    /// Keeps all but the least in magnitude (the lower index goes first on ties) of the weights, or of each group: those of `share` as far as whole
    /// weights of a group go. What `old` has masked stays so. `true`: kept.
    pub fn mask(&self, share: Ratio, weights: &[f32], old: Option<&[bool]>) -> Vec<bool> {
        let Some(Lanes {
            extent,
            inner,
            group,
        }) = self.lanes
        else {
            return magnitude_mask(weights, share.count_of(weights.len()), old);
        };
        let count = (f64::from(share.0) * group as f64 + 1e-3).floor() as usize;
        let mut mask = vec![true; weights.len()];
        let mut members = Vec::with_capacity(group);
        let (mut values, mut before) = (Vec::with_capacity(group), Vec::with_capacity(group));
        for first in 0..weights.len() {
            if !(first / inner % extent).is_multiple_of(group) {
                continue;
            }
            members.clear();
            members.extend((0..group).map(|step| first + step * inner));
            values.clear();
            values.extend(members.iter().map(|i| weights[*i]));
            before.clear();
            before.extend(members.iter().map(|i| old.is_none_or(|old| old[*i])));
            let kept = magnitude_mask(&values, count, Some(&before));
            for (member, kept) in members.iter().zip(kept) {
                mask[*member] = kept;
            }
        }
        mask
    }
}
