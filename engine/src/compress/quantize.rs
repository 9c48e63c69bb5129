//! Post-training quantisation (Jacob et al. 2018; Nagel et al. 2021), written as ONNX QuantizeLinear → DequantizeLinear
//! pairs on weights and layer inputs, or a Cast → Cast chain for 16-bit floats. Nothing between a layer and its
//! activation function is touched, so that runtimes can still fuse them.

use super::{
    Account, AccountEntry, ActivationQuant, Activations, CompressError, Model, Outcome, Pass,
    PassContext, Precision, Quantize, Ranges, ScaleLayout, Symmetry, calibrate,
    placement::{IntegerOp, Placement, QuantisedInput, Readers},
    prune::check_known,
    weights::{CodeRange, choose_scales},
    wiring::{
        Names, WeightForm, Wiring, add_constant, add_value, float_weight, rebuild, weight_form,
    },
};
use crate::{
    exec,
    graph::{ElementType, Graph, Layer, LayerId, Node, Op, TensorData, ValueId},
};
use std::collections::{BTreeMap, HashSet};

/// Largest magnitude that IEEE half rounds to a finite number.
const LARGEST_HALF: f32 = 65_519.0;

impl Pass for Quantize {
    fn name(&self) -> &'static str {
        "quantise"
    }

    fn apply(
        &self,
        mut model: Model,
        context: &PassContext<'_>,
    ) -> Result<(Model, Account), CompressError> {
        self.scheme.check()?;
        let layers = model.graph.layers();
        check_known(&layers, self.layers.keys())?;
        let wiring = Wiring::of(&model.graph);
        // What to do with each layer, or why nothing.
        let plans: Vec<Result<Planned, String>> = layers
            .iter()
            .map(|layer| self.plan(&model.graph, &wiring, layer))
            .collect();
        let calibrated = self.scheme.activations.calibrated_bits().is_some();
        let quantised: Vec<QuantisedInput<'_>> = layers
            .iter()
            .zip(&plans)
            .filter_map(|(layer, planned)| {
                let planned = planned.as_ref().ok()?;
                Some(QuantisedInput {
                    layer: &layer.id,
                    node: layer.node.0 as usize,
                    slot: planned.input_slot,
                    value: planned.input.filter(|_| calibrated)?,
                    output: layer.output,
                })
            })
            .collect();
        let outputs = self.scheme.quantised_outputs();
        let placement = Placement::of(
            &model.graph,
            &wiring,
            &quantised,
            outputs,
            self.scheme.symmetry,
        );
        let ranges = self.ranges(&model.graph, &placement, context)?;
        let parameters = self.parameters_of(&model.graph, &placement, &quantised, &ranges)?;

        let mut edit = Edit {
            names: Names::of(&model.graph),
            graph: &mut model.graph,
            wiring: &wiring,
            placement: &placement,
            new: BTreeMap::new(),
            inputs: BTreeMap::new(),
            steps: BTreeMap::new(),
            weights: BTreeMap::new(),
        };
        let mut entries = Vec::with_capacity(layers.len());
        for (layer, planned) in layers.iter().zip(&plans) {
            if context.cancel.is_cancelled() {
                return Err(exec::ExecError::Cancelled.into());
            }
            let outcome = match planned {
                Err(reason) => Outcome::NotDone(reason.clone()),
                Ok(planned) => {
                    Outcome::Done(self.quantise(&mut edit, layer, planned, &parameters)?)
                }
            };
            entries.push(AccountEntry {
                layer: layer.id.clone(),
                outcome,
            });
        }
        for (value, readers) in &placement.readers {
            if let Some(quant) = parameters.get(value) {
                edit.read_behind(*value, *quant, readers);
            }
        }
        // What its target computes in integers has its bias added to integer sums.
        let in_integers = |q: &&QuantisedInput<'_>| {
            let op = IntegerOp::of(&edit.graph.nodes[q.node].op);
            op.is_some_and(|op| outputs.contains(&op))
        };
        let biases = quantised.iter().filter(in_integers);
        let biases: Vec<LayerId> = biases.map(|q| q.layer.clone()).collect();
        let new = std::mem::take(&mut edit.new);
        rebuild(&mut model.graph, new, &HashSet::new());
        model.integer_biases.extend(biases);
        let account = Account {
            pass: self.name().to_owned(),
            entries,
        };
        Ok((model, account))
    }
}

