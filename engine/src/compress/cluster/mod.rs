//! Weight sharing (Han et al., "Deep Compression", 2016, §3): k-means over a layer's weights, each weight then a code into a short list of
//! values. Zeros keep a value of their own, which nothing else gets. In the graph the values are gathered by the codes
//! ([`crate::graph::SharedValues`]), so that training moves a value by the sum of the gradients of the weights that share it.

mod k_means;
mod share;

use super::{
    Account, AccountEntry, CompressError, Model, Outcome, Pass, PassContext,
    prune::{check_each, check_known},
    wiring::{Names, Wiring, rebuild},
};
use crate::{
    exec::{self, ExecError},
    graph::{Layer, LayerId},
};
use rayon::prelude::*;
use share::{Shared, Values, share, write};
use std::collections::{BTreeMap, HashSet};

/// Which weights share values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codebooks {
    /// All of a layer.
    #[default]
    PerLayer,
    /// Those of an output channel.
    PerChannel,
}

impl Codebooks {
    fn is_per_channel(self) -> bool {
        self == Self::PerChannel
    }
}

/// Shares values among the weights of each layer.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub codebooks: Codebooks,
    /// How many values a codebook has at most, 2 to 256, its zero included.
    pub layers: BTreeMap<LayerId, usize>,
}

impl Cluster {
    /// # Errors
    /// Anything but 2 to 256 values.
    pub fn check(values: usize) -> Result<(), String> {
        if (2..=256).contains(&values) {
            Ok(())
        } else {
            Err(format!(
                "2 to 256 values were expected (up to 16 take 4 bits a weight, more take 8), found {values}"
            ))
        }
    }
}

impl Pass for Cluster {
    fn name(&self) -> &'static str {
        "cluster"
    }

    fn apply(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        let layers = model.graph.layers();
        check_known(&layers, self.layers.keys())?;
        check_each(self.layers.iter(), |values| Self::check(*values))?;
        let wiring = Wiring::of(&model.graph);
        let found: Vec<Result<Shared, String>> = exec::pool().install(|| {
            let of = |(number, layer): (usize, &Layer)| {
                let Some(&most) = self.layers.get(&layer.id) else {
                    return Err("not asked for".to_owned());
                };
                if context.cancel.is_cancelled() {
                    return Err("cancelled".to_owned());
                }
                // A seed of its own, whatever other layers are clustered.
                let seed = context.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let by_channel = self.codebooks.is_per_channel();
                let values = Values {
                    most,
                    by_channel,
                    seed,
                    cancel: context.cancel,
                };
                share(&model, &wiring, &layers, layer, &values)
            };
            layers.par_iter().enumerate().map(of).collect()
        });
        if context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled.into());
        }
        let mut names = Names::of(&model.graph);
        let mut new = BTreeMap::new();
        let mut entries = Vec::with_capacity(layers.len());
        let mut sums = [0_u64; 4];
        for (layer, shared) in layers.iter().zip(found) {
            let outcome = match shared {
                Err(reason) => Outcome::NotDone(reason),
                Ok(shared) => {
                    let sizes = shared.sizes();
                    for (sum, bytes) in sums.iter_mut().zip(sizes.all()) {
                        *sum += bytes;
                    }
                    let words = shared.words(&sizes);
                    let nodes = write(&mut model, layer, shared, &mut names);
                    new.insert(layer.node.0 as usize, nodes);
                    Outcome::Done(words)
                }
            };
            entries.push(AccountEntry {
                layer: layer.id.clone(),
                outcome,
            });
        }
        let count = new.len();
        rebuild(&mut model.graph, new, &HashSet::new());
        let [float, stored, coded, runtime] = sums;
        let account = Account {
            pass: format!(
                "{}, {count} of {} layers: their weights {float} bytes as float32, {stored} stored, {coded} with codes entropy-coded, \
                 {runtime} in memory while running",
                self.name(),
                layers.len()
            ),
            entries,
        };
        Ok((model, account))
    }
}
