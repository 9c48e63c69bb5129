//! What a member of a family changes right behind the layer it changes, without running the rest of it: the error of that
//! layer's output, and how much of it the network's outputs would notice.

use super::{
    Id, Kind, Lowered, Step, TwoWay,
    backward::gradient_planes,
    family::{Family, From, Member},
};
use crate::exec::{
    CancelToken, ExecError, Program,
    kernels::planes::{Hands, Plane},
    pool::on_pool,
    value::with_f32,
};
use candle_core::Tensor;
use rayon::prelude::*;

/// Error of one layer's output over some images, activation and residual addition behind it included.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LocalError {
    /// Σ (ŷ − y)² over images, channels and pixels.
    pub error: f64,
    /// Σ y².
    pub signal: f64,
    /// Σ over images of (g·(ŷ − y))², g being the gradient that [`Seed`] sent back; `None` where gradients cannot be taken so.
    pub noticed: Option<f64>,
}

impl LocalError {
    /// That of more images.
    pub fn add(&mut self, other: &Self) {
        self.error += other.error;
        self.signal += other.signal;
        self.noticed = self.noticed.zip(other.noticed).map(|(a, b)| a + b);
    }
}

/// Gradient to send back from the logits, of the same size: given the number of the batch's first image of those in work, their
/// rows of the first output, and whether these are the softmax of the logits.
pub type Seed<'a> = dyn Fn(usize, &[f32], bool) -> Vec<f32> + Sync + 'a;

/// Where a member differs first, and the step of the base that it takes the place of.
struct Change {
    /// Of those wanted.
    place: usize,
    step: usize,
    base: usize,
}

/// What all pieces of a batch share.
struct Pass<'a> {
    weights: &'a TwoWay,
    changes: &'a [Change],
    wanted: &'a [usize],
    gradients: &'a [Plane],
    seed: &'a Seed<'a>,
}

impl Family {
    /// Local errors of the `wanted` members over a batch, by one forward and one backward pass of the base and, of each member, the
    /// layer that it changes alone. `base` is the program that the family was made of. `None` for a member whose change is
    /// not one layer of the same form. The bits of the sums do not depend on the number of threads. `between` is called every few images; its error ends
    /// the run.
    pub fn local(
        &self,
        base: &Program,
        batch: &Tensor,
        wanted: &[usize],
        seed: &Seed<'_>,
        between: &mut dyn FnMut() -> Result<(), ExecError>,
        cancel: &CancelToken,
    ) -> Result<Vec<Option<LocalError>>, ExecError> {
        let [images, ..] = *batch.dims() else {
            return Err(ExecError::Input(
                "a family runs on batches of images".into(),
            ));
        };
        let mut sums: Vec<Option<LocalError>> = vec![None; wanted.len()];
        let mut changes = Vec::new();
        for (place, &member) in wanted.iter().enumerate() {
            match self.change(&self.members[member]) {
                Found::Step(step, base) => changes.push(Change { place, step, base }),
                // Nothing differs: no error. Its signal is not looked up.
                Found::Nothing => sums[place] = Some(LocalError::default()),
                Found::Elsewhere => {}
            }
        }
        let weights = base.two_way(&self.base)?;
        let gradients = gradient_planes(&self.base.planes, &self.base.steps);
        let pass = Pass {
            weights: &weights,
            changes: &changes,
            wanted,
            gradients: &gradients,
            seed,
        };
        let sample: usize = self.sample.iter().product();
        let threads = on_pool(rayon::current_num_threads).max(1);
        // By sizes only: the cut is part of what the sums' bits are.
        let piece = self.base.piece();
        let starts: Vec<usize> = (0..images).step_by(piece).collect();
        for group in starts.chunks(threads) {
            between()?;
            let pieces: Vec<Vec<LocalError>> = on_pool(|| {
                with_f32(batch, |x| {
                    group
                        .par_iter()
                        .map(|&start| {
                            let n = piece.min(images - start);
                            let input = &x[start * sample..(start + n) * sample];
                            self.piece_errors(&pass, input, start, n, cancel)
                        })
                        .collect::<Result<_, ExecError>>()
                })
            })??;
            for errors in pieces {
                for (change, error) in changes.iter().zip(&errors) {
                    match &mut sums[change.place] {
                        Some(sum) => sum.add(error),
                        slot => *slot = Some(*error),
                    }
                }
            }
        }
        Ok(sums)
    }

