//! What carrying out a recipe fails with, whichever room it comes from.

use super::RecipeError;
use crate::{
    compress::CompressError, confirm::ConfirmError, data::DataError, eval::EvalError,
    exec::ExecError, formats::onnx, measure::runtime::RuntimeError, train::TrainError,
};

/// Why a recipe could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Recipe(Box<RecipeError>),
    #[error("{0}")]
    NotRunnable(String),
    #[error(transparent)]
    Format(#[from] onnx::FormatError),
    #[error("{0}")]
    Data(DataError),
    #[error("{0}")]
    Compress(CompressError),
    #[error("{0}")]
    Train(TrainError),
    #[error("{0}")]
    Eval(EvalError),
    #[error("{0}")]
    Exec(ExecError),
    #[error("{0}")]
    Runtime(RuntimeError),
    #[error("{0}")]
    Io(std::io::Error),
}

impl PipelineError {
    /// Asked to stop, as against failed.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }

    /// The input (a file, a recipe, a task) is to blame, as against the work itself.
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Recipe(_)
                | Self::NotRunnable(_)
                | Self::Compress(CompressError::Invalid(_))
                | Self::Format(_)
                | Self::Data(_)
                | Self::Eval(crate::eval::EvalError::Shape(_))
                | Self::Runtime(RuntimeError::NotFound(_) | RuntimeError::Unusable(_))
        )
    }
}

// Cancellation comes up from every room in its own wrapping; here it becomes one thing.
impl From<ExecError> for PipelineError {
    fn from(e: ExecError) -> Self {
        match e {
            ExecError::Cancelled => Self::Cancelled,
            other => Self::Exec(other),
        }
    }
}
impl From<DataError> for PipelineError {
    fn from(e: DataError) -> Self {
        match e {
            DataError::Cancelled => Self::Cancelled,
            other => Self::Data(other),
        }
    }
}
impl From<EvalError> for PipelineError {
    fn from(e: EvalError) -> Self {
        match e {
            EvalError::Exec(e) => e.into(),
            EvalError::Data(e) => e.into(),
            other => Self::Eval(other),
        }
    }
}
impl From<CompressError> for PipelineError {
    fn from(e: CompressError) -> Self {
        match e {
            CompressError::Exec(e) => e.into(),
            CompressError::Data(e) => e.into(),
            other => Self::Compress(other),
        }
    }
}
impl From<TrainError> for PipelineError {
    fn from(e: TrainError) -> Self {
        match e {
            TrainError::Cancelled => Self::Cancelled,
            TrainError::Exec(e) => e.into(),
            TrainError::Eval(e) => e.into(),
            TrainError::Data(e) => e.into(),
            other => Self::Train(other),
        }
    }
}
impl From<RuntimeError> for PipelineError {
    fn from(e: RuntimeError) -> Self {
        Self::Runtime(e)
    }
}
impl From<ConfirmError> for PipelineError {
    fn from(e: ConfirmError) -> Self {
        match e {
            ConfirmError::Exec(e) => e.into(),
            ConfirmError::Eval(e) => e.into(),
            ConfirmError::Data(e) => e.into(),
            ConfirmError::Format(e) => e.into(),
            ConfirmError::Runtime(e) => e.into(),
        }
    }
}
