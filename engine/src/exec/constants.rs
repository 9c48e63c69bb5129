//! Weights and folded values of a program. Large float weights stay where the graph has them (in a mapped file, perhaps) until an
//! operator wants them as tensors; what the fused form packs it reads from there, and keeps nothing else.

use super::{Fail, value::Val};
use crate::graph::{ElementType, TensorData};
use std::{collections::BTreeMap, sync::OnceLock};

/// By value.
#[derive(Default)]
pub(super) struct Constants(BTreeMap<usize, Held>);

enum Held {
    Ready(Val),
    /// Decoded at the first [`Constants::get`]. The data has been checked.
    Stored(TensorData, OnceLock<Val>),
}

/// Elements from which a weight waits.
const LARGE: usize = 1 << 10;

impl Constants {
    pub fn insert(&mut self, slot: usize, value: Val) {
        self.0.insert(slot, Held::Ready(value));
    }

    /// A weight of the graph.
    pub fn store(&mut self, slot: usize, data: &TensorData) -> Result<(), Fail> {
        let whole = TensorData::new(data.element, data.shape.clone(), data.bytes.clone()).is_ok();
        let large = data.shape.iter().product::<usize>() >= LARGE;
        if data.element == ElementType::F32 && whole && large && Val::fits(data) {
            self.0
                .insert(slot, Held::Stored(data.clone(), OnceLock::new()));
        } else {
            self.insert(slot, Val::from_data(data)?);
        }
        Ok(())
    }

    /// The value, kept from now on.
    pub fn get(&self, slot: &usize) -> Option<&Val> {
        match self.0.get(slot)? {
            Held::Ready(value) => Some(value),
            Held::Stored(data, value) => {
                if value.get().is_none() {
                    // Whoever comes second throws away what it decoded.
                    let _ = value.set(Val::from_data(data).ok()?);
                }
                value.get()
            }
        }
    }

    /// The value for a moment: not kept where it was not before.
    pub fn once(&self, slot: &usize) -> Option<Val> {
        match self.0.get(slot)? {
            Held::Ready(value) => Some(value.clone()),
            Held::Stored(data, value) => match value.get() {
                Some(value) => Some(value.clone()),
                None => Val::from_data(data).ok(),
            },
        }
    }

    pub fn shape(&self, slot: &usize) -> Option<&[usize]> {
        Some(match self.0.get(slot)? {
            Held::Ready(value) => value.shape(),
            Held::Stored(data, _) => &data.shape,
        })
    }

    pub fn contains_key(&self, slot: &usize) -> bool {
        self.0.contains_key(slot)
    }

    pub fn keys(&self) -> impl Iterator<Item = &usize> {
        self.0.keys()
    }
}
