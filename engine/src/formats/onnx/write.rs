//! From the graph to `ModelProto`: opset, types, constants; and files replaced only when complete.

use super::proto::{self, Extent};
use super::{FormatError, LOCAL_FUNCTION, SOURCE_OPSET, defaults, encode, tensor};
use crate::graph::{Dim, ElementType, Graph, Node, Op, RawAttribute, Value, ValueId};
use prost::Message;
use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

/// Oldest opset that is written: its forms of the operators are the IR's but for those named in
/// [`encode::opset_of`].
pub(super) const WRITTEN_OPSET: i64 = 17;
/// Protobuf messages end at 2 GiB.
const MOST_BYTES: usize = i32::MAX as usize;

/// Name given to a graph without one: the standard asks for a name.
pub(super) const DEFAULT_NAME: &str = "main";

/// Encodes the graph. Errors name the node.
pub(super) fn to_bytes(graph: &Graph, path: &Path) -> Result<Vec<u8>, FormatError> {
    let model = checked(graph, path)?;
    let size = model.encoded_len();
    if size > MOST_BYTES {
        return Err(FormatError::new(
            path,
            format!(
                "the model would take {size} bytes, but an ONNX file holds at most 2 GiB: compress it further \
                 before exporting"
            ),
        ));
    }
    Ok(model.encode_to_vec())
}

/// Bytes that the graph would take; also where that is more than a file can hold.
pub(super) fn encoded_len(graph: &Graph, path: &Path) -> Result<u64, FormatError> {
    Ok(checked(graph, path)?.encoded_len() as u64)
}

fn checked(graph: &Graph, path: &Path) -> Result<proto::Model, FormatError> {
    model(graph).map_err(|e| FormatError::new(path, format!("the model cannot be written: {e}")))
}

