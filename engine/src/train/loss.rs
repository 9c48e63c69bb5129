//! The distillation loss as one operator with its exact gradient.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

/// `soft·T²·KL(teacher‖student at T) + hard·cross-entropy`, the mean over the batch. The student's logits N×classes come
/// as the operator's argument.
pub(super) struct DistilLoss {
    pub samples: usize,
    pub classes: usize,
    /// The teacher's probabilities at the temperature, N×classes; empty when `soft` is 0.
    pub teacher: Vec<f32>,
    /// Empty when `hard` is 0.
    pub labels: Vec<u32>,
    /// Of mixed images the label of the other one, `labels` counting `share`; else empty.
    pub others: Vec<u32>,
    pub share: f64,
    pub temperature: f32,
    pub soft: f32,
    pub hard: f32,
}

/// Logarithms of the softmax of `row / temperature`.
pub(super) fn log_softmax(row: &[f32], temperature: f32, out: &mut Vec<f64>) {
    let t = f64::from(temperature);
    out.clear();
    out.extend(row.iter().map(|z| f64::from(*z) / t));
    let top = out.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = out.iter().map(|z| (z - top).exp()).sum();
    let norm = top + sum.ln();
    out.iter_mut().for_each(|z| *z -= norm);
}

impl DistilLoss {
    fn check(&self, dims: &[usize]) -> Result<()> {
        if dims != [self.samples, self.classes] {
            bail!(
                "the distillation loss takes logits [{}, {}], not {dims:?}",
                self.samples,
                self.classes
            )
        }
        Ok(())
    }

    /// Loss of one sample; its gradient by the logits into `gradient`.
    fn row(
        &self,
        sample: usize,
        logits: &[f32],
        gradient: &mut [f64],
        scratch: &mut Vec<f64>,
    ) -> f64 {
        let (soft, hard, t) = (
            f64::from(self.soft),
            f64::from(self.hard),
            f64::from(self.temperature),
        );
        let mut loss = 0.0;
        gradient.fill(0.0);
        if soft > 0.0 {
            log_softmax(logits, self.temperature, scratch);
            let teacher = &self.teacher[sample * self.classes..][..self.classes];
            for ((log_q, p), g) in scratch.iter().zip(teacher).zip(&mut *gradient) {
                let p = f64::from(*p);
                if p > 0.0 {
                    loss += soft * t * t * p * (p.ln() - log_q);
                }
                *g += soft * t * (log_q.exp() - p);
            }
        }
        if hard > 0.0 {
            log_softmax(logits, 1.0, scratch);
            for (log_q, g) in scratch.iter().zip(&mut *gradient) {
                *g += hard * log_q.exp();
            }
            let (other, share) = match self.others.get(sample) {
                Some(other) => (Some((*other, 1.0 - self.share)), self.share),
                None => (None, 1.0),
            };
            for (label, share) in [Some((self.labels[sample], share)), other]
                .into_iter()
                .flatten()
            {
                loss -= hard * share * scratch[label as usize];
                gradient[label as usize] -= hard * share;
            }
        }
        loss
    }

    fn rows(&self, logits: &[f32], mut each: impl FnMut(f64, &[f64])) {
        let mut gradient = vec![0.0; self.classes];
        let mut scratch = Vec::with_capacity(self.classes);
        for (sample, row) in logits.chunks_exact(self.classes).enumerate() {
            let loss = self.row(sample, row, &mut gradient, &mut scratch);
            each(loss, &gradient);
        }
    }
}

impl CustomOp1 for DistilLoss {
    fn name(&self) -> &'static str {
        "distillation loss"
    }
    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.check(layout.dims())?;
        let (CpuStorage::F32(data), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            bail!("the distillation loss takes contiguous f32 logits")
        };
        let mut total = 0.0;
        self.rows(&data[start..end], |loss, _| total += loss);
        let mean = total / self.samples as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }
    fn bwd(&self, logits: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let share = f64::from(upstream.to_scalar::<f32>()?) / self.samples as f64;
        let values = logits.flatten_all()?.to_vec1::<f32>()?;
        let mut gradients = Vec::with_capacity(values.len());
        self.rows(&values, |_, gradient| {
            gradients.extend(gradient.iter().map(|g| (g * share) as f32));
        });
        let gradients = Tensor::from_vec(gradients, logits.shape(), &Device::Cpu)?;
        Ok(Some(gradients))
    }
}
