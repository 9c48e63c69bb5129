//! What flows along an edge at run time: f32 tensors with gradients, and plain arrays for everything else.

use super::Fail;
use crate::graph::{ElementType, TensorData};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};
use std::sync::Arc;

/// No single value may hold more elements than this (2 GiB of f32): a hostile shape ends in an error, not in swap.
pub(super) const MAX_ELEMENTS: usize = 1 << 29;

/// A runtime value.
#[derive(Clone, Debug)]
pub(super) enum Val {
    /// Stored as f32; the logical type is F32, or F16/BF16 with every element already rounded to it.
    Float(Tensor, ElementType),
    /// Everything else: integers, booleans, f64. Small and cheap for shape arithmetic.
    Array(Arc<Array>),
}

/// A dense row-major array.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    pub element: ElementType,
    pub shape: Vec<usize>,
    pub data: Data,
}

/// Elements of an [`Array`].
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    /// Any integer type or bool, already wrapped to its range; `U64` as the bit pattern.
    Int(Vec<i64>),
    F64(Vec<f64>),
}

/// Number of elements of a shape, refused when it is absurd.
pub(super) fn count(shape: &[usize]) -> Result<usize, Fail> {
    // A zero anywhere makes it empty, whatever the other extents multiply to.
    if shape.contains(&0) {
        return Ok(0);
    }
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= MAX_ELEMENTS)
        .ok_or_else(|| {
            Fail(format!(
                "a value of shape {shape:?} is larger than the limit of {MAX_ELEMENTS} elements"
            ))
        })
}

/// Whether the type is computed in f32 tensors.
pub(super) fn is_tensor(element: ElementType) -> bool {
    matches!(
        element,
        ElementType::F32 | ElementType::F16 | ElementType::BF16
    )
}

pub(super) fn is_int(element: ElementType) -> bool {
    !is_tensor(element) && element != ElementType::F64
}

/// Wraps to the range of an integer type, as two's complement arithmetic does.
pub(super) fn wrap(element: ElementType, v: i64) -> i64 {
    match element {
        ElementType::I4 => (v << 60) >> 60,
        ElementType::U4 => v & 0xf,
        ElementType::I8 => i64::from(v as i8),
        ElementType::U8 => i64::from(v as u8),
        ElementType::I16 => i64::from(v as i16),
        ElementType::U16 => i64::from(v as u16),
        ElementType::I32 => i64::from(v as i32),
        ElementType::U32 => i64::from(v as u32),
        ElementType::Bool => i64::from(v != 0),
        _ => v,
    }
}

/// Smallest and largest value of an integer type (of `U64`: as far as `i64` goes; a bool is 0 or 1).
pub(super) fn int_range(element: ElementType) -> (i64, i64) {
    match element {
        ElementType::Bool => (0, 1),
        ElementType::U64 => (0, i64::MAX),
        e => e.integer_range().unwrap_or((i64::MIN, i64::MAX)),
    }
}

/// Rounds to the nearest value of a logical float type.
pub(super) fn round_float(element: ElementType, v: f32) -> f32 {
    match element {
        ElementType::F16 => f16::from_f32(v).to_f32(),
        ElementType::BF16 => bf16::from_f32(v).to_f32(),
        _ => v,
    }
}

/// A contiguous f32 tensor's elements, without a copy.
pub(super) fn with_f32<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> candle_core::Result<R> {
    let t = t.contiguous()?;
    let (storage, layout) = t.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(all)) = &*storage else {
        candle_core::bail!("expected an f32 tensor on the CPU, got {:?}", t.dtype());
    };
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg("layout not contiguous".into()))?;
    Ok(f(&all[start..end]))
}

pub(super) fn tensor_f32(v: Vec<f32>, shape: &[usize]) -> candle_core::Result<Tensor> {
    Tensor::from_vec(v, shape, &Device::Cpu)
}

impl Array {
    pub fn ints(element: ElementType, shape: Vec<usize>, data: Vec<i64>) -> Val {
        Val::Array(Arc::new(Self {
            element,
            shape,
            data: Data::Int(data),
        }))
    }
    pub fn f64s(shape: Vec<usize>, data: Vec<f64>) -> Val {
        Val::Array(Arc::new(Self {
            element: ElementType::F64,
            shape,
            data: Data::F64(data),
        }))
    }
    pub fn bools(shape: Vec<usize>, data: impl IntoIterator<Item = bool>) -> Val {
        Self::ints(
            ElementType::Bool,
            shape,
            data.into_iter().map(i64::from).collect(),
        )
    }
}

