//! What becomes of an exported graph at a target: which layers and operators it computes in integers, which stay float and why, and how often
//! values change between the two on the way.

use super::{Fusion, Target, fusion, integer_layers};
use crate::{
    compress::{Account, AccountEntry, IntegerOp, Outcome, Precision, Wiring, quantized_layers},
    graph::{Graph, LayerId, Node, Op, ValueId},
};
use std::collections::{BTreeMap, BTreeSet};

/// How the names of its accounts begin.
const ACCOUNT: &str = "in integers at";

/// One layer with quantised weights, or an operator that joins what layers give, at a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// Name of the node.
    pub name: LayerId,
    /// `Conv`, `Add`, …
    pub op: String,
    /// Why it is computed in float; `None`: in integers.
    pub float: Option<String>,
    /// What it reads is converted right before it: from float into codes where it is computed in integers, else from codes into float.
    pub before: bool,
    /// What it gives is converted behind it, the other way round: as float by its own kernel, or by a conversion that others may share.
    pub behind: bool,
}

/// An exported graph at a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    pub target: String,
    /// Layers whose weights are integers, and operators without weights that the target could compute in integers and that read or give
    /// something quantised; in the graph's order.
    pub nodes: Vec<Executed>,
    /// Activations turned from float into codes, a sample.
    pub to_codes: usize,
    /// And back.
    pub to_float: usize,
}

impl Execution {
    /// `None` where the target's description does not say what it fuses, or nothing calibrated is in the graph.
    pub fn of(graph: &Graph, target: &Target) -> Option<Self> {
        let rules = &target.fusion;
        if *rules == Fusion::default() {
            return None;
        }
        let wiring = Wiring::of(graph);
        let integer_layers: BTreeSet<usize> = integer_layers(graph, rules)
            .into_iter()
            .map(|l| l.node.0 as usize)
            .collect();
        let mut integer = integer_layers.clone();
        let mut nodes = Vec::new();
        let kept = quantized_layers(graph);
        if !kept.iter().any(|k| k.input.is_some()) {
            return None;
        }
        let layers = graph.layers();
        let with_codes: BTreeSet<usize> = layers
            .iter()
            .zip(&kept)
            .filter(|(_, kept)| kept.precision.is_integer())
            .map(|(layer, _)| layer.node.0 as usize)
            .collect();
        let places = layers.iter().enumerate();
        let layer_at: BTreeMap<usize, usize> = places
            .map(|(at, layer)| (layer.node.0 as usize, at))
            .collect();
        for (index, node) in graph.nodes.iter().enumerate() {
            let layer = layer_at.get(&index).copied();
            let float = match layer {
                Some(at) if kept[at].precision.is_integer() => {
                    let inside = integer_layers.contains(&index);
                    (!inside).then(|| why_float(graph, &wiring, rules, node, kept[at].precision))
                }
                Some(_) => continue,
                None => {
                    let join = IntegerOp::of(&node.op).filter(|op| rules.joins.contains(op));
                    let Some(of_interest) =
                        join.map(|_| near_codes(graph, &wiring, rules, &with_codes, node))
                    else {
                        continue;
                    };
                    if !of_interest {
                        continue;
                    }
                    let float = why_float_join(graph, &wiring, rules, node);
                    if float.is_none() {
                        integer.insert(index);
                    }
                    float
                }
            };
            let executed = Executed {
                name: LayerId(node.name.as_str().into()),
                op: node.op.name().to_owned(),
                float,
                before: false,
                behind: false,
            };
            nodes.push((index, executed));
        }
        let around = Around {
            graph,
            wiring: &wiring,
            rules,
            integer: &integer,
        };
        for (index, executed) in &mut nodes {
            (executed.before, executed.behind) = around.of(*index);
        }
        let nodes = nodes.into_iter().map(|(_, executed)| executed).collect();
        let conversions = |wanted: fn(&Op) -> bool, needed: &dyn Fn(usize) -> bool| {
            (0..graph.nodes.len())
                .filter(|i| wanted(&graph.nodes[*i].op) && needed(*i))
                .count()
        };
        Some(Self {
            target: target.name.clone(),
            nodes,
            to_codes: conversions(
                |op| matches!(op, Op::QuantizeLinear { .. } | Op::DynamicQuantizeLinear),
                &|i| !made_of_codes(graph, &wiring, rules, &integer, i),
            ),
            to_float: conversions(|op| matches!(op, Op::DequantizeLinear { .. }), &|i| {
                read_in_float(graph, &wiring, rules, &integer, i)
            }),
        })
    }

