//! Lookups and edits. Edits leave the graph valid; what they orphan is dropped by [`Graph::remove_dead_nodes`]
//! and [`Graph::compact`].

use super::{Dim, ElementType, Graph, GraphError, Node, NodeId, Op, TensorData, Value, ValueId};
use std::collections::{BTreeMap, BTreeSet};

impl Value {
    /// The shape where every extent is known.
    pub fn known_shape(&self) -> Option<Vec<usize>> {
        self.shape.as_ref()?.iter().map(Dim::known).collect()
    }
}

impl Dim {
    pub fn known(&self) -> Option<usize> {
        match self {
            Self::Known(n) => Some(*n),
            _ => None,
        }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Known(n) => write!(f, "{n}"),
            Self::Symbol(s) => f.write_str(s),
            Self::Unknown => f.write_str("?"),
        }
    }
}

impl Graph {
    /// The value with this id. Panics on an id of another graph.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    pub fn value_mut(&mut self, id: ValueId) -> &mut Value {
        &mut self.values[id.0 as usize]
    }

    /// The node with this id. Panics on an id from before the last edit that shortened the list.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// Ids with their nodes, in topological order.
    pub fn iter_nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes
            .iter()
            .enumerate()
            .map(|(i, n)| (NodeId(i as u32), n))
    }

    pub fn find_value(&self, name: &str) -> Option<ValueId> {
        self.values
            .iter()
            .position(|v| v.name == name)
            .map(|i| ValueId(i as u32))
    }

    pub fn find_node(&self, name: &str) -> Option<NodeId> {
        self.nodes
            .iter()
            .position(|n| n.name == name)
            .map(|i| NodeId(i as u32))
    }

    /// The node that computes `value`; `None` for inputs and constants. Looks through the list: for many
    /// values take [`Graph::producers`].
    pub fn producer(&self, value: ValueId) -> Option<NodeId> {
        self.nodes
            .iter()
            .position(|n| n.outputs.contains(&Some(value)))
            .map(|i| NodeId(i as u32))
    }

    /// For every value, the node that computes it.
    pub fn producers(&self) -> Vec<Option<NodeId>> {
        let mut producers = vec![None; self.values.len()];
        for (id, node) in self.iter_nodes() {
            for output in node.outputs.iter().flatten() {
                producers[output.0 as usize] = Some(id);
            }
        }
        producers
    }

    /// For every value that is read: the nodes reading it, with the input position, in topological order.
    /// Graph outputs are not consumers; see [`Graph::outputs`].
    pub fn consumers(&self) -> BTreeMap<ValueId, Vec<(NodeId, usize)>> {
        let mut consumers: BTreeMap<ValueId, Vec<(NodeId, usize)>> = BTreeMap::new();
        for (id, node) in self.iter_nodes() {
            for (position, input) in node.inputs.iter().enumerate() {
                if let Some(value) = input {
                    consumers.entry(*value).or_default().push((id, position));
                }
            }
        }
        consumers
    }

    /// `base`, or `base_1`, `base_2`, … where it is taken.
    pub fn unique_value_name(&self, base: &str) -> String {
        unique(
            base,
            |name| self.find_value(name).is_some(),
            || self.values.iter().map(|v| v.name.as_str()).collect(),
        )
    }

    /// `base`, or `base_1`, `base_2`, … where it is taken.
    pub fn unique_node_name(&self, base: &str) -> String {
        unique(
            base,
            |name| self.find_node(name).is_some(),
            || self.nodes.iter().map(|n| n.name.as_str()).collect(),
        )
    }

    /// Adds a value under a name made unique from `name`.
    pub fn add_value(
        &mut self,
        name: &str,
        element: Option<ElementType>,
        shape: Option<Vec<Dim>>,
    ) -> ValueId {
        self.push_value(Value {
            name: self.unique_value_name(name),
            element,
            shape,
            data: None,
        })
    }

    /// Adds a constant under a name made unique from `name`.
    pub fn add_constant(&mut self, name: &str, data: TensorData) -> ValueId {
        self.push_value(Value {
            name: self.unique_value_name(name),
            element: Some(data.element),
            shape: Some(data.shape.iter().map(|&d| Dim::Known(d)).collect()),
            data: Some(data),
        })
    }

    fn push_value(&mut self, value: Value) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(value);
        id
    }

    /// Replaces a constant's data, its element type and its shape.
    pub fn set_data(&mut self, id: ValueId, data: TensorData) {
        let value = self.value_mut(id);
        value.element = Some(data.element);
        value.shape = Some(data.shape.iter().map(|&d| Dim::Known(d)).collect());
        value.data = Some(data);
    }

    /// Adds a node at the end of the list, its name made unique from `name`. Where it feeds earlier nodes,
    /// [`Graph::sort`] afterwards.
    pub fn add_node(
        &mut self,
        name: &str,
        op: Op,
        inputs: Vec<Option<ValueId>>,
        outputs: Vec<Option<ValueId>>,
    ) -> NodeId {
        self.insert_node(NodeId(self.nodes.len() as u32), name, op, inputs, outputs)
    }

    /// Inserts a node before the one `at` (later ids shift by one), its name made unique from `name`.
    pub fn insert_node(
        &mut self,
        at: NodeId,
        name: &str,
        op: Op,
        inputs: Vec<Option<ValueId>>,
        outputs: Vec<Option<ValueId>>,
    ) -> NodeId {
        let node = Node {
            name: self.unique_node_name(name),
            op,
            inputs,
            outputs,
        };
        let at = (at.0 as usize).min(self.nodes.len());
        self.nodes.insert(at, node);
        NodeId(at as u32)
    }

    /// Takes a node out (later ids shift by one). Its outputs lose their definition: rewire their readers.
    pub fn remove_node(&mut self, id: NodeId) -> Node {
        self.nodes.remove(id.0 as usize)
    }

    /// Puts `nodes` in the place of one node (later ids shift). Their names are made unique.
    pub fn replace_node(&mut self, id: NodeId, nodes: Vec<Node>) -> Node {
        let at = id.0 as usize;
        let old = self.nodes.remove(at);
        for (offset, mut node) in nodes.into_iter().enumerate() {
            node.name = self.unique_node_name(&node.name);
            self.nodes.insert(at + offset, node);
        }
        old
    }

    /// Makes every reader of `from`, graph outputs included, read `to` instead.
    pub fn rewire(&mut self, from: ValueId, to: ValueId) {
        self.rewire_readers(from, to, |_| true);
        for output in &mut self.outputs {
            if *output == from {
                *output = to;
            }
        }
    }

    /// Makes the nodes for which `which` holds read `to` where they read `from`; graph outputs stay.
    pub fn rewire_readers(&mut self, from: ValueId, to: ValueId, which: impl Fn(&Node) -> bool) {
        for node in &mut self.nodes {
            if which(node) {
                for input in &mut node.inputs {
                    if *input == Some(from) {
                        *input = Some(to);
                    }
                }
            }
        }
    }

    /// Removes the nodes that no output depends on; returns how many.
    pub fn remove_dead_nodes(&mut self) -> usize {
        let mut live: BTreeSet<ValueId> = self.outputs.iter().copied().collect();
        live.extend(self.captured_values());
        let mut keep = vec![false; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            if node.outputs.iter().flatten().any(|v| live.contains(v)) {
                keep[i] = true;
                live.extend(node.inputs.iter().flatten());
            }
        }
        let before = self.nodes.len();
        let mut keep = keep.into_iter();
        self.nodes.retain(|_| keep.next().unwrap_or(true));
        before - self.nodes.len()
    }

    /// Values that sub-graphs of unsupported nodes read by name.
    pub(crate) fn captured_values(&self) -> Vec<ValueId> {
        let captured: BTreeSet<&str> = self
            .nodes
            .iter()
            .flat_map(|n| n.op.captured_names())
            .collect();
        if captured.is_empty() {
            return Vec::new();
        }
        (0u32..)
            .zip(&self.values)
            .filter(|(_, v)| captured.contains(v.name.as_str()))
            .map(|(i, _)| ValueId(i))
            .collect()
    }

    /// Orders nodes so that each stands after those it reads from, keeping the present order where it can.
    pub fn sort(&mut self) -> Result<(), GraphError> {
        let producers = self.producers();
        let by_name: BTreeMap<&str, NodeId> = if self.nodes.iter().any(|n| n.op.captures()) {
            self.values
                .iter()
                .zip(&producers)
                .filter_map(|(v, p)| p.map(|p| (v.name.as_str(), p)))
                .collect()
        } else {
            BTreeMap::new()
        };
        let needs: Vec<Vec<usize>> = self
            .nodes
            .iter()
            .map(|node| {
                let inputs = node.inputs.iter().flatten();
                let read = inputs.filter_map(|v| producers.get(v.0 as usize).copied().flatten());
                let captured = node
                    .op
                    .captured_names()
                    .into_iter()
                    .filter_map(|n| by_name.get(n).copied());
                read.chain(captured).map(|n| n.0 as usize).collect()
            })
            .collect();
        let order =
            topological(&needs).map_err(|i| GraphError::Cycle(self.nodes[i].name.clone()))?;
        let mut nodes: Vec<Option<Node>> = std::mem::take(&mut self.nodes)
            .into_iter()
            .map(Some)
            .collect();
        self.nodes = order.into_iter().filter_map(|i| nodes[i].take()).collect();
        Ok(())
    }

    /// Drops values that nothing refers to and renumbers the rest: inputs first, then in order of first
    /// use. Returns the new id of every old value.
    pub fn compact(&mut self) -> Vec<Option<ValueId>> {
        let mut map: Vec<Option<ValueId>> = vec![None; self.values.len()];
        let mut order = Vec::new();
        let mut take = |id: ValueId| {
            let slot = &mut map[id.0 as usize];
            if slot.is_none() {
                *slot = Some(ValueId(order.len() as u32));
                order.push(id);
            }
        };
        self.inputs.iter().for_each(|&v| take(v));
        for node in &self.nodes {
            node.inputs
                .iter()
                .chain(&node.outputs)
                .flatten()
                .for_each(|&v| take(v));
        }
        self.outputs.iter().for_each(|&v| take(v));
        self.captured_values().into_iter().for_each(take);

        let mut old: Vec<Option<Value>> = std::mem::take(&mut self.values)
            .into_iter()
            .map(Some)
            .collect();
        self.values = order
            .iter()
            .filter_map(|id| old[id.0 as usize].take())
            .collect();
        let renumber = |id: &mut ValueId| {
            if let Some(new) = map[id.0 as usize] {
                *id = new;
            }
        };
        self.inputs.iter_mut().for_each(renumber);
        self.outputs.iter_mut().for_each(renumber);
        for node in &mut self.nodes {
            node.inputs
                .iter_mut()
                .chain(&mut node.outputs)
                .flatten()
                .for_each(renumber);
        }
        map
    }

    /// Checks everything edits must keep: ids in range, unique names, definitions before uses, defined
    /// outputs, tensors as long as their shapes say.
    pub fn validate(&self) -> Result<(), GraphError> {
        let check = |id: ValueId, place: &str| {
            if (id.0 as usize) < self.values.len() {
                Ok(())
            } else {
                Err(GraphError::NoSuchValue {
                    place: place.to_string(),
                    index: id.0,
                    count: self.values.len(),
                })
            }
        };
        for &id in self.inputs.iter().chain(&self.outputs) {
            check(id, "the list of inputs and outputs")?;
        }
        for node in &self.nodes {
            for &id in node.inputs.iter().chain(&node.outputs).flatten() {
                check(id, &format!("node {}", node.name))?;
            }
        }
        unique_names("value", self.values.iter().map(|v| v.name.as_str()))?;
        unique_names("node", self.nodes.iter().map(|n| n.name.as_str()))?;

        let mut defined = vec![false; self.values.len()];
        for (slot, value) in defined.iter_mut().zip(&self.values) {
            if let Some(data) = &value.data {
                *slot = true;
                data.validate().map_err(|e| GraphError::Tensor {
                    value: value.name.clone(),
                    reason: e.to_string(),
                })?;
                let same = value.shape.as_ref().is_none_or(|shape| {
                    shape.len() == data.shape.len()
                        && shape
                            .iter()
                            .zip(&data.shape)
                            .all(|(d, &n)| *d == Dim::Known(n))
                });
                if !same || value.element.is_some_and(|e| e != data.element) {
                    return Err(GraphError::Tensor {
                        value: value.name.clone(),
                        reason: format!(
                            "its data is {} {:?}, which is not what it is declared as",
                            data.element, data.shape
                        ),
                    });
                }
            }
        }
        for &id in &self.inputs {
            defined[id.0 as usize] = true;
        }
        for node in &self.nodes {
            for id in node.inputs.iter().flatten() {
                if !defined[id.0 as usize] {
                    return Err(GraphError::Undefined {
                        node: node.name.clone(),
                        value: self.value(*id).name.clone(),
                    });
                }
            }
            for id in node.outputs.iter().flatten() {
                if std::mem::replace(&mut defined[id.0 as usize], true) {
                    return Err(GraphError::DefinedTwice {
                        value: self.value(*id).name.clone(),
                        node: node.name.clone(),
                    });
                }
            }
        }
        match self.outputs.iter().find(|id| !defined[id.0 as usize]) {
            Some(&id) => Err(GraphError::UndefinedOutput(self.value(id).name.clone())),
            None => Ok(()),
        }
    }

    /// Float constants that hold what no weight should: NaN anywhere, infinities where a layer or a norm reads
    /// them (elsewhere they are ordinary: attention masks, bounds). Name and number of such elements.
    pub fn non_finite_weights(&self) -> Vec<(String, usize)> {
        let never: Result<_, std::convert::Infallible> = self.non_finite_weights_while(|| Ok(()));
        never.unwrap_or_default()
    }

    /// As [`Graph::non_finite_weights`]; `between` is called after every constant that was looked at.
    ///
    /// # Errors
    /// What `between` returns, which ends it there.
    pub fn non_finite_weights_while<E>(
        &self,
        mut between: impl FnMut() -> Result<(), E>,
    ) -> Result<Vec<(String, usize)>, E> {
        let mut weights: BTreeSet<ValueId> = BTreeSet::new();
        for node in &self.nodes {
            if matches!(
                node.op,
                Op::Conv { .. }
                    | Op::ConvTranspose { .. }
                    | Op::Gemm { .. }
                    | Op::MatMul
                    | Op::BatchNormalization { .. }
                    | Op::InstanceNormalization { .. }
                    | Op::LayerNormalization { .. }
            ) {
                weights.extend(node.inputs.iter().flatten());
            }
        }
        let mut found = Vec::new();
        for (i, v) in (0u32..).zip(&self.values) {
            let Some(data) = &v.data else { continue };
            let count = match weights.contains(&ValueId(i)) {
                true => data.non_finite(),
                false => data.nan(),
            };
            data.let_go();
            if count > 0 {
                found.push((v.name.clone(), count));
            }
            between()?;
        }
        Ok(found)
    }
}