impl Val {
    pub fn f32(t: Tensor) -> Self {
        Self::Float(t, ElementType::F32)
    }
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Float(t, _) => t.dims(),
            Self::Array(a) => &a.shape,
        }
    }
    pub fn rank(&self) -> usize {
        self.shape().len()
    }
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }
    pub fn element(&self) -> ElementType {
        match self {
            Self::Float(_, e) => *e,
            Self::Array(a) => a.element,
        }
    }
    /// The f32 tensor behind a float value.
    pub fn tensor(&self) -> Result<&Tensor, Fail> {
        match self {
            Self::Float(t, _) => Ok(t),
            Self::Array(a) => Err(Fail(format!(
                "element type {} is not supported here: this operator runs on float32, float16 and bfloat16",
                a.element
            ))),
        }
    }
    /// All elements as integers (integer and bool values only).
    pub fn to_ints(&self) -> Result<Vec<i64>, Fail> {
        match self {
            Self::Array(a) => match &a.data {
                Data::Int(v) => Ok(v.clone()),
                Data::F64(_) => Err(Fail("expected integers, got float64".into())),
            },
            Self::Float(_, e) => Err(Fail(format!("expected integers, got {e:?}"))),
        }
    }
    /// All elements as f64, whatever the type.
    pub fn to_f64s(&self) -> Result<Vec<f64>, Fail> {
        Ok(match self {
            Self::Float(t, _) => with_f32(t, |v| v.iter().map(|&x| f64::from(x)).collect())?,
            Self::Array(a) => match &a.data {
                Data::F64(v) => v.clone(),
                Data::Int(v) if a.element == ElementType::U64 => {
                    v.iter().map(|&x| x as u64 as f64).collect()
                }
                Data::Int(v) => v.iter().map(|&x| x as f64).collect(),
            },
        })
    }
    pub fn to_f32s(&self) -> Result<Vec<f32>, Fail> {
        match self {
            Self::Float(t, _) => Ok(with_f32(t, <[f32]>::to_vec)?),
            Self::Array(_) => Ok(self.to_f64s()?.into_iter().map(|v| v as f32).collect()),
        }
    }
    /// The only element, as f64.
    pub fn scalar(&self) -> Result<f64, Fail> {
        match self.to_f64s()?.as_slice() {
            [v] => Ok(*v),
            v => Err(Fail(format!(
                "expected a single element, got {} (shape {:?})",
                v.len(),
                self.shape()
            ))),
        }
    }
    /// The same elements under another shape.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self, Fail> {
        let (have, want) = (self.len(), count(shape)?);
        if have != want {
            return Err(Fail(format!(
                "cannot reshape {:?} ({have} elements) to {shape:?} ({want} elements)",
                self.shape()
            )));
        }
        Ok(match self {
            Self::Float(t, e) => Self::Float(t.reshape(shape)?, *e),
            Self::Array(a) => Self::Array(Arc::new(Array {
                element: a.element,
                shape: shape.to_vec(),
                data: a.data.clone(),
            })),
        })
    }
    pub fn detach(self) -> Self {
        match self {
            Self::Float(t, e) => Self::Float(t.detach(), e),
            v => v,
        }
    }

    /// Whether a weight has no more elements than a value may.
    pub fn fits(data: &TensorData) -> bool {
        count(&data.shape).is_ok()
    }

    /// Decodes a weight or constant.
    pub fn from_data(data: &TensorData) -> Result<Self, Fail> {
        let n = count(&data.shape)?;
        let bits = data.element.bits();
        let need = (n * bits).div_ceil(8);
        if data.bytes.len() != need {
            return Err(Fail(format!(
                "a tensor of shape {:?} and type {:?} needs {need} bytes, has {}",
                data.shape,
                data.element,
                data.bytes.len()
            )));
        }
        let b = &data.bytes[..];
        fn read<const N: usize, T>(b: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
            b.as_chunks::<N>().0.iter().map(|&c| f(c)).collect()
        }
        let element = data.element;
        let float = |v: Vec<f32>| -> Result<Self, Fail> {
            Ok(Self::Float(tensor_f32(v, &data.shape)?, element))
        };
        let int = |v: Vec<i64>| Ok(Array::ints(element, data.shape.clone(), v));
        match element {
            ElementType::F32 => float(read(b, f32::from_le_bytes)),
            ElementType::F16 => float(read(b, |c| f16::from_le_bytes(c).to_f32())),
            ElementType::BF16 => float(read(b, |c| bf16::from_le_bytes(c).to_f32())),
            ElementType::F64 => Ok(Array::f64s(data.shape.clone(), read(b, f64::from_le_bytes))),
            ElementType::I4 | ElementType::U4 => int((0..n)
                .map(|i| wrap(element, i64::from(b[i / 2] >> (4 * (i % 2)))))
                .collect()),
            ElementType::I8 => int(read(b, |c| i64::from(i8::from_le_bytes(c)))),
            ElementType::U8 => int(read(b, |[c]| i64::from(c))),
            ElementType::Bool => int(read(b, |[c]| i64::from(c != 0))),
            ElementType::I16 => int(read(b, |c| i64::from(i16::from_le_bytes(c)))),
            ElementType::U16 => int(read(b, |c| i64::from(u16::from_le_bytes(c)))),
            ElementType::I32 => int(read(b, |c| i64::from(i32::from_le_bytes(c)))),
            ElementType::U32 => int(read(b, |c| i64::from(u32::from_le_bytes(c)))),
            ElementType::I64 | ElementType::U64 => int(read(b, i64::from_le_bytes)),
        }
    }

    /// Encodes as ONNX `raw_data`.
    pub fn to_data(&self) -> Result<TensorData, Fail> {
        let element = self.element();
        let bytes: Vec<u8> = match self {
            Self::Float(t, _) => with_f32(t, |v| match element {
                ElementType::F16 => v
                    .iter()
                    .flat_map(|&x| f16::from_f32(x).to_le_bytes())
                    .collect(),
                ElementType::BF16 => v
                    .iter()
                    .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
                    .collect(),
                _ => v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>(),
            })?,
            Self::Array(a) => match &a.data {
                Data::F64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
                Data::Int(v) => match element.bits() {
                    4 => v
                        .chunks(2)
                        .map(|c| {
                            let low = c[0] as u8 & 0xf;
                            let high = c.get(1).map_or(0, |&h| (h as u8 & 0xf) << 4);
                            low | high
                        })
                        .collect(),
                    bits => v
                        .iter()
                        .flat_map(|x| x.to_le_bytes().into_iter().take(bits / 8))
                        .collect(),
                },
            },
        };
        Ok(TensorData {
            element,
            shape: self.shape().to_vec(),
            bytes: bytes.into(),
        })
    }

    /// As a candle tensor: types candle lacks go to the next wider signed one that holds them (`U64`: `I64`
    /// bit patterns), bool to `U8`.
    pub fn to_tensor(&self) -> Result<Tensor, Fail> {
        let a = match self {
            Self::Float(t, ElementType::F16) => return Ok(t.to_dtype(DType::F16)?),
            Self::Float(t, ElementType::BF16) => return Ok(t.to_dtype(DType::BF16)?),
            Self::Float(t, _) => return Ok(t.clone()),
            Self::Array(a) => a,
        };
        let (shape, dev) = (a.shape.as_slice(), &Device::Cpu);
        let v = match &a.data {
            Data::F64(v) => return Ok(Tensor::from_slice(v, shape, dev)?),
            Data::Int(v) => v,
        };
        fn cast<T>(v: &[i64], f: impl Fn(i64) -> T) -> Vec<T> {
            v.iter().map(|&x| f(x)).collect()
        }
        Ok(match dtype(a.element) {
            DType::U8 => Tensor::from_vec(cast(v, |x| x as u8), shape, dev)?,
            DType::I16 => Tensor::from_vec(cast(v, |x| x as i16), shape, dev)?,
            DType::I32 => Tensor::from_vec(cast(v, |x| x as i32), shape, dev)?,
            DType::U32 => Tensor::from_vec(cast(v, |x| x as u32), shape, dev)?,
            _ => Tensor::from_slice(v, shape, dev)?,
        })
    }

    /// From a candle tensor, as the logical `element` (or that of its dtype).
    pub fn from_tensor(t: &Tensor, element: Option<ElementType>) -> Result<Self, Fail> {
        let element = match element {
            Some(e) => e,
            None => natural(t.dtype())
                .ok_or_else(|| Fail(format!("tensors of type {:?} cannot be fed", t.dtype())))?,
        };
        let fits = if is_int(element) {
            t.dtype() == dtype(element)
        } else {
            matches!(
                t.dtype(),
                DType::F32 | DType::F16 | DType::BF16 | DType::F64
            )
        };
        if !fits {
            return Err(Fail(format!(
                "expected {element} (a tensor of {:?}), got a tensor of {:?}",
                dtype(element),
                t.dtype()
            )));
        }
        let shape = t.dims().to_vec();
        Ok(match element {
            ElementType::F32 => Self::Float(t.to_dtype(DType::F32)?, element),
            ElementType::F16 | ElementType::BF16 => {
                Self::Float(t.to_dtype(dtype(element))?.to_dtype(DType::F32)?, element)
            }
            ElementType::F64 => Array::f64s(
                shape,
                t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?,
            ),
            _ => Array::ints(
                element,
                shape,
                t.to_dtype(DType::I64)?
                    .flatten_all()?
                    .to_vec1::<i64>()?
                    .into_iter()
                    .map(|v| wrap(element, v))
                    .collect(),
            ),
        })
    }
}

/// The candle type that stands for a logical type at the program's doors.
pub(super) fn dtype(element: ElementType) -> DType {
    match element {
        ElementType::F32 => DType::F32,
        ElementType::F16 => DType::F16,
        ElementType::BF16 => DType::BF16,
        ElementType::F64 => DType::F64,
        ElementType::U8 | ElementType::U4 | ElementType::Bool => DType::U8,
        ElementType::I4 | ElementType::I8 | ElementType::I16 => DType::I16,
        ElementType::U16 | ElementType::I32 => DType::I32,
        ElementType::U32 => DType::U32,
        ElementType::I64 | ElementType::U64 => DType::I64,
    }
}

fn natural(dtype: DType) -> Option<ElementType> {
    Some(match dtype {
        DType::F32 => ElementType::F32,
        DType::F16 => ElementType::F16,
        DType::BF16 => ElementType::BF16,
        DType::F64 => ElementType::F64,
        DType::U8 => ElementType::U8,
        DType::I16 => ElementType::I16,
        DType::I32 => ElementType::I32,
        DType::U32 => ElementType::U32,
        DType::I64 => ElementType::I64,
        _ => return None,
    })
}
