//! A safe door to the `gemm` crate, single-threaded: kernels bring their own parallelism.

/// A matrix inside a slice: element (r, c) is at `r·row + c·column`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows one behind another at `row` elements' distance.
    pub fn rows(data: &'a [f32], row: usize) -> Self {
        Self {
            data,
            row,
            column: 1,
        }
    }
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            row: self.column,
            column: self.row,
        }
    }
    fn holds(&self, rows: usize, columns: usize) -> bool {
        reaches(rows, columns, self.row, self.column) <= self.data.len()
    }
}

/// One past the last element touched.
fn reaches(rows: usize, columns: usize, row: usize, column: usize) -> usize {
    if rows == 0 || columns == 0 {
        0
    } else {
        (rows - 1) * row + (columns - 1) * column + 1
    }
}

/// `c = a·b`, or `c += a·b` with `accumulate`; a is m×k, b is k×n, c is m×n with rows at `c_row` elements' distance.
/// The same bits for the same sizes and strides, whoever calls.
#[allow(unsafe_code)] // the crate's only entry takes raw pointers
pub(super) fn matmul(
    (m, n, k): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    c_row: usize,
    accumulate: bool,
) {
    assert!(
        a.holds(m, k)
            && b.holds(k, n)
            && reaches(m, n, c_row, 1) <= c.len()
            && (m < 2 || c_row >= n),
        "matmul: a matrix lies within its slice (a kernel computed a wrong size)"
    );
    if k == 0 && !accumulate {
        for row in c.chunks_mut(c_row.max(1)).take(m) {
            row[..n].fill(0.0);
        }
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    // SAFETY: the assertion above shows that every element which gemm reads (a: m×k, b: k×n, c: m×n at these strides)
    // lies within its slice; the slices are initialised, aligned f32; strides fit isize as slices do; `c` is borrowed mutably, so it
    // overlaps neither input, and its rows don't overlap each other because c_row ≥ n.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            c_row as isize,
            accumulate,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
