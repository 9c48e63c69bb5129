//! From `ModelProto` to the graph: names, constants, order of nodes.

use super::external::ExternalFiles;
use super::proto::{self, Extent};
use super::write::DEFAULT_NAME;
use super::{FormatError, ModelFile, OLDEST_OPSET};
use super::{attributes, convert, defaults, tensor};
use crate::graph::{
    self, Dim, ElementType, Graph, Node, Op, RawAttribute, TensorData, Value, ValueId,
};
use bytes::Bytes;
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// State while one model is read.
pub(super) struct Reader<'a> {
    path: &'a Path,
    pub(super) graph: Graph,
    pub(super) external: ExternalFiles,
    /// Operator-set versions by domain; the standard domain is the empty string.
    opsets: BTreeMap<String, i64>,
    functions: BTreeSet<(String, String)>,
    names: BTreeMap<String, ValueId>,
    /// Names that nodes, sub-graphs and graph outputs read.
    read_names: BTreeSet<String>,
    node_names: BTreeSet<String>,
    /// How many names were made from each base, so that many equal ones don't take quadratic time.
    made_up: BTreeMap<String, u64>,
}

pub(super) fn model(
    path: &Path,
    folder: Option<&Path>,
    bytes: Bytes,
) -> Result<ModelFile, FormatError> {
    let fail = |message: String| FormatError::new(path, message);
    let size = bytes.len() as u64;
    let model =
        proto::Model::decode(bytes).map_err(|e| fail(format!("not a complete ONNX model: {e}")))?;
    let Some(proto) = model.graph else {
        return Err(fail(
            "the file holds no graph: it is empty or not an ONNX model".into(),
        ));
    };
    let mut opsets = BTreeMap::new();
    for set in model.opset_import {
        let domain = standard(set.domain.unwrap_or_default());
        opsets.insert(domain, set.version.unwrap_or(1));
    }
    let mut reader = Reader {
        path,
        graph: Graph {
            name: proto
                .name
                .clone()
                .filter(|n| !n.is_empty())
                .unwrap_or_else(|| DEFAULT_NAME.into()),
            ..Default::default()
        },
        external: ExternalFiles::new(folder),
        opsets,
        functions: model
            .functions
            .into_iter()
            .map(|f| {
                (
                    standard(f.domain.unwrap_or_default()),
                    f.name.unwrap_or_default(),
                )
            })
            .collect(),
        names: BTreeMap::new(),
        read_names: BTreeSet::new(),
        node_names: BTreeSet::new(),
        made_up: BTreeMap::new(),
    };
    for entry in model.metadata_props {
        reader.graph.metadata.insert(
            entry.key.unwrap_or_default(),
            entry.value.unwrap_or_default(),
        );
    }
    reader.read(&proto)?;
    let producer = [model.producer_name, model.producer_version];
    Ok(ModelFile {
        opset: u32::try_from(reader.opset("")).unwrap_or(0),
        ir_version: model.ir_version.unwrap_or(0),
        producer: producer
            .into_iter()
            .flatten()
            .filter(|s| !s.is_empty())
            .collect::<Vec<_>>()
            .join(" "),
        size_bytes: size + reader.external.total_bytes(),
        data_files: reader.external.paths(),
        graph: reader.graph,
    })
}

/// `ai.onnx` is another name of the standard domain.
fn standard(domain: String) -> String {
    if domain == "ai.onnx" {
        String::new()
    } else {
        domain
    }
}

