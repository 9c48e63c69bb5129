//! Broadcasting by the rules of numpy, and the loops over broadcast operands. Work is cut into fixed pieces, so results
//! do not depend on the number of threads.

use super::{Fail, pool::on_pool};
use rayon::prelude::*;

/// Elements a task handles; below it nothing is gained by a second thread.
pub(super) const CHUNK: usize = 1 << 14;

/// The common shape of operands, or an error that names them.
pub(super) fn broadcast_shape(shapes: &[&[usize]]) -> Result<Vec<usize>, Fail> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for s in shapes {
        for (o, &d) in out[rank - s.len()..].iter_mut().zip(*s) {
            if *o == 1 {
                *o = d;
            } else if d != 1 && d != *o {
                return Err(Fail(format!(
                    "shapes {shapes:?} cannot be broadcast together"
                )));
            }
        }
    }
    super::value::count(&out)?;
    Ok(out)
}

/// Row-major strides, 0 where `shape` is broadcast to `out`.
pub(super) fn strides_in(shape: &[usize], out: &[usize]) -> Vec<usize> {
    let mut strides = vec![0; out.len()];
    let lead = out.len() - shape.len();
    let mut step = 1;
    for i in (0..shape.len()).rev() {
        if shape[i] != 1 {
            strides[lead + i] = step;
        }
        step *= shape[i];
    }
    strides
}

/// The iteration space of two broadcast operands with neighbouring axes merged where both allow it.
pub(super) struct Walk {
    dims: Vec<usize>,
    a: Vec<usize>,
    b: Vec<usize>,
}

impl Walk {
    fn new(a: &[usize], b: &[usize], out: &[usize]) -> Self {
        let (sa, sb) = (strides_in(a, out), strides_in(b, out));
        let mut w = Self {
            dims: vec![],
            a: vec![],
            b: vec![],
        };
        for i in 0..out.len() {
            if out[i] == 1 {
                continue;
            }
            if let (Some(d), Some(pa), Some(pb)) =
                (w.dims.last_mut(), w.a.last_mut(), w.b.last_mut())
                && *pa == sa[i] * out[i]
                && *pb == sb[i] * out[i]
            {
                *d *= out[i];
                (*pa, *pb) = (sa[i], sb[i]);
            } else {
                w.dims.push(out[i]);
                w.a.push(sa[i]);
                w.b.push(sb[i]);
            }
        }
        if w.dims.is_empty() {
            (w.dims, w.a, w.b) = (vec![1], vec![0], vec![0]);
        }
        w
    }

    /// For one operand alone.
    pub fn of(shape: &[usize], out: &[usize]) -> Self {
        Self::new(shape, shape, out)
    }

    /// Elements of the whole space.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Length of a row, and by how much the first operand moves along it: 0 or 1.
    pub fn row(&self) -> (usize, usize) {
        (self.dims[self.dims.len() - 1], self.a[self.a.len() - 1])
    }

    /// Where row `row` begins in the first operand.
    pub fn offset(&self, row: usize) -> usize {
        self.offsets(row).0
    }

    /// Offsets of row `row` (all axes but the last) in both operands.
    fn offsets(&self, mut row: usize) -> (usize, usize) {
        let (mut oa, mut ob) = (0, 0);
        for i in (0..self.dims.len() - 1).rev() {
            let at = row % self.dims[i];
            row /= self.dims[i];
            oa += at * self.a[i];
            ob += at * self.b[i];
        }
        (oa, ob)
    }
}