/// What one layer gets.
struct Planned {
    precision: Precision,
    /// Input slot of the weight.
    slot: usize,
    /// Slot and value of the input to quantise.
    input_slot: usize,
    input: Option<ValueId>,
}

impl Quantize {
    fn plan(&self, graph: &Graph, wiring: &Wiring, layer: &Layer) -> Result<Planned, String> {
        let Some(&precision) = self.layers.get(&layer.id) else {
            return Err("not asked for".to_owned());
        };
        if precision == Precision::Fp32 {
            return Err("kept at fp32".to_owned());
        }
        let (slot, form) = weight_form(graph, wiring, layer);
        match form {
            WeightForm::Float => {}
            WeightForm::Quantized { .. } => {
                return Err("its weight is quantised already".to_owned());
            }
            WeightForm::Half => return Err("its weight is in half precision already".to_owned()),
            WeightForm::Other => return Err("its weight is computed from other values".to_owned()),
        }
        match &graph.values[layer.weight.0 as usize].data {
            Some(data) if data.element == ElementType::F32 && !data.is_empty() => {}
            _ => float_weight(graph, layer).map(|_| ())?,
        }
        // Convolutions and Gemm take x first; a MatMul may have the constant on either side.
        let input_slot = usize::from(slot == 0);
        let quantised = precision.is_integer()
            && match self.scheme.activations {
                Activations::Int8 | Activations::Int16 => true,
                Activations::Dynamic => matches!(layer.op, "MatMul" | "Gemm"),
                Activations::Float => false,
            };
        let input = graph.nodes[layer.node.0 as usize]
            .inputs
            .get(input_slot)
            .copied()
            .flatten()
            .filter(|_| quantised);
        if quantised && input.is_none() {
            return Err("it has no input to quantise".to_owned());
        }
        Ok(Planned {
            precision,
            slot,
            input_slot,
            input,
        })
    }

    /// Ranges of what is to get pairs: those given, or calibrated here.
    fn ranges(
        &self,
        graph: &Graph,
        placement: &Placement,
        context: &PassContext<'_>,
    ) -> Result<std::borrow::Cow<'_, Ranges>, CompressError> {
        use std::borrow::Cow;
        if placement.readers.is_empty() {
            return Ok(Cow::Owned(Ranges::default()));
        }
        if let Some(ranges) = &self.ranges {
            return Ok(Cow::Borrowed(ranges));
        }
        let Some(data) = context.data else {
            return Err(CompressError::Invalid(
                "quantising activations needs data to take their ranges from: give a task, or set `activations: float` to \
                 quantise weights only"
                    .to_owned(),
            ));
        };
        let values: Vec<ValueId> = placement.values().collect();
        calibrate(graph, &values, data, &self.scheme, context.cancel).map(Cow::Owned)
    }

    fn quantise(
        &self,
        edit: &mut Edit<'_>,
        layer: &Layer,
        planned: &Planned,
        parameters: &BTreeMap<ValueId, ActivationQuant>,
    ) -> Result<String, CompressError> {
        let refuse = |message: String| CompressError::Layer {
            message,
            layer: layer.id.0.to_string(),
        };
        let node = layer.node.0 as usize;
        let (weight, mut note) = match planned.precision {
            Precision::Fp32 => return Ok("kept at fp32".to_owned()),
            precision if let Some(element) = precision.half() => {
                let weight = edit.half(layer, precision, element).map_err(refuse)?;
                (weight, format!("{} weights", precision.label()))
            }
            precision => {
                let (Some(granularity), Some(bits)) =
                    (self.scheme.granularity(precision), precision.bits())
                else {
                    return Ok("kept at fp32".to_owned());
                };
                let layout = ScaleLayout::of(
                    layer.op,
                    &layer.weight_shape,
                    layer.channel_axis,
                    granularity,
                );
                let mut note = format!("{bits}-bit weights {}", layout.describe());
                if matches!(granularity, super::Granularity::Group(_)) && layout.block == 0 {
                    note.push_str(", as its input axis is shorter than a group");
                }
                let symmetry = self.scheme.weight_symmetry;
                if symmetry == Symmetry::Asymmetric {
                    note.push_str(" and zero points");
                }
                let weight = edit.weight(layer, precision, &layout, symmetry);
                (weight.map_err(refuse)?, note)
            }
        };
        if let Some(value) = planned.input {
            let calibrated = self.scheme.activations.calibrated_bits();
            let (input, words) = match calibrated.zip(parameters.get(&value)) {
                Some((bits, &quant)) => {
                    let (scale, zero) = (quant.scale, quant.zero_point);
                    let words = format!(", {bits}-bit input (scale {scale}, zero point {zero})");
                    (edit.input(value, quant), words)
                }
                None => {
                    let words = ", 8-bit input by the range of each inference";
                    (edit.dynamic_input(value), words.to_owned())
                }
            };
            edit.graph.nodes[node].inputs[planned.input_slot] = Some(input);
            note.push_str(&words);
            if edit.placement.outputs.contains_key(&layer.id) {
                note.push_str(", output quantised behind its activation");
            }
        } else if self.scheme.activations == Activations::Dynamic && planned.precision.is_integer()
        {
            note.push_str(", float input: dynamic ranges are for products");
        }
        edit.graph.nodes[node].inputs[planned.slot] = Some(weight);
        Ok(note)
    }

    /// Scales and zero points of all pairs by their calibrated ranges; one for all that share it.
    fn parameters_of(
        &self,
        graph: &Graph,
        placement: &Placement,
        layers: &[QuantisedInput<'_>],
        ranges: &Ranges,
    ) -> Result<BTreeMap<ValueId, ActivationQuant>, CompressError> {
        let Some(bits) = self.scheme.activations.calibrated_bits() else {
            return Ok(BTreeMap::new());
        };
        let mut all = BTreeMap::new();
        for value in placement.values() {
            let (mut lo, mut hi) = (0.0_f32, 0.0_f32);
            for covered in placement.covered(value) {
                let range = range_of(graph, covered, ranges).map_err(|message| {
                    match layers.iter().find(|l| l.value == covered) {
                        Some(layer) => CompressError::Layer {
                            message,
                            layer: layer.layer.0.to_string(),
                        },
                        None => CompressError::Invalid(message),
                    }
                })?;
                (lo, hi) = (lo.min(range[0]), hi.max(range[1]));
            }
            let quant = ActivationQuant::of(lo, hi, self.scheme.symmetry, bits);
            all.insert(value, quant);
        }
        Ok(all)
    }
}

