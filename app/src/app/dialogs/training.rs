//! The part of the Distil dialog that few trainings need, folded away: how the rate rises, what else is held against the original, and
//! pruning while training.

use super::forms::{choice, hinted};
use crate::state::State;
use egui::{CollapsingHeader, DragValue, Grid, Ui, vec2};
use limbeck_engine::{
    compress::PruneSchedule,
    train::{BatchNorm, DistilSettings},
};

/// How weights are pruned while training, as it is being changed: what one choice needs is kept while another is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gradual {
    kind: Kind,
    begin: f64,
    end: f64,
    updates: usize,
    rounds: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Kind {
    #[default]
    AtOnce,
    Cubic,
    Iterative,
}

impl Default for Gradual {
    fn default() -> Self {
        Self {
            kind: Kind::AtOnce,
            begin: 0.0,
            end: 1.0,
            updates: 20,
            rounds: 3,
        }
    }
}

impl Gradual {
    /// The plan's, or what is offered first: masks final after three quarters of the epochs, so that the rest recovers.
    pub(super) fn of(state: &State, epochs: usize) -> Self {
        let usual = Self {
            end: (epochs as f64 * 0.75).max(0.5),
            ..Self::default()
        };
        match state.document.shrinking.schedule {
            None => usual,
            Some(PruneSchedule::Cubic {
                begin,
                end,
                updates,
            }) => Self {
                kind: Kind::Cubic,
                begin,
                end,
                updates,
                ..usual
            },
            Some(PruneSchedule::Iterative { begin, end, rounds }) => Self {
                kind: Kind::Iterative,
                begin,
                end,
                rounds,
                ..usual
            },
        }
    }

    /// Whether the plan sets weights to zero: only those can go while training.
    pub(super) fn fits(state: &State) -> bool {
        state.zeroes_weights()
    }

    /// `None`: at once.
    pub(super) fn schedule(&self) -> Option<PruneSchedule> {
        let (begin, end) = (self.begin, self.end);
        match self.kind {
            Kind::AtOnce => None,
            Kind::Cubic => Some(PruneSchedule::Cubic {
                begin,
                end,
                updates: self.updates,
            }),
            Kind::Iterative => Some(PruneSchedule::Iterative {
                begin,
                end,
                rounds: self.rounds,
            }),
        }
    }

    /// What is wrong with its epochs.
    fn wrong(&self, epochs: usize) -> Option<String> {
        self.schedule()?;
        if self.end <= self.begin {
            return Some("It must end behind its beginning".to_owned());
        }
        (self.end > epochs as f64).then(|| format!("The training has {epochs} epochs"))
    }

    fn rows(&mut self, ui: &mut Ui, epochs: usize) {
        const EPOCHS: &str = "In epochs of this training. Between the two the masks grow; behind them the network only recovers.";
        choice(
            ui,
            "Prune",
            &[
                (Kind::AtOnce, "At once"),
                (Kind::Cubic, "Gradually"),
                (Kind::Iterative, "In rounds"),
            ],
            &mut self.kind,
        );
        if self.kind == Kind::AtOnce {
            return;
        }
        let wrong = self.wrong(epochs);
        hinted(ui, "Prune from epoch", EPOCHS, None, |ui, _| {
            let value = DragValue::new(&mut self.begin);
            ui.add(value.speed(0.05).range(0.0..=1_000.0).max_decimals(2))
        });
        hinted(ui, "Prune to epoch", EPOCHS, wrong.as_deref(), |ui, _| {
            let value = DragValue::new(&mut self.end);
            ui.add(value.speed(0.05).range(0.05..=1_000.0).max_decimals(2))
        });
        match self.kind {
            Kind::Iterative => hinted(
                ui,
                "Rounds",
                "Each takes the same share of what is left. Few rounds with much training between them are how iterative pruning is usually done.",
                None,
                |ui, _| ui.add(DragValue::new(&mut self.rounds).range(1..=10_000)),
            ),
            _ => hinted(
                ui,
                "Updates of the masks",
                "Sparsity rises fast at first and slowly at the end (a cubic). 20 updates are enough for most trainings.",
                None,
                |ui, _| ui.add(DragValue::new(&mut self.updates).range(1..=10_000)),
            ),
        }
    }
}

/// The folded rows; what of them keeps the training from starting.
pub(super) fn advanced(
    ui: &mut Ui,
    s: &mut DistilSettings,
    mut gradual: Option<&mut Gradual>,
    state: &State,
) -> Option<String> {
    let used = *s != everyday_of(s) || gradual.as_ref().is_some_and(|g| g.schedule().is_some());
    let mut wrong = None;
    CollapsingHeader::new("Advanced")
        .default_open(used)
        .show(ui, |ui| {
            let room = (ui.ctx().content_rect().height() - 640.0).clamp(130.0, 360.0);
            egui::ScrollArea::vertical()
                .auto_shrink([false, true])
                .max_height(room)
                .min_scrolled_height(room)
                .show(ui, |ui| {
                    Grid::new("advanced")
                        .num_columns(2)
                        .spacing(vec2(16.0, 6.0))
                        .show(ui, |ui| {
                            if let Some(gradual) = &mut gradual {
                                gradual.rows(ui, s.epochs);
                            }
                            features(ui, s);
                            optimisation(ui, s);
                            statistics(ui, s);
                        });
                });
        });
    if let Some(gradual) = gradual {
        wrong = gradual
            .wrong(s.epochs)
            .map(|why| format!("Prune to epoch: {why}"));
    }
    let quantised = |s: &limbeck_engine::compress::LayerSetting| s.precision.is_integer();
    if s.learned_step_sizes && !state.document.plan.values().any(quantised) {
        wrong = Some("Learned step sizes: the plan quantises no layer".to_owned());
    }
    wrong
}

