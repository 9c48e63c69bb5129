//! Matrix products on the calling thread, for work that is shared out among threads at a higher level: their bits then depend on
//! nothing but the operands.

use gemm::Parallelism;

/// A matrix that lies in a slice by its strides.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    /// `rows`×`columns` from the start of `data`, rows `stride` apart and each in one piece.
    ///
    /// # Panics
    /// Where `data` is too short.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        let end = match rows {
            0 => 0,
            rows => (rows - 1)
                .checked_mul(stride)
                .and_then(|n| n.checked_add(columns))
                .expect("a matrix in memory has fewer elements than an address counts"),
        };
        assert!(
            data.len() >= end && (rows < 2 || stride >= columns),
            "{rows}×{columns} floats, rows {stride} apart, do not fit into {}",
            data.len()
        );
        Self {
            data,
            rows,
            columns,
            row: stride,
            column: 1,
        }
    }

    /// `rows`×`columns` from the start of `data`, by steps from one row and one column to the next; `None` where that reaches beyond `data`.
    pub fn strided(
        data: &'a [f32],
        (rows, columns): (usize, usize),
        (row, column): (usize, usize),
    ) -> Option<Self> {
        let last = |extent: usize, step: usize| extent.saturating_sub(1).checked_mul(step);
        let reach = last(rows, row)?.checked_add(last(columns, column)?)?;
        (rows * columns == 0 || reach < data.len()).then_some(Self {
            data,
            rows,
            columns,
            row,
            column,
        })
    }

    /// The same elements, rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row: self.column,
            column: self.row,
            ..self
        }
    }
}

/// `out = a·b`, where `out` lies row after row.
///
/// # Panics
/// Where the extents do not match.
pub fn matmul(a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32]) {
    multiply(a, b, out, false, Parallelism::None);
}

/// `out = a·b`, or `out + a·b` where `add`.
///
/// # Panics
/// Where the extents do not match.
#[allow(unsafe_code)] // calls the product of the `gemm` crate, which takes pointers
pub(super) fn multiply(
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    add: bool,
    parallelism: Parallelism,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(
        b.rows == k && out.len() == m * n,
        "{m}×{k} times {}×{n} into {}",
        b.rows,
        out.len()
    );
    if m * n == 0 {
        return;
    }
    if k == 0 {
        if !add {
            out.fill(0.0);
        }
        return;
    }
    // SAFETY: `Matrix` is made by `new` and `strided` alone (and `transposed`, which keeps the set of offsets), so every offset
    // r·row + c·column with r < rows and c < columns lies inside its slice; `out` was just checked to hold m·n floats and, being
    // borrowed mutably, overlaps neither. Strides fit an isize because the slices they step through do.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_plain_sum() {
        let numbers = |n: usize, by: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * by % 17) as f32 - 8.0) / 4.0).collect()
        };
        for (m, k, n, gap) in [(1, 1, 1, 0), (3, 5, 7, 2), (16, 33, 9, 0), (2, 0, 3, 1)] {
            let (a, b) = (numbers(m * (k + gap), 7), numbers(n * (k + gap), 5));
            let mut out = vec![f32::NAN; m * n];
            let left = Matrix::new(&a, m, k, k + gap);
            let right = Matrix::new(&b, n, k, k + gap).transposed();
            matmul(left, right, &mut out);
            for i in 0..m {
                for j in 0..n {
                    let sum: f32 = (0..k)
                        .map(|l| a[i * (k + gap) + l] * b[j * (k + gap) + l])
                        .sum();
                    assert!((out[i * n + j] - sum).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn a_slice_that_is_too_short_is_refused() {
        let _ = Matrix::new(&[0.0; 5], 2, 3, 3);
    }
}