/// The calibrated range of a value.
fn range_of(graph: &Graph, value: ValueId, ranges: &Ranges) -> Result<[f32; 2], String> {
    let name = &graph.value(value).name;
    let Some(&[lo, hi]) = ranges.values.get(name) else {
        return Err(format!(
            "calibration saw no values of {name}: calibrate the graph that is being quantised, for this scheme"
        ));
    };
    if !lo.is_finite() || !hi.is_finite() || lo > hi {
        return Err(format!("the range {lo}..{hi} of {name} is not a range"));
    }
    Ok([lo, hi])
}

/// The graph under edit: new nodes wait by the index they go before.
struct Edit<'a> {
    graph: &'a mut Graph,
    wiring: &'a Wiring,
    placement: &'a Placement,
    names: Names,
    new: BTreeMap<usize, Vec<Node>>,
    /// Quantised inputs made so far.
    inputs: BTreeMap<ValueId, ValueId>,
    /// Scales and zero points made so far, by the first value that has them: what must stay the same reads the same constants.
    steps: BTreeMap<ValueId, Steps>,
    /// Quantised weights made so far: several layers may share one.
    weights: BTreeMap<(ValueId, Precision, ScaleKey), ValueId>,
}

/// Constants that a pair reads.
#[derive(Clone, Copy)]
struct Steps {
    scale: ValueId,
    zero_point: ValueId,
    /// Type of the codes.
    to: ElementType,
}

/// Axis and block of a layout.
type ScaleKey = (usize, usize);

