//! The moving average of the weights.

use candle_core::{Result, Tensor, Var};
use std::collections::BTreeMap;

/// Moving averages of parameters by name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Average {
    kept: f64,
    /// Averages that were taken so far.
    pub steps: u64,
    pub of: BTreeMap<String, Vec<f32>>,
}

impl Average {
    /// Of `parameters` as they are at first; an old average counts `kept`.
    pub fn new(kept: f64, parameters: &BTreeMap<String, Var>) -> Result<Self> {
        let of = parameters.iter().map(|(name, var)| {
            let values = var.flatten_all()?.to_vec1::<f32>()?;
            Ok((name.clone(), values))
        });
        Ok(Self {
            kept,
            steps: 0,
            of: of.collect::<Result<_>>()?,
        })
    }

    /// Takes a step towards the parameters. Early on the start counts less than `kept` would have it.
    pub fn follow(&mut self, parameters: &BTreeMap<String, Var>) -> Result<()> {
        self.steps += 1;
        let kept = self
            .kept
            .min((1 + self.steps) as f64 / (10 + self.steps) as f64) as f32;
        for (name, var) in parameters {
            let Some(average) = self.of.get_mut(name) else {
                continue;
            };
            let values = var.flatten_all()?.to_vec1::<f32>()?;
            for (a, v) in average.iter_mut().zip(values) {
                *a = kept * *a + (1.0 - kept) * v;
            }
        }
        Ok(())
    }

    /// Goes on from where an average stood; false where it does not fit.
    pub fn restore(&mut self, steps: u64, of: &BTreeMap<String, Vec<f32>>) -> bool {
        let lengths = |of: &BTreeMap<String, Vec<f32>>| -> Vec<(String, usize)> {
            of.iter().map(|(name, v)| (name.clone(), v.len())).collect()
        };
        let fits = lengths(of) == lengths(&self.of);
        if fits {
            self.steps = steps;
            self.of.clone_from(of);
        }
        fits
    }

    /// Does `work` with the averages in the parameters' place.
    pub fn in_place<R>(
        &self,
        parameters: &BTreeMap<String, Var>,
        work: impl FnOnce() -> R,
    ) -> Result<R> {
        let mut own = Vec::with_capacity(parameters.len());
        for (name, var) in parameters {
            if let Some(average) = self.of.get(name) {
                own.push((var, var.as_tensor().copy()?));
                var.set(&Tensor::from_slice(average, var.shape(), var.device())?)?;
            }
        }
        let result = work();
        for (var, values) in own {
            var.set(&values)?;
        }
        Ok(result)
    }
}
