//! A chain of element-wise operators in one pass: a block of elements goes through all of them while it lies in the first cache.
//! Each link rounds to f32 as the operator alone does, so a chain gives the operators' own bits.

#![allow(unsafe_code)] // rows by raw pointers into slices whose extent is checked first

use super::{
    functions::apply_raw,
    host::on_pool,
    lanes::{Isa, Lanes, for_each_isa},
};
use crate::exec::{broadcast::Walk, elementwise::Bin, scalar::Fun};
use rayon::prelude::*;

/// Elements that go through the chain together.
const BLOCK: usize = 2048;

/// Elements a task takes.
const TASK: usize = 1 << 14;

/// One operator of a chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::exec) enum Link {
    Map(Fun),
    /// With another operand, by its number; `swapped`: that one comes first.
    With {
        bin: Bin,
        operand: usize,
        swapped: bool,
    },
}

/// An operand broadcast to the chain's shape.
pub(in crate::exec) struct Side<'a> {
    data: &'a [f32],
    walk: Walk,
}

impl<'a> Side<'a> {
    /// `None` where `shape` does not broadcast to `out` or has another number of elements than `data`.
    pub fn new(data: &'a [f32], shape: &[usize], out: &[usize]) -> Option<Self> {
        let lead = out.len().checked_sub(shape.len())?;
        let fits = shape
            .iter()
            .zip(&out[lead..])
            .all(|(s, o)| s == o || *s == 1);
        (fits && shape.iter().product::<usize>() == data.len()).then(|| Self {
            data,
            walk: Walk::of(shape, out),
        })
    }
}

/// What a chain reads first.
#[derive(Clone, Copy)]
pub(in crate::exec) enum From<'a> {
    Slice(&'a [f32]),
    /// What `out` holds.
    Out,
}

