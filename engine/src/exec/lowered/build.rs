//! From a program's schedule to lowered steps: what each value is, which steps join the one before them.

use super::{
    Id, Kind, Lowered, Output, Step,
    weights::{Form, Spec, Weights},
};
use crate::{
    exec::{
        fuse,
        kernels::planes::{Plane, Quant, Tail, Window2d},
        ops,
        scalar::Fun,
        value::{Array, Val, int_range},
    },
    graph::{BinaryOp, ElementType, Op, PadMode, ReduceOp, UnaryOp, VariadicOp, Window},
};
use std::collections::{BTreeMap, BTreeSet};

/// What a program tells of itself.
pub(in crate::exec) trait Source {
    /// Its steps: what is done, slots read, slots written.
    fn steps(&self) -> Vec<(&fuse::Step, &[Option<usize>], &[Option<usize>])>;
    /// The one input's slot and the outputs'; `None` where there are several inputs.
    fn input(&self) -> Option<usize>;
    fn outputs(&self) -> Vec<usize>;
    /// A weight or folded value.
    fn constant(&self, slot: usize) -> Option<&Val>;
    /// Shape of a constant, of a parameter or of what is computed from them alone.
    fn weight_shape(&self, slot: usize) -> Option<Vec<usize>>;
    fn training(&self) -> bool;
}

/// Why a program cannot be lowered: for tests and profiles, not for users.
type Refusal = &'static str;
type R<T> = Result<T, Refusal>;

