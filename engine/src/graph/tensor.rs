//! Weights and constants as they lie in a file.

use super::GraphError;
use bytes::Bytes;
use half::{bf16, f16};

/// Element types of ONNX that the IR carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ElementType {
    F32,
    F16,
    BF16,
    F64,
    I4,
    U4,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    Bool,
}

impl ElementType {
    /// Every element type, for loops and tests.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F64,
        Self::I4,
        Self::U4,
        Self::I8,
        Self::U8,
        Self::I16,
        Self::U16,
        Self::I32,
        Self::U32,
        Self::I64,
        Self::U64,
        Self::Bool,
    ];

    /// Name as people write it: `float32`, `int4`, `bool`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::F64 => "float64",
            Self::I4 => "int4",
            Self::U4 => "uint4",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::I16 => "int16",
            Self::U16 => "uint16",
            Self::I32 => "int32",
            Self::U32 => "uint32",
            Self::I64 => "int64",
            Self::U64 => "uint64",
            Self::Bool => "bool",
        }
    }

    /// Bits that one element takes in storage.
    pub fn bits(self) -> usize {
        match self {
            Self::I4 | Self::U4 => 4,
            Self::I8 | Self::U8 | Self::Bool => 8,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 16,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::F64 | Self::I64 | Self::U64 => 64,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16 | Self::F64)
    }

    /// Integers of any width and sign (not bool).
    pub fn is_integer(self) -> bool {
        !self.is_float() && self != Self::Bool
    }

    pub fn is_signed(self) -> bool {
        self.is_float()
            || matches!(
                self,
                Self::I4 | Self::I8 | Self::I16 | Self::I32 | Self::I64
            )
    }

    /// Smallest and largest value of an integer type; `None` for floats, bool, and what `i64` can't hold.
    pub fn integer_range(self) -> Option<(i64, i64)> {
        Some(match self {
            Self::I4 => (-8, 7),
            Self::U4 => (0, 15),
            Self::I8 => (-128, 127),
            Self::U8 => (0, 255),
            Self::I16 => (-32768, 32767),
            Self::U16 => (0, 65535),
            Self::I32 => (i32::MIN.into(), i32::MAX.into()),
            Self::U32 => (0, u32::MAX.into()),
            Self::I64 => (i64::MIN, i64::MAX),
            _ => return None,
        })
    }

    /// Bytes that `elements` of this type take, 4-bit ones packed two a byte; `None` on overflow.
    pub fn bytes_for(self, elements: usize) -> Option<usize> {
        match self.bits() {
            4 => Some(elements.div_ceil(2)),
            bits => elements.checked_mul(bits / 8),
        }
    }
}

impl std::fmt::Display for ElementType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A dense tensor: little-endian elements in row-major order, 4-bit elements packed two a byte (low half
/// first), exactly as ONNX `raw_data`. The bytes may be a slice of a memory map and need not be aligned.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TensorData {
    pub element: ElementType,
    pub shape: Vec<usize>,
    /// Written out number by number: for constants in attributes. Whoever keeps a graph keeps the data of its values beside it.
    #[serde(with = "numbers")]
    pub bytes: Bytes,
}

/// Bytes as a list.
mod numbers {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(bytes.iter())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        Vec::deserialize(from).map(Bytes::from)
    }
}