fn unique_names<'a>(
    kind: &'static str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), GraphError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(GraphError::DuplicateName {
                kind,
                name: name.to_string(),
            });
        }
    }
    Ok(())
}

fn unique<'a>(
    base: &str,
    taken: impl Fn(&str) -> bool,
    all: impl FnOnce() -> BTreeSet<&'a str>,
) -> String {
    if !taken(base) {
        return base.to_string();
    }
    let all = all();
    (1u64..)
        .map(|i| format!("{base}_{i}"))
        .find(|name| !all.contains(name.as_str()))
        .unwrap_or_else(|| base.to_string())
}

/// Order of `0..needs.len()` in which each index stands after those it needs, else as they stand; an index
/// on a cycle as the error. Iterative: a long chain must not exhaust the stack.
pub(crate) fn topological(needs: &[Vec<usize>]) -> Result<Vec<usize>, usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; needs.len()];
    let mut order = Vec::with_capacity(needs.len());
    let mut stack: Vec<(usize, usize)> = Vec::new();
    for start in 0..needs.len() {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::Open;
        stack.push((start, 0));
        while let Some((at, next)) = stack.last_mut() {
            let at = *at;
            match needs[at].get(*next) {
                Some(&need) => {
                    *next += 1;
                    match marks[need] {
                        Mark::New => {
                            marks[need] = Mark::Open;
                            stack.push((need, 0));
                        }
                        Mark::Open => return Err(need),
                        Mark::Done => {}
                    }
                }
                None => {
                    marks[at] = Mark::Done;
                    order.push(at);
                    stack.pop();
                }
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests;