/// Takes all elements through `links`. Parallel over blocks.
///
/// # Panics
/// Where sizes differ or a link names an operand that is not there: the caller planned a wrong chain.
pub(in crate::exec) fn chain(
    isa: Isa,
    links: &[Link],
    from: From<'_>,
    sides: &[Side<'_>],
    out: &mut [f32],
) {
    let total = out.len();
    if total == 0 {
        return;
    }
    assert!(
        matches!(from, From::Out) || matches!(from, From::Slice(x) if x.len() == total),
        "a chain's result is of its input's size"
    );
    for link in links {
        if let Link::With { operand, .. } = link {
            assert!(
                sides[*operand].walk.elements() == total,
                "a chain's operand is broadcast to its size"
            );
        }
    }
    let task = |start: usize, out: &mut [f32]| {
        for (i, block) in out.chunks_mut(BLOCK).enumerate() {
            let at = start + i * BLOCK;
            let mut source = match from {
                From::Slice(x) => x[at..at + block.len()].as_ptr(),
                From::Out => block.as_ptr(),
            };
            let to = block.as_mut_ptr();
            for link in links {
                // SAFETY: `source` and `to` hold the block's elements, being the same or apart; sides are walked within their
                // data, whose shape `Side::new` compared.
                unsafe {
                    match *link {
                        Link::Map(fun) => apply_raw(isa, fun, source, to, block.len()),
                        Link::With {
                            bin,
                            operand,
                            swapped,
                        } => with(
                            isa,
                            bin,
                            &sides[operand],
                            swapped,
                            at,
                            source,
                            to,
                            block.len(),
                        ),
                    }
                }
                source = to.cast_const();
            }
        }
    };
    if total < 2 * TASK {
        task(0, out);
    } else {
        on_pool(|| {
            out.par_chunks_mut(TASK)
                .enumerate()
                .for_each(|(i, out)| task(i * TASK, out));
        });
    }
}

/// One block through one operator of two operands, the elements from number `at` on.
///
/// # Safety
/// `x` and `out` hold `count` floats; `at + count` elements lie in the side's broadcast shape.
#[allow(clippy::too_many_arguments)]
unsafe fn with(
    isa: Isa,
    bin: Bin,
    side: &Side<'_>,
    swapped: bool,
    at: usize,
    x: *const f32,
    out: *mut f32,
    count: usize,
) {
    let (row, step) = side.walk.row();
    let mut done = 0;
    while done < count {
        let (r, c) = ((at + done) / row, (at + done) % row);
        let n = (row - c).min(count - done);
        let offset = side.walk.offset(r) + if step == 0 { 0 } else { c };
        let b = &side.data[offset..offset + if step == 0 { 1 } else { n }];
        // SAFETY: `n` floats from `done` on lie in the block; `b` holds `n` or, repeated, one.
        unsafe {
            let (x, out) = (x.add(done), out.add(done));
            pair_row(isa, bin, x, b.as_ptr(), step == 0, swapped, out, n);
        }
        done += n;
    }
}

for_each_isa!(
    /// # Safety
    /// Rows of `count` floats; `b` one float where `repeated`. `out` may be `a`.
    fn pair_row => pair_body(bin: Bin, a: *const f32, b: *const f32, repeated: bool, swapped: bool, out: *mut f32, count: usize)
);

#[inline(always)]
unsafe fn pair_body<L: Lanes>(
    bin: Bin,
    a: *const f32,
    b: *const f32,
    repeated: bool,
    swapped: bool,
    out: *mut f32,
    count: usize,
) {
    /// The loop for one operator.
    macro_rules! rows {
        (|$x:ident, $y:ident| $value:expr) => {{
            let one = L::splat(*b);
            let mut at = 0;
            while at < count {
                let n = (count - at).min(L::WIDTH);
                let whole = n == L::WIDTH;
                let load = |p: *const f32| {
                    if whole {
                        L::load(p.add(at))
                    } else {
                        L::load_part(p.add(at), n)
                    }
                };
                let second = if repeated { one } else { load(b) };
                let ($x, $y) = if swapped {
                    (second, load(a))
                } else {
                    (load(a), second)
                };
                let value = $value;
                if whole {
                    value.store(out.add(at));
                } else {
                    value.store_part(out.add(at), n);
                }
                at += n;
            }
        }};
    }
    // SAFETY: parts lie within the rows.
    unsafe {
        match bin {
            Bin::Add => rows!(|x, y| x.add(y)),
            Bin::Sub => rows!(|x, y| x.sub(y)),
            Bin::Mul => rows!(|x, y| x.mul(y)),
            Bin::Div => rows!(|x, y| x.div(y)),
            Bin::PRelu => rows!(|x, y| x.less(L::splat(0.0), x.mul(y), x)),
            Bin::Min => rows!(|x, y| or_not_a_number(x, x.less(y, x, y))),
            Bin::Max => rows!(|x, y| or_not_a_number(x, y.less(x, x, y))),
            // A square is one multiplication, which rounds as the power does.
            Bin::Pow if repeated && !swapped && *b == 2.0 => rows!(|x, y| {
                let _ = y;
                x.mul(x)
            }),
            Bin::Pow | Bin::Fmod | Bin::Mod => {
                for at in 0..count {
                    let (x, y) = (*a.add(at), *b.add(if repeated { 0 } else { at }));
                    let (x, y) = if swapped { (y, x) } else { (x, y) };
                    *out.add(at) = bin.apply(x, y);
                }
            }
        }
    }
}

/// `x` where it is not a number, else `value`.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn or_not_a_number<L: Lanes>(x: L, value: L) -> L {
    // SAFETY: as the caller. A number is below 0 or above −1.
    unsafe { x.less(L::splat(0.0), value, L::splat(-1.0).less(x, value, x)) }
}

/// Whether a chain may have this operator in it.
pub(in crate::exec) fn joins(link: &Link) -> bool {
    use crate::graph::UnaryOp;
    !matches!(link, Link::Map(Fun::Op(UnaryOp::IsNaN | UnaryOp::Not)))
}