/// `f` over two operands broadcast to `out`.
pub(super) fn zip<A, B, R>(
    (a, a_shape): (&[A], &[usize]),
    (b, b_shape): (&[B], &[usize]),
    out: &[usize],
    f: impl Fn(A, B) -> R + Sync,
) -> Vec<R>
where
    A: Copy + Sync,
    B: Copy + Sync,
    R: Copy + Default + Send,
{
    let n: usize = out.iter().product();
    if n == 0 {
        return vec![];
    }
    if n == 1 {
        return vec![f(a[0], b[0])];
    }
    let walk = Walk::new(a_shape, b_shape, out);
    let row = walk.dims[walk.dims.len() - 1];
    let (ia, ib) = (walk.a[walk.a.len() - 1], walk.b[walk.b.len() - 1]);
    let fill = |mut at: usize, out: &mut [R]| {
        let mut done = 0;
        while done < out.len() {
            let (r, c) = (at / row, at % row);
            let len = (row - c).min(out.len() - done);
            let (oa, ob) = walk.offsets(r);
            let o = &mut out[done..done + len];
            match (ia, ib) {
                (0, 0) => o.fill(f(a[oa], b[ob])),
                (0, _) => {
                    let x = a[oa];
                    for (o, &y) in o.iter_mut().zip(&b[ob + c..ob + c + len]) {
                        *o = f(x, y);
                    }
                }
                (_, 0) => {
                    let y = b[ob];
                    for (o, &x) in o.iter_mut().zip(&a[oa + c..oa + c + len]) {
                        *o = f(x, y);
                    }
                }
                _ => {
                    let (a, b) = (&a[oa + c..oa + c + len], &b[ob + c..ob + c + len]);
                    for ((o, &x), &y) in o.iter_mut().zip(a).zip(b) {
                        *o = f(x, y);
                    }
                }
            }
            done += len;
            at += len;
        }
    };
    let mut v = vec![R::default(); n];
    if n < 2 * CHUNK {
        fill(0, &mut v);
    } else {
        on_pool(|| {
            v.par_chunks_mut(CHUNK)
                .enumerate()
                .for_each(|(i, o)| fill(i * CHUNK, o));
        });
    }
    v
}

/// `f` over every element.
pub(super) fn map<A: Copy + Sync, R: Copy + Default + Send>(
    a: &[A],
    f: impl Fn(A) -> R + Sync,
) -> Vec<R> {
    if a.len() < 2 * CHUNK {
        return a.iter().map(|&x| f(x)).collect();
    }
    let mut v = vec![R::default(); a.len()];
    on_pool(|| {
        v.par_chunks_mut(CHUNK)
            .zip(a.par_chunks(CHUNK))
            .for_each(|(o, a)| {
                for (o, &x) in o.iter_mut().zip(a) {
                    *o = f(x);
                }
            });
    });
    v
}

/// Sums `g` of shape `from` over the axes along which `to` was broadcast to it. In f64, in storage order.
pub(super) fn sum_to(g: &[f32], from: &[usize], to: &[usize]) -> Vec<f32> {
    let n: usize = to.iter().product();
    let mut acc = vec![0f64; n];
    if !g.is_empty() && n > 0 {
        // The second operand of the walk is `g` itself: it only keeps axes apart that `to` distinguishes.
        let walk = Walk::new(to, from, from);
        let row = walk.dims[walk.dims.len() - 1];
        let inner = walk.a[walk.a.len() - 1];
        for (r, g) in g.chunks_exact(row).enumerate() {
            let (at, _) = walk.offsets(r);
            if inner == 0 {
                acc[at] += sum(g);
            } else {
                for (a, &g) in acc[at..at + row].iter_mut().zip(g) {
                    *a += f64::from(g);
                }
            }
        }
    }
    acc.into_iter().map(|v| v as f32).collect()
}

/// Sum in f64 with four interleaved partial sums: a fixed order that still vectorises.
pub(super) fn sum(v: &[f32]) -> f64 {
    let (quads, rest) = v.as_chunks::<4>();
    let mut acc = [0f64; 4];
    for q in quads {
        for (a, &x) in acc.iter_mut().zip(q) {
            *a += f64::from(x);
        }
    }
    let tail: f64 = rest.iter().map(|&x| f64::from(x)).sum();
    (acc[0] + acc[1]) + (acc[2] + acc[3]) + tail
}
