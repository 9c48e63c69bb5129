//! Where training stands: written down whole, gone on from, and gone back to.

use super::{
    super::{
        Checkpoint, Rollback, TrainError,
        checkpoint::{Position, changed, with_weights},
        optimise::Stepper,
        recover::{MOST_ROLLBACKS, RATE_CUT, Recent},
    },
    Training, average, compile, trained,
};
use candle_core::{Device, Tensor, Var};

impl Training<'_> {
    /// What is left of the rate after going back as often as it was done.
    pub(super) fn cut(&self) -> f64 {
        (0..self.done.rollbacks.len()).fold(1.0, |cut, _| cut * RATE_CUT)
    }

    /// Where training stands, whole.
    pub(super) fn position(&mut self) -> Result<Position, TrainError> {
        self.program.store(&mut self.graph)?;
        let parameters = &trained(&self.program, self.matching.as_ref());
        let mut statistics = changed(&self.graph, &self.base.graph);
        statistics.retain(|name, _| !parameters.contains_key(name));
        let values = |(name, var): (&String, &Var)| {
            let values = var.flatten_all()?.to_vec1::<f32>()?;
            Ok((name.clone(), values))
        };
        Ok(Position {
            order: self.order.state(),
            parameters: parameters
                .iter()
                .map(values)
                .collect::<candle_core::Result<_>>()?,
            statistics,
            moments: self.stepper.moments(),
            average: self.average.as_ref().map(|a| (a.steps, a.of.clone())),
            masks: self
                .gradual
                .as_ref()
                .map_or_else(Default::default, |g| g.masks.clone()),
            ..self.at.clone()
        })
    }

    pub(super) fn checkpoint(&mut self) -> Result<Checkpoint, TrainError> {
        let at = self.position()?;
        Ok(Checkpoint {
            good: (self.good != at).then(|| self.good.clone()),
            at,
            best: changed(&self.done.model.graph, &self.base.graph),
            best_epoch: self.done.best_epoch,
            best_accuracy: self.done.best,
            best_loss: self.best_loss,
            start: self.done.start,
            points: self.done.points.clone(),
            rollbacks: self.done.rollbacks.clone(),
        })
    }

    pub(super) fn go_on_from(&mut self, checkpoint: &Checkpoint) -> Result<(), TrainError> {
        let unfit = || {
            TrainError::Settings(
                "the checkpoint does not fit the model, the data or the settings: it is of another training"
                    .into(),
            )
        };
        let at = &checkpoint.at;
        let batches = self.samples.div_ceil(self.settings.batch);
        let whole = at.samples.len() == if at.batch == 0 { 0 } else { self.samples };
        let step = (at.epoch * batches + at.batch) as u64;
        if !whole || at.step != step || at.step > self.steps || at.batch >= batches {
            return Err(unfit());
        }
        self.done.model.graph =
            with_weights(&self.base.graph, &checkpoint.best).ok_or_else(unfit)?;
        self.done.best_epoch = checkpoint.best_epoch;
        self.done.best = checkpoint.best_accuracy;
        self.best_loss = checkpoint.best_loss;
        self.done.start = checkpoint.start;
        self.done.points.clone_from(&checkpoint.points);
        self.done.rollbacks.clone_from(&checkpoint.rollbacks);
        self.good = checkpoint.good.as_ref().unwrap_or(at).clone();
        if self.restore(at)? {
            Ok(())
        } else {
            Err(unfit())
        }
    }

    /// Goes to `position`; false where it does not fit.
    fn restore(&mut self, position: &Position) -> Result<bool, TrainError> {
        let Some(graph) = with_weights(&self.base.graph, &position.statistics) else {
            return Ok(false);
        };
        let sample = &self.data.info().sample_shape;
        let matching = self.matching.as_ref();
        (self.program, _) = compile(&graph, &self.base, self.settings, matching, sample)?;
        self.graph = graph;
        let parameters = trained(&self.program, self.matching.as_ref());
        for (name, var) in &parameters {
            match position.parameters.get(name) {
                Some(values) if values.len() == var.elem_count() => {
                    let values = Tensor::from_slice(values, var.shape(), &Device::Cpu)?;
                    var.set(&values)?;
                }
                _ => return Ok(false),
            }
        }
        if position.parameters.len() != parameters.len() {
            return Ok(false);
        }
        let masked = match &mut self.gradual {
            None => position.masks.is_empty(),
            Some(gradual) => gradual.restore(&mut self.program, &position.masks, position.step)?,
        };
        if !masked {
            return Ok(false);
        }
        self.stepper = Stepper::new(self.settings, &parameters);
        self.average = average(&self.program, self.settings)?;
        let averaged = match (&mut self.average, &position.average) {
            (None, None) => true,
            (Some(average), Some((steps, of))) => average.restore(*steps, of),
            _ => false,
        };
        if !averaged {
            return Ok(false);
        }
        self.at = position.clone();
        Ok(self.stepper.restore(&position.moments) && self.order.restore(&position.order))
    }

    /// Goes back to the last good state, and on with a lower rate.
    ///
    /// # Errors
    /// It was done too often.
    pub(super) fn roll_back(&mut self, what: String, rate: f64) -> Result<(), TrainError> {
        let step = self.at.step;
        if self.done.rollbacks.len() >= MOST_ROLLBACKS {
            return Err(TrainError::Diverged(format!(
                "training diverged: {what} at step {step} of {}, learning rate {rate:.3e}; going back and trying a quarter of the rate did not help {MOST_ROLLBACKS} times; lower `rate` (now {:.3e})",
                self.steps, self.settings.rate
            )));
        }
        self.done.rollbacks.push(Rollback {
            what,
            step,
            back_to: self.good.step,
            rate: self.settings.rate * self.cut() * RATE_CUT,
        });
        let good = self.good.clone();
        if !self.restore(&good)? {
            return Err(TrainError::Diverged(
                "training diverged, and its last good state does not fit the model: please report this".into(),
            ));
        }
        self.at.recent = Recent::default();
        Ok(())
    }
}
