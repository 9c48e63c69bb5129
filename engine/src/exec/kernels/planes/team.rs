//! Threads that stay awake for the length of one run. A single image's operators take tens of microseconds each, which is
//! what waking a thread takes; so those who help look at a board until the run is over.
//!
//! A member takes the parts that are its own first, one after another, and others' where none of those is left: who wrote
//! the rows of one operator reads them again in the next, and they are in its cache. Helpers are never waited for before they
//! have taken a part: where all other threads are busy the leader does everything.

#![allow(unsafe_code)] // the board holds a job by its address, for no longer than the job is being done

use rayon::prelude::*;
use std::{
    cell::Cell,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
};

/// What is shared out: called once for each part.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// One leader and its helpers.
pub struct Team {
    /// A member each, the leader's first.
    shares: Vec<Share>,
    /// The job, by the address of the leader's reference to it.
    job: AtomicPtr<()>,
    done: AtomicUsize,
    failed: AtomicBool,
    over: AtomicBool,
}

/// A member's own parts of the present job: the end of them and the next one, in one word, so that who takes a part knows
/// that it is one. On a cache line of its own: its member counts it up.
#[derive(Default)]
#[repr(align(64))]
struct Share(AtomicU64);

const FIELD: u32 = 32;
const MASK: u64 = (1 << FIELD) - 1;

impl Share {
    /// Where `Some`, the part is part of the job whose reference stands on the board.
    fn take(&self) -> Option<usize> {
        let left = |word: u64| (word & MASK) < (word >> FIELD);
        if !left(self.0.load(Ordering::Relaxed)) {
            return None;
        }
        let word = self.0.fetch_add(1, Ordering::AcqRel);
        left(word).then_some((word & MASK) as usize)
    }

    fn publish(&self, parts: Range<usize>) {
        let word = (parts.end as u64) << FIELD | parts.start as u64;
        self.0.store(word, Ordering::Release);
    }

    /// Lets nobody take a part any more; how many of the `parts` were taken.
    fn close(&self, parts: Range<usize>) -> usize {
        let next = (self.0.swap(0, Ordering::AcqRel) & MASK) as usize;
        next.min(parts.end) - parts.start
    }
}

/// Looks at the board before a helper lets others have its core for a moment.
const LOOKS: u32 = 1 << 12;

impl Team {
    /// Does `work` as the leader of up to `size` threads of the calling thread's pool.
    pub fn lead<R: Send>(size: usize, work: impl FnOnce(&Self) -> R + Send) -> R {
        let team = Self {
            shares: (0..size.max(1)).map(|_| Share::default()).collect(),
            job: AtomicPtr::new(std::ptr::null_mut()),
            done: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            over: AtomicBool::new(false),
        };
        rayon::in_place_scope(|scope| {
            let team = &team;
            for member in 1..team.shares.len() {
                scope.spawn(move |_| team.help(member));
            }
            // Also when `work` panics: the scope waits for its helpers.
            let _end = End(&team.over);
            work(team)
        })
    }

    fn help(&self, member: usize) {
        let mut looks = 0u32;
        while !self.over.load(Ordering::Acquire) {
            if self.take_one(member) {
                looks = 0;
                continue;
            }
            looks += 1;
            if looks.is_multiple_of(LOOKS) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }

    /// Takes and does a part of the present job, if one is left.
    fn take_one(&self, member: usize) -> bool {
        let (before, from) = self.shares.split_at(member);
        let Some(part) = from.iter().chain(before).find_map(Share::take) else {
            return false;
        };
        let _done = Done(self, Cell::new(true));
        let job = self.job.load(Ordering::Relaxed).cast::<&Job<'_>>();
        // SAFETY: a part of the present job has been taken and is not done: until `_done` counts it, the leader stays in `each`
        // (see `Settle`), where the reference that `job` points to lives. The share was published after the pointer.
        let job = unsafe { *job };
        job(part);
        _done.1.set(false);
        true
    }

    /// The parts of a job that are a member's own.
    fn own(&self, parts: usize, member: usize) -> Range<usize> {
        let members = self.shares.len();
        parts * member / members..parts * (member + 1) / members
    }

    /// Calls `job` for each of `parts`, on whoever is there; returns when all are done.
    fn each(&self, parts: usize, job: &Job<'_>) {
        assert!((parts as u64) < MASK / 2, "a job has few parts");
        let mut job = job;
        self.done.store(0, Ordering::Relaxed);
        self.job.store((&raw mut job).cast(), Ordering::Relaxed);
        // Whatever happens, this does not return before every part that was taken is done.
        let settled = Settle(self, parts);
        for (member, share) in self.shares.iter().enumerate() {
            share.publish(self.own(parts, member));
        }
        while self.take_one(0) {}
        drop(settled);
        assert!(
            !self.failed.load(Ordering::Relaxed),
            "a part of a kernel panicked (see above)"
        );
    }
}

/// Lets no more parts be taken and waits for those that are.
struct Settle<'a>(&'a Team, usize);
impl Drop for Settle<'_> {
    fn drop(&mut self) {
        let Self(team, parts) = self;
        let closed = team.shares.iter().enumerate();
        let taken: usize = closed
            .map(|(member, share)| share.close(team.own(*parts, member)))
            .sum();
        while team.done.load(Ordering::Acquire) < taken {
            std::hint::spin_loop();
        }
    }
}

/// Counts a part as done, also when it panics.
struct Done<'a>(&'a Team, Cell<bool>);
impl Drop for Done<'_> {
    fn drop(&mut self) {
        if self.1.get() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
        self.0.done.fetch_add(1, Ordering::Release);
    }
}

struct End<'a>(&'a AtomicBool);
impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Who does the parts of a kernel.
#[derive(Clone, Copy)]
pub enum Hands<'a> {
    /// The calling thread.
    Alone,
    /// The pool of the calling thread.
    Pool,
    Team(&'a Team),
}

impl Hands<'_> {
    /// Into how many parts work is best cut.
    pub fn count(&self) -> usize {
        match self {
            Self::Alone => 1,
            Self::Pool => rayon::current_num_threads(),
            // Twice as many as there are, so that who comes late leaves a part to the others.
            Self::Team(team) if team.shares.len() > 1 => 2 * team.shares.len(),
            Self::Team(_) => 1,
        }
    }

    pub(super) fn each(&self, parts: usize, job: &Job<'_>) {
        match self {
            Self::Alone => (0..parts).for_each(job),
            Self::Pool => (0..parts).into_par_iter().for_each(job),
            Self::Team(team) => team.each(parts, job),
        }
    }
}