/// Elements of a shape, `None` where the product overflows.
pub fn checked_len(shape: &[usize]) -> Option<usize> {
    // A zero anywhere makes it zero, even where the other extents overflow.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

impl TensorData {
    /// Bytes with their type and shape. Fails where the length doesn't fit.
    pub fn new(element: ElementType, shape: Vec<usize>, bytes: Bytes) -> Result<Self, GraphError> {
        let expected = checked_len(&shape).and_then(|n| element.bytes_for(n));
        if expected != Some(bytes.len()) {
            return Err(GraphError::TensorLength {
                element,
                shape,
                expected,
                found: bytes.len(),
            });
        }
        Ok(Self {
            element,
            shape,
            bytes,
        })
    }

    /// A float32 tensor. Panics if `values` doesn't have as many elements as `shape` (a programming error).
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(
            checked_len(shape),
            Some(values.len()),
            "values must fill the shape {shape:?}"
        );
        Self {
            element: ElementType::F32,
            shape: shape.to_vec(),
            bytes: values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
                .into(),
        }
    }

    /// An int64 tensor. Panics if `values` doesn't have as many elements as `shape` (a programming error).
    pub fn from_i64(shape: &[usize], values: &[i64]) -> Self {
        assert_eq!(
            checked_len(shape),
            Some(values.len()),
            "values must fill the shape {shape:?}"
        );
        Self {
            element: ElementType::I64,
            shape: shape.to_vec(),
            bytes: values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
                .into(),
        }
    }

    /// Rounds float values to `element` (floats: nearest even; integers: ties to even, clamped to the type's
    /// range, NaN to 0; bool: not zero). Panics if `values` doesn't fill `shape` (a programming error).
    pub fn from_f32_as(element: ElementType, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(
            checked_len(shape),
            Some(values.len()),
            "values must fill the shape {shape:?}"
        );
        let bytes: Vec<u8> = match element {
            ElementType::F32 => return Self::from_f32(shape, values),
            ElementType::F16 => values
                .iter()
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect(),
            ElementType::BF16 => values
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
            ElementType::F64 => values
                .iter()
                .flat_map(|&v| f64::from(v).to_le_bytes())
                .collect(),
            ElementType::Bool => values.iter().map(|&v| u8::from(v != 0.0)).collect(),
            ElementType::U64 => values
                .iter()
                .flat_map(|&v| (v.round_ties_even() as u64).to_le_bytes())
                .collect(),
            _ => {
                // `as` saturates and turns NaN into 0.
                let integers: Vec<i64> =
                    values.iter().map(|&v| v.round_ties_even() as i64).collect();
                return Self::from_i64_as(element, shape, &integers);
            }
        };
        Self {
            element,
            shape: shape.to_vec(),
            bytes: bytes.into(),
        }
    }

    /// Integers stored as `element`, clamped to its range. Panics if `values` doesn't fill `shape` (a
    /// programming error).
    pub fn from_i64_as(element: ElementType, shape: &[usize], values: &[i64]) -> Self {
        assert_eq!(
            checked_len(shape),
            Some(values.len()),
            "values must fill the shape {shape:?}"
        );
        let clamp = |v: i64| match element.integer_range() {
            Some((low, high)) => v.clamp(low, high),
            None => v,
        };
        let bytes: Vec<u8> = match element {
            ElementType::I4 | ElementType::U4 => values
                .chunks(2)
                .map(|pair| {
                    let low = (clamp(pair[0]) & 15) as u8;
                    let high = pair.get(1).map_or(0, |&v| (clamp(v) & 15) as u8);
                    low | high << 4
                })
                .collect(),
            ElementType::I8 | ElementType::U8 => values.iter().map(|&v| clamp(v) as u8).collect(),
            ElementType::Bool => values.iter().map(|&v| u8::from(v != 0)).collect(),
            ElementType::I16 | ElementType::U16 => values
                .iter()
                .flat_map(|&v| (clamp(v) as u16).to_le_bytes())
                .collect(),
            ElementType::I32 | ElementType::U32 => values
                .iter()
                .flat_map(|&v| (clamp(v) as u32).to_le_bytes())
                .collect(),
            ElementType::I64 => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
            ElementType::U64 => values
                .iter()
                .flat_map(|&v| v.max(0).to_le_bytes())
                .collect(),
            ElementType::F64 => values
                .iter()
                .flat_map(|&v| (v as f64).to_le_bytes())
                .collect(),
            ElementType::F32 | ElementType::F16 | ElementType::BF16 => {
                let floats: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                return Self::from_f32_as(element, shape, &floats);
            }
        };
        Self {
            element,
            shape: shape.to_vec(),
            bytes: bytes.into(),
        }
    }

    /// A float32 tensor of rank 0.
    pub fn scalar(value: f32) -> Self {
        Self::from_f32(&[], &[value])
    }

    /// An int64 tensor of rank 0.
    pub fn scalar_i64(value: i64) -> Self {
        Self::from_i64(&[], &[value])
    }

    /// Number of elements. A tensor made by [`TensorData::new`] never overflows; one put together by hand
    /// that does counts as empty.
    pub fn len(&self) -> usize {
        checked_len(&self.shape).unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Says that the elements were looked at and will not be soon: those of a mapped file need not stay in memory. They read the
    /// same afterwards.
    pub fn let_go(&self) {
        super::mapped::let_go(&self.bytes);
    }

    /// Whether the bytes have the length that type and shape ask for.
    pub fn validate(&self) -> Result<(), GraphError> {
        Self::new(self.element, self.shape.clone(), self.bytes.clone()).map(|_| ())
    }

    /// Every element as float32 (wide integers and float64 rounded), in row-major order.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        let b = &self.bytes[..];
        match self.element {
            ElementType::F32 => each(b, f32::from_le_bytes),
            ElementType::F16 => each(b, |v| f16::from_le_bytes(v).to_f32()),
            ElementType::BF16 => each(b, |v| bf16::from_le_bytes(v).to_f32()),
            ElementType::F64 => each(b, |v| f64::from_le_bytes(v) as f32),
            ElementType::U64 => each(b, |v| u64::from_le_bytes(v) as f32),
            _ => self.to_i64_vec().into_iter().map(|v| v as f32).collect(),
        }
    }

    /// Every element as int64 in row-major order: floats truncated and clamped, bool as 0 and 1, uint64
    /// clamped.
    pub fn to_i64_vec(&self) -> Vec<i64> {
        let b = &self.bytes[..];
        match self.element {
            ElementType::F32 => each(b, |v| f32::from_le_bytes(v) as i64),
            ElementType::F16 => each(b, |v| f16::from_le_bytes(v).to_f32() as i64),
            ElementType::BF16 => each(b, |v| bf16::from_le_bytes(v).to_f32() as i64),
            ElementType::F64 => each(b, |v| f64::from_le_bytes(v) as i64),
            // Shift up and back down to extend the sign of the nibble.
            ElementType::I4 => self.nibbles(|n| i64::from((n << 4) as i8 >> 4)),
            ElementType::U4 => self.nibbles(i64::from),
            ElementType::I8 => each(b, |v| i64::from(i8::from_le_bytes(v))),
            ElementType::U8 => each(b, |v: [u8; 1]| i64::from(v[0])),
            ElementType::I16 => each(b, |v| i64::from(i16::from_le_bytes(v))),
            ElementType::U16 => each(b, |v| i64::from(u16::from_le_bytes(v))),
            ElementType::I32 => each(b, |v| i64::from(i32::from_le_bytes(v))),
            ElementType::U32 => each(b, |v| i64::from(u32::from_le_bytes(v))),
            ElementType::I64 => each(b, i64::from_le_bytes),
            ElementType::U64 => each(b, |v| {
                i64::try_from(u64::from_le_bytes(v)).unwrap_or(i64::MAX)
            }),
            ElementType::Bool => each(b, |v: [u8; 1]| i64::from(v[0] != 0)),
        }
    }

    fn nibbles(&self, convert: impl Fn(u8) -> i64) -> Vec<i64> {
        let mut out: Vec<i64> = self
            .bytes
            .iter()
            .flat_map(|&b| [convert(b & 15), convert(b >> 4)])
            .collect();
        out.truncate(self.len());
        out
    }

    /// Number of NaN and infinite elements (0 for integers).
    pub fn non_finite(&self) -> usize {
        let b = &self.bytes[..];
        match self.element {
            ElementType::F32 => count(b, |v| !f32::from_le_bytes(v).is_finite()),
            ElementType::F16 => count(b, |v| !f16::from_le_bytes(v).is_finite()),
            ElementType::BF16 => count(b, |v| !bf16::from_le_bytes(v).is_finite()),
            ElementType::F64 => count(b, |v| !f64::from_le_bytes(v).is_finite()),
            _ => 0,
        }
    }

    /// Number of NaN elements (0 for integers).
    pub fn nan(&self) -> usize {
        let b = &self.bytes[..];
        match self.element {
            ElementType::F32 => count(b, |v| f32::from_le_bytes(v).is_nan()),
            ElementType::F16 => count(b, |v| f16::from_le_bytes(v).is_nan()),
            ElementType::BF16 => count(b, |v| bf16::from_le_bytes(v).is_nan()),
            ElementType::F64 => count(b, |v| f64::from_le_bytes(v).is_nan()),
            _ => 0,
        }
    }
}

