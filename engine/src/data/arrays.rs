//! Arrays held in memory: IDX (plain or gzip), NPY and NPZ.

use super::{
    DataError,
    files::{self, exactly},
};
use npyz::{Endianness, TypeChar, TypeStr};
use std::{
    io::{Read, Seek},
    path::Path,
};

pub(super) enum Values {
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
}

/// `shape[0]` samples, row-major.
pub(super) struct Array {
    pub shape: Vec<usize>,
    pub values: Values,
}

fn bad(what: &str, message: impl std::fmt::Display) -> DataError {
    DataError::Source(format!("{what}: {message}"))
}

/// Number of elements of a shape out of a file, without overflow.
fn elements(shape: &[u64], what: &str) -> Result<u64, DataError> {
    shape
        .iter()
        .try_fold(1u64, |product, extent| product.checked_mul(*extent))
        .filter(|product| *product <= files::MAX_ARRAY_BYTES)
        .ok_or_else(|| {
            bad(
                what,
                format!(
                    "its header announces the shape {shape:?}, which is more than the {} bytes that are read",
                    files::MAX_ARRAY_BYTES
                ),
            )
        })
}

/// Reads an IDX file of unsigned bytes with 1 to 4 axes (format: the comment on <http://yann.lecun.com/exdb/mnist/>).
pub(super) fn idx(path: &Path) -> Result<Array, DataError> {
    let what = path.display().to_string();
    let mut reader = files::stream(path)?;
    let mut take = |n: usize| -> Result<Vec<u8>, DataError> {
        let mut bytes = vec![0u8; n];
        reader
            .read_exact(&mut bytes)
            .map_err(|e| bad(&what, format!("cut short in its IDX header ({e})")))?;
        Ok(bytes)
    };
    let magic = take(4)?;
    let rank = match magic[..] {
        [0, 0, 8, rank @ 1..=4] => usize::from(rank),
        [0, 0, kind, rank @ 1..=4] if (9..=14).contains(&kind) => {
            return Err(bad(
                &what,
                format!(
                    "holds IDX elements of type 0x{kind:02x} with {rank} axes; only unsigned bytes (0x08) are read. Store \
                     other types as NPY"
                ),
            ));
        }
        _ => {
            return Err(bad(
                &what,
                format!(
                    "is not an IDX file: it begins with {magic:02x?}, expected 00 00 08 and the number of axes (1 to 4)"
                ),
            ));
        }
    };
    let shape: Vec<u64> = take(4 * rank)?
        .chunks_exact(4)
        .map(|b| u64::from(u32::from_be_bytes([b[0], b[1], b[2], b[3]])))
        .collect();
    let size = elements(&shape, &what)?;
    let bytes = exactly(&mut reader, size, &what)?;
    Ok(Array {
        shape: shape.iter().map(|extent| *extent as usize).collect(),
        values: Values::Bytes(bytes),
    })
}

/// One class index a sample.
pub(super) fn idx_labels(path: &Path) -> Result<Vec<i64>, DataError> {
    let array = idx(path)?;
    match (array.shape.len(), array.values) {
        (1, Values::Bytes(bytes)) => Ok(bytes.into_iter().map(i64::from).collect()),
        _ => Err(bad(
            &path.display().to_string(),
            format!(
                "holds an array of shape {:?}; labels have one axis (are images and labels swapped?)",
                array.shape
            ),
        )),
    }
}

/// How elements of an NPY file are read.
#[derive(Clone, Copy)]
struct Element {
    kind: TypeChar,
    size: usize,
    big: bool,
}

impl Element {
    /// Zero-extended little-endian bytes of one element.
    fn raw(self, bytes: &[u8]) -> [u8; 8] {
        let mut out = [0u8; 8];
        for (i, byte) in bytes.iter().enumerate().take(8) {
            out[if self.big { bytes.len() - 1 - i } else { i }] = *byte;
        }
        out
    }
}

struct Header {
    kind: TypeStr,
    fortran: bool,
    shape: Vec<u64>,
}

