//! The sensitivity map as a batch job.

use super::{
    Event,
    emit::Ticker,
    worker::{JobContext, Worker},
};
use crate::{
    compress::QuantScheme,
    data::SplitName,
    eval::Observer,
    exec::ExecError,
    recipe::PipelineError,
    sensitivity::{self, Cell, Direction, MapObserver, MapOptions, SensitivityError},
};

impl Worker {
    pub(super) fn map(
        &self,
        context: &JobContext,
        known: &[Cell],
        limit: Option<usize>,
        direction: Direction,
    ) -> Result<(), PipelineError> {
        self.start(context, "Map");
        let session = self.session()?;
        let mut watch = Mapping {
            worker: self,
            context,
            ticker: Ticker::new(context.job),
            done: 0,
            total: 0,
        };
        let baseline = session.baseline(SplitName::Search, limit, &mut watch, &context.cancel)?;
        let data = session.runnable()?;
        sensitivity::measure(
            &session.model(),
            &QuantScheme::default(),
            Some(&*baseline),
            data,
            &MapOptions {
                limit,
                direction,
                ..MapOptions::default()
            },
            known,
            &mut watch,
            &context.cancel,
        )?;
        if context.cancel.is_cancelled() {
            return Err(PipelineError::Cancelled);
        }
        Ok(())
    }
}

struct Mapping<'a> {
    worker: &'a Worker,
    context: &'a JobContext,
    ticker: Ticker,
    done: usize,
    total: usize,
}

impl Mapping<'_> {
    fn between(&mut self) -> Result<(), ExecError> {
        self.worker.poll(self.context, Some(&mut self.ticker));
        if self.context.cancel.is_cancelled() {
            return Err(ExecError::Cancelled);
        }
        Ok(())
    }
}

impl MapObserver for Mapping<'_> {
    fn early(&mut self, cells: Vec<Cell>) {
        self.worker.emitter().send(Event::Cells {
            job: self.context.job,
            cells,
        });
    }

    fn cell(&mut self, cell: Cell, done: usize, total: usize) {
        (self.done, self.total) = (done, total);
        self.worker.emitter().send(Event::Cells {
            job: self.context.job,
            cells: vec![cell],
        });
        let detail = format!("{done} of {total} cells");
        self.ticker
            .progress(self.worker.emitter(), done as u64, total as u64, &detail);
    }

    fn batch(&mut self) -> Result<(), ExecError> {
        self.between()
    }
}

impl Observer for Mapping<'_> {
    fn batch(&mut self, done: u64, total: u64) -> Result<(), ExecError> {
        let detail = format!("original: {done} of {total}");
        // The map itself comes after: the baseline is the work of one cell of many.
        self.ticker
            .progress(self.worker.emitter(), 0, total, &detail);
        self.between()
    }
}

impl From<SensitivityError> for PipelineError {
    fn from(e: SensitivityError) -> Self {
        match e {
            SensitivityError::Compress(e) => e.into(),
            SensitivityError::Eval(e) => e.into(),
            SensitivityError::Exec(e) => e.into(),
        }
    }
}
