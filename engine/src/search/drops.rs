//! The drop of one layer at any setting, from the cells that were measured of it.

use crate::{
    compress::{LayerSetting, Precision},
    sensitivity::{Candidate, Cell, Direction, Tier},
};
use std::collections::BTreeMap;

/// Measured drops of a layer, by candidate, with the samples that each speaks for.
#[derive(Clone, Debug, Default)]
pub(super) struct LayerDrops {
    cells: BTreeMap<Candidate, (f64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Drop {
    pub value: f64,
    /// Interpolated, or of a neighbouring candidate.
    pub approximate: bool,
}

impl LayerDrops {
    pub fn add(&mut self, cell: &Cell) {
        let alone = cell.direction == Direction::Alone;
        if cell.tier != Tier::Measured || !alone || !cell.value.is_finite() {
            return;
        }
        let slot = self
            .cells
            .entry(cell.candidate)
            .or_insert((cell.value, cell.of));
        if cell.of >= slot.1 {
            *slot = (cell.value, cell.of);
        }
    }

    fn cell(&self, candidate: Candidate) -> Option<f64> {
        self.cells.get(&candidate).map(|(value, _)| *value)
    }

    /// Drop of a setting: that of its precision plus that of its sparsity. `None` where nothing measured tells.
    pub fn of(&self, setting: &LayerSetting) -> Option<Drop> {
        let precision = self.precision(setting.precision)?;
        let sparsity = self.sparsity(f64::from(setting.sparsity.0))?;
        Some(Drop {
            value: precision.value + sparsity.value,
            approximate: precision.approximate || sparsity.approximate,
        })
    }

    /// The precision's own cell, or else that of the next coarser one, which is an upper bound but for noise.
    fn precision(&self, precision: Precision) -> Option<Drop> {
        let from_finest: &[Candidate] = match precision {
            Precision::Fp32 => {
                return Some(Drop {
                    value: 0.0,
                    approximate: false,
                });
            }
            Precision::Fp16 => &[Candidate::Fp16, Candidate::Int8, Candidate::Int4],
            Precision::Int8 => &[Candidate::Int8, Candidate::Int4],
            Precision::Int4 => &[Candidate::Int4],
            Precision::Bf16 => {
                let coarser = self.cell(Candidate::Int8);
                return Some(Drop {
                    value: coarser.or_else(|| self.cell(Candidate::Int4))?,
                    approximate: true,
                });
            }
            // No cells of their own: the next coarser one's, where there is one.
            Precision::Int7 | Precision::Int6 | Precision::Int5 => {
                return Some(Drop {
                    value: self.cell(Candidate::Int4)?,
                    approximate: true,
                });
            }
            Precision::Int3 | Precision::Int2 => return None,
        };
        from_finest
            .iter()
            .enumerate()
            .find_map(|(step, candidate)| {
                Some(Drop {
                    value: self.cell(*candidate)?,
                    approximate: step > 0,
                })
            })
    }

    /// On the broken line through (0, 0) and the measured ratios; beyond 75 % its last piece goes on, up to losing everything.
    fn sparsity(&self, ratio: f64) -> Option<Drop> {
        if ratio.is_nan() || ratio <= 0.0 {
            return Some(Drop {
                value: 0.0,
                approximate: false,
            });
        }
        let known = [
            (0.25, Candidate::P25),
            (0.5, Candidate::P50),
            (0.75, Candidate::P75),
        ]
        .into_iter()
        .filter_map(|(at, candidate)| Some((at, self.cell(candidate)?)));
        let mut before = (0.0, 0.0);
        let mut slope = 0.0;
        let mut last = 0.0;
        for (at, value) in known {
            slope = (value - before.1) / (at - before.0);
            if ratio <= at {
                return Some(Drop {
                    value: before.1 + slope * (ratio - before.0),
                    approximate: (ratio - at).abs() > 1e-6,
                });
            }
            before = (at, value);
            last = at;
        }
        // Past the last measured ratio only where that is 75 %: a line through 25 % says nothing about 70 %.
        (last == 0.75).then(|| Drop {
            value: (before.1 + slope.max(0.0) * (ratio - before.0)).min(1.0),
            approximate: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compress::Ratio, graph::LayerId};

    fn drops(cells: &[(Candidate, f64)]) -> LayerDrops {
        let mut drops = LayerDrops::default();
        for (candidate, value) in cells {
            drops.add(&Cell {
                layer: LayerId("l".into()),
                candidate: *candidate,
                direction: Direction::Alone,
                tier: Tier::Measured,
                value: *value,
                ci: None,
                n: 100,
                of: 100,
                settled: true,
                why: None,
                kl: None,
            });
        }
        drops
    }

    fn at(drops: &LayerDrops, precision: Precision, ratio: f32) -> Option<(f64, bool)> {
        let setting = LayerSetting {
            precision,
            sparsity: Ratio(ratio),
        };
        drops
            .of(&setting)
            .map(|d| ((d.value * 1e6).round() / 1e6, d.approximate))
    }

    #[test]
    fn ratios_lie_on_the_broken_line() {
        let d = drops(&[
            (Candidate::P25, 0.01),
            (Candidate::P50, 0.03),
            (Candidate::P75, 0.10),
        ]);
        for (ratio, expected) in [
            (0.0, (0.0, false)),
            (0.125, (0.005, true)),
            (0.25, (0.01, false)),
            (0.4, (0.022, true)),
            (0.5, (0.03, false)),
            (0.75, (0.10, false)),
            (0.85, (0.128, true)),
        ] {
            assert_eq!(at(&d, Precision::Fp32, ratio), Some(expected), "{ratio}");
        }
    }

    #[test]
    fn precision_and_pruning_add_and_neighbours_stand_in() {
        let d = drops(&[(Candidate::Int4, 0.05), (Candidate::P50, 0.02)]);
        assert_eq!(at(&d, Precision::Int4, 0.5), Some((0.07, false)));
        assert_eq!(at(&d, Precision::Int8, 0.0), Some((0.05, true)));
        assert_eq!(at(&d, Precision::Fp32, 0.25), Some((0.01, true)));
        // nothing measured past one half
        assert_eq!(at(&d, Precision::Fp32, 0.6), None);
        assert_eq!(at(&drops(&[]), Precision::Fp16, 0.0), None);
        assert_eq!(at(&drops(&[]), Precision::Fp32, 0.0), Some((0.0, false)));
    }

    #[test]
    fn proxies_do_not_count_and_more_samples_win() {
        let mut d = drops(&[(Candidate::Int8, 0.01)]);
        let cell = |tier, value, n| Cell {
            layer: LayerId("l".into()),
            candidate: Candidate::Int8,
            direction: Direction::Alone,
            tier,
            value,
            ci: None,
            n,
            of: n,
            settled: true,
            why: None,
            kl: None,
        };
        d.add(&cell(Tier::Proxy, 9.0, 0));
        d.add(&cell(Tier::Measured, 0.5, 10));
        assert_eq!(at(&d, Precision::Int8, 0.0), Some((0.01, false)));
        d.add(&cell(Tier::Measured, 0.02, 1000));
        assert_eq!(at(&d, Precision::Int8, 0.0), Some((0.02, false)));
    }
}
