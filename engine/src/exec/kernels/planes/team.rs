//! Threads that stay awake for the length of one run. A single image's operators take tens of microseconds each, which is
//! what waking a thread takes; so those who help look at a board until the run is over.
//!
//! Helpers are never waited for before they have taken a part: where all other threads are busy the leader does everything.

#![allow(unsafe_code)] // the board holds a job by its address, for no longer than the job is being done

use rayon::prelude::*;
use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
};

/// What is shared out: called once for each part.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// One leader and its helpers.
pub struct Team {
    size: usize,
    /// Number of the job, its parts, the parts taken, in one word: who takes a part knows which job it belongs to.
    ticket: AtomicU64,
    /// The job, by the address of the leader's reference to it.
    job: AtomicPtr<()>,
    done: AtomicUsize,
    failed: AtomicBool,
    over: AtomicBool,
}

const FIELD: u32 = 20;
const MASK: u64 = (1 << FIELD) - 1;

/// Looks at the board before a helper lets others have its core for a moment.
const LOOKS: u32 = 1 << 12;

impl Team {
    /// Does `work` as the leader of up to `size` threads of the calling thread's pool.
    pub fn lead<R: Send>(size: usize, work: impl FnOnce(&Self) -> R + Send) -> R {
        let team = Self {
            size: size.max(1),
            ticket: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            done: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            over: AtomicBool::new(false),
        };
        rayon::in_place_scope(|scope| {
            for _ in 1..team.size {
                scope.spawn(|_| team.help());
            }
            // Also when `work` panics: the scope waits for its helpers.
            let _end = End(&team.over);
            work(&team)
        })
    }

    fn help(&self) {
        let mut looks = 0u32;
        while !self.over.load(Ordering::Acquire) {
            if self.take_one() {
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
    fn take_one(&self) -> bool {
        let left = |ticket: u64| (ticket & MASK) < (ticket >> FIELD & MASK);
        if !left(self.ticket.load(Ordering::Relaxed)) {
            return false;
        }
        let ticket = self.ticket.fetch_add(1, Ordering::AcqRel);
        if !left(ticket) {
            return false;
        }
        let _done = Done(self, Cell::new(true));
        let job = self.job.load(Ordering::Relaxed).cast::<&Job<'_>>();
        // SAFETY: a part of the job with this ticket has been taken and is not done: until `_done` counts it, the leader stays in
        // `each` (see `Settle`), where the reference that `job` points to lives. The ticket was published after the pointer.
        let job = unsafe { *job };
        job((ticket & MASK) as usize);
        _done.1.set(false);
        true
    }

    /// Calls `job` for each of `parts`, on whoever is there; returns when all are done.
    fn each(&self, parts: usize, job: &Job<'_>) {
        assert!((parts as u64) < MASK, "a job has few parts");
        let mut job = job;
        self.done.store(0, Ordering::Relaxed);
        self.job.store((&raw mut job).cast(), Ordering::Relaxed);
        let number = (self.ticket.load(Ordering::Relaxed) >> (2 * FIELD)) + 1;
        let ticket = number << (2 * FIELD) | (parts as u64) << FIELD;
        self.ticket.store(ticket, Ordering::Release);
        // Whatever happens, this does not return before every part that was taken is done.
        let settled = Settle(self, parts);
        while self.take_one() {}
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
        let number = team.ticket.load(Ordering::Relaxed) >> (2 * FIELD);
        let last = team.ticket.swap(number << (2 * FIELD), Ordering::AcqRel);
        let taken = ((last & MASK) as usize).min(*parts);
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
            Self::Team(team) if team.size > 1 => 2 * team.size,
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
