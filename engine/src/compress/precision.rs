//! Widths of integer weights: from 2 to 8 bits, each kept in the smallest ONNX type that holds it.

use super::{Precision, Symmetry};
use crate::graph::ElementType;

impl Precision {
    /// From the widest to the narrowest.
    pub const ALL: [Self; 10] = [
        Self::Fp32,
        Self::Fp16,
        Self::Bf16,
        Self::Int8,
        Self::Int7,
        Self::Int6,
        Self::Int5,
        Self::Int4,
        Self::Int3,
        Self::Int2,
    ];

    /// Width of integer weights, 2..=8; `None` for the floating ones.
    pub fn bits(self) -> Option<u32> {
        match self {
            Self::Fp32 | Self::Fp16 | Self::Bf16 => None,
            Self::Int8 => Some(8),
            Self::Int7 => Some(7),
            Self::Int6 => Some(6),
            Self::Int5 => Some(5),
            Self::Int4 => Some(4),
            Self::Int3 => Some(3),
            Self::Int2 => Some(2),
        }
    }

    /// Whether weights become integers.
    pub fn is_integer(self) -> bool {
        self.bits().is_some()
    }

    /// The 16-bit float that weights are stored as.
    pub fn half(self) -> Option<ElementType> {
        match self {
            Self::Fp16 => Some(ElementType::F16),
            Self::Bf16 => Some(ElementType::BF16),
            _ => None,
        }
    }

    /// The precision of this 16-bit float.
    pub(crate) fn of_half(element: ElementType) -> Option<Self> {
        [Self::Fp16, Self::Bf16]
            .into_iter()
            .find(|p| p.half() == Some(element))
    }

    /// The integer precision of this many bits, 2..=8.
    pub fn of_bits(bits: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.bits() == Some(bits))
    }

    /// The ONNX type that integer weights are stored in.
    pub fn storage(self) -> Option<ElementType> {
        Some(match self.bits()? {
            ..=4 => ElementType::I4,
            _ => ElementType::I8,
        })
    }

    /// As recipes and the window write it: "fp32", "int7".
    pub fn label(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int7 => "int7",
            Self::Int6 => "int6",
            Self::Int5 => "int5",
            Self::Int4 => "int4",
            Self::Int3 => "int3",
            Self::Int2 => "int2",
        }
    }
}

impl Symmetry {
    /// Whether the zero point is fixed at 0.
    pub fn is_symmetric(&self) -> bool {
        *self == Self::Symmetric
    }

    /// The range with zero in it, and as far below it as above where there is no zero point.
    pub(crate) fn widen(self, (lo, hi): (f32, f32)) -> (f32, f32) {
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        match self {
            Self::Asymmetric => (lo, hi),
            Self::Symmetric => (-hi.max(-lo), hi.max(-lo)),
        }
    }
}
