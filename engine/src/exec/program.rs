//! A graph made ready to run: constants folded, pairs fused, a schedule with liveness.

use super::{
    CancelToken, ExecError, Fail, Mode, Taps,
    constants::Constants,
    fuse::{Step, drafts},
    lowered::BatchStatistics,
    ops, params,
    plan::Plan,
    pool::on_pool,
    quick::Quick,
    support::unsupported,
    trained::Learned,
    value::{Val, dtype},
};
use crate::graph::{Dim, ElementType, Graph, TensorData, ValueId, fixed_batch};
use candle_core::{Tensor, Var};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

/// A graph made ready to run.
pub struct Program {
    pub(super) mode: Mode,
    pub(super) steps: Vec<Scheduled>,
    /// Weights and folded values that a step or an output still reads, by value.
    pub(super) constants: Constants,
    /// The steps joined, for runs without taps.
    plan: Plan,
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Vec<(usize, String)>,
    pub(super) parameters: BTreeMap<String, Var>,
    /// Value of each parameter.
    pub(super) places: BTreeMap<String, usize>,
    pub(super) masks: BTreeMap<String, Tensor>,
    /// Step sizes that are learned. Their parameters say how many times as large they are as at first.
    pub(super) learned: BTreeMap<String, Learned>,
    /// Running means and variances of batch norms that training may move, by value: their names.
    pub(super) statistics: BTreeMap<usize, String>,
    /// Whether those batch norms take the statistics of each mini-batch.
    pub(super) by_batch: bool,
    /// Whether a running mean or variance has moved.
    pub(super) moved: bool,
    /// What batch norms saw on the general way.
    pub(super) seen: Mutex<Vec<BatchStatistics>>,
    /// Number of values in the graph.
    slots: usize,
    /// The same, fused and on channels-last planes, where that can be done.
    pub(super) quick: Quick,
    /// Activations are quantised by the range of each inference.
    ranges_at_run: bool,
}

pub(super) struct Scheduled {
    pub step: Step,
    pub inputs: Vec<Option<usize>>,
    pub outputs: Vec<Option<usize>>,
    /// Values nobody reads after this step.
    drops: Vec<usize>,
    pub name: String,
    pub op: String,
}

pub(super) struct Input {
    pub slot: usize,
    pub name: String,
    pub element: Option<ElementType>,
    shape: Option<Vec<Dim>>,
}

pub(super) fn node_error(e: Fail, name: &str, op: &str) -> ExecError {
    ExecError::Node {
        message: e.0,
        node: name.to_owned(),
        op: op.to_owned(),
    }
}

fn unreadable(name: &str, e: Fail) -> ExecError {
    ExecError::Input(format!("constant {name} cannot be read: {}", e.0))
}

