//! What every kernel needs around its arithmetic: the pool, f32 views of tensors, scratch memory kept by thread.

pub(super) use super::super::pool::on_pool;
use super::planes::Buffer;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use std::{borrow::Cow, cell::RefCell};

/// More elements than any tensor of a network that fits a workstation: a size from a hostile file stops here.
const MAX_ELEMENTS: usize = 1 << 31;

/// Elements handed out at a time by the element-wise kernels.
pub(super) const CHUNK: usize = 1 << 14;

/// The elements of a storage in row-major order: borrowed when they lie so, gathered otherwise.
pub(super) fn elements<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    op: &str,
) -> Result<Cow<'a, [f32]>> {
    let CpuStorage::F32(data) = storage else {
        bail!(
            "{op} computes in f32 but was given {:?}; cast the input to f32",
            storage_dtype(storage)
        )
    };
    if let Some((start, end)) = layout.contiguous_offsets() {
        return match data.get(start..end) {
            Some(slice) => Ok(Cow::Borrowed(slice)),
            None => bail!("{op}: the layout reaches beyond its storage"),
        };
    }
    let dims = layout.dims();
    let strides = layout.stride();
    let count: usize = dims.iter().product();
    let mut out = Vec::with_capacity(count);
    let mut index = vec![0usize; dims.len()];
    let mut at = layout.start_offset();
    for _ in 0..count {
        out.push(data[at]);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < dims[axis] {
                break;
            }
            at -= strides[axis] * dims[axis];
            index[axis] = 0;
        }
    }
    Ok(Cow::Owned(out))
}

fn storage_dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// Gives `work` the elements of a tensor in row-major order.
pub(super) fn read<R>(
    tensor: &Tensor,
    op: &str,
    work: impl FnOnce(&[f32]) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => work(&elements(cpu, layout, op)?),
        _ => bail!("{op} runs on the CPU only"),
    }
}

/// As [`read`], for two tensors.
pub(super) fn read2<R>(
    a: &Tensor,
    b: &Tensor,
    op: &str,
    work: impl FnOnce(&[f32], &[f32]) -> Result<R>,
) -> Result<R> {
    read(a, op, |a| read(b, op, |b| work(a, b)))
}

/// What a custom op's forward returns.
pub(super) fn output(data: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(data), shape.into()))
}

/// A gradient as a tensor of the shape of `like`.
pub(super) fn tensor_like(data: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(data, like.shape(), &Device::Cpu)
}

/// Product of extents, refused when absurd (an error rather than an aborted allocation).
pub(super) fn checked_count(op: &str, dims: &[usize]) -> Result<usize> {
    match dims
        .iter()
        .try_fold(1usize, |product, d| product.checked_mul(*d))
    {
        Some(count) if count <= MAX_ELEMENTS => Ok(count),
        _ => bail!("{op} would need a tensor of shape {dims:?}, more than {MAX_ELEMENTS} elements"),
    }
}

/// Buffers that a thread keeps from one task to the next, so that kernels don't allocate in their loops.
#[derive(Default)]
pub(super) struct Scratch {
    /// Channels-last planes, in and out.
    pub planes: Buffer,
    pub wide: Buffer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Floats a thread may keep in one buffer between tasks (64 MB).
const KEEP: usize = 1 << 24;

/// Lends the thread's scratch buffers; a nested call gets fresh ones.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = SCRATCH.take();
    let result = work(&mut scratch);
    for buffer in [&mut scratch.planes, &mut scratch.wide] {
        if buffer.capacity() > KEEP {
            *buffer = Buffer::default();
        }
    }
    SCRATCH.set(scratch);
    result
}

/// The first `len` elements of a scratch buffer, grown when needed. What they hold is left over from earlier use.
pub(super) fn sized(buffer: &mut Buffer, len: usize) -> &mut [f32] {
    buffer.hold(len);
    buffer
}
