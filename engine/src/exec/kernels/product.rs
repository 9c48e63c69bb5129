//! Matrix products, singly or as many pairs as the leading axes count, of operands in any layout: transposed and broadcast ones are read
//! where they lie.

use super::{
    host::{on_pool, output},
    matmul::{Matrix, multiply},
};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use gemm::Parallelism;
use rayon::prelude::*;

/// `a·b`, plus `rows` (a float for each column) where given.
struct Product {
    rows: Option<Vec<f32>>,
}

impl Product {
    const NAME: &'static str = "matmul";
}

/// Where the pairs of matrices begin, and the steps within one.
struct Operand<'a> {
    data: &'a [f32],
    starts: Vec<usize>,
    row: usize,
    column: usize,
}

impl<'a> Operand<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let CpuStorage::F32(data) = storage else {
            bail!("{}: expected f32", Product::NAME)
        };
        let (dims, steps) = (layout.dims(), layout.stride());
        let rank = dims.len();
        let mut starts = vec![layout.start_offset()];
        for (extent, step) in dims.iter().zip(steps).take(rank - 2) {
            starts = starts
                .iter()
                .flat_map(|start| (0..*extent).map(move |i| start + i * step))
                .collect();
        }
        let (row, column) = (steps[rank - 2], steps[rank - 1]);
        Ok(Self {
            data,
            starts,
            row,
            column,
        })
    }
}

impl<'a> Operand<'a> {
    fn matrix(&self, pair: usize, extents: (usize, usize)) -> Result<Matrix<'a>> {
        let data = self.data.get(self.starts[pair]..);
        let matrix = data.and_then(|d| Matrix::strided(d, extents, (self.row, self.column)));
        match matrix {
            Some(matrix) => Ok(matrix),
            None => bail!("{}: a layout reaches beyond its storage", Product::NAME),
        }
    }
}

/// Pairs from which on each is one thread's work.
const MANY: usize = 4;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (da, db) = (la.dims(), lb.dims());
        let (pairs, m, k, n) = match (da, db) {
            ([x @ .., m, k], [y @ .., k2, n]) if x == y && k == k2 => {
                (x.iter().product::<usize>(), *m, *k, *n)
            }
            _ => bail!("{}: shapes {da:?} and {db:?}", Self::NAME),
        };
        let shape = [&da[..da.len() - 1], &[n]].concat();
        let mut out = vec![0f32; pairs * m * n];
        if let Some(rows) = &self.rows {
            if rows.len() != n {
                bail!("{}: {} additions for {n} columns", Self::NAME, rows.len())
            }
            for row in out.chunks_exact_mut(n.max(1)) {
                row.copy_from_slice(rows);
            }
        }
        if out.is_empty() || k == 0 {
            return output(out, shape);
        }
        let (a, b) = (Operand::new(a, la)?, Operand::new(b, lb)?);
        let one = |pair: usize, out: &mut [f32], parallelism: Parallelism| -> Result<()> {
            let (a, b) = (a.matrix(pair, (m, k))?, b.matrix(pair, (k, n))?);
            multiply(a, b, out, self.rows.is_some(), parallelism);
            Ok(())
        };
        on_pool(|| {
            if pairs >= MANY {
                out.par_chunks_mut(m * n)
                    .enumerate()
                    .try_for_each(|(pair, out)| one(pair, out, Parallelism::None))
            } else {
                let threads = Parallelism::Rayon(rayon::current_num_threads());
                out.chunks_mut(m * n)
                    .enumerate()
                    .try_for_each(|(pair, out)| one(pair, out, threads))
            }
        })?;
        output(out, shape)
    }
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let plain = || Self { rows: None };
        let ga = a
            .track_op()
            .then(|| g.apply_op2(&b.detach().t()?, plain()))
            .transpose()?;
        let gb = b
            .track_op()
            .then(|| a.detach().t()?.apply_op2(g, plain()))
            .transpose()?;
        Ok((ga, gb))
    }
}

/// `a·b` of …×m×k and …×k×n (the same leading axes), plus `rows` to every row where given; on the engine's threads, differentiable in a
/// and b.
///
/// # Errors
/// Operands that are not f32, shapes that do not fit.
pub fn product(a: &Tensor, b: &Tensor, rows: Option<Vec<f32>>) -> Result<Tensor> {
    a.apply_op2(b, Product { rows })
}