impl Program {
    /// Checks that every node can run and prepares weights. Constant sub-graphs are folded once (not in `Training`
    /// where they depend on a parameter). Nodes that no output depends on are left out.
    pub fn compile(graph: &Graph, mode: Mode) -> Result<Self, ExecError> {
        let needed = needed_nodes(graph);
        let bad: Vec<_> = unsupported(graph)
            .into_iter()
            .filter(|(i, ..)| needed.contains(i))
            .map(|(i, op, reason)| (graph.nodes[i].name.clone(), op, reason))
            .collect();
        if !bad.is_empty() {
            return Err(ExecError::Unsupported(bad));
        }
        let trained = match mode {
            Mode::Training => params::trainable(graph),
            Mode::Inference => BTreeSet::new(),
        };
        let (mut parameters, mut places) = (BTreeMap::new(), BTreeMap::new());
        let fed: BTreeSet<ValueId> = graph.inputs.iter().copied().collect();
        let mut known: BTreeMap<usize, Val> = BTreeMap::new();
        // Weights are decoded when something needs them: half of them may only feed dead or folded nodes.
        let decode = |id: ValueId| -> Option<Result<Val, ExecError>> {
            let value = graph.values.get(id.0 as usize)?;
            let data = value.data.as_ref()?;
            Some(Val::from_data(data).map_err(|e| unreadable(&value.name, e)))
        };
        for &id in &trained {
            let Some(v) = decode(id).transpose()? else {
                continue;
            };
            let name = graph.values[id.0 as usize].name.clone();
            if let Val::Float(t, _) = v {
                parameters.insert(name.clone(), Var::from_tensor(&t)?);
                places.insert(name, id.0 as usize);
            }
        }
        // Fold what depends on constants alone.
        let has_data = |id: ValueId| {
            !trained.contains(&id)
                && !fed.contains(&id)
                && graph
                    .values
                    .get(id.0 as usize)
                    .is_some_and(|v| v.data.is_some())
        };
        let mut folded = BTreeSet::new();
        for (i, n) in graph.nodes.iter().enumerate() {
            let constant = |v: &ValueId| known.contains_key(&(v.0 as usize)) || has_data(*v);
            if !needed.contains(&i) || !n.inputs.iter().flatten().all(constant) {
                continue;
            }
            let mut inputs = Vec::with_capacity(n.inputs.len());
            for id in &n.inputs {
                inputs.push(match id {
                    None => None,
                    Some(id) => Some(match known.get(&(id.0 as usize)) {
                        Some(v) => v.clone(),
                        None => decode(*id)
                            .transpose()?
                            .ok_or_else(|| ExecError::Input("a constant without data".into()))?,
                    }),
                });
            }
            let step = Step::Op(n.op.clone());
            let count = n.outputs.len();
            let results = ops::eval(&step, &inputs, count)
                .map_err(|e| node_error(e, &n.name, n.op.name()))?;
            for (o, v) in n.outputs.iter().zip(results) {
                if let Some(o) = o {
                    known.insert(o.0 as usize, v);
                }
            }
            folded.insert(i);
        }
        let is_known = |id: ValueId| known.contains_key(&(id.0 as usize)) || has_data(id);
        let drafts: Vec<_> = drafts(graph, &is_known)
            .into_iter()
            .filter(|d| needed.contains(&d.node) && !folded.contains(&d.node))
            .collect();
        // Fusing leaves the first half of a pair without readers: keep only what an output still needs, from the back.
        let mut live: BTreeSet<usize> = graph.outputs.iter().map(|o| o.0 as usize).collect();
        let mut steps = Vec::with_capacity(drafts.len());
        for d in drafts.into_iter().rev() {
            let outputs: Vec<Option<usize>> =
                d.outputs.iter().map(|o| o.map(|o| o.0 as usize)).collect();
            if !outputs.iter().flatten().any(|o| live.contains(o)) {
                continue;
            }
            let inputs: Vec<Option<usize>> =
                d.inputs.iter().map(|o| o.map(|o| o.0 as usize)).collect();
            let mut drops: Vec<usize> = inputs
                .iter()
                .chain(&outputs)
                .flatten()
                .copied()
                .filter(|v| !live.contains(v))
                .collect();
            drops.sort_unstable();
            drops.dedup();
            live.extend(inputs.iter().flatten());
            let n = &graph.nodes[d.node];
            steps.push(Scheduled {
                step: d.step,
                inputs,
                outputs,
                drops,
                name: n.name.clone(),
                op: n.op.name().to_owned(),
            });
        }
        steps.reverse();
        // Constants that are still read.
        let mut constants = Constants::default();
        for &slot in &live {
            if let Some(v) = known.remove(&slot) {
                constants.insert(slot, v);
                continue;
            }
            let id = ValueId(slot as u32);
            if has_data(id)
                && let Some(value) = graph.values.get(slot)
                && let Some(data) = &value.data
            {
                constants
                    .store(slot, data)
                    .map_err(|e| unreadable(&value.name, e))?;
            }
        }
        let name = |id: ValueId| {
            graph
                .values
                .get(id.0 as usize)
                .map(|v| v.name.clone())
                .unwrap_or_default()
        };
        let outputs: Vec<usize> = graph.outputs.iter().map(|o| o.0 as usize).collect();
        let statistics = match mode {
            Mode::Training => params::statistics(graph, &steps, &constants),
            Mode::Inference => BTreeMap::new(),
        };
        Ok(Self {
            mode,
            plan: Plan::new(mode, &steps, &constants, &outputs),
            steps,
            constants,
            inputs: graph
                .inputs
                .iter()
                .map(|&id| {
                    let v = graph.values.get(id.0 as usize);
                    Input {
                        slot: id.0 as usize,
                        name: name(id),
                        element: v.and_then(|v| v.element),
                        shape: v.and_then(|v| v.shape.clone()),
                    }
                })
                .collect(),
            outputs: graph
                .outputs
                .iter()
                .map(|&id| (id.0 as usize, name(id)))
                .collect(),
            parameters,
            places,
            masks: BTreeMap::new(),
            learned: BTreeMap::new(),
            statistics,
            by_batch: false,
            moved: false,
            seen: Mutex::default(),
            slots: graph.values.len(),
            quick: Quick::default(),
            ranges_at_run: graph.ranges_at_run(),
        })
    }