    /// How many of the nodes are computed in integers.
    pub fn in_integers(&self) -> usize {
        self.nodes.iter().filter(|n| n.float.is_none()).count()
    }

    /// Whether an account is one of [`Execution::account`].
    pub fn is_account(account: &Account) -> bool {
        account.pass.starts_with(ACCOUNT)
    }

    /// The same in words.
    pub fn account(&self) -> Account {
        let times = |n: usize| match n {
            1 => "once".to_owned(),
            n => format!("{n} times"),
        };
        Account {
            pass: format!(
                "{ACCOUNT} {} (activations turned into codes {}, back into float {})",
                self.target,
                times(self.to_codes),
                times(self.to_float)
            ),
            entries: self
                .nodes
                .iter()
                .map(|node| AccountEntry {
                    layer: node.name.clone(),
                    outcome: match &node.float {
                        None => Outcome::Done(format!("{} in integers", node.op)),
                        Some(why) => Outcome::NotDone(format!("{} stays float: {why}", node.op)),
                    },
                })
                .collect(),
        }
    }
}

fn input(node: &Node, slot: usize) -> Option<ValueId> {
    node.inputs.get(slot).copied().flatten()
}

fn output(node: &Node) -> Option<ValueId> {
    node.outputs.first().copied().flatten()
}

/// Why a layer with integer weights is computed in float.
fn why_float(
    graph: &Graph,
    wiring: &Wiring,
    rules: &Fusion,
    node: &Node,
    precision: Precision,
) -> String {
    let codes =
        |slot: usize| input(node, slot).is_some_and(|v| fusion::eight_bit_codes(graph, wiring, v));
    let Some(given) = output(node).filter(|_| codes(0) && codes(1)) else {
        return match codes(0)
            || codes(1) && input(node, 0).is_some_and(|v| is_dequantised(graph, wiring, v))
        {
            true => format!(
                "its weights ({}) or its input are not stored as 8 bits",
                precision.label()
            ),
            false => "its input is float".to_owned(),
        };
    };
    open_end(graph, wiring, rules, given)
}

/// Why an operator without weights is computed in float; `None`: in integers.
fn why_float_join(graph: &Graph, wiring: &Wiring, rules: &Fusion, node: &Node) -> Option<String> {
    let float = node
        .inputs
        .iter()
        .flatten()
        .find(|v| !fusion::eight_bit_codes(graph, wiring, **v));
    if let Some(float) = float {
        return Some(format!("its input {} is float", graph.value(*float).name));
    }
    let given = output(node)?;
    let quantised = fusion::quantised_behind(graph, wiring, given, rules);
    (!quantised).then(|| open_end(graph, wiring, rules, given))
}

/// Why a result is not quantised.
fn open_end(graph: &Graph, wiring: &Wiring, rules: &Fusion, mut value: ValueId) -> String {
    for _ in 0..=graph.nodes.len() {
        if wiring.is_output(value) {
            return "the model gives its result, which stays float".to_owned();
        }
        let reader = match wiring.consumers(value) {
            [] => return "nothing reads its result".to_owned(),
            [reader] => &graph.nodes[*reader],
            _ => {
                return "several read its result, not all of them behind one quantisation"
                    .to_owned();
            }
        };
        match output(reader).filter(|_| fusion::goes_on(&reader.op, rules)) {
            Some(next) => value = next,
            None if matches!(reader.op, Op::QuantizeLinear { .. }) => {
                return "the range that its result is quantised by does not imply its activation function"
                    .to_owned();
            }
            None => {
                return format!(
                    "its result is not quantised: {} ({}) reads it",
                    reader.name,
                    reader.op.name()
                );
            }
        }
    }
    "its result is not quantised".to_owned()
}

fn is_dequantised(graph: &Graph, wiring: &Wiring, value: ValueId) -> bool {
    wiring
        .producer(value)
        .is_some_and(|p| matches!(graph.nodes[p].op, Op::DequantizeLinear { .. }))
}

/// Whether anything that an operator reads or gives is quantised, or comes out of one of `layers`.
fn near_codes(
    graph: &Graph,
    wiring: &Wiring,
    rules: &Fusion,
    layers: &BTreeSet<usize>,
    node: &Node,
) -> bool {
    let from_layer = |mut value: ValueId| {
        while let Some(producer) = wiring.producer(value) {
            let node = &graph.nodes[producer];
            let before = input(node, 0).filter(|_| fusion::goes_on(&node.op, rules));
            match before {
                Some(before) => value = before,
                None => return layers.contains(&producer),
            }
        }
        false
    };
    node.inputs
        .iter()
        .flatten()
        .any(|v| fusion::eight_bit_codes(graph, wiring, *v) || from_layer(*v))
        || output(node).is_some_and(|v| fusion::quantised_behind(graph, wiring, v, rules))
}

