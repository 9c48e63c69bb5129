//! The door from a program to its lowered form: made once for each size of image, taken where nothing asks for more.

use super::{
    CancelToken, ExecError, Fail, Mode, Program,
    lowered::{Gradients, Loss, Lowered, Planned, Source, Spaces, TwoWay, weight_slots},
    ops,
    pool::on_pool,
    program::{check_shape, node_error},
    value::{Val, with_f32},
};
use crate::graph::ElementType;
use candle_core::{Result as CandleResult, Tensor};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

/// Lowered forms made so far, by the shape of a sample; `None` where there is none.
#[derive(Default)]
pub(super) struct Quick {
    forms: Mutex<Vec<Form>>,
    spaces: Spaces,
}

/// Shape of a sample, and the form for it.
type Form = (Vec<usize>, Option<Arc<Lowered>>);

/// A program as lowering sees it, with the values of what depends on weights alone.
struct View<'a> {
    program: &'a Program,
    weights: BTreeMap<usize, Val>,
}

impl Source for View<'_> {
    fn steps(&self) -> Vec<Planned<'_>> {
        parts(self.program)
    }
    fn input(&self) -> Option<usize> {
        match self.program.inputs.as_slice() {
            [input] if input.element.is_none_or(|e| e == ElementType::F32) => Some(input.slot),
            _ => None,
        }
    }
    fn outputs(&self) -> Vec<usize> {
        self.program.outputs.iter().map(|(slot, _)| *slot).collect()
    }
    fn constant(&self, slot: usize) -> Option<&Val> {
        self.program.constants.get(&slot)
    }
    fn weight_shape(&self, slot: usize) -> Option<Vec<usize>> {
        match self.weights.get(&slot) {
            Some(value) => Some(value.shape().to_vec()),
            None => self.program.constants.shape(&slot).map(<[_]>::to_vec),
        }
    }
    fn is_constant(&self, slot: usize) -> bool {
        self.program.constants.contains_key(&slot)
    }
    fn passing(&self, slot: usize) -> Option<Val> {
        self.program.constants.once(&slot)
    }
    fn training(&self) -> bool {
        self.program.mode == Mode::Training
    }
    fn by_batch(&self, mean: usize) -> bool {
        self.program.by_batch && self.program.statistics.contains_key(&mean)
    }
    fn is_learned(&self, scale: usize) -> bool {
        let mut learned = self.program.learned.keys();
        learned.any(|name| self.program.places.get(name) == Some(&scale))
    }
}

pub(super) fn parts(program: &Program) -> Vec<Planned<'_>> {
    program
        .steps
        .iter()
        .map(|s| (&s.step, s.inputs.as_slice(), s.outputs.as_slice()))
        .collect()
}

impl Program {
    /// Values of the parameters and of all that is computed from them and constants alone.
    fn weight_values(&self) -> Result<BTreeMap<usize, Val>, ExecError> {
        let mut values = BTreeMap::new();
        for (name, &slot) in &self.places {
            values.insert(slot, Val::f32(self.masked(name)?));
        }
        let known: BTreeSet<usize> = values
            .keys()
            .chain(self.constants.keys())
            .copied()
            .collect();
        let (_, prelude) = weight_slots(&parts(self), &known);
        for at in prelude {
            let step = &self.steps[at];
            let inputs: Vec<Option<Val>> = step
                .inputs
                .iter()
                .map(|slot| {
                    let slot = (*slot)?;
                    values
                        .get(&slot)
                        .or_else(|| self.constants.get(&slot))
                        .cloned()
                })
                .collect();
            let results = ops::eval(&step.step, &inputs, step.outputs.len())
                .map_err(|e: Fail| node_error(e, &step.name, &step.op))?;
            for (slot, value) in step.outputs.iter().zip(results) {
                if let Some(slot) = slot {
                    values.insert(*slot, value);
                }
            }
        }
        Ok(values)
    }

    /// A lowered form for samples of this shape, which shares packed weights with another.
    pub(super) fn lowered_like(
        &self,
        sample: &[usize],
        like: Option<&Lowered>,
    ) -> Result<Option<Lowered>, ExecError> {
        let weights = match self.mode {
            Mode::Training => self.weight_values()?,
            Mode::Inference => BTreeMap::new(),
        };
        let view = View {
            program: self,
            weights,
        };
        Ok(Lowered::new(&view, sample, like).ok())
    }