    /// Nodes of `graph` that cannot run, without compiling: (node name, operator, reason).
    pub fn unsupported(graph: &Graph) -> Vec<(String, String, String)> {
        unsupported(graph)
            .into_iter()
            .map(|(i, op, reason)| (graph.nodes[i].name.clone(), op, reason))
            .collect()
    }

    /// Declared shapes of the inputs, in the order of [`Graph::inputs`]; `None` where the model says nothing.
    pub fn input_shapes(&self) -> impl Iterator<Item = Option<&[Dim]>> {
        self.inputs.iter().map(|input| input.shape.as_deref())
    }

    /// As [`Graph::fixed_batch`].
    pub fn fixed_batch(&self) -> Option<usize> {
        if self.ranges_at_run {
            return Some(1);
        }
        fixed_batch(self.inputs.first()?.shape.as_deref())
    }

    /// Runs on one batch. `feeds` are in the order of [`Graph::inputs`]; results in the order of [`Graph::outputs`].
    /// Types that candle lacks are fed and given as the next wider one it has (int8 as `I16`, uint16 as `I32`, uint64
    /// as `I64`, bool as `U8`).
    pub fn run(
        &self,
        feeds: &[Tensor],
        taps: &mut dyn Taps,
        cancel: &CancelToken,
    ) -> Result<Vec<Tensor>, ExecError> {
        self.check_count(feeds.len())?;
        if !taps.any()
            && self.mode == Mode::Inference
            && let Some(outputs) = self.run_quick(feeds, cancel)?
        {
            return Ok(outputs);
        }
        let mut values = Vec::with_capacity(feeds.len());
        for (t, input) in feeds.iter().zip(&self.inputs) {
            let v = Val::from_tensor(t, input.element)
                .map_err(|e| ExecError::Input(format!("input {}: {}", input.name, e.0)))?;
            values.push(v);
        }
        on_pool(|| self.run_values(values, taps, cancel))?
            .into_iter()
            .zip(&self.outputs)
            .map(|(v, (_, name))| {
                v.to_tensor()
                    .map_err(|e| ExecError::Input(format!("output {name}: {}", e.0)))
            })
            .collect()
    }