    fn piece_errors(
        &self,
        pass: &Pass<'_>,
        input: &[f32],
        start: usize,
        n: usize,
        cancel: &CancelToken,
    ) -> Result<Vec<LocalError>, ExecError> {
        let form = &*self.base;
        let weights = &pass.weights.0;
        let mut errors = vec![LocalError::default(); pass.changes.len()];
        let (mut kept, mut own, mut gradients) =
            (self.spaces.take(), self.spaces.take(), self.spaces.take());
        let mut work = || -> Result<(), ExecError> {
            form.forward(weights, input, n, &mut kept, true, Hands::Alone, cancel)?;
            let end = form.slope();
            gradients.clear(form.planes.len());
            if let Some((head, steps)) = end {
                let output = form.outputs[0].value;
                let rows = form.export(&kept.values[output], output, n);
                let softmaxed = steps < form.steps.len();
                let gradient = (pass.seed)(start, &rows, softmaxed);
                let plane = &form.planes[head];
                let bare = Plane::new(plane.h, plane.w, plane.c);
                // Vectors only: their order is the same in every layout.
                form.pass(head, n, pass.gradients, &mut gradients, (&gradient, &bare));
            }
            let steps = end.map_or(form.steps.len(), |(_, steps)| steps);
            for (at, step) in form.steps[..steps].iter().enumerate().rev() {
                if cancel.is_cancelled() {
                    return Err(ExecError::Cancelled);
                }
                let gradient = std::mem::take(&mut gradients.values[step.output]);
                for (change, error) in pass.changes.iter().zip(&mut errors) {
                    if change.base != at {
                        continue;
                    }
                    let member = &self.members[pass.wanted[change.place]];
                    self.walk_member(member, change.step + 1, &kept, n, &mut own, cancel)?;
                    let id = member.form.steps[change.step].output;
                    let planes = [
                        (own.values[id].as_slice(), &member.form.planes[id]),
                        (
                            kept.values[step.output].as_slice(),
                            &form.planes[step.output],
                        ),
                    ];
                    // A layer whose output goes nowhere has no gradient: nothing is noticed of it.
                    let slope = (!gradient.is_empty())
                        .then_some((gradient.as_slice(), &pass.gradients[step.output]));
                    *error = compare(n, planes, slope);
                    error.noticed = end.map(|_| error.noticed.unwrap_or(0.0));
                }
                if !gradient.is_empty() {
                    let spent = form.back(
                        weights,
                        pass.gradients,
                        &step.kind,
                        step.output,
                        n,
                        &kept,
                        &mut gradients,
                        gradient,
                        None,
                    );
                    gradients.give(spent);
                }
            }
            Ok(())
        };
        let result = work();
        for space in [kept, own, gradients] {
            self.spaces.give(space);
        }
        result.map(|()| errors)
    }

    /// Where a member differs from the base first.
    fn change(&self, member: &Member) -> Found {
        let weighted = |steps: &[Step]| -> Vec<usize> {
            let is = |step: &Step| matches!(step.kind, Kind::Conv { .. } | Kind::Depthwise { .. });
            (0..steps.len()).filter(|at| is(&steps[*at])).collect()
        };
        let (own, base) = (weighted(&member.form.steps), weighted(&self.base.steps));
        let differs = |at: &usize| matches!(member.from[member.form.steps[*at].output], From::Own);
        let Some(nth) = own.iter().position(differs) else {
            let other =
                member.form.steps.iter().any(|step| {
                    matches!(member.from[step.output], From::Own | From::Quantised(..))
                });
            return if other {
                Found::Elsewhere
            } else {
                Found::Nothing
            };
        };
        let (step, Some(&other)) = (own[nth], base.get(nth)) else {
            return Found::Elsewhere;
        };
        let steps = (&member.form.steps[step], &self.base.steps[other]);
        let planes = (
            &member.form.planes[steps.0.output],
            &self.base.planes[steps.1.output],
        );
        let same_size =
            (planes.0.h, planes.0.w, planes.0.c) == (planes.1.h, planes.1.w, planes.1.c);
        if own.len() == base.len() && same_size && steps.0.kind.like(&steps.1.kind) {
            Found::Step(step, other)
        } else {
            Found::Elsewhere
        }
    }
}

enum Found {
    Step(usize, usize),
    Nothing,
    Elsewhere,
}

