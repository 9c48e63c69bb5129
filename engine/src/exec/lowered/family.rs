//! Networks that differ in a few layers, run on the same images: what a member has in common with the first of them, which is
//! all before the first layer that differs, is computed once and kept for all.

use super::{
    Id, Kind, Lowered,
    forward::{Spaces, Workspace},
};
use crate::exec::{
    CancelToken, ExecError, Program,
    kernels::planes::{self, Hands, Quant},
    pool::on_pool,
    value::with_f32,
};
use candle_core::Tensor;
use rayon::prelude::*;
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// The first network of a family and its other members.
pub struct Family {
    pub(super) base: Arc<Lowered>,
    /// Values of the base by what they are computed from.
    known: Arc<BTreeMap<u64, Id>>,
    pub(super) sample: Vec<usize>,
    pub(super) members: Vec<Member>,
    pub(super) spaces: Spaces,
    kept: Spaces,
}

pub(super) struct Member {
    pub form: Lowered,
    /// Where each of its values comes from.
    pub from: Vec<From>,
}

#[derive(Clone, Copy)]
pub(super) enum From {
    /// Nothing that matters reads it.
    Nowhere,
    /// The base has the same.
    Base(Id),
    /// The base has it unquantised.
    Quantised(Id, Quant),
    Own,
}

/// What tells a value from others: as it is, and before its last quantisation.
#[derive(Clone, Copy)]
struct Digest {
    whole: u64,
    bare: u64,
    quant: Option<Quant>,
}

/// Member runs between two visits to the caller, per thread.
const GROUP: usize = 4;

impl Family {
    /// A family of `base` and no other yet, for batches of samples of this shape; `None` where `base` has no fused form.
    pub fn new(base: &Program, sample: &[usize]) -> Result<Option<Self>, ExecError> {
        let Some(base) = base.lowered_like(sample, None)? else {
            return Ok(None);
        };
        let known = digests(&base)
            .into_iter()
            .enumerate()
            .map(|(id, digest)| (digest.whole, id))
            .collect();
        Ok(Some(Self {
            base: Arc::new(base),
            known: Arc::new(known),
            sample: sample.to_vec(),
            members: Vec::new(),
            spaces: Spaces::default(),
            kept: Spaces::default(),
        }))
    }

    /// A family of the same first network without other members.
    pub fn without_members(&self) -> Self {
        Self {
            base: self.base.clone(),
            known: self.known.clone(),
            sample: self.sample.clone(),
            members: Vec::new(),
            spaces: Spaces::default(),
            kept: Spaces::default(),
        }
    }

    /// Adds a member; its number, or `None` where it has no fused form.
    pub fn add(&mut self, program: &Program) -> Result<Option<usize>, ExecError> {
        let Some(form) = program.lowered_like(&self.sample, Some(&self.base))? else {
            return Ok(None);
        };
        let digests = digests(&form);
        // A margin may be wider than asked for.
        let same = |id: Id, base: Id| {
            let (own, base) = (&form.planes[id], &self.base.planes[base]);
            let wide = own
                .margin
                .iter()
                .zip(&base.margin)
                .all(|(own, base)| base >= own);
            (own.h, own.w, own.c) == (base.h, base.w, base.c) && wide
        };
        let mut from = vec![From::Nowhere; form.planes.len()];
        for output in &form.outputs {
            from[output.value] = From::Own;
        }
        let find = |id: Id| -> From {
            let digest = &digests[id];
            if let Some(base) = self
                .known
                .get(&digest.whole)
                .filter(|base| same(id, **base))
            {
                return From::Base(*base);
            }
            match (digest.quant, self.known.get(&digest.bare)) {
                (Some(quant), Some(base)) if same(id, *base) => From::Quantised(*base, quant),
                _ => From::Own,
            }
        };
        // From the outputs back: only what is read is found or computed.
        for step in form.steps.iter().rev() {
            if matches!(from[step.output], From::Nowhere) {
                continue;
            }
            from[step.output] = find(step.output);
            if matches!(from[step.output], From::Own) {
                for input in step.kind.inputs() {
                    from[input] = From::Own;
                }
            }
        }
        if matches!(from[form.input], From::Own) && same(form.input, self.base.input) {
            from[form.input] = From::Base(self.base.input);
        }
        self.members.push(Member { form, from });
        Ok(Some(self.members.len() - 1))
    }