/// Reads the dictionary of an NPY header. The library's own header reader multiplies the extents of a hostile file without a
/// check, so only its element types are used.
fn header(text: &[u8], what: &str) -> Result<Header, DataError> {
    let text = String::from_utf8_lossy(text);
    let field = |key: &str| -> Option<&str> {
        let at = [format!("'{key}'"), format!("\"{key}\"")]
            .iter()
            .find_map(|quoted| Some(text.find(quoted)? + quoted.len()))?;
        Some(text[at..].trim_start().strip_prefix(':')?.trim_start())
    };
    let missing = |key: &str| {
        bad(
            what,
            format!("has an NPY header without a readable {key:?}"),
        )
    };
    let descr = field("descr").ok_or_else(|| missing("descr"))?;
    if descr.starts_with('[') {
        return Err(bad(
            what,
            "holds a structured array; expected one of numbers",
        ));
    }
    let kind = descr
        .split(['\'', '"'])
        .nth(1)
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| missing("descr"))?;
    let fortran = field("fortran_order")
        .ok_or_else(|| missing("fortran_order"))?
        .starts_with("True");
    let shape = field("shape")
        .and_then(|text| text.strip_prefix('(')?.split(')').next())
        .and_then(|inner| {
            inner
                .split(',')
                .map(str::trim)
                .filter(|extent| !extent.is_empty())
                .map(|extent| extent.parse().ok())
                .collect::<Option<Vec<u64>>>()
        })
        .ok_or_else(|| missing("shape"))?;
    Ok(Header {
        kind,
        fortran,
        shape,
    })
}

fn npy_body(reader: &mut dyn Read, what: &str) -> Result<(Vec<u64>, Element, Vec<u8>), DataError> {
    // Magic, version and length first: the header is parsed only when it is of a sane size.
    let mut head = vec![0u8; 10];
    reader
        .read_exact(&mut head)
        .map_err(|e| bad(what, format!("too short for an NPY file ({e})")))?;
    if head[..6] != *b"\x93NUMPY" {
        return Err(bad(what, "is not an NPY file (no \\x93NUMPY at its start)"));
    }
    let mut length = usize::from(u16::from_le_bytes([head[8], head[9]]));
    if head[6] >= 2 {
        let mut more = [0u8; 2];
        reader
            .read_exact(&mut more)
            .map_err(|e| bad(what, format!("cut short in its header ({e})")))?;
        length |= usize::from(u16::from_le_bytes(more)) << 16;
        head.extend_from_slice(&more);
    }
    if length > 4096 {
        return Err(bad(
            what,
            format!("has an NPY header of {length} bytes; a plain array's is far below 4096"),
        ));
    }
    let start = head.len();
    head.resize(start + length, 0);
    reader
        .read_exact(&mut head[start..])
        .map_err(|e| bad(what, format!("cut short in its header ({e})")))?;
    let Header {
        kind,
        fortran,
        shape,
    } = header(&head[start..], what)?;
    let element = Element {
        kind: kind.type_char(),
        size: kind.num_bytes().unwrap_or(0),
        big: kind.endianness() == Endianness::Big,
    };
    if fortran && shape.len() > 1 {
        return Err(bad(
            what,
            "is in Fortran order; save it with numpy.ascontiguousarray",
        ));
    }
    if shape.is_empty() || shape.len() > 8 {
        return Err(bad(
            what,
            format!("has {} axes; expected 1 to 8", shape.len()),
        ));
    }
    let known = matches!(
        (element.kind, element.size),
        (TypeChar::Bool, 1)
            | (TypeChar::Int | TypeChar::Uint, 1 | 2 | 4 | 8)
            | (TypeChar::Float, 2 | 4 | 8)
    );
    if !known {
        return Err(bad(
            what,
            format!("has elements of type {kind}; expected integers or floats of at most 8 bytes"),
        ));
    }
    let size = elements(&shape, what)?.saturating_mul(element.size as u64);
    let body = exactly(reader, size, what)?;
    Ok((shape, element, body))
}

