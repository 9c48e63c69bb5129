//! Cross-layer equalisation (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019): channel by
//! channel, what one layer's weights are divided by the next layer's are multiplied with, so that the ranges of both match. The float
//! function stays the same, because what lies between the two scales along: ReLU and other positively homogeneous functions, pooling.
//! What every value of a channel lies above can then be moved over the ReLU into the next layer's bias (§4.1.3 there).

mod absorb;
mod factors;
mod pairs;

pub(super) use factors::{each, set_bias};
pub(super) use pairs::{able, inputs_of};

use super::{
    Account, AccountEntry, CompressError, Model, OnLayers, Outcome, Pass, PassContext,
    prune::check_known,
    wiring::{Wiring, float_weight},
};
use factors::{ranges, settle, spread_of, write};
use pairs::Pair;

/// What is taken out of a channel that lies high, before the ReLU, and given to the next layer's bias behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Absorb {
    #[default]
    Off,
    /** the least value seen on calibration samples: none of them changes */
    Minimum,
    /** mean less so many standard deviations; 3 in the paper */
    Deviations(f32),
}

/// What is done besides scaling.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EqualizeSettings {
    /// Constants above zero only.
    pub absorb: Absorb,
    /// Samples of the calibration split that channels are looked at on for `absorb`, without which it is refused; where there are no data, the statistics of folded batch
    /// norms take their place.
    pub samples: usize,
}

impl Default for EqualizeSettings {
    fn default() -> Self {
        Self {
            absorb: Absorb::Off,
            samples: 64,
        }
    }
}

impl EqualizeSettings {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// No samples, or a number of them where nothing looks at any; deviations that are not a positive number.
    pub fn check(&self) -> Result<(), CompressError> {
        super::at_least_one(&[("samples", self.samples)])?;
        if self.absorb == Absorb::Off && self.samples != Self::default().samples {
            return Err(CompressError::Invalid(format!(
                "samples: {} samples would be looked at for nothing, as ranges are equalised by weights alone: leave it out, or say what \
                 to absorb (`absorb: minimum` or `absorb: deviations(3.0)`)",
                self.samples
            )));
        }
        match self.absorb {
            Absorb::Deviations(count) => super::above_zero(&[("absorb: deviations", count)]),
            Absorb::Off | Absorb::Minimum => Ok(()),
        }
    }

    /// Whether nothing but scaling is asked for, in the usual way.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Equalises the ranges of layers that follow each other; see the file's first lines. A pair is equalised where both are among `layers`.
pub type Equalize = OnLayers<EqualizeSettings>;

impl Pass for Equalize {
    fn name(&self) -> &'static str {
        "equalise"
    }

    fn apply(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        self.settings.check()?;
        let layers = model.graph.layers();
        check_known(&layers, self.layers.iter())?;
        // Before any weight changes: they are known to belong to these.
        let norms = match self.settings.absorb {
            Absorb::Off => None,
            _ => model.norms.take().filter(|n| n.belong_to(&model.graph)),
        };
        let wiring = Wiring::of(&model.graph);
        let mut pairs: Vec<Pair> = Vec::new();
        let mut reasons: Vec<String> = Vec::with_capacity(layers.len());
        for first in 0..layers.len() {
            reasons.push(match self.pair(&model.graph, &wiring, &layers, first) {
                Ok(pair) => {
                    pairs.push(pair);
                    String::new()
                }
                Err(reason) => reason,
            });
        }
        let weights: Vec<Vec<f32>> = layers
            .iter()
            .map(|layer| float_weight(&model.graph, layer).unwrap_or_default())
            .collect();
        settle(&model.graph, &layers, &weights, &mut pairs, context)?;
        write(&mut model, &layers, &weights, &pairs)?;
        let absorbed = absorb::absorb(
            &mut model,
            &layers,
            &pairs,
            &self.settings,
            norms.as_ref(),
            context,
        )?;

        let entries = layers
            .iter()
            .enumerate()
            .map(|(index, layer)| {
                let mut words = Vec::new();
                if let Some(pair) = pairs.iter().find(|p| p.second == index) {
                    words.push(format!(
                        "inputs take the scaling of {}",
                        layers[pair.first].id.0
                    ));
                }
                if let Some(at) = pairs.iter().position(|p| p.first == index) {
                    let pair = &pairs[at];
                    words.push(format!(
                        "{} outputs scaled against {}: largest over smallest channel range {:.1} → {:.1}",
                        pair.factors.len(),
                        layers[pair.second].id.0,
                        pair.before,
                        spread_of(&ranges(
                            &model.graph,
                            layer,
                            &float_weight(&model.graph, layer).unwrap_or_default(),
                            &|_| 1.0,
                            true,
                            1,
                        )),
                    ));
                    words.extend(absorbed.get(at).cloned());
                }
                AccountEntry {
                    layer: layer.id.clone(),
                    outcome: if words.is_empty() {
                        Outcome::NotDone(reasons[index].clone())
                    } else {
                        Outcome::Done(words.join("; "))
                    },
                }
            })
            .collect();
        let account = Account {
            pass: self.name().to_owned(),
            entries,
        };
        Ok((model, account))
    }
}
