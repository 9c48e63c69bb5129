//! From a program's schedule to lowered steps: what each value is, which steps join the one before them.

use super::{
    Id, Kind, Lowered, Output, Step,
    backward::gradient_planes,
    batch_norm::Norm,
    weights::{Form, Spec, Weights},
};
use crate::{
    exec::{
        fuse,
        kernels::planes::Plane,
        ops,
        scalar::Fun,
        value::{Array, Val},
    },
    graph::{BinaryOp, ElementType, Op, PadMode, ReduceOp, UnaryOp, VariadicOp},
};
use std::collections::{BTreeMap, BTreeSet};

/// A step of a program: what is done, slots read, slots written.
pub(in crate::exec) type Planned<'a> = (&'a fuse::Step, &'a [Option<usize>], &'a [Option<usize>]);

/// What a program tells of itself.
pub(in crate::exec) trait Source {
    /// In order.
    fn steps(&self) -> Vec<Planned<'_>>;
    /// The one input's slot and the outputs'; `None` where there are several inputs.
    fn input(&self) -> Option<usize>;
    fn outputs(&self) -> Vec<usize>;
    /// A weight or folded value.
    fn constant(&self, slot: usize) -> Option<&Val>;
    fn is_constant(&self, slot: usize) -> bool;
    /// A constant that is not kept as a tensor on account of this.
    fn passing(&self, slot: usize) -> Option<Val>;
    /// Shape of a constant, of a parameter or of what is computed from them alone.
    fn weight_shape(&self, slot: usize) -> Option<Vec<usize>>;
    fn training(&self) -> bool;
    /// Whether a batch norm with its mean in this slot takes the mini-batch's statistics instead.
    fn by_batch(&self, mean: usize) -> bool;
    /// Whether the scale in this slot is learned.
    fn is_learned(&self, scale: usize) -> bool;
}

/// Floats that one image may take in one value: beyond this the general way says what is wrong.
pub(super) const MOST_FLOATS: usize = 1 << 26;

/// Why a program cannot be lowered: for tests and profiles, not for users.
pub(super) type Refusal = &'static str;
pub(super) type R<T> = Result<T, Refusal>;

/// What a slot holds.
#[derive(Clone)]
pub(super) enum Place {
    Nchw(Id),
    /// The same memory under another order of axes.
    Nhwc(Id),
    /// N×C, of a 1×1 plane.
    Flat(Id),
    /// With zeros around it: top, left, bottom, right.
    Padded(Id, [usize; 4]),
    /// Integers that depend on the number of images alone, for 2 and for 3 of them.
    Shape(Box<[Val; 2]>),
}

impl Place {
    /// Another value in the same place.
    pub(super) fn of(&self, made: Id) -> Self {
        match self {
            Self::Flat(_) => Self::Flat(made),
            Self::Nhwc(_) => Self::Nhwc(made),
            _ => Self::Nchw(made),
        }
    }
}

pub(super) struct Builder<'a> {
    pub source: &'a dyn Source,
    pub places: BTreeMap<usize, Place>,
    /// How many steps and outputs read a slot.
    pub uses: BTreeMap<usize, usize>,
    pub planes: Vec<Plane>,
    /// Step that makes a value, and the slot it first stood in.
    pub makers: Vec<Option<(usize, usize)>>,
    pub steps: Vec<Step>,
    pub specs: Vec<Spec>,
    pub norms: Vec<Norm>,
    pub learned: Vec<usize>,
    pub untrainable: Option<Refusal>,
}

impl Lowered {
    /// Lowers `source` for inputs of shape `sample` (without the batch axis).
    /// What `like` has packed already is shared with it.
    pub(in crate::exec) fn new(
        source: &dyn Source,
        sample: &[usize],
        like: Option<&Self>,
    ) -> R<Self> {
        let slot = source.input().ok_or("several inputs")?;
        let steps = source.steps();
        let mut uses = BTreeMap::new();
        for (_, inputs, _) in &steps {
            for slot in inputs.iter().flatten() {
                *uses.entry(*slot).or_insert(0) += 1;
            }
        }
        for slot in source.outputs() {
            *uses.entry(slot).or_insert(0) += 1;
        }
        let readers: Vec<_> = steps
            .iter()
            .filter(|(_, inputs, _)| inputs.contains(&Some(slot)))
            .collect();
        let input_last = !readers.is_empty()
            && readers
                .iter()
                .all(|(step, ..)| turns(step, &[0, 3, 1, 2]) || reads_shape(step))
            && sample.len() == 3;
        let plane = match *sample {
            [h, w, c] if input_last => Plane::new(h, w, c),
            [c, h, w] => Plane::new(h, w, c),
            [c] => Plane::new(1, 1, c),
            _ => return Err("samples of another rank"),
        };
        if plane.elements() == 0 {
            return Err("an empty input");
        }
        let mut builder = Builder {
            source,
            places: BTreeMap::new(),
            uses,
            planes: vec![plane],
            makers: vec![None],
            steps: Vec::new(),
            specs: Vec::new(),
            norms: Vec::new(),
            learned: Vec::new(),
            untrainable: None,
        };
        let place = match (sample.len(), input_last) {
            (1, _) => Place::Flat(0),
            (_, true) => Place::Nhwc(0),
            _ => Place::Nchw(0),
        };
        builder.places.insert(slot, place);
        for (step, inputs, outputs) in steps {
            builder.step(step, inputs, outputs)?;
        }
        builder.finish(input_last, like)
    }
}

