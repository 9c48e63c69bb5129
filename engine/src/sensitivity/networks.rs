//! The networks of a map's cells, and which of them are run side by side.

use super::{
    Candidate, Cell, Direction, MapObserver, MapOptions, SensitivityError, Tier, proxy_by_parts,
};
use crate::{
    compress::{
        CompressError, LayerSetting, Model, PassContext, QuantScheme, Ranges, calibrate_layers,
        compress_layers,
    },
    eval::EvalError,
    exec::{Family, Mode, Program},
    graph::LayerId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How a cell's network is run.
pub(super) enum Runs {
    /// As this member of a family.
    Member(usize),
    /// Without a fused form, by itself.
    Alone(Box<Program>),
}

/// Networks that share what they have in common.
pub(super) struct Relatives {
    /// What the family was made of.
    pub base: Arc<Program>,
    /// `None` where the model has no fused form.
    pub family: Option<Family>,
    pub cells: Vec<(LayerId, Candidate, Runs)>,
}

/// Makes the networks of one map.
pub(super) struct Networks<'a> {
    scheme: &'a QuantScheme,
    options: &'a MapOptions,
    context: &'a PassContext<'a>,
    /// The model, its batch norms folded.
    folded: Model,
    base: Arc<Program>,
    layers: Vec<LayerId>,
    /// Of the whole model.
    weights: u64,
    /// Of all layers' inputs, once for all cells.
    ranges: Arc<Ranges>,
}

impl<'a> Networks<'a> {
    pub fn new(
        model: &Model,
        scheme: &'a QuantScheme,
        options: &'a MapOptions,
        context: &'a PassContext<'a>,
    ) -> Result<Self, SensitivityError> {
        let (folded, _) = compress_layers(model.clone(), &BTreeMap::new(), scheme, None, context)?;
        let layers = folded.graph.layers();
        Ok(Self {
            scheme,
            options,
            context,
            base: Arc::new(Program::compile(&folded.graph, Mode::Inference)?),
            weights: layers.iter().map(|l| l.params).sum(),
            layers: layers.into_iter().map(|l| l.id).collect(),
            folded,
            ranges: Arc::default(),
        })
    }

    /// Takes the ranges that these cells need.
    pub fn calibrated(mut self, todo: &[(LayerId, Candidate)]) -> Result<Self, SensitivityError> {
        let integers = |c: &Candidate| matches!(c, Candidate::Int8 | Candidate::Int4);
        if self.scheme.activations.calibrated_bits().is_some()
            && todo.iter().any(|(_, c)| integers(c))
        {
            let data = self
                .context
                .data
                .ok_or_else(|| EvalError::Shape("measuring sensitivity needs data".to_owned()))?;
            let ranges =
                calibrate_layers(&self.folded.graph, data, self.scheme, self.context.cancel)?;
            self.ranges = Arc::new(ranges);
        }
        Ok(self)
    }

    /// The unchanged model.
    pub fn base(&self) -> &Program {
        &self.base
    }

