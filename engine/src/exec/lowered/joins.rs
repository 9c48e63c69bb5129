//! What single operators become: a step of their own, or part of the one before.

use super::{
    Id, Kind,
    batch_norm::Norm,
    build::{Builder, MOST_FLOATS, Place, R},
    weights::{Form, Spec},
};
use crate::{
    exec::{
        kernels::planes::{Plane, Quant, Tail, Window2d},
        ops,
        value::int_range,
    },
    graph::{ElementType, Window},
};

impl Builder<'_> {
    pub(super) fn same(&mut self, from: Option<usize>, to: usize) -> R<()> {
        let place = self.place(from)?.clone();
        self.places.insert(to, place);
        Ok(())
    }

    pub(super) fn point(&self, id: Id) -> Plane {
        Plane::new(1, 1, self.planes[id].c)
    }

    /// The window over a value's plane; `more` is padding that stands before it.
    pub(super) fn window(
        &self,
        id: Id,
        window: &Window,
        kernel: &[usize],
        more: [usize; 4],
    ) -> R<Window2d> {
        let plane = &self.planes[id];
        let size = (plane.h + more[0] + more[2], plane.w + more[1] + more[3]);
        let mut found =
            ops::window_over(window, kernel, size).map_err(|_| "a window of another kind")?;
        let pixels = found.h.checked_mul(found.w);
        if pixels.is_none_or(|pixels| pixels > MOST_FLOATS) {
            return Err("a window with too many places");
        }
        found.before.0 += more[0];
        found.before.1 += more[1];
        Ok(found)
    }

    pub(super) fn conv(
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
                biases: self.bias(input(2), o, false)?,
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

    /// A vector with an entry an output; `row` lets it be a matrix of one row.
    pub(super) fn bias(&self, slot: Option<usize>, outputs: usize, row: bool) -> R<Vec<usize>> {
        let Some(slot) = slot else {
            return Ok(Vec::new());
        };
        let shape = self.source.weight_shape(slot).ok_or("a computed bias")?;
        if shape != [outputs] && !(row && shape == [1, outputs]) {
            return Err("a bias of another shape");
        }
        Ok(vec![slot])
    }

    pub(super) fn product(
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
            biases: self.bias(bias, o, true)?,
            norm: None,
            groups: 1,
            channels: o,
            depth: k,
            taps: 1,
            depthwise: false,
        };
        self.weighted(id, window, spec, Place::Flat, output)
    }

    pub(super) fn weighted(
        &mut self,
        input: Id,
        window: Window2d,
        spec: Spec,
        place: fn(Id) -> Place,
        output: usize,
    ) -> R<()> {
        let plane = Plane::new(window.h, window.w, spec.outputs());
        if plane.checked_size(MOST_FLOATS).is_none() {
            return Err("a value too large to be worked on as a whole");
        }
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

    pub(super) fn norm(&mut self, inputs: &[Option<usize>], epsilon: f32, output: usize) -> R<()> {
        let mut slots = [0; 4];
        let id = self.plane(inputs.first().copied().flatten())?;
        let c = self.planes[id].c;
        for (slot, given) in slots.iter_mut().zip(inputs.iter().skip(1)) {
            *slot = given.ok_or("no statistics")?;
            if self.source.weight_shape(*slot) != Some(vec![c]) {
                return Err("statistics of another shape");
            }
        }
        if self.source.by_batch(slots[2]) {
            let kind = Kind::Norm {
                input: id,
                norm: self.norms.len(),
                added: None,
                limits: (f32::NEG_INFINITY, f32::INFINITY),
            };
            self.norms.push(Norm { slots, epsilon });
            let made = self.push(kind, self.bare(id), output);
            self.places.insert(output, Place::Nchw(made));
            return Ok(());
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

    pub(super) fn clip(
        &mut self,
        from: Option<usize>,
        (low, high): (f32, f32),
        output: usize,
    ) -> R<()> {
        if let Some(step) = self.sole_maker(from) {
            let unlimited = (f32::NEG_INFINITY, f32::INFINITY);
            match &mut self.steps[step].kind {
                Kind::Conv { tail, .. } | Kind::Depthwise { tail, .. } if *tail == Tail::NONE => {
                    (tail.low, tail.high) = (low, high);
                    self.rename(step, from, output);
                    return Ok(());
                }
                Kind::Add { limits, .. } | Kind::Norm { limits, .. } if *limits == unlimited => {
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
        self.places.insert(output, place.of(made));
        Ok(())
    }

    pub(super) fn bare(&self, id: Id) -> Plane {
        let p = &self.planes[id];
        Plane::new(p.h, p.w, p.c)
    }

    pub(super) fn add(&mut self, a: Option<usize>, b: Option<usize>, output: usize) -> R<()> {
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
            let Kind::Conv {
                weight,
                added: None,
                tail: Tail::NONE,
                ..
            } = self.steps[step].kind
            else {
                return Err("a constant is added");
            };
            if self.specs[weight].norm.is_some() {
                return Err("a constant of another shape is added");
            }
            let more = self.bias(Some(slot), outputs, true)?;
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
        let limits = (f32::NEG_INFINITY, f32::INFINITY);
        if ia != ib
            && let Some(step) = self.sole_maker(from)
            && self.steps[step].output == late
        {
            let free = match &mut self.steps[step].kind {
                Kind::Conv { added, tail, .. } | Kind::Depthwise { added, tail, .. } => {
                    (*tail == Tail::NONE).then_some(added)
                }
                Kind::Norm {
                    added, limits: l, ..
                } => (*l == limits).then_some(added),
                _ => None,
            };
            if let Some(added) = free.filter(|added| added.is_none()) {
                *added = Some(other);
                self.rename(step, from, output);
                return Ok(());
            }
        }
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
        self.places.insert(output, x.of(made));
        Ok(())
    }

    pub(super) fn mul(&mut self, a: Option<usize>, b: Option<usize>, output: usize) -> R<()> {
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

    pub(super) fn concat(&mut self, inputs: &[Option<usize>], output: usize) -> R<()> {
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

    pub(super) fn pad(&mut self, inputs: &[Option<usize>], output: usize) -> R<()> {
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

    pub(super) fn flatten(&mut self, from: Option<usize>, output: usize) -> R<()> {
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

    pub(super) fn quant(
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

    pub(super) fn quantise(
        &mut self,
        from: Option<usize>,
        quant: Quant,
        scale: Option<usize>,
        output: usize,
    ) -> R<()> {
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
        let learned = scale.filter(|slot| self.source.is_learned(*slot));
        let learned = learned.map(|slot| {
            self.learned.push(slot);
            self.learned.len() - 1
        });
        let kind = Kind::Quant {
            input: id,
            quant,
            learned,
        };
        let made = self.push(kind, self.bare(id), output);
        self.places.insert(output, place.of(made));
        Ok(())
    }
}