/// What a slot holds.
#[derive(Clone)]
enum Place {
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

struct Builder<'a> {
    source: &'a dyn Source,
    places: BTreeMap<usize, Place>,
    /// How many steps and outputs read a slot.
    uses: BTreeMap<usize, usize>,
    planes: Vec<Plane>,
    /// Step that makes a value, and the slot it first stood in.
    makers: Vec<Option<(usize, usize)>>,
    steps: Vec<Step>,
    specs: Vec<Spec>,
    untrainable: Option<Refusal>,
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
            weights: None,
            last_use,
            untrainable: self.untrainable,
        };
        if !self.source.training() {
            let slot = |slot: usize| match self.source.constant(slot) {
                Some(Val::Float(tensor, ElementType::F32)) => Ok(tensor.clone()),
                _ => candle_core::bail!("a weight is not constant"),
            };
            let pack = || {
                let effective = lowered
                    .specs
                    .iter()
                    .map(|spec| spec.effective(&slot))
                    .collect::<candle_core::Result<Vec<_>>>()?;
                let known = like.and_then(|like| like.weights.as_ref());
                Weights::pack(&lowered.specs, &effective, false, known)
            };
            lowered.weights = Some(pack().map_err(|_| "weights of another kind")?);
        }
        Ok(lowered)
    }

    fn value(&mut self, plane: Plane, slot: usize) -> Id {
        self.planes.push(plane);
        self.makers.push(Some((self.steps.len(), slot)));
        self.planes.len() - 1
    }

    fn push(&mut self, kind: Kind, plane: Plane, slot: usize) -> Id {
        let output = self.value(plane, slot);
        self.steps.push(Step { kind, output });
        output
    }

    fn place(&self, slot: Option<usize>) -> R<&Place> {
        self.places
            .get(&slot.ok_or("an absent input")?)
            .ok_or("an input that is no plane")
    }

    fn plane(&self, slot: Option<usize>) -> R<Id> {
        match self.place(slot)? {
            Place::Nchw(value) => Ok(*value),
            _ => Err("an input of another layout"),
        }
    }

    fn floats(&self, slot: Option<usize>) -> R<Option<Vec<f32>>> {
        let Some(slot) = slot else { return Ok(None) };
        let val = self.source.constant(slot).ok_or("not a constant")?;
        val.to_f32s().map(Some).map_err(|_| "not floats")
    }

    fn ints(&self, slot: Option<usize>) -> R<Vec<i64>> {
        let val = self
            .source
            .constant(slot.ok_or("an absent input")?)
            .ok_or("not a constant")?;
        val.to_ints().map_err(|_| "not integers")
    }

    /// The step that made the value in `slot`, where nothing else reads it and so its tail can take more.
    fn sole_maker(&self, slot: Option<usize>) -> Option<usize> {
        let slot = slot?;
        let (Place::Nchw(value) | Place::Flat(value)) = self.places.get(&slot)? else {
            return None;
        };
        let (step, first) = self.makers[*value]?;
        (first == slot && self.uses.get(&slot) == Some(&1)).then_some(step)
    }

    /// Lets the step before do the work of this one: `slot` becomes another name of its value.
    fn rename(&mut self, step: usize, from: Option<usize>, slot: usize) {
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
            fuse::Step::FakeQuant { axis: _, block, to } => {
                let quant = self.quant(input(1), input(2), *block, *to)?;
                return self.quantise(input(0), quant, output);
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
                if !padded && window.before != (0, 0) {
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
                    let place = match place {
                        Place::Nhwc(_) => Place::Nhwc(made),
                        Place::Flat(_) => Place::Flat(made),
                        _ => Place::Nchw(made),
                    };
                    self.places.insert(output, place);
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
            matches!(self.places.get(slot), Some(Place::Shape(_)))
                || self.source.constant(*slot).is_some()
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

    fn same(&mut self, from: Option<usize>, to: usize) -> R<()> {
        let place = self.place(from)?.clone();
        self.places.insert(to, place);
        Ok(())
    }

    fn point(&self, id: Id) -> Plane {
        Plane::new(1, 1, self.planes[id].c)
    }

    /// The window over a value's plane; `more` is padding that stands before it.
    fn window(&self, id: Id, window: &Window, kernel: &[usize], more: [usize; 4]) -> R<Window2d> {
        let plane = &self.planes[id];
        let size = (plane.h + more[0] + more[2], plane.w + more[1] + more[3]);
        let mut found =
            ops::window_over(window, kernel, size).map_err(|_| "a window of another kind")?;
        found.before.0 += more[0];
        found.before.1 += more[1];
        Ok(found)
    }

    fn conv(
        &mut self,
        inputs: &[Option<usize>],
        window: &Window,
        groups: usize,
        output: usize,
    ) -> R<()> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        let (id, more) = match self.place(input(0))? {
            Place::Nchw(id) => (*id, [0; 4]),
            Place::Padded(id, more) => (*id, *more),
            _ => return Err("a convolution over another layout"),
        };
        let weight = input(1).ok_or("no weight")?;
        let shape = self
            .source
            .weight_shape(weight)
            .ok_or("a computed weight")?;
        let &[o, depth, kh, kw] = shape.as_slice() else {
            return Err("a weight of another rank");
        };
        let c = self.planes[id].c;
        if groups == 0 || depth * groups != c || o % groups != 0 || o == 0 {
            return Err("groups that do not fit");
        }
        let window = self.window(id, window, &[kh, kw], more)?;
        self.weighted(
            id,
            window,
            Spec {
                form: Form::OutputFirst,
                weight,
                biases: self.bias(input(2), o)?,
                norm: None,
                groups,
                channels: o / groups,
                depth,
                taps: kh * kw,
                depthwise: depth == 1 && groups == o && groups > 1,
            },
            Place::Nchw,
            output,
        )
    }

    fn bias(&self, slot: Option<usize>, outputs: usize) -> R<Vec<usize>> {
        let Some(slot) = slot else {
            return Ok(Vec::new());
        };
        let shape = self.source.weight_shape(slot).ok_or("a computed bias")?;
        if shape.iter().product::<usize>() != outputs {
            return Err("a bias of another shape");
        }
        Ok(vec![slot])
    }

    fn product(
        &mut self,
        x: Option<usize>,
        weight: Option<usize>,
        bias: Option<usize>,
        form: Form,
        output: usize,
    ) -> R<()> {
        let Place::Flat(id) = *self.place(x)? else {
            return Err("a matrix product over another layout");
        };
        let weight = weight.ok_or("no weight")?;
        let shape = self
            .source
            .weight_shape(weight)
            .ok_or("a computed weight")?;
        let &[a, b] = shape.as_slice() else {
            return Err("a matrix of another rank");
        };
        let (o, k) = if form == Form::OutputFirst {
            (a, b)
        } else {
            (b, a)
        };
        if k != self.planes[id].c || o == 0 {
            return Err("a matrix that does not fit");
        }
        let window = Window2d {
            kernel: (1, 1),
            stride: (1, 1),
            dilation: (1, 1),
            before: (0, 0),
            h: 1,
            w: 1,
        };
        let spec = Spec {
            form,
            weight,
            biases: self.bias(bias, o)?,
            norm: None,
            groups: 1,
            channels: o,
            depth: k,
            taps: 1,
            depthwise: false,
        };
        self.weighted(id, window, spec, Place::Flat, output)
    }

    fn weighted(
        &mut self,
        input: Id,
        window: Window2d,
        spec: Spec,
        place: fn(Id) -> Place,
        output: usize,
    ) -> R<()> {
        let plane = Plane::new(window.h, window.w, spec.outputs());
        let (weight, added, tail) = (self.specs.len(), None, Tail::NONE);
        let kind = if spec.depthwise {
            Kind::Depthwise {
                input,
                window,
                weight,
                added,
                tail,
            }
        } else {
            Kind::Conv {
                input,
                window,
                weight,
                added,
                tail,
            }
        };
        self.specs.push(spec);
        let made = self.push(kind, plane, output);
        self.places.insert(output, place(made));
        Ok(())
    }

    fn norm(&mut self, inputs: &[Option<usize>], epsilon: f32, output: usize) -> R<()> {
        let mut slots = [0; 4];
        let id = self.plane(inputs.first().copied().flatten())?;
        let c = self.planes[id].c;
        for (slot, given) in slots.iter_mut().zip(inputs.iter().skip(1)) {
            *slot = given.ok_or("no statistics")?;
            if self.source.weight_shape(*slot) != Some(vec![c]) {
                return Err("statistics of another shape");
            }
        }
        let norm = Some((slots, epsilon));
        let from = inputs.first().copied().flatten();
        if let Some(step) = self.sole_maker(from)
            && let Kind::Conv {
                weight,
                added: None,
                tail: Tail::NONE,
                ..
            }
            | Kind::Depthwise {
                weight,
                added: None,
                tail: Tail::NONE,
                ..
            } = self.steps[step].kind
            && self.specs[weight].norm.is_none()
        {
            self.specs[weight].norm = norm;
            self.rename(step, from, output);
            return Ok(());
        }
        let window = Window2d {
            kernel: (1, 1),
            stride: (1, 1),
            dilation: (1, 1),
            before: (0, 0),
            h: self.planes[id].h,
            w: self.planes[id].w,
        };
        let spec = Spec {
            form: Form::Ones,
            weight: 0,
            biases: Vec::new(),
            norm,
            groups: c,
            channels: 1,
            depth: 1,
            taps: 1,
            depthwise: true,
        };
        self.weighted(id, window, spec, Place::Nchw, output)
    }

    fn clip(&mut self, from: Option<usize>, (low, high): (f32, f32), output: usize) -> R<()> {
        if let Some(step) = self.sole_maker(from) {
            let unlimited = (f32::NEG_INFINITY, f32::INFINITY);
            match &mut self.steps[step].kind {
                Kind::Conv { tail, .. } | Kind::Depthwise { tail, .. } if *tail == Tail::NONE => {
                    (tail.low, tail.high) = (low, high);
                    self.rename(step, from, output);
                    return Ok(());
                }
                Kind::Add { limits, .. } if *limits == unlimited => {
                    *limits = (low, high);
                    self.rename(step, from, output);
                    return Ok(());
                }
                _ => {}
            }
        }
        let place = self.place(from)?.clone();
        let (Place::Nchw(id) | Place::Flat(id)) = place else {
            return Err("limits of another layout");
        };
        let limits = (low, high);
        let made = self.push(Kind::Clip { input: id, limits }, self.bare(id), output);
        let flat = matches!(place, Place::Flat(_));
        let place = if flat {
            Place::Flat(made)
        } else {
            Place::Nchw(made)
        };
        self.places.insert(output, place);
        Ok(())
    }

    fn bare(&self, id: Id) -> Plane {
        let p = &self.planes[id];
        Plane::new(p.h, p.w, p.c)
    }

    fn add(&mut self, a: Option<usize>, b: Option<usize>, output: usize) -> R<()> {
        // A constant vector behind a product is its bias.
        for (x, bias) in [(a, b), (b, a)] {
            let Some(slot) = bias.filter(|slot| self.source.weight_shape(*slot).is_some()) else {
                continue;
            };
            let step = self.sole_maker(x).ok_or("a constant is added")?;
            let Some(Place::Flat(id)) = x.and_then(|x| self.places.get(&x)) else {
                return Err("a constant is added to a plane");
            };
            let outputs = self.planes[*id].c;
            let shape = self.source.weight_shape(slot).ok_or("a computed bias")?;
            let along_last = shape.last() == Some(&outputs);
            let Kind::Conv {
                weight,
                added: None,
                tail: Tail::NONE,
                ..
            } = self.steps[step].kind
            else {
                return Err("a constant is added");
            };
            if !along_last || self.specs[weight].norm.is_some() {
                return Err("a constant of another shape is added");
            }
            let more = self.bias(Some(slot), outputs)?;
            self.specs[weight].biases.extend(more);
            self.rename(step, x, output);
            return Ok(());
        }
        let (x, y) = (self.place(a)?.clone(), self.place(b)?.clone());
        let ((Place::Nchw(ia), Place::Nchw(ib)) | (Place::Flat(ia), Place::Flat(ib))) = (&x, &y)
        else {
            return Err("a sum of different layouts");
        };
        let (ia, ib) = (*ia, *ib);
        if self.bare(ia) != self.bare(ib) {
            return Err("a sum that broadcasts");
        }
        // The later of the two makers adds the other one's value before it stores its own.
        let made = |id: Id| self.makers[id].map_or(0, |(step, _)| step + 1);
        let (late, from, other) = if made(ia) > made(ib) {
            (ia, a, ib)
        } else {
            (ib, b, ia)
        };
        if ia != ib
            && let Some(step) = self.sole_maker(from)
            && self.steps[step].output == late
            && let Kind::Conv { added, tail, .. } | Kind::Depthwise { added, tail, .. } =
                &mut self.steps[step].kind
            && added.is_none()
            && *tail == Tail::NONE
        {
            *added = Some(other);
            self.rename(step, from, output);
            return Ok(());
        }
        let limits = (f32::NEG_INFINITY, f32::INFINITY);
        let plane = self.bare(ia);
        let made = self.push(
            Kind::Add {
                a: ia,
                b: ib,
                limits,
            },
            plane,
            output,
        );
        let flat = matches!(x, Place::Flat(_));
        let place = if flat {
            Place::Flat(made)
        } else {
            Place::Nchw(made)
        };
        self.places.insert(output, place);
        Ok(())
    }

    fn mul(&mut self, a: Option<usize>, b: Option<usize>, output: usize) -> R<()> {
        let (ia, ib) = (self.plane(a)?, self.plane(b)?);
        let point = |id: Id| self.planes[id].h * self.planes[id].w == 1;
        let (input, factors) = match (point(ia), point(ib)) {
            (false, true) => (ia, ib),
            (true, false) => (ib, ia),
            _ => return Err("a product of two planes"),
        };
        if self.planes[input].c != self.planes[factors].c {
            return Err("a product that broadcasts");
        }
        self.untrainable = Some("factors computed from the image");
        let plane = self.bare(input);
        let made = self.push(Kind::Scale { input, factors }, plane, output);
        self.places.insert(output, Place::Nchw(made));
        Ok(())
    }

    fn concat(&mut self, inputs: &[Option<usize>], output: usize) -> R<()> {
        let ids = inputs
            .iter()
            .map(|slot| self.plane(*slot))
            .collect::<R<Vec<_>>>()?;
        let first = self.planes[*ids.first().ok_or("nothing to join")?];
        let mut plane = Plane::new(first.h, first.w, 0);
        for id in &ids {
            let p = &self.planes[*id];
            if (p.h, p.w) != (first.h, first.w) {
                return Err("planes of different sizes are joined");
            }
            plane.c += p.c;
        }
        self.untrainable = Some("concatenation");
        let made = self.push(Kind::Concat { inputs: ids }, plane, output);
        self.places.insert(output, Place::Nchw(made));
        Ok(())
    }

    fn pad(&mut self, inputs: &[Option<usize>], output: usize) -> R<()> {
        let input = |i: usize| inputs.get(i).copied().flatten();
        let id = self.plane(input(0))?;
        if let Some(values) = self.floats(input(2))?
            && values.iter().any(|v| *v != 0.0)
        {
            return Err("padding with something else than zeros");
        }
        if input(3).is_some() {
            return Err("padding of named axes");
        }
        let pads = self.ints(input(1))?;
        let &[0, 0, top, left, 0, 0, bottom, right] = pads.as_slice() else {
            return Err("padding of other axes");
        };
        let mut more = [0; 4];
        for (more, pad) in more.iter_mut().zip([top, left, bottom, right]) {
            *more = usize::try_from(pad)
                .ok()
                .filter(|p| *p < 1 << 12)
                .ok_or("padding that cuts")?;
        }
        self.places.insert(output, Place::Padded(id, more));
        Ok(())
    }

    fn flatten(&mut self, from: Option<usize>, output: usize) -> R<()> {
        let id = match *self.place(from)? {
            Place::Flat(id) => id,
            Place::Nchw(id) if self.planes[id].h * self.planes[id].w == 1 => id,
            Place::Nchw(id) => {
                let plane = Plane::new(1, 1, self.planes[id].elements());
                self.push(Kind::Flatten { input: id }, plane, output)
            }
            _ => return Err("flattening of another layout"),
        };
        self.places.insert(output, Place::Flat(id));
        Ok(())
    }

    fn quant(
        &self,
        scale: Option<usize>,
        zero: Option<usize>,
        block: usize,
        to: ElementType,
    ) -> R<Quant> {
        let scales = self.floats(scale)?.ok_or("no scale")?;
        let &[scale] = scales.as_slice() else {
            return Err("activations quantised by channel");
        };
        if block != 0 || !(scale.is_finite() && scale > 0.0) {
            return Err("activations quantised in blocks");
        }
        let zero = match zero {
            None => 0,
            Some(_) => *self.ints(zero)?.first().ok_or("no zero point")?,
        };
        let (low, high) = int_range(to);
        if !(-(1 << 22)..=1 << 22).contains(&low.saturating_sub(zero))
            || !(-(1 << 22)..=1 << 22).contains(&high.saturating_sub(zero))
        {
            return Err("a wide quantised type");
        }
        Ok(Quant {
            scale,
            low: (low - zero) as f32,
            high: (high - zero) as f32,
        })
    }

    fn quantise(&mut self, from: Option<usize>, quant: Quant, output: usize) -> R<()> {
        // Gradients need the value from before it was quantised.
        if !self.source.training()
            && let Some(step) = self.sole_maker(from)
            && let Kind::Conv { tail, .. } | Kind::Depthwise { tail, .. } =
                &mut self.steps[step].kind
            && tail.quant.is_none()
        {
            tail.quant = Some(quant);
            self.rename(step, from, output);
            return Ok(());
        }
        let place = self.place(from)?.clone();
        let (Place::Nchw(id) | Place::Flat(id)) = place else {
            return Err("quantisation of another layout");
        };
        let made = self.push(Kind::Quant { input: id, quant }, self.bare(id), output);
        let flat = matches!(place, Place::Flat(_));
        let place = if flat {
            Place::Flat(made)
        } else {
            Place::Nchw(made)
        };
        self.places.insert(output, place);
        Ok(())
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
    steps: &[(&fuse::Step, &[Option<usize>], &[Option<usize>])],
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