    /// The weights of a form of this program, packed for both directions.
    pub(super) fn two_way(&self, form: &Lowered) -> Result<TwoWay, ExecError> {
        let slot = |slot: usize| -> CandleResult<Tensor> {
            match self.constants.once(&slot) {
                Some(Val::Float(tensor, _)) => Ok(tensor),
                _ => candle_core::bail!("a weight is not a float tensor"),
            }
        };
        Ok(form.two_way(&slot)?)
    }

    /// The lowered form for samples of this shape.
    fn lowered(&self, sample: &[usize]) -> Result<Option<Arc<Lowered>>, ExecError> {
        let lock = || self.quick.forms.lock().unwrap_or_else(|e| e.into_inner());
        let known = |forms: &[Form]| forms.iter().find(|(shape, _)| shape == sample).cloned();
        if let Some((_, form)) = known(&lock()) {
            return Ok(form);
        }
        // Not under the lock: lowering computes on the pool, whose threads may come by here.
        let form = self.lowered_like(sample, None)?.map(Arc::new);
        let mut forms = lock();
        if let Some((_, form)) = known(&forms) {
            return Ok(form);
        }
        // A model is run on images of one size; two or three at most.
        if forms.len() > 3 {
            forms.remove(0);
        }
        forms.push((sample.to_vec(), form.clone()));
        Ok(form)
    }

    /// The input as a batch of samples that the lowered form takes, checked against what the model declares.
    fn quick_form(&self, feeds: &[Tensor]) -> Result<Option<Arc<Lowered>>, ExecError> {
        let ([feed], [input]) = (feeds, self.inputs.as_slice()) else {
            return Ok(None);
        };
        let [images, sample @ ..] = feed.dims() else {
            return Ok(None);
        };
        if *images == 0 || feed.dtype() != candle_core::DType::F32 {
            return Ok(None);
        }
        check_shape(&Val::f32(feed.clone()), input)?;
        self.lowered(sample)
    }

    /// All outputs by the lowered form; `None` where there is none.
    pub(super) fn run_quick(
        &self,
        feeds: &[Tensor],
        cancel: &CancelToken,
    ) -> Result<Option<Vec<Tensor>>, ExecError> {
        let Some(form) = self.quick_form(feeds)? else {
            return Ok(None);
        };
        let images = feeds[0].dims()[0];
        on_pool(|| {
            with_f32(&feeds[0], |x| {
                form.run(x, images, &self.quick.spaces, cancel)
            })
        })?
        .map(Some)
    }

    /// One forward and backward pass over a batch: the loss, and its gradient by each parameter.
    ///
    /// `loss` is given the numbers of some of the batch's samples and their outputs, and returns their share of the whole batch's loss
    /// as a scalar; the shares are added up. It is called from several threads at once where the network allows that,
    /// else once for the whole batch. The result's bits do not depend on the number of threads.
    ///
    /// # Errors
    /// An input that does not fit, a loss that fails, cancellation (which acts between operators, backwards too, where the network
    /// is trained by pieces).
    pub fn gradients(
        &self,
        feed: &Tensor,
        loss: &Loss<'_>,
        cancel: &CancelToken,
    ) -> Result<Gradients, ExecError> {
        let feeds = std::slice::from_ref(feed);
        let images = feed.dims().first().copied().unwrap_or(0);
        on_pool(|| {
            let form = self.quick_form(feeds)?;
            if let Some(form) = form.filter(|form| form.untrainable().is_none()) {
                let values = self.weight_values()?;
                let slot = |slot: usize| -> CandleResult<Tensor> {
                    match values.get(&slot).or_else(|| self.constants.get(&slot)) {
                        Some(Val::Float(tensor, _)) => Ok(tensor.clone()),
                        _ => candle_core::bail!("a weight is not a float tensor"),
                    }
                };
                return with_f32(feed, |x| {
                    form.gradients(x, images, &slot, loss, &self.quick.spaces, cancel)
                })?;
            }
            let seen = || std::mem::take(&mut *self.seen.lock().unwrap_or_else(|e| e.into_inner()));
            seen();
            let outputs = self.run(feeds, &mut super::NoTaps, cancel)?;
            let statistics = seen();
            let value = loss(0..images, &outputs)?;
            if cancel.is_cancelled() {
                return Err(ExecError::Cancelled);
            }
            Ok(Gradients {
                loss: f64::from(value.to_scalar::<f32>()?),
                store: value.backward()?,
                statistics,
            })
        })
    }
}