fn model(graph: &Graph) -> Result<proto::Model, String> {
    graph.validate().map_err(|e| e.to_string())?;
    // Unused values are not written, and stated shapes must fit what the nodes compute after edits.
    let mut graph = graph.clone();
    graph.compact();
    graph.infer_shapes();
    let (opset, domains) = opsets(&graph)?;
    // Also where text or lists go in and out: those the IR doesn't carry.
    let untyped = |id: &&ValueId| graph.value(**id).element.is_none();
    if let Some(&id) = graph.inputs.iter().chain(&graph.outputs).find(untyped) {
        return Err(format!(
            "the element type of its input or output {} is not known or not supported",
            graph.value(id).name
        ));
    }
    let mut names = Names::new(&graph);
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        encode::node(&graph, node, opset, &mut names, &mut nodes)
            .map_err(|e| format!("node {} ({}): {e}", node.name, node.op.name()))?;
    }
    let info = |&id: &ValueId| value_info(graph.value(id));
    let mut stated = defaults::to_be_stated(&graph);
    for output in &graph.outputs {
        stated.remove(output);
    }
    let constants = graph
        .values
        .iter()
        .filter_map(|v| Some(tensor::write(Some(&v.name), v.data.as_ref()?)));
    Ok(proto::Model {
        ir_version: Some(ir_version(opset)),
        producer_name: Some("limbeck".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        opset_import: std::iter::once((String::new(), opset))
            .chain(domains)
            .map(|(domain, version)| proto::OperatorSet {
                domain: Some(domain),
                version: Some(version),
            })
            .collect(),
        metadata_props: graph
            .metadata
            .iter()
            .map(|(key, value)| proto::Entry {
                key: Some(key.clone()),
                value: Some(value.clone()),
            })
            .collect(),
        graph: Some(proto::Graph {
            name: Some(match graph.name.as_str() {
                "" => DEFAULT_NAME.into(),
                name => name.into(),
            }),
            input: graph.inputs.iter().map(info).collect(),
            output: graph.outputs.iter().map(info).collect(),
            value_info: stated.iter().map(info).collect(),
            initializer: constants.collect(),
            node: nodes,
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// The standard opset that says every node, and the versions of other domains.
fn opsets(graph: &Graph) -> Result<(i64, BTreeMap<String, i64>), String> {
    let mut opset = WRITTEN_OPSET;
    let mut domains: BTreeMap<String, i64> = BTreeMap::new();
    let four_bit = |e: Option<ElementType>| e.is_some_and(|e| e.bits() == 4);
    if graph.values.iter().any(|v| four_bit(v.element)) {
        opset = 21;
    }
    for node in &graph.nodes {
        if let Some(source) = source_opset(node) {
            let Op::Unsupported { domain, .. } = &node.op else {
                continue;
            };
            if domain.is_empty() {
                opset = opset.max(source);
            } else {
                let version = domains.entry(domain.clone()).or_insert(1);
                *version = source.max(*version);
            }
        } else {
            opset = opset.max(encode::opset_of(graph, node));
        }
    }
    for node in &graph.nodes {
        check_unsupported(node, opset)?;
    }
    Ok((opset, domains))
}

/// Operator-set version that an unsupported node was read with; 1 where it wasn't read.
fn source_opset(node: &Node) -> Option<i64> {
    let Op::Unsupported { attributes, .. } = &node.op else {
        return None;
    };
    let stated = attributes.iter().find_map(|(name, a)| match a {
        RawAttribute::Int(v) if name == SOURCE_OPSET => Some(*v),
        _ => None,
    });
    Some(stated.unwrap_or(1).max(1))
}

/// An unsupported node is written as it was read; what cannot survive that is an error.
fn check_unsupported(node: &Node, opset: i64) -> Result<(), String> {
    let Op::Unsupported {
        domain, attributes, ..
    } = &node.op
    else {
        return Ok(());
    };
    if attributes.iter().any(|(name, _)| name == LOCAL_FUNCTION) {
        return Err(format!(
            "node {} calls a function that the source file defines, which can't be written: inline the \
             model's functions (onnx.inliner) before opening it",
            node.name
        ));
    }
    // Nested nodes keep the spelling of the opset they were read with.
    let nested = node.op.captures()
        || attributes
            .iter()
            .any(|(_, a)| matches!(a, RawAttribute::Encoded(e) if has_graph(e)));
    if domain.is_empty() && nested && source_opset(node).is_some_and(|s| s != opset) {
        return Err(format!(
            "node {} ({}) holds a sub-graph of another opset than {opset}, in which this model is written: \
             convert the model with onnx.version_converter before opening it",
            node.name,
            node.op.name()
        ));
    }
    Ok(())
}

fn has_graph(encoded: &[u8]) -> bool {
    proto::Attribute::decode(encoded).is_ok_and(|a| a.g.is_some() || !a.graphs.is_empty())
}

/// The oldest IR version in which an opset is current, so that older runtimes take the file.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=18 => 8,
        19 | 20 => 9,
        21 | 22 => 10,
        23 => 11,
        _ => 12,
    }
}

fn value_info(value: &Value) -> proto::ValueInfo {
    let dimension = |d: &Dim| proto::Dimension {
        value: match d {
            Dim::Known(n) => i64::try_from(*n).ok().map(Extent::Value),
            Dim::Symbol(s) => Some(Extent::Param(s.to_string())),
            Dim::Unknown => None,
        },
    };
    proto::ValueInfo {
        name: Some(value.name.clone()),
        r#type: value.element.map(|element| proto::Type {
            tensor_type: Some(proto::TensorType {
                elem_type: Some(tensor::element_code(element)),
                shape: value.shape.as_ref().map(|shape| proto::Shape {
                    dim: shape.iter().map(dimension).collect(),
                }),
            }),
        }),
    }
}

/// Names for the nodes and values that the writer has to add.
pub(super) struct Names {
    taken: std::collections::BTreeSet<String>,
}

impl Names {
    fn new(graph: &Graph) -> Self {
        let values = graph.values.iter().map(|v| v.name.clone());
        Self {
            taken: values
                .chain(graph.nodes.iter().map(|n| n.name.clone()))
                .collect(),
        }
    }

    pub(super) fn fresh(&mut self, base: &str) -> String {
        let mut name = base.to_string();
        let mut count = 0u64;
        while !self.taken.insert(name.clone()) {
            count += 1;
            name = format!("{base}_{count}");
        }
        name
    }
}

/// Writes `bytes` to `path` by way of a temporary file beside it.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    let fail = |what: &str, e: std::io::Error| {
        let advice = match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "; free some space or choose another folder"
            }
            std::io::ErrorKind::PermissionDenied => "; choose a folder that you may write to",
            std::io::ErrorKind::NotFound => "; create the folder first",
            _ => "",
        };
        FormatError::new(path, format!("{what}: {e}{advice}. Nothing was changed"))
    };
    let folder: PathBuf = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".limbeck-").suffix(".partial");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any new file has it; the process's mask applies. The library's own default is private.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder
        .tempfile_in(&folder)
        .map_err(|e| fail("cannot create a file there", e))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(|e| fail("cannot write the whole model", e))?;
    file.persist(path)
        .map_err(|e| fail("cannot put the new file in place", e.error))?;
    // The rename itself reaches the disk with its folder; where that can't be asked for, it is only later.
    if let Ok(folder) = std::fs::File::open(&folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}