/// These settings with all that is folded away as usual.
fn everyday_of(s: &DistilSettings) -> DistilSettings {
    DistilSettings {
        epochs: s.epochs,
        batch: s.batch,
        rate: s.rate,
        optimizer: s.optimizer,
        schedule: s.schedule,
        temperature: s.temperature,
        soft_weight: s.soft_weight,
        hard_weight: s.hard_weight,
        weight_decay: s.weight_decay,
        samples: s.samples,
        ..DistilSettings::default()
    }
}

fn features(ui: &mut Ui, s: &mut DistilSettings) {
    let weight = |value| DragValue::new(value).speed(0.05).range(0.0..=1_000.0);
    hinted(
        ui,
        "Feature loss weight",
        "Holds the network's features at the ends of its stages against the original's (FitNets). Above 0 where outputs alone recover too little, such \
         as after channels were taken out.",
        None,
        |ui, _| ui.add(weight(&mut s.feature_weight)),
    );
    hinted(
        ui,
        "Attention loss weight",
        "Holds where in the picture the network's features are strong against the original's (attention transfer). Needs no equal widths.",
        None,
        |ui, _| ui.add(weight(&mut s.attention_weight)),
    );
}

fn optimisation(ui: &mut Ui, s: &mut DistilSettings) {
    optional(
        ui,
        "Warm-up",
        "Share of the steps that the rate rises over. Off: the schedule's own (cosine a twentieth, one cycle three tenths).",
        &mut s.warm_up,
        (0.1, 0.0..=1.0),
    );
    optional(
        ui,
        "Clip gradients",
        "Scales gradients down to this norm where they exceed it. For trainings that diverge.",
        &mut s.clip_norm,
        (1.0, 1e-3..=1_000.0),
    );
    optional(
        ui,
        "Average weights",
        "Judges and keeps a moving average of the weights, an old average counting this much. Steadier where the last steps jump about.",
        &mut s.average,
        (0.999, 0.01..=0.999_99),
    );
    let mut waits = s.patience.is_some();
    hinted(
        ui,
        "Stop early",
        "Ends when so many epochs in a row gave no better state.",
        None,
        |ui, label| {
            let row = ui.horizontal(|ui| {
                let on = ui.checkbox(&mut waits, "");
                let mut epochs = s.patience.unwrap_or(3);
                let drag = DragValue::new(&mut epochs).range(1..=1_000);
                ui.add_enabled(waits, drag).labelled_by(label);
                s.patience = waits.then_some(epochs);
                on
            });
            row.inner
        },
    );
    hinted(
        ui,
        "Augment",
        "Changes images at random before both networks see them, as the task's `augment` allows; without one there it changes nothing.",
        None,
        |ui, _| ui.checkbox(&mut s.augment, ""),
    );
}

fn statistics(ui: &mut Ui, s: &mut DistilSettings) {
    let usual = BatchNorm::Batch {
        freeze_at: 0.6,
        momentum: 0.9,
    };
    let own = match s.batch_norm {
        BatchNorm::Frozen => usual,
        own => own,
    };
    choice(
        ui,
        "Batch norms",
        &[(BatchNorm::Frozen, "Frozen"), (own, "Mini-batch")],
        &mut s.batch_norm,
    );
    let few = s.batch_norm != BatchNorm::Frozen && s.batch < 2;
    if let BatchNorm::Batch { freeze_at, .. } = &mut s.batch_norm {
        hinted(
            ui,
            "Frozen from",
            "Share of the steps after which stored statistics are used, so that the end of training sees the network that is exported. Plans of this \
             window fold batch norms before they train: those have none left.",
            few.then_some("A mini-batch needs at least 2 samples"),
            |ui, _| {
                let value = DragValue::new(freeze_at).speed(0.01);
                ui.add(value.range(0.01..=1.0))
            },
        );
    }
    hinted(
        ui,
        "Learned step sizes",
        "Trains the scales of quantised weights and activations too (LSQ). For 4 bits and below.",
        None,
        |ui, _| ui.checkbox(&mut s.learned_step_sizes, ""),
    );
}

/// A row with a switch and a value that counts where it is on.
fn optional(
    ui: &mut Ui,
    name: &str,
    hint: &str,
    value: &mut Option<f64>,
    (usual, range): (f64, std::ops::RangeInclusive<f64>),
) {
    hinted(ui, name, hint, None, |ui, label| {
        let row = ui.horizontal(|ui| {
            let mut on = value.is_some();
            let switch = ui.checkbox(&mut on, "");
            let mut number = value.unwrap_or(usual);
            let drag = DragValue::new(&mut number).speed(0.005).range(range);
            ui.add_enabled(on, drag.max_decimals(5)).labelled_by(label);
            *value = on.then_some(number);
            switch
        });
        row.inner
    });
}
