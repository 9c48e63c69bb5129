//! A student made from the model itself: fewer blocks, narrower layers, the best of each inherited.

use super::{
    Account, AccountEntry, Amount, ChannelSettings, CompressError, Criterion, Model, Outcome, Pass,
    PassContext, PruneChannels, Ratio, blocks,
    prune_blocks::{Outcomes, least_missed, take_out},
    structured::{layer_channels, macs},
};
use crate::exec::ExecError;

/// How a student is made.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StudentSettings {
    /// Share of the channels that every group keeps, above 0 and up to 1; the best by `criterion`.
    pub width: f32,
    /// Share of the residual blocks that stay, above 0 and up to 1, of those that can be taken out; those that the outputs miss least go.
    pub depth: f32,
    pub criterion: Criterion,
    /// Channels left of every layer are a multiple of it, where any went.
    pub round_to: usize,
    /// Of the calibration split: what blocks and channels are judged on, and statistics taken from.
    pub samples: usize,
}

impl Default for StudentSettings {
    fn default() -> Self {
        Self {
            width: 1.0,
            depth: 1.0,
            criterion: Criterion::L2,
            round_to: 1,
            samples: 256,
        }
    }
}

impl StudentSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// Shares outside 0..=1, a student that is the whole model, a multiple of 0, no samples.
    pub fn check(&self) -> Result<(), CompressError> {
        let share = |name: &str, value: f32| {
            (!(value > 0.0 && value <= 1.0)).then(|| {
                format!("{name}: a share above 0 and at most 1 was expected, found {value}")
            })
        };
        let same = (self.width == 1.0 && self.depth == 1.0).then(|| {
            "width and depth are 1: the student would be the original; give one of them less"
                .to_owned()
        });
        let wrong = share("width", self.width)
            .or(share("depth", self.depth))
            .or(same);
        match wrong {
            Some(wrong) => Err(CompressError::Invalid(wrong)),
            None => super::at_least_one(&[("round_to", self.round_to), ("samples", self.samples)]),
        }
    }

    /// Whether samples are looked at to choose what stays.
    pub fn needs_data(&self) -> bool {
        self.depth < 1.0 || self.width < 1.0 && self.criterion.needs_data()
    }

    fn channels(&self) -> ChannelSettings {
        ChannelSettings {
            amount: Amount::Ratios,
            criterion: self.criterion,
            round_to: self.round_to,
            samples: self.samples,
            ..ChannelSettings::default()
        }
    }
}

/// Makes a student of the model.
#[derive(Clone, Debug)]
pub struct Student(pub StudentSettings);

impl Student {
    /// Takes blocks out; what was done to the layers of all blocks, and words on the whole.
    fn shallower(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Outcomes, String), CompressError> {
        let invalid = |message: String| Err(CompressError::Invalid(format!("Student: {message}")));
        let found = blocks::blocks(&model.graph);
        let settings = &self.0;
        if found.is_empty() {
            return invalid(
                "depth is below 1, but the model has no residual block that can be taken out (a sum of a value and of what is computed from it, \
                 of the same shape): set depth to 1 and give a width"
                    .to_owned(),
            );
        }
        let all = found.len();
        let stay = (f64::from(settings.depth) * all as f64).round() as usize;
        if stay == all {
            return invalid(format!(
                "a depth of {} keeps all {all} residual blocks that can be taken out: give at most {:.2}, or set it to 1",
                settings.depth,
                (all as f64 - 0.51) / all as f64
            ));
        }
        let Some(data) = context.data else {
            return invalid(
                "blocks are judged by what the outputs miss without them, which needs data: name a task.ron"
                    .to_owned(),
            );
        };
        let samples = settings.samples;
        let (gone, influence) = least_missed(&model, &found, all - stay, data, samples, context)?;
        let (outcomes, settled) =
            take_out(&mut model, &found, &gone, &influence, samples, context)?;
        let words = format!(
            "of {all} residual blocks {} taken out, those that the outputs miss least{settled}",
            all - stay
        );
        Ok((model, outcomes, words))
    }

    /// Takes the same share of channels out of every group.
    fn narrower(
        &self,
        model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Outcomes, String), CompressError> {
        let before = layer_channels(&model.graph);
        let ratio = Some(Ratio(1.0 - self.0.width));
        let pass = PruneChannels {
            settings: self.0.channels(),
            layers: before.keys().map(|id| (id.clone(), ratio)).collect(),
        };
        let (model, account) = pass.apply(model, context)?;
        if layer_channels(&model.graph) == before {
            return Err(CompressError::Invalid(format!(
                "Student: a width of {} takes no channel out of any layer: give less, or a smaller `round_to` ({}); `limbeck inspect` says \
                 which channels must stay, and why",
                self.0.width, self.0.round_to
            )));
        }
        let entries = account.entries.into_iter();
        let outcomes = entries.map(|e| (e.layer, e.outcome)).collect();
        Ok((model, outcomes, account.pass))
    }
}

impl Pass for Student {
    fn name(&self) -> &'static str {
        "student"
    }

    fn apply(
        &self,
        model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        let settings = &self.0;
        settings.check()?;
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let before = model.graph.layers();
        let whole = macs(&model.graph);
        let (mut model, mut outcomes, mut words) = (model, Outcomes::new(), Vec::new());
        if settings.depth < 1.0 {
            let (shallower, told, pass) = self.shallower(model, context)?;
            (model, outcomes) = (shallower, told);
            words.push(pass);
        }
        if settings.width < 1.0 {
            let (narrower, told, pass) = self.narrower(model, context)?;
            model = narrower;
            for (layer, outcome) in told {
                // That a block stays says more than that nothing was taken of its layer.
                if matches!(outcome, Outcome::Done(_)) || !outcomes.contains_key(&layer) {
                    outcomes.insert(layer, outcome);
                }
            }
            words.push(pass);
        }
        if let (Some(whole), Some(left)) = (whole, macs(&model.graph))
            && whole > 0
        {
            let percent = left as f64 * 100.0 / whole as f64;
            words.push(format!("in all {percent:.1} % of the MACs left"));
        }
        let outside = || Outcome::NotDone("in no residual block that can be taken out".to_owned());
        let entries = before.into_iter().map(|layer| AccountEntry {
            outcome: outcomes.remove(&layer.id).unwrap_or_else(outside),
            layer: layer.id,
        });
        let account = Account {
            entries: entries.collect(),
            pass: format!("{}: {}", self.name(), words.join("; ")),
        };
        Ok((model, account))
    }
}
