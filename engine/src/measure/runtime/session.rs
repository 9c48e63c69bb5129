//! One model in the runtime.

use super::{Optimizations, Runtime, RuntimeError};
use ort::{
    logging::LogLevel,
    session::{Session, builder::GraphOptimizationLevel},
    value::{TensorElementType, TensorRef, ValueType},
};
use std::path::Path;

/// A model as the runtime prepared it.
pub struct RuntimeSession {
    session: Session,
    outputs: Vec<String>,
}

/// What the runtime gave for one output.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: RuntimeData,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RuntimeData {
    F32(Vec<f32>),
    Codes(RuntimeCodes),
}

/// Quantised values as the runtime holds them.
#[derive(Clone, Debug, PartialEq)]
pub enum RuntimeCodes {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
}

impl RuntimeCodes {
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All codes, one after the other.
    pub fn iter(&self) -> Box<dyn Iterator<Item = i32> + '_> {
        match self {
            Self::U8(v) => Box::new(v.iter().map(|c| i32::from(*c))),
            Self::I8(v) => Box::new(v.iter().map(|c| i32::from(*c))),
            Self::U16(v) => Box::new(v.iter().map(|c| i32::from(*c))),
            Self::I16(v) => Box::new(v.iter().map(|c| i32::from(*c))),
        }
    }
}

fn failed(what: &str, e: &dyn std::fmt::Display) -> RuntimeError {
    RuntimeError::Failed(format!("ONNX Runtime {what}: {e}"))
}

impl Runtime {
    /// Prepares an ONNX file's bytes for one CPU and this many threads (0: all cores).
    ///
    /// # Errors
    /// A model that the runtime refuses.
    pub fn session(
        &self,
        model: &[u8],
        optimizations: Optimizations,
        threads: usize,
    ) -> Result<RuntimeSession, RuntimeError> {
        self.prepare(model, optimizations, threads, None)
    }

    /// Writes what the runtime makes of a model for this processor into a file, as ONNX with the runtime's own operators.
    ///
    /// # Errors
    /// A model that the runtime refuses, a file that cannot be written.
    pub fn write_optimized(&self, model: &[u8], file: &Path) -> Result<(), RuntimeError> {
        self.prepare(model, Optimizations::On, 1, Some(file))
            .map(|_| ())
    }

    fn prepare(
        &self,
        model: &[u8],
        optimizations: Optimizations,
        threads: usize,
        written: Option<&Path>,
    ) -> Result<RuntimeSession, RuntimeError> {
        let level = match optimizations {
            Optimizations::Off => GraphOptimizationLevel::Disable,
            Optimizations::On => GraphOptimizationLevel::All,
        };
        let refuse = |e: ort::Error<ort::session::builder::SessionBuilder>| {
            failed("refuses its settings", &e)
        };
        let session = Session::builder(&self.environment)
            .map_err(|e| failed("cannot make a session", &e))?
            .with_optimization_level(level)
            .and_then(|b| b.with_intra_threads(threads))
            // Threads that wait burn cores that others want.
            .and_then(|b| b.with_intra_op_spinning(false))
            .and_then(|b| b.with_log_level(LogLevel::Error))
            .and_then(|b| match written {
                Some(file) => b.with_optimized_model_path(file),
                None => Ok(b),
            })
            .map_err(refuse)?
            .commit_from_memory(model)
            .map_err(|e| failed(&format!("{} refuses the model", self.version()), &e))?;
        let outputs = session
            .outputs()
            .iter()
            .map(|o| o.name().to_owned())
            .collect();
        Ok(RuntimeSession { session, outputs })
    }
}

impl RuntimeSession {
    /// Names of the outputs, in the model's order.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// Runs one batch of float32 values through a model of one input; all outputs in the model's order.
    ///
    /// # Errors
    /// A model of several inputs, an input that does not fit, outputs of types that are neither float32 nor codes of 8 or 16 bits.
    pub fn run(
        &mut self,
        shape: &[usize],
        values: &[f32],
    ) -> Result<Vec<RuntimeTensor>, RuntimeError> {
        let [_] = self.session.inputs() else {
            return Err(RuntimeError::Failed(format!(
                "the model has {} inputs; the runtime is asked about models of one",
                self.session.inputs().len()
            )));
        };
        let input = TensorRef::from_array_view((shape.to_vec(), values))
            .map_err(|e| failed("cannot take the input", &e))?;
        let outputs = self
            .session
            .run(ort::inputs![input])
            .map_err(|e| failed("failed while running the model", &e))?;
        let mut all = Vec::with_capacity(outputs.len());
        for (name, value) in &outputs {
            let read =
                |e: ort::Error| failed(&format!("gave an output {name} that cannot be read"), &e);
            let element = match value.dtype() {
                ValueType::Tensor { ty, .. } => *ty,
                other => {
                    return Err(RuntimeError::Failed(format!(
                        "output {name} is no tensor but {other}"
                    )));
                }
            };
            macro_rules! take {
                ($t:ty) => {{
                    let (shape, data) = value.try_extract_tensor::<$t>().map_err(read)?;
                    let shape = shape
                        .iter()
                        .map(|d| usize::try_from(*d).unwrap_or(0))
                        .collect();
                    (shape, data.to_vec())
                }};
            }
            let (shape, data): (Vec<usize>, RuntimeData) = match element {
                TensorElementType::Float32 => {
                    let (shape, data) = take!(f32);
                    (shape, RuntimeData::F32(data))
                }
                TensorElementType::Uint8 => {
                    let (shape, data) = take!(u8);
                    (shape, RuntimeData::Codes(RuntimeCodes::U8(data)))
                }
                TensorElementType::Int8 => {
                    let (shape, data) = take!(i8);
                    (shape, RuntimeData::Codes(RuntimeCodes::I8(data)))
                }
                TensorElementType::Uint16 => {
                    let (shape, data) = take!(u16);
                    (shape, RuntimeData::Codes(RuntimeCodes::U16(data)))
                }
                TensorElementType::Int16 => {
                    let (shape, data) = take!(i16);
                    (shape, RuntimeData::Codes(RuntimeCodes::I16(data)))
                }
                other => {
                    return Err(RuntimeError::Failed(format!(
                        "output {name} is of type {other}; float32 or codes of 8 or 16 bits were expected"
                    )));
                }
            };
            all.push(RuntimeTensor {
                name: name.to_owned(),
                shape,
                data,
            });
        }
        Ok(all)
    }
}
