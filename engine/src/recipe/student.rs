//! The recipe step that begins with a student: its keys, and the network that a recipe gives in the place of one made from the original.

use super::{PipelineError, Recipe, RecipeError, Session, Step, facts, identity::Identity};
use crate::{
    compress::{Account, Criterion, Model, StudentSettings, macs},
    exec::{CancelToken, Program},
    formats::onnx,
    graph::{Dim, Graph, ValueId},
    search::LayerFacts,
};
use std::path::{Path, PathBuf};

/// Keys of `Student`: another network's `file`, or how the student is made; see [`StudentSettings`] for those that are the same.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StudentStep {
    /// An ONNX file, relative to the recipe's own folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    pub width: f32,
    pub depth: f32,
    pub criterion: Criterion,
    pub round_to: usize,
    pub samples: usize,
}

impl Default for StudentStep {
    fn default() -> Self {
        let settings = StudentSettings::default();
        Self {
            file: None,
            width: settings.width,
            depth: settings.depth,
            criterion: settings.criterion,
            round_to: settings.round_to,
            samples: settings.samples,
        }
    }
}

impl StudentStep {
    /// How it is made, where no file is given.
    pub fn settings(&self) -> StudentSettings {
        StudentSettings {
            width: self.width,
            depth: self.depth,
            criterion: self.criterion,
            round_to: self.round_to,
            samples: self.samples,
        }
    }

    /// Refuses numbers out of range, and a file that something is to be made of.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.file.is_none() {
            return self.settings().check().map_err(|e| e.to_string());
        }
        let alone = Self {
            file: self.file.clone(),
            ..Self::default()
        };
        if *self == alone {
            return Ok(());
        }
        Err("a student from a `file` is taken as it is: leave the other keys out, and take channels out by PruneChannels".to_owned())
    }
}

impl Recipe {
    /// The file of the student, where the recipe gives one; it can only stand in the first step.
    pub fn student_file(&self) -> Option<&Path> {
        match self.steps.first() {
            Some(Step::Student(step)) => step.file.as_deref(),
            _ => None,
        }
    }

    /// As [`Recipe::student_file`], to be set.
    pub fn student_file_mut(&mut self) -> Option<&mut PathBuf> {
        match self.steps.first_mut() {
            Some(Step::Student(step)) => step.file.as_mut(),
            _ => None,
        }
    }
}

/// A network that is to be trained in the place of the original.
pub struct StudentNetwork {
    pub path: PathBuf,
    pub graph: Graph,
    /// In the graph's order.
    pub layers: Vec<LayerFacts>,
    /// SHA-256 of its file, or of all its files as [`Session::model_sha256`] has it, hex.
    pub sha256: String,
}

impl StudentNetwork {
    /// Opens it and holds it against the original, in whose place it will stand.
    ///
    /// # Errors
    /// A file that is missing or broken, and whatever differs in inputs and outputs, cannot run or is not finite.
    pub(super) fn open(path: &Path, session: &Session) -> Result<Self, PipelineError> {
        let file = onnx::read_model(path)?;
        let identity = Identity::of(path, &file.data_files, false).map_err(PipelineError::Io)?;
        let sha256 = identity
            .wait(&CancelToken::default())
            .map_err(PipelineError::Io)?;
        let wrong = contract(&session.graph, &file.graph);
        if !wrong.is_empty() {
            return Err(RecipeError::new(format!(
                "Student: {} cannot stand in for {}: {}",
                path.display(),
                session.model_path.display(),
                wrong.join("; ")
            ))
            .into());
        }
        Ok(Self {
            path: path.to_owned(),
            layers: facts(&file.graph),
            graph: file.graph,
            sha256,
        })
    }

    /// What the step does: the network as it stands in the file.
    pub(super) fn start(&self, original: &Graph) -> (Model, Account) {
        let share = match (macs(&self.graph), macs(original)) {
            (Some(own), Some(whole)) if whole > 0 => format!(
                ", {:.1} % of the original's MACs",
                own as f64 * 100.0 / whole as f64
            ),
            _ => String::new(),
        };
        let account = Account {
            pass: format!(
                "student: a given network of {} layers{share} (SHA-256 {})",
                self.layers.len(),
                self.sha256
            ),
            entries: Vec::new(),
        };
        (Model::new(self.graph.clone()), account)
    }
}

/// What of `student` keeps it from standing where `original` stands, in words; empty: all is well.
fn contract(original: &Graph, student: &Graph) -> Vec<String> {
    let mut wrong = Vec::new();
    let unsupported = Program::unsupported(student);
    if !unsupported.is_empty() {
        let some = unsupported.iter().take(5);
        let some: Vec<String> = some
            .map(|(node, op, why)| format!("{node} ({op}: {why})"))
            .collect();
        wrong.push(format!(
            "{} of its {} nodes cannot run: {}",
            unsupported.len(),
            student.nodes.len(),
            some.join(", ")
        ));
    }
    let broken = student.non_finite_weights();
    if let Some((name, count)) = broken.first() {
        wrong.push(format!(
            "{} of its weight tensors hold values that are not finite, such as {name} ({count})",
            broken.len()
        ));
    }
    let ends = [
        ("input", &original.inputs, &student.inputs),
        ("output", &original.outputs, &student.outputs),
    ];
    for (what, theirs, own) in ends {
        if theirs.len() != own.len() {
            wrong.push(format!(
                "it has {} {what}s, the original has {}",
                own.len(),
                theirs.len()
            ));
            continue;
        }
        for (theirs, own) in theirs.iter().zip(own) {
            wrong.extend(end(what, (original, *theirs), (student, *own)));
        }
    }
    wrong
}

/// One input or output: its name, type and shape.
fn end(
    what: &str,
    (original, theirs): (&Graph, ValueId),
    (student, own): (&Graph, ValueId),
) -> Vec<String> {
    let (theirs, own) = (original.value(theirs), student.value(own));
    let mut wrong = Vec::new();
    if theirs.name != own.name {
        wrong.push(format!(
            "its {what} is called {}, the original's {}: export it with that name",
            own.name, theirs.name
        ));
    }
    if let (Some(a), Some(b)) = (theirs.element, own.element)
        && a != b
    {
        wrong.push(format!(
            "its {what} {} holds {b:?}, the original's {a:?}",
            own.name
        ));
    }
    let (Some(a), Some(b)) = (&theirs.shape, &own.shape) else {
        return wrong;
    };
    // An input that takes any extent takes the original's; an output whose extent is not known beforehand is seen when it runs.
    let fits = a.len() == b.len()
        && a.iter().zip(b).all(|pair| match pair {
            (Dim::Known(a), Dim::Known(b)) => a == b,
            (_, Dim::Known(_)) => what == "output",
            _ => true,
        });
    if !fits {
        wrong.push(format!(
            "its {what} {} is {}, the original's {}",
            own.name,
            super::shape_words(b),
            super::shape_words(a)
        ));
    }
    wrong
}