impl Kind {
    /// The same layer with the same things joined to it, whatever its weights.
    fn like(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Conv {
                    window,
                    added,
                    tail,
                    ..
                },
                Self::Conv {
                    window: w,
                    added: a,
                    tail: t,
                    ..
                },
            )
            | (
                Self::Depthwise {
                    window,
                    added,
                    tail,
                    ..
                },
                Self::Depthwise {
                    window: w,
                    added: a,
                    tail: t,
                    ..
                },
            ) => {
                window == w
                    && added.is_some() == a.is_some()
                    && (tail.low, tail.high) == (t.low, t.high)
                    && tail.quant == t.quant
            }
            _ => false,
        }
    }
}

impl Lowered {
    /// The value that gradients start from, the logits, and the steps that lead to it; `None` where a step has no way back.
    fn slope(&self) -> Option<(Id, usize)> {
        let output = self.outputs.first()?.value;
        let (head, steps) = match self.steps.last() {
            Some(Step {
                kind: Kind::Softmax { input },
                output: made,
            }) if *made == output => (*input, self.steps.len() - 1),
            _ => (output, self.steps.len()),
        };
        let vector = (self.planes[head].h, self.planes[head].w) == (1, 1);
        let back = |step: &Step| match &step.kind {
            Kind::Scale { .. }
            | Kind::Map { .. }
            | Kind::Concat { .. }
            | Kind::Softmax { .. }
            | Kind::Norm { .. } => false,
            Kind::Average {
                input,
                window,
                padded,
            } => {
                let from = &self.planes[*input];
                *padded || window.margin(from.h, from.w) == [0; 4]
            }
            _ => true,
        };
        (vector && self.steps[..steps].iter().all(back)).then_some((head, steps))
    }
}

/// Lanes that are summed side by side.
const LANES: usize = 16;

fn compare(
    images: usize,
    [changed, base]: [(&[f32], &Plane); 2],
    slope: Option<(&[f32], &Plane)>,
) -> LocalError {
    let plane = base.1;
    let row =
        |(values, plane): (&'_ [f32], &Plane), image: usize, y: usize| -> std::ops::Range<usize> {
            let start = image * plane.size() + plane.origin() + y * plane.row();
            debug_assert!(start + plane.w * plane.c <= values.len());
            start..start + plane.w * plane.c
        };
    let mut total = LocalError {
        noticed: slope.map(|_| 0.0),
        ..LocalError::default()
    };
    for image in 0..images {
        let mut dot = 0.0;
        for y in 0..plane.h {
            let a = &changed.0[row(changed, image, y)];
            let b = &base.0[row(base, image, y)];
            let (error, signal) = sums(a, b);
            total.error += error;
            total.signal += signal;
            if let Some(slope) = slope {
                dot += along(a, b, &slope.0[row(slope, image, y)]);
            }
        }
        if let Some(noticed) = &mut total.noticed {
            *noticed += dot * dot;
        }
    }
    total
}

/// Σ (a − b)² and Σ b².
fn sums(a: &[f32], b: &[f32]) -> (f64, f64) {
    let mut lanes = [[0f32; LANES]; 2];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let (mut error, mut signal) = rest.fold((0.0, 0.0), |(e, s), (a, b)| {
        let (d, b) = (f64::from(a - b), f64::from(*b));
        (e + d * d, s + b * b)
    });
    for (a, b) in a_chunks.zip(b_chunks) {
        for l in 0..LANES {
            let d = a[l] - b[l];
            lanes[0][l] += d * d;
            lanes[1][l] += b[l] * b[l];
        }
    }
    error += lanes[0].iter().map(|v| f64::from(*v)).sum::<f64>();
    signal += lanes[1].iter().map(|v| f64::from(*v)).sum::<f64>();
    (error, signal)
}

/// Σ g·(a − b).
fn along(a: &[f32], b: &[f32], g: &[f32]) -> f64 {
    let mut lanes = [0f32; LANES];
    let chunks = (
        a.chunks_exact(LANES),
        b.chunks_exact(LANES),
        g.chunks_exact(LANES),
    );
    let rest = chunks.0.remainder().iter().zip(chunks.1.remainder());
    let mut sum: f64 = rest
        .zip(chunks.2.remainder())
        .map(|((a, b), g)| f64::from(g * (a - b)))
        .sum();
    for ((a, b), g) in chunks.0.zip(chunks.1).zip(chunks.2) {
        for l in 0..LANES {
            lanes[l] += g[l] * (a[l] - b[l]);
        }
    }
    sum += lanes.iter().map(|v| f64::from(*v)).sum::<f64>();
    sum
}
