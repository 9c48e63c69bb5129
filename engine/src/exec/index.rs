//! Moving elements by an index map: slices with steps, gathers, pads, tiles, nearest resizing are all "output element i is
//! input element map[i], or a fill value". One operator with one gradient (scatter-add) serves them all.

use super::{
    Fail,
    elementwise::slice,
    value::{Array, Data, Val, count, tensor_f32, with_f32},
};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use std::sync::Arc;

/// Marks an output element that no input element goes to.
pub(super) const FILL: u32 = u32::MAX;

/// For every output element the flat index of its input element, or [`FILL`].
pub(super) struct IndexMap {
    pub shape: Vec<usize>,
    pub from: Vec<u32>,
}

impl IndexMap {
    /// Built axis by axis: `axes[k][i]` is the input position along axis `k` for output position `i`, `None` for fill.
    pub fn per_axis(
        in_shape: &[usize],
        axes: &[Vec<Option<usize>>],
    ) -> std::result::Result<Self, Fail> {
        let shape: Vec<usize> = axes.iter().map(Vec::len).collect();
        let n = count(&shape)?;
        count(in_shape)?;
        let mut stride = 1;
        let mut offsets: Vec<Vec<u32>> = vec![vec![]; axes.len()];
        for k in (0..axes.len()).rev() {
            offsets[k] = axes[k]
                .iter()
                .map(|p| p.map_or(FILL, |p| (p * stride) as u32))
                .collect();
            stride *= in_shape[k];
        }
        let mut from = Vec::with_capacity(n);
        if n > 0 {
            from.push(0u32);
        }
        // Each axis multiplies the map built so far from the axes before it.
        for o in &offsets {
            if n == 0 {
                break;
            }
            let mut next = Vec::with_capacity(from.len() * o.len());
            for &base in &from {
                next.extend(o.iter().map(|&v| {
                    if base == FILL || v == FILL {
                        FILL
                    } else {
                        base + v
                    }
                }));
            }
            from = next;
        }
        Ok(Self { shape, from })
    }
}

struct Take {
    map: Arc<IndexMap>,
    fill: f32,
}

impl CustomOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(s, l)?;
        let y = super::broadcast::map(&self.map.from, |i| {
            if i == FILL { self.fill } else { x[i as usize] }
        });
        Ok((CpuStorage::F32(y), self.map.shape.clone().into()))
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let mut acc = vec![0f32; x.elem_count()];
        with_f32(g, |g| {
            for (&i, &g) in self.map.from.iter().zip(g) {
                if i != FILL {
                    acc[i as usize] += g;
                }
            }
        })?;
        Ok(Some(tensor_f32(acc, x.dims())?))
    }
}

/// Applies the map; `fill` where nothing goes. The map's entries must lie inside `x`.
pub(super) fn take(x: &Val, map: IndexMap, fill: f64) -> std::result::Result<Val, Fail> {
    let limit = x.len();
    if map.from.iter().any(|&i| i != FILL && i as usize >= limit) {
        return Err(Fail(format!(
            "an index reaches outside a value of shape {:?}",
            x.shape()
        )));
    }
    Ok(match x {
        Val::Float(t, e) => {
            let op = Take {
                map: Arc::new(map),
                fill: fill as f32,
            };
            Val::Float(t.contiguous()?.apply_op1(op)?, *e)
        }
        Val::Array(a) => {
            let data = match &a.data {
                Data::Int(v) => Data::Int(pick(v, &map.from, fill as i64)),
                Data::F64(v) => Data::F64(pick(v, &map.from, fill)),
            };
            Val::Array(Arc::new(Array {
                element: a.element,
                shape: map.shape,
                data,
            }))
        }
    })
}

/// Whole rows (all axes but the first) of a tensor.
struct TakeRows {
    rows: Vec<usize>,
}

impl CustomOp1 for TakeRows {
    fn name(&self) -> &'static str {
        "take-rows"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(s, l)?;
        let width: usize = l.dims()[1..].iter().product();
        let mut y = Vec::with_capacity(self.rows.len() * width);
        for r in &self.rows {
            y.extend_from_slice(&x[r * width..(r + 1) * width]);
        }
        let mut shape = l.dims().to_vec();
        shape[0] = self.rows.len();
        Ok((CpuStorage::F32(y), shape.into()))
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let width: usize = x.dims()[1..].iter().product();
        let mut sums = vec![0f32; x.elem_count()];
        with_f32(g, |g| {
            for (r, g) in self.rows.iter().zip(g.chunks_exact(width)) {
                for (sum, g) in sums[r * width..(r + 1) * width].iter_mut().zip(g) {
                    *sum += g;
                }
            }
        })?;
        Ok(Some(tensor_f32(sums, x.dims())?))
    }
}

/// Rows of x by their numbers along its first axis, which the caller has checked; x is not empty.
pub(super) fn take_rows(x: &Tensor, rows: Vec<usize>) -> Result<Tensor> {
    x.contiguous()?.apply_op1(TakeRows { rows })
}

fn pick<T: Copy>(v: &[T], from: &[u32], fill: T) -> Vec<T> {
    from.iter()
        .map(|&i| if i == FILL { fill } else { v[i as usize] })
        .collect()
}