impl Edit<'_> {
    /// Adds a chain of nodes, one input each besides constants, before the first node that reads `value`.
    fn chain(&mut self, value: ValueId, nodes: Vec<Node>) {
        let first = self.wiring.consumers(value).first().copied().unwrap_or(0);
        self.new.entry(first).or_default().extend(nodes);
    }

    fn weights_of(&self, layer: &Layer) -> Result<Vec<f32>, String> {
        let weights = float_weight(self.graph, layer)?;
        let bad = weights.iter().filter(|w| !w.is_finite()).count();
        if bad > 0 {
            return Err(format!(
                "{bad} of its weights are NaN or infinite: it cannot be quantised"
            ));
        }
        Ok(weights)
    }

    fn half(
        &mut self,
        layer: &Layer,
        precision: Precision,
        element: ElementType,
    ) -> Result<ValueId, String> {
        let key = (layer.weight, precision, (0, 0));
        if let Some(&done) = self.weights.get(&key) {
            return Ok(done);
        }
        let weights = self.weights_of(layer)?;
        let largest = weights.iter().fold(0.0_f32, |a, w| a.max(w.abs()));
        if element == ElementType::F16 && largest > LARGEST_HALF {
            return Err(format!(
                "its largest weight {largest} doesn't fit half precision (65504 at most): keep it at fp32 or use bf16 or int8"
            ));
        }
        let name = self.graph.values[layer.weight.0 as usize].name.clone();
        let half = self.value(format!("{name}_half"), element, layer.weight);
        let float = self.value(format!("{name}_float"), ElementType::F32, layer.weight);
        let cast = |name: String, to, from, into| Node {
            name,
            op: Op::Cast { to },
            inputs: vec![Some(from)],
            outputs: vec![Some(into)],
        };
        let nodes = vec![
            cast(
                self.names.unique(format!("{name}_to_half")),
                element,
                layer.weight,
                half,
            ),
            cast(
                self.names.unique(format!("{name}_to_float")),
                ElementType::F32,
                half,
                float,
            ),
        ];
        self.chain(layer.weight, nodes);
        self.weights.insert(key, float);
        Ok(float)
    }

    fn weight(
        &mut self,
        layer: &Layer,
        precision: Precision,
        layout: &ScaleLayout,
        symmetry: Symmetry,
    ) -> Result<ValueId, String> {
        let key = (layer.weight, precision, (layout.axis, layout.block));
        if let Some(&done) = self.weights.get(&key) {
            return Ok(done);
        }
        let (Some(range), Some(element)) = (CodeRange::of(precision), precision.storage()) else {
            return Ok(layer.weight);
        };
        let weights = self.weights_of(layer)?;
        let steps = exec::pool()
            .install(|| choose_scales(&weights, &layer.weight_shape, layout, range, symmetry));
        let scale = TensorData::from_f32(&layout.shape, &steps.scale);
        let zeros: Vec<i64> = steps.zero_point.iter().map(|z| i64::from(*z)).collect();
        let zeros = TensorData::from_i64_as(element, &layout.shape, &zeros);
        // A width of its own is held by a Clip of the codes, until they are packed.
        let limits = (i64::from(range.lo), i64::from(range.hi));
        let limits = (element.integer_range() != Some(limits)).then_some(limits);
        let steps = self.steps_of(layer.weight, scale, zeros);
        let (axis, block) = (layout.axis as i64, layout.block);
        let out = self.pair(layer.weight, steps, axis, block, limits);
        self.weights.insert(key, out);
        Ok(out)
    }

    /// Lets the readers of a value read it behind its pair.
    fn read_behind(&mut self, value: ValueId, quant: ActivationQuant, readers: &Readers) {
        let dequantised = self.input(value, quant);
        let at: Vec<(usize, usize)> = match readers {
            Readers::Some(at) => at.clone(),
            Readers::All => {
                let slots = |node: &usize| {
                    let node = *node;
                    let inputs = self.graph.nodes[node].inputs.iter().enumerate();
                    let reads = inputs.filter(|(_, input)| **input == Some(value));
                    reads.map(move |(slot, _)| (node, slot)).collect::<Vec<_>>()
                };
                self.wiring
                    .consumers(value)
                    .iter()
                    .flat_map(slots)
                    .collect()
            }
        };
        for (node, slot) in at {
            self.graph.nodes[node].inputs[slot] = Some(dequantised);
        }
    }

    fn input(&mut self, value: ValueId, quant: ActivationQuant) -> ValueId {
        if let Some(&done) = self.inputs.get(&value) {
            return done;
        }
        let element = match (quant.symmetry, quant.bits) {
            (Symmetry::Asymmetric, 16) => ElementType::U16,
            (Symmetry::Symmetric, 16) => ElementType::I16,
            (Symmetry::Asymmetric, _) => ElementType::U8,
            (Symmetry::Symmetric, _) => ElementType::I8,
        };
        let first = self.placement.first_covered(value);
        let steps = match self.steps.get(&first) {
            Some(steps) => *steps,
            None => {
                let zero = TensorData::from_i64_as(element, &[], &[i64::from(quant.zero_point)]);
                self.steps_of(value, TensorData::scalar(quant.scale), zero)
            }
        };
        self.steps.insert(first, steps);
        let out = self.pair(value, steps, 1, 0, None);
        self.inputs.insert(value, out);
        out
    }

    /// DynamicQuantizeLinear → DequantizeLinear behind `value`; gives the result.
    fn dynamic_input(&mut self, value: ValueId) -> ValueId {
        if let Some(&done) = self.inputs.get(&value) {
            return done;
        }
        let name = self.graph.values[value.0 as usize].name.clone();
        let quantised = self.value(format!("{name}_q"), ElementType::U8, value);
        let dequantised = self.value(format!("{name}_dq"), ElementType::F32, value);
        let mut scalar = |suffix: &str, element: ElementType| {
            let id = self.value(format!("{name}_{suffix}"), element, value);
            self.graph.value_mut(id).shape = Some(Vec::new());
            id
        };
        let scale = scalar("scale", ElementType::F32);
        let zero = scalar("zp", ElementType::U8);
        let nodes = vec![
            Node {
                name: self.graph.value(quantised).name.clone(),
                op: Op::DynamicQuantizeLinear,
                inputs: vec![Some(value)],
                outputs: vec![Some(quantised), Some(scale), Some(zero)],
            },
            Node {
                name: self.graph.value(dequantised).name.clone(),
                op: Op::DequantizeLinear { axis: 1, block: 0 },
                inputs: vec![Some(quantised), Some(scale), Some(zero)],
                outputs: vec![Some(dequantised)],
            },
        ];
        self.chain(value, nodes);
        self.inputs.insert(value, dequantised);
        dequantised
    }

    /// Scale and zero point as constants, named after a value.
    fn steps_of(&mut self, value: ValueId, scale: TensorData, zero_point: TensorData) -> Steps {
        let name = self.graph.values[value.0 as usize].name.clone();
        let scale_name = self.names.unique(format!("{name}_scale"));
        let zero_name = self.names.unique(format!("{name}_zp"));
        Steps {
            to: zero_point.element,
            scale: add_constant(self.graph, scale_name, scale),
            zero_point: add_constant(self.graph, zero_name, zero_point),
        }
    }

    /// QuantizeLinear → (Clip of the codes to `limits` →) DequantizeLinear behind `value`, by a scale and a zero point; gives the result.
    fn pair(
        &mut self,
        value: ValueId,
        Steps {
            scale,
            zero_point,
            to,
        }: Steps,
        axis: i64,
        block: usize,
        limits: Option<(i64, i64)>,
    ) -> ValueId {
        let name = self.graph.values[value.0 as usize].name.clone();
        let quantised = self.value(format!("{name}_q"), to, value);
        let dequantised = self.value(format!("{name}_dq"), ElementType::F32, value);
        let mut nodes = vec![Node {
            name: self.graph.value(quantised).name.clone(),
            op: Op::QuantizeLinear { axis, block, to },
            inputs: vec![Some(value), Some(scale), Some(zero_point)],
            outputs: vec![Some(quantised)],
        }];
        let mut codes = quantised;
        if let Some((lo, hi)) = limits {
            codes = self.value(format!("{name}_limited"), to, value);
            let mut bound = |which: &str, bound: i64| {
                let name = self.names.unique(format!("{name}_{which}"));
                let data = TensorData::from_i64_as(to, &[], &[bound]);
                add_constant(self.graph, name, data)
            };
            let (lo, hi) = (bound("lowest", lo), bound("highest", hi));
            nodes.push(Node {
                name: self.names.unique(format!("{name}_limit")),
                op: Op::Clip,
                inputs: vec![Some(quantised), Some(lo), Some(hi)],
                outputs: vec![Some(codes)],
            });
        }
        nodes.push(Node {
            name: self.graph.value(dequantised).name.clone(),
            op: Op::DequantizeLinear { axis, block },
            inputs: vec![Some(codes), Some(scale), Some(zero_point)],
            outputs: vec![Some(dequantised)],
        });
        self.chain(value, nodes);
        dequantised
    }

    fn value(&mut self, name: String, element: ElementType, like: ValueId) -> ValueId {
        let name = self.names.unique(name);
        add_value(self.graph, name, element, like)
    }
}