/// Images of an NPY stream: u8 kept as bytes, other numbers as f32.
fn npy_images(reader: &mut dyn Read, what: &str) -> Result<Array, DataError> {
    let (shape, element, body) = npy_body(reader, what)?;
    let values = match (element.kind, element.size) {
        (TypeChar::Uint, 1) => Values::Bytes(body),
        (TypeChar::Float, size) => Values::Floats(
            body.chunks_exact(size)
                .map(|bytes| {
                    let raw = element.raw(bytes);
                    match size {
                        2 => half::f16::from_le_bytes([raw[0], raw[1]]).to_f32(),
                        4 => f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]),
                        _ => f64::from_le_bytes(raw) as f32,
                    }
                })
                .collect(),
        ),
        (kind, size) => {
            return Err(bad(
                what,
                format!(
                    "images of type {kind:?} with {size} bytes; expected unsigned bytes (uint8) or floats"
                ),
            ));
        }
    };
    let array = Array {
        shape: shape.iter().map(|extent| *extent as usize).collect(),
        values,
    };
    if let Values::Floats(values) = &array.values
        && let Some(at) = values.iter().position(|v| !v.is_finite())
    {
        let sample = at / array.shape[1..].iter().product::<usize>().max(1);
        return Err(bad(
            what,
            format!(
                "item {sample} holds {}; every value must be finite",
                values[at]
            ),
        ));
    }
    Ok(array)
}

fn npy_labels(reader: &mut dyn Read, what: &str) -> Result<Vec<i64>, DataError> {
    let (shape, element, body) = npy_body(reader, what)?;
    let flat = shape.len() == 1 || (shape.len() == 2 && shape[1] == 1);
    if !flat || !matches!(element.kind, TypeChar::Int | TypeChar::Uint) {
        return Err(bad(
            what,
            format!(
                "labels of shape {shape:?} and type {:?}; expected one integer class index a sample",
                element.kind
            ),
        ));
    }
    Ok(body
        .chunks_exact(element.size)
        .map(|bytes| {
            let value = i64::from_le_bytes(element.raw(bytes));
            if element.kind == TypeChar::Uint {
                return value;
            }
            let shift = 64 - 8 * element.size as u32;
            (value << shift) >> shift
        })
        .collect())
}

/// Images and labels of two NPY files.
pub(super) fn npy(
    images: &Path,
    labels: Option<&Path>,
) -> Result<(Array, Option<Vec<i64>>), DataError> {
    let labels =
        labels.map(|path| npy_labels(&mut files::stream(path)?, &path.display().to_string()));
    Ok((
        npy_images(&mut files::stream(images)?, &images.display().to_string())?,
        labels.transpose()?,
    ))
}

/// Images and labels of two arrays in one NPZ file.
pub(super) fn npz(
    path: &Path,
    images: &str,
    labels: Option<&str>,
) -> Result<(Array, Option<Vec<i64>>), DataError> {
    let (file, _) = files::open(path)?;
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|e| {
        bad(
            &path.display().to_string(),
            format!("is not an NPZ file ({e})"),
        )
    })?;
    let images = entry(&mut archive, path, images, npy_images)?;
    let labels = labels.map(|name| entry(&mut archive, path, name, npy_labels));
    Ok((images, labels.transpose()?))
}

fn entry<R: Read + Seek, T>(
    archive: &mut zip::ZipArchive<R>,
    path: &Path,
    name: &str,
    read: fn(&mut dyn Read, &str) -> Result<T, DataError>,
) -> Result<T, DataError> {
    let what = format!("{} [{name}]", path.display());
    let full = format!("{name}.npy");
    if archive.index_for_name(&full).is_none() {
        let known: Vec<String> = archive
            .file_names()
            .flatten()
            .take(50)
            .map(|n| n.trim_end_matches(".npy").to_owned())
            .collect();
        let hint = super::task::did_you_mean(name, known.iter().map(String::as_str));
        return Err(bad(
            &path.display().to_string(),
            format!("has no array {name:?}{hint} It holds: {}", known.join(", ")),
        ));
    }
    let mut entry = archive
        .by_name(&full)
        .map_err(|e| bad(&what, format!("cannot be unpacked ({e})")))?;
    read(&mut entry, &what)
}