/// What is asked of the surroundings of a node.
struct Around<'a> {
    graph: &'a Graph,
    wiring: &'a Wiring,
    rules: &'a Fusion,
    /// Nodes that are computed in integers.
    integer: &'a BTreeSet<usize>,
}

impl Around<'_> {
    /// Whether values are converted right before and right behind a node.
    fn of(&self, index: usize) -> (bool, bool) {
        let node = &self.graph.nodes[index];
        let mut read = node.inputs.iter().flatten();
        let quantised = output(node).and_then(|v| self.quantisation_behind(v));
        if self.integer.contains(&index) {
            let fresh = |v: &ValueId| {
                let made = self.quantisation_before(*v);
                made.is_some_and(|q| {
                    !made_of_codes(self.graph, self.wiring, self.rules, self.integer, q)
                })
            };
            let floats = match quantised {
                None => true,
                Some(q) => self
                    .dequantisations_of(q)
                    .any(|d| read_in_float(self.graph, self.wiring, self.rules, self.integer, d)),
            };
            return (read.any(fresh), floats);
        }
        let codes = |v: &ValueId| self.quantisation_before(*v).is_some();
        (read.any(codes), quantised.is_some())
    }

    /// The node that quantises what a value is dequantised from; none for constants.
    fn quantisation_before(&self, value: ValueId) -> Option<usize> {
        let node = &self.graph.nodes[self.wiring.producer(value)?];
        let codes = input(node, 0).filter(|_| matches!(node.op, Op::DequantizeLinear { .. }))?;
        self.wiring.producer(codes)
    }

    /// The node that quantises a value, behind what is fused with that.
    fn quantisation_behind(&self, mut value: ValueId) -> Option<usize> {
        for _ in 0..=self.graph.nodes.len() {
            let &[reader] = self.wiring.consumers(value) else {
                return None;
            };
            let node = &self.graph.nodes[reader];
            if matches!(node.op, Op::QuantizeLinear { .. }) {
                return Some(reader);
            }
            value = output(node).filter(|_| fusion::goes_on(&node.op, self.rules))?;
        }
        None
    }

    fn dequantisations_of(&self, quantize: usize) -> impl Iterator<Item = usize> {
        let codes = output(&self.graph.nodes[quantize]);
        let readers = codes.map_or(&[][..], |codes| self.wiring.consumers(codes));
        readers.iter().copied()
    }
}

/// Whether the codes that a quantisation gives come straight out of an integer kernel, or of other codes.
fn made_of_codes(
    graph: &Graph,
    wiring: &Wiring,
    rules: &Fusion,
    integer: &BTreeSet<usize>,
    quantize: usize,
) -> bool {
    let mut value = input(&graph.nodes[quantize], 0);
    while let Some(producer) = value.and_then(|v| wiring.producer(v)) {
        let node = &graph.nodes[producer];
        if integer.contains(&producer) || matches!(node.op, Op::DequantizeLinear { .. }) {
            return true;
        }
        let carried = fusion::goes_on(&node.op, rules) || matches!(node.op, Op::Flatten { .. });
        value = input(node, 0).filter(|_| carried);
    }
    // A constant costs nothing at run time.
    value.is_some_and(|v| graph.value(v).data.is_some())
}

/// Whether anything computes with what a dequantisation of activations gives, as float.
fn read_in_float(
    graph: &Graph,
    wiring: &Wiring,
    rules: &Fusion,
    integer: &BTreeSet<usize>,
    dequantize: usize,
) -> bool {
    let node = &graph.nodes[dequantize];
    let constant = input(node, 0).is_some_and(|v| graph.constant_behind(v).is_some());
    let Some(given) = output(node).filter(|_| !constant) else {
        return false;
    };
    let mut values = vec![given];
    while let Some(value) = values.pop() {
        if wiring.is_output(value) {
            return true;
        }
        for &reader in wiring.consumers(value) {
            let node = &graph.nodes[reader];
            if integer.contains(&reader) || matches!(node.op, Op::QuantizeLinear { .. }) {
                continue;
            }
            let carried = fusion::goes_on(&node.op, rules) || matches!(node.op, Op::Flatten { .. });
            match output(node).filter(|_| carried && input(node, 0) == Some(value)) {
                Some(next) => values.push(next),
                None => return true,
            }
        }
    }
    false
}
