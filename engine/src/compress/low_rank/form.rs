//! A layer's weight as a matrix of outputs × inputs, what a rank of it costs, and why a layer cannot be taken apart.

use super::KernelSplit;
use crate::{
    compress::{
        Model,
        wiring::{WeightForm, Wiring, float_weight, weight_form},
    },
    graph::{Layer, Op, Padding, Window},
};

/// How a layer becomes two.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    /// outputs × inputs; `turned`: the weight lies inputs × outputs.
    Product { turned: bool },
    /// outputs × (inputs·kernel): the whole kernel, then 1×1.
    Channel { window: Window },
    /// (outputs·kw) × (inputs·kh): kh×1, then 1×kw.
    Spatial { window: Window },
}

/// Parameters of the weight and multiply–accumulates of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::compress) struct Cost {
    pub params: u64,
    /// `None` where shapes are not known.
    pub macs: Option<u64>,
}

impl Cost {
    pub fn times(self, rank: usize) -> Self {
        Self {
            params: self.params * rank as u64,
            macs: self.macs.map(|m| m * rank as u64),
        }
    }

    /// Whether both are less than `other`'s; MACs that are not known on either side do not count.
    pub fn saves(self, other: Self) -> bool {
        let macs = self.macs.zip(other.macs).is_none_or(|(a, b)| a < b);
        self.params < other.params && macs
    }
}

impl Form {
    /// Rows and columns of the matrix, for a weight of this shape.
    pub fn extents(&self, shape: &[usize]) -> (usize, usize) {
        match (self, shape) {
            (Self::Product { turned: true }, [columns, rows]) => (*rows, *columns),
            (Self::Spatial { .. }, [outputs, inputs, kh, kw]) => (outputs * kw, inputs * kh),
            (_, [rows, rest @ ..]) => (*rows, rest.iter().product()),
            (_, []) => (1, 1),
        }
    }

    /// The matrix's elements row after row.
    pub fn matrix(&self, shape: &[usize], weight: &[f32]) -> Vec<f32> {
        match (self, shape) {
            (Self::Product { turned: true }, [columns, rows]) => turned(weight, *columns, *rows),
            (Self::Spatial { .. }, [_, inputs, kh, kw]) => {
                let columns = inputs * kh;
                let at = |i: usize| {
                    let (row, column) = (i / columns, i % columns);
                    let (o, x, c, y) = (row / kw, row % kw, column / kh, column % kh);
                    weight[((o * inputs + c) * kh + y) * kw + x]
                };
                (0..weight.len()).map(at).collect()
            }
            _ => weight.to_vec(),
        }
    }

    /// Weight of the first layer with its shape, from rank×columns.
    pub fn first(&self, shape: &[usize], rank: usize, right: Vec<f32>) -> (Vec<usize>, Vec<f32>) {
        match (self, shape) {
            (Self::Product { turned: true }, [columns, _]) => {
                (vec![*columns, rank], turned(&right, rank, *columns))
            }
            (Self::Spatial { .. }, [_, inputs, kh, _]) => (vec![rank, *inputs, *kh, 1], right),
            (_, [_, rest @ ..]) => ([&[rank], rest].concat(), right),
            (_, []) => (vec![rank], right),
        }
    }

    /// Weight of the second layer with its shape, from rows×rank.
    pub fn second(&self, shape: &[usize], rank: usize, left: Vec<f32>) -> (Vec<usize>, Vec<f32>) {
        match (self, shape) {
            (Self::Product { turned: true }, [_, rows]) => {
                (vec![rank, *rows], turned(&left, *rows, rank))
            }
            (Self::Spatial { .. }, [outputs, _, _, kw]) => {
                // (output, x) × rank → output × rank × 1 × x.
                let at = |i: usize| {
                    let (o, r, x) = (i / kw / rank, i / kw % rank, i % kw);
                    left[(o * kw + x) * rank + r]
                };
                let values = (0..left.len()).map(at).collect();
                (vec![*outputs, rank, 1, *kw], values)
            }
            (Self::Product { .. }, _) => (vec![left.len() / rank.max(1), rank], left),
            (_, [outputs, _, rest @ ..]) => {
                ([&[*outputs, rank][..], &vec![1; rest.len()]].concat(), left)
            }
            _ => (vec![left.len()], left),
        }
    }