fn each<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|&c| convert(c))
        .collect()
}

fn count<const N: usize>(bytes: &[u8], test: impl Fn([u8; N]) -> bool) -> usize {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .filter(|&&c| test(c))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_integers_survive_every_type() {
        for element in ElementType::ALL {
            let values: Vec<i64> = match element {
                ElementType::Bool => vec![0, 1, 1],
                e if e.is_signed() => vec![-8, 0, 7],
                _ => vec![0, 9, 15],
            };
            let tensor = TensorData::from_i64_as(element, &[3], &values);
            tensor.validate().unwrap();
            assert_eq!(tensor.to_i64_vec(), values, "{element}");
            let floats: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            assert_eq!(tensor.to_f32_vec(), floats, "{element}");
            assert_eq!(
                TensorData::from_f32_as(element, &[3], &floats),
                tensor,
                "{element}"
            );
        }
    }

    #[test]
    fn int4_is_packed_low_half_first() {
        let t = TensorData::from_i64_as(ElementType::I4, &[3], &[1, -2, 3]);
        assert_eq!(&t.bytes[..], &[0xE1, 0x03]);
    }

    #[test]
    fn rounding_is_half_to_even_and_clamped() {
        let t =
            TensorData::from_f32_as(ElementType::I8, &[5], &[0.5, 1.5, 300.0, -300.0, f32::NAN]);
        assert_eq!(t.to_i64_vec(), [0, 2, 127, -128, 0]);
    }

    #[test]
    fn a_wrong_length_and_an_overflowing_shape_are_errors() {
        let four = Bytes::from_static(&[0; 4]);
        assert!(TensorData::new(ElementType::F32, vec![2], four.clone()).is_err());
        assert!(TensorData::new(ElementType::F32, vec![usize::MAX, 2], four.clone()).is_err());
        assert!(TensorData::new(ElementType::F32, vec![usize::MAX / 2], four.clone()).is_err());
        assert!(TensorData::new(ElementType::F32, vec![1, 1], four).is_ok());
        assert!(TensorData::new(ElementType::F32, vec![usize::MAX, 0, 9], Bytes::new()).is_ok());
    }

    #[test]
    fn non_finite_elements_are_counted() {
        let t = TensorData::from_f32(&[3], &[1.0, f32::NAN, f32::INFINITY]);
        assert_eq!(t.non_finite(), 2);
        assert_eq!(TensorData::from_i64(&[1], &[3]).non_finite(), 0);
    }
}
