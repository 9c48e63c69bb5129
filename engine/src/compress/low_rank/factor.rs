//! Principal directions of a layer's outputs, or of its weight: with U the eigenvectors of W·S·Wᵀ, S the second moment of what the layer
//! reads, U_r·(U_rᵀ·W) is the product of rank r whose outputs come nearest (Zhang et al. 2015, §3; the same as truncating the SVD of the
//! whitened weight, as in DRONE, Chen et al. 2021). With S = 1 it is the truncated SVD of W.

use nalgebra::{DMatrix, SymmetricEigen};

/// A weight as a matrix, on the way to two factors.
pub(crate) struct Factors {
    rows: usize,
    columns: usize,
    weight: Vec<f32>,
    /// Where there are more rows than columns: an orthonormal basis of what the outputs lie in, rows×columns.
    basis: Option<DMatrix<f64>>,
}

/// Directions from the one of most energy on.
pub(crate) struct Spectrum {
    /// rows×width, orthonormal columns.
    directions: DMatrix<f64>,
    /// Never below 0.
    pub energies: Vec<f64>,
}

impl Spectrum {
    pub fn total(&self) -> f64 {
        self.energies.iter().sum()
    }

    /// Share of the energy that the first `rank` directions hold.
    pub fn kept(&self, rank: usize) -> f64 {
        let (kept, lost) = self.energies.split_at(rank.min(self.energies.len()));
        let (kept, lost) = (kept.iter().sum::<f64>(), lost.iter().sum::<f64>());
        if kept + lost > 0.0 {
            kept / (kept + lost)
        } else {
            1.0
        }
    }
}

impl Factors {
    /// `weight` lies row after row.
    pub fn new(weight: Vec<f32>, rows: usize, columns: usize) -> Self {
        let basis = (rows > columns).then(|| matrix(&weight, rows, columns).qr().q());
        Self {
            rows,
            columns,
            weight,
            basis,
        }
    }

    /// Directions that outputs can have.
    pub fn width(&self) -> usize {
        self.rows.min(self.columns)
    }

    /// The basis that outputs are looked at in, width×rows row after row; `None`: as they are.
    pub fn projection(&self) -> Option<Vec<f32>> {
        // Column after column of rows×width is row after row of its transpose.
        let basis = self.basis.as_ref()?;
        Some(basis.as_slice().iter().map(|v| *v as f32).collect())
    }

    /// By the second moment of the outputs in [`Factors::projection`]'s basis, width×width; `None`: by the weight alone.
    pub fn spectrum(&self, moment: Option<&[f64]>) -> Spectrum {
        let width = self.width();
        let moment = match moment {
            Some(moment) => DMatrix::from_row_slice(width, width, moment),
            None => {
                let weight = matrix(&self.weight, self.rows, self.columns);
                let inside = match &self.basis {
                    Some(basis) => basis.tr_mul(&weight),
                    None => weight,
                };
                &inside * inside.transpose()
            }
        };
        let eigen = SymmetricEigen::new(moment);
        let mut order: Vec<usize> = (0..width).collect();
        let of = |i: &usize| eigen.eigenvalues[*i];
        order.sort_by(|a, b| of(b).total_cmp(&of(a)).then(a.cmp(b)));
        let sorted = eigen.eigenvectors.select_columns(&order);
        Spectrum {
            energies: order.iter().map(|i| of(i).max(0.0)).collect(),
            directions: match &self.basis {
                Some(basis) => basis * sorted,
                None => sorted,
            },
        }
    }

    /// The two factors, rows×rank and rank×columns row after row: what belongs to one direction has the same norm in both.
    pub fn split(&self, spectrum: &Spectrum, rank: usize) -> (Vec<f32>, Vec<f32>) {
        let weight = matrix(&self.weight, self.rows, self.columns);
        let mut left = spectrum.directions.columns(0, rank).into_owned();
        let mut right = left.tr_mul(&weight);
        for i in 0..rank {
            let (a, b) = (left.column(i).norm(), right.row(i).norm());
            let scale = if a > 0.0 && b > 0.0 {
                (b / a).sqrt()
            } else {
                1.0
            };
            left.column_mut(i).scale_mut(scale);
            right.row_mut(i).scale_mut(1.0 / scale);
        }
        (rows_of(&left), rows_of(&right))
    }
}

fn matrix(weight: &[f32], rows: usize, columns: usize) -> DMatrix<f64> {
    DMatrix::from_row_iterator(rows, columns, weight.iter().map(|w| f64::from(*w)))
}

/// Row after row.
fn rows_of(matrix: &DMatrix<f64>) -> Vec<f32> {
    matrix
        .transpose()
        .as_slice()
        .iter()
        .map(|v| *v as f32)
        .collect()
}
