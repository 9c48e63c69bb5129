use super::ElementType;

/// What is wrong with a graph or a tensor of it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GraphError {
    #[error(
        "a {element} tensor of shape {shape:?} needs {} bytes but has {found}",
        .expected.map_or("more than memory can hold".into(), |n| n.to_string())
    )]
    TensorLength {
        element: ElementType,
        shape: Vec<usize>,
        expected: Option<usize>,
        found: usize,
    },
    #[error("two {kind}s have the name {name}: names must be unique")]
    DuplicateName { kind: &'static str, name: String },
    #[error("{place} refers to value number {index}, but the graph has {count} values")]
    NoSuchValue {
        place: String,
        index: u32,
        count: usize,
    },
    #[error("node {node} reads the value {value}, which nothing defines before it")]
    Undefined { node: String, value: String },
    #[error("the graph's output {0} is neither computed, nor an input, nor a constant")]
    UndefinedOutput(String),
    #[error("the value {value} is defined twice; once by node {node}")]
    DefinedTwice { value: String, node: String },
    #[error("the nodes form a cycle through node {0}")]
    Cycle(String),
    #[error("the value {value}: {reason}")]
    Tensor { value: String, reason: String },
}
