//! One node: into an operator of the IR where it is one, else kept as it is with the reason.

use super::attributes::{self, Attributes};
use super::operators;
use super::proto;
use super::read::Reader;
use super::write::WRITTEN_OPSET;
use super::{LOCAL_FUNCTION, SOURCE_OPSET};
use crate::graph::{CAPTURES, ElementType, Node, Op, RawAttribute, TensorData, ValueId};
use std::collections::BTreeSet;

/// What an operator's reader sees of its node.
pub(super) struct Cx<'c, 'r, 'p> {
    pub(super) reader: &'c mut Reader<'r>,
    pub(super) attributes: Attributes<'p>,
    pub(super) node: &'c mut Node,
    pub(super) op_type: &'p str,
    /// Version of the standard operator set.
    pub(super) opset: i64,
}

impl Cx<'_, '_, '_> {
    pub(super) fn input(&self, position: usize) -> Option<ValueId> {
        self.node.inputs.get(position).copied().flatten()
    }

    /// Puts a constant made from an attribute at an input position.
    pub(super) fn set_constant(&mut self, position: usize, name: &str, data: TensorData) {
        let base = format!("{}_{name}", self.node.name);
        let id = self.reader.constant(&base, data);
        if self.node.inputs.len() <= position {
            self.node.inputs.resize(position + 1, None);
        }
        self.node.inputs[position] = Some(id);
    }

    /// A 1-D int64 constant from an attribute, at an input position.
    pub(super) fn set_ints(&mut self, position: usize, name: &str, values: &[i64]) {
        self.set_constant(
            position,
            name,
            TensorData::from_i64(&[values.len()], values),
        );
    }

    /// A scalar of the first input's element type (float32 where unknown), at an input position.
    pub(super) fn set_scalar_like(&mut self, position: usize, name: &str, value: f32) {
        let element = self.element(0).unwrap_or(ElementType::F32);
        self.set_constant(
            position,
            name,
            TensorData::from_f32_as(element, &[], &[value]),
        );
    }

    pub(super) fn element(&self, position: usize) -> Option<ElementType> {
        self.reader.element(self.input(position))
    }

    /// Data of a constant input.
    pub(super) fn data(&self, position: usize) -> Option<&TensorData> {
        self.reader.graph.value(self.input(position)?).data.as_ref()
    }

    /// Drops outputs from `keep` on that nothing reads; an error where one is read.
    pub(super) fn drop_outputs(&mut self, keep: usize, reason: &str) -> Result<(), String> {
        self.drop_unread_outputs(keep);
        if self.node.outputs.len() > keep {
            Err(reason.to_string())
        } else {
            Ok(())
        }
    }

    /// Drops trailing outputs from `keep` on as long as nothing reads them.
    pub(super) fn drop_unread_outputs(&mut self, keep: usize) {
        while self.node.outputs.len() > keep {
            let read = self
                .node
                .outputs
                .last()
                .copied()
                .flatten()
                .is_some_and(|id| self.reader.is_read(&self.reader.graph.value(id).name));
            if read {
                break;
            }
            self.node.outputs.pop();
        }
    }
}

/// Fills in the operator of `built`, whose name, inputs and outputs are set; inputs change where an older
/// spelling has them as attributes. Only unreadable data is an error.
pub(super) fn convert(
    reader: &mut Reader<'_>,
    domain: &str,
    proto: &proto::Node,
    captures: &[String],
    built: &mut Node,
) -> Result<(), String> {
    let op_type = proto.op_type.as_deref().unwrap_or("");
    let local = reader.is_local_function(domain, op_type);
    let reason = if local {
        "it calls a function that the file defines, which is not supported".to_string()
    } else if !domain.is_empty() {
        format!("operators of the domain {domain} are not supported")
    } else if op_type.is_empty() {
        "the file doesn't say which operator it is".to_string()
    } else {
        let (inputs, outputs) = (built.inputs.clone(), built.outputs.clone());
        let mut cx = Cx {
            opset: reader.opset(""),
            reader,
            attributes: Attributes::new(&proto.attribute),
            node: built,
            op_type,
        };
        match operators::operator(&mut cx) {
            Ok(op) => {
                built.op = op;
                return Ok(());
            }
            Err(reason) => {
                built.inputs = inputs;
                built.outputs = outputs;
                reason
            }
        }
    };
    let mut kept = Vec::with_capacity(proto.attribute.len() + 2);
    for a in &proto.attribute {
        let value = attributes::keep(a, &mut reader.external)?;
        kept.push((a.name.clone().unwrap_or_default(), value));
    }
    if !captures.is_empty() {
        let names = captures.iter().map(|n| n.clone().into_bytes()).collect();
        kept.push((CAPTURES.into(), RawAttribute::Strings(names)));
    }
    // Nested nodes must be written in the very opset they were read in. For all others the oldest that is
    // written will do.
    let nested = kept
        .iter()
        .any(|(_, a)| matches!(a, RawAttribute::Encoded(_)));
    let opset = match reader.opset(domain) {
        version if domain.is_empty() && !nested => version.max(WRITTEN_OPSET),
        version => version,
    };
    kept.push((SOURCE_OPSET.into(), RawAttribute::Int(opset)));
    if local {
        kept.push((LOCAL_FUNCTION.into(), RawAttribute::Int(1)));
    }
    built.op = Op::Unsupported {
        domain: domain.to_string(),
        op_type: op_type.to_string(),
        attributes: kept,
        reason,
    };
    Ok(())
}

/// Names that the sub-graphs of a node read from outside them, sorted. Nesting is bounded by the decoder.
pub(super) fn captured_names(node: &proto::Node) -> Vec<String> {
    let mut captured = BTreeSet::new();
    for a in &node.attribute {
        for g in a.g.iter().chain(&a.graphs) {
            captured.extend(free_names(g));
        }
    }
    captured.into_iter().collect()
}

fn free_names(graph: &proto::Graph) -> BTreeSet<String> {
    let mut read: BTreeSet<String> = graph.output.iter().filter_map(|o| o.name.clone()).collect();
    let mut defined: BTreeSet<String> = graph.input.iter().filter_map(|i| i.name.clone()).collect();
    defined.extend(graph.initializer.iter().filter_map(|t| t.name.clone()));
    let sparse = graph
        .sparse_initializer
        .iter()
        .filter_map(|t| t.values.as_ref());
    defined.extend(sparse.filter_map(|t| t.name.clone()));
    for node in &graph.node {
        read.extend(node.input.iter().cloned());
        read.extend(captured_names(node));
        defined.extend(node.output.iter().cloned());
    }
    read.retain(|n| !n.is_empty() && !defined.contains(n));
    read
}