fn turns(step: &fuse::Step, order: &[usize]) -> bool {
    matches!(step, fuse::Step::Op(Op::Transpose { perm: Some(perm) }) if perm == order)
}

fn reads_shape(step: &fuse::Step) -> bool {
    matches!(step, fuse::Step::Op(Op::Shape { .. }))
}

impl Builder<'_> {
    fn finish(mut self, input_last: bool, like: Option<&Lowered>) -> R<Lowered> {
        let mut outputs = Vec::new();
        for slot in self.source.outputs() {
            outputs.push(match self.places.get(&slot) {
                Some(Place::Flat(value)) => Output {
                    value: *value,
                    flat: true,
                },
                Some(Place::Nchw(value)) => Output {
                    value: *value,
                    flat: false,
                },
                _ => return Err("an output of another kind"),
            });
        }
        if self.specs.is_empty() && self.planes.iter().all(|p| p.h * p.w == 1) {
            return Err("vectors without a product: one pass over them is all there is to do");
        }
        // Margins as wide as the widest reader.
        for step in &self.steps {
            let (Kind::Conv { input, window, .. }
            | Kind::Depthwise { input, window, .. }
            | Kind::Average { input, window, .. }) = &step.kind
            else {
                continue;
            };
            let plane = &mut self.planes[*input];
            let margin = window.margin(plane.h, plane.w);
            plane.widen(margin);
        }
        // What a hostile file asks for, margins included, must not be allocated.
        let gradients = gradient_planes(&self.planes, &self.steps);
        let fits = |p: &Plane| p.checked_size(MOST_FLOATS).is_some();
        if !self.planes.iter().all(fits) || !gradients.iter().all(fits) {
            return Err("a value too large to be worked on as a whole");
        }
        let mut last_use = vec![0; self.planes.len()];
        for (at, step) in self.steps.iter().enumerate() {
            for value in step.kind.inputs() {
                last_use[value] = at;
            }
            last_use[step.output] = last_use[step.output].max(at);
        }
        for output in &outputs {
            last_use[output.value] = usize::MAX;
        }
        let mut lowered = Lowered {
            planes: self.planes,
            input: 0,
            input_last,
            outputs,
            steps: self.steps,
            specs: self.specs,
            norms: self.norms,
            learned: self.learned,
            weights: None,
            last_use,
            untrainable: self.untrainable,
        };
        if !self.source.training() {
            let slot = |slot: usize| match self.source.passing(slot) {
                Some(Val::Float(tensor, ElementType::F32)) => Ok(tensor),
                _ => candle_core::bail!("a weight is not constant"),
            };
            let known = like.and_then(|like| like.weights.as_ref());
            // One after the other: no more than one layer's weights are there twice.
            let effective = |at: usize| lowered.specs[at].effective(&slot);
            let packed = Weights::pack(&lowered.specs, &effective, false, known);
            lowered.weights = Some(packed.map_err(|_| "weights of another kind")?);
        }
        Ok(lowered)
    }

    pub(super) fn value(&mut self, plane: Plane, slot: usize) -> Id {
        self.planes.push(plane);
        self.makers.push(Some((self.steps.len(), slot)));
        self.planes.len() - 1
    }

    pub(super) fn push(&mut self, kind: Kind, plane: Plane, slot: usize) -> Id {
        let output = self.value(plane, slot);
        self.steps.push(Step { kind, output });
        output
    }

    pub(super) fn place(&self, slot: Option<usize>) -> R<&Place> {
        self.places
            .get(&slot.ok_or("an absent input")?)
            .ok_or("an input that is no plane")
    }

    pub(super) fn plane(&self, slot: Option<usize>) -> R<Id> {
        match self.place(slot)? {
            Place::Nchw(value) => Ok(*value),
            _ => Err("an input of another layout"),
        }
    }

    pub(super) fn floats(&self, slot: Option<usize>) -> R<Option<Vec<f32>>> {
        let Some(slot) = slot else { return Ok(None) };
        let val = self.source.constant(slot).ok_or("not a constant")?;
        val.to_f32s().map(Some).map_err(|_| "not floats")
    }

    pub(super) fn ints(&self, slot: Option<usize>) -> R<Vec<i64>> {
        let val = self
            .source
            .constant(slot.ok_or("an absent input")?)
            .ok_or("not a constant")?;
        val.to_ints().map_err(|_| "not integers")
    }

    /// The step that made the value in `slot`, where nothing else reads it and so its tail can take more.
    pub(super) fn sole_maker(&self, slot: Option<usize>) -> Option<usize> {
        let slot = slot?;
        let (Place::Nchw(value) | Place::Flat(value)) = self.places.get(&slot)? else {
            return None;
        };
        let (step, first) = self.makers[*value]?;
        (first == slot && self.uses.get(&slot) == Some(&1)).then_some(step)
    }

    /// Lets the step before do the work of this one: `slot` becomes another name of its value.
    pub(super) fn rename(&mut self, step: usize, from: Option<usize>, slot: usize) {
        let value = self.steps[step].output;
        if let Some(place) = from.and_then(|from| self.places.get(&from).cloned()) {
            self.places.insert(slot, place);
        }
        self.makers[value] = Some((step, slot));
    }

    fn step(
        &mut self,
        step: &fuse::Step,
        inputs: &[Option<usize>],
        outputs: &[Option<usize>],
    ) -> R<()> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        // What depends on weights alone is computed before any image is.
        let known = |slot: &usize| self.source.weight_shape(*slot).is_some();
        if inputs.iter().flatten().all(known) {
            return Ok(());
        }
        let &[Some(output)] = outputs else {
            return Err("several outputs");
        };
        if self.shape_step(step, inputs, output)? {
            return Ok(());
        }
        let op = match step {
            fuse::Step::Op(op) => op,
            fuse::Step::FakeQuant {
                limits: Some(_), ..
            } => return Err("activations of a width of their own"),
            fuse::Step::FakeQuant {
                axis: _, block, to, ..
            } => {
                let quant = self.quant(input(1), input(2), *block, *to)?;
                return self.quantise(input(0), quant, input(1), output);
            }
            fuse::Step::FakeCast { .. } => return Err("half-precision activations"),
        };
        match op {
            Op::Identity | Op::Dropout => self.same(input(0), output),
            Op::Conv { window, group } => self.conv(inputs, window, *group, output),
            Op::Gemm {
                alpha,
                beta,
                trans_a: false,
                trans_b,
            } if *alpha == 1.0 && *beta == 1.0 => {
                let form = if *trans_b {
                    Form::OutputFirst
                } else {
                    Form::InputFirst
                };
                self.product(input(0), input(1), input(2), form, output)
            }
            Op::MatMul => self.product(input(0), input(1), None, Form::InputFirst, output),
            Op::BatchNormalization { epsilon } => self.norm(inputs, *epsilon, output),
            Op::Unary(UnaryOp::Relu) => self.clip(input(0), (0.0, f32::INFINITY), output),
            Op::Clip => {
                let bound = |values: Option<Vec<f32>>, none: f32| match values.as_deref() {
                    None => Ok(none),
                    Some([v]) => Ok(*v),
                    _ => Err("limits of another shape"),
                };
                let low = bound(self.floats(input(1))?, f32::NEG_INFINITY)?;
                let high = bound(self.floats(input(2))?, f32::INFINITY)?;
                if low > high {
                    return Err("limits that cross");
                }
                self.clip(input(0), (low, high), output)
            }
            Op::Binary(BinaryOp::Add) | Op::Variadic(VariadicOp::Sum) if inputs.len() == 2 => {
                self.add(input(0), input(1), output)
            }
            Op::Binary(BinaryOp::Mul) => self.mul(input(0), input(1), output),
            Op::GlobalAveragePool => {
                let id = self.plane(input(0))?;
                let mean = self.push(Kind::Mean { input: id }, self.point(id), output);
                self.places.insert(output, Place::Nchw(mean));
                Ok(())
            }
            Op::Reduce {
                op: ReduceOp::Mean,
                keep_dims,
                ..
            } => {
                let id = self.plane(input(0))?;
                let mut axes = self.ints(input(1))?;
                axes.iter_mut().for_each(|a| *a = a.rem_euclid(4));
                axes.sort_unstable();
                if axes != [2, 3] {
                    return Err("a mean over other axes");
                }
                let mean = self.push(Kind::Mean { input: id }, self.point(id), output);
                let place = if *keep_dims {
                    Place::Nchw(mean)
                } else {
                    Place::Flat(mean)
                };
                self.places.insert(output, place);
                Ok(())
            }
            Op::AveragePool {
                window,
                ceil: false,
                count_include_pad,
            } => {
                let id = self.plane(input(0))?;
                let window = self.window(id, window, &window.kernel, [0; 4])?;
                let plane = Plane::new(window.h, window.w, self.planes[id].c);
                let padded = *count_include_pad;
                let from = &self.planes[id];
                if !padded && window.margin(from.h, from.w) != [0; 4] {
                    self.untrainable = Some("averages that leave out their padding");
                }
                let made = self.push(
                    Kind::Average {
                        input: id,
                        window,
                        padded,
                    },
                    plane,
                    output,
                );
                self.places.insert(output, Place::Nchw(made));
                Ok(())
            }
            Op::MaxPool {
                window,
                ceil: false,
            } => {
                let id = self.plane(input(0))?;
                let window = self.window(id, window, &window.kernel, [0; 4])?;
                let plane = Plane::new(window.h, window.w, self.planes[id].c);
                let made = self.push(Kind::Max { input: id, window }, plane, output);
                self.places.insert(output, Place::Nchw(made));
                Ok(())
            }
            Op::Concat { axis: 1 } => self.concat(inputs, output),
            Op::Transpose { perm: Some(perm) } => {
                let place = match (self.place(input(0))?, perm.as_slice()) {
                    (Place::Nchw(id), [0, 2, 3, 1]) => Place::Nhwc(*id),
                    (Place::Nhwc(id), [0, 3, 1, 2]) => Place::Nchw(*id),
                    _ => return Err("another transposition"),
                };
                self.places.insert(output, place);
                Ok(())
            }
            Op::Pad {
                mode: PadMode::Constant,
            } => self.pad(inputs, output),
            Op::Flatten { axis: 1 } => self.flatten(input(0), output),
            Op::Reshape { .. } => {
                let elements = match self.place(input(0))? {
                    Place::Nchw(id) | Place::Flat(id) => self.planes[*id].elements() as i64,
                    _ => return Err("a reshape of another layout"),
                };
                let shapes = self.shape_of(input(1))?;
                let to_rows = shapes.iter().zip([2, 3]).all(|(shape, n)| {
                    let rows = |d: i64| d == n || d == -1 || d == 0;
                    matches!(shape.as_slice(), [a, b] if rows(*a) && (*b == elements || *b == -1 && *a != -1))
                });
                if !to_rows {
                    return Err("a reshape to something else");
                }
                self.flatten(input(0), output)
            }
            Op::Squeeze => {
                let id = self.plane(input(0))?;
                let axes = match input(1) {
                    Some(_) => self.ints(input(1))?,
                    None => return Err("a squeeze of all axes"),
                };
                let mut axes: Vec<i64> = axes.iter().map(|a| a.rem_euclid(4)).collect();
                axes.sort_unstable();
                if axes != [2, 3] || self.planes[id].h * self.planes[id].w != 1 {
                    return Err("a squeeze of other axes");
                }
                self.places.insert(output, Place::Flat(id));
                Ok(())
            }
            Op::Softmax { axis, .. } => {
                let Place::Flat(id) = *self.place(input(0))? else {
                    return Err("a softmax over a plane");
                };
                if *axis != 1 && *axis != -1 {
                    return Err("a softmax over another axis");
                }
                self.untrainable = Some("softmax");
                let plane = self.planes[id];
                let made = self.push(Kind::Softmax { input: id }, plane, output);
                self.places.insert(output, Place::Flat(made));
                Ok(())
            }
            _ => match function(op) {
                Some(fun) => {
                    let place = self.place(input(0))?.clone();
                    let (Place::Nchw(id) | Place::Flat(id) | Place::Nhwc(id)) = place else {
                        return Err("a function of another layout");
                    };
                    self.untrainable = Some("a function other than ReLU and Clip");
                    let plane = self.planes[id];
                    let made = self.push(Kind::Map { input: id, fun }, plane, output);
                    self.places.insert(output, place.of(made));
                    Ok(())
                }
                None => Err("another operator"),
            },
        }
    }

    /// Arithmetic on shapes: evaluated for two numbers of images. False where the step is none.
    fn shape_step(
        &mut self,
        step: &fuse::Step,
        inputs: &[Option<usize>],
        output: usize,
    ) -> R<bool> {
        if reads_shape(step) {
            let shape = |n: i64| -> Option<Vec<i64>> {
                Some(
                    match self.places.get(&inputs.first().copied().flatten()?)? {
                        Place::Nchw(id) => {
                            let p = &self.planes[*id];
                            vec![n, p.c as i64, p.h as i64, p.w as i64]
                        }
                        Place::Nhwc(id) => {
                            let p = &self.planes[*id];
                            vec![n, p.h as i64, p.w as i64, p.c as i64]
                        }
                        Place::Flat(id) => vec![n, self.planes[*id].c as i64],
                        _ => return None,
                    },
                )
            };
            let (Some(two), Some(three)) = (shape(2), shape(3)) else {
                return Err("the shape of another value");
            };
            let fuse::Step::Op(Op::Shape { start, end }) = step else {
                return Err("the shape of another value");
            };
            let part = |all: Vec<i64>| {
                let rank = all.len() as i64;
                let at = |v: Option<i64>, none: i64| {
                    let v = v.unwrap_or(none);
                    (if v < 0 { v + rank } else { v }).clamp(0, rank) as usize
                };
                let (start, end) = (at(*start, 0), at(*end, rank));
                let cut = all[start..end.max(start)].to_vec();
                Array::ints(ElementType::I64, vec![cut.len()], cut)
            };
            let pair = Box::new([part(two), part(three)]);
            self.places.insert(output, Place::Shape(pair));
            return Ok(true);
        }
        let any = inputs
            .iter()
            .flatten()
            .any(|slot| matches!(self.places.get(slot), Some(Place::Shape(_))));
        let all = inputs.iter().flatten().all(|slot| {
            matches!(self.places.get(slot), Some(Place::Shape(_))) || self.source.is_constant(*slot)
        });
        if !(any && all) {
            return Ok(false);
        }
        let evaluate = |which: usize| -> R<Val> {
            let given: Vec<Option<Val>> = inputs
                .iter()
                .map(|slot| {
                    let slot = (*slot)?;
                    match self.places.get(&slot) {
                        Some(Place::Shape(pair)) => Some(pair[which].clone()),
                        _ => self.source.constant(slot).cloned(),
                    }
                })
                .collect();
            let mut results = ops::eval(step, &given, 1).map_err(|_| "shapes that fail")?;
            results.pop().ok_or("shapes that fail")
        };
        let pair = Box::new([evaluate(0)?, evaluate(1)?]);
        self.places.insert(output, Place::Shape(pair));
        Ok(true)
    }

    /// Integers for 2 and for 3 images.
    fn shape_of(&self, slot: Option<usize>) -> R<[Vec<i64>; 2]> {
        if let Ok(Place::Shape(pair)) = self.place(slot) {
            let ints = |v: &Val| v.to_ints().map_err(|_| "not integers");
            return Ok([ints(&pair[0])?, ints(&pair[1])?]);
        }
        let fixed = self.ints(slot)?;
        Ok([fixed.clone(), fixed])
    }
}