    /// The network of a plan; `None` where a layer refuses.
    fn plan(
        &self,
        settings: &BTreeMap<LayerId, LayerSetting>,
    ) -> Result<Option<Program>, SensitivityError> {
        let ranges = Some(self.ranges.clone());
        let folded = self.folded.clone();
        match compress_layers(folded, settings, self.scheme, ranges, self.context) {
            Ok((changed, _)) => Ok(Some(Program::compile(&changed.graph, Mode::Inference)?)),
            // This candidate is not for this layer (weights too large for half precision, say): no cell.
            Err(CompressError::Layer { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A plan that gives all layers a setting, but for one.
    fn all(&self, setting: LayerSetting, but: Option<&LayerId>) -> BTreeMap<LayerId, LayerSetting> {
        let others = self.layers.iter().filter(|layer| Some(*layer) != but);
        others.map(|layer| (layer.clone(), setting)).collect()
    }

    /// Cells with a family in common, as many as there is memory for: of all candidates where each changes one layer; else of one,
    /// because they are kin to the network that has all layers changed.
    pub fn groups<'t>(&self, todo: &'t [(LayerId, Candidate)]) -> Vec<&'t [(LayerId, Candidate)]> {
        let candidates: Vec<&[(LayerId, Candidate)]> = todo.chunk_by(|a, b| a.1 == b.1).collect();
        let bytes = self.weights.saturating_mul(4).max(1);
        let together = match self.options.direction {
            Direction::Alone => (self.options.memory / 2 / bytes).max(1) as usize,
            Direction::AllBut => 1,
        };
        let mut end = 0;
        candidates
            .chunks(together)
            .map(|group| {
                let start = end;
                end += group.iter().map(|cells| cells.len()).sum::<usize>();
                &todo[start..end]
            })
            .collect()
    }

    /// The networks of a group of cells. Cells that a layer refuses are left out.
    pub fn relatives(
        &self,
        group: &[(LayerId, Candidate)],
        observer: &mut dyn MapObserver,
    ) -> Result<Relatives, SensitivityError> {
        let all_changed = match (self.options.direction, group.first()) {
            (Direction::AllBut, Some((_, candidate))) => {
                self.plan(&self.all(candidate.setting(), None))?
            }
            _ => None,
        };
        let base = all_changed.map_or_else(|| self.base.clone(), Arc::new);
        let sample = self.context.data.map(|data| &data.info().sample_shape);
        let mut family = match sample {
            Some(sample) => Family::new(&base, sample)?,
            None => None,
        };
        let mut cells = Vec::with_capacity(group.len());
        for (layer, candidate) in group {
            observer.batch()?;
            let setting = candidate.setting();
            let settings = match self.options.direction {
                Direction::Alone => BTreeMap::from([(layer.clone(), setting)]),
                Direction::AllBut => self.all(setting, Some(layer)),
            };
            let Some(program) = self.plan(&settings)? else {
                continue;
            };
            let member = match &mut family {
                Some(family) => family.add(&program)?,
                None => None,
            };
            let runs = member.map_or_else(|| Runs::Alone(Box::new(program)), Runs::Member);
            cells.push((layer.clone(), *candidate, runs));
        }
        Ok(Relatives {
            base,
            family,
            cells,
        })
    }

    /// Cells to measure. The candidates that tell layers apart come first for all layers, the harmless ones last; within a
    /// candidate the layers with most noise times size come first, because there is most to win and to lose. Noise is looked up in `known` where
    /// all of it is there; else the observer may stop it between parts of the weights.
    pub fn order(
        &self,
        known: &[Cell],
        done: &BTreeSet<(LayerId, Candidate)>,
        observer: &mut dyn MapObserver,
    ) -> Result<Vec<(LayerId, Candidate)>, SensitivityError> {
        const TELLING: [Candidate; 6] = [
            Candidate::Int4,
            Candidate::P50,
            Candidate::P75,
            Candidate::Int8,
            Candidate::P25,
            Candidate::Fp16,
        ];
        // Size of each layer and its place among them.
        let sizes: BTreeMap<LayerId, (f64, usize)> = self
            .folded
            .graph
            .layers()
            .into_iter()
            .enumerate()
            .map(|(place, layer)| (layer.id, (layer.params as f64, place)))
            .collect();
        let is_proxy = |c: &&Cell| c.tier == Tier::Proxy && sizes.contains_key(&c.layer);
        let mut noise: Vec<Cell> = known.iter().filter(is_proxy).cloned().collect();
        if noise.len() != sizes.len() * Candidate::ALL.len() {
            noise.clear();
            proxy_by_parts(&self.folded.graph, self.scheme, &mut |cells| {
                noise.extend(cells);
                observer.batch()
            })?;
        }
        let mut cells: Vec<(usize, f64, usize, LayerId, Candidate)> = noise
            .into_iter()
            .filter(|cell| {
                let asked = &self.options.candidates;
                asked
                    .as_ref()
                    .is_none_or(|asked| asked.contains(&cell.candidate))
                    && !done.contains(&(cell.layer.clone(), cell.candidate))
            })
            .map(|cell| {
                let rank = TELLING.iter().position(|c| *c == cell.candidate);
                let last = (0.0, usize::MAX);
                let (size, place) = sizes.get(&cell.layer).copied().unwrap_or(last);
                (
                    rank.unwrap_or(TELLING.len()),
                    cell.value * size,
                    place,
                    cell.layer,
                    cell.candidate,
                )
            })
            .collect();
        cells.sort_by(|a, b| {
            let by_noise = b.1.total_cmp(&a.1);
            a.0.cmp(&b.0).then(by_noise).then(a.2.cmp(&b.2))
        });
        Ok(cells.into_iter().map(|c| (c.3, c.4)).collect())
    }
}
