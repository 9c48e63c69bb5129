//! Carrying out joined steps.

use super::{Item, Work};
use crate::{
    exec::{
        Fail,
        fuse::Step,
        kernels::{
            chain::{From, Link, Side, chain},
            planes::isa,
            rows::{layer_norm_in_place, softmax_in_place},
        },
        ops,
        value::{Val, tensor_f32, with_f32},
    },
    graph::{ElementType, Op},
};
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

/// A float32 tensor, or nothing: joined steps know no other type.
fn plain(v: Option<&Val>) -> Option<&Tensor> {
    match v {
        Some(Val::Float(t, ElementType::F32)) => Some(t),
        _ => None,
    }
}

impl Item {
    /// The item's result; `None` where its steps must be taken one by one (other types, an input that broadcasts).
    pub fn run(&self, inputs: &[Option<Val>]) -> Result<Option<Vec<Val>>, Fail> {
        let first = inputs.first().and_then(Option::as_ref);
        let one = |t: Tensor| Ok(Some(vec![Val::f32(t)]));
        match &self.work {
            Work::Step(step) => {
                // Several steps stand behind it: only for the type that they were joined for.
                if self.steps.len() > 1 {
                    let known = inputs.iter().all(|v| plain(v.as_ref()).is_some());
                    let same = known && inputs[1..].iter().all(|v| fits(first, v.as_ref()));
                    if !same {
                        return Ok(None);
                    }
                }
                if self.in_place
                    && let Some(done) = over(step, inputs)?
                {
                    return Ok(Some(vec![done]));
                }
                ops::eval(step, inputs, self.outputs.len()).map(Some)
            }
            Work::View(perm) => match plain(first) {
                Some(x) if x.rank() == perm.len() => one(x.permute(perm.clone())?),
                _ => Ok(None),
            },
            Work::Product => {
                let all: Option<Vec<&Tensor>> = inputs.iter().map(|v| plain(v.as_ref())).collect();
                match all.as_deref() {
                    Some([a, b, vector]) if a.rank() > 1 => one(ops::matmul_plus(a, b, vector)?),
                    _ => Ok(None),
                }
            }
            Work::Chain(links) => {
                let all: Option<Vec<&Tensor>> = inputs.iter().map(|v| plain(v.as_ref())).collect();
                let Some([x, others @ ..]) = all.as_deref() else {
                    return Ok(None);
                };
                let others = others
                    .iter()
                    .map(|t| t.contiguous())
                    .collect::<candle_core::Result<Vec<_>>>()?;
                with_all(&others, &mut Vec::new(), &mut |sides| {
                    let shapes = others.iter().map(|t| t.dims());
                    let sides: Option<Vec<Side<'_>>> = sides
                        .iter()
                        .zip(shapes)
                        .map(|(data, shape)| Side::new(data, shape, x.dims()))
                        .collect();
                    let Some(sides) = sides else { return Ok(None) };
                    if self.in_place && x.is_contiguous() {
                        x.inplace_op1(&Over {
                            links,
                            sides: &sides,
                        })?;
                        return Ok(Some(vec![Val::f32((*x).clone())]));
                    }
                    let out = with_f32(x, |x| {
                        let mut out = vec![0.0; x.len()];
                        chain(isa(), links, From::Slice(x), &sides, &mut out);
                        out
                    })?;
                    Ok(Some(vec![Val::f32(tensor_f32(out, x.dims())?)]))
                })
            }
        }
    }
}

/// Whether a vector is one of the last axis.
fn fits(x: Option<&Val>, v: Option<&Val>) -> bool {
    match (x, v) {
        (Some(x), Some(v)) => v.rank() == 1 && x.shape().last() == v.shape().last(),
        _ => false,
    }
}

/// Softmax or layer norm over the memory of their input; `None` where that cannot be.
fn over(step: &Step, inputs: &[Option<Val>]) -> Result<Option<Val>, Fail> {
    let Some(x) = plain(inputs.first().and_then(Option::as_ref)) else {
        return Ok(None);
    };
    let rank = x.rank();
    let last = |axis: i64| axis == -1 || (axis >= 0 && axis as usize + 1 == rank);
    let (Some(&n), true) = (x.dims().last(), x.is_contiguous() && x.elem_count() > 0) else {
        return Ok(None);
    };
    let rows = x.reshape((x.elem_count() / n, n))?;
    match step {
        Step::Op(Op::Softmax {
            axis,
            flatten: false,
        }) if last(*axis) => softmax_in_place(&rows, false)?,
        Step::Op(Op::LogSoftmax {
            axis,
            flatten: false,
        }) if last(*axis) => softmax_in_place(&rows, true)?,
        Step::Op(Op::LayerNormalization { axis, epsilon }) if last(*axis) => {
            let (scale, shift) = (inputs.get(1), inputs.get(2));
            let (Some(Some(scale)), Some(Some(shift))) = (scale, shift) else {
                return Ok(None);
            };
            let (Some(scale), Some(shift)) = (plain(Some(scale)), plain(Some(shift))) else {
                return Ok(None);
            };
            if scale.dims() != [n] || shift.dims() != [n] {
                return Ok(None);
            }
            layer_norm_in_place(&rows, scale, shift, f64::from(*epsilon))?;
        }
        _ => return Ok(None),
    }
    Ok(Some(Val::f32(x.clone())))
}

/// A chain written over its input.
struct Over<'a> {
    links: &'a [Link],
    sides: &'a [Side<'a>],
}

impl InplaceOp1 for Over<'_> {
    fn name(&self) -> &'static str {
        "chain"
    }
    fn cpu_fwd(&self, s: &mut CpuStorage, l: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(data) = s else {
            candle_core::bail!("a chain computes in f32")
        };
        match l.contiguous_offsets().and_then(|(a, b)| data.get_mut(a..b)) {
            Some(part) => chain(isa(), self.links, From::Out, self.sides, part),
            None => candle_core::bail!("a chain written in place lies in one piece"),
        }
        Ok(())
    }
}

/// Who works on several tensors' elements.
type Borrower<'w, R> = dyn FnMut(&[&[f32]]) -> Result<R, Fail> + 'w;

/// Lends the elements of several contiguous tensors at once.
fn with_all<R>(
    tensors: &[Tensor],
    lent: &mut Vec<&[f32]>,
    work: &mut Borrower<'_, R>,
) -> Result<R, Fail> {
    let Some((head, rest)) = tensors.split_first() else {
        return work(lent);
    };
    with_f32(head, |data| {
        let mut more: Vec<&[f32]> = lent.clone();
        more.push(data);
        with_all(rest, &mut more, work)
    })?
}