    /// As [`Program::run`], with exact element types at both ends and no taps.
    pub fn run_data(
        &self,
        feeds: &[TensorData],
        cancel: &CancelToken,
    ) -> Result<Vec<TensorData>, ExecError> {
        self.check_count(feeds.len())?;
        let mut values = Vec::with_capacity(feeds.len());
        for (d, input) in feeds.iter().zip(&self.inputs) {
            let bad = |e: String| ExecError::Input(format!("input {}: {e}", input.name));
            if let Some(e) = input.element
                && e != d.element
            {
                return Err(bad(format!("expected {e:?}, got {:?}", d.element)));
            }
            values.push(Val::from_data(d).map_err(|e| bad(e.0))?);
        }
        on_pool(|| self.run_values(values, &mut super::NoTaps, cancel))?
            .into_iter()
            .map(|v| v.to_data().map_err(|e| ExecError::Input(e.0)))
            .collect()
    }

    pub(super) fn check_count(&self, n: usize) -> Result<(), ExecError> {
        if n == self.inputs.len() {
            return Ok(());
        }
        let names: Vec<_> = self.inputs.iter().map(|i| i.name.as_str()).collect();
        Err(ExecError::Input(format!(
            "the model has {} inputs ({}), {n} were fed",
            names.len(),
            names.join(", ")
        )))
    }

    fn run_values(
        &self,
        feeds: Vec<Val>,
        taps: &mut dyn Taps,
        cancel: &CancelToken,
    ) -> Result<Vec<Val>, ExecError> {
        let mut slots: Vec<Option<Val>> = vec![None; self.slots];
        for (v, input) in feeds.into_iter().zip(&self.inputs) {
            check_shape(&v, input)?;
            let v = if self.mode == Mode::Inference {
                v.detach()
            } else {
                v
            };
            slots[input.slot] = Some(tap(taps, input.slot, v)?);
        }
        for (name, &slot) in &self.places {
            let t = self.masked(name)?;
            slots[slot] = Some(tap(taps, slot, Val::f32(t))?);
        }
        for &slot in self.constants.keys() {
            if taps.wants(ValueId(slot as u32))
                && let Some(v) = self.constants.once(&slot)
            {
                slots[slot] = Some(tap(taps, slot, v)?);
            }
        }
        if taps.any() {
            for s in &self.steps {
                if cancel.is_cancelled() {
                    return Err(ExecError::Cancelled);
                }
                self.take_step(s, &mut slots, taps)?;
                for &d in &s.drops {
                    slots[d] = None;
                }
            }
        } else {
            self.run_plan(&mut slots, cancel)?;
        }
        self.outputs
            .iter()
            .map(|(slot, name)| {
                self.get(&slots, *slot)
                    .ok_or_else(|| ExecError::Input(format!("output {name} was not computed")))
            })
            .collect()
    }

    fn take_step(
        &self,
        s: &Scheduled,
        slots: &mut [Option<Val>],
        taps: &mut dyn Taps,
    ) -> Result<(), ExecError> {
        let inputs = self.gather(&s.inputs, slots, s)?;
        let results = match self.norm_of_batch(s) {
            Some((statistics, epsilon)) => {
                ops::batch_norm_of_batch(&inputs, epsilon).map(|found| {
                    let seen = BatchStatistics {
                        slots: statistics,
                        mean: found.mean,
                        variance: found.variance,
                    };
                    let mut all = self.seen.lock().unwrap_or_else(|e| e.into_inner());
                    all.push(seen);
                    vec![found.y]
                })
            }
            None => ops::eval(&s.step, &inputs, s.outputs.len()),
        }
        .map_err(|e| node_error(e, &s.name, &s.op))?;
        for (slot, v) in s.outputs.iter().zip(results) {
            if let Some(slot) = *slot {
                slots[slot] = Some(tap(taps, slot, v)?);
            }
        }
        Ok(())
    }