    /// Steps that running a member takes, of the steps there are: for tests and profiles.
    pub fn own_steps(&self, member: usize) -> (usize, usize) {
        let member = &self.members[member];
        let own = |step: &&super::Step| {
            !matches!(member.from[step.output], From::Base(_) | From::Nowhere)
        };
        let steps = &member.form.steps;
        (steps.iter().filter(own).count(), steps.len())
    }

    /// First outputs of the base and of the `wanted` members for a batch, N×C row by row. `between` is called every few member runs;
    /// its error ends the run.
    pub fn run(
        &self,
        batch: &Tensor,
        wanted: &[usize],
        between: &mut dyn FnMut() -> Result<(), ExecError>,
        cancel: &CancelToken,
    ) -> Result<(Vec<f32>, Vec<Vec<f32>>), ExecError> {
        let (Some(weights), [images, ..]) = (&self.base.weights, batch.dims()) else {
            return Err(ExecError::Input(
                "a family runs on batches of images".into(),
            ));
        };
        let sample: usize = self.sample.iter().product();
        let threads = on_pool(rayon::current_num_threads).max(1);
        let piece = self.base.piece().min(images.div_ceil(threads)).max(1);
        let mut base = Vec::new();
        let mut results: Vec<Vec<f32>> = vec![Vec::new(); wanted.len()];
        let count = images.div_ceil(piece);
        // As many pieces at a time as there are threads: their values are all kept.
        for group in (0..count).step_by(threads) {
            let pieces: Vec<(usize, usize)> = (group..count.min(group + threads))
                .map(|p| (p * piece, piece.min(images - p * piece)))
                .collect();
            let mut kept: Vec<Workspace> = pieces.iter().map(|_| self.kept.take()).collect();
            on_pool(|| {
                with_f32(batch, |x| {
                    kept.par_iter_mut()
                        .zip(&pieces)
                        .try_for_each(|(space, &(start, n))| {
                            let input = &x[start * sample..(start + n) * sample];
                            self.base
                                .forward(weights, input, n, space, true, Hands::Alone, cancel)
                        })
                })
            })??;
            for (space, &(_, n)) in kept.iter().zip(&pieces) {
                let output = self.base.outputs[0].value;
                base.extend(self.base.export(&space.values[output], output, n));
            }
            for (at, members) in wanted.chunks(GROUP * threads).enumerate() {
                between()?;
                let runs: Vec<(usize, usize)> = (0..members.len())
                    .flat_map(|m| (0..pieces.len()).map(move |p| (m, p)))
                    .collect();
                let outputs: Vec<Vec<f32>> = on_pool(|| {
                    runs.par_iter()
                        .map(|&(m, p)| {
                            let member = &self.members[members[m]];
                            self.run_member(member, &kept[p], pieces[p].1, cancel)
                        })
                        .collect::<Result<_, ExecError>>()
                })?;
                for ((m, _), output) in runs.into_iter().zip(outputs) {
                    results[at * GROUP * threads + m].extend(output);
                }
            }
            kept.into_iter().for_each(|space| self.kept.give(space));
        }
        Ok((base, results))
    }

    fn run_member(
        &self,
        member: &Member,
        kept: &Workspace,
        images: usize,
        cancel: &CancelToken,
    ) -> Result<Vec<f32>, ExecError> {
        let form = &member.form;
        self.spaces.with(|space| {
            self.walk_member(member, form.steps.len(), kept, images, space, cancel)?;
            let output = form.outputs[0].value;
            Ok(match member.from[output] {
                From::Base(base) => self.base.export(&kept.values[base], base, images),
                _ => form.export(&space.values[output], output, images),
            })
        })
    }

