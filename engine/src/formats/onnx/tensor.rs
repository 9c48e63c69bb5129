//! `TensorProto` to and from [`TensorData`].

use super::external::ExternalFiles;
use super::proto;
use crate::graph::{ElementType, TensorData, checked_len};
use bytes::Bytes;

/// `TensorProto.DataType` of an element type.
pub(super) fn element_code(element: ElementType) -> i32 {
    match element {
        ElementType::F32 => 1,
        ElementType::U8 => 2,
        ElementType::I8 => 3,
        ElementType::U16 => 4,
        ElementType::I16 => 5,
        ElementType::I32 => 6,
        ElementType::I64 => 7,
        ElementType::Bool => 9,
        ElementType::F16 => 10,
        ElementType::F64 => 11,
        ElementType::U32 => 12,
        ElementType::U64 => 13,
        ElementType::BF16 => 16,
        ElementType::U4 => 21,
        ElementType::I4 => 22,
    }
}

/// The element type of a `TensorProto.DataType`; `None` for those the IR doesn't carry.
pub(super) fn element_type(code: i64) -> Option<ElementType> {
    ElementType::ALL
        .into_iter()
        .find(|&e| i64::from(element_code(e)) == code)
}

/// Name of a `TensorProto.DataType` that the IR doesn't carry.
pub(super) fn foreign_type(code: i64) -> String {
    match code {
        8 => "string".into(),
        14 | 15 => "complex".into(),
        17..=20 => "float8".into(),
        23 => "float4".into(),
        24 => "float8 exponent".into(),
        25 | 26 => "2-bit integer".into(),
        _ => format!("number {code}"),
    }
}

/// Whether the tensor's elements are of a kind that the IR carries.
pub(super) fn is_known(tensor: &proto::Tensor) -> bool {
    element_type(tensor.data_type.unwrap_or(0).into()).is_some()
}

/// Reads a tensor; raw bytes are shared with the file. The error is the reason alone.
pub(super) fn read(
    tensor: &proto::Tensor,
    external: &mut ExternalFiles,
) -> Result<TensorData, String> {
    let code = tensor.data_type.unwrap_or(0);
    let element = element_type(code.into()).ok_or_else(|| {
        format!(
            "elements of type {} are not supported",
            foreign_type(code.into())
        )
    })?;
    let shape = tensor
        .dims
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| format!("its shape has the extent {d}")))
        .collect::<Result<Vec<_>, _>>()?;
    let elements = checked_len(&shape);
    let expected = elements
        .and_then(|n| element.bytes_for(n))
        .ok_or_else(|| format!("its shape {shape:?} is larger than memory can hold"))?;
    let elements = elements.unwrap_or(0);

    let bytes = if tensor.data_location == Some(1) {
        external.bytes(&tensor.external_data, expected)?
    } else if let Some(raw) = tensor.raw_data.as_ref().filter(|r| !r.is_empty()) {
        raw.clone()
    } else {
        typed_bytes(tensor, element, elements)?
    };
    TensorData::new(element, shape, bytes).map_err(|e| e.to_string())
}

fn typed_bytes(
    tensor: &proto::Tensor,
    element: ElementType,
    elements: usize,
) -> Result<Bytes, String> {
    let check = |found: usize, needed: usize| {
        if found == needed {
            Ok(())
        } else {
            Err(format!(
                "its shape needs {needed} stored numbers, but the file has {found}"
            ))
        }
    };
    let ints = &tensor.int32_data;
    let bytes: Vec<u8> = match element {
        ElementType::F32 => {
            check(tensor.float_data.len(), elements)?;
            tensor
                .float_data
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect()
        }
        ElementType::F64 => {
            check(tensor.double_data.len(), elements)?;
            tensor
                .double_data
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect()
        }
        ElementType::I64 => {
            check(tensor.int64_data.len(), elements)?;
            tensor
                .int64_data
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect()
        }
        ElementType::U64 => {
            check(tensor.uint64_data.len(), elements)?;
            tensor
                .uint64_data
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect()
        }
        ElementType::U32 => {
            check(tensor.uint64_data.len(), elements)?;
            tensor
                .uint64_data
                .iter()
                .flat_map(|&v| (v as u32).to_le_bytes())
                .collect()
        }
        ElementType::I32 => {
            check(ints.len(), elements)?;
            ints.iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        // Halves lie in `int32_data` as their bits.
        ElementType::F16 | ElementType::BF16 | ElementType::I16 | ElementType::U16 => {
            check(ints.len(), elements)?;
            ints.iter()
                .flat_map(|&v| (v as u16).to_le_bytes())
                .collect()
        }
        ElementType::I8 | ElementType::U8 | ElementType::Bool => {
            check(ints.len(), elements)?;
            ints.iter().map(|&v| v as u8).collect()
        }
        // Two a number, as in raw data.
        ElementType::I4 | ElementType::U4 => {
            check(ints.len(), elements.div_ceil(2))?;
            ints.iter().map(|&v| v as u8).collect()
        }
    };
    Ok(bytes.into())
}

/// Encodes a tensor as packed raw data.
pub(super) fn write(name: Option<&str>, data: &TensorData) -> proto::Tensor {
    proto::Tensor {
        dims: data.shape.iter().map(|&d| d as i64).collect(),
        data_type: Some(element_code(data.element)),
        name: name.map(str::to_string),
        raw_data: Some(data.bytes.clone()),
        ..Default::default()
    }
}