/// Functions of one value that are mapped element by element.
fn function(op: &Op) -> Option<Fun> {
    Some(match op {
        Op::Unary(UnaryOp::Not | UnaryOp::IsNaN) => return None,
        Op::Unary(op) => Fun::of(*op),
        Op::HardSigmoid { alpha, beta } => Fun::HardSigmoid {
            alpha: f64::from(*alpha),
            beta: f64::from(*beta),
        },
        Op::LeakyRelu { alpha } => Fun::LeakyRelu(f64::from(*alpha)),
        Op::Elu { alpha } => Fun::Elu(f64::from(*alpha)),
        Op::Gelu { tanh: true } => Fun::GeluTanh,
        Op::Gelu { tanh: false } => Fun::GeluErf,
        _ => return None,
    })
}

/// Slots that depend on weights alone, with their shapes, found by walking a schedule once.
pub(in crate::exec) fn weight_slots(
    steps: &[Planned<'_>],
    known: &BTreeSet<usize>,
) -> (BTreeSet<usize>, Vec<usize>) {
    let mut slots = known.clone();
    let mut prelude = Vec::new();
    for (at, (_, inputs, outputs)) in steps.iter().enumerate() {
        if inputs.iter().flatten().all(|slot| slots.contains(slot)) {
            slots.extend(outputs.iter().flatten());
            prelude.push(at);
        }
    }
    (slots, prelude)
}