impl Reader<'_> {
    pub(super) fn fail(&self, message: String) -> FormatError {
        FormatError::new(self.path, message)
    }

    /// Version of a domain's operator set; 0 where the file doesn't import it.
    pub(super) fn opset(&self, domain: &str) -> i64 {
        self.opsets.get(domain).copied().unwrap_or(0)
    }

    pub(super) fn is_local_function(&self, domain: &str, op_type: &str) -> bool {
        self.functions
            .contains(&(domain.to_string(), op_type.to_string()))
    }

    /// Whether anything reads the value of this name.
    pub(super) fn is_read(&self, name: &str) -> bool {
        self.read_names.contains(name)
    }

    fn read(&mut self, proto: &proto::Graph) -> Result<(), FormatError> {
        self.check_opset(proto)?;
        self.node_names = proto.node.iter().filter_map(|n| n.name.clone()).collect();
        // Constants first: an input of the same name is then only the constant's declaration.
        for t in &proto.initializer {
            self.initializer(t)?;
        }
        for t in &proto.sparse_initializer {
            self.sparse_initializer(t)?;
        }
        for info in &proto.input {
            let name = info.name.as_deref().unwrap_or("");
            if self
                .names
                .get(name)
                .is_some_and(|id| !self.graph.inputs.contains(id))
            {
                continue;
            }
            let id = self.define(name, "input of the graph")?;
            self.graph.inputs.push(id);
            self.declare(info);
        }
        let outputs = proto.output.iter().filter_map(|o| o.name.clone());
        self.read_names.extend(outputs);
        let mut captures = Vec::with_capacity(proto.node.len());
        for node in &proto.node {
            let captured = convert::captured_names(node);
            self.read_names
                .extend(node.input.iter().chain(&captured).cloned());
            captures.push(captured);
        }
        let order = self.order(proto, &captures)?;
        for info in proto.value_info.iter().chain(&proto.output) {
            self.declare(info);
        }
        let mut used = BTreeSet::new();
        for (index, node) in order {
            self.node(index, node, &captures[index], &mut used)?;
        }
        for info in &proto.output {
            let name = info.name.as_deref().unwrap_or("");
            let id = self.names.get(name).copied().ok_or_else(|| {
                self.fail(format!(
                    "the graph's output {name:?} is not defined anywhere"
                ))
            })?;
            self.graph.outputs.push(id);
        }
        self.finish()
    }

    fn check_opset(&self, proto: &proto::Graph) -> Result<(), FormatError> {
        let uses_standard = proto
            .node
            .iter()
            .any(|n| standard(n.domain.clone().unwrap_or_default()).is_empty());
        match self.opset("") {
            0 if uses_standard => Err(self.fail(
                "the model doesn't say which operator set it uses (opset_import): save it again with \
                 a current exporter"
                    .into(),
            )),
            version
                if uses_standard
                    && version < OLDEST_OPSET
                    && !proto.node.iter().all(|n| is_timeless(n, version)) =>
            {
                Err(self.fail(format!(
                "the model uses operator set {version}, but the oldest supported is {OLDEST_OPSET}: \
                 convert it with onnx.version_converter"
            )))
            }
            _ => Ok(()),
        }
    }

    fn initializer(&mut self, t: &proto::Tensor) -> Result<(), FormatError> {
        let name = t.name.as_deref().unwrap_or("");
        let id = self.define(name, "initialiser")?;
        if !tensor::is_known(t) {
            let mut t = t.clone();
            t.name = None;
            let kind = tensor::foreign_type(t.data_type.unwrap_or(0).into());
            let attribute = proto::Attribute {
                name: Some("value".into()),
                kind: Some(proto::kind::TENSOR),
                t: Some(t),
                ..Default::default()
            };
            self.foreign_constant(name, id, &attribute, format!("{kind} elements"));
            return Ok(());
        }
        let data = tensor::read(t, &mut self.external)
            .map_err(|e| self.fail(format!("tensor {name}: {e}")))?;
        self.graph.set_data(id, data);
        Ok(())
    }

    fn sparse_initializer(&mut self, t: &proto::SparseTensor) -> Result<(), FormatError> {
        let name = t
            .values
            .as_ref()
            .and_then(|v| v.name.clone())
            .unwrap_or_default();
        let id = self.define(&name, "sparse initialiser")?;
        let attribute = proto::Attribute {
            name: Some("sparse_value".into()),
            kind: Some(proto::kind::SPARSE_TENSOR),
            sparse_tensor: Some(t.clone()),
            ..Default::default()
        };
        self.foreign_constant(&name, id, &attribute, "a sparse tensor".into());
        Ok(())
    }

    /// A constant that the IR doesn't carry stays as the node that would make it.
    fn foreign_constant(
        &mut self,
        name: &str,
        output: ValueId,
        attribute: &proto::Attribute,
        what: String,
    ) {
        let node_name = self.unique_node_name(&format!("Constant_{name}"));
        let key = attribute.name.clone().unwrap_or_default();
        self.graph.nodes.push(Node {
            name: node_name,
            op: Op::Unsupported {
                domain: String::new(),
                op_type: "Constant".into(),
                attributes: vec![(key, RawAttribute::Encoded(attribute.encode_to_vec()))],
                reason: format!("a constant of {what} is not supported"),
            },
            inputs: vec![],
            outputs: vec![Some(output)],
        });
    }

    /// Adds a value under a name that must be new.
    fn define(&mut self, name: &str, what: &str) -> Result<ValueId, FormatError> {
        if name.is_empty() {
            return Err(self.fail(format!("an {what} has no name")));
        }
        let id = ValueId(self.graph.values.len() as u32);
        if self.names.insert(name.to_string(), id).is_some() {
            return Err(self.fail(format!(
                "the value {name} is defined twice (once as {what})"
            )));
        }
        self.graph.values.push(Value {
            name: name.to_string(),
            element: None,
            shape: None,
            data: None,
        });
        Ok(id)
    }

    /// A constant made by the reader, under a new name.
    pub(super) fn constant(&mut self, base: &str, data: TensorData) -> ValueId {
        let mut name = base.to_string();
        while self.names.contains_key(&name) || self.read_names.contains(&name) {
            name = self.next_name(base);
        }
        let id = ValueId(self.graph.values.len() as u32);
        self.names.insert(name.clone(), id);
        self.graph.values.push(Value {
            name,
            element: None,
            shape: None,
            data: None,
        });
        self.graph.set_data(id, data);
        id
    }

    fn unique_node_name(&mut self, base: &str) -> String {
        let mut name = base.to_string();
        while !self.node_names.insert(name.clone()) {
            name = self.next_name(base);
        }
        name
    }

    fn next_name(&mut self, base: &str) -> String {
        let count = self.made_up.entry(base.to_string()).or_default();
        *count += 1;
        format!("{base}_{count}")
    }

    /// Takes over type and shape that the file states, unless a constant's data say it better.
    fn declare(&mut self, info: &proto::ValueInfo) {
        let name = info.name.as_deref().unwrap_or("");
        let Some(&id) = self.names.get(name) else {
            return;
        };
        let Some(stated) = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()) else {
            return;
        };
        let value = self.graph.value_mut(id);
        if value.data.is_some() {
            return;
        }
        if let Some(element) = tensor::element_type(stated.elem_type.unwrap_or(0).into()) {
            value.element = Some(element);
        }
        if let Some(shape) = &stated.shape {
            value.shape = Some(shape.dim.iter().map(dimension).collect());
        }
    }

    /// Defines the outputs of all nodes and orders the nodes so that each follows those it reads.
    fn order<'p>(
        &mut self,
        proto: &'p proto::Graph,
        captures: &[Vec<String>],
    ) -> Result<Vec<(usize, &'p proto::Node)>, FormatError> {
        let mut producer: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, node) in proto.node.iter().enumerate() {
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                self.define(output, &format!("output of {}", label(index, node)))?;
                producer.insert(output, index);
            }
        }
        let mut needs = Vec::with_capacity(proto.node.len());
        for (index, node) in proto.node.iter().enumerate() {
            for name in node
                .input
                .iter()
                .filter(|n| !n.is_empty())
                .chain(&captures[index])
            {
                if !self.names.contains_key(name) {
                    return Err(self.fail(format!(
                        "{} reads the value {name:?}, which nothing in the file defines",
                        label(index, node)
                    )));
                }
            }
            let read = node.input.iter().chain(&captures[index]);
            needs.push(
                read.filter_map(|n| producer.get(n.as_str()).copied())
                    .collect(),
            );
        }
        let order = graph::topological(&needs).map_err(|index| {
            self.fail(format!(
                "the nodes form a cycle through {}",
                label(index, &proto.node[index])
            ))
        })?;
        Ok(order.into_iter().map(|i| (i, &proto.node[i])).collect())
    }

    fn node(
        &mut self,
        index: usize,
        node: &proto::Node,
        captures: &[String],
        used: &mut BTreeSet<String>,
    ) -> Result<(), FormatError> {
        let domain = standard(node.domain.clone().unwrap_or_default());
        let op_type = node.op_type.as_deref().unwrap_or("");
        if domain.is_empty() && op_type == "Constant" && self.constant_node(index, node)? {
            return Ok(());
        }
        let stated = node.name.as_deref().unwrap_or("");
        let name = if stated.is_empty() {
            let output = node.output.first().map(String::as_str);
            match defaults::implied_name(op_type, output) {
                Some(implied) => self.unique_node_name(implied),
                None => self.unique_node_name(&format!("{op_type}_{index}")),
            }
        } else if used.insert(stated.to_string()) {
            stated.to_string()
        } else {
            self.unique_node_name(stated)
        };
        let resolve = |names: &BTreeMap<String, ValueId>, list: &[String]| {
            list.iter()
                .map(|n| names.get(n).copied())
                .collect::<Vec<_>>()
        };
        let mut built = Node {
            name,
            op: Op::Identity,
            inputs: resolve(&self.names, &node.input),
            outputs: resolve(&self.names, &node.output),
        };
        while built.inputs.last() == Some(&None) {
            built.inputs.pop();
        }
        convert::convert(self, &domain, node, captures, &mut built)
            .map_err(|e| self.fail(format!("{}: {e}", label(index, node))))?;
        self.graph.nodes.push(built);
        self.graph.infer_node(self.graph.nodes.len() - 1);
        Ok(())
    }

    /// Turns a Constant node into a constant; false where the IR doesn't carry its kind.
    fn constant_node(&mut self, index: usize, node: &proto::Node) -> Result<bool, FormatError> {
        let ([attribute], [output]) = (&node.attribute[..], &node.output[..]) else {
            return Ok(false);
        };
        let data = attributes::constant(attribute, &mut self.external)
            .map_err(|e| self.fail(format!("{}: {e}", label(index, node))))?;
        match (data, self.names.get(output).copied()) {
            (Some(data), Some(id)) => {
                self.graph.set_data(id, data);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn finish(&mut self) -> Result<(), FormatError> {
        self.graph.infer_shapes();
        self.settle_softmax();
        self.graph.compact();
        self.graph.validate().map_err(|e| self.fail(e.to_string()))
    }

    /// Before opset 13 Softmax ran over all axes from `axis` on; where that is the last one alone, it is the
    /// present form.
    fn settle_softmax(&mut self) {
        let Graph { nodes, values, .. } = &mut self.graph;
        for node in nodes {
            let input = node.inputs.first().copied().flatten();
            let rank = input
                .and_then(|id| values[id.0 as usize].shape.as_ref())
                .map(Vec::len);
            if let (Op::Softmax { axis, flatten } | Op::LogSoftmax { axis, flatten }, Some(rank)) =
                (&mut node.op, rank)
                && (*axis == -1 || usize::try_from(*axis).is_ok_and(|a| a + 1 == rank))
            {
                *flatten = false;
            }
        }
    }

    /// Element type of an input as far as it is known before shape inference.
    pub(super) fn element(&self, id: Option<ValueId>) -> Option<ElementType> {
        id.and_then(|id| self.graph.value(id).element)
    }
}

/// Whether an operator has not changed since this opset, which is too old for a model as a whole.
fn is_timeless(node: &proto::Node, opset: i64) -> bool {
    let since = match node.op_type.as_deref().unwrap_or("") {
        "Not" | "Transpose" | "Identity" | "GlobalAveragePool" | "GlobalMaxPool" | "Softplus"
        | "Softsign" => 1,
        "And" | "Or" | "Xor" => 7,
        _ => return false,
    };
    opset >= since
}

/// How messages name a node.
fn label(index: usize, node: &proto::Node) -> String {
    let op = node.op_type.as_deref().unwrap_or("?");
    match node.name.as_deref().unwrap_or("") {
        "" => format!("node number {index} ({op})"),
        name => format!("node {name} ({op})"),
    }
}

fn dimension(dim: &proto::Dimension) -> Dim {
    match &dim.value {
        Some(Extent::Value(v)) => usize::try_from(*v).map_or(Dim::Unknown, Dim::Known),
        Some(Extent::Param(p)) if !p.is_empty() => Dim::Symbol(p.as_str().into()),
        _ => Dim::Unknown,
    }
}
