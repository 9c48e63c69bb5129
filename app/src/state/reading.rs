//! What the layer in the inspector reads, as far as it is known.

use limbeck_engine::{compress::InputInspection, graph::LayerId, jobs::JobId};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    job: JobId,
    pub layer: LayerId,
    /// By the present setting and scheme, or while that is counted by the last ones.
    pub known: Option<Arc<InputInspection>>,
    pub state: ReadingState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadingState {
    Counting,
    Done,
    /// Why there is nothing.
    Failed(String),
}

impl Reading {
    /// A new count; what is known of the same layer stays until it is done.
    pub fn begin(job: JobId, layer: LayerId, before: Option<Self>) -> Self {
        let before = before.filter(|before| before.layer == layer);
        Self {
            job,
            layer,
            known: before.and_then(|before| before.known),
            state: ReadingState::Counting,
        }
    }

    /// An answer; one to an older question is none.
    pub fn counted(&mut self, job: JobId, read: &InputInspection) {
        if self.job == job {
            self.known = Some(Arc::new(read.clone()));
            self.state = ReadingState::Done;
        }
    }

    /// Nothing came of it.
    pub fn failed(&mut self, job: JobId, why: &str) {
        if self.job == job {
            self.known = None;
            self.state = ReadingState::Failed(why.to_owned());
        }
    }
}