    /// The joined steps; those that cannot be taken together go one by one.
    fn run_plan(&self, slots: &mut [Option<Val>], cancel: &CancelToken) -> Result<(), ExecError> {
        for item in &self.plan.items {
            if cancel.is_cancelled() {
                return Err(ExecError::Cancelled);
            }
            let Some(last) = item.steps.last().map(|at| &self.steps[*at]) else {
                continue;
            };
            let inputs = self.gather(&item.inputs, slots, last)?;
            let results = match self.norm_of_batch(last) {
                // Joined with nothing.
                Some(_) => None,
                None => item
                    .run(&inputs)
                    .map_err(|e| node_error(e, &last.name, &last.op))?,
            };
            drop(inputs);
            match results {
                Some(results) => {
                    for (slot, v) in item.outputs.iter().zip(results) {
                        if let Some(slot) = *slot {
                            slots[slot] = Some(v);
                        }
                    }
                }
                None => {
                    for at in &item.steps {
                        self.take_step(&self.steps[*at], slots, &mut super::NoTaps)?;
                    }
                    for at in &item.steps[..item.steps.len() - 1] {
                        for slot in self.steps[*at].outputs.iter().flatten() {
                            slots[*slot] = None;
                        }
                    }
                }
            }
            for &d in &item.drops {
                slots[d] = None;
            }
        }
        Ok(())
    }

    /// What was joined: for tests.
    #[cfg(test)]
    pub(super) fn joined(&self) -> super::plan::Joined {
        self.plan.joined()
    }

    /// Values of a step's inputs.
    fn gather(
        &self,
        inputs: &[Option<usize>],
        slots: &[Option<Val>],
        s: &Scheduled,
    ) -> Result<Vec<Option<Val>>, ExecError> {
        inputs
            .iter()
            .map(|slot| match slot {
                None => Ok(None),
                Some(i) => self.get(slots, *i).map(Some).ok_or_else(|| {
                    node_error(
                        Fail("an input has not been computed".into()),
                        &s.name,
                        &s.op,
                    )
                }),
            })
            .collect()
    }

    fn get(&self, slots: &[Option<Val>], i: usize) -> Option<Val> {
        slots
            .get(i)
            .and_then(Option::as_ref)
            .or_else(|| self.constants.get(&i))
            .cloned()
    }
}

/// Lets the taps see, and replace, a value.
fn tap(taps: &mut dyn Taps, slot: usize, v: Val) -> Result<Val, ExecError> {
    let id = ValueId(slot as u32);
    if !taps.wants(id) {
        return Ok(v);
    }
    let t = v.to_tensor().map_err(|e| ExecError::Input(e.0))?;
    match taps.visit(id, &t)? {
        Some(t) => Val::from_tensor(&t, Some(v.element())).map_err(|e| ExecError::Input(e.0)),
        None => Ok(v),
    }
}

pub(super) fn check_shape(v: &Val, input: &Input) -> Result<(), ExecError> {
    let Some(shape) = &input.shape else {
        return Ok(());
    };
    let fits = v.rank() == shape.len()
        && v.shape().iter().zip(shape).all(|(&d, s)| match s {
            Dim::Known(k) => *k == d,
            _ => true,
        });
    if fits {
        return Ok(());
    }
    let want: Vec<String> = shape
        .iter()
        .map(|d| match d {
            Dim::Known(k) => k.to_string(),
            Dim::Symbol(s) => s.to_string(),
            Dim::Unknown => "?".into(),
        })
        .collect();
    Err(ExecError::Input(format!(
        "input {} has shape {:?}, the model wants [{}] of {:?}",
        input.name,
        v.shape(),
        want.join(", "),
        input.element.map(dtype)
    )))
}

/// Nodes that an output depends on.
fn needed_nodes(graph: &Graph) -> BTreeSet<usize> {
    let mut live: BTreeSet<ValueId> = graph.outputs.iter().copied().collect();
    let mut nodes = BTreeSet::new();
    for (i, n) in graph.nodes.iter().enumerate().rev() {
        if n.outputs.iter().flatten().any(|o| live.contains(o)) {
            live.extend(n.inputs.iter().flatten());
            nodes.insert(i);
        }
    }
    nodes
}