    /// Computes what a member does not share, through its first `steps` steps.
    pub(super) fn walk_member(
        &self,
        member: &Member,
        steps: usize,
        kept: &Workspace,
        images: usize,
        space: &mut Workspace,
        cancel: &CancelToken,
    ) -> Result<(), ExecError> {
        let form = &member.form;
        let Some(weights) = &form.weights else {
            return Err(ExecError::Input(
                "a network in training has no fixed weights".into(),
            ));
        };
        space.clear(form.planes.len());
        // The first network may read its images without a margin, having quantised them first.
        if matches!(member.from[form.input], From::Own) {
            let mut input = form.fresh(space, form.input, images);
            let plane = &form.planes[form.input];
            let x = kept.values[self.base.input].as_slice();
            planes::copy(
                images,
                (x, &self.base.planes[self.base.input]),
                (&mut input, plane),
            );
            space.values[form.input] = input;
        }
        for (at, step) in form.steps[..steps].iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(ExecError::Cancelled);
            }
            let from = member.from[step.output];
            if matches!(from, From::Base(_) | From::Nowhere) {
                continue;
            }
            let mut out = form.fresh(space, step.output, images);
            let values = &space.values;
            let value = |id: Id| match member.from[id] {
                From::Base(base) => (kept.values[base].as_slice(), &self.base.planes[base]),
                _ => (values[id].as_slice(), &form.planes[id]),
            };
            match from {
                From::Quantised(base, quant) => {
                    let plane = &form.planes[step.output];
                    let x = (kept.values[base].as_slice(), &self.base.planes[base]);
                    planes::fake_quant(images, x, (&mut out, plane), &quant);
                }
                _ => form.compute(
                    weights,
                    &step.kind,
                    step.output,
                    images,
                    &value,
                    &mut out,
                    Hands::Alone,
                ),
            }
            space.values[step.output] = out;
            for value in step.kind.inputs() {
                if form.last_use[value] == at {
                    let done = std::mem::take(&mut space.values[value]);
                    space.give(done);
                }
            }
        }
        Ok(())
    }
}

/// What each value is computed from, in a number.
fn digests(form: &Lowered) -> Vec<Digest> {
    let none = Digest {
        whole: 0,
        bare: 0,
        quant: None,
    };
    let mut all = vec![none; form.planes.len()];
    let mut input = DefaultHasher::new();
    let plane = &form.planes[form.input];
    (plane.h, plane.w, plane.c, form.input_last).hash(&mut input);
    all[form.input].whole = input.finish();
    let weights = form.weights.as_ref();
    for step in &form.steps {
        let mut hasher = DefaultHasher::new();
        for id in step.kind.inputs() {
            all[id].whole.hash(&mut hasher);
        }
        let limits = |hasher: &mut DefaultHasher, (low, high): (f32, f32)| {
            (low.to_bits(), high.to_bits()).hash(hasher);
        };
        let mut quant = None;
        match &step.kind {
            Kind::Conv {
                window,
                weight,
                added,
                tail,
                ..
            }
            | Kind::Depthwise {
                window,
                weight,
                added,
                tail,
                ..
            } => {
                let digest = weights.map_or(0, |w| w.digests[*weight]);
                (0, window, digest, added.is_some()).hash(&mut hasher);
                limits(&mut hasher, (tail.low, tail.high));
                quant = tail.quant;
            }
            Kind::Add { limits: l, .. } => {
                1.hash(&mut hasher);
                limits(&mut hasher, *l);
            }
            Kind::Clip { limits: l, .. } => {
                2.hash(&mut hasher);
                limits(&mut hasher, *l);
            }
            Kind::Quant {
                input, quant: q, ..
            } => {
                // The same as if the step before had quantised it.
                all[step.output] = Digest {
                    bare: all[*input].whole,
                    whole: with_quant(all[*input].whole, q),
                    quant: Some(*q),
                };
                continue;
            }
            Kind::Mean { .. } => 4.hash(&mut hasher),
            Kind::Average { window, padded, .. } => (5, window, padded).hash(&mut hasher),
            Kind::Max { window, .. } => (6, window).hash(&mut hasher),
            Kind::Scale { .. } => 7.hash(&mut hasher),
            Kind::Map { fun, .. } => (8, format!("{fun:?}")).hash(&mut hasher),
            Kind::Concat { .. } => 9.hash(&mut hasher),
            Kind::Flatten { .. } => 10.hash(&mut hasher),
            Kind::Softmax { .. } => 11.hash(&mut hasher),
            Kind::Norm { norm, .. } => (12, norm).hash(&mut hasher),
        }
        let bare = hasher.finish();
        all[step.output] = Digest {
            bare,
            whole: quant.as_ref().map_or(bare, |q| with_quant(bare, q)),
            quant,
        };
    }
    all
}

fn with_quant(bare: u64, quant: &Quant) -> u64 {
    let mut hasher = DefaultHasher::new();
    let bits = [quant.scale, quant.low, quant.high].map(f32::to_bits);
    (bare, bits).hash(&mut hasher);
    hasher.finish()
}