    /// The two operators.
    pub fn operators(&self, op: &Op) -> (Op, Op) {
        let conv = |window: Window| Op::Conv { window, group: 1 };
        match (self, op) {
            (
                Self::Product { .. },
                Op::Gemm {
                    alpha,
                    beta,
                    trans_b,
                    ..
                },
            ) => {
                let gemm = |alpha: f32, beta: f32| Op::Gemm {
                    alpha,
                    beta,
                    trans_a: false,
                    trans_b: *trans_b,
                };
                (gemm(*alpha, 1.0), gemm(1.0, *beta))
            }
            (Self::Product { .. }, op) => (op.clone(), op.clone()),
            (Self::Channel { window }, _) => {
                let axes = window.kernel.len();
                let second = Window {
                    kernel: vec![1; axes],
                    strides: vec![1; axes],
                    dilations: vec![1; axes],
                    padding: Padding::Explicit(vec![0; 2 * axes]),
                };
                (conv(window.clone()), conv(second))
            }
            (Self::Spatial { window }, _) => (conv(along(window, 0)), conv(along(window, 1))),
        }
    }
}

/// The part of a window that lies along one of its two axes.
fn along(window: &Window, axis: usize) -> Window {
    let only = |values: &[usize], none: usize| -> Vec<usize> {
        let of = |i: usize| values.get(i).copied().unwrap_or(none);
        (0..2)
            .map(|i| if i == axis { of(i) } else { none })
            .collect()
    };
    Window {
        kernel: only(&window.kernel, 1),
        strides: only(&window.strides, 1),
        dilations: only(&window.dilations, 1),
        padding: match &window.padding {
            Padding::Explicit(pads) => {
                let of = |i: usize| pads.get(i).copied().unwrap_or(0);
                Padding::Explicit(
                    (0..4)
                        .map(|i| if i % 2 == axis { of(i) } else { 0 })
                        .collect(),
                )
            }
            same => same.clone(),
        },
    }
}

/// rows×columns turned to columns×rows.
fn turned(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let at = |i: usize| values[i % rows * columns + i / rows];
    (0..rows * columns).map(at).collect()
}

/// A layer that can be taken apart.
pub(in crate::compress) struct Plan {
    pub form: Form,
    pub weight: Vec<f32>,
    pub dense: Cost,
    pub per_rank: Cost,
}

/// How a layer can be taken apart, or why not.
pub(in crate::compress) fn plan(
    model: &Model,
    wiring: &Wiring,
    layers: &[Layer],
    layer: &Layer,
    kernels: KernelSplit,
) -> Result<Plan, String> {
    let graph = &model.graph;
    let shape = &layer.weight_shape;
    let form = match &graph.node(layer.node).op {
        Op::Conv { group: 1, window } => {
            let window = window.clone();
            match (kernels, &shape[2..]) {
                (KernelSplit::Spatial, [kh, kw]) if *kh > 1 && *kw > 1 => Form::Spatial { window },
                _ => Form::Channel { window },
            }
        }
        Op::Conv { group, .. } => {
            return Err(format!(
                "its {group} groups each have a small weight of their own: nothing to take apart"
            ));
        }
        Op::Gemm {
            trans_a: false,
            trans_b,
            ..
        } => Form::Product { turned: !trans_b },
        Op::MatMul if shape.len() == 2 => Form::Product { turned: true },
        _ => return Err(format!("this form of {} is not taken apart", layer.op)),
    };
    match weight_form(graph, wiring, layer) {
        (1, WeightForm::Float) => {}
        (1, WeightForm::Quantized { .. } | WeightForm::Half) => {
            return Err("its weight is quantised already".to_owned());
        }
        _ => return Err("its weight is computed, or the left factor of a product".to_owned()),
    }
    let weight = float_weight(graph, layer)?;
    if weight.iter().any(|w| !w.is_finite()) {
        return Err("its weights hold NaN or infinite values".to_owned());
    }
    if model.masks.contains_key(&graph.value(layer.weight).name) {
        return Err("its weights are pruned: factors would not have the zeros".to_owned());
    }
    if !wiring.has_own_weight(layers, layer) {
        return Err("its weight is used in several places".to_owned());
    }
    let (rows, columns) = form.extents(shape);
    let dense = Cost {
        params: weight.len() as u64,
        macs: layer.macs,
    };
    // Every output is computed from all inputs once: positions × rows × columns.
    let positions = layer.macs.map(|m| m / dense.params.max(1));
    let first = match (&form, positions) {
        (Form::Spatial { .. }, Some(at)) => {
            let width = |value| graph.value(value).shape.as_ref()?.last()?.known();
            match (width(layer.input), width(layer.output)) {
                (Some(read), Some(written)) if written > 0 => {
                    Some(at / written as u64 * read as u64)
                }
                _ => None,
            }
        }
        (_, positions) => positions,
    };
    let per_rank = Cost {
        params: (rows + columns) as u64,
        macs: positions
            .zip(first)
            .map(|(second, first)| first * columns as u64 + second * rows as u64),
    };
    Ok(Plan {
        form,
        weight,
        dense,
        per_rank,
    })
}
